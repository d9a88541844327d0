"""A plain model of what a saver holds, and trials that hold a saver to it while many calls run at once."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple, cast

from anyio import CancelScope, create_task_group
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint as yield_to_loop
from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple

from async_saver import AsyncSaver, Store, ThreadExistsError
from async_saver.records import StoredCheckpoint
from async_saver.stores.sqlite import SQLiteStore
from tests.build import all_of, checkpoint, config
from tests.stores import NewStore, settled, writes_of

Place = tuple[str, str]
"""`(checkpoint_ns, checkpoint_id)`."""


def run_of(checkpoint_id: str) -> str:
    """The run that stores a checkpoint and its writes; always the same, so that no run is ever overwritten."""
    return f"run {int(checkpoint_id) % 3}"


@dataclass
class Conversation:
    """One conversation, as plain values."""

    checkpoints: dict[Place, tuple[str | None, dict[str, str], int]] = field(default_factory=dict)  # parent, versions
    values: dict[tuple[str, str, str], int | None] = field(default_factory=dict)
    writes: dict[Place, dict[tuple[str, int], tuple[str, str, int]]] = field(default_factory=dict)

    def places(self) -> list[Place]:
        """Everything that is listed, newest first."""
        return sorted(self.checkpoints, key=lambda place: (place[1], place[0]), reverse=True)

    def read(self, place: Place) -> tuple[Any, ...] | None:
        """What reading a checkpoint returns."""
        if place not in self.checkpoints:
            return None
        parent, versions, step = self.checkpoints[place]
        values = {channel: self.values.get((place[0], channel, version)) for channel, version in versions.items()}
        writes = self.writes.get(place, {})
        return (
            place,
            {channel: no_scalar(value) for channel, value in values.items() if value is not None},
            step,
            parent,
            [writes[key] for key in sorted(writes)],
        )

    def keep(self, stays: Callable[[Place], bool], writes_stay: Callable[[Place], bool]) -> None:
        """Delete the checkpoints and writes that do not stay, and what is not needed any more."""
        self.checkpoints = {place: one for place, one in self.checkpoints.items() if stays(place)}
        needed = {(ns, *key) for (ns, _), (_, versions, _) in self.checkpoints.items() for key in versions.items()}
        self.values = {key: value for key, value in self.values.items() if key in needed}
        self.writes = {place: writes for place, writes in self.writes.items() if writes_stay(place)}


class Call(NamedTuple):
    """One call of a saver: a method's name without its a, and plain arguments."""

    name: str
    args: tuple[Any, ...]

    @property
    def thread_ids(self) -> Sequence[str]:
        """The conversations whose locks it takes; none where what is stored decides."""
        if self.name in ("put", "put_writes", "delete_thread"):
            return self.args[:1]
        if self.name == "copy_thread":
            return self.args
        return self.args[0] if self.name == "prune" else ()


