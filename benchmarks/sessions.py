"""What a session on a free conversation costs, against an `aput` of a small state; and thousands that wait."""

# ruff: noqa: T201

import asyncio
from statistics import median
from time import perf_counter

from langgraph.checkpoint.base import Checkpoint, empty_checkpoint

from async_saver import AsyncSaver, Session

ROUNDS, CALLS = 21, 1000


async def puts(saver: AsyncSaver) -> float:
    """Return the seconds of one `aput`."""
    checkpoint: Checkpoint = {**empty_checkpoint(), "channel_values": {"n": 1}, "channel_versions": {"n": "1"}}
    begun = perf_counter()
    for _ in range(CALLS):
        await saver.aput({"configurable": {"thread_id": "t", "checkpoint_ns": ""}}, checkpoint, {}, {"n": "1"})
    return (perf_counter() - begun) / CALLS


async def sessions(saver: AsyncSaver) -> float:
    """Return the seconds of one session with nothing in it."""
    begun = perf_counter()
    for _ in range(CALLS):
        async with saver.session("t"):
            pass
    return (perf_counter() - begun) / CALLS


async def crowd(waiting: int, conversations: int) -> float:
    """Return the seconds in which so many sessions on so few conversations wait, and get their turns."""
    saver, free = AsyncSaver(), asyncio.Event()

    async def hold(session: Session) -> None:
        async with session:
            await free.wait()

    async def wait(session: Session) -> None:
        async with session:
            pass

    begun = perf_counter()
    holding = [asyncio.create_task(hold(saver.session(f"{number}"))) for number in range(conversations)]
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(wait(saver.session(f"{number % conversations}"))) for number in range(waiting)]
    await asyncio.sleep(0)
    free.set()
    await asyncio.gather(*holding, *tasks)
    return perf_counter() - begun


async def main() -> None:
    """Measure in turns, and print medians."""
    saver = AsyncSaver()
    columns = [(await puts(saver), await sessions(saver)) for _ in range(ROUNDS)]
    put, session = median(one for one, _ in columns), median(one for _, one in columns)
    print(f"aput of a small state        {put * 1e6:6.1f} us")
    print(f"a session with nothing in it {session * 1e6:6.1f} us, {median(b / a for a, b in columns):.2f} aputs")
    for waiting, conversations in ((1_000, 100), (10_000, 1_000), (10_000, 1)):
        seconds = await crowd(waiting, conversations)
        print(f"{waiting:6,} waiting on {conversations:5,} {seconds:6.2f} s, {seconds / waiting * 1e6:4.0f} us each")


if __name__ == "__main__":
    asyncio.run(main())
