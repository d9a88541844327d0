"""Several processes on one PostgreSQL server against one process: turns a second in sessions, on shared conversations.

python benchmarks/servers.py                                  # four processes with 200 turns each, three rounds
python benchmarks/servers.py --processes 2 --turns 50 --rounds 1

A turn is a run of a graph of one node in a session. There are as many turns, and as many at a time, in either case.
After each round it is looked that every turn is there with its answer, and that no two were on one conversation at
once. The server is that of `postgres.py`.
"""

# ruff: noqa: T201

import asyncio
import multiprocessing
import operator
import os
from argparse import ArgumentParser
from collections import deque
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from postgres import Databases, served
from report import Bar, machine, number

from async_saver import AsyncSaver

AT_ONCE, SHARED = 16, 5


class Turns(TypedDict):
    """What was said."""

    turns: Annotated[list[str], operator.add]


def graph_of(saver: AsyncSaver) -> Any:
    """Return a graph that answers."""

    async def answer(state: Turns) -> dict[str, Any]:
        return {"turns": [f"{state['turns'][-1]}!"]}

    builder = StateGraph(Turns)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


async def work(
    url: str, name: str, turns: int, at_once: int, conversations: list[str], folder: Path, start: Barrier
) -> None:
    """Have turns, some at a time, from when all processes are ready until all have had theirs."""
    async with AsyncSaver.from_conn_string(url) as saver:
        graph, left = graph_of(saver), deque(range(turns))

        async def some() -> None:
            while left:
                one = left.popleft()
                thread_id = conversations[one % len(conversations)]
                async with saver.session(thread_id) as session:
                    alone = folder / f"{thread_id} is taken"
                    os.close(os.open(alone, os.O_CREAT | os.O_EXCL))  # raises if somebody else is there
                    await graph.ainvoke({"turns": [f"{name} {one}"]}, session.config)
                    alone.unlink()

        async with saver.session(name) as session:
            await graph.ainvoke({"turns": ["warm"]}, session.config)
        await asyncio.to_thread(start.wait)
        await asyncio.gather(*(some() for _ in range(at_once)))
        await asyncio.to_thread(start.wait)


def run(*options: Any) -> None:
    """Be one of the processes."""
    asyncio.run(work(*options))


def turns_a_second(databases: Databases, processes: int, turns: int, shared: bool) -> float:
    """Return how many turns a second some processes have together; look that all are there."""
    spawn = multiprocessing.get_context("spawn")
    url, names = databases.url(f"{processes} {shared}"), [f"process {one}" for one in range(processes)]
    start = spawn.Barrier(processes + 1)
    of = {name: [f"{'all' if shared else name}'s {one}" for one in range(SHARED)] for name in names}
    with TemporaryDirectory() as folder:
        running = [
            spawn.Process(
                target=run, args=(url, name, turns, AT_ONCE // processes, of[name], Path(folder), start), daemon=True
            )
            for name in names
        ]
        for one in running:
            one.start()
        start.wait(120)
        begun = perf_counter()
        start.wait(600)
        seconds = perf_counter() - begun
        for one in running:
            one.join()
            assert one.exitcode == 0
    look(url, turns, of)
    return processes * turns / seconds


def look(url: str, turns: int, of: dict[str, list[str]]) -> None:
    """Look that every turn is there once, with its answer behind it."""
    found: list[str] = []
    with AsyncSaver.from_conn_string(url) as saver:
        graph = graph_of(saver)
        for thread_id in {one for conversations in of.values() for one in conversations}:
            said = graph.get_state({"configurable": {"thread_id": thread_id}}).values["turns"]
            assert [f"{turn}!" for turn in said[::2]] == said[1::2]
            found += said[::2]
    assert sorted(found) == sorted(f"{name} {one}" for name in of for one in range(turns))


def main() -> None:
    """Measure in turns, and print medians."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    bar = Bar(1.0, least=True)
    with served() as server:
        print(f"PostgreSQL {server.version}; {options.turns} turns from each process, {AT_ONCE} at a time in all")
        for shared in (True, False):
            pairs = []
            for _ in range(options.rounds):
                with server.place() as databases:
                    pairs.append(
                        [
                            turns_a_second(databases, many, options.processes * options.turns // many, shared)
                            for many in (1, options.processes)
                        ]
                    )
            one, several = (median(column) for column in zip(*pairs, strict=True))
            ratio = median(b / a for a, b in pairs)
            print(f"{SHARED} conversations {'that all share' if shared else 'of each one'}")
            print(f"  one process    {number(one):>6} turns/s")
            print(f"  {options.processes} processes    {number(several):>6} turns/s; {number(ratio)} of one's")
            print(f"  wanted: {bar}, {'met' if bar.met(ratio) else 'missed'}; all turns are there, and none at once")


if __name__ == "__main__":
    main()
