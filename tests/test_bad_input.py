"""Bad and odd input, at every entrance."""

import enum
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID

import pytest

from async_saver import AsyncSaver, ConfigError, InvalidTypeError, InvalidValueError
from tests.build import all_of, checkpoint, config, listed, put
from tests.stores import NewStore

pytestmark = pytest.mark.anyio

_NEEDS_A_THREAD: dict[str, Callable[[AsyncSaver, Any], Any]] = {
    "aget_tuple": lambda saver, where: saver.aget_tuple(where),
    "aget": lambda saver, where: saver.aget(where),
    "aput": lambda saver, where: saver.aput(where, checkpoint("1"), {}, {}),
    "aput_writes": lambda saver, where: saver.aput_writes(where, [("c", 1)], "task"),
    "aget_delta_channel_history": lambda saver, where: saver.aget_delta_channel_history(config=where, channels=["c"]),
}


@pytest.mark.parametrize("where", [{"configurable": {}}, {}, None, {"configurable": {"thread_id": None}}])
@pytest.mark.parametrize("name", _NEEDS_A_THREAD)
async def test_without_a_thread_id_the_error_says_what_to_pass(saver: AsyncSaver, name: str, where: Any) -> None:
    """It is the KeyError that InMemorySaver raises, with a message for people."""
    with pytest.raises(ConfigError, match=r'config=\{"configurable": \{"thread_id"') as caught:
        await _NEEDS_A_THREAD[name](saver, where)
    assert isinstance(caught.value, KeyError)
    assert await saver.acount() == 0


async def test_a_list_of_one_conversation_without_its_id_is_an_error(saver: AsyncSaver) -> None:
    """It is not taken for a list of all of them."""
    with pytest.raises(ConfigError):
        saver.alist({"configurable": {"checkpoint_ns": ""}})
    with pytest.raises(ConfigError):
        saver.list({"configurable": {"checkpoint_ns": ""}})


async def test_writes_without_a_checkpoint_id_say_what_to_pass(saver: AsyncSaver) -> None:
    """The config that a put returned."""
    with pytest.raises(ConfigError, match=r"thread_id 't'.*checkpoint_id"):
        await saver.aput_writes(config(), [("c", 1)], "task")


class Kind(str, enum.Enum):
    """An enumeration of text."""

    CHAT = "chat"


_ODD = ["", "a|b", "a%", "a:b", "a_b", "ab", "\x00", "a\x00b", "ü😀\u202e", "'; --", "a" * 100_000, "x" * 1_000_000]


@pytest.mark.parametrize("odd", [*_ODD, 7, UUID(int=7)], ids=lambda value: repr(value)[:12])
async def test_odd_ids_work_everywhere(saver: AsyncSaver, new_store: NewStore, odd: Any) -> None:
    """As conversation, namespace, checkpoint, channel, task and run; or a store refuses NULs, or what is too long."""
    text = str(odd)
    if ("\0" in text and new_store.kind != "memory") or (len(text) > 2500 and new_store.kind == "postgres"):
        for call in _of_id(saver, text):
            with pytest.raises(InvalidValueError):
                await call
        assert await saver.acount() == 0
        return
    await put(saver, text or "1", {text: "value"}, thread_id=odd, ns=text, run_id=odd)
    await saver.aput_writes(config(odd, text or "1", text), [(text, "write")], text, text)
    found = await saver.aget_tuple(config(odd, ns=text))
    assert found is not None
    assert found.checkpoint["channel_values"] == {text: "value"}
    assert found.pending_writes == [(text, text, "write")]
    assert found.config == config(text, text or "1", text)
    assert await listed(saver, config(odd, text or "1", text)) == [text or "1"]
    assert await all_of(saver.athread_ids()) == [text]
    await saver.acopy_thread(odd, "copy")
    await saver.adelete_thread(odd)
    assert await listed(saver, None) == [text or "1"]
    await saver.adelete_for_runs([odd])
    assert await saver.acount() == 0


def _of_id(saver: AsyncSaver, odd: str) -> "Iterator[Awaitable[Any]]":
    yield put(saver, "1", thread_id=odd)
    yield put(saver, "1", ns=odd)
    yield put(saver, odd)
    yield put(saver, "1", parent=odd)
    yield put(saver, "1", run_id=odd)
    yield put(saver, "1", {odd: "value"})
    yield saver.aput_writes(config(odd, "1"), [("c", 1)], "task")
    yield saver.aput_writes(config(checkpoint_id="1"), [("c", 1)], odd)
    yield saver.acopy_thread("t", odd)


