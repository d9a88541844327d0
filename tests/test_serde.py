"""FastJsonPlusSerializer does what JsonPlusSerializer does: the same bytes, values, errors, warnings and refusals.

Upstream's class is the oracle throughout. Nothing here knows which values take the short way.
"""

import copy
import json
import logging
import pickle
import re
import struct
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from inspect import isclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePosixPath
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import ormsgpack
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from langchain_core import messages as core
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    BaseMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    ToolMessage,
    message_to_dict,
)
from langgraph.checkpoint.base import maybe_add_typed_methods
from langgraph.checkpoint.serde import _msgpack, jsonplus
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.store.base import Item
from langgraph.types import Command, Interrupt, Send
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from async_saver import AsyncSaver, FastJsonPlusSerializer
from async_saver import serde as serde_module

# Types that a state may hold.


class Colour(Enum):
    """An enum."""

    RED = "red"
    TWO = 2


class Level(str, Enum):
    """An enum that is text."""

    LOW = "low"


class Rank(IntEnum):
    """An enum that is a number."""

    FIRST = 1


class Text(str):
    """Text of a class of its own, with attributes."""


class Whole(int):
    """A number of a class of its own."""


class Real(float):
    """Another."""


class Octets(bytes):
    """Bytes of a class of their own."""


class Buffer(bytearray):
    """Bytes of a class of their own, that can be changed."""


class Table(dict):  # type: ignore[type-arg]
    """A dict of a class of its own."""


class Row(list):  # type: ignore[type-arg]
    """A list of a class of its own."""


class Pair(NamedTuple):
    """A named tuple."""

    left: Any
    right: Any


@dataclass
class Point:
    """A dataclass."""

    x: Any = 0
    y: Any = None


@dataclass
class Moody(Point):
    """A dataclass that is neither true nor false, as an array is."""

    def __bool__(self) -> bool:
        raise ValueError("neither")


@dataclass(frozen=True)
class Spot:
    """A dataclass that can be a key."""

    x: int = 0


class Pet(BaseModel):
    """A pydantic model."""

    name: str = "Rex"
    friends: list[Any] = Field(default_factory=list)


class Chat(BaseModel):
    """A pydantic model that makes messages of what it is given."""

    human: list[HumanMessage] = Field(default_factory=list)
    any: Any = None


class Old:
    """It looks like a pydantic v1 model."""

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"Old(**{self.kwargs})"  # pydantic's warnings tell of copies, whose addresses differ

    def dict(self) -> dict[str, Any]:
        return self.kwargs


class Opaque:
    """Only pickle can write it."""

    def __repr__(self) -> str:
        return "Opaque()"


class Mine(HumanMessage):
    """A subclass that adds nothing."""


class Answer(AIMessage):
    """A subclass that adds a field and a private attribute."""

    score: float = 0.5
    _note: str = PrivateAttr("none")


class AnswerChunk(AIMessageChunk):
    """A subclass that validates on assignment."""

    model_config = ConfigDict(validate_assignment=True)


def _impostor(cls: type[BaseMessage], **namespace: Any) -> Any:
    """Return a subclass that goes by the class's own name and module."""
    return type(cls.__name__, (cls,), {"__module__": cls.__module__, "__doc__": "An impostor.", **namespace})


def _shouting(self: Any, **kwargs: Any) -> dict[str, Any]:
    return {**super(type(self), self).model_dump(**kwargs), "content": "IMPOSTOR"}


ImpostorHuman = _impostor(HumanMessage)
ImpostorAI = _impostor(AIMessage, model_dump=_shouting)


@dataclass
class ImpostorDataclass:
    """Its name and module are a message's."""

    content: Any = "x"


ImpostorDataclass.__name__, ImpostorDataclass.__module__ = HumanMessage.__name__, HumanMessage.__module__

CLASSES: list[Any] = [one for one in (getattr(core, name) for name in core.__all__) if isclass(one)]
CLASSES = [cls for cls in CLASSES if issubclass(cls, BaseMessage)]
SUBCLASSES: list[Any] = [Mine, Answer, AnswerChunk, ImpostorHuman, ImpostorAI]

# What a value is made of, so that values can be compared with their types, told apart, and spoiled.


def _parts(value: Any) -> tuple[Any, list[Any]]:
    """What a value is in itself, and what it holds, in order."""
    if isinstance(value, BaseModel):
        state = ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
        return None, [vars(value), *(getattr(value, name, "unset") for name in state)]
    if isinstance(value, dict):
        return len(value), [one for item in value.items() for one in item]
    if isinstance(value, (set, frozenset)):
        return len(value), sorted(value, key=repr)
    if isinstance(value, (list, tuple, deque)):
        return len(value), [*value]
    if isinstance(value, SecretStr):
        return value.get_secret_value(), []
    if isinstance(value, (Send, Item)):
        return None, [getattr(value, name, "unset") for name in type(value).__slots__]
    if is_dataclass(value) and not isclass(value):
        return None, [getattr(value, one.name, "unset") for one in fields(value)]
    if isinstance(value, memoryview):
        return bytes(value), []
    if hasattr(value, "tobytes"):
        flags = value.flags
        return (value.dtype.str, value.shape, flags.c_contiguous, flags.f_contiguous, flags.writeable), [value.tolist()]
    if isinstance(value, (str, int, bytes)):
        return value, []
    if hasattr(value, "__dict__") and not isinstance(value, (Enum, type)):
        return None, [vars(value)]
    return repr(value), []


def _can_change(value: Any) -> bool:
    if isinstance(value, (Enum, type)):
        return False
    return isinstance(value, (list, dict, set, deque, bytearray, Send, Item)) or hasattr(value, "__dict__")


def portrait(value: Any, met: dict[int, tuple[int, Any]] | None = None) -> Any:
    """A value as one can compare it: its type, what it holds, and where it holds the same object twice."""
    met = {} if met is None else met
    if _can_change(value):
        if id(value) in met:
            return "met before", met[id(value)][0]
        met[id(value)] = len(met), value
    itself, held = _parts(value)
    return type(value), itself, [portrait(one, met) for one in held]


def changeable(value: Any, met: dict[int, Any] | None = None) -> dict[int, Any]:
    """Everything in a value that can be changed, by its id."""
    met = {} if met is None else met
    if id(value) not in met:
        if _can_change(value):
            met[id(value)] = value
        for one in _parts(value)[1]:
            changeable(one, met)
    return met


def spoil(value: Any) -> None:
    """Change everything in a value that can be changed."""
    for one in changeable(value).values():
        if isinstance(one, (list, deque, bytearray)):
            one.append(1)
        elif isinstance(one, dict):
            one["spoiled"] = True
        elif isinstance(one, set):
            one.add("spoiled")


# What a call does.


class Seen(NamedTuple):
    """What a call returned or raised, and everything that it said on the way."""

    outcome: Any
    warned: list[Any]
    events: list[Any]
    logged: list[Any]


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.name, record.levelname, record.getMessage()))


def seen(call: Callable[[], Any], show: Callable[[Any], Any] = portrait) -> Seen:
    """Call as if nothing had been warned of before."""
    for name, already in vars(jsonplus).items():
        if name.startswith("_warned_"):
            already.clear()
    log, events = _Log(), []  # type: ignore[var-annotated]
    stop = register_serde_event_listener(lambda event: events.append(dict(event)))
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [log]  # and not in pytest's report
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                outcome = "returned", show(call())
            except Exception as error:
                outcome = "raised", (type(error), str(error))
    finally:
        root.handlers = handlers
        stop()
    return Seen(outcome, [(one.category, str(one.message)) for one in warned], events, log.said)


ALLOWED = (Mine, Pet, (__name__, "Point"))
CONFIGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "strict": {"allowed_msgpack_modules": None},
    "some": {"allowed_msgpack_modules": ALLOWED},
    "all": {"allowed_msgpack_modules": True},
    "pickle": {"pickle_fallback": True},
    "json": {"allowed_json_modules": True, "allowed_msgpack_modules": None},
}
BOTH = {name: (FastJsonPlusSerializer(**config), JsonPlusSerializer(**config)) for name, config in CONFIGS.items()}
FAST, SLOW = BOTH["as it comes"]


def assert_alike(
    call: Callable[[Any], Any], config: str = "as it comes", *, show: Callable[[Any], Any] = portrait
) -> Any:
    """Both do the same, the second time as the first. Return the outcome."""
    fast, slow = BOTH[config]
    expected = seen(lambda: call(slow), show)
    assert seen(lambda: call(fast), show) == expected
    assert seen(lambda: call(fast), show) == expected
    return expected.outcome


def assert_written_alike(value: Any, config: str = "as it comes") -> None:
    """Both write the same bytes, or fail alike; and the value is left as it was."""
    before = portrait(value)
    assert_alike(lambda serde: serde.dumps_typed(value), config)
    assert portrait(value) == before


def assert_read_alike(data: tuple[str, Any], config: str = "as it comes") -> None:
    """Both read the same, type for type, or fail alike."""
    assert_alike(lambda serde: serde.loads_typed(data), config)


