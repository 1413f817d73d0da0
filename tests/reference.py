"""Every op in float64, restated from its definition: what tests hold the backends to.

Functions take what those of `dlm_kernels` take, check nothing, and go one request and one row at a
time. Floats come back in float64, not rounded but where the definition rounds. No method is shared
with a backend.
"""

import math

import torch
from torch import Tensor

from dlm_kernels import BlockState, Confidence, Noise, QuantizedWeight, Rule, RuleTable, error_word
from dlm_kernels.noise import RANDOM_CONFIDENCE, RENOISE
from dlm_kernels.partial_sums import PartialSums
from dlm_kernels.rules import COUNTS, ENTROPY_UNITS, NUMBERS


def block_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    context_lens: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    block_table: Tensor | None = None,
    draft_groups: tuple[int, int] | None = None,
    scale: float | None = None,
    numerics: str = "batch_invariant",
    max_context: int | None = None,
    return_lse: bool = False,
    error: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    batch, block, query_heads, head_dim = q.shape
    scale = head_dim**-0.5 if scale is None else scale
    seen_by = [visible(i, block, k is None, draft_groups) for i in range(block)]
    most = seen_by[-1][0]
    limit = _capacity(k_cache, block_table) - most if max_context is None else max_context
    # The query heads of a KV head, side by side.
    queries = q.double().unflatten(2, (k_cache.shape[2], -1))
    out, lse = torch.empty_like(queries), torch.empty_like(queries[..., 0])
    for b in range(batch):
        context = min(max(int(context_lens[b]), 0), limit)
        if context != int(context_lens[b]):
            _report(error, error_word.LENGTH_OUT_OF_RANGE)
        keys, values = (
            _in_order(cache, b, block_table, context + most, error).double()
            for cache in (k_cache, v_cache)
        )
        if k_scale is not None:
            keys, values = keys * k_scale[:, None], values * v_scale[:, None]
        for i, (own, fresh) in enumerate(seen_by):
            seen_keys, seen_values = keys[: context + own], values[: context + own]
            if fresh:
                seen_keys = torch.cat([seen_keys, k[b, fresh]])
                seen_values = torch.cat([seen_values, v[b, fresh]])
            scores = torch.einsum("hgd,nhd->hgn", queries[b, i], seen_keys) * scale
            lse[b, i] = scores.logsumexp(-1)
            out[b, i] = torch.einsum("hgn,nhd->hgd", scores.softmax(-1), seen_values)
    out, lse = out.flatten(2, 3), lse.flatten(2)
    return (out, lse) if return_lse else out


def visible(
    i: int, block: int, causal: bool, draft_groups: tuple[int, int] | None
) -> tuple[int, list[int]]:
    """How many of the block's keys query i sees in the cache, and which fresh ones."""
    if causal:
        return i + 1, []
    if draft_groups is None:
        return 0, list(range(block))
    groups, length = draft_groups
    lead = block - groups * length
    if i < lead:
        return i + 1, []
    group, slot = divmod(i - lead, length)
    first = lead + group * length
    return lead + group + 1, list(range(first + 1, first + length)) if slot else []


def _capacity(cache: Tensor, block_table: Tensor | None) -> int:
    return cache.shape[1] * (1 if block_table is None else block_table.shape[1])


