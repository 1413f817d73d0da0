"""Every error a caller can make: its type, the argument and value it names, and nothing changed."""

import math
from collections.abc import Callable

import pytest
import torch
from numeric import unchanged

from dlm_kernels import (
    BlockState,
    Noise,
    QuantizedWeight,
    Rule,
    RuleTable,
    block_attention,
    confidence,
    gated_silu,
    linear,
    linear_partials,
    lm_head_confidence,
    lm_head_partials,
    merge_partials,
    new_error_word,
    quantize_weight,
    remask_scatter,
    residual_norm,
    rope_kv_write,
)
from dlm_kernels.partial_sums import PartialSums

MASK, EOS = 9, 2
F64, F16, I64, I32 = torch.float64, torch.float16, torch.int64, torch.int32


def expect(call: Callable, arguments: dict, exception: type[Exception], message: str) -> None:
    """`call` raises exactly this and leaves every tensor argument as it was."""
    values = dict(arguments)
    if isinstance(values.get("state"), BlockState):
        values |= values.pop("state")._asdict()
    tensors = {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and not value.is_meta
    }
    with unchanged(**tensors), pytest.raises(exception, match=message) as raised:
        call(**arguments)
    assert raised.type is exception


def ints(*shape: int, dtype: torch.dtype = I32, value: int = 0) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype)


# --- linear


def quantized(weights: str, **changes) -> QuantizedWeight:
    return quantize_weight(torch.ones(7, 20), weights)._replace(**changes)


LINEAR_ERRORS = [
    ({"x": "rows"}, TypeError, "x is a str; it must be a torch.Tensor"),
    ({"x": torch.zeros(3, 19)}, ValueError, r"x has shape \[3, 19\]; it must be \[3, 20\]"),
    ({"x": torch.zeros(())}, ValueError, r"x has shape \[\]; it must be \[20\]"),
    ({"x": torch.zeros(3, 20, dtype=F16)}, TypeError, "x is torch.float16; it must be float32"),
    ({"x": torch.zeros(3, 20, device="meta")}, ValueError, "x is on meta; it must be on cpu"),
    ({"weight": [1.0]}, TypeError, "weight is a list"),
    ({"weight": torch.zeros(20)}, ValueError, r"weight has shape \[20\]"),
    ({"weight": torch.zeros(7, 20, dtype=F64)}, TypeError, "weight is torch.float64"),
    ({"weight": torch.zeros(20, 7).T}, ValueError, "weight has stride 7 in its last dimension"),
    ({"weight": torch.zeros(0, 20)}, ValueError, r"weight has shape \[0, 20\].*not be empty"),
    ({"numerics": "exact"}, ValueError, "numerics is 'exact'; it must be one of invariant, fast"),
    ({"weight": quantized("int8", kind="int3")}, ValueError, "weight.kind is 'int3'; .* int4"),
    (
        {"weight": quantized("int8", kind="fp8")},
        TypeError,
        "weight.values is torch.int8; it must be float8_e4m3fn",
    ),
    (
        {"weight": quantized("int4", in_features=200)},
        ValueError,
        r"weight.values has shape \[7, 64\]; it must be \[out_features, 128\]",
    ),
    (
        {"weight": quantized("int8", scales=torch.ones(6))},
        ValueError,
        r"weight.scales has shape \[6\]; it must be \[7\]",
    ),
    (
        {"weight": quantized("int8", scales=torch.ones(7, dtype=F16))},
        TypeError,
        "weight.scales is torch.float16; it must be float32",
    ),
    (
        {"weight": quantized("int8", values=torch.zeros(20, 7, dtype=torch.int8).T)},
        ValueError,
        r"weight.values has strides \(1, 7\); it must be contiguous",
    ),
    (
        {"weight": quantized("int8", scales=torch.ones(7, device="meta"))},
        ValueError,
        "weight.scales is on meta; it must be on cpu",
    ),
]


@pytest.mark.parametrize("op", [linear, linear_partials])
@pytest.mark.parametrize(("change", "exception", "message"), LINEAR_ERRORS)
def test_linear_rejects(
    op: Callable, change: dict, exception: type[Exception], message: str
) -> None:
    arguments = {"x": torch.zeros(3, 20), "weight": torch.zeros(7, 20)}
    expect(op, arguments | change, exception, message)


# --- confidence


def confidence_arguments() -> dict:
    return {
        "logits": torch.zeros(3, 8),
        "tokens": ints(3, value=MASK),
        "mask_id": MASK,
        "banned": ints(2),
        "error": new_error_word("cpu"),
    }


CONFIDENCE_ERRORS = {
    "logits-no-tensor": ({"logits": [[0.0]]}, TypeError, "logits is a list; .* torch.Tensor"),
    "logits-1d": ({"logits": torch.zeros(5)}, ValueError, r"logits .*\[5\]; .*\[rows, vocab\]"),
    "logits-3d": ({"logits": torch.zeros(1, 3, 8)}, ValueError, r"logits has shape \[1, 3, 8\]"),
    "logits-float64": ({"logits": torch.zeros(3, 8, dtype=F64)}, TypeError, "logits is torch.floa"),
    "logits-integer": ({"logits": ints(3, 8)}, TypeError, "logits is torch.int32"),
    "logits-by-column": ({"logits": torch.zeros(8, 3).T}, ValueError, "logits has stride 3"),
    "no-vocabulary": ({"logits": torch.zeros(3, 0)}, ValueError, "logits has a vocabulary of 0"),
    "tokens-alone": ({"mask_id": None}, ValueError, "mask_id is None; tokens and mask_id"),
    "mask-id-alone": ({"tokens": None}, ValueError, "tokens is None; tokens and mask_id"),
    "tokens-too-few": ({"tokens": ints(2)}, ValueError, r"tokens has shape \[2\]; .*\[3\]"),
    "tokens-2d": ({"tokens": ints(3, 1)}, ValueError, r"tokens has shape \[3, 1\]"),
    "tokens-float": ({"tokens": torch.zeros(3)}, TypeError, "tokens is torch.float32; .*int32"),
    "tokens-strided": ({"tokens": ints(6)[::2]}, ValueError, "tokens has stride 2"),
    "tokens-elsewhere": (
        {"tokens": torch.zeros(3, dtype=I32, device="meta")},
        ValueError,
        "tokens is on meta; it must be on cpu",
    ),
    "mask-id-float": ({"mask_id": 9.0}, TypeError, "mask_id is 9.0; it must be an int"),
    "mask-id-bool": ({"mask_id": True}, TypeError, "mask_id is True"),
    "mask-id-negative": ({"mask_id": -1}, ValueError, "mask_id is -1; .*0"),
    "mask-id-too-large": ({"mask_id": 2**31}, ValueError, "mask_id is 2147483648"),
    "entropy-text": ({"entropy": "yes"}, TypeError, "entropy is 'yes'; it must be a bool"),
    "margin-none": ({"margin": None}, TypeError, "margin is None; it must be a bool"),
    "banned-list": ({"banned": [1]}, TypeError, "banned is a list"),
    "banned-int64": ({"banned": ints(2, dtype=I64)}, TypeError, "banned is torch.int64; .*int32"),
    "banned-2d": ({"banned": ints(1, 2)}, ValueError, r"banned has shape \[1, 2\]"),
    "banned-17": ({"banned": ints(17)}, ValueError, "banned holds 17 ids; at most 16"),
    "banned-strided": ({"banned": ints(4)[::2]}, ValueError, "banned has stride 2"),
    "error-int64": ({"error": ints(1, dtype=I64)}, TypeError, "error is torch.int64; .*int32"),
    "error-two-words": ({"error": ints(2)}, ValueError, r"error has shape \[2\]; .*\[1\]"),
    "error-number": ({"error": 0}, TypeError, "error is a int"),
}


