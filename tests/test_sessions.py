"""Sessions: one run at a time on a conversation. What runs, what is stored, and who gets which error."""

import asyncio
import copy
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint as yield_to_loop

from async_saver import (
    AsyncSaver,
    InvalidTypeError,
    InvalidValueError,
    MemoryStore,
    Session,
    SessionError,
    SessionInterruptedError,
    SessionLostError,
    Store,
    ThreadBusyError,
)
from tests.build import config, listed, put
from tests.stores import NewStore, contents, leased
from tests.workers import together


def nothing_is_left(saver: AsyncSaver) -> bool:
    """Tell whether nobody holds or awaits anything; if need be, what dead tasks hold is collected first."""
    return _is_nothing_left(saver) or (gc.collect() >= 0 and _is_nothing_left(saver))


def _is_nothing_left(saver: AsyncSaver) -> bool:
    return not len(saver._shared.sessions._lines) and not leased(saver)


async def until(condition: Callable[[], bool]) -> None:
    """Let the others go on until something is so. Its callbacks are no tasks that could be waited for."""
    with fail_after(10):
        while not condition():
            await yield_to_loop()


async def nothing() -> None:
    """Do nothing."""


class Holder:
    """A task in a session, whose steps the test decides."""

    def __init__(self, saver: AsyncSaver, **options: Any) -> None:
        self.session = saver.session("t", **options)
        self.inside = anyio.Event()
        self.go_on = anyio.Event()
        self.left = False
        self.error: BaseException | None = None
        self.after: Callable[[], object] = bool  # called before the next one runs

    async def run(self, body: Callable[[], Awaitable[object]], unwind: Callable[[], Awaitable[object]]) -> None:
        """Be in the session until `go_on`, or until it is interrupted; then unwind."""
        try:
            async with self.session:
                await body()
                self.inside.set()
                try:
                    await self.go_on.wait()
                finally:
                    await unwind()
        except Exception as exc:
            self.error = exc
        self.left = True
        self.after()


@asynccontextmanager
async def held(
    saver: AsyncSaver,
    unwind: Callable[[], Awaitable[object]] = nothing,
    body: Callable[[], Awaitable[object]] = nothing,
    **options: Any,
) -> AsyncIterator[Holder]:
    """A conversation that another task's session holds; in the end that task goes on."""
    holder = Holder(saver, **options)
    async with create_task_group() as tasks:
        tasks.start_soon(holder.run, body, unwind)
        await holder.inside.wait()
        yield holder
        holder.go_on.set()


