"""Every error a caller of an op can make names its argument, and leaves all tensors as they were.

The last part is about device contents, which only DLM_CHECK=1 reads.
"""

import math
from collections.abc import Callable

import pytest
import torch
from numeric import unchanged
from torch import Tensor

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
from dlm_kernels.backend import checked_contents, forced_backend
from dlm_kernels.partial_sums import PartialSums

MASK, EOS = 9, 2
F64, F32, F16, F8 = torch.float64, torch.float32, torch.float16, torch.float8_e4m3fn
I64, I32, I8, BOOL = torch.int64, torch.int32, torch.int8, torch.bool
T, V = TypeError, ValueError


def zeros(*shape: int, dtype: torch.dtype = F32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=F32, device=device).to(dtype)


def ints(*shape: int, dtype: torch.dtype = I32, value: int = 0) -> Tensor:
    return torch.full(shape, value, dtype=dtype)


def ids(*values: int | list[int]) -> Tensor:
    return torch.tensor(values, dtype=I32)


# --- arguments that each op takes


def confidence_arguments() -> dict:
    return {
        "logits": zeros(3, 8),
        "tokens": ints(3, value=MASK),
        "mask_id": MASK,
        "banned": ints(2),
        "error": new_error_word("cpu"),
    }


def head_arguments() -> dict:
    rows = {"tokens": ints(3, value=MASK), "mask_id": MASK, "banned": ints(2)}
    return {"hidden": zeros(3, 5), "weight": zeros(8, 5)} | rows


def shard_arguments() -> dict:
    return {"first_id": 0} | head_arguments()


def two_shards(**second) -> dict:
    """Arguments of merge_partials, with these fields of the second shard."""
    first, last = (
        lm_head_partials(zeros(3, 5), zeros(4, 5), first_id=i, entropy=True) for i in (0, 4)
    )
    return {"partials": [first, last._replace(**second)], "tokens": ints(3), "mask_id": MASK}


def attention_arguments() -> dict:
    """A block of 4 queries of 6 heads over 2 KV heads, in a cache of 20."""
    return {
        "q": zeros(3, 4, 6, 16),
        "k_cache": zeros(3, 20, 2, 16),
        "v_cache": zeros(3, 20, 2, 16),
        "context_lens": ints(3),
        "k": zeros(3, 4, 2, 16),
        "v": zeros(3, 4, 2, 16),
        "error": new_error_word("cpu"),
    }


def rope_arguments() -> dict:
    """4 query heads and 2 KV heads of 16, blocks of 4 behind contexts in a cache of 20."""
    return {
        "qkv": zeros(3, 4, 8 * 16),
        "cos": zeros(3, 4, 8),
        "sin": zeros(3, 4, 8),
        "query_scale": zeros(3, 4),
        "kv_heads": 2,
        "k_cache": zeros(3, 20, 2, 16),
        "v_cache": zeros(3, 20, 2, 16),
        "context_lens": ints(3),
        "error": new_error_word("cpu"),
    }


def remask_arguments() -> dict:
    return {
        "state": BlockState.start(ints(2, 4, value=MASK), MASK),
        "candidate": ints(2, 4, value=1),
        "confidence": zeros(2, 4),
        "rule": Rule(),
        "mask_id": MASK,
        "eos_id": EOS,
        "error": new_error_word("cpu"),
    }


def linear_arguments() -> dict:
    return {"x": zeros(3, 20), "weight": zeros(7, 20)}


def norm_arguments() -> dict:
    return {"residual": zeros(3, 8), "update": zeros(3, 8), "weight": zeros(8), "eps": 1e-5}


OPS: dict[str, tuple[Callable, Callable[[], dict]]] = {
    "confidence": (confidence, confidence_arguments),
    "lm_head_confidence": (lm_head_confidence, head_arguments),
    "lm_head_partials": (lm_head_partials, shard_arguments),
    "merge_partials": (merge_partials, two_shards),
    "block_attention": (block_attention, attention_arguments),
    "rope_kv_write": (rope_kv_write, rope_arguments),
    "linear": (linear, linear_arguments),
    "linear_partials": (linear_partials, linear_arguments),
    "residual_norm": (residual_norm, norm_arguments),
    "gated_silu": (gated_silu, lambda: {"gate_up": zeros(3, 8)}),
    "quantize_weight": (quantize_weight, lambda: {"weight": zeros(2, 3), "kind": "int8"}),
    "remask_scatter": (remask_scatter, remask_arguments),
    "BlockState.start": (BlockState.start, lambda: {"tokens": ints(2, 4), "mask_id": MASK}),
}

