"""The roofline: where each stage of a forward sits over growing batch, and what holds it."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..datasheets import DATASHEETS
from ..forward import DENOISE
from ..points import POINT_HEADER, Point, Subject, Trail, point_cells, subject_of
from ..predict import Roof, ridge_crossing
from ..records import Record
from ..step_cost import REMASK
from ..text import percent, three_digits, with_prefix
from .chart import Chart, Rows
from .label_places import Places, along, around
from .style import FONT_SIZE, LOOKS, write_title

NAME = "roofline"
TITLE = "Where the stages of each forward sit under the roof"

_GREY = "#777777"
_DASHED = (0, (5, 3))
_TOP, _PANEL, _ALONE, _GAP, _LEGEND, _LINE = 1.5, 3.6, 4.6, 0.42, 1.35, 0.27  # inches
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8"}


def roofline_chart(record: Record) -> Chart | None:
    """Log-log, FLOP/s over FLOP/byte: a panel a kind of forward, a trail over batch a stage. None
    for a record without a whole step.
    """
    subject = subject_of(record)
    if subject is None:
        return None
    table = _table_points(subject.trails.get(DENOISE) or [*subject.trails.values()][0])
    panels, lines = len(subject.trails), len(table) + 1.6
    panel_height = _ALONE if panels == 1 else _PANEL
    panel_rows = (panels + 1) // 2
    below = _LEGEND + _LINE * lines
    height = _TOP + panel_rows * (panel_height + _GAP) + below
    figure = Figure(figsize=(10, height))
    write_title(figure, record, TITLE, *subject.words)
    _write_roofs(figure, subject)

    rows, drawn = Rows(NAME), []
    for i, trail in enumerate(subject.trails.values()):
        width = 0.79 if panels == 1 else 0.385
        bottom = below + (panel_rows - 1 - i // 2) * (panel_height + _GAP)
        axes = figure.add_axes(
            (0.085 + i % 2 * 0.405, bottom / height, width, panel_height / height)
        )
        _set_limits(axes, subject)
        _set_words(axes, subject, trail, left=i % 2 == 0, lowest=i + 2 >= panels)
        _draw_roofs(axes, subject, named=i % 2 == 1 or panels == 1)
        _draw_trail(axes, subject, trail, rows)
        drawn.append(axes)
    for axes, trail in zip(drawn, subject.trails.values(), strict=True):
        _draw_labels(axes, subject, trail)
    _draw_legend(figure, subject, (below - 0.45) / height)
    axes = figure.add_axes((0.02, 0.1 / height, 0.96, _LINE * lines / height))
    _draw_table(axes, table, subject.roof)
    about = (
        "What holds each stage back as the batch grows, and how far it is from what the device can"
        " do? A filled mark is measured, a hollow one the predicted floor above it; left of the"
        " ridge memory bounds it, right of it compute."
    )
    return Chart(NAME, TITLE, about, figure, POINT_HEADER, rows.cells)


def _table_points(trail: Trail) -> list[Point]:
    """One request's step and the largest batch's, stage by stage."""
    shown = {step.batch: step for step in (trail.measured[0], trail.measured[-1])}
    return [point for step in shown.values() for point in [*trail.stages[step.batch], step]]


def _set_limits(axes: Axes, subject: Subject) -> None:
    """The same for all panels; all points lie inside but the remask scatter, decades below, which
    goes to the lower edge.
    """
    points = [
        point
        for trail in subject.trails.values()
        for point in [*trail.steps, *(each for some in trail.stages.values() for each in some)]
    ]
    intensities = [point.cost.intensity for point in points]
    rates = [point.rate for point in points if point.name != REMASK]
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(min(intensities) / 2.5, max(*intensities, subject.roof.ridge) * 6),
        ylim=(min(rates) / 6, subject.roof.peak * 12),
    )


def _set_words(axes: Axes, subject: Subject, trail: Trail, *, left: bool, lowest: bool) -> None:
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.tick_params(labelsize=FONT_SIZE, labelleft=left, labelbottom=lowest)
    axes.minorticks_off()
    if left:
        axes.set_ylabel("FLOP/s", fontsize=FONT_SIZE)
    if lowest:
        axes.set_xlabel("FLOP/byte (compulsory)", fontsize=FONT_SIZE)
    axes.set_title(
        subject.panel_words(trail), loc="left", fontsize=FONT_SIZE, fontweight="bold", pad=5
    )


def _write_roofs(figure: Figure, subject: Subject) -> None:
    """The figures of the roofs, under the title."""
    ceilings, sheet = subject.record.ceilings, DATASHEETS.get(subject.record.device.name)
    units = {"int8": "op/s"}
    peaks = [
        f"{_SHORT.get(dtype, dtype)} {with_prefix(ceiling.best, units.get(dtype, 'FLOP/s'))}"
        for dtype, ceiling in ceilings.matmul.items()
    ]
    lines = [
        f"Roofs, measured: read {with_prefix(ceilings.read.best, 'B/s')}, copy (thin)"
        f" {with_prefix(ceilings.copy.best, 'B/s')}"
    ]
    if sheet:
        lines[0] += (
            f"; datasheet (dashed): {with_prefix(sheet.bandwidth, 'B/s')},"
            f" {with_prefix(sheet.matmul[subject.dtype], 'FLOP/s')}"
        )
    lines.append(", ".join(peaks))
    figure.text(
        0.02, 1 - 1.0 / figure.get_figheight(), "\n".join(lines), va="top", fontsize=FONT_SIZE
    )


def _draw_roofs(axes: Axes, subject: Subject, *, named: bool) -> None:
    """Solid: measured in this run. Dashed: the datasheet's. Peaks are named at the right edge."""
    ceilings, sheet = subject.record.ceilings, DATASHEETS.get(subject.record.device.name)
    low, high = axes.get_xlim()

    def draw(roof: Roof, begin: float, end: float, **line) -> None:
        xs = sorted({begin, min(max(roof.ridge, begin), end), end})
        axes.plot(xs, [roof.flops_at(x) for x in xs], zorder=2, **line)

    draw(subject.roof, low, high, color="black", linewidth=2.2)
    copy = Roof(ceilings.copy.best, subject.roof.peak)
    draw(copy, low, copy.ridge, color=_GREY, linewidth=1)
    peaks = {subject.dtype: subject.roof.peak}
    for dtype, ceiling in ceilings.matmul.items():
        if dtype != subject.dtype:
            roof = Roof(ceilings.read.best, ceiling.best)
            draw(roof, roof.ridge, high, color=_GREY, linewidth=1.2)
            peaks[dtype] = ceiling.best
    if sheet:
        roof = Roof(sheet.bandwidth, sheet.matmul[subject.dtype])
        draw(roof, low, high, color="black", linewidth=1.2, linestyle=_DASHED)
        peaks["datasheet"] = roof.peak
    if named:
        _name_at_edge(axes, peaks, bold=subject.dtype)
    axes.axvline(subject.roof.ridge, color="black", linewidth=0.9, linestyle="-.", zorder=1)


