"""Every op in plain torch, in the input's dtype: the CPU default and a device-independent fallback.

Each function has the signature and the meaning of the custom op of the same name; the op's own
file documents both. Softmax statistics are taken in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import error_word


def block_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    context_lens: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    scale: float,
    numerics: str,
    context_limit: int,
    return_lse: bool,
    error: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, block, query_heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((batch, block, query_heads) if return_lse else 0, dtype=torch.float32)
    in_range = context_lens.clamp(0, context_limit)
    error_word.set_where(error, in_range != context_lens, error_word.LENGTH_OUT_OF_RANGE)

    for b, context in enumerate(in_range.tolist()):
        if k is not None:
            keys = torch.cat([k_cache[b, :context], k[b]])
            values = torch.cat([v_cache[b, :context], v[b]])
            visible = None
        else:
            keys, values = k_cache[b, : context + block], v_cache[b, : context + block]
            position = torch.arange(context + block, device=q.device)
            visible = position <= position[context:, None]
        # Heads first, as SDPA wants them; the query heads of one group share their KV head.
        queries, keys, values = (x.transpose(0, 1)[None] for x in (q[b], keys, values))
        attended = F.scaled_dot_product_attention(
            queries, keys, values, visible, scale=scale, enable_gqa=True
        )
        out[b] = attended[0].transpose(0, 1)
        if return_lse:
            group = query_heads // keys.shape[1]
            scores = queries[0] @ keys[0].repeat_interleave(group, 0).mT
            scores = scores.float() * scale
            if visible is not None:
                scores = scores.masked_fill(~visible, -math.inf)
            lse[b] = scores.logsumexp(-1).T
    return out, lse


def confidence(
    logits: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    entropy: bool,
    margin: bool,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = logits.float()
    p = x.softmax(-1)
    peak_id = x.argmax(-1)
    peak, p_peak = _at(x, peak_id), _at(p, peak_id)  # NaN where the row holds one
    lse = peak - p_peak.log()

    # What follows is rare, so only the rows concerned are read again.
    token, best = peak_id.clone(), peak.clone()
    bans = x.new_empty(0, dtype=torch.int64)
    if banned is not None:
        in_range = (banned >= 0) & (banned < x.shape[-1])
        error_word.set_where(error, ~in_range, error_word.ID_OUT_OF_RANGE)
        bans = banned[in_range].long()
        rows = torch.isin(peak_id, bans).nonzero()[:, 0]
        allowed = x[rows].index_fill(-1, bans, -math.inf)
        token[rows] = allowed.argmax(-1)
        best[rows] = _at(allowed, token[rows])
    infinite = peak == math.inf
    certain = infinite & (best == math.inf)
    rows = certain.nonzero()[:, 0]
    certain[rows] = (x[rows] == math.inf).sum(-1) == 1
    valid = torch.where(infinite, certain, best > -math.inf) & ~peak.isnan()
    active = torch.ones_like(valid) if tokens is None else tokens == mask_id
    error_word.set_where(error, active & peak.isnan(), error_word.NAN_LOGITS)

    def statistic(value: Tensor, if_certain: float) -> Tensor:
        value = torch.where(certain, if_certain, value)
        value = torch.where(valid, value, math.nan)
        return torch.where(active, value, 0.0)

    probability = _at(p, token)
    row_entropy, row_margin = x.new_empty(0), x.new_empty(0)
    if entropy:
        row_entropy = statistic(torch.special.entr(p).sum(-1), 0.0)
    if margin:
        others = p.index_fill(-1, bans, 0).scatter_(-1, token[:, None], 0)
        row_margin = statistic(probability - others.amax(-1), 1.0)
    token = torch.where(active & valid, token, -1).int()
    return token, statistic(probability, 1.0), statistic(lse, math.inf), row_entropy, row_margin


def _at(rows: Tensor, ids: Tensor) -> Tensor:
    """The element of each of `rows` [rows, V] at its id in `ids` [rows]."""
    return rows.gather(-1, ids[:, None])[:, 0]


def remask_scatter(
    tokens: Tensor,
    commit_step: Tensor,
    commit_confidence: Tensor,
    masks_left: Tensor,
    step: Tensor,
    done: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    mask_id: int,
    eos_id: int,
    threshold: float,
    top_k: int,
    steps: int,
    error: Tensor | None,
) -> None:
    active = ~done
    masked = tokens == mask_id
    usable = masked & (candidate >= 0) & (candidate != mask_id) & ~confidence.isnan()
    usable &= active[:, None]

    # rank[b, i]: how many usable positions come before i, by confidence and then by position.
    position = torch.arange(tokens.shape[1], device=tokens.device)
    mine, other = confidence[:, :, None], confidence[:, None, :]
    ahead = (other > mine) | ((other == mine) & (position < position[:, None]))
    rank = (ahead & usable[:, None, :]).sum(-1)
    quota = torch.full_like(step, top_k)
    if steps:
        steps_left = (steps - step).clamp(min=1)
        quota = (masked.sum(1) + steps_left - 1) // steps_left
    commit = usable & ((rank < quota[:, None]) | (confidence >= threshold))

    error_word.set_where(error, active & masked.any(1) & ~commit.any(1), error_word.NO_CANDIDATE)
    tokens.copy_(torch.where(commit, candidate.to(tokens.dtype), tokens))
    commit_step.copy_(torch.where(commit, step[:, None], commit_step))
    commit_confidence.copy_(torch.where(commit, confidence, commit_confidence))
    masked = tokens == mask_id
    masks_left.copy_(torch.where(active, masked.sum(1), masks_left))
    step += active
    unresolved = masked.cumsum(1) > 0
    done |= ~masked.any(1) | ((tokens == eos_id) & ~unresolved).any(1)
