"""Sessions across event loops and worker threads, and from sync code."""

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from async_saver import (
    AsyncSaver,
    SessionError,
    SessionInterruptedError,
    SessionLostError,
    Store,
    ThreadBusyError,
)
from async_saver import session as session_module
from tests.build import checkpoint, config, ids, put
from tests.stores import NewStore, contents
from tests.test_sessions import enter_and_leave, nothing_is_left, until
from tests.workers import LOOPS, on_loop, together

KINDS = [*range(len(LOOPS)), "sync"]
"""What runs a session: an event loop by its number, or sync code."""


def waiting(saver: AsyncSaver) -> int:
    """How many sessions wait for conversation t."""
    line = saver._shared.sessions._lines.get("t")
    return 0 if line is None else len(line.pressing) + len(line.waiting)


def store(saver: AsyncSaver, checkpoint_id: str) -> None:
    """Put a checkpoint from sync code."""
    saver.put(config(), checkpoint(checkpoint_id, {"c": 1}), {}, {"c": checkpoint_id})


class Meeting:
    """A holder and a newcomer on one conversation, each with an event loop or a worker thread of its own."""

    def __init__(self, saver: AsyncSaver, strategy: Any, timeout: float | None = None) -> None:
        self.saver = saver
        store(self.saver, "0")
        self.before = contents(saver)
        self.options: dict[str, Any] = {"multitask_strategy": strategy, "timeout": timeout}
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.log: list[str] = []
        self.found: list[str] = []
        self.error: BaseException | None = None

    def hold(self, kind: Any) -> None:
        """Be the holder, until it may go on or is interrupted; then store once more."""
        try:
            if kind == "sync":
                self._hold_sync()
            else:
                on_loop(kind, self._hold)
        except (SessionInterruptedError, SessionLostError) as exc:
            self.error = exc

    async def _hold(self) -> None:
        async with self.saver.session("t"):
            await put(self.saver, "1")
            self.inside.set()
            try:
                await until(self.go_on.is_set)
            finally:
                with anyio.CancelScope(shield=True):
                    await put(self.saver, "2")
                    self.log.append("holder ends")

    def _hold_sync(self) -> None:
        with self.saver.session("t"):
            store(self.saver, "1")
            self.inside.set()
            assert self.go_on.wait(30)
            self.log.append("holder ends")
            store(self.saver, "2")

    def come(self, kind: Any) -> None:
        """Be the newcomer."""
        assert self.inside.wait(30)
        if kind == "sync":
            with self.saver.session("t", **self.options):
                self._look(ids(self.saver.list(config())))
        else:
            on_loop(kind, self._come)
        self.go_on.set()

    async def _come(self) -> None:
        async with self.saver.session("t", **self.options):
            self._look([one.checkpoint["id"] async for one in self.saver.alist(config())])

    def _look(self, found: list[str]) -> None:
        self.log.append("newcomer")
        self.found = found

    def let_go_when_awaited(self) -> None:
        """Let the holder go on as soon as the newcomer waits for it."""
        end = time.monotonic() + 30
        while not waiting(self.saver):
            assert time.monotonic() < end
            time.sleep(0.001)
        self.go_on.set()

    def take_place(self, holder: Any, newcomer: Any, *others: Callable[[], None]) -> None:
        """Run both at once."""
        together(partial(self.hold, holder), partial(self.come, newcomer), *others)
        assert nothing_is_left(self.saver)


@pytest.mark.parametrize("newcomer", KINDS)
@pytest.mark.parametrize("holder", KINDS)
def test_enqueue_across_loops_and_threads(saver: AsyncSaver, holder: Any, newcomer: Any) -> None:
    """The newcomer begins when the holder has left, wherever the two run."""
    meeting = Meeting(saver, "enqueue", 30)
    meeting.take_place(holder, newcomer, meeting.let_go_when_awaited)
    assert meeting.log == ["holder ends", "newcomer"]
    assert meeting.found == ["2", "1", "0"]
    assert meeting.error is None


@pytest.mark.parametrize("newcomer", KINDS)
@pytest.mark.parametrize("holder", KINDS)
def test_reject_across_loops_and_threads(saver: AsyncSaver, holder: Any, newcomer: Any) -> None:
    """The newcomer gets an error that says who holds the conversation; the holder notices nothing."""
    meeting = Meeting(saver, "reject")

    def come() -> None:
        with pytest.raises(ThreadBusyError, match=r"by (the (asyncio|trio) task|sync code in the worker thread) '"):
            meeting.come(newcomer)
        meeting.go_on.set()

    together(partial(meeting.hold, holder), come)
    assert (meeting.log, meeting.error) == (["holder ends"], None)
    assert nothing_is_left(meeting.saver)


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
@pytest.mark.parametrize("newcomer", KINDS)
@pytest.mark.parametrize("holder", KINDS)
def test_interruptions_across_loops_and_threads(saver: AsyncSaver, holder: Any, newcomer: Any, strategy: str) -> None:
    """A task is cancelled on its own loop and unwinds first; sync code is fenced at once, and learns when it writes."""
    meeting = Meeting(saver, strategy)
    meeting.take_place(holder, newcomer)
    assert isinstance(meeting.error, SessionInterruptedError)
    if holder == "sync":
        assert meeting.log == ["newcomer", "holder ends"]
        assert isinstance(meeting.error.__cause__, SessionLostError)
    else:
        assert meeting.log == ["holder ends", "newcomer"]
    kept = ["1", "0"] if holder == "sync" else ["2", "1", "0"]
    assert meeting.found == (kept if strategy == "interrupt" else ["0"])
    if strategy == "rollback":
        assert contents(meeting.saver) == meeting.before


