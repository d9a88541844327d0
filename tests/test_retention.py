"""`Retention`: what goes, when, and what never does; and the figures. No test sleeps: the clock is the test's own."""

import asyncio
import copy
import gc
import logging
import random
import threading
import time
import tracemalloc
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from contextvars import Context
from datetime import timedelta
from functools import partial
from math import inf, nan
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint as yield_to_loop
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import MessagesState

from async_saver import (
    AsyncSaver,
    ConflictError,
    InvalidTypeError,
    InvalidValueError,
    MemoryStore,
    Retention,
    ThreadEvictedError,
    pace,
)
from async_saver.bridge import bridge
from async_saver.stores import memory
from examples.custom_store import FileStore
from tests import graphs
from tests.build import all_of, checkpoint, config, listed, put
from tests.graphs import delta, in_turn, says, turn
from tests.stores import NewStore, versions_of, writes_of
from tests.workers import together

on_loops = pytest.mark.anyio
on_asyncio = pytest.mark.asyncio


class Clock:
    """Shows the seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.5

    def __call__(self) -> float:
        return self.now


class Checked(MemoryStore):
    """Looks after every call that may change something whether counts, indexes and limits are right."""

    async def _checked(self, call: Awaitable[Any]) -> Any:
        result = await call
        self.check()
        return result

    async def get(self, *args: Any) -> Any:
        return await self._checked(super().get(*args))

    async def put(self, *args: Any) -> Any:
        return await self._checked(super().put(*args))

    async def put_writes(self, *args: Any) -> None:
        await self._checked(super().put_writes(*args))

    async def delete(self, *args: Any) -> None:
        await self._checked(super().delete(*args))

    async def delete_for_runs(self, *args: Any) -> None:
        await self._checked(super().delete_for_runs(*args))

    async def keep_latest(self, *args: Any) -> None:
        await self._checked(super().keep_latest(*args))

    async def copy(self, *args: Any) -> None:
        await self._checked(super().copy(*args))

    async def acquire(self, *args: Any, **options: Any) -> Any:
        return await self._checked(super().acquire(*args, **options))

    async def release(self, *args: Any, **options: Any) -> bool:
        return bool(await self._checked(super().release(*args, **options)))

    async def sweep(self) -> int:
        return int(await self._checked(super().sweep()))


@pytest.fixture
def clock() -> Clock:
    """The time."""
    return Clock()


def limited(clock: Callable[[], float] | None = None, **limits: Any) -> AsyncSaver:
    """A saver with limits, whose store is looked at after every call."""
    return AsyncSaver(store=Checked(), retention=Retention(clock=clock or Clock(), **limits))


def store_of(saver: AsyncSaver) -> MemoryStore:
    """The store of a saver."""
    store = saver._shared.store
    assert isinstance(store, MemoryStore)
    return store


def there(saver: AsyncSaver) -> list[str]:
    """The conversations that a saver holds, seen without using them."""
    return store_of(saver).peek(sorted)


async def marked(saver: AsyncSaver) -> int:
    """How many checkpoints runs stand on; those of dead tasks are collected first."""
    await yield_to_loop()  # the loop refers to the task that it has just waited for
    gc.collect()
    limits = store_of(saver)._limits
    assert limits is not None
    return len(limits._stood)


async def apart(what: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Await something in a task of its own, which knows nothing of what this one has read."""
    result: list[Any] = []

    async def run() -> None:
        result.append(await what(*args, **options))

    async with create_task_group() as tasks:
        Context().run(tasks.start_soon, run)
    return result[0]


# ttl.

TTLS: list[Any] = [10, 10.0, timedelta(seconds=10), lambda _: 10, lambda _: timedelta(seconds=10)]

READS: Mapping[str, Callable[[AsyncSaver], Awaitable[Any]]] = {
    "get": lambda saver: saver.aget_tuple(config()),
    "get by id": lambda saver: saver.aget_tuple(config(checkpoint_id="1")),
    "list": lambda saver: listed(saver, config()),
    "delta history": lambda saver: saver.aget_delta_channel_history(config=config(), channels=["x"]),
}

LOOKS: Mapping[str, Callable[[AsyncSaver], Awaitable[Any]]] = {
    **READS,
    "list all": lambda saver: listed(saver, None),
    "thread_ids": lambda saver: all_of(saver.athread_ids()),
    "count": lambda saver: saver.acount(),
    "sweep": lambda saver: saver.asweep(),
    "stats": lambda saver: saver.astats(),
}

WRITES: Mapping[str, Callable[[AsyncSaver], Awaitable[Any]]] = {
    "put": lambda saver: put(saver, "2", parent="1"),
    "put_writes": lambda saver: saver.aput_writes(config(checkpoint_id="1"), [("x", 1)], "task"),
}


@on_loops
@pytest.mark.parametrize("ttl", TTLS, ids=["int", "float", "timedelta", "callable", "callable of timedelta"])
async def test_a_conversation_goes_when_its_time_is_over_and_not_before(clock: Clock, ttl: Any) -> None:
    """At exactly `ttl` seconds without use it is there, and after more it is gone."""
    saver = limited(clock, ttl=ttl)
    await put(saver, "1", {"x": 1})
    clock.now += 10
    assert await saver.aget_tuple(config()) is not None
    clock.now += 10.25
    assert await saver.aget_tuple(config()) is None
    assert (await saver.astats()).evictions == {"ttl": 1, "max_threads": 0, "max_bytes": 0}


@on_loops
@pytest.mark.parametrize("late", [0.25, 0.75, 5, 1e6])
@pytest.mark.parametrize("name", LOOKS)
async def test_whoever_looks_finds_it_gone(clock: Clock, name: str, late: float) -> None:
    """However it is looked for, a moment or long after its time; with all its memory."""
    saver = limited(clock, ttl=10)
    empty = await saver.astats()
    await put(saver, "1", {"x": 1})
    await saver.aput_writes(config(checkpoint_id="1"), [("x", 2)], "task")
    clock.now += 10 + late
    found = await LOOKS[name](saver)
    if name in ("sweep", "stats"):
        assert found == (1 if name == "sweep" else empty._replace(evictions={**empty.evictions, "ttl": 1}))
    else:
        assert found in (None, [], 0, {"x": {"writes": []}})
    assert there(saver) == []
    assert (await saver.astats()).bytes == empty.bytes == 0


@on_loops
async def test_a_source_whose_time_is_over_is_not_copied(clock: Clock) -> None:
    """As one that is unknown."""
    saver = limited(clock, ttl=10)
    await put(saver, "1")
    clock.now += 11
    await saver.acopy_thread("t", "copy")
    assert there(saver) == []


@on_loops
async def test_a_target_whose_time_is_over_is_no_hindrance(clock: Clock) -> None:
    """A copy to it is made, and has its whole time before it."""
    saver = limited(clock, ttl=10)
    await put(saver, "1", thread_id="target")
    clock.now += 6
    await put(saver, "2")
    clock.now += 6
    await saver.acopy_thread("t", "target")
    clock.now += 9
    assert await listed(saver, config("target")) == ["2"]
    clock.now += 11
    assert await saver.acount() == 0


@on_loops
@pytest.mark.parametrize("ttl", [10, lambda _: 10], ids=["number", "callable"])
@pytest.mark.parametrize("kind", WRITES)
async def test_a_write_after_its_time_begins_it_anew(clock: Clock, ttl: Any, kind: str) -> None:
    """Nothing of before is there, and its time begins again."""
    saver = limited(clock, ttl=ttl)
    await put(saver, "1", {"x": "old"})
    await saver.aput_writes(config(checkpoint_id="1"), [("x", "old")], "old task")
    clock.now += 11
    await WRITES[kind](saver)
    assert await listed(saver, config()) == (["2"] if kind == "put" else [])
    assert "old task" not in repr(dict(saver.writes))
    clock.now += 10
    assert there(saver) == ["t"]
    assert await saver.acount() == 1
    clock.now += 1
    assert await saver.acount() == 0


@on_loops
@pytest.mark.parametrize("refresh", [True, False])
@pytest.mark.parametrize("name", READS)
async def test_reading_is_use_unless_it_is_said_not_to_be(clock: Clock, name: str, refresh: bool) -> None:
    """With `refresh_on_read=False` only writes count."""
    saver = limited(clock, ttl=10, refresh_on_read=refresh)
    await put(saver, "1", {"x": 1})
    clock.now += 6
    await READS[name](saver)
    clock.now += 6
    assert await saver.acount() == refresh
    clock.now += 5
    assert await saver.acount() == 0


@on_loops
@pytest.mark.parametrize("kind", WRITES)
async def test_a_write_is_always_use(clock: Clock, kind: str) -> None:
    """Also with `refresh_on_read=False`."""
    saver = limited(clock, ttl=10, refresh_on_read=False)
    await put(saver, "1")
    clock.now += 6
    await WRITES[kind](saver)
    clock.now += 10
    assert await saver.acount() == 1
    clock.now += 1
    assert await saver.acount() == 0


@on_loops
async def test_looking_for_another_conversation_is_no_use_of_this_one(clock: Clock) -> None:
    """Nor is counting, nor a list of all."""
    saver = limited(clock, ttl=10)
    for thread_id in ("a", "b"):
        await put(saver, "1", thread_id=thread_id)
    clock.now += 6
    await saver.aget_tuple(config("b"))
    await listed(saver, None)
    await saver.acount()
    await saver.astats()
    await all_of(saver.athread_ids())
    clock.now += 6
    assert await all_of(saver.athread_ids()) == ["b"]


@on_loops
async def test_the_callable_is_asked_once_for_each_conversation(clock: Clock) -> None:
    """When something of it is first stored: a checkpoint, or a write; and again when it begins anew."""
    asked: list[str] = []
    saver = limited(clock, ttl=lambda thread_id: asked.append(thread_id) or 10)
    await saver.aget_tuple(config("a"))
    assert asked == []
    await saver.aput_writes(config("a", "1"), [("x", 1)], "task")
    await put(saver, "1", thread_id="a")
    for number in range(2, 5):
        await put(saver, f"{number}", thread_id="b")
        await put(saver, f"{number}", thread_id="a")
        clock.now += 9
    assert asked == ["a", "b"]
    clock.now += 2
    await put(saver, "1", thread_id="a")
    assert asked == ["a", "b", "a"]


@on_loops
async def test_a_session_does_not_ask_the_callable(clock: Clock) -> None:
    """It stores nothing."""
    asked: list[str] = []
    saver = limited(clock, ttl=lambda thread_id: asked.append(thread_id) or 10)
    async with saver.session("t"):
        assert asked == []
        await put(saver, "1")
    assert asked == ["t"]


@on_loops
async def test_none_keeps_a_conversation_for_ever(clock: Clock) -> None:
    """Of a callable, for that one alone."""
    saver = limited(clock, ttl=lambda thread_id: None if thread_id == "kept" else 10)
    for thread_id in ("kept", "a"):
        await put(saver, "1", thread_id=thread_id)
    clock.now += 1e9
    assert await saver.asweep() == 1
    assert there(saver) == ["kept"]


