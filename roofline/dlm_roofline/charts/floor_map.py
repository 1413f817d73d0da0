"""How far whole steps are from their floor, over batch and context."""

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from ..forward import DECODE, DENOISE, STEP_NAMES
from ..points import Subject, commonest, subject_of
from ..records import Record, Row
from .chart import Chart, Rows
from .style import FONT_SIZE, write_title

NAME = "floor-map"
TITLE = "How many times the floor a whole step takes"
HEADER = ["kind", "model", "dtype", "batch", "block", "context", "measured_s", "predicted_floor_s",
          "measured_over_floor"]  # fmt: skip

# Light at the floor, dark far above it; its lightness falls evenly, so grey does as well.
_COLORS = colormaps["cividis_r"]
_TOP, _CELL, _BELOW = 1.4, 0.5, 0.75  # inches
_SCALE = (1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_LEAST_ROWS = 4  # as many rows of cells is a panel high at least


def floor_map_chart(record: Record) -> Chart | None:
    """A panel for denoising and one for AR decoding, a cell a batch and context. None for a record
    that has neither step behind two contexts.
    """
    subject = subject_of(record)
    panels = _panels(subject) if subject else {}
    if not panels:
        return None
    # All panels over the same batches and contexts, so that cells can be compared across them.
    shown = [row.forward for rows in panels.values() for row in rows]
    batches = sorted({forward.batch for forward in shown})
    contexts = sorted({forward.context for forward in shown})
    ratios = [row.timing.median / record.floor(row) for rows in panels.values() for row in rows]
    worst = max(ratios)
    norm = LogNorm(1, next((step for step in _SCALE[3:] if step >= worst), worst))

    tall = _CELL * max(_LEAST_ROWS, len(contexts))
    height = _TOP + tall + _BELOW
    figure = Figure(figsize=(10, height))
    write_title(figure, record, TITLE, *subject.words[:2])
    rows = Rows(NAME)
    width = 0.385 if len(panels) > 1 else 0.80
    for i, (kind, cells) in enumerate(panels.items()):
        axes = figure.add_axes((0.095 + i * 0.405, _BELOW / height, width, tall / height))
        _draw_cells(axes, record, cells, batches, contexts, norm, rows)
        _set_words(axes, kind, cells[0], batches, contexts, left=i == 0)
    _draw_scale(figure, norm, (0.905, _BELOW / height, 0.02, tall / height))
    about = (
        "At which batch and context does a step leave the most on the table? The number is its"
        " measured time over its predicted floor, 1 being as fast as the measured roofs allow;"
        " nobody measured the hatched cells."
    )
    return Chart(NAME, TITLE, about, figure, HEADER, rows.cells)


def _panels(subject: Subject) -> dict[str, list[Row]]:
    """Steps by kind, at the commonest block of each; of none, if no kind has two contexts."""
    panels = {}
    for kind in (DENOISE, DECODE):
        rows = [row for row in subject.steps if row.forward.kind == kind]
        if rows:
            block = commonest([row.forward.block for row in rows])
            panels[kind] = [row for row in rows if row.forward.block == block]
    wide = any(len({row.forward.context for row in rows}) > 1 for rows in panels.values())
    return panels if wide else {}


def _draw_cells(
    axes: Axes,
    record: Record,
    cells: list[Row],
    batches: list[int],
    contexts: list[int],
    norm: LogNorm,
    rows: Rows,
) -> None:
    axes.add_patch(
        Rectangle((0, 0), len(batches), len(contexts), fc="white", ec="#999999", hatch="///", lw=0)
    )
    for row in cells:
        forward, floor = row.forward, record.floor(row)
        ratio = row.timing.median / floor
        color = _COLORS(norm(max(ratio, 1.0)))
        x, y = batches.index(forward.batch), contexts.index(forward.context)
        cell = Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5)
        axes.add_patch(cell)
        sizes = [str(size) for size in (forward.batch, forward.block, forward.context)]
        times = [f"{row.timing.median:.6g}", f"{floor:.6g}", f"{ratio:.4g}"]
        rows.add(cell, [forward.kind, row.model, row.dtype, *sizes, *times])
        axes.text(
            x + 0.5,
            y + 0.5,
            f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}",
            ha="center",
            va="center",
            fontsize=FONT_SIZE,
            color="black" if _luminance(color) > 0.18 else "white",
        )


def _luminance(color: tuple[float, float, float, float]) -> float:
    """Light that a colour sends out, 0 to 1. Black and white stand out from 0.18 equally well."""
    red, green, blue, _ = (channel**2.2 for channel in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _set_words(
    axes: Axes, kind: str, row: Row, batches: list[int], contexts: list[int], *, left: bool
) -> None:
    axes.set(xlim=(0, len(batches)), ylim=(0, len(contexts)))
    axes.set_xticks([i + 0.5 for i in range(len(batches))], batches)
    axes.set_yticks(
        [i + 0.5 for i in range(len(contexts))], [f"{context:,}" for context in contexts]
    )
    axes.tick_params(labelsize=FONT_SIZE, labelleft=left, length=0)
    axes.set_xlabel("batch", fontsize=FONT_SIZE)
    if left:
        axes.set_ylabel("context, tokens", fontsize=FONT_SIZE)
    words = STEP_NAMES[kind] if kind == DECODE else f"{STEP_NAMES[kind]}, block {row.forward.block}"
    axes.set_title(words, loc="left", fontsize=FONT_SIZE, fontweight="bold", pad=5)


def _draw_scale(figure: Figure, norm: LogNorm, place: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(place)
    figure.colorbar(ScalarMappable(norm, _COLORS), cax=axes)
    ticks = [step for step in _SCALE if step <= norm.vmax]
    stride = -(-len(ticks) // 6)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks[::stride])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(labelsize=FONT_SIZE)
    axes.set_title("× floor", fontsize=FONT_SIZE, pad=12, loc="left")
