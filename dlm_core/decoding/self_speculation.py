"""Self-speculation: one checkpoint drafts by diffusion and verifies autoregressively.

Greedy, both variants give the tokens of autoregressive decoding: under `batch_invariant` numerics a
verified row of logits has the bits that the same token decoded alone has. At a temperature drafts
are accepted by speculative rejection sampling, so that the tokens have the distribution of
autoregressive sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels.validate import MAX_BLOCK

from ..paged_cache import PagedKVCache, to_device
from .prefill import prefill_phase, publish_prompt
from .request import Phase, Request
from .runner import Runner, check_tokens, table_of
from .sampling import SamplingTable, accept_drafts, draw

MAX_K = 16  # drafts a cycle of quadratic self-speculation, in a forward of k (k + 1) rows


@dataclass
class LinearSpec:
    """A cycle drafts by one bidirectional forward over [seed | masks] and verifies by one causal
    forward over [seed | drafts].

    The verifier's choices are emitted up to and including the first that its draft did not foresee.
    The cache keeps the seed and the drafts that were right; the last choice is the next seed.
    """

    block_length: int
    lora: bool
    longest: int
    cycle: int = 0

    def first_phase(self, request: Request) -> Phase:
        return prefill_phase(request, needs_seed=True)

    def begin(self, request: Request, seed: Tensor, value: int) -> None:
        self.seed = seed
        if not request.emit([value]):
            shape = (self.block_length, self.lora, request.sampling.greedy)
            request.phase = Phase(_draft_and_verify, shape, self.block_length)


def _draft_and_verify(runner: Runner, requests: list[Request]) -> None:
    shape = requests[0].phase.shape
    seeds = torch.cat([request.mode.seed for request in requests])
    table = table_of([request.sampling for request in requests], seeds.device)
    inputs = (seeds, _cycles(requests, seeds.device), *(table or ()))
    rows, (choices,) = runner.run(linear_cycle, shape, requests, shape[0], *inputs)
    for request, tokens in zip(requests, _accept(requests, rows, choices), strict=True):
        request.forwards.update(("draft", "verify"))
        request.emit(tokens)


def linear_cycle(
    runner: Runner, shape: tuple, cache: PagedKVCache, seeds: Tensor, step: Tensor, *table: Tensor
) -> tuple[Tensor, Tensor]:
    """One cycle behind `seeds` int32 [batch]: the verdict for the host, and its choices."""
    block_length, lora, _ = shape
    settings = SamplingTable(*table) if table else None
    block = seeds.new_full((len(seeds), block_length), runner.model.config.mask_token_id)
    block[:, 0] = seeds
    position = cache.lengths[:, None].long() + torch.arange(1, block_length, device=seeds.device)

    hidden = runner.hidden(block, cache, causal=False, lora=lora)
    drafts = _draft(runner, hidden[:, 1:], settings, position, step)
    block[:, 1:] = drafts.tokens
    hidden = runner.hidden(block, cache, causal=True)
    verdict = _verify(runner, drafts, hidden, settings, position, step)
    return torch.cat([verdict.n_right[:, None], verdict.choices], 1), verdict.choices


@dataclass
class QuadraticSpec:
    """One forward a cycle over k groups, group j of [draft j | k masks].

    The first row of each group verifies the draft of the next group, and its masks draft what would
    follow if that was right; the masks of the last right group make the next cycle's drafts. The
    first pass, over [prompt | k masks], is such a forward of one group.

    A cycle emits the drafts that were right. The first of them, the verifier's last choice of the
    cycle before, always is; so a request's last token takes a cycle of its own where that choice
    would have ended it, as in the published loop.
    """

    k: int
    longest: int
    cycle: int = 0

    def first_phase(self, request: Request) -> Phase:
        left = len(request.prompt) - request.context.length
        if left > MAX_BLOCK:
            return prefill_phase(request, needs_seed=False)
        return Phase(_first_pass, (left, self.k, request.sampling.greedy), left)

    def begin(self, request: Request, seed: Tensor, value: int) -> None:
        self.seed, self.seed_value = seed, value
        request.phase = Phase(_verify_and_draft, (self.k, request.sampling.greedy), self.k)


def _first_pass(runner: Runner, requests: list[Request]) -> None:
    """Prompts come in all lengths and once, so this runs eagerly."""
    chunk, k, _ = requests[0].phase.shape
    device = runner.model.device
    table = table_of([request.sampling for request in requests], device)
    masks = [runner.model.config.mask_token_id] * k
    ids = [request.prompt[request.context.length :] + masks for request in requests]
    cache = PagedKVCache([request.context for request in requests])
    tokens = to_device(torch.tensor(ids), device)
    hidden = runner.hidden(tokens, cache, causal=True, draft_groups=(1, k + 1))
    cache.advance(chunk)

    # The first mask stands where the seed does, and the others behind it.
    position = cache.lengths[:, None].long() + torch.arange(k, device=device)
    step = _cycles(requests, device)
    last = hidden[:, chunk - 1 : chunk]
    seeds = runner.choose(last, table, position[:, :1], step[:, None])[:, 0]
    drafts = _draft(runner, hidden[:, chunk + 1 :], table, position[:, 1:], step)
    values = runner.read(seeds).tolist()
    check_tokens(values)
    for i, request in enumerate(requests):
        request.forwards["prefill"] += 1
        request.mode.drafts = drafts.of(i)
        publish_prompt(request)
        request.mode.begin(request, seeds[i : i + 1], values[i])


def _verify_and_draft(runner: Runner, requests: list[Request]) -> None:
    shape = requests[0].phase.shape
    seeds = torch.cat([request.mode.seed for request in requests])
    table = table_of([request.sampling for request in requests], seeds.device)
    drafts = Drafts.together([request.mode.drafts for request in requests])
    inputs = [seeds, _cycles(requests, seeds.device) + 1, drafts.tokens]
    if table:
        inputs += [drafts.log_probs, *table]
    rows, (choices, *new) = runner.run(quadratic_cycle, shape, requests, shape[0], *inputs)
    drafts = Drafts(new[0], new[1] if table else None)
    for i, tokens in enumerate(_accept(requests, rows, choices)):
        request, mode = requests[i], requests[i].mode
        request.forwards["verify"] += 1
        mode.drafts = drafts.of(i)
        right = [mode.seed_value, *tokens[:-1]]
        mode.seed_value = tokens[-1]
        request.emit(right)


def quadratic_cycle(
    runner: Runner,
    shape: tuple,
    cache: PagedKVCache,
    seeds: Tensor,
    step: Tensor,
    drafted: Tensor,
    log_probs: Tensor | None = None,
    *table: Tensor,
) -> tuple[Tensor, ...]:
    """One cycle of k groups, the first of `seeds` and the others of `drafted` [batch, k - 1].

    Returns the verdict for the host, its choices, and the next drafts.
    """
    k, _ = shape
    settings = SamplingTable(*table) if table else None
    batch, device = len(seeds), seeds.device
    groups = seeds.new_full((batch, k, k + 1), runner.model.config.mask_token_id)
    groups[:, 0, 0] = seeds
    groups[:, 1:, 0] = drafted
    position = cache.lengths[:, None].long() + torch.arange(1, k, device=device)

    hidden = runner.hidden(groups.flatten(1), cache, causal=True, draft_groups=(k, k + 1))
    hidden = hidden.unflatten(1, (k, k + 1))
    drafts = Drafts(drafted, log_probs)
    verdict = _verify(runner, drafts, hidden[:, :, 0], settings, position, step)
    # The first mask of the last right group stands where its verified choice does.
    masks = hidden[torch.arange(batch, device=device), verdict.n_right.long(), 2:]
    position = position + 1 + verdict.n_right[:, None]
    drafts = _draft(runner, masks, settings, position, step)
    rows = torch.cat([verdict.n_right[:, None], verdict.choices], 1)
    return rows, verdict.choices, *(x for x in drafts if x is not None)


# --- what the two have in common


class Drafts(NamedTuple):
    """Proposed tokens and what they were drawn from."""

    tokens: Tensor  # int32 [batch, K]
    log_probs: Tensor | None  # float32 [batch, K, vocab]; None if greedy

    def of(self, i: int) -> "Drafts":
        """Those of request `i` of the batch."""
        return Drafts(*(None if x is None else x[i : i + 1] for x in self))

    @classmethod
    def together(cls, drafts: Sequence["Drafts"]) -> "Drafts":
        return cls(*(None if xs[0] is None else torch.cat(xs) for xs in zip(*drafts, strict=True)))


class Verdict(NamedTuple):
    """n_right: int32 [batch], drafts kept. choices: int32 [batch, K + 1]; the first n_right + 1 are
    the tokens to emit, the last of them the verifier's own."""

    n_right: Tensor
    choices: Tensor


