"""The values of one namespace's channels, which share the bytes that they have in common.

The newest version of a channel is whole, an older one is what differs from a newer one: a difference says how to make
some bytes, the target, of others, the source, by new bytes and by copies of parts of the source. It finds what was
appended, inserted, taken away or replaced, also where the rest has moved. This module sees nothing but bytes, whatever
wrote them.
"""

from bisect import bisect_right
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import reduce
from itertools import accumulate, chain
from operator import itemgetter
from sys import getsizeof
from typing import Any, NamedTuple, TypeAlias

from async_saver.pace import Slices, at_once
from async_saver.records import Blob, ChannelVersion

__all__ = ["History", "Shared", "Step", "composed", "difference", "restored"]

Step: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]
"""A part of a change, which may be done twice."""

LEAST = 1024  # bytes; what is shorter is not worth a difference
_LEAST_BESIDE = 2048  # nor what is shorter and is no channel's next version, as it may be like nothing

_COPY = 32  # bytes; what is shorter is not worth a copy
_FIND = 128  # bytes; nor what is shorter the search for it
_CERTAIN = 256  # bytes; what is common to all items of a list is shorter, and may be found at the wrong one
_SEED = 24  # bytes that are looked for, to find where two go on alike
_FRONT = 8  # bytes in which it may say how long a list is
_STEPS = (4, 64, 512, 4096)  # how far after the place where they part
_NEAR = 8192  # how far from it they are looked for first, as that takes less time
_MOST_PARTS = 16
_MOST_TRIES = 2

_VERSION_SIZE = (
    2 * getsizeof(("", ""))  # it, and its value
    + getsizeof("0" * 32 + "." + "0" * 19)
    + getsizeof(b"")
    + 40  # its place in a dict
)
"""What a version takes beside its value's bytes."""

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


Size: TypeAlias = tuple[int, int]
"""What some values take, in bytes, and how much less than if each were whole."""