def test_many_loops_and_threads_are_never_two_in_one_conversation(saver: AsyncSaver) -> None:
    """Eight of each take their turns on three conversations; each turn reads what the one before has stored."""
    rounds = 25

    async def turns(number: int) -> None:
        for turn in range(rounds):
            thread_id = str((number + turn) % 3)
            async with saver.session(thread_id):
                found = await saver.aget_tuple(config(thread_id))
                count = found.checkpoint["channel_values"]["c"] if found else 0
                await anyio.lowlevel.checkpoint()
                await put(saver, f"{count:05}", {"c": count + 1}, thread_id=thread_id)

    def sync_turns(number: int) -> None:
        for turn in range(rounds):
            thread_id = str((number + turn) % 3)
            with saver.session(thread_id):
                found = saver.get_tuple(config(thread_id))
                count = found.checkpoint["channel_values"]["c"] if found else 0
                made = checkpoint(f"{count:05}", {"c": count + 1}, f"{count:05}")
                saver.put(config(thread_id), made, {}, made["channel_versions"])

    together(
        *[partial(on_loop, number, turns, number) for number in range(8)],
        *[partial(sync_turns, number) for number in range(8)],
    )
    counts = [len(list(saver.list(config(str(one))))) for one in range(3)]
    assert sum(counts) == 16 * rounds
    assert nothing_is_left(saver)


# Sync code that would hold up what it waits for.


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", ["enqueue", "interrupt", "rollback"])
async def test_sync_code_does_not_wait_for_the_loop_that_it_blocks(saver: AsyncSaver, strategy: Any) -> None:
    """Neither for a holder there nor for one that waits there before it; it gets its error at once."""
    inside, go_on, free = anyio.Event(), anyio.Event(), threading.Event()

    async def hold() -> None:
        async with saver.session("t"):
            inside.set()
            await go_on.wait()

    def hold_elsewhere() -> None:
        with saver.session("t"):
            held.set()
            assert free.wait(30)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await inside.wait()
        with pytest.raises(ThreadBusyError, match="could not go on; use `async with`"):
            saver.session("t", multitask_strategy=strategy).__enter__()
        go_on.set()
    if strategy != "enqueue":
        return
    held, inside = threading.Event(), anyio.Event()
    worker = threading.Thread(target=hold_elsewhere)
    worker.start()
    assert held.wait(30)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await until(lambda: waiting(saver) == 1)
        with pytest.raises(ThreadBusyError, match="one before this, runs in this worker thread"):
            saver.session("t").__enter__()
        free.set()
    worker.join()
    assert nothing_is_left(saver)


def test_sync_code_does_not_wait_for_itself(saver: AsyncSaver) -> None:
    """Where it does not belong to the session that its own worker thread holds."""

    def enter() -> None:
        with saver.session("t"):
            pytest.fail("two are in")

    with saver.session("t"):
        enter_joined = saver.session("t")
        with enter_joined:
            assert enter_joined.fence
        with pytest.raises(ThreadBusyError, match="runs in this worker thread"):
            Context().run(enter)
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_sync_sessions_in_coroutines(saver: AsyncSaver) -> None:
    """They block the loop for a moment each; what the body awaits belongs to them."""
    with saver.session("t", ephemeral=True) as session:
        assert session.config == config(ns=None)
        await put(saver, "1")
        async with saver.session("t") as joined:
            assert joined.fence == session.fence
        assert saver.is_busy("t")
    assert await saver.acount() == 0
    assert nothing_is_left(saver)


def test_a_sync_session_is_left_where_it_was_entered(saver: AsyncSaver) -> None:
    """Else there is an error, and the conversation is free all the same."""
    session = saver.session("t")
    together(session.__enter__)
    with pytest.raises(SessionError, match="left by another task or worker thread"):
        session.__exit__(None, None, None)
    with saver.session("t", timeout=0):
        pass


# Interrupts.


def interrupt_the_entry(saver: AsyncSaver) -> None:
    """Enter a session that will not be let in, and be interrupted."""
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt), saver.session("t"):
            pytest.fail("it is in")
    finally:
        signal.signal(signal.SIGALRM, former)


