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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from async_saver import AsyncSaver, MemoryStore, PortalError, SerializationError
from async_saver.bridge import SyncBridge, bridge
from tests.build import checkpoint, config, ids, listed, put

pytestmark = pytest.mark.anyio


def test_every_sync_method_does_what_its_async_twin_does() -> None:
    """All of them, from a plain thread."""
    saver = AsyncSaver()
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
    saver.prune(["t"], strategy="keep_latest")
    assert ids(saver.list(config())) == ["2"]
    saver.delete_for_runs(["r"])
    assert saver.count() == 1
    saver.delete_thread("t")
    assert saver.count() == 0


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
    portal, caller = bridge._started(), threading.get_ident()
    start, arrived, go_on = portal.start_task_soon, threading.Event(), threading.Event()
    ran: list[str] = []

    async def busy() -> None:
        arrived.wait(10)
        signal.pthread_kill(caller, signal.SIGINT)
        go_on.wait(10)

    async def late() -> None:
        ran.append("late")

    async def later() -> None:
        ran.append("later")

    def starting(*args: Any) -> Any:
        arrived.set()
        return start(*args)

    start(busy)
    monkeypatch.setattr(portal, "start_task_soon", starting)
    with pytest.raises(KeyboardInterrupt):
        bridge.call(late)
    go_on.set()
    bridge.call(later)
    assert ran == ["later"]


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
    assert _portals() == before + 1


def _portals() -> int:
    return sum(worker.name == "async_saver portal" for worker in threading.enumerate())


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


@pytest.mark.parametrize(
    "late",
    [
        "def g():\n with saver: yield\nit = g(); next(it)",
        "class D:\n def __del__(self): saver.delete_thread('t')\nd = D()",
    ],
    ids=["generator", "finalizer"],
)
def test_a_call_while_the_interpreter_ends_returns(late: str) -> None:
    """A generator that is closed then, or a finalizer that runs then: the portal's worker has stopped for ever."""
    script = f"import async_saver\nsaver = async_saver.AsyncSaver()\nsaver.count()\n{late}\nprint('end')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_a_child_of_a_fork_has_a_portal_and_locks_of_its_own() -> None:
    """In a process of its own, as the portal's worker thread makes Python warn of forks."""
    script = """
import os, threading
from async_saver import AsyncSaver
from tests.build import checkpoint, config, ids
saver, stop = AsyncSaver(), threading.Event()
def write(number):
    while not stop.is_set():
        saver.put(config(f"{number}"), checkpoint("1"), {}, {})
workers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
for worker in workers:
    worker.start()
for number in range(20):
    child = os.fork()
    if not child:
        saver.put(config("child"), checkpoint("2"), {}, {})
        os._exit(0 if ids(saver.list(config("child"))) == ["2"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
for worker in workers:
    worker.join()
assert not list(saver.list(config("child")))
"""
    # From 3.12 on, Python warns of any fork of a process with threads; what it warns of is what is tested here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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
    monkeypatch.setattr(bridge, "_started", None)
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
