"""A store of one's own: everything in one file, which every change writes anew.

    python examples/custom_store.py

Good for a notebook or a tool with little state, and short enough to show what a store has to do. `check_store` runs the
contract of `async_saver.stores.base.Store` against it; then a chat goes on after a restart.
"""

import os
import pickle
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint as yield_to_loop
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import writes_sort_key
from langgraph.graph import START, MessagesState, StateGraph

from async_saver import AsyncSaver, Store
from async_saver.errors import ThreadExistsError
from async_saver.records import (
    EMPTY,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    Lease,
    Listing,
    StoredCheckpoint,
    StoredHistory,
    WriteRecord,
)
from async_saver.stores.base import OnConflict
from async_saver.testing import check_store

Place = tuple[str, str]  # checkpoint_ns, checkpoint_id
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Conversation:
    """One conversation. A change makes a new one, so whoever reads the old one is not disturbed."""

    checkpoints: dict[Place, CheckpointRecord] = field(default_factory=dict)
    blobs: dict[tuple[str, ChannelVersion], Blob] = field(default_factory=dict)
    writes: dict[Place, dict[tuple[str, int], WriteRecord]] = field(default_factory=dict)
    delta_channels: frozenset[Place] = frozenset()  # checkpoint_ns, channel

    def record(self, ns: str, checkpoint_id: str | None) -> CheckpointRecord | None:
        """Return the checkpoint of this id, or with None the one of the greatest id, if it is in sight."""
        if checkpoint_id is None:
            checkpoint_id = max((i for its_ns, i in self.in_sight() if its_ns == ns), default="")
        record = self.checkpoints.get((ns, checkpoint_id))
        return None if record is None or record.hidden else record

    def is_ahead_of(self, ns: str, record: CheckpointRecord) -> bool:
        """Tell whether the latest checkpoint is in conflict with one to be stored."""
        latest, parent_id = self.record(ns, None), record.parent_id
        if latest is None or latest.checkpoint_id in (parent_id, record.checkpoint_id):
            return False
        return parent_id is None or self.record(ns, parent_id) is not None

    def values(self, ns: str, record: CheckpointRecord) -> list[tuple[str, Blob]]:
        """Return the channels that have a value, with it."""
        blobs = [(version[0], self.blobs.get((ns, version), EMPTY)) for version in record.versions]
        return [one for one in blobs if one[1][0] != "empty"]

    def sorted_writes(self, place: Place) -> list[WriteRecord]:
        """Return a checkpoint's pending writes in the order in which the run applied them."""
        writes = self.writes.get(place, {}).values()
        return sorted(writes, key=lambda write: writes_sort_key(write.task_path, write.task_id, write.idx))

    def in_sight(self) -> Iterator[Place]:
        """Iterate over what can be read; hidden checkpoints are only there for what is rebuilt from them."""
        return (place for place, record in self.checkpoints.items() if not record.hidden)

    def ancestors(self, place: Place) -> Iterator[Place]:
        """Iterate over what is stored of the line of parents, nearest first."""
        seen = {place}
        while (record := self.checkpoints.get(place)) is not None and record.parent_id is not None:
            place = (place[0], record.parent_id)
            if place in seen or place not in self.checkpoints:
                return
            seen.add(place)
            yield place

    def keeping(
        self, stays: Callable[[Place], bool], write_stays: Callable[[Place, WriteRecord], bool]
    ) -> "Conversation":
        """Return a conversation without the rest, but with all that the values of DeltaChannels are rebuilt from."""
        kept = {place: self.checkpoints[place] for place in self.in_sight() if stays(place)}
        needed: set[tuple[Place, str]] = set()  # a checkpoint, and a channel that is rebuilt from it
        for place, record in kept.items():
            there = {channel for channel, _ in self.values(place[0], record)}
            for channel, _ in record.versions:
                if channel in there or (place[0], channel) not in self.delta_channels:
                    continue
                for ancestor in self.ancestors(place):
                    needed.add((ancestor, channel))
                    if channel in dict(self.values(place[0], self.checkpoints[ancestor])):
                        break
        for place in {place for place, _ in needed} - kept.keys():
            versions = tuple(one for one in self.checkpoints[place].versions if (place, one[0]) in needed)
            kept[place] = self.checkpoints[place]._replace(checkpoint=EMPTY, metadata=EMPTY, versions=versions)
        used = {(place[0], version) for place, record in kept.items() for version in record.versions}
        writes: dict[Place, dict[tuple[str, int], WriteRecord]] = {}
        for place, stored in self.writes.items():
            stay = place not in self.checkpoints or (place in kept and not kept[place].hidden)
            left = {
                key: write
                for key, write in stored.items()
                if (place, write.channel) in needed or (stay and write_stays(place, write))
            }
            if left:
                writes[place] = left
        blobs = {key: blob for key, blob in self.blobs.items() if key in used}
        return Conversation(kept, blobs, writes, self.delta_channels)


