"""The leases of a `PostgresStore`, and what each session needs to be undone. All of it is SQL.

A lease is a row, and stays for a day after its end, for what is still written with it. It runs out by the server's
clock. Who waits for one has a row, too, which says since when.

What a session adds is noted by the transactions that wrote it: a row that is still as one of them has left it is the
session's. Only what a session replaces or takes away is copied. So what others write needs no look at any note.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias
from uuid import uuid4

from psycopg import Rollback
from psycopg.types.json import Jsonb

from async_saver.records import Lease, WriteRecord
from async_saver.stores.base import lease_of, lost_error
from async_saver.stores.postgres_edits import delete, tidy
from async_saver.stores.postgres_server import LOCKS, Cursor, Server, lock_of

__all__ = [
    "FORMER_BLOBS",
    "FORMER_CHECKPOINTS",
    "FORMER_WRITES",
    "MARKS",
    "NOT_HELD",
    "Acquire",
    "HeldLease",
    "Key",
    "Release",
    "asked",
    "forget",
    "guarded",
    "held",
    "interrupt",
    "key_of",
    "leave_queue",
    "note_late",
    "queue_up",
    "renew",
]

_LASTS = 30.0  # seconds for which a lease is held that nobody renews
_PLACE_LASTS = 5.0  # seconds for which a place in a queue is kept that nobody asks for again
_FORGET = 24 * 3600.0  # seconds after which a lease that has ended is forgotten

_NOW = "clock_timestamp()"


def _in(seconds: float) -> str:
    return f"{_NOW} + interval '{seconds} s'"


class HeldLease(Lease):
    """A lease that this process was given.

    Attributes:
        on_interrupt: Is told who asks for it.
        is_told: Whether it was.
    """

    __slots__ = ("__weakref__", "is_told", "on_interrupt")

    def __init__(
        self, thread_id: str, fence: int, owner: str, since: float, on_interrupt: Callable[[str], object] | None
    ) -> None:
        super().__init__(thread_id, fence, owner, since)
        self.on_interrupt: Callable[[str], object] | None = on_interrupt
        self.is_told: bool = False

    def is_gone(self) -> bool:
        """Tell whether its holder has ended without a release, if that can be told."""
        is_gone: Callable[[], bool] | None = getattr(self.on_interrupt, "is_gone", None)
        return is_gone is not None and is_gone()


# Being given, and ending. A fence is greater than the one before; it is the number of its transaction, so that it also
# is where that has been forgotten.

_NEXT_FENCE = "greatest(txid_current(), l.fence + 1)"
# With the conversation's lock, so that nobody who has looked whether there is a session goes on as if there were none.
_GIVE = f"""
WITH taken AS MATERIALIZED (SELECT pg_advisory_xact_lock({LOCKS}, %(lock)s)),
before AS (
    SELECT FROM async_saver_waiting w WHERE w.thread_id = %(thread_id)s AND w.place <> %(place)s AND w.until > {_NOW}
        AND w.ticket < coalesce((
            SELECT o.ticket FROM async_saver_waiting o WHERE o.thread_id = %(thread_id)s AND o.place = %(place)s
        ), 'infinity')
),
given AS (
    INSERT INTO async_saver_leases AS l (thread_id, fence, held, owner, holder, since, until)
    SELECT %(thread_id)s, txid_current(), true, %(owner)s, %(holder)s, {_NOW}, {_in(_LASTS)}
    WHERE (SELECT count(*) FROM taken) > 0 AND (%(at_once)s OR NOT EXISTS (SELECT FROM before))
    ON CONFLICT (thread_id) DO UPDATE SET fence = {_NEXT_FENCE}, held = true, owner = EXCLUDED.owner,
        holder = EXCLUDED.holder, since = {_NOW}, until = {_in(_LASTS)}, asked = NULL
    WHERE %(at_once)s OR NOT l.held OR l.until < {_NOW} OR l.holder = EXCLUDED.holder
    RETURNING fence, since
),
places AS (
    DELETE FROM async_saver_waiting
    WHERE thread_id = %(thread_id)s AND place = %(place)s AND EXISTS (SELECT FROM given)
),
notes AS (DELETE FROM async_saver_undo WHERE thread_id = %(thread_id)s AND EXISTS (SELECT FROM given))
SELECT fence, extract(epoch FROM since)::float8 FROM given
"""
_LEASE = f"""
SELECT fence, held, asked IS NOT NULL, until < {_NOW} FROM async_saver_leases WHERE thread_id = %s FOR UPDATE
"""
# Who waits is told. What a session that was asked to end has stored can be undone until another one has the lease.
_END = f"""
WITH ended AS (
    UPDATE async_saver_leases l SET held = false, since = {_NOW}, holder = %(end)s,
        fence = CASE %(forget)s WHEN true THEN {_NEXT_FENCE} ELSE l.fence END
    WHERE l.thread_id = %(thread_id)s AND l.fence = %(fence)s AND l.held RETURNING asked
),
notes AS (
    DELETE FROM async_saver_undo
    WHERE thread_id = %(thread_id)s AND (SELECT asked IS NULL OR %(forget)s FROM ended)
),
told AS (
    SELECT pg_notify(%(channel)s, 'f' || %(thread_id)s) FROM ended WHERE EXISTS (
        SELECT FROM async_saver_waiting w WHERE w.thread_id = %(thread_id)s AND w.until > {_NOW})
)
SELECT (SELECT count(*) FROM ended), (SELECT count(*) FROM told)
"""
_ENDED = "SELECT 1 FROM async_saver_leases WHERE thread_id = %s AND holder = %s AND NOT held"
_HELD = f"""
SELECT fence, owner, extract(epoch FROM since)::float8 FROM async_saver_leases
WHERE thread_id = %s AND held AND until > {_NOW}
"""
NOT_HELD = f"thread_id NOT IN (SELECT thread_id FROM async_saver_leases WHERE held AND until > {_NOW})"
"""Of conversations: no session is on them."""


class Acquire:
    """What is done for `Store.acquire`; `given` is what it came to.

    Args:
        thread_id, owner, instead_of, undo, on_interrupt: As there.
        place: Under which name this process waits.
    """

    def __init__(
        self,
        thread_id: str,
        owner: str,
        instead_of: Lease | None,
        undo: bool,
        on_interrupt: Callable[[str], object] | None,
        place: str,
    ) -> None:
        self.given: HeldLease | None = None
        self.thread_id: str = thread_id
        self.instead_of: Lease | None = instead_of
        self._undo = undo
        self._on_interrupt = on_interrupt
        self._owner = owner
        # By its holder's name a lease is found again, if the connection was lost as it was given.
        who = {"owner": owner, "holder": uuid4().hex, "place": place}
        self._values = {"thread_id": thread_id, "lock": lock_of(thread_id), **who}

    @property
    def is_alone(self) -> bool:
        """Whether `alone` does, as there is nothing that could be to undo."""
        return self.instead_of is None and not self._undo

    def alone(self, cursor: Cursor) -> HeldLease | None:
        """Take it if it is free, by a statement that is a transaction."""
        return self._take(cursor, at_once=False)

    def in_place(self, cursor: Cursor) -> HeldLease | None:
        """Take it in place of another one, or if it is free; nobody else writes to the conversation meanwhile."""
        former = self.instead_of
        row = cursor.execute(_LEASE.encode(), (self.thread_id,)).fetchone()
        if row is None:
            return self._take(cursor, at_once=False)
        fence, is_held, was_asked, has_run_out = row
        is_former = former is not None and fence == former.fence and (is_held or was_asked)
        if not (self._undo and (is_former or (is_held and has_run_out))):
            return self._take(cursor, at_once=is_former)
        with cursor.connection.transaction() as step:
            _undo(cursor, self.thread_id, fence)
            if self._take(cursor, at_once=is_former) is None:  # others come before
                raise Rollback(step)
        return self.given

    def _take(self, cursor: Cursor, at_once: bool) -> HeldLease | None:
        row = cursor.execute(_GIVE.encode(), {**self._values, "at_once": at_once}).fetchone()
        self.given = None
        if row is not None:
            self.given = HeldLease(self.thread_id, row[0], self._owner, row[1], self._on_interrupt)
        return self.given


class Release:
    """What is done for `Store.release`."""

    def __init__(self, server: Server, lease: Lease, *, delete: bool) -> None:
        self._server = server
        self._lease = lease
        self._delete = delete
        self._end = uuid4().hex  # by which it is found again, if the connection was lost as it was done
        self._is_again = False

    def __call__(self, cursor: Cursor) -> bool:
        """Give it back; with a deletion, nobody else writes to the conversation meanwhile."""
        thread_id, fence = self._lease.thread_id, self._lease.fence
        if self._delete:
            row = cursor.execute(_LEASE.encode(), (thread_id,)).fetchone()
            if row is not None and row[0] == fence and row[1]:
                delete(cursor, [thread_id], has_own=True)
        values = {"thread_id": thread_id, "fence": fence, "forget": self._delete, "end": self._end}
        row = cursor.execute(_END.encode(), {**values, "channel": self._server.channel}).fetchone()
        was_held = row is not None and row[0] > 0
        if not was_held and self._is_again:
            was_held = cursor.execute(_ENDED, (thread_id, self._end)).fetchone() is not None
        self._is_again = True
        return was_held


def held(cursor: Cursor, thread_id: str) -> Lease | None:
    """Return the lease of a conversation that is held now."""
    row = cursor.execute(_HELD, (thread_id,)).fetchone()
    return None if row is None else Lease(thread_id, *row)


# Renewing, and learning who asks. Who writes with a lease has its row locked, and may itself have to wait for long: the
# others are renewed all the same, and that one soon.

_MINE = "unnest(%(thread_ids)s::text[], %(fences)s::bigint[]) a (thread_id, fence)"
_RENEW = f"""
WITH mine AS MATERIALIZED (
    SELECT a.* FROM {_MINE} CROSS JOIN LATERAL (
        SELECT FROM async_saver_leases l WHERE l.thread_id = a.thread_id AND l.fence = a.fence AND l.held
        FOR NO KEY UPDATE SKIP LOCKED OFFSET 0
    ) l
),
renewed AS (
    UPDATE async_saver_leases l SET until = {_in(_LASTS)} FROM mine a
    WHERE l.thread_id = a.thread_id AND l.fence = a.fence AND l.held RETURNING l.thread_id, l.fence
)
SELECT a.thread_id, a.fence, (a.thread_id, a.fence) IN (SELECT thread_id, fence FROM renewed)
FROM {_MINE} CROSS JOIN LATERAL (
    SELECT FROM async_saver_leases l WHERE l.thread_id = a.thread_id AND l.fence = a.fence AND l.held OFFSET 0
) l
"""
_ASKED = f"""
SELECT a.thread_id, a.fence, l.asked FROM {_MINE} CROSS JOIN LATERAL (
    SELECT asked FROM async_saver_leases l WHERE l.thread_id = a.thread_id AND l.fence = a.fence AND l.held
        AND l.asked IS NOT NULL
    OFFSET 0
) l
"""


def _in_turn(leases: Iterable[Lease]) -> dict[str, Any]:
    """Return leases in the order in which all lock them, as the values of a statement."""
    ordered = sorted(leases, key=lambda lease: lease.thread_id)
    return {"thread_ids": [one.thread_id for one in ordered], "fences": [one.fence for one in ordered]}


Key: TypeAlias = tuple[str, int]
"""Of a lease: its conversation and its fence."""


def key_of(lease: Lease) -> Key:
    """Return what a lease is known by."""
    return lease.thread_id, lease.fence


def renew(cursor: Cursor, leases: Iterable[Lease]) -> dict[Key, bool]:
    """Have leases last on; return those that are still held, and whether they do."""
    found = cursor.execute(_RENEW.encode(), _in_turn(leases))
    return {(thread_id, fence): lasts for thread_id, fence, lasts in found}


def asked(cursor: Cursor, leases: Iterable[Lease]) -> dict[Key, str]:
    """Return, for those of some leases whose holder is to end, who asks for that."""
    found = cursor.execute(_ASKED.encode(), _in_turn(leases))
    return {(thread_id, fence): by for thread_id, fence, by in found}


_QUEUE_UP = f"""
INSERT INTO async_saver_waiting AS w (thread_id, place, ticket, until)
SELECT %(thread_id)s, %(place)s, extract(epoch FROM {_NOW})::float8 * %(sign)s, {_in(_PLACE_LASTS)}
WHERE %(sign)s > 0 OR EXISTS (SELECT FROM asked)
ON CONFLICT (thread_id, place) DO UPDATE SET until = EXCLUDED.until,
    ticket = CASE WHEN w.until < {_NOW} OR %(sign)s < 0 THEN EXCLUDED.ticket ELSE w.ticket END
