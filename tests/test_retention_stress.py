"""Retention under many tasks at once, held to what may be missing; and cut off at every line.

Every value says which version of which channel it is, and every id is stored once. So whatever reads back is whole or
not by itself; and what was acknowledged and is missing must have been evicted (and told so), deleted, or pruned.
"""

import gc
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Any, NamedTuple

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint as yield_to_loop
from langgraph.checkpoint.base import CheckpointTuple

from async_saver import (
    AsyncSaver,
    MemoryStore,
    Retention,
    SessionInterruptedError,
    SessionLostError,
    ThreadBusyError,
    ThreadEvictedError,
    pace,
)
from async_saver.bridge import bridge
from async_saver.guard import guard
from async_saver.session import MultitaskStrategy, Session
from async_saver.stores import bucket, history, memory
from async_saver.stores import limits as limits_module
from async_saver.stores.leases import HeldLease, Leases
from async_saver.stores.limits import Limits
from tests.build import all_of, checkpoint, config
from tests.model import turns
from tests.test_interrupts import _frozen, _guard_is_free, _lost, cut_at, run  # noqa: F401  (fixtures)

BACKENDS = ["asyncio", *(["trio"] if find_spec("trio") else [])]

_CHANNELS = "abcdef"
_TEXT = " ".join(map(str, range(2000)))  # what the values have in common, so that they share bytes
_KEEP = 4

_WIDE = Retention(keep_last=_KEEP)
_NARROW = Retention(ttl=15, max_threads=8, max_bytes=150_000, keep_last=_KEEP)


class Put(NamedTuple):
    """A checkpoint that somebody has tried to store; `since` is when the run began to read that it belongs to."""

    thread_id: str
    ns: str
    parent: str | None
    versions: dict[str, str]
    run_id: str
    since: int


def value(channel: str, version: object) -> str:
    """The one value of a channel's version."""
    return f"{channel} {version} {_TEXT[: int(str(version)) * 7919 % 5000]}"


_noted: ContextVar[set[str]] = ContextVar("_noted")


