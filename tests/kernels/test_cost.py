"""Cost functions against counting one by one."""

import itertools

import pytest
import torch
from reference import visible

from dlm_kernels import (
    BlockState,
    Cost,
    Rule,
    RuleTable,
    block_attention_cost,
    confidence,
    confidence_cost,
    gated_silu,
    gated_silu_cost,
    linear_cost,
    lm_head_confidence,
    lm_head_confidence_cost,
    quantize_weight,
    remask_scatter_cost,
    residual_norm,
    residual_norm_cost,
    rope_kv_write,
    rope_kv_write_cost,
)


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_costs_add_and_scale() -> None:
    cost = 2 * (Cost(1.0, 2.0, 3.0) + Cost(10.0, 20.0)) + Cost(0.5, 0.0) * 4
    assert cost == Cost(24.0, 44.0, 6.0)
    assert Cost(6.0, 3.0).intensity == 2.0
    assert sum([Cost(1, 2, 3)] * 3, Cost(0, 0)) == Cost(3, 6, 9)


@pytest.mark.parametrize("cache_itemsize", [None, 1], ids=["", "float8"])
@pytest.mark.parametrize("lse", [False, True], ids=["out", "out-and-lse"])
@pytest.mark.parametrize(
    ("batch", "block", "context", "query_heads", "kv_heads", "groups"),
    [
        *((*shape, None) for shape in ((1, 1, 0, 1, 1), (2, 3, 5, 4, 2), (3, 4, 0, 6, 1))),
        *((*shape, "causal") for shape in ((1, 7, 2, 2, 2), (2, 3, 5, 4, 2), (3, 4, 0, 6, 1))),
        (2, 6, 0, 4, 2, (2, 3)),
        (2, 7, 5, 4, 2, (2, 3)),
        (1, 12, 3, 4, 1, (1, 4)),
        (2, 16, 2, 4, 2, (3, 5)),
    ],
)
def test_block_attention_cost(
    batch: int,
    block: int,
    context: int,
    query_heads: int,
    kv_heads: int,
    groups: tuple[int, int] | str | None,
    lse: bool,
    cache_itemsize: int | None,
) -> None:
    head_dim, itemsize = 16, 2
    causal, draft_groups = groups == "causal", None if groups == "causal" else groups
    pairs, keys_seen = 0, set()
    for i in range(block):
        own, fresh = visible(i, block, causal, draft_groups)
        keys = {("cached", j) for j in range(context + own)} | {("fresh", j) for j in fresh}
        keys_seen |= keys
        pairs += batch * query_heads * len(keys)
    # Keys and values by where they lie, queries and outputs; a float8 cache has scales.
    places = [place for place, _ in keys_seen]
    a_key = 2 * batch * kv_heads * head_dim
    moved = a_key * places.count("fresh") * itemsize
    moved += a_key * places.count("cached") * (cache_itemsize or itemsize)
    moved += 2 * batch * block * query_heads * head_dim * itemsize
    moved += 4 * batch * block * query_heads * lse + 2 * 4 * kv_heads * (cache_itemsize == 1)
    cost = block_attention_cost(
        batch, block, context, query_heads, kv_heads, head_dim, itemsize=itemsize, causal=causal,
        draft_groups=draft_groups, lse=lse, cache_itemsize=cache_itemsize,
    )  # fmt: skip
    # One multiply-add a dimension for the score, and one for the output.
    assert cost == Cost((2 + 2) * head_dim * pairs, moved, pairs)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("margin", [False, True])
def test_confidence_cost(entropy: bool, margin: bool, device: str) -> None:
    logits = torch.zeros(3, 70, dtype=torch.float16, device=device)
    result = confidence(logits, entropy=entropy, margin=margin)
    cost = confidence_cost(3, 70, itemsize=2, entropy=entropy, margin=margin)
    assert cost.bytes == nbytes(logits, *(x for x in result if x is not None))
    assert cost.exps == logits.numel()
    # Compare, subtract, scale, add; the entropy's multiply and add; the runner-up's compare.
    assert cost.flops == logits.numel() * (4 + 2 * entropy + margin)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("block", [1, 5, 32])
def test_remask_scatter_cost(block: int, dtype: torch.dtype) -> None:
    state = BlockState.start(torch.zeros(3, block, dtype=dtype), 9)
    cost = remask_scatter_cost(3, block, token_itemsize=dtype.itemsize)
    candidate = torch.zeros(3, block, dtype=torch.int32)
    confidences = torch.zeros(3, block)
    counters = (state.masks_left, state.step, state.edit_step, state.done)
    rules = RuleTable.pack([Rule()] * 3, "cpu")[:2]
    read = nbytes(state.tokens, state.fixed, candidate, confidences, *counters, *rules)
    written = nbytes(state.tokens, state.commit_step, state.commit_confidence, *counters)
    assert cost.bytes == read + written
    assert cost.flops == 3 * sum(1 for _ in itertools.product(range(block), repeat=2))


