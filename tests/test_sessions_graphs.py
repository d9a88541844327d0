"""Sessions around runs of real LangGraph graphs."""

import asyncio
import operator
import sys
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from async_saver import AsyncSaver, MemoryStore, SessionInterruptedError, SessionLostError, Store
from tests.build import all_of, config
from tests.stores import NewStore, contents
from tests.test_sessions import nothing_is_left
from tests.workers import together

DURABILITIES = ["sync", "async", "exit"]


class Turns(TypedDict):
    """What was said."""

    turns: Annotated[list[str], operator.add]


def chat(saver: AsyncSaver) -> Any:
    """A graph that answers each turn."""

    async def answer(state: Turns) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"turns": [f"{state['turns'][-1]}!"]}

    builder = StateGraph(Turns)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=saver)


@pytest.mark.asyncio
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("runs", [5, 200])
async def test_concurrent_runs_in_sessions_lose_no_turn(saver: AsyncSaver, runs: int, durability: Any) -> None:
    """Every turn is in the final state with its answer behind it, and all checkpoints are one chain."""
    if not isinstance(saver._shared.store, MemoryStore):
        runs = min(runs, 50)
    graph = chat(saver)

    async def run(number: int) -> None:
        async with saver.session("t") as session:
            await graph.ainvoke({"turns": [f"{number}"]}, session.config, durability=durability)

    await asyncio.gather(*(run(number) for number in range(runs)))
    turns = (await graph.aget_state(config(ns=None))).values["turns"]
    assert turns == [turn for number in range(runs) for turn in (f"{number}", f"{number}!")]
    found = await all_of(saver.alist(config()))
    parents = [one.parent_config and one.parent_config["configurable"]["checkpoint_id"] for one in found]
    assert parents == [*[one.checkpoint["id"] for one in found[1:]], None]
    assert nothing_is_left(saver)


def test_concurrent_sync_runs_in_sessions_lose_no_turn(saver: AsyncSaver) -> None:
    """Each in a worker thread of its own."""
    builder = StateGraph(Turns)
    builder.add_node("answer", lambda state: {"turns": [f"{state['turns'][-1]}!"]})
    builder.add_edge(START, "answer")
    graph = builder.compile(checkpointer=saver)

    def run(number: int) -> None:
        with saver.session("t") as session:
            graph.invoke({"turns": [f"{number}"]}, session.config)

    together(*[lambda number=number: run(number) for number in range(8)])  # type: ignore[misc]
    turns = graph.get_state(config(ns=None)).values["turns"]
    assert sorted(turns[::2]) == [f"{number}" for number in range(8)]
    assert [f"{turn}!" for turn in turns[::2]] == turns[1::2]


class Steps:
    """A graph of two steps, the second of which does not end by itself."""

    def __init__(self, saver: AsyncSaver) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

        async def first(_: Turns) -> dict[str, Any]:
            return {"turns": ["first"]}

        async def second(_: Turns) -> dict[str, Any]:
            self.reached.set()
            await self.go_on.wait()
            return {"turns": ["second"]}

        builder = StateGraph(Turns)
        builder.add_sequence([first, second])
        builder.add_edge(START, "first")
        self.graph = builder.compile(checkpointer=saver)


class Slow(Store):
    """Takes its time to commit."""

    in_order = False

    async def put(self, *args: Any, **kwargs: Any) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await super().put(*args, **kwargs)


@pytest.mark.asyncio
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_an_interrupted_run_stores_what_a_cancelled_one_does(
    new_store: NewStore, strategy: Any, durability: Any
) -> None:
    """Also with durability="exit", where the only checkpoint is stored while it unwinds; and no task remains."""
    stored = []
    for way in ("cancel", strategy):
        saver = AsyncSaver(store=new_store(Slow))
        steps = Steps(saver)

        async def run(saver: AsyncSaver = saver, steps: Steps = steps, way: str = way) -> None:
            if way == "cancel":
                await steps.graph.ainvoke({"turns": ["in"]}, config(ns=None), durability=durability)
            async with saver.session("t") as session:
                await steps.graph.ainvoke({"turns": ["in"]}, session.config, durability=durability)

        task = asyncio.create_task(run())
        await steps.reached.wait()
        if way == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with saver.session("t", multitask_strategy=way):  # type: ignore[arg-type]
                pass
            with pytest.raises(SessionInterruptedError):
                await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        state = await steps.graph.aget_state(config(ns=None))
        stored.append((state.values, state.next, len(await all_of(saver.alist(config())))))
        assert nothing_is_left(saver)
    assert stored[0][0] == {"turns": ["in", "first"]}
    assert stored[1] == (stored[0] if strategy == "interrupt" else ({}, (), 0))


