"""The values of one namespace's channels, which share the bytes that they have in common.

The newest version of a channel is whole, an older one is what differs from a newer one: a difference says how to make
some bytes, the target, of others, the source, by new bytes and by copies of parts of the source. It finds what was
appended, inserted, taken away or replaced, also where the rest has moved. This module sees nothing but bytes, whatever
wrote them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import setitem
from typing import Any, NamedTuple, TypeAlias, TypeVar

from async_saver.pace import Slices
from async_saver.records import Blob, ChannelVersion

__all__ = ["History", "Shared", "Step", "append_once"]

_T = TypeVar("_T")

Step: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]
"""A part of a change, which may be done twice."""

LEAST = 512  # bytes; what is shorter is not worth a difference

_COPY = 32  # bytes; what is shorter is not worth a copy
_CERTAIN = 256  # bytes; what is common to all items of a list is shorter, and may be found at the wrong one
_SEED = 24  # bytes that are looked for, to find where two go on alike
_STEPS = (4, 64, 512, 4096)  # how far after the place where they part
_NEAR = 8192  # how far from it they are looked for first, as that takes less time
_MOST_PARTS = 16
_MOST_TRIES = 3

_Part = tuple[bytes, int, int]
"""New bytes, and then a copy: where in the source it begins, and how many bytes."""

_Match = tuple[int, int, int]
"""Where in the target and where in the source the same bytes begin, and how many."""


_STRIDE = 8  # every so many versions one is made of one that is so much further, so that no way to the newest is long


class Shared(NamedTuple):
    """A value of which only that is kept in which it differs from some version's."""

    kind: str
    base: ChannelVersion
    parts: bytes


Kept: TypeAlias = Blob | Shared


