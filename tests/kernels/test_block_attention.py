"""block_attention: accuracy, ragged contexts, strides, and keys that must stay unseen."""

import importlib
from typing import NamedTuple

import pytest
import torch
from numeric import assert_close_to_reference, forced_backend, unchanged
from torch import Tensor

from dlm_kernels import block_attention, new_error_word, reference
from dlm_kernels.error_word import LENGTH_OUT_OF_RANGE

NAN = float("nan")

attention = importlib.import_module("dlm_kernels.block_attention")


class Problem(NamedTuple):
    """Inputs whose every unseen element is NaN."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    context_lens: Tensor
    k: Tensor | None
    v: Tensor | None
    buffers: dict[str, Tensor]  # what the views lie in

    def run(self, **options):
        return block_attention(*self[:6], **options)

    def exact(self, scale: float | None = None) -> tuple[Tensor, Tensor]:
        """The float64 reference, in float64."""
        q, k_cache, v_cache, _, k, v, _ = self
        limit = k_cache.shape[1] - (q.shape[1] if k is None else 0)
        fresh = (None, None) if k is None else (k.double(), v.double())
        return reference.block_attention(
            q.double(), k_cache.double(), v_cache.double(), self.context_lens, None, *fresh,
            None, None, 0, 0, scale or q.shape[-1] ** -0.5, "invariant", limit, True, None,
        )  # fmt: skip


def problem(
    block: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    contexts: list[int],
    dtype: torch.dtype,
    device: str,
    *,
    causal: bool,
    capacity: int | None = None,
    score_scale: float = 1.0,
    seed: int = 0,
) -> Problem:
    """NaN wherever nothing may be read, and views of which no two are strided alike.

    The caches are one layer of more, values with heads before positions as some engines keep them;
    queries and fresh values are transposed, fresh keys are a slice of a projection's output.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = len(contexts)
    if capacity is None:
        capacity = max(contexts) + (block if causal else 0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    def nan(*shape: int) -> Tensor:
        return torch.full(shape, NAN, dtype=dtype, device=device)

    buffers = {
        "q": randn(batch, query_heads, block, head_dim) * score_scale,
        "k_caches": nan(3, batch, capacity, kv_heads, head_dim),
        "v_caches": nan(batch, 2, kv_heads, capacity, head_dim),
        "projection": nan(batch, block, 3, kv_heads, head_dim),
        "v": nan(batch, kv_heads, block, head_dim),
        "context_lens": torch.tensor(contexts, dtype=torch.int32, device=device),
    }
    q = buffers["q"].transpose(1, 2)
    k_cache, v_cache = buffers["k_caches"][1], buffers["v_caches"][:, 1].transpose(1, 2)
    for b, context in enumerate(contexts):
        seen = context + (block if causal else 0)
        k_cache[b, :seen] = randn(seen, kv_heads, head_dim)
        v_cache[b, :seen] = randn(seen, kv_heads, head_dim)
    k = v = None
    if not causal:
        k, v = buffers["projection"][:, :, 1], buffers["v"].transpose(1, 2)
        k.copy_(randn(batch, block, kv_heads, head_dim))
        v.copy_(randn(batch, block, kv_heads, head_dim))
    return Problem(q, k_cache, v_cache, buffers["context_lens"], k, v, buffers)


def assert_accurate(case: Problem, scale: float | None = None, **options) -> None:
    floors = {torch.float32: 2e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}
    with unchanged(**case.buffers), forced_backend("triton"):
        out, lse = case.run(return_lse=True, scale=scale, **options)
    with forced_backend("torch"):
        same_dtype, same_dtype_lse = case.run(return_lse=True, scale=scale, numerics="fast")
    exact, exact_lse = case.exact(scale)
    assert out.dtype == case.q.dtype and lse.dtype == torch.float32
    assert out.is_contiguous() and lse.is_contiguous()
    floor = floors[case.q.dtype]
    assert_close_to_reference(out, same_dtype, exact, floor=floor, what="out")
    assert_close_to_reference(lse, same_dtype_lse, exact_lse, floor=4e-6, what="lse")


# A tile holds 16 to 128 query rows (positions x group) and 32 to 128 keys, a split 512 or 1024.
SHAPES = [
    pytest.param(1, 1, 1, 16, [0, 1, 31, 32], id="one-query"),
    pytest.param(2, 6, 2, 32, [33, 5], id="group-of-three"),
    pytest.param(5, 16, 2, 16, [63, 64, 65, 0], id="group-of-eight-round-a-tile"),
    pytest.param(31, 4, 1, 64, [127, 128, 129], id="31-queries-round-a-wide-tile"),
    pytest.param(32, 8, 2, 128, [100], id="the-models-heads"),
    pytest.param(33, 2, 2, 256, [17, 0], id="widest-head"),
    pytest.param(7, 11, 1, 16, [40], id="group-of-eleven"),
    pytest.param(256, 3, 1, 16, [45], id="longest-block-several-row-tiles"),
    pytest.param(1, 3, 1, 16, [1022, 1023, 1024, 1025, 0], id="one-query-round-a-split"),
    pytest.param(3, 3, 1, 32, [2047, 2048, 2049, 12], id="round-the-second-split"),
    pytest.param(40, 3, 1, 16, [1010, 990, 3], id="block-across-a-split"),
    pytest.param(16, 3, 1, 16, [1007, 1008, 1009], id="block-ends-round-a-split"),
]


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(("block", "query_heads", "kv_heads", "head_dim", "contexts"), SHAPES)
def test_matches_the_reference(
    block: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    contexts: list[int],
    causal: bool,
    numerics: str,
    dtype: torch.dtype,
    triton_device: str,
) -> None:
    case = problem(
        block, query_heads, kv_heads, head_dim, contexts, dtype, triton_device, causal=causal
    )
    assert_accurate(case, numerics=numerics)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("capacity", [70, 1200, 3000], ids=lambda n: f"capacity-{n}")
def test_nothing_behind_the_visible_keys_is_read(
    capacity: int, causal: bool, dtype: torch.dtype, triton_device: str
) -> None:
    """The cache behind them is NaN: 0 * NaN in a masked tail would show, whatever the capacity."""
    case = problem(
        6, 2, 1, 16, [0, 1, 33, 64], dtype, triton_device, causal=causal, capacity=capacity
    )
    assert_accurate(case)
    assert_accurate(case, max_context=64)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_max_context_may_be_tight(causal: bool, triton_device: str) -> None:
    case = problem(
        4, 2, 1, 16, [1024, 3], torch.float32, triton_device, causal=causal, capacity=2100
    )
    for bound in (1024, 1025, 2000):
        assert_accurate(case, max_context=bound)


def test_an_empty_cache_holds_no_context(backend: str, op_device: str) -> None:
    for capacity in (0, 3):
        case = problem(
            5, 4, 2, 16, [0, 0], torch.float32, op_device, causal=False, capacity=capacity
        )
        out, lse = case.run(return_lse=True)
        exact, exact_lse = case.exact()
        torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse, exact_lse, atol=1e-5, rtol=1e-5)


