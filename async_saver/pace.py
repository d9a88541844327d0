"""A turn for the event loop, about once in a millisecond of work that never waits."""

import threading
from time import perf_counter

from anyio.lowlevel import checkpoint as yield_to_loop

__all__ = ["keep_pace"]

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
