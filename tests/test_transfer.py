"""Conversations that are copied from one saver to another."""

import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send, interrupt
from pydantic import BaseModel

from async_saver import (
    AsyncSaver,
    CopyProgress,
    CopySummary,
    FastJsonPlusSerializer,
    InvalidTypeError,
    InvalidValueError,
    ThreadExistsError,
    TransferError,
    acopy_saver,
)
from tests.build import all_of, checkpoint, listed, put
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
    nested,
    outlines,
    says,
    turn,
)
from tests.postgres import create_database, direct, needed

on_asyncio = pytest.mark.asyncio
on_any_loop = pytest.mark.anyio

# Every saver.


class Savers(AsyncExitStack):
    """Makes savers of all kinds, each with a place of its own, and closes them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    async def __call__(self, kind: str) -> Saver:
        """Return an empty saver."""
        made: Any = AsyncSaver() if kind == "memory" else InMemorySaver()
        path = self._folder / f"{uuid4()}.db"
        if kind == "sqlite":
            made = await self.enter_async_context(AsyncSaver.from_conn_string(f"sqlite:///{path}"))
        elif kind == "AsyncSqliteSaver":
            made = await self.enter_async_context(AsyncSqliteSaver.from_conn_string(str(path)))
        elif kind == "postgres":
            url = self.enter_context(_database(kind))
            made = await self.enter_async_context(AsyncSaver.from_conn_string(url, pool_size=2))
        elif kind == "AsyncPostgresSaver":
            url = self.enter_context(_database(kind))
            made = await self.enter_async_context(AsyncPostgresSaver.from_conn_string(direct(url)))
            await made.setup()
        return made  # type: ignore[no-any-return]


_free: dict[str, list[str]] = {}


@contextmanager
def _database(kind: str) -> Iterator[str]:
    """A database that is empty, but for the tables of this kind of saver: to make one takes longer than most tests."""
    needed()
    free = _free.setdefault(kind, [])
    url = free.pop() if free else create_database()
    yield url
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '%migrations'"
    with psycopg.connect(url, autocommit=True) as admin:
        for (table,) in admin.execute(tables).fetchall():
            admin.execute(f"DELETE FROM {table}")
    free.append(url)


KINDS = ("memory", "InMemorySaver", "sqlite", "AsyncSqliteSaver", "postgres", "AsyncPostgresSaver")
IN_PROCESS = KINDS[:4]
SOURCES = pytest.mark.parametrize("origin", KINDS)


@pytest.fixture
def savers(tmp_path: Path) -> Savers:
    """To be entered by the test, in its task."""
    return Savers(tmp_path)


def kinds() -> Sequence[str]:
    """The kinds of savers that can be had here."""
    try:
        needed()
    except pytest.skip.Exception:
        return IN_PROCESS
    return KINDS


# A history that real graphs have made.


def _model(state: MessagesState) -> dict[str, Any]:
    number = len(state["messages"])
    if isinstance(state["messages"][-1], ToolMessage):
        return {"messages": [AIMessage("done", id=f"ai-{number}")]}
    calls = [{"name": name, "args": {"to": name}, "id": f"{name}-{number}"} for name in ("weather", "book", "news")]
    return {"messages": [AIMessage("", tool_calls=calls, id=f"ai-{number}")]}


def _tools(call: Any) -> dict[str, Any]:
    said = interrupt("May I book?") if call["name"] == "book" else call["name"]
    return {"messages": [ToolMessage(said, tool_call_id=call["id"], id=call["id"])]}


def _next(state: MessagesState) -> Any:
    last = state["messages"][-1]
    return [Send("tools", call) for call in last.tool_calls] if isinstance(last, AIMessage) and last.tool_calls else END


def agent() -> StateGraph[Any]:
    """An agent whose model calls three tools at once, of which one asks the user."""
    builder: StateGraph[Any] = StateGraph(MessagesState)
    builder.add_node("model", _model)
    builder.add_node("tools", _tools)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", _next)
    builder.add_edge("tools", "model")
    return builder


def halfway(**options: Any) -> StateGraph[Any]:
    """Nodes that run at once, of which the first asks, and a state that depends on the order of what they write."""
    return at_once(a=asks("a"), b=says("b"), c=says("c"), **options)


def programs(saver: Saver) -> dict[str, Any]:
    """Every graph, by the thread_id that its conversation has."""
    inner = in_turn(one=says("one"), two=asks("two")).compile(checkpointer=True)
    return {
        "agent": agent().compile(checkpointer=saver),
        "nested": nested(inner).compile(checkpointer=saver),
        "forked": in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver),
        "delta": delta(3).compile(checkpointer=saver),
        "halfway": halfway(state=delta_state(1000)).compile(checkpointer=saver),
        "ended": halfway(state=delta_state(2)).compile(checkpointer=saver),
    }


async def make_history(saver: Saver) -> None:
    """Run all graphs: some come to their end, others wait for the user.

    Not with the durability "async": there AsyncSqliteSaver writes what the next step has changed already.
    """
    graphs = programs(saver)
    for word in ("hello", "and again"):
        await graphs["agent"].ainvoke({"messages": [HumanMessage(word, id=word)]}, config("agent"))
        if word == "hello":
            await resume(graphs["agent"], "agent")
    await turn(graphs["nested"], "in", "nested")
    await resume(graphs["nested"], "nested")
    await turn(graphs["nested"], "again", "nested")
    await turn(graphs["forked"], "in", "forked")
    middle = [one async for one in graphs["forked"].aget_state_history(config("forked")) if one.next == ("b",)]
    await graphs["forked"].ainvoke(None, await graphs["forked"].aupdate_state(middle[0].config, {"log": ["changed"]}))
    for word in "xyz":
        await turn(graphs["delta"], word, "delta", durability="sync")
    await graphs["delta"].aupdate_state(config("delta"), {"log": ["changed"]})
    await turn(graphs["halfway"], "in", "halfway", "run-1", durability="sync")
    await turn(graphs["ended"], "in", "ended", "run-2", durability="exit")
    await resume(graphs["ended"], "ended")


async def resume(graph: Any, thread_id: str) -> None:
    """Answer what the graph has asked."""
    state = await graph.aget_state(config(thread_id), subgraphs=True)
    await graph.ainvoke(answers(state), config(thread_id), durability="sync")


async def go_on(saver: Saver) -> dict[str, Any]:
    """Answer all that is asked, run every graph once more, and return what the histories say then."""
    graphs = programs(saver)
    for thread_id in ("agent", "nested", "halfway"):
        await resume(graphs[thread_id], thread_id)
    for thread_id in ("forked", "delta", "ended"):
        await turn(graphs[thread_id], "more", thread_id, durability="sync")
    return {thread_id: await outlines(graph, config(thread_id)) for thread_id, graph in graphs.items()}


async def states(saver: Saver) -> dict[str, Any]:
    """What the graphs show of every checkpoint, in all namespaces, and who its parent is."""
    found: dict[Any, Any] = {}
    for thread_id, graph in programs(saver).items():
        async for one in graph.aget_state_history(config(thread_id)):
            parent = one.parent_config and one.parent_config["configurable"]["checkpoint_id"]
            found[thread_id, one.config["configurable"]["checkpoint_id"]] = one.values, one.next, one.tasks, parent
    return found


async def pending(saver: Saver) -> dict[Any, Any]:
    """Every checkpoint of every namespace, with its pending writes and its metadata."""
    found = {}
    async for one in saver.alist(None):
        where = one.config["configurable"]
        key = where["thread_id"], where["checkpoint_ns"], where["checkpoint_id"]
        found[key] = one.pending_writes, json.dumps(one.metadata, sort_keys=True), one.checkpoint["ts"]
    return found


@SOURCES
@on_asyncio
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph's async runs give nodes no context before Python 3.11"
)
async def test_what_agents_have_made_goes_on_in_every_other_saver(origin: str, savers: Savers) -> None:
    """From each kind of saver to each: the graphs show the same, and then do the same."""
    async with savers:
        source = await savers(origin)
        await make_history(source)
        made, written = await states(source), await pending(source)
        went_on = {}
        for other in kinds():
            target = await savers(other)
            told: list[CopyProgress] = []
            copied = await acopy_saver(source, target, on_progress=told.append)
            assert copied == CopySummary(6, len(written), 0, sum(len(writes) for writes, *_ in written.values())), other
            assert {one.thread_id for one in told} == programs(source).keys()
            assert (told[-1].of, told[-1].done) == (6, copied)
            assert await states(target) == made, other
            assert await pending(target) == written, other
            assert await acopy_saver(source, target) == CopySummary(6, 0, len(written), 0), other
            went_on[other] = await go_on(target)
        assert await states(source) == made
        expected = await go_on(source)
        for other, outcome in went_on.items():
            assert outcome == expected, other
        assert expected["halfway"][0]["values"]["log"] == ["in", "a:A", "b1", "c1", "end4"]


@on_asyncio
async def test_what_a_saver_wrote_too_late_arrives_as_it_was(savers: Savers) -> None:
    """AsyncSqliteSaver may write a value when the next step has changed it: one version has two, and one counts."""
    async with savers:
        source = await savers("AsyncSqliteSaver")
        graph = delta(3).compile(checkpointer=source)
        for word in "ab":
            await turn(graph, word)
        for other in IN_PROCESS:
            target = await savers(other)
            await acopy_saver(source, target)
            twin = delta(3).compile(checkpointer=target)
            assert [one["values"] for one in await outlines(twin)] == [one["values"] for one in await outlines(graph)]


# What is put by hand.


async def shown_by(saver: Saver, thread_id: str | None = None) -> list[Any]:
    """Everything that a saver shows."""
    found = await all_of(saver.alist(None if thread_id is None else config(thread_id)))
    return sorted(([*one[1:], one.config["configurable"]] for one in found), key=repr)


async def conversation(saver: Saver, thread_id: str = "t", number: int = 5) -> None:
    """Two namespaces of checkpoints, all of whose values change, with their writes."""
    for ns in ("", "inner:1|deep:2"):
        for one in range(number):
            parent = f"{one - 1}" if one else None
            stored = await put(
                saver, f"{one}", {"x": [thread_id, ns, one], "y": 1}, thread_id=thread_id, ns=ns, parent=parent
            )
            await saver.aput_writes(stored, [("x", one), (INTERRUPT, "?")], "task-2", "path-1")
            await saver.aput_writes(stored, [("y", one), ("x", -one)], "task-1", "path-2")


@on_any_loop
async def test_all_of_a_conversation_is_copied(saver: AsyncSaver) -> None:
    """Namespaces of any name, parents, metadata and writes with their paths and runs; each value once."""
    source = AsyncSaver()
    await conversation(source)
    await put(source, "9", {"x": ["same"]}, parent="4", metadata={"run_id": "r", "step": 1, "score": math.pi})
    later = checkpoint(
        "99", {"x": ["same"], "none": None}, "9", channel_versions={"x": "9", "none": "99", "gone": "99"}
    )
    await source.aput(at(checkpoint_id="9"), later, {"step": 2}, {"none": "99", "gone": "99"})
    await source.aput_writes(at(checkpoint_id="99", run_id="r"), [("x", 1)], "task", "path")
    assert await acopy_saver(source, saver) == CopySummary(1, 12, 0, 41)
    assert await shown_by(saver) == await shown_by(source)
    assert [*map(repr, await all_of(saver.athread_ids()))] == ["'t'"]
    for one in (source, saver):
        await one.adelete_for_runs(["r"])
    assert await shown_by(saver) == await shown_by(source)
    assert len(await all_of(saver.alist(None))) == 11


@on_any_loop
async def test_paths_and_versions_are_what_they_were() -> None:
    """What a saver in memory shows beside its tuples is the same: no path is made up, no value is there twice."""
    source, theirs, target = AsyncSaver(), InMemorySaver(), AsyncSaver()
    await conversation(source)
    await acopy_saver(source, theirs)
    assert theirs.writes == {key: dict(value) for key, value in source.writes.items()}
    await acopy_saver(theirs, target)
    assert {key: dict(value) for key, value in target.writes.items()} == theirs.writes
    assert dict(target.blobs.items()) == theirs.blobs == dict(source.blobs.items())


@on_any_loop
async def test_the_conversation_last_written_to_is_so_in_the_target() -> None:
    """But for those that are copied at once: so limits on the number of conversations take much the same ones."""
    source, target = AsyncSaver(), AsyncSaver()
    for number in range(100):
        await put(source, "1", thread_id=f"{number}")
    await acopy_saver(source, target)
    order = [int(thread_id) for thread_id in await all_of(target.athread_ids())]
    assert max(abs(99 - number - place) for place, number in enumerate(order)) <= 2 * 16


@on_any_loop
async def test_some_conversations(saver: AsyncSaver) -> None:
    """Only those that are named; unknown ones are ignored, and what else the target has is left alone."""
    source = AsyncSaver()
    for name in "abc":
        await conversation(source, name, 1)
    await conversation(saver, "other", 2)
    before = await shown_by(saver)
    done = []

    async def tell(progress: CopyProgress) -> None:
        await anyio.lowlevel.checkpoint()
        done.append(progress)

    chosen = ["c", "unknown", "a", "c"]
    assert await acopy_saver(source, saver, thread_ids=chosen, on_progress=tell) == CopySummary(2, 4, 0, 16)
    assert sorted(one.thread_id for one in done) == ["a", "c"]
    assert {one.of for one in done} == {3}
    assert await shown_by(saver, "other") == before
    assert sorted(await all_of(saver.athread_ids())) == ["a", "c", "other"]
    assert await acopy_saver(AsyncSaver(), saver) == CopySummary()


# Whatever lists and puts.


class Unordered(InMemorySaver):
    """A saver that shows pending writes in an order of its own."""

    def __init__(self, order: Sequence[int] | None = None) -> None:
        super().__init__()
        self._order = order

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = super().get_tuple(config)
        if found is None or self._order is None:
            return found
        return found._replace(pending_writes=[(found.pending_writes or [])[number] for number in self._order])

    async def alist(self, *args: Any, **kwargs: Any) -> AsyncIterator[CheckpointTuple]:
        async for found in super().alist(*args, **kwargs):
            yield found


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 1, 4, 0, 3], [4, 5, 0, 2, 3, 1]])
@on_any_loop
async def test_writes_keep_the_order_in_which_they_were_listed(saver: AsyncSaver, order: list[int]) -> None:
    """Where paths are not known, others are made up; a task's special writes are among them."""
    source = Unordered(order)
    stored = await put(source, "1")
    await source.aput_writes(stored, [("x", 1), ("y", 2), ("x", 3)], "a")
    await source.aput_writes(stored, [(ERROR, "oh")], "a")
    await source.aput_writes(stored, [("x", 4)], "b", "path")
    await source.aput_writes(stored, [(RESUME, 5)], "b", "path")
    found = await source.aget_tuple(stored)
    await acopy_saver(source, saver)
    there = await saver.aget_tuple(stored)
    assert found is not None
    assert there is not None
    assert there.pending_writes == found.pending_writes
    assert await acopy_saver(source, saver) == CopySummary(1, 0, 1, 0)


