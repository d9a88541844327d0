"""`SQLiteStore` and its file: where it is, whose it is, who else uses it, and in which worker threads it is used."""

import asyncio
import gc
import os
import sqlite3
import stat
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, wait_all_tasks_blocked

from async_saver import (
    AsyncSaver,
    AsyncSaverError,
    InvalidValueError,
    SessionLostError,
    StorageError,
    ThreadBusyError,
    ThreadExistsError,
)
from async_saver.records import WriteRecord
from async_saver.stores import commits
from async_saver.stores.sqlite import SQLiteStore
from tests.build import config, listed, put
from tests.sqlite_worker import (
    POSIX,
    Script,
    SystemCall,
    check,
    contents,
    held,
    opened,
    store,
    system_calls,
    traced,
    whole,
)
from tests.test_forks import runs
from tests.workers import FORKS_WITH_THREADS, LOOPS, on_loop, output_of, together


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where there is no file yet."""
    return tmp_path / "agents.db"


async def close(saver: AsyncSaver) -> None:
    """Close a saver's store."""
    await saver._shared.store.close()


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold a file's write lock, so that a store's transactions wait; its `rollback` lets go."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def transactions(path: Path) -> int:
    """How many transactions are in a file's WAL: each has one frame that ends it."""
    wal = Path(f"{path}-wal").read_bytes()
    page, salt, count = int.from_bytes(wal[8:12], "big"), wal[16:24], 0
    for at in range(32, len(wal), 24 + page):
        if wal[at + 8 : at + 16] != salt:
            break
        count += wal[at + 4 : at + 8] != bytes(4)
    return count


# Where it is.


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///agents.db", "agents.db"),
        ("sqlite:///./agents.db", "agents.db"),
        ("sqlite:///folder/agents.db", "folder/agents.db"),
        ("sqlite:///folder/../agents.db", "agents.db"),
        ("sqlite:////{root}/agents.db", "agents.db"),
        ("sqlite:////{root}/folder/agents.db", "folder/agents.db"),
        ("sqlite:///my agents.db", "my agents.db"),
        ("sqlite:///my%20agents.db", "my agents.db"),
        ("sqlite:///50%25.db", "50%.db"),
        ("sqlite:///what%3F.db", "what?.db"),
        ("sqlite:///Größe ☃.db", "Größe ☃.db"),
        ("sqlite:///agents#1.db", "agents#1.db"),
        ("sqlite:///file:agents.db", "file:agents.db"),
        ("sqlite:///agents", "agents"),
        ("sqlite:///agents.db?timeout=10", "agents.db"),
        ("sqlite:///agents.db?synchronous=normal&timeout=0.5", "agents.db"),
        ("sqlite:///agents.db?synchronous=full", "agents.db"),
    ],
)
def test_where_a_url_has_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, name: str) -> None:
    """As SQLAlchemy reads them; a relative path is one from where the process was when the saver was made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    saver = AsyncSaver.from_conn_string(url.format(root=str(tmp_path).lstrip("/")))
    assert os.listdir(tmp_path) == ["folder"]
    monkeypatch.chdir("/")
    with saver:
        store(saver, "1")
        assert (tmp_path / name).is_file()
    assert {one.relative_to(tmp_path).as_posix() for one in tmp_path.rglob("*")} == {"folder", name}
    assert whole(tmp_path / name) == {"t": held("1")}


@pytest.mark.parametrize("name", ["what?mode=ro.db", "agents#1.db", "50%25.db", "file:agents.db", "☃ 'a\"b;.db"])
def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is not a URL, whatever is in it."""
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        with opened(path) as saver:
            store(saver, "1")
            assert sorted(os.listdir(tmp_path)) == [name, f"{name}-shm", f"{name}-wal"]
        assert os.listdir(tmp_path) == [name]
        assert whole(path) == {"t": held("1")}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_url_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """It is in memory: there is no file, and each saver has what it holds for itself."""
    monkeypatch.chdir(tmp_path)
    with AsyncSaver.from_conn_string(url) as saver, AsyncSaver.from_conn_string(url) as other:
        store(saver, "1")
        assert contents(saver) == {"t": held("1")}
        assert contents(other) == {}
        check(saver)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///agents.db?mode=ro",
        "sqlite:///agents.db?cache=shared",
        "sqlite:///file:agents.db?mode=memory&uri=true",
        "sqlite:///agents.db?key=hush",
        "sqlite:///agents.db?synchronous=off",
        "sqlite:///agents.db?synchronous=",
        "sqlite:///agents.db?timeout=",
        "sqlite:///agents.db?timeout=soon",
        "sqlite:///agents.db?timeout=-1",
        "sqlite:///agents.db?timeout=nan",
        "sqlite:///agents.db?timeout=1&timeout=2",
        "sqlite:///agents.db?Timeout=1",
        "sqlite://agents.db",
        "sqlite://localhost/agents.db",
        "sqlite://me:hush@localhost/agents.db",
        "sqlite://me:hush@/agents.db",
        "sqlite:agents.db",
        "sqlite:/agents.db",
        "sqlite:///agents%00.db",
    ],
)
def test_urls_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """With nothing of them that may be a password; no file is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError) as caught:
        AsyncSaver.from_conn_string(url)
    assert "hush" not in str(caught.value)
    if "?" in url:
        assert "synchronous" in str(caught.value) or "timeout" in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [{"synchronous": "off"}, {"synchronous": 2}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": "5"}],
)
def test_options_that_are_refused(path: Path, options: dict[str, Any]) -> None:
    """When the store is made."""
    with pytest.raises(AsyncSaverError):
        SQLiteStore(path, **options)


# Whose it is.


@POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_new_files_are_their_owners_alone(path: Path, umask: int) -> None:
    """Whatever the process would have them be. One that is there keeps its mode, and so is what is beside it."""
    former = os.umask(umask)
    try:
        with opened(path) as saver:
            store(saver, "1")
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
            assert modes == dict.fromkeys(["agents.db", "agents.db-wal", "agents.db-shm"], 0o600)
        path.chmod(0o640)
        with opened(path) as saver:
            store(saver, "2")
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
            assert modes == dict.fromkeys(["agents.db", "agents.db-wal", "agents.db-shm"], 0o640)
    finally:
        os.umask(former)


def text(path: Path) -> None:
    """No database at all."""
    path.write_text("These are notes of mine.\n" * 100)


def short_text(path: Path) -> None:
    """Shorter than any database's header."""
    path.write_text("Notes.")


