"""Values that share their bytes: differences, the history of a namespace, and what a store and a saver make of it."""

import copy
import json
import pickle
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver as Reference
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.types import Send

from async_saver import AsyncSaver, FastJsonPlusSerializer, MemoryStore
from async_saver.pace import at_once
from async_saver.records import EMPTY, Blob, ChannelVersion, CheckpointRecord
from async_saver.stores import history
from async_saver.stores.bucket import Namespace, Write
from async_saver.stores.history import LEAST, History, Shared, Step, composed, difference, rebuilt
from tests.build import all_of, checkpoint, config, listed, put
from tests.model import Call, Model, Task, Trial, everything
from tests.stores import NewStore
from tests.test_compat import files

_BORDERS = (0, history._SEED, history._COPY, LEAST, history._CERTAIN, 0x80, 0x4000)
SIZES = sorted({max(border + more, 0) for border in _BORDERS for more in (-1, 0, 1)})
LONG = 2 * max(LEAST, history._LEAST_BESIDE)
"""So many bytes are worth a difference wherever they are, also after some were taken away."""


def noise(seed: int, size: int) -> bytes:
    """So many bytes that nothing else has."""
    return random.Random(seed).randbytes(size)


# Values, drawn, and what becomes of them.


class Edit(NamedTuple):
    """How a value becomes the next one."""

    name: str
    place: int  # percent
    seed: int


_EDITS: Mapping[str, Callable[[bytes, int, bytes], bytes]] = {
    "append": lambda value, at, new: value + new,
    "drop at the head": lambda value, at, new: value[at // 4 :],
    "drop and append": lambda value, at, new: value[at // 4 :] + new,
    "insert": lambda value, at, new: value[:at] + new + value[at:],
    "replace": lambda value, at, new: value[:at] + new + value[at + len(new) :],
    "take away": lambda value, at, new: value[:at] + value[at + len(new) :],
    "flip a byte": lambda value, at, new: value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :] if value else b"",
    "move": lambda value, at, new: value[at:] + value[:at],
    "repeat": lambda value, at, new: value + value[at : at + 500],
    "nothing": lambda value, at, new: value,
    "all": lambda value, at, new: new * (len(value) // len(new)) + new,
    "empty": lambda value, at, new: b"",
}


def edited(value: bytes, edit: Edit) -> bytes:
    """What a value becomes; never long."""
    at = edit.place * max(len(value) - 1, 0) // 100
    return _EDITS[edit.name](value, at, noise(edit.seed, 1 + edit.seed % 100))[:20_000]


_seeds = st.integers(0, 999)
_edits = st.builds(Edit, st.sampled_from([*_EDITS]), st.integers(0, 100), _seeds)
_messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "ai"]), "text": st.text(max_size=50)}))
_some_bytes = st.one_of(
    st.binary(max_size=400),
    st.builds(noise, _seeds, st.sampled_from(SIZES)),
    st.builds(lambda period, size: (period * size)[:size], st.binary(min_size=1, max_size=50), st.sampled_from(SIZES)),
    st.builds(ormsgpack.packb, _messages),
)


@st.composite
def _lines(draw: st.DrawFn, length: int) -> list[bytes]:
    """Some values of which each was made of the one before, in this order or the reverse."""
    values = [draw(_some_bytes)]
    for _ in range(length - 1):
        value = values[-1]
        for edit in draw(st.lists(_edits, max_size=4)):
            value = edited(value, edit)
        values.append(value)
    return values if draw(st.booleans()) else values[::-1]


# Differences.


@given(_lines(2) | st.tuples(_some_bytes, _some_bytes))
@settings(max_examples=300)
def test_a_difference_makes_its_target_of_its_source(pair: Sequence[bytes]) -> None:
    """Byte by byte, whatever the two are."""
    target, source = pair
    parts = difference(target, source)
    assert parts is None or rebuilt(parts, source) == target


@given(_lines(2))
@settings(max_examples=300)
def test_at_most_half_of_what_a_difference_makes_is_new(pair: Sequence[bytes]) -> None:
    """And what it takes is less than the target does, where the target is long enough for one."""
    target, source = pair
    parts = difference(target, source)
    if parts is not None:
        assert sum(len(new) for new, _, _ in history._unpacked(parts)) <= len(target) // 2
        assert len(parts) < len(target) or len(target) < LEAST


def test_a_difference_takes_no_more_than_half_of_its_target() -> None:
    """As its docstring has it."""
    source = noise(1, 256)
    parts = difference(source[:128] + noise(2, 128), source)
    assert parts is None or len(parts) <= 128


@pytest.mark.parametrize("size", [size for size in SIZES if size > history._COPY])
def test_what_is_the_same_takes_a_few_bytes(size: int) -> None:
    """However long it is, if it is worth a copy."""
    value = noise(1, size)
    parts = difference(value, value)
    assert parts is not None
    assert len(parts) <= 5
    assert rebuilt(parts, value) == value


@pytest.mark.parametrize("size", [size for size in SIZES if size])
def test_of_what_has_nothing_in_common_there_is_no_difference(size: int) -> None:
    """Nor of nothing."""
    assert difference(noise(1, size), noise(2, size)) is None
    assert difference(noise(1, size), b"") is None


def test_nothing_is_made_of_anything() -> None:
    """By a difference of no parts."""
    assert difference(b"", b"") == difference(b"", noise(1, 300)) == b""
    assert composed(b"", b"") == rebuilt(b"", b"") == b""


@pytest.mark.parametrize("size", [size for size in SIZES if size >= history._COPY])
def test_numbers_of_any_length_are_found_again(size: int) -> None:
    """How much is new, where a copy begins and how long it is: each at the borders of what takes one byte more."""
    source = noise(1, 3 * size)
    target = noise(2, size) + source[size:]
    parts = difference(target, source)
    assert parts is not None
    assert history._unpacked(parts) == [(noise(2, size), size, 2 * size)]
    assert rebuilt(parts, source) == target


