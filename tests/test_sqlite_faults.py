"""What `SQLiteStore` survives: kills, a full disk, files that are locked, damaged, read-only or gone, for real."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from async_saver import AsyncSaver, AsyncSaverError, StorageBusyError, StorageError
from async_saver.stores.sqlite import SQLiteStore
from tests.build import config, put
from tests.sqlite_worker import (
    POSIX,
    Contents,
    Script,
    SystemCall,
    check,
    contents,
    contents_after,
    held,
    opened,
    store,
    system_calls,
    traced,
    whole,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where there is no file yet."""
    return tmp_path / "agents.db"


# Killed.

KILLS = 100
TASKS = 16

# It never opens a store itself. Each of its children runs programs on a file until it is killed.
NURSERY = f"""
async def run(path, number):
    saver = AsyncSaver(store=SQLiteStore(path))
    async def go_on(program):
        step = 0
        while True:
            await program.step()(saver)
            step += 1
            say("stored", program.name, step)
    async with anyio.create_task_group() as tasks:
        for task in range({TASKS}):
            tasks.start_soon(go_on, Program(f"{{number}}-{{task}}"))

while line := hear():
    path, number, seconds = line.split()
    child = os.fork()
    if not child:
        try:
            asyncio.run(run(path, number))
        finally:
            traceback.print_exc()
            os._exit(1)
    time.sleep(float(seconds))
    os.kill(child, 9)
    say("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@POSIX
def test_kills_lose_nothing_and_tear_nothing(tmp_path: Path) -> None:
    """Whatever was acknowledged is there; of each task one call at most was under way, and is there wholly or not."""
    draw, acknowledged, unheard = random.Random(7), 0, 0
    stored: dict[str, int] = {}
    with Script(NURSERY) as nursery:
        for number in range(KILLS):
            path = tmp_path / f"{number // 10}.db"
            if number % 10 == 0:
                stored = {}
            # The first one of a file is most often killed while it makes it.
            nursery.tell(path, number, draw.uniform(0, 0.2 if number % 10 else 0.04))
            stored |= {f"{number}-{task}": 0 for task in range(TASKS)}
            while (line := nursery.hear()) != "ended with -9":
                word, name, step = line.split()
                assert (word, int(step)) == ("stored", stored[name] + 1), line
                stored[name] += 1
                acknowledged += 1
            if number % 2 and number % 10 != 9:
                continue  # the next one finds the file as this one has left it
            found = whole(path) if path.exists() else {}
            for name, steps in stored.items():
                own = {one: there for one, there in found.items() if one.partition(" copy ")[0] == name}
                if own != contents_after(name, steps):
                    assert own == contents_after(name, steps + 1), (number, name, steps)
                    stored[name] += 1
                    unheard += 1
    sys.stdout.write(f"{KILLS} kills, {acknowledged} calls acknowledged and found, {unheard} others found\n")
    assert acknowledged > 3 * KILLS


# Synced.

WRITER = """
path, synchronous, off = sys.argv[1:]

class Off(sqlite3.Connection):
    # Whatever the store has asked for and read back: as every transaction begins, synchronous is off.
    def execute(self, sql, *args):
        if sql.startswith("BEGIN"):
            super().execute("PRAGMA synchronous = OFF")
        return super().execute(sql, *args)

if off:
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, **{**kwargs, "factory": Off})

async def main():
    saver = AsyncSaver(store=SQLiteStore(path, synchronous=synchronous))
    for number in range(5):
        await put(saver, f"{number}", {"x": number}, thread_id="alone")
        say("stored", number)
    for number in range(5):
        async with anyio.create_task_group() as tasks:
            for task in range(4):
                tasks.start_soon(put_both, saver, f"{number}", f"thread {task}")
        say("stored", number)
    await saver._shared.store.close()

async def put_both(saver, number, thread_id):
    await saver.aput_writes(config(thread_id, number), [("x", number)], "task")
    await put(saver, number, {"x": number}, thread_id=thread_id)