"""
_INTERRUPT = f"""
WITH asked AS (
    UPDATE async_saver_leases SET asked = %(by)s WHERE thread_id = %(thread_id)s AND fence = %(fence)s AND held
    RETURNING fence
),
place AS ({_QUEUE_UP})
SELECT pg_notify(%(channel)s, 'i' || fence) FROM asked
"""


def queue_up(cursor: Cursor, thread_id: str, place: str) -> None:
    """Take a place in a conversation's queue, or keep the one that there is."""
    values = {"thread_id": thread_id, "place": place, "sign": 1}
    cursor.execute(f"WITH asked AS (SELECT) {_QUEUE_UP}".encode(), values)


def leave_queue(cursor: Cursor, thread_id: str, place: str) -> None:
    """Give up a place in a conversation's queue."""
    cursor.execute("DELETE FROM async_saver_waiting WHERE thread_id = %s AND place = %s", (thread_id, place))


def interrupt(cursor: Cursor, server: Server, lease: Lease, by: str, place: str) -> None:
    """Ask the holder of a lease to end, and take the first place in its queue."""
    values = {"thread_id": lease.thread_id, "fence": lease.fence, "sign": -1, "by": by, "place": place}
    cursor.execute(_INTERRUPT.encode(), {**values, "channel": server.channel})


