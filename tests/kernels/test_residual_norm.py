"""residual_norm: rounding, accuracy, and rows whose bits depend on nothing else."""

import pytest
import reference
import torch
from numeric import (
    assert_all_same_bits,
    assert_close_to_reference,
    assert_same_bits,
    unchanged,
)
from torch import Tensor
from torch.nn import functional as F

from dlm_kernels import residual_norm
from dlm_kernels.backend import forced_backend
from dlm_kernels.partial_sums import PartialSums

EPS = 1e-5
FLOOR = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}

# A row lies in the next power of two of its elements. Updates come whole (0) or in so many parts.
SHAPES = [
    pytest.param(1, 1, 1, id="one-element"),
    pytest.param(5, 67, 3, id="odd-size"),
    pytest.param(3, 128, 0, id="power-of-two-update-whole"),
    pytest.param(2, 5120, 3, id="14B", marks=pytest.mark.full),
    pytest.param(1, 16384, 0, id="longest-row", marks=pytest.mark.full),
]


def inputs(
    rows: int, hidden: int, segments: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor | PartialSums, Tensor]:
    generator = torch.Generator().manual_seed(hidden)
    residual = torch.randn(rows, hidden, generator=generator).to(dtype).to(device)
    sums = torch.randn(max(segments, 1), rows, hidden, generator=generator).to(device)
    weight = (1 + torch.randn(hidden, generator=generator) / 4).to(dtype).to(device)
    return residual, PartialSums(sums, dtype) if segments else sums[0].to(dtype), weight


@pytest.mark.parametrize(("rows", "hidden", "segments"), SHAPES)
def test_matches_float64(
    rows: int, hidden: int, segments: int, backend: str, dtype: torch.dtype, op_device: str
) -> None:
    residual, update, weight = inputs(rows, hidden, segments, dtype, op_device)
    with unchanged(residual, update.sums if segments else update, weight):
        out, normed = residual_norm(residual, update, weight, EPS)
    assert out.dtype == normed.dtype == dtype
    exact_out, exact = reference.residual_norm(residual, update, weight, EPS)
    assert torch.equal(out.double(), exact_out)
    plain = F.rms_norm(out, weight.shape, weight, EPS)
    if backend == "torch":
        assert_same_bits(normed, plain)
    assert_close_to_reference(normed, plain, exact, floor=FLOOR[dtype])


@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_eps(eps: float, backend: str, op_device: str) -> None:
    residual, _, weight = inputs(3, 67, 0, torch.float32, op_device)
    _, normed = residual_norm(residual / 8, None, weight, eps)
    _, exact = reference.residual_norm(residual / 8, None, weight, eps)
    torch.testing.assert_close(normed.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [67, 96])
def test_bits_do_not_depend_on_how_the_update_comes(
    hidden: int, backend: str, dtype: torch.dtype, op_device: str
) -> None:
    residual, parts, weight = inputs(4, hidden, 5, dtype, op_device)
    whole = residual_norm(residual, parts.total(), weight, EPS)
    for update in (parts, PartialSums(parts.total()[None], dtype)):
        assert_all_same_bits(residual_norm(residual, update, weight, EPS), whole)
    residual, normed = whole
    same, alone = residual_norm(residual, None, weight, EPS)
    assert same is residual
    assert_same_bits(alone, normed, "the norm alone")


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
def test_a_row_has_the_same_bits_whatever_rows_go_with_it(
    backend_name: str, dtype: torch.dtype, triton_device: str
) -> None:
    residual, update, weight = inputs(33, 96, 2, dtype, triton_device)
    residual[17] = torch.inf  # neighbours' values don't matter either
    with forced_backend(backend_name):
        whole = residual_norm(residual, update, weight, EPS)
        for at in (slice(0, 1), slice(16, 17), slice(18, 26)):
            part = PartialSums(update.sums[:, at].contiguous(), dtype)
            shifted = torch.empty(residual[at].numel() + 1, dtype=dtype, device=triton_device)[1:]
            rows = shifted.view(-1, 96).copy_(residual[at])
            expected = [x[at] for x in whole]
            assert_all_same_bits(residual_norm(rows, part, weight, EPS), expected, str(at))


def test_any_leading_dimensions_and_strides(backend: str, op_device: str) -> None:
    residual, update, weight = inputs(12, 40, 2, torch.float32, op_device)
    expected = residual_norm(residual, update, weight, EPS)

    def check(rows: Tensor, sums: Tensor, at) -> None:
        parts = PartialSums(sums.contiguous(), torch.float32)
        for ours, theirs in zip(residual_norm(rows, parts, weight, EPS), expected, strict=True):
            assert ours.shape == rows.shape and ours.is_contiguous()
            assert_same_bits(ours.reshape(theirs[at].shape), theirs[at])

    check(residual.view(2, 3, 2, 40), update.sums.view(2, 2, 3, 2, 40), ...)
    check(residual[4], update.sums[:, 4], 4)
    check(residual[:0], update.sums[:, :0], slice(0))
    far = torch.full((12, 48), torch.nan, device=op_device)
    far[:, :40] = residual
    check(far[:, :40], update.sums, ...)
    check(residual.T.contiguous().T, update.sums, ...)


def test_special_values_stay_in_their_row(backend: str, dtype: torch.dtype, op_device: str) -> None:
    residual, update, weight = inputs(4, 67, 3, dtype, op_device)
    update.sums[:, :2], residual[0] = 0.0, 0.0
    residual[1] = 1e4  # whose square float16 cannot hold
    residual[2, 5] = torch.nan
    out, normed = residual_norm(residual, update, weight, EPS)
    assert not normed[0].any()
    assert_close_to_reference(normed[1], weight, weight, floor=2 * FLOOR[dtype])
    assert normed[2].isnan().all() and out[2].isnan().sum() == 1
    assert normed[3].isfinite().all()
