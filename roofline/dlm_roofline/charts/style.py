"""What all pictures look like: marks differ in shape, line and hatch, not in hue alone."""

import textwrap
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..forward import STEP_NAMES
from ..records import Record
from ..step_cost import ATTENTION, EMBEDDING, HEAD, PROJECTIONS, REMASK

WIDTH = 5.5  # inches, so that on a phone, 400 px wide, a point is a pixel
FONT_SIZE = 9.5  # points, the smallest
GREY = "#777777"
DASHED = (0, (4, 2))
DARK = {"color": "black", "linestyle": "none", "markersize": 7}  # a mark in a legend

_COLUMNS = 68  # letters a line
_LINE = 1.25 * FONT_SIZE / 72  # inches

# For all that makes a figure: `@styled`.
styled = rc_context({
    "font.size": FONT_SIZE, "axes.titlesize": FONT_SIZE, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.7,
    "legend.frameon": False, "hatch.linewidth": 0.7,
})  # fmt: skip


@dataclass(frozen=True)
class Look:
    """short: a name for legends."""

    color: str  # of the Okabe-Ito palette, which colour-blind readers can tell apart
    marker: str
    hatch: str
    short: str


LOOKS = {
    EMBEDDING: Look("#56B4E9", "s", "///", "embedding, norms"),
    PROJECTIONS: Look("#0072B2", "D", "", "projections, MLP"),
    ATTENTION: Look("#E69F00", "^", "...", "attention"),
    HEAD: Look("#D55E00", "v", "xx", "LM head"),
    REMASK: Look("#009E73", "P", "++", "remask"),
    **{name: Look("#000000", "o", "", "whole step") for name in STEP_NAMES.values()},
}


def stacked(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels below one another; height: inches of all of it."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    drawn = figure.subplots(panels, squeeze=False)[:, 0]
    for axes in drawn:
        axes.tick_params(which="both", labelsize=FONT_SIZE)  # ticks are made after `styled`
    return figure, list(drawn)


def write_title(figure: Figure, record: Record, title: str, *subject: str) -> None:
    """A headline, under it what it is about (model, dtype, context ...) and how it was measured;
    the panels keep below.
    """
    how = [
        f"{record.backend} backend",
        f"torch {record.versions.get('torch', '?')}",
        f"commit {record.commit[:10]}{'+' if record.dirty else ''}",
        record.date[:10],
    ]
    how += ["INCOMPLETE RUN"] * (not record.complete) + ["QUICK RUN"] * (record.scope == "quick")
    lines = [
        line
        for words in (subject, (record.device.label,), how)
        for line in textwrap.wrap(" · ".join(words), _COLUMNS)
    ]
    inch = 1 / figure.get_figheight()
    headline = {"fontsize": FONT_SIZE + 2, "fontweight": "bold"}
    figure.text(0.015, 1 - 0.06 * inch, title, va="top", **headline)
    figure.text(
        0.015, 1 - 0.29 * inch, "\n".join(lines), va="top", color="#444444", linespacing=1.25
    )
    top = 1 - (0.4 + _LINE * len(lines)) * inch
    figure.get_layout_engine().set(rect=(0, 0, 1, top))


def plain_numbers(axes: Axes) -> None:
    """Up a logarithmic axis, between powers of ten too where it has few."""
    low, high = axes.get_ylim()
    between = "23468" if high / low < 8 else "25" if high / low < 1000 else ""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:,g}" if f"{value:.0e}"[0] in between else ""
    )
