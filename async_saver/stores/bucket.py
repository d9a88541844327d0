"""What one conversation holds in memory, and what follows from it. Plain data: `MemoryStore` guards it."""

from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from langgraph.checkpoint.base import writes_sort_key

from async_saver.records import (
    EMPTY,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    StoredCheckpoint,
    StoredHistory,
    WriteRecord,
)

__all__ = ["Bucket", "Namespace", "Version", "WriteKey", "with_inserted"]

WriteKey = tuple[str, int]
"""A write's `(task_id, idx)`."""

_Ordered = TypeVar("_Ordered", str, tuple[str, str])

Mark = tuple[str, str]
"""A checkpoint's id, and a channel whose value at some descendant is rebuilt from that checkpoint's writes or blob."""


class Version:
    """One stored version of a channel, and how many of its namespace's checkpoints need it.

    `blob` is None while checkpoints name the version but no put has brought its value.
    """

    __slots__ = ("blob", "needed")

    def __init__(self, blob: Blob | None, needed: int) -> None:
        self.blob: Blob | None = blob
        self.needed: int = needed


class Namespace:
    """The checkpoints of one `checkpoint_ns`.

    Attributes:
        ids: The ids of the checkpoints in sight, ascending. It only ever grows at its end; any other change puts a
            new list in its place. So a list and a length are a snapshot that costs nothing.
        checkpoints: Every checkpoint by id, those in sight and those kept only for rebuilding.
        versions: What is known of each channel version.
        writes: Pending writes by checkpoint id, also of checkpoints that are not stored (yet).
        delta_channels: The channels that any checkpoint here showed to be a `DeltaChannel`.
    """

    __slots__ = ("checkpoints", "delta_channels", "ids", "versions", "writes")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.checkpoints: dict[str, CheckpointRecord] = {}
        self.versions: dict[ChannelVersion, Version] = {}
        self.writes: dict[str, dict[WriteKey, WriteRecord]] = {}
        self.delta_channels: frozenset[str] = frozenset()

    def visible(self, checkpoint_id: str | None) -> CheckpointRecord | None:
        """Return the checkpoint of this id, or with None the latest, if it is in sight."""
        if checkpoint_id is None:
            return self.checkpoints[self.ids[-1]] if self.ids else None
        record = self.checkpoints.get(checkpoint_id)
        return None if record is None or record.hidden else record

    def value(self, channel_version: ChannelVersion) -> Blob | None:
        """Return the value stored for a version; None where there is none, or an empty one."""
        version = self.versions.get(channel_version)
        return None if version is None or version.blob is None or version.blob[0] == EMPTY[0] else version.blob

    def sorted_writes(self, checkpoint_id: str) -> list[WriteRecord]:
        """Return a checkpoint's pending writes in the order in which the run applied them."""
        writes = self.writes.get(checkpoint_id)
        return sorted(writes.values(), key=_write_order) if writes else []

    def read(self, thread_id: str, checkpoint_ns: str, record: CheckpointRecord) -> StoredCheckpoint:
        """Return a checkpoint with its values and pending writes."""
        values = [(key[0], blob) for key in record.versions if (blob := self.value(key)) is not None]
        return StoredCheckpoint(thread_id, checkpoint_ns, record, values, self.sorted_writes(record.checkpoint_id))

    def ancestors(self, record: CheckpointRecord) -> Iterator[CheckpointRecord]:
        """Iterate over what is stored of the line of parents, nearest first."""
        seen = {record.checkpoint_id}
        current: CheckpointRecord | None = record
        while current is not None and current.parent_id is not None and current.parent_id not in seen:
            seen.add(current.parent_id)
            current = self.checkpoints.get(current.parent_id)
            if current is not None:
                yield current

    def delta_history(self, checkpoint_id: str | None, channels: Sequence[str]) -> Histories:
        """See `Store.delta_history`."""
        seeds: dict[str, Blob] = {}
        collected: dict[str, list[WriteRecord]] = {channel: [] for channel in channels}
        target = self.visible(checkpoint_id)
        for record in self.ancestors(target) if target is not None else ():
            open_channels = collected.keys() - seeds.keys()
            if not open_channels:
                break
            for write in reversed(self.sorted_writes(record.checkpoint_id)):
                if write.channel in open_channels:
                    collected[write.channel].append(write)
            for key in record.versions:
                if key[0] in open_channels and (blob := self.value(key)) is not None:
                    seeds[key[0]] = blob
        return {channel: StoredHistory(seeds.get(channel), writes[::-1]) for channel, writes in collected.items()}

    def _rebuilt(self, record: CheckpointRecord) -> list[str]:
        """Return the channels that a checkpoint knows but holds no value of: their values are rebuilt."""
        delta = self.delta_channels
        return [key[0] for key in record.versions if key[0] in delta and self.value(key) is None] if delta else []

    def _marks(self, checkpoint_ids: Iterable[str]) -> set[Mark]:
        """Return everything that the rebuilt values of these checkpoints rest on."""
        marks: set[Mark] = set()
        for checkpoint_id in checkpoint_ids:
            record = self.checkpoints[checkpoint_id]
            for channel in self._rebuilt(record):
                for ancestor in self.ancestors(record):
                    mark = (ancestor.checkpoint_id, channel)
                    if mark in marks:
                        break
                    marks.add(mark)
                    if any(key[0] == channel and self.value(key) is not None for key in ancestor.versions):
                        break
        return marks

    def _stands(self, record: CheckpointRecord, marks: Collection[Mark]) -> bool:
        """Tell whether all values of a checkpoint can be rebuilt from nothing but `marks`."""
        parent_id = record.parent_id
        return (
            parent_id is None
            or parent_id not in self.checkpoints
            or all((parent_id, channel) in marks for channel in self._rebuilt(record))
        )

    def latest_only(self) -> "Namespace":
        """Return a namespace with what `Store.keep_latest` keeps of this one."""
        latest = self.ids[-1:]
        marks = self._marks(latest)
        needed = {mark[0] for mark in marks}
        stay = [i for i in self.ids if i in latest or (i in needed and self._stands(self.checkpoints[i], marks))]
        kept = self._keeping(stay, marks)
        kept.writes.update((i, w) for i, w in self.writes.items() if i not in self.checkpoints and [i] > latest)
        return kept

    def without_runs(self, run_ids: Collection[str]) -> "Namespace":
        """Return a namespace with what `Store.delete_for_runs` leaves of this one."""
        stay = [i for i in self.ids if self.checkpoints[i].run_id not in run_ids]
        marks = self._marks(stay)
        kept = self._keeping(stay, marks)
        for checkpoint_id, writes in self.writes.items():
            if checkpoint_id not in self.checkpoints:
                kept.writes[checkpoint_id] = writes
        for checkpoint_id, writes in list(kept.writes.items()):
            left = {
                key: write
                for key, write in writes.items()
                if write.run_id not in run_ids or (checkpoint_id, write.channel) in marks
            }
            if left:
                kept.writes[checkpoint_id] = left
            else:
                del kept.writes[checkpoint_id]
        return kept

    def _keeping(self, stay: list[str], marks: Collection[Mark]) -> "Namespace":
        """Return a namespace with these checkpoints in sight, and out of sight what `marks` rests on beside them."""
        kept = Namespace()
        kept.ids = stay
        kept.delta_channels = self.delta_channels
        for checkpoint_id in stay:
            kept._take(self, self.checkpoints[checkpoint_id])
            if checkpoint_id in self.writes:
                kept.writes[checkpoint_id] = self.writes[checkpoint_id]
        for checkpoint_id in {mark[0] for mark in marks} - kept.checkpoints.keys():
            record = self.checkpoints[checkpoint_id]
            versions = tuple(key for key in record.versions if (checkpoint_id, key[0]) in marks)
            kept._take(self, record._replace(checkpoint=EMPTY, metadata=EMPTY, versions=versions))
            writes = self.writes.get(checkpoint_id, {})
            if needed := {key: write for key, write in writes.items() if (checkpoint_id, write.channel) in marks}:
                kept.writes[checkpoint_id] = needed
        return kept

    def _take(self, source: "Namespace", record: CheckpointRecord) -> None:
        """Add a checkpoint, with the versions that it needs, from another namespace."""
        self.checkpoints[record.checkpoint_id] = record
        for key in record.versions:
            if (mine := self.versions.get(key)) is not None:
                mine.needed += 1
            elif (theirs := source.versions.get(key)) is not None:
                self.versions[key] = Version(theirs.blob, 1)

    def copy(self) -> "Namespace":
        """Return an independent copy; records and bytes are shared."""
        twin = Namespace()
        twin.ids = self.ids.copy()
        twin.checkpoints = self.checkpoints.copy()
        twin.versions = {key: Version(version.blob, version.needed) for key, version in self.versions.items()}
        twin.writes = {checkpoint_id: writes.copy() for checkpoint_id, writes in self.writes.items()}
        twin.delta_channels = self.delta_channels
        return twin


