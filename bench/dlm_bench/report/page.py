"""The page: what the template is fed with."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from dlm_roofline.charts.chart import Chart
from dlm_roofline.plots import charts_of
from dlm_roofline.records import BenchRecord, Record
from dlm_roofline.tables import Table

from .. import tables as bench_tables
from ..quality import charts as quality_charts
from ..quality import tables as quality_tables
from ..quality.records import QualityRecord
from . import findings
from .figures import inline_svg
from .player import Run


@dataclass(frozen=True)
class Section:
    """What one record shows.

    key: its id, and what those of its charts begin with.
    name: what the list of contents calls it.
    findings: headings by the name of a chart; "record" is that of the section.
    """

    key: str
    name: str
    record: Record
    findings: dict[str, str]
    charts: list[Chart]
    tables: list[Table]


def page(
    records: Sequence[BenchRecord],
    quality: QualityRecord | None,
    runs: Sequence[Run],
    missing: Sequence[str],
) -> str:
    """The whole report as HTML, a function of its arguments alone.

    Args:
        runs: what `player.runs` gives.
        missing: what could not be shown and why, in sentences.
    """
    sections = []
    for i, record in enumerate(records, start=1):
        name, found = f"{record.device.label}, {record.backend}", dict(findings.of_bench(record))
        parts = charts_of(record), bench_tables.tables(record)
        sections.append(Section(f"record-{i}", name, record, found, *parts))
    if quality is not None:
        parts = quality_charts.charts_of(quality), quality_tables.tables(quality)
        frames = {chart.name: chart.frame for chart in parts[0]}
        found = dict(findings.of_quality(quality, frames))
        sections.append(Section("quality", "Answers beside speed", quality, found, *parts))
    loader = PackageLoader(__package__, "")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return templates.get_template("page.html").render(
        sections=sections,
        runs=runs,
        runs_heading=findings.of_runs(runs),
        missing=missing,
        svg=inline_svg,
        rows_of=rows_of,
    )


def rows_of(chart: Chart) -> Table:
    """A chart's frame, a line a mark."""
    numbers = chart.frame.select_dtypes("float").columns
    return Table("Rows of the picture", chart.frame, [], dict.fromkeys(numbers, "{:.4g}".format))