class Mine(InMemorySaver):
    """A saver that shows not all that it holds."""

    async def alist(self, *args: Any, **kwargs: Any) -> AsyncIterator[CheckpointTuple]:
        async for found in super().alist(*args, **kwargs):
            if found.metadata.get("owner") == "me":
                yield found


@on_any_loop
async def test_what_a_saver_does_not_show_is_not_copied() -> None:
    """A subclass of one of LangGraph's savers is asked by its own methods only."""
    source, target = Mine(), AsyncSaver()
    for thread_id, owner in (("a", "me"), ("b", "you")):
        await put(source, "1", thread_id=thread_id, metadata={"owner": "me", "step": 1} if owner == "me" else None)
    await put(source, "2", thread_id="a", parent="1")
    assert await acopy_saver(source, target) == CopySummary(1, 1, 0, 0)
    assert await all_of(target.athread_ids()) == ["a"]


class Large:
    """A value that counts how many of it there are."""

    alive = 0
    most = 0

    def __init__(self) -> None:
        Large.alive += 1
        Large.most = max(Large.most, Large.alive)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Large)

    __hash__ = None  # type: ignore[assignment]

    def __del__(self) -> None:
        Large.alive -= 1


class Made(BaseCheckpointSaver[str]):
    """A saver that makes what it shows when it is asked, so that whoever holds it is found out."""

    def __init__(self, threads: int, checkpoints: int) -> None:
        super().__init__()
        self.there = {(f"{t}", f"{c:06}") for t in range(threads) for c in range(checkpoints)}

    def _made(self, thread_id: str, checkpoint_id: str) -> CheckpointTuple:
        made = checkpoint(checkpoint_id, {"x": Large()}, checkpoint_id)
        return CheckpointTuple(at(thread_id, checkpoint_id), made, {"step": 1}, None, [("task", "x", Large())])

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        place = config["configurable"]["thread_id"], config["configurable"]["checkpoint_id"]
        return self._made(*place) if place in self.there else None

    async def alist(self, config: RunnableConfig | None, **_: Any) -> AsyncIterator[CheckpointTuple]:
        for place in sorted(self.there, reverse=True):
            if config is None or place[0] == config["configurable"]["thread_id"]:
                yield self._made(*place)

    async def aput(self, config: RunnableConfig, checkpoint: Any, *_: Any) -> RunnableConfig:
        await anyio.lowlevel.checkpoint()
        self.there.add((config["configurable"]["thread_id"], checkpoint["id"]))
        return config

    async def aput_writes(self, *_: Any) -> None:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(("threads", "checkpoints"), [(400, 2), (2, 400)])
