"""The unit of account of every prediction: work and compulsory traffic of one call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What the algorithm cannot do without, whatever the kernel.

    flops: floating-point operations, a multiply-add counted as two.
    bytes: memory traffic if every input is read once and every output written once.
    exps:  exponentials, the special-function operations that can bound a kernel by themselves.
    """

    flops: float
    bytes: float
    exps: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.exps + other.exps)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.bytes * times, self.exps * times)

    __rmul__ = __mul__

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOP/byte."""
        return self.flops / self.bytes