def shielded(what: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    """What trio lets an interrupted task await: there, a scope cancels again and again."""

    async def run() -> None:
        with CancelScope(shield=True):
            await what()

    return run


# Strategies.


@pytest.mark.anyio
async def test_enqueue_lets_sessions_through_first_come_first_served(saver: AsyncSaver) -> None:
    """It is the default; each begins when the one before it has ended."""
    log: list[str] = []

    async def run(number: int) -> None:
        async with saver.session("t"):
            log.append(f"{number} in")
            await yield_to_loop()
            log.append(f"{number} out")

    async with create_task_group() as tasks, held(saver):
        for number in range(5):
            tasks.start_soon(run, number)
            await wait_all_tasks_blocked()
        assert log == []
    assert log == [f"{number} {way}" for number in range(5) for way in ("in", "out")]
    assert nothing_is_left(saver)


@pytest.mark.anyio
@pytest.mark.parametrize("seconds", [0, 0.02])
async def test_enqueue_waits_so_long_and_no_longer(saver: AsyncSaver, seconds: float) -> None:
    """Then it raises an error that says who holds the conversation; the holder notices nothing."""
    async with held(saver) as holder:
        with pytest.raises(ThreadBusyError, match=r"^thread_id 't' has been held since 2.* by the (asyncio|trio) task"):
            async with saver.session("t", timeout=seconds):
                pytest.fail("two are in")
        assert not holder.left
    assert holder.error is None
    async with saver.session("t", timeout=0):
        pass
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_reject_does_not_wait(saver: AsyncSaver) -> None:
    """It raises at once, and says since when and by whom; on a free conversation it goes on."""
    async with held(saver):
        with pytest.raises(ThreadBusyError, match=r"held since \d{4}-\d\d-\d\d .* task '.*' of process \d+"):
            await saver.session("t", multitask_strategy="reject").__aenter__()
    async with saver.session("t", multitask_strategy="reject"):
        pass
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_interrupt_lets_the_holder_unwind_and_keeps_what_it_stored(saver: AsyncSaver) -> None:
    """What it stores while it unwinds is kept too; the newcomer begins after that."""
    log: list[str] = []

    async def unwind() -> None:
        await yield_to_loop()
        await put(saver, "2")
        log.append("unwound")

    async with held(saver, shielded(unwind)) as holder:
        await put(saver, "1")
        async with saver.session("t", multitask_strategy="interrupt") as session:
            log.append("newcomer")
            assert await listed(saver, config()) == ["2", "1"]
            await put(saver, "3")
    assert log == ["unwound", "newcomer"]
    assert isinstance(holder.error, SessionInterruptedError)
    assert isinstance(holder.error.__cause__, anyio.get_cancelled_exc_class())
    assert "'t' was ended by another one: 'interrupt' by the" in str(holder.error)
    assert session.fence > holder.session.fence
    assert await listed(saver, config()) == ["3", "2", "1"]
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_rollback_undoes_what_the_holder_stored(saver: AsyncSaver) -> None:
    """Checkpoints, writes, values, in every namespace, added or replaced; also what it stores while it unwinds."""
    await put(saver, "1", {"c": "one"})
    await put(saver, "1", {"c": "one"}, ns="sub")
    await saver.aput_writes(config(checkpoint_id="1"), [("c", 1), ("__resume__", "first")], "task")
    await put(saver, "1", {"c": 1}, thread_id="other")
    before = contents(saver)

    async def store() -> None:
        await put(saver, "2", {"c": "two"}, parent="1")
        await put(saver, "1", {"c": "changed"}, version="1", metadata={"source": "fork"})
        await put(saver, "1", {"d": 2}, ns="sub|new")
        await saver.aput_writes(config(checkpoint_id="1"), [("c", 2), ("__resume__", "second")], "task")
        await saver.aput_writes(config(checkpoint_id="2"), [("c", 3)], "task")

    async def unwind() -> None:
        await put(saver, "3", {"c": "three"}, parent="2")

    async with held(saver, shielded(unwind), body=store) as holder:
        assert contents(saver) != before
        async with saver.session("t", multitask_strategy="rollback"):
            assert contents(saver) == before
            await put(saver, "4", {"c": "four"}, parent="1")
    assert isinstance(holder.error, SessionInterruptedError)
    assert await listed(saver, config(ns=None)) == ["4", "1", "1"]
    assert nothing_is_left(saver)


def as_async(func: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    """Sync code as a coroutine function."""

    async def call() -> object:
        return func()

    return call


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_after_its_grace_the_holder_is_fenced(saver: AsyncSaver, strategy: Any) -> None:
    """It may go on as long as it likes; the newcomer does not wait for it, and nothing that it writes is stored."""
    refused: list[BaseException] = []
    newcomer_in = anyio.Event()
    views = isinstance(saver._shared.store, MemoryStore)

    async def will_not_end() -> None:
        await newcomer_in.wait()
        for call in (
            lambda: put(saver, "9"),
            lambda: saver.aput_writes(config(checkpoint_id="1"), [("c", 1)], "task"),
            lambda: saver.adelete_thread("t"),
            lambda: saver.aprune(["t"]),
            lambda: saver.acopy_thread("u", "t"),
            lambda: saver.adelete_for_runs(["run"]),
            *([as_async(lambda: saver.storage.pop("t")), as_async(saver.storage.clear)] if views else []),
        ):
            with pytest.raises(SessionLostError, match=r"thread_id 't' \(fence \d+\) is over") as caught:
                await call()  # type: ignore[no-untyped-call]
            refused.append(caught.value)
        await put(saver, "1", thread_id="another")

    async with held(saver, shielded(will_not_end)) as holder:
        await put(saver, "0", thread_id="u")
        await put(saver, "1", run_id="run")
        async with saver.session("t", multitask_strategy=strategy, timeout=0.02):
            before = contents(saver)
            newcomer_in.set()
            await until(lambda: holder.left)
            assert len(refused) == (8 if views else 6)
            assert {**contents(saver)[0], "another": ...} == {**before[0], "another": ...}
    assert isinstance(holder.error, SessionInterruptedError)
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_whatever_comes_out_of_its_body_the_holder_sees_that_it_was_interrupted(saver: AsyncSaver) -> None:
    """Its own error is the cause."""

    async def fail() -> None:
        raise KeyError("mine")

    async with held(saver, fail) as failing, saver.session("t", multitask_strategy="interrupt"):
        pass
    assert isinstance(failing.error, SessionInterruptedError)
    assert isinstance(failing.error.__cause__, KeyError)


@pytest.mark.asyncio
async def test_on_asyncio_the_holder_gets_one_cancellation_which_is_taken_back() -> None:
    """It may await as it likes while it unwinds, swallow it even; its task is as uncancelled as it was before."""
    saver, inside, cancellations = AsyncSaver(), asyncio.Event(), list[BaseException]()

    async def hold() -> int:
        with pytest.raises(SessionInterruptedError) as caught:
            async with saver.session("t"):
                await swallow()
        assert caught.value.__cause__ is None
        await asyncio.sleep(0)
        return cancelling()

    def cancelling() -> int:
        task: Any = asyncio.current_task()
        return task.cancelling() if hasattr(task, "cancelling") else 0

    async def swallow() -> None:
        inside.set()
        for _ in range(20):
            try:
                await (asyncio.Event().wait() if not cancellations else asyncio.sleep(0))
            except asyncio.CancelledError as exc:
                cancellations.append(exc)
        await put(saver, "1")

    task = asyncio.create_task(hold())
    await inside.wait()
    async with saver.session("t", multitask_strategy="interrupt"):
        assert await listed(saver, config()) == ["1"]
    assert await task == 0
    assert len(cancellations) == 1


@pytest.mark.asyncio
@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not count cancellations")
async def test_a_cancellation_from_elsewhere_is_not_taken_for_the_interruption() -> None:
    """Who asked for it gets what they asked for, though the session was interrupted as well."""
    saver, inside = AsyncSaver(), asyncio.Event()

    async def hold() -> None:
        async with saver.session("t"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await inside.wait()
    newcomer = asyncio.create_task(enter_and_leave(saver.session("t", multitask_strategy="interrupt")))
    await until(lambda: task.cancelling() == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await newcomer
    assert nothing_is_left(saver)


@pytest.mark.asyncio
@pytest.mark.parametrize("strategy", ["enqueue", "interrupt", "rollback"])
async def test_a_native_cancellation_that_meets_a_waiters_turn_passes_it_on(strategy: Any) -> None:
    """The turn came first, and the task had not run since: whoever is behind it gets it."""
    saver, log = AsyncSaver(), list[str]()

    async def run(name: str) -> None:
        async with saver.session("t", multitask_strategy=strategy):
            log.append(name)

    async with held(saver) as holder:
        first = asyncio.create_task(run("first"))
        second = asyncio.create_task(run("second"))
        await until(lambda: bool(_waiting(saver)) or holder.left)
        holder.after = first.cancel
        holder.go_on.set()
        await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert log == ["second"]
    assert nothing_is_left(saver)


def _waiting(saver: AsyncSaver) -> list[Session]:
    line = saver._shared.sessions._lines.get("t")
    return [*line.pressing, *line.waiting] if line is not None else []


async def enter_and_leave(session: Session) -> None:
    """Be in a session for a moment."""
    async with session:
        pass


def asyncio_is_running() -> bool:
    """Tell which library runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@pytest.mark.anyio
async def test_interrupters_come_before_those_who_wait_and_interrupt_one_another(saver: AsyncSaver) -> None:
    """The newest interruption wins; who waits its turn gets it after all of them."""
    log: list[str] = []

    async def run(name: str, strategy: Any) -> None:
        try:
            async with saver.session("t", multitask_strategy=strategy):
                log.append(name)
                if strategy == "interrupt":
                    await anyio.sleep_forever()
        except SessionInterruptedError:
            log.append(f"{name} interrupted")

    async with create_task_group() as tasks, held(saver) as holder:
        tasks.start_soon(run, "waits", "enqueue")
        await wait_all_tasks_blocked()
        tasks.start_soon(run, "first", "interrupt")
        await until(lambda: log == ["first"])
        tasks.start_soon(run, "second", "interrupt")
        await until(lambda: log == ["first", "first interrupted", "second"])
        async with saver.session("t", multitask_strategy="interrupt"):
            pass
    assert log == ["first", "first interrupted", "second", "second interrupted", "waits"]
    assert isinstance(holder.error, SessionInterruptedError)
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_a_session_that_ended_before_it_was_told_was_not_interrupted(new_store: NewStore) -> None:
    """A newcomer that finds it leaving waits for that; nothing is undone."""
    released, leaving = anyio.Event(), anyio.Event()

    class Slow(Store):
        async def release(self, lease: Any, *, delete: bool = False) -> bool:
            leaving.set()
            await released.wait()
            return await super().release(lease, delete=delete)

    slow = AsyncSaver(store=new_store(Slow))

    async def run() -> None:
        async with slow.session("t"):
            await put(slow, "1")

    async with create_task_group() as tasks:
        tasks.start_soon(run)
        await leaving.wait()
        tasks.start_soon(enter_and_leave, slow.session("t", multitask_strategy="rollback"))
        await wait_all_tasks_blocked()
        released.set()
    assert await listed(slow, config()) == ["1"]


# Fencing, and what outlives a session.


@pytest.mark.anyio
async def test_a_session_that_ended_leaves_no_mark_on_its_tasks_until_another_has_been(saver: AsyncSaver) -> None:
    """Then what they write is refused; other conversations are none of its business, nor are calls from outside."""
    ended, later = anyio.Event(), anyio.Event()
    stored, done = anyio.Event(), anyio.Event()

    async def outlive() -> None:
        await ended.wait()
        await put(saver, "1")
        await saver.aput_writes(config(checkpoint_id="1"), [("c", 1)], "task")
        stored.set()
        await later.wait()
        with pytest.raises(SessionLostError):
            await put(saver, "2")
        await put(saver, "1", thread_id="other")
        done.set()

    async with create_task_group() as tasks:
        async with saver.session("t"):
            tasks.start_soon(outlive)
        ended.set()
        await stored.wait()
        await enter_and_leave(saver.session("t"))
        later.set()
        await done.wait()
    await put(saver, "3")
    assert await listed(saver, config()) == ["3", "1"]
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_fences_grow(saver: AsyncSaver) -> None:
    """Also when nothing is left of the sessions before."""
    fences = []
    for _ in range(5):
        session = saver.session("t")
        with pytest.raises(SessionError, match="no fence before it is entered"):
            _ = session.fence
        async with session:
            fences.append(session.fence)
        del session
        assert nothing_is_left(saver)
    assert fences == sorted(set(fences))


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["well", "error", "cancelled"])
async def test_an_ephemeral_session_deletes_its_conversation(saver: AsyncSaver, end: str) -> None:
    """However it ends; and what outlives it cannot bring the conversation back."""
    ended, done = anyio.Event(), anyio.Event()

    async def outlive() -> None:
        await ended.wait()
        for call in (lambda: put(saver, "2"), lambda: saver.aput_writes(config(checkpoint_id="1"), [("c", 1)], "task")):
            with pytest.raises(SessionLostError):
                await call()  # type: ignore[no-untyped-call]
        done.set()

    await put(saver, "0", thread_id="kept")
    async with create_task_group() as tasks:
        with CancelScope() as scope:
            try:
                async with saver.session("t", ephemeral=True):
                    tasks.start_soon(outlive)
                    await put(saver, "1")
                    await put(saver, "1", ns="sub")
                    if end == "error":
                        raise KeyError("mine")
                    if end == "cancelled":
                        scope.cancel()
                        await yield_to_loop()
            except KeyError:
                pass
        assert [one async for one in saver.athread_ids()] == ["kept"]
        ended.set()
        await done.wait()
    assert [one async for one in saver.athread_ids()] == ["kept"]
    assert nothing_is_left(saver)


# What belongs to a session.


@pytest.mark.anyio
async def test_tasks_that_a_session_starts_belong_to_it(saver: AsyncSaver) -> None:
    """A session that they enter on its conversation joins it, and ends nothing; on another one it is its own."""
    fences: list[int] = []

    async def inner() -> None:
        async with saver.session("t", ephemeral=True) as joined, saver.session("u") as nested:
            fences.extend([joined.fence, nested.fence])
            await put(saver, "2", thread_id="u")
            async with saver.session("t", multitask_strategy="reject"):
                await put(saver, "1")

    async with saver.session("t") as outer:
        async with create_task_group() as tasks:
            tasks.start_soon(inner)
        assert await saver.ais_busy("t")
        assert not await saver.ais_busy("u")
        async with saver.session("t") as again:
            assert again.config == outer.config == config(ns=None)
    assert fences[0] == outer.fence == again.fence != fences[1]
    assert await listed(saver, config()) == ["1"]
    assert await listed(saver, config("u")) == ["2"]
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_what_outlives_a_session_may_open_another(saver: AsyncSaver) -> None:
    """It does not join what has ended, and what it writes then is written in the new one."""
    ended, done = anyio.Event(), anyio.Event()

    async def outlive() -> None:
        await ended.wait()
        async with saver.session("t") as session:
            assert session.fence > outer.fence
            await put(saver, "1")
        done.set()

    async with create_task_group() as tasks:
        async with saver.session("t") as outer:
            tasks.start_soon(outlive)
        await enter_and_leave(saver.session("t"))
        ended.set()
        await done.wait()
    assert await listed(saver, config()) == ["1"]


@pytest.mark.anyio
async def test_a_session_is_entered_and_left_by_one_task(saver: AsyncSaver) -> None:
    """Else there is an error; the conversation is free all the same."""
    if not asyncio_is_running():
        pytest.skip("trio says itself that a task ends within a scope")
    session = saver.session("t")
    async with create_task_group() as tasks:
        tasks.start_soon(session.__aenter__)
        await wait_all_tasks_blocked()
    with pytest.raises(SessionError, match="'t' was left by another task"):
        await session.__aexit__(None, None, None)
    async with saver.session("t", timeout=0):
        pass


@pytest.mark.anyio
async def test_a_session_is_entered_once(saver: AsyncSaver) -> None:
    """Neither while it is open nor afterwards, nor is it left before."""
    session = saver.session("t")
    with pytest.raises(SessionError, match="left by `async with`"):
        await session.__aexit__(None, None, None)
    with pytest.raises(SessionError, match="left by `with`"):
        session.__exit__(None, None, None)
    async with session:
        with pytest.raises(SessionError, match="entered a second time"):
            await session.__aenter__()
    with pytest.raises(SessionError, match="entered a second time"), session:
        pytest.fail("it is in")
    with pytest.raises(SessionError, match="has been left"):
        await session.__aexit__(None, None, None)


@pytest.mark.anyio
async def test_who_asks_is_told_whether_a_conversation_is_busy(saver: AsyncSaver) -> None:
    """By both methods; waiting is not holding, and asking leaves no trace."""
    assert not await saver.ais_busy("t")
    assert not saver.is_busy("t")
    async with held(saver):
        assert await saver.ais_busy("t")
        assert saver.is_busy("t")
        assert not await saver.ais_busy("u")
    assert not await saver.ais_busy("t")
    assert nothing_is_left(saver)


@pytest.mark.anyio
async def test_savers_of_one_store_share_its_sessions_and_no_others(saver: AsyncSaver, new_store: NewStore) -> None:
    """Clones and further savers exclude one another; another store's conversation of the same name is another one."""
    sharing = [copy.copy(saver), saver.with_allowlist([]), AsyncSaver(store=saver._shared.store)]
    others = [AsyncSaver(store=new_store()), AsyncSaver()]
    async with held(saver):
        for other in sharing:
            with pytest.raises(ThreadBusyError):
                await other.session("t", multitask_strategy="reject").__aenter__()
        for other in others:
            async with other.session("t", multitask_strategy="reject"):
                await put(other, "1")
    async with saver.session("t") as outer, others[0].session("t") as inner:
        await put(saver, "1")
        await put(others[0], "2")
        assert await saver.ais_busy("t")
        assert await others[0].ais_busy("t")
        assert outer.sessions is not inner.sessions


# Waiting.


@pytest.mark.anyio
async def test_a_cancelled_waiter_leaves_no_trace(saver: AsyncSaver) -> None:
    """Whoever stood behind it moves up; also if its turn came before the cancellation that came first."""
    log: list[int] = []
    scopes = [CancelScope() for _ in range(6)]

    async def run(number: int) -> None:
        with scopes[number]:
            async with saver.session("t"):
                log.append(number)

    async with create_task_group() as tasks, held(saver) as holder:
        for number in range(6):
            tasks.start_soon(run, number)
            await wait_all_tasks_blocked()
        for number in (0, 3):
            scopes[number].cancel()
        await wait_all_tasks_blocked()
        holder.after = scopes[1].cancel
    assert [one for one in log if one != 1] == [2, 4, 5]  # anyio on asyncio does not wake a task twice
    assert nothing_is_left(saver)


@pytest.mark.anyio
@pytest.mark.parametrize("conversations", [1, 1000])
async def test_ten_thousand_sessions_wait_in_order(saver: AsyncSaver, conversations: int) -> None:
    """They are served as they came, on each conversation, and nothing is left of them; over a file, hundreds."""
    total = 10_000
    if not isinstance(saver._shared.store, MemoryStore):
        total, conversations = 300, min(conversations, 30)
    served: list[tuple[int, int]] = []
    came: list[int] = []

    async def run(number: int) -> None:
        came.append(number)
        async with saver.session(str(number % conversations)):
            served.append((number % conversations, number))

    holders = [saver.session(str(number)) for number in range(conversations)]
    inside, release = list[int](), anyio.Event()
    async with create_task_group() as tasks:
        for holder in holders:
            tasks.start_soon(hold_until, holder, inside, release)
        await until(lambda: len(inside) == conversations)
        for number in range(total):
            tasks.start_soon(run, number)
        await wait_all_tasks_blocked()
        assert served == []
        release.set()
    assert len(served) == len(came) == total
    for conversation in range(conversations):
        numbers = [number for one, number in served if one == conversation]
        assert numbers == [number for number in came if number % conversations == conversation]
    del holders, holder
    assert nothing_is_left(saver)


async def hold_until(session: Session, inside: list[int], event: anyio.Event) -> None:
    """Hold a session until an event, and note that it is held."""
    async with session:
        inside.append(session.fence)
        await event.wait()


# Arguments.


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"thread_id": None}, InvalidTypeError),
        ({"multitask_strategy": "Enqueue"}, InvalidValueError),
        ({"multitask_strategy": None}, InvalidValueError),
        ({"multitask_strategy": []}, InvalidValueError),
        ({"timeout": -1}, InvalidValueError),
        ({"timeout": float("nan")}, InvalidValueError),
        ({"timeout": "1"}, InvalidTypeError),
        ({"timeout": True}, InvalidTypeError),
    ],
)
async def test_odd_arguments_are_refused_at_once(saver: AsyncSaver, options: dict[str, Any], error: Any) -> None:
    """When the session is made, and not when it is entered."""
    with pytest.raises(error):
        saver.session(**{"thread_id": "t", **options})


