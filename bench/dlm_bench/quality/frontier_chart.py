"""The picture of the frontier: share right over tokens per forward, all settings and near AR."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter

from dlm_roofline.charts.style import FONT_SIZE

from .evaluate import CONCURRENT
from .frontier import Point, frontier, points
from .grid import BLOCKS
from .records import QualityRecord
from .scores import common_length, exact_tasks, oracle_tpf
from .style import GREY, LOOKS, MODES, ORACLE, SMALL, Look, family, write_title

NAME = "frontier"  # what its files are called by, and the marks of its points

_HALO = [withStroke(linewidth=2, foreground="white")]  # keeps text legible on lines
_NEAR = 0.12  # how far the second panel goes below AR's share right
_LISTED = 8  # at most so many points of the frontier have a number and a line of text
_PANELS = ((0.09, 0.695, 0.88, 0.205), (0.09, 0.36, 0.88, 0.275))  # left, bottom, width, height
_ALONE = (0.09, 0.36, 0.88, 0.54)
_BEST = {"color": "#bbbbbb", "linewidth": 4, "zorder": 2, "solid_joinstyle": "miter"}


def frontier_chart(record: QualityRecord) -> Figure:
    """All settings above, those near AR below them, and the frontier's points as a list."""
    shown = points(record)
    best = frontier(shown)
    ar = next((point for point in shown if point.is_ar), None)
    n, tasks = common_length(record), exact_tasks(record)
    oracles = {
        each.block_length: found.value
        for each in record.oracle_diffusion
        if (found := oracle_tpf(record, each, tasks, n))
    }
    figure = Figure(figsize=(11, 14))
    examples = shown[0].score.examples if shown else 0
    title = "Exact matches over tokens per forward"
    write_title(figure, record, title, f"the same {examples} held-out examples for every point")
    whole = (-0.04, 1.04)
    if ar is not None and ar.y > 0:
        # As high as the intervals that are drawn.
        top = max(point.score.right.high for point in (ar, *best))
        near = (max(-0.04, ar.y - _NEAR), top + 0.008)
        _draw_panel(figure.add_axes(_PANELS[0]), shown, best, ar, oracles, whole, "all settings")
        second = figure.add_axes(_PANELS[1])
        _draw_panel(second, shown, best, ar, oracles, near, "near AR", suffix=".2")
    else:
        _draw_panel(figure.add_axes(_ALONE), shown, best, ar, oracles, whole, "all settings")
    _draw_legends(figure, shown, oracles)
    _draw_list(figure, best, ar)
    return figure


def _draw_panel(
    axes: Axes,
    shown: Sequence[Point],
    best: Sequence[Point],
    ar: Point | None,
    oracles: dict[int, float],
    limits: tuple[float, float],
    title: str,
    suffix: str = "",
) -> None:
    """suffix: ends the ids of marks, so that a point's second one has an id of its own."""
    visible = [point for point in shown if limits[0] <= point.y <= limits[1]]
    _set_scales(axes, visible, oracles, limits)
    axes.set_title(title, loc="left", fontsize=FONT_SIZE)
    if best:
        # What is reached at a number of tokens per forward is what the next fastest point gets.
        xs = [axes.get_xlim()[0], *(point.x for point in best), best[-1].x]
        ys = [best[0].y, *(point.y for point in best), limits[0] - 1]
        axes.plot(xs, ys, drawstyle="steps-pre", **_BEST)
    for point in visible:
        look = LOOKS[family(point.setting)]
        on_top = point in best or point.is_ar
        if on_top:
            _draw_intervals(axes, point, look)
        style = _mark(look) | {"markersize": _size(point), "zorder": 6 if on_top else 5}
        axes.plot(point.x, point.y, gid=f"{NAME}-{shown.index(point)}{suffix}", **style)
    _join_thresholds(axes, visible)
    if ar is not None:
        axes.axhline(ar.y, color="black", linewidth=0.8, linestyle=":", zorder=1)
        _draw_oracles(axes, ar, oracles)
    for label, point in _listed(best, ar):
        if point in visible:
            _write(axes, label, point, (9, 9), fontsize=FONT_SIZE, fontweight="bold")


def _mark(look: Look) -> dict[str, object]:
    """A mark and no line; letters have no edge of another colour."""
    edge = look.color if look.marker.startswith("$") else "black"
    style = {"color": look.color, "marker": look.marker, "markeredgecolor": edge}
    return style | {"markeredgewidth": 0.5, "linestyle": "none"}


def _draw_intervals(axes: Axes, point: Point, look: Look) -> None:
    right, tpf = point.score.right, point.score.tpf
    axes.errorbar(
        point.x,
        point.y,
        xerr=[[tpf.value - tpf.low], [tpf.high - tpf.value]],
        yerr=[[right.value - right.low], [right.high - right.value]],
        fmt="none",
        ecolor=look.color,
        elinewidth=1,
        capsize=4,
        zorder=4,
    )


