"""P6 and P7: sync calls from anywhere, on any loop, in any worker thread, after any fork."""

import asyncio
import contextvars
import copy
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

import anyio
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from async_saver import AsyncSaver, MemoryStore, PortalError, SerializationError
from async_saver.bridge import SyncBridge, bridge
from async_saver.bridge import _Call as Call
from async_saver.bridge import _Portal as Portal
from async_saver.guard import guard
from tests.build import checkpoint, config, ids, listed, put
from tests.graphs import at_once
from tests.workers import output_of, together

pytestmark = pytest.mark.anyio


def every_sync_method(saver: AsyncSaver) -> None:
    """Call each, and look whether it does what its async twin does."""
    saver.setup()
    assert saver.put(config(), checkpoint("1", {"x": 1}), {"run_id": "r"}, {"x": "1"}) == config(checkpoint_id="1")
    saver.put_writes(config(checkpoint_id="1"), [("c", 1)], "task", "path")
    saver.copy_thread("t", "copy")
    saver.put(config(checkpoint_id="1"), checkpoint("2"), {}, {})
    found = saver.get_tuple(config(checkpoint_id="1"))
    assert found is not None
    assert found.pending_writes == [("task", "c", 1)]
    assert saver.get(config("copy")) == checkpoint("1", {"x": 1})
    assert ids(saver.list(config())) == ["2", "1"]
    assert saver.get_delta_channel_history(config=config(), channels=["c"]) == {"c": {"writes": [("task", "c", 1)]}}
    assert list(saver.thread_ids()) == ["t", "copy"]
    assert saver.count() == 2
    with saver.session("t"):
        assert saver.is_busy("t")
    assert not saver.is_busy("t")
    saver.prune(["t"], strategy="keep_latest")
    assert ids(saver.list(config())) == ["2"]
    saver.delete_for_runs(["r"])
    assert saver.count() == 1
    saver.delete_thread("t")
    assert saver.count() == 0


def test_every_sync_method_does_what_its_async_twin_does() -> None:
    """All of them, from a plain thread."""
    every_sync_method(AsyncSaver())


async def test_every_sync_method_does_so_in_a_coroutine(saver: AsyncSaver) -> None:
    """And from worker threads that it starts, directly and in turn, while its loop waits for them."""
    every_sync_method(saver)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(every_sync_method, saver).result(10)
        pool.submit(together, partial(every_sync_method, saver), seconds=10).result(10)


async def test_a_sync_call_on_an_event_loop_blocks_it_and_returns(saver: AsyncSaver) -> None:
    """Also while the conversation is held on that very loop."""
    async with saver._shared.locks.holding("t"):
        saver.put(config(), checkpoint("1"), {}, {})
        assert ids(saver.list(config())) == ["1"]


async def test_many_loops_and_threads_use_one_saver_at_once(saver: AsyncSaver) -> None:
    """Async on a loop per worker thread and sync from plain ones, all on the same conversation."""

    async def on_a_loop(worker: int) -> None:
        for number in range(20):
            await put(saver, f"{worker}-{number:03}", {"x": number})

    def plain(worker: int) -> None:
        for number in range(20):
            saver.put(config(), checkpoint(f"{worker}-{number:03}", {"x": number}), {}, {"x": f"{worker}-{number}"})

    def all_at_once() -> None:
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(anyio.run, on_a_loop, worker) for worker in range(4)]
            jobs += [pool.submit(plain, worker) for worker in range(4, 8)]
            for job in jobs:
                job.result()

    await anyio.to_thread.run_sync(all_at_once)
    assert await listed(saver, config()) == [f"{w}-{n:03}" for w in range(7, -1, -1) for n in range(19, -1, -1)]
    assert len(saver._shared.locks) == 0


def test_a_saver_outlives_its_loops() -> None:
    """Made before any loop, used by one after the other, and by sync code between."""
    saver = AsyncSaver()
    asyncio.run(put(saver, "1"))
    saver.put(config(), checkpoint("2"), {}, {})
    assert asyncio.run(listed(saver, config())) == ["2", "1"]


def test_errors_come_back_as_they_are() -> None:
    """With their own type, and the next call works."""
    saver = AsyncSaver()
    with pytest.raises(SerializationError, match="x"):
        saver.put(config(), checkpoint("1", {"x": object()}), {}, {"x": "1"})
    assert saver.get_tuple(config()) is None