def other_database(path: Path) -> None:
    """A table of somebody's."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE books (title TEXT)")
        connection.execute("INSERT INTO books VALUES ('Emma')")
        connection.commit()


def other_database_with_its_id(path: Path) -> None:
    """It has no table yet."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 252006673")


def other_database_with_a_version(path: Path) -> None:
    """Likewise."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 3")


def other_saver(path: Path) -> None:
    """LangGraph's own has these tables."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        key = "thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL"
        connection.execute(f"CREATE TABLE checkpoints ({key}, type TEXT, checkpoint BLOB, metadata BLOB)")
        connection.execute(f"CREATE TABLE writes ({key}, task_id TEXT, idx INTEGER, channel TEXT, value BLOB)")
        connection.commit()


def later_version(path: Path) -> None:
    """One of ours, some day."""
    with opened(path) as saver:
        store(saver, "1")
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        assert version > 0
        connection.execute(f"PRAGMA user_version = {version + 1}")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (text, "not an SQLite database"),
        (short_text, "not an SQLite database"),
        (other_database, "something else than async_saver"),
        (other_database_with_its_id, "something else than async_saver"),
        (other_database_with_a_version, "something else than async_saver"),
        (other_saver, "something else than async_saver"),
        (later_version, "later async_saver"),
    ],
)
def test_files_that_are_not_ours_are_left_alone(path: Path, make: Callable[[Path], None], why: str) -> None:
    """Every call says so. Once there is another file, or none, the same store works."""
    make(path)
    content, saver = path.read_bytes(), AsyncSaver(store=SQLiteStore(path))
    for call in (saver.setup, partial(store, saver, "1"), partial(saver.get_tuple, config()), saver.count):
        with pytest.raises(StorageError, match=why) as caught:
            call()
        assert str(path)[:60] in str(caught.value)
    with pytest.raises((StorageError, AssertionError), match=why):
        check(saver)
    anyio.run(close, saver)
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == {"agents.db": content}
    path.unlink()
    store(saver, "1")
    assert contents(saver) == {"t": held("1")}
    check(saver)
    anyio.run(close, saver)


