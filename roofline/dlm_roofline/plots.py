"""`dlm roofline`: pictures from records alone, and how far predictions are from what was measured.

A picture is a PNG and an SVG, and beside them a CSV of what it shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from dlm_core import PRESETS

from .acceptance import PUBLISHED, Profile, load_profile
from .advise.evidence import sizes_of
from .model_check import ERROR_HEADER, error_rows, model_check, outlier_lines, summary
from .records import RESULTS, Record, load, record_files

if TYPE_CHECKING:
    from .charts.chart import Chart

_SMALL_MODEL = RESULTS / "quality" / "acceptance.json"


def charts_of(record: Record, profiles: Sequence[Profile]) -> list[Chart]:
    """The pictures of a record, but for those it has no rows for.

    profiles: how many tokens a forward gives, for the picture that compares modes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    # Here and not above: what measures and reads records runs without matplotlib.
    from .charts.context import context_chart
    from .charts.floor_map import floor_map_chart
    from .charts.memory import memory_chart
    from .charts.model import model_chart
    from .charts.modes import modes_chart
    from .charts.roofline import roofline_chart
    from .charts.step import step_chart

    charts = [
        roofline_chart(record),
        step_chart(record),
        floor_map_chart(record),
        modes_chart(record, profiles),
        context_chart(record),
        memory_chart(record),
        model_chart(record),
    ]
    return [chart for chart in charts if chart is not None]


def profiles_of(record: Record) -> list[Profile]:
    """What was published for the record's models; of other models, as examples, what was published
    for the 8B one and what the small model's own answers gave.
    """
    sizes = [sizes_of(config) for config in record.models.values()]
    found = [profile for name, profile in PUBLISHED.items() if sizes_of(PRESETS[name]) in sizes]
    own = [load_profile(_SMALL_MODEL)] if _SMALL_MODEL.exists() else []
    return found or [PUBLISHED["8b"], *own]


def draw(record: Record, path: Path) -> list[Path]:
    """Write the pictures of a record beside `path`, named after it; returns what was written.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    return [file for _, files in _drawn(record, path) for file in files]


def _drawn(record: Record, path: Path) -> list[tuple[Chart, list[Path]]]:
    charts = charts_of(record, profiles_of(record))
    if not charts:
        return []
    from .charts.chart import save

    return [(chart, save(chart, record, path.with_name(path.stem))) for chart in charts]


def main(argv: list[str] | None = None) -> int:
    """`dlm roofline`: draw the pictures of records again; 0, or 1 if one cannot be read."""
    parser = argparse.ArgumentParser(
        prog="dlm roofline",
        description="Draw the pictures of records, from the records alone.",
        epilog="To learn which setting to run: `dlm roofline advise --help`.",
    )
    parser.add_argument("records", nargs="*", type=Path, metavar="RECORD", help="default: the"
                        " newest record in --out, or else all of bench/results")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out"), help="where pictures go")
    arguments = parser.parse_args(argv)
    paths = arguments.records or _newest(arguments.out) or record_files(RESULTS)
    if not paths:
        print(
            f"dlm roofline: no record in {arguments.out}/ or {RESULTS}/; `dlm bench` makes one",
            file=sys.stderr,
        )
        return 1
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            record = load(path)
            _print_errors(record, path)
            drawn = _drawn(record, arguments.out / path.name)
            for chart, (png, svg, table) in drawn:
                print(f"{png} ({svg.suffix}, {table.suffix}): {chart.about}")
            if not drawn:
                print(f"{path} holds no whole step to draw")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"dlm roofline: {error}", file=sys.stderr)
        return 1
    return 0


def _print_errors(record: Record, path: Path) -> None:
    """The table of the cost model's errors, a line for each outlier, and all in one line."""
    console, check = Console(soft_wrap=True, highlight=False), model_check(record)
    table = Table(*ERROR_HEADER, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for cells in error_rows(check):
        table.add_row(*cells)
    console.print(f"{path}: predicted / measured - 1, of stages and steps long enough to count")
    console.print(table)
    for line in outlier_lines(check):
        console.print(f"  {line}")
    console.print(f"{summary(check)}\n", style="bold")


def _newest(folder: Path) -> list[Path]:
    return sorted(record_files(folder), key=lambda path: path.stat().st_mtime)[-1:]
