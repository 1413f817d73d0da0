"""Predicted times from ceilings alone: launch by launch, and what holds each stage."""

from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DENOISE, KINDS, QUADRATIC, Forward
from dlm_roofline.op_rates import OpRate
from dlm_roofline.step_cost import (
    ALL_REDUCE,
    ATTENTION,
    EMBEDDING,
    HEAD,
    PROJECTIONS,
    REMASK,
    step_cost,
)
from dlm_roofline.step_time import StageTime, step_times, whole

TINY, EIGHT = PRESETS["tiny"], PRESETS["8b"]
STEP = Forward(DENOISE, 1, 32, 64, "float32")


def rate(value: float) -> Ceiling:
    return Ceiling(value, 0.9 * value, 5)


def ceilings(
    read: float = 1e18,
    peak: float = 1e18,
    exps: float | None = 1e18,
    node: float | None = 1e-12,
) -> Ceilings:
    """Of a device that does everything at once, but for what a test says."""
    return Ceilings(
        rate(read),
        rate(1.0),
        rate(1.0),
        {"float32": rate(peak), "bfloat16": rate(2 * peak)},
        exps=exps and rate(exps),
        graph_node=node and Latency(node, 2 * node, 5),
    )


def of_step(forward: Forward = STEP, **given: float | None) -> dict[str, StageTime]:
    return step_times(TINY, forward, ceilings(**given), "triton")


def test_a_stage_takes_the_sum_of_its_launches_maxima_and_their_nodes() -> None:
    """Products of "tiny" at 32 rows do 12.8 to 14 FLOP/byte, SiLU a quarter: the ridge is 13.5."""
    shapes, rows, layers = [(256, 512 - 128), (256, 256), (256, 1536), (768, 256)], 32, 4
    times = [
        max(
            4 * (n_in * n_out + rows * (n_in + n_out)) / 1e9,
            2 * rows * n_in * n_out / 13.5e9,
        )
        for n_in, n_out in shapes
    ]
    silu = 4 * 3 * rows * 768 / 1e9
    found = of_step(read=1e9, peak=13.5e9, node=1e-6)[PROJECTIONS]
    assert found.seconds == pytest.approx(layers * (sum(times) + silu + 5 * 1e-6))
    # As one piece of work one launch could multiply while another waits for memory.
    assert found.floor < found.seconds - layers * 5e-6


def test_each_stage_by_its_bytes_and_launches() -> None:
    nodes = {EMBEDDING: 14, PROJECTIONS: 20, ATTENTION: 4, HEAD: 1, REMASK: 1}
    costs, times = step_cost(TINY, STEP), of_step(read=1e9, node=1e-6)
    assert list(times) == list(costs)
    for stage, time in times.items():
        assert time.seconds == pytest.approx(costs[stage].bytes / 1e9 + nodes[stage] * 1e-6)
        assert time.floor == pytest.approx(costs[stage].bytes / 1e9)
        # The 0.9 KB of one remasking take less than its launch.
        assert time.held_by == ("launches" if stage == REMASK else "memory")


def test_a_device_without_graphs_has_no_cost_of_a_node() -> None:
    for time in of_step(read=1e9, node=None).values():
        assert time.seconds == pytest.approx(time.floor)


