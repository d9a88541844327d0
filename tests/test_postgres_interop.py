"""One database, two savers: what AsyncPostgresSaver wrote goes on over a PostgresStore, and the other way round."""

import copy
import json
import math
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, TASKS, _DeltaSnapshot
from langgraph.graph import START, StateGraph, add_messages
from langgraph.types import Command, Interrupt, Send, StateSnapshot, interrupt
from psycopg.types.json import Jsonb
from pydantic import BaseModel

from async_saver import AsyncSaver, AsyncSaverError
from tests.build import all_of, checkpoint, ids, put
from tests.build import config as at
from tests.graphs import (
    Saver,
    answers,
    asks,
    at_once,
    by_id,
    config,
    delta,
    delta_state,
    in_turn,
    linked,
    outline,
    running_total,
    turn,
)
from tests.graphs import says as logs
from tests.postgres import direct, needed, new_database

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def _upstream(conninfo: str, serde: SerializerProtocol | None = None) -> AsyncIterator[Saver]:
    async with AsyncPostgresSaver.from_conn_string(direct(conninfo), serde=serde) as saver:
        await saver.setup()
        yield saver


@asynccontextmanager
async def _ours(conninfo: str, serde: SerializerProtocol | None = None) -> AsyncIterator[Saver]:
    async with AsyncSaver.from_conn_string(conninfo, serde=serde) as saver:
        yield saver


SAVERS: dict[str, Callable[..., AbstractAsyncContextManager[Saver]]] = {"upstream": _upstream, "ours": _ours}
WRITERS = pytest.mark.parametrize("writer", SAVERS)
TAKING_TURNS = pytest.mark.parametrize(
    "writers", [["upstream"], ["ours"], ["upstream", "ours"], ["ours", "upstream"]], ids="-".join
)
ALTERNATING = pytest.mark.parametrize("writers", [["upstream", "ours"], ["ours", "upstream"]], ids="-".join)
"""Whose call is whose: the savers take turns on one conversation. With "upstream" alone, a test is itself tested."""


@pytest.fixture
def conninfo() -> Iterator[str]:
    """An empty database."""
    with new_database(needed()) as made:
        yield made


@asynccontextmanager
async def both(
    conninfo: str, first: str = "upstream", serde: SerializerProtocol | None = None
) -> AsyncIterator[dict[str, Saver]]:
    """Both savers on one database, of which the first one makes the tables."""
    async with AsyncExitStack() as stack:
        names = sorted(SAVERS, key=lambda name: name != first)
        yield {name: await stack.enter_async_context(SAVERS[name](conninfo, serde)) for name in names}


