"""The default store: one bucket per conversation, in this process's memory."""

import copy
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain, islice
from math import inf
from operator import setitem
from time import perf_counter
from typing import Any, TypeVar

from anyio.lowlevel import checkpoint as yield_to_loop
from typing_extensions import Self

from async_saver.errors import InvalidValueError
from async_saver.guard import guard, refuse_inside
from async_saver.pace import Slices, at_once, keep_pace
from async_saver.records import (
    EMPTY,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    Lease,
    Listing,
    StoredCheckpoint,
    StoredHistory,
    StoreStats,
    WriteRecord,
)
from async_saver.retention import EvictionReason, Retention
from async_saver.stores.base import OnConflict, Store, exists_error, lost_error, torn_error
from async_saver.stores.bucket import (
    NAMESPACE_SIZE,
    PLACE_SIZE,
    RUN_SIZE,
    WRITE_SIZE,
    WRITES_SIZE,
    Bucket,
    Figures,
    Namespace,
    Write,
    WriteKey,
    record_size,
    with_inserted,
    write_size,
)
from async_saver.stores.history import Shared, Size, Step
from async_saver.stores.leases import HeldLease, Leases, lease_of
from async_saver.stores.limits import Limits, Work, standing

__all__ = ["MemoryStore"]

_Steps = list[Step]
_Key = tuple[str, str]
_Ordered = TypeVar("_Ordered", str, tuple[str, str])
_T = TypeVar("_T")
_Ids = list[str]
_Places = list[_Key]
_Formers = list[tuple[Bucket, Sequence[Bucket]]]
"""Buckets that are stored no longer, each with those that may have taken parts of it over."""

_Left = tuple[bool, bool]
"""Whether a conversation has too many checkpoints, and whether there are too many conversations."""

_MERGED_AT_ONCE = 256

_SLICE = 0.001  # seconds in the guard at a time, for work on whole conversations
_LOOKS = 16  # so many conversations are looked at, at a time, for one that may go
_PIECE = 4096  # bytes; what is longer is copied out of what it was made in, where bytes are limited
_LARGE = 64 * 1024  # bytes; what is less is freed at once

_TRIES = 3  # so often such work begins again because the conversation has changed; then it is done at once


