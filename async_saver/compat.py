"""What InMemorySaver shows beside its methods: `storage`, `writes` and `blobs`, and mappings that a factory makes."""

import threading
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, ExitStack
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, TypeAlias, TypeVar

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol
from typing_extensions import Self

from async_saver.codec import record_of
from async_saver.errors import DeserializationError, InvalidTypeError, shown
from async_saver.records import EMPTY, Blob, CheckpointRecord, WriteRecord, text
from async_saver.session import sessions_of
from async_saver.stores.bucket import Bucket, Namespace, WriteKey
from async_saver.stores.memory import MemoryStore

__all__ = ["NOT_ASSIGNED", "Blobs", "Files", "Storage", "Writes"]

Checkpoint: TypeAlias = tuple[Blob, Blob, str | None]
"""The serialised checkpoint and metadata, and the parent's id."""

Write: TypeAlias = tuple[str, str, Blob, str]
"""A write's task_id, channel, serialised value and task_path."""

WritesKey: TypeAlias = tuple[str, str, str]
"""(thread_id, checkpoint_ns, checkpoint_id)"""

BlobKey: TypeAlias = tuple[str, str, str, str | int | float]
"""(thread_id, checkpoint_ns, channel, version)"""

NOT_ASSIGNED = (
    "cannot assign to {} of an AsyncSaver, which only shows what is stored: call aput() or put() for checkpoints, "
    "aput_writes() or put_writes() for writes"
)

