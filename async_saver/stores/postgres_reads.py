"""What a `PostgresStore` reads: checkpoints with their values and writes, many in one statement."""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from langgraph.checkpoint.base import writes_sort_key
from langgraph.checkpoint.serde.types import TASKS

from async_saver.records import (
    EMPTY,
    JSON,
    Blob,
    ChannelVersion,
    CheckpointRecord,
    Histories,
    Listing,
    StoredCheckpoint,
    StoredHistory,
    WriteRecord,
    fits,
    unpacked,
)
from async_saver.stores.postgres_server import Cursor

__all__ = [
    "DELTA_CHANNELS",
    "HAS_VALUE",
    "HIDDEN",
    "IS_OLD",
    "OURS",
    "RUN_ID",
    "Get",
    "Place",
    "delta_history",
    "read",
    "read_page",
    "to_json",
    "version_text",
]

OURS = "async_saver"
"""The key, in a checkpoint and in metadata, of what is only this store's. What is behind it in a checkpoint:
`hidden`, `run_id` (where metadata do not say it), and, of a record whose checkpoint is no `JSON`, `checkpoint` with its
type and its bytes, `versions` in their order, and `delta`, its `delta_channels`. In metadata, see the codec."""

_OURS = f'"{OURS}"'.encode()


class Place(NamedTuple):
    """Where a checkpoint is, as it is asked for."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


class Get(NamedTuple):
    """The work of `Store.get`; several of them are one statement."""

    place: Place


HIDDEN = """c.checkpoint @> '{"async_saver": {"hidden": true}}'"""
"""Whether a checkpoint is out of sight. So written, the planner takes it for rare."""

RUN_ID = "coalesce(c.checkpoint #>> '{async_saver,run_id}', c.metadata ->> 'run_id')"
"""Which run made a checkpoint; as the index on it has it."""

HAS_VALUE = """
(EXISTS (
    SELECT FROM checkpoint_blobs b
    WHERE b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = {channel}
        AND b.version = c.checkpoint -> 'channel_versions' ->> {channel} AND b.type <> 'empty'
) OR coalesce(c.checkpoint -> 'channel_values' -> {channel}, 'null') <> 'null')
"""
"""Whether a checkpoint has a value of a channel."""

DELTA_CHANNELS = """
SELECT jsonb_object_keys(CASE WHEN jsonb_typeof(c.metadata -> 'counters_since_delta_snapshot') = 'object'
    THEN c.metadata -> 'counters_since_delta_snapshot' ELSE '{}' END)
