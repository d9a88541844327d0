"""FastJsonPlusSerializer: JsonPlusSerializer's bytes, faster."""

import pickle
import sys
from collections.abc import Callable, Generator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from langgraph.checkpoint.serde import _msgpack
from langgraph.checkpoint.serde.jsonplus import (
    JsonPlusSerializer,
    _msgpack_default,
    _reconstruction_fallback,
    _send_from_args,
)
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from ormsgpack import (
    OPT_NON_STR_KEYS,
    OPT_PASSTHROUGH_DATACLASS,
    OPT_PASSTHROUGH_DATETIME,
    OPT_PASSTHROUGH_ENUM,
    OPT_PASSTHROUGH_SUBCLASS,
    OPT_PASSTHROUGH_TUPLE,
    OPT_PASSTHROUGH_UUID,
    OPT_REPLACE_SURROGATES,
    Ext,
    MsgpackEncodeError,
    packb,
    unpackb,
)
from pydantic import BaseModel

__all__ = ["FastJsonPlusSerializer"]

# The numbers by which JsonPlusSerializer marks what msgpack has no type for.
_CALLED_WITH_ARGUMENTS, _PYDANTIC, _DELTA_SNAPSHOT = 1, 5, 7

_ORDINARY_OPTION = (
    OPT_NON_STR_KEYS
    | OPT_PASSTHROUGH_DATACLASS
    | OPT_PASSTHROUGH_DATETIME
    | OPT_PASSTHROUGH_ENUM
    | OPT_PASSTHROUGH_UUID
    | OPT_REPLACE_SURROGATES
)

# With it, and without a `default`, packb() refuses all that is not made of exactly msgpack's own types, str keys only:
# what it writes is then surely what would be written of a pydantic dump, which leaves these types as they are.
_PLAIN_OPTION = (_ORDINARY_OPTION & ~OPT_NON_STR_KEYS) | OPT_PASSTHROUGH_SUBCLASS | OPT_PASSTHROUGH_TUPLE

_SEND = ("langgraph.types", "Send")  # a graph sends whole states to its tasks by it
_SEND_HEAD = b"\x93" + packb(_SEND[0]) + packb(_SEND[1])


class FastJsonPlusSerializer(JsonPlusSerializer):
    """A `JsonPlusSerializer` that takes a short way for the messages of langchain-core.

    It writes the same bytes, byte for byte, and reads what that one wrote, to equal values. Where a message is one of
    the classes of langchain-core, with the fields and types that these have, it is written from its `__dict__` and
    read without being validated again. Everything else goes the way of JsonPlusSerializer: subclasses, extra fields,
    whatever a field was assigned that its type does not allow.

    Args:
        pickle_fallback: As in JsonPlusSerializer, and so are the others, and `with_msgpack_allowlist`.
        allowed_json_modules: Which types old checkpoints in JSON may hold.
        allowed_msgpack_modules: Which types may be read beside those that are always safe, as the messages are.
    """

    _read: "tuple[_Hook, _Hook] | None" = None  # JsonPlusSerializer's reader of extension types, and what is made of it

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Serialise a value.

        Raises:
            MsgpackEncodeError: It holds something that cannot be serialised.
        """
        if obj is None or isinstance(obj, (bytes, bytearray)):
            return super().dumps_typed(obj)
        try:
            return "msgpack", packb(obj, default=_extension, option=_ORDINARY_OPTION)
        except MsgpackEncodeError:
            if not self.pickle_fallback:
                raise
            return "pickle", pickle.dumps(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Read what `dumps_typed` of this class or of JsonPlusSerializer returned."""
        if data[0] != "msgpack" or self._custom_unpack_ext_hook:
            return super().loads_typed(data)
        return unpackb(data[1], ext_hook=self._reader(), option=OPT_NON_STR_KEYS)

    def _reader(self) -> "_Hook":
        """Return what reads extension types with this serializer's allowlist, which a copy may have changed."""
        if self._read is None or self._read[0] is not self._unpack_ext_hook:
            self._read = (self._unpack_ext_hook, _reader(self._unpack_ext_hook))
        return self._read[1]

    def loads_in_slices(self, data: tuple[str, bytes]) -> Generator[None, None, Any]:
        """Read as `loads_typed` does, in short steps: a generator that yields between them and returns the value."""
        kind, packed = data
        if kind != "msgpack" or self._custom_unpack_ext_hook or len(packed) <= _AT_ONCE:
            return self.loads_typed(data)
        try:
            value, end = yield from _sliced(packed, 0, self._reader())
            if end == len(packed):
                return value
        except (ValueError, IndexError, RecursionError):
            pass
        return self.loads_typed(data)  # it is malformed, and this says how


