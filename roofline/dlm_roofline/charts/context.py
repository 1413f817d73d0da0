"""What context costs: step time over context at fixed batches, and its slope."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..forward import DECODE, DENOISE, STEP_NAMES
from ..points import Subject, commonest, subject_of
from ..records import Record, Row
from ..step_time import step_times, whole
from ..text import three_digits
from .axes import dress, label_logarithm
from .chart import Chart, Rows
from .style import FONT_SIZE, write_title

NAME = "context"
TITLE = "What a token of context costs"

_TOP, _PANEL, _TABLE, _LEGEND = 1.4, 4.1, 2.35, 0.55  # inches
_MOST = 4  # lines a panel
_LOOKS = [("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D")]
_DASHED = (0, (4, 2))

HEADER = [
    "kind", "model", "dtype", "batch", "block", "context", "measured_s", "pace",
    "predicted_s", "measured_slope_ns", "predicted_slope_ns",
]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Seconds of one kind of step at one batch, behind growing contexts."""

    rows: list[Row]
    predicted: list[float]

    @property
    def batch(self) -> int:
        return self.rows[0].forward.batch

    @property
    def contexts(self) -> list[int]:
        return [row.forward.context for row in self.rows]

    @property
    def measured(self) -> list[float]:
        """Seconds at one pace; see `Timing.paced`."""
        return [row.timing.paced for row in self.rows]

    @property
    def is_paced(self) -> bool:
        return any(row.timing.pace is not None for row in self.rows)

    @property
    def fit(self) -> tuple[float, float]:
        """Seconds a token of context, and at none: the least-squares line of what was measured."""
        return _fit(self.contexts, self.measured)

    @property
    def predicted_slope(self) -> float:
        """Of the least-squares line of the predictions at the same contexts."""
        return _fit(self.contexts, self.predicted)[0]


def context_chart(record: Record) -> Chart | None:
    """A panel for denoising and one for AR decoding, a line a batch; under them the slopes.

    Measured times are put at the pace of the run's beginning (see `Timing.paced`). None for a
    record that holds no such step behind two contexts or more.
    """
    subject = subject_of(record)
    if subject is None:
        return None
    panels = {kind: lines for kind in (DENOISE, DECODE) if (lines := lines_of(subject, kind))}
    if not panels:
        return None
    height = _TOP + _PANEL + _TABLE + _LEGEND
    figure = Figure(figsize=(10, height))
    write_title(figure, record, TITLE, subject.model, subject.dtype)
    rows = Rows(NAME)
    for i, (kind, lines) in enumerate(panels.items()):
        left, width = (0.085 + 0.5 * i, 0.335) if len(panels) > 1 else (0.085, 0.79)
        bottom = (_LEGEND + _TABLE) / height
        axes = figure.add_axes((left, bottom, width, _PANEL / height))
        for look, line in zip(_LOOKS, lines, strict=False):
            _draw_line(axes, subject, line, look, rows)
        _dress(axes, kind, lines)
        _write_slopes(figure, lines, left, height)
    _draw_legend(figure, _LEGEND / height)
    paced = any(line.is_paced for lines in panels.values() for line in lines)
    at = ", at the pace of the run's beginning" if paced else ""
    about = (
        "How much longer does a step take for each token of its requests' contexts? Marks are"
        f" measured{at}, with the straight line nearest to them; the dashed line is predicted, and"
        " the table holds both slopes."
    )
    return Chart(NAME, TITLE, about, figure, HEADER, rows.cells)


def lines_of(subject: Subject, kind: str) -> list[Line]:
    """Of one kind at its commonest block, up to four batches from the least to the most."""
    rows = [row for row in subject.steps if row.forward.kind == kind]
    if not rows:
        return []
    block = commonest([row.forward.block for row in rows])
    by_batch: dict[int, dict[int, Row]] = {}
    for row in rows:
        if row.forward.block == block:
            by_batch.setdefault(row.forward.batch, {})[row.forward.context] = row
    batches = sorted(batch for batch, found in by_batch.items() if len(found) > 1)
    if len(batches) > _MOST:
        last = len(batches) - 1
        batches = [batches[round(i * last / (_MOST - 1))] for i in range(_MOST)]
    lines = []
    for batch in batches:
        found = [by_batch[batch][context] for context in sorted(by_batch[batch])]
        lines.append(Line(found, [_predicted(subject, row) for row in found]))
    return lines


