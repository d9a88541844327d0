"""AsyncSaver on a file of SQLite against AsyncSqliteSaver, both in WAL mode and at synchronous=FULL.

python benchmarks/sqlite.py                        # all of it, about ten minutes
python benchmarks/sqlite.py put64 put1             # single parts
python benchmarks/sqlite.py --quick put64          # few rounds: half a minute for put64, put1 and get64

The files are in a directory of their own below TMPDIR, or below the current directory: let that be a real disk.
"""

# ruff: noqa: T201

import argparse
import asyncio
import gc
import os
import sqlite3
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from agent import PER_TURN, Agent, Talk, named
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from measure import Measured, at, puts
from peers import LIMIT, OURS, SQLITE, References
from report import Bar, Row, Section, at_least, at_most, markdown

from async_saver import AsyncSaver

AT_ONCE, STEPS, CONVERSATIONS, TURNS = 64, 10, 20, 50
BOTH = (OURS, SQLITE)


@dataclass(frozen=True)
class Rounds:
    """How often each is measured: calls, the agent, the event loop."""

    calls: int = 21
    agent: int = 3
    delay: int = 2


QUICK = Rounds(calls=3, agent=1, delay=1)


# The savers


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


@contextmanager
def on_disk() -> Iterator[Path]:
    """Hand out a new directory, which goes in the end."""
    with TemporaryDirectory(prefix="benchmark-", dir=os.environ.get("TMPDIR", ".")) as directory:
        yield Path(directory).absolute()


def held(name: str, directory: Path) -> float:
    """Return the megabytes that a saver's files have; it must be closed."""
    files = [*directory.glob(f"{name}.db*")]
    [database] = [path for path in files if path.suffix == ".db"]
    with database.open("rb") as file:
        assert file.read(20)[18:] == b"\2\2", f"{name} was not in WAL mode"
    return sum(path.stat().st_size for path in files) / 1e6


