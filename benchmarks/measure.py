"""How it is measured: savers in turns, garbage collected before each piece."""

import asyncio
import gc
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from agent import named
from langgraph.checkpoint.base import empty_checkpoint
from peers import opened

Measured = dict[str, dict[str, list[float]]]
"""By what was measured, and by saver: one figure a round."""

Piece = Callable[[Any], Awaitable[dict[str, float]]]
"""What measures a saver once; it returns figures by what was measured."""


@dataclass(frozen=True)
class Rounds:
    """How often each is measured: long agents, AsyncSqliteSaver, short agents and graphs, calls, the event loop.

    `held` is a number of conversations: bytes are always the same, and are measured once.
    """

    agent: int = 7
    sqlite: int = 2
    short: int = 15
    calls: int = 21
    heartbeat: int = 5
    held: int = 20


QUICK = Rounds(agent=1, sqlite=0, short=3, calls=5, heartbeat=1, held=4)


def _add(measured: Measured, name: str, figures: dict[str, float]) -> None:
    for what, figure in figures.items():
        measured[what][name].append(figure)


async def anew(rounds: dict[str, int], piece: Piece) -> Measured:
    """Measure savers in turns, for each as many rounds as it has, with a new saver every time."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    for number in range(max(rounds.values())):
        for name in rounds:
            if number < rounds[name]:
                async with opened(name) as saver:
                    _add(measured, name, await piece(saver))
    return measured


async def kept(savers: Sequence[str], rounds: int, fill: Callable[[Any], Awaitable[object]], piece: Piece) -> Measured:
    """Measure savers in turns that are filled once."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        filled = {name: await stack.enter_async_context(opened(name)) for name in savers}
        for saver in filled.values():
            await fill(saver)
        for _ in range(rounds):
            for name, saver in filled.items():
                _add(measured, name, await piece(saver))
    return measured


async def spent(call: Callable[..., Awaitable[object]], calls: Sequence[Sequence[Any]]) -> float:
    """Return the microseconds that a call takes, over calls with these arguments."""
    gc.collect()
    return await spent_now(call, calls)


async def spent_now(call: Callable[..., Awaitable[object]], calls: Sequence[Sequence[Any]]) -> float:
    """Return what `spent` does, without a collection first."""
    begun = perf_counter()
    for arguments in calls:
        await call(*arguments)
    return (perf_counter() - begun) / len(calls) * 1e6


async def lateness(work: Callable[[], Awaitable[object]], freeze: bool = True) -> dict[str, float]:
    """Return how late a task wakes from sleeps of a millisecond, in milliseconds, while other work is done."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            due = perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append((perf_counter() - due) * 1e3)

    gc.collect()
    if freeze:
        gc.freeze()
    beating = asyncio.create_task(beat())
    await work()
    beating.cancel()
    with suppress(asyncio.CancelledError):
        await beating
    gc.unfreeze()
    late.sort()
    return {"p50": late[len(late) // 2], "p99": late[len(late) * 99 // 100], "max": late[-1]}


def puts(
    saver: Any, thread_id: int | str, states: Iterable[dict[str, Any]], parent: Any = None, version: Any = None
) -> list[tuple[Any, Any, Any, Any]]:
    """Return arguments of `aput`, one for each state, each the child of the one before.

    Args:
        saver: What numbers the versions.
        thread_id: The conversation.
        states: Values by channel, all of them new.
        parent: The config of the stored checkpoint that the first one is a child of.
        version: That of the values stored there.
    """
    config = parent or named(thread_id)
    made = []
    for step, state in enumerate(states):
        version = saver.get_next_version(version, None)
        versions = dict.fromkeys(state, version)
        checkpoint = {**empty_checkpoint(), "channel_values": state, "channel_versions": versions}
        made.append((config, checkpoint, {"source": "loop", "step": step, "parents": {}}, dict(versions)))
        config = at(thread_id, checkpoint)
    return made


def at(thread_id: int | str, checkpoint: Any) -> Any:
    """Return the config of a checkpoint."""
    return {"configurable": named(thread_id)["configurable"] | {"checkpoint_id": checkpoint["id"]}}


async def latest_listed(saver: Any, thread_id: int | str) -> None:
    """List a conversation's latest checkpoint."""
    listed = [one async for one in saver.alist(named(thread_id), limit=1)]
    assert len(listed) == 1