# --- changes of several arguments at once

CAUSAL = {"k": None, "v": None}
NO_CACHE = {"k_cache": None, "v_cache": None, "context_lens": None}
REMASKING = {"rule": Rule(remask_below=0.5), "token_probability": zeros(2, 4)}


def caches(*shape: int, dtype: torch.dtype = F32, **others) -> dict:
    return {"k_cache": zeros(*shape, dtype=dtype), "v_cache": zeros(*shape, dtype=dtype)} | others


def pages_of(pages: int = 7, page_size: int = 16, **others) -> dict:
    return caches(pages, page_size, 2, 16, block_table=ints(3, 2)) | others


def float8(**others) -> dict:
    scales = {"k_scale": torch.ones(2), "v_scale": torch.ones(2)}
    return caches(3, 20, 2, 16, dtype=F8) | scales | others


def quantized(kind: str, /, **changes) -> dict:
    return {"weight": quantize_weight(torch.ones(7, 20), kind)._replace(**changes)}


def parts(*shape: int, dtype: torch.dtype = F32, of: torch.dtype = F32) -> PartialSums:
    return PartialSums(zeros(*shape, dtype=dtype), of)


def state_with(**fields) -> dict:
    return {"state": remask_arguments()["state"]._replace(**fields)}


def budget_of_three(*step: int, **fields) -> dict:
    return state_with(step=ids(*step), **fields) | {"rule": Rule(steps=3)}


def noisy(**fields) -> dict:
    noise = Noise(seed=ints(2, dtype=I64), position=ints(2), vocab_size=50)
    return {"rule": Rule(confidence="random"), "noise": noise._replace(**fields)}


def table_of(rules: list[Rule]) -> RuleTable:
    return RuleTable.pack(rules, "cpu")


def table_with(**fields) -> dict:
    return {"rule": table_of([Rule()] * 2)._replace(**fields)}


# Of each op, with a change that makes its tensors right, the kinds of fault that a tensor has not:
# the first one says where the others should be, and some may have any strides.
TENSORS: list[tuple[str, dict, dict[str, str]]] = [
    ("confidence", {}, {"logits": "device", "tokens": "", "banned": "", "error": "stride"}),
    *(
        (name, {}, {"weight": "device", "hidden": "", "tokens": "", "banned": ""})
        for name in ("lm_head_confidence", "lm_head_partials")
    ),
    ("lm_head_confidence", {"error": new_error_word("cpu")}, {"error": "stride"}),
    ("merge_partials", {"error": new_error_word("cpu")}, {"tokens": "", "error": "stride"}),
    (
        "block_attention",
        {},
        {"q": "device", "k_cache": "", "v_cache": "", "context_lens": "", "k": "", "v": ""}
        | {"error": "stride"},
    ),
    ("block_attention", pages_of(), {"block_table": ""}),
    ("block_attention", float8(), {"k_scale": "", "v_scale": ""}),
    ("rope_kv_write", {}, {"qkv": "device stride", "cos": "stride", "sin": "stride"}),
    ("rope_kv_write", {}, {"query_scale": "stride", "k_cache": "", "v_cache": ""}),
    ("rope_kv_write", {}, {"context_lens": "", "error": "stride"}),
    ("rope_kv_write", pages_of(), {"block_table": ""}),
    ("rope_kv_write", float8(), {"k_scale": "", "v_scale": ""}),
    *(
        (name, {}, {"weight": "device", "x": "dim stride"})
        for name in ("linear", "linear_partials")
    ),
    ("residual_norm", {}, {"residual": "dtype dim device stride", "weight": "stride"}),
    ("quantize_weight", {}, {"weight": "device stride"}),
    (
        "remask_scatter",
        {},
        {f"state.{name}": "device" if name == "tokens" else "" for name in BlockState._fields}
        | {"candidate": "", "confidence": "", "error": "stride"},
    ),
    ("remask_scatter", REMASKING, {"token_probability": ""}),
    ("remask_scatter", noisy(), {"noise.seed": "", "noise.position": ""}),
    ("remask_scatter", table_with(), {"rule.numbers": "", "rule.counts": ""}),
    ("BlockState.start", {}, {"tokens": "device"}),
]
WRONG_DTYPE = {F32: F64, I32: I64, I64: I32, BOOL: I32, F8: F64}
FAULTS: dict[str, tuple[Callable[[Tensor], object], type[Exception], str]] = {
    "type": (lambda good: [0], T, "is a list; it must be"),
    "dtype": (lambda good: good.to(WRONG_DTYPE[good.dtype]), T, "is torch.*; it must be"),
    "dim": (lambda good: good[None], V, "has shape"),
    "device": (lambda good: good.to("meta"), V, "is on meta; it must be on cpu"),
    "stride": (lambda good: torch.stack([good, good], -1)[..., 0], V, "has stride"),
}


