"""Predicted times, launch by launch, and what holds each stage."""

from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DENOISE, DRAFT, KINDS, LINEAR, QUADRATIC, VERIFY, Forward
from dlm_roofline.op_rates import OpRate
from dlm_roofline.step_cost import STAGES, step_cost
from dlm_roofline.step_time import StageTime, after, step_times, whole

EMBEDDING, PROJECTIONS, ATTENTION, HEAD, REMASK = STAGES
TINY, EIGHT = PRESETS["tiny"], PRESETS["8b"]
STEP = Forward(DENOISE, 1, 32, 64, "float32")


def ceilings(
    read: float = 1e18,
    peak: float = 1e18,
    exps: float | None = 1e18,
    node: float | None = 1e-12,
    **more: object,
) -> Ceilings:
    """Of a device that does everything at once, but for what a test says."""

    def rate(value: float) -> Ceiling:
        return Ceiling(value, 0.9 * value, 5)

    products = {"float32": rate(peak), "bfloat16": rate(2 * peak)}
    graph_node = node and Latency(node, 2 * node, 5)
    others = {"exps": exps and rate(exps), "graph_node": graph_node} | more
    return Ceilings(rate(read), rate(1.0), rate(1.0), products, **others)


def of_step(forward: Forward = STEP, **given: object) -> dict[str, StageTime]:
    return step_times(TINY, forward, ceilings(**given))


def test_a_stage_takes_the_sum_of_its_launches_maxima_and_their_nodes() -> None:
    """Products of "tiny" at 32 rows do 12.8 to 14 FLOP/byte, SiLU a quarter: the ridge is 13.5."""
    shapes, rows, layers = [(256, 512 - 128), (256, 256), (256, 1536), (768, 256)], 32, 4
    times = [
        max(4 * (n_in * n_out + rows * (n_in + n_out)) / 1e9, 2 * rows * n_in * n_out / 13.5e9)
        for n_in, n_out in shapes
    ]
    silu = 4 * 3 * rows * 768 / 1e9
    found = of_step(read=1e9, peak=13.5e9, node=1e-6)[PROJECTIONS]
    assert found.seconds == pytest.approx(layers * (sum(times) + silu + 5 * 1e-6))
    # As one piece of work one launch could multiply while another waits for memory.
    assert found.floor < found.seconds - layers * 5e-6


@pytest.mark.parametrize(
    "given, launch",
    [
        ({"node": 1e-6}, 1e-6),
        ({"node": 1e-6, "launch": Latency(1e-3, 1e-3, 5)}, 1e-6),
        ({"node": None, "launch": Latency(1e-6, 2e-6, 5)}, 1e-6),
        ({"node": None}, 0.0),
    ],
    ids=["a graph's node", "not Python's launch", "a host's call", "a datasheet"],
)
def test_each_stage_by_its_bytes_and_launches(given: dict, launch: float) -> None:
    counts = {EMBEDDING: 14, PROJECTIONS: 20, ATTENTION: 4, HEAD: 1, REMASK: 1}
    costs, times = step_cost(TINY, STEP), of_step(read=1e9, **given)
    assert list(times) == list(costs)
    for stage, time in times.items():
        assert time.seconds == pytest.approx(costs[stage].bytes / 1e9 + counts[stage] * launch)
        assert time.floor == pytest.approx(costs[stage].bytes / 1e9)


def test_a_head_that_runs_twice_reads_its_weight_twice() -> None:
    time = of_step(Forward(QUADRATIC, 1, 6, 0, "float32"), read=1e9, node=1e-6)[HEAD]
    assert time.seconds - time.floor == pytest.approx(4 * 256 * 4096 / 1e9 + 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_forward_beats_its_floor(kind: str) -> None:
    block = {"decode": 1, "quadratic": 110}.get(kind, 32)
    for batch in (1, 64):
        forward = Forward(kind, batch, block, 1024, "bfloat16")
        times = step_times(EIGHT, forward, ceilings(4e12, 4e14, 4e12, 1e-6))
        assert all(time.seconds > time.floor > 0 for time in times.values())


def test_a_linear_cycle_takes_its_draft_and_its_verification() -> None:
    draft, verify, cycle = (
        of_step(replace(STEP, kind=kind), read=1e9, node=1e-6) for kind in (DRAFT, VERIFY, LINEAR)
    )
    assert cycle == {stage: after([draft[stage], verify[stage]]) for stage in draft}
    assert whole(cycle).seconds == pytest.approx(whole(draft).seconds + whole(verify).seconds)


@pytest.mark.parametrize(
    "given, holder",
    [
        ({"read": 1e9}, "memory"),
        ({"peak": 1e9}, "compute"),
        ({"exps": 1e9}, "exponentials"),
        ({"node": 1.0}, "launches"),
        ({"exps": None, "peak": 1e9}, "compute"),  # a host's exponentials bound nothing
    ],
)
def test_what_holds_a_stage(given: dict, holder: str) -> None:
    times = of_step(**given)
    assert (times[ATTENTION].held_by, times[HEAD].held_by) == (holder, holder)


def test_a_stage_is_held_by_what_takes_most_of_it() -> None:
    """Embedding and norms are 14 launches."""
    n_bytes = step_cost(TINY, STEP)[EMBEDDING].bytes
    for node, holder in ((0.9, "memory"), (1.1, "launches")):
        found = of_step(read=1e9, node=node * n_bytes / 1e9 / 14)
        assert found[EMBEDDING].held_by == holder
    short, long = StageTime(1.0, 0.5, "memory"), StageTime(2.0, 1.5, "compute")
    assert whole({"one": short, "other": long}) == StageTime(3.0, 2.0, "compute")


@pytest.mark.parametrize(
    "rates, seconds, holder",
    [
        ({"block_attention": OpRate(1e9, None)}, lambda cost: cost.bytes / 1e9, "memory"),
        ({"block_attention": OpRate(1e15, 1e9)}, lambda cost: cost.flops / 1e9, "compute"),
        # No op is quicker than the ceilings allow, and other ops' rates are not its own.
        ({"block_attention": OpRate(1e30, 1e30)}, lambda cost: cost.bytes / 1e12, "memory"),
        ({"linear": OpRate(1.0, 1.0)}, lambda cost: cost.bytes / 1e12, "memory"),
    ],
    ids=["bandwidth", "FLOP/s", "ceiling", "another op's"],
)
def test_an_op_takes_what_it_reaches(rates: dict[str, OpRate], seconds, holder: str) -> None:
    cost = step_cost(TINY, STEP)[ATTENTION]
    found = of_step(read=1e12, node=None, ops=rates)[ATTENTION]
    assert found.seconds == pytest.approx(seconds(cost))
    assert (found.floor, found.held_by) == (pytest.approx(cost.bytes / 1e12), holder)


def test_a_dtype_without_a_ceiling_is_named() -> None:
    with pytest.raises(ValueError, match="dtype is 'float16'; .* known in float32, bfloat16"):
        step_times(EIGHT, replace(STEP, dtype="float16"), ceilings())
