"""What published checkpointers get wrong, each in a test of its own."""

from typing import Any
from uuid import UUID

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, SCHEDULED, _DeltaSnapshot

from async_saver import AsyncSaver, InvalidTypeError, InvalidValueError, MemoryStore, ThreadExistsError
from tests.build import all_of, checkpoint, config, listed, put
from tests.stores import hides_ancestors, versions_of, writes_of

pytestmark = pytest.mark.anyio


async def pending(saver: BaseCheckpointSaver[str], checkpoint_id: str) -> list[tuple[str, str, Any]]:
    """A checkpoint's pending writes."""
    found = await saver.aget_tuple(config(checkpoint_id=checkpoint_id))
    assert found is not None
    assert found.pending_writes is not None
    return found.pending_writes


async def test_writes_may_come_before_their_checkpoint(saver: AsyncSaver) -> None:
    """LangGraph often stores a task's writes before the checkpoint that they belong to."""
    await saver.aput_writes(config(checkpoint_id="1"), [("channel", "early")], "task")
    assert await saver.aget_tuple(config()) is None
    await put(saver, "1")
    assert await pending(saver, "1") == [("task", "channel", "early")]


async def test_latest_is_the_greatest_id_not_the_last_written(saver: AsyncSaver) -> None:
    """Of two branches that are written in turn, the greater id is the latest."""
    for checkpoint_id in ("2", "3", "1"):
        await put(saver, checkpoint_id, {"x": checkpoint_id})
    latest = await saver.aget_tuple(config())
    assert latest is not None
    assert latest.checkpoint["id"] == "3"
    assert latest.checkpoint["channel_values"] == {"x": "3"}
    assert await listed(saver, config()) == ["3", "2", "1"]


async def test_pending_writes_come_back_in_the_order_in_which_the_run_applies_them(saver: AsyncSaver) -> None:
    """By task_path, then task_id, then place: neither in the order of the calls nor of the task ids alone."""
    await put(saver, "1")
    await saver.aput_writes(config(checkpoint_id="1"), [("c", 1), ("c", 2)], "a-task", "path-2")
    await saver.aput_writes(config(checkpoint_id="1"), [("c", 3)], "z-task", "path-1")
    await saver.aput_writes(config(checkpoint_id="1"), [("c", 4)], "b-task", "path-2")
    assert [value for _, _, value in await pending(saver, "1")] == [3, 1, 2, 4]


async def test_a_regular_write_stays_and_a_special_one_is_replaced(saver: AsyncSaver) -> None:
    """First wins per (task_id, place); errors, interrupts, resume values and schedules: last wins."""
    await put(saver, "1")
    specials = (ERROR, SCHEDULED, INTERRUPT, RESUME)
    for value in ("first", "second"):
        writes = [("regular", value), *((channel, value) for channel in specials)]
        await saver.aput_writes(config(checkpoint_id="1"), writes, "task")
    found = {channel: value for _, channel, value in await pending(saver, "1")}
    assert found == {"regular": "first", **dict.fromkeys(specials, "second")}


async def test_versions_have_a_random_tail_so_that_forks_do_not_overwrite(saver: AsyncSaver) -> None:
    """Two branches that bump the same version get two versions, and each its own value."""
    base = saver.get_next_version(None, None)
    left, right = saver.get_next_version(base, None), saver.get_next_version(base, None)
    assert left != right
    assert base < left
    assert base < right
    await put(saver, "1", {"x": "base"}, version=base)
    await put(saver, "2", {"x": "left"}, version=left, parent="1")
    await put(saver, "3", {"x": "right"}, version=right, parent="1")
    values = {one.checkpoint["id"]: one.checkpoint["channel_values"]["x"] for one in await all_of(saver.alist(None))}
    assert values == {"1": "base", "2": "left", "3": "right"}


