"""What went wrong with sessions once: a moment that nobody had thought of each, and then all of them at random."""

import asyncio
import gc
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import partial
from itertools import count
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after
from anyio.lowlevel import checkpoint as yield_to_loop

from async_saver import (
    AsyncSaver,
    MemoryStore,
    PortalError,
    Session,
    SessionInterruptedError,
    SessionLostError,
    Store,
    ThreadBusyError,
)
from async_saver import session as session_module
from async_saver.bridge import bridge
from async_saver.guard import guard
from tests.build import checkpoint, config, listed, put
from tests.stores import NewStore, settled
from tests.test_forks import runs
from tests.test_interrupts import cut_at
from tests.test_sessions import asyncio_is_running, enter_and_leave, held, nothing_is_left, shielded, until
from tests.test_sessions_across import waiting
from tests.workers import LOOPS, on_loop, together


def enter_elsewhere(saver: AsyncSaver, **options: Any) -> None:
    """Be in a session for a moment, in a worker thread that belongs to no other session. Its caller is blocked."""

    def enter() -> None:
        with saver.session("t", **options):
            pass

    together(enter, seconds=20)


def take_its_place(saver: AsyncSaver) -> None:
    """Fence whoever holds the conversation, at once, and be gone."""
    enter_elsewhere(saver, multitask_strategy="interrupt", timeout=0)


async def is_free(saver: AsyncSaver) -> bool:
    """Tell whether nobody holds the conversation, neither here nor in the store, and the next session is let in."""
    await settled(saver._shared.store)
    if await saver.ais_busy("t") or await saver._shared.store.lease("t") is not None:
        return False
    await enter_and_leave(saver.session("t", multitask_strategy="reject"))
    return nothing_is_left(saver)


# Whose turn it is, and is not any more.


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", ["enqueue", "interrupt", "rollback"])
async def test_a_waiter_that_is_fenced_before_it_has_seen_its_turn_is_told(saver: AsyncSaver, strategy: Any) -> None:
    """It gets its error, and does not wait for a turn that it has had."""
    told: list[str] = []

    async def wait() -> None:
        with pytest.raises(SessionInterruptedError, match="'interrupt' by sync code") as caught:
            async with saver.session("t", multitask_strategy=strategy):
                pytest.fail("it has been fenced")
        told.append(str(caught.value))  # without its traceback, which would hold what it has seen

    with fail_after(10):
        async with create_task_group() as tasks, held(saver) as holder:
            holder.after = partial(take_its_place, saver)  # in the step in which the waiter's turn has come
            tasks.start_soon(wait)
            await until(lambda: waiting(saver) == 1 or holder.left)
    assert len(told) == 1
    assert await is_free(saver)


@pytest.mark.anyio
async def test_the_error_says_since_when_one_holds_that_has_not_seen_its_turn_yet(saver: AsyncSaver) -> None:
    """Since then, and not since 1970."""
    messages: list[str] = []

    def come() -> None:
        with pytest.raises(ThreadBusyError) as caught:
            saver.session("t", multitask_strategy="reject").__enter__()
        messages.append(str(caught.value))

    async with create_task_group() as tasks, held(saver) as holder:
        holder.after = come
        tasks.start_soon(enter_and_leave, saver.session("t"))
        await until(lambda: waiting(saver) == 1)
    [found] = re.findall(r"since 2\d{3}-.* \((\d+\.\d) seconds\) by ", messages[0])
    assert float(found) < 60