def _name_at_edge(axes: Axes, peaks: dict[str, float], bold: str) -> None:
    """Names right of the axes at their peak's height, moved apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    apart = 1.3 * FONT_SIZE / 72 / axes.get_window_extent().height * axes.figure.dpi
    right, lowest_free = axes.get_xlim()[1], -1.0
    for name, rate in sorted(peaks.items(), key=lambda item: item[1]):
        height = max(to_axes.transform((right, rate))[1], lowest_free)
        lowest_free = height + apart
        axes.annotate(
            _SHORT.get(name, name),
            (right, rate),
            xytext=(1.025, height),
            textcoords="axes fraction",
            va="center",
            fontsize=FONT_SIZE,
            fontweight="bold" if name == bold else "normal",
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _draw_trail(axes: Axes, subject: Subject, trail: Trail, rows: Rows) -> None:
    """Stages thin and coloured, the whole step thick and black; its floor dotted."""

    def mark(point: Point) -> None:
        mark = _draw_measured(axes, point) if point.measured else _draw_floor(axes, point)
        rows.add(mark, point_cells(point, subject.model, subject.roof))

    for name, points in trail.stage_trails.items():
        ends = {point.batch: point for point in (points[0], points[-1])}
        for point in ends.values():
            _draw_floor(axes, point)
            _draw_gap(axes, point)
        axes.plot(
            [point.cost.intensity for point in points],
            [_height(axes, point) for point in points],
            color=LOOKS[name].color,
            linewidth=1.6,
            zorder=4,
        )
        for point in points:
            mark(point)
    xs = [step.cost.intensity for step in trail.steps]
    floors = [step.cost.flops / step.floor for step in trail.steps]
    axes.plot(xs, floors, color="black", linewidth=1.2, linestyle=":", zorder=3)
    measured = trail.measured
    axes.plot(
        [step.cost.intensity for step in measured],
        [step.rate for step in measured],
        color="black",
        linewidth=3.2,
        zorder=3,
    )
    for step in trail.steps:
        if step.measured:
            _draw_floor(axes, step)
        mark(step)


def _draw_floor(axes: Axes, point: Point) -> Line2D:
    look = LOOKS[point.name]
    rate = point.cost.flops / point.floor
    style = {"marker": look.marker, "mec": look.color, "mfc": "white", "ms": 7, "mew": 1.3}
    return axes.plot(point.cost.intensity, rate, linestyle="none", zorder=6, **style)[0]


def _draw_gap(axes: Axes, point: Point) -> None:
    """A thin line from what was measured up to the floor's rate."""
    x, heights = point.cost.intensity, (_height(axes, point), point.cost.flops / point.floor)
    axes.plot([x, x], heights, color=LOOKS[point.name].color, linewidth=1, zorder=3)


