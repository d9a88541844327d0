"""What one conversation holds in memory, and what follows from it. Plain data: `MemoryStore` guards it.

What looks at a whole conversation is a generator that yields every few microseconds and returns its result, so that it
can be done a slice at a time (`Slices`). Between two slices the conversation must not have changed.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import merge
from operator import setitem
from sys import getsizeof
from typing import NamedTuple, TypeAlias, TypeVar, cast

from langgraph.checkpoint.base import writes_sort_key

from async_saver.pace import Slices, at_once
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
from async_saver.stores.history import History, Kept, Shared, Size, Step

__all__ = [
    "NAMESPACE_SIZE",
    "PLACE_SIZE",
    "RUN_SIZE",
    "WRITES_SIZE",
    "WRITE_SIZE",
    "Bucket",
    "Figures",
    "Former",
    "Namespace",
    "Write",
    "WriteKey",
    "record_size",
    "with_inserted",
    "write_size",
]

WriteKey = tuple[str, int]
"""A write's `(task_id, idx)`."""

Figures: TypeAlias = tuple[int, int, int, int]
"""How many checkpoints are in sight, how many writes there are, how many bytes it all takes, and how many are saved."""

_Ordered = TypeVar("_Ordered", str, tuple[str, str])

Mark = tuple[str, str]
"""A checkpoint's id, and a channel whose value at some descendant is rebuilt from that checkpoint's writes or blob."""


class Write(NamedTuple):
    """What is kept of a `WriteRecord` beside its `WriteKey`."""

    channel: str
    value: Kept
    task_path: str
    run_id: str | None


# What is held beside the bytes of ids and values, as Python's own sizes have it; a place in a dict is 40 in the mean.
_PLACE = 40
_ID = getsizeof("") + 36
_PAIR = getsizeof(("", ""))
_RECORD = 5 * _PAIR + 2 * getsizeof(b"") + _ID + 3 * _PLACE
_RECORD_VERSION = _PAIR + 8
WRITE_SIZE: int = 3 * _PAIR + getsizeof(b"") + _PLACE
"""What a write takes beside its value's bytes."""
WRITES_SIZE: int = getsizeof({"": None}) + _ID + _PLACE
"""What the writes of a checkpoint take beside the writes themselves."""
RUN_SIZE: int = 2 * (getsizeof({"r"}) + _PLACE) + _ID
"""What a run that stored something takes."""
PLACE_SIZE: int = _PAIR + _PLACE
"""What each checkpoint takes at which it did."""
NAMESPACE_SIZE: int = 3 * getsizeof({"": None}) + getsizeof({}) + 3 * _PAIR + getsizeof([""])
"""What a namespace takes that has nothing in it."""
_BUCKET = 3 * getsizeof({"": None}) + getsizeof({}) + getsizeof([""])


def record_size(record: CheckpointRecord) -> int:
    """Return how many bytes a checkpoint takes, without its values."""
    return _RECORD + len(record.checkpoint[1]) + len(record.metadata[1]) + _RECORD_VERSION * len(record.versions)


def write_size(write: Write) -> int:
    """Return how many bytes a write takes."""
    return WRITE_SIZE + len(write.value[-1])


class Former:
    """What a session found in a namespace where it then wrote, as it found it first; None where there was nothing.

    Attributes:
        records: Checkpoints by id.
        values: Values by channel and version.
        writes: Writes by checkpoint id and key, each with its value whole.
        delta_channels: The namespace's.
    """

    __slots__ = ("delta_channels", "records", "values", "writes")

    def __init__(self, delta_channels: frozenset[str]) -> None:
        self.records: dict[str, CheckpointRecord | None] = {}
        self.values: dict[ChannelVersion, Blob | None] = {}
        self.writes: dict[tuple[str, WriteKey], Write | None] = {}
        self.delta_channels: frozenset[str] = delta_channels


