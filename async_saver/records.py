"""The shapes in which checkpoints and writes are stored: frozen, bytes, no live objects."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

__all__ = [
    "EMPTY",
    "JSON",
    "Blob",
    "ChannelVersion",
    "CheckpointRecord",
    "Histories",
    "Lease",
    "Listing",
    "Stats",
    "StoreStats",
    "StoredCheckpoint",
    "StoredHistory",
    "WriteRecord",
    "fits",
    "packed",
    "text",
    "unpacked",
]

Blob: TypeAlias = tuple[str, bytes]
"""A serialised value: its type's name and its bytes, as a serde's `dumps_typed` returns them."""

ChannelVersion: TypeAlias = tuple[str, str | int | float]
"""A channel's name and one version of it."""

EMPTY: Blob = ("empty", b"")
"""What is stored for a channel that had a version but no value."""


JSON = "async_saver:json"
"""The type's name of what comes as JSON in UTF-8, to stores that ask for it: see `Store.as_json`."""


class CheckpointRecord(NamedTuple):
    """One checkpoint as it is stored.

    Attributes:
        checkpoint_id: Its id; a greater one is newer.
        parent_id: The id of the checkpoint it was made from, in the same namespace.
        checkpoint: The serialised checkpoint, without its `channel_values`. `EMPTY` makes the record a hidden one:
            deleted, and there only for what is rebuilt from it.
        metadata: The serialised metadata.
        versions: The channel versions whose blobs are its `channel_values`.
        run_id: The run that made it, where its metadata or config names one.
        delta_channels: The channels that this checkpoint shows to be a `DeltaChannel`: a value without a blob is
            rebuilt from the writes of its ancestors.
    """

    checkpoint_id: str
    parent_id: str | None
    checkpoint: Blob
    metadata: Blob
    versions: tuple[ChannelVersion, ...]
    run_id: str | None
    delta_channels: tuple[str, ...]

    @property
    def hidden(self) -> bool:
        """Whether the checkpoint is out of sight."""
        return self.checkpoint == EMPTY


class WriteRecord(NamedTuple):
    """One pending write as it is stored.

    `idx` is the write's place among its task's writes, or negative for the special channels of LangGraph's
    `WRITES_IDX_MAP`.
    """

    task_id: str
    idx: int
    channel: str
    value: Blob
    task_path: str
    run_id: str | None


class StoredCheckpoint(NamedTuple):
    """A checkpoint as a store hands it back.

    Attributes:
        thread_id: Its conversation.
        checkpoint_ns: Its namespace; "" is the root.
        record: The checkpoint itself.
        values: Each channel that has a value, with it, in the order of `record.versions`.
        writes: Its pending writes, in `writes_sort_key` order.
        sends: What its parent's tasks sent, in order, where it is of an old format that does not have this itself.
    """

    thread_id: str
    checkpoint_ns: str
    record: CheckpointRecord
    values: Sequence[tuple[str, Blob]]
    writes: Sequence[WriteRecord]
    sends: Sequence[Blob] = ()


class StoredHistory(NamedTuple):
    """What a `DeltaChannel`'s value is rebuilt from.

    `seed` is the value stored at the nearest ancestor that has one; `writes` are the writes since, oldest first.
    """

    seed: Blob | None
    writes: Sequence[WriteRecord]


class Listing(NamedTuple):
    """Which checkpoints to list; `None` in a field leaves it open.

    Attributes:
        thread_id: Only this conversation.
        checkpoint_ns: Only this namespace ("" is the root).
        checkpoint_id: Only the checkpoints of this id.
        before: Only checkpoints whose id is less than this.
        filter: Only checkpoints whose metadata has these values at top level. A store that does not see what is in
            metadata, or not all of it, lists more: it is looked at again where that is read.
    """

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None
    filter: Mapping[str, object] = {}


Histories: TypeAlias = Mapping[str, StoredHistory]
"""The history of each channel that was asked for."""


class StoreStats(NamedTuple):
    """Figures of a store.

    Attributes:
        conversations: How many there are.
        checkpoints: How many checkpoints can be listed; None where the store does not count them, as the next three.
        writes: How many pending writes there are.
        bytes: How many bytes all that takes, with what the store needs for it.
        bytes_saved: How many more it would be if each value were kept by itself.
        evictions: How many conversations went by a `Retention`, by reason.
        pruned: How many checkpoints went by `keep_last`.
        overruns: How many calls left a limit exceeded, as nothing could be taken.
    """

    conversations: int
    checkpoints: int | None = None
    writes: int | None = None
    bytes: int | None = None
    bytes_saved: int | None = None
    evictions: Mapping[str, int] = {}
    pruned: int = 0
    overruns: int = 0


class Stats(NamedTuple):
    """Figures of a saver: those of its store, see `StoreStats`, and what this process did with it.

    Attributes:
        open_sessions: How many conversations sessions of this process hold.
        waiting_sessions: How many sessions wait for one.
        lock_waits: How many calls had to wait for another one on the same conversation.
        conflicts: How many checkpoints were in conflict, where `on_conflict` has them looked at.
        bridge_calls: How many calls crossed from sync code, of all savers in this process.
    """

    conversations: int
    checkpoints: int | None
    writes: int | None
    bytes: int | None
    bytes_saved: int | None
    evictions: Mapping[str, int]
    pruned: int
    overruns: int
    open_sessions: int
    waiting_sessions: int
    lock_waits: int
    conflicts: int
    bridge_calls: int


class Lease:
    """A conversation's being one session's, as a store gave it; a store may give more than is told here.

    Attributes:
        thread_id: The conversation.
        fence: A number that is greater than those of all leases of this conversation before.
        owner: Who holds it, in words.
        since: When it was given, in seconds of the epoch.
    """

    __slots__ = ("fence", "owner", "since", "thread_id")

    def __init__(self, thread_id: str, fence: int, owner: str, since: float) -> None:
        self.thread_id: str = thread_id
        self.fence: int = fence
        self.owner: str = owner
        self.since: float = since


def fits(value: str) -> bool:
    """Tell whether a database can keep a text: without NULs and lone surrogates."""
    if "\0" in value:
        return False
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True


def unpacked(value: object) -> Blob | None:
    """Return what is in JSON as a type's name and bytes in base 64; None if it is something else."""
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(one, str) for one in value):
        return None
    try:
        return value[0], b64decode(value[1], validate=True)
    except ValueError:
        return None


def packed(blob: Blob) -> list[str]:
    """Return a value as something that JSON has."""
    return [blob[0], b64encode(blob[1]).decode()]


def text(value: object) -> str:
    """Return an id as a plain string; the agent server passes UUIDs."""
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)  # the text of a member of a str enumeration, not its name
    return str(value)
