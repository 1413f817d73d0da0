r"""One unmasking step of a whole batch in one launch: choose, scatter, count, and say who is done.

For a request with masked positions U, candidates t and confidences c, the committed set is

    { i in U : c_i >= threshold }  union  { the top_k of U by (confidence, then lowest position) }

which is threshold with at least one commit (top_k = 1), plain top-k (no threshold), and "all that
pass or else top-k" at once. A budget of `steps` sets top_k = ceil(masks left / steps left), which
splits a block's masks evenly and gives earlier steps the remainder.

A request is done when no mask is left or an EOS stands with no mask before it; what lies behind
that EOS is frozen, for a done request is never touched again.

The kernel moves a few hundred bytes a request: it is bound by its launch. Ranks take M^2
comparisons of registers.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import error_word, launch, reference, torch_backend
from .backend import backend_for, contents_checked
from .cost import Cost
from .validate import ID_DTYPES, MAX_BLOCK, check_int, check_number, check_tensor

_NO_CANDIDATE = tl.constexpr(error_word.NO_CANDIDATE)


class BlockState(NamedTuple):
    """Where each request's block stands; all on one device, contiguous, updated in place."""

    tokens: Tensor  # int32 or int64 [batch, block]; the mask id where undecided
    commit_step: Tensor  # int32 [batch, block]: the step that committed a position, or -1
    commit_confidence: Tensor  # float32 [batch, block]: with what confidence; 0 where none did
    masks_left: Tensor  # int32 [batch]
    step: Tensor  # int32 [batch]: denoising steps taken
    done: Tensor  # bool [batch]: nothing left to do in this block

    @classmethod
    def start(cls, tokens: Tensor, mask_id: int) -> "BlockState":
        """State before the first step on int32 or int64 `tokens` [batch, block], which it keeps."""
        _check_tokens(tokens)
        check_int("mask_id", mask_id, 0, 2**31 - 1)
        masks_left = (tokens == mask_id).sum(1, dtype=torch.int32)
        return cls(
            tokens=tokens,
            commit_step=torch.full_like(tokens, -1, dtype=torch.int32),
            commit_confidence=torch.zeros_like(tokens, dtype=torch.float32),
            masks_left=masks_left,
            step=torch.zeros_like(masks_left),
            done=masks_left == 0,
        )


def remask_scatter_cost(batch: int, block: int, *, token_itemsize: int = 4) -> Cost:
    """Token, candidate, confidence read and token, commit step and confidence written for each
    position; three counters read and written a request. One comparison a pair of positions."""
    return Cost(
        flops=float(batch) * block * block,
        bytes=float(batch) * (block * (2 * token_itemsize + 16) + 18),
    )


# --- kernel


