"""The official conformance suite: all eight capabilities, detected and passed."""

from collections.abc import AsyncGenerator

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate

from async_saver import AsyncSaver
from tests.stores import NewStore

pytestmark = pytest.mark.anyio


async def test_all_eight_capabilities_are_detected_and_pass(new_store: NewStore) -> None:
    """The suite skips what it does not detect, so the detection is asserted too."""

    @checkpointer_test(name="AsyncSaver")
    async def fresh() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
        """A fresh saver."""
        async with AsyncSaver(store=new_store()) as saver:
            yield saver

    report = await validate(fresh)
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
