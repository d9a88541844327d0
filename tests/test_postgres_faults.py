"""What `PostgresStore` survives, on real servers, under load: what was acknowledged is there, and nothing is torn.

Each test under load prints its row of the fault table (`pytest -s`). With the environment variable
`ASYNC_SAVER_FAULTS=all` there are the long ones, too: a stall of a minute, and 1,000 connections that end, not 25.
"""

import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, to_thread
from anyio.lowlevel import checkpoint as let_others_run

from async_saver import AsyncSaver, AsyncSaverError, Retention, SessionError, StorageBusyError, StorageError
from tests.build import all_of, config, listed, put
from tests.postgres import PASSWORD, Server, needed, new_database
from tests.proxy import Proxy
from tests.sqlite_worker import Contents, Program

if not find_spec("psycopg"):
    pytest.skip("there is no psycopg", allow_module_level=True)

import psycopg
from psycopg_pool import ConnectionPool

from async_saver.stores import postgres_patience, postgres_server
from async_saver.stores.postgres import PostgresStore
from async_saver.stores.postgres_writer import lock, lock_of
from tests.test_postgres import admin, opened, rows, store_of, until, warm, workers

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

ALL = os.environ.get("ASYNC_SAVER_FAULTS") == "all"
TASKS = 16
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def other_server() -> Iterator[Server]:
    """A server that may be stopped."""
    needed()
    one = Server()
    yield one
    one.close()


@pytest.fixture
def unsteady(other_server: Server) -> Iterator[str]:
    """A database of a server that may be stopped."""
    other_server.start()
    with new_database(other_server) as url:
        yield url


@pytest.fixture
def proxy(unsteady: str, other_server: Server) -> Iterator[Proxy]:
    """A proxy to that server."""
    with Proxy(other_server.port) as one:
        yield one


@pytest.fixture
def through(proxy: Proxy, unsteady: str, other_server: Server) -> str:
    """The URL of the database, through the proxy."""
    return unsteady.replace(f":{other_server.port}/", f":{proxy.port}/")


