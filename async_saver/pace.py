"""A turn for the event loop, about once in a millisecond of work that never waits."""

import threading
from collections.abc import Generator
from time import perf_counter
from typing import TypeAlias, TypeVar, cast

from anyio.lowlevel import checkpoint as yield_to_loop

__all__ = ["Slices", "at_once", "in_turns", "is_due", "keep_pace"]

_T = TypeVar("_T")

Slices: TypeAlias = Generator[None, None, _T]
"""Work that may be interrupted wherever it yields, and returns its result."""

_SLICE = 0.001  # seconds of work between two turns of the loop


class _Pace(threading.local):
    """Of one worker thread, as that has one running event loop at most.

    Attributes:
        until: When it is time to yield, on the clock of `perf_counter`.
        yields: How many tasks have yielded.
    """

    until = 0.0
    yields = 0


_pace = _Pace()


def is_due() -> bool:
    """Tell whether it is time to yield. To ask first saves a coroutine each time that it is not."""
    return perf_counter() >= _pace.until


async def keep_pace() -> None:
    """Yield to the event loop if it is time to.

    Where many tasks do nothing but call savers, each gets its part of a millisecond, so that one turn of the loop takes
    a millisecond or one call of each task, whichever is longer.
    """
    if perf_counter() < _pace.until:
        return
    _pace.yields += 1
    before = _pace.yields
    await yield_to_loop()
    tasks = 1 + _pace.yields - before
    _pace.until = perf_counter() + _SLICE / tasks


async def in_turns(work: Slices[_T]) -> _T:
    """Return the result of work that is done in slices, and let the event loop have its turns between them."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast(_T, end.value)
        if is_due():
            await keep_pace()


def at_once(work: Slices[_T]) -> _T:
    """Return the result of work that need not be done in slices."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast(_T, end.value)
