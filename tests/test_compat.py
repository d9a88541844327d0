"""What the reference documents of InMemorySaver beside its methods: views, stack, factory."""

import copy
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from anyio import create_task_group, to_thread
from langgraph.checkpoint.memory import InMemorySaver as Reference
from langgraph.checkpoint.memory import PersistentDict
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from typing_extensions import Self

from async_saver import AsyncSaver, DeserializationError, InvalidTypeError, InvalidValueError, MemoryStore, Store
from tests.build import all_of, checkpoint, config, ids, listed, put

pytestmark = pytest.mark.anyio


async def filled() -> AsyncSaver:
    """Two conversations, one of them with a child namespace and writes."""
    saver = AsyncSaver()
    await put(saver, "1", {"x": 1, "y": None})
    await put(saver, "2", {"x": 2}, parent="1")
    await put(saver, "1", {"x": 1}, ns="child:1")
    await saver.aput_writes(config(checkpoint_id="2"), [("c", 1)], "task", "path")
    await put(saver, "1", thread_id="other")
    return saver


async def test_views_have_the_documented_shapes() -> None:
    """Those of InMemorySaver after the same calls."""
    ours, theirs = AsyncSaver(), Reference()
    for saver in (ours, theirs):
        made = checkpoint("1", {"x": 1}, channel_versions={"x": "1", "gone": "1"})
        await saver.aput(config(checkpoint_id="0"), made, {"step": 1}, {"x": "1", "gone": "1"})
        await saver.aput_writes(config(checkpoint_id="1"), [("c", 1)], "task", "path")
    assert ours.storage == theirs.storage
    assert ours.writes == theirs.writes
    assert ours.blobs == theirs.blobs
    assert repr(ours.blobs) == repr(dict(theirs.blobs))


async def test_views_are_live() -> None:
    """A view, or a part of one, that was taken earlier shows what is stored later."""
    saver = AsyncSaver()
    storage, namespaces, checkpoints = saver.storage, saver.storage["t"], saver.storage["t"][""]
    writes, blobs = saver.writes, saver.blobs
    assert [len(view) for view in (storage, namespaces, checkpoints, writes, blobs)] == [0] * 5
    await put(saver, "1", {"x": 1})
    await saver.aput_writes(config(checkpoint_id="1"), [("c", 1)], "task")
    assert [len(view) for view in (storage, namespaces, checkpoints, writes, blobs)] == [1] * 5
    assert "1" in checkpoints
    assert "2" not in checkpoints
    assert storage.get("t") is not None
    assert storage.get("u") is None


async def test_an_unknown_key_reads_as_upstreams_would() -> None:
    """Empty where a defaultdict makes one, a KeyError where it does not."""
    saver = await filled()
    assert saver.storage["unknown"] == saver.storage["t"]["unknown"] == saver.writes["t", "", "9"] == {}
    for view, key in ((saver.storage["t"][""], "9"), (saver.blobs, ("t", "", "x", "9"))):
        with pytest.raises(KeyError):
            view[key]  # type: ignore[index]


async def test_storage_deletes_conversations() -> None:
    """By `del`, `pop` and `clear`, with all their writes and values."""
    saver = await filled()
    held = {ns: dict(checkpoints) for ns, checkpoints in saver.storage["t"].items()}
    assert saver.storage.pop("t") == held
    assert await listed(saver, config()) == []
    assert [*saver.writes] == [*saver.blobs] == []
    del saver.storage["other"]
    assert await saver.acount() == 0
    for unknown in (lambda: saver.storage.pop("t"), lambda: saver.storage.__delitem__("t")):
        with pytest.raises(KeyError):
            unknown()
    assert saver.storage.pop("t", None) is None
    saver = await filled()
    saver.storage.clear()
    assert await saver.acount() == 0
    saver.writes.clear()
    saver.blobs.clear()


@pytest.mark.parametrize(
    "assign",
    [
        lambda saver: saver.storage.__setitem__("t", {}),
        lambda saver: saver.storage["t"].__setitem__("", {}),
        lambda saver: saver.storage["t"][""].update({"1": ()}),
        lambda saver: saver.writes.__setitem__(("t", "", "2"), {}),
        lambda saver: saver.blobs.setdefault(("t", "", "new", "1"), ("null", b"")),
    ],
)
async def test_assignment_names_the_method_to_use(assign: Callable[[AsyncSaver], Any]) -> None:
    """And changes nothing."""
    saver = await filled()
    before = await all_of(saver.alist(None))
    with pytest.raises(InvalidTypeError, match=r"aput\(\)"):
        assign(saver)
    with pytest.raises(InvalidTypeError, match=r"adelete_thread\(\)"):
        saver.blobs.clear()
    with pytest.raises(TypeError):
        saver.writes["t", "", "2"]["task", 0] = ()  # type: ignore[index]
    assert await all_of(saver.alist(None)) == before