@on_loops
async def test_a_copy_has_the_time_of_its_own_thread_id(clock: Clock) -> None:
    """The callable is asked for the target."""
    saver = limited(clock, ttl=lambda thread_id: {"t": 10, "copy": 20}[thread_id])
    await put(saver, "1")
    await saver.acopy_thread("t", "copy")
    clock.now += 15
    assert await all_of(saver.athread_ids()) == ["copy"]
    clock.now += 15
    assert await saver.acount() == 0


NONSENSE: list[Any] = [0, -1, nan, "10", True, [], timedelta(0)]


@on_loops
@pytest.mark.parametrize("returned", NONSENSE, ids=repr)
@pytest.mark.parametrize("kind", WRITES)
async def test_a_callable_that_returns_nonsense_is_an_error(clock: Clock, kind: str, returned: Any) -> None:
    """It names the conversation, nothing is stored, and what is stored elsewhere stays usable."""
    saver = limited(clock, ttl=lambda thread_id: returned if thread_id == "t" else 10)
    await put(saver, "1", thread_id="other")
    with pytest.raises((InvalidValueError, InvalidTypeError), match=r"ttl returned for thread_id 't'"):
        await WRITES[kind](saver)
    assert there(saver) == ["other"]
    await put(saver, "2", thread_id="other")


@on_loops
@pytest.mark.parametrize("kind", WRITES)
async def test_what_the_callable_raises_reaches_the_caller(clock: Clock, kind: str) -> None:
    """And nothing is stored."""
    saver = limited(clock, ttl={}.__getitem__)
    with pytest.raises(KeyError, match="t"):
        await WRITES[kind](saver)
    assert there(saver) == []
    assert await saver.acount() == 0


@on_loops
@pytest.mark.parametrize("jump", [-1e9, 1e9])
async def test_a_jump_of_the_time_of_day_evicts_nothing(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """The clock is monotonic unless another is given."""
    assert Retention().clock is time.monotonic
    saver = AsyncSaver(store=Checked(), retention=Retention(ttl=3600))
    await put(saver, "1")
    at = time.time()
    monkeypatch.setattr(time, "time", lambda: at + jump)
    assert await saver.asweep() == 0
    await put(saver, "1", thread_id="other")
    assert await listed(saver, config()) == ["1"]
    assert await saver.acount() == 2


@on_loops
@pytest.mark.parametrize("late", [0.25, 2, 30])
async def test_what_was_used_since_does_not_hide_what_was_not(clock: Clock, late: float) -> None:
    """Of many that were stored in one second those go that went unused, in one sweep, and at once for who counts."""
    saver = limited(clock, ttl=10)
    for number in range(60):
        await put(saver, "1", thread_id=f"{number:02}")
    clock.now += 5
    for number in range(0, 60, 3):
        await saver.aget_tuple(config(f"{number:02}"))
    for number in range(20):
        await saver.aget_tuple(config(f"{number:02}"))
    clock.now += 5 + late
    left = [] if late > 5 else [f"{number:02}" for number in range(60) if number < 20 or number % 3 == 0]
    assert await saver.acount() == len(left)
    assert there(saver) == left


@on_loops
async def test_what_goes_unused_goes_as_others_write(clock: Clock) -> None:
    """With no sweep and no look at it: a server that writes does not grow."""
    saver = limited(clock, ttl=10)
    for number in range(200):
        await put(saver, "1", thread_id=f"{number}")
        clock.now += 0.5
        assert len(there(saver)) <= 24


# max_threads.


@on_loops
async def test_the_least_recently_used_conversation_goes_first(clock: Clock) -> None:
    """Checkpoints, writes and reads are use."""
    saver = limited(clock, max_threads=4)
    for thread_id in "abcd":
        await put(saver, "1", thread_id=thread_id)
    await saver.aget_tuple(config("a"))
    await saver.aput_writes(config("b", "1"), [("x", 1)], "task")
    await listed(saver, config("c"))
    await put(saver, "1", thread_id="e")
    assert there(saver) == ["a", "b", "c", "e"]
    await put(saver, "1", thread_id="f")
    assert there(saver) == ["b", "c", "e", "f"]
    assert (await saver.astats()).evictions == {"ttl": 0, "max_threads": 2, "max_bytes": 0}


@on_loops
async def test_where_reading_is_no_use_the_least_recently_written_goes_first(clock: Clock) -> None:
    """With `refresh_on_read=False`."""
    saver = limited(clock, max_threads=2, refresh_on_read=False)
    for thread_id in "ab":
        await put(saver, "1", thread_id=thread_id)
    await saver.aget_tuple(config("a"))
    await put(saver, "1", thread_id="c")
    assert there(saver) == ["b", "c"]


@on_loops
@pytest.mark.parametrize("kind", WRITES)
async def test_there_are_never_more_than_max_threads(kind: str) -> None:
    """After each write; the one that is written to is always there."""
    saver = limited(max_threads=3)
    for number in range(20):
        if kind == "put":
            await put(saver, "1", thread_id=f"{number:02}")
        else:
            await saver.aput_writes(config(f"{number:02}", "1"), [("x", 1)], "task")
        assert there(saver) == [f"{one:02}" for one in range(max(0, number - 2), number + 1)]
    assert (await saver.astats()).evictions["max_threads"] == 17


@on_loops
async def test_a_copy_is_a_write_that_keeps_to_the_limits() -> None:
    """The copy stays, as the one that is written to."""
    saver = limited(max_threads=3)
    await put(saver, "1", thread_id="source")
    for number in range(6):
        await saver.acopy_thread("source", f"{number}")
        assert len(there(saver)) <= 3
        assert f"{number}" in there(saver)


@on_loops
async def test_one_conversation_is_enough() -> None:
    """`max_threads=1` keeps the one that is written to."""
    saver = limited(max_threads=1)
    for number in range(6):
        await put(saver, "1", thread_id="ab"[number % 2])
        assert there(saver) == ["ab"[number % 2]]
    assert (await saver.astats()).overruns == 0


# max_bytes.


@on_loops
async def test_there_are_never_more_than_max_bytes() -> None:
    """After each put, of conversations of any size; the one that is written to is there, and the others newest last."""
    draw = random.Random(1)
    saver = limited(max_bytes=50_000)
    for number in range(60):
        await put(saver, "1", {"x": draw.randbytes(draw.randrange(6000))}, thread_id=f"{number:02}")
        assert (await saver.astats()).bytes <= 50_000  # type: ignore[operator]
        assert there(saver) == [f"{one:02}" for one in range(number - len(there(saver)) + 1, number + 1)]
    assert len(there(saver)) > 5
    assert (await saver.astats()).overruns == 0


@on_loops
async def test_a_limit_smaller_than_one_checkpoint_is_overrun() -> None:
    """The put goes through, what else there is goes, and it is counted."""
    saver = limited(max_bytes=1)
    for number in range(3):
        await put(saver, "1", thread_id=f"{number}")
        assert there(saver) == [f"{number}"]
    stats = await saver.astats()
    assert stats.overruns == 3
    assert stats.evictions["max_bytes"] == 2


@on_loops
async def test_writes_keep_to_max_bytes_too() -> None:
    """Those that come after a checkpoint, and before it."""
    saver = limited(max_bytes=20_000)
    for number in range(8):
        await saver.aput_writes(config(f"{number}", "1"), [("x", random.Random(number).randbytes(5000))], "task")
        assert (await saver.astats()).bytes <= 20_000  # type: ignore[operator]
        assert f"{number}" in there(saver)


def a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every loop of the saver yield as often as it can."""
    monkeypatch.setattr(memory, "_LOOKS", 2)
    monkeypatch.setattr(pace, "_SLICE", -1)
    monkeypatch.setattr(pace, "_pace", pace._Pace())


@on_loops
async def test_one_large_put_evicts_many_small_ones_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So others have their turns meanwhile; when it returns, the limit is kept."""
    a_few_at_a_time(monkeypatch)
    saver = limited(max_bytes=400_000)
    for number in range(100):
        await put(saver, "1", thread_id=f"{number:03}")
    seen: list[int] = []

    async def watch() -> None:
        while not seen or seen[-1] > 40:
            seen.append(len(there(saver)))
            await yield_to_loop()

    async with create_task_group() as tasks:
        tasks.start_soon(watch)
        await yield_to_loop()
        await put(saver, "1", {"x": b"x" * 370_000}, thread_id="large")
        tasks.cancel_scope.cancel()
    assert (await saver.astats()).bytes <= 400_000  # type: ignore[operator]
    assert there(saver)[-1] == "large"
    assert len({*seen}) > 5, "the others had no turn"


@on_loops
@pytest.mark.parametrize("turns", range(1, 6))
async def test_a_put_that_is_cancelled_while_it_evicts_is_stored(monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    """And the next one goes on where it ended."""
    a_few_at_a_time(monkeypatch)
    saver = limited(max_bytes=200_000)
    for number in range(50):
        await put(saver, "1", thread_id=f"{number:02}")

    async def large(scope: CancelScope) -> None:
        with scope:
            await put(saver, "1", {"x": b"x" * 180_000}, thread_id="large")

    async with create_task_group() as tasks:
        scope = CancelScope()
        tasks.start_soon(large, scope)
        while "large" not in there(saver):
            await yield_to_loop()
        for _ in range(turns):
            await yield_to_loop()
        scope.cancel()
    store_of(saver).check()
    assert (await saver.astats()).bytes > 200_000, "it was done already"  # type: ignore[operator]
    assert await listed(saver, config("large")) == ["1"]
    await put(saver, "1", thread_id="next")
    assert (await saver.astats()).bytes <= 200_000  # type: ignore[operator]
    assert {"large", "next"} <= {*there(saver)}


# What the figure of bytes says.


async def _small_states(saver: AsyncSaver, number: int, steps: int) -> None:
    for thread in range(number):
        where: Any = config(f"thread-{thread}")
        version = None
        for step in range(steps):
            made = checkpoint(str(uuid6(clock_seq=step)), {"n": step})
            version = saver.get_next_version(version, None)
            made["channel_versions"] = {"n": version}
            where = await saver.aput(where, made, {"source": "loop", "step": step, "parents": {}}, {"n": version})


async def _pending_writes(saver: AsyncSaver, number: int, steps: int) -> None:
    for thread in range(number):
        where = config(f"thread-{thread}", str(uuid6()))
        for step in range(steps):
            await saver.aput_writes(where, [("a", step), ("b", step)], f"task-{thread}-{step}")


async def _chats(saver: AsyncSaver, number: int, turns: int) -> None:
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"answer {len(state['messages'])} " + "word " * 40)]}

    graph = in_turn(state=MessagesState, answer=answer).compile(checkpointer=saver)
    for thread in range(number):
        for step in range(turns):
            question = HumanMessage(f"question {step} " + "what " * 20)
            await graph.ainvoke({"messages": [question]}, graphs.config(f"thread-{thread}"))


STATES = pytest.mark.parametrize(
    ("store_some", "number", "steps"),
    [(_small_states, 200, 1), (_small_states, 50, 6), (_pending_writes, 120, 2), (_chats, 10, 6)],
    ids=["one step", "small states", "writes", "chats"],
)
LIMITS: dict[str, int] = {"ttl": 3600, "max_threads": 10**6, "max_bytes": 10**10, "keep_last": 50}


