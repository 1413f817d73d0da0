r"""Statistics of logit rows in one read: the token a row would commit, and how sure it is.

For a row x over the vocabulary, with E the ids that may be chosen (all but the banned ones):

    token       = argmax over E of x                      (ties: the lowest id)
    logsumexp   = ln sum exp(x)                           (over all ids, banned ones too)
    probability = exp(x[token] - logsumexp)
    entropy     = -sum p ln p,  p = exp(x - logsumexp)    (nats)
    margin      = probability - probability of the second best id of E

The vocabulary is cut into chunks at fixed places and one program reads one chunk of one row,
keeping per lane (max, sum of exponentials, best id). These merge associatively; a second kernel
merges a row's chunks in their order. A row's bits are therefore a function of that row alone.

Compulsory traffic: each logit once. One exponential a logit; everything else is smaller by the
chunk length or by the vocabulary.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import error_word, launch, torch_backend
from .cost import Cost
from .op import Op
from .validate import (
    FLOAT_DTYPES,
    ID_DTYPES,
    check_bool,
    check_int,
    check_tensor,
    check_unit_stride,
)

MAX_BANNED = 16

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_NO_ID = tl.constexpr(0x7FFFFFFF)
_NAN_LOGITS = tl.constexpr(error_word.NAN_LOGITS)
_ID_OUT_OF_RANGE = tl.constexpr(error_word.ID_OUT_OF_RANGE)


class Confidence(NamedTuple):
    """Per-row statistics; every tensor is [rows] on the logits' device."""

    token: Tensor  # int32; -1 where the row was skipped or has no valid choice
    probability: Tensor  # float32
    logsumexp: Tensor  # float32, natural log
    entropy: Tensor | None  # float32, nats; None unless asked for
    margin: Tensor | None  # float32; None unless asked for


def confidence_cost(
    rows: int, vocab: int, *, itemsize: int, entropy: bool = False, margin: bool = False
) -> Cost:
    """Logits read once, 3 to 5 statistics of 4 bytes written a row. Per logit: compare, subtract,
    scale, add; two more for the entropy's weighted sum, one for the runner-up."""
    statistics = 3 + entropy + margin
    return Cost(
        flops=float(rows) * vocab * (4 + 2 * entropy + margin),
        bytes=float(rows) * (vocab * itemsize + 4 * statistics),
        exps=float(rows) * vocab,
    )


# --- kernels


@triton.jit
def _load_tile(logits_ptr, start, end, offsets, SPAN: tl.constexpr, MASKED: tl.constexpr):
    """The logits at start + offsets and SPAN further on, as float32 [LANES, VECTOR, 2].

    Two 16-byte loads a thread, joined so that one running maximum serves both. What lies at or
    behind `end` reads as -inf if MASKED.
    """
    ids = start + offsets
    if MASKED:
        near = tl.load(logits_ptr + ids, mask=ids < end, other=float("-inf"))
        far = tl.load(logits_ptr + ids + SPAN, mask=ids + SPAN < end, other=float("-inf"))
    else:
        near = tl.load(logits_ptr + ids)
        far = tl.load(logits_ptr + ids + SPAN)
    return tl.join(near, far).to(tl.float32), tl.join(ids, ids + SPAN)


@triton.jit
def _over_lane(x, combine: tl.constexpr):
    """Reduce [LANES, VECTOR, 2] to [LANES] inside each thread: "max" or "sum"."""
    if combine == "max":
        return tl.max(tl.max(x, 2), 1)
    return tl.sum(tl.sum(x, 2), 1)


@triton.jit
def without_banned(x, ids, banned_ptr, n_banned):
    for i in range(n_banned):
        x = tl.where(ids == tl.load(banned_ptr + i), float("-inf"), x)
    return x


