"""Conversations move from InMemorySaver to a file, and go on there: one waits for its user, one has a fork.

    python examples/move_saver.py

The copy is killed in its midst, as a deployment may be, and called again. What it has copied already is compared, and
the rest is copied.
"""

import asyncio
import operator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt

from async_saver import AsyncSaver, CopyProgress, acopy_saver


class Order(TypedDict):
    """What was said about an order, one line after the other."""

    log: Annotated[list[str], operator.add]


def of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def take(order: Order) -> dict[str, list[str]]:
    return {"log": [f"taken: {order['log'][-1]}"]}


def pay(order: Order) -> dict[str, list[str]]:
    return {"log": [f"paid: {interrupt('May I charge your card?')}"]}


def build(saver: BaseCheckpointSaver[str]) -> CompiledStateGraph[Any, Any, Any, Any]:
    builder = StateGraph(Order)
    builder.add_sequence([take, pay])
    builder.add_edge(START, "take")
    return builder.compile(checkpointer=saver)


async def log(graph: CompiledStateGraph[Any, Any, Any, Any], thread_id: str) -> str:
    state = await graph.aget_state(of(thread_id))
    asks = [one.value for task in state.tasks for one in task.interrupts]
    return "; ".join([*state.values["log"], *(f"asks: {one}" for one in asks)])


def fill(source: BaseCheckpointSaver[str]) -> None:
    """Have eight conversations, all of which ask; one of them is answered, and one was changed afterwards."""
    graph = build(source)
    for number in range(8):
        graph.invoke({"log": [f"{number + 1} teas"]}, of(f"order-{number}"))
    graph.invoke(Command(resume="yes"), of("order-1"))
    graph.update_state(of("order-2"), {"log": ["and a cake"]})


async def killed_in_its_midst(source: BaseCheckpointSaver[str], target: AsyncSaver) -> None:
    """Copy, and be cancelled as soon as three conversations are there."""

    def tell(progress: CopyProgress) -> None:
        if progress.done.conversations == 3:
            task.cancel()

    task = asyncio.create_task(acopy_saver(source, target, on_progress=tell))
    await asyncio.gather(task, return_exceptions=True)
    print("   cancelled:", task.cancelled())


async def main() -> None:
    source = InMemorySaver()
    fill(source)
    with TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'orders.db'}"

        print("1. The copy is killed in its midst")
        async with AsyncSaver.from_conn_string(url) as target:
            await killed_in_its_midst(source, target)

        print("2. It is called again")

        def tell(progress: CopyProgress) -> None:
            if progress.done.conversations == progress.of:
                print(f"   {progress.done.conversations} of {progress.of} conversations")

        async with AsyncSaver.from_conn_string(url) as target:
            done = await acopy_saver(source, target, on_progress=tell)
            total = len([one async for one in source.alist(None)])
            print("   every checkpoint is there:", done.checkpoints + done.skipped == total)
            print("   some were there before:", done.skipped > 0)

            print("3. The conversations go on")
            graph = build(target)
            for thread_id in ("order-0", "order-1", "order-2"):
                print(f"   {thread_id}: {await log(graph, thread_id)}")
            # Not by `ainvoke`, in which LangGraph's `interrupt` needs Python 3.11.
            await asyncio.to_thread(graph.invoke, Command(resume="yes"), of("order-0"))
            print(f"   order-0: {await log(graph, 'order-0')}")
            print(f"   in the source, as it was: {await log(build(source), 'order-0')}")


if __name__ == "__main__":
    asyncio.run(main())
