"""Fixtures: every backend, every store."""

import signal
from importlib.util import find_spec

import pytest
from hypothesis import settings

from async_saver import AsyncSaver, MemoryStore, Store

settings.register_profile("always the same", derandomize=True, deadline=None)
settings.load_profile("always the same")

_BACKENDS = [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
if find_spec("uvloop"):
    _BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
if find_spec("trio"):
    _BACKENDS.append(pytest.param("trio", id="trio"))


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heeded() -> None:
    """Also where the run was started in the background by a shell, whose children ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Every event loop that the saver is promised to run on."""
    return request.param


@pytest.fixture(params=[MemoryStore])
def store(request: pytest.FixtureRequest) -> Store:
    """Every store, empty."""
    made: Store = request.param()
    return made


@pytest.fixture
def saver(store: Store) -> AsyncSaver:
    """A saver over every store."""
    return AsyncSaver(store=store)
