"""What only `PostgresStore` promises, on a real server: its connections, tables, order, faults, and its silence."""

import copy
import gc
import json
import logging
import os
import random
import socket
import threading
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import pytest
from anyio import create_task_group, wait_all_tasks_blocked
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint as let_others_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from async_saver import (
    AsyncSaver,
    AsyncSaverError,
    InvalidTypeError,
    InvalidValueError,
    SerializationError,
    StorageBusyError,
    StorageError,
    ThreadExistsError,
)
from async_saver.records import JSON, CheckpointRecord, Listing, WriteRecord
from tests.build import all_of, checkpoint, config, ids, listed, put
from tests.postgres import PASSWORD, THROUGH, PgBouncer, Server, direct, needed, new_database, role, server
from tests.sqlite_worker import POSIX, Script
from tests.test_forks import runs
from tests.workers import LOOPS, on_loop, output_of, together

if not find_spec("psycopg"):
    pytest.skip("there is no psycopg", allow_module_level=True)

import psycopg
from langgraph.checkpoint.postgres.base import MIGRATIONS
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from async_saver.stores.postgres import PostgresStore
from async_saver.stores.postgres_writer import lock_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", *(["trio"] if find_spec("trio") else [])])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """What differs here between event loops is only how they are woken: uvloop is as asyncio."""
    return request.param


on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For what no event loop has a part in."""


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    """A database of several tests that look only at conversations of their own, whose names are `next(_names)`."""
    with new_database(needed()) as url:
        yield url


_names = map(str, count())


@asynccontextmanager
async def opened(url: Any, **options: Any) -> AsyncIterator[AsyncSaver]:
    """A saver on a database, that is closed in the end, whatever happened."""
    saver = AsyncSaver(store=PostgresStore(url, **options))
    try:
        yield saver
    finally:
        with anyio.CancelScope(shield=True):
            await close(saver)


async def close(saver: AsyncSaver) -> None:
    """Close a saver's store."""
    await saver._shared.store.close()


def store_of(saver: AsyncSaver) -> Any:
    """A saver's store."""
    return saver._shared.store


@contextmanager
def admin(url: str, of: Server | None = None) -> Iterator[Any]:
    """A connection of the tests' own to a database, whose statements are transactions."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect((of or server()).over_socket(str(name)), autocommit=True) as connection:
        yield connection


def rows(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a database answers."""
    with admin(url) as connection:
        found: list[tuple[Any, ...]] = connection.execute(statement, values).fetchall()
        return found


_OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_OTHERS += " AND backend_type = 'client backend'"


def connections(url: str) -> list[Any]:
    """The connections to a database, but that of who asks."""
    pooler = server().for_stores()
    if isinstance(pooler, PgBouncer):
        return [one["ptr"] for one in pooler.show("CLIENTS") if one["database"] == conninfo_to_dict(url)["dbname"]]
    return processes(url)


def processes(url: str) -> list[int]:
    """The server's processes for them."""
    return [pid for (pid,) in rows(url, f"SELECT pid {_OTHERS} ORDER BY pid")]


def until(condition: Callable[[], Any], what: str, seconds: float = 20) -> None:
    """Wait for what comes about elsewhere."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def workers() -> set[threading.Thread]:
    """The worker threads of all stores, and of their pools."""
    return {one for one in threading.enumerate() if one.name.startswith("async_saver")}


@contextmanager
def held_up(url: str, table: str = "checkpoints") -> Iterator[Callable[[], None]]:
    """Have all that writes wait, until the function that is yielded is called, or the end; what reads goes on."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(server().over_socket(str(name))) as connection:
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
        yield connection.rollback


async def start(tasks: TaskGroup, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Start a task, and return when it waits for the store: trio would start several in any order."""
    tasks.start_soon(call, *args)
    for _ in range(10):
        await let_others_run()


def record(checkpoint_id: str, *versions: tuple[str, Any], parent: str | None = None, run: str | None = None) -> Any:
    """A record that names versions."""
    return CheckpointRecord(checkpoint_id, parent, ("msgpack", b"c"), ("msgpack", b"\x80"), versions, run, ())


def written(task_id: str = "task", idx: int = 0, **more: Any) -> WriteRecord:
    """A write as the saver hands it to its store."""
    return WriteRecord(task_id, idx, "x", ("bytes", b""), "", None)._replace(**more)


async def contents(saver: AsyncSaver) -> dict[str, dict[str, Any]]:
    """All conversations, their checkpoints, and of each its values and its writes."""
    found: dict[str, dict[str, Any]] = {}
    async for one in saver.alist(None):
        held = found.setdefault(one.config["configurable"]["thread_id"], {})
        held[one.checkpoint["id"]] = (one.checkpoint["channel_values"], sorted(one.pending_writes or (), key=repr))
    return found


# Where it is.


@on_asyncio
@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
async def test_urls_that_are_taken(database: str, scheme: str) -> None:
    """As programs have them that use SQLAlchemy, too; parameters are libpq's."""
    url = f"{scheme}://{database.partition('://')[2]}?application_name=ours&connect_timeout=20"
    async with AsyncSaver.from_conn_string(url) as saver:
        await put(saver, "1")
        assert rows(database, f"SELECT DISTINCT application_name {_OTHERS}") == [("ours",)]
    assert rows(database, "SELECT thread_id FROM checkpoints") == [("t",)]


@on_asyncio
@pytest.mark.parametrize("over", ["tcp", "socket"])
async def test_what_libpq_takes_is_taken(database: str, over: str) -> None:
    """As keywords and their values."""
    parts = conninfo_to_dict(database if over == "tcp" else server().over_socket(database.rpartition("/")[2]))
    async with opened(" ".join(f"{name}='{value}'" for name, value in parts.items())) as saver:
        await put(saver, "1")
        assert await saver.acount() == 1


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("postgresql+asyncpg://me:hush@localhost/agents", "asyncpg"),
        ("postgresql+psycopg2://me:hush@localhost/agents", "psycopg2"),
        ("postgresql+psycopg_async://me:hush@localhost/agents", "psycopg_async"),
        ("postgresql://me:hu sh@localhost/agents", "percent-encoded"),
        ("postgresql://me:hush%@localhost/agents", "percent-encoded"),
        ("postgresql://me:hush@localhost/agents?sslmode", "percent-encoded"),
        ("postgresql://me:hush@localhost/agents?no_such_option=1", "percent-encoded"),
        ("postgresql://me:hu/sh@localhost/agents", "percent-encoded"),
        ("postgresql://me:hu@sh@localhost/agents", "percent-encoded"),
        ("postgresql://me:12/hush@localhost/agents", "percent-encoded"),
        ("postgresql://me:hush@localhost/agents\0", "percent-encoded"),
        ("postgresql://me:hush\ud800@localhost/agents", "percent-encoded"),
    ],
)
def test_urls_that_are_refused(where: str, why: str) -> None:
    """With nothing of them that may be a password, also where libpq would take a part of it for something else."""
    for make in (PostgresStore, AsyncSaver.from_conn_string):
        with pytest.raises(InvalidValueError, match=why) as caught:
            make(where)  # type: ignore[operator]
        for secret in ("hu sh", "hush", "sh@", "hu@", "hu/", "hu?"):
            assert secret not in "".join(traceback.format_exception(caught.value))
            assert secret not in repr(caught.value)


@pytest.mark.parametrize(
    "where", ["", "memory://", "sqlite:///agents.db", "mysql://me:hush@localhost/agents", "agents", "password=hush no"]
)
def test_what_is_no_connection_string_is_refused(where: str) -> None:
    """But the empty one, which libpq takes: all is in the environment then."""
    if not where:
        PostgresStore(where)
        return
    with pytest.raises(InvalidValueError, match="connection string of PostgreSQL") as caught:
        PostgresStore(where)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


ELSEWHERE = "postgresql://me:hush@localhost/agents"
WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"where": 1}, InvalidTypeError),
    ({"where": None}, InvalidTypeError),
    ({"where": b"postgresql://localhost"}, InvalidTypeError),
    ({"pool_size": 0}, InvalidValueError),
    ({"pool_size": -1}, InvalidValueError),
    ({"pool_size": True}, InvalidTypeError),
    ({"pool_size": "4"}, InvalidTypeError),
    ({"pool_size": 4.0}, InvalidTypeError),
    ({"schema": ""}, InvalidValueError),
    ({"schema": "a\0b"}, InvalidValueError),
    ({"schema": "\ud800"}, InvalidValueError),
    ({"schema": 1}, AsyncSaverError),
    ({"schema": b"agents"}, AsyncSaverError),
    ({"pool_kwargs": 5}, AsyncSaverError),
    ({"pool_kwargs": [("timeout", 5)]}, AsyncSaverError),
    ({"pool_kwargs": "timeout"}, AsyncSaverError),
    ({"pool_kwargs": {1: 2}}, AsyncSaverError),
    ({"pool_kwargs": {"no_such": 1}}, InvalidValueError),
    ({"pool_kwargs": {"open": True}}, InvalidValueError),
    ({"pool_kwargs": {"conninfo": ELSEWHERE}}, InvalidValueError),
    ({"pool_kwargs": {"min_size": 5}}, InvalidValueError),
    ({"pool_kwargs": {"num_workers": 0}}, InvalidValueError),
    ({"pool_kwargs": {"kwargs": 5}}, InvalidValueError),
    ({"pool_kwargs": {"kwargs": "password=hush"}}, InvalidValueError),
]


@pytest.mark.parametrize(("wrong", "error"), WRONG, ids=[repr(wrong) for wrong, _ in WRONG])
def test_wrong_arguments_are_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    """When the store is made; the message has the name of the argument, and nothing of what may be secret."""
    name = next(iter(wrong))
    with pytest.raises(error, match="connection string" if name == "where" else name) as caught:
        PostgresStore(**{"where": ELSEWHERE, **wrong})
    assert "hush" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["memory://", "sqlite://", "sqlite:///agents.db"])
@pytest.mark.parametrize("option", [{"pool_size": 2}, {"schema": "agents"}, {"pool_kwargs": {}}])
def test_options_are_for_postgres_alone(url: str, option: dict[str, Any]) -> None:
    """Who gives one to another store has mistaken the URL."""
    with pytest.raises(InvalidValueError, match=f"PostgresStore.*{next(iter(option))}"):
        AsyncSaver.from_conn_string(url, **option)


@pytest.mark.parametrize("option", [{"schema": "agents"}, {"pool_kwargs": {}}])
def test_options_are_not_for_a_pool(option: dict[str, Any]) -> None:
    """Whose connections are as its owner has made them."""
    needed()
    with pytest.raises(InvalidValueError, match="pool"):
        PostgresStore(ConnectionPool(server().conninfo(), open=False), **option)


