"""Compiled graphs, run by sync code: from plain worker threads, inside a running event loop, beside trio."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.types import Command

from async_saver import AsyncSaver
from tests.graphs import (
    Saver,
    add_one,
    alike_sync,
    answers,
    asks,
    at_once,
    config,
    delta,
    in_turn,
    linked,
    nested,
    outline,
    says,
)

DURABILITIES = pytest.mark.parametrize("durability", ["sync", "async", "exit"])

ONE_TURN = ["in", "a1", "b2"]


def turn(graph: Any, word: str, thread_id: str = "t", **options: Any) -> list[str]:
    """Run a graph of logs with one word as its input, and return its log."""
    values: list[str] = graph.invoke({"log": [word]}, config(thread_id), **options)["log"]
    return values


def log(graph: Any, thread_id: str = "t") -> list[str]:
    """The log of a conversation's latest checkpoint."""
    values: list[str] = graph.get_state(config(thread_id)).values["log"]
    return values


def history(graph: Any) -> list[dict[str, Any]]:
    """See `linked`."""
    return linked([*graph.get_state_history(config())])


@DURABILITIES
def test_turns_and_history_are_in_memory_savers(durability: str) -> None:
    """Two turns give its values, and its history: values, next, metadata, tasks."""

    def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)
        turns = [turn(graph, word, durability=durability) for word in ("in", "more")]
        return turns, log(graph), history(graph)

    turns, stored, every = alike_sync(program)
    assert turns == [ONE_TURN, [*ONE_TURN, "more", "a4", "b5"]]
    assert stored == every[0]["values"]["log"] == turns[1]
    assert [one["metadata"]["step"] for one in every] == ([6, 2] if durability == "exit" else [*range(6, -2, -1)])


@pytest.mark.parametrize("mode", ["values", "updates"])
def test_stream_gives_what_it_gives_on_in_memory_saver(mode: str) -> None:
    """The same items, in the same order."""

    def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)
        return list(graph.stream({"log": ["in"]}, config(), stream_mode=mode))

    items = alike_sync(program)
    if mode == "values":
        assert [item["log"] for item in items] == [["in"], ["in", "a1"], ONE_TURN]
    else:
        assert items == [{"a": {"log": ["a1"]}}, {"b": {"log": ["b2"]}}]


def test_both_branches_of_an_update_of_the_past_stay_right() -> None:
    """`update_state` on an old checkpoint forks: one history, two ends, each with its own values."""

    def program(saver: Saver) -> Any:
        graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)
        turn(graph, "in")
        first = graph.get_state(config()).config
        [past] = [snapshot.config for snapshot in graph.get_state_history(config()) if snapshot.next == ("b",)]
        graph.invoke(None, graph.update_state(past, {"log": ["fork"]}))
        return log(graph), graph.get_state(first).values, history(graph)

    latest, first, _ = alike_sync(program)
    assert latest == ["in", "a1", "fork", "b3"]
    assert first == {"log": ONE_TURN}


def test_interrupts_in_parallel_nodes() -> None:
    """All questions are kept, beside what a sibling has written; each node gets the answer to its own."""

    def program(saver: Saver) -> Any:
        graph = at_once(x=asks("x"), y=asks("y"), z=says("z")).compile(checkpointer=saver)
        turn(graph, "in")
        paused = graph.get_state(config())
        return outline(paused)["tasks"], graph.invoke(answers(paused), config()), history(graph)

    tasks, values, _ = alike_sync(program)
    assert [asked for _, _, _, asked in tasks] == [["x?"], ["y?"], []]
    assert values == {"log": ["in", "x:X", "y:Y", "z1", "end4"]}


def test_a_failed_run_is_resumed_where_it_failed() -> None:
    """The error is kept, and only the failed node runs again."""

    def program(saver: Saver) -> Any:
        calls: list[str] = []

        def step(name: str, fails: int = 0) -> Any:
            def node(_: Any) -> Any:
                calls.append(name)
                if calls.count(name) <= fails:
                    raise RuntimeError(name)
                return {"log": [name]}

            return node

        graph = in_turn(a=step("a"), b=step("b", fails=1)).compile(checkpointer=saver)
        with pytest.raises(RuntimeError, match="b"):
            turn(graph, "in")
        return history(graph)[0]["tasks"], graph.invoke(None, config()), calls

    tasks, values, calls = alike_sync(program)
    assert tasks == [("b", "RuntimeError('b')", None, [])]
    assert values == {"log": ["in", "a", "b"]}
    assert calls == ["a", "b", "b"]


