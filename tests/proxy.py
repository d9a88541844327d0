"""A proxy between a store and its server that fails in the ways of networks: it stalls, drops, refuses."""

import selectors
import socket
import threading
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self

__all__ = ["Proxy"]

_MOST = 65_536


class Proxy:
    """Forwards what comes to its port to another one, from a worker thread of its own, until its block ends.

    While it stalls it takes what is sent, so that the sender's system knows of nothing, and keeps it; connections are
    taken too. Once it goes on, all that arrives, in order.

    Args:
        port: Where to forward to, on this machine.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._asked: list[Callable[[], None]] = []
        self._ours, self._theirs = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._theirs, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._kept: dict[socket.socket, bytearray] = {}
        self._gone: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self._stalls = self._refuses = self._ends = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ask(self._end)
        self._thread.join()

    def stall(self) -> None:
        """Forward nothing from now on."""
        self._ask(lambda: setattr(self, "_stalls", True))

    def freeze(self) -> None:
        """Forward nothing any more over the connections that there are; those that come are well."""
        self._ask(lambda: self._frozen.update(self._peers))

    def go_on(self) -> None:
        """Forward again, first what was kept, and take connections."""
        self._ask(self._go_on)

    def drop(self) -> None:
        """End all connections that there are, with what was kept for them."""
        self._ask(self._drop)

    def refuse(self) -> None:
        """End all connections, and each that comes from now on."""
        self._ask(self._refuse)

    def _ask(self, what: Callable[[], None]) -> None:
        """Have the worker thread do something, and return once it has."""
        done = threading.Event()

        def do() -> None:
            what()
            done.set()

        self._asked.append(do)
        self._ours.send(b".")
        assert done.wait(10), "the proxy hangs"

    # In the worker thread.

    def _run(self) -> None:
        while not self._ends:
            for key, events in self._selector.select():
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if one is self._theirs:
                    for _ in one.recv(64):
                        self._asked.pop(0)()
                elif one is self._listener:
                    self._accept()
                elif one in self._peers:
                    if events & selectors.EVENT_WRITE:
                        self._flush(one)
                    if events & selectors.EVENT_READ and one in self._peers:
                        self._take(one)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # who called has hung up
        if self._refuses:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)
            self._peers[one] = other
            self._kept[one] = bytearray()
            self._selector.register(one, selectors.EVENT_READ)

    def _take(self, one: socket.socket) -> None:
        """Take what one side has sent."""
        try:
            data = one.recv(_MOST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            other = self._peers[one]
            self._kept[other] += data
            self._flush(other)
        elif self._stalls or one in self._frozen:
            self._selector.unregister(one)  # the other side does not see yet that it has hung up
            self._gone.add(one)
        else:
            self._close(one)

    def _flush(self, one: socket.socket) -> None:
        """Send what is kept for one side, as far as it takes it."""
        if self._stalls or one in self._frozen:
            return
        kept = self._kept[one]
        try:
            del kept[: one.send(kept)]
        except BlockingIOError:
            pass
        except OSError:
            self._close(one)
            return
        if one not in self._gone:
            self._selector.modify(one, selectors.EVENT_READ | (selectors.EVENT_WRITE if kept else 0))

    def _go_on(self) -> None:
        self._stalls = self._refuses = False
        self._frozen.clear()
        for one in [*self._kept]:
            if one in self._kept:
                self._flush(one)
        for one in [*self._gone]:
            self._close(one)

    def _close(self, one: socket.socket) -> None:
        for each in (one, self._peers.get(one)):
            if each is not None and each in self._peers:
                if each not in self._gone:
                    self._selector.unregister(each)
                self._gone.discard(each)
                self._frozen.discard(each)
                del self._peers[each], self._kept[each]
                each.close()

    def _drop(self) -> None:
        for one in [*self._peers]:
            self._close(one)

    def _refuse(self) -> None:
        self._refuses = True
        self._drop()

    def _end(self) -> None:
        self._ends = True
        self._drop()
        self._selector.close()
        for one in (self._listener, self._theirs, self._ours):
            one.close()