@on_any_loop
async def test_little_is_held_at_a_time(threads: int, checkpoints: int) -> None:
    """Of many conversations, or long ones, no more than two checkpoints of each that is under way."""
    source, target = Made(threads, checkpoints), Made(0, 0)
    Large.most = 0
    copied = await acopy_saver(source, target)
    assert (copied.checkpoints, target.there) == (800, source.there)
    assert Large.most <= 4 * 16 + 4
    assert Large.alive == 0


class Counting(JsonPlusSerializer):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.read += 1
        return super().loads_typed(data)


@SOURCES
@on_asyncio
async def test_values_are_read_to_be_copied_and_to_be_compared(origin: str, savers: Savers) -> None:
    """But not to find out which checkpoints there are: what these savers list, some hold all at once."""
    async with savers:
        source, target = await savers(origin), AsyncSaver()
        for thread_id in "ab":
            for number in range(20):
                await put(source, f"{number:02}", {"x": [thread_id]}, ns="c:d|e", thread_id=thread_id)
        source.serde = Counting()
        assert await acopy_saver(source, target) == CopySummary(2, 40, 0, 0)
        read_once = {"AsyncSqliteSaver": 1, "AsyncPostgresSaver": 1, "postgres": 1}.get(origin, 3)
        assert source.serde.read == read_once * 2 * (20 + 20 + 1)


