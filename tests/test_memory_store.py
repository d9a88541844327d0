"""What the memory store keeps to itself: counts, indexes, and changes that an interrupt cut off."""

import copy
import pickle
import random
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from anyio import create_task_group
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from async_saver import AsyncSaver, MemoryStore
from async_saver.stores.bucket import Bucket
from tests.build import all_of, checkpoint, config, listed, put
from tests.conftest import in_memory

pytestmark = pytest.mark.anyio


async def random_call(saver: AsyncSaver, draw: random.Random) -> None:
    """One call of any kind, on few ids, so that they meet."""
    thread_id, ns, run_id = draw.choice("ab"), draw.choice(["", "child:1"]), draw.choice("rst")
    number = draw.randrange(8)
    kind = draw.randrange(12)
    if kind < 5:
        parent = f"{draw.randrange(number)}" if number else None
        values: dict[str, Any] = {channel: draw.randrange(9) for channel in draw.sample("xyz", 2)}
        if draw.random() < 0.3:
            values["d"] = _DeltaSnapshot([number])
        made = checkpoint(f"{number}", values, f"{draw.randrange(4)}")
        made["channel_versions"]["d"] = f"{number}"
        new = {key: version for key, version in made["channel_versions"].items() if draw.random() < 0.8}
        await saver.aput(config(thread_id, parent, ns, run_id=run_id), made, {"step": number}, new)
    elif kind < 8:
        writes = [(draw.choice("xd"), draw.randrange(9)), ("__interrupt__", draw.randrange(9))]
        await saver.aput_writes(config(thread_id, f"{number}", ns, run_id=run_id), writes, draw.choice("uv"))
    elif kind == 8:
        await saver.adelete_for_runs([run_id, "unknown"])
    elif kind == 9:
        await saver.aprune([thread_id])
    elif kind == 10:
        await saver.adelete_thread(draw.choice("abc"))
    elif "c" not in saver.storage and not [key for key in saver.writes if key[0] == "c"]:
        await saver.acopy_thread(thread_id, "c")


@pytest.mark.parametrize("seed", range(10))
async def test_a_deep_copy_is_sound(seed: int) -> None:
    """With indexes of its own, whatever was overwritten or deleted before."""
    store, draw = MemoryStore(), random.Random(seed)
    saver = AsyncSaver(store=store)
    for _ in range(40):
        await random_call(saver, draw)
    twin = copy.deepcopy(saver)
    twin._shared.store.check()  # type: ignore[attr-defined]
    before = await all_of(saver.alist(None))
    for _ in range(40):
        await random_call(twin, draw)
    twin._shared.store.check()  # type: ignore[attr-defined]
    assert await all_of(saver.alist(None)) == before


@pytest.mark.parametrize("seed", range(40))
async def test_counts_and_indexes_follow_from_the_records(seed: int) -> None:
    """After any calls; and once everything is deleted nothing is left."""
    store, draw = MemoryStore(), random.Random(seed)
    saver = AsyncSaver(store=store)
    for _ in range(60):
        await random_call(saver, draw)
        store.check()
    await saver.aprune(["a", "b", "c"], strategy="delete")
    assert not store._buckets
    assert not store._runs


class Cut(BaseException):
    """An interrupt."""


@pytest.mark.parametrize("seed", range(12))
async def test_a_change_that_an_interrupt_cut_off_is_finished_by_the_next_call(seed: int) -> None:
    """Wherever it came: once the journal is written, every later call sees the whole change."""
    for cut_after in range(12):
        smooth, cut = AsyncSaver(store=MemoryStore()), AsyncSaver(store=Interrupted())
        draws = random.Random(seed), random.Random(seed)
        for number in range(25):
            await random_call(smooth, draws[0])
            cut._shared.store.left = cut_after if number % 5 == 4 else -1  # type: ignore[attr-defined]
            with suppress(Cut):
                await random_call(cut, draws[1])
        assert await all_of(cut.alist(None)) == await all_of(smooth.alist(None))
        assert cut.writes == smooth.writes
        assert cut.blobs == smooth.blobs
        cut._shared.store.check()  # type: ignore[attr-defined]
        assert cut._shared.store.cuts > 0  # type: ignore[attr-defined]


