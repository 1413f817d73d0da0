"""Predicted times, launch by launch, and what holds each stage."""

from dataclasses import replace

import pytest
from made_up import ceiling

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceilings, Latency
from dlm_roofline.forward import DENOISE, DRAFT, LINEAR, VERIFY, Forward
from dlm_roofline.op_rates import OpRate
from dlm_roofline.step_cost import STAGES, step_cost
from dlm_roofline.step_time import StageTime, step_times, whole

EMBEDDING, PROJECTIONS, ATTENTION, HEAD, REMASK = STAGES
TINY, EIGHT = PRESETS["tiny"], PRESETS["8b"]
STEP = Forward(DENOISE, 1, 32, 64, "float32")


def ceilings(
    read: float = 1e18,
    peak: float = 1e18,
    exps: float = 1e18,
    node: float | None = 1e-12,
    **more: object,
) -> Ceilings:
    """Of a device that does everything at once, but for what a test says."""
    products = {"float32": ceiling(peak), "bfloat16": ceiling(2 * peak)}
    more |= {"exps": ceiling(exps), "graph_node": node and Latency(node, 2 * node, 5)}
    return Ceilings(ceiling(read), ceiling(1.0), ceiling(1.0), products, **more)


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
    assert cycle == {stage: whole([draft[stage], verify[stage]]) for stage in draft}


def test_a_stage_is_held_by_what_takes_most_of_it() -> None:
    """Embedding and norms are 14 launches."""
    n_bytes = step_cost(TINY, STEP)[EMBEDDING].bytes
    for node, holder in ((0.9, "memory"), (1.1, "launches")):
        found = of_step(read=1e9, node=node * n_bytes / 1e9 / 14)
        assert found[EMBEDDING].held_by == holder
    for given, holder in (({"peak": 1e9}, "compute"), ({"exps": 1e9}, "exponentials")):
        assert of_step(**given)[HEAD].held_by == holder
    short, long = StageTime(1.0, 0.5, "memory"), StageTime(2.0, 1.5, "compute")
    assert whole([short, long]) == StageTime(3.0, 2.0, "compute")


@pytest.mark.parametrize(
    "op, reached", [("block_attention", 1e9), ("linear", 1e12)], ids=["its own", "another's"]
)
def test_an_op_takes_what_it_reaches(op: str, reached: float) -> None:
    n_bytes = step_cost(TINY, STEP)[ATTENTION].bytes
    found = of_step(read=1e12, node=None, ops={op: OpRate(1e9, None)})[ATTENTION]
    assert found.seconds == pytest.approx(n_bytes / reached)
    assert found.floor == pytest.approx(n_bytes / 1e12)


def test_a_dtype_without_a_ceiling_is_named() -> None:
    with pytest.raises(ValueError, match="dtype is 'float16'; .* known in float32, bfloat16"):
        step_times(EIGHT, replace(STEP, dtype="float16"), ceilings())