# Again, and what is there already.


class Counted(InMemorySaver):
    """A target in which something happens at one of the calls that write."""

    def __init__(self, call: int, happens: Callable[[], object]) -> None:
        super().__init__()
        self._left, self._happens = call, happens

    async def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._happens()
            await anyio.lowlevel.checkpoint()

    async def aput(self, *args: Any) -> RunnableConfig:
        await self._count()
        stored = await super().aput(*args)
        await self._count()
        return stored

    async def aput_writes(self, *args: Any) -> None:
        await self._count()
        await super().aput_writes(*args)


@pytest.mark.parametrize("call", range(1, 60, 4))
@on_any_loop
async def test_a_copy_that_was_cancelled_goes_on(call: int) -> None:
    """At any call: afterwards the result is right, and what was there already is skipped."""
    source = AsyncSaver()
    for name in "abc":
        await conversation(source, name, 2)
    with anyio.CancelScope() as scope:
        target = Counted(call, scope.cancel)
        await acopy_saver(source, target)
    assert scope.cancelled_caught
    left = len(await all_of(target.alist(None)))
    copied = await acopy_saver(source, target)
    assert (copied.checkpoints, copied.skipped) == (12 - left, left)
    assert await shown_by(target) == await shown_by(source)
    assert target.writes == {key: dict(value) for key, value in source.writes.items()}


