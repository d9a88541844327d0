"""A trio program on AsyncSaver: the saver awaited directly, and whole graphs run in a nursery.

What stores its own state needs no graph; a graph runs in worker threads under trio, on the same saver.

    python examples/trio_app.py
"""

import operator
from typing import Annotated, TypedDict

import trio
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, StateGraph

from async_saver import AsyncSaver


class Notes(TypedDict):
    """What was said in a conversation, and how many words that is."""

    said: Annotated[list[str], operator.add]
    words: int


def count_words(notes: Notes) -> dict[str, int]:
    return {"words": sum(len(line.split()) for line in notes["said"])}


async def keep_progress(saver: AsyncSaver, job: str) -> None:
    """Store, page by page, how far a job has come."""
    config: RunnableConfig = {"configurable": {"thread_id": job, "checkpoint_ns": ""}}
    version = None
    for page in range(3):
        version = saver.get_next_version(version, None)
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"page": page}
        checkpoint["channel_versions"] = {"page": version}
        # What aput returns names the stored checkpoint; the next put takes it as its parent.
        config = await saver.aput(config, checkpoint, {"source": "loop", "step": page}, {"page": version})


async def main() -> None:
    builder = StateGraph(Notes)
    builder.add_node("count_words", count_words)
    builder.add_edge(START, "count_words")
    builder.add_edge("count_words", END)

    async with AsyncSaver() as saver:
        print("1. The saver itself, awaited by three trio tasks at once")
        jobs = ["job-0", "job-1", "job-2"]
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(keep_progress, saver, job)
        for job in jobs:
            config: RunnableConfig = {"configurable": {"thread_id": job}}
            latest = await saver.aget_tuple(config)
            pages = [item.checkpoint["channel_values"]["page"] async for item in saver.alist(config)]
            print(f"   {job}: latest page {latest.checkpoint['channel_values']['page']}; newest first: {pages}")

        print("\n2. A graph, for three conversations at once, two turns each")
        graph = builder.compile(checkpointer=saver)

        async def talk(name: str) -> None:
            config: RunnableConfig = {"configurable": {"thread_id": name}}
            for line in (f"I am {name}", "and here I am again"):
                # graph.ainvoke needs asyncio, which is LangGraph's own limit; invoke runs in any worker thread.
                await trio.to_thread.run_sync(graph.invoke, {"said": [line]}, config)

        people = ["Ana", "Ben", "Cho"]
        async with trio.open_nursery() as nursery:
            for name in people:
                nursery.start_soon(talk, name)
        for name in people:
            stored = await saver.aget_tuple({"configurable": {"thread_id": name}})
            values = stored.checkpoint["channel_values"]
            print(f"   {name}: {'; '.join(values['said'])} ({values['words']} words)")


if __name__ == "__main__":
    trio.run(main)