def in_turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Iterate over savers, one round after the other, and every second round backwards."""
    for number in range(rounds):
        yield from names[:: -1 if number % 2 else 1]


async def kept(rounds: int, fill: Callable[[Any], Awaitable[None]], piece: Callable[..., Awaitable[float]]) -> Measured:
    """Measure both savers in turns, each on one file, which has been filled; each piece is told its number."""
    figures: dict[str, list[float]] = {name: [] for name in BOTH}
    with on_disk() as directory:
        async with AsyncExitStack() as stack:
            savers = {name: await stack.enter_async_context(opened(name, directory)) for name in BOTH}
            for saver in savers.values():
                await fill(saver)
                for number in range(-3, 0):  # to warm up, and until the WAL has its size
                    await piece(saver, number)
            for number, name in enumerate(in_turns(BOTH, rounds)):
                figures[name].append(await piece(savers[name], number // 2))
                print(end=".", file=sys.stderr, flush=True)
    return {"all": figures}


# Calls


async def _nothing(saver: Any) -> None:
    pass


def _steps(saver: Any, name: str, number: int, length: int) -> Iterator[tuple[Any, Any]]:
    """Iterate over what the steps of a conversation that has so many messages put: a message more each, and a write."""
    said = Talk(number).messages(length + STEPS + 1)
    states = [{"messages": said[: length + 1 + step]} for step in range(STEPS)]
    for step, put in enumerate(puts(saver, name, states)):
        writes = [("messages", [said[length + 1 + step]]), ("branch:to:model", None)]
        yield put, (at(name, put[1]), writes, f"task {step}")


async def _put(at_once: int, length: int, saver: Any, number: int) -> float:
    """Return calls a second, of puts and writes in turn, of new conversations: so many at once."""
    names = [f"{length} {number} {one}" for one in range(max(at_once, 16))]
    steps = [[*_steps(saver, name, count, length)] for count, name in enumerate(names)]

    async def go_on(conversations: Sequence[Any]) -> None:
        for conversation in conversations:
            for put, writes in conversation:
                await saver.aput(*put)
                await saver.aput_writes(*writes)

    gc.collect()
    begun = perf_counter()
    await asyncio.gather(*(go_on(steps[first::at_once]) for first in range(at_once)))
    took = perf_counter() - begun
    found = await saver.aget_tuple(named(names[-1]))
    assert len(found.checkpoint["channel_values"]["messages"]) == length + STEPS
    assert len(found.pending_writes) == 2
    return 2 * STEPS * len(names) / took


async def _grow(saver: Any) -> None:
    """Let conversations come to 50 messages, as they do: a message a step."""

    async def grow(number: int) -> None:
        said = Talk(number).messages(50)
        for put in puts(saver, number, [{"messages": said[: count + 1]} for count in range(50)]):
            await saver.aput(*put)

    await asyncio.gather(*map(grow, range(AT_ONCE)))


async def _get(saver: Any, number: int) -> float:
    """Return calls a second, of gets of 50 messages: 64 at once."""

    async def get(number: int) -> None:
        for _ in range(5):
            assert len((await saver.aget_tuple(named(number))).checkpoint["channel_values"]["messages"]) == 50

    gc.collect()
    begun = perf_counter()
    await asyncio.gather(*map(get, range(AT_ONCE)))
    return 5 * AT_ONCE / (perf_counter() - begun)


def _calls(what: str, bar: Bar | None, fill: Any, piece: Any, rounds: Rounds) -> list[Row]:
    measured = asyncio.run(kept(rounds.calls, fill, piece))
    return [Row(what, "calls/s", measured["all"], bar, SQLITE)]


# The agent


async def _agents(saver: Any, at_once: bool, turns: int = TURNS) -> float:
    """Return runs a second of the ReAct agent in 20 conversations, with one run at a time in each."""
    agents = [Agent(saver, number) for number in range(CONVERSATIONS)]
    gc.collect()
    begun = perf_counter()
    if at_once:
        await asyncio.gather(*(_turns(agent, number, turns) for number, agent in enumerate(agents)))
    else:
        for _ in range(turns):
            for number, agent in enumerate(agents):
                await agent.turn(number)
    took = perf_counter() - begun
    for number, agent in enumerate(agents):
        said = await agent.said(number)
        assert len(said) == PER_TURN * turns
        assert said == _SAID.setdefault((turns, number), said), "savers disagree on what was said"
    return CONVERSATIONS * turns / took


_SAID: dict[tuple[int, int], list[tuple[str, str]]] = {}


async def _turns(agent: Agent, number: int, turns: int) -> None:
    for _ in range(turns):
        await agent.turn(number)


async def _anew(rounds: int, piece: Callable[[Any], Awaitable[dict[str, float]]]) -> Measured:
    """Measure three savers in turns, on new files each time, and the files after it."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    for name in BOTH:  # to warm up
        with on_disk() as directory:
            async with opened(name, directory) as saver:
                await _agents(saver, True, 2)
    for name in in_turns((OURS, SQLITE, LIMIT), rounds):
        with on_disk() as directory:
            async with opened(name, directory) as saver:
                figures = await piece(saver)
            if name != LIMIT:
                figures["held"] = held(name, directory)
        for what, figure in figures.items():
            measured[what][name].append(figure)
        print(end=".", file=sys.stderr, flush=True)
    return measured


def _agent(at_once: bool, rounds: Rounds) -> list[Row]:
    async def piece(saver: Any) -> dict[str, float]:
        return {"runs": await _agents(saver, at_once)}

    measured = asyncio.run(_anew(rounds.agent, piece))
    what = "the same, all at once" if at_once else "ReAct agent, 20 conversations of 50 turns, one run at a time"
    return [
        Row(what, "runs/s", measured["runs"], None if at_once else at_least(2.5), SQLITE),
        Row("the file after it", "MB", measured["held"], at_most(0.2), SQLITE),
    ]


