"""Tables from a record alone: for the terminal, and in Markdown."""

import textwrap
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from dlm_roofline.ceilings import Ceiling, Latency
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import Forward
from dlm_roofline.model_check import (
    ERROR_HEADER,
    error_rows,
    model_check,
    outlier_lines,
    summary,
)
from dlm_roofline.records import Record, Row
from dlm_roofline.step_cost import STAGES
from dlm_roofline.text import percent, three_digits

READING = (
    "ms: median of cold-cache runs. GB/s and FLOP/s: compulsory bytes and FLOPs over that time."
    " % of roof: the least time the measured ceilings allow (a prediction) over the measured one."
    " A peer's time is given over ours; above 1 ours is faster."
)

_CELL = "ms, % of roof"

# Columns of words, and of those the ones that wrap; all others are numbers.
_WORDS = (
    *("shape", "stage", "ceiling", "what", "row", "setting", "task", "passages", "perplexity"),
    *("holds", "op", "forward"),
)
_WRAPPED = ("why", "mistake", "target", "ratio")


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def tables(record: Record) -> list[Table]:
    """Ceilings, each op, the forwards of each model, what is predicted of them, what was skipped.

    What has peers has a second table, of their times over ours.
    """
    found = [_ceilings(record)]
    ops = [row for row in record.rows if row.kind == "op"]
    for name, group in _grouped(ops, "name"):
        group = sorted(group, key=lambda row: list(row.shape.values()))
        found += [_ops(record, name, group), *_peers(name, group)]
    steps = [row for row in record.rows if row.kind != "op"]
    for name, group in _grouped(steps, "model"):
        found += _forwards(record, name, group)
    if record.ceilings.ops:
        found.append(_rates(record))
    if steps:
        found.append(errors(record))
    if record.skipped:
        left_out = [[each.what, each.why] for each in record.skipped]
        found.append(Table("Skipped", ["what", "why"], left_out))
    return found


def errors(record: Record) -> Table:
    """How far predictions are from what was measured."""
    check = model_check(record)
    notes = ["Predicted / measured - 1: below 0% it took longer than predicted."]
    notes += [f"Outlier: {line}" for line in outlier_lines(check)]
    title = f"Predicted and measured: {summary(check)}"
    return Table(title, ERROR_HEADER, error_rows(check), notes)


def heading(record: Record) -> str:
    """One paragraph: what ran, where, and how complete it is."""
    details = ", ".join(f"{name} {value}" for name, value in record.device.details.items())
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items())
    commit = record.commit[:10] + (" with local changes" if record.dirty else "")
    state = "" if record.complete else " The run was cut short: rows are missing."
    state += " A quick run: a few rows only." if record.scope == "quick" else ""
    return (
        f"{record.device.name} ({details}); {versions}; commit {commit}; {record.date};"
        f" {record.backend} backend.{state}"
    )


def print_tables(record: Record, console: Console) -> None:
    """The whole record on the terminal."""
    console.print(heading(record), highlight=False)
    console.print(READING, style="dim", highlight=False)
    for table in tables(record):
        print_table(table, console)


def print_table(table: Table, console: Console) -> None:
    """A table on the terminal, whole even where it is wider than that."""
    unbounded = console.options.update(max_width=10_000)
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name in table.header:
        drawn.add_column(
            textwrap.fill(name, 9, break_long_words=False),
            justify="left" if name in _WORDS + _WRAPPED else "right",
            no_wrap=name not in _WRAPPED,
            max_width=60 if name in _WRAPPED else None,
        )
    for row in table.rows:
        drawn.add_row(*row)
    drawn.width = console.measure(drawn, options=unbounded).maximum
    console.print(f"\n{table.title}", style="bold", highlight=False)
    console.print(drawn, crop=False)
    for note in table.notes:
        console.print(f"  {note}", style="dim", highlight=False)


def markdown(record: Record) -> str:
    """The whole record in Markdown."""
    parts = [heading(record), READING]
    for table in tables(record):
        lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows]
        parts.append(f"**{table.title}**")
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
        parts += table.notes
    return "\n\n".join(parts)


