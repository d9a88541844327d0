"""Session: one run at a time on a conversation."""

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from contextvars import ContextVar
from datetime import datetime, timezone
from itertools import chain
from types import TracebackType
from typing import Literal, TypeAlias, get_args
from weakref import WeakSet, WeakValueDictionary, finalize, ref

import anyio
from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled
from langchain_core.runnables import RunnableConfig
from typing_extensions import Self

from async_saver.bridge import bridge
from async_saver.errors import (
    InvalidTypeError,
    InvalidValueError,
    PortalError,
    SessionError,
    SessionInterruptedError,
    SessionLostError,
    StorageError,
    ThreadBusyError,
    shown,
)
from async_saver.guard import guard
from async_saver.pace import is_due, keep_pace
from async_saver.records import Lease
from async_saver.runners import Runner, SyncCode, Task, current_task
from async_saver.stores.base import Store

__all__ = ["MultitaskStrategy", "Session", "Sessions", "in_session", "sessions_of"]

MultitaskStrategy: TypeAlias = Literal["enqueue", "reject", "interrupt", "rollback"]

_LOOK = 1.0  # seconds after which who comes next in line looks whether the holder is still there
_LOOK_FAR = 5.0  # and everybody behind it

_ENDS = (GeneratorExit, KeyboardInterrupt, SystemExit)
"""What comes out of a session as it is. (Who closes a coroutine or a generator would not see anything else.)"""


class Sessions:
    """Who holds, and who awaits, the conversations of one store in this process.

    The guard protects all of it; it is held for moments, and nothing is raised in it.
    """

    def __init__(self) -> None:
        # Lines with a holder; no scan is needed to count them.
        self._held: WeakSet[_Line] = WeakSet()
        self._waiting: WeakSet[Session] = WeakSet()
        # As long as a session refers to its line: an idle conversation has none.
        self._lines: WeakValueDictionary[str, _Line] = WeakValueDictionary()
        self._kept: set[_Line] = set()  # those of which nothing is left but a lease that was not given back

    def line(self, thread_id: str) -> "_Line":
        """Return the line of a conversation, in the guard."""
        line = self._lines.get(thread_id)
        if line is None:
            line = self._lines[thread_id] = _Line(self._kept, self._held, self._waiting)
        return line

    def count(self) -> tuple[int, int]:
        """Return how many conversations sessions of this process hold, and how many sessions wait."""
        with guard:
            return len(self._held), len(self._waiting)

    def leases(self) -> tuple[Lease, ...]:
        """Return the leases of the sessions in which the caller runs, innermost first."""
        current = _current.get()
        return tuple(one.lease for one in current if one.sessions is self and one.lease is not None)

    def is_busy(self, thread_id: str) -> bool | None:
        """Tell whether a session of this process holds a conversation; None where none was heard of."""
        with guard:
            line = self._lines.get(thread_id)
            if line is None or line.holder is None:
                return None
            return not line.holder.is_gone()


_all: dict[int, Sessions] = {}
"""By the `id` of the store: one may be equal to another, and need not be hashable."""


def sessions_of(store: Store) -> Sessions:
    """Return the sessions of a store, which all savers that use it share."""
    with guard:
        found = _all.get(id(store))
        if found is None:
            found = _all[id(store)] = Sessions()
            finalize(store, _all.pop, id(store), None).atexit = False
        return found


_current: ContextVar[tuple["Session", ...]] = ContextVar("async_saver_sessions", default=())
"""The sessions in which a task runs, innermost first. Tasks started in a session run in a copy of its context."""

in_session: Callable[[], tuple["Session", ...]] = _current.get  # as it is asked in each call