asyncio.run(main())
"""


def not_synced(calls: list[SystemCall]) -> tuple[int, int]:
    """How many acknowledgements there are, and before how many the WAL was not synced after it was last written to."""
    written_before: dict[int, int] = {}
    written = synced = told = acknowledgements = missing = 0
    for call in calls:
        if call.begins:
            written_before[call.thread] = written
        if call.file.endswith("-wal") and call.name == "pwrite64":
            written += call.begins
        elif call.file.endswith("-wal") and call.name in ("fsync", "fdatasync") and call.ends:
            assert call.result == "0", call.text
            synced = max(synced, written_before[call.thread])
        elif call.begins and '"stored ' in call.text:
            assert written > told, "it was acknowledged, and nothing was written"
            acknowledgements += 1
            missing += synced < written
            told = written
    return acknowledgements, missing


@pytest.mark.parametrize(
    ("synchronous", "off", "missing"), [("full", "", 0), ("full", "off", 10), ("normal", "", 10)], ids=str
)
def test_what_is_acknowledged_is_synced(tmp_path: Path, synchronous: str, off: str, missing: int) -> None:
    """And this test sees where it is not: with synchronous "normal", or when it is off behind the store's back."""
    path, trace = tmp_path / "agents.db", tmp_path / "trace"
    with Script(
        WRITER, path, synchronous, off, before=traced(["pwrite64", "fsync", "fdatasync", "write"], trace)
    ) as it:
        assert len(it.end()) == 10
    calls = system_calls(trace)
    assert not_synced(calls) == (10, missing)
    if not missing:
        synced = [call.file for call in calls if call.name in ("fsync", "fdatasync")]
        assert str(tmp_path) in synced, "a new file's name is to be on the disk, too"


# Full.

ROOM = 16_000_000

# What is full: the file system, or the size of file that this process may make.
FULL = """
import resource
kind, folder = sys.argv[1:]
path, ballast = f"{folder}/agents.db", f"{folder}/ballast"

def fill(room):
    if kind == "limit":
        largest = max([os.path.getsize(f"{folder}/{name}") for name in os.listdir(folder)], default=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, resource.RLIM_INFINITY))
        return
    found = os.statvfs(folder)
    with open(ballast, "wb") as file:
        file.write(bytes(found.f_bavail * found.f_frsize - room))

def free():
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    else:
        os.remove(ballast)

def is_clear(exc):
    assert path[:60] in str(exc), exc
    assert kind == "limit" or "no room" in str(exc), exc

def store(name, number, size=10):
    made = checkpoint(f"{number:05}", {"x": number, "bytes": random.randbytes(size)}, f"{number}")
    saver.put(config(name), made, {}, made["channel_versions"])

def all_there():
    store_of(saver).check()
    found = contents(saver)
    for name, number in stored.items():
        assert found[name].keys() >= {f"{one:05}" for one in range(number + 1)}, name
        assert all(held[0]["x"] == int(one) and len(held[0]["bytes"]) >= 10 for one, held in found[name].items())

def store_of(saver):
    return saver._shared.store

saver, stored = AsyncSaver(store=SQLiteStore(path)), {}
"""


def where_it_gets_full(kind: str, folder: Path) -> tuple[str, ...]:
    """The command for a script in which a folder has little room: a small file system that no other process sees."""
    folder.mkdir()
    if kind == "limit":
        return ()
    own = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    command = (*own, "sh", "-c", f'mount -t tmpfs -o size={ROOM} none "$0" && exec "$@"', str(folder))
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    return command


def runs_out_of_room(script: str, kind: str, tmp_path: Path) -> None:
    """Run a script that says nothing, of a saver in a folder with little room."""
    folder = tmp_path / "folder"
    with Script(FULL + script, kind, folder, before=where_it_gets_full(kind, folder)) as running:
        assert running.end() == []


full = pytest.mark.parametrize("kind", ["file system", "limit"])