@st.composite
def _any_parts(draw: st.DrawFn, source: int) -> list[tuple[bytes, int, int]]:
    """Any difference from a source of this length, also such as are never made."""
    near = st.sampled_from(SIZES) | st.integers(0, 20)
    begins = draw(st.lists(near, max_size=6))
    places = [min(begin, source) for begin in begins]
    return [(draw(st.binary(max_size=3)), place, min(draw(near), source - place)) for place in places]


@given(st.data())
@settings(max_examples=200)
def test_two_differences_in_one_do_what_both_do(data: st.DataObject) -> None:
    """Wherever the second cuts what the first has put together, whatever it takes twice or leaves out."""
    source = noise(1, data.draw(st.sampled_from(SIZES)))
    inner = history._packed(data.draw(_any_parts(len(source))))
    middle = rebuilt(inner, source)
    outer = history._packed(data.draw(_any_parts(len(middle))))
    assert rebuilt(composed(outer, inner), source) == rebuilt(outer, middle)


@given(_lines(6))
@settings(max_examples=100)
def test_differences_in_one_do_what_all_do_in_any_order(values: Sequence[bytes]) -> None:
    """Put together from the first or from the last."""
    steps = [difference(target, source) for target, source in pairwise(values)]
    usable: list[bytes] = []
    for step in steps:
        if step is None:
            break
        usable.append(step)
    from_first = from_last = history._packed([(b"", 0, len(values[len(usable)]))])
    for step in reversed(usable):
        from_last = composed(step, from_last)
    if usable:
        from_first = usable[0]
        for step in usable[1:]:
            from_first = composed(from_first, step)
    assert rebuilt(from_first, values[len(usable)]) == rebuilt(from_last, values[len(usable)]) == values[0]


# What is commonly done to a list of messages is found.

_SERDE = FastJsonPlusSerializer()
_WORDS = ["the", "model", "tool", "answer", "question", "is", "of", "to", "with", "weather", "in", "Paris", "today"]

PACKS: Mapping[str, Callable[[Any], bytes]] = {
    "msgpack": ormsgpack.packb,
    "JSON": lambda messages: json.dumps(messages).encode(),
    "indented JSON": lambda messages: json.dumps(messages, indent=2).encode(),
    "pickle": pickle.dumps,
    "LangChain messages": lambda messages: _SERDE.dumps_typed([HumanMessage(**message) for message in messages])[1],
}

