"""The frontier: share right against tokens per forward, for every setting on the same examples."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter

from dlm_roofline.style import FONT_SIZE

from .evaluate import Setting
from .grid import AUTOREGRESSIVE
from .records import QualityRecord
from .scores import Score, common_length, exact_tasks, oracle_tpf, pareto, score
from .style import GREY, LOOKS, ORACLE, SMALL, Look, write_title

_HALO = [withStroke(linewidth=3, foreground="white")]  # keeps text legible on lines
_NEAR = (0.12, 0.02)  # the second panel: so far below AR's share right, and above the best
_LISTED = 14  # at most so many points of the frontier have a number and a line of text


@dataclass(frozen=True)
class Point:
    setting: Setting
    score: Score

    @property
    def x(self) -> float:
        return self.score.tpf.value

    @property
    def y(self) -> float:
        return self.score.right.value

    @property
    def look(self) -> Look:
        return LOOKS[family(self.setting)]


def family(setting: Setting) -> str:
    """Which of LOOKS a setting is drawn as."""
    if setting.mode == "diffusion":
        return next(name for name in ("threshold", "steps", "rule") if getattr(setting, name))
    return f"{setting.mode}, LoRA" if setting.lora else setting.mode


def points(record: QualityRecord) -> list[Point]:
    """Every setting on the examples that all of them saw."""
    n, tasks = common_length(record), exact_tasks(record)
    found = ((result.setting, score(record, result, tasks, n)) for result in record.results)
    return [Point(setting, each) for setting, each in found if each and each.tpf]


def frontier_chart(record: QualityRecord) -> Figure:
    """All settings on the left, those near AR on the right, the frontier's points listed below."""
    shown = points(record)
    best = [shown[i] for i in pareto([(point.x, point.y) for point in shown])]
    ar = next((point for point in shown if point.setting == AUTOREGRESSIVE), None)
    oracles = {
        each.block_length: found.value
        for each in record.oracle_diffusion
        if (found := oracle_tpf(record, each, exact_tasks(record)))
    }
    figure = Figure(figsize=(14, 10))
    n = shown[0].score.examples if shown else 0
    title = "Quality against speed: exact matches over tokens per forward"
    write_title(figure, record, title, f"the same {n} held-out examples for every point")
    near = ar is not None and ar.y > 0
    width = 0.43 if near else 0.90
    _draw_panel(figure.add_axes((0.06, 0.33, width, 0.54)), shown, best, ar, oracles, None)
    if near:
        top = max(point.y for point in shown) + _NEAR[1]
        limits = (max(0.0, ar.y - _NEAR[0]), min(1.005, top))
        _draw_panel(figure.add_axes((0.55, 0.33, width, 0.54)), shown, best, ar, oracles, limits)
    _draw_legend(figure, shown, oracles)
    _draw_list(figure, best, oracles)
    return figure


def _draw_panel(
    axes: Axes,
    shown: list[Point],
    best: list[Point],
    ar: Point | None,
    oracles: dict[int, float],
    limits: tuple[float, float] | None,
) -> None:
    for point in shown:
        right = point.score.right
        bars = [[right.value - right.low], [right.high - right.value]]
        axes.errorbar(
            point.x,
            point.y,
            yerr=bars,
            color=point.look.color,
            marker=point.look.marker,
            markersize=_size(point.setting),
            markeredgecolor="black",
            markeredgewidth=0.5,
            elinewidth=0.8,
            alpha=0.85,
            zorder=6 if point in best else 4,
        )
        for bar in axes.containers[-1].lines[2]:
            bar.set_alpha(0.6 if point in best or point == ar else 0.2)
    line = {"color": "black", "linewidth": 1.4, "zorder": 3}
    axes.plot([point.x for point in best], [point.y for point in best], **line)
    if ar:
        axes.axhline(ar.y, color="black", linewidth=0.8, linestyle=":", zorder=1)
        _draw_oracles(axes, ar, oracles)
    _set_scales(axes, shown, oracles, limits)
    _number(axes, best, limits)


