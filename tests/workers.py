"""Worker threads and scripts that must end: what hangs fails, and holds nothing up."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import anyio

_T = TypeVar("_T")

LOOPS: list[tuple[str, dict[str, Any]]] = [
    ("asyncio", {"use_uvloop": False}),
    *([("asyncio", {"use_uvloop": True})] if find_spec("uvloop") else []),
    *([("trio", {})] if find_spec("trio") else []),
]
"""Every event loop that is installed, as `anyio.run` takes them."""

# From 3.12 on, Python warns of any fork of a process with threads; only this one warning is let through.
FORKS_WITH_THREADS = "ignore:This process (pid=:DeprecationWarning"


def together(*jobs: Callable[[], _T], seconds: float = 60) -> list[_T]:
    """Run each job in a worker thread of its own, all from one moment on, and return what they returned."""
    barrier, done, errors = threading.Barrier(len(jobs)), dict[int, _T](), list[BaseException]()

    def run(number: int, job: Callable[[], _T]) -> None:
        try:
            barrier.wait(seconds)
            done[number] = job()
        except BaseException as exc:
            errors.append(exc)

    # Daemons, so that the test run can end all the same.
    workers = [threading.Thread(target=run, args=one, daemon=True) for one in enumerate(jobs)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(end - time.monotonic(), 0))
    if errors:
        raise errors[0]
    assert len(done) == len(jobs), f"{len(jobs) - len(done)} of {len(jobs)} jobs have not ended"
    return [done[number] for number in range(len(jobs))]


def on_loop(number: int, work: Callable[..., Coroutine[Any, Any, _T]], *args: Any) -> _T:
    """Run a coroutine function on one of the installed event loops; which one depends on `number` alone."""
    backend, options = LOOPS[number % len(LOOPS)]
    return anyio.run(work, *args, backend=backend, backend_options=options)


def output_of(script: str, *options: str, seconds: float = 60) -> str:
    """Run a script where every warning is an error, and return what it printed; it must say nothing of trouble.

    It may import `tests`. Its children are ended with it if it does not end in time.
    """
    command = [sys.executable, "-W", "error", *options, "-c", script]
    posix = os.name == "posix"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=posix,
    ) as process:
        try:
            printed, complaints = process.communicate(timeout=seconds)
        except BaseException as exc:
            if posix:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            if not isinstance(exc, subprocess.TimeoutExpired):
                raise
            printed, complaints = process.communicate()
            raise AssertionError(f"it has not ended; it printed {printed!r}, and complained: {complaints}") from None
    assert (process.returncode, complaints) == (0, ""), complaints
    return printed
