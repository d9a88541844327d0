"""The way from sync code to a store's coroutines: one event loop for the whole process, on a worker thread."""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import anyio
from anyio.lowlevel import current_token

from async_saver.errors import PortalError
from async_saver.guard import refuse_inside

try:
    from sniffio import current_async_library_cvar as _library
except ImportError:  # anyio does without, where it is not installed
    _library = None  # type: ignore[assignment]

__all__ = ["SyncBridge", "await_elsewhere", "bridge"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SyncBridge:
    """Runs coroutine functions for sync callers on an event loop in a worker thread, the portal, started when needed.

    The worker thread is a daemon and belongs to the process, not to a saver: nothing has to be closed, and
    a dropped saver leaves nothing behind.
    """

    def __init__(self) -> None:
        # So that two first callers start one portal. Reentrant for a signal handler that calls while one starts.
        self._starting = threading.RLock()
        self._portal = _Portal()
        self._workers: list[threading.Thread] = []  # one, and more only if its start was interrupted
        self.calls: int = 0

    def _forked(self) -> None:
        """Forget the portal in the child of a fork, which has none of its parent's worker threads."""
        self._portal.end()  # for a signal handler that forks in the midst of a call, and returns to it
        self.__init__()  # type: ignore[misc]

    def call(self, func: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run `func` on the portal and return its result, or raise what it raised.

        Works from any worker thread and from code that runs on an event loop, which is blocked for the call. Whatever
        interrupts the wait cancels the call.

        Raises:
            PortalError: The caller would wait for its own end: it is running on the portal itself, or it is a signal
                handler or a finalizer that interrupted a store's work in its own worker thread. Or it is on an event
                loop, and the portal cannot be started any more because the interpreter ends.
        """
        self.refuse()
        call = _Call(partial(func, *args, **kwargs))
        # Once the interpreter ends, daemons have stopped for ever. What still runs is the main thread: finalizers,
        # generators being closed; from 3.12 on also `atexit` callbacks, which can start no worker thread.
        if sys.is_finalizing() or not (self._portal.open or self._opened()):
            if _on_event_loop():
                raise PortalError(
                    "a sync method of a saver was called on an event loop where no worker thread can be started (does "
                    "the interpreter end?); call the async method instead"
                )
            # asyncio's debug mode would look up source lines, and from Python 3.13 on import what does so.
            anyio.run(call.run, backend="asyncio", backend_options={"debug": False})
            return call.result()
        portal = self._portal
        try:
            portal.start(call)
            call.wait()
        except BaseException:
            call.give_up(portal)
            raise
        return call.result()

    def refuse(self) -> None:
        """Raise a `PortalError` where a call could only wait for itself."""
        refuse_inside()
        if threading.current_thread() in self._workers:
            raise PortalError(
                "a sync method of a saver was called by code that itself runs for one on the portal (a store's or a "
                "finalizer, perhaps); call the async method instead"
            )

    def _opened(self) -> bool:
        """Open the portal if need be; tell whether it could be."""
        with self._starting:
            if self._portal.ended:
                self._portal = _Portal()
            portal = self._portal
            # What interrupts the start of a worker thread (an interrupt, a signal handler's own call) cannot tell
            # whether it is there, and starts another: the first one to arrive serves, the other ends.
            if not portal.served.locked():
                worker = threading.Thread(target=portal.serve, name="async_saver portal", daemon=True)
                self._workers.append(worker)
                try:
                    worker.start()
                except RuntimeError:
                    self._workers.remove(worker)
                    return False
            with portal.opening:
                if not portal.open:
                    raise PortalError("the portal's event loop did not start; its worker thread has printed why")
            return True


class _Portal:
    """An event loop that is there for its callers.

    No anyio `BlockingPortal`: the future that its callers wait for has a lock of Python code, which an interrupt can
    leave locked. Then the loop's own thread waits for it, and with it every caller, for ever. What is shared here by
    caller and loop is a lock of the interpreter's own, taken and released by one call each, and asyncio's queue.
    """

    def __init__(self) -> None:
        self.open = False
        self.ended = False
        self.served = threading.Lock()  # taken by the worker thread that serves, for ever
        self.opening = threading.Lock()  # held until the portal is open
        self.opening.acquire()
        self._calls: set[_Call[Any]] = set()  # under way

    def serve(self) -> None:
        """Be the portal, on this worker thread; or if another one is, nothing."""
        if self.served.acquire(blocking=False):
            try:
                # In a context of its own: some Pythons start worker threads in a copy of their starter's.
                Context().run(partial(anyio.run, self._serve, backend="asyncio"))
            finally:
                self.end()

    def end(self) -> None:
        """Let go of everybody who waits; the next caller will open another portal."""
        self.open, self.ended = False, True
        with suppress(RuntimeError):
            self.opening.release()
        while self._calls:
            self._calls.pop().end()

    async def _serve(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            self.open = True
            self.opening.release()
            await anyio.sleep_forever()
        finally:
            self.open, self.ended = False, True

    def start(self, call: "_Call[Any]") -> None:
        """Start a call in the portal, from another worker thread and in its context."""
        context = copy_context()
        if _library is not None:
            context.run(_library.set, "asyncio")  # the caller may be on trio
        self._calls.add(call)
        self._soon(self._begin, call, context=context)
        if self.ended:
            call.end()

    def _begin(self, call: "_Call[Any]") -> None:
        bridge.calls += 1
        if sys.version_info >= (3, 12):  # what need not wait is done by the time that the task is there
            call.task = asyncio.Task(self._run(call), loop=self._loop, eager_start=True)
        else:
            call.task = asyncio.Task(self._run(call), loop=self._loop)
        if call.given_up:
            call.task.cancel()

    async def _run(self, call: "_Call[Any]") -> None:
        try:
            await call.run()
        finally:
            self._calls.discard(call)

    def cancel(self, task: "asyncio.Task[None]") -> None:
        """Cancel a call in the portal, from another worker thread."""
        with suppress(PortalError):
            self._soon(task.cancel)

    def _soon(self, callback: Callable[..., object], *args: object, context: Context | None = None) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError as exc:
            raise PortalError("the portal's event loop has ended; the next call will start another") from exc


class _Call(Generic[_T]):
    """One call on its way over the bridge. Its caller may be interrupted before it has anything to cancel it by."""

    def __init__(self, func: Callable[[], Awaitable[_T]]) -> None:
        self.task: asyncio.Task[None] | None = None
        self._func = func
        self.given_up = False
        self._outcome: tuple[_T, None] | tuple[None, BaseException] | None = None
        self._under_way = threading.Lock()
        self._under_way.acquire()

    async def run(self) -> None:
        """Make the call. What it raises is kept for `result`: here it would end the portal for everybody."""
        try:
            if not self.given_up:
                self._outcome = (await self._func(), None)
        except BaseException as exc:
            self._outcome = (None, exc)
        finally:
            self.end()

    def end(self) -> None:
        """Let go of the caller."""
        with suppress(RuntimeError):
            self._under_way.release()

    def give_up(self, portal: _Portal) -> None:
        """Cancel the call, wherever it is: one that has not started yet sees the mark."""
        self.given_up = True
        if self.task is not None:
            portal.cancel(self.task)

    def wait(self) -> None:
        """Wait for the end of the call."""
        self._under_way.acquire()

    def result(self) -> _T:
        """Return or raise what the call did."""
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            raise PortalError("the portal has ended in the midst of the call, or the process was forked there")
        if outcome[1] is None:
            return outcome[0]
        try:
            if isinstance(outcome[1], asyncio.CancelledError):
                raise PortalError("the call was cancelled by something that it waited for") from outcome[1]
            raise outcome[1]
        finally:
            del outcome  # which the exception's traceback would hold, and it the exception


def await_elsewhere(work: Awaitable[object]) -> None:
    """Await what is the user's own on an event loop of its own, in a worker thread, in the caller's context.

    Not on the portal, which everybody waits for; nor here, as the caller may be on an event loop itself.
    """
    raised: list[Exception] = []

    async def wait() -> None:
        await work

    def run() -> None:
        try:
            anyio.run(wait)
        except Exception as exc:
            raised.append(exc)

    context = copy_context()
    if _library is not None:
        context.run(_library.set, None)  # nothing runs there yet
    worker = threading.Thread(target=context.run, args=(run,), name="async_saver on_evict")
    worker.start()
    worker.join()
    for exc in raised:
        raise exc


def _on_event_loop() -> bool:
    try:
        current_token()
    except RuntimeError:
        return False
    return True


bridge: SyncBridge = SyncBridge()
if hasattr(os, "register_at_fork"):
    # A fork waits for a portal that is being started: the child would inherit the import locks that its worker holds.
    os.register_at_fork(
        before=lambda: bridge._starting.acquire(),
        after_in_parent=lambda: bridge._starting.release(),
        after_in_child=bridge._forked,
    )