class Watched(MemoryStore):
    """Looks at each eviction whether a session or a call is on that conversation."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[Session, None] = {}  # those whose bodies run
        self.working: list[set[str]] = []
        self.wrong: list[str] = []

    async def _remake(self, *args: Any) -> None:
        note: set[str] = set()
        self.working.append(note)
        token = _noted.set(note)
        try:
            await super()._remake(*args)
        finally:
            _noted.reset(token)
            self.working[:] = [one for one in self.working if one is not note]

    def _made(self, which: Any, *others: Any) -> Any:
        if not (note := _noted.get()):
            note.update(["begun", *which()])
        return super()._made(which, *others)

    def _evict(self, limits: Limits, thread_id: str, reason: Any) -> None:
        if any(one.thread_id == thread_id and _holds(one) for one in [*self.sessions]):
            self.wrong.append(f"{thread_id} went by {reason} while a session was open on it")
        if any(thread_id in note for note in [*self.working]):
            self.wrong.append(f"{thread_id} went by {reason} while a call worked on it")
        super()._evict(limits, thread_id, reason)


def _holds(session: Session) -> bool:
    return isinstance(session.lease, HeldLease) and session.lease.is_held()


class Stress:
    """A saver under tasks that do everything at once, and what they know.

    Args:
        retention: The limits, without callbacks.
        seed: Of what is drawn.
        store: The store.
    """

    def __init__(self, retention: Retention, seed: int, store: Watched) -> None:
        self.now = 0.0
        self.told: list[str] = []
        self.retention = replace(retention, on_evict=self.hear, clock=lambda: self.now)
        self.store = store
        self.saver = AsyncSaver(store=store, retention=self.retention)
        self.seed = seed
        self.is_narrow = self.retention.max_threads is not None
        self.tried: dict[str, Put] = {}
        self.acknowledged: dict[str, int] = {}  # when the call began
        self.refused: dict[str, tuple[Put, int]] = {}
        self.written: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)  # by thread and checkpoint, by task
        self.lost: dict[str, int] = {}  # when something of a conversation or of a run may have gone last
        self.copies: list[str] = []
        self.seen: Counter[str] = Counter()
        self._ids = count(1)
        self._ticks = count(1)

    # What is told and known.

    def tick(self) -> int:
        """The time: the number of what happened."""
        return next(self._ticks)

    def hear(self, thread_id: str, reason: str) -> Awaitable[None] | None:
        """Be told of an eviction."""
        self.told.append(reason)
        self.lose(thread_id)
        if guard._is_owned() or threading.current_thread() in bridge._workers:  # type: ignore[attr-defined]
            self.store.wrong.append(f"{thread_id} was told of in the guard, or on the portal")
        return yield_to_loop() if len(self.told) % 3 == 0 else None

    def lose(self, *names: str) -> None:
        """Note of conversations or runs that what there was may have gone by now."""
        self.lost.update(dict.fromkeys(names, self.tick()))

    def look(self, found: CheckpointTuple | None, written: Collection[str] = ()) -> None:
        """Whatever reads back is whole, and has what was written before."""
        if found is None:
            self.seen["none"] += 1
            return
        one = found.checkpoint["id"]
        put, versions = self.tried[one], found.checkpoint["channel_versions"]
        assert one not in self.refused
        assert versions == put.versions
        assert found.checkpoint["channel_values"] == {channel: value(channel, at) for channel, at in versions.items()}
        assert found.config["configurable"]["checkpoint_ns"] == put.ns
        parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
        assert parent == put.parent
        writes = {task: (channel, what) for task, channel, what in found.pending_writes or []}
        assert all(what == ("w", value("w", one)) for what in writes.values())
        assert {*written} <= {*writes}
        self.seen["whole"] += 1

    # What tasks do.

    def next_put(self, draw: random.Random, thread_id: str, ns: str, on: str | None, since: int) -> str:
        """Draw a checkpoint upon another one: of its channels, a few are new."""
        one = f"{next(self._ids):06}"
        new = draw.sample(_CHANNELS, draw.randint(1, 2)) if on else _CHANNELS
        versions = self.tried[on].versions if on else {}
        versions = {**versions, **dict.fromkeys(new, one)}
        self.tried[one] = Put(thread_id, ns, on, versions, f"{thread_id[0]} {int(one) % 40}", since)
        return one

    def arguments(self, one: str) -> tuple[Any, ...]:
        """What to call `put` with."""
        put = self.tried[one]
        new = {channel: version for channel, version in put.versions.items() if version == one}
        made = checkpoint(one, {channel: value(channel, one) for channel in new}, channel_versions=put.versions)
        return config(put.thread_id, put.parent, put.ns, run_id=put.run_id), made, {"step": int(one)}, new

    @contextmanager
    def storing(self, one: str) -> Iterator[None]:
        """Note whether it was stored."""
        begun = self.tick()
        try:
            yield
        except ThreadEvictedError:
            self.refused[one] = (self.tried[one], begun)
            raise
        self.acknowledged[one] = begun

    async def go_on(self, draw: random.Random, thread_id: str) -> None:
        """Do what a run does."""
        ns, since = draw.choice(["", "", "child"]), self.tick()
        found = await self.saver.aget_tuple(config(thread_id, None, ns))
        self.look(found)
        on = found.checkpoint["id"] if found else None
        if found and draw.random() < 0.1:
            on = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
            older = await self.saver.aget_tuple(config(thread_id, on, ns)) if on else None
            self.look(older)
            on = on if older else found.checkpoint["id"]
            if not older:
                self.look(await self.saver.aget_tuple(config(thread_id, on, ns)))
        for _ in range(draw.randint(1, 4)):
            one = self.next_put(draw, thread_id, ns, on, since)
            with self.storing(one):
                await self.saver.aput(*self.arguments(one))
            on = one
            if draw.random() < 0.3:
                await self.write(draw, one)

    async def write(self, draw: random.Random, one: str) -> None:
        """Store a write."""
        put, task = self.tried[one], f"task {draw.random()}"
        before = [*self.written[put.thread_id, one]]
        where = config(put.thread_id, one, put.ns, run_id=put.run_id)
        await self.saver.aput_writes(where, [("w", value("w", one))], task)
        self.written[put.thread_id, one][task] = None
        self.look(await self.saver.aget_tuple(where), before)

    async def others(self, draw: random.Random, thread_id: str) -> None:
        """Do one of all the other things."""
        saver = self.saver
        kind = draw.randrange(12)
        if kind < 4:
            last = "~"
            async for one in saver.alist({"configurable": {"thread_id": thread_id}}, limit=draw.choice([2, None])):
                self.look(one)
                assert one.checkpoint["id"] < last
                last = one.checkpoint["id"]
        elif kind < 5:
            others = [thread_id, f"p{draw.randrange(12)}"]
            try:
                await saver.aprune(others, strategy=draw.choice(["keep_latest", "keep_latest", "delete"]))
            finally:
                self.lose(*others)
        elif kind < 6:
            runs = [f"{draw.choice('pc')} {draw.randrange(40)}"]
            try:
                await saver.adelete_for_runs(runs)
            finally:
                self.lose(*runs)
        elif kind < 7:
            try:
                await saver.adelete_thread(thread_id)
            finally:
                self.lose(thread_id)
        elif kind < 9:
            target = f"c{next(self._ids)}"
            await saver.acopy_thread(thread_id, target)
            self.copies.append(target)
            async for one in saver.alist({"configurable": {"thread_id": target}}):
                self.look(one)
        elif kind < 10:
            await draw.choice([saver.asweep, saver.astats, saver.acount])()
            assert all([isinstance(one, str) async for one in saver.athread_ids()])
        else:
            self.now += draw.choice([1, 5, 30])

    async def hold(self, draw: random.Random, thread_id: str, tasks: TaskGroup) -> None:
        """Hold a conversation that nothing but sessions writes to: as long as one is open, all is there."""
        strategies: list[MultitaskStrategy] = ["enqueue", "enqueue", "interrupt", "rollback"]
        strategy = draw.choice(strategies)
        ephemeral = draw.random() < 0.1
        session = self.saver.session(thread_id, multitask_strategy=strategy, ephemeral=ephemeral)
        try:
            async with session:
                self.store.sessions[session] = None
                try:
                    await self._in_session(draw, session, tasks)
                finally:
                    del self.store.sessions[session]
                self.seen["session"] += 1
        except SessionInterruptedError:
            self.seen["interrupted"] += 1
        except SessionLostError:
            assert not _holds(session)
        finally:
            if ephemeral or session._interrupted is not None:
                self.lose(thread_id)  # what it stored may be undone

    async def _in_session(self, draw: random.Random, session: Session, tasks: TaskGroup) -> None:
        thread_id, since = session.thread_id, self.tick()
        there = await self._listed(thread_id)
        perhaps: set[str] = set()
        for _ in range(draw.randint(1, 2 * _KEEP)):
            on = max(there) if there else None
            one = self.next_put(draw, thread_id, "", on, since)
            perhaps.add(one)
            with CancelScope() as scope:
                if draw.random() < 0.1:
                    tasks.start_soon(_cancel_after, scope, draw.randrange(6))
                with self.storing(one):
                    await self.saver.aput(*self.arguments(one))
                there.add(one)
            if draw.random() < 0.1:
                perhaps |= there
                self.lose(thread_id)
                await self.saver.aprune([thread_id])
                there = await self._listed(thread_id)
            await turns(draw.randrange(4))
            now = await self._listed(thread_id)
            if not _holds(session):
                break
            assert there <= now <= there | perhaps
            there = now

    async def _listed(self, thread_id: str) -> set[str]:
        found = [one async for one in self.saver.alist(config(thread_id))]
        for one in found:
            self.look(one)
        return {one.checkpoint["id"] for one in found}

    async def task(self, number: int, calls: int, tasks: TaskGroup) -> None:
        """Do some calls one after the other, each of them perhaps cancelled."""
        draw = random.Random(self.seed * 1000 + number)
        for _ in range(calls):
            with CancelScope() as scope:
                if draw.random() < 0.2:
                    tasks.start_soon(_cancel_after, scope, draw.randrange(30))
                await turns(draw.randrange(5))
                kind = draw.randrange(10)
                thread_id = f"p{draw.randrange(12)}"
                if self.copies and draw.random() < 0.1:
                    thread_id = draw.choice(self.copies[-5:])
                if kind < 2:
                    await self.hold(draw, f"s{draw.randrange(6)}", tasks)
                elif kind < 6:
                    with suppress(ThreadEvictedError):
                        await self.go_on(draw, thread_id)
                else:
                    await self.others(draw, thread_id)
            self.seen["cancelled"] += scope.cancelled_caught

    async def many(self, numbers: Sequence[int], calls: int) -> None:
        """Run so many tasks."""
        async with create_task_group() as tasks:
            for number in numbers:
                tasks.start_soon(self.task, number, calls, tasks)

    def sync(self, number: int, calls: int) -> None:
        """Call sync methods."""
        draw = random.Random(self.seed * 1000 + number)
        saver = self.saver
        for _ in range(calls):
            thread_id, since = f"p{draw.randrange(12)}", self.tick()
            found = saver.get_tuple(config(thread_id))
            self.look(found)
            with suppress(ThreadEvictedError):
                one = self.next_put(draw, thread_id, "", found.checkpoint["id"] if found else None, since)
                with self.storing(one):
                    saver.put(*self.arguments(one))
            for each in saver.list({"configurable": {"thread_id": thread_id}}):
                self.look(each)
            if draw.random() < 0.2:
                saver.sweep()
            strategies: list[MultitaskStrategy] = ["reject", "enqueue"]
            session = saver.session(f"s{draw.randrange(6)}", multitask_strategy=draw.choice(strategies))
            with suppress(SessionLostError, ThreadBusyError, SessionInterruptedError), session:
                self.store.sessions[session] = None
                try:
                    self._in_sync_session(draw, session)
                finally:
                    del self.store.sessions[session]
            if session._interrupted is not None:
                self.lose(session.thread_id)

    def _in_sync_session(self, draw: random.Random, session: Session) -> None:
        thread_id, since = session.thread_id, self.tick()
        there: set[str] = set()
        for _ in range(_KEEP + 2):
            on = max(there) if there else None
            one = self.next_put(draw, thread_id, "", on, since)
            with self.storing(one):
                self.saver.put(*self.arguments(one))
            found = [*self.saver.list(config(thread_id))]
            for each in found:
                self.look(each)
            if not _holds(session):
                break
            assert there < {each.checkpoint["id"] for each in found}
            there = {each.checkpoint["id"] for each in found}

    # In the end.

    async def verify(self) -> None:
        """What was acknowledged is there, unless it may be missing; and the limits are kept to."""
        saver, store, retention = self.saver, self.store, self.retention
        assert not store.wrong
        gc.collect()
        await saver.asweep()
        store.check()
        stats = await saver.astats()
        assert (stats.open_sessions, stats.waiting_sessions) == (0, 0)
        there: dict[tuple[str, str], set[str]] = defaultdict(set)
        async for found in saver.alist(None):
            where = found.config["configurable"]
            thread_id = where["thread_id"]
            one = where["checkpoint_id"]
            # (Its writes may have gone with what delete_for_runs took.)
            is_kept = self.tried[one].thread_id == thread_id and self.lost.get(self.tried[one].run_id, 0) == 0
            self.look(found, [*self.written[thread_id, one]] if is_kept else ())
            there[thread_id, where["checkpoint_ns"]].add(one)
        assert all(len(ones) <= _KEEP for ones in there.values())
        if retention.max_threads is not None and retention.max_bytes is not None:
            assert stats.conversations <= retention.max_threads
            assert (stats.bytes or 0) <= retention.max_bytes or stats.conversations == 1
        tried: dict[tuple[str, str], list[str]] = defaultdict(list)
        for one, put in self.tried.items():
            tried[put.thread_id, put.ns].append(one)
        for one, begun in self.acknowledged.items():
            put = self.tried[one]
            if one not in there[put.thread_id, put.ns] and not self._may_be_lost(put, begun):
                assert len([other for other in tried[put.thread_id, put.ns] if other > one]) >= _KEEP, (one, put)
        for put, _ in self.refused.values():
            ancestors, at = {put.run_id}, put.parent
            while at is not None:
                ancestors.add(self.tried[at].run_id)
                at = self.tried[at].parent
            assert any(self.lost.get(name, 0) > put.since for name in (put.thread_id, *ancestors)), put
        assert {reason: self.told.count(reason) for reason in stats.evictions} == stats.evictions

    def _may_be_lost(self, put: Put, since: int) -> bool:
        return any(self.lost.get(name, 0) > since for name in (put.thread_id, put.run_id))

    async def end(self) -> None:
        """Nothing is left when all is deleted."""
        for thread_id in await all_of(self.saver.athread_ids()):
            await self.saver.adelete_thread(thread_id)
        gc.collect()
        self.store.check()
        assert self.store._totals == (0, 0, 0, 0)
        assert not self.store._runs
        kept = self.store._limits
        assert kept is not None
        assert not kept._uses
        assert not any(kept._due.values())
        assert not kept.overfull
        assert not kept.works
        assert not kept.untold
        assert not kept.freed
        assert not kept._stood
        assert len(self.saver._shared.locks) == 0


async def _cancel_after(scope: CancelScope, number: int) -> None:
    await turns(number)
    scope.cancel()


def stress(retention: Retention, backend: str, seed: int, store: Watched, tasks: int = 200, calls: int = 6) -> Stress:
    """Run the tasks on two event loops, and sync code beside; look at all that is left."""
    trial = Stress(retention, seed, store)
    elsewhere = "trio" if backend == "asyncio" and "trio" in BACKENDS else "asyncio"
    with ThreadPoolExecutor(3) as threads:
        others = [
            threads.submit(partial(anyio.run, trial.many, range(500, 520), calls, backend=elsewhere)),
            *(threads.submit(Context().run, trial.sync, number, 2 * calls) for number in (600, 601)),
        ]
        try:
            threads.submit(partial(anyio.run, trial.many, range(tasks), calls, backend=backend)).result()
        finally:
            for other in others:
                other.result()
        threads.submit(partial(anyio.run, trial.verify, backend=backend)).result()
        threads.submit(partial(anyio.run, trial.end, backend=backend)).result()
    return trial


@pytest.fixture(autouse=True)
def _everything_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SLICE", -1)
    monkeypatch.setattr(pace, "_SLICE", -1)
    monkeypatch.setattr(pace, "_pace", pace._Pace())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("retention", [_NARROW, _WIDE], ids=["all limits", "keep_last"])
def test_whatever_is_evicted_nothing_is_torn(retention: Retention, backend: str) -> None:
    """Two hundred tasks, another event loop and sync callers; and never an open session or a half-done call."""
    trial = stress(retention, backend, 1, Watched())
    assert trial.seen["whole"] > 1000
    assert trial.seen["session"] > 50
    assert trial.seen["interrupted"] > 5
    assert trial.seen["cancelled"] > 50
    if retention is _NARROW:
        assert all(trial.told.count(reason) > 5 for reason in ("ttl", "max_threads", "max_bytes"))
        assert trial.refused


# Planted bugs, which it must find.


class TakesSessions(Watched):
    """Evicts under an open session."""

    def _is_in_use(self, limits: Limits, thread_id: str) -> bool:
        return limits.is_worked_on(thread_id)


class TakesCalls(Watched):
    """Evicts what is being copied or pruned."""

    def _is_in_use(self, limits: Limits, thread_id: str) -> bool:
        return self._leases.held(thread_id) is not None


class TakesTorn(Watched):
    """Stores what lacks values."""

    def _would_be_torn(self, *args: Any) -> bool:
        return False


class DropsInSessions(Watched):
    """Does not wait with `keep_last` for the end of a session."""

    def _keep_last(self, *args: Any) -> Any:
        return self._as_if_none_were_open(super()._keep_last, *args)

    def _first_dropped(self, *args: Any) -> Any:
        return self._as_if_none_were_open(super()._first_dropped, *args)

    def _as_if_none_were_open(self, do: Callable[..., Any], *args: Any) -> Any:
        leases, self._leases = self._leases, Leases()
        try:
            return do(*args)
        finally:
            self._leases = leases


@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("store", "retention"),
    [(TakesSessions, _NARROW), (TakesCalls, _NARROW), (TakesTorn, _NARROW), (DropsInSessions, _WIDE)],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_the_stress_finds_a_planted_bug(store: type[Watched], retention: Retention, backend: str) -> None:
    """It fails where it should, with one seed or the next."""

    def search() -> None:
        for seed in range(3):
            stress(retention, backend, seed, store())

    with pytest.raises(BaseException) as found:  # noqa: PT011  (a group, in whichever task it was seen)
        search()
    assert _is_finding(found.value)


def _is_finding(exc: BaseException) -> bool:
    """Tell whether an assertion failed, or a session's conversation went, as nobody expects of one."""
    found = (AssertionError, ThreadEvictedError)
    return isinstance(exc, found) or any(_is_finding(one) for one in getattr(exc, "exceptions", ()))


