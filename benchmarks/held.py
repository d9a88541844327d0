"""For how long work on whole conversations holds the event loop, by the longest wait of a task that always wants it."""

# ruff: noqa: T201

import gc
from collections.abc import Awaitable
from time import perf_counter
from typing import Any

import anyio
from anyio.lowlevel import checkpoint as yield_to_loop
from langgraph.checkpoint.base import empty_checkpoint

from async_saver import AsyncSaver

LONG, MANY = 10_000, 5_000


async def put(saver: AsyncSaver, thread_id: str, number: int, run_id: str) -> None:
    """Store a checkpoint with two values, and two writes."""
    version = f"{number}"
    made: Any = {**empty_checkpoint(), "id": f"{number:06}"}
    made["channel_values"] = {"messages": ["message"] * 5, "x": number}
    made["channel_versions"] = dict.fromkeys(made["channel_values"], version)
    where: Any = {"thread_id": thread_id, "checkpoint_ns": "", "run_id": run_id}
    parent = {"checkpoint_id": f"{number - 1:06}"} if number else {}
    await saver.aput({"configurable": where | parent}, made, {"step": number}, made["channel_versions"])
    this = {"checkpoint_id": f"{number:06}"}
    await saver.aput_writes({"configurable": where | this}, [("x", 1), ("messages", 2)], "task")


async def held(name: str, call: Awaitable[object]) -> None:
    """Print what a call takes, and the longest time between two turns of another task meanwhile."""
    waits: list[float] = []

    async def wait() -> None:
        last = perf_counter()
        while True:
            await yield_to_loop()
            now = perf_counter()
            waits.append(now - last)
            last = now

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await yield_to_loop()
        begun = perf_counter()
        await call
        took = perf_counter() - begun
        await yield_to_loop()
        await yield_to_loop()
        tasks.cancel_scope.cancel()
    print(f"  {name:55} took {took * 1e3:6.1f} ms, held the loop for {max(waits) * 1e3:5.1f} ms at most")


async def measure(collecting: bool) -> None:
    """Measure every kind of work once."""
    for steps in (4, 1000):
        saver = AsyncSaver()
        for number in range(LONG):
            await put(saver, "long", number, f"run {number // steps}")
        gc.collect()
        gc.freeze()
        if not collecting:
            gc.disable()
        runs = f"{LONG:,} checkpoints, {LONG // steps:,} runs"
        for copy in ("pruned", "deleted"):
            await held(f"copy {runs}", saver.acopy_thread("long", copy))
        await held(f"delete 1 run of {runs}", saver.adelete_for_runs(["run 3"]))
        await held(f"prune {runs}", saver.aprune(["pruned"]))
        await held(f"delete {runs}", saver.adelete_thread("deleted"))
        gc.enable()
        gc.unfreeze()
    saver = AsyncSaver()
    names = [f"{number}" for number in range(MANY)]
    for name in names:
        for number in range(4):
            await put(saver, name, number, f"run {name}")
    gc.collect()
    gc.freeze()
    if not collecting:
        gc.disable()
    listing = saver.alist(None, limit=1)
    await held(f"list the latest of {MANY:,} conversations", anext(listing))
    await held(f"prune {MANY:,} conversations of 4", saver.aprune(names))
    await held(f"delete {MANY:,} conversations of 1", saver.aprune(names, strategy="delete"))
    gc.enable()
    gc.unfreeze()


def main() -> None:
    """Measure on asyncio, without collections and with them."""
    for collecting in (False, True):
        print("with garbage collection" if collecting else "without garbage collection")
        anyio.run(measure, collecting)


if __name__ == "__main__":
    main()
