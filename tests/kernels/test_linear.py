"""linear: accuracy, and rows whose bits do not depend on the rows beside them."""

import pytest
import torch
from numeric import Guarded, assert_close_to_reference, assert_same_bits, forced_backend
from torch import Tensor
from torch.nn import functional as F

from dlm_kernels import launch, linear
from dlm_kernels.linear import segment_length

# A tile holds 64 rows of the weight, 32 rows of x and 32 to 128 features; a segment 512 or more.
SHAPES = [
    pytest.param(1, 48, 67, id="one-row-odd-sizes"),
    pytest.param(5, 1, 3, id="one-feature"),
    pytest.param(31, 96, 64, id="31-rows"),
    pytest.param(32, 128, 65, id="one-feature-over-a-tile"),
    pytest.param(33, 100, 130, id="33-rows-odd-sizes"),
    pytest.param(7, 1000, 70, id="two-segments-odd-length"),
    pytest.param(40, 1536, 40, id="three-segments"),
    pytest.param(33, 1536, 700, id="two-parts-of-the-weight-in-torch"),
]


def inputs(
    rows: int, in_features: int, out_features: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Rows and weight with NaN between their rows, of order one in and out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
    views = []
    for content in (x, weight):
        buffer = torch.full((content.shape[0], content.shape[1] + 8), torch.nan)
        buffer[:, : content.shape[1]] = content
        views.append(buffer.to(dtype).to(device)[:, : content.shape[1]])
    return tuple(views)


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SHAPES)
def test_matches_the_reference(
    rows: int,
    in_features: int,
    out_features: int,
    backend: str,
    dtype: torch.dtype,
    op_device: str,
) -> None:
    x, weight = inputs(rows, in_features, out_features, dtype, op_device)
    out = linear(x, weight)
    assert out.dtype == dtype and out.is_contiguous()
    floor = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}[dtype]
    exact = x.double() @ weight.double().T
    assert_close_to_reference(out, F.linear(x, weight), exact, floor=floor)


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
@pytest.mark.parametrize(
    ("in_features", "out_features"), [(48, 67), (1000, 70), (512, 96), (1536, 700)], ids=str
)
def test_a_row_has_the_same_bits_whatever_rows_go_with_it(
    in_features: int,
    out_features: int,
    backend_name: str,
    dtype: torch.dtype,
    device: str,
    triton_device: str,
) -> None:
    x, weight = inputs(300, in_features, out_features, dtype, triton_device)
    x[17] = torch.inf  # neighbours' values don't matter either
    with forced_backend(backend_name):
        whole = linear(x, weight)
        for first, rows in ((0, 1), (5, 1), (31, 1), (40, 8), (90, 32), (101, 33), (25, 256)):
            part = linear(x[first : first + rows].clone(), weight)
            assert_same_bits(part, whole[first : first + rows], f"{rows} rows from {first}")


@pytest.mark.parametrize("threads", [1, 2])
def test_fast_rows_may_differ_and_invariant_rows_do_not(threads: int, device: str) -> None:
    """That the comparison can fail: the same rows by torch's own choice of product."""
    if device != "cpu":
        pytest.skip("what cuBLAS chooses is its own affair")
    x, weight = inputs(32, 512, 256, torch.float32, device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for numerics, same in (("invariant", True), ("fast", False)):
            whole = linear(x, weight, numerics=numerics)
            alone = torch.cat([linear(row, weight, numerics=numerics) for row in x.split(1)])
            assert torch.equal(whole, alone) == same, numerics
    finally:
        torch.set_num_threads(before)


def test_leading_dimensions(backend: str, op_device: str) -> None:
    x, weight = inputs(12, 40, 9, torch.float32, op_device)
    expected = linear(x, weight)
    assert_same_bits(linear(x.reshape(2, 3, 2, 40), weight).view(12, 9), expected)
    assert_same_bits(linear(x[4], weight), expected[4])
    across = x.T.contiguous().T  # features far apart
    assert_same_bits(linear(across, weight), expected)
    assert linear(x[:0], weight).shape == (0, 9)


def test_nothing_outside_the_output_is_written(backend: str, op_device: str) -> None:
    x, weight = (Guarded(t) for t in inputs(33, 1000, 70, torch.float32, op_device))
    linear(x.tensor, weight.tensor)
    x.check()
    weight.check()


@pytest.mark.parametrize("in_features", [1, 511, 512, 4096, 14336])
@pytest.mark.parametrize("out_features", [64, 1024, 4096, 131072])
def test_segments_cover_the_features_and_fill_the_chip(in_features: int, out_features: int) -> None:
    config = launch.LINEAR["sm_90"][2]
    tiles = -(-out_features // config.block_o)
    segment = segment_length(in_features, tiles, config)
    segments = -(-in_features // segment)
    assert segment % config.block_k == 0
    assert segments == 1 or segment >= config.min_segment
    assert segments * tiles <= max(2 * config.programs, tiles)
    if in_features >= 4096 and out_features >= 4096:
        assert segments * tiles >= config.programs // 2