def test_a_sync_call_on_the_portal_itself_is_refused() -> None:
    """It would wait for its own end."""

    class Asking(MemoryStore):
        async def count(self) -> int:
            return saver.count()

    saver = AsyncSaver(store=Asking())
    with pytest.raises(PortalError, match="async method"):
        saver.count()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_no_exception_ends_the_portal_for_everybody(kind: type[BaseException]) -> None:
    """One that is no `Exception` reaches its caller, and the next call works."""

    async def fail() -> None:
        raise kind("from the call")

    worker = bridge.call(_worker)
    with pytest.raises(kind, match="from the call"):
        bridge.call(fail)
    assert bridge.call(_worker) == worker


async def _worker() -> int:
    return threading.get_ident()


def test_values_are_read_in_their_callers_thread() -> None:
    """A slow type of one caller keeps no other waiting, and may itself call the saver."""
    threads: list[str] = []

    class Noting(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            threads.append(threading.current_thread().name)
            saver.count()
            return super().loads_typed(data)

        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            threads.append(threading.current_thread().name)
            saver.count()
            return super().dumps_typed(obj)

    saver = AsyncSaver(serde=Noting())
    saver.put(config(), checkpoint("1", {"x": 1}), {}, {"x": "1"})
    saver.put_writes(config(checkpoint_id="1"), [("c", 1)], "task")
    saver.put(config(checkpoint_id="1"), checkpoint("2"), {}, {})
    saver.get_tuple(config())
    assert ids(saver.list(config())) == ["2", "1"]
    assert saver.get_delta_channel_history(config=config(), channels=["c"]) == {"c": {"writes": [("task", "c", 1)]}}
    assert set(threads) == {threading.current_thread().name}
    assert len(threads) == 15


@pytest.mark.skipif(sys.platform == "win32", reason="signals go to a thread on POSIX only")
def test_what_interrupts_the_wait_cancels_the_call() -> None:
    """No call is left running behind a caller that is gone: a real SIGINT, sent once the call has begun."""
    ended, caller = threading.Event(), threading.get_ident()

    async def call() -> None:
        signal.pthread_kill(caller, signal.SIGINT)
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        bridge.call(call)
    assert ended.wait(10)


@pytest.mark.skipif(sys.platform == "win32", reason="signals go to a thread on POSIX only")
def test_a_call_that_is_interrupted_before_it_begins_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller has nothing yet to cancel it by, as the portal is busy with another call."""
    bridge.call(_worker)
    portal, caller = bridge._portal, threading.get_ident()
    start, arrived, go_on = portal.start, threading.Event(), threading.Event()
    ran: list[str] = []

    async def busy() -> None:
        arrived.wait(10)
        signal.pthread_kill(caller, signal.SIGINT)
        go_on.wait(10)

    async def late() -> None:
        ran.append("late")

    async def later() -> None:
        ran.append("later")

    def starting(*args: Any) -> None:
        arrived.set()
        start(*args)

    start(Call(busy))
    monkeypatch.setattr(portal, "start", starting)
    with pytest.raises(KeyboardInterrupt):
        bridge.call(late)
    go_on.set()
    bridge.call(later)
    assert ran == ["later"]


# What interrupts a thread in its own midst: a signal handler, or a finalizer that the garbage collector runs.


@pytest.fixture
def interrupted() -> Iterator[Callable[[Callable[[], Any]], list[Any]]]:
    """A function that runs another one in a handler of a signal; returns what that returned, or raised."""
    former = signal.getsignal(signal.SIGTERM)

    def interrupt(func: Callable[[], Any]) -> list[Any]:
        results: list[Any] = []

        def handler(*_: object) -> None:
            try:
                results.append(func())
            except PortalError as exc:
                results.append(exc)

        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        return results

    yield interrupt
    signal.signal(signal.SIGTERM, former)


def _in_session(saver: AsyncSaver) -> None:
    with saver.session("t"):
        pass


SYNC_CALLS: dict[str, Callable[[AsyncSaver], Any]] = {
    "setup": lambda saver: saver.setup(),
    "put": lambda saver: saver.put(config(), checkpoint("2"), {}, {}),
    "put_writes": lambda saver: saver.put_writes(config(checkpoint_id="1"), [("c", 1)], "task"),
    "get_tuple": lambda saver: saver.get_tuple(config()),
    "list": lambda saver: list(saver.list(config())),
    "get_delta_channel_history": lambda saver: saver.get_delta_channel_history(config=config(), channels=["c"]),
    "thread_ids": lambda saver: list(saver.thread_ids()),
    "count": lambda saver: saver.count(),
    "copy_thread": lambda saver: saver.copy_thread("t", "copy"),
    "prune": lambda saver: saver.prune(["t"]),
    "delete_for_runs": lambda saver: saver.delete_for_runs(["run"]),
    "delete_thread": lambda saver: saver.delete_thread("t"),
    "is_busy": lambda saver: saver.is_busy("t"),
    "sweep": lambda saver: saver.sweep(),
    "stats": lambda saver: saver.stats(),
    "session": _in_session,
    "del storage": lambda saver: saver.storage.__delitem__("t"),
    "storage.pop": lambda saver: saver.storage.pop("t"),
    "storage.clear": lambda saver: saver.storage.clear(),
}


@pytest.mark.parametrize("call", SYNC_CALLS.values(), ids=SYNC_CALLS.keys())
def test_a_signal_handler_is_refused_while_its_own_thread_is_inside(
    interrupted: Callable[[Callable[[], Any]], list[Any]], call: Callable[[AsyncSaver], Any]
) -> None:
    """It would wait for what it interrupts, or change it in its midst; elsewhere, and afterwards, it may call."""
    store = MemoryStore()
    saver = AsyncSaver(store=store)
    asyncio.run(put(saver, "1"))
    with guard:
        (refused,) = interrupted(lambda: call(saver))
    assert isinstance(refused, PortalError)
    assert "add_signal_handler" in str(refused)
    assert asyncio.run(listed(saver, None)) == ["1"]
    (done,) = interrupted(lambda: call(saver))
    assert not isinstance(done, PortalError)
    store.check()


def test_a_signal_handler_may_look_at_any_time(interrupted: Callable[[Callable[[], Any]], list[Any]]) -> None:
    """The views only read."""
    saver = AsyncSaver()
    asyncio.run(put(saver, "1", {"x": 1}))

    def look() -> tuple[list[str], int, int]:
        return list(saver.storage), len(saver.writes), len(saver.blobs)

    with guard:
        assert interrupted(look) == [(["t"], 0, 1)]
    assert interrupted(look) == [(["t"], 0, 1)]


async def test_a_signal_handler_may_call_while_its_loop_holds_the_conversation(
    interrupted: Callable[[Callable[[], Any]], list[Any]], saver: AsyncSaver
) -> None:
    """What it interrupts is not inside the store."""
    async with saver._shared.locks.holding("t"):
        assert interrupted(lambda: saver.put(config(), checkpoint("1"), {}, {})) == [config(checkpoint_id="1")]
    assert await listed(saver, config()) == ["1"]


def test_a_finalizer_is_refused_while_its_own_thread_is_inside() -> None:
    """The garbage collector runs it anywhere; one that comes elsewhere may call."""
    saver, results = AsyncSaver(), list[Any]()

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            try:
                results.append(saver.put(config(), checkpoint("1"), {}, {}))
            except PortalError as exc:
                results.append(exc)

    Garbage()
    with guard:
        gc.collect()
    Garbage()
    gc.collect()
    assert isinstance(results[0], PortalError)
    assert results[1:] == [config(checkpoint_id="1")]


class Starting:
    """A portal of its own, whose worker thread is stopped at its beginning until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bridge, self.before = SyncBridge(), _portals()
        self.arrived, self.go_on = threading.Event(), threading.Event()
        serve = Portal.serve

        def later(portal: Portal) -> None:
            self.arrived.set()
            self.go_on.wait(10)
            serve(portal)

        monkeypatch.setattr(Portal, "serve", later)


@pytest.mark.skipif(sys.platform == "win32", reason="signals go to a thread on POSIX only")
def test_an_interrupt_while_the_portal_starts_leaves_it_to_the_next_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real SIGINT, in the wait for a worker thread that takes its time."""
    starting, caller = Starting(monkeypatch), threading.get_ident()

    def interrupt() -> None:
        starting.arrived.wait(10)
        signal.pthread_kill(caller, signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        starting.bridge.call(_worker)
    helper.join()
    starting.go_on.set()
    found = {starting.bridge.call(_worker) for _ in range(3)}
    assert len(found) == 1
    _all_end_but_one(_portals() - starting.before, *found)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("result", ["raises", "calls"])
def test_what_interrupts_the_start_of_the_worker_thread_leaves_one_portal(
    monkeypatch: pytest.MonkeyPatch, late: bool, result: str
) -> None:
    """An interrupt, or a signal handler's own call, just before or just after the thread is there."""
    fresh, before, start = SyncBridge(), _portals(), threading.Thread.start
    found: list[int] = []

    def interrupt() -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        if result == "raises":
            raise KeyboardInterrupt
        found.append(fresh.call(_worker))

    def starting(worker: threading.Thread) -> None:
        if worker.name != "async_saver portal":
            return start(worker)
        if not late:
            interrupt()
        start(worker)
        if late:
            interrupt()
        return None

    monkeypatch.setattr(threading.Thread, "start", starting)
    with pytest.raises(KeyboardInterrupt) if result == "raises" else nullcontext():
        found.append(fresh.call(_worker))
    found += [fresh.call(_worker), fresh.call(_worker)]
    assert len({*found}) == 1
    _all_end_but_one(_portals() - before, *{*found})


def test_a_finalizer_on_a_portal_that_is_being_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run it there; it would wait for the start, and the start for it."""
    fresh, serve, caught = SyncBridge(), Portal.serve, list[PortalError]()

    def interrupted(portal: Portal) -> None:
        try:
            fresh.call(_worker)
        except PortalError as exc:
            caught.append(exc)
        serve(portal)

    monkeypatch.setattr(Portal, "serve", interrupted)
    together(lambda: fresh.call(_worker), seconds=10)
    assert len(caught) == 1


def test_a_portal_that_cannot_start_is_an_error_and_the_next_call_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it."""
    fresh, printed = SyncBridge(), list[str]()
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(str(args.exc_value)))
    with monkeypatch.context() as broken:
        broken.setattr(anyio, "run", lambda *_, **__: 1 / 0)
        with pytest.raises(PortalError, match="did not start"):
            fresh.call(_worker)
    assert printed == ["division by zero"]
    assert fresh.call(_worker) == fresh.call(_worker)