@on_asyncio
@pytest.mark.parametrize("limits", [None, LIMITS], ids=["no limits", "limits"])
@STATES
async def test_bytes_are_what_python_allocates(
    store_some: Callable[[AsyncSaver, int, int], Awaitable[None]],
    number: int,
    steps: int,
    limits: dict[str, int] | None,
) -> None:
    """Within 20 % of what tracemalloc sees the saver grow by."""
    saver = AsyncSaver(retention=None if limits is None else Retention(**limits))  # type: ignore[arg-type]
    await store_some(AsyncSaver(), 2, steps)  # what is made at the first time, and stays
    await store_some(saver, 1, 1)
    await saver.adelete_thread("thread-0")
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await store_some(saver, number, steps)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    store_of(saver).check()
    held = (await saver.astats()).bytes
    assert held is not None
    assert 0.8 <= held / grown <= 1.2, f"{held / grown:.3f}"


# keep_last.


def long(seed: int, size: int = 4000) -> str:
    """A text that is long enough to be shared, and like no other one."""
    return random.Random(seed).randbytes(size // 2).hex()


async def values_of(saver: AsyncSaver, ns: str = "", thread_id: str = "t") -> dict[str, Any]:
    """The values at each checkpoint of a namespace, the oldest first."""
    found = await all_of(saver.alist(config(thread_id, ns=ns)))
    return {one.checkpoint["id"]: one.checkpoint["channel_values"] for one in reversed(found)}


@on_loops
@pytest.mark.parametrize("keep", [1, 2, 5, 40])
async def test_so_many_checkpoints_are_kept_after_each_put(keep: int) -> None:
    """The newest, with their values, and no other."""
    saver = limited(keep_last=keep)
    for number in range(60 if keep > 5 else 15):
        await put(saver, f"{number:02}", {"x": number}, parent=f"{number - 1:02}" if number else None)
        expected = {f"{one:02}": {"x": one} for one in range(max(0, number - keep + 1), number + 1)}
        assert await values_of(saver) == expected
    stats = await saver.astats()
    assert stats.checkpoints == keep
    assert stats.pruned == number + 1 - keep


@on_loops
async def test_each_namespace_of_each_conversation_keeps_its_own() -> None:
    """A put to one leaves the others alone."""
    saver = limited(keep_last=2)
    places = [("a", ""), ("a", "child:1"), ("b", "")]
    for number in range(5):
        for thread_id, ns in places[: 3 if number < 3 else 1]:
            await put(saver, f"{number}", {"x": number}, thread_id=thread_id, ns=ns)
    assert [await listed(saver, config(*place[:1], ns=place[1])) for place in places] == [
        ["4", "3"],
        ["2", "1"],
        ["2", "1"],
    ]


@on_loops
async def test_values_writes_and_runs_go_with_their_checkpoints() -> None:
    """Nothing of what went is left in any view or index, and its bytes are free."""
    saver, one = limited(keep_last=2), limited()
    for number in range(12):
        parent = f"{number - 1:02}" if number else None
        for each in (saver, one) if number >= 10 else (saver,):
            values = {"x": number, "y": long(number)}
            await put(each, f"{number:02}", values, parent=parent, run_id=f"run {number}")
            await each.aput_writes(config(checkpoint_id=f"{number:02}", run_id=f"run {number}"), [("x", 1)], "task")
    assert saver.storage == one.storage
    assert saver.writes == one.writes
    assert saver.blobs == one.blobs
    assert {*store_of(saver)._runs} == {"run 10", "run 11"}
    stats, alone = await saver.astats(), await one.astats()
    assert (stats.checkpoints, stats.writes, stats.bytes) == (2, 2, alone.bytes)
    await saver.adelete_for_runs(["run 3", "run 10"])
    assert await listed(saver, config()) == ["11"]


@on_loops
async def test_a_value_stays_that_a_newer_checkpoint_uses() -> None:
    """It was stored with one that is long gone, and goes with the last one that names it."""
    saver = limited(keep_last=2)
    for number in range(6):
        made = checkpoint(f"{number}", {"kept": "value", "x": number})
        made["channel_versions"] = {"kept": "1", "x": f"{number}"}
        new = made["channel_versions"] if number == 0 else {"x": f"{number}"}
        await saver.aput(config(checkpoint_id=f"{number - 1}" if number else None), made, {"step": number}, new)
    assert await values_of(saver) == {f"{one}": {"kept": "value", "x": one} for one in (4, 5)}
    assert {key[2:] for key in saver.blobs} == {("kept", "1"), ("x", "4"), ("x", "5")}
    for number in (6, 7):
        await put(saver, f"{number}", {"x": number})
    assert {key[2:] for key in saver.blobs} == {("x", "6"), ("x", "7")}


@on_loops
async def test_branches_share_what_they_have_in_common() -> None:
    """Of a fork, what one branch drops stays readable for the other."""
    saver = limited(keep_last=3)
    base = long(1)
    await put(saver, "1", {"x": base})
    for number, parent in ((2, 1), (3, 1), (4, 2), (5, 3)):
        made = checkpoint(f"{number}", {"x": base, "y": f"{number}"})
        made["channel_versions"] = {"x": "1", "y": f"{number}"}
        await saver.aput(config(checkpoint_id=f"{parent}"), made, {}, {"y": f"{number}"})
    assert await values_of(saver) == {f"{one}": {"x": base, "y": f"{one}"} for one in (3, 4, 5)}


@on_loops
async def test_a_checkpoint_that_is_put_again_counts_once() -> None:
    """Its new values are read, and go with it; the former ones, which no checkpoint names, with the conversation."""
    saver = limited(keep_last=2)
    for number, version in (("1", "a"), ("1", "b"), ("2", "a"), ("1", "c"), ("2", "b"), ("2", "c")):
        await put(saver, number, {"x": f"{number}{version}"}, version=f"{number}{version}")
    assert await values_of(saver) == {"1": {"x": "1c"}, "2": {"x": "2c"}}
    for number in ("3", "4", "5", "6"):
        await put(saver, number, {"x": number})
    assert await values_of(saver) == {"5": {"x": "5"}, "6": {"x": "6"}}
    assert {"5", "6"} <= {key[3] for key in saver.blobs} <= {"5", "6", "1a", "1b", "2a", "2b"}
    await saver.adelete_thread("t")
    assert not saver.blobs


@on_loops
async def test_the_newest_are_those_of_the_greatest_ids() -> None:
    """In whatever order they come: one that comes too late is dropped at once."""
    saver = limited(keep_last=3)
    order = [*range(12)]
    random.Random(3).shuffle(order)
    for place, number in enumerate(order):
        await put(saver, f"{number:02}", {"x": number})
        newest = sorted(order[: place + 1])[-3:]
        assert await values_of(saver) == {f"{one:02}": {"x": one} for one in newest}
    assert {key[3] for key in saver.blobs} == {"09", "10", "11"}


@on_loops
async def test_late_writes_of_a_dropped_checkpoint_leave_nothing() -> None:
    """While those for one that is still to come are kept for it."""
    saver = limited(keep_last=2)
    for number in range(5):
        await put(saver, f"{number}")
    for number in range(3):
        await saver.aput_writes(config(checkpoint_id=f"{number}"), [("x", 1)], "task")
    assert dict(saver.writes) == {}
    await saver.aput_writes(config(checkpoint_id="5"), [("x", 1)], "task")
    await put(saver, "5")
    assert {key[2] for key in saver.writes} == {"5"}
    assert (await saver.astats()).writes == 1


@on_loops
async def test_late_writes_leave_nothing_where_an_older_checkpoint_is_stood_on() -> None:
    """What was dropped between that and the newest is gone all the same, at the latest with what was stood on."""
    saver = limited(keep_last=2)
    await put(saver, "1")

    async def stand(*, task_status: Any) -> None:
        await saver.aget_tuple(config(checkpoint_id="1"))
        task_status.started()
        await anyio.sleep_forever()

    async with create_task_group() as tasks:
        await tasks.start(stand)
        for number in range(2, 8):
            await apart(put, saver, f"{number}")
        assert await apart(listed, saver, config()) == ["7", "6", "1"]
        await apart(saver.aput_writes, config(checkpoint_id="4"), [("x", 1)], "task")
        tasks.cancel_scope.cancel()
    assert await marked(saver) == 0
    for number in (8, 9):
        await apart(put, saver, f"{number}")
    assert await listed(saver, config()) == ["9", "8"]
    assert dict(saver.writes) == {}


@on_loops
@pytest.mark.parametrize("keep", [1, 2, 9])
async def test_long_values_read_back_right_while_older_ones_go(keep: int) -> None:
    """Those that share bytes with what goes: older and newer versions, other channels, and writes."""
    saver = limited(keep_last=keep)
    text = long(0)
    expected: dict[str, Any] = {}
    for number in range(24):
        text += long(number + 1, 200)
        name = f"{number:02}"
        values = {"x": text, "y": text + "y", "z": long(number, 1200)}
        await put(saver, name, values, parent=f"{number - 1:02}" if number else None)
        await saver.aput_writes(config(checkpoint_id=name), [("w", text + "!"), ("v", values["z"])], "task")
        expected[name] = (values, [("task", "w", text + "!"), ("task", "v", values["z"])])
        found = await all_of(saver.alist(config()))
        assert {one.checkpoint["id"]: (one.checkpoint["channel_values"], one.pending_writes) for one in found} == {
            name: expected[name] for name in sorted(expected)[-keep:]
        }


@on_loops
async def test_a_write_stays_that_is_like_a_value_that_goes() -> None:
    """A write for a checkpoint that stays reads back right when what it shares bytes with is gone."""
    saver = limited(keep_last=2)
    text = long(1)
    await put(saver, "1", {"x": text})
    await put(saver, "2", {"n": 2}, parent="1")
    await saver.aput_writes(config(checkpoint_id="2"), [("w", text + "!")], "task")
    await put(saver, "3", {"n": 3}, parent="2")
    found = await saver.aget_tuple(config(checkpoint_id="2"))
    assert found is not None
    assert found.pending_writes == [("task", "w", text + "!")]


_texts = [long(number, 3000 + 40 * number) for number in range(3)]
_texts += [_texts[0] + _texts[1][:300], _texts[1][:2000] + _texts[2][:500], "a", "b", "c", "d", "e"]
_story = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "put", "write", "write", "prune", "delete", "runs", "session"]),
        st.sampled_from("ab"),
        st.sampled_from(["", "child"]),
        st.integers(0, 11),
        st.integers(0, len(_texts) - 1),
        st.booleans(),
    ),
    min_size=8,
    max_size=40,
)