# Interrupts at every line.

_FILES = tuple(str(module.__file__) for module in (memory, limits_module, bucket, history))

Ready = tuple[AsyncSaver, Callable[[], Coroutine[Any, Any, Any]], Callable[[], bool]]
"""A saver, the call that is interrupted, and what tells whether that has done its work."""


async def _chat(saver: AsyncSaver, thread_id: str, first: int, last: int) -> None:
    """Store checkpoints of values that share bytes, and of one that is never new again."""
    for number in range(first, last + 1):
        one = f"{number:06}"
        new: dict[str, str | int | float] = dict.fromkeys("abc" if number == 1 else "ab", one)
        made = checkpoint(one, {each: value(each, one) for each in new}, channel_versions={"c": "000001", **new})
        parent = f"{number - 1:06}" if number > 1 else None
        await saver.aput(config(thread_id, parent, run_id=f"run {number}"), made, {"step": number}, new)
        await saver.aput_writes(config(thread_id, one, run_id=f"run {number}"), [("w", value("a", one))], "task")


async def _read(saver: AsyncSaver, thread_id: str) -> dict[str, list[str]]:
    """The channels of each checkpoint, every one of them whole."""
    found = [one async for one in saver.alist({"configurable": {"thread_id": thread_id}})]
    for one in found:
        versions = one.checkpoint["channel_versions"]
        assert one.checkpoint["channel_values"] == {each: value(each, version) for each, version in versions.items()}
    return {one.checkpoint["id"]: [*one.checkpoint["channel_values"]] for one in found}


