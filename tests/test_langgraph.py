"""Compiled graphs, run on an event loop: what InMemorySaver gives, AsyncSaver gives."""

import asyncio
import copy
import os
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.types import Command, interrupt

import async_saver
from async_saver import AsyncSaver
from tests.graphs import (
    STRICT_PROGRAM,
    Saver,
    add_one,
    alike,
    answers,
    asks,
    at_once,
    before,
    by_id,
    chat,
    config,
    delta,
    delta_state,
    fan_out,
    in_turn,
    log,
    logs,
    nested,
    outline,
    outlines,
    running_total,
    says,
    stored_bytes,
    three_turns,
    turn,
)
from tests.stores import NewStore

pytestmark = pytest.mark.asyncio

DURABILITIES = pytest.mark.parametrize("durability", ["sync", "async", "exit"])
FREQUENCIES = pytest.mark.parametrize("frequency", [1, 2, 3, 100])

IN_CONTEXT = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph's async runs give nodes no context before Python 3.11"
)

ONE_TURN = ["in", "a1", "b2"]


# Running and reading.


@pytest.mark.parametrize("saver_class", [async_saver.InMemorySaver, async_saver.MemorySaver, AsyncSaver])
async def test_the_program_of_the_reference_page(saver_class: type[AsyncSaver]) -> None:
    """`StateGraph(int)` with one node gives 2 for 1, and the saver holds it."""
    graph = add_one().compile(checkpointer=saver_class())
    assert await graph.ainvoke(1, config()) == 2
    assert (await graph.aget_state(config())).values == 2


@pytest.mark.parametrize("saver_class", [async_saver.InMemorySaver, async_saver.MemorySaver])
async def test_the_chat_tutorial(saver_class: type[AsyncSaver]) -> None:
    """The second turn knows what the first was told; another conversation knows nothing."""
    graph = chat().compile(checkpointer=saver_class())

    async def say(text: str, thread_id: str) -> str:
        result = await graph.ainvoke({"messages": [HumanMessage(text)]}, config(thread_id))
        return str(result["messages"][-1].content)

    assert await say("I am Bob", "1") == "You are Bob."
    assert await say("Who am I?", "1") == "You are Bob."
    assert await say("Who am I?", "2") == "You have not told me."
    messages = (await graph.aget_state(config("1"))).values["messages"]
    assert [m.content for m in messages] == ["I am Bob", "You are Bob.", "Who am I?", "You are Bob."]


@DURABILITIES
async def test_turns_and_history_are_in_memory_savers(durability: str) -> None:
    """Two turns give its values, and its history: values, next, metadata, tasks."""

    async def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)
        values = [await turn(graph, word, durability=durability) for word in ("in", "more")]
        return values, outline(await graph.aget_state(config())), await outlines(graph)

    values, state, history = await alike(program)
    assert values == [{"log": ONE_TURN}, {"log": [*ONE_TURN, "more", "a4", "b5"]}]
    assert history[0] == {**state, "parent": 1}
    assert state["values"] == values[1]
    assert state["next"] == ()
    steps = [one["metadata"]["step"] for one in history]
    assert steps == ([6, 2] if durability == "exit" else [6, 5, 4, 3, 2, 1, 0, -1])


@pytest.mark.parametrize("mode", ["values", "updates", "checkpoints", "debug", "tasks"])
async def test_astream_gives_what_it_gives_on_in_memory_saver(mode: str) -> None:
    """Every stream mode has the same items; of checkpoints and tasks, those parts are compared that have no ids."""

    def plain(item: Any) -> Any:
        item = item.get("payload", item) if mode == "debug" else item
        return {key: item[key] for key in item if key in ("log", "a", "b", "values", "next", "name", "result", "error")}

    async def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)
        return [plain(item) async for item in graph.astream({"log": ["in"]}, config(), stream_mode=mode)]

    items = await alike(program)
    if mode == "values":
        assert [item["log"] for item in items] == [["in"], ["in", "a1"], ONE_TURN]
    elif mode == "updates":
        assert items == [{"a": {"log": ["a1"]}}, {"b": {"log": ["b2"]}}]
    elif mode == "checkpoints":
        assert [item["values"]["log"] for item in items] == [[], ["in"], ["in", "a1"], ONE_TURN]
    else:
        results = [item["result"] for item in items if "result" in item]
        assert results == [{"log": ["a1"]}, {"log": ["b2"]}]