CHANGES: Mapping[str, Callable[[list[Any], Any, int], list[Any]]] = {
    "append": lambda messages, new, at: [*messages, new],
    "edit in the middle": lambda messages, new, at: [*messages[:at], new, *messages[at + 1 :]],
    "insert": lambda messages, new, at: [*messages[:at], new, *messages[at:]],
    "take one away": lambda messages, new, at: [*messages[:at], *messages[at + 1 :]],
    "drop at the head": lambda messages, new, at: messages[at // 4 :],
    "drop and append": lambda messages, new, at: [*messages[at // 4 :], new],
}


def message(draw: random.Random) -> dict[str, str]:
    """A message as a chat has it."""
    words = draw.choices(_WORDS, k=draw.randint(1, 60))
    return {"type": "human", "content": " ".join(words), "id": f"{draw.getrandbits(128):032x}"}


def only_in(one: list[Any], other: list[Any], pack: Callable[[Any], bytes]) -> int:
    """How many bytes those messages take that only the one list has."""
    return sum(len(pack([message])) for message in one if message not in other)


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_common_change_takes_what_is_new_and_little_more(change: Any, pack: Callable[[Any], bytes]) -> None:
    """In both directions: little more than the messages that the other has not."""
    for seed in range(20):
        draw = random.Random(seed)
        messages = [message(draw) for _ in range(40)]
        after = change(messages, message(draw), draw.randrange(1, 39))
        for target, source in ((messages, after), (after, messages)):
            parts = difference(pack(target), pack(source))
            assert parts is not None
            assert rebuilt(parts, pack(source)) == pack(target)
            assert len(parts) <= only_in(target, source, pack) + 500


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("number", [3, 15, 16, 200])
def test_what_was_before_messages_were_appended_takes_a_few_bytes(number: int, pack: Callable[[Any], bytes]) -> None:
    """However many there are, and also where the list's length takes more bytes now."""
    draw = random.Random(number)
    before = [message(draw) for _ in range(number)]
    for more in (1, 2):
        parts = difference(pack(before), pack(before + [message(draw) for _ in range(more)]))
        assert parts is not None
        assert len(parts) <= 20


class Looked(bytes):
    """Counts how many of its bytes are looked at."""

    count = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Looked.count += len(found) if isinstance(key, slice) else 1
        return found

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        end = len(self) if end is None else end
        found = super().find(sub, start, end)
        Looked.count += (end if found < 0 else found) - start
        return found

    def startswith(self, prefix: Any, start: Any = 0, end: Any = None) -> bool:
        Looked.count += len(prefix)
        return super().startswith(prefix, start, end)


def of_two_letters(seed: int, size: int) -> bytes:
    """Bytes that look alike wherever one looks."""
    return noise(seed, size).translate(bytes(b"ab"[byte % 2] for byte in range(256)))


def hostile(size: int) -> bytes:
    """What has a little in common with others, again and again, and each time it is hard to find."""
    junk, source = of_two_letters(2, size), of_two_letters(1, size)
    found = (history._FIND + history._CERTAIN) // 2  # worth a copy, and yet another may be better
    pieces = [junk[i * 100 : i * 100 + 4] + source[-1000 - i * size // 50 :][:found] for i in range(40)]
    return (b"".join(pieces) + junk)[:size]


_SIZE = 100_000
HARD: Mapping[str, tuple[bytes, bytes]] = {
    "nothing in common": (noise(1, _SIZE), noise(2, _SIZE)),
    "one byte": (b"\0" * _SIZE, b"\0" * (_SIZE // 2) + b"\1" + b"\0" * (_SIZE // 2)),
    "two bytes": (b"\0" * _SIZE, b"\1" * _SIZE),
    "periods": ((b"\0" * 23 + b"\1") * (_SIZE // 24), (b"\0" * 24 + b"\1") * (_SIZE // 25)),
    "two letters": (of_two_letters(2, _SIZE), of_two_letters(1, _SIZE)),
    "nearly": (bytes(byte ^ (not i % 40) for i, byte in enumerate(noise(1, _SIZE))), noise(1, _SIZE)),
    "hard to find": (hostile(_SIZE), of_two_letters(1, _SIZE)),
}


@pytest.mark.parametrize("pair", HARD.values(), ids=HARD)
def test_each_byte_is_looked_at_a_thousand_times_at_most(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[bytes, bytes]
) -> None:
    """However hard it is to find what two have in common: the work grows as they do, and not faster."""
    target, source = pair
    monkeypatch.setattr(Looked, "count", 0)
    parts = difference(Looked(target), Looked(source))
    assert parts is None or rebuilt(parts, source) == target
    assert Looked.count <= 1000 * len(source)


# A history, held to a plain dict.


def run(steps: Sequence[Step]) -> None:
    """Make a change."""
    for step, arguments in steps:
        step(*arguments)


def held(one: History) -> int:
    """How many bytes it keeps."""
    return sum(len(kept[-1]) for kept in one._kept.values())


@dataclass
class World:
    """A namespace's history and writes, and what both should hold."""

    namespace: Namespace = field(default_factory=Namespace)
    values: dict[ChannelVersion, Blob] = field(default_factory=dict)
    beside: dict[tuple[str, int], Blob] = field(default_factory=dict)

    @property
    def history(self) -> History:
        return self.namespace.history

    def check(self) -> None:
        """Look whether everything reads as it should."""
        assert [*self.namespace.faults()] == []
        assert {version: self.history.value(version) for version in self.history} == self.values
        assert all(self.history.kind(version) == value[0] for version, value in self.values.items())
        assert self.history.kind(("unknown", 1)) is self.history.value(("unknown", 1)) is None
        assert {(one.task_id, one.idx): one.value for one in self.namespace.write_records("c")} == self.beside

    def add(self, values: Mapping[ChannelVersion, Blob], cut: int = 0) -> None:
        """Add values, with an interrupt after so many steps, and the rest done once more at last."""
        steps, _ = self.namespace.added(values)
        self.check()  # nothing has happened yet
        run(steps[:cut])
        run(steps)
        run(steps[cut:])
        self.values.update(values)

    def share(self, value: Blob) -> None:
        """Keep a value beside it, as that of a write."""
        key = ("task", len(self.beside))
        kept = Write("w", self.history.shared(value), "", None)
        self.namespace.writes.setdefault("c", {})[key] = kept
        self.beside[key] = value

    def copy(self) -> "World":
        """Return an independent one."""
        return World(at_once(self.namespace.copy()), self.values.copy(), self.beside.copy())

    def only(self, versions: Sequence[ChannelVersion]) -> "World":
        """Return what is left of it: these versions, and all that was beside it."""
        left = Namespace()
        left.history = at_once(self.history.only({*versions, ("unknown", 1)}))
        left.writes = self.namespace.writes.copy()
        at_once(left._adopt_writes(self.namespace))
        values = {version: value for version, value in self.values.items() if version in versions}
        return World(left, values, self.beside.copy())


_numbers = st.integers(0, 99)
_kinds = st.sampled_from(["msgpack", "msgpack", "bytes", "pickle"])
_cuts = st.integers(0, 9)
_times = st.sampled_from([7, 20, 70])
_percents = st.sampled_from([0, 10, 50, 90, 99, 100])
_replacements = st.lists(st.tuples(_numbers, _edits, _kinds), min_size=1, max_size=3)
_additions = st.lists(st.tuples(st.sampled_from("abc"), _numbers, _edits, _kinds), min_size=1, max_size=3)


def _made(base: bytes, edit: Edit, kind: str) -> Blob:
    data = edited(base, edit)
    return (kind, data) if data else EMPTY


class Machine(RuleBasedStateMachine):
    """Histories under any operations."""

    @initialize(seed=_seeds, size=st.sampled_from([LEAST - 1, LEAST, history._LEAST_BESIDE, LONG, LONG]))
    def begin(self, seed: int, size: int) -> None:
        self.number = 1
        self.worlds = [World()]
        self.worlds[0].add({("a", 1): ("msgpack", noise(seed, size))}, 0)

    def _one(self, which: int) -> World:
        return self.worlds[which % len(self.worlds)]

    def _base(self, world: World, number: int) -> ChannelVersion:
        """Some version: mostly one of the newest, and perhaps an old one, of which others have grown."""
        versions = [*world.values]
        return versions[-1 - number % 3] if number % 2 and len(versions) > 2 else versions[number % len(versions)]

    @rule(which=_numbers, additions=_additions, cut=_cuts)
    def add(self, which: int, additions: list[tuple[str, int, Edit, str]], cut: int) -> None:
        world = self._one(which)
        new = {}
        for channel, number, edit, kind in additions:
            self.number += 1
            new[channel, self.number] = _made(world.values[self._base(world, number)][1], edit, kind)
        world.add(new, cut)

    @rule(which=_numbers, channel=st.sampled_from("abc"), base=_numbers, edit=_edits, times=_times)
    def grow(self, which: int, channel: str, base: int, edit: Edit, times: int) -> None:
        world = self._one(which)
        value = world.values[self._base(world, base)][1]
        for seed in range(times if len(world.values) < 200 else 1):
            self.number += 1
            value = edited(value, edit._replace(seed=seed))
            new = {(channel, self.number): ("msgpack", value) if value else EMPTY}
            run(world.history.added(new)[0])
            world.values.update(new)

    @rule(which=_numbers, replaced=_replacements, cut=_cuts, more=st.none() | _edits)
    def replace(self, which: int, replaced: list[tuple[int, Edit, str]], cut: int, more: Edit | None) -> None:
        world = self._one(which)
        new = {}
        for base, edit, kind in replaced:
            version = self._base(world, base)
            former = world.values[version][1]
            new[version] = _made(former, edit, kind)
        if more:
            self.number += 1
            new["abc"[base % 3], self.number] = _made(former, more, kind)
        world.add(new, cut)

    @rule(which=_numbers, base=_numbers, edit=_edits, kind=_kinds)
    def share(self, which: int, base: int, edit: Edit, kind: str) -> None:
        world = self._one(which)
        world.share(_made(world.values[self._base(world, base)][1], edit, kind))

    @rule(which=_numbers)
    def copy(self, which: int) -> None:
        if len(self.worlds) < 3:
            self.worlds.append(self._one(which).copy())

    @rule(which=_numbers, gone=st.booleans(), first=_percents, last=_percents, step=st.integers(1, 3))
    def keep(self, which: int, gone: bool, first: int, last: int, step: int) -> None:
        world = self._one(which)
        versions = [*world.values]
        some = versions[len(versions) * first // 100 : len(versions) * last // 100 + 1 : step]
        kept = [version for version in versions if (version in some) != gone] or versions[:1]
        self.worlds[which % len(self.worlds)] = world.only(kept)
        world.check()

    @invariant()
    def everything_reads_as_it_should(self) -> None:
        for world in self.worlds:
            world.check()


def test_any_operations_leave_every_value_as_it_was() -> None:
    """Growing, forking, replacing, sharing, copying and keeping some, with interrupts: all reads as from a dict.

    Also where several of these come in one call.
    """
    with_settings = settings(max_examples=150, stateful_step_count=15)
    run_state_machine_as_test(Machine, settings=with_settings)


@pytest.mark.parametrize("edit", _EDITS)
@pytest.mark.parametrize("place", [0, 1, 8, 64, 99, 100])
def test_what_others_are_made_of_may_be_replaced(place: int, edit: str) -> None:
    """Oldest, newest or between: the others, nearer and further, read as before."""
    world = grown(101, appended, noise(0, LONG))
    world.add({("a", place): ("msgpack", edited(world.values["a", place][1], Edit(edit, 50, 7)))}, 1)
    world.check()
    world.add({("a", 101): ("msgpack", world.values["a", 99][1] + b"and so on")}, 1)
    world.check()


def test_equal_versions_of_other_types_are_the_same() -> None:
    """As keys of a dict: 1, 1.0 and True; text is another."""
    world = World()
    for number, version in enumerate([1, 1.0, True, "1", 2.5]):
        world.add({("a", version): ("msgpack", noise(0, LONG) + noise(number, 50))}, 1)
        world.check()
    assert [*world.history] == [("a", 1), ("a", "1"), ("a", 2.5)]
    world.only([("a", True), ("a", 2.5)]).check()


@pytest.mark.parametrize("size", [0, LEAST - 1])
def test_short_values_are_kept_as_they_are(size: int) -> None:
    """They begin no line, and nothing is made of them."""
    one = History()
    for number in range(9):
        run(one.added({("a", number): ("msgpack", b"x" * size)})[0])
    assert not any(isinstance(kept, Shared) for kept in [*one._kept.values(), one.shared(("msgpack", b"x" * size))])


def test_a_history_is_emptied_in_slices() -> None:
    """And reads as an empty one then."""
    one = History()
    for number in range(200):
        run(one.added({("a", number): ("msgpack", noise(1, LEAST) + noise(number, 9))})[0])
    assert sum(1 for _ in one.dismantle()) > 1
    assert [*one] == []


def test_two_versions_of_one_channel_come_at_once() -> None:
    """As `Store.put` lets them; a saver's checkpoint has but one."""
    world = World()
    world.add({("a", 1): ("msgpack", noise(1, LONG))})
    world.add({("a", number): ("msgpack", noise(1, LONG) + noise(number, 50)) for number in (2, 3)})
    world.check()


def test_a_version_is_replaced_as_the_next_one_comes() -> None:
    """Both in one call, as `Store.put` lets them."""
    world = World()
    world.add({("a", 1): ("msgpack", noise(1, LONG))})
    world.add({("a", 1): ("msgpack", noise(2, LONG)), ("a", 2): ("msgpack", noise(1, LONG) + b"more")})
    world.check()


# The work is bounded, and so is what is kept.


class Counted:
    """How often a function of the history's module was called, and how many parts it looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compositions = self.parts = 0
        composed, unpacked = history.composed, history._unpacked
        counted = self

        class Parts(list[Any]):
            def __iter__(self) -> Iterator[Any]:
                for part in super().__iter__():
                    counted.parts += 1
                    yield part

            def __getitem__(self, key: Any) -> Any:
                counted.parts += 1
                return super().__getitem__(key)

        def composed_and_counted(outer: bytes, inner: bytes) -> bytes:
            self.compositions += 1
            return composed(outer, inner)

        monkeypatch.setattr(history, "composed", composed_and_counted)
        monkeypatch.setattr(history, "_unpacked", lambda packed: Parts(unpacked(packed)))

    def since(self) -> tuple[int, int]:
        """Both numbers since this was asked last."""
        found = self.compositions, self.parts
        self.compositions = self.parts = 0
        return found


def grown(number: int, step: Callable[[bytes, int], bytes], value: bytes = b"") -> World:
    """A channel's versions, each made of the one before."""
    world = World()
    for i in range(number):
        value = step(value, i)
        new = {("a", i): ("msgpack", value)}
        run(world.history.added(new)[0])
        world.values.update(new)
    return world


def appended(value: bytes, number: int) -> bytes:
    """A value to which some bytes were appended."""
    return value + noise(number, 20)


def flipped(value: bytes, number: int) -> bytes:
    """A value one byte of which is another."""
    at = random.Random(number).randrange(len(value))
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


def most_compositions(world: World, counted: Counted) -> int:
    """How many compositions it takes to read the version for which it takes most."""
    most = 0
    for version, value in world.values.items():
        counted.since()
        assert world.history.value(version) == value
        most = max(most, counted.since()[0])
    return most


@pytest.mark.parametrize(("length", "most"), [(8, 16), (64, 32), (512, 48), (5000, 80)])
def test_any_version_is_read_by_few_compositions(monkeypatch: pytest.MonkeyPatch, length: int, most: int) -> None:
    """At most 16 for each factor of eight in the number of versions; and of all little more is kept than of one."""
    counted = Counted(monkeypatch)
    world = grown(length, appended, noise(0, LEAST))
    assert most_compositions(world, counted) <= most
    assert held(world.history) < 3 * len(world.values["a", length - 1][1])


def test_a_version_is_added_by_few_compositions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where many are made to lead further."""
    counted = Counted(monkeypatch)
    world = grown(511, appended, noise(0, LEAST))
    for number in range(511, 515):
        counted.since()
        run(world.history.added({("a", number): ("msgpack", noise(0, LEAST + 20 * number))})[0])
        run(world.history.added({("a", number): world.values["a", 510]})[0])
        assert counted.since()[0] <= 48


def test_what_is_kept_is_in_proportion_to_what_is_distinct() -> None:
    """Also where versions have little in common with those long before: the last hundred messages."""
    world = grown(1000, lambda value, number: (value + noise(number, 40))[-4000:])
    assert held(world.history) < 5 * 40 * 1000


def every_second(world: World) -> World:
    """What is left where one of two runs is deleted that took turns."""
    return world.only([*world.values][1::2])


def last_hundred(world: World) -> World:
    """What is left where, after each run, the one a hundred before it is deleted."""
    left = World()
    for version, value in world.values.items():
        run(left.history.added({version: value})[0])
        left.values[version] = value
        if len(left.values) > 100:
            left = left.only([*left.values][1:])
    return left


@pytest.mark.parametrize("left", [every_second, last_hundred])
def test_any_version_is_read_by_few_compositions_after_deletions(
    monkeypatch: pytest.MonkeyPatch, left: Callable[[World], World]
) -> None:
    """As before them."""
    world = left(grown(250, appended, noise(0, LEAST)))
    assert most_compositions(world, Counted(monkeypatch)) <= 48


def test_keeping_some_takes_a_few_compositions_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are."""
    world = grown(400, appended, noise(0, LEAST))
    counted = Counted(monkeypatch)
    every_second(world)
    assert counted.since()[0] <= 200 * 48


def test_the_work_of_a_reading_is_in_proportion_to_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where versions differ at very many places."""
    world = grown(1000, flipped, noise(0, LONG))
    counted = Counted(monkeypatch)
    assert world.history.value(("a", 1)) == world.values["a", 1]
    assert counted.since()[1] <= 50 * LONG


def test_to_read_a_version_takes_no_more_than_its_way_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each difference on it were applied once, from what is whole."""
    world = grown(1000, flipped, noise(0, LONG))
    way, kept = 0, world.history._kept["a", 1]
    while isinstance(kept, Shared):
        way += len(history._unpacked(kept.parts))
        kept = world.history._kept[kept.base]
    counted = Counted(monkeypatch)
    assert world.history.value(("a", 1)) == world.values["a", 1]
    assert counted.since()[1] <= 3 * way


def test_nothing_is_kept_that_is_longer_than_the_value() -> None:
    """Also where versions differ at very many places."""
    world = grown(520, flipped, noise(0, LEAST))
    assert [version for version, kept in world.history._kept.items() if len(kept[-1]) > LEAST] == []


def test_what_grows_before_an_end_that_stays_takes_little() -> None:
    """Messages, for instance, and what follows them in the same value."""
    end = noise(2, 3000)
    world = grown(100, lambda value, number: appended(value.removesuffix(end), number) + end, noise(1, 97_000))
    assert held(world.history) < 2 * len(world.values["a", 99][1])


# Through a store and a saver.


def kept_by(saver: AsyncSaver) -> list[int]:
    """How many bytes are kept of each value of a channel or a write, shared or not."""
    return saver._shared.store.peek(  # type: ignore[attr-defined, no-any-return]
        lambda buckets: [
            len(kept[-1])
            for bucket in buckets.values()
            for namespace in bucket.namespaces.values()
            for kept in [
                *namespace.history._kept.values(),
                *(write.value for writes in namespace.writes.values() for write in writes.values()),
            ]
        ]
    )


def shown_by(saver: AsyncSaver) -> int:
    """How many bytes the same values have."""
    writes = [write[2] for writes in saver.writes.values() for write in writes.values()]
    return sum(len(data) for _, data in [*saver.blobs.values(), *writes])


class Story:
    """A chat's calls, drawn at random: it grows, forks, is replayed, pruned, copied and deleted.

    Versions are new at every put, as a saver's `get_next_version` has them; a replay puts the same again.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.known: dict[tuple[str, str], list[Call]] = {}
        self.number = 0

    def next(self, model: Model) -> Call:
        draw, thread_id, ns = self.draw, self.draw.choice("ab"), self.draw.choice(["", "", "child"])
        known = self.known.setdefault((thread_id, ns), [])
        kind = draw.randrange(24)
        if kind < 11 or not known:
            return self._put(thread_id, ns, known)
        if kind < 13:
            return draw.choice(known)
        if kind < 18:
            return self._writes(draw.choice(known[-3:]))
        if kind == 18:
            return Call("delete_for_runs", ([f"run {draw.randrange(3)}"],))
        if kind < 21:
            return Call("prune", (["a", "b"][draw.randrange(2) :], "keep_latest"))
        if kind < 22:
            return Call("delete_thread", (thread_id,))
        free = [name for name in "abcd" if name not in model.conversations]
        return Call("copy_thread", (thread_id, free[0])) if free else Call("delete_thread", (draw.choice("cd"),))

    def _put(self, thread_id: str, ns: str, known: list[Call]) -> Call:
        draw = self.draw
        self.number += 1
        base = None if not known else draw.choice(known) if draw.random() < 0.3 else known[-1]
        parent = None if base is None else base.args[1][1]
        messages = [noise(self.number * 50 + i, LONG // 16).hex() for i in range(12)]
        versions: dict[str, str] = {}
        if base is not None:
            _, _, _, versions, new, _ = base.args
            messages = CHANGES[draw.choice([*CHANGES])](new["m"], messages[0], draw.randrange(len(new["m"])))
        messages = messages or ["a new beginning"]
        versions = {**versions, "m": f"{self.number}"}
        values: dict[str, Any] = {"m": messages}
        if draw.random() < 0.4:
            values["sent"], versions["sent"] = draw.choice([None, "x", [messages], [messages]]), f"{self.number}"
        made = Call("put", (thread_id, (ns, f"{self.number:03}"), parent, versions, values, self.number))
        known.append(made)
        return made

    def _writes(self, base: Call) -> Call:
        thread_id, place, _, _, values, _ = base.args
        self.number += 1
        sent = CHANGES[self.draw.choice([*CHANGES])](values["m"], noise(self.number, LONG // 16).hex(), 3)
        return Call("put_writes", (thread_id, place, [("sent", sent), ("__interrupt__", self.number)], "task"))


def bytes_of(model: Model) -> Any:
    """The bytes of all that a model holds: of channels' values and of writes."""
    blobs = {
        (thread_id, *key): EMPTY if value is None else _SERDE.dumps_typed(value)
        for thread_id, one in model.conversations.items()
        for key, value in one.values.items()
    }
    writes = {
        (thread_id, *place, *key): _SERDE.dumps_typed(value)
        for thread_id, one in model.conversations.items()
        for place, stored in one.writes.items()
        for key, (_, _, value) in stored.items()
    }
    return blobs, writes


def bytes_in(saver: AsyncSaver) -> Any:
    """The same bytes, as a saver's views show them."""
    writes = {(*where, *key): write[2] for where, stored in saver.writes.items() for key, write in stored.items()}
    return dict(saver.blobs), writes


@pytest.mark.parametrize("seed", range(12))
def test_a_chat_reads_as_it_was_put_whatever_was_done_to_it(seed: int, tmp_path: Path) -> None:
    """Every checkpoint and write that survives: growing, forks, replays, prunes, copies, deletions, deep copies."""

    async def tell() -> None:
        trial, story, former = Trial(NewStore("memory", tmp_path)), Story(seed), []
        for number in range(60):
            await trial.run([Task(story.next(trial.model))])
            assert bytes_in(trial.saver) == bytes_of(trial.model)
            if number % 20 == 10:
                former.append((trial.saver, await everything(trial.saver)))
                trial.saver = copy.deepcopy(trial.saver)
                trial.store = trial.saver._shared.store
        for saver, held_then in former:
            assert await everything(saver) == held_then
            saver._shared.store.check()  # type: ignore[attr-defined]

    anyio.run(tell)


def chat(number: int) -> list[str]:
    """What a chat's messages are after so many turns."""
    return [noise(turn, LONG // 8).hex() for turn in range(number)]


async def chatted(turns: int, saver: AsyncSaver | None = None) -> AsyncSaver:
    """A conversation of so many turns, each by a run of its own."""
    saver = saver or AsyncSaver()
    for turn in range(turns):
        parent = f"{turn - 1:03}" if turn else None
        await put(saver, f"{turn:03}", {"m": chat(turn + 5)}, parent=parent, run_id=f"run {turn}")
    return saver


async def values_of(saver: AsyncSaver, thread_id: str = "t") -> dict[str, Any]:
    """The messages at each checkpoint."""
    return {one.checkpoint["id"]: one.checkpoint["channel_values"]["m"] async for one in saver.alist(config(thread_id))}


def expected(turns: Sequence[int]) -> dict[str, Any]:
    """The messages at each of these turns."""
    return {f"{turn:03}": chat(turn + 5) for turn in turns}


@pytest.mark.anyio
async def test_a_chat_takes_little_more_than_its_newest_state() -> None:
    """Every state of it that was."""
    saver = await chatted(50)
    assert sum(kept_by(saver)) < 1.2 * len(_SERDE.dumps_typed(chat(54))[1])
    assert await values_of(saver) == expected(range(50))


@pytest.mark.anyio
async def test_a_fork_reads_apart_from_what_it_forked_from() -> None:
    """Time travel: what goes on from an old checkpoint, and what had gone on from it."""
    saver = await chatted(20)
    wanted = expected(range(20))
    for number in range(20, 40):
        wanted[f"{number:03}"] = [*chat(10), *chat(number)[::-1]]
        await put(saver, f"{number:03}", {"m": wanted[f"{number:03}"]}, parent=f"{number - 1:03}")
    wanted["040"] = chat(25)
    await put(saver, "040", {"m": chat(25)}, parent="019")
    assert await values_of(saver) == wanted


@pytest.mark.anyio
@pytest.mark.parametrize("gone", [[0], [0, 1, 2], [10], [7, 8, 9, 16], [18, 19], [19], [*range(19)], [*range(1, 20)]])
async def test_what_other_runs_leave_reads_as_before(gone: list[int]) -> None:
    """Whether the first, the last or some between are deleted; and it goes on from there."""
    saver = await chatted(20)
    await saver.adelete_for_runs([f"run {turn}" for turn in gone])
    left = [turn for turn in range(20) if turn not in gone]
    assert await values_of(saver) == expected(left)
    await put(saver, "020", {"m": chat(25)})
    assert await values_of(saver) == expected([*left, 20])
    assert sum(kept_by(saver)) < 1.2 * len(_SERDE.dumps_typed(chat(25))[1])
    saver._shared.store.check()  # type: ignore[attr-defined]


@pytest.mark.anyio
@pytest.mark.parametrize("last", [1, 5, 19])
async def test_of_deleted_runs_nothing_is_held(last: int) -> None:
    """What is left takes no more than if the others had never been."""
    saver, other = await chatted(20), await chatted(last)
    await saver.adelete_for_runs([f"run {turn}" for turn in range(last, 20)])
    assert sum(kept_by(saver)) <= sum(kept_by(other)) + 10 * last


@pytest.mark.anyio
async def test_of_what_is_pruned_nothing_is_held() -> None:
    """The newest bytes are, and the writes of the newest checkpoint."""
    saver = await chatted(20)
    for turn in range(20):
        await saver.aput_writes(config(checkpoint_id=f"{turn:03}"), [("sent", chat(turn + 5))], "task")
    await saver.aprune(["t"])
    newest = len(_SERDE.dumps_typed(chat(24))[1])
    assert max(kept_by(saver)) == newest
    assert sum(kept_by(saver)) <= newest + 20
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.pending_writes == [("task", "sent", chat(24))]


@pytest.mark.anyio
async def test_a_write_outlives_the_version_that_it_is_made_of() -> None:
    """The write of a checkpoint that comes only later, where the versions that it is like are pruned."""
    saver = await chatted(3)
    await saver.aput_writes(config(checkpoint_id="999"), [("sent", chat(7))], "task")
    await put(saver, "998", {"m": "another channel, in fact"})
    await saver.aprune(["t"])
    await put(saver, "999", {"m": []}, parent="998")
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.pending_writes == [("task", "sent", chat(7))]
    saver._shared.store.check()  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_a_write_shares_with_another_version_when_its_own_is_deleted() -> None:
    """With the newest that is left, which it is like as well."""
    saver = await chatted(3)
    await saver.aput_writes(config(checkpoint_id="999"), [("sent", chat(7))], "task")
    await saver.adelete_for_runs(["run 2"])
    assert sum(kept_by(saver)) < 1.5 * len(_SERDE.dumps_typed(chat(6))[1])
    assert dict(saver.writes["t", "", "999"]) == {("task", 0): ("task", "sent", _SERDE.dumps_typed(chat(7)), "")}


@pytest.mark.anyio
@pytest.mark.parametrize("deleted", ["t", "twin"])
async def test_a_copy_and_its_original_go_on_apart(deleted: str) -> None:
    """Each grows, then one is deleted and the other reads as before."""
    saver = await chatted(10)
    await saver.aput_writes(config(checkpoint_id="009"), [("sent", chat(14))], "task")
    await saver.acopy_thread("t", "twin")
    for turn in range(10, 20):
        await put(saver, f"{turn:03}", {"m": chat(turn + 5)})
        await put(saver, f"{turn:03}", {"m": chat(turn + 5)[::-1]}, thread_id="twin")
    await saver.adelete_thread(deleted)
    left = expected(range(20))
    if deleted == "t":
        left |= {f"{turn:03}": chat(turn + 5)[::-1] for turn in range(10, 20)}
    assert await values_of(saver, "twin" if deleted == "t" else "t") == left
    assert [dict(stored)["task", 0][2] for stored in saver.writes.values()] == [_SERDE.dumps_typed(chat(14))]
    saver._shared.store.check()  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_namespaces_share_nothing() -> None:
    """The same channel and version has a value in each, and one may be replaced."""
    saver = AsyncSaver()
    for ns, start in (("", 0), ("child", 1)):
        for turn in range(5):
            await put(saver, f"{turn}", {"m": chat(20 + turn)[start:]}, ns=ns)
    await put(saver, "2", {"m": "replaced"}, ns="child")
    for turn in range(5):
        found = [await saver.aget_tuple(config(checkpoint_id=f"{turn}", ns=ns)) for ns in ("", "child")]
        replaced = "replaced" if turn == 2 else chat(20 + turn)[1:]
        assert [one and one.checkpoint["channel_values"]["m"] for one in found] == [chat(20 + turn), replaced]


@pytest.mark.anyio
async def test_what_is_sent_to_a_task_takes_a_fraction_of_its_size() -> None:
    """A state like that of the channel, in a write and in a channel of its own."""
    saver = AsyncSaver()
    sent = [Send("node", {"messages": chat(20)}), Send("other", {"messages": chat(20), "question": "why"})]
    await put(saver, "1", {"m": chat(20)})
    for number, one in enumerate(sent):
        await saver.aput_writes(config(checkpoint_id="1"), [("__pregel_tasks", one)], f"task {number}")
    await put(saver, "2", {"m": chat(20), "__pregel_tasks": sent[:1]}, parent="1")
    assert sorted(kept_by(saver))[-2] < len(_SERDE.dumps_typed(chat(20))[1]) / 10
    first, second = [one async for one in saver.alist(config())][::-1]
    assert first.pending_writes == [("task 0", "__pregel_tasks", sent[0]), ("task 1", "__pregel_tasks", sent[1])]
    assert second.checkpoint["channel_values"] == {"m": chat(20), "__pregel_tasks": sent[:1]}


@pytest.mark.anyio
async def test_versions_may_be_numbers() -> None:
    """A subclass may count: 1 and 1.0 and True are one version, which is replaced."""
    saver = AsyncSaver()
    for number, version in enumerate((1, 2, 3.5, 2.0, True)):
        made = checkpoint(f"{number}", {"m": chat(10 + number)}, channel_versions={"m": version})
        await saver.aput(config(), made, {}, {"m": version})
    found = await values_of(saver)
    assert found == {"0": chat(14), "1": chat(13), "2": chat(12), "3": chat(13), "4": chat(14)}
    await saver.adelete_for_runs(["none"])
    assert await values_of(saver) == found


@pytest.mark.anyio
async def test_a_write_that_is_made_of_a_replaced_version_reads_as_before() -> None:
    """A checkpoint is put again, with another value of a version, after a write like the former one."""
    saver = AsyncSaver()
    await put(saver, "1", {"m": chat(10)})
    await saver.aput_writes(config(checkpoint_id="1"), [("sent", chat(10))], "task")
    await put(saver, "1", {"m": chat(10)[::-1]})
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.pending_writes == [("task", "sent", chat(10))]


@pytest.mark.anyio
async def test_what_is_shared_stays_shared_where_a_checkpoint_is_put_again() -> None:
    """With the same values: nothing has to be made anew."""
    saver = AsyncSaver()
    for _ in range(2):
        await put(saver, "1", {"m": chat(10)})
        await saver.aput_writes(config(checkpoint_id="1"), [("sent", chat(10))], "task")
    assert min(kept_by(saver)) < 100


@pytest.mark.anyio
async def test_a_value_like_what_is_replaced_in_the_same_put_reads_as_it_was_put() -> None:
    """One channel's version is put again with another value, and a new one has the former value."""
    saver = AsyncSaver()
    await put(saver, "1", {"m": chat(10)}, version="1")
    await put(saver, "2", {"m": chat(20)[10:], "former": chat(10)}, version="1")
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"m": chat(20)[10:], "former": chat(10)}


@pytest.mark.anyio
async def test_a_store_takes_two_versions_of_one_channel_at_once() -> None:
    """`Store.put` takes each new version with its value."""
    store, values = MemoryStore(), [(("m", number), ("msgpack", noise(1, LONG + number))) for number in range(3)]
    record = CheckpointRecord("1", None, ("msgpack", b"1"), ("msgpack", b"1"), (values[0][0],), None, ())
    await store.put("t", "", record, values[:1])
    await store.put("t", "", record, values[1:])
    found = await store.get("t", "", "1")
    assert found is not None
    assert found.values == [("m", values[0][1])]


# What an interrupt cut off.


class Cut(BaseException):
    """An interrupt."""


class Interrupted(MemoryStore):
    """Is interrupted once, after `left` steps of its journal."""

    left = -1

    def _commit(self, steps: list[Step]) -> None:
        if self.left >= 0:
            self._journal = steps
            run(steps[: self.left])
            self.left = -1
            raise Cut
        super()._commit(steps)


async def _copy(saver: AsyncSaver) -> AsyncSaver:
    await saver.acopy_thread("t", "twin")
    return saver


async def _keep_latest(saver: AsyncSaver) -> AsyncSaver:
    await saver.aprune(["t"])
    return saver


async def _delete_a_run(saver: AsyncSaver) -> AsyncSaver:
    await saver.adelete_for_runs(["run 7"])
    return saver


async def _deep_copy(saver: AsyncSaver) -> AsyncSaver:
    return copy.deepcopy(saver)


async def _go_on(saver: AsyncSaver) -> AsyncSaver:
    await put(saver, "009", {"m": chat(14)}, parent="008", run_id="run 9")
    return saver


@pytest.mark.anyio
@pytest.mark.parametrize("then", [_copy, _keep_latest, _delete_a_run, _deep_copy, _go_on])
async def test_what_an_interrupt_cut_off_is_finished_before_anything_else(then: Any) -> None:
    """A put of the ninth version, of which several are made anew, is whole for whatever comes next."""
    smooth = await then(await chatted(9))
    for steps in range(10):
        store = Interrupted()
        saver = await chatted(8, AsyncSaver(store=store))
        store.left = steps
        with pytest.raises(Cut):
            await put(saver, "008", {"m": chat(13)}, parent="007", run_id="run 8")
        saver = await then(saver)
        assert await all_of(saver.alist(None)) == await all_of(smooth.alist(None))
        assert saver.blobs == smooth.blobs
        saver._shared.store.check()  # type: ignore[attr-defined]


# Any serde, and whoever looks at the bytes.


class Compressed(FastJsonPlusSerializer):
    """Bytes of which no two have much in common."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        kind, data = super().dumps_typed(obj)
        return kind, zlib.compress(data)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed((data[0], zlib.decompress(data[1])))


class AsText(FastJsonPlusSerializer):
    """Text in the place of bytes, as savers that only keep it have always taken it."""

    def dumps_typed(self, obj: Any) -> tuple[str, Any]:
        return "json", json.dumps(obj)

    def loads_typed(self, data: tuple[str, Any]) -> Any:
        return json.loads(data[1])


SERDES: Mapping[str, Callable[[], Any]] = {
    "plain": FastJsonPlusSerializer,
    "encrypted": lambda: EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16),
    "compressed": Compressed,
    "pickle": lambda: FastJsonPlusSerializer(pickle_fallback=True),
    "text": AsText,
}


@pytest.mark.anyio
@pytest.mark.parametrize("serde", SERDES.values(), ids=SERDES)
async def test_any_serde_costs_no_more_than_whole_values(serde: Callable[[], Any]) -> None:
    """Also one whose values have nothing in common; and all of them read as they were put."""
    saver = await chatted(20, AsyncSaver(serde=serde()))
    await saver.aput_writes(config(checkpoint_id="019"), [("sent", chat(24))], "task")
    assert sum(kept_by(saver)) <= shown_by(saver)
    assert await values_of(saver) == expected(range(20))
    await saver.adelete_for_runs(["run 3", "run 19"])
    assert sum(kept_by(saver)) <= shown_by(saver)
    assert await values_of(saver) == expected([turn for turn in range(19) if turn != 3])


@pytest.mark.anyio
async def test_views_show_whole_values() -> None:
    """As they were serialised, whatever is kept of them."""
    saver = await chatted(10)
    await saver.aput_writes(config(checkpoint_id="009"), [("sent", chat(14))], "task")
    assert isinstance(saver._shared.store._buckets["t"].namespaces[""].history._kept["m", "003"], Shared)  # type: ignore[attr-defined]
    assert dict(saver.blobs) == {("t", "", "m", f"{n:03}"): _SERDE.dumps_typed(chat(n + 5)) for n in range(10)}
    assert saver.blobs["t", "", "m", "003"] == saver.blobs.get(("t", "", "m", "003")) == _SERDE.dumps_typed(chat(8))
    assert dict(saver.writes["t", "", "009"]) == {("task", 0): ("task", "sent", _SERDE.dumps_typed(chat(14)), "")}
    for checkpoint_id, (stored, _, _) in saver.storage["t"][""].items():
        assert _SERDE.loads_typed(stored)["id"] == checkpoint_id


@pytest.mark.anyio
async def test_files_hold_whole_values(tmp_path: Path) -> None:
    """InMemorySaver reads them, and so does this one, in which they share their bytes again."""
    async with AsyncSaver(factory=files(tmp_path)) as saver:
        await chatted(10, saver)
        await saver.aput_writes(config(checkpoint_id="009"), [("sent", chat(14))], "task")
    with Reference(factory=files(tmp_path)) as upstream:
        found = {one.checkpoint["id"]: one.checkpoint["channel_values"]["m"] for one in upstream.list(config())}
        latest = upstream.get_tuple(config())
    assert found == expected(range(10))
    assert latest is not None
    assert latest.pending_writes == [("task", "sent", chat(14))]
    async with AsyncSaver(factory=files(tmp_path)) as reopened:
        assert await values_of(reopened) == expected(range(10))
        assert await listed(reopened, config()) == sorted(found, reverse=True)
        assert sum(kept_by(reopened)) < shown_by(reopened) / 3
