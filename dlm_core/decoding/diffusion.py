"""Block diffusion: a block is denoised in a few forwards, then committed to the cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels import BlockState, Noise, Rule, RuleTable

from ..paged_cache import PagedKVCache, to_device
from .denoise import Needs, denoise_step
from .prefill import extend_work, prefill_phase
from .request import Phase, Request
from .result import StepEvent
from .runner import Runner, check_tokens, packed, table_of
from .sampling import SamplingTable


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
    eos: what an EOS does to its block; see `Needs`.
    keep_events: collect a StepEvent a step.
    """

    rule: Rule
    blocks: Iterator[Block]
    longest: int
    seeded: bool
    eos: str = "ends"
    keep_events: bool = False
    index: int = -1

    def first_phase(self, request: Request) -> Phase:
        return prefill_phase(request, needs_seed=self.seeded, bans_eos=self.eos == "banned")

    def begin(self, request: Request, seed: Tensor | None, value: int | None) -> None:
        """Start the next block; a request whose seed is an EOS is finished."""
        if value == request.eos_id:
            request.emit([value])
            return
        self.block = next(self.blocks)
        self.index += 1
        self.tokens: list[int] | None = None
        n_given = int(self.seeded)
        self.undecided = [i for i, id_ in enumerate(self.block.ids) if id_ is None and i >= n_given]
        self.n_steps = self.n_settled = 0
        self.state = None
        self.seed = seed
        needs = Needs.of(self.rule, request.sampling, eos=self.eos)
        request.phase = Phase(_denoise, (len(self.block.ids), needs), 0)


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
        request.events.append(_event(request, tokens, steps, mask_id))
    mode.tokens = tokens
    mode.n_steps += 1
    if not _may_change_its_mind(mode.rule):
        undecided = tokens.index(mask_id) if mask_id in tokens else len(tokens)
        settled = min(undecided, mode.block.n_open)
        request.decide(tokens[mode.n_settled : settled])
        mode.n_settled = max(settled, mode.n_settled)


def _event(request: Request, tokens: list[int], steps: list[int], mask_id: int) -> StepEvent:
    """What the step just noted looked like from outside."""
    mode = request.mode
    if mode.rule.renoise:  # has no masks, and keeps nothing of a draft
        undecided = [i for i in range(int(mode.seeded), mode.block.n_open) if steps[i] < 0]
    else:
        undecided = [i for i, token in enumerate(tokens) if token == mask_id]
    committed, open_before = request.committed[-1], set(mode.undecided)
    before = mode.tokens or mode.block.ids
    event = StepEvent(
        block=mode.index,
        step=mode.n_steps,
        tokens=tokens,
        committed=committed,
        confidences=request.confidences[-1],
        edited=[i for i in committed if i not in open_before and tokens[i] != before[i]],
        remasked=[i for i in undecided if i not in open_before],
        undecided=undecided,
    )
    mode.undecided = undecided
    return event


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
        values = values.tolist()
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
    """Whether what stands may be replaced or masked again, or is a random id."""
    return rule.renoise or rule.edit_threshold is not None or rule.remask_below is not None


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