class History:
    """The values of channel versions, each whole or shared.

    The versions of a channel that are long enough form a line, in the order in which they came. Its last is whole, an
    older one is made of a newer one. What is like the last of another line, as a state that is sent to a task is like
    that state, is made of that and in no line itself. So each way from one to the next ends at something whole.

    A change is prepared as steps, and has happened when they are done.
    """

    __slots__ = ("_kept", "_lines")

    def __init__(self) -> None:
        self._kept: dict[ChannelVersion, Kept] = {}
        self._lines: dict[str, list[ChannelVersion]] = {}

    def __iter__(self) -> Iterator[ChannelVersion]:
        """Iterate over the versions that have a value."""
        return iter(self._kept)

    def kind(self, version: ChannelVersion) -> str | None:
        """Return the type's name of a version's value; None if it has none."""
        kept = self._kept.get(version)
        return None if kept is None else kept[0]

    def value(self, version: ChannelVersion) -> Blob | None:
        """Return the value of a version; None if it has none."""
        kept = self._kept.get(version)
        return None if kept is None else self.whole(kept)

    def whole(self, kept: Kept) -> Blob:
        """Return a value that may be shared."""
        if not isinstance(kept, Shared):
            return kept
        kind, base, parts = kept
        source = self._kept[base]
        while isinstance(source, Shared):
            parts = composed(parts, source.parts)
            source = self._kept[source.base]
        return kind, rebuilt(parts, source[1])

    def shared(self, value: Blob) -> Kept:
        """Return a value as it is to be kept beside those of the channels, for instance in a write."""
        return _shared(value, self._heads()) if len(value[1]) >= LEAST else value

    def _heads(self) -> dict[ChannelVersion, Blob]:
        """Return what is last in each line."""
        return {line[-1]: self.whole(self._kept[line[-1]]) for line in self._lines.values()}

    def added(self, values: Mapping[ChannelVersion, Blob]) -> list[Step]:
        """Return the steps that add values, or replace them."""
        steps: list[Step] = []
        long = []
        for version, value in values.items():
            if version in self._kept:
                steps += self._replaced(version, value)
            elif len(value[1]) >= LEAST:
                long.append(version)
            else:
                steps.append((setitem, (self._kept, version, value)))
        if long:
            heads = self._heads()
            # Those with a line first: what is like one of them is then made of its newest.
            long.sort(key=lambda version: version[0] not in self._lines)
            for version in long:
                steps += self._added(version, values[version], heads)
        return steps

    def _replaced(self, version: ChannelVersion, value: Blob) -> Iterator[Step]:
        if self.value(version) != value:
            for other, kept in self._kept.items():
                if isinstance(kept, Shared) and kept.base == version:
                    yield setitem, (self._kept, other, self.whole(kept))
            yield setitem, (self._kept, version, value)

    def _added(self, version: ChannelVersion, value: Blob, heads: dict[ChannelVersion, Blob]) -> Iterator[Step]:
        line = self._lines.get(version[0])
        former = line[-1] if line else None
        parts = difference(heads[former][1], value[1]) if former is not None else None
        if parts is None:
            kept = _shared(value, heads)
            if isinstance(kept, Shared):
                yield setitem, (self._kept, version, kept)
                return
        yield setitem, (self._kept, version, value)
        if line is None:
            line = []
            yield setitem, (self._lines, version[0], line)
        if former is not None:
            if parts is not None:
                shares = {former: Shared(heads[former][0], version, parts)}
                self._shorten_ways(line, version, shares)
                for other, shared in shares.items():
                    yield setitem, (self._kept, other, shared)
            del heads[former]
        yield append_once, (line, version)
        heads[version] = value

    def _shorten_ways(
        self, line: Sequence[ChannelVersion], newest: ChannelVersion, shares: dict[ChannelVersion, Shared]
    ) -> None:
        """Let some of those before lead to the newest at once, so that no way to it is long.

        Every eighth leads to the one that is eight further, of these every eighth to the one that is 64 further, and so
        on: each way is of at most 16 steps for every factor of eight in the line's length.
        """
        stride = _STRIDE
        while len(line) % stride == 0 and len(line) >= stride:
            far = line[len(line) - stride]
            kept = shares.get(far, self._kept[far])
            while isinstance(kept, Shared) and kept.base != newest:
                following = shares.get(kept.base, self._kept[kept.base])
                if isinstance(following, Shared):
                    kept = Shared(kept.kind, following.base, composed(kept.parts, following.parts))
                else:
                    kept = following
            if isinstance(kept, Shared):
                shares[far] = kept
            stride *= _STRIDE

    def copy(self) -> "History":
        """Return an independent copy; bytes are shared."""
        twin = History()
        twin._kept = self._kept.copy()
        twin._lines = {channel: line.copy() for channel, line in self._lines.items()}
        return twin

    def only(self, versions: Collection[ChannelVersion]) -> Slices["History"]:
        """Return a history of these versions, as far as they have values."""
        result = History()
        for channel, line in self._lines.items():
            left = [version for version in line if version in versions]
            if left:
                result._lines[channel] = left
            for version, newer in zip(reversed(left), [None, *reversed(left)], strict=False):
                yield
                kept = self._kept[version]
                if newer is None:
                    kept = self.whole(kept)
                elif isinstance(kept, Shared) and kept.base not in result._kept:
                    kept = self.whole(kept)
                    source = result.whole(result._kept[newer])
                    parts = difference(kept[1], source[1])
                    kept = kept if parts is None else Shared(kept[0], newer, parts)
                result._kept[version] = kept
        for version in versions:
            if version in self._kept and version not in result._kept:
                yield
                result._kept[version] = result.adopted(self._kept[version], self)
        return result

    def adopted(self, kept: Kept, source: "History") -> Kept:
        """Return what was kept beside the channels of another history as it is to be kept beside these."""
        if not isinstance(kept, Shared) or kept.base in self._kept:
            return kept
        return self.shared(source.whole(kept))

    def dismantle(self) -> Slices[None]:
        """Empty it."""
        while self._kept:
            for _ in range(min(len(self._kept), 64)):
                self._kept.popitem()
            yield

    def faults(self, beside: Iterable[Kept]) -> Iterator[str]:
        """Say what here, or in what is kept beside it, cannot be read, or leads further than it should."""
        for channel, line in self._lines.items():
            if not line or any(version[0] != channel or version not in self._kept for version in line):
                yield f"the line of channel {channel!r} is {line}"
            elif isinstance(self._kept[line[-1]], Shared):
                yield f"the newest of channel {channel!r} is not whole"
        for kept in chain(self._kept.values(), beside):
            seen: list[object] = []
            while isinstance(kept, Shared) and kept.base not in seen:
                seen.append(kept.base)
                kept = self._kept.get(kept.base, kept)
            if isinstance(kept, Shared):
                yield f"what is made of {kept.base} leads to nothing whole, by {seen}"


def append_once(items: list[_T], item: _T) -> None:
    """Append to a list without duplicates, if that has not happened yet."""
    if not items or items[-1] != item:
        items.append(item)


def _shared(value: Blob, heads: Mapping[ChannelVersion, Blob]) -> Kept:
    """Return a value made of one of some others, if it is like it."""
    tries = 0
    for version, (_, source) in reversed([*heads.items()]):
        if tries < _MOST_TRIES and len(source) <= 2 * len(value[1]) and len(value[1]) <= 2 * len(source):
            tries += 1
            parts = difference(value[1], source)
            if parts is not None:
                return Shared(value[0], version, parts)
    return value