_OLD = (
    f"DELETE FROM async_saver_leases WHERE greatest(until, since) < {_in(-_FORGET)}",
    f"DELETE FROM async_saver_waiting WHERE until < {_in(-_FORGET)}",
    """
    DELETE FROM async_saver_undo u WHERE NOT EXISTS (
        SELECT FROM async_saver_leases l WHERE l.thread_id = u.thread_id AND l.fence = u.fence)
    """,
)


def forget(cursor: Cursor) -> None:
    """Forget leases that have ended long ago, and what is left of others."""
    for statement in _OLD:
        cursor.execute(statement.encode())


# Notes. A lot of puts has these parts beside its own, for those conversations that `noting` has, with their fences.

_OWN_ROW = """
EXISTS (SELECT FROM async_saver_undo u WHERE u.thread_id = {0}.thread_id AND u.kind = 'x' AND u.checkpoint_ns = ''
    AND u.a = {0}.xmin::text AND u.fence = {1})
"""
_NOTE = "INSERT INTO async_saver_undo (thread_id, fence, kind, checkpoint_ns, a, b, idx, was, data)"
# What is none of the session's now, others have put there, since it was noted first.
_NEWER = """
ON CONFLICT (thread_id, kind, checkpoint_ns, a, b, idx, fence) DO UPDATE SET was = EXCLUDED.was, data = EXCLUDED.data
"""
_CHECKPOINT_WAS = """
jsonb_build_object('parent', c.parent_checkpoint_id, 'type', c.type, 'checkpoint', c.checkpoint,
    'metadata', c.metadata)
"""
_WRITE_WAS = """
jsonb_build_object('channel', w.channel, 'type', w.type, 'task_path', w.task_path, 'run_id', (
    SELECT r.run_id FROM async_saver_runs r WHERE r.thread_id = w.thread_id AND r.checkpoint_ns = w.checkpoint_ns
        AND r.checkpoint_id = w.checkpoint_id AND r.task_id = w.task_id AND r.idx = w.idx))
"""
_THIS = "(txid_current() & 4294967295)::text"  # what `xmin` is in the rows of this transaction

