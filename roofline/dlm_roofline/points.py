"""What a picture shows: the points of one model's step, measured and predicted, from its record."""

from dataclasses import dataclass

import torch

from dlm_kernels import Cost

from .predict import Crossing, Roof, ridge_crossing
from .records import Record, Row
from .step_cost import DENOISING_STEP, STAGES, step_cost, total

# Where a step is predicted if it was not measured: blocks at batch 1, then batches of whole blocks.
_BLOCKS = (1, 2, 4, 8, 16)
_BATCHES = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Point:
    """A stage or a whole step at one shape.

    measured: median seconds, or None: then only the floor is known.
    floor: least seconds under the measured roof, a prediction.
    """

    name: str
    batch: int
    block: int
    cost: Cost
    floor: float
    measured: float | None

    @property
    def rows(self) -> int:
        return self.batch * self.block

    @property
    def label(self) -> str:
        return f"{self.batch}×{self.block}"

    @property
    def share_of_roof(self) -> float | None:
        return None if self.measured is None else self.floor / self.measured


@dataclass(frozen=True)
class Subject:
    """One model at one context, as one record has it.

    steps: whole steps over growing batch x block, measured ones and in between predicted ones.
    stages: for each measured step, by its (batch, block), the stages in their order.
    plain: seconds of the step in plain torch, by (batch, block), where it ran.
    crossing: where the step meets the ridge, a prediction.
    """

    record: Record
    model: str
    dtype: str
    context: int
    roof: Roof
    steps: list[Point]
    stages: dict[tuple[int, int], list[Point]]
    plain: dict[tuple[int, int], float]
    crossing: Crossing | None

    @property
    def shown(self) -> list[Point]:
        """Two measured steps to look into: one request's block, and the largest batch."""
        measured = [step for step in self.steps if step.measured is not None]
        block_size = self.record.models[self.model].block_size
        whole = [step for step in measured if step.block == block_size] or measured
        return list(dict.fromkeys([whole[0], whole[-1]]))


def subject_of(record: Record) -> Subject | None:
    """The last model of a record that has a whole step, at its commonest context."""
    rows = [row for row in record.rows if row.name == DENOISING_STEP]
    if not rows:
        return None
    model = rows[-1].model
    rows = [row for row in rows if row.model == model]
    contexts = [row.shape["context"] for row in rows]
    context = max(contexts, key=contexts.count)
    rows = [row for row in rows if row.shape["context"] == context]

    config, dtype = record.models[model], rows[0].dtype
    itemsize = getattr(torch, dtype).itemsize
    roof = record.roof(dtype)
    timed = {_key(row): row for row in rows}
    path = {(1, block) for block in _BLOCKS if block < config.block_size} | set(timed)
    path |= {(batch, config.block_size) for batch in _BATCHES}
    steps = []
    for batch, block in sorted(path, key=lambda shape: (shape[0] * shape[1], shape)):
        costs = step_cost(config, batch, block, context, itemsize=itemsize)
        row = timed.get((batch, block))
        steps.append(
            Point(
                DENOISING_STEP,
                batch,
                block,
                total(costs),
                roof.step_seconds(costs),
                row.timing.median if row else None,
            )
        )
    return Subject(
        record,
        model,
        dtype,
        context,
        roof,
        steps,
        {key: _stages(record, row) for key, row in timed.items()},
        {
            k: peer.timing.median
            for k, row in timed.items()
            for peer in row.peers[:1]
            if peer.timing
        },
        ridge_crossing(config, config.block_size, context, itemsize=itemsize, ridge=roof.ridge),
    )


def _stages(record: Record, step: Row) -> list[Point]:
    found = [
        Point(row.name, *_key(row), row.cost, record.floor(row), row.timing.median)
        for row in record.rows
        if row.kind == "stage" and row.model == step.model and row.shape == step.shape
    ]
    return sorted(found, key=lambda point: STAGES.index(point.name))


def _key(row: Row) -> tuple[int, int]:
    return row.shape["batch"], row.shape["block"]