@on_asyncio
async def test_nothing_is_connected_before_the_first_use(database: str) -> None:
    """No thread is started, either."""
    before, files = workers(), descriptors()
    saver = AsyncSaver.from_conn_string(database, pool_size=3, schema="agents", pool_kwargs={"min_size": 3})
    AsyncSaver(store=PostgresStore("postgresql://me:hush@no-such-host.invalid/agents"))
    assert connections(database) == []
    assert (workers(), descriptors()) == (before, files)
    await put(saver, "1")
    assert connections(database)
    await close(saver)


def descriptors() -> int:
    """How many the process has open."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


async def use(saver: AsyncSaver, name: str = "t") -> None:
    """Make calls of every kind, some at once."""
    async with create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(lambda number=number: put(saver, "1", {"x": [1]}, thread_id=f"{name} {number}"))
            tasks.start_soon(saver.aget_tuple, config(f"{name} {number}"))
        tasks.start_soon(saver.acount)
    place = await put(saver, "2", {"x": [2]}, thread_id=f"{name} 1", parent="1", run_id=f"{name} run")
    await saver.aput_writes(place, [("x", 1), ("y", 2)], "task")
    found = await saver.aget_tuple(config(f"{name} 1"))
    assert found is not None
    assert (found.checkpoint["channel_values"], len(found.pending_writes or ())) == ({"x": [2]}, 2)
    await saver.acopy_thread(f"{name} 1", f"{name} copy")
    with pytest.raises(ThreadExistsError):
        await saver.acopy_thread(f"{name} 1", f"{name} copy")
    await saver.aprune([f"{name} 1"])
    assert await listed(saver, config(f"{name} 1")) == ["2"]
    assert await listed(saver, config(f"{name} copy"), limit=1) == ["2"]
    await saver.adelete_for_runs([f"{name} run"])
    assert await listed(saver, config(f"{name} copy")) == ["1"]
    await saver.adelete_thread(f"{name} 0")
    left = [one async for one in saver.athread_ids() if one.startswith(name)]
    assert sorted(left) == [*(f"{name} {number}" for number in range(2, 10)), f"{name} copy"]


@on_asyncio
@pytest.mark.parametrize("size", [1, 2, 5])
async def test_there_are_never_more_connections_than_pool_size(database: str, size: int) -> None:
    """However much is called for; and with a single one all goes on."""
    async with opened(database, pool_size=size) as saver:
        for number in range(3):
            await use(saver, f"t{number}")
            assert 1 <= len(connections(database)) <= size


@on_asyncio
async def test_pool_kwargs_are_the_pools(database: str) -> None:
    """Also its own configuration of connections."""
    configured: list[Any] = []

    def configure(connection: Any) -> None:
        configured.append(connection.execute("SHOW application_name").fetchone()["application_name"])

    more = {"configure": configure, "kwargs": {"application_name": "theirs", "row_factory": dict_row}}
    async with opened(database, schema="agents", pool_kwargs=more) as saver:
        await use(saver)
        assert rows(database, f"SELECT DISTINCT application_name {_OTHERS}") == [("theirs",)]
    assert {*configured} == {"theirs"}


# What is secret.


def told(error: BaseException) -> str:
    """All that an error says, with those that it comes from, also where they are not printed."""
    text, at = "".join(traceback.format_exception(error)), list[BaseException]()
    one: BaseException | None = error
    while one is not None and one not in at:
        at.append(one)
        one = one.__cause__ or one.__context__
    return text + repr(at)


@contextmanager
def silent(caplog: pytest.LogCaptureFixture, *secrets: str) -> Iterator[list[str]]:
    """Look that passwords are shown by no log, no warning, nor the text that is put into the list."""
    shown: list[str] = []
    caplog.set_level(logging.DEBUG)
    loggers = [one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    levels = [(one, one.level) for one in loggers]
    for one in loggers:
        one.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield shown
    finally:
        for one, level in levels:
            one.setLevel(level)
    shown += [f"{one.getMessage()} {one.args}" for one in caplog.records]
    shown += [str(one.message) for one in warned]
    for secret in (PASSWORD, *secrets):
        assert secret not in "\n".join(shown)


def looks(saver: AsyncSaver) -> str:
    """What a saver and its store look like."""
    return f"{saver!r} {saver} {vars(saver)} {store_of(saver)!r} {vars(store_of(saver))}"


def closed_port() -> int:
    """A port where nobody listens."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@on_asyncio
