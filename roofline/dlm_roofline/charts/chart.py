"""What every picture is: a figure, the words that go with it, and a table of what it shows."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from ..records import Record
from ..text import with_prefix
from .style import caches_of

# Text stays text, and the same record gives the same bytes.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "dlm"}
_DPI = 130


@dataclass(frozen=True)
class Chart:
    """A picture and its table.

    name: part of its files' names.
    title: its headline.
    about: the question it answers and how to read it, in two sentences at most.
    header, rows: its CSV. The mark that shows row i has the id `mark_id(name, i)`, in the SVG too.
    """

    name: str
    title: str
    about: str
    figure: Figure
    header: list[str]
    rows: list[list[str]]


def mark_id(name: str, row: int) -> str:
    """Id of the mark that shows a row of a chart's CSV; artists take it as their gid."""
    return f"{name}-{row}"


@dataclass
class Rows:
    """A chart's rows, gathered while their marks are drawn."""

    name: str
    cells: list[list[str]] = field(default_factory=list)

    def add(self, mark: Artist, cells: list[str]) -> None:
        """One more row, and the mark that shows it."""
        mark.set_gid(mark_id(self.name, len(self.cells)))
        self.cells.append(cells)


def save(chart: Chart, record: Record, stem: Path) -> list[Path]:
    """Write `<stem>-<name>` as PNG, SVG and CSV; returns the three paths."""
    png, svg, table = (
        stem.with_name(f"{stem.name}-{chart.name}.{kind}") for kind in ("png", "svg", "csv")
    )
    chart.figure.savefig(png, dpi=_DPI)
    with matplotlib.rc_context(_SVG):
        chart.figure.savefig(svg, metadata={"Date": None})
    with table.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in _facts(chart, record))
        csv.writer(file, lineterminator="\n").writerows([chart.header, *chart.rows])
    return [png, svg, table]


def _facts(chart: Chart, record: Record) -> Iterator[tuple[str, object]]:
    """Where the figures come from, by name."""
    yield "picture", chart.title
    yield "device", record.device.name
    yield from record.device.details.items()
    yield from record.versions.items()
    yield "backend", record.backend
    yield "commit", record.commit + (" with local changes" if record.dirty else "")
    yield "date", record.date
    yield "run", "complete" if record.complete else "incomplete"
    yield "caches", caches_of(record)
    for name in ("read", "copy", "write"):
        yield f"{name} bandwidth", with_prefix(getattr(record.ceilings, name).best, "B/s")
    for dtype, ceiling in record.ceilings.matmul.items():
        unit = "op/s" if dtype == "int8" else "FLOP/s"
        yield f"{dtype} peak", with_prefix(ceiling.best, unit)