def difference(target: bytes, source: bytes) -> bytes | None:
    """Return how to make `target` of `source`; None if that takes more than half as many bytes as the target has."""
    parts: list[_Part] = []
    done = size = at = beside = 0
    # Of what is left, so little is not worth the search for it.
    end = len(target) - max(_COPY, len(target) // 32)
    while at < end and len(parts) < _MOST_PARTS and size <= len(target) // 2:
        length = _alike(target, at, source, beside)
        if length < _COPY:
            match = _next_match(target, at + length, source, beside + length)
            if match is None:
                break
            at, beside, length = match
        parts.append((target[done:at], beside, length))
        size += at - done
        at, beside = at + length, beside + length
        done = at
    size += len(target) - done
    if size > len(target) // 2:
        return None
    return _packed([*parts, (target[done:], 0, 0)])


def _next_match(target: bytes, at: int, source: bytes, beside: int) -> _Match | None:
    """Return where, not before `at`, the target goes on like some part of the source."""
    best: _Match = (0, 0, 0)
    for far in (_NEAR, max(len(target), len(source))):
        for step in _STEPS:
            for match in _matches(target, at, source, beside, step, far):
                if match[2] >= _CERTAIN:
                    return match
                best = max(best, match, key=_length_of)
    # Much was replaced, perhaps, and the end is as it was.
    length = _alike_before(target, len(target), at, source, len(source))
    best = max(best, (len(target) - length, len(source) - length, length), key=_length_of)
    return best if best[2] >= _COPY else None


def _length_of(match: _Match) -> int:
    return match[2]


def _matches(target: bytes, at: int, source: bytes, beside: int, step: int, far: int) -> Iterator[_Match]:
    """Look for some bytes of each in the other: bytes that the other has not are found in one of the two only."""
    seed = target[at + step : at + step + _SEED]
    if len(seed) == _SEED:
        there = source.find(seed, beside, beside + far)
        if there < 0:
            there = source.find(seed, max(beside - far, 0), beside)
        if there >= 0:
            yield _extended(target, at + step, at, source, there)
    seed = source[beside + step : beside + step + _SEED]
    if len(seed) == _SEED:
        here = target.find(seed, at, at + far)
        if here >= 0:
            yield _extended(target, here, at, source, beside + step)


def _extended(target: bytes, at: int, least: int, source: bytes, beside: int) -> _Match:
    before = _alike_before(target, at, least, source, beside)
    return at - before, beside - before, before + _alike(target, at, source, beside)


def _alike(target: bytes, at: int, source: bytes, beside: int) -> int:
    """Return how many bytes are the same from two places on."""
    most = min(len(target) - at, len(source) - beside)
    if not source.startswith(target[at : at + _COPY], beside):
        most = min(most, _COPY - 1)  # it would be long to compare all the rest in vain
    same = 0
    tried = most  # all of it first, as it is mostly the rest of both
    while most > same:
        if source.startswith(target[at + same : at + tried], beside + same):
            same = tried
        else:
            most = tried - 1
        tried = (same + most + 1) // 2
    return same


def _alike_before(target: bytes, at: int, least: int, source: bytes, beside: int) -> int:
    """Return how many bytes are the same right before two places, in the target not before `least`."""
    same, most = 0, min(at - least, beside)
    while most > same:
        tried = (same + most + 1) // 2
        if target[at - tried : at - same] == source[beside - tried : beside - same]:
            same = tried
        else:
            most = tried - 1
    return same


def rebuilt(parts: bytes, source: bytes) -> bytes:
    """Return what a difference makes of `source`."""
    pieces: list[bytes] = []
    for new, begin, length in _unpacked(parts):
        pieces += (new, source[begin : begin + length])
    return b"".join(pieces)


def composed(outer: bytes, inner: bytes) -> bytes:
    """Return in one what two differences do one after the other, `inner` first."""
    middle = _unpacked(inner)
    result: list[_Part] = []
    new = b""
    for before, begin, length in _unpacked(outer):
        new += before
        for piece, where, much in _cut(middle, begin, begin + length):
            if piece is not None:
                new += piece
            elif not new and result and result[-1][1] + result[-1][2] == where:
                result[-1] = (result[-1][0], result[-1][1], result[-1][2] + much)
            else:
                result.append((new, where, much))
                new = b""
    return _packed([*result, (new, 0, 0)])


def _cut(parts: Sequence[_Part], begin: int, end: int) -> Iterator[tuple[bytes | None, int, int]]:
    """Return what a stretch of a target is made of: new bytes, or None with where in the source they are, how many."""
    at = 0
    for new, where, length in parts:
        if at < end and begin < at + len(new):
            yield new[max(begin - at, 0) : end - at], 0, 0
        at += len(new)
        first, last = max(begin, at), min(end, at + length)
        if first < last:
            yield None, where + first - at, last - first
        at += length


# In bytes: for each part how many new bytes, these, where the copy begins, its length; numbers in seven bits a byte.


def _packed(parts: Sequence[_Part]) -> bytes:
    packed = bytearray()
    for new, begin, length in parts:
        if new or length:
            for number, following in ((len(new), new), (begin, b""), (length, b"")):
                while number > 0x7F:
                    packed.append(number & 0x7F | 0x80)
                    number >>= 7
                packed.append(number)
                packed += following
    return bytes(packed)


def _unpacked(packed: bytes) -> list[_Part]:
    parts: list[_Part] = []
    at = 0
    while at < len(packed):
        numbers: list[int] = []
        new = b""
        for place in range(3):
            number = shift = 0
            while packed[at] > 0x7F:
                number |= (packed[at] & 0x7F) << shift
                shift += 7
                at += 1
            number |= packed[at] << shift
            at += 1
            numbers.append(number)
            if place == 0:
                new = packed[at : at + number]
                at += number
        parts.append((new, numbers[1], numbers[2]))
    return parts
