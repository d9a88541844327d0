"""The way from sync code to a store's coroutines: one event loop for the whole process, on a worker thread."""

import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, ParamSpec, TypeVar

import anyio
from anyio import CancelScope
from anyio.from_thread import BlockingPortal
from anyio.lowlevel import current_token

from async_saver.errors import PortalError
from async_saver.guard import refuse_inside

__all__ = ["SyncBridge", "bridge"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SyncBridge:
    """Runs coroutine functions for sync callers on an anyio `BlockingPortal`, started at the first call.

    The portal's worker thread is a daemon and belongs to the process, not to a saver: nothing has to be closed, and
    a dropped saver leaves nothing behind.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        """Forget the portal: at first, and in the child of a fork, which has none of its parent's worker threads."""
        # So that two first callers start one portal. Reentrant for a signal handler that calls while one starts.
        self._starting = threading.RLock()
        self._ready = _Ready()
        self._portal: BlockingPortal | None = None
        self._workers: list[threading.Thread] = []  # one, and more only if its start was interrupted

    def call(self, func: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run `func` on the portal and return its result, or raise what it raised.

        Works from any worker thread and from code that runs on an event loop, which is blocked for the call. Whatever
        interrupts the wait cancels the call.

        Raises:
            PortalError: The caller would wait for its own end: it is running on the portal itself, or it is a signal
                handler or a finalizer that interrupted a store's work in its own worker thread. Or it is on an event
                loop, and the portal cannot be started any more because the interpreter ends.
        """
        refuse_inside()
        if threading.current_thread() in self._workers:
            raise PortalError(
                "a sync method of a saver was called by code that itself runs for one on the portal (a store's or a "
                "finalizer, perhaps); call the async method instead"
            )
        call = _Call(partial(func, *args, **kwargs))
        # Once the interpreter ends, daemons have stopped for ever. What still runs is the main thread: finalizers,
        # generators being closed; from 3.12 on also `atexit` callbacks, which can start no worker thread.
        portal = None if sys.is_finalizing() else self._portal or self._started()
        if portal is None:
            if _on_event_loop():
                raise PortalError(
                    "a sync method of a saver was called on an event loop while the interpreter ends and no worker "
                    "thread can be started any more; call the async method instead"
                )
            return call.result(anyio.run(call.run, backend="asyncio"))
        try:
            outcome = portal.start_task_soon(call.run).result()
        except BaseException:
            call.give_up(portal)
            raise
        return call.result(outcome)

    def _started(self) -> BlockingPortal | None:
        """Return the portal, started if need be; None where no worker thread can be."""
        with self._starting:
            if self._portal is None:
                # What interrupts the start of a worker thread (an interrupt, a signal handler's own call) cannot tell
                # whether it is there, and starts another: the first one to arrive serves, the other ends.
                ready = self._ready
                if not ready.taken.locked():
                    worker = threading.Thread(target=_serve, args=(ready,), name="async_saver portal", daemon=True)
                    self._workers.append(worker)
                    try:
                        worker.start()
                    except RuntimeError:
                        self._workers.remove(worker)
                        return None
                try:
                    self._portal = ready.result()
                except Exception:
                    self._ready = _Ready()
                    raise
            return self._portal


class _Call(Generic[_T]):
    """One call on its way over the bridge. Its caller may be interrupted before it has anything to cancel it by."""

    def __init__(self, func: Callable[[], Awaitable[_T]]) -> None:
        self._func = func
        self._scope: CancelScope | None = None
        self._given_up = False

    async def run(self) -> tuple[_T, None] | tuple[None, BaseException] | None:
        """Return what was returned, or raised: raising what is no `Exception` would end the portal for everybody."""
        with CancelScope() as self._scope:
            if self._given_up:
                return None
            try:
                return await self._func(), None
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as exc:
                return None, exc
        return None

    def give_up(self, portal: BlockingPortal) -> None:
        """Cancel the call, wherever it is: one that has not started yet sees the mark."""
        self._given_up = True
        if self._scope is not None:
            portal.start_task_soon(self._scope.cancel)

    @staticmethod
    def result(outcome: tuple[_T, None] | tuple[None, BaseException] | None) -> _T:
        """Return or raise what `run` did."""
        if outcome is None:
            raise PortalError("the call was cancelled")
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


def _on_event_loop() -> bool:
    try:
        current_token()
    except RuntimeError:
        return False
    return True


class _Ready(Future[BlockingPortal]):
    """The portal, once it has started."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = threading.Lock()  # by the worker thread that serves, for ever


def _serve(ready: _Ready) -> None:
    if not ready.taken.acquire(blocking=False):
        return

    async def portal() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    try:
        anyio.run(portal, backend="asyncio")
    except BaseException as exc:
        if not ready.done():
            ready.set_exception(exc)
        raise


bridge: SyncBridge = SyncBridge()
if hasattr(os, "register_at_fork"):
    # A fork waits for a portal that is being started: the child would inherit the import locks that its worker holds.
    os.register_at_fork(
        before=lambda: bridge._starting.acquire(),
        after_in_parent=lambda: bridge._starting.release(),
        after_in_child=bridge._reset,
    )
