"""Figures of savers for OpenTelemetry; needs the extra `otel`."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

from async_saver.errors import InvalidTypeError, shown
from async_saver.records import Stats
from async_saver.saver import AsyncSaver

try:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter, get_meter_provider
    from opentelemetry.util.types import AttributeValue
except ImportError as _error:
    raise ImportError(
        "async_saver.otel needs the package opentelemetry-api; install the extra: pip install 'async-saver[otel]'",
        name=_error.name,
    ) from _error

__all__ = ["observe"]

_log = logging.getLogger(__name__)

_Attributes: TypeAlias = Mapping[str, AttributeValue]

_FRESH = 1.0  # seconds; a collection that takes longer asks again


class _Instrument(NamedTuple):
    """One instrument, and the field of `Stats` that it shows."""

    name: str
    field: str
    kind: Literal["gauge", "counter"]
    unit: str
    description: str


_INSTRUMENTS = [
    _Instrument("conversations", "conversations", "gauge", "{conversation}", "Conversations that are held."),
    _Instrument("checkpoints", "checkpoints", "gauge", "{checkpoint}", "Checkpoints that can be listed."),
    _Instrument("writes", "writes", "gauge", "{write}", "Pending writes that are held."),
    _Instrument("bytes", "bytes", "gauge", "By", "What all that takes."),
    _Instrument("bytes_saved", "bytes_saved", "gauge", "By", "What it would take more if nothing were shared."),
    _Instrument("sessions.open", "open_sessions", "gauge", "{session}", "Conversations that sessions hold."),
    _Instrument("sessions.waiting", "waiting_sessions", "gauge", "{session}", "Sessions that wait for a conversation."),
    _Instrument("evictions", "evictions", "counter", "{conversation}", "Conversations that went by a limit."),
    _Instrument("pruned", "pruned", "counter", "{checkpoint}", "Checkpoints that went by keep_last."),
    _Instrument("overruns", "overruns", "counter", "{call}", "Calls that left a limit exceeded."),
    _Instrument("lock_waits", "lock_waits", "counter", "{call}", "Calls that waited for another one."),
    _Instrument("conflicts", "conflicts", "counter", "{checkpoint}", "Checkpoints that were in conflict."),
    _Instrument("bridge_calls", "bridge_calls", "counter", "{call}", "Calls that crossed from sync code."),
]

_OF_THE_PROCESS = "bridge_calls"  # the one figure that is not a saver's own


def observe(
    saver: AsyncSaver, *, meter_provider: MeterProvider | None = None, attributes: _Attributes | None = None
) -> None:
    """Have the figures of a saver collected from now on: those of `Stats`, as `async_saver.conversations` and so on.

    They are read whenever a metric reader collects, once for all of them, in the worker thread that collects. If that
    fails, the error is logged and nothing is shown of this saver for that time; what the store does not count is not
    shown either. Nothing shown tells of a single conversation.

    The saver is not kept alive by this: once it and its clones have gone, so have its figures. Savers of one store have
    most figures in common, so observe one of them.

    Args:
        saver: The saver.
        meter_provider: Where the instruments are made; OpenTelemetry's global one if none is given, also if that is
            set later.
        attributes: What tells this saver's figures from those of others, such as `{"saver": "agents"}`. Of two savers
            with the same attributes the one that was observed last is shown. `async_saver.evictions` has one more,
            `reason`; `async_saver.bridge_calls` has none, as it is one number for the whole process.

    Raises:
        InvalidTypeError: The saver is no `AsyncSaver`, or `attributes` are no mapping.

    Example:
        ```python
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

        from async_saver import AsyncSaver
        from async_saver.otel import observe

        reader = PeriodicExportingMetricReader(ConsoleMetricExporter())
        metrics.set_meter_provider(MeterProvider([reader]))

        saver = AsyncSaver()
        observe(saver, attributes={"saver": "agents"})
        ```
    """
    if not isinstance(saver, AsyncSaver):
        raise InvalidTypeError(f"what is observed is an AsyncSaver, not of type {type(saver).__name__}")
    if attributes is not None and not isinstance(attributes, Mapping):
        raise InvalidTypeError(f"attributes are a mapping or None, not of type {type(attributes).__name__}")
    _observed_by(meter_provider).add(_Source(saver, dict(attributes or {})))


class _Source:
    """A saver as long as it, or a clone of it, is there; what it counts is what they have in common."""

    def __init__(self, saver: AsyncSaver, attributes: _Attributes) -> None:
        self.attributes: _Attributes = attributes
        self.key: str = repr(sorted(attributes.items()))
        # A graph may use a clone of the saver, with an allowlist of its own, and the saver itself be dropped.
        self._shared = ref(saver._shared)
        self._asked: tuple[float, set[str], Stats | None] = (0.0, {one.name for one in _INSTRUMENTS}, None)

    def shared(self) -> object:
        """Return what the saver and its clones have in common, if any is left."""
        return self._shared()

    def stats(self, name: str) -> Stats | None:
        """Return the figures for one instrument: those that another one asked for in the same collection, or new ones.

        None if there are none. That a collection is another one is seen by an instrument's asking again.
        """
        asked, names, stats = self._asked
        if name in names or monotonic() - asked > _FRESH:
            names, stats = set(), self._ask()
            self._asked = (monotonic(), names, stats)
        names.add(name)
        return stats

    def _ask(self) -> Stats | None:
        shared = self._shared()
        if shared is None:
            return None
        try:
            return shared.stats_from_sync_code()
        except Exception:
            _log.exception("the figures of the saver with the attributes %s could not be read", shown(self.attributes))
            return None


class _Observed:
    """The savers that are observed by one meter provider, and the instruments for all of them.

    A provider takes instruments of one name once, and later ones would not be called back.
    """

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._made = False

    def make(self, meter_of: Callable[[str, str], Meter]) -> None:
        """Make the instruments, if they are not there."""
        if self._made:
            return
        meter = meter_of("async_saver", _version())
        for one in _INSTRUMENTS:
            create = meter.create_observable_gauge if one.kind == "gauge" else meter.create_observable_counter
            create(f"async_saver.{one.name}", [self._callback(one)], one.unit, one.description)
        self._made = True

    def add(self, source: _Source) -> None:
        """Show one more."""
        former = self._sources.get(source.key)
        if former is not None and former.shared() not in (None, source.shared()):
            _log.warning(
                "a saver is observed with the attributes %s, as another one is, which is not shown any more; give each "
                "attributes of its own",
                shown(source.attributes),
            )
        left = {key: one for key, one in self._sources.items() if one.shared() is not None}
        self._sources = {**left, source.key: source}  # a collection may be under way

    def _callback(self, instrument: _Instrument) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            found = [(one, stats) for one in self._sources.values() if (stats := one.stats(instrument.name))]
            if instrument.field == _OF_THE_PROCESS:
                return [Observation(max(stats.bridge_calls for _, stats in found))] if found else []
            return [seen for one, stats in found for seen in _observations(one, getattr(stats, instrument.field))]

        return callback


def _observations(source: _Source, value: int | Mapping[str, int] | None) -> Iterable[Observation]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [Observation(number, {**source.attributes, "reason": reason}) for reason, number in value.items()]
    return [Observation(value, source.attributes)]


_by_global_provider = _Observed()
_by_provider: "WeakKeyDictionary[MeterProvider, _Observed]" = WeakKeyDictionary()
_making = threading.Lock()


def _observed_by(meter_provider: MeterProvider | None) -> _Observed:
    with _making:
        # The global provider is a stand-in until it is set, and hands on then what it was asked for.
        if meter_provider is None or meter_provider is get_meter_provider():
            _by_global_provider.make(get_meter)
            return _by_global_provider
        observed = _by_provider.setdefault(meter_provider, _Observed())
        observed.make(meter_provider.get_meter)
        return observed


def _version() -> str:
    try:
        return version("async-saver")
    except PackageNotFoundError:  # not installed, but found on the path
        return ""