def _ceilings(record: Record) -> Table:
    measured, sheet = record.ceilings, DATASHEETS.get(record.device.name)
    streams = {
        "read": measured.read,
        "copy": measured.copy,
        "write": measured.write,
        "triad, a = b + s c": measured.triad,
        "read from L2": measured.l2,
    }
    rows = []
    for name, ceiling in streams.items():
        if ceiling:
            vendor = sheet.bandwidth if sheet and name == "read" else None
            rows.append(_ceiling_row(name, "GB/s", 1e9, ceiling, vendor))
    for dtype, ceiling in measured.matmul.items():
        vendor = sheet.matmul.get(dtype) if sheet else None
        rows.append(
            _ceiling_row(f"matrix product, {dtype}", *_compute_unit(record), ceiling, vendor)
        )
    if measured.exps:
        vendor = sheet.exps if sheet else None
        rows.append(_ceiling_row("exponentials", "G/s", 1e9, measured.exps, vendor))
    latencies = {"launch": measured.launch, "node of a CUDA graph": measured.graph_node}
    rows += [_ceiling_row(name, "us", 1e-6, each, None) for name, each in latencies.items() if each]
    ridges = [f"{dtype} {record.roof(dtype).ridge:.1f}" for dtype in measured.matmul]
    notes = [f"Ridge, FLOP/byte: {', '.join(ridges)}."]
    if sheet:
        notes.append(f"Datasheet: {sheet.source}, dense.")
    header = ["ceiling", "unit", "best: the roof", "median", "runs", "datasheet"]
    return Table("Ceilings, measured in this run", header, rows, notes)


def _ceiling_row(
    name: str, unit: str, scale: float, ceiling: Ceiling | Latency, vendor: float | None
) -> list[str]:
    best, median = three_digits(ceiling.best / scale), three_digits(ceiling.median / scale)
    sheet = three_digits(vendor / scale) if vendor else "-"
    return [name, unit, best, median, str(ceiling.runs), sheet]


def _rates(record: Record) -> Table:
    """What our ops reach, which predictions of forwards rest on."""
    rate, unit = _compute_unit(record)

    def cell(value: float | None, scale: float) -> str:
        return "-" if value is None else three_digits(value / scale)

    rows = [
        [
            name,
            cell(each.overhead, 1e-6),
            cell(each.first or None, 1e-6),
            cell(each.bandwidth, 1e9),
            cell(each.flops, unit),
        ]
        for name, each in record.ceilings.ops.items()
    ]
    notes = [
        "At shapes of no model; a call takes its overhead, and its bytes and FLOPs at these; from"
        " cold caches an op's first call takes as much more, of which all ops share the least."
    ]
    header = ["op", "overhead us", "first call us", "GB/s", rate]
    return Table("Our ops' rates", header, rows, notes)


def _ops(record: Record, title: str, rows: list[Row]) -> Table:
    """Sizes and our figures of one op."""
    body = [[_shape(row), *_figures(record, row)] for row in rows]
    return Table(f"{title}, {rows[0].dtype}", ["shape", *_figure_names(record)], body)


def _peers(title: str, rows: list[Row]) -> list[Table]:
    """Shape by peer, a column for each peer that ran anywhere; no table if there are no peers."""
    rows = [row for row in rows if row.peers]
    if not rows:
        return []
    ran = dict.fromkeys(peer.name for row in rows for peer in row.peers if peer.timing)
    columns = ["shape", *ran] if rows[0].kind == "op" else ["shape", "stage", *ran]
    body, label = [], ""
    for row in rows:
        repeated, label = label == _shape(row), _shape(row)
        cells = [label] if row.kind == "op" else ["" if repeated else label, row.name]
        body.append([*cells, *(_ratio(row, name) for name in ran)])
    refusals: dict[str, list[str]] = {}
    for peer in (peer for row in rows for peer in row.peers if peer.refused):
        names = refusals.setdefault(peer.refused, [])
        names += [peer.name] * (peer.name not in names)
    notes = [f"Refused, {', '.join(names)}: {why}" for why, names in refusals.items()]
    return [Table(f"{title}: peers' time over ours", columns, body, notes)]


def _forwards(record: Record, model: str, rows: list[Row]) -> list[Table]:
    """A model's forwards: in detail those whose stages have peers, in grids if there are others."""
    detailed = {row.forward for row in rows if row.kind == "stage" and row.peers}
    found = []
    for name, steps in _grouped([row for row in rows if row.kind == "step"], "name"):
        title = f"{name[0].upper()}{name[1:]} of {model}"
        of_kind = [row for row in rows if row.forward.kind == steps[0].forward.kind]
        of_kind.sort(key=lambda row: (*_place(row), row.forward.context))
        in_detail = [row for row in of_kind if row.forward in detailed]
        if in_detail:
            found.append(_detail(record, f"{title}, {in_detail[0].dtype}", in_detail))
        found += _peers(title, of_kind)
        if len({row.forward for row in in_detail}) < len(steps):
            found += _stage_grids(record, title, steps)
            if not all(record.stages_of(step) for step in steps):
                found.append(_grid(record, title, steps))
    return found


def _detail(record: Record, title: str, rows: list[Row]) -> Table:
    """Stages of each forward, the whole, and how far the stages' sum is from it."""
    body, notes = [], []
    for _, group in _grouped(rows, "forward"):
        label = _shape(group[0])
        for row in group:
            body.append([label, row.name, *_figures(record, row)])
            label = ""
            if row.kind == "step":
                shares = [_sum_of_stages(record, row)]
                notes.append(f"{_shape(row)}: the stages add up to {_shares(shares)}")
    return Table(title, ["shape", "stage", *_figure_names(record)], body, notes)


