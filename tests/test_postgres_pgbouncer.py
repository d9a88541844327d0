"""What `PostgresStore` promises behind a PgBouncer in transaction mode, where no state of a connection lasts.

All other tests of the store run through one as well where the environment variable ASYNC_SAVER_THROUGH is "pgbouncer".
"""

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio import create_task_group

from async_saver import AsyncSaver, StorageError
from tests.build import config, listed, put
from tests.postgres import THROUGH, PgBouncer, direct, needed, needed_pgbouncer, role, server
from tests.sqlite_worker import POSIX, Script
from tests.workers import LOOPS, on_loop, together

if not find_spec("psycopg"):
    pytest.skip("there is no psycopg", allow_module_level=True)

import psycopg
from psycopg_pool import ConnectionPool

from tests.test_postgres import _OTHERS, SETUP, contents, opened, rows, store_of, use

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """No event loop has a part in this, but where it is said."""
    return "asyncio"


@pytest.fixture(scope="module")
def pooler() -> Iterator[PgBouncer]:
    """One with three connections to the server for each database and role."""
    made = needed_pgbouncer(needed())
    yield made
    made.close()


@pytest.fixture(scope="module")
def narrow() -> Iterator[PgBouncer]:
    """One that has all clients of a database take turns on a single connection."""
    made = needed_pgbouncer(needed(), pool_size=1)
    yield made
    made.close()


def by(pooler: PgBouncer, url: str, **parameters: object) -> str:
    """The URL of a database and its role, through a pooler."""
    parts = urlsplit(url)
    return pooler.conninfo(parts.path[1:], parts.username or "", **parameters)


# How it is found out.


@contextmanager
def pool_on(url: str) -> Iterator[Any]:
    """A user's own, of one connection."""
    with ConnectionPool(url, min_size=1, max_size=1, kwargs={"autocommit": True}) as pool:
        yield pool


@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.parametrize("is_theirs", [False, True], ids=["its own pool", "the user's"])
async def test_a_pooler_is_found_out(database: str, mode: str, is_theirs: bool) -> None:
    """Nobody has to say that there is one, and nothing is prepared there."""
    pooler = needed_pgbouncer(server(), pool_size=1, pool_mode=mode)
    try:
        url = by(pooler, database)
        async with AsyncExitStack() as stack:
            where = stack.enter_context(pool_on(url)) if is_theirs else url
            saver = await stack.enter_async_context(opened(where))
            for number in range(3):
                await use(saver, f"{number}")
            assert store_of(saver)._engine.server.is_pooled
            if mode == "transaction":
                assert prepared(url) == []
    finally:
        pooler.close()


def prepared(url: str) -> list[Any]:
    """What is prepared on the one connection that a pooler has."""
    with psycopg.connect(url, prepare_threshold=None) as connection:
        found: list[Any] = connection.execute("SELECT statement FROM pg_prepared_statements").fetchall()
        return found


@pytest.mark.skipif(THROUGH == "unprepared", reason="nothing is to be prepared")
async def test_where_there_is_none_statements_are_prepared(database: str) -> None:
    """As that is faster."""
    with pool_on(direct(database)) as pool:
        async with opened(pool) as saver:
            await use(saver)
            assert not store_of(saver)._engine.server.is_pooled
            with pool.connection() as connection:
                (count,) = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
            assert count


async def test_it_can_be_said_that_there_is_a_pooler(database: str) -> None:
    """Of one that tells the server's own numbers: by what psycopg has for it."""
    async with opened(direct(database), pool_kwargs={"kwargs": {"prepare_threshold": None}}) as saver:
        await use(saver)
        assert store_of(saver)._engine.server.is_pooled


async def test_a_parameter_that_is_not_taken_is_told_with_what_to_do(pooler: PgBouncer, database: str) -> None:
    """PgBouncer passes on few; once it is told to leave it out, all works."""
    url = by(pooler, database, options="-c statement_timeout=9000")
    async with opened(url) as saver:
        with pytest.raises(StorageError, match=re.escape("ALTER ROLE")) as caught:
            await saver.asetup()
        assert "options; that is PgBouncer" in str(caught.value)
        assert "ignore_startup_parameters" in str(caught.value)
    lenient = needed_pgbouncer(server(), ignore_startup_parameters="options")
    try:
        async with opened(by(lenient, database, options="-c statement_timeout=9000")) as saver:
            await use(saver)
    finally:
        lenient.close()


# Connections are shared.


def test_many_tasks_of_several_event_loops_share_three_connections(pooler: PgBouncer, database: str) -> None:
    """Each finds what it has put, and nobody has a connection for himself."""
    url = by(pooler, database)

    async def work(name: str) -> None:
        async with opened(url) as saver:

            async def one(thread_id: str) -> None:
                for number in range(3):
                    await put(saver, f"{number}", {"x": [thread_id, number]}, thread_id=thread_id)
                    found = await saver.aget_tuple(config(thread_id))
                    assert found is not None
                    assert found.checkpoint["channel_values"] == {"x": [thread_id, number]}

            async with create_task_group() as tasks:
                for number in range(64):
                    tasks.start_soon(one, f"{name} {number}")

    together(*(partial(on_loop, number, work, f"{number}") for number in range(len(LOOPS) + 1)))
    assert rows(database, "SELECT count(DISTINCT thread_id), count(*) FROM checkpoints") == [
        ((len(LOOPS) + 1) * 64, (len(LOOPS) + 1) * 64 * 3)
    ]
    assert [one["database"] for one in pooler.show("SERVERS")].count(urlsplit(database).path[1:]) == 3


