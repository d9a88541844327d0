"""The contract of `Store` as a suite that runs, for whoever writes a store."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from random import Random
from time import perf_counter
from typing import NoReturn, TypeVar

import anyio
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint as yield_to_loop

from async_saver.errors import InvalidValueError, SessionLostError, ThreadExistsError
from async_saver.records import (
    EMPTY,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Lease,
    Listing,
    StoredCheckpoint,
    WriteRecord,
)
from async_saver.retention import EvictionReason, Retention
from async_saver.stores.base import OnConflict, Store

__all__ = ["check_store"]

_T = TypeVar("_T")
_Check = Callable[[Store], Awaitable[None]]


async def check_store(factory: Callable[[], Store]) -> None:
    """Check that a store keeps what `Store` promises; each sentence of it on a store of its own.

    Run it on every event loop that the store is for: `anyio.run(check_store, MyStore, backend="trio")`, or in a test
    that anyio's pytest plugin runs on all.

    What it promises of leases is checked if it has any, and so are limits: those after a `sweep`, so that a store may
    enforce them there only.

    Args:
        factory: Returns a new and empty store at every call. `setup` is called before use, `close` afterwards.

    Raises:
        AssertionError: Promises were broken. The message names every one of them; the cause is the first failure.

    Example:
        ```python
        import anyio

        from async_saver import MemoryStore
        from async_saver.testing import check_store

        anyio.run(check_store, MemoryStore)
        ```
    """
    failures: list[tuple[str, Exception]] = []
    name, checked = "", 0
    skipped: Sequence[_Check] = []
    for check in (*_CHECKS, *_CHECKS_OF_LEASES, *_CHECKS_OF_LIMITS):
        if check in skipped:
            continue
        store = factory()
        name = type(store).__name__
        skipped = [
            *(_CHECKS_OF_LEASES if type(store).acquire is Store.acquire else []),
            *(_CHECKS_OF_LIMITS if type(store).retain is Store.retain else []),
        ]
        checked += 1
        try:
            await store.setup()
            try:
                await check(store)
            finally:
                await store.close()
        except Exception as exc:
            failures.append((check.__doc__ or "", exc))
    if failures:
        lines = [f"- {promise}\n  {_first_line(exc)}" for promise, exc in failures]
        broken = f"{name} breaks {len(failures)} of {checked} promises of a store:"
        raise AssertionError("\n".join([broken, *lines])) from failures[0][1]


def _first_line(exc: BaseException) -> str:
    while (inner := getattr(exc, "exceptions", None)) is not None:  # an exception group's first
        exc = inner[0]
    return f"{type(exc).__name__}: {str(exc)[:300]}".replace("\n", " ")


# What checks are made of.


def _fail(message: str) -> NoReturn:
    raise AssertionError(message)


def _same(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        _fail(f"{what}: got {got!r:.300}, wanted {wanted!r:.300}")


def _blob(text: str) -> Blob:
    return "msgpack", text.encode()


def _record(
    checkpoint_id: str,
    parent_id: str | None = None,
    versions: Sequence[ChannelVersion] = (),
    run_id: str | None = None,
    delta_channels: tuple[str, ...] = (),
) -> CheckpointRecord:
    encoded, metadata = _blob(f"checkpoint {checkpoint_id}"), _blob(f"metadata {checkpoint_id}")
    return CheckpointRecord(checkpoint_id, parent_id, encoded, metadata, tuple(versions), run_id, delta_channels)


def _write(
    task_id: str, idx: int, value: str, channel: str = "c", path: str = "", run: str | None = None
) -> WriteRecord:
    return WriteRecord(task_id, idx, channel, _blob(value), path, run)


async def _all(found: AsyncIterator[_T]) -> list[_T]:
    return [one async for one in found]


async def _ids(store: Store, listing: Listing) -> list[tuple[str, str, str]]:
    return [(one.thread_id, one.checkpoint_ns, one.record.checkpoint_id) async for one in store.list(listing)]


def _plain(found: StoredCheckpoint | None) -> object:
    """A checkpoint whose sequences compare whatever their type."""
    return None if found is None else (*found[:3], [*map(tuple, found.values)], [*map(tuple, found.writes)])


async def _state(store: Store) -> object:
    """Return all that a store shows."""
    listed = sorted([_plain(one) async for one in store.list(Listing())], key=repr)
    return listed, sorted(await _all(store.thread_ids())), await store.count()


async def _state_at_rest(store: Store) -> object:
    """Return all that a store shows, once it does so twice: a cancelled call may still be at work in it."""
    state = await _state(store)
    for _ in range(500):
        before = state
        await store.lease("t")  # which comes after what was called for, where calls keep their order
        await anyio.sleep(0.01)
        state = await _state(store)
        if state == before:
            return state
    _fail("after a cancelled call the store does not come to rest within five seconds")


async def _fill(store: Store, thread_id: str = "t") -> None:
    """Store a conversation of two namespaces, with writes and two runs."""
    for ns in ("", "child"):
        for number in range(3):
            version = ("c", f"{number}")
            record = _record(f"{number}", f"{number - 1}" if number else None, [version], f"run {number % 2}")
            await store.put(thread_id, ns, record, [(version, _blob(f"{thread_id} {ns} {number}"))])
            await store.put_writes(thread_id, ns, f"{number}", [_write("task", 0, "w", run=f"run {number % 2}")])


# The checks. Each one's docstring is the promise that it checks.


async def _check_nothing(store: Store) -> None:
    """A new store holds nothing, and reading what is unknown leaves no trace."""
    for _ in range(2):
        _same(await store.get("t", "", None), None, "get, the latest")
        _same(await store.get("t", "", "1"), None, "get")
        _same(await _all(store.list(Listing())), [], "list")
        _same(await _all(store.list(Listing("t", "", "1", "2"))), [], "list of one")
        _same(await _all(store.thread_ids()), [], "thread_ids")
        _same(await store.count(), 0, "count")
        _same([*await store.run_threads(["run"])], [], "run_threads")
        _same(await _history(store, None, ["c"]), {"c": (None, [])}, "delta_history")
        await store.delete(["t"])
        await store.delete_for_runs(["run"])
        await store.keep_latest(["t"])
        await store.copy("t", "u")


async def _check_setup(store: Store) -> None:
    """`setup` and `close` may be called again at any time."""
    await store.setup()
    await _fill(store)
    before = await _state(store)
    await store.setup()
    _same(await _state(store), before, "after another setup")
    await store.close()
    await store.close()


async def _check_put(store: Store) -> None:
    """A checkpoint comes back as it was stored, its values in the order of its versions."""
    versions: list[ChannelVersion] = [("b", "2"), ("a", 1), ("none", "1"), ("a b", 1.5), ("lost", "1")]
    values = [("b", _blob("b")), ("a", _blob("a")), ("a b", ("null", b""))]
    blobs = [
        (versions[1], values[1][1]),
        (versions[0], values[0][1]),
        (versions[2], EMPTY),
        (versions[3], values[2][1]),
    ]
    record = _record("1", None, versions, "run", ("d",))
    await store.put("t", "ns", record, blobs)
    for checkpoint_id in (None, "1"):
        found = await store.get("t", "ns", checkpoint_id)
        _same(_plain(found), ("t", "ns", record, values, []), f"get {checkpoint_id}")
    _same(await store.get("t", "", None), None, "get in another namespace")
    _same(await store.get("t", "ns", "0"), None, "get of another id")


async def _check_latest(store: Store) -> None:
    """The latest is the checkpoint of the greatest id, not the last one stored."""
    for checkpoint_id in ("2", "10", "3", "1"):
        await store.put("t", "", _record(checkpoint_id), [])
    _same(await _latest(store), "3", "the latest")
    _same(await _ids(store, Listing("t")), [("t", "", i) for i in ("3", "2", "10", "1")], "list")


async def _latest(store: Store, thread_id: str = "t", ns: str = "") -> str | None:
    found = await store.get(thread_id, ns, None)
    return None if found is None else found.record.checkpoint_id


async def _check_conflict(store: Store) -> None:
    """A put that asks is told of a conflict with the latest checkpoint; with "raise" it has then stored nothing."""

    async def put(checkpoint_id: str, parent_id: str | None, on_conflict: OnConflict | None = "raise") -> bool:
        record = _record(checkpoint_id, parent_id, [("c", checkpoint_id)])
        blobs = [(("c", checkpoint_id), _blob(checkpoint_id))]
        return await store.put("t", "", record, blobs, (), on_conflict)

    alone = [
        await put("2", None),
        await put("4", "2"),
        await put("4", "2"),
        await put("6", "gone"),
        await put("8", "6"),
    ]
    _same(alone, [False] * 5, "whether there is a conflict, where there is none")
    before = await _state(store)
    raced = [await put("9", "6"), await put("9", None), await put("7", "6")]
    _same(raced, [True] * 3, "whether there is a conflict, where there is one")
    _same(await _state(store), before, "what is stored after conflicts")
    _same([await put("7", "6", None), await put("9", "6", "warn")], [False, True], "whether there is a conflict")
    _same(len(await _ids(store, Listing("t"))), 6, "checkpoints, with two that were stored all the same")


async def _check_replaced(store: Store) -> None:
    """A checkpoint of the same id is replaced, and a version that was stored before as well."""
    await store.put("t", "", _record("1", versions=[("c", "1")], run_id="a"), [(("c", "1"), _blob("old"))])
    await store.put_writes("t", "", "1", [_write("task", 0, "w")])
    record = _record("1", "0", [("c", "1"), ("d", "1")], "b")._replace(metadata=_blob("new"))
    await store.put("t", "", record, [(("c", "1"), _blob("new")), (("d", "1"), _blob("d"))])
    values = [("c", _blob("new")), ("d", _blob("d"))]
    wanted = ("t", "", record, values, [_write("task", 0, "w")])
    _same(_plain(await store.get("t", "", None)), wanted, "get")
    _same(await _ids(store, Listing("t")), [("t", "", "1")], "list")
    _same(await store.count(), 1, "count")


async def _check_shared_versions(store: Store) -> None:
    """A version that an earlier put brought is every later checkpoint's that names it, in its namespace only."""
    await store.put("t", "", _record("1", versions=[("c", "1")]), [(("c", "1"), _blob("c")), (("d", "7"), _blob("d"))])
    await store.put("t", "", _record("2", "1", [("c", "1"), ("d", "7")]), [])
    await store.put("t", "child", _record("2", "1", [("c", "1")]), [])
    await store.put("u", "", _record("2", "1", [("c", "1")]), [])
    found = [await store.get(*place, None) for place in (("t", ""), ("t", "child"), ("u", ""))]
    values = [[*one.values] for one in found if one is not None]
    _same(values, [[("c", _blob("c")), ("d", _blob("d"))], [], []], "values")