class FileStore(Store):
    """Keeps everything in one file.

    What is stored is never changed in place. A change is prepared unseen, written to a new file, and then published by
    renaming the file and by one assignment; so a call that is cancelled or killed leaves all or nothing. The lock is
    for several event loops and worker threads. It is never held across an await, so nobody can be cancelled with it.
    It gives no leases, so there are no sessions on its conversations, and `leases` is always empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # The one last written to last. (Reading a pickle runs what is in it: the file must be one's own.)
        self._stored: dict[str, Conversation] = pickle.loads(path.read_bytes()) if path.exists() else {}

    def _publish(self, changes: dict[str, Conversation]) -> None:
        """Put conversations in place of others. The caller holds the lock; empty ones go."""
        stored = {thread_id: one for thread_id, one in self._stored.items() if thread_id not in changes}
        stored |= {thread_id: one for thread_id, one in changes.items() if one.writes or any(one.in_sight())}
        new = self._path.with_suffix(".new")
        new.write_bytes(pickle.dumps(stored))
        os.replace(new, self._path)
        self._stored = stored

    async def get(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        conversation = self._stored.get(thread_id, Conversation())
        record = conversation.record(checkpoint_ns, checkpoint_id)
        if record is None:
            return None
        writes = conversation.sorted_writes((checkpoint_ns, record.checkpoint_id))
        return StoredCheckpoint(thread_id, checkpoint_ns, record, conversation.values(checkpoint_ns, record), writes)

    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        found = [
            (checkpoint_id, ns, thread_id)
            for thread_id, conversation in self._stored.items()
            for ns, checkpoint_id in conversation.in_sight()
            if listing.thread_id in (None, thread_id)
            and listing.checkpoint_ns in (None, ns)
            and listing.checkpoint_id in (None, checkpoint_id)
            and (listing.before is None or checkpoint_id < listing.before)
        ]
        return Steps(sorted(found, reverse=True), lambda one: self.get(one[2], one[1], one[0]))

    async def delta_history(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Histories:
        histories = {channel: StoredHistory(None, []) for channel in channels}
        conversation = self._stored.get(thread_id, Conversation())
        record = conversation.record(checkpoint_ns, checkpoint_id)
        for place in conversation.ancestors((checkpoint_ns, record.checkpoint_id)) if record else ():
            values = dict(conversation.values(checkpoint_ns, conversation.checkpoints[place]))
            writes = conversation.sorted_writes(place)
            for channel, (seed, later) in histories.items():
                if seed is None:
                    mine = [write for write in writes if write.channel == channel]
                    histories[channel] = StoredHistory(values.get(channel), [*mine, *later])
        return histories

    async def put(
        self,
        thread_id: str,
        checkpoint_ns: str,
        record: CheckpointRecord,
        blobs: Sequence[tuple[ChannelVersion, Blob]],
        leases: Sequence[Lease] = (),
        on_conflict: OnConflict | None = None,
    ) -> bool:
        with self._lock:
            old = self._stored.get(thread_id, Conversation())
            conflict = on_conflict is not None and old.is_ahead_of(checkpoint_ns, record)
            if conflict and on_conflict == "raise":
                return True
            new = replace(
                old,
                checkpoints={**old.checkpoints, (checkpoint_ns, record.checkpoint_id): record},
                blobs={**old.blobs, **{(checkpoint_ns, version): blob for version, blob in blobs}},
                delta_channels=old.delta_channels | {(checkpoint_ns, channel) for channel in record.delta_channels},
            )
            self._publish({thread_id: new})
        return conflict

    async def put_writes(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str,
        writes: Sequence[WriteRecord],
        leases: Sequence[Lease] = (),
    ) -> None:
        place = (checkpoint_ns, checkpoint_id)
        with self._lock:
            old = self._stored.get(thread_id, Conversation())
            stored = old.writes.get(place, {}).copy()
            for write in writes:
                if write.idx < 0 or (write.task_id, write.idx) not in stored:
                    stored[write.task_id, write.idx] = write
            if writes and not (place in old.checkpoints and old.checkpoints[place].hidden):
                self._publish({thread_id: replace(old, writes={**old.writes, place: stored})})

    async def delete(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        with self._lock:
            self._publish({thread_id: Conversation() for thread_id in thread_ids})

    async def delete_for_runs(self, run_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        def without_runs(old: Conversation) -> Conversation:
            return old.keeping(
                lambda place: old.checkpoints[place].run_id not in run_ids,
                lambda _, write: write.run_id not in run_ids,
            )

        with self._lock:
            self._publish({thread_id: without_runs(self._stored[thread_id]) for thread_id in self._of_runs(run_ids)})

    async def run_threads(self, run_ids: Sequence[str]) -> Sequence[str]:
        return self._of_runs(run_ids)

    def _of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        return [
            thread_id
            for thread_id, one in self._stored.items()
            if any(_goes(one, place, run_ids) for place in one.in_sight())
            or any(write.run_id in run_ids for writes in one.writes.values() for write in writes.values())
        ]

    async def copy(self, source_thread_id: str, target_thread_id: str, leases: Sequence[Lease] = ()) -> None:
        with self._lock:
            if target_thread_id in self._stored:
                raise ThreadExistsError(f"thread_id {target_thread_id!r:.80} is in use; delete it first")
            if source_thread_id in self._stored:
                self._publish({target_thread_id: self._stored[source_thread_id]})

    async def keep_latest(self, thread_ids: Sequence[str], leases: Sequence[Lease] = ()) -> None:
        def latest_only(old: Conversation) -> Conversation:
            latest: dict[str, str] = {}
            for ns, checkpoint_id in sorted(old.in_sight()):
                latest[ns] = checkpoint_id
            return old.keeping(
                lambda place: place[1] == latest[place[0]],
                lambda place, _: place in old.checkpoints or place[0] not in latest or place[1] > latest[place[0]],
            )

        with self._lock:
            known = [thread_id for thread_id in thread_ids if thread_id in self._stored]
            self._publish({thread_id: latest_only(self._stored[thread_id]) for thread_id in known})

    def thread_ids(self) -> AsyncIterator[str]:
        return Steps(reversed([*self._stored]), self._if_stored)

    async def _if_stored(self, thread_id: str) -> str | None:
        return thread_id if thread_id in self._stored else None

    async def count(self) -> int:
        return len(self._stored)


def _goes(conversation: Conversation, place: Place, run_ids: Sequence[str]) -> bool:
    return conversation.checkpoints[place].run_id in run_ids


class Steps(AsyncIterator[Out], Generic[In, Out]):
    """What is still there of some things, one at a time. No generator: it may be dropped half read."""

    def __init__(self, ids: Iterable[In], look: Callable[[In], Awaitable[Out | None]]) -> None:
        self._ids = iter(ids)
        self._look = look

    async def __anext__(self) -> Out:
        await yield_to_loop()
        for one in self._ids:
            if (found := await self._look(one)) is not None:
                return found
        raise StopAsyncIteration


def answer(state: MessagesState) -> dict[str, list[AIMessage]]:
    number = sum(message.type == "human" for message in state["messages"])
    return {"messages": [AIMessage(f"answer {number}")]}


def chat(path: Path, text: str) -> None:
    """Say something, with a saver that is made for it, as if the program had just begun."""
    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    graph = builder.compile(checkpointer=AsyncSaver(store=FileStore(path)))
    result = graph.invoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": "thread-1"}})
    print("chat:", ", ".join(str(message.content) for message in result["messages"]))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        numbers = count()
        for backend in ("asyncio", "trio") if find_spec("trio") else ("asyncio",):
            anyio.run(check_store, lambda: FileStore(Path(folder, f"{next(numbers)}")), backend=backend)
            print(f"contract: kept on {backend}")
        chat(Path(folder, "chat"), "Hello")
        chat(Path(folder, "chat"), "Here I am again")


if __name__ == "__main__":
    main()
