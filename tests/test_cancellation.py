"""P3, P4: a call that is cancelled, at whatever await and in whatever way, did everything or nothing."""

import asyncio
import copy
import gc
import math
import random
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint as yield_to_loop
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from async_saver import (
    AsyncSaver,
    MemoryStore,
    SessionInterruptedError,
    SessionLostError,
    Store,
    ThreadExistsError,
    pace,
    session,
)
from async_saver.records import EMPTY, WriteRecord
from async_saver.stores import memory
from tests.build import all_of, checkpoint, config, listed, put
from tests.conftest import _BACKENDS
from tests.postgres import needed
from tests.stores import NewStore, path_of, settled
from tests.stores import contents as all_contents

pytestmark = pytest.mark.anyio

Call = Callable[[AsyncSaver], Coroutine[Any, Any, Any]]


@pytest.fixture(autouse=True)
def _every_await_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is always time to yield to the event loop, and a slice of long work is as short as can be."""
    monkeypatch.setattr(pace, "_SLICE", -1.0)
    monkeypatch.setattr(pace._pace, "until", -math.inf)
    monkeypatch.setattr(memory, "_SLICE", -1.0)
    monkeypatch.setattr(memory, "_LARGE", 0)


# The stores: the memory store itself, one that waits as a disk or a server makes it wait, and one of a file.


def _waiting(name: str, before: bool = True, after: bool = True) -> Any:
    async def call(self: "Waiting", *args: Any, **more: Any) -> Any:
        if before:
            await _two_turns()
        result = await getattr(self.inner, name)(*args, **more)
        if after:
            await _two_turns()
        return result

    return call


async def _two_turns() -> None:
    await yield_to_loop()
    await yield_to_loop()


class Waiting(Store):
    """Waits before and after whatever it does."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner

    setup, close = _waiting("setup"), _waiting("close")
    get, delta_history = _waiting("get"), _waiting("delta_history")
    put, put_writes = _waiting("put"), _waiting("put_writes")
    delete, delete_for_runs = _waiting("delete"), _waiting("delete_for_runs")
    copy, keep_latest = _waiting("copy"), _waiting("keep_latest")
    count, run_threads = _waiting("count"), _waiting("run_threads")
    lease, renew = _waiting("lease"), _waiting("renew")
    sweep, stats = _waiting("sweep"), _waiting("stats")
    acquire, release = _waiting("acquire", after=False), _waiting("release", before=False)  # as the contract has it

    def list(self, listing: Any) -> AsyncIterator[Any]:
        return WaitingSteps(self.inner.list(listing))

    def thread_ids(self) -> AsyncIterator[str]:
        return WaitingSteps(self.inner.thread_ids())


class WaitingSteps(AsyncIterator[Any]):
    """Waits before each step."""

    def __init__(self, inner: AsyncIterator[Any]) -> None:
        self.inner = inner

    async def __anext__(self) -> Any:
        await _two_turns()
        return await anext(self.inner)


KINDS = ["memory", "waiting", "file", "postgres"]
_OUTSIDE = {"file": "sqlite", "postgres": "postgres"}


@pytest.fixture
def new_store(kind: str, tmp_path: Path) -> Iterator[NewStore]:
    """What makes the stores themselves, those in memory also for what waits."""
    if kind == "postgres":
        needed()
    with NewStore(_OUTSIDE.get(kind, "memory"), tmp_path) as made:
        yield made


@pytest.fixture
def file_store(new_store: NewStore) -> Any:
    """An empty store, of a file."""
    return new_store()


@pytest.fixture
def outer(kind: str) -> Callable[[Any], Store]:
    """What makes a store into one of its kind."""
    return Waiting if kind == "waiting" else lambda inner: inner


async def filled(
    numbers: int = 6, namespaces: "tuple[str, ...]" = ("", "child:1"), make_store: Callable[[], Any] = MemoryStore
) -> Any:
    """Three conversations, two namespaces, runs, pending writes, and a channel that is rebuilt from writes."""
    store = make_store()
    saver = AsyncSaver(store=store)
    for ns in namespaces:
        for number in range(numbers):
            values: dict[str, Any] = {"x": number, f"y{number}": "value"}
            if number % 3 == 0:
                values["d"] = _DeltaSnapshot([])
            made = checkpoint(f"{number}", values, f"{number}")
            made["channel_versions"]["d"] = f"{number}"
            where = config("t", f"{number - 1}" if number else None, ns, run_id="odd" if number % 2 else "even")
            new = {key: version for key, version in made["channel_versions"].items() if key in values}
            await saver.aput(where, made, {"step": number}, new)
            where = config("t", f"{number}", ns, run_id="writes" if number % 2 else "even")
            await saver.aput_writes(where, [("d", number), ("x", number), ("__interrupt__", number)], "task")
    await put(saver, "1", {"x": 1}, thread_id="other", run_id="odd")
    await saver.aput_writes(config("early", "7"), [("x", 7)], "task")
    await store.close()
    return store