ROW_ERRORS = [
    ({"mask_id": None}, V, "mask_id is None; tokens and mask_id go together"),
    ({"tokens": None}, V, "tokens is None; tokens and mask_id go together"),
    ({"tokens": ints(2)}, V, r"tokens has shape \[2\]; .*\[3\]"),
    ({"mask_id": -1}, V, "mask_id is -1; .*0"),
    ({"banned": ints(17)}, V, "banned holds 17 ids; at most 16"),
]
HEAD_ERRORS = [
    *ROW_ERRORS,
    ({"weight": zeros(0, 5)}, V, r"weight has shape \[0, 5\]; .*empty"),
    ({"weight": zeros(2**24 + 1, 5, device="meta")}, V, "weight ends at id 16777217; .*16777216 "),
    ({"hidden": zeros(3, 4)}, V, r"hidden has shape \[3, 4\]; .*\[rows, 5\]"),
    ({"hidden": zeros(3, 5, dtype=F16)}, T, "hidden is torch.float16; .*float32"),
    ({"entropy": "yes"}, T, "entropy is 'yes'; it must be a bool"),
    ({"margin": None}, T, "margin is None; it must be a bool"),
]
LINEAR_ERRORS = [
    ({"x": zeros(3, 19)}, V, r"x has shape \[3, 19\]; it must be \[3, 20\]"),
    ({"x": zeros()}, V, r"x has shape \[\]; it must be \[20\]"),
    ({"x": zeros(3, 20, dtype=F16)}, T, "x is torch.float16; it must be float32"),
    ({"weight": zeros(0, 20)}, V, r"weight has shape \[0, 20\].*not be empty"),
    ({"numerics": "exact"}, V, "numerics is 'exact'; it must be one of batch_invariant, fast"),
    (quantized("int8", kind="int3"), V, "weight.kind is 'int3'; .* int4"),
    (quantized("int8", kind="fp8"), T, "weight.values is torch.int8; it must be float8_e4m3fn"),
    (quantized("int4", in_features=200), V, r"weight.values has .*\[7, 64\]; .*\[out_features, 12"),
    (quantized("int8", scales=torch.ones(6)), V, r"weight.scales has shape \[6\]; .*\[7\]"),
    (quantized("int8", values=zeros(20, 7, dtype=I8).T), V, r"weight.values has strides \(1, 7\)"),
    (quantized("int8", scales=zeros(7, device="meta")), V, "weight.scales is on meta; .* on cpu"),
]

