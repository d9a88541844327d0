"""What runs a session: a task of asyncio or trio, or sync code. How to wait there, wake it, and cancel it."""

import asyncio
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from weakref import ref

import anyio
from anyio import CancelScope, move_on_after

__all__ = ["Runner", "SyncCode", "Task", "current_task"]


class _Mark(threading.local):
    """Something in each worker thread that goes with it."""

    def __init__(self) -> None:
        self.value: threading.Lock = threading.Lock()  # what can be referred to weakly


_mark = _Mark()


class Runner(ABC):
    """What runs a session: a task of asyncio or trio, or a worker thread's sync code.

    Attributes:
        name: What it is, in words.
        thread: The worker thread that it runs in.
    """

    name: str

    def __init__(self) -> None:
        self.thread: threading.Thread = threading.current_thread()
        self._pid = os.getpid()
        self._mark = ref(_mark.value)

    @abstractmethod
    def prepare(self) -> None:
        """Heed only what wakes it from now on."""

    def is_here(self) -> bool:
        """Tell whether the caller is run by it."""
        return threading.current_thread() is self.thread

    def is_gone(self) -> bool:
        """Tell whether it has ended, so that it will never leave what it entered."""
        if self._pid != os.getpid():  # a fork has none of its parent's tasks
            return True
        # Up to Python 3.12, an interrupt in the midst of `is_alive` makes it False for ever. Interrupts come in the
        # main thread: there it is asked only of what has ended, or was not started by `threading`, which is harmless.
        here = threading.current_thread()
        if here is self.thread or (here is threading.main_thread() and self._mark() is not None):
            return False
        return not self.thread.is_alive()

    @abstractmethod
    def now(self) -> float:
        """Return the time by which it waits, in seconds."""

    @abstractmethod
    def wake(self) -> None:
        """End its wait, from any worker thread."""


class Task(Runner):
    """One of the two kinds of task."""

    def __init__(self) -> None:
        super().__init__()
        self._woken: anyio.Event | None = None

    def now(self) -> float:
        """See `Runner.now`."""
        return anyio.current_time()

    def prepare(self) -> None:
        """See `Runner.prepare`."""
        if self._woken is None or self._woken.is_set():
            self._woken = anyio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait until it is woken, or for so long."""
        if self._woken is not None:
            with move_on_after(seconds):
                await self._woken.wait()

    def wake(self) -> None:
        """See `Runner.wake`."""
        self.soon(self._wake)

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    @abstractmethod
    def soon(self, callback: Callable[[], object]) -> None:
        """Have a callback called where the task runs, from any worker thread."""

    def enter(self) -> None:
        """Prepare for `cancel`, before the session's body."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the session's body, on its own event loop."""

    @abstractmethod
    def leave(self, cancelled: bool, exc: BaseException | None) -> bool:
        """Undo what `enter` and `cancel` did; tell whether `exc` is somebody else's cancellation."""


class _AsyncioTask(Task):
    def __init__(self, task: "asyncio.Task[object]") -> None:
        super().__init__()
        self._task = task
        self._loop = task.get_loop()
        self._cancelling = _cancelling(task)
        self.name = f"the asyncio task {task.get_name()!r}"

    def is_here(self) -> bool:
        return super().is_here() and _asyncio_task() is self._task

    def is_gone(self) -> bool:
        return super().is_gone() or self._task.done() or self._loop.is_closed()

    async def wait(self, seconds: float) -> None:
        """See `Task.wait`."""
        # Not in an anyio scope: one that expires in the turn of a native cancellation may take that for its own (any
        # anyio on Python 3.10, and some elsewhere).
        timer = self._loop.call_later(seconds, self._wake)
        try:
            if self._woken is not None:
                await self._woken.wait()
        finally:
            timer.cancel()

    def soon(self, callback: Callable[[], object]) -> None:
        here = threading.current_thread() is self.thread  # and so the loop need not be woken
        with suppress(RuntimeError):  # the loop is closed
            (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(callback)

    def cancel(self) -> None:
        # Once, and not by an anyio scope, which cancels again and again: LangGraph's own unwinding, which stores the
        # last checkpoint with durability="exit", has awaits too.
        self._task.cancel()

    def leave(self, cancelled: bool, exc: BaseException | None) -> bool:
        uncancel = getattr(self._task, "uncancel", None)  # from Python 3.11 on
        if cancelled and uncancel is not None:
            uncancel()
        return isinstance(exc, asyncio.CancelledError) and _cancelling(self._task) > self._cancelling


class _TrioTask(Task):
    def __init__(self) -> None:
        import trio

        super().__init__()
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._scope: CancelScope | None = None
        self.name = f"the trio task {self._task.name!r}"

    def is_here(self) -> bool:
        import trio

        return super().is_here() and trio.lowlevel.in_trio_task() and trio.lowlevel.current_task() is self._task

    def is_gone(self) -> bool:
        if super().is_gone():
            return True
        try:
            self._token.run_sync_soon(_do_nothing, idempotent=True)
        except RuntimeError:  # the run has finished
            return True
        return False

    def soon(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):
            self._token.run_sync_soon(callback)

    def enter(self) -> None:
        self._scope = CancelScope().__enter__()

    def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def leave(self, cancelled: bool, exc: BaseException | None) -> bool:
        scope, self._scope = self._scope, None
        if not self.is_here():
            return False
        ours = False
        if scope is not None:
            try:
                ours = bool(scope.__exit__(type(exc) if exc else None, exc, exc.__traceback__ if exc else None))
            except KeyboardInterrupt:
                raise
            except BaseException:
                pass  # what is left of a group: the whole of it goes on, or is a cause
        return not ours and isinstance(exc, anyio.get_cancelled_exc_class())


class SyncCode(Runner):
    """Sync code in a worker thread, or on an event loop that it blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str = f"sync code in the worker thread {self.thread.name!r}"
        self._woken = threading.Lock()
        self._woken.acquire()

    def now(self) -> float:
        """See `Runner.now`."""
        return time.monotonic()

    def wake(self) -> None:
        """See `Runner.wake`."""
        with suppress(RuntimeError):  # it is awake
            self._woken.release()

    def prepare(self) -> None:
        """See `Runner.prepare`."""
        self._woken.acquire(blocking=False)

    def wait(self, seconds: float) -> None:
        """Wait until it is woken, or for so long."""
        self._woken.acquire(timeout=seconds)


def _asyncio_task() -> "asyncio.Task[object] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _cancelling(task: "asyncio.Task[object]") -> int:
    cancelling = getattr(task, "cancelling", None)  # from Python 3.11 on
    return cancelling() if cancelling is not None else 0


def _do_nothing() -> None:
    """Be what is asked of an event loop only to see whether it is there."""


def current_task() -> Task:
    """Return the task in which the caller runs."""
    task = _asyncio_task()
    return _AsyncioTask(task) if task is not None else _TrioTask()