def differing(found: Any, expected: Any, where: str = "it") -> Iterator[str]:
    """Where two values differ, the types of all that is in them too (1, True and 1.0 are three), keys in any order."""
    if type(found) is not type(expected):
        yield f"{where} is {found!r}, and not {expected!r}"
    elif isinstance(found, dict) and {(type(key), key) for key in found} == {(type(key), key) for key in expected}:
        for key in found:
            yield from differing(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(found, (list, tuple)) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from differing(*pair, f"{where}[{number}]")
    elif repr(found) != repr(expected) if isinstance(found, float) else found != expected:
        yield f"{where} is {found!r}, and not {expected!r}"


async def alike(look: Callable[[Any], Awaitable[Any]], things: dict[str, Any]) -> Any:
    """Look at a thing of either saver, and return what both show."""
    theirs, ours = await look(things["upstream"]), await look(things["ours"])
    assert not [*differing(ours, theirs)]
    return ours


async def stored(saver: Saver, thread_id: str = "t") -> list[Any]:
    """All checkpoints of a conversation, of all namespaces, each with its pending writes."""
    return _in_order(await all_of(saver.alist({"configurable": {"thread_id": thread_id}})))


def _in_order(found: list[Any]) -> list[Any]:
    return sorted(found, key=lambda one: [*one.config["configurable"].values()])


async def states(graph: Any) -> list[StateSnapshot]:
    """The state of a conversation with those of its subgraphs, and its history."""
    state = await graph.aget_state(config(), subgraphs=True)
    return [state, *[one async for one in graph.aget_state_history(config())]]


def told(snapshots: Sequence[StateSnapshot]) -> list[Any]:
    """What these say but for ids and times, to be compared with those of another run."""
    inner = [outline(task.state) for task in snapshots[0].tasks if isinstance(task.state, StateSnapshot)]
    return [outline(snapshots[0]), inner, *linked(snapshots[1:])]


# Graphs.


class Pet(BaseModel):
    """A value that is a model."""

    name: str
    lives: int = 9


@dataclass
class Cage:
    """A value that is a dataclass, with others in it."""

    pets: list[Pet]
    size: float


class Zoo(TypedDict, total=False):
    """A state with channels of every kind."""

    messages: Annotated[list[AnyMessage], add_messages]
    log: Annotated[list[str], operator.add]
    text: str
    number: int
    ratio: float
    flag: bool
    nothing: str | None
    words: list[str]
    table: dict[str, Any]
    pet: Pet
    cage: Cage
    mixed: Any


FILLED: dict[str, Any] = {
    "text": "it's \"quoted\", \\ and {'brac': $1 %s}, дом 🐍",
    "number": 2**63,
    "ratio": 1e-07,
    "flag": True,
    "nothing": None,
    "words": ["a", ""],
    "table": {"x": 1, "y": {"z": None}},
    "pet": Pet(name="Tom"),
    "cage": Cage([Pet(name="Jerry", lives=1)], 2.5),
}
MIXED: list[Any] = ["text", ["list"], 7, None, {"a": 1}, True, Pet(name="Rex"), 0.5, "", False]
"""What one channel holds in turn: with and without a row of its own in the tables."""


def _mixes(state: Zoo) -> dict[str, Any]:
    step = len(state["log"])
    said = AIMessage(f"{step}: {sorted(state)}", id=f"answer-{step}")
    return {"messages": [said], "log": [f"mixes{step}"], "mixed": MIXED[step % len(MIXED)]}


def _asks(name: str) -> Callable[[Any], Any]:
    def node(state: Zoo) -> dict[str, Any]:
        return {"log": [f"{name}:{interrupt({'who': name, 'of': state.get('pet')})}"]}

    return node


def zoo() -> StateGraph[Any]:
    """A graph that asks, asks again in a subgraph, and sends pets to nodes of their own."""
    inner: StateGraph[Any] = StateGraph(Zoo)
    inner.add_sequence([("mixes", _mixes), ("asks", _asks("inner"))])
    inner.add_edge(START, "mixes")
    outer: StateGraph[Any] = StateGraph(Zoo)
    outer.add_sequence([("mixes", _mixes), ("asks", _asks("outer")), ("inner", inner.compile())])
    outer.add_edge(START, "mixes")
    outer.add_node(
        "feeds", lambda pet: {"log": [f"feeds {pet.name}"], "pet": pet} if pet.name == "0" else {"log": [pet.name]}
    )
    outer.add_node("ends", _mixes)
    outer.add_conditional_edges("inner", lambda _: [Send("feeds", Pet(name=str(n))) for n in (2, 0, 1)], ["feeds"])
    outer.add_edge("feeds", "ends")
    return outer


Step = Callable[[Any, str], Awaitable[Any]]


def says(word: str, **values: Any) -> Step:
    """A turn's begin; what else it sets stays as it is until another turn sets it."""
    given = {"messages": [HumanMessage(word, id=word)], **values}
    return lambda graph, durability: graph.ainvoke(given, config(), durability=durability)


async def goes_on(graph: Any, durability: str) -> Any:
    """An answer to the question that is open."""
    return await graph.ainvoke(Command(resume="yes"), config(), durability=durability)


async def is_updated(graph: Any, durability: str) -> Any:
    """A state that is updated by hand, as if by the subgraph, before the pets are sent."""
    await graph.aupdate_state(config(), {"number": 8, "flag": None, "text": ["no text"]}, as_node="inner")
    return await graph.ainvoke(None, config(), durability=durability)


async def travels(graph: Any, durability: str) -> Any:
    """Another way to go on, from the oldest checkpoint that is not the input."""
    history = [one async for one in graph.aget_state_history(config())]
    return await graph.ainvoke(None, history[-2].config, durability=durability)


PROGRAM: dict[str, Step] = {
    "a turn": says("hello", **FILLED),
    "an answer": goes_on,
    "an answer to the subgraph": goes_on,
    "a turn that sets nothing": says("and?"),
    "its answer": goes_on,
    "an update": is_updated,
    "a turn that sets one value": says("three", number=3),
    "time travel": travels,
    "its first answer": goes_on,
    "its second answer": goes_on,
    "a last turn": says("bye"),
}


async def run_in_memory(durability: str) -> list[Any]:
    """What the program leaves behind after each step, with one saver that knows no tables."""
    graph = zoo().compile(checkpointer=InMemorySaver())
    expected = []
    for step in PROGRAM.values():
        await step(graph, durability)
        expected.append(told(await states(graph)))
    return expected


# Whole conversations.


@TAKING_TURNS
@pytest.mark.parametrize("durability", ["async", "exit"])
async def test_a_conversation_goes_on_with_the_other_saver(writers: list[str], durability: str, conninfo: str) -> None:
    """Whichever saver makes a step, both then show what one saver alone does: state, history, tasks, writes."""
    expected = await run_in_memory(durability)
    async with both(conninfo, writers[0]) as savers:
        await _follow(savers, writers, durability, expected)


async def _follow(savers: dict[str, Saver], writers: list[str], durability: str, expected: list[Any]) -> None:
    """Run the program, each step with the next of these writers, and look what is left after it."""
    graphs = {name: zoo().compile(checkpointer=saver) for name, saver in savers.items()}
    for number, (name, step) in enumerate([*PROGRAM.items()][: len(expected)]):
        await step(graphs[writers[number % len(writers)]], durability)
        assert not [*differing(told(await alike(states, graphs)), expected[number], name)]
        await alike(stored, savers)


@TAKING_TURNS
async def test_a_functional_program_goes_on_with_the_other_saver(writers: list[str], conninfo: str) -> None:
    """What a functional program saves from run to run is found by the other saver, and its tasks are not run again."""
    async with both(conninfo, writers[0]) as savers:
        calls: list[int] = []
        programs = {name: running_total(saver, calls) for name, saver in savers.items()}
        in_turns = [programs[writers[number % len(writers)]] for number in range(4)]
        assert await in_turns[0].ainvoke(1, config()) == "now 2"
        assert "__interrupt__" in await in_turns[1].ainvoke(-2, config())
        await alike(states, programs)
        assert await in_turns[2].ainvoke(Command(resume=True), config()) == "now -2"
        assert await in_turns[3].ainvoke(3, config()) == "now 4"
        assert calls == [1, -2, 3]
        await alike(states, programs)
        await alike(stored, savers)


# DeltaChannel.


async def deltas(saver: Saver) -> list[Any]:
    """What the value of a log is rebuilt from, at every checkpoint of a conversation."""
    return [
        await saver.aget_delta_channel_history(config=one.config, channels=["log", "other"])
        for one in await stored(saver)
    ]


def asked(frequency: int) -> StateGraph[Any]:
    """A graph of one `DeltaChannel`: parallel nodes, of which one asks."""
    return at_once(state=delta_state(frequency), c=logs("c"), a=asks("a"), b=logs("b"))


def one_word(word: str) -> Step:
    """A turn's begin."""
    return lambda graph, durability: graph.ainvoke({"log": [word]}, config(), durability=durability)


async def forks(graph: Any, durability: str) -> Any:
    """Another way to go on, from the middle of the history, whose next node is not run again."""
    history = [one async for one in graph.aget_state_history(config())]
    of = history[len(history) // 2].config
    forked = await graph.aupdate_state(of, {"log": ["by hand"]}, as_node="end")
    await graph.ainvoke({"log": ["forked"]}, forked, durability=durability)


async def is_answered(graph: Any, durability: str) -> Any:
    """An answer to all that is asked."""
    return await graph.ainvoke(answers(await graph.aget_state(config())), config(), durability=durability)


LOGS: list[Step] = [one_word("1"), is_answered, one_word("2"), is_answered, forks, is_answered, one_word("3"), travels]


@TAKING_TURNS
@pytest.mark.parametrize(("frequency", "durability"), [(1, "async"), (3, "async"), (3, "exit"), (1000, "async")])
async def test_a_delta_channel_goes_on_with_the_other_saver(
    writers: list[str], frequency: int, durability: str, conninfo: str
) -> None:
    """Whichever saver makes a step, both rebuild every checkpoint's value, from the same seeds and the same writes."""
    alone = asked(frequency).compile(checkpointer=InMemorySaver())
    async with both(conninfo, writers[0]) as savers:
        graphs = {name: asked(frequency).compile(checkpointer=saver) for name, saver in savers.items()}
        for number, step in enumerate(LOGS):
            await step(graphs[writers[number % len(writers)]], durability)
            await step(alone, durability)
            assert not [*differing(told(await alike(states, graphs)), told(await states(alone)))]
            await alike(stored, savers)
            await alike(deltas, savers)


@TAKING_TURNS
async def test_a_log_becomes_a_delta_channel(writers: list[str], conninfo: str) -> None:
    """A conversation whose graph had a plain channel goes on with a `DeltaChannel`; its old value is the seed."""
    async with both(conninfo, writers[0]) as savers:
        for number in range(6):
            shape = in_turn(a=logs("a")) if number < 2 else in_turn(state=delta_state(1000), a=logs("a"))
            graphs = {name: shape.compile(checkpointer=saver) for name, saver in savers.items()}
            await one_word(f"{number}")(graphs[writers[number % len(writers)]], "async")
            state = (await alike(states, graphs))[0]
            history = await alike(deltas, savers)
        assert state.values["log"] == [word for n in range(6) for word in (f"{n}", f"a{2 * n + 1}")]
        assert history[-1]["log"]["seed"] == ["0", "a1", "1", "a3"]


SEEDS = [["list"], "", "text", 0, 7, 0.5, False, True, {"a": None}, b""]


@WRITERS
async def test_any_value_is_a_seed(writer: str, conninfo: str) -> None:
    """A `DeltaChannel`'s value is rebuilt from what the channel held before, also where that was a primitive."""
    unset = {"channel_versions": {"log": "2"}, "channel_values": {}}
    async with both(conninfo, writer) as savers:
        for number, seed in enumerate(SEEDS):
            thread_id = f"{number}"
            await put(savers[writer], "1", {"log": seed}, thread_id=thread_id)
            await savers[writer].aput_writes(at(thread_id, "1"), [("log", "write")], "task")
            await savers[writer].aput(at(thread_id, "1"), checkpoint("2", **unset), {"step": 2}, {"log": "2"})
            expected = {"log": {"seed": seed, "writes": [("task", "log", "write")]}}
            for saver in savers.values():
                found = await saver.aget_delta_channel_history(config=at(thread_id, "2"), channels=["log"])
                assert not [*differing(found, expected)]


# What old releases of the official saver wrote: rows made by hand.


class Rows:
    """Puts rows into a database's tables; of one conversation, unless they say something else."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    def _insert(self, table: str, **row: Any) -> None:
        row = {"thread_id": "t", "checkpoint_ns": "", **row}
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        with psycopg.connect(direct(self._conninfo)) as connection:
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*row.values()])

    def checkpoint(self, number: int, metadata: Any = None, row: dict[str, Any] | None = None, **fields: Any) -> None:
        """A checkpoint, whose parent is the one of the number before."""
        made = {"v": 1, "ts": "2024-08-01T00:00:00+00:00", "id": f"{number}", "channel_versions": {}, **fields}
        self._insert(
            "checkpoints",
            checkpoint_id=f"{number}",
            parent_checkpoint_id=f"{number - 1}" if number > 1 else None,
            type="json",
            checkpoint=Jsonb({"versions_seen": {}, "pending_sends": [], "current_tasks": {}, **made}),
            metadata=Jsonb({"source": "loop", "step": number, "writes": None} if metadata is None else metadata),
            **row or {},
        )

    def blob(self, channel: str, version: Any, kind: str, data: bytes | None, **row: Any) -> None:
        """The value of a channel."""
        self._insert("checkpoint_blobs", channel=channel, version=f"{version}", type=kind, blob=data, **row)

    def write(self, number: int, task: str, idx: int, channel: str, kind: str | None, data: bytes, **row: Any) -> None:
        """A pending write."""
        place = {"checkpoint_id": f"{number}", "task_id": task, "idx": idx, "channel": channel}
        self._insert("checkpoint_writes", **place, type=kind, blob=data, **row)

    def sends(self, number: int, *args: Any, **row: Any) -> None:
        """What tasks sent, in the order in which it is to be read, and something else that one wrote."""
        for place, arg in enumerate(args):
            task, idx = divmod(place, 2)
            self.write(number, f"task-{task}", idx + 1, TASKS, *SERDE.dumps_typed(Send("node", arg)), **row)
        self.write(number, "task-0", 0, "a", *SERDE.dumps_typed("written"), **row)


SERDE = JsonPlusSerializer()
OURS = "async_saver"  # the store's own key in metadata; who never had this store may have one of that name, too

HUMAN = {"content": "hello", "type": "human", "id": "1"}
AS_JSON = {
    "a message": {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", "HumanMessage"],
        "kwargs": HUMAN,
    },
    "text": "it's",
    "a dict": {"a": [1, 2.5, None, True]},
}


def _of_blobs(rows: Rows) -> None:
    """Every value has a row of its own, primitives too, and so has a channel that is empty."""
    versions = {"json": "00000001.0.5", "msgpack": "00000001.0.5", "none": "00000002.0.1", "empty": "00000002.0.2"}
    rows.checkpoint(1, channel_versions=versions)
    rows.blob("json", versions["json"], "json", json.dumps(AS_JSON).encode())
    rows.blob("msgpack", versions["msgpack"], *SERDE.dumps_typed("text"))
    rows.blob("none", versions["none"], "null", b"")
    rows.blob("empty", versions["empty"], "empty", None)


def _of_ints(rows: Rows) -> None:
    """Versions are ints; the value of another version is another checkpoint's."""
    for number in (1, 2):
        rows.checkpoint(number, channel_versions={"a": number, "b": 1}, versions_seen={"node": {"a": number}})
        rows.blob("a", number, "json", b"%d" % number)
    rows.blob("b", 1, "json", b'"b"')


def _of_sends(v: int) -> Callable[[Rows], None]:
    """What is sent is with the parent's writes; a checkpoint without a parent has none."""

    def make(rows: Rows) -> None:
        for number in (1, 2, 3):
            rows.checkpoint(number, v=v, channel_versions={"a": f"{number}.0.1"})
            rows.blob("a", f"{number}.0.1", "json", b"%d" % number)
            rows.sends(number, number, {"pet": None}, "more")

    return make


def _of_sends_by_path(rows: Rows) -> None:
    """As before, where the path of a task counts, not its id."""
    rows.checkpoint(1, v=3, channel_versions={"a": 1})
    rows.checkpoint(2, v=3, channel_versions={"a": 1})
    for task, path in (("c", "~__pregel_pull, a"), ("a", "~__pregel_pull, b"), ("b", "")):
        rows.write(1, task, 0, TASKS, *SERDE.dumps_typed(Send("node", task)), task_path=path)


def _of_metadata(rows: Rows) -> None:
    """Metadata of all sorts."""
    message = AS_JSON["a message"]
    for number, metadata in enumerate(
        [{}, {"writes": {"a": {"b": [1]}}, "step": -1}, {"x": message}, {"é": 0.5}, {OURS: "theirs"}], 1
    ):
        rows.checkpoint(number, metadata=metadata)


def _of_shapes(rows: Rows) -> None:
    """Checkpoints with fields that are absent, null, or not known any more; some values inline, some with a row."""
    rows.checkpoint(1, channel_values=None)
    rows.checkpoint(2, channel_values={}, updated_channels=["a"], unknown={"x": AS_JSON["a message"]})
    versions = {"a": "1", "b": "1", "c": "1", "gone": "1"}
    rows.checkpoint(3, v=4, channel_values={"a": "inline", "b": 2, "c": None}, channel_versions=versions)
    rows.blob("b", "1", "json", b'"the row wins"')


def _of_writes(rows: Rows) -> None:
    """Pending writes of all sorts, without a path: in the order of tasks, the special ones first."""
    rows.checkpoint(1)
    for task, idx, channel, kind, data in [
        ("b", 0, "a", "json", b'{"x": 1}'),
        ("a", 1, "a", "null", b""),
        ("a", 10, "a", "bytes", b"\x00\xff"),
        ("a", 2, "a", "bytearray", b"\x00"),
        ("c", -1, "__error__", "json", b'"failed"'),
        ("c", -3, "__interrupt__", *SERDE.dumps_typed((Interrupt("really?", id="i"),))),
    ]:
        rows.write(1, task, idx, channel, kind, data)


def _of_no_parent(rows: Rows) -> None:
    """Writes whose checkpoint is not there, and a checkpoint whose parent is not."""
    rows.checkpoint(2, v=3, channel_versions={"a": 1})
    rows.sends(1, "from one that has gone")
    rows.sends(3, "from one that is not there yet")


SENT = [Send("node", 2), Send("node", {"pet": None}), Send("node", "more")]
OLD: dict[str, tuple[Callable[[Rows], None], Any]] = {
    "blobs": (
        _of_blobs,
        {"json": {**AS_JSON, "a message": HumanMessage("hello", id="1")}, "msgpack": "text", "none": None},
    ),
    "ints": (_of_ints, {"a": 2, "b": "b"}),
    "sends of v1": (_of_sends(1), {"a": 3, TASKS: SENT}),
    "sends of v2": (_of_sends(2), {"a": 3, TASKS: SENT}),
    "sends of v3": (_of_sends(3), {"a": 3, TASKS: SENT}),
    "no sends of v4": (_of_sends(4), {"a": 3}),
    "sends by path": (_of_sends_by_path, {TASKS: [Send("node", "b"), Send("node", "c"), Send("node", "a")]}),
    "metadata": (_of_metadata, {}),
    "shapes": (_of_shapes, {"a": "inline", "b": "the row wins", "c": None}),
    "writes": (_of_writes, {}),
    "no parent": (_of_no_parent, {TASKS: [Send("node", "from one that has gone")]}),
}
"""What makes the rows, and the values of the latest checkpoint then."""


async def got(saver: Saver) -> list[Any]:
    """The latest checkpoint, and every one by its id."""
    every = [await saver.aget_tuple(one.config) for one in await stored(saver)]
    return [await saver.aget_tuple({"configurable": {"thread_id": "t"}}), *every]


@pytest.mark.parametrize("rows", OLD)
async def test_old_rows_read_as_ever(rows: str, conninfo: str) -> None:
    """What old releases wrote is read field by field as the official saver reads it, by id and in lists."""
    make, values = OLD[rows]
    async with both(conninfo) as savers:
        make(Rows(conninfo))
        await alike(stored, savers)
        found = await alike(got, savers)
    assert not [*differing(found[0].checkpoint["channel_values"], values)]


@pytest.mark.parametrize("rows", sorted(OLD.keys() - {"sends by path"}))
async def test_tables_of_an_old_release_are_opened(rows: str, conninfo: str) -> None:
    """Ours brings the tables of an old release up to date, which knew no paths, and both read what is in them."""
    make, values = OLD[rows]
    with psycopg.connect(direct(conninfo), autocommit=True) as connection:
        for number, statement in enumerate(AsyncPostgresSaver.MIGRATIONS[:5]):
            connection.execute(statement)
            connection.execute("INSERT INTO checkpoint_migrations VALUES (%s)", [number])
    make(Rows(conninfo))
    async with both(conninfo, "ours") as savers:
        found = await alike(got, savers)
        await put(savers["ours"], "9", {"new": 1})
        await alike(stored, savers)
    assert not [*differing(found[0].checkpoint["channel_values"], values)]


@WRITERS
async def test_old_sends_of_a_checkpoint_without_versions(writer: str, conninfo: str) -> None:
    """Where nothing else has a version, what was sent has a first one, which neither saver can foretell."""
    async with both(conninfo, writer) as savers:
        rows = Rows(conninfo)
        rows.checkpoint(1, v=3)
        rows.checkpoint(2, v=3)
        rows.sends(1, "alone")
        for saver in savers.values():
            found = (await saver.aget_tuple(at("t", "2"))).checkpoint
            assert found["channel_values"] == {TASKS: [Send("node", "alone")]}
            assert [int(version.partition(".")[0]) for version in found["channel_versions"].values()] == [1]


def make_old(conninfo: str, v: int) -> None:
    """Rewrite all checkpoints as releases before v4 had stored them: no value inline, and nothing of what was sent."""
    with psycopg.connect(direct(conninfo)) as connection:
        every = connection.execute(
            "SELECT thread_id, checkpoint_ns, checkpoint_id, checkpoint FROM checkpoints"
        ).fetchall()
        for *place, made in every:
            values, versions = made.pop("channel_values"), made["channel_versions"]
            versions.pop(TASKS, None)
            for channel, version in versions.items():
                blob = SERDE.dumps_typed(values[channel]) if channel in values else ("empty", None)
                connection.execute(
                    "INSERT INTO checkpoint_blobs VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    [*place[:2], channel, version, *blob],
                )
            connection.execute(
                "UPDATE checkpoints SET checkpoint = %s WHERE (thread_id, checkpoint_ns, checkpoint_id) = (%s, %s, %s)",
                [Jsonb({**made, "v": v, "pending_sends": []}), *place],
            )
        connection.execute("DELETE FROM checkpoint_blobs WHERE channel = %s", [TASKS])


@TAKING_TURNS
@pytest.mark.parametrize("v", [2, 3])
async def test_an_old_conversation_goes_on(writers: list[str], v: int, conninfo: str) -> None:
    """A conversation of an old release, in the middle of a run that has sent what is not received yet, goes on."""
    steps = [says("hello", **FILLED), goes_on, goes_on]
    later = [says("and?"), goes_on, goes_on]
    shape = zoo().compile(interrupt_before=["feeds"])
    alone = shape.copy({"checkpointer": InMemorySaver()})
    async with both(conninfo, writers[0]) as savers:
        graphs = {name: shape.copy({"checkpointer": saver}) for name, saver in savers.items()}
        for step in steps:
            await step(graphs["upstream"], "async")
            await step(alone, "async")
        make_old(conninfo, v)
        expected = told(await states(alone))
        assert expected[0]["next"] == ("feeds", "feeds", "feeds")
        assert not [*differing(told(await alike(states, graphs)), expected)]
        for number, step in enumerate([goes_further, *later, goes_further]):
            await step(graphs[writers[number % len(writers)]], "async")
            await step(alone, "async")
            assert not [*differing(told(await alike(states, graphs)), told(await states(alone)))]
            await alike(stored, savers)


async def goes_further(graph: Any, durability: str) -> Any:
    """The rest of a run that was stopped between two steps."""
    return await graph.ainvoke(None, config(), durability=durability)


@WRITERS
@pytest.mark.parametrize("pruner", SAVERS)
async def test_an_old_conversation_goes_on_when_it_is_pruned(writer: str, pruner: str, conninfo: str) -> None:
    """What was sent and not received yet stays with the latest checkpoint of an old release, if only that is kept."""
    shape = zoo().compile(interrupt_before=["feeds"])
    alone = shape.copy({"checkpointer": InMemorySaver()})
    async with both(conninfo) as savers:
        graphs = {name: shape.copy({"checkpointer": saver}) for name, saver in savers.items()}
        # A True that has a row of its own, as it had in old releases, the official saver takes for the mark of a
        # DeltaChannel once it has put it again, and refuses to prune.
        for step in (says("hello", **{**FILLED, "flag": False}), goes_on, goes_on):
            await step(graphs["upstream"], "async")
            await step(alone, "async")
        make_old(conninfo, 3)
        for step in (goes_further, says("and?")):
            await savers[pruner].aprune(["t"])
            assert not [*differing(told([await alike(latest, graphs)]), told([await latest(alone)]))]
            await step(graphs[writer], "async")
            await step(alone, "async")
        assert not [*differing(told([await alike(latest, graphs)]), told([await latest(alone)]))]


async def test_old_sends_in_many_places(conninfo: str) -> None:
    """What was sent in one conversation or namespace is read there only, also where checkpoints have the same ids."""
    # The official saver lists only what was sent in the first conversation of a list, and that in every namespace.
    expected = {}
    async with _ours(conninfo) as saver:
        rows = Rows(conninfo)
        for thread_id, ns in (("t", ""), ("t", "inner"), ("u", "")):
            where = {"thread_id": thread_id, "checkpoint_ns": ns}
            for number in (1, 2):
                rows.checkpoint(number, row=where, v=3, channel_versions={"a": 1})
            rows.write(1, "task", 0, TASKS, *SERDE.dumps_typed(Send("node", [thread_id, ns])), **where)
            expected[thread_id, ns, "2"] = {TASKS: [Send("node", [thread_id, ns])]}
            expected[thread_id, ns, "1"] = {}
            found = await saver.aget_tuple(at(thread_id, "2", ns=ns))
            assert found.checkpoint["channel_values"] == expected[thread_id, ns, "2"]
        listed = await all_of(saver.alist(None))
    found = {tuple(one.config["configurable"].values()): one.checkpoint["channel_values"] for one in listed}
    assert found == expected


async def test_old_writes_without_a_type(conninfo: str) -> None:
    """A pending write whose type is NULL, as its column allows, is None; it keeps nobody from reading the rest."""
    # The official saver raises an AttributeError.
    async with _ours(conninfo) as saver:
        rows = Rows(conninfo)
        rows.checkpoint(1)
        rows.write(1, "a", 0, "a", None, b"")
        rows.write(1, "b", 0, "a", "json", b"1")
        for found in (await saver.aget_tuple(at("t")), *await stored(saver)):
            assert found.pending_writes == [("a", "a", None), ("b", "a", 1)]


# Random checkpoints, and values that not everything can hold.

_TEXT = st.sampled_from(
    ["'", '"', "\\", "\\x41", "\\u0000", "{}", "%s", "$1", "E'\\n'", "\u2028", "дом 🐍", "null"]
) | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
_INLINE = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(-1e15, 1e15).filter(lambda one: repr(one) != "-0.0")
    | st.sampled_from([2**63, 1e-7, 5e-324, 2**53 + 1, 1e15])
    | _TEXT
)
"""What AsyncPostgresSaver puts into a checkpoint's JSON, and gets out of it again as it was."""
_ANY = _INLINE | st.floats(allow_nan=False) | st.binary(max_size=8) | st.just("\x00")
_VALUES = _INLINE | st.recursive(
    st.lists(_ANY, max_size=3) | st.binary(max_size=8),
    lambda inner: st.lists(inner | _ANY, max_size=3) | st.dictionaries(_TEXT, inner | _ANY, max_size=3),
    max_leaves=6,
)
_CHANNELS = ["a", "b", "it's", 'a "b" {c}', "дом 🐍", "%s"]
_UNSET = object()
_STEPS = st.lists(
    st.tuples(
        st.sampled_from([*SAVERS]),
        st.integers(0, 9),
        st.dictionaries(st.sampled_from(_CHANNELS), _VALUES | st.just(_UNSET), max_size=4),
        st.lists(st.tuples(st.sampled_from(_CHANNELS), _VALUES), max_size=2),
    ),
    min_size=2,
    max_size=6,
)
_conversations = count()


class Model:
    """What a conversation should read as, while either saver stores its checkpoints."""

    def __init__(self, thread_id: str) -> None:
        self._thread_id = thread_id
        self._made: list[tuple[str | None, dict[str, Any], dict[str, Any]]] = [(None, {}, {})]
        self.expected: dict[str, Any] = {}

    async def step(self, saver: Saver, parent: int, changes: dict[str, Any], writes: list[tuple[str, Any]]) -> None:
        """Store a checkpoint that differs from its parent by some values, and pending writes."""
        parent_id, values, versions = self._made[parent % len(self._made)]
        new = {channel: saver.get_next_version(versions.get(channel), None) for channel in changes}
        values = {channel: value for channel, value in {**values, **changes}.items() if value is not _UNSET}
        versions = {**versions, **new}
        made = checkpoint(f"{len(self._made):04}", values, channel_versions=versions)
        stored = await saver.aput(at(self._thread_id, parent_id), copy.deepcopy(made), {"step": 1}, new)
        if writes:
            await saver.aput_writes(stored, writes, "task")
        self._made.append((made["id"], values, versions))
        self.expected[made["id"]] = made, parent_id, [("task", *one) for one in writes]


@settings(max_examples=40)
@given(steps=_STEPS)
async def test_random_checkpoints_read_alike(steps: Any, shared: str) -> None:
    """Whoever stored a checkpoint, its parent or its values' first versions, both savers read what was put."""
    model = Model(f"random-{next(_conversations)}")
    async with both(shared) as savers:
        for writer, *step in steps:
            await model.step(savers[writer], *step)
        for saver in savers.values():
            found = {
                one.checkpoint["id"]: (
                    one.checkpoint,
                    one.parent_config and one.parent_config["configurable"]["checkpoint_id"],
                    one.pending_writes,
                )
                for one in await stored(saver, model._thread_id)
            }
            assert not [*differing(found, model.expected)]


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    """A database for many conversations."""
    with new_database(needed()) as made:
        yield made


class Mood(str, Enum):
    """Text that is more than text."""

    GOOD = "good"


class Level(IntEnum):
    """A number that is more than a number."""

    HIGH = 3


NASTY: list[Any] = [
    *(
        "",
        "\\",
        "\\x41",
        "\\u0000",
        "x" * 100_000,
        Mood.GOOD,
        "\x00",
        "a\x00b",
        "\ud800",
        ["\x00"],
        ["\ud800"],
        {"\x00": 1},
    ),
    *(2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400, Level.HIGH, [2**64], {1: "a"}),
    *(-0.0, 0.1, 5e-324, 1e-7, 1e15, 1e16, 1e22, 1e23, 1e308, float(2**53), math.inf, -math.inf, math.nan, [math.nan]),
    *(b"", b"\x00\xff", bytearray(b"\x00"), (1, 2), {1}, Decimal("1.10"), object(), lambda: None),
]
"""Values that are hard on JSON, on msgpack, or on PostgreSQL."""


async def _kept(saver: Saver, thread_id: str, values: dict[str, Any], metadata: dict[str, Any]) -> Any:
    """Put a checkpoint, and return what is read then; or why not."""
    try:
        await put(saver, "1", values, thread_id=thread_id, metadata=metadata)
    except Exception as exc:
        return exc
    return await _read(saver, thread_id)


async def _read(saver: Saver, thread_id: str) -> Any:
    found = await saver.aget_tuple(at(thread_id))
    return found and (found.checkpoint["channel_values"], found.metadata)


async def _judged(
    savers: dict[str, Saver], thread_id: str, values: dict[str, Any], metadata: dict[str, Any]
) -> list[str]:
    """Put these by either saver, and tell what is wrong with what the two then read."""
    put_in = values, metadata
    by_serde = await _kept(AsyncSaver(), thread_id, values, metadata)
    theirs = await _kept(savers["upstream"], f"theirs-{thread_id}", values, metadata)
    ours = await _kept(savers["ours"], f"ours-{thread_id}", values, metadata)
    able = not isinstance(theirs, Exception) and not [*differing(theirs, put_in)]
    of_theirs = await _read(savers["ours"], f"theirs-{thread_id}")
    wrong = [*differing(of_theirs, None if isinstance(theirs, Exception) else theirs, "of upstream's, ours")]
    if isinstance(ours, Exception):
        if able or not isinstance(ours, AsyncSaverError):
            wrong.append(f"ours raises {ours!r}; upstream {'can' if able else 'cannot'} store it")
        return wrong
    unfaithful = [*differing(ours, put_in if isinstance(by_serde, Exception) else by_serde, "of ours, ours")]
    if unfaithful and (ours[0] != values or [*differing(ours, theirs)]):  # metadata may be as JSON has it
        wrong += unfaithful
    of_ours = await _read(savers["upstream"], f"ours-{thread_id}")
    if able:
        wrong += differing(of_ours, put_in, "of ours, upstream")
    elif of_ours[0]["beside"] != ["beside"] or of_ours[1]["beside"] != "beside":
        wrong.append(f"of ours, upstream reads {of_ours}")
    return wrong


@pytest.mark.parametrize("where", ["values", "metadata", "nested metadata"])
async def test_what_not_everything_can_hold(where: str, conninfo: str) -> None:
    """A value reads as it was put, or is refused by an error that says so; all the rest stays readable by both."""
    wrong = {}
    async with both(conninfo) as savers:
        for number, value in enumerate(NASTY):
            values, metadata = {"beside": ["beside"], "inline": "text"}, {"beside": "beside", "step": 1}
            (values if where == "values" else metadata)["a"] = {"b": [value]} if where == "nested metadata" else value
            if found := await _judged(savers, f"{number:04}", values, metadata):
                wrong[repr(value)[:60]] = found
        await all_of(savers["upstream"].alist(None))
    assert not wrong


@ALTERNATING
async def test_a_value_that_stays_is_passed_on(writers: list[str], conninfo: str) -> None:
    """What one saver has put, and the other puts again in the next checkpoints unchanged, reads as before."""
    wrong, (first, second) = {}, writers
    async with both(conninfo) as savers:
        for number, value in enumerate(NASTY):
            put_first = await _kept(savers[first], f"{number}", {"a": value}, {"step": 1})
            put_second = await _kept(savers[second], f"again-{number}", {"a": value}, {"step": 1})
            if isinstance(put_first, Exception) or (second == "upstream" and isinstance(put_second, Exception)):
                continue  # what the official saver cannot put, it cannot put again
            for step, saver in enumerate((savers[second], savers[first], savers[second]), 2):
                before = (await saver.aget_tuple(at(f"{number}"))).checkpoint
                versions = {**before["channel_versions"], "step": f"{step}"}
                values = {**before["channel_values"], "step": step}
                made = checkpoint(f"{step}", values, channel_versions=versions)
                await saver.aput(at(f"{number}", before["id"]), made, {"step": step}, {"step": f"{step}"})
            for name, saver in savers.items():
                found = (await saver.aget_tuple(at(f"{number}"))).checkpoint["channel_values"].get("a", "nothing")
                # By the official saver a large float becomes a whole number, and a member of an enumeration its value.
                if [*differing(found, put_first[0]["a"])] and found != _as_json(value):
                    wrong[f"{value!r:.60}"] = f"{name} reads {found!r:.60}"
    assert not wrong


def _as_json(value: Any) -> Any:
    """A value as it comes back from a database that keeps JSON."""
    if isinstance(value, float):
        return int(Decimal(repr(value)))
    return value.value if isinstance(value, Enum) else value


NAMES = [
    "",
    "it's",
    'a "b" {c}',
    "%s",
    "$1",
    "дом 🐍",
    "a\nb",
    "a/b|c:d",
    "__x__",
    "back\\slash",
    "\\x41",
    "\\",
    "a\x00b",
    "\ud800",
]
"""Names that are hard on SQL, or on a cast to bytes: AsyncPostgresSaver cannot read those with a backslash."""


async def _named(saver: Saver, thread_id: str, where: str, name: str) -> Any:
    """Use a name in a place, and return what is read then; or why not."""
    namespace, channel, task = (name if where == place else place for place in ("namespace", "channel", "task"))
    try:
        stored = await put(saver, "1", {channel: ["value"], "inline": "x"}, thread_id=thread_id, ns=namespace)
        await saver.aput_writes(stored, [(channel, "write")], task)
        return await _read_named(saver, thread_id, where, name)
    except Exception as exc:
        return exc


async def _read_named(saver: Saver, thread_id: str, where: str, name: str) -> Any:
    found = await saver.aget_tuple(at(thread_id, ns=name if where == "namespace" else "namespace"))
    return found and (found.checkpoint, found.pending_writes)


@pytest.mark.parametrize("where", ["namespace", "channel", "task"])
async def test_names_of_all_sorts(where: str, conninfo: str) -> None:
    """What has an odd name reads alike; where the official saver fails it is read as it was put, or refused."""
    async with both(conninfo) as savers:
        for number, name in enumerate(NAMES):
            expected = await _named(AsyncSaver(), "t", where, name)
            theirs = await _named(savers["upstream"], f"theirs-{number}", where, name)
            ours = await _named(savers["ours"], f"ours-{number}", where, name)
            if isinstance(theirs, Exception) or [*differing(theirs, expected)]:
                assert isinstance(ours, AsyncSaverError) or not [*differing(ours, expected)], name
            else:
                assert not [*differing(ours, theirs)], name
                assert not [*differing(await _read_named(savers["ours"], f"theirs-{number}", where, name), theirs)]
                assert not [*differing(await _read_named(savers["upstream"], f"ours-{number}", where, name), theirs)]


# Other serializers, other savers.


@ALTERNATING
async def test_an_encrypted_conversation_goes_on_with_the_other_saver(writers: list[str], conninfo: str) -> None:
    """With one key on both, either reads and continues what the other wrote."""
    expected = await run_in_memory("async")
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"sixteen bytes of")
    async with both(conninfo, writers[0], serde) as savers:
        await _follow(savers, writers, "async", expected[:4])