def _join_thresholds(axes: Axes, visible: Sequence[Point]) -> None:
    """A thin line through those of one block length, with the values at its ends."""
    look = LOOKS["threshold"]
    for block in {point.setting.block_length for point in visible}:
        line = [p for p in visible if p.setting.threshold and p.setting.block_length == block]
        line.sort(key=lambda point: point.setting.threshold)
        if len(line) < 2:
            continue
        xs, ys = [point.x for point in line], [point.y for point in line]
        axes.plot(xs, ys, color=look.color, linewidth=0.9, zorder=3)
        for point, offset in ((line[0], (9, -1)), (line[-1], (-9, -15))):
            text = f"{point.setting.threshold:g}".removeprefix("0")
            _write(axes, text, point, offset, fontsize=SMALL, color=look.color)


def _draw_oracles(axes: Axes, ar: Point, oracles: dict[int, float]) -> None:
    """Where the oracle stands: as right as AR, in fewer forwards."""
    for block, tpf in oracles.items():
        axes.axvline(tpf, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot(tpf, ar.y, markersize=_sized(block), zorder=5, **_mark(ORACLE))
        axes.annotate(
            f"oracle {block}",
            (tpf, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color="#444444",
        )


def _write(
    axes: Axes, text: str, point: Point, offset: tuple[float, float], **style: object
) -> None:
    """A word beside a point, in points of type from it."""
    axes.annotate(
        text,
        (point.x, point.y),
        xytext=offset,
        textcoords="offset points",
        path_effects=_HALO,
        zorder=8,
        **style,
    )


def _set_scales(
    axes: Axes,
    visible: Sequence[Point],
    oracles: dict[int, float],
    limits: tuple[float, float],
) -> None:
    xs = [*(point.x for point in visible), *oracles.values()] or [1.0]
    axes.set(
        xscale="log",
        xlim=(min(xs) * 0.88, max(xs) * 1.25),
        ylim=limits,
        xlabel="tokens per forward, without the prefill and the token that it gives",
        ylabel="exact matches",
    )
    low, high = axes.get_xlim()
    ticks = [x for x in (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if low <= x <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.xaxis.label.set_size(FONT_SIZE)
    axes.yaxis.label.set_size(FONT_SIZE)


def _listed(best: Sequence[Point], ar: Point | None) -> list[tuple[str, Point]]:
    """AR and the frontier's points by number, of too many those at both ends."""
    listed = [(str(number), point) for number, point in enumerate(best, start=1)]
    if len(listed) > _LISTED:
        listed = listed[: _LISTED // 2] + listed[-(_LISTED // 2) :]
    return listed if ar is None or ar in best else [("AR", ar), *listed]


def _draw_legends(figure: Figure, shown: Sequence[Point], oracles: dict[int, float]) -> None:
    """One for each mode, and one for the lines."""
    there = {family(point.setting) for point in shown}
    columns = {
        mode: [_handle(LOOKS[name]) for name in families if name in there]
        for mode, families in MODES.items()
    }
    thin = LOOKS["threshold"].color
    lines = [
        Line2D([], [], color=_BEST["color"], linewidth=4, label="frontier"),
        Line2D([], [], color="black", linewidth=0.8, linestyle=":", label="AR's share"),
        Line2D([], [], color=thin, linewidth=0.9, label="thresholds of one block length"),
    ]
    columns["reference"] += lines + [_handle(ORACLE)] * bool(oracles)
    left = dict(zip(columns, (0.08, 0.46, 0.69), strict=True))
    for mode, handles in columns.items():
        if not handles:
            continue
        legend = figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(left[mode], 0.32),
            fontsize=SMALL,
            frameon=False,
            labelspacing=0.45,
            ncols=2 if len(handles) > 5 else 1,
            columnspacing=1.2,
            title=mode,
            title_fontsize=SMALL,
            alignment="left",
        )
        legend.get_title().set_fontweight("bold")
    blocks = ", ".join(map(str, BLOCKS))
    figure.text(0.095, 0.222, f"larger marks: longer blocks ({blocks})", fontsize=SMALL)


def _handle(look: Look) -> Line2D:
    return Line2D([], [], label=look.label, markersize=9, **_mark(look))


def _draw_list(figure: Figure, best: Sequence[Point], ar: Point | None) -> None:
    listed = _listed(best, ar)
    lines = ["     TPF   right     ms"] if listed else ["Nothing was measured."]
    for label, point in listed:
        block = point.setting.block_length
        name = f"{point.setting.name}, block {block}" if block else point.setting.name
        lines.append(f"{label:>2} {point.x:5.2f}  {point.y:6.1%}  {point.ms:5.1f}  {name}")
    if left_out := len(best) - len(_listed(best, None)):
        lines.append(f"and {left_out} between them that are left out")
    style = {"va": "top", "fontsize": SMALL, "linespacing": 1.3}
    explained = (
        "AR and the frontier, by rising tokens per forward (TPF). A forward's cost differs by mode:"
        " ms is wall\n"
        f"time an example, prefill too, up to {CONCURRENT} examples together, in one run."
        " Intervals: 95%, drawn for these points alone."
    )
    figure.text(0.09, 0.203, explained, **style)
    figure.text(0.09, 0.168, "\n".join(lines), family="monospace", **style)


def _size(point: Point) -> float:
    return 17 if point.is_ar else _sized(point.setting.block_length)


def _sized(block: int) -> float:
    """Larger marks for longer blocks; 8, 16 and 32 tell well apart."""
    return 5 + 2.2 * max(1, block / 8) ** 0.8
