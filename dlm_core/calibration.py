"""Scales of a float8 cache by what a model makes of given text."""

import torch
from torch import Tensor

from dlm_kernels.cache_layout import CACHE_DTYPE
from dlm_kernels.validate import ID_DTYPES, MAX_BLOCK, check_tensor

from .cache import KVCache
from .kv_scales import KVScales
from .model import Model

LARGEST = torch.finfo(CACHE_DTYPE).max  # 448; what is larger is stored as this


def calibrated_kv_scales(model: Model, tokens: Tensor) -> KVScales:
    """Scales with which the largest key and value of each layer and KV head is just representable.

    The `tokens`, int32 or int64 [batch, n], run through the model causally over an ordinary
    cache, 256 at a time. There is no margin: what is larger on other text is cut off at its head's
    largest here, so tokens should be many and of the kind that will be decoded. A head that is zero
    throughout has scale 1.

    Raises:
        TypeError, ValueError: tokens is no such tensor, holds an id outside the vocabulary, or is
            longer than the model's positions.
    """
    check_tensor("tokens", tokens, shape=("batch", "n"), dtypes=ID_DTYPES)
    vocab, longest = model.config.vocab_size, model.config.max_position_embeddings
    if tokens.numel() == 0 or tokens.shape[1] > longest:
        raise ValueError(
            f"tokens has shape {list(tokens.shape)}; it must be [batch, n], n from 1 to {longest}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab:
        outside = low if low < 0 else high
        raise ValueError(f"tokens holds {outside}; ids must be in [0, {vocab})")
    batch, n = tokens.shape
    cache = KVCache(model.config, batch, n, device=model.device, dtype=model.dtype)
    for block in tokens.to(model.device).split(MAX_BLOCK, 1):
        model(block, cache, causal=True)
        cache.advance(block.shape[1])
    scales = []
    for tensors in (cache.keys, cache.values):
        largest = torch.stack([x.abs().amax((0, 1, 3)).float() for x in tensors])
        scales.append(torch.where(largest > 0, largest / LARGEST, 1.0))
    return KVScales(*scales)