@pytest.mark.parametrize(
    ("change", "exception", "message"), CONFIDENCE_ERRORS.values(), ids=list(CONFIDENCE_ERRORS)
)
def test_confidence_refuses(change: dict, exception: type[Exception], message: str) -> None:
    confidence(**confidence_arguments())
    expect(confidence, confidence_arguments() | change, exception, message)


# --- lm_head_confidence and its shards


def head_arguments() -> dict:
    return {
        "hidden": torch.zeros(3, 5),
        "weight": torch.zeros(8, 5),
        "tokens": ints(3, value=MASK),
        "mask_id": MASK,
        "banned": ints(2),
    }


HEAD_ERRORS = {
    "weight-no-tensor": ({"weight": None}, TypeError, "weight is a NoneType; .* torch.Tensor"),
    "weight-1d": ({"weight": torch.zeros(5)}, ValueError, r"weight .*\[5\]; .*\[vocab, features\]"),
    "weight-float64": ({"weight": torch.zeros(8, 5, dtype=F64)}, TypeError, "weight is torch.fl"),
    "weight-by-column": ({"weight": torch.zeros(5, 8).T}, ValueError, "weight has stride 8"),
    "no-vocabulary": ({"weight": torch.zeros(0, 5)}, ValueError, r"weight has shape \[0, 5\]"),
    "no-features": ({"weight": torch.zeros(8, 0)}, ValueError, r"weight has shape \[8, 0\]; .*em"),
    "too-many-ids": (
        {"weight": torch.zeros(2**24 + 1, 5, device="meta")},
        ValueError,
        "weight ends at id 16777217; .*at most 16777216 ids",
    ),
    "hidden-list": ({"hidden": [[0.0]]}, TypeError, "hidden is a list"),
    "hidden-3d": ({"hidden": torch.zeros(1, 3, 5)}, ValueError, r"hidden .*; .*\[rows, 5\]"),
    "hidden-of-other-features": (
        {"hidden": torch.zeros(3, 4)}, ValueError, r"hidden has shape \[3, 4\]; .*\[rows, 5\]",
    ),
    "hidden-of-another-dtype": (
        {"hidden": torch.zeros(3, 5, dtype=F16)}, TypeError, "hidden is torch.float16; .*float32",
    ),
    "hidden-elsewhere": (
        {"hidden": torch.zeros(3, 5, device="meta")}, ValueError, "hidden is on meta; .*cpu",
    ),
    "hidden-strided": ({"hidden": torch.zeros(5, 3).T}, ValueError, "hidden has stride 3"),
    "mask-id-alone": ({"tokens": None}, ValueError, "tokens is None; tokens and mask_id"),
    "tokens-too-few": ({"tokens": ints(2)}, ValueError, r"tokens has shape \[2\]; .*\[3\]"),
    "mask-id-negative": ({"mask_id": -1}, ValueError, "mask_id is -1"),
    "banned-17": ({"banned": ints(17)}, ValueError, "banned holds 17 ids; at most 16"),
    "entropy-text": ({"entropy": "yes"}, TypeError, "entropy is 'yes'; it must be a bool"),
    "margin-none": ({"margin": None}, TypeError, "margin is None; it must be a bool"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), HEAD_ERRORS.values(), ids=list(HEAD_ERRORS)
)
def test_lm_head_refuses(change: dict, exception: type[Exception], message: str) -> None:
    lm_head_confidence(**head_arguments())
    expect(lm_head_confidence, head_arguments() | change, exception, message)
    shard = {"first_id": 0} | head_arguments()
    expect(lm_head_partials, shard | change, exception, message)


@pytest.mark.parametrize(
    ("call", "change", "exception", "message"),
    [
        (lm_head_confidence, {"error": ints(2)}, ValueError, r"error has shape \[2\]; .*\[1\]"),
        (
            lm_head_confidence,
            {"numerics": "exact"},
            ValueError,
            "numerics is 'exact'; it must be one of invariant, fast",
        ),
        (lm_head_partials, {"first_id": -1}, ValueError, "first_id is -1; "),
        (lm_head_partials, {"first_id": 1.0}, TypeError, "first_id is 1.0; it must be an int"),
        (lm_head_partials, {"first_id": 2**24 - 7}, ValueError, "weight ends at id 16777217"),
    ],
    ids=[
        "error-two-words",
        "numerics-unknown",
        "first-id-negative",
        "first-id-float",
        "shard-past-the-last-id",
    ],
)
def test_lm_head_refuses_what_one_of_the_two_takes(
    call: Callable, change: dict, exception: type[Exception], message: str
) -> None:
    expect(call, head_arguments() | change, exception, message)


def two_shards(**second) -> dict:
    """Arguments of merge_partials, with these fields of the second shard."""
    weight = torch.zeros(8, 5)
    first, last = (
        lm_head_partials(torch.zeros(3, 5), weight[i : i + 4], first_id=i, entropy=True)
        for i in (0, 4)
    )
    return {"partials": [first, last._replace(**second)], "tokens": ints(3), "mask_id": MASK}