@triton.jit
def _fold_tile(
    logits_ptr,
    start,
    end,
    offsets,
    banned_ptr,
    n_banned,
    peak,
    total,
    best,
    best_start,
    second,
    weighted,
    SPAN: tl.constexpr,
    MASKED: tl.constexpr,
    BANNED: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MARGIN: tl.constexpr,
):
    """Fold one tile of logits, those before `end`, into the lanes' running statistics."""
    x, ids = _load_tile(logits_ptr, start, end, offsets, SPAN, MASKED)
    tile_peak = _over_lane(x, "max")
    choice = x
    tile_best = tile_peak
    if BANNED:
        choice = without_banned(x, ids, banned_ptr, n_banned)
        tile_best = _over_lane(choice, "max")
    if WITH_MARGIN:
        at_best = choice == tile_best[:, None, None]
        ties = _over_lane(at_best.to(tl.int32), "sum")
        below = tl.where(at_best, float("-inf"), choice)
        tile_second = tl.where(ties > 1, tile_best, _over_lane(below, "max"))
        second = tl.maximum(tl.minimum(best, tile_best), tl.maximum(second, tile_second))
    better = tile_best > best
    best = tl.where(better, tile_best, best)
    best_start = tl.where(better, start, best_start)

    # Subtract before scaling: x - peak is exact near the peak, where the terms are large.
    new_peak = tl.maximum(peak, tile_peak)
    log2_shift = (peak - new_peak) * _LOG2E
    decay = tl.exp2(log2_shift)
    log2_p = (x - new_peak[:, None, None]) * _LOG2E
    p = tl.exp2(log2_p)
    if WITH_ENTROPY:
        # Where decay is 0 the shift may be infinite: finfo.min as a hidden logit, say.
        moved = tl.where(decay > 0, decay * (weighted + log2_shift * total), 0.0)
        weighted = moved + _over_lane(tl.where(p > 0, log2_p * p, 0.0), "sum")
    total = total * decay + _over_lane(p, "sum")
    return new_peak, total, best, best_start, second, weighted


@triton.jit
def _fold_chunk(
    logits_ptr,
    begin,
    end,
    offsets,
    banned_ptr,
    n_banned,
    LANES: tl.constexpr,
    TILE: tl.constexpr,
    BANNED: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MARGIN: tl.constexpr,
    STAGES: tl.constexpr,
):
    peak = tl.full([LANES], _LOWEST, tl.float32)
    total = tl.zeros([LANES], tl.float32)
    best = tl.full([LANES], float("-inf"), tl.float32)
    best_start = tl.zeros([LANES], tl.int32) + begin
    second = best
    weighted = total
    whole = begin + (end - begin) // TILE * TILE
    for start in tl.range(begin, whole, TILE, num_stages=STAGES):
        peak, total, best, best_start, second, weighted = _fold_tile(
            logits_ptr, start, end, offsets, banned_ptr, n_banned,
            peak, total, best, best_start, second, weighted,
            TILE // 2, False, BANNED, WITH_ENTROPY, WITH_MARGIN,
        )  # fmt: skip
    if whole < end:
        peak, total, best, best_start, second, weighted = _fold_tile(
            logits_ptr, whole, end, offsets, banned_ptr, n_banned,
            peak, total, best, best_start, second, weighted,
            TILE // 2, True, BANNED, WITH_ENTROPY, WITH_MARGIN,
        )  # fmt: skip
    return peak, total, best, best_start, second, weighted


@triton.jit
def _decay(peak, new_peak):
    """exp(peak - new_peak), 1 where they are equal, infinities included."""
    return tl.where(peak == new_peak, 1.0, tl.exp2((peak - new_peak) * _LOG2E))