class History:
    """The values of channel versions, each whole or shared.

    The versions of a channel that are long enough form a line, in the order in which they came. Its last is whole, an
    older one is made of a newer one. What is like the last of another line, as a state that is sent to a task is like
    that state, is made of that and in no line itself. So each way from one to the next ends at something whole.

    A change is prepared as steps, and has happened when they are done.

    Attributes:
        figures: What it takes, and how many bytes less than if every value were whole.
    """

    __slots__ = ("_kept", "_lines", "figures")

    def __init__(self) -> None:
        self._kept: dict[ChannelVersion, Kept] = {}
        self._lines: dict[str, _Line] = {}
        self.figures: Size = (0, 0)

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
        return _whole(kept, self._kept) if isinstance(kept, Shared) else kept

    def whole(self, kept: Kept) -> Blob:
        """Return a value that may be shared."""
        return _whole(kept, self._kept)

    def length(self, kept: Kept) -> int:
        """Return how many bytes a value has."""
        return _length_of(kept)

    def shared(self, value: Blob) -> Kept:
        """Return a value as it is to be kept beside those of the channels, for instance in a write."""
        return _shared(value, self._heads()) if _is_long(value, _LEAST_BESIDE) else value

    def _heads(self) -> dict[ChannelVersion, Blob]:
        """Return what is last in each line, the longest line first."""
        lines = [line.versions for line in self._lines.values()]
        lines.sort(key=len, reverse=True)
        return {line[-1]: self.whole(self._kept[line[-1]]) for line in lines}

    def replaced(self, values: Mapping[ChannelVersion, Blob]) -> Collection[ChannelVersion]:
        """Return which versions have another value already."""
        return [version for version in values if version in self._kept and self.value(version) != values[version]]

    def added(self, values: Mapping[ChannelVersion, Blob]) -> tuple[list[Step], Size]:
        """Return the steps that add values, or replace them, and what they add to the figures."""
        new: dict[ChannelVersion, Kept] = {}
        long: list[ChannelVersion] = []
        size = 0
        replaces = False
        for version, value in values.items():
            if version in self._kept:
                if self.value(version) != value:
                    replaces = True
                    self._replace(version, value, new)
            elif _is_long(value, LEAST):
                long.append(version)
            else:
                new[version] = value
                size += _VERSION_SIZE + len(value[1])
        if not long and not replaces:
            if not new:
                return [], (0, 0)
            held, saved = self.figures
            return [(self._update, (new, (held + size, saved)))], (size, 0)
        steps: list[Step] = []
        if long:
            kept = ChainMap(new, self._kept)  # as it will be
            heads = {version: self.whole(new.get(version, head)) for version, head in self._heads().items()}
            lines: dict[str, _Growing] = {}
            # Those with a line first: what is like one of them is then made of its newest.
            for version in sorted(long, key=lambda version: version[0] not in self._lines):
                line = lines.setdefault(version[0], _Growing(self._lines.get(version[0], _NO_LINE), []))
                _add(version, values[version], line, kept, heads)
            steps = [(self._extend, (one, len(old.versions), coming)) for one, (old, coming) in lines.items() if coming]
        grown = self._growth(new, values)
        steps.append((self._update, (new, _sum(self.figures, grown))))
        return steps, grown

    def _growth(self, new: Mapping[ChannelVersion, Kept], values: Mapping[ChannelVersion, Blob]) -> Size:
        """Return what the figures grow by: `new` is put in place, and by that `values` are added."""
        size = saved = 0
        for version, kept in new.items():
            size += _VERSION_SIZE + len(kept[-1])
            saved -= len(kept[-1])
            former = self._kept.get(version)
            if former is not None:
                size -= _VERSION_SIZE + len(former[-1])
                saved += len(former[-1])
            if version in values:
                saved += len(values[version][1])
                if former is not None:
                    saved -= _length_of(former)
        return size, saved

    def _update(self, new: Mapping[ChannelVersion, Kept], figures: Size) -> None:
        self._kept.update(new)
        self.figures = figures

    def _replace(self, version: ChannelVersion, value: Blob, new: dict[ChannelVersion, Kept]) -> None:
        for other, kept in self._kept.items():
            if other not in new and isinstance(kept, Shared) and kept.base == version:
                new[other] = self.whole(kept)
        new[version] = value

    def _extend(self, channel: str, length: int, coming: list[ChannelVersion]) -> None:
        line = self._lines.get(channel)
        if line is None:
            line = self._lines[channel] = _Line(0, [])
        line.versions[length:] = coming

    def size(self, versions: Iterable[ChannelVersion]) -> int:
        """Return how many bytes some values take, where none is shared."""
        size = 0
        for version in versions:
            if (kept := self._kept.get(version)) is not None:
                size += _VERSION_SIZE + len(kept[-1])
        return size

    def drop(self, versions: Iterable[ChannelVersion], figures: Size) -> None:
        """Take values away, where none is shared, as a step."""
        for version in versions:
            self._kept.pop(version, None)
        self.figures = figures

    def without(self, versions: Collection[ChannelVersion]) -> tuple[list[Step], Size]:
        """Return the steps that take values away, and what they add to the figures.

        What is kept elsewhere must not be made of one of them, as `bases` tells.
        """
        held, saved = self.figures
        size = more = 0
        for version in versions:
            kept = self._kept.get(version)
            if kept is not None:
                size -= _VERSION_SIZE + len(kept[-1])
                if type(kept) is Shared:
                    more += len(kept.parts) - _length(kept.parts)
        bases = self.bases(versions)
        if not bases:
            return [(self._remove, (versions, {}, {}, (held + size, saved + more)))], (size, more)
        lines: dict[str, _Line] = {}
        for version in bases:
            line = lines.get(version[0]) or self._lines[version[0]]
            lines[version[0]] = line.without(version)
        new: dict[ChannelVersion, Kept] = {}
        for version, kept in self._kept.items():
            if isinstance(kept, Shared) and kept.base in bases and version not in versions:
                new[version] = self.whole(kept)
        for line in lines.values():
            if line.versions:
                new[line.versions[-1]] = self.whole(self._kept[line.versions[-1]])
        grown = _sum((size, more), self._growth(new, {}))
        return [(self._remove, (versions, lines, new, _sum(self.figures, grown)))], grown

    def _remove(
        self,
        gone: Collection[ChannelVersion],
        lines: "Mapping[str, _Line]",
        new: Mapping[ChannelVersion, Kept],
        figures: Size,
    ) -> None:
        self.drop(gone, figures)
        for channel, line in lines.items():
            if line.versions:
                self._lines[channel] = line
            else:
                self._lines.pop(channel, None)
        self._kept.update(new)

    def has_lines(self) -> bool:
        """Tell whether others may be made of any version."""
        return bool(self._lines)

    def bases(self, versions: Collection[ChannelVersion]) -> Collection[ChannelVersion]:
        """Return those of some versions that others may be made of."""
        if not self._lines:
            return ()
        return [one for one in versions if one[0] in self._lines and one in self._lines[one[0]].versions]

    def copy(self) -> "History":
        """Return an independent copy; bytes are shared."""
        twin = History()
        twin._kept = self._kept.copy()
        twin._lines = {channel: _Line(line.first, line.versions.copy()) for channel, line in self._lines.items()}
        twin.figures = self.figures
        return twin

    def only(self, versions: Collection[ChannelVersion]) -> Slices["History"]:
        """Return a history of these versions, as far as they have values."""
        result = History()
        for channel, line in self._lines.items():
            left = _Line(line.first, [version for version in line.versions if version in versions])
            before = len(line.versions) - len(left.versions)
            # Where only the oldest go, those that stay keep their numbers, and what each is made of.
            left = left._replace(first=line.first + before if left.versions == line.versions[before:] else 0)
            if left.versions:
                result._lines[channel] = left
            for place in range(len(left.versions) - 1, -1, -1):
                yield
                result._kept[left.versions[place]] = self._moved(left, place, result._kept)
        for version in versions:
            if version in self._kept and version not in result._kept:
                yield
                result._kept[version] = result.adopted(self._kept[version], self)
        yield from result._count()
        return result

    def _count(self) -> Slices[None]:
        """Find the figures out anew."""
        for kept in self._kept.values():
            yield
            self.figures = _sum(self.figures, (_VERSION_SIZE + len(kept[-1]), _length_of(kept) - len(kept[-1])))

    def _moved(self, line: "_Line", place: int, into: Mapping[ChannelVersion, Kept]) -> Kept:
        """Return how to keep a version in a line of some of those in its line here; `into` has what is newer in it."""
        versions = line.versions
        kept = self._kept[versions[place]]
        if place == len(versions) - 1:
            return self.whole(kept)
        far = versions[_further(line.first + place, line.first + len(versions)) - line.first]
        if not isinstance(kept, Shared) or kept.base == far:
            return kept
        following = versions[place + 1]
        if kept.base != following:
            value = self.whole(kept)
            parts = difference(value[1], _whole(into[following], into)[1])
            if parts is None:
                return value
            kept = Shared(value[0], following, parts)
        return _led(kept, far, into)

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
        for channel, (_, line) in self._lines.items():
            if not line or any(version[0] != channel or version not in self._kept for version in line):
                yield f"the line of channel {channel!r} is {line}"
            elif isinstance(self._kept[line[-1]], Shared):
                yield f"the newest of channel {channel!r} is not whole"
        twin = self.copy()
        twin.figures = (0, 0)
        at_once(twin._count())
        if self.figures != twin.figures:
            yield f"the figures of the values are {self.figures}, and follow as {twin.figures}"
        for kept in chain(self._kept.values(), beside):
            seen: list[object] = []
            while isinstance(kept, Shared) and kept.base not in seen:
                seen.append(kept.base)
                kept = self._kept.get(kept.base, kept)
            if isinstance(kept, Shared):
                yield f"what is made of {kept.base} leads to nothing whole, by {seen}"


