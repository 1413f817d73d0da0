"""block_attention, invariant numerics: a row's bits are a function of the row alone."""

import importlib
from collections.abc import Callable, Iterator

import pytest
import torch
from numeric import assert_same_bits, forced_backend
from torch import Tensor

from dlm_kernels import block_attention, launch

attention = importlib.import_module("dlm_kernels.block_attention")
NAN = float("nan")
# The causal block lies across the end of the first split, at 1024.
CONTEXT, BLOCK = 900, 256


class Sequence:
    """One sequence's queries, keys and values at positions 0 .. CONTEXT + BLOCK - 1."""

    def __init__(
        self, query_heads: int, head_dim: int, dtype: torch.dtype, backend: str, device: str
    ) -> None:
        self.backend = backend
        generator = torch.Generator().manual_seed(0)

        def randn(length: int, heads: int) -> Tensor:
            x = torch.randn(length, heads, head_dim, generator=generator)
            return x.to(dtype).to(device)

        self.q = randn(BLOCK, query_heads)
        self.k, self.v = randn(CONTEXT + BLOCK, 1), randn(CONTEXT + BLOCK, 1)

    def caches(self, seen: int, capacity: int, behind: float = NAN) -> tuple[Tensor, Tensor]:
        """[1, capacity, 1, D]: the first `seen` positions, and `behind` after them."""
        caches = []
        for tensor in (self.k, self.v):
            cache = tensor.new_full((1, capacity, *tensor.shape[1:]), behind)
            cache[0, :seen] = tensor[:seen]
            caches.append(cache)
        return tuple(caches)

    def causal(
        self, first: int, block: int, capacity: int | None = None, behind: float = NAN, **options
    ) -> tuple[Tensor, Tensor]:
        """(out, lse) [block, heads ...] of the queries first .. first + block of the block."""
        context = CONTEXT + first
        caches = self.caches(context + block, capacity or context + block, behind)
        lengths = torch.tensor([context], dtype=torch.int32, device=self.q.device)
        q = self.q[None, first : first + block]
        out, lse = self.attend(q, *caches, lengths, **options)
        return out[0], lse[0]

    def attend(self, *args, **options) -> tuple[Tensor, Tensor]:
        with forced_backend(self.backend):
            return block_attention(*args, return_lse=True, **options)


@pytest.fixture(
    params=[
        pytest.param((3, 16, "triton"), id="triton-group-of-three"),
        pytest.param((4, 64, "triton"), id="triton-group-of-four"),
        # Other launch table entries; the interpreter would take minutes.
        pytest.param((4, 128, "triton"), id="triton-the-models-heads", marks=pytest.mark.gpu),
        pytest.param((2, 256, "triton"), id="triton-widest-head", marks=pytest.mark.gpu),
        # What libraries on a GPU do is theirs: the torch backend promises this on a CPU only.
        pytest.param((1, 16, "torch"), id="torch-one-head"),
        pytest.param((3, 16, "torch"), id="torch-group-of-three"),
        pytest.param((4, 128, "torch"), id="torch-the-models-heads"),
    ]
)
def sequence(request: pytest.FixtureRequest, dtype: torch.dtype) -> Sequence:
    query_heads, head_dim, backend = request.param
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    return Sequence(query_heads, head_dim, dtype, backend, device)


def assert_same_rows(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], what: str):
    for name, ours, theirs in zip(("out", "lse"), actual, expected, strict=True):
        assert_same_bits(ours, theirs, f"{name} {what}")


def test_causal_rows_do_not_depend_on_the_block(sequence: Sequence) -> None:
    """Alone, as when decoding, among 32, as when verifying, and among 256."""
    whole = sequence.causal(0, BLOCK)
    for first, block in ((0, 32), (100, 32), (111, 33), (60, 64)):
        rows = tuple(x[first : first + block] for x in whole)
        assert_same_rows(sequence.causal(first, block), rows, f"of {block} rows from {first}")
    # 123 and 124 are the last row of the first split and the first of the second.
    for row in (0, 17, 123, 124, 200, 255):
        alone = sequence.causal(row, 1)
        assert_same_rows(alone, tuple(x[row : row + 1] for x in whole), f"of row {row} alone")


