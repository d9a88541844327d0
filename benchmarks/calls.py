"""Calls of a saver's methods, what they depend on, and what they do to others."""

import asyncio
import gc
import random
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice, product
from statistics import median
from time import perf_counter
from typing import Any
from uuid import uuid4

from agent import Talk, named
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from measure import Measured, Rounds, anew, at, kept, lateness, latest_listed, puts, spent, spent_now
from peers import IN_MEMORY, OURS, SQLITE, THEIRS, opened
from report import Bar, Row, Section, at_most

from async_saver import AsyncSaver

LATE = "99 % of the beats, after `gc.freeze()`"


# Single operations


async def _small(saver: Any) -> dict[str, float]:
    """Return microseconds of operations on a small state, each conversation read with a history of one."""
    made = puts(saver, "small", [{"x": number} for number in range(1000)])
    put = await spent(saver.aput, made)
    writes = [(at("small", checkpoint), [("x", step)], f"{uuid4()}") for step, (_, checkpoint, _, _) in enumerate(made)]
    write = await spent(saver.aput_writes, writes)
    for number in range(200):
        await saver.aput(*puts(saver, number, [{"x": number}])[0])
    get = await spent(saver.aget_tuple, [(named(number),) for number in range(200)] * 5)
    assert (await saver.aget_tuple(named(7))).checkpoint["channel_values"] == {"x": 7}
    found = await saver.aget_tuple(named("small"))
    assert [value for _, _, value in found.pending_writes] == [999]
    return {"aput": put, "aput_writes": write, "aget_tuple": get}


async def _chat(saver: Any) -> dict[str, float]:
    """Return microseconds of operations on a state of about 50 messages.

    As in an agent's run, the conversation is read, and then put several times, with a message more each time.
    """
    talk, grown, conversations = Talk(), 5, range(40)
    for number in conversations:
        await saver.aput(*puts(saver, number, [{"messages": talk.messages(47)}])[0])
    gc.collect()
    times = []
    for number in conversations:
        found = await saver.aget_tuple(named(number))
        said, more = found.checkpoint["channel_values"]["messages"], talk.messages(grown)
        states = [{"messages": [*said, *more[: 1 + count]]} for count in range(grown)]
        times.append(await spent_now(saver.aput, puts(saver, number, states, *_place(found))))
    get = await spent(saver.aget_tuple, [(named(number),) for number in conversations] * 5)
    found = await saver.aget_tuple(named(0))
    assert len(found.checkpoint["channel_values"]["messages"]) == 47 + grown
    return {"chat aput": sum(times) / len(times), "chat aget_tuple": get}


def _place(found: Any) -> tuple[Any, Any]:
    """Return where a stored checkpoint of messages is, and the messages' version."""
    return (None, None) if found is None else (found.config, found.checkpoint["channel_versions"]["messages"])


def operations(rounds: Rounds) -> Section:
    """Measure single operations."""

    async def measure() -> Measured:
        small, chat = dict.fromkeys(IN_MEMORY, rounds.calls), dict.fromkeys(IN_MEMORY, rounds.calls)
        return await anew(small | {SQLITE: rounds.sqlite}, _small) | await anew(chat, _chat)

    measured = asyncio.run(measure())
    rows = [
        Row("`aput`, a small state", "us", measured["aput"], at_most(1.6)),
        Row("`aput_writes`, a small write", "us", measured["aput_writes"], at_most(2.0)),
        Row("`aget_tuple`, a small state", "us", measured["aget_tuple"], at_most(1.15)),
        Row("`aput`, 48 to 52 messages", "us", measured["chat aput"], at_most(0.4)),
        Row("`aget_tuple`, 52 messages", "us", measured["chat aget_tuple"], at_most(0.35)),
    ]
    note = (
        "Time of a call inside a running event loop, AsyncSaver's turns for the loop included. The small state is "
        "one number. Messages are read and then put several times, with one more each time, as in an agent's run."
    )
    return Section("Single operations", note, rows)


# Length of the history, number of conversations

LONG, MANY, HUGE, FEW = 5_000, 10_000, 100_000, 100
PER_RUN = 5  # checkpoints that one run of the agent leaves


async def _fill_long(saver: Any) -> None:
    for arguments in puts(saver, "long", [{"x": number} for number in range(LONG)]):
        await saver.aput(*arguments)