@pytest.mark.parametrize("why", ["wrong password", "no such host", "closed port", "no such database", "no such option"])
async def test_no_error_of_connecting_shows_the_password(
    database: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a log; and each says what is the matter."""
    wrong = "wr0ng-pa55"
    where, words = {
        "wrong password": (database, "authentication failed"),
        "no such host": (database.replace("127.0.0.1", "no-such-host.invalid"), "no-such-host"),
        "closed port": (database.replace(f":{urlsplit(database).port}/", f":{closed_port()}/"), "refused"),
        "no such database": (f"{database}_not", "does not exist"),
        "no such option": (database, "option"),
    }[why]
    more = {"kwargs": {"no_such_option": wrong}} if why == "no such option" else None
    if why == "wrong password":
        where = where.replace(PASSWORD, wrong)
    with silent(caplog, wrong) as shown:
        async with opened(where, pool_kwargs=more) as saver:
            for call in (lambda: put(saver, "1"), saver.acount, lambda: saver.aget_tuple(config()), saver.asetup):
                with pytest.raises(StorageError, match=words) as caught:
                    await call()
                shown.append(told(caught.value))
            shown.append(looks(saver))
    assert connections(database) == []


@on_asyncio
async def test_nothing_shows_the_password_where_all_is_well(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """No log, neither the store nor the saver, nor the warning that it was not closed."""
    with silent(caplog) as shown:
        saver = AsyncSaver.from_conn_string(database)
        await use(saver)
        shown.append(looks(saver))
        with pytest.raises(InvalidTypeError) as caught:
            copy.deepcopy(saver)
        shown.append(told(caught.value))
        with pytest.raises(InvalidValueError) as refused:
            await put(saver, "1", thread_id="a\0b")
        shown.append(told(refused.value))
        del saver, caught, refused
        gc.collect()
    assert any("not closed" in one for one in shown)


# A pool of the user's.


@contextmanager
def pool_on(url: str, **options: Any) -> Iterator[tuple[Any, list[TransactionStatus]]]:
    """A pool that notes in which state its connections come back."""
    states: list[TransactionStatus] = []
    options = {"min_size": 1, "max_size": 3, **options}

    def note(connection: Any) -> None:
        states.append(connection.info.transaction_status)

    with ConnectionPool(url, open=False, reset=note, **options) as pool:
        yield pool, states


CONNECTIONS: dict[str, dict[str, Any]] = {
    "autocommit": {"autocommit": True},
    "transactions": {"autocommit": False},
    "rows are dicts": {"autocommit": True, "row_factory": dict_row},
    "nothing is prepared": {"autocommit": True, "prepare_threshold": None},
    "all is prepared": {"prepare_threshold": 0},
    "bound by the client": {"cursor_factory": psycopg.ClientCursor},
    "raw": {"cursor_factory": psycopg.RawCursor, "row_factory": dict_row},
}


@on_asyncio
@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, 3) for kind in CONNECTIONS), ("autocommit", 1), ("transactions", 1)]
)
async def test_a_pool_of_the_users_is_used_as_it_is(database: str, kind: str, size: int) -> None:
    """Whatever its connections are like; no transaction is left open, and it is its owner's to close."""
    before = workers()
    with pool_on(database, kwargs=CONNECTIONS[kind], max_size=size) as (pool, states):
        for name in ("one", "two"):
            async with opened(pool) as saver:
                await use(saver, name)
            assert not pool.closed
            pool.check()
            with pool.connection() as connection:
                assert connection.autocommit is CONNECTIONS[kind].get("autocommit", False)
        assert {*states} == {TransactionStatus.IDLE}
        assert len(connections(database)) <= size
    assert workers() <= before


@on_asyncio
@pytest.mark.parametrize("ended", [False, True])
async def test_a_pool_that_is_not_open_is_not_opened(database: str, ended: bool) -> None:
    """It says so; and once its owner has opened it, it works."""
    pool = ConnectionPool(database, open=False, min_size=1)
    if ended:
        pool.open()
        pool.close()
    async with opened(pool) as saver:
        for call in (saver.asetup, lambda: put(saver, "1"), lambda: saver.aget_tuple(config()), saver.acount):
            with pytest.raises(StorageError, match="not open"):
                await call()
        assert pool.closed
        if not ended:
            with pool:
                await use(saver)


@on_asyncio
async def test_an_exhausted_pool_is_waited_for_as_long_as_it_says(database: str) -> None:
    """Then every call fails, and those that come when there is a connection again work."""
    with pool_on(database, max_size=1, timeout=0.3) as (pool, _):
        async with opened(pool) as saver:
            with pool.connection():
                for call in (saver.asetup, lambda: put(saver, "1"), lambda: saver.aget_tuple(config()), saver.acount):
                    began = time.monotonic()
                    with pytest.raises(StorageBusyError, match="connection"):
                        await call()
                    assert time.monotonic() - began < 5
            await use(saver)


@on_asyncio
async def test_calls_that_wait_for_a_connection_together_fail_together(database: str) -> None:
    """So that a hundred of them do not wait for a hundred times as long."""
    with pool_on(database, max_size=1, timeout=0.3) as (pool, _):
        async with opened(pool) as saver:
            await put(saver, "1")

            async def fail(call: Callable[[], Awaitable[Any]]) -> None:
                with pytest.raises(StorageBusyError):
                    await call()

            with pool.connection():
                before = pool.get_stats()["requests_num"]
                async with create_task_group() as tasks:
                    for number in range(50):
                        tasks.start_soon(fail, partial(put, saver, "9", thread_id=f"{number}"))
                        tasks.start_soon(fail, partial(saver.aget_tuple, config(f"{number}")))
                assert pool.get_stats()["requests_num"] - before < 10
            assert await saver.aget_tuple(config()) is not None


@on_asyncio
async def test_a_pool_with_too_many_who_wait_says_so(database: str) -> None:
    """As its owner has set a limit."""
    with pool_on(database, max_size=1, max_waiting=1, timeout=1) as (pool, _):
        async with opened(pool) as saver:
            errors: list[StorageError] = []

            async def fail(call: Callable[[], Awaitable[Any]]) -> None:
                with pytest.raises(StorageError) as caught:
                    await call()
                errors.append(caught.value)

            with pool.connection():
                async with create_task_group() as tasks:
                    for call in (saver.acount, lambda: put(saver, "1"), lambda: saver.aget_tuple(config())):
                        tasks.start_soon(fail, call)
            assert any("waiting" in str(one) for one in errors)
            until(lambda: not pool.get_stats().get("requests_waiting"), "the pool has forgotten nobody")
            await put(saver, "1")


@on_asyncio
async def test_a_pool_of_asyncio_is_refused() -> None:
    """With the reason: stores are for every event loop."""
    needed()
    pool: Any = AsyncConnectionPool(server().conninfo(), open=False)
    with pytest.raises(InvalidTypeError, match=r"one event loop.*ConnectionPool"):
        PostgresStore(pool)


# Setup.


def transaction_ids(url: str) -> int:
    """How many transactions have written, in all of the server."""
    ((number,),) = rows(url, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    return int(number)


@contextmanager
def read_only(url: str) -> Iterator[None]:
    """Have the server refuse whatever writes in a database."""
    name = url.rpartition("/")[2]
    with admin(url) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        if THROUGH == "pgbouncer":  # which keeps its connections
            connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {_OTHERS}")
        yield
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())


def with_setting(url: str, name: str, value: str) -> str:
    """The URL of connections that have a setting; where there is a pooler, it is one of the database."""
    if THROUGH != "pgbouncer":
        escaped = value.replace(" ", "\\ ")
        return f"{url}?options={quote(f'-c {name}={escaped}')}"
    with admin(url) as connection:
        connection.execute(f"ALTER DATABASE {conninfo_to_dict(url)['dbname']} SET {name} = '{value}'".encode())
    return url


@on_asyncio
@pytest.mark.parametrize("schema", [None, "agents"])
async def test_tables_are_made_once(database: str, schema: str | None) -> None:
    """By the first call of whatever kind; where they are, setup writes nothing, and so a role needs no right to."""
    async with opened(database, schema=schema) as saver:
        assert await saver.aget_tuple(config()) is None
        await put(saver, "1")
    with read_only(database):
        async with opened(database, schema=schema) as saver:
            for _ in range(2):
                await saver.asetup()
            assert await listed(saver, config()) == ["1"]
            with pytest.raises(StorageError, match="read-only"):
                await put(saver, "2")


@pytest.mark.parametrize("schema", [None, "agents"])
async def test_calls_that_come_together_first(database: str, schema: str | None) -> None:
    """Several connections come to a database without tables at once: one of them makes them."""
    async with opened(database, schema=schema) as saver:
        await use(saver)


SETUP = """
from async_saver.stores.postgres import PostgresStore
names = [f"process {number}" for number in range(10)]
gate, children = os.pipe(), []

async def main(name):
    async with AsyncSaver(store=PostgresStore(sys.argv[1], schema="agents")) as saver:
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(lambda number=number: put(saver, "1", {"x": 1}, thread_id=f"{name} {number}"))
        say(len([one async for one in saver.athread_ids() if one.startswith(name)]))

for name in names:
    children.append(os.fork())
    if not children[-1]:
        os.close(gate[1])
        os.read(gate[0], 1)
        asyncio.run(main(name))
        os._exit(0)
os.close(gate[1])
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


@POSIX
@on_asyncio
async def test_ten_processes_begin_at_once(database: str) -> None:
    """On an empty database, where not even the schema is."""
    with Script(SETUP, database) as script:
        assert script.end() == ["4"] * 10
    async with opened(database, schema="agents") as saver:
        assert await saver.acount() == 40
    versions = rows(database, "SELECT v FROM agents.checkpoint_migrations ORDER BY v")
    assert [version for (version,) in versions] == [*range(len(MIGRATIONS))]


@on_asyncio
@pytest.mark.parametrize("number", [1, 2])
async def test_tables_that_the_official_saver_makes_meanwhile(database: str, number: int) -> None:
    """It knows of no lock that keeps the two apart: who comes second goes on from there."""
    async with opened(database) as saver, create_task_group() as tasks:
        with admin(database) as connection, connection.transaction():
            for version, migration in enumerate(MIGRATIONS[:number]):
                connection.execute(migration.encode())
                connection.execute("INSERT INTO checkpoint_migrations VALUES (%s)", [version])
            tasks.start_soon(put, saver, "1")
            await waiting(database)
    versions = rows(database, "SELECT v FROM checkpoint_migrations ORDER BY v")
    assert [version for (version,) in versions] == [*range(len(MIGRATIONS))]
    assert rows(database, "SELECT checkpoint_id FROM checkpoints") == [("1",)]


@on_asyncio
async def test_tables_of_a_later_release_are_left_alone(database: str) -> None:
    """Every call says so; once they are what is known here, the same store works."""
    async with opened(database) as saver:
        await put(saver, "1")
    later = len(MIGRATIONS)
    with admin(database) as connection:
        connection.execute("INSERT INTO checkpoint_migrations VALUES (%s)", [later])
        connection.execute("DROP TABLE async_saver_runs")
    async with opened(database) as saver:
        for call in (saver.asetup, lambda: put(saver, "2"), lambda: saver.aget_tuple(config()), saver.acount):
            with pytest.raises(StorageError, match=f"version {later}"):
                await call()
        with admin(database) as connection:
            assert connection.execute("SELECT checkpoint_id FROM checkpoints").fetchall() == [("1",)]
            assert connection.execute("SELECT to_regclass('async_saver_runs')").fetchone() == (None,)
            connection.execute("DELETE FROM checkpoint_migrations WHERE v = %s", [later])
        assert await listed(saver, config()) == ["1"]


OLD_ROW = {
    "v": 1,
    "id": "1",
    "ts": "",
    "channel_values": {"x": "old"},
    "channel_versions": {"x": "1"},
    "versions_seen": {},
    "pending_sends": [],
}


@on_asyncio
@pytest.mark.parametrize("number", [2, 5, len(MIGRATIONS) - 1])
async def test_tables_of_an_earlier_release_are_brought_up_to_date(database: str, number: int) -> None:
    """In one step, with what is in them."""
    with admin(database) as connection:
        for version, migration in enumerate(MIGRATIONS[:number]):
            connection.execute(migration.encode())
            connection.execute("INSERT INTO checkpoint_migrations VALUES (%s)", [version])
        if number > 2:
            connection.execute(
                "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('t', '1', %s)",
                [json.dumps(OLD_ROW)],
            )
    async with opened(database) as saver:
        await saver.asetup()
        found = await saver.aget_tuple(config())
        assert (found is not None) == (number > 2)
        if found is not None:
            assert found.checkpoint["channel_values"] == {"x": "old"}
        await put(saver, "2", parent="1")
        await use(saver, "u")
    versions = rows(database, "SELECT v FROM checkpoint_migrations ORDER BY v")
    assert [version for (version,) in versions] == [*range(len(MIGRATIONS))]


@on_asyncio
async def test_a_migration_that_fails_changes_nothing(database: str) -> None:
    """Something else in the place of a table, say; when that is gone, the next call makes them."""
    with admin(database) as connection:
        connection.execute("CREATE VIEW checkpoint_writes AS SELECT 1 AS one")
        before = connection.execute("SELECT count(*) FROM pg_class").fetchone()
        async with opened(database) as saver:
            for call in (saver.asetup, lambda: put(saver, "1"), saver.acount):
                with pytest.raises(StorageError, match="checkpoint_writes"):
                    await call()
            assert connection.execute("SELECT count(*) FROM pg_class").fetchone() == before
            connection.execute("DROP VIEW checkpoint_writes")
            await use(saver)


@on_asyncio
@pytest.mark.parametrize("pool", [False, True])
async def test_a_role_that_may_make_nothing_uses_the_official_tables(database: str, pool: bool) -> None:
    """Which another role has made; without our own beside them all calls work, only `thread_ids` is in any order."""
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(direct(database)) as official:
        official.setup()
    with role(database) as url, ExitStack() as stack:
        where = stack.enter_context(ConnectionPool(url, open=False, min_size=1)) if pool else url
        async with opened(where) as saver:
            await saver.asetup()
            await use(saver)
            assert await all_of(store_of(saver).thread_ids())
            place = await put(saver, "3", thread_id="t 9", run_id="run")
            assert await store_of(saver).run_threads(["run", "none"]) == ["t 9"]
            await saver.aput_writes(place, [("x", 1)], "task")
            await saver.adelete_for_runs(["run"])
            assert await listed(saver, config("t 9")) == ["1"]
    assert rows(database, "SELECT count(*) FROM pg_class WHERE relname LIKE 'async_saver%%'") == [(0,)]


@on_asyncio
@pytest.mark.parametrize("tables", [False, True])
async def test_a_role_without_rights_is_told(database: str, tables: bool) -> None:
    """What it may not do, by each call; where it gets the rights, the same store works."""
    if tables:
        async with opened(database) as saver:
            await put(saver, "1")
    with role(database) as url:
        name = conninfo_to_dict(url)["user"]
        with admin(database) as connection:
            connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name}".encode())
            connection.execute("REVOKE CREATE ON SCHEMA public FROM public")
            async with opened(url) as saver:
                for call in (saver.asetup, lambda: put(saver, "2"), lambda: saver.aget_tuple(config()), saver.acount):
                    with pytest.raises(StorageError, match="permission denied"):
                        await call()
                connection.execute(f"GRANT ALL ON SCHEMA public TO {name}".encode())
                connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}".encode())
                connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}".encode())
                await put(saver, "2")
                assert await listed(saver, config()) == (["2", "1"] if tables else ["2"])


@pytest.mark.parametrize("schema", ["agents", 'Größe "☃"', "a, b", "%s {}'; DROP TABLE checkpoints; --"])
@on_asyncio
async def test_a_schema_is_made_and_used(database: str, schema: str) -> None:
    """Whatever its name is; what is in another one is another store's."""
    async with opened(database, schema=schema) as saver, opened(database, schema="other") as other:
        await use(saver)
        assert await other.acount() == 0
        await put(other, "1", thread_id="t 2", parent="0")
        await other.adelete_thread("t 2")
        assert await listed(saver, config("t 2")) == ["1"]
        assert rows(database, "SELECT to_regclass('public.checkpoints')") == [(None,)]
        await put(other, "1")
    ((number,),) = rows(database, "SELECT count(*) FROM pg_tables WHERE schemaname = %s", schema)
    assert number >= 6


@on_asyncio
async def test_names_of_schemas_that_the_server_would_cut_short_are_refused(database: str) -> None:
    """As two of them would be one."""
    for long in ("a" * 64, "ö" * 32):
        with pytest.raises(AsyncSaverError):
            PostgresStore(database, schema=long)
    async with opened(database, schema="ö" * 31) as saver:
        await put(saver, "1")
    assert rows(database, "SELECT to_regclass(%s) IS NOT NULL", f"{'ö' * 31}.checkpoints") == [(True,)]


@pytest.fixture
def sorted_as_in_a_dictionary() -> Iterator[str]:
    """A database whose text is not sorted by its bytes."""
    needed()
    with ExitStack() as stack:
        try:
            url = stack.enter_context(new_database(icu_locale="en-US"))
        except psycopg.errors.FeatureNotSupported as exc:
            pytest.skip(f"this server cannot: {exc}")
        yield url


@on_asyncio
async def test_ids_of_langgraph_are_in_their_order_whatever_the_collation(sorted_as_in_a_dictionary: str) -> None:
    """The latest is the latest, and lists are newest first, and so are pages of them, in all namespaces."""
    from langgraph.checkpoint.base.id import uuid6

    made = [str(uuid6(clock_seq=number)) for number in range(-1, 40)]
    async with opened(sorted_as_in_a_dictionary) as saver:
        shuffled = random.Random(1).sample(made, len(made))
        async with create_task_group() as tasks:
            for number, one in enumerate(shuffled):
                tasks.start_soon(lambda one=one: put(saver, one))
                tasks.start_soon(lambda one=one, ns=f"n{number}": put(saver, one, ns=ns))
        newest = sorted(made)[::-1]
        assert await listed(saver, config(ns="")) == newest
        assert await listed(saver, config(ns=""), before=config(checkpoint_id=newest[7])) == newest[8:]
        every = await listed(saver, {"configurable": {"thread_id": "t"}})
        assert every == sorted(every, reverse=True)
        assert len(every) == 2 * len(made)
        found = await saver.aget_tuple(config())
        assert found is not None
        assert found.checkpoint["id"] == newest[0]
        await saver.aprune(["t"])
        assert await listed(saver, config(ns="")) == newest[:1]


@on_asyncio
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_whatever_isolation_a_database_has_by_default(database: str, level: str) -> None:
    """Stores that write to one conversation wait for each other, and all is stored."""
    with admin(database) as connection:
        name = database.rpartition("/")[2]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'".encode())
    async with opened(database) as one, opened(database) as two, opened(database) as three:

        async def write(saver: AsyncSaver, name: str) -> None:
            for number in range(20):
                await put(saver, f"{number:02} {name}", {"x": [1]}, version="1")
                if number % 5 == 4:
                    await saver.aprune(["u"])
                await put(saver, f"{number:02} {name}", {"x": [1]}, version="1", thread_id="u")

        await one.asetup()
        async with create_task_group() as tasks:
            for saver, called in ((one, "one"), (two, "two"), (three, "three")):
                tasks.start_soon(write, saver, called)
        assert len(await listed(one, config())) == 60


@on_asyncio
@pytest.mark.parametrize("autocommit", [True, False])
async def test_what_waits_for_its_turn_sees_what_was_written_before(database: str, autocommit: bool) -> None:
    """Also over connections whose transactions would else see what there was at their beginning."""
    url = with_setting(database, "default_transaction_isolation", "repeatable read")
    others = """
        INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        SELECT thread_id, checkpoint_ns, %s, '0', checkpoint, metadata FROM checkpoints WHERE checkpoint_id = '0'
    """
    with pool_on(url, kwargs={"autocommit": autocommit}) as (pool, _):
        async with opened(pool) as saver, AsyncExitStack() as stack:
            connection, store = stack.enter_context(admin(database)), store_of(saver)
            await store.put("t", "", record("0"), [])
            results: list[Any] = []

            async def call(function: Callable[..., Awaitable[Any]], *args: Any) -> None:
                results.append(await function(*args))

            for checkpoint_id, *what in (
                ("1", store.put, "t", "", record("2", parent="0"), [], (), "raise"),
                ("3", store.keep_latest, ["t"]),
                ("4", store.delete, ["t"]),
            ):
                connection.execute("SELECT pg_advisory_lock(1635148146, %s)", [lock_of("t")])
                async with create_task_group() as tasks:
                    tasks.start_soon(call, *what)
                    await waiting(database)
                    if what[0] == store.delete:
                        connection.execute("UPDATE checkpoints SET checkpoint_id = '0'")
                    connection.execute(others, [checkpoint_id])
                    connection.execute("SELECT pg_advisory_unlock_all()")
                results.append([one.record.checkpoint_id for one in await all_of(store.list(Listing("t")))])
            assert results == [True, ["1", "0"], None, ["3"], None, []]


@on_asyncio
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
@pytest.mark.parametrize("of", ["client", "database"])
async def test_other_encodings(database: str, encoding: str, of: str) -> None:
    """Text comes back as it was, or is refused where the database cannot hold it; a neighbour is none the worse."""
    url = f"{database}?client_encoding={encoding}"
    if of == "database":
        url = f"{database}_other"
        with admin(database) as connection:
            name = url.rpartition("/")[2]
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING {encoding} LOCALE 'C'".encode())
    try:
        async with opened(url) as saver:
            for text in ("é", "漢"):
                values = {"x": [text], "y": text}
                call = partial(put, saver, "1", values, thread_id=text, ns=text, metadata={text: text})
                if (of, encoding, text) == ("database", "LATIN1", "漢"):
                    with pytest.raises(AsyncSaverError):
                        await call()
                    continue
                await call()
                found = await saver.aget_tuple(config(text, ns=text))
                assert found is not None
                assert found.checkpoint["channel_values"] == values
                assert found.config == config(text, "1", text)
                assert await listed(saver, None, filter={text: text}) == ["1"]
                assert text in await all_of(saver.athread_ids())
                await saver.acopy_thread(text, f"{text} again")
            assert len(await listed(saver, None)) == await saver.acount()
    finally:
        if of == "database":
            with admin(database) as connection:
                connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)".encode())


