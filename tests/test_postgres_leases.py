"""Defects of leases in PostgreSQL that were found: a test for each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after

from async_saver import Retention, SessionLostError
from async_saver.records import Lease, Listing
from async_saver.testing import _all, _blob, _record, _write
from tests.postgres import THROUGH, server

pytest.importorskip("psycopg")

from async_saver.stores import postgres_keeper
from async_saver.stores.postgres import PostgresStore
from async_saver.stores.postgres_leases import Release

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


@contextmanager
def looking(database: str) -> Iterator[Any]:
    """A connection to the server itself, which commits each statement."""
    from psycopg import connect

    with connect(server().over_socket(database.rpartition("/")[2]), autocommit=True) as connection:
        yield connection


async def given(store: PostgresStore, thread_id: str = "t", **more: Any) -> Lease:
    """A lease."""
    lease = await store.acquire(thread_id, "test", **more)
    assert lease is not None
    return lease


async def until(condition: Callable[[], object]) -> None:
    """Return once something is so."""
    with fail_after(20):
        while not condition():  # noqa: ASYNC110  (the server, and threads, set no event of a loop)
            await anyio.sleep(0.01)


def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have leases be renewed all the time."""
    monkeypatch.setattr(postgres_keeper, "_RENEW", 0.05)
    monkeypatch.setattr(postgres_keeper, "_LOOK", 0.05)


def lasts(admin: Any, thread_id: str = "t") -> float:
    """Until when a lease lasts."""
    until = "SELECT extract(epoch FROM until)::float8 FROM async_saver_leases WHERE thread_id = %s"
    found: float = admin.execute(until, [thread_id]).fetchone()[0]
    return found


async def renewed(admin: Any, thread_id: str = "t") -> None:
    """Return once a lease has been renewed."""
    before = lasts(admin, thread_id)
    await until(lambda: lasts(admin, thread_id) > before)


async def test_what_others_store_between_two_writes_of_a_session_comes_back(database: str) -> None:
    """And not what was there before it."""
    store = PostgresStore(database)
    lease = await given(store)
    for number, leases in enumerate([(), (lease,), (), (lease,)]):
        await store.put("t", "", _record("1", None, [("c", "1")])._replace(parent_id=f"{number}"), [], leases)
        await store.put_writes("t", "", "1", [_write("task", -4, f"{number}")], leases)
    await given(store, instead_of=lease, undo=True)
    found = await store.get("t", "", "1")
    assert found is not None
    assert found.record.parent_id == "2"
    assert [write.value for write in found.writes] == [_blob("2")]
    await store.close()


async def test_what_a_limit_has_taken_is_not_undone(database: str) -> None:
    """The session of a killed process had replaced it; a rollback comes later."""
    store = PostgresStore(database)
    store.retain(Retention(max_threads=1))
    await store.put("t", "", _record("1", None, [("c", "1")]), [(("c", "1"), _blob("value"))])
    lease = await given(store)
    await store.keep_latest(["t"], [lease])
    await store.put("t", "", _record("1", "0"), [], [lease])
    with looking(database) as admin:
        admin.execute("UPDATE async_saver_leases SET until = now() - interval '1 s'")
    await store.put("another", "", _record("1"), [])
    assert await store.sweep() == 1
    await given(store, undo=True)
    assert await _all(store.list(Listing("t"))) == []
    await store.close()


async def test_a_lease_is_not_given_while_others_see_to_its_conversation(database: str) -> None:
    """Who has looked whether there is a session, and found none, goes on to take the conversation away."""
    store = PostgresStore(database)
    await store.setup()
    numbers = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with looking(database) as others, looking(database) as admin, fail_after(20):
        others.execute("BEGIN")
        others.execute("SELECT pg_advisory_xact_lock(1635148146, n) FROM generate_series(0, 4095) n")
        leases: list[Lease] = []

        async def come() -> None:
            leases.append(await given(store))

        async with create_task_group() as tasks:
            tasks.start_soon(come)
            await until(lambda: admin.execute(numbers).fetchone()[0])
            assert not leases
            others.execute("COMMIT")
    assert leases
    await store.close()