MERGE_ERRORS = {
    "partials-none": ({"partials": None}, TypeError, "partials is a NoneType; it must be a list"),
    "partials-empty": ({"partials": []}, ValueError, "partials is empty; .*every shard"),
    "partials-of-tensors": (
        {"partials": [torch.zeros(5, 3, 1)]}, TypeError, r"partials\[0\] is a Tensor; .*Partials",
    ),
    "one-shard-bare": (
        {"partials": two_shards()["partials"][0]}, TypeError, r"partials\[0\] is a Tensor",
    ),
    "first-missing": (
        {"partials": two_shards()["partials"][1:]}, ValueError, r"\[0\].first_id is 4; .* 0",
    ),
    "shards-apart": (two_shards(first_id=5), ValueError, r"partials\[1\].first_id is 5; .* 4"),
    "shards-overlap": (two_shards(first_id=3), ValueError, r"partials\[1\].first_id is 3; .* 4"),
    "shards-differ-in-entropy": (
        two_shards(entropy=False), ValueError, r"\[1\].entropy is False; .*entropy is True",
    ),
    "shards-differ-in-margin": (
        two_shards(margin=True), ValueError, r"partials\[1\].margin is True; .* False",
    ),
    "best-ids-int64": (
        two_shards(best_ids=ints(3, 1, dtype=I64)), TypeError, r"\[1\].best_ids is torch.int64",
    ),
    "other-rows": (
        two_shards(best_ids=ints(2, 1)), ValueError, r"\[1\].best_ids .*\[2, 1\]; .*\[3, chunks\]",
    ),
    "statistics-of-other-chunks": (
        two_shards(statistics=torch.zeros(5, 3, 2)), ValueError, r"\[1\].statistics .*\[5, 3, 1\]",
    ),
    "statistics-float16": (
        two_shards(statistics=torch.zeros(5, 3, 1, dtype=F16)), TypeError, r"\[1\].statistics is ",
    ),
    "best-ids-elsewhere": (
        two_shards(best_ids=ints(3, 1).to("meta")), ValueError, r"\[1\].best_ids is on meta; .*cpu",
    ),
    "tokens-too-few": ({"tokens": ints(2)}, ValueError, r"tokens has shape \[2\]; .*\[3\]"),
    "banned-17": ({"banned": ints(17)}, ValueError, "banned holds 17 ids"),
    "error-int64": ({"error": ints(1, dtype=I64)}, TypeError, "error is torch.int64; .*int32"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), MERGE_ERRORS.values(), ids=list(MERGE_ERRORS)
)
def test_merge_partials_refuses(change: dict, exception: type[Exception], message: str) -> None:
    merge_partials(**two_shards())
    expect(merge_partials, two_shards() | change, exception, message)


# --- block_attention


def attention_arguments() -> dict:
    """A block of 4 queries of 6 heads over 2 KV heads, in a cache of 20."""
    return {
        "q": torch.zeros(3, 4, 6, 16),
        "k_cache": torch.zeros(3, 20, 2, 16),
        "v_cache": torch.zeros(3, 20, 2, 16),
        "context_lens": ints(3),
        "k": torch.zeros(3, 4, 2, 16),
        "v": torch.zeros(3, 4, 2, 16),
        "error": new_error_word("cpu"),
    }


def pages_of(pages: int = 7, page_size: int = 16, **others) -> dict:
    """The change that puts the cache into pages."""
    pool = torch.zeros(pages, page_size, 2, 16)
    return {"k_cache": pool, "v_cache": pool, "block_table": ints(3, 2)} | others


def float8(**others) -> dict:
    """The change that puts the cache into float8."""
    cache = torch.zeros(3, 20, 2, 16, dtype=torch.float8_e4m3fn)
    scale = torch.ones(2)
    return {"k_cache": cache, "v_cache": cache, "k_scale": scale, "v_scale": scale} | others


