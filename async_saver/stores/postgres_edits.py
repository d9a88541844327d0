"""What changes whole conversations of a `PostgresStore`. All of it is SQL."""

from collections.abc import Sequence
from typing import Any

from langgraph.checkpoint.serde.types import TASKS

from async_saver.stores.base import exists_error
from async_saver.stores.postgres_reads import DELTA_CHANNELS, HAS_VALUE, HIDDEN, IS_OLD, RUN_ID
from async_saver.stores.postgres_server import Cursor

__all__ = ["copy", "delete", "keep_latest", "threads_of_runs", "tidy", "without_runs"]

_DELETE = """
WITH a AS (DELETE FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s)),
    b AS (DELETE FROM checkpoint_blobs WHERE thread_id = ANY(%(thread_ids)s)){own}
DELETE FROM checkpoint_writes WHERE thread_id = ANY(%(thread_ids)s)
"""
_DELETE_OWN = """,
    c AS (DELETE FROM async_saver_runs WHERE thread_id = ANY(%(thread_ids)s)),
    d AS (DELETE FROM async_saver_threads WHERE thread_id = ANY(%(thread_ids)s))"""


def delete(cursor: Cursor, thread_ids: Sequence[str], has_own: bool) -> None:
    """Delete conversations. One statement, and so of one moment, whoever else writes meanwhile."""
    own = _DELETE_OWN if has_own else ""
    cursor.execute(_DELETE.format(own=own).encode(), {"thread_ids": [*thread_ids]}, prepare=False)


# Pruning. What stays in sight is said by a query. What else there is goes, but what a value of a `DeltaChannel` that
# stays is rebuilt from: the writes to that channel from the nearest ancestor on that has a value of it, and this value.
# Those ancestors go out of sight. A checkpoint of an old format needs, likewise, what its parent's tasks sent.
_PRUNE = f"""
WITH RECURSIVE stay AS MATERIALIZED ({{stay}}),
channels AS MATERIALIZED (
    SELECT DISTINCT c.checkpoint_ns, d.channel
    FROM checkpoints c CROSS JOIN LATERAL ({DELTA_CHANNELS}) d (channel)
    WHERE c.thread_id = %(thread_id)s
),
walk (checkpoint_ns, checkpoint_id, channel) AS (
    SELECT c.checkpoint_ns, c.parent_checkpoint_id, d.channel
    FROM stay JOIN checkpoints c ON c.thread_id = %(thread_id)s AND c.checkpoint_ns = stay.checkpoint_ns
        AND c.checkpoint_id = stay.checkpoint_id
    JOIN channels d ON d.checkpoint_ns = c.checkpoint_ns
    WHERE c.parent_checkpoint_id IS NOT NULL AND NOT {HAS_VALUE.format(channel="d.channel")}
    UNION
    SELECT c.checkpoint_ns, c.parent_checkpoint_id, w.channel FROM walk w CROSS JOIN LATERAL (
        SELECT * FROM checkpoints c WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = w.checkpoint_ns
            AND c.checkpoint_id = w.checkpoint_id OFFSET 0
    ) c
    WHERE c.parent_checkpoint_id IS NOT NULL AND NOT {HAS_VALUE.format(channel="w.channel")}
),
needed AS MATERIALIZED (
    SELECT checkpoint_ns, checkpoint_id, channel FROM walk
    UNION
    SELECT c.checkpoint_ns, c.parent_checkpoint_id, %(tasks)s
    FROM stay JOIN checkpoints c ON c.thread_id = %(thread_id)s AND c.checkpoint_ns = stay.checkpoint_ns
        AND c.checkpoint_id = stay.checkpoint_id
    WHERE c.parent_checkpoint_id IS NOT NULL AND {IS_OLD}
),
going AS MATERIALIZED (
    SELECT c.checkpoint_ns, c.checkpoint_id, c.checkpoint -> 'channel_versions' AS versions,
        (c.checkpoint_ns, c.checkpoint_id) IN (SELECT checkpoint_ns, checkpoint_id FROM needed) AS is_needed,
        {HIDDEN} AS was_hidden
    FROM checkpoints c WHERE c.thread_id = %(thread_id)s
        AND (c.checkpoint_ns, c.checkpoint_id) NOT IN (SELECT checkpoint_ns, checkpoint_id FROM stay)
),
named AS MATERIALIZED (
    SELECT c.checkpoint_ns, v.key AS channel, v.value AS version
    FROM stay JOIN checkpoints c ON c.thread_id = %(thread_id)s AND c.checkpoint_ns = stay.checkpoint_ns
        AND c.checkpoint_id = stay.checkpoint_id
    CROSS JOIN LATERAL jsonb_each_text(c.checkpoint -> 'channel_versions') v
    UNION
    SELECT n.checkpoint_ns, n.channel, g.versions ->> n.channel
    FROM needed n JOIN going g USING (checkpoint_ns, checkpoint_id) WHERE g.versions ? n.channel
),
gone AS (
    DELETE FROM checkpoints c USING going g
    WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = g.checkpoint_ns AND c.checkpoint_id = g.checkpoint_id
        AND NOT g.is_needed
    RETURNING c.checkpoint_id
),
hidden AS (
    UPDATE checkpoints c
    SET checkpoint = c.checkpoint || jsonb_build_object(
        'async_saver', coalesce(c.checkpoint -> 'async_saver', '{{}}') || '{{"hidden": true}}',
        'channel_values', (
            SELECT coalesce(jsonb_object_agg(v.key, v.value), '{{}}')
            FROM jsonb_each(coalesce(c.checkpoint -> 'channel_values', '{{}}')) v
            WHERE (c.checkpoint_ns, c.checkpoint_id, v.key) IN (
                SELECT checkpoint_ns, checkpoint_id, channel FROM needed)
        ))
    FROM going g
    WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = g.checkpoint_ns AND c.checkpoint_id = g.checkpoint_id
        AND g.is_needed
),
blobs AS (
    DELETE FROM checkpoint_blobs b
    WHERE b.thread_id = %(thread_id)s
        AND (b.checkpoint_ns, b.channel, b.version) NOT IN (SELECT checkpoint_ns, channel, version FROM named)
        AND ({{freed}})
),
writes AS (
    DELETE FROM checkpoint_writes w
    WHERE w.thread_id = %(thread_id)s AND ({{writes}})
        AND (w.checkpoint_ns, w.checkpoint_id, w.channel) NOT IN (
            SELECT checkpoint_ns, checkpoint_id, channel FROM needed)
)
SELECT count(*) FROM going WHERE NOT was_hidden
"""
_OF_GOING = """
(w.checkpoint_ns, w.checkpoint_id) IN (SELECT checkpoint_ns, checkpoint_id FROM going)
"""
_TIDY = (
    """
    DELETE FROM async_saver_runs r WHERE thread_id = %(thread_id)s AND NOT EXISTS (
        SELECT FROM checkpoint_writes w WHERE w.thread_id = r.thread_id AND w.checkpoint_ns = r.checkpoint_ns
            AND w.checkpoint_id = r.checkpoint_id AND w.task_id = r.task_id AND w.idx = r.idx)
    """,
    """
    DELETE FROM async_saver_threads WHERE thread_id = %(thread_id)s
        AND NOT EXISTS (SELECT FROM checkpoints WHERE thread_id = %(thread_id)s)
        AND NOT EXISTS (SELECT FROM checkpoint_writes WHERE thread_id = %(thread_id)s)
    """,
)

