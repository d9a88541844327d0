"""The promises of docs/design.md that part 1 makes, each in tests named after it."""

import copy
import dataclasses
import inspect
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import pytest
from anyio import create_task_group, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint as yield_to_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver as Reference
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import INTERRUPT

import async_saver
from async_saver import AsyncSaver, AsyncSaverError, DeserializationError, MemoryStore, SerializationError, pace
from async_saver.records import CheckpointRecord
from async_saver.stores import memory
from tests.build import all_of, checkpoint, config, ids, listed, put
from tests.stores import contents

pytestmark = pytest.mark.anyio


# P1 Drop-in.


def test_p1_has_the_bases_and_the_names_of_in_memory_saver() -> None:
    """The import is the only thing that changes."""
    assert async_saver.InMemorySaver is async_saver.MemorySaver is AsyncSaver
    own_bases = {cls.__module__ + "." + cls.__name__ for cls in AsyncSaver.__mro__[1:]}
    assert own_bases == {cls.__module__ + "." + cls.__name__ for cls in Reference.__mro__[1:]}
    assert AsyncSaver.__mro__[1] is Reference.__mro__[1] is BaseCheckpointSaver


_UPSTREAM = [name for name, method in inspect.getmembers(Reference, inspect.isfunction) if not name.startswith("_")]


@pytest.mark.parametrize("name", _UPSTREAM)
def test_p1_methods_take_what_in_memory_saver_takes(name: str) -> None:
    """LangGraph reads `task_path` off a signature, and users pass arguments by name."""

    def shape(cls: type) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(getattr(cls, name)).parameters.values()
        return [(one.name, one.kind, one.default) for one in parameters]

    assert shape(AsyncSaver) == shape(Reference)


def test_p1_constructor_takes_what_in_memory_saver_takes() -> None:
    """`serde` and `factory` mean the same; `store` is new."""
    theirs, ours = inspect.signature(Reference).parameters, inspect.signature(AsyncSaver).parameters
    assert {name: (one.kind, one.default) for name, one in theirs.items()}.items() <= {
        name: (one.kind, one.default) for name, one in ours.items()
    }.items()


def test_p1_an_empty_saver_is_true_and_only_equal_to_itself() -> None:
    """LangGraph tests savers for truth: one with a length would store nothing, silently."""
    assert AsyncSaver()
    assert AsyncSaver() != AsyncSaver()
    assert not {"__len__", "__bool__", "__eq__"} & {name for cls in AsyncSaver.__mro__[:-1] for name in vars(cls)}


_IDS = st.sampled_from(["1", "2", "3", "4"])
_WHERE = {"thread_id": st.sampled_from(["a", "b"]), "ns": st.sampled_from(["", "child:1"])}
_CHANNELS = st.sampled_from(["x", "y", "z"])
_VALUES = st.dictionaries(_CHANNELS, st.none() | st.integers(0, 9) | st.just([1, {"k": "v"}]))
_OPERATIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "call": st.just("put"),
            **_WHERE,
            "checkpoint_id": _IDS,
            "parent": st.none() | _IDS,
            "values": _VALUES,
            "versions": st.dictionaries(_CHANNELS, st.integers(1, 3)),
            "new": st.sets(_CHANNELS),
            "metadata": st.dictionaries(st.sampled_from(["step", "source"]), st.integers(0, 2)),
        }
    ),
    st.fixed_dictionaries(
        {
            "call": st.just("put_writes"),
            **_WHERE,
            "checkpoint_id": _IDS,
            "writes": st.lists(st.tuples(st.sampled_from(["x", "y", INTERRUPT]), st.integers(0, 9)), max_size=3),
            "task_id": st.sampled_from(["t1", "t2"]),
            "path": st.sampled_from(["", "p1", "p0"]),
        }
    ),
    st.fixed_dictionaries({"call": st.just("delete"), **_WHERE}),
)
_QUERIES = st.fixed_dictionaries(
    {
        **_WHERE,
        "checkpoint_id": st.none() | _IDS,
        "filter": st.none() | st.dictionaries(st.sampled_from(["step", "source"]), st.integers(0, 2), max_size=1),
        "before": st.none() | _IDS,
        "limit": st.none() | st.integers(-1, 3),
    }
)


