"""Small graphs that tell what happened to them, and short ways to look at what they left behind."""

import operator
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send, StateSnapshot, interrupt

from async_saver import AsyncSaver, MemoryStore
from async_saver.stores.sqlite import SQLiteStore
from tests.stores import path_of

Saver = BaseCheckpointSaver[str]


class Log(TypedDict):
    """A state whose one channel shows the order in which its writes were applied."""

    log: Annotated[list[str], operator.add]


Node = Callable[[Any], Any]


def says(word: str) -> Node:
    """A node that writes its word, and how much it has read."""
    return lambda state: {"log": [f"{word}{len(state['log'])}"]}


def asks(name: str) -> Node:
    """A node that asks the user and writes the answer."""
    return lambda state: {"log": [f"{name}:{interrupt(f'{name}?')}"]}


def in_turn(*, state: type = Log, **nodes: Any) -> StateGraph[Any]:
    """A graph whose nodes run one after the other."""
    builder: StateGraph[Any] = StateGraph(state)
    builder.add_sequence(list(nodes.items()))
    builder.add_edge(START, next(iter(nodes)))
    return builder


def at_once(*, state: type = Log, **nodes: Any) -> StateGraph[Any]:
    """A graph whose nodes run in parallel, and then one that says "end"."""
    builder: StateGraph[Any] = StateGraph(state)
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(START, name)
    builder.add_node("end", says("end"))
    builder.add_edge(list(nodes), "end")
    return builder


def add_one() -> StateGraph[Any]:
    """The program of the checkpointers' reference page."""
    builder: StateGraph[Any] = StateGraph(int)
    builder.add_node("add_one", lambda x: x + 1)
    builder.set_entry_point("add_one")
    builder.set_finish_point("add_one")
    return builder


def _answer(state: MessagesState) -> dict[str, Any]:
    said = [str(message.content) for message in state["messages"] if isinstance(message, HumanMessage)]
    names = [text.removeprefix("I am ") for text in said if text.startswith("I am ")]
    answer = f"You are {names[-1]}." if names else "You have not told me."
    return {"messages": [AIMessage(answer, id=f"answer-{len(said)}")]}


def chat() -> StateGraph[Any]:
    """A chat with a scripted model: it knows a name if the conversation says it."""
    return in_turn(state=MessagesState, model=_answer)


def nested(inner: Any) -> StateGraph[Any]:
    """A graph with another one between its two nodes."""
    return in_turn(before=says("before"), inner=inner, after=says("after"))


def fan_out(size: int) -> StateGraph[Any]:
    """A graph that sends every number to a node of its own, the later ones first."""
    builder: StateGraph[Any] = StateGraph(Log)
    builder.add_node("worker", lambda number: {"log": [f"{number}"]})
    builder.add_conditional_edges(START, lambda _: [Send("worker", number) for number in reversed(range(size))])
    return builder


def running_total(saver: Saver, calls: list[int]) -> Any:
    """A functional program that saves a sum, shows it in words, and notes each call of its task."""

    @task
    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    @entrypoint(checkpointer=saver)
    def total(x: int, *, previous: int | None = None) -> Any:
        doubled = double(x).result()
        if x < 0:
            interrupt("really?")
        total = (previous or 0) + doubled
        return entrypoint.final(value=f"now {total}", save=total)

    return total


def _extended(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(word for write in writes for word in write)]


def delta_state(frequency: int) -> Any:
    """A log that is a `DeltaChannel`, with a reducer that is sensitive to order."""
    channel = DeltaChannel(_extended, snapshot_frequency=frequency)
    return TypedDict("state", {"log": Annotated[list, channel]})  # type: ignore[misc]


def delta(frequency: int) -> StateGraph[Any]:
    """A graph of parallel nodes that all write to one `DeltaChannel`, and are not declared in the order that counts."""
    return at_once(state=delta_state(frequency), c=says("c"), a=says("a"), b=says("b"))


def config(thread_id: str = "t", run_id: str | None = None) -> RunnableConfig:
    """A config that names a conversation, and perhaps a run."""
    configurable = {"thread_id": thread_id}
    return {"configurable": configurable if run_id is None else {**configurable, "run_id": run_id}}


def outline(snapshot: StateSnapshot) -> dict[str, Any]:
    """What a snapshot says, but for ids, times and its parent."""
    return {
        "values": snapshot.values,
        "next": snapshot.next,
        "metadata": {k: v for k, v in (snapshot.metadata or {}).items() if k not in ("parents", "run_id")},
        "tasks": [(t.name, t.error, t.result, [i.value for i in t.interrupts]) for t in snapshot.tasks],
    }


def linked(snapshots: Sequence[StateSnapshot]) -> list[dict[str, Any]]:
    """What a history says, but for ids and times: a parent is shown by its place in the history."""
    ids = [snapshot.config["configurable"]["checkpoint_id"] for snapshot in snapshots]
    parents = [s.parent_config["configurable"]["checkpoint_id"] if s.parent_config else None for s in snapshots]
    places = [ids.index(parent) if parent in ids else parent and "gone" for parent in parents]
    return [{**outline(snapshot), "parent": place} for snapshot, place in zip(snapshots, places, strict=True)]


async def outlines(graph: Any, of: RunnableConfig | None = None) -> list[dict[str, Any]]:
    """See `linked`."""
    return linked([snapshot async for snapshot in graph.aget_state_history(of or config())])