@pytest.mark.anyio
@pytest.mark.parametrize("thread_id", ["", "a|b", "a%", "\0", "ü" * 10, "x" * 2**20, UUID(int=1), 7])
async def test_odd_ids_are_conversations_like_others(saver: AsyncSaver, thread_id: Any) -> None:
    """Whatever names a conversation elsewhere names it here; others are their text."""
    is_long = hasattr(saver._shared.store, "schema_of_tests") and len(str(thread_id)) > 2500
    if is_long or ("\0" in str(thread_id) and not isinstance(saver._shared.store, MemoryStore)):
        with pytest.raises(InvalidValueError):
            await saver.session(thread_id).__aenter__()
        thread_id = "another"
    async with saver.session(thread_id) as session:
        assert session.thread_id == str(thread_id)
        await put(saver, "1", thread_id=thread_id)
        with pytest.raises(ThreadBusyError) as caught:
            await anyio.to_thread.run_sync(
                lambda: threading_call(lambda: saver.session(thread_id, multitask_strategy="reject").__enter__())
            )
        assert len(str(caught.value)) < 500
    assert await listed(saver, config(str(thread_id))) == ["1"]


def threading_call(job: Callable[[], Any]) -> Any:
    """Run something in a new worker thread, in an empty context, as one that belongs to no session."""
    return together(job, seconds=10)[0]
