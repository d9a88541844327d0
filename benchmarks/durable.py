"""What benchmarks of stores that last have in common: two savers in turns, each on a database of its own."""

# ruff: noqa: T201

import argparse
import asyncio
import gc
import os
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeAlias

from agent import PER_TURN, Agent, Talk, named
from measure import Measured, at, lateness, puts
from peers import LIMIT, OURS
from report import Bar, Row, Section, markdown

AT_ONCE, STEPS, CONVERSATIONS, TURNS = 64, 10, 20, 50


@dataclass(frozen=True)
class Rounds:
    """How often each is measured: calls, the agent, the event loop beside the agent."""

    calls: int = 21
    agent: int = 3
    delay: int = 2


QUICK = Rounds(calls=3, agent=1, delay=1)


@dataclass(frozen=True)
class Pair:
    """AsyncSaver and another saver, on the same kind of database.

    Attributes:
        against: The other saver's name.
        place: Makes a place for new databases, which go in the end.
        opened: Hands out a saver of a name, on the database of this name in a place.
        held: Returns the megabytes that a database has; its saver must be closed.
    """

    against: str
    place: Callable[[], AbstractContextManager[Any]]
    opened: Callable[[str, Any], AbstractAsyncContextManager[Any]]
    held: Callable[[str, Any], float]

    @property
    def both(self) -> tuple[str, str]:
        """Their names."""
        return OURS, self.against


Part: TypeAlias = Callable[[Pair, Rounds], list[Row]]
"""What measures something of both savers."""

Piece: TypeAlias = Callable[[Any, int], Awaitable[dict[str, float]]]
"""What measures a saver once, and is told a number that it was not told before."""


@contextmanager
def on_disk() -> Iterator[Path]:
    """Hand out a new directory below TMPDIR, or below the current directory. It goes in the end."""
    with TemporaryDirectory(prefix="benchmark-", dir=os.environ.get("TMPDIR", ".")) as directory:
        yield Path(directory).absolute()


