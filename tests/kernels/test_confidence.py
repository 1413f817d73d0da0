"""confidence: accuracy on awkward vocabularies and strides, and rows that keep to themselves."""

import pytest
import torch
from numeric import assert_close_to_reference, assert_same_bits, forced_backend, unchanged
from torch import Tensor

from dlm_kernels import Confidence, confidence, reference

MASK = 3
# A tile holds 1024 float32 or 2048 half logits, a chunk 16384.
VOCABULARIES = [
    pytest.param(7, 1, id="one-id"),
    pytest.param(7, 2, id="two-ids"),
    pytest.param(7, 67, id="prime"),
    pytest.param(3, 1023, id="odd-one-short-of-a-power-of-two"),
    pytest.param(3, 1024, id="one-float32-tile"),
    pytest.param(3, 1025, id="one-past-a-float32-tile"),
    pytest.param(2, 4096, id="whole-tiles"),
    pytest.param(2, 4097, id="whole-tiles-and-one"),
    pytest.param(2, 16384, id="one-chunk"),
    pytest.param(2, 16385, id="one-chunk-and-one"),
    pytest.param(1, 50257, id="gpt2"),
    pytest.param(1, 131072, id="full-vocabulary"),
]


def normal_logits(rows: int, vocab: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, vocab, generator=generator)).to(dtype).to(device)


def triton_statistics(logits: Tensor, **options) -> Confidence:
    with forced_backend("triton"):
        return confidence(logits, entropy=True, margin=True, **options)


def assert_matches_reference(
    actual: Confidence, logits: Tensor, tokens: Tensor | None = None, banned: Tensor | None = None
) -> None:
    mask_id = -1 if tokens is None else MASK
    with forced_backend("torch"):
        same_dtype = confidence(
            logits,
            tokens=tokens,
            mask_id=None if tokens is None else MASK,
            banned=banned,
            entropy=True,
            margin=True,
        )
    exact = reference.confidence(logits.double(), tokens, mask_id, banned, True, True, None)
    assert actual.token.tolist() == exact[0].tolist()
    for name, ours, torchs, truth in zip(
        Confidence._fields[1:], actual[1:], same_dtype[1:], exact[1:], strict=True
    ):
        # The statistics are float32 sums: a few units in the last place of the largest.
        finite = truth[truth.isfinite()].abs()
        largest = max(1.0, float(finite.max()) if len(finite) else 0.0)
        assert_close_to_reference(ours, torchs, truth, floor=5e-7 * largest, what=name)


@pytest.mark.parametrize(("rows", "vocab"), VOCABULARIES)
def test_matches_the_reference(
    rows: int, vocab: int, dtype: torch.dtype, triton_device: str
) -> None:
    logits = normal_logits(rows, vocab, dtype, triton_device)
    with unchanged(logits=logits):
        actual = triton_statistics(logits)
    assert_matches_reference(actual, logits)


@pytest.mark.parametrize("vocab", [67, 17000])
def test_entropy_and_margin_change_nothing_else(
    vocab: int, dtype: torch.dtype, triton_device: str
) -> None:
    logits = normal_logits(1, vocab, dtype, triton_device)
    full = triton_statistics(logits)
    with forced_backend("triton"):
        plain = confidence(logits)
        with_entropy = confidence(logits, entropy=True)
        with_margin = confidence(logits, margin=True)
    assert plain.entropy is plain.margin is with_entropy.margin is with_margin.entropy is None
    for part in (plain, with_entropy, with_margin):
        for name, ours, theirs in zip(Confidence._fields, part, full, strict=True):
            if ours is not None:
                assert_same_bits(ours, theirs, name)


