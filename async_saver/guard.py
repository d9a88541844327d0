"""The lock around everything that this package keeps in memory."""

import os
import threading
from typing import Any, cast

from async_saver.errors import PortalError

__all__ = ["guard", "refuse_inside"]

guard: threading.RLock = threading.RLock()
"""Held for moments, never across an await.

One for the process and not one a store, so that a fork has one lock to take, and a copied store none to carry. A fork
that came while another worker thread held it would leave the child a lock that nobody releases. It is reentrant for
what interrupts its holder: a signal handler that forks, or that looks at what is stored. Nothing raises in it but what
interrupts it: where a signal comes as an exception leaves a `with` statement, Python 3.10 does not call its exit.
"""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=guard.acquire, after_in_parent=guard.release, after_in_child=guard.release)


def refuse_inside() -> None:
    """Refuse what could only wait for itself, or tear what it interrupts, as its own worker thread is in the guard.

    Raises:
        PortalError: The caller is a signal handler or a finalizer that came in the midst of a store's work.
    """
    if cast(Any, guard)._is_owned():
        raise PortalError(
            "a signal handler or a finalizer used a saver while its own worker thread was in the midst of a store's "
            "work; let it only set a flag or an event, and call the saver where that is seen (an event loop has "
            "add_signal_handler and call_soon_threadsafe for this)"
        )