async def test_versions_go_on_from_what_other_savers_counted(saver: AsyncSaver) -> None:
    """A conversation from a saver with whole-number versions, or ten of ours, goes on ascending."""
    assert saver.get_next_version(41, None).startswith("00000000000000000000000000000042.")  # type: ignore[arg-type]
    versions = [None]
    for _ in range(12):
        versions.append(saver.get_next_version(versions[-1], None))
    assert versions[1:] == sorted(versions[1:])
    assert versions[1] < InMemorySaver().get_next_version(versions[1], None)


async def test_thread_and_run_ids_are_text_or_uuids(saver: AsyncSaver) -> None:
    """The agent server passes UUIDs: they name the same as their text."""
    thread, run = UUID(int=1), UUID(int=2)
    stored = await put(saver, "1", thread_id=thread, run_id=run)
    assert stored == config(str(thread), "1")
    assert await listed(saver, config(str(thread))) == ["1"]
    assert await listed(saver, config(thread)) == ["1"]
    await put(saver, "2", thread_id=thread, metadata={"run_id": run})
    await saver.adelete_for_runs([run])  # type: ignore[list-item]
    assert await listed(saver, config(thread)) == []


async def test_runs_are_found_in_metadata_and_in_config(saver: AsyncSaver) -> None:
    """Wherever LangGraph carries a run_id, its checkpoints are deleted with the run."""
    await put(saver, "1", metadata={"run_id": "a"})
    await put(saver, "2", run_id="b")
    await saver.aput({**config(), "metadata": {"run_id": "c"}}, checkpoint("3"), {"step": 1}, {})
    await saver.adelete_for_runs(["a", "c"])
    assert await listed(saver, config()) == ["2"]
    await saver.adelete_for_runs(["b"])
    assert await listed(saver, config()) == []
    assert await saver.acount() == 0


async def test_a_value_stays_while_a_later_checkpoint_may_name_it(saver: AsyncSaver) -> None:
    """A checkpoint that is put again with another version does not take away what InMemorySaver would keep."""
    await put(saver, "1", {"x": ["first"]}, version="a")
    await put(saver, "1", {"x": ["second"]}, version="b")
    await saver.aput(config(), checkpoint("2", channel_versions={"x": "a"}), {}, {})
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"x": ["first"]}


async def test_a_deleted_runs_writes_go_with_it(saver: AsyncSaver) -> None:
    """Its writes on a checkpoint that stays would else win over the next run's writes of the same task."""
    await put(saver, "1", run_id="old")
    await saver.aput_writes(config(checkpoint_id="1", run_id="gone"), [("c", "gone")], "task")
    await saver.adelete_for_runs(["gone"])
    assert await pending(saver, "1") == []
    await saver.aput_writes(config(checkpoint_id="1", run_id="new"), [("c", "new")], "task")
    assert await pending(saver, "1") == [("task", "c", "new")]


async def test_prune_keeps_the_latest_of_each_namespace_with_its_writes(saver: AsyncSaver) -> None:
    """And frees the values that nothing needs any more."""
    for ns in ("", "child:1"):
        for checkpoint_id in ("1", "2"):
            await put(saver, checkpoint_id, {"x": checkpoint_id}, ns=ns)
            await saver.aput_writes(config(checkpoint_id=checkpoint_id, ns=ns), [("c", ns)], "task")
    await saver.aput_writes(config(checkpoint_id="3"), [("c", "its checkpoint comes later")], "task")
    await saver.aprune(["t", "unknown"])
    assert await listed(saver, config(ns=None)) == ["2", "2"]
    assert await pending(saver, "2") == [("task", "c", "")]
    assert versions_of(saver) == [("t", "", "x", "2"), ("t", "child:1", "x", "2")]
    await put(saver, "3")
    assert await pending(saver, "3") == [("task", "c", "its checkpoint comes later")]


@pytest.mark.parametrize("strategy", ["delete", "delete_all"])
async def test_prune_can_drop_a_conversation(saver: AsyncSaver, strategy: str) -> None:
    """Under upstream's word and under the agent server's."""
    await put(saver, "1", {"x": 1})
    await put(saver, "1", thread_id="other")
    await saver.aprune(["t"], strategy=strategy)
    assert await listed(saver, None) == ["1"]
    assert versions_of(saver) == []


