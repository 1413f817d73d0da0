"""The roofline's arithmetic: the least time a cost can take, and where a step meets the ridge.

    time = max(bytes / bandwidth, FLOPs / peak, exponentials / their rate)
    ridge = peak / bandwidth, in FLOP/byte

Stages run one after the other, so a step's least time is the sum of its stages'. Everything here is
a prediction; nothing is measured.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

from dlm_core.config import ModelConfig
from dlm_kernels import Cost

from .forward import Forward
from .step_cost import step_cost, total


@dataclass(frozen=True)
class Roof:
    """What bounds any work in one dtype.

    bandwidth: bytes/s of a read-only stream, since weights and context are only read.
    peak: FLOP/s of a matrix product.
    exps: exponentials a second; None where nobody has measured it, and nothing is bounded by it.
    """

    bandwidth: float
    peak: float
    exps: float | None = None

    @property
    def ridge(self) -> float:
        """Intensity in FLOP/byte at which memory and compute take the same time."""
        return self.peak / self.bandwidth

    def seconds(self, cost: Cost) -> float:
        """Least time of one piece of work."""
        return max(self._times(cost).values())

    def holder(self, cost: Cost) -> str:
        """Which ceiling holds the work: "memory", "compute" or "exponentials"."""
        times = self._times(cost)
        return max(times, key=lambda name: times[name])

    def _times(self, cost: Cost) -> dict[str, float]:
        """Seconds that each ceiling asks for."""
        return {
            "compute": cost.flops / self.peak,
            "memory": cost.bytes / self.bandwidth,
            "exponentials": 0.0 if self.exps is None else cost.exps / self.exps,
        }


def ridge_crossing(config: ModelConfig, step: Forward, ridge: float) -> tuple[int, int] | None:
    """Batch and block at which a whole denoising step turns from memory-bound to compute-bound.

    The rows of a step like this one, whatever its own batch, grow by batch at its block, and below
    one block by the block at batch 1.
    None if no batch gets there: each request brings a context of its own, whose intensity does not
    grow with the batch and can lie below the ridge.
    """

    def reaches(batch: int, block: int) -> bool:
        stages = step_cost(config, replace(step, batch=batch, block=block))
        return total(stages).intensity >= ridge

    blocks, batches = range(1, step.block + 1), range(1, 1 << 16)
    if reaches(1, step.block):
        return 1, 1 + bisect_left(blocks, True, key=lambda block: reaches(1, block))
    batch = 1 + bisect_left(batches, True, key=lambda batch: reaches(batch, step.block))
    return (batch, step.block) if batch <= len(batches) else None
