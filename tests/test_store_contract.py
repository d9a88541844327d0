"""The contract of `Store` as a suite: every store passes it, and it finds whatever breaks a promise."""

# ruff: noqa: D101  (the names of the broken stores say it)

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from anyio.lowlevel import current_token

from async_saver import MemoryStore, Store, testing
from async_saver.records import CheckpointRecord, Listing, StoredCheckpoint, StoredHistory, WriteRecord
from async_saver.stores.bucket import Bucket
from async_saver.testing import check_store
from tests.test_machine import HalfDeleted, Split

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("factory", [MemoryStore])
async def test_every_store_keeps_the_contract(factory: Callable[[], Store]) -> None:
    """On every event loop."""
    await check_store(factory)


# Stores that break one promise each.


class LeavesTraces(MemoryStore):
    async def get(self, thread_id: str, *args: Any) -> StoredCheckpoint | None:
        self._buckets.setdefault(thread_id, Bucket())
        return await super().get(thread_id, *args)


class ForgetsAtSetup(MemoryStore):
    async def setup(self) -> None:
        self.discard(None)


class SortsValues(MemoryStore):
    async def get(self, *args: Any) -> StoredCheckpoint | None:
        found = await super().get(*args)
        return found and found._replace(values=sorted(found.values))


class LastStoredIsLatest(MemoryStore):
    async def get(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        namespace = self._namespace(thread_id, checkpoint_ns)
        if checkpoint_id is None and namespace is not None and namespace.ids:
            checkpoint_id = [*namespace.checkpoints][-1]
        return await super().get(thread_id, checkpoint_ns, checkpoint_id)


class NeverReplaces(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: CheckpointRecord, blobs: Any) -> None:
        if await self.get(thread_id, ns, record.checkpoint_id) is None:
            await super().put(thread_id, ns, record, blobs)


class DropsWhatIsNotNamed(MemoryStore):
    async def put(self, thread_id: str, ns: str, record: CheckpointRecord, blobs: Any) -> None:
        await super().put(thread_id, ns, record, [one for one in blobs if one[0] in record.versions])


class NeedsTheCheckpointFirst(MemoryStore):
    async def put_writes(self, thread_id: str, ns: str, checkpoint_id: str, writes: Any) -> None:
        if await self.get(thread_id, ns, checkpoint_id) is not None:
            await super().put_writes(thread_id, ns, checkpoint_id, writes)


class IncludesBefore(MemoryStore):
    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        return super().list(listing._replace(before=listing.before and listing.before + "\0"))


class ReadsAllAtOnce(MemoryStore):
    def list(self, listing: Listing) -> AsyncIterator[StoredCheckpoint]:
        return _AllAtOnce(super().list(listing))


class _AllAtOnce(AsyncIterator[StoredCheckpoint]):
    def __init__(self, found: AsyncIterator[StoredCheckpoint]) -> None:
        self.found = found
        self.read: Any = None

    async def __anext__(self) -> StoredCheckpoint:
        if self.read is None:
            self.read = iter([one async for one in self.found])
        for one in self.read:
            return one
        raise StopAsyncIteration


class NewestWritesFirst(MemoryStore):
    async def delta_history(self, *args: Any) -> Any:
        found = await super().delta_history(*args)
        return {channel: StoredHistory(one.seed, one.writes[::-1]) for channel, one in found.items()}


class DeletesOne(MemoryStore):
    async def delete(self, thread_ids: Sequence[str]) -> None:
        await super().delete(thread_ids[:1])


class CopiesOver(MemoryStore):
    def _is_taken(self, thread_id: str) -> bool:
        return False


class PrunesWhatIsToCome(MemoryStore):
    async def keep_latest(self, thread_ids: Sequence[str]) -> None:
        await super().keep_latest(thread_ids)
        for thread_id in thread_ids:
            for namespace in self._buckets[thread_id].namespaces.values() if thread_id in self._buckets else ():
                for checkpoint_id in namespace.writes.keys() - namespace.checkpoints.keys():
                    del namespace.writes[checkpoint_id]


class PrunesAncestors(MemoryStore):
    async def keep_latest(self, thread_ids: Sequence[str]) -> None:
        for thread_id in thread_ids:
            for namespace in self._buckets[thread_id].namespaces.values() if thread_id in self._buckets else ():
                namespace.delta_channels = frozenset()
        await super().keep_latest(thread_ids)


class KeepsARunsWrites(MemoryStore):
    async def put_writes(self, thread_id: str, ns: str, checkpoint_id: str, writes: Sequence[WriteRecord]) -> None:
        await super().put_writes(thread_id, ns, checkpoint_id, [one._replace(run_id=None) for one in writes])


class DropsWhatIsRebuiltFrom(MemoryStore):
    async def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        for bucket in self._buckets.values():
            for namespace in bucket.namespaces.values():
                namespace.delta_channels = frozenset()
        await super().delete_for_runs(run_ids)


class OldestConversationFirst(MemoryStore):
    def peek(self, look: Any) -> Any:
        return [*super().peek(look)][::-1] if look is list else super().peek(look)


class IgnoresCase(MemoryStore):
    async def put(self, thread_id: str, *args: Any) -> None:
        await super().put(thread_id.lower(), *args)


class HandsOutItsOwn(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, Any] = {}

    async def get(self, *args: Any) -> StoredCheckpoint | None:
        return self.found.setdefault(args, await super().get(*args))


class OneLoopOnly(MemoryStore):
    loop: Any = None

    async def put(self, *args: Any) -> None:
        self.loop = self.loop or current_token()
        if self.loop != current_token():
            raise RuntimeError("attached to a different loop")
        await super().put(*args)


class CannotCloseTwice(MemoryStore):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


_BROKEN = {
    LeavesTraces: "nothing",
    ForgetsAtSetup: "setup",
    CannotCloseTwice: "setup",
    SortsValues: "put",
    LastStoredIsLatest: "latest",
    NeverReplaces: "replaced",
    DropsWhatIsNotNamed: "shared_versions",
    NeedsTheCheckpointFirst: "writes",
    IncludesBefore: "list",
    ReadsAllAtOnce: "list_fixed",
    NewestWritesFirst: "history",
    DeletesOne: "delete",
    CopiesOver: "copy",
    PrunesWhatIsToCome: "keep_latest",
    PrunesAncestors: "keep_latest_delta",
    KeepsARunsWrites: "runs",
    DropsWhatIsRebuiltFrom: "runs_delta",
    OldestConversationFirst: "thread_ids",
    IgnoresCase: "odd_ids",
    HandsOutItsOwn: "bytes",
    Split: "tasks",
    OneLoopOnly: "loops",
    HalfDeleted: "cancelled",
}


@pytest.mark.parametrize("broken", _BROKEN)
async def test_a_broken_promise_is_named(broken: type[MemoryStore]) -> None:
    """In the message, with what was seen."""
    with pytest.raises(AssertionError) as failed:
        await check_store(broken)
    check = getattr(testing, f"_check_{_BROKEN[broken]}")
    assert f"- {check.__doc__}\n" in str(failed.value)
    assert failed.value.__cause__ is not None
    assert str(failed.value).startswith(f"{broken.__name__} breaks ")


def test_every_check_can_fail() -> None:
    """There is a broken store for each."""
    assert {f"_check_{name}" for name in _BROKEN.values()} == {check.__name__ for check in testing._CHECKS}
    assert all(check.__doc__ for check in testing._CHECKS)
    assert {name for name in vars(testing) if name.startswith("_check_")} == {c.__name__ for c in testing._CHECKS}
