"""What a GPU is held to: targets set beforehand, evaluated on a bench's record.

A target names a row of the record, a figure of it, and a bound. What was not measured has no
verdict. bench/NOTES.md has the arithmetic of those that are out of reach.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dlm_roofline.forward import DENOISE, LINEAR, QUADRATIC, STEP_NAMES
from dlm_roofline.records import BenchRecord, Row

from .cases import FAST, OTHER_CACHE

# Passes over the logits of a full softmax and a gather: argmax and softmax read them, softmax
# writes as much again. Ours reads them once.
_PASSES_OF_SOFTMAX_GATHER = 3


@dataclass(frozen=True)
class Target:
    """bound: the figure is to be at least this, or at most if `at_most`.

    name, sizes, dtype, weights: of the row, which has these sizes among its own.
    """

    name: str
    sizes: dict[str, int]
    what: str
    figure: Callable[[BenchRecord, Row], float | None]
    bound: float
    at_most: bool = False
    weights: str | None = None
    dtype: str = "bfloat16"

    def row(self, record: BenchRecord) -> Row | None:
        """The first that fits."""
        for row in record.rows:
            weights = row.forward.weights if row.forward else None
            same = (row.name, row.dtype, weights) == (self.name, self.dtype, self.weights)
            if same and self.sizes.items() <= row.sizes.items():
                return row
        return None


@dataclass(frozen=True)
class Evaluated:
    """figure, holds: None where nothing was measured."""

    target: Target
    row: Row | None
    figure: float | None

    @property
    def holds(self) -> bool | None:
        if self.figure is None:
            return None
        bound = self.target.bound
        return self.figure <= bound if self.target.at_most else self.figure >= bound


def evaluate(record: BenchRecord) -> list[Evaluated]:
    """Every target on a record, in the order of TARGETS."""
    found = []
    for target in TARGETS:
        row = target.row(record)
        found.append(Evaluated(target, row, row and target.figure(record, row)))
    return found


def fast_seconds(row: Row) -> float:
    """Under `fast` numerics, where the row has them apart."""
    return row.timing.median * (row.ratio(FAST) or 1.0)


def over_floor(record: BenchRecord, row: Row) -> float:
    return fast_seconds(row) / record.floor(row)


def of_floor(record: BenchRecord, row: Row) -> float:
    return record.floor(row) / fast_seconds(row)


def of_reading(record: BenchRecord, row: Row) -> float:
    """Share of the read bandwidth that the compulsory bytes would take."""
    return row.bytes / record.ceilings.read.best / row.timing.median


def over_launch_and_floor(record: BenchRecord, row: Row) -> float | None:
    launch = record.ceilings.launch
    return launch and row.timing.median / (launch.best + record.floor(row))


def over_peer(peer: str, record: BenchRecord, row: Row) -> float | None:
    ratio = row.ratio(peer)
    return ratio and fast_seconds(row) / row.timing.median / ratio


def best_peer_over_ours(record: BenchRecord, row: Row) -> float | None:
    """Of peers that are no way of ours; attention's have their keys laid together beforehand."""
    others = [peer for peer in row.peers if not peer.name.startswith(("ours", "cat + "))]
    best = min((peer.timing.median for peer in others if peer.timing), default=None)
    return best and best / fast_seconds(row)


def of_ratio_of_bytes(record: BenchRecord, row: Row) -> float | None:
    ratio = row.ratio("softmax, gather")
    return ratio and ratio / _PASSES_OF_SOFTMAX_GATHER


def invariant_over_fast(record: BenchRecord, row: Row) -> float | None:
    ratio = row.ratio(FAST)
    return ratio and 1 / ratio


def peak_of_float32_logits(record: BenchRecord, row: Row) -> float | None:
    return row.peak and row.peak / (4.0 * row.shape["rows"] * row.shape["vocab"])


def unquantised_over_ours(record: BenchRecord, row: Row) -> float | None:
    """How many times as long the same step takes with weights that are not quantised."""
    for other in record.steps(row.name):
        forward = other.forward
        if other.sizes == row.sizes and (forward.weights, forward.float8_cache) == (None, False):
            return fast_seconds(other) / fast_seconds(row)
    return None


def other_cache_over_ours(record: BenchRecord, row: Row) -> float | None:
    ratio = row.ratio(OTHER_CACHE)
    return ratio and ratio * row.timing.median / fast_seconds(row)


def _step(kind: str, batch: int, block: int, times: float) -> list[Target]:
    name, sizes = STEP_NAMES[kind], {"batch": batch, "block": block, "context": 1024}
    return [
        Target(name, sizes, "over its floor", over_floor, times, at_most=True),
        Target(name, sizes, "invariant over fast", invariant_over_fast, 1.05, at_most=True),
    ]


def _attention(batch: int, context: int, *, held: bool = True) -> list[Target]:
    name, sizes = "block_attention", {"batch": batch, "context": context}
    rate = [Target(name, sizes, "of its floor's rate", of_floor, 0.75)] if held else []
    return [*rate, Target(name, sizes, "best peer's time over ours", best_peer_over_ours, 1.0)]


def _confidence(dtype: str) -> list[Target]:
    name, sizes, bytes_ = "confidence", {"rows": 2048}, "of the ratio of bytes to softmax, gather"
    return [
        Target(name, sizes, "of read bandwidth", of_reading, 0.85, dtype=dtype),
        Target(name, sizes, bytes_, of_ratio_of_bytes, 0.9, dtype=dtype),
    ]


def _head(rows: int) -> Target:
    alone, what = partial(over_peer, "product alone"), "over torch's product alone"
    return Target("lm_head_confidence", {"rows": rows}, what, alone, 1.05, at_most=True)


def _quantised(weights: str, times: float) -> Target:
    sizes = {"batch": 1, "block": 32, "context": 1024}
    what = f"16-bit step over {weights}"
    return Target(STEP_NAMES[DENOISE], sizes, what, unquantised_over_ours, times, weights=weights)


TARGETS: list[Target] = [
    *_step(DENOISE, 1, 32, 1.15),
    *map(_head, (32, 2048, 256, 1, 4096, 128, 512, 64, 1024)),
    *(each for context in (32768, 4096, 8192) for each in _attention(64, context)),
    *_step(LINEAR, 1, 32, 1.15),
    *(each for dtype in ("bfloat16", "float32") for each in _confidence(dtype)),
    Target("confidence", {"rows": 32}, "over launch and floor", over_launch_and_floor, 1.5, True),
    Target("remask_scatter", {"batch": 64}, "us", lambda _, row: 1e6 * row.timing.median, 6, True),
    Target("lm_head_confidence", {"rows": 2048}, "peak, of float32 logits",
           peak_of_float32_logits, 0.02, at_most=True),
    *(each for batch in (64, 8, 16) for each in _step(DENOISE, batch, 32, 1.4)),
    *_attention(1, 32768),
    *_attention(1, 131072),
    *_attention(1, 8192, held=False),
    *_attention(1, 16384, held=False),
    *_step(QUADRATIC, 1, 110, 1.25),
    _quantised("fp8", 1.7),
    _quantised("int8", 1.7),
    _quantised("int4", 2.6),
    *(Target("block_attention, float8 cache", {"batch": batch, "context": 32768},
             "16-bit cache over ours", other_cache_over_ours, 1.7) for batch in (64, 1)),
]  # fmt: skip
