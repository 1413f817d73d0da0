"""What each stage takes of a forward's time, over batch, and how low the floor lies."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..points import POINT_HEADER, Point, Subject, Trail, point_cells, subject_of
from ..records import Record
from ..step_cost import STAGES
from ..text import three_digits
from .chart import Chart, Rows
from .style import FONT_SIZE, LOOKS, write_title

NAME = "step"
TITLE = "What the time of each forward is made of"

_TOP, _PANEL, _ALONE, _GAP, _LEGEND = 1.15, 3.1, 4.4, 1.15, 1.25  # inches
_DASHED = (0, (2, 1))
_LEAST_BARS = 4  # fewer are as wide as so many would be
_HIGHEST = 1.4  # of a step's time, that the axis shows; what lies above it is written down


def step_chart(record: Record) -> Chart | None:
    """A panel a kind of forward, a bar a measured batch: its stages, stacked, as shares of the
    whole forward's measured time. None for a record without a whole step.
    """
    subject = subject_of(record)
    if subject is None:
        return None
    panels = len(subject.trails)
    panel_rows, panel_height = (panels + 1) // 2, _ALONE if panels == 1 else _PANEL
    height = _TOP + panel_rows * (panel_height + _GAP) + _LEGEND
    figure = Figure(figsize=(10, height))
    write_title(figure, record, TITLE, *subject.words)
    rows, first = Rows(NAME), None
    for i, trail in enumerate(subject.trails.values()):
        width = 0.86 if panels == 1 else 0.415
        bottom = _LEGEND + (panel_rows - 1 - i // 2) * (panel_height + _GAP) + _GAP - 0.3
        axes = figure.add_axes(
            (0.12 + i % 2 * 0.45, bottom / height, width, panel_height / height), sharey=first
        )
        first = first or axes
        _draw_bars(axes, subject, trail, rows)
        _set_words(axes, subject, trail, left=i % 2 == 0)
    first.set_ylim(0, max(1.06, *(axes.dataLim.y1 * 1.08 for axes in figure.axes)))
    _draw_legend(figure, subject, _LEGEND / height)
    about = (
        "Which stage takes the time of a forward, and how much of it could go? Each bar is a"
        " measured forward split into its stages; the dashed line is the predicted floor of the"
        " whole of it."
    )
    return Chart(NAME, TITLE, about, figure, [*POINT_HEADER, "share_of_step"], rows.cells)


def _draw_bars(axes: Axes, subject: Subject, trail: Trail, rows: Rows) -> None:
    def cells(point: Point, share: float) -> list[str]:
        return [*point_cells(point, subject.model, subject.roof), f"{share:.4f}"]

    for x, step in enumerate(trail.measured):
        bottom = 0.0
        for stage in trail.stages[step.batch]:
            look, share = LOOKS[stage.name], stage.measured / step.measured
            style = {"color": look.color, "edgecolor": "black", "hatch": look.hatch}
            (bar,) = axes.bar(x, share, 0.64, bottom, linewidth=0.6, **style)
            rows.add(bar, cells(stage, share))
            bottom += share
        (whole,) = axes.plot([x - 0.4, x + 0.4], [1, 1], color="black", linewidth=2)
        rows.add(whole, cells(step, 1.0))
        floor = step.floor / step.measured
        # White under the dashes keeps them apart from the hatches.
        axes.plot([x - 0.4, x + 0.4], [floor, floor], color="white", linewidth=4.5)
        axes.plot([x - 0.4, x + 0.4], [floor, floor], color="black", linewidth=3, ls=_DASHED)
        if plain := trail.plain.get(step.batch):
            _draw_plain(axes, x, plain / step.measured)


def _draw_plain(axes: Axes, x: float, share: float) -> None:
    """A cross; above the axis' end an arrow and the number."""
    style = {"color": "black", "markeredgecolor": "white", "markersize": 11}
    axes.plot(x, min(share, _HIGHEST), "X" if share <= _HIGHEST else "^", **style)
    if share > _HIGHEST:
        here = {"xytext": (0, -9), "textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(f"{share:.2g}×", (x, _HIGHEST), fontsize=FONT_SIZE, **here)


def _set_words(axes: Axes, subject: Subject, trail: Trail, *, left: bool) -> None:
    steps = trail.measured
    times = [(three_digits(s.measured * 1e3), three_digits(s.floor * 1e3)) for s in steps]
    axes.set_xticks(
        range(len(steps)),
        [f"{step.batch}\n{ms}\n{floor}" for step, (ms, floor) in zip(steps, times, strict=True)],
    )
    middle, half = (len(steps) - 1) / 2, max(len(steps), _LEAST_BARS) / 2 + 0.1
    axes.set_xlim(middle - half, middle + half)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(labelsize=FONT_SIZE, labelleft=left)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        subject.panel_words(trail), loc="left", fontsize=FONT_SIZE, fontweight="bold", pad=5
    )
    if left:
        axes.set_ylabel("share of measured time", fontsize=FONT_SIZE)
        names = {"xytext": (-12, -6.5), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate(
            "batch\nms\nfloor ms", (0, 0), xycoords="axes fraction", fontsize=FONT_SIZE, **names
        )


def _draw_legend(figure: Figure, subject: Subject, top: float) -> None:
    trails = subject.trails.values()
    shown = {name for trail in trails for name in trail.stage_trails}
    stages = [
        Patch(facecolor=LOOKS[name].color, edgecolor="black", hatch=LOOKS[name].hatch, label=name)
        for name in STAGES
        if name in shown
    ]
    black = {"color": "black"}
    marks = [
        Line2D([], [], linewidth=2, label="whole forward, measured", **black),
        Line2D([], [], linewidth=3, linestyle=_DASHED, label="its floor, predicted", **black),
    ]
    if any(trail.plain for trail in trails):
        style = {"linestyle": "none", "marker": "X", "markersize": 11}
        marks.append(Line2D([], [], label="in plain torch, measured", **style, **black))
    figure.legend(
        handles=stages + marks,
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=3,
        fontsize=FONT_SIZE,
        frameon=False,
        handleheight=1.3,
    )
