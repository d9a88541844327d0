"""The leases of one store in memory, and what each session has to have kept to be undone."""

from collections.abc import Iterable
from itertools import count
from time import time
from weakref import ReferenceType, WeakValueDictionary, ref

from async_saver.records import Lease
from async_saver.stores.bucket import Bucket, Former, Namespace
from async_saver.stores.history import Step

__all__ = ["HeldLease", "Leases", "lease_of"]


class HeldLease(Lease):
    """A lease in memory.

    Attributes:
        line: The leases of its conversation.
        formers: What its session found in each namespace that it wrote to.
        bucket: What its session, by a deletion, pruning or copy, first replaced as a whole; what others write goes
            there, too.
    """

    __slots__ = ("__weakref__", "bucket", "formers", "line")

    def __init__(self, thread_id: str, fence: int, owner: str, line: "_Line") -> None:
        super().__init__(thread_id, fence, owner, time())
        self.line: _Line = line
        self.formers: dict[str, Former] = {}
        self.bucket: Bucket | None = None

    def is_held(self) -> bool:
        """Tell whether it is the one that holds the conversation."""
        return self.line.held() is self

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

    def has_notes(self) -> bool:
        """Tell whether there is anything to undo."""
        return self.is_held() and (bool(self.formers) or self.bucket is not None)

    def forget(self) -> None:
        """Let go of what undoing would need."""
        self.formers, self.bucket = {}, None


class _Line:
    """The leases of one conversation; there as long as one of them is, and so nothing is left of idle conversations.

    Attributes:
        now: The fence that a lease must have for its writes, and the one that is held. One value, so that an interrupt
            finds either what was or what is. A weak reference, as nobody holds what nobody has any more.
    """

    __slots__ = ("__weakref__", "now")

    def __init__(self) -> None:
        self.now: tuple[int, ReferenceType[HeldLease] | None] = (0, None)

    def held(self) -> HeldLease | None:
        """Return the one that is held."""
        held = self.now[1]
        return None if held is None else held()


class Leases:
    """Who holds which conversation. The store guards it.

    Attributes:
        kept_buckets: Whether one ever kept a bucket; to ask that costs less than to look for one that does.
    """

    def __init__(self) -> None:
        self.kept_buckets: bool = False
        self._lines: WeakValueDictionary[str, _Line] = WeakValueDictionary()
        self._fences = count(1)

    def held(self, thread_id: str) -> HeldLease | None:
        """Return the lease of a conversation that is held."""
        line = self._lines.get(thread_id)
        return None if line is None else line.held()

    def give(self, thread_id: str, owner: str) -> tuple[HeldLease, list[Step]]:
        """Return a new lease, and the steps by which it is held, and the one before it no longer."""
        line = self._lines.get(thread_id)
        if line is None:
            line = self._lines[thread_id] = _Line()
        fence = next(self._fences)
        lease, former = HeldLease(thread_id, fence, owner, line), line.held()
        steps: list[Step] = [(setattr, (line, "now", (fence, ref(lease))))]
        return lease, steps if former is None else [*steps, (former.forget, ())]

    def ended(self, lease: HeldLease, lost: bool) -> list[Step]:
        """Return the steps that end a lease; if it is to be lost, all that is written with it is refused."""
        fence = next(self._fences) if lost else lease.fence
        return [(setattr, (lease.line, "now", (fence, None))), (lease.forget, ())]


def lease_of(thread_id: str, leases: Iterable[Lease]) -> HeldLease | None:
    """Return the innermost of some leases that is of a conversation."""
    for lease in leases:
        if lease.thread_id == thread_id and isinstance(lease, HeldLease):
            return lease
    return None
