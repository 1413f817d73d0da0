"""The device that advice is for, and how long a forward takes on it.

A forward that the device's record holds takes what was measured. Any other takes what the cost
model predicts, times how much longer than predicted the nearest measured forward took. Where no
forward was measured the prediction stands alone; from bare ceilings it is a floor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dlm_core.config import ModelConfig

from ..ceilings import Ceilings
from ..datasheets import DATASHEETS, datasheet_of
from ..forward import Forward, parts_of
from ..records import BenchRecord
from ..step_cost import forward_weight_bytes, itemsize_of
from ..step_time import step_times, whole

HOST = "host"

# How sure a time is, the surest first.
MEASURED, SCALED, PREDICTED, FLOOR = CERTAINTIES = (
    "measured", "scaled from a measurement", "predicted", "unmeasured",
)  # fmt: skip


class Step(NamedTuple):
    """A whole forward, and the seconds it took."""

    config: ModelConfig
    forward: Forward
    seconds: float


@dataclass(frozen=True)
class Machine:
    """A device to serve on.

    kind: "cpu" or "cuda". backend: "triton" or "torch", whose ops do the work.
    memory: bytes; None where neither record nor datasheet says.
    record: what was measured; None if the ceilings are those of the datasheet.
    """

    kind: str
    name: str
    backend: str
    ceilings: Ceilings
    memory: int | None
    record: BenchRecord | None = None

    @cached_property
    def steps(self) -> list[Step]:
        """The whole forwards that were measured."""
        rows = self.record.steps() if self.record else []
        return [Step(self.record.models[x.model], x.forward, x.timing.median) for x in rows]

    @property
    def float8_cache(self) -> bool:
        """Whether the ops take a float8 cache here; Triton does from compute capability 8.9 on."""
        # Which is where e4m3 products are, and not every build of torch lets them be measured.
        products = DATASHEETS.get(self.name, self.ceilings).matmul
        return self.backend == "torch" or "float8_e4m3fn" in products

    def seconds(self, config: ModelConfig, forward: Forward) -> tuple[float, str]:
        """How long a forward takes, and how sure that is: one of CERTAINTIES.

        Raises:
            ValueError: the ceilings lack its dtype.
        """
        for step in self.steps:
            if (step.config, step.forward) == (config, forward):
                return step.seconds, MEASURED
        if len(parts := parts_of(forward)) > 1:
            times, certainties = zip(*(self.seconds(config, part) for part in parts), strict=True)
            return sum(times), max(certainties, key=CERTAINTIES.index)
        predicted = self._predicted(config, forward)
        if not self.steps:
            return predicted, PREDICTED if self.ceilings.ops else FLOOR
        near = min(self.steps, key=lambda step: _distance(step, Step(config, forward, predicted)))
        return predicted * near.seconds / self._predicted(near.config, near.forward), SCALED

    def _predicted(self, config: ModelConfig, forward: Forward) -> float:
        return whole(step_times(config, forward, self.ceilings).values()).seconds


def _distance(a: Step, b: Step) -> float:
    """In doublings of rows, of a request's keys and of weights; another kind, quantisation, cache
    or dtype is one more.
    """
    names = ("kind", "weights", "float8_cache", "dtype")
    differing = sum(getattr(a.forward, name) != getattr(b.forward, name) for name in names)
    return differing + sum(abs(math.log2(x / y)) for x, y in zip(_sizes(a), _sizes(b), strict=True))


def _sizes(step: Step) -> tuple[int, int, int]:
    forward = step.forward
    weights = forward_weight_bytes(step.config, itemsize=itemsize_of(forward.dtype))
    return forward.rows, forward.context + forward.block, weights


def machine_of(name: str, records: Sequence[BenchRecord]) -> Machine:
    """The device of this name, by the newest record of it, or else by its datasheet.

    name: "host", any CPU; or of a GPU as torch names it, or as `datasheet_of` takes it.

    Raises:
        ValueError: no record or datasheet is of this name.
    """
    if name == HOST:
        found = [each for each in records if each.device.kind == "cpu"]
        if not found:
            raise ValueError(f"{HOST!r} needs a record of a CPU, which `dlm bench` makes")
    elif not (found := [each for each in records if each.device.name == name]):
        sheet = datasheet_of(name)
        found = [each for each in records if each.device.name == sheet.name]
        if not found:
            return Machine("cuda", sheet.name, "triton", sheet.ceilings(), sheet.memory)
    record = max(found, key=lambda each: each.date)
    device, sheet = record.device, DATASHEETS.get(record.device.name)
    memory = sheet.memory if sheet else device.memory
    return Machine(device.kind, device.name, record.backend, record.ceilings, memory, record)
