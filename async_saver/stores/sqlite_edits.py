"""What changes whole conversations of a `SQLiteStore`, and what sessions need to be undone. All of it is SQL.

A session's changes are noted by names: what it found in each place where it wrote first, and where there was nothing,
that. Who else writes there, or deletes it, takes the note away, so that what others did stays. Values are not deleted
before the session has ended, as others may be made of them.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from async_saver.stores.history import restored
from async_saver.stores.sqlite_reads import chains_of, packed

__all__ = [
    "LOT",
    "PUT_LOT",
    "PUT_MORE",
    "TEMPORARY",
    "Notes",
    "copy",
    "delete",
    "detach",
    "faults",
    "forget_notes",
    "keep_latest",
    "note_all",
    "note_copied",
    "note_value",
    "undo",
    "without_runs",
]

NamespaceOf = Callable[[str, str], int]
"""Returns the row of a namespace of a conversation; makes it, if it is not there."""


_OWN = "SELECT n.id FROM namespaces n JOIN conversations t ON t.id = n.conversation WHERE t.thread_id = :thread_id"

_CHECKPOINT = "parent_id, hidden, versions, run_id, delta_channels, facts, kind, metadata_kind, checkpoint, metadata"
_WRITE = "channel, task_path, run_id, kind, base, data"


# Puts come as one row of a view: what is written for all of a lot is one statement, and by itself one transaction. Each
# column has all rows of a kind, or the bytes of these, end to end. What the writer knows by heart is looked at first.
# What most lots have none of is in a view of its own, whose other columns are the same.
_COLUMNS = "data_version, conversations, blobs, blob_data, checkpoints, checkpoint_data, writes, write_data"
_MORE_COLUMNS = (
    f"{_COLUMNS}, namespaces, runs, noted_checkpoints, unnoted_checkpoints, noted_blobs, noted_writes, unnoted_writes"
)
_UNCHANGED = """
    SELECT RAISE(ABORT, 'changed by others') FROM pragma_data_version WHERE data_version <> NEW.data_version;
"""
_PUT_CONVERSATIONS = """
    INSERT INTO conversations (id, thread_id, written, used)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]') FROM json_each(NEW.conversations) WHERE true
    ON CONFLICT (id) DO UPDATE SET written = excluded.written, used = excluded.used;
"""
_PUT_NAMESPACES = """
    INSERT INTO namespaces (id, conversation, checkpoint_ns)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(NEW.namespaces);
"""
_NOTE = f"""
    INSERT OR IGNORE INTO former_checkpoints
    SELECT json_extract(a.value, '$[0]'), json_extract(a.value, '$[1]'), json_extract(a.value, '$[2]'),
        c.id IS NOT NULL, {_CHECKPOINT}
    FROM json_each(NEW.noted_checkpoints) a LEFT JOIN checkpoints c
    ON c.namespace = json_extract(a.value, '$[3]') AND c.checkpoint_id = json_extract(a.value, '$[2]');

    DELETE FROM former_checkpoints WHERE (thread_id, checkpoint_ns, checkpoint_id) IN (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM json_each(NEW.unnoted_checkpoints));

    INSERT OR IGNORE INTO former_blobs (thread_id, id, was)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), 0 FROM json_each(NEW.noted_blobs);

    INSERT OR IGNORE INTO former_writes
    SELECT json_extract(a.value, '$[0]'), json_extract(a.value, '$[1]'), json_extract(a.value, '$[2]'),
        json_extract(a.value, '$[4]'), json_extract(a.value, '$[5]'), w.namespace IS NOT NULL, {_WRITE}
    FROM json_each(NEW.noted_writes) a LEFT JOIN writes w
    ON w.namespace = json_extract(a.value, '$[3]') AND w.checkpoint_id = json_extract(a.value, '$[2]')
        AND w.task_id = json_extract(a.value, '$[4]') AND w.idx = json_extract(a.value, '$[5]');

    -- Where the first one stays, who comes later changes nothing.
    DELETE FROM former_writes WHERE (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) IN (
        SELECT json_extract(a.value, '$[0]'), json_extract(a.value, '$[1]'), json_extract(a.value, '$[2]'),
            json_extract(a.value, '$[4]'), json_extract(a.value, '$[5]')
        FROM json_each(NEW.unnoted_writes) a LEFT JOIN writes w
        ON w.namespace = json_extract(a.value, '$[3]') AND w.checkpoint_id = json_extract(a.value, '$[2]')
            AND w.task_id = json_extract(a.value, '$[4]') AND w.idx = json_extract(a.value, '$[5]')
        WHERE w.namespace IS NULL OR w.idx < 0);
