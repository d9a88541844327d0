"""Conversations from one saver to another, whichever two of LangGraph's savers they are."""

import importlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias, cast
from uuid import uuid4

import anyio
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    empty_checkpoint,
    writes_sort_key,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from async_saver.codec import config_of
from async_saver.errors import (
    AsyncSaverError,
    InvalidTypeError,
    InvalidValueError,
    ThreadExistsError,
    TransferError,
    shown,
)
from async_saver.records import Listing, text
from async_saver.saver import AsyncSaver

__all__ = ["CopyProgress", "CopySummary", "acopy_saver"]

_AT_ONCE = 16  # conversations

_Saver: TypeAlias = BaseCheckpointSaver[Any]
_Place: TypeAlias = tuple[str, str]  # of a conversation's checkpoint: checkpoint_ns and checkpoint_id
_Histories: TypeAlias = Mapping[str, DeltaChannelHistory]

_WRITES = "its pending writes"
# LangGraph's own savers, of which ids are read without values, and the paths that their tuples do not have.
_MEMORY = "langgraph.checkpoint.memory"
_SQLITE, _POSTGRES = "langgraph.checkpoint.sqlite.aio", "langgraph.checkpoint.postgres.aio"
_THREAD_IDS = "SELECT thread_id FROM checkpoints GROUP BY thread_id ORDER BY max(checkpoint_id)"
_PLACES = "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id FROM checkpoints WHERE thread_id = %s"
_PATHS = (
    "SELECT task_id, channel, task_path, idx FROM {} WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s"
)


class CopySummary(NamedTuple):
    """What a copy has done.

    Attributes:
        conversations: How many it has seen to, with those that were in the target already.
        checkpoints: How many it has put.
        skipped: How many were in the target already, the same.
        writes: How many pending writes those have that it has put.
    """

    conversations: int = 0
    checkpoints: int = 0
    skipped: int = 0
    writes: int = 0


class CopyProgress(NamedTuple):
    """What is told after each conversation.

    Attributes:
        thread_id: The conversation.
        of: How many there are to copy.
        done: What has been done until now, with this one.
    """

    thread_id: str
    of: int
    done: CopySummary


async def acopy_saver(
    source: BaseCheckpointSaver[Any],
    target: BaseCheckpointSaver[Any],
    *,
    thread_ids: Iterable[object] | None = None,
    on_progress: Callable[[CopyProgress], Awaitable[object] | None] | None = None,
) -> CopySummary:
    """Copy conversations from one saver to another, and read them back from there.

    Each is copied with all namespaces, checkpoints, parents, metadata and pending writes, in their order, and with what
    its `DeltaChannel`s are rebuilt from. Then all of it is read from both savers and compared. The source stays as it
    is. Either saver may be any of LangGraph's with async methods: an `AsyncSaver` over any store, an InMemorySaver, an
    AsyncSqliteSaver, an AsyncPostgresSaver, or another one.

    A copy that was cancelled or killed goes on when it is called again: what is in the target already, and the same, is
    only compared. A conversation that went on in the source since is brought up to date. One that is in the target and
    not the same is never mixed with the source's, and those that are only in the target stay as they are.

    Nobody should write to the conversations while they are copied. Writes whose checkpoint is not stored yet, as those
    of a run that is under way, no saver shows, and they are not copied. The types of what is stored have to be
    importable where this runs, as in the application.

    Args:
        source: Where the conversations are.
        target: Where they are copied to. Its tables have to be there, as its `setup` makes them.
        thread_ids: Which conversations, unknown ones are ignored; None for all of the source.
        on_progress: Called with a `CopyProgress` after each conversation; may be async.

    Returns:
        How much was copied.

    Raises:
        ThreadExistsError: The target has a conversation of this `thread_id` that is not the source's.
        TransferError: What the target gives back is not what the source gave; or reading or writing failed, for which
            see its `__cause__`. The others that are under way come to their end before.
        InvalidTypeError: A saver is none, or has no async methods; or `thread_ids` is one string, or has None in it.
        InvalidValueError: Source and target are the same saver.

    Example:
        ```python
        import asyncio

        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        from async_saver import AsyncSaver, acopy_saver

        async def main():
            async with (
                AsyncSqliteSaver.from_conn_string("checkpoints.db") as source,
                AsyncSaver.from_conn_string("sqlite:///agents.db") as target,
            ):
                print(await acopy_saver(source, target, on_progress=print))

        asyncio.run(main())
        ```
    """
    for saver in (source, target):
        if not isinstance(saver, BaseCheckpointSaver):
            raise InvalidTypeError(f"source and target are savers of LangGraph's, not of type {type(saver).__name__}")
    if source is target:
        raise InvalidValueError("source and target are the same saver; to copy within one use acopy_thread()")
    if thread_ids is None:
        chosen = await _thread_ids(source)
    elif isinstance(thread_ids, (str, bytes)) or not isinstance(thread_ids, Iterable):
        raise InvalidTypeError(f"thread_ids wants ids, not a value of type {type(thread_ids).__name__}; pass a list")
    else:
        given = [*thread_ids]
        if None in given:
            raise InvalidTypeError("None stands in thread_ids, where an id is wanted")
        chosen = [*dict.fromkeys(map(text, given))]
    copy = _Copy(source, target, len(chosen), on_progress)
    left = iter(chosen)
    unregister = register_serde_event_listener(_note_type)
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(min(_AT_ONCE, len(chosen))):
                tasks.start_soon(copy.work, left)
    finally:
        unregister()
    if copy.failed is not None:
        raise copy.failed
    return copy.done


