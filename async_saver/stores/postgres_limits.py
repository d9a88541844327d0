"""What of a `PostgresStore` goes beyond a `Retention`: looked for, and let go of, in transactions of bounded size.

When a conversation was used is noted beside the official tables. Other savers write and delete without noting it: what
they wrote counts as used when it was first looked for, and notes of what they deleted are taken away.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from async_saver.retention import EvictionReason
from async_saver.stores.postgres_edits import delete, keep_latest
from async_saver.stores.postgres_leases import NOT_HELD, guarded, held
from async_saver.stores.postgres_server import Cursor, Server
from async_saver.stores.postgres_writer import lock

__all__ = [
    "MOST",
    "Evict",
    "adopt",
    "note_uses",
    "set_lifetimes",
    "set_right",
    "too_large",
    "too_long",
    "trim",
    "unasked",
]

MOST = 250
"""Conversations that one transaction is about."""

_HOLDS = """
(EXISTS (SELECT FROM checkpoints c WHERE c.thread_id = t.thread_id)
    OR EXISTS (SELECT FROM checkpoint_writes w WHERE w.thread_id = t.thread_id))
"""
_LEFT_OVER = f"SELECT t.thread_id FROM async_saver_threads t WHERE NOT {_HOLDS} LIMIT %(most)s"
_FORGET = f"DELETE FROM async_saver_threads t WHERE t.thread_id = ANY(%(ids)s) AND NOT {_HOLDS}"
_UNKNOWN = """
SELECT thread_id FROM (SELECT thread_id FROM checkpoints UNION SELECT thread_id FROM checkpoint_writes) c
WHERE NOT EXISTS (SELECT FROM async_saver_threads t WHERE t.thread_id = c.thread_id) LIMIT %(most)s
"""
_ADOPT = f"""
INSERT INTO async_saver_threads (thread_id, written, used)
SELECT t.thread_id, 0, %(now)s FROM unnest(%(ids)s::text[]) t (thread_id) WHERE {_HOLDS} ON CONFLICT DO NOTHING
"""


def adopt(cursor: Cursor, now: float) -> bool:
    """Note conversations that are not noted, and forget those that are no more; tell whether there may be others."""
    going = _ids(cursor, _LEFT_OVER, {"most": MOST})
    coming = _ids(cursor, _UNKNOWN, {"most": MOST})
    lock(cursor, [*going, *coming])
    cursor.execute(_FORGET.encode(), {"ids": going})
    cursor.execute(_ADOPT.encode(), {"ids": coming, "now": now})
    return max(len(going), len(coming)) >= MOST


def _ids(cursor: Cursor, statement: str, values: Mapping[str, Any]) -> list[str]:
    return [thread_id for (thread_id,) in cursor.execute(statement.encode(), values, prepare=False)]


_LIFETIME = "coalesce(%(lifetime)s::float8, t.lifetime, -1)"  # less than 0: for ever
# What had gone unused for too long when it was read is still to go.
_USE = f"""
UPDATE async_saver_threads t SET used = greatest(t.used, a.used)
FROM unnest(%(ids)s::text[], %(uses)s::float8[]) a (thread_id, used)
WHERE t.thread_id = a.thread_id AND ({_LIFETIME} < 0 OR a.used - t.used <= {_LIFETIME})
"""


def note_uses(cursor: Cursor, uses: Mapping[str, float], lifetime: float | None) -> None:
    """Note when conversations were read."""
    lock(cursor, uses)
    cursor.execute(_USE.encode(), {"ids": [*uses], "uses": [*uses.values()], "lifetime": lifetime})


_SOON = 60.0  # seconds by which two that know the time may differ: what was used just now must not seem long unused
_SET_RIGHT = """
UPDATE async_saver_threads SET used = %(until)s WHERE thread_id = ANY(%(ids)s) AND used > %(now)s
"""
_TOO_LATE = "SELECT thread_id FROM async_saver_threads WHERE used > %(now)s LIMIT %(most)s"


def set_right(cursor: Cursor, now: float, since: float) -> bool:
    """Take what was used in the future, by another clock, for used when the limits began; tell if there is more."""
    late = now + _SOON
    ids = _ids(cursor, _TOO_LATE, {"now": late, "most": MOST})
    lock(cursor, ids)
    cursor.execute(_SET_RIGHT, {"ids": ids, "now": late, "until": min(since, now)})
    return len(ids) >= MOST


_UNASKED = "SELECT thread_id FROM async_saver_threads WHERE lifetime IS NULL LIMIT %(most)s"
_SET_LIFETIMES = """
UPDATE async_saver_threads t SET lifetime = a.lifetime
FROM unnest(%(ids)s::text[], %(lifetimes)s::float8[]) a (thread_id, lifetime) WHERE t.thread_id = a.thread_id
"""


def unasked(cursor: Cursor) -> list[str]:
    """Return conversations whose lifetime is not known."""
    return _ids(cursor, _UNASKED, {"most": MOST})


def set_lifetimes(cursor: Cursor, lifetimes: Mapping[str, float]) -> None:
    """Note the lifetimes of conversations, less than 0 for ever."""
    lock(cursor, lifetimes)
    cursor.execute(_SET_LIFETIMES, {"ids": [*lifetimes], "lifetimes": [*lifetimes.values()]})


_UNUSED = f"%(now)s - t.used > {_LIFETIME} AND {_LIFETIME} >= 0"
_FIND: Mapping[EvictionReason, str] = {
    "ttl": f"SELECT t.thread_id FROM async_saver_threads t WHERE {_UNUSED} AND {{not_held}} LIMIT %(most)s",
    "max_threads": """
        SELECT thread_id FROM async_saver_threads WHERE {not_held} ORDER BY used, written
        LIMIT least(%(most)s, greatest((SELECT count(*) FROM async_saver_threads) - %(limit)s, 0))
    """,
    "max_bytes": "SELECT unnest(%(ids)s::text[])",
}
# Once nobody else writes to them, as before it they may have been used.
_STILL: Mapping[EvictionReason, str] = {
    "ttl": f"""
        SELECT t.thread_id FROM async_saver_threads t WHERE t.thread_id = ANY(%(ids)s) AND {_UNUSED} AND {{not_held}}
    """,
    "max_threads": """
        SELECT thread_id FROM (
            SELECT thread_id FROM async_saver_threads WHERE {not_held} ORDER BY used, written
            LIMIT least(%(most)s, greatest((SELECT count(*) FROM async_saver_threads) - %(limit)s, 0))
        ) t WHERE thread_id = ANY(%(ids)s)
    """,
    "max_bytes": """
        SELECT thread_id FROM async_saver_threads
        WHERE thread_id = ANY(%(ids)s) AND used <= %(until)s AND {not_held}
    """,
}


def _not_held(server: Server) -> str:
    return "true" if server.channel is None else NOT_HELD


_FORGET_NOTES = "DELETE FROM async_saver_undo WHERE thread_id = ANY(%s)"


class Evict(NamedTuple):
    """Lets conversations go that are beyond a limit, some at a time, but those that sessions are on."""

    reason: EvictionReason
    values: Mapping[str, Any]
    server: Server

    def do(self, cursor: Cursor) -> list[str]:
        """Let them go; return which."""
        values, not_held = {"lifetime": None, **self.values, "most": MOST}, _not_held(self.server)
        values["ids"] = _ids(cursor, _FIND[self.reason].replace("{not_held}", not_held), values)
        lock(cursor, values["ids"])
        gone = _ids(cursor, _STILL[self.reason].replace("{not_held}", not_held), values)
        if gone:
            delete(cursor, gone, has_own=True)
            if self.server.channel is not None:
                cursor.execute(_FORGET_NOTES, (gone,))  # of sessions whose leases have run out
        return gone


_ROW = 64  # bytes that a row takes beside what is in it, about
_SIZES = f"""
SELECT thread_id, pg_column_size(checkpoint) + pg_column_size(metadata) + {_ROW} AS size FROM checkpoints
UNION ALL
SELECT thread_id, coalesce(pg_column_size(blob), 0) + {_ROW} FROM checkpoint_blobs
UNION ALL
SELECT thread_id, pg_column_size(blob) + {_ROW} FROM checkpoint_writes
"""
_TOO_LARGE = f"""
WITH sizes AS MATERIALIZED (SELECT thread_id, sum(size) AS size FROM ({_SIZES}) rows GROUP BY thread_id),
    total AS (SELECT coalesce(sum(size), 0) AS size FROM sizes),
    going AS (
        SELECT thread_id, used, size FROM (
            SELECT thread_id, used, size, sum(size) OVER (ORDER BY used, written, thread_id) - size AS before
            FROM sizes JOIN async_saver_threads USING (thread_id) WHERE {{not_held}}
        ) t WHERE before < (SELECT size FROM total) - %(limit)s
    )
