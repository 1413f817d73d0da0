"""One denoising step of a batch: which logits it reads, and whom it leaves alone."""

import pytest
import torch
from caches import cache_after

from dlm_core import KVCache, Model, Sampling
from dlm_core.decoding.denoise import Needs, denoise_step
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.sampling import SamplingTable, distribution, draw
from dlm_kernels import BlockState, Rule, RuleTable, noise

CONTEXT_LENGTHS = (5, 33, 20)
BLOCK = 8


def context_of(model: Model, lengths: tuple[int, ...]) -> tuple[KVCache, torch.Tensor]:
    """A ragged context of rising runs, and each request's next id."""
    longest = max(lengths)
    starts = torch.tensor(lengths)[:, None]
    runs = 4 + (torch.arange(longest + 1) + 4 + starts).to(model.device) % 60
    cache = cache_after(model, runs[:, :longest])
    cache.lengths.copy_(torch.tensor(lengths))
    return cache, runs.gather(1, cache.lengths[:, None].long()).int()


def blocks_of(model: Model, seeds: torch.Tensor) -> BlockState:
    mask_id = model.config.mask_token_id
    tokens = torch.full((len(seeds), BLOCK), mask_id, dtype=torch.int32, device=model.device)
    tokens[:, :1] = seeds
    return BlockState.start(tokens, mask_id)


NEMOTRON, GREEDY = Rule(threshold=0.9), Sampling()


def step(
    runner: Runner,
    cache: KVCache,
    state: BlockState,
    rule: Rule = NEMOTRON,
    sampling: Sampling = GREEDY,
) -> None:
    batch = len(state.tokens)
    rules = RuleTable.pack([rule] * batch, state.tokens.device)
    table = SamplingTable.pack([sampling] * batch, state.tokens.device)
    denoise_step(runner, cache, state, Needs.of(rule, sampling), rules, table)


def test_done_request_is_left_as_it_is(model: Model) -> None:
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    state = blocks_of(model, seeds)
    state.done[1] = True
    before = [tensor.clone() for tensor in state]
    step(Runner.of(model), cache, state)
    for name, old, new in zip(BlockState._fields, before, state, strict=True):
        assert torch.equal(old[1], new[1]), name
    masks_left = dict(zip(BlockState._fields, before, strict=True))["masks_left"]
    assert (state.masks_left[[0, 2]] < masks_left[[0, 2]]).all()


def plain_logits(model: Model, cache: KVCache, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a denoising forward, the mask id banned."""
    logits = model.logits(model(tokens, cache, causal=False))
    logits[:, :, model.config.mask_token_id] = -torch.inf
    return logits


@pytest.mark.parametrize("shift", [0, 1])
def test_shift_takes_candidates_from_the_logits_before(shift: int, model: Model) -> None:
    """All masks are committed at once: each to the likeliest id at its place less the shift."""
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    state = blocks_of(model, seeds)
    best = plain_logits(model, cache, state.tokens).argmax(-1)
    step(Runner.of(model), cache, state, Rule(threshold=0.0, logit_shift=shift))
    assert torch.equal(state.tokens[:, :1], seeds)
    assert state.tokens[:, 1:].tolist() == best[:, 1 - shift : BLOCK - shift].tolist()


@pytest.mark.parametrize("shift", [0, 1])
def test_remasking_reads_the_logits_that_speak_of_a_token(shift: int, model: Model) -> None:
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    tokens = 4 + torch.arange(BLOCK, dtype=torch.int32, device=model.device).repeat(3, 1)
    tokens[:, :1] = seeds
    none = torch.zeros_like(tokens, dtype=torch.bool)
    fixed = none.clone()
    fixed[:, 0] = True
    # The mask id is not banned from the probability of what stands.
    p = model.logits(model(tokens, cache, causal=False)).softmax(-1)
    rows = torch.arange(1, BLOCK, device=model.device) - shift
    standing = p[:, rows].gather(-1, tokens[:, 1:, None].long())[:, :, 0]
    ranked = standing.flatten().sort().values
    bound = ranked[9:11].mean().item()  # between two of them, so that rounding decides nothing
    mask_id = model.config.mask_token_id
    state = BlockState.start(tokens.clone(), mask_id, undecided=none, fixed=fixed)
    step(Runner.of(model), cache, state, Rule(remask_below=bound, logit_shift=shift))
    assert (state.tokens[:, 1:] == mask_id).tolist() == (standing < bound).tolist()


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("shift", [0, 1])
def test_tokens_are_drawn_with_the_noise_of_their_seed_place_and_step(
    shift: int, steps_before: int, model: Model
) -> None:
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    state, sampling = blocks_of(model, seeds), Sampling(temperature=2.0, seed=7)
    state.step.fill_(steps_before)
    table = SamplingTable.pack([sampling] * len(seeds), model.device)
    banned = torch.tensor([model.config.mask_token_id], dtype=torch.int32, device=model.device)
    logits = model.logits(model(state.tokens, cache, causal=False))[:, 1 - shift : BLOCK - shift]
    places = cache.lengths[:, None] + torch.arange(1, BLOCK, device=model.device)
    drawn = draw(distribution(logits, table, banned), table, places, state.step[:, None])
    rule = Rule(threshold=0.0, logit_shift=shift)
    step(Runner.of(model), cache, state, rule, sampling)
    assert torch.equal(state.tokens[:, 1:], drawn)


def test_random_confidence_has_the_noise_of_its_seed_place_and_step(model: Model) -> None:
    """Of the masks it commits the one with the largest draw."""
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    state, sampling = blocks_of(model, seeds), Sampling(seed=7)
    places = cache.lengths[:, None] + torch.arange(1, BLOCK, device=model.device)
    zero, seed = torch.zeros_like(places), torch.full_like(places, 7)
    words = noise.philox(seed, zero, places, zero + 2, noise.RANDOM_CONFIDENCE)
    state.step.fill_(2)
    rule = Rule(confidence="random", top_k=1)
    step(Runner.of(model), cache, state, rule, sampling)
    committed = (state.tokens[:, 1:] != model.config.mask_token_id).int()
    assert committed.sum(1).tolist() == [1, 1, 1]
    assert torch.equal(committed.argmax(1), (words >> 9).argmax(1))