class Namespace:
    """The checkpoints of one `checkpoint_ns`.

    Attributes:
        ids: The ids of the checkpoints in sight, ascending. It only ever grows at its end; any other change puts a
            new list in its place. So a list and a length are a snapshot that costs nothing.
        checkpoints: Every checkpoint by id, those in sight and those kept only for rebuilding.
        history: The values of the channels' versions.
        writes: Pending writes by checkpoint id, also of checkpoints that are not stored (yet).
        delta_channels: The channels that any checkpoint here showed to be a `DeltaChannel`.
        settled: How many checkpoints the last pruning left.
    """

    __slots__ = ("_users", "checkpoints", "delta_channels", "history", "ids", "settled", "writes")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.checkpoints: dict[str, CheckpointRecord] = {}
        self.history: History = History()
        self.writes: dict[str, dict[WriteKey, Write]] = {}
        self.delta_channels: frozenset[str] = frozenset()
        self.settled: int = 0
        self._users: dict[ChannelVersion, str] | None = None

    def users(self, coming: CheckpointRecord | None = None) -> Mapping[ChannelVersion, str]:
        """Return the greatest id of those that use each version, or a greater one; with one that `note_users` noted."""
        if self._users is None:
            users: dict[ChannelVersion, str] = {}
            for checkpoint_id, record in self.checkpoints.items():
                for version in record.versions:
                    if users.get(version, "") <= checkpoint_id:
                        users[version] = checkpoint_id
            self._users = users
            if coming is not None:
                self.note_users(coming)
        return self._users

    def note_users(self, record: CheckpointRecord) -> None:
        """Note, before a checkpoint is put here, what it will use."""
        if self._users is not None:
            if self.ids and record.checkpoint_id < self.ids[-1]:
                self._users = None
            else:
                self._users.update(dict.fromkeys(record.versions, record.checkpoint_id))

    def runs_at(self, checkpoint_id: str) -> Collection[str]:
        """Return the runs that made a checkpoint or its writes."""
        run_id = self.checkpoints[checkpoint_id].run_id
        writes = self.writes.get(checkpoint_id)
        if not writes:
            return () if run_id is None else (run_id,)
        return {one for one in (run_id, *(write.run_id for write in writes.values())) if one is not None}

    def forget_users(self) -> None:
        """Have `users` counted anew."""
        self._users = None

    def drop(
        self, checkpoint_ids: Sequence[str], ids: list[str], versions: Iterable[ChannelVersion], are_first: bool
    ) -> None:
        """Take away checkpoints with their writes, as a step.

        Args:
            checkpoint_ids: They.
            ids: Those in sight that stay.
            versions: The values that go with them.
            are_first: Whether they are older than all that stay.
        """
        for checkpoint_id in checkpoint_ids:
            self.checkpoints.pop(checkpoint_id, None)
            self.writes.pop(checkpoint_id, None)
        self.ids = ids
        if not are_first:
            self._users = None  # one of them may be named for what an older one uses
        if self._users is not None:
            for version in versions:
                self._users.pop(version, None)

    def visible(self, checkpoint_id: str | None) -> CheckpointRecord | None:
        """Return the checkpoint of this id, or with None the latest, if it is in sight."""
        if checkpoint_id is None:
            return self.checkpoints[self.ids[-1]] if self.ids else None
        record = self.checkpoints.get(checkpoint_id)
        return None if record is None or record.hidden else record

    def is_ahead_of(self, record: CheckpointRecord) -> bool:
        """Tell whether the latest checkpoint is in conflict with one to be stored; see `Store.put`."""
        if not self.ids or self.ids[-1] in (record.parent_id, record.checkpoint_id):
            return False
        return record.parent_id is None or self.visible(record.parent_id) is not None

    def has_value(self, version: ChannelVersion) -> bool:
        """Tell whether a value is stored for a version, and not an empty one."""
        return self.history.kind(version) not in (None, EMPTY[0])

    def value(self, version: ChannelVersion) -> Blob | None:
        """Return the value stored for a version; None where there is none, or an empty one."""
        blob = self.history.value(version)
        return None if blob is None or blob[0] == EMPTY[0] else blob

    def added(self, values: Mapping[ChannelVersion, Blob]) -> tuple[list[Step], Size]:
        """Return the steps that add values of channel versions, or replace them, and what they take more then."""
        steps, grown = self.history.added(values)
        replaced = self.history.replaced(values) if steps else ()
        return (steps, grown) if not replaced else self._made_whole(replaced, steps, grown)

    def without(self, values: Collection[ChannelVersion], gone: Collection[str]) -> tuple[list[Step], Size]:
        """Return the steps that take values away, and what they take more (that is, less) then.

        Args:
            values: The values.
            gone: The checkpoints that go, too, with their writes.
        """
        steps, grown = self.history.without(values)
        bases = self.history.bases(values)
        return (steps, grown) if not bases else self._made_whole(bases, steps, grown, gone)

    def _made_whole(
        self, bases: Collection[ChannelVersion], steps: list[Step], grown: Size, gone: Collection[str] = ()
    ) -> tuple[list[Step], Size]:
        """Add the steps by which no write is made of some values any more."""
        held, saved = grown
        for checkpoint_id, writes in self.writes.items():
            if checkpoint_id in gone:
                continue
            for key, write in writes.items():
                if isinstance(write.value, Shared) and write.value.base in bases:
                    whole = self.history.whole(write.value)
                    steps.append((setitem, (writes, key, write._replace(value=whole))))
                    more = len(whole[1]) - len(write.value.parts)
                    held, saved = held + more, saved - more
        return steps, (held, saved)

    def note_checkpoint(self, checkpoint_id: str, versions: Iterable[ChannelVersion], former: Former) -> None:
        """Note what is in the places where a checkpoint and values are to be put."""
        former.records.setdefault(checkpoint_id, self.checkpoints.get(checkpoint_id))
        for version in versions:
            if version not in former.values:
                former.values[version] = self.history.value(version)

    def note_writes(self, checkpoint_id: str, keys: Iterable[WriteKey], former: Former) -> None:
        """Note what is in the places where writes are to be put."""
        stored = self.writes.get(checkpoint_id, {})
        for key in keys:
            if (checkpoint_id, key) not in former.writes:
                write = stored.get(key)
                former.writes[checkpoint_id, key] = write and write._replace(value=self.history.whole(write.value))

    def undone(self, former: Former) -> Slices["Namespace"]:
        """Return a namespace with what was found in the places of `former`, as far as there is something in them."""
        kept = Namespace()
        kept.delta_channels = former.delta_channels
        for checkpoint_id, record in self.checkpoints.items():
            yield
            before = former.records.get(checkpoint_id, record)
            if before is not None:
                kept.checkpoints[checkpoint_id] = before
                kept.delta_channels = kept.delta_channels.union(before.delta_channels)
                if not before.hidden:
                    kept.ids.append(checkpoint_id)
        kept.ids.sort()
        for checkpoint_id, writes in self.writes.items():
            yield
            found = ((key, former.writes.get((checkpoint_id, key), write)) for key, write in writes.items())
            if left := {key: write for key, write in found if write is not None}:
                kept.writes[checkpoint_id] = left
        versions: set[ChannelVersion] = set()
        replaced: dict[ChannelVersion, Blob] = {}
        for version in self.history:
            yield
            value = former.values.get(version)
            if version not in former.values or (value is not None and value == self.history.value(version)):
                versions.add(version)
            elif value is not None:
                replaced[version] = value
        kept.history = yield from self.history.only(versions)
        yield from kept._adopt_writes(self)
        for version, value in replaced.items():
            yield
            for step, arguments in kept.added({version: value})[0]:
                step(*arguments)
        return kept

    def write_records(self, checkpoint_id: str) -> list[WriteRecord]:
        """Return a checkpoint's pending writes in the order in which they were stored."""
        return [
            WriteRecord(*key, write.channel, self.history.whole(write.value), write.task_path, write.run_id)
            for key, write in self.writes.get(checkpoint_id, {}).items()
        ]

    def sorted_writes(self, checkpoint_id: str) -> list[WriteRecord]:
        """Return a checkpoint's pending writes in the order in which the run applied them."""
        return sorted(self.write_records(checkpoint_id), key=_write_order)

    def read(self, thread_id: str, checkpoint_ns: str, record: CheckpointRecord) -> StoredCheckpoint:
        """Return a checkpoint with its values and pending writes."""
        value = self.history.value
        values = [
            (version[0], blob)
            for version in record.versions
            if (blob := value(version)) is not None and blob[0] != EMPTY[0]
        ]
        writes = self.sorted_writes(record.checkpoint_id) if record.checkpoint_id in self.writes else ()
        return StoredCheckpoint(thread_id, checkpoint_ns, record, values, writes)

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
        return [key[0] for key in record.versions if key[0] in delta and not self.has_value(key)] if delta else []

    def _marks(self, checkpoint_ids: Iterable[str]) -> Slices[set[Mark]]:
        """Return everything that the rebuilt values of these checkpoints rest on."""
        marks: set[Mark] = set()
        for checkpoint_id in checkpoint_ids:
            yield
            record = self.checkpoints[checkpoint_id]
            for channel in self._rebuilt(record):
                for ancestor in self.ancestors(record):
                    yield
                    mark = (ancestor.checkpoint_id, channel)
                    if mark in marks:
                        break
                    marks.add(mark)
                    if any(key[0] == channel and self.has_value(key) for key in ancestor.versions):
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

    def latest_only(self, number: int = 1, stays: Callable[[str], bool] | None = None) -> Slices["Namespace"]:
        """Return a namespace with what `Store.keep_latest` keeps of this one; or what a `Retention` does.

        Args:
            number: How many checkpoints to keep.
            stays: Tells which others stay.
        """
        latest = {*self.ids[-number:]}
        if stays is not None:
            latest.update(filter(stays, self.ids[:-number]))
        marks = yield from self._marks(latest)
        needed = {mark[0] for mark in marks}
        stay = []
        for checkpoint_id in self.ids:
            yield
            if checkpoint_id in latest or (
                checkpoint_id in needed and self._stands(self.checkpoints[checkpoint_id], marks)
            ):
                stay.append(checkpoint_id)
        kept = yield from self._keeping(stay, marks)
        for checkpoint_id, writes in self.writes.items():
            yield
            if checkpoint_id not in self.checkpoints and [checkpoint_id] > self.ids[-1:]:
                kept.writes[checkpoint_id] = writes.copy()
        yield from kept._adopt_writes(self)
        kept.settled = len(kept.checkpoints)
        return kept

    def without_runs(self, run_ids: Collection[str]) -> Slices["Namespace"]:
        """Return a namespace with what `Store.delete_for_runs` leaves of this one."""
        stay = []
        for checkpoint_id in self.ids:
            yield
            if self.checkpoints[checkpoint_id].run_id not in run_ids:
                stay.append(checkpoint_id)
        marks = yield from self._marks(stay)
        kept = yield from self._keeping(stay, marks)
        for checkpoint_id, writes in self.writes.items():
            yield
            if checkpoint_id not in self.checkpoints:
                kept.writes[checkpoint_id] = writes
        for checkpoint_id, writes in list(kept.writes.items()):
            yield
            left = {
                key: write
                for key, write in writes.items()
                if write.run_id not in run_ids or (checkpoint_id, write.channel) in marks
            }
            if left:
                kept.writes[checkpoint_id] = left
            else:
                del kept.writes[checkpoint_id]
        yield from kept._adopt_writes(self)
        return kept

    def _keeping(self, stay: list[str], marks: Collection[Mark]) -> Slices["Namespace"]:
        """Return a namespace with these checkpoints in sight, and out of sight what `marks` rests on beside them.

        Of the writes it has those of its checkpoints, as they were kept here.
        """
        kept = Namespace()
        kept.ids = stay
        kept.delta_channels = self.delta_channels
        for checkpoint_id in stay:
            yield
            kept.checkpoints[checkpoint_id] = self.checkpoints[checkpoint_id]
            if checkpoint_id in self.writes:
                kept.writes[checkpoint_id] = self.writes[checkpoint_id].copy()  # a session may need what is here
        for checkpoint_id in {mark[0] for mark in marks} - kept.checkpoints.keys():
            yield
            record = self.checkpoints[checkpoint_id]
            versions = tuple(key for key in record.versions if (checkpoint_id, key[0]) in marks)
            kept.checkpoints[checkpoint_id] = record._replace(checkpoint=EMPTY, metadata=EMPTY, versions=versions)
            writes = self.writes.get(checkpoint_id, {})
            if needed := {key: write for key, write in writes.items() if (checkpoint_id, write.channel) in marks}:
                kept.writes[checkpoint_id] = needed
        versions_left: set[ChannelVersion] = set()
        for record in kept.checkpoints.values():
            yield
            versions_left.update(record.versions)
        kept.history = yield from self.history.only(versions_left)
        return kept

    def _adopt_writes(self, source: "Namespace") -> Slices[None]:
        """Keep the values of writes, which were kept beside another history, beside the own one."""
        for checkpoint_id, writes in self.writes.items():
            yield
            if any(isinstance(write.value, Shared) for write in writes.values()):
                self.writes[checkpoint_id] = {
                    key: write._replace(value=self.history.adopted(write.value, source.history))
                    for key, write in writes.items()
                }

    def figures(self) -> Slices[tuple[int, int, int]]:
        """Count how many writes there are, how many bytes all takes, and how many are saved."""
        number, (held, saved) = 0, self.history.figures
        held += NAMESPACE_SIZE
        for record in self.checkpoints.values():
            yield
            held += record_size(record)
        for writes in self.writes.values():
            yield
            number += len(writes)
            held += WRITES_SIZE
            for write in writes.values():
                held += write_size(write)
                if isinstance(write.value, Shared):
                    saved += self.history.length(write.value) - len(write.value.parts)
        return number, held, saved

    def copy(self) -> Slices["Namespace"]:
        """Return an independent copy; records and bytes are shared."""
        twin = Namespace()
        twin.ids = self.ids.copy()
        twin.checkpoints = self.checkpoints.copy()
        twin.history = self.history.copy()
        for checkpoint_id, writes in self.writes.items():
            yield
            twin.writes[checkpoint_id] = writes.copy()
        twin.delta_channels = self.delta_channels
        return twin

    def faults(self) -> Iterator[str]:
        """Say what here is not as it follows from the records."""
        in_sight = sorted(i for i, record in self.checkpoints.items() if not record.hidden)
        if self.ids != in_sight:
            yield f"the ids in sight are {in_sight}, and listed are {self.ids}"
        yield from self.history.faults(write.value for writes in self.writes.values() for write in writes.values())
        for checkpoint_id, record in self.checkpoints.items():
            if record.checkpoint_id != checkpoint_id:
                yield f"the checkpoint {record.checkpoint_id!r} is stored as {checkpoint_id!r}"
        for checkpoint_id, writes in self.writes.items():
            if not writes:
                yield f"the writes of checkpoint {checkpoint_id!r} are none"