MARKS = f"""
marks AS (
    {_NOTE} SELECT thread_id, fence, 'x', '', {_THIS}, '', 0, NULL, NULL FROM noting ON CONFLICT DO NOTHING
)
"""
FORMER_CHECKPOINTS = f"""
former_checkpoints AS (
    {_NOTE} SELECT n.thread_id, n.fence, 'c', a.checkpoint_ns, a.checkpoint_id, '', 0, c.was, NULL
    FROM {{rows}} a (thread_id, checkpoint_ns, checkpoint_id) JOIN noting n USING (thread_id) CROSS JOIN LATERAL (
        SELECT {_CHECKPOINT_WAS} AS was FROM checkpoints c WHERE c.thread_id = a.thread_id
            AND c.checkpoint_ns = a.checkpoint_ns AND c.checkpoint_id = a.checkpoint_id
            AND NOT {_OWN_ROW.format("c", "n.fence")} OFFSET 0
    ) c {_NEWER}
)
"""
FORMER_BLOBS = f"""
former_blobs AS (
    {_NOTE} SELECT n.thread_id, n.fence, 'b', a.checkpoint_ns, a.channel, a.version, 0, b.was, b.blob
    FROM {{rows}} a (thread_id, checkpoint_ns, channel, version) JOIN noting n USING (thread_id) CROSS JOIN LATERAL (
        SELECT jsonb_build_object('type', b.type) AS was, b.blob FROM checkpoint_blobs b
        WHERE b.thread_id = a.thread_id AND b.checkpoint_ns = a.checkpoint_ns AND b.channel = a.channel
            AND b.version = a.version AND NOT {_OWN_ROW.format("b", "n.fence")} OFFSET 0
    ) b {_NEWER}
)
"""
FORMER_WRITES = f"""
former_writes AS (
    {_NOTE} SELECT n.thread_id, n.fence, 'w', a.checkpoint_ns, a.checkpoint_id, a.task_id, a.idx, w.was, w.blob
    FROM {{rows}} a (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) JOIN noting n USING (thread_id)
    CROSS JOIN LATERAL (
        SELECT {_WRITE_WAS} AS was, w.blob FROM checkpoint_writes w
        WHERE w.thread_id = a.thread_id AND w.checkpoint_ns = a.checkpoint_ns AND w.checkpoint_id = a.checkpoint_id
            AND w.task_id = a.task_id AND w.idx = a.idx AND NOT {_OWN_ROW.format("w", "n.fence")} OFFSET 0
    ) w {_NEWER}
)
"""
# What changes a conversation as a whole notes all of it.
_NOTE_ALL = (
    f"{_NOTE} SELECT %(thread_id)s, %(fence)s, 'x', '', {_THIS}, '', 0, NULL, NULL ON CONFLICT DO NOTHING",
    f"""
    {_NOTE} SELECT c.thread_id, %(fence)s, 'c', c.checkpoint_ns, c.checkpoint_id, '', 0, {_CHECKPOINT_WAS}, NULL
    FROM checkpoints c WHERE c.thread_id = %(thread_id)s AND NOT {_OWN_ROW.format("c", "%(fence)s")}
    {_NEWER}
    """,
    f"""
    {_NOTE} SELECT b.thread_id, %(fence)s, 'b', b.checkpoint_ns, b.channel, b.version, 0,
        jsonb_build_object('type', b.type), b.blob
    FROM checkpoint_blobs b WHERE b.thread_id = %(thread_id)s AND NOT {_OWN_ROW.format("b", "%(fence)s")}
    {_NEWER}
    """,
    f"""
    {_NOTE} SELECT w.thread_id, %(fence)s, 'w', w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, {_WRITE_WAS}, w.blob
    FROM checkpoint_writes w WHERE w.thread_id = %(thread_id)s AND NOT {_OWN_ROW.format("w", "%(fence)s")}
    {_NEWER}
    """,
)
_STANDING = "SELECT fence, held FROM async_saver_leases WHERE thread_id = %s FOR SHARE"
_LAST_ON = f"UPDATE async_saver_leases SET until = {_in(_LASTS)} WHERE thread_id = %s AND fence = %s AND held"
_IS_THERE = """
(EXISTS (SELECT FROM checkpoints c WHERE u.kind = 'c' AND c.thread_id = u.thread_id
    AND c.checkpoint_ns = u.checkpoint_ns AND c.checkpoint_id = u.a)
OR EXISTS (SELECT FROM checkpoint_writes w WHERE u.kind = 'w' AND w.thread_id = u.thread_id
    AND w.checkpoint_ns = u.checkpoint_ns AND w.checkpoint_id = u.a AND w.task_id = u.b AND w.idx = u.idx))
"""
_REPLACED = f"""
SELECT ctid::text FROM async_saver_undo u WHERE u.thread_id = ANY(%s) AND u.kind IN ('c', 'w') AND {_IS_THERE}
"""
_FORGET_REPLACED = f"DELETE FROM async_saver_undo u WHERE u.ctid = ANY(%s::tid[]) AND NOT {_IS_THERE}"
_FORGET_FORMER = "DELETE FROM async_saver_undo WHERE thread_id = ANY(%s) AND kind <> 'x'"


