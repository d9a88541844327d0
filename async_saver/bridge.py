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

from async_saver.errors import PortalError

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
        self._starting = threading.Lock()  # so that two first callers start one portal
        self._portal: BlockingPortal | None = None
        self._worker: threading.Thread | None = None

    def call(self, func: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run `func` on the portal and return its result, or raise what it raised.

        Works from any worker thread and from code that runs on an event loop, which is blocked for the call. Whatever
        interrupts the wait cancels the call.

        Raises:
            PortalError: The caller is running on the portal itself, and would wait for its own end.
        """
        call = _Call(partial(func, *args, **kwargs))
        if sys.is_finalizing():
            # Daemons have stopped for ever. What still runs is the main thread: finalizers, generators being closed.
            return call.result(anyio.run(call.run, backend="asyncio"))
        portal = self._portal or self._started()
        if threading.current_thread() is self._worker:
            raise PortalError(
                "a sync method of a saver was called by code that itself runs for one on the portal (a store's, "
                "perhaps); call the async method instead"
            )
        try:
            outcome = portal.start_task_soon(call.run).result()
        except BaseException:
            call.give_up(portal)
            raise
        return call.result(outcome)

    def _started(self) -> BlockingPortal:
        with self._starting:
            if self._portal is None:
                ready: Future[BlockingPortal] = Future()
                worker = threading.Thread(target=_serve, args=(ready,), name="async_saver portal", daemon=True)
                worker.start()
                self._portal, self._worker = ready.result(), worker
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


def _serve(ready: "Future[BlockingPortal]") -> None:
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