@triton.jit(do_not_specialize=["n_partials", "first_column", "mask_id", "n_banned"])
def chunk_kernel(
    # Pointers
    logits_ptr,  # [rows, end_id - first_id]
    tokens_ptr,  # [rows], read if HAS_TOKENS
    banned_ptr,  # [n_banned]
    partials_ptr,  # float32 [fields, rows, columns]: peak, total, best, second, weighted
    best_ids_ptr,  # int32 [rows, columns]
    # Dimensions and strides
    first_id,  # of the vocabulary's ids that the logits are of
    end_id,
    n_chunks,
    columns,  # chunks of a whole row
    n_partials,  # rows * columns
    stride_row,
    # Scalars
    first_column,  # that of the first chunk here
    mask_id,
    n_banned,
    # Meta-parameters
    CHUNK: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_TOKENS: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MARGIN: tl.constexpr,
    STAGES: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    row = pid // n_chunks
    if HAS_TOKENS:
        if tl.load(tokens_ptr + row) != mask_id:
            return
    chunk = (pid % n_chunks).to(tl.int32)
    logits_ptr += row * stride_row - first_id
    begin = first_id + chunk * CHUNK
    end = tl.minimum(begin + CHUNK, end_id)

    # A lane is a thread and a vector its 16-byte load, so that lanes stay inside their thread.
    SPAN: tl.constexpr = LANES * VECTOR
    TILE: tl.constexpr = 2 * SPAN
    offsets = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]

    # Bans touch few chunks, so all others run the loop without the comparison.
    holds_banned = False
    if HAS_BANNED:
        for i in range(n_banned):
            banned = tl.load(banned_ptr + i)
            holds_banned = holds_banned | ((banned >= begin) & (banned < end))
    if holds_banned:
        peak, total, best, best_start, second, weighted = _fold_chunk(
            logits_ptr, begin, end, offsets, banned_ptr, n_banned,
            LANES, TILE, HAS_BANNED, WITH_ENTROPY, WITH_MARGIN, STAGES,
        )  # fmt: skip
    else:
        peak, total, best, best_start, second, weighted = _fold_chunk(
            logits_ptr, begin, end, offsets, banned_ptr, n_banned,
            LANES, TILE, False, WITH_ENTROPY, WITH_MARGIN, STAGES,
        )  # fmt: skip

    # Merge the lanes.
    chunk_peak = tl.max(peak, 0)
    decay = _decay(peak, chunk_peak)
    chunk_total = tl.sum(total * decay, 0)
    if chunk_total != chunk_total:
        # NaN, or +inf minus itself. With a peak of +inf the total counts the infinities.
        infinities = 0
        nans = 0
        for start in range(begin, end, TILE):
            x, _ = _load_tile(logits_ptr, start, end, offsets, SPAN, True)
            infinities += tl.sum(_over_lane((x == float("inf")).to(tl.int32), "sum"), 0)
            nans += tl.sum(_over_lane((x != x).to(tl.int32), "sum"), 0)
        chunk_total = tl.where(nans > 0, float("nan"), infinities.to(tl.float32))
    at = row * columns + first_column + chunk
    tl.store(partials_ptr + at, chunk_peak)
    tl.store(partials_ptr + n_partials + at, chunk_total)

    # A lane remembers where its best tile starts; the id is found by reading that tile's vectors
    # again in the winning lanes alone.
    chunk_best = tl.max(best, 0)
    lane_end = tl.where(best == chunk_best, end, begin)[:, None]
    x, ids = _load_tile(logits_ptr, best_start[:, None], lane_end, offsets, SPAN, True)
    if HAS_BANNED:
        x = without_banned(x, ids, banned_ptr, n_banned)
    found = (x == chunk_best) & (ids < lane_end[:, :, None])
    best_id = tl.min(tl.min(tl.min(tl.where(found, ids, _NO_ID), 2), 1), 0)
    tl.store(partials_ptr + 2 * n_partials + at, chunk_best)
    tl.store(best_ids_ptr + at, best_id)

    if WITH_MARGIN:
        ties = tl.sum((best == chunk_best).to(tl.int32), 0)
        below = tl.where(best == chunk_best, second, best)
        chunk_second = tl.where(ties > 1, chunk_best, tl.max(below, 0))
        tl.store(partials_ptr + 3 * n_partials + at, chunk_second)
    if WITH_ENTROPY:
        shift = tl.where(decay > 0, (peak - chunk_peak) * _LOG2E * total, 0.0)
        chunk_weighted = tl.sum(decay * (weighted + shift), 0)
        tl.store(partials_ptr + 4 * n_partials + at, chunk_weighted)