CAUSAL = {"k": None, "v": None}
ATTENTION_ERRORS = {
    "k-scale-missing": (float8(k_scale=None), ValueError, "k_scale is None; a cache in .*float8"),
    "v-scale-missing": (float8(v_scale=None), ValueError, "v_scale is None"),
    "k-scale-alone": ({"k_scale": torch.ones(2)}, ValueError, "k_scale is given; .*float32 has no"),
    "v-scale-alone": ({"v_scale": torch.ones(2)}, ValueError, "v_scale is given"),
    "k-scale-float64": (
        float8(k_scale=torch.ones(2, dtype=F64)), TypeError, "k_scale is torch.float64; .*float32",
    ),
    "v-scale-of-other-heads": (
        float8(v_scale=torch.ones(6)), ValueError, r"v_scale has shape \[6\]; it must be \[2\]",
    ),
    "v-scale-strided": (
        float8(v_scale=torch.ones(4)[::2]), ValueError, "v_scale has stride 2",
    ),
    "k-scale-elsewhere": (
        float8(k_scale=torch.ones(2, device="meta")), ValueError, "k_scale is on meta",
    ),
    "values-alone-float8": (
        {"v_cache": torch.zeros(3, 20, 2, 16, dtype=torch.float8_e4m3fn)},
        TypeError,
        "v_cache is torch.float8_e4m3fn; it must be float32",
    ),
    "keys-alone-float8": (
        float8(v_cache=torch.zeros(3, 20, 2, 16)), TypeError, "v_cache is torch.float32; .*float8",
    ),
    "fresh-keys-float8": (
        float8(k=torch.zeros(3, 4, 2, 16, dtype=torch.float8_e4m3fn)),
        TypeError,
        "k is torch.float8_e4m3fn; it must be float32",
    ),
    "queries-float8": (
        float8(q=torch.zeros(3, 4, 6, 16).to(torch.float8_e4m3fn)), TypeError, "q is torch.float8",
    ),
    "q-no-tensor": ({"q": None}, TypeError, "q is a NoneType"),
    "q-3d": ({"q": torch.zeros(4, 6, 16)}, ValueError, r"q has shape \[4, 6, 16\]; .*block"),
    "q-float64": ({"q": torch.zeros(3, 4, 6, 16, dtype=F64)}, TypeError, "q is torch.float64"),
    "q-strided": (
        {"q": torch.zeros(3, 4, 6, 32)[..., ::2]}, ValueError, "q has stride 2 in its last",
    ),
    "block-0": ({"q": torch.zeros(3, 0, 6, 16)}, ValueError, "q has a block of 0 .*256"),
    "block-257": ({"q": torch.zeros(3, 257, 6, 16)}, ValueError, "q has a block of 257"),
    "head-dim-8": ({"q": torch.zeros(3, 4, 6, 8)}, ValueError, "q has head_dim 8; .*16 to 256"),
    "head-dim-48": ({"q": torch.zeros(3, 4, 6, 48)}, ValueError, "q has head_dim 48"),
    "head-dim-512": ({"q": torch.zeros(3, 4, 6, 512)}, ValueError, "q has head_dim 512"),
    "cache-of-another-batch": (
        {"k_cache": torch.zeros(2, 20, 2, 16)}, ValueError, r"k_cache has shape \[2, 20, 2, 16\]",
    ),
    "cache-of-another-head-dim": (
        {"k_cache": torch.zeros(3, 20, 2, 32)}, ValueError, r"k_cache has shape \[3, 20, 2, 32\]",
    ),
    "cache-float16": (
        {"k_cache": torch.zeros(3, 20, 2, 16, dtype=F16)}, TypeError, "k_cache is torch.float16",
    ),
    "cache-elsewhere": (
        {"k_cache": torch.zeros(3, 20, 2, 16, device="meta")}, ValueError, "k_cache is on meta",
    ),
    "cache-strided": (
        {"k_cache": torch.zeros(3, 20, 16, 2).mT}, ValueError, "k_cache has stride 2",
    ),
    "values-shorter": (
        {"v_cache": torch.zeros(3, 19, 2, 16)}, ValueError, r"v_cache has shape .*\[3, 20, 2, 16\]",
    ),
    "values-strided": (
        {"v_cache": torch.zeros(3, 20, 16, 2).mT}, ValueError, "v_cache has stride 2",
    ),
    "kv-heads-do-not-divide": (
        {"q": torch.zeros(3, 4, 5, 16)}, ValueError, "k_cache has 2 KV heads; .*5 query heads",
    ),
    "no-kv-heads": (
        {"k_cache": torch.zeros(3, 20, 0, 16), "v_cache": torch.zeros(3, 20, 0, 16)},
        ValueError,
        "k_cache has 0 KV heads",
    ),
    "no-query-heads": ({"q": torch.zeros(3, 4, 0, 16)}, ValueError, "q's 0 query heads"),
    "lengths-int64": (
        {"context_lens": ints(3, dtype=I64)}, TypeError, "context_lens is torch.int64; .*int32",
    ),
    "lengths-too-many": (
        {"context_lens": ints(4)}, ValueError, r"context_lens has shape \[4\]; .*\[3\]",
    ),
    "lengths-list": ({"context_lens": [0, 0, 0]}, TypeError, "context_lens is a list"),
    "lengths-strided": ({"context_lens": ints(6)[::2]}, ValueError, "context_lens has stride 2"),
    "k-alone": ({"v": None}, ValueError, "v is None; k and v go together"),
    "v-alone": ({"k": None}, ValueError, "k is None; k and v go together"),
    "k-of-another-block": (
        {"k": torch.zeros(3, 5, 2, 16)}, ValueError, r"k has shape \[3, 5, 2, 16\]; .*\[3, 4, 2,",
    ),
    "v-of-other-heads": ({"v": torch.zeros(3, 4, 1, 16)}, ValueError, "v has shape"),
    "v-float16": ({"v": torch.zeros(3, 4, 2, 16, dtype=F16)}, TypeError, "v is torch.float16"),
    "k-strided": ({"k": torch.zeros(3, 4, 2, 32)[..., ::2]}, ValueError, "k has stride 2"),
    "scale-0": ({"scale": 0.0}, ValueError, "scale is 0.0; .*positive"),
    "scale-negative": ({"scale": -0.5}, ValueError, "scale is -0.5"),
    "scale-nan": ({"scale": math.nan}, ValueError, "scale is nan"),
    "scale-infinite": ({"scale": math.inf}, ValueError, "scale is inf"),
    "scale-string": ({"scale": "1"}, TypeError, "scale is '1'; it must be a number"),
    "return-lse-int": ({"return_lse": 1}, TypeError, "return_lse is 1; it must be a bool"),
    "numerics-unknown": ({"numerics": "exact"}, ValueError, "numerics is .exact.; .*inv"),
    "max-context-negative": ({"max_context": -1}, ValueError, "max_context is -1"),
    "max-context-past-the-cache": ({"max_context": 21}, ValueError, "max_context is 21"),
    "causal-max-context-past-the-cache": (
        CAUSAL | {"max_context": 17}, ValueError, r"max_context is 17; .*\[0, 16\]",
    ),
    "max-context-float": ({"max_context": 5.0}, TypeError, "max_context is 5.0"),
    "causal-block-longer-than-the-cache": (
        CAUSAL | {"k_cache": torch.zeros(3, 3, 2, 16), "v_cache": torch.zeros(3, 3, 2, 16)},
        ValueError,
        "k_cache holds 3 keys; a causal block of 4",
    ),
    "table-list": (pages_of(block_table=[[0]]), TypeError, "block_table is a list"),
    "table-int64": (
        pages_of(block_table=ints(3, 2, dtype=I64)), TypeError, "block_table is torch.int64",
    ),
    "table-1d": (pages_of(block_table=ints(3)), ValueError, r"block_table has shape \[3\]; .*max"),
    "table-of-another-batch": (
        pages_of(block_table=ints(2, 2)), ValueError, r"block_table has shape \[2, 2\]; .*\[3, ",
    ),
    "table-strided": (
        pages_of(block_table=ints(3, 4)[:, ::2]), ValueError, "block_table has stride 2",
    ),
    "table-elsewhere": (
        pages_of(block_table=ints(3, 2).to("meta")), ValueError, "block_table is on meta",
    ),
    "no-pages": (pages_of(pages=0), ValueError, "k_cache has 0 pages"),
    "pages-of-8": (pages_of(page_size=8), ValueError, "k_cache has pages of 8 keys; .*16 or more"),
    "pages-of-24": (pages_of(page_size=24), ValueError, "k_cache has pages of 24 keys; .*power"),
    "pages-of-other-values": (
        pages_of(v_cache=torch.zeros(7, 32, 2, 16)), ValueError, r"v_cache has shape \[7, 32, 2",
    ),
    "max-context-past-the-pages": (
        pages_of(max_context=33), ValueError, r"max_context is 33; .*\[0, 32\]",
    ),
    "drafts-without-k": (
        CAUSAL | {"draft_groups": (1, 2)}, ValueError, "k is None; draft_groups needs k and v",
    ),
    "drafts-list": ({"draft_groups": [1, 2]}, TypeError, r"draft_groups is \[1, 2\]; .*tuple"),
    "drafts-of-three": ({"draft_groups": (1, 2, 1)}, TypeError, r"draft_groups is \(1, 2, 1\)"),
    "no-drafts": ({"draft_groups": (0, 4)}, ValueError, r"draft_groups\[0\] is 0"),
    "drafts-without-masks": ({"draft_groups": (4, 1)}, ValueError, r"draft_groups\[1\] is 1"),
    "drafts-float": ({"draft_groups": (1.0, 2)}, TypeError, r"draft_groups\[0\] is 1.0"),
    "drafts-past-the-block": (
        {"draft_groups": (2, 3)}, ValueError, r"draft_groups is \(2, 3\): 6 rows; the block has 4",
    ),
    "drafts-past-512-rows": (
        {"draft_groups": (1, 2), "q": torch.zeros(3, 513, 6, 16)}, ValueError, "block of 513 .*512",
    ),
    "drafts-past-the-cache": (
        {"draft_groups": (1, 2), "k_cache": torch.zeros(3, 2, 2, 16),
         "v_cache": torch.zeros(3, 2, 2, 16)},
        ValueError,
        "k_cache holds 2 keys; the 3 causal and slot-0 rows",
    ),
    "max-context-past-room-for-drafts": (
        {"draft_groups": (2, 2), "max_context": 19}, ValueError, r"max_context is 19; .*\[0, 18\]",
    ),
    "error-bool": ({"error": torch.zeros(1, dtype=torch.bool)}, TypeError, "error is torch.bool"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), ATTENTION_ERRORS.values(), ids=list(ATTENTION_ERRORS)
)
def test_block_attention_refuses(change: dict, exception: type[Exception], message: str) -> None:
    block_attention(**attention_arguments())
    expect(block_attention, attention_arguments() | change, exception, message)


