"""Teacher-forced perplexity of held-out text and answers: how well a model knows the right tokens.

All of it is exp(nats a token). A passage's tokens are those behind its context: of a text behind
its BOS, of an answer (EOS included) behind its prompt. `autoregressive` and `bound` are over every
one of them, so over the same tokens; `masked` is over those that were masked.

Autoregressive. The cross-entropy of each token in causal forwards.

Diffusion, at a block length. Blocks are cut as decoding cuts them, each behind the clean causal
context of all before it. Of a block's n tokens m are masked, and the denoising forward's
cross-entropy of those, at their own place, is
- `bound`: m uniform in 1 to n and the sum weighed by n / m, which in expectation bounds the
  negative log-likelihood of the block from above (arXiv 2502.09992, section 2.1 and appendix A:
  the same as t uniform in (0, 1), masking with probability t and weighing by 1 / t). Several
  seeded draws a block, m spread evenly over its range; nats are their mean.
- `masked` at rate r: m = r n, rounded up, unweighed: the cross-entropy of a masked token at that
  rate, over the masked tokens of one seeded draw. At rate 1 every token of the block is masked, as
  in a draft without a seed.
Behind an answer's EOS nothing is known and nothing scored: those places stay masked.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_core import Model
from dlm_kernels.validate import MAX_BLOCK

from .contexts import after_contexts, batches, new_cache, padded

BATCH = 32
DRAWS = 4
RATES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Passage:
    """Token ids to score behind a context of at least one."""

    context: list[int]
    tokens: list[int]


@dataclass
class Score:
    """Nats and how many tokens they are of, an entry a passage."""

    nats: list[float]
    tokens: list[int]


def of(nats: float) -> float:
    """Perplexity at so many nats a token; finite, as records have to be."""
    return math.exp(min(nats, 700))


@torch.inference_mode()
def autoregressive(model: Model, passages: Sequence[Passage]) -> Score:
    """Cross-entropy of each token behind all before it."""
    score = Score([0.0] * len(passages), [len(each.tokens) for each in passages])
    for index in batches([each.tokens for each in passages], BATCH):
        batch = [passages[i] for i in index]
        tokens, _ = padded([each.context + each.tokens for each in batch], model)
        cache = new_cache(model, len(batch), tokens.shape[1])
        nats = []
        for begin in range(0, tokens.shape[1], MAX_BLOCK):
            chunk = tokens[:, begin : begin + MAX_BLOCK]
            hidden = model(chunk, cache, causal=True)
            cache.advance(chunk.shape[1])
            following = tokens[:, begin + 1 : begin + 1 + chunk.shape[1]]
            nats.append(_nats(model, hidden[:, : following.shape[1]], following))
        nats = torch.cat(nats, 1)
        for row, i in enumerate(index):
            first = len(batch[row].context) - 1
            score.nats[i] = nats[row, first : first + len(batch[row].tokens)].sum().item()
    return score


@torch.inference_mode()
def diffusion(
    model: Model,
    passages: Sequence[Passage],
    block_length: int,
    *,
    seed: int,
    on_done: Callable[[int], None] = lambda n: None,
) -> dict[str, Score]:
    """`bound` and `masked <rate>` of passages in blocks; see the module's docstring."""
    names = ["bound", *(f"masked {rate:g}" for rate in RATES)]
    scores = {name: Score([0.0] * len(passages), [0] * len(passages)) for name in names}
    rng = random.Random(f"{seed} {block_length}")
    for index in batches([each.tokens for each in passages], BATCH):
        batch = [passages[i] for i in index]
        longest = max(len(each.tokens) for each in batch)
        room = -(-longest // block_length) * block_length
        cache = after_contexts(model, [each.context for each in batch], room)
        for begin in range(0, longest, block_length):
            pieces = [each.tokens[begin : begin + block_length] for each in batch]
            target, known = padded(pieces, model, block_length)
            for name, masked, weights in _noises(pieces, block_length, rng):
                masked, weights = masked.to(model.device), weights.to(model.device)
                noisy = torch.where(masked | ~known, model.config.mask_token_id, target)
                hidden = model(noisy, cache, causal=False)
                nats = (_nats(model, hidden, target) * (masked & known)).sum(1) * weights
                for row, i in enumerate(index):
                    scores[name].nats[i] += nats[row].item()
                    if name != "bound":
                        scores[name].tokens[i] += int(masked[row].sum())
            if begin + block_length < longest:
                model(target, cache, causal=True)
                cache.advance(block_length)
        on_done(len(index))
    bound = [nats / DRAWS for nats in scores["bound"].nats]
    scores["bound"] = Score(bound, [len(each.tokens) for each in passages])
    return scores


def _noises(
    pieces: Sequence[list[int]], block_length: int, rng: random.Random
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each score's name with what it masks [batch, block_length] and the weights [batch]."""
    lengths = [len(piece) for piece in pieces]
    for draw in range(DRAWS):
        # One draw from each of as many equal parts of the range.
        shares = [(draw + rng.random()) / DRAWS for _ in pieces]
        counts = [int(share * n) + 1 for share, n in zip(shares, lengths, strict=True)]
        weights = [n / m for n, m in zip(lengths, counts, strict=True)]
        yield "bound", _masks(lengths, counts, block_length, rng), torch.tensor(weights)
    for rate in RATES:
        counts = [math.ceil(rate * n) for n in lengths]
        masked = _masks(lengths, counts, block_length, rng)
        yield f"masked {rate:g}", masked, torch.ones(len(pieces))


def _masks(
    lengths: Sequence[int], counts: Sequence[int], block_length: int, rng: random.Random
) -> Tensor:
    """bool [batch, block_length]: in each row `count` of the first `length` places, at random."""
    masked = torch.zeros(len(lengths), block_length, dtype=torch.bool)
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        masked[row, rng.sample(range(length), min(count, length))] = True
    return masked


def _nats(model: Model, hidden: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of `target` [batch, M] under the logits of hidden states, in nats."""
    logits = model.logits(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), target.flatten().long(), reduction="none").view(
        target.shape
    )