def guarded(
    cursor: Cursor, thread_ids: Sequence[str], leases: Sequence[Lease], do: Callable[[], object], deletes: bool
) -> Exception | None:
    """Change conversations as a whole, to which nobody else writes meanwhile, with an eye on leases.

    Args:
        cursor: Of the transaction.
        thread_ids: The conversations.
        leases: Those of the caller.
        do: What changes them.
        deletes: Whether nothing is left of them then.

    Returns:
        What is wrong with the lease by which one of them would be changed; nothing was, then.
    """
    own: dict[str, int] = {}
    for thread_id in sorted(thread_ids):  # as all lock them
        lease = lease_of(thread_id, leases)
        if lease is not None:
            row = cursor.execute(_STANDING, (thread_id,)).fetchone()
            if row is None or row[0] > lease.fence:
                return lost_error(lease)
            if row[0] == lease.fence and row[1]:
                own[thread_id] = lease.fence
    for thread_id, fence in own.items():
        for statement in _NOTE_ALL:
            cursor.execute(statement.encode(), {"thread_id": thread_id, "fence": fence}, prepare=False)
    # What others take away is not to come back when a session is undone that has replaced it.
    others = [thread_id for thread_id in thread_ids if thread_id not in own]
    replaced = [row[0] for row in cursor.execute(_REPLACED.encode(), (others,))]
    do()
    if deletes:
        cursor.execute(_FORGET_FORMER, (others,))
    elif replaced:
        cursor.execute(_FORGET_REPLACED.encode(), (replaced,))
    for one in own.items():  # which could not be renewed meanwhile
        cursor.execute(_LAST_ON.encode(), one)
    return None


