"""A picture of how the tokens of one generation came: positions across, forwards down.

A row is what stands after one denoising step, or after one cycle of self-speculation. Needs
matplotlib.
"""

import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .decoding import StepEvent
from .whole_file import replacing

FORMATS = ("png", "svg", "pdf")

# What a cell can be: NEW or EDITED in the row that decides it, EARLIER in those below.
OPEN, GIVEN, NEW, EDITED, EARLIER, REMASKED = (
    "undecided",
    "given beforehand",
    "new",
    "replaced another",
    "earlier",
    "undecided again",
)

# Inches, but for the font sizes.
ROW, LEAST_COLUMN, CHARACTER = 0.25, 0.27, 0.068
MARGIN, ROW_LABELS, PANEL_HEAD, PANEL_GAP = 0.3, 0.4, 0.42, 0.3
HEADER, LEAST_WIDTH, MAX_WIDTH, MAX_HEIGHT = 1.85, 10.0, 18.0, 36.0
FONT_SIZE, TOKEN_FONT_SIZE, SMALL_FONT_SIZE = 10, 8, 6.5
LONGEST_LABEL = 12  # characters
BAR = 2.4

PALE = 0.72  # how far an earlier cell's colour goes to white
RIGHT_DRAFT, VERIFIER = "#009E73", "#E69F00"  # Okabe-Ito: colour-blind readers tell them apart
INK, QUIET, EDGE, MASK = "#111111", "#666666", "#C4C4C4", "#EAEAEA"


class Cell(NamedTuple):
    """color: that of what decided the token; None where nothing did."""

    label: str
    kind: str
    color: str | None = None


class Panel(NamedTuple):
    """Rows of the same positions, the first of which is `first`; each row begins with its name."""

    title: str
    first: int
    rows: list[tuple[str, list[Cell]]]


class Trace(NamedTuple):
    """rows_are: "step" or "cycle". measure, scale: of confidences; None where there are none."""

    panels: list[Panel]
    rows_are: str
    measure: str | None = None
    scale: Normalize | None = None


def trace_of_steps(
    events: Sequence[StepEvent], label: Callable[[int], str], confidence: str = "probability"
) -> Trace:
    """What the denoising steps of `generate`, `infill` or `refine` did, a panel a block.

    Args:
        events: all of them, in order.
        label: a token id as it is to be shown; "" shows none, as fits the mask.
        confidence: that of the rule, as in `Rule.confidence`.
    """
    scale, measure = Normalize(0, 1), confidence
    if confidence == "entropy":  # its negative has no least value but the one met
        least = min((c for event in events for c in event.confidences), default=0)
        scale, measure = Normalize(min(least, -0.1), 0), "negative entropy, nats"
    panels, first = [], 0
    for block, steps in groupby(events, lambda event: event.block):
        rows: list[tuple[str, list[Cell]]] = []
        colors: dict[int, str] = {}
        for event in steps:
            shades = (_shade(scale(confidence)) for confidence in event.confidences)
            colors |= zip(event.committed, shades, strict=True)
            kinds = dict.fromkeys(colors, EARLIER)
            kinds |= dict.fromkeys(event.committed, NEW) | dict.fromkeys(event.edited, EDITED)
            kinds |= dict.fromkeys(event.undecided, OPEN) | dict.fromkeys(event.remasked, REMASKED)
            cells = [
                Cell(label(token), kinds.get(i, GIVEN), colors.get(i))
                for i, token in enumerate(event.tokens)
            ]
            rows.append((str(event.step + 1), cells))
        panels.append(Panel(f"block {block + 1}", first, rows))
        first += len(event.tokens)
    return Trace(panels, "step", measure, scale)


def trace_of_cycles(
    tokens: Sequence[int], accepted: Sequence[int], mode: str, label: Callable[[int], str]
) -> Trace:
    """What the cycles of self-speculation emitted: drafts that were right, and the verifier's own.

    Args:
        tokens, accepted: of the Generation.
        mode: "linear_spec", where a token of the prompt's forward comes first and each cycle ends
            with the verifier's own; or "quadratic_spec", where each begins with it.
        label: a token id as it is to be shown.
    """
    linear = mode == "linear_spec"
    ends = list(accumulate(accepted, initial=int(linear)))
    own = {end - 1 for end in ends} if linear else set(ends)
    cells = [
        Cell(label(token), NEW, VERIFIER if i in own else RIGHT_DRAFT)
        for i, token in enumerate(tokens)
    ]
    if linear:
        cells[0] = Cell(cells[0].label, GIVEN)
    rows = []
    for cycle, (start, end) in enumerate(pairwise(ends), 1):
        old = [cell if cell.kind == GIVEN else cell._replace(kind=EARLIER) for cell in cells]
        row = old[:start] + cells[start:end] + [Cell("", OPEN) for _ in cells[end:]]
        rows.append((str(cycle), row))
    return Trace([Panel("", 0, rows)] if rows else [], "cycle")