def _apply(saver: BaseCheckpointSaver[str], operation: dict[str, Any]) -> Any:
    o = operation
    if o["call"] == "delete":
        return saver.delete_thread(o["thread_id"])
    if o["call"] == "put_writes":
        where = config(o["thread_id"], o["checkpoint_id"], o["ns"])
        return saver.put_writes(where, o["writes"], o["task_id"], o["path"])
    made = checkpoint(o["checkpoint_id"], o["values"], channel_versions=dict(o["versions"]))
    new = {channel: version for channel, version in o["versions"].items() if channel in o["new"]}
    # A circle of parents would keep InMemorySaver's walk going for ever.
    parent = o["parent"] if o["parent"] and o["parent"] < o["checkpoint_id"] else None
    return saver.put(config(o["thread_id"], parent, o["ns"]), made, o["metadata"], new)


def _answers(saver: BaseCheckpointSaver[str], query: dict[str, Any]) -> Any:
    where = config(query["thread_id"], query["checkpoint_id"], query["ns"])
    before = config(checkpoint_id=query["before"]) if query["before"] else None
    listed = saver.list(where, filter=query["filter"], before=before, limit=query["limit"])
    history = saver.get_delta_channel_history(config=where, channels=["x", "y"])
    return saver.get_tuple(where), list(listed), history


@settings(max_examples=150)
@given(operations=st.lists(_OPERATIONS, max_size=12), queries=st.lists(_QUERIES, min_size=1, max_size=6))
def test_p1_answers_are_those_of_in_memory_saver(
    operations: list[dict[str, Any]], queries: list[dict[str, Any]]
) -> None:
    """Whatever was put, in whatever order, every call returns what InMemorySaver's returns."""
    ours, theirs = AsyncSaver(), Reference()
    for operation in operations:
        assert _apply(ours, operation) == _apply(theirs, operation)
    for query in queries:
        assert _answers(ours, query) == _answers(theirs, query)
    assert ours.storage == _without_traces(theirs.storage)
    assert ours.writes == {key: held for key, held in theirs.writes.items() if held}
    assert ours.blobs == theirs.blobs


def _without_traces(storage: dict[str, Any]) -> dict[str, Any]:
    """InMemorySaver's storage without the empty entries that its reading leaves."""
    held = {
        thread_id: {ns: checkpoints for ns, checkpoints in namespaces.items() if checkpoints}
        for thread_id, namespaces in storage.items()
    }
    return {thread_id: namespaces for thread_id, namespaces in held.items() if namespaces}


# P2 What is stored is what was passed.


async def test_p2_changes_after_the_call_has_started_are_not_stored(saver: AsyncSaver) -> None:
    """The arguments are serialised before the first await, here the wait for the conversation's lock."""
    values: dict[str, Any] = {"list": [1], "bytes": bytearray(b"before")}
    made, metadata, new_versions = checkpoint("1", values), {"step": 1, "tags": ["before"]}, {"list": "1", "bytes": "1"}
    put_config, write_config, writes = config(checkpoint_id="0"), config(checkpoint_id="1"), [("channel", ["before"])]
    async with create_task_group() as calls, saver._shared.locks.holding("t"):
        calls.start_soon(saver.aput, put_config, made, metadata, new_versions)
        calls.start_soon(saver.aput_writes, write_config, writes, "task")
        await wait_all_tasks_blocked()
        values["list"].append("after")
        values["bytes"].extend(b" and after")
        values["new"] = "after"
        made["channel_versions"]["list"] = made["id"] = "after"
        metadata["tags"].append("after")  # type: ignore[attr-defined]
        metadata["step"] = 2
        new_versions["list"] = "after"
        writes[0][1].append("after")
        writes.append(("channel", ["after"]))
        put_config["configurable"].update(thread_id="after", checkpoint_id="after")
        write_config["configurable"].update(thread_id="after", checkpoint_id="after")
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.checkpoint == checkpoint("1", {"list": [1], "bytes": bytearray(b"before")})
    assert found.metadata == {"step": 1, "tags": ["before"]}
    assert found.pending_writes == [("task", "channel", ["before"])]
    assert found.parent_config == config(checkpoint_id="0")
    assert await saver.acount() == 1


