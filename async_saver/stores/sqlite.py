"""SQLiteStore: conversations in a file, for the processes of one machine."""

import atexit
import json
import os
import sqlite3
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, cast, get_args
from weakref import WeakSet, WeakValueDictionary, finalize

import async_saver.stores.sqlite_edits as edits
from async_saver.errors import InvalidTypeError, InvalidValueError, shown
from async_saver.guard import guard
from async_saver.pace import keep_pace
from async_saver.records import (
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    Lease,
    Listing,
    StoredCheckpoint,
    StoredHistory,
    StoreStats,
    WriteRecord,
    fits,
)
from async_saver.retention import EvictionReason, Retention
from async_saver.stores.base import OnConflict, exists_error
from async_saver.stores.commits import Call, Worker
from async_saver.stores.processes import has_ended, this_process
from async_saver.stores.sqlite_file import File, Identity, error_of
from async_saver.stores.sqlite_reads import (
    Get,
    Place,
    delta_history,
    keys_of,
    newest_of,
    packed,
    read,
    read_some,
)
from async_saver.stores.sqlite_writer import Apart, Put, PutWrites, Writer
from async_saver.stores.swept import Swept, SweptStore

__all__ = ["SQLiteStore", "Synchronous"]

_T = TypeVar("_T")

Synchronous = Literal["full", "normal"]
"""What is awaited before a call returns; see `SQLiteStore`."""

_LASTS = 30.0  # seconds for which a lease is held that nobody renews
_RENEW = 10.0
_FORGET = 24 * 3600.0  # seconds after which a lease that was given back is forgotten
_TOUCH = 5.0  # seconds between two times that reads are noted as use
_MOST_IDX = 2**63
_MOST_EVICTED = 250  # conversations that go in one transaction
_PAGES = 1000  # of the file that are given back in one transaction
_FIRST_PAGE, _LARGEST_PAGE = 4, 64  # checkpoints that are read at once, in a list
_AT_EXIT = 5.0  # seconds that the end of the process waits for the end of a thread