# --- remask_scatter


def remask_arguments() -> dict:
    return {
        "state": BlockState.start(ints(2, 4, value=MASK), MASK),
        "candidate": ints(2, 4, value=1),
        "confidence": torch.zeros(2, 4),
        "rule": Rule(),
        "mask_id": MASK,
        "eos_id": EOS,
        "error": new_error_word("cpu"),
    }


def noisy(**fields) -> dict:
    """A rule that needs noise, and noise with these fields."""
    noise = Noise(seed=ints(2, dtype=I64), position=ints(2), vocab_size=50)
    return {"rule": Rule(confidence="random"), "noise": noise._replace(**fields)}


def table_with(**fields) -> dict:
    return {"rule": RuleTable.pack([Rule()] * 2, "cpu")._replace(**fields)}


REMASKING = {"rule": Rule(remask_below=0.5), "token_probability": torch.zeros(2, 4)}


def state_with(**fields) -> dict:
    return {"state": remask_arguments()["state"]._replace(**fields)}


REMASK_ERRORS = {
    "state-tuple": ({"state": (1, 2)}, TypeError, "state is a tuple; it must be a BlockState"),
    "tokens-float": (state_with(tokens=torch.zeros(2, 4)), TypeError, "tokens is torch.float32"),
    "tokens-1d": (state_with(tokens=ints(4)), ValueError, r"tokens has shape \[4\]; .*batch"),
    "block-0": (state_with(tokens=ints(2, 0)), ValueError, "tokens has a block of 0"),
    "block-257": (state_with(tokens=ints(2, 257)), ValueError, "tokens has a block of 257"),
    "tokens-strided": (state_with(tokens=ints(2, 8)[:, ::2]), ValueError, "tokens has strides"),
    "fixed-int32": (state_with(fixed=ints(2, 4)), TypeError, "state.fixed is torch.int32; .*bool"),
    "fixed-shape": (
        state_with(fixed=torch.zeros(2, 5, dtype=torch.bool)),
        ValueError,
        r"state.fixed has shape \[2, 5\]",
    ),
    "edit-step-int64": (
        state_with(edit_step=ints(2, dtype=I64)), TypeError, "state.edit_step is torch.int64",
    ),
    "commit-step-int64": (
        state_with(commit_step=ints(2, 4, dtype=I64)), TypeError, "state.commit_step is torch.i",
    ),
    "commit-step-shape": (
        state_with(commit_step=ints(2, 3)), ValueError, r"state.commit_step has shape \[2, 3\]",
    ),
    "commit-confidence-float64": (
        state_with(commit_confidence=torch.zeros(2, 4, dtype=F64)),
        TypeError,
        "state.commit_confidence is torch.float64",
    ),
    "masks-left-shape": (
        state_with(masks_left=ints(3)), ValueError, r"state.masks_left has shape \[3\]; .*\[2\]",
    ),
    "step-int64": (state_with(step=ints(2, dtype=I64)), TypeError, "state.step is torch.int64"),
    "step-strided": (state_with(step=ints(4)[::2]), ValueError, "state.step has strides"),
    "step-elsewhere": (
        state_with(step=torch.zeros(2, dtype=I32, device="meta")), ValueError, "state.step is on m",
    ),
    "done-int32": (state_with(done=ints(2)), TypeError, "state.done is torch.int32; .*bool"),
    "done-no-tensor": (state_with(done=[False, False]), TypeError, "state.done is a list"),
    "candidate-int64": (
        {"candidate": ints(2, 4, dtype=I64)}, TypeError, "candidate is torch.int64; .*int32",
    ),
    "candidate-shape": (
        {"candidate": ints(4, 2)}, ValueError, r"candidate has shape \[4, 2\]; .*\[2, 4\]",
    ),
    "candidate-strided": ({"candidate": ints(4, 2).T}, ValueError, "candidate has strides"),
    "confidence-float16": (
        {"confidence": torch.zeros(2, 4, dtype=F16)}, TypeError, "confidence is torch.float16",
    ),
    "confidence-shape": (
        {"confidence": torch.zeros(2, 5)}, ValueError, r"confidence has shape \[2, 5\]",
    ),
    "confidence-strided": (
        {"confidence": torch.zeros(4, 2).T}, ValueError, "confidence has strides",
    ),
    "mask-id-none": ({"mask_id": None}, TypeError, "mask_id is None; it must be an int"),
    "mask-id-negative": ({"mask_id": -3}, ValueError, "mask_id is -3"),
    "eos-id-mask": ({"eos_id": MASK}, ValueError, f"eos_id is {MASK}, the mask id"),
    "eos-id-float": ({"eos_id": 2.0}, TypeError, "eos_id is 2.0"),
    "eos-id-too-large": ({"eos_id": 2**31}, ValueError, "eos_id is 2147483648"),
    "rule-name": ({"rule": "llada"}, TypeError, "rule is a str; it must be a Rule or a RuleTable"),
    "rule-none": ({"rule": None}, TypeError, "rule is a NoneType"),
    "table-of-three": (
        {"rule": RuleTable.pack([Rule()] * 3, "cpu")},
        ValueError,
        r"rule.numbers has shape \[3, 5\]; .*\[2, 5\]",
    ),
    "table-numbers-float64": (
        table_with(numbers=torch.zeros(2, 5, dtype=F64)), TypeError, "rule.numbers is torch.float",
    ),
    "table-counts-columns": (
        table_with(counts=ints(2, 6)), ValueError, r"rule.counts has shape \[2, 6\]; .*\[2, 7\]",
    ),
    "table-counts-strided": (
        table_with(counts=ints(2, 14)[:, ::2]), ValueError, "rule.counts has strides",
    ),
    "no-token-probability": (
        {"rule": Rule(remask_below=0.5)}, ValueError, "token_probability is None; .*remask_below",
    ),
    "no-token-probability-for-a-table": (
        {"rule": RuleTable.pack([Rule(), Rule(remask_below=0.5)], "cpu")},
        ValueError,
        "token_probability is None",
    ),
    "token-probability-float16": (
        REMASKING | {"token_probability": torch.zeros(2, 4, dtype=F16)},
        TypeError,
        "token_probability is torch.float16",
    ),
    "token-probability-shape": (
        REMASKING | {"token_probability": torch.zeros(2, 3)},
        ValueError,
        r"token_probability has shape \[2, 3\]",
    ),
    "no-noise-for-random": (
        {"rule": Rule(confidence="random")}, ValueError, "noise is None; it must be a Noise",
    ),
    "no-noise-for-renoise": ({"rule": Rule(renoise=True)}, ValueError, "noise is None"),
    "noise-seed-int32": (noisy(seed=ints(2)), TypeError, "noise.seed is torch.int32; .*int64"),
    "noise-seed-shape": (
        noisy(seed=ints(1, dtype=I64)), ValueError, r"noise.seed has shape \[1\]; .*\[2\]",
    ),
    "noise-position-int64": (
        noisy(position=ints(2, dtype=I64)), TypeError, "noise.position is torch.int64",
    ),
    "noise-vocab-1": (noisy(vocab_size=1), ValueError, "noise.vocab_size is 1"),
    "noise-vocab-float": (noisy(vocab_size=9.0), TypeError, "noise.vocab_size is 9.0"),
    "error-shape": ({"error": ints(1, 1)}, ValueError, r"error has shape \[1, 1\]; .*\[1\]"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), REMASK_ERRORS.values(), ids=list(REMASK_ERRORS)
)
def test_remask_scatter_refuses(change: dict, exception: type[Exception], message: str) -> None:
    remask_scatter(**remask_arguments())
    expect(remask_scatter, remask_arguments() | change, exception, message)


