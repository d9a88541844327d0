"""Processes that share a database: each does what it is told, and tells what came of it, one JSON a line.

`peers()` starts a process that has imported everything, of which all others are forks: they are there at once.
"""

import json
import operator
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, TypedDict

import anyio
import anyio.to_thread
from langgraph.graph import START, StateGraph

from async_saver import AsyncSaver, AsyncSaverError
from async_saver.bridge import bridge
from tests.build import checkpoint, config, put
from tests.workers import FORKS_WITH_THREADS

__all__ = ["Peer", "Peers", "Turns", "main", "peers", "turning"]

_PATIENCE = 30.0  # seconds after which a process that says nothing is taken to hang


# In the processes.


class Turns(TypedDict):
    """What was said."""

    turns: Annotated[list[str], operator.add]


def turning(saver: AsyncSaver) -> Any:
    """A graph that answers each turn."""

    async def answer(state: Turns) -> dict[str, Any]:
        return {"turns": [f"{state['turns'][-1]}!"]}

    builder = StateGraph(Turns)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


class _Worker:
    """Does what it is told; sessions have a thread, and the event loop that they are to run on, each for itself."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._talking = threading.Lock()
        self._orders: dict[str, SimpleQueue[dict[str, Any]]] = {}
        self.saver: Any = None

    def run(self) -> None:
        """Do what is told until nobody tells anything more."""
        with self._line.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                order = json.loads(line)
                job = order.pop("job")
                try:
                    getattr(self, order.pop("do"))(job, **order)
                except Exception as exc:
                    self._say_error(job, exc)

    def say(self, job: str, said: str, **more: Any) -> None:
        """Tell something of a job."""
        line = json.dumps({"job": job, "said": said, "at": time.time(), **more}) + "\n"
        with self._talking, suppress(BrokenPipeError):
            self._line.sendall(line.encode())

    def _say_error(self, job: str, exc: BaseException) -> None:
        self.say(job, "failed", error=type(exc).__name__, message=str(exc))

    # What it may be told.

    def use(self, job: str, url: str, **options: Any) -> None:
        """Use a database from now on."""
        self.saver = AsyncSaver.from_conn_string(url, **options)
        self.saver.setup()
        self.say(job, "done")

    def patch(self, job: str, **values: Any) -> None:
        """Have the keeper's module have other figures."""
        from async_saver.stores import postgres_keeper

        for name, value in values.items():
            assert hasattr(postgres_keeper, name)
            setattr(postgres_keeper, name, value)
        self.say(job, "done")

    def deafen(self, job: str) -> None:
        """Hear no notification from now on."""
        from async_saver.stores.postgres_keeper import Keeper

        def connect(keeper: Any) -> None:
            keeper._cursor, keeper._looks = keeper._server.cursor_apart(), 0.0

        Keeper._connect = connect  # type: ignore[method-assign]
        self.say(job, "done")

    def session(self, job: str, kind: str, thread_id: str, unwinding: str | None = None, **options: Any) -> None:
        """Be in a session, and do there what `tell` tells, until that is to leave; `unwinding` is put then."""
        self._orders[job] = SimpleQueue()

        def run() -> None:
            try:
                if kind == "sync":
                    self._in_session_sync(job, thread_id, **options)
                else:
                    anyio.run(lambda: self._in_session(job, thread_id, unwinding, **options), backend=kind)
                self.say(job, "left")
            except BaseException as exc:
                self._say_error(job, exc)

        threading.Thread(target=run, daemon=True).start()

    def tell(self, job: str, order: str, **values: Any) -> None:
        """Have something done in a session."""
        self._orders[job].put({"order": order, **values})

    def state(self, job: str, thread_id: str) -> None:
        """Say what a conversation holds."""
        found = [[one.checkpoint["id"], len(one.pending_writes or ())] for one in self.saver.list(config(thread_id))]
        self.say(job, "done", state=found[::-1])

    def threads(self, job: str) -> None:
        """Say which threads of stores there are."""
        names = [one.name for one in threading.enumerate() if one.name.startswith("async_saver PostgreSQL")]
        self.say(job, "done", names=sorted(names))

    def close(self, job: str) -> None:
        """Close the saver."""
        bridge.call(self.saver._shared.store.close)
        self.say(job, "done")

    def drop(self, job: str) -> None:
        """Refer to the saver no more."""
        import gc
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self.saver = None
            gc.collect()
        self.say(job, "done")

    def turns(self, job: str, name: str, turns: int, conversations: int, folder: str, at_once: int = 1) -> None:
        """Have turns in sessions on all of some conversations, and note who comes and goes."""

        async def run() -> None:
            graph, left = turning(self.saver), deque(range(turns))

            async def some() -> None:
                while left:
                    number = left.popleft()
                    thread_id = f"t{number % conversations}"
                    async with self.saver.session(thread_id) as session:
                        with _noted(Path(folder), thread_id, name, session.fence):
                            await graph.ainvoke({"turns": [f"{name} {number}"]}, session.config)

            async with anyio.create_task_group() as tasks:
                for _ in range(at_once):
                    tasks.start_soon(some)

        begun = time.perf_counter()
        anyio.run(run)
        self.say(job, "done", seconds=time.perf_counter() - begun)

    # Sessions.

    async def _in_session(self, job: str, thread_id: str, unwinding: str | None, **options: Any) -> None:
        orders = self._orders[job]
        async with self.saver.session(thread_id, **options) as session:
            self.say(job, "entered", fence=session.fence)
            try:
                while True:
                    order = await anyio.to_thread.run_sync(orders.get, abandon_on_cancel=True)
                    if order["order"] == "leave":
                        break
                    await self._try(job, thread_id, **order)
            finally:
                if unwinding is not None:
                    with anyio.CancelScope(shield=True):
                        await put(self.saver, unwinding, thread_id=thread_id)

    def _in_session_sync(self, job: str, thread_id: str, **options: Any) -> None:
        with self.saver.session(thread_id, **options) as session:
            self.say(job, "entered", fence=session.fence)
            while (order := self._orders[job].get())["order"] != "leave":
                if order["order"] == "put":
                    _put(self.saver, thread_id, order["at"])  # what it raises ends the session
                    self.say(job, "done")

    async def _try(self, job: str, thread_id: str, order: str, **values: Any) -> None:
        if order == "block":
            time.sleep(values["seconds"])  # noqa: ASYNC251  (as code does that should not)
            self.say(job, "done")
            return
        if order == "wait":
            self.say(job, "done")
            await anyio.sleep_forever()
        if order == "race":
            await self._race(job, thread_id, values["ids"])
            return
        try:
            await _WRITES[order](self.saver, thread_id, **values)
            self.say(job, "done")
        except AsyncSaverError as exc:
            self._say_error(job, exc)

    async def _race(self, job: str, thread_id: str, ids: list[str]) -> None:
        """Put one after the other until one is refused; say which were stored."""
        stored = []
        self.say(job, "racing")
        for one in ids:
            try:
                await put(self.saver, one, thread_id=thread_id)
            except AsyncSaverError as exc:
                self.say(job, "raced", stored=stored, error=type(exc).__name__)
                return
            stored.append(one)
        self.say(job, "raced", stored=stored, error=None)


