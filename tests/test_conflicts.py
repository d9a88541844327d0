"""`on_conflict`: runs that race on one conversation are told of it, and nothing else is taken for a race."""

import asyncio
import copy
import logging
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.errors import EmptyInputError
from langgraph.graph import START, StateGraph
from langgraph.types import Command, RetryPolicy, StateSnapshot, StateUpdate

from async_saver import AsyncSaver, AsyncSaverError, ConflictError, InvalidValueError, MemoryStore, Store
from async_saver.records import EMPTY, CheckpointRecord
from tests import build
from tests.graphs import Log, asks, at_once, config, delta, fan_out, in_turn, log, nested, running_total, says, turn
from tests.stores import STORES, NewStore

on_asyncio = pytest.mark.asyncio
in_context = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph's async runs give nodes no context before Python 3.11"
)

INPUT = {"log": ["in"]}


DURABILITIES = [None, "sync", "async", "exit"]
"""Every one, and what a caller gets who names none."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every durability; over a file the two that differ most."""
    names = [name for name in ("kind", "durability") if name in metafunc.fixturenames]
    if names == ["kind", "durability"]:
        both = [("memory", one) for one in DURABILITIES] + [("sqlite", one) for one in ("sync", "exit")]
        metafunc.parametrize(names, both, ids=[f"{kind}-{one}" for kind, one in both])
    elif names:
        metafunc.parametrize(names[0], [*STORES] if names == ["kind"] else DURABILITIES, ids=str)


@pytest.fixture
def new_store(kind: str, tmp_path: Path) -> Iterator[NewStore]:
    """What makes empty stores of that kind."""
    with NewStore(kind, tmp_path) as made:
        yield made


@pytest.fixture
def saver(store: Store) -> AsyncSaver:
    """A saver to which a false alarm is an error."""
    return AsyncSaver(store=store, on_conflict="raise")


def asking(saver: AsyncSaver) -> Any:
    """A graph that asks its user in the midst of a run."""
    return in_turn(a=says("a"), q=asks("q"), b=says("b")).compile(checkpointer=saver)


async def history(graph: Any, of: RunnableConfig | None = None) -> list[StateSnapshot]:
    """Every checkpoint of a conversation, newest first."""
    return [snapshot async for snapshot in graph.aget_state_history(of or config())]


async def to_the_end(graph: Any, durability: Any, of: RunnableConfig | None = None) -> None:
    """Answer until nothing is asked any more."""
    while (await graph.aget_state(of or config())).next:
        await graph.ainvoke(Command(resume="x"), of or config(), durability=durability)


async def two_turns(graph: Any, durability: Any) -> list[StateSnapshot]:
    """Run two turns, and return what there is to go back to."""
    for word in ("one", "two"):
        await turn(graph, word, durability=durability)
        await to_the_end(graph, durability)
    return await history(graph)


# What is no race, in the order in which it comes to mind.


@on_asyncio
@in_context
async def test_turns_and_answers(saver: AsyncSaver, durability: Any) -> None:
    """Turn after turn, with questions that are answered, or left for the next turn."""
    graph = asking(saver)
    await two_turns(graph, durability)
    await turn(graph, "left", durability=durability)
    await turn(graph, "three", durability=durability)
    await to_the_end(graph, durability)
    assert (await log(graph))[-4:] == ["three", "a11", "q:x", "b13"]


@on_asyncio
@in_context
async def test_questions_at_once(saver: AsyncSaver, durability: Any) -> None:
    """Parallel nodes that ask, and are answered one after the other."""
    graph = at_once(p=asks("p"), q=asks("q"), r=says("r")).compile(checkpointer=saver)
    await turn(graph, "in", durability=durability)
    for one in [one for task in (await graph.aget_state(config())).tasks for one in task.interrupts]:
        await graph.ainvoke(Command(resume={one.id: "A"}), config(), durability=durability)
    assert sorted(await log(graph)) == ["end4", "in", "p:A", "q:A", "r1"]