async def happens(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for what comes about elsewhere, while tasks go on."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.005)


class Load:
    """Tasks that call for everything, each on conversations of its own, and know what is stored.

    A call that has come to an error has stored all or nothing: which, is looked at when the store answers again.

    Attributes:
        acknowledged: How many calls that write have returned.
        errors: What calls have come to otherwise.
        of_copies: How many of these were of copies, which are not tried again once their commit was called for.
        unsettled: How many of these have stored nothing.
        torn: What has been found that is neither.
        longest: How many seconds a call took at most.
        has_ended: Whether no task begins another call.
        sessions: How many sessions have stored something.
        again_after: How many seconds after the end of the fault all of them had a call acknowledged.
    """

    def __init__(self, saver: AsyncSaver, seed: str, tasks: int = TASKS) -> None:
        self.acknowledged = 0
        self.errors: list[AsyncSaverError] = []
        self.of_copies = 0
        self.unsettled = 0
        self.torn: list[str] = []
        self.longest = 0.0
        self.again_after = 0.0
        self.reads = 0
        self._saver = saver
        self._programs = [Program(f"{seed} {number}") for number in range(tasks)]
        self._latest = [0.0] * tasks
        self.has_ended = False
        self.sessions = 0

    async def _go_on(self, number: int) -> None:
        program = self._programs[number]
        while not self.has_ended:
            before = {
                name: {one: (values, [*writes]) for one, (values, writes) in held.items()}
                for name, held in program.held.items()
            }
            try:
                began = time.monotonic()
                try:
                    await program.step()(self._saver)
                finally:
                    self.longest = max(self.longest, time.monotonic() - began)
                self.acknowledged += 1
                self._latest[number] = time.monotonic()
            except StorageError as exc:
                self.errors.append(exc)
                self.of_copies += any(" copy " in name for name in program.held.keys() - before.keys())
                await self._settle(program, before)
            await self._look(program)
            await self._forget_copies(program)

    async def _forget_copies(self, program: Program) -> None:
        """Have no more than two copies of a conversation, as these are never written to."""
        for name in [one for one in program.held if one != program.name][:-2]:
            with suppress(StorageError):
                await self._saver.adelete_thread(name)
                del program.held[name]

    async def _look(self, program: Program) -> None:
        """Read the latest checkpoint, which has to be what was stored."""
        began = time.monotonic()
        try:
            found = await self._saver.aget_tuple(config(program.name))
        except StorageError as exc:
            self.errors.append(exc)
            return
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
        held = program.held.get(program.name)
        expected = held[max(held)][0] if held else None
        self.reads += 1
        if (found.checkpoint["channel_values"] if found else None) != expected:
            self.torn.append(f"read {program.name}")

    async def _settle(self, program: Program, before: Contents) -> None:
        """Find out whether a call has stored what it was to store."""
        found = await self._found({*before, *program.held})
        if found == _full(program.held):
            return
        self.unsettled += 1
        if found != _full(before):
            self.torn.append(program.name)
        program.held = before

    async def _found(self, names: set[str]) -> Contents:
        """Read what some conversations hold, however long the store does not answer."""
        while True:
            try:
                return {name: held for name in names if (held := await self._held(name))}
            except StorageError:
                await let_others_run()

    async def _held(self, name: str) -> dict[str, Any]:
        found = await all_of(self._saver.alist(config(name, ns=None)))
        return {one.checkpoint["id"]: (one.checkpoint["channel_values"], one.pending_writes or []) for one in found}

    async def calls(self, number: int, seconds: float = 60) -> None:
        """Wait until so many more calls of each task have been acknowledged."""
        for _ in range(number):
            await self.works_again(time.monotonic(), seconds)

    async def again(self) -> None:
        """Wait until each task has had a call acknowledged from now on, and note how long that took."""
        self.again_after = await self.works_again(time.monotonic())

    async def works_again(self, since: float, seconds: float = 60) -> float:
        """Wait until a call of each task was acknowledged since a time; return how long after that."""
        await happens(lambda: min(self._latest) >= since, seconds)
        return max(self._latest) - since

    async def check(self) -> list[str]:
        """Return in which conversations there is not what was acknowledged."""
        wrong = []
        for program in self._programs:
            names = {one for one in await all_of(self._saver.athread_ids()) if one.split(" copy ")[0] == program.name}
            if await self._found(names | {*program.held}) != _full(program.held):
                wrong.append(program.name)
        return wrong

    def end(self) -> None:
        """Have each task end after its call."""
        self.has_ended = True


def _full(contents: Contents) -> Contents:
    return {name: held for name, held in contents.items() if held}


@asynccontextmanager
async def loaded(saver: AsyncSaver, fault: str, tasks: int = TASKS) -> AsyncIterator[Load]:
    """Have a saver under load; in the end all has to be there that was acknowledged."""
    load = Load(saver, fault, tasks)
    async with create_task_group() as group:
        for number in range(tasks):
            group.start_soon(load._go_on, number)
        await load.calls(2)
        yield load
        load.end()
    lost = await load.check()
    kinds = {f"{type(one).__name__}: {str(one).partition(': ')[2]}" for one in load.errors}
    sys.stdout.write(
        f"\n| {fault} | {load.acknowledged} acknowledged, {load.reads} read | {len(lost)} lost | {len(load.torn)} torn"
        f" | {len(load.errors)} errors, {load.unsettled} of them had stored nothing"
        f" | the longest call {load.longest:.1f} s | {load.again_after:.2f} s | {sorted(kinds)[:4]}\n"
    )
    assert not lost
    assert not load.torn
    assert all(PASSWORD not in str(one) for one in load.errors)


# A network that stalls, drops, refuses.


@contextmanager
def pool_on(url: str, **options: Any) -> Iterator[Any]:
    """A pool of the user's."""
    with ConnectionPool(url, open=False, **{"min_size": 1, "max_size": 4, **options}) as pool:
        yield pool


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server be asked sooner whether it is still at work."""
    monkeypatch.setattr(postgres_patience, "_PATIENCE", 0.5)
    monkeypatch.setattr(postgres_patience, "_ASKED", 2)
    monkeypatch.setattr(postgres_patience, "_IN_FLIGHT", 0.2)
    monkeypatch.setattr(postgres_server, "_WHY", 2)


@pytest.mark.parametrize("seconds", [5, *([60] if ALL else [])])
async def test_a_network_that_stalls_for_a_while(through: str, proxy: Proxy, seconds: int) -> None:
    """For five seconds calls wait; for a minute they end in time. Then the same store works at once."""
    async with opened(through) as saver, loaded(saver, f"stalled for {seconds} s") as load:
        proxy.stall()
        await anyio.sleep(seconds)
        proxy.go_on()
        await load.again()
    if seconds == 5:
        assert not load.errors
    assert load.longest < 45


@pytest.mark.usefixtures("hurried")
async def test_a_network_that_stalls_for_long(through: str, proxy: Proxy) -> None:
    """Every call, those that were made meanwhile too, ends by the time that is documented, and says why."""
    with pool_on(through, timeout=1, kwargs={"connect_timeout": 2}) as pool:
        async with AsyncExitStack() as stack:
            loads = []
            for name, where in (("its own", through), ("the user's", pool)):
                options = {} if where is pool else {"pool_kwargs": {"timeout": 1}}
                saver = await stack.enter_async_context(opened(where, **options))
                loads.append(await stack.enter_async_context(loaded(saver, f"stalled for long, pool: {name}")))
            proxy.stall()
            await anyio.sleep(5)
            proxy.go_on()
            for load in loads:
                await load.again()
    for load in loads:
        assert load.errors
        # The pool's timeout, or what a statement takes that begins just before it is over; and to find out why.
        assert load.longest < 1 + 0.5 + 2 + 2 + 1.5
        assert all("127.0.0.1" in str(one) and "call again" in str(one) for one in load.errors)


@pytest.mark.usefixtures("hurried")
async def test_calls_behind_one_that_waits_end_with_it(through: str, proxy: Proxy) -> None:
    """A thousand calls while nothing is forwarded take no longer than one, of whichever kind."""
    async with opened(through, pool_kwargs={"timeout": 1}) as saver:
        await put(saver, "1")
        times: list[float] = []

        async def fail(call: Callable[[], Any]) -> None:
            began = time.monotonic()
            with pytest.raises(StorageError):
                await call()
            times.append(time.monotonic() - began)

        proxy.stall()
        async with create_task_group() as group:
            for number in range(250):
                group.start_soon(fail, partial(put, saver, "2", thread_id=f"{number}"))
                group.start_soon(fail, partial(saver.adelete_thread, f"{number}"))
                group.start_soon(fail, partial(saver.aget_tuple, config(f"{number}")))
                group.start_soon(fail, saver.acount)
        assert max(times) < 1 + 0.5 + 2 + 2 + 2
        proxy.go_on()
        await put(saver, "3")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("pool", [False, True], ids=["its own", "the user's"])
async def test_a_network_that_forgets_its_connections(
    through: str, proxy: Proxy, other_server: Server, pool: bool
) -> None:
    """As routers do with those that idle: the first call finds out that nothing comes, and for the others, too."""
    with pool_on(through) if pool else nullcontext(through) as where:
        async with opened(where) as saver:
            await warm(saver)
            assert len(connections_of(through, other_server)) >= 3
            proxy.freeze()
            with anyio.fail_after(1.8):
                await put(saver, "2")
            began = time.monotonic()
            for number in range(6):
                await put(saver, f"{number + 3}")
                await saver.aget_tuple(config())
            assert time.monotonic() - began < 0.6


@pytest.mark.usefixtures("hurried")
async def test_a_connection_that_stalls_as_it_is_made(through: str, proxy: Proxy) -> None:
    """The pool's thread, which makes them one after the other, goes on with the next one."""
    made = []

    def configure(connection: Any) -> None:
        made.append(connection.info.backend_pid)
        if len(made) == 1:
            proxy.freeze()
        connection.execute("SELECT 1")

    async with opened(through, pool_kwargs={"configure": configure}) as saver:
        with anyio.fail_after(10):
            await put(saver, "1")
        assert len({*made}) > 1


async def test_a_network_that_has_stalled_from_the_first(through: str, proxy: Proxy) -> None:
    """Calls that come first wait for one attempt to connect, all together; then the same store works."""
    async with opened(f"{through}?connect_timeout=2") as saver:
        proxy.stall()
        began = time.monotonic()

        async def fail(call: Callable[[], Any]) -> None:
            with pytest.raises(StorageError, match="cannot be reached"):
                await call()

        async with create_task_group() as group:
            for call in (saver.acount, partial(put, saver, "1"), partial(saver.aget_tuple, config())):
                group.start_soon(fail, call)
        assert time.monotonic() - began < 3.5
        proxy.go_on()
        await put(saver, "1")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("pool", [False, True], ids=["its own", "the user's"])
async def test_what_takes_long_is_not_ended(through: str, other_server: Server, pool: bool) -> None:
    """As long as the server is at work on it, or waits for a lock, a call waits for it."""
    with pool_on(through) if pool else nullcontext(through) as where:
        async with opened(where) as saver:
            await put(saver, "1")
            with admin(through, other_server) as connection:
                connection.execute("BEGIN")
                connection.execute("LOCK TABLE checkpoints")
                waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' ORDER BY pid"
                async with create_task_group() as group:
                    for call in (partial(put, saver, "2"), saver.acount):
                        group.start_soon(call)
                    await happens(lambda: len(rows_of(connection, waiting)) == 2)
                    first = rows_of(connection, waiting)
                    await anyio.sleep(2)
                    assert rows_of(connection, waiting) == first
                    connection.execute("COMMIT")
            assert await listed(saver, config()) == ["2", "1"]


@pytest.mark.usefixtures("hurried")
async def test_what_was_under_way_is_not_done_later(unsteady: str, proxy: Proxy, other_server: Server) -> None:
    """What a network that has stalled delivers in the end is not done any more, once something else was instead."""
    where = unsteady.replace(f"127.0.0.1:{other_server.port}", f"127.0.0.1:{proxy.port},127.0.0.1:{other_server.port}")
    async with opened(f"{where}?connect_timeout=2") as saver:
        for _ in range(3):
            await put(saver, "1", {"x": [1]})
        proxy.stall()
        await put(saver, "2", {"x": [2]})  # by the other way
        await saver.adelete_thread("t")
        proxy.go_on()
        await put(saver, "3", {"x": [3]})
        await let_the_proxy_finish(unsteady, other_server)
        assert await listed(saver, config()) == ["3"]


async def let_the_proxy_finish(url: str, of: Server) -> None:
    """Wait until the server is at work for nobody."""
    with admin(url, of) as connection:
        busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        busy += " AND datname = current_database()"
        until(lambda: not connection.execute(busy).fetchone()[0], "it is at work")


async def test_locks_of_a_process_that_is_cut_off(
    through: str, proxy: Proxy, unsteady: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lets go of them after a while, so that others need not wait for hours."""
    monkeypatch.setattr(postgres_server, "_MOST_IDLE", "1s")
    async with opened(through) as saver, opened(unsteady) as other:
        await put(saver, "1")
        cut_off = threading.Event()

        def hold() -> None:
            with suppress(psycopg.Error), store_of(saver)._engine.server.transaction() as cursor:
                lock(cursor, ["t"])
                proxy.stall()
                cut_off.wait(30)

        async with create_task_group() as group:
            group.start_soon(to_thread.run_sync, hold)
            try:
                with anyio.fail_after(10):
                    await put(other, "2")
            finally:
                proxy.go_on()
                cut_off.set()
        assert await listed(saver, config()) == ["2", "1"]


ENDING = """
import asyncio, logging, sys, warnings
logging.disable()
from async_saver import AsyncSaver, StorageError
from async_saver.stores import postgres_patience, postgres_server
from async_saver.stores.postgres import PostgresStore
from tests.build import config, put
postgres_patience._PATIENCE, postgres_patience._ASKED, postgres_server._WHY = 0.5, 2, 2
url, way = sys.argv[1:]

async def main():
    saver = AsyncSaver(store=PostgresStore(url, pool_kwargs={"timeout": 1}))
    await put(saver, "1")
    print("stall", flush=True)
    input()
    calls = [asyncio.create_task(put(saver, "2", thread_id=f"{number}")) for number in range(20)]
    calls += [asyncio.create_task(saver.aget_tuple(config())) for number in range(20)]
    await asyncio.sleep(0.1)
    if way == "close":
        await saver._shared.store.close()
        print(sum(isinstance(one, StorageError) for one in await asyncio.gather(*calls, return_exceptions=True)))
    else:
        for call in calls:
            call.cancel()
        warnings.simplefilter("ignore", ResourceWarning)

asyncio.run(main())
"""


def test_processes_end_while_the_network_stalls(anyio_backend: str, through: str, proxy: Proxy) -> None:
    """Those that close their savers and those that do not, in the midst of calls."""
    with ExitStack() as stack:
        processes = {}
        for way in ("close", "exit"):
            command = [sys.executable, "-c", ENDING, f"{through}?connect_timeout=2", way]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            processes[way] = stack.enter_context(process)
            stack.callback(process.kill)
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "stall\n"
        proxy.stall()
        began = time.monotonic()
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        told = {way: process.communicate(timeout=30)[0].split() for way, process in processes.items()}
        assert told == {"close": ["40"], "exit": []}
        assert all(process.returncode == 0 for process in processes.values())
        assert time.monotonic() - began < 15


async def test_connections_that_a_network_drops(through: str, proxy: Proxy) -> None:
    """Again and again, and it takes none for a while: callers see nothing of it."""
    async with opened(through) as saver, loaded(saver, "dropped 10 times, refused for 1 s") as load:
        for _ in range(10):
            proxy.drop()
            await load.calls(1)
        proxy.refuse()
        await anyio.sleep(1)
        proxy.go_on()
        await load.again()
    assert len(load.errors) == load.of_copies


# A server that restarts.


async def test_a_server_that_restarts_under_load(unsteady: str, other_server: Server) -> None:
    """It is away for two seconds, and has crashed. Calls wait; only a copy that was under way may come to an error."""
    async with opened(unsteady) as saver, loaded(saver, "restart, crash") as load:
        for crash in (False, True):
            await to_thread.run_sync(partial(other_server.stop, crash=crash))
            await anyio.sleep(1 if crash else 2)
            await to_thread.run_sync(other_server.start)
            await load.again()
            await load.calls(2)
    assert len(load.errors) == load.of_copies
    assert load.longest < 10


TERMINATED = 1000 if ALL else 25


async def run_sessions(saver: AsyncSaver, load: Load) -> None:
    """Have one session after the other, as long as there is load."""
    number = 0
    while not load.has_ended:
        number += 1
        with suppress(StorageError, SessionError):
            async with saver.session("of sessions"):
                await put(saver, f"{number:06}", {"x": number}, thread_id="of sessions")
                load.sessions += 1


@pytest.mark.timeout(900 if ALL else 120)
async def test_connections_that_end_at_random(unsteady: str, other_server: Server) -> None:
    """Nothing leaks: threads, descriptors, connections and leases are as many as before."""
    draw, at_first = random.Random(5), workers()
    async with opened(unsteady) as saver:
        async with loaded(saver, "to warm up"), saver.session("of sessions"):
            pass
        gc.collect()
        before = (threading.active_count(), descriptors(), len(connections_of(unsteady, other_server)))
        async with loaded(saver, f"{TERMINATED} connections ended") as load, create_task_group() as group:
            group.start_soon(run_sessions, saver, load)
            with admin(unsteady, other_server) as connection:
                ended = 0
                while ended < TERMINATED:
                    pids = connections_of(unsteady, other_server, connection)
                    if pids:
                        victim = draw.choice(pids)
                        ended += connection.execute("SELECT pg_terminate_backend(%s)", (victim,)).fetchone()[0]
                    await anyio.sleep(draw.uniform(0, 0.2))
            await load.again()
            load.end()
        assert len(load.errors) == load.of_copies
        assert load.sessions > 5
        with admin(unsteady, other_server) as connection:
            held = "SELECT count(*) FROM async_saver_leases WHERE held"
            await happens(lambda: not rows_of(connection, held)[0][0])
        until(lambda: threading.active_count() <= before[0], "threads leak")
        until(lambda: len(connections_of(unsteady, other_server)) <= max(before[2], 4), "connections leak")
        until(lambda: descriptors() <= before[1] + 4, "descriptors leak")
    until(lambda: not connections_of(unsteady, other_server), "connections are left")
    until(lambda: workers() <= at_first, "threads are left")


def connections_of(url: str, of: Server, by: Any = None) -> list[int]:
    """The processes of a server for connections to a database, but those of the tests."""
    with admin(url, of) if by is None else nullcontext(by) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        return [pid for (pid,) in found]


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


# A pool, and a server, that have no connection left.


async def test_a_pool_that_is_exhausted_under_load(database: str) -> None:
    """Calls fail in the time that it says; as soon as there is a connection again, the store works."""
    with pool_on(database, timeout=0.5, max_size=2) as pool:
        async with opened(pool) as saver, loaded(saver, "pool exhausted") as load:
            with pool.connection(), pool.connection():
                await anyio.sleep(1.5)
            await load.again()
    assert load.errors
    assert all(isinstance(one, StorageBusyError) for one in load.errors)
    assert load.longest < 3


async def test_a_server_that_takes_no_more_connections() -> None:
    """Its own words are in the error, and the store works once it takes some."""
    needed()
    small = Server(max_connections=8)
    with ExitStack() as stack:
        stack.callback(small.close)
        url = stack.enter_context(new_database(small))
        taken = stack.enter_context(ExitStack())

        def take() -> None:
            with suppress(psycopg.OperationalError):
                while True:
                    taken.enter_context(psycopg.connect(small.over_socket()))

        async with opened(url, pool_kwargs={"timeout": 1}) as saver, loaded(saver, "too many connections") as load:
            with admin(url, small) as connection:
                take()
                while pids := connections_of(url, small, connection):
                    connection.execute("SELECT pg_terminate_backend(%s)", (pids[0],))
                    take()
            take()
            await happens(lambda: load.errors)
            taken.close()
            await load.again()
    assert all("too many clients" in str(one) for one in load.errors)
    assert load.longest < 5


# What the server refuses.


async def test_deadlocks_and_serialization_failures(database: str) -> None:
    """With who knows no rules: callers see nothing of them."""
    async with opened(f"{database}?options=-c%20deadlock_timeout%3D50") as saver:
        await put(saver, "0")
        with admin(database) as connection:
            connection.execute("CREATE SEQUENCE failures")
            connection.execute("""
                CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF nextval('failures') % 20 = 1 THEN
                        RAISE EXCEPTION USING ERRCODE = 'serialization_failure';
                    ELSIF nextval('failures') % 20 = 1 THEN
                        RAISE EXCEPTION USING ERRCODE = 'deadlock_detected';
                    END IF;
                    RETURN NULL;
                END $$
            """)
            for table in ("checkpoints", "checkpoint_writes"):
                connection.execute(
                    f"CREATE TRIGGER fail AFTER INSERT OR DELETE ON {table} EXECUTE FUNCTION fail()".encode()
                )
        async with loaded(saver, "serialization failures, deadlocks") as load:
            await load.calls(20)
        assert not load.errors
        assert rows(database, "SELECT last_value FROM failures")[0][0] > 100


async def test_a_real_deadlock(database: str) -> None:
    """Of a put, and of somebody who takes a table and then the conversation's lock: the put is done after that."""
    async with opened(f"{database}?options=-c%20deadlock_timeout%3D100") as saver:
        await put(saver, "0")
        with admin(database) as connection, connection.transaction():
            connection.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
            async with create_task_group() as group:
                group.start_soon(put, saver, "1")
                waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                await happens(lambda: connection.execute(waits).fetchone()[0])
                connection.execute("SET LOCAL deadlock_timeout = '1min'")
                lock = "SELECT pg_advisory_xact_lock(1635148146, %s)"
                await to_thread.run_sync(connection.execute, lock, (lock_of("t"),))
                connection.execute("COMMIT")
        assert await listed(saver, config()) == ["1", "0"]


async def test_statements_that_take_too_long_under_load(database: str) -> None:
    """A put that waits for somebody's lock fails in the time that the server says, and the others go on."""
    async with opened(f"{database}?options=-c%20statement_timeout%3D300") as saver:
        async with loaded(saver, "statement timeout") as load:
            with admin(database) as connection, connection.transaction():
                connection.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
                await anyio.sleep(1)
            await load.again()
        assert load.errors
        assert all(isinstance(one, StorageBusyError) and "timeout" in str(one) for one in load.errors)
        assert load.longest < 8


async def test_a_server_that_becomes_read_only(unsteady: str, other_server: Server) -> None:
    """Its connections stay, and refuse to write: the store looks for one that does not, and finds it by itself."""
    options = "options=-c%20default_transaction_read_only%3Doff"
    async with opened(unsteady) as saver, loaded(saver, "a server that is read-only for a while") as load:
        with admin(f"{unsteady}?{options}", other_server) as connection:
            name = rows_of(connection, "SELECT current_database()")[0][0]
            # For sessions that begin from now on; then for all that there are.
            for on in ("on", "off"):
                connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {on}".encode())
                if on == "on":
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                    await happens(lambda: len(load.errors) >= 2 * TASKS)
        # The connections that it has by now go on to be read-only.
        await load.again()
        errors = len(load.errors)
        await load.calls(3)
        assert len(load.errors) == errors
    assert all("target_session_attrs" in str(one) for one in load.errors)
    assert load.again_after < 5


def rows_of(connection: Any, statement: str) -> list[Any]:
    """What a statement returns."""
    found: list[Any] = connection.execute(statement).fetchall()
    return found


# A disk that is full.


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder that takes 24 megabytes, for a server's tablespace."""
    folder = Path(tempfile.mkdtemp())
    os.chmod(folder, 0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"a small disk is a tmpfs, which may not be mounted here: {mounted.stderr.strip()}")
    try:
        space = folder / "space"
        space.mkdir()
        os.chown(space, 65534, 65534)
        yield space
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


async def test_a_disk_that_is_full(other_server: Server, small_disk: Path) -> None:
    """Calls that write say so, and what can be read is read; when there is room again, the same store works."""
    with psycopg.connect(other_server.over_socket(), autocommit=True) as maintenance:
        maintenance.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'".encode())
        try:
            maintenance.execute("CREATE DATABASE small TABLESPACE small TEMPLATE template0")
            url = other_server.conninfo("small")
            async with opened(url) as saver, loaded(saver, "disk full") as load:
                filler = small_disk.parent / "filler"
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
                await happens(lambda: len(load.errors) >= 2 * TASKS)
                filler.unlink()
                await load.again()
            assert all("make room" in str(one) for one in load.errors)
        finally:
            maintenance.execute("DROP DATABASE IF EXISTS small WITH (FORCE)")
            maintenance.execute("DROP TABLESPACE small")


# A standby that takes over.


async def test_a_standby_takes_over() -> None:
    """The primary is killed, and its standby promoted: the store finds that by itself, and has lost nothing."""
    needed()
    with ExitStack() as stack:
        primary = Server()
        stack.callback(primary.close)
        with psycopg.connect(primary.over_socket(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE agents")
        standby = Server(standby_of=primary)
        stack.callback(standby.close)
        with psycopg.connect(primary.over_socket(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            await happens(lambda: connection.execute(synchronous).fetchone()[0])
        url = primary.conninfo("agents", target_session_attrs="read-write")
        url = url.replace(f":{primary.port}/", f":{primary.port},127.0.0.1:{standby.port}/")
        async with opened(url) as saver, loaded(saver, "failover") as load:
            await load.calls(3)
            await to_thread.run_sync(primary.kill)
            await anyio.sleep(1)  # until somebody, or something, has noticed
            with psycopg.connect(standby.over_socket(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
                connection.execute("SELECT pg_reload_conf()")
            await to_thread.run_sync(standby.promote)
            await load.again()
            await load.calls(3)
        assert len(load.errors) == load.of_copies
        assert load.longest < 15


# Clocks that differ.

OTHER_CLOCK = """
import asyncio, sys, time
real, ahead = time.time, float(sys.argv[2])
time.time = lambda: real() + ahead
from async_saver import AsyncSaver, Retention
from async_saver.stores.postgres import PostgresStore
from tests.build import config, put

async def main():
    retention = Retention(ttl=600)
    async with AsyncSaver(store=PostgresStore(sys.argv[1]), retention=retention) as saver:
        await put(saver, "1", thread_id=f"theirs {ahead}")
        await saver.aget_tuple(config("ours"))
        assert await saver.asweep() == 0
        assert await saver.aget_tuple(config("ours")) is not None

asyncio.run(main())
"""


async def test_clocks_of_processes_that_differ(database: str) -> None:
    """By hours, with limits of minutes: none takes what the others use for unused. The clock is the server's."""
    retention = Retention(ttl=600)
    async with AsyncSaver(store=PostgresStore(database), retention=retention) as saver:
        await put(saver, "1", thread_id="ours")
        commands = [[sys.executable, "-c", OTHER_CLOCK, database, f"{ahead}"] for ahead in (-7200, 7200)]
        async with create_task_group() as group:
            for command in commands:
                group.start_soon(partial(anyio.run_process, command, cwd=ROOT, stderr=None))
        assert await saver.asweep() == 0
        assert await saver.acount() == 3
        used = rows(database, "SELECT abs(used - extract(epoch FROM now())) < 300 FROM async_saver_threads")
        assert used == [(True,)] * 3
        # A little ahead, as after a way that took long there and not back; the limits have begun hours ago.
        store_of(saver)._since -= 7200
        with admin(database) as connection:
            connection.execute("UPDATE async_saver_threads SET used = used + 10")
        assert await saver.asweep() == 0