def test_a_holder_may_leave_while_another_one_is_told_of_it(saver: AsyncSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error then names what it has seen."""
    busy_error = Session._busy_error

    def told(self: Session, holder: Any, why: str) -> ThreadBusyError:
        seen = iter([holder._runner])  # at a second look it has left
        runner = property(lambda one: next(seen, None) if one is holder else vars(one)["_runner"])
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_runner", runner, raising=False)
            return busy_error(self, holder, why)

    monkeypatch.setattr(Session, "_busy_error", told)
    with saver.session("t"), pytest.raises(ThreadBusyError, match="by sync code in the worker thread"):
        enter_elsewhere(saver, multitask_strategy="reject")
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_a_fenced_session_does_not_take_the_place_of_its_successor(new_store: NewStore) -> None:
    """While it waits for another process it is fenced; the lease that it finds after that is none to be replaced."""
    looking, look, ended = anyio.Event(), anyio.Event(), anyio.Event()

    class Slow(Store):
        async def lease(self, thread_id: str) -> Any:
            if not looking.is_set():
                looking.set()
                await look.wait()
            return await super().lease(thread_id)

    async def come() -> None:
        with pytest.raises(SessionInterruptedError):
            async with slow.session("t", multitask_strategy="interrupt", timeout=0):
                pytest.fail("it has been fenced")
        ended.set()

    store = new_store(Slow)
    slow = AsyncSaver(store=store)
    elsewhere = await store.acquire("t", "another process")
    assert elsewhere is not None
    with fail_after(10):
        async with create_task_group() as tasks:
            tasks.start_soon(come)
            await looking.wait()
            async with slow.session("t", multitask_strategy="interrupt", timeout=0) as successor:
                look.set()
                await ended.wait()
                assert successor.lease is not None
                assert await store.renew(successor.lease)
                await put(slow, "1")
    assert await listed(slow, config()) == ["1"]
    assert await is_free(slow)


@pytest.mark.asyncio
async def test_a_native_cancellation_of_a_waiter_is_heeded_whenever_it_comes(
    saver: AsyncSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the turn in which the waiter was to look whether its holder is still there."""
    for name in ("_LOOK", "_LOOK_FAR"):
        monkeypatch.setattr(session_module, name, 1e-9)  # in every turn of the loop
    async with held(saver):
        for number in range(100):
            waiter = asyncio.create_task(enter_and_leave(saver.session("t")))
            for _ in range(1 + number % 10):
                await asyncio.sleep(0)
            waiter.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
            assert waiter.cancelled()
            assert waiting(saver) == 0
    assert await is_free(saver)


# Who gives up.


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_a_lease_whose_receiver_gives_up_is_given_back(saver: AsyncSaver, strategy: Any) -> None:
    """Its holder has handed it on, and knows of it no more."""
    scope = CancelScope()

    async def give_up() -> None:
        scope.cancel()

    async with held(saver, give_up) as holder:
        with scope:
            async with saver.session("t", multitask_strategy=strategy):
                pytest.fail("it has been cancelled")
    assert isinstance(holder.error, SessionInterruptedError)
    assert await is_free(saver)


class LongUndo(Store):
    """It is so long that who waits for it gives up."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scope = CancelScope()

    async def acquire(self, *args: Any, undo: bool = False, **kwargs: Any) -> Any:
        """See `Store.acquire`."""
        if undo:
            self.scope.cancel()
            await anyio.sleep_forever()
        return await super().acquire(*args, **kwargs)


@pytest.mark.anyio
async def test_a_lease_whose_receiver_gives_up_in_the_midst_of_an_undo_is_given_back(new_store: NewStore) -> None:
    """Whether that was to take a moment or a minute."""
    store = new_store(LongUndo)
    saver = AsyncSaver(store=store)
    async with held(saver) as holder:
        with store.scope:
            async with saver.session("t", multitask_strategy="rollback"):
                pytest.fail("it has been cancelled")
    assert isinstance(holder.error, SessionInterruptedError)
    assert await is_free(saver)


@pytest.mark.anyio
async def test_a_holder_past_its_grace_is_refused_although_its_fencer_gave_up(new_store: NewStore) -> None:
    """It has been interrupted, and whoever comes next need not reckon with it."""
    store, refused, given_up = new_store(LongUndo), list[str](), anyio.Event()
    saver = AsyncSaver(store=store)

    async def will_not_end() -> None:
        await given_up.wait()
        with pytest.raises(SessionLostError) as caught:
            await put(saver, "9")
        refused.append(str(caught.value))

    async with held(saver, shielded(will_not_end)) as holder:
        with store.scope:
            async with saver.session("t", multitask_strategy="rollback", timeout=0):
                pytest.fail("it has been cancelled")
        given_up.set()
        await until(lambda: holder.left)
    assert len(refused) == 1
    assert isinstance(holder.error, SessionInterruptedError)
    assert await listed(saver, config()) == []
    assert await is_free(saver)


@pytest.mark.anyio
async def test_a_lease_that_could_not_be_given_back_is_taken_over_by_the_next_session(new_store: NewStore) -> None:
    """The store failed as its session gave it back, and nothing is left of that session."""
    failures = [OSError("the store is away")]

    class Failing(Store):
        async def release(self, *args: Any, **kwargs: Any) -> bool:
            if failures:
                raise failures.pop()
            return await super().release(*args, **kwargs)

    saver = AsyncSaver(store=new_store(Failing))
    session = saver.session("t")
    with pytest.raises(OSError, match="away"):
        await enter_and_leave(session)
    lease = session.lease
    del session
    gc.collect()
    found = await saver._shared.store.lease("t")
    assert found is not None
    assert lease is not None
    assert found.fence == lease.fence
    await enter_and_leave(saver.session("t", multitask_strategy="reject"))
    assert await is_free(saver)


@pytest.mark.anyio
async def test_an_interrupted_entry_that_is_cancelled_while_it_gives_back_ends_as_others_do(
    new_store: NewStore,
) -> None:
    """What was to cancel its body ends with it, before anything that waits; trio would find it left open."""
    acquiring, acquire, scope = anyio.Event(), anyio.Event(), CancelScope()

    class Slow(Store):
        async def acquire(self, *args: Any, **kwargs: Any) -> Any:
            if not acquiring.is_set():
                acquiring.set()
                await acquire.wait()
            return await super().acquire(*args, **kwargs)

        async def release(self, *args: Any, **kwargs: Any) -> bool:
            found = await super().release(*args, **kwargs)
            if not scope.cancel_called:
                scope.cancel()
                await yield_to_loop()
            return found

    saver = AsyncSaver(store=new_store(Slow))

    async def enter() -> None:
        with CancelScope(), scope:
            with suppress(SessionInterruptedError):
                async with saver.session("t"):
                    pytest.fail("it has been interrupted")
            await yield_to_loop()
        await yield_to_loop()

    with fail_after(10):
        async with create_task_group() as tasks:
            tasks.start_soon(enter)
            await acquiring.wait()
            tasks.start_soon(enter_and_leave, saver.session("t", multitask_strategy="interrupt"))
            await until(lambda: waiting(saver) == 1)
            acquire.set()
    assert scope.cancelled_caught
    assert await is_free(saver)


@pytest.mark.anyio
@pytest.mark.parametrize("gives_up", [False, True])
async def test_an_ephemeral_holder_that_is_rolled_back_deletes_its_conversation(
    saver: AsyncSaver, gives_up: bool
) -> None:
    """Itself, as it leaves, whether or not the one who asked for it is still there."""
    scope, found = CancelScope(), list[list[str]]()

    async def store() -> None:
        await put(saver, "1")

    async def unwind() -> None:
        if gives_up:
            scope.cancel()

    await put(saver, "0")
    async with held(saver, unwind, store, ephemeral=True) as holder:
        with scope:
            async with saver.session("t", multitask_strategy="rollback"):
                found.append(await listed(saver, config()))
    assert isinstance(holder.error, SessionInterruptedError)
    assert found == ([] if gives_up else [[]])
    assert await saver.acount() == 0
    assert await is_free(saver)


@pytest.mark.anyio
async def test_an_interruption_that_meets_the_cancellation_of_a_scope_stays_in_that(saver: AsyncSaver) -> None:
    """Whichever of the two Python keeps: the scope around the session catches it, and nothing beyond is cancelled."""
    if asyncio_is_running() and sys.version_info < (3, 11):
        pytest.skip("tasks do not count cancellations: the session sees its own one only")
    session, scope, inside, after = saver.session("t"), CancelScope(), anyio.Event(), list[bool]()

    async def hold() -> None:
        with scope:
            async with session:
                inside.set()
                while True:
                    await yield_to_loop()
        await yield_to_loop()
        after.append(scope.cancelled_caught)

    async with create_task_group() as tasks:
        tasks.start_soon(hold)
        await inside.wait()
        scope.cancel()
        with guard:
            session._interrupt("'interrupt' by this test")
        session.cancel()  # in the same step
    assert after == [True]
    assert await is_free(saver)


# Leaving.


@pytest.mark.parametrize("when", ["before the call", "before the work", "after the work", "after the call"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_while_sync_code_leaves_does_not_keep_the_conversation(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch, when: str, times: int
) -> None:
    """However often it comes, it goes on, and its worker thread, which holds nothing, too."""
    interrupts, call = [KeyboardInterrupt("mine") for _ in range(times)], bridge.call

    def interrupt(moment: str) -> None:
        if moment == when and interrupts:
            raise interrupts.pop()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        interrupt("before the call")
        found = call(*args, **kwargs)
        interrupt("after the call")
        return found

    class Interrupted(Store):
        async def release(self, *args: Any, **kwargs: Any) -> bool:
            interrupt("before the work")
            found = await super().release(*args, **kwargs)
            interrupt("after the work")
            return found

    saver = AsyncSaver(store=new_store(Interrupted))
    session = saver.session("t")
    session.__enter__()
    monkeypatch.setattr(bridge, "call", interrupted)
    with pytest.raises(KeyboardInterrupt, match="mine"):
        session.__exit__(None, None, None)
    monkeypatch.undo()
    interrupts.clear()
    assert session_module.in_session() == ()
    del session
    enter_elsewhere(saver, multitask_strategy="reject")
    assert not saver.is_busy("t")
    assert nothing_is_left(saver)


@pytest.mark.parametrize("where", ["on the portal", "in the guard"])
def test_a_finalizer_that_may_not_use_the_portal_leaves_all_the_same(
    saver: AsyncSaver, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The collector closes a generator that is in a session: its error is reported, and the conversation is free."""
    unraisable = list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append(type(found.exc_value)))

    def drop() -> None:
        box: list[Any] = []

        def generate() -> Iterator[list[Any]]:
            with saver.session("t"):
                yield box  # a cycle

        box.append(generate())
        next(box[0])

    async def collect() -> None:
        gc.collect()

    def collect_when_awaited() -> None:
        while not waiting(saver):
            time.sleep(0.001)
        if where == "on the portal":
            bridge.call(collect)
        else:
            with guard:
                gc.collect()

    def wait() -> None:
        with saver.session("t", timeout=5):  # its line outlives the generator's session
            pass

    gc.collect()
    gc.disable()
    try:
        Context().run(drop)
        assert saver.is_busy("t")
        with ThreadPoolExecutor() as others:
            waits = others.submit(wait)
            collect_when_awaited()
            waits.result()
    finally:
        gc.enable()
    assert unraisable == [PortalError]
    assert nothing_is_left(saver)