# Which conversations and checkpoints there are: only ids are held.


async def _thread_ids(source: _Saver) -> "list[str]":
    """Return the source's conversations, the one last written to last: so the target has them in this order, too."""
    if _has_alist_of(source, _MEMORY):
        return [*cast(InMemorySaver, source).storage]
    if (rows := await _rows(source, _THREAD_IDS)) is not None:
        return [thread_id for (thread_id,) in rows]
    found: dict[str, None] = {}
    if isinstance(source, AsyncSaver):
        async for thread_id in source.athread_ids():
            found[thread_id] = None
    else:
        async for one in _listed(source, None):
            found[text(one.config.get("configurable", {})["thread_id"])] = None
    return [*found][::-1]


async def _places(saver: _Saver, thread_id: str) -> "dict[_Place, str | None]":
    """Return the checkpoints of a conversation, each with its parent's id."""
    places: dict[_Place, str | None] = {}
    if isinstance(saver, AsyncSaver):
        async for stored in saver._shared.store.list(Listing(thread_id)):
            places[stored.checkpoint_ns, stored.record.checkpoint_id] = stored.record.parent_id
    elif _has_alist_of(saver, _MEMORY):
        for checkpoint_ns, kept in cast(InMemorySaver, saver).storage.get(thread_id, {}).items():
            places.update({(checkpoint_ns, checkpoint_id): one[2] for checkpoint_id, one in kept.items()})
    elif (rows := await _rows(saver, _PLACES, thread_id)) is not None:
        return {(checkpoint_ns, checkpoint_id): parent_id for checkpoint_ns, checkpoint_id, parent_id in rows}
    else:
        async for found in _listed(saver, {"configurable": {"thread_id": thread_id}}):
            where = found.config.get("configurable", {})
            places[where.get("checkpoint_ns", ""), where["checkpoint_id"]] = _parent(found)
    return places


async def _listed(saver: _Saver, config: RunnableConfig | None) -> AsyncIterator[CheckpointTuple]:
    try:
        async for found in saver.alist(config):
            yield found
    except NotImplementedError as exc:
        raise _sync_only(saver) from exc


async def _rows(saver: _Saver, statement: str, *key: str) -> "list[tuple[Any, ...]] | None":
    """Return rows from the tables of LangGraph's own savers in databases; None for others.

    What they list has all values, and they hold much of a list at once, or sort it with all that is in it.
    """
    if _has_alist_of(saver, _SQLITE):
        await cast(Any, saver).setup()
        async with cast(Any, saver).conn.execute(statement.format("writes").replace("%s", "?"), key) as cursor:
            return [tuple(row) async for row in cursor]
    if _has_alist_of(saver, _POSTGRES):
        async with cast(Any, saver)._cursor() as cursor:
            await cursor.execute(statement.format("checkpoint_writes"), key)
            return [tuple(row.values()) async for row in cursor]
    return None


