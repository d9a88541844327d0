"""One AsyncSaver, built at import, for a whole process: event loops in worker threads, and worker threads without one.

Servers look like this: a few worker threads with an event loop each, jobs that run sync code beside them, and all of
them continue each other's conversations.

    python examples/many_loops.py
"""

import asyncio
import operator
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph

from async_saver import AsyncSaver


class Notes(TypedDict):
    """What was said in a conversation, and how many words that is."""

    said: Annotated[list[str], operator.add]
    words: int


def count_words(notes: Notes) -> dict[str, int]:
    return {"words": sum(len(line.split()) for line in notes["said"])}


builder = StateGraph(Notes)
builder.add_node("count_words", count_words)
builder.add_edge(START, "count_words")
builder.add_edge("count_words", END)

# There is no event loop yet, and there need not be one: the saver belongs to none.
saver = AsyncSaver()
graph = builder.compile(checkpointer=saver)


def conversation(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def on_asyncio(worker: str) -> None:
    """Run three conversations at once on an event loop of this worker thread's own."""

    async def talk(thread_id: str) -> None:
        for line in ("good morning", "how are you"):
            await graph.ainvoke({"said": [line]}, conversation(thread_id))

    async def main() -> None:
        await asyncio.gather(*(talk(f"{worker}/{number}") for number in range(3)))

    asyncio.run(main())


def on_trio(worker: str) -> None:
    """Do the same on trio, where graphs run in worker threads, and the saver itself is awaited."""
    import trio

    async def talk(thread_id: str) -> None:
        for words, line in {2: "good morning", 5: "how are you"}.items():
            await trio.to_thread.run_sync(graph.invoke, {"said": [line]}, conversation(thread_id))
            latest = await saver.aget_tuple(conversation(thread_id))
            assert latest is not None
            assert latest.checkpoint["channel_values"]["words"] == words

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(talk, f"{worker}/{number}")

    trio.run(main)


def without_loop(worker: str) -> None:
    """Do the same with no event loop, one conversation after the other."""
    for number in range(3):
        for line in ("good morning", "how are you"):
            graph.invoke({"said": [line]}, conversation(f"{worker}/{number}"))


def at_once(jobs: dict[str, Callable[[str], None]]) -> None:
    """Run each job in a worker thread of its own, with its name."""
    workers = [threading.Thread(target=job, args=(name,)) for name, job in jobs.items()]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main() -> None:
    print("1. Six worker threads at once: two with asyncio, two with trio, two with no event loop")
    trio_or_asyncio = on_trio if find_spec("trio") else on_asyncio
    kinds = {"asyncio": on_asyncio, "trio": trio_or_asyncio, "plain": without_loop}
    jobs = {f"{kind}-{number}": job for kind, job in kinds.items() for number in (1, 2)}
    at_once(jobs)
    print(f"   conversations: {saver.count()}")
    for name in jobs:
        states = [graph.get_state(conversation(f"{name}/{number}")).values for number in range(3)]
        print(f"   {name}: {'; '.join(' + '.join(state['said']) for state in states)}")

    print("\n2. What began on a loop goes on without one, and the other way round")

    def go_on(name: str) -> None:
        inputs, config = {"said": ["see you"]}, conversation(f"{name}/0")
        if name.startswith("plain"):
            asyncio.run(graph.ainvoke(inputs, config))
        else:
            graph.invoke(inputs, config)

    at_once(dict.fromkeys(jobs, go_on))
    for name in jobs:
        values = graph.get_state(conversation(f"{name}/0")).values
        print(f"   {name}/0: {' + '.join(values['said'])} ({values['words']} words)")

    print("\n3. Four worker threads copy and delete at once, two with an event loop")

    def archive(name: str) -> None:
        if name.startswith("plain"):
            saver.copy_thread(f"{name}/0", f"archive/{name}")
            saver.prune([f"{name}/{number}" for number in range(3)], strategy="delete")
        else:
            asyncio.run(saver.acopy_thread(f"{name}/0", f"archive/{name}"))
            asyncio.run(saver.aprune([f"{name}/{number}" for number in range(3)], strategy="delete"))

    at_once(dict.fromkeys(["plain-1", "plain-2", "asyncio-1", "asyncio-2"], archive))
    print(f"   conversations: {saver.count()}")
    for thread_id in sorted(thread_id for thread_id in saver.thread_ids() if thread_id.startswith("archive")):
        states = [state.values.get("words") for state in graph.get_state_history(conversation(thread_id))]
        print(f"   {thread_id}: words, newest first: {states}")


if __name__ == "__main__":
    main()
