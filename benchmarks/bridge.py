"""A sync call over the bridge, against a bare `BlockingPortal.call` of an empty coroutine function."""

# ruff: noqa: T201

from collections.abc import Callable
from statistics import mean
from time import perf_counter

from anyio.from_thread import start_blocking_portal

from async_saver import AsyncSaver
from async_saver.bridge import bridge

ROUNDS = 5000


async def empty() -> None:
    """Do nothing."""


def seconds(call: Callable[[], object]) -> float:
    """Return what one call takes."""
    begun = perf_counter()
    call()
    return perf_counter() - begun


def main() -> None:
    """Measure in turns, call by call, and print means.

    In blocks of one kind, where the system puts a portal's worker thread (on the caller's core, or not) would decide.
    """
    saver = AsyncSaver()
    with start_blocking_portal() as portal:
        calls: dict[str, Callable[[], object]] = {
            "BlockingPortal.call(empty)": lambda: portal.call(empty),
            "bridge.call(empty)": lambda: bridge.call(empty),
            "saver.count()": saver.count,
            "saver.get_tuple(unknown)": lambda: saver.get_tuple({"configurable": {"thread_id": "unknown"}}),
        }
        for call in calls.values():
            call()
        times = {name: sorted(column) for name, column in zip(calls, zip(*_rounds(calls), strict=True), strict=True)}
    # Without the tenth at either end: garbage collection, other processes.
    means = {name: mean(column[ROUNDS // 10 : -ROUNDS // 10]) for name, column in times.items()}
    for name, one in means.items():
        print(f"{name:28} {one * 1e6:6.0f} us, {one / means['BlockingPortal.call(empty)']:.2f} times the bare call")


def _rounds(calls: dict[str, Callable[[], object]]) -> list[list[float]]:
    return [[seconds(call) for call in calls.values()] for _ in range(ROUNDS)]


if __name__ == "__main__":
    main()