def contents(store: Any) -> object:
    """Everything that is stored, and in which order; and it is sound. Whatever was called for is done before."""
    saver = AsyncSaver(store=store)
    return all_contents(saver), [*(saver.storage if isinstance(store, MemoryStore) else saver.thread_ids())]


# The calls.

WRITERS: dict[str, Call] = {
    "aput": lambda saver: put(saver, "9", {"x": 9, "z": 9}, parent="5", run_id="new"),
    "aput, first": lambda saver: put(saver, "1", {"x": 1}, thread_id="new", run_id="new"),
    "aput, over": lambda saver: put(saver, "3", {"x": "other"}, ns="child:1", run_id="new"),
    "aput, between": lambda saver: put(saver, "25", {"x": 25}, parent="2", run_id="odd"),
    "aput_writes": lambda saver: saver.aput_writes(config(checkpoint_id="5"), [("x", 1), ("y", 2)], "another"),
    "aput_writes, over": lambda saver: saver.aput_writes(config(checkpoint_id="5"), [("__interrupt__", 1)], "task"),
    "aput_writes, first": lambda saver: saver.aput_writes(config("new", "5", run_id="new"), [("x", 1)], "task"),
    "adelete_thread": lambda saver: saver.adelete_thread("t"),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["odd", "writes"]),
    "acopy_thread": lambda saver: saver.acopy_thread("t", "copy"),
    "aprune, keep_latest": lambda saver: saver.aprune(["t", "other", "early"]),
    "aprune, delete": lambda saver: saver.aprune(["other", "t"], strategy="delete"),
    "aprune, delete_all": lambda saver: saver.aprune(["other", "t"], strategy="delete_all"),
}

READERS: dict[str, Call] = {
    "asetup": lambda saver: saver.asetup(),
    "aget": lambda saver: saver.aget(config()),
    "aget_tuple": lambda saver: saver.aget_tuple(config(checkpoint_id="4")),
    "aget_delta_channel_history": lambda saver: saver.aget_delta_channel_history(config=config(), channels=["d", "x"]),
    "acount": lambda saver: saver.acount(),
    "alist": lambda saver: all_of(saver.alist(None, filter={"step": 3})),
    "alist, one": lambda saver: anext(saver.alist(config()), None),
    "athread_ids": lambda saver: all_of(saver.athread_ids()),
    "ais_busy": lambda saver: saver.ais_busy("t"),
    "asweep": lambda saver: saver.asweep(),
    "astats": lambda saver: _stats(saver),
}


async def _stats(saver: AsyncSaver) -> object:
    return (await saver.astats())._replace(bridge_calls=0)  # of all savers


# The ways to cancel. Each runs a body that is given what to call when it is to be cancelled, and tells whether it was.

Body = Callable[[Callable[[], object]], Awaitable[object]]
Way = Callable[[Body], Awaitable[BaseException | None]]


async def _by_task(again: str, body: Body) -> BaseException | None:
    loop, raised = asyncio.get_running_loop(), []

    def cancel() -> None:
        if asyncio.current_task() is task:
            loop.call_soon(cancel)  # by another, and when the task has come to a stop
            return
        task.cancel()
        if again == "at once":
            task.cancel()
        elif again == "later":
            loop.call_soon(task.cancel)

    async def run() -> None:
        try:
            await body(cancel)
        except asyncio.CancelledError as exc:
            raised.append(exc)

    task = loop.create_task(run())
    await asyncio.wait([task])
    task.result()
    return raised.pop() if raised else None


async def _by_timeout(body: Body) -> BaseException | None:
    if sys.version_info < (3, 11):
        pytest.skip("asyncio.timeout came with Python 3.11")
    try:
        async with asyncio.timeout(None) as limit:
            await body(lambda: limit.reschedule(asyncio.get_running_loop().time()))
    except TimeoutError as exc:
        return exc
    return None