class _Line:
    """Who holds a conversation, and who waits for it. Whoever uses it is in the guard.

    Attributes:
        holder: The session whose turn it is.
        left: The lease of a former holder that did not give it back; the holder takes its own in place of it.
        pressing: Those who interrupt the holder and wait until it has left, in the order in which they came.
        waiting: Those who wait for their turn, behind all who press.
        kept, held, queued: Of all lines, what `Sessions` keeps of them.
    """

    __slots__ = ("__weakref__", "held", "holder", "kept", "left", "pressing", "queued", "waiting")

    def __init__(self, kept: "set[_Line]", held: "WeakSet[_Line]", queued: "WeakSet[Session]") -> None:
        self.kept: set[_Line] = kept
        self.held: WeakSet[_Line] = held
        self.queued: WeakSet[Session] = queued
        self.holder: Session | None = None
        self.left: Lease | None = None
        # Whoever stops waiting leaves from anywhere.
        self.pressing: OrderedDict[Session, None] = OrderedDict()
        self.waiting: OrderedDict[Session, None] = OrderedDict()

    def unreturned(self) -> Lease | None:
        """Return the lease that the holder would leave if it went now."""
        return self.left if self.holder is None or self.holder.lease is None else self.holder.lease

    def pass_on(self, left: Lease | None) -> None:
        """Make it the turn of the next one.

        Args:
            left: A lease that was not given back.
        """
        self.left = left
        self.holder = None
        for queue in (self.pressing, self.waiting):
            while self.holder is None and queue:
                first = next(iter(queue))
                if not first.is_gone():
                    self.holder = first  # before it leaves the queue: an interrupt in between loses nobody
                self.remove(first)
        if self.holder is not None:
            self.holder._since = time.time()
            self.holder.wake()
        else:
            self.held.discard(self)
            if left is not None:
                self.kept.add(self)
        self.wake_next()

    def remove(self, session: "Session") -> None:
        """Have a session wait no longer."""
        self.pressing.pop(session, None)
        self.waiting.pop(session, None)
        self.queued.discard(session)

    def wake_next(self) -> None:
        """Let the one who presses next see that it does."""
        if self.pressing:
            next(iter(self.pressing)).wake()


