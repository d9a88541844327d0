"""`SQLiteStore` against `MemoryStore`: the same calls, drawn at random, must leave the same to be seen.

Each trial draws calls of the store contract from a seed, a few at a time. `MemoryStore` does them one after the other,
the other store at once, so that several of them are one transaction. Then everything that can be seen is compared.

Where the contract leaves it open what is to be seen, such calls are not made, or what they left is not compared:

- the order of checkpoints of one id in a listing;
- whether a run is found where all that it stored has been replaced since;
- values that no checkpoint names, once something was deleted, pruned or undone: what is named later is none of these;
- while a session is under way, what others write to the places where it wrote before; what others prune or copy, and
  which of the values that are gone they can name, after it has pruned, deleted or copied its conversation itself;
- what becomes of checkpoints that are in a circle of parents;
- after an undo, values that the session has added and another one's checkpoint names, or that others have pruned and
  what came back names: such a conversation is deleted.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import ormsgpack
import pytest

from async_saver import AsyncSaverError, MemoryStore
from async_saver.records import (
    EMPTY,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Lease,
    Listing,
    StoredCheckpoint,
    WriteRecord,
)
from async_saver.stores.base import Store
from async_saver.stores.bucket import Namespace
from async_saver.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

_T = TypeVar("_T")

_THREADS = ("t", "u", "v")
_NAMESPACES = ("", "a|b")
_IDS = tuple(f"{number:02}" for number in range(12))
_CHANNELS = ("messages", "state", "delta", "small")
_RUNS = (None, "run 1", "run 2", "run 3")
_TASKS = ("task 1", "task 2")

_TRIALS = [*((0, seed) for seed in range(12)), *((1, seed) for seed in range(3)), *((2, seed) for seed in range(5))]
_STEPS = 30
_MOST_AT_ONCE = 5


class Call(NamedTuple):
    """A call of a store.

    Attributes:
        name: The method.
        thread_id: The conversation that is written to; None if others or several are.
        args: What it is called with, in plain values; of leases the places in `Trial.leases`.
        leases: Those of the caller, likewise.
    """

    name: str
    thread_id: str | None
    args: tuple[Any, ...]
    leases: tuple[int, ...] = ()


class Held(NamedTuple):
    """A lease as both stores gave it, and the versions that were put with it."""

    in_memory: Any
    in_file: Lease
    brought: set[ChannelVersion]


class Trial:
    """One oracle, and the stores of one file that take turns."""

    def __init__(self, *stores: SQLiteStore) -> None:
        self.oracle = MemoryStore()
        self.stores = stores
        self.leases: list[Held | None] = []
        self.pruned: set[int] = set()  # sessions while which others have pruned
        self.strays: dict[tuple[str, str], list[ChannelVersion]] = {}
        self._turns = 0

    def namespace(self, thread_id: str, checkpoint_ns: str) -> Namespace | None:
        """What is stored in a namespace."""
        return self.oracle.peek(lambda buckets: self._namespace(buckets.get(thread_id), checkpoint_ns))

    @staticmethod
    def _namespace(bucket: Any, checkpoint_ns: str) -> Namespace | None:
        return None if bucket is None else bucket.namespaces.get(checkpoint_ns)

    def held(self, thread_id: str) -> int | None:
        """The lease that is held."""
        for number, lease in enumerate(self.leases):
            if lease is not None and lease.in_memory.thread_id == thread_id and lease.in_memory.is_held():
                return number
        return None

    # Doing it.

    async def do(self, calls: Sequence[Call]) -> None:
        """Make calls, those that are allowed, with the oracle and with the store whose turn it is."""
        store = self.stores[self._turns % len(self.stores)]
        self._turns += 1
        made: list[Call] = []
        wanted: list[object] = []
        for call in calls:
            if self.is_allowed(call):
                wanted.append(await self._outcome(self.oracle, call, 0))
                made.append(call)
                self._note(call)
        begun = asyncio.ensure_future(store.setup())  # what comes while this is done is one transaction
        got = await asyncio.gather(*(self._outcome(store, call, 1) for call in made))
        await begun
        for call, one, other in zip(made, wanted, got, strict=True):
            if call.name == "acquire":
                both = one is not None and other is not None
                assert both or one is other, _shown(call)
                self.leases.append(Held(one, other, set()) if both else None)  # type: ignore[arg-type]
            else:
                _same(one, other, str(_shown(call)))
        for call in made:
            if call.name == "acquire" and call.args[2]:
                await self._forget_doubtful(store, call)

    async def _outcome(self, store: Store, call: Call, which: int) -> object:
        leases = [self.leases[number] for number in call.leases]
        mine = [lease[which] for lease in leases if lease is not None]
        args = call.args
        try:
            if call.name == "acquire":
                instead_of = None if args[1] is None else self.leases[args[1]]
                former = None if instead_of is None else instead_of[which]
                return await store.acquire(args[0], "owner", instead_of=former, undo=args[2])
            if call.name == "release":
                lease = self.leases[args[0]]
                return lease is None or await store.release(lease[which], delete=args[1])
            if call.name == "put":
                return await store.put(*args[:4], mine, args[4])
            return await getattr(store, call.name)(*args, mine)
        except AsyncSaverError as exc:
            return type(exc)

    def is_allowed(self, call: Call) -> bool:
        """Whether the contract says what comes of a call."""
        if call.name in ("acquire", "release"):
            return True
        if call.name == "delete":
            return True
        if call.thread_id is None:
            return all(self._is_free(thread_id, call) for thread_id in _THREADS)
        number = self.held(call.thread_id)
        if self._is_hidden(call):
            return False
        if number is None or number in call.leases:
            return True
        if call.name not in ("put", "put_writes"):
            return self._is_free(call.thread_id, call)
        return not self._meets(number, call) and (self._is_free(call.thread_id, call) or not self._is_missing(call))

    def _is_free(self, thread_id: str, call: Call) -> bool:
        number = self.held(thread_id)
        lease = None if number is None else self.leases[number]
        return number in call.leases or lease is None or lease.in_memory.bucket is None

    def _is_hidden(self, call: Call) -> bool:
        # Such writes go nowhere, and leave open whether the conversation was written to.
        if call.name != "put_writes":
            return False
        namespace = self.namespace(*call.args[:2])
        record = None if namespace is None else namespace.checkpoints.get(call.args[2])
        return record is not None and record.hidden

    def _is_missing(self, call: Call) -> bool:
        # A checkpoint that names what its session has taken away.
        namespace = self.namespace(*call.args[:2])
        brought = {version for version, _ in call.args[3]} if call.name == "put" else set()
        versions = call.args[2].versions if call.name == "put" else ()
        known = brought if namespace is None else brought.union(namespace.history)
        return not known.issuperset(versions)

    def _meets(self, number: int, call: Call) -> bool:
        lease = self.leases[number]
        former = None if lease is None else lease.in_memory.formers.get(call.args[1])
        if former is None:
            return False
        if call.name == "put":
            brought = {version for version, _ in call.args[3]}
            return call.args[2].checkpoint_id in former.records or not brought.isdisjoint(former.values)
        keys = {(call.args[2], (write.task_id, write.idx)) for write in call.args[3]}
        return not keys.isdisjoint(former.writes)

    def _note(self, call: Call) -> None:
        if call.name == "put":
            named = {*call.args[2].versions}
            strays = self.strays.setdefault(call.args[:2], [])
            strays += [version for version, _ in call.args[3] if version not in named]
            for number in call.leases:
                lease = self.leases[number]
                if lease is not None:
                    lease.brought.update(version for version, _ in call.args[3])
        elif call.name != "put_writes":
            self.strays.clear()
            self.pruned.update(number for number in map(self.held, _THREADS) if number not in (None, *call.leases))

    async def _forget_doubtful(self, store: SQLiteStore, call: Call) -> None:
        lease = None if call.args[1] is None else self.leases[call.args[1]]
        brought = set() if lease is None else lease.brought
        for checkpoint_ns in _NAMESPACES:
            namespace = self.namespace(call.args[0], checkpoint_ns)
            for record in namespace.checkpoints.values() if namespace is not None else ():
                is_less = call.args[1] in self.pruned and not {*namespace.history}.issuperset(record.versions)
                if is_less or not brought.isdisjoint(record.versions):
                    store.check()
                    for one in (self.oracle, store):
                        await one.delete([call.args[0]])
                    return

    # Comparing.

    async def compare(self, rng: Random) -> None:
        """Assert that both show the same."""
        for store in self.stores:
            await self._compare(store, rng)

    async def _compare(self, store: SQLiteStore, rng: Random) -> None:
        both = (self.oracle, store)
        one, other = [await _listed(each, Listing()) for each in both]
        _same(one, other, "a listing of all")
        for listing in _listings(rng):
            one, other = [await _listed(each, listing) for each in both]
            _same(one, other, f"{listing}")
        one, other = [await _all(each.thread_ids()) for each in both]
        _same(one, other, "thread_ids")
        one, other = [await each.count() for each in both]
        _same(one, other, "count")
        places = [(one, ns, i) for one in _THREADS for ns in _NAMESPACES for i in (None, *_IDS)]
        one, other = [await asyncio.gather(*(each.get(*place) for place in places)) for each in both]
        for place, *found in zip(places, one, other, strict=True):
            _same(_plain(found[0]), _plain(found[1]), f"get of {place}")
        thread_id, asked = rng.choice(_THREADS), rng.sample(_CHANNELS, 2)
        for place in places:
            if place[0] == thread_id:
                one, other = [_plain_history(await each.delta_history(*place, asked)) for each in both]
                _same(one, other, f"history of {asked} at {place}")
        for run_id in _RUNS[1:]:
            assert run_id is not None
            there = self._threads_of(run_id)
            one, other = [{*await each.run_threads([run_id])} for each in both]
            assert there <= one & other, f"{run_id} is in {there}, and found in {one} and {other}"
        for number in range(len(self.leases)):
            lease = self.leases[number]
            if lease is not None:
                one, other = await self.oracle.renew(lease.in_memory), await store.renew(lease.in_file)
                _same(one, other, f"whether lease {number} is held")

    def _threads_of(self, run_id: str) -> set[str]:
        there = set()
        for thread_id in _THREADS:
            for checkpoint_ns in _NAMESPACES:
                namespace = self.namespace(thread_id, checkpoint_ns)
                if namespace is not None:
                    runs = {record.run_id for record in namespace.checkpoints.values() if not record.hidden}
                    runs.update(write.run_id for writes in namespace.writes.values() for write in writes.values())
                    there |= {thread_id} if run_id in runs else set()
        return there


def _same(one: object, other: object, what: str) -> None:
    if one != other:
        if isinstance(one, list) and isinstance(other, list):
            both = [each for each in one if each in other]
            one, other = [[each for each in some if each not in both] for some in (one, other)]
        raise AssertionError(f"{what}:\n{_shown(one)}\n{_shown(other)}")


def _shown(value: Any) -> object:
    """The same without what is long."""
    if isinstance(value, bytes):
        return value if len(value) < 8 else f"{len(value)} bytes, {hash(value) % 1000}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return (type(value).__name__, *map(_shown, value))
    return type(value)(map(_shown, value)) if isinstance(value, (tuple, list)) else value


async def _all(found: AsyncIterator[_T]) -> list[_T]:
    return [one async for one in found]


async def _listed(store: Store, listing: Listing) -> object:
    found = await _all(store.list(listing))
    ids = [one.record.checkpoint_id for one in found]
    assert ids == sorted(ids, reverse=True)
    if listing.filter:
        # Who does not look at metadata lists all; who does, at least what is wanted.
        wanted = listing.filter.items()
        found = [one for one in found if wanted <= ormsgpack.unpackb(one.record.metadata[1]).items()]
    places = [(one.record.checkpoint_id, one.thread_id, one.checkpoint_ns) for one in found]
    assert len({*places}) == len(places)
    return [_plain(one) for _, one in sorted(zip(places, found, strict=True), reverse=True)]


def _plain(found: StoredCheckpoint | None) -> object:
    if found is None:
        return None
    return (*found[:3], [*found.values], [*found.writes])


def _plain_history(histories: Any) -> object:
    return {channel: (history.seed, [*history.writes]) for channel, history in histories.items()}


def _listings(rng: Random) -> list[Listing]:
    thread_id, checkpoint_ns = rng.choice((None, *_THREADS)), rng.choice((None, *_NAMESPACES))
    steps: dict[str, object] = {"step": rng.randrange(4)} if rng.random() < 0.3 else {}
    return [
        Listing(thread_id, checkpoint_ns, before=rng.choice((None, *_IDS)), filter=steps),
        Listing(rng.choice((None, *_THREADS)), rng.choice((None, *_NAMESPACES)), rng.choice(_IDS)),
    ]


class Author:
    """Draws calls from what is stored."""

    def __init__(self, seed: int, trial: Trial) -> None:
        self.rng = Random(seed)
        self._trial = trial
        self._number = 0
        self._texts: list[bytes] = []

    def calls(self) -> list[Call]:
        """Some calls that are made at once."""
        return [self._call() for _ in range(self.rng.choice((1, 1, 2, 3, _MOST_AT_ONCE)))]

    def _call(self) -> Call:
        rng = self.rng
        thread_id = rng.choice(_THREADS)
        held = self._trial.held(thread_id)
        leases = (held,) if held is not None and rng.random() < 0.7 else ()
        if self._trial.leases and rng.random() < 0.1:
            leases = (*leases, rng.randrange(len(self._trial.leases)))
        kind = rng.choices(
            ("put", "put_writes", "delete", "delete_for_runs", "keep_latest", "copy", "acquire", "undo", "release"),
            (40, 20, 2, 4, 4, 4, 5, 3, 3),
        )[0]
        if kind == "put":
            return Call("put", thread_id, self._put(thread_id), leases)
        if kind == "put_writes":
            return Call("put_writes", thread_id, self._put_writes(thread_id), leases)
        if kind == "delete_for_runs":
            return Call(kind, None, (rng.sample(_RUNS[1:], rng.choice((1, 1, 2))),), leases)
        if kind == "copy":
            return Call(kind, thread_id, (rng.choice(_THREADS), thread_id), leases)
        if kind == "acquire":
            return Call(kind, thread_id, (thread_id, held if rng.random() < 0.3 else None, False))
        if kind == "undo":
            return Call("acquire", thread_id, (thread_id, held, True))
        if kind == "release" and self._trial.leases:
            number = held if held is not None and rng.random() < 0.8 else rng.randrange(len(self._trial.leases))
            return Call(kind, None, (number, rng.random() < 0.2))
        return Call("delete" if kind == "delete" else "keep_latest", thread_id, ([thread_id],), leases)

    def _put(self, thread_id: str) -> tuple[Any, ...]:
        rng = self.rng
        checkpoint_ns = rng.choices(_NAMESPACES, (3, 1))[0]
        namespace = self._trial.namespace(thread_id, checkpoint_ns)
        ids = [] if namespace is None else namespace.ids
        latest = ids[-1] if ids else None
        later = [one for one in _IDS if latest is None or one > latest]
        is_next = bool(later) and rng.random() < 0.7
        checkpoint_id = later[0] if is_next else rng.choice(_IDS)
        earlier = [one for one in _IDS if one < checkpoint_id]  # no circles
        parent_id = latest if is_next and rng.random() < 0.9 else rng.choice((None, *earlier))
        record = None if namespace is None or parent_id is None else namespace.visible(parent_id)
        versions = {} if record is None else dict(record.versions)
        values = {} if record is None or namespace is None else {key: namespace.value(key) for key in record.versions}
        brought: list[tuple[ChannelVersion, Blob]] = []
        for channel in rng.sample(_CHANNELS, rng.randrange(1, len(_CHANNELS) + 1)):
            former = values.get((channel, versions[channel])) if channel in versions else None
            strays = [one for one in self._trial.strays.get((thread_id, checkpoint_ns), ()) if one[0] == channel]
            self._number += 1
            version: str | int | float = rng.choice(
                (f"{self._number:05}.{rng.random()}", self._number, self._number + 0.5)
            )
            draw = rng.random()
            if draw < 0.05 and strays:
                versions[channel] = rng.choice(strays)[1]  # a value that was brought before
                continue
            if draw < 0.15 and channel in versions:
                version = versions[channel]  # another value for it
            elif draw < 0.25:
                brought.append(((channel, version), self._value(channel, former)))  # and not named
                continue
            versions[channel] = version
            if draw < 0.35:
                continue  # without a value
            is_empty = draw < 0.5 if channel == "delta" else draw < 0.4
            brought.append(((channel, version), EMPTY if is_empty else self._value(channel, former)))
        if rng.random() < 0.1 and versions:
            del versions[rng.choice([*versions])]
        return (
            thread_id,
            checkpoint_ns,
            CheckpointRecord(
                checkpoint_id,
                parent_id,
                ("msgpack", rng.randbytes(rng.choice((0, 20, 20, 3000)))),
                ("msgpack", ormsgpack.packb({"step": rng.randrange(4), "source": "loop"})),
                tuple(versions.items()),
                rng.choice(_RUNS),
                ("delta",) if "delta" in versions else (),
            ),
            brought,
            rng.choice((None, None, None, "raise", "warn")),
        )

    def _put_writes(self, thread_id: str) -> tuple[Any, ...]:
        rng = self.rng
        checkpoint_ns = rng.choices(_NAMESPACES, (3, 1))[0]
        writes = []
        for _ in range(rng.randrange(0, 4)):
            channel = rng.choice(_CHANNELS)
            write = WriteRecord(
                rng.choice(_TASKS),
                rng.randrange(-2, 3),
                channel,
                EMPTY if rng.random() < 0.1 else self._value(channel, None),
                rng.choice(("", "~a, b")),
                rng.choice(_RUNS),
            )
            writes.append(write)
        return thread_id, checkpoint_ns, rng.choice(_IDS), writes

    def _value(self, channel: str, former: Blob | None) -> Blob:
        """A value that is like the former one of its channel, like those of others, or like none."""
        rng = self.rng
        if channel == "small" or rng.random() < 0.1:
            return rng.choice(("msgpack", "bytes")), rng.randbytes(rng.choice((0, 3, 30)))
        draw = rng.random()
        value = former[1] if former is not None and draw < 0.7 else b""
        if not value and self._texts and draw < 0.9:
            value = rng.choice(self._texts)
        if not value:
            value = rng.randbytes(rng.randrange(1000, 8000))
        elif draw < 0.5:
            value += rng.randbytes(rng.randrange(0, 500))
        elif draw < 0.6:
            value = value[rng.randrange(len(value)) :]
        elif draw < 0.7:
            place = rng.randrange(len(value))
            value = value[:place] + rng.randbytes(rng.randrange(200)) + value[place + rng.randrange(200) :]
        if rng.random() < 0.3:
            self._texts = [*self._texts[-3:], value]
        return "msgpack", value[:20_000]


async def run_trial(seed: int, trial: Trial, steps: int) -> None:
    """Make the calls of one seed."""
    author = Author(seed, trial)
    for step in range(steps):
        await trial.do(author.calls())
        await trial.compare(author.rng)
        if step % 5 == 4:
            trial.stores[0].check()
            trial.oracle.check()
    for store in trial.stores:
        store.check()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("stores", "seed"), _TRIALS)
async def test_both_show_the_same(stores: int, seed: int, tmp_path: Path) -> None:
    """Whatever is called, and in whatever order; with a database in memory, a file, and two stores on one file."""
    async with AsyncExitStack() as stack:
        made = [SQLiteStore(tmp_path / "agents.db", synchronous="normal") for _ in range(stores)] or [SQLiteStore()]
        for store in made:
            stack.push_async_callback(store.close)
        await run_trial(seed, Trial(*made), _STEPS)