# Group commit, and order.


def transactions(url: str, table: str = "checkpoints") -> int:
    """How many transactions have written the rows of a table that are there."""
    ((number,),) = rows(url, f"SELECT count(DISTINCT xmin::text) FROM {table}")
    return int(number)


async def waiting(url: str, number: int = 1) -> None:
    """Return when so many of the server's processes wait for a lock."""
    waits = f"SELECT count(*) {_OTHERS} AND wait_event_type = 'Lock'"
    end = time.monotonic() + 20
    while rows(url, waits) < [(number,)]:
        assert time.monotonic() < end
        await anyio.sleep(0.01)


async def test_calls_that_gather_are_one_transaction(database: str) -> None:
    """Of each committer: what is called for while it writes is what it writes next."""
    async with opened(database) as saver:
        await saver.asetup()
        with held_up(database) as let_go:
            async with create_task_group() as tasks:
                for number in range(2):
                    tasks.start_soon(lambda number=number: put(saver, "0", thread_id=f"first {number}"))
                await waiting(database)
                for number in range(100):
                    await start(tasks, lambda number=number: put(saver, "1", {"x": [1]}, thread_id=f"{number}"))
                    await start(tasks, saver.aput_writes, config(f"{number}", "1"), [("x", 1)], "task")
                await waiting(database, 2)
                let_go()
        assert transactions(database) <= 4
        assert transactions(database, "checkpoint_writes") <= 2
        assert await saver.acount() == 102


async def test_conversations_whose_lock_is_held_keep_no_others_up(database: str) -> None:
    """Several transactions are written at a time: those of the other committer go on."""
    async with opened(database, pool_size=4) as saver:
        await saver.asetup()
        held = next(f"{number}" for number in range(9) if lock_of(f"{number}") % 2 == 0)
        free = [f"{number}" for number in range(40) if lock_of(f"{number}") % 2 == 1]
        assert len(store_of(saver)._engine._commits) == 2
        with admin(database) as connection:
            connection.execute("SELECT pg_advisory_lock(1635148146, %s)", [lock_of(held)])
            async with create_task_group() as tasks:
                tasks.start_soon(lambda: put(saver, "1", thread_id=held))
                await waiting(database)
                with anyio.fail_after(20):
                    for number in range(5):
                        async with create_task_group() as others:
                            for thread_id in free:
                                others.start_soon(lambda one=thread_id, n=number: put(saver, f"{n}", thread_id=one))
                    assert await saver.aget_tuple(config(held)) is None
                    assert await saver.acount() == len(free)
                connection.execute("SELECT pg_advisory_unlock_all()")
        assert await listed(saver, config(held)) == ["1"]


class Step:
    """One call, of any kind, on some of a few conversations; what it is follows from the numbers that are drawn."""

    def __init__(self, number: int, draw: random.Random) -> None:
        self.number = number
        self.kind = draw.choices(["put", "writes", "delete", "prune", "copy", "runs"], [12, 6, 2, 2, 3, 2])[0]
        self.threads = draw.sample([f"thread {one}" for one in range(8)], draw.randint(1, 6))
        self.run = f"run {draw.randrange(6)}"

    async def __call__(self, saver: AsyncSaver) -> str:
        """Have it done; return what it came to."""
        store, first, made = store_of(saver), self.threads[0], f"{self.number:04}"
        try:
            if self.kind == "put":
                await put(saver, made, {"x": [made], "y": self.number}, thread_id=first, run_id=self.run)
            elif self.kind == "writes":
                place = config(first, f"{self.number - 1:04}", run_id=self.run)
                await saver.aput_writes(place, [("x", self.number)], f"task {self.number}")
            elif self.kind == "delete":
                await store.delete(self.threads)
            elif self.kind == "prune":
                await store.keep_latest(self.threads)
            elif self.kind == "copy":
                await saver.acopy_thread(first, self.threads[-1] if len(self.threads) % 2 else f"copy {self.number}")
            else:
                await store.delete_for_runs([self.run, "run 0"])
        except (ThreadExistsError, InvalidValueError) as exc:
            return type(exc).__name__
        return ""


@pytest.mark.parametrize(("pool_size", "seed"), [(4, 0), (8, 1)])
async def test_calls_take_effect_in_the_order_in_which_they_are_made(database: str, pool_size: int, seed: int) -> None:
    """Of every kind, over one conversation or several, by whichever committer; none waits for the one before."""
    draw = random.Random(seed)
    steps = [Step(number, draw) for number in range(120)]
    memory, results = AsyncSaver(), dict[int, str]()
    expected = {step.number: await step(memory) for step in steps}

    async def take(step: Step) -> None:
        results[step.number] = await step(saver)

    async with opened(database, pool_size=pool_size) as saver:
        await saver.asetup()
        with held_up(database) as let_go:
            async with create_task_group() as tasks:
                for step in steps:
                    await start(tasks, take, step)
                    if step.number == 80:
                        let_go()
        assert results == expected
        assert await contents(saver) == await contents(memory)


