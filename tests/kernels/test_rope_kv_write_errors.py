"""Every error a caller of rope_kv_write can make names its argument; nothing changed."""

import pytest
import torch
from valid_arguments import F16, F64, I64, expect, ints, rope_arguments, rope_pages

from dlm_kernels import rope_kv_write

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