async def _long(saver: Any) -> dict[str, float]:
    get = await spent(saver.aget_tuple, [(named("long"),)] * 100)
    return {"get": get, "list": await spent(latest_listed, [(saver, "long")] * 30)}


async def _fill(count: int, checkpoints: int, saver: Any) -> list[tuple[Any, Any]]:
    """Return the latest checkpoint of each conversation: its config, and the version of its value."""
    stored = []
    for number in range(count):
        for config, checkpoint, metadata, versions in puts(saver, number, [{"x": 1}] * checkpoints):
            put = await saver.aput(config, checkpoint, metadata, versions)
            await saver.aput_writes(put, [("x", 1)], "task")
        stored.append((put, versions["x"]))
    return stored


async def _delete(numbers: list[int], saver: Any) -> dict[str, float]:
    gone = [(f"{numbers.pop()}",) for _ in range(30)]
    took = await spent(saver.adelete_thread, gone)
    assert await saver.aget_tuple(named(gone[0][0])) is None
    assert await saver.aget_tuple(named(numbers[0])) is not None
    return {"delete": took}


def _calls(what: str, saver: Any, numbers: Iterable[int], stored: Sequence[tuple[Any, Any]]) -> tuple[Any, list[Any]]:
    """Return what to call, and with what, for an operation on each of these conversations."""
    if what == "aput":
        return saver.aput, [puts(saver, number, [{"x": 2}], *stored[number])[0] for number in numbers]
    if what == "aput_writes":
        return saver.aput_writes, [(stored[number][0], [("x", 2)], "another") for number in numbers]
    if what == "aget_tuple":
        return saver.aget_tuple, [(named(number),) for number in numbers]
    if what == "alist":
        return latest_listed, [(saver, number) for number in numbers]
    return saver.adelete_thread, [(f"{number}",) for number in numbers]


async def _by_count(name: str, rounds: int) -> Measured:
    """Return microseconds of a saver's operations, by number of conversations."""
    measured: Measured = {}
    operations = ["aput", "aput_writes", "aget_tuple", "alist", *(["adelete_thread"] if name == OURS else [])]
    chance = random.Random(3)
    numbers = iter(chance.sample(range(HUGE), FEW * rounds * len(operations)))  # none has been touched before
    async with opened(name) as huge:
        stored = await _fill(HUGE, 1, huge)
        for turn, what in product(range(rounds), operations):
            async with opened(name) as small:
                of_few = _calls(what, small, chance.sample(range(FEW), FEW), await _fill(FEW, 1, small))
                of_huge = _calls(what, huge, list(islice(numbers, FEW)), stored)
                sides = [("few", of_few), ("huge", of_huge)]
                gc.collect()
                for side, (call, arguments) in sides[:: -1 if turn % 2 else 1]:  # the first finds nothing in caches
                    figure = await spent_now(call, arguments)
                    measured.setdefault(what, {}).setdefault(side, []).append(figure)
    return measured


def _own_ratios(measured: Measured, what: str) -> list[float]:
    return [a / b for a, b in zip(measured[what]["huge"], measured[what]["few"], strict=True)]


def _count_row(what: str, measured: dict[str, Measured]) -> Row:
    measuring = {name: one for name, one in measured.items() if what in one}
    shown = f"`{what}{'(limit=1)' if what == 'alist' else ''}`, {HUGE:,} conversations against {FEW}"
    if THEIRS in measuring:
        shown += f" (InMemorySaver: {median(_own_ratios(measured[THEIRS], what)):.2f})"
    figures = {name: one[what]["huge"] for name, one in measuring.items()}
    return Row(shown, "us", figures, at_most(2.0), ratios=_own_ratios(measured[OURS], what))


