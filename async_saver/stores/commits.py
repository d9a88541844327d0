"""Many callers, one worker thread: what gathers while it works is done together, next.

No caller's task ever leads. One that did would hang its followers when it is cancelled, and a sync call on its event
loop would wait for itself.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar, cast

import anyio

__all__ = ["Call", "Worker"]

_T = TypeVar("_T")

_Soon: TypeAlias = Callable[[Callable[[], object]], object]
"""Has something called on an event loop, from any worker thread."""

_MOST = 1024  # calls in the queue, and in one lot


class Call(Generic[_T]):
    """What one caller waits for.

    Attributes:
        work: What is to be done; the store knows what it means.
        error: What it came to, if not to a result.
    """

    __slots__ = ("_chances", "_event", "_result", "_soon", "error", "work")

    def __init__(self, work: Any, soon: _Soon | None = None) -> None:
        self.work: Any = work
        self.error: BaseException | None = None
        self._result: _T | None = None
        self._soon = soon
        self._event = anyio.Event() if soon is not None else None
        self._chances = [None]  # who takes it, begins the call or withdraws it

    def begin(self) -> bool:
        """Tell, once, whether the call may begin; from then on it is done to its end, whoever waits for it."""
        try:
            self._chances.pop()
        except IndexError:
            return False
        return True

    withdraw = begin

    def end(self, result: _T) -> None:
        """Note what it came to."""
        self._result = result

    def result(self) -> _T:
        """Return or raise what it came to."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # whose traceback refers to this frame
        return cast(_T, self._result)


class _End:
    """The work of the call that ends the worker thread."""


class Worker:
    """Does what is called for in a worker thread of its own, in the order of the calls, in lots.

    The thread is there from the first call to `end`. It is a daemon: it does not keep the process, which has been told
    of nothing that is not done.

    Args:
        do: Does a lot, and notes in each call what it came to.
        close: Lets go of what the thread has opened, at its end.
        pause: Says for how many seconds at most to wait for calls; then `do` is called with none.
        name: The thread's.
    """

    def __init__(
        self,
        do: Callable[[Sequence[Call[Any]]], None],
        close: Callable[[], None],
        pause: Callable[[], float | None],
        name: str,
    ) -> None:
        self._do = do
        self._close = close
        self._pause = pause
        self._name = name
        self.forget()

    def forget(self) -> None:
        """Begin anew without the thread, and without what was called for: in a fork neither is there."""
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._queue: SimpleQueue[Call[Any]] = SimpleQueue()
        self._waiting: deque[tuple[_Soon, anyio.Event]] = deque()

    async def call(self, work: Any) -> Any:
        """Have something done; wait for what it comes to.

        A caller that is cancelled withdraws the call if it has not begun.
        """
        soon = _soon()
        while self._queue.qsize() >= _MOST:
            await self._room(soon)
        call: Call[Any] = Call(work, soon)
        self._add(call)
        await self._wait(call)
        return call.result()

    async def call_surely(self, work: Any, otherwise: Any = None) -> Any:
        """Have something done also if the caller is cancelled; or then have something else done after it.

        Args:
            work: The work.
            otherwise: The something else. Without it, the work is done in any case.
        """
        call: Call[Any] = Call(work, _soon())
        self._add(call)
        try:
            await cast(anyio.Event, call._event).wait()
        except BaseException:
            if otherwise is not None and not call.withdraw():
                self._add(Call(otherwise))
            raise
        return call.result()

    async def _wait(self, call: Call[Any]) -> None:
        try:
            await cast(anyio.Event, call._event).wait()
        except BaseException:
            call.withdraw()
            raise

    async def _room(self, soon: _Soon) -> None:
        """Wait until there may be room in the queue."""
        event = anyio.Event()
        self._waiting.append((soon, event))
        if self._queue.qsize() >= _MOST:  # else nobody may come to wake it
            await event.wait()

    def _add(self, call: Call[Any]) -> None:
        self._queue.put(call)
        if self._thread is None:  # looked at after the call is in the queue; the thread does these in reverse
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread = thread
            try:
                thread.start()
                return
            except BaseException as exc:
                self._thread = None
                if not isinstance(exc, RuntimeError):
                    raise
        self._run(at_once=True)  # the interpreter ends, and starts no more threads

    async def end(self) -> None:
        """Let what was called for be done, and the thread end."""
        thread = self._thread
        if thread is None:
            return
        call: Call[Any] = Call(_End, _soon())
        self._add(call)
        await self._wait(call)
        if thread is not threading.current_thread():
            thread.join()

    def leave(self) -> threading.Thread | None:
        """Have the thread end, from anywhere, without waiting for it; return it if there is one."""
        thread = self._thread
        if thread is not None:
            self._queue.put(Call(_End))
        return thread

    # In the worker thread.

    def _run(self, at_once: bool = False) -> None:
        while True:
            calls = self._next(wait=not at_once)
            ends = [call for call in calls if call.work is _End]
            work = [call for call in calls if call.work is not _End and call.begin()]
            try:
                if work or not calls:
                    self._do(work)
                if ends or at_once:
                    self._close()
            except BaseException as exc:
                for call in (*work, *ends):
                    call.error = call.error or exc
            ended = (bool(ends) or at_once) and self._has_ended()
            _wake(calls)
            if ended:
                return
            del calls, ends, work  # what they refer to is not to be kept while this waits

    def _next(self, wait: bool) -> list[Call[Any]]:
        """Return the next lot; none after a pause."""
        calls: list[Call[Any]] = []
        with suppress(Empty):
            calls.append(self._queue.get(wait, self._pause() if wait else None))
            while len(calls) < _MOST:
                calls.append(self._queue.get(False))
        by_loop: dict[_Soon, list[anyio.Event]] = {}
        with suppress(IndexError):
            while True:
                soon, event = self._waiting.popleft()
                by_loop.setdefault(soon, []).append(event)
        _set_all(by_loop)
        return calls

    def _has_ended(self) -> bool:
        with self._starting:
            if self._queue.qsize():
                return False
            self._thread = None
            return True


def _soon() -> _Soon:
    """Return how to have something called on the caller's event loop."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is not None:
        return task.get_loop().call_soon_threadsafe
    import trio

    return trio.lowlevel.current_trio_token().run_sync_soon


def _wake(calls: Sequence[Call[Any]]) -> None:
    """Wake those who wait for calls, each loop once."""
    by_loop: dict[_Soon, list[anyio.Event]] = {}
    for call in calls:
        if call._soon is not None and call._event is not None:
            by_loop.setdefault(call._soon, []).append(call._event)
    _set_all(by_loop)


def _set_all(by_loop: "dict[_Soon, list[anyio.Event]]") -> None:
    for soon, events in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed
            soon(partial(_set, events))


def _set(events: "list[anyio.Event]") -> None:
    for event in events:
        event.set()