ERRORS: dict[str, list[tuple[dict, type[Exception], str]]] = {
    "confidence": [
        *ROW_ERRORS,
        ({"logits": zeros(3, 0)}, V, "logits has a vocabulary of 0"),
        ({"mask_id": 9.0}, T, "mask_id is 9.0; it must be an int"),
        ({"mask_id": 2**31}, V, "mask_id is 2147483648"),
        ({"entropy": "yes"}, T, "entropy is 'yes'; it must be a bool"),
        ({"margin": None}, T, "margin is None; it must be a bool"),
    ],
    "lm_head_confidence": [
        *HEAD_ERRORS,
        ({"numerics": "exact"}, V, "numerics is 'exact'; it must be one of batch_invariant, fast"),
    ],
    "lm_head_partials": [
        *HEAD_ERRORS,
        ({"first_id": -1}, V, "first_id is -1; "),
        ({"first_id": 1.0}, T, "first_id is 1.0; it must be an int"),
        ({"first_id": 2**24 - 7}, V, "weight ends at id 16777217"),
    ],
    "merge_partials": [
        ({"partials": None}, T, "partials is a NoneType; it must be a list"),
        ({"partials": []}, V, "partials is empty; .*every shard"),
        ({"partials": [zeros(5, 3, 1)]}, T, r"partials\[0\] is a Tensor; .*Partials"),
        ({"partials": two_shards()["partials"][0]}, T, r"partials\[0\] is a Tensor"),
        ({"partials": two_shards()["partials"][1:]}, V, r"\[0\].first_id is 4; .* 0"),
        (two_shards(first_id=5), V, r"partials\[1\].first_id is 5; .* 4"),
        (two_shards(entropy=False), V, r"\[1\].entropy is False; .*entropy is True"),
        (two_shards(margin=True), V, r"partials\[1\].margin is True; .* False"),
        (two_shards(best_ids=ints(3, 1, dtype=I64)), T, r"\[1\].best_ids is torch.int64"),
        (two_shards(best_ids=ints(2, 1)), V, r"\[1\].best_ids .*\[2, 1\]; .*\[3, chunks\]"),
        (two_shards(best_ids=ints(3, 1).to("meta")), V, r"\[1\].best_ids is on meta; .*cpu"),
        (two_shards(statistics=zeros(5, 3, 2)), V, r"\[1\].statistics .*\[5, 3, 1\]"),
        (two_shards(statistics=zeros(5, 3, 1, dtype=F16)), T, r"\[1\].statistics is torch.float16"),
        ({"tokens": ints(2)}, V, r"tokens has shape \[2\]; .*\[3\]"),
        ({"banned": ints(17)}, V, "banned holds 17 ids"),
    ],
    "block_attention": [
        (float8(k_scale=None), V, "k_scale is None; a cache in .*float8"),
        (float8(v_scale=None), V, "v_scale is None"),
        ({"k_scale": torch.ones(2)}, V, "k_scale is given; .*float32 has no"),
        (float8(v_scale=torch.ones(6)), V, r"v_scale has shape \[6\]; it must be \[2\]"),
        ({"v_cache": zeros(3, 20, 2, 16, dtype=F8)}, T, "v_cache is .*float8_e4m3fn; .*be float32"),
        (float8(v_cache=zeros(3, 20, 2, 16)), T, "v_cache is torch.float32; .*float8"),
        (float8(k=zeros(3, 4, 2, 16, dtype=F8)), T, "k is torch.float8_e4m3fn; it must be float32"),
        (float8(q=zeros(3, 4, 6, 16, dtype=F8)), T, "q is torch.float8"),
        ({"q": zeros(3, 0, 6, 16)}, V, "q has a block of 0 .*256"),
        ({"q": zeros(3, 257, 6, 16)}, V, "q has a block of 257"),
        ({"q": zeros(3, 4, 6, 8)}, V, "q has head_dim 8; .*16 to 256"),
        ({"q": zeros(3, 4, 6, 512)}, V, "q has head_dim 512"),
        ({"k_cache": zeros(2, 20, 2, 16)}, V, r"k_cache has shape \[2, 20, 2, 16\]"),
        ({"k_cache": zeros(3, 20, 2, 32)}, V, r"k_cache has shape \[3, 20, 2, 32\]"),
        ({"k_cache": zeros(3, 20, 2, 16, dtype=F16)}, T, "k_cache is torch.float16"),
        ({"v_cache": zeros(3, 19, 2, 16)}, V, r"v_cache has shape .*\[3, 20, 2, 16\]"),
        ({"q": zeros(3, 4, 5, 16)}, V, "k_cache has 2 KV heads; .*5 query heads"),
        (caches(3, 20, 0, 16), V, "k_cache has 0 KV heads"),
        ({"q": zeros(3, 4, 0, 16)}, V, "q's 0 query heads"),
        ({"context_lens": ints(4)}, V, r"context_lens has shape \[4\]; .*\[3\]"),
        ({"v": None}, V, "v is None; k and v go together"),
        ({"k": None}, V, "k is None; k and v go together"),
        ({"k": zeros(3, 5, 2, 16)}, V, r"k has shape \[3, 5, 2, 16\]; .*\[3, 4, 2,"),
        ({"v": zeros(3, 4, 1, 16)}, V, "v has shape"),
        ({"v": zeros(3, 4, 2, 16, dtype=F16)}, T, "v is torch.float16"),
        ({"scale": 0.0}, V, "scale is 0.0; .*positive"),
        ({"scale": math.nan}, V, "scale is nan"),
        ({"scale": math.inf}, V, "scale is inf"),
        ({"scale": "1"}, T, "scale is '1'; it must be a number"),
        ({"return_lse": 1}, T, "return_lse is 1; it must be a bool"),
        ({"numerics": "exact"}, V, "numerics is 'exact'; .*inv"),
        ({"max_context": -1}, V, "max_context is -1"),
        (CAUSAL | {"max_context": 17}, V, r"max_context is 17; .*\[0, 16\]"),
        ({"max_context": 5.0}, T, "max_context is 5.0"),
        (CAUSAL | caches(3, 3, 2, 16), V, "k_cache holds 3 keys; a causal block of 4"),
        (pages_of(block_table=ints(2, 2)), V, r"block_table has shape \[2, 2\]; .*\[3, max_pages"),
        (pages_of(pages=0), V, "k_cache has 0 pages"),
        (pages_of(page_size=8), V, "k_cache has pages of 8 keys; .*16 or more"),
        (pages_of(page_size=24), V, "k_cache has pages of 24 keys; .*power"),
        (pages_of(v_cache=zeros(7, 32, 2, 16)), V, r"v_cache has shape \[7, 32, 2"),
        (pages_of(max_context=33), V, r"max_context is 33; .*\[0, 32\]"),
        (CAUSAL | {"draft_groups": (1, 2)}, V, "k is None; draft_groups needs k and v"),
        ({"draft_groups": [1, 2]}, T, r"draft_groups is \[1, 2\]; .*tuple"),
        ({"draft_groups": (0, 4)}, V, r"draft_groups\[0\] is 0"),
        ({"draft_groups": (4, 1)}, V, r"draft_groups\[1\] is 1"),
        ({"draft_groups": (1.0, 2)}, T, r"draft_groups\[0\] is 1.0"),
        ({"draft_groups": (2, 3)}, V, r"draft_groups is \(2, 3\): 6 rows; the block has 4"),
        ({"draft_groups": (1, 2), "q": zeros(3, 513, 6, 16)}, V, "block of 513 .*512"),
        ({"draft_groups": (1, 2)} | caches(3, 2, 2, 16), V, "holds 2 keys; the 3 causal and slo"),
        ({"draft_groups": (2, 2), "max_context": 19}, V, r"max_context is 19; .*\[0, 18\]"),
    ],
    "rope_kv_write": [
        ({"qkv": zeros(3, 4, 64)}, V, "qkv has 64 features; with kv_heads 2 and head_dim 16 .*32"),
        ({"qkv": zeros(3, 4, 120)}, V, "qkv has 120 features"),
        ({"cos": zeros(3, 5, 8)}, V, r"cos has .*\[3, 4, head_dim"),
        ({"cos": zeros(3, 4, 6), "sin": zeros(3, 4, 6)}, V, "cos is for head_dim 12; .*16 to 256"),
        ({"sin": zeros(3, 4, 4)}, V, r"sin has .*\[3, 4, 8\]"),
        ({"kv_heads": 0}, V, "kv_heads is 0; it must be in"),
        ({"kv_heads": 2.0}, T, "kv_heads is 2.0; it must be an int"),
        ({"k_cache": None}, V, "k_cache is None; v_cache needs it"),
        (NO_CACHE | {"draft_groups": (1, 2)}, V, "k_cache is None; draft_groups needs it"),
        ({"k_cache": zeros(3, 20, 4, 16)}, V, r"k_cache has .*\[3, capacity, 2, 16\]"),
        ({"k_cache": zeros(3, 20, 2, 16, dtype=F16)}, T, "k_cache is .*float16; .*32 or float8"),
        (float8(v_cache=zeros(3, 20, 2, 16)), T, "v_cache is torch.float32; .*be float8_e4m3fn"),
        (caches(3, 3, 2, 16), V, "k_cache holds 3 keys; 4 rows of the block"),
        ({"k_scale": torch.ones(2)}, V, "k_scale is given; a cache in torch.float32 has no scales"),
        (float8(k_scale=torch.ones(4)), V, r"k_scale has shape \[4\]; it must be \[2\]"),
        (pages_of(pages=0), V, "k_cache has 0 pages"),
        (pages_of(block_table=ints(2, 2)), V, r"block_table has .*\[2, 2\]; .*\[3, max_pages\]"),
        ({"draft_groups": [1, 2]}, T, r"draft_groups is \[1, 2\]; .*tuple"),
        ({"draft_groups": (2, 3)}, V, r"draft_groups is \(2, 3\): 6 rows; the block has 4"),
        ({"draft_groups": (2, 1)}, V, r"draft_groups\[1\] is 1"),
    ],
    "linear": LINEAR_ERRORS,
    "linear_partials": LINEAR_ERRORS,
    "residual_norm": [
        ({"residual": zeros(3, 16385)}, V, "residual has rows of 16385; .*1 to 16384"),
        ({"residual": zeros()}, V, r"residual has shape \[\]; .*\[hidden\]"),
        ({"residual": zeros(3, 7)}, V, r"weight has shape \[8\]; it must be \[7\]"),
        ({"residual": zeros(3, 8, dtype=F16)}, T, "weight is torch.float32; it must be float16"),
        ({"update": zeros(2, 8)}, V, r"update has shape \[2, 8\]; .* \[3, 8\], as residual"),
        ({"update": [0]}, T, "update is a list; .*torch.Tensor or PartialSums"),
        ({"update": zeros(3, 8, device="meta")}, V, "update is on meta; .*cpu, as residual"),
        ({"update": PartialSums(zeros(8, 3, 2).permute(2, 1, 0), F32)}, V, "sums has strides"),
        ({"update": parts(2, 3, 7)}, V, r"update has shape \[3, 7\]"),
        ({"update": parts(2, 3, 8, of=F16)}, T, "update is torch.float16; .*float32, as residual"),
        ({"eps": "1e-5"}, T, "eps is '1e-5'; it must be a number"),
        ({"eps": -1e-5}, V, "eps is -1e-05; it must be at least 0"),
        ({"eps": math.nan}, V, "eps is nan"),
    ],
    "gated_silu": [
        ({"gate_up": None}, T, "gate_up is a NoneType; .*torch.Tensor or PartialSums"),
        ({"gate_up": zeros(3, 8, dtype=F64)}, T, "gate_up is torch.float64"),
        ({"gate_up": zeros(3, 7)}, V, r"gate_up has shape \[3, 7\]; .*2 intermediate"),
        ({"gate_up": zeros()}, V, r"gate_up has shape \[\]"),
        ({"gate_up": parts(2, 3, 8, dtype=F16, of=F16)}, V, "gate_up.sums is torch.float16"),
    ],
    "quantize_weight": [
        ({"kind": "int2"}, V, "'int2'; it must be one of fp8, int8, int4"),
        ({"weight": zeros(0, 2)}, V, r"weight has shape \[0, 2\]; it must not be empty"),
        ({"weight": torch.tensor([[1.0, math.nan]])}, V, "weight holds inf or NaN"),
        ({"weight": torch.tensor([[-math.inf]])}, V, "weight holds inf or NaN"),
    ],
    "remask_scatter": [
        ({"state": (1, 2)}, T, "state is a tuple; it must be a BlockState"),
        (state_with(tokens=ints(2, 0)), V, "tokens has a block of 0"),
        (state_with(tokens=ints(2, 257)), V, "tokens has a block of 257"),
        (state_with(fixed=zeros(2, 5, dtype=BOOL)), V, r"state.fixed has shape \[2, 5\]"),
        (state_with(masks_left=ints(3)), V, r"state.masks_left has shape \[3\]; .*\[2\]"),
        ({"candidate": ints(4, 2)}, V, r"candidate has shape \[4, 2\]; .*\[2, 4\]"),
        ({"mask_id": None}, T, "mask_id is None; it must be an int"),
        ({"eos_id": MASK}, V, f"eos_id is {MASK}, the mask id"),
        ({"eos_id": 2.0}, T, "eos_id is 2.0"),
        ({"eos_id": 2**31}, V, "eos_id is 2147483648"),
        ({"rule": "llada"}, T, "rule is a str; it must be a Rule or a RuleTable"),
        ({"rule": table_of([Rule()] * 3)}, V, r"rule.numbers has .*\[3, 5\]; .*\[2, 5\]"),
        (table_with(counts=ints(2, 6)), V, r"rule.counts has shape \[2, 6\]; .*\[2, 7\]"),
        ({"rule": Rule(remask_below=0.5)}, V, "token_probability is None; .*remask_below"),
        ({"rule": table_of([Rule(), Rule(remask_below=0.5)])}, V, "token_probability is None"),
        (REMASKING | {"token_probability": zeros(2, 3)}, V, r"token_probability has .*\[2, 3\]"),
        ({"rule": Rule(confidence="random")}, V, "noise is None; it must be a Noise"),
        ({"rule": Rule(renoise=True)}, V, "noise is None"),
        ({"rule": Rule(renoise=True), "noise": 5}, T, "noise is 5; it must be a Noise"),
        (noisy(seed=ints(1, dtype=I64)), V, r"noise.seed has shape \[1\]; .*\[2\]"),
        (noisy(vocab_size=1), V, "noise.vocab_size is 1"),
    ],
    "BlockState.start": [
        ({"tokens": ints(2, 300)}, V, "tokens has a block of 300"),
        ({"mask_id": -1}, V, "mask_id is -1"),
        ({"mask_id": "m"}, T, "mask_id is 'm'"),
        *(
            case
            for name in ("undecided", "fixed")
            for case in (
                ({name: ints(2, 4)}, T, f"{name} is torch.int32; .*bool"),
                ({name: zeros(2, 3, dtype=BOOL)}, V, rf"{name} has shape \[2, 3\]"),
                ({name: zeros(4, 2, dtype=BOOL).T}, V, f"{name} has strides"),
            )
        ),
    ],
}