async def _in_the_order_of_entry(saver: AsyncSaver) -> None:
    first, second = saver.session("t"), saver.session("u")
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    async with saver.session("u", timeout=0) as joined:
        assert joined.fence == second.fence
    enter_elsewhere(saver, multitask_strategy="reject")
    await put(saver, "1", thread_id="t")  # outside of all sessions on it
    await put(saver, "1", thread_id="u")
    await second.__aexit__(None, None, None)


@pytest.mark.anyio
async def test_sessions_may_be_left_in_the_order_in_which_they_were_entered(saver: AsyncSaver) -> None:
    """Each is left when it is left: no other one is thereby left, or entered again."""
    await _in_the_order_of_entry(saver)
    assert session_module.in_session() == ()
    enter_elsewhere(saver)
    await put(saver, "2")
    assert await is_free(saver)


def test_sync_sessions_may_be_left_in_the_order_in_which_they_were_entered(saver: AsyncSaver) -> None:
    """As others may."""
    first, second = saver.session("t"), saver.session("u")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with saver.session("u", multitask_strategy="reject") as joined:
        assert joined.fence == second.fence
    second.__exit__(None, None, None)
    assert session_module.in_session() == ()
    enter_elsewhere(saver)
    saver.put(config(), checkpoint("1"), {}, {})
    del first, second, joined
    assert nothing_is_left(saver)