def _draw_oracles(axes: Axes, ar: Point, oracles: dict[int, float]) -> None:
    """Where the oracle stands: as right as AR, in the fewest forwards."""
    for block, tpf in oracles.items():
        axes.plot([tpf, tpf], [0, ar.y], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        style = {"marker": ORACLE.marker, "color": ORACLE.color, "linestyle": "none"}
        axes.plot(tpf, ar.y, markersize=_sized(block), markeredgecolor="black", zorder=5, **style)
        axes.annotate(
            f"oracle {block}",
            (tpf, ar.y),
            xytext=(0, 12),
            textcoords="offset points",
            rotation=45,
            ha="left",
            fontsize=SMALL,
            color="#444444",
            path_effects=_HALO,
            annotation_clip=True,
        )


def _set_scales(
    axes: Axes,
    shown: list[Point],
    oracles: dict[int, float],
    limits: tuple[float, float] | None,
) -> None:
    xs = [*(point.x for point in shown), *oracles.values()] or [1.0]
    if limits:
        near = [point.x for point in shown if limits[0] <= point.y <= limits[1]]
        xs = [*near, *oracles.values()] or xs
    axes.set(
        xscale="log",
        xlim=(min(xs) * 0.88, max(xs) * 1.25),
        ylim=limits or (-0.02, 1.02),
        xlabel="tokens per forward (prefill not counted)",
        ylabel="" if limits else "share of exact matches, 95% interval",
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
    axes.set_title("near AR" if limits else "all settings", loc="left", fontsize=FONT_SIZE)


def _number(axes: Axes, best: list[Point], limits: tuple[float, float] | None) -> None:
    """The numbers of the list below, beside the frontier's points."""
    for number, point in enumerate(best[-_LISTED:], start=1):
        if limits and not limits[0] <= point.y <= limits[1]:
            continue
        axes.annotate(
            str(number),
            (point.x, point.y),
            xytext=(8, 8),
            textcoords="offset points",
            fontsize=FONT_SIZE - 1,
            fontweight="bold",
            path_effects=_HALO,
            zorder=8,
        )


def _draw_legend(figure: Figure, shown: list[Point], oracles: dict[int, float]) -> None:
    families = [name for name in LOOKS if any(family(point.setting) == name for point in shown)]
    edge = {"markeredgecolor": "black", "linestyle": "none"}
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, markersize=9, label=look.label, **edge)
        for look in (LOOKS[name] for name in families)
    ]
    if oracles:
        style = {"color": ORACLE.color, "marker": ORACLE.marker, "markersize": 9}
        handles.append(Line2D([], [], label=ORACLE.label, **style, **edge))
    handles.append(Line2D([], [], color="black", linewidth=1.4, label="Pareto frontier"))
    handles.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":", label="AR's share"))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.05, 0.265),
        fontsize=SMALL,
        frameon=False,
        labelspacing=0.6,
        title="Larger marks: longer blocks (8, 16, 32)",
        title_fontsize=SMALL,
        alignment="left",
    )


def _draw_list(figure: Figure, best: list[Point], oracles: dict[int, float]) -> None:
    lines = ["The frontier, by rising speed:"] if best else ["Nothing was measured."]
    for number, point in enumerate(best[-_LISTED:], start=1):
        block = point.setting.block_length
        where = f", block {block}" if block else ""
        lines.append(f"{number:>2}  {point.x:5.2f}  {point.y:6.1%}  {point.setting.name}{where}")
    style = {"va": "top", "fontsize": SMALL, "family": "monospace", "linespacing": 1.35}
    figure.text(0.30, 0.262, "\n".join(lines), **style)
    if oracles:
        bound = [
            "Oracle: each step commits every masked",
            "position whose argmax is AR's token,",
            "or one by force where none is. TPF:",
        ]
        bound += [f"  block {block:>2}  {tpf:5.2f}" for block, tpf in oracles.items()]
        figure.text(0.72, 0.262, "\n".join(bound), **style)


def _size(setting: Setting) -> float:
    if setting == AUTOREGRESSIVE:
        return 15
    return _sized(setting.block_length)


def _sized(block: int) -> float:
    """Larger marks for longer blocks; 8, 16 and 32 tell well apart."""
    return 4 + 2 * max(1, block / 8) ** 0.8