@pytest.mark.asyncio
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("ephemeral", [False, True])
async def test_a_run_that_outlives_its_session_stores_nothing(
    saver: AsyncSaver, durability: Any, ephemeral: bool
) -> None:
    """Once another session has been, or at once if it was ephemeral: it does not bring the conversation back."""
    steps = Steps(saver)
    async with saver.session("t", ephemeral=ephemeral) as session:
        run = steps.graph.ainvoke({"turns": ["in"]}, session.config, durability=durability)
        task = asyncio.create_task(run)
        await steps.reached.wait()
    if not ephemeral:
        async with saver.session("t"):
            pass
    before = contents(saver)
    steps.go_on.set()
    with pytest.raises(SessionLostError):
        await task
    assert contents(saver) == before
    assert (await saver.acount() == 0) is (ephemeral or durability == "exit")


@pytest.mark.asyncio
@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_run_that_outlives_its_session_goes_on_where_nobody_has_been(
    saver: AsyncSaver, durability: Any
) -> None:
    """A session that ended leaves no mark on it."""
    steps = Steps(saver)
    async with saver.session("t") as session:
        task = asyncio.create_task(steps.graph.ainvoke({"turns": ["in"]}, session.config, durability=durability))
        await steps.reached.wait()
    steps.go_on.set()
    assert (await task)["turns"] == ["in", "first", "second"]
    assert (await steps.graph.aget_state(config(ns=None))).values["turns"] == ["in", "first", "second"]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_fenced_sync_run_stores_nothing_more(saver: AsyncSaver, durability: Any) -> None:
    """It learns at its next write, in whatever worker thread LangGraph makes it."""

    def first(_: Turns) -> dict[str, Any]:
        return {"turns": ["first"]}

    def second(_: Turns) -> dict[str, Any]:
        together(interrupt_it)  # by a session of another worker thread
        return {"turns": ["second"]}

    def interrupt_it() -> None:
        with saver.session("t", multitask_strategy="interrupt"):
            seen.append(contents(saver))

    seen: list[Any] = []
    builder = StateGraph(Turns)
    builder.add_sequence([first, second])
    builder.add_edge(START, "first")
    graph = builder.compile(checkpointer=saver)
    with pytest.raises(SessionInterruptedError) as caught, saver.session("t") as session:
        graph.invoke({"turns": ["in"]}, session.config, durability=durability)
    assert isinstance(caught.value.__cause__, SessionLostError)
    if durability == "sync":
        assert contents(saver) == seen[0]
    assert "second" not in str(graph.get_state(config(ns=None)).values)
    assert nothing_is_left(saver)


@pytest.mark.asyncio
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph's async runs give nodes no context before Python 3.11"
)
@pytest.mark.parametrize("durability", DURABILITIES)
async def test_rollback_undoes_the_resuming_of_an_interrupt(saver: AsyncSaver, durability: Any) -> None:
    """The question is open again, with what was answered to earlier ones, in all namespaces."""
    reached = asyncio.Event()

    async def ask(_: Turns) -> dict[str, Any]:
        answers = [interrupt("first"), interrupt("second")]
        reached.set()
        await asyncio.Event().wait()
        return {"turns": answers}

    inner = StateGraph(Turns)
    inner.add_node("ask", ask)
    inner.add_edge(START, "ask")
    builder = StateGraph(Turns)
    builder.add_node("inner", inner.compile())
    builder.add_edge(START, "inner")
    graph = builder.compile(checkpointer=saver)
    await graph.ainvoke({"turns": ["in"]}, config(ns=None), durability=durability)
    await graph.ainvoke(Command(resume="one"), config(ns=None), durability=durability)
    before = contents(saver)

    async def resume() -> None:
        async with saver.session("t") as session:
            await graph.ainvoke(Command(resume="two"), session.config, durability=durability)

    task = asyncio.create_task(resume())
    await reached.wait()
    async with saver.session("t", multitask_strategy="rollback") as session:
        assert contents(saver) == before
        state = await graph.aget_state(session.config)
        assert [one.value for one in state.interrupts] == ["second"]
    with pytest.raises(SessionInterruptedError):
        await task


@pytest.mark.asyncio
async def test_a_rolled_back_run_leaves_a_long_conversation_as_it_was(saver: AsyncSaver) -> None:
    """Also where the values of its versions share their bytes."""
    graph, steps = chat(saver), Steps(saver)
    for number in range(30):
        await graph.ainvoke({"turns": [f"{number} " * 100]}, config(ns=None))
    before = contents(saver)

    async def run() -> None:
        async with saver.session("t") as session:
            for number in range(20):
                await graph.ainvoke({"turns": [f"more {number} " * 100]}, session.config)
            await steps.graph.ainvoke({"turns": ["last"]}, session.config)

    task = asyncio.create_task(run())
    await steps.reached.wait()
    assert contents(saver) != before
    async with saver.session("t", multitask_strategy="rollback", timeout=30):
        assert contents(saver) == before
    with pytest.raises(SessionInterruptedError):
        await task
    await graph.ainvoke({"turns": ["on"]}, config(ns=None))
    assert (await graph.aget_state(config(ns=None))).values["turns"][-1] == "on!"
