r"""One denoising step's decisions for a whole batch in one launch: choose, scatter, edit, count.

For a request with undecided positions U, candidates t and confidences c, the committed set is

    { i in U : the rule lets c_i pass }  union  { the top_k of U by (confidence, lowest position) }

where a rule passes by threshold, by Fast-dLLM's factor, or by a bound on the entropy of those
before i; `rules.py` says what each asks. A budget of `steps` sets top_k = ceil(left / steps left).
Then tokens committed earlier may be edited, or masked again, and under uniform corruption what is
undecided gets random ids. Each request's rule is a row of numbers that the kernel reads, so one
launch serves them all.

A request is done when nothing is undecided, or nothing before an EOS that the block has decided
itself, for good; rules that edit then take their further steps. What lies behind that EOS is frozen
once the request is done, for a done request is never touched again.

The kernel moves a few hundred bytes a request: it is bound by its launch. Ranks take M^2
comparisons of registers, and M^2 additions where entropies are bounded.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import error_word, launch, rules, torch_backend
from .cost import Cost
from .noise import RANDOM_CONFIDENCE, RENOISE, Noise
from .op import Op
from .rules import Rule, RuleTable, table_of
from .validate import ID_DTYPES, MAX_BLOCK, check_int, check_tensor

_NO_CANDIDATE = tl.constexpr(error_word.NO_CANDIDATE)
_RANDOM_CONFIDENCE, _RENOISE = tl.constexpr(RANDOM_CONFIDENCE), tl.constexpr(RENOISE)
_ENTROPY_UNITS = tl.constexpr(rules.ENTROPY_UNITS)

_NUMBERS = tl.constexpr(len(rules.NUMBERS))
_THRESHOLD = tl.constexpr(rules.NUMBERS.index("threshold"))
_FACTOR = tl.constexpr(rules.NUMBERS.index("factor"))
_ENTROPY_SCALE = tl.constexpr(rules.NUMBERS.index("entropy_scale"))
_EDIT_THRESHOLD = tl.constexpr(rules.NUMBERS.index("edit_threshold"))
_REMASK_BELOW = tl.constexpr(rules.NUMBERS.index("remask_below"))
_COUNTS = tl.constexpr(len(rules.COUNTS))
_TOP_K = tl.constexpr(rules.COUNTS.index("top_k"))
_STEPS = tl.constexpr(rules.COUNTS.index("steps"))
_EDIT_STEPS = tl.constexpr(rules.COUNTS.index("edit_steps"))
_STRICT = tl.constexpr(rules.COUNTS.index("strict"))
_RANDOM = tl.constexpr(rules.COUNTS.index("random"))
_RENOISES = tl.constexpr(rules.COUNTS.index("renoise"))
_REVISE = tl.constexpr(rules.COUNTS.index("revise"))


class BlockState(NamedTuple):
    """Where each request's block stands; all on one device, contiguous, updated in place.

    Attributes:
        tokens: int32 or int64 [batch, block]; the mask id where undecided.
        fixed: bool [batch, block]: given and never changed, as a prompt is; only read.
        commit_step: int32 [batch, block]: the step that last decided a position, or -1.
        commit_confidence: float32 [batch, block]: with what confidence; 0 where none did.
        masks_left: int32 [batch]: undecided positions, also where rules have no mask token.
        step: int32 [batch]: denoising steps taken.
        edit_step: int32 [batch]: how many of them began with nothing left to decide.
        done: bool [batch]: nothing left to do in this block.

    A slot takes its next block by copying the fields of a new `start` into its row, also between
    replays of a captured graph.
    """

    tokens: Tensor
    fixed: Tensor
    commit_step: Tensor
    commit_confidence: Tensor
    masks_left: Tensor
    step: Tensor
    edit_step: Tensor
    done: Tensor

    @classmethod
    def start(
        cls,
        tokens: Tensor,
        mask_id: int,
        *,
        undecided: Tensor | None = None,
        fixed: Tensor | None = None,
    ) -> "BlockState":
        """State before the first step on int32 or int64 `tokens` [batch, block], which it keeps.

        Args:
            mask_id: id of the mask token; for rules that renoise any id outside the vocabulary.
            undecided: bool [batch, block]: positions to decide; those that hold the mask if None.
                Rules that renoise have no mask and decide about all that is not fixed.
            fixed: bool [batch, block]: positions never to change; those not undecided if None. A
                position that is neither holds a draft, which rules may edit or mask again.

        Raises:
            TypeError, ValueError: a dtype, shape, device or range does not fit.
        """
        _check_tokens(tokens)
        check_int("mask_id", mask_id, 0, 2**31 - 1)
        for name, tensor in (("undecided", undecided), ("fixed", fixed)):
            if tensor is not None:
                _check_contiguous(name, tensor, tokens.shape, torch.bool, tokens.device)
        if undecided is None:
            undecided = tokens == mask_id
        if fixed is None:
            fixed = ~undecided
        masks_left = (undecided & ~fixed).sum(1, dtype=torch.int32)
        return cls(
            tokens=tokens,
            fixed=fixed,
            commit_step=torch.full_like(tokens, -1, dtype=torch.int32),
            commit_confidence=torch.zeros_like(tokens, dtype=torch.float32),
            masks_left=masks_left,
            step=torch.zeros_like(masks_left),
            edit_step=torch.zeros_like(masks_left),
            done=fixed.all(1),
        )


def remask_scatter_cost(batch: int, block: int, *, token_itemsize: int = 4) -> Cost:
    """Token, fixed, candidate, confidence read and token, commit step and confidence written for
    each position; four counters read and written and a rule read for each request. One comparison a
    pair of positions. Remasking reads 4 bytes a position more; renoising computes its noise."""
    rule = 4 * (len(rules.NUMBERS) + len(rules.COUNTS))
    return Cost(
        flops=float(batch) * block * block,
        bytes=float(batch) * (block * (2 * token_itemsize + 17) + 26 + rule),
    )


# --- kernel


@triton.jit(do_not_specialize=["block", "mask_id", "eos_id", "vocab_size"])
def remask_kernel(
    # Pointers, all contiguous
    tokens_ptr,  # [batch, block]
    fixed_ptr,  # bool [batch, block]
    commit_step_ptr,  # int32 [batch, block]
    commit_confidence_ptr,  # float32 [batch, block]
    masks_left_ptr,  # int32 [batch]
    step_ptr,  # int32 [batch]
    edit_step_ptr,  # int32 [batch]
    done_ptr,  # bool [batch]
    candidate_ptr,  # int32 [batch, block]
    confidence_ptr,  # float32 [batch, block]
    numbers_ptr,  # float32 [batch, _NUMBERS]
    counts_ptr,  # int32 [batch, _COUNTS]
    token_probability_ptr,  # float32 [batch, block], read if HAS_REMASK
    seed_ptr,  # int64 [batch], read if HAS_NOISE
    position_ptr,  # int32 [batch], read if HAS_NOISE
    error_ptr,  # int32 [1], written if HAS_ERROR
    # Dimensions
    block,
    # Scalars
    mask_id,
    eos_id,
    vocab_size,
    # Meta-parameters
    BLOCK: tl.constexpr,  # block rounded up to a power of two
    COMPARE: tl.constexpr,
    HAS_REMASK: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_ERROR: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    if tl.load(done_ptr + request):
        return
    tokens_ptr += request * block
    fixed_ptr += request * block
    commit_step_ptr += request * block
    commit_confidence_ptr += request * block
    candidate_ptr += request * block
    confidence_ptr += request * block
    numbers_ptr += request * _NUMBERS
    counts_ptr += request * _COUNTS

    entropy_scale = tl.load(numbers_ptr + _ENTROPY_SCALE)
    steps = tl.load(counts_ptr + _STEPS)
    edit_steps = tl.load(counts_ptr + _EDIT_STEPS)
    random = tl.load(counts_ptr + _RANDOM) != 0
    renoise = tl.load(counts_ptr + _RENOISES) != 0
    revise = tl.load(counts_ptr + _REVISE) != 0
    step = tl.load(step_ptr + request)
    edit_step = tl.load(edit_step_ptr + request)
    if HAS_NOISE:
        seed = tl.load(seed_ptr + request)
        place = tl.load(position_ptr + request)
    else:
        seed = 0
        place = 0

    position = tl.arange(0, BLOCK)
    token, free, candidate, confidence, undecided, valid = _options(
        position, block, tokens_ptr, fixed_ptr, commit_step_ptr, candidate_ptr, confidence_ptr,
        mask_id, random, renoise, revise, seed, place, step, HAS_NOISE,
    )  # fmt: skip

    # rank: usable positions ahead by confidence, then by position; ahead_entropy: their entropy.
    # Registers cannot be sliced, so the positions compared against are read again, from L1.
    bounded = entropy_scale == entropy_scale
    rank = tl.zeros([BLOCK], tl.int32)
    ahead_entropy = tl.zeros([BLOCK], tl.int32)
    for first in range(0, block, COMPARE):
        other = first + tl.arange(0, COMPARE)
        _, _, _, other_confidence, other_undecided, other_valid = _options(
            other, block, tokens_ptr, fixed_ptr, commit_step_ptr, candidate_ptr, confidence_ptr,
            mask_id, random, renoise, revise, seed, place, step, HAS_NOISE,
        )  # fmt: skip
        tie = other_confidence[None, :] == confidence[:, None]
        ahead = other_confidence[None, :] > confidence[:, None]
        ahead = ahead | (tie & (other[None, :] < position[:, None]))
        ahead = ahead & (other_undecided & other_valid)[None, :]
        rank += tl.sum(ahead.to(tl.int32), 1)
        if bounded:
            units = _entropy_units(other_confidence, entropy_scale)
            ahead_entropy += tl.sum(tl.where(ahead, units[None, :], 0), 1)

    n_undecided = tl.sum(undecided.to(tl.int32), 0)
    last_of_budget = (steps > 0) & (step >= steps - 1)
    quota = tl.load(counts_ptr + _TOP_K)
    if (steps > 0) & (last_of_budget | (revise == 0)):
        quota = tl.cdiv(n_undecided, tl.maximum(steps - step, 1))
    threshold = tl.load(numbers_ptr + _THRESHOLD)
    equal_passes = tl.load(counts_ptr + _STRICT) == 0
    passed = (confidence > threshold) | ((confidence == threshold) & equal_passes)
    doubt = (rank + 2).to(tl.float32) * (1.0 - confidence)
    passed = passed | (doubt < tl.load(numbers_ptr + _FACTOR))
    if bounded:
        passed = passed | (ahead_entropy <= _ENTROPY_UNITS)
    commit = undecided & valid & ((rank < quota) | passed)
    n_committed = tl.sum(commit.to(tl.int32), 0)
    if HAS_ERROR:
        if (n_undecided > 0) & (n_committed == 0):
            tl.atomic_or(error_ptr, _NO_CANDIDATE)

    may_end = free & (revise == 0)  # where an EOS stays one
    was_settled = _settled(position, token, may_end, undecided, eos_id, BLOCK)
    edit_threshold = tl.load(numbers_ptr + _EDIT_THRESHOLD)
    may_edit = (was_settled == 0) | (edit_step < edit_steps)
    edit_threshold = tl.where(may_edit, edit_threshold, float("nan"))
    decided = free & (undecided == 0)
    edit = decided & valid & (candidate != token) & (confidence > edit_threshold)
    n_edited = tl.sum(edit.to(tl.int32), 0)

    left = undecided & (commit == 0)
    if HAS_REMASK:
        remask_below = tl.load(numbers_ptr + _REMASK_BELOW)
        limit = tl.where((step == 0) & (n_undecided == 0), block, n_committed - 1)
        limit = tl.where(last_of_budget, 0, limit)
        token_probability_ptr += request * block
        probability = tl.load(token_probability_ptr + position, mask=position < block, other=0.0)
        remask_rank = tl.zeros([BLOCK], tl.int32)
        if limit > 0:
            for first in range(0, block, COMPARE):
                other = first + tl.arange(0, COMPARE)
                other_token, other_free, other_candidate, other_confidence, other_undecided, ok = (
                    _options(
                        other, block, tokens_ptr, fixed_ptr, commit_step_ptr, candidate_ptr,
                        confidence_ptr, mask_id, random, renoise, revise, seed, place, step,
                        HAS_NOISE,
                    )
                )  # fmt: skip
                other_probability = tl.load(
                    token_probability_ptr + other, mask=other < block, other=0.0
                )
                other_edit = ok & (other_candidate != other_token)
                other_edit = other_edit & (other_confidence > edit_threshold)
                doubtful = other_free & (other_undecided == 0) & (other_edit == 0)
                doubtful = doubtful & (other_probability < remask_below)
                tie = other_probability[None, :] == probability[:, None]
                ahead = other_probability[None, :] < probability[:, None]
                ahead = ahead | (tie & (other[None, :] < position[:, None]))
                remask_rank += tl.sum((ahead & doubtful[None, :]).to(tl.int32), 1)
        remasked = decided & (edit == 0) & (probability < remask_below) & (remask_rank < limit)
        left = left | remasked

    # No thread may overwrite what another still ranks against.
    tl.debug_barrier()
    written = commit | edit
    final = tl.where(written, candidate, token)
    if HAS_NOISE:
        if renoise:
            word = _word(seed, place + position, step, _RENOISE)
            drawn = (word % vocab_size.to(tl.uint32)).to(tl.int32)
            drawn = tl.where(drawn == mask_id, ((mask_id + 1) % vocab_size).to(tl.int32), drawn)
            final = tl.where(left, drawn.to(token.dtype), final)
    final = tl.where(left & (renoise == 0), mask_id, final).to(token.dtype)
    written = written | left
    tl.store(tokens_ptr + position, final, mask=written)
    tl.store(commit_step_ptr + position, tl.where(left, -1, step), mask=written)
    tl.store(commit_confidence_ptr + position, tl.where(left, 0.0, confidence), mask=written)

    is_settled = _settled(position, final, may_end, left, eos_id, BLOCK)
    edit_step += was_settled.to(tl.int32)
    no_more_edits = (edit_step >= edit_steps) | (was_settled & (n_edited == 0))
    tl.store(masks_left_ptr + request, tl.sum(left.to(tl.int32), 0))
    tl.store(step_ptr + request, step + 1)
    tl.store(edit_step_ptr + request, edit_step)
    tl.store(done_ptr + request, (is_settled & no_more_edits) | (revise & last_of_budget))


@triton.jit
def _options(
    position, block, tokens_ptr, fixed_ptr, commit_step_ptr, candidate_ptr, confidence_ptr,
    mask_id, random, renoise, revise, seed, place, step, HAS_NOISE: tl.constexpr,
):  # fmt: skip
    """(token, not fixed, candidate, confidence, undecided, valid candidate) of each position.

    Candidates are in the tokens' type. Valid ones are ids other than the mask, not NaN-confident.
    """
    inside = position < block
    token = tl.load(tokens_ptr + position, mask=inside, other=0)
    free = tl.load(fixed_ptr + position, mask=inside, other=1) == 0
    commit_step = tl.load(commit_step_ptr + position, mask=inside, other=0)
    candidate = tl.load(candidate_ptr + position, mask=inside, other=-1)
    confidence = tl.load(confidence_ptr + position, mask=inside, other=0.0)
    if HAS_NOISE:
        if random:
            word = _word(seed, place + position, step, _RANDOM_CONFIDENCE)
            # noise.uniform
            confidence = ((word >> 9).to(tl.float32) + 0.5) * (2.0**-23)
    undecided = free & tl.where(renoise, revise | (commit_step < 0), token == mask_id)
    valid = (candidate >= 0) & (candidate != mask_id) & (confidence == confidence)
    return token, free, candidate.to(token.dtype), confidence, undecided, valid


@triton.jit
def _word(seed, place, step, stream):
    """noise.philox of element 0."""
    zero = place * 0
    word, _, _, _ = tl.philox(seed, zero, place, zero + step, zero + stream)
    return word


@triton.jit
def _entropy_units(negative_entropy, scale):
    """Entropy as an integer, half a unit rounded up, at most one more than the bound."""
    # Rounded as integers: adding a half would be fused with the product, and round otherwise.
    halves = tl.minimum(tl.maximum(-negative_entropy * scale, 0.0), 2.0 * _ENTROPY_UNITS + 2)
    return (halves.to(tl.int32) + 1) >> 1


@triton.jit
def _settled(position, token, may_end, undecided, eos_id, BLOCK: tl.constexpr):
    """Whether nothing is undecided, or nothing before the first EOS that may end the block."""
    first_undecided = tl.min(tl.where(undecided, position, BLOCK), 0)
    # A random id that happens to be EOS is undecided, so it is not before the first of those.
    first_eos = tl.min(tl.where(may_end & (token == eos_id), position, BLOCK), 0)
    return (first_undecided == BLOCK) | (first_eos < first_undecided)


# --- launcher


class RemaskScatterCall(NamedTuple):
    """Arguments of the op; see `remask_scatter`."""

    state: BlockState
    candidate: Tensor
    confidence: Tensor
    numbers: Tensor  # of a RuleTable, as counts
    counts: Tensor
    token_probability: Tensor | None
    seed: Tensor | None  # of a Noise, as position and vocab_size
    position: Tensor | None
    vocab_size: int
    mask_id: int
    eos_id: int  # -1: none
    error: Tensor | None


def _launch(call: RemaskScatterCall) -> None:
    batch, block = call.state.tokens.shape
    if batch == 0:
        return
    table = launch.REMASK_SCATTER[launch.arch_of(call.state.tokens.device)]
    config = launch.smallest_serving(table, block)
    remask_kernel[(batch,)](
        *call.state, call.candidate, call.confidence, call.numbers, call.counts,
        call.token_probability, call.seed, call.position, call.error,
        block, call.mask_id, call.eos_id, call.vocab_size,
        BLOCK=triton.next_power_of_2(block),
        COMPARE=config.compare,
        HAS_REMASK=call.token_probability is not None,
        HAS_NOISE=call.seed is not None,
        HAS_ERROR=call.error is not None,
        num_warps=config.num_warps,
    )  # fmt: skip


# --- op


def _fake(call: RemaskScatterCall) -> None:
    pass


def _check_steps(call: RemaskScatterCall) -> None:
    """Raise if a request has something undecided at a step outside its budget."""
    step, steps = call.state.step, call.counts[:, rules.COUNTS.index("steps")]
    outside = (step < 0) | (step >= steps)
    wrong = outside & (steps > 0) & (call.state.masks_left > 0) & ~call.state.done
    for i in wrong.nonzero()[:1, 0].tolist():
        raise ValueError(
            f"state.step holds {step.tolist()}; that of request {i} must be in "
            f"[0, steps={int(steps[i])})"
        )


remask_scatter_op = Op(
    RemaskScatterCall,
    name="remask_scatter",
    fake=_fake,
    check=_check_steps,
    mutated=(*(f"state.{name}" for name in BlockState._fields if name != "fixed"), "error"),
    triton=_launch,
    torch=torch_backend.remask_scatter,
)


def _check_tokens(tokens: Tensor) -> None:
    check_tensor("tokens", tokens, shape=("batch", "block"), dtypes=ID_DTYPES)
    if not 1 <= tokens.shape[1] <= MAX_BLOCK:
        raise ValueError(f"tokens has a block of {tokens.shape[1]}; it must be in [1, {MAX_BLOCK}]")
    if not tokens.is_contiguous():
        raise ValueError(f"tokens has strides {tokens.stride()}; it must be contiguous")


def _check_contiguous(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    check_tensor(name, tensor, shape, (dtype,), device)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")


def remask_scatter(
    state: BlockState,
    candidate: Tensor,
    confidence: Tensor,
    rule: Rule | RuleTable,
    *,
    mask_id: int,
    eos_id: int | None = None,
    token_probability: Tensor | None = None,
    noise: Noise | None = None,
    error: Tensor | None = None,
) -> None:
    """Decide one step of every block in `state`, in place, by `rule`.

    Args:
        state: tokens and counters of the batch; see `BlockState`. Requests that are done stay as
            they are.
        candidate: int32 [batch, block]: the id each position would take. A negative id or the mask
            id is never taken. Rules that edit read it at decided positions too.
        confidence: float32 [batch, block]: what the rule's `confidence` names; higher is surer. NaN
            is never committed.
        rule: one `Rule` for the batch, or a `RuleTable` with a row for each request.
        mask_id: the mask token's id.
        eos_id: a block is also done once this id stands outside `fixed` with nothing undecided
            before it; what is undecided behind it stays so, and `masks_left` counts it. None: no id
            ends a block.
        token_probability: float32 [batch, block]: how likely the token that stands at a position
            now is there; needed if a rule has `remask_below`. NaN is never remasked.
        noise: needed if a rule draws confidences or renoises.
        error: error word to set, int32 [1]; set if a block has something undecided and no usable
            candidate.

    Raises:
        TypeError, ValueError: a dtype, shape, device or range does not fit, or what the rule needs
            is not given; the message names it.
    """
    if not isinstance(state, BlockState):
        raise TypeError(f"state is a {type(state).__name__}; it must be a BlockState")
    if not isinstance(rule, Rule | RuleTable):
        raise TypeError(f"rule is a {type(rule).__name__}; it must be a Rule or a RuleTable")
    _check_tokens(state.tokens)
    batch, block = shape = state.tokens.shape
    device = state.tokens.device
    for name, tensor, wanted, dtype in (
        ("state.fixed", state.fixed, shape, torch.bool),
        ("state.commit_step", state.commit_step, shape, torch.int32),
        ("state.commit_confidence", state.commit_confidence, shape, torch.float32),
        ("state.masks_left", state.masks_left, (batch,), torch.int32),
        ("state.step", state.step, (batch,), torch.int32),
        ("state.edit_step", state.edit_step, (batch,), torch.int32),
        ("state.done", state.done, (batch,), torch.bool),
        ("candidate", candidate, shape, torch.int32),
        ("confidence", confidence, shape, torch.float32),
    ):
        _check_contiguous(name, tensor, wanted, dtype, device)
    check_int("mask_id", mask_id, 0, 2**31 - 1)
    if eos_id is not None:
        check_int("eos_id", eos_id, 0, 2**31 - 1)
    if mask_id == eos_id:
        raise ValueError(f"eos_id is {eos_id}, the mask id; the two must differ")
    error_word.check_error_word(error, device)

    table = table_of(rule, batch, device) if isinstance(rule, Rule) else rule
    for name, tensor, columns, dtype in (
        ("rule.numbers", table.numbers, len(rules.NUMBERS), torch.float32),
        ("rule.counts", table.counts, len(rules.COUNTS), torch.int32),
    ):
        _check_contiguous(name, tensor, (batch, columns), dtype, device)
    if not table.uses_token_probability:
        token_probability = None
    elif token_probability is None:
        raise ValueError("token_probability is None; a rule with remask_below needs it")
    else:
        _check_contiguous("token_probability", token_probability, shape, torch.float32, device)
    seed = position = None
    vocab_size = 1
    if table.uses_noise:
        if not isinstance(noise, Noise):
            kind = ValueError if noise is None else TypeError
            raise kind(
                f"noise is {noise!r}; it must be a Noise, for a rule draws confidences or renoises"
            )
        seed, position, vocab_size = noise
        _check_contiguous("noise.seed", seed, (batch,), torch.int64, device)
        _check_contiguous("noise.position", position, (batch,), torch.int32, device)
        check_int("noise.vocab_size", vocab_size, 2, 2**31 - 1)

    remask_scatter_op(
        RemaskScatterCall(
            state, candidate, confidence, table.numbers, table.counts, token_probability,
            seed, position, vocab_size, mask_id, -1 if eos_id is None else eos_id, error,
        )
    )  # fmt: skip
