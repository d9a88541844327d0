"""The file of a `SQLiteStore`: how it is opened and made, what is in it, and what SQLite's errors mean."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress

from async_saver.errors import StorageBusyError, StorageError

__all__ = ["File", "Identity", "error_of"]

Identity = tuple[int, int]
"""The device and the number of a file, which tell it from another one at the same path."""

_APPLICATION = 0x61737672
_LEAST_SQLITE = (3, 31)
_SHOWN = 300  # characters of a path, from its end
_CHECKPOINT = 4000  # pages in the WAL from which on they are moved to the file: 16 MB

# Ids are text, compared byte by byte, which is the order of Python's strings. Every table but `conversations` and
# `namespaces` refers to a namespace; only what a session has changed is kept by names, as it may outlive these.
_SCHEMA = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('conversations', 0), ('fence', 0), ('pages', 0);

-- written: when, in nanoseconds of the epoch, no two alike; used: when, in seconds of the Retention's clock;
-- lifetime: what a callable ttl said, -1 for ever.
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY, thread_id TEXT NOT NULL UNIQUE, written INTEGER NOT NULL, used REAL NOT NULL, lifetime REAL
);
CREATE TRIGGER one_more AFTER INSERT ON conversations BEGIN
    UPDATE counters SET value = value + 1 WHERE name = 'conversations';
END;
CREATE TRIGGER one_less AFTER DELETE ON conversations BEGIN
    UPDATE counters SET value = value - 1 WHERE name = 'conversations';
END;

CREATE TABLE namespaces (
    id INTEGER PRIMARY KEY, conversation INTEGER NOT NULL, checkpoint_ns TEXT NOT NULL,
    UNIQUE (conversation, checkpoint_ns)
);

-- versions: the ids of its channel versions in `blobs`; facts: what of the metadata can be compared here, or NULL.
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, checkpoint_id TEXT NOT NULL, parent_id TEXT,
    hidden INTEGER NOT NULL, versions TEXT NOT NULL, run_id TEXT, delta_channels TEXT, facts TEXT,
    kind TEXT NOT NULL, metadata_kind TEXT NOT NULL, checkpoint BLOB NOT NULL, metadata BLOB NOT NULL
);
CREATE UNIQUE INDEX checkpoints_in_order ON checkpoints (namespace, checkpoint_id);
CREATE INDEX checkpoints_of_all ON checkpoints (checkpoint_id);
CREATE INDEX hidden_checkpoints ON checkpoints (namespace, checkpoint_id) WHERE hidden;

-- The values of channel versions. aside: 0 for one that is found by its name, its own id for one that is there only for
-- what is made of it, or names it; kind: NULL where a version was named and never stored; data: the value, or where
-- there is a base, how it differs from that.
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, aside INTEGER NOT NULL DEFAULT 0, channel TEXT NOT NULL,
    version TEXT NOT NULL, kind TEXT, number INTEGER NOT NULL, base INTEGER, data BLOB NOT NULL
);
CREATE UNIQUE INDEX blobs_by_name ON blobs (namespace, channel, version, aside);

CREATE TABLE writes (
    namespace INTEGER NOT NULL, checkpoint_id TEXT NOT NULL, task_id TEXT NOT NULL, idx INTEGER NOT NULL,
    channel TEXT NOT NULL, task_path TEXT NOT NULL, run_id TEXT, kind TEXT NOT NULL, base INTEGER, data BLOB NOT NULL,
    PRIMARY KEY (namespace, checkpoint_id, task_id, idx)
) WITHOUT ROWID;

-- In which namespaces a run has stored something.
CREATE TABLE runs (
    run_id TEXT NOT NULL, namespace INTEGER NOT NULL, PRIMARY KEY (run_id, namespace)
) WITHOUT ROWID;
CREATE INDEX runs_by_namespace ON runs (namespace);

-- fence: what a lease must have for its writes, or more; until: on the machine's monotonic clock.
CREATE TABLE leases (
    thread_id TEXT PRIMARY KEY, fence INTEGER NOT NULL, held INTEGER NOT NULL, owner TEXT NOT NULL,
    since REAL NOT NULL, holder TEXT NOT NULL, until REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX held_leases ON leases (thread_id) WHERE held;

-- What a session that is under way found where it wrote; was: whether there was anything. While a session is on a
-- conversation none of its values are deleted, but they are found by name no longer; is_replaced: the value is another
-- one now, and this one it was; former_namespaces: where to look for values that are to be deleted in the end.
CREATE TABLE former_checkpoints (
    thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL, checkpoint_id TEXT NOT NULL, was INTEGER NOT NULL,
    parent_id TEXT, hidden INTEGER, versions TEXT, run_id TEXT, delta_channels TEXT, facts TEXT, kind TEXT,
    metadata_kind TEXT, checkpoint BLOB, metadata BLOB,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
) WITHOUT ROWID;
CREATE TABLE former_blobs (
    thread_id TEXT NOT NULL, id INTEGER NOT NULL, was INTEGER NOT NULL, is_replaced INTEGER NOT NULL DEFAULT 0,
    kind TEXT, data BLOB,
    PRIMARY KEY (thread_id, id)
) WITHOUT ROWID;
CREATE TABLE former_namespaces (
    thread_id TEXT NOT NULL, namespace INTEGER NOT NULL, checkpoint_ns TEXT NOT NULL,
    PRIMARY KEY (thread_id, namespace)
) WITHOUT ROWID;
CREATE TABLE former_writes (
    thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL, checkpoint_id TEXT NOT NULL, task_id TEXT NOT NULL,
    idx INTEGER NOT NULL, was INTEGER NOT NULL, channel TEXT, task_path TEXT, run_id TEXT, kind TEXT, base INTEGER,
    data BLOB,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
) WITHOUT ROWID;
"""