async def test_update_state_is_in_memory_savers() -> None:
    """A state that is updated as if by a node goes on after that node."""

    async def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)
        await graph.aupdate_state(config(), {"log": ["by hand"]}, as_node="a")
        paused = outline(await graph.aget_state(config()))
        return paused["next"], await graph.ainvoke(None, config()), await outlines(graph)

    following, values, history = await alike(program)
    assert following == ("b",)
    assert values == {"log": ["by hand", "b1"]}
    assert [one["metadata"]["source"] for one in history] == ["loop", "update"]


async def test_parallel_tasks_are_reduced_in_the_same_order() -> None:
    """Twenty tasks of one fan-out reach an order-sensitive reducer as they do on InMemorySaver."""

    async def program(saver: Saver) -> Any:
        graph = fan_out(20).compile(checkpointer=saver)
        return await turn(graph, "in"), await log(graph), await outlines(graph)

    values, stored, _ = await alike(program)
    assert values["log"] == stored == ["in", *(str(number) for number in reversed(range(20)))]


async def test_five_conversations_at_once_do_not_mix(saver: AsyncSaver) -> None:
    """Five runs that are all under way at the same time each end in their own state."""
    here, all_here = set[str](), asyncio.Event()

    async def meet(state: dict[str, Any]) -> dict[str, Any]:
        here.add(state["log"][-1])
        if len(here) == 5:
            all_here.set()
        await all_here.wait()
        return {"log": [f"met {len(here)}"]}

    names = [f"conversation-{n}" for n in range(5)]
    graph = in_turn(meet=meet, b=says("b")).compile(checkpointer=saver)
    values = await asyncio.gather(*(turn(graph, name, name) for name in names))
    assert [v["log"] for v in values] == [[name, "met 5", "b2"] for name in names]
    assert [await log(graph, name) for name in names] == [v["log"] for v in values]


async def test_a_deep_copied_graph_has_conversations_of_its_own() -> None:
    """The copy starts with what was there; afterwards neither sees the other's turns."""
    builder = in_turn(a=says("a"), b=says("b"))
    graph = builder.compile(checkpointer=AsyncSaver())
    await turn(graph, "in")
    twin = copy.deepcopy(graph)
    # LangGraph's deep copies read and cannot run (a copied sentinel), so the copied saver runs in a new graph.
    rerun = builder.compile(checkpointer=twin.checkpointer)
    await turn(graph, "ours")
    await turn(rerun, "theirs")
    await turn(rerun, "new", "other")
    assert await log(graph) == [*ONE_TURN, "ours", "a4", "b5"]
    assert await log(twin) == [*ONE_TURN, "theirs", "a4", "b5"]
    assert (await graph.aget_state(config("other"))).values == {}
    assert await log(twin, "other") == ["new", "a1", "b2"]


# Time travel.


async def test_both_branches_of_a_replay_stay_right() -> None:
    """A run from an old checkpoint's config forks; its values do not replace those of the first branch."""

    async def program(saver: Saver) -> Any:
        words = iter(["first", "second"])
        graph = in_turn(a=says("a"), b=lambda _: {"log": [next(words)]}, c=says("c")).compile(checkpointer=saver)
        await turn(graph, "in")
        first = (await graph.aget_state(config())).config
        values = await graph.ainvoke(None, (await before(graph, "b")).config)
        return values, await log(graph, first), await log(graph), await outlines(graph)

    values, first, latest, _ = await alike(program)
    assert first == ["in", "a1", "first", "c3"]
    assert values["log"] == latest == ["in", "a1", "second", "c3"]


async def test_both_branches_of_an_update_of_the_past_stay_right() -> None:
    """`update_state` on an old checkpoint forks: one history, two ends, each with its own values."""

    async def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)
        await turn(graph, "in")
        first = (await graph.aget_state(config())).config
        fork = await graph.aupdate_state((await before(graph, "b")).config, {"log": ["fork"]})
        at_fork = await log(graph, fork)
        values = await graph.ainvoke(None, fork)
        await graph.ainvoke(None, (await before(graph, "a")).config)
        return at_fork, values, await log(graph, first), await logs(graph), await outlines(graph)

    at_fork, values, first, every_log, _ = await alike(program)
    assert at_fork == ["in", "a1", "fork"]
    assert values == {"log": ["in", "a1", "fork", "b3"]}
    assert first == ONE_TURN
    assert every_log.count(ONE_TURN) == 2