# The event loop


async def _late(at_once: bool, saver: Any) -> dict[str, float]:
    """Return how late a task wakes from sleeps of a millisecond beside the agents, in milliseconds."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            due = perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append((perf_counter() - due) * 1e3)

    gc.collect()
    gc.freeze()
    beating = asyncio.create_task(beat())
    await _agents(saver, at_once)
    beating.cancel()
    with suppress(asyncio.CancelledError):
        await beating
    gc.unfreeze()
    late.sort()
    return {"p50": late[len(late) // 2], "p99": late[len(late) * 99 // 100], "max": late[-1]}


def _delay(at_once: bool, rounds: Rounds) -> list[Row]:
    measured = asyncio.run(_anew(rounds.delay, partial(_late, at_once)))
    what = "another task's delay beside all at once" if at_once else "another task's delay beside one run at a time"
    return [
        Row(f"{what}, after `gc.freeze()`: half", "ms", measured["p50"], None, SQLITE),
        Row("99 %", "ms", measured["p99"], None if at_once else Bar(8, of="ms"), SQLITE),
        Row("the longest", "ms", measured["max"], None, SQLITE),
    ]


# All of it

PARTS: dict[str, Callable[[Rounds], list[Row]]] = {
    "put64": partial(
        _calls, "`aput` and `aput_writes`, 64 conversations at once", at_least(5), _nothing, partial(_put, AT_ONCE, 0)
    ),
    "put64of50": partial(
        _calls, "the same, 41 to 50 messages instead of 1 to 10", None, _nothing, partial(_put, AT_ONCE, 40)
    ),
    "put1": partial(_calls, "one conversation, 1 to 10 messages", at_least(1.1), _nothing, partial(_put, 1, 0)),
    "get64": partial(_calls, "`aget_tuple` of 50 messages, 64 at once", at_least(3), _grow, _get),
    "agent": partial(_agent, False),
    "agent20": partial(_agent, True),
    "delay": partial(_delay, False),
    "delay20": partial(_delay, True),
}


def disk() -> str:
    """Return what the files are on, and how long that takes to make a page last."""
    with on_disk() as directory:
        file = os.open(directory / "file", os.O_WRONLY | os.O_CREAT)
        times = []
        for _ in range(100):
            begun = perf_counter()
            os.write(file, bytes(4096))
            os.fsync(file)
            times.append(perf_counter() - begun)
        os.close(file)
        where = _file_system(directory.stat().st_dev)
    if where == "tmpfs":
        raise SystemExit("the files would be on a tmpfs, where nothing is written to a disk: set TMPDIR")
    return f"{where or 'a disk'} (4 KB and an fsync: {sorted(times)[50] * 1e3:.2f} ms)"


def _file_system(device: int) -> str:
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text("utf-8").splitlines() if mounts.exists() else []:
        fields = line.split()
        if fields[2] == f"{os.major(device)}:{os.minor(device)}":
            return fields[fields.index("-") + 1]
    return ""


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="few rounds, figures less sure")
    parser.add_argument("--markdown", metavar="PATH", help="write the table there too")
    asked = parser.parse_args()
    if unknown := {*asked.parts} - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}")
    os.environ["LANGSMITH_TRACING_V2"] = "false"  # else LangChain would send every run away
    where = disk()
    rows = []
    for name in asked.parts or PARTS:
        begun = perf_counter()
        rows += PARTS[name](QUICK if asked.quick else Rounds())
        print(f" {name}: {perf_counter() - begun:.0f} s", file=sys.stderr)
    note = f"SQLite {sqlite3.sqlite_version}, both savers at journal_mode=WAL and synchronous=FULL, files on {where}."
    text = markdown([Section("SQLite", note, rows)], "Few rounds (`--quick`). " if asked.quick else "")
    print(text)
    if asked.markdown:
        Path(asked.markdown).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