@pytest.mark.parametrize("first_column", [0, 8, 5], ids=["aligned", "16-bytes-in", "unaligned"])
def test_rows_may_lie_apart(first_column: int, dtype: torch.dtype, triton_device: str) -> None:
    # NaN between the rows: one logit read from there spoils the row.
    buffer = torch.full((8, 1200), float("nan"), dtype=dtype, device=triton_device)
    logits = buffer[1:7:2, first_column : first_column + 1025]
    logits.copy_(normal_logits(3, 1025, dtype, triton_device))
    with unchanged(buffer=buffer):
        actual = triton_statistics(logits)
    assert_matches_reference(actual, logits)


def test_all_rows_may_be_one(triton_device: str) -> None:
    row = normal_logits(1, 300, torch.float32, triton_device)
    actual = triton_statistics(row.expand(5, 300))
    assert_matches_reference(actual, row.expand(5, 300))


def test_no_rows(backend: str, op_device: str) -> None:
    error = torch.zeros(1, dtype=torch.int32, device=op_device)
    empty = torch.empty(0, 100, device=op_device)
    result = confidence(empty, entropy=True, margin=True, error=error)
    assert [tuple(x.shape) for x in result] == [(0,)] * 5
    assert result.token.dtype == torch.int32
    assert all(x.dtype == torch.float32 for x in result[1:])
    assert not error.item()


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_skipped_rows_are_zero_and_others_as_if_alone(
    token_dtype: torch.dtype, dtype: torch.dtype, triton_device: str
) -> None:
    logits = normal_logits(5, 17000, dtype, triton_device)
    tokens = torch.tensor([MASK, 0, MASK, MASK + 1, MASK], dtype=token_dtype, device=triton_device)
    actual = triton_statistics(logits, tokens=tokens, mask_id=MASK)
    assert_matches_reference(actual, logits, tokens)
    assert actual.token[[1, 3]].tolist() == [-1, -1]
    for statistic in actual[1:]:
        assert statistic[[1, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4], ids=["flat", "peaked", "1e4"])
def test_extreme_scales(scale: float, dtype: torch.dtype, triton_device: str) -> None:
    logits = normal_logits(2, 5000, torch.float32, triton_device).clamp(-2, 2) / 2 * scale
    logits = logits.to(dtype)
    assert_matches_reference(triton_statistics(logits), logits)


# --- bits


@pytest.mark.parametrize(
    ("rows", "vocab"), [(40, 4096), (9, 5003), (4, 33000)], ids=["40-rows", "odd", "three-chunks"]
)
def test_bits_of_a_row_do_not_depend_on_other_rows(
    rows: int, vocab: int, dtype: torch.dtype, triton_device: str
) -> None:
    logits = normal_logits(rows, vocab, dtype, triton_device)
    together = triton_statistics(logits)

    # The last row first, among skipped rows, NaN and infinities.
    order = torch.tensor([rows - 1, 0, 1, 2], device=triton_device)
    hostile = logits[order].clone()
    hostile[2], hostile[3] = float("nan"), float("inf")
    tokens = torch.tensor([MASK, MASK + 1, MASK, MASK], device=triton_device)
    elsewhere = triton_statistics(hostile, tokens=tokens, mask_id=MASK)
    for name, ours, theirs in zip(Confidence._fields, elsewhere, together, strict=True):
        assert_same_bits(ours[:1], theirs[-1:], f"{name} of the last row, elsewhere")

    for row in (0, rows - 1):
        for kind, single in (("view", logits[row : row + 1]), ("copy", logits[row, None].clone())):
            for name, ours, theirs in zip(
                Confidence._fields, triton_statistics(single), together, strict=True
            ):
                assert_same_bits(ours, theirs[row, None], f"{name} of row {row} alone, a {kind}")


def test_the_same_call_gives_the_same_bits(dtype: torch.dtype, triton_device: str) -> None:
    logits = normal_logits(2, 20000, dtype, triton_device)
    first, second = triton_statistics(logits), triton_statistics(logits)
    for name, ours, theirs in zip(Confidence._fields, first, second, strict=True):
        assert_same_bits(ours, theirs, name)