@on_asyncio
async def test_breakpoints(saver: AsyncSaver, durability: Any) -> None:
    """Runs that stop before and after a node, and go on."""
    builder = in_turn(a=says("a"), b=says("b"), c=says("c"))
    graph = builder.compile(checkpointer=saver, interrupt_before=["b"], interrupt_after=["b"])
    for _ in range(2):
        await turn(graph, "in", durability=durability)
        while (await graph.aget_state(config())).next:
            await graph.ainvoke(None, config(), durability=durability)
    assert len(await log(graph)) == 8


@on_asyncio
async def test_sends(saver: AsyncSaver, durability: Any) -> None:
    """Many tasks of one run."""
    graph = fan_out(5).compile(checkpointer=saver)
    for _ in range(2):
        await turn(graph, "in", durability=durability)
    assert len(await log(graph)) == 12


@on_asyncio
@in_context
@pytest.mark.parametrize("kept", [None, True], ids=["inherited", "persistent"])
async def test_subgraphs(saver: AsyncSaver, durability: Any, kept: Any) -> None:
    """Nested graphs that ask, resumed, and run again from every checkpoint."""
    inner = in_turn(i=says("i"), q=asks("q"), j=says("j")).compile(checkpointer=kept)
    graph = nested(inner).compile(checkpointer=saver)
    for snapshot in (await two_turns(graph, durability))[1:]:
        for how in (None, Command(resume="y")):
            await graph.ainvoke(how, snapshot.config, durability=durability)
            await to_the_end(graph, durability)
    assert (await graph.aget_state(config())).next == ()


@on_asyncio
async def test_subgraphs_at_once(saver: AsyncSaver, durability: Any) -> None:
    """Several nested graphs in one node, and in parallel nodes, run again from every checkpoint."""
    inner, kept = (in_turn(i=says("i"), j=says("j")).compile(checkpointer=one) for one in (None, True))

    async def several(state: Any, config: RunnableConfig) -> dict[str, Any]:
        await inner.ainvoke(INPUT, config)
        await asyncio.gather(inner.ainvoke(INPUT, config), inner.ainvoke(INPUT, config))
        return {"log": ["several"]}

    async def persistent(state: Any, config: RunnableConfig) -> dict[str, Any]:
        await kept.ainvoke(INPUT, config)
        return {"log": ["persistent"]}

    graph = at_once(several=several, persistent=persistent, inner=inner).compile(checkpointer=saver)
    for snapshot in (await two_turns(graph, durability))[1:]:
        await graph.ainvoke(None, snapshot.config, durability=durability)
    assert (await graph.aget_state(config())).next == ()


@on_asyncio
@in_context
async def test_another_conversation_in_a_node(saver: AsyncSaver, durability: Any) -> None:
    """A node that runs, resumes, forks and updates another conversation, itself run again from every checkpoint."""
    inner = asking(saver)

    async def calls(state: Any) -> dict[str, Any]:
        for how in (INPUT, Command(resume="x"), INPUT):
            await inner.ainvoke(how, config("child"), durability=durability)
        for snapshot in (await history(inner, config("child")))[1:3]:
            for how in (None, INPUT, Command(resume="x")):
                await inner.ainvoke(how, snapshot.config, durability=durability)
            await inner.aupdate_state(snapshot.config, INPUT, as_node="__input__")
        return {"log": ["called"]}

    graph = in_turn(calls=calls, b=says("b")).compile(checkpointer=saver)
    await turn(graph, "in", durability=durability)
    for snapshot in (await history(graph))[1:]:
        for how in (None, INPUT):
            await graph.ainvoke(how, snapshot.config, durability=durability)
    assert len(await history(inner, config("child"))) > 8