async def test_bad_arguments_of_the_bulk_calls_are_refused(saver: AsyncSaver) -> None:
    """An unknown strategy is a ValueError, a bare string of ids a TypeError; both change nothing."""
    await put(saver, "1", run_id="r")
    with pytest.raises(InvalidValueError, match="keep_latest") as unknown:
        await saver.aprune(["t"], strategy="keep_last")
    assert isinstance(unknown.value, ValueError)
    for call in (saver.aprune("t"), saver.adelete_for_runs("r")):
        with pytest.raises(InvalidTypeError) as bare:
            await call
        assert isinstance(bare.value, TypeError)
    await saver.aprune([])
    await saver.adelete_for_runs([])
    await saver.aprune(["no such"], strategy="delete")
    await saver.adelete_for_runs(["no such"])
    assert await listed(saver, config()) == ["1"]


async def test_copy_takes_everything_and_leaves_two_independent_conversations(saver: AsyncSaver) -> None:
    """Every namespace, checkpoint, write and parent; bytes are shared."""
    for ns in ("", "child:1"):
        await put(saver, "1", {"x": ns, "y": 1}, ns=ns, run_id="run")
        await put(saver, "2", {"x": ns + "!"}, ns=ns, parent="1", run_id="run")
        await saver.aput_writes(config(checkpoint_id="2", ns=ns), [("c", ns)], "task")
    await saver.acopy_thread("t", "copy")
    before = await all_of(saver.alist(config(ns=None)))
    copied = await all_of(saver.alist(config("copy", ns=None)))
    assert [one[1:3] for one in copied] == [one[1:3] for one in before]
    assert [one.pending_writes for one in copied] == [one.pending_writes for one in before]
    assert copied[0].parent_config == config("copy", "1", "child:1")
    if isinstance(saver._shared.store, MemoryStore):
        assert saver.blobs["copy", "", "x", "1"] is saver.blobs["t", "", "x", "1"]
    await put(saver, "3", {"x": "only here"}, thread_id="copy")
    await saver.adelete_thread("t")
    assert await listed(saver, config("copy")) == ["3", "2", "1"]
    await saver.adelete_for_runs(["run"])
    assert await listed(saver, config("copy", ns=None)) == ["3"]


async def test_copy_onto_a_conversation_is_refused(saver: AsyncSaver) -> None:
    """Also where the target is the source, or holds only writes; an unknown source is ignored."""
    await put(saver, "1")
    await saver.aput_writes(config("writes only", "1"), [("c", 1)], "task")
    for target in ("t", "writes only"):
        with pytest.raises(ThreadExistsError, match=target):
            await saver.acopy_thread("t", target)
    await saver.acopy_thread("no such", "new")
    assert await saver.acount() == 2


async def test_an_empty_namespace_means_the_root_and_none_means_all(saver: AsyncSaver) -> None:
    """Order is newest first over everything listed, not namespace by namespace."""
    await put(saver, "1", ns="")
    await put(saver, "2", ns="child:1")
    await put(saver, "3", ns="")
    await put(saver, "4", ns="child:1", thread_id="u")
    await put(saver, "0", ns="", thread_id="u")
    assert await listed(saver, config(ns="")) == ["3", "1"]
    assert await listed(saver, config(ns=None)) == ["3", "2", "1"]
    assert await listed(saver, config(ns="child:1")) == ["2"]
    assert await listed(saver, None) == ["4", "3", "2", "1", "0"]


