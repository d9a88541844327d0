"""P3, P7: a `KeyboardInterrupt`, at whatever moment it comes, tears nothing and leaves no call running."""

import ast
import asyncio
import copy
import faulthandler
import gc
import inspect
import linecache
import os
import random
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Container, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count, takewhile
from types import FrameType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint as yield_to_loop

import async_saver
from async_saver import AsyncSaver, MemoryStore, SerializationError, ThreadExistsError, compat, pace
from async_saver import locks as locks_module
from async_saver import saver as saver_module
from async_saver.bridge import SyncBridge
from async_saver.guard import guard
from async_saver.locks import ThreadLocks
from async_saver.stores import bucket, memory
from tests.build import checkpoint, config, ids
from tests.test_cancellation import WRITERS, Call, Waiting, contents, contents_after, filled
from tests.test_memory_store import random_call

_PACKAGE = os.path.dirname(async_saver.__file__)
_TESTS = os.path.dirname(__file__)
_LOOP = (os.path.dirname(asyncio.__file__), os.path.join(os.path.dirname(os.__file__), "selectors.py"))
_WEAK = tuple(os.path.join(os.path.dirname(os.__file__), name) for name in ("weakref.py", "_weakrefset.py"))

pytestmark = [
    pytest.mark.timeout(120, method="thread"),  # the other method has the one timer that is needed here
    # A coroutine is interrupted between its making and its first step, as Python has it.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


# Real signals, at random moments.


class Alarm:
    """Interrupts the main thread at a random moment of a piece of work: once, or not at all if the work ends before.

    Attributes:
        interrupts: How often it has interrupted.
        inside: How often it did while the package was at work.
    """

    def __init__(self, interrupt: Callable[[], object], spares_the_loop: bool) -> None:
        self.interrupts = self.inside = 0
        self._interrupt = interrupt
        self._spares_the_loop = spares_the_loop
        self._draw = random.Random(1)
        self._armed = self._watching = False

    def arm(self, longest: float) -> None:
        """Begin; an interrupt comes within `longest` seconds, unless `disarm` comes before."""
        delay = self._draw.uniform(1e-6, longest)
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, delay)

    def disarm(self) -> None:
        """End. An interrupt may be raised by this call still, but none once it is over or was interrupted."""
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def watch(self, seconds: float) -> None:
        """Let what hangs fail, instead of the whole run; 0 ends it."""
        self._watching = seconds > 0
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def handle(self, signum: int, frame: "FrameType | None") -> None:
        """Handle SIGALRM."""
        if self._watching:
            faulthandler.dump_traceback(sys.__stderr__)
            raise AssertionError("what came after an interrupt hangs")
        if not self._armed:
            return
        if self._must_wait(frame):
            signal.setitimer(signal.ITIMER_REAL, 3e-5)
            return
        self._armed = False
        self.interrupts += 1
        self.inside += any(name.startswith(_PACKAGE) for name in _files(frame))
        self.watch(20)
        self._interrupt()

    def _must_wait(self, frame: "FrameType | None") -> bool:
        if frame is None or frame.f_code.co_filename == __file__:
            return True  # in what is not tested, or as the last one was put off
        # Python itself loses what is raised in a weak reference's callback; and an exception that is raised right in
        # asyncio's own code, between a handle's being taken and its being run, makes asyncio.run() wait for ever.
        spared = (*_WEAK, *_LOOP) if self._spares_the_loop else _WEAK
        before = takewhile(lambda name: not name.startswith((_PACKAGE, _TESTS)), _files(frame))
        return any(name.startswith(spared) for name in before)


def _files(frame: "FrameType | None") -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def _raise() -> None:
    raise KeyboardInterrupt


