"""The worker thread that many callers share."""

from collections.abc import Callable
from typing import Any

from async_saver.stores.commits import _wake_here


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
