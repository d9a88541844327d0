"""Between LangGraph's checkpoints and stored records: encode at once, decode in slices."""

from collections.abc import Mapping, Sequence
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
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from ormsgpack import MsgpackEncodeError

from async_saver.errors import DeserializationError, SerializationError, shown
from async_saver.pace import keep_pace
from async_saver.records import (
    EMPTY,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    StoredCheckpoint,
    WriteRecord,
    text,
)
from async_saver.serde import FastJsonPlusSerializer

__all__ = ["Decoder", "config_of", "encode_checkpoint", "encode_writes", "record_of"]


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
) -> tuple[CheckpointRecord, list[tuple[ChannelVersion, Blob]]]:
    """Serialise a checkpoint, and those of its values that are new.

    Raises:
        SerializationError: A value, the metadata or the checkpoint itself cannot be serialised.
    """
    values = checkpoint["channel_values"]
    blobs = [
        (
            (channel, version),
            _encode(serde, values[channel], thread_id, "channel", channel) if channel in values else EMPTY,
        )
        for channel, version in new_versions.items()
    ]
    rest = {key: value for key, value in checkpoint.items() if key != "channel_values"}
    full_metadata = get_checkpoint_metadata(config, metadata)
    record = record_of(
        checkpoint,
        full_metadata,
        parent_id=_parent_id(config),
        # As it was given: get_checkpoint_metadata takes NULs out of text, and drops a UUID.
        run_id=metadata.get("run_id", _run_id(config)),
        encoded_checkpoint=_encode(serde, rest, thread_id, "the checkpoint"),
        encoded_metadata=_encode(serde, full_metadata, thread_id, "the metadata"),
    )
    snapshots = [channel for channel in new_versions if isinstance(values.get(channel), _DeltaSnapshot)]
    if snapshots:
        record = record._replace(delta_channels=tuple({*record.delta_channels, *snapshots}))
    return record, blobs


def record_of(
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    *,
    parent_id: str | None,
    run_id: object,
    encoded_checkpoint: Blob,
    encoded_metadata: Blob,
) -> CheckpointRecord:
    """Return the record of a checkpoint that is serialised already; its `channel_values` are not looked at."""
    return CheckpointRecord(
        checkpoint_id=text(checkpoint["id"]),
        parent_id=parent_id,
        checkpoint=encoded_checkpoint,
        metadata=encoded_metadata,
        versions=tuple(checkpoint["channel_versions"].items()),
        run_id=None if run_id is None else text(run_id),
        delta_channels=tuple(metadata.get("counters_since_delta_snapshot") or ()),
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
    return [
        WriteRecord(
            task_id,
            WRITES_IDX_MAP.get(channel, idx),
            channel,
            _encode(serde, value, thread_id, "a write to channel", channel),
            task_path,
            run_id,
        )
        for idx, (channel, value) in enumerate(writes)
    ]


def _parent_id(config: RunnableConfig) -> str | None:
    parent_id = config.get("configurable", {}).get("checkpoint_id")
    return text(parent_id) if parent_id else None


def _run_id(config: RunnableConfig) -> str | None:
    """Return the run that a config names, where `get_checkpoint_metadata` would find it."""
    for part in (config.get("metadata"), config.get("configurable")):
        if part and (run_id := part.get("run_id")) is not None:
            return text(run_id)
    return None


def _encode(serde: SerializerProtocol, value: object, thread_id: str, what: str, channel: str = "") -> Blob:
    try:
        kind, data = serde.dumps_typed(value)
    except Exception as exc:
        # ormsgpack's messages name types and limits only; another serializer's might quote the value.
        why = f" ({exc})" if isinstance(exc, MsgpackEncodeError) else ""
        raise SerializationError(
            f"cannot serialise {_named(what, channel)} of thread_id {shown(thread_id)}: its value is of type "
            f"{_type_name(value)}{why}; nothing was stored. Keep such values out of the state (LangGraph's "
            "UntrackedValue is for them), or give the saver a serde that takes them, for instance "
            "JsonPlusSerializer(pickle_fallback=True)"
        ) from exc
    # A bytearray comes back from the default serializer as it is, and its owner may go on to change it.
    return (kind, bytes(data)) if isinstance(data, (bytearray, memoryview)) else (kind, data)


def _named(what: str, channel: str) -> str:
    return f"{what} {shown(channel)}" if what.endswith("channel") else what


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


class Decoder:
    """Reads stored records with one serde, and yields to the event loop when that takes long.

    Stored bytes never change, so a yield in the middle of a checkpoint does no harm. Without `yielding` it never
    waits, which is for sync callers: they read in their own worker thread.
    """

    __slots__ = ("_in_slices", "_serde", "_yielding")

    def __init__(self, serde: SerializerProtocol, *, yielding: bool = True) -> None:
        self._serde = serde
        self._yielding = yielding
        # Not where a subclass reads in a way of its own.
        own = FastJsonPlusSerializer.loads_typed
        self._in_slices = yielding and getattr(type(serde), "loads_typed", None) is own

    async def _decode(self, blob: Blob, thread_id: str, what: str, channel: str = "") -> Any:
        if self._yielding:
            await keep_pace()
        try:
            if not self._in_slices:
                return self._serde.loads_typed(blob)
            reading = cast(FastJsonPlusSerializer, self._serde).loads_in_slices(blob)
            while True:
                next(reading)
                await keep_pace()
        except StopIteration as end:
            return end.value
        except Exception as exc:
            raise DeserializationError(
                f"cannot read {_named(what, channel)} of thread_id {shown(thread_id)}, stored as "
                f"{shown(blob[0])}: read it with the serde that it was written with"
            ) from exc

    async def metadata(self, stored: StoredCheckpoint) -> CheckpointMetadata:
        """Read a checkpoint's metadata."""
        return cast(CheckpointMetadata, await self._decode(stored.record.metadata, stored.thread_id, "the metadata"))

    async def checkpoint_tuple(self, stored: StoredCheckpoint, metadata: CheckpointMetadata) -> CheckpointTuple:
        """Read a whole checkpoint.

        Args:
            stored: The records.
            metadata: Its metadata, already read.

        Raises:
            DeserializationError: A stored value cannot be read.
        """
        thread_id, checkpoint_ns, record, values, writes = stored
        checkpoint = cast(Checkpoint, await self._decode(record.checkpoint, thread_id, "the checkpoint"))
        channel_values = {channel: await self._decode(blob, thread_id, "channel", channel) for channel, blob in values}
        return CheckpointTuple(
            config=config_of(thread_id, checkpoint_ns, record.checkpoint_id),
            checkpoint={**checkpoint, "channel_values": channel_values},
            metadata=metadata,
            parent_config=config_of(thread_id, checkpoint_ns, record.parent_id) if record.parent_id else None,
            pending_writes=[await self._pending(write, thread_id) for write in writes],
        )

    async def histories(self, thread_id: str, histories: Histories) -> Mapping[str, DeltaChannelHistory]:
        """Read what `DeltaChannel`s are rebuilt from.

        Raises:
            DeserializationError: A stored value cannot be read.
        """
        result: dict[str, DeltaChannelHistory] = {}
        for channel, (seed, writes) in histories.items():
            result[channel] = {"writes": [await self._pending(write, thread_id) for write in writes]}
            if seed is not None:
                result[channel]["seed"] = await self._decode(seed, thread_id, "channel", channel)
        return result

    async def _pending(self, write: WriteRecord, thread_id: str) -> PendingWrite:
        value = await self._decode(write.value, thread_id, "a write to channel", write.channel)
        return write.task_id, write.channel, value
