"""P3 and P4 under any schedule: batches of concurrent calls, delayed and cancelled as drawn, against a plain model.

The same trials are run on savers and stores with planted bugs, which they must find.
"""

import random
from collections.abc import Callable
from importlib.util import find_spec
from math import inf
from typing import Any

import anyio
import pytest
from anyio import create_task_group, get_cancelled_exc_class
from anyio.lowlevel import checkpoint as yield_to_loop
from hypothesis import Phase, register_random, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from async_saver import AsyncSaver, MemoryStore, Store, pace
from async_saver.bridge import bridge
from async_saver.stores import memory
from async_saver.stores.bucket import Bucket, Namespace
from tests.conftest import in_memory
from tests.model import Call, Task, Trial
from tests.stores import NewStore

BACKENDS = ["asyncio", *(["trio"] if find_spec("trio") else [])]


@pytest.fixture(autouse=True)
def nothing_depends_on_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who yields when is drawn, and no matter of how fast the machine is; so is whom trio lets run first."""
    monkeypatch.setattr(memory, "_SLICE", inf)
    monkeypatch.setattr(pace, "_SLICE", -1)  # yields wherever it can
    monkeypatch.setattr(pace, "_pace", pace._Pace())
    if "trio" in BACKENDS:
        import trio

        scheduler = trio._core._run  # type: ignore[attr-defined]  # as pytest-trio does
        monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        monkeypatch.setattr(scheduler, "_r", _SCHEDULE)
        _SCHEDULE.seed(1)


_SCHEDULE = random.Random()
register_random(_SCHEDULE)  # Hypothesis seeds it for each of its examples


# Planted bugs.


class Unlocked(AsyncSaver):
    """Puts without the lock."""

    async def _put(self, thread_id: str, checkpoint_ns: str, record: Any, blobs: Any, _: Any) -> Any:
        return await self._shared.store.put(thread_id, checkpoint_ns, record, blobs)


class Split(Store):
    """Commits a checkpoint, and its values after an await."""

    async def put(self, thread_id: str, checkpoint_ns: str, record: Any, blobs: Any, *others: Any) -> bool:
        await super().put(thread_id, checkpoint_ns, record, [], *others)
        await yield_to_loop()
        return await super().put(thread_id, checkpoint_ns, record, blobs, *others)


class HalfDeleted(MemoryStore):
    """Leaves the root namespace of what it should delete if it is cancelled in the midst of it."""

    async def delete(self, thread_ids: Any, *others: Any) -> None:
        try:
            await yield_to_loop()
        except get_cancelled_exc_class():
            buckets = {thread_id: self._buckets[thread_id] for thread_id in thread_ids if thread_id in self._buckets}
            halves = {thread_id: {"": bucket.namespaces.get("", Namespace())} for thread_id, bucket in buckets.items()}
            self._replace({thread_id: memory.at_once(Bucket.of(half)) for thread_id, half in halves.items()})
            raise
        await super().delete(thread_ids, *others)


PLANTED = [
    pytest.param((), Unlocked, id="a lock skipped"),
    pytest.param((Split,), AsyncSaver, id="a commit split by an await"),
    pytest.param((HalfDeleted,), AsyncSaver, id="a cancelled delete half done"),
]


# Calls, drawn by Hypothesis.

_threads = st.sampled_from("ab")
_ids = st.sampled_from("01234")
_small = st.integers(0, 9)
_places = st.tuples(st.sampled_from(["", "child"]), _ids)


@st.composite
def _puts(draw: st.DrawFn) -> Call:
    versions = draw(st.dictionaries(st.sampled_from("xy"), st.sampled_from("12")))
    news = {channel: draw(st.none() | _small) for channel in versions if draw(st.booleans())}
    return Call("put", (draw(_threads), draw(_places), draw(st.none() | _ids), versions, news, draw(_small)))


_writes = st.lists(st.tuples(st.sampled_from(["x", "__interrupt__"]), _small), min_size=1, max_size=2)
_calls = st.one_of(
    _puts(),
    _puts(),
    st.builds(lambda *args: Call("put_writes", args), _threads, _places, _writes, st.sampled_from("pq")),
    st.builds(lambda *args: Call("get_tuple", args), _threads, st.sampled_from(["", "child"]), st.none() | _ids),
    st.builds(lambda *args: Call("list", args), _threads),
    st.builds(lambda *args: Call("delete_thread", args), _threads),
    st.builds(lambda *args: Call("delete_for_runs", args), st.lists(st.sampled_from(["run 0", "run 1", "none"]))),
    st.builds(
        lambda *args: Call("prune", args),
        st.lists(_threads, unique=True),
        st.sampled_from(["keep_latest", "keep_latest", "delete"]),
    ),
    st.builds(lambda *args: Call("copy_thread", args), _threads, st.sampled_from("abc")),
)
_few = st.integers(0, 3)
_tasks = st.builds(Task, _calls, st.tuples(_few, _few, _few), st.none() | st.integers(0, 9))


def _machine(backend: str, begin: Callable[[], Trial]) -> Callable[[], RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        """One saver under batch after batch, each on an event loop of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.trial = begin()

        def teardown(self) -> None:
            bridge.call(self.trial.store.close)

        @rule(batch=st.lists(_tasks, min_size=1, max_size=6))
        def calls(self, batch: list[Task]) -> None:
            anyio.run(self.trial.run, batch, backend=backend)

    return Machine


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_batches_of_concurrent_calls_do_what_the_model_does(new_store: NewStore, backend: str) -> None:
    """Whatever was cancelled or overtaken: each call takes effect at once and in turn, or not at all."""
    with_settings = settings(max_examples=80 if new_store.kind == "memory" else 20, stateful_step_count=12)
    run_state_machine_as_test(_machine(backend, lambda: Trial(new_store)), settings=with_settings)