def _has_alist_of(saver: _Saver, module: str) -> bool:
    """Tell whether it lists as LangGraph's saver does, all that it holds; a subclass may have a list of its own."""
    return getattr(type(saver).alist, "__module__", "") == module


def _parent(found: CheckpointTuple) -> str | None:
    return (found.parent_config or {}).get("configurable", {}).get("checkpoint_id")


class _Copy:
    """A copy that is under way."""

    def __init__(
        self,
        source: _Saver,
        target: _Saver,
        of: int,
        on_progress: Callable[[CopyProgress], Awaitable[object] | None] | None,
    ) -> None:
        self.done = CopySummary()
        self.failed: Exception | None = None
        self._source, self._target, self._of, self._on_progress = source, target, of, on_progress

    async def work(self, left: Iterator[str]) -> None:
        """Copy one conversation after the other, of those that are left, until one fails."""
        _types.set(set())
        for thread_id in left:
            if self.failed is not None:  # instead of a cancellation, which not every saver takes well
                return
            try:
                copied = await _Conversation(self._source, self._target, thread_id).copy()
                if copied.conversations:
                    await self._tell(thread_id, copied)
            except Exception as exc:
                self.failed = self.failed or exc

    async def _tell(self, thread_id: str, copied: CopySummary) -> None:
        self.done = CopySummary(*(before + more for before, more in zip(self.done, copied, strict=True)))
        if self._on_progress is not None:
            told = self._on_progress(CopyProgress(thread_id, self._of, self.done))
            if inspect.isawaitable(told):
                await told