def test_an_exactly_full_cache(backend: str, op_device: str) -> None:
    case = problem(5, 4, 2, 16, [27, 0], torch.float32, op_device, causal=True, capacity=32)
    out, lse = case.run(return_lse=True)
    exact, exact_lse = case.exact()
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, exact_lse, atol=1e-5, rtol=1e-5)


def test_no_requests(backend: str, op_device: str) -> None:
    cache = torch.empty(0, 8, 1, 16, device=op_device)
    lengths = torch.empty(0, dtype=torch.int32, device=op_device)
    q = torch.empty(0, 3, 2, 16, device=op_device)
    out, lse = block_attention(q, cache, cache, lengths, return_lse=True)
    assert out.shape == (0, 3, 2, 16) and lse.shape == (0, 3, 2)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_torch_backend_and_reference_agree_with_a_plain_softmax(
    causal: bool, backend: str, op_device: str
) -> None:
    case = problem(4, 6, 2, 16, [0, 9, 20], torch.float32, op_device, causal=causal)
    out, lse = case.run(return_lse=True, scale=0.3)
    for b, context in enumerate(case.context_lens.tolist()):
        seen = context + (4 if causal else 0)
        keys, values = case.k_cache[b, :seen], case.v_cache[b, :seen]
        if not causal:
            keys, values = torch.cat([keys, case.k[b]]), torch.cat([values, case.v[b]])
        keys, values = (x.repeat_interleave(3, 1).double() for x in (keys, values))
        scores = torch.einsum("mhd,nhd->mhn", case.q[b].double(), keys) * 0.3
        if causal:
            hidden = torch.ones(4, seen, device=op_device).triu(context + 1).bool()
            scores = scores.masked_fill(hidden[:, None], -torch.inf)
        expected = torch.einsum("mhn,nhd->mhd", scores.softmax(-1), values)
        torch.testing.assert_close(out[b].double(), expected, atol=1e-5, rtol=1e-5)
        expected_lse = scores.logsumexp(-1)
        torch.testing.assert_close(lse[b].double(), expected_lse, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("score_scale", [1e-3, 30.0, 1000.0], ids=["flat", "peaked", "one-hot"])
def test_score_magnitudes(
    score_scale: float, causal: bool, dtype: torch.dtype, triton_device: str
) -> None:
    case = problem(
        3, 2, 1, 32, [70, 1030], dtype, triton_device, causal=causal, score_scale=score_scale
    )
    out, lse = (x.double() for x in run_triton(case))
    exact, exact_lse = case.exact()
    # A score is a sum of head_dim products of that size; softmax turns its rounding into a factor.
    size = float(exact_lse.abs().max())
    unit = torch.finfo(torch.float32).eps
    torch.testing.assert_close(lse, exact_lse.double(), atol=32 * unit * max(1.0, size), rtol=0)
    atol = 2 * torch.finfo(dtype).eps + 16 * unit * max(1.0, size)
    torch.testing.assert_close(out, exact, atol=4 * atol, rtol=0)


def run_triton(case: Problem) -> tuple[Tensor, Tensor]:
    with forced_backend("triton"):
        return case.run(return_lse=True)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_identical_keys_average_the_values(
    causal: bool, dtype: torch.dtype, triton_device: str
) -> None:
    case = problem(2, 2, 1, 16, [1500, 31], dtype, triton_device, causal=causal)
    for cache in (case.k_cache, case.k):
        if cache is not None:
            cache.copy_(torch.where(cache.isnan(), cache, 0.25))
    out, lse = run_triton(case)
    for b, context in enumerate(case.context_lens.tolist()):
        for i in range(2):
            values = case.v_cache[b, : context + (i + 1 if causal else 0)]
            if not causal:
                values = torch.cat([values, case.v[b]])
            mean = values.double().mean(0)
            atol = 2 * torch.finfo(dtype).eps
            torch.testing.assert_close(out[b, i].double(), mean.expand(2, 16), atol=atol, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-4, 0.125, 3.0])