class _Line(NamedTuple):
    """The versions of one channel in the order in which they came; `first` is the number of the first of them."""

    first: int
    versions: list[ChannelVersion]

    def without(self, version: ChannelVersion) -> "_Line":
        """Return a line without one of them."""
        place = self.versions.index(version)
        return _Line(self.first + (place == 0), self.versions[:place] + self.versions[place + 1 :])


_NO_LINE = _Line(0, [])


class _Growing(NamedTuple):
    """A line, and the versions that come behind it."""

    old: _Line
    coming: list[ChannelVersion]

    def end(self) -> int:
        """Return the number after the last."""
        return self.old.first + len(self.old.versions) + len(self.coming)

    def at(self, number: int) -> ChannelVersion:
        """Return the one of a number."""
        place = number - self.old.first
        old = self.old.versions
        return old[place] if place < len(old) else self.coming[place - len(old)]


def _sum(one: Size, other: Size) -> Size:
    return one[0] + other[0], one[1] + other[1]


def _is_long(value: Blob, least: int) -> bool:
    return len(value[1]) >= least and isinstance(value[1], bytes)  # a serializer may return something else


def _add(
    version: ChannelVersion,
    value: Blob,
    line: _Growing,
    kept: MutableMapping[ChannelVersion, Kept],
    heads: dict[ChannelVersion, Blob],
) -> None:
    """Add a long value at the end of its channel's line; or made of the end of some line, if it is like that.

    Args:
        version: Its version.
        value: The value.
        line: The channel's line.
        kept: What is kept.
        heads: What is last in each line.
    """
    number = line.end()
    former = line.at(number - 1) if number > line.old.first else None
    parts = difference(heads[former][1], value[1]) if former is not None else None
    kept[version] = _shared(value, heads) if parts is None else value
    if isinstance(kept[version], Shared):
        return
    line.coming.append(version)
    heads[version] = value
    if former is None:
        return
    if parts is not None:
        kept[former] = Shared(heads[former][0], version, parts)
        stride = _STRIDE
        while number % stride == 0 and number - stride >= line.old.first:
            far = line.at(number - stride)
            kept[far] = _led(kept[far], version, kept)
            stride *= _STRIDE
    del heads[former]


