"""The way from sync code to a store's coroutines: one event loop for the whole process, on a worker thread."""

import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
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
        outcome = partial(_outcome, partial(func, *args, **kwargs))
        if sys.is_finalizing():
            # Daemons have stopped for ever. What still runs is the main thread: finalizers, generators being closed.
            return _result(anyio.run(outcome, backend="asyncio"))
        portal = self._portal or self._started()
        if threading.current_thread() is self._worker:
            raise PortalError(
                "a sync method of a saver was called by code that itself runs for one on the portal (a store's, "
                "perhaps); call the async method instead"
            )
        future = portal.start_task_soon(outcome)
        try:
            return _result(future.result())
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> BlockingPortal:
        with self._starting:
            if self._portal is None:
                ready: Future[BlockingPortal] = Future()
                # In an empty context: the first caller's context variables are not for everybody's calls.
                worker = threading.Thread(
                    target=Context().run, args=(_serve, ready), name="async_saver portal", daemon=True
                )
                worker.start()
                self._portal, self._worker = ready.result(), worker
            return self._portal


async def _outcome(func: Callable[[], Awaitable[_T]]) -> tuple[_T, None] | tuple[None, BaseException]:
    """Return what `func` returned or raised: an exception that is no `Exception` would end the portal for everybody."""
    try:
        return await func(), None
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as exc:
        return None, exc


def _result(outcome: tuple[_T, None] | tuple[None, BaseException]) -> _T:
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
