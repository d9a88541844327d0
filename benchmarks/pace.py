"""What it costs a call to yield in time, and how late another task gets its turns."""

# ruff: noqa: T201

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import anyio
from anyio.lowlevel import checkpoint as yield_to_loop
from langgraph.checkpoint.base import empty_checkpoint

from async_saver import AsyncSaver, saver

CALLS, ROUNDS = 4_000, 15


async def keep_no_pace() -> None:
    """Never yield."""


@contextmanager
def without_pace() -> Iterator[None]:
    """Let puts never yield."""
    former, saver.keep_pace = saver.keep_pace, keep_no_pace
    yield
    saver.keep_pace = former


async def loops(tasks: int) -> tuple[float, float]:
    """Return the seconds that a put takes, where so many tasks only put, and the longest wait of one that does not."""
    stored, waits = AsyncSaver(), list[float]()

    async def loop(number: int) -> None:
        where = {"configurable": {"thread_id": f"{number}", "checkpoint_ns": ""}}
        for _ in range(CALLS // tasks):
            await stored.aput(where, empty_checkpoint(), {}, {})

    async def wait() -> None:
        last = perf_counter()
        while True:
            await yield_to_loop()
            now = perf_counter()
            waits.append(now - last)
            last = now

    async with anyio.create_task_group() as waiting:
        waiting.start_soon(wait)
        await yield_to_loop()
        begun = perf_counter()
        async with anyio.create_task_group() as putting:
            for number in range(tasks):
                putting.start_soon(loop, number)
        took = perf_counter() - begun
        waiting.cancel_scope.cancel()
    return took / CALLS, max(waits)


def main() -> None:
    """Measure in turns, and print medians."""
    for tasks in (1, 200):
        rounds = []
        for _ in range(ROUNDS):
            paced = anyio.run(loops, tasks)
            with without_pace():
                rounds.append((paced, anyio.run(loops, tasks)))
        ratio = median(paced[0] / bare[0] for paced, bare in rounds)
        times = [median(one[side][0] for one in rounds) * 1e6 for side in (0, 1)]
        waits = [median(one[side][1] for one in rounds) * 1e3 for side in (0, 1)]
        print(
            f"{tasks:3} tasks: a put takes {times[0]:.1f} us, {ratio:.2f} of the {times[1]:.1f} us of never yielding\n"
            f"           another task waits {waits[0]:.1f} ms at most, without yielding {waits[1]:.1f} ms (medians)"
        )


if __name__ == "__main__":
    main()