@pytest.mark.parametrize("name", OPS)
def test_the_arguments_that_are_changed_here_are_right(name: str) -> None:
    call, arguments = OPS[name]
    call(**arguments())


@pytest.mark.parametrize(
    ("name", "change", "tensor", "fault"),
    [
        pytest.param(name, change, tensor, fault, id=f"{name}: {fault} of {tensor}")
        for name, change, tensors in TENSORS
        for tensor, never in tensors.items()
        for fault in FAULTS
        if fault not in never.split()
    ],
)
def test_a_wrong_tensor_is_named(name: str, change: dict, tensor: str, fault: str) -> None:
    call, arguments = OPS[name]
    arguments = arguments() | change
    owner, _, field = tensor.partition(".")
    good = getattr(arguments[owner], field) if field else arguments[owner]
    spoil, exception, words = FAULTS[fault]
    wrong = good.to(F64) if (fault, tensor.split(".")[-1]) == ("dtype", "tokens") else spoil(good)
    arguments[owner] = arguments[owner]._replace(**{field: wrong}) if field else wrong
    named = tensor.replace("state.tokens", "tokens")
    expect(call, arguments, exception, f"^{named} {words}")


@pytest.mark.parametrize(
    ("name", "change", "exception", "message"),
    [
        pytest.param(name, *case, id=f"{name}: {case[2]}")
        for name, cases in ERRORS.items()
        for case in cases
    ],
)
def test_an_error_names_the_argument(
    name: str, change: dict, exception: type[Exception], message: str
) -> None:
    call, arguments = OPS[name]
    expect(call, arguments() | change, exception, message)