async def test_whole_views_cannot_be_replaced() -> None:
    """With the same words; popping any conversation returns what it held; odd keys are just unknown."""
    saver = await filled()
    for name in ("storage", "writes", "blobs"):
        with pytest.raises(InvalidTypeError, match=r"aput\(\)"):
            setattr(saver, name, {})
    held = {"": {"1": saver.storage["other"][""]["1"]}}
    del saver.storage["t"]
    assert saver.storage.popitem() == ("other", held)
    with pytest.raises(KeyError):
        saver.storage.popitem()
    for view in (saver.storage, saver.writes, saver.blobs):
        assert 5 not in view
        assert ("too", "short") not in view
    assert saver.writes["odd"] == saver.writes[5] == {}  # type: ignore[index]
    with pytest.raises(KeyError):
        saver.blobs["odd"]  # type: ignore[index]


async def test_views_need_a_store_in_memory() -> None:
    """Of another store there is nothing to show, and the error says what to call."""

    class Elsewhere(Store):
        """A store somewhere else."""

    Elsewhere.__abstractmethods__ = frozenset()
    saver = AsyncSaver(store=Elsewhere())  # type: ignore[abstract]
    for name in ("storage", "writes", "blobs"):
        with pytest.raises(AttributeError, match=r"Elsewhere.*alist\(\)"):
            getattr(saver, name)


# Entering and leaving.


async def test_the_last_exit_closes_the_stack_and_the_saver_goes_on() -> None:
    """Entered many times and by both ways, left in another order; what is in memory stays."""
    saver, closed = AsyncSaver(), []
    saver.stack.callback(closed.append, "closed")
    async with saver as entered:
        assert entered is saver
        with saver:
            await put(saver, "1")
        assert closed == []
    assert closed == ["closed"]
    assert await listed(saver, config()) == ["1"]
    async with saver:
        await put(saver, "2")
    assert await listed(saver, config()) == ["2", "1"]


async def test_a_saver_may_be_left_by_another_task_than_entered_it() -> None:
    """Nothing of the entering task is held, as pytest's fixtures and servers' lifespans need it."""
    saver, closed = AsyncSaver(), []
    saver.stack.callback(closed.append, "closed")

    async def leave() -> None:
        await saver.__aexit__(None, None, None)

    await saver.__aenter__()
    await saver.__aenter__()
    async with create_task_group() as tasks:
        tasks.start_soon(leave)
    assert closed == []
    async with create_task_group() as tasks:
        tasks.start_soon(leave)
    assert closed == ["closed"]


# Connection strings.


async def test_a_url_makes_a_saver() -> None:
    """Which works bare, and with both kinds of `with`."""
    saver = AsyncSaver.from_conn_string("memory://")
    await put(saver, "1")
    async with AsyncSaver.from_conn_string("memory://") as other:
        assert await other.acount() == 0
    with AsyncSaver.from_conn_string("memory://", serde=saver.serde) as other:
        assert other.serde is saver.serde

    class Own(AsyncSaver):
        """A subclass makes its own kind."""

    assert type(Own.from_conn_string("memory://")) is Own


@pytest.mark.parametrize(
    "url",
    [
        "agents.db",
        "/var/agents.db",
        ":memory:",
        "",
        "memory:",
        "memory://agents.db",
        "memory://?x=hunter2",
        "sqlite://hunter2/agents.db",
        "sqlite:///agents.db?mode=hunter2",
        "mysql://user:hunter2@host/db",
        "redis://hunter2",
        "host=localhost password=hunter2",
        "user:hunter2@host/db",
        "hunter2://host",
        "sqlite+hunter2.://host",
    ],
)
def test_another_url_is_refused_with_the_one_that_works(url: str) -> None:
    """And with nothing of it that may be a password."""
    with pytest.raises(InvalidValueError, match=r"memory://|sqlite:///agents\.db|synchronous and timeout") as caught:
        AsyncSaver.from_conn_string(url)
    assert isinstance(caught.value, ValueError)
    assert "hunter2" not in str(caught.value)


# Mappings that a factory makes.


def files(folder: Path) -> Callable[..., Any]:
    """A factory of three PersistentDicts, each with a file of its own, loaded if it is there."""
    names = iter(("storage", "writes", "blobs"))

    def factory(*args: Any) -> PersistentDict:
        made = PersistentDict(*args, filename=str(folder / next(names)))
        if os.path.exists(made.filename):
            made.load()
        return made

    return factory


