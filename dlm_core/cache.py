"""Keys and values of everything a model has committed to."""

from typing import TYPE_CHECKING

import torch

from dlm_kernels.cache_layout import CacheView
from dlm_kernels.validate import check_int

from .config import ModelConfig
from .kv_scales import KVScales, scales_of_cache

if TYPE_CHECKING:
    from .paged_cache import PagedKVCache


class KVCache:
    """The context of each request: contiguous keys and values per layer, ragged lengths.

    keys, values: per layer a tensor [batch, capacity, kv_heads, head_dim]; positions at and beyond
        a request's length hold no meaning.
    key_scales, value_scales: per layer float32 [kv_heads] if dtype is float8_e4m3fn, else None: a
        key of head h is key_scales[layer][h] times what `keys` holds.
    lengths: int32 [batch] on the device: tokens in the context of each request.
    max_length: a bound on `lengths` that the host knows without asking the device.
    block_table: None; `PagedKVCache` has one.
    views: per layer all of it as the ops take it.
    """

    block_table = None

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        scales: KVScales | None = None,
    ) -> None:
        """scales: of a cache in float8_e4m3fn; default 1."""
        check_int("batch", batch, 1, 2**31 - 1)
        check_int("capacity", capacity, 1, config.max_position_embeddings)
        self.key_scales, self.value_scales = scales_of_cache(scales, config, device, dtype)
        shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
        self.keys, self.values = (
            [
                torch.empty(shape, device=device, dtype=dtype)
                for _ in range(config.num_hidden_layers)
            ]
            for _ in range(2)
        )
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self.max_length = 0
        self.views = views_of(self)

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    @property
    def capacity(self) -> int:
        """Tokens that fit, per request."""
        return self.keys[0].shape[1]

    def check_room(self, tokens: int) -> None:
        """Raise ValueError unless `tokens` more fit behind every request's context."""
        if self.max_length + tokens > self.capacity:
            raise ValueError(
                f"{tokens} tokens do not fit into the cache: {self.max_length} of its"
                f" {self.capacity} positions are taken"
            )

    def advance(self, tokens: int) -> None:
        """Count `tokens` more, which a causal forward has written, as context of every request."""
        self.check_room(tokens)
        self.lengths += tokens
        self.max_length += tokens


def views_of(cache: "KVCache | PagedKVCache") -> list[CacheView]:
    """Per layer a cache's tensors, as the ops take them."""
    layers = zip(cache.keys, cache.values, cache.key_scales, cache.value_scales, strict=True)
    return [
        CacheView(keys, values, cache.lengths, cache.block_table, key_scale, value_scale)
        for keys, values, key_scale, value_scale in layers
    ]