@on_any_loop
async def test_a_conversation_that_went_on_is_brought_up_to_date(saver: AsyncSaver) -> None:
    """New checkpoints are copied, and new writes of the one that was the last."""
    source = AsyncSaver()
    await conversation(source)
    await acopy_saver(source, saver)
    await source.aput_writes(at(checkpoint_id="4"), [(RESUME, "yes")], "task-2", "path-1")
    await source.aput_writes(at(checkpoint_id="4"), [("z", 1)], "task-3", "path-0")
    await put(source, "5", {"x": ["new"]}, parent="4")
    assert await acopy_saver(source, saver) == CopySummary(1, 2, 9, 6)
    assert await shown_by(saver) == await shown_by(source)


async def _another_value(saver: Saver) -> None:
    await put(saver, "1", {"x": ["secret"], "y": 1}, parent="0")


async def _another_metadata(saver: Saver) -> None:
    found = await saver.aget_tuple(at(checkpoint_id="1"))
    assert found is not None
    await saver.aput(at(checkpoint_id="0"), found.checkpoint, {"step": 7}, {})


async def _another_parent(saver: Saver) -> None:
    found = await saver.aget_tuple(at(checkpoint_id="2"))
    assert found is not None
    await saver.aput(at(checkpoint_id="0"), found.checkpoint, found.metadata, {})


async def _one_write_more(saver: Saver) -> None:
    await saver.aput_writes(at(checkpoint_id="1"), [("x", "secret")], "task-0")


async def _one_checkpoint_more(saver: Saver) -> None:
    await put(saver, "9", {"x": ["secret"]}, parent="4")


OTHERS = [_another_value, _another_metadata, _another_parent, _one_write_more, _one_checkpoint_more]


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: change.__name__)
@on_any_loop
async def test_another_conversation_of_the_name_is_never_mixed(saver: AsyncSaver, change: Any) -> None:
    """The error names it and what to do, nothing of what it holds; nothing is put."""
    source = AsyncSaver()
    await conversation(source)
    await acopy_saver(source, saver)
    await put(source, "5", {"x": ["new"]}, parent="4")
    await change(saver)
    before = await shown_by(saver)
    with pytest.raises(ThreadExistsError, match=r"'t'.*adelete_thread") as caught:
        await acopy_saver(source, saver)
    assert "secret" not in str(caught.value)
    assert await shown_by(saver) == before
    await saver.adelete_thread("t")
    await acopy_saver(source, saver)
    assert await shown_by(saver) == await shown_by(source)


# What is not the same when it is there.


