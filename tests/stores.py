"""The stores that the tests of their contract are run over, and what tests see of them that savers do not show."""

import copy
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import Self

from async_saver import AsyncSaver, MemoryStore, Store
from async_saver.bridge import bridge
from async_saver.records import Listing
from async_saver.stores.history import restored
from async_saver.stores.sqlite import SQLiteStore
from async_saver.stores.sqlite_reads import chains_of, version_of

STORES: dict[str, type[Any]] = {"memory": MemoryStore, "sqlite": SQLiteStore}
"""Every kind of store."""


class NewStore:
    """Makes empty stores of one kind, and closes them.

    Args:
        kind: Which, of `STORES`.
        folder: Where each may have a file of its own.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        self._made: list[Any] = []

    def __call__(self, *before: type[Store], **attributes: Any) -> Any:
        """Return an empty store, in whose class others come before its own, and may override what that does."""
        cls = STORES[self.kind]
        if before:
            cls = type(before[0].__name__, (*before, cls), {})
        store = cls() if self.kind == "memory" else cls(self._folder / f"{len(self._made)}.db")
        self._made.append(store)
        return store

    def copy(self, store: Any) -> Any:
        """Return another store that holds the same; of one in a file, which has to be closed, with a copy of that."""
        if self.kind == "memory":
            twin = copy.deepcopy(store)
            self._made.append(twin)
            return twin
        twin = self()
        shutil.copy(path_of(store), path_of(twin))
        return twin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close them all, and look whether what they hold is sound."""
        while self._made:
            store = self._made.pop()
            bridge.call(store.close)
            store.check()


def path_of(store: Any) -> str:
    """The file of a store."""
    path: str = store._engine.file.path
    return path


def writes_of(saver: AsyncSaver) -> dict[tuple[str, str, str], dict[tuple[str, int], tuple[str, str, Any, str]]]:
    """All pending writes, also those whose checkpoint is not stored: what `saver.writes` shows in memory."""
    if isinstance(saver._shared.store, MemoryStore):
        return {key: dict(writes) for key, writes in saver.writes.items()}
    found: dict[Any, dict[Any, Any]] = {}
    with _file_of(saver) as file:
        rows = file.execute(f"SELECT {_WRITE} FROM writes w JOIN {_NAMES} ON n.id = w.namespace").fetchall()
        for *place, task_id, idx, channel, kind, base, data, path in rows:
            value = data if base is None else restored([data], chains_of(file, [base])[base].value)
            found.setdefault(tuple(place), {})[task_id, idx] = (task_id, channel, (kind, value), path)
    return found


_NAMES = "(namespaces n JOIN conversations t ON t.id = n.conversation)"
_WRITE = "t.thread_id, n.checkpoint_ns, w.checkpoint_id, task_id, idx, channel, kind, base, data, task_path"


def versions_of(saver: AsyncSaver) -> list[tuple[str, str, str, Any]]:
    """All versions whose values are stored: the keys that `saver.blobs` has in memory."""
    if isinstance(saver._shared.store, MemoryStore):
        return sorted(saver.blobs)
    statement = f"SELECT t.thread_id, n.checkpoint_ns, channel, version FROM blobs b JOIN {_NAMES} ON n.id = namespace"
    with _file_of(saver) as file:
        rows = file.execute(f"{statement} WHERE NOT aside AND kind IS NOT NULL").fetchall()
    return sorted((*names, version_of(version)) for *names, version in rows)


def leased(saver: AsyncSaver) -> list[str]:
    """The conversations whose lease somebody holds."""
    store = saver._shared.store
    if isinstance(store, MemoryStore):
        return [thread_id for thread_id, line in store._leases._lines.items() if line.held() is not None]
    with _file_of(saver) as file:
        return [thread_id for (thread_id,) in file.execute("SELECT thread_id FROM leases WHERE held")]


@contextmanager
def _file_of(saver: AsyncSaver) -> Iterator[sqlite3.Connection]:
    """The file of a store, with all that it was called for, also by callers who did not stay."""
    store: Any = saver._shared.store
    bridge.call(settled, store)
    with closing(sqlite3.connect(path_of(store))) as file:
        yield file


async def settled(store: Store) -> None:
    """Return when what a store was called for is done, also by callers who did not stay."""
    if isinstance(store, SQLiteStore):
        await SQLiteStore.delete(store, ["no such conversation"])  # it comes after all before it


def contents(saver: AsyncSaver) -> Any:
    """Everything that is stored, as bytes; and the store is sound."""
    store: Any = saver._shared.store
    store.check()
    if isinstance(store, MemoryStore):
        storage = {tid: {ns: dict(ids) for ns, ids in spaces.items()} for tid, spaces in saver.storage.items()}
        return storage, writes_of(saver), dict(saver.blobs)
    return bridge.call(_listed, store), writes_of(saver), versions_of(saver)


async def _listed(store: Store) -> dict[str, list[Any]]:
    await settled(store)
    found: dict[str, list[Any]] = {}
    async for one in store.list(Listing()):
        found.setdefault(one.thread_id, []).append((*one[:3], [*one.values], [*one.writes]))
    return {thread_id: sorted(found[thread_id], key=repr) for thread_id in sorted(found)}
