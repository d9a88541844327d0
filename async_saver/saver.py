"""AsyncSaver: LangGraph's configs in, checkpoint tuples out."""

import copy
import inspect
import logging
import os
import random
import re
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeAlias, TypeVar, cast
from urllib.parse import parse_qsl, unquote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from typing_extensions import Self

from async_saver.bridge import await_elsewhere, bridge
from async_saver.codec import Decoder, config_of, encode_checkpoint, encode_writes
from async_saver.compat import NOT_ASSIGNED, Blobs, Files, Storage, Writes
from async_saver.conflicts import has_to_follow, tell
from async_saver.errors import ConfigError, InvalidTypeError, InvalidValueError, shown
from async_saver.guard import guard, refuse_inside
from async_saver.locks import ThreadLocks
from async_saver.pace import Slices, at_once, in_turns, is_due, keep_pace
from async_saver.records import (
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Listing,
    Stats,
    StoredCheckpoint,
    WriteRecord,
    text,
)
from async_saver.retention import EvictionReason, Retention
from async_saver.serde import FastJsonPlusSerializer
from async_saver.session import MultitaskStrategy, Session, in_session, sessions_of
from async_saver.stores.base import OnConflict, Store
from async_saver.stores.limits import take_stand
from async_saver.stores.memory import MemoryStore

