"""The model picture: what was predicted of each stage and step against what it took."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..model_check import (
    MEDIAN_TARGET,
    WORST_TARGET,
    Checked,
    ModelCheck,
    model_check,
    summary,
)
from ..records import Record
from ..step_cost import STAGES
from .chart import Chart, Rows
from .style import FONT_SIZE, LOOKS, write_title

NAME = "model"
_TITLE = "What the cost model predicts, and what it took"
_HEADER = ["name", "kind", "model", "forward", "batch", "block", "context", "weights"]
_HEADER += ["float8_cache", "measured_s", "pace", "predicted_s", "error", "held_by", "counts"]


def model_chart(record: Record) -> Chart | None:
    """Log-log, predicted over measured seconds, with the bands of both targets; None if the record
    has no stages and no steps.
    """
    check = model_check(record)
    if not check.all:
        return None
    figure = Figure(figsize=(10, 8.5))
    axes = figure.add_axes((0.10, 0.10, 0.86, 0.70))
    write_title(
        figure, record, _TITLE, ", ".join(dict.fromkeys(each.row.model for each in check.all))
    )
    said = summary(check).replace("; ", "\n")
    figure.text(0.10, 0.81, said, fontsize=FONT_SIZE, fontweight="bold", va="bottom")

    times = [each.row.timing.paced for each in check.all]
    times += [each.predicted.seconds for each in check.all]
    low, high = min(times) / 1.6, max(times) * 1.6
    ends = np.array([low, high])
    for target, shade in ((WORST_TARGET, "#e6e6e6"), (MEDIAN_TARGET, "#c8c8c8")):
        axes.fill_between(ends, ends * (1 - target), ends * (1 + target), color=shade, lw=0)
    axes.plot(ends, ends, color="black", linewidth=1)
    rows = Rows(NAME)
    counted = set(map(id, check.counted))
    for each in check.all:
        look, counts = LOOKS[each.row.name], id(each) in counted
        mark = axes.plot(
            each.row.timing.paced,
            each.predicted.seconds,
            look.marker,
            color=look.color,
            markerfacecolor=look.color if counts else "none",
            markeredgecolor="black" if counts else look.color,
            markeredgewidth=0.6,
            markersize=8,
        )[0]
        rows.add(mark, _cells(each, counts))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    paced = any(each.row.timing.pace for each in check.all)
    at = ", at the pace of the run's beginning" if paced else ""
    axes.set_xlabel(f"measured, s{at}", fontsize=FONT_SIZE)
    axes.set_ylabel("predicted, s", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_legend(axes, check)
    about = (
        "How far can the predictions be trusted? On the line they are exact, within the dark band"
        f" {MEDIAN_TARGET:.0%} off and within the light one {WORST_TARGET:.0%}; hollow marks are"
        " too short to count."
    )
    return Chart(NAME, _TITLE, about, figure, _HEADER, rows.cells)


def _draw_legend(axes, check: ModelCheck) -> None:
    names = {each.row.name for each in check.all}
    shown = [name for name in STAGES if name in names]
    marks = [(LOOKS[name], LOOKS[name].short) for name in shown]
    steps = [name for name in LOOKS if name in names and name not in STAGES]
    marks += [(LOOKS[name], "whole step") for name in steps[:1]]
    handles = [
        Line2D([], [], marker=look.marker, color=look.color, markeredgecolor="black", ms=8, ls="",
               label=label)
        for look, label in marks
    ]  # fmt: skip
    axes.legend(handles=handles, loc="upper left", fontsize=FONT_SIZE, frameon=False)


def _cells(each: Checked, counts: bool) -> list[str]:
    row, forward = each.row, each.row.forward
    cells = [row.name, row.kind, row.model, forward.kind]
    cells += [str(forward.batch), str(forward.block), str(forward.context)]
    cells += [forward.weights or row.dtype, "yes" if forward.float8_cache else "no"]
    cells += [f"{row.timing.median:.6g}"]
    cells += ["" if row.timing.pace is None else f"{row.timing.pace:.4f}"]
    cells += [f"{each.predicted.seconds:.6g}", f"{each.error:+.4f}", each.predicted.held_by]
    return [*cells, "yes" if counts else "no"]
