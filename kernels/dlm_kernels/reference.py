"""Float64 oracles, one request and one row at a time: slow, plain, for tests only.

Signatures are those of the custom ops. Each function restates its op from the definition; none
shares code or method with the torch or Triton backends.
"""

import math

import torch
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
    batch, block, query_heads, head_dim = q.shape
    group = query_heads // k_cache.shape[2]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.empty(batch, block, query_heads, dtype=torch.float64, device=q.device)
    for b in range(batch):
        length = int(context_lens[b])
        context = min(max(length, 0), context_limit)
        if context != length and error is not None:
            error |= error_word.LENGTH_OUT_OF_RANGE
        for i in range(block):
            if k is None:
                keys, values = k_cache[b, : context + i + 1], v_cache[b, : context + i + 1]
            else:
                keys = torch.cat([k_cache[b, :context], k[b]])
                values = torch.cat([v_cache[b, :context], v[b]])
            for h in range(query_heads):
                scores = keys[:, h // group].double() @ q[b, i, h].double() * scale
                lse[b, i, h] = scores.logsumexp(0)
                out[b, i, h] = (scores - lse[b, i, h]).exp() @ values[:, h // group].double()
    return out.to(q.dtype), (lse.float() if return_lse else q.new_empty(0, dtype=torch.float32))


def confidence(
    logits: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    entropy: bool,
    margin: bool,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, vocab = logits.shape
    bans = [] if banned is None else banned.tolist()
    if error is not None and any(not 0 <= i < vocab for i in bans):
        error |= error_word.ID_OUT_OF_RANGE
    eligible = [i for i in range(vocab) if i not in set(bans)]
    results = []
    for row in range(rows):
        if tokens is not None and int(tokens[row]) != mask_id:
            results.append((-1, 0.0, 0.0, 0.0, 0.0))
            continue
        x = logits[row].double()
        if x.isnan().any() and error is not None:
            error |= error_word.NAN_LOGITS
        results.append(_row_statistics(x, eligible))
    columns = list(zip(*results, strict=True)) if results else [()] * 5
    token = torch.tensor(columns[0], dtype=torch.int32, device=logits.device)
    floats = [torch.tensor(c, dtype=torch.float32, device=logits.device) for c in columns[1:]]
    for i, asked in ((2, entropy), (3, margin)):
        floats[i] = floats[i] if asked else floats[i].new_empty(0)
    return token, *floats


def _row_statistics(x: Tensor, eligible: list[int]) -> tuple[int, float, float, float, float]:
    """(token, probability, log-sum-exp, entropy, margin) of one float64 row."""
    invalid = (-1, math.nan, math.nan, math.nan, math.nan)
    if x.isnan().any() or not eligible:
        return invalid
    ranked = sorted(eligible, key=lambda i: (-float(x[i]), i))[:2]
    best = float(x[ranked[0]])
    infinities = int((x == math.inf).sum())
    if infinities:
        only = infinities == 1 and best == math.inf
        return (ranked[0], 1.0, math.inf, 0.0, 1.0) if only else invalid
    if best == -math.inf:
        return invalid
    peak = x.max()
    lse = peak + (x - peak).exp().sum().log()
    p = (x - lse).exp()
    second = float(p[ranked[1]]) if len(ranked) > 1 else 0.0
    probability = float(p[ranked[0]])
    entropy = float(-(p[p > 0] * p[p > 0].log()).sum())
    return ranked[0], probability, float(lse), entropy, probability - second


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
    for b in range(tokens.shape[0]):
        if done[b]:
            continue
        now = int(step[b])
        masked = [i for i, token in enumerate(tokens[b].tolist()) if token == mask_id]
        quota = math.ceil(len(masked) / max(1, steps - now)) if steps else top_k
        usable = [
            i
            for i in masked
            if candidate[b, i] >= 0 and candidate[b, i] != mask_id and not confidence[b, i].isnan()
        ]
        ranked = sorted(usable, key=lambda i: (-float(confidence[b, i]), i))
        commit = [i for n, i in enumerate(ranked) if n < quota or confidence[b, i] >= threshold]
        if masked and not commit and error is not None:
            error |= error_word.NO_CANDIDATE
        for i in commit:
            tokens[b, i] = candidate[b, i]
            commit_step[b, i] = now
            commit_confidence[b, i] = confidence[b, i]
        step[b] = now + 1
        final = tokens[b].tolist()
        masks_left[b] = final.count(mask_id)
        first_mask = final.index(mask_id) if mask_id in final else len(final)
        done[b] = first_mask == len(final) or eos_id in final[:first_mask]