@on_asyncio
@in_context
async def test_functional_programs(saver: AsyncSaver, durability: Any) -> None:
    """They save, ask, and are run again from every checkpoint, with the old input and a new one."""
    program = running_total(saver, [])
    for how in (1, 2, -3, Command(resume="yes")):
        await program.ainvoke(how, config(), durability=durability)
    for snapshot in await history(program):
        for how in (None, 4):
            await program.ainvoke(how, snapshot.config, durability=durability)


@on_asyncio
@in_context
async def test_streams(saver: AsyncSaver, durability: Any) -> None:
    """Runs that are streamed, also those that are left half read and closed."""
    graph = asking(saver)
    for mode in ("values", "updates", "debug"):
        async for _ in graph.astream(INPUT, config(), stream_mode=mode, durability=durability):
            pass
    async for _ in graph.astream_events(Command(resume="x"), config(), version="v2", durability=durability):
        pass
    half_read = graph.astream(INPUT, config(), durability=durability)
    await anext(half_read)
    await half_read.aclose()
    await graph.ainvoke(None, config(), durability=durability)
    await turn(graph, "in", durability=durability)
    await to_the_end(graph, durability)


def ways_back(snapshot: StateSnapshot) -> list[Any]:
    """What a graph may be run with at a checkpoint."""
    return [
        None,
        INPUT,
        Command(resume="r"),
        Command(resume={"0" * 32: "r"}),
        *(Command(resume={one.id: "r"}) for one in snapshot.interrupts),
        Command(goto="b"),
        Command(update=INPUT),
        Command(resume="r", update=INPUT),
        Command(resume="r", goto="b"),
    ]


@on_asyncio
@in_context
async def test_time_travel(saver: AsyncSaver, durability: Any) -> None:
    """A run from every checkpoint of a history, in every way, and what follows it."""
    graph = asking(saver)
    for snapshot in await two_turns(graph, durability):
        for how in ways_back(snapshot):
            await graph.ainvoke(how, snapshot.config, durability=durability)
            await to_the_end(graph, durability)
    await turn(graph, "after", durability=durability)


@on_asyncio
@in_context
async def test_time_travel_by_other_configs(saver: AsyncSaver, durability: Any) -> None:
    """The checkpoint may be named by a UUID, by a config bound to the graph, or by that of a chain around it."""
    graph = asking(saver)

    async def passes_on(value: Any, config: RunnableConfig) -> Any:
        return await graph.ainvoke(value, config, durability=durability)

    for snapshot in await two_turns(graph, durability):
        named = snapshot.config["configurable"]
        old = {"configurable": {"thread_id": "t", "checkpoint_id": uuid.UUID(named["checkpoint_id"])}}
        for how in ways_back(snapshot):
            await graph.ainvoke(how, old, durability=durability)
            await graph.with_config(snapshot.config).ainvoke(how, durability=durability)
            await RunnableLambda(passes_on).ainvoke(how or {}, snapshot.config)
            mine = {**snapshot.config, "metadata": {"thread_id": "t", "user": "u"}, "run_id": uuid.uuid4()}
            await graph.ainvoke(how, mine, durability=durability)
    unknown = {"configurable": {"thread_id": "t", "checkpoint_id": str(uuid.uuid4())}}
    await graph.ainvoke(INPUT, unknown, durability=durability)


@on_asyncio
@in_context
async def test_updates_and_forks(saver: AsyncSaver, durability: Any) -> None:
    """Updates of every kind at every checkpoint, and runs from what they made."""
    graph = asking(saver)
    await graph.aupdate_state(config(), {"log": ["first"]}, as_node="a")
    await to_the_end(graph, durability)
    for snapshot in await two_turns(graph, durability):
        for values, node in [(INPUT, "a"), (INPUT, "__input__"), (None, "__copy__"), (None, "__end__"), (None, None)]:
            made = await graph.aupdate_state(snapshot.config, values, as_node=node)
            await graph.ainvoke(None, made, durability=durability)
            await to_the_end(graph, durability)
            await turn(graph, "after", durability=durability)