@POSIX
@full
def test_a_full_disk_loses_nothing(tmp_path: Path, kind: str) -> None:
    """Tasks write until there is no room; what they were told of is there, then and after some room was made."""
    runs_out_of_room(
        """
store("before", 0)
stored["before"] = 0
fill(600_000)

async def write_on(name):
    number = 0
    try:
        while True:
            await put(saver, f"{number:05}", {"x": number, "bytes": random.randbytes(2000)}, thread_id=name)
            stored[name] = number
            number += 1
    except StorageError as exc:
        is_clear(exc)

async def main():
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(write_on, f"thread {number}")

asyncio.run(main())
assert len(stored) > 10, stored
all_there()
free()
store("later", 0)
stored["later"] = 0
all_there()
asyncio.run(store_of(saver).close())
all_there()
asyncio.run(store_of(saver).close())
""",
        kind,
        tmp_path,
    )


@POSIX
@full
def test_what_does_not_fit_fails_alone(tmp_path: Path, kind: str) -> None:
    """Small calls come in one transaction with a large one; all but that one are stored."""
    runs_out_of_room(
        """
store("before", 0)
stored["before"] = 0
fill(3_000_000)
failed = []

async def put_large():
    try:
        await put(saver, "00000", {"x": 0, "bytes": random.randbytes(5_000_000)}, thread_id="large")
    except StorageError as exc:
        is_clear(exc)
        failed.append(exc)

async def put_small(name):
    await put(saver, "00000", {"x": 0, "bytes": random.randbytes(100)}, thread_id=name)
    stored[name] = 0

async def main():
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(put_small, f"thread {number}") if number != 20 else tasks.start_soon(put_large)
        await anyio.wait_all_tasks_blocked()
        other.rollback()
    other.close()

asyncio.run(main())
assert len(failed) == 1
assert len(stored) == 40
all_there()
assert "large" not in contents(saver)
free()
store("large", 0, 5_000_000)
stored["large"] = 0
all_there()
asyncio.run(store_of(saver).close())
""",
        kind,
        tmp_path,
    )


@POSIX
@full
def test_a_new_file_needs_some_room(tmp_path: Path, kind: str) -> None:
    """Without it there is an error, and the next call tries again."""
    runs_out_of_room(
        """
fill(0)
for _ in range(2):
    try:
        store("t", 0)
    except StorageError as exc:
        is_clear(exc)
    else:
        raise AssertionError("it is stored")
free()
store("t", 0)
stored["t"] = 0
all_there()
asyncio.run(store_of(saver).close())
""",
        kind,
        tmp_path,
    )


# Read-only. Root may write everywhere, so these scripts are somebody else's.

READ_ONLY = """
folder = sys.argv[1]
path = f"{folder}/agents.db"
import async_saver.session, anyio._backends._asyncio, anyio.from_thread  # as somebody else may not read the sources
if os.getuid() == 0:
    os.chown(folder, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

def store(checkpoint_id):
    saver.put(config(), checkpoint(checkpoint_id, {"x": checkpoint_id}, checkpoint_id), {}, {"x": checkpoint_id})

def close():
    asyncio.run(saver._shared.store.close())

def refused(checkpoint_id):
    try:
        store(checkpoint_id)
    except StorageError as exc:
        assert path in str(exc), exc
        assert "may" in str(exc), exc
        return True
    return False

def all_there(*checkpoint_ids):
    saver._shared.store.check()
    assert contents(saver)["t"].keys() == set(checkpoint_ids), contents(saver)

saver = AsyncSaver(store=SQLiteStore(path))
"""


def runs_as_somebody_else(script: str) -> None:
    """Run a script that says nothing, as a user who is not root, in a folder of that user's."""
    # Not under the temporary path of the test: that may be root's alone.
    folder = Path(tempfile.mkdtemp())
    try:
        with Script(READ_ONLY + script, folder) as running:
            assert running.end() == []
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


@POSIX
def test_a_read_only_file() -> None:
    """It is not written to; as soon as it may be, the same saver goes on."""
    runs_as_somebody_else("""
store("1")
close()
os.chmod(path, 0o400)
assert refused("2")
assert refused("2")
os.chmod(path, 0o600)
all_there("1")
store("3")
close()
all_there("1", "3")
close()
""")