SESSION_STATE = """
SELECT current_setting('search_path'), current_setting('default_transaction_isolation'),
    (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_class WHERE relpersistence = 't')
"""


async def test_stores_with_a_schema_each_take_turns_on_one_connection(narrow: PgBouncer, database: str) -> None:
    """Neither sees what the other one has, and nothing of either is left on the connection."""
    url = by(narrow, database)
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as neighbour:
        before = neighbour.execute(SESSION_STATE).fetchone()
        names = ["agents", 'odd "name" of 100%', None]
        async with AsyncExitStack() as stack:
            savers = [await stack.enter_async_context(opened(url, schema=name)) for name in names]
            for number in range(3):
                async with create_task_group() as tasks:
                    for saver in savers:
                        tasks.start_soon(use, saver, f"{number}")
                assert neighbour.execute(SESSION_STATE).fetchone() == before
            async with create_task_group() as tasks:
                for saver, name in zip(savers, names, strict=True):
                    await saver.adelete_thread("mine")
                    tasks.start_soon(partial(put, saver, "1", {"x": [name]}, thread_id="mine"))
            for saver, name in zip(savers, names, strict=True):
                assert (await contents(saver))["mine"] == {"1": ({"x": [name]}, [])}
    found = rows(database, "SELECT schemaname FROM pg_tables WHERE tablename = 'checkpoints' ORDER BY schemaname")
    assert found == [("agents",), ('odd "name" of 100%',), ("public",)]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_whatever_isolation_the_server_has(pooler: PgBouncer, database: str, level: str) -> None:
    """Each statement has the store's own: nobody is refused for what another one did meanwhile."""
    name = urlsplit(database).path[1:]
    note = """
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO levels VALUES (current_setting('transaction_isolation')); RETURN NEW;
        END $$
    """
    async with opened(by(pooler, database)) as saver:
        await saver.asetup()
    with psycopg.connect(server().over_socket(name), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'".encode())
        admin.execute("CREATE TABLE levels (level TEXT)")
        admin.execute(note)
        for table in ("checkpoints", "checkpoint_writes"):
            trigger = f"CREATE TRIGGER note BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION note()"
            admin.execute(trigger.encode())
        admin.execute(f"SELECT pg_terminate_backend(pid, 10000) {_OTHERS}".encode())
    async with opened(by(pooler, database)) as saver:
        await use(saver)
    assert rows(database, "SELECT DISTINCT level FROM levels") == [("read committed",)]


async def test_sessions_exclude_each_other(narrow: PgBouncer, database: str) -> None:
    """Though nobody listens for the end of one, as the connection is everybody's."""
    url = by(narrow, database)
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as neighbour:
        before = neighbour.execute(SESSION_STATE).fetchone()
        async with opened(url) as one, opened(url) as two:
            order: list[str] = []

            async def have(saver: AsyncSaver, name: str) -> None:
                for _ in range(2):
                    async with saver.session("t", timeout=20):
                        order.append(name)
                        await put(saver, f"{len(order)}")
                        assert neighbour.execute(SESSION_STATE).fetchone() == before
                        order.append(name)

            async with create_task_group() as tasks:
                tasks.start_soon(have, one, "one")
                tasks.start_soon(have, two, "two")
            assert order[::2] == order[1::2]
            assert sorted(order) == ["one"] * 4 + ["two"] * 4


# Faults, and rights.


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
async def test_one_that_is_restarted_in_the_midst(database: str, crash: bool) -> None:
    """No call that puts fails, all that was acknowledged is there, and nothing is there by halves."""
    pooler = needed_pgbouncer(server())
    acknowledged: set[str] = set()
    try:
        async with opened(by(pooler, database)) as saver:
            await saver.asetup()
            under_way, is_over = anyio.Event(), False

            async def write(name: str) -> None:
                number = 0
                while not is_over:
                    thread_id, number = f"{name} {number}", number + 1
                    await put(saver, "1", {"x": [thread_id]}, thread_id=thread_id)
                    acknowledged.add(thread_id)
                    if len(acknowledged) > 100:
                        under_way.set()

            async with create_task_group() as tasks:
                for name in "abcdefgh":
                    tasks.start_soon(write, name)
                await under_way.wait()
                for _ in range(2):
                    await anyio.to_thread.run_sync(partial(pooler.restart, crash=crash))
                    await put(saver, "1", thread_id="after it")
                is_over = True
            await use(saver)
            found = await contents(saver)
            assert acknowledged <= {*found}
            assert all(held["1"][0] == {"x": [name]} for name, held in found.items() if name in acknowledged)
    finally:
        pooler.close()


@POSIX
def test_tables_are_made_by_several_processes_at_once(pooler: PgBouncer, database: str) -> None:
    """Ten of them, on three connections."""
    with Script(SETUP, by(pooler, database)) as script:
        assert script.end() == ["4"] * 10


async def test_a_role_has_the_rights_that_it_has(pooler: PgBouncer, database: str) -> None:
    """It makes no tables, and uses those that are there, of its schema alone."""
    async with opened(by(pooler, database), schema="agents") as saver:
        await put(saver, "1")
    with role(database, "agents") as theirs:
        async with opened(by(pooler, theirs), schema="agents") as saver:
            assert await listed(saver, config()) == ["1"]
            await use(saver, "u")
        async with opened(by(pooler, theirs), schema="others") as saver:
            with pytest.raises(StorageError, match="may not make them"):
                await put(saver, "1")