@on_asyncio
@in_context
async def test_bulk_updates(saver: AsyncSaver, durability: Any) -> None:
    """A history that is written at once, to a new conversation, at its end and at every checkpoint."""
    graph = asking(saver)
    steps = [[StateUpdate(INPUT, node)] for node in ("__input__", "a", "q", "b")]
    await graph.abulk_update_state(config(), steps)
    for snapshot in await two_turns(graph, durability):
        await graph.abulk_update_state(snapshot.config, steps[1:])
        await turn(graph, "after", durability=durability)
    await graph.abulk_update_state(config(), steps)


@on_asyncio
@pytest.mark.parametrize("frequency", [1, 2, 1000])
async def test_delta_channels(saver: AsyncSaver, durability: Any, frequency: int) -> None:
    """Turns, and runs from every checkpoint, where values are rebuilt from writes."""
    graph = delta(frequency).compile(checkpointer=saver)
    for snapshot in (await two_turns(graph, durability))[1:]:
        await graph.ainvoke(INPUT, snapshot.config, durability=durability)
        if snapshot.next:  # not the stub that durability="exit" stores the writes of a first run on
            await graph.ainvoke(None, snapshot.config, durability=durability)
    await turn(graph, "after", durability=durability)


class Boom(Exception):
    """What a node may fail with."""


@on_asyncio
async def test_failures(saver: AsyncSaver, durability: Any) -> None:
    """Nodes that fail every other time: resumed, retried, left for a new turn, run again from every checkpoint."""
    calls: list[None] = []

    def fails(state: Any) -> dict[str, Any]:
        calls.append(None)
        if len(calls) % 2:
            raise Boom
        return {"log": ["ok"]}

    builder = in_turn(a=says("a"), fails=fails, b=says("b"))
    graph = builder.compile(checkpointer=saver)
    for _ in range(2):
        for _ in range(2):
            with suppress(Boom):
                await turn(graph, "in", durability=durability)
        with suppress(Boom):
            await graph.ainvoke(None, config(), durability=durability)
    for snapshot in (await history(graph))[1:]:
        for how in (None, INPUT, Command(resume="r")):
            with suppress(Boom):
                await graph.ainvoke(how, snapshot.config, durability=durability)
            with suppress(Boom):
                await graph.ainvoke(None, config(), durability=durability)
    again: StateGraph[Any] = StateGraph(Log)
    again.add_node("fails", fails, retry_policy=RetryPolicy(initial_interval=0, jitter=False, retry_on=Boom))
    again.add_edge(START, "fails")
    await turn(again.compile(checkpointer=saver), "in", "retried", durability=durability)


@on_asyncio
@pytest.mark.parametrize("how", [None, INPUT], ids=["resumed", "new turn"])
async def test_cancellation(saver: AsyncSaver, durability: Any, how: Any) -> None:
    """A run that was cancelled in a node is over, and another one may follow at once."""
    gate = Gate(1)
    graph = steps(saver, a=says("a"), gate=gate, b=says("b"))
    run = asyncio.create_task(turn(graph, "in", durability=durability))
    await gate.full.wait()
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run
    gate.open.set()
    assert run.cancelled()
    await graph.ainvoke(how, config(), durability=durability)
    await turn(graph, "after", durability=durability)


@on_asyncio
@in_context
async def test_copies(saver: AsyncSaver, durability: Any) -> None:
    """A conversation and its copy go on beside each other."""
    graph = asking(saver)
    await turn(graph, "in", durability=durability)
    await saver.acopy_thread("t", "copy")
    for thread_id in ("t", "copy"):
        await to_the_end(graph, durability, config(thread_id))
        await turn(graph, "more", thread_id, durability=durability)
        await graph.ainvoke(None, (await history(graph, config(thread_id)))[-1].config, durability=durability)


CLEANINGS: dict[str, Callable[[AsyncSaver], Awaitable[None]]] = {
    "pruned": lambda saver: saver.aprune(["t"]),
    "older run deleted": lambda saver: saver.adelete_for_runs(["first"]),
    "own run deleted": lambda saver: saver.adelete_for_runs(["second"]),
    "deleted": lambda saver: saver.adelete_thread("t"),
}


