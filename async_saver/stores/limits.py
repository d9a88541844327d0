"""Which conversations of a store in memory have to go, and which may not. The store guards it."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextvars import ContextVar
from heapq import heappop, heappush
from math import ceil, floor, frexp, inf, nextafter
from weakref import ReferenceType, WeakSet, WeakValueDictionary, ref

from async_saver.retention import EvictionReason, Retention, seconds_of
from async_saver.stores.bucket import Bucket

__all__ = ["Limits", "Work", "standing", "take_stand"]

_Place = tuple[str, str]
"""`(thread_id, checkpoint_ns)`"""

_STANDS = 8  # so many stands has a context at most


class Use:
    """When a conversation was last used, after how many seconds without use it goes, and when that is looked at."""

    __slots__ = ("due", "lifetime", "when")

    def __init__(self, when: float, lifetime: float) -> None:
        self.when: float = when
        self.lifetime: float = lifetime
        self.due: float = inf


class Work:
    """A call that works on conversations, in several steps; it is under way for as long as it is referred to."""

    __slots__ = ("__weakref__", "thread_ids")

    def __init__(self, thread_ids: Collection[str]) -> None:
        self.thread_ids: Collection[str] = thread_ids


class _Mark:
    """A checkpoint that somebody stands on."""

    __slots__ = ("__weakref__",)


class Stand:
    """Where a run stands: on the checkpoint that it has read, then on those that it stores.

    Attributes:
        place: Where that is.
        of: The limits that know of it.
        mark: The checkpoint; None as long as there is none.
    """

    __slots__ = ("mark", "of", "place")

    def __init__(self, place: _Place) -> None:
        self.place: _Place = place
        self.of: ReferenceType[Limits] | None = None
        self.mark: _Mark | None = None


standing: ContextVar[tuple[Stand, ...]] = ContextVar("async_saver_standing", default=())
"""The last stands of a context. They end with it, and so with the run's task, or as it reads on elsewhere."""


def take_stand(thread_id: str, checkpoint_ns: str) -> None:
    """Have what is read next in this context be where it goes on from."""
    place = (thread_id, checkpoint_ns)
    others = [stand for stand in standing.get() if stand.place != place]
    standing.set((Stand(place), *others[: _STANDS - 1]))


