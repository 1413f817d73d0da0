"""The forward of training computes what decoding computes, for every position at once."""

import random
from dataclasses import replace

import pytest
import torch
from caches import cache_after, cache_for

from dlm_core import Model, ModelConfig, random_model
from dlm_core.training import draft
from dlm_core.training.dual_stream import hidden_states
from dlm_core.training.loss import losses
from dlm_core.training.recipe import SMALL
from dlm_core.training.rows import Document, Masking, Rows, pack

CONFIG: ModelConfig = replace(
    SMALL.model,
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    torch_dtype="float32",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = random.Random(5)
    documents = [
        Document([2, *rng.choices(range(5, 97), k=rng.randint(9, 50)), 1], start=rng.randint(1, 9))
        for _ in range(12)
    ]
    noise = Masking(0, 1, block_lengths=(4, 8, 16))
    return pack(documents, noise, 160, 10**6, rng)


def each_document(rows: Rows):
    for row in range(len(rows.tokens)):
        for number in range(int(rows.document[row].max()) + 1):
            yield row, rows.document[row] == number


def test_clean_stream_is_a_causal_forward(model: Model, rows: Rows) -> None:
    hidden = hidden_states(model, rows)
    for row, at in each_document(rows):
        clean = at & (rows.block[row] < 0)
        tokens = rows.tokens[row, clean]
        expected = model(tokens[None], cache_for(model), causal=True)[0]
        torch.testing.assert_close(hidden[row, clean], expected, rtol=1e-4, atol=1e-5)


def check_noisy_blocks(hidden: torch.Tensor, rows: Rows, model: Model, *, lora: bool) -> None:
    """Every noisy block is a denoising forward of `model` after the clean tokens before it."""
    n_blocks = 0
    for row, at in each_document(rows):
        clean = rows.tokens[row, at & (rows.block[row] < 0)]
        for block in rows.block[row, at & (rows.block[row] >= 0)].unique():
            noisy = rows.block[row] == block
            begin = int(rows.block_start[row, noisy][0])
            cache = cache_after(model, clean[None, :begin])
            expected = model(rows.tokens[row, noisy][None], cache, causal=False, lora=lora)[0]
            torch.testing.assert_close(hidden[row, noisy], expected, rtol=1e-4, atol=1e-5)
            n_blocks += 1
    assert n_blocks > 20


def test_noisy_blocks_are_denoising_forwards(model: Model, rows: Rows) -> None:
    check_noisy_blocks(hidden_states(model, rows), rows, model, lora=False)


def test_rounded_to_bfloat16_it_is_the_same_within_a_few_roundings(
    model: Model, rows: Rows
) -> None:
    expected = hidden_states(model, rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = hidden_states(model, rows)
    error = (found - expected).norm() / expected.norm()
    # Two layers of some ten roundings, each of at most 2^-9.
    assert 2**-12 < error < 10 * 2**-9


def test_draft_lora_is_what_drafts_run_with(rows: Rows) -> None:
    model = random_model(CONFIG)
    draft.add_draft_projections(model, rank=4, scale=2.0)
    draft.initialise(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    updates = []
    for layer in model.encoder.layers:
        projection = layer.self_attn.draft_o_proj
        with torch.no_grad():
            projection.lora_B.normal_(0, 0.1, generator=generator)
        updates.append((2.0 * projection.lora_B @ projection.lora_A).detach())
    draft.mark_drafts(model, rows)
    with torch.no_grad():
        hidden = hidden_states(model, rows, lora=True)

    decoding = random_model(CONFIG)
    for layer, update in zip(decoding.encoder.layers, updates, strict=True):
        layer.self_attn.add_draft_update(update)
    check_noisy_blocks(hidden, rows, decoding, lora=True)


def test_only_the_lora_learns_from_drafts(rows: Rows) -> None:
    model = random_model(CONFIG)
    draft.add_draft_projections(model, rank=4, scale=2.0)
    draft.initialise(model, seed=0)
    draft.mark_drafts(model, rows)
    loss = losses(model, rows, lora=True)
    loss.objective(loss.ar_tokens, loss.diffusion_tokens).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    # A learns nothing as long as B is zero.
    assert learning == {f"encoder.layers.{i}.self_attn.draft_o_proj.lora_B" for i in range(2)}


def test_losses_are_those_of_each_target_by_hand(model: Model, rows: Rows) -> None:
    loss = losses(model, rows)
    with torch.no_grad():
        log_p = model.logits(hidden_states(model, rows), "autograd").double().log_softmax(-1)
    learned, noisy = rows.targets >= 0, rows.block >= 0
    nats = -log_p.gather(-1, rows.targets.clamp(min=0)[..., None])[..., 0]
    ar, n_ar = nats[learned & ~noisy].sum(), (learned & ~noisy).sum()
    weights = rows.weights[learned & noisy].double()
    diffusion = (weights * nats[learned & noisy]).sum()
    assert float(loss.ar) == pytest.approx(float(ar), rel=1e-4) and loss.ar_tokens == n_ar
    assert float(loss.diffusion) == pytest.approx(float(diffusion), rel=1e-4)
    assert float(loss.diffusion_tokens) == pytest.approx(float(weights.sum()), rel=1e-5)
    objective = float(loss.objective(loss.ar_tokens, loss.diffusion_tokens))
    assert objective == pytest.approx(float(ar / n_ar + 0.3 * diffusion / weights.sum()), rel=1e-4)


@pytest.mark.gpu
def test_flex_attention_is_attention_under_the_mask(model: Model, rows: Rows) -> None:
    expected = hidden_states(model, rows)
    found = hidden_states(model.to("cuda"), rows.to(torch.device("cuda"))).cpu()
    model.to("cpu")
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # tf32 may be on