async def test_list_narrows_by_id_before_limit_and_filter(saver: AsyncSaver) -> None:
    """A filter is equality on top-level keys of the metadata; a limit counts what passed it."""
    for number in range(6):
        await put(saver, f"{number}", metadata={"even": number % 2 == 0, "deep": {"number": number}})
    assert await listed(saver, config(), filter={"even": True}) == ["4", "2", "0"]
    assert await listed(saver, config(), filter={"even": True}, limit=2) == ["4", "2"]
    assert await listed(saver, config(), filter={"deep": {"number": 3}}) == ["3"]
    assert await listed(saver, config(), filter={"missing": None}, limit=1) == ["5"]
    assert await listed(saver, config(), before=config(checkpoint_id="2")) == ["1", "0"]
    assert await listed(saver, config(checkpoint_id="3")) == ["3"]
    assert await listed(saver, config(checkpoint_id="3", ns=None)) == ["3"]
    assert await listed(saver, config(checkpoint_id="3"), before=config(checkpoint_id="3")) == []
    assert await listed(saver, config(), limit=0) == await listed(saver, config(), limit=-1) == []


async def test_metadata_is_enriched_from_the_config(saver: AsyncSaver) -> None:
    """As `get_checkpoint_metadata` does: simple values of the config, but no ids and no private keys."""
    given = {**config(user="u", __private="p", tags=["t"]), "metadata": {"from": "config", "n": 1}}
    await saver.aput(given, checkpoint("1"), {"source": "input", "step": -1, "parents": {}}, {})
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.metadata == {"source": "input", "step": -1, "parents": {}, "from": "config", "n": 1, "user": "u"}


# DeltaChannel. A value is rebuilt from the nearest ancestor's stored value and the writes since.


