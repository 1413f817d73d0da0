"""Every op in plain torch, in the input's dtype: the CPU default and a device-independent fallback.

Each function takes the arguments of the op of its name, whose file says what it does. Softmax
statistics are taken in float32, and so is all of invariant attention.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import error_word, launch
from .noise import RANDOM_CONFIDENCE, RENOISE, philox, random_ids, uniform
from .partial_sums import PartialSums
from .quantized_weight import QuantizedWeight
from .rules import ENTROPY_UNITS

if TYPE_CHECKING:
    from .block_attention import BlockAttentionCall
    from .confidence import ConfidenceCall, Selection, Statistics
    from .gated_silu import GatedSiluCall
    from .linear import LinearCall
    from .lm_head_confidence import LmHeadConfidenceCall, LmHeadPartialsCall, MergePartialsCall
    from .remask_scatter import RemaskScatterCall
    from .residual_norm import ResidualNormCall
    from .rope_kv_write import RopeKvWriteCall

# Of invariant attention: positions and keys a tile.
_TILE_ROWS, _TILE_KEYS = 16, 64

_LINEAR_ROWS = 32  # rows a matrix product, always: its rounding depends on their number
_CACHED_WEIGHTS = 2**20
_HEAD_LOGITS = 2**25  # 128 MiB of float32


def block_attention(call: "BlockAttentionCall") -> tuple[Tensor, Tensor]:
    q, cache, k, v, (lead, draft_length), scale, numerics, context_limit, return_lse, error = call
    k_cache, v_cache, context_lens, block_table, k_scale, v_scale = cache
    batch, block, query_heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((batch, block, query_heads) if return_lse else 0, dtype=torch.float32)
    in_range = context_lens.clamp(0, context_limit)
    error_word.set_where(error, in_range != context_lens, error_word.LENGTH_OUT_OF_RANGE)

    own, most = None, 0  # the block's keys in the cache that each row sees, and that the last sees
    if draft_length:
        row = torch.arange(block, device=q.device)
        own = torch.where(row < lead, row, lead + (row - lead) // draft_length) + 1
        most = lead + (block - lead) // draft_length
    elif k is None:
        own, most = torch.arange(1, block + 1, device=q.device), block
    attend = _attend_in_tiles if numerics == "batch_invariant" else _attend_by_sdpa
    for b, context in enumerate(in_range.tolist()):
        seen = context + most
        if block_table is None:
            keys, values = k_cache[b, :seen], v_cache[b, :seen]
        else:
            entries = block_table[b, : -(-seen // k_cache.shape[1])]
            pages = entries.clamp(0, len(k_cache) - 1)
            error_word.set_where(error, pages != entries, error_word.PAGE_OUT_OF_RANGE)
            keys, values = (x[pages].flatten(0, 1)[:seen] for x in (k_cache, v_cache))
        if k_scale is not None:
            keys, values = keys.float() * k_scale[:, None], values.float() * v_scale[:, None]
            if numerics == "fast":
                keys, values = keys.to(q.dtype), values.to(q.dtype)
        if k is not None and not draft_length:
            keys, values = torch.cat([keys, k[b]]), torch.cat([values, v[b]])
        hidden = None
        if own is not None:
            hidden = torch.arange(seen, device=q.device) >= context + own[:, None]
        segments = [_Segment(keys, values, 0, block, hidden)]
        for first in range(lead, block, draft_length) if draft_length else ():
            masks = (first + 1, first + draft_length)
            segments.append(_Segment(k[b, slice(*masks)], v[b, slice(*masks)], *masks, None))
        attend(q[b], segments, scale, out[b], lse[b] if return_lse else None)
    return out, lse


class _Segment(NamedTuple):
    """Keys that the rows `begin` to `end` of one request's block see, but where `hidden` holds."""

    keys: Tensor  # [keys, kv_heads, head_dim], as values
    values: Tensor
    begin: int
    end: int
    hidden: Tensor | None  # bool [end - begin, keys]