class Session(AbstractContextManager["Session"], AbstractAsyncContextManager["Session"]):
    """One run at a time on a conversation, in a `with` or `async with` statement; `AsyncSaver.session` makes it.

    Attributes:
        thread_id: The conversation.
        lease: What the store gave for it; None before it is entered.
        sessions: Those of the same store.
    """

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        thread_id: str,
        multitask_strategy: MultitaskStrategy,
        timeout: float | None,
        ephemeral: bool,
    ) -> None:
        if multitask_strategy not in get_args(MultitaskStrategy):
            raise InvalidValueError(
                f'unknown multitask_strategy {shown(multitask_strategy)}; pass "enqueue", "reject", "interrupt" or '
                '"rollback"'
            )
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise InvalidTypeError(f"timeout is a number of seconds or None, not of type {type(timeout).__name__}")
        if timeout is not None and not timeout >= 0:
            raise InvalidValueError(f"timeout is a number of seconds, 0 or more, not {shown(timeout)}")
        self.thread_id: str = thread_id
        self.lease: Lease | None = None
        self.sessions: Sessions = sessions
        self._store = store
        self._strategy: MultitaskStrategy = multitask_strategy
        try:
            self._timeout = math.inf if timeout is None else float(timeout)
        except OverflowError:
            self._timeout = math.inf
        self._ephemeral = ephemeral
        self._used = False
        self._joined = False
        # From the entry to the exit:
        self._runner: Runner | None = None
        self._line: _Line | None = None
        self._since = 0.0  # when it became the holder, in seconds of the epoch
        self._deadline = math.inf  # until when it waits, in its runner's time
        self._pressed: Session | None = None  # the holder that it has interrupted
        self._given_up = False  # the entry has failed: a lease that comes late goes back
        self._open = False  # its body runs, and may be cancelled
        self._leaving = False
        self._interrupted: str | None = None  # how, and by whom
        self._cancelled = False

    @property
    def config(self) -> RunnableConfig:
        """A config that names the conversation, to run a graph with."""
        return {"configurable": {"thread_id": self.thread_id}}

    @property
    def fence(self) -> int:
        """The number of this session, greater than those of all sessions before on its conversation.

        Raises:
            SessionError: The session has not been entered.
        """
        if self.lease is None:
            raise SessionError(f"this session on thread_id {shown(self.thread_id)} has no fence before it is entered")
        return self.lease.fence

    # Entering and leaving from async code.

    async def __aenter__(self) -> Self:
        if self._begin():
            return self
        runner = current_task()
        try:
            if not self._arrive(runner):
                while (seconds := self._look(runner)) is not None:
                    await runner.wait(seconds)
            elif is_due():
                await keep_pace()  # not before: a later session could overtake
            await self._acquire()
            runner.enter()
            self._opened()
        except BaseException as exc:
            lease, others = self._give_up(), runner.leave(self._cancelled, exc)
            try:
                if lease is not None:
                    await self._return(lease)
            finally:
                self._withdraw()
            if self._interrupted is not None and not others and not isinstance(exc, _ENDS):
                raise self._interrupted_error() from exc
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        runner = self._runner
        if self._joined:
            return
        if not isinstance(runner, Task):
            raise self._misused("left by `async with`, and was not entered by it, or has been left")
        here = self._begin_exit(runner)
        others = runner.leave(self._cancelled, exc_value)
        held = await self._leave()
        self._end_exit(here, held, others, exc_value)
        if others and self._cancelled:
            # Where two cancellations met, Python may have kept this session's own: an anyio scope around it takes only
            # its own for its own, and gives another one now.
            await checkpoint_if_cancelled()

    # From sync code.

    def __enter__(self) -> Self:
        bridge.refuse()  # before it waits for what may need the portal
        if self._begin():
            return self
        runner = SyncCode()
        try:
            if not self._arrive(runner):
                while (seconds := self._look(runner)) is not None:
                    runner.wait(seconds)
            bridge.call(self._acquire)
            self._opened()
        except BaseException as exc:
            try:
                if (lease := self._give_up()) is not None:
                    bridge.call(self._return, lease)
            finally:
                self._withdraw()
            if self._interrupted is not None and not isinstance(exc, _ENDS):
                raise self._interrupted_error() from exc
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        runner = self._runner
        if self._joined:
            return
        if not isinstance(runner, SyncCode):
            raise self._misused("left by `with`, and was not entered by it, or has been left")
        try:
            here = self._begin_exit(runner)
            held = bridge.call(self._leave)
        except BaseException:
            # An interrupt in the midst of it, or a finalizer on the portal. This worker thread goes on, so nobody could
            # take the session for gone.
            try:
                with suppress(PortalError):
                    bridge.call(self._leave)
            finally:
                self._abandon()
            raise
        self._end_exit(here, held, False, exc_value)

    # The steps of entering. Their changes are made in the guard, and what they find out there they raise after it.

    def _begin(self) -> bool:
        """Join the session in which the caller runs already; tell whether there is one."""
        if self._used:
            raise self._misused("entered a second time; call session() again for another one")
        self._used = True
        for outer in _current.get():
            if outer.sessions is self.sessions and outer.thread_id == self.thread_id:
                self._joined = outer._open
                self.lease = outer.lease if self._joined else None
                break
        return self._joined

    def _arrive(self, runner: Runner) -> bool:
        """Take the conversation if it is free, and tell whether it was; or queue for it."""
        why: str | None = None
        now = runner.now()
        with guard:
            self._runner = runner
            if self._strategy == "enqueue":
                self._deadline = now + self._timeout
            line = self._line = self.sessions.line(self.thread_id)
            if line.holder is not None and line.holder.is_gone():
                line.pass_on(line.unreturned())
            holder = line.holder
            if holder is None:
                self._take(line)
            elif self._strategy == "reject":
                why = 'pass multitask_strategy="enqueue" to wait for it, or "interrupt" to end it'
            elif isinstance(runner, SyncCode) and self._would_block(line, runner.thread):
                why = "it, or one before this, runs in this worker thread and could not go on; use `async with` here"
            else:
                queue = line.waiting if self._strategy == "enqueue" else line.pressing
                queue[self] = None
                line.queued.add(self)
        if why is not None:
            raise self._busy_error(holder, why)
        return holder is None

    def _would_block(self, line: "_Line", thread: threading.Thread) -> bool:
        """Tell whether this session would wait for something that its own waiting holds up."""
        ahead = [line.holder, *line.pressing, *(line.waiting if self._strategy == "enqueue" else ())]
        return any(one is not None and one._runner is not None and one._runner.thread is thread for one in ahead)

    def _look(self, runner: Runner) -> float | None:
        """See whether it is this session's turn; if not, return after how many seconds at most to look again."""
        runner.prepare()
        now = runner.now()
        with guard:
            line = self._queue()
            if line.holder is not self and (line.holder is None or line.holder.is_gone()):
                line.pass_on(line.unreturned())
            while (first := next(iter(line.pressing), None)) is not None and first is not self and first.is_gone():
                line.remove(first)
            next_of_all = next(chain(line.pressing, line.waiting), None) is self
            if next_of_all and self in line.pressing:
                self._press(line, now)
            holder = line.holder
            if holder is self:
                self._take(line)
        if holder is self:
            return None
        if self._interrupted is not None:  # it was its turn, and is not any more
            raise self._interrupted_error()
        if self._strategy == "enqueue" and now >= self._deadline:
            raise self._busy_error(holder, f"this session waited for {self._timeout:g} seconds; pass a longer timeout")
        return max(min(_LOOK if next_of_all else _LOOK_FAR, self._deadline - now), 0)

    def _press(self, line: "_Line", now: float) -> None:
        """Interrupt the holder; if it has had its time to unwind, take its place."""
        holder = line.holder
        if holder is None or holder is self:
            return
        if holder is not self._pressed:
            self._pressed = holder
            self._deadline = now + self._timeout
            if not holder._leaving:
                holder._interrupt(f"{self._strategy!r} by {self._name()}")
                if isinstance(holder._runner, SyncCode):
                    self._deadline = now  # it cannot be told to hurry
        if now >= self._deadline:
            holder._interrupt(f"{self._strategy!r} by {self._name()}")
            self._take(line)
            line.wake_next()

    def _take(self, line: "_Line") -> None:
        """Become the holder, in the place of whoever is it now."""
        if line.holder is not self:
            line.left = line.unreturned()
            line.holder = self
        line.held.add(line)
        line.kept.discard(line)
        line.remove(self)
        self._since = time.time()

    async def _acquire(self) -> None:
        """Take the store's lease; in the place of one that its holder did not give back, if there is such a one."""
        waits = self._timeout
        if self._strategy == "enqueue":
            waits = self._deadline - self._running().now()
        elsewhere = _Elsewhere(self._store, self.thread_id, self._strategy, self._timeout, self._name(), waits)
        line = self._queue()
        left, undo = line.left, self._strategy == "rollback"
        told = _Holder(self)
        try:
            while True:
                # What a holder that was asked to end has stored can be undone once it has; until then it is not to
                # be followed as one that nobody asked.
                lease = None
                if not elsewhere.has_asked:
                    lease = await self._store.acquire(
                        self.thread_id, self._name(), instead_of=left, undo=undo, on_interrupt=told
                    )
                if lease is not None:
                    break
                held = await self._store.lease(self.thread_id) if elsewhere.is_to_look() else None
                # After the look, as what it has seen may be a successor's.
                if line.holder is not self or self._interrupted is not None:
                    raise self._interrupted_error()
                left = await elsewhere.wait(held)
                if line.holder is not self or self._interrupted is not None:
                    raise self._interrupted_error()
        except BaseException:
            await elsewhere.leave()
            raise
        with guard:
            if not self._given_up:
                self.lease = lease
                if line.holder is self:
                    line.left = None
        if self.lease is not lease:
            await self._store.release(lease)

    def _opened(self) -> None:
        """Let the body begin; what it stores is stored with this session's lease."""
        _current.set((self, *_current.get()))
        with guard:
            self._open = self._queue().holder is self and self._interrupted is None
        if not self._open:
            raise self._interrupted_error()

    def _give_up(self) -> Lease | None:
        """End the entry; return what is to be given back."""
        with guard:
            self._given_up, self._leaving, self._open = True, True, False
            line, lease = self._line, self.lease
            if line is not None and line.holder is self:
                line.left = lease or line.left  # until it is given back
                if not line.pressing and not line.waiting:
                    lease = line.left  # there is nobody else to take it over
        self._leave_context()
        return lease

    async def _return(self, lease: Lease) -> None:
        """Give back what `_give_up` returned."""
        given: Lease | None = lease
        with CancelScope(shield=True):  # a store that waits would be cancelled at once
            if lease is not self.lease:
                # Of a holder in whose place this session was to be: what that one still writes is to be refused.
                given = await self._store.acquire(self.thread_id, self._name(), instead_of=lease)
            if given is not None:
                await self._store.release(given)
        with guard:
            if self._line is not None and self._line.left is lease:
                self._line.left = None

    def _withdraw(self) -> None:
        """Wait, and hold, no longer."""
        with guard:
            line, self._line = self._line, None
            if line is not None:
                line.remove(self)
                if line.holder is self:
                    line.pass_on(line.left)
                else:
                    line.wake_next()

    # Being interrupted.

    def _interrupt(self, how: str) -> None:
        """Have the body cancelled. The caller is in the guard."""
        self._interrupted = self._interrupted or how
        if isinstance(self._runner, Task):
            self._runner.soon(self.cancel)

    def interrupt_from_elsewhere(self, by: str) -> None:
        """Have the body cancelled, as another process asks for that."""
        with guard:
            if not self._leaving:
                self._interrupt(by)

    def cancel(self) -> None:
        """Cancel the body, where it runs and if it still does; called by those who interrupt it."""
        if self._open and not self._cancelled and isinstance(self._runner, Task):
            self._cancelled = True
            self._runner.cancel()

    # The steps of leaving.

    def _begin_exit(self, runner: Runner) -> bool:
        """End the body; tell whether the caller is who has entered."""
        with guard:
            self._leaving, self._open = True, False
        self._leave_context()
        return runner.is_here()

    def _leave_context(self) -> None:
        # No token: sessions need not be left in the reverse order, nor in the context that they were entered in.
        if self in (current := _current.get()):
            _current.set(tuple(one for one in current if one is not self))

    async def _leave(self) -> bool:
        """Give the lease back, or hand it on to be undone; tell whether it was still held."""
        line, lease = self._queue(), self.lease
        with guard:
            mine = line.holder is self
            if mine and line.pressing and self._interrupted is not None and not self._ephemeral:
                line.pass_on(lease)
                if line.holder is not None:
                    return True
        held = False
        if not mine or lease is None:
            return held
        try:
            with CancelScope(shield=True):  # it would be cancelled, and take effect all the same
                held = await self._store.release(lease, delete=self._ephemeral)
            lease = None
        except anyio.get_cancelled_exc_class():
            lease = None
            raise
        finally:
            with guard:
                if line.holder is self or line.holder is None:
                    line.pass_on(lease)
        return held

    def _abandon(self) -> None:
        """Hold no longer; what was not given back, the next one takes over."""
        with guard:
            self._leaving, self._open = True, False
            line = self._line
            if line is not None and line.holder is self:
                line.pass_on(self.lease)
        self._leave_context()

    def _end_exit(self, here: bool, held: bool, others: bool, exc: BaseException | None) -> None:
        self._runner = self._line = self._pressed = None
        if isinstance(exc, _ENDS):
            return
        if not here:
            raise self._misused("left by another task or worker thread than it was entered by; use it in one")
        if self._interrupted is not None and not others:
            raise self._interrupted_error() from exc
        if not held and exc is None:
            raise SessionLostError(
                f"this session on thread_id {shown(self.thread_id)} (fence {self.fence}) was lost before it ended: "
                "another one has held the conversation since"
            )

    # Words.

    def is_gone(self) -> bool:
        """Tell whether what runs the session has ended without leaving it."""
        return self._runner is not None and self._runner.is_gone()

    def wake(self) -> None:
        """Have it look whether it is its turn."""
        if self._runner is not None:
            self._runner.wake()

    def _running(self) -> Runner:
        assert self._runner is not None
        return self._runner

    def _queue(self) -> "_Line":
        assert self._line is not None
        return self._line

    def _name(self) -> str:
        return f"{self._running().name} of process {os.getpid()}"

    def _busy_error(self, holder: "Session | None", why: str) -> ThreadBusyError:
        runner = holder._runner if holder is not None else None  # its session may end meanwhile
        name = "another session" if runner is None else f"{runner.name} of process {os.getpid()}"
        return _busy_error(self.thread_id, self._since if holder is None else holder._since, name, why)

    def _interrupted_error(self) -> SessionInterruptedError:
        return SessionInterruptedError(
            f"this session on thread_id {shown(self.thread_id)} was ended by another one: {self._interrupted}"
        )

    def _misused(self, how: str) -> SessionError:
        return SessionError(f"a session on thread_id {shown(self.thread_id)} was {how}")