@POSIX
@pytest.mark.parametrize("before", ["nothing", "a file"])
def test_a_read_only_folder(before: str) -> None:
    """No file can be made in it, nor what SQLite keeps beside one."""
    runs_as_somebody_else(f"""
expected = []
if {before != "nothing"}:
    store("1")
    close()
    expected.append("1")
os.chmod(folder, 0o500)
assert refused("2")
assert refused("2")
os.chmod(folder, 0o700)
store("3")
all_there(*expected, "3")
close()
all_there(*expected, "3")
close()
""")


@POSIX
@pytest.mark.parametrize("what", ["path", "folder"])
def test_what_becomes_read_only_while_it_is_open(what: str) -> None:
    """What is stored meanwhile, if anything is, is there; nothing else is acknowledged."""
    runs_as_somebody_else(f"""
store("1")
mode = os.stat({what}).st_mode
os.chmod({what}, 0o500)
stored = ["1", *([] if refused("2") else ["2"])]
close()
stored += [] if refused("3") else ["3"]
os.chmod({what}, mode)
all_there(*stored)
store("4")
close()
all_there(*stored, "4")
close()
""")


# Gone.


def files(path: Path) -> list[Path]:
    """The file and what SQLite keeps beside it, as far as they are there."""
    return [one for one in (path, Path(f"{path}-wal"), Path(f"{path}-shm")) if one.exists()]


@POSIX
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with what is beside it"])
def test_a_file_that_is_moved_away_and_back(path: Path, together: bool) -> None:
    """Meanwhile nothing is acknowledged; then all is there that was."""
    away = path.with_name("away")
    away.mkdir()
    with opened(path) as saver:
        store(saver, "1")
        moved = files(path) if together else [path]
        for one in moved:
            one.rename(away / one.name)
        for _ in range(2):
            with pytest.raises(StorageError, match="was removed or replaced while it was open"):
                store(saver, "2")
        assert not path.exists()
        for one in moved:
            (away / one.name).rename(one)
        store(saver, "3")
        check(saver)
        assert contents(saver) == {"t": held("1", "3")}
    assert whole(path) == {"t": held("1", "3")}


@POSIX
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with what is beside it"])
def test_a_file_that_is_removed(path: Path, together: bool) -> None:
    """Every call says so, until the saver is closed or set up again: then there is a new one."""
    with opened(path) as saver:
        for begin_anew in (saver.setup, lambda: anyio.run(saver._shared.store.close)):
            store(saver, "1")
            for one in files(path) if together else [path]:
                one.unlink()
            for _ in range(2):
                with pytest.raises(StorageError, match="was removed or replaced while it was open"):
                    store(saver, "2")
            begin_anew()
            store(saver, "3")
            check(saver)
            assert contents(saver) == {"t": held("3")}
            saver.delete_thread("t")


@POSIX
@pytest.mark.parametrize("begin_anew", [False, True])
def test_a_file_that_is_replaced(path: Path, begin_anew: bool) -> None:
    """The new one is left alone; it is never mixed with what was there before."""
    other, kept = path.with_name("other.db"), path.with_name("kept.db")
    with opened(other) as saver:
        for number in range(100):
            store(saver, f"{number:03}", "other")
    expected = whole(other)
    replacing = other.read_bytes()
    with opened(path) as saver:
        for number in range(100):
            store(saver, f"{number:03}")
        os.link(path, kept)
        other.replace(path)
        for _ in range(2):
            with pytest.raises(StorageError, match="was removed or replaced while it was open"):
                store(saver, "100")
        assert path.read_bytes() == replacing
        if begin_anew:
            saver.setup()
            assert contents(saver) == expected
            store(saver, "100", "other")
            expected["other"] |= held("100")
            assert contents(saver) == expected
        else:
            kept.replace(path)
            store(saver, "101")
            expected = {"t": held(*(f"{number:03}" for number in range(100)), "101")}
            assert contents(saver) == expected
        check(saver)
    assert whole(path) == expected


