"""The picture of a quality record: answers that are right over tokens per forward."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from dlm_roofline.charts.chart import Chart, mark_id
from dlm_roofline.charts.style import DASHED, FONT_SIZE, GREY, stacked, styled, write_title

from .decode import CONCURRENT
from .records import QualityRecord
from .scores import frontier

NEAR = 0.16  # how far the frontier's picture goes below AR's share right
STAIRCASE = {"color": "#c4c4c4", "linewidth": 4}

# Colours of the Okabe-Ito palette, which colour-blind readers can tell apart, and markers.
LOOKS = {
    "autoregressive": ("black", "*"),
    "threshold": ("#0072B2", "o"),
    "steps a block": ("#56B4E9", "s"),
    # By a letter each, so that rules can be told apart where they are small.
    "rule llada": ("#9A5B00", r"$\mathbf{L}$"),
    "rule llada2": ("#9A5B00", r"$\mathbf{2}$"),
    "rule fast_dllm": ("#9A5B00", r"$\mathbf{F}$"),
    "rule sdar": ("#9A5B00", r"$\mathbf{S}$"),
    "rule entropy_bound": ("#9A5B00", r"$\mathbf{E}$"),
    "linear_spec": ("#009E73", "^"),
    "linear_spec, LoRA": ("#D55E00", "v"),
    "quadratic_spec": ("#CC79A7", "P"),
    "oracle": (GREY, "X"),
}


def charts_of(record: QualityRecord) -> list[Chart]:
    """The frontier, if anything has been measured."""
    found = frontier_chart(record)
    return [] if found.frame.empty else [found]


def family(row: Mapping[str, object]) -> str:
    """Which of LOOKS a row of the frontier is drawn as."""
    if row["rule"]:
        return f"rule {row['rule']}"
    if row["mode"] == "diffusion":
        return "steps a block" if row["steps"] else "threshold"
    return f"{row['mode']}{', LoRA' * bool(row['lora'])}"


@styled
def frontier_chart(record: QualityRecord) -> Chart:
    """Share right over tokens per forward, a mark a setting; the best ones as a list below.

    Shown is what is near AR; settings further below stand on the lower edge, with their share.
    """
    rows = frontier(record)
    ar = next((row for row in rows if row["mode"] == "autoregressive"), None)
    best = sorted((row for row in rows if row["on_frontier"]), key=lambda row: row["tpf"])
    figure, (axes,) = stacked(1, 6.4 + 0.16 * len(best))
    title = "Exact matches over tokens per forward"
    of = f"the same {rows[0]['examples'] if rows else 0} held-out examples"
    write_title(figure, record, title, record.model.name, record.model.dtype, of)
    low, high = -0.04, 1.04
    if ar and ar["right"]:
        low = max(low, ar["right"] - NEAR)
        high = max(row["right_high"] for row in (ar, *best)) + 0.008
        axes.axhline(ar["right"], color="black", linewidth=0.8, linestyle=":", zorder=1)
    if best:
        # What is reached at a number of tokens per forward is what the next fastest one gets.
        points = [(row["tpf"], row["right"]) for row in best]
        xs, ys = zip((0.1, points[0][1]), *points, (points[-1][0], low - 1), strict=True)
        axes.plot(xs, ys, drawstyle="steps-pre", zorder=1, **STAIRCASE)
    for i, row in enumerate(rows):
        on_top = row is ar or row in best
        if on_top:
            _draw_intervals(axes, row)
        x, y = row["tpf"], max(row["right"], low)
        style = _mark(family(row), 13 if row is ar else 4 + row["block_length"] ** 0.5)
        axes.plot(x, y, gid=mark_id("frontier", i), clip_on=False, zorder=4 + on_top, **style)
        if row["mode"] == "oracle":
            axes.axvline(x, color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
            _write(axes, f"oracle\n{row['block_length']}", x, high, (0, 3))
    below = {(family(row), f"{row['right']:.0%}"): row["tpf"] for row in rows if row["right"] < low}
    for (_, right), tpf in below.items():
        _write(axes, right, tpf, low, (0, 8))
    named = {"AR": ar} if ar and ar not in best else {}
    named |= {str(number): row for number, row in enumerate(best, start=1)}
    for name, row in named.items():
        if row["right"] >= low:
            _write(axes, name, row["tpf"], row["right"], (8, 6), fontweight="bold")
    axes.set(xscale="log", ylim=(low, high), ylabel="exact matches")
    axes.set_xlim(0.9 * min((row["tpf"] for row in rows), default=1))
    axes.set_xlabel("tokens per forward, without the prefill and the token that it gives")
    axes.set_xticks([x for x in (0.5, 1, 2, 4, 8, 16, 32) if x <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.grid(True)
    _draw_legend(axes, [name for name in LOOKS if name in map(family, rows)])
    lines = ["    TPF  right     ms  (of wall time an example)"]
    for name, row in named.items():
        figures = f"{name:>2} {row['tpf']:5.2f} {row['right']:6.1%} {row['ms']:6.1f}"
        lines.append(f"{figures}  {row['setting']}")
    how = {"family": "monospace", "fontsize": FONT_SIZE - 1, "ha": "left"}
    figure.supxlabel("\n".join(lines), x=0.02, **how)
    about = (
        "Which setting gives most tokens for each forward, and what does it cost in answers? Up and"
        " to the right is better; nothing beats what stands on the grey staircase, which the list"
        f" below names, with ms of wall time an example, up to {CONCURRENT} together."
    )
    return Chart("frontier", title, about, figure, pd.DataFrame(rows))


def _draw_legend(axes: Axes, names: Sequence[str]) -> None:
    """Below the axes: looks by their names, and the frontier."""
    handles = [Line2D([], [], label=name, **_mark(name, 7)) for name in names]
    handles.append(Line2D([], [], label="frontier", **STAIRCASE))
    place = {"loc": "upper left", "bbox_to_anchor": (-0.14, -0.13), "alignment": "left"}
    how = {"ncols": 3, "columnspacing": 1, "handletextpad": 0.4}
    axes.legend(handles=handles, title="larger marks: longer blocks", **place, **how)


def _mark(name: str, size: float) -> dict[str, object]:
    """A mark and no line; letters have no edge of another colour."""
    color, marker = LOOKS[name]
    edge = color if marker.startswith("$") else "black"
    style = {"color": color, "marker": marker, "markeredgecolor": edge, "markeredgewidth": 0.5}
    return style | {"linestyle": "none", "markersize": size}


def _draw_intervals(axes: Axes, row: Mapping[str, object]) -> None:
    across, up = (
        [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]]
        for name in ("tpf", "right")
    )
    color = LOOKS[family(row)][0]
    style = {"fmt": "none", "ecolor": color, "elinewidth": 0.8, "capsize": 2, "alpha": 0.6}
    axes.errorbar(row["tpf"], row["right"], up, across, **style)


def _write(
    axes: Axes, text: str, x: float, y: float, offset: tuple[float, float], **style: object
) -> None:
    """A word beside a mark, in points of type from it."""
    axes.annotate(text, (x, y), offset, textcoords="offset points", ha="center", zorder=8, **style)