async def test_deleting_one_touches_no_other_whose_name_is_alike(saver: AsyncSaver, new_store: NewStore) -> None:
    """An id is neither a prefix nor a pattern."""
    others = ["", "a:b", "a%", "a_", "ab", "A", "a|", "%", "_", "a "]
    if new_store.kind == "memory":
        others.append("a\x00")
    for thread_id in ("a", *others):
        await put(saver, "1", {"x": thread_id}, thread_id=thread_id, run_id=thread_id)
        await saver.aput_writes(config(thread_id, "1"), [("c", thread_id)], "task")
    await saver.adelete_thread("a")
    await saver.adelete_for_runs(["a"])
    await saver.aprune(["a"], strategy="delete")
    assert sorted(await all_of(saver.athread_ids())) == sorted(others)
    for thread_id in others:
        found = await saver.aget_tuple(config(thread_id))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"x": thread_id}
        assert found.pending_writes == [("task", "c", thread_id)]


async def test_text_of_another_type_names_the_same(saver: AsyncSaver) -> None:
    """A member of a text enumeration is its text, and an int its digits."""
    await put(saver, "1", thread_id=Kind.CHAT)
    await put(saver, "1", thread_id=7)
    assert await listed(saver, config("chat")) == await listed(saver, config("7")) == ["1"]
    stored = await put(saver, Kind.CHAT, parent=Kind.CHAT, run_id=Kind.CHAT)
    assert stored == config(checkpoint_id="chat")
    found = await saver.aget_tuple(config(checkpoint_id=Kind.CHAT))
    assert found is not None
    assert found.parent_config == config(checkpoint_id="chat")
    assert await listed(saver, config(), before=config(checkpoint_id=Kind.CHAT)) == []
    await saver.adelete_for_runs(["chat"])
    assert await listed(saver, config()) == []


async def test_none_is_not_an_id(saver: AsyncSaver) -> None:
    """It would name the conversation 'None'."""
    await put(saver, "1", thread_id="None", run_id="None")
    for call in (
        saver.adelete_thread(None),  # type: ignore[arg-type]
        saver.acopy_thread("None", None),  # type: ignore[arg-type]
        saver.acopy_thread(None, "u"),  # type: ignore[arg-type]
        saver.aprune(None),  # type: ignore[arg-type]
        saver.adelete_for_runs(None),  # type: ignore[arg-type]
        saver.aprune([None], strategy="delete"),  # type: ignore[list-item]
        saver.adelete_for_runs([None]),  # type: ignore[list-item]
    ):
        with pytest.raises(InvalidTypeError):
            await call
    assert await listed(saver, None) == ["1"]


async def test_a_namespace_that_is_absent_is_the_root(saver: AsyncSaver) -> None:
    """In a put, in writes and in a get; upstream's put wants it spelled out."""
    await saver.aput(config(ns=None), checkpoint("1"), {}, {})
    await saver.aput_writes(config(checkpoint_id="1", ns=None), [("c", 1)], "task")
    found = await saver.aget_tuple(config(ns=None))
    assert found is not None
    assert found.config == config(checkpoint_id="1", ns="")
    assert found.pending_writes == [("task", "c", 1)]


async def test_unknown_ids_are_ignored_or_read_as_nothing(saver: AsyncSaver) -> None:
    """By every call that takes one."""
    await put(saver, "1")
    await saver.adelete_thread("unknown")
    await saver.adelete_for_runs(["unknown"])
    await saver.aprune(["unknown"])
    await saver.acopy_thread("unknown", "other")
    assert await saver.aget_tuple(config("unknown")) is None
    assert await saver.aget(config(checkpoint_id="unknown")) is None
    assert await listed(saver, config("unknown")) == []
    assert await listed(saver, config(ns="unknown")) == []
    assert await listed(saver, None) == ["1"]


async def test_no_writes_at_all_leave_no_trace(saver: AsyncSaver) -> None:
    """An empty list of writes is not a conversation."""
    await saver.aput_writes(config(checkpoint_id="1"), [], "task")
    assert await saver.acount() == 0
