"""confidence on rows that are not ordinary: NaN, infinities, ties, bans; all three backends."""

import math
from typing import NamedTuple

import pytest
import torch
from numeric import assert_close_to_reference, forced_backend
from torch import Tensor

from dlm_kernels import Confidence, confidence, new_error_word, reference
from dlm_kernels.error_word import ID_OUT_OF_RANGE, NAN_LOGITS

INF, NAN = math.inf, math.nan
MASK = 9
# Two chunks of 16384, the second a partial tile.
VOCAB = 17000
LAST = VOCAB - 1
FLOAT16_LOWEST = torch.finfo(torch.float16).min


class Row(NamedTuple):
    """A row of `fill` with other values at some ids, and what must come of it."""

    name: str
    fill: float
    values: dict[int, float]
    token: int
    probability: float
    logsumexp: float
    entropy: float
    margin: float
    banned: tuple[int, ...] = ()
    skipped: bool = False
    error: int = 0
    vocab: int = VOCAB


def invalid(name: str, fill: float, values: dict[int, float], **rest) -> Row:
    return Row(name, fill, values, -1, NAN, NAN, NAN, NAN, **rest)


def certain(name: str, fill: float, values: dict[int, float], token: int, **rest) -> Row:
    return Row(name, fill, values, token, 1.0, INF, 0.0, 1.0, **rest)


def skipped(name: str, fill: float, values: dict[int, float]) -> Row:
    return Row(name, fill, values, -1, 0.0, 0.0, 0.0, 0.0, skipped=True)


def settled(name: str, fill: float, values: dict[int, float], token: int, **rest) -> Row:
    """All probability lies on one id."""
    return Row(name, fill, values, token, 1.0, values[token], 0.0, 1.0, **rest)


def uniform(name: str, fill: float, **rest) -> Row:
    vocab = rest.get("vocab", VOCAB)
    p = 1 / vocab
    lse = fill + math.log(vocab)
    return Row(name, fill, {}, 0, p, lse, math.log(vocab), 0.0 if vocab > 1 else p, **rest)


ROWS = [
    # A row with NaN: token -1, statistics NaN, the error word set.
    invalid("nan-first", 0.0, {0: NAN}, error=NAN_LOGITS),
    invalid("nan-in-the-first-chunk", 0.0, {9000: NAN}, error=NAN_LOGITS),
    invalid("nan-last", 0.0, {LAST: NAN}, error=NAN_LOGITS),
    invalid("nan-everywhere", NAN, {}, error=NAN_LOGITS),
    invalid("nan-after-the-maximum", 0.0, {5: 50.0, 6: NAN}, error=NAN_LOGITS),
    invalid("nan-beside-minus-inf", -INF, {5: NAN}, error=NAN_LOGITS),
    invalid("nan-and-plus-inf-in-one-chunk", 0.0, {5: NAN, 900: INF}, error=NAN_LOGITS),
    invalid("nan-and-plus-inf-in-two-chunks", 0.0, {5: INF, LAST: NAN}, error=NAN_LOGITS),
    invalid("nan-at-a-banned-id", 0.0, {5: NAN}, banned=(5,), error=NAN_LOGITS),
    # A row all -inf, or with +inf: token -1 and NaN; the id and probability 1 if exactly one.
    invalid("all-minus-inf", -INF, {}),
    invalid("all-minus-inf-and-one-id", -INF, {}, vocab=1),
    invalid("two-plus-inf-in-one-vector", 0.0, {8: INF, 9: INF}),
    invalid("two-plus-inf-in-two-tiles", 0.0, {8: INF, 9000: INF}),
    invalid("two-plus-inf-in-two-chunks", 0.0, {8: INF, LAST: INF}),
    invalid("plus-inf-everywhere", INF, {}),
    invalid("plus-inf-at-a-banned-id", 0.0, {8: INF}, banned=(8,)),
    invalid("plus-inf-at-a-banned-id-and-another", 0.0, {8: INF, 70: INF}, banned=(8,)),
    certain("one-plus-inf-first", 0.0, {0: INF}, 0),
    certain("one-plus-inf-last", 0.0, {LAST: INF}, LAST),
    certain("one-plus-inf-among-minus-inf", -INF, {9000: INF}, 9000),
    certain("one-plus-inf-beside-a-ban", 0.0, {8: INF}, 8, banned=(7, 9)),
    certain("one-plus-inf-and-one-id", INF, {}, 0, vocab=1),
    # A skipped row: token -1, statistics 0, whatever is in it.
    skipped("skipped", 0.0, {5: 1.0}),
    skipped("skipped-with-nan", 0.0, {5: NAN}),
    skipped("skipped-with-two-plus-inf", 0.0, {5: INF, 6: INF}),
    skipped("skipped-all-minus-inf", -INF, {}),
    # Hidden and far apart logits.
    settled("minus-inf-but-one-first", -INF, {0: 2.5}, 0),
    settled("minus-inf-but-one-in-the-second-chunk", -INF, {16384: -7.0}, 16384),
    settled("minus-inf-but-one-last", -INF, {LAST: 1e4}, LAST),
    settled("lowest-float16-but-one", FLOAT16_LOWEST, {7: 1.0}, 7),
    settled("lowest-float16-but-one-in-the-second-chunk", FLOAT16_LOWEST, {LAST: 1.0}, LAST),
    settled("minus-1e4-but-one-of-1e4", -1e4, {12345: 1e4}, 12345),
    uniform("all-equal", 0.5),
    uniform("all-1e4", 1e4),
    uniform("all-minus-1e4", -1e4),
    uniform("all-lowest-float16", FLOAT16_LOWEST),
    uniform("one-id", -3.0, vocab=1),
    uniform("two-equal-ids", 4.0, vocab=2),
    # Nothing left to choose.
    invalid("every-id-banned", 0.0, {}, banned=(0, 1, 2), vocab=3),
    invalid("every-finite-id-banned", -INF, {5: 1.0, LAST: 2.0}, banned=(5, LAST)),
]


def expand(row: Row, dtype: torch.dtype, device: str) -> Tensor:
    x = torch.full((row.vocab,), row.fill, dtype=dtype, device=device)
    for position, value in row.values.items():
        x[position] = value
    return x


def assert_row(row: Row, result: Confidence, at: int, tolerance: float = 1e-6) -> None:
    assert result.token[at].item() == row.token
    for name in Confidence._fields[1:]:
        actual, expected = getattr(result, name)[at].item(), getattr(row, name)
        close = pytest.approx(expected, rel=tolerance, abs=tolerance / 10, nan_ok=True)
        assert actual == close, f"{name} of {row.name}"


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
    row = settled("lowest-but-one", lowest, {position: 1.0}, position)
    with forced_backend("triton"):
        result = confidence(
            expand(row, lowest_dtype, triton_device)[None], entropy=True, margin=True
        )
        assert_row(row, result, 0)
        row = settled("lowest-and-highest", lowest, {position: -lowest}, position)
        result = confidence(
            expand(row, lowest_dtype, triton_device)[None], entropy=True, margin=True
        )
        assert_row(row, result, 0)


def test_a_row_all_lowest_float32_is_uniform(triton_device: str) -> None:
    lowest = torch.finfo(torch.float32).min
    row = uniform("all-lowest", lowest)._replace(logsumexp=lowest)
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
