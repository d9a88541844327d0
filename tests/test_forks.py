"""P6: after any fork, parent and child go on. Each test is a script of its own, as a fork takes its whole process."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.workers import FORKS_WITH_THREADS, output_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")

# A child that hangs says where, and ends; what it raises is complained of by its parent's script.
PRELUDE = """
import asyncio, faulthandler, os, signal, sys, threading, traceback
import anyio
from async_saver import AsyncSaver, MemoryStore, PortalError
from async_saver.guard import guard
from tests.build import checkpoint, config, ids, listed, put
from tests.graphs import add_one
from tests.workers import LOOPS, on_loop

def fork(work):
    faulthandler.cancel_dump_traceback_later()  # whose own thread does not survive a fork
    child = os.fork()
    if child:
        return child
    faulthandler.dump_traceback_later(30, exit=True)
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def wait(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def use(saver, name):
    # By sync code, then on every loop: what each puts, the next one finds.
    saver.put(config(name), checkpoint("1"), {}, {})
    async def put_more(number):
        async with anyio.create_task_group() as tasks:
            for part in "ab":
                async def one(part=part):
                    await put(saver, f"{number + 2}{part}", thread_id=name)
                tasks.start_soon(one)
        return await listed(saver, config(name))
    for number in range(len(LOOPS)):
        found = on_loop(number, put_more, number)
    saver.delete_for_runs(["unknown"])
    expected = ["1", *(f"{number + 2}{part}" for number in range(len(LOOPS)) for part in "ab")]
    assert found == ids(saver.list(config(name))) == expected[::-1], (found, expected)
    saver._shared.store.check()
"""


def runs(script: str, *options: str, threads: bool = True) -> None:
    """Run a script, which says nothing; of its warnings, that of forks beside threads is no error if it has threads."""
    if threads:
        options = ("-W", FORKS_WITH_THREADS, *options)
    assert output_of(PRELUDE + script, *options, seconds=90) == ""


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_children_and_parent_go_on_while_eight_threads_write(kind: str, tmp_path: Path) -> None:
    """Fifty forks: a child holds what was acknowledged before it, and both read and write, async and sync.

    In memory neither sees what the other one stores then; a file is one for both.
    """
    path = str(tmp_path / "file") if kind == "file" else None
    runs(
        f"path, forks = {path!r}, {50 if path is None else 20}"
        + """
from async_saver.stores.sqlite import SQLiteStore
saver, stop = AsyncSaver(store=MemoryStore() if path is None else SQLiteStore(path)), threading.Event()
acknowledged = [-1] * 8
all_write = threading.Barrier(9)  # a child that is forked during an import can never do the same import

def plain(worker):
    while not stop.is_set():
        number = acknowledged[worker] + 1
        made = checkpoint(f"{number:06}", {"x": number}, f"{number}")
        saver.put(config(f"worker {worker}"), made, {}, {"x": f"{number}"})
        saver.put_writes(config(f"worker {worker}", f"{number:06}"), [("x", number)], "task")
        acknowledged[worker] = number
        if not number:
            all_write.wait()
        if number % 50 == 49:
            saver.prune([f"worker {worker}"])

async def on_a_loop(worker):
    while not stop.is_set():
        number = acknowledged[worker] + 1
        await put(saver, f"{number:06}", {"x": number}, thread_id=f"worker {worker}")
        await saver.aput_writes(config(f"worker {worker}", f"{number:06}"), [("x", number)], "task")
        acknowledged[worker] = number
        if not number:
            all_write.wait()
        if number % 50 == 49:
            await saver.aprune([f"worker {worker}"])
        if number % 10 == 9:
            await anyio.sleep(0.001)  # or they would leave no time to the rest

def all_there():
    saver._shared.store.check()
    for worker, number in enumerate(acknowledged):
        if number >= 0:
            found = saver.get_tuple(config(f"worker {worker}"))
            assert found.checkpoint["id"] >= f"{number:06}"
            if found.checkpoint["id"] == f"{number:06}":
                assert found.checkpoint["channel_values"] == {"x": number}
                assert found.pending_writes == [("task", "x", number)]

def child(number):
    all_there()
    use(saver, f"child {number if path else ''}")

workers = [threading.Thread(target=plain, args=(worker,)) for worker in range(4)]
workers += [threading.Thread(target=on_loop, args=(worker, on_a_loop, worker)) for worker in range(4, 8)]
for worker in workers:
    worker.start()
all_write.wait()
first = None
try:
    for number in range(forks):
        started = fork(lambda: child(number))
        saver.put(config("parent"), checkpoint(f"{number:03}"), {}, {})
        on_loop(number, put, saver, f"{number:03} again", None)
        wait(started)
        first = first or list(acknowledged)
finally:
    stop.set()
    for worker in workers:
        worker.join()
assert all(was < now for was, now in zip(first, acknowledged)), (first, acknowledged)
assert len(ids(saver.list(config("parent")))) == len(ids(saver.list(config("t")))) == forks
children = [one for one in saver.thread_ids() if one.startswith("child")]
assert len(children) == (forks if path else 0), children
all_there()
with saver:  # which closes the file in the end
    pass
"""
    )


@pytest.mark.parametrize("before", ["nothing", "sync calls"])
def test_what_is_built_before_the_fork_works_in_every_worker_process(before: str) -> None:
    """As servers preload their application; where nothing was called before the fork, there is nothing to warn of."""
    runs(
        f"""
saver = AsyncSaver()
graph = add_one().compile(checkpointer=saver)
preloaded = {before != "nothing"}
if preloaded:
    graph.invoke(1, config("preloaded", ns=None))

def worker(grandchildren=True):
    assert saver.count() == preloaded
    assert graph.invoke(1, config("run", ns=None)) == 2
    assert asyncio.run(graph.ainvoke(2, config("run", ns=None))) == 3
    assert graph.get_state(config("run", ns=None)).values == 3
    assert graph.get_state(config("preloaded", ns=None)).values == (2 if preloaded else {{}})
    use(saver, "run by hand")
    if preloaded and grandchildren:
        saver.delete_thread("run")
        saver.delete_thread("run by hand")
        wait(fork(lambda: worker(False)))

for child in [fork(worker), fork(worker)]:
    wait(child)
assert saver.count() == preloaded
use(saver, "parent")
""",
        threads=before != "nothing",
    )


@pytest.mark.parametrize("before", ["", "saver.put(config(), checkpoint('0'), {}, {})"], ids=["fresh", "portal"])
@pytest.mark.parametrize("number", range(1 + bool(find_spec("trio")) + bool(find_spec("uvloop"))))
def test_sync_calls_work_in_a_child_that_was_forked_by_a_coroutine(number: int, before: str) -> None:
    """While it holds the conversation on its loop; the parent's loop goes on."""
    runs(f"""
saver = AsyncSaver()
{before}

def child():
    saver.put(config(), checkpoint("1", {{"x": 1}}), {{}}, {{"x": "1"}})
    assert saver.get(config()) == checkpoint("1", {{"x": 1}})
    saver.prune(["t"])
    assert ids(saver.list(config())) == ["1"]

async def main():
    await put(saver, "0")
    async with saver._shared.locks.holding("t"):
        started = fork(child)
    saver.put(config(), checkpoint("2"), {{}}, {{}})
    await put(saver, "3")
    wait(started)
    assert await listed(saver, config()) == ["3", "2", "0"]

on_loop({number}, main)
""")


@pytest.mark.parametrize("lock", ["guard", "bridge._starting", "_entering"])
def test_a_fork_waits_for_a_thread_that_is_inside(lock: str) -> None:
    """The child would inherit the lock, held by nobody, and what it guards, half changed."""
    runs(f"""
from async_saver.bridge import bridge
from async_saver.saver import _entering
saver, inside, forking, halves = AsyncSaver(), threading.Event(), threading.Event(), []
os.register_at_fork(before=forking.set)  # the latest is called first

def hold():
    with {lock}:
        halves.append("first")
        inside.set()
        forking.wait()
        halves.append("second")

holder = threading.Thread(target=hold)
holder.start()
inside.wait()
sys.setswitchinterval(60)  # once it is told of the fork, the holder goes on only if the fork waits for it

def child():
    sys.setswitchinterval(0.005)
    assert halves == ["first", "second"], halves
    with saver:
        use(saver, "child")

started = fork(child)
sys.setswitchinterval(0.005)
holder.join()
with saver:
    use(saver, "parent")
wait(started)
""")


def test_a_signal_handler_may_fork_in_the_midst_of_a_stores_work() -> None:
    """Its own thread is in the guard: the fork does not wait for that; both finish the work, and both are refused."""
    runs("""
class Interrupted(MemoryStore):
    def _commit(self, steps):
        if interrupting:
            signal.raise_signal(interrupting.pop())
        super()._commit(steps)

saver, interrupting, children, refused = AsyncSaver(store=Interrupted()), [], [], []

def handler(*_):
    children.append(os.fork())
    if not children[0]:
        faulthandler.dump_traceback_later(30, exit=True)
    try:
        saver.count()
    except PortalError as exc:
        refused.append(exc)

signal.signal(signal.SIGUSR1, handler)
asyncio.run(put(saver, "1"))
interrupting.append(signal.SIGUSR1)
del saver.storage["t"]
assert len(refused) == 1
assert not guard._is_owned()
assert saver.count() == 0
use(saver, "later")
if children[0]:
    wait(children[0])
else:
    os._exit(0)
""")


def test_a_signal_handler_may_fork_in_the_midst_of_a_sync_call() -> None:
    """And return, in both processes: the child's call is lost, as its portal is, and its next one works."""
    runs("""
class Slow(MemoryStore):
    async def count(self):
        if not forked:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            await anyio.to_thread.run_sync(handled.wait, 20)
        return await super().count()

def handle(*args):
    forked.append(os.fork())
    handled.set()

forked, handled = [], threading.Event()
signal.signal(signal.SIGUSR1, handle)
saver = AsyncSaver(store=Slow())
try:
    found = saver.count()
except PortalError as exc:
    found = str(exc)
if forked == [0]:
    faulthandler.dump_traceback_later(30, exit=True)
    os._exit(0 if "forked" in found and saver.count() == 0 else 1)
assert found == 0
wait(forked[0])
""")