class Model:
    """What a saver should hold. Calls happen one after the other."""

    def __init__(self) -> None:
        self.conversations: dict[str, Conversation] = {}  # the one last written to last

    def apply(self, call: Call) -> None:
        """Do what a writing call does."""
        getattr(self, call.name)(*call.args)

    def _written(self, thread_id: str) -> Conversation:
        conversation = self.conversations.pop(thread_id, None) or Conversation()
        self.conversations[thread_id] = conversation
        return conversation

    def put(
        self,
        thread_id: str,
        place: Place,
        parent: str | None,
        versions: dict[str, str],
        new: dict[str, int | None],
        step: int,
    ) -> None:
        """Store a checkpoint; a new channel of value None has a version and no value."""
        conversation = self._written(thread_id)
        conversation.checkpoints[place] = (parent, versions, step)
        for channel, value in new.items():
            conversation.values[place[0], channel, versions[channel]] = value

    def put_writes(self, thread_id: str, place: Place, writes: Sequence[tuple[str, int]], task_id: str) -> None:
        """The first stays where its index is 0 or more, the last where it is negative."""
        stored = self._written(thread_id).writes.setdefault(place, {})
        for position, (channel, value) in enumerate(writes):
            idx = WRITES_IDX_MAP.get(channel, position)
            if idx < 0 or (task_id, idx) not in stored:
                stored[task_id, idx] = (task_id, channel, value)

    def delete_thread(self, thread_id: str) -> None:
        """All of it."""
        self.conversations.pop(thread_id, None)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Checkpoints and writes; runs belong to checkpoint ids here, so a checkpoint's writes go with it."""
        for conversation in self.conversations.values():
            places = [*conversation.checkpoints, *conversation.writes]
            touched = {ns for ns, checkpoint_id in places if run_of(checkpoint_id) in run_ids}
            kept = {place for place in places if run_of(place[1]) not in run_ids}
            # In a namespace that the runs did not touch, nothing is freed.
            values = {key: value for key, value in conversation.values.items() if key[0] not in touched}
            conversation.keep(kept.__contains__, kept.__contains__)
            conversation.values |= values
        self._drop_empty()

    def prune(self, thread_ids: Sequence[str], strategy: str) -> None:
        """Keep the latest of each namespace, its writes, and writes for what is newer and not there yet."""
        for thread_id in thread_ids:
            if strategy == "delete":
                self.conversations.pop(thread_id, None)
            elif thread_id in self.conversations:
                conversation = self.conversations[thread_id]
                latest: dict[str, str] = {}
                for ns, checkpoint_id in sorted(conversation.checkpoints):
                    latest[ns] = checkpoint_id
                stored = set(conversation.checkpoints)
                conversation.keep(
                    lambda place, latest=latest: latest[place[0]] == place[1],  # type: ignore[misc]
                    lambda place, latest=latest, stored=stored: (  # type: ignore[misc]
                        place[1] == latest.get(place[0])
                        or (place not in stored and place[1] > latest.get(place[0], ""))
                    ),
                )
        self._drop_empty()

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """To where nothing is."""
        assert target_thread_id not in self.conversations
        if (source := self.conversations.get(source_thread_id)) is not None:
            self.conversations[target_thread_id] = Conversation(
                source.checkpoints.copy(),
                source.values.copy(),
                {place: writes.copy() for place, writes in source.writes.items()},
            )

    def _drop_empty(self) -> None:
        for thread_id, conversation in [*self.conversations.items()]:
            if not conversation.checkpoints and not conversation.writes:
                del self.conversations[thread_id]

    def read(self, thread_id: str, ns: str, checkpoint_id: str | None) -> tuple[Any, ...] | None:
        """What `aget_tuple` returns."""
        conversation = self.conversations.get(thread_id, Conversation())
        if checkpoint_id is None:
            checkpoint_id = max((i for n, i in conversation.checkpoints if n == ns), default="")
        return conversation.read((ns, checkpoint_id))

    def look(self, call: Call) -> Any:
        """What a reading call returns, or of a copy, whether it is refused."""
        return call.args[1] in self.conversations if call.name == "copy_thread" else self.read(*call.args)

    def everything(self) -> Mapping[str, Any]:
        """All that a saver shows."""
        return {
            thread_id: ([one.read(place) for place in one.places()], one.writes)
            for thread_id, one in reversed(self.conversations.items())
        }


def no_scalar(value: Any) -> Any:
    """A value that is kept by itself: a number may be in the checkpoint, and then one that names it has to bring it."""
    return [value] if isinstance(value, int) else value


def plain(found: CheckpointTuple | None) -> tuple[Any, ...] | None:
    """A checkpoint as the model has it."""
    if found is None:
        return None
    configurable = found.config["configurable"]
    return (
        (configurable["checkpoint_ns"], configurable["checkpoint_id"]),
        found.checkpoint["channel_values"],
        found.metadata["step"],
        found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None,
        found.pending_writes,
    )


async def everything(saver: AsyncSaver) -> Mapping[str, Any]:
    """All that a saver shows, as the model has it."""
    writes: dict[str, Any] = defaultdict(dict)
    for (thread_id, *place), stored in writes_of(saver).items():
        read = {
            key: (task, channel, saver.serde.loads_typed(value)) for key, (task, channel, value, _) in stored.items()
        }
        writes[thread_id][tuple(place)] = read
    shown = {}
    for thread_id in await all_of(saver.athread_ids()):
        found: list[Any] = [plain(one) async for one in saver.alist({"configurable": {"thread_id": thread_id}})]
        ids = [one[0][1] for one in found]
        assert ids == sorted(ids, reverse=True)
        found.sort(key=lambda one: one[0][::-1], reverse=True)  # those of one id come in any order
        shown[thread_id] = (found, writes.pop(thread_id, {}))
    assert not writes
    return shown


@dataclass
class Task:
    """A call on its way, with the turns of the event loop that it gives away: before it begins, and in the store."""

    call: Call
    delays: tuple[int, int, int] = (0, 0, 0)
    cancel_after: int | None = None  # turns
    # How many calls had taken effect when this one looked at what is stored, at least and at most.
    looked_at: tuple[int, int] | None = None


_task: ContextVar[Task] = ContextVar("_task")