class Forgetful(InMemorySaver):
    """A target that keeps something else than what it is given."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self._wrong = wrong

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, versions: Any) -> RunnableConfig:
        if checkpoint["id"] == "3" and config["configurable"]["checkpoint_ns"] == "":
            if self._wrong == "metadata":
                metadata = {**metadata, "step": 2}
            if self._wrong == "parent":
                config = at(checkpoint_id="1")
            if self._wrong == "channel 'y'":
                checkpoint = {**checkpoint, "channel_values": {**checkpoint["channel_values"], "y": 2}}
            if self._wrong == "channel 'x'":
                versions = {}
            if self._wrong == "'ts'":
                checkpoint = {**checkpoint, "ts": "2026-01-01T00:00:00"}
            if self._wrong == "the checkpoint":
                return config  # type: ignore[no-any-return]
        return await super().aput(config, checkpoint, metadata, versions)

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        if config["configurable"]["checkpoint_id"] == "3" and self._wrong == "pending writes":
            task_path = ""
        if config["configurable"]["checkpoint_id"] == "3" and self._wrong == "values of pending writes":
            writes = [(channel, "other") for channel, _ in writes]
        await super().aput_writes(config, writes, task_id, task_path)


class Torn(InMemorySaver):
    """A target that shows everything, and rebuilds nothing."""

    async def aget_delta_channel_history(self, *, config: Any, channels: Any) -> Any:
        return {channel: {"writes": []} for channel in channels}


@on_any_loop
async def test_what_cannot_be_rebuilt_is_told() -> None:
    """It is not in any tuple, so it is asked for."""
    source = AsyncSaver()
    await _rest_on_one(source)
    for deleted, channel in ((None, "d"), ("2", "e")):
        if deleted:
            await source.adelete_for_runs([deleted])
        with pytest.raises(TransferError, match=rf"'t'.*channel '{channel}' is rebuilt from"):
            await acopy_saver(source, Torn())


WRONG = ["metadata", "parent", "channel 'x'", "channel 'y'", "'ts'", "the checkpoint", "pending writes"]


@pytest.mark.parametrize("wrong", [*WRONG, "values of pending writes"])
@on_any_loop
async def test_what_did_not_arrive_is_told(wrong: str) -> None:
    """The conversation, the namespace, the checkpoint, what differs of it; and no values."""
    source = AsyncSaver()
    await conversation(source)
    with pytest.raises(TransferError) as caught:
        await acopy_saver(source, Forgetful(wrong))
    for part in ("thread_id 't'", "checkpoint '3'", "namespace ''", wrong.removeprefix("values of ")):
        assert part in str(caught.value)
    assert "deep" not in str(caught.value)
    assert "other" not in str(caught.value)


class Tuples(InMemorySaver):
    """A saver that has tuples in metadata, as no serde of LangGraph's reads them."""

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = super().get_tuple(config)
        counters: Any = {"counters_since_delta_snapshot": {"x": (1, 2)}}
        return None if found is None else found._replace(metadata={**counters, **found.metadata})


class Point(BaseModel):
    """A value that is equal to nothing."""

    x: float

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False


@on_asyncio
async def test_values_that_equal_nothing_are_compared_as_they_are_written(savers: Savers) -> None:
    """NaN, tuples in metadata, sets, arrays, objects that say they differ."""
    numpy = pytest.importorskip("numpy")
    async with savers:
        source = Tuples()
        values = {
            "nan": [math.nan],
            "set": {*"abcdef"},
            "array": [numpy.arange(3)],
            "point": Point(x=math.nan),
            "t": (1,),
        }
        stored = await put(source, "1", values)
        await source.aput_writes(stored, [("point", Point(x=math.nan)), ("array", numpy.arange(3))], "task")
        for other in kinds():
            target = await savers(other)
            for _ in range(2):
                await acopy_saver(source, target)
            found = await target.aget_tuple(config())
            assert found is not None
            assert found.checkpoint["channel_values"]["point"].__class__ is Point


