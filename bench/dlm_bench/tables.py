"""Tables of a bench's record, for terminal, Markdown and CSV alike."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import Forward
from dlm_roofline.model_check import error_table, predictions
from dlm_roofline.records import BenchRecord, Row
from dlm_roofline.tables import Table, markdown, show
from dlm_roofline.text import percent, three_digits

from .targets import evaluate

if TYPE_CHECKING:
    import pandas as pd

READING = (
    "ms: median of cold-cache runs. Floor: the least time that the measured ceilings allow, a"
    " prediction; % of roof: that over the measured time. GB/s and FLOP/s: compulsory bytes and"
    " FLOPs over that time. A peer's time is given over ours, as in 1.3x: above 1 ours is faster."
)

_RATIO = "{:.2f}x".format
_FORMATS = {
    "ms": three_digits, "predicted ms": three_digits, "floor ms": three_digits,
    "GB/s": three_digits, "GFLOP/s": three_digits, "TFLOP/s": three_digits, "% of roof": percent,
}  # fmt: skip


def tables(record: BenchRecord) -> list[Table]:
    """Ceilings, each op, the forwards of each model, targets, predictions, what was skipped."""
    found = [_ceilings(record)]
    ops = [row for row in record.rows if row.kind == "op"]
    for name, dtype in dict.fromkeys((row.name, row.dtype) for row in ops):
        rows = [row for row in ops if (row.name, row.dtype) == (name, dtype)]
        rows.sort(key=lambda row: list(row.shape.values()))
        frame = _frame([{"shape": in_words(row.shape), **_figures(record, row)} for row in rows])
        notes = _refusals(rows)
        found.append(Table(f"{name}, {dtype}", frame, notes, _formats(frame)))
    for model in record.models:
        found += _forwards(record, model)
    if record.device.kind == "cuda":
        found.append(_targets(record))
    found.append(error_table(record))
    if record.skipped:
        rows = [{"skipped": each.what, "why": each.why} for each in record.skipped]
        found.append(Table("What was left out", _frame(rows)))
    return found


def print_record(record: BenchRecord, console: Console) -> None:
    """The whole record on a terminal."""
    console.print(heading(record), highlight=False, soft_wrap=True)
    console.print(READING, style="dim", highlight=False)
    for table in tables(record):
        show(table, console)


def in_markdown(record: BenchRecord) -> str:
    """The whole record in Markdown."""
    parts = [heading(record), READING]
    for table in tables(record):
        parts += [f"**{table.title}**", markdown(table)]
    return "\n\n".join(parts)


def heading(record: BenchRecord) -> str:
    """Device, backend, versions, commit and date in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    changes = " with local changes" if record.dirty else ""
    state = "" if record.complete else "; INCOMPLETE: the run was cut short"
    return (
        f"{record.device.label}, {record.backend} backend, {versions}, commit"
        f" {record.commit[:10]}{changes}, {record.date}{state}"
    )


def _ceilings(record: BenchRecord) -> Table:
    measured, sheet = record.ceilings, DATASHEETS.get(record.device.name)
    unit, scale = _compute_unit(record)
    streams = [
        ("read", "GB/s", 1e9, measured.read, sheet and sheet.bandwidth),
        ("copy", "GB/s", 1e9, measured.copy, None),
        ("write", "GB/s", 1e9, measured.write, None),
        ("read from L2", "GB/s", 1e9, measured.l2, None),
        *(
            (f"matrix product, {dtype}", unit, scale, each, sheet and sheet.matmul.get(dtype))
            for dtype, each in measured.matmul.items()
        ),
        ("exponentials", "G/s", 1e9, measured.exps, sheet and sheet.exps),
        ("launch", "us", 1e-6, measured.launch, None),
        ("node of a CUDA graph", "us", 1e-6, measured.graph_node, None),
    ]
    rows = [
        {
            "ceiling": name,
            "unit": unit,
            "best: the roof": each.best / scale,
            "median": each.median / scale,
            "runs": each.runs,
            "datasheet": vendor and vendor / scale,
        }
        for name, unit, scale, each, vendor in streams
        if each
    ]
    ridges = [f"{dtype} {record.roof(dtype).ridge:.1f}" for dtype in measured.matmul]
    notes = [f"Ridge, FLOP/byte: {', '.join(ridges)}."]
    if sheet:
        notes.append(f"Datasheet: {sheet.source}, dense.")
    digits = dict.fromkeys(("best: the roof", "median", "datasheet"), three_digits)
    return Table("Ceilings, measured in this run", _frame(rows), notes, digits)


