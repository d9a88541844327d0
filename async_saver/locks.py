"""One anyio lock per conversation and event loop, for as long as somebody holds or awaits it."""

from contextlib import suppress
from types import TracebackType
from weakref import WeakValueDictionary

from anyio import Lock, WouldBlock
from anyio.lowlevel import EventLoopToken, current_token

__all__ = ["ThreadLocks"]


_Key = tuple[EventLoopToken, str]


class ThreadLocks:
    """Lets the calls on one conversation through one after the other, in the order in which they came.

    No lock is ever shared by two event loops: each loop has its own for the same `thread_id`. A lock is forgotten by
    the last one who releases it. And it is only referred to by the frames that hold or await it: one whose holder was
    torn away by an interrupt is forgotten with them, as there is no count of users to be put right.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[_Key, Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        """Return how many locks are held or awaited now."""
        return len(self._locks)

    def holding(self, *thread_ids: str) -> "_Holding":
        """Return a context manager that holds the locks of these conversations."""
        return _Holding(self._locks, thread_ids)


class _Holding:
    __slots__ = ("_held", "_locks", "_thread_ids")

    def __init__(self, locks: WeakValueDictionary[_Key, Lock], thread_ids: tuple[str, ...]) -> None:
        self._locks = locks
        # Sorted, so that two calls that want the same two locks cannot each wait for the other.
        self._thread_ids = thread_ids if len(thread_ids) == 1 else sorted(set(thread_ids))
        self._held: list[tuple[_Key, Lock]] = []

    async def __aenter__(self) -> None:
        loop = current_token()
        for thread_id in self._thread_ids:
            key = (loop, thread_id)
            lock = self._locks.get(key)
            if lock is None:
                # Only this loop uses this key, and there is no await between the look and the entry.
                lock = self._locks[key] = Lock()
            held = (key, lock)
            try:
                try:
                    lock.acquire_nowait()
                except WouldBlock:
                    await lock.acquire()
                self._held.append(held)
            except BaseException as exc:
                if isinstance(exc, KeyboardInterrupt) and held not in self._held:
                    # It may have come when the lock had just become this task's.
                    with suppress(RuntimeError):
                        lock.release()
                self._forget(*held)
                self._release()
                raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        for key, lock in self._held:
            lock.release()
            self._forget(key, lock)
        self._held.clear()

    def _forget(self, key: _Key, lock: Lock) -> None:
        """Forget a lock that nobody holds; whoever awaited it would hold it now."""
        # A waiter that was cancelled may come last, when the next call has made a lock of its own.
        if not lock.locked() and self._locks.get(key) is lock:
            del self._locks[key]
