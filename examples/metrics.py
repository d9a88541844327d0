"""The figures of a saver on OpenTelemetry, exported to the console.

    pip install 'async-saver[otel]' opentelemetry-sdk
    python examples/metrics.py

A server hands another exporter to the same reader (OTLP, Prometheus), and sets the meter provider where it sets up the
rest of its telemetry.
"""

import asyncio
import operator
from typing import Annotated, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricsData, PeriodicExportingMetricReader

from async_saver import AsyncSaver, Retention
from async_saver.otel import observe


class Notes(TypedDict):
    """What was said in a conversation."""

    said: Annotated[list[str], operator.add]


def lines(data: MetricsData) -> str:
    """Show a line for each value. Without this the exporter prints all of it as JSON."""
    found = []
    for metric in [one for r in data.resource_metrics for scope in r.scope_metrics for one in scope.metrics]:
        for point in metric.data.data_points:
            attributes = " ".join(f"{key}={value}" for key, value in point.attributes.items())
            found.append(f"   {metric.name} [{attributes}] {point.value} {metric.unit}")
    return "\n".join([*found, ""])


# Once a minute; what is shown below is asked for before.
reader = PeriodicExportingMetricReader(ConsoleMetricExporter(formatter=lines), export_interval_millis=60_000)
metrics.set_meter_provider(MeterProvider([reader]))

saver = AsyncSaver(retention=Retention(max_threads=5, keep_last=2))
observe(saver, attributes={"saver": "notes"})


def conversation(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


async def show() -> None:
    """Export now. That waits for the exporter, and so it is done in a worker thread."""
    await asyncio.to_thread(reader.force_flush)


async def main() -> None:
    builder = StateGraph(Notes)
    builder.add_node("answer", lambda notes: {"said": [f"answer {len(notes['said'])}"]})
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    graph = builder.compile(checkpointer=saver)

    print("1. Five conversations")
    await asyncio.gather(*(graph.ainvoke({"said": ["hello"]}, conversation(f"t{number}")) for number in range(5)))
    await show()

    print("2. Three more, of which one is open in a session; no more than five are kept")
    for number in range(5, 8):
        await graph.ainvoke({"said": ["hello"]}, conversation(f"t{number}"))
    async with saver.session("t7"):
        await show()

    print("3. The session is over; the last figures come as the process ends")


if __name__ == "__main__":
    asyncio.run(main())
