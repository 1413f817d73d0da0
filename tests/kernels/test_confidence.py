"""confidence: accuracy on awkward vocabularies and strides, and rows that keep to themselves."""

import math

import pytest
import reference
import torch
from numeric import (
    BFLOAT16,
    assert_all_same_bits,
    assert_close_to_reference,
    unchanged,
)
from torch import Tensor

from dlm_kernels import Confidence, confidence, new_error_word
from dlm_kernels.backend import forced_backend

MASK = 3
BOTH = {"entropy": True, "margin": True}
F32, F16 = torch.float32, torch.float16


def normal_logits(rows: int, vocab: int, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(rows, vocab, generator=generator)).to(dtype).to(device)


def of_triton(logits: Tensor, **options) -> Confidence:
    with forced_backend("triton"):
        return confidence(logits, **BOTH, **options)


def assert_right(logits: Tensor, **options) -> Confidence:
    """Triton's errors are bounded by torch's, and those by a few units in the last place."""
    words = [new_error_word(logits.device) for _ in range(3)]
    exact = reference.confidence(logits, error=words[0], **BOTH, **options)
    with forced_backend("torch"):
        of_torch = confidence(logits, error=words[1], **BOTH, **options)
    with unchanged(logits):
        ours = of_triton(logits, error=words[2], **options)
    assert len({int(word) for word in words}) == 1, words
    for result in (of_torch, ours):
        assert result.token.tolist() == exact.token.tolist()
    for name, x, torchs, truth in zip(
        Confidence._fields[1:], ours[1:], of_torch[1:], exact[1:], strict=True
    ):
        finite = truth[truth.isfinite()].abs()
        floor = 5e-7 * max(1.0, float(finite.max()) if len(finite) else 0.0)
        assert_close_to_reference(torchs, truth, truth, floor=8 * floor, what=f"torch's {name}")
        assert_close_to_reference(x, torchs, truth, floor=floor, what=name)
    return ours


# A tile holds 256 float32 or 512 half logits, a chunk 512; of the tables that ship, 1024 and 2048,
# and 16384.
@pytest.mark.parametrize(
    ("rows", "vocab", "dtype"),
    [
        pytest.param(7, 1, F32, id="one-id"),
        pytest.param(7, 2, F16, id="two-ids"),
        pytest.param(7, 67, F32, id="prime"),
        pytest.param(2, 255, F32, id="one-short-of-a-float32-tile"),
        pytest.param(2, 256, F32, id="one-float32-tile"),
        pytest.param(2, 257, F16, id="one-past-a-float32-tile"),
        pytest.param(2, 512, F16, id="one-chunk"),
        pytest.param(2, 513, F32, id="one-chunk-and-one"),
        pytest.param(2, 1023, F16, id="one-short-of-two-chunks"),
        pytest.param(2, 1700, F32, id="four-chunks"),
        pytest.param(2, 700, torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
        *(
            pytest.param(rows, vocab, dtype, id=f"shipped-{vocab}", marks=marks)
            for rows, vocab, dtype, marks in (
                (3, 1025, F32, [pytest.mark.full]),
                (2, 4097, F16, [pytest.mark.full]),
                (2, 16385, F32, [pytest.mark.full]),
                (1, 50257, F16, [pytest.mark.full]),
                (1, 131072, F32, [pytest.mark.full]),
                (9, 50257, torch.bfloat16, [pytest.mark.full, pytest.mark.gpu]),
            )
        ),
    ],
)
def test_matches_the_reference(
    rows: int, vocab: int, dtype: torch.dtype, triton_device: str
) -> None:
    assert_right(normal_logits(rows, vocab, dtype, triton_device))


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-3, F16), (30.0, F32), (1e4, F16), (1e4, F32)], ids=str
)
def test_extreme_scales(scale: float, dtype: torch.dtype, triton_device: str) -> None:
    logits = normal_logits(2, 700, F32, triton_device).clamp(-2, 2) / 2 * scale
    assert_right(logits.to(dtype))


@pytest.mark.parametrize(
    ("first_column", "dtype"), [(0, F32), (8, F16), (5, F16), (5, F32)], ids=str
)
def test_rows_may_lie_apart(first_column: int, dtype: torch.dtype, triton_device: str) -> None:
    # NaN between the rows: one logit read from there spoils the row.
    buffer = torch.full((8, 800), math.nan, dtype=dtype, device=triton_device)
    logits = buffer[1:7:2, first_column : first_column + 600]
    logits.copy_(normal_logits(3, 600, dtype, triton_device))
    assert_right(logits)


def test_all_rows_may_be_one(triton_device: str) -> None:
    assert_right(normal_logits(1, 300, F32, triton_device).expand(5, 300))


def test_no_rows(backend: str, op_device: str) -> None:
    error = new_error_word(op_device)
    result = confidence(torch.empty(0, 100, device=op_device), error=error, **BOTH)
    assert [tuple(x.shape) for x in result] == [(0,)] * 5
    assert result.token.dtype == torch.int32
    assert all(x.dtype == F32 for x in result[1:])
    assert not error.item()


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_skipped_rows_are_zero_and_others_as_if_alone(
    token_dtype: torch.dtype, triton_device: str
) -> None:
    logits = normal_logits(5, 600, F32, triton_device)
    tokens = torch.tensor([MASK, 0, MASK, MASK + 1, MASK], dtype=token_dtype, device=triton_device)
    actual = assert_right(logits, tokens=tokens, mask_id=MASK)
    assert actual.token[[1, 3]].tolist() == [-1, -1]
    for statistic in actual[1:]:
        assert statistic[[1, 3]].tolist() == [0.0, 0.0]


# --- bits


@pytest.mark.parametrize(
    ("rows", "vocab", "dtype"),
    [
        pytest.param(9, 503, F32, id="one-chunk"),
        pytest.param(9, 503, torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
        pytest.param(4, 1100, F16, id="three-chunks"),
        pytest.param(4, 33000, F32, id="shipped", marks=pytest.mark.full),
    ],
)
def test_bits_of_a_row_do_not_depend_on_other_rows(
    rows: int, vocab: int, dtype: torch.dtype, triton_device: str
) -> None:
    logits = normal_logits(rows, vocab, dtype, triton_device)
    together = of_triton(logits)

    # The last row first, among skipped rows, NaN and infinities.
    order = torch.tensor([rows - 1, 0, 1, 2], device=triton_device)
    hostile = logits[order].clone()
    hostile[2], hostile[3] = math.nan, math.inf
    tokens = torch.tensor([MASK, MASK + 1, MASK, MASK], device=triton_device)
    elsewhere = of_triton(hostile, tokens=tokens, mask_id=MASK)
    assert_all_same_bits((x[:1] for x in elsewhere), (x[-1:] for x in together), "elsewhere")

    for row in (0, rows - 1):
        expected = [x[row, None] for x in together]
        for single in (logits[row : row + 1], logits[row, None].clone()):
            assert_all_same_bits(of_triton(single), expected, f"of row {row} alone")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, F16, BFLOAT16])
def test_the_same_call_gives_the_same_bits(dtype: torch.dtype) -> None:
    logits = normal_logits(2, 20000, dtype, "cuda")
    assert_all_same_bits(of_triton(logits), of_triton(logits))
