"""The cost model against what was measured: each stage and step of a record beside its prediction.

What counts takes at least 50 us; below that a clock says as much of itself as of the work. On a GPU
the median error is to be at most 15% and the worst 35%, and what lies outside comes with what the
record shows of the cause. A host is predicted from its ceilings alone, and has no target.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from .forward import KINDS, Forward
from .records import NAMES, BenchRecord, Row
from .step_time import StageTime, step_times, whole
from .tables import Table
from .text import percent, three_digits

LEAST_SECONDS = 50e-6
MEDIAN_TARGET, WORST_TARGET = 0.15, 0.35

# Quartiles so far apart, or a step so far from its stages: others used the device.
_SPREAD, _APART = 0.25, 0.2


@dataclass(frozen=True)
class ModelCheck:
    """ratios: predicted / measured of each stage and step that counts, below 1 where it took longer
    than predicted.
    """

    record: BenchRecord
    ratios: list[tuple[Row, float]]

    @property
    def errors(self) -> list[float]:
        return [abs(ratio - 1) for _, ratio in self.ratios]

    @property
    def holds(self) -> bool | None:
        """Whether both targets hold; None of a host, or if nothing counts."""
        if self.record.device.kind == "cpu" or not self.ratios:
            return None
        return median(self.errors) <= MEDIAN_TARGET and max(self.errors) <= WORST_TARGET


def predictions(record: BenchRecord, rows: Iterable[Row]) -> Iterator[StageTime]:
    """Of stages and steps of a record, from the record's own ceilings."""
    known: dict[tuple[str, Forward], dict[str, StageTime]] = {}
    for row in rows:
        key = row.model, row.forward
        if key not in known:
            known[key] = step_times(record.models[row.model], row.forward, record.ceilings)
        yield known[key][row.name] if row.kind == "stage" else whole(known[key].values())


def model_check(record: BenchRecord) -> ModelCheck:
    rows = [row for row in record.rows if row.kind != "op" and row.timing.median >= LEAST_SECONDS]
    times = zip(rows, predictions(record, rows), strict=True)
    return ModelCheck(record, [(row, each.seconds / row.timing.median) for row, each in times])


def summary(check: ModelCheck) -> str:
    """How many count, and how far off they are, in a line."""
    if not check.ratios:
        return "nothing here is long enough to count"
    counted = f"{len(check.ratios)} stages and steps"
    if check.holds is None:
        return f"{counted}, predicted from the host's ceilings alone"
    return (
        f"{counted}, median error {percent(median(check.errors))} (target {MEDIAN_TARGET:.0%}),"
        f" worst {percent(max(check.errors))} (target {WORST_TARGET:.0%}):"
        f" {'holds' if check.holds else 'missed'}"
    )


def error_table(record: BenchRecord) -> Table:
    """By forward and stage, how predicted / measured is spread; the notes are the outliers."""
    import pandas as pd

    check = model_check(record)
    found: dict[tuple[int, int], list[float]] = {}
    for row, ratio in check.ratios:
        place = KINDS.index(row.forward.kind), NAMES.index(row.name)
        found.setdefault(place, []).append(ratio)
    ratio = "predicted / measured"
    columns = ["forward", "stage", "that count", f"{ratio}, median", "least", "most"]
    lines = [
        (KINDS[kind], NAMES[name], len(ratios), median(ratios), min(ratios), max(ratios))
        for (kind, name), ratios in sorted(found.items())
    ]
    formats = dict.fromkeys(columns[3:], three_digits)
    frame = pd.DataFrame(lines, columns=columns)
    return Table(f"Cost model: {summary(check)}", frame, outlier_lines(check), formats)


def outlier_lines(check: ModelCheck) -> list[str]:
    """On a GPU a line for each that is further off than the target of the worst: what, how far off,
    and what the record shows of it.
    """
    if check.holds is None:
        return []
    lines = []
    for row, ratio in check.ratios:
        if abs(ratio - 1) > WORST_TARGET:
            at = row.forward
            which = f"{at.kind} {at.batch}×{at.block}, context {at.context}{at.in_few_bits}"
            why = _why(check.record, row)
            lines.append(f"{row.name} of {row.model}, {which}: {ratio - 1:+.0%}: {why}")
    return lines


def _why(record: BenchRecord, row: Row) -> str:
    timing, reasons = row.timing, []
    if (spread := timing.high / timing.low - 1) > _SPREAD:
        reasons.append(f"the middle half of its runs is {spread:.0%} wide")
    if row.kind == "step" and (stages := record.stages_of(row)):
        share = sum(stage.timing.median for stage in stages) / timing.median
        if abs(share - 1) > _APART:
            reasons.append(f"its stages, timed alone, add up to {share:.0%} of it")
    if not record.ceilings.ops:
        reasons.append("the record lacks rates of our ops: only ceilings were known")
    return "; ".join(reasons) or "nothing in the record shows why"