def save_picture(trace: Trace, path: Path, title: str, details: str) -> None:
    """Draw and write a trace: the whole file or, on an error, none.

    Args:
        path: ends in one of FORMATS.
        title, details: the headline, and lines under it.

    Raises:
        OSError: the file cannot be written.
    """
    figure = picture(trace, title, details)
    with replacing(path) as unfinished, warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(unfinished, format=path.suffix[1:].lower(), dpi=130)


def picture(trace: Trace, title: str, details: str) -> Figure:
    """The picture of a trace, at most MAX_WIDTH x MAX_HEIGHT inches; it says what it leaves out."""
    panels = [part for panel in trace.panels for part in _in_width(panel)]
    placed, height, left_out = _placed(panels)
    width = max([LEAST_WIDTH, *(x + _width(panel) + MARGIN for x, _, panel in placed)])
    height += PANEL_HEAD if left_out else MARGIN
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))  # inches, downwards
    axes.set_axis_off()
    for x, y, panel in placed:
        _draw_panel(axes, x, y, panel, trace.rows_are)
    _write(axes, MARGIN, 0.32, title, FONT_SIZE + 3, weight="bold")
    _write(axes, MARGIN, 0.68, details, FONT_SIZE, color=QUIET)
    _draw_key(axes, trace, placed)
    if left_out:
        n_rows = sum(len(panel.rows) for panel in panels)
        note = f"{n_rows - left_out} of {n_rows} rows fit; ask for fewer tokens to see the rest"
        _write(axes, MARGIN, height - 0.2, note, FONT_SIZE, weight="bold")
    return figure


# --- where panels stand


def _columns(panel: Panel) -> list[float]:
    """Each position's width, by the longest token that ever stood there."""
    cells = zip(*(row for _, row in panel.rows), strict=True)
    longest = [max(len(_shortened(cell.label)) for cell in column) for column in cells]
    return [max(LEAST_COLUMN, CHARACTER * n + 0.09) for n in longest]


def _width(panel: Panel) -> float:
    return ROW_LABELS + sum(_columns(panel))


def _in_width(panel: Panel) -> list[Panel]:
    """The panel, or parts of it that a picture has the width for.

    A part has the rows from the first that decided something in it to the last.
    """
    room = MAX_WIDTH - 2 * MARGIN - ROW_LABELS
    starts, used = [0], 0.0
    for i, width in enumerate(_columns(panel)):
        used += width
        if used > room:
            starts.append(i)
            used = width
    if len(starts) == 1:
        return [panel]
    parts = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        rows = [(name, cells[start:end]) for name, cells in panel.rows]
        busy = [
            i
            for i, (_, cells) in enumerate(rows)
            if any(cell.kind in (NEW, EDITED, REMASKED) for cell in cells)
        ]
        rows = rows[busy[0] : busy[-1] + 1] if busy else rows[-1:]
        parts.append(Panel(panel.title, panel.first + start, rows))
    return parts


def _placed(panels: list[Panel]) -> tuple[list[tuple[float, float, Panel]], float, int]:
    """Panels from left to right and in lines, each with its left and its upper end.

    Also how high that is, and how many rows were left out for want of height.
    """
    placed: list[tuple[float, float, Panel]] = []
    x, y, line_height, left_out = MARGIN, HEADER, 0.0, 0
    for panel in panels:
        width = _width(panel)
        if x > MARGIN and x + width > MAX_WIDTH - MARGIN:
            x, y, line_height = MARGIN, y + line_height + PANEL_GAP, 0.0
        room = int((MAX_HEIGHT - PANEL_HEAD - y - PANEL_HEAD) / ROW)
        if left_out or room < 1:
            left_out += len(panel.rows)
            continue
        left_out += len(panel.rows[room:])
        panel = panel._replace(rows=panel.rows[:room])
        placed.append((x, y, panel))
        line_height = max(line_height, PANEL_HEAD + ROW * len(panel.rows))
        x += width + PANEL_GAP
    return placed, y + line_height, left_out


# --- what stands in them