class Bucket:
    """One conversation.

    Attributes:
        namespaces: Its checkpoints by `checkpoint_ns`.
        order: `(checkpoint_id, checkpoint_ns)` of all that is in sight, ascending; changed as `Namespace.ids` is.
        runs: For each run, the `(checkpoint_id, checkpoint_ns)` at which it stored a checkpoint or a write.
        changes: How often it was written to: another number means other contents.
        figures: What it holds.
    """

    __slots__ = ("changes", "figures", "namespaces", "order", "runs")

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.order: list[tuple[str, str]] = []
        self.runs: dict[str, set[tuple[str, str]]] = {}
        self.changes: int = 0
        self.figures: Figures = (0, 0, _BUCKET, 0)

    @classmethod
    def of(cls, namespaces: dict[str, Namespace]) -> Slices["Bucket"]:
        """Return a conversation of these namespaces."""
        bucket = cls()
        bucket.namespaces = namespaces
        for place in merge(*(_places(ns, namespace) for ns, namespace in namespaces.items())):
            yield
            bucket.order.append(place)
            checkpoint_id, ns = place
            bucket._index(namespaces[ns].checkpoints[checkpoint_id].run_id, place)
        for ns, namespace in namespaces.items():
            for checkpoint_id, writes in namespace.writes.items():
                yield
                for write in writes.values():
                    bucket._index(write.run_id, (checkpoint_id, ns))
        bucket.figures = yield from bucket.counted()
        return bucket

    def counted(self) -> Slices[Figures]:
        """Count what it holds."""
        number, saved = 0, 0
        held = _BUCKET + sum(RUN_SIZE + PLACE_SIZE * len(places) for places in self.runs.values())
        for namespace in self.namespaces.values():
            more = yield from namespace.figures()
            number, held, saved = number + more[0], held + more[1], saved + more[2]
        return len(self.order), number, held, saved

    def _index(self, run_id: str | None, place: tuple[str, str]) -> None:
        if run_id is not None:
            self.runs.setdefault(run_id, set()).add(place)

    def copy(self) -> Slices["Bucket"]:
        """Return an independent copy; records and bytes are shared."""
        twins = {}
        for ns, namespace in self.namespaces.items():
            twins[ns] = yield from namespace.copy()
        return (yield from Bucket.of(twins))

    def latest_only(self, number: int = 1, stays: Callable[[str, str], bool] | None = None) -> Slices["Bucket | None"]:
        """Return what `Store.keep_latest` keeps of this conversation; None for nothing.

        Args:
            number: How many checkpoints to keep in each namespace; in a smaller one, everything.
            stays: Tells by `checkpoint_ns` and `checkpoint_id` which others stay.
        """
        kept = {}
        for ns, namespace in self.namespaces.items():
            if stays is not None and len(namespace.ids) <= number:
                kept[ns] = namespace
            else:
                kept[ns] = yield from namespace.latest_only(number, stays and partial(stays, ns))
        return (yield from _unless_empty(kept))

    def without_runs(self, run_ids: Collection[str]) -> Slices["Bucket | None"]:
        """Return what `Store.delete_for_runs` leaves of this conversation; None for nothing."""
        touched = {ns for run_id in run_ids for _, ns in self.runs.get(run_id, ())}
        left = self.namespaces.copy()
        for ns in touched:
            left[ns] = yield from self.namespaces[ns].without_runs(run_ids)
        return (yield from _unless_empty(left))

    def undone(self, formers: Mapping[str, Former]) -> Slices["Bucket | None"]:
        """Return the conversation as it was before a session wrote to it; None for nothing."""
        left = self.namespaces.copy()
        for ns, former in formers.items():
            if ns in left:
                left[ns] = yield from left[ns].undone(former)
        return (yield from _unless_empty(left))

    def without_oldest(self, checkpoint_ns: str, oldest: Sequence[str]) -> tuple[list[Step], Figures, Collection[str]]:
        """Return how the oldest checkpoints of a namespace, or those of them that may go, go with all that is theirs.

        Returns:
            The steps, but for the figures; what these grow by; and the runs that are nowhere then.
        """
        namespace = self.namespaces[checkpoint_ns]
        checkpoints, gone = namespace.checkpoints, {*oldest}
        users = namespace.users()
        if any(users.get(version) not in checkpoints for one in oldest for version in checkpoints[one].versions):
            namespace.forget_users()  # a put that was interrupted before it began has left its name
            users = namespace.users()
        # What they use, unless something later does, or something before them that stays as a run stands there.
        before = [one for one in namespace.ids[: namespace.ids.index(oldest[-1])] if one not in gone]
        needed = {version for one in before for version in checkpoints[one].versions}
        values = {
            version
            for one in oldest
            for version in checkpoints[one].versions
            if version not in needed and users.get(version) in gone
        }
        steps, (held, saved) = namespace.without(values, gone)
        number = 0
        runs: dict[str, set[tuple[str, str]]] = {}
        for one in oldest:
            held -= record_size(checkpoints[one])
            writes = namespace.writes.get(one, {})
            if writes:
                held -= WRITES_SIZE
                number -= len(writes)
            for write in writes.values():
                held -= write_size(write)
                if isinstance(write.value, Shared):
                    saved -= namespace.history.length(write.value) - len(write.value.parts)
            for run_id in namespace.runs_at(one):
                runs.setdefault(run_id, set()).add((one, checkpoint_ns))
        freed, nowhere = self._drop_runs(runs, None, steps)
        order = self.order.copy()
        for one in oldest:
            del order[bisect_left(order, (one, checkpoint_ns))]
        ids = [one for one in namespace.ids if one not in gone]
        steps.append((namespace.drop, (oldest, ids, values, not before)))
        steps.append((setattr, (self, "order", order)))
        return steps, (-len(oldest), number, held - freed, saved), nowhere

    def without_first(
        self, checkpoint_ns: str, coming: CheckpointRecord, grown: Size
    ) -> tuple[list[Step], Figures, Collection[str]] | None:
        """Return the same for the oldest checkpoint of a namespace in the step that puts another one at its end.

        In half the time, so it is for the plain case. Where more has to be looked at, the result is None.

        Args:
            checkpoint_ns: The namespace.
            coming: The checkpoint that is put.
            grown: What the figures of the values grow by with it.
        """
        namespace = self.namespaces[checkpoint_ns]
        one, history = namespace.ids[0], namespace.history
        place, end = (one, checkpoint_ns), (coming.checkpoint_id, checkpoint_ns)
        if (
            self.order[0] != place
            or self.order[-1] > end
            or namespace.delta_channels
            or coming.delta_channels
            or history.has_lines()
        ):
            return None
        record = namespace.checkpoints[one]
        users = namespace.users(coming)
        values: list[ChannelVersion] = []
        for version in record.versions:
            user = users.get(version)
            if user == one:
                values.append(version)
            elif user not in namespace.checkpoints and user != coming.checkpoint_id:
                return None
        size = history.size(values)
        held, number = -size - record_size(record), 0
        writes = namespace.writes.get(one)
        if writes is not None:
            number = -len(writes)
            held -= WRITES_SIZE + sum(map(write_size, writes.values()))
        steps: list[Step] = []
        freed, nowhere, runs = 0, cast(Collection[str], ()), namespace.runs_at(one)
        if runs:
            freed, nowhere = self._drop_runs({run_id: {place} for run_id in runs}, coming.run_id, steps)
        ids, order = namespace.ids[1:], self.order[1:]
        ids.append(coming.checkpoint_id)
        order.append(end)
        before = history.figures
        figures = (before[0] + grown[0] - size, before[1] + grown[1])
        steps.append((self._drop_first, (namespace, one, ids, order, values, figures)))
        return steps, (-1, number, held - freed, 0), nowhere

    def _drop_first(
        self,
        namespace: Namespace,
        checkpoint_id: str,
        ids: list[str],
        order: list[tuple[str, str]],
        values: Iterable[ChannelVersion],
        figures: Size,
    ) -> None:
        namespace.drop((checkpoint_id,), ids, values, are_first=True)
        namespace.history.drop(values, figures)
        self.order = order

    def _drop_runs(
        self, gone: Mapping[str, Collection[tuple[str, str]]], coming: str | None, steps: list[Step]
    ) -> tuple[int, Collection[str]]:
        """Add the steps by which runs are no longer found at some places; `coming` is found at another one then.

        Returns:
            What that frees, and the runs that are nowhere then.
        """
        freed = 0
        nowhere: list[str] = []
        for run_id, left in gone.items():
            places = self.runs.get(run_id, set())
            number = len(places.intersection(left))
            freed += number * PLACE_SIZE
            if number < len(places) or run_id == coming:
                steps.append((places.difference_update, (left,)))
            elif number:
                freed += RUN_SIZE
                nowhere.append(run_id)
                steps.append((self.runs.pop, (run_id, None)))
        return freed, nowhere

    def is_longer_than(self, number: int) -> bool:
        """Tell whether there are more checkpoints in sight in any namespace."""
        return any(len(namespace.ids) > number for namespace in self.namespaces.values())

    def dismantle(self, successors: "Sequence[Bucket]") -> Slices[None]:
        """Empty what no successor has taken over. At once, as a reference is dropped, it may take milliseconds."""
        for ns, namespace in self.namespaces.items():
            if not any(successor.namespaces.get(ns) is namespace for successor in successors):
                yield from namespace.history.dismantle()
                for contents in (namespace.checkpoints, namespace.writes):
                    while contents:
                        for _ in range(min(len(contents), 64)):
                            contents.popitem()
                        yield

    def faults(self) -> Iterator[str]:
        """Say what here is not as it follows from the records."""
        places: dict[str, set[tuple[str, str]]] = {}
        for ns, namespace in self.namespaces.items():
            for fault in namespace.faults():
                yield f"checkpoint_ns {ns!r}: {fault}"
            runs = [(namespace.checkpoints[i].run_id, i) for i in namespace.ids]
            runs += [(write.run_id, i) for i, writes in namespace.writes.items() for write in writes.values()]
            for run_id, checkpoint_id in runs:
                if run_id is not None:
                    places.setdefault(run_id, set()).add((checkpoint_id, ns))
        order = sorted(place for ns, namespace in self.namespaces.items() for place in _places(ns, namespace))
        if self.order != order:
            yield f"the order is {self.order}, and follows as {order}"
        if not all(self.runs.values()):
            yield f"of the runs {self.runs} some are nowhere"
        figures = at_once(self.counted())
        if self.figures != figures:
            yield f"the figures are {self.figures}, and follow as {figures}"
        # A run that only overwritten records named may still be there: it is looked for in vain, no more.
        if any(not places[run_id] <= self.runs.get(run_id, set()) for run_id in places):
            yield f"the runs are {self.runs}, and follow as {places}"


def _places(checkpoint_ns: str, namespace: Namespace) -> Iterator[tuple[str, str]]:
    return ((checkpoint_id, checkpoint_ns) for checkpoint_id in namespace.ids)


def _unless_empty(namespaces: dict[str, Namespace]) -> Slices[Bucket | None]:
    left = {ns: namespace for ns, namespace in namespaces.items() if namespace.ids or namespace.writes}
    return (yield from Bucket.of(left)) if left else None


def _write_order(write: WriteRecord) -> tuple[str, str, int]:
    return writes_sort_key(write.task_path, write.task_id, write.idx)


def with_inserted(ascending: list[_Ordered], item: _Ordered) -> list[_Ordered]:
    """Return a new ascending list with `item` in its place."""
    items = ascending.copy()
    insort(items, item)
    return items