@TAKING_TURNS
@pytest.mark.parametrize("key", [None, b"sixteen bytes of"], ids=["plain", "encrypted"])
async def test_the_sync_saver_goes_on(writers: list[str], key: bytes | None, conninfo: str) -> None:
    """What either wrote is read alike by the official saver of sync programs, which goes on with it, and back."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=key) if key else None
    alone = zoo().compile(checkpointer=InMemorySaver())
    async with both(conninfo, writers[0], serde) as savers:
        graphs = {name: zoo().compile(checkpointer=saver) for name, saver in savers.items()}
        for number, step in enumerate([says("hello", **FILLED), goes_on]):
            await step(graphs[writers[number % len(writers)]], "async")
            await step(alone, "async")
        with PostgresSaver.from_conn_string(direct(conninfo)) as sync:
            sync.serde = serde or sync.serde
            graph = zoo().compile(checkpointer=sync)
            assert not [*differing(_states_sync(graph), await alike(states, graphs))]
            graph.invoke(Command(resume="yes"), config())
            assert not [*differing(_states_sync(graph), await alike(states, graphs))]
            found = [*sync.list({"configurable": {"thread_id": "t"}})]
            assert not [*differing(_in_order(found), await alike(stored, savers))]
        for step in (goes_on, says("and?")):
            await step(alone, "async")
        await says("and?")(graphs[writers[0]], "async")
        assert not [*differing(told(await alike(states, graphs)), told(await states(alone)))]


def _states_sync(graph: Any) -> list[StateSnapshot]:
    return [graph.get_state(config(), subgraphs=True), *graph.get_state_history(config())]


# Deletions and copies.


def whole(number: int) -> Any:
    """A graph without a `DeltaChannel` (0), or one with it and this frequency of snapshots; and its steps."""
    if not number:
        return zoo(), [says("hello", **FILLED), goes_on, goes_on, says("and?"), goes_on, is_updated, says("bye")]
    return asked(number), [one_word("1"), is_answered, one_word("2"), is_answered, one_word("3"), is_answered]


SHAPES = pytest.mark.parametrize("frequency", [0, 3, 1000])


@SHAPES
@TAKING_TURNS
@pytest.mark.parametrize("pruner", SAVERS)
async def test_a_pruned_conversation_goes_on(writers: list[str], frequency: int, pruner: str, conninfo: str) -> None:
    """After every step of either saver only the latest is kept: both read it, and go on as if nothing had gone."""
    if frequency and pruner == "upstream":
        pytest.skip("the official saver does not prune a conversation with a DeltaChannel")
    shape, steps = whole(frequency)
    alone = shape.compile(checkpointer=InMemorySaver())
    async with both(conninfo, writers[0]) as savers:
        graphs = {name: shape.compile(checkpointer=saver) for name, saver in savers.items()}
        for number, step in enumerate(steps):
            await step(graphs[writers[number % len(writers)]], "async")
            await step(alone, "async")
            await savers[pruner].aprune(["t"])
            assert not [*differing(told([await alike(latest, graphs)]), told([await latest(alone)]))]
            assert len(await states(graphs["ours"])) == 2
            if frequency:
                await states(graphs["upstream"])  # it may show ancestors that are there for the values only
            else:
                await alike(states, graphs)


@TAKING_TURNS
@pytest.mark.parametrize("durability", ["async", "exit"])
async def test_the_official_saver_knows_a_delta_channel(writers: list[str], durability: str, conninfo: str) -> None:
    """It refuses to prune a conversation with a `DeltaChannel`, whoever wrote it, as what it holds would be lost."""
    async with both(conninfo, writers[0]) as savers:
        graphs = {name: asked(1000).compile(checkpointer=saver) for name, saver in savers.items()}
        for number, step in enumerate([one_word("1"), is_answered]):
            await step(graphs[writers[number % len(writers)]], durability)
        with pytest.raises(NotImplementedError):
            await savers["upstream"].aprune(["t"])


@WRITERS
async def test_a_snapshot_shows_a_delta_channel(writer: str, conninfo: str) -> None:
    """A `DeltaChannel` of which only a snapshot is known is one: that is the seed, and stays when it is pruned."""
    unset = {"channel_versions": {"log": "2"}, "channel_values": {}}
    async with both(conninfo, writer) as savers:
        await put(savers[writer], "1", {"log": _DeltaSnapshot(["seed"])})
        await savers[writer].aput_writes(at("t", "1"), [("log", ["write"])], "task")
        await savers[writer].aput(at("t", "1"), checkpoint("2", **unset), {"step": 2}, {"log": "2"})
        with pytest.raises(NotImplementedError):
            await savers["upstream"].aprune(["t"])
        await savers["ours"].aprune(["t"])
        expected = {"log": {"seed": _DeltaSnapshot(["seed"]), "writes": [("task", "log", ["write"])]}}
        for saver in savers.values():
            found = await saver.aget_delta_channel_history(config=at("t", "2"), channels=["log"])
            assert not [*differing(found, expected)]


async def latest(graph: Any) -> StateSnapshot:
    """The state of a conversation with those of its subgraphs."""
    found: StateSnapshot = await graph.aget_state(config(), subgraphs=True)
    return found


@SHAPES
@TAKING_TURNS
@pytest.mark.parametrize("gone", ["2", "3"])
async def test_what_runs_leave_when_they_are_deleted(
    writers: list[str], frequency: int, gone: str, conninfo: str
) -> None:
    """Runs that either saver stored are deleted by ours: what stays reads as before, and both go on with the latest."""
    shape = in_turn(a=logs("a"), b=logs("b")) if not frequency else delta(frequency)
    async with both(conninfo, writers[0]) as savers:
        graphs = {name: shape.compile(checkpointer=saver) for name, saver in savers.items()}
        for number, run in enumerate(("1", "2", "3")):
            await turn(graphs[writers[number % len(writers)]], run, run_id=run)
        await alike(stored, savers)
        for run in (gone, "1"):
            stays = await by_id(graphs["ours"], without_run=run)
            await savers["ours"].adelete_for_runs([run])
            assert not [*differing(await by_id(graphs["ours"]), stays)]
            before = await alike(latest, graphs)
            assert not [*differing(outline(before), next(iter(stays.values())))]
            await (states(graphs["upstream"]) if frequency else alike(states, graphs))
        for writer in ("upstream", "ours"):
            await turn(graphs[writer], writer)
            values = (await alike(latest, graphs)).values["log"]
            assert values[: len(before.values["log"])] == before.values["log"]
            assert "upstream" in values
            assert (writer == "ours") == ("ours" in values)


@SHAPES
@TAKING_TURNS
async def test_a_copy_goes_on(writers: list[str], frequency: int, conninfo: str) -> None:
    """A conversation that ours copied reads alike, and whoever goes on with the copy does nothing to the source."""
    shape, steps = whole(frequency)
    async with both(conninfo, writers[0]) as savers:
        graphs = {name: shape.compile(checkpointer=saver) for name, saver in savers.items()}
        for number, step in enumerate(steps):
            await step(graphs[writers[number % len(writers)]], "async")
        source = await alike(stored, savers)
        await savers["ours"].acopy_thread("t", "u")
        await alike(copied, savers)
        state, of = (await alike(latest, graphs)).values, config("u")
        for graph in graphs.values():
            assert not [*differing((await graph.aget_state(of)).values, state)]
        for graph in graphs.values():
            await graph.ainvoke({"log": ["more"]}, of)
        values = [(await graph.aget_state(of)).values for graph in graphs.values()]
        assert not [*differing(*values)]
        assert values[0]["log"].count("more") == 2
        assert len(await alike(copied, savers)) > len(source)
        assert not [*differing(await alike(stored, savers), source)]


async def copied(saver: Saver) -> list[Any]:
    """All of the copy."""
    return await stored(saver, "u")


@pytest.mark.parametrize("writer", SAVERS)
@pytest.mark.parametrize("deleter", SAVERS)
async def test_a_deleted_conversation_is_gone_for_both(writer: str, deleter: str, conninfo: str) -> None:
    """Nothing of it is left in any table, whoever wrote it and whoever deleted it; another one stays."""
    async with both(conninfo, writer) as savers:
        graphs = {name: zoo().compile(checkpointer=saver) for name, saver in savers.items()}
        for thread_id in ("t", "other"):
            await graphs[writer].ainvoke({"log": [thread_id], **FILLED}, config(thread_id))
        assert await savers["ours"].acount() == 2
        await savers[deleter].adelete_thread("t")
        assert await alike(stored, savers) == []
        assert await all_of(savers["ours"].athread_ids()) == ["other"]
        assert await savers["ours"].acount() == 1
        await graphs[deleter].ainvoke({"log": ["again"]}, config())
        assert (await alike(latest, graphs)).values["log"] == ["again", "mixes1"]


@ALTERNATING
async def test_writes_that_are_there_already(writers: list[str], conninfo: str) -> None:
    """Of two writes of one place the first stays, and of the special ones the last, whoever wrote them."""
    async with both(conninfo) as savers:
        await put(savers[writers[0]], "1", {"a": 1})
        for number, name in enumerate(writers):
            saver = savers[name]
            await saver.aput_writes(at("t", "1"), [("a", number), ("b", [number])][: number + 1], "task", "path")
            await saver.aput_writes(at("t", "1"), [(ERROR, number)], "task")
            await saver.aput_writes(at("t", "1"), [(INTERRUPT, number), (RESUME, [number])], "other")
        writes = (await alike(stored, savers))[0].pending_writes
    expected = [
        ("other", RESUME, [1]),
        ("other", INTERRUPT, 1),
        ("task", ERROR, 1),
        ("task", "a", 0),
        ("task", "b", [1]),
    ]
    assert sorted(writes, key=expected.index) == expected


# Lists.

MARKS: list[Any] = ["text", "", "it's", "дом", 1, 0, -7, 2**40, 0.5, None, True, False, ["a", "b"], {"a": {"b": 1}}]
"""What metadata is asked for: among these, to contain one is to equal it."""


@WRITERS
async def test_lists_are_filtered_alike(writer: str, conninfo: str) -> None:
    """By any value in metadata, by id, by namespace and by number, both list the same, in the same order."""
    async with both(conninfo, writer) as savers:
        for number, mark in enumerate(MARKS):
            metadata = {"mark": [mark] if isinstance(mark, bool) else mark, "step": number, "odd": f"{number % 2}"}
            if number % 2:
                metadata["hard"] = -0.0  # on JSON; the rest of these metadata is found all the same
            await put(savers[writer], f"{number:02}", {"a": mark}, ns=f"{number % 3}", metadata=metadata)
        asked = [{"mark": [mark] if isinstance(mark, bool) else mark} for mark in MARKS]
        asked += [{"odd": "1"}, {"odd": "0", "step": 4}, {"odd": "1", "step": 4}, {"none": 1}, {}, None]
        wrong = {}
        for wanted in asked:
            for config, before, limit in _WINDOWS:
                found = {}
                for name, saver in savers.items():
                    found[name] = ids(await all_of(saver.alist(config, filter=wanted, before=before, limit=limit)))
                if found["ours"] != found["upstream"]:
                    wrong[f"{wanted} {config} {before} {limit}"] = found
    assert not wrong


_IN = {"configurable": {"thread_id": "t"}}
_WINDOWS: list[Any] = [
    (_IN, None, None),
    (None, None, None),
    (_IN, None, 3),
    (_IN, None, 0),
    (_IN, at("t", "07"), None),
    (at("t", ns="1"), None, None),
    (at("t", "04", ns="1"), None, None),
    (at("t", "04", ns="2"), None, None),
    (at("u"), None, None),
]
"""What else is asked: where, before what, how many."""
