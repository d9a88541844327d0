"""The one connection of a `SQLiteStore` that writes: what its committer thread does, a transaction a lot of calls.

Puts are worked out first and written in a handful of statements for all of them, as Python hands its interpreter lock
over at each row that it passes to SQLite (see `sqlite_reads`).
"""

import json
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

import async_saver.stores.sqlite_edits as edits
from async_saver.errors import SessionLostError, StorageBusyError, StorageError
from async_saver.records import (
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Lease,
    StoredCheckpoint,
    WriteRecord,
)
from async_saver.stores.base import OnConflict, lease_of, lost_error, torn_error
from async_saver.stores.chains import BESIDE, LEAST, Chain, grown
from async_saver.stores.commits import Call, fail
from async_saver.stores.sqlite_file import File, Identity, error_of
from async_saver.stores.sqlite_reads import Get, chains_of, facts_of, packed, read, version_text

__all__ = ["Apart", "Put", "PutWrites", "Work", "Writer"]

_SPACES = 10_000  # namespaces of which the writer knows by heart what it needs to write to them
_MOMENT = 0.02  # seconds in which the conversation that was written to last is not noted again as that
_CHAINS = 64 * 1024 * 1024  # bytes of values that it has at hand, to say how the next ones differ


class Put(NamedTuple):
    """The work of `Store.put`."""

    thread_id: str
    checkpoint_ns: str
    record: CheckpointRecord
    blobs: Sequence[tuple[ChannelVersion, Blob]]
    leases: Sequence[Lease]
    on_conflict: OnConflict | None
    used: float
    is_limited: bool


class PutWrites(NamedTuple):
    """The work of `Store.put_writes`."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    writes: Sequence[WriteRecord]
    leases: Sequence[Lease]
    used: float


class Apart(NamedTuple):
    """Work that is done between two transactions."""

    work: Callable[["Writer"], Any]


class _Space:
    """What the writer knows of one namespace.

    Attributes:
        conversation, id: Its rows.
        is_new: Whether nothing of it is in the file yet.
        names: Rows of `blobs` by channel and version, some of them.
        at: The checkpoint of which `heads` are; None if that is not known.
        heads: Of each channel with a long value there, the row of `blobs`.
        run_id: A run that is known to have stored something here.
    """

    __slots__ = ("at", "conversation", "heads", "id", "is_new", "names", "run_id")

    def __init__(self, conversation: int, id: int, is_new: bool) -> None:
        self.conversation: int = conversation
        self.id: int = id
        self.is_new: bool = is_new
        self.names: dict[ChannelVersion, int] = {}
        self.at: str | None = None
        self.heads: dict[str, int] = {}
        self.run_id: str | None = None


# Each of these takes all rows of a kind as one parameter, and their bytes, end to end, as another.

_FIND_SPACES = """
SELECT json_group_array(json_array(a.key, t.id, n.id)) FROM json_each(?) a
CROSS JOIN conversations t ON t.thread_id = json_extract(a.value, '$[0]')
LEFT JOIN namespaces n ON n.conversation = t.id AND n.checkpoint_ns = json_extract(a.value, '$[1]')
"""
_FIND_NAMES = """
SELECT json_group_array(json_array(a.key, b.id)) FROM json_each(?) a CROSS JOIN blobs b
ON b.namespace = json_extract(a.value, '$[0]') AND b.channel = json_extract(a.value, '$[1]')
    AND b.version = json_extract(a.value, '$[2]') AND b.aside = 0
