"""The figures arrive at OpenTelemetry's own SDK: each with its value, unit and kind, and none with a thread_id."""

import copy
import gc
import importlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import anyio
import pytest
from anyio import Event, create_task_group, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint as yield_to_loop

from async_saver import AsyncSaver, AsyncSaverError, InvalidTypeError, MemoryStore, Retention, Stats, Store
from async_saver.records import StoreStats
from tests.build import checkpoint, config, put

pytest.importorskip("opentelemetry.sdk.metrics")

from opentelemetry.metrics import CallbackOptions
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View

from async_saver import otel
from async_saver.otel import observe


class Seen(NamedTuple):
    """One metric as it was collected: its values by their attributes."""

    unit: str
    kind: str
    values: dict[tuple[tuple[str, Any], ...], int]


class Collector:
    """A meter provider with a reader that collects when it is asked."""

    def __init__(self, **more: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False, **more)

    def collect(self) -> dict[str, Seen]:
        """Collect once."""
        return _seen(self.reader)

    def values(self, name: str) -> dict[tuple[tuple[str, Any], ...], int]:
        """Collect once, and return one metric's values."""
        found = self.collect().get(f"async_saver.{name}")
        return found.values if found is not None else {}


def _seen(reader: InMemoryMetricReader) -> dict[str, Seen]:
    data = reader.get_metrics_data()
    found = {}
    for metric in [one for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for one in s.metrics]:
        monotonic = getattr(metric.data, "is_monotonic", None)
        kind = {None: "gauge", True: "counter", False: "up and down"}[monotonic]
        values: dict[Any, Any] = {tuple((one.attributes or {}).items()): one.value for one in metric.data.data_points}
        assert metric.name not in found
        assert len(values) == len(metric.data.data_points)
        assert metric.description
        if values:  # some versions show instruments that nothing was observed with
            found[metric.name] = Seen(metric.unit or "", kind, values)
    return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that is shut down after the test."""
    made = Collector()
    yield made
    made.provider.shutdown()


class Waits(MemoryStore):
    """Stores in two steps, so that another call on the conversation has to wait."""

    async def put(self, *args: Any) -> bool:
        await yield_to_loop()
        return await super().put(*args)


async def _tell_a_story(saver: AsyncSaver, ticks: list[float]) -> None:
    """Have something happen that each figure counts; `ticks` is the clock of its retention."""
    for number in range(2):
        await put(saver, "1", {"x": number}, thread_id=f"secret-old-{number}")
    ticks[0] += 100  # past their ttl
    await put(saver, "1", {"x": "much " * 10_000}, thread_id="secret-large")
    await put(saver, "1", {"x": "much " * 10_000}, thread_id="secret-larger")  # max_bytes: the large one goes
    for number in range(5):  # max_threads: so do the larger one and the first of these
        await put(saver, "1", {"x": 0}, thread_id=f"secret-{number}")
    async with saver.session("secret-4"):  # max_bytes: the other three go, and it is still too much
        await put(saver, "2", {"x": "much " * 20_000}, thread_id="secret-4", parent="1")
    text = [f"line {number} of a long text " * 4 for number in range(40)]
    for number in range(4):  # max_bytes: so does that one; and keep_last
        await put(saver, f"{number}", {"x": text[: 37 + number]}, thread_id="secret-long", parent=f"{number - 1}")
    await saver.aput_writes(config("secret-long", "3"), [("x", 1), ("y", 2)], "task")
    of_a_run = config("secret-long", "2") | {"metadata": {"thread_id": "secret-long"}}
    last = checkpoint("9", {"x": text}, "9")
    await saver.aput(of_a_run, last, {"source": "loop"}, {"x": "9"})  # in conflict with the fourth
    async with create_task_group() as tasks:
        for number in range(3):
            busy = partial(put, saver, f"{number}", {"x": 1}, thread_id="secret-busy")
            tasks.start_soon(busy)  # they wait for each other


STORY = Stats(
    conversations=2,
    checkpoints=4,
    writes=2,
    bytes=0,  # and the next: more than this
    bytes_saved=0,
    evictions={"ttl": 2, "max_threads": 2, "max_bytes": 5},
    pruned=4,
    overruns=1,
    open_sessions=2,
    waiting_sessions=1,
    lock_waits=2,
    conflicts=1,
    bridge_calls=0,
)

WANTED = {
    "conversations": ("conversations", "{conversation}", "gauge"),
    "checkpoints": ("checkpoints", "{checkpoint}", "gauge"),
    "writes": ("writes", "{write}", "gauge"),
    "bytes": ("bytes", "By", "gauge"),
    "bytes_saved": ("bytes_saved", "By", "gauge"),
    "open_sessions": ("sessions.open", "{session}", "gauge"),
    "waiting_sessions": ("sessions.waiting", "{session}", "gauge"),
    "evictions": ("evictions", "{conversation}", "counter"),
    "pruned": ("pruned", "{checkpoint}", "counter"),
    "overruns": ("overruns", "{call}", "counter"),
    "lock_waits": ("lock_waits", "{call}", "counter"),
    "conflicts": ("conflicts", "{checkpoint}", "counter"),
    "bridge_calls": ("bridge_calls", "{call}", "counter"),
}


@pytest.mark.anyio
async def test_every_figure_arrives_after_a_story(collector: Collector) -> None:
    """With its value, unit and kind; and nothing that is shown has a thread_id in it."""
    ticks = [0.0]
    limits = Retention(ttl=60, max_threads=4, max_bytes=90_000, keep_last=2, clock=lambda: ticks[0])
    saver = AsyncSaver(store=Waits(), retention=limits, on_conflict="warn")
    observe(saver, meter_provider=collector.provider, attributes={"saver": "a"})
    await _tell_a_story(saver, ticks)
    over = Event()
    async with create_task_group() as tasks:
        for thread_id in ("secret-long", "secret-new", "secret-long"):
            tasks.start_soon(_hold, saver, thread_id, over)
        await wait_all_tasks_blocked()
        seen = collector.collect()  # in a coroutine, as a reader may
        stats = await saver.astats()
        over.set()
    assert stats._replace(bytes=0, bytes_saved=0, bridge_calls=0) == STORY
    assert stats.bytes > 0
    assert stats.bytes_saved > 0
    assert seen.keys() == {f"async_saver.{name}" for name, _, _ in WANTED.values()}
    assert WANTED.keys() == {*Stats._fields}
    for field, (name, unit, kind) in WANTED.items():
        values: Any = {(("saver", "a"),): getattr(stats, field)}
        if field == "evictions":
            values = {(("saver", "a"), ("reason", reason)): number for reason, number in stats.evictions.items()}
        elif field == "bridge_calls":
            values = {(): stats.bridge_calls}  # of the process
        assert seen[f"async_saver.{name}"] == Seen(unit, kind, values)
    data = collector.reader.get_metrics_data()
    assert data is not None
    assert "conversations" in data.to_json()
    assert "secret" not in data.to_json()


async def _hold(saver: AsyncSaver, thread_id: str, over: Event) -> None:
    async with saver.session(thread_id):
        await over.wait()


class Counts(MemoryStore):
    """Counts how often it is asked for figures, and raises what it is told to."""

    asked = 0
    raises: BaseException | None = None

    async def stats(self) -> StoreStats:
        self.asked += 1
        if self.raises is not None:
            raise self.raises
        return await super().stats()


def _put(saver: AsyncSaver, thread_id: str) -> None:
    anyio.run(lambda: put(saver, "1", {"x": 1}, thread_id=thread_id))


def test_a_collection_asks_once_and_shows_what_is_then(collector: Collector) -> None:
    """Not for each figure; and never what the collection before was told."""
    store = Counts()
    saver = AsyncSaver(store=store)
    observe(saver, meter_provider=collector.provider)
    for number in range(3):
        _put(saver, f"{number}")
        seen = collector.collect()
        assert seen["async_saver.conversations"].values == {(): number + 1}
        assert seen["async_saver.checkpoints"].values == {(): number + 1}
        assert store.asked == number + 1


def test_two_readers_and_views_ask_anew_each() -> None:
    """Whatever is left out, each collection shows what is then."""
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    views = [View(instrument_name="async_saver.conversations", aggregation=DropAggregation())]
    provider = MeterProvider(readers, views=views, shutdown_on_exit=False)
    store = Counts()
    saver = AsyncSaver(store=store)
    observe(saver, meter_provider=provider)
    for number in range(3):
        for turn, reader in enumerate(readers):
            _put(saver, f"{number} {turn}")
            assert _seen(reader)["async_saver.checkpoints"].values == {(): number * 2 + turn + 1}
    assert store.asked == 6
    provider.shutdown()


def test_a_collection_that_was_cut_off_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A while later an instrument asks anew, also if it has not asked since the others did."""
    saver = AsyncSaver()
    source = otel._Source(saver, {})
    now = [100.0]
    monkeypatch.setattr(otel, "monotonic", lambda: now[0])
    assert [source.stats(name).conversations for name in ("conversations", "bytes")] == [0, 0]
    _put(saver, "1")
    assert source.stats("writes").conversations == 0
    now[0] += 2
    assert source.stats("pruned").conversations == 1


