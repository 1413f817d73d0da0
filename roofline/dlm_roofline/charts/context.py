"""What context costs: step time over context at fixed batches, and its slope."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..forward import DECODE, DENOISE, STEP_NAMES
from ..points import subject_of
from ..records import BenchRecord
from ..text import three_digits
from .chart import Chart, Marks
from .style import DARK, DASHED, plain_numbers, stacked, styled, write_title

NAME = "context"
TITLE = "What a token of context costs"
ABOUT = (
    "How much longer does a step take for each token of its requests' contexts? Marks are measured,"
    " with the straight line nearest to them; hollow ones are predicted, and both slopes stand over"
    " each panel."
)

_PANEL, _WORDS = 2.9, 1.6  # inches
_LOOKS = [("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^")]  # a line each


@styled
def context_chart(record: BenchRecord, points: pd.DataFrame) -> Chart | None:
    """A panel for denoising and one for AR decoding, a line for the least, the middle and the
    largest batch. None for a record that holds no such step behind two contexts or more.
    """
    if not (panels := _panels(points)):
        return None
    figure, drawn = stacked(len(panels), _WORDS + _PANEL * len(panels))
    write_title(figure, record, TITLE, *subject_of(points))
    marks = Marks(NAME)
    for axes, lines in zip(drawn, panels.values(), strict=True):
        legend = [
            _draw_line(axes, line, *look, marks) for line, look in zip(lines, _LOOKS, strict=False)
        ]
        _dress(axes, lines)
        axes.legend(handles=legend, loc="lower left", bbox_to_anchor=(-0.02, 1), borderpad=0)
    handles = [
        Line2D([], [], marker="o", label="measured", **DARK),
        Line2D([], [], color="black", lw=1.4, label="nearest straight line"),
        Line2D(
            [], [], color="black", lw=1.2, ls=DASHED, marker="o", mfc="white", label="predicted"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return marks.chart(TITLE, ABOUT, figure)


def _panels(points: pd.DataFrame) -> dict[str, list[pd.DataFrame]]:
    """By kind, at its commonest block, steps over growing context, those of a batch together."""
    found = {}
    for kind in (DENOISE, DECODE):
        steps = points[(points.kind == "step") & (points.forward == kind)]
        steps = steps[steps.block.isin(steps.block.mode()[:1])].sort_values("context")
        lines = [line for _, line in steps.groupby("batch") if len(line) > 1]
        if lines:
            ends = sorted({0, len(lines) // 2, len(lines) - 1})
            found[kind] = [lines[i] for i in ends]
    return found


def _draw_line(axes: Axes, line: pd.DataFrame, color: str, marker: str, marks: Marks) -> Line2D:
    """Returns what stands for it in a legend."""
    contexts = line.context.to_numpy(float)
    slope, at_none = np.polyfit(contexts, line.measured_s, 1)
    predicted_slope = np.polyfit(contexts, line.predicted_s, 1)[0]
    xs = np.geomspace(max(1, contexts[0]), contexts[-1], 60)
    fitted = at_none + slope * xs
    axes.plot(xs[fitted > 0], 1e3 * fitted[fitted > 0], color=color, lw=1.4)
    hollow = {"marker": marker, "mfc": "white", "ms": 5, "linestyle": DASHED, "lw": 1.2}
    axes.plot(contexts, 1e3 * line.predicted_s, color=color, **hollow)
    slopes = {"measured_slope_ns": 1e9 * slope, "predicted_slope_ns": 1e9 * predicted_slope}
    for step in line.to_dict("records"):
        at = step["context"], 1e3 * step["measured_s"]
        (mark,) = axes.plot(*at, marker, color=color, ms=7, zorder=3)
        marks.add({**step, **slopes}, mark)
    measured, predicted = (three_digits(each) for each in slopes.values())
    label = f"batch {line.batch.iloc[0]}: {measured} ns a token, predicted {predicted}"
    return Line2D([], [], color=color, marker=marker, ms=7, lw=1.4, label=label)


def _dress(axes: Axes, lines: list[pd.DataFrame]) -> None:
    first = lines[0].iloc[0]
    contexts = sorted({context for line in lines for context in line.context})
    if contexts[0] == 0:  # which a logarithm has no place for
        axes.set_xscale("symlog", linthresh=contexts[1], linscale=0.6)
    else:
        axes.set_xscale("log")
    axes.set_xticks(contexts, [_in_k(context) for context in contexts])
    axes.xaxis.minorticks_off()
    axes.set(yscale="log", ylabel="ms", xlabel="tokens of context a request")
    axes.grid(True, axis="y")
    block = f", block {first.block}" if first.forward == DENOISE else ""
    axes.set_title(STEP_NAMES[first.forward] + block, pad=10 + 14 * len(lines))
    plain_numbers(axes)


def _in_k(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
