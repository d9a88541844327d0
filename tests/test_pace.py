"""P10: the loop stays free. By clocks of the tests' own, which tick with the work that is done, not with the time."""

import copy
import itertools
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
from anyio import CancelScope, create_task_group, move_on_after
from anyio.lowlevel import checkpoint as yield_to_loop
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from ormsgpack import unpackb

import async_saver
from async_saver import AsyncSaver, FastJsonPlusSerializer, MemoryStore, Session, pace, serde
from async_saver.pace import _SLICE
from async_saver.stores import memory
from tests.build import all_of, checkpoint, config, ids, listed, put

pytestmark = pytest.mark.anyio

Call = Callable[[AsyncSaver], Awaitable[object]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock for the whole package, which stands until a test moves it on."""
    clock = [1.0]
    monkeypatch.setattr(pace, "_pace", pace._Pace())
    for module in (pace, memory):
        monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    return clock  # type: ignore[return-value]


class Slow(JsonPlusSerializer):
    """Takes its time, by a test's clock, for each value."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.clock[0] += self.seconds
        return super().dumps_typed(obj)


# Loops of calls.


@pytest.fixture
def saver() -> AsyncSaver:
    """A saver in memory: a call that waits leaves the loop to others."""
    return AsyncSaver()


CALLS: dict[str, Call] = {
    "asetup": lambda saver: saver.asetup(),
    "aput": lambda saver: put(saver, "1", {"x": 1}),
    "aput_writes": lambda saver: saver.aput_writes(config(checkpoint_id="1"), [("x", 1)], "task"),
    "aput_writes, none": lambda saver: saver.aput_writes(config(checkpoint_id="1"), [], "task"),
    "aget": lambda saver: saver.aget(config("known")),
    "aget_tuple": lambda saver: saver.aget_tuple(config("known")),
    "aget_tuple, unknown": lambda saver: saver.aget_tuple(config("unknown")),
    "aget_delta_channel_history": lambda saver: saver.aget_delta_channel_history(
        config=config("known"), channels=["x"]
    ),
    "alist": lambda saver: listed(saver, config("known")),
    "alist, all": lambda saver: listed(saver, None),
    "alist, unknown": lambda saver: listed(saver, config("unknown")),
    "alist, filtered": lambda saver: listed(saver, config("known"), filter={"step": "no such step"}),
    "alist, no more than none": lambda saver: listed(saver, config("known"), limit=0),
    "athread_ids": lambda saver: all_of(saver.athread_ids()),
    "acount": lambda saver: saver.acount(),
    "acopy_thread, unknown": lambda saver: saver.acopy_thread("unknown", "target"),
    "aprune": lambda saver: saver.aprune(["known"]),
    "aprune, unknown": lambda saver: saver.aprune(["unknown"]),
    "aprune, none": lambda saver: saver.aprune([]),
    "adelete_thread, unknown": lambda saver: saver.adelete_thread("unknown"),
    "adelete_for_runs, unknown": lambda saver: saver.adelete_for_runs(["unknown"]),
    "ais_busy": lambda saver: saver.ais_busy("known"),
    "asweep": lambda saver: saver.asweep(),
    "astats": lambda saver: saver.astats(),
    "session": lambda saver: _in_and_out(saver.session("known")),
    "session, ephemeral": lambda saver: _in_and_out(saver.session("unknown", ephemeral=True)),
}


async def _in_and_out(session: Session) -> None:
    async with session:
        pass


def test_every_method_is_called_here() -> None:
    """Also those that are yet to be written."""
    methods = {name for name in dir(AsyncSaver) if name.startswith("a")}
    assert {name.partition(",")[0] for name in CALLS} == methods | {"session"}


EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@EACH_CALL
async def test_a_loop_of_calls_ends_near_its_deadline(saver: AsyncSaver, call: Call) -> None:
    """Though no call in it ever waits."""
    await put(saver, "1", {"x": 1}, thread_id="known")
    begun = perf_counter()
    with move_on_after(0.05) as scope:
        while perf_counter() < begun + 2:
            await call(saver)
    assert scope.cancelled_caught


@EACH_CALL
async def test_other_tasks_have_a_turn_in_every_millisecond_of_calls(
    saver: AsyncSaver, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each look at it takes 50 microseconds; a loop of calls looks at it in every call."""
    looks, turns = 0, [0]

    def look() -> float:
        nonlocal looks
        looks += 1
        return looks * 0.00005

    await put(saver, "1", {"x": 1}, thread_id="known")
    monkeypatch.setattr(pace, "perf_counter", look)
    monkeypatch.setattr(pace, "_pace", pace._Pace())

    async def other() -> None:
        while True:
            await yield_to_loop()
            turns.append(looks)

    async with create_task_group() as tasks:
        tasks.start_soon(other)
        for _ in range(400):
            await call(saver)
        tasks.cancel_scope.cancel()
    gaps = [now - before for before, now in zip([*turns], [*turns[1:], looks], strict=True)]
    # A turn of the loop is two looks more: one finds that it is time, and one notes when it was. And more, as trio
    # draws lots for the order in which the tasks of one turn run.
    assert max(gaps) <= 4 * (_SLICE / 0.00005 + 3), gaps
    assert looks >= 200


@pytest.mark.parametrize("size", [3, 200])
async def test_tasks_that_do_nothing_but_call_progress_evenly(
    saver: AsyncSaver, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None starves, none gets much more than its part, and all of them leave the loop to others."""
    looks, calls, turns = 0, [0] * size, [0]

    def look() -> float:
        nonlocal looks
        looks += 1
        return looks * 0.00002

    monkeypatch.setattr(pace, "perf_counter", look)
    monkeypatch.setattr(pace, "_pace", pace._Pace())

    async def loop(number: int, scope: CancelScope) -> None:
        while sum(calls) < max(50 * 200, 100 * size):
            await put(saver, f"{calls[number] % 5}", thread_id=f"{number}")
            calls[number] += 1
        scope.cancel()

    async def other() -> None:
        while True:
            await yield_to_loop()
            turns.append(sum(calls))

    async with create_task_group() as tasks:
        tasks.start_soon(other)
        for number in range(size):
            tasks.start_soon(loop, number, tasks.cancel_scope)
    assert max(calls) <= 1.5 * min(calls) + 50, calls
    # A turn of the loop is a millisecond of calls, or one call of each task, once it is known how many there are. It is
    # several times that on trio, which draws lots for the order, so that a task may not see that there are others.
    gaps = [now - before for before, now in itertools.pairwise(turns)]
    assert len(gaps) > 20
    assert max(gaps[5:]) <= max(size if size < 10 else 2, 4) * max(_SLICE / 0.00002, size), gaps


async def test_a_put_that_took_long_yields_after_its_commit(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: a later put on the same conversation could overtake it."""
    saver, seen = AsyncSaver(serde=Slow(clock, 0.01)), list[tuple[int, int]]()

    async def yielding() -> None:
        seen.append((len(saver.storage.get("t", {}).get("", {})), len(saver.writes)))
        await yield_to_loop()

    monkeypatch.setattr(pace, "yield_to_loop", yielding)
    for number in range(5):
        await put(saver, f"{number}", {"x": 1})
        await saver.aput_writes(config(checkpoint_id=f"{number}"), [("x", 1)], "task")
    assert seen == [stored for number in range(5) for stored in ((number + 1, number), (number + 1, number + 1))]


async def test_a_quick_put_does_not_overtake_a_slow_one(clock: list[float]) -> None:
    """What is latest by the order of the calls is what stays."""
    slow = AsyncSaver(serde=Slow(clock, 0.01))
    quick = copy.copy(slow)
    quick.serde = JsonPlusSerializer()
    order: list[str] = []

    async def call(saver: AsyncSaver, name: str) -> None:
        order.append(name)
        await put(saver, "1", {"x": name}, version=name)

    for _ in range(5):
        async with create_task_group() as tasks:
            tasks.start_soon(call, slow, "slow")
            tasks.start_soon(call, quick, "quick")
        found = await quick.aget(config())
        assert found is not None
        assert found["channel_values"] == {"x": order[-1]}


# Whole conversations. The clock ticks with each line that the package runs, so work that looks at no clock counts too.

LONG = 10_000
LINE = 1e-6  # seconds
PACKAGE = str(Path(async_saver.__file__).parent)


@contextmanager
def each_line_ticks(clock: list[float]) -> Iterator[None]:
    """Move a clock on by a microsecond for each line that this worker thread runs in the package."""

    def trace(frame: Any, event: str, arg: Any) -> Any:
        return tick if frame.f_code.co_filename.startswith(PACKAGE) else None

    def tick(frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            clock[0] += LINE
        return tick

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(former)


_long: list[MemoryStore] = []


async def long_conversation() -> AsyncSaver:
    """A saver with a conversation of 10,000 checkpoints and their writes, by ten runs; made once, and copied."""
    if not _long:
        saver = AsyncSaver(store=MemoryStore())
        for number in range(LONG):
            parent, where = f"{number - 1:06}" if number else None, f"{number:06}"
            await put(saver, where, {"x": number}, parent=parent, run_id=f"run {number // 1000}")
            await saver.aput_writes(config(checkpoint_id=where, run_id=f"run {number // 1000}"), [("x", 1)], "task")
        _long.append(saver._shared.store)  # type: ignore[arg-type]
    return AsyncSaver(store=copy.deepcopy(_long[0]))


WHOLE: dict[str, tuple[Call, int]] = {
    "acopy_thread": (lambda saver: saver.acopy_thread("t", "copy"), 2 * LONG),
    "aprune": (lambda saver: saver.aprune(["t"]), 1),
    "adelete_for_runs": (lambda saver: saver.adelete_for_runs(["run 7", "run 8"]), LONG - 2000),
    "adelete_thread": (lambda saver: saver.adelete_thread("t"), 0),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_work_on_a_long_conversation_leaves_the_loop_free(name: str, clock: list[float]) -> None:
    """No slice of it is longer than a millisecond; other conversations are put to, read and listed meanwhile."""
    call, left = WHOLE[name]
    saver = await long_conversation()
    turns: list[float] = []
    done = 0

    async def other() -> None:
        nonlocal done
        while True:
            turns.append(clock[0])
            await yield_to_loop()
            turns.append(clock[0])
            await put(saver, f"{done}", {"x": done}, thread_id=f"other {done % 5}")
            found = await saver.aget_tuple(config(f"other {done % 5}"))
            assert found is not None
            assert await listed(saver, config(f"other {done % 5}"), limit=1) == [found.checkpoint["id"]]
            done += 1

    async with create_task_group() as tasks:
        tasks.start_soon(other)
        await yield_to_loop()
        with each_line_ticks(clock):
            begun = clock[0]
            await call(saver)
            took = clock[0] - begun
        tasks.cancel_scope.cancel()
    # From the end of one turn of the other task to the beginning of its next.
    gaps = [now - before for before, now in zip(turns[::2], turns[1::2], strict=False)]
    # A few lines come before and after each slice. On trio the other task may have to wait for a few slices, as lots
    # are drawn for the order; the whole is hundreds of them.
    assert max(gaps) <= 4 * (_SLICE + 200 * LINE)
    assert done >= took / _SLICE / 4
    assert done >= 5
    for number in range(5):
        await saver.adelete_thread(f"other {number}")
    assert len(await listed(saver, None)) == left
    saver._shared.store.check()  # type: ignore[attr-defined]


async def test_deleted_checkpoints_are_skipped_in_slices(clock: list[float]) -> None:
    """An iteration whose whole rest was deleted meanwhile leaves the loop free while it finds that out."""
    saver = await long_conversation()
    turns = [clock[0]]

    async def other() -> None:
        while True:
            await yield_to_loop()
            turns.append(clock[0])

    found = saver.alist(config())
    threads = saver.athread_ids()
    for number in range(3000):
        await put(saver, "1", thread_id=f"short {number}")
    assert await anext(threads) == "short 2999"
    assert await anext(found) is not None
    await saver.adelete_thread("t")
    await saver.aprune([f"short {number}" for number in range(3000)], strategy="delete")
    async with create_task_group() as tasks:
        tasks.start_soon(other)
        with each_line_ticks(clock):
            assert await all_of(found) == []
            assert await all_of(threads) == []
        tasks.cancel_scope.cancel()
    gaps = [now - before for before, now in zip(turns, [*turns[1:], clock[0]], strict=True)]
    assert max(gaps) <= 4 * (_SLICE + 200 * LINE)


# Another loop that changes the conversation meanwhile.


CHANGED: dict[str, Call] = {
    "acopy_thread": lambda saver: saver.acopy_thread("t", "copy"),
    "aprune": lambda saver: saver.aprune(["t"]),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["run"]),
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("changes", [1, 3, 1000])
async def test_work_on_a_conversation_that_keeps_changing_ends(
    name: str, changes: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few tries it is done at once, and what comes of it is the conversation as it was at one moment."""
    store = MemoryStore()
    saver = AsyncSaver(store=store)
    for number in range(50):
        await put(saver, f"{number:06}", {"x": number}, run_id="run" if number < 10 else "other", step=number)
    changed, tries = 0, 0
    make = memory._Draft.go_on

    def slowly() -> float:
        clock[0] += 0.0001
        return clock[0]

    def counting(draft: Any, bucket: Any, until: float) -> bool:
        nonlocal tries
        before = draft._tries
        done = make(draft, bucket, until)
        tries += draft._tries - before
        return done

    async def changing() -> None:
        # A sync call runs on the portal's loop, in another worker thread, and does not wait for this loop's lock.
        nonlocal changed
        if changed < changes:
            changed += 1
            number = 49 + changed
            made = checkpoint(f"{number:06}", {"x": number}, f"{number:06}")
            saver.put(config(run_id="other"), made, {}, {"x": f"{number:06}"})
        await yield_to_loop()

    monkeypatch.setattr(memory, "perf_counter", slowly)
    monkeypatch.setattr(memory._Draft, "go_on", counting)
    monkeypatch.setattr(memory, "yield_to_loop", changing)
    await CHANGED[name](saver)
    assert changed >= min(changes, 3)
    assert 2 <= tries <= memory._TRIES + 1
    monkeypatch.undo()
    store.check()
    number = 49 + changed
    found = await all_of(saver.alist(config("copy" if name == "acopy_thread" else "t")))
    assert all(one.checkpoint["channel_values"] == {"x": int(one.checkpoint["id"])} for one in found)
    # Some changes came when the new conversation was in place, while the former one was taken apart.
    stored = [int(one) for one in ids(found)]
    assert await listed(saver, config("t"), limit=1) == [f"{number:06}"]
    if name == "acopy_thread":
        assert stored == list(range(len(stored)))[::-1]
        assert len(stored) > 50
    elif name == "aprune":
        assert stored == list(range(stored[-1], number + 1))[::-1]
        assert stored[-1] > 49
    else:
        assert stored == list(range(10, number + 1))[::-1]


@pytest.mark.parametrize("name", CHANGED)
async def test_nothing_is_lost_while_another_thread_keeps_putting(name: str) -> None:
    """A worker thread that puts all the time, with no clock but the machine's: what it was told is there is there."""
    store, stop, acknowledged = MemoryStore(), threading.Event(), list[int]()
    saver = AsyncSaver(store=store)
    first = threading.Event()

    def keep_putting() -> None:
        number = 2000
        while not stop.is_set() and number < 5000:
            made = checkpoint(f"{number:06}", {"x": number}, f"{number:06}")
            saver.put(config(run_id="other"), made, {}, {"x": f"{number:06}"})
            acknowledged.append(number)
            first.set()
            number += 1

    for number in range(2000):
        await put(saver, f"{number:06}", {"x": number}, run_id="run" if number < 10 else "other")
    writer = threading.Thread(target=keep_putting)
    writer.start()
    first.wait(10)
    try:
        for _ in range(3):
            await CHANGED[name](saver)
            if name == "acopy_thread":
                copied = await listed(saver, config("copy"))
                assert copied == [f"{number:06}" for number in range(len(copied))][::-1]
                await saver.adelete_thread("copy")
    finally:
        stop.set()
        writer.join()
    store.check()
    stored = {int(one) for one in await listed(saver, config())}
    if name == "aprune":
        assert stored == set(range(min(stored), acknowledged[-1] + 1))
    else:
        assert stored == set(range(10 if name == "adelete_for_runs" else 0, acknowledged[-1] + 1))


# Large values.


_MESSAGES = [HumanMessage(f"message {number} " * 20, id=f"{number}") for number in range(2000)]

_LARGE: dict[str, Any] = {
    "messages": _MESSAGES,
    "messages in a dict": {"messages": _MESSAGES, "more": [{"of": _MESSAGES[:1000]}]},
    "records": [{"id": number, "name": f"name {number}", "tags": ["a", "b"]} for number in range(20_000)],
    "numbers": list(range(300_000)),
    "a dict": {f"key {number}": number for number in range(40_000)},
    "one long item among short ones": [1, "x" * 600_000, *_MESSAGES],
    "a dict of other keys": {(number, "x"): [number] * 5 for number in range(40_000)},
}
_MOST = {id(_LARGE["one long item among short ones"]): 750_000}
_EACH_LARGE = pytest.mark.parametrize("large", _LARGE.values(), ids=_LARGE.keys())


@contextmanager
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many bytes are read between two turns of the loop, where each call yields whenever it may."""
    read = [0]

    def unpacked(packed: bytes, **options: Any) -> Any:
        read[-1] += len(packed)
        return unpackb(packed, **options)

    async def turn() -> None:
        read.append(0)
        await yield_to_loop()

    with monkeypatch.context() as patch:
        patch.setattr(serde, "unpackb", unpacked)
        patch.setattr(pace, "yield_to_loop", turn)
        patch.setattr(pace, "_SLICE", -1.0)
        patch.setattr(pace._pace, "until", -1.0)
        yield read


@_EACH_LARGE
async def test_a_large_value_is_read_in_slices(large: Any, saver: AsyncSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither reading nor listing holds the loop for more than some kilobytes, or one value that has no parts."""
    await put(saver, "1", {"x": large})
    await put(saver, "2", {"x": [large, "more"]})  # so that the first is made of it
    await saver.aput_writes(config(checkpoint_id="2"), [("x", large)], "task")
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: saver.aget_tuple(config()),
        lambda: saver.aget_tuple(config(checkpoint_id="1")),
        lambda: all_of(saver.alist(config())),
    ]
    for call in calls:
        with steps(monkeypatch) as read:
            found = await call()
        assert max(read) <= _MOST.get(id(large), 150_000)
        assert len(read) > 5
        newest = found[0] if isinstance(found, list) else found
        assert newest.checkpoint["channel_values"]["x"] in (large, [large, "more"])
        if newest.pending_writes:
            assert newest.pending_writes == [("task", "x", large)]


@_EACH_LARGE
async def test_what_a_delta_channel_is_rebuilt_from_is_read_in_slices(
    large: Any, saver: AsyncSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot and its writes."""
    await put(saver, "1", {"x": _DeltaSnapshot(large)})
    await saver.aput_writes(config(checkpoint_id="1"), [("x", large)], "task")
    await put(saver, "2", parent="1")
    with steps(monkeypatch) as read:
        found = await saver.aget_delta_channel_history(config=config(), channels=["x"])
    assert found["x"] == {"writes": [("task", "x", large)], "seed": _DeltaSnapshot(large)}
    assert max(read) <= _MOST.get(id(large), 150_000)
    assert len(read) > 5


async def test_a_serializer_that_reads_in_a_way_of_its_own_is_asked(saver: AsyncSaver) -> None:
    """Also if it is no class's method, and if only this instance does."""
    await put(saver, "1", {"x": _MESSAGES})
    ordinary, asked = JsonPlusSerializer(), []

    def loads_typed(data: tuple[str, bytes]) -> Any:
        asked.append(len(data[1]))
        return ordinary.loads_typed(data)

    patched = FastJsonPlusSerializer()
    patched.loads_typed = loads_typed  # type: ignore[method-assign]
    for other in (patched, SimpleNamespace(dumps_typed=ordinary.dumps_typed, loads_typed=loads_typed)):
        saver.serde = other
        found = await saver.aget_tuple(config())
        assert found is not None
        assert found.checkpoint["channel_values"]["x"] == _MESSAGES
        assert max(asked) > 100_000
        asked.clear()
