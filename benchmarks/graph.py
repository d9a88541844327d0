"""Runs a second of a graph with one node, with AsyncSaver against InMemorySaver."""

# ruff: noqa: T201

import asyncio
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph

from async_saver import AsyncSaver

RUNS, ROUNDS = 100, 15

builder: StateGraph[Any] = StateGraph(int)
builder.add_node("add_one", lambda x: x + 1)
builder.set_entry_point("add_one")
builder.set_finish_point("add_one")


def config(number: int) -> Any:
    """Name a conversation."""
    return {"configurable": {"thread_id": f"{number}"}}


def by_invoke(saver: Any) -> float:
    """Return the runs a second by `graph.invoke`."""
    graph = builder.compile(checkpointer=saver)
    begun = perf_counter()
    for number in range(RUNS):
        graph.invoke(1, config(number))
    return RUNS / (perf_counter() - begun)


def by_ainvoke(saver: Any) -> float:
    """Return the runs a second by `graph.ainvoke`."""
    graph = builder.compile(checkpointer=saver)

    async def run() -> float:
        begun = perf_counter()
        for number in range(RUNS):
            await graph.ainvoke(1, config(number))
        return RUNS / (perf_counter() - begun)

    return asyncio.run(run())


def main() -> None:
    """Measure in turns, and print medians."""
    ways: list[Callable[[Any], float]] = [by_invoke, by_ainvoke]
    for way in ways:
        way(AsyncSaver())
        way(InMemorySaver())
        rounds = [(way(AsyncSaver()), way(InMemorySaver())) for _ in range(ROUNDS)]
        ours, theirs = (median(one) for one in zip(*rounds, strict=True))
        ratios = sorted(ours / theirs for ours, theirs in rounds)
        print(
            f"{way.__name__:10} {median(ratios):.2f} times the runs of InMemorySaver "
            f"(from {ratios[0]:.2f} to {ratios[-1]:.2f}): {ours:.0f} and {theirs:.0f} a second"
        )


if __name__ == "__main__":
    main()
