"""A run that outlives its process, and its machine: killed in the middle of a step, it goes on where it was.

    DATABASE_URL=postgresql://user:password@host:5432/database python examples/postgres_resume.py

It needs `pip install 'async-saver[postgres]' 'psycopg[binary]'`. In the database it makes the tables that it needs,
unless they are there, and one conversation, which it deletes at its end. The worker is started in the same way every
time, on whatever machine: it looks what is stored, and begins or goes on. The steps stand for calls of a model or of
services; each also leaves a line in a log, as what has happened outside cannot be taken back.
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
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from async_saver import AsyncSaver

STEPS = ["collect", "outline", "draft", "review", "publish"]


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


def saver_of(url: str) -> AsyncSaver:
    """Return a saver for the database. At its first use it connects, and makes the tables that are missing."""
    return AsyncSaver.from_conn_string(url, pool_size=2)


def config_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def note(directory: Path, process: int, name: str) -> None:
    with (directory / "log.txt").open("a") as log:
        log.write(f"{name}\n")
    print(f"   process {process}: {name}", flush=True)


async def worker(url: str, thread_id: str, directory: Path, process: int, killed_in: str | None) -> None:
    """Make the report, or what is left to do of it."""
    report = config_of(thread_id)

    async def work(name: str) -> str:
        note(directory, process, name)
        await asyncio.sleep(0.1)
        if name == killed_in:
            power_cut()
        return f"{name} by process {process}"

    async with saver_of(url) as saver:
        graph = build(saver, work)
        state = await graph.aget_state(report)
        if state.next:
            print(f"   process {process} goes on with: {state.next[0]}", flush=True)
        inputs = None if state.next else {"topic": "PostgreSQL", "done": []}
        # "sync": a step begins when the one before is committed. (By default LangGraph stores it while the next one
        # runs, and what a power cut takes then is run again.)
        await graph.ainvoke(inputs, report, durability="sync")


def run_worker(*work: Any) -> None:
    asyncio.run(worker(*work))


def start(url: str, thread_id: str, directory: Path, process: int, killed_in: str | None = None) -> bool:
    """Start the worker in a process of its own; return whether it came to its end."""
    work = (url, thread_id, directory, process, killed_in)
    started = multiprocessing.get_context("spawn").Process(target=run_worker, args=work)
    started.start()
    started.join()
    return started.exitcode == 0


def main() -> None:
    url, thread_id = os.environ.get("DATABASE_URL"), f"report-{uuid4()}"
    if not url:
        print("run it with DATABASE_URL=postgresql://user:password@host:5432/database in the environment")
        return
    with TemporaryDirectory() as name:
        directory = Path(name)
        print("1. The worker is killed in the middle of the third step", flush=True)
        print(f"   came to its end: {start(url, thread_id, directory, 1, killed_in='draft')}")

        print("2. It is started again", flush=True)
        print(f"   came to its end: {start(url, thread_id, directory, 2)}")

        print("3. What is stored")
        with saver_of(url) as saver:
            for step in build(saver, str).get_state(config_of(thread_id)).values["done"]:
                print(f"   {step}")
            saver.delete_thread(thread_id)

        ran = (directory / "log.txt").read_text().split()
        assert ran == ["collect", "outline", "draft", "draft", "review", "publish"]  # only what was cut off ran again
        print(f"   ran: {', '.join(ran)}")


if __name__ == "__main__":
    main()
