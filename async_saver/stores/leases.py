"""The leases of one store in memory, and what each session has to have kept to be undone."""

from collections.abc import Iterable
from itertools import count
from time import time
from weakref import WeakValueDictionary

from async_saver.errors import SessionLostError, shown
from async_saver.records import Lease
from async_saver.stores.bucket import Bucket, Former, Namespace
from async_saver.stores.history import Step

__all__ = ["HeldLease", "Leases", "lease_of", "lost_error"]


class HeldLease(Lease):
    """A lease in memory.

    Attributes:
        line: The leases of its conversation.
        formers: What its session found in each namespace that it wrote to.
        bucket: What its session, by a deletion or pruning, first replaced as a whole.
    """

    __slots__ = ("bucket", "formers", "line")

    def __init__(self, thread_id: str, fence: int, owner: str, line: "_Line") -> None:
        super().__init__(thread_id, fence, owner, time())
        self.line = line
        self.formers: dict[str, Former] = {}
        self.bucket: Bucket | None = None

    def is_held(self) -> bool:
        """Tell whether it is the one that holds the conversation."""
        return self.line.now[1] is self

    def is_lost(self) -> bool:
        """Tell whether what is written with it is refused."""
        return self.line.now[0] > self.fence

    def former(self, checkpoint_ns: str, namespace: Namespace) -> Former | None:
        """Return where to note what is found in a namespace before it is changed; None if that need not be noted."""
        if not self.is_held():
            return None
        if self.bucket is not None and self.bucket.namespaces.get(checkpoint_ns) is not namespace:
            return None  # what was before is in the bucket
        former = self.formers.get(checkpoint_ns)
        if former is None:
            former = self.formers[checkpoint_ns] = Former(namespace.delta_channels)
        return former

    def forget(self) -> None:
        """Let go of what undoing would need."""
        self.formers, self.bucket = {}, None


class _Line:
    """The leases of one conversation; there as long as one of them is, and so nothing is left of idle conversations.

    Attributes:
        now: The fence that a lease must have for its writes, and the one that is held. One value, so that an interrupt
            finds either what was or what is.
    """

    __slots__ = ("__weakref__", "now")

    def __init__(self) -> None:
        self.now: tuple[int, HeldLease | None] = (0, None)


class Leases:
    """Who holds which conversation. The store guards it."""

    def __init__(self) -> None:
        self._lines: WeakValueDictionary[str, _Line] = WeakValueDictionary()
        self._fences = count(1)

    def held(self, thread_id: str) -> HeldLease | None:
        """Return the lease of a conversation that is held."""
        line = self._lines.get(thread_id)
        return None if line is None else line.now[1]

    def give(self, thread_id: str, owner: str) -> tuple[HeldLease, Step]:
        """Return a new lease, and the step by which it is held."""
        line = self._lines.get(thread_id)
        if line is None:
            line = self._lines[thread_id] = _Line()
        fence = next(self._fences)
        lease = HeldLease(thread_id, fence, owner, line)
        return lease, (setattr, (line, "now", (fence, lease)))

    def ended(self, lease: HeldLease, lost: bool) -> Step:
        """Return the step that ends a lease; if it is to be lost, all that is written with it is refused."""
        return setattr, (lease.line, "now", (next(self._fences) if lost else lease.fence, None))


def lease_of(thread_id: str, leases: Iterable[Lease]) -> HeldLease | None:
    """Return the innermost of some leases that is of a conversation."""
    for lease in leases:
        if lease.thread_id == thread_id and isinstance(lease, HeldLease):
            return lease
    return None


def lost_error(lease: Lease) -> SessionLostError:
    """Return what to raise for a write with a lease that is lost."""
    return SessionLostError(
        f"this session on thread_id {shown(lease.thread_id)} (fence {lease.fence}) is over: another one has held the "
        "conversation since, or it was ephemeral and has ended; nothing was stored. Open a new session to go on"
    )
