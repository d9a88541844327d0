"""Fixtures: every backend, every store."""

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from async_saver import AsyncSaver, Store
from tests.postgres import LEFT_OUT, THROUGH, needed, new_database, skipped
from tests.stores import STORES, NewStore

settings.register_profile("always the same", derandomize=True, deadline=None)
settings.load_profile("always the same")

_BACKENDS = [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
if find_spec("uvloop"):
    _BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
if find_spec("trio"):
    _BACKENDS.append(pytest.param("trio", id="trio"))


_ON_UVLOOP_OVER_A_FILE = ("test_conformance", "test_promises", "test_semantics")
_ON_UVLOOP_OVER_POSTGRES = ("test_conformance",)
_ON_TRIO_OVER_POSTGRES = (
    "test_cancellation",
    "test_conformance",
    "test_machine",
    "test_semantics",
    "test_store_contract",
)
_OVER_POSTGRES = (
    "test_bad_input",
    "test_cancellation",
    "test_conformance",
    "test_langgraph",
    "test_loops",
    "test_machine",
    "test_pace",
    "test_promises",
    "test_semantics",
    "test_sessions",
    "test_sessions_graphs",
    "test_sessions_mended",
    "test_store_contract",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is one too many."""
    items[:] = [one for one in items if not _is_one_too_many(one)]
    for beginning, why in LEFT_OUT.get(THROUGH or "", {}).items():
        for item in items:
            if f"{item.path.stem}::{item.name}".startswith(beginning):
                item.add_marker(pytest.mark.skip(reason=f"over {THROUGH}: {why}"))


def _is_one_too_many(item: pytest.Item) -> bool:
    """On uvloop over a file or a server, all but what shows whether calls come back there: it is asyncio's.

    Over a server, what there is no time for; on trio, what knows no event loop.
    """
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    module, on_uvloop = item.path.stem, params.get("anyio_backend") == ("asyncio", {"use_uvloop": True})
    if "postgres" in (params.get("new_store"), params.get("kind")):
        on_trio = "trio" in (params.get("anyio_backend"), params.get("backend"))
        others = _ON_TRIO_OVER_POSTGRES if on_trio else _OVER_POSTGRES
        runs_there = module in (_ON_UVLOOP_OVER_POSTGRES if on_uvloop else others)
        return not runs_there
    if on_uvloop and module == "test_cancellation":
        return params.get("kind") == "memory"  # which has fewer moments at which something may be cancelled
    return on_uvloop and params.get("new_store") == "sqlite" and module not in _ON_UVLOOP_OVER_A_FILE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it where there was no PostgreSQL."""
    for reason in sorted({*skipped}):
        text = f"WARNING: {skipped.count(reason)} tests that need PostgreSQL were skipped: {reason}"
        terminalreporter.write_line(text, yellow=True, bold=True)


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heeded() -> None:
    """Also where the run was started in the background by a shell, whose children ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Every event loop that the saver is promised to run on."""
    return request.param


@pytest.fixture(params=STORES)
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewStore]:
    """What makes empty stores, of every kind. In the end they are closed."""
    if request.param == "postgres":
        needed()
    with NewStore(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of an empty database in PostgreSQL."""
    with new_database(needed()) as url:
        yield url


in_memory = pytest.mark.parametrize("new_store", ["memory"], indirect=True)
"""For what only a `MemoryStore` has."""


@pytest.fixture
def store(new_store: NewStore) -> Store:
    """An empty store, of every kind."""
    made: Store = new_store()
    return made


@pytest.fixture
def saver(store: Store) -> AsyncSaver:
    """A saver over an empty store of every kind."""
    return AsyncSaver(store=store)
