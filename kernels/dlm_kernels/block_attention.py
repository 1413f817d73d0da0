r"""Attention of one block over its context and itself, split over the context and merged.

For query i of the block, with keys K and values V (grouped-query heads share them),

    out_i = softmax(scale * q_i K^T) V        lse_i = ln sum_j exp(scale * q_i . k_j)

- bidirectional (k and v given): the keys are [cached context | k], none of them hidden. The fresh
  k and v are read where they are: nothing is written to the cache or concatenated.
- causal (k and v absent): the block's keys already lie in the cache behind the context, and query
  i sees the context and the block's keys 0..i.
- draft groups (quadratic self-speculation; k and v given): the block is `lead` causal rows and then
  groups of [slot 0 | masks]. The keys of the causal rows and of every slot 0 lie in the cache,
  position after position behind the context. A row sees those up to its own or its group's slot 0,
  and a mask also the fresh keys of its group's masks. Which keys those are follows from the row's
  number, so there is no mask tensor.

The cache is contiguous, or paged: key p of a request lies in page `block_table[p // page_size]`. It
may be in float8: then K = k_scale * cached and V = v_scale * cached, a scale a KV head. What is
loaded is only converted: the keys' scale goes into that of the scores, and the values' is applied
once a split, before the fresh keys, which have none.

A tile holds BLOCK_M query rows: the query heads of a group side by side, position after position,
so that 32 positions of 4 grouped heads fill 128 rows and each key is read once a group. One program
walks one split of the context, and a second kernel merges the splits in their order. Where the rows
alone fill the chip, one program walks all splits of its rows and merges them as it goes, by the
same operations in the same order: the same bits, without partial results in memory. Far from the
start splits are longer, so that long contexts leave fewer partial results. The fresh keys belong to
the split that holds the end of the context, for a draft group its last key in the cache.

Numerics "batch_invariant": tiles and splits lie at fixed absolute positions and a tile's shape does
not depend on the block, so a causal row's bits are a function of its own keys: the same alone, in
any batch, decoded by itself or verified among 256, from a contiguous cache or from any pages. The
fresh keys of each draft group have tiles of their own, so its masks' bits do not depend on other
groups; its slot 0 has the bits of a causal row. "fast": splits follow the batch to fill the chip.

Compulsory traffic: q, the keys and values any query sees, and out, once each. FLOPs: 4 head_dim
for each visible (query, key) pair; one exponential a pair. The partials of a split context are
overhead and not counted.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import error_word, launch, torch_backend
from .cache_layout import (
    CacheView,
    DraftGroups,
    check_cache,
    check_contents,
    check_float8_on,
    own_positions,
)
from .cost import Cost
from .op import Op
from .validate import (
    FLOAT_DTYPES,
    HEAD_DIMS,
    MAX_BLOCK,
    MAX_DRAFT_ROWS,
    NUMERICS,
    check_bool,
    check_draft_groups,
    check_int,
    check_number,
    check_tensor,
    check_unit_stride,
)

_LOG2E = 1.4426950408889634
_LN2 = tl.constexpr(0.6931471805599453)
# Where a running maximum starts: finite, so that hidden scores (-inf) less it stay -inf.
_LOWEST = tl.constexpr(-1.0e38)
_LENGTH_OUT_OF_RANGE = tl.constexpr(error_word.LENGTH_OUT_OF_RANGE)
_PAGE_OUT_OF_RANGE = tl.constexpr(error_word.PAGE_OUT_OF_RANGE)


def block_attention_cost(
    batch: int,
    block: int,
    context: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    itemsize: int,
    causal: bool = False,
    draft_groups: tuple[int, int] | None = None,
    lse: bool = False,
    cache_itemsize: int | None = None,
) -> Cost:
    """Cost of `block` queries a request, each request with `context` keys before them.

    itemsize: bytes an element of q, out and the fresh keys and values; cache_itemsize: of the keys
    and values in the cache, 1 for float8, by default the same.

    Keys a query sees: context + block if bidirectional; context + (block + 1) / 2 on average if
    causal. With n draft groups of `length` behind lead = block - n length causal rows: context +
    r + 1 for causal row r, context + lead + j + 1 for slot 0 of group j, and length - 1 more for
    each of its masks. Every one of the context + block keys is seen by some query.
    """
    lead, draft_length = in_groups = DraftGroups.of(draft_groups, block)
    visible = block * (context + block)
    if causal:
        visible -= block * (block - 1) / 2
    if draft_groups is not None:
        groups = draft_groups[0]
        visible = block * context + lead * (lead + 1) / 2
        visible += draft_length * (groups * lead + groups * (groups + 1) / 2)
        visible += groups * (draft_length - 1) ** 2
    pairs = batch * query_heads * visible
    own_in_cache = own_positions(block, causal, in_groups)
    fresh = 2 * (block - own_in_cache) * kv_heads * head_dim
    cached = 2 * (context + own_in_cache) * kv_heads * head_dim
    scales = 0
    if cache_itemsize is None:
        cache_itemsize = itemsize
    elif cache_itemsize == 1:
        scales = 2 * 4 * kv_heads
    queries_and_outputs = 2 * block * query_heads * head_dim
    moved = itemsize * (queries_and_outputs + fresh) + cache_itemsize * cached
    return Cost(
        flops=4.0 * head_dim * pairs,
        bytes=float(batch * moved + scales + (4 * batch * block * query_heads if lse else 0)),
        exps=float(pairs),
    )


# --- kernels


# Of both kernels: numbers that change from call to call.
_SIZES = [
    "block", "context_limit", "split_keys", "near_splits", "far_split_keys", "lead", "draft_length",
]  # fmt: skip


@triton.jit
def _merge_split(peak, total, acc, split_peak, split_total, split_acc):
    """Add a split's (peak, total, acc) to those of the splits before it.

    Both kernels merge by this, and no operation in it is the compiler's choice. Rows that see
    nothing of the split, and whose total there is 0, stay as they are.
    """
    new_peak = tl.maximum(peak, split_peak)
    decay = tl.exp2(peak - new_peak)
    weight = tl.exp2(split_peak - new_peak)
    total = tl.fma(total, decay, split_total * weight)
    weight = tl.broadcast_to(weight[:, None], acc.shape)
    acc = tl.fma(split_acc, weight, acc * decay[:, None])
    return new_peak, total, acc


@triton.jit
def _fold_keys(
    q,  # [BLOCK_M, D]
    k_ptr,  # first key of this KV head, as v_ptr
    v_ptr,
    stride_k,
    stride_v,
    begin,
    end,
    last_visible,  # [BLOCK_M], read if MASKED: the last key each row sees; none lies behind end
    table_ptr,  # the request's page numbers, read if PAGE_SIZE
    pages,
    stride_page_k,
    stride_page_v,
    scale_log2,
    peak,
    total,
    acc,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,  # 0: key after key
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Fold the keys [begin, end) into the running (peak, total, acc) of every row.

    Unmasked, [begin, end) is a whole number of tiles that every row sees. Both forms round alike,
    operation by operation (fma and dot are spelt out), so it does not matter which one a key meets.
    """
    dim = tl.arange(0, D)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        key = start + tl.arange(0, BLOCK_N)
        if PAGE_SIZE:
            if MASKED:
                page = tl.load(table_ptr + key // PAGE_SIZE, mask=key < end, other=0)
            else:
                page = tl.load(table_ptr + key // PAGE_SIZE)
            page = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64)[:, None]
            slot = (key % PAGE_SIZE).to(tl.int64)[:, None]
            k_at = k_ptr + page * stride_page_k + slot * stride_k + dim[None, :]
            v_at = v_ptr + page * stride_page_v + slot * stride_v + dim[None, :]
        else:
            k_at = k_ptr + key.to(tl.int64)[:, None] * stride_k + dim[None, :]
            v_at = v_ptr + key.to(tl.int64)[:, None] * stride_v + dim[None, :]
        if MASKED:
            inside = key < end
            k = tl.load(k_at, mask=inside[:, None], other=0.0).to(q.dtype)
            v = tl.load(v_at, mask=inside[:, None], other=0.0).to(q.dtype)
        else:
            k = tl.load(k_at).to(q.dtype)
            v = tl.load(v_at).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            scores = tl.where(key[None, :] <= last_visible[:, None], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        p = tl.exp2(tl.fma(scores, scale_log2, -new_peak[:, None]))
        decay = tl.exp2(peak - new_peak)
        total = tl.fma(total, decay, tl.sum(p, 1))
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak
    return peak, total, acc


@triton.jit
def _split_begin(split, split_keys, near_splits, far_split_keys):
    """The position of a split's first key, which is where the split before it ends."""
    return min(split, near_splits) * split_keys + max(split - near_splits, 0) * far_split_keys


@triton.jit
def _splits_of(keys, split_keys, near_splits, far_split_keys):
    """How many splits hold the first `keys` keys; the launcher asks too, with its integers."""
    near = min(keys, near_splits * split_keys)
    far_splits = (keys - near + far_split_keys - 1) // far_split_keys
    return (near + split_keys - 1) // split_keys + far_splits


@triton.jit
def _own_keys_of_draft(m, lead, draft_length):
    """How many of the block's keys query m sees in the cache."""
    return tl.where(m < lead, m, lead + (m - lead) // draft_length) + 1


@triton.jit(do_not_specialize=[*_SIZES, "pages"])
def split_kernel(
    # Pointers
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_ptr,  # read unless CAUSAL, as v_ptr
    v_ptr,
    k_scale_ptr,  # float32 [kv_heads], read if SCALED, as v_scale_ptr
    v_scale_ptr,
    context_lens_ptr,  # int32 [batch]
    table_ptr,  # int32 [batch, max_pages], read if PAGE_SIZE
    out_ptr,  # written unless PARTIAL, as lse_ptr
    lse_ptr,  # float32 [batch, block, query_heads], written if HAS_LSE
    partial_peak_ptr,  # float32 [splits, batch, block, query_heads], written if PARTIAL
    partial_total_ptr,  # as partial_peak
    partial_acc_ptr,  # float32 [splits, batch, block, query_heads, D], written if PARTIAL
    error_ptr,  # int32 [1], written if HAS_ERROR
    # Dimensions
    block,
    kv_heads,
    context_limit,
    split_keys,  # of each of the first near_splits, as far_split_keys of the others
    near_splits,
    far_split_keys,
    pages,  # of the cache, if PAGE_SIZE
    lead,  # causal rows before the groups, if DRAFT, as draft_length
    draft_length,
    # Strides, in elements; the last dimension of each tensor is contiguous
    stride_tb,
    stride_qb,
    stride_qm,
    stride_qh,
    stride_kcb,  # of a page if PAGE_SIZE, as stride_vcb
    stride_kcs,
    stride_kch,
    stride_vcb,
    stride_vcs,
    stride_vch,
    stride_kb,
    stride_km,
    stride_kh,
    stride_vb,
    stride_vm,
    stride_vh,
    # Scalars
    scale_log2,
    # Meta-parameters
    GROUP: tl.constexpr,  # query heads a KV head
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,  # 0: contiguous
    CAUSAL: tl.constexpr,
    DRAFT: tl.constexpr,
    SCALED: tl.constexpr,
    WALK: tl.constexpr,  # the program takes all splits, else that of its number
    PARTIAL: tl.constexpr,
    HAS_LSE: tl.constexpr,
    HAS_ERROR: tl.constexpr,
):
    b = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(0) % kv_heads).to(tl.int64)
    # The last split first: long splits begin, and short ones fill the gaps at the end.
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    tile = tl.program_id(2)

    length = tl.load(context_lens_ptr + b)
    context = tl.minimum(tl.maximum(length, 0), context_limit)
    if HAS_ERROR:
        if length != context:
            tl.atomic_or(error_ptr, _LENGTH_OUT_OF_RANGE)

    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    m = row // GROUP
    head = kv_head * GROUP + row % GROUP
    inside = m < block

    # Keys every row of the tile sees, and keys any row sees.
    first_m = tile * BLOCK_M // GROUP
    last_m = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, block - 1)
    seen_by_all = context
    seen_by_any = context
    if CAUSAL:
        seen_by_all += first_m + 1
        seen_by_any += last_m + 1
    if DRAFT:
        seen_by_all += _own_keys_of_draft(first_m, lead, draft_length)
        seen_by_any += _own_keys_of_draft(last_m, lead, draft_length)
    begin = _split_begin(split, split_keys, near_splits, far_split_keys)
    if (begin >= seen_by_any) & (split > 0):
        return
    split_limit = _split_begin(split + 1, split_keys, near_splits, far_split_keys)
    end = seen_by_any
    if not WALK:
        end = tl.minimum(split_limit, seen_by_any)

    dim = tl.arange(0, D)
    q_at = q_ptr + b * stride_qb + m.to(tl.int64)[:, None] * stride_qm
    q_at += head[:, None] * stride_qh + dim[None, :]
    q = tl.load(q_at, mask=inside[:, None], other=0.0)
    peak = tl.full([BLOCK_M], _LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)

    last_visible = seen_by_any - 1 + tl.zeros([BLOCK_M], tl.int32)
    if CAUSAL:
        last_visible = context + m
    if DRAFT:
        last_visible = context + _own_keys_of_draft(m, lead, draft_length) - 1
    if PAGE_SIZE:
        k_cache_ptr += kv_head * stride_kch
        v_cache_ptr += kv_head * stride_vch
        table_ptr += b * stride_tb
        if HAS_ERROR:
            # The last tile of queries sees the most keys.
            if (kv_head == 0) & (tile == tl.num_programs(2) - 1):
                end_entry = tl.cdiv(end, PAGE_SIZE)
                for first_entry in range(begin // PAGE_SIZE, end_entry, 64):
                    entry = first_entry + tl.arange(0, 64)
                    page = tl.load(table_ptr + entry, mask=entry < end_entry, other=0)
                    absent = (page < 0) | (page >= pages)
                    tl.atomic_or(error_ptr + 0 * entry, _PAGE_OUT_OF_RANGE, mask=absent)
    else:
        k_cache_ptr += b * stride_kcb + kv_head * stride_kch
        v_cache_ptr += b * stride_vcb + kv_head * stride_vch
    cached_scale_log2 = scale_log2
    v_scale = None
    if SCALED:
        cached_scale_log2 *= tl.load(k_scale_ptr + kv_head)
        v_scale = tl.load(v_scale_ptr + kv_head)
    # Each split has a loop of its own, the last one below: in a loop that may also merge, a tile
    # would have to wait for both of its products.
    first_part, end_part = 0, 1
    if WALK:
        merged_peak, merged_total, merged_acc = peak, total, acc
        whole_end = tl.minimum(end, seen_by_all) // BLOCK_N * BLOCK_N
        first_part = _splits_of(whole_end, split_keys, near_splits, far_split_keys) - 1
        first_part = tl.maximum(first_part, 0)
        end_part = tl.maximum(_splits_of(end, split_keys, near_splits, far_split_keys), 1)
        for part in range(0, first_part):
            peak, total, acc = _fold_keys(
                q, k_cache_ptr, v_cache_ptr, stride_kcs, stride_vcs,
                _split_begin(part, split_keys, near_splits, far_split_keys),
                _split_begin(part + 1, split_keys, near_splits, far_split_keys),
                last_visible, table_ptr, pages, stride_kcb, stride_vcb,
                cached_scale_log2, peak, total, acc, D, BLOCK_N, PAGE_SIZE, False, STAGES,
            )  # fmt: skip
            if SCALED:
                acc *= v_scale
            merged_peak, merged_total, merged_acc = _merge_split(
                merged_peak, merged_total, merged_acc, peak, total, acc
            )
            peak = tl.zeros_like(peak) + _LOWEST
            total = tl.zeros_like(total)
            acc = tl.zeros_like(acc)
        begin = _split_begin(first_part, split_keys, near_splits, far_split_keys)
    else:
        whole_end = tl.maximum(tl.minimum(end, seen_by_all), begin)
        whole_end = begin + (whole_end - begin) // BLOCK_N * BLOCK_N
    peak, total, acc = _fold_keys(
        q, k_cache_ptr, v_cache_ptr, stride_kcs, stride_vcs, begin, whole_end, last_visible,
        table_ptr, pages, stride_kcb, stride_vcb,
        cached_scale_log2, peak, total, acc, D, BLOCK_N, PAGE_SIZE, False, STAGES,
    )  # fmt: skip
    # What is left of each split: keys that not every row sees, then the fresh ones.
    for part in range(first_part, end_part):
        part_begin, part_limit = begin, split_limit
        rest_begin, rest_end = whole_end, end
        if WALK:
            part_begin = _split_begin(part, split_keys, near_splits, far_split_keys)
            part_limit = _split_begin(part + 1, split_keys, near_splits, far_split_keys)
            rest_begin = tl.maximum(rest_begin, part_begin)
            rest_end = tl.minimum(rest_end, part_limit)
        peak, total, acc = _fold_keys(
            q, k_cache_ptr, v_cache_ptr, stride_kcs, stride_vcs,
            rest_begin, rest_end, last_visible, table_ptr, pages, stride_kcb, stride_vcb,
            cached_scale_log2, peak, total, acc, D, BLOCK_N, PAGE_SIZE, True, 1,
        )  # fmt: skip
        if SCALED:
            acc *= v_scale
        if DRAFT:
            # The groups of this tile's rows whose last key in the cache lies in this split.
            first_group = tl.maximum(first_m - lead, 0) // draft_length
            end_group = tl.maximum(last_m - lead + draft_length, 0) // draft_length
            first_group = tl.maximum(first_group, part_begin - context - lead)
            end_group = tl.minimum(end_group, part_limit - context - lead)
            # Of group 0: the inner loop has no register to spare at D = 256.
            first_k = k_ptr + b * stride_kb + kv_head * stride_kh
            first_v = v_ptr + b * stride_vb + kv_head * stride_vh
            first_k += (lead + 1).to(tl.int64) * stride_km
            first_v += (lead + 1).to(tl.int64) * stride_vm
            for group in range(first_group, end_group):
                first_mask = lead + group * draft_length + 1
                of_group = (m >= first_mask) & (m < first_mask + draft_length - 1)
                fresh_visible = tl.where(of_group, draft_length - 2, -1)
                peak, total, acc = _fold_keys(
                    q,
                    first_k + (group * draft_length).to(tl.int64) * stride_km,
                    first_v + (group * draft_length).to(tl.int64) * stride_vm,
                    stride_km, stride_vm, 0, draft_length - 1, fresh_visible,
                    None, None, None, None,
                    scale_log2, peak, total, acc, D, BLOCK_N, 0, True, 1,
                )  # fmt: skip
        elif not CAUSAL:
            if part_limit >= context:
                fresh_visible = block - 1 + tl.zeros([BLOCK_M], tl.int32)
                peak, total, acc = _fold_keys(
                    q,
                    k_ptr + b * stride_kb + kv_head * stride_kh,
                    v_ptr + b * stride_vb + kv_head * stride_vh,
                    stride_km, stride_vm, 0, block, fresh_visible,
                    None, None, None, None,
                    scale_log2, peak, total, acc, D, BLOCK_N, 0, True, 1,
                )  # fmt: skip
        if WALK:
            merged_peak, merged_total, merged_acc = _merge_split(
                merged_peak, merged_total, merged_acc, peak, total, acc
            )
            peak = tl.zeros_like(peak) + _LOWEST
            total = tl.zeros_like(total)
            acc = tl.zeros_like(acc)

    if WALK or (D < 256 and (CAUSAL or DRAFT or PAGE_SIZE)):
        # Numbered anew by a sum that the compiler cannot see through: kept from above, the rows'
        # places in memory would take registers that these loops need.
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M) + tl.minimum(block, 0)
        m = row // GROUP
        head = kv_head * GROUP + row % GROUP
        inside = m < block
    at = (b * block + m) * (kv_heads * GROUP) + head
    if PARTIAL:
        batch = tl.num_programs(0) // kv_heads
        at += split.to(tl.int64) * batch * block * (kv_heads * GROUP)
        tl.store(partial_peak_ptr + at, peak, mask=inside)
        tl.store(partial_total_ptr + at, total, mask=inside)
        tl.store(partial_acc_ptr + at[:, None] * D + dim[None, :], acc, mask=inside[:, None])
    else:
        if WALK:
            peak, total, acc = merged_peak, merged_total, merged_acc
        out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at[:, None] * D + dim[None, :], out, mask=inside[:, None])
        if HAS_LSE:
            tl.store(lse_ptr + at, (peak + tl.log2(total)) * _LN2, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def merge_kernel(
    # Pointers
    partial_peak_ptr,  # float32 [splits, batch, block, query_heads], as partial_total
    partial_total_ptr,
    partial_acc_ptr,  # float32 [splits, batch, block, query_heads, D]
    context_lens_ptr,  # int32 [batch]
    out_ptr,  # [batch, block, query_heads, D]
    lse_ptr,  # float32 [batch, block, query_heads], written if HAS_LSE
    # Dimensions
    block,
    query_heads,
    context_limit,
    split_keys,  # of each of the first near_splits, as far_split_keys of the others
    near_splits,
    far_split_keys,
    lead,  # causal rows before the groups, if DRAFT, as draft_length
    draft_length,
    # Meta-parameters
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CAUSAL: tl.constexpr,
    DRAFT: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """One program merges BLOCK_H heads of one query, which all see the same splits."""
    query = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = head < query_heads
    dim = tl.arange(0, D)

    length = tl.load(context_lens_ptr + query // block)
    seen = tl.minimum(tl.maximum(length, 0), context_limit)
    if CAUSAL:
        seen += (query % block).to(tl.int32) + 1
    if DRAFT:
        seen += _own_keys_of_draft((query % block).to(tl.int32), lead, draft_length)
    live = tl.maximum(_splits_of(seen, split_keys, near_splits, far_split_keys), 1)

    at = query * query_heads + head
    stride_split = tl.num_programs(0).to(tl.int64) * query_heads
    peak = tl.full([BLOCK_H], _LOWEST, tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, D], tl.float32)
    for split in tl.range(0, live, num_stages=4):
        split_at = split * stride_split + at
        split_peak = tl.load(partial_peak_ptr + split_at, mask=inside, other=0.0)
        split_total = tl.load(partial_total_ptr + split_at, mask=inside, other=1.0)
        acc_at = partial_acc_ptr + split_at[:, None] * D + dim[None, :]
        split_acc = tl.load(acc_at, mask=inside[:, None], other=0.0)
        peak, total, acc = _merge_split(peak, total, acc, split_peak, split_total, split_acc)
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at[:, None] * D + dim[None, :], out, mask=inside[:, None])
    if HAS_LSE:
        tl.store(lse_ptr + at, (peak + tl.log2(total)) * _LN2, mask=inside)


# --- launcher


class BlockAttentionCall(NamedTuple):
    """Arguments of the op; see `block_attention`. Without `return_lse` the lse is empty."""

    q: Tensor
    cache: CacheView
    k: Tensor | None
    v: Tensor | None
    groups: DraftGroups
    scale: float
    numerics: str
    context_limit: int  # that no context length is beyond
    return_lse: bool
    error: Tensor | None

    @property
    def own(self) -> int:
        """Of the block's positions those that lie in the cache."""
        return own_positions(self.q.shape[1], self.k is None, self.groups)


def _launch(call: BlockAttentionCall) -> tuple[Tensor, Tensor]:
    q, cache, k, v, groups, scale, numerics, context_limit, return_lse, error = call
    k_cache, v_cache, context_lens, block_table, k_scale, v_scale = cache
    out, lse = _empty_outputs(call)
    batch, block, query_heads, head_dim = q.shape
    if batch == 0:
        return out, lse
    check_float8_on(k_cache, q.dtype)
    kv_heads = k_cache.shape[2]
    group = query_heads // kv_heads
    causal, draft = k is None, groups.draft_length > 0
    page_size = 0 if block_table is None else k_cache.shape[1]
    table = launch.BLOCK_ATTENTION[launch.arch_of(q.device)][q.element_size()]
    config = launch.smallest_serving(table, head_dim)
    longest = context_limit + call.own
    block_m = config.block_m
    if numerics == "fast":
        block_m = min(block_m, max(16, triton.next_power_of_2(block * group)))
    row_tiles = batch * kv_heads * triton.cdiv(block * group, block_m)
    sizes = (config.split_keys, config.far_from // config.split_keys, config.far_split_keys)
    if numerics == "fast":
        filling = _filling_split(longest, row_tiles, config.block_n, q.device)
        sizes = (filling, 0, filling)
    splits = max(1, _splits_of.fn(longest, *sizes))
    # Draft groups over float8 leave no registers for a second accumulator.
    walk = numerics == "batch_invariant" and config.walks and not (draft and k_scale is not None)
    if walk:
        rows = min(block_m, block * group)
        itemsize = k_cache.element_size()
        split_keys = longest / splits
        walk = splits > 1 and _one_program_walks(row_tiles, rows, split_keys, itemsize, q.device)
    partial = splits > 1 and not walk
    partials = (None, None, None)
    if partial:
        statistics = q.new_empty((2, splits, *q.shape[:3]), dtype=torch.float32)
        partials = (*statistics, q.new_empty((splits, *q.shape), dtype=torch.float32))
    fresh_strides = (0,) * 6 if causal else (*k.stride()[:3], *v.stride()[:3])
    # What a call has no use for is None, which compiles to nothing.
    pages, stride_tb = (k_cache.shape[0], block_table.stride(0)) if page_size else (None, None)
    draft_shape = groups if draft else (None, None)
    grid = (batch * kv_heads, splits if partial else 1, triton.cdiv(block * group, block_m))
    split_kernel[grid](
        q, k_cache, v_cache, k, v, k_scale, v_scale, context_lens, block_table, out, lse,
        *partials, error,
        block, kv_heads, context_limit, *sizes, pages, *draft_shape,
        stride_tb, *q.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3], *fresh_strides,
        scale * _LOG2E,
        GROUP=group,
        D=head_dim,
        BLOCK_M=block_m,
        BLOCK_N=config.block_n,
        # The compiler fetches page numbers as many tiles before their keys as keys before their
        # use: with nearly twice the stages as many keys are in flight as without pages.
        STAGES=2 * config.num_stages - 1 if page_size else config.num_stages,
        PAGE_SIZE=page_size,
        CAUSAL=causal,
        DRAFT=draft,
        SCALED=k_scale is not None,
        WALK=walk,
        PARTIAL=partial,
        HAS_LSE=return_lse,
        HAS_ERROR=error is not None,
        num_warps=config.num_warps,
    )  # fmt: skip
    if partial:
        block_h = min(8, triton.next_power_of_2(query_heads))
        merge_kernel[(batch * block, triton.cdiv(query_heads, block_h))](
            *partials, context_lens, out, lse,
            block, query_heads, context_limit, *sizes, *draft_shape,
            D=head_dim,
            BLOCK_H=block_h,
            CAUSAL=causal,
            DRAFT=draft,
            HAS_LSE=return_lse,
            num_warps=4,
        )  # fmt: skip
    return out, lse


def _one_program_walks(
    row_tiles: int,
    rows: int,
    split_keys: float,
    cache_itemsize: int,
    device: torch.device,
) -> bool:
    """Whether it costs less that one program walks all splits of a tile of `rows` query rows.

    For each split's 2 split_keys head_dim cached elements, in the mean, programs of one split each
    write and read back rows x head_dim float32. Without them the last wave of programs leaves a
    part of the chip idle, for as long as the context is.
    """
    processors = _processors(device)
    partials = 4 * rows / (split_keys * cache_itemsize)
    return triton.cdiv(row_tiles, processors) * processors <= row_tiles * (1 + partials)


def _filling_split(longest: int, row_tiles: int, block_n: int, device: torch.device) -> int:
    """Keys a split so that about two programs an SM exist, at least two tiles each.

    For a short context more and smaller programs start their loads at once, and the partial
    results of eight splits of 128 rows stay in L2.
    """
    splits = max(1, 2 * _processors(device) // row_tiles)
    return max(2, triton.cdiv(triton.cdiv(longest, splits), block_n)) * block_n


def _processors(device: torch.device) -> int:
    """SMs of `device`; for what is no GPU those of an H200."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132


def _empty_outputs(call: BlockAttentionCall) -> tuple[Tensor, Tensor]:
    shape = call.q.shape
    lse_shape = shape[:3] if call.return_lse else (0,)
    return call.q.new_empty(shape), call.q.new_empty(lse_shape, dtype=torch.float32)


# --- op


def _check_contents(call: BlockAttentionCall) -> None:
    check_contents(call.cache, limit=call.context_limit, own=call.own, behind=False)


block_attention_op = Op(
    BlockAttentionCall,
    name="block_attention",
    fake=_empty_outputs,
    check=_check_contents,
    mutated=("error",),
    triton=_launch,
    torch=torch_backend.block_attention,
)


def block_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    context_lens: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    block_table: Tensor | None = None,
    draft_groups: tuple[int, int] | None = None,
    scale: float | None = None,
    numerics: str = "batch_invariant",
    max_context: int | None = None,
    return_lse: bool = False,
    error: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of a block's queries over the cached context and the block itself.

    Args:
        q: bfloat16, float16 or float32 [batch, block, query_heads, head_dim]; block at most 256,
            with draft groups 512; head_dim a power of two from 16 to 256.
        k_cache, v_cache: [batch, capacity, kv_heads, head_dim] in q's dtype or both float8_e4m3fn;
            kv_heads divides query_heads, and query head h uses KV head
            h // (query_heads // kv_heads).
            With a block table: [pages, page_size, kv_heads, head_dim], page_size a power of two of
            at least 16.
        context_lens: int32 [batch]: keys in the cache before the block.
        k, v: the block's own keys and values [batch, block, kv_heads, head_dim]. Given: every query
            sees the context and the whole block, unless there are draft groups. Absent: the block's
            keys lie in the cache behind the context and query i sees those up to its own.
        k_scale, v_scale: float32 [kv_heads], with a float8 cache and only there: a key of head h is
            k_scale[h] * what the cache holds, and so are values. k and v have no scale.
        block_table: int32 [batch, max_pages]: key p of request b is slot p % page_size of page
            block_table[b, p // page_size]; the capacity is max_pages * page_size. Requests may
            share pages. Entries behind the visible keys are not read.
        draft_groups: (n, length), the block of quadratic self-speculation; needs k and v. The
            block's last n * length rows are n groups of slot 0 and length - 1 masks (at least one);
            the `lead` rows before them are causal. The keys of the causal rows and of every slot 0
            lie in the cache, as for a causal call, at context .. context + lead + n - 1. Causal row
            r sees the cache up to position context + r, every row of group j up to context + lead +
            j, and a mask also the fresh k, v of its group's masks. Other fresh k, v are not read.
        scale: of the scores, positive; default head_dim ** -0.5.
        numerics: "batch_invariant" (a row's bits depend on its own query and keys alone; in plain
            torch on a CPU, for one number of threads) or "fast".
        max_context: a bound on context_lens known to the host; default what the cache can hold. A
            tight bound launches fewer programs; a longer context is cut to it and sets the error
            word. A CUDA graph keeps the bound it was captured with.
        return_lse: also return the natural log-sum-exp of each query's scaled scores.
        error: error word to set where a context length is out of range or a page of visible keys is
            not there, int32 [1]; such a length or page is clamped.

    Tensors may have any strides, their last dimension contiguous. Nothing is written to the cache,
    and what lies in it behind the keys a block may see is never read. NaN or inf among the keys
    and values of a causal block itself can reach its earlier queries too, and from the masks of a
    draft group the rows of other groups.

    Returns:
        [batch, block, query_heads, head_dim] in q's dtype, contiguous; with `return_lse` also
        float32 [batch, block, query_heads].

    Raises:
        TypeError, ValueError: a dtype, shape, stride, device or range does not fit; the message
            names it. Triton reads a float8 cache on compute capability 8.9 and newer.
    """
    check_tensor("q", q, ("batch", "block", "query_heads", "head_dim"), FLOAT_DTYPES)
    batch, block, query_heads, head_dim = q.shape
    longest = MAX_BLOCK if draft_groups is None else MAX_DRAFT_ROWS
    if not 1 <= block <= longest:
        raise ValueError(f"q has a block of {block} queries; it must be in [1, {longest}]")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"q has head_dim {head_dim}; it must be a power of two from 16 to 256")
    cache = CacheView(k_cache, v_cache, context_lens, block_table, k_scale, v_scale)
    check_cache(cache, batch, "kv_heads", head_dim, q.dtype, q.device)
    kv_heads = k_cache.shape[2]
    if kv_heads == 0 or query_heads == 0 or query_heads % kv_heads:
        raise ValueError(
            f"k_cache has {kv_heads} KV heads; they must divide q's {query_heads} query heads"
        )
    check_unit_stride("q", q)
    if (k is None) != (v is None):
        raise ValueError(f"{'k' if k is None else 'v'} is None; k and v go together")
    if k is not None:
        shape, dtypes = (batch, block, kv_heads, head_dim), (q.dtype,)
        for name, tensor in (("k", k), ("v", v)):
            check_tensor(name, tensor, shape, dtypes, q.device)
            check_unit_stride(name, tensor)
    if draft_groups is not None:
        check_draft_groups(draft_groups, block)
        if k is None:
            raise ValueError("k is None; draft_groups needs k and v")
    if scale is None:
        scale = head_dim**-0.5
    check_number("scale", scale)
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; it must be positive and finite")
    if numerics not in NUMERICS:
        raise ValueError(f"numerics is {numerics!r}; it must be one of {', '.join(NUMERICS)}")
    check_bool("return_lse", return_lse)
    groups = DraftGroups.of(draft_groups, block)
    own = own_positions(block, k is None, groups)
    context_limit = cache.capacity - own
    if context_limit < 0:
        what = f"a causal block of {block} lies in it"
        if groups.draft_length:
            what = f"the {own} causal and slot-0 rows of a block with draft groups lie in it"
        raise ValueError(f"k_cache holds {cache.capacity} keys; {what}")
    if max_context is not None:
        check_int("max_context", max_context, 0, context_limit)
        context_limit = max_context
    error_word.check_error_word(error, q.device)
    out, lse = block_attention_op(
        BlockAttentionCall(
            q, cache, k, v, groups, float(scale), numerics, context_limit, return_lse, error
        )
    )
    return (out, lse) if return_lse else out