class _Holder:
    """What a store knows of a lease's holder: it does not keep that."""

    def __init__(self, session: "Session") -> None:
        self._session = ref(session)

    def __call__(self, by: str) -> None:
        """Have it end, as another process asks for that."""
        if (session := self._session()) is not None:
            session.interrupt_from_elsewhere(by)

    def is_gone(self) -> bool:
        """Tell whether what runs it has ended without leaving it."""
        with guard:
            session = self._session()
            return session is not None and session.is_gone()


class _Elsewhere:
    """Waits for a conversation that another process holds.

    Args:
        store, thread_id: Where it is.
        strategy, timeout: As they are of the session that waits.
        name: Its own.
        waits: Seconds for which it waits for its turn, or for a holder to end that it has asked to.
    """

    def __init__(
        self, store: Store, thread_id: str, strategy: MultitaskStrategy, timeout: float, name: str, waits: float
    ) -> None:
        self._store = store
        self._thread_id = thread_id
        self._strategy = strategy
        self._timeout = timeout
        self._name = name
        self._until = anyio.current_time() + waits
        self._asked: Lease | None = None  # the holder that was asked to end
        self._is_waiting = False
        self._is_late = False  # whether it has waited for long enough

    @property
    def has_asked(self) -> bool:
        """Whether there is a holder that was asked to end."""
        return self._asked is not None

    def is_to_look(self) -> bool:
        """Tell whether it matters who holds it; who only waits need not know before it is late."""
        self._is_late = anyio.current_time() >= self._until
        return self._is_late or self._strategy != "enqueue"

    async def wait(self, held: Lease | None) -> Lease | None:
        """Wait a while for who holds it; return the lease that may be taken over, if there is one."""
        now, is_late = anyio.current_time(), self._is_late
        if self._strategy == "reject" and held is None and not self._is_waiting:
            self._is_waiting = True
            return None  # it has become free just now, or others come before
        self._is_waiting = True
        if self._strategy not in ("interrupt", "rollback"):
            if is_late or self._strategy == "reject":
                who = (time.time(), "a session that came before") if held is None else (held.since, held.owner)
                raise _busy_error(self._thread_id, *who, "pass a longer timeout, or another strategy")
        elif held is None:
            # It has ended, or its process has. What it has stored may be undone still.
            left, self._asked = self._asked, None
            if left is not None:
                return left
        elif self._asked is None or held.fence != self._asked.fence:
            self._asked, self._until = held, now + self._timeout
            await self._store.interrupt(held, f"{self._strategy!r} by {self._name}")
        elif is_late:
            self._asked = None
            return held
        await self._store.wait(self._thread_id, _LOOK if is_late else max(min(self._until - now, _LOOK), 0))
        return None

    async def leave(self) -> None:
        """Wait no longer."""
        if self._is_waiting:
            with CancelScope(shield=True), suppress(StorageError):  # then nobody knows of it in a while
                await self._store.leave_queue(self._thread_id)


def _busy_error(thread_id: str, since: float, name: str, why: str) -> ThreadBusyError:
    moment = datetime.fromtimestamp(since, timezone.utc).isoformat(" ", "seconds")
    seconds = max(time.time() - since, 0)
    return ThreadBusyError(
        f"thread_id {shown(thread_id)} has been held since {moment} ({seconds:.1f} seconds) by {name}; {why}"
    )