def test_a_head_that_runs_twice_reads_its_weight_twice() -> None:
    time = of_step(Forward(QUADRATIC, 1, 6, 0, "float32"), read=1e9, node=1e-6)[HEAD]
    assert time.seconds - time.floor == pytest.approx(4 * 256 * 4096 / 1e9 + 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_forward_beats_its_floor(kind: str) -> None:
    block = {"decode": 1, "quadratic": 110}.get(kind, 32)
    for batch in (1, 64):
        forward = Forward(kind, batch, block, 1024, "bfloat16")
        times = step_times(EIGHT, forward, ceilings(4e12, 4e14, 4e12, 1e-6), "triton")
        assert all(time.seconds > time.floor > 0 for time in times.values())


@pytest.mark.parametrize(
    ("given", "holder"),
    [
        ({"read": 1e9}, "memory"),
        ({"peak": 1e9}, "compute"),
        ({"exps": 1e9}, "exponentials"),
        ({"node": 1.0}, "launches"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_holds_a_stage(given: dict[str, float], holder: str) -> None:
    times = of_step(**given)
    assert (times[ATTENTION].held_by, times[HEAD].held_by) == (holder, holder)


def test_what_was_not_measured_holds_nothing() -> None:
    """A host's exponentials bound no stage, however many there are."""
    assert of_step(exps=None, peak=1e9)[ATTENTION].held_by == "compute"
    assert of_step(exps=None)[ATTENTION] == of_step(exps=1e30)[ATTENTION]


def test_a_stage_is_held_by_what_takes_most_of_it() -> None:
    """Embedding and norms are 14 launches."""
    n_bytes = step_cost(TINY, STEP)[EMBEDDING].bytes
    for node, holder in ((0.9, "memory"), (1.1, "launches")):
        found = of_step(read=1e9, node=node * n_bytes / 1e9 / 14)
        assert found[EMBEDDING].held_by == holder


def test_shards_send_over_the_link() -> None:
    forward = Forward(DENOISE, 1, 32, 64, "bfloat16", shards=2)
    times = step_times(EIGHT, forward, ceilings(), "triton", link=1e9)
    sent = 34 * 2 * 2 * 0.5 * (2 * 32 * 4096)
    assert times[ALL_REDUCE].floor == sent / 1e9
    assert times[ALL_REDUCE].seconds == pytest.approx(sent / 1e9)
    assert times[ALL_REDUCE].held_by == "link"
    assert "link" not in {times[stage].held_by for stage in times if stage != ALL_REDUCE}


def test_shards_without_a_link_are_refused() -> None:
    forward = Forward(DENOISE, 1, 32, 64, "bfloat16", shards=2)
    with pytest.raises(ValueError, match="link is None; 2 shards need the bandwidth between them"):
        step_times(EIGHT, forward, ceilings(), "triton")


def test_a_dtype_that_nobody_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'float16'; .* known in float32, bfloat16"):
        of_step(replace(STEP, dtype="float16"))


def test_a_collective_is_a_launch_too() -> None:
    forward = Forward(DENOISE, 1, 32, 64, "bfloat16", shards=2)
    slow_nodes = replace(ceilings(), graph_node=Latency(1e-3, 1e-3, 1))
    times = step_times(EIGHT, forward, slow_nodes, "triton", link=1e12)
    sent = 34 * 2 * 2 * 0.5 * (2 * 32 * 4096)
    assert times[ALL_REDUCE].seconds == pytest.approx(68e-3 + sent / 1e12)
    assert times[ALL_REDUCE].held_by == "launches"


RATES = {"linear": OpRate(1e-6, 1e12, 1e14), "gated_silu": OpRate(1e-6, 1e12, None)}


def of_projections(rates: dict[str, OpRate], dtype: str = "bfloat16") -> StageTime:
    forward = replace(STEP, dtype=dtype)
    return step_times(EIGHT, forward, replace(ceilings(), ops=rates), "triton")[PROJECTIONS]


def test_what_holds_a_stage_of_known_rates() -> None:
    assert of_projections(RATES).held_by == "memory"
    slow_products = {**RATES, "linear": OpRate(1e-6, 1e12, 1e12)}
    assert of_projections(slow_products).held_by == "compute"
    slow_calls = {name: replace(rate, overhead=1.0) for name, rate in RATES.items()}
    assert of_projections(slow_calls).held_by == "launches"


def test_what_all_ops_share_of_their_first_calls_counts_once() -> None:
    """2 ms, by the least of them; of 3 ms 1 is the op's own."""
    cold = {"linear": replace(RATES["linear"], first=3e-3)}
    cold["gated_silu"] = replace(RATES["gated_silu"], first=2e-3)
    warm, stage = of_projections(RATES), of_projections(cold)
    assert (stage.first, warm.first) == (2e-3, 0.0)
    assert stage.seconds == pytest.approx(warm.seconds + 2e-3 + 1e-3)
    other = StageTime(1.0, 0.5, "compute", first=2e-3)
    step = whole({"one": stage, "other": other, "no op of ours": StageTime(0.1, 0.1, "memory")})
    assert step.seconds == pytest.approx(warm.seconds + 3e-3 + (1.0 - 2e-3) + 0.1)
    assert (step.first, step.floor, step.held_by) == (2e-3, stage.floor + 0.6, "compute")


def test_rates_count_where_every_op_of_a_stage_has_one_in_its_dtype() -> None:
    without = of_projections({})
    assert of_projections({"linear": RATES["linear"]}) == without != of_projections(RATES)
    assert of_projections(RATES, "float32") == of_projections({}, "float32")
