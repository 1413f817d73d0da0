"""Greedy self-speculation against autoregressive decoding: the same tokens, the same bits."""

import functools
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from caches import cache_for
from torch import Tensor

from dlm_core import PRESETS, Batch, Model, load_model, random_model

GOLDEN = Path(__file__).parents[1] / "golden"
# Sizes that divide nothing evenly, and YaRN's two regions within reach.
RANDOM = replace(
    PRESETS["tiny"],
    hidden_size=72,
    intermediate_size=131,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=101,
    block_size=8,
)


@functools.cache
def model_named(name: str, device: str, dtype: torch.dtype | None = None) -> Model:
    if name == "random":
        return random_model(RANDOM, device=device, dtype=dtype or torch.float32, seed=3)
    return load_model(GOLDEN / name, device=device, dtype=dtype)


# By model how many prompts are enough to meet right drafts and wrong ones.
MODELS = {"tiny-a": 16, "tiny-b": 16, "random": 20}
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
]


def prompts_for(model: Model, count: int) -> list[list[int]]:
    """Rising runs as the golden models know them, and random ids, of 1 to 60 tokens."""
    rng, config = Random(0), model.config
    prompts = []
    for n in range(count):
        length, start, step = rng.randint(1, 60), rng.randint(4, 29), rng.randint(1, 4)
        ids = [4 + (start + step * i) % (config.vocab_size - 4) for i in range(length)]
        if n % 2:
            ids = rng.choices(range(config.vocab_size), k=length)
        prompts.append([4 if i == config.mask_token_id else i for i in ids])
    return prompts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "n_prompts"),
    [*MODELS.items(), *(pytest.param(name, 200, marks=pytest.mark.full) for name in MODELS)],
)
def test_self_speculation_gives_the_tokens_of_autoregressive_decoding(
    name: str, n_prompts: int, dtype: torch.dtype, device: str
) -> None:
    model = model_named(name, device, dtype)
    prompts = prompts_for(model, n_prompts)
    modes = {
        "autoregressive": {},
        "linear_spec": {"block_length": 8},
        "quadratic_spec": {"block_length": 5},
    }
    tokens = {}
    for mode, options in modes.items():
        batch = Batch(model, pages=2000, page_size=16)
        requests = [batch.submit(prompt, 10, mode, **options) for prompt in prompts]
        batch.run()
        tokens[mode] = [request.generation.tokens for request in requests]
        if mode != "autoregressive":
            accepted = [n for request in requests for n in request.accepted]
            assert max(accepted) > 1, "no draft was ever right, so nothing was tried"
            assert min(accepted) < options["block_length"], "no draft was ever wrong"
    for mode in ("linear_spec", "quadratic_spec"):
        pairs = zip(tokens["autoregressive"], tokens[mode], strict=True)
        wrong = [n for n, (ours, theirs) in enumerate(pairs) if ours != theirs]
        assert not wrong, f"{mode} gives other tokens for prompts {wrong}"


def eighty_ids(model: Model) -> Tensor:
    ids = [i for prompt in prompts_for(model, 20) for i in prompt]
    return torch.tensor(ids[:80], device=model.device)


def logits_of(model: Model, ids: Tensor, blocks: list[int], numerics: str) -> Tensor:
    """Logits of all positions of `ids` [n], run causally in blocks of these lengths."""
    cache = cache_for(model, capacity=len(ids))
    rows = []
    for block in ids.split(blocks):
        hidden = model(block[None], cache, causal=True, numerics=numerics)
        cache.advance(len(block))
        rows.append(model.logits(hidden, numerics)[0])
    return torch.cat(rows)


def grouped_logits(model: Model, ids: Tensor, lead: int, k: int) -> Tensor:
    """Logits of `ids` [lead + k], the last k being the first tokens of k draft groups."""
    cache = cache_for(model, capacity=len(ids))
    groups = ids.new_full((k, k + 1), model.config.mask_token_id)
    groups[:, 0] = ids[lead:]
    block = torch.cat([ids[:lead], groups.flatten()])
    hidden = model(block[None], cache, causal=True, draft_groups=(k, k + 1))[0]
    hidden = torch.cat([hidden[:lead], hidden[lead :: k + 1]])
    return model.logits(hidden)


def assert_same_bits(ours: Tensor, theirs: Tensor, what: str) -> None:
    width = {2: torch.int16, 4: torch.int32}[ours.element_size()]
    differ = (ours.view(width) != theirs.view(width)).sum().item()
    assert not differ, f"{differ} of {ours.numel()} logits differ in bits: {what}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_verify_logits_are_decode_logits_bit_for_bit(
    name: str, dtype: torch.dtype, device: str
) -> None:
    model = model_named(name, device, dtype)
    ids = eighty_ids(model)
    alone = logits_of(model, ids, [1] * 80, "batch_invariant")
    for blocks in ([8] * 10, [32, 32, 16], [80], [37, 1, 8, 34]):
        together = logits_of(model, ids, blocks, "batch_invariant")
        assert_same_bits(together, alone, f"in blocks of {blocks} against one by one")
    for lead, k in ((0, 16), (40, 9), (63, 2)):
        together = grouped_logits(model, ids[: lead + k], lead, k)
        what = f"{k} draft groups after {lead} tokens against one by one"
        assert_same_bits(together, alone[: lead + k], what)


def test_the_comparison_of_bits_can_fail(device: str) -> None:
    """Under `fast` numerics torch multiplies one row and several in different orders."""
    if device != "cpu":
        pytest.skip("what cuBLAS chooses is its own affair")
    model = model_named("random", device)
    ids = eighty_ids(model)
    alone = logits_of(model, ids, [1] * 80, "fast")
    together = logits_of(model, ids, [32, 32, 16], "fast")
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError, match="differ in bits"):
        assert_same_bits(together, alone, "under fast")