"""
_PUT_REST = """
    INSERT INTO blobs (id, namespace, channel, version, kind, number, base, data)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
        json_extract(value, '$[6]'), substr(NEW.blob_data, json_extract(value, '$[7]'), json_extract(value, '$[8]'))
    FROM json_each(NEW.blobs);

    INSERT INTO checkpoints (namespace, checkpoint_id, parent_id, hidden, versions, run_id, delta_channels, facts,
        kind, metadata_kind, checkpoint, metadata)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
        json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
        json_extract(value, '$[9]'),
        substr(NEW.checkpoint_data, json_extract(value, '$[10]'), json_extract(value, '$[11]')),
        substr(NEW.checkpoint_data, json_extract(value, '$[12]'), json_extract(value, '$[13]'))
    FROM json_each(NEW.checkpoints) WHERE true
    ON CONFLICT (namespace, checkpoint_id) DO UPDATE SET
        parent_id = excluded.parent_id, hidden = excluded.hidden, versions = excluded.versions,
        run_id = excluded.run_id, delta_channels = excluded.delta_channels, facts = excluded.facts,
        kind = excluded.kind, metadata_kind = excluded.metadata_kind, checkpoint = excluded.checkpoint,
        metadata = excluded.metadata;

    -- Those to a checkpoint that was deleted, and is there only for what is rebuilt from it, go nowhere.
    INSERT INTO writes (namespace, checkpoint_id, task_id, idx, channel, task_path, run_id, kind, base, data)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
        json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
        substr(NEW.write_data, json_extract(value, '$[9]'), json_extract(value, '$[10]'))
    FROM json_each(NEW.writes) WHERE NOT EXISTS (
        SELECT 1 FROM checkpoints c
        WHERE c.namespace = json_extract(value, '$[0]') AND c.checkpoint_id = json_extract(value, '$[1]') AND c.hidden)
    ON CONFLICT (namespace, checkpoint_id, task_id, idx) DO UPDATE SET
        channel = excluded.channel, task_path = excluded.task_path, run_id = excluded.run_id, kind = excluded.kind,
        base = excluded.base, data = excluded.data
    WHERE excluded.idx < 0;
"""
_PUT_RUNS = """
    INSERT OR IGNORE INTO runs (run_id, namespace)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(NEW.runs);