BAD: dict[str, tuple[type[Exception], Callable[[Any], Awaitable[object]]]] = {
    "too much for an index": (
        InvalidValueError,
        lambda store: _put_version(store, random.Random(3).randrange(10**3500, 10**3501)),
    ),
    "NUL in a name": (InvalidValueError, lambda store: _put_version(store, "1", name="a\0b")),
    "what the server refuses": (
        AsyncSaverError,
        lambda store: store.put("bad", "", record("1")._replace(checkpoint=(JSON, b'{"v": 4, "ts": "\\u0000"}')), []),
    ),
    "no JSON": (
        AsyncSaverError,
        lambda store: store.put("bad", "", record("1")._replace(checkpoint=(JSON, b'{"v": ')), []),
    ),
    "copy onto another": (ThreadExistsError, lambda store: store.copy("a", "b")),
}


async def _put_version(store: Any, version: Any, name: str = "c") -> None:
    await store.put("bad", "", record("1", (name, version)), [((name, version), ("bytes", b"x"))])


@on_asyncio
@pytest.mark.parametrize("which", BAD)
async def test_a_bad_call_fails_alone(database: str, which: str) -> None:
    """With its own error; those that are in one transaction with it are stored."""
    error, call = BAD[which]
    async with opened(database, pool_size=1) as saver:
        for thread_id in "ab":
            await put(saver, "0", thread_id=thread_id)
        failed: list[BaseException] = []

        async def fail() -> None:
            with pytest.raises(error) as caught:
                await call(store_of(saver))
            failed.append(caught.value)

        with held_up(database) as let_go:
            async with create_task_group() as tasks:
                tasks.start_soon(put, saver, "1")
                await waiting(database)
                for number in range(40):
                    await start(tasks, lambda number=number: put(saver, "1", thread_id=f"{number}"))
                    if number in (0, 20, 39):
                        await start(tasks, fail)
                let_go()
        assert len({id(one) for one in failed}) == 3
        assert await saver.acount() == 43
        assert rows(database, "SELECT count(*) FROM checkpoint_writes") == [(0,)]


@on_asyncio
async def test_large_values_are_not_one_statement(database: str) -> None:
    """What each call may store, many that gather may: the server takes a gigabyte at most in one statement."""
    value, version = random.Random(1).randbytes(6_000_000), ("c", "1")
    async with opened(database, pool_size=1) as saver:
        await saver.asetup()
        with held_up(database) as let_go:
            async with create_task_group() as tasks:
                tasks.start_soon(put, saver, "1")
                await waiting(database)
                for number in range(10):
                    values = [(version, ("bytes", value))]
                    await start(tasks, store_of(saver).put, f"{number}", "", record("1", version), values)
                let_go()
        assert await saver.acount() == 11
        assert transactions(database) >= 4


@on_asyncio
async def test_calls_over_several_conversations_from_many_loops_at_once(database: str) -> None:
    """Each takes the locks that it needs, in whatever order they come: none waits for one that waits for it."""
    async with opened(database, pool_size=8) as saver:
        await saver.asetup()

        async def many(loop: int) -> None:
            draw = random.Random(loop)
            with anyio.fail_after(50):
                for turn in range(4):
                    async with create_task_group() as tasks:
                        for number in range(25):
                            step = Step(1000 * loop + 100 * turn + number, draw)
                            tasks.start_soon(step, saver)

        jobs = [partial(on_loop, number, many, number) for number in range(2 * len(LOOPS))]
        await anyio.to_thread.run_sync(partial(together, *jobs))
        await saver.adelete_thread("thread 1")
        for held in (await contents(saver)).values():
            for checkpoint_id, (values, _) in held.items():
                assert values == {"x": [checkpoint_id], "y": int(checkpoint_id)}


async def test_calls_that_are_cancelled_at_every_moment(database: str) -> None:
    """Are done wholly or not at all, and those behind them are done."""
    async with opened(database) as saver:
        for number in range(6):
            await put(saver, "1", {"x": [1]}, thread_id=f"source {number}", run_id="run")

        async def copy_one(source: str, target: str) -> None:
            with suppress(ThreadExistsError):  # where the put came first
                await saver.acopy_thread(source, target)

        for moment in range(30):
            names = [f"{moment} {number}" for number in range(8)]
            with held_up(database) if moment % 3 == 0 else nullcontext():
                async with create_task_group() as tasks:
                    for number, name in enumerate(names):
                        tasks.start_soon(copy_one, f"source {number % 6}", name)
                        tasks.start_soon(store_of(saver).delete, [name, f"{moment - 1} {number}", "none"])
                        tasks.start_soon(store_of(saver).keep_latest, names)
                        tasks.start_soon(store_of(saver).delete_for_runs, [f"none {number}"])
                        tasks.start_soon(lambda name=name: put(saver, "2", {"x": [2]}, thread_id=name))
                    for _ in range(moment // 2):
                        await let_others_run()
                    if moment % 4 == 1:
                        await anyio.sleep(0.001 * moment)
                    tasks.cancel_scope.cancel()
        with anyio.fail_after(20):
            await store_of(saver).delete(["none"] + [f"thread {number}" for number in range(50)])
        for thread_id, held in (await contents(saver)).items():
            assert [*held] in (["1"], ["2"], ["2", "1"]), thread_id
            for checkpoint_id, found in held.items():
                assert found == ({"x": [int(checkpoint_id)]}, [])
        await use(saver)


async def test_calls_and_closes_at_once(database: str) -> None:
    """A store that is closed in the midst of calls, also over several conversations, does them all."""
    async with opened(database) as saver:
        for number in range(25):
            async with create_task_group() as tasks:
                for call in (
                    lambda number=number: put(saver, "1", thread_id=f"{number}"),
                    saver.acount,
                    partial(close, saver),
                    lambda number=number: store_of(saver).delete([f"{number - 1}", *"abcdefgh"]),
                    lambda: saver.aget_tuple(config()),
                    lambda number=number: saver.acopy_thread(f"{number - 2}", f"{number} copy"),
                    partial(close, saver),
                    lambda: listed(saver, None),
                    lambda number=number: put(saver, "2", thread_id=f"{number}"),
                    partial(store_of(saver).delete_for_runs, ["none"]),
                    saver.asetup,
                ):
                    await start(tasks, call)
            assert await listed(saver, config(f"{number}")) == ["2", "1"]
        assert {thread_id for thread_id in await contents(saver) if "copy" not in thread_id} == {"24"}


def test_calls_and_closes_from_many_loops(database: str) -> None:
    """A store that one loop closes is used by the others, which see nothing of it."""
    saver = AsyncSaver(store=PostgresStore(database))

    async def many(name: int) -> None:
        for number in range(15):
            async with create_task_group() as tasks:
                tasks.start_soon(lambda number=number: put(saver, f"{number:02}", thread_id=f"{name}"))
                tasks.start_soon(close, saver)
                tasks.start_soon(saver.acount)
                tasks.start_soon(store_of(saver).delete, [f"none {one}" for one in range(5)])
                tasks.start_soon(saver.aget_tuple, config(f"{name}"))
                tasks.start_soon(close, saver)
        assert len(await listed(saver, config(f"{name}"))) == 15

    try:
        together(*[partial(on_loop, number, many, number) for number in range(2 * len(LOOPS))])
    finally:
        anyio.run(close, saver)


# Two stores, two processes.

WRITER = """
from async_saver.stores.postgres import PostgresStore
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
saver = AsyncSaver(store=PostgresStore(url))

async def main():
    await saver.asetup()
    say("ready")
    hear()
    for number in range(count):
        async with anyio.create_task_group() as tasks:
            for thread_id in (f"{name} {number}", "shared", "churned 1", "churned 2"):
                tasks.start_soon(put_both, f"{number:04}-{name}", thread_id)
            tasks.start_soon(churn, number)
            tasks.start_soon(look)
    await saver._shared.store.close()

async def put_both(checkpoint_id, thread_id):
    await saver.aput_writes(config(thread_id, checkpoint_id), [("x", 1), ("y", 2)], "task")
    await put(saver, checkpoint_id, {"x": [checkpoint_id], "y": checkpoint_id}, thread_id=thread_id, run_id=name)

async def churn(number):
    store = saver._shared.store
    await [
        lambda: store.delete(["churned 1", "churned 2"]),
        lambda: store.keep_latest(["churned 2", "churned 1"]),
        lambda: saver.acopy_thread("churned 1", f"copy {name} {number}"),
        lambda: saver.acopy_thread("shared", f"copy {name} {number}"),
        lambda: store.delete_for_runs(["none", "neither"]),
        lambda: store.delete(["churned 2"]),
    ][number % 6]()

async def look():
    for thread_id in ("shared", "churned 1", "churned 2"):
        async for one in saver.alist(config(thread_id), limit=5):
            values = {"x": [one.checkpoint["id"]], "y": one.checkpoint["id"]}
            if one.checkpoint["channel_values"] != values:
                say("torn", one)

asyncio.run(main())
"""


@POSIX
@on_asyncio
async def test_processes_that_write_to_the_same_conversations(database: str) -> None:
    """While they delete, prune and copy what the others write; nothing is lost, and nothing is torn."""
    names = [f"process {number}" for number in range(3)]
    with ExitStack() as stack:
        scripts = [stack.enter_context(Script(WRITER, database, name, 36)) for name in names]
        for script in scripts:
            assert script.hear() == "ready"
        for script in scripts:
            script.tell("go")
        for script in scripts:
            assert script.end() == []
    async with opened(database) as saver:
        found = await contents(saver)
    both = [("task", "x", 1), ("task", "y", 2)]
    stored = {f"{name} {number}": {f"{number:04}-{name}"} for name in names for number in range(36)}
    stored["shared"] = set().union(*stored.values())
    assert {one: {*held} for one, held in found.items() if not one.startswith(("c", "copy"))} == stored
    for thread_id, held in found.items():
        for checkpoint_id, (values, writes) in held.items():
            assert values == {"x": [checkpoint_id], "y": checkpoint_id}, thread_id
            assert writes in ([], both), thread_id


@on_asyncio
async def test_two_stores_of_one_process(database: str) -> None:
    """They do not know of each other; closing one takes nothing from the other."""
    async with opened(database) as one, opened(database) as other:
        for number in range(10):
            async with create_task_group() as tasks:
                for saver, name in ((one, "one"), (other, "other")):
                    tasks.start_soon(lambda s=saver, n=name, i=number: put(s, f"{i:02}-{n}"))
                    tasks.start_soon(lambda s=saver, n=name, i=number: put(s, f"{i:02}", thread_id=n))
                    tasks.start_soon(store_of(saver).delete, [f"none {number}" for number in range(20)])
            await put(one, f"{number}1", {"x": [1]}, thread_id="u")
            await other.aput_writes(config("u", f"{number}1"), [("x", 1)], "task")
            await (other.aprune(["u"]) if number % 2 else other.adelete_thread("u"))
            await put(one, f"{number}2", {"x": [2]}, thread_id="u")
            assert await listed(other, config("u")) == [f"{number}2", *([f"{number}1"] if number % 2 else [])]
            await other.adelete_thread("u")
            if number == 5:
                await close(one)
        assert await one.acount() == await other.acount() == 3
        assert len(await listed(other, config())) == 20


# Lists, in pages.


async def test_what_comes_between_the_steps_of_a_list(database: str) -> None:
    """A put does not appear, what is deleted does not either; other calls go on, as nothing is held between steps."""
    async with opened(database) as saver:
        for number in range(30):
            await put(saver, f"{number:02}", thread_id="t")
            await put(saver, f"{number:02}", thread_id="u")
        seen = []
        async for one in saver.alist(None):
            seen.append((one.config["configurable"]["thread_id"], one.checkpoint["id"]))
            if len(seen) == 3:
                await put(saver, "99")
                await saver.aput_writes(one.config, [("x", 1)], "task")
            if len(seen) == 7:
                await saver.adelete_thread("u")
        numbers = [number for _, number in seen]
        assert numbers == sorted(numbers, reverse=True)
        assert [number for name, number in seen if name == "t"] == [f"{number:02}" for number in range(30)][::-1]
        assert all(name == "t" for name, _ in seen[7:])


@on_asyncio
@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_a_list_that_is_half_read_holds_nothing(database: str, taken: int) -> None:
    """No transaction is open, between two steps and after them."""
    async with opened(database, pool_size=1) as saver:
        for number in range(40):
            await put(saver, f"{number:02}", thread_id=f"{number % 3}")
        lists: list[Any] = [store_of(saver).list(Listing()), saver.alist(None), store_of(saver).thread_ids()]
        for one in lists[:2]:
            for _ in range(taken):
                await anext(one)
        for _ in range(min(taken, 2)):
            await anext(lists[2])
        assert {*rows(database, f"SELECT state {_OTHERS}")} <= {("idle",)}
        await use(saver)  # with the only connection
        await lists[1].aclose()
        del lists


@pytest.fixture
async def kept(database: str) -> AsyncIterator[PostgresStore]:
    """A store that all examples use."""
    store = PostgresStore(database)
    yield store
    await store.close()


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_odd = ["'", '"', "a.b", "[0]", "$", "$1", "%", "%s", "%%", "%(key0)s", "{}", "?", "\\", "\\u0000", "'; DROP TABLE x"]
_keys = st.one_of(_text, st.sampled_from([*_odd, "\0", "a\0b", "é", "async_saver", "run_id", ""]))
_numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(), st.sampled_from([2**53, 0, 1, -0.0]))
_flat = st.one_of(_keys, st.just("\ud800"), _numbers, st.none(), st.just(b"bytes"))
_values = st.one_of(_flat, st.lists(_flat, max_size=2), st.dictionaries(_keys, _flat, max_size=2))


