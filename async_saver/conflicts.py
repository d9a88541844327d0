"""Runs that race on one conversation: whose checkpoints have to follow the latest, and what is said if one does not."""

import logging
from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig

from async_saver.errors import ConflictError, shown
from async_saver.records import text
from async_saver.stores.base import OnConflict

__all__ = ["has_to_follow", "tell"]

# A log, not the warnings module: that one keeps every message for ever, and its filters may raise out of a put.
_log = logging.getLogger(__name__)


def has_to_follow(
    thread_id: str, checkpoint_ns: str, parent_id: str | None, config: RunnableConfig, metadata: Mapping[str, Any]
) -> bool:
    """Tell whether a checkpoint can only follow its namespace's latest one, if no other run is under way.

    Those of a run do, but for the first of one that was pointed at a checkpoint, which may be an old one. And in the
    root namespace: the nested runs of a replay go back without their config saying so.
    """
    if checkpoint_ns or metadata.get("source") not in ("input", "loop"):
        return False
    # LangGraph copies into a run's metadata what its config names. Without the one, the other says nothing.
    names = config.get("metadata") or {}
    if "thread_id" not in names:
        return False
    start = names.get("checkpoint_id")
    # A run in a node of another one may show the names of that one.
    return not start or (text(names["thread_id"]) == thread_id and text(start) != parent_id)


def tell(thread_id: str, on_conflict: OnConflict | None) -> None:
    """Tell of a checkpoint that did not follow the latest one, when the store is done with it.

    Raises:
        ConflictError: It was not stored.
    """
    raced = f"two runs raced on thread_id {shown(thread_id)}: another one has stored a checkpoint since this one read"
    remedy = "hold saver.session(thread_id) around every run of a conversation, which keeps them apart"
    if on_conflict == "raise":
        raise ConflictError(f"{raced}, and this one's was not stored; run it again, and {remedy}")
    _log.warning("%s, and this one's was stored beside it; %s", raced, remedy)