async def _check_writes(store: Store) -> None:
    """Writes are kept before their checkpoint; the first stays, but where idx is negative the last; in run order."""
    await store.put_writes("t", "", "1", [_write("b", 1, "b1"), _write("b", -1, "old"), _write("a", 10, "a10")])
    _same(await store.count(), 1, "count of a conversation that has writes only")
    _same(await _ids(store, Listing()), [], "list of writes without a checkpoint")
    await store.put("t", "", _record("1"), [])
    await store.put_writes("t", "", "1", [_write("b", 1, "late"), _write("b", -1, "new"), _write("a", 9, "a9")])
    await store.put_writes("t", "", "1", [_write("z", 0, "z", path="~a"), _write("z", 1, "z", path="a")])
    await store.put_writes("t", "", "1", [])
    await store.put_writes("t", "", "2", [_write("b", 1, "other")])
    found = await store.get("t", "", "1")
    wanted = [("a", 9, "a9"), ("a", 10, "a10"), ("b", -1, "new"), ("b", 1, "b1"), ("z", 1, "z"), ("z", 0, "z")]
    got = [(one.task_id, one.idx, one.value[1].decode()) for one in found.writes] if found else None
    _same(got, wanted, "writes")


async def _check_list(store: Store) -> None:
    """`list` narrows by all fields of a `Listing`, by descending id over all that is listed."""
    for thread_id, ns, checkpoint_id in [
        ("t", "", "1"),
        ("t", "n", "2"),
        ("t", "", "3"),
        ("u", "", "2"),
        ("t", "n", "1"),
    ]:
        await store.put(thread_id, ns, _record(checkpoint_id), [])
    for listing, wanted in [
        (Listing(), ["3", "2", "2", "1", "1"]),
        (Listing("t"), ["3", "2", "1", "1"]),
        (Listing("t", ""), ["3", "1"]),
        (Listing("t", "n"), ["2", "1"]),
        (Listing("t", None, "1"), ["1", "1"]),
        (Listing("t", "", "2"), []),
        (Listing("t", None, None, "2"), ["1", "1"]),
        (Listing("t", "n", "1", "2"), ["1"]),
        (Listing("t", "n", "1", "1"), []),
        (Listing(None, None, "2"), ["2", "2"]),
        (Listing(None, "n"), ["2", "1"]),
        (Listing(None, "", None, "3"), ["2", "1"]),
        (Listing("unknown"), []),
    ]:
        found = await _ids(store, listing)
        _same([one[2] for one in found], wanted, f"{listing}")
        _same(len({*found}), len(found), f"{listing}, each once")
        for thread_id, ns, _ in found:
            _same(
                (listing.thread_id or thread_id, listing.checkpoint_ns in (None, ns)), (thread_id, True), f"{listing}"
            )


async def _check_list_fixed(store: Store) -> None:
    """What is listed is fixed at the start; what is deleted since is skipped; nothing is held between two steps."""
    for number in range(5):
        await store.put("t", "", _record(f"{number}"), [])
        await store.put(f"u{number}", "", _record(f"{number}"), [])
    iterator, other, half_read = store.list(Listing("t")), store.list(Listing()), store.list(Listing("t"))
    first = [(await anext(one)).record.checkpoint_id for one in (iterator, other, half_read)]
    threads = store.thread_ids()
    await anext(threads)
    del half_read
    await store.put("t", "", _record("9"), [])
    await store.put("v", "", _record("9"), [])
    await store.delete(["u2"])
    rest = [one.record.checkpoint_id async for one in iterator]
    _same(first + rest, ["4", "4", "4", "3", "2", "1", "0"], "list of one conversation")
    rest = [one.record.checkpoint_id async for one in other]
    _same(sorted(rest), ["0", "0", "1", "1", "2", "3", "3", "4"], "list of all")
    _same(await anext(iterator, None), None, "an iterator that has ended")
    _same({*await _all(threads)} <= {"t", "u0", "u1", "u3", "u4"}, True, "thread_ids")


async def _history(store: Store, checkpoint_id: str | None, channels: Sequence[str]) -> object:
    found = await store.delta_history("t", "", checkpoint_id, channels)
    return {
        channel: (history.seed, [(one.task_id, one.idx) for one in history.writes])
        for channel, history in found.items()
    }


async def _delta(store: Store) -> None:
    """Store a line of five checkpoints whose channel d is a `DeltaChannel`, its value stored at 1, by four runs."""
    for number in range(5):
        versions: list[ChannelVersion] = [("d", f"{number}"), ("x", f"{number}")]
        blobs: list[tuple[ChannelVersion, Blob]] = [(("x", f"{number}"), _blob(f"x {number}"))]
        if number == 1:
            blobs.append((("d", "1"), _blob("seed")))
        parent = f"{number - 1}" if number else None
        await store.put("t", "", _record(f"{number}", parent, versions, f"run {number}", ("d",)), blobs)
        writes = [_write(f"{number}", 0, "w", "d", run=f"run {number}"), _write(f"{number}", 1, "w", "e")]
        await store.put_writes("t", "", f"{number}", writes)


async def _check_history(store: Store) -> None:
    """`delta_history` collects the ancestors' writes, oldest first, from the nearest ancestor that has a value on."""
    await _delta(store)
    await store.put("t", "", _record("fork", "2", [("d", "f")], None, ("d",)), [])
    await store.put("t", "", _record("orphan", "unknown", [("d", "o")], None, ("d",)), [])
    seed, writes = _blob("seed"), [("1", 0), ("2", 0), ("3", 0)]
    _same(await _history(store, "4", ["d"]), {"d": (seed, writes)}, "of 4")
    _same(await _history(store, "fork", ["d"]), {"d": (seed, writes[:2])}, "of a fork")
    _same(await _history(store, "1", ["d"]), {"d": (None, [("0", 0)])}, "of the one that has the value")
    wanted = {"d": (seed, writes), "e": (None, [(f"{n}", 1) for n in range(4)]), "none": (None, [])}
    _same(await _history(store, "4", ["d", "e", "none"]), wanted, "of several channels")
    for checkpoint_id in ("orphan", "unknown"):
        _same(await _history(store, checkpoint_id, ["d"]), {"d": (None, [])}, f"of {checkpoint_id}")
    _same(await _history(store, None, ["d"]), {"d": (None, [])}, "of the latest")