@POSIX
def test_a_file_that_is_replaced_before_a_close(path: Path) -> None:
    """Closing does not write what was in the old one to the new one."""
    other = path.with_name("other.db")
    with opened(other) as saver:
        store(saver, "1", "other")
    with opened(path) as saver:
        store(saver, "1")
        other.replace(path)
    assert whole(path) == {"other": held("1")}


# Damaged.

VALUE = "It was a dark and stormy night. " * 40


def fill(path: Path) -> Contents:
    """Make a file of some hundred pages; return what it holds."""
    with opened(path) as saver:
        for number in range(40):
            for step in range(5):
                store(saver, f"{step}", f"thread {number:02}", f"{number} {step} {VALUE}")
        return contents(saver)


def damage_header(content: bytearray) -> None:
    """What says that it is a database."""
    content[:16] = b"x" * 16


def damage_page_size(content: bytearray) -> None:
    """The first page, after its mark."""
    content[16:4096] = b"\xff" * 4080


def damage_middle(content: bytearray) -> None:
    """Every page but the first and the last ones."""
    content[8192:-8192] = b"\xff" * (len(content) - 16384)


def damage_middle_with_zeros(content: bytearray) -> None:
    """Likewise, as a disk does that has lost them."""
    content[8192:-8192] = bytes(len(content) - 16384)