class Kept:
    """What should be held, of one conversation's namespace: everything that was put, of which the newest are shown."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.all: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}  # values, versions
        self.writes: dict[str, list[tuple[str, str, Any]]] = {}

    def newest(self, number: int) -> None:
        """Drop all but so many."""
        for checkpoint_id in sorted(self.all)[:-number]:
            del self.all[checkpoint_id]
            self.writes.pop(checkpoint_id, None)

    def shown(self) -> dict[str, Any]:
        """What is listed."""
        return {name: (values, self.writes.get(name, [])) for name, (values, _) in sorted(self.all.items())}


async def _live(keep: int, story: list[tuple[str, str, str, int, int, bool]]) -> None:
    saver = limited(keep_last=keep)
    kept = {(thread_id, ns): Kept(keep) for thread_id in "ab" for ns in ("", "child")}
    for count, (kind, thread_id, ns, number, text, flag) in enumerate(story):
        one, name = kept[thread_id, ns], f"{number:02}"
        run_id = f"run {number % 3}"
        if kind in ("put", "session"):
            made = checkpoint(name, {"x": _texts[text], "n": count}, f"{count}")
            parent = max((known for known in one.all if known < name), default=None) if flag else None
            new = dict(made["channel_versions"])
            if parent is not None and text % 2 and "x" in one.all[parent][1]:
                made["channel_versions"]["x"] = one.all[parent][1]["x"]
                made["channel_values"]["x"] = one.all[parent][0]["x"]
                del new["x"]
            where = config(thread_id, parent, ns, run_id=run_id)
            if kind == "session":
                async with saver.session(thread_id):
                    await saver.aput(where, made, {"step": 1}, new)
            else:
                await saver.aput(where, made, {"step": 1}, new)
            one.all[name] = (made["channel_values"], dict(made["channel_versions"]))
            for each in kept.values():
                each.newest(keep)
            if name not in one.all:
                one.writes.pop(name, None)
        elif kind == "write" and name in one.all:
            await saver.aput_writes(config(thread_id, name, ns, run_id=run_id), [("w", _texts[text])], f"{count:03}")
            one.writes.setdefault(name, []).append((f"{count:03}", "w", _texts[text]))
        elif kind == "prune":
            await saver.aprune([thread_id])
            for (thread, _), each in kept.items():
                if thread == thread_id:
                    each.newest(1)
        elif kind == "delete" and number == 0:
            await saver.adelete_thread(thread_id)
            for thread, space in kept:
                if thread == thread_id:
                    kept[thread, space] = Kept(keep)
        elif kind == "runs" and number < 3:
            await saver.adelete_for_runs([run_id])
            for each in kept.values():
                for gone in [known for known in each.all if int(known) % 3 == number]:
                    del each.all[gone]
                    each.writes.pop(gone, None)
        shown: dict[tuple[str, str], Any] = {place: {} for place in kept}
        async for found in saver.alist(None):
            place = (found.config["configurable"]["thread_id"], found.config["configurable"]["checkpoint_ns"])
            shown[place][found.checkpoint["id"]] = (found.checkpoint["channel_values"], found.pending_writes)
        assert shown == {place: each.shown() for place, each in kept.items()}
    store_of(saver).check()


# Without shrinking, which takes minutes here.
@settings(max_examples=80, phases=[Phase.generate])
@given(st.integers(1, 4), _story, st.booleans())
def test_what_is_kept_is_the_newest_of_everything(
    keep: int, story: list[tuple[str, str, str, int, int, bool]], short: bool
) -> None:
    """Whatever is put, written, pruned and deleted, in whatever order: values and writes are those of a plain model."""
    if short:  # all values, as there are other ways where none is long
        story = [(*one[:4], 5 + one[4] % 4, one[5]) for one in story]
    asyncio.run(_live(keep, story))


@on_loops
@pytest.mark.parametrize("keep", [1, 2, 3])
async def test_a_run_that_goes_on_stays_in_the_index(keep: int) -> None:
    """As its oldest checkpoint goes in the step that stores its newest, and until its last has gone."""
    saver, parent = limited(keep_last=keep), None
    for number in range(9):
        run = f"run {number // 3}"
        await put(saver, f"{number}", {"x": number}, parent=parent, run_id=run)
        await saver.aput_writes(config(checkpoint_id=f"{number}", run_id=run), [("x", number)], "task")
        parent = f"{number}"
        runs = {f"run {one // 3}" for one in range(max(number - keep + 1, 0), number + 1)}
        assert {*store_of(saver)._runs} == runs


# keep_last and DeltaChannels.


@on_asyncio
@pytest.mark.parametrize("frequency", [1, 2, 5, 100])
@pytest.mark.parametrize("keep", [1, 3])
async def test_values_that_are_rebuilt_stay_whole(frequency: int, keep: int) -> None:
    """Turn after turn the latest of a graph of `DeltaChannel`s is what it is without limits, and so are all listed."""
    plain, saver = AsyncSaver(), limited(keep_last=keep)
    theirs, ours = (delta(frequency).compile(checkpointer=one) for one in (plain, saver))
    for word in range(8):
        expected = await turn(theirs, f"in{word}")
        assert await turn(ours, f"in{word}") == expected
        assert await graphs.log(ours) == await graphs.log(theirs)
    whole = await graphs.logs(theirs)
    listed_logs = await graphs.logs(ours)
    assert listed_logs[:keep] == whole[:keep]
    assert all(one in whole for one in listed_logs)


@on_asyncio
async def test_conversations_of_rebuilt_values_stay_short() -> None:
    """Twice as many, with the ancestors that the kept ones need, and no more; in a hundred turns."""
    saver = limited(keep_last=4)
    most = 0
    for number in range(150):
        made = checkpoint(f"{number:03}", channel_versions={"d": f"{number:03}"})
        new = {}
        if number % 10 == 0:
            made["channel_values"] = {"d": _DeltaSnapshot([f"{number}"])}
            new = {"d": f"{number:03}"}
        metadata: Any = {"counters_since_delta_snapshot": {"d": (1, 1)}}
        await saver.aput(config(checkpoint_id=f"{number - 1:03}" if number else None), made, metadata, new)
        await saver.aput_writes(config(checkpoint_id=f"{number:03}"), [("d", number)], "task")
        namespace = store_of(saver).peek(lambda buckets: len(buckets["t"].namespaces[""].checkpoints))
        most = max(most, namespace)
        if number % 10 != 0:
            history = await saver.aget_delta_channel_history(config=config(), channels=["d"])
            seed = number // 10 * 10
            assert history["d"]["writes"] == [("task", "d", one) for one in range(seed, number)]
            assert "seed" in history["d"]
    assert most <= 2 * (4 + 10)
    await saver.asweep()
    assert len(await listed(saver, config())) >= 4


# keep_last and runs that are under way.


class Two(graphs.Log):
    """A log, and what each run is given and keeps."""

    given: str


class Blocked:
    """A graph of three nodes, in the midst of which those runs wait that were given "slow"."""

    def __init__(self, saver: AsyncSaver, wait: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.inside, self.go_on = asyncio.Event(), asyncio.Event()
        self.saver = saver

        async def middle(state: Two) -> dict[str, Any]:
            if state["given"] == "slow":
                if wait is not None:
                    await wait()
                self.inside.set()
                await self.go_on.wait()
            return {"log": [f"middle:{state['given']}"]}

        async def last(state: Two) -> dict[str, Any]:
            return {"log": [f"last:{state['given']}"]}

        builder = in_turn(state=Two, first=says("first"), middle=middle, last=last)
        self.graph = builder.compile(checkpointer=saver)

    async def run(self, given: str, of: Any = None, **options: Any) -> Any:
        """Run it in a task of its own."""
        inputs = {"log": ["in"], "given": given}
        return await asyncio.create_task(self.graph.ainvoke(inputs, of or graphs.config(), **options))

    async def overtaken(self, of: Any = None, times: int = 2, **options: Any) -> Any:
        """Run it slowly while other runs store more, and return what came out, and what is stored in the end."""
        slow = asyncio.create_task(self.run("slow", of, **options))
        begun = asyncio.create_task(self.inside.wait())
        await asyncio.wait([slow, begun], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        for _ in range(times):
            await self.run("fast")
            store_of(self.saver).check()
        self.go_on.set()
        result = await slow
        snapshot = await asyncio.create_task(self.graph.aget_state(graphs.config()))
        store_of(self.saver).check()
        return result, snapshot.values


SLOW = {"given": "slow", "log": ["in", "first1", "middle:slow", "last:slow"]}


@on_asyncio
@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_goes_on_that_others_overtake(durability: str, keep: int) -> None:
    """They store more than `keep_last` meanwhile; its result and what it stores are whole, and nothing stays marked."""
    blocked = Blocked(limited(keep_last=keep))
    assert await blocked.overtaken(durability=durability) == (SLOW, SLOW)
    assert await marked(blocked.saver) == 0
    assert len(await listed(blocked.saver, config())) <= keep + 1
    await blocked.run("fast")
    assert len(await listed(blocked.saver, config())) == keep


@on_asyncio
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_turn_goes_on_that_others_overtake(durability: str) -> None:
    """A run that began from what the turn before had stored, whose values nobody else uses any more."""
    blocked = Blocked(limited(keep_last=1))
    await blocked.run("zero")
    before = ["in", "first1", "middle:zero", "last:zero"]
    log = [*before, "in", "first5", "middle:slow", "last:slow"]
    assert await blocked.overtaken(durability=durability) == ({"given": "slow", "log": log},) * 2
    assert await marked(blocked.saver) == 0


@on_asyncio
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_time_travel_goes_on_that_others_overtake(durability: str) -> None:
    """A run from the oldest checkpoint that is kept, which is the next to go."""
    blocked = Blocked(limited(keep_last=4))
    await blocked.run("zero")
    history = [one async for one in blocked.graph.aget_state_history(graphs.config())]
    oldest = history[-1]
    log = [*oldest.values["log"], "in", f"first{len(oldest.values['log']) + 1}", "middle:slow", "last:slow"]
    result, stored = await blocked.overtaken(oldest.config, times=3, durability=durability)
    assert result == stored == {"given": "slow", "log": log}


@on_asyncio
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("frequency", [2, 100])
async def test_a_run_of_rebuilt_values_goes_on_that_others_overtake(durability: str, frequency: int) -> None:
    """With the ancestors that it needs."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def wait(state: Any) -> dict[str, Any]:
        if "slow" in state["log"] and not inside.is_set():
            inside.set()
            await go_on.wait()
        return {"log": ["waited"]}

    saver = limited(keep_last=1)
    builder = in_turn(state=graphs.delta_state(frequency), a=says("a"), wait=wait, b=says("b"))
    graph = builder.compile(checkpointer=saver)
    await turn(graph, "zero")
    slow = asyncio.create_task(turn(graph, "slow", durability=durability))
    await inside.wait()
    for word in ("one", "two", "three"):
        await asyncio.create_task(turn(graph, word))
    go_on.set()
    log = ["zero", "a1", "waited", "b3", "slow", "a5", "waited", "b7"]
    assert (await slow)["log"] == log
    assert await asyncio.create_task(graphs.log(graph)) == log
    store_of(saver).check()