async def _check_delete(store: Store) -> None:
    """`delete` leaves nothing of a conversation, and everything of the others."""
    for thread_id in "abcd":
        await _fill(store, thread_id)
    await store.put_writes("e", "", "1", [_write("task", 0, "w")])
    await store.delete(["a", "unknown", "c", "a", "e"])
    _same({one[0] for one in await _ids(store, Listing())}, {"b", "d"}, "list")
    _same(sorted(await _all(store.thread_ids())), ["b", "d"], "thread_ids")
    _same(await store.count(), 2, "count")
    _same(sorted(await store.run_threads(["run 0"])), ["b", "d"], "run_threads")
    await store.put("a", "", _record("0", versions=[("c", "0")]), [])
    found = await store.get("a", "", None)
    _same(found and ([*found.values], [*found.writes]), ([], []), "a conversation of the same id")
    await store.put("e", "", _record("1"), [])
    found = await store.get("e", "", None)
    _same(found and [*found.writes], [], "its writes")


async def _check_copy(store: Store) -> None:
    """`copy` takes everything, leaves two independent conversations, and refuses a target that holds something."""
    await _fill(store)
    await _delta(store)
    await store.put_writes("t", "", "later", [_write("task", 0, "w", run="run 9")])
    source = sorted([_plain(one) async for one in store.list(Listing("t"))], key=repr)
    await store.copy("t", "u")
    copied = [_plain(one._replace(thread_id="t")) async for one in store.list(Listing("u"))]
    _same(sorted(copied, key=repr), source, "the copy")
    _same(sorted(await store.run_threads(["run 9"])), ["t", "u"], "run_threads")
    await store.put("u", "", _record("9"), [])
    await store.delete_for_runs(["none"])
    again = sorted([_plain(one) async for one in store.list(Listing("t"))], key=repr)
    _same(again, source, "the source after a put to the copy")
    await store.put_writes("v", "", "1", [_write("task", 0, "w")])
    before = await _state(store)
    for target in ("u", "v", "t"):
        try:
            await store.copy("t", target)
        except ThreadExistsError:
            _same(await _state(store), before, "after a refused copy")
        else:
            _fail(f"no ThreadExistsError for the target {target}")
    await store.delete(["t"])
    _same(await _latest(store, "u"), "9", "the copy, once the source is deleted")
    await store.put("u", "", _record("later"), [])
    found = await store.get("u", "", "later")
    _same(found and len(found.writes), 1, "copied writes of a checkpoint that came later")


async def _check_keep_latest(store: Store) -> None:
    """`keep_latest` leaves the latest of each namespace with its writes, and writes for what is yet to come."""
    await _fill(store)
    await _fill(store, "other")
    await store.put_writes("t", "", "0 gone", [_write("task", 0, "w")])
    await store.put_writes("t", "", "9", [_write("task", 0, "w")])
    wanted = [_plain(await store.get("t", ns, None)) for ns in ("child", "")]
    await store.keep_latest(["t", "unknown", "t"])
    found = await _all(store.list(Listing("t")))
    _same(sorted([_plain(one) for one in found], key=repr), sorted(wanted, key=repr), "what is left")
    _same(len(await _ids(store, Listing("other"))), 6, "another conversation")
    await store.put("t", "", _record("9"), [])
    found_one = await store.get("t", "", "9")
    _same(found_one and len(found_one.writes), 1, "writes of a checkpoint that came later")


async def _check_keep_latest_delta(store: Store) -> None:
    """After `keep_latest`, each checkpoint in sight reads as before, its `DeltaChannel`s included."""
    await _delta(store)
    before = {i: await _reading(store, i) for i in "01234"}
    await store.keep_latest(["t"])
    left = [one[2] for one in await _ids(store, Listing("t"))]
    _same(left[:1], ["4"], "the latest")
    _same("0" in left, False, "an ancestor that nothing needs is in sight")
    for checkpoint_id in left:
        _same(await _reading(store, checkpoint_id), before[checkpoint_id], f"checkpoint {checkpoint_id}")
    await store.keep_latest(["t"])
    _same(await _reading(store, "4"), before["4"], "after another keep_latest")


async def _reading(store: Store, checkpoint_id: str) -> object:
    found = await store.get("t", "", checkpoint_id)
    has_value = found is not None and any(channel == "d" for channel, _ in found.values)
    return _plain(found), None if has_value else await _history(store, checkpoint_id, ["d"])


async def _check_runs(store: Store) -> None:
    """`delete_for_runs` deletes what the runs stored, in all conversations, and nothing else."""
    await _fill(store)
    await _fill(store, "u")
    await store.put("only", "", _record("1", run_id="run 0"), [])
    await store.put("other", "", _record("1", run_id="run 2"), [])
    await store.put_writes("other", "", "1", [_write("a", 0, "w", run="run 0"), _write("b", 0, "w", run="run 2")])
    await store.put_writes("other", "", "7", [_write("a", 0, "w", run="run 0")])
    _same(sorted(await store.run_threads(["run 0", "none"])), ["only", "other", "t", "u"], "run_threads")
    await store.delete_for_runs(["run 0", "none"])
    wanted = [("other", "", "1"), *[(t, ns, "1") for t in "tu" for ns in ("", "child")]]
    _same(sorted(await _ids(store, Listing())), sorted(wanted), "what is left")
    found = await store.get("other", "", "1")
    _same(found and [one.task_id for one in found.writes], ["b"], "writes")
    _same(sorted(await _all(store.thread_ids())), ["other", "t", "u"], "thread_ids")
    _same([*await store.run_threads(["run 0"])], [], "run_threads afterwards")
    _same(sorted(await store.run_threads(["run 1"])), ["t", "u"], "run_threads of another run")
    await store.put("other", "", _record("7"), [])
    found = await store.get("other", "", "7")
    _same(found and [*found.writes], [], "writes of a checkpoint that came later")


async def _check_runs_delta(store: Store) -> None:
    """What survives `delete_for_runs` reads as before, though what its `DeltaChannel`s rest on is deleted."""
    await _delta(store)
    before = {i: await _reading(store, i) for i in "34"}
    await store.delete_for_runs(["run 1", "run 2"])
    _same([one[2] for one in await _ids(store, Listing())], ["4", "3", "0"], "list")
    for checkpoint_id in "12":
        _same(await store.get("t", "", checkpoint_id), None, f"get of {checkpoint_id}")
    for checkpoint_id in "34":
        _same(await _reading(store, checkpoint_id), before[checkpoint_id], f"checkpoint {checkpoint_id}")
    await store.delete_for_runs(["run 3", "run 4", "run 0"])
    _same(await _ids(store, Listing()), [], "list after all runs are deleted")
    _same((await _latest(store), await _history(store, None, ["d"])), (None, {"d": (None, [])}), "the latest then")


async def _check_thread_ids(store: Store) -> None:
    """`thread_ids` gives the conversations that hold something, the one last written to first."""
    for thread_id in "abc":
        await store.put(thread_id, "", _record("1"), [])
    await store.put_writes("a", "", "1", [_write("task", 0, "w")])
    _same(await _all(store.thread_ids()), ["a", "c", "b"], "thread_ids")
    await store.get("b", "", None)
    _same(await _all(store.thread_ids()), ["a", "c", "b"], "thread_ids after a read")
    iterator = store.thread_ids()
    first = await anext(iterator)
    await store.delete(["c"])
    await store.put("d", "", _record("1"), [])
    _same([first, *await _all(iterator)], ["a", "b"], "thread_ids while conversations come and go")
    _same(await store.count(), 3, "count")


_ODD = ["", " ", "a", "A", "a|b", "a%", "a_", "%", "1", "01", "1.0", "'", '"; --', "\\", "\u00e4", "a\u0308"]
_ODD += ["\u6f22\u5b57", "\U0001f9f5", "\u202e", "None", "null", "[]", "x" * 300]
_REFUSABLE = ["\0", "a\0b", "a\0", "x" * 1_000_000]


async def _check_odd_ids(store: Store) -> None:
    """Ids are any text, different by a case, a blank or a normalisation; NULs or a megabyte may be refused at most."""
    kept = _ODD.copy()
    for odd in _ODD + _REFUSABLE:
        try:
            for place in _odd_places(odd):
                record = _record(place[2], odd, [(odd, odd)], odd)
                await store.put(*place[:2], record, [((odd, odd), ("kind", odd.encode()))])
                await store.put_writes(*place, [WriteRecord(odd, 0, odd, _blob(odd), odd, odd)])
        except InvalidValueError:
            if odd not in _REFUSABLE:
                raise
            _same(await _ids(store, Listing(odd)), [], f"list of {odd[:20]!r}, which was refused")
        else:
            kept += [odd] if odd in _REFUSABLE else []
    for odd in kept:
        for place in _odd_places(odd):
            found = await store.get(*place)
            _same(found and [*found.values], [(odd, ("kind", odd.encode()))], f"values under {odd[:20]!r}")
        _same(sorted(await store.run_threads([odd])), sorted({odd, "t"}), f"run_threads of {odd[:20]!r}")
        _same(await _ids(store, Listing(odd, "", "1")), [(odd, "", "1")], f"list of {odd[:20]!r}")
    _same(await store.count(), len(kept) + 1, "count")
    order = [one[2] for one in await _ids(store, Listing("t", ""))]
    _same(order == sorted(order, reverse=True), True, "the order is that of the text's code points")
    await store.delete([odd for odd in kept if odd])
    _same(sorted(await _all(store.thread_ids())), ["", "t"], "thread_ids after a deletion")


