"""AsyncSaver on a file of SQLite against AsyncSqliteSaver, both in WAL mode and at synchronous=FULL.

python benchmarks/sqlite.py                        # all of it, about ten minutes
python benchmarks/sqlite.py put64 put1             # single parts
python benchmarks/sqlite.py --quick put64          # few rounds: half a minute for put64, put1 and get64

The files are in a directory of their own below TMPDIR, or below the current directory: let that be a real disk.
"""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from durable import AT_ONCE, Pair, Part, agent, calls, delay, get, grow, main, nothing, on_disk, put
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from peers import LIMIT, OURS, SQLITE, References
from report import Bar, at_least, at_most

from async_saver import AsyncSaver


@asynccontextmanager
async def opened(name: str, directory: Path) -> AsyncIterator[Any]:
    """Hand out a saver of that name on a new file in a directory, or the one that only keeps references."""
    path = f"{directory / name}.db"
    if name == LIMIT:
        yield References()
    elif name == OURS:
        async with AsyncSaver.from_conn_string(f"sqlite:///{path}") as saver:
            yield saver
    else:
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            await saver.setup()  # sets the journal's mode
            await saver.conn.execute("PRAGMA synchronous=FULL")
            for pragma, wanted in {"journal_mode": "wal", "synchronous": 2}.items():
                async with saver.conn.execute(f"PRAGMA {pragma}") as found:
                    assert await found.fetchone() == (wanted,), pragma
            yield saver


def held(name: str, directory: Path) -> float:
    """Return the megabytes that a saver's files have; it must be closed."""
    files = [*directory.glob(f"{name}.db*")]
    [database] = [path for path in files if path.suffix == ".db"]
    with database.open("rb") as file:
        assert file.read(20)[18:] == b"\2\2", f"{name} was not in WAL mode"
    return sum(path.stat().st_size for path in files) / 1e6


@contextmanager
def ready() -> Iterator[tuple[Pair, str]]:
    """Hand out the savers, and how both use SQLite."""
    note = f"SQLite {sqlite3.sqlite_version}, both savers at journal_mode=WAL and synchronous=FULL"
    yield Pair(SQLITE, on_disk, opened, held), note


PARTS: dict[str, Part] = {
    "put64": partial(
        calls, "`aput` and `aput_writes`, 64 conversations at once", at_least(5), nothing, partial(put, AT_ONCE, 0)
    ),
    "put64of50": partial(
        calls, "the same, 41 to 50 messages instead of 1 to 10", None, nothing, partial(put, AT_ONCE, 40)
    ),
    "put1": partial(calls, "one conversation, 1 to 10 messages", at_least(1.1), nothing, partial(put, 1, 0)),
    "get64": partial(calls, "`aget_tuple` of 50 messages, 64 at once", at_least(3), grow, get),
    "agent": partial(agent, False, at_least(2.5), at_most(0.2)),
    "agent20": partial(agent, True, None, at_most(0.2)),
    "delay": partial(delay, False, Bar(8, of="ms")),
    "delay20": partial(delay, True, None),
}

if __name__ == "__main__":
    main(__doc__.partition("\n")[0], "SQLite", PARTS, ready)