def _draft(
    runner: Runner,
    hidden: Tensor,
    table: SamplingTable | None,
    position: Tensor,
    step: Tensor,
) -> Drafts:
    """Propose a token for each row of hidden states [batch, K, hidden_size] at `position`."""
    if table is None:
        return Drafts(runner.choose(hidden, None, position, step), None)
    log_probs = runner.distribution(runner.logits(hidden), table)
    return Drafts(draw(log_probs, table, position, step[:, None]), log_probs)


def _verify(
    runner: Runner,
    drafts: Drafts,
    hidden: Tensor,
    table: SamplingTable | None,
    position: Tensor,
    step: Tensor,
) -> Verdict:
    """Judge K drafts at `position` [batch, K] by causal hidden states [batch, K + 1, hidden_size].

    State i gives the token at the place of draft i, and the last the one behind.
    """
    if table is None:
        choices = runner.choose(hidden, None, position, step)
        n_right = (choices[:, :-1] == drafts.tokens).cumprod(1).sum(1, dtype=torch.int32)
        return Verdict(n_right, choices)
    target = runner.distribution(runner.logits(hidden), table)
    n_right, token = accept_drafts(
        drafts.log_probs, target, drafts.tokens, table, position[:, 0], step
    )
    choices = torch.cat([drafts.tokens, token[:, None]], 1)
    return Verdict(n_right, choices.scatter(1, n_right[:, None].long(), token[:, None]))


def _accept(requests: list[Request], rows: Tensor, choices: Tensor) -> list[list[int]]:
    """What was right is context now, and the last choice the next seed.

    rows: the verdict on the host; choices: its choices on the device. Returns each request's
    choices: its right drafts, and the verifier's own token behind them.
    """
    chosen = [tokens[: n_right + 1] for n_right, *tokens in rows.tolist()]
    for tokens in chosen:
        check_tokens(tokens)
    for i, (request, tokens) in enumerate(zip(requests, chosen, strict=True)):
        n = len(tokens)
        request.mode.cycle += 1
        request.mode.seed = choices[i, n - 1 : n]
        request.context.advance(n)
        request.accepted.append(n)
    return chosen


def _cycles(requests: Sequence[Request], device: torch.device) -> Tensor:
    """How many cycles each request has run: int64 [batch], which keys the noise."""
    return to_device(torch.tensor([request.mode.cycle for request in requests]), device)