def _predicted(subject: Subject, row: Row) -> float:
    record = subject.record
    config = record.models[subject.model]
    stages = step_times(config, row.forward, record.ceilings, record.backend)
    return whole(stages).seconds


def _fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    slope, at_none = np.polyfit(xs, ys, 1)
    return float(slope), float(at_none)


def _draw_line(axes: Axes, subject: Subject, line: Line, look: tuple[str, str], rows: Rows) -> None:
    color, marker = look
    slope, at_none = line.fit
    xs = np.geomspace(max(1, line.contexts[0]), line.contexts[-1], 60)
    fitted = at_none + slope * xs
    axes.plot(xs[fitted > 0], 1e3 * fitted[fitted > 0], color=color, linewidth=1.6)
    dashes = {"color": color, "linestyle": _DASHED, "linewidth": 1.4}
    axes.plot(line.contexts, [1e3 * seconds for seconds in line.predicted], **dashes)
    for row, predicted in zip(line.rows, line.predicted, strict=True):
        forward, seconds = row.forward, row.timing.paced
        (mark,) = axes.plot(forward.context, 1e3 * seconds, marker, color=color, ms=8, zorder=3)
        rows.add(
            mark,
            [
                forward.kind,
                subject.model,
                subject.dtype,
                str(forward.batch),
                str(forward.block),
                str(forward.context),
                f"{row.timing.median:.6g}",
                "" if row.timing.pace is None else f"{row.timing.pace:.4f}",
                f"{predicted:.6g}",
                f"{1e9 * slope:.6g}",
                f"{1e9 * line.predicted_slope:.6g}",
            ],
        )
    at = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
    here = (line.contexts[-1], 1e3 * line.measured[-1])
    axes.annotate(f"batch {line.batch}", here, color=color, fontsize=FONT_SIZE, **at)


def _dress(axes: Axes, kind: str, lines: Sequence[Line]) -> None:
    contexts = sorted({context for line in lines for context in line.contexts})
    if contexts[0] == 0:  # which a logarithm has no place for
        axes.set_xscale("symlog", linthresh=contexts[1], linscale=0.6)
    else:
        axes.set_xscale("log")
    block = lines[0].rows[0].forward.block
    title = STEP_NAMES[kind] + (f", block {block}" if kind == DENOISE else "")
    axes.set_yscale("log")
    shown = contexts[:: -(-len(contexts) // 5)]
    axes.set_xticks(shown, [_in_k(context) for context in shown])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("tokens of context a request")
    paced = any(line.is_paced for line in lines)
    axes.set_ylabel("ms at the run's first pace" if paced else "ms", labelpad=2)
    dress(axes, title)
    label_logarithm(axes)


def _in_k(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def _write_slopes(figure: Figure, lines: Sequence[Line], left: float, height: float) -> None:
    """What a token more in each request's context adds to the step, as a table."""
    top, inch = _LEGEND + _TABLE - 0.75, 1 / height
    style = {"fontsize": FONT_SIZE, "va": "top", "ha": "right"}
    columns = [left + x for x in (0.04, 0.17, 0.29, 0.38)]
    head = ("batch", "ns a token", "predicted", "ratio")
    for x, word in zip(columns, head, strict=True):
        figure.text(x, top * inch, word, fontweight="bold", **style)
    for i, line in enumerate(lines, start=1):
        slope, predicted = 1e9 * line.fit[0], 1e9 * line.predicted_slope
        cells = [str(line.batch), three_digits(slope), three_digits(predicted)]
        cells.append(f"{slope / predicted:.2f}")
        for x, cell in zip(columns, cells, strict=True):
            figure.text(x, (top - 0.27 * i) * inch, cell, **style)


def _draw_legend(figure: Figure, top: float) -> None:
    black = {"color": "black"}
    marks = [
        Line2D([], [], linestyle="none", marker="o", markersize=8, label="measured", **black),
        Line2D([], [], linewidth=1.6, label="its least-squares line", **black),
        Line2D([], [], linewidth=1.4, linestyle=_DASHED, label="predicted", **black),
    ]
    figure.legend(
        handles=marks, loc="upper center", bbox_to_anchor=(0.5, top), ncols=3, fontsize=FONT_SIZE,
        frameon=False,
    )  # fmt: skip