@pytest.mark.parametrize(
    ("tokens", "mask_id", "exception", "message"),
    [
        pytest.param([[9]], MASK, TypeError, "tokens is a list", id="list"),
        pytest.param(torch.zeros(2, 4), MASK, TypeError, "tokens is torch.float32", id="float"),
        pytest.param(ints(4), MASK, ValueError, r"tokens has shape \[4\]", id="1d"),
        pytest.param(ints(2, 300), MASK, ValueError, "tokens has a block of 300", id="block-300"),
        pytest.param(ints(4, 2).T, MASK, ValueError, "tokens has strides", id="strided"),
        pytest.param(ints(2, 4), -1, ValueError, "mask_id is -1", id="mask-id-negative"),
        pytest.param(ints(2, 4), "m", TypeError, "mask_id is 'm'", id="mask-id-string"),
    ],
)
def test_block_state_start_refuses(
    tokens, mask_id, exception: type[Exception], message: str
) -> None:
    expect(BlockState.start, {"tokens": tokens, "mask_id": mask_id}, exception, message)


@pytest.mark.parametrize("name", ["undecided", "fixed"])
def test_block_state_start_refuses_other_positions(name: str) -> None:
    good = {"tokens": ints(2, 4), "mask_id": MASK}
    expect(BlockState.start, good | {name: ints(2, 4)}, TypeError, f"{name} is torch.int32; .*bool")
    wrong = torch.zeros(2, 3, dtype=torch.bool)
    expect(BlockState.start, good | {name: wrong}, ValueError, rf"{name} has shape \[2, 3\]")
    wrong = torch.zeros(4, 2, dtype=torch.bool).T
    expect(BlockState.start, good | {name: wrong}, ValueError, f"{name} has strides")


# --- residual_norm and gated_silu


def norm_arguments() -> dict:
    return {
        "residual": torch.zeros(3, 8),
        "update": torch.zeros(3, 8),
        "weight": torch.zeros(8),
        "eps": 1e-5,
    }


NORM_ERRORS = {
    "weight-2d": ({"weight": torch.zeros(1, 8)}, ValueError, r"weight has shape \[1, 8\]; .*\[8\]"),
    "weight-float64": ({"weight": torch.zeros(8, dtype=F64)}, TypeError, "weight is torch.float64"),
    "weight-empty": ({"weight": torch.zeros(0)}, ValueError, r"weight has shape \[0\]; .*\[8\]"),
    "residual-too-wide": (
        {"residual": torch.zeros(3, 16385)},
        ValueError,
        "residual has rows of 16385; they must have 1 to 16384",
    ),
    "residual-no-tensor": ({"residual": 0}, TypeError, "residual is a int; .*torch.Tensor"),
    "residual-0d": (
        {"residual": torch.zeros(())},
        ValueError,
        r"residual has shape \[\]; .*\[hidden\]",
    ),
    "residual-narrow": (
        {"residual": torch.zeros(3, 7)},
        ValueError,
        r"weight has shape \[8\]; it must be \[7\]",
    ),
    "residual-float16": (
        {"residual": torch.zeros(3, 8, dtype=F16)},
        TypeError,
        "weight is torch.float32; it must be float16",
    ),
    "update-list": ({"update": [0]}, TypeError, "update is a list; .*torch.Tensor or PartialSums"),
    "update-of-other-rows": (
        {"update": torch.zeros(2, 8)},
        ValueError,
        r"update has shape \[2, 8\]; it must be \[3, 8\], as residual",
    ),
    "parts-of-other-rows": (
        {"update": PartialSums(torch.zeros(2, 3, 7), torch.float32)},
        ValueError,
        r"update has shape \[3, 7\]",
    ),
    "update-float16": (
        {"update": PartialSums(torch.zeros(2, 3, 8), F16)},
        TypeError,
        "update is torch.float16; it must be torch.float32, as residual",
    ),
    "parts-strided": (
        {"update": PartialSums(torch.zeros(8, 3, 2).permute(2, 1, 0), torch.float32)},
        ValueError,
        "update.sums has strides .*contiguous",
    ),
    "update-elsewhere": (
        {"update": torch.zeros(3, 8, device="meta")},
        ValueError,
        "update is on meta; it must be on cpu, as residual",
    ),
    "eps-text": ({"eps": "1e-5"}, TypeError, "eps is '1e-5'; it must be a number"),
    "eps-negative": ({"eps": -1e-5}, ValueError, "eps is -1e-05; it must be at least 0"),
    "eps-nan": ({"eps": math.nan}, ValueError, "eps is nan"),
}


@pytest.mark.parametrize(
    ("change", "exception", "message"), NORM_ERRORS.values(), ids=list(NORM_ERRORS)
)
def test_residual_norm_refuses(change: dict, exception: type[Exception], message: str) -> None:
    residual_norm(**norm_arguments())
    expect(residual_norm, norm_arguments() | change, exception, message)