def _put(saver: Any, thread_id: str, checkpoint_id: str) -> None:
    saver.put(config(thread_id), checkpoint(checkpoint_id, {"c": 1}, checkpoint_id), {}, {"c": checkpoint_id})


_WRITES: dict[str, Callable[..., Any]] = {
    "put": lambda saver, thread_id, at: put(saver, at, {"c": 1}, thread_id=thread_id, metadata={"run_id": f"run {at}"}),
    "put_writes": lambda saver, thread_id, at: saver.aput_writes(config(thread_id, at), [("c", 1)], "task"),
    "delete": lambda saver, thread_id: saver.adelete_thread(thread_id),
    "prune": lambda saver, thread_id: saver.aprune([thread_id]),
    "copy": lambda saver, thread_id, source: saver.acopy_thread(source, thread_id),
    "delete_for_runs": lambda saver, thread_id, at: saver.adelete_for_runs([f"run {at}"]),
}


@contextmanager
def _noted(folder: Path, thread_id: str, name: str, fence: int) -> Iterator[None]:
    """Note that somebody is on a conversation; that nobody else is there is known by a file that only one can make."""
    alone = folder / f"{thread_id} is taken"
    os.close(os.open(alone, os.O_CREAT | os.O_EXCL))
    with (folder / thread_id).open("ab", buffering=0) as log:
        log.write(f"{fence} {name}\n".encode())
    yield
    alone.unlink()