def written(value: Any) -> tuple[str, bytes]:
    """What upstream writes, where it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return SLOW.dumps_typed(value)
        except TypeError:
            assume(False)
            raise


# Values, drawn by Hypothesis.

_LENGTHS = (0, 1, 15, 16, 31, 32, 255, 256)
_words = st.sampled_from(["", "a", "b", "text", "id", "type", "name", "content", "lc_1", "é"])
_rare = st.sampled_from(["\0", "\ud800", "a\udfffb", "\U0001f600", "é" * 128])
_texts = _words | st.text(max_size=5) | st.sampled_from(_LENGTHS).map("x".__mul__) | _rare
_ints = st.integers(-2, 300) | st.sampled_from([2**31, -(2**31) - 1, 2**63, 2**64 - 1, -(2**63)])
_floats = st.sampled_from([0.0, -0.0, 1.5, 1e300, float("inf"), float("nan")])
_scalars = st.none() | st.booleans() | _ints | _floats | _texts


def _nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=most
    )


_json = _nested(_scalars, _words, 4)
_json_dicts = st.dictionaries(_words, _json, max_size=3)

_odd_keys = st.one_of(
    _words,
    st.integers(-1, 2),
    st.none(),
    st.booleans(),
    st.floats(width=16),
    st.tuples(st.integers(0, 1), _words),
    st.sampled_from([Colour.RED, Level.LOW, Rank.FIRST, UUID(int=1), date(2000, 1, 1), b"k", Spot(), frozenset()]),
    st.builds(Text, _words),
)
_zones = st.sampled_from([None, timezone.utc, timezone(timedelta(hours=2), "two")])
_odd_scalars = st.one_of(
    st.datetimes(timezones=_zones),
    st.dates(),
    st.times(timezones=_zones),
    st.timedeltas(),
    st.sampled_from([UUID(int=7), Decimal("1.50"), PurePosixPath("a/b"), re.compile("a+", re.I), SecretStr("s")]),
    st.sampled_from([IPv4Address("127.0.0.1"), IPv6Address("::1"), timezone.utc, Colour.TWO, Level.LOW, Rank.FIRST]),
    st.sampled_from([2**64, -(2**63) - 1, 10**40, ValueError("told"), Ellipsis, Opaque(), int, len, 1j]),
    st.binary(max_size=3),
    st.builds(bytearray, st.binary(max_size=3)),
    st.builds(memoryview, st.binary(max_size=3)),
    st.builds(Octets, st.binary(max_size=3)),
    st.builds(Buffer, st.binary(max_size=3)),
    st.builds(Text, _words),
    st.builds(Whole, st.integers(0, 300)),
    st.builds(Real, st.floats(0, 1)),
    st.sets(st.integers(0, 9) | _words, max_size=2),
    st.frozensets(st.integers(0, 9), max_size=2),
    st.builds(Spot, st.integers(0, 1)),
    st.builds(Old, a=st.integers(0, 1)),
    st.builds(Pet, name=_words),
    st.builds(Document, page_content=_words),
)


def _odd_containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists, dicts = st.lists(inner, max_size=3), st.dictionaries(_odd_keys, inner, max_size=3)
    return st.one_of(
        lists,
        dicts,
        st.builds(tuple, lists),
        st.builds(deque, lists),
        st.builds(Row, lists),
        st.builds(Table, dicts),
        st.builds(OrderedDict, dicts),
        st.builds(lambda items: defaultdict(list, items), dicts),
        st.builds(Pair, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Chat, any=inner),
        st.builds(Send, _words, inner),
        st.builds(Interrupt, value=inner, id=_words),
        st.builds(lambda value: Command(update=value, goto=[Send("n", value), "m"], resume={"i": value}), inner),
        st.builds(_DeltaSnapshot, inner),
        st.builds(lambda v: Item(value={"v": v}, key="k", namespace=("n",), created_at=NOW, updated_at=NOW), inner),
    )


NOW = datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc)


@st.composite
def _leaves(draw: st.DrawFn) -> Any:
    return draw(st.one_of(_scalars, _odd_scalars, _plain_messages))


_odd = st.recursive(_leaves(), _odd_containers, max_leaves=4)
_odd_dicts = st.dictionaries(_odd_keys, _odd, max_size=3)

# Fields of messages.

_block_types = ["text", "image_url", "tool_use", "tool_call", "tool_call_chunk", "server_tool_call", "reasoning", "?"]
_block_fields = {
    "text": _texts,
    "image_url": st.fixed_dictionaries({"url": _words}),
    "id": _words | st.none(),
    "name": _words,
    "args": st.sampled_from(["{}", '{"a": 1}', "[", "", None]) | _json_dicts,
    "input": _json,
    "index": st.integers(0, 1),
    "extras": _json_dicts,
}
_blocks = st.fixed_dictionaries({"type": st.sampled_from(_block_types)}, optional=_block_fields) | _json_dicts
_arguments = st.sampled_from(["{}", '{"a": 1}', '{"a": [1.5, null]}', "[1]", "{", "", "null", '"x"', None, 5])
_openai_calls = st.fixed_dictionaries(
    {"id": _words | st.none(), "type": st.just("function")},
    optional={
        "function": st.fixed_dictionaries({"name": _words | st.none()}, optional={"arguments": _arguments}),
        "index": st.integers(0, 1),
    },
)
_kwargs = _json_dicts | st.fixed_dictionaries(
    {},
    optional={
        "tool_calls": st.lists(_openai_calls, max_size=2) | st.sampled_from([None, [], "junk", [5], {}]).map(copy.copy),
        "function_call": st.fixed_dictionaries({"name": _words, "arguments": _arguments}),
        "reasoning_content": _texts,
    },
)
_metadata = _json_dicts | st.fixed_dictionaries(
    {},
    optional={
        "output_version": st.sampled_from(["v1", "v0"]),
        "model_provider": st.sampled_from(["openai", "anthropic", "nobody"]),
        "token_usage": st.fixed_dictionaries({"prompt_tokens": _ints}),
    },
)
_tool_calls = st.fixed_dictionaries(
    {"name": _words, "args": _json_dicts, "id": _words | st.none()}, optional={"type": st.just("tool_call")}
)
_invalid_calls = st.fixed_dictionaries(
    {name: _words | st.none() for name in ("name", "args", "id", "error")},
    optional={"type": st.just("invalid_tool_call")},
)
_call_chunks = st.fixed_dictionaries(
    {"name": _words | st.none(), "args": _arguments.filter(lambda one: one != 5), "id": _words | st.none()},
    optional={"index": st.none() | st.integers(0, 2), "type": st.just("tool_call_chunk")},
)
_counts = st.integers(0, 300)
_usage = st.fixed_dictionaries(
    dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), _counts),
    optional={
        "input_token_details": st.dictionaries(st.sampled_from(["audio", "cache_creation", "cache_read"]), _counts),
        "output_token_details": st.dictionaries(st.sampled_from(["audio", "reasoning"]), _counts),
    },
)

PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "content": _texts | st.lists(_texts | _blocks, max_size=3),
    "additional_kwargs": _kwargs,
    "response_metadata": _metadata,
    "name": st.none() | _words,
    "id": st.none() | _texts | st.integers(0, 9),
    "type": st.sampled_from(["human", "custom"]),
    "tool_calls": st.lists(_tool_calls, max_size=2),
    "invalid_tool_calls": st.lists(_invalid_calls, max_size=2),
    "usage_metadata": st.none() | _usage,
    "tool_call_chunks": st.lists(_call_chunks, max_size=2),
    "chunk_position": st.sampled_from([None, "last"]),
    "tool_call_id": _words | st.integers(0, 9) | st.just(UUID(int=3)) | st.just(1.5),
    "artifact": _json,
    "status": st.sampled_from(["success", "error"]),
    "role": _words,
    "score": _floats,
}
_wrong = st.sampled_from([5, None, "other", "", 3.0, True, b"x", [5], [None], [[]], [{"name": 1}], (), ("a",)])
_wrong |= st.builds(dict) | st.builds(list) | st.just({"input_tokens": "5", "more": 1})
_wrong = _wrong.map(copy.deepcopy)  # each example its own
ODD: dict[str, st.SearchStrategy[Any]] = {
    **{name: wanted | _wrong | _odd for name, wanted in PLAIN.items()},
    "content": PLAIN["content"] | st.lists(_texts | _odd_dicts | _odd, max_size=2) | _wrong,
    "additional_kwargs": _odd_dicts | _kwargs | _wrong,
    "response_metadata": _odd_dicts | _metadata | _wrong,
    "artifact": _odd,
    "foo": _json | _odd,
    "content_blocks": st.none() | st.lists(_blocks, max_size=2),
}


def _built(cls: Any, values: dict[str, Any]) -> Any:
    """A message with these fields, unchecked if they do not do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cls(**values)
        except Exception:
            return cls.model_construct(**values)


def _needed(cls: Any) -> set[str]:
    if issubclass(cls, RemoveMessage):
        return {"id"}
    return {name for name, field in cls.model_fields.items() if field.is_required()}