def test_a_cancelled_error_of_a_stores_own_ends_one_call_only() -> None:
    """A store may wait for something that somebody else cancels, and the portal is everybody's."""

    async def wait_for_what_is_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    before = bridge.call(_worker)
    with pytest.raises(PortalError, match="cancelled") as failed:
        bridge.call(wait_for_what_is_cancelled)
    assert isinstance(failed.value.__cause__, asyncio.CancelledError)
    assert bridge.call(_worker) == before


def test_a_portal_that_has_ended_lets_go_of_its_callers_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended it: of those who wait none waits for ever, and the next call finds another portal."""
    fresh, waiting = SyncBridge(), threading.Barrier(3)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    async def wait() -> None:
        await anyio.to_thread.run_sync(waiting.wait, 10)
        await anyio.sleep_forever()

    async def stop() -> None:
        await anyio.to_thread.run_sync(waiting.wait, 10)
        asyncio.get_running_loop().call_soon(sys.exit)
        await anyio.sleep_forever()

    def expect(call: Callable[[], Any]) -> None:
        with pytest.raises(PortalError):
            fresh.call(call)

    fresh.call(_worker)
    former = fresh._portal
    together(lambda: expect(stop), *[lambda: expect(wait)] * 2, seconds=20)
    fresh._workers[0].join(10)
    assert isinstance(fresh.call(_worker), int)
    assert fresh._portal is not former
    with pytest.raises(PortalError):
        former.start(Call(_worker))


def test_a_portal_has_a_context_of_its_own() -> None:
    """Its worker thread may be started in a copy of its starter's, who may be on trio, and whose values end with it."""
    fresh, variable = SyncBridge(), contextvars.ContextVar("variable", default="nobody's")
    found: list[str] = []
    context = contextvars.copy_context()
    context.run(variable.set, "the starter's")
    if find_spec("sniffio"):
        import sniffio

        context.run(sniffio.current_async_library_cvar.set, "trio")
    threading.Thread(target=context.run, args=(fresh._portal.serve,), daemon=True).start()

    async def look() -> None:
        asyncio.get_running_loop().call_soon(lambda: found.append(variable.get()))
        await anyio.lowlevel.checkpoint()

    fresh.call(look)
    assert found == ["nobody's"]


