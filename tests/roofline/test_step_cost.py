"""The cost model against published figures, figures worked out by hand, and torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dlm_core import PRESETS, random_model
from dlm_kernels import Cost, quantize_weight
from dlm_roofline.forward import (
    DECODE,
    DENOISE,
    DRAFT,
    KINDS,
    QUADRATIC,
    VERIFY,
    WEIGHTS,
    Forward,
)
from dlm_roofline.step_cost import (
    ALL_REDUCE,
    ATTENTION,
    EMBEDDING,
    HEAD,
    PROJECTIONS,
    REMASK,
    STAGES,
    forward_weight_bytes,
    kv_bytes_per_token,
    linear_shapes,
    step_cost,
    step_launches,
    total,
    weight_bytes,
)

TINY, EIGHT = PRESETS["tiny"], PRESETS["8b"]
BLOCKS = {DECODE: 1, DENOISE: 32, DRAFT: 32, VERIFY: 32, QUADRATIC: 110}


def of_8b(kind: str, batch: int = 1, context: int = 1000, **more) -> dict[str, Cost]:
    forward = Forward(kind, batch, more.pop("block", BLOCKS[kind]), context, "bfloat16", **more)
    return step_cost(EIGHT, forward)


def of_tiny(kind: str, block: int, context: int = 0) -> dict[str, Cost]:
    return step_cost(TINY, Forward(kind, 1, block, context, "float32"))


# Of the published bfloat16 checkpoints: all parameters less the embedding table's, in GB.
@pytest.mark.parametrize(("size", "gigabytes"), [("3b", 6.86), ("8b", 15.905), ("14b", 25.67)])
def test_weights_of_a_forward_are_those_of_the_published_models(size, gigabytes) -> None:
    found = forward_weight_bytes(PRESETS[size], itemsize=2) / 1e9
    assert found == pytest.approx(gigabytes, abs=0.005)


@pytest.mark.parametrize(("size", "n_bytes"), [("3b", 106496), ("8b", 139264), ("14b", 163840)])
def test_kv_bytes_of_a_token_are_those_of_the_published_models(size, n_bytes) -> None:
    assert kv_bytes_per_token(PRESETS[size], itemsize=2) == n_bytes


@pytest.mark.parametrize("size", ["3b", "8b", "14b"])
def test_one_row_reads_the_weights_and_little_else(size) -> None:
    config = PRESETS[size]
    step = total(step_cost(config, Forward(DECODE, 1, 1, 0, "bfloat16")))
    weights = forward_weight_bytes(config, itemsize=2)
    assert weights < step.bytes < 1.002 * weights
    assert step.intensity == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_each_context_token_adds_its_keys_and_values_once(kind: str) -> None:
    near, far = (of_8b(kind, 3, context) for context in (1000, 1001))
    added = far[ATTENTION].bytes - near[ATTENTION].bytes
    assert added == 3 * 139264
    assert all(near[stage] == far[stage] for stage in near if stage != ATTENTION)


@pytest.mark.parametrize("rows", [32, 256, 1024])
def test_the_head_moves_weights_and_hidden_states_and_no_logits(rows) -> None:
    head = of_8b(DENOISE, rows // 32)[HEAD]
    weights = 2 * EIGHT.hidden_size * EIGHT.vocab_size
    hidden = 2 * rows * EIGHT.hidden_size
    statistics = 3 * 4 * rows
    assert head.bytes == weights + hidden + statistics


def test_embedding_and_norms_by_hand() -> None:
    """Two rows of "tiny": hidden 256, 4 layers, 10 rotated heads of 32, float32."""
    cost = of_tiny(DENOISE, 2)[EMBEDDING]
    norms, residuals = 9 * 4 * 2 * 256, 8 * 2 * 256
    rotations = 4 * (3 * 2 * 320 + 2 * 32)
    assert cost.flops == norms + residuals + rotations
    # 2 rows of 256 numbers take 2048 bytes, a norm's weight 1024.
    lookup = 2 * 4 + 2 * 2048
    norms = (2 * 2048 + 1024) + 8 * (4 * 2048 + 1024)
    # 8 query and 2 KV heads in and out; cosines, sines and a scale a row.
    rotations = 4 * (2 * 2 * 12 * 32 * 4 + 2 * 33 * 4)
    assert cost.bytes == lookup + norms + rotations


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


def test_stages_of_each_kind() -> None:
    alone = [stage for stage in STAGES if stage != ALL_REDUCE]
    for kind in KINDS:
        wanted = [stage for stage in alone if stage != REMASK or kind == DENOISE]
        assert list(of_8b(kind)) == wanted
        assert list(of_8b(kind, shards=2)) == [*wanted, ALL_REDUCE]


def test_ar_decoding_sees_what_a_block_of_one_sees() -> None:
    assert of_8b(DECODE, 4)[ATTENTION] == of_8b(DENOISE, 4, block=1)[ATTENTION]


def test_a_causal_block_hides_half_of_itself() -> None:
    both, causal = (of_8b(kind, context=0)[ATTENTION] for kind in (DENOISE, VERIFY))
    assert causal.flops / both.flops == (32 + 1) / (2 * 32)
    assert causal.bytes == both.bytes


def test_a_draft_is_a_denoising_step_without_remasking_or_its_first_token() -> None:
    step, draft = of_8b(DENOISE, 3), of_8b(DRAFT, 3)
    same = (EMBEDDING, PROJECTIONS, ATTENTION)
    assert [draft[stage] for stage in same] == [step[stage] for stage in same]
    rows = 3 * 31
    assert draft[HEAD].flops == rows * (2 * 4096 + 4) * 131072
    assert draft[HEAD].bytes == 2 * 4096 * 131072 + rows * (2 * 4096 + 12)
    assert draft[HEAD].exps == rows * 131072


def test_a_verified_block_chooses_at_every_row() -> None:
    step, verify = of_8b(DENOISE, 3), of_8b(VERIFY, 3)
    # What a bidirectional block hands to attention, a causal one writes into the cache.
    same = (EMBEDDING, PROJECTIONS, HEAD)
    assert [verify[stage] for stage in same] == [step[stage] for stage in same]


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

    # The head takes 2 rows that verify, then the right group's 1 mask that drafts.
    assert cost[HEAD].flops == 3 * (2 * 256 + 4) * 4096
    assert cost[HEAD].bytes == 4 * 256 * 4096 + 3 * (4 * 256 + 12)
    assert cost[PROJECTIONS] == of_tiny(VERIFY, 6)[PROJECTIONS]


@pytest.mark.parametrize("kind", KINDS)
def test_launches_add_up_to_stages_but_for_what_the_head_reads_twice(kind: str) -> None:
    forward = Forward(kind, 2, BLOCKS[kind], 64, "bfloat16", shards=2)
    stages = step_cost(EIGHT, forward)
    launches = step_launches(EIGHT, forward)
    assert list(launches) == list(stages)
    for stage, parts in launches.items():
        added = sum((times * cost for cost, times in parts), Cost(0, 0))
        if kind == QUADRATIC and stage == HEAD:
            added += Cost(0, -2 * 4096 * 131072 / 2)
        assert added == stages[stage]


def test_a_layer_is_nine_launches() -> None:
    layers = EIGHT.num_hidden_layers
    parts = step_launches(EIGHT, Forward(DENOISE, 1, 32, 0, "bfloat16"))
    each = {stage: sum(times for _, times in launches) for stage, launches in parts.items()}
    assert each[EMBEDDING] == 2 + 3 * layers
    assert each[PROJECTIONS] == 5 * layers and each[ATTENTION] == layers
    assert each[HEAD] == each[REMASK] == 1


# --- quantised weights and caches

# (in, out) of the products of a layer of the 8B model.
SHAPES = [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)]


def test_products_of_the_8b_model() -> None:
    assert linear_shapes(EIGHT) == SHAPES


@pytest.mark.parametrize("weights", WEIGHTS)
def test_quantised_weights_by_hand(weights: str) -> None:
    """One scale of 4 bytes for each output, of int4 for each 128 inputs of each output."""
    each = {"fp8": lambda n_in: n_in + 4, "int8": lambda n_in: n_in + 4}
    each["int4"] = lambda n_in: n_in // 2 + 4 * n_in // 128
    fewer = 34 * sum(n_out * (2 * n_in - each[weights](n_in)) for n_in, n_out in SHAPES)
    plain, quantised = of_8b(VERIFY), of_8b(VERIFY, weights=weights)
    assert quantised[PROJECTIONS] == plain[PROJECTIONS] + Cost(0, -fewer)
    assert all(quantised[stage] == plain[stage] for stage in plain if stage != PROJECTIONS)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("n_in", [128, 200])
def test_bytes_of_quantised_weights_are_those_stored(kind: str, n_in: int) -> None:
    weight = quantize_weight(torch.randn(24, n_in), kind)
    forward = Forward(DECODE, 1, 1, 0, "bfloat16", kind)
    assert weight_bytes(n_in, 24, forward, 2) == weight.n_bytes


def test_a_float8_cache_by_hand() -> None:
    """A byte for each of 8 x 128 numbers of a cached key or value, and scales of 8 heads each."""
    kv, scales, layers = 2 * 8 * 128, 2 * 8 * 4, 34
    for kind, read, written in ((DENOISE, 1000, 0), (VERIFY, 1032, 32), (QUADRATIC, 1010, 10)):
        plain, small = (of_8b(kind, 3, float8_cache=float8) for float8 in (False, True))
        fewer = layers * (3 * read * kv - scales)
        assert small[ATTENTION] == plain[ATTENTION] + Cost(0, -fewer)
        assert small[EMBEDDING] == plain[EMBEDDING] + Cost(0, -layers * 3 * written * kv)
        assert all(small[x] == plain[x] for x in plain if x not in (ATTENTION, EMBEDDING))


# --- shards


def test_two_shards_halve_the_weights_of_products_and_head() -> None:
    one, half = of_8b(DENOISE), of_8b(DENOISE, shards=2)
    weights = 34 * 2 * sum(n_in * n_out for n_in, n_out in SHAPES)
    # Whole on each shard: a layer's input of q, k, v and of gate, up, and both its outputs.
    whole = 34 * 2 * 32 * 4 * 4096
    inside = one[PROJECTIONS].bytes - weights - whole
    assert half[PROJECTIONS].bytes == weights / 2 + whole + inside / 2
    head, hidden = 2 * 4096 * 131072, 32 * (2 * 4096 + 12)
    assert (one[HEAD].bytes, half[HEAD].bytes) == (head + hidden, head / 2 + hidden)


def test_shards_have_their_heads_and_the_whole_of_norms() -> None:
    one, half = of_8b(DENOISE), of_8b(DENOISE, shards=2)
    assert 2 * half[ATTENTION] == one[ATTENTION]
    assert half[REMASK] == one[REMASK]
    # Rotated: 16 query and 4 KV heads less of 128, in and out, v passed on; 3 FLOPs a number.
    heads = 32 * 128 * (16 + 2 * 4)
    rotated = 32 * 128 * (16 + 4)
    fewer = 34 * Cost(3 * rotated, 2 * 2 * heads)
    assert one[EMBEDDING] == half[EMBEDDING] + fewer


@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_work_of_all_shards_is_that_of_one_device(kind: str, shards: int) -> None:
    one, part = of_8b(kind, 3), of_8b(kind, 3, shards=shards)
    for stage in (PROJECTIONS, ATTENTION, HEAD):
        assert shards * part[stage].flops == one[stage].flops
        assert shards * part[stage].exps == one[stage].exps


@pytest.mark.parametrize(("shards", "share"), [(2, 0.5), (4, 0.75), (8, 0.875)])
def test_bytes_of_an_all_reduce_by_hand(shards: int, share: float) -> None:
    """Two a layer: each shard sends its parts of the others' sums, then its sum to the others."""
    tensor = 2 * 3 * 32 * 4096
    assert of_8b(VERIFY, 3, shards=shards)[ALL_REDUCE] == Cost(0, 34 * 2 * 2 * share * tensor)


@pytest.mark.parametrize(
    ("shards", "change", "message"),
    [
        (3, {}, "num_attention_heads, which is 32"),
        (16, {}, "num_key_value_heads, which is 8"),
        (8, {"intermediate_size": 14340}, "intermediate_size, which is 14340"),
        (8, {"vocab_size": 131071}, "vocab_size, which is 131071"),
    ],
)
def test_what_does_not_divide_by_the_shards_is_named(shards, change, message) -> None:
    forward = Forward(DENOISE, 1, 32, 0, "bfloat16", shards=shards)
    with pytest.raises(ValueError, match=f"shards is {shards}; it must divide {message}"):
        step_cost(replace(EIGHT, **change), forward)