_NOTE_LATE = f"""
{_NOTE} SELECT u.thread_id, u.fence, 'w', u.checkpoint_ns, u.a, %(task_id)s, %(idx)s, %(was)s, %(data)s
FROM async_saver_undo u WHERE u.thread_id = %(thread_id)s AND u.kind = 'c' AND u.checkpoint_ns = %(checkpoint_ns)s
    AND u.a = %(checkpoint_id)s AND u.fence IS DISTINCT FROM %(own)s::bigint
ON CONFLICT (thread_id, kind, checkpoint_ns, a, b, idx, fence) DO UPDATE SET was = EXCLUDED.was, data = EXCLUDED.data
WHERE EXCLUDED.idx < 0
"""


def note_late(
    cursor: Cursor,
    thread_id: str,
    checkpoint_ns: str,
    checkpoint_id: str,
    writes: Iterable[WriteRecord],
    lease: Lease | None,
) -> None:
    """Note writes that came after a session had deleted their checkpoint, for when that is undone."""
    own = None if lease is None else lease.fence
    place = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id, "own": own}
    for write in writes:
        was = {"channel": write.channel, "type": write.value[0], "task_path": write.task_path, "run_id": write.run_id}
        row = {"task_id": write.task_id, "idx": write.idx, "was": Jsonb(was), "data": write.value[1]}
        cursor.execute(_NOTE_LATE.encode(), {**place, **row}, prepare=False)


