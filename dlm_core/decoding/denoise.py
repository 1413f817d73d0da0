"""One denoising step of a batch: a bidirectional forward, its statistics, and the rules."""

from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels import (
    BlockState,
    Confidence,
    Rule,
    RuleTable,
    confidence,
)
from dlm_kernels.remask_scatter import RemaskScatterCall, remask_scatter_op

from ..cache import KVCache
from ..paged_cache import PagedKVCache
from .runner import Runner
from .sampling import Sampling, SamplingTable, draw


class Needs(NamedTuple):
    """What the requests of one step have to agree on: which statistics they read.

    reads_all: of positions that hold a token too, not only of masks.
    remasks: of the tokens that stand. draws_noise: some of the rules' choices are random.
    eos: "ends", an EOS with nothing undecided before it ends its block; "banned", none is a
        candidate; "plain", it is a token like any other.
    The others are those of `Rule` and `Sampling`.
    """

    confidence: str
    logit_shift: int
    tempered_confidence: bool
    reads_all: bool
    remasks: bool
    draws_noise: bool
    greedy: bool
    eos: str

    @classmethod
    def of(cls, rule: Rule, sampling: Sampling, *, eos: str = "ends") -> "Needs":
        return cls(
            rule.confidence,
            rule.logit_shift,
            rule.tempered_confidence,
            rule.renoise or rule.edit_threshold is not None,
            rule.remask_below is not None,
            rule.renoise or rule.confidence == "random",
            sampling.greedy,
            eos,
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
    if needs.eos == "banned":
        runner = runner.banning_eos()
    hidden = runner.hidden(state.tokens, cache, causal=False)
    # Whole rows of logits are looked at to draw from them, or at the tokens that stand.
    logits = None if needs.greedy and not needs.remasks else runner.logits(hidden)
    candidate, sureness = _candidates(runner, hidden, logits, cache, state, needs, table)
    token_probability = seed = position = None
    if needs.remasks:
        token_probability = _standing_probability(logits, state.tokens, needs.logit_shift)
    if needs.draws_noise:
        seed, position = table.seed, cache.lengths
    eos_id = config.eos_token_id if needs.eos == "ends" else -1
    remask_scatter_op(
        RemaskScatterCall(
            state, candidate, sureness, rules.numbers, rules.counts, token_probability,
            seed, position, config.vocab_size, config.mask_token_id, eos_id, runner.error,
        )
    )  # fmt: skip


def _standing_probability(logits: Tensor, tokens: Tensor, shift: int) -> Tensor:
    """Probability of each of `tokens` [batch, M] now; NaN where no logits speak of it."""
    ids = tokens.roll(-shift, 1).long()[:, :, None]
    standing = logits.gather(-1, ids)[:, :, 0].float()
    probability = (standing - logits.float().logsumexp(-1)).exp().roll(shift, 1)
    probability[:, :shift] = torch.nan
    return probability


def _candidates(
    runner: Runner,
    hidden: Tensor,
    logits: Tensor | None,
    cache: KVCache | PagedKVCache,
    state: BlockState,
    needs: Needs,
    table: SamplingTable,
) -> tuple[Tensor, Tensor]:
    """What each position would take and how sure it is: int32 and float32 [batch, M].

    logits: of the hidden states; None if the statistics alone are needed.
    """
    mask_id = runner.model.config.mask_token_id
    # Under a shift the logits at i - 1 speak of position i. What the last ones say lands on
    # position 0, which is seeded.
    shift = needs.logit_shift
    asked = {}
    if not needs.reads_all:
        asked = {"tokens": _rolled(state.tokens, -shift).flatten(), "mask_id": mask_id}
    wanted = {"entropy": needs.confidence == "entropy", "margin": needs.confidence == "margin"}

    def statistics(of: Tensor) -> Confidence:
        return confidence(
            of.flatten(0, 1), banned=runner.banned, error=runner.error, **asked, **wanted
        )

    if needs.greedy:
        if logits is None:
            stats = runner.statistics(hidden, **asked, **wanted)
        else:
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
    return _rolled(token.view(shape), shift), _rolled(sureness.view(shape), shift)


def _rolled(x: Tensor, places: int) -> Tensor:
    """x [batch, M] with each row turned, at no cost if it is by no places."""
    return x.roll(places, 1) if places else x