@pytest.mark.parametrize("make", [Path.touch, lambda path: sqlite3.connect(path).close()], ids=["touched", "opened"])
def test_an_empty_file_is_as_good_as_none(path: Path, make: Callable[[Path], None]) -> None:
    """Whoever makes it first decides who may read it."""
    make(path)
    with opened(path) as saver:
        store(saver, "1")
    assert whole(path) == {"t": held("1")}


def test_a_folder_in_its_place(path: Path) -> None:
    """Is an error, until it is not there any more."""
    path.mkdir()
    saver = AsyncSaver(store=SQLiteStore(path))
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            store(saver, "1")
        assert str(path)[:60] in str(caught.value)
    assert list(path.iterdir()) == []
    path.rmdir()
    store(saver, "1")
    anyio.run(close, saver)


def test_a_folder_that_is_not_there(path: Path) -> None:
    """Is an error that speaks of it, until it is there; none is made."""
    path = path.parent / "missing" / path.name
    saver = AsyncSaver(store=SQLiteStore(path))
    for _ in range(2):
        with pytest.raises(StorageError, match="folder"):
            store(saver, "1")
    assert not path.parent.exists()
    path.parent.mkdir()
    store(saver, "1")
    anyio.run(close, saver)


# Who else uses it.

# Makes a saver, waits for the word, and puts one checkpoint after another.
WRITER = """
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
saver = AsyncSaver(store=SQLiteStore(path, timeout=30))

async def main():
    say("ready")
    hear()
    for number in range(count):
        async with anyio.create_task_group() as tasks:
            for thread_id in (f"{name} {number}", "shared"):
                tasks.start_soon(put_both, f"{number:04}-{name}", thread_id)
            tasks.start_soon(put_and_delete, number)
        await count_one()
        say("stored", number)
    await saver._shared.store.close()

async def put_both(checkpoint_id, thread_id):
    await saver.aput_writes(config(thread_id, checkpoint_id), [("x", 1), ("y", 2)], "task")
    await put(saver, checkpoint_id, {"x": checkpoint_id}, thread_id=thread_id)

async def put_and_delete(number):
    await put(saver, f"{number:04}-{name}", {"x": 1}, thread_id="deleted by all", version="1")
    if number % 3 == 2:
        await saver.adelete_thread("deleted by all")

async def count_one():
    async with saver.session("count", timeout=60):
        found = await saver.aget_tuple(config("count"))
        number = found.checkpoint["channel_values"]["x"] + 1 if found else 1
        await put(saver, f"{number:06}", {"x": number}, thread_id="count")

asyncio.run(main())
"""


@POSIX
@pytest.mark.parametrize(("processes", "each"), [(10, 2), (2, 60)], ids=["ten begin at once", "two go on"])
def test_processes_that_write_to_one_file(path: Path, processes: int, each: int) -> None:
    """They start on a file that is not there yet; nothing is lost, and nothing is mixed up."""
    names = [f"process {number}" for number in range(processes)]
    scripts = [Script(WRITER, path, name, each) for name in names]
    try:
        for script in scripts:
            assert script.hear() == "ready"
        for script in scripts:
            script.tell("go")
        for script in scripts:
            assert script.end() == [f"stored {number}" for number in range(each)]
    finally:
        for script in scripts:
            script.__exit__(None, None, None)
    found = whole(path)
    found.pop("deleted by all", None)
    both = [("task", "x", 1), ("task", "y", 2)]
    stored = {f"{name} {number}": {f"{number:04}-{name}"} for name in names for number in range(each)}
    stored["shared"] = set().union(*stored.values())
    stored["count"] = {f"{number:06}" for number in range(1, processes * each + 1)}
    assert {thread_id: set(there) for thread_id, there in found.items()} == stored
    del found["count"]
    assert all(there[one] == ({"x": one}, both) for there in found.values() for one in there)


