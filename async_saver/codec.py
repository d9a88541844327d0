"""Between LangGraph's checkpoints and stored records: encode at once, decode in slices."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import copysign
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot
from ormsgpack import MsgpackEncodeError

from async_saver.errors import DeserializationError, SerializationError, shown
from async_saver.pace import Slices
from async_saver.records import (
    EMPTY,
    JSON,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    StoredCheckpoint,
    WriteRecord,
    fits,
    packed,
    text,
    unpacked,
)
from async_saver.serde import FastJsonPlusSerializer

__all__ = ["Decoder", "config_of", "encode_checkpoint", "encode_writes", "record_of"]

_SLICE = 16 * 1024  # bytes that are read between two looks whether it is time to yield
_EACH = 64  # bytes that take as long as what reading anything takes beside its bytes
_FAST = FastJsonPlusSerializer.loads_typed

_OURS = "async_saver"  # the key behind which metadata are that JSON does not have
_MOST_BITS = 10_000  # of a whole number; Python writes and reads no more than 4,300 digits

_CHANNEL, _WRITE, _METADATA = "channel", "a write to channel", "the metadata"


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    """Return the config that names one checkpoint."""
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }


def encode_checkpoint(
    serde: SerializerProtocol,
    thread_id: str,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
    as_json: bool = False,
) -> tuple[CheckpointRecord, list[tuple[ChannelVersion, Blob]]]:
    """Serialise a checkpoint, and those of its values that are new; what is around them `as_json` if a store asks so.

    Raises:
        SerializationError: A value, the metadata or the checkpoint itself cannot be serialised.
    """
    values = checkpoint["channel_values"]
    rest: dict[str, object] = {**checkpoint}
    del rest["channel_values"]
    inline: dict[str, object] = {}
    if as_json:
        for channel, value in values.items():
            if isinstance(value, _DeltaSnapshot):
                inline[channel] = True  # a mark that there is a blob
            elif type(value) in _SCALARS and _is_json(value):
                inline[channel] = value
        rest["channel_values"] = inline
    full_metadata = get_checkpoint_metadata(config, metadata)
    blobs: list[tuple[ChannelVersion, Blob]] = []
    snapshots: list[str] = []
    dumps = serde.dumps_typed
    what, channel, value = _CHANNEL, "", cast(object, None)
    try:
        for channel, version in new_versions.items():
            if channel in values:
                value = values[channel]
                is_snapshot = isinstance(value, _DeltaSnapshot)
                if is_snapshot:
                    snapshots.append(channel)
                is_inline = channel in inline and not is_snapshot
                blobs.append(((channel, version), EMPTY if is_inline else _frozen(dumps(value))))
            else:
                blobs.append(((channel, version), EMPTY))
        what, value = "the checkpoint", rest
        encoded_checkpoint = (_as_json(rest) if as_json else None) or _frozen(dumps(value))
        what, value = _METADATA, full_metadata
        encoded_metadata = _metadata_as_json(serde, full_metadata) if as_json else _frozen(dumps(value))
    except Exception as exc:
        raise _unserialisable(exc, value, thread_id, what, channel) from exc
    # As it was given: get_checkpoint_metadata takes NULs out of text, and drops a UUID.
    run_id = metadata["run_id"] if "run_id" in metadata else _run_id(config)
    parent_id = _parent_id(config)
    record = record_of(checkpoint, full_metadata, parent_id, run_id, encoded_checkpoint, encoded_metadata)
    if snapshots:
        record = record._replace(delta_channels=tuple({*record.delta_channels, *snapshots}))
    return record, blobs


def record_of(
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    parent_id: str | None,
    run_id: object,
    encoded_checkpoint: Blob,
    encoded_metadata: Blob,
) -> CheckpointRecord:
    """Return the record of a checkpoint that is serialised already; its `channel_values` are not looked at."""
    return CheckpointRecord(
        text(checkpoint["id"]),
        parent_id,
        encoded_checkpoint,
        encoded_metadata,
        tuple(checkpoint["channel_versions"].items()),
        None if run_id is None else text(run_id),
        tuple(metadata.get("counters_since_delta_snapshot") or ()),
    )


def encode_writes(
    serde: SerializerProtocol,
    thread_id: str,
    config: RunnableConfig,
    writes: Sequence[tuple[str, Any]],
    task_id: str,
    task_path: str,
) -> list[WriteRecord]:
    """Serialise pending writes.

    Raises:
        SerializationError: A value cannot be serialised.
    """
    run_id = _run_id(config)
    dumps = serde.dumps_typed
    records: list[WriteRecord] = []
    channel, value = "", cast(object, None)
    try:
        for channel, value in writes:
            idx = WRITES_IDX_MAP.get(channel, len(records))
            records.append(WriteRecord(task_id, idx, channel, _frozen(dumps(value)), task_path, run_id))
    except Exception as exc:
        raise _unserialisable(exc, value, thread_id, _WRITE, channel) from exc
    return records


_SCALARS = {str, int, float, bool, type(None)}
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # an even number of backslashes before it are text
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _to_json(value: object) -> bytes:
    return _json(value).encode()


def _is_json(value: object) -> bool:
    """Tell whether a value comes back from JSON, and from a database that keeps it as such, as it is."""
    cls = type(value)
    if cls is str:
        return fits(cast(str, value))
    if cls is dict:
        return all(type(key) is str and fits(key) and _is_json(one) for key, one in cast(Any, value).items())
    if cls is list or cls is tuple:  # which comes back as a list from every serde
        return all(map(_is_json, cast(Any, value)))
    if cls is int:
        return cast(int, value).bit_length() <= _MOST_BITS
    if cls is float:  # with such an exponent it would come back as a whole number, and zero without its sign
        written = repr(value)
        return written[-1].isdigit() and "e+" not in written and (value != 0 or copysign(1, cast(float, value)) > 0)
    return cls in _SCALARS


def _as_json(checkpoint: Mapping[str, object]) -> Blob | None:
    """Return a checkpoint as JSON; None if it is none of LangGraph's, and has what JSON or a database has not."""
    version = checkpoint.get("v")
    if _OURS in checkpoint or type(version) is not int or not 0 <= version < 1000:
        return None
    try:
        encoded = _to_json(checkpoint)
    except (TypeError, ValueError):  # such as an object, NaN, or half of a surrogate pair
        return None
    return None if _NUL.search(encoded) else (JSON, encoded)


