"""Predicted times, launch by launch, and what holds each stage."""

from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DENOISE, DRAFT, LINEAR, VERIFY, Forward
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
        ({"linear": OpRate(1.0, 1.0)}, lambda cost: cost.bytes / 1e12, "memory"),
    ],
    ids=["bandwidth", "FLOP/s", "another op's"],
)
def test_an_op_takes_what_it_reaches(rates: dict[str, OpRate], seconds, holder: str) -> None:
    cost = step_cost(TINY, STEP)[ATTENTION]
    found = of_step(read=1e12, node=None, ops=rates)[ATTENTION]
    assert found.seconds == pytest.approx(seconds(cost))
    assert (found.floor, found.held_by) == (pytest.approx(cost.bytes / 1e12), holder)


def test_a_dtype_without_a_ceiling_is_named() -> None:
    with pytest.raises(ValueError, match="dtype is 'float16'; .* known in float32, bfloat16"):
        step_times(EIGHT, replace(STEP, dtype="float16"), ceilings())
