r"""From a layer's query-key-value product to attention: heads rotated, keys and values cached.

Pair j of a head is its elements j and j + head_dim / 2. At angle a_j, given as cosine and sine,

    first'  = first cos a_j - second sin a_j
    second' = second cos a_j + first sin a_j

for queries and keys, in float32, rounded once; a query's cosines and sines are multiplied by its
scale before. The product may come in partial sums, which are added up while they load and rounded
once. Of these the kernel makes, by what is given:

- no cache (bidirectional): q, k and v as `block_attention` takes them.
- a cache (causal): q; the row's k and v go into the cache at position context + row.
- a cache and draft groups: q, k and v; of the block's `lead` causal rows and of each group's slot 0
  k and v also go into the cache, position after position behind the context.

A float8 cache holds k / k_scale and v / v_scale of each KV head, cut to [-448, 448], the range of
e4m3, and rounded to nearest. One program takes some heads of one kind of one row; each value is a
function of its own pair alone.

Compulsory traffic: product, cosines, sines and query scales read once, each result written once.
FLOPs: four multiplies and two adds a rotated pair, two multiplies for a query's cosine and sine.
"""

from typing import NamedTuple

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
from .partial_sums import PartialSums, as_partial_sums, load_total
from .validate import (
    FLOAT32,
    HEAD_DIMS,
    check_draft_groups,
    check_int,
    check_tensor,
)

_LENGTH_OUT_OF_RANGE = tl.constexpr(error_word.LENGTH_OUT_OF_RANGE)
_PAGE_OUT_OF_RANGE = tl.constexpr(error_word.PAGE_OUT_OF_RANGE)
_LARGEST_E4M3 = tl.constexpr(448.0)


def rope_kv_write_cost(
    batch: int,
    block: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    itemsize: int,
    causal: bool = False,
    draft_groups: tuple[int, int] | None = None,
    cache_itemsize: int | None = None,
) -> Cost:
    """Of a whole product; partial sums are overhead, and lengths and page numbers are not counted.

    cache_itemsize: bytes a cached element; default itemsize.
    """
    rows = batch * block
    queries, keys = rows * query_heads * head_dim, rows * kv_heads * head_dim
    moved = itemsize * (queries + 2 * keys + queries)
    if not causal:
        moved += itemsize * 2 * keys
    cached_rows = block if causal else 0
    if draft_groups is not None:
        groups, length = draft_groups
        cached_rows = block - groups * (length - 1)
    if cache_itemsize is None:
        cache_itemsize = itemsize
    moved += cache_itemsize * 2 * batch * cached_rows * kv_heads * head_dim
    moved += 4 * rows * (head_dim + 1)
    return Cost(flops=3.0 * (queries + keys) + rows * head_dim, bytes=float(moved))


# --- kernel