def _fields(cls: Any, drawn: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    needed, others = _needed(cls), [name for name in cls.model_fields if name not in ("type", "content")]
    others += [name for name in drawn if name in ("foo", "content_blocks")]
    return st.fixed_dictionaries(
        {name: drawn[name] for name in sorted(needed)},
        optional={name: drawn[name] for name in others if name not in needed},
    )


_FIELDS = {(cls, False): _fields(cls, PLAIN) for cls in [*CLASSES, *SUBCLASSES]}
_FIELDS |= {(cls, True): _fields(cls, ODD) for cls in CLASSES}


@st.composite
def _instances(draw: st.DrawFn, classes: list[Any], odd: bool = False) -> Any:
    cls = draw(st.sampled_from(classes))
    return _built(cls, draw(_FIELDS[cls, odd]))


_plain_messages = _instances(CLASSES)
_odd_messages = _instances(CLASSES, odd=True)
_subclassed = _instances(SUBCLASSES)
_names = st.sampled_from([*PLAIN, "foo"])


# Changes to a message after it was made; each returns the message, or another for it.


def _assigned(message: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(message, name, value)
    return message


def _without(message: Any, name: str) -> Any:
    delattr(message, name)
    return message


def _smuggled(message: Any, **values: Any) -> Any:
    """Past pydantic."""
    vars(message).update(values)
    return message


def _inner(message: Any, **values: Any) -> Any:
    """What pydantic keeps beside the fields."""
    for name, value in values.items():
        object.__setattr__(message, f"__pydantic_{name}__", value)
    return message


def _reordered(message: Any, order: Random) -> Any:
    items = [*vars(message).items()]
    order.shuffle(items)
    object.__setattr__(message, "__dict__", dict(items))
    return message


def _in_calls(message: Any, field: str, **values: Any) -> Any:
    for one in getattr(message, field):
        one.update(values)
    return message


def _disguised(message: Any, cls: Any) -> Any:
    object.__setattr__(message, "__class__", cls)
    return message


_CALLS = st.sampled_from(["tool_calls", "invalid_tool_calls", "tool_call_chunks"])
_CHANGES: list[st.SearchStrategy[Callable[[Any], Any]]] = [
    st.builds(lambda name, value: lambda m: _assigned(m, **{name: value}), _names, _wrong | _odd),
    st.builds(lambda name: lambda m: _assigned(m, **{name: getattr(m, name)}), _names),
    st.builds(lambda name: lambda m: _without(m, name), _names),
    st.builds(lambda name, value: lambda m: _smuggled(m, **{name: value}), _names, _wrong),
    st.builds(lambda value: lambda m: _inner(m, extra=value), st.sampled_from([None, {}, {"foo": 1}])),
    st.builds(lambda value: lambda m: _inner(m, private=value), st.sampled_from([None, {}, {"_note": 1}])),
    st.builds(lambda names: lambda m: _inner(m, fields_set=set(names)), st.lists(_names)),
    st.builds(lambda order: lambda m: _reordered(m, order), st.randoms(use_true_random=False)),
    st.builds(lambda name, value: lambda m: m.model_copy(update={name: value}), _names, _wrong | _json),
    st.builds(lambda names: lambda m: m.model_construct(**{n: getattr(m, n) for n in names}), st.lists(_names)),
    st.sampled_from([copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]),
    st.builds(lambda field, key, value: lambda m: _in_calls(m, field, **{key: value}), _CALLS, _words, _wrong | _odd),
    st.builds(lambda field, value: lambda m: _assigned(m, **{field: [*getattr(m, field), value]}), _CALLS, _wrong),
    st.builds(lambda key, value: lambda m: m.usage_metadata.update({key: value}) or m, _words, _wrong | _odd),
    st.builds(lambda value: lambda m: m.content.append(value) or m, _wrong),
    st.builds(lambda cls: lambda m: _disguised(m, cls), st.sampled_from([Mine, ImpostorHuman, HumanMessage])),
]


@st.composite
def _changed_messages(draw: st.DrawFn) -> Any:
    message = draw(_plain_messages | _subclassed)
    for change in draw(st.lists(st.one_of(_CHANGES), min_size=1, max_size=3)):
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = change(message)
    return message


_all_messages = st.one_of(_plain_messages, _plain_messages, _odd_messages, _changed_messages(), _subclassed)


@st.composite
def _any_leaves(draw: st.DrawFn) -> Any:
    return draw(st.one_of(_all_messages, _all_messages, _scalars, _odd_scalars))


_values = st.recursive(_any_leaves(), _odd_containers, max_leaves=5)
_configs = st.sampled_from([*CONFIGS])

# Corners, by name.


def _cyclic_kwargs() -> Any:
    message = HumanMessage("x")
    message.additional_kwargs["again"] = message.additional_kwargs
    return message


def _cyclic_content() -> Any:
    message = HumanMessage(["x"])
    message.content.append(message.content)  # type: ignore[union-attr, arg-type]
    return message


def _cyclic_artifact() -> Any:
    message = ToolMessage("x", tool_call_id="1")
    message.artifact = [message]
    return message


def _cyclic_list() -> Any:
    cyclic: list[Any] = [HumanMessage("x")]
    cyclic.append(cyclic)
    return cyclic


def _cyclic_send() -> Any:
    send = Send("n", None)
    send.arg = [send]
    return send


def _shared_parts() -> Any:
    part: dict[str, Any] = {"a": [1]}
    message = AIMessage("x", additional_kwargs=part, response_metadata={"p": part})
    return [message, message, AIMessage([part, part], additional_kwargs={"p": part})]


_CALL = {"name": "f", "args": {"a": 1}, "id": "1"}
_OPENAI = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


def _with_kwargs(message: Any, **values: Any) -> Any:
    message.additional_kwargs.update(values)
    return message


def _calling(cls: Any = AIMessage) -> Any:
    return cls("x", tool_calls=[dict(_CALL)], usage_metadata=dict(_USAGE))


def _human() -> Any:
    return HumanMessage("x", id="1", additional_kwargs={"a": {"b": [1]}})


CORNERS: dict[str, Callable[[], Any]] = {
    "content a number": lambda: _assigned(_human(), content=5),
    "content None": lambda: _assigned(_human(), content=None),
    "content a tuple": lambda: _assigned(_human(), content=("a", "b")),
    "content bytes": lambda: _assigned(_human(), content=b"x"),
    "content text of a subclass": lambda: _assigned(_human(), content=Text("x")),
    "content of numbers": lambda: _assigned(_human(), content=[5, None]),
    "content of a list": lambda: _assigned(_human(), content=[["a"]]),
    "content of a message": lambda: _assigned(_human(), content=[_human()]),
    "content in an odd list": lambda: _assigned(_human(), content=Row(["a", Table(b=1)])),
    "content of blocks with odd keys": lambda: HumanMessage([{1: 2, None: 3, (1, 2): 4}]),
    "content with a surrogate": lambda: HumanMessage("\ud800 \0"),
    "long content": lambda: HumanMessage("é" * 40_000),
    "type another": lambda: _assigned(_human(), type="other"),
    "type of a subclass of text": lambda: _assigned(_human(), type=Text("human")),
    "name a number": lambda: _assigned(_human(), name=3),
    "id a number": lambda: HumanMessage("x", id=5),  # type: ignore[arg-type]
    "id assigned a number": lambda: _assigned(_human(), id=5),
    "id a UUID": lambda: _assigned(_human(), id=UUID(int=1)),
    "kwargs None": lambda: _assigned(_human(), additional_kwargs=None),
    "kwargs a list": lambda: _assigned(_human(), additional_kwargs=[1]),
    "kwargs of a subclass": lambda: _assigned(_human(), additional_kwargs=Table(a=1)),
    "kwargs with defaults": lambda: _assigned(_human(), additional_kwargs=defaultdict(list, a=[1])),
    "metadata None": lambda: _assigned(_human(), response_metadata=None),
    "tool_calls None": lambda: _assigned(_calling(), tool_calls=None),
    "tool_calls a tuple": lambda: _assigned(_calling(), tool_calls=(dict(_CALL),)),
    "tool_calls with more": lambda: _in_calls(_calling(), "tool_calls", more=1),
    "tool_calls with extras": lambda: _in_calls(_calling(), "tool_calls", extras={"a": 1}),
    "tool_calls with less": lambda: _assigned(_calling(), tool_calls=[{"name": "f"}]),
    "tool_calls with odd keys": lambda: _in_calls(_calling(), "tool_calls", args={1: 2}),
    "tool_calls with a model": lambda: _in_calls(_calling(), "tool_calls", args={"a": Pet()}),
    "tool_calls with odd ids": lambda: _in_calls(_calling(), "tool_calls", id=5),
    "tool_calls of another type": lambda: _in_calls(_calling(), "tool_calls", type="function"),
    "tool_calls of a chunk": lambda: _calling(AIMessageChunk),
    "tool_calls of a chunk assigned": lambda: _assigned(_calling(AIMessageChunk), tool_calls=[]),
    "tool_call_chunks gone": lambda: _assigned(_calling(AIMessageChunk), tool_call_chunks=[]),
    "tool_call_chunks that parse otherwise": lambda: _in_calls(
        _calling(AIMessageChunk), "tool_call_chunks", args='{"a": [1'
    ),
    "the last chunk": lambda: AIMessageChunk(
        [{"type": "tool_call_chunk", "id": "1", "args": "{}", "name": "f", "extras": {"a": 1}}],
        tool_call_chunks=[{"name": "f", "args": '{"a": 1}', "id": "1", "index": 0}],
        response_metadata={"output_version": "v1"},
        chunk_position="last",
    ),
    "the last server chunk": lambda: AIMessageChunk(
        [{"type": "server_tool_call_chunk", "args": '{"a": 1}'}, {"type": "server_tool_call", "args": "["}],
        response_metadata={"output_version": "v1"},
        chunk_position="last",
    ),
    "OpenAI's tool calls": lambda: AIMessage("x", additional_kwargs={"tool_calls": [_OPENAI, {"id": "2"}]}),
    "OpenAI's tool calls in a chunk": lambda: AIMessageChunk("x", additional_kwargs={"tool_calls": [_OPENAI]}),
    "OpenAI's tool calls set later": lambda: _assigned(AIMessage("x"), additional_kwargs={"tool_calls": [_OPENAI]}),
    "OpenAI's tool calls and none of ours": lambda: _assigned(
        AIMessage("x", additional_kwargs={"tool_calls": [_OPENAI]}), tool_calls=[]
    ),
    "OpenAI's tool calls spoiled": lambda: _assigned(
        AIMessage("x"), additional_kwargs={"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    ),
    "OpenAI's tool calls amiss": lambda: _assigned(AIMessage("x"), additional_kwargs={"tool_calls": ["x"]}),
    "OpenAI's tool calls neither there nor not": lambda: _with_kwargs(AIMessage("x"), tool_calls=Moody()),
    "tool_calls neither there nor not": lambda: _assigned(AIMessage("x"), tool_calls=Moody()),
    "tool_calls of a chunk neither there nor not": lambda: _assigned(AIMessageChunk("x"), tool_calls=Moody()),
    "tool_call_chunks neither there nor not": lambda: _assigned(AIMessageChunk("x"), tool_call_chunks=Moody()),
    "fields neither there nor not": lambda: _assigned(
        ToolMessage("x", tool_call_id="1"), content=Moody(), artifact=Moody(), status=Moody(), id=Moody()
    ),
    "extras neither there nor not": lambda: _inner(_human(), extra=Moody()),
    "invalid_tool_calls": lambda: AIMessage(
        "x", invalid_tool_calls=[{"name": None, "args": "{", "id": None, "error": None}]
    ),
    "usage with all details": lambda: AIMessage(
        "x",
        usage_metadata={
            **_USAGE,  # type: ignore[typeddict-item]
            "input_token_details": {"audio": 1, "cache_creation": 2, "cache_read": 3},
            "output_token_details": {"audio": 1, "reasoning": 2},
        },
    ),
    "usage with more": lambda: AIMessage(
        "x",
        usage_metadata={**_USAGE, "more": 1, "input_token_details": {"odd": 2}},  # type: ignore[typeddict-item]
    ),
    "usage with more set later": lambda: _assigned(
        AIMessage("x"), usage_metadata={**_USAGE, "more": 1, "input_token_details": {"odd": 2}}
    ),
    "usage as text": lambda: _assigned(AIMessage("x"), usage_metadata={**_USAGE, "input_tokens": "5"}),
    "usage as truth": lambda: _assigned(AIMessage("x"), usage_metadata={**_USAGE, "input_tokens": True}),
    "usage as floats": lambda: _assigned(AIMessage("x"), usage_metadata=dict.fromkeys(_USAGE, 2.0)),
    "usage as fractions": lambda: _assigned(AIMessage("x"), usage_metadata=dict.fromkeys(_USAGE, 2.5)),
    "usage with less": lambda: _assigned(AIMessage("x"), usage_metadata={"input_tokens": 1}),
    "usage empty": lambda: _assigned(AIMessage("x"), usage_metadata={}),
    "usage reordered": lambda: AIMessage("x", usage_metadata=dict(reversed(_USAGE.items()))),  # type: ignore[arg-type]
    "usage beyond 64 bits": lambda: AIMessage("x", usage_metadata=dict.fromkeys(_USAGE, 2**64)),  # type: ignore[arg-type]
    "artifact a model": lambda: ToolMessage("x", tool_call_id="1", artifact=Pet()),
    "artifact a message": lambda: ToolMessage("x", tool_call_id="1", artifact=[_human()]),
    "artifact a dataclass": lambda: ToolMessage("x", tool_call_id="1", artifact={"p": Point(Point(1), [NOW])}),
    "artifact a Send": lambda: ToolMessage("x", tool_call_id="1", artifact=Send("n", _human())),
    "artifact an error": lambda: ToolMessage("x", tool_call_id="1", artifact=ValueError("told")),
    "artifact an object": lambda: ToolMessage("x", tool_call_id="1", artifact=Opaque()),
    "artifact bytes": lambda: ToolMessage("x", tool_call_id="1", artifact=b"x"),
    "artifact a generator's range": lambda: ToolMessage("x", tool_call_id="1", artifact=range(3)),
    "tool_call_id a number": lambda: _assigned(ToolMessage("x", tool_call_id="1"), tool_call_id=1),
    "tool content of numbers": lambda: _assigned(ToolMessage("x", tool_call_id="1"), content=[1, None, {"a": 1}]),
    "status another": lambda: _assigned(ToolMessage("x", tool_call_id="1"), status="unknown"),
    "role None": lambda: _assigned(ChatMessage("x", role="r"), role=None),
    "name of a function None": lambda: _assigned(FunctionMessage("x", name="f"), name=None),
    "removal with content": lambda: _assigned(RemoveMessage("1"), content="x"),
    "removal without an id": lambda: _assigned(RemoveMessage("1"), id=None),
    "an extra field": lambda: HumanMessage("x", foo=1),
    "an extra field set later": lambda: _assigned(_human(), foo=[1]),
    "an extra model": lambda: HumanMessage("x", foo=Pet()),
    "an extra called content_blocks": lambda: _human().model_copy(
        update={"content_blocks": [{"type": "text", "text": "other"}]}
    ),
    "an extra called model_dump": lambda: HumanMessage("x", model_dump=1),
    "extras gone": lambda: _inner(_human(), extra=None),
    "private attributes": lambda: _inner(_human(), private={"_a": 1}),
    "fields not set": lambda: _inner(_human(), fields_set=set()),
    "a field smuggled in": lambda: _smuggled(_human(), foo=1),
    "a method smuggled in": lambda: _smuggled(_human(), model_dump=lambda: {"content": "smuggled"}),
    "a field gone": lambda: _without(_human(), "name"),
    "a field gone and one smuggled in": lambda: _smuggled(_without(_human(), "name"), foo=1),
    "fields in another order": lambda: _reordered(_human(), Random(1)),
    "never initialised": lambda: HumanMessage.__new__(HumanMessage),
    "constructed": lambda: AIMessage.model_construct(content="x"),
    "constructed of nothing": lambda: AIMessage.model_construct(),
    "constructed of anything": lambda: AIMessage.model_construct(content=5, tool_calls=[5], foo=1),
    "copied with more": lambda: _human().model_copy(update={"foo": 1}),
    "copied with less": lambda: _human().model_copy(update={"content": 5}),
    "deeply copied": lambda: copy.deepcopy(_human()),
    "pickled": lambda: pickle.loads(pickle.dumps(_calling())),
    "disguised": lambda: _disguised(_human(), Mine),
    "a subclass": lambda: Mine("x"),
    "a subclass with fields": lambda: Answer("x", tool_calls=[dict(_CALL)], score=1.5),
    "a subclass with a private attribute": lambda: _assigned(Answer("x"), _note="n"),
    "a subclass by the same name": lambda: ImpostorHuman("x"),
    "a subclass by the same name with its own way": lambda: ImpostorAI("x"),
    "a dataclass by the same name": lambda: ImpostorDataclass(),
    "a base message": lambda: BaseMessage("x", type="human"),
    "a base chunk": lambda: BaseMessageChunk("x", type="odd"),
    "a message's class": lambda: HumanMessage,
    "a message as a key": lambda: {Spot(1): _human()},
    "beyond 64 bits": lambda: HumanMessage("x", additional_kwargs={"a": 2**64}),
    "beyond 64 bits below": lambda: [HumanMessage("x"), -(2**63) - 1],
    "NaN and negative zero": lambda: AIMessage("x", response_metadata={"a": [float("nan"), -0.0, float("-inf")]}),
    "odd keys": lambda: HumanMessage("x", additional_kwargs={1: 1, None: 2, (1, "a"): 3, False: 4, 1.5: 5, b"k": 6}),
    "odd values": lambda: HumanMessage("x", additional_kwargs={"a": (1, {2}, deque([3]), Pair(4, 5), NOW, b"6")}),
    "odd texts": lambda: HumanMessage("x", additional_kwargs={Text("a"): Text("b"), Level.LOW: Colour.RED}),
    "odd classes": lambda: HumanMessage("x", additional_kwargs={"a": [Point(), Pet(), Old(a=1), SecretStr("s")]}),
    "a model with messages": lambda: Chat(human=[_human()], any=[_human(), Point(_human())]),
    "a deep state": lambda: {"m": [_human(), (_calling(),)], "x": Point(deque([_human()]), Pair(_human(), 1))},
    "a snapshot": lambda: _DeltaSnapshot([_human(), _calling()]),
    "a Send": lambda: Send("n", {"m": [_human()]}),
    "a Command": lambda: Command(update={"m": [_human()]}, goto=[Send("n", _human())], resume=_human()),
    "an Interrupt": lambda: (Interrupt(value=_human(), id="1"),),
    "a document": lambda: Document("x", metadata={"m": _human()}),
    "cyclic kwargs": _cyclic_kwargs,
    "cyclic content": _cyclic_content,
    "a cyclic artifact": _cyclic_artifact,
    "a cyclic list": _cyclic_list,
    "a cyclic Send": _cyclic_send,
    "shared parts": _shared_parts,
    "a timeout's Send": lambda: Send("n", [_human()], timeout=5.0),
    "an extension": lambda: [_human(), ToolMessage("x", tool_call_id="1", artifact=ormsgpack.Ext(5, b"\xc0"))],
    "bytes in a list": lambda: [b"x", bytearray(b"y"), memoryview(b"z")],
    "bytes of a subclass in a list": lambda: [Octets(b"x")],
    "a bytearray of a subclass in a list": lambda: [Buffer(b"x")],
    "bytes of a subclass in kwargs": lambda: HumanMessage("x", additional_kwargs={"a": Octets(b"x")}),
    "bytes of a subclass in a Send": lambda: Send("n", {"a": Octets(b"x")}),
    "an error in a list": lambda: [ValueError("told"), KeyError("a", 1)],
    "nothing": lambda: None,
    "bytes": lambda: b"x",
    "bytes of a subclass": lambda: Octets(b"x"),
    "a bytearray of a subclass": lambda: Buffer(b"x"),
    "a bytearray": lambda: bytearray(b"x"),
    "text of a subclass": lambda: Text("x"),
    "a time": lambda: time(1, 2, 3, 4, timezone.utc),
}
with_every_corner = pytest.mark.parametrize("corner", [*CORNERS])
with_every_config = pytest.mark.parametrize("config", [*CONFIGS])
with_every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)

# Writing.


@with_every_corner
def test_a_corner_is_written_as_upstream_writes_it(corner: str) -> None:
    """The same bytes, or the same error, with the same warnings."""
    assert_written_alike(CORNERS[corner]())


@with_every_corner
def test_a_warning_that_is_an_error_stays_one(corner: str) -> None:
    """Pydantic warns of wrong types; where warnings raise, both fail, or both do not."""
    value = CORNERS[corner]()

    def strictly(serde: JsonPlusSerializer) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return serde.dumps_typed(value)

    assert_alike(strictly)


@with_every_corner
def test_a_corner_is_written_alike_with_pickle_to_fall_back_on(corner: str) -> None:
    """What msgpack refuses is pickled as upstream would."""
    assert_written_alike(CORNERS[corner](), "pickle")


@settings(max_examples=200)
@given(_plain_messages)
def test_messages_are_written_as_upstream_writes_them(message: BaseMessage) -> None:
    """Every class with every field, byte for byte."""
    assert_written_alike(message)


@settings(max_examples=200)
@given(_odd_messages | _changed_messages() | _subclassed)
def test_odd_messages_are_written_as_upstream_writes_them(message: BaseMessage) -> None:
    """Also with fields of wrong types, missing and extra ones, and changed past pydantic."""
    assert_written_alike(message)


@settings(max_examples=150)
@given(_values)
def test_all_else_is_written_as_upstream_writes_it(value: Any) -> None:
    """Containers, models, dataclasses, enums, what LangGraph stores; with messages anywhere in them."""
    assert_written_alike(value)


def _deep(depth: int, leaf: Any) -> Any:
    for number in range(depth):
        leaf = [leaf] if number % 2 else {"a": leaf}
    return leaf


_DEEP: dict[str, Callable[[Any], Any]] = {
    "kwargs": lambda value: HumanMessage("x", additional_kwargs={"a": value}),
    "metadata": lambda value: _assigned(HumanMessage("x"), response_metadata=value),
    "content": lambda value: HumanMessage([{"a": value}]),
    "tool call": lambda value: AIMessage("x", tool_calls=[{"name": "f", "args": {"a": value}, "id": "1"}]),
    "artifact": lambda value: ToolMessage("x", tool_call_id="1", artifact=value),
    "list": lambda value: [value],
    "snapshot": lambda value: _DeltaSnapshot(value),
}


@pytest.mark.parametrize("leaf", [1, HumanMessage("x"), NOW], ids=["number", "message", "datetime"])
@pytest.mark.parametrize("place", [*_DEEP])
def test_depth_is_limited_where_upstream_limits_it(place: str, leaf: Any) -> None:
    """Pydantic and msgpack go so deep and no deeper; the limit is the same to the level."""
    outcomes = set()
    for depth in (10, *range(244, 260), 600):
        value = _DEEP[place](_deep(depth, leaf))
        outcomes.add(assert_alike(lambda serde, value=value: serde.dumps_typed(value), show=tuple)[0])
    assert outcomes == {"returned", "raised"}


# Reading.


def _written_corner(corner: str) -> tuple[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return BOTH["pickle"][1].dumps_typed([CORNERS[corner]()])
        except Exception:
            pytest.skip("what cannot be written cannot be read")


@with_every_corner
def test_a_corner_is_read_as_upstream_reads_it(corner: str) -> None:
    """Equal values of equal types, with the same events, log lines and refusals, under any allowlist."""
    data = _written_corner(corner)
    for config in CONFIGS:
        assert_read_alike(data, config)


@settings(max_examples=150)
@given(_plain_messages)
def test_messages_are_read_as_upstream_reads_them(message: BaseMessage) -> None:
    """Type for type, with the same `model_fields_set` and the same order of fields."""
    assert_read_alike(written(message))


@settings(max_examples=150)
@given(_odd_messages | _changed_messages() | _subclassed, _configs)
def test_odd_messages_are_read_as_upstream_reads_them(message: BaseMessage, config: str) -> None:
    """Validated, mended and replaced by their plain values where upstream does so."""
    assert_read_alike(written(message), config)


@settings(max_examples=150)
@given(_values, _configs)
def test_all_else_is_read_as_upstream_reads_it(value: Any, config: str) -> None:
    """Under any allowlist."""
    assert_read_alike(written(value), config)


@settings(max_examples=80)
@given(_all_messages | _values)
def test_two_reads_share_nothing(value: Any) -> None:
    """Whatever is done to one value, another read of the same bytes, before or after, is as if it had not been."""
    data = written(value)
    first, second = FAST.loads_typed(data), FAST.loads_typed(data)
    assert not changeable(first).keys() & changeable(second).keys()
    expected = portrait(second)
    spoil(first)
    assert portrait(second) == expected
    assert portrait(FAST.loads_typed(data)) == expected
    assert portrait(FastJsonPlusSerializer().loads_typed(data)) == expected


@with_every_class
def test_two_messages_of_one_value_share_nothing(cls: Any) -> None:
    """Not even what they have from defaults, which are each message's own."""
    least = dict.fromkeys(_needed(cls), "1")
    first, second = FAST.loads_typed(SLOW.dumps_typed([cls(**least), cls(**least)]))
    assert not changeable(first).keys() & changeable(second).keys()


def test_what_is_read_is_not_what_was_written() -> None:
    """A change to the message that was written, or to the bytes that were read, changes nothing that was read."""
    message = _calling()
    type_, data = FAST.dumps_typed(message)
    buffer = bytearray(data)
    read = FAST.loads_typed((type_, buffer))
    expected = portrait(read)
    spoil(message)
    buffer[:] = bytes(len(buffer))
    assert portrait(read) == expected


def test_a_message_that_was_changed_is_written_anew() -> None:
    """No bytes are kept for a message."""
    message = _calling()
    for change in (
        lambda: message.tool_calls[0]["args"].update(b=2),
        lambda: message.usage_metadata.update(total_tokens=9),
        lambda: message.additional_kwargs.update(a=1),
        lambda: setattr(message, "content", "y"),
    ):
        before = FAST.dumps_typed(message)
        change()
        assert before != FAST.dumps_typed(message) == SLOW.dumps_typed(message)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_may_come_in_any_buffer(kind: type) -> None:
    """As upstream takes them."""
    type_, data = SLOW.dumps_typed([_human(), _calling()])
    assert_read_alike((type_, kind(data)))


@pytest.mark.parametrize("cls", [HumanMessage, AIMessageChunk])
def test_headers_of_every_length_are_as_upstreams(cls: Any) -> None:
    """A message is written and read alike on both sides of every limit of msgpack's headers."""
    for length in (*range(300), *range(65_280, 65_540)):
        message = cls("x" * length)
        data = SLOW.dumps_typed(message)
        assert FAST.dumps_typed(message) == data
        assert FAST.loads_typed(data) == message


# A message that was read is a message.


def _used(message: Any, use: Callable[[Any], Any]) -> Any:
    used = use(message)
    return [used, message]


USES: dict[str, Callable[[Any], Any]] = {
    "repr": repr,
    "str": str,
    "hash": hash,
    "equality": lambda m: [m == m.model_copy(), m == m.model_copy(update={"content": "else"})],
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "model_copy": lambda m: m.model_copy(update={"content": "new", "foo": 1}),
    "deep model_copy": lambda m: m.model_copy(deep=True),
    "model_dump": lambda m: m.model_dump(),
    "what was set": lambda m: m.model_dump(exclude_unset=True),
    "what is not default": lambda m: m.model_dump(exclude_defaults=True),
    "json": lambda m: m.model_dump_json(),
    "validate": lambda m: type(m).model_validate(m.model_dump()),
    "validate itself": lambda m: type(m).model_validate(m),
    "assign": lambda m: _assigned(m, content=["new"], name="n", foo={}),
    "delete": lambda m: _without(m, "name"),
    "miss": lambda m: m.nothing,
    "extra": lambda m: m.model_extra,
    "iterate": lambda m: [*m],
    "text": lambda m: str(m.text),
    "blocks": lambda m: m.content_blocks,
    "pretty": lambda m: m.pretty_repr(),
    "dumpd": dumpd,
    "to dict": message_to_dict,
    "add": lambda m: m + m if isinstance(m, BaseMessageChunk) else None,
    "write": SLOW.dumps_typed,
    "write again": FAST.dumps_typed,
    "spoil": spoil,
}


@settings(max_examples=40)
@given(_plain_messages | _changed_messages())
def test_a_message_that_was_read_can_be_used_as_any(message: BaseMessage) -> None:
    """Copied, compared, changed, added, dumped, pickled: it does as one that upstream read."""
    data = written(message)
    for use in USES.values():
        assert_alike(lambda serde, use=use: _used(serde.loads_typed(data), use))


# Bytes that upstream did not write: by another version, by hand, or spoiled.


class Ext(NamedTuple):
    """A msgpack extension."""

    code: int
    body: bytes


class Raw(bytes):
    """What is msgpack already."""


class Pairs(list):  # type: ignore[type-arg]
    """A map's items, which may repeat a key."""


_SIZED = {
    "str": [(31, 0xA0, ""), (2**8 - 1, 0xD9, "B"), (2**16 - 1, 0xDA, "H"), (2**32 - 1, 0xDB, "I")],
    "bin": [(2**8 - 1, 0xC4, "B"), (2**16 - 1, 0xC5, "H"), (2**32 - 1, 0xC6, "I")],
    "array": [(15, 0x90, ""), (2**16 - 1, 0xDC, "H"), (2**32 - 1, 0xDD, "I")],
    "map": [(15, 0x80, ""), (2**16 - 1, 0xDE, "H"), (2**32 - 1, 0xDF, "I")],
    "ext": [(2**8 - 1, 0xC7, "B"), (2**16 - 1, 0xC8, "H"), (2**32 - 1, 0xC9, "I")],
    "uint": [(127, 0, ""), (2**8 - 1, 0xCC, "B"), (2**16 - 1, 0xCD, "H"), (2**32 - 1, 0xCE, "I"), (2**64, 0xCF, "Q")],
}


def _header(kind: str, size: int, wider: int) -> bytes:
    """The header, `wider` steps longer than it need be."""
    fitting = [one for one in _SIZED[kind] if size <= one[0]]
    _, code, form = fitting[min(wider, len(fitting) - 1)]
    return struct.pack(f">B{form}", code, size) if form else bytes([code | size])


def packed(value: Any, wider: Callable[[], int] = lambda: 0) -> bytes:
    """Msgpack, in any of the forms that are allowed for it."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Ext):
        if (size := len(value.body)) in (fixed := (1, 2, 4, 8, 16)) and not wider():
            return struct.pack("BB", 0xD4 + fixed.index(size), value.code) + value.body
        return _header("ext", size, wider()) + bytes([value.code]) + value.body
    if isinstance(value, Pairs):
        return _header("map", len(value), wider()) + b"".join(packed(one, wider) for item in value for one in item)
    if isinstance(value, dict):
        return packed(Pairs(value.items()), wider)
    if isinstance(value, (list, tuple)):
        return _header("array", len(value), wider()) + b"".join(packed(one, wider) for one in value)
    if isinstance(value, bytes):
        return _header("bin", len(value), wider()) + value
    if isinstance(value, str):
        encoded = value.encode("utf-8", "replace")
        return _header("str", len(encoded), wider()) + encoded
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return struct.pack(">Bf", 0xCA, value) if wider() and abs(value) < 9 else struct.pack(">Bd", 0xCB, value)
    return _header("uint", value, wider()) if value >= 0 else struct.pack(">Bq", 0xD3, value)


def _place(cls: Any) -> tuple[str, str]:
    return cls.__module__, cls.__name__


def _pydantic(place: Iterable[Any], dump: Any, *rest: Any, code: int = 5, wider: Callable[[], int] = lambda: 0) -> Ext:
    """A message as upstream writes it, if these are its parts."""
    return Ext(code, packed([*place, dump, *(rest or ["model_validate_json"])], wider))


def _raw(value: Any) -> Raw:
    return Raw(SLOW.dumps_typed(value)[1])


def test_the_hand_writes_what_upstream_writes() -> None:
    """The tests below begin from messages as they are."""
    message = _calling()
    assert packed(_pydantic(_place(AIMessage), message.model_dump())) == SLOW.dumps_typed(message)[1]


_stranger_keys = st.sampled_from(
    ["foo", "self", "cls", "_fields_set", "content_blocks", "model_dump", "__class__", "", 1, None, b"k", 1.5]
)
_embedded = st.sampled_from([NOW, UUID(int=1), {1}, Pet(), _human(), [_calling()], Point(), Colour.RED]).map(_raw)
_new_values = _wrong | _json | _embedded


@st.composite
def _dumps(draw: st.DrawFn, cls: Any) -> Any:
    """A message's fields, meddled with."""
    message = draw(_instances([cls]))
    items = Pairs((name, value) for name, value in message.model_dump(warnings=False).items())
    for change in draw(st.lists(st.sampled_from(["drop", "set", "add", "move", "repeat"]), max_size=3)):
        at = draw(st.integers(0, max(len(items) - 1, 0)))
        if change == "add":
            items.insert(at, (draw(_stranger_keys | _names), draw(_new_values)))
        elif items and change == "drop":
            del items[at]
        elif items and change == "set":
            items[at] = items[at][0], draw(_new_values)
        elif items and change == "move":
            items.append(items.pop(at))
        elif items:
            items.append((items[at][0], draw(_new_values)))
    return items


_OTHER_PLACES: list[tuple[Any, ...]] = [
    ("langchain_core.messages", "HumanMessage"),
    ("langchain_core.messages.human", "AIMessage"),
    ("langchain_core.messages.human", "NoSuchMessage"),
    ("langchain_core.messages.nowhere", "HumanMessage"),
    ("langchain_core.messages.human", "BaseMessage"),
    ("langchain_core.messages.human", None),
    ("langchain_core.messages.human", ["HumanMessage"]),
    ({}, "HumanMessage"),
    (b"langchain_core.messages.human", "HumanMessage"),
    ("langchain_core.messages.human", b"HumanMessage"),
    (__name__, "Mine"),
    (__name__, "NoSuch"),
]
_random = st.randoms(use_true_random=False)


@st.composite
def _handmade(draw: st.DrawFn) -> bytes:
    """A message in a form that upstream would not have given it."""
    cls = draw(st.sampled_from(CLASSES))
    dump = draw(_dumps(cls))
    place = draw(st.just(_place(cls)) | st.sampled_from([*map(_place, CLASSES), *_OTHER_PLACES]))
    rest = draw(st.just(("model_validate_json",)) | st.sampled_from([("model_construct",), (None,), (1, 2), (dump,)]))
    code = draw(st.sampled_from([5, 5, 5, 5, 4, 2, 1, 0, 3, 7, 6, 9, 127]))
    order = draw(_random)
    wider = draw(st.sampled_from([lambda: 0, lambda: order.choice((0, 0, 0, 1)), lambda: order.randrange(4)]))
    ext = _pydantic(place, dump, *rest, code=code, wider=wider)
    twice = Pairs([("a", ext), ("b", [1, ext]), ("a", 2)])
    odd = Pairs([(1, ext), (None, 2), ([3, "a"], [ext]), (ext, 4)])
    return packed(draw(st.sampled_from([ext, ext, [ext, ext], {"messages": [ext]}, twice, odd, [5, odd]])), wider)


@settings(max_examples=300)
@given(_handmade(), _configs)
def test_strange_messages_are_read_as_upstream_reads_them(data: bytes, config: str) -> None:
    """Fields missing, unknown, repeated, out of order, of wrong types; other codes and names; longer headers."""
    assert_read_alike(("msgpack", data), config)


_HUMAN = {"content": "x", "additional_kwargs": {}, "response_metadata": {}, "type": "human", "name": None, "id": None}
_PLACE = _place(HumanMessage)
_AI = {**_HUMAN, "type": "ai", "tool_calls": [], "invalid_tool_calls": [], "usage_metadata": None}
_AI_PLACE = _place(AIMessage)


def _with(**values: Any) -> Ext:
    return _pydantic(_PLACE, {**_HUMAN, **values})


def _ai(**values: Any) -> Ext:
    return _pydantic(_AI_PLACE, {**_AI, **values})


def _send(*parts: Any, code: int = 1) -> Ext:
    return Ext(code, packed(["langgraph.types", "Send", *parts]))


HANDMADE: dict[str, Any] = {
    "as it should be": _with(),
    "fields out of order": _pydantic(_PLACE, dict(reversed(_HUMAN.items()))),
    "a field missing": _pydantic(_PLACE, {"content": "x", "type": "human"}),
    "content missing": _pydantic(_PLACE, {"type": "human"}),
    "nothing in it": _pydantic(_PLACE, {}),
    "an unknown field": _with(foo=1),
    "a field called self": _with(self=1),
    "a field called _fields_set": _with(_fields_set=["content"]),
    "content_blocks": _with(content_blocks=[{"type": "text", "text": "y"}]),
    "content_blocks None": _with(content_blocks=None),
    "content_blocks of an AIMessage": _ai(content_blocks=[{"type": "tool_call", **_CALL}]),
    "a field twice": _pydantic(_PLACE, Pairs([*_HUMAN.items(), ("content", "y")])),
    "a field twice at first": _pydantic(_PLACE, Pairs([("content", 5), *_HUMAN.items()])),
    "keys that are no names": _pydantic(_PLACE, {**_HUMAN, 1: 2}),
    "keys that are bytes": _pydantic(_PLACE, Pairs((key.encode(), value) for key, value in _HUMAN.items())),
    "fields in a list": _pydantic(_PLACE, [*_HUMAN.items()]),
    "fields None": _pydantic(_PLACE, None),
    "fields as text": _pydantic(_PLACE, "content"),
    "content a number": _with(content=5),
    "content None": _with(content=None),
    "content of odd things": _with(content=[1, None, ["x"]]),
    "content a datetime": _with(content=_raw(NOW)),
    "content of a message": _with(content=[_raw(_human())]),
    "content bytes": _with(content=b"x"),
    "type another": _with(type="ai"),
    "type None": _with(type=None),
    "name a number": _with(name=1),
    "id a number": _with(id=1),
    "id a truth": _with(id=True),
    "id a float": _with(id=1.5),
    "id a UUID": _with(id=_raw(UUID(int=1))),
    "kwargs None": _with(additional_kwargs=None),
    "kwargs a list": _with(additional_kwargs=[]),
    "kwargs of pairs": _with(additional_kwargs=[["a", 1]]),
    "kwargs with a datetime": _with(additional_kwargs={"a": _raw(NOW)}),
    "kwargs with a message": _with(additional_kwargs={"a": _raw(_human())}),
    "kwargs with a model": _with(additional_kwargs={"a": [_raw(Pet())]}),
    "kwargs with odd keys": _with(additional_kwargs=Pairs([(1, 1), (None, 2), ([1, "a"], 3), (b"k", 4), (1.0, 5)])),
    "kwargs with unhashable keys": _with(additional_kwargs=Pairs([({}, 1)])),
    "tool_calls None": _ai(tool_calls=None),
    "tool_calls empty": _ai(tool_calls={}),
    "tool_calls good": _ai(tool_calls=[{**_CALL, "type": "tool_call"}]),
    "tool_calls without a type": _ai(tool_calls=[_CALL]),
    "tool_calls of another type": _ai(tool_calls=[{**_CALL, "type": "other"}]),
    "tool_calls with more": _ai(tool_calls=[{**_CALL, "more": 1}]),
    "tool_calls with extras": _ai(tool_calls=[{**_CALL, "extras": {}}]),
    "tool_calls with less": _ai(tool_calls=[{"name": "f"}]),
    "tool_calls out of order": _ai(tool_calls=[dict(reversed(_CALL.items()))]),
    "tool_calls with odd args": _ai(tool_calls=[{**_CALL, "args": {1: 2}}]),
    "tool_calls with text for args": _ai(tool_calls=[{**_CALL, "args": "{}"}]),
    "tool_calls with a model in args": _ai(tool_calls=[{**_CALL, "args": {"a": _raw(Pet())}}]),
    "tool_calls with a number for an id": _ai(tool_calls=[{**_CALL, "id": 1}]),
    "tool_calls and invalid ones": _ai(tool_calls=[_CALL], invalid_tool_calls=[{"name": "f", "args": "{"}]),
    "OpenAI's tool calls": _ai(additional_kwargs={"tool_calls": [_OPENAI]}),
    "OpenAI's tool calls beside ours": _ai(additional_kwargs={"tool_calls": [_OPENAI]}, tool_calls=[_CALL]),
    "OpenAI's tool calls that do not parse": _ai(additional_kwargs={"tool_calls": [{"function": {"name": "f"}}]}),
    "OpenAI's tool calls in a list of kwargs": _ai(additional_kwargs=["tool_calls"]),
    "usage": _ai(usage_metadata=_USAGE),
    "usage with more": _ai(usage_metadata={**_USAGE, "more": 1, "input_token_details": {"odd": 1, "audio": "2"}}),
    "usage as text": _ai(usage_metadata={**_USAGE, "input_tokens": "5"}),
    "usage as truth": _ai(usage_metadata={**_USAGE, "input_tokens": True}),
    "usage as floats": _ai(usage_metadata={**_USAGE, "input_tokens": 5.0}),
    "usage as fractions": _ai(usage_metadata={**_USAGE, "input_tokens": 5.5}),
    "usage with less": _ai(usage_metadata={"input_tokens": 5}),
    "usage out of order": _ai(usage_metadata=dict(reversed(_USAGE.items()))),
    "usage with details None": _ai(usage_metadata={**_USAGE, "input_token_details": None}),
    "usage with details empty": _ai(usage_metadata={**_USAGE, "output_token_details": {}}),
    "usage with huge numbers": _ai(usage_metadata={**_USAGE, "input_tokens": 2**64 - 1}),
    "tool content of numbers": _pydantic(
        _place(ToolMessage), {**_HUMAN, "content": [1, {}], "type": "tool", "tool_call_id": 5}
    ),
    "tool content a number": _pydantic(_place(ToolMessage), {"content": 1.5, "tool_call_id": _raw(UUID(int=1))}),
    "tool without a call": _pydantic(_place(ToolMessage), {**_HUMAN, "type": "tool"}),
    "removal": _pydantic(_place(RemoveMessage), {**_HUMAN, "content": "", "type": "remove", "id": "1"}),
    "removal with content": _pydantic(_place(RemoveMessage), {**_HUMAN, "type": "remove", "id": "1"}),
    "removal of nothing": _pydantic(_place(RemoveMessage), {**_HUMAN, "content": "", "type": "remove"}),
    "a chunk": _pydantic(_place(HumanMessageChunk), {**_HUMAN, "type": "HumanMessageChunk"}),
    "a chunk of the whole's type": _pydantic(_place(HumanMessageChunk), _HUMAN),
    "another method": _pydantic(_PLACE, _HUMAN, "model_construct"),
    "no method": Ext(5, packed([*_PLACE, _HUMAN])),
    "no fields": Ext(5, packed([*_PLACE])),
    "more than a method": _pydantic(_PLACE, _HUMAN, "model_validate_json", 5),
    "no tuple": Ext(5, packed(5)),
    "a tuple of nothing": Ext(5, packed([])),
    "text for a tuple": Ext(5, packed("abc")),
    "a map for a tuple": Ext(5, packed({0: _PLACE[0], 1: _PLACE[1], 2: _HUMAN, 3: "model_validate_json"})),
    "nothing at all": Ext(5, b""),
    "more after the end": Ext(5, _with().body + b"\x01"),
    "cut off": Ext(5, _with().body[:-1]),
    "cut off in the fields": Ext(5, _with().body[:60]),
    "not msgpack": Ext(5, b"\xc1"),
    "not UTF-8": Ext(5, _with().body.replace(b"\xa1x", b"\xa1\xff")),
    "as pydantic v1": _pydantic(_PLACE, _HUMAN, code=4),
    "by keywords": _pydantic(_PLACE, _HUMAN, code=2),
    "by one argument": _pydantic(_PLACE, "x", code=0),
    "by arguments": _pydantic(_PLACE, ["x"], code=1),
    "by a method": _pydantic(_PLACE, _HUMAN, "model_validate", code=3),
    "of an unknown kind": _pydantic(_PLACE, _HUMAN, code=99),
    "in a set": Ext(0, packed(["builtins", "set", [_with()]])),
    "a Send": _send(["n", _with()]),
    "a Send with a timeout": _send(["n", [_with(), _raw(Pet())], 5.0]),
    "a Send with a wrong timeout": _send(["n", [_with(), _raw(Pet())], "soon"]),
    "a Send with more": _send(["n", _with(), None, 5]),
    "a Send with less": _send([_raw(Pet())]),
    "a Send of nothing": _send([]),
    "a Send of text": _send("ab"),
    "a Send of a map of two": _send({0: "n", 1: _with()}),
    "a Send of a map of three": _send({0: "n", 1: _with(), 2: None}),
    "a Send of None": _send(None),
    "a Send without arguments": _send(),
    "a Send with a method": _send(["n", _with()], "__init__"),
    "a Send by keywords": _send({"node": "n", "arg": _with()}, code=2),
    "a Send by one argument": _send("n", code=0),
    "a Send cut off": Ext(1, _send(["n", [_raw(Pet()), _with()]]).body[:-1]),
    "a Send and more after its end": Ext(1, _send(["n", [_raw(Pet()), _with()]]).body + b"\xc1"),
    "a Send by another name": Ext(1, packed(["langgraph.constants", "Send", ["n", _with()]])),
    "a snapshot": Ext(7, packed([_with(), _raw(Pet())])),
    "a snapshot cut off": Ext(7, packed([_raw(Pet()), _with()])[:-1]),
    "a snapshot of nothing": Ext(7, b""),
    "a snapshot and more after its end": Ext(7, packed(_with()) + b"\x01"),
    "in another's content": _with(content=[{"a": _with()}], additional_kwargs={"b": [_with(), _ai()]}),
    **{f"from {place}": _pydantic(place, _HUMAN) for place in _OTHER_PLACES},
}


@pytest.mark.parametrize("name", [*HANDMADE])
def test_a_strange_message_is_read_as_upstream_reads_it(name: str) -> None:
    """The same, one by one: none of them takes a short way that it should not."""
    for config in CONFIGS:
        assert_read_alike(("msgpack", packed(HANDMADE[name])), config)


@pytest.mark.parametrize("wider", [1, 2, 3])
@pytest.mark.parametrize("name", ["as it should be", "tool_calls good", "usage", "a chunk", "removal"])
def test_longer_headers_mean_the_same(name: str, wider: int) -> None:
    """Other encoders may write lengths and numbers in more bytes than they need."""
    dumps = {"as it should be": (_PLACE, _HUMAN), "tool_calls good": (_AI_PLACE, {**_AI, "tool_calls": [_CALL]})}
    dumps |= {"usage": (_AI_PLACE, {**_AI, "usage_metadata": _USAGE})}
    dumps |= {"a chunk": (_place(HumanMessageChunk), {"content": "x"}), "removal": (_place(RemoveMessage), {"id": "1"})}
    assert_read_alike(("msgpack", packed(_pydantic(*dumps[name], wider=lambda: wider), lambda: wider)))


@settings(max_examples=200)
@given(st.lists(_plain_messages, min_size=1, max_size=2), st.data())
def test_spoiled_bytes_are_read_as_upstream_reads_them(messages: Any, data: st.DataObject) -> None:
    """The same value, if there is one, or the same error; with an allowlist, as it may name any function."""
    spoiled = bytearray(written(messages)[1])
    assume(len(spoiled) < 2000)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(spoiled)))
        doubled = bytes(spoiled[start : start + 9])
        spoiled[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | st.just(doubled))
    assert_read_alike(("msgpack", bytes(spoiled)), "strict")
    whole, sliced = (
        seen(lambda read=read: read(BOTH["strict"][0], ("msgpack", bytes(spoiled))))
        for read in (FastJsonPlusSerializer.loads_typed, _in_slices)
    )
    assert sliced.outcome == whole.outcome


def test_bytes_that_end_anywhere_are_read_as_upstream_reads_them() -> None:
    """With every byte of a message lost from its end."""
    data = SLOW.dumps_typed([_calling(), _human()])[1]
    for end in range(len(data)):
        assert_read_alike(("msgpack", data[:end]), "strict")
        assert_read_alike(("msgpack", data[:end] + b"\0" * 3), "strict")


@pytest.mark.parametrize("place", ["alone", "around a message", "in a snapshot"])
def test_depth_is_limited_in_reading_where_upstream_limits_it(place: str) -> None:
    """Deeper than anything can be written."""
    outcomes = set()
    for depth in (500, *range(1010, 1028)):
        nested = Raw(b"\x91" * depth + b"\x01")
        data = {
            "alone": bytes(nested),
            "around a message": b"\x91" * depth + packed(_with()),
            "in a snapshot": packed(Ext(7, nested)),
        }[place]
        outcomes.add(assert_alike(lambda serde, data=data: serde.loads_typed(("msgpack", data)), show=type))
    assert len(outcomes) == 2


@with_every_config
@pytest.mark.parametrize("type_", ["null", "bytes", "bytearray", "json", "msgpack", "pickle", "unknown", "", None])
def test_other_types_of_data_are_read_as_upstream_reads_them(type_: Any, config: str) -> None:
    """Those that are refused among them."""
    for data in (b"", b"\x01", b"1", pickle.dumps(_human()), SLOW.dumps_typed(_human())[1]):
        assert_read_alike((type_, data), config)


def _old(value: Any, lc: int) -> bytes:
    dumped = dumpd(value)
    if lc == 2:
        dumped |= {"lc": 2, "id": [*type(value).__module__.split("."), type(value).__name__]}
    return json.dumps({"messages": [dumped]}).encode()


@with_every_config
@pytest.mark.parametrize("lc", [1, 2])
def test_old_json_is_read_as_upstream_reads_it(lc: int, config: str) -> None:
    """Messages from before msgpack, and what an allowlist must name."""
    for value in (_human(), _calling(), Mine("x"), ToolMessage("x", tool_call_id="1", artifact={"a": 1})):
        assert_read_alike(("json", _old(value, lc)), config)


# Reading in slices, as a saver does where an event loop waits.


def _in_slices(serde: FastJsonPlusSerializer, data: tuple[str, bytes]) -> Any:
    reading = serde.loads_in_slices(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serde_module, "_AT_ONCE", _SLICE)
        while True:
            try:
                next(reading)
            except StopIteration as end:
                return end.value


_SLICE = 8  # bytes: all but the least is opened


def assert_sliced_alike(data: tuple[str, bytes], config: str) -> None:
    """What is read in slices is what is read at once. Of what cannot be read the same is said, but twice."""
    fast, slow = BOTH[config]
    expected, found = seen(lambda: slow.loads_typed(data)), seen(lambda: _in_slices(fast, data))
    assert found.outcome == expected.outcome
    assert found == expected or expected.outcome[0] == "raised"


@with_every_corner
def test_a_corner_is_read_in_slices_as_at_once(corner: str) -> None:
    """Whatever the value is made of."""
    assert_sliced_alike(_written_corner(corner), "as it comes")


@settings(max_examples=100)
@given(_values, _configs)
def test_all_else_is_read_in_slices_as_at_once(value: Any, config: str) -> None:
    """Under any allowlist."""
    assert_sliced_alike(written(value), config)


@settings(max_examples=100)
@given(_handmade(), _configs)
def test_strange_messages_are_read_in_slices_as_at_once(data: bytes, config: str) -> None:
    """Longer headers among them."""
    assert_sliced_alike(("msgpack", data), config)


@settings(max_examples=100)
@given(_values, _random, st.sampled_from(["strict", "some"]))
def test_other_forms_are_read_in_slices_as_at_once(value: Any, order: Random, config: str) -> None:
    """What is written with longer headers than need be reads the same."""
    plain = ormsgpack.unpackb(written([value])[1], ext_hook=Ext, option=ormsgpack.OPT_NON_STR_KEYS)
    assert_sliced_alike(("msgpack", packed(plain, lambda: order.randrange(4))), config)


# Allowlists.


@with_every_config
@with_every_class
def test_messages_need_no_allowlist(cls: Any, config: str) -> None:
    """They are read under any, without an event, a warning or a line in the log."""
    message = cls(**dict.fromkeys(_needed(cls), "1"))
    found = seen(lambda: BOTH[config][0].loads_typed(SLOW.dumps_typed([message])))
    assert found.outcome == ("returned", portrait([type(message).model_validate(message.model_dump())]))
    assert found[1:] == ([], [], [])


@with_every_config
@pytest.mark.parametrize("cls", [Mine, Answer, Pet, Point, ImpostorHuman], ids=lambda cls: cls.__qualname__)
def test_other_types_are_allowed_or_blocked_as_upstream_does(cls: Any, config: str) -> None:
    """With the same events and log lines, each said once for a type."""
    value = cls("x") if issubclass(cls, BaseMessage) else cls()
    data = SLOW.dumps_typed([value, value])
    assert_alike(lambda serde: [serde.loads_typed(data) for _ in "12"], config)


def test_a_blocked_type_is_told_once() -> None:
    """An event each time, and one line in the log."""
    data = SLOW.dumps_typed([Mine("x"), Pet(), Mine("y")])
    found = seen(lambda: BOTH["strict"][0].loads_typed(data))
    assert [event["name"] for event in found.events] == ["Mine", "Pet", "Mine"]
    assert len(found.logged) == 2


@pytest.mark.parametrize("config", ["as it comes", "strict", "some"])
@with_every_class
def test_a_message_that_is_not_safe_any_more_is_not_loaded(
    cls: Any, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream looks at its list of safe types with each read."""
    data = SLOW.dumps_typed(cls(**dict.fromkeys(_needed(cls), "1")))
    assert_read_alike(data, config)
    with monkeypatch.context() as patch:
        patch.setattr(_msgpack, "SAFE_MSGPACK_TYPES", _msgpack.SAFE_MSGPACK_TYPES - {_place(cls)})
        assert_read_alike(data, config)
        if config == "strict":
            assert isinstance(BOTH[config][0].loads_typed(data), dict)
    assert_read_alike(data, config)
    assert type(BOTH[config][0].loads_typed(data)) is cls


def test_strictness_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `LANGGRAPH_STRICT_MSGPACK` was when LangGraph was imported."""
    monkeypatch.setattr(_msgpack, "STRICT_MSGPACK_ENABLED", True)
    data = SLOW.dumps_typed([Pet(), _human()])
    fast, slow = FastJsonPlusSerializer(), JsonPlusSerializer()
    assert seen(lambda: fast.loads_typed(data)) == seen(lambda: slow.loads_typed(data))
    assert type(fast.loads_typed(data)[0]) is dict


@pytest.mark.parametrize("make", [lambda: True, lambda: False, lambda: None, tuple, lambda: iter([Mine, _place(Pet)])])
def test_an_allowlist_is_whatever_upstream_takes(make: Callable[[], Any]) -> None:
    """Classes or names in anything that can be iterated, if only once."""
    fast, slow = (cls(allowed_msgpack_modules=make()) for cls in (FastJsonPlusSerializer, JsonPlusSerializer))
    data = SLOW.dumps_typed([Mine("x"), Pet(), _human()])
    assert seen(lambda: fast.loads_typed(data)) == seen(lambda: slow.loads_typed(data))


_EXTRAS: list[list[Any]] = [[], [Mine], [Pet], [_place(Point), Mine], [(__name__, "Answer")], [Colour, Pair]]
_moves = st.one_of(
    st.tuples(st.just("allow"), st.integers(0, 9), st.sampled_from(_EXTRAS)),
    st.tuples(st.sampled_from(["copy", "deepcopy", "read"]), st.integers(0, 9), st.just([])),
)
_TYPES = [Mine("x"), Pet(), Point(_human()), Answer("x"), Colour.RED, Pair(1, _human()), _calling()]


@settings(max_examples=50)
@given(st.sampled_from(["strict", "some", "as it comes"]), st.lists(_moves, max_size=8))
def test_no_clone_loads_what_another_may(config: str, moves: Any) -> None:
    """However they were derived from each other, and whatever each of them has read before."""
    data = [SLOW.dumps_typed(one) for one in _TYPES]
    clones = [(FastJsonPlusSerializer(**CONFIGS[config]), JsonPlusSerializer(**CONFIGS[config]))]
    for move, number, extra in [*moves, *(("read", number, []) for number in range(10))]:
        fast, slow = clones[number % len(clones)]
        if move == "read":
            found, expected = ([seen(lambda s=s, d=d: s.loads_typed(d)) for d in data] for s in (fast, slow))
            assert found == expected
        elif move == "allow":
            made = fast.with_msgpack_allowlist(extra), slow.with_msgpack_allowlist(extra)
            assert (made[0] is fast) == (made[1] is slow)
            assert type(made[0]) is FastJsonPlusSerializer
            clones.append(made)
        else:
            clones.append((getattr(copy, move)(fast), getattr(copy, move)(slow)))


def test_a_clones_attributes_are_upstreams() -> None:
    """What upstream keeps in a serializer is kept here too, and a clone's is its own."""
    fast, slow = (cls(allowed_msgpack_modules=[Mine]) for cls in (FastJsonPlusSerializer, JsonPlusSerializer))
    clones = fast.with_msgpack_allowlist([Pet]), slow.with_msgpack_allowlist([Pet])
    for one, other in ((fast, slow), clones):
        for name in ("pickle_fallback", "_allowed_json_modules", "_allowed_msgpack_modules", "_custom_unpack_ext_hook"):
            assert getattr(one, name) == getattr(other, name)
    shared = changeable(vars(fast)).keys() & changeable(vars(clones[0])).keys()
    assert not shared - changeable(vars(slow)).keys()


class Hook:
    """A custom hook, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes]] = []

    def __call__(self, code: int, data: bytes) -> Any:
        self.calls.append((code, data))
        return code, len(data)


@pytest.mark.parametrize("strict", [False, True])
def test_a_custom_hook_reads_the_messages_too(strict: bool) -> None:
    """It alone decides what an extension is; a clone keeps it."""
    data = SLOW.dumps_typed([_human(), {"a": _calling()}, NOW, Pet(), _DeltaSnapshot([_human()])])
    hooks = Hook(), Hook()
    config: dict[str, Any] = {"allowed_msgpack_modules": None} if strict else {}
    fast = FastJsonPlusSerializer(__unpack_ext_hook__=hooks[0], **config)
    slow = JsonPlusSerializer(__unpack_ext_hook__=hooks[1], **config)
    for one, other in ((fast, slow), (fast.with_msgpack_allowlist([Pet]), slow.with_msgpack_allowlist([Pet]))):
        assert seen(lambda: one.loads_typed(data)) == seen(lambda: other.loads_typed(data))  # noqa: B023
    assert hooks[0].calls == hooks[1].calls


# Its place among other serializers.


def test_it_is_a_json_plus_serializer() -> None:
    """So LangGraph finds its allowlist, and wraps it in nothing."""
    assert isinstance(FAST, JsonPlusSerializer)
    assert maybe_add_typed_methods(FAST) is FAST
    with pytest.raises(TypeError):
        FastJsonPlusSerializer(True)  # type: ignore[misc]  # keywords only, as upstream's


@settings(max_examples=30)
@given(_values)
def test_an_encrypted_serializer_may_stand_on_it(value: Any) -> None:
    """What it encrypts is what upstream would have it encrypt, and either decrypts the other's."""
    plain = written(value)
    fast, slow = (EncryptedSerializer.from_pycryptodome_aes(serde=serde, key=b"k" * 16) for serde in (FAST, SLOW))
    for one, other in ((fast, slow), (slow, fast)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            type_, secret = one.dumps_typed(value)
        assert (type_.removesuffix("+aes"), one.cipher.decrypt("aes", secret)) == plain
        expected = seen(lambda: SLOW.loads_typed(plain))
        assert seen(lambda: other.loads_typed((type_, secret))) == expected  # noqa: B023


def test_strict_encrypted_clones_load_only_what_they_may() -> None:
    """As LangGraph derives them in strict mode."""
    strict = EncryptedSerializer.from_pycryptodome_aes(serde=BOTH["strict"][0], key=b"k" * 16)
    saver = AsyncSaver(serde=strict)
    data = strict.dumps_typed([Mine("x"), Pet(), _human()])
    for allowed, expected in (([Mine], [Mine, dict, HumanMessage]), ([Pet], [dict, Pet, HumanMessage])):
        clone = saver.with_allowlist([_place(cls) for cls in allowed])
        assert [type(one) for one in clone.serde.loads_typed(data)] == expected
        assert [type(one) for one in saver.serde.loads_typed(data)] == [dict, dict, HumanMessage]


class Counting(FastJsonPlusSerializer):
    """A user's subclass, which counts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = 0

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.count += 1
        type_, data = super().dumps_typed(obj)
        return "counted " + type_, data

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.count += 1
        return super().loads_typed((data[0].removeprefix("counted "), data[1]))


def test_it_may_be_subclassed() -> None:
    """A subclass writes and reads in its own way around it, and its clones are of its class."""
    serde = Counting(allowed_msgpack_modules=None)
    data = serde.dumps_typed([_human(), Pet()])
    assert data == ("counted msgpack", SLOW.dumps_typed([_human(), Pet()])[1])
    assert serde.loads_typed(data) == [_human(), Pet().model_dump()]
    clone = serde.with_msgpack_allowlist([Pet])
    assert isinstance(clone, Counting)
    assert clone.count == 2
    assert clone.loads_typed(data) == [_human(), Pet()]
    assert serde.loads_typed(data) == [_human(), Pet().model_dump()]


def test_threads_may_use_one_at_once() -> None:
    """From the first use on."""
    serde, values = FastJsonPlusSerializer(), [[cls(**dict.fromkeys(_needed(cls), "1"))] * 3 for cls in CLASSES] * 4
    expected = [SLOW.dumps_typed(value) for value in values]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(serde.dumps_typed, values)] == expected
        read = [*pool.map(serde.loads_typed, expected)]
    assert [portrait(one) for one in read] == [portrait(SLOW.loads_typed(one)) for one in expected]


def test_a_saver_serialises_with_it() -> None:
    """Unless it is given another."""
    assert type(AsyncSaver().serde) is FastJsonPlusSerializer
    assert type(AsyncSaver.from_conn_string("memory://").serde) is FastJsonPlusSerializer
    assert AsyncSaver(serde=SLOW).serde is SLOW


def test_a_strict_savers_clones_load_only_what_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: two graphs on one saver cannot load each other's types."""
    monkeypatch.setattr(_msgpack, "STRICT_MSGPACK_ENABLED", True)
    saver = AsyncSaver()
    data = saver.serde.dumps_typed([Mine("x"), Pet(), _human()])
    mine, pets = (saver.with_allowlist([_place(cls)]) for cls in (Mine, Pet))
    for _ in range(2):
        for one, expected in ((mine, [Mine, dict]), (pets, [dict, Pet]), (saver, [dict, dict])):
            assert type(one.serde) is FastJsonPlusSerializer
            assert [type(value) for value in one.serde.loads_typed(data)] == [*expected, HumanMessage]


# numpy, where it is installed: LangGraph writes its arrays.


def _arrays(np: Any) -> Iterator[Any]:
    grid = np.arange(6).reshape(2, 3)
    yield from (grid, np.asfortranarray(grid), grid.T, grid[:, ::2], grid[::-1], np.array(5), np.array([]))
    yield from (grid.astype("f4"), grid.astype(">i2"), grid > 2, np.array(["a", "bc"]), np.zeros((0, 3)))
    yield from (np.array([{}, None], dtype=object), np.array([(1, 2.0)], dtype="i4,f8"), np.array(["2026"], "M8[us]"))
    yield from (np.float64(1.5), np.float32(1.5), np.int64(5), np.uint8(5), np.bool_(True), np.str_("x"))
    yield np.bytes_(b"x")


_WRAPS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "in a list": lambda value: [_human(), value],
    "in kwargs": lambda value: HumanMessage("x", additional_kwargs={"a": value, "b": [value]}),
    "in content": lambda value: HumanMessage(["x", {"a": value}]),
    "as content": lambda value: _assigned(HumanMessage("x"), content=value),
    "as an id": lambda value: _assigned(HumanMessage("x"), id=value),
    "as usage": lambda value: _assigned(AIMessage("x"), usage_metadata=dict.fromkeys(_USAGE, value)),
    "as an artifact": lambda value: ToolMessage("x", tool_call_id="1", artifact=value),
    "as an argument": lambda value: AIMessage("x", tool_calls=[{"name": "f", "args": {"a": value}, "id": None}]),
    "as OpenAI's tool calls": lambda value: _with_kwargs(AIMessage("x"), tool_calls=value),
    "as a chunk's tool calls": lambda value: _assigned(AIMessageChunk("x"), tool_calls=value),
    "as a key": lambda value: HumanMessage("x", additional_kwargs={value if isinstance(value, Hashable) else 1: 1}),
}


@pytest.mark.parametrize("wrap", [*_WRAPS])
def test_numpy_is_written_and_read_as_upstream_does(wrap: str) -> None:
    """Arrays of every order and scalars, in messages and beside them."""
    np = pytest.importorskip("numpy")
    for value in map(_WRAPS[wrap], _arrays(np)):
        assert_written_alike(value)
        assert_alike(lambda serde, value=value: serde.loads_typed(SLOW.dumps_typed(value)))
