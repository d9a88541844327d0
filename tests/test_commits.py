"""The worker thread that many callers share."""

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

from async_saver.stores.commits import Call, Worker, _wake_here


class Waiter:
    """What notes that it was woken."""

    woken = False

    def wake(self) -> None:
        """Note it."""
        self.woken = True


def test_waiters_are_woken_a_few_in_a_turn() -> None:
    """So that whatever else is on the loop has its turns between them."""
    waiters: list[Any] = [Waiter() for _ in range(20)]
    later: list[Callable[[], object]] = []
    turns = [0]
    _wake_here(waiters, later.append)
    while later:
        turns.append(sum(waiter.woken for waiter in waiters))
        later.pop()()
    assert all(waiter.woken for waiter in waiters)
    assert [*map(int.__sub__, turns[1:], turns)] == [8, 8]


def test_waiters_are_all_woken_as_their_loop_ends() -> None:
    """In its last turn nothing more may be asked for, and what is raised there would end it with an error."""

    def soon(call: Callable[[], object]) -> object:
        raise RuntimeError("the loop has ended")

    waiters: list[Any] = [Waiter() for _ in range(20)]
    _wake_here(waiters, soon)
    assert all(waiter.woken for waiter in waiters)


def worker() -> Worker:
    """One that comes to what it is called for."""

    def do(calls: Sequence[Call[Any]]) -> None:
        for call in calls:
            call.end(call.work)

    return Worker(do, lambda: None, lambda: None, "of a test")


def test_an_interrupt_while_workers_are_called_together_leaves_none_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was called would wait for the other for ever."""
    first, second = worker(), worker()

    def interrupted(call: Call[Any]) -> None:
        raise KeyboardInterrupt

    async def call() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(second, "_queue_up", interrupted)
            with pytest.raises(KeyboardInterrupt):
                await Worker.call_together([first, second], "together")
        with anyio.fail_after(5):
            assert await first.call("alone") == "alone"
            assert await Worker.call_together([first, second], "again") == "again"
        await first.end()
        await second.end()

    anyio.run(call)
