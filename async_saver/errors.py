"""The errors that async_saver raises.

All derive from `AsyncSaverError`, and each also from the built-in that fits it. Their messages name the remedy, and the
conversation where there is one; they never hold a state's content or a URL's credentials.
"""

__all__ = [
    "AsyncSaverError",
    "ConfigError",
    "ConflictError",
    "DeserializationError",
    "InvalidTypeError",
    "InvalidValueError",
    "PortalError",
    "SerializationError",
    "SessionError",
    "SessionInterruptedError",
    "SessionLostError",
    "StorageBusyError",
    "StorageError",
    "ThreadBusyError",
    "ThreadEvictedError",
    "ThreadExistsError",
    "TransferError",
    "shown",
]

_SHOWN = 80


def shown(value: object) -> str:
    """Return `repr(value)` for a message, at most 80 characters of it."""
    text = repr(value[:_SHOWN]) if isinstance(value, str) and len(value) > _SHOWN else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class AsyncSaverError(Exception):
    """Anything that async_saver itself raises."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message.
        return Exception.__str__(self)


class ConfigError(AsyncSaverError, KeyError):
    """A config lacks a key that the call needs."""


class ConflictError(AsyncSaverError, RuntimeError):
    """Two runs raced on a conversation, and this one's checkpoint was not stored (`on_conflict="raise"`)."""


class InvalidValueError(AsyncSaverError, ValueError):
    """An argument has a value that the call does not know."""


class InvalidTypeError(AsyncSaverError, TypeError):
    """An argument, or a use of a read-only view, has the wrong type."""


class SerializationError(AsyncSaverError, TypeError):
    """A value could not be serialised; nothing was stored."""


class DeserializationError(AsyncSaverError, ValueError):
    """A stored value could not be read with this saver's `serde`."""


class ThreadExistsError(AsyncSaverError, ValueError):
    """The target of a copy already holds a conversation."""


class TransferError(AsyncSaverError, RuntimeError):
    """A conversation could not be copied to another saver, or is not there what it was."""


class PortalError(AsyncSaverError, RuntimeError):
    """A sync method was called where it could only wait for itself."""


class SessionError(AsyncSaverError, RuntimeError):
    """A session was used otherwise than by one task, once, in a `with` or `async with` statement."""


class ThreadBusyError(AsyncSaverError, TimeoutError):
    """Another session holds the conversation, and this one may not wait for it, or has waited long enough."""


class ThreadEvictedError(AsyncSaverError, LookupError):
    """A run's conversation was evicted under it, and its next checkpoint would lack values; nothing was stored."""


class SessionInterruptedError(AsyncSaverError, RuntimeError):
    """A session was ended by another one, of strategy "interrupt" or "rollback"."""


class SessionLostError(AsyncSaverError, RuntimeError):
    """A session wrote to a conversation that is no longer its own; nothing was stored."""


class StorageError(AsyncSaverError, OSError):
    """What a store keeps its conversations in could not be used; what was not acknowledged may not be stored."""


class StorageBusyError(StorageError, TimeoutError):
    """Somebody else had it locked for too long; nothing was stored."""