class Watched(Store):
    """Delays each call as its task says, and notes which have taken effect, in order.

    A store that takes calls in their order has them at once.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.log: list[Call | None] = []  # None is one that failed
        self._writing: list[str] = []
        self._under_way: list[int] = []  # where in the log lots begin that committer threads are at
        if self.in_order:
            self._log_commits(cast(Any, self)._engine)

    def _log_commits(self, engine: Any) -> None:
        """Have the committer threads note what they have done, in its order, also for callers who did not stay."""
        noted: dict[int, tuple[object, Call]] = {}
        noting = Lock()

        def note_writes(name: str, place: int) -> None:
            write = getattr(engine, name)

            def noted_write(*args: Any) -> Any:
                if (task := _task.get(None)) is not None:
                    noted[id(args[place])] = (args[place], task.call)
                return write(*args)

            setattr(engine, name, noted_write)

        def note_commits(worker: Any) -> None:
            do = worker._do

            def noted_do(lot: Sequence[Any]) -> None:
                calls = [(one, noted.pop(id(one.work))[1]) for one in lot if id(one.work) in noted]
                with noting:
                    begin = len(self.log)
                    self._under_way.append(begin)
                    self.log += [call for _, call in calls]
                do(lot)
                with noting:
                    for place, (one, _) in enumerate(calls, begin):
                        if one.error is not None:
                            self.log[place] = None
                    self._under_way.remove(begin)

            worker._do = noted_do

        if isinstance(self, SQLiteStore):
            note_writes("write", 0)
            note_commits(engine._commits)
        else:
            note_writes("write", 1)
            note_writes("_together", 1)
            for worker in engine._commits:
                note_commits(worker)

    def surely(self) -> int:
        """How many calls have taken effect, at least."""
        return min([*self._under_way, len(self.log)])

    def now(self) -> int:
        """How many calls may have taken effect."""
        return len(self.log)

    async def _write(self, write: Callable[..., Any], *args: Any) -> None:
        task = _task.get()
        if self.in_order:
            begun = self.surely()
            try:
                await write(*args)
            finally:
                task.looked_at = (begun, self.now())
            await turns(task.delays[2])
            return
        for thread_id in task.call.thread_ids:
            assert thread_id not in self._writing, f"two writes of conversation {thread_id} at once"
        self._writing += task.call.thread_ids
        try:
            await turns(task.delays[1])
            task.looked_at = (len(self.log), len(self.log))
            await write(*args)
            self.log.append(task.call)
            await turns(task.delays[2])
        finally:
            for thread_id in task.call.thread_ids:
                self._writing.remove(thread_id)

    async def put(self, *args: Any) -> None:
        await self._write(super().put, *args)

    async def put_writes(self, *args: Any) -> None:
        await self._write(super().put_writes, *args)

    async def delete(self, *args: Any) -> None:
        await self._write(super().delete, *args)

    async def delete_for_runs(self, *args: Any) -> None:
        await self._write(super().delete_for_runs, *args)

    async def keep_latest(self, *args: Any) -> None:
        await self._write(super().keep_latest, *args)

    async def copy(self, *args: Any) -> None:
        await self._write(super().copy, *args)

    async def get(self, *args: Any) -> StoredCheckpoint | None:
        task = _task.get(None)
        if task is not None and task.call.name == "get_tuple":
            await turns(task.delays[1])
            begun = self.surely()
            found = await super().get(*args)
            task.looked_at = (begun, self.now())
            return found
        return await super().get(*args)


async def turns(number: int) -> None:
    """Let the other tasks run, so often."""
    for _ in range(number):
        await yield_to_loop()


class Trial:
    """A saver under many calls at once, and the model that it is held to.

    Args:
        new_store: Makes the store.
        bugs: What may be planted in it, beneath `Watched`.
        saver: The class of the saver.
    """

    def __init__(self, new_store: NewStore, *bugs: type[Store], saver: type[AsyncSaver] = AsyncSaver) -> None:
        self.store: Any = new_store(Watched, *bugs)
        self.saver = saver(store=self.store)
        self.model = Model()
        self.cancelled = 0
        self._called: list[Call] = []
        self._reads: list[tuple[tuple[int, int], Call, Any]] = []
        self._lists: list[tuple[int, int, str, list[Any]]] = []

    async def run(self, batch: Sequence[Task]) -> None:
        """Make calls at once, each in a task of its own, and look whether the saver did what it should."""
        async with create_task_group() as tasks:
            for task in batch:
                tasks.start_soon(self.perform, task, tasks)
        await self.verify()

    async def perform(self, task: Task, tasks: TaskGroup) -> None:
        """Make a call, perhaps cancelled in the midst of it."""
        with CancelScope() as scope:
            if task.cancel_after is not None:
                tasks.start_soon(_cancel_after, scope, task.cancel_after)
            await turns(task.delays[0])
            token = _task.set(task)
            try:
                await self._call(task)
            except ThreadExistsError:
                assert task.looked_at is not None
                self._reads.append((task.looked_at, task.call, True))
            finally:
                _task.reset(token)
        self.cancelled += scope.cancelled_caught

    async def _call(self, task: Task) -> None:
        saver, call, args = self.saver, task.call, task.call.args
        self._called.append(call)
        if call.name == "put":
            thread_id, (ns, checkpoint_id), parent, versions, new, step = args
            values = {channel: no_scalar(value) for channel, value in new.items() if value is not None}
            made = checkpoint(checkpoint_id, values, channel_versions=versions)
            where = config(thread_id, parent, ns, run_id=run_of(checkpoint_id))
            await saver.aput(where, made, {"step": step}, {channel: versions[channel] for channel in new})
        elif call.name == "put_writes":
            thread_id, (ns, checkpoint_id), writes, task_id = args
            await saver.aput_writes(config(thread_id, checkpoint_id, ns, run_id=run_of(checkpoint_id)), writes, task_id)
        elif call.name == "get_tuple":
            found = plain(await saver.aget_tuple(config(args[0], args[2], args[1])))
            assert task.looked_at is not None
            self._reads.append((task.looked_at, call, found))
        elif call.name == "list":
            begun, found_all = self.store.surely(), []
            async for one in saver.alist({"configurable": {"thread_id": args[0]}}):
                found_all.append(plain(one))
                await turns(task.delays[1])
            self._lists.append((begun, self.store.now(), args[0], found_all))
        elif call.name == "prune":
            await saver.aprune(args[0], strategy=args[1])
        else:
            await getattr(saver, "a" + call.name)(*args)

    async def verify(self) -> None:
        """Look whether every read, and what is stored now, is what the model says after the same calls.

        The calls that took effect are the store's log; what was called and cancelled is in it or has done nothing.
        """
        await settled(self.store)
        self._check_order()
        seen: dict[int, list[dict[Place, Any]]] = defaultdict(list)
        unexplained: dict[int, Any] = dict.fromkeys(range(len(self._reads)), ...)
        for index in range(len(self.store.log) + 1):
            for number in [*unexplained]:
                (begun, ended), call, result = self._reads[number]
                if begun <= index <= ended:
                    expected = self.model.look(call)
                    if result == expected:
                        del unexplained[number]
                    else:
                        unexplained[number] = (call, index, result, expected)
            for number, (begun, ended, thread_id, _) in enumerate(self._lists):
                if begun <= index <= ended:
                    conversation = self.model.conversations.get(thread_id, Conversation())
                    seen[number].append({place: conversation.read(place) for place in conversation.places()})
            if index < len(self.store.log) and (taken := self.store.log[index]) is not None:
                self.model.apply(taken)
        assert not unexplained, [*unexplained.values()]
        for number, (_, _, _, found) in enumerate(self._lists):
            (_check_pages if self.store.in_order else _check_list)(found, seen[number])
        assert await everything(self.saver) == self.model.everything()
        self.store.check()
        assert len(self.saver._shared.locks) == 0
        for noted in (self.store.log, self._called, self._reads, self._lists):
            noted.clear()

    def _check_order(self) -> None:
        """Calls on one conversation take effect in the order in which they were made."""
        effective, called = defaultdict(list), defaultdict(list)
        for calls, by_thread in ((self.store.log, effective), (self._called, called)):
            for call in calls:
                if call is not None and len(call.thread_ids) == 1:
                    by_thread[call.thread_ids[0]].append(id(call))
        for thread_id, order in effective.items():
            there = set(order)
            assert order == [one for one in called[thread_id] if one in there], f"order in conversation {thread_id}"


def _check_list(found: list[Any], states: list[dict[Place, Any]]) -> None:
    """What a list gives was there when it began; each as it was at some time since; what it skips was deleted."""
    at_first, given = [*states[0]], [one[0] for one in found]
    assert given == [place for place in at_first if place in given]
    for one in found:
        assert any(state.get(one[0]) == one for state in states), one
    for place in at_first:
        assert place in given or any(place not in state for state in states), place


def _check_pages(found: list[Any], states: list[dict[Place, Any]]) -> None:
    """As `_check_list`, where the beginning is some time, and what is put below where the list is may appear."""
    given = [one[0] for one in found]
    assert given == sorted({*given}, key=lambda place: (place[1], -given.index(place)), reverse=True), given
    for one in found:
        assert any(state.get(one[0]) == one for state in states), one
    for place in states[0]:
        assert place in given or any(place not in state for state in states), place


async def _cancel_after(scope: CancelScope, number: int) -> None:
    await turns(number)
    scope.cancel()