@pytest.mark.parametrize("memory", [None, True])
def test_the_state_of_an_interrupted_subgraph(memory: bool | None) -> None:
    """`get_state(subgraphs=True)` shows it, and an answer reaches it."""

    def program(saver: Saver) -> Any:
        inner = in_turn(x=says("x"), ask=asks("ask")).compile(checkpointer=memory)
        graph = nested(inner).compile(checkpointer=saver)
        turn(graph, "in")
        [task] = graph.get_state(config(), subgraphs=True).tasks
        return outline(task.state), graph.invoke(Command(resume="yes"), config()), history(graph)

    child, values, _ = alike_sync(program)
    assert (child["values"], child["next"]) == ({"log": ["in", "before1", "x2"]}, ("ask",))
    assert values["log"] == ["in", "before1", "in", "before1", "x2", "ask:yes", "after6"]


@pytest.mark.parametrize("frequency", [1, 2, 100])
@DURABILITIES
def test_a_delta_channel_rebuilds_what_the_run_produced(frequency: int, durability: str) -> None:
    """Its value is the run's after each turn, at every checkpoint InMemorySaver's, and outlives `prune`."""

    def program(saver: Saver) -> Any:
        graph = delta(frequency).compile(checkpointer=saver)
        turns = [(turn(graph, f"in{n}", durability=durability), log(graph)) for n in range(3)]
        every = history(graph)
        if isinstance(saver, AsyncSaver):
            saver.prune(["t"], strategy="keep_latest")
        return turns, every, log(graph), turn(graph, "more", durability=durability)

    turns, every, latest, more = alike_sync(program)
    assert [produced for produced, _ in turns] == [stored for _, stored in turns]
    assert latest == turns[-1][0] == every[0]["values"]["log"]
    assert more == [*latest, "more", "a16", "b16", "c16", "end19"]


def test_invoke_inside_a_running_event_loop(saver: AsyncSaver) -> None:
    """It blocks the loop, and returns; an async run of the same graph goes on from what it stored."""
    graph = in_turn(a=says("a"), b=says("b")).compile(checkpointer=saver)

    async def main() -> tuple[list[str], list[str], Any]:
        return turn(graph, "in"), log(graph), await graph.ainvoke({"log": ["more"]}, config())

    assert asyncio.run(main()) == (ONE_TURN, ONE_TURN, {"log": [*ONE_TURN, "more", "a4", "b5"]})


def test_eight_worker_threads_at_once(saver: AsyncSaver) -> None:
    """Eight runs that are all under way at the same time each end in their own state."""
    barrier = threading.Barrier(8)

    def meet(_: Any) -> Any:
        barrier.wait(timeout=30)
        return {"log": ["met"]}

    graph = in_turn(meet=meet, b=says("b")).compile(checkpointer=saver)
    names = [f"conversation-{n}" for n in range(8)]
    with ThreadPoolExecutor(8) as workers:
        ends = list(workers.map(lambda name: turn(graph, name, name), names))
    assert ends == [[name, "met", "b2"] for name in names]
    assert [log(graph, name) for name in names] == ends


def test_a_graph_in_a_worker_thread_of_trio(saver: AsyncSaver) -> None:
    """The graph runs beside trio, and the saver is read and written on trio itself."""
    trio = pytest.importorskip("trio")
    graph = add_one().compile(checkpointer=saver)

    async def latest(thread_id: str) -> CheckpointTuple:
        found = await saver.aget_tuple(config(thread_id))
        assert found is not None
        return found

    async def main() -> None:
        assert await trio.to_thread.run_sync(graph.invoke, 1, config()) == 2
        assert (await latest("t")).checkpoint["channel_values"]["__root__"] == 2
        await saver.acopy_thread("t", "copy")
        async with trio.open_nursery() as nursery:
            for thread_id, number in (("t", 10), ("copy", 20)):
                nursery.start_soon(trio.to_thread.run_sync, graph.invoke, number, config(thread_id))
        ends = [(await latest(thread_id)).checkpoint["channel_values"]["__root__"] for thread_id in ("t", "copy")]
        assert ends == [11, 21]
        assert [one.metadata["step"] async for one in saver.alist(config("copy"))] == [4, 3, 2, 1, 0, -1]

    trio.run(main)