def cut_off_half(content: bytearray) -> None:
    """A copy that was not finished."""
    del content[len(content) // 2 :]


def cut_within_a_page(content: bytearray) -> None:
    """Likewise."""
    del content[len(content) // 2 + 1000 :]


DAMAGES = [damage_header, damage_page_size, damage_middle, damage_middle_with_zeros, cut_off_half, cut_within_a_page]


def clear_errors(saver: AsyncSaver, expected: Contents) -> list[AsyncSaverError]:
    """Read, list, write and delete everything; what is not right is an error of ours."""
    errors: list[AsyncSaverError] = []

    def attempt(work: Callable[[], object]) -> object:
        try:
            return work()
        except AsyncSaverError as exc:
            errors.append(exc)
            return None

    for thread_id, there in expected.items():
        latest = attempt(lambda: saver.get_tuple(config(thread_id)))  # noqa: B023
        if latest is not None:
            assert latest.checkpoint["channel_values"] == there[latest.checkpoint["id"]][0]
    for thread_id, found in (attempt(lambda: contents(saver)) or {}).items():
        for checkpoint_id, values in found.items():
            assert values == expected[thread_id][checkpoint_id]
    for thread_id in list(expected)[:5]:
        attempt(lambda: store(saver, "5", thread_id, VALUE))  # noqa: B023
        attempt(lambda: saver.prune([thread_id]))  # noqa: B023
        attempt(lambda: saver.delete_thread(thread_id))  # noqa: B023
    assert all(str(one) and VALUE[:20] not in str(one) for one in errors)
    return errors


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(path: Path, damage: Callable[[bytearray], None]) -> None:
    """What cannot be read is an error, and never a wrong value; with a backup in its place, the same saver goes on."""
    expected = fill(path)
    backup = path.read_bytes()
    assert len(backup) > 100_000
    damaged = bytearray(backup)
    damage(damaged)
    path.write_bytes(damaged)
    saver = AsyncSaver(store=SQLiteStore(path))
    errors = clear_errors(saver, expected)
    assert any(isinstance(one, StorageError) for one in errors)
    for one in errors:
        if isinstance(one, StorageError):
            assert any(word in str(one) for word in ("damaged", "not an SQLite database")), one
    with pytest.raises((AssertionError, StorageError)):
        check(saver)
    anyio.run(saver._shared.store.close)
    for one in files(path):
        one.unlink()
    path.write_bytes(backup)
    store(saver, "5", "thread 00")
    expected["thread 00"] |= held("5")
    check(saver)
    assert contents(saver) == expected
    anyio.run(saver._shared.store.close)


def test_a_file_that_is_damaged_while_it_is_open(path: Path) -> None:
    """Likewise; what has not been read yet is an error."""
    expected = fill(path)
    backup = path.read_bytes()
    saver = AsyncSaver(store=SQLiteStore(path))
    assert saver.count() == 40
    damaged = bytearray(backup)
    damage_middle(damaged)
    with path.open("r+b") as file:
        file.write(damaged)
    errors = clear_errors(saver, expected)
    assert any(isinstance(one, StorageError) and "damaged" in str(one) for one in errors)
    with pytest.raises((AssertionError, StorageError)):
        check(saver)
    anyio.run(saver._shared.store.close)
    for one in files(path):
        one.unlink()
    path.write_bytes(backup)
    assert contents(saver) == expected
    check(saver)
    anyio.run(saver._shared.store.close)


# Locked.

# Holds the file's write lock, as another process's transaction does, until it is told to let go.
HOLDER = """
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
say("locked")
hear()
connection.execute("ROLLBACK")
say("free")
hear()
connection.close()
"""


@pytest.mark.anyio
@pytest.mark.parametrize("calls", [1, 50])
async def test_a_file_that_is_locked_for_too_long(path: Path, calls: int) -> None:
    """Those who write wait for so long and get an error; reading goes on. When it is free again, so does writing."""
    saver = AsyncSaver(store=SQLiteStore(path, timeout=0.3))
    await put(saver, "0")
    errors = []

    async def fail(number: int) -> None:
        write = put(saver, f"{number}", thread_id=f"{number}") if number % 2 else saver.adelete_thread(f"{number}")
        with pytest.raises(StorageBusyError, match="another process") as caught:
            await write
        errors.append(caught.value)

    with Script(HOLDER, path) as holder:
        assert holder.hear() == "locked"
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for number in range(1, calls + 1):
                tasks.start_soon(fail, number)
            found = await saver.aget_tuple(config())
        # Those who came while the first one waited wait as long after it.
        assert 0.25 < time.monotonic() - began < 5
        assert found is not None
        assert len({id(one) for one in errors}) == calls  # each has one of its own
        assert all(isinstance(one, TimeoutError) and "agents.db" in str(one) for one in errors)
        holder.tell("let go")
        assert holder.hear() == "free"
        await put(saver, "1")
        holder.tell("end")
        holder.end()
    check(saver)
    assert await saver.acount() == 1
    await saver._shared.store.close()
    assert whole(path)["t"].keys() == {"0", "1"}


@pytest.mark.anyio
async def test_a_file_that_is_locked_for_a_while(path: Path) -> None:
    """Those who write wait, and hear of nothing; the event loop is free meanwhile."""
    saver = AsyncSaver(store=SQLiteStore(path, timeout=30))
    await put(saver, "0", thread_id="0")
    with Script(HOLDER, path) as holder:
        assert holder.hear() == "locked"
        async with anyio.create_task_group() as tasks:
            for number in range(1, 20):
                tasks.start_soon(lambda number=number: put(saver, "0", thread_id=f"{number}"))
            for _ in range(20):
                await anyio.sleep(0.01)
            assert await saver.acount() == 1
            holder.tell("let go")
        holder.tell("end")
        assert holder.end() == ["free"]
    check(saver)
    assert await saver.acount() == 20
    await saver._shared.store.close()


def test_a_file_that_is_locked_as_it_is_opened(path: Path) -> None:
    """For too long it is an error, and the next call opens it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version")
    saver = AsyncSaver(store=SQLiteStore(path, timeout=0.2))
    with Script(HOLDER, path) as holder:
        assert holder.hear() == "locked"
        for call in (saver.setup, lambda: store(saver, "0")):
            with pytest.raises(StorageBusyError, match="another process"):
                call()
        holder.tell("let go")
        assert holder.hear() == "free"
        store(saver, "1")
        holder.tell("end")
        holder.end()
    check(saver)
    anyio.run(saver._shared.store.close)
    assert whole(path) == {"t": held("1")}
