"""Block diffusion: a block is denoised in a few forwards, then committed to the cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels import (
    BlockState,
    Confidence,
    Noise,
    Rule,
    RuleTable,
    confidence,
    remask_scatter,
)

from ..cache import KVCache
from ..paged_cache import PagedKVCache, to_device
from .prefill import extend_work, prefill_phase
from .request import Phase, Request
from .result import StepEvent
from .runner import Runner, check_tokens, packed, table_of
from .sampling import Sampling, SamplingTable, draw


class Block(NamedTuple):
    """What a block starts from: an id a position, None where it is to be decided.

    n_open: positions from this one on are given and never change.
    """

    ids: list[int | None]
    n_open: int


@dataclass
class Diffusion:
    """Denoises block after block; between two of them a causal forward makes the first context.

    blocks: what each block starts from, in order.
    seeded: position 0 of each takes the token that the causal logits before it give, and keeps it.
    ends_at_eos: an EOS with nothing undecided before it ends its block and with it the request. If
        not, EOS is no candidate.
    keep_events: collect a StepEvent a step.
    """

    rule: Rule
    blocks: Iterator[Block]
    longest: int
    seeded: bool
    ends_at_eos: bool = True
    keep_events: bool = False
    index: int = -1

    def first_phase(self, request: Request) -> Phase:
        return prefill_phase(request, needs_seed=self.seeded)

    def begin(self, request: Request, seed: Tensor | None, value: int | None) -> None:
        """Start the next block; a request whose seed is an EOS is finished."""
        if value == request.eos_id:
            request.emit([value])
            return
        self.block = next(self.blocks)
        self.index += 1
        self.tokens: list[int] | None = None
        self.n_steps = self.n_settled = 0
        self.state = None
        self.seed = seed
        needs = Needs.of(self.rule, request.sampling, ends_at_eos=self.ends_at_eos)
        request.phase = Phase(_denoise, (len(self.block.ids), needs), 0)


class Needs(NamedTuple):
    """What the requests of one denoising step have to agree on: which statistics they read.

    reads_all: positions that hold a token count too, not only masks.
    The others are those of `Rule`, `Sampling` and `Diffusion`.
    """

    confidence: str
    logit_shift: int
    tempered_confidence: bool
    reads_all: bool
    remasks: bool
    draws_noise: bool
    greedy: bool
    ends_at_eos: bool

    @classmethod
    def of(cls, rule: Rule, sampling: Sampling, *, ends_at_eos: bool = True) -> "Needs":
        return cls(
            rule.confidence,
            rule.logit_shift,
            rule.tempered_confidence,
            rule.renoise or rule.edit_threshold is not None,
            rule.remask_below is not None,
            rule.renoise or rule.confidence == "random",
            sampling.greedy,
            ends_at_eos,
        )


def denoise_step(
    runner: Runner,
    cache: KVCache | PagedKVCache,
    state: BlockState,
    needs: Needs,
    rules: RuleTable,
    table: SamplingTable,
) -> None:
    """Advance every request's block by one step, in place; on CUDA nothing waits for the device.

    Args:
        cache: the context of each request; it is not changed.
        state: the blocks [batch, M]. Requests that are done stay as they are.
        needs: what the rules read; `rules` and `table` hold the numbers, a row a request.
    """
    config = runner.model.config
    if not needs.ends_at_eos:
        runner = runner.banning_eos()
    logits = runner.logits(runner.hidden(state.tokens, cache, causal=False))
    candidate, sureness = _candidates(runner, logits, cache, state, needs, table)
    token_probability = noise = None
    if needs.remasks:
        standing = logits.gather(-1, state.tokens.long()[:, :, None])[:, :, 0].float()
        token_probability = (standing - logits.float().logsumexp(-1)).exp()
    if needs.draws_noise:
        noise = Noise(table.seed, cache.lengths, config.vocab_size)
    remask_scatter(
        state,
        candidate,
        sureness,
        rules,
        mask_id=config.mask_token_id,
        # If none ends the block, an id that no candidate has.
        eos_id=config.eos_token_id if needs.ends_at_eos else config.vocab_size,
        token_probability=token_probability,
        noise=noise,
        error=runner.error,
    )


def _candidates(
    runner: Runner,
    logits: Tensor,
    cache: KVCache | PagedKVCache,
    state: BlockState,
    needs: Needs,
    table: SamplingTable,
) -> tuple[Tensor, Tensor]:
    """What each position would take and how sure it is: int32 and float32 [batch, M]."""
    mask_id = runner.model.config.mask_token_id
    # Under a shift the logits at i - 1 speak of position i. What the last ones say lands on
    # position 0, which is seeded.
    shift = needs.logit_shift
    asked = {}
    if not needs.reads_all:
        asked = {"tokens": state.tokens.roll(-shift, 1).flatten(), "mask_id": mask_id}
    wanted = {"entropy": needs.confidence == "entropy", "margin": needs.confidence == "margin"}

    def statistics(of: Tensor) -> Confidence:
        return confidence(
            of.flatten(0, 1), banned=runner.banned, error=runner.error, **asked, **wanted
        )

    if needs.greedy:
        stats = statistics(logits)
        token, probability = stats.token, stats.probability
    else:
        log_probs = runner.distribution(logits, table)
        position = torch.arange(shift, shift + logits.shape[1], device=logits.device)
        position = cache.lengths[:, None].long() + position
        drawn = draw(log_probs, table, position, state.step[:, None].long())
        source = log_probs if needs.tempered_confidence else logits.float()
        stats = statistics(source)
        token = torch.where(stats.token < 0, stats.token, drawn.flatten())
        of_drawn = source.gather(-1, drawn.long().clamp(min=0)[:, :, None]).flatten()
        probability = (of_drawn - stats.logsumexp).exp()
    sureness = {
        "probability": probability,
        "margin": stats.margin,
        "entropy": None if stats.entropy is None else -stats.entropy,
        "random": probability,  # remask_scatter draws its own
    }[needs.confidence]
    shape = state.tokens.shape
    return token.view(shape).roll(shift, 1), sureness.view(shape).roll(shift, 1)


def _denoise(runner: Runner, requests: list[Request]) -> None:
    block, needs = requests[0].phase.shape
    device = runner.model.device
    state = _together(runner, requests)
    rules = packed(RuleTable, tuple(request.mode.rule for request in requests), device)
    table = packed(SamplingTable, tuple(request.sampling for request in requests), device)
    rows, changed = runner.run(
        _denoise_work, needs, requests, 0, *state, rules.numbers, rules.counts, *table
    )
    state = BlockState(*changed)
    rows = torch.tensor(rows, dtype=torch.int32)
    tokens, steps, sureness, done = rows.split([block, block, block, 1], 1)
    for i, request in enumerate(requests):
        request.mode.state = _Rows(state, i)
        _record(
            request,
            tokens[i].tolist(),
            steps[i].tolist(),
            sureness[i].view(torch.float32).tolist(),
            runner.model.config.mask_token_id,
        )
        if done[i]:
            _finish_block(request)


def _denoise_work(
    runner: Runner, needs: Needs, cache: PagedKVCache, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """`denoise_step` as device work: what the host records of each block, and the state."""
    fields = len(BlockState._fields)
    state = BlockState(*inputs[:fields])
    numbers, counts, *table = inputs[fields:]
    rules = RuleTable(numbers, counts, needs.draws_noise, needs.remasks)
    denoise_step(runner, cache, state, needs, rules, SamplingTable(*table))
    seen = (
        state.tokens,
        state.commit_step,
        state.commit_confidence.view(torch.int32),
        state.done[:, None],
    )
    return torch.cat(seen, 1), *state


def _record(
    request: Request, tokens: list[int], steps: list[int], sureness: list[float], mask_id: int
) -> None:
    """Note what one step did to one block."""
    mode = request.mode
    request.forwards["denoise"] += 1
    committed = [i for i, step in enumerate(steps) if step == mode.n_steps]
    request.committed.append(committed)
    request.confidences.append([sureness[i] for i in committed])
    if mode.keep_events:
        remasked = []
        if mode.tokens is not None:
            pairs = enumerate(zip(mode.tokens, tokens, strict=True))
            remasked = [i for i, (old, new) in pairs if new == mask_id != old]
        request.events.append(StepEvent(mode.index, mode.n_steps, tokens, committed, remasked))
    mode.tokens = tokens
    mode.n_steps += 1
    if not _may_change_its_mind(mode.rule):
        undecided = tokens.index(mask_id) if mask_id in tokens else len(tokens)
        settled = min(undecided, mode.block.n_open)
        request.tokens += tokens[mode.n_settled : settled]
        mode.n_settled = max(settled, mode.n_settled)


def _finish_block(request: Request) -> None:
    mode = request.mode
    rest = mode.tokens[mode.n_settled : mode.block.n_open]
    if not request.emit(rest):
        shape = (len(mode.tokens), mode.seeded, request.sampling.greedy)
        request.phase = Phase(_commit, shape, len(mode.tokens))


def _commit(runner: Runner, requests: list[Request]) -> None:
    """Run finished blocks causally, which makes them context, and start the next ones."""
    block, seeded, _ = requests[0].phase.shape
    tokens = torch.cat([_row(request) for request in requests])
    if seeded:
        table = table_of([request.sampling for request in requests], tokens.device)
        values, (seeds,) = runner.run(extend_work, (), requests, block, tokens, *(table or ()))
        check_tokens(values)
    else:
        runner.run(_commit_work, (), requests, block, tokens)
    for i, request in enumerate(requests):
        request.forwards["commit"] += 1
        request.context.advance(block)
        if seeded:
            request.mode.begin(request, seeds[i : i + 1], values[i])
        else:
            request.mode.begin(request, None, None)


def _commit_work(
    runner: Runner, shape: tuple, cache: PagedKVCache, tokens: Tensor
) -> tuple[Tensor]:
    """A causal forward for its keys and values alone; the host learns nothing."""
    runner.hidden(tokens, cache, causal=True)
    return (tokens.new_zeros(len(tokens)),)


def _may_change_its_mind(rule: Rule) -> bool:
    """Whether a token that stands may be replaced or masked again."""
    return rule.revise or rule.edit_threshold is not None or rule.remask_below is not None


# --- the blocks of a batch


class _Rows(NamedTuple):
    """A batch's blocks, and which of them is a request's."""

    state: BlockState
    row: int


def _row(request: Request) -> Tensor:
    """A request's tokens [1, M] on the device."""
    state, row = request.mode.state
    return state.tokens[row : row + 1]


