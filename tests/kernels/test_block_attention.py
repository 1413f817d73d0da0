"""block_attention: accuracy in every form, keys that must stay unseen, lengths and pages."""

import importlib

import pytest
import reference
import torch
from attention_inputs import KINDS, attention_inputs, own_keys, tensors_of
from numeric import (
    BFLOAT16,
    assert_all_same_bits,
    assert_close_to_reference,
    launching_with,
    unchanged,
)

from dlm_kernels import block_attention, launch, new_error_word
from dlm_kernels.backend import forced_backend
from dlm_kernels.error_word import LENGTH_OUT_OF_RANGE, PAGE_OUT_OF_RANGE

attention = importlib.import_module("dlm_kernels.block_attention")

F16 = torch.float16
FAST = {"numerics": "fast"}

# What differs from a block of 7, or for drafts 2 groups of 3 behind a causal row, of 4 query and 2
# KV heads of 16 in float32, in invariant numerics. A tile holds 16 query rows (positions x group)
# and 16 keys; splits end at 32, 64, 112 and 160.
CASES = {
    "one-query-one-head": ("bidirectional", [0, 1, 15, 16, 17], {"block": 1, "heads": (1, 1)}),
    "one-query": ("causal", [30, 31, 32, 62, 63, 64, 0], {"block": 1, "heads": (3, 1)}),
    "one-query-fast": ("causal", [15, 31, 63, 96], {"block": 1, "heads": (3, 1)} | FAST),
    "context-round-splits": (
        "bidirectional", [31, 32, 33, 63, 64, 65, 111, 112, 113], {"block": 3, "heads": (3, 1)},
    ),
    "context-round-splits-fast": ("bidirectional", [31, 32, 33, 64], {"head_dim": 32} | FAST),
    "block-across-splits": ("causal", [20, 29, 3], {"block": 40, "heads": (3, 1)}),
    "block-ends-round-a-split": ("causal", [15, 16, 17], {"block": 16, "heads": (3, 1)}),
    "block-ends-round-a-split-fast": (
        "causal", [15, 16, 47], {"block": 16, "heads": (6, 2), "dtype": F16} | FAST,
    ),
    "many-fresh-keys": ("bidirectional", [45], {"block": 100, "heads": (1, 1)}),
    "many-fresh-keys-fast": ("bidirectional", [64, 5], {"block": 33, "heads": (2, 1)} | FAST),
    "group-of-eight": ("causal", [27, 64, 0], {"block": 5, "heads": (16, 2), "dtype": F16}),
    "group-of-eleven": ("bidirectional", [40, 0], {"heads": (11, 1)}),
    "head-of-64": ("causal", [70, 5], {"head_dim": 64, "heads": (3, 3), "dtype": F16}),
    "head-of-128": ("bidirectional", [70, 5], {"head_dim": 128, "heads": (8, 2)}),
    "head-of-256": ("causal", [40, 0], {"head_dim": 256, "heads": (2, 2), "block": 3}),
    "pages-of-16": ("bidirectional", [61, 0, 112], {"page_size": 16, "dtype": F16}),
    "pages-of-32": ("causal", [61, 0, 20], {"page_size": 32}),
    "pages-of-128-fast": ("causal", [130, 3], {"page_size": 128} | FAST),
    "drafts-first-pass": ("drafts", [0, 5, 31], {"groups": (1, 9), "block": 15}),
    "drafts-within-a-tile": ("drafts", [0, 30, 33], {"groups": (3, 4), "block": 12} | FAST),
    "drafts-one-mask-a-group": (
        "drafts", [7], {"groups": (4, 2), "block": 9, "heads": (3, 1), "dtype": F16},
    ),
    "drafts-across-row-tiles": (
        "drafts", [60, 0], {"groups": (3, 21), "block": 65, "heads": (2, 1)},
    ),
    "drafts-of-many-masks": ("drafts", [40], {"groups": (1, 50), "block": 50, "heads": (2, 2)}),
    "drafts-across-splits": (
        "drafts", [20, 4, 58, 64], {"groups": (5, 3), "block": 25, "heads": (2, 1)},
    ),
    "drafts-across-splits-fast": (
        "drafts", [20, 58], {"groups": (5, 3), "block": 25, "heads": (6, 2)} | FAST,
    ),
    "drafts-causal-rows-across-a-split": (
        "drafts", [25, 60, 105], {"groups": (2, 3), "block": 16, "heads": (3, 1)},
    ),
    "drafts-in-pages": ("drafts", [61, 0, 20], {"page_size": 16, "head_dim": 32}),
    "float8": ("bidirectional", [0, 31, 64], {"float8": True, "dtype": F16}),
    "float8-fast": ("bidirectional", [0, 61, 100], {"float8": True} | FAST),
    "float8-causal": ("causal", [0, 61, 30], {"float8": True, "head_dim": 32}),
    "float8-pages": ("causal", [0, 61], {"float8": True, "page_size": 16, "dtype": F16} | FAST),
    "float8-drafts": ("drafts", [0, 61, 29], {"float8": True}),
    "float8-drafts-in-pages": ("drafts", [0, 61], {"float8": True, "page_size": 32}),
}  # fmt: skip
# With the tables that ship: 16 to 128 query rows, 32 to 128 keys, splits of 512 and 1024.
SHIPPED = {
    "shipped-one-query": ("bidirectional", [0, 1, 31, 32], {"block": 1, "heads": (1, 1)}),
    "shipped-group-of-eight": (
        "causal", [63, 64, 65, 0], {"block": 5, "heads": (16, 2), "dtype": F16} | FAST,
    ),
    "shipped-round-a-wide-tile": (
        "causal", [127, 128, 129], {"block": 31, "heads": (4, 1), "head_dim": 64, "dtype": F16},
    ),
    "shipped-the-models-heads": (
        "bidirectional", [100], {"block": 32, "heads": (8, 2), "head_dim": 128, "dtype": F16},
    ),
    "shipped-widest-head": (
        "bidirectional", [17, 0], {"block": 33, "heads": (2, 2), "head_dim": 256} | FAST,
    ),
    "shipped-longest-block": ("bidirectional", [45], {"block": 256, "heads": (3, 1)}),
    "shipped-longest-block-causal": ("causal", [45], {"block": 256, "heads": (3, 1)} | FAST),
    "shipped-round-splits": (
        "bidirectional", [1022, 1023, 1024, 1025, 2049, 0], {"block": 3, "heads": (3, 1)},
    ),
    "shipped-across-a-split": ("causal", [1010, 990, 3], {"block": 40, "heads": (3, 1)}),
    "shipped-across-a-split-fast": (
        "causal", [505, 990, 3], {"block": 40, "heads": (3, 1), "dtype": F16} | FAST,
    ),
    "shipped-drafts-across-a-split": (
        "drafts", [1011, 4], {"groups": (5, 3), "block": 25, "heads": (2, 1)},
    ),
    "shipped-drafts-fast": (
        "drafts", [1020, 2040], {"groups": (2, 3), "block": 16, "heads": (3, 1)} | FAST,
    ),
    "shipped-sixteen-drafts": (
        "drafts", [1015], {"groups": (16, 17), "block": 272, "heads": (2, 1), "dtype": F16},
    ),
    "shipped-drafts-over-float8": ("drafts", [530, 61], {"float8": True, "head_dim": 128}),
    "shipped-float8-in-pages": ("causal", [530, 0], {"float8": True, "page_size": 128}),
}  # fmt: skip
ALL_CASES = [
    *(pytest.param(*case, id=name) for name, case in CASES.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.full) for name, case in SHIPPED.items()),
]


