"""The contract of `Store` as a suite: every store passes it, and it finds whatever breaks a promise."""

# ruff: noqa: D101  (the names of the broken stores say it)

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from anyio.lowlevel import checkpoint as yield_to_loop
from anyio.lowlevel import current_token

from async_saver import AsyncSaver, InvalidValueError, MemoryStore, Retention, SessionError, Store, testing
from async_saver.pace import at_once
from async_saver.records import (
    CheckpointRecord,
    Lease,
    Listing,
    StoredCheckpoint,
    StoredHistory,
    StoreStats,
    WriteRecord,
)
from async_saver.stores.base import lost_error
from async_saver.stores.bucket import Bucket
from async_saver.testing import check_store
from tests.stores import NewStore
from tests.test_machine import HalfDeleted
from tests.test_machine import Split as SplitByAnAwait

pytestmark = pytest.mark.anyio


async def test_every_store_keeps_the_contract(new_store: NewStore) -> None:
    """On every event loop."""
    await check_store(new_store)


# Stores that break one promise each. Where one does so if it is cancelled in the midst, it dallies there: on a busy
# machine the end of a call comes a turn earlier or later, and so not when a check looks.


async def dally() -> None:
    """Give a check the time to cancel."""
    for _ in range(5):
        await yield_to_loop()


class Split(SplitByAnAwait, MemoryStore):
    pass


class LeavesTraces(MemoryStore):
    async def get(self, thread_id: str, *args: Any) -> StoredCheckpoint | None:
        self._buckets.setdefault(thread_id, Bucket())
        return await super().get(thread_id, *args)


class ForgetsAtSetup(MemoryStore):
    async def setup(self) -> None:
        self.discard(None)


class SortsValues(MemoryStore):
    async def get(self, *args: Any) -> StoredCheckpoint | None:
        found = await super().get(*args)
        return found and found._replace(values=sorted(found.values))


