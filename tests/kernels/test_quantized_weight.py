"""Weights in few bits: how far off they are, what is stored where, and what is refused."""

import pytest
import torch
from torch import Tensor

from dlm_kernels import QuantizedWeight, quantize_weight, quantized_weight
from dlm_kernels.quantized_weight import GROUP, LARGEST

TINY = torch.finfo(torch.float32).tiny
INPUTS = [
    pytest.param((1, 1), torch.float32, id="one-weight"),
    pytest.param((3, 127), torch.float32, id="a-feature-less-than-a-group"),
    pytest.param((5, 128), torch.bfloat16, id="one-group-bf16"),
    pytest.param((4, 129), torch.float16, id="a-feature-more-fp16"),
    pytest.param((37, 389), torch.bfloat16, id="primes-bf16"),
    pytest.param((2, 512), torch.float32, id="whole-groups"),
]


@pytest.fixture(params=LARGEST)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def drawn(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal weights, rows of sizes orders of magnitude apart."""
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = torch.logspace(-3, 2, shape[0])[:, None]
    return (torch.randn(shape, generator=generator) * sizes).to(dtype)


def scale_of_each(quantized: QuantizedWeight) -> Tensor:
    """The scale that each weight has: float64 [out_features, in_features]."""
    scales = quantized.scales.double()
    if quantized.kind == "int4":
        return scales.repeat_interleave(GROUP, 1)[:, : quantized.in_features]
    return scales[:, None].expand(quantized.shape)


def assert_near(weight: Tensor, quantized: QuantizedWeight) -> None:
    """Each weight is off by no more than its value's rounding, and a little for that of scales."""
    weight, scale = weight.double(), scale_of_each(quantized)
    allowed = scale / 2
    if quantized.kind == "fp8":
        allowed = torch.where(weight.abs() < scale / 64, scale / 1024, weight.abs() / 16)
    error = (quantized.dequantized().double() - weight).abs()
    assert (error <= allowed * (1 + 1e-5) + weight.abs() * 1e-6).all()


@pytest.mark.parametrize(("shape", "dtype"), INPUTS)
def test_every_weight_is_within_its_rounding(
    kind: str, shape: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    weight = drawn(shape, dtype).to(device)
    quantized = quantize_weight(weight, kind)
    assert_near(weight, quantized)
    out_features, in_features = shape
    groups = -(-in_features // GROUP)
    assert quantized.shape == shape and quantized.device == weight.device
    assert quantized.dequantized().shape == shape
    assert quantized.dequantized().dtype == quantized.scales.dtype == torch.float32
    stored = {
        "fp8": (torch.float8_e4m3fn, in_features),
        "int8": (torch.int8, in_features),
        "int4": (torch.uint8, groups * GROUP // 2),
    }
    n_scales = out_features * (groups if kind == "int4" else 1)
    assert (quantized.values.dtype, quantized.values.shape[1]) == stored[kind]
    assert quantized.n_bytes == quantized.values.numel() + 4 * n_scales
    assert quantized.values.is_contiguous() and quantized.scales.is_contiguous()


def test_the_largest_of_each_scale_comes_back(kind: str) -> None:
    weight = drawn((6, 300))
    quantized = quantize_weight(weight, kind)
    scale = scale_of_each(quantized)
    found = (quantized.dequantized().double() / scale).abs()
    whole_groups = found[:, : 2 * GROUP].unflatten(1, (2, GROUP))
    largest = whole_groups.amax(-1) if kind == "int4" else found.amax(-1)
    assert torch.allclose(largest, torch.full_like(largest, LARGEST[kind]), rtol=1e-6)
    if kind != "fp8":
        assert torch.allclose(found, found.round(), rtol=1e-6)


def test_values_on_the_grid_come_back_to_the_bit(kind: str) -> None:
    """Powers of two for scales, so that nothing rounds but the values, and those are whole."""
    integers = torch.arange(2 * GROUP).remainder(15).sub(7).float()
    if kind == "int8":
        integers = integers * 18  # -126 to 126
    integers[0::GROUP] = -LARGEST[kind]
    weight = integers * torch.tensor([[0.5], [4.0], [2.0**-100]])
    assert torch.equal(quantize_weight(weight, kind).dequantized(), weight)


def test_ties_round_to_even() -> None:
    weight = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert quantize_weight(weight, "int8").values[0].tolist() == [127, 0, 2, 2, 0, -2, -126]
    weight = torch.tensor([[448, 17, 19, -17, 2.0**-10]])
    values = quantize_weight(weight, "fp8").values.float()[0].tolist()
    assert values == [448, 16, 20, -16, 0]


def test_a_byte_of_int4_holds_features_that_are_64_apart() -> None:
    weight = torch.zeros(2, GROUP + 3)
    weight[:, 0] = weight[:, GROUP] = 7
    weight[1, 5], weight[1, 64 + 5], weight[1, GROUP + 2] = -7, 3, -2
    values = quantize_weight(weight, "int4").values
    assert values.shape == (2, GROUP)
    assert values[0].tolist() == [0x8F, *[0x88] * 63] * 2
    assert values[1, 5] == 3 + 8 << 4 | -7 + 8
    assert values[1, 64:67].tolist() == [0x8F, 0x88, 0x86]


def test_zeros_stay_zeros_and_leave_other_rows_alone(kind: str) -> None:
    weight = drawn((3, 200))
    weight[1] = 0
    weight[2, :GROUP] = 0
    quantized = quantize_weight(weight, kind)
    assert torch.equal(quantized.dequantized()[1], weight[1])
    assert not quantized.dequantized()[2, :GROUP].any()
    assert (quantized.scales > 0).all()
    alone = quantize_weight(weight[:1], kind).dequantized()
    assert torch.equal(quantized.dequantized()[:1], alone)


def test_a_huge_weight_costs_its_own_scale_alone(kind: str) -> None:
    weight = drawn((3, 300))
    weight[1, 7] = 1e30
    quantized = quantize_weight(weight, kind)
    assert_near(weight, quantized)
    changed = (scale_of_each(quantized) > 1e20).sum()
    assert changed == (GROUP if kind == "int4" else 300)


@pytest.mark.parametrize("largest", [2.0**-149, 150 * 2.0**-149, TINY, 100 * TINY])
def test_subnormal_weights_keep_a_normal_scale(kind: str, largest: float) -> None:
    weight = largest * torch.linspace(-1, 1, 140)[None]
    quantized = quantize_weight(weight, kind)
    assert quantized.scales.min() >= TINY
    assert_near(weight, quantized)


def test_strides_and_gradients_of_the_weight_do_not_matter(kind: str) -> None:
    weight = drawn((6, 131))
    expected = quantize_weight(weight, kind)
    transposed = weight.T.contiguous().T
    for other in (transposed, torch.nn.Parameter(weight), torch.cat([weight, weight], 1)[:, :131]):
        quantized = quantize_weight(other, kind)
        assert torch.equal(quantized.values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(quantized.scales, expected.scales)
        assert not quantized.values.requires_grad and not quantized.scales.requires_grad


def test_a_large_weight_is_quantised_some_rows_at_a_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = drawn((7, 150))
    expected = quantize_weight(weight, kind)
    for at_once in (1, 301):  # one row, and two of which the last is alone
        monkeypatch.setattr(quantized_weight, "AT_ONCE", at_once)
        quantized = quantize_weight(weight, kind)
        assert torch.equal(quantized.values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(quantized.scales, expected.scales)