class _Conversation:
    """One that is copied."""

    def __init__(self, source: _Saver, target: _Saver, thread_id: str) -> None:
        self._source, self._target, self._thread_id = source, target, thread_id
        # What the target has, by checkpoint_ns, channel and version: a hash of its value, or None if that is empty.
        self._stored: dict[tuple[str, str, object], int | None] = {}
        serde = target.serde
        self._dumps = getattr(serde, "serde", serde).dumps_typed  # what encrypts writes nothing twice alike
        self._stand_ins: dict[_Place, dict[str, DeltaChannelHistory]] = {}

    async def copy(self) -> CopySummary:
        """Copy it, unless it is there, and compare."""
        try:
            return await self._copy()
        except AsyncSaverError:
            raise
        except Exception as exc:
            raise TransferError(
                f"copying thread_id {shown(self._thread_id)} has failed with a {type(exc).__name__}; see its cause, "
                "and call acopy_saver() again to go on"
            ) from exc

    async def _copy(self) -> CopySummary:
        places, there = await _places(self._source, self._thread_id), await _places(self._target, self._thread_id)
        if not places:
            return CopySummary()
        gone = {(ns, parent) for (ns, _), parent in places.items() if parent is not None} - places.keys()
        if there.keys() - places.keys() - gone:
            raise self._exists("checkpoints that the source has not")
        # All that is there is looked at before anything is put. Ids ascend: parents come first.
        late = [place for place in sorted(places) if place not in there or await self._is_late(place)]
        writes = 0
        for place in late:
            writes += await self._put(place)
        for place in sorted(places) if late else ():
            found = await self._read(place)
            if (difference := self._difference(place, found, await self._read_back(place))) is not None:
                raise self._torn(place, difference)
        heads = dict(sorted(places))
        for ns, checkpoint_id in sorted(places):
            parent = (ns, places[ns, checkpoint_id] or "")
            if parent in gone or heads[ns] == checkpoint_id:
                await self._compare_histories((ns, checkpoint_id), parent if parent in gone else None, parent in there)
        return CopySummary(1, len(late), len(places) - len(late), writes)

    # One checkpoint.

    async def _read(self, place: _Place) -> CheckpointTuple:
        found = await self._source.aget_tuple(config_of(self._thread_id, *place))
        self._refuse_types()
        if found is None:
            raise self._torn(place, "the source has it no more")
        return found

    async def _read_back(self, place: _Place) -> CheckpointTuple | None:
        found = await self._target.aget_tuple(config_of(self._thread_id, *place))
        self._refuse_types()
        return found

    async def _is_late(self, place: _Place) -> bool:
        """Tell whether a checkpoint that is in the target has got more writes in the source since."""
        found, there = await self._read(place), await self._read_back(place)
        self._note(place, found)
        difference = self._difference(place, found, there)
        if difference is None:
            return False
        ours, theirs = ([one[:2] for one in (tup and tup.pending_writes) or ()] for tup in (found, there))
        if difference != _WRITES or not all(one in ours for one in theirs):
            raise self._exists(f"another checkpoint {shown(place[1])}: {difference} differs")
        return True

    def _note(self, place: _Place, found: CheckpointTuple) -> None:
        values = found.checkpoint["channel_values"]
        for channel in self._new(place, found):
            key = (place[0], channel, found.checkpoint["channel_versions"][channel])
            self._stored[key] = self._hash(values[channel]) if channel in values else None

    def _new(self, place: _Place, found: CheckpointTuple) -> ChannelVersions:
        """Return the versions that the target has no value of yet, and is to have one, or to know that it is empty."""
        values, stored = found.checkpoint["channel_values"], self._stored
        return {
            channel: version
            for channel, version in found.checkpoint["channel_versions"].items()
            if (key := (place[0], channel, version)) not in stored or (channel in values and stored[key] is None)
        }

    async def _put(self, place: _Place) -> int:
        """Put a checkpoint, after its writes: so one that is there has all of them. Return how many they are."""
        found = await self._read(place)
        writes = found.pending_writes or []
        await self._put_writes(place, writes, await _known(self._source, self._thread_id, place, writes))
        config = self._under(place[0], _parent(found))
        await self._target.aput(config, found.checkpoint, found.metadata, self._new(place, found))
        self._note(place, found)
        return len(writes)

    def _under(self, checkpoint_ns: str, parent_id: str | None) -> RunnableConfig:
        where = {"thread_id": self._thread_id, "checkpoint_ns": checkpoint_ns}
        return {"configurable": where if parent_id is None else {**where, "checkpoint_id": parent_id}}

    async def _put_writes(
        self, place: _Place, writes: Sequence[PendingWrite], known: "list[tuple[str, str | None]] | None"
    ) -> None:
        for task_id, task_path, run_id, call in _calls(writes, known):
            config = config_of(self._thread_id, *place)
            if run_id is not None:
                config["metadata"] = {"run_id": run_id}
            await self._target.aput_writes(config, call, task_id, task_path)

    # Comparing.

    def _difference(self, place: _Place, found: CheckpointTuple, back: CheckpointTuple | None) -> str | None:
        """Tell in which part a checkpoint is not what it was, and nothing of what that holds."""
        if back is None:
            return "the checkpoint"
        if _parent(found) != _parent(back):
            return "its parent"
        # What LangGraph once had in there, its savers for PostgreSQL leave out.
        metadata = {key: value for key, value in found.metadata.items() if key in back.metadata or key != "writes"}
        if not self._same(_plain(metadata), _plain(back.metadata)):
            return "its metadata"
        ours, theirs = cast("dict[str, Any]", found.checkpoint), cast("dict[str, Any]", back.checkpoint)
        for key in sorted((ours.keys() | theirs.keys()) - {"channel_values"}):
            if not self._same(_plain(ours.get(key)), _plain(theirs.get(key))):
                return f"its {shown(key)}"
        values, others = ours["channel_values"], theirs["channel_values"]
        for channel in sorted(values.keys() | others.keys()):
            if channel in values and channel in others and self._same(values[channel], others[channel]):
                continue
            # A saver that keeps values by version shows what the version had first. AsyncSqliteSaver keeps them by
            # checkpoint: it does not repeat snapshots, and may have got a value when the next step had changed it.
            first = self._stored.get((place[0], channel, ours["channel_versions"].get(channel)))
            if first is None or channel not in others or self._hash(others[channel]) != first:
                return f"its channel {shown(channel)}"
        return None if self._same_writes(found.pending_writes, back.pending_writes) else _WRITES

    def _same_writes(self, ours: Sequence[PendingWrite] | None, theirs: Sequence[PendingWrite] | None) -> bool:
        ours, theirs = ours or (), theirs or ()
        return [one[:2] for one in ours] == [one[:2] for one in theirs] and all(
            self._same(one[2], other[2]) for one, other in zip(ours, theirs, strict=True)
        )

    def _same(self, one: object, other: object) -> bool:
        """Tell whether two values are written alike, or are equal: NaN is not, and a set may be written in two ways."""
        with suppress(Exception):  # what cannot be written may still be equal
            if self._dumps(one) == self._dumps(other):
                return True
        with suppress(Exception):  # such as that an array has no truth value
            return (one == other) is True
        return False

    def _hash(self, value: object) -> int | None:
        with suppress(Exception):
            return hash(self._dumps(value))
        return None

    # What `DeltaChannel`s are rebuilt from.

    async def _compare_histories(self, place: _Place, gone: _Place | None, is_there: bool) -> None:
        """Compare what a checkpoint's channels are rebuilt from, that which is out of sight included.

        Args:
            place: The checkpoint, the first or the last one of those in sight.
            gone: Its parent, if that is out of sight in the source.
            is_there: Whether the target shows that parent.
        """
        found = await self._read(place)
        counted, values = found.metadata.get("counters_since_delta_snapshot") or {}, found.checkpoint["channel_values"]
        channels = [name for name in found.checkpoint["channel_versions"] if name in counted or name not in values]
        where = config_of(self._thread_id, *place)
        histories = await self._source.aget_delta_channel_history(config=where, channels=channels)
        wanted = {
            name: one
            for name, one in histories.items()
            if name in counted or isinstance(one.get("seed"), _DeltaSnapshot)
        }
        difference = self._other_history(wanted, await self._histories(where, [*wanted]))
        if gone is not None and (difference is not None or (is_there and isinstance(self._target, AsyncSaver))):
            await self._put_stand_in(gone, wanted)
            difference = self._other_history(wanted, await self._histories(where, [*wanted]))
        if difference is not None:
            raise self._torn(place, f"what its channel {shown(difference)} is rebuilt from")

    async def _histories(self, where: RunnableConfig, channels: Sequence[str]) -> _Histories:
        return await self._target.aget_delta_channel_history(config=where, channels=channels)

    def _other_history(self, ours: _Histories, theirs: _Histories) -> str | None:
        for channel, one in ours.items():
            other = theirs[channel]
            same = self._same_writes(one["writes"], other["writes"]) and ("seed" in one) == ("seed" in other)
            if not same or not self._same(one.get("seed"), other.get("seed")):
                return channel
        return None

    async def _put_stand_in(self, place: _Place, histories: _Histories) -> None:
        """Put what a pruning or a deletion of runs has left of ancestors, out of sight, as one checkpoint.

        An `AsyncSaver` has it out of sight as well, once the run that made it is deleted. Others show it.
        """
        needed = self._stand_ins.setdefault(place, {})  # several may have the parent
        needed.update({name: one for name, one in histories.items() if one["writes"] or "seed" in one})
        made = empty_checkpoint()
        made["id"] = place[1]
        made["channel_versions"] = dict.fromkeys(needed, place[1])
        made["channel_values"] = {name: one["seed"] for name, one in needed.items() if "seed" in one}
        run_id = str(uuid4())
        counters: dict[str, tuple[int, int]] = dict.fromkeys(needed, (0, 0))
        metadata: CheckpointMetadata = {"source": "fork", "step": -1, "parents": {}, "run_id": run_id}
        metadata["counters_since_delta_snapshot"] = counters
        await self._target.aput(self._under(place[0], None), made, metadata, made["channel_versions"])
        await self._put_writes(place, [write for one in needed.values() for write in one["writes"]], None)
        if isinstance(self._target, AsyncSaver):
            await self._target.adelete_for_runs([run_id])

    # What goes wrong.

    def _exists(self, what: str) -> ThreadExistsError:
        return ThreadExistsError(
            f"cannot copy thread_id {shown(self._thread_id)}: the target has a conversation of this name, with {what}. "
            "Delete it there (adelete_thread) to have the source's, or leave it out with thread_ids="
        )

    def _torn(self, place: _Place, what: str) -> TransferError:
        return TransferError(
            f"thread_id {shown(self._thread_id)} did not arrive as it is in the source: {what} differs, at checkpoint "
            f"{shown(place[1])} of namespace {shown(place[0])}. If somebody writes to it, wait for the end of that and "
            "call acopy_saver() again; else the target cannot keep it: delete it there (adelete_thread)"
        )

    def _refuse_types(self) -> None:
        """Refuse what was read as something else than it was, as its type could not be had: it would be stored so."""
        noted = _types.get()
        torn = sorted(
            {f"{module}.{name}" for module, name, is_allowed in noted if not is_allowed or not _is_here(module, name)}
        )
        noted.clear()
        if torn:
            raise TransferError(
                f"thread_id {shown(self._thread_id)} has values that cannot be read as what they were here, of "
                f"{', '.join(torn)}. Call acopy_saver() where these can be imported, and with savers whose serde "
                "allows them (with_allowlist), as those of the application"
            )


