"""The stores that the tests of their contract are run over, and what tests see of them that savers do not show."""

import copy
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from typing_extensions import Self

from async_saver import AsyncSaver, MemoryStore, Store
from async_saver.bridge import bridge
from async_saver.records import Listing
from async_saver.stores.history import restored
from async_saver.stores.sqlite import SQLiteStore
from async_saver.stores.sqlite_reads import chains_of, version_of
from tests.postgres import PgBouncer, create_database, server

STORES = ("memory", "sqlite", "postgres")
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
        cls = _CLASSES[self.kind]()
        if before:
            cls = type(before[0].__name__, (*before, cls), {})
        store = cls(*self._place())
        self._made.append(store)
        return store

    def _place(self) -> tuple[Any, ...]:
        if self.kind == "sqlite":
            return (self._folder / f"{len(self._made)}.db",)
        return (_schemas().take(), self._folder) if self.kind == "postgres" else ()

    def copy(self, store: Any) -> Any:
        """Return another store that holds the same; of one in a file, which has to be closed, with a copy of that."""
        if self.kind == "memory":
            twin = copy.deepcopy(store)
            self._made.append(twin)
            return twin
        twin = self()
        if self.kind == "postgres":
            bridge.call(settled, store)
            bridge.call(twin.setup)
            bridge.call(twin.close)
            _schemas().copy(store.schema_of_tests, twin.schema_of_tests)
        else:
            shutil.copy(path_of(store), path_of(twin))
        return twin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close them all, and look whether what they hold is sound."""
        left = []
        while self._made:
            store = self._made.pop()
            bridge.call(store.close)
            store.check()
            left.append(store)
        if self.kind == "postgres":
            _schemas().give_back([store.schema_of_tests for store in left])


# Stores in PostgreSQL. It is imported where it is asked for: whoever has no driver has the other stores.


@cache
def _postgres() -> type[Any]:
    from async_saver.stores import postgres

    class PostgresStore(postgres.PostgresStore):
        """In a schema of its own, of the one database that all have; it is the name of their connections, too."""

        def __init__(self, schema: str, folder: Path) -> None:
            super().__init__(f"{_schemas().database}?application_name={schema}", schema=schema)
            self.schema_of_tests, self.folder_of_tests = schema, folder

        if not hasattr(postgres.PostgresStore, "check"):

            def check(self) -> None:
                """There is nothing to look at."""

    return PostgresStore


_CLASSES: dict[str, Callable[[], type[Any]]] = {
    "memory": lambda: MemoryStore,
    "sqlite": lambda: SQLiteStore,
    "postgres": _postgres,
}


class _Schemas:
    """The schemas of one database, which stores have one after the other: a test is shorter than making tables is."""

    def __init__(self) -> None:
        self.database = create_database()
        self._free: list[str] = []
        self._number = 0

    def take(self) -> str:
        """Return the name of one that is not there, or whose tables are empty."""
        if self._free:
            return self._free.pop()
        self._number += 1
        return f"store_{self._number}"

    def give_back(self, schemas: "list[str]") -> None:
        """Empty the tables, when the last connection is gone that may still do what a store was called for."""
        with self.connected() as admin:
            admin.execute("SET session_replication_role = replica")  # in any order, whichever refers to another
            for schema in schemas:
                self._end_connections(admin, schema)
                large = "pg_relation_size(format('%%I.%%I', schemaname, tablename)) > 1000000"
                tables = self._tables(admin, schema, large)
                # What deletes is five times as fast as what truncates, and leaves the room to the vacuum.
                for table, is_large in tables:
                    admin.execute(f"{'TRUNCATE' if is_large else 'DELETE FROM'} {schema}.{table}")
        self._free += schemas

    def _end_connections(self, admin: Any, name: str) -> None:
        connections = "FROM pg_stat_activity WHERE application_name = %s"
        pooler = server().for_stores()
        if isinstance(pooler, PgBouncer):
            # One to the server has the name of whose transaction it had last, and may be another one's next.
            until = time.monotonic() + 60
            while any(client["application_name"] == name for client in pooler.show("CLIENTS")):
                assert time.monotonic() < until, f"somebody is still connected as {name}"
                time.sleep(0.002)
            connections += " AND state <> 'idle'"
        admin.execute(f"SELECT pg_terminate_backend(pid, 60000) {connections}", [name])
        assert not admin.execute(f"SELECT pid {connections}", [name]).fetchall()

    def copy(self, source: str, target: str) -> None:
        """Fill the tables of one schema with what is in those of another."""
        with self.connected() as admin, admin.transaction():
            admin.execute("SET LOCAL session_replication_role = replica")
            for (table,) in self._tables(admin, source):
                admin.execute(f"DELETE FROM {target}.{table}")
                admin.execute(f"INSERT INTO {target}.{table} OVERRIDING SYSTEM VALUE SELECT * FROM {source}.{table}")
            sequences = "SELECT sequencename FROM pg_sequences WHERE schemaname = %s"
            for (name,) in admin.execute(sequences, [source]).fetchall():
                admin.execute(f"SELECT setval('{target}.{name}', last_value, is_called) FROM {source}.{name}")

    def write(self, schema: str, path: Path) -> None:
        """Write all that is in the tables of a schema to a file."""
        with self.connected() as admin, path.open("wb") as file:
            for (table,) in self._tables(admin, schema):
                with admin.cursor().copy(f"COPY {schema}.{table} TO STDOUT (FORMAT binary)") as rows:
                    file.writelines(rows)

    def _tables(self, admin: Any, schema: str, *more: str) -> "list[tuple[Any, ...]]":
        """All tables of a schema, but those that tell which migrations it has."""
        columns = ", ".join(("tablename", *more))
        found = f"SELECT {columns} FROM pg_tables WHERE schemaname = %s AND tablename NOT LIKE '%%migrations'"
        tables: list[tuple[Any, ...]] = admin.execute(found, [schema]).fetchall()
        return tables

    @contextmanager
    def connected(self, schema: str = "public") -> Iterator[Any]:
        """A connection of the tests' own, that sees the tables of a schema."""
        from psycopg import connect

        name = self.database.rpartition("/")[2]
        with connect(server().over_socket(name, options=f"-c search_path={schema}"), autocommit=True) as admin:
            yield admin