def _further(number: int, end: int) -> int:
    """Return of which one in a line that ends before `end` one is made of, so that no way to the last is long.

    It is the next; for every eighth the one that is eight further, for every 64th the one that is 64 further, and so
    on, as far as there is one. So each way is of at most 16 steps for every factor of eight in the length.
    """
    stride = 1
    while number % (stride * _STRIDE) == 0 and number + stride * _STRIDE < end:
        stride *= _STRIDE
    return number + stride


def _led(kept: Kept, to: ChannelVersion, others: Mapping[ChannelVersion, Kept]) -> Kept:
    """Return what is shared as made of a version that its way leads to, or of what is whole before that."""
    while isinstance(kept, Shared) and kept.base != to:
        following = others[kept.base]
        if not isinstance(following, Shared):
            break
        kept = Shared(kept.kind, following.base, composed(kept.parts, following.parts))
    if isinstance(kept, Shared) and len(kept.parts) > _length(kept.parts) // 2:
        return _whole(kept, others)
    return kept


def _whole(kept: Kept, others: Mapping[ChannelVersion, Kept]) -> Blob:
    if not isinstance(kept, Shared):
        return kept
    way = [kept.parts]
    source = others[kept.base]
    while isinstance(source, Shared):
        way.append(source.parts)
        source = others[source.base]
    return kept.kind, restored(way, source[1])


def restored(way: Sequence[bytes], source: bytes) -> bytes:
    """Return what differences make of `source`, the last one first."""
    if sum(map(len, way)) > len(source) // 16:
        # They have many parts: to make each of the next takes less time than to make one of all.
        for parts in reversed(way):
            source = rebuilt(parts, source)
        return source
    return rebuilt(reduce(composed, way), source) if way else source