# Undoing: what the session's transactions have left goes, but values that others have named since; then comes back what
# was.
_OF_SESSION = """
{0}.thread_id = %(thread_id)s AND {0}.xmin::text IN (
    SELECT a FROM async_saver_undo WHERE thread_id = %(thread_id)s AND fence = %(fence)s AND kind = 'x')
"""
_WAS = "FROM async_saver_undo u WHERE u.thread_id = %(thread_id)s AND u.fence = %(fence)s AND u.kind = "
# After the first of the session's transactions.
_SINCE = """
age(c.xmin) < (SELECT max(age(a::xid)) FROM async_saver_undo
    WHERE thread_id = %(thread_id)s AND fence = %(fence)s AND kind = 'x')
"""
_UNDO = (
    f"DELETE FROM async_saver_runs r WHERE {_OF_SESSION.format('r')}",
    f"DELETE FROM checkpoint_writes w WHERE {_OF_SESSION.format('w')}",
    f"DELETE FROM checkpoints c WHERE {_OF_SESSION.format('c')}",
    f"""
    DELETE FROM checkpoint_blobs b WHERE {_OF_SESSION.format("b")} AND (
        (b.checkpoint_ns, b.channel, b.version) IN (SELECT u.checkpoint_ns, u.a, u.b {_WAS} 'b')
        OR (b.checkpoint_ns, b.channel, b.version) NOT IN (
            SELECT c.checkpoint_ns, v.key, v.value
            FROM checkpoints c CROSS JOIN LATERAL jsonb_each_text(c.checkpoint -> 'channel_versions') v
            WHERE c.thread_id = %(thread_id)s AND {_SINCE} AND v.value IS NOT NULL))
    """,
    f"""
    INSERT INTO checkpoints
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT u.thread_id, u.checkpoint_ns, u.a, u.was ->> 'parent', u.was ->> 'type', u.was -> 'checkpoint',
        u.was -> 'metadata' {_WAS} 'c' ON CONFLICT DO NOTHING
    """,
    f"""
    WITH back AS (
        INSERT INTO checkpoint_writes
            (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
        SELECT u.thread_id, u.checkpoint_ns, u.a, u.b, u.idx, u.was ->> 'channel', u.was ->> 'type', u.data,
            u.was ->> 'task_path' {_WAS} 'w' ON CONFLICT DO NOTHING
        RETURNING thread_id, checkpoint_ns, checkpoint_id, task_id, idx
    )
    INSERT INTO async_saver_runs (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    SELECT u.was ->> 'run_id', b.* FROM back b JOIN async_saver_undo u ON u.thread_id = b.thread_id
        AND u.checkpoint_ns = b.checkpoint_ns AND u.a = b.checkpoint_id AND u.b = b.task_id AND u.idx = b.idx
    WHERE u.kind = 'w' AND u.fence = %(fence)s AND u.was ->> 'run_id' IS NOT NULL ON CONFLICT DO NOTHING
    """,
    f"""
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT u.thread_id, u.checkpoint_ns, u.a, u.b, u.was ->> 'type', u.data {_WAS} 'b' ON CONFLICT DO NOTHING
    """,
    f"""
    INSERT INTO async_saver_threads (thread_id, used)
    SELECT %(thread_id)s, extract(epoch FROM {_NOW})::float8 ON CONFLICT DO NOTHING
    """,
    "DELETE FROM async_saver_undo WHERE thread_id = %(thread_id)s",
)


def _undo(cursor: Cursor, thread_id: str, fence: int) -> None:
    for statement in _UNDO:
        cursor.execute(statement.encode(), {"thread_id": thread_id, "fence": fence}, prepare=False)
    tidy(cursor, thread_id)
