"""The cost model against published figures, figures worked out by hand, and torch's own counter."""

import pytest
import torch
from made_up import BLOCKS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dlm_core import PRESETS, random_model
from dlm_kernels import Cost, quantize_weight
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, LINEAR, QUADRATIC, VERIFY, Forward
from dlm_roofline.step_cost import (
    STAGES,
    forward_weight_bytes,
    kv_bytes_per_token,
    linear_shapes,
    step_cost,
    step_launches,
    total,
    weight_bytes,
)

EMBEDDING, PROJECTIONS, ATTENTION, HEAD, REMASK = STAGES
TINY, EIGHT = PRESETS["tiny"], PRESETS["8b"]
SHAPES = [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)]  # products of an 8B layer
each_kind = pytest.mark.parametrize("kind", BLOCKS)


def of_8b(kind: str, batch: int = 1, context: int = 1000, **more) -> dict[str, Cost]:
    return step_cost(EIGHT, Forward(kind, batch, BLOCKS.get(kind, 32), context, "bfloat16", **more))


def of_tiny(kind: str, block: int, context: int = 0) -> dict[str, Cost]:
    return step_cost(TINY, Forward(kind, 1, block, context, "float32"))


# Of the published bfloat16 checkpoints: all parameters less the embedding table's, in GB.
@pytest.mark.parametrize(
    "size, gigabytes, kv_bytes",
    [("3b", 6.86, 106496), ("8b", 15.905, 139264), ("14b", 25.67, 163840)],
)
def test_one_row_reads_the_published_weights_and_little_else(size, gigabytes, kv_bytes) -> None:
    config = PRESETS[size]
    weights = forward_weight_bytes(config, itemsize=2)
    assert weights / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert kv_bytes_per_token(config, itemsize=2) == kv_bytes
    step = total(step_cost(config, Forward(DECODE, 1, 1, 0, "bfloat16")))
    assert weights < step.bytes < 1.002 * weights
    assert step.intensity == pytest.approx(1, abs=0.01)


@each_kind
def test_each_context_token_adds_its_keys_and_values_once(kind: str) -> None:
    near, far = (of_8b(kind, 3, context) for context in (1000, 1001))
    assert far[ATTENTION].bytes - near[ATTENTION].bytes == 3 * 139264
    assert all(near[stage] == far[stage] for stage in near if stage != ATTENTION)


def test_matrix_work_is_what_torch_counts() -> None:
    """Of a step in plain torch: every product and SDPA's two, nothing else."""
    from dlm_bench.steps import StepBench

    model = random_model("tiny")
    config, forward = model.config, Forward(DENOISE, 2, 32, 100, "float32")
    step = StepBench(model, forward)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.peer()
    stages = step_cost(config, forward)
    gates = 3 * forward.rows * config.intermediate_size * config.num_hidden_layers
    statistics = 4 * forward.rows * config.vocab_size
    matrix_work = sum(stages[stage].flops for stage in (PROJECTIONS, ATTENTION, HEAD))
    assert counter.get_total_flops() == matrix_work - gates - statistics


# --- kinds of forwards


@each_kind
def test_stages(kind: str) -> None:
    assert list(of_8b(kind)) == [x for x in STAGES if x != REMASK or kind == DENOISE]


@pytest.mark.parametrize(
    "kind, rows",
    [(DENOISE, 3 * 32), (DRAFT, 3 * 31), (VERIFY, 3 * 32), (QUADRATIC, 3 * (10 + 9))],
)
def test_the_head_takes_the_rows_whose_tokens_are_wanted(kind: str, rows: int) -> None:
    """Its weight once, hidden states, three statistics a row, and no logits."""
    assert of_8b(kind, 3)[HEAD] == Cost(
        rows * (2 * 4096 + 4) * 131072,
        2 * 4096 * 131072 + rows * (2 * 4096 + 3 * 4),
        rows * 131072,
    )


def test_a_linear_cycle_is_a_draft_and_its_verification() -> None:
    draft, verify, cycle = (of_8b(kind, 3) for kind in (DRAFT, VERIFY, LINEAR))
    assert cycle == {stage: draft[stage] + verify[stage] for stage in draft}