@pytest.mark.anyio
async def test_two_stores_of_one_process_on_one_file(path: Path) -> None:
    """They do not know of each other; closing one takes nothing from the other."""
    one, other = AsyncSaver(store=SQLiteStore(path)), AsyncSaver(store=SQLiteStore(path))
    for number in range(20):
        async with create_task_group() as tasks:
            for saver, name in ((one, "one"), (other, "other")):
                tasks.start_soon(lambda s=saver, n=name, i=number: put(s, f"{i:02}-{n}"))
                tasks.start_soon(lambda s=saver, n=name, i=number: put(s, f"{i:02}", thread_id=n))
    for number in range(5):  # what each knows of the file is what the other has left there
        for saver, another in ((one, other), (other, one)):
            await put(saver, f"{number}1", {"x": 1}, thread_id="u")
            await another.aput_writes(config("u", f"{number}1"), [("x", 1)], "task")
            await (another.aprune(["u"]) if number % 2 else another.adelete_thread("u"))
            await saver.aput_writes(config("u", f"{number}2"), [("x", 1)], "task")
            await put(saver, f"{number}2", {"x": 2}, thread_id="u")
            assert await listed(another, config("u")) == [f"{number}2", *([f"{number}1"] if number % 2 else [])]
            await another.adelete_thread("u")
    async with one.session("t"):
        with pytest.raises(ThreadBusyError):
            await other.session("t", multitask_strategy="reject").__aenter__()
    await close(one)
    with Script("with AsyncSaver(store=SQLiteStore(sys.argv[1])) as saver:\n    say(saver.count())", path) as script:
        assert script.end() == ["3"]  # and it is not the last one to close the file
    for number in range(20, 40):
        await put(other, f"{number:02}")
    assert await one.acount() == await other.acount() == 3
    assert len(await listed(other, config())) == 60
    check(other)
    await close(one)
    await close(other)


def test_compact_gives_pages_back(path: Path) -> None:
    """What was deleted takes no room any more, in the file nor beside it."""
    with opened(path) as saver:
        for number in range(50):
            store(saver, "1", f"{number}", os.urandom(100_000))
        for number in range(49):
            saver.delete_thread(f"{number}")
        anyio.run(saver._shared.store.compact)  # type: ignore[attr-defined]
        assert path.stat().st_size < 300_000
        assert Path(f"{path}-wal").stat().st_size < 300_000
        check(saver)
        assert contents(saver).keys() == {"49"}
    assert path.stat().st_size < 300_000


# Sessions of two processes.