@cache
def _schemas() -> _Schemas:
    return _Schemas()


# What tests see of stores.


def path_of(store: Any) -> str:
    """The file of a store; of one in PostgreSQL, a file with what it has there."""
    if hasattr(store, "schema_of_tests"):
        copied: Path = store.folder_of_tests / store.schema_of_tests
        _schemas().write(store.schema_of_tests, copied)
        return str(copied)
    path: str = store._engine.file.path
    return path


def writes_of(saver: AsyncSaver) -> dict[tuple[str, str, str], dict[tuple[str, int], tuple[str, str, Any, str]]]:
    """All pending writes, also those whose checkpoint is not stored: what `saver.writes` shows in memory."""
    if isinstance(saver._shared.store, MemoryStore):
        return {key: dict(writes) for key, writes in saver.writes.items()}
    found: dict[Any, dict[Any, Any]] = {}
    if _is_in_postgres(saver):
        columns = "thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path"
        for *place, task_id, idx, channel, kind, data, path in _rows_of(
            saver, f"SELECT {columns} FROM checkpoint_writes"
        ):
            found.setdefault(tuple(place), {})[task_id, idx] = (task_id, channel, (kind, data), path)
        return found
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
    if _is_in_postgres(saver):
        return sorted(_rows_of(saver, _VERSIONS))
    statement = f"SELECT t.thread_id, n.checkpoint_ns, channel, version FROM blobs b JOIN {_NAMES} ON n.id = namespace"
    with _file_of(saver) as file:
        rows = file.execute(f"{statement} WHERE NOT aside AND kind IS NOT NULL").fetchall()
    return sorted((*names, version_of(version)) for *names, version in rows)


# Small values are in the checkpoints themselves.
_VERSIONS = """
SELECT thread_id, checkpoint_ns, channel, version FROM checkpoint_blobs
UNION
SELECT thread_id, checkpoint_ns, key, checkpoint -> 'channel_versions' ->> key
FROM checkpoints, jsonb_object_keys(checkpoint -> 'channel_values') key
"""


def hides_ancestors(saver: AsyncSaver) -> bool:
    """Whether pruning puts out of sight all that is there only for others, also what reads as before."""
    return _is_in_postgres(saver)


def leased(saver: AsyncSaver) -> list[str]:
    """The conversations whose lease somebody holds."""
    store = saver._shared.store
    if isinstance(store, MemoryStore):
        return [thread_id for thread_id, line in store._leases._lines.items() if line.held() is not None]
    if _is_in_postgres(saver):
        return [thread_id for (thread_id,) in _rows_of(saver, "SELECT thread_id FROM async_saver_leases WHERE held")]
    with _file_of(saver) as file:
        return [thread_id for (thread_id,) in file.execute("SELECT thread_id FROM leases WHERE held")]


def _is_in_postgres(saver: AsyncSaver) -> bool:
    return hasattr(saver._shared.store, "schema_of_tests")


def _rows_of(saver: AsyncSaver, statement: str) -> "list[tuple[Any, ...]]":
    """What a store in PostgreSQL has in its tables, with all that it was called for; none where it has no tables."""
    from psycopg.errors import UndefinedTable

    store: Any = saver._shared.store
    bridge.call(settled, store)
    with _schemas().connected(store.schema_of_tests) as admin:
        try:
            return admin.execute(statement).fetchall()
        except UndefinedTable:
            return []


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
    elif hasattr(store, "schema_of_tests"):
        await _postgres().delete_for_runs(store, ["no such run"])  # in all conversations, and so likewise


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