async def test_p2_a_bytearray_is_stored_as_it_was(saver: AsyncSaver) -> None:
    """The default serializer hands back the very bytearray that it was given."""
    value = bytearray(b"before")
    await put(saver, "1", {"x": value})
    value.extend(b" and after")
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"]["x"] == bytearray(b"before")


def test_p2_a_sync_put_serialises_in_its_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way to the portal another worker thread may change what was passed."""
    saver, values, writes = AsyncSaver(), {"x": ["before"]}, [("c", ["before"])]
    call = async_saver.saver.bridge.call

    def late(func: Callable[..., Any], *args: Any) -> Any:
        values["x"].append("after")
        writes[0][1].append("after")
        return call(func, *args)

    monkeypatch.setattr(async_saver.saver.bridge, "call", late)
    saver.put(config(), checkpoint("1", values), {}, {"x": "1"})
    values["x"].remove("after")
    writes[0][1].remove("after")
    saver.put_writes(config(checkpoint_id="1"), writes, "task")
    found = saver.get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"x": ["before"]}
    assert found.pending_writes == [("task", "c", ["before"])]


# P5 No lock across a yield.


async def test_p5_a_put_inside_alist_works_and_does_not_appear(saver: AsyncSaver) -> None:
    """What is shown is fixed when the iteration starts, in each way of listing."""
    for wanted in (config(), config(ns=None), None):
        await saver.adelete_thread("t")
        for checkpoint_id in ("1", "3", "5"):
            await put(saver, checkpoint_id)
        seen = []
        async for one in saver.alist(wanted):
            seen.append(one.checkpoint["id"])
            for late in (f"{len(seen)}.5", f"9{len(seen)}"):
                await put(saver, late)
        assert seen == ["5", "3", "1"]


async def test_p5_what_is_deleted_meanwhile_is_skipped(saver: AsyncSaver) -> None:
    """One run's checkpoints, or the rest of the conversation."""
    for checkpoint_id in ("1", "2", "3", "4"):
        await put(saver, checkpoint_id, run_id=checkpoint_id)
    found = saver.alist(config())
    assert ids([await anext(found)]) == ["4"]
    await saver.adelete_for_runs(["3"])
    assert ids([await anext(found)]) == ["2"]
    await saver.adelete_thread("t")
    # Where it is read page after page, what comes later below may appear.
    await put(saver, "0" if isinstance(saver._shared.store, MemoryStore) else "5")
    assert await all_of(found) == []


async def test_p5_a_half_read_iterator_blocks_nobody(saver: AsyncSaver) -> None:
    """Writes of every kind go on beside it, and dropping it leaves nothing to close."""
    await put(saver, "1")
    await put(saver, "2")
    found = saver.alist(config())
    await anext(found)
    await put(saver, "3")
    await saver.aput_writes(config(checkpoint_id="3"), [("c", 1)], "task")
    await saver.acopy_thread("t", "copy")
    await saver.aprune(["t"])
    await saver.adelete_thread("t")
    assert len(saver._shared.locks) == 0
    await found.aclose()  # type: ignore[attr-defined]
    assert await all_of(found) == []


