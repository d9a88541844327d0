"""What a `SQLiteStore` reads: checkpoints with their values and writes, many in one statement and one row.

Python hands its interpreter lock over at every row that SQLite returns, and where an event loop is at work waits up to
five milliseconds to have it back. So a statement returns one row: what is text in one JSON array, what is bytes in
another column, end to end.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ormsgpack
from langgraph.checkpoint.base import writes_sort_key

from async_saver.records import (
    EMPTY,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    Listing,
    StoredCheckpoint,
    StoredHistory,
    WriteRecord,
)
from async_saver.stores.chains import Chain, Link
from async_saver.stores.history import restored

__all__ = [
    "Get",
    "Place",
    "chains_of",
    "delta_history",
    "facts_of",
    "keys_of",
    "newest_of",
    "packed",
    "read",
    "read_some",
    "version_of",
    "version_text",
]

_Row = list[Any]


class Place(NamedTuple):
    """Where a checkpoint is, as it is asked for."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


class Get(NamedTuple):
    """The work of `Store.get`; several of them are one statement."""

    place: Place


def version_text(version: str | float) -> str:
    """Return a channel's version as it is stored: numbers as Python writes them, text behind a mark."""
    if isinstance(version, str):
        return f"={version}"
    if isinstance(version, int) or version.is_integer():
        return repr(int(version))  # numbers that are equal are one version
    return float.__repr__(version)


def version_of(stored: str) -> str | int | float:
    """Return a version that was stored."""
    if stored[0] == "=":
        return stored[1:]
    try:
        return int(stored)
    except ValueError:
        return float(stored)


# The checkpoints that are asked for: by places, or by ids of rows. No text is greater than a blob of no bytes.
_BY_PLACE = """
    SELECT key, (
        SELECT c.id FROM conversations t
        JOIN namespaces n ON n.conversation = t.id AND n.checkpoint_ns = json_extract(a.value, '$[1]')
        JOIN checkpoints c ON c.namespace = n.id
        WHERE t.thread_id = json_extract(a.value, '$[0]') AND NOT c.hidden
            AND c.checkpoint_id >= ifnull(json_extract(a.value, '$[2]'), '')
            AND c.checkpoint_id <= ifnull(json_extract(a.value, '$[2]'), x'')
        ORDER BY c.checkpoint_id DESC LIMIT 1
    ) FROM json_each(?) a
"""
_BY_ROW = "SELECT key, value FROM json_each(?)"

_READ = """
WITH RECURSIVE
found (place, checkpoint) AS ({found}),
pending AS (
    SELECT f.place, w.* FROM found f
    CROSS JOIN checkpoints c ON c.id = f.checkpoint
    CROSS JOIN writes w ON w.namespace = c.namespace AND w.checkpoint_id = c.checkpoint_id
),
needed (id) AS (
    SELECT v.value FROM found f CROSS JOIN checkpoints c ON c.id = f.checkpoint CROSS JOIN json_each(c.versions) v
    UNION
    SELECT base FROM pending WHERE base IS NOT NULL
    UNION
    SELECT b.base FROM needed CROSS JOIN blobs b ON b.id = needed.id WHERE b.base IS NOT NULL
)
SELECT * FROM (
    SELECT json_group_array(json_array(f.place, t.thread_id, n.checkpoint_ns, c.checkpoint_id, c.parent_id, c.kind,
            c.metadata_kind, json(c.versions), c.run_id, json(c.delta_channels), length(c.checkpoint),
            length(c.metadata))),
        CAST(group_concat(CAST(c.checkpoint AS TEXT) || CAST(c.metadata AS TEXT), '') AS BLOB)
    FROM found f CROSS JOIN checkpoints c ON c.id = f.checkpoint
    CROSS JOIN namespaces n ON n.id = c.namespace CROSS JOIN conversations t ON t.id = n.conversation
), (
    SELECT json_group_array(json_array(b.id, b.channel, b.version, b.kind, b.base, length(b.data))),
        CAST(group_concat(CAST(b.data AS TEXT), '') AS BLOB)
    FROM needed CROSS JOIN blobs b ON b.id = needed.id
), (
    SELECT json_group_array(json_array(place, task_id, idx, channel, task_path, run_id, kind, base, length(data))),
        CAST(group_concat(CAST(data AS TEXT), '') AS BLOB)
    FROM pending
)
"""
_READ_BY_PLACE, _READ_BY_ROW = _READ.format(found=_BY_PLACE), _READ.format(found=_BY_ROW)


_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def packed(values: object) -> str:
    """Return ids and numbers as one parameter."""
    return _encode(values)


