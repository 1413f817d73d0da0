"""rope_kv_write: rotation, and what goes where in a cache, to the bit."""

import math
from typing import NamedTuple

import pytest
import reference
import torch
from numeric import (
    Guarded,
    assert_all_same_bits,
    assert_close_to_reference,
    assert_same_bits,
    bits,
    unchanged,
)
from torch import Tensor

from dlm_kernels import new_error_word, rope_kv_write
from dlm_kernels.backend import forced_backend
from dlm_kernels.error_word import LENGTH_OUT_OF_RANGE, PAGE_OUT_OF_RANGE
from dlm_kernels.partial_sums import PartialSums

F8 = torch.float8_e4m3fn


class Block(NamedTuple):
    """What a layer's product and the positions give: the op's arguments without a cache."""

    qkv: PartialSums
    cos: Tensor
    sin: Tensor
    query_scale: Tensor
    kv_heads: int

    def __call__(self, qkv: Tensor | PartialSums | None = None, **options):
        qkv = self.qkv if qkv is None else qkv
        return rope_kv_write(*(qkv, *self[1:4]), kv_heads=self.kv_heads, **options)


def make_block(
    dtype: torch.dtype,
    device: str,
    *,
    batch: int = 2,
    block: int = 3,
    query_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    segments: int = 2,
) -> Block:
    generator = torch.Generator().manual_seed(block + head_dim)
    features = (query_heads + 2 * kv_heads) * head_dim
    sums = torch.randn(segments, batch, block, features, generator=generator) / math.sqrt(segments)
    angle = 100 * torch.rand(batch, block, head_dim // 2, generator=generator)
    scale = 1 + torch.rand(batch, block, generator=generator)
    inputs = [x.to(device) for x in (angle.cos(), angle.sin(), scale)]
    return Block(PartialSums(sums.to(device), dtype), *inputs, kv_heads)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [batch, block, heads, head_dim] turned, in cos's dtype, not rounded."""
    first, second = x.to(cos.dtype).chunk(2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def split(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values before the rotation."""
    heads = block.qkv.total().unflatten(-1, (-1, 2 * block.cos.shape[-1]))
    kv_heads = block.kv_heads
    return heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)


class Caches:
    """A key and a value cache full of other contents, contiguous or in scattered pages.

    Values lie head after head, so that no stride is that of the keys.
    """

    def __init__(
        self,
        block: Block,
        lengths: list[int],
        *,
        capacity: int = 32,
        page_size: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        device = block.cos.device
        batch, head_dim, heads = len(lengths), 2 * block.cos.shape[-1], block.kv_heads
        outer = (batch * capacity // page_size + 2, page_size) if page_size else (batch, capacity)
        content = torch.arange(math.prod(outer) * heads * head_dim).float() % 251
        k, v = (x.to(device, dtype or block.qkv.dtype) for x in (content, content.flip(0)))
        shapes = (*outer, heads, head_dim), (heads, *outer, head_dim)
        self.guarded = [Guarded(x.view(shape)) for x, shape in zip((k, v), shapes, strict=True)]
        self.k, self.v = self.guarded[0].tensor, self.guarded[1].tensor.permute(1, 2, 0, 3)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.capacity, self.page_size, self.table = capacity, page_size, None
        if page_size:
            order = torch.randperm(outer[0], generator=torch.Generator().manual_seed(1))
            table = order[: batch * capacity // page_size].view(batch, -1)
            self.table = table.int().to(device)
        self.expected = [bits(x).clone() for x in (self.k, self.v)]

    def options(self) -> dict:
        options = {"k_cache": self.k, "v_cache": self.v, "context_lens": self.lengths}
        return options | ({"block_table": self.table} if self.page_size else {})

    def place(self, request: int, position: int) -> tuple[int, int]:
        if not self.page_size:
            return request, position
        return int(self.table[request, position // self.page_size]), position % self.page_size

    def expect(self, fresh: tuple[Tensor, Tensor], b: int, places: dict[int, int]) -> None:
        """Row i of request b's k and v at position length + places[i]."""
        for expected, x in zip(self.expected, fresh, strict=True):
            for row, place in places.items():
                expected[self.place(b, int(self.lengths[b]) + place)] = bits(x[b, row])

    def check(self) -> None:
        """What is expected is there, and all else is as it was."""
        for guarded, x, expected in zip(self.guarded, (self.k, self.v), self.expected, strict=True):
            guarded.check()
            assert_same_bits(bits(x), expected, "cache")


# A program takes as many heads as have 64 elements, at least one; of the table that ships, 1024.
SHAPES = [
    pytest.param({"batch": 1, "block": 1, "kv_heads": 1, "query_heads": 1}, id="one-of-everything"),
    pytest.param({"head_dim": 64, "query_heads": 6, "segments": 1}, id="one-part"),
    pytest.param({"kv_heads": 5, "query_heads": 10, "segments": 3}, id="tiles-of-four-heads"),
    pytest.param(
        {"head_dim": 256, "query_heads": 10, "kv_heads": 5}, id="shipped", marks=pytest.mark.full
    ),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(shape: dict, backend: str, dtype: torch.dtype, op_device: str) -> None:
    block = make_block(dtype, op_device, **shape)
    turn, before = block[1:3], split(block)
    query_turn = [x * block.query_scale[..., None] for x in turn]
    plain = [rotated(before[0], *query_turn), rotated(before[1], *turn), before[2]]
    exact = reference.rope_kv_write(*block[:4], kv_heads=block.kv_heads)
    floor = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}[dtype]
    for qkv in (block.qkv, block.qkv.total()):
        results = block(qkv)
        for name, x, same_dtype, truth in zip("qkv", results, plain, exact, strict=True):
            assert x.dtype == dtype and x.is_contiguous()
            assert_close_to_reference(x, same_dtype.to(dtype), truth, floor=floor, what=name)
            if backend == "torch" or name == "v":
                assert_same_bits(x, same_dtype.to(dtype), name)
    strided = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in block[1:4])
    assert_all_same_bits(Block(block.qkv, *strided, block.kv_heads)(), results)


@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
@pytest.mark.parametrize(
    ("rows", "groups", "places"),
    [
        pytest.param(5, None, {row: row for row in range(5)}, id="causal"),
        pytest.param(6, (2, 3), {0: 0, 3: 1}, id="groups-alone"),
        pytest.param(7, (2, 2), {0: 0, 1: 1, 2: 2, 3: 3, 5: 4}, id="causal-rows-before-groups"),
        pytest.param(5, (1, 5), {0: 0}, id="one-group"),
    ],
)
def test_all_but_the_masks_of_draft_groups_go_into_the_cache(
    rows: int,
    groups: tuple[int, int] | None,
    places: dict[int, int],
    page_size: int,
    backend: str,
    op_device: str,
) -> None:
    block = make_block(torch.float16, op_device, block=rows)
    expected = block()
    caches = Caches(block, [14, 32 - len(places)], page_size=page_size)  # to the end of the cache
    error = new_error_word(op_device)
    with unchanged(block.qkv.sums, block.cos, caches.lengths):
        results = block(**caches.options(), draft_groups=groups, error=error)
    assert not error
    assert_all_same_bits(results, (expected[0], None, None) if groups is None else expected)
    for b in range(2):
        caches.expect(expected[1:], b, places)
    caches.check()


@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
def test_a_float8_cache_holds_scaled_and_cut_values(
    page_size: int, backend: str, dtype: torch.dtype, op_device: str
) -> None:
    block = make_block(dtype, op_device, block=4, head_dim=64, segments=1)
    block = block._replace(cos=torch.ones_like(block.cos), sin=torch.zeros_like(block.sin))
    scales = torch.tensor([[0.02, 0.5], [1.7, 0.001]], device=op_device)
    if backend == "triton" and op_device == "cpu":
        # The interpreter rounds to float8 wrongly, so nothing may need it.
        scales = scales.log2().round().exp2()
        of_keys_and_values = block.qkv.sums[0, :, :, -4 * 64 :].view(2, 4, 2, 2, 64)
        stored = (of_keys_and_values / scales[..., None]).clamp(-448, 448).to(F8).float()
        stored[stored.abs() < 2**-6] = 0
        stored[stored.abs() == 448] *= 2
        of_keys_and_values.copy_(stored * scales[..., None])
    _, *fresh = block()
    caches = Caches(block, [3, 20], page_size=page_size, dtype=F8)
    block(**caches.options(), k_scale=scales[0], v_scale=scales[1])
    stored = [
        (x.float() / scale[:, None]).clamp(-448, 448).to(F8)
        for x, scale in zip(fresh, scales, strict=True)
    ]
    assert (stored[1].float().abs() == 448).any(), "nothing was cut"
    for b in range(2):
        caches.expect(stored, b, {row: row for row in range(4)})
    caches.check()


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
def test_a_row_has_the_same_bits_alone(
    backend_name: str, dtype: torch.dtype, triton_device: str
) -> None:
    block = make_block(dtype, triton_device, block=7)
    block.qkv.sums[:, 1, 4] = torch.inf  # neighbours' values don't matter either
    with forced_backend(backend_name):
        whole = block()
        for b, i in ((0, 0), (1, 3), (0, 6)):
            at = (slice(b, b + 1), slice(i, i + 1))
            qkv = PartialSums(block.qkv.sums[:, *at].contiguous(), dtype)
            row = Block(qkv, *(x[at] for x in block[1:4]), block.kv_heads)
            expected = [x[at] for x in whole]
            assert_all_same_bits(row(), expected, f"of row {i} of request {b}")


# --- what the host cannot see


@pytest.mark.parametrize(
    ("length", "groups", "page_size"),
    [
        (-2, None, 0),
        (-2, (1, 3), 16),
        (31, None, 16),
        (31, (1, 3), 0),
        (2**31 - 1, None, 0),
        (2**31 - 1, (1, 3), 16),
    ],
)
def test_lengths_out_of_range_are_clamped(
    length: int, groups: tuple[int, int] | None, page_size: int, backend: str, op_device: str
) -> None:
    block = make_block(torch.float32, op_device, block=4)
    caches, error = Caches(block, [5, length], page_size=page_size), new_error_word(op_device)
    _, *fresh = block()
    block(**caches.options(), draft_groups=groups, error=error)
    assert int(error) == LENGTH_OUT_OF_RANGE
    # Of the second request, the slots that its rows are clamped into. Which of several rows stands
    # in one slot is open; that it is one of them is not.
    kept = [0, 1, 2, 3] if groups is None else [0, 1]
    for position in {min(max(length + place, 0), 31) for place in range(len(kept))}:
        at = caches.place(1, position)
        for x, cache, expected in zip(fresh, (caches.k, caches.v), caches.expected, strict=True):
            assert any(torch.equal(cache[at], x[1, row]) for row in kept)
            expected[at] = bits(cache[at])
    caches.expect(fresh, 0, {row: row for row in kept})
    caches.check()


@pytest.mark.parametrize(("page", "clamped"), [(-1, 0), (99, -1)], ids=["negative", "too-large"])
def test_pages_out_of_range_are_clamped(
    page: int, clamped: int, backend: str, op_device: str
) -> None:
    block = make_block(torch.float32, op_device, block=4)
    caches, error = Caches(block, [5, 14], page_size=16), new_error_word(op_device)
    caches.table[:, 1] = page  # of the first request nothing goes there
    _, *fresh = block()
    block(**caches.options(), error=error, draft_groups=(1, 3))
    assert int(error) == 0, "only slot 0 is written, and masks have no page"
    block(**caches.options(), error=error)
    assert int(error) == PAGE_OUT_OF_RANGE
    caches.table[1, 1] = clamped % len(caches.k)
    for b in range(2):
        caches.expect(fresh, b, {row: row for row in range(4)})
    caches.check()


def test_without_an_error_word_faults_are_clamped_too(backend: str, op_device: str) -> None:
    block = make_block(torch.float32, op_device)
    caches = Caches(block, [-1, 1000], page_size=16)
    caches.table[0, 0] = -5
    block(**caches.options())
    for guarded in caches.guarded:
        guarded.check()


def test_no_rows(backend: str, op_device: str) -> None:
    for empty in ({"batch": 0}, {"block": 0}):
        q, k, v = make_block(torch.float32, op_device, **empty)()
        assert q.numel() == k.numel() == v.numel() == 0
        assert q.shape[2:] == (4, 16) and k.shape[2:] == v.shape[2:] == (2, 16)