def assert_accurate(arguments: dict) -> None:
    """Errors of the Triton kernel are bounded by those of torch's attention in the same dtype."""
    dtype = arguments["q"].dtype
    with unchanged(*tensors_of(arguments)), forced_backend("triton"):
        out, lse = block_attention(**arguments)
    with forced_backend("torch"):
        same_dtype, same_dtype_lse = block_attention(**arguments | FAST)
    exact, exact_lse = reference.block_attention(**arguments)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert out.is_contiguous() and lse.is_contiguous()
    floor, lse_floor = {torch.float32: 2e-6, F16: 1e-4, torch.bfloat16: 1e-3}[dtype], 4e-6
    if "k_scale" in arguments:
        # Torch rounds the scaled keys and values to dtype.
        floor, lse_floor = floor * (2 if dtype == torch.float32 else 10), 8e-6
    assert_close_to_reference(out, same_dtype, exact, floor=floor, what="out")
    assert_close_to_reference(lse, same_dtype_lse, exact_lse, floor=lse_floor, what="lse")


@pytest.mark.parametrize("other_dtype", [pytest.param(None, id=""), BFLOAT16])
@pytest.mark.parametrize(("kind", "contexts", "options"), ALL_CASES)
def test_matches_the_reference(
    kind: str,
    contexts: list[int],
    options: dict,
    other_dtype: torch.dtype | None,
    triton_device: str,
) -> None:
    options = dict(options)
    numerics = options.pop("numerics", "batch_invariant")
    if other_dtype is not None:
        options["dtype"] = other_dtype
    arguments = attention_inputs(kind, contexts, triton_device, **options)
    assert_accurate(arguments | {"numerics": numerics})


