"""What the ops that write and read a KV cache agree on: its shape, dtype, scales and pages.

Contiguous it is [batch, capacity, kv_heads, head_dim]. With a block table it is [pages, page_size,
kv_heads, head_dim], and position p of a request lies in slot p % page_size of page
block_table[request, p // page_size].
"""

import torch
from torch import Tensor

from .validate import check_tensor, check_unit_stride

CACHE_DTYPE = torch.float8_e4m3fn  # that a cache may have in place of its queries' dtype


def own_positions(block: int, causal: bool, lead: int, draft_length: int) -> int:
    """How many of a block's positions lie in the cache, behind the context.

    With draft groups of draft_length rows behind `lead` causal ones: those and each group's slot 0.
    """
    if draft_length:
        return lead + (block - lead) // draft_length
    return block if causal else 0


def check_cache(
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor | None,
    *,
    batch: int,
    kv_heads: int | str,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Raise unless keys and values are caches of `dtype` or CACHE_DTYPE; else their capacity."""
    shape = (batch, "capacity", kv_heads, head_dim)
    if block_table is not None:
        shape = ("pages", "page_size", kv_heads, head_dim)
        int32 = {"dtypes": (torch.int32,), "device": device}
        check_tensor("block_table", block_table, shape=(batch, "max_pages"), **int32)
        check_unit_stride("block_table", block_table)
    check_tensor("k_cache", k_cache, shape=shape, dtypes=(dtype, CACHE_DTYPE), device=device)
    same = {"dtypes": (k_cache.dtype,), "device": device}
    check_tensor("v_cache", v_cache, shape=k_cache.shape, **same)
    check_unit_stride("k_cache", k_cache)
    check_unit_stride("v_cache", v_cache)
    if block_table is None:
        return k_cache.shape[1]
    pages, page_size = k_cache.shape[:2]
    if pages == 0:
        raise ValueError("k_cache has 0 pages; it must have at least 1")
    if page_size < 16 or page_size & (page_size - 1):
        raise ValueError(
            f"k_cache has pages of {page_size} keys; it must be a power of two, 16 or more"
        )
    return block_table.shape[1] * page_size


def check_scales(k_scale: Tensor | None, v_scale: Tensor | None, k_cache: Tensor) -> None:
    """Raise unless a float8 cache has both scales, float32 [kv_heads], and any other has none."""
    for name, scale in {"k_scale": k_scale, "v_scale": v_scale}.items():
        if k_cache.dtype != CACHE_DTYPE:
            if scale is not None:
                raise ValueError(f"{name} is given; a cache in {k_cache.dtype} has no scales")
            continue
        if scale is None:
            raise ValueError(f"{name} is None; a cache in {k_cache.dtype} needs it")
        shape, float32 = (k_cache.shape[2],), (torch.float32,)
        check_tensor(name, scale, shape=shape, dtypes=float32, device=k_cache.device)
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


def check_contents(
    k_cache: Tensor,
    context_lens: Tensor,
    block_table: Tensor | None,
    *,
    limit: int,
    first: Tensor | None,
    own: int,
) -> None:
    """Raise unless lengths are in [0, limit] and pages are there; reads the device.

    The pages are those of positions from `first` int32 [batch] on, or from 0, up to `own` positions
    behind each context.
    """
    lengths = context_lens.tolist()
    outside = [n for n in lengths if not 0 <= n <= limit]
    if outside:
        raise ValueError(f"context_lens holds {outside[0]}; lengths must be in [0, {limit}]")
    if block_table is None:
        return
    pages, page_size = k_cache.shape[:2]
    begins = [0] * len(lengths) if first is None else first.tolist()
    for request, begin, length in zip(block_table.tolist(), begins, lengths, strict=True):
        entries = request[begin // page_size : -(-(length + own) // page_size)]
        outside = [n for n in entries if not 0 <= n < pages]
        if outside:
            raise ValueError(f"block_table holds {outside[0]}; pages must be in [0, {pages})")
