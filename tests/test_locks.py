"""P4: calls on one conversation in order, different ones side by side; locks that are there only while needed."""

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, wait_all_tasks_blocked

from async_saver import AsyncSaver, MemoryStore
from async_saver.locks import ThreadLocks
from tests.build import config, listed, put

pytestmark = pytest.mark.anyio


async def test_calls_on_one_conversation_take_effect_in_call_order() -> None:
    """Every call that writes takes the conversation's lock, and waiters are let through first come, first served."""
    log: list[str] = []

    class Logging(MemoryStore):
        """Notes the commits, each of which takes its time."""

    def logged(name: str) -> Callable[..., Any]:
        async def call(self: MemoryStore, *args: Any) -> None:
            log.append(f"{name} begins")
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            await getattr(MemoryStore, name)(self, *args)
            log.append(f"{name} ends")

        return call

    names = ["put", "put_writes", "copy", "keep_latest", "delete", "delete_for_runs"]
    for name in names:
        setattr(Logging, name, logged(name))
    saver = AsyncSaver(store=Logging())
    await put(saver, "1", run_id="run")
    log.clear()
    calls: list[Callable[[], Any]] = [
        lambda: put(saver, "2"),
        lambda: saver.aput_writes(config(checkpoint_id="2"), [("c", 1)], "task"),
        lambda: saver.acopy_thread("t", "copy"),
        lambda: saver.aprune(["t"]),
        lambda: saver.adelete_thread("t"),
    ]
    async with create_task_group() as tasks, saver._shared.locks.holding("t"):
        for call in calls:
            tasks.start_soon(call)
            await wait_all_tasks_blocked()
        assert log == []
    assert log == [f"{name} {when}" for name in names[:5] for when in ("begins", "ends")]
    log.clear()
    async with create_task_group() as tasks, saver._shared.locks.holding("copy"):
        tasks.start_soon(saver.adelete_for_runs, ["run"])
        await wait_all_tasks_blocked()
        assert log == []
    assert log == ["delete_for_runs begins", "delete_for_runs ends"]
    assert len(saver._shared.locks) == 0


async def test_different_conversations_never_wait_on_each_other(saver: AsyncSaver) -> None:
    """With one held, another's calls of every kind return."""
    await put(saver, "1", thread_id="other")
    async with saver._shared.locks.holding("t"):
        await put(saver, "2", thread_id="other")
        await saver.aput_writes(config("other", "2"), [("c", 1)], "task")
        await saver.aprune(["other"])
        await saver.acopy_thread("other", "another")
        await saver.adelete_thread("other")
        assert await listed(saver, None) == ["2"]


async def test_reading_takes_no_lock(saver: AsyncSaver) -> None:
    """A conversation that is being written to can be read."""
    await put(saver, "1")
    async with saver._shared.locks.holding("t"):
        assert await saver.aget_tuple(config()) is not None
        assert await listed(saver, config()) == ["1"]
        assert len(saver._shared.locks) == 1


async def test_a_cancelled_waiter_leaves_no_trace_and_the_next_gets_the_lock() -> None:
    """Whether it was cancelled while it waited or in the moment when the lock became its own."""
    locks, order = ThreadLocks(), []

    async def hold(name: str, scope: CancelScope) -> None:
        with scope:
            async with locks.holding("a", "b"):
                order.append(name)

    for cancelled_late in (False, True):
        scopes = [CancelScope(), CancelScope(), CancelScope()]
        async with create_task_group() as tasks:
            async with locks.holding("b"):
                for name, scope in zip("123", scopes, strict=True):
                    tasks.start_soon(hold, name, scope)
                    await wait_all_tasks_blocked()
                if not cancelled_late:
                    scopes[0].cancel()
                    scopes[1].cancel()
                    await wait_all_tasks_blocked()
            if cancelled_late:
                scopes[0].cancel()
        assert order[-1] == "3"
        assert len(locks) == 0


async def test_two_calls_that_want_the_same_two_locks_do_not_wait_for_each_other() -> None:
    """They take them in the same order, whatever order they name them in; twice the same counts once."""
    locks = ThreadLocks()

    async def hold(*names: str) -> None:
        for _ in range(20):
            async with locks.holding(*names):
                await anyio.lowlevel.checkpoint()

    with anyio.fail_after(20):
        async with create_task_group() as tasks:
            tasks.start_soon(hold, "a", "b")
            tasks.start_soon(hold, "b", "a", "b")
            tasks.start_soon(hold, "b")
    assert len(locks) == 0


async def test_no_two_loops_share_a_lock() -> None:
    """A conversation held on one loop is free on another, and its lock there is a lock of its own."""
    locks, keys = ThreadLocks(), []

    async def hold() -> None:
        async with locks.holding("t"):
            keys.append(len(locks))

    async with locks.holding("t"):
        worker = threading.Thread(target=anyio.run, args=(hold,))
        worker.start()
        await anyio.to_thread.run_sync(worker.join)
    assert keys == [2]
    assert len(locks) == 0


async def test_a_hundred_thousand_conversations_leave_no_lock() -> None:
    """Each read and written once."""
    saver = AsyncSaver()
    for number in range(100_000):
        where = config(f"thread {number}")
        assert await saver.aget_tuple(where) is None
        await saver.aput(where, {**_EMPTY, "id": "1"}, {}, {})  # type: ignore[typeddict-item]
    assert len(saver._shared.locks) == 0
    assert await saver.acount() == 100_000


_EMPTY = {"v": 4, "ts": "", "channel_values": {}, "channel_versions": {}, "versions_seen": {}, "updated_channels": None}