"""


def _view(name: str, columns: str, *steps: str) -> tuple[str, str]:
    """Return the statements that make a view, and what happens when a row is inserted there."""
    nothing = ", ".join("NULL" for _ in columns.split(", "))
    return (
        f"CREATE TEMP VIEW {name} ({columns}) AS SELECT {nothing}",
        f"CREATE TEMP TRIGGER put_{name} INSTEAD OF INSERT ON {name} BEGIN {''.join(steps)} END",
    )


def _put(name: str, columns: str) -> str:
    return f"INSERT INTO {name} ({columns}) VALUES ({', '.join(f':{column}' for column in columns.split(', '))})"


PUT_LOT, PUT_MORE = _put("lot", _COLUMNS), _put("lot_and_more", _MORE_COLUMNS)
LOT: dict[str, None] = dict.fromkeys(_MORE_COLUMNS.split(", "))
"""The columns of an empty one."""

TEMPORARY = (
    "CREATE TEMP TABLE stay (id INTEGER PRIMARY KEY)",
    "CREATE TEMP TABLE marks (id INTEGER, channel TEXT, PRIMARY KEY (id, channel)) WITHOUT ROWID",
    "CREATE TEMP TABLE alive (id INTEGER PRIMARY KEY, is_named INTEGER)",
    "CREATE TEMP TABLE present (checkpoint_ns TEXT, checkpoint_id TEXT, hidden INTEGER)",
    "CREATE TEMP TABLE present_writes (checkpoint_ns TEXT, checkpoint_id TEXT, task_id TEXT, idx INTEGER)",
    *_view("lot", _COLUMNS, _UNCHANGED, _PUT_CONVERSATIONS, _PUT_REST),
    *_view("lot_and_more", _MORE_COLUMNS, _UNCHANGED, _PUT_CONVERSATIONS, _PUT_NAMESPACES, _NOTE, _PUT_REST, _PUT_RUNS),
)
"""What the steps of a change leave for the next: checkpoints that stay in sight, the checkpoints and channels that
their values rest on, values that are needed. And what is put."""


# Notes.


class Notes:
    """Notes that are yet to be taken, and those to be taken away, before what is put to these places is written."""

    def __init__(self) -> None:
        self._rows: dict[str, list[list[Any]]] = {}
        self._are_own: dict[str, bool] = {}  # by thread_id

    def have_others(self, thread_id: str, is_own: bool) -> bool:
        """Tell whether there are some of a conversation by somebody else, which come first; from now on it is these."""
        return self._are_own.setdefault(thread_id, is_own) != is_own

    def checkpoint(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, namespace: int, is_own: bool) -> None:
        """Note what is found where a session puts a checkpoint, or that another one puts one there."""
        column = "noted_checkpoints" if is_own else "unnoted_checkpoints"
        self._rows.setdefault(column, []).append([thread_id, checkpoint_ns, checkpoint_id, namespace])

    def writes(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str,
        namespace: int,
        keys: Iterable[tuple[str, int]],
        is_own: bool,
    ) -> None:
        """Note the same of writes."""
        column = "noted_writes" if is_own else "unnoted_writes"
        rows = [[thread_id, checkpoint_ns, checkpoint_id, namespace, *key] for key in keys]
        self._rows.setdefault(column, []).extend(rows)

    def blob(self, thread_id: str, row: int) -> None:
        """Note a value that a session adds."""
        self._rows.setdefault("noted_blobs", []).append([thread_id, row])

    def take(self) -> dict[str, str]:
        """Return, once, the columns of `lot` that are for them."""
        rows, self._rows, self._are_own = self._rows, {}, {}
        return {column: packed(places) for column, places in rows.items()}


_NOTE_VALUE = """
INSERT INTO former_blobs (thread_id, id, was, is_replaced, kind, data) VALUES (?, ?, 1, 1, ?, ?)
ON CONFLICT (thread_id, id) DO UPDATE SET is_replaced = 1, kind = excluded.kind, data = excluded.data
WHERE was AND NOT is_replaced
"""
_UNNOTE_VALUE = "DELETE FROM former_blobs WHERE thread_id = ? AND id = ?"


def note_value(
    connection: sqlite3.Connection, thread_id: str, row: int, kind: str | None, value: bytes, is_own: bool
) -> None:
    """Note a value that a session replaces, or that another one does."""
    if is_own:
        connection.execute(_NOTE_VALUE, (thread_id, row, kind, value))
    else:
        connection.execute(_UNNOTE_VALUE, (thread_id, row))


_NOTE_NAMESPACES = f"""
INSERT OR IGNORE INTO former_namespaces (thread_id, namespace, checkpoint_ns)
SELECT :thread_id, id, checkpoint_ns FROM namespaces WHERE id IN ({_OWN})
"""
_NOTE_ALL = (
    _NOTE_NAMESPACES,
    f"""
    INSERT OR IGNORE INTO former_checkpoints SELECT :thread_id, n.checkpoint_ns, c.checkpoint_id, 1, {_CHECKPOINT}
    FROM checkpoints c JOIN namespaces n ON n.id = c.namespace WHERE n.id IN ({_OWN})
    """,
    f"""
    INSERT OR IGNORE INTO former_blobs (thread_id, id, was)
    SELECT :thread_id, id, 1 FROM blobs WHERE aside = 0 AND namespace IN ({_OWN})
    """,
    f"""
    INSERT OR IGNORE INTO former_writes
    SELECT :thread_id, n.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, 1, {_WRITE}
    FROM writes w JOIN namespaces n ON n.id = w.namespace WHERE n.id IN ({_OWN})
    """,
)


def note_all(connection: sqlite3.Connection, thread_id: str) -> None:
    """Note a whole conversation, before a session prunes or deletes it."""
    for statement in _NOTE_ALL:
        connection.execute(statement, {"thread_id": thread_id})


_NOTE_COPIED = (
    f"""
    INSERT OR IGNORE INTO former_checkpoints (thread_id, checkpoint_ns, checkpoint_id, was)
    SELECT :thread_id, n.checkpoint_ns, c.checkpoint_id, 0
    FROM checkpoints c JOIN namespaces n ON n.id = c.namespace WHERE n.id IN ({_OWN})
    """,
    f"""
    INSERT OR IGNORE INTO former_blobs (thread_id, id, was)
    SELECT :thread_id, id, 0 FROM blobs WHERE namespace IN ({_OWN})
    """,
    f"""
    INSERT OR IGNORE INTO former_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, was)
    SELECT :thread_id, n.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, 0
    FROM writes w JOIN namespaces n ON n.id = w.namespace WHERE n.id IN ({_OWN})
    """,
)


def note_copied(connection: sqlite3.Connection, thread_id: str) -> None:
    """Note that all of a conversation is new."""
    for statement in _NOTE_COPIED:
        connection.execute(statement, {"thread_id": thread_id})


_LEFT_VALUES = """
DELETE FROM blobs WHERE namespace IN (SELECT namespace FROM former_namespaces WHERE thread_id = :thread_id)
    AND namespace NOT IN (SELECT id FROM namespaces)