def _odd_places(odd: str) -> list[tuple[str, str, str]]:
    return [(odd, "", "1"), ("t", f"{odd}|", "1"), ("t", "", f"{odd}~")]


async def _check_bytes(store: Store) -> None:
    """Values are any bytes, and what comes back cannot be used to change what is stored."""
    blobs = [("bytes", bytes(range(256))), ("", b""), ("large", b"\0" * 3_000_000)]
    versions: list[ChannelVersion] = [(f"{number}", "1") for number in range(3)]
    await store.put("t", "", _record("1", versions=versions), [*zip(versions, blobs, strict=True)])
    await store.put_writes("t", "", "1", [WriteRecord("task", n, "c", blob, "", None) for n, blob in enumerate(blobs)])
    for _ in range(2):
        found = await store.get("t", "", None)
        if found is None:
            _fail("nothing came back")
        _same([blob for _, blob in found.values], blobs, "values")
        _same([write.value for write in found.writes], blobs, "writes")
        history = (await store.delta_history("t", "", None, ["c"]))["c"]
        for sequence in (found.values, found.writes, history.writes):
            if isinstance(sequence, list):
                sequence.clear()


async def _check_tasks(store: Store) -> None:
    """Many tasks may call at once, and no call sees another one half done."""
    readings: list[StoredCheckpoint | None] = []
    versions: list[ChannelVersion] = [("a", "1"), ("b", "1")]

    async def put(number: int) -> None:
        record = _record(f"{number:03}", versions=versions)
        await store.put(f"{number % 20}", "", record, [(version, _blob(f"{number}")) for version in versions])

    async def read(number: int) -> None:
        readings.append(await store.get(f"{number % 20}", "", None))

    async def both(number: int) -> None:
        # Two writes of one conversation never run at once on one loop; a saver sees to that.
        for one in range(number, 100, 20):
            await put(one)
            await read(one + 1)

    async with create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(both, number)
            tasks.start_soon(read, number)
    _same(len(await _ids(store, Listing())), 100, "checkpoints")
    for found in readings:
        values = {blob for _, blob in found.values} if found is not None else {None}
        _same((len(values), found is None or len(found.values) == 2), (1, True), "a checkpoint read meanwhile")


async def _check_loops(store: Store) -> None:
    """It may be used from many event loops and worker threads at once, on one conversation too, and outlives them."""

    async def work(worker: int) -> None:
        for number in range(10):
            record = _record(f"{worker} {number}", versions=[("c", f"{worker} {number}")], run_id=f"{worker}")
            await store.put("t", "", record, [(record.versions[0], _blob(f"{worker}"))])
            await store.put_writes("t", "", record.checkpoint_id, [_write("task", 0, "w")])
            await store.put(f"own {worker}", "", record, [])
            if number == 5:
                await store.keep_latest([f"own {worker}"])
                await store.copy(f"own {worker}", f"copy {worker}")
                await store.delete([f"copy {worker}"])

    async def elsewhere(worker: int) -> None:
        await anyio.to_thread.run_sync(lambda: anyio.run(work, worker))

    async with create_task_group() as tasks:
        for worker in range(4):
            tasks.start_soon(elsewhere, worker)
        await work(4)
    found = await _all(store.list(Listing("t")))
    _same(len(found), 50, "checkpoints of the shared conversation")
    for one in found:
        name = one.record.checkpoint_id.partition(" ")[0]
        _same(([*one.values], len(one.writes)), ([("c", _blob(name))], 1), "a checkpoint")
    for worker in range(5):
        _same(len(await _ids(store, Listing(f"own {worker}"))), 5, "checkpoints of a worker's own conversation")
    _same(await store.count(), 6, "count")


async def _check_cancelled(store: Store) -> None:
    """A call that is cancelled has taken effect wholly or not at all, and the store goes on working."""
    version: ChannelVersion = ("c", "9")
    record = _record("9", "2", [version], "run 9")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "put": lambda: store.put("t", "", record, [(version, _blob("9"))]),
        "put_writes": lambda: store.put_writes("t", "", "2", [_write("new", 0, "w"), _write("new", 1, "w")]),
        "delete": lambda: store.delete(["t", "u"]),
        "delete_for_runs": lambda: store.delete_for_runs(["run 0"]),
        "keep_latest": lambda: store.keep_latest(["t", "u"]),
        "copy": lambda: store.copy("t", "v"),
    }
    for name, call in calls.items():
        await _start_anew(store)
        before, begun = await _state(store), perf_counter()
        await call()
        took, after = perf_counter() - begun, await _state(store)

        async def check(cancelled: bool, when: str, name: str = name, states: object = (before, after)) -> None:
            if cancelled:
                state = await _state_at_rest(store)
                _same(state in states, True, f"{name}, cancelled after {when}, left something of its own")  # type: ignore[operator]

        for turns in (*range(12), 20, 50):
            await _start_anew(store)
            cancelled = await _was_cancelled(call, turns)
            await check(cancelled, f"{turns} turns")
            if not cancelled:
                break
        for part in range(1, 8):
            await _start_anew(store)
            with anyio.move_on_after(took * part / 8) as scope:
                await call()
            await check(scope.cancelled_caught, f"{part}/8 of the time that it takes")


async def _start_anew(store: Store) -> None:
    await store.delete(["t", "u", "v"])
    async with create_task_group() as tasks:
        tasks.start_soon(_fill, store)
        tasks.start_soon(_fill, store, "u")


async def _was_cancelled(call: Callable[[], Awaitable[object]], turns: int) -> bool:
    async def cancel() -> None:
        for _ in range(turns):
            await yield_to_loop()
        scope.cancel()

    scope = CancelScope()
    async with create_task_group() as tasks:
        with scope:
            if turns:
                tasks.start_soon(cancel)
            else:
                scope.cancel()
            await call()
        tasks.cancel_scope.cancel()
    return scope.cancelled_caught


# Leases.


async def _acquired(store: Store, instead_of: Lease | None = None, undo: bool = False, thread_id: str = "t") -> Lease:
    lease = await store.acquire(thread_id, "somebody", instead_of=instead_of, undo=undo)
    return lease if lease is not None else _fail(f"the lease of {thread_id}, which is free, was not given")


async def _held(store: Store, thread_id: str = "t") -> object:
    lease = await store.lease(thread_id)
    return None if lease is None else (lease.thread_id, lease.fence, lease.owner)


async def _check_lease(store: Store) -> None:
    """One at a time has the lease of a conversation, whose fence grows from one to the next; `lease` tells who."""
    _same(await _held(store), None, "the lease of a new conversation")
    first = await store.acquire("t", "first")
    if first is None or not isinstance(first.fence, int):
        _fail(f"the first lease is {first!r}")
    wanted = ("t", first.fence, "first")
    _same((first.thread_id, first.fence, first.owner), wanted, "the first lease")
    _same(await _held(store), wanted, "the lease that is held")
    _same(await store.acquire("t", "second"), None, "acquire while it is held")
    _same((await store.renew(first), await _held(store)), (True, wanted), "renew, and who holds it then")
    other = await _acquired(store, thread_id="u")
    _same((await store.release(other), await _held(store)), (True, wanted), "release of another, and who holds it then")
    second = await _acquired(store, first)
    _same(second.fence > first.fence, True, "the fence grows from one that is replaced to the next")
    _same((await store.renew(first), await store.release(first)), (False, False), "renew and release of a lost one")
    _same(await store.acquire("t", "third", instead_of=first), None, "acquire instead of one that is lost")
    _same((await _held(store)), ("t", second.fence, "somebody"), "the lease that is held after that")
    _same((await store.release(second), await store.release(second)), (True, False), "release, twice")
    _same((await store.renew(second), await _held(store)), (False, None), "renew and lease after a release")
    third = await _acquired(store, second)
    _same(third.fence > second.fence, True, "the fence grows from one that was given back to the next")
    await store.release(third)
    _same((await store.count(), await _all(store.thread_ids())), (0, []), "what leases store")