# Interrupts and failures.


@IN_CONTEXT
async def test_interrupt_and_resume() -> None:
    """A question is kept as a task's interrupt, and the answer is what `interrupt()` returns."""

    async def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), ask=asks("ask")).compile(checkpointer=saver)
        await turn(graph, "in")
        paused = outline(await graph.aget_state(config()))
        return paused, await graph.ainvoke(Command(resume="yes"), config()), await outlines(graph)

    paused, values, _ = await alike(program)
    assert paused["next"] == ("ask",)
    assert paused["tasks"] == [("ask", None, None, ["ask?"])]
    assert values == {"log": ["in", "a1", "ask:yes"]}


@IN_CONTEXT
async def test_two_questions_of_one_node() -> None:
    """An earlier answer is remembered when the node asks again: resume values are last-wins."""

    def ask_twice(_: Any) -> Any:
        return {"log": [interrupt("one?"), interrupt("two?")]}

    async def program(saver: Saver) -> Any:
        graph = in_turn(ask=ask_twice).compile(checkpointer=saver)
        await turn(graph, "in")
        await graph.ainvoke(Command(resume="1"), config())
        paused = outline(await graph.aget_state(config()))["tasks"]
        return paused, await graph.ainvoke(Command(resume="2"), config())

    paused, values = await alike(program)
    assert paused == [("ask", None, None, ["two?"])]
    assert values == {"log": ["in", "1", "2"]}


@IN_CONTEXT
@DURABILITIES
async def test_interrupts_in_parallel_nodes(durability: str) -> None:
    """All questions are kept, beside what a sibling has written; each node gets the answer to its own."""

    async def program(saver: Saver) -> Any:
        graph = at_once(x=asks("x"), y=asks("y"), z=says("z")).compile(checkpointer=saver)
        await turn(graph, "in", durability=durability)
        paused = await graph.aget_state(config())
        values = await graph.ainvoke(answers(paused), config(), durability=durability)
        return outline(paused)["tasks"], values

    tasks, values = await alike(program)
    assert tasks == [
        ("x", None, None, ["x?"]),
        ("y", None, None, ["y?"]),
        ("z", None, {"log": ["z1"]}, []),
    ]
    assert values == {"log": ["in", "x:X", "y:Y", "z1", "end4"]}


@pytest.mark.parametrize(("when", "reached"), [("before", ["in", "a1"]), ("after", ONE_TURN)])
async def test_interrupt_before_and_after(when: str, reached: list[str]) -> None:
    """A run that stops before or after a node goes on from there with None as its input."""

    async def program(saver: Saver) -> Any:
        stops: Any = {f"interrupt_{when}": ["b"]}
        graph = in_turn(a=says("a"), b=says("b"), c=says("c")).compile(checkpointer=saver, **stops)
        values = [await turn(graph, "in"), await graph.ainvoke(None, config())]
        return [v["log"] for v in values], await outlines(graph)

    values, _ = await alike(program)
    assert values == [reached, [*ONE_TURN, "c3"]]


@DURABILITIES
async def test_a_failed_step_is_resumed_without_its_successful_part(durability: str) -> None:
    """What a parallel sibling wrote is kept as pending writes, so that only the failed node runs again."""

    async def program(saver: Saver) -> Any:
        calls: list[str] = []
        written = asyncio.Event()

        async def good(state: Any) -> Any:
            calls.append("good")
            written.set()
            return {"log": ["good"]}

        async def bad(state: Any) -> Any:
            calls.append("bad")
            await written.wait()
            if calls.count("bad") == 1:
                raise RuntimeError("at first")
            return {"log": ["bad"]}

        graph = at_once(bad=bad, good=good).compile(checkpointer=saver)
        with pytest.raises(RuntimeError, match="at first"):
            await turn(graph, "in", durability=durability)
        failed = outline(await graph.aget_state(config()))["tasks"]
        return failed, await graph.ainvoke(None, config(), durability=durability), calls

    failed, values, calls = await alike(program)
    assert failed == [("bad", "RuntimeError('at first')", None, []), ("good", None, {"log": ["good"]}, [])]
    assert values == {"log": ["in", "bad", "good", "end3"]}
    assert sorted(calls) == ["bad", "bad", "good"]


# Subgraphs and the functional API.