@pytest.mark.anyio
@pytest.mark.parametrize("moment", ["entering", "body"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_a_program_comes_out_of_an_interrupted_session_as_it_is(
    new_store: NewStore, error: Any, moment: str
) -> None:
    """It is not taken for a trouble of the session's, which would hide it."""
    entering = ["entering"]

    class Ending(Store):
        async def acquire(self, *args: Any, **kwargs: Any) -> Any:
            if entering and moment == entering.pop():
                end()
            return await super().acquire(*args, **kwargs)

    def end() -> None:
        take_its_place(saver)
        raise error("mine")

    saver = AsyncSaver(store=new_store(Ending))
    with pytest.raises(error, match="mine"):
        async with saver.session("t"):
            end()
    assert await is_free(saver)


def test_what_ends_a_program_comes_out_of_an_interrupted_sync_session_as_it_is(saver: AsyncSaver) -> None:
    """Ctrl-C, in sync code that has been fenced."""

    def end(error: Any) -> None:
        with saver.session("t"):
            take_its_place(saver)
            raise error("mine")

    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error, match="mine"):
            end(error)
    assert nothing_is_left(saver)


# Who is gone, or cannot go on.


def test_a_sync_session_on_the_portal_is_refused_before_it_waits(saver: AsyncSaver) -> None:
    """It would hold up what it waits for: whoever holds the conversation needs the portal to leave."""

    async def on_the_portal() -> None:
        with pytest.raises(PortalError, match="call the async method instead"):
            saver.session("t", timeout=5).__enter__()

    with saver.session("t"):
        Context().run(bridge.call, on_the_portal)
    assert nothing_is_left(saver)


DEAD: list[Any] = []


def test_an_interrupt_in_a_look_at_the_holder_does_not_end_it() -> None:
    """Up to Python 3.12, one in the midst of `Thread.is_alive` makes that False for ever, for whom it was asked."""
    saver = AsyncSaver()
    session = saver.session("t")
    with ThreadPoolExecutor(1) as other:
        other.submit(session.__enter__).result(10)
        for number in count():
            more = cut_at(number, partial(saver._shared.sessions.is_busy, "t"))
            assert saver._shared.sessions.is_busy("t"), number
            if not more:
                break
        other.submit(session.__exit__, None, None, None).result(10)
    assert number > 5
    assert not saver.is_busy("t")


@pytest.mark.anyio
async def test_an_interrupter_that_is_gone_does_not_block_those_behind_it(saver: AsyncSaver) -> None:
    """It came first, and its loop has been closed: the next one interrupts the holder in its place."""
    newcomer_in = anyio.Event()

    def press_and_end() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(enter_and_leave(saver.session("t", multitask_strategy="interrupt")))
        DEAD.append(task)
        while not waiting(saver):
            loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()

    with fail_after(10):
        async with held(saver, shielded(newcomer_in.wait)) as holder:
            together(press_and_end)
            try:
                async with saver.session("t", multitask_strategy="interrupt", timeout=0.02):
                    assert not holder.left
                    newcomer_in.set()
                    await until(lambda: holder.left)
            finally:
                newcomer_in.set()
    assert isinstance(holder.error, SessionInterruptedError)
    DEAD.clear()
    assert await is_free(saver)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_a_fork_holds_nothing_of_what_its_parent_holds() -> None:
    """Neither tasks nor worker threads have come with it; its own are let in at once, by sync code and on any loop."""
    runs("""
import _thread
from tests.workers import together

saver = AsyncSaver()

def child():
    together(enter, seconds=20)

def enter():
    with saver.session("t", multitask_strategy="reject"):
        saver.put(config(), checkpoint("1"), {}, {})
    async def enter_again():
        async with saver.session("t", multitask_strategy="reject"):
            await put(saver, "2")
    for number in range(len(LOOPS)):
        on_loop(number, enter_again)

def fork_and_look():
    assert saver.is_busy("t")
    wait(fork(child))
    assert saver.is_busy("t")

async def task_holds():
    inside, go_on = anyio.Event(), anyio.Event()
    async def hold():
        async with saver.session("t"):
            inside.set()
            await go_on.wait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await inside.wait()
        fork_and_look()
        go_on.set()
    together(enter)

for number in range(len(LOOPS)):
    on_loop(number, task_holds)

with saver.session("t"):
    fork_and_look()
together(enter)

inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

def hold():  # in a worker thread that the threading module has not started
    with saver.session("t"):
        inside.set()
        assert go_on.wait(30)
    done.set()

_thread.start_new_thread(hold, ())
assert inside.wait(30)
fork_and_look()
go_on.set()
assert done.wait(30)
enter()
""")


# Arguments.


def test_a_store_need_not_be_hashable_and_is_no_other_that_is_equal() -> None:
    """Its sessions are those of the savers that share it, as long as it is there."""

    class Equal(MemoryStore):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

    store, number = Equal(), 0
    saver, sharing, other = AsyncSaver(store=store), AsyncSaver(store=store), AsyncSaver(store=Equal())
    with saver.session("t"):
        enter_elsewhere(other, multitask_strategy="reject")
        with pytest.raises(ThreadBusyError):
            enter_elsewhere(sharing, multitask_strategy="reject")
    assert nothing_is_left(saver)
    number = id(store)
    assert number in session_module._all
    del store, saver, sharing
    gc.collect()
    assert number not in session_module._all


@pytest.mark.anyio
@pytest.mark.parametrize("seconds", [10**400, 1e308])
@pytest.mark.parametrize("strategy", ["enqueue", "interrupt"])
async def test_a_huge_timeout_is_as_long_as_it_takes(saver: AsyncSaver, strategy: Any, seconds: float) -> None:
    """Whether or not a float can hold it."""
    options = {"multitask_strategy": strategy, "timeout": seconds}
    async with create_task_group() as tasks, held(saver) as holder:
        tasks.start_soon(enter_and_leave, saver.session("t", **options))
        await until(lambda: waiting(saver) == 1 or holder.left)
    enter_elsewhere(saver, **options)
    assert await is_free(saver)


# All of it at random.


class Crowd:
    """Sessions of all kinds on three conversations, some of which are cancelled, by whatever there is."""

    IDS = ("0", "1", "2")
    EXPECTED = (KeyError, SessionInterruptedError, ThreadBusyError)  # no `SessionLostError`: all are of one process

    def __init__(self, saver: AsyncSaver, seconds: float) -> None:
        self.saver = saver
        self.until = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.bodies: dict[str, set[Session]] = {thread_id: set() for thread_id in self.IDS}
        self.ends = Counter[str]()
        self.wrong: list[str] = []

    def session(self, draw: random.Random) -> Session:
        """Any session."""
        return self.saver.session(
            draw.choice(self.IDS),
            multitask_strategy=draw.choice((*["enqueue"] * 5, "reject", "interrupt", "interrupt", "rollback")),  # type: ignore[arg-type]
            timeout=draw.choice((None, 0, 0.001, 0.01, 0.05, 5)),
            ephemeral=draw.random() < 0.1,
        )

    @contextmanager
    def alone(self, session: Session) -> Iterator[None]:
        """See that of all who are in one conversation, all but one have been interrupted."""
        bodies = self.bodies[session.thread_id]
        with self.lock:
            if session._interrupted is None and any(other._interrupted is None for other in bodies):
                self.wrong.append("two are in")
            bodies.add(session)
        try:
            yield
        finally:
            with self.lock:
                bodies.discard(session)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Count how a session ends."""
        try:
            yield
        except self.EXPECTED as exc:
            self.ends[type(exc).__name__] += 1
        else:
            self.ends["well"] += 1

    def read(self, session: Session, found: Any) -> None:
        """See that nobody else has stored anything since the session did."""
        own = found is not None and found.checkpoint["id"] == self.id_of(session)
        if not own and session._interrupted is None:
            self.wrong.append("another one has stored")

    def id_of(self, session: Session) -> str:
        """The checkpoint that a session stores: later than all before."""
        return f"{session.fence:09}"

    async def body(self, session: Session, draw: random.Random) -> None:
        """Store, wait a moment, and read it; be a bad one now and then."""
        try:
            await put(self.saver, self.id_of(session), {"c": session.fence}, thread_id=session.thread_id)
            await (yield_to_loop() if draw.random() < 0.3 else anyio.sleep(draw.random() * 0.003))
            self.read(session, await self.saver.aget_tuple(config(session.thread_id)))
            if draw.random() < 0.1:
                raise KeyError("mine")
            if draw.random() < 0.1:
                await enter_and_leave(self.saver.session(session.thread_id))
        except anyio.get_cancelled_exc_class():
            way = draw.random()
            if way < 0.1:
                return
            if way < 0.2:
                raise KeyError("mine") from None
            if way < 0.4:
                with CancelScope(shield=True):
                    await anyio.sleep(draw.random() * 0.01)  # past many a grace
            raise

    async def turn(self, draw: random.Random) -> None:
        """Be in one session."""
        with self.ending():
            async with self.session(draw) as session:
                with self.alone(session):
                    await self.body(session, draw)

    async def uncancelled(self, draw: random.Random) -> None:
        """Nobody cancels this one but another session, and no more than that one."""
        try:
            await self.turn(draw)
            await yield_to_loop()
        except BaseException as exc:
            self.wrong.append(f"a cancellation goes beyond its session: {exc!r}")
            raise

    async def cancelled(self, draw: random.Random) -> None:
        """Cancelled by a scope, unless it ends before."""
        with anyio.move_on_after(draw.random() * 0.01):
            await self.turn(draw)

    async def cancelled_natively(self, draw: random.Random) -> None:
        """Cancelled once or twice, with no scope around it."""
        task = asyncio.create_task(self.turn(draw))
        for _ in range(draw.randrange(1, 3)):
            asyncio.get_running_loop().call_later(draw.random() * 0.01, task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def on_loop(self, number: int) -> None:
        """Let one come after the other for a while, and wait for the end of all."""
        draw = random.Random(number)
        kinds: list[Callable[[random.Random], Coroutine[Any, Any, None]]] = [self.uncancelled, self.cancelled]
        if asyncio_is_running():
            kinds.append(self.cancelled_natively)
        with fail_after(self.until - time.monotonic() + 20):
            async with create_task_group() as tasks:
                while time.monotonic() < self.until:
                    tasks.start_soon(draw.choice(kinds), random.Random(draw.random()))
                    await anyio.sleep(draw.random() * 0.003)

    def in_thread(self, number: int) -> None:
        """The same by sync code, which nobody cancels."""
        draw = random.Random(number)
        while time.monotonic() < self.until:
            with self.ending(), self.session(draw) as session, self.alone(session):
                made = checkpoint(self.id_of(session), {"c": session.fence})
                with suppress(SessionLostError):
                    self.saver.put(config(session.thread_id), made, {}, {"c": "1"})
                time.sleep(draw.random() * 0.002)
                self.read(session, self.saver.get_tuple(config(session.thread_id)))
            time.sleep(draw.random() * 0.002)


def test_many_sessions_of_all_kinds_exclude_one_another_and_end(saver: AsyncSaver) -> None:
    """On every loop and in sync code, cancelled or not: two are never in, none waits for ever, and nothing is left."""
    crowd = Crowd(saver, 3)
    together(
        *[partial(on_loop, number, crowd.on_loop, number) for number in range(len(LOOPS) + 1)],
        *[partial(crowd.in_thread, 10 + number) for number in range(2)],
    )
    assert crowd.wrong == []
    assert not any(crowd.bodies.values())
    assert min(crowd.ends[end] for end in ("well", "KeyError", "SessionInterruptedError", "ThreadBusyError")) > 0
    for thread_id in crowd.IDS:
        assert not crowd.saver.is_busy(thread_id)
        with crowd.saver.session(thread_id, multitask_strategy="reject"):
            pass
    assert nothing_is_left(crowd.saver)