@in_memory
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("bugs", "saver"), PLANTED)
def test_the_machine_finds_a_planted_bug(
    new_store: NewStore, backend: str, bugs: tuple[type[Store], ...], saver: type[AsyncSaver]
) -> None:
    """It fails where it should."""
    searching = settings(max_examples=500, stateful_step_count=12, phases=[Phase.generate], print_blob=False)
    with pytest.raises(BaseException) as found:  # noqa: PT011  (a group, in whichever task it was seen)
        run_state_machine_as_test(_machine(backend, lambda: Trial(new_store, *bugs, saver=saver)), settings=searching)
    assert _is_assertion(found.value)


def _is_assertion(exc: BaseException) -> bool:
    return isinstance(exc, AssertionError) or any(_is_assertion(one) for one in getattr(exc, "exceptions", ()))


# Calls, drawn at random, on many conversations.


async def _stress(trial: Trial, seed: int, conversations: int, tasks: int, calls: int) -> None:
    """Let so many tasks each make so many calls."""
    draw = random.Random(seed)
    lists = [[_random_task(draw, conversations) for _ in range(calls)] for _ in range(tasks)]

    async def one_after_the_other(mine: list[Task]) -> None:
        for task in mine:
            await trial.perform(task, group)

    async with create_task_group() as group:
        for mine in lists:
            group.start_soon(one_after_the_other, mine)
    await trial.verify()


def _random_task(draw: random.Random, conversations: int) -> Task:
    # Half of the calls go to few conversations, so that they meet.
    thread_id = f"{draw.randrange(10 if draw.random() < 0.5 else conversations)}"
    place = (draw.choice(["", "child"]), f"{draw.randrange(6)}")
    kind = draw.randrange(20)
    if kind < 8:
        versions = {channel: draw.choice("123") for channel in "xy"}
        new = {channel: draw.choice([None, 1, 2, 3]) for channel in draw.sample("xy", draw.randrange(3))}
        parent = draw.choice([None, "0", "1"])
        call = Call("put", (thread_id, place, parent, versions, new, draw.randrange(99)))
    elif kind < 11:
        writes = [("x", draw.randrange(9)), ("__interrupt__", draw.randrange(9))]
        call = Call("put_writes", (thread_id, place, writes, draw.choice("pq")))
    elif kind < 14:
        call = Call("get_tuple", (thread_id, place[0], draw.choice([None, place[1]])))
    elif kind < 15:
        call = Call("list", (thread_id,))
    elif kind < 17:
        call = Call("delete_thread", (thread_id,))
    elif kind < 18:
        others = {thread_id, f"{draw.randrange(conversations)}"}
        call = Call("prune", (sorted(others), draw.choice(["keep_latest", "delete"])))
    elif kind < 19:
        call = Call("copy_thread", (thread_id, f"{draw.randrange(conversations)}"))
    else:
        run_id = draw.choice(["run 0", "run 1", "run 2"]) if draw.random() < 0.1 else "none"
        call = Call("delete_for_runs", ([run_id],))
    delays = (draw.randrange(4), draw.randrange(3), draw.randrange(3))
    return Task(call, delays, draw.randrange(9) if draw.random() < 0.3 else None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_hundred_tasks_on_a_thousand_conversations_do_what_the_model_does(
    new_store: NewStore, backend: str
) -> None:
    """With every kind of call, some of them cancelled; over a file, a hundred tasks."""
    trial = Trial(new_store)
    anyio.run(_stress, trial, 1, 1000, 200 if new_store.kind == "memory" else 100, 50, backend=backend)
    assert trial.cancelled > 100


@in_memory
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("bugs", "saver"), PLANTED)
def test_the_stress_finds_a_planted_bug(
    new_store: NewStore, backend: str, bugs: tuple[type[Store], ...], saver: type[AsyncSaver]
) -> None:
    """It fails where it should, with one seed or the next."""

    def search() -> None:
        for seed in range(5):
            anyio.run(_stress, Trial(new_store, *bugs, saver=saver), seed, 1000, 200, 50, backend=backend)

    with pytest.raises(BaseException) as found:  # noqa: PT011  (likewise)
        search()
    assert _is_assertion(found.value)
