"""The way from sync code to the saver's coroutines: one event loop for the whole process, on a worker thread."""

import os
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
        portal = self._portal or self._started()
        if threading.current_thread() is self._worker:
            raise PortalError(
                "a sync method of a saver was called by code that itself runs for one (a serde, perhaps, or a "
                "validator of a state's model); call the async method instead"
            )
        start: Callable[[], Awaitable[_T]] = partial(func, *args, **kwargs)
        future = portal.start_task_soon(start)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> BlockingPortal:
        with self._starting:
            if self._portal is None:
                ready: Future[BlockingPortal] = Future()
                # In an empty context: the first caller's context variables are not for everybody's calls.
                self._worker = threading.Thread(
                    target=Context().run, args=(_serve, ready), name="async_saver portal", daemon=True
                )
                self._worker.start()
                self._portal = ready.result()
            return self._portal


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
