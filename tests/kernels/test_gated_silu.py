"""gated_silu: rounding, accuracy, and elements whose bits depend on nothing else."""

import pytest
import reference
import torch
from numeric import assert_close_to_reference, assert_same_bits, unchanged
from torch.nn import functional as F

from dlm_kernels import gated_silu
from dlm_kernels.backend import forced_backend
from dlm_kernels.partial_sums import PartialSums


def product(
    rows: int, intermediate: int, segments: int, dtype: torch.dtype, device: str
) -> PartialSums:
    generator = torch.Generator().manual_seed(intermediate)
    sums = 2 * torch.randn(segments, rows, 2 * intermediate, generator=generator)
    return PartialSums(sums.to(device), dtype)


# A program makes 32 elements of a row; of the table that ships, 1024.
@pytest.mark.parametrize(
    ("rows", "intermediate", "segments"),
    [
        pytest.param(1, 1, 1, id="one-element"),
        pytest.param(5, 67, 3, id="three-tiles-odd-size"),
        pytest.param(2, 64, 2, id="two-tiles"),
        pytest.param(3, 2051, 3, id="shipped", marks=pytest.mark.full),
    ],
)
def test_matches_float64(
    rows: int, intermediate: int, segments: int, backend: str, dtype: torch.dtype, op_device: str
) -> None:
    gate_up = product(rows, intermediate, segments, dtype, op_device)
    gate, up = gate_up.total().double().chunk(2, -1)
    exact = (gate * gate.sigmoid()) * up
    plain = F.silu(gate.to(dtype)) * up.to(dtype)
    floor = {torch.float32: 2e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}[dtype]
    for x in (gate_up, gate_up.total()):
        with unchanged(gate_up.sums):
            out = gated_silu(x)
        assert out.dtype == dtype and out.is_contiguous()
        assert_close_to_reference(out, plain, exact, floor=floor)
    assert_same_bits(out, gated_silu(gate_up), "whole and in parts")
    if backend == "torch" and op_device == "cpu":
        # Whose own silu gives the elements behind the last whole vector other bits.
        gate, up = gate_up.total().chunk(2, -1)
        activated = (gate.float() / (1 + torch.exp(-gate.float()))).to(dtype)
        assert_same_bits(out, activated * up, "by the exponential")


def test_the_activation_is_rounded_before_it_is_multiplied(
    backend: str, dtype: torch.dtype, op_device: str
) -> None:
    """As where each is an operation of its own: only then is silu(gate) * 1 a number of dtype."""
    gate = product(4, 40, 1, dtype, op_device).total()[:, :40]
    activated = gated_silu(torch.cat([gate, torch.ones_like(gate)], -1))
    out = gated_silu(torch.cat([gate, torch.full_like(gate, 1.5)], -1))
    assert_same_bits(out, activated * 1.5)
    exact = reference.gated_silu(torch.cat([gate, torch.ones_like(gate)], -1))
    torch.testing.assert_close(activated.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
def test_an_element_has_the_same_bits_wherever_it_stands(
    backend_name: str, dtype: torch.dtype, triton_device: str
) -> None:
    gate, up = product(9, 75, 1, dtype, triton_device).total().chunk(2, -1)
    with forced_backend(backend_name):
        whole = gated_silu(torch.cat([gate, up], -1))
        for rows, columns in ((slice(3, 4), slice(0, 75)), (slice(2, 5), slice(38, 75))):
            part = gated_silu(torch.cat([gate[rows, columns], up[rows, columns]], -1))
            assert_same_bits(part, whole[rows, columns])


def test_large_gates_are_steps(backend: str, dtype: torch.dtype, op_device: str) -> None:
    gate = torch.tensor([1e4, -1e4, 0.0, torch.inf, torch.nan], dtype=dtype, device=op_device)
    out = gated_silu(torch.cat([gate, torch.full_like(gate, 2.0)]))
    expected = torch.tensor([2e4, 0.0, 0.0, torch.inf, torch.nan], dtype=dtype, device=op_device)
    torch.testing.assert_close(out, 2 * expected / 2, equal_nan=True, rtol=0, atol=0)


def test_leading_dimensions(backend: str, op_device: str) -> None:
    gate_up = product(12, 33, 2, torch.float32, op_device)
    expected = gated_silu(gate_up)
    shaped = PartialSums(gate_up.sums.view(2, 3, 4, 66), gate_up.dtype)
    assert_same_bits(gated_silu(shaped), expected.view(3, 4, 33))
    whole = gate_up.total()
    assert_same_bits(gated_silu(whole[5]), expected[5])
    assert_same_bits(gated_silu(whole.T.contiguous().T), expected)
    assert gated_silu(whole[:0]).shape == (0, 33)