async def _evicting(store: MemoryStore, told: list[str], now: list[float]) -> Ready:
    """A put that evicts another conversation."""
    saver = AsyncSaver(store=store, retention=Retention(max_threads=2, on_evict=lambda one, _: told.append(one)))
    await _chat(saver, "old", 1, 2)
    await _chat(saver, "t", 1, 2)

    def is_done() -> bool:
        return "old" not in saver.storage

    return saver, partial(_chat, saver, "new", 1, 1), is_done


async def _dropping(store: MemoryStore, told: list[str], now: list[float]) -> Ready:
    """A put that drops the oldest checkpoint, and another one that waits there no longer."""
    saver = AsyncSaver(store=store, retention=Retention(keep_last=3))
    await _chat(saver, "t", 1, 3)

    def is_done() -> bool:
        return "000001" not in saver.storage["t"][""]

    return saver, partial(_chat, saver, "t", 4, 4), is_done


async def _expiring(store: MemoryStore, told: list[str], now: list[float]) -> Ready:
    """A read that finds its conversation gone unused for too long."""
    retention = Retention(ttl=10, clock=lambda: now[0], on_evict=lambda thread_id, _: told.append(thread_id))
    saver = AsyncSaver(store=store, retention=retention)
    await _chat(saver, "old", 1, 2)
    now[0] += 11

    def is_done() -> bool:
        return "old" not in saver.storage

    return saver, partial(saver.aget_tuple, config("old")), is_done


