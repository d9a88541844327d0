"""Who holds a lease on this machine, and whether that process has ended."""

import os
from functools import lru_cache

__all__ = ["has_ended", "this_process"]


def this_process() -> str:
    """Return what tells this process from all others, also from a later one of the same number."""
    return _identity(os.getpid())


@lru_cache(maxsize=1)
def _identity(pid: int) -> str:
    return f"{_boot()} {_namespace()} {pid} {_started(pid)}"


def has_ended(process: str) -> bool:
    """Tell whether a process is known to have ended; what cannot be seen from here may be there."""
    boot, namespace, pid, started = process.split(" ")
    if boot != _boot():
        return bool(boot and _boot())  # the machine has started anew since
    if not boot or not namespace or namespace != _namespace():
        return False
    return _started(int(pid)) != started


def _boot() -> str:
    return _first_line("/proc/sys/kernel/random/boot_id")


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process has started; nothing if there is none, or only what is left of one."""
    # Its name comes second, in parentheses, and may hold anything.
    fields = _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""
