"""AsyncSaver against other savers, as a table in Markdown and a chart: all the figures that this project states."""

# ruff: noqa: T201

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from calls import LATE, heartbeat, history, operations, serde
from measure import QUICK, Rounds
from report import Row, Section, chart, markdown
from runs import AT_20, AT_200, HELD, agent, memory, sync

SECTIONS: dict[str, Callable[[Rounds], Section]] = {
    "agent": agent,
    "operations": operations,
    "history": history,
    "memory": memory,
    "heartbeat": heartbeat,
    "serde": serde,
    "sync": sync,
}

PANELS = (
    ("A ReAct agent (more is better)", (AT_20, AT_200)),
    ("Memory held for its conversations of 200 messages (less is better)", (HELD,)),
    ("Delay of other tasks beside 5,000 messages, p99 (less is better)", (LATE,)),
)


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, figures less sure; no AsyncSqliteSaver")
    parser.add_argument("--markdown", metavar="PATH", help="write the table there too")
    parser.add_argument("--svg", metavar="PATH", help="draw the chart there (needs matplotlib)")
    return parser.parse_args()


def panels(sections: Sequence[Section]) -> list[tuple[str, list[Row]]]:
    """Return what the chart can show of what was measured."""
    rows = {row.what: row for section in sections for row in section.rows}
    shown = [(title, [rows[what] for what in wanted if what in rows]) for title, wanted in PANELS]
    return [(title, found) for title, found in shown if found]


def main() -> None:
    """Measure, print, and draw."""
    asked = arguments()
    os.environ["LANGSMITH_TRACING_V2"] = "false"  # else LangChain would send every run away
    rounds = QUICK if asked.quick else Rounds()
    sections = []
    for name, section in SECTIONS.items():
        if not asked.only or name in asked.only:
            begun = perf_counter()
            sections.append(section(rounds))
            print(f"{name}: {perf_counter() - begun:.0f} s", file=sys.stderr)
    text = markdown(sections, "Few rounds (`--quick`). " if asked.quick else "")
    print(text)
    if asked.markdown:
        Path(asked.markdown).write_text(text, "utf-8")
    if asked.svg and panels(sections):
        chart(asked.svg, panels(sections))


if __name__ == "__main__":
    main()