async def _by_scope(body: Body) -> BaseException | None:
    return await _within(CancelScope(), body)


async def _by_trio(body: Body) -> BaseException | None:
    trio = pytest.importorskip("trio")
    return await _within(trio.CancelScope(), body)


async def _within(scope: Any, body: Body) -> BaseException | None:
    raised = []
    with scope:
        try:
            await body(scope.cancel)
        except anyio.get_cancelled_exc_class() as exc:
            raised.append(exc)
            raise
    return raised.pop() if raised else None


_OF_ASYNCIO: dict[str, Way] = {
    "Task.cancel": partial(_by_task, ""),
    "Task.cancel, twice at once": partial(_by_task, "at once"),
    "Task.cancel, twice": partial(_by_task, "later"),
    "anyio scope": _by_scope,
}
if sys.version_info >= (3, 11):
    _OF_ASYNCIO["asyncio.timeout"] = _by_timeout
_OF_TRIO: dict[str, Way] = {"anyio scope": _by_scope, "trio scope": _by_trio}


_WAYS = {
    f"{backend.id}-{name}": (*backend.values, way)
    for backend in _BACKENDS
    for name, way in (_OF_TRIO if backend.id == "trio" else _OF_ASYNCIO).items()
}
_WAYS_OUTSIDE = ("asyncio-Task.cancel", "trio-anyio scope")  # as each trial takes a file of its own, or a schema


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every way to cancel on every event loop, over every kind of store."""
    if "backend_and_way" not in metafunc.fixturenames:
        return
    if "kind" not in metafunc.fixturenames:
        metafunc.parametrize("backend_and_way", _WAYS.values(), ids=_WAYS)
        return
    kinds = ["file"] if "file_store" in metafunc.fixturenames else KINDS
    both = [(kind, name) for kind in kinds for name in _WAYS if kind not in _OUTSIDE or name in _WAYS_OUTSIDE]
    if "held" not in metafunc.fixturenames:
        params = [pytest.param(kind, _WAYS[name], id=f"{name}-{kind}") for kind, name in both]
        metafunc.parametrize(("kind", "backend_and_way"), params)
        return
    params = [
        pytest.param(kind, _WAYS[name], held, id=f"{name}-{kind}-{'held' if held else 'free'}")
        for held in (False, True)
        for kind, name in both
        if not held or kind not in _OUTSIDE
    ]
    metafunc.parametrize(("kind", "backend_and_way", "held"), params)


@pytest.fixture
def anyio_backend(backend_and_way: tuple[Any, Way]) -> Any:
    """The event loop."""
    return backend_and_way[0]


@pytest.fixture
def way(backend_and_way: tuple[Any, Way]) -> Way:
    """The way to cancel."""
    return backend_and_way[1]


class Stepped:
    """Awaits some work, and says so each time before that waits: first with 0, then with 1, ..."""

    def __init__(self, work: Coroutine[Any, Any, Any], waits: Callable[[int], object]) -> None:
        self.steps = 0
        self._work = work
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, Any]:
        work = self._work.__await__()
        resume: Any = partial(work.send, None)
        while True:
            try:
                waits_for = resume()
            except StopIteration as end:
                return end.value
            finally:
                resume = None  # it may hold the very exception whose traceback holds this frame
            self._waits(self.steps)
            self.steps += 1
            try:
                resume = partial(work.send, (yield waits_for))
            except BaseException as exc:
                resume = partial(work.throw, exc)


async def cancelled_at(
    step: int, way: Way, work: Coroutine[Any, Any, Any], waits: Callable[[int], object] = lambda number: None
) -> BaseException | None:
    """Do some work, and cancel it while it waits at its `step`-th await; at -1 before it begins.

    Returns:
        What that raised; None where there was no such await.
    """
    asked: list[int] = []

    async def body(cancel: Callable[[], object]) -> None:
        def when_it_waits(number: int) -> None:
            waits(number)
            if number == step:
                asked.append(number)
                cancel()

        if step < 0:
            when_it_waits(step)
        await Stepped(work, when_it_waits)

    raised = await way(body)
    assert bool(asked) == (raised is not None), "a cancellation was swallowed"
    return raised


# Every method at every await.


def test_every_method_is_cancelled_here() -> None:
    """Also those that are yet to be written."""
    methods = {name for name in dir(AsyncSaver) if name.startswith("a")}
    assert {name.partition(",")[0] for name in (*WRITERS, *READERS)} == methods


@pytest.mark.parametrize("call", WRITERS.values(), ids=WRITERS)
async def test_a_cancelled_write_did_everything_or_nothing(
    way: Way, call: Call, kind: str, new_store: NewStore, outer: Callable[[Any], Store], held: bool
) -> None:
    """Then the lock is free and its entry gone, who waited behind goes on, and the same call does its work."""
    template = await filled(make_store=new_store)
    before, after = contents(new_store.copy(template)), await contents_after(call, new_store.copy(template))
    assert before != after
    seen: Counter[str] = Counter()
    for step in count(-1):
        inner = new_store.copy(template)
        saver = AsyncSaver(store=outer(inner))
        with anyio.fail_after(10):
            if held:
                raised = await _cancelled_in_a_queue(step, way, saver, call)
            else:
                raised = await cancelled_at(step, way, call(saver))
            cancelled = raised is not None
            del raised  # its traceback; see below for one that is kept
            assert len(saver._shared.locks) == 0
            now = contents(inner)
            assert now in (before, after)
            if not cancelled:
                break
            seen["before" if now == before else "after"] += 1
            try:
                await call(saver)
            except ThreadExistsError:  # a second copy
                assert now == after
        assert contents(inner) == after
        assert len(saver._shared.locks) == 0
    assert now == after
    # What has to be waited for: the store, the lock, a turn for others before and after.
    if kind == "waiting":
        assert seen["before"] >= 2 + held
        assert seen["after"] >= 3
    else:
        assert seen["before"] >= held
        assert seen["after"] >= 1


async def contents_after(call: Call, store: Store) -> object:
    """What is stored after a whole call."""
    await call(AsyncSaver(store=store))
    return contents(store)


async def _cancelled_in_a_queue(step: int, way: Way, saver: AsyncSaver, call: Call) -> BaseException | None:
    """Cancel a call on conversations that another task holds at first, and that a third waits for behind it."""
    threads = ("copy", "early", "new", "other", "t")
    behind: list[str] = []

    async def hold(*, task_status: TaskStatus[None]) -> None:
        async with saver._shared.locks.holding(*threads):
            task_status.started()
            for _ in range(12):
                await yield_to_loop()
            assert "called" in queue

    async def wait_behind() -> None:
        async with saver._shared.locks.holding(*threads):
            behind.append("went on")

    queue: list[str] = []

    def waits(number: int) -> None:
        if not queue:
            queue.append("called")
            tasks.start_soon(wait_behind)

    async with create_task_group() as tasks:
        await tasks.start(hold)
        raised = await cancelled_at(step, way, call(saver), waits)
    assert behind == ["went on"]
    return raised


@pytest.mark.parametrize("call", READERS.values(), ids=READERS)
async def test_a_cancelled_read_changes_nothing(
    way: Way, call: Call, kind: str, new_store: NewStore, outer: Callable[[Any], Store]
) -> None:
    """And the next one reads what it should."""
    inner = await filled(make_store=new_store)
    before, wanted = contents(inner), await call(AsyncSaver(store=inner))
    saver = AsyncSaver(store=outer(inner))
    for step in count(-1):
        with anyio.fail_after(10):
            raised = await cancelled_at(step, way, call(saver))
            assert contents(inner) == before
            assert len(saver._shared.locks) == 0
            assert await call(saver) == wanted
        if raised is None:
            break
    assert step >= (4 if kind == "waiting" else 1)


@pytest.mark.parametrize("what", ["alist", "alist of all", "alist, limited", "athread_ids"])
async def test_an_iteration_goes_on_after_a_cancelled_step(
    way: Way, what: str, kind: str, new_store: NewStore, outer: Callable[[Any], Store]
) -> None:
    """With the item that the step would have given: none is lost, none comes twice."""
    saver = AsyncSaver(store=outer(await filled(make_store=new_store)))

    def iterate() -> AsyncIterator[Any]:
        if what == "athread_ids":
            return saver.athread_ids()
        if what == "alist, limited":
            return saver.alist(config(), filter={"step": 2}, limit=3)
        return saver.alist(None if what == "alist of all" else config(ns=None))

    wanted = await all_of(iterate())
    for place in range(min(len(wanted), 3) + 1):
        for step in count(-1):
            found = iterate()
            got = [await anext(found) for _ in range(place)]
            if await cancelled_at(step, way, anext(found, None)) is None:
                break
            with anyio.fail_after(10):
                assert got + await all_of(found) == wanted
        assert step >= (2 if kind == "waiting" else 1)


# Entering and leaving.


async def test_a_cancelled_entry_entered_nothing(
    way: Way, kind: str, new_store: NewStore, outer: Callable[[Any], Store]
) -> None:
    """The next one's exit is the last, and closes the stack."""
    for step in count(-1):
        saver, closed = AsyncSaver(store=outer(new_store())), []
        raised = await cancelled_at(step, way, saver.__aenter__())
        if raised is None:
            break
        with anyio.fail_after(10):
            async with saver:
                saver.stack.callback(closed.append, "closed")
                await put(saver, "1")
                assert not closed
            assert closed == ["closed"]
    assert step >= (4 if kind == "waiting" else 1)


