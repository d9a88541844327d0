"""What a committer thread of a `PostgresStore` does: what is put by many calls is written by a few statements."""

import struct
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from async_saver.records import EMPTY, JSON, Blob, ChannelVersion, CheckpointRecord, Lease, WriteRecord, packed
from async_saver.stores.base import OnConflict, lost_error, torn_error
from async_saver.stores.commits import Call, fail
from async_saver.stores.postgres_leases import FORMER_BLOBS, FORMER_CHECKPOINTS, FORMER_WRITES, MARKS, note_late
from async_saver.stores.postgres_reads import HIDDEN, OURS, to_json, version_text
from async_saver.stores.postgres_server import LOCKS, Cursor, Server, error_of, is_busy, is_lost, is_of_all, lock_of

__all__ = ["Change", "Put", "PutWrites", "Writer", "lock"]

_MOST_BYTES = 16 * 1024 * 1024  # of values that are one statement, which the server takes up to a gigabyte of

_LOCK = f"SELECT pg_advisory_xact_lock({LOCKS}, n) FROM unnest(%b::int[]) n"

# A lot of puts is one statement, of those of these parts that it has something for. The locks come first, as each part
# asks for them; what they are to keep apart needs no newer look at the tables than the statement's own. The arrays are
# sub-selects, so that the planner does not see how long they are, and makes no new plan for each lot.
_LOCKED = "(SELECT count(*) FROM locked) > 0"
_TYPES = {"t": "text", "b": "bytea", "i": "int", "l": "bigint", "f": "float8"}
_OIDS = {"t": 25, "b": 17, "i": 23, "l": 20, "f": 701}


def _arrays(types: str) -> str:
    """Return rows of what arrays have, each of these types by its first letter."""
    return f"unnest({', '.join(f'(SELECT %b::{_TYPES[one]}[])' for one in types)})"


