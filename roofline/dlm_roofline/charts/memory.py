"""What takes the memory, over batch and context: weights, keys and values, activations, logits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..forward import DENOISE, Forward
from ..memory import Memory, peak_memory
from ..points import Subject, subject_of
from ..records import Record, memory_of
from .axes import dress
from .chart import Chart, Rows
from .style import FONT_SIZE, write_title

NAME = "memory"
TITLE = "What a denoising step keeps in memory, predicted"

BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (1024, 8192, 65536)

_TOP, _PANEL, _WORDS, _LEGEND = 1.65, 4.2, 0.95, 0.85  # inches
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


@dataclass(frozen=True)
class _Look:
    color: str
    hatch: str
    label: str


_LOOKS = {
    "weights": _Look("#0072B2", "", "weights"),
    "kv": _Look("#E69F00", "...", "keys and values"),
    "activations": _Look("#009E73", "///", "activations"),
    "logits": _Look("#D55E00", "xx", "logits"),
    "more_if_sampled": _Look("#FFFFFF", "\\\\", "more where steps sample"),
}
HEADER = [
    "part", "model", "dtype", "batch", "block", "context", "predicted_bytes",
    "predicted_bytes_of_all_parts", "device_bytes",
]  # fmt: skip


@dataclass(frozen=True)
class _Bar:
    """greedy, sampled: bytes of a step that takes the likeliest tokens, and of one that draws."""

    forward: Forward
    greedy: Memory
    sampled: Memory

    @property
    def total(self) -> int:
        return max(self.greedy.total, self.sampled.total)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of those that are there, from below."""
        parts = vars(self.greedy) | {"more_if_sampled": self.total - self.greedy.total}
        return {name: size for name, size in parts.items() if size}


def memory_chart(record: Record) -> Chart | None:
    """A panel a context, a bar a batch, and the device's memory as a line; all of it predicted.

    None for a record without a model that has whole steps.
    """
    subject = subject_of(record)
    if subject is None:
        return None
    panels = _bars(subject)
    device = memory_of(record.device)
    bars = [bar for panel in panels for bar in panel]
    highest = max(bar.total for bar in bars)
    top = min(highest, 1.25 * device) if device else highest
    unit, scale = next((u for u in _UNITS.items() if top >= u[1]), ("KiB", 2**10))
    height = _TOP + _PANEL + _WORDS + _LEGEND
    figure = Figure(figsize=(10, height))
    words = (subject.model, subject.dtype, f"blocks of {bars[0].forward.block}")
    write_title(figure, record, TITLE, *words)
    rows, first = Rows(NAME), None
    pitch = 0.90 / len(panels)
    for i, panel in enumerate(panels):
        at = (0.09 + i * pitch, (_LEGEND + _WORDS) / height, pitch - 0.015, _PANEL / height)
        axes = figure.add_axes(at, sharey=first)
        first = first or axes
        for x, bar in enumerate(panel):
            _draw_bar(axes, x, bar, subject, device, rows, top, scale)
        _dress(axes, panel, device, top, unit, scale, left=i == 0)
    shown = {part for bar in bars for part in bar.parts}
    _draw_legend(figure, shown, device, top, _LEGEND / height)
    about = (
        "What takes the memory, and how many requests fit? Every bar is predicted, none measured;"
        f" the {unit} under it are those of a greedy step and of one that samples, which sorts"
        " its logits."
    )
    return Chart(NAME, TITLE, about, figure, HEADER, rows.cells)


def _bars(subject: Subject) -> list[list[_Bar]]:
    """By context and batch. A model of a shorter span has the contexts that fit it."""
    config, like = subject.record.models[subject.model], subject.steps[0].forward
    most = config.max_position_embeddings - config.block_size
    contexts = [context for context in CONTEXTS if context <= most] or [most]
    panels = []
    for context in contexts:
        panels.append([])
        for batch in BATCHES:
            sizes = {"batch": batch, "block": config.block_size, "context": context}
            forward = replace(like, kind=DENOISE, **sizes)
            cached = context + config.block_size
            greedy, sampled = (
                peak_memory(config, forward, cached, sampled=each, backend=subject.record.backend)
                for each in (False, True)
            )
            panels[-1].append(_Bar(forward, greedy, sampled))
    return panels


def _draw_bar(
    axes: Axes,
    x: int,
    bar: _Bar,
    subject: Subject,
    device: int | None,
    rows: Rows,
    top: float,
    scale: int,
) -> None:
    bottom, forward = 0, bar.forward
    for part, size in bar.parts.items():
        look = _LOOKS[part]
        style = {"color": look.color, "edgecolor": "black", "hatch": look.hatch, "linewidth": 0.6}
        (patch,) = axes.bar(x, size / scale, 0.7, bottom / scale, **style)
        cells = [part, subject.model, subject.dtype]
        cells += [str(each) for each in (forward.batch, forward.block, forward.context)]
        cells += [str(size), str(bar.total), "" if device is None else str(device)]
        rows.add(patch, cells)
        bottom += size
    if bar.total > 1.001 * top:
        words = {"ha": "center", "va": "bottom", "fontsize": FONT_SIZE, "annotation_clip": False}
        axes.annotate("↑", (x, top / scale), xytext=(0, 1), textcoords="offset points", **words)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _dress(
    axes: Axes,
    panel: Sequence[_Bar],
    device: int | None,
    top: float,
    unit: str,
    scale: int,
    *,
    left: bool,
) -> None:
    if device is not None and device <= top:
        axes.axhline(device / scale, color="white", linewidth=4, zorder=3)
        axes.axhline(device / scale, color="black", linewidth=2, linestyle=(0, (4, 2)), zorder=3)
    axes.set_ylim(0, top / scale)
    axes.set_xlim(-0.6, len(panel) - 0.4)
    totals = [(_short(bar.greedy.total / scale), _short(bar.total / scale)) for bar in panel]
    labels = [
        f"{bar.forward.batch}\n{greedy}\n{sampled}"
        for bar, (greedy, sampled) in zip(panel, totals, strict=True)
    ]
    axes.set_xticks(range(len(panel)), labels)
    if left:
        axes.set_ylabel(unit)
        names = {"xytext": (-8, -6.5), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate(
            "batch\ngreedy\nsampled", (0, 0), xycoords="axes fraction", fontsize=FONT_SIZE, **names
        )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    dress(axes, f"context {panel[0].forward.context:,}", pad=18)
    axes.tick_params(labelleft=left)


def _draw_legend(
    figure: Figure, shown: set[str], device: int | None, top: float, at: float
) -> None:
    marks = [
        Patch(facecolor=look.color, edgecolor="black", hatch=look.hatch, label=look.label)
        for name, look in _LOOKS.items()
        if name in shown
    ]
    if device is not None:
        where = "" if device <= top else ", above the scale"
        label = f"the device's {device / 2**30:.0f} GiB{where}"
        marks.append(Line2D([], [], color="black", lw=2, linestyle=(0, (4, 2)), label=label))
    figure.legend(
        handles=marks, loc="upper center", bbox_to_anchor=(0.5, at), ncols=3, fontsize=FONT_SIZE,
        frameon=False, handleheight=1.2,
    )  # fmt: skip
