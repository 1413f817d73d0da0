"""The cost model against what was measured: each stage and step of a record beside its prediction.

What counts are stages and steps of at least 50 us on a GPU and 1 ms on a host; below that a clock
says as much of itself as of the work. Of those the median error is to be at most 15%, the worst
35%; what lies outside comes with what the record shows of the cause.

Others may share a host, so what it took is put at the pace at which the run began (see
`Timing.paced`); the errors of the times as they were stand beside it.
"""

from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from .forward import DENOISE, DRAFT, KINDS, VERIFY, Forward
from .records import Record, Row
from .step_cost import STAGES
from .step_time import StageTime, step_times, whole
from .text import percent

LEAST_SECONDS = {"cuda": 50e-6, "cpu": 1e-3}
MEDIAN_TARGET, WORST_TARGET = 0.15, 0.35

# Quartiles so far apart, a step so far from its stages, a pace so far from the first: others used
# the device.
_SPREAD, _APART, _OFF_PACE = 0.25, 0.2, 1.3


@dataclass(frozen=True)
class Checked:
    """A measured stage or step and its prediction.

    error: predicted / measured - 1, so that below 0 it took longer than predicted. Measured is at
        the pace of the run's beginning; see `Timing.paced`.
    """

    row: Row
    predicted: StageTime

    @property
    def error(self) -> float:
        return self.predicted.seconds / self.row.timing.paced - 1

    @property
    def unpaced_error(self) -> float:
        """Of the time as it was."""
        return self.predicted.seconds / self.row.timing.median - 1


class Outlier(NamedTuple):
    """One that is further off than WORST_TARGET. why: what the record shows of it."""

    checked: Checked
    why: str


@dataclass(frozen=True)
class ModelCheck:
    """All of a record.

    counted: those that are long enough to count, in the record's order. unsteady: those of them
        that met a host which was not as when the run began; see `Timing.steady`.
    """

    all: list[Checked]
    counted: list[Checked]
    unsteady: list[Checked]
    outliers: list[Outlier]

    @property
    def median(self) -> float | None:
        """Median size of the errors that count; None if none does."""
        return median(abs(each.error) for each in self.counted) if self.counted else None

    @property
    def worst(self) -> float | None:
        return max((abs(each.error) for each in self.counted), default=None)

    @property
    def unpaced(self) -> tuple[float, float] | None:
        """Median and worst size of the errors that count, of times as they were; None where none
        was put at another pace.
        """
        if not any(each.row.timing.pace for each in self.counted):
            return None
        sizes = [abs(each.unpaced_error) for each in self.counted]
        return median(sizes), max(sizes)

    @property
    def holds(self) -> bool | None:
        """Whether both targets hold; None if nothing counts."""
        if not self.counted:
            return None
        return self.median <= MEDIAN_TARGET and self.worst <= WORST_TARGET


def model_check(record: Record) -> ModelCheck:
    """Each stage and step of a record against `step_times` from its own ceilings."""
    found = []
    for row in record.rows:
        if row.forward is None:
            continue
        config = record.models[row.model]
        times = step_times(config, row.forward, record.ceilings, record.backend)
        predicted = times[row.name] if row.kind == "stage" else whole(times)
        found.append(Checked(row, predicted))
    least = LEAST_SECONDS[record.device.kind]
    counted = [each for each in found if each.row.timing.median >= least]
    unsteady = [each for each in counted if each.row.timing.steady is False]
    outliers = [
        Outlier(each, _why(record, each)) for each in counted if abs(each.error) > WORST_TARGET
    ]
    return ModelCheck(found, counted, unsteady, outliers)


def _why(record: Record, checked: Checked) -> str:
    """What the record itself shows of the cause of an outlier."""
    row, timing = checked.row, checked.row.timing
    reasons = []
    if (spread := timing.high / timing.low - 1) > _SPREAD:
        reasons.append(f"the middle half of its runs is {spread:.0%} wide")
    if timing.steady is False:
        reasons.append("the host was not as when the run began")
    if timing.pace is not None and not 1 / _OFF_PACE < timing.pace < _OFF_PACE:
        reasons.append(f"the host took {timing.pace:.1f} times its first time for a fixed product")
    if row.kind == "step" and (stages := record.stages_of(row)):
        share = sum(stage.timing.paced for stage in stages) / timing.paced
        if abs(share - 1) > _APART:
            reasons.append(f"its stages, timed alone, add up to {share:.0%} of it")
    if (alike := _same_work(record, row)) and abs(alike / timing.paced - 1) > _APART:
        reasons.append(
            f"the same work in other kinds of forward took {alike / timing.paced:.2f} times as long"
        )
    if not record.ceilings.ops:
        reasons.append("the record lacks rates of our ops: only ceilings were known")
    return "; ".join(reasons) or "nothing in the record shows why"


def _same_work(record: Record, row: Row) -> float | None:
    """Seconds of the same stage of other kinds of forward of the same sizes: the median, at the
    run's pace; None if there are none.
    """

    def sizes(forward: Forward) -> Forward:
        return replace(forward, kind=DENOISE)

    if row.kind != "stage" or row.forward.kind not in (DENOISE, DRAFT, VERIFY):
        return None
    others = [
        other.timing.paced
        for other in record.rows
        if (other.name, other.model) == (row.name, row.model)
        and other.forward.kind in (DENOISE, DRAFT, VERIFY)
        and other.forward != row.forward
        and sizes(other.forward) == sizes(row.forward)
    ]
    return median(others) if others else None


def summary(check: ModelCheck) -> str:
    """How many count, and how far off they are, in a line."""
    if not check.counted:
        return "nothing here is long enough to count"
    said = (
        f"{len(check.counted)} that count: median error {percent(check.median)}"
        f" (target {MEDIAN_TARGET:.0%}), worst {percent(check.worst)} (target {WORST_TARGET:.0%})"
    )
    if check.unsteady:
        sizes = [abs(each.error) for each in check.unsteady]
        said += (
            f"; of the {len(sizes)} beside which the host was not as when the run began"
            f" {percent(median(sizes))} and {percent(max(sizes))}"
        )
    if check.unpaced:
        middle, most = check.unpaced
        said += f"; of times not put at one pace {percent(middle)} and {percent(most)}"
    return said


ERROR_HEADER = ["forward", "stage", "that count", "median error", "from", "to"]


def error_rows(check: ModelCheck) -> list[list[str]]:
    """Cells of a table of errors by forward and stage, under ERROR_HEADER; below 0% it took longer
    than predicted.
    """
    by_stage: dict[tuple[str, str], list[float]] = {}
    for each in check.counted:
        by_stage.setdefault((each.row.forward.kind, each.row.name), []).append(each.error)

    def place(key: tuple[str, str]) -> tuple[int, int]:
        kind, name = key
        return KINDS.index(kind), STAGES.index(name) if name in STAGES else len(STAGES)

    rows, last = [], None
    for kind, name in sorted(by_stage, key=place):
        errors = by_stage[kind, name]
        figures = (median(errors), min(errors), max(errors))
        cells = [f"{figure:+.0%}" for figure in figures]
        rows.append(["" if kind == last else kind, name, str(len(errors)), *cells])
        last = kind
    return rows


def outlier_lines(check: ModelCheck) -> list[str]:
    """A line for each outlier: what, how far off, and why."""
    return [f"{_place(each.row)}: {each.error:+.0%}: {why}" for each, why in check.outliers]


def _place(row: Row) -> str:
    forward = row.forward
    shape = f"{forward.kind} {forward.label}, context {forward.context}{forward.in_few_bits}"
    return f"{row.name} of {row.model}, {shape}"
