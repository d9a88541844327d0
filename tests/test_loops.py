"""P6: one saver for many event loops and worker threads, at once and one after the other."""

import asyncio
import copy
import gc
import random
import sys
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import anyio
import pytest
import pytest_asyncio
from anyio.lowlevel import checkpoint as yield_to_loop
from langgraph.checkpoint.base import CheckpointTuple

from async_saver import AsyncSaver, MemoryStore, Store
from async_saver.guard import guard
from async_saver.stores.bucket import Bucket
from tests.build import all_of, checkpoint, config, ids, listed, put
from tests.stores import NewStore, contents
from tests.workers import LOOPS, on_loop, together

SAVER = AsyncSaver()
"""Built at import, where there is no event loop; each test has conversations of its own here."""


# At once. What is stored says of itself what it should be: a checkpoint's values and writes follow from its id.


class Sync:
    """The sync methods under the names of the async ones, so that one program tests both."""

    def __init__(self, saver: AsyncSaver) -> None:
        self._saver = saver

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._saver, name[1:])

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        async def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            for one in method(*args, **kwargs):
                yield one

        return iterate if name in ("alist", "athread_ids") else call


def finished(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration):
        work.send(None)


def values_of(checkpoint_id: str) -> dict[str, Any]:
    """The values of a checkpoint."""
    return {"x": checkpoint_id, "y": [checkpoint_id] * 3}


def assert_whole(found: CheckpointTuple) -> None:
    """All of its values are there, and both of its writes or neither."""
    checkpoint_id = found.checkpoint["id"]
    assert found.checkpoint["channel_values"] == values_of(checkpoint_id)
    assert found.metadata["step"] == checkpoint_id
    both = [("task", "x", checkpoint_id), ("task", "y", checkpoint_id)]
    assert found.pending_writes in ([], both)