SESSION = """
saver = AsyncSaver(store=SQLiteStore(sys.argv[1]))

async def main():
    try:
        async with saver.session("t"):
            await put(saver, "1", {"x": "1"})
            say("inside")
            await anyio.to_thread.run_sync(hear)
            try:
                await put(saver, "2", {"x": "2"})
                say("stored")
            except SessionLostError:
                say("refused")
    except SessionLostError:
        say("lost")
    say("outside")
    await anyio.to_thread.run_sync(hear)
    await saver._shared.store.close()

asyncio.run(main())
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[Script]:
    """A process whose session holds conversation t, and has stored checkpoint 1 there."""
    with Script(SESSION, path) as script:
        assert script.hear() == "inside"
        yield script


@pytest.mark.anyio
async def test_sessions_wait_for_those_of_another_process(path: Path) -> None:
    """Or are rejected; other conversations are free."""
    saver = AsyncSaver(store=SQLiteStore(path))
    await put(saver, "0", {"x": "0"})
    with held_elsewhere(path) as script:
        assert await saver.ais_busy("t")
        with pytest.raises(ThreadBusyError, match="process"):
            await saver.session("t", multitask_strategy="reject").__aenter__()
        with pytest.raises(ThreadBusyError, match="process"):
            await saver.session("t", timeout=0.05).__aenter__()
        async with saver.session("u", multitask_strategy="reject"):
            pass
        with anyio.CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(saver.session("t").__aenter__)
                await anyio.sleep(0.05)
                scope.cancel()
        script.tell("go on")
        async with saver.session("t", timeout=30):
            assert await listed(saver, config()) == ["2", "1", "0"]
            await put(saver, "3", {"x": "3"})
        assert (script.hear(), script.hear()) == ("stored", "outside")
        assert not await saver.ais_busy("t")
        script.tell("end")
        script.end()
    check(saver)
    await close(saver)


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_sessions_of_another_process_are_fenced(path: Path, strategy: Any) -> None:
    """They cannot be told; what they store from then on is refused, and a rollback undoes what they had stored."""
    saver = AsyncSaver(store=SQLiteStore(path))
    await put(saver, "0", {"x": "0"})
    with held_elsewhere(path) as script:
        async with saver.session("t", multitask_strategy=strategy, timeout=0.05):
            kept = ["0"] if strategy == "rollback" else ["1", "0"]
            assert await listed(saver, config()) == kept
            await put(saver, "3", {"x": "3"})
            script.tell("go on")
            assert [script.hear() for _ in range(3)] == ["refused", "lost", "outside"]
            assert await listed(saver, config()) == ["3", *kept]
        script.tell("end")
        script.end()
    check(saver)
    assert await listed(saver, config()) == ["3", *kept]
    await close(saver)


@pytest.mark.anyio
@pytest.mark.parametrize("waits", [False, True], ids=["asks later", "waits already"])
async def test_the_conversation_of_a_killed_process_is_free_soon(path: Path, waits: bool) -> None:
    """What it had stored stays."""
    saver = AsyncSaver(store=SQLiteStore(path))
    entered = anyio.Event()

    async def enter() -> None:
        async with saver.session("t", timeout=20):
            entered.set()

    with held_elsewhere(path) as script:
        async with create_task_group() as tasks:
            if waits:
                tasks.start_soon(enter)
                await anyio.sleep(0.05)
                assert not entered.is_set()
            script.kill()
            began = time.monotonic()
            if waits:
                await entered.wait()
            else:
                assert not await saver.ais_busy("t")
                async with saver.session("t", multitask_strategy="reject"):
                    pass
            assert time.monotonic() - began < 5
    assert await listed(saver, config()) == ["1"]
    check(saver)
    await close(saver)


@pytest.mark.anyio
async def test_what_a_killed_process_has_stored_in_its_session_can_be_undone(path: Path) -> None:
    """By the next session, if that is one that rolls back."""
    saver = AsyncSaver(store=SQLiteStore(path))
    await put(saver, "0")
    with held_elsewhere(path) as script:
        script.kill()
    async with saver.session("t", multitask_strategy="rollback", timeout=20):
        assert await listed(saver, config()) == ["0"]
    check(saver)
    await close(saver)


# Its worker threads.


def workers() -> set[threading.Thread]:
    """The worker threads of all stores."""
    return {one for one in threading.enumerate() if one.name.startswith("async_saver SQLite")}


def descriptors() -> int:
    """How many the process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.anyio
async def test_close_lets_what_is_queued_be_done(path: Path) -> None:
    """Then no worker thread and no file is left, nor what SQLite keeps beside it; the next call opens it anew."""
    before = workers()
    saver, stored = AsyncSaver(store=SQLiteStore(path, timeout=30)), []

    async def store_one(number: int) -> None:
        await put(saver, "1", thread_id=f"{number}")
        stored.append(number)

    await put(saver, "1")
    for _ in range(2):
        with locked(path) as connection:
            async with create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(store_one, number)
                await wait_all_tasks_blocked()
                tasks.start_soon(close, saver)
                await wait_all_tasks_blocked()
                assert not stored
                assert workers() - before
                connection.rollback()
        assert len(stored) == 50
        await close(saver)
        await close(saver)
        assert workers() == before
        assert os.listdir(path.parent) == ["agents.db"]
        assert await saver.acount() == 51
        check(saver)
        stored.clear()
        for number in range(50):
            await saver.adelete_thread(f"{number}")
    await close(saver)


@pytest.mark.anyio
async def test_calls_and_closes_at_once(path: Path) -> None:
    """A call that comes as the worker thread ends is done by the next one."""
    saver = AsyncSaver(store=SQLiteStore(path, synchronous="normal"))
    for number in range(50):
        async with create_task_group() as tasks:
            tasks.start_soon(lambda number=number: put(saver, "1", thread_id=f"{number}"))
            tasks.start_soon(close, saver)
            tasks.start_soon(saver.acount)
            tasks.start_soon(lambda number=number: put(saver, "2", thread_id=f"{number}"))
    assert await saver.acount() == 50
    check(saver)
    await close(saver)


def drop(savers: list[AsyncSaver]) -> None:
    """Have what is in a list collected."""
    savers.clear()
    gc.collect()