"""


def forget_notes(connection: sqlite3.Connection, thread_id: str) -> None:
    """Take all notes of a conversation away, as its session has ended; delete the values that they have kept."""
    place = {"thread_id": thread_id}
    has_kept = "SELECT 1 FROM former_namespaces WHERE thread_id = :thread_id LIMIT 1"
    if connection.execute(has_kept, place).fetchone() is not None:
        connection.execute(_LEFT_VALUES, place)
        for (namespace,) in connection.execute(_NAMESPACES, place).fetchall():
            _tidy_namespace(connection, namespace, orphans=True)
    for table in ("former_checkpoints", "former_blobs", "former_writes", "former_namespaces"):
        connection.execute(f"DELETE FROM {table} WHERE thread_id = :thread_id", place)


_NAMESPACE_OF = "(SELECT namespace FROM blobs WHERE id = :row)"
_MADE_OF = {
    "blobs": ("id", f"namespace = {_NAMESPACE_OF} AND base = :row"),
    "writes": ("namespace, checkpoint_id, task_id, idx", f"namespace = {_NAMESPACE_OF} AND base = :row"),
    "former_writes": ("thread_id, checkpoint_ns, checkpoint_id, task_id, idx", "base = :row"),
}


def detach(connection: sqlite3.Connection, row: int) -> None:
    """Have nothing be made of a value any more, as that changes."""
    base = chains_of(connection, [row])[row].value
    for table, (key, which) in _MADE_OF.items():
        found = connection.execute(f"SELECT {key}, data FROM {table} WHERE {which}", {"row": row}).fetchall()
        number = ", number = 0" if table == "blobs" else ""
        for *place, parts in found:
            whole, marks = restored([parts], base), ", ".join("?" * len(place))
            connection.execute(
                f"UPDATE {table} SET base = NULL, data = ?{number} WHERE ({key}) = ({marks})", (whole, *place)
            )


# Undoing.

_PLACES = """
    SELECT checkpoint_ns FROM former_checkpoints WHERE thread_id = :thread_id
    UNION SELECT checkpoint_ns FROM former_writes WHERE thread_id = :thread_id
    UNION SELECT checkpoint_ns FROM former_namespaces WHERE thread_id = :thread_id