def _metadata_as_json(serde: SerializerProtocol, metadata: Mapping[str, Any]) -> Blob:
    """Return metadata as JSON; where that does not have all of it, with all of it as the serde writes it beside."""
    if _is_json(metadata) and _OURS not in metadata:
        return JSON, _to_json(metadata)
    # What is like it in JSON is there for others to see.
    rest: dict[str, object] = {}
    for key, value in metadata.items():
        with suppress(TypeError, ValueError):
            encoded = _to_json({key: value})
            if type(key) is str and key != _OURS and not _NUL.search(encoded):
                rest[key] = value
    rest[_OURS] = packed(serde.dumps_typed(metadata))
    return JSON, _to_json(rest)


def _parent_id(config: RunnableConfig) -> str | None:
    parent_id = config.get("configurable", {}).get("checkpoint_id")
    return text(parent_id) if parent_id else None


def _run_id(config: RunnableConfig) -> str | None:
    """Return the run that a config names, where `get_checkpoint_metadata` would find it."""
    for part in (config.get("metadata"), config.get("configurable")):
        if part and (run_id := part.get("run_id")) is not None:
            return text(run_id)
    return None


def _frozen(blob: Blob) -> Blob:
    """Return a value whose bytes cannot change: a bytearray comes back from a serializer as it is, from its owner."""
    data = blob[1]
    return blob if type(data) is bytes or not isinstance(data, (bytearray, memoryview)) else (blob[0], bytes(data))


def _unserialisable(exc: Exception, value: object, thread_id: str, what: str, channel: str) -> SerializationError:
    # ormsgpack's messages name types and limits only; another serializer's might quote the value.
    why = f" ({exc})" if isinstance(exc, MsgpackEncodeError) else ""
    return SerializationError(
        f"cannot serialise {_named(what, channel)} of thread_id {shown(thread_id)}: its value is of type "
        f"{_type_name(value)}{why}; nothing was stored. Keep such values out of the state (LangGraph's "
        "UntrackedValue is for them), or give the saver a serde that takes them, for instance "
        "JsonPlusSerializer(pickle_fallback=True)"
    )


def _named(what: str, channel: str) -> str:
    return f"{what} {shown(channel)}" if what.endswith("channel") else what


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


