"""One lock per conversation and event loop, for as long as somebody holds or awaits it."""

import weakref
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

from anyio import Lock, Semaphore
from anyio.lowlevel import current_token

from async_saver.guard import guard

try:
    from sniffio import thread_local as _sniffed
except ImportError:  # anyio does without, where it is not installed
    _sniffed = None  # type: ignore[assignment]

__all__ = ["ThreadLocks", "current_loop"]


_P = ParamSpec("_P")
_T = TypeVar("_T")

_Key = tuple[Hashable, str]
_Locks: TypeAlias = "dict[_Key, weakref.ref[_Lock]]"


class ThreadLocks:
    """Lets the calls on one conversation through one after the other, in the order in which they came.

    The first to come takes the conversation by an entry here, which costs next to nothing; those who find it taken
    make an anyio `Lock` to queue at. No lock is ever shared by two event loops: each has its own for the same
    `thread_id`. The last one who leaves takes the entry away. And it is only referred to by the frames that hold or
    await it: one whose holder was torn away by an interrupt ends with them, as there is no count of users to be put
    right.
    """

    def __init__(self) -> None:
        self._locks: _Locks = {}
        self.waits: int = 0

    def __len__(self) -> int:
        """Return how many locks are held or awaited now."""
        return sum(one() is not None for one in list(self._locks.values()))

    def holding(self, *thread_ids: str) -> "_Holding":
        """Return a context manager that holds the locks of these conversations."""
        return _Holding(self, self._locks, thread_ids)

    async def call(
        self, thread_id: str, func: Callable[Concatenate[str, _P], Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call `func` with a `thread_id` and what else it wants, holding the lock of that conversation."""
        # What `holding` would do, in half the time where nobody else holds it.
        key = (current_loop(), thread_id)
        found = self._locks.get(key)
        if found is not None and found() is not None:
            async with self.holding(thread_id):
                return await func(thread_id, *args, **kwargs)
        lock = _Lock()
        try:
            self._locks[key] = weakref.ref(lock)
            return await func(thread_id, *args, **kwargs)
        finally:
            _leave(self._locks, key, lock, first=True)


class _Lock:
    """One conversation's lock on one loop, from the first who holds it to the last who does.

    Attributes:
        taken: Whether the first still holds it.
        queue: Where those wait who came later; who owns it is the next to hold the lock, or does.
        left: What the one who owns the queue waits for, until the first has left. (Not an `Event`: on trio an interrupt
            may come when a task has said that it waits for it, and does not yet.)
    """

    __slots__ = ("__weakref__", "left", "queue", "taken")

    def __init__(self) -> None:
        self.taken = True
        self.queue: Lock | None = None
        self.left: Semaphore | None = None

    async def wait(self) -> None:
        """Hold the lock once all others before have left."""
        if self.queue is None or self.left is None:
            self.queue, self.left = Lock(), Semaphore(0)
        try:
            await self.queue.acquire()
            if self.taken:
                await self.left.acquire()
        except BaseException:
            # What interrupts may come when the queue has just become this task's; else it may not release it.
            with suppress(RuntimeError):
                self.queue.release()
            raise

    def leave(self, first: bool) -> None:
        """Let the next one hold the lock."""
        if first:
            self.taken = False
            if self.left is not None:
                self.left.release()
        elif self.queue is not None:
            self.queue.release()

    def is_free(self) -> bool:
        """Tell whether nobody holds or awaits the lock."""
        return not self.taken and (self.queue is None or not self.queue.locked())


class _Holding:
    __slots__ = ("_all", "_held", "_locks", "_thread_ids")

    def __init__(self, all_locks: ThreadLocks, locks: _Locks, thread_ids: tuple[str, ...]) -> None:
        self._all = all_locks
        self._locks = locks
        # Sorted, so that two calls that want the same two locks cannot each wait for the other.
        self._thread_ids = thread_ids if len(thread_ids) == 1 else sorted(set(thread_ids))
        self._held: list[tuple[_Key, _Lock, bool]] = []

    async def __aenter__(self) -> None:
        loop = current_loop()
        try:
            for thread_id in self._thread_ids:
                # Only this loop uses this key, and there is no await between the look and the entry.
                key = (loop, thread_id)
                found = self._locks.get(key)
                lock = found() if found is not None else None
                if lock is None:
                    lock = _Lock()
                    self._held.append((key, lock, True))
                    self._locks[key] = weakref.ref(lock)
                    continue
                with guard:
                    self._all.waits += 1
                try:
                    await lock.wait()
                    self._held.append((key, lock, False))
                except BaseException:
                    _forget(self._locks, key, lock)
                    raise
        except BaseException:
            self._release()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        for key, lock, first in self._held:
            _leave(self._locks, key, lock, first)
        self._held.clear()


def _leave(locks: _Locks, key: _Key, lock: _Lock, first: bool) -> None:
    """Let the next one hold a lock, or take its entry away."""
    if first and lock.queue is None:
        lock.taken = False
        locks.pop(key, None)  # not there yet, if an interrupt came as it was to be put there
    else:
        lock.leave(first)
        _forget(locks, key, lock)


def _forget(locks: _Locks, key: _Key, lock: _Lock) -> None:
    """Take away the entry of a lock that is free."""
    # A waiter that was cancelled may come last, when the next call has made a lock of its own.
    if lock.is_free():
        found = locks.get(key)
        if found is not None and found() is lock:
            del locks[key]


def current_loop() -> Hashable:
    """Return what is the same for all tasks of one event loop, and no others."""
    # anyio's token is the same in ten times the time. Trio says its name also where it runs as a guest of asyncio.
    if _sniffed is not None and _sniffed.name is None:
        try:
            return get_running_loop()
        except RuntimeError:
            pass
    return current_token()
