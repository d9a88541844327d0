"""Values in a file: a channel's next version is kept as how it differs from an earlier one.

In memory the newest version is whole, and the older ones are made of it. In a file that would be the whole state
written at every step; there the oldest is whole, and a new version is one small row. So that no way to the whole one is
long, not each is made of the one before it: of a number n in a line with k zeros at its end, in base 8, it is that
with n - 8**k. So each way is of at most seven steps for every factor of eight in the length of the line, and all rows
together have the new bytes of each version some three times.
"""

from collections.abc import Sequence
from typing import NamedTuple

from async_saver.stores.history import composed, difference

__all__ = ["BESIDE", "LEAST", "Chain", "Link", "grown"]

LEAST = 1024
"""Bytes; what is shorter is not worth a difference."""

BESIDE = 2048
"""Nor what is shorter and no channel's next version, as it may be like nothing."""

_STRIDE = 8
_MOST_TRIES = 2


class Link(NamedTuple):
    """One row on the way from a value to what is whole.

    Attributes:
        id: The row's.
        number: Its place in its line, which begins with 0.
        data: How it differs from the next on the way; of the last one, the value.
    """

    id: int
    number: int
    data: bytes


class Chain(NamedTuple):
    """A value, and the way by which it is made: itself first, what is whole last."""

    value: bytes
    way: tuple[Link, ...]

    def base(self) -> int | None:
        """Return the id of what it is made of; None if it is whole."""
        return self.way[1].id if len(self.way) > 1 else None

    def size(self) -> int:
        """Return how many bytes it takes in memory, nearly."""
        return len(self.value) + sum(len(link.data) + 100 for link in self.way)


def grown(value: bytes, id: int, former: Chain | None, others: Sequence[Chain]) -> Chain:
    """Return how to keep a value: behind the former one of its channel, or made of one of some others, or whole."""
    parts = difference(value, former.value) if former is not None else None
    if former is not None and parts is not None:
        number = former.way[0].number + 1
        stride = 1
        while number % (stride * _STRIDE) == 0:
            stride *= _STRIDE
        place = 0
        while former.way[place].number > number - stride:
            parts = composed(parts, former.way[place].data)
            place += 1
        if len(parts) <= len(value) // 2:
            return Chain(value, (Link(id, number, parts), *former.way[place:]))
    alike = [one for one in others if len(value) // 2 <= len(one.value) <= 2 * len(value)]
    for other in alike[:_MOST_TRIES]:
        parts = difference(value, other.value)
        if parts is not None:
            return Chain(value, (Link(id, 0, parts), *other.way))
    return Chain(value, (Link(id, 0, value),))
