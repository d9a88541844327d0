"""A sync call over the bridge, against a bare `BlockingPortal.call` of an empty coroutine function."""

# ruff: noqa: T201

from collections.abc import Callable
from statistics import median
from time import perf_counter

from anyio.from_thread import start_blocking_portal

from async_saver import AsyncSaver
from async_saver.bridge import bridge

CALLS, ROUNDS = 200, 60


async def empty() -> None:
    """Do nothing."""


def seconds(call: Callable[[], object]) -> float:
    """Return what one call takes, of many."""
    begun = perf_counter()
    for _ in range(CALLS):
        call()
    return (perf_counter() - begun) / CALLS


def main() -> None:
    """Measure in turns, and print medians."""
    saver = AsyncSaver()
    with start_blocking_portal() as portal:
        calls: dict[str, Callable[[], object]] = {
            "BlockingPortal.call(empty)": lambda: portal.call(empty),
            "bridge.call(empty)": lambda: bridge.call(empty),
            "saver.count()": saver.count,
            "saver.get_tuple(unknown)": lambda: saver.get_tuple({"configurable": {"thread_id": "unknown"}}),
        }
        rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(ROUNDS)]
    bare = "BlockingPortal.call(empty)"
    for name in calls:
        ratio = median(one[name] / one[bare] for one in rounds)
        print(f"{name:28} {median(one[name] for one in rounds) * 1e6:6.0f} us, {ratio:.2f} times the bare call")


if __name__ == "__main__":
    main()
