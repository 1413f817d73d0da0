"""The two pictures of a quality record."""

from collections.abc import Sequence
from pathlib import Path

from dlm_roofline.charts.chart import Chart

from . import acceptance_chart, frontier_chart
from .records import QualityRecord
from .tables import cell, frontier_lines


def charts_of(record: QualityRecord) -> list[Chart]:
    """The frontier, and which drafts are accepted.

    A record without results has no pictures, one without linear self-speculation only the first.
    """
    if not record.results:
        return []
    found = [
        _chart(
            frontier_chart.NAME,
            "Exact matches over tokens per forward",
            "Which setting gives most tokens for each forward, and what does it cost in answers?"
            " Up and to the right is better; nothing beats what stands on the grey staircase.",
            frontier_chart.frontier_chart(record),
            frontier_lines(record),
        )
    ]
    if (figure := acceptance_chart.acceptance_chart(record)) is not None:
        found.append(
            _chart(
                acceptance_chart.NAME,
                acceptance_chart.title_of(record),
                "How far into a block are drafts still right? The curves fall with the position"
                " behind the seed; the maps below show the same for each task.",
                figure,
                acceptance_chart.curve_lines(record),
            )
        )
    return found


def draw(record: QualityRecord, stem: Path) -> list[Path]:
    """Write `<stem>-frontier` and `<stem>-acceptance` as PNG and SVG; returns what was written."""
    written = []
    for chart in charts_of(record):
        for kind in ("png", "svg"):
            written.append(stem.with_name(f"{stem.name}-{chart.name}.{kind}"))
            chart.figure.savefig(written[-1], dpi=130)
    return written


def _chart(name: str, title: str, about: str, figure, lines: Sequence[dict]) -> Chart:
    """Lines of cells by name, as a chart's header and rows."""
    header = list(lines[0]) if lines else []
    rows = [
        ["" if value is None else str(cell(value)) for value in each.values()] for each in lines
    ]
    return Chart(name, title, about, figure, header, rows)