@triton.jit(do_not_specialize=["n_partials", "mask_id", "n_banned"])
def merge_kernel(
    # Pointers
    partials_ptr,  # float32 [fields, rows, n_chunks]
    best_ids_ptr,  # int32 [rows, n_chunks]
    tokens_ptr,  # [rows], read if HAS_TOKENS
    banned_ptr,  # [n_banned]
    token_ptr,  # int32 [rows]
    probability_ptr,  # float32 [rows], as the next three
    logsumexp_ptr,
    entropy_ptr,
    margin_ptr,
    error_ptr,  # int32 [1], written if HAS_ERROR
    # Dimensions
    vocab,
    n_chunks,
    n_partials,
    # Scalars
    mask_id,
    n_banned,
    # Meta-parameters
    CHUNKS: tl.constexpr,  # n_chunks rounded up to a power of two
    HAS_TOKENS: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    HAS_ERROR: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MARGIN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if HAS_ERROR and HAS_BANNED:
        if row == 0:
            for i in range(n_banned):
                banned = tl.load(banned_ptr + i)
                if (banned < 0) | (banned >= vocab):
                    tl.atomic_or(error_ptr, _ID_OUT_OF_RANGE)
    if HAS_TOKENS:
        if tl.load(tokens_ptr + row) != mask_id:
            tl.store(token_ptr + row, -1)
            tl.store(probability_ptr + row, 0.0)
            tl.store(logsumexp_ptr + row, 0.0)
            if WITH_ENTROPY:
                tl.store(entropy_ptr + row, 0.0)
            if WITH_MARGIN:
                tl.store(margin_ptr + row, 0.0)
            return

    chunk = tl.arange(0, CHUNKS)
    here = chunk < n_chunks
    at = row * n_chunks + chunk
    peaks = tl.load(partials_ptr + at, mask=here, other=_LOWEST)
    totals = tl.load(partials_ptr + n_partials + at, mask=here, other=0.0)
    bests = tl.load(partials_ptr + 2 * n_partials + at, mask=here, other=float("-inf"))
    ids = tl.load(best_ids_ptr + at, mask=here, other=_NO_ID)

    peak = tl.max(peaks, 0)
    decays = _decay(peaks, peak)
    total = tl.sum(totals * decays, 0)
    best = tl.max(bests, 0)
    token = tl.min(tl.where(bests == best, ids, _NO_ID), 0)

    nan = total != total
    infinite = peak == float("inf")
    certain = infinite & (total == 1.0) & (best == float("inf"))
    valid = tl.where(infinite, certain, best > float("-inf")) & (nan == 0)
    if HAS_ERROR:
        if nan:
            tl.atomic_or(error_ptr, _NAN_LOGITS)

    probability = tl.where(certain, 1.0, tl.exp2((best - peak) * _LOG2E) / total)
    tl.store(token_ptr + row, tl.where(valid, token, -1))
    tl.store(probability_ptr + row, tl.where(valid, probability, float("nan")))
    tl.store(logsumexp_ptr + row, tl.where(valid, peak + tl.log2(total) * _LN2, float("nan")))
    if WITH_ENTROPY:
        weighteds = tl.load(partials_ptr + 4 * n_partials + at, mask=here, other=0.0)
        shifts = tl.where(decays > 0, (peaks - peak) * _LOG2E * totals, 0.0)
        weighted = tl.sum(decays * (weighteds + shifts), 0)
        entropy = tl.where(certain, 0.0, _LN2 * (tl.log2(total) - weighted / total))
        tl.store(entropy_ptr + row, tl.where(valid, entropy, float("nan")))
    if WITH_MARGIN:
        seconds = tl.load(partials_ptr + 3 * n_partials + at, mask=here, other=float("-inf"))
        ties = tl.sum((bests == best).to(tl.int32), 0)
        below = tl.max(tl.where(bests == best, seconds, bests), 0)
        second = tl.where(ties > 1, best, below)
        margin = probability - tl.exp2((second - peak) * _LOG2E) / total
        tl.store(margin_ptr + row, tl.where(valid, tl.where(certain, 1.0, margin), float("nan")))


# --- launcher


class Selection(NamedTuple):
    """What is asked of every row; see `confidence`."""

    tokens: Tensor | None  # None: every row counts
    mask_id: int  # -1 without tokens
    banned: Tensor | None
    entropy: bool
    margin: bool
    error: Tensor | None

    @property
    def n_banned(self) -> int:
        return 0 if self.banned is None else self.banned.numel()


# token, probability, logsumexp, entropy and margin of each row, the last two empty if not asked for
Statistics = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class ConfidenceCall(NamedTuple):
    """Arguments of the op; see `confidence`."""

    logits: Tensor
    selection: Selection


def _launch(call: ConfidenceCall) -> Statistics:
    logits, selection = call
    rows, vocab = logits.shape
    if rows == 0:
        return empty_statistics(logits, selection)
    partials = empty_partials(logits, rows, chunks_of(logits, vocab))
    launch_chunks(logits, *partials, 0, 0, selection)
    return launch_merge(*partials, vocab, selection)


def chunks_of(like: Tensor, ids: int) -> int:
    """Chunks that this many logits of a row are cut into on the device of `like`."""
    return triton.cdiv(ids, launch.CONFIDENCE[launch.arch_of(like.device)].chunk)


def empty_partials(like: Tensor, rows: int, chunks: int) -> tuple[Tensor, Tensor]:
    """Room for what `launch_merge` merges."""
    statistics = like.new_empty((5, rows, chunks), dtype=torch.float32)
    return statistics, like.new_empty((rows, chunks), dtype=torch.int32)


def launch_chunks(
    logits: Tensor,
    partials: Tensor,
    best_ids: Tensor,
    first_id: int,
    first_column: int,
    selection: Selection,
) -> None:
    """Statistics of logits [rows, ids] of the ids from `first_id` on, in chunks.

    They go into the columns from `first_column` on of `empty_partials`.
    """
    rows, ids = logits.shape
    columns = best_ids.shape[1]
    config = launch.CONFIDENCE[launch.arch_of(logits.device)]
    n_chunks = chunks_of(logits, ids)
    chunk_kernel[(rows * n_chunks,)](
        logits, selection.tokens, selection.banned, partials, best_ids,
        first_id, first_id + ids, n_chunks, columns, rows * columns, logits.stride(0),
        first_column, selection.mask_id, selection.n_banned,
        CHUNK=config.chunk,
        LANES=32 * config.num_warps,
        VECTOR=16 // logits.element_size(),
        HAS_TOKENS=selection.tokens is not None,
        HAS_BANNED=selection.n_banned > 0,
        WITH_ENTROPY=selection.entropy,
        WITH_MARGIN=selection.margin,
        STAGES=config.num_stages,
        num_warps=config.num_warps,
    )  # fmt: skip


def launch_merge(
    partials: Tensor, best_ids: Tensor, vocab: int, selection: Selection
) -> Statistics:
    """Merge a row's chunks: partials float32 [5, rows, n_chunks], best_ids int32 [rows, n_chunks].

    Both are contiguous. `chunk_kernel` says what they hold.
    """
    rows, n_chunks = best_ids.shape
    results = empty_statistics(best_ids, selection)
    if rows == 0:
        return results
    chunks = triton.next_power_of_2(n_chunks)
    merge_kernel[(rows,)](
        partials, best_ids, selection.tokens, selection.banned, *results, selection.error,
        vocab, n_chunks, rows * n_chunks, selection.mask_id, selection.n_banned,
        CHUNKS=chunks,
        HAS_TOKENS=selection.tokens is not None,
        HAS_BANNED=selection.n_banned > 0,
        HAS_ERROR=selection.error is not None,
        WITH_ENTROPY=selection.entropy,
        WITH_MARGIN=selection.margin,
        num_warps=min(max(chunks // 256, 1), 16),
    )  # fmt: skip
    return results


def empty_statistics(like: Tensor, selection: Selection) -> Statistics:
    """Room for what is asked of each row of `like`."""
    rows = like.shape[0]
    sizes = (rows, rows, rows if selection.entropy else 0, rows if selection.margin else 0)
    floats = (like.new_empty(size, dtype=torch.float32) for size in sizes)
    return like.new_empty(rows, dtype=torch.int32), *floats


# --- op


def _fake(call: ConfidenceCall) -> Statistics:
    return empty_statistics(*call)


confidence_op = Op(
    ConfidenceCall,
    name="confidence",
    fake=_fake,
    check=lambda call: check_banned_ids(call.selection, call.logits.shape[1]),
    mutated=("selection.error",),
    triton=_launch,
    torch=torch_backend.confidence,
)


def confidence(
    logits: Tensor,
    *,
    tokens: Tensor | None = None,
    mask_id: int | None = None,
    banned: Tensor | None = None,
    entropy: bool = False,
    margin: bool = False,
    error: Tensor | None = None,
) -> Confidence:
    """The token each row of logits would commit, its probability and the row's log-sum-exp.

    Args:
        logits: bfloat16, float16 or float32 [rows, vocab]; rows may lie any distance apart.
        tokens: int32 or int64 [rows]. Rows whose token is not `mask_id` are skipped on the device:
            token -1, statistics 0. Needs `mask_id`. Default: every row counts.
        mask_id: the mask token's id.
        banned: int32 [n], n <= 16: ids that are never chosen but stay in the sums.
        entropy, margin: also compute these; see `Confidence`.
        error: error word to set, int32 [1]; see `new_error_word`.

    A row with NaN yields token -1, statistics NaN, and sets the error word. A row without a finite
    choice, or with +inf, yields token -1 and NaN; exactly one +inf at an id that is not banned
    yields that id with probability 1.

    Raises:
        TypeError, ValueError: a dtype, shape, stride or device does not fit; the message names it.
    """
    check_tensor("logits", logits, shape=("rows", "vocab"), dtypes=FLOAT_DTYPES)
    check_unit_stride("logits", logits)
    rows, vocab = logits.shape
    if not 1 <= vocab < 2**30:
        raise ValueError(f"logits has a vocabulary of {vocab}; it must be in [1, 2**30)")
    selection = checked_selection(logits, tokens, mask_id, banned, entropy, margin, error)
    return as_confidence(confidence_op(ConfidenceCall(logits, selection)), selection)


def checked_selection(
    like: Tensor,
    tokens: Tensor | None,
    mask_id: int | None,
    banned: Tensor | None,
    entropy: bool,
    margin: bool,
    error: Tensor | None,
) -> Selection:
    """What is asked of each row of `like`; an error names what does not fit."""
    rows, device = like.shape[0], like.device
    if (tokens is None) != (mask_id is None):
        missing = "tokens" if tokens is None else "mask_id"
        raise ValueError(f"{missing} is None; tokens and mask_id go together")
    if tokens is not None:
        check_tensor("tokens", tokens, shape=(rows,), dtypes=ID_DTYPES, device=device)
        check_unit_stride("tokens", tokens)
        check_int("mask_id", mask_id, 0, 2**31 - 1)
    if banned is not None:
        check_tensor("banned", banned, shape=("n",), dtypes=(torch.int32,), device=device)
        check_unit_stride("banned", banned)
        if banned.numel() > MAX_BANNED:
            raise ValueError(f"banned holds {banned.numel()} ids; at most {MAX_BANNED} are allowed")
    check_bool("entropy", entropy)
    check_bool("margin", margin)
    error_word.check_error_word(error, device)
    return Selection(tokens, -1 if mask_id is None else mask_id, banned, entropy, margin, error)


def check_banned_ids(selection: Selection, vocab: int) -> None:
    """Raise unless every banned id is in the vocabulary; reads the device."""
    if selection.banned is not None:
        outside = [i for i in selection.banned.tolist() if not 0 <= i < vocab]
        if outside:
            raise ValueError(f"banned holds {outside[0]}; ids must be in [0, {vocab})")


def as_confidence(results: Statistics, selection: Selection) -> Confidence:
    """What an op returned, None in the place of what was not asked for."""
    token, probability, logsumexp, row_entropy, row_margin = results
    return Confidence(
        token,
        probability,
        logsumexp,
        row_entropy if selection.entropy else None,
        row_margin if selection.margin else None,
    )