@IN_CONTEXT
@pytest.mark.parametrize(("memory", "inner"), [(None, ["turn2"]), (True, ["turn1", "turn2"])])
async def test_a_subgraph_remembers_only_with_memory_of_its_own(memory: bool | None, inner: list[str]) -> None:
    """Compiled with `checkpointer=True` it starts from its last state, by default from its input alone."""

    async def program(saver: Saver) -> Any:
        seen: list[list[str]] = []
        child = in_turn(look=lambda state: seen.append(state["log"])).compile(checkpointer=memory)
        graph = in_turn(call=lambda state: child.invoke({"log": state["log"][-1:]}) and {}).compile(checkpointer=saver)
        await turn(graph, "turn1")
        await turn(graph, "turn2")
        return seen, await outlines(graph)

    seen, _ = await alike(program)
    assert seen == [["turn1"], inner]


@IN_CONTEXT
@pytest.mark.parametrize("memory", [None, True])
async def test_the_state_of_an_interrupted_subgraph(memory: bool | None) -> None:
    """`get_state(subgraphs=True)` shows it, its history is its own, and an answer reaches it."""

    async def program(saver: Saver) -> Any:
        inner = in_turn(x=says("x"), ask=asks("ask")).compile(checkpointer=memory)
        graph = nested(inner).compile(checkpointer=saver)
        await turn(graph, "in")
        child = (await graph.aget_state(config(), subgraphs=True)).tasks[0].state
        history = await outlines(graph, {"configurable": {**child.config["configurable"], "checkpoint_id": None}})
        values = await graph.ainvoke(Command(resume="yes"), config())
        return outline(child), history, values["log"]

    child, history, values = await alike(program)
    assert child["values"] == {"log": ["in", "before1", "x2"]}
    assert child["next"] == ("ask",)
    assert history[0] == {**child, "parent": 1}
    assert [one["next"] for one in history] == [("ask",), ("x",), ("__start__",)]
    assert values == ["in", "before1", "in", "before1", "x2", "ask:yes", "after6"]


@IN_CONTEXT
@pytest.mark.parametrize("memory", [None, True])
async def test_time_travel_into_a_subgraph(memory: bool | None) -> None:
    """A fork inside an interrupted subgraph goes on from there; the first end stays readable."""

    async def program(saver: Saver) -> Any:
        inner = in_turn(x=says("x"), ask=asks("ask")).compile(checkpointer=memory)
        graph = nested(inner).compile(checkpointer=saver)
        await turn(graph, "in")
        paused = await graph.aget_state(config(), subgraphs=True)
        await graph.ainvoke(Command(resume="yes"), config())
        first = (await graph.aget_state(config())).config
        fork = await graph.aupdate_state(paused.tasks[0].state.config, {"log": ["fork"]})
        forked = await graph.ainvoke(Command(resume="no"), fork)
        return forked["log"], await log(graph), await log(graph, first), await outlines(graph)

    forked, latest, first, _ = await alike(program)
    assert forked == latest
    assert first == ["in", "before1", "in", "before1", "x2", "ask:yes", "after6"]
    assert forked == ["in", "before1", "in", "before1", "x2", "fork", "ask:no", "after7"]


@IN_CONTEXT
async def test_the_functional_api() -> None:
    """`previous` is what the last call saved, and not what it returned; a resumed call does not repeat its tasks."""

    async def program(saver: Saver) -> Any:
        calls: list[int] = []
        total = running_total(saver, calls)
        shown = [await total.ainvoke(x, config()) for x in (1, 2)]
        await total.ainvoke(-5, config())
        paused = outline(await total.aget_state(config()))
        shown.append(await total.ainvoke(Command(resume=True), config()))
        return shown, paused["tasks"], calls, await outlines(total)

    shown, paused, calls, _ = await alike(program)
    assert shown == ["now 2", "now 6", "now -4"]
    assert paused == [("total", None, None, ["really?"])]
    assert calls == [1, 2, -5]


# DeltaChannel.


TURN_1 = ["in1", "a1", "b1", "c1", "end4"]
TURN_2 = ["in2", "a6", "b6", "c6", "end9"]
TURN_3 = ["in3", "a11", "b11", "c11", "end14"]