# Writing.


def _extension(value: Any) -> Ext | str:
    """Return how JsonPlusSerializer writes what msgpack has no type for."""
    kind = _BY_CLASS.get(type(value))
    if kind is not None:
        try:
            fits, _, _, _, names, (module, name) = kind
            fields = value.__dict__
            if len(fields) == len(names) and fits(fields) and not value.__pydantic_extra__:
                return Ext(_PYDANTIC, packb([module, name, fields, _METHOD], None, _PLAIN_OPTION))
        except Exception:
            pass  # whatever is odd with it is shown by the ordinary way
    elif type(value) is _DeltaSnapshot:
        return Ext(_DELTA_SNAPSHOT, packb(value.value, default=_extension, option=_ORDINARY_OPTION))
    elif type(value) is _send_class():
        timeout = getattr(value, "timeout", None)
        arguments = (value.node, value.arg) if timeout is None else (value.node, value.arg, timeout)
        parts = (*_SEND, arguments)
        return Ext(_CALLED_WITH_ARGUMENTS, packb(parts, default=_extension, option=_ORDINARY_OPTION))
    return _msgpack_default(value)


def _send_class() -> Any:
    """Return LangGraph's `Send`, if LangGraph is there: the package does without."""
    return getattr(sys.modules.get(_SEND[0]), _SEND[1], None)


# Reading.

_Hook = Callable[[int, bytes], Any]


def _reader(ordinary: _Hook) -> _Hook:
    """Return what reads extension types: the short way for messages, else `ordinary`, which knows the allowlist."""

    def read(code: int, data: bytes) -> Any:
        if code == _PYDANTIC:
            message = _read_message(data)
            if message is not None:
                return message
        elif code == _DELTA_SNAPSHOT:
            return _DeltaSnapshot(unpackb(data, ext_hook=read, option=OPT_NON_STR_KEYS))
        elif code == _CALLED_WITH_ARGUMENTS and data.startswith(_SEND_HEAD) and _SEND in _msgpack.SAFE_MSGPACK_TYPES:
            return _read_send(data, read)
        return ordinary(code, data)

    return read


def _read_message(data: bytes) -> BaseMessage | None:
    """Return a message; None if these are not the bytes of one that reads as it stands, with all its fields."""
    kind = _BY_START.get(data[:_START])
    if kind is None:
        return None
    fits, stays, made, head, names, name = kind
    if not data.startswith(head) or not data.endswith(_TAIL):
        return None
    try:
        # Without a hook, and with str keys only: nothing but plain values passes.
        fields = unpackb(data[len(head) : -len(_TAIL)])
        as_it_stands = (
            type(fields) is dict
            and tuple(fields) == names
            and fits(fields)
            and (stays is None or stays(fields))
            and name in _msgpack.SAFE_MSGPACK_TYPES
        )
    except (ValueError, KeyError):
        return None
    return made(fields) if as_it_stands else None


def _read_send(data: bytes, read: _Hook) -> Any:
    """Return a `Send`; if it cannot be made of these bytes, what it would have been made of."""
    parts = None
    try:
        parts = unpackb(data, ext_hook=read, option=OPT_NON_STR_KEYS)
        return _send_from_args(parts[2])
    except Exception as exc:
        return _reconstruction_fallback(parts, exc)


# What a message's fields may hold, that it is written and read as it stands. What is nested deeper is seen by packb()
# and unpackb() themselves. These check what pydantic would do in between: to drop what a TypedDict does not know, to
# put its keys in order, to warn of a wrong type, to parse.

_Fields = dict[str, Any]

_BASE = ("content", "additional_kwargs", "response_metadata", "type", "name", "id")
_AI = (*_BASE, "tool_calls", "invalid_tool_calls", "usage_metadata")
_AI_CHUNK = (*_AI, "tool_call_chunks", "chunk_position")
_TOOL = (*_BASE, "tool_call_id", "artifact", "status")
_CHAT = (*_BASE, "role")
_TOOL_CALL = ("name", "args", "id", "type")
_STATUS = ("success", "error")
_USAGE = ("input_tokens", "output_tokens", "total_tokens")
# What usage metadata may have beside those three, with the keys of each, in the order in which pydantic puts them.
_DETAILS = {
    "input_token_details": ("audio", "cache_creation", "cache_read"),
    "output_token_details": ("audio", "reasoning"),
}