class Limits:
    """What a store needs to know to keep to a `Retention`.

    Attributes:
        retention: The limits.
        keep_last, max_threads, max_bytes: Its own; 0, or what is never reached, for None.
        slack: How many more than `keep_last` there may be before the oldest go: it takes time to look at all of many.
        drops_at: Of how many the oldest goes in the step that stores one more; -1 for none.
        lifetime: After how many seconds without use conversations go; None if that is asked for each.
        by_use: Whether any of them is on whole conversations, so that uses are noted.
        evictions: How many conversations went, by reason.
        untold: What `Retention.on_evict` has not been told.
        pruned: How many checkpoints went by `keep_last`.
        overruns: How many writes left a limit exceeded, as nothing could be taken.
        overfull: Conversations that may have more checkpoints than `keep_last`.
        works: Calls that are under way.
        freed: What is to be taken apart outside of the guard.
    """

    def __init__(self, retention: Retention) -> None:
        self.retention: Retention = retention
        self.by_use: bool = any(one is not None for one in (retention.ttl, retention.max_threads, retention.max_bytes))
        self._clock = retention.clock
        self.keep_last: int = retention.keep_last or 0
        self.slack: int = self.keep_last // 64
        self.drops_at: int = -1 if self.slack else self.keep_last or -1
        self.max_threads: float = retention.max_threads or inf
        self.max_bytes: float = retention.max_bytes or inf
        self.lifetime: float | None = None if callable(retention.ttl) else retention.lifetime("") or inf
        self.evictions: dict[str, int] = {"ttl": 0, "max_threads": 0, "max_bytes": 0}
        self.untold: OrderedDict[tuple[str, int], tuple[str, EvictionReason]] = OrderedDict()
        self.pruned: int = 0
        self.overruns: int = 0
        self.overfull: dict[str, None] = {}
        self.works: WeakSet[Work] = WeakSet()
        self.freed: list[tuple[Bucket, Sequence[Bucket]]] = []
        # The least recently used first.
        self._uses: OrderedDict[str, Use] = OrderedDict()
        # By when they are to be looked at, as they may have gone unused for too long. Each is there once; that it was
        # used since is seen then. There are some hundred such moments in a lifetime, so that they do not grow with it.
        self._due: dict[float, OrderedDict[str, None]] = {}
        self._moments: list[float] = []  # a heap of what is or was in `_due`, each once
        self._noted: set[float] = set()  # the same
        self._widest = 0.0  # how far apart these moments are at most
        self._stood: WeakValueDictionary[tuple[_Place, str], _Mark] = WeakValueDictionary()

    # Asked before the guard is entered: the user's own callables may raise.

    def now(self) -> float:
        """Return the time.

        Raises:
            InvalidTypeError: The clock returned no number.
            InvalidValueError: It returned one that is not finite.
        """
        now = self._clock()
        return now if type(now) is float and now - now == 0 else seconds_of(now)

    def lifetime_of(self, thread_id: str) -> float:
        """Return after how many seconds without use a conversation goes; asked for it if it is a new one."""
        if self.lifetime is not None:
            return self.lifetime
        use = self._uses.get(thread_id)
        return self.retention.lifetime(thread_id) or inf if use is None else use.lifetime

    # Uses. What changes them may run twice, as an interrupt may cut it off.

    def use(self, thread_id: str, now: float, lifetime: float) -> None:
        """Note that a conversation is written to; `lifetime` is heeded if it is a new one."""
        if (use := self._uses.get(thread_id)) is None:
            use = Use(now, lifetime)
            self._note(thread_id, use)  # first: what is in `_uses` has been noted
            self._uses[thread_id] = use
        use.when = now
        self._uses.move_to_end(thread_id)

    def touch(self, thread_id: str, now: float) -> None:
        """Note that a conversation is used, if it is known."""
        use = self._uses.get(thread_id)
        if use is not None:
            use.when = now
            self._uses.move_to_end(thread_id)

    def forget(self, thread_id: str) -> None:
        """Note that a conversation is there no longer."""
        self.overfull.pop(thread_id, None)
        use = self._uses.get(thread_id)
        if use is not None:
            self._unnote(thread_id, use.due)
            self._uses.pop(thread_id, None)

    def _note(self, thread_id: str, use: Use, after: float = -inf) -> None:
        if use.lifetime < inf:
            width = 2.0 ** max(frexp(use.lifetime)[1] - 10, -10)
            self._widest = max(self._widest, width)
            due = ceil((use.when + use.lifetime) / width) * width
            if due <= after:
                due = max((floor(after / width) + 1) * width, nextafter(after, inf))
            if due not in self._noted:
                heappush(self._moments, due)
                self._noted.add(due)
            self._due.setdefault(due, OrderedDict())[thread_id] = None
            use.due = due

    def _unnote(self, thread_id: str, moment: float) -> None:
        due = self._due.get(moment)
        if due is not None:
            due.pop(thread_id, None)
            if not due:
                del self._due[moment]

    def is_over(self, thread_id: str, now: float) -> bool:
        """Tell whether a conversation has gone unused for too long."""
        return (use := self._uses.get(thread_id)) is not None and now - use.when > use.lifetime

    def are_due(self, now: float) -> bool:
        """Tell whether a moment has come at which conversations are to be looked at."""
        return bool(self._moments) and self._moments[0] <= now

    def next_due(self, now: float) -> str | None:
        """Return a conversation that is to be looked at now; None if there is none."""
        while self._moments and self._moments[0] <= now:
            due = self._due.get(self._moments[0])
            if due:
                return next(iter(due))
            self._due.pop(self._moments[0], None)
            self._noted.discard(self._moments[0])
            heappop(self._moments)
        return None

    def soon_due(self, now: float) -> list[str]:
        """Return the conversations that may have gone unused for too long, and are to be looked at only later."""
        soon = [moment for moment in self._moments if now < moment <= now + self._widest]
        return [thread_id for moment in soon for thread_id in self._due.get(moment, ())]

    def look_again(self, thread_id: str, now: float, in_use: bool) -> None:
        """Note that a conversation was looked at and stays: it was used since, or is in use now."""
        found = self._moments[0] if self._moments else inf
        use = self._uses.get(thread_id)
        if use is not None:
            if in_use:
                use.when = now
                self._uses.move_to_end(thread_id)
            self._note(thread_id, use, now)
        if use is None or use.due != found:
            self._unnote(thread_id, found)

    def least_used(self) -> str | None:
        """Return the least recently used conversation."""
        return next(iter(self._uses), None)

    def begin(self, thread_ids: Iterable[str]) -> Work:
        """Return what shows, as long as it is referred to, that a call is under way on conversations."""
        work = Work(frozenset(thread_ids))
        self.works.add(work)
        return work

    def is_worked_on(self, thread_id: str) -> bool:
        """Tell whether a call is under way on a conversation."""
        return bool(self.works) and any(thread_id in work.thread_ids for work in self.works)

    def evicted(self, thread_id: str, reason: EvictionReason, number: int) -> None:
        """Note that a conversation has gone, as the one of a number by this reason."""
        self.forget(thread_id)
        self.evictions[reason] = number
        if self.retention.on_evict is not None:
            self.untold[reason, number] = (thread_id, reason)

    def take_freed(self) -> "list[tuple[Bucket, Sequence[Bucket]]]":
        """Return, once, what is to be taken apart."""
        freed, self.freed = self.freed, []
        return freed

    # Stands.

    def stand(self, place: _Place, checkpoint_id: str | None) -> None:
        """Note that the run in whose context this is called stands on a checkpoint that it has read, or on none yet."""
        for stand in standing.get():
            if stand.place == place:
                stand.of = ref(self)
                stand.mark = None if checkpoint_id is None else self._marked(place, checkpoint_id)

    def step(self, stands: Sequence[Stand], place: _Place, checkpoint_id: str) -> None:
        """Note that the run of some stands now stands on a checkpoint that it has stored."""
        for stand in stands:
            if stand.place == place and stand.of is not None and stand.of() is self:
                stand.mark = self._marked(place, checkpoint_id)

    def _marked(self, place: _Place, checkpoint_id: str) -> _Mark:
        mark = self._stood.get((place, checkpoint_id))
        if mark is None:
            mark = self._stood[place, checkpoint_id] = _Mark()
        return mark

    def has_stands(self) -> bool:
        """Tell whether any run stands anywhere."""
        return bool(self._stood)

    def is_stood_on(self, place: _Place, checkpoint_id: str) -> bool:
        """Tell whether a run stands on a checkpoint."""
        return (place, checkpoint_id) in self._stood

    def faults(self, thread_ids: Collection[str]) -> Iterator[str]:
        """Say what here is not as it follows from the conversations that there are."""
        if self.by_use and {*self._uses} != {*thread_ids}:
            yield f"the conversations in use are {[*self._uses]}, and there are {[*thread_ids]}"
        for thread_id, use in self._uses.items():
            if use.lifetime < inf and thread_id not in self._due.get(use.due, ()):
                yield f"thread_id {thread_id!r} is not noted where its time ends"
        if not {*self._due} <= {*self._moments} or not self._noted <= {*self._moments}:
            yield f"the moments are {sorted(self._due)}, noted {sorted(self._noted)}, and looked at {self._moments}"