class Worker:
    """Calls one saver in an order that its number fixes; `acknowledged` is what it was told is stored.

    It alone works on the conversation "own-..." and on the copies that it makes. To "log" all only put. With
    "shared-..." all do everything, and the checkpoints of "shared-delta" have a `DeltaChannel`.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.draw = random.Random(f"{seed} {number}")
        self.own = f"own-{number}"
        self.acknowledged: dict[str, list[str]] = {self.own: [], "log": []}
        self.copies: dict[str, list[CheckpointTuple]] = {}
        self.count = self.names = 0

    async def work(self, saver: Any) -> None:
        for _ in range(40):
            await self.draw.choice([self.in_own, self.in_log, self.in_shared, self.in_shared])(saver)

    async def store(self, saver: Any, thread_id: str, checkpoint_id: str, run_id: str, parent: str | None) -> None:
        where = config(thread_id, checkpoint_id, run_id=run_id)
        if self.draw.random() < 0.5:
            await saver.aput_writes(where, [("x", checkpoint_id), ("y", checkpoint_id)], "task")
        made = checkpoint(checkpoint_id, values_of(checkpoint_id), checkpoint_id)
        metadata: dict[str, Any] = {"step": checkpoint_id}
        if thread_id == "shared-delta":
            made["channel_versions"]["d"] = checkpoint_id
            metadata["counters_since_delta_snapshot"] = {"d": (1, 1)}
        new = dict.fromkeys(("x", "y"), checkpoint_id)
        await saver.aput(config(thread_id, parent, run_id=run_id), made, metadata, new)

    async def in_own(self, saver: Any) -> None:
        """What this worker was told is all that is there, at once and always."""
        stored, kind = self.acknowledged[self.own], self.draw.randrange(8)
        if kind < 5:
            self.count += 1
            checkpoint_id = f"{self.count:03}"
            parent = stored[-1] if stored else None
            await self.store(saver, self.own, checkpoint_id, f"{self.own}-{checkpoint_id}", parent)
            stored.append(checkpoint_id)
        elif kind == 5:
            await saver.aprune([self.own])
            del stored[:-1]
        elif kind == 6 and stored:
            gone = self.draw.choice(stored)
            await saver.adelete_for_runs([f"{self.own}-{gone}"])  # of its copies, too
            stored.remove(gone)
            for target, copied in self.copies.items():
                if target.endswith(self.own):
                    copied[:] = [one for one in copied if one.checkpoint["id"] != gone]
        else:
            await self.copy(saver, self.own)
        assert ids(await self.read(saver, self.own)) == stored[::-1]
        latest = await saver.aget_tuple(config(self.own))
        assert (latest.checkpoint["id"] if latest else None) == (stored[-1] if stored else None)

    async def in_log(self, saver: Any) -> None:
        """Nobody deletes here, so a reader finds no gap in what one worker put, and at least what it was told."""
        stored = self.acknowledged["log"]
        if self.draw.random() < 0.7:
            # What each puts falls between what the others put, most often before the greatest id.
            checkpoint_id = f"{len(stored):03}-{self.number:02}"
            await self.store(saver, "log", checkpoint_id, "log", None)
            stored.append(checkpoint_id)
            return
        told = list(stored)
        found = await self.read(saver, (await self.copy(saver, "log")) or "log")
        assert [i for i in reversed(ids(found)) if i.endswith(f"-{self.number:02}")] == told
        for number in range(16):
            theirs = sorted(i for i in ids(found) if i.endswith(f"-{number:02}"))
            assert theirs == [f"{place:03}-{number:02}" for place in range(len(theirs))]

    async def in_shared(self, saver: Any) -> None:
        thread_id, kind = self.draw.choice(["shared-0", "shared-1", "shared-delta"]), self.draw.randrange(12)
        if kind < 5:
            self.count += 1
            checkpoint_id, parent = f"{self.count:03}-{self.number:02}", f"{self.count - 1:03}-{self.number:02}"
            await self.store(saver, thread_id, checkpoint_id, f"run-{self.draw.randrange(4)}", parent)
        elif kind == 5:
            await saver.aprune([thread_id, "shared-0", "unknown"])
        elif kind == 6:
            await saver.adelete_thread(thread_id)
        elif kind == 7:
            await saver.adelete_for_runs([f"run-{self.draw.randrange(4)}"])
        elif kind == 8:
            await self.copy(saver, thread_id)
        elif kind == 9:
            latest = await saver.aget_tuple(config(thread_id))
            if latest is not None:
                assert_whole(latest)
                await saver.aget_delta_channel_history(config=latest.config, channels=["d"])
        elif kind == 10:
            assert self.own not in await all_of(saver.athread_ids()) or self.acknowledged[self.own]
            assert await saver.acount() >= len(self.copies)
        else:
            await self.read(saver, thread_id)

    async def copy(self, saver: Any, source: str) -> str | None:
        """Copy to a name that nobody else uses; return it if anything was there to be copied."""
        self.names += 1
        target = f"copy-{self.number}-{self.names}-{source}"
        await saver.acopy_thread(source, target)
        copied = await self.read(saver, target)
        if copied:
            self.copies[target] = copied
        return target if copied else None

    async def read(self, saver: Any, thread_id: str) -> list[CheckpointTuple]:
        found = await all_of(saver.alist(config(thread_id)))
        for one in found:
            assert_whole(one)
        return found


@pytest.fixture
def busy() -> Iterator[None]:
    """Worker threads take turns a hundred times as often as they would."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("seed", range(3))
def test_eight_loops_and_eight_plain_threads_use_one_saver_at_once(new_store: NewStore, seed: int) -> None:
    """Nothing hangs, nothing that was acknowledged is lost, and no reader sees half of anything."""
    store = new_store()
    saver = AsyncSaver(store=store)
    workers = [Worker(number, seed) for number in range(16)]

    def job(worker: Worker) -> Callable[[], None]:
        if worker.number < 8:
            return partial(on_loop, worker.number, worker.work, saver)
        return lambda: finished(worker.work(Sync(saver)))

    together(*map(job, workers))
    store.check()
    gc.collect()  # tracebacks that hold locks
    assert len(saver._shared.locks) == 0
    log = sorted(i for worker in workers for i in worker.acknowledged["log"])
    assert ids(saver.list(config("log"))) == log[::-1]
    for worker in workers:
        assert ids(saver.list(config(worker.own))) == worker.acknowledged[worker.own][::-1]
        for target, copied in worker.copies.items():
            left = list(saver.list(config(target)))
            # Others delete runs from copies of what is shared.
            assert left == ([one for one in copied if one in left] if "shared" in target else copied)
    saver.prune(list(saver.thread_ids()), strategy="delete")
    if new_store.kind == "memory":
        assert not store._buckets
        assert not store._runs
    assert not any(contents(saver))


class Watched(OrderedDict[str, Bucket]):
    """The buckets of a store; asks at every look and every change whether it comes from inside the guard."""

    def __getattribute__(self, name: str) -> Any:
        assert_inside()
        return super().__getattribute__(name)

    def __getitem__(self, key: str) -> Bucket:
        assert_inside()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Bucket) -> None:
        assert_inside()
        super().__setitem__(key, value)

    def __contains__(self, key: object) -> bool:
        assert_inside()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        assert_inside()
        return super().__iter__()

    def __len__(self) -> int:
        assert_inside()
        return super().__len__()


