r"""The LM head's product and the statistics of `confidence` in one: no logit reaches memory.

With hidden states h and head W, a row's logits are x = round(W h), rounded to W's dtype as a
product that stores them would round them, and its statistics those of `confidence`.

The vocabulary is cut into chunks at fixed places. One program takes one chunk and one tile of rows:
it multiplies tile after tile of W's rows, the long side, by the rows' hidden states, takes each sum
whole and in the order of the features, and folds each tile of logits into running statistics in
registers. It stores 24 bytes a row and chunk, which the kernel of `confidence` merges. A row's bits
are therefore a function of that row and W alone, and a vocabulary split over devices at multiples
of the chunk has the bits of the whole.

Compulsory traffic: W, h and the statistics once each; FLOPs: 2 rows hidden vocab. Besides, every
tile of 32 rows reads W (from L2 beyond the first, as tiles that run together share it), every chunk
reads h, and the partials are written and read: under 2% of the bytes of float32 logits, where a
vocabulary is many chunks long.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import error_word, launch, reference, torch_backend
from .backend import backend_for
from .confidence import (
    Confidence,
    as_confidence,
    check_banned_ids,
    check_rows_and_bans,
    confidence_cost,
    empty_statistics,
    launch_merge,
    without_banned,
)
from .cost import Cost
from .linear import linear_cost
from .validate import FLOAT_DTYPES, check_bool, check_int, check_tensor, check_unit_stride

_MAX_VOCAB = 2**24  # the merge holds a row's chunks all at once

_LOG2E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_NO_ID = tl.constexpr(0x7FFFFFFF)


class ConfidencePartials(NamedTuple):
    """Statistics of each row over the chunks of one shard of the vocabulary.

    With p = exp(x - peak), over the logits x of one chunk; best and second leave out banned ids.
    Rows that were skipped hold nothing.
    """

    statistics: Tensor  # float32 [5, rows, chunks]: peak, sum p, best, second, sum p log2 p
    best_ids: Tensor  # int32 [rows, chunks], counted from the whole vocabulary's first id
    first_id: int  # of the shard
    ids: int  # in the shard
    entropy: bool  # whether the last statistic is there
    margin: bool  # whether `second` is there


def lm_head_confidence_cost(
    rows: int,
    hidden: int,
    vocab: int,
    *,
    itemsize: int,
    entropy: bool = False,
    margin: bool = False,
) -> Cost:
    """As `linear_cost` and `confidence_cost` together, without the logits' bytes."""
    product = linear_cost(rows, hidden, vocab, itemsize=itemsize)
    statistics = confidence_cost(rows, vocab, itemsize=itemsize, entropy=entropy, margin=margin)
    logits = float(rows) * vocab * itemsize
    return product + statistics + Cost(flops=0.0, bytes=-2 * logits)


# --- kernels


