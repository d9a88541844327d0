"""The PostgreSQL server of the tests: it is alone, it leaves nothing, and where there is none that is said."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_saver import AsyncSaver
from tests.build import config, listed, put
from tests.postgres import PASSWORD, Server, direct, needed, new_database, role
from tests.stores import NewStore, contents

psycopg = pytest.importorskip("psycopg")


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """One that tests may stop."""
    needed()
    made = Server(max_connections=20)
    yield made
    made.close()


def test_a_restarted_server_has_its_port_and_its_data(own: Server) -> None:
    """Also after a crash; who was connected is not any more."""
    with new_database(own) as of_stores:
        url = direct(of_stores, own)
        for crash in (False, True):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS one")
                own.restart(crash=crash)
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT one FROM kept").fetchall() == [(1,)]
    assert "s3cret" not in own.log()


def test_a_stopped_server_answers_nobody(own: Server) -> None:
    """Until it is started."""
    own.stop()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(own.conninfo())
    own.start()
    psycopg.connect(own.conninfo()).close()


def test_it_asks_for_the_password(own: Server) -> None:
    """Over TCP; the tests' own look is over the socket."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(own.conninfo(password="another"))
    with psycopg.connect(own.over_socket()) as connection:
        assert connection.execute("SHOW max_connections").fetchone() == ("20",)


def test_a_database_is_dropped_whoever_is_connected(database: str) -> None:
    """And each is empty."""
    with new_database() as of_stores, psycopg.connect(url := direct(of_stores)) as connection:
        assert of_stores != database
        assert connection.execute("SELECT * FROM pg_tables WHERE schemaname = 'public'").fetchall() == []
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_a_role_may_change_what_is_in_tables_and_make_none(database: str) -> None:
    """Nor a schema."""
    with psycopg.connect(database) as admin:
        admin.execute("CREATE TABLE there (id serial, name text)")
    with role(database) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO there (name) VALUES ('one')")
        connection.execute("UPDATE there SET name = 'two'")
        assert connection.execute("DELETE FROM there RETURNING id, name").fetchall() == [(1, "two")]
        for statement in ("CREATE TABLE more (id int)", "CREATE SCHEMA more", "ALTER TABLE there ADD more int"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        assert f":{PASSWORD}@" in url


def test_nothing_is_left_of_a_process_that_was_killed(own: Server) -> None:
    """Neither the server nor its files."""
    script = "import tests.postgres as p; s = p.server(); print(s.sockets, s.conninfo(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as it:
        assert it.stdout is not None
        folder, url = it.stdout.readline().split()
        psycopg.connect(url).close()
        it.kill()
    until = time.monotonic() + 30
    while Path(folder).exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)


@pytest.mark.parametrize("ci", [False, True])
def test_where_there_is_no_server_tests_are_skipped_and_it_is_said(tmp_path: Path, ci: bool) -> None:
    """And in CI it is an error."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"ASYNC_SAVER_POSTGRES_BIN": str(tmp_path), **({"CI": "true"} if ci else {})}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_conformance.py", "-k", "postgres"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = f"there is no PostgreSQL server: ASYNC_SAVER_POSTGRES_BIN names {tmp_path}, and it is not there"
    if ci:
        assert run.returncode == pytest.ExitCode.TESTS_FAILED
        assert f"NoServerError: {said}" in run.stdout
    else:
        assert run.returncode == pytest.ExitCode.OK
        assert f"tests that need PostgreSQL were skipped: {said}" in run.stdout
        assert "SKIPPED" in run.stdout


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_store_finds_nothing_of_the_one_that_had_its_schema_before(tmp_path: Path) -> None:
    """And a copy of a store has what that has, and is another."""
    needed()
    with NewStore("postgres", tmp_path) as new_store:
        first = new_store()
        saver = AsyncSaver(store=first)
        await put(saver, "1", {"x": [1]})
        await saver.aput_writes(config(checkpoint_id="1"), [("x", [2])], "task")
        twin = new_store.copy(first)
        await put(saver, "2", {"x": [1]})
        assert await listed(AsyncSaver(store=twin), config()) == ["1"]
        assert [len(part) for part in contents(AsyncSaver(store=twin))] == [1, 1, 1]
    with NewStore("postgres", tmp_path) as new_store:
        again = [new_store(), new_store()]
        assert {one.schema_of_tests for one in again} == {first.schema_of_tests, twin.schema_of_tests}
        for store in again:
            assert not any(contents(AsyncSaver(store=store)))