def test_scale(scale: float, triton_device: str) -> None:
    case = problem(3, 2, 1, 16, [50, 4], torch.float32, triton_device, causal=True)
    assert_accurate(case, scale=scale)


def test_lse_changes_nothing_else(backend: str, op_device: str) -> None:
    case = problem(3, 2, 1, 16, [1030], torch.float32, op_device, causal=True)
    with_lse, _ = case.run(return_lse=True)
    assert torch.equal(case.run(), with_lse)


# --- lengths out of range


@pytest.mark.parametrize(("length", "clamped"), [(-1, 0), (-(2**31), 0), (36, 35), (2**31 - 1, 35)])
@pytest.mark.parametrize("bounded", [False, True], ids=["by-capacity", "by-max-context"])
def test_causal_length_out_of_range_is_clamped_and_reported(
    length: int, clamped: int, bounded: bool, backend: str, op_device: str
) -> None:
    check_clamped(length, clamped, bounded, op_device, causal=True)


@pytest.mark.parametrize(("length", "clamped"), [(-1, 0), (-(2**31), 0), (36, 35), (2**31 - 1, 35)])
@pytest.mark.parametrize("bounded", [False, True], ids=["by-capacity", "by-max-context"])
def test_bidirectional_length_out_of_range_is_clamped_and_reported(
    length: int, clamped: int, bounded: bool, backend: str, op_device: str
) -> None:
    check_clamped(length, clamped, bounded, op_device, causal=False)


def check_clamped(length: int, clamped: int, bounded: bool, device: str, causal: bool) -> None:
    block = 5
    capacity = (50 if bounded else 35) + (block if causal else 0)
    case = problem(
        block, 2, 1, 16, [35, 20], torch.float32, device, causal=causal, capacity=capacity
    )
    options = {"return_lse": True, "max_context": 35 if bounded else None}

    error = new_error_word(device)
    case.context_lens[0] = clamped
    expected = case.run(error=error, **options)
    assert not error.item()

    case.context_lens[0] = length
    actual = case.run(error=error, **options)
    assert error.item() == LENGTH_OUT_OF_RANGE
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(case.run(**options), expected)