@FREQUENCIES
@DURABILITIES
async def test_a_delta_channel_rebuilds_what_the_run_produced(frequency: int, durability: str) -> None:
    """At every checkpoint of three turns its value is InMemorySaver's, and the run's own."""

    async def program(saver: Saver) -> Any:
        graph = delta(frequency).compile(checkpointer=saver)
        return await three_turns(graph, durability=durability), await outlines(graph)

    streamed, history = await alike(program)
    ends = [TURN_1, TURN_1 + TURN_2, TURN_1 + TURN_2 + TURN_3]
    stored = [one["values"]["log"] for one in reversed(history) if one["metadata"].get("source") == "loop"]
    assert streamed[2::3] == ends
    assert stored == (ends if durability == "exit" else streamed)


async def test_a_delta_channel_is_rebuilt_in_the_order_of_the_run() -> None:
    """By task path, though the parallel tasks finish and store their writes in the opposite order."""

    async def program(saver: Saver) -> Any:
        finished = {name: asyncio.Event() for name in "abc"}
        stored: list[str] = []

        def node(name: str, *later: str) -> Any:
            async def run(_: Any) -> Any:
                for other in later:
                    await finished[other].wait()
                finished[name].set()
                stored.append(name)
                return {"log": [name]}

            return run

        builder = at_once(state=delta_state(100), a=node("a", "b", "c"), b=node("b", "c"), c=node("c"))
        graph = builder.compile(checkpointer=saver)
        return stored, await turn(graph, "in"), await logs(graph)

    stored, values, every = await alike(program)
    assert stored == ["c", "b", "a"]
    assert values["log"] == every[0] == ["in", "a", "b", "c", "end4"]
    assert every[1] == ["in", "a", "b", "c"]


@FREQUENCIES
@DURABILITIES
async def test_forks_of_a_delta_channel_rebuild(frequency: int, durability: str) -> None:
    """Replays and updates of the past, of two turns in a row: each branch has its own writes only."""

    async def program(saver: Saver) -> Any:
        graph = delta(frequency).compile(checkpointer=saver)
        await three_turns(graph)
        last = (await graph.aget_state(config())).config
        after_turn_2 = [s.config async for s in graph.aget_state_history(config()) if s.values["log"][-1:] == ["end9"]][
            -1
        ]
        fork = await graph.aupdate_state(after_turn_2, {"log": ["fork"]}, as_node="end")
        await graph.ainvoke({"log": ["x"]}, fork, durability=durability)
        ends = [await log(graph)]
        await turn(graph, "y", durability=durability)
        ends += [await log(graph), await log(graph, fork), await log(graph, last)]
        await graph.ainvoke(None, (await before(graph, "end")).config, durability=durability)
        return [*ends, await log(graph)], await outlines(graph)

    (once, twice, at_fork, last, replayed), _ = await alike(program)
    fork = [*TURN_1, *TURN_2, "fork"]
    assert at_fork == fork
    assert once == [*fork, "x", "a12", "b12", "c12", "end15"]
    assert twice == [*once, "y", "a17", "b17", "c17", "end20"]
    assert last == TURN_1 + TURN_2 + TURN_3
    assert replayed == (last if durability == "exit" else twice)


@FREQUENCIES
@DURABILITIES
async def test_a_delta_channel_outlives_pruning(saver: AsyncSaver, frequency: int, durability: str) -> None:
    """`keep_latest` leaves the end with its whole value, and of the past only what reads as before."""
    graph = delta(frequency).compile(checkpointer=saver)
    await three_turns(graph, durability=durability)
    await three_turns(graph, "untouched", durability=durability)
    everything = await by_id(graph)
    await saver.aprune(["t"], strategy="keep_latest")
    left = await by_id(graph)
    assert left == {checkpoint_id: everything[checkpoint_id] for checkpoint_id in left}
    assert frequency > 1 or len(left) == 1
    assert await log(graph) == TURN_1 + TURN_2 + TURN_3
    for thread_id in ("t", "untouched"):
        await turn(graph, "in4", thread_id, durability=durability)
    assert await log(graph) == [*TURN_1, *TURN_2, *TURN_3, "in4", "a16", "b16", "c16", "end19"]
    assert await log(graph) == await log(graph, "untouched")


async def test_the_saver_knows_which_run_stored_what(saver: AsyncSaver) -> None:
    """A `run_id` in the config is in the metadata of all that the run stored."""
    graph = delta(2).compile(checkpointer=saver)
    await three_turns(graph)
    found = [one async for one in saver.alist(config(), filter={"run_id": "run-2"})]
    assert [one.metadata["step"] for one in found] == [6, 5, 4, 3]


