"""Sessions in processes that share a database: real ones, of which some are killed, stopped, or cut off."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from async_saver import AsyncSaver, SessionError, SessionInterruptedError
from tests.build import config, listed, put
from tests.postgres import THROUGH, direct, needed, new_database, role
from tests.postgres_worker import Peer, Peers, peers, turning
from tests.sqlite_worker import Script
from tests.workers import FORKS_WITH_THREADS, together

if not find_spec("psycopg"):
    pytest.skip("there is no psycopg", allow_module_level=True)

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg_pool import ConnectionPool

from async_saver.stores import postgres_keeper
from async_saver.stores.postgres import PostgresStore
from async_saver.stores.postgres_keeper import Keeper

LOOPS = ["asyncio", "trio"]
HEARING = pytest.mark.parametrize("deaf", [False, True], ids=["told", "asks"])
"""Whether processes are told by the server what happens, or have to ask."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """One database for all: each test has a conversation of its own."""
    with new_database(needed()) as url:
        yield url


@pytest.fixture(scope="module")
def all_peers(database: str) -> Iterator[Peers]:
    """What makes processes."""
    with peers() as made:
        yield made


class World:
    """A conversation, the processes that are about it, and what the database has of it.

    Attributes:
        url: Of the database.
        thread_id: The conversation.
    """

    _numbers = count()

    def __init__(self, url: str, made: Peers, connection: "psycopg.Connection[Any]") -> None:
        self.url = url
        self.thread_id = f"conversation {next(self._numbers)}"
        self._connection = connection
        self._made = made

    def db(self, statement: str, *values: object) -> "psycopg.Cursor[Any]":
        """Run a statement."""
        return self._connection.execute(statement.encode(), values or None)

    def peer(self, *, deaf: bool = False, **patched: float) -> Peer:
        """Start a process that uses the database, with other figures in its keeper."""
        peer = self._made.new(self.url, deaf=deaf)
        if patched:
            peer.do("patch", **patched)
        return peer

    def enter(self, peer: Peer, **options: Any) -> str:
        """Have a process enter a session on the conversation; return its name when it has."""
        return peer.enter(self.thread_id, **options)

    def come(self, peer: Peer, *, waits: bool = False, **options: Any) -> str:
        """Have a process come for a session; return its name at once, or when it has its place in the queue."""
        before = len(self.queue())
        job = peer.come(self.thread_id, **options)
        if waits:
            until(lambda: len(self.queue()) > before)
        return job

    def queue(self) -> list[float]:
        """For how many seconds each place in the queue is kept."""
        rows = self.db(
            "SELECT extract(epoch FROM until - clock_timestamp())::float8 FROM async_saver_waiting"
            " WHERE thread_id = %s AND until > clock_timestamp()",
            self.thread_id,
        )
        return [seconds for (seconds,) in rows]

    def lasts(self, thread_id: str | None = None) -> float:
        """Until when the lease lasts, or that of another conversation."""
        row = self.db(
            "SELECT extract(epoch FROM until)::float8 FROM async_saver_leases WHERE thread_id = %s",
            thread_id or self.thread_id,
        ).fetchone()
        assert row is not None
        return float(row[0])

    def let_time_pass(self) -> None:
        """Let it be later than the lease lasts that nobody has renewed, and than places in the queue are kept."""
        for table in ("leases", "waiting"):
            self.db(
                f"UPDATE async_saver_{table} SET until = clock_timestamp() - interval '1 s' WHERE thread_id = %s",
                self.thread_id,
            )

    def was_renewed(self) -> bool:
        """Tell whether the lease was renewed since it was given, as it is when the keeper's thread begins."""
        row = self.db(
            "SELECT until - since > interval '30.001 s' FROM async_saver_leases WHERE thread_id = %s", self.thread_id
        ).fetchone()
        return row is not None and row[0]

    @contextmanager
    def in_the_way(self, checkpoint_id: str) -> Iterator[None]:
        """Have who puts a checkpoint wait in the midst of that, when it has looked at its lease."""
        with psycopg.connect(direct(self.url)) as blocking:
            blocking.execute(
                "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)"
                " VALUES (%s, '', %s, '{}', '{}')",
                (self.thread_id, checkpoint_id),
            )
            yield
            blocking.rollback()

    def state(self) -> list[tuple[str, int]]:
        """The checkpoints that are there, and how many writes each has."""
        rows = self.db(
            """
            SELECT c.checkpoint_id, (SELECT count(*) FROM checkpoint_writes w
                WHERE w.thread_id = c.thread_id AND w.checkpoint_id = c.checkpoint_id)
            FROM checkpoints c WHERE c.thread_id = %s ORDER BY 1
            """,
            self.thread_id,
        )
        return rows.fetchall()

    def rows(self) -> list[Any]:
        """Everything that is stored of it."""
        return [
            self.db(f"SELECT * FROM {table} WHERE thread_id = %s ORDER BY 1, 2, 3, 4", self.thread_id).fetchall()
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
        ]