@pytest.mark.parametrize(
    ("gate_up", "exception", "message"),
    [
        (None, TypeError, "gate_up is a NoneType; .*torch.Tensor or PartialSums"),
        (torch.zeros(3, 8, dtype=F64), TypeError, "gate_up is torch.float64"),
        (torch.zeros(3, 7), ValueError, r"gate_up has shape \[3, 7\]; .*2 intermediate"),
        (torch.zeros(3, 0), ValueError, r"gate_up has shape \[3, 0\]"),
        (torch.zeros(()), ValueError, r"gate_up has shape \[\]"),
        (PartialSums(torch.zeros(2, 3, 8, dtype=F16), F16), ValueError, "gate_up.sums is torch.fl"),
    ],
    ids=["no-tensor", "float64", "odd", "no-features", "0d", "parts-in-float16"],
)
def test_gated_silu_refuses(gate_up: object, exception: type[Exception], message: str) -> None:
    expect(gated_silu, {"gate_up": gate_up}, exception, message)


# --- rope_kv_write


def rope_arguments() -> dict:
    """4 query heads and 2 KV heads of 16, blocks of 4 behind contexts in a cache of 20."""
    return {
        "qkv": torch.zeros(3, 4, 8 * 16),
        "cos": torch.zeros(3, 4, 8),
        "sin": torch.zeros(3, 4, 8),
        "query_scale": torch.zeros(3, 4),
        "kv_heads": 2,
        "k_cache": torch.zeros(3, 20, 2, 16),
        "v_cache": torch.zeros(3, 20, 2, 16),
        "context_lens": ints(3),
        "error": new_error_word("cpu"),
    }


def rope_pages(**others) -> dict:
    """What makes `rope_arguments` paged: 7 pages of 16 keys, two of them a request."""
    pages = {"k_cache": torch.zeros(7, 16, 2, 16), "v_cache": torch.zeros(7, 16, 2, 16)}
    return pages | {"block_table": ints(3, 2)} | others


NO_CACHE = {"k_cache": None, "v_cache": None, "context_lens": None}
F8 = torch.float8_e4m3fn
F8_CACHES = {
    "k_cache": torch.zeros(3, 20, 2, 16).to(F8),
    "v_cache": torch.zeros(3, 20, 2, 16).to(F8),
    "k_scale": torch.ones(2),
    "v_scale": torch.ones(2),
}

ROPE_ERRORS = {
    "qkv-list": ({"qkv": [0]}, TypeError, "qkv is a list; .*torch.Tensor or PartialSums"),
    "qkv-float64": ({"qkv": torch.zeros(3, 4, 128, dtype=F64)}, TypeError, "qkv is torch.float64"),
    "qkv-2d": ({"qkv": torch.zeros(12, 128)}, ValueError, r"qkv has shape \[12, 128\]; .*\[batch"),
    "qkv-too-few-heads": (
        {"qkv": torch.zeros(3, 4, 64)},
        ValueError,
        "qkv has 64 features; with kv_heads 2 and head_dim 16 it must have 32 for each query head",
    ),
    "qkv-part-of-a-head": ({"qkv": torch.zeros(3, 4, 120)}, ValueError, "qkv has 120 features"),
    "qkv-odd-group": ({"qkv": torch.zeros(3, 4, 112)}, ValueError, "qkv has 112 features"),
    "cos-other-block": ({"cos": torch.zeros(3, 5, 8)}, ValueError, r"cos has .*\[3, 4, head_dim"),
    "cos-float16": ({"cos": torch.zeros(3, 4, 8, dtype=F16)}, TypeError, "cos is torch.float16"),
    "head-dim-12": (
        {"cos": torch.zeros(3, 4, 6), "sin": torch.zeros(3, 4, 6)},
        ValueError,
        "cos is for head_dim 12; it must be a power of two from 16 to 256",
    ),
    "sin-shorter": ({"sin": torch.zeros(3, 4, 4)}, ValueError, r"sin has .*\[3, 4, 8\]"),
    "scale-a-head": ({"query_scale": torch.zeros(3, 4, 1)}, ValueError, "query_scale has shape"),
    "kv-heads-zero": ({"kv_heads": 0}, ValueError, "kv_heads is 0; it must be in"),
    "kv-heads-float": ({"kv_heads": 2.0}, TypeError, "kv_heads is 2.0; it must be an int"),
    "k-cache-alone": ({"v_cache": None}, TypeError, "v_cache is a NoneType"),
    "v-cache-alone": ({"k_cache": None}, ValueError, "k_cache is None; v_cache needs it"),
    "no-cache-drafts": (
        NO_CACHE | {"draft_groups": (1, 2)},
        ValueError,
        "k_cache is None; draft_groups needs it",
    ),
    "no-lengths": ({"context_lens": None}, TypeError, "context_lens is a NoneType"),
    "lengths-int64": ({"context_lens": ints(3, dtype=I64)}, TypeError, "context_lens is torch.int"),
    "lengths-strided": ({"context_lens": ints(6)[::2]}, ValueError, "context_lens has stride 2"),
    "cache-of-other-heads": (
        {"k_cache": torch.zeros(3, 20, 4, 16)},
        ValueError,
        r"k_cache has shape .*\[3, capacity, 2, 16\]",
    ),
    "cache-float16": (
        {"k_cache": torch.zeros(3, 20, 2, 16, dtype=F16)},
        TypeError,
        "k_cache is torch.float16; it must be float32 or float8_e4m3fn",
    ),
    "v-cache-of-other-dtype": (
        F8_CACHES | {"v_cache": torch.zeros(3, 20, 2, 16)},
        TypeError,
        "v_cache is torch.float32; it must be float8_e4m3fn",
    ),
    "v-cache-strided": (
        {"v_cache": torch.zeros(3, 20, 2, 32)[..., ::2]},
        ValueError,
        "v_cache has stride 2",
    ),
    "cache-too-short": (
        {"k_cache": torch.zeros(3, 3, 2, 16), "v_cache": torch.zeros(3, 3, 2, 16)},
        ValueError,
        "k_cache holds 3 keys; 4 rows of the block",
    ),
    "float8-without-scale": (
        F8_CACHES | {"v_scale": None},
        ValueError,
        "v_scale is None; a cache in torch.float8_e4m3fn needs it",
    ),
    "scale-without-float8": (
        {"k_scale": torch.ones(2)},
        ValueError,
        "k_scale is given; a cache in torch.float32 has no scales",
    ),
    "scale-a-query-head": (
        F8_CACHES | {"k_scale": torch.ones(4)},
        ValueError,
        r"k_scale has shape \[4\]; it must be \[2\]",
    ),
    "no-pages": (
        rope_pages(k_cache=torch.zeros(0, 16, 2, 16), v_cache=torch.zeros(0, 16, 2, 16)),
        ValueError,
        "k_cache has 0 pages",
    ),
    "pages-of-20": (
        rope_pages(k_cache=torch.zeros(7, 20, 2, 16), v_cache=torch.zeros(7, 20, 2, 16)),
        ValueError,
        "k_cache has pages of 20 keys",
    ),
    "table-of-other-batch": (
        rope_pages(block_table=ints(2, 2)),
        ValueError,
        r"block_table has shape \[2, 2\]; it must be \[3, max_pages\]",
    ),
    "table-int64": (
        rope_pages(block_table=ints(3, 2, dtype=I64)),
        TypeError,
        "block_table is torch.int64; it must be int32",
    ),
    "drafts-list": ({"draft_groups": [1, 2]}, TypeError, r"draft_groups is \[1, 2\]; .*tuple"),
    "drafts-longer-than-the-block": (
        {"draft_groups": (2, 3)},
        ValueError,
        r"draft_groups is \(2, 3\): 6 rows; the block has 4",
    ),
    "drafts-without-masks": ({"draft_groups": (2, 1)}, ValueError, r"draft_groups\[1\] is 1"),
    "error-two-words": ({"error": ints(2)}, ValueError, r"error has shape \[2\]"),
}