def test_p5_the_sync_list_works_the_same_way() -> None:
    """A put inside the loop works, does not appear, and what is deleted is skipped."""
    saver = AsyncSaver()
    for checkpoint_id in ("1", "2", "3"):
        saver.put(config(), checkpoint(checkpoint_id), {}, {})
    seen = []
    for one in saver.list(config()):
        seen.append(one.checkpoint["id"])
        saver.put(config(), checkpoint("4"), {}, {})
        if len(seen) == 2:
            saver.delete_thread("t")
    assert seen == ["3", "2"]


async def test_p5_conversations_are_listed_as_they_were_at_the_start(saver: AsyncSaver) -> None:
    """Newest activity first; those that come later do not appear, deleted ones are skipped."""
    for thread_id in ("a", "b", "c", "d"):
        await put(saver, "1", thread_id=thread_id)
    await saver.aput_writes(config("b", "1"), [("c", 1)], "task")
    found = saver.athread_ids()
    assert await anext(found) == "b"
    await put(saver, "1", thread_id="e")
    await saver.adelete_thread("c")
    assert await all_of(found) == ["d", "a"]
    assert await all_of(saver.athread_ids()) == ["e", "b", "d", "a"]
    assert await saver.acount() == 4


# P8 One state, many clones.


@dataclasses.dataclass
class Mine:
    """A type that is on one graph's allowlist."""

    a: int


@dataclasses.dataclass
class Yours:
    """A type that is on another graph's allowlist."""

    a: int


async def test_p8_clones_share_data_and_locks_but_never_the_serde() -> None:
    """`with_allowlist` makes such a clone for every run in strict mode."""
    saver = AsyncSaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    clone = saver.with_allowlist([("tests.test_promises", "Mine")])
    assert clone is not saver
    assert clone._shared is saver._shared
    assert clone.serde is not saver.serde
    await put(clone, "1", {"x": 1})
    await put(saver, "2", {"x": 2})
    assert await listed(saver, config()) == await listed(clone, config()) == ["2", "1"]


@pytest.mark.parametrize("encrypted", [False, True])
async def test_p8_two_strict_clones_cannot_load_each_others_types(encrypted: bool) -> None:
    """Neither by their own serde nor through anything that the other left behind."""

    def strict() -> Any:
        plain = JsonPlusSerializer(allowed_msgpack_modules=None)
        return EncryptedSerializer.from_pycryptodome_aes(plain, key=b"0" * 16) if encrypted else plain

    saver = AsyncSaver(serde=strict())
    mine, yours = (saver.with_allowlist([("tests.test_promises", cls.__name__)]) for cls in (Mine, Yours))
    await put(saver, "0")
    await put(saver, "1", {"mine": Mine(1), "yours": Yours(2)}, parent="0")
    for checkpoint_id in "01":
        await saver.aput_writes(config(checkpoint_id=checkpoint_id), [("mine", Mine(1)), ("yours", Yours(2))], "task")
    for _ in range(2):
        for clone, expected in (
            (mine, {"mine": Mine(1), "yours": {"a": 2}}),
            (yours, {"mine": {"a": 1}, "yours": Yours(2)}),
            (saver, {"mine": {"a": 1}, "yours": {"a": 2}}),
        ):
            found = await clone.aget_tuple(config())
            assert found is not None
            assert found.checkpoint["channel_values"] == expected
            assert found.pending_writes == [("task", channel, value) for channel, value in expected.items()]
            history = await clone.aget_delta_channel_history(config=config(), channels=["mine", "yours"])
            assert {channel: part["writes"][0][2] for channel, part in history.items()} == expected


async def test_p8_the_serde_may_be_replaced_after_construction() -> None:
    """LangGraph's own tests do; what is stored from then on is in its form."""
    saver = AsyncSaver()
    clone = copy.copy(saver)
    saver.serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16)
    await put(saver, "1", {"x": "plain text"})
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"x": "plain text"}
    assert saver.blobs["t", "", "x", "1"][0] == "msgpack+aes"
    with pytest.raises(DeserializationError):
        await clone.aget_tuple(config())