def _rows(text: str, data: bytes | None, lengths: int = 1) -> Iterator[_Row]:
    """Return the rows that are in one; where the last columns are lengths, these are then the bytes."""
    at = 0
    whole = data or b""
    for row in json.loads(text):
        for column in range(len(row) - lengths, len(row)):
            end = at + row[column]
            row[column] = whole[at:end]
            at = end
        yield row


class _Cells(dict[int, _Row]):
    """Rows of `blobs`, as many as are needed, by id."""

    def value(self, kind: str, base: int | None, data: bytes) -> Blob:
        """Return a value."""
        if base is None:
            return kind, data
        way = [data]
        row = self[base]
        while row[4] is not None:
            way.append(row[5])
            row = self[row[4]]
        return kind, restored(way, row[5])

    def named(self, versions: Iterable[int]) -> Iterator[tuple[ChannelVersion, Blob | None]]:
        """Return channel versions with their values."""
        for version in versions:
            row = self.get(version)
            if row is not None:
                kind: str | None = row[3]
                has_value = kind is not None and kind != EMPTY[0]
                yield (row[1], version_of(row[2])), self.value(kind or "", row[4], row[5]) if has_value else None


def read(connection: sqlite3.Connection, places: Sequence[Place]) -> list[StoredCheckpoint | None]:
    """Return what is at some places, all of it of one moment."""
    found = _read(connection, _READ_BY_PLACE, packed(places))
    return [found.get(number) for number in range(len(places))]


def read_some(connection: sqlite3.Connection, rows: Sequence[int]) -> list[StoredCheckpoint]:
    """Return the checkpoints in some rows, as far as they are there."""
    try:
        found = _read(connection, _READ_BY_ROW, packed(rows))
    except sqlite3.Error as exc:
        if "too big" not in str(exc) or len(rows) == 1:
            raise
        half = len(rows) // 2  # all that is read at once must not be more than a gigabyte
        return [*read_some(connection, rows[:half]), *read_some(connection, rows[half:])]
    return [found[number] for number in sorted(found)]


def _read(connection: sqlite3.Connection, statement: str, what: str) -> dict[int, StoredCheckpoint]:
    heads, head_data, blobs, blob_data, writes, write_data = connection.execute(statement, (what,)).fetchone()
    cells = _Cells((row[0], row) for row in _rows(blobs, blob_data))
    pending: dict[int, list[WriteRecord]] = {}
    for place, task_id, idx, channel, task_path, run_id, kind, base, data in _rows(writes, write_data):
        write = WriteRecord(task_id, idx, channel, cells.value(kind, base, data), task_path, run_id)
        pending.setdefault(place, []).append(write)
    found: dict[int, StoredCheckpoint] = {}
    for row in _rows(heads, head_data, lengths=2):
        place, thread_id, checkpoint_ns, checkpoint_id, parent_id, kind, metadata_kind = row[:7]
        versions, run_id, delta_channels, checkpoint, metadata = row[7:]
        named = [*cells.named(versions)]
        record = CheckpointRecord(
            checkpoint_id,
            parent_id,
            (kind, checkpoint),
            (metadata_kind, metadata),
            tuple(version for version, _ in named),
            run_id,
            tuple(delta_channels or ()),
        )
        values = [(version[0], value) for version, value in named if value is not None]
        found[place] = StoredCheckpoint(
            thread_id, checkpoint_ns, record, values, sorted(pending.get(place, ()), key=_write_order)
        )
    return found


def _write_order(write: WriteRecord) -> tuple[str, str, int]:
    return writes_sort_key(write.task_path, write.task_id, write.idx)


_CHAINS = """
WITH RECURSIVE needed (id) AS (
    SELECT value FROM json_each(?)
    UNION
    SELECT b.base FROM needed CROSS JOIN blobs b ON b.id = needed.id WHERE b.base IS NOT NULL
)
SELECT json_group_array(json_array(b.id, b.number, b.base, length(b.data))),
    CAST(group_concat(CAST(b.data AS TEXT), '') AS BLOB)
FROM needed CROSS JOIN blobs b ON b.id = needed.id
"""


def chains_of(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Chain]:
    """Return the values of some rows of `blobs`, and how they are made."""
    rows = {row[0]: row for row in _rows(*connection.execute(_CHAINS, (packed(ids),)).fetchone())}
    chains: dict[int, Chain] = {}
    for wanted in ids:
        way: list[Link] = []
        row: _Row | None = rows.get(wanted)
        while row is not None:
            way.append(Link(row[0], row[1], row[3]))
            row = rows.get(row[2]) if row[2] is not None else None
        if way:
            chains[wanted] = Chain(restored([link.data for link in way[:-1]], way[-1].data), tuple(way))
    return chains