__all__ = ["AsyncSaver"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_NOT_TOLD = "on_evict failed for thread_id %s, which had gone by %s"

_Put: TypeAlias = "tuple[str, str, CheckpointRecord, Sequence[tuple[ChannelVersion, Blob]], OnConflict | None]"


class AsyncSaver(
    BaseCheckpointSaver[str], AbstractContextManager["AsyncSaver"], AbstractAsyncContextManager["AsyncSaver"]
):
    """A LangGraph checkpointer for programs that run many agents at once.

    The async methods are the implementation, on asyncio and on trio; the sync ones reach the store through a portal,
    from any worker thread and from code on an event loop. Calls that write to one conversation take effect in call
    order; different conversations never wait on each other.

    A saver may be made before there is an event loop, used from many loops and worker threads, and used without ever
    being entered. `with` and `async with` are for what it holds outside memory: they may be entered many times, from
    many tasks, and the last exit closes `stack`. A saver in memory can still be used after that.

    Sync methods serialise and read in their caller's worker thread, and only the store's work goes through the portal.
    In a subclass, each method is overridden by itself: an `aput` of its own does not change `put`, nor the reverse.

    Args:
        serde: What serialises values; a `FastJsonPlusSerializer` if none is given.
        store: Where checkpoints are kept; a `MemoryStore` of its own if none is given.
        retention: How much is kept, and for how long; without one, all of it for ever. It belongs to the store, and so
            holds for all savers that use it.
        factory: What makes the three mappings of InMemorySaver, such as a function that returns `PersistentDict`s.
            What they hold is loaded, and the last exit fills and closes them. Only without `store`.
        on_conflict: What to do where a run would store a checkpoint that does not follow its conversation's latest
            one, as another run has stored one meanwhile: "raise" a `ConflictError` and store nothing, "warn" on the
            logger `async_saver.conflicts` and store it, or None, and nobody looks. Forks, time travel and updates are
            no conflicts.

    Raises:
        InvalidValueError: Both `store` and `factory` are given, or `on_conflict` is unknown, or the store keeps to
            another `Retention` already.
        DeserializationError: A checkpoint that a factory's mapping holds cannot be read with `serde`.

    Example:
        ```python
        import asyncio

        from langgraph.graph import StateGraph

        from async_saver import AsyncSaver

        builder = StateGraph(int)
        builder.add_node("add_one", lambda x: x + 1)
        builder.set_entry_point("add_one")
        builder.set_finish_point("add_one")

        graph = builder.compile(checkpointer=AsyncSaver())
        print(asyncio.run(graph.ainvoke(1, {"configurable": {"thread_id": "thread-1"}})))  # 2
        ```
    """

    def __init__(
        self,
        *,
        serde: SerializerProtocol | None = None,
        store: Store | None = None,
        retention: Retention | None = None,
        factory: Callable[..., Any] = defaultdict,
        on_conflict: OnConflict | None = None,
    ) -> None:
        super().__init__(serde=serde if serde is not None else FastJsonPlusSerializer())
        if on_conflict not in (None, "raise", "warn"):
            raise InvalidValueError(f'unknown on_conflict {shown(on_conflict)}; pass "raise", "warn" or None')
        self._on_conflict: OnConflict | None = on_conflict
        if retention is not None and not isinstance(retention, Retention):
            raise InvalidTypeError(f"retention is a Retention or None, not of type {type(retention).__name__}")
        self._shared = _Shared(store if store is not None else MemoryStore())
        if factory is not defaultdict:
            if store is not None:
                raise InvalidValueError("pass either store= or factory=: what a factory makes is kept in memory")
            self._shared.load_files(factory, self._memory_store("factory"), self.serde)
        if retention is not None:
            self._shared.store.retain(retention)  # after what files hold, which comes in any order

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        serde: SerializerProtocol | None = None,
        retention: Retention | None = None,
        on_conflict: OnConflict | None = None,
        pool_size: int | None = None,
        schema: str | None = None,
        pool_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a saver for the store that a URL names.

        - "memory://": a `MemoryStore`.
        - "sqlite:///relative.db", "sqlite:////absolute/path.db": an `SQLiteStore` on this file. As parameters, behind
          "?" and joined by "&", it takes `synchronous` and `timeout`: "sqlite:///agents.db?synchronous=normal".
        - "sqlite://": one in memory.
        - "postgresql://user:password@host:5432/database", also with "postgres://" or "postgresql+psycopg://": a
          `PostgresStore` there. It takes the parameters that `libpq` takes.

        Args:
            conn_string: The URL. In its path, "%" begins an escape, as in all URLs.
            serde: As for the class itself.
            retention: Likewise.
            on_conflict: Likewise.
            pool_size: As for a `PostgresStore`, and only for one; 4 if none is given.
            schema: Likewise.
            pool_kwargs: Likewise.

        Raises:
            ModuleNotFoundError: A package is not installed that only this kind of store needs; it says which.
            InvalidValueError: The URL is not one that this release knows. The message repeats nothing of it that may be
                a password.
            InvalidTypeError: It is not text.
        """
        if not isinstance(conn_string, str):
            raise InvalidTypeError(f"a connection string is text, not of type {type(conn_string).__name__}")
        # A subclass may have a constructor of its own.
        given: dict[str, Any] = {"retention": retention, "on_conflict": on_conflict}
        options = {"pool_size": pool_size, "schema": schema, "pool_kwargs": pool_kwargs}
        options = {name: value for name, value in options.items() if value is not None}
        if re.match(r"postgres\w*(\+\w+)?://", conn_string):
            from async_saver.stores.postgres import PostgresStore

            given["store"] = PostgresStore(conn_string, **cast("dict[str, Any]", options))
        elif options:
            raise InvalidValueError(
                f"only a PostgresStore takes {' and '.join(options)}, and this URL names another store"
            )
        elif conn_string.startswith("sqlite:"):
            given["store"] = _sqlite_store(conn_string)
        elif conn_string != "memory://":
            raise InvalidValueError(_why_not(conn_string))
        return cls(serde=serde, **{name: value for name, value in given.items() if value is not None})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a saver with a copy of what this one holds, independent of it and of its factory's mappings."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        kept = {"serde": self.serde, "_shared": _Shared(copy.deepcopy(self._shared.store, memo))}
        for name, value in vars(self).items():
            setattr(twin, name, kept[name] if name in kept else copy.deepcopy(value, memo))
        return twin

    # Entering and leaving. Nothing of the caller's task is held between the two, so they may be different tasks.

    def __enter__(self) -> Self:
        self.setup()
        self._shared.enter()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        stack = self._shared.leave()
        if stack is None:
            return None
        try:
            bridge.call(self._shared.store.close)
        finally:
            suppressed = stack.__exit__(exc_type, exc_value, traceback)
        return suppressed

    async def __aenter__(self) -> Self:
        await self.asetup()
        self._shared.enter()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        stack = self._shared.leave()
        if stack is None:
            return None
        try:
            await self._shared.store.close()
        finally:
            suppressed = stack.__exit__(exc_type, exc_value, traceback)
        return suppressed

    async def asetup(self) -> None:
        """Make the store ready for use. In memory there is nothing to do; it may be called again at any time."""
        await keep_pace()
        await self._shared.store.setup()

    # What InMemorySaver shows beside its methods.

    @property
    def stack(self) -> ExitStack:
        """What the last exit closes; callbacks and contexts may be added."""
        return self._shared.stack

    @property
    def storage(self) -> Storage:
        """A live view: thread_id -> checkpoint_ns -> checkpoint_id -> (checkpoint, metadata, parent id).

        The first two are serialised. `del`, `pop` and `clear` delete conversations. As with `writes` and `blobs`, an
        AttributeError says so where another store than a `MemoryStore` is used.
        """
        return Storage(self._memory_store("storage"))

    @storage.setter
    def storage(self, value: object) -> NoReturn:
        raise InvalidTypeError(NOT_ASSIGNED.format("storage"))

    @property
    def writes(self) -> Writes:
        """A live view: (thread_id, checkpoint_ns, checkpoint_id) -> (task_id, idx) -> write.

        A write is (task_id, channel, serialised value, task_path).
        """
        return Writes(self._memory_store("writes"))

    @writes.setter
    def writes(self, value: object) -> NoReturn:
        raise InvalidTypeError(NOT_ASSIGNED.format("writes"))

    @property
    def blobs(self) -> Blobs:
        """A live view: (thread_id, checkpoint_ns, channel, version) -> serialised value."""
        return Blobs(self._memory_store("blobs"))

    @blobs.setter
    def blobs(self, value: object) -> NoReturn:
        raise InvalidTypeError(NOT_ASSIGNED.format("blobs"))

    def _memory_store(self, name: str) -> MemoryStore:
        if not isinstance(self._shared.store, MemoryStore):
            raise AttributeError(
                f"{name} shows what a saver holds in memory, and this one keeps its checkpoints in a "
                f"{type(self._shared.store).__name__}; use alist() or list()"
            )
        return self._shared.store

    # Reading. No lock is held: what a store hands back is of one moment and never changes.

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint with its values, metadata and pending writes.

        Args:
            config: `thread_id`, `checkpoint_ns` ("" if absent), and `checkpoint_id`: absent for the latest, which is
                the one of the greatest id.

        Returns:
            The checkpoint, its pending writes in `writes_sort_key` order; None if there is none.

        Raises:
            ConfigError: The config has no `thread_id`.
            DeserializationError: A stored value cannot be read with this saver's `serde`.
        """
        thread_id, checkpoint_ns, checkpoint_id = _place(config)
        if is_due():
            await keep_pace()
        store = self._shared.store
        if store.retention is not None and store.retention.keep_last is not None:
            take_stand(thread_id, checkpoint_ns or "")
        stored = await store.get(thread_id, checkpoint_ns or "", checkpoint_id)
        if store.untold:
            await self._shared.tell()
        if stored is None:
            return None
        return await in_turns(Decoder(self.serde).checkpoint_tuple(stored, config if checkpoint_id else None))

    def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Iterate over checkpoints, newest first over everything that is listed.

        What is listed is fixed when the iteration starts: checkpoints put later do not appear, those deleted
        meanwhile are skipped. Nothing is locked between two steps, so the loop's body may call the saver, and the
        iteration may be left at any point.

        Args:
            config: `thread_id`; `checkpoint_ns` for one namespace ("" is the root; absent for all); `checkpoint_id`
                for that one only. None for all conversations.
            filter: Only checkpoints whose metadata has these values at top level.
            before: Only checkpoints older than its `checkpoint_id`.
            limit: At most so many; none for 0 or less.

        Raises:
            ConfigError: The config has no `thread_id`.
            DeserializationError: A stored value cannot be read with this saver's `serde`.
        """
        return _Tuples(self._shared.store.list(_listing(config, before, filter)), self.serde, filter, limit)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what the values of `DeltaChannel`s at a checkpoint are rebuilt from.

        Args:
            config: As for `aget_tuple`.
            channels: The channels' names.

        Returns:
            For each channel, `writes`: the writes of the checkpoint's ancestors, oldest first; and `seed`: the value
            at the ancestor where they begin, absent if they begin at the root.

        Raises:
            ConfigError: The config has no `thread_id`.
            InvalidTypeError: `channels` is not a sequence of names, but a string, perhaps.
            DeserializationError: A stored value cannot be read with this saver's `serde`.
        """
        thread_id, checkpoint_ns, checkpoint_id = _place(config)
        names = _several(channels, "channels")
        await keep_pace()
        histories = await self._shared.store.delta_history(thread_id, checkpoint_ns or "", checkpoint_id, names)
        return await in_turns(Decoder(self.serde).histories(thread_id, histories))

    def athread_ids(self) -> AsyncIterator[str]:
        """Iterate over the `thread_id`s of all conversations, the one last written to first.

        Which they are is fixed when the iteration starts, as in `alist`.
        """
        return self._shared.store.thread_ids()

    async def acount(self) -> int:
        """Return how many conversations the store holds."""
        await keep_pace()
        number = await self._shared.store.count()
        if self._shared.store.untold:
            await self._shared.tell()
        return number

    # Writing. Everything is serialised before the first await, so later changes to the arguments change nothing;
    # the lock then lets the store's commits on one conversation through in the order of the calls. A yield to the
    # event loop comes last, as one between the two would let a later call overtake.

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.

        Args:
            config: `thread_id`, `checkpoint_ns` ("" if absent), and as `checkpoint_id` the parent's id, if it has one.
            checkpoint: The checkpoint.
            metadata: Its metadata; what the config says is added to it, as `get_checkpoint_metadata` does.
            new_versions: The channels whose values are new with this checkpoint, with their versions.

        Returns:
            The config that names the stored checkpoint.

        Raises:
            ConfigError: The config has no `thread_id`.
            SerializationError: A value cannot be serialised.
            ThreadEvictedError: The conversation was evicted while the run was under way that stores this.
            SessionLostError: The session in which it is called is over; see `session`. So with all that writes.
            ConflictError: Another run has stored a checkpoint meanwhile, and the saver's `on_conflict` is "raise".
        """
        put = self._encoded(config, checkpoint, metadata, new_versions)
        conflict = await self._put(*put)
        if self._shared.store.untold:
            await self._shared.tell()
        if conflict:
            self._shared.count_conflict()
            tell(put[0], put[4])
        return config_of(put[0], put[1], put[2].checkpoint_id)

    def _encoded(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> _Put:
        thread_id, checkpoint_ns, parent_id = _place(config)
        as_json = self._shared.store.as_json
        record, blobs = encode_checkpoint(self.serde, thread_id, config, checkpoint, metadata, new_versions, as_json)
        on_conflict = self._on_conflict
        if on_conflict is not None and not has_to_follow(thread_id, checkpoint_ns or "", parent_id, config, metadata):
            on_conflict = None
        return thread_id, checkpoint_ns or "", record, blobs, on_conflict

    async def _put(
        self,
        thread_id: str,
        checkpoint_ns: str,
        record: CheckpointRecord,
        blobs: Sequence[tuple[ChannelVersion, Blob]],
        on_conflict: OnConflict | None,
    ) -> bool:
        """Store a checkpoint; return whether it is in conflict."""
        shared = self._shared
        leases = shared.sessions.leases() if in_session() else ()
        put = shared.store.put
        conflict = await shared.call(thread_id, put, checkpoint_ns, record, blobs, leases, on_conflict)
        if is_due():
            await keep_pace()
        return conflict

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store writes that a task made on the way to the next checkpoint.

        A write that the task stored before stays as it was, but those to LangGraph's special channels (errors,
        interrupts, resume values) are replaced. The checkpoint itself may be stored later.

        Args:
            config: `thread_id`, `checkpoint_ns` ("" if absent) and `checkpoint_id` of the checkpoint.
            writes: Channels and values.
            task_id: The task.
            task_path: Its path; writes are read back in the order of `task_path`, `task_id` and place in `writes`
                (LangGraph's `idx`).

        Raises:
            ConfigError: The config has no `thread_id` or no `checkpoint_id`.
            SerializationError: A value cannot be serialised.
        """
        await self._put_writes(*self._encoded_writes(config, writes, task_id, task_path))
        if self._shared.store.untold:
            await self._shared.tell()

    def _encoded_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> tuple[str, str, str, Sequence[WriteRecord]]:
        thread_id, checkpoint_ns, checkpoint_id = _place(config)
        if checkpoint_id is None:
            raise ConfigError(
                f"the config for writes of thread_id {shown(thread_id)} names no checkpoint; pass the config that "
                'aput() or put() returned, or add "checkpoint_id" to its "configurable"'
            )
        records = encode_writes(self.serde, thread_id, config, writes, task_id, task_path)
        return thread_id, checkpoint_ns or "", checkpoint_id, records

    async def _put_writes(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, records: Sequence[WriteRecord]
    ) -> None:
        shared = self._shared
        leases = shared.sessions.leases() if in_session() else ()
        await shared.call(thread_id, shared.store.put_writes, checkpoint_ns, checkpoint_id, records, leases)
        if is_due():
            await keep_pace()

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a conversation; an unknown one is ignored.

        Raises:
            InvalidTypeError: The `thread_id` is None.
        """
        thread_id = _one(thread_id, "thread_id")
        async with self._shared.holding(thread_id):
            await self._shared.store.delete([thread_id], self._shared.sessions.leases())
        await keep_pace()

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints and the writes that these runs made; unknown runs are ignored.

        The checkpoints that stay read as before. Where a `DeltaChannel`'s value rests on what such a run stored, that
        is kept: deleted checkpoints out of sight, and its writes on checkpoints that stay where they are.

        Args:
            run_ids: Values of `run_id` in the metadata or the config that checkpoints and writes were stored with.

        Raises:
            InvalidTypeError: `run_ids` is not a sequence of ids, but a string, perhaps.
        """
        runs = _several(run_ids, "run_ids")
        thread_ids = await self._shared.store.run_threads(runs)
        async with self._shared.holding(*thread_ids):
            await self._shared.store.delete_for_runs(runs, self._shared.sessions.leases())
        await keep_pace()

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a whole conversation to a `thread_id` that is not in use; an unknown source is ignored.

        The two are independent afterwards; stored bytes are shared, not copied.

        Raises:
            ThreadExistsError: The target holds a conversation.
            InvalidTypeError: One of them is None.
        """
        source, target = _one(source_thread_id, "source_thread_id"), _one(target_thread_id, "target_thread_id")
        async with self._shared.holding(source, target):
            await self._shared.store.copy(source, target, self._shared.sessions.leases())
        await keep_pace()

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints of conversations, or all of them; unknown ones are ignored.

        Args:
            thread_ids: The conversations.
            strategy: "keep_latest" keeps, per namespace, the latest checkpoint with its writes, and for every
                `DeltaChannel` the ancestors that its value is rebuilt from. "delete" and "delete_all" keep nothing.

        Raises:
            InvalidTypeError: `thread_ids` is not a sequence of ids, but a string, perhaps.
            InvalidValueError: The strategy is unknown.
        """
        threads = _several(thread_ids, "thread_ids")
        if strategy not in ("keep_latest", "delete", "delete_all"):
            raise InvalidValueError(
                f'unknown prune strategy {shown(strategy)}; pass "keep_latest", "delete" or "delete_all"'
            )
        leases = self._shared.sessions.leases()
        async with self._shared.holding(*threads):
            if strategy == "keep_latest":
                await self._shared.store.keep_latest(threads, leases)
            else:
                await self._shared.store.delete(threads, leases)
        await keep_pace()

    # Limits and figures.

    async def asweep(self) -> int:
        """Let go now of what goes beyond the saver's `Retention`, as calls that write do; for savers that are idle.

        Returns:
            How many conversations went.
        """
        await keep_pace()
        evicted = await self._shared.store.sweep()
        await self._shared.tell()
        return evicted

    async def astats(self) -> Stats:
        """Return figures: what is held, what went, and what was waited for. They cost the same however much is held."""
        await keep_pace()
        stats = await self._shared.stats()
        if self._shared.store.untold:
            await self._shared.tell()
        return stats

    # Sessions.

    def session(
        self,
        thread_id: str,
        *,
        multitask_strategy: MultitaskStrategy = "enqueue",
        timeout: float | None = None,
        ephemeral: bool = False,
    ) -> Session:
        """Return a session: in `async with`, or `with`, no other session is on the conversation.

        LangGraph loads a state when a run begins and stores the next one later, so two runs at once on a conversation
        lose turns. Give each its session:

        ```python
        async with saver.session("thread-1") as session:
            await graph.ainvoke(inputs, session.config)
        ```

        A session keeps other sessions away, never calls that are made outside of any. Tasks that are started in it
        belong to it: a session that they enter on the same `thread_id` joins it. So it does not keep apart two runs
        that are gathered inside of one session.

        What is written in a session that is over, as another one has held the conversation since, is refused.

        Args:
            thread_id: The conversation; it need not exist.
            multitask_strategy: What to do where another session holds the conversation. "enqueue": wait, first come
                first served. "reject": raise an error. "interrupt": cancel what runs in the other session, let it
                unwind, keep what it stored, and go on. "rollback": likewise, but undo what it stored.
            timeout: How many seconds to wait at most; None for ever. With "interrupt" and "rollback", how long the
                other session may unwind, and still store something, before this one goes on in any case. (One that is
                held by sync code has no such time, as it cannot be cancelled.)
            ephemeral: Delete the conversation when the session ends, however it does.

        Raises:
            ThreadBusyError: When it is entered: another session holds the conversation, and the strategy is "reject",
                or the time is over. Or this is sync code whose waiting would hold up the other session.
            SessionInterruptedError: When it is left (or entered): another session has interrupted it. What came out
                of its body is the `__cause__`.
            SessionLostError: When it is left: it is over, and was not told.
            SessionError: It is entered twice, or left by another task than it was entered by.
            InvalidTypeError: The `thread_id` is None, or `timeout` is no number.
            InvalidValueError: The strategy is unknown, or `timeout` is negative.
        """
        sessions = self._shared.sessions
        return Session(
            self._shared.store, sessions, _one(thread_id, "thread_id"), multitask_strategy, timeout, ephemeral
        )

    async def ais_busy(self, thread_id: str) -> bool:
        """Tell whether a session holds a conversation.

        Raises:
            InvalidTypeError: The `thread_id` is None.
        """
        thread_id = _one(thread_id, "thread_id")
        await keep_pace()
        here = self._shared.sessions.is_busy(thread_id)
        return here if here is not None else await self._shared.store.lease(thread_id) is not None

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the version after `current`: a counter, and a random tail.

        Without the tail, two branches of a conversation would give two values the same version.
        """
        before = 0 if current is None else int(str(current).partition(".")[0])
        return f"{before + 1:032}.{random.random():016}"

    # The sync twins. Only the store's work goes through the portal. Values are serialised and read in the caller's
    # worker thread: on the way to the portal another one may change what was passed, and reading runs the users' own
    # types, which may be slow and should keep no other caller waiting. Each raises what its twin raises, and a
    # PortalError where it was called by code that itself runs on the portal.

    def setup(self) -> None:
        """Make the store ready for use; see `asetup`."""
        bridge.call(AsyncSaver.asetup, self)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint with its values, metadata and pending writes; see `aget_tuple`."""
        thread_id, checkpoint_ns, checkpoint_id = _place(config)
        retention = self._shared.store.retention
        if retention is not None and retention.keep_last is not None:
            take_stand(thread_id, checkpoint_ns or "")
        stored = bridge.call(self._shared.store.get, thread_id, checkpoint_ns or "", checkpoint_id)
        if self._shared.store.untold:
            self._shared.tell_from_sync_code()
        if stored is None:
            return None
        return at_once(Decoder(self.serde).checkpoint_tuple(stored, config if checkpoint_id else None))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Iterate over checkpoints, newest first; see `alist`."""
        found = self._shared.store.list(_listing(config, before, filter))
        return _Tuples(found, self.serde, filter, limit).from_sync_code()

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what the values of `DeltaChannel`s are rebuilt from; see `aget_delta_channel_history`."""
        thread_id, checkpoint_ns, checkpoint_id = _place(config)
        names = _several(channels, "channels")
        delta_history = self._shared.store.delta_history
        histories = bridge.call(delta_history, thread_id, checkpoint_ns or "", checkpoint_id, names)
        return at_once(Decoder(self.serde).histories(thread_id, histories))

    def thread_ids(self) -> Iterator[str]:
        """Iterate over the `thread_id`s of all conversations; see `athread_ids`."""
        found = self._shared.store.thread_ids()
        while page := bridge.call(_next_few, found):
            yield from page

    def count(self) -> int:
        """Return how many conversations the store holds; see `acount`."""
        number = bridge.call(self._shared.store.count)
        if self._shared.store.untold:
            self._shared.tell_from_sync_code()
        return number

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; see `aput`."""
        put = self._encoded(config, checkpoint, metadata, new_versions)
        conflict = bridge.call(self._put, *put)
        if self._shared.store.untold:
            self._shared.tell_from_sync_code()
        if conflict:
            self._shared.count_conflict()
            tell(put[0], put[4])
        return config_of(put[0], put[1], put[2].checkpoint_id)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store writes that a task made on the way to the next checkpoint; see `aput_writes`."""
        bridge.call(self._put_writes, *self._encoded_writes(config, writes, task_id, task_path))
        if self._shared.store.untold:
            self._shared.tell_from_sync_code()

    def delete_thread(self, thread_id: str) -> None:
        """Delete everything of a conversation; see `adelete_thread`."""
        bridge.call(AsyncSaver.adelete_thread, self, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete what these runs made; see `adelete_for_runs`."""
        bridge.call(AsyncSaver.adelete_for_runs, self, run_ids)

    def sweep(self) -> int:
        """Let go now of what goes beyond the saver's `Retention`; see `asweep`."""
        evicted = bridge.call(self._shared.store.sweep)
        if self._shared.store.untold:
            self._shared.tell_from_sync_code()
        return evicted

    def stats(self) -> Stats:
        """Return figures; see `astats`."""
        return self._shared.stats_from_sync_code()

    def is_busy(self, thread_id: str) -> bool:
        """Tell whether a session holds a conversation; see `ais_busy`."""
        return bridge.call(AsyncSaver.ais_busy, self, thread_id)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a whole conversation; see `acopy_thread`."""
        bridge.call(AsyncSaver.acopy_thread, self, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints of conversations, or all of them; see `aprune`."""
        bridge.call(AsyncSaver.aprune, self, thread_ids, strategy=strategy)


# Guards which savers are entered how often. One for the process, so that a fork has one to take; reentrant, as a
# factory's mapping may itself fork when it is entered.
_entering = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_entering.acquire, after_in_parent=_entering.release, after_in_child=_entering.release)


class _Shared:
    """What a saver and all its clones have in common: everything but the `serde`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.locks = ThreadLocks()
        self.sessions = sessions_of(store)
        self.stack = ExitStack()
        self.conflicts = 0
        self._entered = 0
        self._files: Files | None = None

        # Those who write to a conversation take turns, unless the store itself takes their calls in order.
        self.call = self.locks.call if not store.in_order else _call
        self.holding = self.locks.holding if not store.in_order else _holding_nothing

    def load_files(self, factory: Callable[..., Any], store: MemoryStore, serde: SerializerProtocol) -> None:
        """Make and load a factory's mappings, to be filled when `stack` is closed."""
        self._files = Files(factory, store, serde)
        self._push(self._files)
        _at_once(self._files.load())

    def _push(self, files: Files) -> None:
        self.stack.enter_context(files)
        files.on_stack = True

    async def stats(self) -> Stats:
        """Return the figures; see `AsyncSaver.astats`."""
        stats = await self.store.stats()
        sessions, waiting = self.sessions.count()
        return Stats(*stats, sessions, waiting, self.locks.waits, self.conflicts, bridge.calls)

    def stats_from_sync_code(self) -> Stats:
        """Return them to sync code."""
        stats = bridge.call(self.stats)
        if self.store.untold:
            self.tell_from_sync_code()
        return stats

    def count_conflict(self) -> None:
        """Count a checkpoint that was in conflict."""
        with guard:
            self.conflicts += 1

    async def tell(self) -> None:
        """Tell `Retention.on_evict` of what has gone."""
        for thread_id, reason in self.store.evictions():
            try:
                told = self._told(thread_id, reason)
                if told is not None:
                    await told
            except Exception:
                _log.exception(_NOT_TOLD, shown(thread_id), reason)
            if is_due():
                await keep_pace()

    def tell_from_sync_code(self) -> None:
        """Do so from sync code."""
        for thread_id, reason in self.store.evictions():
            try:
                told = self._told(thread_id, reason)
                if told is not None:
                    await_elsewhere(told)
            except Exception:
                _log.exception(_NOT_TOLD, shown(thread_id), reason)

    def _told(self, thread_id: str, reason: EvictionReason) -> Awaitable[object] | None:
        """Call `on_evict`; return what is to be awaited."""
        on_evict = self.store.retention.on_evict if self.store.retention is not None else None
        told = None if on_evict is None else on_evict(thread_id, reason)
        return told if told is not None and inspect.isawaitable(told) else None

    def enter(self) -> None:
        """Count an entry; the mappings that the last exit closed are opened again."""
        refuse_inside()
        with _entering:
            if self._files is not None and not self._files.on_stack:
                self._push(self._files)
            self._entered += 1

    def leave(self) -> ExitStack | None:
        """Count an exit; return what the last one has to close."""
        refuse_inside()
        with _entering:
            self._entered = max(self._entered - 1, 0)
            if self._entered:
                return None
            if self._files is not None:
                self._files.on_stack = False
            return self.stack.pop_all()


async def _call(
    thread_id: str, func: Callable[Concatenate[str, _P], Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    return await func(thread_id, *args, **kwargs)


def _holding_nothing(*thread_ids: str) -> AbstractAsyncContextManager[None]:
    return nullcontext()


class _Tuples(AsyncIterator[CheckpointTuple]):
    """What `alist` returns: not a generator, as one that is dropped half read has to be closed by its loop."""

    def __init__(
        self,
        found: AsyncIterator[StoredCheckpoint],
        serde: SerializerProtocol,
        filter: Mapping[str, Any] | None,
        limit: int | None,
    ) -> None:
        self._found = found
        self._serde = serde
        self._filter = filter or {}
        self._left = limit
        self._current: StoredCheckpoint | None = None  # found, and not given yet: a cancelled step loses nothing

    async def __anext__(self) -> CheckpointTuple:
        while self._left is None or self._left > 0:
            if self._current is None:
                self._current = await anext(self._found)
            try:
                wanted = await in_turns(self._if_wanted(self._current))
            except Exception:
                self._current = None
                raise
            self._current = None
            if wanted is not None:
                return wanted
        await keep_pace()
        raise StopAsyncIteration

    def from_sync_code(self) -> Iterator[CheckpointTuple]:
        """Iterate from sync code."""
        while self._left is None or self._left > 0:
            stored = bridge.call(_next, self._found)
            if stored is None:
                return
            if (wanted := at_once(self._if_wanted(stored))) is not None:
                yield wanted

    def _if_wanted(self, stored: StoredCheckpoint) -> Slices[CheckpointTuple | None]:
        decoder = Decoder(self._serde)
        metadata = yield from decoder.metadata(stored)
        if not all(wanted == metadata.get(key) for key, wanted in self._filter.items()):
            return None
        found = yield from decoder.checkpoint_tuple(stored, metadata=metadata)
        if self._left is not None:
            self._left -= 1
        return found

    async def aclose(self) -> None:
        """End the iteration; for code that closes what it iterates over, as generators want it."""
        self._left = 0


async def _next(found: AsyncIterator[_T]) -> _T | None:
    return await anext(found, None)


async def _next_few(found: AsyncIterator[_T]) -> "list[_T]":
    """Return as much as a crossing of the bridge is worth, less at the end, nothing after it."""
    few: list[_T] = []
    while len(few) < 100 and (item := await anext(found, None)) is not None:
        few.append(item)
    return few


def _at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of a coroutine that never waits, outside of any event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast(_T, end.value)
    coroutine.close()
    raise AssertionError("a coroutine waited that never does")


def _one(value: object, name: str) -> str:
    if value is None:
        raise InvalidTypeError(f"None stands in {name}, where an id or a name is wanted")
    return text(value)


def _several(ids: Iterable[object], name: str) -> "list[str]":
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InvalidTypeError(f"{name} wants a sequence, not a value of type {type(ids).__name__}; pass a list")
    return [_one(one, name) for one in ids]


def _listing(
    config: RunnableConfig | None, before: RunnableConfig | None, filter: Mapping[str, object] | None
) -> Listing:
    thread_id, checkpoint_ns, checkpoint_id = _place(config) if config else (None, None, None)
    bound = before.get("configurable", {}).get("checkpoint_id") if before else None
    return Listing(thread_id, checkpoint_ns, checkpoint_id, text(bound) if bound else None, filter or {})


def _place(config: RunnableConfig) -> tuple[str, str | None, str | None]:
    """Return the `thread_id`, `checkpoint_ns` and `checkpoint_id` of a config, the latter two None where absent."""
    configurable = (config or {}).get("configurable") or {}
    thread_id, checkpoint_ns = configurable.get("thread_id"), configurable.get("checkpoint_ns")
    checkpoint_id = configurable.get("checkpoint_id")
    if thread_id is None:
        raise ConfigError(
            "the config names no conversation (no thread_id); pass "
            'config={"configurable": {"thread_id": "some-id"}} to the graph or the saver'
        )
    return (
        text(thread_id),
        None if checkpoint_ns is None else text(checkpoint_ns),
        text(checkpoint_id) if checkpoint_id else None,
    )


def _sqlite_store(conn_string: str) -> Store:
    """Return the store of an "sqlite:" URL."""
    from async_saver.stores.sqlite import SQLiteStore  # which imports sqlite3

    where, _, query = conn_string.partition("?")
    scheme, _, path = where.partition("://")
    if scheme != "sqlite" or (path and not path.startswith("/")):
        raise InvalidValueError(
            "an SQLite URL has three slashes before a relative path, four before an absolute one, and no host; pass "
            "'sqlite:///agents.db', 'sqlite:////var/lib/agents.db', or 'sqlite://' for a database in memory"
        )
    path = unquote(path[1:])
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in ("synchronous", "timeout") or name in options:
            raise InvalidValueError(
                f"an SQLite URL takes the parameters synchronous and timeout, each once, and not {shown(name)}"
            )
        options[name] = value
    if "timeout" in options:
        try:
            options["timeout"] = float(options["timeout"])
        except ValueError:
            raise InvalidValueError(f"timeout is a number of seconds, not {shown(options['timeout'])}") from None
    return SQLiteStore(None if path in ("", ":memory:") else path, **options)


def _why_not(conn_string: str) -> str:
    """Return why `conn_string` names no store of this release, with nothing of it that may be secret."""
    if conn_string.startswith("memory://"):
        return "a saver in memory takes no path and no options; pass exactly 'memory://'"
    if conn_string.startswith("sqlite+"):
        return "a URL of SQLite names no driver; pass 'sqlite:///agents.db'"
    return (
        "a connection string is a URL, not a path or ':memory:', and this one names no store of this release; pass "
        "'sqlite:///agents.db' for a file, or 'memory://' for a saver in memory"
    )