@FREQUENCIES
@DURABILITIES
@pytest.mark.parametrize("run", ["run-1", "run-2"])
async def test_what_outlives_a_deleted_run_rebuilds_as_before(
    saver: AsyncSaver, run: str, frequency: int, durability: str
) -> None:
    """Without an earlier run the later ones' checkpoints keep their values, and a further turn goes on from them."""
    graph = delta(frequency).compile(checkpointer=saver)
    await three_turns(graph, durability=durability)
    survivors = await by_id(graph, without_run=run)
    await saver.adelete_for_runs([run])
    assert await by_id(graph) == survivors
    values = await turn(graph, "in4", durability=durability)
    assert values["log"] == [*TURN_1, *TURN_2, *TURN_3, "in4", "a16", "b16", "c16", "end19"]
    assert await log(graph) == values["log"]


@FREQUENCIES
@DURABILITIES
async def test_a_deleted_last_run_has_never_been(new_store: NewStore, frequency: int, durability: str) -> None:
    """State, history and the next turn are those of a conversation that never had it."""

    async def program(saver: AsyncSaver, runs: int) -> Any:
        graph = delta(frequency).compile(checkpointer=saver)
        for n in range(runs):
            await turn(graph, f"in{n + 1}", "t", f"run-{n + 1}", durability=durability)
        await saver.adelete_for_runs(["run-3"])
        latest = await saver.aget_tuple(config())
        assert latest is not None
        left = await outlines(graph)
        await turn(graph, "other", durability=durability)
        return latest.pending_writes, left, await outlines(graph)

    with_it, never = [await program(AsyncSaver(store=new_store()), runs) for runs in (3, 2)]
    assert with_it == never
    assert with_it[0] == []
    assert with_it[1][0]["values"]["log"] == TURN_1 + TURN_2
    assert with_it[2][0]["values"]["log"] == [*TURN_1, *TURN_2, "other", "a11", "b11", "c11", "end14"]


@FREQUENCIES
@DURABILITIES
async def test_copied_conversations_rebuild_and_go_on_alone(saver: AsyncSaver, frequency: int, durability: str) -> None:
    """The copy has the whole history; then each has turns that the other does not see."""
    graph = delta(frequency).compile(checkpointer=saver)
    await three_turns(graph, durability=durability)
    await saver.acopy_thread("t", "copy")
    assert await outlines(graph, config("copy")) == await outlines(graph)
    await turn(graph, "ours", durability=durability)
    untouched = await saver.aget_tuple(config("copy"))
    assert untouched is not None
    assert untouched.pending_writes == []
    await turn(graph, "theirs", "copy", durability=durability)
    before_them = TURN_1 + TURN_2 + TURN_3
    assert await log(graph) == [*before_them, "ours", "a16", "b16", "c16", "end19"]
    assert await log(graph, "copy") == [*before_them, "theirs", "a16", "b16", "c16", "end19"]
    await saver.adelete_thread("t")
    assert await log(graph, "copy") == [*before_them, "theirs", "a16", "b16", "c16", "end19"]


# Serializers.


async def test_strict_msgpack_keeps_two_graphs_types_apart() -> None:
    """Two graphs with types of their own work on one saver; a clone that allows one type cannot load the other."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", STRICT_PROGRAM],
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "{'pet': Cat(lives=8)} {'pet': Dog(tricks=2)}",
        "['Cat', 'dict']",
        "['dict', 'Dog']",
    ], done.stderr


@IN_CONTEXT
async def test_an_encrypting_serializer_leaves_no_plaintext(new_store: NewStore) -> None:
    """With AES the graph works and no stored byte shows the secret, which is there without."""
    secret = "the treasure is under the oak"
    found = {}
    for name, serde in (("aes", EncryptedSerializer.from_pycryptodome_aes(key=b"k" * 16)), ("plain", None)):
        saver = AsyncSaver(store=new_store(), serde=serde)
        graph = at_once(x=asks("x"), a=says("a")).compile(checkpointer=saver)
        await turn(graph, secret)
        await graph.ainvoke(Command(resume=secret), config())
        assert await log(graph) == [secret, "a1", f"x:{secret}", "end3"]
        found[name] = stored_bytes(saver).count(secret.encode())
    assert found["aes"] == 0
    assert found["plain"] > (5 if new_store.kind == "memory" else 0)  # a file has once what is alike