def test_a_store_that_was_forgotten_says_so(path: Path) -> None:
    """If it was opened: there is nothing to say of one that was not, or that was closed."""

    async def use(saver: AsyncSaver) -> None:
        await put(saver, "1")

    saver = AsyncSaver(store=SQLiteStore(path))
    anyio.run(use, saver)
    forgotten = [saver]
    del saver
    with pytest.warns(ResourceWarning, match=r"agents\.db"):
        drop(forgotten)
    saver = AsyncSaver(store=SQLiteStore(path))
    anyio.run(use, saver)
    anyio.run(close, saver)
    del saver
    AsyncSaver(store=SQLiteStore(path))
    gc.collect()


@POSIX
def test_forgotten_stores_leave_nothing(path: Path) -> None:
    """Neither a worker thread nor a descriptor; what they have stored is there."""

    async def use_and_drop() -> None:
        for number in range(200):
            saver = AsyncSaver(store=SQLiteStore(path if number % 2 else None))
            await put(saver, f"{number:03}", {"x": f"{number:03}"})
            assert await saver.aget_tuple(config()) is not None
            del saver
            if number % 20 == 19:
                gc.collect()

    gc.collect()
    before, files = workers(), descriptors()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        anyio.run(use_and_drop)
        gc.collect()
    assert [one.category for one in warned] == [ResourceWarning] * 200
    until = time.monotonic() + 20
    while (left := workers() - before) or descriptors() > files:
        assert time.monotonic() < until, (left, descriptors(), files)
        time.sleep(0.01)
    assert whole(path)["t"] == held(*(f"{number:03}" for number in range(1, 200, 2)))


@pytest.mark.parametrize("way", ["asyncio.run(put(saver, '1', {'x': '1'}))", "store(saver, '1')"])
def test_a_process_that_closes_nothing_ends(path: Path, way: str) -> None:
    """And says nothing; what it was told of is there."""
    script = f"""
import asyncio
from async_saver import AsyncSaver
from async_saver.stores.sqlite import SQLiteStore
from tests.build import put
from tests.sqlite_worker import store
saver = AsyncSaver(store=SQLiteStore({str(path)!r}))
{way}
print("stored")
"""
    assert output_of(script, seconds=30) == "stored\n"
    assert whole(path) == {"t": held("1")}


@pytest.mark.anyio
async def test_calls_that_gather_are_one_transaction(path: Path) -> None:
    """Here, those of several event loops and worker threads while another process's transaction holds them up."""
    saver = AsyncSaver(store=SQLiteStore(path, timeout=30))
    await put(saver, "0")
    waiting = threading.Barrier(len(LOOPS) * 2 + 1)

    async def put_some(name: int) -> None:
        async with create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(lambda number=number: put(saver, "1", thread_id=f"{name} {number}"))
            await wait_all_tasks_blocked()
            waiting.wait(30)

    def let_go() -> None:
        waiting.wait(30)
        connection.rollback()

    with locked(path) as connection:
        before = transactions(path)
        loops = [partial(on_loop, number, put_some, number) for number in range(len(LOOPS) * 2)]
        await anyio.to_thread.run_sync(partial(together, *loops, let_go))
    # Those that the lock held up, and those that came meanwhile.
    assert transactions(path) - before <= 3
    assert await saver.acount() == 1 + 10 * len(loops)
    check(saver)
    await close(saver)