def contents(folder: Path) -> list[bytes]:
    """The bytes of the files in a folder."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


async def fill(saver: Any) -> None:
    """Store a little of everything."""
    await saver.aput(config(run_id="run"), checkpoint("1", {"x": 1, "y": None}), {"step": 0}, {"x": "1", "y": "1"})
    await saver.aput(config(checkpoint_id="1"), checkpoint("2", {"x": 1, "y": 3}, "1"), {"step": 1}, {"y": "1"})
    await saver.aput(config(ns="child:1"), checkpoint("3"), {"step": 1}, {})
    await saver.aput_writes(config(checkpoint_id="2"), [("c", 1), ("__error__", "e")], "task", "path")
    await saver.aput_writes(config("early", "1"), [("c", 1)], "task")


@pytest.mark.parametrize("writer", [AsyncSaver, Reference])
@pytest.mark.parametrize("reader", [AsyncSaver, Reference])
async def test_files_survive_close_and_reopen(tmp_path: Path, writer: Any, reader: Any) -> None:
    """Whichever of the two savers wrote them and whichever opens them; the second goes on writing."""
    expected = AsyncSaver()
    await fill(expected)
    async with writer(factory=files(tmp_path)) as saver:
        await fill(saver)
    async with reader(factory=files(tmp_path)) as saver:
        assert await all_of(saver.alist(config())) == await all_of(expected.alist(config()))
        assert [*saver.list(config(ns="child:1"))] == [*expected.list(config(ns="child:1"))]
        await put(saver, "9", thread_id="new", ns="new")
        await put(saver, "1", thread_id="early")
    async with AsyncSaver(factory=files(tmp_path)) as saver:
        assert await listed(saver, config("new", ns=None)) == ["9"]
        early = await saver.aget_tuple(config("early"))
        assert early is not None
        assert early.pending_writes == [("task", "c", 1)]
        await saver.adelete_for_runs(["run"])
        assert await listed(saver, config()) == ["2"]


async def test_each_last_exit_fills_the_files_again(tmp_path: Path) -> None:
    """The saver keeps its data after an exit, may be entered again, and a deep copy of it writes no file."""
    saver = AsyncSaver(factory=files(tmp_path))
    for number in ("1", "2"):
        async with saver:
            with saver:
                await put(saver, number)
        async with AsyncSaver(factory=files(tmp_path)) as reopened:
            assert await listed(reopened, config()) == await listed(saver, config())
    twin = copy.deepcopy(saver)
    async with twin:
        await put(twin, "3")
    async with AsyncSaver(factory=files(tmp_path)) as reopened:
        assert await listed(reopened, config()) == ["2", "1"]


async def test_files_keep_what_a_delta_channel_is_rebuilt_from(tmp_path: Path) -> None:
    """Also from checkpoints that a deleted run made, which stay out of sight after the reopening."""
    for encrypted in (False, True):
        folder = tmp_path / str(encrypted)
        folder.mkdir()
        serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16) if encrypted else None
        async with AsyncSaver(factory=files(folder), serde=serde) as saver:
            for number in range(4):
                made = checkpoint(f"{number}", {"d": _DeltaSnapshot(["seed"])} if not number else {})
                made["channel_versions"]["d"] = f"{number}"
                where = config(checkpoint_id=f"{number - 1}" if number else None, run_id=f"run {number}")
                await saver.aput(where, made, {"step": number}, made["channel_versions"])
                where = config(checkpoint_id=f"{number}", run_id=f"run {number}")
                await saver.aput_writes(where, [("d", number), ("other", number)], "task")
            await saver.adelete_for_runs(["run 0", "run 2"])
            before = await saver.aget_delta_channel_history(config=config(), channels=["d"])
            assert before["d"]["writes"] == [("task", "d", 0), ("task", "d", 1), ("task", "d", 2)]
        for _ in range(2):
            async with AsyncSaver(factory=files(folder), serde=serde) as saver:
                assert await saver.aget_delta_channel_history(config=config(), channels=["d"]) == before
                assert await listed(saver, config()) == ["3", "1"]
                await saver.aput_writes(config(checkpoint_id="2"), [("d", "too late")], "late")
                assert await saver.aget_delta_channel_history(config=config(), channels=["d"]) == before


async def test_files_of_other_ids_than_text_open(tmp_path: Path) -> None:
    """InMemorySaver takes any key; here it is its text."""
    with Reference(factory=files(tmp_path)) as upstream:
        for thread_id in (7, UUID(int=7), "x"):
            where = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
            upstream.put(where, checkpoint("1", {"x": 1}), {}, {"x": "1"})  # type: ignore[typeddict-item, arg-type]
            where["configurable"]["checkpoint_id"] = "1"
            upstream.put_writes(where, [("c", 1)], "task")  # type: ignore[arg-type]
    async with AsyncSaver(factory=files(tmp_path)) as saver:
        assert await listed(saver, None) == ["1", "1", "1"]
        for thread_id in ("7", str(UUID(int=7)), "x"):
            found = await saver.aget_tuple(config(thread_id))
            assert found is not None
            assert found.checkpoint["channel_values"] == {"x": 1}
            assert found.pending_writes == [("task", "c", 1)]


async def test_an_entry_that_fails_does_not_count(tmp_path: Path) -> None:
    """The next one's exit is the last, and saves."""
    failing = [False, True, False, False]

    class Flaky(PersistentDict):
        def __enter__(self) -> Any:
            if self.filename.endswith("storage") and failing.pop(0):
                raise OSError("not now")
            return super().__enter__()

    names = iter(("storage", "writes", "blobs"))
    saver = AsyncSaver(factory=lambda *args: Flaky(*args, filename=str(tmp_path / next(names))))
    await put(saver, "1")
    with saver:
        pass
    with pytest.raises(OSError, match="not now"), saver:
        pass
    with saver:
        await put(saver, "2")
    async with AsyncSaver(factory=files(tmp_path)) as reopened:
        assert await listed(reopened, config()) == ["2", "1"]