async def _check_lease_once(store: Store) -> None:
    """Of all that acquire a lease at once, on many event loops, one gets it."""
    given: list[Lease] = []

    async def take() -> None:
        for number in range(10):
            lease = await store.acquire(f"{number}", "somebody")
            if lease is not None:
                given.append(lease)

    async def elsewhere() -> None:
        await anyio.to_thread.run_sync(anyio.run, take)

    async with create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(elsewhere)
            tasks.start_soon(take)
    _same(sorted(lease.thread_id for lease in given), [f"{number}" for number in range(10)], "leases of ten")


def _writes_to(store: Store, leases: Sequence[Lease]) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return a call of everything that writes, each to the conversation t."""
    version: ChannelVersion = ("c", "2")
    record = _record("3", "2", [version], "run 9")
    return {
        "put": lambda: store.put("t", "", record, [(version, _blob("other"))], leases),
        "put over another": lambda: store.put("t", "child", _record("1", "0", [version]), [], leases),
        "put_writes": lambda: store.put_writes("t", "", "2", [_write("new", 0, "w")], leases),
        "put_writes over another": lambda: store.put_writes("t", "child", "2", [_write("task", -4, "new")], leases),
        "delete": lambda: store.delete(["u", "t"], leases),
        "keep_latest": lambda: store.keep_latest(["u", "t"], leases),
        "delete_for_runs": lambda: store.delete_for_runs(["run 1"], leases),
        "copy": lambda: store.copy("u", "t", leases),
    }


async def _refused(store: Store, lease: Lease, when: str) -> None:
    before, stored = await _state(store), await _holds(store)
    for name, call in _writes_to(store, [lease]).items():
        if name == "delete_for_runs" and not stored:
            continue  # it is a call for the conversations in which the runs stored something
        try:
            await call()
        except SessionLostError:
            _same(await _state(store), before, f"after a refused {name}, {when}")
        else:
            _fail(f"no SessionLostError of {name}, {when}")


async def _check_fence(store: Store) -> None:
    """What is written with a lease is refused, and stores nothing, once a later one was given: whoever has it now."""
    await _fill(store)
    await _fill(store, "u")
    first = await _acquired(store)
    second = await _acquired(store, first)
    await _refused(store, first, "as another one holds it")
    await store.release(second)
    await _refused(store, first, "as another one has held it")
    third = await _acquired(store, second, True)
    await _refused(store, second, "as another one holds it that came later")
    await store.release(third)
    await store.delete(["t"])
    await _refused(store, first, "as nothing is left")


async def _check_fence_at_once(store: Store) -> None:
    """The fence is looked at in the step that stores: nothing of a former lease comes after a later one is given."""
    refused: list[int] = []

    async def write(number: int, lease: Lease) -> None:
        try:
            for turn in range(1000):
                await store.put("t", "", _record(f"{number} {turn:03}"), [], [lease])
                await store.put_writes("t", "", f"{turn}", [_write(f"{number}", 0, "w")], [lease])
                await yield_to_loop()
            _fail("1,000 times something was written with a lease that should be lost")
        except SessionLostError:
            refused.append(number)

    lease = await _acquired(store)
    async with create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(write, number, lease)
            tasks.start_soon(write, number, lease)
            for _ in range(2 + number % 5):
                await yield_to_loop()
            lease = await _acquired(store, lease)
            before = await _state(store)
            for _ in range(4):
                await yield_to_loop()
            _same(await _state(store), before, "what is stored once a later lease was given")
    _same(sorted(refused), sorted([*range(30)] * 2), "those refused")


async def _check_fence_passes(store: Store) -> None:
    """A lease writes until a later one is given; the first one of a conversation counts, and no other's."""
    await _fill(store, "u")
    held = await _acquired(store)
    for when in ("is held", "was given back"):
        for name, call in _writes_to(store, [held]).items():
            await _start_anew(store)
            if name == "copy":
                await store.delete(["t"])
            before = await _state(store)
            await call()
            _same(await _state(store) == before, False, f"{name} with a lease that {when} has done nothing")
        _same(await store.release(held), when == "is held", "release")
    lost, held = held, await _acquired(store)
    other_lost = await _acquired(store, thread_id="u")
    other = await _acquired(store, other_lost, thread_id="u")
    leases: dict[str, list[Lease]] = {
        "none": [],
        "one that is held before one that is lost": [held, lost],
        "one that is held after another conversation's that is lost": [other_lost, held],
        "none of this conversation": [other_lost, other],
    }
    for number, (name, some) in enumerate(leases.items()):
        await store.put("t", "", _record(f"more {number}"), [], some)
        _same(await _latest(store), f"more {number}", f"the latest, put with {name}")
    try:
        await store.put("t", "", _record("x"), [], [lost, other, held])
    except SessionLostError:
        pass
    else:
        _fail("no SessionLostError where the first lease of the conversation is lost, and another one is held")


async def _check_release_delete(store: Store) -> None:
    """`release` with delete leaves nothing of the conversation; what is written with the lease then is refused."""
    await _fill(store)
    await _fill(store, "u")
    lost = await _acquired(store)
    lease = await _acquired(store, lost)
    before = await _state(store)
    _same(await store.release(lost, delete=True), False, "release of one that is lost")
    _same((await _state(store), await store.renew(lease)), (before, True), "after the release of one that is lost")
    _same((await store.release(lease, delete=True), await _held(store)), (True, None), "release, and who holds it then")
    _same((await _all(store.thread_ids()), await store.run_threads(["run 0"])), (["u"], ["u"]), "what is left")
    await _refused(store, lease, "as it was given back with delete")
    await store.put("t", "", _record("1"), [])
    found = await store.get("t", "", "1")
    _same(found and ([*found.values], [*found.writes]), ([], []), "a conversation of the same id")
    _same(await store.release(lease, delete=True), False, "another release")
    _same((await _acquired(store)).fence > lease.fence, True, "the fence grows")


async def _resumable(store: Store) -> None:
    """Store a conversation that is worth to be brought back, and one to copy."""
    await store.delete(["t", "u"])
    await _delta(store)
    await store.delete_for_runs(["run 2"])
    await _fill(store, "u")
    long = [f"message {number} of the conversation " * 5 for number in range(60)]
    for number in range(5):
        version: ChannelVersion = ("m", f"{number}")
        record = _record(f"{number}", f"{number - 1}", [version, ("n", "1")], f"run {number}")
        blobs = [(version, _blob("".join(long[: 40 + number * 5]))), (("n", "1"), EMPTY)]
        await store.put("t", "child", record, blobs)
        writes = [_write("b", 1, "b1", run="run 1"), _write("b", -4, "".join(long)), _write("a", 0, "a0", "d")]
        await store.put_writes("t", "child", f"{number}", writes)
    await store.put_writes("t", "child", "5", [_write("early", 0, "w", run="early"), _write("early", -4, "w")])