def expect(call: Callable, arguments: dict, exception: type[Exception], message: str) -> None:
    """`call` raises exactly this and leaves every tensor argument as it was."""
    tensors = []
    for value in arguments.values():
        held = value if isinstance(value, BlockState | QuantizedWeight) else [value]
        tensors += [x for x in held if isinstance(x, Tensor) and not x.is_meta]
    with unchanged(*tensors), pytest.raises(exception, match=message) as raised:
        call(**arguments)
    assert raised.type is exception


@pytest.mark.parametrize("name", ["block_attention", "rope_kv_write"])
def test_a_gpu_that_cannot_convert_float8_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, arguments = OPS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(Tensor, "is_cuda", True, raising=False)
    with forced_backend("triton"):
        expect(call, arguments() | float8(), T, r"k_cache is torch.float8_e4m3fn, .* cpu has 8.6")


# --- device contents

PAGES = ids([0, 1], [2, 7], [3, -1])
CONTENT_ERRORS = [
    ("confidence", {"banned": ids(1, 8)}, r"banned holds 8; ids must be in \[0, 8\)"),
    ("confidence", {"banned": ids(-1)}, "banned holds -1"),
    ("lm_head_confidence", {"banned": ids(1, 8)}, r"banned holds 8; ids must be in \[0, 8\)"),
    ("merge_partials", {"banned": ids(7, 8)}, r"banned holds 8; ids must be in \[0, 8\)"),
    ("block_attention", {"context_lens": ids(0, 21, 3)}, r"context_lens holds 21; .*\[0, 20\]"),
    ("block_attention", CAUSAL | {"context_lens": ids(0, 17, 3)}, r"lens holds 17; .*\[0, 16\]"),
    ("block_attention", {"context_lens": ids(6, 0, 0), "max_context": 5}, "context_lens holds 6"),
    ("block_attention", {"context_lens": ids(0, 0, -1)}, "context_lens holds -1"),
    (
        "block_attention",
        pages_of(block_table=PAGES, context_lens=ids(16, 17, 16)),
        r"block_table holds 7; pages must be in \[0, 7\)",
    ),
    (
        "block_attention",
        pages_of(block_table=PAGES, context_lens=ids(16, 16, 14), draft_groups=(1, 2)),
        "block_table holds 7",
    ),
    ("rope_kv_write", {"context_lens": ids(0, 17, 3)}, r"context_lens holds 17; .*\[0, 16\]"),
    (
        "rope_kv_write",
        {"context_lens": ids(0, 18, 3), "draft_groups": (1, 2)},
        r"context_lens holds 18; .*\[0, 17\]",
    ),
    (
        "rope_kv_write",
        pages_of(block_table=ids([0, -1], [-1, 7], [3, 4]), context_lens=ids(12, 16, 0)),
        "block_table holds 7",
    ),
    ("remask_scatter", budget_of_three(0, 3), r"state.step holds \[0, 3\]; .*request 1 .*steps=3"),
    ("remask_scatter", budget_of_three(-1, 0), "state.step holds"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [pytest.param(*case, id=f"{case[0]}: {case[2]}") for case in CONTENT_ERRORS],
)
def test_contents_are_checked_on_request(name: str, change: dict, message: str) -> None:
    call, arguments = OPS[name]
    with checked_contents():
        call(**arguments())
        expect(call, arguments() | change, V, message)
    call(**arguments() | change)


@checked_contents()
def test_steps_outside_the_budget_are_right_where_nothing_is_undecided() -> None:
    done = budget_of_three(0, 3, done=torch.tensor([False, True]))
    remask_scatter(**remask_arguments() | done)
    editing = budget_of_three(0, 3, masks_left=ids(4, 0))
    rule = Rule(steps=3, edit_threshold=0.5, edit_steps=9)
    remask_scatter(**remask_arguments() | editing | {"rule": rule})


@checked_contents()
def test_table_entries_behind_the_visible_keys_are_not_checked() -> None:
    table = ids([-1, -1], [2, 7], [3, -1])
    arguments = attention_arguments() | pages_of(block_table=table, context_lens=ids(0, 16, 12))
    block_attention(**arguments)
    expect(block_attention, arguments | CAUSAL, V, "block_table holds -1")