class LastStoredIsLatest(MemoryStore):
    async def get(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        namespace = self._namespace(thread_id, checkpoint_ns)
        if checkpoint_id is None and namespace is not None and namespace.ids:
            checkpoint_id = [*namespace.checkpoints][-1]
        return await super().get(thread_id, checkpoint_ns, checkpoint_id)


class StoresInSpiteOfConflicts(MemoryStore):
    async def put(self, *args: Any) -> bool:
        *others, on_conflict = args if len(args) == 6 else (*args, None)
        return await super().put(*others, on_conflict and "warn")


class NeverReplaces(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: CheckpointRecord, blobs: Any) -> None:
        if await self.get(thread_id, ns, record.checkpoint_id) is None:
            await super().put(thread_id, ns, record, blobs)


class DropsWhatIsNotNamed(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: CheckpointRecord, blobs: Any) -> None:
        await super().put(thread_id, ns, record, [one for one in blobs if one[0] in record.versions])


class NeedsTheCheckpointFirst(MemoryStore):
    async def put_writes(self, thread_id: str, ns: str, checkpoint_id: str, writes: Any) -> None:
        if await self.get(thread_id, ns, checkpoint_id) is not None:
            await super().put_writes(thread_id, ns, checkpoint_id, writes)


class IncludesBefore(MemoryStore):
    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        return super().list(listing._replace(before=listing.before and listing.before + "\0"))


class ReadsAllAtOnce(MemoryStore):
    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        return _AllAtOnce(super().list(listing))


class _AllAtOnce(AsyncIterator[StoredCheckpoint]):
    def __init__(self, found: AsyncIterator[StoredCheckpoint]) -> None:
        self.found = found
        self.read: Any = None

    async def __anext__(self) -> StoredCheckpoint:
        if self.read is None:
            self.read = iter([one async for one in self.found])
        for one in self.read:
            return one
        raise StopAsyncIteration


class NewestWritesFirst(MemoryStore):
    async def delta_history(self, *args: Any) -> Any:
        found = await super().delta_history(*args)
        return {channel: StoredHistory(one.seed, one.writes[::-1]) for channel, one in found.items()}


class DeletesOne(MemoryStore):
    async def delete(self, thread_ids: Sequence[str]) -> None:
        await super().delete(thread_ids[:1])


class CopiesOver(MemoryStore):
    def _is_taken(self, thread_id: str) -> bool:
        return False


class PrunesWhatIsToCome(MemoryStore):
    async def keep_latest(self, thread_ids: Sequence[str]) -> None:
        await super().keep_latest(thread_ids)
        for thread_id in thread_ids:
            for namespace in self._buckets[thread_id].namespaces.values() if thread_id in self._buckets else ():
                for checkpoint_id in namespace.writes.keys() - namespace.checkpoints.keys():
                    del namespace.writes[checkpoint_id]


class PrunesAncestors(MemoryStore):
    async def keep_latest(self, thread_ids: Sequence[str]) -> None:
        for thread_id in thread_ids:
            for namespace in self._buckets[thread_id].namespaces.values() if thread_id in self._buckets else ():
                namespace.delta_channels = frozenset()
        await super().keep_latest(thread_ids)


class KeepsARunsWrites(MemoryStore):
    async def put_writes(self, thread_id: str, ns: str, checkpoint_id: str, writes: Sequence[WriteRecord]) -> None:
        await super().put_writes(thread_id, ns, checkpoint_id, [one._replace(run_id=None) for one in writes])


class DropsWhatIsRebuiltFrom(MemoryStore):
    async def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        for bucket in self._buckets.values():
            for namespace in bucket.namespaces.values():
                namespace.delta_channels = frozenset()
        await super().delete_for_runs(run_ids)


class OldestConversationFirst(MemoryStore):
    def peek(self, look: Any) -> Any:
        return [*super().peek(look)][::-1] if look is list else super().peek(look)


class IgnoresCase(MemoryStore):
    async def put(self, thread_id: str, *args: Any) -> None:
        await super().put(thread_id.lower(), *args)


class HandsOutItsOwn(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, Any] = {}

    async def get(self, *args: Any) -> StoredCheckpoint | None:
        return self.found.setdefault(args, await super().get(*args))


class OneLoopOnly(MemoryStore):
    loop: Any = None

    async def put(self, *args: Any) -> None:
        self.loop = self.loop or current_token()
        if self.loop != current_token():
            raise RuntimeError("attached to a different loop")
        await super().put(*args)


class CannotCloseTwice(MemoryStore):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class GivesALeaseTwice(MemoryStore):
    async def acquire(self, thread_id: str, owner: str, **more: Any) -> Lease | None:
        return await super().acquire(thread_id, owner, instead_of=await self.lease(thread_id))


class BeginsAgainWithItsFences(MemoryStore):
    async def release(self, lease: Lease, **more: Any) -> bool:
        self._leases._fences = count(1)
        return await super().release(lease, **more)


class ReleasesForAnybody(MemoryStore):
    async def release(self, lease: Lease, **more: Any) -> bool:
        return await super().release(await self.lease(lease.thread_id) or lease, **more)


class LooksAndThenTakes(MemoryStore):
    async def acquire(self, thread_id: str, owner: str, instead_of: Any = None, undo: bool = False) -> Lease | None:
        held = await self.lease(thread_id)
        if held is not None and held is not instead_of:
            return None
        await yield_to_loop()
        return await super().acquire(thread_id, owner, instead_of=await self.lease(thread_id), undo=undo)


class KeepsWhatACancelledCallTook(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Lease | None] = []  # as a lease that nobody has is nobody's

    async def acquire(self, *args: Any, **more: Any) -> Lease | None:
        lease = await super().acquire(*args, **more)
        self.taken.append(lease)
        await dally()
        return lease


class ReleasesLater(MemoryStore):
    async def release(self, lease: Lease, **more: Any) -> bool:
        await dally()
        return await super().release(lease, **more)


_WRITERS = ("put", "put_writes", "delete", "keep_latest", "delete_for_runs", "copy")


def _without_leases(name: str) -> type[MemoryStore]:
    async def call(self: MemoryStore, *args: Any) -> None:
        await getattr(super(broken, self), name)(*[arg for arg in args if not _is_leases(arg)])

    broken = type(f"LooksAtNoLeasesIn{name.title()}", (MemoryStore,), {name: call})
    return broken


def _is_leases(arg: Any) -> bool:
    return isinstance(arg, list) and bool(arg) and isinstance(arg[0], Lease)


def _without_notes(name: str) -> type[MemoryStore]:
    async def call(self: MemoryStore, *args: Any) -> None:
        for lease in [one for arg in args if _is_leases(arg) for one in arg if one.is_lost()]:
            raise lost_error(lease)
        await getattr(super(broken, self), name)(*[arg for arg in args if not _is_leases(arg)])

    broken = type(f"NotesNothingIn{name.title()}", (MemoryStore,), {name: call})
    return broken


class LooksAndThenWrites(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: Any, blobs: Any, leases: Sequence[Any] = ()) -> None:
        if any(lease.is_lost() for lease in leases):
            raise lost_error(leases[0])
        await yield_to_loop()
        await super().put(thread_id, ns, record, blobs)


class RefusesWhatWasReleased(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: Any, blobs: Any, leases: Sequence[Any] = ()) -> None:
        if leases and not leases[0].is_held():
            raise lost_error(leases[0])
        await super().put(thread_id, ns, record, blobs, leases)


class LooksAtTheOutermostLease(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: Any, blobs: Any, leases: Sequence[Any] = ()) -> None:
        await super().put(thread_id, ns, record, blobs, leases[::-1])


class LooksAtTheLeasesOfOthers(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: Any, blobs: Any, leases: Sequence[Any] = ()) -> None:
        if any(lease.is_lost() for lease in leases if lease.thread_id != thread_id):
            raise lost_error(leases[0])
        await super().put(thread_id, ns, record, blobs, leases)


class KeepsWhatIsReleased(MemoryStore):
    async def release(self, lease: Lease, *, delete: bool = False) -> bool:
        return await super().release(lease)


class DeletesAndForgetsTheFence(MemoryStore):
    async def release(self, lease: Lease, *, delete: bool = False) -> bool:
        held = await super().release(lease)
        if held and delete:
            await self.delete([lease.thread_id])
        return held


class UndoesNothing(MemoryStore):
    async def acquire(self, thread_id: str, owner: str, *, instead_of: Any = None, undo: bool = False) -> Any:
        return await super().acquire(thread_id, owner, instead_of=instead_of)


class UndoesUnasked(MemoryStore):
    async def acquire(self, thread_id: str, owner: str, *, instead_of: Any = None, undo: bool = False) -> Any:
        return await super().acquire(thread_id, owner, instead_of=instead_of, undo=True)


class RestoresACopy(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[Any, Bucket | None] = {}

    async def acquire(self, thread_id: str, owner: str, *, instead_of: Any = None, undo: bool = False) -> Any:
        lease = await super().acquire(thread_id, owner, instead_of=instead_of)
        if lease is not None:
            await self.given(lease)
            if undo and instead_of in self.copies:
                self._replace({thread_id: self.copies[instead_of]})
            bucket = self._buckets.get(thread_id)
            self.copies[lease] = bucket and at_once(bucket.copy())
        return lease

    async def given(self, lease: Lease) -> None:
        """The lease is given, and nothing was undone yet."""


class GivesAndThenUndoes(RestoresACopy):
    async def given(self, lease: Lease) -> None:
        try:
            await dally()
        except BaseException:
            await self.release(lease)
            raise


class UndoesWhatHasEnded(RestoresACopy):
    pass


class FiguresOnlyGrow(MemoryStore):
    most = StoreStats(0, 0, 0, 0, 0)

    async def stats(self) -> StoreStats:
        now = await super().stats()
        self.most = self.most._replace(checkpoints=max(self.most.checkpoints or 0, now.checkpoints or 0))
        return now._replace(checkpoints=self.most.checkpoints)


class CountsWhatIsHidden(MemoryStore):
    async def stats(self) -> StoreStats:
        namespaces = [one for bucket in self._buckets.values() for one in bucket.namespaces.values()]
        return (await super().stats())._replace(checkpoints=sum(len(one.checkpoints) for one in namespaces))


class KeepsToTheLastLimits(MemoryStore):
    def retain(self, retention: Retention) -> None:
        self.retention = None
        super().retain(retention)


def _limited_by(name: str, **others: Any) -> type[MemoryStore]:
    """Return a store that keeps to other limits than it is given."""

    def retain(self: MemoryStore, retention: Retention) -> None:
        if self.retention is None:
            given = {key: other(getattr(retention, key)) for key, other in others.items()}
            MemoryStore.retain(self, replace(retention, **given))
            self.retention = retention

    return type(name, (MemoryStore,), {"retain": retain})


IgnoresTheTime = _limited_by("IgnoresTheTime", ttl=lambda ttl: None)
AllHaveTheSameTime = _limited_by("AllHaveTheSameTime", ttl=lambda ttl: ttl and 10)
ReadingIsUse = _limited_by("ReadingIsUse", refresh_on_read=lambda refresh: True)
ReadingIsNoUse = _limited_by("ReadingIsNoUse", refresh_on_read=lambda refresh: False)
KeepsAsManyAsComes = _limited_by("KeepsAsManyAsComes", max_threads=lambda number: None)
KeepsAsMuchAsComes = _limited_by("KeepsAsMuchAsComes", max_bytes=lambda number: None)
KeepsHalfOfWhatItMay = _limited_by("KeepsHalfOfWhatItMay", max_bytes=lambda number: number and number // 2)
KeepsOneMore = _limited_by("KeepsOneMore", keep_last=lambda number: number and number + 1)


class TakesWhatIsWrittenTo(MemoryStore):
    async def put(self, *args: Any) -> bool:
        conflict = await super().put(*args)
        await self.sweep()
        return conflict


class WritingIsNoUse(MemoryStore):
    async def put_writes(self, thread_id: str, *args: Any) -> None:
        clock: Any = self.retention and self.retention.clock
        now = clock and clock.now
        if clock:
            clock.now = 1000.0
        await super().put_writes(thread_id, *args)
        if clock:
            clock.now = now


class LeavesWrites(MemoryStore):
    async def sweep(self) -> int:
        before = {*self._buckets}
        went = await super().sweep()
        for thread_id in before - {*self._buckets}:
            bucket = Bucket()
            self._replace({thread_id: bucket})
        return went


class DropsWhatIsNotNew(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: CheckpointRecord, blobs: Any, *more: Any) -> bool:
        if self.retention is not None and self.retention.keep_last is not None:
            record = record._replace(versions=tuple(version for version, _ in blobs))
        return await super().put(thread_id, ns, record, blobs, *more)


class SweepsWhatIsToCome(MemoryStore):
    async def sweep(self) -> int:
        if self.retention is not None and self.retention.keep_last is not None:
            for bucket in self._buckets.values():
                for namespace in bucket.namespaces.values():
                    namespace.writes.pop("9", None)
        return await super().sweep()


class SweepsAncestors(MemoryStore):
    async def sweep(self) -> int:
        for bucket in self._buckets.values():
            for namespace in bucket.namespaces.values():
                namespace.delta_channels = frozenset()
        return await super().sweep()


class TellsNobody(MemoryStore):
    async def interrupt(self, lease: Lease, by: str) -> None:
        """Do nothing."""


class KeepsItsPlace(MemoryStore):
    waiting = False

    async def wait(self, thread_id: str, seconds: float) -> None:
        self.waiting = True
        await super().wait(thread_id, seconds)

    async def acquire(self, thread_id: str, owner: str, **more: Any) -> Lease | None:
        return None if self.waiting and owner != "second" else await super().acquire(thread_id, owner, **more)


class TakesWhatIsLeased(MemoryStore):
    def _is_in_use(self, *args: Any) -> bool:
        return False


class PrunesWhatIsLeased(MemoryStore):
    async def sweep(self) -> int:
        went = await super().sweep()
        for thread_id in self._limits.overfull if self._limits is not None else ():
            await super().keep_latest([thread_id])
        return went


class TellsTwice(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def evictions(self) -> Iterator[Any]:
        self.told += super().evictions()
        return iter([*self.told])


class TellsByItself(MemoryStore):
    def evictions(self) -> Iterator[Any]:
        for thread_id, reason in super().evictions():
            if self.retention is not None and self.retention.on_evict is not None:
                self.retention.on_evict(thread_id, reason)
            yield thread_id, reason


class TellsAfterwards(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    async def sweep(self) -> int:
        went = await super().sweep()
        told = [*super().evictions()]
        await dally()
        self.told += told
        return went

    def evictions(self) -> Iterator[Any]:
        while self.told:
            yield self.told.pop()


class CountsNoEvictions(MemoryStore):
    async def stats(self) -> StoreStats:
        return (await super().stats())._replace(evictions={})


class CountsNoOverruns(MemoryStore):
    async def stats(self) -> StoreStats:
        return (await super().stats())._replace(overruns=0)


CHECKS = [*testing._CHECKS, *testing._CHECKS_OF_LEASES, *testing._CHECKS_OF_LIMITS]

_BROKEN = {
    LeavesTraces: "nothing",
    ForgetsAtSetup: "setup",
    CannotCloseTwice: "setup",
    SortsValues: "put",
    LastStoredIsLatest: "latest",
    StoresInSpiteOfConflicts: "conflict",
    NeverReplaces: "replaced",
    DropsWhatIsNotNamed: "shared_versions",
    NeedsTheCheckpointFirst: "writes",
    IncludesBefore: "list",
    ReadsAllAtOnce: "list_fixed",
    NewestWritesFirst: "history",
    DeletesOne: "delete",
    CopiesOver: "copy",
    PrunesWhatIsToCome: "keep_latest",
    PrunesAncestors: "keep_latest_delta",
    KeepsARunsWrites: "runs",
    DropsWhatIsRebuiltFrom: "runs_delta",
    OldestConversationFirst: "thread_ids",
    IgnoresCase: "odd_ids",
    HandsOutItsOwn: "bytes",
    Split: "tasks",
    OneLoopOnly: "loops",
    HalfDeleted: "cancelled",
    GivesALeaseTwice: "lease",
    BeginsAgainWithItsFences: "lease",
    ReleasesForAnybody: "lease",
    LooksAndThenTakes: "lease_once",
    KeepsWhatACancelledCallTook: "lease_cancelled",
    GivesAndThenUndoes: "lease_cancelled",
    ReleasesLater: "lease_cancelled",
    **{_without_leases(name): "fence" for name in _WRITERS},
    LooksAndThenWrites: "fence_at_once",
    RefusesWhatWasReleased: "fence_passes",
    LooksAtTheOutermostLease: "fence_passes",
    LooksAtTheLeasesOfOthers: "fence_passes",
    KeepsWhatIsReleased: "release_delete",
    DeletesAndForgetsTheFence: "release_delete",
    UndoesNothing: "undo",
    **{_without_notes(name): "undo" for name in _WRITERS if name != "copy"},
    _without_notes("copy"): "undo_new",
    UndoesUnasked: "undo_only",
    UndoesWhatHasEnded: "undo_only",
    RestoresACopy: "undo_others",
    TellsNobody: "interrupt",
    KeepsItsPlace: "queue",
    FiguresOnlyGrow: "figures",
    CountsWhatIsHidden: "figures",
    KeepsToTheLastLimits: "retain",
    IgnoresTheTime: "ttl",
    AllHaveTheSameTime: "ttl",
    WritingIsNoUse: "ttl",
    LeavesWrites: "ttl",
    ReadingIsUse: "reading_is_no_use",
    ReadingIsNoUse: "max_threads",
    KeepsAsManyAsComes: "max_threads",
    KeepsAsMuchAsComes: "max_bytes",
    KeepsHalfOfWhatItMay: "max_bytes",
    TakesWhatIsWrittenTo: "max_bytes",
    KeepsOneMore: "keep_last",
    DropsWhatIsNotNew: "keep_last",
    SweepsWhatIsToCome: "keep_last",
    SweepsAncestors: "keep_last_delta",
    TakesWhatIsLeased: "limits_and_leases",
    PrunesWhatIsLeased: "limits_and_leases",
    TellsTwice: "evictions",
    TellsByItself: "evictions",
    TellsAfterwards: "sweep_cancelled",
    CountsNoEvictions: "figures_of_limits",
    CountsNoOverruns: "figures_of_limits",
}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("broken", _BROKEN)
async def test_a_broken_promise_is_named(broken: type[MemoryStore], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the message, with what was seen."""
    check = getattr(testing, f"_check_{_BROKEN[broken]}")
    for others in ("_CHECKS", "_CHECKS_OF_LEASES", "_CHECKS_OF_LIMITS"):  # which take their time, and are not looked at
        if check not in getattr(testing, others):
            monkeypatch.setattr(testing, others, [])
    with pytest.raises(AssertionError) as failed:
        await check_store(broken)
    assert f"- {check.__doc__}\n" in str(failed.value)
    assert failed.value.__cause__ is not None
    assert str(failed.value).startswith(f"{broken.__name__} breaks ")


def test_every_check_can_fail() -> None:
    """There is a broken store for each."""
    assert {f"_check_{name}" for name in _BROKEN.values()} == {check.__name__ for check in CHECKS}
    assert all(check.__doc__ for check in CHECKS)
    assert {name for name in vars(testing) if name.startswith("_check_")} == {c.__name__ for c in CHECKS}


async def test_a_store_may_do_without_leases() -> None:
    """Then they are not checked, nor what limits are to them, and it has no sessions."""

    class Plain(MemoryStore):
        acquire = Store.acquire

    await check_store(Plain)
    with pytest.raises(SessionError, match="a Plain has no leases"):
        await AsyncSaver(store=Plain()).session("t").__aenter__()
    assert not await AsyncSaver(store=Plain()).ais_busy("t")


async def test_a_store_may_do_without_limits() -> None:
    """Then they are not checked, and a saver with a `Retention` does not take it."""

    class Plain(MemoryStore):
        retain = Store.retain

    await check_store(Plain)
    with pytest.raises(InvalidValueError, match="a Plain has no limits"):
        AsyncSaver(store=Plain(), retention=Retention(ttl=1))


class SweepsOnly(MemoryStore):
    """Keeps to its limits where it is told to sweep, and nowhere else."""

    sweeping = False

    async def sweep(self) -> int:
        self.sweeping = True
        try:
            for thread_id in self._buckets if self._limits is not None else ():
                self._limits.overfull[thread_id] = None
            return await super().sweep()
        finally:
            self.sweeping = False

    def _keep_to(self, *args: Any) -> None:
        return None

    def _first_dropped(self, *args: Any) -> tuple[int, int, int, int]:
        return 0, 0, 0, 0

    async def _keep_on(self, *args: Any) -> None:
        if self.sweeping:
            await super()._keep_on(*args)

    async def _trim(self, *args: Any) -> None:
        if self.sweeping:
            await super()._trim(*args)

    async def _sweep_due(self, *args: Any) -> None:
        if self.sweeping:
            await super()._sweep_due(*args)


async def test_a_store_may_keep_to_its_limits_in_sweeps_only() -> None:
    """As one in a database will, which cannot look at each put what is there."""
    await check_store(SweepsOnly)