async def logs(graph: Any, thread_id: str = "t") -> list[list[str]]:
    """The log at every checkpoint of a conversation, newest first."""
    return [snapshot.values["log"] async for snapshot in graph.aget_state_history(config(thread_id))]


async def log(graph: Any, of: RunnableConfig | str = "t") -> list[str]:
    """The log of a conversation's latest checkpoint, or of the one that a config names."""
    snapshot = await graph.aget_state(config(of) if isinstance(of, str) else of)
    values: list[str] = snapshot.values["log"]
    return values


async def before(graph: Any, node: str) -> StateSnapshot:
    """The newest checkpoint at which only this node is next."""
    async for snapshot in graph.aget_state_history(config()):
        if snapshot.next == (node,):
            return snapshot
    raise LookupError(node)


async def turn(graph: Any, word: str, thread_id: str = "t", run_id: str | None = None, **options: Any) -> Any:
    """Run a graph of logs with one word as its input."""
    return await graph.ainvoke({"log": [word]}, config(thread_id, run_id), **options)


async def three_turns(graph: Any, thread_id: str = "t", **options: Any) -> list[list[str]]:
    """Run three turns, each with a run_id of its own, and return the log after each of their steps."""
    streamed = []
    for run in ("1", "2", "3"):
        stream = graph.astream({"log": [f"in{run}"]}, config(thread_id, f"run-{run}"), stream_mode="values", **options)
        streamed.extend([values["log"] async for values in stream])
    return streamed


async def by_id(graph: Any, without_run: str | None = None) -> dict[str, Any]:
    """A conversation's history by checkpoint id, but for what one run stored."""
    return {
        snapshot.config["configurable"]["checkpoint_id"]: outline(snapshot)
        async for snapshot in graph.aget_state_history(config())
        if without_run is None or snapshot.metadata["run_id"] != without_run
    }


def answers(snapshot: StateSnapshot) -> Command[Any]:
    """An answer to every question of a snapshot: the question without its question mark, in capitals."""
    asked = (one for task in snapshot.tasks for one in task.interrupts)
    return Command(resume={one.id: one.value[:-1].upper() for one in asked})


async def alike(program: Callable[[Saver], Awaitable[Any]]) -> Any:
    """Run a program on InMemorySaver and on AsyncSaver, in memory and over a file, and return what all gave."""
    theirs, ours = await program(InMemorySaver()), await program(AsyncSaver())
    assert ours == theirs
    with TemporaryDirectory() as folder:
        async with AsyncSaver(store=SQLiteStore(Path(folder) / "file")) as saver:
            assert await program(saver) == theirs
    return ours


def alike_sync(program: Callable[[Saver], Any]) -> Any:
    """See `alike`."""
    theirs, ours = program(InMemorySaver()), program(AsyncSaver())
    assert ours == theirs
    with TemporaryDirectory() as folder, AsyncSaver(store=SQLiteStore(Path(folder) / "file")) as saver:
        assert program(saver) == theirs
    return ours


def stored_bytes(saver: AsyncSaver) -> bytes:
    """Everything that a saver shows to hold, or has in its file, in one piece."""
    if not isinstance(saver._shared.store, MemoryStore):
        with saver:  # it is closed in the end
            pass
        return Path(path_of(saver._shared.store)).read_bytes()
    return b"\n".join(_bytes_in([saver.storage, saver.writes, saver.blobs]))


def _bytes_in(value: Any) -> Iterable[bytes]:
    if isinstance(value, bytes):
        yield value
    elif hasattr(value, "values"):
        yield from _bytes_in([*value.values()])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _bytes_in(one)


# Two graphs with types of their own on one saver, to be run where msgpack is strict.
STRICT_PROGRAM = """
import asyncio
from dataclasses import dataclass
from typing import Any, TypedDict
from langgraph.graph import StateGraph
from pydantic import BaseModel
from async_saver import AsyncSaver

@dataclass
class Cat:
    lives: int

class Dog(BaseModel):
    tricks: int

class CatState(TypedDict):
    pet: Cat

class DogState(TypedDict):
    pet: Dog

def keeper(state, change, saver):
    builder = StateGraph(state)
    builder.add_node("change", lambda s: {"pet": change(s["pet"])})
    builder.set_entry_point("change")
    return builder.compile(checkpointer=saver)

def of(thread_id):
    return {"configurable": {"thread_id": thread_id}}

async def main():
    saver = AsyncSaver()
    cats = keeper(CatState, lambda cat: Cat(cat.lives - 1), saver)
    dogs = keeper(DogState, lambda dog: Dog(tricks=dog.tricks + 1), saver)
    for _ in range(2):
        await asyncio.gather(cats.ainvoke({"pet": Cat(9)}, of("cat")), dogs.ainvoke({"pet": Dog(tricks=1)}, of("dog")))
    print((await cats.aget_state(of("cat"))).values, (await dogs.aget_state(of("dog"))).values)
    for allowed in (Cat, Dog):
        clone = saver.with_allowlist([(allowed.__module__, allowed.__qualname__)])
        pets = [(await clone.aget_tuple(of(name))).checkpoint["channel_values"]["pet"] for name in ("cat", "dog")]
        print([type(pet).__name__ for pet in pets])

asyncio.run(main())
"""