def _draw_measured(axes: Axes, point: Point) -> Line2D:
    look, x, height = LOOKS[point.name], point.cost.intensity, _height(axes, point)
    style = {"marker": look.marker, "mfc": look.color, "mec": "black", "ms": 8, "mew": 0.8}
    if height > point.rate:
        arrow = {"arrowstyle": "-|>", "color": "black"}
        away = {"xytext": (0, -20), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate("", (x, height), **away, arrowprops=arrow | {"arrowstyle": "<|-"})
    return axes.plot(x, height, linestyle="none", zorder=7, **style)[0]


def _height(axes: Axes, point: Point) -> float:
    """Where a point is drawn: at its rate, or a little above the lower edge if that lies below."""
    return max(point.rate, axes.get_ylim()[0] * 2.5)


def _draw_labels(axes: Axes, subject: Subject, trail: Trail) -> None:
    """The ridge; then of each trail its name and last batch at its end, its first at its start."""
    places = Places(axes)
    roof, (low, high), (bottom, top) = subject.roof, axes.get_xlim(), axes.get_ylim()
    trails = {trail.name: trail.measured, **trail.stage_trails}
    for points in [*trails.values(), trail.steps]:
        for point in points:
            places.take_mark(point.cost.intensity, _height(axes, point))
        xs = [point.cost.intensity for point in points]
        places.take_line(xs, [_height(axes, point) for point in points])
        for end in points if points is trail.steps else (points[0], points[-1]):
            floor = end.cost.flops / end.floor
            places.take_mark(end.cost.intensity, floor)
            places.take_line([end.cost.intensity] * 2, [_height(axes, end), floor])
    places.take_line([low, roof.ridge, high], [roof.flops_at(x) for x in (low, roof.ridge, high)])
    places.take_line([roof.ridge, roof.ridge], [bottom, top])

    def write(text: str, x: float, y: float, offsets=around, **style) -> None:
        offset = places.find(text, x, y, offsets, weight=style.get("fontweight", "normal"))
        if offset is None:
            return
        leader = {"arrowstyle": "-", "color": "black", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            text,
            (x, y),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            zorder=9,
            fontsize=FONT_SIZE,
            arrowprops=leader if offsets is around else None,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            **style,
        )

    write(_ridge_words(subject, trail), roof.ridge, bottom, along, multialignment="left")
    starts: list[tuple[int, tuple[float, float]]] = []
    for name, points in trails.items():
        first, last = points[0], points[-1]
        style = {"fontweight": "bold"} if name == trail.name else {}
        start = first.cost.intensity, _height(axes, first)
        end = last.cost.intensity, _height(axes, last)
        if math.dist(places.at(*start), places.at(*end)) < 10:
            batches = f"{first.batch}–{last.batch}" if last is not first else f"{last.batch}"
            write(f"{LOOKS[name].short} {batches}", *end, **style)
            continue
        write(f"{LOOKS[name].short} {last.batch}", *end, **style)
        here = places.at(*start)
        if not any(b == first.batch and math.dist(here, spot) < 12 for b, spot in starts):
            write(f"{first.batch}", *start, **style)
            starts.append((first.batch, here))


def _ridge_words(subject: Subject, trail: Trail) -> str:
    """The ridge in FLOP/byte, and where the whole denoising step meets it."""
    config, ridge = subject.record.models[subject.model], subject.roof.ridge
    words = f"ridge {three_digits(ridge)}"
    if trail.kind != DENOISE:
        return words
    crossing = ridge_crossing(config, trail.steps[0].forward, ridge)
    if crossing is None:
        return f"{words}, never\nmet by the step,\npredicted"
    return f"{words}, met\nby the step at\n{crossing.batch}×{crossing.block} rows,\npredicted"


def _draw_legend(figure: Figure, subject: Subject, top: float) -> None:
    dark = {"color": "black", "linestyle": "none", "marker": "o", "markersize": 8}
    handles = [
        Line2D([], [], label="measured; beside it: batch", **dark),
        Line2D([], [], label="predicted floor", markerfacecolor="white", **dark),
        Line2D([], [], label="measured, below the scale", **dark | {"marker": "$\u2193$"}),
        Line2D([], [], color="black", linewidth=3.2, label="whole step"),
        Line2D([], [], color="black", linestyle=":", label="whole step's floor"),
        Line2D([], [], color="black", linewidth=0.9, linestyle="-.", label="ridge, FLOP/byte"),
    ]
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=3,
        fontsize=FONT_SIZE,
        frameon=False,
    )