@pytest.mark.parametrize("numerics", ["batch_invariant", "fast"])
@pytest.mark.parametrize(
    ("kind", "contexts", "options"), [pytest.param(*CASES[name], id=name) for name in CASES]
)
def test_torch_matches_the_reference(
    kind: str, contexts: list[int], options: dict, numerics: str, device: str
) -> None:
    options = {name: value for name, value in options.items() if name not in ("numerics", "dtype")}
    arguments = attention_inputs(kind, contexts, device, **options) | {"numerics": numerics}
    with unchanged(*tensors_of(arguments)), forced_backend("torch"):
        out, lse = block_attention(**arguments)
    exact, exact_lse = reference.block_attention(**arguments)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_behind_the_visible_keys_is_read(kind: str, triton_device: str) -> None:
    """The cache behind them is NaN: 0 * NaN in a masked tail would show, whatever the capacity."""
    for capacity, bound in ((75, None), (90, 64), (300, None), (300, 64), (300, 65), (300, 200)):
        arguments = attention_inputs(
            kind, [0, 33, 64], triton_device, heads=(2, 1), capacity=capacity
        )
        assert_accurate(arguments | {"max_context": bound})


@pytest.mark.parametrize(
    ("kind", "contexts", "capacity"),
    [("bidirectional", [0, 0], 0), ("bidirectional", [0, 0], 3), ("causal", [27, 0], 34)],
    ids=["no-capacity", "empty", "exactly-full"],
)
def test_caches_without_a_context_or_without_room(
    kind: str, contexts: list[int], capacity: int, backend: str, op_device: str
) -> None:
    arguments = attention_inputs(kind, contexts, op_device, capacity=capacity)
    for ours, exact in zip(
        block_attention(**arguments), reference.block_attention(**arguments), strict=True
    ):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def test_no_requests(backend: str, op_device: str) -> None:
    cache = torch.empty(0, 8, 1, 16, device=op_device)
    lengths = torch.empty(0, dtype=torch.int32, device=op_device)
    q = torch.empty(0, 3, 2, 16, device=op_device)
    out, lse = block_attention(q, cache, cache, lengths, return_lse=True)
    assert out.shape == (0, 3, 2, 16) and lse.shape == (0, 3, 2)


def test_lse_changes_nothing_else(backend: str, op_device: str) -> None:
    for contexts in ([20], [70]):
        arguments = attention_inputs("causal", contexts, op_device)
        with_lse, _ = block_attention(**arguments)
        assert torch.equal(block_attention(**arguments | {"return_lse": False}), with_lse)


@pytest.mark.parametrize(
    ("longest", "row_tiles", "split"),
    [(1024, 8, 128), (100, 8, 128), (8192, 8, 256), (1024, 512, 1024)],
)
def test_fast_fills_the_chip_with_splits_of_at_least_two_tiles(
    longest: int, row_tiles: int, split: int
) -> None:
    """Of an H200; a batch of 1 has 8 row tiles."""
    device = torch.device("cpu")
    assert attention._filling_split(longest, row_tiles, 64, device) == split


# --- values


