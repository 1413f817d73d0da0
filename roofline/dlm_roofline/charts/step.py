"""What the time of a step is made of, stage by stage, and where its floor lies."""

from collections.abc import Collection

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..points import panel_title, panels_of, subject_of
from ..records import BenchRecord
from ..step_cost import STAGES
from ..text import three_digits
from .chart import Chart, Marks
from .style import DARK, LOOKS, stacked, styled, write_title

NAME = "step"
TITLE = "What the time of each forward is made of"
ABOUT = (
    "Which stage takes the time of a forward, and how much of it could go? Each bar is a measured"
    " forward split into its stages, each timed alone; the dashed line is the predicted floor of"
    " the whole of it."
)

_PANEL, _WORDS = 2.1, 2.0  # inches
_DASHES = (0, (2, 1))
_LEAST_BARS = 4  # fewer are as wide as so many would be
_HIGHEST = 1.4  # of a step's time, that the axis shows; what lies above it is written down


@styled
def step_chart(record: BenchRecord, points: pd.DataFrame) -> Chart | None:
    """A panel a kind of forward, a bar a measured batch: its stages, stacked, as shares of the
    whole forward's measured time. None for a record of cycles alone, which have no panel.
    """
    if not (panels := panels_of(points)):
        return None
    marks = Marks(NAME)
    figure, drawn = stacked(len(panels), _WORDS + _PANEL * len(panels))
    write_title(figure, record, TITLE, *subject_of(points))
    for axes, panel in zip(drawn, panels.values(), strict=True):
        steps = panel[panel.kind == "step"].to_dict("records")
        for x, step in enumerate(steps):
            stages = panel[(panel.batch == step["batch"]) & (panel.kind == "stage")]
            _draw_bar(axes, x, step, stages.to_dict("records"), marks)
        labels = [f"{step['batch']}\n{three_digits(1e3 * step['measured_s'])}" for step in steps]
        axes.set_xticks(range(len(steps)), labels)
        middle, half = (len(steps) - 1) / 2, max(len(steps), _LEAST_BARS) / 2 + 0.1
        axes.set(title=panel_title(panel), xlim=(middle - half, middle + half))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        names = {"xytext": (-6, -6), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate("batch\nms", (0, 0), xycoords="axes fraction", **names)
    highest = max(axes.dataLim.y1 for axes in drawn)
    for axes in drawn:
        axes.set_ylim(0, 1.06 * highest)
    _draw_legend(figure, panels.values())
    return marks.chart(TITLE, ABOUT, figure)


def _draw_bar(axes: Axes, x: int, step: dict, stages: list[dict], marks: Marks) -> None:
    whole, bottom, ends = step["measured_s"], 0.0, [x - 0.4, x + 0.4]
    for stage in stages:
        look, share = LOOKS[stage["name"]], stage["measured_s"] / whole
        style = {"color": look.color, "edgecolor": "black", "hatch": look.hatch, "linewidth": 0.6}
        (bar,) = axes.bar(x, share, 0.64, bottom, **style)
        marks.add({**stage, "share_of_step": share}, bar)
        bottom += share
    (line,) = axes.plot(ends, [1, 1], color="black", linewidth=1.6)
    marks.add({**step, "share_of_step": 1.0}, line)
    floor = [step["share_of_roof"]] * 2
    axes.plot(ends, floor, color="white", linewidth=4)  # keeps the dashes apart from the hatches
    axes.plot(ends, floor, color="black", linewidth=2.4, linestyle=_DASHES)
    plain = step["plain_torch_s"] / whole
    if plain <= _HIGHEST:
        axes.plot(x, plain, "X", color="black", mec="white", ms=9)
    elif plain > _HIGHEST:  # and not NaN
        axes.plot(x, _HIGHEST, "^", color="black", mec="white", ms=9)
        at = {"xytext": (0, -6), "textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(f"{plain:.2g}×", (x, _HIGHEST), **at)


def _draw_legend(figure: Figure, panels: Collection[pd.DataFrame]) -> None:
    shown = {name for panel in panels for name in panel.name}
    handles = [
        Patch(facecolor=LOOKS[name].color, edgecolor="black", hatch=LOOKS[name].hatch,
              label=LOOKS[name].short)
        for name in STAGES if name in shown
    ]  # fmt: skip
    handles += [
        Line2D([], [], color="black", linewidth=1.6, label="whole forward, measured"),
        Line2D(
            [], [], color="black", linewidth=2.4, linestyle=_DASHES, label="its floor, predicted"
        ),
    ]
    if any(panel.plain_torch_s.notna().any() for panel in panels):
        handles.append(Line2D([], [], marker="X", label="plain torch (▲ off the scale)", **DARK))
    figure.legend(handles=handles, loc="outside lower left", ncols=2, handleheight=1.2)
