"""The head room of parallel decoding: what a greedy oracle commits that knows which are right.

The reference is the model's own autoregressive greedy answer, so an oracle loses no quality. What
it takes is no bound: each step commits all that it safely can, and another order of commits might
need fewer steps.

Diffusion. A block starts as [seed | masks] behind the causal context. Each step runs the denoising
forward and commits every masked position whose argmax (the mask id banned) is the reference's token
there: the largest set that could safely be committed at that step. Where no argmax is right, the
step commits the leftmost masked position with the reference's token. Its forward did not give that
token; one causal forward more would have, so such forced steps are counted beside the forwards.
Positions behind the reference's EOS stay masked and count for nothing. A block's causal commit
counts as a forward too, but behind the last one.

Linear self-speculation. A cycle drafts behind the reference as `linear_spec` does. Longest prefix:
drafts right from the first on, and the verifier's own token behind them, which is what
`linear_spec` emits. Any position: all drafts that are right, wherever they stand, and that one
token: what a cycle could emit at most if a wrong draft spoilt nothing behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlm_core import KVCache, Model
from dlm_core.decoding.runner import Runner

from .contexts import after_contexts, batches

BATCH = 64


@dataclass(frozen=True)
class Reference:
    """A prompt and the autoregressive answer to it, cut behind an EOS."""

    prompt: list[int]
    answer: list[int]


@dataclass
class Denoised:
    """What the oracle took for one answer.

    forwards: denoising steps, forced ones among them, and commits. forced: steps whose one token
    their own forward did not give. per_step: positions committed in each denoising step.
    """

    tokens: int
    forwards: int = 0
    forced: int = 0
    per_step: list[int] = field(default_factory=list)


@dataclass
class Drafted:
    """Cycles of linear self-speculation over one answer, in tokens a cycle.

    prefix: right drafts before the first wrong one, and the verifier's token.
    anywhere: right drafts at any position, and the verifier's token.
    right: of each cycle, for each drafted position within the answer, whether its draft is right.
    """

    prefix: list[int] = field(default_factory=list)
    anywhere: list[int] = field(default_factory=list)
    right: list[list[bool]] = field(default_factory=list)


@torch.inference_mode()
def denoise(
    model: Model,
    references: Sequence[Reference],
    block_length: int,
    on_done: Callable[[int], None] = lambda n: None,
) -> list[Denoised]:
    """The oracle's diffusion of each reference; see the module's docstring."""
    runner = Runner.of(model)
    found = [Denoised(len(reference.answer)) for reference in references]
    for index in batches([each.answer for each in references], BATCH):
        batch = [references[i] for i in index]
        # The seed is the prefill's token, and right: both are the causal argmax behind the prompt.
        cache = _after_prompts(model, batch, block_length)
        n_blocks = max(-(-len(each.answer) // block_length) for each in batch)
        for begin in range(0, n_blocks * block_length, block_length):
            target = _targets(batch, begin, block_length, model)
            for i, counted in zip(index, _denoise_block(runner, cache, target), strict=True):
                forced, per_step = counted
                found[i].forced += forced
                found[i].per_step += per_step
                found[i].forwards += len(per_step)
                # The next block needs this one as its context.
                found[i].forwards += begin + block_length < len(references[i].answer)
            _commit(runner, cache, target, torch.full((len(batch),), block_length))
        on_done(len(index))
    return found


def _denoise_block(runner: Runner, cache: KVCache, target: Tensor) -> list[tuple[int, list[int]]]:
    """For each row of target [batch, M], -1 behind its end: forced steps, and commits a step."""
    masks = target >= 0
    masks[:, 0] = False
    tokens = target.where(target >= 0, runner.model.config.mask_token_id)
    counted: list[tuple[list[bool], list[int]]] = [([], []) for _ in target]
    while masks.any():
        block = torch.where(masks, runner.model.config.mask_token_id, tokens)
        choices = _choices(runner, runner.hidden(block, cache, causal=False))
        commits, forced = safe_commits(masks, choices, target)
        for row, (steps_forced, per_step) in enumerate(counted):
            if masks[row].any():
                steps_forced.append(bool(forced[row]))
                per_step.append(int(commits[row].sum()))
        masks &= ~commits
    return [(sum(forced), per_step) for forced, per_step in counted]


def safe_commits(masks: Tensor, choices: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Which masked positions the oracle commits, bool [batch, M], and whether by force [batch].

    masks: undecided positions, bool. choices, target: ids, [batch, M].
    """
    right = masks & (choices == target)
    forced = masks.any(1) & ~right.any(1)
    leftmost = masks & (masks.cumsum(1) == 1)
    return right | (leftmost & forced[:, None]), forced


