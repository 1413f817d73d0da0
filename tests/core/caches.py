"""Caches of a model, empty or holding a context, and what a forward writes, without a model."""

import torch
from torch import Tensor

from dlm_core import KVCache, Model
from dlm_core.paged_cache import PagedKVCache
from dlm_kernels import rope_kv_write
from dlm_kernels.validate import MAX_BLOCK


def cache_for(model: Model, batch: int = 1, capacity: int = 128) -> KVCache:
    """An empty cache where the model is, in its dtype."""
    return KVCache(model.config, batch, capacity, device=model.device, dtype=model.dtype)


def cache_after(model: Model, tokens: Tensor, capacity: int = 128) -> KVCache:
    """A cache that holds a context of `tokens` [batch, n], run through the model in one block."""
    cache = cache_for(model, len(tokens), capacity)
    model(tokens.to(model.device), cache, causal=True)
    cache.advance(tokens.shape[1])
    return cache


def write(cache: KVCache | PagedKVCache, layer: int, keys: Tensor, values: Tensor) -> None:
    """Store keys and values [batch, M, kv_heads, head_dim] after each context, not rotated."""
    for begin in range(0, keys.shape[1], MAX_BLOCK):
        k, v = (x[:, begin : begin + MAX_BLOCK] for x in (keys, values))
        cos = torch.ones(*k.shape[:2], k.shape[3] // 2, device=k.device)
        rope_kv_write(
            torch.cat([k, k, v], 2).flatten(2),
            cos,
            torch.zeros_like(cos),
            torch.ones_like(cos[..., 0]),
            kv_heads=k.shape[2],
            k_cache=cache.keys[layer],
            v_cache=cache.values[layer],
            context_lens=cache.lengths + begin,
            block_table=cache.block_table,
            k_scale=cache.key_scales[layer],
            v_scale=cache.value_scales[layer],
        )
