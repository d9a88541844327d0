"""The leases of the memory store: what undoing a session brings back, whole or not at all, and what leases leave."""

import copy
import gc
import random
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import anyio
import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint as yield_to_loop
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from async_saver import AsyncSaver, MemoryStore, SessionLostError, Store, ThreadExistsError
from async_saver.pace import _SLICE
from async_saver.records import EMPTY, Blob, CheckpointRecord, Lease, Listing, WriteRecord
from async_saver.stores import bucket, leases, memory
from async_saver.stores.history import Shared
from async_saver.stores.sqlite import SQLiteStore
from tests.build import all_of, config, listed, put
from tests.postgres import needed
from tests.stores import NewStore, contents, versions_of
from tests.test_cancellation import Way, _by_scope, _by_task, cancelled_at
from tests.test_interrupts import _busy, _frozen, _guard_is_free, _lost, alarms, cut_at, run
from tests.test_machine import BACKENDS
from tests.test_pace import LINE, LONG, clock, each_line_ticks, long_conversation

__all__ = ["_busy", "_frozen", "_lost", "alarms", "clock", "run"]  # the fixtures

# What is done to a conversation.

_MESSAGES = [random.Random(number).randbytes(200) for number in range(40)]


class Op(NamedTuple):
    """A call of the store that writes to a conversation, with all that may be drawn for it."""

    name: str
    ns: str = ""
    number: int = 0  # which checkpoint
    parent: int | None = None
    versions: tuple[tuple[str, int], ...] = ()
    new: tuple[bool, ...] = (True, True, True)  # which of the versions come with a value
    length: int = 1  # of values: messages, or 0 for a short one
    tail: int = 0  # which message they end with
    idx: int = 0
    task: str = "p"
    run: int = 0
    runs: tuple[int, ...] = ()

    def blob(self, channel: str = "m") -> Blob:
        """The value."""
        if not self.length:
            return EMPTY if self.tail % 3 == 0 else ("msgpack", bytes([self.tail]) * 9)
        return "msgpack", channel.encode() + b"".join(_MESSAGES[: self.length]) + _MESSAGES[-1 - self.tail]


async def do(store: Store, op: Op, thread_id: str, held: Sequence[Lease] = (), prefix: str = "") -> None:
    """Make the call."""
    place, run = f"{prefix}{op.number}", f"{thread_id} {prefix}{op.run}"
    if op.name == "put":
        versions = tuple((channel, f"{prefix}{version}") for channel, version in dict(op.versions).items())
        deltas = tuple(channel for channel, _ in versions if channel == "d")
        parent = None if op.parent is None else f"{op.parent}"
        metadata = ("msgpack", bytes([op.tail]))
        record = CheckpointRecord(place, parent, ("msgpack", b"checkpoint"), metadata, versions, run, deltas)
        # Of a DeltaChannel there is a value here and there only.
        blobs = [
            (version, op.blob(version[0]))
            for version, is_new in zip(versions, op.new, strict=False)
            if is_new and (version[0] != "d" or op.tail == 1)
        ]
        await store.put(thread_id, op.ns, record, blobs, held)
    elif op.name == "write":
        channel = "d" if op.tail % 2 else "m"
        write = WriteRecord(f"{prefix}{op.task}", op.idx, channel, op.blob(), "", run)
        await store.put_writes(thread_id, op.ns, place, [write], held)
    elif op.name == "delete_for_runs":
        await store.delete_for_runs([f"{thread_id} {run}" for run in op.runs], held)
    elif op.name == "copy":
        with suppress(ThreadExistsError):
            await store.copy("other", thread_id, held)
    else:
        await getattr(store, op.name)([thread_id], held)


