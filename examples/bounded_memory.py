"""A chat server's saver that stays small: what nobody uses goes, and so do old checkpoints.

    python examples/bounded_memory.py

The limits are enforced as a part of the calls that write. What goes by its time on a server where nobody writes goes in
a task that sweeps now and then, which the server's lifespan holds.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from async_saver import AsyncSaver, EvictionReason, Retention

told: Counter[str] = Counter()
idle_ones_gone = asyncio.Event()
skipped = timedelta()  # by this example's clock; a server leaves `clock` out, and waits


async def on_evict(thread_id: str, reason: EvictionReason) -> None:
    """Count what has gone. A server may let go here of what else it has of the conversation, such as files."""
    told[reason] += 1
    if reason == "ttl":
        idle_ones_gone.set()


def ttl(thread_id: str) -> timedelta | None:
    return None if thread_id.startswith("staff") else timedelta(hours=1)


saver = AsyncSaver(
    retention=Retention(
        ttl=ttl,
        max_threads=90,
        max_bytes=800 * 2**10,
        keep_last=2,
        on_evict=on_evict,
        clock=lambda: time.monotonic() + skipped.total_seconds(),
    )
)


async def answer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"You said {len(state['messages'][-1].text)} characters.")]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
graph = builder.compile(checkpointer=saver)


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """Sweep for as long as the server runs; a lifespan of Starlette or FastAPI takes the application."""

    async def sweep_now_and_then() -> None:
        while True:
            await anyio.sleep(0.05)  # a server: some minutes
            await saver.asweep()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sweep_now_and_then)
        yield
        tasks.cancel_scope.cancel()


async def say(thread_id: str, text: str) -> list[str]:
    """Run a turn in a session, as a server does: no limit takes a conversation from under it."""
    async with saver.session(thread_id) as session:
        result = await graph.ainvoke({"messages": [("user", text)]}, session.config)
    return [message.text for message in result["messages"]]


async def show() -> None:
    stats = await saver.astats()
    many = f"{stats.conversations} conversations, {stats.checkpoints} checkpoints"
    print(f"   held: {many}; at most 800 KiB: {stats.bytes is not None and stats.bytes <= 800 * 2**10}")
    print(f"   evicted: {dict(stats.evictions)}")


async def main() -> None:
    global skipped
    async with lifespan():
        print("1. 120 users, of whom 90 may stay")
        for first in range(0, 120, 20):
            await asyncio.gather(*(say(f"user-{number}", "hello") for number in range(first, first + 20)))
        await show()
        print(f"   on_evict was told: {dict(told)}")

        print("2. The last one goes on, the first one begins anew")
        print(f"   user-119: {await say('user-119', 'and again')}")
        print(f"   user-0: {await say('user-0', 'and again')}")

        print("3. A long text: the least recently used go, as many as it takes, and none with an open session")
        async with saver.session("user-32"):
            await say("staff-1", "a long text " * 28_000)
            await show_held("user-32", "user-31", "user-119", "staff-1")

        print("4. Two idle hours: all go but those of the staff, and nobody has to write for that")
        skipped = timedelta(hours=2)
        await idle_ones_gone.wait()
        await show_held("user-32", "user-119", "staff-1")
        await show()


async def show_held(*thread_ids: str) -> None:
    for thread_id in thread_ids:
        found = await saver.aget_tuple(conversation(thread_id))
        print(f"   {thread_id}: {'gone' if found is None else 'there'}")


def conversation(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


if __name__ == "__main__":
    asyncio.run(main())