async def test_p8_a_deep_copy_is_independent() -> None:
    """With what the original held, and with attributes of a subclass."""

    class Counting(AsyncSaver):
        seen: list[str]

    saver = Counting()
    saver.seen = ["before"]
    await put(saver, "1", {"x": 1}, run_id="run")
    await saver.aput_writes(config(checkpoint_id="1"), [("c", 1)], "task")
    twin = copy.deepcopy(saver)
    before = await all_of(saver.alist(None))
    assert await all_of(twin.alist(None)) == before
    await put(twin, "2", {"x": 2})
    await twin.aput_writes(config(checkpoint_id="1"), [("c", 2)], "another")
    twin.seen.append("after")
    assert await all_of(saver.alist(None)) == before
    assert saver.seen == ["before"]
    await twin.adelete_for_runs(["run"])
    assert await all_of(saver.alist(None)) == before


# P9 Reading changes nothing.


async def test_p9_reading_the_unknown_leaves_no_trace(saver: AsyncSaver) -> None:
    """Many unknown ids in every read call, by method and by view."""
    store = saver._shared.store
    await put(saver, "1", {"x": 1})
    before = contents(saver)
    for number in range(1000 if isinstance(store, MemoryStore) else 50):
        name = f"unknown {number}"
        for where in (config(name), config(name, "1"), config("t", name), config("t", ns=name), config("t", "1", name)):
            assert await saver.aget_tuple(where) is None
            assert await listed(saver, where) == []
            assert await saver.aget_delta_channel_history(config=where, channels=["c"]) == {"c": {"writes": []}}
        if isinstance(store, MemoryStore):
            assert saver.storage[name] == {}
            assert saver.storage[name]["ns"] == {}
            assert saver.writes[name, "", "1"] == {}
            assert name not in saver.storage
    assert await saver.acount() == 1
    assert await all_of(saver.athread_ids()) == ["t"]
    assert contents(saver) == before
    if isinstance(store, MemoryStore):
        assert [*store._buckets] == ["t"]
        assert [*store._buckets["t"].namespaces] == [""]


def test_p9_sync_reading_of_the_unknown_leaves_no_trace() -> None:
    """By every sync method that reads."""
    saver = AsyncSaver()
    for number in range(100):
        where = config(f"unknown {number}")
        assert saver.get_tuple(where) is saver.get(where) is None
        assert list(saver.list(where)) == []
        assert saver.get_delta_channel_history(config=where, channels=["c"]) == {"c": {"writes": []}}
    assert saver.count() == 0
    assert list(saver.thread_ids()) == []


async def test_p9_two_readers_get_two_values(saver: AsyncSaver) -> None:
    """What one does to its checkpoint, metadata or writes, the next does not see."""
    await put(saver, "1", {"x": [1]}, metadata={"tags": ["a"]})
    await saver.aput_writes(config(checkpoint_id="1"), [("c", [1])], "task")
    first = await saver.aget_tuple(config())
    assert first is not None
    assert first.pending_writes is not None
    first.checkpoint["channel_values"]["x"].append(2)
    first.checkpoint["channel_versions"]["x"] = "spoilt"
    first.metadata["tags"].append("b")  # type: ignore[typeddict-item]
    first.pending_writes[0][2].append(2)
    first.config["configurable"]["thread_id"] = "spoilt"
    second = await saver.aget_tuple(config())
    assert second is not None
    assert second.checkpoint == checkpoint("1", {"x": [1]})
    assert second.metadata == {"tags": ["a"]}
    assert second.pending_writes == [("task", "c", [1])]
    assert second.config == config(checkpoint_id="1")


# P10 The loop stays free.


