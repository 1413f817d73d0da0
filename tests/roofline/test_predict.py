"""Roofs, ridges and where a step crosses."""

from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_kernels import Cost
from dlm_roofline.forward import DECODE, DENOISE, Forward
from dlm_roofline.predict import Crossing, Roof, ridge_crossing
from dlm_roofline.step_cost import step_cost, total

DTYPES = ("bfloat16", "float32")
H200 = Roof(bandwidth=4.3e12, peak=790e12)
STEP = Forward(DENOISE, 1, 32, 0, "bfloat16")


def test_ridge_of_an_h200_as_measured() -> None:
    assert H200.ridge == pytest.approx(184, abs=0.5)


@pytest.mark.parametrize(
    ("cost", "seconds", "holder"),
    [
        (Cost(flops=1e12, bytes=43e9), 0.01, "memory"),
        (Cost(flops=79e12, bytes=1e9), 0.1, "compute"),
        (Cost(flops=0, bytes=4.3e9), 0.001, "memory"),
    ],
    ids=["below the ridge", "above the ridge", "no FLOPs"],
)
def test_time_is_the_slower_of_the_two(cost, seconds, holder) -> None:
    assert H200.seconds(cost) == pytest.approx(seconds)
    assert H200.holder(cost) == holder


def test_exponentials_hold_work_that_needs_more_of_them_than_a_device_takes() -> None:
    roof = Roof(bandwidth=4.0, peak=8.0, exps=2.0)
    assert roof.seconds(Cost(8.0, 4.0, 6.0)) == 3.0
    assert roof.holder(Cost(8.0, 4.0, 6.0)) == "exponentials"
    assert roof.seconds(Cost(8.0, 12.0, 4.0)) == 3.0
    assert H200.seconds(Cost(0, 4.3e12, 1e30)) == 1.0  # nobody measured a rate


def test_a_step_takes_the_sum_of_its_stages() -> None:
    stages = {"a": Cost(0, 4.3e12), "b": Cost(790e12, 1)}
    # One piece of work could hide one behind the other and take 1 s.
    assert H200.step_seconds(stages) == pytest.approx(2)


@pytest.mark.parametrize(("size", "milliseconds"), [("3b", 1.43), ("8b", 3.31), ("14b", 5.35)])
def test_floor_of_a_forward_at_the_datasheet_bandwidth(size, milliseconds) -> None:
    """One row without context: what streaming the published weights takes at 4.8 TB/s."""
    roof = Roof(bandwidth=4.8e12, peak=990e12)
    seconds = roof.step_seconds(step_cost(PRESETS[size], Forward(DECODE, 1, 1, 0, "bfloat16")))
    assert seconds * 1e3 == pytest.approx(milliseconds, rel=0.005)


@pytest.mark.parametrize("context", [0, 1024, 8192])
@pytest.mark.parametrize(
    ("weights", "float8_cache"), [(None, False), ("int4", False), (None, True)]
)
def test_crossing_is_the_first_batch_at_the_ridge(context, weights, float8_cache) -> None:
    config = PRESETS["8b"]
    step = Forward(DENOISE, 1, 32, context, "bfloat16", weights, float8_cache)
    crossing = ridge_crossing(config, step, 184)

    def intensity(batch: int) -> float:
        return total(step_cost(config, replace(step, batch=batch))).intensity

    assert crossing.block == 32
    assert intensity(crossing.batch) >= 184 > intensity(crossing.batch - 1)


def test_without_context_the_crossing_lies_a_little_above_the_ridge_in_rows() -> None:
    """Weights alone give 1 FLOP/byte a row in bfloat16; activations push the crossing up."""
    crossing = ridge_crossing(PRESETS["8b"], STEP, 184)
    assert 184 <= crossing.rows <= 184 * 1.25


def test_the_batch_of_a_step_does_not_move_its_crossing() -> None:
    assert ridge_crossing(PRESETS["8b"], replace(STEP, batch=500), 8) == ridge_crossing(
        PRESETS["8b"], STEP, 8
    )


def test_weights_in_few_bits_cross_at_fewer_rows() -> None:
    """Of 8.5 billion parameters 0.54 are the head's, which stay in bfloat16."""
    steps = [replace(STEP, block=1, weights=weights) for weights in (None, "fp8", "int4")]
    whole, half, quarter = (ridge_crossing(PRESETS["8b"], step, 50).rows for step in steps)
    assert 0.5 * whole < half < 0.6 * whole
    assert 0.25 * whole < quarter < 0.4 * whole


def test_a_low_ridge_is_crossed_within_one_block() -> None:
    assert ridge_crossing(PRESETS["8b"], STEP, 0.5) == Crossing(1, 1)
    crossing = ridge_crossing(PRESETS["8b"], STEP, 8)
    assert crossing.batch == 1 and 8 <= crossing.block <= 9


def test_long_contexts_can_keep_a_step_below_the_ridge_for_good() -> None:
    """3B at 32k: a request reads 3.5 GB of context of its own, at 128 FLOP/byte at most."""
    assert ridge_crossing(PRESETS["3b"], replace(STEP, context=32768), 184) is None


def test_float32_takes_twice_the_rows_to_cross() -> None:
    steps = [replace(STEP, block=1, dtype=dtype) for dtype in DTYPES]
    rows = [ridge_crossing(PRESETS["8b"], step, 50).rows for step in steps]
    assert 2 * rows[0] <= rows[1] <= 2.1 * rows[0]  # activations, in bytes twice as many too