def in_turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Iterate over savers, one round after the other, and every second round backwards."""
    for number in range(rounds):
        yield from names[:: -1 if number % 2 else 1]


async def nothing(saver: Any) -> None:
    """Fill a saver with nothing."""


async def kept(
    pair: Pair, names: Sequence[str], rounds: int, fill: Callable[[Any], Awaitable[None]], piece: Piece, warm: int = 3
) -> Measured:
    """Measure savers in turns, each on one database, which has been filled; the first few pieces do not count."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    with pair.place() as place:
        async with AsyncExitStack() as stack:
            savers = {name: await stack.enter_async_context(pair.opened(name, place)) for name in names}
            for saver in savers.values():
                await fill(saver)
                for number in range(-warm, 0):  # also until the log has its size
                    await piece(saver, number)
            for number, name in enumerate(in_turns(names, rounds)):
                for what, figure in (await piece(savers[name], number // len(names))).items():
                    measured[what][name].append(figure)
                print(end=".", file=sys.stderr, flush=True)
    return measured


# Calls


def _steps(saver: Any, name: str, number: int, length: int) -> Iterator[tuple[Any, Any]]:
    """Iterate over what the steps of a conversation that has so many messages put: a message more each, and a write."""
    said = Talk(number).messages(length + STEPS + 1)
    states = [{"messages": said[: length + 1 + step]} for step in range(STEPS)]
    for step, put in enumerate(puts(saver, name, states)):
        writes = [("messages", [said[length + 1 + step]]), ("branch:to:model", None)]
        yield put, (at(name, put[1]), writes, f"task {step}")


class _Growth:
    """New conversations that are put, with writes in turn, so many at once."""

    def __init__(self, saver: Any, at_once: int, length: int, number: int, count: int) -> None:
        self._saver = saver
        self._at_once = at_once
        self._length = length
        names = [f"{length} {number} {one}" for one in range(count)]
        self._last = names[-1]
        self._steps = [[*_steps(saver, name, one, length)] for one, name in enumerate(names)]

    async def go_on(self) -> None:
        """Put all of it."""
        await asyncio.gather(*(self._one_of(first) for first in range(self._at_once)))

    async def _one_of(self, first: int) -> None:
        for conversation in self._steps[first :: self._at_once]:
            for put, writes in conversation:
                await self._saver.aput(*put)
                await self._saver.aput_writes(*writes)

    async def check(self) -> None:
        """Look whether it has been stored."""
        found = await self._saver.aget_tuple(named(self._last))
        assert len(found.checkpoint["channel_values"]["messages"]) == self._length + STEPS
        assert len(found.pending_writes) == 2


async def put(at_once: int, length: int, saver: Any, number: int) -> dict[str, float]:
    """Return calls a second, of puts and writes in turn, of new conversations: so many at once."""
    count = max(at_once, 16)
    growth = _Growth(saver, at_once, length, number, count)
    gc.collect()
    begun = perf_counter()
    await growth.go_on()
    took = perf_counter() - begun
    await growth.check()
    return {"all": 2 * STEPS * count / took}


async def grow(saver: Any) -> None:
    """Let conversations come to 50 messages, as they do: a message a step."""

    async def one(number: int) -> None:
        said = Talk(number).messages(50)
        for arguments in puts(saver, number, [{"messages": said[: count + 1]} for count in range(50)]):
            await saver.aput(*arguments)

    await asyncio.gather(*map(one, range(AT_ONCE)))


async def get(saver: Any, number: int) -> dict[str, float]:
    """Return calls a second, of gets of 50 messages: 64 at once."""

    async def one(number: int) -> None:
        for _ in range(5):
            assert len((await saver.aget_tuple(named(number))).checkpoint["channel_values"]["messages"]) == 50

    gc.collect()
    begun = perf_counter()
    await asyncio.gather(*map(one, range(AT_ONCE)))
    return {"all": 5 * AT_ONCE / (perf_counter() - begun)}


def calls(what: str, bar: Bar | None, fill: Any, piece: Piece, pair: Pair, rounds: Rounds) -> list[Row]:
    """Measure calls a second."""
    measured = asyncio.run(kept(pair, pair.both, rounds.calls, fill, piece))
    return [Row(what, "calls/s", measured["all"], bar, pair.against)]


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


async def _anew(pair: Pair, rounds: int, piece: Callable[[Any], Awaitable[dict[str, float]]]) -> Measured:
    """Measure three savers in turns, on new databases each time, and what these have after it."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    for name in pair.both:  # to warm up
        with pair.place() as place:
            async with pair.opened(name, place) as saver:
                await _agents(saver, True, 2)
    for name in in_turns((*pair.both, LIMIT), rounds):
        with pair.place() as place:
            async with pair.opened(name, place) as saver:
                figures = await piece(saver)
            if name != LIMIT:
                figures["held"] = pair.held(name, place)
        for what, figure in figures.items():
            measured[what][name].append(figure)
        print(end=".", file=sys.stderr, flush=True)
    return measured


def agent(at_once: bool, bar: Bar | None, held: Bar | None, pair: Pair, rounds: Rounds) -> list[Row]:
    """Measure runs a second of the agent, and what the databases have after them."""

    async def piece(saver: Any) -> dict[str, float]:
        return {"runs": await _agents(saver, at_once)}

    measured = asyncio.run(_anew(pair, rounds.agent, piece))
    what = "ReAct agent, 20 conversations of 50 turns, "
    return [
        Row(
            f"{what}{'all at once' if at_once else 'one run at a time'}", "runs/s", measured["runs"], bar, pair.against
        ),
        Row("the database after it", "MB", measured["held"], held, pair.against),
    ]


# The event loop


def delay(at_once: bool, bar: Bar | None, pair: Pair, rounds: Rounds) -> list[Row]:
    """Measure how late another task wakes beside the agent."""

    async def piece(saver: Any) -> dict[str, float]:
        return await lateness(lambda: _agents(saver, at_once))

    measured = asyncio.run(_anew(pair, rounds.delay, piece))
    return _late("all at once" if at_once else "one run at a time", bar, pair, measured)


def delay_of_puts(bar: Bar | None, pair: Pair, rounds: Rounds) -> list[Row]:
    """Measure how late another task wakes beside puts and writes of 64 conversations at once."""

    async def piece(saver: Any, number: int) -> dict[str, float]:
        growth = _Growth(saver, AT_ONCE, 0, number, 4 * AT_ONCE)
        late = await lateness(growth.go_on)
        await growth.check()
        return late

    measured = asyncio.run(kept(pair, pair.both, rounds.calls // 3, nothing, piece, 1))
    return _late("puts of 64 conversations at once", bar, pair, measured)


def _late(beside: str, bar: Bar | None, pair: Pair, measured: Mapping[str, Any]) -> list[Row]:
    what = f"another task's delay beside {beside}, after `gc.freeze()`: half"
    return [
        Row(what, "ms", measured["p50"], None, pair.against),
        Row("99 %", "ms", measured["p99"], bar, pair.against),
        Row("the longest", "ms", measured["max"], None, pair.against),
    ]


# All of it


def disk() -> str:
    """Return what the databases are on, and how long that takes to make a page last."""
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


def main(
    what: str, title: str, parts: Mapping[str, Part], ready: Callable[[], AbstractContextManager[tuple[Pair, str]]]
) -> None:
    """Measure, and print.

    Args:
        what: What the command does.
        title: Of the table.
        parts: By name.
        ready: Makes ready what all parts need; the savers, and what to know of both to read the table.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="few rounds, figures less sure")
    parser.add_argument("--markdown", metavar="PATH", help="write the table there too")
    asked = parser.parse_args()
    if unknown := {*asked.parts} - parts.keys():
        parser.error(f"no such part: {', '.join(unknown)}")
    os.environ["LANGSMITH_TRACING_V2"] = "false"  # else LangChain would send every run away
    where = disk()
    rows = []
    with ready() as (pair, note):
        for name in asked.parts or parts:
            begun = perf_counter()
            rows += parts[name](pair, QUICK if asked.quick else Rounds())
            print(f" {name}: {perf_counter() - begun:.0f} s", file=sys.stderr)
    section = Section(title, f"{note}, files on {where}.", rows)
    text = markdown([section], "Few rounds (`--quick`). " if asked.quick else "")
    print(text)
    if asked.markdown:
        Path(asked.markdown).write_text(text, "utf-8")