class Interrupted(MemoryStore):
    """Is interrupted once, after `left` steps of its journal."""

    left = -1
    cuts = 0

    def _settle(self) -> None:
        if self._journal is not None and self.left >= 0:
            self.cuts += 1
            for step, arguments in self._journal[: self.left]:
                step(*arguments)
            self.left = -1
            raise Cut
        super()._settle()


async def test_buckets_pickle() -> None:
    """With what is hidden, and as independent of the original."""
    store = MemoryStore()
    saver = AsyncSaver(store=store)
    for number in range(4):
        made = checkpoint(f"{number}", {"d": _DeltaSnapshot([])} if not number else {})
        made["channel_versions"]["d"] = f"{number}"
        where = config(checkpoint_id=f"{number - 1}" if number else None, run_id=f"run {number}")
        await saver.aput(where, made, {"counters_since_delta_snapshot": {"d": (1, 1)}}, {"d": f"{number}"})
    await saver.adelete_for_runs(["run 1", "run 2"])
    bucket: Bucket = pickle.loads(pickle.dumps(store._buckets["t"]))
    twin = MemoryStore()
    twin._buckets["t"] = bucket
    twin._runs.update(store._runs)
    twin._totals = store._totals
    twin.check()
    other = AsyncSaver(store=twin)
    assert await all_of(other.alist(None)) == await all_of(saver.alist(None))
    assert await listed(other, config()) == ["3", "0"]
    for one in (saver, other):
        history = await one.aget_delta_channel_history(config=config(), channels=["d"])
        assert history == {"d": {"seed": _DeltaSnapshot([]), "writes": []}}
    await put(other, "9")
    assert await listed(saver, config()) == ["3", "0"]


async def test_listing_hundreds_of_conversations_is_in_order(saver: AsyncSaver) -> None:
    """Newest first over all, also where they are merged in several portions."""
    draw = random.Random(1)
    numbers = draw.sample(range(10_000), 1000)
    for number in numbers:
        await put(saver, f"{number:05}", thread_id=f"{number % 700}")
    assert await listed(saver, None) == [f"{number:05}" for number in sorted(numbers, reverse=True)]
    assert await listed(saver, None, limit=3, before=config(checkpoint_id="05000")) == [
        f"{number:05}" for number in sorted((n for n in numbers if n < 5000), reverse=True)[:3]
    ]


@in_memory
async def test_a_list_of_all_is_fixed_before_its_first_yield(saver: AsyncSaver) -> None:
    """What another task puts while the conversations are merged does not appear."""
    for number in range(600):
        await put(saver, "1", thread_id=f"{number:03}")
    async with create_task_group() as tasks:
        tasks.start_soon(partial(put, saver, "2", thread_id="599"))
        found = await listed(saver, None)
    assert found == ["1"] * 600
    assert await listed(saver, None, limit=1) == ["2"]


async def test_a_circle_of_parents_ends(saver: AsyncSaver) -> None:
    """A checkpoint that names itself or a descendant as its parent keeps no walk going for ever."""
    for checkpoint_id, parent in (("1", "2"), ("2", "1"), ("3", "3")):
        made = checkpoint(checkpoint_id, channel_versions={"d": checkpoint_id})
        await saver.aput(config(checkpoint_id=parent), made, {"counters_since_delta_snapshot": {"d": (1, 1)}}, {})
        await saver.aput_writes(config(checkpoint_id=checkpoint_id), [("d", checkpoint_id)], "task")
    history = await saver.aget_delta_channel_history(config=config(checkpoint_id="2"), channels=["d"])
    assert history == {"d": {"writes": [("task", "d", "1")]}}
    await saver.aprune(["t"])
    await saver.adelete_for_runs(["none"])
    assert "3" in await listed(saver, config())