def test_linear_cost() -> None:
    x, weight = torch.zeros(3, 20), torch.zeros(7, 20)
    out = x @ weight.T
    cost = linear_cost(3, 20, 7, itemsize=4)
    assert cost == Cost(2 * 3 * 20 * 7, nbytes(x, weight, out))
    quantized = quantize_weight(torch.ones(7, 20), "int4")
    cost = linear_cost(3, 20, 7, itemsize=4, weight_bytes=quantized.n_bytes)
    moved = nbytes(x, quantized.values, quantized.scales, out)
    assert cost == Cost(2 * 3 * 20 * 7, moved)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("margin", [False, True])
def test_lm_head_confidence_cost(entropy: bool, margin: bool) -> None:
    hidden, weight = torch.zeros(3, 20), torch.zeros(7, 20)
    result = lm_head_confidence(hidden, weight, entropy=entropy, margin=margin)
    cost = lm_head_confidence_cost(3, 20, 7, itemsize=4, entropy=entropy, margin=margin)
    assert cost.bytes == nbytes(hidden, weight, *(x for x in result if x is not None))
    assert cost.exps == 3 * 7
    # A multiply-add a feature, and the statistics of `confidence`.
    assert cost.flops == 3 * 7 * (2 * 20 + 4 + 2 * entropy + margin)


@pytest.mark.parametrize("with_update", [False, True], ids=["norm-alone", "update"])
def test_residual_norm_cost(with_update: bool) -> None:
    residual, weight = torch.zeros(3, 20), torch.ones(20)
    update = torch.zeros(3, 20) if with_update else None
    out, normed = residual_norm(residual, update, weight, 1e-5)
    moved = nbytes(residual, weight, normed) + (nbytes(update, out) if with_update else 0)
    # The norm's square, sum, and multiplies by the root and the weight; the update's add.
    cost = residual_norm_cost(3, 20, itemsize=4, update=with_update)
    assert cost == Cost(3 * 20 * (4 + with_update), moved)


def test_gated_silu_cost() -> None:
    gate_up = torch.zeros(3, 40, dtype=torch.float16)
    out = gated_silu(gate_up)
    # An add, a divide and a multiply.
    cost = gated_silu_cost(3, 20, itemsize=2)
    assert cost == Cost(3 * out.numel(), nbytes(gate_up, out), out.numel())


@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["bidirectional", "causal", "drafts"])
def test_rope_kv_write_cost(form: str, cache_dtype: torch.dtype) -> None:
    batch, block, query_heads, kv_heads, head_dim = 2, 7, 4, 2, 16
    draft_groups = (2, 3) if form == "drafts" else None
    qkv = torch.zeros(batch, block, (query_heads + 2 * kv_heads) * head_dim, dtype=torch.float16)
    cos, sin = torch.ones(2, batch, block, head_dim // 2)
    query_scale = torch.ones(batch, block)
    options, written = {}, 0
    if form != "bidirectional":
        caches = torch.zeros(2, batch, 9, kv_heads, head_dim).to(cache_dtype)
        options = dict(zip(("k_cache", "v_cache"), caches, strict=True))
        options["context_lens"] = torch.zeros(batch, dtype=torch.int32)
        if cache_dtype != qkv.dtype:
            options |= dict.fromkeys(("k_scale", "v_scale"), torch.ones(kv_heads))
        cached_rows = range(block) if form == "causal" else (0, 1, 4)
        written = 2 * batch * len(cached_rows) * kv_heads * head_dim * cache_dtype.itemsize
    results = rope_kv_write(
        qkv, cos, sin, query_scale, kv_heads=kv_heads, draft_groups=draft_groups, **options
    )
    written += nbytes(*(x for x in results if x is not None))
    cost = rope_kv_write_cost(
        batch, block, query_heads, kv_heads, head_dim, itemsize=2,
        causal=form == "causal", draft_groups=draft_groups, cache_itemsize=cache_dtype.itemsize,
    )  # fmt: skip
    assert cost.bytes == nbytes(qkv, cos, sin, query_scale) + written
    pairs = batch * block * (query_heads + kv_heads) * head_dim // 2
    # Four multiplies and two adds a pair; a query's cosine and sine times its scale.
    assert cost.flops == 6 * pairs + batch * block * head_dim