class SQLiteStore(SweptStore):
    """Keeps conversations in an SQLite file, in WAL mode.

    A call that writes returns when its transaction is on disk. Calls that come while one is being written are the
    next one, whichever conversations, event loops and worker threads they are from. What is read is read beside that.

    Several stores and processes may use one file, and sessions exclude each other in all of them. Not over a network
    file system: SQLite's locks and its shared memory need one machine.

    Nothing is opened before the first use. `close` ends it; a store that is used again opens the file again.

    Args:
        path: Where the file is, or is to be: with the mode 0600, and its folder has to be there. None is a database in
            memory, which ends with `close`.
        synchronous: With "full" what was acknowledged is there after a power cut, with "normal" only after a crash of
            the process: the last transactions may be missing, never a part of one.
        timeout: For how many seconds to wait for a lock that another process or connection holds.

    Raises:
        InvalidValueError: `synchronous` is unknown, or `timeout` is negative.
        InvalidTypeError: The path is none, or `timeout` is no number.

    Example:
        ```python
        import asyncio

        from async_saver import AsyncSaver
        from async_saver.stores.sqlite import SQLiteStore


        async def main() -> None:
            async with AsyncSaver(store=SQLiteStore("agents.db")) as saver:
                print(await saver.acount())


        asyncio.run(main())
        ```
    """

    in_order: bool = True  # one queue, and one thread that takes from it

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        synchronous: Synchronous = "full",
        timeout: float = 5.0,
    ) -> None:
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise InvalidTypeError(f"path is a path or None, not of type {type(path).__name__}")
        if synchronous not in get_args(Synchronous):
            raise InvalidValueError(f'unknown synchronous {shown(synchronous)}; pass "full" or "normal"')
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise InvalidTypeError(f"timeout is a number of seconds, not of type {type(timeout).__name__}")
        if not 0 <= timeout <= 1_000_000:
            raise InvalidValueError(f"timeout is a number of seconds, 0 or more, not {shown(timeout)}")
        where = None if path is None else os.path.abspath(os.fspath(path))
        if where is not None and "\0" in where:
            raise InvalidValueError(f"a path with a NUL in it names no file: {shown(where)}")
        self._engine = _Engine(File(where, synchronous, float(timeout)))
        super().__init__(self._engine)
        finalize(self, self._engine.abandon).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise InvalidTypeError(
            f"what a SQLiteStore keeps is in {self._engine.file.name()}, and is not copied with it; copy the file, or "
            "conversations with acopy_thread(), or share the saver"
        )

    async def setup(self) -> None:
        """Open the file, and make it if it is not there, or bring it to this version.

        Raises:
            StorageError: It cannot be opened or made, or is of something else, or of a later version.
        """
        if not self._engine.is_open():
            self._engine.file.known = None
        await self._engine.write(_open)

    async def close(self) -> None:
        """Write what is called for, and close the file; the store opens it again when it is used again."""
        await self._engine.close()

    # Reading.

    async def get(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """See `Store.get`."""
        if not _are_fit(thread_id, checkpoint_ns, checkpoint_id or ""):
            return None
        self._touch(thread_id)
        return await self._engine.get(Place(thread_id, checkpoint_ns, checkpoint_id))

    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        """See `Store.list`. It is read in pages; what another process deletes of one that was read is still shown."""
        if listing.thread_id is not None:
            self._touch(listing.thread_id)
        return _Found(self._engine, listing)

    async def delta_history(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Histories:
        """See `Store.delta_history`."""
        known = _fit_only(channels) if _are_fit(thread_id, checkpoint_ns, checkpoint_id or "") else []
        histories: dict[str, StoredHistory] = {channel: StoredHistory(None, ()) for channel in channels}
        if known:
            self._touch(thread_id)
            place = Place(thread_id, checkpoint_ns, checkpoint_id)
            look = partial(delta_history, place=place, channels=known)
            histories.update(await self._engine.look(partial(_in_one_moment, look)))
        return histories

    async def run_threads(self, run_ids: Sequence[str]) -> Sequence[str]:
        """See `Store.run_threads`."""
        return await self._engine.look(partial(_column, _THREADS_OF_RUNS, (packed(_fit_only(run_ids)),)))

    def thread_ids(self) -> AsyncIterator[str]:
        """See `Store.thread_ids`."""
        return _ThreadIds(self._engine)

    async def count(self) -> int:
        """See `Store.count`."""
        return await self._engine.look(_count)

    # Writing.

    async def put(
        self,
        thread_id: str,
        checkpoint_ns: str,
        record: CheckpointRecord,
        blobs: Sequence[tuple[ChannelVersion, Blob]],
        leases: Sequence[Lease] = (),
        on_conflict: OnConflict | None = None,
    ) -> bool:
        """See `Store.put`."""
        _look_at(thread_id, checkpoint_ns, record.checkpoint_id, record.parent_id or "", record.run_id or "")
        _look_at(*(channel for channel, _ in record.versions), *(channel for (channel, _), _ in blobs))
        _look_at(*(one for _, one in record.versions if isinstance(one, str)), *record.delta_channels)
        is_limited = self.retention is not None
        put = Put(thread_id, checkpoint_ns, record, blobs, leases, on_conflict, self._now(), is_limited)
        conflict: bool = await self._engine.write(put)
        return conflict

    async def put_writes(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str,
        writes: Sequence[WriteRecord],
        leases: Sequence[Lease] = (),
    ) -> None:
        """See `Store.put_writes`."""
        if not writes:
            return
        _look_at(thread_id, checkpoint_ns, checkpoint_id)
        for write in writes:
            _look_at(write.task_id, write.channel, write.task_path, write.run_id or "")
            if not -_MOST_IDX <= write.idx < _MOST_IDX:
                raise InvalidValueError(f"idx is a number of 64 bits, not {shown(write.idx)}")
        await self._engine.write(PutWrites(thread_id, checkpoint_ns, checkpoint_id, writes, leases, self._now()))

    async def delete(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.delete`."""
        await self._engine.write(_Change(_fit_only(thread_ids), leases, edits.delete))

    async def delete_for_runs(self, run_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.delete_for_runs`."""
        runs = _fit_only(run_ids)
        await self._engine.write(_Change(runs, leases, partial(edits.without_runs, run_ids=runs), are_runs=True))

    async def keep_latest(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.keep_latest`."""
        await self._engine.write(_Change(_fit_only(thread_ids), leases, edits.keep_latest))

    async def copy(self, source_thread_id: str, target_thread_id: str, leases: Sequence[Lease] = ()) -> None:
        """See `Store.copy`."""
        _look_at(target_thread_id)
        if _are_fit(source_thread_id):
            self._touch(source_thread_id)
            await self._engine.write(_Copy(source_thread_id, target_thread_id, leases, self._now()))

    # Leases.

    async def acquire(
        self,
        thread_id: str,
        owner: str,
        *,
        instead_of: Lease | None = None,
        undo: bool = False,
        on_interrupt: Callable[[str], object] | None = None,
    ) -> Lease | None:
        """See `Store.acquire`."""
        _look_at(thread_id)
        work = _Acquire(self._engine, thread_id, owner, instead_of, undo)
        given: Lease | None = await self._engine.write_surely(work, otherwise=work.take_back)
        return given

    async def renew(self, lease: Lease) -> bool:
        """See `Store.renew`. The store does so itself, for as long as somebody has the lease."""
        held: bool = await self._engine.write(partial(_renewed, lease=lease))
        return held

    async def release(self, lease: Lease, *, delete: bool = False) -> bool:
        """See `Store.release`."""
        held: bool = await self._engine.write_surely(partial(_release, lease=lease, delete=delete))
        return held

    async def lease(self, thread_id: str) -> Lease | None:
        """See `Store.lease`."""
        if not _are_fit(thread_id):
            return None
        # By the thread that gives leases, and so after all that was called for before.
        row = await self._engine.between(lambda writer: _lease_row(thread_id, writer.connection))
        if row is None or not _is_alive(row, self._engine.file):
            return None
        return _FileLease(thread_id, row[0], row[2], row[3])

    # Limits.

    async def sweep(self) -> int:
        """See `Store.sweep`. Pages of the file that have become free are given back to the system."""
        engine, retention = self._engine, self.retention
        evicted = 0
        await engine.write(_forget_leases)
        if retention is not None:
            await engine.write(_NoteUses(engine))
            await engine.write(partial(_set_right, now=self._now(), since=self._since))
            if retention.ttl is not None:
                evicted += await self._sweep_unused(retention)
            evicted += await self._sweep_most(retention)
            if retention.keep_last is not None:
                await self._sweep_old(retention.keep_last)
        while await engine.between(_give_back):
            await keep_pace()
        return evicted

    async def _sweep_unused(self, retention: Retention) -> int:
        evicted = 0
        if callable(retention.ttl):
            while unasked := await self._engine.look(partial(_column, _UNASKED, (_MOST_EVICTED,))):
                said = [(thread_id, retention.lifetime(thread_id)) for thread_id in unasked]
                lifetimes = [(thread_id, -1.0 if life is None else life) for thread_id, life in said]
                await self._engine.write(partial(_set_lifetimes, lifetimes=lifetimes))
        limit = {"now": self._now(), "lifetime": self._engine.lifetime}
        while True:
            evict = _Evict(self._engine, self._tells(), "ttl", limit)
            gone = await self._engine.write(evict)
            evicted += len(gone)
            if len(gone) < _MOST_EVICTED:
                return evicted

    async def _sweep_most(self, retention: Retention) -> int:
        evicted = 0
        limits: tuple[tuple[EvictionReason, int | None], ...] = (
            ("max_threads", retention.max_threads),
            ("max_bytes", retention.max_bytes),
        )
        for reason, limit in limits:
            exceeded = limit is not None
            while exceeded and limit is not None:
                evict = _Evict(self._engine, self._tells(), reason, {"limit": limit})
                gone = await self._engine.write(evict)
                evicted += len(gone)
                exceeded = bool(gone)
            if limit is not None and await self._engine.look(partial(_excess, reason=reason, limit=limit)) > 0:
                self._engine.overruns += 1
        return evicted

    async def _sweep_old(self, keep: int) -> None:
        for thread_id in await self._engine.look(partial(_column, _TOO_LONG, (keep,))):
            self._engine.pruned += await self._engine.write(_Trim(thread_id, keep))

    async def stats(self) -> StoreStats:
        """See `Store.stats`: `bytes` are those of the file that are in use, without what an empty one takes."""
        engine = self._engine
        conversations, size = await engine.look(_figures)
        evictions: dict[str, int] = dict(engine.evictions.items()) if self.retention is not None else {}
        return StoreStats(
            conversations, bytes=size, evictions=evictions, pruned=engine.pruned, overruns=engine.overruns
        )

    # For tests, and whoever looks after the file.

    def check(self) -> None:
        """Look whether the file is whole: SQLite's own check, and what must hold between the rows. It reads all of it.

        Call it where nothing has to go on meanwhile, or in a worker thread.

        Raises:
            AssertionError: It is not. Its message says what was found, and quotes ids.
            StorageError: The file cannot be read.
        """
        try:
            faults = self._engine.check()
        except (sqlite3.Error, OSError) as exc:
            raise error_of(exc, self._engine.file) from exc
        if faults:
            raise AssertionError("\n".join(faults))

    async def compact(self) -> None:
        """Write the file anew, as small as it can be; nothing else is written meanwhile.

        Raises:
            StorageError: There is no room for the copy that this takes.
        """
        await self._engine.between(_compact)


def _are_fit(*ids: str) -> bool:
    """Tell whether ids can be stored."""
    return fits("".join(ids))


def _look_at(*ids: str) -> None:
    if not _are_fit(*ids):
        unfit = next(one for one in ids if not _are_fit(one))
        raise InvalidValueError(
            f"{shown(unfit)} has a NUL or a lone surrogate in it, which a SQLiteStore cannot keep in an id or a name; "
            "leave such characters out"
        )


def _fit_only(ids: Sequence[str]) -> "list[str]":
    """Return those that may be stored; others are unknown."""
    return [one for one in ids if _are_fit(one)]


# What is done by the connections.

_THREADS_OF_RUNS = """
SELECT json_group_array(thread_id) FROM (
    SELECT DISTINCT t.thread_id FROM runs r CROSS JOIN namespaces n ON n.id = r.namespace
    CROSS JOIN conversations t ON t.id = n.conversation WHERE r.run_id IN (SELECT value FROM json_each(?)))
"""
_ALL_THREADS = "SELECT json_group_array(thread_id) FROM (SELECT thread_id FROM conversations ORDER BY written DESC)"
_THREADS_THERE = """
SELECT json_group_array(thread_id) FROM (
    SELECT a.value AS thread_id FROM json_each(?) a WHERE a.value IN (SELECT thread_id FROM conversations)
    ORDER BY a.key)
"""
_UNASKED = """
SELECT json_group_array(thread_id) FROM (SELECT thread_id FROM conversations WHERE lifetime IS NULL LIMIT ?)
"""
_TOO_LONG = """
SELECT json_group_array(thread_id) FROM conversations WHERE id IN (
    SELECT n.conversation FROM namespaces n WHERE n.id IN (
        SELECT namespace FROM checkpoints GROUP BY namespace HAVING count(*) > ?))
"""


def _column(statement: str, parameters: Any, connection: sqlite3.Connection) -> "list[Any]":
    return cast("list[Any]", json.loads(connection.execute(statement, parameters).fetchone()[0]))


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT value FROM counters WHERE name = 'conversations'").fetchone()[0])


def _in_one_moment(look: Callable[..., _T], connection: sqlite3.Connection) -> _T:
    """Look by several statements."""
    if connection.in_transaction:
        return look(connection)
    connection.execute("BEGIN")
    try:
        return look(connection)
    finally:
        connection.execute("COMMIT")


def _figures(connection: sqlite3.Connection) -> tuple[int, int]:
    return _count(connection), _bytes(connection)


def _bytes(connection: sqlite3.Connection) -> int:
    (empty,) = connection.execute("SELECT value FROM counters WHERE name = 'pages'").fetchone()
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int(max(pages - free - empty, 0) * size)


def _excess(connection: sqlite3.Connection, reason: EvictionReason, limit: int) -> int:
    return (_count(connection) if reason == "max_threads" else _bytes(connection)) - limit


def _open(writer: Writer) -> None:
    """Do nothing but what every transaction does."""


class _Change:
    """A change of conversations as a whole, with the leases of the caller."""

    def __init__(
        self,
        ids: Sequence[str],
        leases: Sequence[Lease],
        change: Callable[[sqlite3.Connection, str, bool], object],
        are_runs: bool = False,
    ) -> None:
        self._ids = ids
        self._leases = leases
        self._change = change
        self._are_runs = are_runs

    def __call__(self, writer: Writer) -> Exception | None:
        connection = writer.connection
        thread_ids = [*dict.fromkeys(self._ids)]
        if self._are_runs:
            thread_ids = _column(_THREADS_OF_RUNS, (packed(thread_ids),), connection)
        for thread_id in thread_ids:
            if (lost := writer.lost(thread_id, self._leases)) is not None:
                return lost
        for thread_id in thread_ids:
            noting = writer.is_noting(thread_id, self._leases)
            if noting:
                edits.note_all(connection, thread_id)
            elif noting is False:
                edits.before_others(connection, thread_id)
            self._change(connection, thread_id, noting is not None)
            if noting is False:
                if self._change is edits.delete:
                    edits.forget_notes(connection, thread_id)
                else:
                    edits.after_others(connection, thread_id)
        writer.drop(thread_ids)
        return None


class _Copy(NamedTuple):
    source: str
    target: str
    leases: Sequence[Lease]
    used: float

    def __call__(self, writer: Writer) -> Exception | None:
        connection, target = writer.connection, self.target
        if (lost := writer.lost(target, self.leases)) is not None:
            return lost
        if connection.execute(_IS_THERE, (target,)).fetchone() is not None:
            return exists_error(self.source, target)
        if connection.execute(_IS_THERE, (self.source,)).fetchone() is None:
            return None
        noting = writer.is_noting(target, self.leases)
        namespace_of = partial(writer.namespace, used=self.used)
        writer.next_id = edits.copy(connection, self.source, target, namespace_of, writer.next_id)
        if noting:
            edits.note_copied(connection, target)
        elif noting is False:
            edits.forget_notes(connection, target)
        writer.drop([target])
        return None


# Leases.

_LEASE = "SELECT fence, held, owner, since, holder, until FROM leases WHERE thread_id = ?"
_NEXT_FENCE = "UPDATE counters SET value = value + 1 WHERE name = 'fence'"
_FENCE = "SELECT value FROM counters WHERE name = 'fence'"
_GIVE = """
INSERT OR REPLACE INTO leases (thread_id, fence, held, owner, since, holder, until) VALUES (?, ?, 1, ?, ?, ?, ?)
"""
_END_LEASE = "UPDATE leases SET held = 0, fence = ?, since = ? WHERE thread_id = ?"
_RENEW_ALL = "UPDATE leases SET until = ? WHERE held AND holder = ? AND fence IN (SELECT value FROM json_each(?))"
_HELD = "SELECT thread_id, fence, held, owner, since, holder, until FROM leases INDEXED BY held_leases WHERE held"
_OLD_LEASES = "DELETE FROM leases WHERE NOT held AND since < ?"

_Row = tuple[int, int, str, float, str, float]


class _FileLease(Lease):
    __slots__ = ("__weakref__",)


def _lease_row(thread_id: str, connection: sqlite3.Connection) -> _Row | None:
    row: _Row | None = connection.execute(_LEASE, (thread_id,)).fetchone()
    return row


def _is_alive(row: _Row, file: File) -> bool:
    """Tell whether a lease in a file is held, and its holder there."""
    fence, held, _, _, holder, until = row
    if held and holder == this_process():
        with guard:
            engines = [*_engines]
        here = [one for one in engines if one.file is file or (file.path is not None and one.file.path == file.path)]
        return any(fence in engine.leases for engine in here)
    now = time.monotonic()
    return bool(held) and now <= until <= now + 2 * _LASTS and not has_ended(holder)


def _next_fence(connection: sqlite3.Connection) -> int:
    connection.execute(_NEXT_FENCE)
    return int(connection.execute(_FENCE).fetchone()[0])


class _Acquire:
    """The work of `SQLiteStore.acquire`; `given` is what it came to."""

    def __init__(self, engine: "_Engine", thread_id: str, owner: str, instead_of: Lease | None, undo: bool) -> None:
        self.given: _FileLease | None = None
        self._engine = engine
        self._thread_id = thread_id
        self._owner = owner
        self._instead_of = instead_of
        self._undo = undo

    def __call__(self, writer: Writer) -> Lease | None:
        connection, thread_id, former = writer.connection, self._thread_id, self._instead_of
        row = _lease_row(thread_id, connection)
        is_former = row is not None and bool(row[1]) and former is not None and former.fence == row[0]
        is_alive = row is not None and _is_alive(row, writer.file)
        self.given = None
        if is_alive and not is_former:
            return None
        if self._undo and row is not None and bool(row[1]):
            edits.undo(connection, thread_id, partial(writer.namespace, used=time.time()))
        if row is not None:
            edits.forget_notes(connection, thread_id)
            writer.drop([thread_id])
        fence, now = _next_fence(connection), time.time()
        until = time.monotonic() + _LASTS
        connection.execute(_GIVE, (thread_id, fence, self._owner, now, this_process(), until))
        writer.held[thread_id] = fence
        # For as long as somebody has it, it is renewed, and held.
        self.given = self._engine.leases[fence] = _FileLease(thread_id, fence, self._owner, now)
        return self.given

    def take_back(self, writer: Writer) -> None:
        """Give the lease back, as its caller was cancelled."""
        if self.given is not None:
            _release(writer, self.given, delete=False)


def _holds(writer: Writer, lease: Lease) -> bool:
    row = _lease_row(lease.thread_id, writer.connection)
    return row is not None and bool(row[1]) and row[0] == lease.fence


def _renewed(writer: Writer, lease: Lease) -> bool:
    held = _holds(writer, lease)
    if held:
        renewed = (time.monotonic() + _LASTS, this_process(), packed([lease.fence]))
        writer.connection.execute(_RENEW_ALL, renewed)
    return held


def _release(writer: Writer, lease: Lease, delete: bool) -> bool:
    if not _holds(writer, lease):
        return False
    connection, thread_id = writer.connection, lease.thread_id
    if delete:
        edits.delete(connection, thread_id)
        writer.drop([thread_id])
    connection.execute(_END_LEASE, (_next_fence(connection) if delete else lease.fence, time.time(), thread_id))
    edits.forget_notes(connection, thread_id)
    writer.held.pop(thread_id, None)
    return True


def _forget_leases(writer: Writer) -> None:
    """End the leases of processes that have ended, and forget those that were given back long ago."""
    for thread_id, *row in writer.connection.execute(_HELD).fetchall():
        if not _is_alive(cast(_Row, tuple(row)), writer.file):
            writer.connection.execute(_END_LEASE, (row[0], time.time(), thread_id))
            edits.forget_notes(writer.connection, thread_id)
            writer.held.pop(thread_id, None)
    writer.connection.execute(_OLD_LEASES, (time.time() - _FORGET,))


# Limits.

_IS_THERE = "SELECT 1 FROM conversations WHERE thread_id = ?"
_SET_LIFETIMES = """
UPDATE conversations SET lifetime = (
    SELECT json_extract(a.value, '$[1]') FROM json_each(:said) a WHERE json_extract(a.value, '$[0]') = thread_id)
WHERE thread_id IN (SELECT json_extract(value, '$[0]') FROM json_each(:said))
"""
# What had gone unused for too long when it was read is still to go.
_USE = """
UPDATE conversations SET used = (
    SELECT max(used, json_extract(a.value, '$[1]')) FROM json_each(:uses) a
    WHERE json_extract(a.value, '$[0]') = thread_id)
WHERE id IN (
    SELECT t.id FROM json_each(:uses) a CROSS JOIN conversations t ON t.thread_id = json_extract(a.value, '$[0]')
    WHERE ifnull(ifnull(:lifetime, t.lifetime), -1) < 0
        OR json_extract(a.value, '$[1]') - t.used <= ifnull(:lifetime, t.lifetime))
"""
_NOT_HELD = "thread_id NOT IN (SELECT thread_id FROM leases INDEXED BY held_leases WHERE held)"
_UNUSED = f"""
SELECT json_group_array(thread_id) FROM (SELECT thread_id FROM conversations
WHERE :now - used > ifnull(:lifetime, lifetime) AND ifnull(:lifetime, lifetime) >= 0 AND {_NOT_HELD} LIMIT :number)
"""
_LEAST_RECENTLY_USED = f"""
SELECT json_group_array(thread_id) FROM (SELECT thread_id FROM conversations
WHERE {_NOT_HELD} ORDER BY used, written LIMIT :number)
"""


def _set_lifetimes(writer: Writer, lifetimes: Sequence[tuple[str, float]]) -> None:
    writer.connection.execute(_SET_LIFETIMES, {"said": packed(lifetimes)})


def _set_right(writer: Writer, now: float, since: float) -> None:
    """Take what was used in the future, by another clock, for used when the limits began."""
    writer.connection.execute("UPDATE conversations SET used = ? WHERE used > ?", (min(since, now), now))


class _Evict:
    """Lets conversations go that are beyond a limit, at most a hundred; comes to their `thread_id`s."""

    def __init__(self, engine: "_Engine", tells: bool, reason: EvictionReason, limit: "dict[str, Any]") -> None:
        self._engine = engine
        self._tells = tells
        self._reason: EvictionReason = reason
        self._limit = limit

    def __call__(self, writer: Writer) -> "list[str]":
        connection = writer.connection
        statement = _UNUSED if self._reason == "ttl" else _LEAST_RECENTLY_USED
        gone: list[str] = []
        for thread_id in _column(statement, ({**self._limit, "number": _MOST_EVICTED}), connection):
            if self._reason != "ttl" and _excess(connection, self._reason, self._limit["limit"]) <= 0:
                break
            edits.delete(connection, thread_id)
            gone.append(thread_id)
        if gone:
            writer.drop(gone)
        return gone

    def committed(self, gone: "list[str]") -> None:
        """Count them, and note that they are to be told of."""
        self._engine.went(gone, self._reason, self._tells)


class _Trim(NamedTuple):
    """Lets go of all but the newest checkpoints of each namespace; comes to how many went."""

    thread_id: str
    keep: int

    def __call__(self, writer: Writer) -> int:
        if self.thread_id in writer.held:
            return 0
        writer.drop([self.thread_id])
        return edits.keep_latest(writer.connection, self.thread_id, number=self.keep, only_longer=True)


def _give_back(writer: Writer) -> bool:
    """Give free pages back to the system; tell whether there are more."""
    connection = writer.connection
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    connection.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
    (left,) = connection.execute("PRAGMA freelist_count").fetchone()
    if not left:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return bool(0 < left < free)


def _compact(writer: Writer) -> None:
    writer.connection.execute("VACUUM")
    writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


# Iterating.


class _Found(AsyncIterator[StoredCheckpoint]):
    """The checkpoints of one listing, read in pages downward from the newest; nothing is held between two."""

    def __init__(self, engine: "_Engine", listing: Listing) -> None:
        self._engine = engine
        self._listing = listing
        self._page: deque[tuple[tuple[str, int], StoredCheckpoint]] = deque()
        self._size = _FIRST_PAGE
        self._removals = 0
        self._last: tuple[str, int] | None = None
        self._newest: int | None = None
        ids = (listing.thread_id, listing.checkpoint_ns, listing.checkpoint_id)
        self._has_ended = not _are_fit(*(one or "" for one in ids))

    async def __anext__(self) -> StoredCheckpoint:
        if self._page and self._removals != self._engine.removals():
            self._page.clear()  # something of it may have been deleted
            self._has_ended = False
        if not self._page and not self._has_ended:
            _look_at(self._listing.before or "")
            removals = self._engine.removals()
            page = await self._engine.look(partial(_in_one_moment, self._read))
            self._removals, self._has_ended = removals, len(page) < self._size
            self._page.extend(page)
            self._size = min(2 * self._size, _LARGEST_PAGE)
        await keep_pace()
        if not self._page:
            raise StopAsyncIteration
        self._last, found = self._page.popleft()
        return found

    def _read(self, connection: sqlite3.Connection) -> "list[tuple[tuple[str, int], StoredCheckpoint]]":
        if self._newest is None:
            self._newest = newest_of(connection)
        keys = keys_of(connection, self._listing, self._newest, self._last, self._size)
        return [*zip(keys, read_some(connection, [row for _, row in keys]), strict=True)] if keys else []


class _ThreadIds(AsyncIterator[str]):
    """The conversations that there were at the first step."""

    def __init__(self, engine: "_Engine") -> None:
        self._engine = engine
        self._left: deque[str] | None = None
        self._removals = 0

    async def __anext__(self) -> str:
        if self._left is None or self._removals != self._engine.removals():
            removals = self._engine.removals()
            left = None if self._left is None else packed([*self._left])
            look = partial(_column, _ALL_THREADS, ()) if left is None else partial(_column, _THREADS_THERE, (left,))
            self._left, self._removals = deque(await self._engine.look(look)), removals
        await keep_pace()
        if not self._left:
            raise StopAsyncIteration
        return self._left.popleft()


# The connections, and the threads that use them.


class _Reader:
    """A connection that reads, beside the one that writes."""

    def __init__(self, file: File) -> None:
        self.using: threading.RLock = threading.RLock()
        self._file = file
        self._opened: tuple[sqlite3.Connection, Identity] | None = None

    def is_open(self) -> bool:
        """Tell whether there is a connection."""
        return self._opened is not None

    def close(self) -> None:
        """Let go of the connection; the next call opens another one."""
        with self.using:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened[0].close()

    def do(self, calls: Sequence[Call[Any]]) -> None:
        """Do a lot of calls; gets among them are one statement."""
        gets = [call for call in calls if isinstance(call.work, Get)]
        with self.using:
            if gets and not self._get(gets):
                for call in gets:
                    self._get([call])
            for call in calls:
                if not isinstance(call.work, Get):
                    try:
                        call.end(self._do(call.work))
                    except Exception as exc:
                        call.error = exc

    def _get(self, calls: Sequence[Call[Any]]) -> bool:
        """Do gets together; tell whether each of them is done, where one that fails fails alone."""
        try:
            found = self._do(partial(read, places=[call.work.place for call in calls]))
        except Exception as exc:
            if len(calls) == 1:
                calls[0].error = exc
            return len(calls) == 1
        for call, result in zip(calls, found, strict=True):
            call.end(result)
        return True

    def _do(self, look: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            if self._opened is None:
                self._opened = self._file.open(to_write=False)
            connection, identity = self._opened
            if not self._file.is_there(identity):
                raise self._file.gone()
            return look(connection)
        except (sqlite3.Error, OSError) as exc:
            self.close()  # the file may be another one next time
            raise error_of(exc, self._file) from exc


class _Engine(Swept):
    """What a store keeps between its calls. It does not know the store, which may be dropped.

    Attributes:
        file: The file.
        leases: Those that somebody has, by fence.
    """

    def __init__(self, file: File) -> None:
        super().__init__()
        self.file: File = file
        self.leases: WeakValueDictionary[int, _FileLease] = WeakValueDictionary()
        self._writer = Writer(file)
        self._readers = [] if file.path is None else [_Reader(file), _Reader(file)]
        self._sides: tuple[Writer | _Reader, ...] = (self._writer, *self._readers)
        self._commits = Worker(self._do, self._writer.close, self._pause, "async_saver SQLite commits")
        reads = [Worker(one.do, one.close, lambda: None, "async_saver SQLite reads") for one in self._readers]
        self._gets, self._looks = reads or (self._commits, self._commits)
        self._workers = [self._commits, *reads]
        self._renewed = time.monotonic()
        self._noted = time.monotonic()
        with guard:
            _engines.add(self)

    async def write(self, work: Any) -> Any:
        """Have something done in a transaction."""
        return await self._commits.call(work)

    async def write_surely(self, work: Any, otherwise: Any = None) -> Any:
        """Have something done so, also if the caller is cancelled."""
        return await self._commits.call_surely(work, otherwise)

    async def between(self, work: Callable[[Writer], _T]) -> _T:
        """Have something done between two transactions."""
        return cast(_T, await self._commits.call(Apart(work)))

    async def get(self, place: Place) -> StoredCheckpoint | None:
        """Return a checkpoint."""
        return cast("StoredCheckpoint | None", await self._gets.call(Get(place)))

    async def look(self, look: Callable[[sqlite3.Connection], _T]) -> _T:
        """Have something read that may take longer."""
        return cast(_T, await self._looks.call(look if self._readers else _Looking(look)))

    def removals(self) -> int:
        """Return how many transactions have taken something away."""
        return self._writer.removals

    def is_open(self) -> bool:
        """Tell whether the file is open."""
        return self._writer.is_open()

    async def close(self) -> None:
        """Do what is called for, and close the connections."""
        if self.touched and self.is_open():
            await self.write(_NoteUses(self))
        for worker in reversed(self._workers):
            await worker.end()
        if not self.is_open():
            self.file.known = None

    def check(self) -> Sequence[str]:
        """Return what is wrong with the file."""
        if self.file.path is None:
            with self._writer.using:
                return edits.faults(self._writer.connection)
        connection, _ = self.file.open(to_write=False)
        try:
            return _in_one_moment(edits.faults, connection)
        finally:
            connection.close()

    # In the committer thread.

    def _do(self, calls: Sequence[Call[Any]]) -> None:
        if calls:
            self._writer.do(calls)
        now = time.monotonic()
        if self.leases and now >= self._renewed + _RENEW:
            self._do_quietly(self._renew)
            self._renewed = now
        if self.touched and calls and now >= self._noted + _TOUCH:
            self._do_quietly(_NoteUses(self))
            self._noted = now

    def _do_quietly(self, work: Callable[[Writer], object]) -> None:
        """Do what nobody waits for: if it fails, it is done next time."""
        self._writer.do([Call(work)])

    def _pause(self) -> float | None:
        return max(self._renewed + _RENEW - time.monotonic(), 0.0) if self.leases else None

    def _renew(self, writer: Writer) -> None:
        renewed = (time.monotonic() + _LASTS, this_process(), packed([*self.leases.keys()]))
        writer.connection.execute(_RENEW_ALL, renewed)

    # The ends of stores and processes.

    def abandon(self) -> None:
        """Have the threads end, as the store was dropped."""
        is_open = any(side.is_open() for side in self._sides)
        if self.leave() and is_open:
            warnings.warn(
                f"a SQLiteStore on {self.file.name()} was not closed; use `async with` or `with` on its saver, or "
                "await close()",
                ResourceWarning,
                stacklevel=2,
            )

    def leave(self) -> "list[threading.Thread]":
        """Have the threads end; return those that there are."""
        return [thread for worker in self._workers if (thread := worker.leave()) is not None]

    def before_fork(self) -> None:
        """Close the connections: SQLite's do not survive a fork, and a child must not even close them."""
        for one in self._sides:
            one.using.acquire()
            if self._readers:
                one.close()

    def after_fork(self, in_child: bool) -> None:
        """Let connections be opened again; in the child there are no threads."""
        if in_child:
            self.leases = WeakValueDictionary()
            for worker in self._workers:
                worker.forget()
        for one in self._sides:
            one.using.release()


class _NoteUses:
    """Notes in the file when conversations were read."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._uses: dict[str, float] = {}

    def __call__(self, writer: Writer) -> None:
        self._uses = self._engine.touched.copy()
        uses = {"uses": packed([*self._uses.items()]), "lifetime": self._engine.lifetime}
        writer.connection.execute(_USE, uses)

    def committed(self, result: object) -> None:
        """Forget what is noted now."""
        self._engine.forget_uses(self._uses)


class _Looking:
    """Something that is read by the connection that writes, where there is no other."""

    def __init__(self, look: Callable[[sqlite3.Connection], Any]) -> None:
        self._look = look

    def __call__(self, writer: Writer) -> Any:
        return self._look(writer.connection)


_engines: WeakSet[_Engine] = WeakSet()
_forking: list[_Engine] = []


_fork = threading.RLock()
"""Held by a thread that forks: another one that does so at the same time comes after it."""


def _before_fork() -> None:
    _fork.acquire()
    with guard:
        _forking[:] = [*_engines]
    for engine in _forking:
        engine.before_fork()


def _after_fork(in_child: bool) -> None:
    for engine in _forking:
        engine.after_fork(in_child)
    _forking.clear()
    _fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, in_child=False),
        after_in_child=partial(_after_fork, in_child=True),
    )


def _at_exit() -> None:
    for engine in [*_engines]:
        for thread in engine.leave():
            thread.join(_AT_EXIT)


atexit.register(_at_exit)
