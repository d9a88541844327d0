"""What stores outside the process have in common: limits that are enforced by `sweep` alone, by the time of the day."""

import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence

from async_saver.errors import InvalidValueError
from async_saver.retention import EvictionReason, Retention, seconds_of
from async_saver.stores.base import Store

__all__ = ["Swept", "SweptStore"]


class Swept:
    """What is kept of limits between calls, by what does not know the store, which may be dropped.

    Attributes:
        touched: When conversations were read that are not noted yet.
        lifetime: After how many seconds without use all go, if that is the same for all.
        evictions, untold, pruned, overruns: What went by limits.
    """

    def __init__(self) -> None:
        self.touched: dict[str, float] = {}
        self.lifetime: float | None = None
        self.evictions: dict[EvictionReason, int] = {"ttl": 0, "max_threads": 0, "max_bytes": 0}
        self.untold: deque[tuple[str, EvictionReason]] = deque()
        self.pruned: int = 0
        self.overruns: int = 0

    def forget_uses(self, uses: Mapping[str, float]) -> None:
        """Forget when conversations were read, as it is noted now."""
        for thread_id, when in uses.items():
            if self.touched.get(thread_id) == when:
                self.touched.pop(thread_id, None)

    def went(self, thread_ids: Sequence[str], reason: EvictionReason, tells: bool) -> None:
        """Count conversations that went, and note that they are to be told of if they are."""
        self.evictions[reason] += len(thread_ids)
        if tells:
            self.untold.extend((thread_id, reason) for thread_id in thread_ids)


class SweptStore(Store):
    """A store that keeps to limits in its `sweep`, which each writes for itself.

    Args:
        swept: What is kept of its limits.
    """

    def __init__(self, swept: Swept) -> None:
        self.retention: Retention | None = None
        self.untold: Collection[object] = ()
        self._swept = swept
        self._since = 0.0  # when it was told to keep to limits

    def retain(self, retention: Retention) -> None:
        """See `Store.retain`. What goes beyond the limits goes in `sweep`."""
        if self.retention is not None and self.retention != retention:
            raise InvalidValueError("the store keeps to another Retention already; give it to one saver of the store")
        if self.retention is None:
            self.retention = retention
            self._since = self._now()
            self._swept.lifetime = None if callable(retention.ttl) else retention.lifetime("")
            self.untold = self._swept.untold

    def _now(self) -> float:
        """Return the time by which use is noted: that of the day, as it has to outlive the process."""
        retention = self.retention
        clock = time.time if retention is None or retention.clock is time.monotonic else retention.clock
        return seconds_of(clock())

    def _touch(self, thread_id: str) -> None:
        """Note that a conversation is read."""
        retention = self.retention
        if retention is not None and retention.refresh_on_read:
            self._swept.touched[thread_id] = self._now()

    def _tells(self) -> bool:
        """Tell whether somebody wants to know what went."""
        return self.retention is not None and self.retention.on_evict is not None

    def evictions(self) -> Iterator[tuple[str, EvictionReason]]:
        """See `Store.evictions`."""
        while True:
            try:
                told = self._swept.untold.popleft()
            except IndexError:
                return
            yield told