@on_asyncio
@in_context
@pytest.mark.parametrize("clean", CLEANINGS)
async def test_deletions_between_runs(saver: AsyncSaver, durability: Any, clean: str) -> None:
    """What is left of a conversation goes on, from its end and from its oldest checkpoint."""
    graph = asking(saver)
    for run_id in ("first", "second"):
        await turn(graph, "in", run_id=run_id, durability=durability)
    await CLEANINGS[clean](saver)
    await to_the_end(graph, durability)
    await turn(graph, "after", durability=durability)
    await graph.ainvoke(None, (await history(graph))[-1].config, durability=durability)


@on_asyncio
@pytest.mark.parametrize("clean", CLEANINGS)
async def test_deletions_during_runs(saver: AsyncSaver, durability: Any, clean: str) -> None:
    """A run in whose midst its conversation is cleaned up goes on, also where it began at an old checkpoint."""

    async def cleans(state: Any) -> dict[str, Any]:
        await CLEANINGS[clean](saver)
        return {"log": ["cleaned"]}

    builder = in_turn(a=says("a"), clean=cleans, b=says("b"), again=cleans, c=says("c"))
    graph = builder.compile(checkpointer=saver)
    await turn(in_turn(a=says("a")).compile(checkpointer=saver), "in", run_id="first", durability=durability)
    await turn(graph, "in", run_id="second", durability=durability)
    for snapshot in (await history(graph))[1:]:
        with suppress(EmptyInputError):  # deleted by the one before
            await graph.ainvoke(None, snapshot.config, durability=durability)


@on_asyncio
async def test_a_put_that_is_repeated(saver: AsyncSaver) -> None:
    """Who was cancelled in a put, and cannot tell whether it was stored, may repeat it."""
    for _ in range(2):
        await put_as_langgraph(saver, "2", "1")


@on_asyncio
async def test_a_parent_that_is_hidden(saver: AsyncSaver, store: Store) -> None:
    """A deleted checkpoint that others are rebuilt from is as good as gone."""
    await store.put("t", "", CheckpointRecord("1", None, EMPTY, EMPTY, (), None, ()), [])
    await put_as_langgraph(saver, "2", None)
    await put_as_langgraph(saver, "3", "1")
    assert await build.listed(saver, build.config()) == ["3", "2"]


@on_asyncio
async def test_puts_that_are_no_runs(saver: AsyncSaver) -> None:
    """Who calls the saver himself, to move conversations for instance, may put anything in any order."""
    for number, parent in [("3", "2"), ("1", None), ("4", "1"), ("2", "1"), ("5", "1"), ("6", None)]:
        await build.put(saver, number, parent=parent)
    assert len(await build.listed(saver, build.config())) == 6


def test_sync_runs(saver: AsyncSaver, durability: Any) -> None:
    """Turns, answers, updates and time travel of sync callers."""
    graph = asking(saver)
    for word in ("one", "two"):
        graph.invoke({"log": [word]}, config(), durability=durability)
        graph.invoke(Command(resume="x"), config(), durability=durability)
    for snapshot in [*graph.get_state_history(config())]:
        for how in ways_back(snapshot):
            graph.invoke(how, snapshot.config, durability=durability)
        graph.invoke(None, graph.update_state(snapshot.config, INPUT, as_node="a"), durability=durability)
        graph.invoke(INPUT, config(), durability=durability)


# Races.


class Gate:
    """A node in which runs wait: `full` is set when so many have come, and they go on when `open` is."""

    def __init__(self, size: int, open_when_full: bool = False) -> None:
        self.size = size
        self.full = asyncio.Event()
        self.open = self.full if open_when_full else asyncio.Event()

    async def __call__(self, state: Any = None) -> dict[str, Any]:
        self.size -= 1
        if self.size <= 0:
            self.full.set()
        await self.open.wait()
        return {"log": ["through"]}