_NEWEST = f"""
SELECT checkpoint_ns, checkpoint_id FROM (
    SELECT c.checkpoint_ns, c.checkpoint_id,
        row_number() OVER (PARTITION BY c.checkpoint_ns ORDER BY c.checkpoint_id DESC) AS n
    FROM checkpoints c WHERE c.thread_id = %(thread_id)s AND NOT ({HIDDEN})
) c WHERE n <= %(number)s
"""
# Also those whose checkpoint is not there, but not those whose checkpoint is yet to come.
_OF_OLDER = f"""
{_OF_GOING} OR (
    w.checkpoint_id < (SELECT max(stay.checkpoint_id) FROM stay WHERE stay.checkpoint_ns = w.checkpoint_ns)
    AND NOT EXISTS (SELECT FROM checkpoints c WHERE c.thread_id = %(thread_id)s
        AND c.checkpoint_ns = w.checkpoint_ns AND c.checkpoint_id = w.checkpoint_id))
"""
_NOT_OF_RUNS = f"""
SELECT c.checkpoint_ns, c.checkpoint_id FROM checkpoints c
WHERE c.thread_id = %(thread_id)s AND NOT ({HIDDEN}) AND NOT coalesce({RUN_ID} = ANY(%(run_ids)s), false)
"""
_OF_RUNS = f"""
{_OF_GOING} OR EXISTS (
    SELECT FROM async_saver_runs r WHERE r.thread_id = w.thread_id AND r.checkpoint_ns = w.checkpoint_ns
        AND r.checkpoint_id = w.checkpoint_id AND r.task_id = w.task_id AND r.idx = w.idx
        AND r.run_id = ANY(%(run_ids)s))
"""