def _together(runner: Runner, requests: list[Request]) -> BlockState:
    """The requests' blocks as one state, which they then share; the same as long as they stay."""
    for request in requests:
        if request.mode.state is None:
            request.mode.state = _Rows(_start(runner, request), 0)
    rows = [request.mode.state for request in requests]
    state = rows[0].state
    same = all(each.state is state and each.row == i for i, each in enumerate(rows))
    if same and len(rows) == len(state.tokens):
        return state
    fields = zip(
        *([field[each.row : each.row + 1] for field in each.state] for each in rows), strict=True
    )
    state = BlockState(*(torch.cat(field) for field in fields))
    for i, request in enumerate(requests):
        request.mode.state = _Rows(state, i)
    return state


def _start(runner: Runner, request: Request) -> BlockState:
    """The state of one request's block before its first step."""
    mode, config, device = request.mode, runner.model.config, runner.model.device
    ids = mode.block.ids
    tokens = [config.mask_token_id if id_ is None else id_ for id_ in ids]
    tokens = to_device(torch.tensor([tokens], dtype=torch.int32), device)
    undecided = to_device(torch.tensor([[id_ is None for id_ in ids]]), device)
    n_open = mode.block.n_open
    fixed = to_device(torch.tensor([[i >= n_open for i in range(len(ids))]]), device)
    if mode.rule.renoise:
        context = torch.tensor([request.context.length], dtype=torch.int32)
        seed = to_device(torch.tensor([request.sampling.seed]), device)
        noise = Noise(seed, to_device(context, device), config.vocab_size)
        canvas = noise.canvas(len(ids), config.mask_token_id)
        tokens = torch.where(undecided, canvas, tokens)
    if mode.seeded:
        tokens[:, 0] = mode.seed
        undecided[:, 0], fixed[:, 0] = False, True
    return BlockState.start(tokens, config.mask_token_id, undecided=undecided, fixed=fixed)