# From wherever LangGraph runs code.


of = config  # where `config` is LangGraph's name for an argument


def busy_graph(saver: AsyncSaver, threads: list[str]) -> Any:
    """A graph of two nodes at once and one after them, each of which calls the saver itself."""

    def use(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        here = {"configurable": {"thread_id": config["configurable"]["thread_id"]}}
        number = saver.get_next_version(None, None)
        saver.put(of("notes"), checkpoint(number, {"x": 1}), {}, {"x": "1"})
        assert number in ids(saver.list(of("notes")))
        assert saver.get_tuple(here) is not None
        in_thread = threading.Thread(target=saver.put_writes, args=(of("notes", number), [("c", 1)], "task"))
        in_thread.start()
        in_thread.join()
        assert saver.get_tuple(of("notes", number)).pending_writes == [("task", "c", 1)]  # type: ignore[union-attr]
        return {"log": ["used"]}

    return at_once(a=use, b=use).compile(checkpointer=saver)


class Counting(BaseCallbackHandler):
    """Asks the saver at every event that LangGraph tells of."""

    raise_error = True

    def __init__(self, saver: AsyncSaver) -> None:
        self.saver = saver
        self.asked = 0

    def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        self.saver.count()
        self.asked += 1

    on_chain_end = on_chain_start


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "executor"])
def test_nodes_and_callbacks_call_the_saver_of_their_own_graph(way: str) -> None:
    """In LangGraph's executors and beside them, in a thread that they start, in a callback: while the graph runs."""
    saver, threads = AsyncSaver(), list[str]()
    graph, callback = busy_graph(saver, threads), Counting(saver)
    where: RunnableConfig = {"configurable": {"thread_id": "run"}, "callbacks": [callback]}

    async def in_executor() -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, graph.invoke, {"log": ["in"]}, where)

    if way == "invoke":
        values = graph.invoke({"log": ["in"]}, where)
    elif way == "ainvoke":
        values = asyncio.run(graph.ainvoke({"log": ["in"]}, where))
    elif way == "stream":
        *_, values = graph.stream({"log": ["in"]}, where, stream_mode="values")
    else:
        values = asyncio.run(in_executor())
    assert values == {"log": ["in", "used", "used", "end3"]}
    assert len(threads) == 2
    assert len(list(saver.list(of("notes")))) == 2
    assert callback.asked > 4
    assert saver.count() == 2