# Listing. A page is found by what of it is fixed: all that is less than the last one that was shown.

_FACTS = """
    AND (c.facts IS NULL OR NOT EXISTS (
        SELECT 1 FROM json_each(:wanted) w WHERE NOT EXISTS (
            SELECT 1 FROM json_each(c.facts) f WHERE f.key = w.key AND (f.type = 'array' OR f.value = w.value))))
"""
_IN_RANGE = """
    NOT c.hidden AND c.id <= :newest AND c.checkpoint_id >= :low AND c.checkpoint_id < :high
    AND (c.checkpoint_id, c.id) < (:last, :row) {facts}
    ORDER BY c.checkpoint_id DESC, c.id DESC LIMIT :number
"""
_KEYS = """
SELECT json_group_array(json_array(checkpoint_id, id)) FROM (
    SELECT c.checkpoint_id, c.id FROM {where} {range}
)
"""
_OF_NAMESPACE = """
    conversations t CROSS JOIN namespaces n ON n.conversation = t.id CROSS JOIN checkpoints c ON c.namespace = n.id
    WHERE t.thread_id = :thread_id AND n.checkpoint_ns = :checkpoint_ns AND
"""
_OF_CONVERSATION = """
    conversations t CROSS JOIN namespaces n ON n.conversation = t.id CROSS JOIN checkpoints c ON c.id IN (
        SELECT c.id FROM checkpoints c WHERE c.namespace = n.id AND {range}
    )
    WHERE t.thread_id = :thread_id AND
"""
_OF_ALL = "checkpoints c WHERE"
_OF_ALL_IN_NAMESPACE = """
    checkpoints c JOIN namespaces n ON n.id = c.namespace WHERE n.checkpoint_ns = :checkpoint_ns AND
"""

_PLAIN_TYPES = (str, bool, int)
_MOST_INT = 2**53


def newest_of(connection: sqlite3.Connection) -> int:
    """Return the newest row of all checkpoints."""
    return int(connection.execute("SELECT ifnull(max(id), 0) FROM checkpoints").fetchone()[0])


def keys_of(
    connection: sqlite3.Connection, listing: Listing, newest: int, last: tuple[str, int] | None, number: int
) -> list[tuple[str, int]]:
    """Return the `checkpoint_id`s and rows of the next page, newest first.

    Args:
        connection: Where to look.
        listing: What is listed.
        newest: The newest row that there was when the iteration started.
        last: The last one of the page before.
        number: How many at most.
    """
    wanted = {key: value for key, value in listing.filter.items() if _is_comparable(key, value)}
    in_range = _IN_RANGE.format(facts=_FACTS if wanted else "")
    if listing.thread_id is None:
        where = _OF_ALL if listing.checkpoint_ns is None else _OF_ALL_IN_NAMESPACE
    else:
        where = _OF_CONVERSATION.format(range=in_range) if listing.checkpoint_ns is None else _OF_NAMESPACE
    exact, before = listing.checkpoint_id, listing.before
    high: str | bytes = b"" if exact is None else exact + "\0"  # the least text that is greater
    if before is not None and (exact is None or before <= exact):
        high = before
    found = connection.execute(
        _KEYS.format(where=where, range=in_range),
        {
            "thread_id": listing.thread_id,
            "checkpoint_ns": listing.checkpoint_ns,
            "low": exact or "",
            "high": high,
            "last": b"" if last is None else last[0],
            "row": 0 if last is None else last[1],
            "wanted": packed(wanted),
            "newest": newest,
            "number": number,
        },
    ).fetchone()
    return [(checkpoint_id, row) for checkpoint_id, row in json.loads(found[0])]


def _is_comparable(key: object, value: object) -> bool:
    """Tell whether SQLite finds just what Python would find equal."""
    if not _is_plain_text(key) or type(value) not in _PLAIN_TYPES:
        return False
    return _is_plain_text(value) if isinstance(value, str) else abs(value) <= _MOST_INT  # type: ignore[arg-type]


def _is_plain_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and (value.isascii() or _has_no_surrogates(value))


