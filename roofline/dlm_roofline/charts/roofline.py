"""The roofline: where each stage of a forward sits over growing batch, and what holds it."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..datasheets import DATASHEETS
from ..forward import DENOISE
from ..points import forward_of, panel_title, panels_of, subject_of
from ..predict import Roof, ridge_crossing
from ..records import BenchRecord
from ..step_cost import REMASK
from ..text import three_digits, with_prefix
from .chart import Chart, Marks
from .style import DARK, DASHED, GREY, LOOKS, stacked, styled, write_title

NAME = "roofline"
TITLE = "How far each stage is from the roof"
ABOUT = (
    "What holds each stage back as the batch grows, and how far is it from what the device can do?"
    " Left of the ridge memory bounds it, right of it compute; a mark grows with its batch, and"
    " above the smallest and the largest a hollow one is the predicted floor."
)

_PANEL, _WORDS = 2.1, 2.6  # inches
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8"}


@styled
def roofline_chart(record: BenchRecord, points: pd.DataFrame) -> Chart | None:
    """Log-log, FLOP/s over FLOP/byte: a panel a kind of forward, a trail over batch a stage.

    The remask scatter, some additions a row, lies decades below the others and is left out. None
    for a record of cycles alone, which have no panel.
    """
    if not (panels := panels_of(points[points.name != REMASK])):
        return None
    figure, drawn = stacked(len(panels), _WORDS + _PANEL * len(panels))
    write_title(figure, record, TITLE, *subject_of(points))
    limits, marks = _limits(record, panels.values()), Marks(NAME)
    for axes, panel in zip(drawn, panels.values(), strict=True):
        axes.set(xscale="log", yscale="log", ylabel="FLOP/s", title=panel_title(panel), **limits)
        axes.grid(True)
        axes.minorticks_off()
        _draw_roofs(axes, record, panel.dtype.iloc[0])
        _write_ridge(axes, record, panel)
        axes.label_outer()
        for _, trail in panel.groupby("name", sort=False):
            _draw_trail(axes, trail.to_dict("records"), marks)
    drawn[-1].set_xlabel("FLOP/byte (compulsory)")
    _draw_legend(figure, record, points)
    return marks.chart(TITLE, ABOUT, figure)


def _limits(record: BenchRecord, panels: Iterable[pd.DataFrame]) -> dict[str, object]:
    """The same for all panels, so that all points and roofs lie inside."""
    points = pd.concat(panels)
    peaks = [ceiling.best for ceiling in record.ceilings.matmul.values()]
    right = max(points.flop_per_byte.max(), record.roof(points.dtype.iloc[0]).ridge)
    rates = points.flops / points.measured_s
    return {"xlim": (points.flop_per_byte.min() / 2, 4 * right),
            "ylim": (rates.min() / 3, 3 * max(peaks))}  # fmt: skip


def _draw_roofs(axes: Axes, record: BenchRecord, dtype: str) -> None:
    """Solid: measured in this run. Dashed: the datasheet's."""
    low, high = axes.get_xlim()

    def draw(roof: Roof, begin: float, end: float, **line) -> None:
        xs = sorted({begin, min(max(roof.ridge, begin), end), end})
        axes.plot(xs, [min(x * roof.bandwidth, roof.peak) for x in xs], zorder=2, **line)

    ceilings, roof = record.ceilings, record.roof(dtype)
    draw(roof, low, high, color="black", linewidth=2)
    for other, ceiling in ceilings.matmul.items():
        if other != dtype:
            flat = Roof(roof.bandwidth, ceiling.best)
            draw(flat, flat.ridge, high, color=GREY, linewidth=1)
    if ceilings.l2:
        above = Roof(ceilings.l2.best, roof.peak)
        draw(above, low, above.ridge, color=GREY, linewidth=1)
    if sheet := DATASHEETS.get(record.device.name):
        stated = sheet.ceilings().roof(dtype)
        draw(stated, low, high, color="black", linewidth=1.1, linestyle=DASHED)
    axes.axvline(roof.ridge, color="black", linewidth=0.9, linestyle="-.", zorder=1)


def _write_ridge(axes: Axes, record: BenchRecord, panel: pd.DataFrame) -> None:
    """The ridge in FLOP/byte, and where the whole denoising step meets it."""
    step = forward_of(panel.iloc[-1])
    ridge = record.roof(step.dtype).ridge
    words = f"ridge: {three_digits(ridge)} FLOP/byte"
    if step.kind == DENOISE:
        crossing = ridge_crossing(record.models[panel.model.iloc[0]], step, ridge)
        met = crossing and "meets it at {}×{} rows".format(*crossing)
        words += f"\nthe step {met or 'never meets it'}, predicted"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(0.985, 0.05, words, transform=axes.transAxes, ha="right", bbox=box, zorder=6)


def _draw_trail(axes: Axes, trail: Sequence[Mapping[str, object]], marks: Marks) -> None:
    """A stage over growing batch: filled at what was measured, hollow at the ends' floors."""
    look, last = LOOKS[trail[0]["name"]], len(trail) - 1
    xs = [each["flop_per_byte"] for each in trail]
    rates = [each["flops"] / each["measured_s"] for each in trail]
    axes.plot(xs, rates, color=look.color, linewidth=1.4, zorder=3)
    for i, (x, rate, each) in enumerate(zip(xs, rates, trail, strict=True)):
        if i in (0, last):
            floor = each["flops"] / each["predicted_floor_s"]
            axes.plot([x, x], [rate, floor], color=look.color, lw=0.8)
            axes.plot(x, floor, look.marker, mfc="white", mec=look.color, ms=6, zorder=4)
        size = 3.5 + 4 * i / max(1, last)
        style = {"color": look.color, "mec": "black", "mew": 0.5, "ms": size, "zorder": 5}
        (mark,) = axes.plot(x, rate, look.marker, **style)
        marks.add(each, mark)


def _draw_legend(figure: Figure, record: BenchRecord, points: pd.DataFrame) -> None:
    dtype, names = points.dtype.iloc[0], dict.fromkeys(points.name)

    def roof(words: str, roof: Roof) -> str:
        return f"{words}:\n{with_prefix(roof.bandwidth, 'B/s')}, {with_prefix(roof.peak, 'FLOP/s')}"

    stages = {LOOKS[name].short: LOOKS[name] for name in names if name != REMASK}
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, mec="black", mew=0.5, label=name)
        for name, look in stages.items()
    ]
    few, many = points.batch.min(), points.batch.max()
    batches = f"batch {few} (small) to {many}" if few < many else f"batch {few}"
    handles += [
        Line2D([], [], marker="o", label=f"measured, {batches}", **DARK),
        Line2D([], [], marker="o", mfc="white", label="predicted floor", **DARK),
        Line2D([], [], color="black", lw=0.9, linestyle="-.", label="ridge"),
        Line2D([], [], color="black", lw=2, label=roof("roof, measured", record.roof(dtype))),
    ]
    if sheet := DATASHEETS.get(record.device.name):
        label = roof("its datasheet", sheet.ceilings().roof(dtype))
        handles.append(Line2D([], [], color="black", lw=1.1, linestyle=DASHED, label=label))
    rates = {name: ceiling.best for name, ceiling in record.ceilings.matmul.items()}
    others = [_SHORT.get(name, name) for name in sorted(rates, key=rates.get) if name != dtype]
    if others:
        slope = "L2 and peaks" if record.ceilings.l2 else "peaks"
        label = textwrap.fill(f"measured {slope}, from below {', '.join(others)}", 30)
        handles.append(Line2D([], [], color=GREY, lw=1, label=label))
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