@on_asyncio
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    held=st.lists(st.dictionaries(_keys, _values, max_size=3), min_size=1, max_size=5),
    asked=st.dictionaries(_keys, _values, min_size=1, max_size=2),
    number=st.integers(0, 4),
)
async def test_filters_find_what_they_find_in_memory(kept: Any, held: Any, asked: Any, number: int) -> None:
    """Whatever is in keys and values, which are parameters, never SQL; and metadata are what they are in memory."""
    asked = {**asked, **(dict([*held[number % len(held)].items()][:1]) if number else {})}
    found, place = [], config(next(_names))
    for saver in (AsyncSaver(), AsyncSaver(store=kept)):
        taken: list[Any] = []
        for number, metadata in enumerate(held):
            try:
                await saver.aput(place, checkpoint(f"{number}", {}), metadata, {})
            except (SerializationError, InvalidValueError) as exc:
                taken.append(type(exc))
        taken += [plain(one.metadata) async for one in saver.alist(place)]
        found.append((taken, [one.config async for one in saver.alist(place, filter=asked)]))
    if not any(isinstance(one.get("run_id"), str) and "\0" in one["run_id"] for one in held):
        assert found[1] == found[0]


@on_asyncio
async def test_filters_are_looked_at_by_the_server(database: str) -> None:
    """What does not match is not read at all; what it cannot compare is read, and compared then."""
    async with opened(database) as saver:
        for number in range(20):
            await saver.aput(config(), checkpoint(f"{number:02}", {}), {"step": number, "mine": [number]}, {})
        found = await all_of(store_of(saver).list(Listing("t", filter={"step": 7})))
        assert [one.record.checkpoint_id for one in found] == ["07"]
        assert len(await all_of(store_of(saver).list(Listing("t", filter={"mine": [7]})))) == 20
        assert [one.metadata["step"] async for one in saver.alist(config(), filter={"mine": [7]})] == [7]


# Text, and what else PostgreSQL cannot hold.


@on_asyncio
@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"])
async def test_ids_that_the_server_cannot_hold_are_refused(database: str, odd: str) -> None:
    """At every entrance, and nothing is stored; who reads by one finds nothing, as nothing can be stored there."""
    async with opened(database) as saver:
        store = store_of(saver)
        calls: list[Callable[[], Any]] = [
            lambda: store.put(odd, "", record("1"), []),
            lambda: store.put("t", odd, record("1"), []),
            lambda: store.put("t", "", record(odd), []),
            lambda: store.put("t", "", record("1", parent=odd), []),
            lambda: store.put("t", "", record("1", run=odd), []),
            lambda: store.put("t", "", record("1", (odd, "1")), []),
            lambda: store.put("t", "", record("1", ("c", odd)), []),
            lambda: store.put("t", "", record("1"), [((odd, "1"), ("bytes", b""))]),
            lambda: store.put("t", "", record("1"), [(("c", odd), ("bytes", b""))]),
            lambda: store.put("t", "", record("1")._replace(delta_channels=(odd,)), []),
            lambda: store.put_writes(odd, "", "1", [written()]),
            lambda: store.put_writes("t", odd, "1", [written()]),
            lambda: store.put_writes("t", "", odd, [written()]),
            lambda: store.put_writes("t", "", "1", [written(odd)]),
            lambda: store.put_writes("t", "", "1", [written(channel=odd)]),
            lambda: store.put_writes("t", "", "1", [written(task_path=odd)]),
            lambda: store.put_writes("t", "", "1", [written(run_id=odd)]),
            lambda: store.put_writes("t", "", "1", [written(idx=2**31)]),
            lambda: store.put_writes("t", "", "1", [written(), written("other", -(2**31) - 1)]),
            lambda: store.copy("t", odd),
        ]
        for call in calls:
            with pytest.raises(InvalidValueError):
                await call()
        assert await store.get(odd, "", None) is None
        assert await store.get("t", odd, None) is None
        assert await store.get("t", "", odd) is None
        for listing in (Listing(odd), Listing("t", odd), Listing("t", "", odd)):
            assert await all_of(store.list(listing)) == []
        found = await store.delta_history(odd, "", None, ["x", odd])
        assert {name: (one.seed, [*one.writes]) for name, one in found.items()} == {"x": (None, []), odd: (None, [])}
        await store.delete([odd])
        await store.keep_latest([odd])
        await store.delete_for_runs([odd])
        await store.copy(odd, "u")
        assert [*await store.run_threads([odd])] == []
        assert await store.count() == 0
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            assert rows(database, f"SELECT * FROM {table}") == []


class Model(BaseModel):
    """A value that is no JSON."""

    name: str
    number: float


VALUES: list[Any] = [
    "a\0b",
    "\0",
    "\\u0000",
    "half \ud800 a character",
    float("nan"),
    float("inf"),
    -float("inf"),
    -0.0,
    1e300,
    1e16,
    5e-324,
    0.1,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    (1, (2, "\0")),
    b"\0\xff",
    {1, 2},
    {1: {2: "\0"}},
    {"a\0b": ["\0"]},
    [float("nan"), (1,), None, True, 1, 1.0],
    Model(name="\0", number=1e300),
    {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}},
    {"async_saver": ["msgpack", "gKCh"]},
    None,
    True,
    "漢字 ☃ 😀",
    "",
]


@on_asyncio
@pytest.mark.parametrize("value", VALUES, ids=ascii)
async def test_values_come_back_as_they_do_from_memory(shared: str, value: Any) -> None:
    """In a channel, alone or in a list, in a write, in metadata; with their types, though jsonb knows fewer."""
    found, number = [], next(_names)
    async with opened(shared) as there:
        for saver in (AsyncSaver(), there):
            seen: list[Any] = []
            for name, values, metadata in (
                ("channel", {"x": value}, {}),
                ("list", {"x": [value], "y": value}, {}),
                ("metadata", {}, {"x": value}),
                ("deep metadata", {}, {"x": {"y": [value]}}),
            ):
                try:
                    place = await put(saver, "1", values, thread_id=f"{name} {number}", metadata=metadata)
                    await saver.aput_writes(place, [("x", value)], "task")
                except SerializationError as exc:
                    seen.append(type(exc))
                    continue
                one = await saver.aget_tuple(place)
                assert one is not None
                again = [at async for at in saver.alist(config(f"{name} {number}"))]
                for at in (one, *again):
                    seen.append(plain([at.checkpoint["channel_values"], at.metadata, at.pending_writes]))
            found.append(seen)
    assert found[1] == found[0]


def plain(value: Any) -> str:
    """What a value is, with its types, and its keys in any order."""
    if type(value) is dict:
        return f"{{{', '.join(sorted(f'{key!r}: {plain(one)}' for key, one in value.items()))}}}"
    if type(value) in (list, tuple):
        return f"{type(value).__name__} {', '.join(map(plain, value))}"
    return repr(value)


@on_asyncio
@pytest.mark.parametrize("version", [1, 1.5, 2**62, "1", "", "漢", 1e16, 1e300, 1e-7, 0.1, "1e+300"])
async def test_versions_of_every_kind_find_their_values(shared: str, version: Any) -> None:
    """Whatever they are in JSON, and in the server's, where a large float is a whole number."""
    thread_id = next(_names)
    async with opened(shared) as saver:
        made = checkpoint("1", {"x": [1]}, version)
        await saver.aput(config(thread_id), made, {}, {"x": version})
        found = await saver.aget_tuple(config(thread_id))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"x": [1]}
        (back,) = found.checkpoint["channel_versions"].values()
        assert float(back) == version if type(version) is float else back == version
        await saver.aprune([thread_id])
        assert (await saver.aget_tuple(config(thread_id))) == found