async def delta_run(saver: AsyncSaver) -> dict[str, Any]:
    """Store checkpoints 0..5 of runs a, a, b, b, c, c; channel d has a value at 0, and e at 2; return the histories."""
    for number in range(6):
        values: dict[str, Any] = {"plain": number}
        if number == 0:
            values["d"] = _DeltaSnapshot(["seed"])
        if number == 2:
            values["e"] = _DeltaSnapshot(["seed of e"])
        made = checkpoint(f"{number}", values, f"{number}")
        made["channel_versions"] |= {"d": f"{number}", "e": f"{number}", "ephemeral": f"{number}"}
        metadata = {"step": number, "counters_since_delta_snapshot": {"d": (1, number), "e": (1, number)}}
        run = "abc"[number // 2]
        parent = f"{number - 1}" if number else None
        await saver.aput(config(checkpoint_id=parent, run_id=run), made, metadata, made["channel_versions"])
        writes = [("d", f"d{number}"), ("e", f"e{number}"), ("ephemeral", 0)]
        await saver.aput_writes(config(checkpoint_id=f"{number}", run_id=run), writes, "task")
    return await histories(saver)


async def histories(saver: AsyncSaver) -> dict[str, Any]:
    """What each checkpoint in sight rebuilds its channels from: those that LangGraph asks for, without task ids."""
    found = {}
    for one in await all_of(saver.alist(config())):
        stored = one.checkpoint
        channels = [
            name for name in stored["channel_versions"] if name in "de" and name not in stored["channel_values"]
        ]
        history = await saver.aget_delta_channel_history(config=one.config, channels=channels)
        found[stored["id"]] = {
            channel: (part.get("seed"), [value for _, _, value in part["writes"]]) for channel, part in history.items()
        }
    return found


async def test_delta_history_is_the_default_walks(saver: AsyncSaver) -> None:
    """The native walk gives, at every checkpoint, what LangGraph's own walk over `aget_tuple` gives."""
    await delta_run(saver)
    for checkpoint_id in ("0", "1", "3", "5", "no such"):
        where, channels = config(checkpoint_id=checkpoint_id), ["d", "e", "plain", "unknown"]
        walked = await BaseCheckpointSaver.aget_delta_channel_history(saver, config=where, channels=channels)
        assert await saver.aget_delta_channel_history(config=where, channels=channels) == walked
    assert (await histories(saver))["5"] == {
        "d": (_DeltaSnapshot(["seed"]), ["d0", "d1", "d2", "d3", "d4"]),
        "e": (_DeltaSnapshot(["seed of e"]), ["e2", "e3", "e4"]),
    }
    assert await saver.aget_delta_channel_history(config=config(), channels=[]) == {}


async def test_prune_keeps_what_a_delta_channel_is_rebuilt_from(saver: AsyncSaver) -> None:
    """The latest reads as before; no checkpoint stays in sight whose own value has lost its ancestors."""
    before = await delta_run(saver)
    await saver.aprune(["t"])
    left = ["5"] if hides_ancestors(saver) else ["5", "4", "3", "2", "0"]
    assert await histories(saver) == {checkpoint_id: before[checkpoint_id] for checkpoint_id in left}
    assert ("t", "", "plain", "5") in versions_of(saver)
    await put(saver, "6", {"d": _DeltaSnapshot(["all"]), "e": _DeltaSnapshot(["all"])}, parent="5")
    await saver.aprune(["t"])
    assert await listed(saver, config()) == ["6"]
    assert [key[2:] for key in versions_of(saver)] == [("d", "6"), ("e", "6")]
    assert writes_of(saver) == {}


async def test_prune_hides_an_ancestor_that_can_no_longer_rebuild_all_its_values(saver: AsyncSaver) -> None:
    """Checkpoint 2 is needed for e, but its own d needs more than the latest does: it would come back empty."""
    before = await delta_run(saver)
    values = {"d": _DeltaSnapshot(["later"])}
    made = checkpoint("6", values, "6")
    made["channel_versions"] |= {"e": "6"}
    await saver.aput(config(checkpoint_id="5"), made, {"step": 6}, made["channel_versions"])
    history = (await histories(saver))["6"]
    await saver.aprune(["t"])
    assert await histories(saver) == {"6": history}
    assert history["e"] == (_DeltaSnapshot(["seed of e"]), [*before["5"]["e"][1], "e5"])
    assert ("t", "", "d", "0") not in versions_of(saver)


async def test_a_snapshot_alone_shows_that_a_channel_is_a_delta_channel(saver: AsyncSaver) -> None:
    """Where no metadata counts since when, the stored value's type tells."""
    await put(saver, "1", {"d": _DeltaSnapshot(["seed"])})
    await saver.aput_writes(config(checkpoint_id="1"), [("d", 1)], "task")
    for number in ("2", "3"):
        made = checkpoint(number, channel_versions={"d": number})
        await saver.aput(config(checkpoint_id=f"{int(number) - 1}"), made, {"step": 1}, {"d": number})
    before = await histories(saver)
    await saver.aprune(["t"])
    assert await histories(saver) == ({"3": before["3"]} if hides_ancestors(saver) else before)
    assert before["3"] == {"d": (_DeltaSnapshot(["seed"]), [1])}


async def test_after_a_run_is_deleted_what_survives_rebuilds_as_before(saver: AsyncSaver) -> None:
    """In sight are only the other runs' checkpoints, and each has the history it had."""
    before = await delta_run(saver)
    await saver.adelete_for_runs(["b"])
    assert await histories(saver) == {checkpoint_id: before[checkpoint_id] for checkpoint_id in ("5", "4", "1", "0")}
    assert await saver.aget_tuple(config(checkpoint_id="2")) is None
    assert ("t", "", "plain", "2") not in versions_of(saver)
    await saver.aprune(["t"])
    assert (await histories(saver))["5"] == before["5"]
    await saver.adelete_for_runs(["a", "c"])
    assert await saver.acount() == 0
    assert (versions_of(saver), writes_of(saver)) == ([], {})


async def test_after_the_last_run_is_deleted_the_next_one_finds_no_trace_of_it(saver: AsyncSaver) -> None:
    """As if it had never been: its input on the surviving head does not win over the next run's."""
    before = await delta_run(saver)
    await saver.aput_writes(config(checkpoint_id="3", run_id="c"), [("d", "input of c")], "input")
    await saver.adelete_for_runs(["c"])
    await saver.aput_writes(config(checkpoint_id="3", run_id="new"), [("d", "input of new")], "input")
    made = checkpoint("4", channel_versions={"d": "4"})
    await saver.aput(config(checkpoint_id="3"), made, {"step": 4}, {"d": "4"})
    assert (await histories(saver))["4"]["d"][1] == [*before["3"]["d"][1], "input of new", "d3"]
