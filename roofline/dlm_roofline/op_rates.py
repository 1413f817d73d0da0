"""What our own ops reach at shapes of no model, from which the time of a forward is predicted.

A call takes its overhead and the time of its work. On Triton bytes and FLOPs overlap and the slower
counts; a host does one after the other, so there they add up:

    triton: overhead + max(bytes / bandwidth, FLOPs / rate)
    torch:  overhead + bytes / bandwidth + FLOPs / rate

Each is solved for from three calls: one of next to no work, one that streams, one that multiplies.
From cold caches an op's first call takes longer, as its instructions come from memory: that and the
overhead are told apart by few calls in a row and many. Part of those instructions are the same for
any op, and are there for all that follow: see `shared_first`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple


@dataclass(frozen=True)
class OpRate:
    """overhead in seconds a call; bandwidth in bytes/s; flops in FLOP/s; first in seconds.

    Of activations in bfloat16 on Triton and in float32 on torch, as the bench runs them.

    bandwidth, flops: None where the op's time does not grow by them.
    first: what its first call takes beyond the others, from cold caches.
    """

    overhead: float
    bandwidth: float | None
    flops: float | None
    first: float = 0.0

    def __post_init__(self) -> None:
        for name in ("overhead", "bandwidth", "flops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not self.first >= 0:
            raise ValueError(f"first is {self.first}; it must be at least 0")

    def seconds(self, n_bytes: float, flops: float, backend: str) -> float:
        """Of one call's work, without its overhead."""
        streams = n_bytes / self.bandwidth if self.bandwidth else 0.0
        multiplies = flops / self.flops if self.flops else 0.0
        return max(streams, multiplies) if backend == "triton" else streams + multiplies


def shared_first(ops: Mapping[str, OpRate]) -> float:
    """What any op takes beyond its own where it is the first of all: the least that one did."""
    return min((rate.first for rate in ops.values() if rate.first), default=0.0)


class Idle(NamedTuple):
    """Seconds of calls of next to no work, cold at first: `first` once, `overhead` of each."""

    first: float
    overhead: float

    def of_each(self, calls: int) -> float:
        """Of each of so many in a row."""
        return self.overhead + self.first / calls


def idle_of(few: int, of_few: float, many: int, of_many: float) -> Idle:
    """From seconds of few calls in a row and of many; no part is negative, whatever the noise."""
    overhead = (of_many - of_few) / (many - few)
    if not 0 < overhead <= of_few / few:
        return Idle(0.0, min(of_few / few, of_many / many))
    return Idle(of_few - few * overhead, overhead)


class Timed(NamedTuple):
    """A measured call: its bytes, its FLOPs, and the seconds it took."""

    bytes: float
    flops: float
    seconds: float


def op_rate(
    backend: str,
    idle: Idle,
    streaming: Timed,
    multiplying: Timed | None = None,
    *,
    in_a_row: int = 1,
) -> OpRate:
    """The rates of an op by its calls; see the module.

    multiplying: None of an op without products. in_a_row: calls that those with work were timed in.
    """
    least = idle.of_each(in_a_row)
    streams = max(streaming.seconds - least, 0.0)
    if multiplying is None:
        return OpRate(idle.overhead, _rate(streaming.bytes, streams), None, idle.first)
    multiplies = max(multiplying.seconds - least, 0.0)
    if backend == "triton":
        rates = _rate(streaming.bytes, streams), _rate(multiplying.flops, multiplies)
        return OpRate(idle.overhead, *rates, idle.first)
    # Two equations for the seconds a byte and a FLOP; neither is negative, whatever the noise.
    (b1, f1, _), (b2, f2, _) = streaming, multiplying
    determinant = b1 * f2 - b2 * f1
    if determinant == 0:
        raise ValueError("streaming and multiplying have as many bytes a FLOP; they must differ")
    a_byte = (streams * f2 - multiplies * f1) / determinant
    a_flop = (b1 * multiplies - b2 * streams) / determinant
    if a_byte <= 0:
        a_byte, a_flop = 0.0, multiplies / f2
    elif a_flop <= 0:
        a_byte, a_flop = streams / b1, 0.0
    rates = 1 / a_byte if a_byte else None, 1 / a_flop if a_flop else None
    return OpRate(idle.overhead, *rates, idle.first)


def middle(rates: Sequence[OpRate]) -> OpRate:
    """The medians of what one op reached at several times: of a host that others share, no single
    moment speaks for a whole run.
    """

    def median_of(values: Iterable[float | None]) -> float | None:
        # No bound at all is the highest rate there is.
        value = median(math.inf if value is None else value for value in values)
        return None if value == math.inf else value

    return OpRate(
        median(rate.overhead for rate in rates),
        median_of(rate.bandwidth for rate in rates),
        median_of(rate.flops for rate in rates),
        median(rate.first for rate in rates),
    )


def _rate(work: float, seconds: float) -> float | None:
    return work / seconds if seconds > 0 else None