class Cipher:
    """Writes nothing twice alike, and hides nothing."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "none", uuid4().bytes + plaintext

    def decrypt(self, _: str, ciphertext: bytes) -> bytes:
        return ciphertext[16:]


@on_any_loop
async def test_encrypted_values_are_compared_as_they_are_before() -> None:
    """In either direction."""
    plain, encrypted = AsyncSaver(), AsyncSaver(serde=EncryptedSerializer(Cipher()))
    await put(plain, "1", {"point": [Point(x=math.nan)]})
    await acopy_saver(plain, encrypted)
    await acopy_saver(encrypted, AsyncSaver())
    assert encrypted.storage["t"][""]["1"][0][0] == "msgpack+none"


@on_asyncio
async def test_what_postgres_savers_leave_out_of_metadata_is_not_missed(savers: Savers) -> None:
    """LangGraph once had all writes in there."""
    async with savers:
        for other in kinds():
            source, target = InMemorySaver(), await savers(other)
            await put(source, "1", metadata={"step": 1, "writes": {"node": "x"}})
            for _ in range(2):
                await acopy_saver(source, target)
            found = await target.aget_tuple(config())
            assert found is not None
            assert found.metadata.get("writes") == (None if other == "AsyncPostgresSaver" else {"node": "x"})


# What is out of sight.


async def _pruned(saver: AsyncSaver) -> None:
    await saver.aprune(["t"])


async def _without_a_run(saver: AsyncSaver) -> None:
    await saver.adelete_for_runs(["run-1"])


@pytest.mark.parametrize("change", [_pruned, _without_a_run], ids=["pruned", "without a run"])
@pytest.mark.parametrize("frequency", [3, 1000])
@on_asyncio
async def test_what_delta_channels_rest_on_comes_along(savers: Savers, frequency: int, change: Any) -> None:
    """Where ancestors are out of sight, the states are the same, and stay out of sight if the target can do that."""
    async with savers:
        pairs = [("memory", other) for other in kinds()]
        if change is _without_a_run and frequency == 1000:
            pairs += [(other, "InMemorySaver") for other in kinds() if other in ("sqlite", "postgres")]
        for origin, other in pairs:
            source: Any = await savers(origin)
            graph = delta(frequency).compile(checkpointer=source)
            for run in ("run-0", "run-1", "run-2"):
                await turn(graph, run, "t", run, durability="sync")
            await change(source)
            made = await by_id(graph)
            target = await savers(other)
            twin = delta(frequency).compile(checkpointer=target)
            copied = await acopy_saver(source, target)
            assert copied.checkpoints == len(made)
            there = await by_id(twin)
            assert {key: there[key] for key in made} == made
            assert len(there) - len(made) <= (not isinstance(target, AsyncSaver))
            assert await acopy_saver(source, target) == CopySummary(1, 0, len(made), 0)
            assert (await by_id(twin)).keys() == there.keys()
            for one in (graph, twin):
                await turn(one, "more", durability="sync")
            assert (await twin.aget_state(config())).values == (await graph.aget_state(config())).values


async def _rest_on_one(saver: AsyncSaver) -> None:
    """Checkpoint 1 goes out of sight, from which 2 and 3 were made: one has to rebuild d, the other one e."""
    for number, parent, channels in (("0", None, "de"), ("1", "0", "de"), ("2", "1", "d"), ("3", "1", "e")):
        made = checkpoint(number, {"x": number}, channel_versions=dict.fromkeys(["x", *channels], number))
        metadata: Any = {"run_id": number, "counters_since_delta_snapshot": dict.fromkeys(channels, (1, 1))}
        await saver.aput(at(checkpoint_id=parent), made, metadata, made["channel_versions"])
        await saver.aput_writes(at(checkpoint_id=number), [("d", f"d{number}"), ("e", f"e{number}")], "task")
    await saver.adelete_for_runs(["0", "1"])
    assert await listed(saver, config()) == ["3", "2"]


async def _rebuilt(saver: Saver) -> list[Any]:
    histories = [("2", await saver.aget_delta_channel_history(config=at(checkpoint_id="2"), channels=["d"]))]
    histories.append(("3", await saver.aget_delta_channel_history(config=at(checkpoint_id="3"), channels=["e"])))
    return histories


@on_any_loop
async def test_two_branches_may_rest_on_one_checkpoint_that_is_out_of_sight(saver: AsyncSaver) -> None:
    """It has what either of them needs, and is out of sight again."""
    source, theirs, again = AsyncSaver(), InMemorySaver(), AsyncSaver()
    await _rest_on_one(source)
    expected = await _rebuilt(source)
    assert [value for _, _, value in expected[1][1]["e"]["writes"]] == ["e0", "e1"]
    for target in (saver, theirs):
        for _ in range(2):
            await acopy_saver(source, target)
            assert await _rebuilt(target) == expected
    assert await listed(saver, config()) == ["3", "2"]
    assert await listed(theirs, config()) == ["3", "2", "1"]
    await acopy_saver(theirs, again)
    assert await _rebuilt(again) == expected


@on_any_loop
async def test_what_should_be_out_of_sight_is_so_in_the_end(saver: AsyncSaver) -> None:
    """Also where the copy was cancelled before it was, and the rest is there."""
    source = AsyncSaver()
    await _rest_on_one(source)
    with anyio.CancelScope() as scope, pytest.MonkeyPatch.context() as patch:
        calls = []

        async def cancelled(runs: Any) -> None:
            calls.append(runs)
            if len(calls) == 2:
                scope.cancel()
                await anyio.lowlevel.checkpoint()

        patch.setattr(saver, "adelete_for_runs", cancelled)
        await acopy_saver(source, saver)
    assert await listed(saver, config()) == ["3", "2", "1"]
    await acopy_saver(source, saver)
    assert await listed(saver, config()) == ["3", "2"]
    assert await _rebuilt(saver) == await _rebuilt(source)


# What cannot be done.


@on_any_loop
async def test_bad_input() -> None:
    """Each says what is wrong with it."""
    saver = AsyncSaver()
    with pytest.raises(InvalidTypeError, match="not of type str"):
        await acopy_saver("memory://", saver)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="not of type NoneType"):
        await acopy_saver(saver, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="acopy_thread"):
        await acopy_saver(saver, saver)
    with pytest.raises(InvalidTypeError, match="pass a list"):
        await acopy_saver(saver, AsyncSaver(), thread_ids="t")
    with pytest.raises(InvalidTypeError, match="None stands in thread_ids"):
        await acopy_saver(saver, AsyncSaver(), thread_ids=["t", None])
    with pytest.raises(InvalidTypeError, match="of type int; pass a list"):
        await acopy_saver(saver, AsyncSaver(), thread_ids=1)  # type: ignore[arg-type]


@on_asyncio
async def test_savers_without_async_methods_are_refused(tmp_path: Path) -> None:
    """On either side, with the name of what is wanted instead."""
    saver = AsyncSaver()
    await put(saver, "1")
    with SqliteSaver.from_conn_string(str(tmp_path / "file")) as sync:
        for pair in ((sync, saver), (saver, sync)):
            with pytest.raises(InvalidTypeError, match=r"a SqliteSaver has no async methods.*AsyncSqliteSaver"):
                await acopy_saver(*pair)
    other: Any = PostgresSaver(None)  # type: ignore[arg-type]
    for pair in ((other, saver), (saver, other)):
        with pytest.raises(InvalidTypeError, match=r"a PostgresSaver has no async methods.*AsyncPostgresSaver"):
            await acopy_saver(*pair)


@on_any_loop
async def test_a_failure_names_the_conversation() -> None:
    """Whatever the savers raise is the cause; what on_progress raises comes out as it is."""

    def fail() -> None:
        raise OSError("the disk is full")

    source = AsyncSaver()
    await conversation(source)
    with pytest.raises(TransferError, match=r"'t'.*OSError") as caught:
        await acopy_saver(source, Counted(3, fail))
    assert isinstance(caught.value.__cause__, OSError)
    for number in range(100):
        await put(source, "1", thread_id=f"{number}")
    target = AsyncSaver()
    with pytest.raises(OSError, match="disk"):
        await acopy_saver(source, target, on_progress=lambda _: fail())
    assert len(await all_of(target.athread_ids())) <= 2 * 16


@contextmanager
def module_with(name: str) -> Any:
    """A module that can be imported for now, with one class."""
    module: Any = ModuleType(name)
    exec("class Thing:\n def __init__(self, x=1): self.x = x", vars(module))
    module.Thing.__module__ = name
    module.Thing.model_dump = lambda self: {"x": self.x}
    sys.modules[name] = module
    try:
        yield module.Thing
    finally:
        del sys.modules[name]


@pytest.mark.parametrize("make", [AsyncSaver, InMemorySaver])
@on_any_loop
async def test_types_that_are_not_here_are_not_copied_as_something_else(make: Any) -> None:
    """A serde reads them as dicts, and both savers would say that this is what they hold."""
    source, target = make(), AsyncSaver()
    with module_with("app_of_this_test") as thing:
        await put(source, "1", {"x": [thing()]})
        await acopy_saver(source, AsyncSaver())
    with pytest.raises(TransferError, match=r"'t'.*app_of_this_test\.Thing"):
        await acopy_saver(source, target)
    assert await all_of(target.alist(None)) == []


@on_any_loop
async def test_types_that_a_serde_refuses_are_not_copied_as_something_else() -> None:
    """With an allowlist they are."""
    source = AsyncSaver(serde=FastJsonPlusSerializer(allowed_msgpack_modules=None))
    await put(source, "1", {"x": Point(x=1)})
    target = AsyncSaver()
    with pytest.raises(TransferError, match=r"'t'.*Point.*with_allowlist"):
        await acopy_saver(source, target)
    assert await all_of(target.alist(None)) == []
    await acopy_saver(source.with_allowlist([(Point.__module__, "Point")]), target)
    assert await listed(target, None) == ["1"]
