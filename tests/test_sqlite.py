"""`SQLiteStore`: what it does beside what every store does, and how values are kept in a file."""

import gc
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_saver import AsyncSaver, InvalidTypeError, InvalidValueError, Retention, StorageError
from async_saver.records import CheckpointRecord, Listing, WriteRecord
from async_saver.stores import sqlite_file
from async_saver.stores.chains import Chain, grown
from async_saver.stores.history import restored
from async_saver.stores.sqlite import SQLiteStore
from async_saver.stores.sqlite_reads import version_of, version_text
from tests.build import checkpoint, config

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    """A store on a new file; what must hold in it is looked at in the end."""
    store = SQLiteStore(tmp_path / "agents.db")
    yield store
    store.check()
    await store.close()


def record(checkpoint_id: str, *versions: tuple[str, Any], parent: str | None = None, run: str | None = None) -> Any:
    """A record that names versions."""
    return CheckpointRecord(checkpoint_id, parent, ("msgpack", b"c"), ("msgpack", b"\x80"), versions, run, ())


# Filters.

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_odd = ["'", '"', "a.b", "[0]", "$", "$.a", "a'); DROP TABLE leases; --", "\0", "%", "é"]
_keys = st.one_of(_text, st.sampled_from(_odd))
_numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False))
_values = st.one_of(_keys, _numbers, st.none(), st.lists(st.integers(0, 9), max_size=2))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    listed=st.lists(st.dictionaries(_keys, _values, max_size=3), min_size=1, max_size=5),
    asked=st.dictionaries(_keys, _values, min_size=1, max_size=2),
    number=st.integers(0, 4),
)
async def test_filters_find_what_they_find_in_memory(listed: Any, asked: Any, number: int) -> None:
    """Whatever is in keys and values, which are parameters, never SQL."""
    asked = {**asked, **(dict([*listed[number % len(listed)].items()][:1]) if number else {})}
    found = []
    for saver in (AsyncSaver(), AsyncSaver(store=SQLiteStore())):
        async with saver:
            for place, metadata in enumerate(listed):
                await saver.aput(config(), checkpoint(f"{place}", {}), metadata, {})
            found.append([one.config async for one in saver.alist(config(), filter=asked)])
    assert found[0] == found[1]


async def test_filters_are_looked_at_by_sqlite(store: SQLiteStore) -> None:
    """What does not match is not read at all."""
    saver = AsyncSaver(store=store)
    for number in range(20):
        await saver.aput(config(), checkpoint(f"{number:02}", {}), {"step": number, "mine": [number]}, {})
    listed = [one async for one in store.list(Listing("t", filter={"step": 7}))]
    assert [one.record.checkpoint_id for one in listed] == ["07"]
    # What SQLite cannot compare is read, and compared then.
    assert len([one async for one in store.list(Listing("t", filter={"mine": [7]}))]) == 20
    assert [one.metadata["step"] async for one in saver.alist(config(), filter={"mine": [7]})] == [7]


# Values.


@pytest.mark.parametrize("number", [1, 7, 8, 64, 100, 513])
def test_no_way_to_what_is_whole_is_long(number: int) -> None:
    """Seven steps at most for every factor of eight, and every value is what it was."""
    value, chain = os.urandom(2000), None
    for place in range(number + 1):
        value += os.urandom(20)
        chain = grown(value, place + 1, chain, [])
        assert chain.value == value
    assert chain is not None
    digits = 1
    while 8**digits <= number:
        digits += 1
    assert len(chain.way) <= 7 * digits + 1
    assert restored([link.data for link in chain.way[:-1]], chain.way[-1].data) == value
    assert [link.number for link in chain.way] == sorted({link.number for link in chain.way}, reverse=True)


def test_what_has_changed_wholly_is_whole() -> None:
    """And begins a line of its own."""
    first = grown(os.urandom(3000), 1, None, [])
    other = os.urandom(3000)
    assert grown(other, 2, first, [first]) == Chain(other, ((2, 0, other),))
    beside = grown(first.value + b"more", 3, None, [first])
    assert beside.base() == 1
    assert len(beside.way[0].data) < 100


async def test_a_growing_conversation_takes_little_of_a_file(store: SQLiteStore, tmp_path: Path) -> None:
    """Its file grows by what is new, not by the whole state of each step; a write of the state takes nothing."""
    state, steps = os.urandom(50_000), 100
    for number in range(steps):
        state += os.urandom(200)
        version = ("messages", f"{number:032}.5")
        await store.put("t", "", record(f"{number:03}", version), [(version, ("bytes", state))])
        write = WriteRecord("task", 0, "messages", ("bytes", state), "", None)
        await store.put_writes("t", "", f"{number:03}", [write])
    found = await store.get("t", "", None)
    assert found is not None
    assert ([*found.values], found.writes[0].value) == ([("messages", ("bytes", state))], ("bytes", state))
    middle = await store.get("t", "", "050")
    assert middle is not None
    assert middle.values[0][1] == ("bytes", state[: 50_000 + 51 * 200])
    await store.close()
    size = (tmp_path / "agents.db").stat().st_size
    assert size < 0.1 * steps * 2 * len(state)


