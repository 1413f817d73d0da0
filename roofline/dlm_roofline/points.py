"""What pictures show: the points of one model's forwards, measured and predicted, from a record."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlm_kernels import Cost

from .forward import DECODE, DENOISE, DRAFT, STEP_NAMES, VERIFY, Forward
from .predict import Roof
from .records import Record, Row
from .step_cost import step_cost, total

# Each has a panel of its own.
SHOWN_KINDS = (DECODE, DENOISE, DRAFT, VERIFY)

PLAIN = "plain torch"  # the peer that is shown

# Where a whole step is predicted if it was not measured.
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Point:
    """A stage or a whole step of a forward.

    measured: median seconds, or None: then only the floor is known.
    floor: least seconds under the measured roof, a prediction.
    """

    name: str
    forward: Forward
    cost: Cost
    floor: float
    measured: float | None

    @property
    def batch(self) -> int:
        return self.forward.batch

    @property
    def share_of_roof(self) -> float | None:
        return None if self.measured is None else self.floor / self.measured

    @property
    def rate(self) -> float:
        """FLOP/s measured, or else at the floor."""
        return self.cost.flops / (self.measured or self.floor)


POINT_HEADER = [
    "kind", "name", "model", "dtype", "batch", "block", "context", "flops", "bytes",
    "flop_per_byte", "held_by", "predicted_floor_s", "measured_s", "share_of_roof",
]  # fmt: skip


def point_cells(point: Point, model: str, roof: Roof) -> list[str]:
    """A point as a line of CSV, under POINT_HEADER."""
    forward, cost = point.forward, point.cost
    sizes = [str(size) for size in (forward.batch, forward.block, forward.context)]
    work = [f"{cost.flops:.0f}", f"{cost.bytes:.0f}", f"{cost.intensity:.6g}", roof.holder(cost)]
    cells = [forward.kind, point.name, model, forward.dtype, *sizes, *work, f"{point.floor:.6g}"]
    if point.measured is None:
        return [*cells, "", ""]
    return [*cells, f"{point.measured:.6g}", f"{point.share_of_roof:.4f}"]


@dataclass(frozen=True)
class Trail:
    """Forwards of one kind, block and context over growing batch.

    steps: measured ones, and predicted ones from batch 1 to 64 where nobody measured.
    stages: of a measured step, by its batch, the stages that were measured, in their order.
    plain: seconds of the step in plain torch, by batch, where it ran.
    """

    kind: str
    block: int
    context: int
    steps: list[Point]
    stages: dict[int, list[Point]]
    plain: dict[int, float]

    @property
    def name(self) -> str:
        return STEP_NAMES[self.kind]

    @property
    def measured(self) -> list[Point]:
        """At least one."""
        return [step for step in self.steps if step.measured is not None]

    @property
    def stage_trails(self) -> dict[str, list[Point]]:
        """The measured points of each stage over growing batch, by its name."""
        trails: dict[str, list[Point]] = {}
        for batch in sorted(self.stages):
            for point in self.stages[batch]:
                trails.setdefault(point.name, []).append(point)
        return trails


@dataclass(frozen=True)
class Subject:
    """One model in one dtype, as one record has it: whole steps, and trails through them.

    steps: rows of whole steps, whatever their kind, block and context.
    trails: of each shown kind that was measured, over batch at its commonest block and context.
    """

    record: Record
    model: str
    dtype: str
    roof: Roof
    steps: list[Row]
    trails: dict[str, Trail]

    @property
    def words(self) -> tuple[str, ...]:
        """What the trails are of, as titles say it; panels name the context where it differs."""
        contexts = {trail.context for trail in self.trails.values()}
        words = [f"context {context}" for context in contexts if len(contexts) == 1]
        return self.model, self.dtype, *words

    def panel_words(self, trail: Trail) -> str:
        """A trail, as its panel says it."""
        words = trail.name if trail.kind == DECODE else f"{trail.name}, block {trail.block}"
        return words if len(self.words) > 2 else f"{words}, context {trail.context}"


def subject_of(record: Record) -> Subject | None:
    """The model of a record with the most whole steps, in its commonest dtype, and unquantised
    unless every step is quantised.
    """
    steps = [row for row in record.rows if row.kind == "step"]
    if not steps:
        return None
    model = commonest([row.model for row in reversed(steps)])
    rows = [row for row in steps if row.model == model]
    rows = [row for row in rows if _setting(row.forward)[1:] == (None, False)] or rows
    setting = commonest([_setting(row.forward) for row in rows])
    rows = [row for row in rows if _setting(row.forward) == setting]
    kinds = [kind for kind in SHOWN_KINDS if any(row.forward.kind == kind for row in rows)]
    trails = {
        kind: _trail(record, [row for row in rows if row.forward.kind == kind]) for kind in kinds
    }
    dtype = rows[0].dtype
    return Subject(record, rows[0].model, dtype, record.roof(dtype), rows, trails)


def _setting(forward: Forward) -> tuple[str, str | None, bool]:
    return forward.dtype, forward.weights, forward.float8_cache


def commonest(found: Sequence) -> object:
    """Of equally common ones the first."""
    return Counter(found).most_common(1)[0][0]


def _trail(record: Record, rows: list[Row]) -> Trail:
    """Through the steps of one kind at their commonest block and context; those count whose stages
    were measured, if there are any.
    """
    staged = [row for row in rows if record.stages_of(row)]
    block, context = commonest([(row.forward.block, row.forward.context) for row in staged or rows])
    here = [row for row in rows if (row.forward.block, row.forward.context) == (block, context)]
    timed = {row.forward.batch: row for row in here}
    steps = [
        _step(record, here[0], replace(here[0].forward, batch=batch), timed.get(batch))
        for batch in sorted({*_BATCHES, *timed})
    ]
    stages = {batch: [_stage(record, each) for each in record.stages_of(row)]
              for batch, row in timed.items()}  # fmt: skip
    plain = {
        batch: peer.timing.median
        for batch, row in timed.items()
        for peer in row.peers
        if peer.name == PLAIN and peer.timing
    }
    return Trail(here[0].forward.kind, block, context, steps, stages, plain)


def _step(record: Record, like: Row, forward: Forward, row: Row | None) -> Point:
    costs = step_cost(record.models[like.model], forward)
    floor = record.roof(forward.dtype).step_seconds(costs)
    return Point(like.name, forward, total(costs), floor, row.timing.median if row else None)


def _stage(record: Record, row: Row) -> Point:
    return Point(row.name, row.forward, row.cost, record.floor(row), row.timing.median)