"""
_REPLACED = """
SELECT f.id, f.kind, f.data FROM former_blobs f JOIN blobs b ON b.id = f.id
WHERE f.thread_id = :thread_id AND f.is_replaced
"""
_SET_VALUE = "UPDATE blobs SET kind = ?, number = 0, base = NULL, data = ? WHERE id = ?"
_UNDO = (
    """
    UPDATE blobs SET namespace = :namespace WHERE namespace <> :namespace AND namespace IN (
        SELECT namespace FROM former_namespaces WHERE thread_id = :thread_id AND checkpoint_ns = :checkpoint_ns)
    """,
    """
    DELETE FROM checkpoints WHERE namespace = :namespace AND checkpoint_id IN (
        SELECT checkpoint_id FROM former_checkpoints
        WHERE thread_id = :thread_id AND checkpoint_ns = :checkpoint_ns)
    """,
    """
    DELETE FROM writes WHERE namespace = :namespace AND (checkpoint_id, task_id, idx) IN (
        SELECT checkpoint_id, task_id, idx FROM former_writes
        WHERE thread_id = :thread_id AND checkpoint_ns = :checkpoint_ns)
    """,
    f"""
    INSERT INTO checkpoints (namespace, checkpoint_id, {_CHECKPOINT})
    SELECT :namespace, checkpoint_id, {_CHECKPOINT} FROM former_checkpoints
    WHERE thread_id = :thread_id AND checkpoint_ns = :checkpoint_ns AND was
    """,
    f"""
    INSERT INTO writes (namespace, checkpoint_id, task_id, idx, {_WRITE})
    SELECT :namespace, checkpoint_id, task_id, idx, {_WRITE} FROM former_writes
    WHERE thread_id = :thread_id AND checkpoint_ns = :checkpoint_ns AND was
    """,
    # What the session added goes, unless others name it.
    """
    UPDATE blobs SET aside = id WHERE aside = 0 AND namespace = :namespace
        AND id IN (SELECT id FROM former_blobs WHERE thread_id = :thread_id AND NOT was)
        AND id NOT IN (
            SELECT v.value FROM checkpoints c CROSS JOIN json_each(c.versions) v WHERE c.namespace = :namespace)
    """,
    # What was there is found again, unless others have put another one of that name.
    """
    UPDATE OR IGNORE blobs SET aside = 0 WHERE aside <> 0 AND namespace = :namespace
        AND id IN (SELECT id FROM former_blobs WHERE thread_id = :thread_id AND was)
    """,
)
# Others have named meanwhile what the session had taken away.
_NAMED_ONLY = """
SELECT o.id, b.id, b.kind FROM former_blobs f JOIN blobs b ON b.id = f.id
JOIN blobs o ON o.namespace = b.namespace AND o.channel = b.channel AND o.version = b.version AND o.aside = 0
WHERE f.thread_id = :thread_id AND f.was AND b.aside <> 0 AND o.kind IS NULL AND b.kind IS NOT NULL
"""


def undo(connection: sqlite3.Connection, thread_id: str, namespace_of: NamespaceOf) -> None:
    """Put back what a session found where it wrote."""
    place: dict[str, Any] = {"thread_id": thread_id}
    names = [name for (name,) in connection.execute(_PLACES, place).fetchall()]
    namespaces = {name: namespace_of(thread_id, name) for name in names}
    for name, namespace in namespaces.items():
        for statement in _UNDO:
            connection.execute(statement, {**place, "checkpoint_ns": name, "namespace": namespace})
    for row, kind, value in connection.execute(_REPLACED, place).fetchall():
        detach(connection, row)
        connection.execute(_SET_VALUE, (kind, value, row))
    for named, row, kind in connection.execute(_NAMED_ONLY, place).fetchall():
        connection.execute(_SET_VALUE, (kind, chains_of(connection, [row])[row].value, named))
    forget_notes(connection, thread_id)
    for namespace in namespaces.values():
        _tidy_namespace(connection, namespace, orphans=True)
    _tidy_conversation(connection, thread_id)


# Deleting and pruning.

_HIDE_VALUES = f"UPDATE blobs SET aside = id WHERE aside = 0 AND namespace IN ({_OWN})"
_DELETE_VALUES = f"DELETE FROM blobs WHERE namespace IN ({_OWN})"
_DELETE = (
    *(f"DELETE FROM {table} WHERE namespace IN ({_OWN})" for table in ("checkpoints", "writes", "runs")),
    "DELETE FROM namespaces WHERE conversation = (SELECT id FROM conversations WHERE thread_id = :thread_id)",
    "DELETE FROM conversations WHERE thread_id = :thread_id",
)


def delete(connection: sqlite3.Connection, thread_id: str, keeps_values: bool = False) -> None:
    """Delete everything of a conversation; but for its values, where a session has notes that refer to them."""
    for statement in (_HIDE_VALUES if keeps_values else _DELETE_VALUES, *_DELETE):
        connection.execute(statement, {"thread_id": thread_id})


_MARK = """
INSERT INTO marks WITH RECURSIVE
delta (channel) AS (
    SELECT DISTINCT d.value FROM checkpoints c CROSS JOIN json_each(c.delta_channels) d WHERE c.namespace = :namespace
),
line (id, channel) AS (
    SELECT p.id, b.channel FROM stay CROSS JOIN checkpoints c ON c.id = stay.id
    CROSS JOIN json_each(c.versions) v CROSS JOIN blobs b ON b.id = v.value
    CROSS JOIN checkpoints p ON p.namespace = :namespace AND p.checkpoint_id = c.parent_id
    WHERE b.channel IN delta AND ifnull(b.kind, 'empty') = 'empty'
    UNION
    SELECT p.id, line.channel FROM line CROSS JOIN checkpoints c ON c.id = line.id
    CROSS JOIN checkpoints p ON p.namespace = :namespace AND p.checkpoint_id = c.parent_id
    WHERE NOT EXISTS (
        SELECT 1 FROM json_each(c.versions) v CROSS JOIN blobs b ON b.id = v.value
        WHERE b.channel = line.channel AND ifnull(b.kind, 'empty') <> 'empty')
)
SELECT id, channel FROM line
"""
_STAY_LATEST = """
INSERT INTO stay SELECT id FROM checkpoints WHERE namespace = :namespace AND NOT hidden
ORDER BY checkpoint_id DESC LIMIT :number
"""
# What others are rebuilt from stays in sight if all that it shows can be rebuilt.
_STAY_WHOLE = """
INSERT OR IGNORE INTO stay SELECT c.id FROM checkpoints c
WHERE c.namespace = :namespace AND NOT c.hidden AND c.id IN (SELECT id FROM marks) AND (
    c.parent_id IS NULL
    OR NOT EXISTS (SELECT 1 FROM checkpoints p WHERE p.namespace = :namespace AND p.checkpoint_id = c.parent_id)
    OR NOT EXISTS (
        SELECT 1 FROM json_each(c.versions) v CROSS JOIN blobs b ON b.id = v.value
        WHERE ifnull(b.kind, 'empty') = 'empty' AND b.channel IN (
            SELECT DISTINCT d.value FROM checkpoints o CROSS JOIN json_each(o.delta_channels) d
            WHERE o.namespace = :namespace)
        AND NOT EXISTS (
            SELECT 1 FROM checkpoints p JOIN marks m ON m.id = p.id AND m.channel = b.channel
            WHERE p.namespace = :namespace AND p.checkpoint_id = c.parent_id)))
"""
_DROP_OLD_WRITES = """
DELETE FROM writes WHERE namespace = :namespace
    AND checkpoint_id <= (SELECT max(checkpoint_id) FROM checkpoints WHERE namespace = :namespace AND NOT hidden)
    AND NOT EXISTS (
        SELECT 1 FROM checkpoints c WHERE c.namespace = :namespace AND c.checkpoint_id = writes.checkpoint_id)
"""
_STAY_WITHOUT_RUNS = """
INSERT INTO stay SELECT id FROM checkpoints WHERE namespace = :namespace AND NOT hidden
    AND (run_id IS NULL OR run_id NOT IN (SELECT value FROM json_each(:runs)))
"""
_DROP_RUNS_WRITES = """
DELETE FROM writes WHERE namespace = :namespace AND run_id IN (SELECT value FROM json_each(:runs))
    AND NOT EXISTS (
        SELECT 1 FROM checkpoints c JOIN marks m ON m.id = c.id
        WHERE c.namespace = :namespace AND c.checkpoint_id = writes.checkpoint_id AND m.channel = writes.channel)
