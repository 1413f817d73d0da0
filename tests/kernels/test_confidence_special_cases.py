"""confidence on rows that are not ordinary: NaN, infinities, ties, bans; all three backends."""

import math

import pytest
import torch
from numeric import assert_close_to_reference, forced_backend
from special_rows import Row, assert_row, expand, settled, special_rows, uniform

from dlm_kernels import Confidence, confidence, new_error_word, reference
from dlm_kernels.error_word import ID_OUT_OF_RANGE, NAN_LOGITS

NAN = math.nan
MASK = 9
# Two chunks of 16384, the second a partial tile.
VOCAB = 17000
LAST = VOCAB - 1


ROWS = special_rows(VOCAB, far=9000, chunk=16384)


def check_special_row(row: Row, dtype: torch.dtype, device: str, tolerance: float) -> None:
    """An all-equal row beside the special one must not notice."""
    special = expand(row, dtype, device)
    logits = torch.stack([special, torch.zeros_like(special)])
    tokens = torch.tensor([0 if row.skipped else MASK, MASK], device=device)
    banned = torch.tensor(row.banned, dtype=torch.int32, device=device) if row.banned else None
    error = new_error_word(device)
    result = confidence(
        logits,
        tokens=tokens,
        mask_id=MASK,
        banned=banned,
        entropy=True,
        margin=True,
        error=error,
    )
    assert_row(row, result, 0, tolerance)
    if len(row.banned) < row.vocab:
        assert_row(uniform("neighbour", 0.0, vocab=row.vocab), result, 1)
    assert error.item() == row.error


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_special_row(row: Row, backend: str, op_device: str) -> None:
    check_special_row(row, torch.float32, op_device, tolerance=1e-6)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_special_row_in_half_precision(row: Row, triton_device: str) -> None:
    with forced_backend("triton"):
        check_special_row(row, torch.float16, triton_device, tolerance=1e-6)


def test_without_an_error_word_nan_is_no_fault(backend: str, op_device: str) -> None:
    result = confidence(torch.full((2, 10), NAN, device=op_device))
    assert result.token.tolist() == [-1, -1]
    assert result.probability.isnan().all()


def test_error_bits_already_set_stay(backend: str, op_device: str) -> None:
    error = new_error_word(op_device) + 64
    confidence(torch.full((2, 10), NAN, device=op_device), error=error)
    assert error.item() == 64 | NAN_LOGITS


@pytest.mark.parametrize("position", [0, 9000, LAST])
@pytest.mark.parametrize(
    "lowest_dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
    ids=["fp32", "bf16"],
)
def test_lowest_value_of_the_dtype_as_hidden_logit(
    position: int, lowest_dtype: torch.dtype, triton_device: str
) -> None:
    """finfo.min stands for -inf in many engines; its distance to a real logit overflows."""
    lowest = torch.finfo(lowest_dtype).min
    row = settled("lowest-but-one", lowest, {position: 1.0}, position, vocab=VOCAB)
    with forced_backend("triton"):
        result = confidence(
            expand(row, lowest_dtype, triton_device)[None], entropy=True, margin=True
        )
        assert_row(row, result, 0)
        values = {position: -lowest}
        row = settled("lowest-and-highest", lowest, values, position, vocab=VOCAB)
        result = confidence(
            expand(row, lowest_dtype, triton_device)[None], entropy=True, margin=True
        )
        assert_row(row, result, 0)


def test_a_row_all_lowest_float32_is_uniform(triton_device: str) -> None:
    lowest = torch.finfo(torch.float32).min
    row = uniform("all-lowest", lowest, vocab=VOCAB)._replace(logsumexp=lowest)
    with forced_backend("triton"):
        logits = expand(row, torch.float32, triton_device)[None]
        assert_row(row, confidence(logits, entropy=True, margin=True), 0)


# --- ties


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param((4, 5), id="in-one-vector"),
        pytest.param((3, 8), id="in-two-lanes"),
        pytest.param((7, 900), id="in-distant-lanes"),
        pytest.param((10, 522), id="in-one-float32-lane-of-a-tile"),
        pytest.param((20, 1044), id="in-one-half-lane-of-a-tile"),
        pytest.param((5, 4101), id="in-one-lane-of-two-tiles"),
        pytest.param((4090, 4097), id="a-high-lane-before-a-low-lane"),
        pytest.param((4097, 8000), id="both-past-the-first-tile"),
        pytest.param((100, 16384 + 3), id="in-two-chunks"),
        pytest.param((16383, 16384), id="across-a-chunk-boundary"),
        pytest.param((16500, LAST), id="in-the-partial-tile"),
        pytest.param((2, 900, 5000, 16400), id="everywhere"),
    ],
)
def test_ties_go_to_the_lowest_id(
    ids: tuple[int, ...], dtype: torch.dtype, triton_device: str
) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    logits[0, list(ids)] = 4.0
    logits = logits.to(dtype).to(triton_device)
    with forced_backend("triton"):
        result = confidence(logits, margin=True)
        assert result.token.item() == ids[0]
        assert result.margin.item() == 0.0
        # Banning the winners one after another walks through the others.
        for n in range(1, len(ids)):
            bans = torch.tensor(ids[:n], dtype=torch.int32, device=triton_device)
            assert confidence(logits, banned=bans).token.item() == ids[n]