class AtGate(AsyncSaver):
    """A clone of a saver, by which runs wait at a gate when they have read their conversation."""

    def __init__(self, saver: AsyncSaver, gate: Gate) -> None:
        vars(self).update(vars(saver))
        self.gate = gate

    async def aget_tuple(self, config: RunnableConfig) -> Any:
        found = await super().aget_tuple(config)
        await self.gate()
        return found


def at_gate(saver: AsyncSaver, size: int) -> AtGate:
    """A clone by which none of so many runs goes on before all have read their conversation."""
    return AtGate(saver, Gate(size, open_when_full=True))


def steps(saver: AsyncSaver, **nodes: Any) -> Any:
    """A graph of three nodes, or of others."""
    return in_turn(**(nodes or {"a": says("a"), "b": says("b"), "c": says("c")})).compile(checkpointer=saver)


async def outcomes(*runs: Awaitable[Any]) -> list[Any]:
    """What the runs that were no conflict returned. All others are one."""
    ended = await asyncio.gather(*runs, return_exceptions=True)
    failed = [one for one in ended if isinstance(one, BaseException)]
    assert {type(one) for one in failed} <= {ConflictError}, failed
    return [one for one in ended if not isinstance(one, BaseException)]


@on_asyncio
@pytest.mark.parametrize("turns", [0, 2], ids=["new", "known"])
@pytest.mark.parametrize("number", [2, 5, 200])
async def test_of_many_inputs_at_once_one_is_taken(saver: AsyncSaver, durability: Any, number: int, turns: int) -> None:
    """All others raise, and the conversation is what that one run made of it."""
    graph, racing = steps(saver), steps(at_gate(saver, number))
    for _ in range(turns):
        await turn(graph, "in", durability=durability)
    won = await outcomes(*(turn(racing, f"{one}", durability=durability) for one in range(number)))
    assert len(won) == 1
    assert (await graph.aget_state(config())).values == won[0]
    assert len(won[0]["log"]) == 4 * (turns + 1)
    stored = await history(graph)
    assert len(stored) == (turns + 1) * (1 if durability == "exit" else 5)
    assert [one.parent_config for one in stored].count(None) == 1
    await turn(graph, "after", durability=durability)