def _sync_only(saver: _Saver) -> InvalidTypeError:
    return InvalidTypeError(
        f"a {type(saver).__name__} has no async methods; pass the async saver for the same data, such as an "
        "AsyncSqliteSaver or an AsyncPostgresSaver"
    )


# Pending writes. A tuple has them in the order of their paths, tasks and places, and tells the tasks only.


async def _known(
    saver: _Saver, thread_id: str, place: _Place, writes: Sequence[PendingWrite]
) -> "list[tuple[str, str | None]] | None":
    """Return the task_path and the run of each write, where a saver has more to show than its tuples; else None."""
    rows: list[tuple[str, str, str, str | None]] = []
    if isinstance(saver, AsyncSaver) and writes:
        stored = await saver._shared.store.get(thread_id, *place)
        rows = [(one.task_id, one.channel, one.task_path, one.run_id) for one in (stored.writes if stored else ())]
    elif _has_alist_of(saver, _MEMORY):
        kept = cast(InMemorySaver, saver).writes.get((thread_id, *place), {})
        keys = sorted(kept, key=lambda key: writes_sort_key(kept[key][3], *key))
        rows = [(kept[key][0], kept[key][1], kept[key][3], None) for key in keys]
    elif writes:
        with suppress(Exception):  # an old file that may only be read has no paths; they can be done without
            found = await _rows(saver, _PATHS, thread_id, *place) or []
            found.sort(key=lambda row: writes_sort_key(row[2], row[0], row[3]))
            rows = [(*row[:3], None) for row in found]
    return [row[2:] for row in rows] if [row[:2] for row in rows] == [one[:2] for one in writes] else None