def _send() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _frozen() -> Iterator[None]:
    """A garbage collection takes a fraction of a millisecond, as it looks at nothing that was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def _lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt that comes as a dropped generator is closed goes no further: Python loses it there."""
    report = sys.unraisablehook

    def lose(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            report(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", lose)


@pytest.fixture
def alarms(_frozen: None, _lost: None) -> Iterator[Callable[..., Alarm]]:
    """Makes an alarm, and takes every signal handler back in the end."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        pytest.skip("there are no timers that interrupt this thread")
    former = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT)}

    def make(interrupt: Callable[[], object], spares_the_loop: bool = False) -> Alarm:
        alarm = Alarm(interrupt, spares_the_loop)
        signal.signal(signal.SIGALRM, alarm.handle)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return alarm

    yield make
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in former.items():
        signal.signal(number, handler)


class Work:
    """Calls of every kind on a saver that lives through all interrupts, and a log of the acknowledged puts."""

    def __init__(self, saver: AsyncSaver, store: MemoryStore) -> None:
        self.saver = saver
        self.store = store
        self.draw = random.Random(2)
        self.acknowledged: list[str] = []
        self._numbers = count()

    async def some(self, saver: Any) -> None:
        """Make a few calls of `saver`, which may stand for the one that is tested."""
        for _ in range(3):
            with suppress(ThreadExistsError):
                await random_call(saver, self.draw)
            name = f"{next(self._numbers):06}"
            await saver.aput(config("kept"), checkpoint(name, {"x": name}, name), {}, {"x": name})
            self.acknowledged.append(name)

    def check(self) -> None:
        """Whatever was interrupted: all is sound, no lock is left, and what was acknowledged last is there."""
        self.store.check()
        if len(self.saver._shared.locks):
            gc.collect()  # frames of a traceback that is part of a circle
        assert len(self.saver._shared.locks) == 0
        if self.acknowledged:
            assert self.acknowledged[-1] in AsyncSaver(store=self.store).storage["kept"][""]

    def check_all(self) -> None:
        """All that was acknowledged is there, and all that is there is whole. Then begin anew, to stay fast."""
        stored = AsyncSaver(store=self.store)
        kept = {one.checkpoint["id"]: one.checkpoint["channel_values"] for one in stored.list(config("kept"))}
        assert set(self.acknowledged) <= kept.keys()
        assert all(values == {"x": name} for name, values in kept.items())
        self.acknowledged.clear()
        stored.delete_thread("kept")


class InSessions(Work):
    """All of it in sessions, which wait for one another; an interrupted one hinders nobody."""

    async def some(self, saver: Any) -> None:
        """Likewise."""
        async with self.saver.session("kept", timeout=20):
            await super().some(saver)

    def check(self) -> None:
        """Likewise, and the conversation is free."""
        super().check()
        asyncio.run(self._enter_and_leave())

    async def _enter_and_leave(self) -> None:
        async with self.saver.session("kept", multitask_strategy="reject"):
            pass
        assert not await self.saver.ais_busy("kept")


def interrupt_often(alarm: Alarm, rounds: Callable[[Callable[[], object]], object], work: Work) -> None:
    """Interrupt rounds of work a thousand times; `rounds` is called with what begins a round's span of danger."""
    longest = 0.002
    for number in count(1):
        if alarm.interrupts == 1000:
            break
        before = alarm.interrupts
        try:
            try:
                rounds(partial(alarm.arm, longest))
            finally:
                alarm.disarm()
        except BaseException as exc:
            if not _is_interrupt(exc):
                raise
            assert alarm.interrupts > before
        alarm.watch(20)
        # Half of the rounds end before they are interrupted, whatever the machine.
        longest *= 1.01 if alarm.interrupts > before else 0.99
        work.check()
        if number % 25 == 0:
            work.check_all()
        alarm.watch(0)
    work.check_all()
    assert alarm.inside > 300


def _is_interrupt(exc: BaseException) -> bool:
    """Tell whether this is an interrupt, a group with one, or what ormsgpack makes of one in its callback."""
    return isinstance(exc, (KeyboardInterrupt, SerializationError)) or any(
        map(_is_interrupt, getattr(exc, "exceptions", ()))
    )


@pytest.fixture
def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call yields to the loop wherever it can, so that many are under way at once."""
    monkeypatch.setattr(pace, "_SLICE", -1.0)
    monkeypatch.setattr(pace._pace, "until", -1.0)
    monkeypatch.setattr(memory, "_SLICE", -1.0)
    monkeypatch.setattr(memory, "_LARGE", 0)


@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize("kind", [Work, InSessions], ids=["calls", "sessions"])
@pytest.mark.parametrize("interrupt", [_raise, _send], ids=["raised at once", "as asyncio.run takes it"])
def test_interrupts_under_asyncio(
    alarms: Callable[..., Alarm], interrupt: Callable[[], object], kind: type[Work]
) -> None:
    """Raised wherever the main thread is (Python 3.10, a second Ctrl-C), or as a cancellation of the main task."""
    at_once = interrupt is _raise or sys.version_info < (3, 11)
    alarm, store = alarms(interrupt, spares_the_loop=at_once), MemoryStore()
    work = kind(AsyncSaver(store=store), store)

    async def main(begin: Callable[[], object]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # it would log each, at length
        tasks = [asyncio.ensure_future(work.some(work.saver)) for _ in range(3)]
        begin()
        try:
            await asyncio.wait(tasks)
        finally:
            alarm.disarm()
        for task in tasks:
            task.result()

    def run(begin: Callable[[], object]) -> None:
        asyncio.run(main(begin))

    interrupt_often(alarm, run, work)


@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize("kind", [Work, InSessions], ids=["calls", "sessions"])
def test_interrupts_under_trio(alarms: Callable[..., Alarm], kind: type[Work]) -> None:
    """Raised where trio lets them be, or else in the main task."""
    trio = pytest.importorskip("trio")
    alarm, store = alarms(_send), MemoryStore()
    work = kind(AsyncSaver(store=store), store)

    async def main(begin: Callable[[], object]) -> None:
        async with trio.open_nursery() as tasks:
            for _ in range(3):
                tasks.start_soon(work.some, work.saver)
            begin()
        alarm.disarm()

    interrupt_often(alarm, lambda begin: trio.run(main, begin), work)


@pytest.mark.parametrize("waits", [False, True], ids=["memory", "waiting"])
def test_interrupts_of_a_sync_caller(
    alarms: Callable[..., Alarm], monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Whatever it was waiting for: no call is left running on the portal, and the next one works."""
    fresh = SyncBridge()  # of this test alone, as no other should wait for one that it broke
    monkeypatch.setattr(saver_module, "bridge", fresh)
    alarm, store = alarms(_raise), MemoryStore()
    work = Work(AsyncSaver(store=Waiting(store) if waits else store), store)
    idle = fresh.call(_tasks)

    def run(begin: Callable[[], object]) -> None:
        begin()
        with suppress(StopIteration):  # it never waits
            work.some(FromSyncCode(work.saver, store)).send(None)

    def check() -> None:
        fresh.call(_all_but, idle)
        Work.check(work)
        work.saver.put(config("fresh"), checkpoint("1"), {}, {})
        assert ids(work.saver.list(config("fresh"))) == ["1"]
        work.saver.delete_thread("fresh")

    monkeypatch.setattr(work, "check", check)
    interrupt_often(alarm, run, work)


class FromSyncCode:
    """Has the async methods of a saver, each of which makes the sync call."""

    def __init__(self, saver: AsyncSaver, store: MemoryStore) -> None:
        views = AsyncSaver(store=store)
        self.storage, self.writes = views.storage, views.writes
        self._saver = saver

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._saver, name[1:])(*args, **kwargs)

        return call


async def _tasks() -> set[int]:
    """The ids of the tasks on this loop, but for this one."""
    return {task.id for task in anyio.get_running_tasks()} - {anyio.get_current_task().id}


async def _all_but(idle: set[int]) -> None:
    """Wait until no other tasks than these are left: not for long, and without giving them time."""
    for _ in range(50):
        left = await _tasks() - idle
        if not left:
            return
        await yield_to_loop()
    raise AssertionError(f"calls are left running: {anyio.get_running_tasks()}")


# Every line, one after the other.


class Cut(KeyboardInterrupt):
    """An interrupt."""


def cut_at(number: int, work: Callable[[], object], files: "Container[str] | None" = None) -> bool:
    """Do some work, and raise `Cut` at the `number`-th line that it runs in these files, or in all but this one.

    A function's return counts as a line, too; a generator's does not, as it is also told of each yield.

    Returns:
        Whether it ran as many.
    """
    left = number

    def of_frame(frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        return at_line if (name in files if files is not None else name != __file__) else None

    def at_line(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        is_moment = event == "line" or (event == "return" and not frame.f_code.co_flags & _YIELDS)
        if is_moment and not _leaves_the_guard(frame):
            left -= 1
            if left == -1:
                raise Cut
        return at_line

    # A collection in the midst of the work would end generators that were cut before, line by line.
    gc.collect()
    former, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(of_frame)
    try:
        work()
    except Cut:
        pass
    finally:
        sys.settrace(former)
        if collects:
            gc.enable()
    return left < 0


_YIELDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE


def _leaves_the_guard(frame: FrameType) -> bool:
    """Tell whether a signal can be raised here: Python looks for one after a call, and so before it leaves a `with`."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.strip() == "with guard:" and guard._is_owned()  # type: ignore[attr-defined]


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines on an event loop that outlives their interrupts."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.close()


@pytest.mark.parametrize("name", ["random calls", "copy"])
def test_nothing_raises_in_the_guard(name: str, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    """Where an interrupt meets an exception that leaves a `with`, Python 3.10 does not call its exit."""
    saver = AsyncSaver(store=run(filled(4, ("",))))
    draw = random.Random(3)
    raised = []

    async def some() -> None:
        for _ in range(200):
            with suppress(ThreadExistsError):
                await (random_call(saver, draw) if name != "copy" else saver.acopy_thread("t", "t"))

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "exception" and "guard" in frame.f_code.co_names and guard._is_owned():  # type: ignore[attr-defined]
            raised.append((frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name, arg))
        return trace

    sys.settrace(trace)
    try:
        run(some())
    finally:
        sys.settrace(None)
    assert not raised


@pytest.mark.usefixtures("_busy", "_frozen")
@pytest.mark.parametrize("name", list(WRITERS))
def test_a_write_interrupted_at_any_line_is_whole(name: str, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    """Before or after, and sound; the guard is free, for other worker threads too, and the same call does its work."""
    template, call = run(filled(4, ("",))), WRITERS[name]
    before, after = contents(template), run(contents_after(call, copy.deepcopy(template)))
    seen = set()
    with ThreadPoolExecutor(1) as others:
        for number in count():
            store = copy.deepcopy(template)
            saver = AsyncSaver(store=store)
            more = cut_at(number, partial(_run_new, run, call, saver), _STORE)
            assert others.submit(_guard_is_free).result(10)
            now = contents(store)
            assert now in (before, after)
            seen.add(now == after)
            with suppress(ThreadExistsError):  # a second copy
                run(call(saver))
            assert contents(store) == after
            if not more:
                break
    assert seen == {False, True}
    assert number > 40


def _run_new(run: Callable[[Coroutine[Any, Any, Any]], Any], call: Call, saver: AsyncSaver) -> None:
    run(call(saver))


@pytest.mark.parametrize("module", [memory, bucket, compat, saver_module], ids=lambda module: module.__name__)
def test_no_loop_stands_right_in_the_guard(module: Any) -> None:
    """Python 3.12 and 3.13 leave a `with` without its exit, if an interrupt comes as a loop there begins anew.

    A loop in a function that is called there does no harm, nor does a generator expression.
    """
    loops = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.With) and any(ast.unparse(item.context_expr) == "guard" for item in node.items):
            assert not [one.lineno for one in _in_this_frame(node) if isinstance(one, loops)]


def _in_this_frame(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp)):
            yield from _in_this_frame(child)


_STORE = (memory.__file__, bucket.__file__)


def _guard_is_free() -> bool:
    return guard.acquire(blocking=False) and not guard.release()


@pytest.mark.usefixtures("_frozen")
def test_an_interrupt_leaves_no_entry_of_a_lock(
    run: Callable[[Coroutine[Any, Any, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes, while a lock is made, taken, released or forgotten: also where Python has to ignore it."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    locks = ThreadLocks()

    async def hold() -> None:
        async with locks.holding("a", "b"):
            await yield_to_loop()

    for number in count():
        more = cut_at(number, lambda: run(hold()), (locks_module.__file__, weakref.__file__))
        run(asyncio.sleep(0))  # the loop lets go of the task, with its exception and all frames of the traceback
        gc.collect()
        assert len(locks) == 0, number
        run(asyncio.wait_for(hold(), 20))
        if not more:
            break
    assert number > 20


def test_a_sync_caller_interrupted_at_any_line_leaves_the_portal_as_it_was(alarms: Callable[..., Alarm]) -> None:
    """In whatever Python code it waits for its call: no call is left running, and the next one works."""
    alarm, fresh = alarms(_raise), SyncBridge()
    idle = fresh.call(_tasks)

    async def work() -> None:
        for _ in range(300):  # more than `_all_but` waits for
            await yield_to_loop()

    for number in count():
        alarm.watch(20)
        more = cut_at(number, lambda: fresh.call(work))
        fresh.call(_all_but, idle)
        alarm.watch(0)
        if not more:
            break
    assert number > 20