UNION ALL
SELECT jsonb_array_elements_text(coalesce(c.checkpoint #> '{async_saver,delta}', '[]'))
UNION ALL
SELECT v.key FROM jsonb_each(coalesce(c.checkpoint -> 'channel_values', '{}')) v JOIN checkpoint_blobs b
    ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key
        AND b.version = c.checkpoint -> 'channel_versions' ->> v.key
WHERE v.value = 'true'
UNION ALL
SELECT jsonb_object_keys(c.checkpoint -> 'channel_versions') WHERE c.metadata ? 'delta_writes_versioned'
"""
"""The channels that a checkpoint shows to be a `DeltaChannel`: by its counters, by what this store notes, and by the
mark of a snapshot, which is true with a blob behind it. LangGraph.js says only that there are some."""

IS_OLD = "c.checkpoint -> 'v' < '4'"
"""Whether what a checkpoint's parent's tasks sent is not in it, but in their writes: see `StoredCheckpoint.sends`."""

# Where a table is small, or its figures are of when it was, the planner would read all of a conversation: of its
# values, as it joins them, and of its writes, by the index that is only on the conversation. What is asked for in the
# order of the primary key is found by that.
_COLUMNS = f"""
    c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id,
    convert_to(c.checkpoint::text, 'UTF8'), convert_to(c.metadata::text, 'UTF8'),
    (
        SELECT array_agg(ARRAY[convert_to(b.channel, 'UTF8'), convert_to(b.type, 'UTF8'), b.blob])
        FROM jsonb_each_text(c.checkpoint -> 'channel_versions') v CROSS JOIN LATERAL (
            SELECT * FROM checkpoint_blobs b
            WHERE b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key
                AND b.version BETWEEN v.value AND v.value
            ORDER BY b.version LIMIT 1
        ) b
        WHERE b.type <> 'empty'
    ),
    (
        SELECT array_agg(ARRAY[convert_to(w.task_id, 'UTF8'), convert_to(w.idx::text, 'UTF8'),
            convert_to(w.channel, 'UTF8'), convert_to(coalesce(w.type, 'null'), 'UTF8'), w.blob,
            convert_to(w.task_path, 'UTF8')])
        FROM (
            SELECT * FROM checkpoint_writes w
            WHERE w.thread_id = c.thread_id AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id
            ORDER BY w.task_id, w.idx OFFSET 0
        ) w
    ),
    CASE WHEN {IS_OLD} THEN (
        SELECT array_agg(ARRAY[convert_to(coalesce(w.type, 'null'), 'UTF8'), w.blob]
            ORDER BY w.task_path, w.task_id, w.idx)
        FROM checkpoint_writes w
        WHERE w.thread_id = c.thread_id AND w.checkpoint_ns = c.checkpoint_ns
            AND w.checkpoint_id = c.parent_checkpoint_id AND w.channel = %(tasks)s
    ) END
"""
_LATEST = f"""
SELECT a.n, {_COLUMNS}
FROM unnest(%(threads)b::text[], %(namespaces)b::text[]) WITH ORDINALITY a (thread_id, checkpoint_ns, n)
CROSS JOIN LATERAL (
    SELECT * FROM checkpoints c
    WHERE c.thread_id = a.thread_id AND c.checkpoint_ns = a.checkpoint_ns AND NOT ({HIDDEN})
    ORDER BY c.checkpoint_id DESC LIMIT 1
) c
"""
_BY_ID = f"""
SELECT a.n, {_COLUMNS}
FROM unnest(%(threads)b::text[], %(namespaces)b::text[], %(ids)b::text[]) WITH ORDINALITY
    a (thread_id, checkpoint_ns, checkpoint_id, n)
CROSS JOIN LATERAL (
    SELECT * FROM checkpoints c
    WHERE c.thread_id = a.thread_id AND c.checkpoint_ns = a.checkpoint_ns AND c.checkpoint_id = a.checkpoint_id
        AND NOT ({HIDDEN}) OFFSET 0
) c
"""


def read(cursor: Cursor, places: Sequence[Place]) -> list[StoredCheckpoint | None]:
    """Return the checkpoints of some places, each as of one moment."""
    found: list[StoredCheckpoint | None] = [None] * len(places)
    latest = [number for number, place in enumerate(places) if place.checkpoint_id is None]
    by_id = [number for number, place in enumerate(places) if place.checkpoint_id is not None]
    for statement, numbers in ((_LATEST, latest), (_BY_ID, by_id)):
        if numbers:
            asked = [places[number] for number in numbers]
            parameters = {
                "threads": [place.thread_id for place in asked],
                "namespaces": [place.checkpoint_ns for place in asked],
                "ids": [place.checkpoint_id for place in asked],
                "tasks": TASKS,
            }
            for number, *row in cursor.execute(statement.encode(), parameters, prepare=True, binary=True):
                found[numbers[number - 1]] = _stored(row)
    return found


def _stored(row: Sequence[Any]) -> StoredCheckpoint:
    thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata, blobs, writes, sends = row
    plain = json.loads(checkpoint)
    ours = plain.pop(OURS, None)
    ours = ours if isinstance(ours, dict) else {}
    encoded: Blob = (JSON, checkpoint)
    versions: tuple[ChannelVersion, ...] = tuple((plain.get("channel_versions") or {}).items())
    if (whole := unpacked(ours.get("checkpoint"))) is not None:
        encoded = whole
        versions = tuple((channel, version) for channel, version in ours["versions"])
    elif ours:
        encoded = (JSON, to_json(plain))
    details, rest = _metadata_of(metadata)
    values = {channel.decode(): (kind.decode(), data) for channel, kind, data in blobs or ()}
    record = CheckpointRecord(
        checkpoint_id,
        parent_id,
        encoded,
        rest,
        versions,
        ours.get("run_id", details.get("run_id")),
        tuple(ours.get("delta", details.get("counters_since_delta_snapshot") or ())),
    )
    return StoredCheckpoint(
        thread_id,
        checkpoint_ns,
        record,
        [(channel, values[channel]) for channel, _ in versions if channel in values],
        _writes_of(writes),
        [(kind.decode(), data) for kind, data in sends or ()],
    )


def _metadata_of(metadata: bytes) -> tuple[Mapping[str, Any], Blob]:
    """Return metadata as far as JSON has them, and as they were stored."""
    details: dict[str, Any] = json.loads(metadata)
    whole = unpacked(details.get(OURS)) if len(details) == 1 else None
    return (details, (JSON, metadata)) if whole is None else ({}, whole)


def _writes_of(writes: "Iterable[Sequence[bytes]] | None") -> list[WriteRecord]:
    if not writes:
        return []
    records = [
        WriteRecord(task_id.decode(), int(idx), channel.decode(), (kind.decode(), data), path.decode(), None)
        for task_id, idx, channel, kind, data, path in writes
    ]
    if len(records) > 1:
        records.sort(key=lambda write: writes_sort_key(write.task_path, write.task_id, write.idx))
    return records


_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def to_json(value: object) -> bytes:
    """Return something as JSON."""
    return _encode(value).encode()


def version_text(version: str | float) -> str:
    """Return a channel's version as the official tables have it: as the text of what it is in JSON."""
    if isinstance(version, float):
        return format(Decimal(repr(version)), "f")
    return version if isinstance(version, str) else _encode(version)


# Listing. In one conversation it is read by namespaces, as the index is.

_OF_ONE = """
WITH RECURSIVE namespaces (checkpoint_ns) AS (
    (SELECT checkpoint_ns FROM checkpoints WHERE thread_id = %(thread_id)s ORDER BY checkpoint_ns LIMIT 1)
    UNION ALL
    SELECT (
        SELECT c.checkpoint_ns FROM checkpoints c
        WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns > n.checkpoint_ns ORDER BY c.checkpoint_ns LIMIT 1)
    FROM namespaces n WHERE n.checkpoint_ns IS NOT NULL
)
SELECT {columns} FROM (
    SELECT c.* FROM namespaces n CROSS JOIN LATERAL (
        SELECT * FROM checkpoints c
        WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = n.checkpoint_ns AND {where}
        ORDER BY c.checkpoint_id DESC LIMIT %(number)s
    ) c
    ORDER BY c.checkpoint_id DESC, c.checkpoint_ns DESC LIMIT %(number)s
) c ORDER BY c.checkpoint_id DESC, c.checkpoint_ns DESC
"""
_OF_ALL = """
SELECT {columns} FROM (
    SELECT * FROM checkpoints c WHERE {where}
    ORDER BY c.checkpoint_id DESC, c.checkpoint_ns DESC, c.thread_id DESC LIMIT %(number)s
) c ORDER BY c.checkpoint_id DESC, c.checkpoint_ns DESC, c.thread_id DESC
"""


def read_page(cursor: Cursor, listing: Listing, after: StoredCheckpoint | None, number: int) -> list[StoredCheckpoint]:
    """Return the next checkpoints of a listing, behind the one that was read last."""
    wheres, values = [f"NOT ({HIDDEN})"], {**listing._asdict(), "number": number, "tasks": TASKS}
    del values["filter"]
    if listing.checkpoint_ns is not None:
        wheres.append("c.checkpoint_ns = %(checkpoint_ns)s")
    if listing.checkpoint_id is not None:
        wheres.append("c.checkpoint_id = %(checkpoint_id)s")
    if listing.before is not None:
        wheres.append("c.checkpoint_id < %(before)s")
    is_one = listing.thread_id is not None and listing.checkpoint_ns is None
    if listing.thread_id is not None and not is_one:
        wheres.append("c.thread_id = %(thread_id)s")
    if after is not None:
        # The first of these is for the index.
        wheres.append("c.checkpoint_id <= %(last_id)s")
        wheres.append("(c.checkpoint_id, c.checkpoint_ns, c.thread_id) < (%(last_id)s, %(last_ns)s, %(last_thread)s)")
        last = {"last_id": after.record.checkpoint_id, "last_ns": after.checkpoint_ns, "last_thread": after.thread_id}
        values.update(last)
    for place, (key, value) in enumerate(listing.filter.items()):
        _narrow(wheres, values, f"{place}", key, value)
    statement = (_OF_ONE if is_one else _OF_ALL).format(columns=_COLUMNS, where=" AND ".join(wheres))
    return [_stored(row) for row in cursor.execute(statement.encode(), values, binary=True)]


def _narrow(wheres: list[str], values: dict[str, Any], place: str, key: object, wanted: object) -> None:
    """Narrow a listing to what may have a value in its metadata; where that is not seen here, it may."""
    if not isinstance(key, str) or not fits(key):
        return
    candidates = _candidates(wanted)
    if candidates is None:
        return
    values[f"key{place}"], values[f"wanted{place}"] = key, [to_json(one).decode() for one in candidates]
    missing = f"NOT c.metadata ? %(key{place})s OR " if wanted is None else ""
    wheres.append(f"({missing}c.metadata -> %(key{place})s = ANY(%(wanted{place})s::jsonb[]) OR c.metadata ? '{OURS}')")


def _candidates(wanted: object) -> list[object] | None:
    """Return what in JSON may equal a value, as Python compares; None where that is not easily said."""
    if wanted is None or (type(wanted) is str and fits(wanted)):
        return [wanted]
    if type(wanted) in (bool, int, float) and -(2**53) <= wanted <= 2**53:  # type: ignore[operator]
        return [wanted, bool(wanted)] if wanted in (0, 1) else [wanted]
    return None


# What a `DeltaChannel` is rebuilt from.

_HISTORY = f"""
WITH RECURSIVE target AS (
    SELECT c.* FROM checkpoints c
    WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(checkpoint_ns)s
        AND (%(checkpoint_id)s::text IS NULL OR c.checkpoint_id = %(checkpoint_id)s) AND NOT ({HIDDEN})
    ORDER BY c.checkpoint_id DESC LIMIT 1
),
walk (channel, from_id, checkpoint_id) AS (
    SELECT a.channel, NULL::text, t.parent_checkpoint_id
    FROM target t CROSS JOIN unnest(%(channels)s::text[]) a (channel)
    UNION
    SELECT w.channel, c.checkpoint_id, c.parent_checkpoint_id FROM walk w CROSS JOIN LATERAL (
        SELECT * FROM checkpoints c WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(checkpoint_ns)s
            AND c.checkpoint_id = w.checkpoint_id OFFSET 0
    ) c
    WHERE NOT {HAS_VALUE.format(channel="w.channel")}
)
SELECT w.channel, w.from_id, w.checkpoint_id,
    (
        SELECT array_agg(ARRAY[convert_to(o.task_id, 'UTF8'), convert_to(o.idx::text, 'UTF8'),
            convert_to(o.channel, 'UTF8'), convert_to(coalesce(o.type, 'null'), 'UTF8'), o.blob,
            convert_to(o.task_path, 'UTF8')])
        FROM (
            SELECT * FROM checkpoint_writes o
            WHERE o.thread_id = c.thread_id AND o.checkpoint_ns = c.checkpoint_ns AND o.checkpoint_id = c.checkpoint_id
            ORDER BY o.task_id, o.idx OFFSET 0
        ) o WHERE o.channel = w.channel
    ),
    b.type, b.blob, convert_to((c.checkpoint -> 'channel_values' -> w.channel)::text, 'UTF8')
FROM walk w
CROSS JOIN LATERAL (
    SELECT * FROM checkpoints c WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(checkpoint_ns)s
        AND c.checkpoint_id = w.checkpoint_id OFFSET 0
) c
LEFT JOIN LATERAL (
    SELECT * FROM checkpoint_blobs b
    WHERE b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = w.channel
        AND b.version = c.checkpoint -> 'channel_versions' ->> w.channel AND b.type <> 'empty' OFFSET 0
) b ON true
"""


def delta_history(cursor: Cursor, place: Place, channels: Sequence[str]) -> Histories:
    """Return what the values of channels at a checkpoint are rebuilt from."""
    parameters = {**place._asdict(), "channels": [*channels]}
    found: dict[tuple[str, str | None], Any] = {}
    for channel, from_id, *row in cursor.execute(_HISTORY.encode(), parameters, prepare=True, binary=True):
        found[channel, from_id] = row
    return {channel: _history(channel, found) for channel in channels}


def _history(channel: str, found: Mapping[tuple[str, str | None], Any]) -> StoredHistory:
    steps: list[list[WriteRecord]] = []
    at: str | None = None
    seed: Blob | None = None
    while (step := found.get((channel, at))) is not None and len(steps) < len(found):
        at, writes, kind, data, inline = step
        steps.append(_writes_of(writes))
        if kind is not None:
            seed = (kind, data)
        elif inline not in (None, b"null"):
            seed = (JSON, inline)
        if seed is not None:
            break
    return StoredHistory(None if seed == EMPTY else seed, [write for writes in reversed(steps) for write in writes])
