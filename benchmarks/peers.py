"""The savers that are compared, among them one that does as little as a saver can."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    copy_checkpoint,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from async_saver import AsyncSaver

OURS, THEIRS, LIMIT = "AsyncSaver", "InMemorySaver", "references only"
SQLITE, POSTGRES = "AsyncSqliteSaver", "AsyncPostgresSaver"
IN_MEMORY = (OURS, THEIRS, LIMIT)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[Any]:
    """Hand out a new saver of that name."""
    if name != SQLITE:
        yield {OURS: AsyncSaver, THEIRS: InMemorySaver, LIMIT: References}[name]()
        return
    with TemporaryDirectory() as directory:
        async with AsyncSqliteSaver.from_conn_string(f"{Path(directory) / 'checkpoints.sqlite'}") as saver:
            await saver.setup()
            yield saver


class _Namespace:
    """What `References` keeps of one namespace of a conversation."""

    def __init__(self) -> None:
        self.latest = ""
        self.checkpoints: dict[str, tuple[Checkpoint, CheckpointMetadata, str | None]] = {}
        self.writes: dict[str, dict[tuple[str, str, int], tuple[str, str, Any]]] = {}


class References(BaseCheckpointSaver[int]):
    """The limit: keeps the very objects that it is given, so no saver can do less.

    It is no saver to use: who changes a value that was stored changes what is stored. Only a checkpoint's own dicts are
    copied, when it is read, as LangGraph writes to them; a checkpoint that LangGraph puts has all its channels' values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads: dict[str, dict[str, _Namespace]] = {}

    def _at(self, config: RunnableConfig) -> tuple[dict[str, Any], _Namespace]:
        place = config["configurable"]
        namespaces = self._threads.setdefault(place["thread_id"], {})
        namespace = namespaces.get(place.get("checkpoint_ns", ""))
        if namespace is None:
            namespace = namespaces[place.get("checkpoint_ns", "")] = _Namespace()
        return place, namespace

    def _tuple(self, place: dict[str, Any], namespace: _Namespace, checkpoint_id: str) -> CheckpointTuple:
        checkpoint, metadata, parent = namespace.checkpoints[checkpoint_id]
        writes = namespace.writes.get(checkpoint_id, {})
        where = {"thread_id": place["thread_id"], "checkpoint_ns": place.get("checkpoint_ns", "")}
        return CheckpointTuple(
            {"configurable": where | {"checkpoint_id": checkpoint_id}},
            copy_checkpoint(checkpoint),
            metadata,
            None if parent is None else {"configurable": where | {"checkpoint_id": parent}},
            [writes[key] for key in sorted(writes)],
        )

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint."""
        place, namespace = self._at(config)
        checkpoint_id = place.get("checkpoint_id") or namespace.latest
        return self._tuple(place, namespace, checkpoint_id) if checkpoint_id in namespace.checkpoints else None

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Iterate over a namespace's checkpoints, the newest first; `filter` and `before` are not measured."""
        assert config is not None
        assert filter is None
        assert before is None
        place, namespace = self._at(config)
        for checkpoint_id in sorted(namespace.checkpoints, reverse=True)[:limit]:
            yield self._tuple(place, namespace, checkpoint_id)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint."""
        place, namespace = self._at(config)
        checkpoint_id = checkpoint["id"]
        namespace.checkpoints[checkpoint_id] = checkpoint, metadata, place.get("checkpoint_id")
        namespace.latest = max(namespace.latest, checkpoint_id)
        where = {"thread_id": place["thread_id"], "checkpoint_ns": place["checkpoint_ns"]}
        return {"configurable": where | {"checkpoint_id": checkpoint_id}}

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Keep a task's writes."""
        place, namespace = self._at(config)
        kept = namespace.writes.setdefault(place["checkpoint_id"], {})
        for number, (channel, value) in enumerate(writes):
            key = task_path, task_id, WRITES_IDX_MAP.get(channel, number)
            if key[2] < 0 or key not in kept:
                kept[key] = task_id, channel, value

    def delete_thread(self, thread_id: str) -> None:
        """Forget a conversation."""
        self._threads.pop(thread_id, None)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See `get_tuple`."""
        return self.get_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """See `list`."""
        for one in self.list(config, filter=filter, before=before, limit=limit):
            yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See `put`."""
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """See `put_writes`."""
        self.put_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """See `delete_thread`."""
        self.delete_thread(thread_id)