@triton.jit(
    do_not_specialize=[
        "rows", "block", "query_heads", "kv_heads", "capacity", "own", "pages", "lead",
        "draft_length",
    ]
)  # fmt: skip
def rope_kernel(
    # Pointers
    sums_ptr,  # [SEGMENTS, rows, query_heads + 2 kv_heads, D]
    cos_ptr,  # float32 [rows, D / 2], as sin_ptr
    sin_ptr,
    query_scale_ptr,  # float32 [rows]
    q_ptr,  # [rows, query_heads, D]
    k_ptr,  # [rows, kv_heads, D], written if FRESH, as v_ptr
    v_ptr,
    k_cache_ptr,  # written if CACHED, as v_cache_ptr
    v_cache_ptr,
    context_lens_ptr,  # int32 [batch], read if CACHED
    table_ptr,  # int32 [batch, max_pages], read if PAGE_SIZE
    k_scale_ptr,  # float32 [kv_heads], read if SCALED, as v_scale_ptr
    v_scale_ptr,
    error_ptr,  # int32 [1], written if HAS_ERROR
    # Dimensions
    rows,  # batch x block
    block,
    query_heads,
    kv_heads,
    capacity,  # positions of a request, as the ones below if CACHED
    own,  # positions that the block takes
    pages,  # of the cache, if PAGE_SIZE
    lead,  # causal rows before the groups, if DRAFT, as draft_length
    draft_length,
    # Strides, in elements; the last dimension of each tensor is contiguous
    stride_tb,
    stride_kcb,  # of a page if PAGE_SIZE, as stride_vcb
    stride_kcs,
    stride_kch,
    stride_vcb,
    stride_vcs,
    stride_vch,
    # Meta-parameters
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,  # heads a program
    SEGMENTS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,  # 0: contiguous
    FRESH: tl.constexpr,
    CACHED: tl.constexpr,
    DRAFT: tl.constexpr,
    SCALED: tl.constexpr,
    HAS_ERROR: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads = query_heads + 2 * kv_heads
    kv_tiles = tl.cdiv(kv_heads, BLOCK_H)
    # Tiles of queries, then of keys, then of values.
    tile = tl.program_id(1)
    kv_tile = tile - tl.cdiv(query_heads, BLOCK_H)
    is_query = kv_tile < 0
    is_value = kv_tile >= kv_tiles
    first_head = 0
    heads_of_kind = query_heads
    if is_value:
        tile = kv_tile - kv_tiles
        first_head = query_heads + kv_heads
        heads_of_kind = kv_heads
    elif not is_query:
        tile = kv_tile
        first_head = query_heads
        heads_of_kind = kv_heads
    head = tile * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (head < heads_of_kind)[:, None]

    # (first, second) are the halves of each head: [BLOCK_H, D / 2].
    pair = tl.arange(0, D // 2)
    at = (row * heads + first_head + head[:, None]) * D + pair[None, :]
    stride_segment = rows.to(tl.int64) * heads * D
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    first = load_total(sums_ptr, at, stride_segment, inside, SEGMENTS, dtype)
    second = load_total(sums_ptr, at + D // 2, stride_segment, inside, SEGMENTS, dtype)
    if not is_value:
        scale = tl.load(query_scale_ptr + row, mask=is_query, other=1.0)
        cos = (tl.load(cos_ptr + row * (D // 2) + pair) * scale)[None, :]
        sin = (tl.load(sin_ptr + row * (D // 2) + pair) * scale)[None, :]
        # Spelt out, so that every form of this kernel rounds alike.
        turned = tl.fma(-second, sin, first * cos)
        second = tl.fma(first, sin, second * cos)
        first = turned
    first = first.to(dtype)
    second = second.to(dtype)

    if is_query:
        q_at = q_ptr + (row * query_heads + head[:, None]) * D + pair[None, :]
        tl.store(q_at, first, mask=inside)
        tl.store(q_at + D // 2, second, mask=inside)
    else:
        if FRESH:
            fresh_ptr = k_ptr
            if is_value:
                fresh_ptr = v_ptr
            fresh_at = fresh_ptr + (row * kv_heads + head[:, None]) * D + pair[None, :]
            tl.store(fresh_at, first, mask=inside)
            tl.store(fresh_at + D // 2, second, mask=inside)
        if CACHED:
            b = row // block
            place = row % block
            if DRAFT:
                in_groups = tl.maximum(place - lead, 0)
                kept = in_groups % draft_length == 0
                inside &= kept
                place = tl.minimum(place, lead) + in_groups // draft_length
            length = tl.load(context_lens_ptr + b).to(tl.int64)
            position = tl.minimum(tl.maximum(length + place, 0), capacity - 1)
            if HAS_ERROR:
                if (length < 0) | (length > capacity - own):
                    tl.atomic_or(error_ptr, _LENGTH_OUT_OF_RANGE)
            entry = b
            slot = position
            if PAGE_SIZE:
                page = tl.load(table_ptr + b * stride_tb + position // PAGE_SIZE)
                entry = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64)
                slot = position % PAGE_SIZE
                if HAS_ERROR:
                    if page != entry:
                        tl.atomic_or(error_ptr, _PAGE_OUT_OF_RANGE)
            cache_at = k_cache_ptr + entry * stride_kcb + slot * stride_kcs
            stride_head = stride_kch
            if is_value:
                cache_at = v_cache_ptr + entry * stride_vcb + slot * stride_vcs
                stride_head = stride_vch
            cache_at = cache_at + head.to(tl.int64)[:, None] * stride_head + pair[None, :]
            if SCALED:
                scale_ptr = k_scale_ptr
                if is_value:
                    scale_ptr = v_scale_ptr
                scale = tl.load(scale_ptr + head, mask=head < kv_heads, other=1.0)[:, None]
                tl.store(cache_at, _in_e4m3(first, scale), mask=inside)
                tl.store(cache_at + D // 2, _in_e4m3(second, scale), mask=inside)
            else:
                tl.store(cache_at, first, mask=inside)
                tl.store(cache_at + D // 2, second, mask=inside)


@triton.jit
def _in_e4m3(x, scale):
    x = tl.div_rn(x.to(tl.float32), tl.broadcast_to(scale, x.shape))
    x = tl.clamp(x, -_LARGEST_E4M3, _LARGEST_E4M3, propagate_nan=tl.PropagateNan.ALL)
    return x.to(tl.float8e4nv)


# --- launcher


class RopeKvWriteCall(NamedTuple):
    """Arguments of the op; see `rope_kv_write`. What is not `fresh` is empty in its result."""

    qkv: PartialSums  # [segments, batch, block, features]
    cos: Tensor
    sin: Tensor
    query_scale: Tensor
    kv_heads: int
    cache: CacheView
    groups: DraftGroups
    error: Tensor | None

    @property
    def cached(self) -> bool:
        """Whether keys and values go into a cache."""
        return self.cache.k_cache is not None

    @property
    def fresh(self) -> bool:
        """Whether keys and values are returned."""
        return not self.cached or self.groups.draft_length > 0

    @property
    def own(self) -> int:
        """How many of the block's positions go into the cache."""
        return own_positions(self.qkv.shape[1], True, self.groups)


def _launch(call: RopeKvWriteCall) -> tuple[Tensor, Tensor, Tensor]:
    (sums, dtype), cos, sin, query_scale, kv_heads, cache, groups, error = call
    k_cache, v_cache, context_lens, block_table, k_scale, v_scale = cache
    cached, draft, fresh = call.cached, groups.draft_length > 0, call.fresh
    if cached:
        check_float8_on(k_cache, dtype)
    q, k, v = _empty_outputs(call)
    batch, block, query_heads, head_dim = q.shape
    rows = batch * block
    if rows == 0:
        return q, k, v
    # What a call has no use for is None, which compiles to nothing.
    capacity = own = pages = stride_tb = None
    strides, page_size = (None,) * 6, 0
    if cached:
        capacity, own = cache.capacity, call.own
        strides = (*k_cache.stride()[:3], *v_cache.stride()[:3])
    if block_table is not None:
        pages, page_size = k_cache.shape[:2]
        stride_tb = block_table.stride(0)
    config = launch.ROPE_KV_WRITE[launch.arch_of(sums.device)]
    block_h = max(1, config.elements // head_dim)
    tiles = triton.cdiv(query_heads, block_h) + 2 * triton.cdiv(kv_heads, block_h)
    rope_kernel[(rows, tiles)](
        sums, cos.contiguous(), sin.contiguous(), query_scale.contiguous(), q,
        *((k, v) if fresh else (None, None)),
        k_cache, v_cache, context_lens, block_table, k_scale, v_scale, error if cached else None,
        rows, block, query_heads, kv_heads, capacity, own, pages,
        *(groups if draft else (None, None)),
        stride_tb, *strides,
        D=head_dim,
        BLOCK_H=block_h,
        SEGMENTS=len(sums),
        PAGE_SIZE=page_size,
        FRESH=fresh,
        CACHED=cached,
        DRAFT=draft,
        SCALED=k_scale is not None,
        HAS_ERROR=cached and error is not None,
        num_warps=config.num_warps,
    )  # fmt: skip
    return q, k, v


def _empty_outputs(call: RopeKvWriteCall) -> tuple[Tensor, Tensor, Tensor]:
    (sums, dtype), kv_heads = call.qkv, call.kv_heads
    _, batch, block, features = sums.shape
    head_dim = 2 * call.cos.shape[-1]
    heads = features // head_dim
    shape = (batch, block, kv_heads, head_dim) if call.fresh else (0,)
    q = sums.new_empty((batch, block, heads - 2 * kv_heads, head_dim), dtype=dtype)
    return q, sums.new_empty(shape, dtype=dtype), sums.new_empty(shape, dtype=dtype)


# --- op


def _check_contents(call: RopeKvWriteCall) -> None:
    if call.cached:
        limit = call.cache.capacity - call.own
        check_contents(call.cache, limit=limit, own=call.own, behind=True)


rope_kv_write_op = Op(
    RopeKvWriteCall,
    name="rope_kv_write",
    fake=_empty_outputs,
    check=_check_contents,
    mutated=("cache.k_cache", "cache.v_cache", "error"),
    triton=_launch,
    torch=torch_backend.rope_kv_write,
)


def rope_kv_write(
    qkv: Tensor | PartialSums,
    cos: Tensor,
    sin: Tensor,
    query_scale: Tensor,
    *,
    kv_heads: int,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    context_lens: Tensor | None = None,
    block_table: Tensor | None = None,
    draft_groups: tuple[int, int] | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    error: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rotated queries and keys of a block, and its keys and values in the cache.

    Args:
        qkv: bfloat16, float16 or float32 [batch, block, (query_heads + 2 kv_heads) * head_dim],
            whole or in partial sums: the queries head after head, then the keys, then the values.
            head_dim is a power of two from 16 to 256; kv_heads divides query_heads.
        cos, sin: float32 [batch, block, head_dim / 2], of each row's angles.
        query_scale: float32 [batch, block]: what a row's queries are multiplied by.
        kv_heads: heads of k and of v, 1 or more.
        k_cache, v_cache: [batch, capacity, kv_heads, head_dim], or with a block table [pages,
            page_size, kv_heads, head_dim], page_size a power of two of at least 16; in qkv's dtype
            or both float8_e4m3fn, which a GPU older than sm_89 cannot write. Any strides, the last
            dimension contiguous; no position in two places. None: nothing is cached.
        context_lens: int32 [batch], with a cache: row i goes to position context_lens[b] + i.
        block_table: as for `block_attention`.
        draft_groups: (n, length), with a cache: the block's last n * length rows are n groups of
            slot 0 and length - 1 masks. Of a group slot 0 alone is cached, that of group g at
            context_lens[b] + lead + g, where `lead` rows come before the groups.
        k_scale, v_scale: float32 [kv_heads], for a float8 cache and no other: it holds k / k_scale
            and v / v_scale, cut to [-448, 448].
        error: error word to set where a context length does not leave the block room or a page is
            not there, int32 [1]; a position beyond the cache is written to its last slot, a page
            that is not there to the nearest that is.

    Returns:
        q [batch, block, query_heads, head_dim] and k, v [batch, block, kv_heads, head_dim] in qkv's
        dtype, contiguous. With a cache and no draft groups k and v are None.

    Raises:
        TypeError, ValueError: a dtype, shape, stride, device or range does not fit; the message
            names it.
    """
    sums, dtype = qkv = as_partial_sums("qkv", qkv)
    if len(qkv.shape) != 3:
        raise ValueError(f"qkv has shape {list(qkv.shape)}; it must be [batch, block, features]")
    batch, block, features = qkv.shape
    device = sums.device
    check_tensor("cos", cos, (batch, block, "head_dim / 2"), FLOAT32, device)
    check_tensor("sin", sin, cos.shape, FLOAT32, device)
    check_tensor("query_scale", query_scale, (batch, block), FLOAT32, device)
    head_dim = 2 * cos.shape[2]
    if head_dim not in HEAD_DIMS:
        raise ValueError(
            f"cos is for head_dim {head_dim}; it must be a power of two from 16 to 256"
        )
    check_int("kv_heads", kv_heads, 1, 2**15)
    query_heads = features // head_dim - 2 * kv_heads
    if features % head_dim or query_heads < 1 or query_heads % kv_heads:
        raise ValueError(
            f"qkv has {features} features; with kv_heads {kv_heads} and head_dim {head_dim} it must"
            f" have {kv_heads * head_dim} for each query head of a KV head and twice that for keys"
            " and values"
        )
    if draft_groups is not None:
        check_draft_groups(draft_groups, block)
    groups = DraftGroups.of(draft_groups, block)
    cache = CacheView(k_cache, v_cache, context_lens, block_table, k_scale, v_scale)
    if k_cache is None:
        others = {
            "v_cache": v_cache, "context_lens": context_lens, "block_table": block_table,
            "draft_groups": draft_groups, "k_scale": k_scale, "v_scale": v_scale,
        }  # fmt: skip
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"k_cache is None; {name} needs it")
    else:
        check_cache(cache, batch, kv_heads, head_dim, dtype, device)
        own = own_positions(block, True, groups)
        if cache.capacity < own:
            raise ValueError(
                f"k_cache holds {cache.capacity} keys; {own} rows of the block go into it"
            )
    error_word.check_error_word(error, device)
    call = RopeKvWriteCall(qkv, cos, sin, query_scale, kv_heads, cache, groups, error)
    q, k, v = rope_kv_write_op(call)
    return (q, k, v) if call.fresh else (q, None, None)
