"""A run that outlives its process: killed in the middle of a step, started again, it goes on where it was.

    python examples/sqlite_resume.py

The worker is started in the same way every time. It looks what is stored, and begins or goes on. The steps stand for
calls of a model or of services; each also leaves a line in a log, as what has happened outside cannot be taken back.
"""

import asyncio
import multiprocessing
import operator
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from async_saver import AsyncSaver

STEPS = ["collect", "outline", "draft", "review", "publish"]
REPORT: RunnableConfig = {"configurable": {"thread_id": "report-1"}}


class Report(TypedDict):
    """What the report is about, and which step was done by which process."""

    topic: str
    done: Annotated[list[str], operator.add]


def power_cut() -> None:
    """End this process as a power cut does: nothing is closed, flushed or told."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has one name for it


def build(saver: AsyncSaver, work: Callable[[str], Any]) -> CompiledStateGraph:
    async def step(name: str, report: Report) -> dict[str, list[str]]:
        return {"done": [await work(name)]}

    builder = StateGraph(Report)
    for before, name in zip([START, *STEPS], STEPS, strict=False):
        builder.add_node(name, partial(step, name))
        builder.add_edge(before, name)
    return builder.compile(checkpointer=saver)


def note(directory: Path, process: int, name: str) -> None:
    with (directory / "log.txt").open("a") as log:
        log.write(f"{name}\n")
    print(f"   process {process}: {name}", flush=True)


async def worker(directory: Path, process: int, killed_in: str | None) -> None:
    """Make the report, or what is left to do of it."""

    async def work(name: str) -> str:
        note(directory, process, name)
        await asyncio.sleep(0.1)
        if name == killed_in:
            power_cut()
        return f"{name} by process {process}"

    async with AsyncSaver.from_conn_string(f"sqlite:///{directory / 'reports.db'}") as saver:
        graph = build(saver, work)
        state = await graph.aget_state(REPORT)
        if state.next:
            print(f"   process {process} goes on with: {state.next[0]}", flush=True)
        inputs = None if state.next else {"topic": "SQLite", "done": []}
        # "sync": a step begins when the one before is on disk. (By default LangGraph stores it while the next one runs,
        # and what a power cut takes then is run again.)
        await graph.ainvoke(inputs, REPORT, durability="sync")


def run_worker(directory: Path, process: int, killed_in: str | None) -> None:
    asyncio.run(worker(directory, process, killed_in))


def start(directory: Path, process: int, killed_in: str | None = None) -> bool:
    """Start the worker in a process of its own; return whether it came to its end."""
    started = multiprocessing.get_context("spawn").Process(target=run_worker, args=(directory, process, killed_in))
    started.start()
    started.join()
    return started.exitcode == 0


def main() -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        print("1. The worker is killed in the middle of the third step", flush=True)
        print(f"   came to its end: {start(directory, 1, killed_in='draft')}")

        print("2. It is started again", flush=True)
        print(f"   came to its end: {start(directory, 2)}")

        print("3. What is stored")
        with AsyncSaver.from_conn_string(f"sqlite:///{directory / 'reports.db'}") as saver:
            for step in build(saver, str).get_state(REPORT).values["done"]:
                print(f"   {step}")

        ran = (directory / "log.txt").read_text().split()
        assert ran == ["collect", "outline", "draft", "draft", "review", "publish"]  # only what was cut off ran again
        print(f"   ran: {', '.join(ran)}")


if __name__ == "__main__":
    main()
