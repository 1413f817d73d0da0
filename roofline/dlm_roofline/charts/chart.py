"""What every picture is: a figure, the words that go with it, and a table of what it shows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from ..tables import write_csv

# Text stays text, and the same record gives the same bytes.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "dlm"}
_DPI = 180


@dataclass(frozen=True)
class Chart:
    """A picture and its table.

    name: part of its files' names.
    title: its headline.
    about: the question it answers and how to read it, in two sentences at most.
    frame: its CSV. The mark that shows row i has the gid `mark_id(name, i)`, in the SVG too.
    """

    name: str
    title: str
    about: str
    figure: Figure
    frame: pd.DataFrame


def mark_id(name: str, row: int) -> str:
    """Id of the mark that shows a row of a chart's frame."""
    return f"{name}-{row}"


@dataclass
class Marks:
    """A chart's rows, gathered while their marks are drawn, so that no row lacks its mark."""

    name: str
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, row: Mapping[str, object], *marks: Artist) -> None:
        """One more row and what shows it; ids of its marks after the first end in ".2", ".3"."""
        name = mark_id(self.name, len(self.rows))
        for i, mark in enumerate(marks, start=1):
            mark.set_gid(name if i == 1 else f"{name}.{i}")
        self.rows.append(dict(row))

    def chart(self, title: str, about: str, figure: Figure) -> Chart:
        """The finished chart; its parts stay where they are from now on."""
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
        return Chart(self.name, title, about, figure, pd.DataFrame(self.rows))


def save(chart: Chart, stem: Path, facts: Iterable[tuple[str, object]]) -> list[Path]:
    """Write `<stem>-<name>` as PNG, SVG and CSV, the facts above the CSV; returns the paths."""
    png, svg, table = (
        stem.with_name(f"{stem.name}-{chart.name}.{kind}") for kind in ("png", "svg", "csv")
    )
    chart.figure.savefig(png, dpi=_DPI)
    with matplotlib.rc_context(_SVG):
        chart.figure.savefig(svg, metadata={"Date": None})
    return [png, svg, write_csv(chart.frame, table, facts)]
