"""Whole graphs: runs a second, and the bytes that are held after them."""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

from agent import PER_TURN, Agent, named
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from measure import Measured, Rounds, anew
from peers import IN_MEMORY, LIMIT, OURS, SQLITE, THEIRS, opened
from report import Bar, Row, Section, at_least, at_most

from async_saver import AsyncSaver

AT_20, AT_200, HELD = "at 20 messages", "at 200 messages", "bytes held"
SHORT = 3  # turns that are measured at a length of the conversation


# The agent


async def _turns(agent: Agent, conversations: int, turns: int) -> list[float]:
    """Return what each turn of all conversations takes, in seconds; one conversation after the other."""
    gc.collect()
    times = []
    for _ in range(turns):
        begun = perf_counter()
        for number in range(conversations):
            await agent.turn(number)
        times.append(perf_counter() - begun)
    return times


class Agents:
    """Measures agents, and looks whether all savers lead to the same conversations."""

    def __init__(self) -> None:
        self._said: dict[tuple[int, int], list[tuple[str, str]]] = {}

    async def piece(self, conversations: int, turns: int, saver: Any) -> dict[str, float]:
        """Return runs a second over so many turns; over 50, also at two lengths of the conversations on the way."""
        agent = Agent(saver)
        pieces = {"all": await _turns(agent, conversations, turns)}
        await self._check(agent, conversations, turns)
        if turns == 200 // PER_TURN:
            first = 20 // PER_TURN
            pieces[AT_20] = pieces["all"][first : first + SHORT]
            pieces[AT_200] = await _turns(agent, conversations, SHORT)
        return {what: conversations * len(piece) / sum(piece) for what, piece in pieces.items()}

    async def _check(self, agent: Agent, conversations: int, turns: int) -> None:
        for number in range(conversations):
            said = await agent.said(number)
            assert len(said) == PER_TURN * turns, f"{len(said)} messages after {turns} turns"
            assert [kind for kind, _ in said] == ["human", "ai", "tool", "ai"] * turns
            assert said == self._said.setdefault((turns, number), said), "savers disagree on what was said"


def agent(rounds: Rounds) -> Section:
    """Measure runs of a ReAct agent."""

    async def measure() -> tuple[Measured, Measured]:
        agents = Agents()
        long = dict.fromkeys(IN_MEMORY, rounds.agent) | {SQLITE: rounds.sqlite}
        await anew(dict.fromkeys(long, 1), partial(agents.piece, 1, 3))  # to warm up
        short = dict.fromkeys(IN_MEMORY, rounds.short) | {SQLITE: rounds.sqlite}
        return await anew(long, partial(agents.piece, 20, 50)), await anew(short, partial(agents.piece, 100, 5))

    long, short = asyncio.run(measure())
    what = "20 conversations of 50 turns"
    rows = [
        Row(what, "runs/s", long["all"], at_least(1.6)),
        Row(f"{what}, against references only", "runs/s", _only(long["all"], OURS, LIMIT), at_least(0.6), LIMIT),
        Row("100 conversations of 5 turns", "runs/s", short["all"], at_least(1.05)),
        Row(AT_20, "runs/s", long[AT_20]),
        Row(AT_200, "runs/s", long[AT_200]),
    ]
    note = (
        "A ReAct agent with a model that answers at once; a run is one `ainvoke`: four messages, five checkpoints. The "
        "conversations take turns, one run at a time. Runs at 20 and at 200 messages are of the 20 conversations."
    )
    return Section("Agent", note, rows)


def _only(figures: dict[str, list[float]], *names: str) -> dict[str, list[float]]:
    return {name: figures[name] for name in names}


# Bytes


async def _bytes(conversations: int, saver_name: str) -> float:
    async with opened(LIMIT) as saver:  # to fill LangGraph's caches first
        await _turns(Agent(saver), 2, 3)
    del saver
    gc.collect()
    tracemalloc.start()
    try:
        async with opened(saver_name) as saver:
            agent = Agent(saver)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            await _turns(agent, conversations, 50)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            assert len(await agent.said(conversations - 1)) == 200
    finally:
        tracemalloc.stop()
    return (after - before) / 1e6


def memory(rounds: Rounds) -> Section:
    """Measure bytes that are held, once for each saver."""
    figures = {name: [asyncio.run(_bytes(rounds.held, name))] for name in IN_MEMORY}
    note = f"What is allocated and not freed after {rounds.held} conversations of 50 turns of the agent (tracemalloc)."
    return Section("Memory", note, [Row(HELD, "MB", figures, at_most(round(1 / 12, 3)))])


# A graph of one node, sync and async

RUNS = 100


def _one_node(saver: Any) -> Any:
    builder: StateGraph[Any] = StateGraph(int)
    builder.add_node("add_one", lambda x: x + 1)
    builder.set_entry_point("add_one")
    builder.set_finish_point("add_one")
    return builder.compile(checkpointer=saver)


def _invoke(saver: Any) -> float:
    graph = _one_node(saver)
    gc.collect()
    begun = perf_counter()
    for number in range(RUNS):
        graph.invoke(1, named(number))
    return RUNS / (perf_counter() - begun)


def _invoke_in_threads(saver: Any) -> float:
    graph = _one_node(saver)

    def runs(worker: int) -> None:
        for number in range(RUNS // 4):
            graph.invoke(1, named(f"{worker} {number}"))

    with ThreadPoolExecutor(8) as pool:
        gc.collect()
        begun = perf_counter()
        list(pool.map(runs, range(8)))
        return 8 * (RUNS // 4) / (perf_counter() - begun)


def _ainvoke(saver: Any) -> float:
    graph = _one_node(saver)

    async def runs() -> float:
        gc.collect()
        begun = perf_counter()
        for number in range(RUNS):
            await graph.ainvoke(1, named(number))
        return RUNS / (perf_counter() - begun)

    return asyncio.run(runs())


def sync(rounds: Rounds) -> Section:
    """Measure a graph of one node."""
    ways: dict[str, tuple[Callable[[Any], float], Bar | None]] = {
        "`invoke`, from 1 worker thread": (_invoke, at_least(0.6)),
        "`invoke`, from 8 worker threads": (_invoke_in_threads, at_least(0.6)),
        "`ainvoke`": (_ainvoke, None),
    }
    rows = []
    for what, (way, bar) in ways.items():
        made: dict[str, Callable[[], Any]] = {OURS: AsyncSaver, THEIRS: InMemorySaver}
        for make in made.values():
            way(make())
        figures: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds.short):
            for name, make in made.items():
                figures[name].append(way(make()))
        rows.append(Row(what, "runs/s", figures, bar))
    return Section("A graph of one node", "Runs a second, each of a conversation of its own.", rows)
