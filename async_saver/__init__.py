"""A LangGraph checkpointer for programs that run many agents at once."""

from async_saver.errors import (
    AsyncSaverError,
    ConfigError,
    ConflictError,
    DeserializationError,
    InvalidTypeError,
    InvalidValueError,
    PortalError,
    SerializationError,
    SessionError,
    SessionInterruptedError,
    SessionLostError,
    StorageBusyError,
    StorageError,
    ThreadBusyError,
    ThreadEvictedError,
    ThreadExistsError,
    TransferError,
)
from async_saver.records import Stats
from async_saver.retention import EvictionReason, Retention
from async_saver.saver import AsyncSaver
from async_saver.serde import FastJsonPlusSerializer
from async_saver.session import MultitaskStrategy, Session
from async_saver.stores.base import Store
from async_saver.stores.memory import MemoryStore
from async_saver.transfer import CopyProgress, CopySummary, acopy_saver

InMemorySaver = AsyncSaver
MemorySaver = AsyncSaver

__all__ = [
    "AsyncSaver",
    "AsyncSaverError",
    "ConfigError",
    "ConflictError",
    "CopyProgress",
    "CopySummary",
    "DeserializationError",
    "EvictionReason",
    "FastJsonPlusSerializer",
    "InMemorySaver",
    "InvalidTypeError",
    "InvalidValueError",
    "MemorySaver",
    "MemoryStore",
    "MultitaskStrategy",
    "PortalError",
    "Retention",
    "SerializationError",
    "Session",
    "SessionError",
    "SessionInterruptedError",
    "SessionLostError",
    "Stats",
    "StorageBusyError",
    "StorageError",
    "Store",
    "ThreadBusyError",
    "ThreadEvictedError",
    "ThreadExistsError",
    "TransferError",
    "acopy_saver",
]

__version__ = "0.1.0"
