"""Retention: what may be kept, and for how long."""

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from async_saver.errors import InvalidTypeError, InvalidValueError, shown

__all__ = ["EvictionReason", "Retention", "seconds_of"]

EvictionReason: TypeAlias = Literal["ttl", "max_threads", "max_bytes"]
"""The limit for which a conversation went."""

_Ttl: TypeAlias = float | timedelta | None


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How much a saver keeps, and for how long; what goes beyond goes as a part of the calls that write.

    In a file it goes in `asweep` only, so call that from time to time, a minute or an hour.

    Whole conversations go by `ttl`, `max_threads` and `max_bytes`, the least recently used one first. Never one with an
    open session, nor the one that is written to, nor one that is being copied or pruned: if no other is left, the
    write goes through all the same. A run that is under way without a session may lose its conversation; what it
    stores then is refused by a `ThreadEvictedError`, as it would lack what was evicted.

    Attributes:
        ttl: After how many seconds (or what `timedelta`) without use a conversation goes. Or a callable that is given
            a `thread_id` when something of it is first stored, and returns that; None keeps it for ever.
        refresh_on_read: Whether reading is use, too.
        max_threads: How many conversations are kept.
        max_bytes: How many bytes are used for them, with what the store needs beside their own.
        keep_last: How many checkpoints are kept of each conversation and `checkpoint_ns`, the newest. With them stays
            what the value of a `DeltaChannel` is rebuilt from. And as long as one is needed there are more: those from
            which a run is under way, and all while a session is open on the conversation. (Between two prunings there
            may be a 64th more, and with a `DeltaChannel` up to twice as many.)
        on_evict: Called with the `thread_id` and the reason after a conversation has gone, once at most, by the call of
            the saver that let it go or by a later one, never while anything is locked. If it returns an awaitable,
            that is awaited: from sync code on an event loop of its own, in a worker thread. What it raises is logged.
        clock: Returns seconds from any moment on. They must not jump, so the time of day will not do. (In a file it is
            taken in place of the default all the same, as what is noted there outlives the process.)

    Raises:
        InvalidValueError: A limit is not greater than 0.
        InvalidTypeError: A limit is no number, or something that should be callable is not.
    """

    ttl: float | timedelta | Callable[[str], _Ttl] | None = None
    refresh_on_read: bool = True
    max_threads: int | None = None
    max_bytes: int | None = None
    keep_last: int | None = None
    on_evict: Callable[[str, EvictionReason], Awaitable[None] | None] | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not callable(self.ttl):
            _seconds(self.ttl, "ttl")
        for name in ("max_threads", "max_bytes", "keep_last"):
            limit = getattr(self, name)
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, int):
                raise InvalidTypeError(f"{name} is a whole number or None, not of type {type(limit).__name__}")
            if limit < 1:
                raise InvalidValueError(f"{name} is a number greater than 0, or None for no limit, not {shown(limit)}")
        for name in ("on_evict", "clock"):
            if not callable(value := getattr(self, name)) and (value is not None or name == "clock"):
                raise InvalidTypeError(f"{name} is a callable, not of type {type(value).__name__}")

    def lifetime(self, thread_id: str) -> float | None:
        """Return after how many seconds without use a conversation goes; None for never.

        Raises:
            InvalidValueError: The callable `ttl` returned a number that is not greater than 0.
            InvalidTypeError: It returned something else than a number, a `timedelta` or None.
        """
        if callable(self.ttl):
            return _seconds(self.ttl(thread_id), f"what ttl returned for thread_id {shown(thread_id)}")
        return _seconds(self.ttl, "ttl")


def _seconds(ttl: object, name: str) -> float | None:
    if isinstance(ttl, timedelta):
        ttl = ttl.total_seconds()
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise InvalidTypeError(f"{name} is a number of seconds, a timedelta or None, not of type {type(ttl).__name__}")
    if not ttl > 0:
        raise InvalidValueError(f"{name} is a time greater than 0, or None for no limit, not {shown(ttl)}")
    try:
        return float(ttl)
    except OverflowError:
        return math.inf


def seconds_of(now: object) -> float:
    """Return what a clock has returned as a number of seconds.

    Raises:
        InvalidTypeError: It is no number.
        InvalidValueError: It is not finite.
    """
    if isinstance(now, bool) or not isinstance(now, (int, float)):
        raise InvalidTypeError(f"a Retention's clock returns seconds, not a value of type {type(now).__name__}")
    if isinstance(now, float) and not math.isfinite(now):
        raise InvalidValueError(f"a Retention's clock returns seconds, not {now}")
    return float(now)