_MIGRATIONS = (_SCHEMA,)
"""What makes each version of the file out of the one before it, the first one out of nothing."""

_VERSION = len(_MIGRATIONS)


class File:
    """One file, or with None for a path a database in memory, and how it is opened.

    Attributes:
        path: Where it is.
        timeout: For how many seconds to wait for what another process has locked.
        known: What was opened first, and is not to be taken for something else.
    """

    def __init__(self, path: str | None, synchronous: str, timeout: float) -> None:
        self.path: str | None = path
        self.timeout: float = timeout
        self.known: Identity | None = None
        self._synchronous = {"full": 2, "normal": 1}[synchronous]

    def open(self, to_write: bool) -> tuple[sqlite3.Connection, Identity]:
        """Return a connection, and to what; the first one makes the file, or what is in it.

        Raises:
            StorageError: It cannot be opened, or is not what it should be.
        """
        if self.path is None:
            connection = self._connection(":memory:")
            _migrate(connection)
            return connection, (0, 0)
        try:
            identity = self._make()
            connection = self._connection(self.path)
            try:
                self._prepare(connection, to_write)
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as exc:
            raise error_of(exc, self) from exc
        self.known = identity
        return connection, identity

    def _connection(self, path: str) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < _LEAST_SQLITE:
            wanted = ".".join(map(str, _LEAST_SQLITE))
            raise StorageError(f"SQLite {sqlite3.sqlite_version} is too old for this store; it needs {wanted} or later")
        # Each connection is used by one thread at a time, but before a fork it is closed by the one that forks.
        return sqlite3.connect(
            path, timeout=self.timeout, isolation_level=None, check_same_thread=False, cached_statements=256
        )

    def _make(self) -> Identity:
        """Make an empty file that only its owner may read; SQLite gives what it puts beside it the same mode."""
        assert self.path is not None
        if not os.path.exists(self.path):
            if self.known is not None:
                raise self.gone()
            with suppress(FileExistsError):  # another process has made it
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        found = os.stat(self.path)
        identity = (found.st_dev, found.st_ino)
        if self.known not in (None, identity):
            raise self.gone()
        if not os.access(self.path, os.W_OK):
            # SQLite would open it, and leave files beside it that may not be written to either.
            raise StorageError(f"{self.name()} could not be used: {_WHY['readonly']}")
        return identity

    def _prepare(self, connection: sqlite3.Connection, to_write: bool) -> None:
        # Looked at before anything is changed: the file may be somebody else's.
        version = self._version(connection)
        until = time.monotonic() + self.timeout
        while True:
            try:
                if version == 0:
                    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as exc:
                if "locked" not in str(exc) or time.monotonic() > until:
                    raise
                time.sleep(0.005)  # others make the same file; for this, SQLite does not wait itself
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        if mode != "wal" or synchronous != self._synchronous:
            raise StorageError(
                f"{self.name()} does not take the settings that make it safe: journal_mode is {mode!r} and synchronous "
                f"is {synchronous}; keep it on a file system of this machine"
            )
        if version < _VERSION:
            _migrate(connection)
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
        if not to_write:
            connection.execute("PRAGMA query_only = ON")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the version of what is in the file; 0 for nothing."""
        connection.execute("BEGIN")  # all of one moment, as another process may be making the file
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("COMMIT")
        if application != _APPLICATION and (application, version, tables) != (0, 0, 0):
            raise StorageError(f"{self.name()} is a database of something else than async_saver; choose another path")
        if version > _VERSION:
            raise StorageError(
                f"{self.name()} was written by a later async_saver (its version is {version}, and this one knows up to "
                f"{_VERSION}); upgrade async_saver, or choose another path"
            )
        return int(version)

    def is_there(self, identity: Identity) -> bool:
        """Tell whether what was opened is still at its path."""
        if self.path is None:
            return True
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == identity

    def name(self) -> str:
        """Return what it is called in messages."""
        if self.path is None:
            return "the database in memory"
        return f"the file {self.path if len(self.path) <= _SHOWN else '...' + self.path[-_SHOWN:]!r}"

    def gone(self) -> StorageError:
        """Return what to raise when it is not there any more."""
        return StorageError(
            f"{self.name()} was removed or replaced while it was open, and what is written now would be lost; put it "
            "back, or call setup() to begin a new one"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Make what is in the file what this version wants, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for script in _MIGRATIONS[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {max(_VERSION, version)}")
        if version == 0:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute("UPDATE counters SET value = ? WHERE name = 'pages'", (pages,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


_WHY = {
    "locked": "another process or connection holds its lock for longer than the timeout of {timeout:g} seconds; "
    "make that one's transactions shorter, or pass a longer timeout",
    "full": "there is no room for more: make some on its disk",
    "readonly": "it may not be written to; let this user write to the file and its folder",
    "unable to open": "it cannot be opened; see that its folder exists and this user may read and write there",
    "not a database": "it is not an SQLite database; choose another path",
    "malformed": "it is damaged; bring back a backup, or save what can be read with the sqlite3 program's .recover",
    "disk I/O error": "reading or writing failed; see what the system says of its disk",
    "too big": "something is larger than SQLite can hold (a gigabyte)",
}


def error_of(exc: BaseException, file: File) -> StorageError:
    """Return what to raise for an error of SQLite or of the system."""
    if isinstance(exc, StorageError):
        return exc
    message = "too big" if isinstance(exc, OverflowError) else str(exc)
    for part, why in _WHY.items():
        if part in message:
            text = f"{file.name()} could not be used: {why.format(timeout=file.timeout)} ({message})"
            return StorageBusyError(text) if part == "locked" else StorageError(text)
    if isinstance(exc, OSError):
        return StorageError(f"{file.name()} could not be used: {exc.strerror}; see to its path, and who may use it")
    return StorageError(f"{file.name()} could not be used: {message}")
