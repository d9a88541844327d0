"""What was measured, as Markdown and as a chart."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from peers import LIMIT, OURS, POSTGRES, SQLITE, THEIRS

PACKAGES = (
    "async-saver",
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-sqlite",
    "langchain-core",
    "pydantic",
    "ormsgpack",
    "anyio",
)

Figures = Mapping[str, Sequence[float]]
"""By saver: what was measured, one figure a round."""


@dataclass(frozen=True)
class Bar:
    """What is wanted.

    Attributes:
        limit: The figure.
        least: Whether more is better.
        of: What is held against it: "ratio", or the unit of AsyncSaver's own figure.
    """

    limit: float
    least: bool = False
    of: str = "ratio"

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.limit:g}{'' if self.of == 'ratio' else f' {self.of}'}"

    def met(self, figure: float) -> bool:
        """Return whether a figure is as good as is wanted."""
        return figure >= self.limit if self.least else figure <= self.limit


def at_most(limit: float) -> Bar:
    """Return what is wanted of a ratio of which less is better."""
    return Bar(limit)


def at_least(limit: float) -> Bar:
    """Return what is wanted of a ratio of which more is better."""
    return Bar(limit, least=True)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        unit: Of the figures.
        figures: What was measured.
        bar: What is wanted of AsyncSaver.
        against: The saver whose figures of the same round AsyncSaver's are divided by.
        ratios: Those, where it is not so simple.
    """

    what: str
    unit: str
    figures: Figures
    bar: Bar | None = None
    against: str = THEIRS
    ratios: Sequence[float] = field(default_factory=list)

    def all_ratios(self) -> list[float]:
        """Return the ratios of all rounds, the lowest first."""
        if self.ratios or self.against not in self.figures:
            return sorted(self.ratios)
        return sorted(a / b for a, b in zip(self.figures[OURS], self.figures[self.against], strict=True))

    def met(self) -> bool | None:
        """Return whether AsyncSaver is as good as is wanted; None where nothing is."""
        if self.bar is None:
            return None
        judged = self.all_ratios() if self.bar.of == "ratio" else self.figures[OURS]
        return self.bar.met(median(judged))


@dataclass(frozen=True)
class Section:
    """A table, with what to know to read it."""

    title: str
    note: str
    rows: Sequence[Row]


def number(figure: float) -> str:
    """Return a number with three digits that count."""
    digits = 0 if figure >= 100 else 1 if figure >= 10 else 2 if figure >= 1 else 3
    return f"{figure:,.{digits}f}"


def _ratio(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    if len(ratios) == 1:
        return number(ratios[0])
    lower, middle, upper = map(number, quantiles(ratios, method="inclusive"))
    return f"{middle} ({lower} to {upper})"


def _verdict(row: Row) -> str:
    if row.bar is None:
        return ""
    return f"{row.bar}, {'met' if row.met() else '**missed**'}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(section: Section) -> str:
    """Return a section in Markdown: medians of the rounds, and the quartiles of the ratios."""
    savers = [
        name for name in (OURS, THEIRS, LIMIT, SQLITE, POSTGRES) if any(name in row.figures for row in section.rows)
    ]
    lines = [
        _line(["", *savers, "ratio", "wanted"]),
        _line(["---", *["---:"] * len(savers), "---", "---"]),
    ]
    for row in section.rows:
        figures = [f"{number(median(row.figures[name]))} {row.unit}" if name in row.figures else "" for name in savers]
        lines.append(_line([row.what, *figures, _ratio(row.all_ratios()), _verdict(row)]))
    return "\n".join([f"### {section.title}", "", section.note, "", *lines])


def machine() -> str:
    """Return where and with what this runs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    processor = names[0] if names else platform.processor() or platform.machine()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{processor}, {cores} cores, {platform.system()}; {python}; {packages}."


def markdown(sections: Sequence[Section], remark: str) -> str:
    """Return all that was measured."""
    rows = [row for row in chain.from_iterable(section.rows for section in sections) if row.bar is not None]
    met = sum(bool(row.met()) for row in rows)
    head = f"{machine()}\n\n{remark}Medians of the rounds; ratios with their quartiles. Met: {met} of {len(rows)}."
    return "\n\n".join([head, *map(table, sections)]) + "\n"


COLORS = {OURS: "#2f6db3", THEIRS: "#9aa5b1", LIMIT: "#c9d2da", SQLITE: "#d9a55b"}


def chart(path: str, panels: Sequence[tuple[str, Sequence[Row]]]) -> None:
    """Draw horizontal bars, a panel for each title, a group for each row; the file depends on the figures alone."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "async_saver", "font.size": 9, "font.family": "DejaVu Sans"})
    from matplotlib import pyplot

    heights = [_height(rows) for _, rows in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(7.2, 0.22 * sum(heights) + 0.45 * len(panels)),
        height_ratios=heights,
        facecolor="white",
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, rows) in zip(axes.flat, panels, strict=True):
        _draw(axis, title, rows)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    pyplot.close(figure)


GAP = 0.6  # between groups, in bars


def _height(rows: Sequence[Row]) -> float:
    return sum(len(row.figures) + GAP for row in rows) - GAP


def _draw(axis: Any, title: str, rows: Sequence[Row]) -> None:
    place, most = 0.0, max(median(rounds) for row in rows for rounds in row.figures.values())
    labels: dict[float, str] = {}
    for row in rows:
        for name, rounds in row.figures.items():
            value = median(rounds)
            axis.barh(place, value, height=0.8, color=COLORS[name])
            axis.text(value + most / 100, place, f"{number(value)} {row.unit}", va="center")
            labels[place] = f"{row.what}  {name}" if name == OURS and len(rows) > 1 else name
            place += 1
        place += GAP
    axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axis.set_yticks(list(labels), list(labels.values()))
    axis.set_xlim(0, most * 1.15)
    axis.set_ylim(_height(rows) - 0.5, -0.5)  # the first at the top
    axis.tick_params(length=0)
    axis.set_xticks([])
    for side in axis.spines.values():
        side.set_visible(False)