async def test_p10_reading_a_checkpoint_yields_as_it_goes(saver: AsyncSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another task gets its turns between the values, by a clock on which each value takes two milliseconds."""
    clock = [0.0]

    class Slow(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            clock[0] += 0.002
            return super().loads_typed(data)

    await put(saver, "1", {f"{number}": [number] for number in range(20)})
    saver.serde = Slow()
    monkeypatch.setattr(pace, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pace, "_pace", pace._Pace())
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await yield_to_loop()

    async with create_task_group() as tasks:
        tasks.start_soon(other)
        await saver.aget_tuple(config())
        tasks.cancel_scope.cancel()
    assert turns >= 20


# P11 Cost follows the conversation.


class Counted(str):
    """An id that counts how often it is compared or hashed."""

    __slots__ = ()
    count = 0

    def __lt__(self, other: object) -> bool:
        Counted.count += 1
        return str.__lt__(self, other)  # type: ignore[arg-type]

    def __gt__(self, other: object) -> bool:
        Counted.count += 1
        return str.__gt__(self, other)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        Counted.count += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Counted.count += 1
        return str.__hash__(self)


async def _effort(call: Callable[[AsyncSaver], Awaitable[Any]], saver: AsyncSaver) -> int:
    """What a call costs by measures that do not depend on the machine: lines run, ids compared or hashed, and room.

    The room counts by the 64 bytes, so that a copy of a history, which runs no line, shows too.
    """
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    Counted.count = 0
    former = sys.gettrace()
    tracemalloc.start()
    sys.settrace(trace)
    try:
        before = tracemalloc.get_traced_memory()[0]
        await call(saver)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        sys.settrace(former)
        tracemalloc.stop()
    return lines + Counted.count + (peak - before) // 64


async def _filled(conversations: int, checkpoints: int) -> AsyncSaver:
    store, blob = MemoryStore(), ("msgpack", b"\x80")
    for number in range(conversations):
        for step in range(checkpoints if number == 0 else 1):
            checkpoint_id, thread_id = Counted(f"{step:06}"), Counted(f"thread {number}")
            record = CheckpointRecord(checkpoint_id, None, blob, blob, (("x", step),), f"run {number} {step}", ())
            await store.put(thread_id, Counted(""), record, [(("x", step), blob)])
    return AsyncSaver(store=store)


_LONG, _OTHER = config("thread 0"), config("thread 1")
_CALLS: dict[str, Callable[[AsyncSaver], Awaitable[Any]]] = {
    "aget_tuple": lambda saver: saver.aget_tuple(_LONG),
    "alist": lambda saver: anext(saver.alist(_LONG)),
    "alist, all namespaces": lambda saver: anext(saver.alist(config("thread 0", ns=None))),
    "alist, limit": lambda saver: all_of(saver.alist(_LONG, limit=1)),
    "aget_delta_channel_history": lambda saver: saver.aget_delta_channel_history(config=_LONG, channels=["x"]),
    "aput": lambda saver: saver.aput(_LONG, checkpoint("9", {"x": 1}), {}, {"x": "9"}),
    "aput_writes": lambda saver: saver.aput_writes(config("thread 0", "9"), [("x", 1)], "task"),
    "adelete_thread": lambda saver: saver.adelete_thread("thread 1"),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["run 1 0"]),
    "acopy_thread": lambda saver: _copied(saver),
    "aprune": lambda saver: saver.aprune(["thread 1"]),
    "acount": lambda saver: saver.acount(),
}


async def _copied(saver: AsyncSaver) -> None:
    await saver.adelete_thread("copy")
    await saver.acopy_thread("thread 1", "copy")


@pytest.mark.parametrize("name", _CALLS)
@pytest.mark.parametrize("large", [(2000, 1), (2, 2000)], ids=["conversations", "history"])
async def test_p11_cost_does_not_grow(name: str, large: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with the other conversations nor, for the latest and the first page, with this one's history."""
    monkeypatch.setattr(memory, "_SLICE", inf)  # on a slow machine, more slices and yields would be more lines
    monkeypatch.setattr(pace._pace, "until", inf)
    small = await _effort(_CALLS[name], await _filled(2, 1))
    big = await _effort(_CALLS[name], await _filled(*large))
    assert big < small + 150, (
        small,
        big,
    )  # a bisection's steps; a look at each, or a copy of their list, is 250 and more


# P12 Clear errors.


def test_p12_every_error_is_an_async_saver_error_and_a_built_in() -> None:
    """One root to catch; each child is also what a caller without it would catch."""
    children = [cls for cls in vars(async_saver).values() if isinstance(cls, type) and issubclass(cls, AsyncSaverError)]
    assert len(children) > 5
    for cls in children:
        builtins = [base for base in cls.__mro__ if base.__module__ == "builtins"]
        assert cls is AsyncSaverError or builtins[0] is not Exception, cls
        assert str(cls("a message")) == "a message"


class Unserialisable:
    """A value whose repr is a secret."""

    def __repr__(self) -> str:
        return "hunter2"


@pytest.mark.parametrize("value", [Unserialisable(), [{"deep": Unserialisable()}], lambda: None])
async def test_p12_what_cannot_be_serialised_names_its_channel_and_type_and_stores_nothing(
    saver: AsyncSaver, value: Any
) -> None:
    """What was there before is untouched, and the message holds nothing of the state."""
    await put(saver, "1", {"x": "before"})
    await saver.aput_writes(config(checkpoint_id="1"), [("c", "before")], "task")
    before = contents(saver)
    attempts = [
        lambda: put(saver, "2", {"good": 1, "bad channel": value}),
        lambda: put(saver, "1", {"bad channel": value, "x": "after"}),
        lambda: saver.aput_writes(config(checkpoint_id="1"), [("good", 1), ("bad channel", value)], "other"),
        lambda: saver.aput_writes(config("new", "1"), [("bad channel", value)], "other"),
    ]
    for attempt in attempts:
        with pytest.raises(SerializationError) as caught:
            await attempt()
        message = str(caught.value)
        assert "bad channel" in message
        assert type(value).__name__ in message
        assert "thread_id" in message
        assert "hunter2" not in message
        assert isinstance(caught.value, TypeError)
        assert caught.value.__cause__ is not None
    assert contents(saver) == before
    assert await saver.acount() == 1


async def test_p12_metadata_that_cannot_be_serialised_is_named(saver: AsyncSaver) -> None:
    """As metadata, with its conversation cut to 80 characters, by the sync method too."""
    long_config = config("t" * 200)
    with pytest.raises(SerializationError, match=r"serialise the metadata of thread_id 't+\.\.\.: ") as caught:
        await saver.aput(long_config, checkpoint("1"), {"bad": Unserialisable()}, {})  # type: ignore[typeddict-unknown-key]
    assert "t" * 80 not in str(caught.value)
    with pytest.raises(SerializationError, match=r"serialise the metadata of thread_id 't+\.\.\.: "):
        saver.put(long_config, checkpoint("1"), {"bad": Unserialisable()}, {})  # type: ignore[typeddict-unknown-key]
    assert await saver.acount() == 0


async def test_p12_a_value_that_cannot_be_read_names_its_channel(saver: AsyncSaver) -> None:
    """And the remedy: the serde that it was written with."""

    class Failing(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            if data[1].endswith(b"secret"):
                raise ValueError("secret")
            return super().loads_typed(data)

    await put(saver, "1", {"the channel": ["secret"]}, thread_id="t" * 200)
    saver.serde = Failing()
    with pytest.raises(DeserializationError, match=r"channel 'the channel' of thread_id 'ttt.*serde") as caught:
        await saver.aget_tuple(config("t" * 200))
    assert "t" * 80 not in str(caught.value)
    assert "secret" not in str(caught.value)