def _changes(store: Store, leases: Sequence[Lease]) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return calls that change that conversation."""

    async def put(ns: str, checkpoint_id: str, versions: Sequence[ChannelVersion], value: str) -> None:
        record = _record(checkpoint_id, "4", versions, "run new", ("d", "e"))._replace(metadata=_blob(value))
        await store.put("t", ns, record, [(version, _blob(value)) for version in versions], leases)

    async def write(ns: str, checkpoint_id: str, value: str) -> None:
        writes = [_write("b", 1, value, run="run new"), _write("b", -4, value), _write("early", 0, value)]
        await store.put_writes("t", ns, checkpoint_id, writes, leases)

    return {
        "a put": lambda: put("child", "6", [("m", "6")], "message"),
        "a put in between": lambda: put("", "35", [("d", "6")], "d"),
        "a put in a new namespace": lambda: put("new", "6", [("m", "6")], "message"),
        "another checkpoint of the same id": lambda: put("child", "2", [("m", "6"), ("new", "1")], "other"),
        "another value of the same version": lambda: put("child", "5", [("m", "2"), ("m", "4"), ("n", "1")], "other"),
        "a value of the same version": lambda: put("", "1", [("d", "1"), ("d", "2")], "other seed"),
        "what was hidden": lambda: put("", "2", [("d", "2"), ("x", "2")], "seen"),
        "writes": lambda: write("child", "4", "other"),
        "writes to what is yet to come": lambda: write("child", "5", "other"),
        "writes where none were": lambda: write("new", "1", "other"),
        "delete_for_runs": lambda: store.delete_for_runs(["run 1", "run 3", "run new", "early"], leases),
        "keep_latest": lambda: store.keep_latest(["t"], leases),
        "delete": lambda: store.delete(["t"], leases),
        "copy": lambda: store.copy("u", "t", leases),
    }


async def _seen(store: Store) -> object:
    """Return what the store shows of that conversation: what is in sight, and what only later ones would show."""
    listed = sorted([_plain(one) async for one in store.list(Listing("t"))], key=repr)
    runs = ["t" in await store.run_threads([run]) for run in ("run 1", "run 3", "run new", "early", "others")]
    return listed, await _holds(store), runs, [await _history(store, i, ["d", "e", "x"]) for i in "01234"]


async def _holds(store: Store) -> bool:
    return "t" in await _all(store.thread_ids())


async def _uncovered(store: Store) -> object:
    """Return what is stored of values and writes that no checkpoint in sight names; it is in sight afterwards."""
    versions: list[ChannelVersion] = [("m", "0"), ("m", "2"), ("m", "4"), ("m", "6"), ("n", "1"), ("new", "1")]
    shown = []
    for ns in ("", "child", "new"):
        await store.put("t", ns, _record("5", "4", versions), [])
        shown.append(_plain(await store.get("t", ns, "5")))
    return shown


async def _check_undo(store: Store) -> None:
    """`acquire` with undo leaves what there was before the session: without what it added, with what it changed."""
    await _resumable(store)
    before, uncovered = await _seen(store), await _uncovered(store)
    names = [name for name in _changes(store, []) if name != "copy"]
    for story in [
        *[[name] for name in names],
        names,
        names[::-1],
        ["keep_latest", *names],
        ["keep_latest", "writes", "writes to what is yet to come", "another checkpoint of the same id"],
        [
            "writes",
            "delete_for_runs",
            "writes",
            "a put in between",
            "a put in a new namespace",
            "keep_latest",
            "writes",
        ],
        ["a put", "delete", "writes", "a put", "delete", "copy", "writes"],
    ]:
        await _resumable(store)
        lease = await _acquired(store)
        for name in story:
            await _changes(store, [lease])[name]()
        after = await _acquired(store, lease, undo=True)
        _same(await _seen(store), before, f"what is left after {story} and undo")
        _same(await _uncovered(store), uncovered, f"what was out of sight, after {story} and undo")
        await store.put("t", "", _record("7", "4"), [], [after])
        _same(await _latest(store), "7", f"the latest, put after {story} and undo")
        await store.release(after)


async def _check_undo_new(store: Store) -> None:
    """Of a conversation that the session began nothing is left by undo, however it began it."""
    before = await _seen(store)
    names = ["a put", "writes", "copy"]
    for story in [*[[name] for name in names], ["a put", "delete", "copy"], ["writes", "delete_for_runs", "writes"]]:
        await store.delete(["u"])
        await _fill(store, "u")
        lease = await _acquired(store)
        for name in story:
            await _changes(store, [lease])[name]()
        await store.release(await _acquired(store, lease, undo=True))
        _same(await _seen(store), before, f"what is left after {story} and undo")


async def _check_undo_only(store: Store) -> None:
    """Undo is of one session: not of those before and after, nor of one that ended on its own; nor unasked."""
    await _resumable(store)
    before = await _acquired(store)
    for name in ("a put", "writes"):
        await _changes(store, [before])[name]()
    await store.release(before)
    session = await _acquired(store, before, undo=True)
    for name in ("a put in between", "keep_latest"):
        await _changes(store, [session])[name]()
    now = await _seen(store)
    after = await _acquired(store, session)
    _same(await _seen(store), now, "what is left without undo")
    _same(await store.acquire("t", "somebody", instead_of=session, undo=True), None, "acquire instead of a lost one")
    _same(await _seen(store), now, "what is left after undo of one that is lost")
    await _changes(store, [after])["writes where none were"]()
    await store.release(after)
    now = await _seen(store)
    last = await _acquired(store, after, undo=True)
    _same(await _seen(store), now, "what is left after undo of one that was given back")
    await _acquired(store, last, undo=True)
    _same(await _seen(store), now, "what is left after undo of one that stored nothing")


async def _check_undo_others(store: Store) -> None:
    """Undo leaves what others stored meanwhile: in other conversations, and in this one without the lease."""
    stories = [["a put", "writes"], ["a put", "keep_latest", "writes"], ["delete"], ["delete_for_runs", "writes"]]
    seen: list[object] = []
    for story in ([], *stories):
        await _resumable(store)
        lease = await _acquired(store)
        for name in story:
            await _changes(store, [lease])[name]()
        version: ChannelVersion = ("m", "others")
        for ns in ("child", "others"):
            await store.put("t", ns, _record("8", "5", [version], "others"), [(version, _blob("others"))])
            await store.put_writes("t", ns, "3", [_write("others", 0, "w", run="others")])
        await store.put("u", "", _record("8"), [], [lease])
        for name in story[-1:]:
            await _changes(store, [lease])[name]()
        await store.release(await _acquired(store, lease, undo=bool(story)))
        _same(await _latest(store, "u"), "8", f"the latest of another conversation, after {story} and undo")
        seen.append((await _seen(store), await _uncovered(store)))
        _same(seen[-1], seen[0], f"what is left after {story} and undo, with what others stored meanwhile")


async def _check_lease_cancelled(store: Store) -> None:
    """A cancelled `acquire` takes no lease, and undoes all or nothing; a cancelled `release` takes effect."""
    for turns in (*range(12), 20, 50):
        await _start_anew(store)
        before = await _state(store)
        lease = await _acquired(store)
        await store.keep_latest(["t"], [lease])
        await store.put("t", "", _record("9"), [], [lease])
        changed, held = await _state(store), await _held(store)
        taken: list[Lease] = []
        cancelled = await _was_cancelled(_undoing(store, lease, taken), turns)
        state = await (_state_at_rest(store) if cancelled else _state(store))
        if cancelled:
            possible = [(before, None), (changed, held)]
            _same((state, await _held(store)) in possible, True, f"undone and free, or neither, after {turns} turns")
            taken = [await _acquired(store, lease, undo=True)]
            state = await _state(store)
        _same(state, before, f"what is left after an undo cancelled after {turns} turns, and another")
        now = taken[0]
        _same(await _held(store), ("t", now.fence, now.owner), "who holds it then")
        if await _was_cancelled(_releasing(store, now), turns):
            await _until_free(store)
        elif not cancelled:
            break
        _same(await _held(store), None, f"who holds it after a release cancelled after {turns} turns")
        _same(await _all(store.thread_ids()), ["u"], "what is left after a release with delete")


async def _check_interrupt(store: Store) -> None:
    """Who is asked for a lease is told, where a store tells; then its session can be undone also after its release."""
    tells = type(store).interrupt is not Store.interrupt
    for is_asked in (False, True):
        await _resumable(store)
        before, told = await _seen(store), list[str]()
        lease = await store.acquire("t", "first", on_interrupt=told.append)
        if lease is None:
            _fail("the lease of t, which is free, was not given")
        await _changes(store, [lease])["a put"]()
        found = await store.lease("t")
        if is_asked and found is not None:
            await store.interrupt(found, "second")
            for _ in range(100 if tells else 0):
                if told:
                    break
                await anyio.sleep(0.01)
        _same(told, ["second"] if is_asked and tells else [], "what the holder of a lease was told")
        await _changes(store, [lease])["writes"]()
        after = await _seen(store)
        await store.release(lease)
        await store.release(await _acquired(store, lease, undo=True))
        is_undone = is_asked and tells
        _same(await _seen(store), before if is_undone else after, f"what is left, asked: {is_asked}, and undone")


async def _check_queue(store: Store) -> None:
    """Waiting for a lease ends when its time does, and sooner when the lease is free; who was next gets it then."""
    lease = await _acquired(store)
    with anyio.fail_after(10):
        for _ in range(3):
            await store.wait("t", 0.01)
    given: list[Lease] = []

    async def come() -> None:
        while (second := await store.acquire("t", "second")) is None:
            await store.wait("t", 1)
        given.append(second)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come)
            for _ in range(3):
                await store.put("u", "", _record("1"), [])
            _same((given, await store.release(lease)), ([], True), "what was given while it was held, and its release")
    await store.leave_queue("t")
    await store.release(given[0])
    await store.release(await _acquired(store))


async def _until_free(store: Store) -> None:
    """Wait for the end of a release that was cancelled, which may still be at work."""
    for _ in range(500):
        if await _held(store) is None:
            return
        await anyio.sleep(0.01)


def _undoing(store: Store, lease: Lease, taken: list[Lease]) -> Callable[[], Awaitable[object]]:
    async def undo() -> None:
        taken.append(await _acquired(store, lease, undo=True))

    return undo


def _releasing(store: Store, lease: Lease) -> Callable[[], Awaitable[object]]:
    return lambda: store.release(lease, delete=True)


# Limits. A store may keep to them in `sweep` only, and so each check sweeps before it looks.


class _Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def _left(store: Store) -> list[str]:
    """Return which conversations a sweep leaves."""
    await store.sweep()
    return sorted(await _all(store.thread_ids()))


async def _fill_in_turn(store: Store, clock: _Clock, thread_ids: str) -> None:
    for thread_id in thread_ids:
        clock.now += 1
        await _fill(store, thread_id)


async def _check_retain(store: Store) -> None:
    """A store keeps to the `Retention` that it was given first; others are refused, and without one nothing goes."""
    await _fill(store)
    before = await _state(store)
    _same((await store.sweep(), await _state(store), store.retention), (0, before, None), "a sweep without limits")
    clock = _Clock()
    limits = Retention(max_threads=2, clock=clock)
    for same in (limits, replace(limits)):
        store.retain(same)
    for other in (Retention(max_threads=1, clock=clock), Retention(max_threads=2, ttl=1, clock=clock), Retention()):
        try:
            store.retain(other)
        except InvalidValueError:
            pass
        else:
            _fail("no InvalidValueError from retain with other limits than the first ones")
    _same(store.retention, limits, "retention")
    await _fill_in_turn(store, clock, "uvw")
    _same(await _left(store), ["v", "w"], "what is left of three and one that was there before")


async def _check_ttl(store: Store) -> None:
    """What was not used for longer than its `ttl` goes wholly, and only that; reading, writing and copying are use."""
    clock = _Clock()
    lifetimes = {"always": None, "short": timedelta(seconds=5)}
    store.retain(Retention(ttl=lambda thread_id: lifetimes.get(thread_id, 10), clock=clock))
    for thread_id in ("always", "short", "unused", "read", "put", "writes"):
        await _fill(store, thread_id)
    await store.put_writes("early", "", "1", [_write("a", 0, "w")])
    _same(await store.sweep(), 0, "how many went at once")
    clock.now += 7
    _same(await store.sweep(), 1, "how many went after 7 seconds")
    await store.put("put", "", _record("9"), [])
    await store.put_writes("writes", "", "2", [_write("late", 0, "w")])
    await store.get("read", "", None)
    await store.copy("always", "copy")
    clock.now += 7
    _same(await store.sweep(), 2, "how many went after 7 more")
    _same(await _left(store), ["always", "copy", "put", "read", "writes"], "what is left then")
    for thread_id in ("always", "copy"):
        _same(len(await _ids(store, Listing(thread_id))), 6, f"checkpoints of {thread_id}")
    gone = [await store.get("unused", "child", "1"), await _ids(store, Listing("unused"))]
    _same(gone, [None, []], "what is shown of one that went")
    _same("unused" in await store.run_threads(["run 0"]), False, "whether a run is found in one that went")
    await store.put("unused", "child", _record("1", None, [("c", "1")]), [(("c", "2"), _blob("new"))])
    found = await store.get("unused", "child", "1")
    _same(found and ([*found.values], [*found.writes]), ([], []), "one that begins anew")
    await store.get("copy", "", None)
    clock.now += 7
    _same(await store.sweep(), 3, "how many went after another 7 seconds")
    _same(await _left(store), ["always", "copy", "unused"], "what is left of what was used before, or began anew")
    clock.now += 1000
    _same(await store.sweep(), 2, "how many went in the end")
    _same((await _left(store), await store.sweep()), (["always"], 0), "what is left in the end")


async def _check_reading_is_no_use(store: Store) -> None:
    """With `refresh_on_read=False` what is read goes as soon as what is not."""
    clock = _Clock()
    store.retain(Retention(ttl=10, max_threads=3, refresh_on_read=False, clock=clock))
    await _fill_in_turn(store, clock, "abc")
    await store.get("a", "", None)
    await _all(store.list(Listing("a")))
    await _fill_in_turn(store, clock, "d")
    _same(await _left(store), ["b", "c", "d"], "what is left by max_threads")
    clock.now += 5
    await store.get("b", "", None)
    await store.put_writes("c", "", "2", [_write("late", 0, "w")])
    clock.now += 6
    _same(await _left(store), ["c"], "what is left by ttl")


async def _check_max_threads(store: Store) -> None:
    """Beyond `max_threads` the least recently used conversations go, and none else."""
    clock = _Clock()
    store.retain(Retention(max_threads=4, clock=clock))
    await _fill_in_turn(store, clock, "abcd")
    _same(await _left(store), ["a", "b", "c", "d"], "what is left of as many as may be")
    clock.now += 1
    await store.put_writes("b", "", "2", [_write("late", 0, "w")])
    clock.now += 1
    await store.get("a", "", None)
    await _fill_in_turn(store, clock, "ef")
    _same(await _left(store), ["a", "b", "e", "f"], "what is left after two more")
    _same(len(await _ids(store, Listing("b"))), 6, "checkpoints of what is left")
    _same([*store.evictions()], [], "what is to be told, where nobody is")
    clock.now += 1_000_000
    _same(await store.sweep(), 0, "how many went of as many as may be, after long")


async def _check_max_bytes(store: Store) -> None:
    """Beyond `max_bytes` the least recently used conversations go, and no more than have to."""
    clock = _Clock()
    store.retain(Retention(max_bytes=100_000, clock=clock))
    noise = Random(0)  # which no store can make smaller

    async def put(thread_id: str, size: int = 30_000) -> None:
        clock.now += 1
        record, value = _record("1", None, [("c", "1")]), noise.getrandbits(8 * size).to_bytes(size, "big")
        await store.put(thread_id, "", record, [(("c", "1"), ("bytes", value))])

    for thread_id in "abc":
        await put(thread_id)
    clock.now += 1
    await store.get("a", "", None)
    for thread_id in "de":
        await put(thread_id)
    left = await _left(store)
    _same(left in (["a", "d", "e"], ["d", "e"]), True, f"whether {left} were used last, and are as many as may be")
    held = (await store.stats()).bytes
    _same(held is not None and 30_000 * len(left) < held <= 100_000, True, f"whether {held} bytes are what is held")
    went = {reason for reason, number in (await store.stats()).evictions.items() if number}
    _same(went, {"max_bytes"}, "the reasons for which conversations went")
    await put("large", 200_000)
    found = await store.get("large", "", None)
    _same(found is not None, True, "whether one that is too large by itself is there once it was put")
    await store.delete(["large"])
    if type(store).acquire is not Store.acquire:
        await put("d")
        lease = await _acquired(store, thread_id="d")
        for thread_id in "fgh":
            await put(thread_id)
        left = await _left(store)
        _same(left in (["d", "g", "h"], ["d", "h"]), True, f"whether {left} are what is held, and were used last")
        await store.release(lease)


async def _check_keep_last(store: Store) -> None:
    """Of each namespace the `keep_last` newest checkpoints stay, with all that is theirs, and what is yet to come."""
    clock = _Clock()
    store.retain(Retention(keep_last=2, clock=clock))
    for ns in ("", "child"):
        await store.put("t", ns, _record("0", None, [("old", "1")]), [(("old", "1"), _blob("old"))])
        await store.put_writes("t", ns, "9", [_write("early", 0, "w")])
    await store.put_writes("other", "", "1", [_write("early", 0, "w")])
    for number in range(1, 6):
        for thread_id, ns in (("t", ""), ("t", "child"), ("u", "")):
            version = ("c", f"{number}")
            record = _record(f"{number}", f"{number - 1}", [version, ("old", "1")] if thread_id == "t" else [version])
            await store.put(thread_id, ns, record, [(version, _blob(f"{thread_id} {ns} {number}"))])
            await store.put_writes(thread_id, ns, f"{number}", [_write("task", 0, f"w {number}")])
    _same(await store.sweep(), 0, "how many conversations went")
    wanted = [(*place, i) for place in (("t", ""), ("t", "child"), ("u", "")) for i in "45"]
    _same(sorted(await _ids(store, Listing())), wanted, "what is left")
    for thread_id, ns, i in wanted:
        found = await store.get(thread_id, ns, i)
        values = [("c", _blob(f"{thread_id} {ns} {i}")), *([("old", _blob("old"))] if thread_id == "t" else [])]
        got = found and ([*found.values], [*found.writes])
        _same(got, (values, [_write("task", 0, f"w {i}")]), f"checkpoint {i} of {(thread_id, ns)}")
    _same(await store.get("t", "", "3"), None, "one that went")
    _same(sorted(await _all(store.thread_ids())), ["other", "t", "u"], "conversations")
    await store.put("t", "", _record("9", "5"), [])
    found = await store.get("t", "", "9")
    _same(found and [*found.writes], [_write("early", 0, "w")], "writes of a checkpoint that came later")


async def _check_keep_last_delta(store: Store) -> None:
    """What `keep_last` leaves reads as before, its `DeltaChannel`s included, whose ancestors it needs."""
    await _delta(store)
    before = {i: await _reading(store, i) for i in "34"}
    store.retain(Retention(keep_last=2, clock=_Clock()))
    for _ in range(2):
        await store.sweep()
        left = [one[2] for one in await _ids(store, Listing("t"))]
        _same((left[:2], "0" in left), (["4", "3"], False), "what is left, and whether it has what nothing needs")
        for i in "34":
            _same(await _reading(store, i), before[i], f"checkpoint {i}")


async def _check_limits_and_leases(store: Store) -> None:
    """No limit takes anything of a conversation whose lease is held; once it is given back, it is as any other."""
    if type(store).acquire is Store.acquire:
        return
    clock = _Clock()
    store.retain(Retention(ttl=10, max_threads=1, keep_last=1, clock=clock))
    await store.put("t", "", _record("0", None, [("c", "0")]), [(("c", "0"), _blob("0"))])
    before = [await _plain_at(store, "0"), await _ids(store, Listing())]
    lease = await _acquired(store)
    for number in (1, 2, 3):
        await store.put("t", "", _record(f"{number}", f"{number - 1}"), [], [lease])
    for _ in range(2):
        clock.now += 100
        await _fill(store, "u")
        _same(await _left(store), ["t"], "what is left, when a lease is held on t")
        held = [("t", "", i) for i in "3210"]
        _same(await _ids(store, Listing()), held, "checkpoints of t, while its lease is held")
    lease = await _acquired(store, lease, undo=True)
    await store.sweep()
    _same([await _plain_at(store, "0"), await _ids(store, Listing())], before, "what is left after undo")
    await store.put("t", "", _record("1", "0"), [], [lease])
    other = await _acquired(store, thread_id="u")
    await store.put("u", "", _record("1"), [], [other])
    _same(await _left(store), ["t", "u"], "what is left, when leases are held on both")
    await store.release(lease)
    _same((await _left(store), await _ids(store, Listing())), (["u"], [("u", "", "1")]), "what is left without one")
    await store.release(other)
    clock.now += 100
    _same(await _left(store), [], "what is left after long, with no lease held")


async def _plain_at(store: Store, checkpoint_id: str) -> object:
    return _plain(await store.get("t", "", checkpoint_id))


async def _check_evictions(store: Store) -> None:
    """Each conversation that goes by a limit is iterated over once, with the reason, and `on_evict` left to others."""
    called: list[str] = []

    def on_evict(thread_id: str, reason: EvictionReason) -> None:
        called.append(f"{thread_id}: {reason}")

    clock = _Clock()
    store.retain(Retention(ttl=10, max_threads=3, on_evict=on_evict, clock=clock))
    await _fill_in_turn(store, clock, "abcde")
    await store.sweep()
    await store.delete(["c"])
    await store.sweep()
    first = store.evictions()
    told: list[tuple[str, EvictionReason]] = [next(first, ("nothing", "ttl"))]
    clock.now += 100
    await store.sweep()
    second = store.evictions()
    told += [*second, *first, *store.evictions()]
    wanted = [("a", "max_threads"), ("b", "max_threads"), ("d", "ttl"), ("e", "ttl")]
    _same((sorted(told), [*store.evictions()]), (wanted, []), "what was told, and once more")
    await _fill(store, "a")
    clock.now += 100
    await store.sweep()
    _same([*store.evictions()], [("a", "ttl")], "what was told of one that went again")
    _same(called, [], "what the store has told on_evict itself")


async def _check_sweep_cancelled(store: Store) -> None:
    """A cancelled `sweep` takes of each conversation all or nothing, and what it took is told."""
    clock = _Clock()
    store.retain(Retention(ttl=10, on_evict=lambda thread_id, reason: None, clock=clock))
    names = [f"{number}" for number in range(20)]
    for turns in (*range(4), 10, 30):
        for name in names:
            await _fill(store, name)
        clock.now += 100
        cancelled = await _was_cancelled(store.sweep, turns)
        if cancelled:
            await _state_at_rest(store)
        left = [len(await _ids(store, Listing(name))) for name in names]
        _same({*left} <= {0, 6}, True, f"whether the conversations are whole or gone, with {left} checkpoints")
        _same(await _left(store), [], f"what is left after a sweep cancelled after {turns} turns, and another")
        _same(sorted(store.evictions()), sorted((name, "ttl") for name in names), "what was told")
        if turns and not cancelled:
            break


async def _check_figures(store: Store) -> None:
    """Figures are of what there is; of those but the first, some may be None."""

    async def check(what: str, conversations: int, checkpoints: int, writes: int, more: int = 0) -> int:
        stats = await store.stats()
        _same(stats.conversations, conversations, f"conversations {what}")
        for name, wanted in {"checkpoints": checkpoints, "writes": writes}.items():
            _same(
                getattr(stats, name) in (None, wanted), True, f"whether {getattr(stats, name)} {name} are there {what}"
            )
        _same((stats.bytes_saved or 0) >= 0, True, f"whether {stats.bytes_saved} bytes may be saved {what}")
        if stats.bytes is not None:
            _same((stats.bytes - before) * more >= 0, True, f"whether {stats.bytes} bytes are more or less {what}")
        _same(sum(stats.evictions.values()) + stats.pruned + stats.overruns, 0, f"what went by limits {what}")
        return stats.bytes or 0

    before = 0
    before = await check("at first", 0, 0, 0)
    await store.get("t", "", None)
    await store.put_writes("early", "", "1", [_write("a", 0, "w"), _write("a", -1, "w")])
    before = await check("after writes", 1, 0, 2, 1)
    for _ in range(2):
        await _fill(store)
        await check("after a conversation that may be stored again", 2, 6, 8, 1)
    before = await check("after a conversation", 2, 6, 8, 1)
    await store.copy("t", "u")
    before = await check("after a copy", 3, 12, 14, 1)
    await store.keep_latest(["u"])
    before = await check("after keep_latest", 3, 8, 10, -1)
    await store.delete_for_runs(["run 0"])
    before = await check("after delete_for_runs", 2, 2, 4, -1)
    await store.delete(["t", "u", "early"])
    await check("after delete", 0, 0, 0, -1)
    await _delta(store)
    await store.delete_for_runs(["run 2"])
    hidden = await store.stats()
    _same(hidden.checkpoints in (None, 4), True, f"whether {hidden.checkpoints} checkpoints can be listed")


async def _check_figures_of_limits(store: Store) -> None:
    """Figures count what went by which limit, and the calls that left one exceeded."""
    clock = _Clock()
    store.retain(Retention(ttl=10, max_threads=3, keep_last=2, clock=clock))
    await _fill_in_turn(store, clock, "a")
    await store.sweep()
    clock.now += 100
    await store.sweep()
    for number in range(5):
        clock.now += 1
        await store.put(f"{number}", "", _record("1"), [])
    await store.sweep()
    await store.delete(["4"])
    stats = await store.stats()
    _same((stats.conversations, stats.pruned, stats.overruns), (2, 2, 0), "conversations, pruned and overruns")
    went = {reason: number for reason, number in stats.evictions.items() if number}
    _same(went, {"ttl": 1, "max_threads": 2}, "evictions")
    if type(store).acquire is Store.acquire:
        return
    leases = [await _acquired(store, thread_id=f"{number}") for number in range(6)]
    for lease in leases:
        await store.put(lease.thread_id, "", _record("1"), [], [lease])
    await store.sweep()
    stats = await store.stats()
    _same((stats.conversations, stats.overruns > 0), (6, True), "conversations, all leased, and if calls are counted")


_CHECKS: Sequence[_Check] = [
    _check_nothing,
    _check_setup,
    _check_put,
    _check_latest,
    _check_conflict,
    _check_replaced,
    _check_shared_versions,
    _check_writes,
    _check_list,
    _check_list_fixed,
    _check_history,
    _check_delete,
    _check_copy,
    _check_keep_latest,
    _check_keep_latest_delta,
    _check_runs,
    _check_runs_delta,
    _check_thread_ids,
    _check_odd_ids,
    _check_bytes,
    _check_tasks,
    _check_loops,
    _check_cancelled,
    _check_figures,
]

_CHECKS_OF_LEASES: Sequence[_Check] = [
    _check_lease,
    _check_lease_once,
    _check_lease_cancelled,
    _check_fence,
    _check_fence_at_once,
    _check_fence_passes,
    _check_release_delete,
    _check_undo,
    _check_undo_new,
    _check_undo_only,
    _check_undo_others,
    _check_interrupt,
    _check_queue,
]

_CHECKS_OF_LIMITS: Sequence[_Check] = [
    _check_retain,
    _check_ttl,
    _check_reading_is_no_use,
    _check_max_threads,
    _check_max_bytes,
    _check_keep_last,
    _check_keep_last_delta,
    _check_limits_and_leases,
    _check_evictions,
    _check_sweep_cancelled,
    _check_figures_of_limits,
]
