"""Roofs, ridges and where a step crosses."""

from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_kernels import Cost
from dlm_roofline.forward import DENOISE, Forward
from dlm_roofline.predict import Roof, ridge_crossing
from dlm_roofline.step_cost import step_cost, total

EIGHT = PRESETS["8b"]
H200 = Roof(bandwidth=4.3e12, peak=790e12)
WITH_EXPS = replace(H200, exps=4e12)
STEP = Forward(DENOISE, 1, 32, 0, "bfloat16")


@pytest.mark.parametrize(
    "roof, cost, seconds, holder",
    [
        (H200, Cost(flops=1e12, bytes=43e9), 0.01, "memory"),
        (H200, Cost(flops=79e12, bytes=1e9), 0.1, "compute"),
        (H200, Cost(flops=0, bytes=4.3e9), 0.001, "memory"),
        (WITH_EXPS, Cost(flops=79e12, bytes=1e9, exps=8e12), 2.0, "exponentials"),
        (WITH_EXPS, Cost(flops=79e12, bytes=1e9, exps=1e9), 0.1, "compute"),
        (H200, Cost(flops=0, bytes=4.3e12, exps=1e30), 1.0, "memory"),
    ],
    ids=["below the ridge", "above it", "no FLOPs", "many exps", "few exps", "no rate of exps"],
)
def test_time_is_that_of_what_takes_longest(roof, cost, seconds, holder) -> None:
    assert roof.seconds(cost) == pytest.approx(seconds)
    assert roof.holder(cost) == holder


def test_ridge_and_slope() -> None:
    assert H200.ridge == pytest.approx(184, abs=0.5)


@pytest.mark.parametrize("kept", [{}, {"weights": "int4"}, {"float8_cache": True}])
@pytest.mark.parametrize("context", [0, 1024, 8192])
def test_crossing_is_the_first_batch_at_the_ridge(context: int, kept: dict) -> None:
    step = replace(STEP, context=context, **kept)
    found, block = ridge_crossing(EIGHT, step, 184)

    def intensity(batch: int) -> float:
        return total(step_cost(EIGHT, replace(step, batch=batch))).intensity

    assert block == 32 and intensity(found) >= 184 > intensity(found - 1)
    assert ridge_crossing(EIGHT, replace(step, batch=500), 184) == (found, block)


def test_a_low_ridge_is_crossed_within_one_block() -> None:
    assert ridge_crossing(EIGHT, STEP, 0.5) == (1, 1)
    batch, block = ridge_crossing(EIGHT, STEP, 8)
    assert batch == 1 and 8 <= block <= 9


def test_long_contexts_can_keep_a_step_below_the_ridge_for_good() -> None:
    """3B at 32k: a request reads 3.5 GB of context of its own, at 128 FLOP/byte at most."""
    assert ridge_crossing(PRESETS["3b"], replace(STEP, context=32768), 184) is None