def assert_inside() -> None:
    """The calling thread has the guard."""
    assert guard._is_owned()  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_whatever_is_looked_at_or_changed_is_so_inside_the_guard() -> None:
    """By every method, so that no two loops or threads are ever in each other's midst."""
    store = MemoryStore()
    saver = AsyncSaver(store=store)
    with guard:
        store._buckets = Watched()
    for worker in (Worker(0, 0), Worker(1, 1)):
        await worker.work(saver)
        finished(worker.work(Sync(saver)))
    for thread_id, namespaces in saver.storage.items():
        assert [*namespaces]
        assert [*saver.storage[thread_id].items()]
    assert [*saver.writes.items()]
    assert [*saver.blobs.items()]
    copy.deepcopy(saver)
    saver.storage.clear()
    assert await saver.acount() == 0


class Held(Store):
    """Holds its first put until it is told to go on."""

    in_order = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.arrived, self.go_on = threading.Event(), threading.Event()

    async def put(self, *args: Any) -> bool:
        if not self.arrived.is_set():
            self.arrived.set()
            while not self.go_on.is_set():
                await yield_to_loop()
        return await super().put(*args)


@pytest.mark.parametrize("number", range(len(LOOPS)))
@pytest.mark.parametrize("other", [*range(len(LOOPS)), "sync"])
def test_a_conversation_held_on_one_loop_holds_up_no_other(new_store: NewStore, number: int, other: Any) -> None:
    """Their locks are not the same, so one loop never waits for what another would have to wake it for."""
    store = new_store(Held)
    saver = AsyncSaver(store=store)

    def first() -> None:
        on_loop(number, put, saver, "1")

    def second() -> None:
        store.arrived.wait(10)
        if other == "sync":
            saver.put(config(), checkpoint("2"), {}, {})
        else:
            on_loop(other, put, saver, "2")
        store.go_on.set()

    try:
        together(first, second, seconds=10)
    finally:
        store.go_on.set()
    assert ids(saver.list(config())) == ["2", "1"]


# One after the other.


def test_a_saver_built_at_import_is_used_by_one_loop_after_the_other(new_store: NewStore) -> None:
    """Each finds what was stored before it, on another loop or by sync code, and contends for the conversation anew."""
    saver = SAVER if new_store.kind == "memory" else AsyncSaver(store=new_store())

    async def in_turn(number: int) -> list[str]:
        async with anyio.create_task_group() as tasks:
            for part in "abc":
                tasks.start_soon(partial(put, saver, f"{number:02}{part}", thread_id="in turn"))
        return await listed(saver, config("in turn"))

    expected: list[str] = []
    for number in range(3 * len(LOOPS)):
        saver.put(config("in turn"), checkpoint(f"{number:02}"), {}, {})
        expected += [f"{number:02}", *(f"{number:02}{part}" for part in "abc")]
        assert on_loop(number, in_turn, number) == expected[::-1]
    assert ids(saver.list(config("in turn"))) == expected[::-1]
    gc.collect()  # tracebacks that hold locks
    assert len(saver._shared.locks) == 0


def test_a_loop_that_ends_in_the_midst_of_calls_leaves_nothing_held(new_store: NewStore) -> None:
    """`asyncio.run` cancels them; the same conversation goes on on the next loop."""
    store = new_store(Held)
    saver = AsyncSaver(store=store)

    async def leave() -> None:
        tasks = [asyncio.create_task(put(saver, f"{number}")) for number in range(3)]
        await yield_to_loop()
        await yield_to_loop()
        assert store.arrived.is_set()
        assert len(saver._shared.locks) == 1
        assert not any(task.done() for task in tasks)

    asyncio.run(leave())
    gc.collect()  # tracebacks that hold locks
    assert len(saver._shared.locks) == 0
    asyncio.run(put(saver, "9"))
    assert asyncio.run(listed(saver, config())) == ["9"]


# pytest-asyncio has a loop for each function, for the module and for the session, and runs fixtures on them in turn.

LOOPS_SEEN: dict[str, asyncio.AbstractEventLoop] = {}


