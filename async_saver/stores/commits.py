"""Many callers, one worker thread: what gathers while it works is done together, next.

No caller's task ever leads. One that did would hang its followers when it is cancelled, and a sync call on its event
loop would wait for itself.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar, cast

from async_saver.guard import guard
from async_saver.locks import current_loop

__all__ = ["Call", "Waiter", "Worker", "fail", "wake"]

_T = TypeVar("_T")

_Soon: TypeAlias = Callable[[Callable[[], object]], object]
"""Has something called on an event loop, from any worker thread."""

_AT_ONCE = 8  # tasks that are woken in one turn of a loop
_MOST = 1024  # calls in the queue, and in one lot


class Waiter:
    """What a task waits for, on its own event loop; as an anyio `Event` is, in a fifth of the time.

    Attributes:
        soon: How to have something called there.
        wake: Wakes it, called there.
        woken: What it awaits.
    """

    __slots__ = ("soon", "wake", "woken")

    def __init__(self) -> None:
        loop = current_loop()
        self.soon: _Soon
        self.wake: Callable[[], object]
        self.woken: Awaitable[object]
        if isinstance(loop, asyncio.AbstractEventLoop):
            future: asyncio.Future[None] = loop.create_future()
            self.soon, self.wake, self.woken = loop.call_soon_threadsafe, partial(_set, future), future
        else:
            import trio

            event = trio.Event()
            self.soon = trio.lowlevel.current_trio_token().run_sync_soon
            self.wake, self.woken = event.set, event.wait()


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():  # as it is if its task was cancelled
        future.set_result(None)


class Call(Generic[_T]):
    """What one caller waits for.

    Attributes:
        work: What is to be done; the store knows what it means.
        error: What it came to, if not to a result.
        waiter: Who waits for it.
        since: When it was made, by the monotonic clock.
    """

    __slots__ = ("_chances", "_result", "error", "since", "waiter", "work")

    def __init__(self, work: Any, waiter: Waiter | None = None) -> None:
        self.work: Any = work
        self.error: BaseException | None = None
        self.waiter: Waiter | None = waiter
        self.since: float = time.monotonic()
        self._result: _T | None = None
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


def fail(calls: Iterable[Call[Any]], exc: BaseException) -> None:
    """Have calls come to an error; each to one of its own, as whoever raises it adds to its traceback."""
    for number, call in enumerate(calls):
        call.error = copy(exc) if number else exc
        call.error.__cause__ = exc.__cause__


class _End:
    """The work of the call that ends the worker thread."""


class _Meeting:
    """One call in several queues.

    Each worker thread comes to it after what is before it in its own queue. The last of them does it, and the others
    wait for that before they go on. It is in all queues since the same moment, so of two meetings each queue has the
    same one first.
    """

    def __init__(self, call: Call[Any], number: int) -> None:
        self._call = call
        self._missing = number
        self._over = threading.Event()

    def call_off(self) -> None:
        """Have nobody wait for the others, unless it has begun."""
        if self._call.withdraw():
            self._over.set()

    def attend(self, do: Callable[[Sequence[Call[Any]]], None], wait: bool) -> None:
        """Come to it."""
        with guard:
            self._missing -= 1
            is_last = not self._missing
        if not is_last:
            if wait:
                self._over.wait()
            return
        try:
            if self._call.begin():
                do([self._call])
        except BaseException as exc:
            fail([self._call], exc)
        finally:
            self._over.set()
            if self._call.waiter is not None:
                wake([self._call.waiter])


class Worker:
    """Does what is called for in a worker thread of its own, in the order of the calls, in lots.

    The thread is there from the first call to `end`. It is a daemon: it does not keep the process, which has been told
    of nothing that is not done.

    Args:
        do: Does a lot, and notes in each call what it came to.
        close: Lets go of what the thread has opened, at its end.
        pause: Says for how many seconds at most to wait for calls; then `do` is called with none.
        name: The thread's.
        most: How many calls a lot has at most.
    """

    def __init__(
        self,
        do: Callable[[Sequence[Call[Any]]], None],
        close: Callable[[], None],
        pause: Callable[[], float | None],
        name: str,
        most: int = _MOST,
    ) -> None:
        self._do = do
        self._close = close
        self._pause = pause
        self._name = name
        self._most = most
        self.forget()

    def forget(self) -> None:
        """Begin anew without the thread, and without what was called for: in a fork neither is there."""
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._queue: SimpleQueue[Call[Any]] = SimpleQueue()
        self._waiting: deque[Call[Any]] = deque()  # those for which there was no room

    async def call(self, work: Any) -> Any:
        """Have something done; wait for what it comes to.

        A caller that is cancelled withdraws the call if it has not begun.
        """
        waiter = Waiter()
        call: Call[Any] = Call(work, waiter)
        self._add(call)
        try:
            await waiter.woken
        except BaseException:
            call.withdraw()
            raise
        return call.result()

    async def call_surely(self, work: Any, otherwise: Any = None) -> Any:
        """Have something done also if the caller is cancelled; or then have something else done after it.

        Args:
            work: The work.
            otherwise: The something else. Without it, the work is done in any case.
        """
        waiter = Waiter()
        call: Call[Any] = Call(work, waiter)
        self._add(call)
        try:
            await waiter.woken
        except BaseException:
            if otherwise is not None and not call.withdraw():
                self._add(Call(otherwise))
            raise
        return call.result()

    @staticmethod
    async def call_together(workers: "Sequence[Worker]", work: Any) -> Any:
        """Have something done by one of several, after all that each of them was called for before."""
        waiter = Waiter()
        call: Call[Any] = Call(work, waiter)
        meeting = _Meeting(call, len(workers))
        try:
            with guard:
                for worker in workers:
                    worker._queue_up(Call(meeting))
            for worker in workers:
                worker._start()
            await waiter.woken
        except BaseException:  # also an interrupt in the midst of it, after which not all may come
            meeting.call_off()
            raise
        return call.result()

    def _add(self, call: Call[Any]) -> None:
        with guard:
            self._queue_up(call)
        if self._thread is None:  # looked at after the call is in the queue; the thread does these in reverse
            self._start()

    def _queue_up(self, call: Call[Any]) -> None:
        """Put a call behind all others. The caller is in the guard."""
        if self._waiting or self._queue.qsize() >= _MOST:
            self._waiting.append(call)
        else:
            self._queue.put(call)

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
        await self.call_surely(_End)
        if self._thread is not thread:  # else it goes on, as more was called for
            thread.join()

    def leave(self) -> threading.Thread | None:
        """Have the thread end, from anywhere, without waiting for it; return it if there is one."""
        thread = self._thread
        if thread is not None:
            self._add(Call(_End))
        return thread

    # In the worker thread.

    def _run(self, at_once: bool = False) -> None:
        while True:
            calls = self._next(wait=not at_once)
            ends = [call for call in calls if call.work is _End]
            meeting = calls[-1].work if calls and isinstance(calls[-1].work, _Meeting) else None
            others = calls if meeting is None else calls[:-1]
            work = [call for call in others if call.work is not _End and call.begin()]
            try:
                if work or not calls:
                    self._do(work)
                if ends or at_once:
                    self._close()
            except BaseException as exc:
                fail((call for call in (*work, *ends) if call.error is None), exc)
            if meeting is not None:
                wake([call.waiter for call in work if call.waiter is not None])  # this may take its time
                meeting.attend(self._do, wait=not at_once)
            ended = (bool(ends) or at_once) and self._has_ended()
            wake([call.waiter for call in others if call.waiter is not None])
            if ended:
                return
            del calls, ends, work, others, meeting  # what they refer to is not to be kept while this waits

    def _next(self, wait: bool) -> list[Call[Any]]:
        """Return the next lot; none after a pause."""
        calls: list[Call[Any]] = []
        with suppress(Empty):
            calls.append(self._queue.get(wait, self._pause() if wait else None))
            while len(calls) < self._most and not isinstance(calls[-1].work, _Meeting):
                calls.append(self._queue.get(False))
        with guard:
            self._let_in()
        return calls

    def _let_in(self) -> None:
        """Let those into the queue for whom there is room now. The caller is in the guard."""
        while self._waiting and self._queue.qsize() < _MOST:
            self._queue.put(self._waiting.popleft())

    def _has_ended(self) -> bool:
        """Be no longer there, unless there is more to do: who calls looks for the thread after the queue."""
        with self._starting:
            if self._queue.qsize():
                return False
            thread, self._thread = self._thread, None
            if self._queue.qsize():
                self._thread = thread
            return self._thread is None


def wake(waiters: Sequence[Waiter]) -> None:
    """Wake those who wait, each loop once."""
    by_loop: dict[_Soon, list[Waiter]] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.soon, []).append(waiter)
    for soon, some in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed
            soon(partial(_wake_here, some, soon))


def _wake_here(waiters: Sequence[Waiter], soon: _Soon) -> None:
    """Wake the first of them, and then the others, so that timers of the loop have their turns between."""
    for waiter in waiters[:_AT_ONCE]:
        waiter.wake()
    if left := waiters[_AT_ONCE:]:
        try:
            soon(partial(_wake_here, left, soon))
        except RuntimeError:  # the loop ends, and does for the last time what it was asked to
            for waiter in left:
                waiter.wake()
