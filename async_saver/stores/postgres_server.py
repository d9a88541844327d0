"""The PostgreSQL server that a `PostgresStore` uses: its connections, its tables, its errors."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import psycopg
from langgraph.checkpoint.postgres.base import MIGRATIONS
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from async_saver.errors import AsyncSaverError, InvalidValueError, StorageBusyError, StorageError, shown

__all__ = ["Cursor", "Server", "error_of", "is_lost"]

Cursor: TypeAlias = "psycopg.Cursor[tuple[Any, ...]]"

_LATEST = len(MIGRATIONS) - 1

# Ours, beside the official tables. Which run made a checkpoint is in its metadata, but where that is no text. What a
# conversation holds is in the official tables only: these rows may be missing, and may be left over.
_OWN = (
    """
    CREATE TABLE IF NOT EXISTS async_saver_threads (
        thread_id TEXT PRIMARY KEY,
        written BIGINT GENERATED ALWAYS AS IDENTITY,
        used DOUBLE PRECISION NOT NULL
    ) WITH (fillfactor = 70)
    """,
    """
    CREATE TABLE IF NOT EXISTS async_saver_runs (
        run_id TEXT NOT NULL,
        thread_id TEXT NOT NULL,
        checkpoint_ns TEXT NOT NULL,
        checkpoint_id TEXT NOT NULL,
        task_id TEXT NOT NULL,
        idx INTEGER NOT NULL,
        PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    )
    """,
    "CREATE INDEX IF NOT EXISTS async_saver_runs_run_id ON async_saver_runs USING hash (run_id)",
    """
    CREATE INDEX IF NOT EXISTS async_saver_checkpoints_run_id ON checkpoints USING hash
    (coalesce(checkpoint #>> '{async_saver,run_id}', metadata ->> 'run_id'))
    WHERE coalesce(checkpoint #>> '{async_saver,run_id}', metadata ->> 'run_id') IS NOT NULL
    """,
)
_LOOK = """
SELECT to_regclass('checkpoint_migrations') IS NOT NULL,
    to_regclass('checkpoints') IS NOT NULL AND to_regclass('checkpoint_blobs') IS NOT NULL
        AND to_regclass('checkpoint_writes') IS NOT NULL,
    to_regclass('async_saver_threads') IS NOT NULL AND to_regclass('async_saver_runs') IS NOT NULL
        AND to_regclass('async_saver_checkpoints_run_id') IS NOT NULL
"""
_VERSION = "SELECT coalesce(max(v), -1) FROM checkpoint_migrations"
_ALONE = "SELECT pg_advisory_xact_lock(1635148146, -1)"  # whoever makes tables; conversations have other numbers


class Server:
    """Hands out connections to one database.

    Args:
        where: How to connect, as a URL or as `libpq` has it, or a pool that connects, which stays its owner's.
        pool_size: How many connections there are at most, where the pool is this one's.
        schema: The schema with the tables; the first of the connection's search path if none is given.
        pool_kwargs: More that the pool takes.

    Attributes:
        has_own: Whether there are tables beside the official ones, once they were looked for.
    """

    def __init__(
        self, where: "str | ConnectionPool[Any]", pool_size: int, schema: str | None, pool_kwargs: Mapping[str, Any]
    ) -> None:
        self.has_own: bool = False
        self._theirs = where if isinstance(where, ConnectionPool) else None
        self._own: ConnectionPool[Any] | None = None
        self._schema = schema
        self._size = pool_size
        self._kwargs: dict[str, Any] = {**pool_kwargs}
        self._is_ready = False
        self._is_forked = False
        self._lock = threading.Lock()
        self._conninfo = "" if isinstance(where, ConnectionPool) else _conninfo_of(where)
        if self._theirs is None:
            self._look_at_kwargs()

    def _look_at_kwargs(self) -> None:
        try:
            self._new_pool()
        except (TypeError, ValueError) as exc:
            raise InvalidValueError(f"a ConnectionPool does not take these pool_kwargs: {exc}") from exc

    def name(self) -> str:
        """Say which database it is, without what is secret."""
        conninfo = self._conninfo if self._theirs is None else str(self._theirs.conninfo)
        try:
            parts = conninfo_to_dict(conninfo)
        except psycopg.Error:
            return "PostgreSQL"
        host, port, database = (parts.get(name) for name in ("host", "port", "dbname"))
        return f"PostgreSQL at {host or 'localhost'}:{port or 5432}/{database or ''}"

    def _new_pool(self) -> "ConnectionPool[Any]":
        kwargs: dict[str, Any] = {"min_size": 1, "max_size": self._size, "num_workers": 1, "name": "async_saver"}
        kwargs.update(self._kwargs)
        kwargs["kwargs"] = {"autocommit": True, **(kwargs.get("kwargs") or {})}
        kwargs["configure"] = partial(self._configure, kwargs.get("configure"))
        return ConnectionPool(self._conninfo, open=False, **kwargs)

    def _configure(
        self, theirs: "Callable[[psycopg.Connection[Any]], None] | None", connection: "psycopg.Connection[Any]"
    ) -> None:
        if self._schema is not None:
            connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self._schema)))
            if not connection.autocommit:
                connection.commit()
        if theirs is not None:
            theirs(connection)

    @contextmanager
    def cursor(self) -> "Iterator[Cursor]":
        """Hand out a cursor of a connection: a transaction, if the connection does not commit by itself.

        Raises:
            StorageError: There is none to be had.
        """
        with self._pool().connection() as connection:
            if not self._is_ready:
                self._make_ready(connection)
            yield psycopg.Cursor(connection, row_factory=tuple_row)

    @contextmanager
    def transaction(self) -> "Iterator[Cursor]":
        """Hand out a cursor in a transaction, whose statements go out together."""
        with self.cursor() as cursor:
            is_begun = cursor.connection.autocommit
            with cursor.connection.pipeline():
                if is_begun:
                    cursor.execute("BEGIN")
                yield cursor
                if is_begun:
                    cursor.execute("COMMIT")

    def _pool(self) -> "ConnectionPool[Any]":
        if self._theirs is not None:
            if self._is_forked:
                raise StorageError(
                    "the ConnectionPool of this PostgresStore was made before this process was forked; make a pool "
                    "and a store in each process"
                )
            return self._theirs
        with self._lock:
            if self._own is None:
                self._connect_once()
                self._own = self._new_pool()
                self._own.open()
            return self._own

    def _connect_once(self) -> None:
        """Connect before a pool does, which would say only that it took too long."""
        kwargs = {"connect_timeout": 30, **(self._kwargs.get("kwargs") or {}), "autocommit": True}
        if "connect_timeout" in conninfo_to_dict(self._conninfo):
            del kwargs["connect_timeout"]
        psycopg.connect(self._conninfo, **kwargs).close()

    def close(self) -> None:
        """Let go of all connections that are its own; the next call opens others."""
        with self._lock:
            pool, self._own, self._is_ready = self._own, None, False
        if pool is not None:
            pool.close()

    def is_open(self) -> bool:
        """Tell whether there are connections of its own."""
        return self._own is not None

    def forget(self) -> None:
        """Begin anew in a fork, where connections are the parent's: they are kept, as to collect them may end them."""
        _inherited.append(self._own)
        self._own, self._lock, self._is_forked, self._is_ready = None, threading.Lock(), True, False

    # Tables.

    def look_again(self) -> None:
        """Have the tables be looked for with the next connection."""
        self._is_ready = False

    def _make_ready(self, connection: "psycopg.Connection[Any]") -> None:
        """Make the tables that are not there; where all are, nothing is written."""
        with connection.transaction():
            cursor = psycopg.Cursor(connection, row_factory=tuple_row)
            version, self.has_own = self._look(cursor)
            if version == _LATEST and self.has_own:
                self._is_ready = True
                return
        if version > _LATEST:
            raise StorageError(
                f"the tables in {self.name()} are of version {version}, and this release of "
                f"langgraph-checkpoint-postgres knows them up to {_LATEST}; upgrade it, or use another schema"
            )
        try:
            with connection.transaction():
                self._make(psycopg.Cursor(connection, row_factory=tuple_row))
            self.has_own = True
        except psycopg.errors.InsufficientPrivilege as exc:
            if version < _LATEST:
                raise StorageError(
                    f"the tables of checkpoints are not in {self.name()}, or are of an earlier version, and this role "
                    f"may not make them: {_first_line(exc)}; call setup() once with a role that may"
                ) from exc
        self._is_ready = True

    def _look(self, cursor: Cursor) -> tuple[int, bool]:
        """Return the version of the official tables, -1 where there are none, and whether ours are there."""
        has_versions, has_tables, has_own = _one(cursor.execute(_LOOK))
        version = int(_one(cursor.execute(_VERSION))[0]) if has_versions else -1
        if version >= 0 and not has_tables:
            raise StorageError(f"{self.name()} has the table checkpoint_migrations, but not all that it tells of")
        return version, bool(has_own)

    def _make(self, cursor: Cursor) -> None:
        cursor.execute(_ALONE)
        if self._schema is not None:
            cursor.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(self._schema)))
        version, _ = self._look(cursor)
        for number in range(version + 1, len(MIGRATIONS)):
            # In a transaction, and so all or none of it; that is not for CONCURRENTLY.
            cursor.execute(MIGRATIONS[number].replace(" CONCURRENTLY", "").encode())
            cursor.execute("INSERT INTO checkpoint_migrations (v) VALUES (%s)", (number,))
        for statement in _OWN:
            cursor.execute(statement)


_inherited: "list[ConnectionPool[Any] | None]" = []


def _one(cursor: Cursor) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None
    return row


def _conninfo_of(where: str) -> str:
    """Return how to connect, as libpq has it.

    Raises:
        InvalidValueError: It is not readable. The message repeats nothing of it.
    """
    scheme, separator, rest = where.partition("://")
    if separator and scheme.startswith("postgres"):
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
            raise InvalidValueError(
                f"this store uses psycopg 3, and the URL names another driver ({shown(scheme)}); begin it with "
                "'postgresql://'"
            )
        where = f"postgresql://{rest}"
    try:
        return make_conninfo(where)
    except psycopg.Error:
        raise InvalidValueError(
            "this is no connection string of PostgreSQL: 'postgresql://user:password@host:5432/database', in which "
            "special characters of the password are percent-encoded, or 'host=... dbname=...'"
        ) from None


# Errors.

_BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, PoolTimeout)
_UNFIT = (
    psycopg.errors.UntranslatableCharacter,
    psycopg.errors.CharacterNotInRepertoire,
    psycopg.errors.ProgramLimitExceeded,
)


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0]


def is_lost(exc: BaseException) -> bool:
    """Tell whether a connection was lost, and another one may do."""
    return isinstance(exc, (psycopg.OperationalError, psycopg.InterfaceError)) and not isinstance(
        exc, (PoolTimeout, PoolClosed, psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable)
    )


def error_of(exc: BaseException, server: Server) -> AsyncSaverError:
    """Return what to raise for an error of the driver."""
    if isinstance(exc, AsyncSaverError):
        return exc
    if isinstance(exc, PoolClosed):
        return StorageError(f"the ConnectionPool for {server.name()} is not open; open it before its store is used")
    if isinstance(exc, _UNFIT):
        return InvalidValueError(f"{server.name()} cannot keep this: {_first_line(exc)}; nothing was stored")
    kind = StorageBusyError if isinstance(exc, _BUSY) else StorageError
    return kind(f"{server.name()}: {_first_line(exc)}; what was not acknowledged may not be stored")