@pytest.mark.anyio
async def test_a_full_queue_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who come later wait outside of it; cancelled ones are not stored, and keep nobody else out."""
    monkeypatch.setattr(commits, "_MOST", 20)
    saver, stored = AsyncSaver(store=SQLiteStore(path, timeout=30)), set[int]()
    await put(saver, "0")
    queue = saver._shared.store._engine._commits._queue  # type: ignore[attr-defined]

    async def store_one(number: int) -> None:
        await put(saver, "1", thread_id=f"{number}")
        stored.add(number)

    with locked(path) as connection:
        async with create_task_group() as tasks:
            async with create_task_group() as cancelled:
                for number in range(300):
                    (tasks if number % 2 else cancelled).start_soon(store_one, number)
                await wait_all_tasks_blocked()
                assert 0 < queue.qsize() <= 20
                assert not stored
                cancelled.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            connection.rollback()
    assert stored == set(range(1, 300, 2))
    assert await saver.acount() <= 1 + 150 + 2 * 20  # a call that has begun is done to its end
    check(saver)
    await close(saver)


def written(kind: Any = "null", channel: str = "x") -> list[WriteRecord]:
    """A write as the saver hands it to its store."""
    return [WriteRecord("task", 0, channel, (kind, b""), "", None)]


# What is bad about them is found out in the transaction, or before.
BAD_CALLS: dict[str, tuple[type[Exception], Callable[[Any, Any], Awaitable[None]]]] = {
    "copy onto another": (ThreadExistsError, lambda kept, _: kept.copy("a", "b")),
    "a lost lease": (SessionLostError, lambda kept, lost: kept.put_writes("a", "", "0", written(), [lost])),
    "half a character": (InvalidValueError, lambda kept, _: kept.put_writes("a", "", "0", written(channel="\ud800"))),
    "what SQLite refuses": (StorageError, lambda kept, _: kept.put_writes("a", "", "0", written(kind=None))),
}


@pytest.mark.anyio
@pytest.mark.parametrize("which", BAD_CALLS)
async def test_a_bad_call_fails_alone(path: Path, which: str) -> None:
    """With its own error; those that are in one transaction with it are stored."""
    saver = AsyncSaver(store=SQLiteStore(path, timeout=30))
    kept, (error, call) = saver._shared.store, BAD_CALLS[which]
    for thread_id in ("a", "b"):
        await put(saver, "0", thread_id=thread_id)
    lost = await kept.acquire("a", "somebody")
    assert lost is not None
    assert await kept.acquire("a", "somebody else", instead_of=lost) is not None
    failed: list[BaseException] = []

    async def fail() -> None:
        with pytest.raises(error) as caught:
            await call(kept, lost)
        failed.append(caught.value)

    with locked(path) as connection:
        async with create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(lambda number=number: put(saver, "1", thread_id=f"{number}"))
                if number in (0, 10, 20):
                    tasks.start_soon(fail)
            await wait_all_tasks_blocked()
            connection.rollback()
    assert len({id(one) for one in failed}) == 3
    assert await saver.acount() == 32
    assert await listed(saver, config("b")) == await listed(saver, config("a")) == ["0"]
    found = await saver.aget_tuple(config("a"))
    assert found is not None
    assert not found.pending_writes
    check(saver)
    await close(saver)


def test_a_loop_that_is_closed_meanwhile_is_left_out(path: Path) -> None:
    """Those who wait on others are woken."""
    saver = AsyncSaver(store=SQLiteStore(path, timeout=30))
    anyio.run(put, saver, "0")
    waiting = threading.Barrier(len(LOOPS) + 1)

    async def put_some(name: int) -> None:
        async with create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(lambda number=number: put(saver, "1", thread_id=f"{name} {number}"))
            await wait_all_tasks_blocked()
            waiting.wait(30)

    def close_a_loop() -> None:
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(put(saver, "1", thread_id=f"closed {number}")) for number in range(10)]
        for _ in range(10):
            loop.run_until_complete(asyncio.sleep(0))
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        waiting.wait(30)
        connection.rollback()

    with locked(path) as connection:
        together(*[partial(on_loop, number, put_some, number) for number in range(len(LOOPS))], close_a_loop)
    gc.collect()
    anyio.run(put, saver, "1")
    found = contents(saver)
    assert {one for one in found if not one.startswith("closed")} == {
        "t",
        *(f"{name} {number}" for name in range(len(LOOPS)) for number in range(10)),
    }
    check(saver)
    anyio.run(close, saver)


# Forks.


@POSIX
def test_children_and_parent_go_on_while_tasks_write(path: Path) -> None:
    """Children open the file for themselves; they and the parent read what all of them store."""
    runs(f"""
from async_saver.stores.sqlite import SQLiteStore
saver, stop = AsyncSaver(store=SQLiteStore({str(path)!r}, timeout=30)), threading.Event()
acknowledged = [-1] * 4
all_write = threading.Barrier(5)

async def write(worker):
    while not stop.is_set():
        number = acknowledged[worker] + 1
        await put(saver, f"{{number:06}}", {{"x": number}}, thread_id=f"worker {{worker}}")
        await saver.aput_writes(config(f"worker {{worker}}", f"{{number:06}}"), [("x", number)], "task")
        acknowledged[worker] = number
        if not number:
            all_write.wait()