def test_what_is_not_counted_is_not_shown(collector: Collector) -> None:
    """A store may count its conversations, and nothing else; without limits nothing is evicted."""

    class Plain(MemoryStore):
        stats = Store.stats

    saver = AsyncSaver(store=Plain())
    observe(saver, meter_provider=collector.provider)
    left = {"checkpoints", "writes", "bytes", "bytes_saved", "evictions"}
    assert collector.collect().keys() == {f"async_saver.{name}" for name, _, _ in WANTED.values() if name not in left}


@pytest.mark.parametrize("kept", ["nothing", "a clone", "a copy"])
def test_a_saver_that_is_dropped_can_go(collector: Collector, kept: str, caplog: pytest.LogCaptureFixture) -> None:
    """With all its clones; as long as one is left, it is what is observed. A deep copy is another saver."""
    left = {"nothing": None, "a clone": copy.copy, "a copy": copy.deepcopy}[kept]
    saver: Any = AsyncSaver()
    observe(saver, meter_provider=collector.provider)
    assert collector.values("conversations") == {(): 0}
    clone = left and left(saver)
    shared = otel._by_provider[collector.provider]._sources["[]"]._shared
    del saver
    gc.collect()
    if kept == "a clone":
        _put(clone, "1")
        assert collector.values("conversations") == {(): 1}
        del clone
        gc.collect()
    assert shared() is None
    assert collector.collect() == {}
    observe(AsyncSaver(), meter_provider=collector.provider)
    observe(AsyncSaver(), meter_provider=collector.provider, attributes={"saver": "other"})
    assert len(otel._by_provider[collector.provider]._sources) == 1  # the one before has gone, too
    assert not caplog.records


