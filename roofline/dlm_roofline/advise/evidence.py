"""What was measured of whole forwards, and what that says of the others.

The model of `step_times` predicts every forward from ceilings alone; a measured one takes some
factor longer. Between and beside measured forwards that factor is interpolated: forwards have
places, batch, context, rows and size of the model on axes of doublings, kind and quantisation a
fixed way apart, and the logarithm of the factor is a Gaussian process over them (ordinary kriging)
whose correlation falls with the distance as exp(-distance / REACH). On one axis that is a straight
line between neighbours and the nearest measured factor outside; over several it adds up what is
known of each, so that int8 drafts, which nobody timed, take what drafts take and int8 takes. All
kinds are corrected alike: a forward nobody measured must not win for being called by its floor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlm_core.config import ModelConfig

from ..forward import KINDS, WEIGHTS, Forward
from ..records import Record
from ..step_cost import forward_weight_bytes, itemsize_of
from ..step_time import StageTime, step_times, whole
from .machine import Machine

# How sure a time is, the surest first.
MEASURED = "measured"
INTERPOLATED = "interpolated"
SCALED = "predicted from a record"
PREDICTED = "predicted from ceilings"
DATASHEET = "floor by the datasheet"
CERTAINTIES = (MEASURED, INTERPOLATED, SCALED, PREDICTED, DATASHEET)

_REACH = 32.0  # doublings
_APART = 4.0  # doublings that another kind, quantisation or dtype is worth
_SHORT = 32  # contexts below this many tokens cost next to nothing, and are close together
_NOISE = 0.005  # of a timing, as a share of the variance of all factors

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A whole forward that a record holds, and what its ceilings predict.

    seconds: its median as it was measured. paced: at the pace of the run; see `Timing.paced`.
    """

    config: ModelConfig
    forward: Forward
    seconds: float
    paced: float
    predicted: float


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole forward; the stages as predicted; one of CERTAINTIES."""

    seconds: float
    stages: dict[str, StageTime]
    certainty: str


def measured_in(records: Sequence[Record]) -> list[Measured]:
    """The whole forwards that records of one device hold, in their order, without those that met
    another state of a host.
    """
    found = []
    for record in records:
        for row in record.rows:
            if row.kind == "step" and row.timing.steady is not False:
                config = record.models[row.model]
                stages = step_times(config, row.forward, record.ceilings, record.backend)
                times = (row.timing.median, row.timing.paced, whole(stages).seconds)
                found.append(Measured(config, row.forward, *times))
    return found


class Evidence:
    """Times of forwards on a machine, of which some were measured, the newest first."""

    def __init__(self, machine: Machine, measured: Sequence[Measured]) -> None:
        self._machine, self._measured = machine, measured
        self._known: dict[tuple, Estimate] = {}
        if measured:
            self._places = np.array([_place(each.config, each.forward) for each in measured])
            factors = np.log([each.paced / each.predicted for each in measured])
            covariance = _correlation(self._places[:, None], self._places)
            covariance += _NOISE * np.eye(len(measured))
            ones, both = np.linalg.solve(
                covariance, np.stack([np.ones(len(measured)), factors], 1)
            ).T
            self._mean = both.sum() / ones.sum()
            self._weights = both - self._mean * ones

    def estimate(self, config: ModelConfig, forward: Forward) -> Estimate:
        """How long a forward takes; a ValueError where the ceilings lack its dtype."""
        key = (sizes_of(config), forward)
        if key not in self._known:
            self._known[key] = self._estimate(config, forward)
        return self._known[key]

    def _estimate(self, config: ModelConfig, forward: Forward) -> Estimate:
        machine, sizes = self._machine, sizes_of(config)
        stages = step_times(config, forward, machine.ceilings, machine.backend)
        predicted = whole(stages).seconds
        if not self._measured:
            return Estimate(predicted, stages, PREDICTED if machine.measured else DATASHEET)
        same_model = [each for each in self._measured if sizes_of(each.config) == sizes]
        for each in same_model:
            if each.forward == forward:
                return Estimate(each.seconds, stages, MEASURED)
        alike = [each.forward for each in same_model if _traits(each.forward) == _traits(forward)]
        certainty = INTERPOLATED if _is_between(forward, alike) else SCALED
        near = _correlation(np.array(_place(config, forward)), self._places)
        factor = math.exp(self._mean + near @ self._weights)
        return Estimate(factor * predicted, stages, certainty)


def sizes_of(config: ModelConfig) -> tuple[int, ...]:
    """What of a config decides how long a forward takes."""
    return tuple(getattr(config, name) for name in _SIZES)


def _traits(forward: Forward) -> tuple:
    return forward.kind, forward.weights, forward.float8_cache, forward.dtype


def _is_between(forward: Forward, others: Sequence[Forward]) -> bool:
    """Whether at its block, or at blocks on both sides of it, there are others of batches and of
    contexts on both sides of its own, or just there.
    """

    def spans(values: Sequence[int], value: int) -> bool:
        return bool(values) and min(values) <= value <= max(values)

    def surrounds(block: int) -> bool:
        at_block = [each for each in others if each.block == block]
        batches, contexts = zip(*((each.batch, each.context) for each in at_block), strict=True)
        return spans(batches, forward.batch) and spans(contexts, forward.context)

    blocks = {each.block for each in others}
    return spans([block for block in blocks if surrounds(block)], forward.block)


def _place(config: ModelConfig, forward: Forward) -> list[float]:
    """Where a forward lies; distances are summed over axes, in doublings."""
    itemsize = itemsize_of(forward.dtype)
    size = forward_weight_bytes(config, itemsize=itemsize)
    axes = (forward.batch, forward.context + _SHORT, forward.block, size)
    traits = [each == forward.kind for each in KINDS]
    traits += [each == forward.weights for each in (None, *WEIGHTS)]
    traits += [forward.float8_cache, not forward.float8_cache, itemsize == 4, itemsize != 4]
    return [math.log2(each) for each in axes] + [each * _APART / 2 for each in traits]


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-np.abs(a - b).sum(-1) / _REACH)