"""
_KEEP = (
    """
    DELETE FROM writes WHERE namespace = :namespace AND EXISTS (
        SELECT 1 FROM checkpoints c WHERE c.namespace = :namespace AND c.checkpoint_id = writes.checkpoint_id
            AND c.id NOT IN (SELECT id FROM stay)
            AND NOT EXISTS (SELECT 1 FROM marks m WHERE m.id = c.id AND m.channel = writes.channel))
    """,
    """
    DELETE FROM checkpoints WHERE namespace = :namespace
        AND id NOT IN (SELECT id FROM stay) AND id NOT IN (SELECT id FROM marks)
    """,
    """
    UPDATE checkpoints SET hidden = 1, kind = 'empty', checkpoint = x'', metadata_kind = 'empty', metadata = x'',
        facts = NULL, versions = (
            SELECT json_group_array(v.value) FROM json_each(checkpoints.versions) v
            CROSS JOIN blobs b ON b.id = v.value
            CROSS JOIN marks m ON m.id = checkpoints.id AND m.channel = b.channel)
    WHERE namespace = :namespace AND id NOT IN (SELECT id FROM stay)
    """,
)
_TIDY = (
    "DELETE FROM alive",
    """
    INSERT INTO alive SELECT DISTINCT v.value, 1 FROM checkpoints c CROSS JOIN json_each(c.versions) v
    WHERE c.namespace = :namespace
    """,
    """
    INSERT OR IGNORE INTO alive SELECT id, 1 FROM blobs WHERE :orphans AND aside = 0 AND namespace = :namespace
    """,
    "UPDATE blobs SET aside = id WHERE aside = 0 AND namespace = :namespace AND id NOT IN (SELECT id FROM alive)",
    """
    INSERT OR IGNORE INTO alive WITH RECURSIVE needed (id) AS (
        SELECT b.base FROM alive CROSS JOIN blobs b ON b.id = alive.id WHERE b.base IS NOT NULL
        UNION
        SELECT base FROM writes WHERE namespace = :namespace AND base IS NOT NULL
        UNION
        SELECT b.base FROM needed CROSS JOIN blobs b ON b.id = needed.id WHERE b.base IS NOT NULL
    )
    SELECT id, 0 FROM needed
    """,
    """
    DELETE FROM blobs WHERE NOT :keeps_values AND aside <> 0 AND namespace = :namespace
        AND id NOT IN (SELECT id FROM alive)
    """,
    "DELETE FROM runs WHERE namespace = :namespace",
    """
    INSERT OR IGNORE INTO runs SELECT run_id, namespace FROM checkpoints
    WHERE namespace = :namespace AND run_id IS NOT NULL AND NOT hidden
    """,
    """
    INSERT OR IGNORE INTO runs SELECT run_id, namespace FROM writes
    WHERE namespace = :namespace AND run_id IS NOT NULL
    """,
)
_HAS_ANYTHING = """
SELECT EXISTS (SELECT 1 FROM checkpoints WHERE namespace = :namespace AND NOT hidden)
    OR EXISTS (SELECT 1 FROM writes WHERE namespace = :namespace)
"""
_DELETE_NAMESPACE = (
    "UPDATE blobs SET aside = id WHERE aside = 0 AND namespace = :namespace",
    "DELETE FROM blobs WHERE NOT :keeps_values AND namespace = :namespace",
    "DELETE FROM checkpoints WHERE namespace = :namespace",
    "DELETE FROM runs WHERE namespace = :namespace",
    "DELETE FROM namespaces WHERE id = :namespace",
)
_NAMESPACES = """
SELECT n.id FROM namespaces n JOIN conversations t ON t.id = n.conversation WHERE t.thread_id = :thread_id
"""
_NAMESPACES_OF_RUNS = """
SELECT n.id FROM namespaces n JOIN conversations t ON t.id = n.conversation
WHERE t.thread_id = :thread_id AND n.id IN (
    SELECT namespace FROM runs WHERE run_id IN (SELECT value FROM json_each(:runs)))
