"""What the ops that write and read a KV cache agree on: its shape, dtype, scales and pages.

Contiguous it is [batch, capacity, kv_heads, head_dim]. With a block table it is [pages, page_size,
kv_heads, head_dim], and position p of a request lies in slot p % page_size of page
block_table[request, p // page_size].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .validate import FLOAT32, INT32, check_tensor, check_unit_stride

CACHE_DTYPE = torch.float8_e4m3fn  # that a cache may have in place of its queries' dtype


class CacheView(NamedTuple):
    """A KV cache as an op takes it; see `block_attention`. Every field is None if there is none."""

    k_cache: Tensor | None = None
    v_cache: Tensor | None = None
    context_lens: Tensor | None = None
    block_table: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Keys that a request has room for."""
        if self.block_table is None:
            return self.k_cache.shape[1]
        return self.k_cache.shape[1] * self.block_table.shape[1]


NO_CACHE = CacheView()


class DraftGroups(NamedTuple):
    """Of a block the causal rows before its draft groups, and the rows of a group; 0 for none."""

    lead: int
    draft_length: int

    @classmethod
    def of(cls, draft_groups: tuple[int, int] | None, block: int) -> "DraftGroups":
        """As ops are given them: (n, length), at the end of a block of so many rows."""
        if draft_groups is None:
            return cls(0, 0)
        groups, length = draft_groups
        return cls(block - groups * length, length)


def own_positions(block: int, causal: bool, groups: DraftGroups) -> int:
    """How many of a block's positions lie in the cache, behind the context.

    With draft groups: the causal rows before them and each group's slot 0.
    """
    if groups.draft_length:
        return groups.lead + (block - groups.lead) // groups.draft_length
    return block if causal else 0


def check_cache(
    cache: CacheView,
    batch: int,
    kv_heads: int | str,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise unless `cache` is one of `batch` requests in `dtype`, or in CACHE_DTYPE with scales."""
    k_cache, v_cache, context_lens, block_table, _, _ = cache
    shape = (batch, "capacity", kv_heads, head_dim)
    if block_table is not None:
        shape = ("pages", "page_size", kv_heads, head_dim)
        check_tensor("block_table", block_table, (batch, "max_pages"), INT32, device)
        check_unit_stride("block_table", block_table)
    check_tensor("k_cache", k_cache, shape, (dtype, CACHE_DTYPE), device)
    check_tensor("v_cache", v_cache, k_cache.shape, (k_cache.dtype,), device)
    check_unit_stride("k_cache", k_cache)
    check_unit_stride("v_cache", v_cache)
    check_tensor("context_lens", context_lens, (batch,), INT32, device)
    check_unit_stride("context_lens", context_lens)
    if block_table is not None:
        pages, page_size = k_cache.shape[:2]
        if pages == 0:
            raise ValueError("k_cache has 0 pages; it must have at least 1")
        if page_size < 16 or page_size & (page_size - 1):
            raise ValueError(
                f"k_cache has pages of {page_size} keys; it must be a power of two, 16 or more"
            )
    _check_scales(cache)


def _check_scales(cache: CacheView) -> None:
    """Raise unless a float8 cache has both scales, float32 [kv_heads], and any other has none."""
    k_cache = cache.k_cache
    for name, scale in (("k_scale", cache.k_scale), ("v_scale", cache.v_scale)):
        if k_cache.dtype != CACHE_DTYPE:
            if scale is not None:
                raise ValueError(f"{name} is given; a cache in {k_cache.dtype} has no scales")
            continue
        if scale is None:
            raise ValueError(f"{name} is None; a cache in {k_cache.dtype} needs it")
        check_tensor(name, scale, (k_cache.shape[2],), FLOAT32, k_cache.device)
        check_unit_stride(name, scale)


def check_float8_on(k_cache: Tensor, dtype: torch.dtype) -> None:
    """Raise TypeError for a float8 cache on a GPU for which Triton cannot convert it."""
    if k_cache.dtype != CACHE_DTYPE or not k_cache.is_cuda:
        return
    major, minor = torch.cuda.get_device_capability(k_cache.device)
    if (major, minor) < (8, 9):
        raise TypeError(
            f"k_cache is {k_cache.dtype}, which Triton converts from compute capability 8.9 on;"
            f" {k_cache.device} has {major}.{minor}. It must be {dtype}"
        )


def check_contents(cache: CacheView, *, limit: int, own: int, behind: bool) -> None:
    """Raise unless lengths are in [0, limit] and pages are there; reads the device.

    The pages are those of positions up to `own` behind each context, from 0 on, or from the
    context's end on if `behind`.
    """
    lengths = cache.context_lens.tolist()
    outside = [n for n in lengths if not 0 <= n <= limit]
    if outside:
        raise ValueError(f"context_lens holds {outside[0]}; lengths must be in [0, {limit}]")
    if cache.block_table is None:
        return
    pages, page_size = cache.k_cache.shape[:2]
    for request, length in zip(cache.block_table.tolist(), lengths, strict=True):
        first = length // page_size if behind else 0
        entries = request[first : -(-(length + own) // page_size)]
        outside = [n for n in entries if not 0 <= n < pages]
        if outside:
            raise ValueError(f"block_table holds {outside[0]}; pages must be in [0, {pages})")
