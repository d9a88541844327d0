"""Processes that work on one SQLite file: they are told what to do, and tell what they have done, line by line."""

import copy
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, TypeAlias

import pytest
from typing_extensions import Self

from async_saver import AsyncSaver
from async_saver.stores.sqlite import SQLiteStore
from tests.build import checkpoint, config, put

POSIX = pytest.mark.skipif(os.name != "posix", reason="processes are forked, killed and limited as POSIX has it")

PRELUDE = """
import asyncio, faulthandler, gc, os, random, sqlite3, sys, threading, time, traceback
import anyio
from async_saver import AsyncSaver, SessionLostError, StorageError, ThreadBusyError
from async_saver.stores.sqlite import SQLiteStore
from tests.build import checkpoint, config, ids, listed, put
from tests.sqlite_worker import Program, contents, hear, say
"""


def say(*words: object) -> None:
    """Tell the parent a line, all of it at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def hear() -> str:
    """Wait for a line of the parent's; "" when there will be no more."""
    return sys.stdin.readline().strip()


class Script:
    """A script in a process of its own, where every warning is an error. It ends with its block, and its children too.

    Args:
        script: What it does, after `PRELUDE`.
        args: Its `sys.argv`, from 1 on.
        before: The words of a command that runs it.
        options: What is told to Python.
    """

    def __init__(
        self, script: str, *args: object, before: Sequence[str] = (), options: Sequence[str] = ("-W", "error")
    ) -> None:
        command = [*before, sys.executable, *options, "-c", PRELUDE + script, *map(str, args)]
        root, pipe = Path(__file__).parents[1], subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=root, start_new_session=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout

    def hear(self) -> str:
        """Wait for a line of what it tells."""
        line = self._from.readline()
        assert line, "it tells nothing more"
        return line.rstrip("\n")

    def tell(self, *words: object) -> None:
        """Tell it a line."""
        self._to.write(" ".join(map(str, words)) + "\n")
        self._to.flush()

    def kill(self) -> None:
        """End it as nothing else does."""
        self.process.kill()
        self.process.wait()

    def end(self) -> list[str]:
        """Wait until it has ended well, and return what it told since."""
        told, complaints = self.process.communicate(timeout=60)
        assert (self.process.returncode, complaints) == (0, ""), complaints
        return told.splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if not self._to.closed:
            told, complaints = self.process.communicate()
            if error is not None:
                sys.stderr.write(f"it told {told!r}, and complained: {complaints}")


# What is stored.

Contents: TypeAlias = dict[str, dict[str, tuple[dict[str, Any], list[tuple[str, str, Any]]]]]
"""Conversations, their checkpoints, and of each its values and its writes."""


def contents(saver: AsyncSaver) -> Contents:
    """Everything that a saver lists."""
    found: Contents = {}
    for one in saver.list(None):
        held = found.setdefault(one.config["configurable"]["thread_id"], {})
        held[one.checkpoint["id"]] = (one.checkpoint["channel_values"], list(one.pending_writes or ()))
    return found


def store(saver: AsyncSaver, checkpoint_id: str, thread_id: str = "t", value: Any = None) -> None:
    """Put a checkpoint of one value from sync code: its own id unless another is given."""
    values = {"x": checkpoint_id if value is None else value}
    saver.put(config(thread_id), checkpoint(checkpoint_id, values, checkpoint_id), {}, {"x": checkpoint_id})


def held(*checkpoint_ids: str) -> dict[str, Any]:
    """What `contents` has of a conversation after `store`."""
    return {one: ({"x": one}, []) for one in checkpoint_ids}


def check(saver: AsyncSaver) -> None:
    """Raise if something is wrong in the file."""
    saver._shared.store.check()  # type: ignore[attr-defined]


@contextmanager
def opened(path: Path | str, **options: Any) -> Iterator[AsyncSaver]:
    """A saver on a file."""
    with AsyncSaver(store=SQLiteStore(path, **options)) as saver:
        yield saver


def whole(path: Path | str) -> Contents:
    """What a file holds for whoever opens it now; nothing in it is wrong."""
    with opened(path) as saver:
        check(saver)
        return contents(saver)