async def _sweeping(store: MemoryStore, told: list[str], now: list[float]) -> Ready:
    """A sweep that has all to do: some whose time is over, some that are too many, one with too many checkpoints."""
    retention = Retention(
        ttl=10, max_threads=3, keep_last=2, clock=lambda: now[0], on_evict=lambda thread_id, _: told.append(thread_id)
    )
    saver = AsyncSaver(store=store)
    for thread_id in ("old", "t", "u", "v", "w"):
        await _chat(saver, thread_id, 1, 3)
    saver = AsyncSaver(store=store, retention=retention)
    now[0] += 5
    for thread_id in ("t", "u", "v", "w"):
        await saver.aget_tuple(config(thread_id))
    now[0] += 6

    def is_done() -> bool:
        return [len(saver.storage[thread_id][""]) for thread_id in saver.storage] == [2, 2, 2]

    return saver, saver.asweep, is_done


def _each(ready: object) -> int:
    """Every so many lines is one cut: a sweep has many."""
    return 17 if ready is _sweeping else 3


def _cut(
    ready: Callable[..., Awaitable[Ready]],
    run: Callable[[Any], Any],  # noqa: F811
    store_type: type[MemoryStore] = MemoryStore,
) -> None:
    """Interrupt a call at every line, one after the other, and look at what is left."""
    seen = set()
    with ThreadPoolExecutor(1) as others:
        for number in count():
            told: list[str] = []
            store = store_type()
            saver, call, is_done = run(ready(store, told, [0.0]))
            more = cut_at(number * _each(ready), lambda call=call: run(call()), _FILES)  # type: ignore[misc]
            assert others.submit(_guard_is_free).result(10)
            store.check()
            seen.add(is_done())
            gc.collect()  # what was under way is in the traceback
            if ready is not _expiring:
                for thread_id in [*saver.storage]:
                    run(_read(saver, thread_id))
            run(call())
            store.check()
            assert is_done()
            run(_chat(saver, "next", 1, 5))
            run(saver.asweep())
            store.check()
            assert "000005" in run(_read(saver, "next"))
            if ready is not _dropping:
                assert len({*told}) == len(told)
                assert sum(run(saver.astats()).evictions.values()) - len(told) in (0, 1)  # one on its way to be told
            if not more:
                break
    assert seen == {False, True}
    assert number * _each(ready) > 60


