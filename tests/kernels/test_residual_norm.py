"""residual_norm: rounding, accuracy, and rows whose bits depend on nothing else."""

import pytest
import torch
from numeric import Guarded, assert_close_to_reference, assert_same_bits, forced_backend
from torch import Tensor
from torch.nn import functional as F

from dlm_kernels import residual_norm
from dlm_kernels.partial_sums import PartialSums

EPS = 1e-5
FLOOR = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}

# A row lies in the next power of two of its elements.
SHAPES = [
    pytest.param(1, 1, id="one-element"),
    pytest.param(5, 67, id="odd-size"),
    pytest.param(3, 128, id="power-of-two"),
    pytest.param(2, 5120, id="14B"),
    pytest.param(1, 16384, id="longest-row"),
]
# How an update comes: whole, or in so many partial sums.
UPDATES = [
    pytest.param(0, id="whole"),
    pytest.param(1, id="one-part"),
    pytest.param(3, id="three-parts"),
]


def inputs(
    rows: int, hidden: int, segments: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor | PartialSums, Tensor]:
    generator = torch.Generator().manual_seed(hidden)
    residual = torch.randn(rows, hidden, generator=generator).to(dtype).to(device)
    sums = torch.randn(max(segments, 1), rows, hidden, generator=generator).to(device)
    weight = (1 + torch.randn(hidden, generator=generator) / 4).to(dtype).to(device)
    return residual, PartialSums(sums, dtype) if segments else sums[0].to(dtype), weight


def total(update: Tensor | PartialSums) -> Tensor:
    return update if isinstance(update, Tensor) else update.total()


@pytest.mark.parametrize("segments", UPDATES)
@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_matches_float64(
    rows: int, hidden: int, segments: int, backend: str, dtype: torch.dtype, op_device: str
) -> None:
    residual, update, weight = inputs(rows, hidden, segments, dtype, op_device)
    out, normed = residual_norm(residual, update, weight, EPS)
    assert out.dtype == normed.dtype == dtype
    assert_same_bits(out, residual + total(update), "residual")
    x = out.double()
    exact = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    plain = F.rms_norm(out, weight.shape, weight, EPS)
    assert_close_to_reference(normed, plain, exact, floor=FLOOR[dtype])


def test_torch_backend_has_the_bits_of_plain_torch(dtype: torch.dtype, device: str) -> None:
    residual, update, weight = inputs(7, 96, 0, dtype, device)
    with forced_backend("torch"):
        out, normed = residual_norm(residual, update, weight, EPS)
    assert_same_bits(out, residual + update)
    assert_same_bits(normed, F.rms_norm(residual + update, weight.shape, weight, EPS))


@pytest.mark.parametrize("hidden", [67, 96])
def test_bits_do_not_depend_on_how_the_update_comes(
    hidden: int, backend: str, dtype: torch.dtype, op_device: str
) -> None:
    residual, parts, weight = inputs(4, hidden, 5, dtype, op_device)
    whole = residual_norm(residual, parts.total(), weight, EPS)
    for update in (parts, PartialSums(parts.total()[None], dtype)):
        for ours, theirs in zip(residual_norm(residual, update, weight, EPS), whole, strict=True):
            assert_same_bits(ours, theirs)
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
            for ours, theirs in zip(residual_norm(rows, part, weight, EPS), whole, strict=True):
                assert_same_bits(ours, theirs[at], str(at))


def test_any_leading_dimensions_and_strides(backend: str, op_device: str) -> None:
    residual, update, weight = inputs(12, 40, 2, torch.float32, op_device)
    expected = residual_norm(residual, update, weight, EPS)

    def check(rows: Tensor, parts: PartialSums, at) -> None:
        for ours, theirs in zip(residual_norm(rows, parts, weight, EPS), expected, strict=True):
            assert ours.shape == rows.shape and ours.is_contiguous()
            assert_same_bits(ours.reshape(theirs[at].shape), theirs[at])

    check(
        residual.view(2, 3, 2, 40), PartialSums(update.sums.view(2, 2, 3, 2, 40), *update[1:]), ...
    )
    check(residual[4], PartialSums(update.sums[:, 4].contiguous(), *update[1:]), 4)
    check(residual[:0], PartialSums(update.sums[:, :0].contiguous(), *update[1:]), slice(0))
    far = torch.full((12, 48), torch.nan, device=op_device)
    far[:, :40] = residual
    check(far[:, :40], update, ...)
    check(residual.T.contiguous().T, update, ...)


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


@pytest.mark.parametrize("segments", UPDATES)
def test_inputs_are_only_read(segments: int, backend: str, op_device: str) -> None:
    residual, update, weight = inputs(3, 67, segments, torch.float32, op_device)
    guarded = [Guarded(x) for x in (residual, weight)]
    before = [x.tensor.clone() for x in guarded]
    residual_norm(guarded[0].tensor, update, guarded[1].tensor, EPS)
    for ours, theirs in zip(guarded, before, strict=True):
        ours.check()
        assert_same_bits(ours.tensor, theirs)