def test_an_interrupted_wait_leaves_no_trace(saver: AsyncSaver) -> None:
    """Ctrl-C while sync code waits for its turn; the holder notices nothing, and the next one is let in."""
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with saver.session("t"):
            inside.set()
            assert go_on.wait(30)

    worker = threading.Thread(target=hold)
    worker.start()
    assert inside.wait(30)
    interrupt_the_entry(saver)
    assert waiting(saver) == 0
    go_on.set()
    worker.join()
    with saver.session("t", timeout=0):
        pass
    assert nothing_is_left(saver)


def test_a_lease_that_comes_late_is_given_back(new_store: NewStore) -> None:
    """The interrupt comes while the store gives it, and the store gives it all the same."""
    taking, taken, gave_back = threading.Event(), threading.Event(), threading.Event()

    class Slow(Store):
        async def acquire(self, *args: Any, **kwargs: Any) -> Any:
            taking.set()
            with anyio.CancelScope(shield=True):
                while not taken.is_set():
                    try:
                        await asyncio.sleep(0.001)
                    except asyncio.CancelledError:
                        continue
            return await super().acquire(*args, **kwargs)

        async def release(self, *args: Any, **kwargs: Any) -> bool:
            try:
                return await super().release(*args, **kwargs)
            finally:
                gave_back.set()

    saver = AsyncSaver(store=new_store(Slow))
    interrupt_the_entry(saver)
    assert taking.is_set()
    taken.set()
    assert gave_back.wait(30)
    with saver.session("t", timeout=30):
        pass
    assert nothing_is_left(saver)


# Holders that are gone.


def _enter_and_end(kind: str, saver: AsyncSaver) -> None:
    """Enter a session and end without leaving it."""
    if kind == "thread":
        together(saver.session("t").__enter__)
        return
    session = saver.session("t")
    loop = asyncio.new_event_loop()
    if kind == "task":
        loop.run_until_complete(session.__aenter__())
        KEPT.append(loop)
    else:
        task = loop.create_task(_stay(session))
        while not session._open:
            loop.run_until_complete(asyncio.sleep(0))
        KEPT.append(task)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()


async def _stay(session: Any) -> None:
    async with session:
        await asyncio.Event().wait()


KEPT: list[Any] = []


@pytest.mark.parametrize("kind", ["thread", "task", "loop"])
@pytest.mark.parametrize("newcomer", KINDS)
def test_a_holder_that_is_gone_is_noticed_by_the_next_one(saver: AsyncSaver, kind: str, newcomer: Any) -> None:
    """Its thread or task has ended, or its loop is closed: it will never leave."""
    _enter_and_end(kind, saver)
    assert not saver.is_busy("t")

    async def come() -> None:
        async with saver.session("t", multitask_strategy="reject"):
            await put(saver, "1")

    def sync_come() -> None:
        with saver.session("t", multitask_strategy="reject"):
            store(saver, "1")

    together(sync_come if newcomer == "sync" else partial(on_loop, newcomer, come))
    while KEPT:
        if isinstance(one := KEPT.pop(), asyncio.AbstractEventLoop):
            one.close()
        del one
    gc.collect()
    assert nothing_is_left(saver)


@pytest.mark.parametrize("newcomer", KINDS)
def test_a_holder_that_is_gone_is_noticed_by_those_who_wait(
    saver: AsyncSaver, monkeypatch: pytest.MonkeyPatch, newcomer: Any
) -> None:
    """The first in line looks for it now and then."""
    monkeypatch.setattr(session_module, "_LOOK", 0.01)
    inside, log = threading.Event(), list[str]()

    def hold_and_end() -> None:
        saver.session("t").__enter__()
        inside.set()
        end = time.monotonic() + 30
        while not waiting(saver):
            assert time.monotonic() < end
            time.sleep(0.001)
        log.append("ends")

    async def come() -> None:
        async with saver.session("t", timeout=30):
            log.append("newcomer")

    def sync_come() -> None:
        assert inside.wait(30)
        if newcomer == "sync":
            with saver.session("t", timeout=30):
                log.append("newcomer")
        else:
            on_loop(newcomer, come)

    together(hold_and_end, sync_come)
    assert log == ["ends", "newcomer"]
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_a_lease_that_another_process_holds_is_waited_for(saver: AsyncSaver) -> None:
    """No session here holds the conversation, and the store gives no lease: whoever has it is elsewhere."""
    store = saver._shared.store
    lease = await store.acquire("t", "another process")
    assert lease is not None
    assert await saver.ais_busy("t")
    for options in ({"multitask_strategy": "reject"}, {"timeout": 0.01}):
        with pytest.raises(ThreadBusyError, match="by another process"):
            await saver.session("t", **options).__aenter__()  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter_and_leave, saver.session("t", timeout=30))
        await until(lambda: saver._shared.sessions.is_busy("t") is True)
        assert await store.release(lease)
    lease = await store.acquire("t", "another process")
    assert lease is not None
    async with saver.session("t", multitask_strategy="interrupt", timeout=0.01):
        assert not await store.renew(lease)
    session = saver.session("t")
    with pytest.raises(SessionLostError, match="was lost before it ended"):
        async with session:
            await store.acquire("t", "another process", instead_of=session.lease)
