"""Sampling in whole modes: self-speculation has the distribution of autoregressive sampling."""

import math
from collections import Counter

import pytest
import torch
from caches import cache_for
from torch import Tensor

from dlm_core import Batch, Model, Sampling, generate
from dlm_core.decoding import self_speculation
from dlm_core.decoding.new_request import MODES
from dlm_core.decoding.sampling import accept_drafts, draw
from dlm_kernels import noise

TEMPERATURE = 1.3
PROMPT = [8, 11, 14, 17, 20, 9, 31]
NEW = 3


def next_probabilities(model: Model, rows: Tensor) -> Tensor:
    """What a token after each row of ids [n, M] is drawn from: float64 [n, vocab]."""
    hidden = model(rows, cache_for(model, len(rows), rows.shape[1]), causal=True)
    logits = model.logits(hidden[:, -1:])[:, 0].double() / TEMPERATURE
    logits[:, model.config.mask_token_id] = -torch.inf
    return logits.softmax(-1)


@pytest.fixture(scope="module")
def exact(model: Model) -> Tensor:
    """Probability of each (first, second, third) token: float64 [vocab, vocab, vocab].

    An EOS ends the request; what would have followed it is put at id 0.
    """
    vocab, eos = model.config.vocab_size, model.config.eos_token_id
    prompt = torch.tensor(PROMPT, device=model.device)
    ids = torch.arange(vocab, device=model.device)
    first = next_probabilities(model, prompt[None])[0]
    rows = torch.cat([prompt.expand(vocab, -1), ids[:, None]], 1)
    second = next_probabilities(model, rows)
    likely = (first[:, None] * second > 1e-6).nonzero()
    rows = torch.cat([prompt.expand(len(likely), -1), likely], 1)
    third = torch.zeros(vocab, vocab, vocab, dtype=torch.float64, device=model.device)
    third[likely[:, 0], likely[:, 1]] = next_probabilities(model, rows)
    nothing = torch.zeros(vocab, dtype=torch.float64, device=model.device)
    nothing[0] = 1
    second[eos], third[eos] = nothing, nothing
    third[:, eos] = nothing
    return (first[:, None, None] * second[:, :, None] * third).cpu()


def samples(model: Model, n: int, mode: str, **options) -> list[tuple[int, ...]]:
    """The tokens of `n` requests that differ in their seeds alone; 0 after an EOS."""
    batch = Batch(model, pages=2 * n, page_size=32)
    requests = [
        batch.submit(PROMPT, NEW, mode, sampling=Sampling(TEMPERATURE, seed=seed), **options)
        for seed in range(n)
    ]
    batch.run()
    tokens = (request.generation.tokens for request in requests)
    return [tuple(each + [0] * (NEW - len(each))) for each in tokens]


def surprise(drawn: list[tuple[int, ...]], probabilities: Tensor) -> float:
    """Probability of a chi-squared statistic at least as large; rare cells are pooled."""
    counts = torch.zeros_like(probabilities)
    for tokens, count in Counter(drawn).items():
        counts[tokens] = count
    expected = probabilities.flatten() * len(drawn)
    order = expected.argsort(descending=True)
    expected, counts = expected[order], counts.flatten()[order]
    large = int((expected >= 8).sum())
    cells = torch.cat([expected[:large], expected[large:].sum()[None]])
    found = torch.cat([counts[:large], counts[large:].sum()[None]])
    statistic = ((found - cells) ** 2 / cells).sum()
    freedom = torch.tensor(large / 2, dtype=torch.float64)
    return 1 - float(torch.special.gammainc(freedom, statistic / 2))


@pytest.mark.parametrize("n", [500, pytest.param(2500, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("autoregressive", {}),
        ("linear_spec", {"block_length": 4, "lora": False}),
        ("linear_spec", {"block_length": 4, "lora": True}),
        ("quadratic_spec", {"block_length": 2}),
    ],
)
def test_tokens_have_the_distribution_of_autoregressive_sampling(
    mode: str, options: dict, n: int, model: Model, exact: Tensor
) -> None:
    assert math.isclose(float(exact.sum()), 1, abs_tol=1e-3)
    drawn = samples(model, n, mode, **options)
    assert len(set(drawn)) > 50
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        marginal = surprise([(tokens[axis],) for tokens in drawn], exact.sum(others))
        assert marginal > 1e-3, f"token {axis}: p = {marginal:.1e}"
    joint = surprise(drawn, exact)
    assert joint > 1e-3, f"all three together: p = {joint:.1e}"


def test_a_wrong_residual_would_be_seen(
    model: Model, exact: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing anew from the verifier after a rejection favours what it and the draft agree on.

    Shows that the test above can fail.
    """

    def redraw(draft_log_probs, target_log_probs, drafts, table, position, step):
        n_accepted, _ = accept_drafts(
            draft_log_probs, target_log_probs, drafts, table, position, step
        )
        every = torch.arange(len(n_accepted), device=n_accepted.device)
        place = (position + n_accepted)[:, None]
        rows = target_log_probs[every, n_accepted.long()][:, None]
        return n_accepted, draw(rows, table, place, step[:, None], noise.RESIDUAL)[:, 0]

    monkeypatch.setattr(self_speculation, "accept_drafts", redraw)
    drawn = samples(model, 1000, "linear_spec", block_length=4)
    assert surprise(drawn, exact) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_same_tokens_and_another_seed_others(mode: str, model: Model) -> None:
    def tokens(seed: int) -> list[int]:
        sampling = Sampling(temperature=2.0, seed=seed)
        return generate(model, PROMPT, 8, mode, sampling=sampling).tokens

    first = [tokens(seed) for seed in range(3)]
    assert first == [tokens(seed) for seed in range(3)]
    assert len({tuple(each) for each in first}) == 3


@pytest.mark.parametrize("mode", ["autoregressive", "linear_spec", "quadratic_spec"])
def test_no_two_draws_of_a_request_have_the_same_noise(
    mode: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position, step and what it is for never come together twice."""
    keys, philox = [], noise.philox

    def noted(seed: Tensor, ids: Tensor, position: Tensor, step: Tensor, stream: int) -> Tensor:
        pairs = (x.flatten().tolist() for x in torch.broadcast_tensors(position, step))
        keys.extend((*pair, stream) for pair in zip(*pairs, strict=True))
        return philox(seed, ids, position, step, stream)

    monkeypatch.setattr(noise, "philox", noted)
    generate(model, PROMPT, 20, mode, sampling=Sampling(temperature=2.0, seed=3))
    assert len(keys) == len(set(keys)) > 5