"""
_HEADS = """
SELECT c.checkpoint_id, json_group_array(json_array(b.channel, b.id)) FROM checkpoints c
CROSS JOIN json_each(c.versions) v CROSS JOIN blobs b ON b.id = v.value
WHERE c.id = {which} AND b.kind IS NOT NULL AND (b.base IS NOT NULL OR length(b.data) >= ?)
"""
_HEADS_AT = _HEADS.format(which="(SELECT id FROM checkpoints WHERE namespace = ? AND checkpoint_id = ?)")
_HEADS_AT_LATEST = _HEADS.format(
    which="(SELECT id FROM checkpoints WHERE namespace = ? ORDER BY checkpoint_id DESC LIMIT 1)"
)
_LATEST = """
SELECT checkpoint_id FROM checkpoints WHERE namespace = ? AND NOT hidden ORDER BY checkpoint_id DESC LIMIT 1
"""
_IN_SIGHT = "SELECT 1 FROM checkpoints WHERE namespace = ? AND checkpoint_id = ? AND NOT hidden"

_NAMESPACE = "SELECT id FROM namespaces WHERE conversation = ? AND checkpoint_ns = ?"

_KIND = "SELECT kind FROM blobs WHERE id = ?"
_SET_VALUE = "UPDATE blobs SET kind = ?, number = 0, base = NULL, data = ? WHERE id = ?"


class _Rows:
    """Rows of one table that are yet to be written, and their bytes, end to end."""

    def __init__(self) -> None:
        self._rows: list[list[Any]] = []
        self._data: list[bytes] = [b"."]  # SQLite takes no bytes for NULL
        self._end = 2  # and counts from one on

    def add(self, *columns: Any, data: Sequence[bytes] = ()) -> None:
        """Add one; where each piece of its bytes is comes last."""
        row = [*columns]
        for piece in data:
            row += (self._end, len(piece))
            self._data.append(piece)
            self._end += len(piece)
        self._rows.append(row)

    def take(self) -> tuple[str | None, bytes | None]:
        """Return all of them, once."""
        if not self._rows:
            return None, None
        rows, data = packed(self._rows), b"".join(self._data)
        self._rows, self._data, self._end = [], [b"."], 2
        return rows, data


class _NeedsTransaction(Exception):
    """A put takes more than one statement."""


class Writer:
    """The connection that writes, and what it knows by heart of the file, as long as nobody else writes to it.

    Attributes:
        using: Held by who uses the connection; a fork takes it, and closes the connection.
        file: The file.
        removals: How many transactions have taken something away.
        next_id: The next row of `blobs`.
        held: The fences of the leases that are held, by thread_id.
    """

    def __init__(self, file: File) -> None:
        self.file: File = file
        self.using: threading.RLock = threading.RLock()
        self.removals: int = 0
        self._connection: sqlite3.Connection | None = None
        self._identity: Identity = (0, 0)
        self._removes = False
        self._forget(-1)

    def _forget(self, data_version: int) -> None:
        self._data_version = data_version
        self._spaces: OrderedDict[tuple[str, str], _Space] = OrderedDict()
        self._conversations: dict[str, int] = {}
        self._names: dict[str, set[str]] = {}  # by thread_id, the namespaces that are in `_spaces`
        self._chains: OrderedDict[int, Chain] = OrderedDict()
        self._chains_size = 0
        self._counts: dict[str, int] = {}  # the greatest ids
        self.next_id: int = 0
        self.held: dict[str, int] = {}
        self._last_written = 0
        # Which conversation was written to last, and when that was noted.
        self._latest: tuple[str | None, float] = (None, 0.0)
        self._new_rows()

    def _new_rows(self) -> None:
        self._to_conversations: dict[str, list[Any]] = {}
        self._to_namespaces = _Rows()
        self._to_blobs = _Rows()
        self._to_checkpoints = _Rows()
        self._to_writes = _Rows()
        self._to_runs = _Rows()
        self._to_notes = edits.Notes()

    def close(self) -> None:
        """Let go of the connection; the next call opens another one."""
        with self.using:
            connection, self._connection = self._connection, None
            if connection is not None:
                self._forget(-1)
                if not self.file.is_there(self._identity):
                    # What was acknowledged belongs to the file wherever that is now, and not to another in its place.
                    with suppress(sqlite3.Error):
                        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                connection.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, open."""
        if self._connection is None:
            self._connection, self._identity = self.file.open(to_write=True)
            for statement in edits.TEMPORARY:
                self._connection.execute(statement)
            self._forget(-1)
        return self._connection

    # Transactions.

    def do(self, calls: Sequence[Call[Any]]) -> None:
        """Do all of a lot in one transaction; if anything fails, the rest without it."""
        with self.using:
            for apart, some in groupby(calls, lambda call: isinstance(call.work, Apart)):
                (self._do_apart if apart else self._do_together)([*some])

    def _do_apart(self, calls: Sequence[Call[Any]]) -> None:
        for call in calls:
            try:
                call.end(call.work.work(self))
            except Exception as exc:
                self._roll_back(exc)
                call.error = self._error(exc)

    def _do_together(self, calls: list[Call[Any]]) -> None:
        if self._data_version >= 0 and all(_is_plain(call.work) for call in calls):
            # As a rule, one statement does it. The more there are, the longer a busy event loop makes this thread wait.
            try:
                self._look_for_the_file()
                results = self._put_all([call.work for call in calls])
                self._look_for_the_file()
            except Exception as exc:
                self._roll_back(exc)
                if "locked" in str(exc) or isinstance(exc, StorageError):
                    fail(calls, self._error(exc))
                    return
                self._made_room(exc)
            else:
                for call, result in zip(calls, results, strict=True):
                    self._end(call, result)
                return
        try:
            self._commit(calls)
        except Exception as exc:
            if isinstance(exc, StorageBusyError) or (len(calls) == 1 and not self._made_room(exc)):
                fail(calls, exc)
            else:
                self._commit_one_by_one(calls)

    def _made_room(self, exc: Exception) -> bool:
        """If the disk is full, move to the file what waits in the WAL; tell whether to try once more."""
        if "is full" not in str(exc):
            return False
        with suppress(Exception):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return True
        return False

    def _commit(self, calls: Sequence[Call[Any]]) -> None:
        """Do a lot of calls in one transaction, which is on disk when this returns.

        Raises:
            AsyncSaverError: Nothing of it is stored.
        """
        try:
            self._begin()
            results = self._results(calls)
            self._look_for_the_file()
            self.connection.execute("COMMIT")
            self._look_for_the_file()
        except BaseException as exc:
            self._roll_back(exc)
            if isinstance(exc, (sqlite3.Error, OSError, OverflowError)):
                raise error_of(exc, self.file) from exc
            raise
        self._see_removals()
        for call, result in zip(calls, results, strict=True):
            self._end(call, result)

    def _end(self, call: Call[Any], result: Any) -> None:
        if isinstance(result, Exception):
            call.error = result  # refused, with nothing changed
            return
        call.end(result)
        committed = getattr(call.work, "committed", None)
        if committed is not None:
            committed(result)

    def _commit_one_by_one(self, calls: list[Call[Any]]) -> None:
        """Do calls in one transaction, without those that fail."""
        done: list[tuple[Call[Any], Any]] = []
        try:
            self._begin()
            for call in calls:
                self.connection.execute("SAVEPOINT one")
                try:
                    done.append((call, self._results([call])[0]))
                    self.connection.execute("RELEASE one")
                except Exception as exc:
                    call.error = self._error(exc)
                    self._forget(self._data_version)
                    if not self.connection.in_transaction:
                        raise  # SQLite has rolled back all of it
                    self.connection.execute("ROLLBACK TO one")
                    self.connection.execute("RELEASE one")
                    self._recall()
            self.connection.execute("COMMIT")
            self._look_for_the_file()
        except Exception as exc:
            self._roll_back(exc)
            for call in calls:
                if call.error is None:
                    self._commit_alone(call)
            return
        self._see_removals()
        for call, result in done:
            if call.error is None:
                self._end(call, result)

    def _see_removals(self) -> None:
        if self._removes:
            self.removals += 1
            self._removes = False

    def _commit_alone(self, call: Call[Any]) -> None:
        try:
            self._commit([call])
        except Exception as exc:
            call.error = exc

    def _error(self, exc: Exception) -> Exception:
        if not isinstance(exc, (sqlite3.Error, OSError, OverflowError)):
            return exc
        error = error_of(exc, self.file)
        error.__cause__ = exc
        return error

    def _begin(self) -> None:
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        # Another connection has written since: what is known by heart may be wrong.
        (data_version,) = connection.execute("PRAGMA data_version").fetchone()
        if data_version != self._data_version:
            self._forget(data_version)
            self._recall()

    def _recall(self) -> None:
        """Read what has to be known in any case."""
        connection = self.connection
        for table in ("conversations", "namespaces", "blobs"):
            (greatest,) = connection.execute(f"SELECT max(id) FROM {table}").fetchone()
            self._counts[table] = greatest or 0
        self.next_id = 1 + self._counts["blobs"]
        (kept,) = connection.execute("SELECT max(namespace) FROM former_namespaces").fetchone()
        self._counts["namespaces"] = max(self._counts["namespaces"], kept or 0)
        self.held = dict(connection.execute("SELECT thread_id, fence FROM leases INDEXED BY held_leases WHERE held"))

    def _roll_back(self, exc: BaseException) -> None:
        self._forget(-1)
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()
        fault = isinstance(exc, (sqlite3.Error, OSError)) and not isinstance(exc, sqlite3.IntegrityError)
        if self.file.path is not None and fault and "locked" not in str(exc):
            self.close()  # the file may be another one next time

    def _look_for_the_file(self) -> None:
        if not self.file.is_there(self._identity):
            raise self.file.gone()

    def _results(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Do what is called for, in order; return what each came to."""
        results: list[Any] = []
        alike: list[Any] = []
        for call in calls:
            work = call.work
            if alike and (isinstance(work, Get) != isinstance(alike[0], Get) or not _is_merged(work)):
                results += self._merged(alike)
                alike = []
            if _is_merged(work):
                alike.append(work)
            else:
                results.append(work(self))
        if alike:
            results += self._merged(alike)
        return results

    def _merged(self, works: list[Any]) -> list[Any]:
        if isinstance(works[0], Get):  # of a store in memory, which has no other connection
            found: list[StoredCheckpoint | None] = read(self.connection, [work.place for work in works])
            return [*found]
        return self._put_all(works)

    # Puts.

    def _put_all(self, works: Sequence[Put | PutWrites]) -> list[Any]:
        try:
            self._find_spaces(works)
            self._find_names([work for work in works if isinstance(work, Put)])
            results = [
                self._put(work) if isinstance(work, Put) else self._put_writes(work)  # and nothing is written yet
                for work in works
            ]
            if any(result is None or result is False for result in results) or True in results:
                self._write()
        except BaseException:
            self._new_rows()
            raise
        for work in works:
            space = self._spaces.get((work.thread_id, work.checkpoint_ns))
            if space is not None and space.id:
                space.is_new = False
            elif space is not None:  # all that was for it was refused
                del self._spaces[work.thread_id, work.checkpoint_ns]
        while len(self._spaces) > _SPACES:
            (thread_id, checkpoint_ns), _ = self._spaces.popitem(last=False)
            names = self._names.get(thread_id, set())
            names.discard(checkpoint_ns)
            if not names:
                self._names.pop(thread_id, None)
                self._conversations.pop(thread_id, None)
        return results

    def _find_spaces(self, works: Iterable[Put | PutWrites]) -> None:
        unknown = [*{(work.thread_id, work.checkpoint_ns): None for work in works}]
        unknown = [place for place in unknown if place not in self._spaces]
        if not unknown:
            return
        (found,) = self.connection.execute(_FIND_SPACES, (packed(unknown),)).fetchone()
        for number, conversation, namespace in json.loads(found):
            self._conversations[unknown[number][0]] = conversation
            if namespace is not None:
                self._spaces[unknown[number]] = _Space(conversation, namespace, is_new=False)
        for place in unknown:
            self._names.setdefault(place[0], set()).add(place[1])
            if place not in self._spaces:
                self._spaces[place] = _Space(0, 0, is_new=True)

    def _find_names(self, puts: Iterable[Put]) -> None:
        """Find the rows of those versions that are not known.

        Outside a transaction those that a put brings are taken for new: if one is not, its insertion fails.
        """
        is_sure = self.connection.in_transaction
        asked: dict[tuple[int, ChannelVersion], _Space] = {}
        for put in puts:
            space = self._spaces[put.thread_id, put.checkpoint_ns]
            if space.is_new:
                continue
            brought = [version for version, _ in put.blobs]
            for version in (*put.record.versions, *brought):
                if version not in space.names and (is_sure or version not in brought):
                    asked[space.id, version] = space
        if not asked:
            return
        places = [*asked.items()]
        rows = [(space_id, channel, version_text(version)) for (space_id, (channel, version)), _ in places]
        (found,) = self.connection.execute(_FIND_NAMES, (packed(rows),)).fetchone()
        for number, row in json.loads(found):
            (_, version), space = places[number]
            space.names[version] = row

    def _write(self) -> None:
        notes = self._to_notes.take()
        lot: dict[str, Any] = {**edits.LOT, **notes}
        lot["data_version"] = self._data_version
        if self._to_conversations:
            rows, self._to_conversations = [*self._to_conversations.values()], {}
            lot["conversations"] = packed(rows)
        lot["namespaces"], _ = self._to_namespaces.take()
        lot["runs"], _ = self._to_runs.take()
        lot["blobs"], lot["blob_data"] = self._to_blobs.take()
        lot["checkpoints"], lot["checkpoint_data"] = self._to_checkpoints.take()
        lot["writes"], lot["write_data"] = self._to_writes.take()
        more = notes or lot["namespaces"] or lot["runs"]
        self.connection.execute(edits.PUT_MORE if more else edits.PUT_LOT, lot)

    def _write_first(self) -> None:
        """Write what is yet to be written, as what comes now changes or asks for what is in the file."""
        if not self.connection.in_transaction:
            raise _NeedsTransaction
        self._write()

    def lost(self, thread_id: str, leases: Sequence[Lease]) -> SessionLostError | None:
        """Return what is wrong with the lease by which a caller writes to a conversation."""
        lease = lease_of(thread_id, leases)
        if lease is None or self.held.get(thread_id) == lease.fence:
            return None
        row = self.connection.execute("SELECT fence FROM leases WHERE thread_id = ?", (thread_id,)).fetchone()
        return lost_error(lease) if row is not None and row[0] > lease.fence else None

    def _noting(self, work: Put | PutWrites) -> bool | None:
        """Tell so of a put; what somebody else puts to the same conversation in this lot, and notes, comes first."""
        noting = self.is_noting(work.thread_id, work.leases)
        if noting is not None and self._to_notes.have_others(work.thread_id, noting):
            self._write_first()
            self._to_notes.have_others(work.thread_id, noting)
        return noting

    def is_noting(self, thread_id: str, leases: Sequence[Lease]) -> bool | None:
        """Tell whether what is changed is to be noted, for an undo; None if no session is on the conversation."""
        held = self.held.get(thread_id)
        lease = lease_of(thread_id, leases)
        return None if held is None else lease is not None and lease.fence == held

    def written(self) -> int:
        """Return a moment in nanoseconds, later than all that this returned before."""
        self._last_written = max(time.time_ns(), self._last_written + 1)
        return self._last_written

    def new_row(self, table: str) -> int:
        """Return the next id of a conversation or namespace."""
        self._counts[table] += 1
        return self._counts[table]

    def _space(self, work: Put | PutWrites) -> _Space:
        """Return the namespace to write to, and note that its conversation is written to."""
        place = (work.thread_id, work.checkpoint_ns)
        space = self._spaces[place]
        self._spaces.move_to_end(place)
        if not space.id:
            conversation = self._conversations.get(work.thread_id)
            if conversation is None:
                conversation = self._conversations[work.thread_id] = self.new_row("conversations")
            space.conversation, space.id = conversation, self.new_row("namespaces")
            self._to_namespaces.add(space.id, space.conversation, work.checkpoint_ns)
        if self._latest[0] != work.thread_id or not 0 <= work.used - self._latest[1] < _MOMENT:
            self._latest = (work.thread_id, work.used)
            self._to_conversations.pop(work.thread_id, None)
            row = [space.conversation, work.thread_id, self.written(), work.used]
            self._to_conversations[work.thread_id] = row
        return space

    def _put(self, work: Put) -> bool | Exception:
        record = work.record
        if (lost := self.lost(work.thread_id, work.leases)) is not None:
            return lost
        space = self._spaces[work.thread_id, work.checkpoint_ns]
        conflict = work.on_conflict is not None and bool(space.id) and self._is_in_conflict(space, record)
        if conflict and work.on_conflict == "raise":
            return True
        noting = self._noting(work)
        brought = dict(work.blobs)
        if work.is_limited and record.parent_id is not None:
            known = space.names.keys() | brought.keys()
            if any(version not in known for version in record.versions):
                return torn_error(work.thread_id)
        space = self._space(work)
        if any(len(blob[1]) >= LEAST for blob in brought.values()):
            self._have_heads(space, record.parent_id)
        names = self._named(work, space, brought, noting)
        if noting is not None:
            place = (work.thread_id, work.checkpoint_ns, record.checkpoint_id, space.id)
            self._to_notes.checkpoint(*place, is_own=noting)
        hidden = record.hidden
        self._to_checkpoints.add(
            space.id,
            record.checkpoint_id,
            record.parent_id,
            int(hidden),
            [names[version] for version in record.versions],
            record.run_id,
            record.delta_channels or None,
            facts_of(record.metadata),
            record.checkpoint[0],
            record.metadata[0],
            data=(record.checkpoint[1], record.metadata[1]),
        )
        self._add_run(space, record.run_id)
        before = {*space.heads.values()}
        space.heads = {
            version[0]: row for version in record.versions if (row := names[version]) in before or row in self._chains
        }
        space.at = record.checkpoint_id
        if len(space.names) > 4 * len(names) + 32:
            space.names.clear()
        space.names.update(names)
        return conflict

    def _named(
        self, work: Put, space: _Space, brought: dict[ChannelVersion, Blob], noting: bool | None
    ) -> dict[ChannelVersion, int]:
        """Return the rows of the versions that a checkpoint names or brings; add those that are not there."""
        names: dict[ChannelVersion, int] = {}
        for version in (*work.record.versions, *brought):
            if version in names:
                continue
            blob = brought.get(version)
            row = space.names.get(version)
            if row is None:
                row = self.next_id
                self.next_id += 1
                self._add_blob(space, row, version, blob)
                if noting:
                    self._to_notes.blob(work.thread_id, row)
                space.names[version] = row
            elif blob is not None:
                self._set_value(work, row, blob, noting)
            names[version] = row
        return names

    def _add_blob(self, space: _Space, id: int, version: ChannelVersion, blob: Blob | None) -> None:
        kind, value = blob if blob is not None else (None, b"")
        number, base, data = 0, None, value
        if len(value) >= LEAST and isinstance(value, bytes):
            head = space.heads.get(version[0])
            former = self._chain(head) if head is not None else None
            chain = grown(value, id, former, self._others(space, head, len(value)))
            number, base, data = chain.way[0].number, chain.base(), chain.way[0].data
            self._keep(id, chain)
        self._to_blobs.add(id, space.id, version[0], version_text(version[1]), kind, number, base, data=(data,))

    def _others(self, space: _Space, head: int | None, length: int) -> list[Chain]:
        if length < BESIDE:
            return []
        chains = (self._chain(one) for one in space.heads.values() if one != head)
        return [chain for chain in chains if chain is not None]

    def _set_value(self, work: Put, row: int, blob: Blob, noting: bool | None) -> None:
        """Give a version, which was stored or named before, another value."""
        self._write_first()
        (kind,) = self.connection.execute(_KIND, (row,)).fetchone()
        former = b"" if kind is None else chains_of(self.connection, [row])[row].value
        if (kind, former) == blob:
            return
        if noting is not None:
            edits.note_value(self.connection, work.thread_id, row, kind, former, is_own=noting)
        if kind is not None:
            edits.detach(self.connection, row)
        self.connection.execute(_SET_VALUE, (blob[0], blob[1], row))
        self._forget_chains()

    def _forget_chains(self) -> None:
        self._chains.clear()
        self._chains_size = 0

    def _is_in_conflict(self, space: _Space, record: CheckpointRecord) -> bool:
        self._write_first()
        latest = self.connection.execute(_LATEST, (space.id,)).fetchone()
        if latest is None or latest[0] in (record.parent_id, record.checkpoint_id):
            return False
        if record.parent_id is None:
            return True
        return self.connection.execute(_IN_SIGHT, (space.id, record.parent_id)).fetchone() is not None

    def _put_writes(self, work: PutWrites) -> Exception | None:
        if (lost := self.lost(work.thread_id, work.leases)) is not None:
            return lost
        noting = self._noting(work)
        space = self._space(work)
        if any(len(write.value[1]) >= BESIDE for write in work.writes) and space.at is None:
            self._have_heads(space, None)
        keys: set[tuple[str, int]] = set()
        for task_id, idx, channel, (kind, value), task_path, run_id in work.writes:
            base, data = None, value
            if len(value) >= BESIDE and isinstance(value, bytes):
                chain = grown(value, 0, None, self._others(space, None, len(value)))
                base, data = chain.base(), chain.way[0].data
            self._to_writes.add(
                space.id, work.checkpoint_id, task_id, idx, channel, task_path, run_id, kind, base, data=(data,)
            )
            self._add_run(space, run_id)
            keys.add((task_id, idx))
        if noting is not None:
            place = (work.thread_id, work.checkpoint_ns, work.checkpoint_id, space.id)
            self._to_notes.writes(*place, sorted(keys), is_own=noting)
        return None

    def _add_run(self, space: _Space, run_id: str | None) -> None:
        if run_id is not None and run_id != space.run_id:
            self._to_runs.add(run_id, space.id)
            space.run_id = run_id

    # Values that are at hand.

    def _have_heads(self, space: _Space, parent_id: str | None) -> None:
        """Know the values of the checkpoint that another one follows; those of the latest if that is not stored."""
        if space.is_new or (space.at is not None and parent_id in (None, space.at)):
            return
        found = None
        if parent_id is not None:
            found = self.connection.execute(_HEADS_AT, (space.id, parent_id, LEAST)).fetchone()
        if (found is None or found[0] is None) and space.at is None:
            found = self.connection.execute(_HEADS_AT_LATEST, (space.id, LEAST)).fetchone()
        if found is not None and found[0] is not None:
            space.at, space.heads = found[0], dict(json.loads(found[1]))

    def _chain(self, id: int) -> Chain | None:
        chain = self._chains.get(id)
        if chain is None:
            chain = chains_of(self.connection, [id]).get(id)
            if chain is not None:
                self._keep(id, chain)
        else:
            self._chains.move_to_end(id)
        return chain

    def _keep(self, id: int, chain: Chain) -> None:
        self._chains[id] = chain
        self._chains_size += chain.size()
        while self._chains_size > _CHAINS and len(self._chains) > 1:
            _, gone = self._chains.popitem(last=False)
            self._chains_size -= gone.size()

    # What other works need.

    def drop(self, thread_ids: Iterable[str]) -> None:
        """Know nothing by heart of conversations that have been changed otherwise."""
        for thread_id in {*thread_ids}:
            self._conversations.pop(thread_id, None)
            for checkpoint_ns in self._names.pop(thread_id, ()):
                space = self._spaces.pop((thread_id, checkpoint_ns), None)
                for row in space.heads.values() if space is not None else ():
                    gone = self._chains.pop(row, None)
                    self._chains_size -= gone.size() if gone is not None else 0
        self._latest = (None, 0.0)
        self._removes = True

    def namespace(self, thread_id: str, checkpoint_ns: str, used: float) -> int:
        """Return the row of a namespace; make it, if it is not there, and that of its conversation."""
        connection = self.connection
        row = connection.execute("SELECT id FROM conversations WHERE thread_id = ?", (thread_id,)).fetchone()
        conversation = self.new_row("conversations") if row is None else row[0]
        if row is None:
            new = (conversation, thread_id, self.written(), used)
            connection.execute("INSERT INTO conversations (id, thread_id, written, used) VALUES (?, ?, ?, ?)", new)
        place = (conversation, checkpoint_ns)
        row = connection.execute(_NAMESPACE, place).fetchone()
        namespace = self.new_row("namespaces") if row is None else row[0]
        if row is None:
            connection.execute("INSERT INTO namespaces VALUES (?, ?, ?)", (namespace, *place))
        return int(namespace)

    def is_open(self) -> bool:
        """Tell whether there is a connection."""
        return self._connection is not None


def _is_plain(work: object) -> bool:
    """Tell whether one statement may do it, among others."""
    return isinstance(work, PutWrites) or (isinstance(work, Put) and work.on_conflict is None)


def _is_merged(work: object) -> bool:
    return isinstance(work, (Put, PutWrites, Get))


Work = Callable[[Writer], Any]
"""What is done in a transaction. It may be done again, if that is rolled back; an exception that it returns says that
it is refused, and has changed nothing."""
