"""The step picture: what each stage takes of a step, over batch, and how low the floor lies."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .points import Subject
from .step_cost import STAGES
from .style import FONT_SIZE, LOOKS, write_title
from .text import three_digits


def step_chart(subject: Subject) -> Figure:
    """One bar a measured step: its stages, stacked, as shares of the whole step's measured time."""
    figure = Figure(figsize=(10, 7.5))
    axes = figure.add_axes((0.09, 0.13, 0.60, 0.73))
    write_title(figure, subject, "What a denoising step's time is made of")
    steps = [step for step in subject.steps if step.measured is not None]
    for x, step in enumerate(steps):
        bottom = 0.0
        for stage in subject.stages[step.batch, step.block]:
            look, height = LOOKS[stage.name], stage.measured / step.measured
            style = {"color": look.color, "edgecolor": "black", "hatch": look.hatch}
            axes.bar(x, height, 0.62, bottom, linewidth=0.6, **style)
            bottom += height
        floor = step.floor / step.measured
        axes.plot([x - 0.38, x + 0.38], [1, 1], color="black", linewidth=2.2)
        axes.plot([x - 0.38, x + 0.38], [floor, floor], color="black", lw=2.6, ls=(0, (2, 1)))
        if plain := subject.plain.get((step.batch, step.block)):
            style = {"color": "black", "markeredgecolor": "white", "markersize": 13}
            axes.plot(x, plain / step.measured, "X", **style)
    axes.set(
        xticks=range(len(steps)),
        xticklabels=[
            f"{step.label}\n{three_digits(step.measured * 1e3)}\n{three_digits(step.floor * 1e3)}"
            for step in steps
        ],
        ylabel="share of the whole step's measured time",
        xlim=(-0.6, len(steps) - 0.4),
    )
    axes.text(
        1.02,
        -0.02,
        "batch × block\nms, measured\nfloor ms, predicted",
        transform=axes.transAxes,
        va="top",
        fontsize=FONT_SIZE - 1,
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.yaxis.label.set_size(FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_legend(figure)
    return figure


def _draw_legend(figure: Figure) -> None:
    stages = [
        Patch(facecolor=LOOKS[name].color, edgecolor="black", hatch=LOOKS[name].hatch, label=name)
        for name in reversed(STAGES)
    ]
    black = {"color": "black"}
    marks = [
        Line2D([], [], linewidth=2.2, label="whole step, measured", **black),
        Line2D([], [], linewidth=2.6, linestyle=(0, (2, 1)), label="floor, predicted", **black),
        Line2D(
            [], [], linestyle="none", marker="X", markersize=12,
            label="the step in plain torch,\nmeasured", **black,
        ),
    ]  # fmt: skip
    figure.legend(
        handles=stages + marks,
        loc="upper left",
        bbox_to_anchor=(0.70, 0.86),
        fontsize=FONT_SIZE - 1,
        frameon=False,
        labelspacing=0.9,
        handleheight=1.4,
    )