def _calls(
    writes: Sequence[PendingWrite], known: "list[tuple[str, str | None]] | None"
) -> "Iterator[tuple[str, str, str | None, list[tuple[str, Any]]]]":
    """Return calls of `aput_writes` after which writes come back in this order: task, path, run, and what to write.

    Where their paths are not known, they get ones that sort them so. A task's place for a write is counted by call,
    and its first write to a place stays: so a later call for one begins with what that has written before.
    """
    calls: list[tuple[tuple[str, str, str | None, bool], list[tuple[str, Any]]]] = []
    regular: dict[str, list[tuple[str, Any]]] = {}
    path, last = 0, ("", -100)
    for number, (task_id, channel, value) in enumerate(writes):
        earlier = regular.setdefault(task_id, [])
        idx = WRITES_IDX_MAP.get(channel, len(earlier))
        path += (task_id, idx) <= last
        last = (task_id, idx)
        task_path, run_id = known[number] if known is not None else (f"{path:06}" if path else "", None)
        call = (task_id, task_path, run_id, idx < 0)
        if not calls or calls[-1][0] != call:
            calls.append((call, [] if idx < 0 else [*earlier]))
        calls[-1][1].append((channel, value))
        if idx >= 0:
            earlier.append((channel, value))
    return ((task_id, task_path, run_id, what) for (task_id, task_path, run_id, _), what in calls)


def _plain(value: Any) -> Any:
    """Return what is in JSON with lists for tuples, which is how it comes back from there."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


# Types that a serde could not make what it read of: it goes on with what it has in place of them.

_types: ContextVar["set[tuple[str, str, bool]]"] = ContextVar("async_saver_types")


def _note_type(event: SerdeEvent) -> None:
    if (noted := _types.get(None)) is not None:
        noted.add((event["module"], event["name"], event["kind"] == "msgpack_unregistered_allowed"))


def _is_here(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except Exception:  # whatever the module's own code comes to
        return False