@on_asyncio
@pytest.mark.parametrize(
    "more",
    [
        {"async_saver": 1},
        {"async_saver": {"hidden": True}},
        {"v": "four"},
        {"v": 4.5},
        {"v": 2**40},
        {"v": None},
        {"more": {"a": [1, 2]}},
        {"versions_seen": {"a": {"b": 2**62}}},
    ],
    ids=repr,
)
async def test_an_odd_checkpoint_is_a_trouble_to_nobody(shared: str, more: dict[str, Any]) -> None:
    """It is refused, or comes back as it was put; other conversations are read as ever."""
    name, odd = next(_names), next(_names)
    async with opened(shared) as saver:
        await put(saver, "1", {"x": [1]}, thread_id=name)
        made = {**checkpoint("1", {"x": [1], "y": 1}), **more}
        try:
            await saver.aput(config(odd), made, {}, made["channel_versions"])  # type: ignore[arg-type]
        except AsyncSaverError:
            pass
        else:
            found = await saver.aget_tuple(config(odd))
            assert found is not None
            assert found.checkpoint == made
        listed_here = [one.config["configurable"]["thread_id"] async for one in saver.alist(None)]
        assert name in listed_here
        assert {*listed_here} == {*await all_of(saver.athread_ids())}


def random_text(number: int, seed: int = 1) -> str:
    """Text that is as long when it is compressed."""
    return "".join(
        random.Random(seed).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=number)
    )


@on_asyncio
async def test_ids_that_are_too_long_together_are_refused(database: str) -> None:
    """Before anything is stored, and before the server's own limit; one of 300 characters of any script is not."""
    han = "".join(random.Random(1).choices([chr(one) for one in range(0x4E00, 0x9FFF)], k=300))
    async with opened(database) as saver:
        store = store_of(saver)
        for long in (han[:200], random_text(300), random_text(600)):
            version = (long, long[::-1])
            await store.put(long, long, record(long, version), [(version, ("bytes", b"x"))])
            await store.put_writes(long, long, long, [written(long, channel=long, task_path=long * 10, run_id=long)])
            found = await store.get(long, long, None)
            assert found is not None
            assert (next(iter(found.values))[0], found.writes[0].task_id) == (long, long)
            await store.copy(long, long[::-1])
            assert {*await store.run_threads([long])} == {long, long[::-1]}
        await store.put(han, "", record(han, run=han), [])
        count = await store.count()
        for place in range(4):
            parts = ["t", "n", "1", "task"]
            parts[place] = random_text(3000)
            thread_id, ns, checkpoint_id, last = parts
            version = (last, "1")
            with pytest.raises(InvalidValueError, match="long"):
                await store.put(thread_id, ns, record(checkpoint_id, version), [(version, ("bytes", b""))])
            with pytest.raises(InvalidValueError, match="long"):
                await store.put_writes(thread_id, ns, checkpoint_id, [written(), written(last)])
        for version in (random_text(3000), random.Random(1).randrange(10**3500, 10**3501)):
            with pytest.raises(InvalidValueError):
                await store.put("t", "", record("1", ("c", version)), [(("c", version), ("bytes", b""))])
        with pytest.raises(InvalidValueError, match="long"):
            await store.copy(han, random_text(3000))
        assert await store.count() == count


@on_asyncio
async def test_a_copy_to_an_id_that_is_too_long_stores_nothing(database: str) -> None:
    """Also where only some of its rows are."""
    async with opened(database) as saver:
        await put(saver, "1", {"x": [1]}, ns=random_text(1500))
        for length in (500, 900, 1000, 1100, 2400):
            target = random_text(length)
            try:
                await saver.acopy_thread("t", target)
            except InvalidValueError:
                assert await listed(saver, config(target, ns=None)) == []
            else:
                assert await listed(saver, config(target, ns=None)) == ["1"]
                assert rows(database, "SELECT count(*) FROM checkpoint_blobs WHERE thread_id = %s", target) == [(1,)]


# Close.


async def test_close_lets_what_is_called_for_be_done(database: str) -> None:
    """Then no thread and no connection is left; the next call connects anew."""
    before = workers()
    saver, stored = AsyncSaver(store=PostgresStore(database)), []

    async def store_one(number: int) -> None:
        await put(saver, "1", thread_id=f"{number}")
        stored.append(number)

    await put(saver, "1")
    for _ in range(2):
        with held_up(database) as let_go:
            async with create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(store_one, number)
                await wait_all_tasks_blocked()  # trio starts them in any order, and after the next one nobody waits
                tasks.start_soon(store_of(saver).delete, [f"none {number}" for number in range(9)])
                await waiting(database, 2)
                tasks.start_soon(close, saver)
                await wait_all_tasks_blocked()
                assert not stored
                assert workers() - before
                let_go()
        assert len(stored) == 50
        await close(saver)
        await close(saver)
        assert workers() == before
        until(lambda: not connections(database), "a connection is left")
        assert await saver.acount() == 51
        stored.clear()
        for number in range(50):
            await saver.adelete_thread(f"{number}")
    await close(saver)


def test_a_store_is_closed_by_its_savers_block(database: str) -> None:
    """Of sync code, too."""
    before = workers()
    with AsyncSaver.from_conn_string(database) as saver:
        saver.put(config(), checkpoint("1"), {}, {})
        assert ids(saver.list(config())) == ["1"]
    assert {one for one in workers() - before if "portal" not in one.name} == set()
    until(lambda: not connections(database), "a connection is left")


def drop(savers: list[AsyncSaver]) -> None:
    """Have what is in a list collected."""
    savers.clear()
    gc.collect()


def test_a_store_that_was_forgotten_says_so(database: str) -> None:
    """If it was connected: there is nothing to say of one that was not, or that was closed."""
    saver = AsyncSaver(store=PostgresStore(database))
    anyio.run(put, saver, "1")
    forgotten = [saver]
    del saver
    with pytest.warns(ResourceWarning, match=r"PostgresStore.*not closed") as warned:
        drop(forgotten)
    assert PASSWORD not in str(warned[0].message)
    saver = AsyncSaver(store=PostgresStore(database))
    anyio.run(put, saver, "1")
    anyio.run(close, saver)
    del saver
    AsyncSaver(store=PostgresStore(database))
    gc.collect()


def test_forgotten_stores_leave_nothing(database: str) -> None:
    """Neither a thread nor a descriptor nor a connection; what they have stored is there."""

    async def use_and_drop() -> None:
        for number in range(50):
            saver = AsyncSaver(store=PostgresStore(database, pool_size=2))
            await put(saver, f"{number:03}")
            assert await saver.aget_tuple(config()) is not None
            del saver
            if number % 10 == 9:
                gc.collect()

    gc.collect()
    before, files = workers(), descriptors()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        anyio.run(use_and_drop)
        gc.collect()
    assert [one.category for one in warned] == [ResourceWarning] * 50
    until(lambda: workers() <= before and descriptors() <= files, "a thread or a descriptor is left")
    until(lambda: not connections(database), "a connection is left")
    assert rows(database, "SELECT count(*) FROM checkpoints") == [(50,)]


@pytest.mark.parametrize("first", [False, True], ids=["in a call", "in the first call"])
def test_a_store_that_is_forgotten_in_the_midst_of_a_call(database: str, first: bool) -> None:
    """Whose caller was cancelled: it ends when that ends, and leaves nothing."""
    before = workers()
    forgotten = [AsyncSaver(store=PostgresStore(database))]
    if not first:
        anyio.run(forgotten[0].asetup)

    async def call(saver: AsyncSaver) -> None:
        async with create_task_group() as tasks:
            tasks.start_soon(put, saver, "1")
            await waiting(database)
            tasks.cancel_scope.cancel()

    with admin(database) as connection, nullcontext() if first else held_up(database):
        connection.execute("SELECT pg_advisory_lock(1635148146, -1)")  # who makes tables waits for it
        anyio.run(call, forgotten[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            drop(forgotten)
    until(lambda: workers() <= before, "a thread is left")
    until(lambda: not connections(database), "a connection is left")


def test_a_store_may_be_collected_by_a_thread_of_its_own(database: str) -> None:
    """As any allocation may run the collector."""
    before, forgotten = workers(), list[AsyncSaver]()

    def configure(_: Any) -> None:
        if forgotten:
            drop(forgotten)

    saver = AsyncSaver(store=PostgresStore(database, pool_kwargs={"configure": configure, "timeout": 5}))
    anyio.run(put, saver, "1")
    pool = store_of(saver)._engine.server._own
    forgotten.append(saver)
    del saver
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with suppress(Exception), ExitStack() as stack:
            for _ in range(4):  # which has the pool grow
                stack.enter_context(pool.connection())
        until(lambda: not forgotten, "it was not collected")
        until(lambda: workers() <= before, "a thread is left")
    until(lambda: not connections(database), "a connection is left")


@pytest.mark.parametrize("way", ["idle", "in the midst", "at exit"])
def test_a_process_that_closes_nothing_ends(database: str, way: str) -> None:
    """Soon, and says nothing; what it was told of is there."""
    what = {
        "idle": "asyncio.run(put(saver, '1'))\nsaver.put(config(), checkpoint('1'), {}, {})",
        "in the midst": """
saver.put(config(), checkpoint('1'), {}, {})
async def begin():
    for number in range(200):
        asyncio.ensure_future(put(saver, "1", thread_id=f"{number}"))._log_destroy_pending = False
    await asyncio.sleep(0.001)
asyncio.run(begin())
""",
        "at exit": "import atexit\natexit.register(lambda: saver.put(config(), checkpoint('1'), {}, {}))",
    }[way]
    script = f"""
import asyncio, time
from async_saver import AsyncSaver
from async_saver.stores.postgres import PostgresStore
from tests.build import checkpoint, config, put
saver = AsyncSaver(store=PostgresStore({database!r}))
{what}
print(time.monotonic())
"""
    printed = output_of(script, seconds=30)
    assert time.monotonic() - float(printed) < 10
    assert rows(database, "SELECT checkpoint_id FROM checkpoints WHERE thread_id = 't'") == [("1",)]
    until(lambda: not connections(database), "a connection is left")


# Forks.

FORKS = """
import gc, psycopg
from async_saver.stores.postgres import PostgresStore
url = {url!r}
pooled = {pooled!r}

def backends():
    with psycopg.connect(url, autocommit=True) as one:
        found = one.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()").fetchall()
        return {{pid for (pid,) in found}}

saver = AsyncSaver(store=PostgresStore(url, pool_size=2))
"""


@POSIX
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "in the midst of calls"])
def test_a_child_has_connections_of_its_own(database: str, is_busy: bool) -> None:
    """It never touches its parent's, however it ends; the parent goes on with those that it had."""
    runs(
        FORKS.format(url=database, pooled=THROUGH == "pgbouncer")
        + f"""
import warnings
is_busy = {is_busy}
unused = AsyncSaver(store=PostgresStore(url))

async def fork_in_the_midst():
    for number in range(100):
        for call in (put(saver, "0", {{"x": [1]}}, thread_id=f"begun {{number}}"), saver.aget_tuple(config())):
            asyncio.ensure_future(call)._log_destroy_pending = False
    await asyncio.sleep(0.002)
    children = fork_some()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.001)
    return children

def fork_some():
    children = []
    for number in range(4):
        children.append(os.fork())
        if not children[-1]:
            faulthandler.dump_traceback_later(30, exit=True)
            child(number)
    return children

def child(number):
    global saver
    warnings.simplefilter("ignore", ResourceWarning)
    try:
        name = f"child {{number}}"
        saver.put(config(name), checkpoint("1", {{"x": [1]}}, "1"), {{}}, {{"x": "1"}})
        assert saver.get(config(name))["channel_values"] == {{"x": [1]}}
        assert saver.get(config()) is not None
        assert unused.get(config()) is not None
        assert pooled or not backends() <= before
        if number == 0:
            saver = None
            gc.collect()
        if number == 1:
            asyncio.run(saver._shared.store.close())
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    if number == 0:
        os._exit(0)
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit()

saver.put(config(), checkpoint("1"), {{}}, {{}})
before = backends()
children = asyncio.run(fork_in_the_midst()) if is_busy else fork_some()
ended = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]
assert ended == [0, 0, -9, 0], ended
for number in range(20):
    saver.put(config("parent"), checkpoint(f"{{number:02}}"), {{}}, {{}})
    saver.get(config("parent"))
assert pooled or before <= backends()  # a pooler ends those whose client went in the midst of a call
assert len(ids(saver.list(config("parent")))) == 20
found = [one.partition(" ")[0] for one in saver.thread_ids()]
assert (found.count("child"), found.count("begun")) == (4, 100 * is_busy), found
assert unused.get(config()) is not None
for one in (saver, unused):
    asyncio.run(one._shared.store.close())
"""
    )