async def test_the_same_fence_on_two_conversations_is_two_leases(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a database that was restored, where transactions have smaller numbers than the fences in it."""
    soon(monkeypatch)
    store = PostgresStore(database)
    for thread_id in ("t", "u"):
        await store.release(await given(store, thread_id))
    with looking(database) as admin:
        admin.execute("UPDATE async_saver_leases SET fence = 2000000000")
        lease, other = await given(store), await given(store, "u")
        assert lease.fence == other.fence == 2_000_000_001
        for one in (lease, other):
            await renewed(admin, one.thread_id)
        # What the session adds and others name stays, whatever its fence is.
        await store.put("t", "", _record("1", None, [("c", "1")]), [(("c", "1"), _blob("value"))], [lease])
        await store.put("t", "", _record("2", None, [("c", "1")]), [])
        await given(store, instead_of=lease, undo=True)
        found = await store.get("t", "", None)
        assert found is not None
        assert [*found.values] == [("c", _blob("value"))]
        assert await store.release(other)
    await store.close()


async def test_a_lease_in_use_is_renewed_after_close(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a store that is used again connects again."""
    soon(monkeypatch)
    store = PostgresStore(database)
    lease = await given(store)
    await store.close()
    with looking(database) as admin:
        await store.put("t", "", _record("1"), [], [lease])
        await renewed(admin)
    await store.close()


async def test_a_keeper_that_could_not_begin_begins_again(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There were no descriptors left for a moment."""
    soon(monkeypatch)
    store, seen = PostgresStore(database), list[object]()
    with monkeypatch.context() as patched:
        patched.setattr("threading.excepthook", seen.append)
        patched.setattr(postgres_keeper, "socketpair", lambda: (_ for _ in ()).throw(OSError(24, "no descriptors")))
        lease = await given(store)
        await until(lambda: seen)
    with looking(database) as admin:
        other = await given(store, "u")
        await renewed(admin)
    assert await store.release(lease)
    assert await store.release(other)
    await store.close()


@pytest.mark.skipif(THROUGH == "pgbouncer", reason="a pooler's connections have no search path of their own")
async def test_what_a_pools_configure_sets_a_keeper_does_without(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own connection does not find the tables; then those of the pool do."""
    soon(monkeypatch)
    with looking(database) as admin:
        admin.execute("CREATE SCHEMA elsewhere")
        admin.execute("SET search_path TO elsewhere")

        def configure(connection: Any) -> None:
            connection.execute("SET search_path TO elsewhere")

        store = PostgresStore(database, pool_kwargs={"configure": configure})
        lease = await given(store)
        await renewed(admin)
        assert await store.release(lease)
        await store.close()


async def test_the_lease_of_a_holder_that_is_gone_runs_out(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody has collected what refers to it."""
    soon(monkeypatch)

    class Holder:
        gone = False

        def __call__(self, by: str) -> None:
            """Nobody asks."""

        def is_gone(self) -> bool:
            return self.gone

    store, holder = PostgresStore(database), Holder()
    lease, other = await given(store, on_interrupt=holder), await given(store, "u", on_interrupt=Holder())
    with looking(database) as admin:
        await renewed(admin)
        holder.gone = True
        for _ in range(2):  # what was under way has ended then
            await renewed(admin, "u")
        seen = lasts(admin)
        for _ in range(2):
            await renewed(admin, "u")
        assert lasts(admin) == seen
    assert await store.release(lease)
    assert await store.release(other)
    await store.close()


@pytest.mark.parametrize("deletes", [False, True])
async def test_a_release_whose_answer_was_lost_has_taken_effect(database: str, deletes: bool) -> None:
    """The second try finds what the first has done."""
    store = PostgresStore(database)
    lease = await given(store)
    release = Release(store._engine.server, lease, delete=deletes)
    with store._engine.server.transaction() as cursor:
        assert release(cursor)
        assert release(cursor)
        assert not Release(store._engine.server, lease, delete=deletes)(cursor)
    await store.close()


async def test_what_is_written_with_a_lease_that_was_forgotten_is_refused(database: str) -> None:
    """It ended a day ago, and nobody knows whether another one came after."""
    store = PostgresStore(database)
    lease = await given(store)
    await store.release(lease)
    with looking(database) as admin:
        admin.execute("DELETE FROM async_saver_leases")
    for write in (
        store.put("t", "", _record("1"), [], [lease]),
        store.put_writes("t", "", "1", [_write("task", 0, "w")], [lease]),
        store.delete(["t"], [lease]),
    ):
        with pytest.raises(SessionLostError):
            await write
    assert await store.count() == 0
    await store.close()


async def test_a_refused_write_leaves_what_is_known_of_runs(database: str) -> None:
    """Though it brings one of no run for one that is there."""
    store = PostgresStore(database)
    await store.put_writes("t", "", "1", [_write("task", -4, "w", run="run")])
    lost = await given(store)
    await given(store, instead_of=lost)
    with pytest.raises(SessionLostError):
        await store.put_writes("t", "", "1", [_write("task", -4, "other")], [lost])
    assert await store.run_threads(["run"]) == ["t"]
    await store.close()