def test_causal_rows_do_not_depend_on_what_lies_behind(sequence: Sequence) -> None:
    first, block = 120, 8
    expected = sequence.causal(first, block)
    for name, options in {
        "in a larger cache": {"capacity": 1100},
        "in a cache of three splits": {"capacity": 2500},
        "before zeros": {"capacity": 1100, "behind": 0.0},
        "before infinities": {"capacity": 1100, "behind": float("inf")},
        "with a tight max_context": {"capacity": 2500, "max_context": CONTEXT + first},
        "with a loose max_context": {"capacity": 2500, "max_context": 2000},
    }.items():
        assert_same_rows(sequence.causal(first, block, **options), expected, name)


def test_causal_rows_do_not_depend_on_the_batch(sequence: Sequence) -> None:
    first, block, capacity = 120, 8, 1600
    expected = sequence.causal(first, block)
    k_cache, v_cache = (x.repeat(3, 1, 1, 1) for x in sequence.caches(CONTEXT + 128, capacity))
    # Neighbours: one short and spoiled by NaN, one longer.
    k_cache[0], v_cache[0] = NAN, NAN
    k_cache[2], v_cache[2] = 1.0, 2.0
    q = sequence.q[None, first : first + block].repeat(3, 1, 1, 1)
    lengths = torch.tensor([5, CONTEXT + first, 1500], dtype=torch.int32, device=q.device)
    out, lse = sequence.attend(q, k_cache, v_cache, lengths)
    assert_same_rows((out[1], lse[1]), expected, "between two neighbours")


@pytest.mark.parametrize("context", [0, 31, 900, 1024, 1100])
def test_bidirectional_rows_do_not_depend_on_batch_or_capacity(
    context: int, sequence: Sequence
) -> None:
    block = 8
    q, k, v = (x[None, -block:] for x in (sequence.q, sequence.k, sequence.v))
    lengths = torch.tensor([context], dtype=torch.int32, device=q.device)

    expected = sequence.attend(q, *sequence.caches(context, context), lengths, k, v)
    larger = sequence.caches(context, 2500)
    assert_same_rows(sequence.attend(q, *larger, lengths, k, v), expected, "in a larger cache")
    tight = sequence.attend(q, *larger, lengths, k, v, max_context=context)
    assert_same_rows(tight, expected, "with a tight max_context")

    k_cache, v_cache = (x.repeat(3, 1, 1, 1) for x in sequence.caches(context, 1200))
    k_cache[0], v_cache[2] = 1.0, NAN
    among = [x.repeat(3, 1, 1, 1) for x in (q, k, v)]
    lengths = torch.tensor([1200, context, 7], dtype=torch.int32, device=q.device)
    out, lse = sequence.attend(among[0], k_cache, v_cache, lengths, *among[1:])
    assert_same_rows((out[1:2], lse[1:2]), expected, "between two neighbours")


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
def test_the_same_call_gives_the_same_bits(numerics: str, sequence: Sequence) -> None:
    first = sequence.causal(100, 32, numerics=numerics)
    assert_same_rows(sequence.causal(100, 32, numerics=numerics), first, "a second time")


# --- splits that grow


def test_splits_grow_at_a_position_and_leave_no_key_out() -> None:
    sizes = (64, 2, 96)
    begins = [attention._split_begin.fn(split, *sizes) for split in range(6)]
    assert begins == [0, 64, 128, 224, 320, 416]
    for keys in range(417):
        assert attention._splits_of.fn(keys, *sizes) == sum(begin < keys for begin in begins)


@pytest.mark.parametrize(("context", "splits"), [(8192, 16), (8193, 17), (131072, 76)])
def test_long_contexts_have_few_splits(context: int, splits: int) -> None:
    entry = launch.BLOCK_ATTENTION["sm_90"][2][128]
    near = entry.far_from // entry.split_keys
    sizes = (entry.split_keys, near, entry.far_split_keys)
    assert attention._splits_of.fn(context, *sizes) == splits