def _has_no_surrogates(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def facts_of(metadata: Blob) -> Mapping[str, object] | None:
    """Return what can be compared of serialised metadata; None if it is not known what is in it.

    An empty array stands for what cannot be compared here.
    """
    if metadata[0] != "msgpack":
        return None
    try:
        read = ormsgpack.unpackb(metadata[1], ext_hook=_something)
    except (ValueError, TypeError):
        return None
    if not isinstance(read, dict):
        return None
    return {key: _fact(value) for key, value in read.items() if _is_plain_text(key)}


def _something(code: int, data: bytes) -> object:
    return ()


def _fact(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if _is_plain_text(value) else ()
    return value if isinstance(value, int) and abs(value) <= _MOST_INT else ()


# What a `DeltaChannel` is rebuilt from.

_TARGET = """
SELECT c.id, c.namespace FROM conversations t JOIN namespaces n ON n.conversation = t.id
JOIN checkpoints c ON c.namespace = n.id
WHERE t.thread_id = ? AND n.checkpoint_ns = ? AND NOT c.hidden AND c.checkpoint_id >= ifnull(?, '')
    AND c.checkpoint_id <= ifnull(?, x'')
ORDER BY c.checkpoint_id DESC LIMIT 1
"""
_ANCESTORS = """
WITH RECURSIVE line (depth, id, parent_id) AS (
    SELECT 0, id, parent_id FROM checkpoints WHERE id = :id
    UNION ALL
    SELECT depth + 1, p.id, p.parent_id FROM line CROSS JOIN checkpoints p
    ON p.namespace = :namespace AND p.checkpoint_id = line.parent_id
    WHERE depth < :number
)
SELECT json_group_array(json_array(depth, line.id, json((
    SELECT json_group_array(json_array(b.channel, b.id))
    FROM json_each((SELECT versions FROM checkpoints WHERE id = line.id)) v CROSS JOIN blobs b ON b.id = v.value
    WHERE b.kind IS NOT NULL AND b.kind <> 'empty' AND b.channel IN (SELECT value FROM json_each(:channels))
)))) FROM line WHERE depth > 0
"""
_WRITES_OF = """
SELECT json_group_array(json_array(f.key, w.task_id, w.idx, w.channel, w.task_path, w.run_id, w.kind, w.base,
        length(w.data))),
    CAST(group_concat(CAST(w.data AS TEXT), '') AS BLOB)
FROM json_each(:rows) f CROSS JOIN checkpoints c ON c.id = f.value
CROSS JOIN writes w ON w.namespace = c.namespace AND w.checkpoint_id = c.checkpoint_id
WHERE w.channel IN (SELECT value FROM json_each(:channels))
"""
_KIND = "SELECT kind FROM blobs WHERE id = ?"

_PAGE = 64  # ancestors at a time


def delta_history(connection: sqlite3.Connection, place: Place, channels: Sequence[str]) -> Histories:
    """See `Store.delta_history`. The caller has begun a transaction, as this takes several statements."""
    seeds: dict[str, Blob] = {}
    collected: dict[str, list[WriteRecord]] = {channel: [] for channel in channels}
    target = connection.execute(_TARGET, (*place, place.checkpoint_id)).fetchone()
    start, namespace = target or (None, None)
    seen = {start}
    while start is not None and collected.keys() - seeds.keys():
        asked = {"id": start, "namespace": namespace, "number": _PAGE, "channels": packed(channels)}
        (found,) = connection.execute(_ANCESTORS, asked).fetchone()
        line = [(row, dict(values)) for _, row, values in sorted(json.loads(found))]
        start = None
        rows = [row for row, _ in line]
        writes = _writes_by_place(connection, rows, channels)
        for number, (row, values) in enumerate(line):
            open_channels = collected.keys() - seeds.keys()
            if row in seen or not open_channels:
                return _histories(seeds, collected)
            seen.add(row)
            for write in reversed(writes.get(number, [])):
                if write.channel in open_channels:
                    collected[write.channel].append(write)
            for channel in open_channels & values.keys():
                (kind,) = connection.execute(_KIND, (values[channel],)).fetchone()
                seeds[channel] = (kind, chains_of(connection, [values[channel]])[values[channel]].value)
            start = row if len(line) == _PAGE else None
    return _histories(seeds, collected)


def _histories(seeds: Mapping[str, Blob], collected: Mapping[str, list[WriteRecord]]) -> Histories:
    return {channel: StoredHistory(seeds.get(channel), writes[::-1]) for channel, writes in collected.items()}


def _writes_by_place(
    connection: sqlite3.Connection, rows: Sequence[int], channels: Sequence[str]
) -> Mapping[int, list[WriteRecord]]:
    found = [*_rows(*connection.execute(_WRITES_OF, {"rows": packed(rows), "channels": packed(channels)}).fetchone())]
    bases = chains_of(connection, [row[7] for row in found if row[7] is not None])
    writes: dict[int, list[WriteRecord]] = {}
    for place, task_id, idx, channel, task_path, run_id, kind, base, data in found:
        value = data if base is None else restored([data], bases[base].value)
        writes.setdefault(place, []).append(WriteRecord(task_id, idx, channel, (kind, value), task_path, run_id))
    for some in writes.values():
        some.sort(key=_write_order)
    return writes
