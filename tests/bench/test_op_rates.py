"""The rates of our ops: every op that a forward calls is measured, by what it does."""

from collections.abc import Callable

import pytest
import torch

from dlm_bench import op_rates
from dlm_bench.op_rates import IN_A_ROW, Sizes
from dlm_core import PRESETS
from dlm_roofline.forward import DECODE, KINDS, QUADRATIC, WEIGHTS, Forward
from dlm_roofline.op_rates import OpRate
from dlm_roofline.records import Timing
from dlm_roofline.step_work import step_work

CPU = torch.device("cpu")
SMALL = Sizes(128, (4, 2, 16), 4, 64, 1, 70, 256, 8)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    monkeypatch.setitem(op_rates.SIZES, "cpu", SMALL)
    return SMALL


def clock_of(seconds: Callable[[], float]) -> Callable[..., Timing]:
    """A clock that runs what it times, and says what it is told to."""

    def clock(run, reset=lambda: None) -> Timing:
        reset()
        run()
        value = seconds()
        return Timing(value, value, value, runs=1, cold=True, graph=False)

    return clock


def measured(seconds: Callable[[], float], **options) -> dict[str, OpRate]:
    found = op_rates.op_rates(CPU, torch.float32, clock_of(seconds), **options)
    return {name: measure() for name, measure in found.items()}


def test_every_op_of_every_forward_is_measured(sizes) -> None:
    found = measured(lambda: 1e-3)
    for kind in KINDS:
        for weights in (None, *WEIGHTS):
            for float8_cache in (False, True):
                block = {DECODE: 1, QUADRATIC: 20}.get(kind, 32)
                options = {"weights": weights, "float8_cache": float8_cache}
                forward = Forward(kind, 2, block, 100, "float32", **options)
                for works in step_work(PRESETS["tiny"], forward, "torch").values():
                    assert {work.op for work in works} <= found.keys()


def test_calls_in_a_row_are_shared_out(sizes) -> None:
    """A clock that always says 6 ms: a layer's op takes 1 ms a call, one that comes once all 6."""
    found = measured(lambda: 6e-3, kinds=())
    for name in ("residual_norm", "rope_kv_write", "linear", "gated_silu", "block_attention"):
        assert found[name].overhead == pytest.approx(6e-3 / IN_A_ROW)
    # More requests take no longer by this clock, so each takes next to nothing.
    assert found["block_attention request"].overhead == op_rates.LEAST_SECONDS
    for name in ("lookup", "confidence", "remask_scatter"):
        assert found[name].overhead == pytest.approx(6e-3)


def test_rates_are_work_over_the_time_beyond_an_idle_call(sizes) -> None:
    """Each later call says a second more, so a second call has a second more than the first."""
    ticks = iter(range(1, 100))
    found = measured(lambda: float(next(ticks)), kinds=())
    moved = 4 * 4 * SMALL.rows * SMALL.features  # four float32 tensors
    assert found["residual_norm"].bandwidth == pytest.approx(moved / (1 / IN_A_ROW))
    logits = 4 * SMALL.rows * SMALL.vocab
    assert found["confidence"].bandwidth == pytest.approx(logits)
    # Idle, 4 rows and 64: the products of 32 and of 64 rows take 1 and 2 ticks more.
    product = 2 * 32 * SMALL.features**2
    assert found["linear"].flops == pytest.approx(product / (1 / IN_A_ROW))
    assert found["linear"].bandwidth is None