def history(rounds: Rounds) -> Section:
    """Measure what long histories and many conversations cost."""

    async def measure() -> tuple[Measured, Measured, dict[str, Measured]]:
        both = (OURS, THEIRS)
        numbers = random.Random(3).sample(range(MANY), MANY)
        long = await kept(both, rounds.short, _fill_long, _long)
        order = {name: list(numbers) for name in both}

        async def delete(saver: Any) -> dict[str, float]:
            return await _delete(order[OURS if isinstance(saver, AsyncSaver) else THEIRS], saver)

        many = await kept(both, rounds.short, partial(_fill, MANY, PER_RUN), delete)
        return long, many, {name: await _by_count(name, rounds.agent) for name in both}

    long, many, counts = asyncio.run(measure())
    rows = [
        Row(f"`aget_tuple` of the latest of {LONG:,} checkpoints", "us", long["get"], at_most(0.1)),
        Row(f"`alist(limit=1)` of {LONG:,} checkpoints", "us", long["list"], at_most(0.05)),
        Row(
            f"`adelete_thread` of one of {MANY:,} conversations of {PER_RUN} checkpoints",
            "us",
            many["delete"],
            at_most(0.01),
        ),
        *(_count_row(what, counts) for what in counts[OURS]),
    ]
    note = (
        f"Small states. Where {HUGE:,} conversations are compared with {FEW}, conversations are taken at random, the "
        f"ratio is of a saver to itself, and the figure the time among {HUGE:,}. InMemorySaver's deletion, which looks "
        "at everything that is stored, is left out there."
    )
    return Section("Length of the history, number of conversations", note, rows)


# The event loop


async def _heartbeat(freeze: bool, saver: Any) -> dict[str, float]:
    """Return how late a task wakes while another uses the saver, in milliseconds."""
    talk = Talk()
    state = {"messages": talk.messages(5_000)}

    async def use() -> None:
        nonlocal state
        found = None
        for _ in range(15):
            [arguments] = puts(saver, "loop", [state], *_place(found))
            # The rests let the beats through that a call held up: else what two calls hold up would count as one.
            await asyncio.sleep(0.002)
            await saver.aput(*arguments)
            await asyncio.sleep(0.002)
            found = await saver.aget_tuple(named("loop"))
            await asyncio.sleep(0.002)
            state = {"messages": [*found.checkpoint["channel_values"]["messages"], talk.question()]}

    late = await lateness(use, freeze)
    assert len(state["messages"]) == 5_015
    return late


def heartbeat(rounds: Rounds) -> Section:
    """Measure how long the event loop is held."""
    rows = []
    for freeze in (True, False):
        after = "after `gc.freeze()`" if freeze else "without `gc.freeze()`"
        both = dict.fromkeys((OURS, THEIRS), rounds.heartbeat)
        measured = asyncio.run(anew(both, partial(_heartbeat, freeze)))
        rows += [
            Row(f"half of the beats, {after}", "ms", measured["p50"]),
            Row(f"99 % of the beats, {after}", "ms", measured["p99"], Bar(12, of="ms") if freeze else None),
            Row(f"the latest beat, {after}", "ms", measured["max"], Bar(25, of="ms") if freeze else None),
        ]
    note = (
        "How late a task wakes from sleeps of a millisecond, or less, while another puts and gets a state of 5,000 "
        "messages 15 times, with a rest after each call."
    )
    return Section("Delay of the event loop", note, rows)


# The serializer


def _serde_piece(serde: Any) -> dict[str, float]:
    """Return microseconds of 200 messages; no message is seen twice, so nothing can be remembered of it."""
    talk = Talk()
    states = [talk.messages(200) for _ in range(20)]
    gc.collect()
    begun = perf_counter()
    dumped = [serde.dumps_typed(state) for state in states]
    dumps = perf_counter() - begun
    gc.collect()
    begun = perf_counter()
    for one in dumped:
        serde.loads_typed(one)
    loads = perf_counter() - begun
    assert [serde.loads_typed(one) for one in dumped] == states
    return {"dumps": dumps / len(states) * 1e6, "loads": loads / len(states) * 1e6}


def serde(rounds: Rounds) -> Section:
    """Measure the serializer alone."""
    measured: dict[str, dict[str, list[float]]] = {"dumps": {OURS: [], THEIRS: []}, "loads": {OURS: [], THEIRS: []}}
    for _ in range(rounds.calls):
        for name, one in ((OURS, AsyncSaver().serde), (THEIRS, JsonPlusSerializer())):
            for what, figure in _serde_piece(one).items():
                measured[what][name].append(figure)
    rows = [Row(f"`{what}_typed` of 200 messages", "us", figures, at_most(0.3)) for what, figures in measured.items()]
    note = "AsyncSaver's default serializer, and `JsonPlusSerializer`, which InMemorySaver uses."
    return Section("Serializer", note, rows)