class Decoder:
    """Reads stored records with one serde, in slices; stored bytes never change, so it may be interrupted between two.

    What is short is read in one slice with what is beside it. What is long is read in slices if the serde can do that.
    """

    __slots__ = ("_in_slices", "_serde", "_slice")

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde
        # A subclass, or an instance, may read in a way of its own, and then it is not known how long that takes.
        self._in_slices = getattr(serde.loads_typed, "__func__", None) is _FAST
        self._slice = _SLICE if self._in_slices else 0

    def metadata(self, stored: StoredCheckpoint) -> Slices[CheckpointMetadata]:
        """Read a checkpoint's metadata.

        Raises:
            DeserializationError: It cannot be read.
        """
        blob = stored.record.metadata
        try:
            if blob[0] == JSON:
                return self._metadata_of_json(blob)
            return cast(CheckpointMetadata, (yield from self._next(blob)))
        except Exception as exc:
            raise _unreadable(blob, stored.thread_id, _METADATA) from exc

    def _metadata_of_json(self, blob: Blob) -> CheckpointMetadata:
        metadata = json.loads(blob[1])
        if (whole := unpacked(metadata.get(_OURS))) is not None:
            metadata = self._serde.loads_typed(whole)
        return cast(CheckpointMetadata, metadata)

    def _next(self, blob: Blob) -> Slices[Any]:
        """End a slice, and read what comes next."""
        yield
        if blob[0] == JSON:
            return json.loads(blob[1])
        if self._in_slices:
            return (yield from cast(FastJsonPlusSerializer, self._serde).loads_in_slices(blob))
        return self._serde.loads_typed(blob)

    def checkpoint_tuple(
        self, stored: StoredCheckpoint, config: RunnableConfig | None = None, metadata: CheckpointMetadata | None = None
    ) -> Slices[CheckpointTuple]:
        """Read a whole checkpoint.

        Args:
            stored: The records.
            config: What it was asked for by, if that names it.
            metadata: Its metadata, if it is already read.

        Raises:
            DeserializationError: A stored value cannot be read.
        """
        thread_id, checkpoint_ns, record, values, writes, sends = stored
        loads = self._serde.loads_typed
        left = self._slice
        what, channel, blob = _METADATA, "", record.metadata
        channel_values: dict[str, Any] = {}
        try:
            if metadata is None and blob[0] == JSON:
                metadata = self._metadata_of_json(blob)
            elif metadata is None:
                metadata = loads(blob) if len(blob[1]) < left else (yield from self._next(blob))
            what, blob = "the checkpoint", record.checkpoint
            checkpoint: Checkpoint = json.loads(blob[1]) if blob[0] == JSON else loads(blob)
            channel_values = checkpoint.get("channel_values") or {}  # what a store has asked to come with it
            what = _CHANNEL
            for channel, blob in values:
                left -= len(blob[1]) + _EACH
                if left < 0:
                    channel_values[channel] = yield from self._next(blob)
                    left = self._slice
                else:
                    channel_values[channel] = loads(blob)
            if sends:
                channel, versions = TASKS, checkpoint["channel_versions"]
                channel_values[channel] = [loads(blob) for blob in sends]
                versions[channel] = max(versions.values(), default=f"{1:032}.0")
        except Exception as exc:
            raise _unreadable(blob, thread_id, what, channel) from exc
        checkpoint["channel_values"] = channel_values
        return CheckpointTuple(
            config or config_of(thread_id, checkpoint_ns, record.checkpoint_id),
            checkpoint,
            cast(CheckpointMetadata, metadata),
            config_of(thread_id, checkpoint_ns, record.parent_id) if record.parent_id else None,
            (yield from self._pending(writes, thread_id)) if writes else [],
        )

    def histories(self, thread_id: str, histories: Histories) -> Slices[Mapping[str, DeltaChannelHistory]]:
        """Read what `DeltaChannel`s are rebuilt from.

        Raises:
            DeserializationError: A stored value cannot be read.
        """
        result: dict[str, DeltaChannelHistory] = {}
        for channel, (seed, writes) in histories.items():
            result[channel] = {"writes": (yield from self._pending(writes, thread_id))}
            if seed is not None:
                try:
                    result[channel]["seed"] = yield from self._next(seed)
                except Exception as exc:
                    raise _unreadable(seed, thread_id, _CHANNEL, channel) from exc
        return result

    def _pending(self, writes: Sequence[WriteRecord], thread_id: str) -> Slices[list[PendingWrite]]:
        pending: list[PendingWrite] = []
        loads = self._serde.loads_typed
        left = self._slice
        for task_id, _, channel, blob, _, _ in writes:
            left -= len(blob[1]) + _EACH
            try:
                if left < 0:
                    value = yield from self._next(blob)
                    left = self._slice
                else:
                    value = loads(blob)
            except Exception as exc:
                raise _unreadable(blob, thread_id, _WRITE, channel) from exc
            pending.append((task_id, channel, value))
        return pending


def _unreadable(blob: Blob, thread_id: str, what: str, channel: str = "") -> DeserializationError:
    return DeserializationError(
        f"cannot read {_named(what, channel)} of thread_id {shown(thread_id)}, stored as {shown(blob[0])}: read it "
        "with the serde that it was written with"
    )
