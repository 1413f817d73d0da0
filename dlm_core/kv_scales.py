"""Scales of a cache in 8 bits: a key or value is its head's scale times what the cache holds."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels.cache_layout import CACHE_DTYPE
from dlm_kernels.validate import check_tensor

from .config import ModelConfig


class KVScales(NamedTuple):
    """Scales of keys and of values: float32 [layers, kv_heads] each, positive."""

    keys: Tensor
    values: Tensor


def scales_of_cache(
    scales: KVScales | None,
    config: ModelConfig,
    device: torch.device | str,
    dtype: torch.dtype,
) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """The scales of keys and of values per layer: ones unless given, None where dtype has none.

    Raises:
        TypeError, ValueError: scales do not fit the model, are not positive and finite, or are
            given for a cache that has none.
    """
    layers, kv_heads = config.num_hidden_layers, config.num_key_value_heads
    if dtype != CACHE_DTYPE:
        if scales is not None:
            raise ValueError(f"scales are given; a cache in {dtype} has none")
        return [None] * layers, [None] * layers
    if scales is not None and not isinstance(scales, KVScales):
        raise TypeError(f"scales is a {type(scales).__name__}; it must be a KVScales")
    if scales is None:
        ones = torch.ones(layers, kv_heads, device=device)
        scales = KVScales(ones, ones)
    for name, tensor in zip(("scales.keys", "scales.values"), scales, strict=True):
        check_tensor(name, tensor, shape=(layers, kv_heads), dtypes=(torch.float32,))
        if not (tensor.isfinite() & (tensor > 0)).all():
            raise ValueError(f"{name} holds a number that is not positive and finite")
    keys, values = (list(tensor.to(device).contiguous()) for tensor in scales)
    return keys, values
