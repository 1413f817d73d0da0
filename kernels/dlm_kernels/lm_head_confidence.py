r"""The LM head's product and the statistics of `confidence` in one: no logit reaches memory.

With hidden states h and head W, a row's logits are x = round(W h), rounded to W's dtype as a
product that stores them would round them, and its statistics those of `confidence`.

The vocabulary is cut into chunks at fixed places. One program takes one chunk and one tile of rows:
it multiplies tile after tile of W's rows by the rows' hidden states, takes each sum whole and in
the order of the features, and folds each tile of logits into running statistics in registers. It
stores 24 bytes a row and chunk, which the kernel of `confidence` merges.

A tile holds 16 to 128 rows, by how many there are, and none of the sizes changes a row's bits: a
logit is one chain of products in the order of the features, tiles of ids are cut alike, a maximum
has no order, and sums over ids are taken in halves. A row's bits are therefore a function of that
row and W alone, and a vocabulary split over devices at multiples of the chunk has the bits of the
whole. Under numerics "fast" many rows take torch's product instead, a part of the vocabulary at a
time, and each part's logits the first kernel of `confidence` while they are in L2.

Compulsory traffic: W, h and the statistics once each; FLOPs: 2 rows hidden vocab. Besides, every
tile of rows reads W, from L2 beyond the first as tiles that run together share it, every tile of
ids reads h from L2, and the partials are written and read: under 2% of the bytes of float32 logits,
where a vocabulary is many chunks long. Predicted for 2048 rows of the 8B model on an H200, at 6
TB/s from L2 and 790 TFLOP/s: 86 GB and 14.3 ms in tiles of 32 rows, 34 GB and 5.7 ms in tiles of
128, where the product takes 2.8 ms and W 0.25 ms from memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, torch_backend
from .confidence import (
    Confidence,
    Selection,
    Statistics,
    as_confidence,
    check_banned_ids,
    checked_selection,
    chunks_of,
    confidence_cost,
    empty_partials,
    empty_statistics,
    launch_chunks,
    launch_merge,
    without_banned,
)
from .cost import Cost
from .linear import linear_cost
from .op import Op
from .validate import (
    FLOAT_DTYPES,
    NUMERICS,
    check_int,
    check_tensor,
    check_unit_stride,
)

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


@triton.jit
def _sum_over_ids(x, BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr):
    """x [BLOCK_V, BLOCK_R] summed over ids, in halves.

    Which thread holds which id depends on the tile, and with it the order of `tl.sum` over many;
    the sum of two is the same in either order.
    """
    for i in tl.static_range(1, 8):
        if BLOCK_V >> i > 0:
            x = tl.sum(tl.reshape(x, [2, BLOCK_V >> i, BLOCK_R]), 0)
    return tl.reshape(x, [BLOCK_R])


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
    # The product's long side: that of ids, or from 64 rows on, which fill it, that of rows. Then a
    # thread holds few rows, and little of their statistics.
    ROWS_LONG: tl.constexpr = BLOCK_R >= 64
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
        if ROWS_LONG:
            acc = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
        else:
            acc = tl.zeros([BLOCK_V, BLOCK_R], tl.float32)
        for first in tl.range(0, features, BLOCK_K, num_stages=STAGES):
            if EVEN_K:
                hidden = tl.load(hidden_at + first)
                weight = tl.load(weight_at + first)
            else:
                inside = (first + k < features)[None, :]
                hidden = tl.load(hidden_at + first, mask=inside, other=0.0)
                weight = tl.load(weight_at + first, mask=inside, other=0.0)
            if ROWS_LONG:
                acc = tl.dot(hidden, tl.trans(weight), acc, input_precision="ieee")
            else:
                acc = tl.dot(weight, tl.trans(hidden), acc, input_precision="ieee")
        if ROWS_LONG:
            acc = tl.trans(acc)
        # As tl.where after the rounding, but of float16 the compiler would round before the product
        # is there, and make each matrix instruction wait.
        bound = tl.where(ids < vocab, float("inf"), float("-inf"))
        x = tl.minimum(acc, bound[:, None], propagate_nan=tl.PropagateNan.ALL)
        x = x.to(weight_ptr.dtype.element_ty).to(tl.float32)

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
            terms = tl.where(p > 0, log2_p * p, 0.0)
            weighted = moved + _sum_over_ids(terms, BLOCK_V, BLOCK_R)
        total = total * decay + _sum_over_ids(p, BLOCK_V, BLOCK_R)
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


class LmHeadConfidenceCall(NamedTuple):
    """Arguments of the op; see `lm_head_confidence`."""

    hidden: Tensor
    weight: Tensor
    numerics: str
    selection: Selection


class LmHeadPartialsCall(NamedTuple):
    """Arguments of the op; see `lm_head_partials`."""

    hidden: Tensor
    weight: Tensor
    first_id: int
    selection: Selection


class MergePartialsCall(NamedTuple):
    """Arguments of the op; see `merge_partials`."""

    statistics: Tensor
    best_ids: Tensor
    vocab: int
    selection: Selection


def _launch(call: LmHeadConfidenceCall) -> Statistics:
    hidden, weight, numerics, selection = call
    if numerics == "fast" and len(hidden) > _config_for(hidden).fused_rows:
        partials = _library_partials(hidden, weight, selection)
    else:
        partials = _launch_partials(LmHeadPartialsCall(hidden, weight, 0, selection))
    return launch_merge(*partials, weight.shape[0], selection)


def _launch_partials(call: LmHeadPartialsCall) -> tuple[Tensor, Tensor]:
    hidden, weight, first_id, selection = call
    statistics, best_ids = _empty_partials(call)
    rows, n_chunks = best_ids.shape
    if rows == 0:
        return statistics, best_ids
    vocab, features = weight.shape
    config = _config_for(hidden)
    tile = launch.tile_serving(config.tiles, rows)
    # Rows that don't divide into whole tiles load element by element: few at a time, or they spill.
    even = features % config.block_k == 0
    row_tiles = triton.cdiv(rows, tile.block_r)
    head_kernel[(row_tiles * n_chunks,)](
        hidden, weight, selection.tokens, selection.banned, statistics, best_ids,
        rows, row_tiles, features, vocab, n_chunks, hidden.stride(0), weight.stride(0),
        first_id, selection.mask_id, selection.n_banned,
        CHUNK=config.chunk,
        BLOCK_V=config.block_v,
        BLOCK_R=tile.block_r,
        BLOCK_K=config.block_k if even else 16,
        EVEN_K=even,
        HAS_TOKENS=selection.tokens is not None,
        HAS_BANNED=selection.n_banned > 0,
        WITH_ENTROPY=selection.entropy,
        WITH_MARGIN=selection.margin,
        STAGES=tile.num_stages,
        num_warps=tile.num_warps,
        enable_fp_fusion=False,  # where products and sums fuse could depend on the tile
    )  # fmt: skip
    return statistics, best_ids


def _library_partials(
    hidden: Tensor, weight: Tensor, selection: Selection
) -> tuple[Tensor, Tensor]:
    """As `_launch_partials`, of torch's product, a part of the vocabulary after the other.

    The weight is read once, and each part's logits go through one buffer small enough for L2.
    """
    rows, vocab = len(hidden), len(weight)
    wanted = _config_for(hidden).library_logits // rows // 128 * 128
    ids = min(max(wanted, 128), vocab)
    columns = [chunks_of(hidden, min(ids, vocab - first)) for first in range(0, vocab, ids)]
    partials = empty_partials(hidden, rows, sum(columns))
    logits = hidden.new_empty(rows * ids)
    for i, first in enumerate(range(0, vocab, ids)):
        part = weight[first : first + ids]
        of_part = logits[: rows * len(part)].view(rows, len(part))
        torch.mm(hidden, part.T, out=of_part)
        launch_chunks(of_part, *partials, first, i * columns[0], selection)
    return partials


def _config_for(hidden: Tensor) -> launch.LmHeadLaunch:
    return launch.LM_HEAD[launch.arch_of(hidden.device)][hidden.element_size()]


def _empty_partials(call: LmHeadPartialsCall) -> tuple[Tensor, Tensor]:
    chunks = triton.cdiv(call.weight.shape[0], _config_for(call.hidden).chunk)
    return empty_partials(call.hidden, call.hidden.shape[0], chunks)


# --- ops


def _fake(call: LmHeadConfidenceCall) -> Statistics:
    return empty_statistics(call.hidden, call.selection)


lm_head_confidence_op = Op(
    LmHeadConfidenceCall,
    name="lm_head_confidence",
    fake=_fake,
    check=lambda call: check_banned_ids(call.selection, call.weight.shape[0]),
    mutated=("selection.error",),
    triton=_launch,
    torch=torch_backend.lm_head_confidence,
)

# Its results are the first two fields of ConfidencePartials.
lm_head_partials_op = Op(
    LmHeadPartialsCall,
    name="lm_head_partials",
    fake=_empty_partials,
    triton=_launch_partials,
    torch=torch_backend.lm_head_partials,
)


def _fake_merge(call: MergePartialsCall) -> Statistics:
    return empty_statistics(call.best_ids, call.selection)


merge_partials_op = Op(
    MergePartialsCall,
    name="merge_partials",
    fake=_fake_merge,
    check=lambda call: check_banned_ids(call.selection, call.vocab),
    mutated=("selection.error",),
    triton=lambda call: launch_merge(*call),
    torch=torch_backend.merge_partials,
)


def lm_head_confidence(
    hidden: Tensor,
    weight: Tensor,
    *,
    tokens: Tensor | None = None,
    mask_id: int | None = None,
    banned: Tensor | None = None,
    entropy: bool = False,
    margin: bool = False,
    numerics: str = "batch_invariant",
    error: Tensor | None = None,
) -> Confidence:
    """What `confidence(linear(hidden, weight), ...)` gives, without logits [rows, vocab] in memory.

    Args:
        hidden: bfloat16, float16 or float32 [rows, features]; rows may lie any distance apart.
        weight: [vocab, features] in hidden's dtype; rows as there. At most 2**24 of them.
        tokens, mask_id, banned, entropy, margin, error: as for `confidence`. Of a tile of rows
            without a mask, 16 to 128 of them, the product is not computed either.
        numerics: "batch_invariant" (a row's bits depend on that row and the weight alone; on a CPU
            at a fixed number of threads), or "fast", which for more rows than `launch.LM_HEAD` says
            takes torch's product, its logits 16 MiB at a time.

    Skipped rows, bans, ties, NaN and infinities are as there; NaN may come of the product. On CUDA
    the product's sums are taken in another order than in `linear`, so a logit may round otherwise
    and two that are that close may change places. The torch backend has the bits of the two calls,
    and holds at most 2**25 logits at a time, or those of 32 rows.

    Raises:
        TypeError, ValueError: a dtype, shape, stride or device does not fit; the message names it.
    """
    _check_product(hidden, weight, 0)
    selection = checked_selection(hidden, tokens, mask_id, banned, entropy, margin, error)
    if numerics not in NUMERICS:
        raise ValueError(f"numerics is {numerics!r}; it must be one of {', '.join(NUMERICS)}")
    results = lm_head_confidence_op(LmHeadConfidenceCall(hidden, weight, numerics, selection))
    return as_confidence(results, selection)


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
    selection = checked_selection(hidden, tokens, mask_id, banned, entropy, margin, None)
    partials = lm_head_partials_op(LmHeadPartialsCall(hidden, weight, first_id, selection))
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
    asked = (tokens, mask_id, banned, first.entropy, first.margin, error)
    selection = checked_selection(first.best_ids, *asked)
    statistics = torch.cat([shard.statistics for shard in partials], 2)
    best_ids = torch.cat([shard.best_ids for shard in partials], 1)
    results = merge_partials_op(MergePartialsCall(statistics, best_ids, vocab, selection))
    return as_confidence(results, selection)


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