_HIDDEN = "async_saver_hidden"  # marks, in a factory's mapping, the metadata of a hidden checkpoint

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class _View(MutableMapping[_K, _V]):
    """A mapping that shows a store's present contents, and cannot be assigned to."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    @abstractmethod
    def _keys(self, buckets: Mapping[str, Bucket]) -> list[_K]:
        """Return the keys as they are now."""

    def _has(self, key: Any, buckets: Mapping[str, Bucket]) -> bool:
        return key in self._keys(buckets)

    def __iter__(self) -> Iterator[_K]:
        return iter(self._store.peek(self._keys))

    def __len__(self) -> int:
        return len(self._store.peek(self._keys))

    def __contains__(self, key: object) -> bool:
        return self._store.peek(lambda buckets: self._has(key, buckets))

    def get(self, key: _K, default: Any = None) -> Any:
        """Return the value of a known key, else `default`."""
        return self[key] if key in self else default  # noqa: SIM401  (it would call itself)

    def __setitem__(self, key: _K, value: _V) -> NoReturn:
        raise InvalidTypeError(NOT_ASSIGNED.format(type(self).__name__.strip("_").lower()))

    def __delitem__(self, key: _K) -> None:
        raise InvalidTypeError(
            f"cannot delete from {type(self).__name__.strip('_').lower()} of an AsyncSaver, which only shows what is "
            "stored: call adelete_thread() or delete_thread() for a conversation, aprune() or prune() for old "
            "checkpoints"
        )

    def __repr__(self) -> str:
        return repr(dict(self))


class Storage(_View[str, "MutableMapping[str, MutableMapping[str, Checkpoint]]"]):
    """thread_id -> checkpoint_ns -> checkpoint_id -> (checkpoint, metadata, parent id).

    `del`, `pop` and `clear` delete conversations, or raise a `SessionLostError` as all that writes does.
    """

    def _keys(self, buckets: Mapping[str, Bucket]) -> list[str]:
        return [thread_id for thread_id, bucket in buckets.items() if bucket.order]

    def _has(self, key: Any, buckets: Mapping[str, Bucket]) -> bool:
        return key in buckets and bool(buckets[key].order)

    def __getitem__(self, key: str) -> MutableMapping[str, MutableMapping[str, Checkpoint]]:
        return _Namespaces(self._store, key)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._discard([key])

    def pop(self, key: str, *default: Any) -> Any:
        """Delete a conversation and return what it held, as plain dicts; or `default` for an unknown one."""
        if key not in self and default:
            return default[0]
        held = {ns: dict(checkpoints) for ns, checkpoints in self[key].items()}
        del self[key]
        return held

    def popitem(self) -> Any:
        """Delete some conversation and return its thread_id and what it held."""
        thread_id = next(iter(self), None)
        if thread_id is None:
            raise KeyError("there is no conversation")
        return thread_id, self.pop(thread_id)

    def clear(self) -> None:
        """Delete every conversation."""
        self._discard(None)

    def _discard(self, thread_ids: list[str] | None) -> None:
        self._store.discard(thread_ids, sessions_of(self._store).leases())


class _Namespaces(_View[str, "MutableMapping[str, Checkpoint]"]):
    def __init__(self, store: MemoryStore, thread_id: str) -> None:
        super().__init__(store)
        self._thread_id = thread_id

    def _keys(self, buckets: Mapping[str, Bucket]) -> list[str]:
        bucket = buckets.get(self._thread_id)
        return [ns for ns, namespace in bucket.namespaces.items() if namespace.ids] if bucket is not None else []

    def __getitem__(self, key: str) -> MutableMapping[str, Checkpoint]:
        return _Checkpoints(self._store, self._thread_id, key)


class _Checkpoints(_View[str, Checkpoint]):
    def __init__(self, store: MemoryStore, thread_id: str, checkpoint_ns: str) -> None:
        super().__init__(store)
        self._thread_id = thread_id
        self._checkpoint_ns = checkpoint_ns

    def _namespace(self, buckets: Mapping[str, Bucket]) -> Namespace | None:
        bucket = buckets.get(self._thread_id)
        return bucket.namespaces.get(self._checkpoint_ns) if bucket is not None else None

    def _keys(self, buckets: Mapping[str, Bucket]) -> list[str]:
        namespace = self._namespace(buckets)
        return namespace.ids.copy() if namespace is not None else []

    def _has(self, key: Any, buckets: Mapping[str, Bucket]) -> bool:
        return self._read(key, buckets) is not None

    def _read(self, key: str, buckets: Mapping[str, Bucket]) -> Checkpoint | None:
        namespace = self._namespace(buckets)
        record = namespace.visible(key) if namespace is not None else None
        return (record.checkpoint, record.metadata, record.parent_id) if record is not None else None

    def __getitem__(self, key: str) -> Checkpoint:
        found = self._store.peek(lambda buckets: self._read(key, buckets))
        if found is None:
            raise KeyError(key)
        return found


class Writes(_View[WritesKey, "Mapping[WriteKey, Write]"]):
    """(thread_id, checkpoint_ns, checkpoint_id) -> (task_id, idx) -> (task_id, channel, value, task_path)."""

    def _keys(self, buckets: Mapping[str, Bucket]) -> list[WritesKey]:
        return [
            (thread_id, checkpoint_ns, checkpoint_id)
            for thread_id, bucket in buckets.items()
            for checkpoint_ns, namespace in bucket.namespaces.items()
            for checkpoint_id in namespace.writes
        ]

    def _has(self, key: Any, buckets: Mapping[str, Bucket]) -> bool:
        return bool(self._read(key, buckets))

    @staticmethod
    def _read(key: Any, buckets: Mapping[str, Bucket]) -> dict[WriteKey, Write]:
        if not isinstance(key, tuple) or len(key) != 3:
            return {}
        thread_id, checkpoint_ns, checkpoint_id = key
        bucket = buckets.get(thread_id)
        namespace = bucket.namespaces.get(checkpoint_ns) if bucket is not None else None
        return _as_writes(namespace, checkpoint_id) if namespace is not None else {}

    def __getitem__(self, key: WritesKey) -> Mapping[WriteKey, Write]:
        return MappingProxyType(self._store.peek(lambda buckets: self._read(key, buckets)))


class Blobs(_View[BlobKey, Blob]):
    """(thread_id, checkpoint_ns, channel, version) -> serialised value."""

    def _keys(self, buckets: Mapping[str, Bucket]) -> list[BlobKey]:
        return [
            (thread_id, checkpoint_ns, *key)
            for thread_id, bucket in buckets.items()
            for checkpoint_ns, namespace in bucket.namespaces.items()
            for key in namespace.history
        ]

    def _has(self, key: Any, buckets: Mapping[str, Bucket]) -> bool:
        return self._read(key, buckets) is not None

    @staticmethod
    def _read(key: Any, buckets: Mapping[str, Bucket]) -> Blob | None:
        if not isinstance(key, tuple) or len(key) != 4:
            return None
        thread_id, checkpoint_ns, channel, version_id = key
        bucket = buckets.get(thread_id)
        namespace = bucket.namespaces.get(checkpoint_ns) if bucket is not None else None
        return namespace.history.value((channel, version_id)) if namespace is not None else None

    def __getitem__(self, key: BlobKey) -> Blob:
        found = self._store.peek(lambda buckets: self._read(key, buckets))
        if found is None:
            raise KeyError(key)
        return found


def _as_writes(namespace: Namespace, checkpoint_id: str) -> dict[WriteKey, Write]:
    return {
        (write.task_id, write.idx): (write.task_id, write.channel, write.value, write.task_path)
        for write in namespace.write_records(checkpoint_id)
    }


class Files(AbstractContextManager["Files", None]):
    """The three mappings that a `factory` makes, such as `PersistentDict`s: read on entry, filled on exit.

    They are made, entered and closed as InMemorySaver does it, so that files which it wrote open here and the other
    way round. Their shapes have no place for the run that made a write; after a reopening, `adelete_for_runs` finds
    only checkpoints, by the `run_id` in their metadata.
    """

    def __init__(self, factory: Callable[..., Any], store: MemoryStore, serde: SerializerProtocol) -> None:
        self._store = store
        self._serde = serde
        self._using = threading.Lock()  # the next entry may come while the last exit is writing
        self._open: ExitStack | None = None
        self.on_stack: bool = False  # whether the saver's stack has it to close
        self._storage = factory(lambda: defaultdict(dict))
        self._writes = factory(dict)
        self._blobs = factory()

    def __enter__(self) -> Self:
        with self._using:
            self._opened()
        return self

    def _opened(self) -> ExitStack:
        """Return what closes the mappings, which are entered if they are not."""
        if self._open is None:
            with ExitStack() as stack:
                for mapping in (self._storage, self._writes, self._blobs):
                    stack.enter_context(mapping)
                self._open = stack.pop_all()
        return self._open

    async def load(self) -> None:
        """Store what the mappings hold. Never waits, as the memory store does not.

        Raises:
            DeserializationError: A checkpoint in them cannot be read with the saver's serde.
        """
        # Writes first: those of hidden checkpoints are refused once the checkpoint is there.
        for (thread_id, checkpoint_ns, checkpoint_id), writes in self._writes.items():
            records = [
                # Files from before task paths have none.
                WriteRecord(task_id, idx, channel, value, path[0] if path else "", None)
                for (task_id, idx), (_, channel, value, *path) in writes.items()
            ]
            await self._store.put_writes(text(thread_id), text(checkpoint_ns), text(checkpoint_id), records)
        for thread_id, namespaces in self._storage.items():
            for checkpoint_ns, checkpoints in namespaces.items():
                for stored in checkpoints.values():
                    await self._load_checkpoint(thread_id, checkpoint_ns, *stored)

    async def _load_checkpoint(
        self, thread_id: object, checkpoint_ns: object, checkpoint: Blob, metadata: Blob, parent_id: object
    ) -> None:
        try:
            read, read_metadata = self._serde.loads_typed(checkpoint), self._serde.loads_typed(metadata)
        except Exception as exc:
            raise DeserializationError(
                f"cannot read a checkpoint of thread_id {shown(thread_id)} from the factory's mapping: pass the serde "
                "that it was written with"
            ) from exc
        hidden = read_metadata.get(_HIDDEN)
        record = record_of(
            read,
            read_metadata,
            text(parent_id) if parent_id else None,
            read_metadata.get("run_id"),
            EMPTY if hidden else checkpoint,
            EMPTY if hidden else metadata,
        )
        blobs = [
            (version, blob)
            for version in record.versions
            if (blob := self._blobs.get((thread_id, checkpoint_ns, *version))) is not None
        ]
        await self._store.put(text(thread_id), text(checkpoint_ns), record, blobs)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.on_stack = False
        with self._using:
            stack = self._opened()
            # All of it is made before any mapping changes: one that is closed half filled would spoil a good file.
            records, writes, blobs = self._store.peek(_contents)
            storage: dict[str, Any] = {}
            for (thread_id, checkpoint_ns, checkpoint_id), record in records.items():
                # A defaultdict, because InMemorySaver goes on to write into it.
                namespaces = storage.setdefault(thread_id, defaultdict(dict))
                namespaces[checkpoint_ns][checkpoint_id] = self._as_stored(record)
            for mapping, contents in ((self._storage, storage), (self._writes, writes), (self._blobs, blobs)):
                mapping.clear()
                mapping.update(contents)
            self._open = None
            stack.__exit__(exc_type, exc_value, traceback)

    def _as_stored(self, record: CheckpointRecord) -> Checkpoint:
        if not record.hidden:
            return record.checkpoint, record.metadata, record.parent_id
        # Without it, what is rebuilt from it would come back incomplete. InMemorySaver sees a bare checkpoint.
        made = {**empty_checkpoint(), "id": record.checkpoint_id, "channel_versions": dict(record.versions)}
        metadata = {_HIDDEN: True, "counters_since_delta_snapshot": dict.fromkeys(record.delta_channels, (1, 1))}
        return self._serde.dumps_typed(made), self._serde.dumps_typed(metadata), record.parent_id


def _contents(
    buckets: Mapping[str, Bucket],
) -> tuple[dict[WritesKey, CheckpointRecord], dict[WritesKey, dict[WriteKey, Write]], dict[BlobKey, Blob]]:
    records: dict[WritesKey, CheckpointRecord] = {}
    writes: dict[WritesKey, dict[WriteKey, Write]] = {}
    blobs: dict[BlobKey, Blob] = {}
    for thread_id, bucket in buckets.items():
        for ns, namespace in bucket.namespaces.items():
            for checkpoint_id, record in namespace.checkpoints.items():
                records[thread_id, ns, checkpoint_id] = record
            for checkpoint_id in namespace.writes:
                writes[thread_id, ns, checkpoint_id] = _as_writes(namespace, checkpoint_id)
            for key in namespace.history:
                if (blob := namespace.history.value(key)) is not None:
                    blobs[(thread_id, ns, *key)] = blob
    return records, writes, blobs
