"""PostgresStore: conversations in a database, for the processes of many machines."""

import atexit
import os
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, cycle, islice
from threading import Thread
from typing import Any, NoReturn, TypeVar, cast
from weakref import WeakSet, finalize

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
from async_saver.stores.base import OnConflict, lease_of
from async_saver.stores.commits import Call, Worker, fail
from async_saver.stores.swept import Swept, SweptStore

try:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

    import async_saver.stores.postgres_edits as edits
    import async_saver.stores.postgres_limits as limits
    from async_saver.stores.postgres_keeper import Keeper
    from async_saver.stores.postgres_leases import (
        Acquire,
        Release,
        forget,
        guarded,
        held,
        interrupt,
        leave_queue,
        queue_up,
        renew,
    )
    from async_saver.stores.postgres_reads import Get, Place, delta_history, read, read_page, version_text
    from async_saver.stores.postgres_server import Cursor, Server, error_of, is_of_all, lock_of
    from async_saver.stores.postgres_writer import Change, Put, PutWrites, Writer, lock
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"a PostgresStore needs packages that are not installed ({_missing}); run: pip install 'async-saver[postgres]' "
        "'psycopg[binary]'",
        name=_missing.name,
    ) from _missing

__all__ = ["PostgresStore"]

_T = TypeVar("_T")

_POOL_SIZE = 4
_MOST = 256  # calls that are put in one transaction
_MOST_IDX = 2**31
_LONGEST_NAME = 63
_MOST_BYTES = 2500  # of ids that are one row's key, as an index takes a row of 2,704
_FIRST_PAGE, _LARGEST_PAGE = 4, 64  # checkpoints that are read at once, in a list
_MOMENT = 0.1  # seconds that what may be done later waits for a connection
_TOUCH = 5.0  # seconds between two times that reads are noted as use
_AT_EXIT = 5.0  # seconds that the end of the process waits for the end of the threads


