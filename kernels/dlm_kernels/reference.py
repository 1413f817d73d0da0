"""Float64 oracles, one request and one row at a time: slow, plain, for tests only.

Signatures are those of the custom ops. Each function restates its op from the definition; none
shares code or method with the torch or Triton backends.
"""

import math

import torch
from torch import Tensor

from . import error_word, launch
from .noise import RANDOM_CONFIDENCE, RENOISE
from .rules import COUNTS, ENTROPY_UNITS, NUMBERS


def block_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    context_lens: Tensor,
    block_table: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    lead: int,
    draft_length: int,
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
        most, _ = _visible(block - 1, block, k is None, lead, draft_length)
        cached_keys, cached_values = (
            _in_order(cache, b, block_table, context + most, error) for cache in (k_cache, v_cache)
        )
        if k_scale is not None:
            cached_keys = cached_keys.double() * k_scale[:, None]
            cached_values = cached_values.double() * v_scale[:, None]
        for i in range(block):
            own, fresh = _visible(i, block, k is None, lead, draft_length)
            keys, values = cached_keys[: context + own], cached_values[: context + own]
            if fresh:
                keys = torch.cat([keys, k[b, fresh]])
                values = torch.cat([values, v[b, fresh]])
            for h in range(query_heads):
                scores = keys[:, h // group].double() @ q[b, i, h].double() * scale
                lse[b, i, h] = scores.logsumexp(0)
                out[b, i, h] = (scores - lse[b, i, h]).exp() @ values[:, h // group].double()
    return out.to(q.dtype), (lse.float() if return_lse else q.new_empty(0, dtype=torch.float32))


def _visible(
    i: int, block: int, causal: bool, lead: int, draft_length: int
) -> tuple[int, list[int]]:
    """How many of the block's keys query i sees in the cache, and which fresh ones."""
    if causal:
        return i + 1, []
    if not draft_length:
        return 0, list(range(block))
    if i < lead:
        return i + 1, []
    group, slot = divmod(i - lead, draft_length)
    first = lead + group * draft_length
    return lead + group + 1, list(range(first + 1, first + draft_length)) if slot else []


def _in_order(
    cache: Tensor, b: int, block_table: Tensor | None, seen: int, error: Tensor | None
) -> Tensor:
    """The first `seen` keys or values of a request."""
    if block_table is None:
        return cache[b, :seen]
    pages, page_size = cache.shape[:2]
    gathered = cache.new_empty(seen, *cache.shape[2:])
    for first in range(0, seen, page_size):
        page = int(block_table[b, first // page_size])
        if not 0 <= page < pages and error is not None:
            error |= error_word.PAGE_OUT_OF_RANGE
        last = min(first + page_size, seen)
        gathered[first:last] = cache[min(max(page, 0), pages - 1), : last - first]
    return gathered


def linear(x: Tensor, values: Tensor, scales: Tensor | None = None, kind: str = "plain") -> Tensor:
    weight = values.double()
    if kind == "int4":
        low, high = (values % 16, values // 16)
        groups = torch.stack([low.unflatten(1, (-1, 64)), high.unflatten(1, (-1, 64))], 2)
        weight = (groups.flatten(2).double() - 8) * scales.double()[..., None]
        weight = weight.flatten(1)[:, : x.shape[1]]
    elif kind != "plain":
        weight *= scales.double()[:, None]
    return (x.double() @ weight.T).to(x.dtype)


def _added_up(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Partial sums [segments, ...] one after the other in float32, as they are defined."""
    total = torch.zeros_like(sums[0], dtype=torch.float32)
    for segment in sums:
        total += segment
    return total.to(dtype)


def residual_norm(
    residual: Tensor, sums: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    out, normed = residual.clone(), torch.empty_like(residual)
    for row in range(len(residual)):
        if sums is not None:
            update = _added_up(sums[:, row], residual.dtype)
            out[row] = residual[row].double() + update.double()
        x = out[row].double()
        normed[row] = x / (x.square().mean() + eps).sqrt() * weight.double()
    return (residual.new_empty(0) if sums is None else out), normed


def gated_silu(sums: Tensor, dtype: torch.dtype) -> Tensor:
    out = sums.new_empty((sums.shape[1], sums.shape[2] // 2), dtype=dtype)
    for row in range(len(out)):
        product = _added_up(sums[:, row], dtype).double()
        gate, up = product[: len(product) // 2], product[len(product) // 2 :]
        out[row] = (gate * gate.sigmoid()).to(dtype).double() * up
    return out


def rope_kv_write(
    sums: Tensor,
    dtype: torch.dtype,
    cos: Tensor,
    sin: Tensor,
    query_scale: Tensor,
    kv_heads: int,
    k_cache: Tensor | None,
    v_cache: Tensor | None,
    context_lens: Tensor | None,
    block_table: Tensor | None,
    lead: int,
    draft_length: int,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    _, batch, block, features = sums.shape
    head_dim = 2 * cos.shape[-1]
    heads = _added_up(sums, dtype).view(batch, block, features // head_dim, head_dim)
    for b in range(batch):
        for i in range(block):
            turn = torch.complex(cos[b, i].double(), sin[b, i].double())
            for h in range(heads.shape[2] - kv_heads):
                first, second = heads[b, i, h].double().view(2, -1)
                turned = torch.complex(first, second) * turn
                if h < heads.shape[2] - 2 * kv_heads:
                    turned *= query_scale[b, i]
                heads[b, i, h] = torch.cat([turned.real, turned.imag])
    q, k, v = heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
    q, k, v = q.clone(), k.clone(), v.clone()
    if k_cache is None:
        return q, k, v
    for b in range(batch):
        kept = [i for i in range(block) if i < lead or not draft_length]
        kept += range(lead, block, draft_length) if draft_length else []
        for place, i in enumerate(kept):
            position = int(context_lens[b]) + place
            for cache, x, scale in ((k_cache, k[b, i], k_scale), (v_cache, v[b, i], v_scale)):
                if scale is not None:
                    x = (x.double() / scale[:, None].double()).clamp(-448, 448)
                _cached_at(cache, b, block_table, position, error).copy_(x)
        if int(context_lens[b]) < 0 and error is not None:
            error |= error_word.LENGTH_OUT_OF_RANGE
    return (q, k, v) if draft_length else (q, q.new_empty(0), q.new_empty(0))


def _cached_at(
    cache: Tensor, b: int, block_table: Tensor | None, position: int, error: Tensor | None
) -> Tensor:
    """Where a request's key or value [kv_heads, head_dim] of a position lies."""
    capacity = cache.shape[1] if block_table is None else block_table.shape[1] * cache.shape[1]
    if not 0 <= position < capacity:
        position = min(max(position, 0), capacity - 1)
        if error is not None:
            error |= error_word.LENGTH_OUT_OF_RANGE
    if block_table is None:
        return cache[b, position]
    pages, page_size = cache.shape[:2]
    page = int(block_table[b, position // page_size])
    if not 0 <= page < pages and error is not None:
        error |= error_word.PAGE_OUT_OF_RANGE
    return cache[min(max(page, 0), pages - 1), position % page_size]


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
    return _columns(results, entropy, margin, logits.device)


def _columns(
    results: list[tuple[int, float, float, float, float]],
    entropy: bool,
    margin: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a row each came to as a tensor each, empty where it was not asked for."""
    columns = list(zip(*results, strict=True)) if results else [()] * 5
    token = torch.tensor(columns[0], dtype=torch.int32, device=device)
    floats = [torch.tensor(c, dtype=torch.float32, device=device) for c in columns[1:]]
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


def lm_head_confidence(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    entropy: bool,
    margin: bool,
    numerics: str,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return confidence(linear(hidden, weight), tokens, mask_id, banned, entropy, margin, error)


def lm_head_partials(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    first_id: int,
    entropy: bool,
    margin: bool,
) -> tuple[Tensor, Tensor]:
    logits = linear(hidden, weight).double()
    vocab = logits.shape[1]
    chunk = launch.LM_HEAD[launch.arch_of(hidden.device)][hidden.element_size()].chunk
    bans = set() if banned is None else set(banned.tolist())
    statistics, best_ids = [], []
    for x in logits:
        for begin in range(0, vocab, chunk):
            ids = range(begin, min(begin + chunk, vocab))
            numbers = [float(x[i]) for i in ids if not x[i].isnan()]
            peak = max(numbers, default=-math.inf)
            peak = max(peak, torch.finfo(torch.float32).min)
            p = [1.0 if x[i] == peak else math.exp(x[i] - peak) for i in ids]
            weighted = sum(q * math.log2(q) for q in p if q > 0)
            choices = [i for i in ids if first_id + i not in bans and not x[i].isnan()]
            ranked = sorted(choices, key=lambda i, x=x: (-float(x[i]), i))[:2]
            values = [float(x[i]) for i in ranked] + [-math.inf] * (2 - len(ranked))
            statistics.append((peak, sum(p), *values, weighted))
            best_ids.append(first_id + ranked[0] if ranked else -1)
    size = (len(hidden), -(-vocab // chunk))
    columns = list(zip(*statistics, strict=True)) if statistics else [()] * 5
    packed = torch.tensor(columns, dtype=torch.float32, device=hidden.device)
    ids = torch.tensor(best_ids, dtype=torch.int32, device=hidden.device)
    return packed.view(5, *size), ids.view(size)


def merge_partials(
    statistics: Tensor,
    best_ids: Tensor,
    tokens: Tensor | None,
    mask_id: int,
    banned: Tensor | None,
    vocab: int,
    entropy: bool,
    margin: bool,
    error: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    bans = [] if banned is None else banned.tolist()
    if error is not None and any(not 0 <= i < vocab for i in bans):
        error |= error_word.ID_OUT_OF_RANGE
    results = []
    for row in range(len(best_ids)):
        if tokens is not None and int(tokens[row]) != mask_id:
            results.append((-1, 0.0, 0.0, 0.0, 0.0))
            continue
        peaks, totals, bests, seconds, weighteds = statistics[:, row].double()
        if totals.isnan().any() and error is not None:
            error |= error_word.NAN_LOGITS
        best = float(bests.max())
        infinities = float(totals[peaks == math.inf].sum())
        only = infinities == 1 and best == math.inf
        if totals.isnan().any() or best == -math.inf or (infinities and not only):
            results.append((-1, math.nan, math.nan, math.nan, math.nan))
            continue
        token = int(best_ids[row][bests == best].min())
        if only:
            results.append((token, 1.0, math.inf, 0.0, 1.0))
            continue
        peak = float(peaks.max())
        scale = (peaks - peak).exp()
        total = float((scale * totals).sum())
        mean = float((scale * (totals * (peaks - peak) + weighteds * math.log(2))).sum()) / total
        second = sorted(bests.tolist() + seconds.tolist())[-2] if margin else math.nan
        probability = math.exp(best - peak) / total
        statistics_of_row = (
            probability,
            peak + math.log(total),
            math.log(total) - mean,
            probability - math.exp(second - peak) / total,
        )
        results.append((token, *statistics_of_row))
    return _columns(results, entropy, margin, best_ids.device)


def remask_scatter(
    tokens: Tensor,
    fixed: Tensor,
    commit_step: Tensor,
    commit_confidence: Tensor,
    masks_left: Tensor,
    step: Tensor,
    edit_step: Tensor,
    done: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    numbers: Tensor,
    counts: Tensor,
    token_probability: Tensor | None,
    seed: Tensor | None,
    position: Tensor | None,
    vocab_size: int,
    mask_id: int,
    eos_id: int,
    error: Tensor | None,
) -> None:
    for b in range(tokens.shape[0]):
        if done[b]:
            continue
        rule = dict(zip(NUMBERS, numbers[b], strict=True))
        rule |= dict(zip(COUNTS, counts[b].tolist(), strict=True))
        now, before = int(step[b]), tokens[b].tolist()
        block = range(len(before))
        ids, sure = candidate[b].tolist(), confidence[b].clone()

        def draw(i: int, stream: int, b: int = b, now: int = now) -> int:
            return _philox(int(seed[b]), (0, int(position[b]) + i, now, stream))

        if rule["random"]:
            for i in block:
                sure[i] = ((draw(i, RANDOM_CONFIDENCE) >> 9) + 0.5) / 2**23
        free = [i for i in block if not fixed[b, i]]
        if rule["revise"]:
            undecided = list(free)
        elif rule["renoise"]:
            undecided = [i for i in free if commit_step[b, i] < 0]
        else:
            undecided = [i for i in free if before[i] == mask_id]
        decided = [i for i in free if i not in undecided]
        valid = [i for i in block if ids[i] >= 0 and ids[i] != mask_id and not sure[i].isnan()]

        # Commit.
        last = 0 < rule["steps"] <= now + 1
        quota = rule["top_k"]
        if last:
            quota = len(undecided)
        elif rule["steps"] and not rule["revise"]:
            quota = math.ceil(len(undecided) / (rule["steps"] - now))
        ranked = sorted(
            (i for i in undecided if i in valid), key=lambda i, sure=sure: (-float(sure[i]), i)
        )
        commit, entropy = [], 0
        for n, i in enumerate(ranked):
            passes = sure[i] > rule["threshold"]
            passes |= sure[i] == rule["threshold"] and not rule["strict"]
            passes |= (n + 2) * (1 - sure[i]) < rule["factor"]
            if not rule["entropy_scale"].isnan():
                passes |= entropy <= ENTROPY_UNITS
                halves = float(-sure[i] * rule["entropy_scale"])
                entropy += (int(min(max(halves, 0), 2 * ENTROPY_UNITS + 2)) + 1) // 2
            if n < quota or passes:
                commit.append(i)
        if undecided and not commit and error is not None:
            error |= error_word.NO_CANDIDATE

        # Edit.
        may_end = [] if rule["revise"] else free
        was_settled = _settled(before, may_end, undecided, eos_id)
        edit = []
        if not was_settled or edit_step[b] < rule["edit_steps"]:
            edit = [
                i
                for i in decided
                if i in valid and ids[i] != before[i] and sure[i] > rule["edit_threshold"]
            ]

        # Remask.
        left = [i for i in undecided if i not in commit]
        if token_probability is not None and not last:
            likely = token_probability[b].tolist()
            doubtful = [
                i for i in decided if i not in edit and likely[i] < float(rule["remask_below"])
            ]
            doubtful.sort(key=lambda i, likely=likely: (likely[i], i))
            whole_draft = now == 0 and not undecided
            left += doubtful if whole_draft else doubtful[: max(len(commit) - 1, 0)]

        for i in commit + edit:
            tokens[b, i], commit_step[b, i], commit_confidence[b, i] = ids[i], now, sure[i]
        for i in left:
            tokens[b, i], commit_step[b, i], commit_confidence[b, i] = mask_id, -1, 0
            if rule["renoise"]:
                drawn = draw(i, RENOISE) % vocab_size
                tokens[b, i] = drawn if drawn != mask_id else (mask_id + 1) % vocab_size
        masks_left[b] = len(left)
        step[b] = now + 1
        edit_step[b] += was_settled
        no_more_edits = edit_step[b] >= rule["edit_steps"] or (was_settled and not edit)
        settled = _settled(tokens[b].tolist(), may_end, left, eos_id) and no_more_edits
        done[b] = settled or (rule["revise"] and last)


def _settled(tokens: list[int], may_end: list[int], undecided: list[int], eos_id: int) -> bool:
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
