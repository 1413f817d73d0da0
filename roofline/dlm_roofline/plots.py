"""`dlm roofline`: pictures from records alone, and how far predictions are from what was measured.

A picture is a PNG and an SVG, and beside them a CSV of what it shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from .acceptance import SMALL_MODEL_PROFILE, load_profile, published_for
from .model_check import error_table
from .points import points_of, subject_of
from .records import OUT, RESULTS, BenchRecord, default_records, read
from .tables import show
from .text import with_prefix

if TYPE_CHECKING:
    from .charts.chart import Chart


def charts_of(record: BenchRecord) -> list[Chart]:
    """The pictures of a record, but for those it has no rows for.

    Raises:
        ModuleNotFoundError: matplotlib or pandas is not installed.
    """
    # Here and not above: what measures and reads records runs without matplotlib.
    from .charts.context import context_chart
    from .charts.modes import modes_chart
    from .charts.roofline import roofline_chart
    from .charts.step import step_chart

    points = points_of(record)
    if points is None:
        return []
    model, *_ = subject_of(points)
    # As published for this model, or as the small model's own answers gave it.
    profile = published_for(record.models[model]) or load_profile(SMALL_MODEL_PROFILE)
    charts = [
        roofline_chart(record, points),
        step_chart(record, points),
        modes_chart(record, points, profile),
        context_chart(record, points),
    ]
    return [chart for chart in charts if chart is not None]


def draw(record: BenchRecord, path: Path) -> list[Path]:
    """Write the pictures of a record beside `path`, named after it; returns what was written.

    Raises:
        ModuleNotFoundError: matplotlib or pandas is not installed.
    """
    return [file for _, files in _drawn(record, path) for file in files]


def _drawn(record: BenchRecord, path: Path) -> Iterator[tuple[Chart, list[Path]]]:
    from .charts.chart import save

    for chart in charts_of(record):
        yield chart, save(chart, path.with_suffix(""), facts_of(record, chart).items())


def facts_of(record: BenchRecord, chart: Chart) -> dict[str, object]:
    """What stands above a chart's CSV."""
    rates = {f"{name} bandwidth": getattr(record.ceilings, name) for name in ("read", "copy")}
    rates = {name: with_prefix(rate.best, "B/s") for name, rate in rates.items()}
    peaks = {
        f"{dtype} peak": with_prefix(each.best, "op/s" if dtype == "int8" else "FLOP/s")
        for dtype, each in record.ceilings.matmul.items()
    }
    return {"picture": chart.title, **record.facts, **rates, **peaks}


def main(argv: list[str] | None = None) -> int:
    """`dlm roofline`: draw the pictures of records again; 0, or 1 if one cannot be read."""
    parser = argparse.ArgumentParser(
        prog="dlm roofline",
        description="Draw the pictures of records, from the records alone.",
        epilog="To learn which setting to run: `dlm roofline advise --help`.",
    )
    parser.add_argument("records", nargs="*", type=Path, metavar="RECORD", help="default: each"
                        " device's newest, of the committed ones and those in --out")  # fmt: skip
    parser.add_argument("--out", type=Path, default=OUT, help="where pictures go")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        named = [(path.name, read(BenchRecord, path)) for path in arguments.records]
        found = named or [(each.file_name, each) for each in default_records(arguments.out)]
        if not found:
            raise ValueError(f"no record in {arguments.out}/ or {RESULTS}/; `dlm bench` makes one")
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, record in found:
            console.print(f"\n{name}", style="bold")
            show(error_table(record), console)
            for chart, (png, svg, table) in _drawn(record, arguments.out / name):
                print(f"{png} ({svg.suffix}, {table.suffix}): {chart.about}")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"dlm roofline: {error}", file=sys.stderr)
        return 1
    return 0