@pytest.mark.parametrize("zeros", [(-0.0, 0.0), (0.0, -0.0)], ids=["minus-first", "plus-first"])
def test_zeros_of_either_sign_are_equal(
    zeros: tuple[float, float], backend: str, op_device: str
) -> None:
    logits = torch.full((1, 100), -1.0, device=op_device)
    logits[0, 40], logits[0, 90] = zeros
    result = confidence(logits, margin=True)
    assert result.token.item() == 40
    assert result.margin.item() == 0.0


@pytest.mark.parametrize("gap", [1, 3, 2047, 5000, 16384], ids=lambda gap: f"{gap}-ids-on")
def test_margin_finds_the_runner_up_wherever_it_is(
    gap: int, dtype: torch.dtype, triton_device: str
) -> None:
    for first, second in ((600, 600 + gap), (600 + gap, 600)):
        logits = torch.full((1, VOCAB), -8.0, dtype=dtype, device=triton_device)
        logits[0, first], logits[0, second] = 5.0, 4.5
        with forced_backend("triton"):
            result = confidence(logits, margin=True)
        exact = reference.confidence(logits.double(), None, -1, None, False, True, None)
        assert result.token.item() == first
        assert result.margin.item() == pytest.approx(exact[4].item(), rel=1e-5)


# --- bans


@pytest.mark.parametrize("best", [0, 16383, 16384, LAST])
def test_ban_at_the_end_of_a_chunk_is_seen(
    best: int, dtype: torch.dtype, triton_device: str
) -> None:
    logits = torch.zeros(1, VOCAB, dtype=dtype, device=triton_device)
    logits[0, [77, best]] = torch.tensor([5.0, 9.0], dtype=dtype, device=triton_device)
    banned = torch.tensor([best], dtype=torch.int32, device=triton_device)
    with forced_backend("triton"):
        assert confidence(logits).token.item() == best
        assert confidence(logits, banned=banned).token.item() == 77


@pytest.mark.parametrize(
    "bans",
    [
        pytest.param([], id="none"),
        pytest.param([7000], id="the-argmax"),
        pytest.param([7000, 16400, 3], id="the-three-best"),
        pytest.param([5], id="another"),
        pytest.param([7000, 7000, 7000], id="one-three-times"),
        pytest.param([0, 16383, 16384, LAST], id="ends-of-the-chunks"),
        pytest.param([7000, *range(16380, 16395)], id="sixteen-round-a-chunk-boundary"),
    ],
)
def test_banned_ids_are_not_chosen_but_stay_in_the_sums(
    bans: list[int], dtype: torch.dtype, triton_device: str
) -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    logits[:, [7000, 16400, 3]] = torch.tensor([9.0, 8.0, 7.0])
    logits = logits.to(dtype).to(triton_device)
    banned = torch.tensor(bans, dtype=torch.int32, device=triton_device)
    with forced_backend("triton"):
        result = confidence(logits, banned=banned, entropy=True, margin=True)
        free = confidence(logits, entropy=True)
    with forced_backend("torch"):
        same_dtype = confidence(logits, banned=banned, entropy=True, margin=True)
    exact = reference.confidence(logits.double(), None, -1, banned, True, True, None)
    assert result.token.tolist() == exact[0].tolist()
    assert not set(result.token.tolist()) & set(bans)
    for name, ours, torchs, truth in zip(
        Confidence._fields[1:], result[1:], same_dtype[1:], exact[1:], strict=True
    ):
        assert_close_to_reference(ours, torchs, truth, floor=1e-5, what=name)
    torch.testing.assert_close(result.logsumexp, free.logsumexp)
    torch.testing.assert_close(result.entropy, free.entropy)


@pytest.mark.parametrize("outside", [-1, 10, 2**31 - 1, -(2**31)])
def test_a_ban_outside_the_vocabulary_sets_the_error_word(
    outside: int, backend: str, op_device: str
) -> None:
    logits = torch.zeros(3, 10, device=op_device)
    logits[:, 4], logits[:, 9] = 2.0, 1.0
    error = new_error_word(op_device)
    # The first row is skipped: the fault is the call's, not a row's.
    tokens = torch.tensor([0, MASK, MASK], device=op_device)
    banned = torch.tensor([4, outside], dtype=torch.int32, device=op_device)
    result = confidence(logits, tokens=tokens, mask_id=MASK, banned=banned, error=error)
    assert result.token.tolist() == [-1, 9, 9]
    assert error.item() == ID_OUT_OF_RANGE
    assert confidence(logits, banned=banned).token.tolist() == [9, 9, 9]