class Program:
    """What one task does with conversations of its own, in steps that follow from its name.

    Attributes:
        name: The conversation's; those of its copies begin with it.
        held: What is stored after the steps so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: Contents = {}
        self._draw = Random(name)
        self._count = 0

    def step(self) -> Callable[[AsyncSaver], Awaitable[object]]:
        """Go one step on; return how a saver does it."""
        self._count += 1
        kind = self._draw.choices(["put", "writes", "prune", "copy", "delete"], [12, 8, 1, 1, 1])[0]
        own = self.held.setdefault(self.name, {})
        latest = max(own, default=None)
        if kind == "put" or latest is None:
            return self._put(own, latest)
        if kind == "writes":
            made = own[latest][1]
            task_id, count = f"task {len(made):04}", self._draw.randint(1, 5)
            made += [(task_id, "x", number) for number in range(count)]
            return lambda saver: saver.aput_writes(
                config(self.name, latest), [("x", number) for number in range(count)], task_id
            )
        if kind == "prune":
            self.held[self.name] = {latest: own[latest]}
            return lambda saver: saver.aprune([self.name])
        if kind == "copy":
            target = f"{self.name} copy {self._count}"
            self.held[target] = copy.deepcopy(own)
            return lambda saver: saver.acopy_thread(self.name, target)
        del self.held[self.name]
        return lambda saver: saver.adelete_thread(self.name)

    def _put(self, own: dict[str, Any], latest: str | None) -> Callable[[AsyncSaver], Awaitable[object]]:
        checkpoint_id = f"{self._count:05}"
        values: dict[str, Any] = {
            "x": checkpoint_id,
            "bytes": self._draw.randbytes(self._draw.choice([9, 900, 30_000])),
        }
        values["messages"] = [f"{self.name} has said {number} things" for number in range(self._count)]
        own[checkpoint_id] = (values, [])
        return lambda saver: put(saver, checkpoint_id, values, thread_id=self.name, parent=latest)


def contents_after(name: str, steps: int) -> Contents:
    """What a program has stored after so many steps."""
    program = Program(name)
    for _ in range(steps):
        program.step()
    return {thread_id: held for thread_id, held in program.held.items() if held}


# What the system is asked for.


def traced(calls: Collection[str], into: Path) -> list[str]:
    """The command that notes which of these calls a script and its children make, with the files they are for.

    Where it is not to be had, the test is skipped, and fails in CI: only there is it known to run.
    """
    command = ["strace", "-f", "-y", "-s", "32", "-e", "trace=" + ",".join(calls), "-o", str(into)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as exc:
        message = f"what is synced is seen by strace only, and that does not run here: {exc}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return command


_CALL = re.compile(r"(\d+) +(<\.\.\. )?(\w+)( resumed>)?(.*)")


class SystemCall:
    """One call of the system's, or its beginning, or its end where others came in between.

    Attributes:
        thread: The system's number of the worker thread.
        name: Its name.
        text: All that was noted of it; at its end, after what was noted at its beginning.
        number: The descriptor that is its first argument, else -1.
        file: What that is open for.
        begins: Whether it begins here.
        ends: Whether it ends here.
        result: At its end, what it returned.
    """

    def __init__(self, line: str, under_way: "dict[int, SystemCall]") -> None:
        found = _CALL.fullmatch(line)
        assert found is not None, line
        self.thread, self.name = int(found[1]), found[3]
        self.begins, self.ends = not found[4], not line.endswith("<unfinished ...>")
        self.text = found[5] if self.begins else under_way[self.thread].text + found[5]
        under_way[self.thread] = self
        argument = re.match(r"\((\d+)<(.*?)>[,) ]", self.text)
        self.number, self.file = (int(argument[1]), argument[2]) if argument else (-1, "")
        self.result = self.text.rpartition(" = ")[2] if self.ends else ""


def system_calls(trace: Path) -> list[SystemCall]:
    """What `traced` has noted, in order."""
    lines, under_way = trace.read_text("utf-8", "replace").splitlines(), dict[int, SystemCall]()
    return [SystemCall(line, under_way) for line in lines if not re.match(r"\d+ +(\+\+\+|---)", line)]