# In a namespace that the runs did not touch, nothing is freed: what a later checkpoint is to name may be there.
_TOUCHED = "b.checkpoint_ns IN (SELECT checkpoint_ns FROM going)"
_TOUCHED_BY_WRITES = """
    OR b.checkpoint_ns IN (
        SELECT checkpoint_ns FROM async_saver_runs WHERE thread_id = %(thread_id)s AND run_id = ANY(%(run_ids)s))
"""


def _prune(cursor: Cursor, stay: str, writes: str, freed: str, values: dict[str, Any], has_own: bool) -> int:
    statement = _PRUNE.replace("{stay}", stay).replace("{writes}", writes).replace("{freed}", freed)
    row = cursor.execute(statement.encode(), {**values, "tasks": TASKS}, prepare=False).fetchone()
    if has_own:
        tidy(cursor, values["thread_id"])
    return 0 if row is None else int(row[0])


def tidy(cursor: Cursor, thread_id: str) -> None:
    """Forget what is beside the official tables of that which is in them no more."""
    for statement in _TIDY:
        cursor.execute(statement, {"thread_id": thread_id})


def keep_latest(cursor: Cursor, thread_id: str, has_own: bool, number: int = 1) -> int:
    """Delete all but the newest checkpoints of each namespace; return how many went."""
    return _prune(cursor, _NEWEST, _OF_OLDER, "true", {"thread_id": thread_id, "number": number}, has_own)


def without_runs(cursor: Cursor, thread_id: str, run_ids: Sequence[str], has_own: bool) -> None:
    """Delete what runs stored in a conversation."""
    writes, freed = (_OF_RUNS, _TOUCHED + _TOUCHED_BY_WRITES) if has_own else (_OF_GOING, _TOUCHED)
    _prune(cursor, _NOT_OF_RUNS, writes, freed, {"thread_id": thread_id, "run_ids": [*run_ids]}, has_own)


_THREADS_OF_RUNS = f"""
SELECT c.thread_id FROM checkpoints c WHERE {RUN_ID} = ANY(%(run_ids)s) AND NOT ({HIDDEN})
"""
_THREADS_OF_WRITES = " UNION SELECT thread_id FROM async_saver_runs WHERE run_id = ANY(%(run_ids)s)"


def threads_of_runs(cursor: Cursor, run_ids: Sequence[str], has_own: bool) -> list[str]:
    """Return the conversations in which runs stored something."""
    statement = _THREADS_OF_RUNS + (_THREADS_OF_WRITES if has_own else "")
    found = cursor.execute(statement.encode(), {"run_ids": [*run_ids]})
    return [*dict.fromkeys(thread_id for (thread_id,) in found)]


_IS_THERE = """
SELECT EXISTS (SELECT FROM checkpoints WHERE thread_id = %(id)s)
    OR EXISTS (SELECT FROM checkpoint_writes WHERE thread_id = %(id)s)
"""
_COPY = (
    """
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(target)s, checkpoint_ns, channel, version, type, blob FROM checkpoint_blobs WHERE thread_id = %(source)s
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO UPDATE SET type = EXCLUDED.type, blob = EXCLUDED.blob
    """,
    """
    INSERT INTO checkpoints
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT %(target)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints WHERE thread_id = %(source)s
    """,
    """
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
    SELECT %(target)s, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
    FROM checkpoint_writes WHERE thread_id = %(source)s
    """,
)
_COPY_OWN = (
    """
    INSERT INTO async_saver_runs (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    SELECT run_id, %(target)s, checkpoint_ns, checkpoint_id, task_id, idx
    FROM async_saver_runs WHERE thread_id = %(source)s
    """,
    """
    INSERT INTO async_saver_threads (thread_id, used) VALUES (%(target)s, %(used)s)
    ON CONFLICT (thread_id) DO UPDATE SET written = DEFAULT, used = EXCLUDED.used
    """,
)


def copy(cursor: Cursor, source: str, target: str, used: float, has_own: bool) -> Exception | None:
    """Copy a conversation; an error that is returned is of the target's holding something."""
    row = cursor.execute(_IS_THERE, {"id": target}).fetchone()
    if row is not None and row[0]:
        return exists_error(source, target)
    row = cursor.execute(_IS_THERE, {"id": source}).fetchone()
    if row is not None and row[0]:
        for statement in (*_COPY, *(_COPY_OWN if has_own else ())):
            cursor.execute(statement, {"source": source, "target": target, "used": used})
    return None
