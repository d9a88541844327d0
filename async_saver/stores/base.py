"""The contract between `AsyncSaver` and whatever keeps its checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from anyio import sleep

from async_saver.errors import (
    InvalidValueError,
    SessionError,
    SessionLostError,
    ThreadEvictedError,
    ThreadExistsError,
    shown,
)
from async_saver.records import (
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    Lease,
    Listing,
    StoredCheckpoint,
    StoreStats,
    WriteRecord,
)
from async_saver.retention import EvictionReason, Retention

__all__ = ["OnConflict", "Store", "exists_error", "lease_of", "lost_error", "torn_error"]

_LOOK = 0.1  # seconds between two looks whether a lease is free

OnConflict: TypeAlias = Literal["raise", "warn"]
"""What becomes of a checkpoint that is in conflict with its namespace's latest: with "raise" it is not stored."""


class Store(ABC):
    """Keeps records of checkpoints and of pending writes; knows bytes, ids and order, never a value.

    What a store may rely on: ids are strings (any strings: empty, with wildcards, in any script), records are never
    changed after they were handed over, and the saver lets no two writing calls for one conversation run at once
    from one event loop, unless the store says that it is `in_order`.

    What every store promises:

    - It holds no event loop, may be made before there is one, and may be used from many loops and threads at once.
    - A call takes effect wholly or not at all, also when it is cancelled, and has taken effect when it returns.
    - Reading leaves no trace, and takes what it returns from one moment.
    - Between two steps of an iterator nothing is held, and where steps never wait they yield to the event loop.
    - What writes is told the leases of its caller. If the first of them that is for a conversation of the call is
      lost, the call raises a `SessionLostError` and stores nothing; that is looked at in the same step that stores. A
      lease is lost once a later one was given for its conversation, or it was released with `delete`.
    - Its errors are `AsyncSaverError`s. Only an id with NULs or lone surrogates in it, or longer than 300 characters,
      or ids that together have more than 2,500 bytes, may be refused, by an `InvalidValueError`.

    `async_saver.testing.check_store` runs these promises as a suite.
    """

    in_order: bool = False
    """Whether calls of one event loop take effect in the order in which they are made, also on one conversation. Then
    the saver need not keep them apart, and the store may do in one step what comes together."""

    as_json: bool = False
    """Whether checkpoints and metadata come to it as `JSON`, whatever the saver's serde is. Then those values of a
    checkpoint that JSON has (text, numbers, booleans, None) are in its `channel_values` and no blobs."""

    async def setup(self) -> None:  # noqa: B027  (a store may have nothing to do)
        """Make ready for use what the store needs outside the process; may be called again at any time."""

    async def close(self) -> None:  # noqa: B027  (likewise)
        """Let go of what the store holds outside the process; may be called again at any time."""

    @abstractmethod
    async def get(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """Return one checkpoint: the one of this id, or with None the one of the namespace's greatest id."""

    @abstractmethod
    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        """Iterate over the checkpoints that match, by descending id over all that is listed.

        What will be shown is fixed when the iteration starts: checkpoints put later do not appear, those deleted
        since are skipped. (Where it reads page after page, one put later of a lower id than it has come to may
        appear.) Checkpoints of one id come in any order. Nothing is held between two steps, and an iterator may be
        dropped half read.
        """

    @abstractmethod
    async def delta_history(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Histories:
        """Return, for each of `channels`, what its value at a checkpoint is rebuilt from.

        The walk starts at the checkpoint's parent and follows parents. For each channel it collects the writes
        stored under each ancestor, up to and including the first ancestor that stores a value of the channel, which
        is the seed. Writes come back oldest checkpoint first, in `writes_sort_key` order within one.
        An unknown checkpoint has neither seed nor writes.
        """

    @abstractmethod
    async def put(
        self,
        thread_id: str,
        checkpoint_ns: str,
        record: CheckpointRecord,
        blobs: Sequence[tuple[ChannelVersion, Blob]],
        leases: Sequence[Lease] = (),
        on_conflict: OnConflict | None = None,
    ) -> bool:
        """Store a checkpoint, and the values that are new with it; a checkpoint of the same id is replaced.

        Args:
            thread_id: Its conversation.
            checkpoint_ns: Its namespace.
            record: The checkpoint.
            blobs: Each new version with its value; a version that was stored before is replaced.
            leases: Those of the caller, innermost first, as with all that writes.
            on_conflict: Asks, in one step with the storing, whether the checkpoint is in conflict: the namespace has
                a checkpoint of greatest id which is neither this one nor its parent, and its parent is None or in
                sight. "raise" stores nothing then (it is the saver that raises); "warn" stores all the same.

        Returns:
            Whether it is in conflict; False where nobody asked.
        """

    @abstractmethod
    async def put_writes(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str,
        writes: Sequence[WriteRecord],
        leases: Sequence[Lease] = (),
    ) -> None:
        """Store pending writes of a checkpoint, which may itself not be stored yet.

        Of two writes with one (`task_id`, `idx`) the first stays where `idx` is 0 or more, the last where it is
        negative.
        """

    @abstractmethod
    async def delete(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """Delete everything of these conversations; unknown ones are ignored."""

    @abstractmethod
    async def delete_for_runs(self, run_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """Delete the checkpoints and the writes that these runs made; unknown runs are ignored.

        The checkpoints that stay read as before. Where the value of a `DeltaChannel` is rebuilt from an ancestor
        that is deleted, the store keeps what the rebuilding needs, out of sight of `get` and `list`; a write of the
        runs that such a value needs stays on its checkpoint.
        """

    @abstractmethod
    async def run_threads(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Return the `thread_id`s of all conversations in which these runs stored something."""

    @abstractmethod
    async def copy(self, source_thread_id: str, target_thread_id: str, leases: Sequence[Lease] = ()) -> None:
        """Copy all namespaces, checkpoints and writes; the two are independent afterwards.

        An unknown source is ignored.

        Raises:
            ThreadExistsError: The target holds something already.
        """

    @abstractmethod
    async def keep_latest(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        """Delete, per namespace of these conversations, all checkpoints but the one of the greatest id.

        Kept with it are its writes, writes whose checkpoint has a greater id and is not stored yet, and, for every
        `DeltaChannel`, the ancestors that its value is rebuilt from. Such an ancestor may stay in sight if all its
        own values can be rebuilt; else it goes out of sight, as in `delete_for_runs`.
        """

    @abstractmethod
    def thread_ids(self) -> AsyncIterator[str]:
        """Iterate over the conversations that hold something, the one last written to first.

        Fixed when the iteration starts, as in `list`.
        """

    @abstractmethod
    async def count(self) -> int:
        """Return how many conversations hold something."""

    # Leases keep sessions apart, and nothing else: who has none reads and writes as ever. A store may do without them,
    # and then there are no sessions on its conversations.

    async def acquire(
        self,
        thread_id: str,
        owner: str,
        *,
        instead_of: Lease | None = None,
        undo: bool = False,
        on_interrupt: Callable[[str], object] | None = None,
    ) -> Lease | None:
        """Take the lease of a conversation; None if another one holds it. A call that is cancelled takes none.

        Args:
            thread_id: The conversation; it need not hold anything.
            owner: Who takes it, in words.
            instead_of: A lease that ends with this step if it is still held, or was released after `interrupt` and
                nobody has taken it since.
            undo: Undo in the same step what was stored with `instead_of` while that was held, in all namespaces: what
                it added goes, what it replaced or deleted comes back. What others stored meanwhile stays, and what
                they deleted does not come back. Where leases run out, likewise of one that this follows, if it was
                never released.
            on_interrupt: Is called, from any worker thread, with the name of who asks the lease's holder to end, or has
                taken its place: where that is another process, as the sessions of one process tell each other. Where
                it has a method `is_gone`, that tells whether the holder has ended and will never release the lease.

        Raises:
            SessionError: The store has no leases.
        """
        raise SessionError(f"a {type(self).__name__} has no leases, so there are no sessions on its conversations")

    async def renew(self, lease: Lease) -> bool:
        """Tell whether a lease is still held; where leases run out, it then lasts on."""
        return False

    async def release(self, lease: Lease, *, delete: bool = False) -> bool:
        """Give a lease back, and tell whether it was still held; else do nothing. Takes effect also if it is cancelled.

        With `delete`, everything of the conversation is deleted in the same step, and the lease is lost.
        """
        return False

    async def lease(self, thread_id: str) -> Lease | None:
        """Return the lease of a conversation that is held now."""
        return None

    async def interrupt(self, lease: Lease, by: str) -> None:  # noqa: B027  (a store may have no queue)
        """Ask the holder of a lease, in another process, to end; who asks is the next to have it.

        A store may do without it. Then a holder learns with its next write that it was replaced.

        Args:
            lease: What `lease` has returned.
            by: Who asks, in words.
        """

    async def wait(self, thread_id: str, seconds: float) -> None:
        """Wait until the lease of a conversation may be free, for some seconds at most.

        Who calls it again and again, between attempts to `acquire` it, may keep a place in a queue by that.
        """
        await sleep(min(_LOOK, seconds))

    async def leave_queue(self, thread_id: str) -> None:  # noqa: B027  (a store may have no queue)
        """Give up the place that `wait` may have kept, as nobody waits any more."""

    # Limits. A store may do without them, too.

    retention: Retention | None = None
    """What it keeps to."""

    untold: Collection[object] = ()
    """Is not empty if there is something to iterate over in `evictions`."""

    def retain(self, retention: Retention) -> None:
        """Keep to limits from now on.

        Raises:
            InvalidValueError: The store has no limits, or others already.
        """
        raise InvalidValueError(f"a {type(self).__name__} has no limits; leave retention out, and prune it yourself")

    async def sweep(self) -> int:
        """Let go now of all that goes beyond the limits; return how many conversations went."""
        return 0

    def evictions(self) -> Iterator[tuple[str, EvictionReason]]:
        """Iterate over the conversations that went by the limits and were not iterated over yet.

        Noted for as long as the `Retention` has an `on_evict`, and by any number of iterators each is told once.
        """
        return iter(())

    async def stats(self) -> StoreStats:
        """Return figures; they must cost the same however much is stored."""
        return StoreStats(await self.count())


def lease_of(thread_id: str, leases: Iterable[Lease]) -> Lease | None:
    """Return the innermost of some leases that is of a conversation."""
    return next((lease for lease in leases if lease.thread_id == thread_id), None)


# What stores raise, in the same words.


def lost_error(lease: Lease) -> SessionLostError:
    """Return what to raise for a write with a lease that is lost."""
    return SessionLostError(
        f"this session on thread_id {shown(lease.thread_id)} (fence {lease.fence}) is over: another one has held the "
        "conversation since, or it was ephemeral and has ended; nothing was stored. Open a new session to go on"
    )


def torn_error(thread_id: str) -> ThreadEvictedError:
    """Return what to raise for a checkpoint of which something has gone."""
    return ThreadEvictedError(
        f"what thread_id {shown(thread_id)} held when this run read it has gone since: evicted, deleted, or older than "
        "what keep_last keeps as others have written to it. The checkpoint that the run stores next would lack it; "
        "nothing was stored. Hold saver.session(thread_id) around the run, which keeps its conversation, or give the "
        "saver's Retention wider limits"
    )


def exists_error(source_thread_id: str, target_thread_id: str) -> ThreadExistsError:
    """Return what to raise for a copy to a conversation that holds something."""
    return ThreadExistsError(
        f"cannot copy thread_id {shown(source_thread_id)} to {shown(target_thread_id)}: the target holds "
        "a conversation already; delete it first, or copy to a thread_id that is not in use"
    )