@pytest.mark.parametrize("version", ["1", "=", "", 1, -1, 2**80, 1.5, 1e300, -0.0, True, float("inf"), "漢", "None"])
def test_versions_come_back(version: Any) -> None:
    """Text, whole numbers and others; those that are equal are one."""
    back = version_of(version_text(version))
    assert (back, isinstance(back, str)) == (version, isinstance(version, str))
    if version == 1:
        assert version_text(version) == version_text(1.0)


async def test_what_is_made_of_a_replaced_value_stays_as_it_was(store: SQLiteStore) -> None:
    """Later versions, and writes."""
    state = os.urandom(4000)
    values = [state + b"more" * number for number in range(12)]
    for number, value in enumerate(values):
        version = ("c", f"{number}")
        await store.put("t", "", record(f"{number:02}", version), [(version, ("bytes", value))])
    await store.put_writes("t", "", "11", [WriteRecord("task", 0, "c", ("bytes", values[-1]), "", None)])
    for number in (0, 3, 8, 11):
        values[number] = os.urandom(3000)
        version = ("c", f"{number}")
        await store.put("t", "", record(f"{number:02}", version), [(version, ("bytes", values[number]))])
        store.check()
    for number, value in enumerate(values):
        found = await store.get("t", "", f"{number:02}")
        assert found is not None
        assert found.values[0][1] == ("bytes", value), number
    assert found.writes[0].value == ("bytes", state + b"more" * 11)


# The file.


async def test_every_connection_is_as_safe_as_it_was_asked_to_be(tmp_path: Path) -> None:
    """WAL, and synchronous as it was asked for; where SQLite does not take that, it is an error."""
    for synchronous, number in (("full", 2), ("normal", 1)):
        store = SQLiteStore(tmp_path / f"{synchronous}.db", synchronous=synchronous)  # type: ignore[arg-type]
        await store.put("t", "", record("1"), [])

        def pragmas(connection: sqlite3.Connection) -> list[Any]:
            return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

        assert await store._engine.look(pragmas) == ["wal", number]
        assert await store._engine.between(lambda writer: pragmas(writer.connection)) == ["wal", number]
        await store.close()


