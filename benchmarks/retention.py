"""What limits cost, whether they hold what the process uses, and what figures cost.

python benchmarks/retention.py                    # all of it, about two minutes
python benchmarks/retention.py --only puts stats
"""

# ruff: noqa: T201

import argparse
import asyncio
import gc
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from async_saver import AsyncSaver, Retention

ROUNDS, CALLS = 15, 2000
METADATA: CheckpointMetadata = {"source": "loop", "step": 1, "parents": {}}


def all_limits(threads: int) -> Retention:
    """Every limit at once."""
    return Retention(ttl=3600, max_threads=threads, max_bytes=2**31, keep_last=20, on_evict=lambda thread_id, why: None)


def small(saver: AsyncSaver, version: str | None) -> Checkpoint:
    """A checkpoint of a small state."""
    made = {**empty_checkpoint(), "id": str(uuid6()), "channel_values": {"n": 1}}
    made["channel_versions"] = {"n": saver.get_next_version(version, None)}
    return made  # type: ignore[return-value]


async def steps(saver: AsyncSaver, conversations: int) -> float:
    """Return the seconds of one `aput`, where some conversations go on in turns."""
    configs: list[Any] = [{"configurable": {"thread_id": f"{n}", "checkpoint_ns": ""}} for n in range(conversations)]
    made = [small(saver, None) for _ in range(CALLS)]
    begun = perf_counter()
    for number, checkpoint in enumerate(made):
        place = number % conversations
        new = checkpoint["channel_versions"]
        configs[place] = await saver.aput(configs[place], checkpoint, METADATA, new)
    return (perf_counter() - begun) / CALLS


async def beginnings(saver: AsyncSaver, first: int) -> float:
    """Return the seconds of one `aput`, where each begins a conversation."""
    made = [small(saver, None) for _ in range(CALLS)]
    configs: list[Any] = [{"configurable": {"thread_id": f"{first + n}", "checkpoint_ns": ""}} for n in range(CALLS)]
    begun = perf_counter()
    for config, checkpoint in zip(configs, made, strict=True):
        await saver.aput(config, checkpoint, METADATA, checkpoint["channel_versions"])
    return (perf_counter() - begun) / CALLS


async def puts() -> None:
    """Compare puts with all limits to those with none."""
    kept, free = AsyncSaver(retention=all_limits(1_000_000)), AsyncSaver()
    for saver in (kept, free):
        await steps(saver, 100)
    few, many = AsyncSaver(retention=all_limits(1_000)), AsyncSaver()
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(ROUNDS):
        new = AsyncSaver(retention=all_limits(1_000_000)), AsyncSaver()
        rows["within the limits"].append((await steps(new[0], 100), await steps(new[1], 100)))
        rows["each lets a checkpoint go"].append((await steps(kept, 100), await steps(free, 100)))
        first = number * CALLS
        rows["each lets a conversation go"].append((await beginnings(few, first), await beginnings(many, first)))
    for name, pairs in rows.items():
        ratios = sorted(one / other for one, other in pairs)
        with_limits, without = median(one for one, _ in pairs), median(one for _, one in pairs)
        print(
            f"aput, {name}: {with_limits * 1e6:.1f} us with all limits, {without * 1e6:.1f} us without, "
            f"{median(ratios):.2f} ({ratios[3]:.2f} to {ratios[-4]:.2f})",
            flush=True,
        )


async def stats() -> None:
    """Compare `astats` at 100,000 conversations to small puts."""
    saver = AsyncSaver(retention=all_limits(1_000_000))
    for first in range(0, 100_000, CALLS):
        await beginnings(saver, first)
    puts = [await beginnings(saver, number % 10 * CALLS) for number in range(ROUNDS)]
    asked = []
    for _ in range(ROUNDS):
        begun = perf_counter()
        for _ in range(100):
            await saver.astats()
        asked.append((perf_counter() - begun) / 100)
    print(f"astats: {median(asked) * 1e6:.1f} us, {median(asked) / median(puts):.2f} small aputs")


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


async def many() -> None:
    """Write a million conversations, of which 10,000 are kept, and look at the memory of the process."""
    saver = AsyncSaver(retention=Retention(max_threads=10_000))
    tenths = []
    for tenth in range(10):
        for first in range(tenth * 100_000, (tenth + 1) * 100_000, CALLS):
            await beginnings(saver, first)
        tenths.append(resident())
    print(
        "after each 100,000 of a million conversations, MB:",
        *(f"{one / 1e6:.1f}" for one in tenths),
        f"; the last is {tenths[9] / tenths[1]:.3f} of the second",
    )
    print(f"  {await saver.astats()}")


async def chats() -> None:
    """Write chats for as long as 64 MiB are kept several times over, and look at the memory of the process."""
    limit = 64 * 2**20
    saver = AsyncSaver(retention=Retention(max_bytes=limit))
    gc.collect()
    empty, most = resident(), 0
    for number in range(1_200):
        await chat(saver, f"{number}", 25)
        if number % 10 == 9:
            most = max(most, resident())
    held = (await saver.astats()).bytes or 0
    print(
        f"64 MiB for a stream of chats: {held / 2**20:.1f} MiB held, the process has grown by "
        f"{(resident() - empty) / 2**20:.1f} MiB, {(most - empty) / limit:.2f} of the limit at most"
    )
    print(f"  {await saver.astats()}")


async def chat(saver: AsyncSaver, thread_id: str, turns: int) -> None:
    """Store what a chat of so many turns does: the whole list of messages at each step, and each answer as a write."""
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    messages: list[Any] = []
    version = None
    for turn in range(turns):
        for message in (
            HumanMessage(f"{thread_id} asks {turn} " + "what " * 40),
            AIMessage(f"{turn} " + "word " * 200),
        ):
            message.id = str(uuid6())
            messages = [*messages, message]
            version = saver.get_next_version(version, None)
            made: Any = {**empty_checkpoint(), "id": str(uuid6()), "channel_values": {"messages": messages}}
            made["channel_versions"] = {"messages": version}
            config = await saver.aput(config, made, METADATA, {"messages": version})
            await saver.aput_writes(config, [("messages", [message])], str(uuid6()))


PARTS: dict[str, Callable[[], Any]] = {"puts": puts, "stats": stats, "many": many, "chats": chats}


def main() -> None:
    """Measure each part in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[*PARTS])
    parser.add_argument("--here", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.only:
        if arguments.here:
            asyncio.run(PARTS[name]())
        else:
            subprocess.run([sys.executable, __file__, "--here", "--only", name], check=True)


if __name__ == "__main__":
    main()