@on_asyncio
async def test_all_are_stored_with_a_warning(durability: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With "warn" no run fails, and the log says which conversation it was."""
    saver = AsyncSaver(on_conflict="warn")
    graph = steps(at_gate(saver, 5))
    with caplog.at_level(logging.WARNING, "async_saver"):
        ended = await asyncio.gather(*(turn(graph, f"{one}", durability=durability) for one in range(5)))
    assert len(ended) == 5
    assert len(caplog.records) >= 4
    assert {one.name for one in caplog.records} == {"async_saver.conflicts"}
    assert all("two runs raced on thread_id 't'" in one.getMessage() for one in caplog.records)
    assert len(await history(graph)) == (5 if durability == "exit" else 25)


def test_a_saver_of_a_url_may_report_conflicts_too() -> None:
    """As one of the class itself; an unknown way to do so is refused by both."""
    assert AsyncSaver.from_conn_string("memory://", on_conflict="warn")._on_conflict == "warn"
    for make in (AsyncSaver, partial(AsyncSaver.from_conn_string, "memory://")):
        with pytest.raises(InvalidValueError, match="unknown on_conflict 'error'"):
            make(on_conflict="error")


@on_asyncio
async def test_nobody_looks_by_default(durability: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without `on_conflict` races go unnoticed, and no store is asked for them."""

    class NotAsked(MemoryStore):
        async def put(self, *args: Any) -> bool:
            assert args[-1] is None
            return await super().put(*args)

    graph = steps(at_gate(AsyncSaver(store=NotAsked()), 5))
    assert len(await asyncio.gather(*(turn(graph, f"{one}", durability=durability) for one in range(5)))) == 5
    assert not caplog.records


@on_asyncio
@pytest.mark.parametrize("values", [{"log": ["update"]}, None], ids=["values", "none"])
async def test_an_update_in_the_midst_of_a_run(saver: AsyncSaver, durability: Any, values: Any) -> None:
    """The update stays, and the run raises with its next checkpoint."""
    gate = Gate(1)
    await turn(steps(saver), "in", durability=durability)
    graph = steps(saver, gate=gate, b=says("b"))
    run = asyncio.create_task(turn(graph, "more", durability=durability))
    await gate.full.wait()
    made = await graph.aupdate_state(config(), values, as_node="b")
    gate.open.set()
    assert await outcomes(run) == []
    assert (await graph.aget_state(config())).config == made


@on_asyncio
@in_context
@pytest.mark.parametrize("other", [INPUT, Command(resume="y")], ids=["a new turn", "another answer"])
async def test_an_answer_and_another_run_at_once(saver: AsyncSaver, durability: Any, other: Any) -> None:
    """One of the two raises."""
    await turn(asking(saver), "in", durability=durability)
    graph = asking(at_gate(saver, 2))
    runs = [graph.ainvoke(how, config(), durability=durability) for how in (Command(resume="x"), other)]
    assert len(await outcomes(*runs)) == 1


@on_asyncio
async def test_a_run_between_the_reading_and_the_first_checkpoint(saver: AsyncSaver, durability: Any) -> None:
    """The one that read before and stored after it raises, in an empty conversation as well."""
    graph = steps(saver)
    for _ in range(2):
        gate = Gate(1)
        late = steps(AtGate(saver, gate))
        run = asyncio.create_task(turn(late, "late", durability=durability))
        await gate.full.wait()
        taken = await turn(graph, "in between", durability=durability)
        gate.open.set()
        assert await outcomes(run) == []
        assert await log(graph) == taken["log"]


@on_asyncio
@pytest.mark.parametrize("thread_id", ["t", 7])
async def test_a_run_in_the_midst_of_one_from_an_old_checkpoint(saver: AsyncSaver, thread_id: Any) -> None:
    """That one may begin anywhere, but what it has stored itself is the latest."""
    graph = steps(saver)
    await turn(graph, "in", thread_id)
    old = (await history(graph, config(thread_id)))[1].config["configurable"]["checkpoint_id"]
    gate = Gate(1)
    from_old: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_id": old}}
    # "sync", so that everything before the node is stored when the other run reads.
    run = asyncio.create_task(steps(saver, a=gate, b=says("b")).ainvoke(INPUT, from_old, durability="sync"))
    await gate.full.wait()
    await turn(graph, "other", thread_id)
    gate.open.set()
    with pytest.raises(ConflictError):
        await run


@on_asyncio
async def test_runs_in_nodes_of_others_race_too(saver: AsyncSaver, durability: Any) -> None:
    """Two runs of one conversation, in nodes of two others."""
    inner = steps(at_gate(saver, 2))

    async def calls(state: Any) -> dict[str, Any]:
        return {"log": (await turn(inner, "in", "child", durability=durability))["log"]}

    graph = in_turn(calls=calls).compile(checkpointer=saver)
    assert len(await outcomes(*(turn(graph, "in", name, durability=durability) for name in "xy"))) == 1


@on_asyncio
@pytest.mark.parametrize("thread_id", [7, uuid.UUID(int=7)], ids=["number", "uuid"])
async def test_a_conversation_whose_name_is_no_text(saver: AsyncSaver, durability: Any, thread_id: Any) -> None:
    """It is watched as well, and its history may be run again."""
    graph, racing = steps(saver), steps(at_gate(saver, 2))
    assert len(await outcomes(*(turn(racing, "in", thread_id, durability=durability) for _ in range(2)))) == 1
    for snapshot in await history(graph, config(thread_id)):
        await graph.ainvoke(None, snapshot.config, durability=durability)
        await graph.ainvoke(INPUT, snapshot.config, durability=durability)


@on_asyncio
@in_context
async def test_a_run_that_asks_raises_too(saver: AsyncSaver) -> None:
    """Its question is not shown: nobody could answer it."""
    graph, racing = asking(saver), asking(at_gate(saver, 2))
    won = await outcomes(*(turn(racing, "in") for _ in range(2)))
    assert len(won) == 1
    assert won[0]["__interrupt__"]
    assert (await graph.ainvoke(Command(resume="x"), config()))["log"] == ["in", "a1", "q:x", "b3"]


@on_asyncio
async def test_conversations_do_not_race_with_each_other(saver: AsyncSaver, durability: Any) -> None:
    """Runs of many conversations at once are all stored."""
    graph = steps(at_gate(saver, 50))
    won = await outcomes(*(turn(graph, "in", f"{one}", durability=durability) for one in range(50)))
    assert len(won) == 50


@pytest.mark.parametrize("on_conflict", ["raise", "warn"])
def test_sync_races(durability: Any, on_conflict: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of runs in five worker threads one is taken; with "warn" all are."""
    barrier = threading.Barrier(5)

    class AtBarrier(AsyncSaver):
        def get_tuple(self, config: RunnableConfig) -> Any:
            found = super().get_tuple(config)
            barrier.wait(30)
            return found

    saver = AtBarrier(on_conflict=on_conflict)
    graph = steps(saver)
    with ThreadPoolExecutor(5) as pool:
        runs = [pool.submit(graph.invoke, INPUT, config(), durability=durability) for _ in range(5)]
        failed = [one.exception() for one in runs if one.exception()]
    if on_conflict == "raise":
        assert [type(one) for one in failed] == [ConflictError] * 4
        found = AsyncSaver.get_tuple(saver, config())
        assert found is not None
        assert found.checkpoint["channel_values"]["log"] == ["in", "a1", "b2", "c3"]
    else:
        assert not failed
        assert len(caplog.records) >= 4


# What is raised, and where.


async def put_as_langgraph(saver: AsyncSaver, checkpoint_id: str, parent: str | None, thread_id: str = "t") -> None:
    """Store a checkpoint as a run does that was pointed at none."""
    where: Any = {**build.config(thread_id, parent), "metadata": {"thread_id": thread_id}}
    made = build.checkpoint(checkpoint_id, {"x": checkpoint_id})
    await saver.aput(where, made, {"source": "loop", "step": 1, "parents": {}}, made["channel_versions"])


@on_asyncio
async def test_the_error_says_what_to_do(saver: AsyncSaver) -> None:
    """It names the conversation, the race and the remedy, and nothing was stored."""
    await put_as_langgraph(saver, "1", None, "x" * 99)
    with pytest.raises(ConflictError) as raised:
        await put_as_langgraph(saver, "2", None, "x" * 99)
    assert isinstance(raised.value, AsyncSaverError)
    assert isinstance(raised.value, RuntimeError)
    for words in ("two runs raced", f"thread_id {'x' * 75!r}"[:-3], "saver.session(thread_id)", "not stored"):
        assert words in str(raised.value)
    assert "x" * 80 not in str(raised.value)
    assert await build.listed(saver, None) == ["1"]


@on_asyncio
async def test_clones_and_copies_look_as_well() -> None:
    """`on_conflict` is a saver's own, and goes with its clones."""
    saver = AsyncSaver(on_conflict="raise")
    await put_as_langgraph(saver, "1", None)
    for clone in (copy.copy(saver), copy.deepcopy(saver), saver.with_allowlist([("a", "b")])):
        with pytest.raises(ConflictError):
            await put_as_langgraph(clone, "2", None)


def test_an_unknown_value_is_an_error() -> None:
    """Which names those that are known."""
    with pytest.raises(InvalidValueError, match='pass "raise", "warn" or None'):
        AsyncSaver(on_conflict="log")  # type: ignore[arg-type]