@pytest.fixture
def growing_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of the block end at 960, where they grow shorter here, at 1056 and at 1152."""
    entry = launch.AttentionLaunch(32, 32, 320, 960, 96, num_warps=4, num_stages=2)
    monkeypatch.setattr(launch, "smallest_serving", lambda table, size: entry)


def test_causal_rows_do_not_depend_on_the_block_where_splits_grow(
    growing_splits: None, dtype: torch.dtype, triton_device: str
) -> None:
    sequence = Sequence(3, 16, dtype, "triton", triton_device)
    first, block = 50, 120
    whole = sequence.causal(first, block)
    for row in (59, 60, 156):
        rows = tuple(x[row - first : row - first + 1] for x in whole)
        for name, options in {
            "alone": {},
            "in a cache of more splits": {"capacity": 1300},
        }.items():
            assert_same_rows(sequence.causal(row, 1, **options), rows, f"of row {row} {name}")
    rows = tuple(x[5:37] for x in whole)
    assert_same_rows(sequence.causal(first + 5, 32), rows, "of 32 rows")


# --- the torch backend on a CPU, whose matrix products and sums are a library's


@pytest.fixture(
    params=[
        pytest.param((2, 1, 16), id="the-golden-models-heads"),
        pytest.param((8, 8, 64), id="no-groups"),
        pytest.param((32, 8, 128), id="the-models-heads"),
        pytest.param((16, 2, 32), id="group-of-eight"),
    ]
)
def torch_call(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Tensor]:
    """Attention of `block` rows from `first` behind a context of 300, in pages on request."""
    monkeypatch.setenv("DLM_BACKEND", "torch")
    query_heads, kv_heads, head_dim = request.param
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, 256, query_heads, head_dim, generator=generator)
    caches = torch.randn(2, 1, 576, kv_heads, head_dim, generator=generator)
    table = torch.arange(576 // 32, dtype=torch.int32).flip(0)[None]

    def call(first: int, block: int, pages: bool = False) -> Tensor:
        keys, values = caches
        options = {}
        if pages:
            keys, values = (x[0].unflatten(0, (-1, 32)).flip(0) for x in caches)
            options["block_table"] = table
        lengths = torch.tensor([300 + first], dtype=torch.int32)
        return block_attention(q[:, first : first + block], keys, values, lengths, **options)[0]

    return call


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_torch_rows_do_not_depend_on_the_block(torch_call: Callable[..., Tensor]) -> None:
    whole = torch_call(0, 256)
    assert whole.isfinite().all()
    for block in (1, 8, 32):
        for first in (*range(0, 40, block), 83, 84, 211, 212, 256 - block):
            for pages in (False, True):
                rows = whole[first : first + block]
                actual = torch_call(first, block, pages)
                assert_same_bits(actual, rows, f"{block} rows from {first}, pages: {pages}")


def test_torch_rows_do_not_depend_on_the_block_with_two_threads(
    two_threads: None, torch_call: Callable[..., Tensor]
) -> None:
    whole = torch_call(0, 64)
    assert whole.isfinite().all()
    for first, block in ((0, 1), (17, 1), (63, 1), (5, 8), (31, 32)):
        actual = torch_call(first, block)
        assert_same_bits(actual, whole[first : first + block], f"{block} rows from {first}")


def test_fast_torch_rows_do_depend_on_the_block() -> None:
    """What the invariant numerics are for, and that these tests can see it."""
    sequence = Sequence(4, 64, torch.float32, "torch", "cpu")
    whole, _ = sequence.causal(0, 32, numerics="fast")
    alone = torch.cat([sequence.causal(row, 1, numerics="fast")[0] for row in range(32)])
    assert not torch.equal(alone, whole)
    torch.testing.assert_close(alone, whole)