_COLUMNS = {
    "stage": 0.045,
    "batch×block": 0.43,
    "FLOP/byte": 0.55,
    "ms": 0.65,
    "floor ms,\npredicted": 0.77,
    "% of roof": 0.88,
    "held by": 1.0,
}


def _draw_table(axes: Axes, points: list[Point], roof: Roof) -> None:
    axes.set(xlim=(0, 1), ylim=(len(points) + 0.5, -1.1))
    axes.axis("off")
    style = {"fontsize": FONT_SIZE, "va": "center"}
    for name, x in _COLUMNS.items():
        left = name == "stage"
        axes.text(x, -0.45, name, ha="left" if left else "right", fontweight="bold", **style)
    axes.axhline(0.2, color="black", linewidth=0.8)
    for i, point in enumerate(points, start=1):
        look = LOOKS[point.name]
        axes.plot(0.02, i - 0.25, look.marker, color=look.color, markeredgecolor="black", ms=8)
        if i > 1 and point.batch != points[i - 2].batch:
            axes.axhline(i - 0.75, color=_GREY, linewidth=0.5)
        cells = [
            point.name,
            point.forward.label,
            three_digits(point.cost.intensity),
            three_digits(point.measured * 1e3),
            three_digits(point.floor * 1e3),
            percent(point.share_of_roof),
            roof.holder(point.cost),
        ]
        for (name, x), cell in zip(_COLUMNS.items(), cells, strict=True):
            axes.text(x, i - 0.25, cell, ha="left" if name == "stage" else "right", **style)