def test_a_provider_that_is_dropped_can_go() -> None:
    """Nothing is kept of it."""
    gc.collect()
    before = len(otel._by_provider)
    collector = Collector()
    observe(AsyncSaver(), meter_provider=collector.provider)
    assert len(otel._by_provider) == before + 1
    collector.provider.shutdown()
    del collector
    gc.collect()
    assert len(otel._by_provider) == before


def test_a_store_that_raises_is_logged_once_and_not_shown(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are, and it is again once it has been mended."""
    store, other = Counts(), AsyncSaver()
    saver = AsyncSaver(store=store)
    observe(saver, meter_provider=collector.provider, attributes={"saver": "broken"})
    observe(other, meter_provider=collector.provider, attributes={"saver": "other"})
    for error in (AsyncSaverError("the store is away"), OSError("likewise"), KeyError()):
        store.raises = error
        caplog.clear()
        seen = collector.collect()
        assert {key for one in seen.values() for key in one.values} == {(("saver", "other"),), ()}
        assert len(seen) == len(WANTED) - 1  # no evictions, as there is no retention
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("async_saver.otel", logging.ERROR)
        assert "broken" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is error
    store.raises, store.asked = None, 0
    assert collector.values("conversations") == {(("saver", "broken"),): 0, (("saver", "other"),): 0}
    assert store.asked == 1


def test_an_interrupt_is_nobodys_error(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on to whoever collects."""
    store = Counts()
    saver = AsyncSaver(store=store)
    observe(saver, meter_provider=collector.provider)
    store.raises = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        collector.collect()
    assert not caplog.records


def test_savers_are_told_apart_by_attributes(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """Of two with the same, the last one is shown, and a warning says so; observing one again changes nothing."""
    savers = {name: AsyncSaver(retention=Retention(max_threads=number)) for number, name in enumerate("abc", start=1)}
    for name, saver in savers.items():
        for _ in range(2):
            attributes = {"saver": name, "zone": 1}
            observe(saver, meter_provider=collector.provider, attributes=attributes)
            attributes["saver"] = "changed afterwards"
        for number in range(5):
            _put(saver, f"{number}")
    assert collector.values("conversations") == {(("saver", name), ("zone", 1)): n for n, name in enumerate("abc", 1)}
    assert collector.values("evictions") == {
        (("saver", name), ("zone", 1), ("reason", reason)): 5 - number if reason == "max_threads" else 0
        for number, name in enumerate("abc", start=1)
        for reason in ("ttl", "max_threads", "max_bytes")
    }
    assert len(collector.values("bridge_calls")) == 1
    assert not caplog.records
    last = AsyncSaver()
    observe(last, meter_provider=collector.provider, attributes={"zone": 1, "saver": "a"})
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("async_saver.otel", logging.WARNING)
    assert sorted(collector.values("conversations").values()) == [0, 2, 3]


def test_bad_arguments_are_refused(collector: Collector) -> None:
    """Before anything is made."""
    for saver, attributes in ((MemoryStore(), {}), (None, {}), (AsyncSaver(), "a"), (AsyncSaver(), [("a", 1)])):
        with pytest.raises(InvalidTypeError):
            observe(saver, meter_provider=collector.provider, attributes=attributes)  # type: ignore[arg-type]
    assert collector.provider not in otel._by_provider


@pytest.mark.anyio
async def test_collecting_goes_on_while_a_loop_works(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """In a worker thread and on the loop itself at once: no error, and counters that only grow."""
    saver = AsyncSaver(retention=Retention(max_threads=10))
    observe(saver, meter_provider=collector.provider, attributes={"saver": "a"})
    over = threading.Event()
    counts: list[int] = []

    def scrape() -> None:
        while not over.is_set():
            seen = collector.collect()
            counts.append(sum(seen["async_saver.evictions"].values.values()))
            assert 0 <= seen["async_saver.conversations"].values[(("saver", "a"),)] <= 10

    async def work(name: int) -> None:
        for number in range(40):
            await put(saver, "1", {"x": number}, thread_id=f"{name} {number}")
            if number % 10 == 0:
                collector.collect()
                await anyio.sleep(0.001)

    async with create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, scrape)
        async with create_task_group() as workers:
            for name in range(5):
                workers.start_soon(work, name)
        over.set()
    assert counts == sorted(counts)
    assert sum(collector.values("evictions").values()) == 5 * 40 - 10
    assert not caplog.records


def test_a_saver_may_be_observed_in_the_midst_of_a_collection(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """It is shown from the next one on, at the latest."""
    others: list[AsyncSaver] = []

    class Observes(MemoryStore):
        async def stats(self) -> StoreStats:
            others.append(AsyncSaver())
            observe(others[-1], meter_provider=collector.provider, attributes={"saver": len(others)})
            return await super().stats()

    saver = AsyncSaver(store=Observes())
    observe(saver, meter_provider=collector.provider)
    collector.collect()
    assert collector.values("conversations").keys() >= {(), (("saver", 1),)}
    assert not caplog.records


_GLOBAL = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="logged: %(message)s")
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from async_saver import AsyncSaver
from async_saver.otel import observe

before, then, after, explicit = (AsyncSaver() for _ in range(4))
observe(before, attributes={"saver": "before"})
observe(then, attributes={"saver": "then"}, meter_provider=metrics.get_meter_provider())
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
observe(after, attributes={"saver": "after"})
observe(explicit, attributes={"saver": "explicit"}, meter_provider=metrics.get_meter_provider())
data = reader.get_metrics_data()
(found,) = [one for r in data.resource_metrics for s in r.scope_metrics for one in s.metrics if one.unit == "{write}"]
print(*[point.attributes["saver"] for point in found.data.data_points])
"""


def test_the_global_provider_may_be_set_later() -> None:
    """What was observed before is shown by it, as is what is observed afterwards."""
    ran = subprocess.run([sys.executable, "-c", _GLOBAL], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("before then after explicit\n", "", 0)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.metrics"])
def test_without_the_extra_an_error_names_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """At the import."""
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "async_saver.otel")
    with pytest.raises(ImportError, match=r"pip install 'async-saver\[otel\]'"):
        importlib.import_module("async_saver.otel")


def test_a_callback_returns_what_can_be_read_twice(collector: Collector) -> None:
    """Other SDKs than this one may do so."""
    saver = AsyncSaver()
    observe(saver, meter_provider=collector.provider)
    observed = otel._by_provider[collector.provider]
    for instrument in otel._INSTRUMENTS:
        found = observed._callback(instrument)(CallbackOptions())
        assert [*found] == [*found]