def test_a_quadratic_forward_by_hand() -> None:
    """k 2 of "tiny" behind 3 tokens: [draft, mask, mask] twice; 8 query and 2 KV heads of 32."""
    cost = of_tiny(QUADRATIC, 6, context=3)
    # Group 0: its slot 0 sees 3 + 1 keys, a mask these and 2 masks; group 1 one slot 0 more.
    pairs = 8 * (4 + 2 * 6 + 5 + 2 * 7)
    # Read: 3 + 2 keys and values from the cache and those of 4 masks; queries in, results out.
    moved = 4 * (2 * 6 * 8 * 32 + 2 * (5 + 4) * 2 * 32)
    assert cost[ATTENTION] == 4 * Cost(4 * 32 * pairs, moved, pairs)

    # Rotations write all 6 keys and values for attention, and the 2 slots 0 into the cache.
    heads = 6 * (8 + 4) + 6 * (8 + 4) + 2 * 4
    rotations = 4 * (4 * 32 * heads + 6 * 33 * 4)
    six_rows = 4 * 6 * 256
    norms = (2 * six_rows + 1024) + 8 * (4 * six_rows + 1024)
    assert cost[EMBEDDING].bytes == 6 * 4 + 2 * six_rows + norms + rotations
    assert cost[PROJECTIONS] == of_tiny(VERIFY, 6)[PROJECTIONS]


@each_kind
def test_launches_add_up_to_stages_but_for_what_the_head_reads_twice(kind: str) -> None:
    forward = Forward(kind, 2, BLOCKS[kind], 64, "bfloat16")
    stages, launches = step_cost(EIGHT, forward), step_launches(EIGHT, forward)
    assert list(launches) == list(stages)
    for stage, parts in launches.items():
        added = sum((each.count * each.cost for each in parts), Cost(0, 0))
        if kind == QUADRATIC and stage == HEAD:
            added += Cost(0, -2 * 4096 * 131072)
        assert added == stages[stage]


def test_a_layer_is_nine_launches() -> None:
    stages = step_launches(EIGHT, Forward(DENOISE, 1, 32, 0, "bfloat16", weights="int8"))
    counts = {stage: sum(each.count for each in parts) for stage, parts in stages.items()}
    expected = {EMBEDDING: 2 + 34 * 3, PROJECTIONS: 34 * 5, ATTENTION: 34, HEAD: 1, REMASK: 1}
    assert counts == expected
    assert linear_shapes(EIGHT) == SHAPES
    assert {each.op for each in stages[PROJECTIONS]} == {"linear int8", "gated_silu"}


# --- quantised weights and caches


@pytest.mark.parametrize(
    "weights, row_bytes",
    [
        ("fp8", lambda n_in: n_in + 4),
        ("int8", lambda n_in: n_in + 4),
        ("int4", lambda n_in: n_in // 2 + 4 * n_in // 128),
    ],
)
def test_quantised_weights_by_hand(weights: str, row_bytes) -> None:
    """One scale of 4 bytes for each output, of int4 for each 128 inputs of each output."""
    fewer = 34 * sum(n_out * (2 * n_in - row_bytes(n_in)) for n_in, n_out in SHAPES)
    plain, quantised = of_8b(VERIFY), of_8b(VERIFY, weights=weights)
    assert quantised == plain | {PROJECTIONS: plain[PROJECTIONS] + Cost(0, -fewer)}
    for n_in in (128, 200):
        stored = quantize_weight(torch.randn(24, n_in), weights).n_bytes
        forward = Forward(DECODE, 1, 1, 0, "bfloat16", weights)
        assert weight_bytes(n_in, 24, forward) == stored


@pytest.mark.parametrize(
    "kind, read, written", [(DENOISE, 1000, 0), (VERIFY, 1032, 32), (QUADRATIC, 1010, 10)]
)
def test_a_float8_cache_by_hand(kind: str, read: int, written: int) -> None:
    """A byte for each of 8 x 128 numbers of a cached key or value, and scales of 8 heads each."""
    kv, scales, layers = 2 * 8 * 128, 2 * 8 * 4, 34
    plain, small = (of_8b(kind, 3, float8_cache=float8) for float8 in (False, True))
    assert small == plain | {
        ATTENTION: plain[ATTENTION] + Cost(0, -layers * (3 * read * kv - scales)),
        EMBEDDING: plain[EMBEDDING] + Cost(0, -layers * 3 * written * kv),
    }