async def test_an_entry_during_the_last_exit_is_not_lost(tmp_path: Path) -> None:
    """Whoever enters while the files are being closed has them opened again, and closed once more."""
    saver = AsyncSaver(factory=files(tmp_path))
    entered = threading.Event()

    def enter() -> None:
        with saver:
            saver.put(config(), checkpoint("2"), {}, {})
            entered.set()

    async with saver:
        await put(saver, "1")
        worker = threading.Thread(target=enter)
        saver.stack.callback(lambda: (worker.start(), entered.wait(10)))
    await to_thread.run_sync(worker.join)
    async with AsyncSaver(factory=files(tmp_path)) as reopened:
        assert await listed(reopened, config()) == ["2", "1"]


async def test_the_stack_may_be_closed_by_hand(tmp_path: Path) -> None:
    """As a saver that is never entered is; an entry after that saves again."""
    saver = AsyncSaver(factory=files(tmp_path))
    await put(saver, "1")
    saver.stack.close()
    async with AsyncSaver(factory=files(tmp_path)) as reopened:
        assert await listed(reopened, config()) == ["1"]
    async with saver:
        await put(saver, "2")
    async with AsyncSaver(factory=files(tmp_path)) as reopened:
        assert await listed(reopened, config()) == ["2", "1"]


async def test_files_are_read_and_written_in_their_users_thread(tmp_path: Path) -> None:
    """And outside the store's guard: a type in them may itself call a saver."""
    threads: list[str] = []

    class Noting(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            threads.append(threading.current_thread().name)
            AsyncSaver().put(config(), checkpoint("1"), {}, {})
            return super().loads_typed(data)

        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            threads.append(threading.current_thread().name)
            AsyncSaver().put(config(), checkpoint("1"), {}, {})
            return super().dumps_typed(obj)

    for _ in range(2):
        async with AsyncSaver(factory=files(tmp_path), serde=Noting()) as saver:
            await put(saver, "1", {"d": _DeltaSnapshot([])}, run_id="gone")
            made = checkpoint("2", channel_versions={"d": "2"})
            await saver.aput(config(checkpoint_id="1"), made, {"step": 1}, {"d": "2"})
            await saver.adelete_for_runs(["gone"])
    assert set(threads) == {threading.current_thread().name}


async def test_a_factory_is_called_as_upstream_calls_it() -> None:
    """Three times: with a function for a conversation's entry, with dict, with nothing."""
    calls: list[tuple[Any, ...]] = []

    class Mapping(dict[Any, Any]):
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exc_info: object) -> None:
            pass

    def factory(*args: Any) -> Mapping:
        calls.append(args)
        return Mapping()

    saver = AsyncSaver(factory=factory)
    assert [len(args) for args in calls] == [1, 1, 0]
    assert calls[0][0]()["ns"] == {}
    assert calls[1] == (dict,)
    assert ids(saver.list(None)) == []


async def test_files_of_another_serde_are_refused_and_left_alone(tmp_path: Path) -> None:
    """The error names the conversation and the remedy; what is in the files stays there."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16)
    async with AsyncSaver(factory=files(tmp_path), serde=serde) as saver:
        await put(saver, "1")
    before = contents(tmp_path)
    with pytest.raises(DeserializationError, match=r"thread_id 't'.*serde"):
        AsyncSaver(factory=files(tmp_path))
    assert contents(tmp_path) == before


def test_a_factory_and_a_store_exclude_each_other(tmp_path: Path) -> None:
    """What a factory makes mirrors what is kept in memory."""
    with pytest.raises(InvalidValueError, match="factory"):
        AsyncSaver(store=MemoryStore(), factory=partial(PersistentDict, filename=str(tmp_path / "f")))