async def test_a_cancelled_exit_closes_the_stack_all_the_same(
    way: Way, kind: str, new_store: NewStore, outer: Callable[[Any], Store]
) -> None:
    """Once, and the saver can be entered again."""
    for step in count(0 if kind == "memory" else -1):  # in memory it awaits nothing
        saver, closed = AsyncSaver(store=outer(new_store())), list[str]()
        await saver.__aenter__()
        await put(saver, "1")
        saver.stack.callback(closed.append, "closed")
        raised = await cancelled_at(step, way, saver.__aexit__(None, None, None))
        assert closed == ["closed"]
        with anyio.fail_after(10):
            async with saver:
                saver.stack.callback(closed.append, "again")
                assert await saver.aget(config()) == checkpoint("1", {})
        assert closed == ["closed", "again"]
        if raised is None:
            break
    assert step >= {"memory": 0, "waiting": 4}.get(kind, 1)


async def test_a_cancelled_block_is_left(
    way: Way, kind: str, new_store: NewStore, outer: Callable[[Any], Store]
) -> None:
    """In the entry, the body or the exit of `async with saver`: unentered, or with the stack closed."""
    for step in count(-1):
        inner, log = new_store(), list[str]()
        saver = AsyncSaver(store=outer(inner))

        async def use(saver: AsyncSaver = saver, log: "list[str]" = log) -> None:
            async with saver:
                saver.stack.callback(log.append, "closed")
                log.append("entered")
                await put(saver, "1")

        raised = await cancelled_at(step, way, use())
        inner.check()
        assert log in ([], ["entered", "closed"])
        assert len(saver._shared.locks) == 0
        if raised is None:
            break
    assert log == ["entered", "closed"]
    assert await inner.count() == 1
    if kind == "waiting":
        assert step == 14  # of the entry 5, of the put 5, of the exit 4


