"""One denoising step of a batch: requests stay apart, and on a GPU the host never waits."""

from pathlib import Path

import pytest
import torch

from dlm_core import KVCache, Model, Sampling, load_model, random_model
from dlm_core.decoding.denoise import Needs, denoise_step
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.sampling import SamplingTable
from dlm_kernels import BlockState, Rule, RuleTable

CONTEXT_LENGTHS = (5, 33, 20)
BLOCK = 8


def context_of(model: Model, lengths: tuple[int, ...]) -> tuple[KVCache, torch.Tensor]:
    """A ragged context of rising runs, and each request's next id."""
    device = model.device
    longest = max(lengths)
    runs = (
        torch.arange(longest + 1, device=device) + 4 + torch.tensor(lengths, device=device)[:, None]
    )
    runs = 4 + runs % 60
    cache = KVCache(model.config, len(lengths), 64, device=device, dtype=model.dtype)
    model(runs[:, :longest], cache, causal=True)
    cache.advance(longest)
    cache.lengths.copy_(torch.tensor(lengths))
    return cache, runs.gather(1, cache.lengths[:, None].long()).int()


def blocks_of(model: Model, seeds: torch.Tensor) -> BlockState:
    mask_id = model.config.mask_token_id
    tokens = torch.full((len(seeds), BLOCK), mask_id, dtype=torch.int32, device=model.device)
    tokens[:, :1] = seeds
    return BlockState.start(tokens, mask_id)


NEMOTRON = Rule(threshold=0.9)


def step(runner: Runner, cache: KVCache, state: BlockState, rule: Rule = NEMOTRON) -> None:
    sampling, batch = Sampling(), len(state.tokens)
    rules = RuleTable.pack([rule] * batch, state.tokens.device)
    table = SamplingTable.pack([sampling] * batch, state.tokens.device)
    denoise_step(runner, cache, state, Needs.of(rule, sampling), rules, table)


def test_batch_commits_what_each_request_alone_commits(golden: Path, device: str) -> None:
    model = load_model(golden / "tiny-a", device=device)
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    together = blocks_of(model, seeds)
    runner = Runner.of(model)
    for _ in range(3):
        step(runner, cache, together)
    for b, length in enumerate(CONTEXT_LENGTHS):
        alone = blocks_of(model, seeds[b : b + 1])
        own = KVCache(model.config, 1, 64, device=device, dtype=model.dtype)
        for ours, theirs in zip(own.keys + own.values, cache.keys + cache.values, strict=True):
            ours.copy_(theirs[b : b + 1])
        own.advance(length)
        for _ in range(3):
            step(runner, own, alone)
        assert together.tokens[b].tolist() == alone.tokens[0].tolist()
        assert together.commit_step[b].tolist() == alone.commit_step[0].tolist()
    assert int(runner.error) == 0


def test_done_request_is_left_as_it_is(golden: Path, device: str) -> None:
    model = load_model(golden / "tiny-a", device=device)
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
def test_shift_takes_candidates_from_the_logits_before(
    shift: int, golden: Path, device: str
) -> None:
    """All masks are committed at once: each to the likeliest id at its place less the shift."""
    model = load_model(golden / "tiny-a", device=device)
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    state = blocks_of(model, seeds)
    best = plain_logits(model, cache, state.tokens).argmax(-1)
    step(Runner.of(model), cache, state, Rule(threshold=0.0, logit_shift=shift))
    assert torch.equal(state.tokens[:, :1], seeds)
    assert state.tokens[:, 1:].tolist() == best[:, 1 - shift : BLOCK - shift].tolist()


@pytest.mark.parametrize("shift", [0, 1])
def test_remasking_reads_the_logits_that_speak_of_a_token(
    shift: int, golden: Path, device: str
) -> None:
    model = load_model(golden / "tiny-a", device=device)
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    tokens = 4 + torch.arange(BLOCK, dtype=torch.int32, device=device).repeat(3, 1)
    tokens[:, :1] = seeds
    none = torch.zeros_like(tokens, dtype=torch.bool)
    fixed = none.clone()
    fixed[:, 0] = True
    # The mask id is not banned from the probability of what stands.
    p = model.logits(model(tokens, cache, causal=False)).softmax(-1)
    rows = torch.arange(1, BLOCK, device=device) - shift
    standing = p[:, rows].gather(-1, tokens[:, 1:, None].long())[:, :, 0]
    ranked = standing.flatten().sort().values
    bound = ranked[9:11].mean().item()  # between two of them, so that rounding decides nothing
    mask_id = model.config.mask_token_id
    state = BlockState.start(tokens.clone(), mask_id, undecided=none, fixed=fixed)
    step(Runner.of(model), cache, state, Rule(remask_below=bound, logit_shift=shift))
    assert (state.tokens[:, 1:] == mask_id).tolist() == (standing < bound).tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_step_never_waits_for_the_device(dtype: torch.dtype) -> None:
    model = random_model("tiny", device="cuda", dtype=dtype)
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    runner = Runner.of(model)
    step(runner, cache, blocks_of(model, seeds))  # compiles the kernels
    state = blocks_of(model, seeds)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(runner, cache, state)
        model(state.tokens, cache, causal=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_graph_replays_equal_eager_steps(dtype: torch.dtype) -> None:
    model = random_model("tiny", device="cuda", dtype=dtype)
    cache, seeds = context_of(model, CONTEXT_LENGTHS)
    runner = Runner.of(model)
    eager = blocks_of(model, seeds)
    for _ in range(4):
        step(runner, cache, eager)

    replayed = blocks_of(model, seeds)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(runner, cache, replayed)
    for _ in range(4):
        graph.replay()
    for name, one, other in zip(BlockState._fields, eager, replayed, strict=True):
        assert torch.equal(one, other), name