async def test_an_older_file_is_brought_to_this_version_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wholly, or not at all; then it holds what it held."""
    path = tmp_path / "agents.db"
    store = SQLiteStore(path)
    await store.put("t", "", record("1"), [])
    await store.close()
    more = "CREATE TABLE more (a);\nINSERT INTO more VALUES (1);\n"
    monkeypatch.setattr(
        sqlite_file, "_MIGRATIONS", (*sqlite_file._MIGRATIONS, more + "INSERT INTO nowhere VALUES (1);\n")
    )
    monkeypatch.setattr(sqlite_file, "_VERSION", 2)
    with pytest.raises(StorageError):
        await store.count()
    monkeypatch.setattr(sqlite_file, "_MIGRATIONS", (*sqlite_file._MIGRATIONS[:1], more))
    assert await store.count() == 1
    await store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT a FROM more").fetchall() == [(1,)]
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


async def test_use_is_known_after_a_restart(tmp_path: Path) -> None:
    """By the time of the day, as the clock of the process has begun anew; reads are noted before the file is closed."""
    now = 1000.0
    limits = Retention(ttl=100, clock=lambda: now)
    for thread_id in ("read", "unused"):
        async with AsyncSaver.from_conn_string(f"sqlite:///{tmp_path}/agents.db", retention=limits) as saver:
            await saver.aput(config(thread_id), checkpoint("1", {}), {}, {})
    now += 90
    async with AsyncSaver.from_conn_string(f"sqlite:///{tmp_path}/agents.db", retention=limits) as saver:
        assert await saver.aget_tuple(config("read")) is not None
    now += 90
    async with AsyncSaver.from_conn_string(f"sqlite:///{tmp_path}/agents.db", retention=limits) as saver:
        assert await saver.asweep() == 1
        assert [one async for one in saver.athread_ids()] == ["read"]


async def test_a_sweep_gives_free_pages_back(store: SQLiteStore, tmp_path: Path) -> None:
    """To the system: the file gets smaller."""
    store.retain(Retention(max_threads=1))
    for number in range(20):
        version = ("c", "1")
        await store.put(f"{number}", "", record("1", version), [(version, ("bytes", os.urandom(100_000)))])
    before = (await store.stats()).bytes
    assert before is not None
    assert before > 2_000_000
    assert await store.sweep() == 19
    after = (await store.stats()).bytes
    assert after is not None
    assert after < 200_000
    await store.close()
    assert (tmp_path / "agents.db").stat().st_size < 500_000


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"path": 1}, InvalidTypeError),
        ({"path": "a\0b"}, InvalidValueError),
        ({"synchronous": "off"}, InvalidValueError),
        ({"timeout": -1}, InvalidValueError),
        ({"timeout": float("nan")}, InvalidValueError),
        ({"timeout": "5"}, InvalidTypeError),
        ({"timeout": True}, InvalidTypeError),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    """With the name of the argument."""
    with pytest.raises(error, match=next(iter(wrong))):
        SQLiteStore(**wrong)


@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"])
async def test_ids_that_a_file_cannot_hold_are_refused(store: SQLiteStore, odd: str) -> None:
    """At every entrance; and who reads by one finds nothing, as nothing can be stored there."""
    write = WriteRecord("task", 0, "c", ("bytes", b""), "", None)
    calls: list[Callable[[], Any]] = [
        lambda: store.put(odd, "", record("1"), []),
        lambda: store.put("t", odd, record("1"), []),
        lambda: store.put("t", "", record(odd), []),
        lambda: store.put("t", "", record("1", parent=odd), []),
        lambda: store.put("t", "", record("1", run=odd), []),
        lambda: store.put("t", "", record("1", (odd, "1")), []),
        lambda: store.put("t", "", record("1", ("c", odd)), []),
        lambda: store.put("t", "", record("1"), [((odd, "1"), ("bytes", b""))]),
        lambda: store.put_writes("t", "", odd, [write]),
        lambda: store.put_writes("t", "", "1", [write._replace(task_id=odd)]),
        lambda: store.put_writes("t", "", "1", [write._replace(idx=2**63)]),
        lambda: store.put_writes("t", "", "1", [write._replace(run_id=odd)]),
        lambda: store.copy("t", odd),
        lambda: store.acquire(odd, "somebody"),
    ]
    for call in calls:
        with pytest.raises(InvalidValueError):
            await call()
    assert await store.get(odd, "", None) is None
    assert await store.lease(odd) is None
    assert [one async for one in store.list(Listing(odd))] == []
    await store.delete([odd])
    await store.keep_latest([odd])
    assert [*await store.run_threads([odd])] == []
    assert await store.count() == 0


async def test_a_deep_copy_is_refused(store: SQLiteStore) -> None:
    """What is kept is in the file."""
    import copy

    with pytest.raises(InvalidTypeError, match="acopy_thread"):
        copy.deepcopy(AsyncSaver(store=store))


async def test_a_lease_that_nobody_has_is_held_no_longer(store: SQLiteStore) -> None:
    """At once, where its holder was in this process; others wait until it runs out, as they cannot see that."""
    lease = await store.acquire("t", "first")
    assert lease is not None
    assert await store.acquire("t", "second") is None
    del lease
    gc.collect()
    assert await store.acquire("t", "third") is not None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio starts tasks in any order
async def test_calls_of_one_conversation_are_one_transaction(store: SQLiteStore) -> None:
    """They are taken in order by the store, so nothing keeps them apart."""
    saver = AsyncSaver(store=store)
    lots: list[int] = []
    do = store._engine._writer.do
    store._engine._commits._do = lambda calls: (lots.append(len(calls)), do(calls))[1]
    await saver.asetup()
    place = await saver.aput(config(), checkpoint("1", {}), {}, {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(saver.aput, place, checkpoint("2", {}), {}, {})
        tasks.start_soon(saver.aput_writes, place, [("c", 1)], "task")
        tasks.start_soon(saver.adelete_thread, "t")
        tasks.start_soon(saver.aput, place, checkpoint("3", {}), {}, {})
    assert [one.checkpoint["id"] async for one in saver.alist(config())] == ["3"]
    assert sum(lots) == 6
    assert len(lots) <= 4


async def test_runs_that_race_in_one_transaction_are_told(store: SQLiteStore) -> None:
    """Also where they begin the conversation: the second one's put sees the first one's, which is not written yet."""
    await store.setup()
    conflicts: dict[str, bool] = {}

    async def put(checkpoint_id: str) -> None:
        conflicts[checkpoint_id] = await store.put("t", "", record(checkpoint_id), [], (), "raise")

    with store._engine._writer.using:  # so that what is called for now gathers
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.delete, ["what the committer has taken, and waits with"])
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(put, "1")
            tasks.start_soon(put, "2")
            await anyio.wait_all_tasks_blocked()
            store._engine._writer.using.release()
            while len(conflicts) < 2:
                await anyio.lowlevel.checkpoint()
            store._engine._writer.using.acquire()
    assert sorted(conflicts.values()) == [False, True]
    assert await store.count() == 1