class _Array:
    """An array as the server takes it. psycopg makes one of a list in several times the time."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Array) -> bytes:
        return obj.data


psycopg.adapters.register_dumper(_Array, _ArrayDumper)

_HEAD_OF_ARRAY = struct.Struct("!iiiii").pack  # dimensions, whether there are NULLs, the type, how many, from where on
_LENGTH = struct.Struct("!i").pack
_NUMBERS = {"i": struct.Struct("!ii").pack, "l": struct.Struct("!iq").pack, "f": struct.Struct("!id").pack}
_NULL = _LENGTH(-1)


def _array(kind: str, values: Collection[Any]) -> _Array:
    """Return values of a type, by its first letter, as an array."""
    parts: list[bytes]
    if kind in _NUMBERS:
        number, size = _NUMBERS[kind], 4 if kind == "i" else 8
        parts = [number(size, value) for value in values]
    else:
        parts = []
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                data = value.encode() if kind == "t" else value
                parts += (_LENGTH(len(data)), data)
    head = _HEAD_OF_ARRAY(1, _NULL in parts, _OIDS[kind], len(values), 1)
    return _Array(head + b"".join(parts))


# With leases, nothing at all is put if one of them is lost; which, is what the statement returns. To lock their rows
# shows them as they are now, also where the statement has begun before. Nobody else sees a lease while it is locked.
_PUT_WITH_LEASES = (
    f"""
    taken AS MATERIALIZED ({_LOCK})
    """,
    f"""
    standing AS MATERIALIZED (
        SELECT a.thread_id, a.own, l.fence, l.held FROM {_arrays("tl")} a (thread_id, own) LEFT JOIN LATERAL (
            SELECT l.fence, l.held FROM async_saver_leases l
            WHERE l.thread_id = a.thread_id AND (SELECT count(*) FROM taken) > 0 FOR SHARE OFFSET 0
        ) l ON true
    )
    """,
    "lost AS MATERIALIZED (SELECT thread_id FROM standing WHERE fence IS NULL OR fence > own)",
    """
    locked AS MATERIALIZED (
        SELECT WHERE (SELECT count(*) FROM taken) > 0 AND (SELECT count(*) FROM lost) = 0
    )
    """,
    f"noting AS MATERIALIZED (SELECT thread_id, fence FROM standing WHERE held AND fence = own AND {_LOCKED})",
    MARKS,
)
_PUT_BLOBS = f"""
blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT * FROM {_arrays("tttttb")} WHERE {_LOCKED}
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO UPDATE SET type = EXCLUDED.type, blob = EXCLUDED.blob
)
"""
# What is brought without a value: there may be one of a version that is put again. It hardly ever is, and then nothing
# is begun: the planner, which knows a table from when it was small, might read all of it.
_DELETE_BLOBS = f"""
emptied AS MATERIALIZED (
    SELECT a.* FROM {_arrays("tttt")} a (thread_id, checkpoint_ns, channel, version)
    WHERE {_LOCKED} AND (
        SELECT 1 FROM checkpoint_blobs b WHERE b.thread_id = a.thread_id AND b.checkpoint_ns = a.checkpoint_ns
            AND b.channel = a.channel AND b.version = a.version) IS NOT NULL
),
no_blobs AS (
    DELETE FROM checkpoint_blobs b USING emptied a
    WHERE (SELECT count(*) FROM emptied) > 0 AND b.thread_id = a.thread_id AND b.checkpoint_ns = a.checkpoint_ns
        AND b.channel = a.channel AND b.version = a.version
)
"""
_PUT_CHECKPOINTS = f"""
checkpoints_put AS (
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    SELECT a.thread_id, a.checkpoint_ns, a.checkpoint_id, a.parent_id,
        convert_from(a.checkpoint, 'UTF8')::jsonb, convert_from(a.metadata, 'UTF8')::jsonb
    FROM {_arrays("ttttbb")}
        a (thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata)
    WHERE {_LOCKED}
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO UPDATE SET
        parent_checkpoint_id = EXCLUDED.parent_checkpoint_id, checkpoint = EXCLUDED.checkpoint,
        metadata = EXCLUDED.metadata
)
"""
# Writes to a checkpoint that was deleted, and is there only for what is rebuilt from it, go nowhere.
_HIDDEN = f"""
hidden AS MATERIALIZED (
    SELECT a.* FROM {_arrays("ttt")} a (thread_id, checkpoint_ns, checkpoint_id)
    WHERE (
        SELECT 1 FROM checkpoints c WHERE c.thread_id = a.thread_id AND c.checkpoint_ns = a.checkpoint_ns
            AND c.checkpoint_id = a.checkpoint_id AND {HIDDEN}) IS NOT NULL
)
"""
_PUT_WRITES = f"""
writes AS (
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    SELECT * FROM {_arrays("tttttittb")}
        a (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    WHERE {_LOCKED} AND (a.thread_id, a.checkpoint_ns, a.checkpoint_id) NOT IN (
        SELECT thread_id, checkpoint_ns, checkpoint_id FROM hidden)
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE SET
        task_path = EXCLUDED.task_path, channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob
    WHERE EXCLUDED.idx < 0
    RETURNING thread_id, checkpoint_ns, checkpoint_id, task_id, idx
)
"""
# Whose runs are known by now; a write that stays has the run that it has.
_PUT_RUNS = f"""
runs AS (
    INSERT INTO async_saver_runs (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    SELECT a.* FROM {_arrays("ttttti")}
        a (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    JOIN writes USING (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE SET run_id = EXCLUDED.run_id
)
"""
_FORGET_RUNS = f"""
of_runs AS MATERIALIZED (
    SELECT a.* FROM {_arrays("tttti")} a (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    WHERE {_LOCKED} AND (
        SELECT 1 FROM async_saver_runs r WHERE r.thread_id = a.thread_id AND r.checkpoint_ns = a.checkpoint_ns
            AND r.checkpoint_id = a.checkpoint_id AND r.task_id = a.task_id AND r.idx = a.idx) IS NOT NULL
),
no_runs AS (
    DELETE FROM async_saver_runs r USING of_runs a
    WHERE (SELECT count(*) FROM of_runs) > 0 AND r.thread_id = a.thread_id AND r.checkpoint_ns = a.checkpoint_ns
        AND r.checkpoint_id = a.checkpoint_id AND r.task_id = a.task_id AND r.idx = a.idx
)
"""
_PUT_THREADS = f"""
threads AS (
    INSERT INTO async_saver_threads (thread_id, used)
    SELECT a.thread_id, a.used FROM {_arrays("tf")} WITH ORDINALITY a (thread_id, used, n)
    WHERE {_LOCKED} ORDER BY n
    ON CONFLICT (thread_id) DO UPDATE SET written = DEFAULT, used = EXCLUDED.used
)
"""
_THERE = f"""
SELECT a.* FROM {_arrays("ttt")} a (thread_id, checkpoint_ns, checkpoint_id)
WHERE (
    SELECT 1 FROM checkpoints c WHERE c.thread_id = a.thread_id AND c.checkpoint_ns = a.checkpoint_ns
        AND c.checkpoint_id = a.checkpoint_id) IS NOT NULL
"""
_HEAD = f"""
SELECT c.checkpoint_id, EXISTS (
    SELECT FROM checkpoints c WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(checkpoint_ns)s
        AND c.checkpoint_id = %(parent_id)s AND NOT ({HIDDEN}))
FROM checkpoints c
WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(checkpoint_ns)s AND NOT ({HIDDEN})
ORDER BY c.checkpoint_id DESC LIMIT 1
"""


class Put(NamedTuple):
    """The work of `Store.put`."""

    thread_id: str
    checkpoint_ns: str
    record: CheckpointRecord
    blobs: Sequence[tuple[ChannelVersion, Blob]]
    lease: Lease | None
    on_conflict: OnConflict | None
    used: float
    is_limited: bool


class PutWrites(NamedTuple):
    """The work of `Store.put_writes`."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    writes: Sequence[WriteRecord]
    lease: Lease | None
    used: float


class Change(NamedTuple):
    """What is done in a transaction of its own.

    Attributes:
        do: Does it, and returns what it comes to; an error that it returns is what it comes to, too.
        thread_ids: The conversations that nobody else is to write to meanwhile.
        is_safe: Whether it may be done again, if it is not known whether it was.
        is_alone: Whether it is one statement, which needs neither a transaction around it nor that nobody else writes.
        committed: Is told what it came to, once that is committed.
    """

    do: Callable[[Cursor], Any]
    thread_ids: Sequence[str] = ()
    is_safe: bool = True
    is_alone: bool = False
    committed: Callable[[Any], None] | None = None


def lock(cursor: Cursor, thread_ids: Iterable[str]) -> None:
    """Wait until nobody else writes to some conversations, until the end of the transaction; once in each.

    All locks are taken in their order, so nobody waits for who waits for them. They are the database's own, as rows
    that could be locked need not be there.
    """
    if numbers := _locks(thread_ids):
        cursor.execute(_LOCK.encode(), (numbers,), prepare=True)


def _locks(thread_ids: Iterable[str]) -> list[int]:
    return sorted({*map(lock_of, thread_ids)})


class _Rows:
    """What a lot of puts writes. Of what is put twice the last one is it, or of a write the first."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[str, str, str, str], Blob] = {}
        self.checkpoints: dict[tuple[str, str, str], tuple[str | None, bytes, bytes]] = {}
        self.writes: dict[tuple[str, str, str, str, int], WriteRecord] = {}
        self.threads: dict[str, float] = {}
        self.leases: dict[str, Lease] = {}

    def add(self, work: "Put | PutWrites") -> None:
        """Add what a call puts."""
        thread_id, checkpoint_ns = work.thread_id, work.checkpoint_ns
        self.threads.pop(thread_id, None)  # the last one written to comes last
        self.threads[thread_id] = work.used
        if work.lease is not None:
            self.leases[thread_id] = work.lease
        if isinstance(work, PutWrites):
            for write in work.writes:
                key = (thread_id, checkpoint_ns, work.checkpoint_id, write.task_id, write.idx)
                if write.idx < 0 or key not in self.writes:
                    self.writes[key] = write
            return
        record = work.record
        for (channel, version), blob in work.blobs:
            self.blobs[thread_id, checkpoint_ns, channel, version_text(version)] = blob
        row = (record.parent_id, _checkpoint_of(record), _metadata_of(record.metadata))
        self.checkpoints[thread_id, checkpoint_ns, record.checkpoint_id] = row

    def write(self, cursor: Cursor, has_own: bool) -> set[tuple[Any, ...]]:
        """Write it all, by one statement.

        Returns:
            Where nothing was written, as the checkpoint there was deleted.

        Raises:
            _Lost: Nothing of it, as the leases of some conversations are lost.
        """
        parts = [f"locked AS MATERIALIZED ({_LOCK})"]
        columns = [_array("i", _locks(self.threads))]
        if self.leases:
            self._add_leases(parts, columns)
        if blobs := [(*key, *blob) for key, blob in self.blobs.items() if blob != EMPTY]:
            parts.append(_PUT_BLOBS)
            columns += _columns("tttttb", blobs)
        if nothing := [key for key, blob in self.blobs.items() if blob == EMPTY]:
            parts.append(_DELETE_BLOBS)
            columns += _columns("tttt", nothing)
        if self.checkpoints:
            parts.append(_PUT_CHECKPOINTS)
            columns += _columns("ttttbb", [(*key, *row) for key, row in self.checkpoints.items()])
        if self.writes:
            parts += (_HIDDEN, _PUT_WRITES)
            columns += _columns("ttt", [*dict.fromkeys(key[:3] for key in self.writes)])
            rows = [(*key[:4], one.task_path, key[4], one.channel, *one.value) for key, one in self.writes.items()]
            columns += _columns("tttttittb", rows)
            if has_own:
                self._add_runs(parts, columns)
        if has_own:
            parts.append(_PUT_THREADS)
            columns += [_array("t", self.threads), _array("f", self.threads.values())]
        found = []
        if self.leases:
            found.append("SELECT thread_id, NULL AS checkpoint_ns, NULL AS checkpoint_id FROM lost")
        if self.writes:
            found.append("SELECT thread_id, checkpoint_ns, checkpoint_id FROM hidden")
        statement = f"WITH {','.join(parts)} {' UNION ALL '.join(found) or 'SELECT'}"
        cursor.execute(statement.encode(), columns, prepare=True)
        answer: list[tuple[Any, ...]] = cursor.fetchall() if found else []
        if lost := [row[0] for row in answer if row[2] is None]:
            raise _Lost(lost)
        return {*answer}

    def _add_leases(self, parts: list[str], columns: list[_Array]) -> None:
        """Have leases be looked at first, and what is replaced with them be noted."""
        parts[:] = _PUT_WITH_LEASES
        leases = sorted(self.leases.items())  # as all lock them
        columns += [_array("t", [one for one, _ in leases]), _array("l", [lease.fence for _, lease in leases])]
        former: tuple[tuple[str, str, Iterable[tuple[Any, ...]]], ...] = (
            (FORMER_CHECKPOINTS, "ttt", self.checkpoints),
            (FORMER_BLOBS, "tttt", self.blobs),
            (FORMER_WRITES, "tttti", (key for key in self.writes if key[4] < 0)),
        )
        for part, types, keys in former:
            if rows := [key for key in keys if key[0] in self.leases]:
                parts.append(part.format(rows=_arrays(types)))
                columns += _columns(types, rows)

    def _add_runs(self, parts: list[str], columns: list[_Array]) -> None:
        runs = [(write.run_id, *key) for key, write in self.writes.items() if write.run_id is not None]
        if runs:
            parts.append(_PUT_RUNS)
            columns += _columns("ttttti", runs)
        if others := [key for key, write in self.writes.items() if key[4] < 0 and write.run_id is None]:
            parts.append(_FORGET_RUNS)
            columns += _columns("tttti", others)


class _Lost(Exception):
    """The leases of some conversations are lost."""

    def __init__(self, thread_ids: Collection[str]) -> None:
        super().__init__()
        self.thread_ids: Collection[str] = thread_ids


def _columns(types: str, rows: Sequence[Sequence[Any]]) -> list[_Array]:
    return [_array(kind, column) for kind, column in zip(types, zip(*rows, strict=True), strict=True)]


def _checkpoint_of(record: CheckpointRecord) -> bytes:
    """Return a checkpoint as the table has it."""
    kind, data = record.checkpoint
    if kind == JSON:
        if record.run_id is None or b'"run_id":' + to_json(record.run_id) in record.metadata[1]:
            return data
        return data[:-1] + b',"' + OURS.encode() + b'":' + to_json({"run_id": record.run_id}) + b"}"
    ours: dict[str, Any] = {
        "checkpoint": packed(record.checkpoint),
        "versions": record.versions,
        "delta": record.delta_channels,
    }
    if record.run_id is not None:
        ours["run_id"] = record.run_id
    if record.hidden:
        ours["hidden"] = True
    return to_json(
        {
            "v": 4,
            "id": record.checkpoint_id,
            "ts": "",
            "channel_values": {},
            "channel_versions": dict(record.versions),
            "versions_seen": {},
            OURS: ours,
        }
    )


def _metadata_of(metadata: Blob) -> bytes:
    return metadata[1] if metadata[0] == JSON else to_json({OURS: packed(metadata)})


def _size_of(work: "Put | PutWrites") -> int:
    blobs = [blob for _, blob in work.blobs] if isinstance(work, Put) else [write.value for write in work.writes]
    return sum(len(data) for _, data in blobs)


def _rows_of(calls: Iterable[Call[Any]]) -> _Rows:
    rows = _Rows()
    for call in calls:
        rows.add(call.work)
    return rows


def _rests_on_others(work: "Put | PutWrites") -> bool:
    """Tell whether a checkpoint names versions that it does not bring, and so is not whole without those before it."""
    if not isinstance(work, Put) or not work.is_limited or work.record.parent_id is None:
        return False
    brought = {version for version, _ in work.blobs}
    return any(version not in brought for version in work.record.versions)


class Writer:
    """Does lots of calls: what is put in one transaction, and each change in one of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def do(self, calls: Sequence[Call[Any]]) -> None:
        """Do calls in their order, and note in each what it came to."""
        puts: list[Call[Any]] = []
        size = 0
        fences: dict[str, int | None] = {}
        for call in calls:
            work = call.work
            is_put = isinstance(work, PutWrites) or (isinstance(work, Put) and work.on_conflict is None)
            fence = work.lease.fence if is_put and work.lease is not None else None
            size += _size_of(work) if is_put else 0
            # To each conversation a transaction writes with one lease, or none.
            if puts and (not is_put or size > _MOST_BYTES or fences.get(work.thread_id, fence) != fence):
                self._put(puts)
                puts, size, fences = [], _size_of(work) if is_put else 0, {}
            if is_put:
                puts.append(call)
                fences[work.thread_id] = fence
            else:
                self._do_one(call)
        self._put(puts)

    def _put(self, calls: Sequence[Call[Any]]) -> None:
        """Do what puts in one transaction; where that fails, each by itself, so that only those fail that have to."""
        if not calls:
            return
        surely = partial(self._surely, since=calls[0].since)
        try:
            if any(isinstance(call.work, Put) and call.work.is_limited for call in calls):
                torn = surely(self._server.transaction, partial(self._put_whole, calls=calls))
            else:
                rows, torn = _rows_of(calls), {}
                if late := surely(self._server.cursor, lambda cursor: rows.write(cursor, self._server.has_own)):
                    surely(self._server.transaction, partial(self._put_late, calls=calls, places=late))
        except _Lost as lost:
            self._put([call for call in calls if not _refused(call, lost)])
            return
        except Exception as exc:
            left = [call for call in calls if self._has_time(call, exc)] if len(calls) > 1 else []
            if len(calls) == 1 or is_of_all(exc) or is_busy(exc):
                # Those that have waited for long enough fail together; others go on to.
                fail([call for call in calls if call not in left], error_of(exc, self._server))
            else:
                left = [*calls]
            if is_of_all(exc):
                self._put(left)
            else:
                for call in left:
                    self._put([call])
            return
        for number, call in enumerate(calls):
            if number in torn:
                call.error = torn[number]
            else:
                call.end(False)

    def _put_whole(self, cursor: Cursor, calls: Sequence[Call[Any]]) -> dict[int, Exception]:
        """Put what has not lost what it rests on to a limit; return the errors of the others, by their places."""
        lock(cursor, {call.work.thread_id for call in calls})
        puts = {number: call.work for number, call in enumerate(calls) if _rests_on_others(call.work)}
        there = {(*work[:2], work.record.checkpoint_id) for call in calls if isinstance(work := call.work, Put)}
        if puts:
            parents = _columns("ttt", [(*work[:2], work.record.parent_id) for work in puts.values()])
            there.update(cursor.execute(_THERE.encode(), parents, prepare=True).fetchall())
        torn: dict[int, Exception] = {
            number: torn_error(work.thread_id)
            for number, work in puts.items()
            if (*work[:2], work.record.parent_id) not in there
        }
        put = [call for number, call in enumerate(calls) if number not in torn]
        if late := _rows_of(put).write(cursor, self._server.has_own):
            self._put_late(cursor, put, late)
        return torn

    def _put_late(self, cursor: Cursor, calls: Sequence[Call[Any]], places: Collection[tuple[Any, ...]]) -> None:
        """Put writes to checkpoints that were deleted: they are there when a session is undone that has done it."""
        late = [call for call in calls if isinstance(call.work, PutWrites) and call.work[:3] in places]
        lock(cursor, {call.work.thread_id for call in late})
        if self._server.channel is not None:
            for call in late:
                note_late(cursor, *call.work[:5])
        _rows_of(late).write(cursor, self._server.has_own)  # if it has been undone just now

    def _do_one(self, call: Call[Any]) -> None:
        work = call.work
        change = (
            Change(lambda cursor: self._put_if_fit(cursor, work), [work.thread_id]) if isinstance(work, Put) else work
        )
        try:
            if change.is_alone:
                result = self._surely(self._server.cursor, change.do, call.since)
            else:
                change_in = partial(_changed, change=change)
                result = self._surely(self._server.transaction, change_in, call.since, change.is_safe)
        except _Lost as lost:
            _refused(call, lost)
            return
        except Exception as exc:
            call.error = error_of(exc, self._server)
            return
        if isinstance(result, Exception):
            call.error = result
            return
        if change.committed is not None:
            change.committed(result)
        call.end(result)

    def _surely(
        self,
        use: Callable[[float], AbstractContextManager[Cursor]],
        do: Callable[[Cursor], Any],
        since: float,
        again: bool = True,
    ) -> Any:
        """Do something in a transaction; again if the connection was lost, or others were in the way.

        What may not be done twice is not done again once its commit was called for.
        """
        until = self._server.until(since)
        for number in count(1):
            is_done = False
            try:
                with use(until) as cursor:
                    result = do(cursor)
                    is_done = True
                return result
            except Exception as exc:
                may_be_done = is_done and is_lost(exc)
                if (may_be_done and not again) or not self._server.is_worth_another(exc, until, number):
                    raise
        raise AssertionError("a loop has ended that does not")

    def _has_time(self, call: Call[Any], exc: Exception) -> bool:
        """Tell whether a call may be tried again that has come to an error together with others."""
        is_for_now = is_lost(exc) or is_busy(exc)
        return is_for_now and time.monotonic() < call.since + self._server.timeout()

    def _put_if_fit(self, cursor: Cursor, work: Put) -> bool:
        if work.is_limited and _rests_on_others(work):
            place = _columns("ttt", [(*work[:2], work.record.parent_id)])
            if cursor.execute(_THERE.encode(), place, prepare=True).fetchone() is None:
                raise torn_error(work.thread_id)
        conflict = self._is_in_conflict(cursor, work)
        if not conflict or work.on_conflict == "warn":
            rows = _Rows()
            rows.add(work)
            rows.write(cursor, self._server.has_own)
        return conflict

    def _is_in_conflict(self, cursor: Cursor, work: Put) -> bool:
        parent_id, own_id = work.record.parent_id, work.record.checkpoint_id
        place = {"thread_id": work.thread_id, "checkpoint_ns": work.checkpoint_ns, "parent_id": parent_id}
        row = cursor.execute(_HEAD, place, prepare=True).fetchone()
        if row is None:
            return False
        head, has_parent = row
        return head not in (own_id, parent_id) and (parent_id is None or has_parent)


def _refused(call: Call[Any], lost: _Lost) -> bool:
    """Have a call fail whose lease is one that is lost; tell whether it is."""
    lease: Lease | None = call.work.lease
    is_lost = lease is not None and lease.thread_id in lost.thread_ids
    if lease is not None and is_lost:
        call.error = lost_error(lease)
    return is_lost


def _changed(cursor: Cursor, change: Change) -> Any:
    lock(cursor, change.thread_ids)
    return change.do(cursor)
