"""What keeps the leases of one process in PostgreSQL, in a worker thread that waits for no event loop."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from logging import getLogger
from selectors import EVENT_READ, DefaultSelector
from socket import socket, socketpair
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

import psycopg
from anyio import move_on_after, sleep

from async_saver.errors import AsyncSaverError
from async_saver.guard import guard
from async_saver.records import Lease
from async_saver.stores.commits import Waiter, wake
from async_saver.stores.postgres_leases import HeldLease, Key, Release, asked, forget, key_of, renew
from async_saver.stores.postgres_server import Cursor, Server, is_lost

__all__ = ["Keeper"]

_log = getLogger(__name__)
_T = TypeVar("_T")

_RENEW = 10.0  # seconds between two times that leases are renewed
_LOOK = 1.0  # and that the server is asked what it may not have told
_LOOK_UNTOLD = 0.2  # seconds that who waits for a conversation waits where it tells nothing
_PLACE_LASTS = 3.0  # seconds after which a place in a queue is given up that nobody waits in
_REFRESH = 1.0  # seconds after which a place is asked for again
_IDLE = 10.0  # seconds after which the thread ends that has nothing to keep
_MOMENT = 0.005  # seconds between two looks whether the thread has ended
_FORGET = 3600.0  # seconds between two times that old leases are forgotten
_APART = 60.0  # seconds after which to connect again where another error came than that of a lost connection
_CONNECT = 2  # seconds for each host: leases last for 30
_SETTINGS = ("SET lock_timeout TO '2s'", "SET default_transaction_isolation TO 'read committed'")


class _Place:
    """A place in the queue of a conversation.

    Attributes:
        asked: When it was last asked for.
        used: When somebody last waited in it.
        is_free: Whether the conversation may be free.
        waiter: Who waits in it now.
    """

    __slots__ = ("asked", "is_free", "used", "waiter")

    def __init__(self) -> None:
        self.asked: float = time.monotonic()
        self.used: float = self.asked
        self.is_free: bool = True  # it may have become so before there was the place
        self.waiter: Waiter | None = None


class Keeper:
    """Renews the leases that somebody in this process has, and hears of those who end theirs or want these.

    It has a connection of its own, so that it waits for none: while there are leases, or somebody waits for one. Where
    that cannot be had it uses those of the store. The guard protects what callers and the thread share.

    Args:
        server: Where they are.

    Attributes:
        leases: Those that somebody has.
        name: Under which this process waits.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.forget()

    def forget(self) -> None:
        """Begin anew without the thread, and without leases: in a fork they are the parent's."""
        _inherited.append(getattr(self, "_cursor", None))
        self._of_parent: frozenset[Key] = getattr(self, "_of_parent", frozenset()).union(getattr(self, "_given", ()))
        self.leases: WeakValueDictionary[Key, HeldLease] = WeakValueDictionary()
        self.name: str = uuid4().hex
        self._given: dict[Key, Lease] = {}  # what leases were, also those that were dropped
        self._places: dict[str, _Place] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._ends = False
        self._rope: socket | None = None  # wakes the thread
        self._cursor: Cursor | None = None
        self._hears = False  # whether the server tells what happens
        self._is_told = False  # whether there is something to hear
        self._connects = self._renews = self._looks = self._forgets = 0.0  # when to do so next

    # For callers.

    def add(self, lease: "HeldLease | None") -> None:
        """Keep a lease, for as long as somebody refers to it."""
        if lease is not None:
            with guard:
                self.leases[key_of(lease)] = lease
                self._given[key_of(lease)] = Lease(lease.thread_id, lease.fence, lease.owner, lease.since)
                self._places.pop(lease.thread_id, None)
            self._start()

    def remove(self, lease: Lease) -> None:
        """Keep a lease no longer."""
        with guard:
            self._given.pop(key_of(lease), None)
            self.leases.pop(key_of(lease), None)

    def look_after(self, lease: Lease | None) -> None:
        """See to it that a lease is kept that is in use, also after `end`."""
        if lease is not None and self._thread is None and self._given:
            self._start()

    def is_of_parent(self, lease: Lease | None) -> bool:
        """Tell whether a lease was held by the process of which this is a fork, which keeps it."""
        return lease is not None and key_of(lease) in self._of_parent

    def place(self, thread_id: str) -> "tuple[_Place, bool]":
        """Return this process's place in a conversation's queue; tell whether it is to be asked for, or again."""
        now = time.monotonic()
        with guard:
            place = self._places.get(thread_id)
            is_due = place is None or now >= place.asked + _REFRESH
            if place is None:
                place = self._places[thread_id] = _Place()
            place.used = now
            if is_due:
                place.asked = now
        self._start()
        return place, is_due

    async def wait(self, place: "_Place", seconds: float) -> None:
        """Wait in a place until the conversation may be free, for some seconds at most."""
        with guard:
            waiter = None if place.is_free else Waiter()
            place.waiter, place.is_free = waiter, False
        if waiter is not None:
            with move_on_after(min(seconds, _LOOK if self._hears else _LOOK_UNTOLD)):
                await waiter.woken

    def give_up(self, thread_id: str) -> None:
        """Wait in a conversation's queue no longer."""
        with guard:
            self._places.pop(thread_id, None)

    def leave(self) -> threading.Thread | None:
        """Have the thread end, from anywhere, without waiting for it; return it if there is one."""
        with self._starting:
            thread, self._ends = self._thread, self._thread is not None
            if self._rope is not None:
                with suppress(OSError):
                    self._rope.send(b"!")
        return thread

    async def end(self) -> None:
        """Have the thread end; return when it has, or goes on as there is more to keep."""
        thread = self.leave()

        def is_ending() -> bool:
            return thread is not None and thread.is_alive() and (self._ends or self._thread is not thread)

        while is_ending():  # noqa: ASYNC110  (an event of a loop is none of a thread's)
            await sleep(_MOMENT)

    def _start(self) -> None:
        if _is_there(self._thread) and not self._ends:
            return
        with self._starting, suppress(RuntimeError):  # the interpreter ends, and starts no more threads
            self._ends = False
            if not _is_there(self._thread):
                thread = threading.Thread(target=self._run, name="async_saver PostgreSQL leases", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except BaseException:
                    self._thread = None
                    raise

    # In the worker thread.

    def _run(self) -> None:
        bell, rope = socketpair()
        rope.setblocking(False)
        with bell, rope, DefaultSelector() as selector:
            selector.register(bell, EVENT_READ)
            self._rope = rope
            until = time.monotonic() + _IDLE
            while not self._has_ended(until):
                try:
                    self._keep()
                except (psycopg.Error, AsyncSaverError) as exc:
                    if not is_lost(exc):
                        self._connects = time.monotonic() + _APART  # what it lacks, those of the store may have
                    self._disconnect()  # and again, by the next one
                except Exception:
                    _log.exception("what was to be done for the leases of this process has failed, and goes on")
                if self._given or self._places:
                    until = time.monotonic() + _IDLE
                self._rest(selector, bell)
        self._disconnect()

    def _has_ended(self, until: float) -> bool:
        """Be no longer there, if that is wanted or there was nothing to do for long."""
        with self._starting:
            if not self._ends and (time.monotonic() < until or self._given or self._places):
                return False
            thread, self._thread = self._thread, None
            if not self._ends and (self._given or self._places):
                self._thread = thread  # who has added something has seen that it is there
                return False
            self._rope = None
            return True

    def _rest(self, selector: DefaultSelector, bell: socket) -> None:
        """Wait until something happens, or is to be done."""
        connection = None if self._cursor is None else self._cursor.connection
        if connection is not None:
            selector.register(connection.fileno(), EVENT_READ)
        try:
            found = selector.select(_LOOK)
        finally:
            if connection is not None:
                selector.unregister(connection.fileno())
        for key, _ in found:
            if key.fileobj is bell:
                bell.recv(64)  # else it would ring on, where there is something to keep after all
            else:
                self._is_told = True

    def _keep(self) -> None:
        now = time.monotonic()
        if self._cursor is None and now >= self._connects:
            self._connects = now + _LOOK
            try:
                self._connect()
            except (psycopg.Error, AsyncSaverError):
                self._disconnect()  # what is in it; the store's connections have to do
        if self._is_told and self._cursor is not None:
            self._listen(self._cursor.connection)
        with guard:
            leases = [*self.leases.values()]
            dropped = [one for key, one in self._given.items() if key not in self.leases]
            leases = [one for one in leases if not one.is_gone()]  # they run out
            for thread_id in [one for one, place in self._places.items() if now > place.used + _PLACE_LASTS]:
                del self._places[thread_id]
        if now >= self._renews:
            held = self._use(partial(renew, leases=leases)) if leases else {}
            self._renews = now + (_RENEW if all(held.values()) else _LOOK)
            for lease in leases:
                if key_of(lease) not in held:
                    self._tell(lease, "another one, which has taken its place")
        if now >= self._looks:
            self._looks = now + (_RENEW if self._hears else _LOOK)  # before: what is told meanwhile is newer
            by = self._use(partial(asked, leases=leases))
            for lease in leases:
                if key_of(lease) in by:
                    self._tell(lease, by[key_of(lease)])
        for one in dropped:
            with suppress(psycopg.errors.LockNotAvailable):  # the next time
                self._use(Release(self._server, one, delete=False))
                self.remove(one)
        if now >= self._forgets:
            if self._forgets:
                self._use(forget)
            self._forgets = now + _FORGET

    def _tell(self, lease: "HeldLease", by: str) -> None:
        """Tell the holder of a lease, once, that it is to end."""
        if not lease.is_told and lease.on_interrupt is not None:
            lease.is_told = True
            lease.on_interrupt(by)

    def _use(self, do: "Callable[[Cursor], _T]") -> _T:
        if self._cursor is not None:
            return do(self._cursor)
        with self._server.cursor(time.monotonic() + _LOOK) as cursor:
            return do(cursor)

    def _connect(self) -> None:
        self._cursor = cursor = self._server.cursor_apart(connect_timeout=_CONNECT)
        if not self._server.is_pooled and self._server.channel is not None:
            for setting in _SETTINGS:
                cursor.execute(setting)
            cursor.connection.add_notify_handler(lambda one: self._hear(one.payload))
            cursor.execute(f"LISTEN {self._server.channel}".encode())
            self._hears = True
        self._looks = 0.0  # what was said before

    def _listen(self, connection: "psycopg.Connection[Any]") -> None:
        """Hear what the server has told, without asking it anything."""
        self._is_told = False
        connection.pgconn.consume_input()
        while (notify := connection.pgconn.notifies()) is not None:
            self._hear(notify.extra.decode())

    def _hear(self, told: str) -> None:
        kind, what = told[:1], told[1:]
        if kind != "f":
            self._looks = 0.0  # somebody asks for a lease: who, and for which, a statement tells
            return
        with guard:
            place = self._places.get(what)
            if place is None:
                return
            place.is_free, waiter = True, place.waiter
        if waiter is not None:
            wake([waiter])

    def _disconnect(self) -> None:
        cursor, self._cursor, self._hears = self._cursor, None, False
        if cursor is not None:
            with suppress(psycopg.Error):
                cursor.connection.close()


def _is_there(thread: threading.Thread | None) -> bool:
    """Tell whether a thread runs, or is being started."""
    return thread is not None and (thread.ident is None or thread.is_alive())


_inherited: list[object] = []  # cursors whose connections are the parent's: to collect them may end those
