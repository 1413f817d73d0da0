"""Token rows batched behind contexts of any lengths, for what is scored against known tokens."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dlm_core import KVCache, KVScales, Model
from dlm_kernels.cache_layout import CACHE_DTYPE
from dlm_kernels.validate import MAX_BLOCK


def batches(rows: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """Indices of the rows, `size` at a time, those of like length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def padded(
    rows: Sequence[list[int]], model: Model, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Ids int32 [batch, length], EOS behind each row's end, and which are the rows' own, bool."""
    length = max(map(len, rows)) if length is None else length
    tokens = torch.full((len(rows), length), model.config.eos_token_id, dtype=torch.int32)
    known = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
        known[i, : len(row)] = True
    return tokens.to(model.device), known.to(model.device)


def new_cache(
    model: Model, batch: int, capacity: int, *, kv_scales: KVScales | None = None
) -> KVCache:
    """An empty cache of the model's dtype, or float8 over scales, within the model's positions."""
    capacity = min(capacity, model.config.max_position_embeddings)
    dtype = model.dtype if kv_scales is None else CACHE_DTYPE
    return KVCache(
        model.config, batch, capacity, device=model.device, dtype=dtype, scales=kv_scales
    )


def after_contexts(
    model: Model,
    contexts: Sequence[list[int]],
    room: int,
    *,
    kv_scales: KVScales | None = None,
) -> KVCache:
    """A cache that holds each context, and `room` positions behind the longest."""
    tokens, known = padded(contexts, model)
    cache = new_cache(model, len(contexts), tokens.shape[1] + room, kv_scales=kv_scales)
    for begin in range(0, tokens.shape[1], MAX_BLOCK):
        chunk = tokens[:, begin : begin + MAX_BLOCK]
        model(chunk, cache, causal=True)
        cache.advance(chunk.shape[1])
    # What was written behind a shorter context is none, and the next tokens replace it.
    cache.lengths.copy_(known.sum(1))
    return cache