@POSIX
def test_a_pool_of_the_users_is_not_used_in_a_child(database: str) -> None:
    """Its connections are the parent's: calls say so, and the parent goes on with them; a store of its own works."""
    runs(
        FORKS.format(url=database, pooled=THROUGH == "pgbouncer")
        + """
from psycopg_pool import ConnectionPool
from async_saver import StorageError
pool = ConnectionPool(url, open=True, min_size=1, max_size=2)
saver = AsyncSaver(store=PostgresStore(pool))
saver.put(config(), checkpoint("0"), {}, {})

def child():
    for call in (lambda: saver.put(config(), checkpoint("1"), {}, {}), lambda: saver.get(config()), saver.count):
        try:
            call()
        except StorageError as exc:
            assert "fork" in str(exc)
        else:
            raise AssertionError
    with AsyncSaver(store=PostgresStore(url)) as own:
        own.put(config(), checkpoint("2"), {}, {})

wait(fork(child))
assert ids(saver.list(config())) == ["2", "0"]
pool.close()
asyncio.run(saver._shared.store.close())
"""
    )


@POSIX
def test_processes_that_multiprocessing_forks(database: str) -> None:
    """They end in their own way, which leaves the parent's connections alone, too."""
    runs(
        FORKS.format(url=database, pooled=THROUGH == "pgbouncer")
        + """
import multiprocessing
saver.put(config(), checkpoint("0"), {}, {})
before = backends()

def child(number):
    assert ids(saver.list(config()))[-1] == "0"
    saver.put(config(f"child {number}"), checkpoint("0"), {}, {})
    asyncio.run(saver._shared.store.close())

started = [multiprocessing.get_context("fork").Process(target=child, args=(number,)) for number in range(3)]
for one in started:
    one.start()
for number in range(1, 20):
    saver.put(config(), checkpoint(f"{number:02}"), {}, {})
for one in started:
    one.join()
    assert one.exitcode == 0
assert before <= backends()
assert saver.count() == 4
asyncio.run(saver._shared.store.close())
"""
    )


# A server that goes away, and comes back.


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


async def warm(saver: AsyncSaver) -> None:
    """Have a store open all of its connections."""
    for _ in range(3):
        async with create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(lambda number=number: put(saver, "1", {"x": [1]}, thread_id=f"{number}"))
                tasks.start_soon(saver.aget_tuple, config(f"{number}"))
            tasks.start_soon(saver.acount)
            tasks.start_soon(store_of(saver).delete, [f"none {number}" for number in range(8)])


CALLS: dict[str, Callable[[AsyncSaver], Awaitable[Any]]] = {
    "put": lambda saver: put(saver, "2", {"x": [2]}, thread_id="0"),
    "put, if nobody else has": lambda saver: put(
        AsyncSaver(store=store_of(saver), on_conflict="raise"), "2", thread_id="5", parent="1"
    ),
    "writes": lambda saver: saver.aput_writes(config("0", "1"), [("x", 1)], "task"),
    "get": lambda saver: saver.aget_tuple(config("0")),
    "list": lambda saver: listed(saver, None),
    "thread_ids": lambda saver: all_of(saver.athread_ids()),
    "count": lambda saver: saver.acount(),
    "copy": lambda saver: saver.acopy_thread("1", f"copy {next(_names)}"),
    "delete": lambda saver: saver.adelete_thread("2"),
    "delete several": lambda saver: store_of(saver).delete([f"{number}" for number in range(9)]),
    "prune": lambda saver: saver.aprune(["1"]),
    "runs": lambda saver: saver.adelete_for_runs(["none"]),
    "setup": lambda saver: saver.asetup(),
}


def _have_ended(database: str) -> bool:
    """Have all connections end, also those that a pool was about to make, and tell whether they have."""
    rows(database, f"SELECT pg_terminate_backend(pid) {_OTHERS}")
    return not processes(database)


@on_asyncio
@pytest.mark.parametrize("pool", [False, True], ids=["its own", "the user's"])
async def test_connections_that_end_while_nobody_uses_them(database: str, pool: bool) -> None:
    """The next call, of whatever kind, connects anew, and its caller sees nothing of it."""
    with ExitStack() as stack:
        where = stack.enter_context(pool_on(database, max_size=4))[0] if pool else database
        async with opened(where) as saver:
            for name, call in CALLS.items():
                if pool and name not in ("put", "get", "copy", "delete several"):
                    continue
                await warm(saver)
                assert len(connections(database)) >= 2
                until(partial(_have_ended, database), "a connection has not ended")
                await call(saver)


@on_asyncio
async def test_a_server_that_is_restarted_between_two_calls(unsteady: str, other_server: Server) -> None:
    """The next calls work, many at once, too."""
    async with opened(unsteady) as saver:
        await warm(saver)
        for crash in (False, True):
            other_server.restart(crash=crash)
            await CALLS["copy"](saver) if not crash else await CALLS["list"](saver)
            await warm(saver)
            other_server.restart(crash=crash)
            await warm(saver)
        assert await saver.acount() == 21  # and a copy, once


@on_asyncio
async def test_a_server_that_stops_and_comes_back(
    unsteady: str, other_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away calls fail, in the time that the pool says; once it is back, the same store works."""
    with silent(caplog) as shown:
        async with opened(unsteady, pool_kwargs={"timeout": 0.3}) as saver:
            await warm(saver)
            other_server.stop()
            for name in ("put", "get", "copy", "setup"):
                began = time.monotonic()
                with pytest.raises(StorageError) as caught:
                    await CALLS[name](saver)
                assert time.monotonic() - began < 10
                shown.append(told(caught.value))
            other_server.start()
            end = time.monotonic() + 20
            while True:
                try:
                    await saver.acount()
                    break
                except StorageError:
                    assert time.monotonic() < end
            await warm(saver)
            assert await saver.acount() == 20
        async with opened(unsteady, pool_kwargs={"timeout": 3}) as saver:
            other_server.stop()
            with pytest.raises(StorageError, match="refused" if THROUGH != "pgbouncer" else "timeout|failing"):
                await saver.acount()
            other_server.start()
            assert await saver.acount() == 20


@on_asyncio
async def test_what_was_in_flight_when_a_server_went_away(unsteady: str, other_server: Server) -> None:
    """Is stored, or its caller is told; what was acknowledged is there, and nothing is stored by halves."""
    acknowledged: set[str] = set()
    async with opened(unsteady, pool_kwargs={"timeout": 10}) as saver:
        await warm(saver)

        async def write(name: str) -> None:
            for number in range(60):
                thread_id = f"{name} {number}"
                with suppress(StorageError):
                    await put(saver, "1", {"x": [thread_id]}, thread_id=thread_id)
                    acknowledged.add(thread_id)
                if len(acknowledged) == 100:
                    under_way.set()

        under_way = anyio.Event()
        async with create_task_group() as tasks:
            for name in "abcdefgh":
                tasks.start_soon(write, name)
            await under_way.wait()
            await anyio.to_thread.run_sync(partial(other_server.restart, crash=True))
        await warm(saver)
        found = await contents(saver)
        assert acknowledged <= {*found}
        assert all(held["1"][0] == {"x": [name]} for name, held in found.items() if " " in name)


async def test_connections_that_end_in_the_midst(database: str) -> None:
    """A call that may be done again is; a copy is, or its caller is told. None hangs, and nothing is torn."""
    async with opened(database) as saver:
        for number in range(4):
            await put(saver, "1", {"x": [1]}, thread_id=f"source {number}")
        with admin(database) as connection:
            for moment in range(12):
                told = 0

                async def copy_one(number: int, moment: int = moment) -> None:
                    nonlocal told
                    try:
                        await saver.acopy_thread(f"source {number % 4}", f"{moment} {number}")
                    except (StorageError, ThreadExistsError):
                        told += 1

                with anyio.fail_after(20):
                    async with create_task_group() as tasks:
                        for number in range(6):
                            tasks.start_soon(copy_one, number)
                            tasks.start_soon(
                                lambda n=number, m=moment: put(saver, "1", {"x": [1]}, thread_id=f"{m} p {n}")
                            )
                        for _ in range(moment):
                            await let_others_run()
                        connection.execute(f"SELECT pg_terminate_backend(pid) {_OTHERS}".encode())
                found = await contents(saver)
                assert all(held == {"1": ({"x": [1]}, [])} for held in found.values())
                assert sum(one.startswith(f"{moment} ") for one in found) >= 12 - told
                assert sum(one.startswith(f"{moment} p") for one in found) == 6


@on_asyncio
async def test_a_statement_that_takes_too_long_is_told(database: str) -> None:
    """As a database's own limits say; then the store goes on."""
    async with opened(with_setting(database, "statement_timeout", "500")) as saver:
        await put(saver, "1")
        with held_up(database):
            for call in ("put", "delete", "delete several"):
                with pytest.raises(StorageBusyError, match="timeout"):
                    await CALLS[call](saver)
        await use(saver, "u")