def _draw_panel(axes: Axes, x: float, y: float, panel: Panel, rows_are: str) -> None:
    columns = _columns(panel)
    lefts = list(accumulate(columns, initial=x + ROW_LABELS))
    _write(axes, lefts[0], y, panel.title, FONT_SIZE)
    quiet = {"color": QUIET, "ha": "right"}
    _write(axes, lefts[0] - 0.08, y + 0.27, rows_are, SMALL_FONT_SIZE, **quiet)
    for i, (left, width) in enumerate(zip(lefts, columns, strict=False)):
        middle = quiet | {"ha": "center"}
        _write(axes, left + width / 2, y + 0.27, panel.first + i, SMALL_FONT_SIZE, **middle)
    y += PANEL_HEAD
    for name, cells in panel.rows:
        _write(axes, lefts[0] - 0.08, y + ROW / 2, name, TOKEN_FONT_SIZE, **quiet)
        for left, width, cell in zip(lefts, columns, cells, strict=False):
            _draw_cell(axes, left, y, width, cell)
        y += ROW


def _draw_cell(axes: Axes, x: float, y: float, width: float, cell: Cell) -> None:
    face, ink = "white", QUIET
    if cell.kind in (OPEN, REMASKED):
        face, ink = MASK, "#A0A0A0"
    elif cell.kind != GIVEN:
        face = _paler(cell.color) if cell.kind == EARLIER else cell.color
        ink = ink_on(face)
    edge = {"edgecolor": EDGE, "linewidth": 0.6}
    if cell.kind == EDITED:
        edge = {"edgecolor": INK, "linewidth": 1.8, "zorder": 2}
    axes.add_patch(Rectangle((x, y), width, ROW, facecolor=face, **edge))
    x, y = x + width / 2, y + ROW / 2
    middle = {"family": "DejaVu Sans Mono", "ha": "center", "zorder": 3}
    if cell.kind == REMASKED:
        _write(axes, x, y, "×", FONT_SIZE + 2, color="#B03A00", **middle)
    elif cell.label:
        _write(axes, x, y, _shortened(cell.label), TOKEN_FONT_SIZE, color=ink, **middle)


def _draw_key(axes: Axes, trace: Trace, placed: list[tuple[float, float, Panel]]) -> None:
    """What the colours mean, of those that occur."""
    kinds = {c.kind for _, _, panel in placed for _, cells in panel.rows for c in cells}
    x, y = MARGIN, HEADER - 0.7
    if trace.scale is None:
        samples = [("draft that was right", NEW, RIGHT_DRAFT), ("verifier's own", NEW, VERIFIER)]
        color = RIGHT_DRAFT
    else:
        low, high = trace.scale.vmin, trace.scale.vmax
        n = 120
        for i in range(n):
            share = _shade((i + 0.5) / n)
            axes.add_patch(Rectangle((x + i * BAR / n, y), BAR / n, 0.17, color=share, linewidth=0))
        under = y + 0.29
        _write(axes, x, under, f"{low:.3g}", TOKEN_FONT_SIZE, color=QUIET)
        _write(axes, x + BAR, under, f"{high:.3g}", TOKEN_FONT_SIZE, color=QUIET, ha="right")
        _write(axes, x + BAR / 2, under, trace.measure, TOKEN_FONT_SIZE, ha="center")
        x += BAR + 0.35
        color = _shade(0.7)
        samples = [(NEW, NEW, color), (EDITED, EDITED, color)]
    samples += [(kind, kind, color) for kind in (EARLIER, GIVEN, OPEN, REMASKED)]
    for name, kind, color in samples:
        if kind in kinds:
            _draw_cell(axes, x, y - 0.04, LEAST_COLUMN, Cell("", kind, color))
            _write(axes, x + LEAST_COLUMN + 0.07, y + 0.085, name, TOKEN_FONT_SIZE + 1)
            x += LEAST_COLUMN + 0.25 + 0.074 * len(name)


# --- letters and colours


def _write(axes: Axes, x: float, y: float, text: object, size: float, **style) -> None:
    style = {"color": INK, "ha": "left", "va": "center_baseline"} | style
    axes.text(x, y, str(text), fontsize=size, parse_math=False, **style)


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _shade(share: float) -> str:
    """The colour of a confidence at this share of its scale."""
    return to_hex(colormaps["viridis"](float(share)))


def _paler(color: str) -> str:
    return to_hex([channel + (1 - channel) * PALE for channel in to_rgb(color)])


def ink_on(color: str) -> str:
    """Black or white, whichever contrasts more (WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#FFFFFF"
