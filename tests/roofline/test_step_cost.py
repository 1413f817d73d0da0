"""The cost model against published figures, figures worked out by hand, and torch's own counter."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dlm_bench.steps import StepBench
from dlm_core import PRESETS, random_model
from dlm_roofline.step_cost import (
    ATTENTION,
    EMBEDDING,
    HEAD,
    PROJECTIONS,
    REMASK,
    STAGES,
    forward_weight_bytes,
    kv_bytes_per_token,
    step_cost,
    total,
)


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
    step = total(step_cost(config, 1, 1, 0, itemsize=2))
    weights = forward_weight_bytes(config, itemsize=2)
    assert weights < step.bytes < 1.002 * weights
    assert step.intensity == pytest.approx(1, abs=0.01)


def test_each_context_token_adds_its_keys_and_values_once() -> None:
    config = PRESETS["8b"]
    near, far = (step_cost(config, 3, 32, context, itemsize=2) for context in (1000, 1001))
    added = far[ATTENTION].bytes - near[ATTENTION].bytes
    assert added == 3 * 139264
    assert all(near[stage] == far[stage] for stage in STAGES if stage != ATTENTION)


@pytest.mark.parametrize("rows", [32, 256, 1024])
def test_the_head_moves_weights_and_hidden_states_and_no_logits(rows) -> None:
    config = PRESETS["8b"]
    head = step_cost(config, rows // 32, 32, 0, itemsize=2)[HEAD]
    weights = 2 * config.hidden_size * config.vocab_size
    hidden = 2 * rows * config.hidden_size
    statistics = 3 * 4 * rows
    assert head.bytes == weights + hidden + statistics


def test_embedding_and_norms_by_hand() -> None:
    """Two rows of "tiny": hidden 256, 4 layers, 10 rotated heads of 32, float32."""
    cost = step_cost(PRESETS["tiny"], 1, 2, 0, itemsize=4)[EMBEDDING]
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
    batch, block, context = 2, 32, 100
    model = random_model("tiny")
    config, step = model.config, StepBench(model, batch, block, context)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.peer()
    stages = step_cost(config, batch, block, context, itemsize=4)
    rows = batch * block
    gates = 3 * rows * config.intermediate_size * config.num_hidden_layers
    statistics = 4 * rows * config.vocab_size
    matrix_work = sum(stages[stage].flops for stage in (PROJECTIONS, ATTENTION, HEAD))
    assert counter.get_total_flops() == matrix_work - gates - statistics


def test_ar_decoding_has_no_remask_and_sees_what_a_block_of_one_sees() -> None:
    config = PRESETS["8b"]
    decoding = step_cost(config, 4, 1, 500, itemsize=2, causal=True)
    assert list(decoding) == [stage for stage in STAGES if stage != REMASK]
    assert decoding[ATTENTION] == step_cost(config, 4, 1, 500, itemsize=2)[ATTENTION]


def test_a_causal_block_hides_half_of_itself() -> None:
    config = PRESETS["8b"]
    both, causal = (
        step_cost(config, 1, 32, 0, itemsize=2, causal=causal)[ATTENTION].flops
        for causal in (False, True)
    )
    assert causal / both == (32 + 1) / (2 * 32)