def _stage_grids(record: Record, title: str, steps: list[Row]) -> list[Table]:
    """Batches down and stages across, a table for each context."""
    found = []
    steps = [step for step in steps if record.stages_of(step)]
    for context in sorted({step.forward.context for step in steps}):
        group = sorted((s for s in steps if s.forward.context == context), key=_place)
        names = {row.name for step in group for row in record.stages_of(step)}
        columns = [stage for stage in STAGES if stage in names]
        body = []
        for step in group:
            measured = {row.name: row for row in record.stages_of(step)}
            cells = [_cell(record, measured.get(name)) for name in columns]
            body.append([_request(step.forward), *cells, _cell(record, step)])
        shares = [_sum_of_stages(record, step) for step in group]
        note = f"The stages add up to {_shares(shares)}"
        header = ["shape", *columns, "whole"]
        found.append(Table(f"{title}, context {context}: {_CELL}", header, body, [note]))
    return found


def _grid(record: Record, title: str, steps: list[Row]) -> Table:
    """Whole forwards: batches down, contexts across."""
    measured = {(_request(step.forward), step.forward.context): step for step in steps}
    contexts = sorted({context for _, context in measured})
    labels = dict.fromkeys(_request(step.forward) for step in sorted(steps, key=_place))
    body = [
        [label, *(_cell(record, measured.get((label, context))) for context in contexts)]
        for label in labels
    ]
    header = ["shape", *(f"context {context}" for context in contexts)]
    return Table(f"{title}: {_CELL}", header, body)


def _cell(record: Record, row: Row | None) -> str:
    if row is None:
        return "-"
    seconds = row.timing.median
    return f"{three_digits(seconds * 1e3)}, {percent(record.floor(row) / seconds)}"


def _sum_of_stages(record: Record, step: Row) -> float:
    """What the stages of a forward take one by one, over what it takes whole."""
    return sum(row.timing.median for row in record.stages_of(step)) / step.timing.median


def _shares(shares: list[float]) -> str:
    """Sums of stages as shares of the whole, with a warning where they say little."""
    low, high = (f"{share:.0%}" for share in (min(shares), max(shares)))
    text = f"{low} of the whole." if low == high else f"{low} to {high} of the whole."
    if min(shares) < 0.75 or max(shares) > 1.25:
        text += " Far from 100%: launches, or a busy machine."
    return text


def _place(row: Row) -> tuple:
    """Where a forward stands in a grid: the model's own weights before those in few bits."""
    forward = row.forward
    return forward.weights or "", forward.float8_cache, forward.block, forward.batch


def _figure_names(record: Record) -> list[str]:
    rate, _ = _compute_unit(record)
    return ["ms", "floor ms, predicted", "GB/s", rate, "% of roof", "held by"]


def _figures(record: Record, row: Row) -> list[str]:
    seconds, floor = row.timing.median, record.floor(row)
    _, unit = _compute_unit(record)
    return [
        three_digits(seconds * 1e3),
        three_digits(floor * 1e3),
        three_digits(row.bytes / seconds / 1e9),
        three_digits(row.flops / seconds / unit),
        percent(floor / seconds),
        record.roof(row.dtype).holder(row.cost),
    ]


def _compute_unit(record: Record) -> tuple[str, float]:
    """Name and FLOP/s of the unit that fits the device."""
    return ("TFLOP/s", 1e12) if record.device.kind == "cuda" else ("GFLOP/s", 1e9)


def ratio_to_peer(row: Row, name: str) -> float | None:
    """How many times as long as ours a peer took; None if it refused or there was none."""
    peer = next((peer for peer in row.peers if peer.name == name), None)
    return peer.timing.median / row.timing.median if peer and peer.timing else None


def _ratio(row: Row, name: str) -> str:
    if name not in {peer.name for peer in row.peers}:
        return "-"
    ratio = ratio_to_peer(row, name)
    return "refused" if ratio is None else f"{ratio:.2f}x"


def _shape(row: Row) -> str:
    sizes = dict(row.sizes)
    text = f"{sizes.pop('batch')} x {sizes.pop('block')}"
    if row.forward:
        text = _request(row.forward)
    return ", ".join([text, *(f"{name} {size}" for name, size in sizes.items())])


def _request(forward: Forward) -> str:
    """A forward but for its context."""
    return f"{forward.batch} x {forward.block}{forward.in_few_bits}"


def _grouped(rows: list[Row], attribute: str) -> list[tuple[object, list[Row]]]:
    """Rows by an attribute, groups in the order in which they first occur."""
    found: list[tuple[object, list[Row]]] = []
    for row in rows:
        value = getattr(row, attribute)
        members = next((members for known, members in found if known == value), None)
        if members is None:
            found.append((value, [row]))
        else:
            members.append(row)
    return found
