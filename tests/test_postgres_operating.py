"""What docs/operating.md has people run is run, as it stands there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_saver import AsyncSaver, SessionInterruptedError, SessionLostError
from tests.build import all_of, config, listed, put
from tests.postgres import PASSWORD, THROUGH, needed, new_database, server

_PAGE = (Path(__file__).parent.parent / "docs/operating.md").read_text("utf-8")
_BLOCKS = [block.replace("\n  ", "\n") for block in re.findall(r"```sql\n(.*?)```", _PAGE, re.DOTALL)]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.skipif(THROUGH is not None, reason="what is run is the same"),
]


def block(beginning: str) -> str:
    """The one block that begins so."""
    found: list[str] = [one for one in _BLOCKS if one.strip().startswith(beginning)]
    assert len(found) == 1
    return found[0]


@contextmanager
def connected(database: str) -> Iterator[Any]:
    """A connection of somebody who may do anything."""
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(server().over_socket(database.rpartition("/")[2]), autocommit=True) as admin:
        yield admin


def run(admin: Any, statements: str) -> None:
    """Run statements, each by itself, as `psql` does."""
    for statement in filter(None, map(str.strip, statements.split(";"))):
        admin.execute(statement)


async def test_each_block_runs(database: str) -> None:
    """While all is in use, but what takes it away; and then the saver begins anew."""
    away = block("DROP TABLE")
    with connected(database) as admin:
        async with AsyncSaver.from_conn_string(database) as saver:
            await put(saver, "1")
            admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
            try:
                async with saver.session("another"):
                    for one in _BLOCKS:
                        run(admin, one if one != away else "")
            finally:
                admin.execute("DROP OWNED BY app")
                admin.execute("DROP ROLE app")
        run(admin, away)
        async with AsyncSaver.from_conn_string(database) as saver, saver.session("t"):
            assert await listed(saver, config()) == ["1"]
    assert len(_BLOCKS) == 7


async def test_the_rights_are_enough(database: str) -> None:
    """For all that a saver does, sessions among it."""
    async with AsyncSaver.from_conn_string(database):
        pass
    with connected(database) as admin:
        admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        try:
            run(admin, block("GRANT USAGE"))
            url = server().conninfo(database.rpartition("/")[2], "app")
            async with AsyncSaver.from_conn_string(url) as saver:
                async with saver.session("t") as session:
                    await put(saver, "1", run_id="run")
                    assert session.lease is not None
                await saver.aprune(["t"])
                await saver.acopy_thread("t", "copy")
                await saver.adelete_for_runs(["run"])
                await saver.adelete_thread("copy")
                assert await all_of(saver.athread_ids()) == []
        finally:
            admin.execute("DROP OWNED BY app")
            admin.execute("DROP ROLE app")


async def test_a_session_can_be_ended_by_hand(database: str) -> None:
    """What it still stores is refused, and the conversation is free."""
    async with AsyncSaver.from_conn_string(database) as saver:
        session = saver.session("...").__enter__()  # sync code is told at its end only
        await put(saver, "1", thread_id="...")
        with connected(database) as admin:
            assert admin.execute(block("SELECT thread_id, fence, owner")).fetchone()[:2] == ("...", session.fence)
            run(admin, block("UPDATE async_saver_leases"))
        with pytest.raises(SessionLostError):
            await put(saver, "2", thread_id="...")
        with pytest.raises((SessionLostError, SessionInterruptedError)):
            session.__exit__(None, None, None)
        async with saver.session("...", multitask_strategy="reject"):
            assert await listed(saver, config(thread_id="...")) == ["1"]


@pytest.mark.parametrize("options", [[], ["--exclude-table=async_saver_*"]], ids=["whole", "official tables"])
async def test_a_backup_is_restored(database: str, options: list[str]) -> None:
    """By the server's own programs; without our tables, too."""
    programs = needed()._programs
    if not (programs / "pg_dump").exists():
        pytest.skip("there is no pg_dump beside the server")
    async with AsyncSaver.from_conn_string(database) as saver:
        async with saver.session("t"):
            await put(saver, "1")
        name = database.rpartition("/")[2]
        dump = [str(programs / "pg_dump"), server().over_socket(name), *options]
        dumped = (await anyio.run_process(dump)).stdout
    with new_database() as restored:
        target = server().over_socket(restored.rpartition("/")[2])
        restore = [str(programs / "psql"), "--quiet", "--set=ON_ERROR_STOP=1", target]
        await anyio.run_process(restore, input=dumped)
        async with AsyncSaver.from_conn_string(restored) as saver:
            assert await listed(saver, config()) == ["1"]
            async with saver.session("t", multitask_strategy="reject"):
                await put(saver, "2")
            assert await listed(saver, config()) == ["2", "1"]