_additions = {
    "ns": st.sampled_from(["", "", "child"]),
    "number": st.integers(0, 3),
    "parent": st.none() | st.integers(0, 3),
    "versions": st.lists(st.tuples(st.sampled_from("mds"), st.integers(0, 4)), max_size=3).map(tuple),
    "new": st.tuples(st.booleans(), st.booleans(), st.booleans()),
    "length": st.sampled_from([0, 3, 8, 9, 10, 20, 30]),
    "tail": st.integers(0, 2),
    "idx": st.sampled_from([-4, -1, 0, 1]),
    "task": st.sampled_from("pq"),
    "run": st.integers(0, 2),
    "runs": st.just(()),
}
_puts = st.builds(Op, st.just("put"), **_additions)
_writes = st.builds(Op, st.just("write"), **_additions)
_runs = st.lists(st.integers(0, 2), max_size=2).map(lambda runs: Op("delete_for_runs", runs=tuple(runs)))
_wholes = st.sampled_from(["delete", "keep_latest", "keep_latest", "copy"]).map(Op)
_ops = st.one_of(_puts, _puts, _puts, _writes, _writes, _runs, _wholes)
_whose = st.sampled_from(["own", "own", "own", "own", "others", "another conversation"])
_ends = st.sampled_from(["undo", "undo", "undo", "release", "replace"])
_sessions = st.lists(st.tuples(st.lists(st.tuples(_whose, _ops), max_size=12), _ends), min_size=1, max_size=3)