def _forwards(record: BenchRecord, model: str) -> list[Table]:
    """Whole forwards of a model; their stages; stages by peer. Those that have rows."""
    rows = [row for row in record.rows if row.model == model]
    steps = sorted((row for row in rows if row.kind == "step"), key=lambda row: _place(row.forward))
    body = []
    for row, predicted in zip(steps, predictions(record, steps), strict=True):
        figures = _figures(record, row)
        ms = {"ms": figures.pop("ms"), "predicted ms": 1e3 * predicted.seconds}
        body.append(_which(row) | ms | figures)
    frame = _frame(body)
    whole = Table(f"Forwards of {model}", frame, _refusals(steps), _formats(frame))
    found = (whole, _stages(record, model, steps), _stage_peers(record, model, steps))
    return [table for table in found if not table.frame.empty]


def _stages(record: BenchRecord, model: str, steps: list[Row]) -> Table:
    """A forward with stages a line, a stage a column: ms, and the share of the roof."""
    body = []
    for step in steps:
        cells, total = {}, 0.0
        for row in record.stages_of(step):
            took = row.timing.median
            cells[row.name] = f"{three_digits(1e3 * took)} ({percent(record.floor(row) / took)})"
            total += took
        if cells:
            body.append({**_which(step), **cells, "sum / whole": total / step.timing.median})
    title = f"Stages of {model}: ms (share of the roof)"
    return Table(title, _frame(body), [], {"sum / whole": percent})


def _stage_peers(record: BenchRecord, model: str, steps: list[Row]) -> Table:
    body = []
    for step in steps:
        stages = [row for row in record.stages_of(step) if row.peers]
        if stages:
            ratios = {row.name: row.ratio(row.peers[0].name) for row in stages}
            body.append({**_which(step), **ratios})
    frame = _frame(body)
    return Table(f"Stages of {model}: plain torch's time over ours", frame, [], _formats(frame))


def _targets(record: BenchRecord) -> Table:
    body = []
    for each in evaluate(record):
        target, floor = each.target, each.row and 1e3 * record.floor(each.row)
        sense = "<=" if target.at_most else ">="
        body.append(
            {
                "row": f"{target.name}, {in_words(target.sizes)}",
                "target": f"{sense} {target.bound:g} {target.what}",
                "measured": each.figure,
                "floor ms": floor,
                "holds": {True: "yes", False: "NO", None: "not measured"}[each.holds],
            }
        )
    digits = {"measured": three_digits, "floor ms": three_digits}
    return Table("Targets", _frame(body), [], digits)


def _which(row: Row) -> dict[str, object]:
    """A forward's columns."""
    return {"forward": row.name + row.forward.in_few_bits, **row.sizes}


def _figures(record: BenchRecord, row: Row) -> dict[str, object]:
    """Of a row its time, what holds it, and its peers' times over ours."""
    seconds, floor, (unit, scale) = row.timing.median, record.floor(row), _compute_unit(record)
    return {
        "ms": 1e3 * seconds,
        "floor ms": 1e3 * floor,
        "GB/s": row.bytes / seconds / 1e9,
        unit: row.flops / seconds / scale,
        "% of roof": floor / seconds,
        "bound by": record.roof(row.dtype).holder(row.cost),
        **{peer.name: row.ratio(peer.name) for peer in row.peers if peer.timing},
    }


def _refusals(rows: Iterable[Row]) -> list[str]:
    """Why peers did not run, each reason once."""
    refusals: dict[str, dict[str, None]] = {}
    for peer in (peer for row in rows for peer in row.peers if peer.refused):
        refusals.setdefault(peer.refused, {})[peer.name] = None
    return [f"Refused, {', '.join(names)}: {why}" for why, names in refusals.items()]


def _formats(frame: "pd.DataFrame") -> dict:
    """Of known columns their own; of the others, which are peers and stages, ratios."""
    return {str(name): _FORMATS.get(str(name), _RATIO) for name in frame.select_dtypes(float)}


def _frame(rows: list[dict[str, object]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(rows)


def _compute_unit(record: BenchRecord) -> tuple[str, float]:
    """Name and FLOP/s of the unit that fits the device."""
    return ("TFLOP/s", 1e12) if record.device.kind == "cuda" else ("GFLOP/s", 1e9)


def _place(forward: Forward) -> tuple:
    """Where a forward stands in a table: the model's own weights before quantised ones."""
    bits = (forward.weights or "", forward.float8_cache)
    return *bits, forward.kind, forward.context, forward.block, forward.batch


def in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
