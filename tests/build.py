"""Short ways to make what savers are fed."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple

_T = TypeVar("_T")


def config(thread_id: Any = "t", checkpoint_id: str | None = None, ns: str | None = "", **more: Any) -> RunnableConfig:
    """A config that names a conversation, and perhaps a checkpoint."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id, **more}
    return {"configurable": {key: value for key, value in configurable.items() if value is not None}}


def checkpoint(checkpoint_id: str, values: dict[str, Any] | None = None, version: str = "1", **more: Any) -> Checkpoint:
    """A checkpoint whose channels all have the same version."""
    values = values or {}
    made = {
        "v": 4,
        "id": checkpoint_id,
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, version),
        "versions_seen": {},
        "updated_channels": None,
    }
    return made | more  # type: ignore[return-value]


async def put(
    saver: BaseCheckpointSaver[str],
    checkpoint_id: str,
    values: dict[str, Any] | None = None,
    *,
    thread_id: Any = "t",
    ns: str = "",
    parent: str | None = None,
    metadata: dict[str, Any] | None = None,
    version: str | None = None,
    **more: Any,
) -> RunnableConfig:
    """Store a checkpoint all of whose channels are new; their version is its id unless another is given."""
    made = checkpoint(checkpoint_id, values, version or checkpoint_id)
    return await saver.aput(
        config(thread_id, parent, ns, **more),
        made,
        metadata or {"source": "loop", "step": 1, "parents": {}},  # type: ignore[arg-type]
        made["channel_versions"],
    )


async def all_of(found: AsyncIterator[_T]) -> list[_T]:
    """Everything that an async iterator gives."""
    return [one async for one in found]


def ids(tuples: Iterable[CheckpointTuple]) -> list[str]:
    """The checkpoints' ids."""
    return [one.checkpoint["id"] for one in tuples]


async def listed(saver: BaseCheckpointSaver[str], *args: Any, **kwargs: Any) -> list[str]:
    """The ids that `alist` gives."""
    return ids(await all_of(saver.alist(*args, **kwargs)))
