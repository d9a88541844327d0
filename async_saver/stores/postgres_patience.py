"""How long a `PostgresStore` waits for an answer of its server: for ever while that is at work on it, not otherwise.

psycopg waits on a connection until something comes, and of a network that has stopped to forward nothing ever does. So
connections that are used here wait as is said here: where there was no answer for a while, the server is asked by
another connection whether it is still at work for the first one.
"""

import os
import select
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Literal, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.waiting import Ready, Wait

__all__ = ["UnansweredError", "be_impatient", "be_patient", "has_ended"]

_T = TypeVar("_T")

_Gen = Generator[Wait, Ready | int, _T]

_PATIENCE = 10.0  # seconds without an answer, before the server is asked by another connection
_ASKED = 5  # seconds that this may take
_LONGEST_PAUSE = 60.0  # seconds between two times that it is asked
_IN_FLIGHT = 1.0  # seconds that an answer may take to come which the server says it has given
_UNSEEN = 300.0  # seconds without an answer where the server cannot tell, as behind a pooler
_STATE = "SELECT state FROM pg_stat_activity WHERE pid = %s"
_READY = [Ready.NONE, Ready.R, Ready.W, Ready.RW]


class UnansweredError(psycopg.OperationalError):
    """Nothing came over a connection, and nothing will."""


def be_patient(connection: "psycopg.Connection[Any]", given_up: Callable[[int], object] = lambda pid: None) -> None:
    """Have a connection be waited for as is said here, from now on.

    Args:
        connection: The connection.
        given_up: Is told the server's process, if it is given up.
    """
    wait: Callable[..., Any] = _Patient(connection, given_up).wait
    vars(connection)["wait"] = wait


def be_impatient(connection: "psycopg.Connection[Any]") -> None:
    """Have a connection be waited for as it was before."""
    vars(connection).pop("wait", None)


def has_ended(connection: "psycopg.Connection[Any]") -> bool:
    """Tell whether a connection on which nothing is expected has been ended by the other side, without asking it."""
    pgconn = connection.pgconn
    try:
        while _wait_for(pgconn.socket, Ready.R, 0):
            pgconn.consume_input()
    except psycopg.Error:
        return True
    return connection.closed


class _Patient:
    """Waits for what a connection is to give, in place of the connection's own method."""

    def __init__(
        self,
        connection: "psycopg.Connection[Any]",
        given_up: Callable[[int], object] = lambda pid: None,
        patience: float | None = None,
    ) -> None:
        self._connection = connection
        self._given_up = given_up
        self._patience = patience

    def wait(self, gen: "_Gen[_T]", *args: Any, **kwargs: Any) -> _T:
        """Do what psycopg's own method does, unless it is told for how long."""
        if args or kwargs:
            return self._connection.__class__.wait(self._connection, gen, *args, **kwargs)
        fileno = self._connection.pgconn.socket
        try:
            wanted = next(gen)
            while True:
                ready = _wait_for(fileno, wanted, self._patience or _PATIENCE)
                wanted = gen.send(_READY[ready or self._look(fileno, wanted)])
        except StopIteration as exc:
            result: _T = exc.value
            return result

    def _look(self, fileno: int, wanted: int) -> int:
        """Return for what a connection is ready at last, unless nothing will come any more."""
        if self._patience is not None:
            self._end(f"no answer for {self._patience:g} s")
        began, pause = time.monotonic() - _PATIENCE, _PATIENCE
        while (state := _state_of(self._connection)) != "gone":
            if ready := _wait_for(fileno, wanted, _IN_FLIGHT if state == "idle" else pause):
                return ready
            pause = min(2 * pause, _LONGEST_PAUSE)
            if state == "idle":
                self._end("the server has answered, and that has not come")
            if state == "unknown" and time.monotonic() - began > _UNSEEN:
                with suppress(psycopg.Error):
                    self._connection.cancel_safe(timeout=_ASKED)
                self._end(f"no answer for {_UNSEEN:g} s")
        if ready := _wait_for(fileno, wanted, 0):
            return ready
        self._end(f"no answer for {_PATIENCE:g} s, nor to another connection")
        return 0

    def _end(self, why: str) -> None:
        pid = self._connection.info.backend_pid
        self._connection.pgconn.finish()
        self._given_up(pid)
        raise UnansweredError(why)


def _state_of(connection: "psycopg.Connection[Any]") -> Literal["active", "idle", "gone", "unknown"]:
    """Ask the server what it does for a connection; "gone" if it does not answer at all."""
    pgconn = connection.pgconn
    options: dict[str, Any] = {
        one.keyword.decode(): one.val.decode() for one in pgconn.info if one.val is not None and one.val != b""
    }
    for name in ("target_session_attrs", "load_balance_hosts"):
        options.pop(name, None)
    # The same server, whatever else the names may stand for by now.
    options.update(host=connection.info.host, port=connection.info.port, connect_timeout=_ASKED)
    options.pop("hostaddr", None)
    if connection.info.hostaddr:
        options["hostaddr"] = connection.info.hostaddr
    try:
        asking = psycopg.connect(make_conninfo(**options), autocommit=True)
    except psycopg.errors.ConnectionTimeout:
        return "gone"
    except psycopg.Error:
        return "unknown"  # it may be there, and take no more connections
    try:
        vars(asking)["wait"] = _Patient(asking, patience=_ASKED).wait
        row = asking.execute(_STATE, (connection.info.backend_pid,), prepare=False).fetchone()
    except psycopg.Error:
        return "unknown"  # as a pooler has no connection to the server left, or this one has stalled just now
    finally:
        asking.close()
    state = None if row is None else row[0]
    return "active" if state == "active" else "idle" if state is not None and state.startswith("idle") else "unknown"


def _wait_for(fileno: int, wanted: int, seconds: float) -> int:
    """Wait until a socket is ready for what is wanted, as psycopg numbers it; return for what it is, or 0."""
    if os.name == "posix":
        poll = select.poll()
        poll.register(fileno, (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0))
        events = poll.poll(seconds * 1000)
        if not events:
            return 0
        event = events[0][1]
        ended = event & (select.POLLERR | select.POLLHUP | select.POLLNVAL)
        return wanted if ended else (1 if event & select.POLLIN else 0) | (2 if event & select.POLLOUT else 0)
    reads, writes, _ = select.select([fileno] if wanted & 1 else [], [fileno] if wanted & 2 else [], [], seconds)
    return (1 if reads else 0) | (2 if writes else 0)
