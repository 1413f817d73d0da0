"""The roofline picture: where each stage sits, what holds it, where the step meets the ridge."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from .ceilings import DATASHEETS
from .points import Point, Subject
from .predict import Roof
from .step_cost import REMASK
from .style import FONT_SIZE, LOOKS, write_title
from .text import percent, three_digits, with_prefix

_GREY = "#777777"
_RING = {"marker": "o", "linestyle": "none", "ms": 15, "mfc": "none", "mec": "black", "mew": 0.8}
_HALO = [withStroke(linewidth=3, foreground="white")]  # keeps text legible on lines


def roofline_chart(subject: Subject) -> Figure:
    """Log-log: FLOP/s over FLOP/byte, with a numbered table of the points below."""
    figure = Figure(figsize=(10, 12))
    axes = figure.add_axes((0.09, 0.40, 0.75, 0.50))
    table = figure.add_axes((0.02, 0.02, 0.96, 0.31))
    write_title(figure, subject, "Where the stages of a denoising step sit under the roof")

    numbered = [point for step in subject.shown for point in _with_stages(subject, step)]
    trail = [step for step in subject.steps if step.rows <= 4 * subject.shown[-1].rows]
    _set_limits(axes, [*numbered, *trail], subject.roof)
    _draw_roofs(axes, subject)
    _draw_trail(axes, trail)
    for point in numbered:
        _draw_point(axes, point)
    ringed = _with_stages(subject, subject.shown[-1]) if len(subject.shown) > 1 else []
    for point in ringed:
        axes.plot(point.cost.intensity, _height(axes, point), zorder=7, **_RING)
    _draw_ridge(axes, subject)
    _draw_labels(axes, numbered, trail)
    _draw_legend(axes, ringed)
    _draw_table(table, numbered, ringed, subject.roof)
    return figure


def _with_stages(subject: Subject, step: Point) -> list[Point]:
    return [*subject.stages[step.batch, step.block], step]


def _set_limits(axes: Axes, points: list[Point], roof: Roof) -> None:
    """All points lie inside but the remask scatter, decades below: it goes to the lower edge."""
    intensities = [point.cost.intensity for point in points]
    rates = [_rate(point) for point in points if point.name != REMASK]
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(min(intensities) / 2, max(*intensities, roof.ridge) * 3),
        ylim=(min(rates) / 6, roof.peak * 6),
        xlabel="arithmetic intensity, FLOP/byte (compulsory)",
        ylabel="FLOP/s",
    )
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.xaxis.label.set_size(FONT_SIZE)
    axes.yaxis.label.set_size(FONT_SIZE)


def _draw_roofs(axes: Axes, subject: Subject) -> None:
    """Solid: measured in this run. Dashed: the datasheet's. Peaks are named at the right edge."""
    ceilings, sheet = subject.record.ceilings, DATASHEETS.get(subject.record.device.name)
    low, high = axes.get_xlim()

    def draw(roof: Roof, begin: float, end: float, **line) -> None:
        xs = sorted({begin, min(max(roof.ridge, begin), end), end})
        axes.plot(xs, [roof.flops_at(x) for x in xs], zorder=2, **line)

    draw(subject.roof, low, high, color="black", linewidth=2.4)
    copy = Roof(ceilings.copy.best, subject.roof.peak)
    draw(copy, low, copy.ridge, color=_GREY, linewidth=1)
    peaks = {subject.dtype: subject.roof.peak}
    bandwidths = {"read": ceilings.read.best, "copy (thin)": ceilings.copy.best}
    for dtype, ceiling in ceilings.matmul.items():
        if dtype != subject.dtype:
            roof = Roof(ceilings.read.best, ceiling.best)
            draw(roof, roof.ridge, high, color=_GREY, linewidth=1.2)
            peaks[dtype] = ceiling.best
    if sheet:
        roof = Roof(sheet.bandwidth, sheet.matmul[subject.dtype])
        draw(roof, low, high, color="black", linewidth=1.2, linestyle=(0, (5, 3)))
        peaks["datasheet"] = roof.peak
        bandwidths["datasheet (dashed)"] = sheet.bandwidth

    _name_at_edge(axes, peaks, bold=subject.dtype)
    named = ", ".join(f"{name} {with_prefix(rate, 'B/s')}" for name, rate in bandwidths.items())
    axes.text(
        0.02,
        0.97,
        f"memory roofs: {named}",
        transform=axes.transAxes,
        va="top",
        fontsize=FONT_SIZE - 1,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _name_at_edge(axes: Axes, peaks: dict[str, float], bold: str) -> None:
    """Names right of the axes at their peak's height, moved apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    right, lowest_free = axes.get_xlim()[1], -1.0
    for name, rate in sorted(peaks.items(), key=lambda item: item[1]):
        height = max(to_axes.transform((right, rate))[1], lowest_free)
        lowest_free = height + 0.065
        axes.annotate(
            f"{name}\n{with_prefix(rate, 'FLOP/s')}",
            (right, rate),
            xytext=(1.025, height),
            textcoords="axes fraction",
            va="center",
            fontsize=FONT_SIZE - 2,
            fontweight="bold" if name == bold else "normal",
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _draw_trail(axes: Axes, steps: list[Point]) -> None:
    """The whole step over batch x block: hollow on its floor, filled where it was measured."""
    axes.plot(
        [step.cost.intensity for step in steps],
        [step.cost.flops / step.floor for step in steps],
        color="black",
        linewidth=1,
        linestyle=":",
        zorder=3,
    )
    for step in steps:
        _draw_point(axes, step)


def _draw_point(axes: Axes, point: Point) -> None:
    """Hollow at the floor, filled where it was measured, and a line for the gap between."""
    look, x, floor = LOOKS[point.name], point.cost.intensity, point.cost.flops / point.floor
    style = {"marker": look.marker, "linestyle": "none"}
    axes.plot(x, floor, ms=8, mfc="white", mec=look.color, zorder=5, **style)
    if point.measured is None:
        return
    height = _height(axes, point)
    axes.plot([x, x], [height, floor], color=look.color, linewidth=1, zorder=4)
    axes.plot(x, height, ms=9, mfc=look.color, mec="black", zorder=6, **style)
    if height > _rate(point):
        off_scale = {"arrowstyle": "-|>", "color": "black"}
        end = {"xytext": (0, -24), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate("", (x, height), **end, arrowprops=off_scale | {"arrowstyle": "<|-"})


def _height(axes: Axes, point: Point) -> float:
    """Where a point is drawn: at its rate, or a little above the lower edge if that lies below."""
    return max(_rate(point), axes.get_ylim()[0] * 2.5)


def _draw_ridge(axes: Axes, subject: Subject) -> None:
    ridge, crossing = subject.roof.ridge, subject.crossing
    axes.axvline(ridge, color="black", linewidth=0.8, linestyle="-.", zorder=1)
    if crossing:
        where = f"{crossing.batch} × {crossing.block} = {crossing.rows} rows"
        said = f"the step crosses it at batch × block\n{where} (predicted)"
    else:
        said = "no batch takes the step across it\n(predicted)"
    low, high = axes.get_xlim()
    in_right_half = ridge**2 > low * high
    axes.annotate(
        f"ridge {ridge:.3g} FLOP/byte\n{said}",
        (ridge, 0.24),
        xycoords=("data", "axes fraction"),
        xytext=(-8 if in_right_half else 8, 0),
        textcoords="offset points",
        ha="right" if in_right_half else "left",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        zorder=4,
        fontsize=FONT_SIZE - 1,
        fontweight="bold",
        path_effects=_HALO,
    )


def _draw_labels(axes: Axes, numbered: list[Point], trail: list[Point]) -> None:
    """Numbers beside the points of the table, batch x block along the trail, none over another.

    A number goes to the first free place round its point. A trail label without a free place is
    left out; those of measured steps are placed first.
    """
    to_points = 72 / axes.figure.dpi

    def place(x: float, y: float) -> tuple[float, float]:
        """A spot in data coordinates, in typographic points."""
        across, up = axes.transData.transform((x, y))
        return across * to_points, up * to_points

    def write(text: str, point: Point, height: float, offsets: Offsets, **style) -> bool:
        x, y = place(point.cost.intensity, height)
        half = 3.5 * len(text)
        for dx, dy in offsets:
            box = (x + dx - half, x + dx + half, y + dy - 6, y + dy + 6)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    text,
                    (point.cost.intensity, height),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    zorder=8,
                    path_effects=_HALO,
                    **style,
                )
                return True
        return False

    # Markers are taken, whatever they mark: of all points their floor, of measured ones their rate.
    taken: list[Box] = []
    for point in [*numbered, *trail]:
        heights = [point.cost.flops / point.floor]
        heights += [_height(axes, point)] if point.measured else []
        for x, y in (place(point.cost.intensity, height) for height in heights):
            taken.append((x - 5, x + 5, y - 5, y + 5))

    leader = {"arrowstyle": "-", "color": "black", "linewidth": 0.6, "shrinkA": 6, "shrinkB": 4}
    for number, point in enumerate(numbered, start=1):
        bold = {"fontsize": FONT_SIZE - 1, "fontweight": "bold", "arrowprops": leader}
        write(str(number), point, _height(axes, point), _AROUND, **bold)
    for step in sorted(trail, key=lambda step: step.measured is None):
        floor = step.cost.flops / step.floor
        write(step.label, step, floor, _ABOVE, fontsize=FONT_SIZE - 2)


Box = tuple[float, float, float, float]  # left, right, bottom, top in typographic points
Offsets = list[tuple[float, float]]

_DIRECTIONS = [(1, 0), (-1, 0), (0.8, -0.7), (-0.8, -0.7), (0.8, 0.7), (-0.8, 0.7), (0, -1)]
_AROUND = [(radius * dx, radius * dy) for radius in (17, 28, 40) for dx, dy in _DIRECTIONS]
_ABOVE = [(0, 14), (-16, 12), (16, 12), (0, 26)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _draw_legend(axes: Axes, ringed: list[Point]) -> None:
    dark = {"color": "black", "linestyle": "none", "marker": "o", "markersize": 8}
    ring = [Line2D([], [], label=f"measured at {point.label}", **_RING) for point in ringed[:1]]
    axes.legend(
        handles=[
            Line2D([], [], label="measured", **dark),
            Line2D([], [], label="predicted: the floor", markerfacecolor="white", **dark),
            Line2D([], [], label="measured, below the scale", **dark | {"marker": "$\u2193$"}),
            *ring,
            Line2D([], [], color="black", linewidth=2.4, label="measured roof"),
            Line2D([], [], color="black", linestyle=":", label="whole step, batch × block"),
        ],
        loc="lower right",
        fontsize=FONT_SIZE - 2,
        framealpha=0.95,
    )


_COLUMNS = {
    "": 0.0,
    "stage": 0.06,
    "batch×block": 0.44,
    "FLOP/byte": 0.56,
    "ms": 0.67,
    "floor ms,\npredicted": 0.79,
    "% of roof": 0.90,
    "held by": 1.0,
}


def _draw_table(axes: Axes, points: list[Point], ringed: list[Point], roof: Roof) -> None:
    axes.set(xlim=(0, 1), ylim=(len(points) + 0.5, -1.2))
    axes.axis("off")
    style = {"fontsize": FONT_SIZE - 1, "va": "center"}
    for name, x in _COLUMNS.items():
        left = name in ("", "stage")
        axes.text(x, -0.5, name, ha="left" if left else "right", fontweight="bold", **style)
    axes.axhline(0.2, color="black", linewidth=0.8)
    for i, point in enumerate(points, start=1):
        look = LOOKS[point.name]
        axes.plot(0.045, i - 0.25, look.marker, color=look.color, markeredgecolor="black", ms=8)
        if point in ringed:
            axes.plot(0.045, i - 0.25, **_RING)
        cells = [
            str(i),
            point.name,
            point.label,
            three_digits(point.cost.intensity),
            three_digits(point.measured * 1e3),
            three_digits(point.floor * 1e3),
            percent(point.share_of_roof),
            roof.holder(point.cost),
        ]
        for (name, x), cell in zip(_COLUMNS.items(), cells, strict=True):
            axes.text(x, i - 0.25, cell, ha="left" if name in ("", "stage") else "right", **style)


def _rate(point: Point) -> float:
    """FLOP/s measured, or else predicted."""
    return point.cost.flops / (point.measured or point.floor)