@pytest.fixture
def _nothing_yields(monkeypatch: pytest.MonkeyPatch, _everything_yields: None) -> None:
    monkeypatch.setattr(memory, "_SLICE", 1e9)
    monkeypatch.setattr(pace, "_SLICE", 1e9)


@pytest.mark.usefixtures("_frozen", "_lost", "_nothing_yields")
@pytest.mark.parametrize("ready", [_evicting, _dropping, _expiring, _sweeping], ids=lambda one: one.__name__)
def test_what_keeps_to_limits_can_be_interrupted_at_any_line(
    ready: Callable[..., Awaitable[Ready]],
    run: Callable[[Any], Any],  # noqa: F811
) -> None:
    """All is sound then, the guard is free, and the same call does its work; an eviction is told once at most."""
    _cut(ready, run)


class Unfinished(MemoryStore):
    """Does not finish what was cut off."""

    def _commit(self, steps: Any) -> None:
        for step, arguments in steps:
            step(*arguments)


@pytest.mark.usefixtures("_frozen", "_lost", "_nothing_yields")
@pytest.mark.parametrize("ready", [_evicting, _dropping, _expiring, _sweeping], ids=lambda one: one.__name__)
def test_the_cuts_find_a_planted_bug(
    ready: Callable[..., Awaitable[Ready]],
    run: Callable[[Any], Any],  # noqa: F811
) -> None:
    """They fail where they should."""
    with pytest.raises(AssertionError):
        _cut(ready, run, Unfinished)