def _shared(value: Blob, heads: Mapping[ChannelVersion, Blob]) -> Kept:
    """Return a value made of one of some others, if it is like it."""
    if not _is_long(value, _LEAST_BESIDE):
        return value
    alike = [one for one in heads.items() if len(value[1]) // 2 <= len(one[1][1]) <= 2 * len(value[1])]
    for version, (_, source) in alike[:_MOST_TRIES]:
        parts = difference(value[1], source)
        if parts is not None:
            return Shared(value[0], version, parts)
    return value


def difference(target: bytes, source: bytes) -> bytes | None:
    """Return how to make `target` of `source`; None if that takes more than half as many bytes as the target has."""
    grown = _grown(target, source)
    if grown is not None:
        return grown
    parts: list[_Part] = []
    done = size = at = beside = 0
    # What is left after that is short: it is looked for only where the source ends.
    end = len(target) - max(min(len(target) // 4, 1024), len(target) // 32)
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
    length = _alike_before(target, len(target), done, source, len(source))
    if length < _COPY:
        length = 0
    parts.append((target[done : len(target) - length], len(source) - length, length))
    packed = _packed(parts)
    return packed if len(packed) <= len(target) // 2 else None


def _grown(target: bytes, source: bytes) -> bytes | None:
    """Return the difference where the source has only grown at its end, but for a few bytes in front: most have."""
    at = target.find(source[_FRONT : _FRONT + _SEED], 0, 2 * _FRONT + _SEED)
    if at < 0 or len(source) < _FRONT + _SEED or not target.startswith(source[_FRONT:], at):
        return None
    end = at + len(source) - _FRONT
    beside = _FRONT
    while beside and at and target[at - 1] == source[beside - 1]:
        at, beside = at - 1, beside - 1
    packed = _packed([(target[:at], beside, len(source) - beside), (target[end:], 0, 0)])
    return packed if len(packed) <= len(target) // 2 else None


def _next_match(target: bytes, at: int, source: bytes, beside: int) -> _Match | None:
    """Return where, not before `at`, the target goes on like some part of the source."""
    best: _Match = (0, 0, 0)
    for far in (_NEAR, max(len(target), len(source))):
        for step in _STEPS:
            for match in _matches(target, at, source, beside, step, far):
                if match[2] >= _CERTAIN:
                    return match
                best = max(best, match, key=itemgetter(2))
    return best if best[2] >= _FIND else None


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
    ends = [*accumulate(len(new) + length for new, _, length in middle)]
    result: list[_Part] = []
    new = b""
    for before, begin, length in _unpacked(outer):
        new += before
        for piece, where, much in _cut(middle, ends, begin, begin + length):
            if piece is not None:
                new += piece
            elif not new and result and result[-1][1] + result[-1][2] == where:
                result[-1] = (result[-1][0], result[-1][1], result[-1][2] + much)
            else:
                result.append((new, where, much))
                new = b""
    return _packed([*result, (new, 0, 0)])


def _cut(parts: Sequence[_Part], ends: Sequence[int], begin: int, end: int) -> Iterator[tuple[bytes | None, int, int]]:
    """Return what a stretch of a target is made of: new bytes, or None with where in the source they are, how many.

    Args:
        parts: What makes the target.
        ends: Where in it each part ends.
        begin: Where the stretch begins.
        end: Where it ends.
    """
    place = bisect_right(ends, begin)
    while begin < end:
        new, where, length = parts[place]
        copied = ends[place] - length  # where in the target the copy begins
        if begin < copied:
            at = copied - len(new)
            yield new[begin - at : end - at], 0, 0
        first, last = max(begin, copied), min(end, ends[place])
        if first < last:
            yield None, where + first - copied, last - first
        begin = ends[place]
        place += 1


def _length_of(kept: Kept) -> int:
    """Return how many bytes a value has."""
    return _length(kept.parts) if isinstance(kept, Shared) else len(kept[1])


def _length(parts: bytes) -> int:
    """Return how many bytes a difference makes."""
    return sum(len(new) + length for new, _, length in _unpacked(parts))


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
    at, end = 0, len(packed)
    while at < end:
        much = packed[at]
        at += 1
        if much > 0x7F:
            much, at = _number(packed, much, at)
        new = packed[at : at + much]
        at += much
        begin = packed[at]
        at += 1
        if begin > 0x7F:
            begin, at = _number(packed, begin, at)
        length = packed[at]
        at += 1
        if length > 0x7F:
            length, at = _number(packed, length, at)
        parts.append((new, begin, length))
    return parts


def _number(packed: bytes, number: int, at: int) -> tuple[int, int]:
    """Return a number that goes on at a place, and where it ends."""
    number &= 0x7F
    shift = 7
    while packed[at] > 0x7F:
        number |= (packed[at] & 0x7F) << shift
        shift += 7
        at += 1
    return number | packed[at] << shift, at + 1