SELECT (SELECT size FROM total)::float8, coalesce((SELECT sum(size) FROM going), 0)::float8,
    (SELECT max(used) FROM going), (SELECT array_agg(thread_id ORDER BY used) FROM going)
"""


class _Excess(NamedTuple):
    """What is to go by its size: how much there is of all and of that, by when all of that was used, and that."""

    total: float
    size: float
    until: float | None
    thread_ids: Sequence[str]


def too_large(cursor: Cursor, limit: int, server: Server) -> _Excess:
    """Return what was used least recently, as much as has to go for the rest to be within a limit."""
    statement = _TOO_LARGE.replace("{not_held}", _not_held(server))
    row = cursor.execute(statement.encode(), {"limit": limit}, prepare=False).fetchone()
    total, size, until, thread_ids = row or (0.0, 0.0, None, None)
    return _Excess(total, size, until, thread_ids or [])


_TOO_LONG = """
SELECT DISTINCT thread_id FROM (
    SELECT thread_id FROM checkpoints GROUP BY thread_id, checkpoint_ns HAVING count(*) > %(keep)s) c
WHERE {not_held}
"""


def too_long(cursor: Cursor, keep: int, server: Server) -> list[str]:
    """Return the conversations that have more checkpoints in a namespace than are to be kept."""
    return _ids(cursor, _TOO_LONG.replace("{not_held}", _not_held(server)), {"keep": keep})


def trim(cursor: Cursor, thread_id: str, keep: int, server: Server) -> int:
    """Let go of all but the newest checkpoints of each namespace, unless a session is there; return how many went."""
    if server.channel is None:
        return keep_latest(cursor, thread_id, True, keep)
    if held(cursor, thread_id) is not None:
        return 0
    gone: list[int] = []
    guarded(cursor, [thread_id], (), lambda: gone.append(keep_latest(cursor, thread_id, True, keep)), False)
    return sum(gone)