async def shown(store: MemoryStore) -> dict[str, Any]:
    """All that can be read of a store, which is sound."""
    store.check()
    saver = AsyncSaver(store=store)
    found = [one async for one in store.list(Listing())]
    places = {(one.thread_id, one.checkpoint_ns, one.record.checkpoint_id) for one in found}
    buckets = store._buckets.items()
    return {
        "listed": sorted([(*one[:3], [*one.values], [*one.writes]) for one in found], key=repr),
        "latest": {(t, ns): await store.get(t, ns, None) for t, ns, _ in places},
        "histories": {place: await store.delta_history(*place, ["m", "d"]) for place in places},
        "thread_ids": sorted(await all_of(store.thread_ids())),
        "count": await store.count(),
        "storage": {t: {ns: dict(one) for ns, one in spaces.items()} for t, spaces in saver.storage.items()},
        "writes": {key: dict(one) for key, one in saver.writes.items()},
        "blobs": dict(saver.blobs),
        "hidden": {(t, ns): dict(namespace.checkpoints) for t, b in buckets for ns, namespace in b.namespaces.items()},
        "deltas": {(t, ns): namespace.delta_channels for t, b in buckets for ns, namespace in b.namespaces.items()},
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Say what differs, if something does."""
    for name, value in one.items():
        assert value == other[name], name


async def lease_of(store: MemoryStore, instead_of: Lease | None = None, undo: bool = False) -> leases.HeldLease:
    """A lease of the conversation t."""
    lease = await store.acquire("t", "test", instead_of=instead_of, undo=undo)
    assert isinstance(lease, leases.HeldLease)
    return lease


async def _tell(history: list[Op], sessions: list[tuple[list[tuple[str, Op]], str]], then: list[Op]) -> None:
    store, lease = MemoryStore(), None
    for number in range(3):
        await do(store, Op("put", number=number, versions=(("m", number),), length=8 + number), "other")
    for op in history:
        await do(store, op, "t")
    for session, end in sessions:
        wanted = copy.deepcopy(store)
        lease = await lease_of(store, lease)
        elsewhere = await store.acquire("other", "test")
        assert elsewhere is not None
        for number, (whose, op) in enumerate(session):
            if whose == "own":
                await do(store, op, "t", [elsewhere, lease])
            elif whose == "others" and op.name in ("put", "write"):
                # What is new: nobody else has it.
                for each in (store, wanted):
                    await do(each, op, "t", [elsewhere] if each is store else [], prefix=f"others {number} ")
            elif op.name not in ("copy", "delete_for_runs"):  # what was copied from there has its runs
                for each in (store, wanted):
                    await do(each, op, "other", [elsewhere, lease] if each is store else [])
        await store.release(elsewhere)
        if end == "release":
            assert await store.release(lease)
        else:
            former, lease = lease, await lease_of(store, lease, end == "undo")
            with pytest.raises(SessionLostError):
                await do(store, Op("put"), "t", [former])
            assert not former.formers
            assert former.bucket is None
        if end == "undo":
            same(await shown(store), await shown(wanted))
            for each in (store, wanted):
                for op in then:
                    await do(each, op, "t", [lease] if each is store else [])
            after, expected = await shown(store), await shown(wanted)
            if any(op.name == "delete_for_runs" for op in then):
                # A run that only overwritten records named is still looked for, and that frees what nobody needs.
                del after["blobs"]
            same(after, expected)


@pytest.mark.parametrize("slices", [True, False], ids=["in slices", "at once"])
@given(st.lists(_ops, max_size=12), _sessions, st.lists(_ops, max_size=4))
@settings(max_examples=100)
def test_what_is_undone_is_as_if_it_had_never_been(
    slices: bool, history: list[Op], sessions: list[tuple[list[tuple[str, Op]], str]], then: list[Op]
) -> None:
    """Whatever the session did, and others beside it; and what is done afterwards has the same effect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_SLICE", -1.0 if slices else 1e9)
        patch.setattr(memory, "_LARGE", 0)
        anyio.run(_tell, history, sessions, then)


async def shown_alike(store: Any) -> dict[str, Any]:
    """All that can be read of a store of any kind, which is sound."""
    saver = AsyncSaver(store=store)
    everything = contents(saver)  # looks whether it is sound
    found = [one async for one in store.list(Listing())]
    places = {(one.thread_id, one.checkpoint_ns, one.record.checkpoint_id) for one in found}
    return {
        "listed": sorted([(*one[:3], [*one.values], [*one.writes]) for one in found], key=repr),
        "latest": {(t, ns): _plain(await store.get(t, ns, None)) for t, ns, _ in places},
        "histories": {
            place: {name: (one.seed, [*one.writes]) for name, one in (await _history(store, place)).items()}
            for place in places
        },
        "thread_ids": sorted(await all_of(store.thread_ids())),
        "count": await store.count(),
        "writes": everything[1],
        "versions": versions_of(saver),
    }


async def in_sight(store: Any) -> dict[str, Any]:
    """Without the values that nothing needs: after a session a file has them until a next pruning."""
    found = await shown_alike(store)
    del found["versions"]
    return found


def _plain(found: Any) -> Any:
    return found and (*found[:3], [*found.values], [*found.writes])


async def _history(store: Any, place: tuple[str, str, str]) -> Any:
    return await store.delta_history(*place, ["m", "d"])


async def _tell_of_both(
    store: Any,
    mirror: Any,
    copied: Callable[[Any], Any],
    history: list[Op],
    sessions: list[tuple[list[tuple[str, Op]], str]],
    then: list[Op],
) -> None:
    """Do the same to two stores, in one of which nobody has leases: what is undone is not done there at all."""
    lease = None
    for number in range(3):
        for each in (store, mirror):
            await do(each, Op("put", number=number, versions=(("m", number),), length=8 + number), "other")
    for op in history:
        for each in (store, mirror):
            await do(each, op, "t")
        same(await shown_alike(store), await shown_alike(mirror))
    for session, end in sessions:
        without = copied(mirror)
        lease = await store.acquire("t", "test", instead_of=lease)
        assert lease is not None
        for number, (whose, op) in enumerate(session):
            if whose == "own":
                await do(store, op, "t", [lease])
                await do(mirror, op, "t")
            elif whose == "others" and op.name in ("put", "write"):
                for each in (store, mirror, without):
                    await do(each, op, "t", prefix=f"others {number} ")
            elif op.name not in ("copy", "delete_for_runs"):  # what was copied from there has its runs
                for each in (store, mirror, without):
                    await do(each, op, "other", [lease] if each is store else [])
            same(await in_sight(store), await in_sight(mirror))
        if end == "release":
            assert await store.release(lease)
            lease = None
        else:
            former, lease = lease, await store.acquire("t", "test", instead_of=lease, undo=end == "undo")
            with pytest.raises(SessionLostError):
                await do(store, Op("put"), "t", [former])
        if end == "undo":
            mirror = without
        same(await in_sight(store), await in_sight(mirror))
    for op in then:
        for each in (store, mirror):
            await do(each, op, "t", [lease] if lease is not None and each is store else [])
        same(await in_sight(store), await in_sight(mirror))
    for each in (store, mirror):
        await each.close()


def _in_line(ops: list[Any]) -> list[Any]:
    """The same, with no circles of parents: what is in sight of those after a pruning is not for tests to say."""
    lines = []
    for one in ops:
        op = one if isinstance(one, Op) else one[1]
        op = op if op.parent is None or op.parent < op.number else op._replace(parent=None)
        lines.append(op if isinstance(one, Op) else (one[0], op))
    return lines


@given(st.lists(_ops, max_size=12), _sessions, st.lists(_ops, max_size=4))
@settings(max_examples=30)
def test_a_file_holds_and_undoes_what_memory_does(
    history: list[Op], sessions: list[tuple[list[tuple[str, Op]], str]], then: list[Op]
) -> None:
    """Step by step, whatever the sessions and others do."""
    sessions = [(_in_line(session), end) for session, end in sessions]
    with TemporaryDirectory() as folder:
        told = (SQLiteStore(Path(folder) / "file"), MemoryStore(), copy.deepcopy)
        anyio.run(_tell_of_both, *told, _in_line(history), sessions, _in_line(then))


@given(st.lists(_ops, max_size=12), _sessions, st.lists(_ops, max_size=4))
@settings(max_examples=4, phases=[Phase.generate])  # to make it smaller would take hours
def test_a_server_undoes_as_if_it_had_never_been(
    history: list[Op], sessions: list[tuple[list[tuple[str, Op]], str]], then: list[Op]
) -> None:
    """Against a second one, in which what is undone was never done: prunings put more out of sight than in memory."""
    needed()
    sessions = [(_in_line(session), end) for session, end in sessions]
    with NewStore("postgres", Path()) as new:
        anyio.run(_tell_of_both, new(), new(), new.copy, _in_line(history), sessions, _in_line(then))


# A conversation, and what a session has done to it.

_HISTORY = [
    *[
        Op("put", ns, number, number - 1 if number else None, (("m", number), ("d", number)), length=9 + number, tail=1)
        for ns in ("", "child")
        for number in range(4)
    ],
    *[Op("write", ns, number, length=12, tail=1, run=number % 2) for ns in ("", "child") for number in range(5)],
    Op("write", number=3, length=0, idx=-4, tail=1),
    Op("delete_for_runs", runs=(2,)),
]
_CHANGES = [
    Op("put", "", 2, 1, (("m", 2), ("s", 1)), length=20),
    Op("put", "new", 7, None, (("m", 2),), length=20),
    Op("put", "child", 9, 3, (("m", 9), ("d", 9)), length=20),
    Op("write", number=3, length=0, idx=-4, tail=2),
    Op("write", "child", 9, task="q"),
]
STORIES = {
    "additions": _CHANGES,
    "a pruning": [_CHANGES[0], Op("keep_latest"), *_CHANGES],
    "a run's deletion": [_CHANGES[0], Op("delete_for_runs", runs=(0,)), *_CHANGES],
    "a deletion": [_CHANGES[0], Op("delete")],
    "a new beginning": [Op("delete"), *_CHANGES, Op("keep_latest")],
}


async def changed(story: Sequence[Op]) -> tuple[MemoryStore, leases.HeldLease, dict[str, Any]]:
    """A store, the lease of a session that has done something, and what was shown before."""
    store = MemoryStore()
    for op in _HISTORY:
        await do(store, op, "t")
    before = await shown(store)
    lease = await lease_of(store)
    for op in story:
        await do(store, op, "t", [lease])
    return store, lease, before


@pytest.mark.anyio
@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize("way", [_by_scope, _by_task])
@pytest.mark.parametrize("story", STORIES)
async def test_a_cancelled_undo_did_everything_or_nothing(story: str, way: Way | Any, anyio_backend_name: str) -> None:
    """At whatever await: the session holds what it has stored, or nobody holds what was there before."""
    if way is _by_task:
        if anyio_backend_name == "trio":
            pytest.skip("this is asyncio's way")
        way = partial(_by_task, "")
    seen = set()
    for step in count(-1):
        store, lease, before = await changed(STORIES[story])
        after = await shown(store)
        raised = await cancelled_at(step, way, store.acquire("t", "test", instead_of=lease, undo=True))
        is_undone = not lease.is_held()
        same(await shown(store), before if is_undone else after)
        assert lease.is_lost() == is_undone
        if raised is None:
            break
        seen.add(is_undone)
        assert await store.lease("t") is (None if is_undone else lease)
        now = await lease_of(store, lease, True)
        same(await shown(store), before)
        raised = await cancelled_at(step, way, store.release(now, delete=True))
        assert await store.lease("t") is None
        assert await store.count() == 0
    assert seen == {False, True}


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize("story", STORIES)
def test_an_undo_interrupted_at_any_line_is_whole(
    story: str, run: Callable[[Coroutine[Any, Any, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after, and the lease with it; a second one does what is left to do, and nobody else is let in."""
    monkeypatch.setattr(memory, "_SLICE", 1e9)
    files = (memory.__file__, leases.__file__, bucket.__file__)
    seen = set()
    with ThreadPoolExecutor(1) as others:
        for number in count():
            store, lease, before = run(changed(STORIES[story]))
            after = run(shown(store))
            more = cut_at(number * _EACH, partial(_run_new, run, store, lease), files)
            assert others.submit(_guard_is_free).result(10)
            is_undone = not run(store.renew(lease))
            same(run(shown(store)), before if is_undone else after)
            seen.add(is_undone)
            if is_undone and run(_is_held(store)):
                gc.collect()  # as the interrupt came, the lease was on its way to the caller: it is in the traceback
            run(lease_of(store, lease, True))
            same(run(shown(store)), before)
            if not more:
                break
    assert seen == {False, True}
    assert number * _EACH > 100


_EACH = 13  # every so many lines: undoing has many, and most are of the preparation


async def _is_held(store: MemoryStore) -> bool:
    return await store.lease("t") is not None


def _run_new(run: Callable[[Coroutine[Any, Any, Any]], Any], store: MemoryStore, lease: Lease) -> None:
    run(store.acquire("t", "test", instead_of=lease, undo=True))


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize(
    "op", [Op("keep_latest"), Op("delete"), Op("put", number=2), Op("copy")], ids=lambda op: op.name
)
def test_what_is_interrupted_at_any_line_can_be_undone(op: Op, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    """The notes are right, whether the call has stored something or not."""

    async def begin() -> tuple[MemoryStore, Lease, dict[str, Any]]:
        store = MemoryStore()
        await do(store, Op("put"), "other")
        for one in _HISTORY if op.name != "copy" else []:
            await do(store, one, "t")
        return store, await lease_of(store), await shown(store)

    files = (memory.__file__, leases.__file__, bucket.__file__)
    for number in count():
        store, lease, before = run(begin())
        more = cut_at(number, lambda store=store, lease=lease: run(do(store, op, "t", [lease])), files)  # type: ignore[misc]
        for later in _CHANGES:
            run(do(store, later, "t", [lease]))
        run(lease_of(store, lease, True))
        same(run(shown(store)), before)
        if not more:
            break
    assert number > 20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", ["put", "keep_latest", "delete"])
def test_others_write_while_a_session_is_undone(first: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From other event loops, with its lease until that is refused, and without: what those stored stays."""
    monkeypatch.setattr(memory, "_SLICE", 0.0)

    async def fill() -> tuple[MemoryStore, MemoryStore, Lease]:
        store = MemoryStore()
        for number in range(200):
            await do(store, Op("put", "", number, number - 1, (("m", number),), length=8 + number % 20), "t")
        wanted, lease = copy.deepcopy(store), await lease_of(store)
        await do(store, Op(first, "", 7), "t", [lease])
        return store, wanted, lease

    async def own(store: MemoryStore, lease: Lease) -> None:
        for number in count():
            with_value = Op("put", "", number % 300, None, (("m", number),), length=9)
            try:
                await do(store, with_value, "t", [lease])
                await do(store, Op("write", "", number % 300), "t", [lease])
            except SessionLostError:
                break
            await yield_to_loop()

    async def others(store: MemoryStore, wanted: MemoryStore, done: threading.Event) -> None:
        for number in count():
            for each in (store, wanted):
                await do(each, Op("put", "", number, None, (("m", number),), length=9), "t", prefix="others ")
            if done.is_set():
                break
            await anyio.sleep(0.0005)

    store, wanted, lease = anyio.run(fill, backend=backend)
    done = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(partial(anyio.run, own, store, lease, backend=backend)),
            pool.submit(partial(anyio.run, others, store, wanted, done, backend=backend)),
        ]
        anyio.run(partial(_pause_and_undo, store, lease), backend=backend)
        done.set()
    for call in calls:
        call.result()
    same(anyio.run(shown, store), anyio.run(shown, wanted))


async def _pause_and_undo(store: MemoryStore, lease: Lease) -> None:
    await anyio.sleep(0.01)
    await lease_of(store, lease, True)


# How long it takes.


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", ["put", "keep_latest", "delete", "release"])
async def test_undoing_a_long_conversation_leaves_the_loop_free(name: str, clock: list[float]) -> None:
    """No slice of it is longer than a millisecond, nor as what was kept for it is let go."""
    saver = await long_conversation()
    store: Any = saver._shared.store
    lease = await lease_of(store)
    for number in range(100):
        record = CheckpointRecord(f"{number * 97:06}", None, ("msgpack", b"c"), EMPTY, (), None, ())
        await store.put("t", "", record, [(("x", f"{number:06}"), ("msgpack", b"new"))], [lease])
    if name != "put":
        await getattr(store, "keep_latest" if name == "release" else name)(["t"], [lease])
    turns: list[float] = []

    async def other() -> None:
        while True:
            turns.append(clock[0])
            await yield_to_loop()

    async with create_task_group() as tasks:
        tasks.start_soon(other)
        await yield_to_loop()
        with each_line_ticks(clock):
            if name == "release":
                await store.release(lease)
            else:
                await store.acquire("t", "test", instead_of=lease, undo=True)
        tasks.cancel_scope.cancel()
    gaps = [now - before for before, now in zip(turns, [*turns[1:], clock[0]], strict=True)]
    assert max(gaps) <= 4 * (_SLICE + 200 * LINE)
    assert len(turns) > (2 if name == "release" else 20)
    store.check()
    if name != "release":
        assert len(await listed(saver, config())) == LONG


# What is left.


@pytest.fixture
def _uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.anyio
@pytest.mark.usefixtures("_uncollected")
async def test_of_leases_that_ended_nothing_is_left() -> None:
    """However they did; also without a garbage collection."""
    store, former = MemoryStore(), None
    saver = AsyncSaver(store=store)
    ends: list[Callable[[Lease], Awaitable[object]]] = [
        store.release,
        lambda lease: store.release(lease, delete=True),
        lambda lease: _replaced(store, lease, False),
        lambda lease: _replaced(store, lease, True),
    ]
    for number in range(10_000):
        lease = await store.acquire(f"{number % 1000}", "test")
        assert isinstance(lease, leases.HeldLease)
        await store.put(
            lease.thread_id,
            "",
            CheckpointRecord(f"{number}", None, ("msgpack", b"c"), EMPTY, (), None, ()),
            [],
            [lease],
        )
        if number % 3 == 0:
            await store.delete([lease.thread_id], [lease])
        await ends[number % len(ends)](lease)
        assert not lease.formers
        assert lease.bucket is None
        former = lease
    assert former is not None
    assert [*store._leases._lines] == [former.thread_id]
    del lease, former
    assert not [*store._leases._lines]
    await put(saver, "1", thread_id="0")
    assert not [*store._leases._lines]


async def _replaced(store: MemoryStore, lease: Lease, undo: bool) -> None:
    after = await store.acquire(lease.thread_id, "test", instead_of=lease, undo=undo)
    assert after is not None
    await store.release(after)


@pytest.mark.anyio
@pytest.mark.usefixtures("_uncollected")
async def test_a_lease_that_was_dropped_is_free_again() -> None:
    """Also where one before it was not; and the fences go on growing."""
    store = MemoryStore()
    former = await store.acquire("t", "test")
    lease = await store.acquire("t", "test", instead_of=former)
    assert lease is not None
    fence = lease.fence
    del lease
    assert await store.lease("t") is None
    again = await store.acquire("t", "test")
    assert again is not None
    assert again.fence > fence


@pytest.mark.anyio
async def test_what_is_undone_takes_no_more_than_before() -> None:
    """Sessions that are undone again and again leave the conversation as small as it was."""
    store, lease, _ = await changed([])
    long = [Op("put", "", number, number - 1, (("m", number),), length=30) for number in range(20, 60)]
    sizes = []
    tracemalloc.start()
    try:
        for number in range(30):
            for op in [*_CHANGES, *long, *([Op("keep_latest")] if number % 2 else [])]:
                await do(store, op, "t", [lease])
            lease = await lease_of(store, lease, True)
            if number % 10 == 9:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[-1] < sizes[0] + 5000


@pytest.mark.anyio
async def test_what_is_undone_shares_its_bytes_as_before() -> None:
    """Of a channel that grew only the newest value is whole, as it was before the session."""
    store = MemoryStore()
    for number in range(20):
        await do(store, Op("put", "", number, number - 1, (("m", number),), length=9 + number), "t")
    lease = await lease_of(store)
    for number in range(20, 25):
        await do(store, Op("put", "", number, number - 1, (("m", number),), length=9 + number), "t", [lease])
    await lease_of(store, lease, True)
    kept = store._buckets["t"].namespaces[""].history._kept
    assert len(kept) == 20
    assert [version for version, value in kept.items() if not isinstance(value, Shared)] == [("m", "19")]


@pytest.mark.anyio
async def test_what_others_delete_stays_deleted() -> None:
    """Whoever deletes a conversation that a session holds, deletes what undoing that would bring back, too."""
    for story in STORIES.values():
        store, lease, _ = await changed(story)
        await store.delete(["t"])
        await do(store, Op("put", number=1), "t", [lease])
        await lease_of(store, lease, True)
        assert await store.count() == 0


@pytest.mark.anyio
@pytest.mark.parametrize("number", [1, 2], ids=["the latest", "what is yet to come"])
async def test_writes_to_what_a_pruning_left_are_undone(number: int) -> None:
    """What was kept for undoing has writes of its own, of short values too."""
    store = MemoryStore()
    await do(store, Op("put", number=1), "t")
    await do(store, Op("write", number=number, idx=-4, length=0, tail=1), "t")
    before, lease = await shown(store), await lease_of(store)
    await do(store, Op("keep_latest"), "t", [lease])
    await do(store, Op("write", number=number, idx=-4, length=0, tail=2), "t", [lease])
    await do(store, Op("write", number=number, task="q"), "t", [lease])
    await lease_of(store, lease, True)
    same(await shown(store), before)