async def put_five(saver: AsyncSaver, scope: str) -> None:
    """Put five at once, which contend for the conversation, on a loop that is known to be of its own."""
    loop = asyncio.get_running_loop()
    assert LOOPS_SEEN.setdefault(scope, loop) is loop
    assert len(set(LOOPS_SEEN.values())) == len(LOOPS_SEEN)
    before = await listed(saver, config("fixtures"))
    new = [f"{len(before) + number:03}" for number in range(5)]
    await asyncio.gather(*(put(saver, one, thread_id="fixtures") for one in new))
    assert await listed(saver, config("fixtures")) == new[::-1] + before


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def of_session() -> AsyncIterator[AsyncSaver]:
    """Used on the session's loop before and after all tests."""
    await put_five(SAVER, "session")
    yield SAVER
    await put_five(SAVER, "session")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_module(of_session: AsyncSaver) -> AsyncIterator[AsyncSaver]:
    """Entered and left on the module's loop, in two tasks."""
    async with of_session as entered:
        await put_five(entered, "module")
        yield entered
        await put_five(entered, "module")


@pytest_asyncio.fixture(loop_scope="module")
async def of_function(of_module: AsyncSaver) -> AsyncIterator[AsyncSaver]:
    """For one test only, on the module's loop."""
    await put_five(of_module, "module")
    yield of_module
    await put_five(of_module, "module")


@pytest.mark.parametrize("number", range(2))
@pytest.mark.asyncio
async def test_a_function_has_its_loop(of_function: AsyncSaver, number: int) -> None:
    """Another one for each test, and other ones than the fixtures'."""
    await put_five(of_function, f"function {number}")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_module_has_its_loop(of_function: AsyncSaver) -> None:
    """The fixtures' own."""
    await put_five(of_function, "module")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_session_has_its_loop(of_function: AsyncSaver) -> None:
    """The outermost."""
    await put_five(of_function, "session")


@pytest.mark.anyio
async def test_the_plugin_of_anyio_has_loops_of_its_own() -> None:
    """The same saver on every backend, between the tests of pytest-asyncio."""
    before = await listed(SAVER, config("plugin"))
    await put(SAVER, f"{len(before)}", thread_id="plugin")
    assert await listed(SAVER, config("plugin")) == [f"{len(before)}", *before]


@pytest.mark.asyncio
async def test_trio_as_a_guest_of_asyncio_has_locks_of_its_own() -> None:
    """Two event loops that share one worker thread: what the host holds, the guest need not wait for."""
    trio = pytest.importorskip("trio")
    saver, loop = AsyncSaver(), asyncio.get_running_loop()
    locks, held = saver._shared.locks, list[int]()

    async def guest() -> object:
        async with locks.holding("t"):
            held.append(len(locks))
        await put(saver, "1")
        return anyio.get_cancelled_exc_class()

    done = loop.create_future()
    async with locks.holding("t"):
        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        outcome = await asyncio.wait_for(done, 10)
    assert (outcome.unwrap(), held, len(locks)) == (trio.Cancelled, [2], 0)
    await put(saver, "2")
    assert await listed(saver, config()) == ["2", "1"]


# Entered in one place and left in another.


@pytest.mark.anyio
async def test_a_saver_entered_in_one_task_is_left_in_another(saver: AsyncSaver) -> None:
    """Nothing of the first task is held, though it has ended, and the last exit closes what there is to close."""
    closed: list[str] = []

    async def enter() -> None:
        with anyio.CancelScope():
            await saver.__aenter__()
        saver.stack.callback(closed.append, "closed")

    async def leave() -> None:
        with anyio.fail_after(10):
            await saver.__aexit__(None, None, None)

    for step, still_open in ((enter, True), (enter, True), (leave, True), (leave, False)):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)
        assert closed == ([] if still_open else ["closed", "closed"])
    await put(saver, "1")
    assert await listed(saver, config()) == ["1"]


def test_a_saver_entered_in_one_thread_is_left_in_another(saver: AsyncSaver) -> None:
    """By `with` or by `async with` on any loop, in any order; both worker threads and both loops may be gone."""
    closed = list[str]()

    def leave() -> None:
        saver.__exit__(None, None, None)

    async def aleave() -> None:
        await saver.__aexit__(None, None, None)

    enters = [saver.__enter__, *(partial(on_loop, number, saver.__aenter__) for number in range(len(LOOPS)))]
    leaves = [leave, *(partial(on_loop, number, aleave) for number in range(len(LOOPS)))]
    for enter in enters:
        for leaving in leaves:
            together(enter)
            saver.stack.callback(closed.append, "closed")
            saver.put(config(), checkpoint("1"), {}, {})
            together(leaving)
            assert closed == ["closed"]
            closed.clear()
    together(*enters)
    saver.stack.callback(closed.append, "closed")
    together(*leaves[1:])
    assert closed == []
    together(leaves[0])
    assert closed == ["closed"]