@triton.jit(do_not_specialize=["block", "mask_id", "eos_id", "top_k", "steps"])
def remask_kernel(
    # Pointers, all contiguous
    tokens_ptr,  # [batch, block]
    commit_step_ptr,  # int32 [batch, block]
    commit_confidence_ptr,  # float32 [batch, block]
    masks_left_ptr,  # int32 [batch]
    step_ptr,  # int32 [batch]
    done_ptr,  # bool [batch]
    candidate_ptr,  # int32 [batch, block]
    confidence_ptr,  # float32 [batch, block]
    error_ptr,  # int32 [1], written if HAS_ERROR
    # Dimensions
    block,
    # Scalars
    mask_id,
    eos_id,
    threshold,  # NaN: none
    top_k,
    steps,  # 0: no budget
    # Meta-parameters
    BLOCK: tl.constexpr,  # block rounded up to a power of two
    COMPARE: tl.constexpr,
    HAS_ERROR: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    if tl.load(done_ptr + request):
        return
    tokens_ptr += request * block
    commit_step_ptr += request * block
    commit_confidence_ptr += request * block
    candidate_ptr += request * block
    confidence_ptr += request * block

    position = tl.arange(0, BLOCK)
    inside = position < block
    token = tl.load(tokens_ptr + position, mask=inside, other=0)
    candidate = tl.load(candidate_ptr + position, mask=inside, other=-1)
    confidence = tl.load(confidence_ptr + position, mask=inside, other=0.0)
    masked = inside & (token == mask_id)
    usable = _usable(masked, candidate, confidence, mask_id)

    # rank: usable positions ahead by confidence, then by position. Registers cannot be sliced, so
    # the positions compared against are read again, from L1.
    rank = tl.zeros([BLOCK], tl.int32)
    for first in range(0, block, COMPARE):
        other = first + tl.arange(0, COMPARE)
        there = other < block
        other_token = tl.load(tokens_ptr + other, mask=there, other=0)
        other_candidate = tl.load(candidate_ptr + other, mask=there, other=-1)
        other_confidence = tl.load(confidence_ptr + other, mask=there, other=0.0)
        other_masked = there & (other_token == mask_id)
        other_usable = _usable(other_masked, other_candidate, other_confidence, mask_id)
        tie = other_confidence[None, :] == confidence[:, None]
        ahead = other_confidence[None, :] > confidence[:, None]
        ahead = ahead | (tie & (other[None, :] < position[:, None]))
        rank += tl.sum((ahead & other_usable[None, :]).to(tl.int32), 1)
    # No thread may overwrite a token that another still ranks against.
    tl.debug_barrier()

    step = tl.load(step_ptr + request)
    n_masked = tl.sum(masked.to(tl.int32), 0)
    quota = top_k
    if steps > 0:
        quota = tl.cdiv(n_masked, tl.maximum(steps - step, 1))
    commit = usable & ((rank < quota) | (confidence >= threshold))
    n_committed = tl.sum(commit.to(tl.int32), 0)
    if HAS_ERROR:
        if (n_masked > 0) & (n_committed == 0):
            tl.atomic_or(error_ptr, _NO_CANDIDATE)

    tl.store(tokens_ptr + position, candidate.to(token.dtype), mask=commit)
    tl.store(commit_step_ptr + position, tl.zeros([BLOCK], tl.int32) + step, mask=commit)
    tl.store(commit_confidence_ptr + position, confidence, mask=commit)

    final = tl.where(commit, candidate.to(token.dtype), token)
    first_mask = tl.min(tl.where(masked & (commit == 0), position, BLOCK), 0)
    first_eos = tl.min(tl.where(inside & (final == eos_id), position, BLOCK), 0)
    masks_left = n_masked - n_committed
    tl.store(masks_left_ptr + request, masks_left)
    tl.store(step_ptr + request, step + 1)
    tl.store(done_ptr + request, (masks_left == 0) | (first_eos < first_mask))


@triton.jit
def _usable(masked, candidate, confidence, mask_id):
    """Masked positions with a candidate to commit: an id other than the mask, not NaN-confident."""
    return masked & (candidate >= 0) & (candidate != mask_id) & (confidence == confidence)


# --- launcher


def _launch(
    tokens: Tensor,
    commit_step: Tensor,
    commit_confidence: Tensor,
    masks_left: Tensor,
    step: Tensor,
    done: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    mask_id: int,
    eos_id: int,
    threshold: float,
    top_k: int,
    steps: int,
    error: Tensor | None,
) -> None:
    batch, block = tokens.shape
    if batch == 0:
        return
    table = launch.REMASK_SCATTER[launch.arch_of(tokens.device)]
    config = launch.smallest_serving(table, block)
    remask_kernel[(batch,)](
        tokens, commit_step, commit_confidence, masks_left, step, done,
        candidate, confidence, error,
        block, mask_id, eos_id, threshold, top_k, steps,
        BLOCK=triton.next_power_of_2(block),
        COMPARE=config.compare,
        HAS_ERROR=error is not None,
        num_warps=config.num_warps,
    )  # fmt: skip


# --- op


_IMPLEMENTATIONS = {
    "triton": _launch,
    "torch": torch_backend.remask_scatter,
    "reference": reference.remask_scatter,
}


@torch.library.custom_op("dlm_kernels::remask_scatter", mutates_args=(*BlockState._fields, "error"))
def _remask_scatter_op(
    tokens: Tensor,
    commit_step: Tensor,
    commit_confidence: Tensor,
    masks_left: Tensor,
    step: Tensor,
    done: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    mask_id: int,
    eos_id: int,
    threshold: float,
    top_k: int,
    steps: int,
    error: Tensor | None,
) -> None:
    if contents_checked() and steps and bool(((step < 0) | (step >= steps) & ~done).any()):
        raise ValueError(f"state.step holds {step.tolist()}; it must be in [0, steps={steps})")
    _IMPLEMENTATIONS[backend_for(tokens)](
        tokens, commit_step, commit_confidence, masks_left, step, done, candidate, confidence,
        mask_id, eos_id, threshold, top_k, steps, error,
    )  # fmt: skip


@_remask_scatter_op.register_fake
def _(*_):
    return None


def _check_tokens(tokens: Tensor) -> None:
    check_tensor("tokens", tokens, shape=("batch", "block"), dtypes=ID_DTYPES)
    if not 1 <= tokens.shape[1] <= MAX_BLOCK:
        raise ValueError(f"tokens has a block of {tokens.shape[1]}; it must be in [1, {MAX_BLOCK}]")
    if not tokens.is_contiguous():
        raise ValueError(f"tokens has strides {tokens.stride()}; it must be contiguous")


def remask_scatter(
    state: BlockState,
    candidate: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    eos_id: int,
    threshold: float | None = None,
    top_k: int = 1,
    steps: int | None = None,
    error: Tensor | None = None,
) -> None:
    """Commit candidates into the masked positions of every block in `state`, in place.

    Args:
        state: tokens and counters of the batch; see `BlockState`. Requests that are done stay as
            they are.
        candidate: int32 [batch, block]: the id each position would take. A negative id or the mask
            id is never committed.
        confidence: float32 [batch, block]; higher is surer. NaN is never committed.
        mask_id, eos_id: token ids.
        threshold: commit every masked position with confidence >= threshold. None: none by
            threshold.
        top_k: at least so many are committed, the most confident first, ties to the lowest
            position.
        steps: split each block's masks evenly over so many steps, earlier ones taking the
            remainder; takes the place of `top_k`, and `state.step` counts.
        error: error word to set, int32 [1]; set if a block has masks and no usable candidate.

    Raises:
        TypeError, ValueError: a dtype, shape, device or range does not fit; the message names it.
    """
    if not isinstance(state, BlockState):
        raise TypeError(f"state is a {type(state).__name__}; it must be a BlockState")
    _check_tokens(state.tokens)
    batch, block = state.tokens.shape
    device = state.tokens.device
    for name, tensor, shape, dtype in (
        ("state.commit_step", state.commit_step, (batch, block), torch.int32),
        ("state.commit_confidence", state.commit_confidence, (batch, block), torch.float32),
        ("state.masks_left", state.masks_left, (batch,), torch.int32),
        ("state.step", state.step, (batch,), torch.int32),
        ("state.done", state.done, (batch,), torch.bool),
        ("candidate", candidate, (batch, block), torch.int32),
        ("confidence", confidence, (batch, block), torch.float32),
    ):
        check_tensor(name, tensor, shape=shape, dtypes=(dtype,), device=device)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")
    check_int("mask_id", mask_id, 0, 2**31 - 1)
    check_int("eos_id", eos_id, 0, 2**31 - 1)
    if mask_id == eos_id:
        raise ValueError(f"eos_id is {eos_id}, the mask id; the two must differ")
    check_int("top_k", top_k, 1, MAX_BLOCK)
    if threshold is not None:
        check_number("threshold", threshold)
        if math.isnan(threshold):
            raise ValueError("threshold is NaN; it must be a number, or None for no threshold")
    if steps is not None:
        check_int("steps", steps, 1, 2**31 - 1)
        if top_k != 1:
            raise ValueError(f"top_k is {top_k} beside steps={steps}; a budget sets top_k itself")
    error_word.check_error_word(error, device)
    _remask_scatter_op(
        *state,
        candidate,
        confidence,
        mask_id,
        eos_id,
        math.nan if threshold is None else float(threshold),
        top_k,
        steps or 0,
        error,
    )