@pytest.mark.parametrize("kind", ["bidirectional", "causal"])
@pytest.mark.parametrize("score_scale", [1e-3, 30.0, 1000.0], ids=["flat", "peaked", "one-hot"])
def test_score_magnitudes(
    score_scale: float, kind: str, dtype: torch.dtype, triton_device: str
) -> None:
    arguments = attention_inputs(
        kind, [70, 20], triton_device, dtype, block=3, heads=(2, 1), head_dim=32
    )
    arguments["q"] *= score_scale
    with forced_backend("triton"):
        out, lse = block_attention(**arguments)
    exact, exact_lse = reference.block_attention(**arguments)
    # A score is a sum of head_dim products of that size; softmax turns its rounding into a factor.
    size = max(1.0, float(exact_lse.abs().max())) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(lse.double(), exact_lse, atol=32 * size, rtol=0)
    atol = 8 * torch.finfo(dtype).eps + 64 * size
    torch.testing.assert_close(out.double(), exact, atol=atol, rtol=0)


@pytest.mark.parametrize("scale", [1e-4, 0.125, 3.0])
def test_scale(scale: float, triton_device: str) -> None:
    arguments = attention_inputs("causal", [50, 4], triton_device, block=3, heads=(2, 1))
    assert_accurate(arguments | {"scale": scale})


# --- what the host cannot see


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bounded", "below", "above"),
    [(False, -1, 2**31 - 1), (True, -(2**31), 36)],
    ids=["by-capacity", "by-max-context"],
)
def test_lengths_out_of_range_are_clamped_and_reported(
    kind: str, bounded: bool, below: int, above: int, backend: str, op_device: str
) -> None:
    # Behind no context the causal rows alone lie across a split.
    block = 33 if kind == "causal" else 7
    capacity = (50 if bounded else 35) + own_keys(kind, block, (2, 3))
    arguments = attention_inputs(
        kind, [35, 20], op_device, heads=(1, 1), block=block, capacity=capacity
    )
    arguments["max_context"] = 35 if bounded else None
    lengths, error = arguments["context_lens"], new_error_word(op_device)
    for length, clamped in ((below, 0), (above, 35)):
        lengths[0] = clamped
        expected = block_attention(**arguments, error=error)
        assert not error.item()
        lengths[0] = length
        torch.testing.assert_close(block_attention(**arguments, error=error), expected)
        assert error.item() == LENGTH_OUT_OF_RANGE
        error.zero_()
    torch.testing.assert_close(block_attention(**arguments), expected)


@pytest.mark.parametrize(
    ("kind", "block", "column", "below", "above"),
    [
        ("bidirectional", 7, 0, -1, 2**31 - 1),
        ("bidirectional", 7, 5, -(2**31), None),
        ("causal", 20, 5, -1, None),
        ("drafts", 7, 5, -(2**31), None),
    ],
)
def test_a_page_that_is_not_there_is_clamped_and_reported(
    kind: str, block: int, column: int, below: int, above: int | None, backend: str, op_device: str
) -> None:
    """The second request's sixth holds one key, which the last tile of rows sees alone."""
    own = own_keys(kind, block, (2, 3))
    arguments = attention_inputs(
        kind, [32 - own, 81 - own], op_device, heads=(2, 1), block=block, page_size=16
    )
    for name in ("k_cache", "v_cache"):
        arguments[name] = arguments[name].nan_to_num(0.5)
    pages, error = len(arguments["k_cache"]), new_error_word(op_device)
    entry = arguments["block_table"][1, column]
    for page, clamped in ((below, 0), (pages if above is None else above, pages - 1)):
        entry.fill_(clamped)
        expected = block_attention(**arguments, error=error)
        assert not error.item()
        entry.fill_(page)
        assert_all_same_bits(block_attention(**arguments, error=error), expected)
        assert error.item() == PAGE_OUT_OF_RANGE
        error.zero_()
    assert_all_same_bits(block_attention(**arguments), expected)


def test_the_last_of_many_pages_is_checked(triton_device: str) -> None:
    """Entry 70 lies behind the 64th of one long split."""
    long = {"block_n": 64, "split_keys": 2048, "far_from": 8192, "far_split_keys": 2048}
    arguments = attention_inputs("causal", [70 * 16, 5], triton_device, heads=(1, 1), page_size=16)
    arguments["block_table"][0, 70] = 1 << 20
    error = new_error_word(triton_device)
    with (
        forced_backend("triton"),
        launching_with(launch.BLOCK_ATTENTION, triton_device, 4, 256, **long),
    ):
        block_attention(**arguments, error=error)
    assert error.item() == PAGE_OUT_OF_RANGE
