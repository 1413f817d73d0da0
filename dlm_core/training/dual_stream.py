"""The forward of training: whole rows at once, under the mask of the two streams.

A clean token sees its document's clean tokens up to itself. A noisy one sees its whole block, and
its document's clean tokens before the block. That is what a causal forward and a denoising step of
`Model` see with the context in a cache, for every position of a document at once (dual stream:
Block Diffusion, arXiv 2503.09573; the clean stream causal as in Nemotron-Labs Diffusion).
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ..model import LayerInputs, Model
from .rows import Rows


def sees(rows: Rows, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether tokens `query` of rows `row` attend to tokens `key`; index tensors broadcast."""
    same_document = rows.document[row, query] == rows.document[row, key]
    query_block, key_block = rows.block[row, query], rows.block[row, key]
    query_position, key_position = rows.positions[row, query], rows.positions[row, key]
    causal = (query_block < 0) & (key_position <= query_position)
    before_block = (query_block >= 0) & (key_position < rows.block_start[row, query])
    key_is_seen = torch.where(key_block < 0, causal | before_block, key_block == query_block)
    # What fills a row up sees itself, so that its softmax has a finite sum.
    return (same_document & key_is_seen) | (query == key)


def hidden_states(model: Model, rows: Rows, *, lora: bool = False) -> Tensor:
    """Hidden states behind the final norm of rows [batch, length], with gradients."""
    attend = _flex_attend(rows) if rows.tokens.is_cuda else _masked_attend(rows)
    rotations, config = model.rotary(rows.positions), model.config
    query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def attend_to(layer: int, qkv: Tensor) -> Tensor:
        heads = qkv.unflatten(-1, (-1, config.head_dim))
        q, k, v = heads.split([query_heads, kv_heads, kv_heads], -2)
        return attend(*rotations.apply(q, k), v)

    return model.encoder(rows.tokens, LayerInputs(attend_to, "autograd", lora))


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _masked_attend(rows: Rows) -> Attend:
    """Attention under a mask in memory; scores are rounded to the dtype of the queries.

    Spelt out, for torch's fused attention is slower on a CPU at these lengths, most of all its
    backward, and needs the keys repeated for every query head.
    """
    batch, length = rows.tokens.shape
    row = torch.arange(batch, device=rows.tokens.device)[:, None, None]
    index = torch.arange(length, device=rows.tokens.device)
    seen = sees(rows, row, index[:, None], index[None, :])[:, None]
    bias = seen.new_zeros(seen.shape, dtype=torch.float32).masked_fill(~seen, -math.inf)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n_heads, n_kv_heads, head_dim = q.shape[2], k.shape[2], q.shape[3]
        # The query heads of one key head lie below each other: [batch * kv heads, rows, head_dim].
        q = (q * head_dim**-0.5).unflatten(2, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4)
        q = q.reshape(batch * n_kv_heads, -1, head_dim)
        k, v = (x.transpose(1, 2).flatten(0, 1) for x in (k, v))
        scores = torch.bmm(q, k.transpose(1, 2)).view(batch, n_heads, length, length)
        weights = (scores + bias.to(scores.dtype)).softmax(-1, dtype=scores.dtype)
        out = torch.bmm(weights.view(batch * n_kv_heads, -1, length), v)
        return out.view(batch, n_heads, length, head_dim).transpose(1, 2)

    return attend


def _flex_attend(rows: Rows) -> Attend:
    """FlexAttention, which skips tiles that the mask leaves empty."""
    batch, length = rows.tokens.shape
    mask = create_block_mask(
        lambda row, head, query, key: sees(rows, row, query, key),
        batch,
        None,
        length,
        length,
        device=rows.tokens.device,
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)

    return attend


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)