class Bucket:
    """One conversation.

    Attributes:
        namespaces: Its checkpoints by `checkpoint_ns`.
        order: `(checkpoint_id, checkpoint_ns)` of all that is in sight, ascending; changed as `Namespace.ids` is.
        runs: For each run, the `(checkpoint_id, checkpoint_ns)` at which it stored a checkpoint or a write.
    """

    __slots__ = ("namespaces", "order", "runs")

    def __init__(self, namespaces: dict[str, Namespace]) -> None:
        self.namespaces: dict[str, Namespace] = namespaces
        self.order: list[tuple[str, str]] = sorted(
            (i, ns) for ns, namespace in namespaces.items() for i in namespace.ids
        )
        self.runs: dict[str, set[tuple[str, str]]] = {}
        for ns, namespace in namespaces.items():
            for checkpoint_id in namespace.ids:
                self._index(namespace.checkpoints[checkpoint_id].run_id, checkpoint_id, ns)
            for checkpoint_id, writes in namespace.writes.items():
                for write in writes.values():
                    self._index(write.run_id, checkpoint_id, ns)

    def _index(self, run_id: str | None, checkpoint_id: str, checkpoint_ns: str) -> None:
        if run_id is not None:
            self.runs.setdefault(run_id, set()).add((checkpoint_id, checkpoint_ns))

    def copy(self) -> "Bucket":
        """Return an independent copy; records and bytes are shared."""
        return Bucket({ns: namespace.copy() for ns, namespace in self.namespaces.items()})

    def latest_only(self) -> "Bucket | None":
        """Return what `Store.keep_latest` keeps of this conversation; None for nothing."""
        return _unless_empty({ns: namespace.latest_only() for ns, namespace in self.namespaces.items()})

    def without_runs(self, run_ids: Collection[str]) -> "Bucket | None":
        """Return what `Store.delete_for_runs` leaves of this conversation; None for nothing."""
        touched = {ns for run_id in run_ids for _, ns in self.runs.get(run_id, ())}
        return _unless_empty(
            {
                ns: namespace.without_runs(run_ids) if ns in touched else namespace
                for ns, namespace in self.namespaces.items()
            }
        )


def _unless_empty(namespaces: dict[str, Namespace]) -> Bucket | None:
    left = {ns: namespace for ns, namespace in namespaces.items() if namespace.ids or namespace.writes}
    return Bucket(left) if left else None


def _write_order(write: WriteRecord) -> tuple[str, str, int]:
    return writes_sort_key(write.task_path, write.task_id, write.idx)


def with_inserted(ascending: list[_Ordered], item: _Ordered) -> list[_Ordered]:
    """Return a new ascending list with `item` in its place."""
    items = ascending.copy()
    insort(items, item)
    return items