def _attend_by_sdpa(
    q: Tensor, segments: list[_Segment], scale: float, out: Tensor, lse: Tensor | None
) -> None:
    """One request's attention into `out` [block, heads, head_dim] and `lse` [block, heads]."""
    keys, values, _, _, hidden = segments[0]
    if len(segments) > 1:
        keys, values = (torch.cat([s[i] for s in segments]) for i in (0, 1))
        parts = [hidden]
        for segment in segments[1:]:
            parts.append(hidden.new_ones(len(q), len(segment.keys)))
            parts[-1][segment.begin : segment.end] = False
        hidden = torch.cat(parts, 1)
    visible = None if hidden is None else ~hidden
    # Heads first, as SDPA wants them; the query heads of one group share their KV head.
    queries, keys, values = (x.transpose(0, 1)[None] for x in (q, keys, values))
    attended = F.scaled_dot_product_attention(
        queries, keys, values, visible, scale=scale, enable_gqa=True
    )
    out.copy_(attended[0].transpose(0, 1))
    if lse is not None:
        group = q.shape[1] // keys.shape[1]
        scores = queries[0] @ keys[0].repeat_interleave(group, 0).mT
        scores = scores.float() * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        lse.copy_(scores.logsumexp(-1).T)


def _attend_in_tiles(
    q: Tensor, segments: list[_Segment], scale: float, out: Tensor, lse: Tensor | None
) -> None:
    """As `_attend_by_sdpa`, in float32, each row's bits a function of its query and keys alone.

    Every matrix product has one shape, (_TILE_ROWS positions x group) x _TILE_KEYS for each KV
    head, whatever the block and the context. Each segment begins a tile; tiles are added one after
    the other, and what a row does not see adds zero.
    """
    block, query_heads, head_dim = q.shape
    kv_heads = segments[0].keys.shape[1]
    group = query_heads // kv_heads
    padded = -(-block // _TILE_ROWS) * _TILE_ROWS
    queries = q.new_zeros((kv_heads, padded, group, head_dim), dtype=torch.float32)
    queries[:, :block] = q.unflatten(1, (kv_heads, group)).transpose(0, 1)
    queries *= scale
    tiles = [tile for segment in segments for tile in _tiles_of(segment, padded)]
    for first in range(0, block, _TILE_ROWS):
        rows = slice(first, first + _TILE_ROWS)
        seen = [tile for tile in tiles if tile.begin < rows.stop and tile.end > first]
        row_queries = queries[:, rows].flatten(1, 2).contiguous()
        scores = row_queries.new_empty((len(seen), *row_queries.shape[:2], _TILE_KEYS))
        for tile, tile_scores in zip(seen, scores, strict=True):
            torch.bmm(row_queries, tile.keys.mT, out=tile_scores)
            by_row = tile_scores.unflatten(1, (_TILE_ROWS, group))
            by_row.masked_fill_(tile.hidden[rows, None], -math.inf)
        peak = scores.amax((0, 3))
        weights = scores.sub_(peak[..., None]).exp_()
        total, attended = torch.zeros_like(peak), torch.zeros_like(row_queries)
        for tile, tile_weights in zip(seen, weights, strict=True):
            total += tile_weights.sum(-1)
            attended.baddbmm_(tile_weights, tile.values)
        attended /= total[..., None]
        # [kv_heads, positions x group, ...] as [positions, heads, ...], without the padding.
        ours, inside = (_TILE_ROWS, group), slice(block - first)
        out[rows] = attended.unflatten(1, ours).transpose(0, 1).flatten(1, 2)[inside]
        if lse is not None:
            row_lse = peak + total.log()
            lse[rows] = row_lse.unflatten(1, ours).transpose(0, 1).flatten(1, 2)[inside]


def _tiles_of(segment: _Segment, rows: int) -> Iterator[_Segment]:
    """A segment cut into tiles, keys and values float32 [kv_heads, _TILE_KEYS, head_dim], zero
    behind the segment's, hidden for all of the block's `rows`, padded ones included.
    """
    length, kv_heads, head_dim = segment.keys.shape
    whole, rest = divmod(length, _TILE_KEYS)
    count = whole + (rest > 0)
    tiled = []
    for x in (segment.keys, segment.values):
        tiles = x.new_zeros((count, kv_heads, _TILE_KEYS, head_dim), dtype=torch.float32)
        if whole:
            cut = x[: whole * _TILE_KEYS].unflatten(0, (whole, _TILE_KEYS))
            tiles[:whole] = cut.transpose(1, 2)
        if rest:
            tiles[whole, :, :rest] = x[whole * _TILE_KEYS :].transpose(0, 1)
        tiled.append(tiles)
    hidden = torch.ones(rows, count * _TILE_KEYS, dtype=torch.bool, device=segment.keys.device)
    hidden[segment.begin : segment.end, :length] = (
        False if segment.hidden is None else segment.hidden
    )
    for keys, values, columns in zip(*tiled, hidden.split(_TILE_KEYS, 1), strict=True):
        yield _Segment(keys, values, segment.begin, segment.end, columns)


def linear(call: "LinearCall") -> Tensor:
    if call.by_library:
        return F.linear(call.x, call.weight)
    out = _product(call.x.flatten(0, -2), call.weight, call.scales, call.kind)
    return out.view(*call.x.shape[:-1], out.shape[1])


def _product(
    x: Tensor, values: Tensor, scales: Tensor | None = None, kind: str = "plain"
) -> Tensor:
    (rows, in_features), dtype = x.shape, x.dtype
    if kind != "plain":
        x = x.float()  # scales * values is not rounded to fewer bits
    padded = x
    if rows % _LINEAR_ROWS:
        padded = F.pad(x, (0, 0, 0, -rows % _LINEAR_ROWS))
    out = x.new_empty((len(padded), values.shape[0]))
    # As many features at a time as stay in a cache while all rows pass by.
    features = max(64, _CACHED_WEIGHTS // in_features)
    for begin in range(0, values.shape[0], features):
        part = values[begin : begin + features]
        if kind != "plain":
            its_scales = scales[begin : begin + features]
            part = QuantizedWeight(part, its_scales, kind, in_features).dequantized()
        part = part.T
        for first in range(0, len(padded), _LINEAR_ROWS):
            at = slice(first, first + _LINEAR_ROWS)
            torch.mm(padded[at], part, out=out[at, begin : begin + features])
    return out[:rows].to(dtype)


def residual_norm(call: "ResidualNormCall") -> tuple[Tensor, Tensor]:
    residual, sums, weight, eps = call
    out = residual.new_empty(0)
    if sums is not None:
        residual = out = residual + PartialSums(sums, residual.dtype).total()
    return out, F.rms_norm(residual, weight.shape, weight, eps)


def gated_silu(call: "GatedSiluCall") -> Tensor:
    gate, up = call.gate_up.total().chunk(2, -1)
    if gate.device.type == "cpu":
        # F.silu gives the elements behind the last whole vector other bits; exp does not.
        gate = gate.float()
        gate = (gate / (1 + torch.exp(-gate))).to(up.dtype)
    else:
        gate = F.silu(gate)
    return gate * up


def rope_kv_write(call: "RopeKvWriteCall") -> tuple[Tensor, Tensor, Tensor]:
    qkv, cos, sin, query_scale, kv_heads, cache, (lead, draft_length), error = call
    k_cache, v_cache, context_lens, block_table, k_scale, v_scale = cache
    heads = qkv.total().unflatten(-1, (-1, 2 * cos.shape[-1]))
    q, k, v = heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
    cos, sin, query_scale = cos[:, :, None], sin[:, :, None], query_scale[:, :, None, None]
    q, k = _rotated(q, cos * query_scale, sin * query_scale), _rotated(k, cos, sin)
    v = v.clone(memory_format=torch.contiguous_format)
    if k_cache is None:
        return q, k, v

    block = q.shape[1]
    row = torch.arange(block, device=q.device)
    kept = row
    if draft_length:
        kept = torch.cat([row[:lead], row[lead::draft_length]])
    request = torch.arange(len(q), device=q.device)[:, None]
    lengths = context_lens[:, None].long()
    fault = (lengths < 0) | (lengths > cache.capacity - len(kept))
    error_word.set_where(error, fault, error_word.LENGTH_OUT_OF_RANGE)
    slot = (lengths + row[: len(kept)]).clamp(0, cache.capacity - 1)
    if block_table is not None:
        pages, page_size = k_cache.shape[:2]
        entry = block_table.gather(1, slot // page_size).long()
        request, slot = entry.clamp(0, pages - 1), slot % page_size
        error_word.set_where(error, request != entry, error_word.PAGE_OUT_OF_RANGE)
    for target, x, scale in ((k_cache, k, k_scale), (v_cache, v, v_scale)):
        x = x[:, kept]
        if scale is not None:
            x = (x.float() / scale[:, None]).clamp(-448, 448).to(target.dtype)
            target, x = target.view(torch.uint8), x.view(torch.uint8)  # no float8 is indexed
        target[request, slot] = x
    return (q, k, v) if call.fresh else (q, q.new_empty(0), q.new_empty(0))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [..., head_dim] turned by angles [..., head_dim / 2]."""
    first, second = x.float().chunk(2, -1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(rotated, -1).to(x.dtype)


def confidence(call: "ConfidenceCall") -> "Statistics":
    return _confidence(*call)


def _confidence(logits: Tensor, selection: "Selection") -> "Statistics":
    tokens, mask_id, banned, entropy, margin, error = selection
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

    statistic = partial(_statistic, certain=certain, valid=valid, active=active)
    probability = _at(p, token)
    row_entropy, row_margin = x.new_empty(0), x.new_empty(0)
    if entropy:
        terms = torch.special.entr(p)
        # One row alone is summed by all threads, in another order than one of several.
        sums = terms.expand(2, -1).sum(-1)[:1] if len(terms) == 1 else terms.sum(-1)
        row_entropy = statistic(sums, 0.0)
    if margin:
        others = p.index_fill(-1, bans, 0).scatter_(-1, token[:, None], 0)
        row_margin = statistic(probability - others.amax(-1), 1.0)
    token = torch.where(active & valid, token, -1).int()
    return token, statistic(probability, 1.0), statistic(lse, math.inf), row_entropy, row_margin


def _statistic(
    value: Tensor, if_certain: float, *, certain: Tensor, valid: Tensor, active: Tensor
) -> Tensor:
    """A statistic [rows] of ordinary rows, as it is of certain, invalid and skipped rows too."""
    value = torch.where(certain, if_certain, value)
    value = torch.where(valid, value, math.nan)
    return torch.where(active, value, 0.0)


def _at(rows: Tensor, ids: Tensor) -> Tensor:
    """The element of each of `rows` [rows, V] at its id in `ids` [rows]."""
    return rows.gather(-1, ids[:, None])[:, 0]


def lm_head_confidence(call: "LmHeadConfidenceCall") -> "Statistics":
    hidden, weight, numerics, selection = call
    rows = _head_rows(len(weight))
    groups = []
    for first in range(0, max(len(hidden), 1), rows):
        at = slice(first, first + rows)
        own = hidden[at]
        logits = F.linear(own, weight) if numerics == "fast" else _product(own, weight)
        if selection.tokens is not None:
            selection = selection._replace(tokens=call.selection.tokens[at])
        groups.append(_confidence(logits, selection))
    return tuple(torch.cat(group) for group in zip(*groups, strict=True))


def _head_rows(vocab: int) -> int:
    """Rows of logits that are in memory at a time: whole groups of a product, for each of them
    reads the weight.
    """
    return max(1, _HEAD_LOGITS // vocab // _LINEAR_ROWS) * _LINEAR_ROWS


def lm_head_partials(call: "LmHeadPartialsCall") -> tuple[Tensor, Tensor]:
    hidden, weight, first_id, selection = call
    banned = selection.banned
    rows, vocab = len(hidden), len(weight)
    chunk = launch.LM_HEAD[launch.arch_of(hidden.device)][hidden.element_size()].chunk
    n_chunks = -(-vocab // chunk)
    chunk_first = first_id + chunk * torch.arange(n_chunks, device=hidden.device)
    bans = None
    if banned is not None:
        bans = banned.long() - first_id
        bans = bans[(bans >= 0) & (bans < vocab)]
    statistics = hidden.new_empty((5, rows, n_chunks), dtype=torch.float32)
    best_ids = hidden.new_empty((rows, n_chunks), dtype=torch.int32)
    group = _head_rows(vocab)
    for first in range(0, rows, group):
        at = slice(first, first + group)
        peaks, totals, bests, seconds, weighteds = statistics[:, at]
        logits = _product(hidden[at], weight).float()
        flat = F.pad(logits, (0, n_chunks * chunk - vocab), value=-math.inf)
        x = flat.unflatten(1, (n_chunks, chunk))
        flat = flat.masked_fill(flat.isnan(), -math.inf)  # NaN counts in the sums alone
        peak = flat.view_as(x).amax(-1, keepdim=True)
        log_p = torch.where(x == peak, 0.0, x - peak)
        p = log_p.exp()
        peaks.copy_(peak[..., 0])
        totals.copy_(p.sum(-1))
        if selection.entropy:
            terms = torch.where(p > 0, p * log_p, 0.0)
            weighteds.copy_(terms.sum(-1) / math.log(2))
        choice = (flat if bans is None else flat.index_fill(1, bans, -math.inf)).view_as(x)
        place = choice.argmax(-1, keepdim=True)
        bests.copy_(choice.gather(-1, place)[..., 0])
        best_ids[at] = (chunk_first + place[..., 0]).int()
        if selection.margin:
            seconds.copy_(choice.scatter(-1, place, -math.inf).amax(-1))
    return statistics, best_ids


def merge_partials(call: "MergePartialsCall") -> "Statistics":
    statistics, best_ids, vocab, (tokens, mask_id, banned, entropy, margin, error) = call
    if banned is not None:
        outside = (banned < 0) | (banned >= vocab)
        error_word.set_where(error, outside, error_word.ID_OUT_OF_RANGE)
    peaks, totals, bests, seconds, weighteds = statistics
    peak, best = peaks.amax(-1), bests.amax(-1)
    shifts = torch.where(peaks == peak[:, None], 0.0, peaks - peak[:, None])
    decays = shifts.exp()
    total = (totals * decays).sum(-1)
    at_best = bests == best[:, None]
    token = torch.where(at_best, best_ids, torch.iinfo(torch.int32).max).amin(-1)

    infinite = peak == math.inf
    certain = infinite & (total == 1) & (best == math.inf)
    valid = torch.where(infinite, certain, best > -math.inf) & ~total.isnan()
    active = torch.ones_like(valid) if tokens is None else tokens == mask_id
    error_word.set_where(error, active & total.isnan(), error_word.NAN_LOGITS)
    statistic = partial(_statistic, certain=certain, valid=valid, active=active)
    probability = (best - peak).exp() / total
    row_entropy, row_margin = peak.new_empty(0), peak.new_empty(0)
    if entropy:
        moved = weighteds * math.log(2) + torch.where(decays > 0, shifts * totals, 0.0)
        row_entropy = statistic(total.log() - (decays * moved).sum(-1) / total, 0.0)
    if margin:
        below = torch.where(at_best, seconds, bests).amax(-1)
        second = torch.where(at_best.sum(-1) > 1, best, below)
        row_margin = statistic(probability - (second - peak).exp() / total, 1.0)
    token = torch.where(active & valid, token, -1)
    lse = statistic(peak + total.log(), math.inf)
    return token, statistic(probability, 1.0), lse, row_entropy, row_margin


def remask_scatter(call: "RemaskScatterCall") -> None:
    tokens, fixed, commit_step, commit_confidence, masks_left, step, edit_step, done = call.state
    candidate, confidence, numbers, counts, token_probability, *rest = call[1:]
    seed, position, vocab_size, mask_id, eos_id, error = rest
    # A request is a row; [:, None] sets its numbers against its positions.
    threshold, factor, entropy_scale, edit_threshold, remask_below = numbers[:, :, None].unbind(1)
    top_k, steps, edit_steps, *flags = counts.unbind(1)
    strict, random, renoise, revise = (flag[:, None] != 0 for flag in flags)
    active = ~done
    place = torch.arange(tokens.shape[1], device=tokens.device)

    def draw(stream: int) -> Tensor:
        where = position[:, None] + place
        return philox(seed[:, None], torch.zeros_like(where), where, step[:, None], stream)

    if seed is not None:
        confidence = torch.where(random, uniform(draw(RANDOM_CONFIDENCE)), confidence)
    free = active[:, None] & ~fixed
    undecided = free & torch.where(renoise, revise | (commit_step < 0), tokens == mask_id)
    decided = free & ~undecided
    valid = (candidate >= 0) & (candidate != mask_id) & ~confidence.isnan()
    usable = undecided & valid

    # ahead[b, i, j]: usable position j comes before i, by confidence and then by position.
    ahead = _ahead(confidence) & usable[:, None, :]
    rank = ahead.sum(-1)
    halves = (-confidence * entropy_scale).clamp(0, 2 * ENTROPY_UNITS + 2).nan_to_num(0)
    entropy = (halves.int() + 1) >> 1
    ahead_entropy = (ahead * entropy[:, None, :]).sum(-1)
    bounded = ~entropy_scale.isnan()

    last_of_budget = (steps > 0) & (step >= steps - 1)
    n_undecided = undecided.sum(1)
    steps_left = (steps - step).clamp(min=1)
    budgeted = (steps > 0) & (last_of_budget | ~revise[:, 0])
    quota = torch.where(budgeted, (n_undecided + steps_left - 1) // steps_left, top_k)
    passed = (confidence > threshold) | ((confidence == threshold) & ~strict)
    passed |= (rank + 2).float() * (1 - confidence) < factor
    passed |= bounded & (ahead_entropy <= ENTROPY_UNITS)
    commit = usable & ((rank < quota[:, None]) | passed)
    n_committed = commit.sum(1)
    error_word.set_where(error, (n_undecided > 0) & (n_committed == 0), error_word.NO_CANDIDATE)

    may_end = free & ~revise  # where an EOS stays one
    was_settled = _settled(tokens, may_end, undecided, eos_id)
    may_edit = ~was_settled | (edit_step < edit_steps)
    edit = decided & valid & (candidate != tokens) & (confidence > edit_threshold)
    edit &= may_edit[:, None]
    left = undecided & ~commit
    if token_probability is not None:
        doubtful = decided & ~edit & (token_probability < remask_below)
        doubt_rank = (_ahead(-token_probability) & doubtful[:, None, :]).sum(-1)
        whole_draft = (step == 0) & (n_undecided == 0)
        limit = torch.where(whole_draft, tokens.shape[1], n_committed - 1)
        limit = torch.where(last_of_budget, 0, limit)
        left |= doubtful & (doubt_rank < limit[:, None])

    written = commit | edit
    tokens.copy_(torch.where(written, candidate.to(tokens.dtype), tokens))
    tokens.copy_(torch.where(left & ~renoise, mask_id, tokens))
    if seed is not None:
        ids = random_ids(draw(RENOISE), vocab_size, mask_id)
        tokens.copy_(torch.where(left & renoise, ids.to(tokens.dtype), tokens))
    commit_step.copy_(torch.where(written, step[:, None], commit_step).masked_fill(left, -1))
    commit_confidence.copy_(
        torch.where(written, confidence, commit_confidence).masked_fill(left, 0)
    )
    masks_left.copy_(torch.where(active, left.sum(1), masks_left))
    edit_step += active & was_settled
    step += active
    no_more_edits = (edit_step >= edit_steps) | (was_settled & ~edit.any(1))
    settled = _settled(tokens, may_end, left, eos_id) & no_more_edits
    done |= settled | (revise[:, 0] & last_of_budget)


def _ahead(surety: Tensor) -> Tensor:
    """bool [batch, i, j]: j is surer than i, or as sure and at a lower position."""
    position = torch.arange(surety.shape[1], device=surety.device)
    mine, other = surety[:, :, None], surety[:, None, :]
    return (other > mine) | ((other == mine) & (position < position[:, None]))


def _settled(tokens: Tensor, may_end: Tensor, undecided: Tensor, eos_id: int) -> Tensor:
    """bool [batch]: nothing is undecided, or nothing before the first EOS that `may_end`."""
    none_before = undecided.cumsum(1) == 0
    return ~undecided.any(1) | (may_end & (tokens == eos_id) & none_before).any(1)