class MemoryStore(Store):
    """Keeps conversations in memory; they end with the process.

    Every change is a list of steps, each of which may run twice. One assignment makes the list the store's journal,
    and from then on the change has happened: whoever enters the guard next finishes what an interrupt cut off.
    """

    def __init__(self) -> None:
        # By thread_id, the one last written to last.
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._runs: dict[str, set[str]] = {}  # by run_id: the thread_ids that it stored something in
        self._journal: _Steps | None = None
        self._leases = Leases()
        self._totals: Figures = (0, 0, 0, 0)  # of all buckets, with their thread_ids
        self._limits: Limits | None = None
        self.retention: Retention | None = None
        self.untold: Collection[object] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = copy.copy(self)
        MemoryStore.__init__(twin)
        with guard:
            self._settle()
            twin._replace(self._twins())
        if self.retention is not None:
            twin.retain(self.retention)
        return twin

    def _twins(self) -> Mapping[str, Bucket]:
        return {thread_id: at_once(bucket.copy()) for thread_id, bucket in self._buckets.items()}

    def check(self) -> None:
        """Look whether counts, orders and indexes are what the stored records say; for tests, and whoever debugs.

        Raises:
            AssertionError: They are not. Its message says where, and quotes ids.
        """
        with guard:
            self._settle()
            faults = self._faults()
        if faults:
            raise AssertionError("\n".join(faults))

    def _faults(self) -> _Ids:
        faults: _Ids = []
        runs: dict[str, set[str]] = {}
        names: Figures = (0, 0, sum(map(len, self._buckets)), 0)
        totals = _plus(names, *(bucket.figures for bucket in self._buckets.values()))
        if self._totals != totals:
            faults.append(f"the totals are {self._totals}, and follow as {totals}")
        if self._limits is not None:
            faults += self._limits.faults(self._buckets)
        for thread_id, bucket in self._buckets.items():
            faults += [f"thread_id {thread_id!r}: {fault}" for fault in bucket.faults()]
            for run_id in bucket.runs:
                runs.setdefault(run_id, set()).add(thread_id)
        if self._runs != runs:
            faults.append(f"the runs are {self._runs}, and follow as {runs}")
        return faults

    def _settle(self) -> None:
        """Finish a change that was cut off, if there is one. The caller is in the guard."""
        if self._journal is not None:
            for step, arguments in self._journal:
                step(*arguments)
            self._journal = None

    def _commit(self, steps: _Steps) -> None:
        """Make a change. The caller is in the guard, and has prepared every step without touching what is stored."""
        self._journal = steps
        self._settle()

    def peek(self, look: Callable[[Mapping[str, Bucket]], _T]) -> _T:
        """Return what `look` sees of the buckets at one moment. It must be quick, and hand out nothing mutable."""
        with guard:
            self._settle()
            return look(self._buckets)

    async def get(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """See `Store.get`."""
        if self._limits is not None:
            await self._use(self._limits, thread_id)
        return self.find(thread_id, checkpoint_ns, checkpoint_id, stand=True)

    def find(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, stand: bool = False
    ) -> StoredCheckpoint | None:
        """Return a checkpoint; if the caller is to `stand`, as one that goes on from there."""
        with guard:
            if self._journal is not None:
                self._settle()
            bucket = self._buckets.get(thread_id)
            namespace = bucket.namespaces.get(checkpoint_ns) if bucket is not None else None
            record = namespace.visible(checkpoint_id) if namespace is not None else None
            if stand and self._limits is not None and self._limits.keep_last:
                self._limits.stand((thread_id, checkpoint_ns), None if record is None else record.checkpoint_id)
            if namespace is None or record is None or bucket is None:
                return None
            if self._limits is not None and record.checkpoint_id != namespace.ids[-1]:
                bucket.changes += 1  # a pruning that is under way looks again at what may go
            return namespace.read(thread_id, checkpoint_ns, record)

    async def delta_history(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Histories:
        """See `Store.delta_history`."""
        if self._limits is not None:
            await self._use(self._limits, thread_id)
        with guard:
            self._settle()
            namespace = self._namespace(thread_id, checkpoint_ns)
            if namespace is not None:
                return namespace.delta_history(checkpoint_id, channels)
        return {channel: StoredHistory(None, ()) for channel in channels}

    def _namespace(self, thread_id: str, checkpoint_ns: str) -> Namespace | None:
        bucket = self._buckets.get(thread_id)
        return bucket.namespaces.get(checkpoint_ns) if bucket is not None else None

    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        """See `Store.list`."""
        return _Found(self, listing)

    def thread_ids(self) -> AsyncIterator[str]:
        """See `Store.thread_ids`."""
        return _ThreadIds(self)

    def holds(self, thread_id: str) -> bool:
        """Tell whether anything of a conversation is stored."""
        return self.peek(lambda buckets: thread_id in buckets)

    async def count(self) -> int:
        """See `Store.count`."""
        await self._sweep_due(self._limits)
        return self.peek(len)

    async def run_threads(self, run_ids: Sequence[str]) -> Sequence[str]:
        """See `Store.run_threads`."""
        with guard:
            self._settle()
            return [*self._of_runs(run_ids)]

    def _of_runs(self, run_ids: Iterable[str]) -> set[str]:
        return {thread_id for run_id in run_ids for thread_id in self._runs.get(run_id, ())}

    async def put(
        self,
        thread_id: str,
        checkpoint_ns: str,
        record: CheckpointRecord,
        blobs: Sequence[tuple[ChannelVersion, Blob]],
        leases: Sequence[Lease] = (),
        on_conflict: OnConflict | None = None,
    ) -> bool:
        """See `Store.put`."""
        lease = lease_of(thread_id, leases) if leases else None
        lost = conflict = torn = False
        left: _Left | None = None
        limits = self._limits
        now = lifetime = 0.0
        if limits is not None and limits.by_use:
            now = limits.now()
            if limits.retention.ttl is not None and limits.is_over(thread_id, now):
                await self._use(limits, thread_id)
            lifetime = limits.lifetime or limits.lifetime_of(thread_id)
            if limits.max_bytes < inf and any(len(blob[1]) >= _PIECE for _, blob in blobs):
                blobs = [(version, blob if len(blob[1]) < _PIECE else _by_itself(blob)) for version, blob in blobs]
        with guard:
            if self._journal is not None:
                self._settle()
            if lease is not None:
                lost = lease.is_lost()
            if limits is not None and record.parent_id is not None:
                torn = self._would_be_torn(thread_id, checkpoint_ns, record, blobs)
            if on_conflict is not None:
                conflict = self._is_in_conflict(thread_id, checkpoint_ns, record)
            if not lost and not torn and (not conflict or on_conflict == "warn"):
                self._commit(self._put(thread_id, checkpoint_ns, record, blobs, lease, now, lifetime))
                if limits is not None:
                    left = self._keep_to(limits, thread_id, (record.checkpoint_id, checkpoint_ns), now)
        if lost and lease is not None:
            raise lost_error(lease)
        if torn:
            raise torn_error(thread_id)
        if limits is not None and left is not None:
            await self._go_on(limits, thread_id, now, left)
        return conflict

    def _is_in_conflict(self, thread_id: str, checkpoint_ns: str, record: CheckpointRecord) -> bool:
        namespace = self._namespace(thread_id, checkpoint_ns)
        return namespace is not None and namespace.is_ahead_of(record)

    def _put(
        self,
        thread_id: str,
        checkpoint_ns: str,
        record: CheckpointRecord,
        blobs: Sequence[tuple[ChannelVersion, Blob]],
        lease: HeldLease | None,
        now: float = 0.0,
        lifetime: float = inf,
    ) -> _Steps:
        bucket, namespace, held = self._prepared(thread_id, checkpoint_ns)
        if lease is not None and (noted := lease.former(checkpoint_ns, namespace)) is not None:
            namespace.note_checkpoint(record.checkpoint_id, [version for version, _ in blobs], noted)
        former = namespace.checkpoints.get(record.checkpoint_id)
        held += record_size(record)
        if former is not None:
            held -= record_size(former)
        saved = coming = 0
        ids: _Ids | None = None
        order: list[_Key] | None = None
        if not record.hidden and (former is None or former.hidden):
            ids = _with(namespace.ids, record.checkpoint_id)
            order = _with(bucket.order, (record.checkpoint_id, checkpoint_ns))
            coming = 1
        namespace.note_users(record)
        steps: _Steps = [(_add_checkpoint, (bucket, checkpoint_ns, namespace, record, ids, order))]
        grown = (0, 0)
        number = 0
        if blobs:
            values, grown = namespace.added(dict(blobs))
            if values:
                steps += values
                held, saved = held + grown[0], grown[1]
        limits = self._limits
        if limits is not None and coming and len(namespace.ids) == limits.drops_at and ids is namespace.ids:
            less = self._first_dropped(limits, thread_id, bucket, checkpoint_ns, record, grown, steps)
            coming, number, held, saved = coming + less[0], less[1], held + less[2], saved + less[3]
        if record.run_id is not None:
            held += self._add_run(thread_id, bucket, record.run_id, (record.checkpoint_id, checkpoint_ns), steps)
        self._add(thread_id, bucket, checkpoint_ns, namespace, (coming, number, held, saved), now, lifetime, steps)
        if self._leases.kept_buckets and (beside := self._beside(thread_id, lease)) is not None:
            steps += beside._put(thread_id, checkpoint_ns, record, blobs, None)
        return steps

    async def put_writes(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str,
        writes: Sequence[WriteRecord],
        leases: Sequence[Lease] = (),
    ) -> None:
        """See `Store.put_writes`."""
        if not writes:
            return
        lease = lease_of(thread_id, leases) if leases else None
        lost = False
        left: _Left | None = None
        limits = self._limits
        now = lifetime = 0.0
        if limits is not None and limits.by_use:
            now = limits.now()
            if limits.retention.ttl is not None and limits.is_over(thread_id, now):
                await self._use(limits, thread_id)
            lifetime = limits.lifetime or limits.lifetime_of(thread_id)
        with guard:
            if self._journal is not None:
                self._settle()
            if lease is not None:
                lost = lease.is_lost()
            if not lost:
                self._commit(self._put_writes(thread_id, checkpoint_ns, checkpoint_id, writes, lease, now, lifetime))
                if limits is not None:
                    left = self._keep_to(limits, thread_id, None, now)
        if lost and lease is not None:
            raise lost_error(lease)
        if limits is not None and left is not None:
            await self._go_on(limits, thread_id, now, left)

    def _put_writes(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str,
        writes: Sequence[WriteRecord],
        lease: HeldLease | None,
        now: float = 0.0,
        lifetime: float = inf,
    ) -> _Steps:
        bucket, namespace, held = self._prepared(thread_id, checkpoint_ns)
        record = namespace.checkpoints.get(checkpoint_id)
        if record is None:
            if self._limits is not None and self._is_outdated(self._limits, namespace, checkpoint_id):
                return []
        elif record.hidden:
            return []  # deleted; what is rebuilt from it must not change
        stored = namespace.writes.get(checkpoint_id, {})
        saved = 0
        if not stored:
            held += WRITES_SIZE
        new: dict[WriteKey, Write] = {}
        runs: set[str] = set()
        for task_id, idx, channel, value, task_path, run_id in writes:
            key = (task_id, idx)
            if idx < 0 or not (key in stored or key in new):
                new[key] = Write(channel, namespace.history.shared(value), task_path, run_id)
            if run_id is not None:
                runs.add(run_id)
        coming = len(new)
        for key, write in new.items():
            held += WRITE_SIZE + len(write.value[-1])
            if type(write.value) is Shared:
                saved += namespace.history.length(write.value) - len(write.value.parts)
            if (former := stored.get(key)) is not None:
                coming -= 1
                held -= write_size(former)
                if isinstance(former.value, Shared):
                    saved -= namespace.history.length(former.value) - len(former.value.parts)
        if lease is not None and (noted := lease.former(checkpoint_ns, namespace)) is not None:
            namespace.note_writes(checkpoint_id, new, noted)
        steps: _Steps = [(setitem, (namespace.writes, checkpoint_id, stored)), (stored.update, (new,))]
        for run_id in runs:
            held += self._add_run(thread_id, bucket, run_id, (checkpoint_id, checkpoint_ns), steps)
        self._add(thread_id, bucket, checkpoint_ns, namespace, (0, coming, held, saved), now, lifetime, steps)
        if self._leases.kept_buckets and (beside := self._beside(thread_id, lease)) is not None:
            steps += beside._put_writes(thread_id, checkpoint_ns, checkpoint_id, writes, None)
        return steps

    def _is_outdated(self, limits: Limits, namespace: Namespace, checkpoint_id: str) -> bool:
        """Tell whether a checkpoint that is not stored is older than what `keep_last` keeps."""
        keep = limits.retention.keep_last
        return keep is not None and len(namespace.ids) >= keep and checkpoint_id < namespace.ids[-keep]

    def _beside(self, thread_id: str, lease: HeldLease | None) -> "MemoryStore | None":
        """Return a store of what undoing a session would bring back, if what another one writes is to be there, too."""
        held = self._leases.held(thread_id)
        if held is None or held is lease or held.bucket is None:
            return None
        beside = MemoryStore()
        beside._buckets[thread_id] = held.bucket
        return beside

    def _prepared(self, thread_id: str, checkpoint_ns: str) -> tuple[Bucket, Namespace, int]:
        """Return the bucket and namespace to write to, which `_add` makes part of the store, and what they take."""
        bucket = self._buckets.get(thread_id)
        if bucket is None:
            return Bucket(), Namespace(), NAMESPACE_SIZE
        namespace = bucket.namespaces.get(checkpoint_ns)
        return (bucket, Namespace(), NAMESPACE_SIZE) if namespace is None else (bucket, namespace, 0)

    def _add(
        self,
        thread_id: str,
        bucket: Bucket,
        checkpoint_ns: str,
        namespace: Namespace,
        grown: Figures,
        now: float,
        lifetime: float,
        steps: _Steps,
    ) -> None:
        """Add the steps by which a bucket that was written to is part of the store."""
        # What `_plus` does, in half the time.
        checkpoints, writes, held, saved = grown
        before, total = bucket.figures, self._totals
        figures = (before[0] + checkpoints, before[1] + writes, before[2] + held, before[3] + saved)
        if thread_id not in self._buckets:
            held += before[2] + len(thread_id)
        totals = (total[0] + checkpoints, total[1] + writes, total[2] + held, total[3] + saved)
        added = (thread_id, bucket, bucket.changes + 1, checkpoint_ns, namespace, figures, totals)
        steps.append((self._put_in_place, added))
        if self._limits is not None and self._limits.by_use:
            steps.append((self._limits.use, (thread_id, now, lifetime)))

    def _put_in_place(
        self,
        thread_id: str,
        bucket: Bucket,
        changes: int,
        checkpoint_ns: str,
        namespace: Namespace,
        figures: Figures,
        totals: Figures,
    ) -> None:
        self._buckets[thread_id] = bucket
        self._buckets.move_to_end(thread_id)
        bucket.changes = changes
        bucket.namespaces[checkpoint_ns] = namespace
        bucket.figures, self._totals = figures, totals

    def _add_run(self, thread_id: str, bucket: Bucket, run_id: str, key: _Key, steps: _Steps) -> int:
        """Add the steps by which a run is found where it has stored something; return what that takes."""
        places = bucket.runs.get(run_id)
        if places is not None:
            steps.append((places.add, (key,)))
            return 0 if key in places else PLACE_SIZE
        steps.append((setitem, (bucket.runs, run_id, {key})))
        threads = self._runs.get(run_id)
        steps.append((setitem, (self._runs, run_id, {thread_id})) if threads is None else (threads.add, (thread_id,)))
        return RUN_SIZE + PLACE_SIZE

    async def delete(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.delete`."""
        await _let_go(self.discard(thread_ids, leases))

    def discard(self, thread_ids: Sequence[str] | None, leases: Sequence[Lease] = ()) -> _Formers:
        """Delete these conversations, or with None all, outside of an event loop too; return what they were."""
        refuse_inside()
        former: _Formers = []
        with guard:
            self._settle()
            gone = dict.fromkeys(self._buckets if thread_ids is None else thread_ids)
            lost = _lost(gone, leases)
            if lost is None:
                former = self._replace(gone, leases)
        if lost is not None:
            raise lost_error(lost)
        return former

    async def delete_for_runs(self, run_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.delete_for_runs`."""
        runs = set(run_ids)
        await self._remake_own(lambda: self._of_runs(runs), lambda bucket: bucket.without_runs(runs), leases)

    async def keep_latest(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """See `Store.keep_latest`."""
        await self._remake_own(lambda: thread_ids, Bucket.latest_only, leases)

    async def _remake_own(
        self,
        which: Callable[[], Iterable[str]],
        make: Callable[[Bucket], Slices[Bucket | None]],
        leases: Sequence[Lease],
    ) -> None:
        lost: HeldLease | None = None

        def put_in_place(made: Mapping[str, Bucket | None]) -> _Formers:
            nonlocal lost
            lost = _lost(which(), leases)
            return self._replace(made if lost is None else {}, leases)

        await self._remake(which, make, put_in_place)
        if lost is not None:
            raise lost_error(lost)

    async def copy(self, source_thread_id: str, target_thread_id: str, leases: Sequence[Lease] = ()) -> None:
        """See `Store.copy`."""
        use = await self._use_both(source_thread_id, target_thread_id)
        lost: HeldLease | None
        lost, taken = self.peek(lambda _: (_lost([target_thread_id], leases), self._is_taken(target_thread_id)))

        def put_in_place(made: Mapping[str, Bucket | None]) -> _Formers:
            nonlocal lost, taken
            lost, taken = _lost([target_thread_id], leases), self._is_taken(target_thread_id)
            copied = made and lost is None and not taken
            return self._replace({target_thread_id: made[source_thread_id]} if copied else {}, leases, use=use)

        if not taken:
            await self._remake(lambda: [source_thread_id], Bucket.copy, put_in_place)
        if lost is not None:
            raise lost_error(lost)
        if self._limits is not None and not taken:
            await self._keep_on(self._limits, target_thread_id, use[0])
        if taken:
            # Not in the guard: Python 3.10 may leave it without releasing it where an interrupt meets an exception.
            raise exists_error(source_thread_id, target_thread_id)

    def _is_taken(self, thread_id: str) -> bool:
        return thread_id in self._buckets

    async def _remake(
        self,
        which: Callable[[], Iterable[str]],
        make: Callable[[Bucket], Slices[Bucket | None]],
        put_in_place: Callable[[Mapping[str, Bucket | None]], _Formers],
        find: Callable[[str], Bucket | None] | None = None,
    ) -> None:
        """Make other buckets of some, a slice at a time, and put all in place in one step.

        Between two slices neither the guard nor the event loop is held. What another loop or worker thread changes
        meanwhile is made anew, and in the end within one slice.

        Args:
            which: Returns the `thread_id`s, in the guard; unknown ones are left out.
            make: What to make of each.
            put_in_place: Called in the guard with everything that was made.
            find: Returns the bucket of a `thread_id`, in the guard; None is an unknown one's.
        """
        find = find or self._find
        drafts: dict[str, _Draft] = {}
        todo: _Ids = []
        former: _Formers | None = None
        work: Work | None = None
        while former is None:
            until = perf_counter() + _SLICE
            with guard:
                self._settle()
                if work is None and self._limits is not None:
                    work = self._limits.begin(which())
                made = self._made(which, find, make, drafts, todo, until)
                if made is not None:
                    former = put_in_place(made)
            if former is None:
                await yield_to_loop()
        drafts.clear()
        await _let_go(former)

    def _find(self, thread_id: str) -> Bucket | None:
        return self._buckets.get(thread_id)

    def _made(
        self,
        which: Callable[[], Iterable[str]],
        find: Callable[[str], Bucket | None],
        make: Callable[[Bucket], Slices[Bucket | None]],
        drafts: dict[str, "_Draft"],
        todo: _Ids,
        until: float,
    ) -> Mapping[str, Bucket | None] | None:
        """Work on the drafts of `todo` until a moment of `perf_counter`; return all, once they are of what is now."""
        while _drafted(find, drafts, todo, until):
            wanted = ((thread_id, find(thread_id)) for thread_id in which())
            known = {thread_id: bucket for thread_id, bucket in wanted if bucket is not None}
            for thread_id, bucket in known.items():
                if not drafts.setdefault(thread_id, _Draft(make)).is_done(bucket):
                    todo.append(thread_id)
            if not todo:
                return {thread_id: drafts[thread_id].made for thread_id in known}
        return None

    def _replace(
        self,
        changes: Mapping[str, Bucket | None],
        leases: Sequence[Lease] = (),
        also: Sequence[Step] = (),
        use: tuple[float, float] = (0.0, inf),
    ) -> _Formers:
        """Put whole buckets in the place of others, or of none; None deletes. The caller is in the guard.

        Args:
            changes: The buckets.
            leases: Those of the caller.
            also: Steps that belong to the same change.
            use: The time, and for new ones after how many seconds without use they go.

        Returns:
            What is now to be freed.
        """
        steps: _Steps = [*also]
        replaced: _Formers = []
        totals = self._totals
        limits = self._limits
        gone: dict[str, set[str]] = {}
        come: dict[str, set[str]] = {}
        for thread_id, bucket in changes.items():
            former = self._buckets.get(thread_id)
            if bucket is not None:
                steps.append((setitem, (self._buckets, thread_id, bucket)))
                totals = _plus(totals, bucket.figures, (0, 0, len(thread_id), 0))
                if limits is not None:
                    if limits.by_use and former is None:
                        steps.append((limits.use, (thread_id, *use)))
                    if limits.retention.keep_last is not None:
                        steps.append((setitem, (limits.overfull, thread_id, None)))
            elif former is not None:
                steps.append((self._buckets.pop, (thread_id, None)))
                if limits is not None:
                    steps.append((limits.forget, (thread_id,)))
            if former is not None:
                totals = _minus(totals, former.figures, (0, 0, len(thread_id), 0))
            freed = self._noted(thread_id, bucket, leases, steps)
            if freed is not None:
                replaced.append(freed)
            before, after = former.runs if former else {}, bucket.runs if bucket else {}
            for run_id in before.keys() - after.keys():
                gone.setdefault(run_id, set()).add(thread_id)
            for run_id in after.keys() - before.keys():
                come.setdefault(run_id, set()).add(thread_id)
        for run_id in gone.keys() | come.keys():
            threads, new = self._runs.get(run_id, set()), come.get(run_id, set())
            left = threads if run_id not in gone else threads - gone[run_id]
            if not new and not left:
                steps.append((self._runs.pop, (run_id, None)))
            elif not threads:
                steps.append((setitem, (self._runs, run_id, new)))
            else:
                steps.append((threads.update, (new,)))
                steps.append((threads.difference_update, (gone.get(run_id, set()),)))
        steps.append((setattr, (self, "_totals", totals)))
        self._commit(steps)
        return replaced

    def _noted(
        self, thread_id: str, bucket: Bucket | None, leases: Sequence[Lease], steps: _Steps
    ) -> tuple[Bucket, Sequence[Bucket]] | None:
        """Add the steps by which it can be undone that a conversation is replaced; return what is now to be freed."""
        former, held = self._buckets.get(thread_id), self._leases.held(thread_id)
        kept = None if held is None else held.bucket
        if held is not None and held is lease_of(thread_id, leases):
            if kept is None:
                self._leases.kept_buckets = True
                steps.append((setattr, (held, "bucket", former or Bucket())))
                return None
        elif held is not None and bucket is None:
            steps.append((held.forget, ()))  # others have deleted it: of what was before nothing comes back
        return None if former is None else (former, [one for one in (bucket, kept) if one is not None])

    # Limits.

    def retain(self, retention: Retention) -> None:
        """See `Store.retain`."""
        limits = Limits(retention)
        lifetimes = {thread_id: limits.lifetime_of(thread_id) for thread_id in self.peek(list)}
        now = limits.now()
        with guard:
            self._settle()
            differs = self.retention is not None and self.retention != retention
            if self.retention is None:
                self._begin(limits, now, lifetimes)
        if differs:
            raise InvalidValueError("the store keeps to another Retention already; give it to one saver of the store")

    def _begin(self, limits: Limits, now: float, lifetimes: Mapping[str, float]) -> None:
        for thread_id in self._buckets:
            if limits.by_use:
                limits.use(thread_id, now, lifetimes.get(thread_id, inf))
            limits.overfull[thread_id] = None
        self._limits, self.retention, self.untold = limits, limits.retention, limits.untold

    def _is_in_use(self, limits: Limits, thread_id: str) -> bool:
        """Tell whether a conversation has an open session, or a call that is under way in several steps."""
        return self._leases.held(thread_id) is not None or limits.is_worked_on(thread_id)

    async def _use(self, limits: Limits, thread_id: str) -> None:
        """Note that a conversation is read; if it has gone unused for too long, let it go."""
        if not limits.by_use:
            return
        now = limits.now()
        with guard:
            self._settle()
            if limits.is_over(thread_id, now) and not self._is_in_use(limits, thread_id):
                self._evict(limits, thread_id, "ttl")
            elif limits.retention.refresh_on_read:
                limits.touch(thread_id, now)
            freed = limits.take_freed()
        if freed:
            await _let_go(freed)

    async def look(self, thread_id: str | None) -> None:
        """Note that a conversation, or with None that all of them are listed."""
        if self._limits is not None:
            await (self._sweep_due(self._limits) if thread_id is None else self._use(self._limits, thread_id))

    async def _use_both(self, *thread_ids: str) -> tuple[float, float]:
        """Do so with some; return the time, and after how many seconds without use the last one goes if it is new."""
        limits = self._limits
        if limits is None or not limits.by_use:
            return 0.0, inf
        for thread_id in thread_ids:
            await self._use(limits, thread_id)
        return limits.now(), limits.lifetime_of(thread_ids[-1])

    def _would_be_torn(
        self,
        thread_id: str,
        checkpoint_ns: str,
        record: CheckpointRecord,
        blobs: Sequence[tuple[ChannelVersion, Blob]],
    ) -> bool:
        """Tell whether a checkpoint lacks values, as its parent's went before it came."""
        bucket = self._buckets.get(thread_id)
        namespace = None if bucket is None else bucket.namespaces.get(checkpoint_ns)
        if namespace is not None and record.parent_id in namespace.checkpoints:
            return False
        new = {version: blob[0] for version, blob in blobs}
        for version in record.versions:
            kind = new.get(version) or (None if namespace is None else namespace.history.kind(version))
            # Without its ancestors, a DeltaChannel has what is stored with it.
            if kind is None or (kind == EMPTY[0] and version[0] in record.delta_channels):
                return True
        return False

    def _keep_to(self, limits: Limits, thread_id: str, place: _Key | None, now: float) -> "_Left | None":
        """Keep to the limits after a write; return what is left to be done. The caller is in the guard.

        Args:
            limits: The limits.
            thread_id: What was written to.
            place: `(checkpoint_id, checkpoint_ns)` of a checkpoint that was stored.
            now: The time.
        """
        is_long = more = False
        if place is not None and limits.keep_last:
            checkpoint_id, checkpoint_ns = place
            if stands := standing.get():
                limits.step(stands, (thread_id, checkpoint_ns), checkpoint_id)
            bucket = self._buckets[thread_id]
            if len(bucket.namespaces[checkpoint_ns].ids) > limits.keep_last:
                is_long = self._keep_last(limits, bucket, thread_id, checkpoint_ns)
        if limits.are_due(now):
            self._evict_due(limits, thread_id, now)
        if limits.by_use and self._exceeded(limits) is not None:
            _, taken = self._evict_some(limits, thread_id, now)
            if self._exceeded(limits) is not None:
                more, limits.overruns = bool(taken), limits.overruns + (not taken)
        return (is_long, more) if is_long or more or limits.freed else None

    def _keep_last(self, limits: Limits, bucket: Bucket, thread_id: str, checkpoint_ns: str) -> bool:
        """Let the oldest checkpoints go, if that is done in a moment; else tell whether it is worth the time."""
        namespace, keep = bucket.namespaces[checkpoint_ns], limits.keep_last
        over = len(namespace.ids) - keep
        if over <= limits.slack:
            limits.overfull[thread_id] = None
            return False
        if over > limits.slack + _LOOKS or namespace.delta_channels or self._leases.held(thread_id) is not None:
            limits.overfull[thread_id] = None
            most = 2 * max(namespace.settled, keep) if namespace.delta_channels else namespace.settled + _LOOKS
            return self._leases.held(thread_id) is None and len(namespace.checkpoints) >= most
        place = (thread_id, checkpoint_ns)
        oldest = namespace.ids[:over]
        if limits.has_stands():
            oldest = [one for one in oldest if not limits.is_stood_on(place, one)]
            if len(oldest) < over:
                limits.overfull[thread_id] = None
        if oldest:
            steps, grown, runs = bucket.without_oldest(checkpoint_ns, oldest)
            self._drop_runs(thread_id, runs, steps)
            figures, totals = _plus(bucket.figures, grown), _plus(self._totals, grown)
            steps.append((self._count, (bucket, bucket.changes + 1, figures, totals)))
            self._commit(steps)
            limits.pruned += len(oldest)
        return False

    def _first_dropped(
        self,
        limits: Limits,
        thread_id: str,
        bucket: Bucket,
        checkpoint_ns: str,
        coming: CheckpointRecord,
        grown: Size,
        steps: _Steps,
    ) -> Figures:
        """Add the steps by which the oldest checkpoint goes as another one comes, if that is plain.

        Returns:
            What that adds to the figures.
        """
        oldest = bucket.namespaces[checkpoint_ns].ids[0]
        is_stood_on = limits.has_stands() and limits.is_stood_on((thread_id, checkpoint_ns), oldest)
        if is_stood_on or self._leases.held(thread_id) is not None:
            return 0, 0, 0, 0
        dropped = bucket.without_first(checkpoint_ns, coming, grown)
        if dropped is None:
            return 0, 0, 0, 0
        more, less, runs = dropped
        steps += more
        if runs:
            self._drop_runs(thread_id, runs, steps)
        limits.pruned += 1
        return less

    def _drop_runs(self, thread_id: str, run_ids: Iterable[str], steps: _Steps) -> None:
        """Add the steps by which runs are no longer found in a conversation."""
        for run_id in run_ids:
            threads = self._runs.get(run_id, set())
            alone = threads <= {thread_id}
            steps.append((self._runs.pop, (run_id, None)) if alone else (threads.discard, (thread_id,)))

    def _count(self, bucket: Bucket, changes: int, figures: Figures, totals: Figures) -> None:
        bucket.changes, bucket.figures, self._totals = changes, figures, totals

    def _exceeded(self, limits: Limits) -> EvictionReason | None:
        if len(self._buckets) > limits.max_threads:
            return "max_threads"
        if self._totals[2] > limits.max_bytes:
            return "max_bytes"
        return None

    def _evict_some(self, limits: Limits, spared: str | None, now: float) -> tuple[int, int]:
        """Let a few conversations go, as long as there are too many. The caller is in the guard.

        Returns:
            How many were looked at, and how many went.
        """
        looked = taken = 0
        while looked < _LOOKS and (reason := self._exceeded(limits)) is not None:
            thread_id = limits.least_used()
            if thread_id is None:
                break
            looked += 1
            if thread_id == spared or self._is_in_use(limits, thread_id):
                limits.touch(thread_id, now)  # so that the next one is not found behind it again
            else:
                self._evict(limits, thread_id, reason)
                taken += 1
        return looked, taken

    def _evict_due(self, limits: Limits, spared: str | None, now: float) -> bool:
        """Let a few go that went unused for too long; tell whether there may be more. The caller is in the guard."""
        for _ in range(_LOOKS):
            thread_id = limits.next_due(now)
            if thread_id is None:
                return False
            self._evict_if_over(limits, thread_id, spared, now)
        return True

    def _evict_if_over(self, limits: Limits, thread_id: str, spared: str | None, now: float) -> None:
        is_over = limits.is_over(thread_id, now)
        if is_over and thread_id != spared and not self._is_in_use(limits, thread_id):
            self._evict(limits, thread_id, "ttl")
        else:
            limits.look_again(thread_id, now, is_over)

    def _evict(self, limits: Limits, thread_id: str, reason: EvictionReason) -> None:
        """Let a conversation go. The caller is in the guard, and has looked whether it may."""
        bucket = self._buckets[thread_id]
        checkpoints, writes, held, saved = bucket.figures
        total = self._totals
        totals = (total[0] - checkpoints, total[1] - writes, total[2] - held - len(thread_id), total[3] - saved)
        steps: _Steps = [
            (self._buckets.pop, (thread_id, None)),
            (setattr, (self, "_totals", totals)),
            (limits.evicted, (thread_id, reason, limits.evictions[reason] + 1)),
        ]
        self._drop_runs(thread_id, bucket.runs, steps)
        self._commit(steps)
        if held >= _LARGE:
            limits.freed.append((bucket, ()))

    async def _go_on(self, limits: Limits, thread_id: str, now: float, left: "_Left") -> None:
        """Do what is left to be done after a write."""
        is_long, more = left
        if is_long:
            await self._trim(limits, thread_id)
        if more:
            await self._keep_on(limits, thread_id, now)
        else:
            await _let_go(limits.take_freed())

    async def _keep_on(self, limits: Limits, thread_id: str | None, now: float) -> None:
        """Keep to the limits, a slice at a time.

        Args:
            limits: The limits.
            thread_id: What was written to, and does not go; with None, all others are looked at before it is given up.
            now: The time.
        """
        in_vain = 0
        while True:
            with guard:
                self._settle()
                looked, taken = self._evict_some(limits, thread_id, now) if limits.by_use else (0, 0)
                freed = limits.take_freed()
                over = self._exceeded(limits) is not None
                in_vain = 0 if taken else in_vain + looked
                stuck = over and not taken and (thread_id is not None or in_vain >= len(self._buckets))
                limits.overruns += stuck
            await _let_go(freed)
            if stuck or not over:
                return
            await keep_pace()

    async def _catch_up(self, limits: Limits, thread_id: str) -> None:
        """Keep to the limits as a session has ended, in which its conversation could not go."""
        now = limits.now()
        with guard:
            self._settle()
            limits.touch(thread_id, now)
        if thread_id in limits.overfull:
            await self._trim(limits, thread_id)  # first, as it may make values whole
        await self._keep_on(limits, None, now)

    async def _trim(self, limits: Limits, thread_id: str) -> None:
        """Let a conversation have no more checkpoints than `keep_last`, unless it has an open session."""
        keep = limits.retention.keep_last
        if keep is None:
            return

        def which() -> _Ids:
            return [] if self._leases.held(thread_id) is not None else [thread_id]

        def make(bucket: Bucket) -> Slices[Bucket | None]:
            return bucket.latest_only(keep, lambda ns, one: limits.is_stood_on((thread_id, ns), one))

        def put_in_place(made: Mapping[str, Bucket | None]) -> _Formers:
            for one, bucket in made.items():
                limits.pruned += self._buckets[one].figures[0] - (0 if bucket is None else bucket.figures[0])
            freed = self._replace(made)
            bucket = self._buckets.get(thread_id)
            if which() and not (bucket is not None and bucket.is_longer_than(keep)):
                limits.overfull.pop(thread_id, None)
            return freed

        await self._remake(which, make, put_in_place)

    async def sweep(self) -> int:
        """See `Store.sweep`."""
        limits = self._limits
        if limits is None:
            return 0
        before = sum(limits.evictions.values())
        await self._sweep_due(limits)
        for thread_id in [*limits.overfull]:
            await self._trim(limits, thread_id)
            await keep_pace()
        await self._keep_on(limits, None, limits.now())
        return sum(limits.evictions.values()) - before

    async def _sweep_due(self, limits: Limits | None) -> None:
        """Let all go that went unused for too long."""
        if limits is None or limits.retention.ttl is None:
            return
        now, more = limits.now(), True
        soon: _Ids = []
        while more:
            with guard:
                self._settle()
                more = self._evict_due(limits, None, now)
                freed = limits.take_freed()
                soon = [] if more else limits.soon_due(now)
            await _let_go(freed)
            await keep_pace()
        for first in range(0, len(soon), _LOOKS):
            with guard:
                self._settle()
                self._look_at(limits, soon[first : first + _LOOKS], now)
                freed = limits.take_freed()
            await _let_go(freed)
            await keep_pace()

    def _look_at(self, limits: Limits, thread_ids: Iterable[str], now: float) -> None:
        for thread_id in thread_ids:
            if limits.is_over(thread_id, now):
                self._evict_if_over(limits, thread_id, None, now)

    def evictions(self) -> Iterator[tuple[str, EvictionReason]]:
        """See `Store.evictions`."""
        return self._untold(self._limits) if self._limits is not None and self._limits.untold else iter(())

    @staticmethod
    def _untold(limits: Limits) -> Iterator[tuple[str, EvictionReason]]:
        while limits.untold:
            try:
                told = limits.untold.pop(next(iter(limits.untold)))
            except (KeyError, StopIteration, RuntimeError):
                continue  # another worker thread has taken it, or added one
            yield told

    async def stats(self) -> StoreStats:
        """See `Store.stats`."""
        limits = self._limits
        await self._sweep_due(limits)
        with guard:
            self._settle()
            number, (checkpoints, writes, held, saved) = len(self._buckets), self._totals
        if limits is None:
            return StoreStats(number, checkpoints, writes, held, saved)
        return StoreStats(
            number, checkpoints, writes, held, saved, {**limits.evictions}, limits.pruned, limits.overruns
        )

    async def acquire(
        self,
        thread_id: str,
        owner: str,
        *,
        instead_of: Lease | None = None,
        undo: bool = False,
        on_interrupt: Callable[[str], object] | None = None,
    ) -> Lease | None:
        """See `Store.acquire`."""
        lease: HeldLease | None = None
        former = instead_of if undo and isinstance(instead_of, HeldLease) else None
        if self._limits is not None and former is None:
            await self._use(self._limits, thread_id)
        use = (0.0, inf) if former is None else await self._use_both(thread_id)
        nothing = Bucket()

        def find(thread_id: str) -> Bucket | None:
            has_notes = former is not None and former.has_notes()
            return self._buckets.get(thread_id, nothing) if has_notes else None

        def make(bucket: Bucket) -> Slices[Bucket | None]:
            assert former is not None
            return (former.bucket or bucket).undone(former.formers)

        def give(made: Mapping[str, Bucket | None]) -> _Formers:
            nonlocal lease
            held = self._leases.held(thread_id)
            if held is not None and held is not instead_of:
                return []
            lease, given = self._leases.give(thread_id, owner)
            return self._end(held, made, given, use)

        try:
            await self._remake(lambda: [thread_id], make, give, find)
        except BaseException:
            if lease is not None:
                await self.release(lease)
            raise
        return lease

    def _end(
        self,
        lease: HeldLease | None,
        changes: Mapping[str, Bucket | None],
        ended: Sequence[Step],
        use: tuple[float, float] = (0.0, inf),
    ) -> _Formers:
        """End a lease, if there is one, as part of some changes; return what is now to be freed."""
        kept = None if lease is None else lease.bucket
        freed = self._replace(changes, also=ended, use=use)
        if lease is not None and kept is not None:
            now = self._buckets.get(lease.thread_id)
            freed.append((kept, [] if now is None else [now]))
        return freed

    async def renew(self, lease: Lease) -> bool:
        """See `Store.renew`."""
        return isinstance(lease, HeldLease) and self.peek(lambda _: lease.is_held())

    async def release(self, lease: Lease, *, delete: bool = False) -> bool:
        """See `Store.release`."""
        if not isinstance(lease, HeldLease):
            return False
        former: _Formers = []
        with guard:
            self._settle()
            held = lease.is_held()
            if held:
                ended = self._leases.ended(lease, lost=delete)
                former = self._end(lease, {lease.thread_id: None} if delete else {}, ended)
        await _let_go(former)
        if held and self._limits is not None:
            await self._catch_up(self._limits, lease.thread_id)
        return held

    async def lease(self, thread_id: str) -> Lease | None:
        """See `Store.lease`."""
        return self.peek(lambda _: self._leases.held(thread_id))


def _plus(*figures: Figures) -> Figures:
    checkpoints, writes, held, saved = figures[0]
    for more in figures[1:]:
        checkpoints, writes, held, saved = checkpoints + more[0], writes + more[1], held + more[2], saved + more[3]
    return checkpoints, writes, held, saved


def _minus(figures: Figures, *others: Figures) -> Figures:
    return _plus(figures, *((-one[0], -one[1], -one[2], -one[3]) for one in others))


def _by_itself(blob: Blob) -> Blob:
    """Return a value in memory of its own size.

    Serializers make it in a larger piece. What is left of that is taken for something shorter, and in the end the
    process may need three quarters more than it holds, where a copy takes some microseconds.
    """
    return (blob[0], bytes(memoryview(blob[1]))) if isinstance(blob[1], bytes) else blob


async def _let_go(former: _Formers) -> None:
    """Free what is stored no longer, a slice at a time."""
    until = perf_counter() + _SLICE
    while former:
        bucket, successors = former.pop()
        if bucket.figures[2] < _LARGE:
            continue
        for _ in bucket.dismantle(successors):
            if perf_counter() > until:
                await yield_to_loop()
                until = perf_counter() + _SLICE


def _lost(thread_ids: Iterable[str], leases: Sequence[Lease]) -> HeldLease | None:
    """Return a lease with which one of these conversations may no longer be written to."""
    if leases:
        for thread_id in thread_ids:
            lease = lease_of(thread_id, leases)
            if lease is not None and lease.is_lost():
                return lease
    return None


class _Draft:
    """What is being made of one conversation."""

    def __init__(self, make: Callable[[Bucket], Slices[Bucket | None]]) -> None:
        self.made: Bucket | None = None
        self._make = make
        self._of: tuple[Bucket, int] | None = None  # the conversation, and its count of changes
        self._work: Slices[Bucket | None] | None = None  # None before and after
        self._tries = 0

    def is_done(self, bucket: Bucket) -> bool:
        """Tell whether `made` is made of what the conversation is now."""
        return self._work is None and self._of == (bucket, bucket.changes)

    def go_on(self, bucket: Bucket, until: float) -> bool:
        """Work until a moment of `perf_counter`; tell whether all is done."""
        if self._of != (bucket, bucket.changes):
            self._of, self._work = (bucket, bucket.changes), self._make(bucket)
            self._tries += 1
        if self._tries > _TRIES:
            until = inf
        while self._work is not None:
            try:
                next(self._work)
            except StopIteration as end:
                self.made, self._work = end.value, None
            if perf_counter() > until:
                break
        return self._work is None


def _drafted(find: Callable[[str], Bucket | None], drafts: Mapping[str, _Draft], todo: _Ids, until: float) -> bool:
    while todo:
        bucket = find(todo[-1])
        if bucket is not None and not drafts[todo[-1]].go_on(bucket, until):
            return False
        todo.pop()
    return True


def _with(ascending: list[_Ordered], item: _Ordered) -> list[_Ordered]:
    """Return what a list with one more item is: the list itself if it only has to grow at its end."""
    return ascending if not ascending or item > ascending[-1] else with_inserted(ascending, item)


def _append_greater(ascending: list[_Ordered], item: _Ordered) -> None:
    if not ascending or item > ascending[-1]:
        ascending.append(item)


def _add_checkpoint(
    bucket: Bucket,
    checkpoint_ns: str,
    namespace: Namespace,
    record: CheckpointRecord,
    ids: _Ids | None,
    order: list[_Key] | None,
) -> None:
    checkpoint_id = record.checkpoint_id
    namespace.checkpoints[checkpoint_id] = record
    if ids is not None and order is not None:
        _append_greater(ids, checkpoint_id)
        _append_greater(order, (checkpoint_id, checkpoint_ns))
        namespace.ids, bucket.order = ids, order
    if record.delta_channels and not namespace.delta_channels.issuperset(record.delta_channels):
        namespace.delta_channels = namespace.delta_channels.union(record.delta_channels)


class _Found(AsyncIterator[StoredCheckpoint]):
    """The checkpoints of one listing: its keys are fixed at the first step, each is read when its turn comes."""

    def __init__(self, store: MemoryStore, listing: Listing) -> None:
        self._store = store
        self._listing = listing
        self._keys: Iterator[tuple[str, str, str]] | None = None

    async def __anext__(self) -> StoredCheckpoint:
        if self._keys is None:
            self._keys = await self._all_keys()
        await keep_pace()
        for checkpoint_id, checkpoint_ns, thread_id in self._keys:
            found = self._store.find(thread_id, checkpoint_ns, checkpoint_id)
            if found is not None:
                return found
            await keep_pace()
        raise StopAsyncIteration

    async def _all_keys(self) -> Iterator[tuple[str, str, str]]:
        thread_id = self._listing.thread_id
        await self._store.look(thread_id)
        if thread_id is not None:
            snapshot = self._store.peek(
                lambda buckets: self._snapshot(buckets[thread_id]) if thread_id in buckets else None
            )
            return self._keys_in(thread_id, *snapshot) if snapshot is not None else iter(())
        lines = self._store.peek(lambda buckets: [(one, *self._snapshot(bucket)) for one, bucket in buckets.items()])
        # Merged in two stages with a yield between, as the first look at each of many conversations takes its time.
        runs = []
        for start in range(0, len(lines), _MERGED_AT_ONCE):
            run = merge(*[self._keys_in(*line) for line in lines[start : start + _MERGED_AT_ONCE]], reverse=True)
            runs.append(chain([*islice(run, 1)], run))
            await yield_to_loop()
        return merge(*runs, reverse=True)

    def _snapshot(self, bucket: Bucket) -> "tuple[Sequence[Any], int]":
        """Return what a conversation lists, ascending, and how much of it: such lists only grow at their end."""
        if self._listing.checkpoint_ns is None:
            return bucket.order, len(bucket.order)
        namespace = bucket.namespaces.get(self._listing.checkpoint_ns)
        return (namespace.ids, len(namespace.ids)) if namespace is not None else ((), 0)

    def _keys_in(self, thread_id: str, ascending: Sequence[Any], length: int) -> Iterator[tuple[str, str, str]]:
        """Return what of a conversation is listed, newest first."""
        _, checkpoint_ns, checkpoint_id, before, _ = self._listing
        high = before if checkpoint_id is None else checkpoint_id + "\0"  # the least string that is greater
        if high is not None and before is not None:
            high = min(high, before)
        low = checkpoint_id or ""
        if checkpoint_ns is None:
            first = bisect_left(ascending, (low, ""), hi=length)
            end = length if high is None else bisect_left(ascending, (high, ""), hi=length)
            return ((*ascending[i], thread_id) for i in range(end - 1, first - 1, -1))
        first = bisect_left(ascending, low, hi=length)
        end = length if high is None else bisect_left(ascending, high, hi=length)
        return ((ascending[i], checkpoint_ns, thread_id) for i in range(end - 1, first - 1, -1))


class _ThreadIds(AsyncIterator[str]):
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._left: Iterator[str] | None = None

    async def __anext__(self) -> str:
        if self._left is None:
            await self._store.look(None)
            self._left = reversed(self._store.peek(list))
        await keep_pace()
        for thread_id in self._left:
            if self._store.holds(thread_id):
                return thread_id
            await keep_pace()
        raise StopAsyncIteration
