"""Every error a caller of block_attention can make names its argument; nothing changed."""

import math

import pytest
import torch
from valid_arguments import CAUSAL, F16, F64, I64, attention_arguments, expect, ints, pages_of

from dlm_kernels import block_attention


def float8(**others) -> dict:
    """The change that puts the cache into float8."""
    cache = torch.zeros(3, 20, 2, 16, dtype=torch.float8_e4m3fn)
    scale = torch.ones(2)
    return {"k_cache": cache, "v_cache": cache, "k_scale": scale, "v_scale": scale} | others


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