"""


def _tidy_namespace(
    connection: sqlite3.Connection, namespace: int, orphans: bool = False, keeps_values: bool = False
) -> None:
    """Free values that nothing needs, find out anew where runs are, and let a namespace go that has nothing in it.

    With `orphans`, values that are found by name are needed, as a checkpoint may come to name them; with `keeps_values`
    none is deleted, as a session has notes that refer to them.
    """
    place = {"namespace": namespace, "orphans": orphans, "keeps_values": keeps_values}
    (has_anything,) = connection.execute(_HAS_ANYTHING, place).fetchone()
    for statement in _TIDY if has_anything else _DELETE_NAMESPACE:
        connection.execute(statement, place)


def _tidy_conversation(connection: sqlite3.Connection, thread_id: str) -> None:
    if connection.execute(_NAMESPACES, {"thread_id": thread_id}).fetchone() is None:
        connection.execute("DELETE FROM conversations WHERE thread_id = ?", (thread_id,))


def keep_latest(
    connection: sqlite3.Connection,
    thread_id: str,
    keeps_values: bool = False,
    number: int = 1,
    only_longer: bool = False,
) -> int:
    """Keep the latest of each namespace, or `only_longer` ones, with what these rest on; return how many went."""
    went = 0
    for (namespace,) in connection.execute(_NAMESPACES, {"thread_id": thread_id}).fetchall():
        place = {"namespace": namespace, "number": number}
        before = _in_sight(connection, namespace)
        if only_longer and before <= number:
            continue
        _begin(connection)
        for statement in (_STAY_LATEST, _MARK, _STAY_WHOLE, _DROP_OLD_WRITES, *_KEEP):
            connection.execute(statement, place)
        went += before - _in_sight(connection, namespace)
        _tidy_namespace(connection, namespace, keeps_values=keeps_values)
    _tidy_conversation(connection, thread_id)
    return went


def _in_sight(connection: sqlite3.Connection, namespace: int) -> int:
    counted = "SELECT count(*) FROM checkpoints WHERE namespace = ? AND NOT hidden"
    return int(connection.execute(counted, (namespace,)).fetchone()[0])


def without_runs(connection: sqlite3.Connection, thread_id: str, keeps_values: bool, run_ids: Sequence[str]) -> None:
    """Delete what runs have stored in a conversation, but for what others rest on."""
    runs = packed(run_ids)
    for (namespace,) in connection.execute(_NAMESPACES_OF_RUNS, {"thread_id": thread_id, "runs": runs}).fetchall():
        place = {"namespace": namespace, "runs": runs}
        _begin(connection)
        for statement in (_STAY_WITHOUT_RUNS, _MARK, *_KEEP, _DROP_RUNS_WRITES):
            connection.execute(statement, place)
        _tidy_namespace(connection, namespace, keeps_values=keeps_values)
    _tidy_conversation(connection, thread_id)


def _begin(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM stay")
    connection.execute("DELETE FROM marks")


_BEFORE_OTHERS = (
    _NOTE_NAMESPACES,
    "DELETE FROM present",
    "DELETE FROM present_writes",
    f"""
    INSERT INTO present SELECT n.checkpoint_ns, c.checkpoint_id, c.hidden
    FROM checkpoints c JOIN namespaces n ON n.id = c.namespace WHERE n.id IN ({_OWN})
    """,
    f"""
    INSERT INTO present_writes SELECT n.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx
    FROM writes w JOIN namespaces n ON n.id = w.namespace WHERE n.id IN ({_OWN})
    """,
)
_AFTER_OTHERS = (
    f"""
    DELETE FROM former_checkpoints WHERE thread_id = :thread_id AND was AND (checkpoint_ns, checkpoint_id) IN (
        SELECT checkpoint_ns, checkpoint_id FROM present EXCEPT
        SELECT n.checkpoint_ns, c.checkpoint_id FROM checkpoints c JOIN namespaces n ON n.id = c.namespace
        JOIN present p
        ON p.checkpoint_ns = n.checkpoint_ns AND p.checkpoint_id = c.checkpoint_id AND p.hidden = c.hidden
        WHERE n.id IN ({_OWN}))
    """,
    f"""
    DELETE FROM former_writes WHERE thread_id = :thread_id AND was AND (checkpoint_ns, checkpoint_id, task_id, idx) IN (
        SELECT checkpoint_ns, checkpoint_id, task_id, idx FROM present_writes EXCEPT
        SELECT n.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx
        FROM writes w JOIN namespaces n ON n.id = w.namespace WHERE n.id IN ({_OWN}))
    """,
)


def before_others(connection: sqlite3.Connection, thread_id: str) -> None:
    """Remember what is there, before somebody else than a session prunes its conversation."""
    for statement in _BEFORE_OTHERS:
        connection.execute(statement, {"thread_id": thread_id})


def after_others(connection: sqlite3.Connection, thread_id: str) -> None:
    """Take the notes of what has gone away."""
    for statement in _AFTER_OTHERS:
        connection.execute(statement, {"thread_id": thread_id})


# Copying. The values are copied, too: rows of `blobs` belong to one namespace. Their ids grow by the same number.

_SPAN = f"SELECT min(id), max(id) FROM blobs WHERE namespace IN ({_OWN})"
_NAMED = """
SELECT n.id, n.checkpoint_ns FROM namespaces n JOIN conversations t ON t.id = n.conversation
WHERE t.thread_id = :thread_id
"""
_COPY = (
    f"""
    INSERT INTO checkpoints (namespace, checkpoint_id, {_CHECKPOINT})
    SELECT :target, checkpoint_id, parent_id, hidden,
        (SELECT json_group_array(v.value + :more) FROM json_each(c.versions) v), run_id, delta_channels, facts, kind,
        metadata_kind, checkpoint, metadata
    FROM checkpoints c WHERE namespace = :source
    """,
    """
    INSERT INTO blobs (id, namespace, aside, channel, version, kind, number, base, data)
    SELECT id + :more, :target, CASE aside WHEN 0 THEN 0 ELSE id + :more END, channel, version, kind, number,
        base + :more, data
    FROM blobs WHERE namespace = :source
    """,
    f"""
    INSERT INTO writes (namespace, checkpoint_id, task_id, idx, {_WRITE})
    SELECT :target, checkpoint_id, task_id, idx, channel, task_path, run_id, kind, base + :more, data
    FROM writes WHERE namespace = :source
    """,
    "INSERT INTO runs SELECT run_id, :target FROM runs WHERE namespace = :source",
)


def copy(connection: sqlite3.Connection, source: str, target: str, namespace_of: NamespaceOf, next_id: int) -> int:
    """Copy a conversation; return the next row of `blobs` then."""
    first, last = connection.execute(_SPAN, {"thread_id": source}).fetchone()
    more = next_id - (first or 0)
    for namespace, name in connection.execute(_NAMED, {"thread_id": source}).fetchall():
        place = {"source": namespace, "target": namespace_of(target, name), "more": more}
        for statement in _COPY:
            connection.execute(statement, place)
    return next_id if last is None else int(last) + more + 1


# What must always hold.

_FAULTS = {
    "versions of checkpoints that are not there": """
        SELECT c.id FROM checkpoints c CROSS JOIN json_each(c.versions) v LEFT JOIN blobs b ON b.id = v.value
        WHERE b.id IS NULL OR b.namespace <> c.namespace
    """,
    "values that are made of what is not there": """
        SELECT b.id FROM blobs b LEFT JOIN blobs o ON o.id = b.base
        WHERE b.base IS NOT NULL AND (o.id IS NULL OR o.id >= b.id OR o.namespace <> b.namespace)
    """,
    "writes that are made of what is not there": """
        SELECT w.checkpoint_id FROM writes w LEFT JOIN blobs o ON o.id = w.base
        WHERE w.base IS NOT NULL AND (o.id IS NULL OR o.namespace <> w.namespace)
    """,
    "rows of no namespace": """
        SELECT namespace FROM (
            SELECT namespace FROM checkpoints UNION SELECT namespace FROM writes UNION SELECT namespace FROM runs
            UNION SELECT namespace FROM blobs WHERE namespace NOT IN (SELECT namespace FROM former_namespaces)
        ) WHERE namespace NOT IN (SELECT id FROM namespaces)
    """,
    "namespaces of no conversation": """
        SELECT id FROM namespaces WHERE conversation NOT IN (SELECT id FROM conversations)
    """,
    "conversations and namespaces with nothing in them": """
        SELECT id FROM namespaces n
        WHERE NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.namespace = n.id AND NOT c.hidden)
            AND NOT EXISTS (SELECT 1 FROM writes w WHERE w.namespace = n.id)
        UNION ALL SELECT id FROM conversations WHERE id NOT IN (SELECT conversation FROM namespaces)
    """,
    "runs that are not found where they stored something": """
        SELECT run_id FROM (
            SELECT run_id, namespace FROM checkpoints WHERE run_id IS NOT NULL AND NOT hidden
            UNION SELECT run_id, namespace FROM writes WHERE run_id IS NOT NULL
            EXCEPT SELECT run_id, namespace FROM runs)
    """,
    "a wrong count of conversations": """
        SELECT value FROM counters WHERE name = 'conversations' AND value <> (SELECT count(*) FROM conversations)
    """,
    "notes of no session": """
        SELECT thread_id FROM (
            SELECT thread_id FROM former_checkpoints UNION SELECT thread_id FROM former_blobs
            UNION SELECT thread_id FROM former_writes UNION SELECT thread_id FROM former_namespaces
        ) WHERE thread_id NOT IN (SELECT thread_id FROM leases WHERE held)
    """,
}


def faults(connection: sqlite3.Connection) -> list[str]:
    """Say what is not as it should be: SQLite's own check first, then what must always hold here."""
    found = [text for (text,) in connection.execute("PRAGMA integrity_check(20)") if text != "ok"]
    if found:
        return found
    for what, statement in _FAULTS.items():
        rows = [row[0] for row in connection.execute(f"{statement} LIMIT 5")]
        if rows:
            found.append(f"{what}: {rows}")
    if not found:
        found += _unreadable(connection)
    return found


def _unreadable(connection: sqlite3.Connection) -> list[str]:
    found: list[str] = []
    (ids,) = connection.execute("SELECT json_group_array(id) FROM blobs WHERE base IS NOT NULL").fetchone()
    all_ids = json.loads(ids)
    for first in range(0, len(all_ids), 256):
        some = all_ids[first : first + 256]
        try:
            made = chains_of(connection, some)
        except Exception as exc:
            found.append(f"values that cannot be made, among {some[:5]}: {type(exc).__name__}: {exc}")
        else:
            found += [f"a value that cannot be made: {row}" for row in some if row not in made]
    return found