@torch.inference_mode()
def draft(
    model: Model,
    references: Sequence[Reference],
    block_length: int,
    *,
    lora: bool,
    on_done: Callable[[int], None] = lambda n: None,
) -> list[Drafted]:
    """Drafts of each reference's cycles, compared with it; see the module's docstring."""
    runner = Runner.of(model)
    found = [Drafted() for _ in references]
    mask_id = model.config.mask_token_id
    for index in batches([each.answer for each in references], BATCH):
        batch = [references[i] for i in index]
        cache = _after_prompts(model, batch, block_length)
        at = torch.zeros(len(batch), dtype=torch.long)  # places of the cycle's seeds in the answers
        lengths = torch.tensor([len(each.answer) for each in batch])
        while (at < lengths - 1).any():
            target = _targets(batch, at.tolist(), block_length, model)
            block = torch.full_like(target, mask_id)
            block[:, 0] = target[:, 0].clamp(min=0)
            drafts = _choices(runner, runner.hidden(block, cache, causal=False, lora=lora))
            right = (drafts == target)[:, 1:].cpu()
            n_prefix = right.cumprod(1).sum(1)
            for row, i in enumerate(index):
                left = int(lengths[row] - at[row]) - 1  # tokens behind the seed
                if left < 1:
                    continue
                flags = right[row, :left].tolist()
                found[i].right.append(flags)
                found[i].prefix.append(min(int(n_prefix[row]) + 1, left))
                found[i].anywhere.append(min(sum(flags) + 1, left))
            # The seed and the right drafts become context, and the token behind them the seed.
            n = torch.minimum(n_prefix + 1, lengths - at)
            _commit(runner, cache, target, n)
            at += n
        on_done(len(index))
    return found


# --- what the two have in common


def _choices(runner: Runner, hidden: Tensor) -> Tensor:
    """Greedy choices int32 [batch, M]."""
    place = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    return runner.choose(hidden, None, place, place)


def _after_prompts(model: Model, batch: Sequence[Reference], block_length: int) -> KVCache:
    """A cache that holds each prompt, with room for the answer and whole blocks behind it."""
    room = max(len(each.answer) for each in batch) + 2 * block_length
    return after_contexts(model, [each.prompt for each in batch], room)


def _commit(runner: Runner, cache: KVCache, target: Tensor, n: Tensor) -> None:
    """Make the first n [batch] tokens of each row of target context."""
    tokens = target.where(target >= 0, runner.model.config.eos_token_id)
    runner.hidden(tokens, cache, causal=True)
    cache.lengths += n.to(cache.lengths)
    cache.max_length = int(cache.lengths.max())


def _targets(
    batch: Sequence[Reference], begin: int | list[int], block_length: int, model: Model
) -> Tensor:
    """Each answer's tokens from `begin` on: int32 [batch, block_length], -1 behind its end."""
    begins = [begin] * len(batch) if isinstance(begin, int) else begin
    rows = []
    for each, first in zip(batch, begins, strict=True):
        tokens = each.answer[first : first + block_length]
        rows.append(tokens + [-1] * (block_length - len(tokens)))
    return torch.tensor(rows, dtype=torch.int32, device=model.device)