_base_of, _ai_of, _tool_of = itemgetter(*_BASE), itemgetter(*_AI), itemgetter(*_TOOL)
_tool_call_of, _usage_of = itemgetter(*_TOOL_CALL), itemgetter(*_USAGE)

_Fits = Callable[[_Fields], bool]

# They are called for each message of each list that is stored: so they are written out, and call each other little.


def _base_fits(kind: str, rest_fits: _Fits | None = None) -> _Fits:
    """Return what checks messages with at least the common fields, the value of `type` being `kind`."""

    def fits(fields: _Fields) -> bool:
        content, additional_kwargs, response_metadata, type_, name, id_ = _base_of(fields)
        return (
            (type_ is kind or (type(type_) is str and type_ == kind))
            and (type(content) is str or _is_content(content))
            and type(additional_kwargs) is dict
            and type(response_metadata) is dict
            and (name is None or type(name) is str)
            and (id_ is None or type(id_) is str)
            and (rest_fits is None or rest_fits(fields))
        )

    return fits


def _ai_fits(kind: str) -> _Fits:
    """Return what checks messages with the fields of an AIMessage."""

    def fits(fields: _Fields) -> bool:
        content, additional_kwargs, response_metadata, type_, name, id_, calls, invalid_calls, usage = _ai_of(fields)
        if not (
            (type_ is kind or (type(type_) is str and type_ == kind))
            and (type(content) is str or _is_content(content))
            and type(additional_kwargs) is dict
            and type(response_metadata) is dict
            and (name is None or type(name) is str)
            and (id_ is None or type(id_) is str)
            and type(calls) is list
            and type(invalid_calls) is list
            and not invalid_calls
        ):
            return False
        if usage is not None:
            if type(usage) is not dict or (len(usage) != 3 and not _has_details(usage)):
                return False
            inputs, outputs, total = _usage_of(usage)
            if type(inputs) is not int or type(outputs) is not int or type(total) is not int:
                return False
        for call in calls:
            if type(call) is not dict or len(call) != 4:
                return False
            called, args, id_, type_ = _tool_call_of(call)
            if not (
                type(called) is str
                and type(args) is dict
                and (id_ is None or type(id_) is str)
                and type(type_) is str
                and type_ == "tool_call"
            ):
                return False
        return True

    return fits


def _ai_stays(fields: _Fields) -> bool:
    calls, usage = fields["tool_calls"], fields["usage_metadata"]
    for call in calls:
        if tuple(call) != _TOOL_CALL:
            return False
    # Without tool calls, those in `additional_kwargs` are parsed as the message is made.
    return (usage is None or tuple(usage)[:3] == _USAGE) and (
        bool(calls) or not fields["additional_kwargs"].get("tool_calls")
    )


def _tool_fits(kind: str) -> _Fits:
    """Return what checks messages with the fields of a ToolMessage."""

    def fits(fields: _Fields) -> bool:
        content, additional_kwargs, response_metadata, type_, name, id_, tool_call_id, _, status = _tool_of(fields)
        return (
            (type_ is kind or (type(type_) is str and type_ == kind))
            and (type(content) is str or _is_content(content))
            and type(additional_kwargs) is dict
            and type(response_metadata) is dict
            and (name is None or type(name) is str)
            and (id_ is None or type(id_) is str)
            and type(tool_call_id) is str
            and type(status) is str
            and status in _STATUS
        )

    return fits


def _ai_chunk_fits(kind: str) -> _Fits:
    """Return what checks messages with the fields of an AIMessageChunk: of those with tool calls, none."""
    ai_fits = _ai_fits(kind)

    def fits(fields: _Fields) -> bool:
        chunks = fields["tool_call_chunks"]
        no_calls = type(chunks) is list and not chunks and not fields["tool_calls"]
        return no_calls and fields["chunk_position"] is None and ai_fits(fields)

    return fits


def _chat_fits(fields: _Fields) -> bool:
    return type(fields["role"]) is str


def _function_fits(fields: _Fields) -> bool:
    return fields["name"] is not None


def _remove_fits(fields: _Fields) -> bool:
    return fields["content"] == "" and fields["id"] is not None


def _is_content(value: object) -> bool:
    return type(value) is list and all(type(item) is str or type(item) is dict for item in value)


