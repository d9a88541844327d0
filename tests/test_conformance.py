"""The official conformance suite: all eight capabilities, detected and passed."""

from collections.abc import AsyncGenerator

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate

from async_saver import AsyncSaver

pytestmark = pytest.mark.anyio


@checkpointer_test(name="AsyncSaver")
async def memory() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
    """A fresh saver in memory."""
    async with AsyncSaver() as saver:
        yield saver


async def test_all_eight_capabilities_are_detected_and_pass() -> None:
    """The suite skips what it does not detect, so the detection is asserted too."""
    report = await validate(memory)
    assert {name: (result.detected, result.passed, result.failures) for name, result in report.results.items()} == {
        name: (True, True, [])
        for name in (
            "put",
            "put_writes",
            "get_tuple",
            "list",
            "delete_thread",
            "delete_for_runs",
            "copy_thread",
            "prune",
        )
    }