@pytest.fixture
def world(database: str, all_peers: Peers) -> Iterator[World]:
    """A new conversation; in the end its processes are gone."""
    with psycopg.connect(direct(database), autocommit=True) as connection:
        try:
            yield World(database, all_peers, connection)
        finally:
            all_peers.end_all()


def until(is_so: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


# Exclusion.


def check_turns(url: str, folder: Path, names: list[str], turns: int, conversations: int) -> None:
    """Look that every turn is there with its answer, and that the fences of each conversation grow."""
    with AsyncSaver.from_conn_string(url) as saver:
        graph, found = turning(saver), []
        for number in range(conversations):
            said = graph.get_state(config(f"t{number}", ns=None)).values["turns"]
            assert [f"{turn}!" for turn in said[::2]] == said[1::2]
            found += said[::2]
            fences = [int(line.split()[0]) for line in (folder / f"t{number}").read_text().splitlines()]
            assert len(fences) == len(said[::2])
            assert fences == sorted({*fences})
    assert sorted(found) == sorted(f"{name} {number}" for name in names for number in range(turns))


def test_no_turn_is_lost_and_no_two_are_at_once(world: World, tmp_path: Path) -> None:
    """Four processes, each with several tasks, run graphs on the same conversations."""
    names = ["a", "b", "c", "d"]
    running = [(world.peer(), name) for name in names]
    options = {"turns": 25, "conversations": 5, "folder": str(tmp_path), "at_once": 3}
    jobs = [(peer, peer.tell("turns", name=name, **options)) for peer, name in running]
    for peer, job in jobs:
        peer.hear(job, "done", seconds=60)
    check_turns(world.url, tmp_path, names, 25, 5)


# A holder that is killed.


def test_what_a_killed_process_held_is_free_when_its_lease_has_run_out(world: World) -> None:
    """And not before; what it had acknowledged is there."""
    holder, other = world.peer(), world.peer(_LOOK=0.1)
    session = world.enter(holder)
    holder.order(session, "put", at="1")
    holder.order(session, "put_writes", at="1")
    holder.kill()
    lasts = world.lasts() - time.time()
    assert 20 < lasts <= 30
    job = world.come(other, waits=True)
    assert other.hears_nothing(job, 0.5)
    world.let_time_pass()
    other.hear(job, "entered")
    assert world.state() == [("1", 1)]


@pytest.mark.parametrize("waits", [True, False])
def test_rollback_undoes_what_a_killed_process_has_stored(world: World, waits: bool) -> None:
    """Whether it waits for the lease to run out, or comes after that."""
    holder, other = world.peer(), world.peer(_LOOK=0.1)
    before = begin(world, holder)
    holder.kill()
    if waits:
        job = world.come(other, waits=True, multitask_strategy="rollback")
        world.let_time_pass()
    else:
        world.let_time_pass()
        job = world.come(other, multitask_strategy="rollback")
    other.hear(job, "entered")
    assert world.rows() == before


def begin(world: World, peer: Peer) -> list[Any]:
    """Have a process store something, and then in a session replace, delete and add; return what was there before."""
    session = world.enter(peer)
    peer.order(session, "put", at="1")
    peer.order(session, "put_writes", at="1")
    peer.order(session, "put", at="2")
    peer.leave(session)
    before = world.rows()
    session = world.enter(peer)
    for order, checkpoint_id in (("put", "1"), ("delete_for_runs", "2"), ("put", "3"), ("put_writes", "3")):
        assert peer.order(session, order, at=checkpoint_id)["said"] == "done"
    assert world.rows() != before
    return before


@pytest.mark.parametrize("table", ["async_saver_runs", "checkpoints", "checkpoint_blobs", "async_saver_waiting"])
def test_who_is_killed_while_it_undoes_has_undone_nothing(world: World, table: str) -> None:
    """At whatever statement of it; the next one undoes it all."""
    holder, other, third = world.peer(), world.peer(), world.peer()
    before = begin(world, holder)
    after = world.rows()
    holder.kill()
    world.let_time_pass()
    with psycopg.connect(direct(world.url)) as blocking:
        blocking.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE".encode())
        world.come(other, multitask_strategy="rollback")
        until(lambda: is_blocked(world))
        other.kill()
    until(lambda: not is_blocked(world))
    assert world.rows() == after
    world.enter(third, multitask_strategy="rollback")
    assert world.rows() == before


def is_blocked(world: World) -> bool:
    """Tell whether a transaction waits for another."""
    row = world.db("SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted"
                   " AND a.datname = current_database()").fetchone()  # fmt: skip
    return row is not None and row[0] > 0


def test_who_is_killed_after_it_has_undone_leaves_it_undone(world: World) -> None:
    """And there is nothing more to undo for the next one."""
    holder, other, third = world.peer(), world.peer(), world.peer()
    before = begin(world, holder)
    holder.kill()
    world.let_time_pass()
    world.enter(other, multitask_strategy="rollback")
    other.kill()
    world.let_time_pass()
    world.enter(third, multitask_strategy="rollback")
    assert world.rows() == before


# A holder that lives.


def test_a_lease_is_renewed_while_the_event_loop_is_blocked(world: World) -> None:
    """By a worker thread that waits for no loop."""
    holder = world.peer(_RENEW=0.1, _LOOK=0.1)
    session = world.enter(holder)
    holder.tell("tell", session, order="block", seconds=20)
    world.let_time_pass()
    for _ in range(3):
        lasts = world.lasts()
        until(lambda lasts=lasts: world.lasts() > lasts, 10)
    assert world.lasts() > time.time() + 20
    assert holder.hears_nothing(session)


def test_leases_are_renewed_while_what_is_put_with_one_of_them_waits(world: World) -> None:
    """For somebody else's transaction; all are held when that is over."""
    holder = world.peer(_RENEW=0.1, _LOOK=0.1)
    session, other = world.enter(holder), f"{world.thread_id}'s neighbour"
    holder.enter(other)
    with world.in_the_way("1"):
        holder.tell("tell", session, order="put", at="1")
        until(lambda: is_blocked(world))
        for _ in range(3):
            lasts = world.lasts(other)
            until(lambda lasts=lasts: world.lasts(other) > lasts, 5)
        assert holder.hears_nothing(session)
    assert holder.hear(session, "done", "failed")["said"] == "done"
    lasts = world.lasts()
    until(lambda: world.lasts() > lasts, 5)
    assert holder.leave(session)["said"] == "left"


# Interrupting.


@HEARING
@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_who_awaits_something_for_ever_is_interrupted_from_another_process(
    world: World, strategy: str, kind: str, deaf: bool
) -> None:
    """Soon; what it stores while it unwinds is there for the next one, or undone with the rest."""
    if kind == "trio":
        pytest.importorskip("trio")
    holder, other = world.peer(deaf=deaf), world.peer(deaf=deaf)
    session = world.enter(holder, kind=kind, unwinding="2")
    holder.order(session, "put", at="1")
    holder.order(session, "wait")
    job = world.come(other, multitask_strategy=strategy)
    failed = holder.hear(session, "failed", seconds=5)
    assert failed["error"] == "SessionInterruptedError"
    assert f"{strategy!r} by the asyncio task" in failed["message"]
    assert f"process {other.pid}" in failed["message"]
    other.hear(job, "entered", seconds=5)
    assert world.state() == ([("1", 0), ("2", 0)] if strategy == "interrupt" else [])


@HEARING
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
@pytest.mark.parametrize("writes", [True, False])
def test_sync_code_learns_at_its_next_write_or_at_its_exit(
    world: World, strategy: str, writes: bool, deaf: bool
) -> None:
    """That another process has taken its place, after the time that it was given."""
    holder, other = world.peer(deaf=deaf), world.peer(deaf=deaf)
    session = world.enter(holder, kind="sync")
    holder.order(session, "put", at="1")
    job = world.come(other, multitask_strategy=strategy, timeout=0.2)
    other.hear(job, "entered", seconds=10)
    holder.tell("tell", session, order="put" if writes else "leave", at="2")
    assert holder.hear(session, "failed")["error"] in ("SessionInterruptedError", "SessionLostError")
    assert world.state() == ([("1", 0)] if strategy == "interrupt" else [])


def test_an_interrupter_that_is_killed_holds_nobody_up_for_long(world: World) -> None:
    """For no longer than its place is kept, which is 5 seconds; then those have their turns who wait."""
    holder, dead, other = world.peer(), world.peer(), world.peer(_LOOK=0.1)
    session = world.enter(holder, kind="sync")
    world.come(dead, waits=True, multitask_strategy="interrupt")
    dead.kill()
    [kept] = world.queue()
    assert kept <= 5
    holder.leave(session)
    job = world.come(other, waits=True)
    assert other.hears_nothing(job, 0.2)
    world.db("UPDATE async_saver_waiting SET until = clock_timestamp() WHERE thread_id = %s AND ticket < 0",
             world.thread_id)  # fmt: skip
    other.hear(job, "entered", seconds=5)


# Waiting.


@HEARING
def test_who_waits_enters_soon_after_the_other_process_has_left(world: World, deaf: bool) -> None:
    """Told, far sooner than once a second, when it looks; else as soon as it asks."""
    holder, other = world.peer(deaf=deaf), world.peer(deaf=deaf)
    latencies = []
    for _ in range(3):
        session = world.enter(holder)
        job = world.come(other, waits=True)
        assert other.hears_nothing(job, 0.1)
        left = holder.leave(session)["at"]
        latencies.append(other.hear(job, "entered", seconds=5)["at"] - left)
        other.leave(job)
    assert min(latencies) < 0.6


def test_processes_take_turns(world: World) -> None:
    """Of two that want a conversation again and again neither has it a second time while the other waits."""
    holder, other = world.peer(), world.peer()
    session, waiting = world.enter(holder), world.come(other, waits=True)
    for _ in range(6):
        holder.tell("tell", session, order="leave")
        again = world.come(holder)
        other.hear(waiting, "entered")
        holder.hear(session, "left")
        until(lambda: len(world.queue()) == 1)
        assert holder.hears_nothing(again)
        holder, other, session, waiting = other, holder, waiting, again


def test_those_who_wait_come_in_the_order_in_which_they_came(world: World) -> None:
    """Whichever processes they are from."""
    holder, *others = (world.peer() for _ in range(4))
    session = world.enter(holder)
    jobs = [(peer, world.come(peer, waits=True)) for peer in others]
    holder.leave(session)
    fences = []
    for peer, job in jobs:
        fences.append(peer.hear(job, "entered")["fence"])
        peer.leave(job)
    assert fences == sorted(fences)


def test_reject_names_the_holder_in_another_process_at_once(world: World) -> None:
    """And leaves no place in the queue."""
    holder, other = world.peer(), world.peer()
    world.enter(holder)
    failed = other.hear(world.come(other, multitask_strategy="reject"), "failed", seconds=5)
    assert failed["error"] == "ThreadBusyError"
    assert f"of process {holder.pid}" in failed["message"]
    assert world.queue() == []


def test_a_timeout_that_runs_out_leaves_no_place_in_the_queue(world: World) -> None:
    """It ends in an error when it should; the others are not held up."""
    holder, other, third = world.peer(), world.peer(), world.peer()
    session = world.enter(holder)
    begun = time.time()
    failed = other.hear(world.come(other, timeout=0.5), "failed")
    assert failed["error"] == "ThreadBusyError"
    assert 0.5 <= failed["at"] - begun < 3
    until(lambda: world.queue() == [], 2)
    holder.leave(session)
    third.hear(world.come(third), "entered", seconds=2)


# Fences.


def test_who_has_lost_its_lease_while_it_was_stopped_stores_nothing_more(world: World) -> None:
    """By whatever call that writes."""
    holder, other = world.peer(), world.peer()
    source = world.enter(other)
    other.order(source, "put", at="1")
    other.leave(source)
    source_id, world.thread_id = world.thread_id, f"{world.thread_id}'s copy"
    session = world.enter(holder)
    assert holder.order(session, "copy", source=source_id)["said"] == "done"
    assert holder.order(session, "put", at="2")["said"] == "done"
    holder.send(signal.SIGSTOP)
    world.let_time_pass()
    taken = world.enter(other)
    other.leave(taken)
    before = world.rows()
    holder.send(signal.SIGCONT)
    orders: list[tuple[str, dict[str, str]]] = [
        ("put", {"at": "3"}),
        ("put_writes", {"at": "2"}),
        ("delete", {}),
        ("prune", {}),
        ("copy", {"source": source_id}),
        ("delete_for_runs", {"at": "2"}),
    ]
    for order, values in orders:
        assert holder.order(session, order, **values).get("error") == "SessionLostError", order
    assert world.rows() == before
    assert holder.leave(session)["error"] == "SessionLostError"


def test_nobody_takes_over_from_who_has_begun_to_store(world: World) -> None:
    """Though its lease has run out: the next one enters when that is stored."""
    former, other = world.peer(), world.peer()
    session = world.enter(former)
    until(world.was_renewed)  # else it would be, in a moment
    world.let_time_pass()
    with world.in_the_way("1"):
        former.tell("tell", session, order="put", at="1")
        until(lambda: is_blocked(world))
        job = world.come(other)
        assert other.hears_nothing(job, 1)
    assert former.hear(session, "done", "failed")["said"] == "done"
    other.hear(job, "entered")
    assert world.state() == [("1", 0)]


def test_what_is_stored_at_the_moment_of_the_take_over_is_before_it_or_refused(world: World) -> None:
    """The next one sees at its beginning all that the former one ever stores, and all that was acknowledged."""
    former, other = world.peer(_RENEW=1000), world.peer(_LOOK=0.02)
    for number in range(8):
        session = world.enter(former)
        if number == 0:
            until(world.was_renewed)  # else it would be, in the midst of it
        ids = [f"{number} {step:05}" for step in range(5_000)]
        job = world.come(other, waits=True)
        former.tell("tell", session, order="race", ids=ids)
        former.hear(session, "racing")
        world.let_time_pass()
        other.hear(job, "entered")
        other.order(job, "put", at=f"{number} next")
        at_first = world.state()
        raced = former.hear(session, "raced")
        assert raced["error"] == "SessionLostError"
        assert world.state() == at_first
        assert [one for one, _ in at_first if one in ids] == raced["stored"]
        former.leave(session)
        other.leave(job)


# Rights.


@pytest.fixture
def empty() -> Iterator[str]:
    """A database of one's own."""
    with new_database(needed()) as url:
        yield url


@pytest.mark.asyncio
@pytest.mark.parametrize("schema", [None, "Agents"])
@pytest.mark.parametrize("has", ["official tables", "no rights to leases", "all but one"])
async def test_a_role_that_cannot_have_sessions_has_all_else_and_is_told_what_to_run(
    empty: str, has: str, schema: str | None
) -> None:
    """The statements of the error are as the owner has to run them; then there are sessions, after `asetup`."""
    with psycopg.connect(direct(empty), autocommit=True) as owner:
        if schema is not None:
            owner.execute(f'CREATE SCHEMA "{schema}"'.encode())
            owner.execute(f'SET search_path TO "{schema}"'.encode())
        if has == "official tables":
            with PostgresSaver.from_conn_string(
                f"{direct(empty)}?options=-c%20search_path%3D%22{schema or 'public'}%22"
            ) as it:
                it.setup()
        else:
            async with AsyncSaver(store=PostgresStore(empty, schema=schema)):
                pass
        with role(empty, f'"{schema or "public"}"') as url:
            name = urlsplit(url).username
            if has == "no rights to leases":
                owner.execute(f"REVOKE ALL ON async_saver_undo FROM {name}".encode())
            elif has == "all but one":
                owner.execute("DROP TABLE async_saver_waiting")
            async with AsyncSaver(store=PostgresStore(url, schema=schema)) as saver:
                await use_without_sessions(saver)
                with pytest.raises(SessionError, match="lacks the tables that sessions need") as caught:
                    await saver.session("t").__aenter__()
                statements = str(caught.value).partition("or have that run: ")[2].split("; ")
                owner.execute("RESET search_path")
                for statement in statements:
                    owner.execute(statement.encode())
                await saver.asetup()
                async with saver.session("t") as session:
                    await put(saver, "1")
                async with saver.session("t", multitask_strategy="reject") as another:
                    assert another.fence > session.fence


async def use_without_sessions(saver: AsyncSaver) -> None:
    """Do everything that needs no session."""
    await put(saver, "1", {"c": 1}, metadata={"run_id": "r"})
    await saver.aput_writes(config("t", "1"), [("c", 2)], "task")
    await put(saver, "2", {"c": 2}, parent="1")
    await saver.acopy_thread("t", "u")
    assert await listed(saver, config("u")) == ["2", "1"]
    await saver.adelete_for_runs(["r"])
    await saver.aprune(["u"])
    assert await listed(saver, config("u")) == ["2"]
    assert sorted([one async for one in saver.athread_ids()]) == ["t", "u"]
    await saver.adelete_thread("u")
    assert await saver.acount() == 1


# The keeper.


def connections(world: World) -> int:
    """How many others are connected to the database, or behind a pooler keep a connection for it."""
    row = world.db(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def cut_off(world: World) -> None:
    """End all connections to the database, but that which looks."""
    world.db(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def listening(world: World) -> int:
    """How many connections to the database are keepers' that hear what is told."""
    row = world.db(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND query ~ 'LISTEN|async_saver_leases' AND query !~ 'INSERT|DELETE|checkpoints'"
    ).fetchone()
    assert row is not None
    return int(row[0])


@HEARING
def test_who_is_cut_off_keeps_its_lease_and_is_heard(world: World, deaf: bool) -> None:
    """Leases are renewed by new connections, those who wait have their turns, and interruptions come through."""
    holder, waiter, other = world.peer(deaf=deaf, _RENEW=0.1, _LOOK=0.1), world.peer(deaf=deaf), world.peer(deaf=deaf)
    session = world.enter(holder, unwinding="1")
    waiting = world.come(waiter, waits=True)
    cut_off(world)
    lasts = world.lasts()
    until(lambda: world.lasts() > lasts)
    assert waiter.hears_nothing(waiting)
    holder.order(session, "wait")
    job = world.come(other, multitask_strategy="interrupt")
    assert holder.hear(session, "failed", seconds=10)["error"] == "SessionInterruptedError"
    other.hear(job, "entered", seconds=10)
    assert world.state() == [("1", 0)]
    cut_off(world)
    other.leave(job)
    waiter.hear(waiting, "entered", seconds=10)


@pytest.mark.parametrize("end", ["close", "drop"])
def test_nothing_is_left_of_a_store_that_had_sessions(world: World, end: str) -> None:
    """No thread, and no connection, soon after it was closed, or dropped."""
    peer = world.peer()
    before = connections(world)
    assert before > 0
    session = world.enter(peer)
    assert "async_saver PostgreSQL leases" in peer.do("threads")["names"]
    peer.leave(session)
    peer.do(end)
    until(lambda: not peer.do("threads")["names"], 5)
    if THROUGH != "pgbouncer":
        until(lambda: connections(world) == 0, 5)


def test_the_thread_ends_that_has_nothing_to_keep(world: World) -> None:
    """And with it its connection; it is there again for the next session."""
    peer = world.peer(_IDLE=0.3, _LOOK=0.1)
    for _ in range(2):
        session = world.enter(peer)
        until(lambda: listening(world) or THROUGH)
        assert "async_saver PostgreSQL leases" in peer.do("threads")["names"]
        peer.leave(session)
        until(lambda: "async_saver PostgreSQL leases" not in peer.do("threads")["names"])
        until(lambda: THROUGH == "pgbouncer" or not listening(world))


def test_a_thread_that_was_to_end_and_goes_on_rests_between_its_looks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a session begins while the store is closed by somebody else."""
    looks, has_ended, gate, at_gate = count(), Keeper._has_ended, Event(), Event()

    def wait_and_end(keeper: Keeper, until: float) -> bool:
        next(looks)
        at_gate.set()
        assert gate.wait(30)
        return has_ended(keeper, until)

    monkeypatch.setattr(Keeper, "_has_ended", wait_and_end)
    with AsyncSaver(store=PostgresStore(world.url)) as saver:
        store: Any = saver._shared.store
        with saver.session(world.thread_id) as session:
            assert at_gate.wait(30)
            store._engine.keeper.leave()
            store._engine.keeper.add(session.lease)
            gate.set()
            before = next(looks)
            assert not Event().wait(0.5)
            assert next(looks) - before < 10


FORK = """
import psycopg
from tests.workers import together

def come():
    # In a thread of its own, whose context has no session.
    try:
        with saver.session("t", multitask_strategy="reject"):
            return "entered"
    except ThreadBusyError:
        return "busy"

saver = AsyncSaver.from_conn_string(sys.argv[1])
keeper, children = saver._shared.store._engine.keeper, {}
with saver.session("t"):
    saver.put(config("t"), checkpoint("1"), {}, {})
    while keeper._cursor is None:
        time.sleep(0.01)
    pid = keeper._cursor.connection.info.backend_pid
    for how in ("comes", "exits", "goes on"):
        children[how] = os.fork()
        if children[how] == 0:
            saver.put(config("u"), checkpoint("1"), {}, {})
            if how == "comes":
                assert together(come) == ["busy"]
                os._exit(0)
            if how == "exits":
                sys.exit(0)
            break
    else:
        for child in children.values():
            assert os.waitpid(child, 0)[1] == 0
        with psycopg.connect(sys.argv[1]) as looking:
            there = looking.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
        assert there == (1,) or not keeper._hears  # a pooler has others
        assert together(come) == ["busy"]
        saver.put(config("t"), checkpoint("2"), {}, {})
        say("parent")
anyio.run(saver._shared.store.close)
"""


def test_a_fork_leaves_its_parents_session_alone(database: str) -> None:
    """The child neither has the lease, nor takes nor ends it, nor the connection by which it is renewed."""
    with Script(FORK, database, options=("-W", "error", "-W", FORKS_WITH_THREADS)) as script:
        assert script.end() == ["parent"]


EXIT = """
saver = AsyncSaver.from_conn_string(sys.argv[1])
session = saver.session("held at the end").__enter__()
say("entered")
"""


def test_a_process_that_holds_a_session_ends_promptly(database: str) -> None:
    """Where it neither leaves it nor closes the saver."""
    with Script(EXIT, database) as script:
        assert script.hear() == "entered"
        begun = time.monotonic()
        script.process.wait(20)
        assert time.monotonic() - begun < 4


# Pools of the user's own, and too few connections.


@pytest.mark.parametrize("size", [1, 2])
def test_sessions_do_with_a_small_pool_of_the_users_own(empty: str, size: int) -> None:
    """As the keeper connects by itself, and nobody holds a connection while it waits."""
    kwargs = {"autocommit": True, "prepare_threshold": None if THROUGH else 5}
    with ExitStack() as stack:
        savers = []
        for _ in range(2):
            pool = stack.enter_context(ConnectionPool(empty, min_size=1, max_size=size, kwargs=kwargs))
            savers.append(stack.enter_context(AsyncSaver(store=PostgresStore(pool))))

        async def run(number: int) -> None:
            for turn in range(5):
                async with savers[number % 2].session("t"):
                    await put(savers[number % 2], f"{turn} {number}")

        together(*[lambda number=number: anyio.run(run, number) for number in range(6)])  # type: ignore[misc]
        assert len([*savers[0].list(config("t"))]) == 30


def test_where_the_keeper_cannot_connect_it_uses_the_stores_connections(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are renewed, those who wait have their turns, and interruptions are heard, though each has only one."""
    monkeypatch.setattr(postgres_keeper, "_RENEW", 0.1)
    monkeypatch.setattr(postgres_keeper, "_LOOK", 0.1)
    with ExitStack() as stack:
        stack.enter_context(AsyncSaver(store=PostgresStore(empty)))
        owner = stack.enter_context(psycopg.connect(direct(empty), autocommit=True))
        with role(empty) as url, ExitStack() as used:
            savers = [used.enter_context(AsyncSaver(store=PostgresStore(url, pool_size=1))) for _ in range(2)]
            owner.execute(f"ALTER ROLE {urlsplit(url).username} CONNECTION LIMIT 2".encode())
            log: list[str] = []

            async def hold() -> None:
                async with savers[0].session("t"):
                    await put(savers[0], "1")
                    entered.set()
                    log.append("held")
                    await anyio.sleep_forever()

            def interrupted() -> None:
                with pytest.raises(SessionInterruptedError):
                    anyio.run(hold)
                log.append("interrupted")

            def interrupt() -> None:
                assert entered.wait(30)
                asked = "SELECT until FROM async_saver_leases"
                first = owner.execute(asked).fetchone()
                until(lambda: owner.execute(asked).fetchone() != first, 10)
                with savers[1].session("t", multitask_strategy="interrupt"):
                    log.append("entered")

            entered = Event()
            together(interrupted, interrupt)
            assert sorted(log) == ["entered", "held", "interrupted"]
            stores: list[Any] = [saver._shared.store for saver in savers]
            assert THROUGH or all(store._engine.keeper._cursor is None for store in stores)
