"""What an op of ours reaches on a GPU at shapes of no model, which predictions rest on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlm_kernels import Cost

from .predict import Roof


@dataclass(frozen=True)
class OpRate:
    """bandwidth in bytes/s; flops in FLOP/s; None where the op's time does not grow by them."""

    bandwidth: float | None
    flops: float | None

    def under(self, roof: Roof) -> Roof:
        """The roof over this op's work: what the op reaches, or the device if that is less."""
        bandwidth = min(roof.bandwidth, self.bandwidth or math.inf)
        return replace(roof, bandwidth=bandwidth, peak=min(roof.peak, self.flops or math.inf))


def op_rate(calls: Sequence[tuple[Cost, float]], launch: float) -> OpRate:
    """The best rates of calls, each a cost and seconds, of which `launch` are the launch's own."""
    work = [(cost, max(seconds - launch, 0.1 * seconds)) for cost, seconds in calls]
    flops = max(cost.flops / seconds for cost, seconds in work)
    return OpRate(max(cost.bytes / seconds for cost, seconds in work), flops or None)