@on_asyncio
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("reads", ["state", "history", "list", "get"])
async def test_a_run_whose_nodes_read_other_conversations_goes_on(reads: str, durability: str) -> None:
    """What a node reads of another one does not take away what its own run stands on."""
    saver = limited(keep_last=1)

    async def wait() -> None:
        where = graphs.config("other")
        if reads == "state":
            await blocked.graph.aget_state(where)
        elif reads == "history":
            assert [one async for one in blocked.graph.aget_state_history(where)]
        elif reads == "list":
            assert await listed(saver, where)
        else:
            assert await saver.aget_tuple(where) is not None

    blocked = Blocked(saver, wait)
    await blocked.run("other", graphs.config("other"))
    await blocked.run("zero")
    result, stored = await blocked.overtaken(durability=durability)
    assert result == stored
    assert result["log"][-2:] == ["middle:slow", "last:slow"]


@on_asyncio
@pytest.mark.parametrize(
    "durability",
    ["sync", "async", "exit"],
)
async def test_a_run_whose_consumer_reads_another_conversation_goes_on(durability: str) -> None:
    """LangGraph's streams run in the context of whoever reads from them, who may look at other things meanwhile."""
    saver = limited(keep_last=1)
    blocked = Blocked(saver)
    blocked.go_on.set()
    await blocked.run("other", graphs.config("other"))
    await blocked.run("zero")

    async def consume() -> None:
        inputs = {"log": ["in"], "given": "slow"}
        async for chunk in blocked.graph.astream(inputs, graphs.config(), stream_mode="values", durability=durability):
            await blocked.graph.aget_state(graphs.config("other"))
            if chunk["log"][-1] != "last:slow":
                await blocked.run("fast")

    await asyncio.create_task(consume())
    snapshot = await asyncio.create_task(blocked.graph.aget_state(graphs.config()))
    assert snapshot.values["given"] == "slow"
    assert snapshot.values["log"][-2:] == ["middle:slow", "last:slow"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_sync_run_goes_on_that_others_overtake(durability: Any) -> None:
    """In worker threads of their own."""
    saver = limited(keep_last=1)
    inside, go_on = threading.Event(), threading.Event()

    def middle(state: Two) -> dict[str, Any]:
        if state["given"] == "slow":
            inside.set()
            assert go_on.wait(30)
        return {"log": ["middle"]}

    graph = in_turn(state=Two, first=says("first"), middle=middle, last=says("last")).compile(checkpointer=saver)

    def run(given: str) -> Any:
        return graph.invoke({"log": ["in"], "given": given}, graphs.config(), durability=durability)

    def overtake() -> None:
        assert inside.wait(30)
        for _ in range(2):
            run("fast")
        go_on.set()

    run("zero")
    result, _ = together(partial(run, "slow"), overtake)
    assert result["given"] == "slow"
    assert len(result["log"]) == 8
    stored = together(partial(graph.get_state, graphs.config()))[0]
    assert stored.values == result
    store_of(saver).check()


@on_loops
async def test_what_a_finished_task_stood_on_goes() -> None:
    """With the next put; nothing has to be ended."""
    saver = limited(keep_last=1)
    await put(saver, "1")

    async def stand(*, task_status: Any) -> None:
        await saver.aget_tuple(config())
        task_status.started()
        await anyio.sleep_forever()

    async with create_task_group() as tasks:
        await tasks.start(stand)
        for number in (2, 3):
            await apart(put, saver, f"{number}")
        assert await apart(listed, saver, config()) == ["3", "1"]
        assert await marked(saver) == 1
        tasks.cancel_scope.cancel()
    assert await marked(saver) == 0
    await apart(put, saver, "4")
    assert await listed(saver, config()) == ["4"]


# Sessions.


def contents(saver: AsyncSaver) -> tuple[Any, Any, Any]:
    """Everything that a saver holds, as bytes."""
    return (
        {one: {ns: dict(ids) for ns, ids in namespaces.items()} for one, namespaces in saver.storage.items()},
        {key: dict(writes) for key, writes in saver.writes.items()},
        dict(saver.blobs),
    )


@on_loops
async def test_a_conversation_with_an_open_session_outlives_its_time(clock: Clock) -> None:
    """For whoever looks, writes or sweeps; and its time begins at the session's end."""
    saver = limited(clock, ttl=10)
    await put(saver, "1")
    async with saver.session("t"):
        for name, look in LOOKS.items():
            clock.now += 100
            found = await look(saver)
            if name in ("get", "get by id", "count"):
                assert found
            assert "t" in there(saver)
            await put(saver, "1", thread_id="other")
            assert "t" in there(saver)
        clock.now += 100
    clock.now += 10
    assert await saver.aget_tuple(config()) is not None
    clock.now += 11
    assert await saver.aget_tuple(config()) is None


@on_loops
@pytest.mark.parametrize("limit", [{"max_threads": 3}, {"max_bytes": 12_000}], ids=["max_threads", "max_bytes"])
async def test_a_conversation_with_an_open_session_is_not_taken(limit: dict[str, int]) -> None:
    """Though it is the least recently used one; the others make place for it, and after its end it goes."""
    saver = limited(**limit)
    await put(saver, "1", {"x": "held"})
    async with saver.session("t"):
        for number in range(12):
            await put(saver, "1", {"x": long(number, 500)}, thread_id=f"{number}")
            assert {"t", f"{number}"} <= {*there(saver)}
    assert (await saver.astats()).overruns == 0
    for number in range(12):
        await put(saver, "1", {"x": long(number, 500)}, thread_id=f"{number}")
    assert "t" not in there(saver)


@on_loops
async def test_where_all_have_open_sessions_the_put_goes_through() -> None:
    """It is counted, and what is too much goes as sessions end."""
    saver = limited(max_threads=2)
    async with AsyncExitStack() as stack:
        for number in range(5):
            await put(saver, "1", thread_id=f"{number}")
            await stack.enter_async_context(saver.session(f"{number}"))
        stats = await saver.astats()
        assert (stats.conversations, stats.overruns, stats.open_sessions) == (5, 3, 5)
        await put(saver, "1", thread_id="5")
        assert (await saver.astats()).overruns == 4
        assert await saver.asweep() == 1
        assert len(there(saver)) == 5
    await put(saver, "1", thread_id="6")
    assert len(there(saver)) == 2


@on_loops
async def test_many_open_sessions_do_not_hide_what_can_be_taken() -> None:
    """Idle conversations go, be they behind however many that are held."""
    saver = limited(max_threads=50)
    async with AsyncExitStack() as stack:
        for number in range(40):
            await put(saver, "1", thread_id=f"held {number}")
            await stack.enter_async_context(saver.session(f"held {number}"))
        for number in range(30):
            await put(saver, "1", thread_id=f"idle {number}")
            for one in range(40):
                await put(saver, "2", thread_id=f"held {one}") if number == 10 else None
        for number in range(20, 30):
            await saver.aget_tuple(config(f"idle {number}"))
        await saver.asweep()
        assert len(there(saver)) == 50
        assert sum(name.startswith("held") for name in there(saver)) == 40


@on_loops
async def test_a_session_keeps_all_checkpoints_until_its_end() -> None:
    """And then there are `keep_last` of them."""
    saver = limited(keep_last=2)
    for number in range(3):
        await put(saver, f"{number:02}", {"x": number})
    async with saver.session("t"):
        for number in range(3, 30):
            await put(saver, f"{number:02}", {"x": number})
        await saver.asweep()
        assert await listed(saver, config()) == [f"{number:02}" for number in range(29, 0, -1)]
    assert await listed(saver, config()) == ["29", "28"]
    assert (await saver.astats()).pruned == 28


@on_loops
@pytest.mark.parametrize("keep", [1, 2, 5])
async def test_a_rollback_brings_back_all_that_was_there(keep: int) -> None:
    """Whatever the session put, wrote, replaced and pruned, and whoever came in between."""
    saver = limited(keep_last=keep)
    text = long(0)
    for number in range(6):
        text += long(number + 1, 100)
        await put(saver, f"{number}", {"x": text}, parent=f"{number - 1}" if number else None)
        await saver.aput_writes(config(checkpoint_id=f"{number}"), [("w", text + "!")], "task")
    before = contents(saver)
    inside = anyio.Event()

    async def hold() -> None:
        with suppress(Exception):
            async with saver.session("t"):
                for number in range(6, 30):
                    await put(saver, f"{number:02}", {"x": text[number:]}, parent="5")
                    await put(saver, f"child {number}", {"x": 1}, ns="child")
                await put(saver, "5", {"x": "replaced"}, version="new")
                await saver.aprune(["t"])
                inside.set()
                await anyio.sleep_forever()

    async with create_task_group() as tasks:
        tasks.start_soon(hold)
        await inside.wait()
        async with saver.session("t", multitask_strategy="rollback"):
            assert contents(saver) == before
    assert contents(saver) == before
    store_of(saver).check()


@on_loops
async def test_an_interrupted_session_leaves_its_checkpoints_to_the_next_one() -> None:
    """At whose end there are `keep_last` of them."""
    saver = limited(keep_last=2)
    inside = anyio.Event()

    async def hold() -> None:
        with suppress(Exception):
            async with saver.session("t"):
                for number in range(6):
                    await put(saver, f"{number}")
                inside.set()
                await anyio.sleep_forever()

    async with create_task_group() as tasks:
        tasks.start_soon(hold)
        await inside.wait()
        async with saver.session("t", multitask_strategy="interrupt"):
            assert len(await listed(saver, config())) == 6
    assert await listed(saver, config()) == ["5", "4"]


@on_loops
async def test_an_ephemeral_session_leaves_nothing(clock: Clock) -> None:
    """No conversation, no time, no bytes; it is no eviction."""
    told: list[Any] = []
    saver = limited(clock, ttl=10, max_threads=1, keep_last=1, on_evict=lambda *args: told.append(args))
    async with saver.session("t", ephemeral=True):
        for number in range(4):
            await put(saver, f"{number}")
        clock.now += 100
        assert await listed(saver, config()) == ["3", "2", "1", "0"]
    stats = await saver.astats()
    assert (stats.conversations, stats.bytes, stats.open_sessions) == (0, 0, 0)
    assert sum(stats.evictions.values()) == 0
    assert told == []


@pytest.mark.parametrize("limit", [{"ttl": 10}, {"max_threads": 1}, {"max_bytes": 1}], ids=str)
def test_a_session_of_sync_code_keeps_its_conversation(clock: Clock, limit: dict[str, int]) -> None:
    """As one of a task does."""
    saver = limited(clock, **limit)
    where = saver.put(config(), checkpoint("1"), {"step": 1}, {})
    with saver.session("t"):
        clock.now += 100
        saver.put(config("other"), checkpoint("1"), {"step": 1}, {})
        saver.sweep()
        assert saver.get_tuple(where) is not None


# Runs whose conversation went.


@on_loops
@pytest.mark.parametrize("how", ["max_threads", "ttl", "delete"])
async def test_a_put_that_would_lack_values_is_refused(clock: Clock, how: str) -> None:
    """The error names the conversation and the remedy, and nothing is stored."""
    saver = limited(clock, max_threads=2, ttl=1000)
    await put(saver, "1", {"x": "old", "y": "secret"})
    if how == "delete":
        await saver.adelete_thread("t")
    elif how == "ttl":
        clock.now += 1001
    else:
        for thread_id in "ab":
            await put(saver, "1", thread_id=thread_id)
    before = [one for one in there(saver) if one != "t"]
    made = checkpoint("2", {"x": "new", "y": "secret"})
    made["channel_versions"] = {"x": "2", "y": "1"}
    with pytest.raises(ThreadEvictedError, match=r"thread_id 't'.*saver\.session\(thread_id\)") as caught:
        await saver.aput(config(checkpoint_id="1"), made, {"step": 2}, {"x": "2"})
    assert isinstance(caught.value, LookupError)
    assert "secret" not in str(caught.value)
    assert there(saver) == before
    assert await saver.aget_tuple(config()) is None


@on_loops
async def test_a_put_that_brings_all_its_values_is_stored() -> None:
    """Though its parent is gone."""
    saver = limited(max_threads=1)
    await put(saver, "1", {"x": "old"})
    await put(saver, "1", thread_id="other")
    await put(saver, "2", {"x": "new"}, parent="1")
    assert await values_of(saver) == {"2": {"x": "new"}}


@on_loops
async def test_a_put_whose_parent_went_but_not_its_values_is_stored() -> None:
    """They are others' too."""
    saver = limited(keep_last=1)
    await put(saver, "1", {"x": "old"})
    for checkpoint_id, parent in (("2", "1"), ("3", "1")):
        made = checkpoint(checkpoint_id, {"x": "old"}, "1")
        await saver.aput(config(checkpoint_id=parent), made, {"step": 2}, {})
    assert await values_of(saver) == {"3": {"x": "old"}}


@on_asyncio
@pytest.mark.parametrize("durability", ["sync", "async"])
async def test_a_run_whose_conversation_goes_ends_with_the_error(durability: str) -> None:
    """Unless a session holds it; and a new run begins anew."""
    blocked = Blocked(limited(max_threads=1))

    async def run() -> Any:
        slow = asyncio.create_task(blocked.run("slow", durability=durability))
        await blocked.inside.wait()
        await blocked.run("fast", graphs.config("other"))
        blocked.go_on.set()
        return await slow

    with pytest.raises(ThreadEvictedError, match="thread_id 't'"):
        await run()
    blocked.inside.clear()
    blocked.go_on.clear()
    async with blocked.saver.session("t"):
        assert await run() == SLOW
    assert await blocked.run("fast") == {**SLOW, "given": "fast", "log": [*SLOW["log"], *blocked_turn(5)]}


def blocked_turn(place: int) -> list[str]:
    """What a fast turn of `Blocked` adds to the log."""
    return ["in", f"first{place}", "middle:fast", "last:fast"]


# on_evict.


@on_loops
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_on_evict_is_told_after_the_fact(caplog: pytest.LogCaptureFixture, clock: Clock, kind: str) -> None:
    """The conversation is gone, nothing is locked, and the saver may be called; every eviction with its reason."""
    told: list[Any] = []

    def tell(thread_id: str, reason: str) -> None:
        told.append((thread_id, reason))  # first, as the calls below tell what comes next
        assert thread_id not in there(saver)
        assert saver.get_tuple(config(thread_id)) is None
        assert saver.count() == len(there(saver))

    async def atell(thread_id: str, reason: str) -> None:
        told.append((thread_id, reason))
        await yield_to_loop()
        assert thread_id not in there(saver)
        assert await saver.aget_tuple(config(thread_id)) is None
        assert await saver.acount() == len(there(saver))

    on_evict: Any = tell if kind == "sync" else atell
    saver = limited(clock, ttl=10, max_threads=3, max_bytes=100_000, on_evict=on_evict)
    for thread_id in "abcd":
        await put(saver, "1", thread_id=thread_id)
    assert told == [("a", "max_threads")]
    await put(saver, "1", {"x": b"x" * 98_000}, thread_id="d")
    assert told[1:] == [("b", "max_bytes"), ("c", "max_bytes")]
    clock.now += 11
    assert await saver.aget_tuple(config("d")) is None
    assert told[3:] == [("d", "ttl")]
    await put(saver, "1", thread_id="e")
    clock.now += 20
    assert await saver.asweep() == 1
    assert told[4:] == [("e", "ttl")]
    assert not caplog.records, "a look at it failed"
    assert (await saver.astats()).evictions == {"ttl": 2, "max_threads": 1, "max_bytes": 2}


@on_loops
@pytest.mark.parametrize("name", LOOKS)
async def test_on_evict_is_told_at_the_latest_with_the_next_put(clock: Clock, name: str) -> None:
    """Whoever found out; where that was one that reads by `thread_id` or sweeps, at once."""
    told: list[Any] = []
    saver = limited(clock, ttl=10, on_evict=lambda *args: told.append(args))
    await put(saver, "1")
    clock.now += 11
    await LOOKS[name](saver)
    if name in ("get", "get by id", "sweep"):
        assert told == [("t", "ttl")]
    await put(saver, "1", thread_id="other")
    assert told == [("t", "ttl")]


SYNC: Mapping[str, Callable[[AsyncSaver], Any]] = {
    "put": lambda saver: saver.put(config("b"), checkpoint("1"), {"step": 1}, {}),
    "put_writes": lambda saver: saver.put_writes(config("b", "1"), [("x", 1)], "task"),
    "get_tuple": lambda saver: saver.get_tuple(config("a")),
    "sweep": lambda saver: saver.sweep(),
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", SYNC)
def test_sync_code_tells_on_evict(clock: Clock, name: str, kind: str) -> None:
    """Never on the portal's worker thread; the callback may call the saver, and is done when the call returns."""
    told: list[Any] = []

    def tell(thread_id: str, reason: str) -> None:
        assert threading.current_thread() not in bridge._workers
        assert saver.get_tuple(config(thread_id)) is None
        told.append((thread_id, reason, threading.current_thread()))

    async def atell(thread_id: str, reason: str) -> None:
        await yield_to_loop()
        assert await saver.aget_tuple(config(thread_id)) is None
        tell(thread_id, reason)

    on_evict: Any = tell if kind == "sync" else atell
    saver = limited(clock, ttl=10, on_evict=on_evict)
    saver.put(config("a"), checkpoint("1"), {"step": 1}, {})
    clock.now += 20
    SYNC[name](saver)
    assert [one[:2] for one in told] == [("a", "ttl")]
    assert (told[0][2] is threading.current_thread()) == (kind == "sync")


@on_loops
@pytest.mark.parametrize(
    "kind",
    [
        "sync",
        "async",
    ],
)
@pytest.mark.parametrize("name", SYNC)
async def test_sync_code_on_an_event_loop_tells_on_evict(clock: Clock, name: str, kind: str) -> None:
    """The same, where the loop is blocked for the call."""
    test_sync_code_tells_on_evict(clock, name, kind)


@on_loops
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_on_evict_raises_is_logged_and_nothing_else(
    caplog: pytest.LogCaptureFixture, clock: Clock, kind: str
) -> None:
    """The put has stored, the others are told, and the next time it is told again."""
    told: list[str] = []

    def tell(thread_id: str, reason: str) -> None:
        told.append(thread_id)
        raise RuntimeError("no place to write to")

    async def atell(thread_id: str, reason: str) -> None:
        await yield_to_loop()
        tell(thread_id, reason)

    on_evict: Any = tell if kind == "sync" else atell
    saver = limited(clock, max_threads=1, on_evict=on_evict)
    for thread_id in "abc":
        await put(saver, "1", {"x": "a secret"}, thread_id=thread_id)
    await put(saver, "1", thread_id="d")
    assert there(saver) == ["d"]
    assert told == ["a", "b", "c"]
    assert [(one.name, one.levelname) for one in caplog.records] == [("async_saver.saver", "ERROR")] * 3
    assert ["on_evict failed for thread_id 'a'" in one.getMessage() for one in caplog.records] == [True, False, False]
    assert "no place to write to" in caplog.text
    assert "a secret" not in caplog.text


@on_loops
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_no_eviction_is_told_twice_and_none_is_missed(kind: str) -> None:
    """By however many tasks at once."""
    told: list[str] = []

    async def atell(thread_id: str, reason: str) -> None:
        await yield_to_loop()
        told.append(thread_id)

    saver = limited(max_threads=4, on_evict=atell if kind == "async" else lambda thread_id, _: told.append(thread_id))
    async with create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(partial(put, saver, "1", thread_id=f"{number}"))
    assert len(told) == 56
    assert sorted([*told, *there(saver)]) == sorted(f"{number}" for number in range(60))


def test_no_eviction_is_told_twice_by_worker_threads() -> None:
    """By however many at once."""
    told: list[str] = []
    saver = limited(max_threads=4, on_evict=lambda thread_id, _: told.append(thread_id))

    def some(worker: int) -> None:
        for number in range(25):
            saver.put(config(f"{worker} {number}"), checkpoint("1"), {"step": 1}, {})

    together(*(partial(some, worker) for worker in range(4)))
    saver.sweep()
    assert len(told) == 96
    assert len({*told, *there(saver)}) == 100


@on_loops
async def test_deletions_are_no_evictions() -> None:
    """Nobody is told of what the application itself takes away."""
    told: list[Any] = []
    saver = limited(max_threads=5, keep_last=1, on_evict=lambda *args: told.append(args))
    for thread_id in "abc":
        for number in range(3):
            await put(saver, f"{number}", thread_id=thread_id)
    await saver.adelete_thread("a")
    await saver.aprune(["b"], strategy="delete")
    assert told == []
    assert sum((await saver.astats()).evictions.values()) == 0


# Bad input, and where a Retention is given.


@pytest.mark.parametrize("name", ["max_threads", "max_bytes", "keep_last"])
@pytest.mark.parametrize("limit", [0, -1, True, False, "5", 1.5, 5.0, inf, [5]], ids=repr)
def test_a_limit_is_a_whole_number_greater_than_zero(name: str, limit: Any) -> None:
    """Else the error says which it is, and what it may be."""
    expected = InvalidValueError if limit in (0, -1) and not isinstance(limit, bool) else InvalidTypeError
    with pytest.raises(expected, match=rf"^{name} is a (whole )?number .*(or )?None"):
        Retention(**{name: limit})


@pytest.mark.parametrize("ttl", [*NONSENSE, -inf, timedelta(seconds=-1), {}], ids=repr)
def test_a_ttl_is_a_time_greater_than_zero(ttl: Any) -> None:
    """Else the error says so."""
    with pytest.raises((InvalidValueError, InvalidTypeError), match=r"^ttl is a .*None"):
        Retention(ttl=ttl)


@on_loops
@pytest.mark.parametrize("ttl", [inf, 1e308, 10**400, timedelta.max], ids=str)
async def test_a_very_long_ttl_is_for_ever(clock: Clock, ttl: Any) -> None:
    """Nothing overflows."""
    saver = limited(clock, ttl=ttl)
    await put(saver, "1")
    clock.now += 1e12 / 2
    assert await saver.asweep() == 0
    assert await saver.acount() == 1


@on_loops
@pytest.mark.parametrize("ttl", [1e-9, 0.001, 1, 3600, 1e7], ids=str)
async def test_every_length_of_time_is_kept_to(clock: Clock, ttl: float) -> None:
    """From moments to months: not before, and right after."""
    saver = limited(clock, ttl=ttl)
    clock.now = 0.0
    for number in range(10):
        await put(saver, "1", thread_id=f"{number}")
        clock.now += ttl / 16
    clock.now = ttl * 0.99
    assert await saver.acount() == 10
    clock.now = ttl * (1 + 4.5 / 16)
    assert await all_of(saver.athread_ids()) == ["9", "8", "7", "6", "5"]
    clock.now = ttl * 3
    assert await saver.asweep() == 5


@pytest.mark.parametrize("name", ["on_evict", "clock"])
def test_what_is_called_is_callable(name: str) -> None:
    """Else the error says so."""
    with pytest.raises(InvalidTypeError, match=f"^{name} is a callable, not of type int"):
        Retention(**{name: 5})  # type: ignore[arg-type]


def test_a_retention_is_given_by_keywords() -> None:
    """A bare number could be any of its limits; and it does not change later."""
    with pytest.raises(TypeError):
        Retention(3600)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Retention().ttl = 5  # type: ignore[misc]


@on_loops
@pytest.mark.parametrize("shown", ["5", None, nan, inf, True], ids=repr)
async def test_a_clock_that_shows_nonsense_is_an_error(clock: Clock, shown: Any) -> None:
    """Nothing is stored, and once it is right again everything goes on."""
    saver = limited(clock, ttl=10)
    await put(saver, "1")
    clock.now, right = shown, clock.now
    with pytest.raises((InvalidTypeError, InvalidValueError), match="clock"):
        await put(saver, "1", thread_id="other")
    with pytest.raises((InvalidTypeError, InvalidValueError), match="clock"):
        await saver.aget_tuple(config())
    clock.now = right
    assert there(saver) == ["t"]
    await put(saver, "1", thread_id="other")
    assert await saver.acount() == 2


@pytest.mark.parametrize("given", [3600, {"ttl": 3600}, Retention], ids=repr)
def test_what_is_no_retention_is_an_error(given: Any) -> None:
    """Such as a dict of its limits."""
    with pytest.raises(InvalidTypeError, match=r"^retention is a Retention or None"):
        AsyncSaver(retention=given)


def test_a_store_has_one_retention() -> None:
    """An equal one is the same, a different one an error, and none takes the store's."""
    store = MemoryStore()
    first = AsyncSaver(store=store, retention=Retention(max_threads=5))
    assert AsyncSaver(store=store, retention=Retention(max_threads=5))._shared.store.retention == Retention(
        max_threads=5
    )
    with pytest.raises(InvalidValueError, match="another Retention already"):
        AsyncSaver(store=store, retention=Retention(max_threads=6))
    assert AsyncSaver(store=store)._shared.store.retention is first._shared.store.retention


@on_loops
async def test_the_limits_are_those_of_the_store() -> None:
    """Two savers on it keep to them together, and to one memory."""
    store = Checked()
    savers = AsyncSaver(store=store, retention=Retention(max_threads=3)), AsyncSaver(store=store)
    for number in range(10):
        await put(savers[number % 2], "1", thread_id=f"{number}")
    assert there(savers[0]) == ["7", "8", "9"]
    assert (await savers[1].astats()).evictions["max_threads"] == 7


def test_a_store_without_limits_says_so(tmp_path: Any) -> None:
    """Rather than grow in silence."""
    with pytest.raises(InvalidValueError, match="FileStore has no limits"):
        AsyncSaver(store=FileStore(tmp_path / "file"), retention=Retention(ttl=5))


@on_loops
async def test_what_a_store_without_limits_counts_is_in_the_figures(tmp_path: Any) -> None:
    """What it does not count is None, and there is nothing to sweep."""
    saver = AsyncSaver(store=FileStore(tmp_path / "file"))
    await put(saver, "1")
    stats = await saver.astats()
    assert stats[:5] == (1, None, None, None, None)
    assert await saver.asweep() == 0


@on_loops
@pytest.mark.parametrize("limits", [{"max_threads": 3}, {"max_bytes": 8000}, {"ttl": 10}, {"keep_last": 2}], ids=str)
async def test_a_filled_store_keeps_to_limits_from_then_on(clock: Clock, limits: dict[str, int]) -> None:
    """What was there before counts: it goes with the next sweep."""
    store = Checked()
    plain = AsyncSaver(store=store)
    for number in range(20):
        for thread in range(8):
            await put(plain, f"{number:02}", {"x": number}, thread_id=f"{thread}")
    saver = AsyncSaver(store=store, retention=Retention(clock=clock, **limits))
    assert await saver.acount() == 8
    clock.now += 11
    gone = await saver.asweep()
    stats = await saver.astats()
    if "keep_last" in limits:
        assert (gone, stats.conversations, stats.checkpoints) == (0, 8, 16)
    else:
        assert stats.conversations == 8 - gone
        assert gone == {"max_threads": 5, "ttl": 8}.get(next(iter(limits)), gone)
        assert stats.bytes <= limits.get("max_bytes", inf)  # type: ignore[operator]


@on_loops
async def test_a_clone_has_the_limits_of_its_original() -> None:
    """It shares them, as everything else."""
    saver = limited(max_threads=2)
    for number, one in enumerate((saver, copy.copy(saver), saver.with_allowlist([]), saver)):
        await put(one, "1", thread_id=f"{number}")
    assert there(saver) == ["2", "3"]


@on_loops
async def test_a_deep_copy_keeps_to_limits_of_its_own(clock: Clock) -> None:
    """As many, for what it holds itself, and with the same memory of nothing that went."""
    saver = limited(clock, max_threads=2, ttl=10, keep_last=2)
    for number in range(3):
        await put(saver, "1", thread_id=f"{number}")
    twin = copy.deepcopy(saver)
    assert (await twin.astats()).evictions == {"ttl": 0, "max_threads": 0, "max_bytes": 0}
    for number in range(4):
        await put(twin, f"{number}", thread_id="new")
    store_of(twin).check()
    assert there(saver) == ["1", "2"]
    assert there(twin) == ["2", "new"]
    assert await listed(twin, config("new")) == ["3", "2"]
    clock.now += 11
    assert await twin.acount() == await saver.acount() == 0


@on_loops
async def test_a_saver_from_a_url_has_limits() -> None:
    """`from_conn_string` takes them."""
    saver = AsyncSaver.from_conn_string("memory://", retention=Retention(max_threads=1))
    for thread_id in "ab":
        await put(saver, "1", thread_id=thread_id)
    assert there(saver) == ["b"]


@on_loops
async def test_what_a_factory_makes_is_kept_to_the_limits(clock: Clock) -> None:
    """Once it is loaded, and when it is closed."""
    mappings: list[Any] = []

    class Mapping_(defaultdict):  # type: ignore[type-arg]
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *args: object) -> None:
            pass

    def factory(*args: Any) -> Any:
        mappings.append(Mapping_(*args))
        return mappings[-1]

    with AsyncSaver(factory=factory) as plain:
        for thread in range(5):
            for number in range(5):
                await put(plain, f"{number}", {"x": number}, thread_id=f"{thread}")
    filled = mappings[:3]
    limits = Retention(ttl=10, max_threads=2, keep_last=3, clock=clock)
    again = iter(filled)
    saver = AsyncSaver(factory=lambda *_: next(again), retention=limits)
    assert await saver.asweep() == 3
    assert there(saver) == ["3", "4"]
    assert await listed(saver, config("4")) == ["4", "3", "2"]
    store_of(saver).check()
    clock.now += 11
    assert await saver.acount() == 0
    saver.stack.close()
    assert not filled[0]


# Figures.


@on_loops
async def test_sweeping_returns_how_many_went(clock: Clock) -> None:
    """Conversations, by whatever limit; `sweep` as `asweep`."""
    saver = limited(clock, ttl=10)
    for number in range(5):
        await put(saver, "1", thread_id=f"{number}")
    clock.now += 5
    await put(saver, "1", thread_id="5")
    assert await saver.asweep() == 0
    clock.now += 6
    assert await saver.asweep() == 5
    clock.now += 6
    assert saver.sweep() == 1
    assert saver.sweep() == await saver.asweep() == 0


@on_asyncio
async def test_every_figure_after_a_story(clock: Clock) -> None:
    """What is held, what went and why, and what was waited for."""
    saver = AsyncSaver(
        store=Checked(),
        retention=Retention(ttl=10, max_threads=3, max_bytes=10**6, keep_last=4, clock=clock),
        on_conflict="raise",
    )
    calls = bridge.calls
    none = {"ttl": 0, "max_threads": 0, "max_bytes": 0}
    assert await saver.astats() == (0, 0, 0, 0, 0, none, 0, 0, 0, 0, 0, 0, calls)
    text = long(1)
    for number in range(6):
        text += f"and {number}" * 20
        await put(saver, f"{number}", {"x": text}, thread_id="a")
    await saver.aput_writes(config("a", "5"), [("x", 1), ("y", 2)], "task")
    await put(saver, "1", thread_id="b", ns="child")
    stats = await saver.astats()
    assert (stats.conversations, stats.checkpoints, stats.writes, stats.pruned) == (2, 5, 2, 2)
    assert stats.bytes is not None
    assert stats.bytes_saved is not None
    assert 3 * len(text) * 0.8 < stats.bytes_saved < 3 * len(text)
    assert len(text) < stats.bytes < 3.2 * len(text)

    await put(saver, "1", thread_id="c")
    await put(saver, "1", thread_id="d")  # a goes
    await put(saver, "1", {"x": b"x" * 10**6}, thread_id="e")  # all others go, and that is not enough
    stats = await saver.astats()
    assert stats.evictions == {"ttl": 0, "max_threads": 1, "max_bytes": 3} or stats.evictions == {
        "ttl": 0,
        "max_threads": 2,
        "max_bytes": 2,
    }
    assert (stats.conversations, stats.overruns) == (1, 1)
    clock.now += 11
    stats = await saver.astats()
    assert (stats.conversations, stats.bytes, stats.bytes_saved, stats.evictions["ttl"]) == (0, 0, 0, 1)

    async def wait() -> None:
        async with saver.session("t"):
            pass

    async with saver.session("t"), saver.session("u"):
        waiting = Context().run(asyncio.create_task, wait())
        while (await saver.astats()).waiting_sessions == 0:
            await yield_to_loop()
        stats = await saver.astats()
        assert (stats.open_sessions, stats.waiting_sessions) == (2, 1)
    await waiting
    assert (await saver.astats())[8:10] == (0, 0)

    async with saver._shared.locks.holding("t"):
        blocked = [asyncio.create_task(put(saver, f"{number}")) for number in (1, 2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*blocked)
    with pytest.raises(ConflictError):
        await saver.aput(config() | {"metadata": {"thread_id": "t"}}, checkpoint("0"), {"source": "loop"}, {})
    saver.put(config("v"), checkpoint("1"), {"step": 1}, {})
    stats = await saver.astats()
    assert (stats.lock_waits, stats.conflicts, stats.bridge_calls) == (2, 1, calls + 1)
    assert saver.stats() == (await saver.astats())


@on_loops
async def test_chats_save_bytes_and_give_them_back() -> None:
    """What is saved is what would be held more if each value were whole; nothing is saved of nothing."""
    saver = limited(keep_last=3)
    text = long(1)
    for number in range(8):
        text += long(number, 100)
        await put(saver, f"{number}", {"x": text})
        stats = await saver.astats()
        whole = sum(len(value[1]) for value in saver.blobs.values())
        assert stats.bytes_saved is not None
        assert stats.bytes is not None
        assert whole < stats.bytes + stats.bytes_saved < whole + 5000
        assert (stats.bytes_saved > 0) == (number > 0)
    await saver.aprune(["t"])
    assert (await saver.astats()).bytes_saved == 0


class Unscanned(OrderedDict[Any, Any]):
    """Must not be looked through."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("a scan")

    keys = values = items = __reversed__ = __iter__  # type: ignore[assignment]


@on_loops
@pytest.mark.parametrize("limits", [None, {"ttl": 10, "max_threads": 10**4, "max_bytes": 10**9, "keep_last": 9}])
async def test_figures_cost_the_same_however_much_is_held(clock: Clock, limits: Any) -> None:
    """No conversation is looked at: not of many that are held, nor in the moment in which many were to go."""
    store = MemoryStore()
    saver = AsyncSaver(store=store, retention=None if limits is None else Retention(clock=clock, **limits))
    for number in range(300):
        await put(saver, "1", thread_id=f"{number}")
        clock.now += 0.001
    store._buckets = Unscanned(store._buckets)
    assert (await saver.astats()).conversations == 300
    if limits is None:
        return
    assert store._limits is not None
    looks = 0
    is_over = store._limits.is_over

    def counted(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        return is_over(*args)

    store._limits.is_over = counted  # type: ignore[method-assign]
    clock.now += 9
    assert (await saver.astats()).conversations == 300
    assert looks <= 32


@on_loops
async def test_nothing_is_logged_in_normal_work(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """By no logger at any level, though conversations and checkpoints go and limits are overrun."""
    caplog.set_level(logging.DEBUG)
    told: list[Any] = []
    saver = limited(clock, ttl=10, max_threads=2, max_bytes=3000, keep_last=1, on_evict=lambda *args: told.append(args))
    for number in range(6):
        await put(saver, f"{number}", {"x": long(number)}, thread_id=f"{number % 4}")
        await saver.aput_writes(config(f"{number % 4}", f"{number}"), [("x", 1)], "task")
    async with saver.session("3"):
        await saver.aprune(["3"])
        await saver.acopy_thread("3", "copy")
    clock.now += 11
    await listed(saver, None)
    await saver.asweep()
    await saver.astats()
    saver.sweep()
    assert told
    assert [one.name for one in caplog.records if one.name not in ("asyncio", "concurrent.futures")] == []


# Stores that keep to their limits where they are told to sweep, at the latest: all of them do.


@on_loops
@pytest.mark.parametrize("ttl", TTLS, ids=["int", "float", "timedelta", "callable", "callable of timedelta"])
async def test_a_sweep_takes_what_went_unused(new_store: NewStore, clock: Clock, ttl: Any) -> None:
    """Whatever is done with a conversation is use of it; and so it outlives a close."""
    saver = AsyncSaver(store=new_store(), retention=Retention(clock=clock, ttl=ttl))
    for thread_id in ("read", "put", "written", "listed", "copied", "idle"):
        await put(saver, "1", {"x": 1}, thread_id=thread_id)
    clock.now += 8
    assert await saver.aget_tuple(config("read")) is not None
    await put(saver, "2", thread_id="put")
    await saver.aput_writes(config("written", "1"), [("x", 1)], "task")
    await saver.acopy_thread("copied", "copy")
    await saver._shared.store.close()
    clock.now += 2
    assert await saver.asweep() == 0
    clock.now += 6
    left = ["copied", "copy", "put", "read", "written"]
    assert await saver.asweep() == 2
    assert sorted(await all_of(saver.athread_ids())) == left
    assert await saver.acount() == len(left)
    clock.now += 5
    assert saver.sweep() == len(left)
    assert (await saver.astats()).evictions == {"ttl": 7, "max_threads": 0, "max_bytes": 0}
    assert await saver.acount() == 0


@on_loops
@pytest.mark.parametrize("refresh", [True, False], ids=["reading is use", "reading is no use"])
async def test_a_sweep_takes_the_least_recently_used(new_store: NewStore, clock: Clock, refresh: bool) -> None:
    """As many as there are too many."""
    retention = Retention(clock=clock, max_threads=3, refresh_on_read=refresh)
    saver = AsyncSaver(store=new_store(), retention=retention)
    for thread_id in "abc":
        clock.now += 1
        await put(saver, "1", thread_id=thread_id)
    clock.now += 1
    await saver.aget_tuple(config("a"))
    for thread_id in "de":
        clock.now += 1
        await put(saver, "1", thread_id=thread_id)
    await saver.asweep()
    assert sorted(await all_of(saver.athread_ids())) == (["a", "d", "e"] if refresh else ["c", "d", "e"])
    assert (await saver.astats()).evictions == {"ttl": 0, "max_threads": 2, "max_bytes": 0}


@on_loops
async def test_a_sweep_takes_bytes_that_are_too_many(new_store: NewStore, clock: Clock) -> None:
    """Of what was used least recently, and no more conversations than need be."""
    saver = AsyncSaver(store=new_store(), retention=Retention(clock=clock, max_bytes=400_000))
    for number in range(12):
        clock.now += 1
        await put(saver, "1", {"x": random.Random(number).randbytes(60_000)}, thread_id=f"{number:02}")
    await saver.asweep()
    left = sorted(await all_of(saver.athread_ids()))
    assert left == [f"{number:02}" for number in range(12 - len(left), 12)]
    assert 4 <= len(left) <= 6
    assert ((await saver.astats()).bytes or 0) <= 400_000


@on_loops
async def test_a_sweep_leaves_the_newest_of_each_namespace(new_store: NewStore, clock: Clock) -> None:
    """With their values and writes, and writes of what is yet to come; the rest goes, its values too."""
    saver = AsyncSaver(store=new_store(), retention=Retention(clock=clock, keep_last=2))
    for ns in ("", "child"):
        for number in range(6):
            parent = f"{number - 1}" if number else None
            await put(saver, f"{number}", {"x": number, "same": 1}, ns=ns, parent=parent, run_id=f"run {number}")
            await saver.aput_writes(config(checkpoint_id=f"{number}", ns=ns), [("x", number)], "task")
        await saver.aput_writes(config(checkpoint_id="9", ns=ns), [("x", 9)], "task")
    await saver.asweep()
    found = await all_of(saver.alist(config(ns=None)))
    assert sorted((one.checkpoint["id"], one.config["configurable"]["checkpoint_ns"]) for one in found) == [
        (checkpoint_id, ns) for checkpoint_id in "45" for ns in ("", "child")
    ]
    for one in found:
        number = int(one.checkpoint["id"])
        assert one.checkpoint["channel_values"] == {"x": number, "same": 1}
        assert one.pending_writes == [("task", "x", number)]
    assert sorted({key[2] for key in writes_of(saver)}) == ["4", "5", "9"]
    assert sorted({key[3] for key in versions_of(saver)}) == ["4", "5"]
    assert (await saver.astats()).pruned == 8
    await saver.adelete_for_runs(["run 5", "run 0"])
    assert await listed(saver, config()) == ["4"]


@on_asyncio
async def test_a_sweep_leaves_what_is_rebuilt_whole(new_store: NewStore, clock: Clock) -> None:
    """The value of a `DeltaChannel`, from hidden ancestors if need be."""
    plain, saver = (AsyncSaver(store=new_store(), retention=one) for one in (None, Retention(clock=clock, keep_last=2)))
    ends = []
    for one in (plain, saver):
        graph = delta(5).compile(checkpointer=one)
        for number in range(4):
            await turn(graph, f"in{number}")
            await one.asweep()
        ends.append(await graphs.log(graph))
    assert ends[0] == ends[1]
    assert len(await listed(saver, config())) < len(await listed(plain, config()))


@on_loops
@pytest.mark.parametrize(
    ("name", "limit"), [("ttl", 10), ("max_threads", 1), ("max_bytes", 50_000), ("keep_last", 1)], ids=lambda one: one
)
async def test_a_sweep_leaves_what_is_in_an_open_session(
    new_store: NewStore, clock: Clock, name: str, limit: int
) -> None:
    """Until it ends, be it sync code's."""
    saver = AsyncSaver(store=new_store(), retention=Retention(clock=clock, **{name: limit}))  # type: ignore[arg-type]
    async with saver.session("t"):
        with saver.session("u"):
            for thread_id in ("t", "u"):
                for number in range(3):
                    await put(saver, f"{number}", {"x": long(number, 100_000)}, thread_id=thread_id)
            clock.now += 100
            assert await saver.asweep() == 0
            assert await listed(saver, config()) == await listed(saver, config("u")) == ["2", "1", "0"]
        clock.now += 100
        await saver.asweep()
        assert await listed(saver, config()) == ["2", "1", "0"]
        assert len(await listed(saver, config("u"))) == (1 if name == "keep_last" else 0)
    clock.now += 100
    await saver.asweep()
    assert len(await listed(saver, config())) == {"ttl": 0, "max_threads": 3, "max_bytes": 0, "keep_last": 1}[name]


@on_loops
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_sweep_tells_of_each_once(new_store: NewStore, clock: Clock, kind: str) -> None:
    """After the fact, with the reason; and the saver may be called then."""
    told: list[Any] = []

    def tell(thread_id: str, reason: str) -> None:
        told.append((thread_id, reason))
        assert saver.get_tuple(config(thread_id)) is None

    async def atell(thread_id: str, reason: str) -> None:
        told.append((thread_id, reason))
        assert await saver.aget_tuple(config(thread_id)) is None

    on_evict: Any = tell if kind == "sync" else atell
    saver = AsyncSaver(store=new_store(), retention=Retention(clock=clock, ttl=10, max_threads=3, on_evict=on_evict))
    for thread_id in "abcde":
        clock.now += 1
        await put(saver, "1", thread_id=thread_id)
    await saver.asweep()
    assert told == [("a", "max_threads"), ("b", "max_threads")]
    clock.now += 11
    assert await saver.asweep() == 3
    assert sorted(told[2:]) == [(thread_id, "ttl") for thread_id in "cde"]
    await saver.asweep()
    assert len(told) == 5


@on_loops
async def test_two_sweeps_at_once_take_each_once(new_store: NewStore, clock: Clock) -> None:
    """And a put beside them is stored."""
    saver = AsyncSaver(store=new_store(), retention=Retention(clock=clock, max_threads=5))
    for number in range(30):
        clock.now += 1
        await put(saver, "1", thread_id=f"{number:02}")
    async with create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(saver.asweep)
        tasks.start_soon(partial(put, saver, "1", thread_id="new"))
    await saver.asweep()
    assert "new" in await all_of(saver.athread_ids())
    assert await saver.acount() == 5
    assert (await saver.astats()).evictions["max_threads"] == 26