class PostgresStore(SweptStore):
    """Keeps conversations in PostgreSQL, in the tables of langgraph-checkpoint-postgres.

    What `AsyncPostgresSaver` or `PostgresSaver` has written is read and goes on here, and the reverse. What this store
    needs beside their tables has names that begin with "async_saver_".

    A call that writes returns when its transaction is committed. Calls that come while one is being written are the
    next one, whichever conversations, event loops and worker threads they are from; several transactions are written
    at a time, of different conversations. What is read is read beside that, and gets that come together are one
    statement. All of it is done by the store's own worker threads: no event loop ever waits for the server.

    The latest checkpoint is the one of the greatest id as the database sorts text, as it is for those savers; of the
    ids that LangGraph makes that is the newest in every collation.

    Nothing is connected before the first use. `close` ends it; a store that is used again connects again.

    Args:
        where: How to connect: "postgresql://user:password@host:5432/database", or as `libpq` has it. Or a
            `ConnectionPool` of psycopg, which the store uses, and never opens or closes.
        pool_size: How many connections there are at most; 4 if none is given. Half of them write.
        schema: The schema that has the tables; it is made if it is not there. The first in the role's search path if
            none is given.
        pool_kwargs: What else the `ConnectionPool` takes, such as `max_idle` and `max_lifetime` in seconds, `timeout`,
            or `kwargs` for its connections.

    Raises:
        InvalidTypeError: `where` is something else, such as an `AsyncConnectionPool`.
        InvalidValueError: The connection string cannot be read, or an argument goes with none but that.

    Example:
        ```python
        import asyncio

        from async_saver import AsyncSaver
        from async_saver.stores.postgres import PostgresStore


        async def main() -> None:
            async with AsyncSaver(store=PostgresStore("postgresql://localhost/agents")) as saver:
                print(await saver.acount())


        asyncio.run(main())
        ```
    """

    in_order: bool = True  # each conversation has one queue, and one thread that takes from it
    as_json: bool = True

    def __init__(
        self,
        where: "str | ConnectionPool[Any]",
        *,
        pool_size: int | None = None,
        schema: str | None = None,
        pool_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(where, AsyncConnectionPool):
            raise InvalidTypeError(
                "an AsyncConnectionPool belongs to one event loop, and knows no trio; pass a connection string, or a "
                "psycopg_pool.ConnectionPool, which this store uses in worker threads of its own"
            )
        if not isinstance(where, (str, ConnectionPool)):
            raise InvalidTypeError(
                f"pass a connection string or a psycopg_pool.ConnectionPool, not one of type {type(where).__name__}"
            )
        if isinstance(pool_size, bool) or not isinstance(pool_size, (int, type(None))):
            raise InvalidTypeError(f"pool_size is a number of connections, not of type {type(pool_size).__name__}")
        if pool_size is not None and pool_size < 1:
            raise InvalidValueError(f"pool_size is a number of connections, 1 or more, not {shown(pool_size)}")
        if pool_kwargs is not None and not isinstance(pool_kwargs, Mapping):
            raise InvalidTypeError(f"pool_kwargs is a mapping or None, not of type {type(pool_kwargs).__name__}")
        if schema is not None and not isinstance(schema, str):
            raise InvalidTypeError(f"schema is a name or None, not of type {type(schema).__name__}")
        if not isinstance(where, str):
            if (pool_size, schema, pool_kwargs) != (None, None, None):
                raise InvalidValueError(
                    "pool_size, schema and pool_kwargs go with a connection string; a ConnectionPool has its own"
                )
            pool_size = where.max_size
        if schema is not None and not (schema and fits(schema) and len(schema.encode()) <= _LONGEST_NAME):
            raise InvalidValueError(f"schema is a name of at most {_LONGEST_NAME} bytes, not {shown(schema)}")
        pool_size = pool_size or _POOL_SIZE
        self._engine = _Engine(Server(where, pool_size, schema, pool_kwargs or {}), pool_size)
        super().__init__(self._engine)
        finalize(self, self._engine.abandon).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise InvalidTypeError(
            f"what a PostgresStore keeps is in {self._engine.server.name()}, and is not copied with it; copy "
            "conversations with acopy_thread(), or share the saver"
        )

    async def setup(self) -> None:
        """Make the tables that are not there, or bring them to their latest version; safe in many processes at once.

        Where they are there nothing is written, and so a role needs no right to make tables.

        Raises:
            StorageError: The server cannot be reached, or its tables are of a later version than is known here, or
                are missing and the role may not make them.
        """
        self._engine.server.look_again()
        await self._engine.read(_nothing)

    async def close(self) -> None:
        """Write what is called for, and close the connections; the store connects again when it is used again."""
        await self._engine.close()

    def _now(self) -> float:
        retention = self.retention
        if retention is not None and retention.clock is not time.monotonic:
            return super()._now()
        return self._engine.server.now()  # as the clocks of two machines may differ

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
            histories.update(await self._engine.read(partial(delta_history, place=place, channels=known)))
        return histories

    async def run_threads(self, run_ids: Sequence[str]) -> Sequence[str]:
        """See `Store.run_threads`."""
        return await self._engine.read(lambda cursor: self._engine.threads_of_runs(cursor, _fit_only(run_ids)))

    def thread_ids(self) -> AsyncIterator[str]:
        """See `Store.thread_ids`. Those that other savers have written come last."""
        return _ThreadIds(self._engine)

    async def count(self) -> int:
        """See `Store.count`."""
        return await self._engine.read(_count)

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
        _look_at_key(record.parent_id or "")
        _look_at(*(channel for channel, _ in record.versions), *record.delta_channels)
        _look_at(*(version for _, version in record.versions if isinstance(version, str)))
        _look_at_key(thread_id, checkpoint_ns, record.checkpoint_id)
        _look_at_key(record.run_id or "")
        for (channel, version), _ in blobs:
            _look_at_key(thread_id, checkpoint_ns, channel, version_text(version))
        lease, is_limited = lease_of(thread_id, leases), self.retention is not None
        self._engine.keeper.look_after(lease)
        put = Put(thread_id, checkpoint_ns, record, blobs, lease, on_conflict, self._now(), is_limited)
        conflict: bool = await self._engine.write(thread_id, put)
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
        for write in writes:
            _look_at(write.channel, write.task_path)
            _look_at_key(thread_id, checkpoint_ns, checkpoint_id, write.task_id)
            _look_at_key(write.run_id or "")
            if not -_MOST_IDX <= write.idx < _MOST_IDX:
                raise InvalidValueError(f"idx is a number of 32 bits, not {shown(write.idx)}")
        lease = lease_of(thread_id, leases)
        self._engine.keeper.look_after(lease)
        work = PutWrites(thread_id, checkpoint_ns, checkpoint_id, writes, lease, self._now())
        await self._engine.write(thread_id, work)

    async def delete(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.delete`."""
        await self._engine.change(_fit_only(thread_ids), leases, self._engine.delete)

    async def delete_for_runs(self, run_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.delete_for_runs`."""
        await self._engine.change_all(partial(self._engine.without_runs, run_ids=_fit_only(run_ids), leases=leases))

    async def keep_latest(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.keep_latest`."""
        await self._engine.change(_fit_only(thread_ids), leases, self._engine.keep_latest)

    async def copy(self, source_thread_id: str, target_thread_id: str, leases: Sequence[Lease] = ()) -> None:
        """See `Store.copy`."""
        _look_at_key(target_thread_id)
        if _are_fit(source_thread_id):
            self._touch(source_thread_id)
            await self._engine.copy(source_thread_id, target_thread_id, leases, self._now())

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
        """See `Store.acquire`. The store renews a lease by itself, for as long as somebody refers to it.

        Raises:
            SessionError: The tables for it are missing, and the role may not make them; the message has the statements.
        """
        _look_at_key(thread_id)
        keeper = self._engine.keeper
        former = None if keeper.is_of_parent(instead_of) else instead_of
        acquire = Acquire(thread_id, _as_text(owner), former, undo, on_interrupt, keeper.name)
        return await self._engine.acquire(acquire)

    async def renew(self, lease: Lease) -> bool:
        """See `Store.renew`."""
        return bool(await self._engine.of_leases(lease.thread_id, partial(renew, leases=[lease])))

    async def release(self, lease: Lease, *, delete: bool = False) -> bool:
        """See `Store.release`. What is left in a fork is still held by the parent, and goes on there."""
        return self._engine.keeper.is_of_parent(lease) or await self._engine.release(lease, delete)

    async def lease(self, thread_id: str) -> Lease | None:
        """See `Store.lease`."""
        if not _are_fit(thread_id):
            return None
        found: Lease | None = await self._engine.of_leases(thread_id, partial(held, thread_id=thread_id))
        return found

    async def interrupt(self, lease: Lease, by: str) -> None:
        """See `Store.interrupt`. Who asks waits in front of all others, the last one first."""
        engine = self._engine
        ask = partial(interrupt, server=engine.server, lease=lease, by=_as_text(by), place=engine.keeper.name)
        engine.keeper.place(lease.thread_id)
        await engine.of_leases(lease.thread_id, ask)

    async def wait(self, thread_id: str, seconds: float) -> None:
        """See `Store.wait`. Those who wait have their turns in the order in which they came."""
        engine = self._engine
        place, is_due = engine.keeper.place(thread_id)
        if is_due:
            await engine.of_leases(thread_id, partial(queue_up, thread_id=thread_id, place=engine.keeper.name))
        await engine.keeper.wait(place, seconds)

    async def leave_queue(self, thread_id: str) -> None:
        """See `Store.leave_queue`."""
        engine = self._engine
        engine.keeper.give_up(thread_id)
        await engine.of_leases(thread_id, partial(leave_queue, thread_id=thread_id, place=engine.keeper.name))

    # Limits.

    async def sweep(self) -> int:
        """See `Store.sweep`. At most 250 conversations go in one transaction.

        Raises:
            StorageError: The tables beside the official ones are missing.
        """
        engine, retention = self._engine, self.retention
        if retention is None:
            return 0
        await engine.note_uses()
        if engine.server.channel is not None:
            await engine.edit(forget)
        while await engine.edit(partial(limits.adopt, now=self._now())):
            await keep_pace()
        while await engine.edit(partial(limits.set_right, now=self._now(), since=self._since)):
            await keep_pace()
        evicted = 0
        if retention.ttl is not None:
            evicted += await self._sweep_unused(retention)
        if retention.max_threads is not None:
            evicted += await self._sweep_by("max_threads", {"limit": retention.max_threads})
            if await self.count() > retention.max_threads:
                engine.overruns += 1
        if retention.max_bytes is not None:
            evicted += await self._sweep_large(retention.max_bytes)
        if retention.keep_last is not None:
            await self._sweep_old(retention.keep_last)
        return evicted

    async def _sweep_unused(self, retention: Retention) -> int:
        engine = self._engine
        while callable(retention.ttl) and (unasked := await engine.read(limits.unasked)):
            said = {thread_id: retention.lifetime(thread_id) for thread_id in unasked}
            lifetimes = {thread_id: -1.0 if life is None else life for thread_id, life in said.items()}
            await engine.edit(partial(limits.set_lifetimes, lifetimes=lifetimes))
        return await self._sweep_by("ttl", {"now": self._now(), "lifetime": engine.lifetime})

    async def _sweep_by(self, reason: EvictionReason, values: Mapping[str, Any]) -> int:
        evicted = 0
        while gone := await self._engine.evict(reason, values, self._tells()):
            evicted += len(gone)
        return evicted

    async def _sweep_large(self, limit: int) -> int:
        evicted = 0
        excess = await self._engine.read(partial(limits.too_large, limit=limit, server=self._engine.server))
        going = excess.thread_ids
        for start in range(0, len(going), limits.MOST):
            values = {"ids": [*going[start : start + limits.MOST]], "until": excess.until}
            evicted += len(await self._engine.evict("max_bytes", values, self._tells()))
        self._engine.bytes = int(excess.total - excess.size)
        if evicted < len(going) or self._engine.bytes > limit:
            self._engine.overruns += 1  # they were used meanwhile, or sessions are on them
        return evicted

    async def _sweep_old(self, keep: int) -> None:
        for thread_id in await self._engine.read(partial(limits.too_long, keep=keep, server=self._engine.server)):
            await self._engine.trim(thread_id, keep)

    async def stats(self) -> StoreStats:
        """See `Store.stats`. Conversations are counted by an index; `bytes` are those that the last sweep counted."""
        engine, retention = self._engine, self.retention
        is_counted = retention is not None and retention.max_bytes is not None
        return StoreStats(
            await self.count(),
            bytes=engine.bytes if is_counted else None,
            evictions=dict(engine.evictions.items()) if retention is not None else {},
            pruned=engine.pruned,
            overruns=engine.overruns,
        )


def _are_fit(*ids: str) -> bool:
    return all(map(fits, ids))


def _fit_only(ids: Sequence[str]) -> "list[str]":
    """Return those that may be stored, each once; others are unknown."""
    return [one for one in dict.fromkeys(ids) if fits(one)]


def _look_at(*ids: str) -> None:
    for one in ids:
        if not fits(one):
            raise InvalidValueError(
                f"{shown(one)} has a NUL or a lone surrogate in it, which PostgreSQL cannot keep in an id or a name; "
                "leave such characters out"
            )


def _as_text(name: str) -> str:
    """Return a name as the database can keep it."""
    return name.encode("utf-8", "replace").decode().replace("\0", "?")


def _look_at_key(*ids: str) -> None:
    """Look at ids that are one row's key."""
    _look_at(*ids)
    if sum(map(len, ids)) * 4 > _MOST_BYTES and sum(len(one.encode()) for one in ids) > _MOST_BYTES:
        longest = max(ids, key=len)
        raise InvalidValueError(
            f"{shown(longest)}, with what it is stored under, is longer than the {_MOST_BYTES} bytes that an index of "
            "PostgreSQL takes; use shorter ids"
        )


# What is read.

_HOLDS = """
SELECT c.thread_id FROM checkpoints c WHERE c.thread_id = a.thread_id
UNION ALL
SELECT w.thread_id FROM checkpoint_writes w WHERE w.thread_id = a.thread_id
LIMIT 1
"""
# From one conversation to the next, by the index of each table.
_ALL = """
WITH RECURSIVE a (thread_id) AS (
    (SELECT thread_id FROM checkpoints ORDER BY thread_id LIMIT 1)
    UNION ALL
    SELECT (SELECT c.thread_id FROM checkpoints c WHERE c.thread_id > a.thread_id ORDER BY c.thread_id LIMIT 1)
    FROM a WHERE a.thread_id IS NOT NULL
),
b (thread_id) AS (
    (SELECT thread_id FROM checkpoint_writes ORDER BY thread_id LIMIT 1)
    UNION ALL
    SELECT (SELECT c.thread_id FROM checkpoint_writes c WHERE c.thread_id > b.thread_id ORDER BY c.thread_id LIMIT 1)
    FROM b WHERE b.thread_id IS NOT NULL
),
found (thread_id) AS (
    SELECT thread_id FROM a WHERE thread_id IS NOT NULL UNION SELECT thread_id FROM b WHERE thread_id IS NOT NULL
)
"""
_COUNT = f"{_ALL} SELECT count(*) FROM found"
_IDS_OWN = f"""
{_ALL} SELECT thread_id FROM found LEFT JOIN async_saver_threads USING (thread_id)
ORDER BY written DESC NULLS LAST, thread_id
"""
_IDS = f"{_ALL} SELECT thread_id FROM found ORDER BY thread_id"
_THERE = f"""
SELECT a.thread_id FROM unnest(%s::text[]) WITH ORDINALITY a (thread_id, n)
WHERE EXISTS ({_HOLDS.replace("LIMIT 1", "")}) ORDER BY n
"""


def _nothing(cursor: "Cursor") -> None:
    """Do nothing but what every use of a connection does."""


def _count(cursor: "Cursor") -> int:
    row = cursor.execute(_COUNT.encode()).fetchone()
    return 0 if row is None else int(row[0])


class _Found(AsyncIterator[StoredCheckpoint]):
    """The checkpoints of one listing, read in pages downward from the newest; nothing is held between two."""

    def __init__(self, engine: "_Engine", listing: Listing) -> None:
        self._engine = engine
        self._listing = listing
        self._page: deque[StoredCheckpoint] = deque()
        self._size = _FIRST_PAGE
        self._removals = 0
        self._last: StoredCheckpoint | None = None
        ids = (listing.thread_id, listing.checkpoint_ns, listing.checkpoint_id)
        self._has_ended = not _are_fit(*(one or "" for one in ids))

    async def __anext__(self) -> StoredCheckpoint:
        if self._page and self._removals != self._engine.removals:
            self._page.clear()  # something of it may have been deleted
            self._has_ended = False
        if not self._page and not self._has_ended:
            _look_at(self._listing.before or "")
            removals = self._engine.removals
            look = partial(read_page, listing=self._listing, after=self._last, number=self._size)
            page = await self._engine.read(look)
            self._removals, self._has_ended = removals, len(page) < self._size
            self._page.extend(page)
            self._size = min(2 * self._size, _LARGEST_PAGE)
        await keep_pace()
        if not self._page:
            raise StopAsyncIteration
        self._last = self._page.popleft()
        return self._last


class _ThreadIds(AsyncIterator[str]):
    """The conversations that there were at the first step."""

    def __init__(self, engine: "_Engine") -> None:
        self._engine = engine
        self._left: deque[str] | None = None
        self._removals = 0

    async def __anext__(self) -> str:
        if self._left is None or self._removals != self._engine.removals:
            removals = self._engine.removals
            left = None if self._left is None else [*self._left]
            self._left = deque(await self._engine.read(lambda cursor: self._engine.ids(cursor, left)))
            self._removals = removals
        await keep_pace()
        if not self._left:
            raise StopAsyncIteration
        return self._left.popleft()


# The threads, and what they do.


class _Engine(Swept):
    """What a store keeps between its calls. It does not know the store, which may be dropped.

    Attributes:
        server: Its connections.
        keeper: Of the leases that this process has.
        removals: How many calls have taken something away.
        bytes: How many a sweep has counted.
    """

    def __init__(self, server: "Server", pool_size: int) -> None:
        super().__init__()
        self.server: Server = server
        self.keeper: Keeper = Keeper(server)
        self.removals: int = 0
        self.bytes: int | None = None
        self._noted = time.monotonic()
        writer = Writer(server)
        commits = max(pool_size // 2, 1)
        looks = max(pool_size - commits - 1, 1)

        def worker(do: "Callable[[Sequence[Call[Any]]], None]", name: str, most: int = _MOST) -> Worker:
            pause = _never if do == writer.do else self._pause
            return Worker(do, _nothing_to_close, pause, f"async_saver PostgreSQL {name}", most)

        self._commits = [worker(writer.do, "commits") for _ in range(commits)]
        self._gets = worker(self._read, "gets")
        self._looks = cycle([worker(self._read, "reads") for _ in range(looks)])
        self._workers = [*self._commits, self._gets, *islice(self._looks, looks)]
        with guard:
            _engines.add(self)

    # For callers.

    def _of(self, thread_id: str) -> Worker:
        return self._commits[lock_of(thread_id) % len(self._commits)]

    async def write(self, thread_id: str, work: Any) -> Any:
        """Have something of one conversation be written."""
        return await self._of(thread_id).call(work)

    async def change(self, thread_ids: Sequence[str], leases: Sequence[Lease], do: "Callable[..., Any]") -> None:
        """Have conversations be changed in one step, in its turn in each of them."""
        if thread_ids:
            work = partial(do, thread_ids=thread_ids, leases=leases)
            change = Change(work, thread_ids, committed=self._removed)
            await self._together({self._of(one) for one in thread_ids}, change)

    async def change_all(self, do: "Callable[..., Any]") -> None:
        """Have something be changed of which it is not known in which conversations."""
        await self._together({*self._commits}, Change(do, committed=self._removed))

    def _removed(self, result: object) -> None:
        self.removals += 1

    async def edit(self, do: "Callable[[Cursor], _T]") -> _T:
        """Have something be changed that needs the tables beside the official ones, and has its turn in no queue."""

        def edit(cursor: "Cursor") -> _T:
            if not self.server.has_own:
                raise self.server.lacks_own()
            return do(cursor)

        return cast(_T, await self._commits[0].call(Change(edit)))

    async def evict(self, reason: EvictionReason, values: Mapping[str, Any], tells: bool) -> "list[str]":
        """Have conversations go that are beyond a limit; they are counted, and told, once they have."""

        def committed(gone: "list[str]") -> None:
            self.removals += 1
            self.went(gone, reason, tells)

        evict = limits.Evict(reason, values, self.server)
        return cast("list[str]", await self._commits[0].call(Change(evict.do, committed=committed)))

    async def trim(self, thread_id: str, keep: int) -> None:
        """Have all but some of the newest checkpoints go."""

        def committed(number: int) -> None:
            self.removals += 1
            self.pruned += number

        trim = partial(limits.trim, thread_id=thread_id, keep=keep, server=self.server)
        await self._of(thread_id).call(Change(trim, [thread_id], committed=committed))

    async def note_uses(self) -> None:
        """Have it be noted when conversations were read."""
        for uses in self._uses():
            await self.edit(partial(limits.note_uses, uses=uses, lifetime=self.lifetime))
            self.forget_uses(uses)

    async def copy(self, source: str, target: str, leases: Sequence[Lease], used: float) -> None:
        """Have a conversation be copied."""
        do = partial(self._copy, source=source, target=target, leases=leases, used=used)
        await self._together({self._of(source), self._of(target)}, Change(do, [source, target], is_safe=False))

    async def _together(self, workers: "set[Worker]", change: "Change") -> None:
        if len(workers) == 1:
            await workers.pop().call(change)
        else:
            await Worker.call_together([one for one in self._commits if one in workers], change)

    async def of_leases(self, thread_id: str, do: "Callable[[Cursor], _T]") -> _T:
        """Have something be done with a conversation's lease, by one statement, after all that was called for."""
        change = Change(partial(self._with_leases, do=do), is_alone=True)
        return cast(_T, await self._of(thread_id).call(change))

    async def acquire(self, work: "Acquire") -> Lease | None:
        """Have a lease be given; if the caller is cancelled, it is given back."""
        is_alone = work.is_alone
        do = partial(self._with_leases, do=work.alone if is_alone else work.in_place)
        locked = [] if is_alone else [work.thread_id]
        change = Change(do, locked, is_alone=is_alone, committed=self.keeper.add)
        back = Change(partial(self._take_back, work=work), committed=self._removed)
        return cast("Lease | None", await self._of(work.thread_id).call_surely(change, otherwise=back))

    async def release(self, lease: Lease, delete: bool) -> bool:
        """Have a lease be given back."""
        work = Release(self.server, lease, delete=delete)
        locked = [lease.thread_id] if delete else []
        change = Change(partial(self._with_leases, do=work), locked, is_alone=not delete, committed=self._removed)
        try:
            return cast(bool, await self._of(lease.thread_id).call_surely(change))
        finally:
            self.keeper.remove(lease)

    async def get(self, place: "Place") -> StoredCheckpoint | None:
        """Return a checkpoint."""
        return cast("StoredCheckpoint | None", await self._gets.call(Get(place)))

    async def read(self, look: "Callable[[Cursor], _T]") -> _T:
        """Have something be read."""
        return cast(_T, await next(self._looks).call(look))

    async def close(self) -> None:
        """Do what is called for, and close the connections."""
        try:
            if self.touched and self.server.has_own:
                await self.note_uses()
        finally:
            await self.keeper.end()
            for worker in self._workers:
                await worker.end()
            self.server.close()

    # In the worker threads.

    def _with_leases(self, cursor: "Cursor", do: "Callable[[Cursor], _T]") -> _T:
        if self.server.channel is None:
            raise self.server.lacks_leases()
        return do(cursor)

    def _take_back(self, cursor: "Cursor", work: "Acquire") -> None:
        if work.given is not None:
            self.keeper.remove(work.given)
            Release(self.server, work.given, delete=False)(cursor)

    def _guarded(
        self,
        cursor: "Cursor",
        thread_ids: Sequence[str],
        leases: Sequence[Lease],
        do: "Callable[[], object]",
        deletes: bool = False,
    ) -> Any:
        if self.server.channel is None:
            return do()
        return guarded(cursor, thread_ids, leases, do, deletes)

    def delete(self, cursor: "Cursor", thread_ids: Sequence[str], leases: Sequence[Lease]) -> Exception | None:
        """Delete conversations."""
        do = partial(edits.delete, cursor, thread_ids, self.server.has_own)
        return cast("Exception | None", self._guarded(cursor, thread_ids, leases, do, True))

    def keep_latest(self, cursor: "Cursor", thread_ids: Sequence[str], leases: Sequence[Lease]) -> Exception | None:
        """Delete all but the newest checkpoints."""

        def do() -> None:
            for thread_id in thread_ids:
                edits.keep_latest(cursor, thread_id, self.server.has_own)

        return cast("Exception | None", self._guarded(cursor, thread_ids, leases, do))

    def without_runs(self, cursor: "Cursor", run_ids: Sequence[str], leases: Sequence[Lease]) -> Exception | None:
        """Delete what runs have stored."""
        thread_ids = self.threads_of_runs(cursor, run_ids)
        lock(cursor, thread_ids)

        def do() -> None:
            for thread_id in thread_ids:
                edits.without_runs(cursor, thread_id, run_ids, self.server.has_own)

        return cast("Exception | None", self._guarded(cursor, thread_ids, leases, do))

    def threads_of_runs(self, cursor: "Cursor", run_ids: Sequence[str]) -> "list[str]":
        """Return the conversations in which runs have stored something."""
        return edits.threads_of_runs(cursor, run_ids, self.server.has_own)

    def _copy(
        self, cursor: "Cursor", source: str, target: str, leases: Sequence[Lease], used: float
    ) -> Exception | None:
        refused: list[Exception | None] = []
        do = partial(edits.copy, cursor, source, target, used, self.server.has_own)
        lost: Exception | None = self._guarded(cursor, [target], leases, lambda: refused.append(do()))
        return lost if lost is not None else refused[0]

    def ids(self, cursor: "Cursor", left: "list[str] | None") -> "list[str]":
        """Return all conversations, or those of some that are still there."""
        if left is not None:
            found = cursor.execute(_THERE.encode(), (left,))
        else:
            found = cursor.execute((_IDS_OWN if self.server.has_own else _IDS).encode())
        return [thread_id for (thread_id,) in found]

    def _read(self, calls: "Sequence[Call[Any]]") -> None:
        gets = [call for call in calls if isinstance(call.work, Get)]
        if gets and not self._get(gets):
            for call in gets:
                self._get([call])
        for call in calls:
            if not isinstance(call.work, Get):
                try:
                    call.end(self._look(call.work, call.since))
                except Exception as exc:
                    _fail([call], exc, self.server)
        if self.touched and time.monotonic() >= self._noted + _TOUCH:
            self._noted = time.monotonic()
            self._note_uses()

    def _pause(self) -> float | None:
        return max(self._noted + _TOUCH - time.monotonic(), 0.0) if self.touched else None

    def _note_uses(self) -> None:
        """Note uses for other processes; if that fails, it is done next time."""
        with suppress(Exception):
            for uses in self._uses() if self.server.has_own else ():
                with self.server.transaction(time.monotonic() + _MOMENT) as cursor:
                    limits.note_uses(cursor, uses, self.lifetime)
                self.forget_uses(uses)

    def _uses(self) -> "Iterator[dict[str, float]]":
        """Iterate over the uses that there are now, as many at a time as one transaction is about."""
        uses = iter(self.touched.copy().items())
        while some := dict(islice(uses, limits.MOST)):
            yield some

    def _get(self, calls: "Sequence[Call[Any]]") -> bool:
        """Do gets together; tell whether that is what they come to, or each should be done by itself."""
        try:
            found = self._look(lambda cursor: read(cursor, [call.work.place for call in calls]), calls[0].since)
        except Exception as exc:
            if len(calls) > 1 and not is_of_all(exc):
                return False
            _fail(calls, exc, self.server)
            return True
        for call, result in zip(calls, found, strict=True):
            call.end(result)
        return True

    def _look(self, look: "Callable[[Cursor], _T]", since: float) -> _T:
        """Read something; again, by another connection, if one was lost."""
        until = self.server.until(since)
        for number in count(1):
            try:
                with self.server.cursor(until) as cursor:
                    return look(cursor)
            except Exception as exc:
                if not self.server.is_worth_another(exc, until, number):
                    raise
        raise AssertionError("a loop has ended that does not")

    # The ends of stores and processes.

    def abandon(self) -> None:
        """Have the threads end, as the store was dropped."""
        threads = self.leave()
        if threads or self.server.is_open():
            # Not here, as this may be a thread of the pool's own, which cannot wait for itself.
            with suppress(RuntimeError):  # the interpreter ends, and starts no more threads
                Thread(target=_close_after, args=(threads, self.server), daemon=True).start()
            warnings.warn(
                f"a PostgresStore on {self.server.name()} was not closed; use `async with` or `with` on its saver, or "
                "await close()",
                ResourceWarning,
                stacklevel=2,
            )

    def leave(self) -> "list[Thread]":
        """Have the threads end; return those that there are."""
        keepers = [self.keeper.leave()]
        return [thread for thread in (*keepers, *(worker.leave() for worker in self._workers)) if thread is not None]

    def forget(self) -> None:
        """Begin anew in a fork, where there are no threads, and the connections are the parent's."""
        self.server.forget()
        self.keeper.forget()
        for worker in self._workers:
            worker.forget()


def _close_after(threads: "Sequence[Thread]", server: "Server") -> None:
    for thread in threads:
        thread.join()
    server.close()


def _never() -> None:
    """There is nothing to do between calls."""


def _nothing_to_close() -> None:
    """The connections are the pool's."""


def _fail(calls: "Sequence[Call[Any]]", exc: Exception, server: "Server") -> None:
    fail(calls, error_of(exc, server))


_engines: WeakSet[_Engine] = WeakSet()


def _after_fork() -> None:
    for engine in [*_engines]:
        engine.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _at_exit() -> None:
    threads = [thread for engine in [*_engines] for thread in engine.leave()]
    until = time.monotonic() + _AT_EXIT
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    for engine in [*_engines]:
        engine.server.close()


atexit.register(_at_exit)