def _has_details(usage: _Fields) -> bool:
    details = [name for name in _DETAILS if name in usage]
    return [*usage][3:] == details and all(_are_details(usage[name], _DETAILS[name]) for name in details)


def _are_details(value: object, known: tuple[str, ...]) -> bool:
    return (
        type(value) is dict
        and [*value] == [name for name in known if name in value]
        and all(type(count) is int for count in value.values())
    )


class _Kind(NamedTuple):
    """A class of messages.

    Attributes:
        fits: Tells whether a message of these fields is written as it stands, if its values are plain; may raise a
            KeyError where it is not.
        stays: Tells whether a message that is read of these fields has them as they are. None if it surely has.
        made: Makes a message of its fields.
        head: The bytes of a message before its fields.
        names: The names of its fields, in order.
        name: The module and name of the class.
    """

    fits: _Fits
    stays: _Fits | None
    made: Callable[[_Fields], BaseMessage]
    head: bytes
    names: tuple[str, ...]
    name: tuple[str, str]


def _kind(
    cls: type[BaseMessage],
    names: tuple[str, ...] = _BASE,
    fits: Callable[[str], _Fits] = _base_fits,
    validators: tuple[str, ...] = (),
) -> dict[type, _Kind]:
    """Return what is known of a class of messages; nothing if this langchain-core has changed it."""
    found = cls.__pydantic_decorators__
    changed = found.field_validators or found.field_serializers or found.model_serializers
    if changed or tuple(cls.model_fields) != names or tuple(found.model_validators) != validators:
        return {}
    name = (cls.__module__, cls.__name__)
    head = b"\x94" + packb(name[0]) + packb(name[1])
    stays = _ai_stays if issubclass(cls, AIMessage) else None
    return {cls: _Kind(fits(cls.model_fields["type"].default), stays, _maker(cls, names), head, names, name)}


def _maker(cls: type[BaseMessage], names: tuple[str, ...]) -> Callable[[_Fields], BaseMessage]:
    """Return what makes an instance as pydantic leaves it after validation, in the four slots of its base class."""
    new = cls.__new__
    slots = vars(BaseModel)
    set_dict, set_extra = slots["__dict__"].__set__, slots["__pydantic_extra__"].__set__
    set_fields_set, set_private = slots["__pydantic_fields_set__"].__set__, slots["__pydantic_private__"].__set__
    all_set = set(names).copy

    def made(fields: _Fields) -> BaseMessage:
        message = new(cls)
        set_dict(message, fields)
        set_fields_set(message, all_set())
        set_extra(message, {})
        set_private(message, None)
        return message

    return made


_AI_VALIDATORS = ("_backwards_compat_tool_calls",)
_AI_CHUNK_VALIDATORS = (*_AI_VALIDATORS, "init_tool_calls", "init_server_tool_calls")
_TOOL_VALIDATORS = ("coerce_args",)

_BY_CLASS: Mapping[type, _Kind] = {
    **_kind(HumanMessage),
    **_kind(HumanMessageChunk),
    **_kind(SystemMessage),
    **_kind(SystemMessageChunk),
    **_kind(AIMessage, _AI, _ai_fits, _AI_VALIDATORS),
    **_kind(AIMessageChunk, _AI_CHUNK, _ai_chunk_fits, _AI_CHUNK_VALIDATORS),
    **_kind(ToolMessage, _TOOL, _tool_fits, _TOOL_VALIDATORS),
    **_kind(ToolMessageChunk, _TOOL, _tool_fits, _TOOL_VALIDATORS),
    **_kind(ChatMessage, _CHAT, partial(_base_fits, rest_fits=_chat_fits)),
    **_kind(ChatMessageChunk, _CHAT, partial(_base_fits, rest_fits=_chat_fits)),
    **_kind(FunctionMessage, fits=partial(_base_fits, rest_fits=_function_fits)),
    **_kind(FunctionMessageChunk, fits=partial(_base_fits, rest_fits=_function_fits)),
    **_kind(RemoveMessage, fits=partial(_base_fits, rest_fits=_remove_fits)),
}

_METHOD = "model_validate_json"
_TAIL = packb(_METHOD)
_START = min((len(kind.head) for kind in _BY_CLASS.values()), default=0)  # so much of a head tells them apart
_BY_START: Mapping[bytes, _Kind] = {kind.head[:_START]: kind for kind in _BY_CLASS.values()}


# Reading in slices. What is written tells where each of its parts ends, if one reads the few bytes that say how long it
# is. So parts that lie side by side are read together, up to some length, and only what is longer than that is opened.

