"""Perplexities against single forwards, and the bound against all masks there are."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from dlm_bench.quality import perplexity
from dlm_bench.quality.perplexity import Passage, autoregressive, diffusion
from dlm_core import KVCache, Model

PASSAGES = [
    Passage([1, 5, 8], [11, 14, 17, 20, 23, 2]),
    Passage([1], [30, 31, 32]),
    Passage([1, 7, 9, 11, 13], [15, 60, 19, 21, 23, 25, 27, 29, 31, 33]),
]


def log_probs(model: Model, context: list[int], block: list[int], *, causal: bool) -> torch.Tensor:
    cache = KVCache(model.config, 1, 64, device="cpu", dtype=model.dtype)
    if context:
        model(torch.tensor([context]), cache, causal=True)
        cache.advance(len(context))
    logits = model.logits(model(torch.tensor([block]), cache, causal=causal))
    return F.log_softmax(logits[0].double(), -1)


def test_autoregressive_nats_are_those_of_one_forward(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "MAX_BLOCK", 4)  # several forwards a passage
    found = autoregressive(model, PASSAGES)
    for passage, nats, tokens in zip(PASSAGES, found.nats, found.tokens, strict=True):
        whole = passage.context + passage.tokens
        rows = log_probs(model, [], whole, causal=True)
        first = len(passage.context)
        expected = -sum(rows[i - 1, whole[i]].item() for i in range(first, len(whole)))
        assert nats == pytest.approx(expected, rel=1e-4)
        assert tokens == len(passage.tokens)


def masked_nats(model: Model, passage: Passage, begin: int, length: int, masked) -> float:
    """Cross-entropy of the masked ones of one block's tokens."""
    target = passage.tokens[begin : begin + length]
    mask = model.config.mask_token_id
    block = [mask if i in masked or i >= len(target) else target[i] for i in range(length)]
    context = passage.context + passage.tokens[:begin]
    rows = log_probs(model, context, block, causal=False)
    return -sum(rows[i, target[i]].item() for i in masked)


def test_with_all_masked_nothing_is_left_to_chance(model: Model) -> None:
    length = 4
    found = diffusion(model, PASSAGES, length, seed=0)["masked 1"]
    for passage, nats, tokens in zip(PASSAGES, found.nats, found.tokens, strict=True):
        expected = 0.0
        for begin in range(0, len(passage.tokens), length):
            n = len(passage.tokens[begin : begin + length])
            expected += masked_nats(model, passage, begin, length, range(n))
        assert nats == pytest.approx(expected, rel=1e-4)
        assert tokens == len(passage.tokens)


def test_the_bound_is_that_over_all_masks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = 150
    monkeypatch.setattr(perplexity, "DRAWS", draws)
    passage = PASSAGES[1]
    n = len(passage.tokens)
    exact = 0.0
    for m in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), m))
        nats = [masked_nats(model, passage, 0, 4, subset) for subset in subsets]
        exact += (n / m) * sum(nats) / len(nats) / n
    found = diffusion(model, [passage], 4, seed=0)["bound"]
    assert found.tokens == [n]
    assert found.nats[0] == pytest.approx(exact, rel=0.1)


def test_rates_mask_their_share_and_seeds_decide_which(model: Model) -> None:
    found = diffusion(model, PASSAGES, 8, seed=0)
    # Over the same tokens, however many draws there are.
    assert found["bound"].tokens == autoregressive(model, PASSAGES).tokens
    # Blocks of 6, of 3, and of 8 and 2.
    assert found["masked 0.5"].tokens == [3, 2, 5]
    assert found["masked 0.25"].tokens == [2, 1, 3]
    again, other = (diffusion(model, PASSAGES, 8, seed=seed) for seed in (0, 1))
    assert again["bound"].nats == found["bound"].nats != other["bound"].nats


def test_perplexities_stay_finite() -> None:
    assert perplexity.of(0.0) == 1.0
    assert perplexity.of(1e6) < float("inf")