@pytest.mark.parametrize(
    ("change", "exception", "message"), ROPE_ERRORS.values(), ids=list(ROPE_ERRORS)
)
def test_rope_kv_write_refuses(change: dict, exception: type[Exception], message: str) -> None:
    rope_kv_write(**rope_arguments())
    expect(rope_kv_write, rope_arguments() | change, exception, message)


@pytest.mark.gpu
@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_an_old_gpu_refuses_a_float8_cache(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in (rope_arguments() | F8_CACHES).items()
    }
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    message = f"k_cache is torch.float8_e4m3fn; .* on sm_{capability[0]}{capability[1]}"
    with pytest.raises(TypeError, match=message):
        rope_kv_write(**arguments)


# --- device contents, which only DLM_CHECK=1 reads


@pytest.mark.parametrize(
    ("call", "arguments", "change", "message"),
    [
        pytest.param(
            confidence,
            confidence_arguments,
            {"banned": torch.tensor([1, 8], dtype=I32)},
            r"banned holds 8; ids must be in \[0, 8\)",
            id="banned-id-past-the-vocabulary",
        ),
        pytest.param(
            confidence,
            confidence_arguments,
            {"banned": torch.tensor([-1], dtype=I32)},
            "banned holds -1",
            id="banned-id-negative",
        ),
        pytest.param(
            lm_head_confidence,
            head_arguments,
            {"banned": torch.tensor([1, 8], dtype=I32)},
            r"banned holds 8; ids must be in \[0, 8\)",
            id="banned-id-past-the-head",
        ),
        pytest.param(
            merge_partials,
            two_shards,
            {"banned": torch.tensor([7, 8], dtype=I32)},
            r"banned holds 8; ids must be in \[0, 8\)",
            id="banned-id-past-the-shards",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([0, 21, 3], dtype=I32)},
            r"context_lens holds 21; lengths must be in \[0, 20\]",
            id="length-past-the-cache",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            CAUSAL | {"context_lens": torch.tensor([0, 17, 3], dtype=I32)},
            r"context_lens holds 17; lengths must be in \[0, 16\]",
            id="causal-length-past-the-cache",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([6, 0, 0], dtype=I32), "max_context": 5},
            "context_lens holds 6",
            id="length-past-max-context",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([0, 0, -1], dtype=I32)},
            "context_lens holds -1",
            id="length-negative",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            pages_of(
                block_table=torch.tensor([[0, 1], [2, 7], [3, -1]], dtype=I32),
                context_lens=torch.tensor([16, 17, 16], dtype=I32),
            ),
            r"block_table holds 7; pages must be in \[0, 7\)",
            id="page-past-the-last",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            pages_of(
                block_table=torch.tensor([[0, 1], [2, 7], [3, -1]], dtype=I32),
                context_lens=torch.tensor([16, 16, 14], dtype=I32),
                draft_groups=(1, 2),
            ),
            "block_table holds 7",
            id="page-of-a-drafts-slot-0",
        ),
        pytest.param(
            rope_kv_write,
            rope_arguments,
            {"context_lens": torch.tensor([0, 17, 3], dtype=I32)},
            r"context_lens holds 17; lengths must be in \[0, 16\]",
            id="length-that-leaves-a-block-no-room",
        ),
        pytest.param(
            rope_kv_write,
            rope_arguments,
            {"context_lens": torch.tensor([0, 18, 3], dtype=I32), "draft_groups": (1, 2)},
            r"context_lens holds 18; lengths must be in \[0, 17\]",
            id="length-that-leaves-drafts-no-room",
        ),
        pytest.param(
            rope_kv_write,
            rope_arguments,
            rope_pages(
                block_table=torch.tensor([[0, -1], [-1, 7], [3, 4]], dtype=I32),
                context_lens=torch.tensor([12, 16, 0], dtype=I32),
            ),
            r"block_table holds 7; pages must be in \[0, 7\)",
            id="page-that-a-block-is-written-to",
        ),
        pytest.param(
            remask_scatter,
            remask_arguments,
            state_with(step=torch.tensor([0, 3], dtype=I32)) | {"rule": Rule(steps=3)},
            r"state.step holds \[0, 3\]; that of request 1 .*steps=3",
            id="step-past-the-budget",
        ),
        pytest.param(
            remask_scatter,
            remask_arguments,
            state_with(step=torch.tensor([-1, 0], dtype=I32)) | {"rule": Rule(steps=3)},
            "state.step holds",
            id="step-negative",
        ),
    ],
)
def test_contents_are_checked_on_request(
    call: Callable,
    arguments: Callable[[], dict],
    change: dict,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faulty = arguments() | change
    monkeypatch.setenv("DLM_CHECK", "1")
    call(**arguments())
    expect(call, faulty, ValueError, message)
    monkeypatch.setenv("DLM_CHECK", "0")
    call(**faulty)


def test_steps_outside_the_budget_are_right_where_nothing_is_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DLM_CHECK", "1")
    step = torch.tensor([0, 3], dtype=I32)
    done = state_with(step=step.clone(), done=torch.tensor([False, True]))
    remask_scatter(**(remask_arguments() | done | {"rule": Rule(steps=3)}))
    editing = state_with(step=step.clone(), masks_left=torch.tensor([4, 0], dtype=I32))
    rule = Rule(steps=3, edit_threshold=0.5, edit_steps=9)
    remask_scatter(**(remask_arguments() | editing | {"rule": rule}))


def test_table_entries_behind_the_visible_keys_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DLM_CHECK", "1")
    arguments = attention_arguments() | pages_of(
        block_table=torch.tensor([[-1, -1], [2, 7], [3, -1]], dtype=I32),
        context_lens=torch.tensor([0, 16, 12], dtype=I32),
    )
    block_attention(**arguments)
    with pytest.raises(ValueError, match="block_table holds -1"):
        block_attention(**(arguments | CAUSAL))