_AT_ONCE = 32 * 1024  # bytes, which take some tenth of a millisecond

# How many bytes what begins with this byte is long: numbers, short text, short extensions. 0: it is not as simple.
_LENGTHS = [0] * 256
for _first in range(256):
    if _first < 0x80 or _first >= 0xE0 or _first in (0xC0, 0xC2, 0xC3):
        _LENGTHS[_first] = 1
    elif 0xA0 <= _first < 0xC0:
        _LENGTHS[_first] = 1 + (_first & 0x1F)
_LENGTHS[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]
_LENGTHS[0xD4:0xD9] = [3, 4, 6, 10, 18]

# What begins with this byte has so many bytes of a length, and then so many more beside that length.
_MEASURED = {
    **{0xC4 + i: (1 << i, 0) for i in range(3)},  # bytes
    **{0xC7 + i: (1 << i, 1) for i in range(3)},  # extensions
    **{0xD9 + i: (1 << i, 0) for i in range(3)},  # text
}
# A list or dict has so many bytes of a number of items, each of one or two parts.
_CONTAINERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
# Where in an extension of any length its contents begin; the byte before is its number.
_SNAPSHOTS = {0xC7: 3, 0xC8: 4, 0xC9: 6}


def _sliced(data: bytes, at: int, read: _Hook) -> Generator[None, None, tuple[Any, int]]:
    """Read what begins at `at`, and return it with where it ends.

    Raises:
        ValueError, IndexError: These are no bytes of msgpack.
    """
    opened = _opened(data, at)
    if opened is None:
        end, _ = _run(data, at, 1, 1, len(data))
        if data[at] in _SNAPSHOTS and data[at + _SNAPSHOTS[data[at]] - 1] == _DELTA_SNAPSHOT:
            inner, inner_end = yield from _sliced(data, at + _SNAPSHOTS[data[at]], read)
            if inner_end != end:
                raise ValueError("a snapshot is not as long as it says")
            return _DeltaSnapshot(inner), end
        return unpackb(data[at:end], ext_hook=read, option=OPT_NON_STR_KEYS), end
    at, left, parts = opened
    value: Any = [] if parts == 1 else {}
    while left:
        end, items = _run(data, at, left, parts, _AT_ONCE)
        if items:
            head = (b"\xdd" if parts == 1 else b"\xdf") + items.to_bytes(4, "big")
            some = unpackb(head + data[at:end], ext_hook=read, option=OPT_NON_STR_KEYS)
            if parts == 1:
                value += some
            else:
                value.update(some)
            left -= items
            at = end
        else:
            key = None
            if parts == 2:
                end, _ = _run(data, at, 1, 1, len(data))
                (key,) = unpackb(b"\x81" + data[at:end] + b"\xc0", ext_hook=read, option=OPT_NON_STR_KEYS)
                at = end
            item, at = yield from _sliced(data, at, read)
            if parts == 1:
                value.append(item)
            else:
                value[key] = item
            left -= 1
        yield
    return value, at


def _opened(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Return where the first item of a list or dict begins, how many there are, and of how many parts each is.

    None for anything else.
    """
    first = data[at]
    if 0x80 <= first < 0x90:
        return at + 1, first & 0x0F, 2
    if 0x90 <= first < 0xA0:
        return at + 1, first & 0x0F, 1
    if first in _CONTAINERS:
        width, parts = _CONTAINERS[first]
        start = at + 1 + width
        return start, int.from_bytes(data[at + 1 : start], "big"), parts
    return None


def _run(data: bytes, at: int, items: int, parts: int, longest: int) -> tuple[int, int]:
    """Return where the last of so many items ends that is less than `longest` bytes away, and which it is.

    Raises:
        ValueError, IndexError: These are no bytes of msgpack.
    """
    last = at + longest
    end = at
    for number in range(items):
        left = parts
        while left:
            if at > last:
                return end, number
            first = data[at]
            length = _LENGTHS[first]
            if length:
                at += length
                left -= 1
            elif first in _MEASURED:
                width, more = _MEASURED[first]
                at += 1 + width + more + int.from_bytes(data[at + 1 : at + 1 + width], "big")
                left -= 1
            else:
                opened = _opened(data, at)
                if opened is None:
                    raise ValueError("no type of msgpack has this byte")
                at, inner, each = opened
                left += inner * each - 1
        if at > last:
            return end, number
        end = at
    return end, items