def _in_order(
    cache: Tensor, b: int, block_table: Tensor | None, seen: int, error: Tensor | None
) -> Tensor:
    """The first `seen` keys or values of a request."""
    if block_table is None:
        return cache[b, :seen]
    pages, page_size = cache.shape[:2]
    gathered = cache.new_zeros((seen, *cache.shape[2:]))
    for first in range(0, seen, page_size):
        page = int(block_table[b, first // page_size])
        if not 0 <= page < pages:
            _report(error, error_word.PAGE_OUT_OF_RANGE)
        last = min(first + page_size, seen)
        gathered[first:last] = cache[min(max(page, 0), pages - 1), : last - first]
    return gathered


def _report(error: Tensor | None, bit: int) -> None:
    if error is not None:
        error |= bit


def linear(
    x: Tensor, weight: Tensor | QuantizedWeight, *, numerics: str = "batch_invariant"
) -> Tensor:
    if isinstance(weight, QuantizedWeight):
        weight = dequantized(weight)
    return x.double() @ weight.double().T


def linear_partials(
    x: Tensor, weight: Tensor | QuantizedWeight, *, numerics: str = "batch_invariant"
) -> PartialSums:
    return PartialSums(linear(x, weight)[None], torch.float64)


def dequantized(weight: QuantizedWeight) -> Tensor:
    """What a weight's bytes stand for by the format's description."""
    values, scales = weight.values, weight.scales.double()
    if weight.kind != "int4":
        return values.double() * scales[:, None]
    column = torch.arange(weight.in_features, device=values.device)
    byte = values[:, column // 128 * 64 + column % 64].long()
    integers = torch.where(column % 128 < 64, byte % 16, byte // 16) - 8
    return integers * scales[:, column // 128]


def _added_up(product: Tensor | PartialSums) -> Tensor:
    """A product in its dtype; parts are added one after the other in float32, and rounded once."""
    if isinstance(product, Tensor):
        return product
    total = torch.zeros_like(product.sums[0], dtype=torch.float32)
    for segment in product.sums:
        total += segment
    return total.to(product.dtype)


def residual_norm(
    residual: Tensor, update: Tensor | PartialSums | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    if update is not None:
        residual = (residual.double() + _added_up(update).double()).to(residual.dtype)
    normed = torch.empty_like(residual, dtype=torch.float64)
    for row, x in zip(normed.flatten(0, -2), residual.flatten(0, -2).double(), strict=True):
        row.copy_(x / (x.square().mean() + eps).sqrt() * weight.double())
    return residual.double(), normed


def gated_silu(gate_up: Tensor | PartialSums) -> Tensor:
    product = _added_up(gate_up)
    gate, up = product.double().chunk(2, -1)
    return (gate * gate.sigmoid()).to(product.dtype).double() * up


def rope_kv_write(
    qkv: Tensor | PartialSums,
    cos: Tensor,
    sin: Tensor,
    query_scale: Tensor,
    *,
    kv_heads: int,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    context_lens: Tensor | None = None,
    block_table: Tensor | None = None,
    draft_groups: tuple[int, int] | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    error: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    product = _added_up(qkv)
    batch, block, features = product.shape
    head_dim = 2 * cos.shape[-1]
    heads = product.double().view(batch, block, features // head_dim, head_dim)
    for b in range(batch):
        for i in range(block):
            turn = torch.complex(cos[b, i].double(), sin[b, i].double())
            for h in range(heads.shape[2] - kv_heads):
                turned = torch.complex(*heads[b, i, h].view(2, -1)) * turn
                if h < heads.shape[2] - 2 * kv_heads:
                    turned *= query_scale[b, i]
                heads[b, i, h] = torch.cat([turned.real, turned.imag])
    q, k, v = heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
    if k_cache is None:
        return q, k, v
    kept = range(block)
    if draft_groups is not None:
        groups, length = draft_groups
        lead = block - groups * length
        kept = [*range(lead), *range(lead, block, length)]
    for b in range(batch):
        for place, i in enumerate(kept):
            position = int(context_lens[b]) + place
            for cache, x, scale in ((k_cache, k[b, i], k_scale), (v_cache, v[b, i], v_scale)):
                x = x.to(product.dtype)
                if scale is not None:
                    x = (x.double() / scale[:, None].double()).clamp(-448, 448)
                _cached_at(cache, b, block_table, position, error).copy_(x)
    return (q, None, None) if draft_groups is None else (q, k, v)


def _cached_at(
    cache: Tensor, b: int, block_table: Tensor | None, position: int, error: Tensor | None
) -> Tensor:
    """Where a request's key or value [kv_heads, head_dim] of a position lies."""
    capacity = _capacity(cache, block_table)
    if not 0 <= position < capacity:
        position = min(max(position, 0), capacity - 1)
        _report(error, error_word.LENGTH_OUT_OF_RANGE)
    if block_table is None:
        return cache[b, position]
    pages, page_size = cache.shape[:2]
    page = int(block_table[b, position // page_size])
    if not 0 <= page < pages:
        _report(error, error_word.PAGE_OUT_OF_RANGE)
    return cache[min(max(page, 0), pages - 1), position % page_size]


def confidence(
    logits: Tensor,
    *,
    tokens: Tensor | None = None,
    mask_id: int | None = None,
    banned: Tensor | None = None,
    entropy: bool = False,
    margin: bool = False,
    error: Tensor | None = None,
) -> Confidence:
    rows, vocab = logits.shape
    bans = [] if banned is None else banned.tolist()
    if any(not 0 <= i < vocab for i in bans):
        _report(error, error_word.ID_OUT_OF_RANGE)
    bans = [i for i in bans if 0 <= i < vocab]
    results = []
    for row in range(rows):
        if tokens is not None and int(tokens[row]) != mask_id:
            results.append((-1, 0.0, 0.0, 0.0, 0.0))
            continue
        x = logits[row].double()
        if x.isnan().any():
            _report(error, error_word.NAN_LOGITS)
        results.append(_row_statistics(x, bans))
    columns = list(zip(*results, strict=True)) if results else [()] * 5
    token, *floats = (torch.tensor(column, device=logits.device) for column in columns)
    probability, logsumexp, row_entropy, row_margin = (x.double() for x in floats)
    return Confidence(
        token.int(),
        probability,
        logsumexp,
        row_entropy if entropy else None,
        row_margin if margin else None,
    )


def _row_statistics(x: Tensor, bans: list[int]) -> tuple[int, float, float, float, float]:
    """(token, probability, log-sum-exp, entropy, margin) of one float64 row."""
    invalid = (-1, math.nan, math.nan, math.nan, math.nan)
    allowed = x.clone()
    allowed[bans] = -math.inf
    best = float(allowed.max())
    infinities = int((x == math.inf).sum())
    certain = infinities == 1 and best == math.inf
    if x.isnan().any() or best == -math.inf or (infinities and not certain):
        return invalid
    token = int((allowed == best).nonzero()[0])
    if certain:
        return token, 1.0, math.inf, 0.0, 1.0
    peak = x.max()
    lse = peak + (x - peak).exp().sum().log()
    p = (x - lse).exp()
    probability = float(p[token])
    entropy = float(-(p[p > 0] * p[p > 0].log()).sum())
    p[[*bans, token]] = 0.0
    return token, probability, float(lse), entropy, probability - float(p.max())


def lm_head_confidence(
    hidden: Tensor, weight: Tensor, *, numerics: str = "batch_invariant", **options
) -> Confidence:
    return confidence(linear(hidden, weight).to(hidden.dtype), **options)


def lm_head_partials(
    hidden: Tensor,
    weight: Tensor,
    *,
    first_id: int,
    entropy: bool = False,
    margin: bool = False,
    **options,
) -> tuple[Tensor, bool, bool]:
    """A shard's logits, which are what `merge_partials` puts together here."""
    return linear(hidden, weight).to(hidden.dtype), entropy, margin


def merge_partials(partials: list[tuple[Tensor, bool, bool]], **options) -> Confidence:
    logits, (entropy, *_), (margin, *_) = zip(*partials, strict=True)
    return confidence(torch.cat(logits, 1), entropy=entropy, margin=margin, **options)


def remask_scatter(
    state: BlockState,
    candidate: Tensor,
    confidence: Tensor,
    rule: Rule | RuleTable,
    *,
    mask_id: int,
    eos_id: int | None = None,
    token_probability: Tensor | None = None,
    noise: Noise | None = None,
    error: Tensor | None = None,
) -> None:
    tokens, fixed, commit_step, commit_confidence, masks_left, step, edit_step, done = state
    if isinstance(rule, Rule):
        rule = RuleTable.pack([rule] * len(tokens), tokens.device)
    for b in range(tokens.shape[0]):
        if done[b]:
            continue
        own = dict(zip(NUMBERS, rule.numbers[b], strict=True))
        own |= dict(zip(COUNTS, rule.counts[b].tolist(), strict=True))
        now, before = int(step[b]), tokens[b].tolist()
        block = range(len(before))
        ids, sure = candidate[b].tolist(), confidence[b].clone()

        def draw(i: int, stream: int, b: int = b, now: int = now) -> int:
            return _philox(int(noise.seed[b]), (0, int(noise.position[b]) + i, now, stream))

        if own["random"]:
            for i in block:
                sure[i] = ((draw(i, RANDOM_CONFIDENCE) >> 9) + 0.5) / 2**23
        free = [i for i in block if not fixed[b, i]]
        if own["revise"]:
            undecided = list(free)
        elif own["renoise"]:
            undecided = [i for i in free if commit_step[b, i] < 0]
        else:
            undecided = [i for i in free if before[i] == mask_id]
        decided = [i for i in free if i not in undecided]
        valid = [i for i in block if ids[i] >= 0 and ids[i] != mask_id and not sure[i].isnan()]

        # Commit.
        last = 0 < own["steps"] <= now + 1
        quota = own["top_k"]
        if last:
            quota = len(undecided)
        elif own["steps"] and not own["revise"]:
            quota = math.ceil(len(undecided) / (own["steps"] - now))
        ranked = sorted(
            (i for i in undecided if i in valid), key=lambda i, sure=sure: (-float(sure[i]), i)
        )
        commit, entropy = [], 0
        for n, i in enumerate(ranked):
            passes = sure[i] > own["threshold"]
            passes |= sure[i] == own["threshold"] and not own["strict"]
            passes |= (n + 2) * (1 - sure[i]) < own["factor"]
            if not own["entropy_scale"].isnan():
                passes |= entropy <= ENTROPY_UNITS
                halves = float(-sure[i] * own["entropy_scale"])
                entropy += (int(min(max(halves, 0), 2 * ENTROPY_UNITS + 2)) + 1) // 2
            if n < quota or passes:
                commit.append(i)
        if undecided and not commit:
            _report(error, error_word.NO_CANDIDATE)

        # Edit.
        may_end = [] if own["revise"] else free
        was_settled = _settled(before, may_end, undecided, eos_id)
        edit = []
        if not was_settled or edit_step[b] < own["edit_steps"]:
            edit = [
                i
                for i in decided
                if i in valid and ids[i] != before[i] and sure[i] > own["edit_threshold"]
            ]

        # Remask.
        left = [i for i in undecided if i not in commit]
        if rule.uses_token_probability and not last:
            likely = token_probability[b].tolist()
            doubtful = [
                i for i in decided if i not in edit and likely[i] < float(own["remask_below"])
            ]
            doubtful.sort(key=lambda i, likely=likely: (likely[i], i))
            whole_draft = now == 0 and not undecided
            left += doubtful if whole_draft else doubtful[: max(len(commit) - 1, 0)]

        for i in commit + edit:
            tokens[b, i], commit_step[b, i], commit_confidence[b, i] = ids[i], now, sure[i]
        for i in left:
            tokens[b, i], commit_step[b, i], commit_confidence[b, i] = mask_id, -1, 0
            if own["renoise"]:
                drawn = draw(i, RENOISE) % noise.vocab_size
                tokens[b, i] = drawn if drawn != mask_id else (mask_id + 1) % noise.vocab_size
        masks_left[b] = len(left)
        step[b] = now + 1
        edit_step[b] += was_settled
        no_more_edits = edit_step[b] >= own["edit_steps"] or (was_settled and not edit)
        settled = _settled(tokens[b].tolist(), may_end, left, eos_id) and no_more_edits
        done[b] = settled or (own["revise"] and last)


def _settled(tokens: list[int], may_end: list[int], undecided: list[int], eos_id: int | None):
    """Whether nothing is undecided, or an EOS that may end the block stands before all of it."""
    if not undecided:
        return True
    return any(i in may_end and tokens[i] == eos_id for i in range(min(undecided)))


def _philox(key: int, counter: tuple[int, int, int, int]) -> int:
    """The first word of Philox 4x32-10 (Salmon et al., SC 2011, section 3.1)."""
    word = 2**32
    c0, c1, c2, c3 = counter
    k0, k1 = key % word, key // word % word
    for _ in range(10):
        product_0, product_2 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = product_2 // word ^ c1 ^ k0, product_2 % word
        c2, c3 = product_0 // word ^ c3 ^ k1, product_0 % word
        k0, k1 = (k0 + 0x9E3779B9) % word, (k1 + 0xBB67AE85) % word
    return c0