@pytest.mark.parametrize("strategy", ["free", "enqueue", "interrupt", "rollback"])
async def test_a_cancelled_session_is_left(
    way: Way,
    strategy: str,
    kind: str,
    new_store: NewStore,
    outer: Callable[[Any], Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its queue, its entry, its body or its exit: it holds nothing, and whoever is behind it goes on at once."""
    for name in ("_LOOK", "_LOOK_FAR"):
        monkeypatch.setattr(session, name, 60)  # who has to be woken is
    options: Any = {} if strategy == "free" else {"multitask_strategy": strategy}
    for step in count(-1):
        inner, log = new_store(), list[str]()
        saver = AsyncSaver(store=outer(inner))

        async def hold(*, task_status: TaskStatus[None], saver: AsyncSaver = saver) -> None:
            with suppress(SessionInterruptedError):
                async with saver.session("t"):
                    await put(saver, "0")
                    task_status.started()
                    await _turns(30)

        async def use(saver: AsyncSaver = saver) -> None:
            async with saver.session("t", **options):
                await put(saver, "1", parent="0")
            await yield_to_loop()  # what came while the lease was given back is raised here

        async def wait_behind(saver: AsyncSaver = saver, log: "list[str]" = log) -> None:
            async with saver.session("t"):
                log.append("went on")

        def waits(number: int, log: "list[str]" = log, behind: Any = wait_behind) -> None:
            if not log:
                log.append("called")
                tasks.start_soon(behind)

        with anyio.fail_after(10):
            async with create_task_group() as tasks:
                if strategy != "free":
                    await tasks.start(hold)
                cancelled = await cancelled_at(step, way, use(), waits) is not None  # the traceback holds the session
            assert log in (["called", "went on"], [])
            await settled(inner)
            assert not await saver.ais_busy("t")
        inner.check()
        if len(saver._shared.locks) or len(saver._shared.sessions._lines):
            gc.collect()  # frames of a traceback that is part of a circle
        assert len(saver._shared.locks) == len(saver._shared.sessions._lines) == 0
        assert await inner.lease("t") is None
        assert await listed(AsyncSaver(store=inner), config()) in _LEFT[strategy]
        if not cancelled:
            break
    assert await listed(AsyncSaver(store=inner), config()) == _LEFT[strategy][-1]
    assert step >= (8 if kind == "waiting" else 2)


_LEFT: "dict[str, list[list[str]]]" = {
    "free": [[], ["1"]],
    "enqueue": [["0"], ["1", "0"]],
    "interrupt": [["0"], ["1", "0"]],
    "rollback": [["0"], [], ["1"]],
}
"""What may be stored after a session, and last what is if it was not cancelled."""


@pytest.mark.parametrize("call", WRITERS.values(), ids=WRITERS)
async def test_what_a_cancelled_write_stored_in_a_session_is_undone(
    way: Way, call: Call, kind: str, new_store: NewStore
) -> None:
    """All of it or nothing is stored, and all of it is noted, or nothing."""
    template = await filled(make_store=new_store)
    reference = new_store.copy(template)
    before, after = _in_sight(contents(reference)), _in_sight(await contents_after(call, new_store.copy(template)))
    for step in count(-1):
        inner = new_store.copy(template)
        saver = AsyncSaver(store=inner)
        with anyio.fail_after(10), suppress(SessionLostError):
            async with saver.session("t") as mine:
                raised = await cancelled_at(step, way, call(saver))
                assert _in_sight(contents(inner)) in (before, after)
                lease = await inner.acquire("t", "test", instead_of=mine.lease, undo=True)
                assert lease is not None
                await inner.release(lease)
        inner.check()
        assert conversation(inner, "t") == conversation(reference, "t")
        if raised is None:
            break
    assert step >= 1


def _in_sight(found: Any) -> object:
    """Without the values: what the undoing needs may be kept among them."""
    return found[0][:2], found[1]


# The lock.


@pytest.mark.parametrize("release_first", [True, False], ids=["handed over", "about to be"])
@pytest.mark.parametrize("name", ["aput", "acopy_thread", "adelete_for_runs"])
async def test_a_call_cancelled_as_the_lock_becomes_its_own(way: Way, name: str, release_first: bool) -> None:
    """Has not run yet: the lock goes on to who waits behind."""
    template, call = await filled(), WRITERS[name]
    before, after = contents(template), await contents_after(call, copy.deepcopy(template))
    inner = copy.deepcopy(template)
    saver, log = AsyncSaver(store=inner), []

    async def body(cancel: Callable[[], object]) -> None:
        cancels.append(cancel)
        await call(saver)

    async def cancelled() -> None:
        log.append("called")
        kept.append(await way(body))
        log.append("called" if kept == [None] else "cancelled")

    async def wait_behind() -> None:
        log.append("behind")
        async with saver._shared.locks.holding("t"):
            log.append("went on")

    cancels: list[Callable[[], object]] = []
    kept: list[BaseException | None] = []
    with anyio.fail_after(10):
        async with create_task_group() as tasks:
            async with saver._shared.locks.holding("t"):
                for task in (cancelled, wait_behind):
                    tasks.start_soon(task)
                    await _turns(20)
                assert log == ["called", "behind"]
                if not release_first:
                    cancels[0]()
            if release_first:
                cancels[0]()
        assert sorted(log[2:]) == ["cancelled", "went on"]
        assert contents(inner) in (before, after)
        assert len(saver._shared.locks) == 0
        await call(saver)
    assert contents(inner) == after


@pytest.mark.parametrize("number", range(4))
async def test_a_cancelled_waiter_with_nobody_behind_it_takes_the_entry_away(way: Way, number: int) -> None:
    """While it waits, as the lock becomes its own, or in the turns after that."""
    saver, cancels, ended = AsyncSaver(), list[Callable[[], object]](), list[str]()

    async def body(cancel: Callable[[], object]) -> None:
        cancels.append(cancel)
        try:
            await put(saver, "1")
        finally:
            ended.append("put")

    with anyio.fail_after(10):
        async with create_task_group() as tasks:
            async with saver._shared.locks.holding("t"):
                tasks.start_soon(way, body)
                await _turns(20)
                if number == 0:
                    cancels.pop()()
            await _turns(number - 1)
            if cancels and not ended:
                cancels.pop()()
    assert not saver._shared.locks._locks


async def test_a_cancelled_waiter_lets_go_of_its_own_lock_only(way: Way) -> None:
    """Not of the one that another call made for the conversation before the waiter came to its end."""
    saver, log = AsyncSaver(), []

    async def body(cancel: Callable[[], object]) -> None:
        cancels.append(cancel)
        await put(saver, "1")

    async def third() -> None:
        async with saver._shared.locks.holding("t"):
            log.append("third")

    cancels: list[Callable[[], object]] = []
    with anyio.fail_after(10):
        async with create_task_group() as tasks:
            async with saver._shared.locks.holding("t"):
                tasks.start_soon(way, body)
                await _turns(20)
                cancels[0]()
            async with saver._shared.locks.holding("t"):
                await _turns(20)
                tasks.start_soon(third)
                await _turns(20)
                log.append("second")
    assert log == ["second", "third"]
    assert len(saver._shared.locks) == 0
    assert await saver.acount() == 0


async def _turns(number: int) -> None:
    for _ in range(number):
        await yield_to_loop()


@pytest.mark.parametrize("call", WRITERS.values(), ids=WRITERS)
async def test_a_kept_exception_keeps_no_lock(way: Way, call: Call) -> None:
    """Somebody may keep what a cancelled call raised, with its traceback and all the frames in it."""
    template = await filled()
    for step in count(-1):
        saver = AsyncSaver(store=Waiting(copy.deepcopy(template)))
        with anyio.fail_after(10):
            raised = await _cancelled_in_a_queue(step, way, saver, call)
            assert len(saver._shared.locks) == 0
        if raised is None:
            break


async def test_of_two_locks_none_is_kept(way: Way) -> None:
    """A copy that holds its target, and is cancelled while it waits for its source."""
    inner = await filled()
    saver, released = AsyncSaver(store=inner), anyio.Event()

    async def hold(*, task_status: TaskStatus[None]) -> None:
        async with saver._shared.locks.holding("t"):
            task_status.started()
            await released.wait()

    async with create_task_group() as tasks:
        await tasks.start(hold)
        raised = await cancelled_at(0, way, saver.acopy_thread("t", "copy"))
        assert raised is not None
        assert len(saver._shared.locks) == 1
        with anyio.fail_after(10):
            await put(saver, "1", thread_id="copy")
        released.set()
    assert len(saver._shared.locks) == 0


# A worker thread that does what the callers wait for.


async def test_a_call_that_is_cancelled_before_it_is_begun_is_none(way: Way, file_store: Any) -> None:
    """The committer has not come to it yet: the caller does not wait for that, and nothing of it is ever stored."""
    saver, begun, go_on = AsyncSaver(store=file_store), threading.Event(), threading.Event()
    await put(saver, "1")
    before = contents(file_store)

    def work(writer: object) -> None:
        begun.set()
        assert go_on.wait(10)

    for call in (WRITERS["aput"], WRITERS["adelete_thread"], WRITERS["acopy_thread"], WRITERS["aprune, keep_latest"]):
        begun.clear()
        go_on.clear()
        with anyio.fail_after(10):
            async with create_task_group() as tasks:
                tasks.start_soon(file_store._engine.between, work)
                while not begun.is_set():
                    await yield_to_loop()
                await _cancelled_while_it_waits(way, saver, call)
                assert len(saver._shared.locks) == 0
                go_on.set()
        assert contents(file_store) == before


async def test_a_call_that_is_cancelled_after_it_was_begun_is_whole(way: Way, file_store: Any) -> None:
    """The committer is at it, here waiting for somebody else's lock: the caller does not wait for it any more."""
    saver = AsyncSaver(store=file_store)
    await put(saver, "0")
    for number, call in enumerate((WRITERS["aput"], WRITERS["aput_writes"], WRITERS["adelete_thread"])):
        before = contents(file_store)
        with closing(sqlite3.connect(path_of(file_store), isolation_level=None)) as other, anyio.fail_after(10):
            other.execute("BEGIN IMMEDIATE")
            await _cancelled_while_it_waits(way, saver, call, until=partial(_is_writing, file_store))
            assert len(saver._shared.locks) == 0
            other.execute("ROLLBACK")
        assert contents(file_store) != before, number
        file_store.check()


def _is_writing(store: Any) -> bool:
    using = store._engine._writer.using
    if is_free := using.acquire(blocking=False):
        using.release()
    return not is_free


async def _cancelled_while_it_waits(
    way: Way, saver: AsyncSaver, call: Call, until: Callable[[], bool] = lambda: True
) -> None:
    cancels: list[Callable[[], object]] = []

    async def body(cancel: Callable[[], object]) -> None:
        cancels.append(cancel)
        await call(saver)

    async def cancelled() -> None:
        assert await way(body) is not None

    async with create_task_group() as tasks:
        tasks.start_soon(cancelled)
        await _turns(20)
        while not until():
            await yield_to_loop()
        cancels.pop()()


# Calls that meet.


async def test_a_copy_is_of_one_moment_whatever_comes_between(way: Way) -> None:
    """While it is made, slice by slice, another loop goes on to write to its source; also when it is cancelled."""
    template = await filled()
    copies = 0
    for step in count(-1):
        inner = copy.deepcopy(template)
        moments = [conversation(inner, "t")]

        def write(number: int, inner: MemoryStore = inner, moments: "list[object]" = moments) -> None:
            if len(moments) < 3:  # more, and the copy is made at once
                with suppress(StopIteration):  # it never waits
                    inner.put_writes("t", "", "5", [WriteRecord(f"{number}", 0, "x", EMPTY, "", None)]).send(None)
                moments.append(conversation(inner, "t"))

        saver = AsyncSaver(store=inner)
        raised = await cancelled_at(step, way, saver.acopy_thread("t", "copy"), write)
        inner.check()
        assert conversation(inner, "t") == moments[-1]
        assert len(saver._shared.locks) == 0
        if "copy" in saver.storage:
            assert conversation(inner, "copy") in moments
            copies += 1
        if raised is None:
            break
    assert copies >= 2
    assert step > 20


def conversation(store: Any, thread_id: str) -> object:
    """What is stored of a conversation."""
    saver = AsyncSaver(store=store)
    if not isinstance(store, MemoryStore):
        listed, writes, versions = all_contents(saver)
        return (
            listed.get(thread_id),
            {key: found for key, found in writes.items() if key[0] == thread_id},  # in whatever order the rows are
            [one for one in versions if one[0] == thread_id],
        )
    return (
        {ns: dict(checkpoints) for ns, checkpoints in saver.storage[thread_id].items()},
        {key[1:]: dict(writes) for key, writes in saver.writes.items() if key[0] == thread_id},
        {key[1:]: blob for key, blob in saver.blobs.items() if key[0] == thread_id},
    )


async def test_in_a_crowd_each_cancelled_call_is_whole(
    way: Way, kind: str, new_store: NewStore, outer: Callable[[Any], Store]
) -> None:
    """Many tasks, on the same conversations, most of whose calls are cancelled somewhere."""
    inner = await filled(make_store=new_store)
    saver, acknowledged = AsyncSaver(store=outer(inner)), {}

    async def work(worker: int) -> None:
        draw = random.Random(worker)
        for number in range(8):
            call = draw.choice([*WRITERS.values(), *READERS.values()])
            with suppress(ThreadExistsError):
                await cancelled_at(draw.randrange(12), way, call(saver))
            name = f"{worker} {number}"
            raised = await cancelled_at(draw.randrange(12), way, put(saver, name, {"x": name}, thread_id="kept"))
            if raised is None:
                acknowledged[name] = {"x": name}

    with anyio.fail_after(60):
        async with create_task_group() as tasks:
            for worker in range(8):
                tasks.start_soon(work, worker)
    inner.check()
    assert len(saver._shared.locks) == 0
    stored = {
        one.checkpoint["id"]: one.checkpoint["channel_values"] for one in await all_of(saver.alist(config("kept")))
    }
    assert acknowledged
    assert acknowledged.items() <= stored.items()
    assert all(values == {"x": name} for name, values in stored.items())