def all_there():
    told = list(acknowledged)
    saver._shared.store.check()
    for worker, number in enumerate(told):
        found = ids(saver.list(config(f"worker {{worker}}")))
        assert found[-number - 1:] == [f"{{one:06}}" for one in range(number, -1, -1)], (worker, number)
        latest = saver.get_tuple(config(f"worker {{worker}}", f"{{number:06}}"))
        assert latest.checkpoint["channel_values"] == {{"x": number}}
        assert latest.pending_writes == [("task", "x", number)]

def child(number):
    all_there()
    use(saver, f"child {{number}}")
    gc.collect()

import gc
workers = [threading.Thread(target=on_loop, args=(worker, write, worker)) for worker in range(4)]
for worker in workers:
    worker.start()
all_write.wait()
try:
    for number in range(8):
        started = fork(lambda: child(number))
        saver.put(config("parent"), checkpoint(f"{{number:03}}"), {{}}, {{}})
        wait(started)
        assert len(ids(saver.list(config(f"child {{number}}")))) == 1 + 2 * len(LOOPS)
finally:
    stop.set()
    for worker in workers:
        worker.join()
all_there()
assert len(ids(saver.list(config("parent")))) == 8
asyncio.run(saver._shared.store.close())
""")


@POSIX
def test_processes_that_multiprocessing_forks(path: Path) -> None:
    """They end in their own way, which leaves the parent's connections alone, too."""
    runs(f"""
import multiprocessing
from async_saver.stores.sqlite import SQLiteStore
saver = AsyncSaver(store=SQLiteStore({str(path)!r}))
saver.put(config(), checkpoint("0"), {{}}, {{}})

def child(number):
    assert ids(saver.list(config()))[-1] == "0"
    use(saver, f"child {{number}}")

started = [multiprocessing.get_context("fork").Process(target=child, args=(number,)) for number in range(3)]
for one in started:
    one.start()
for number in range(1, 20):
    saver.put(config(), checkpoint(f"{{number:02}}"), {{}}, {{}})
for one in started:
    one.join()
    assert one.exitcode == 0
saver._shared.store.check()
assert saver.count() == 4
asyncio.run(saver._shared.store.close())
""")


FORKED = """
path, end = sys.argv[1:]
saver = AsyncSaver(store=SQLiteStore(path))
saver.put(config(), checkpoint("0"), {}, {})
saver.get(config())
say("forks")
child = os.fork()
if not child:
    saver.put(config(), checkpoint("1"), {}, {})
    saver.get(config())
    asyncio.run(saver._shared.store.close())
    if end == "drops":
        saver = None
        gc.collect()
    if end == "at once":
        os._exit(0)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
saver.put(config(), checkpoint("2"), {}, {})
assert ids(saver.list(config())) == ["2", "1", "0"]
saver._shared.store.check()
asyncio.run(saver._shared.store.close())
"""


def touched_by_children(calls: list[SystemCall], path: Path) -> list[str]:
    """The calls that children have made for descriptors of a file, and what is beside it, that they have inherited."""
    process: dict[int, int] = {}  # of each worker thread
    for call in calls:
        process.setdefault(call.thread, call.thread)
        if call.name.startswith("clone") and call.ends:
            started = int(call.result)
            process[started] = process[call.thread] if "CLONE_THREAD" in call.text else started
    own, touched = set[tuple[int, int]](), []
    for call in calls:
        here = process[call.thread]
        if call.name == "openat" and call.ends and call.result[0] != "-":
            own.add((here, int(call.result.partition("<")[0])))
        elif here != process[calls[0].thread] and call.file.startswith(str(path)) and (here, call.number) not in own:
            touched.append(call.text)
    assert len({here for here, _ in own}) > 1, "no child has opened anything"
    return touched


@POSIX
@pytest.mark.parametrize("end", ["at once", "in order", "drops"])
def test_a_child_never_touches_what_it_inherits(path: Path, end: str) -> None:
    """None of its system calls is for a descriptor of the parent's connections."""
    trace = path.with_name("trace")
    for_files = ["openat", "close", "read", "pread64", "pwrite64", "write", "fcntl", "fdatasync", "fsync", "ftruncate"]
    options = ("-W", "error", "-W", FORKS_WITH_THREADS)
    before = traced(["clone", "clone3", *for_files], trace)
    with Script(FORKED, path, end, before=before, options=options) as script:
        assert script.end() == ["forks"]
    assert touched_by_children(system_calls(trace), path) == []