async def test_a_coroutine_calls_for_a_callback_of_a_sync_call(saver: AsyncSaver) -> None:
    """A serde's hook that runs for a sync call on an event loop, which then calls again."""

    class Noting(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            saver.put(config("notes"), checkpoint(f"{saver.count()}"), {}, {})
            return super().loads_typed(data)

    await put(saver, "1", {"x": 1})
    reader = copy.copy(saver)
    reader.serde = Noting()
    assert ids(reader.list(config())) == ["1"]
    found = await reader.aget_tuple(config())
    assert found is not None
    assert await listed(saver, config("notes")) == ["2", "1"]


def test_a_call_runs_in_its_callers_context() -> None:
    """LangGraph and tracers pass things on in context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")

    async def read() -> str:
        return variable.get()

    token = variable.set("the caller's")
    assert bridge.call(read) == "the caller's"
    variable.reset(token)
    assert bridge.call(read) == "nobody's"


def test_two_first_callers_start_one_portal() -> None:
    """However many threads come at once."""
    fresh, before = SyncBridge(), _portals()
    barrier = threading.Barrier(8)

    def call() -> int:
        barrier.wait()
        return fresh.call(_worker)

    with ThreadPoolExecutor(8) as pool:
        assert len({job.result() for job in [pool.submit(call) for _ in range(8)]}) == 1
    assert len(_portals() - before) == 1


def _portals() -> set[threading.Thread]:
    return {worker for worker in threading.enumerate() if worker.name == "async_saver portal"}


def _all_end_but_one(started: set[threading.Thread], needed: int) -> None:
    """Wait for worker threads that turned out not to be needed; they end by themselves."""
    for worker in started:
        if worker.ident != needed:
            worker.join(10)
    assert [worker.ident for worker in started if worker.is_alive()] == [needed]


def test_dropped_savers_leave_no_thread_and_no_descriptor() -> None:
    """Two thousand, used once each and never closed."""
    AsyncSaver().count()
    gc.collect()
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    for _ in range(2000):
        AsyncSaver().put(config(), checkpoint("1"), {}, {})
    gc.collect()
    assert threading.active_count() <= threads
    assert len(os.listdir("/dev/fd")) <= descriptors


def test_a_script_that_closes_nothing_exits_cleanly() -> None:
    """With nothing printed, every warning shown."""
    script = "import async_saver as a; s = a.AsyncSaver(); s.delete_thread('t'); print(s.count())"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


LATE = {
    "generator": "def g():\n with saver: yield\nit = g(); next(it)",
    "finalizer": "class D:\n def __del__(self): use()\nd = D()",
    "atexit": "atexit.register(use)",
    "atexit, async": "atexit.register(lambda: asyncio.run(saver.acount()))",
    "worker thread": "threading.Thread(target=after_main).start()",
    "worker thread's loop": "threading.Thread(target=asyncio.run, args=(on_a_loop_after_main(),)).start()",
}


@pytest.mark.parametrize("portal", [False, True])
@pytest.mark.parametrize("late", LATE)
def test_a_call_while_the_interpreter_ends_returns(late: str, portal: bool) -> None:
    """Whether the portal runs (its worker stops for ever), or was never started (from 3.12 on none can be now).

    In that last case a call on an event loop cannot but be refused.
    """
    if late == "finalizer" and not portal:
        pytest.skip("after the modules are gone, nothing can be imported for a first call")
    script = f"""
import asyncio, atexit, sys, threading
from async_saver import AsyncSaver, PortalError
from tests.build import checkpoint, config, ids
saver = AsyncSaver()
def use():
    for number in "12":
        saver.put(config(), checkpoint(number, {{"x": 1}}), {{}}, {{"x": "1"}})
        assert ids(saver.list(config()))[0] == number
        saver.copy_thread("t", number)
        saver.prune(["t"])
    saver.delete_thread("t")
    assert sorted(saver.thread_ids()) == ["1", "2"]
def after_main():
    threading.main_thread().join()
    use()
async def on_a_loop_after_main():
    try:
        after_main()
    except PortalError as exc:
        assert "async method" in str(exc) and not {portal} and sys.version_info >= (3, 12), exc
{"saver.count()" if portal else ""}
{LATE[late]}
print("end")
"""
    assert output_of(script) == "end\n"


def test_a_call_while_the_interpreter_ends_is_silent_in_debug_mode() -> None:
    """Where asyncio looks up source lines; Python 3.13 imports something for it, and nothing can be imported now."""
    script = """
import logging
from async_saver import AsyncSaver
logging.getLogger("asyncio").setLevel("ERROR")  # it tells of slow steps, too, and the machine may be busy
saver = AsyncSaver()
def late():
    with saver.session("t"):
        yield
generator = late()
next(generator)
print("end")
"""
    assert output_of(script, "-X", "dev") == "end\n"


# Subclasses. InMemorySaver's are written in many ways; each method is overridden by itself.


class Both(AsyncSaver):
    """Runs its sync methods from its async ones, in a worker thread."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def put(self, *args: Any) -> Any:
        self.names.append("put")
        return super().put(*args)

    async def aput(self, *args: Any) -> Any:
        self.names.append("aput")
        return await asyncio.get_running_loop().run_in_executor(None, self.put, *args)


class OnlyAsync(AsyncSaver):
    """Runs the inherited sync methods from its async ones, on the loop."""

    async def aput(self, *args: Any) -> Any:
        return self.put(*args)

    async def aget_tuple(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.get_tuple, *args)


@pytest.mark.parametrize("cls", [Both, OnlyAsync])
def test_a_subclass_may_run_sync_methods_from_async_ones(cls: type[AsyncSaver]) -> None:
    """The two never call each other for ever, nor wait for each other."""
    saver = cls()
    asyncio.run(put(saver, "1"))
    saver.put(config(), checkpoint("2"), {}, {})
    assert asyncio.run(saver.aget(config())) == saver.get(config()) == checkpoint("2")
    if isinstance(saver, Both):
        assert saver.names == ["aput", "put", "put"]


def test_the_next_version_needs_no_portal(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangGraph asks for one at every write of every step."""
    monkeypatch.setattr(bridge, "_portal", None)
    assert AsyncSaver().get_next_version(None, None) < AsyncSaver().get_next_version("2.1", None)


def test_a_copied_saver_needs_nothing_new() -> None:
    """The portal belongs to the process."""
    saver = AsyncSaver()
    saver.put(config(), checkpoint("1"), {}, {})
    before = _portals()
    for twin in (copy.copy(saver), copy.deepcopy(saver)):
        assert twin.count() == 1
    assert _portals() == before