@triton.jit(do_not_specialize=["rows", "row_tiles", "first_id", "mask_id", "n_banned"])
def head_kernel(
    # Pointers
    hidden_ptr,  # [rows, features]
    weight_ptr,  # [vocab, features]
    tokens_ptr,  # [rows], read if HAS_TOKENS
    banned_ptr,  # [n_banned]
    partials_ptr,  # float32 [fields, rows, n_chunks]: peak, total, best, second, weighted
    best_ids_ptr,  # int32 [rows, n_chunks]
    # Dimensions
    rows,
    row_tiles,
    features,
    vocab,
    n_chunks,
    # Strides, in elements; the last dimension of each tensor is contiguous
    stride_hidden,
    stride_weight,
    # Scalars
    first_id,  # of the weight's first row
    mask_id,
    n_banned,
    # Meta-parameters
    CHUNK: tl.constexpr,  # a multiple of BLOCK_V
    BLOCK_V: tl.constexpr,  # rows of the weight a tile
    BLOCK_R: tl.constexpr,  # rows of hidden a tile
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,  # features is a whole number of tiles
    HAS_TOKENS: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MARGIN: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Tiles of rows come first, so that programs which run together read the same weights.
    pid = tl.program_id(0)
    row = pid % row_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    chunk = pid // row_tiles
    # What lies beyond the last row or id reads the last one and is never stored or counted.
    hidden_row = tl.minimum(row, rows - 1).to(tl.int64)
    if HAS_TOKENS:
        masked = tl.load(tokens_ptr + hidden_row) == mask_id
        if tl.sum(masked.to(tl.int32), 0) == 0:
            return
    begin = chunk * CHUNK
    end = tl.minimum(begin + CHUNK, vocab)
    k = tl.arange(0, BLOCK_K)
    hidden_at = hidden_ptr + hidden_row[:, None] * stride_hidden + k[None, :]

    peak = tl.full([BLOCK_R], _LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    best_id = tl.full([BLOCK_R], _NO_ID, tl.int32)
    second = best
    weighted = total
    for start in tl.range(begin, end, BLOCK_V):
        ids = start + tl.arange(0, BLOCK_V)
        weight_row = tl.minimum(ids, vocab - 1).to(tl.int64)
        weight_at = weight_ptr + weight_row[:, None] * stride_weight + k[None, :]
        acc = tl.zeros([BLOCK_V, BLOCK_R], tl.float32)
        for first in tl.range(0, features, BLOCK_K, num_stages=STAGES):
            if EVEN_K:
                hidden = tl.load(hidden_at + first)
                weight = tl.load(weight_at + first)
            else:
                inside = (first + k < features)[None, :]
                hidden = tl.load(hidden_at + first, mask=inside, other=0.0)
                weight = tl.load(weight_at + first, mask=inside, other=0.0)
            acc = tl.dot(weight, tl.trans(hidden), acc, input_precision="ieee")
        x = acc.to(weight_ptr.dtype.element_ty).to(tl.float32)
        x = tl.where((ids < vocab)[:, None], x, float("-inf"))

        # Between tiles only a strictly greater logit wins, so that ties go to the lowest id.
        choice = x
        if HAS_BANNED:
            choice = without_banned(x, (first_id + ids)[:, None], banned_ptr, n_banned)
        tile_best = tl.max(choice, 0)
        tile_id = tl.min(tl.where(choice == tile_best[None, :], ids[:, None], _NO_ID), 0)
        if WITH_MARGIN:
            others = tl.where(ids[:, None] == tile_id[None, :], float("-inf"), choice)
            runner_up = tl.maximum(second, tl.max(others, 0))
            second = tl.maximum(tl.minimum(best, tile_best), runner_up)
        better = tile_best > best
        best = tl.where(better, tile_best, best)
        best_id = tl.where(better, first_id + tile_id, best_id)

        # The logits can't be read again, so infinities are counted here: p = 1 at the peak, be it
        # infinite. Elsewhere too the exponential of zero is exactly 1.
        new_peak = tl.maximum(peak, tl.max(x, 0))
        log2_shift = tl.where(peak == new_peak, 0.0, (peak - new_peak) * _LOG2E)
        decay = tl.exp2(log2_shift)
        at_peak = x == new_peak[None, :]
        log2_p = tl.where(at_peak, 0.0, (x - new_peak[None, :]) * _LOG2E)
        p = tl.exp2(log2_p)
        if WITH_ENTROPY:
            # Where decay is 0 the shift may be infinite: finfo.min as a hidden logit, say.
            moved = tl.where(decay > 0, decay * (weighted + log2_shift * total), 0.0)
            weighted = moved + tl.sum(tl.where(p > 0, log2_p * p, 0.0), 0)
        total = total * decay + tl.sum(p, 0)
        peak = new_peak

    inside = row < rows
    n_partials = rows.to(tl.int64) * n_chunks
    at = row.to(tl.int64) * n_chunks + chunk
    tl.store(partials_ptr + at, peak, mask=inside)
    tl.store(partials_ptr + n_partials + at, total, mask=inside)
    tl.store(partials_ptr + 2 * n_partials + at, best, mask=inside)
    tl.store(best_ids_ptr + at, best_id, mask=inside)
    if WITH_MARGIN:
        tl.store(partials_ptr + 3 * n_partials + at, second, mask=inside)
    if WITH_ENTROPY:
        tl.store(partials_ptr + 4 * n_partials + at, weighted, mask=inside)


# --- launchers


def _launch(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    entropy: bool,
    margin: bool,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    partials = _launch_partials(hidden, weight, tokens, mask_id, banned, 0, entropy, margin)
    vocab = weight.shape[0]
    return launch_merge(*partials, tokens, mask_id, banned, vocab, entropy, margin, error)


def _launch_partials(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    first_id: int,
    entropy: bool,
    margin: bool,
) -> tuple[Tensor, Tensor]:
    statistics, best_ids = _empty_partials(hidden, weight)
    rows, n_chunks = best_ids.shape
    if rows == 0:
        return statistics, best_ids
    vocab, features = weight.shape
    config = _config_for(hidden)
    # Rows that don't divide into whole tiles load element by element: narrow tiles, or they spill.
    even = features % config.block_k == 0
    row_tiles = triton.cdiv(rows, config.block_r)
    n_banned = 0 if banned is None else banned.numel()
    head_kernel[(row_tiles * n_chunks,)](
        hidden, weight, tokens, banned, statistics, best_ids,
        rows, row_tiles, features, vocab, n_chunks, hidden.stride(0), weight.stride(0),
        first_id, mask_id, n_banned,
        CHUNK=config.chunk,
        BLOCK_V=config.block_v,
        BLOCK_R=config.block_r,
        BLOCK_K=config.block_k if even else 16,
        EVEN_K=even,
        HAS_TOKENS=tokens is not None,
        HAS_BANNED=n_banned > 0,
        WITH_ENTROPY=entropy,
        WITH_MARGIN=margin,
        STAGES=config.num_stages,
        num_warps=config.num_warps,
    )  # fmt: skip
    return statistics, best_ids


def _config_for(hidden: Tensor) -> launch.LmHeadLaunch:
    return launch.LM_HEAD[launch.arch_of(hidden.device)][hidden.element_size()]


def _empty_partials(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    size = (hidden.shape[0], triton.cdiv(weight.shape[0], _config_for(hidden).chunk))
    statistics = hidden.new_empty((5, *size), dtype=torch.float32)
    return statistics, hidden.new_empty(size, dtype=torch.int32)


# --- ops


_IMPLEMENTATIONS = {
    "triton": _launch,
    "torch": torch_backend.lm_head_confidence,
    "reference": reference.lm_head_confidence,
}
_PARTIALS_IMPLEMENTATIONS = {
    "triton": _launch_partials,
    "torch": torch_backend.lm_head_partials,
    "reference": reference.lm_head_partials,
}
_MERGE_IMPLEMENTATIONS = {
    "triton": launch_merge,
    "torch": torch_backend.merge_partials,
    "reference": reference.merge_partials,
}


@torch.library.custom_op("dlm_kernels::lm_head_confidence", mutates_args=("error",))
def _lm_head_confidence_op(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    entropy: bool,
    margin: bool,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_banned_ids(banned, weight.shape[0])
    implementation = _IMPLEMENTATIONS[backend_for(hidden)]
    return implementation(hidden, weight, tokens, mask_id, banned, entropy, margin, error)


@_lm_head_confidence_op.register_fake
def _(hidden, weight, tokens, mask_id, banned, entropy, margin, error):
    return empty_statistics(hidden, entropy, margin)


@torch.library.custom_op("dlm_kernels::lm_head_partials", mutates_args=())
def _lm_head_partials_op(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    first_id: int,
    entropy: bool,
    margin: bool,
) -> tuple[Tensor, Tensor]:
    implementation = _PARTIALS_IMPLEMENTATIONS[backend_for(hidden)]
    return implementation(hidden, weight, tokens, mask_id, banned, first_id, entropy, margin)


@_lm_head_partials_op.register_fake
def _(hidden, weight, tokens, mask_id, banned, first_id, entropy, margin):
    return _empty_partials(hidden, weight)


@torch.library.custom_op("dlm_kernels::merge_partials", mutates_args=("error",))
def _merge_partials_op(
    statistics: Tensor,
    best_ids: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    vocab: int,
    entropy: bool,
    margin: bool,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_banned_ids(banned, vocab)
    implementation = _MERGE_IMPLEMENTATIONS[backend_for(statistics)]
    return implementation(
        statistics, best_ids, tokens, mask_id, banned, vocab, entropy, margin, error
    )


@_merge_partials_op.register_fake
def _(statistics, best_ids, tokens, mask_id, banned, vocab, entropy, margin, error):
    return empty_statistics(best_ids, entropy, margin)


def lm_head_confidence(
    hidden: Tensor,
    weight: Tensor,
    *,
    tokens: Tensor | None = None,
    mask_id: int | None = None,
    banned: Tensor | None = None,
    entropy: bool = False,
    margin: bool = False,
    error: Tensor | None = None,
) -> Confidence:
    """What `confidence(linear(hidden, weight), ...)` gives, without logits in memory.

    Args:
        hidden: bfloat16, float16 or float32 [rows, features]; rows may lie any distance apart.
        weight: [vocab, features] in hidden's dtype; rows as there. At most 2**24 of them.
        tokens, mask_id, banned, entropy, margin, error: as for `confidence`. Of tiles of 32 rows
            without a mask the product is not computed either.

    Skipped rows, bans, ties, NaN and infinities are as there; NaN may come of the product. On CUDA
    the product's sums are taken in another order than in `linear`, so a logit may round otherwise
    and two that are that close may change places. The torch backend has the bits of the two calls,
    and never more than the logits of 32 rows.

    Raises:
        TypeError, ValueError: a dtype, shape, stride or device does not fit; the message names it.
    """
    _check_product(hidden, weight, 0)
    check_rows_and_bans(hidden.shape[0], hidden.device, tokens, mask_id, banned)
    check_bool("entropy", entropy)
    check_bool("margin", margin)
    error_word.check_error_word(error, hidden.device)
    mask_id = -1 if mask_id is None else mask_id
    results = _lm_head_confidence_op(
        hidden, weight, tokens, mask_id, banned, entropy, margin, error
    )
    return as_confidence(results, entropy, margin)


def lm_head_partials(
    hidden: Tensor,
    weight: Tensor,
    *,
    first_id: int,
    tokens: Tensor | None = None,
    mask_id: int | None = None,
    banned: Tensor | None = None,
    entropy: bool = False,
    margin: bool = False,
) -> ConfidencePartials:
    """The part of `lm_head_confidence` that one shard of the vocabulary contributes.

    Args:
        hidden: bfloat16, float16 or float32 [rows, features], the same for every shard.
        weight: [ids, features] in hidden's dtype: the head's rows from `first_id` on.
        first_id: 0 or more. If every shard but the last holds a multiple of the chunk of
            `launch.LM_HEAD`, 512 ids, `merge_partials` on CUDA gives the bits of one call with the
            whole vocabulary. Elsewhere it gives them to rounding.
        tokens, mask_id, entropy, margin: as for `confidence`, the same for every shard.
        banned: as for `confidence`: ids of the whole vocabulary, the same for every shard.

    Raises:
        TypeError, ValueError: a dtype, shape, stride or device does not fit; the message names it.
    """
    check_int("first_id", first_id, 0, _MAX_VOCAB - 1)
    _check_product(hidden, weight, first_id)
    check_rows_and_bans(hidden.shape[0], hidden.device, tokens, mask_id, banned)
    check_bool("entropy", entropy)
    check_bool("margin", margin)
    mask_id = -1 if mask_id is None else mask_id
    partials = _lm_head_partials_op(
        hidden, weight, tokens, mask_id, banned, first_id, entropy, margin
    )
    return ConfidencePartials(*partials, first_id, weight.shape[0], entropy, margin)


def merge_partials(
    partials: Sequence[ConfidencePartials],
    *,
    tokens: Tensor | None = None,
    mask_id: int | None = None,
    banned: Tensor | None = None,
    error: Tensor | None = None,
) -> Confidence:
    """The statistics of whole rows from those of the vocabulary's shards, on one device.

    Args:
        partials: of every shard, in the order of their ids. Entropy and margin are computed if the
            partials hold them.
        tokens, mask_id, banned: as given to `lm_head_partials`.
        error: error word to set, int32 [1]; see `new_error_word`.

    Raises:
        TypeError, ValueError: a shard is missing or out of place, or a dtype, shape, stride or
            device does not fit; the message names it.
    """
    vocab = _check_partials(partials)
    first = partials[0]
    check_rows_and_bans(first.best_ids.shape[0], first.best_ids.device, tokens, mask_id, banned)
    error_word.check_error_word(error, first.best_ids.device)
    statistics = torch.cat([shard.statistics for shard in partials], 2)
    best_ids = torch.cat([shard.best_ids for shard in partials], 1)
    mask_id = -1 if mask_id is None else mask_id
    results = _merge_partials_op(
        statistics, best_ids, tokens, mask_id, banned, vocab, first.entropy, first.margin, error
    )
    return as_confidence(results, first.entropy, first.margin)


def _check_product(hidden: Tensor, weight: Tensor, first_id: int) -> None:
    check_tensor("weight", weight, shape=("vocab", "features"), dtypes=FLOAT_DTYPES)
    check_unit_stride("weight", weight)
    vocab, features = weight.shape
    if min(vocab, features) == 0:
        raise ValueError(f"weight has shape {[vocab, features]}; it must not be empty")
    end = first_id + vocab
    if end > _MAX_VOCAB:
        raise ValueError(f"weight ends at id {end}; a vocabulary has at most {_MAX_VOCAB} ids")
    shape, dtypes = ("rows", features), (weight.dtype,)
    check_tensor("hidden", hidden, shape=shape, dtypes=dtypes, device=weight.device)
    check_unit_stride("hidden", hidden)


def _check_partials(partials: Sequence[ConfidencePartials]) -> int:
    """The vocabulary's size, if the shards make up one."""
    if not isinstance(partials, list | tuple):
        raise TypeError(f"partials is a {type(partials).__name__}; it must be a list")
    if not partials:
        raise ValueError("partials is empty; it must hold the ConfidencePartials of every shard")
    end, rows, device = 0, "rows", None
    for i, shard in enumerate(partials):
        name = f"partials[{i}]"
        if not isinstance(shard, ConfidencePartials):
            raise TypeError(f"{name} is a {type(shard).__name__}; it must be ConfidencePartials")
        if shard.first_id != end:
            raise ValueError(f"{name}.first_id is {shard.first_id}; it must be {end}")
        end += shard.ids
        for option in ("entropy", "margin"):
            have, first = getattr(shard, option), getattr(partials[0], option)
            if have != first:
                raise ValueError(f"{name}.{option} is {have}; partials[0].{option} is {first}")
        best_ids, statistics = shard.best_ids, shard.statistics
        shape, dtypes = (rows, "chunks"), (torch.int32,)
        check_tensor(f"{name}.best_ids", best_ids, shape=shape, dtypes=dtypes, device=device)
        (rows, chunks), device = best_ids.shape, best_ids.device
        shape, dtypes = (5, rows, chunks), (torch.float32,)
        check_tensor(f"{name}.statistics", statistics, shape=shape, dtypes=dtypes, device=device)
    return end