def main() -> None:
    """Be the process of which the others are forks; each has the socket that comes with the order."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that they are gone when they have ended
    control = socket.socket(fileno=int(sys.argv[1]))
    while files := socket.recv_fds(control, 1, 1)[1]:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            with socket.socket(fileno=files[0]) as line:
                _Worker(line).run()
            return
        os.close(files[0])
        control.sendall(b"%d\n" % child)
    control.close()


# In the tests.


class Peer:
    """One of the processes, as the tests see it.

    Attributes:
        pid: Of the process.
    """

    def __init__(self, line: socket.socket, pid: int) -> None:
        self.pid = pid
        self._line = line
        self._numbers = 0
        self._unheard: list[dict[str, Any]] = []
        self._said = b""

    def tell(self, do: str, job: str | None = None, **values: Any) -> str:
        """Tell it something; return the name of the job."""
        self._numbers += 1
        job = job or f"job {self._numbers}"
        self._line.sendall((json.dumps({"do": do, "job": job, **values}) + "\n").encode())
        return job

    def hear(self, job: str, *words: str, seconds: float = _PATIENCE) -> dict[str, Any]:
        """Wait until one of some words is said of a job; what is said of others is kept for later."""
        until = time.monotonic() + seconds
        while True:
            for number, one in enumerate(self._unheard):
                if one["job"] == job:
                    del self._unheard[number]
                    assert one["said"] in words, one
                    return one
            self._listen(until)

    def hears_nothing(self, job: str, seconds: float = 0.0) -> bool:
        """Tell whether nothing was said of a job, after some time."""
        with suppress(TimeoutError):
            self._listen(time.monotonic() + seconds)
        return not any(one["job"] == job for one in self._unheard)

    def do(self, do: str, **values: Any) -> dict[str, Any]:
        """Have something done, and wait until it is."""
        return self.hear(self.tell(do, **values), "done")

    # Sessions.

    def enter(self, thread_id: str = "t", *, kind: str = "asyncio", **options: Any) -> str:
        """Have a session be entered; return its name when it is."""
        job = self.come(thread_id, kind=kind, **options)
        self.hear(job, "entered")
        return job

    def come(self, thread_id: str = "t", *, kind: str = "asyncio", **options: Any) -> str:
        """Have a session be entered; return its name at once."""
        return self.tell("session", kind=kind, thread_id=thread_id, **options)

    def order(self, job: str, order: str, **values: Any) -> dict[str, Any]:
        """Have something done in a session; return what came of it."""
        self.tell("tell", job, order=order, **values)
        return self.hear(job, "done", "failed")

    def leave(self, job: str) -> dict[str, Any]:
        """Have a session be left; return what came of that."""
        self.tell("tell", job, order="leave")
        return self.hear(job, "left", "failed")

    # Ends.

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as nothing else does; return when it is gone."""
        self.send(signal.SIGKILL)
        self.ended()

    def ended(self) -> None:
        """Wait until it has ended."""
        self._line.settimeout(_PATIENCE)
        with suppress(ConnectionResetError):
            while self._line.recv(65536):
                pass

    def let_go(self) -> None:
        """Tell it nothing more, so that it ends by itself."""
        self._line.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End it if it has not ended."""
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self._line.close()

    def _listen(self, until: float) -> None:
        while b"\n" not in self._said:
            self._line.settimeout(max(until - time.monotonic(), 0.001))
            more = self._line.recv(65536)
            assert more, f"process {self.pid} has ended; it had said {self._unheard}"
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        self._unheard.append(json.loads(line))


class Peers:
    """Makes processes, and ends them all."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        options = ["-W", "error", "-W", FORKS_WITH_THREADS]
        command = [sys.executable, *options, "-c", "from tests.postgres_worker import main; main()"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
            )
        self._answers = self._control.makefile("r")
        self._made: list[Peer] = []

    def new(self, url: str | None = None, *, deaf: bool = False, **options: Any) -> Peer:
        """Start a process that uses a database."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"!"], [theirs.fileno()])
        peer = Peer(ours, int(self._answers.readline()))
        self._made.append(peer)
        if deaf:
            peer.do("deafen")
        if url is not None:
            peer.do("use", url=url, **options)
        return peer

    def end_all(self) -> None:
        """End the processes that were made."""
        while self._made:
            self._made.pop().close()

    def close(self) -> None:
        """End everything."""
        self.end_all()
        self._answers.close()
        self._control.close()
        self._process.wait(_PATIENCE)


@contextmanager
def peers() -> Iterator[Peers]:
    """Hand out what makes processes; in the end none is left."""
    made = Peers()
    try:
        yield made
    finally:
        made.close()
