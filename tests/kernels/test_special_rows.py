"""Rows of logits that are not ordinary: NaN, infinities, ties, bans.

For `confidence`, and for the LM head whole and in shards, which gets a row of logits as the head of
one feature.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from numeric import assert_all_same_bits
from torch import Tensor

from dlm_kernels import (
    Confidence,
    confidence,
    lm_head_confidence,
    lm_head_partials,
    merge_partials,
    new_error_word,
)
from dlm_kernels.backend import forced_backend
from dlm_kernels.error_word import ID_OUT_OF_RANGE, NAN_LOGITS

MASK = 9
INF, NAN = math.inf, math.nan
FLOAT16_LOWEST, FLOAT32_LOWEST = (torch.finfo(x).min for x in (torch.float16, torch.float32))
BOTH = {"entropy": True, "margin": True}


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
    vocab: int | None = None  # the form's if None


def invalid(name: str, fill: float, values: dict[int, float], **rest) -> Row:
    return Row(name, fill, values, -1, NAN, NAN, NAN, NAN, **rest)


def certain(name: str, fill: float, values: dict[int, float], token: int, **rest) -> Row:
    return Row(name, fill, values, token, 1.0, INF, 0.0, 1.0, **rest)


def skipped(name: str, fill: float, values: dict[int, float]) -> Row:
    return Row(name, fill, values, -1, 0.0, 0.0, 0.0, 0.0, skipped=True)


def settled(name: str, fill: float, values: dict[int, float], token: int, **rest) -> Row:
    """All probability lies on one id."""
    return Row(name, fill, values, token, 1.0, values[token], 0.0, 1.0, **rest)


def uniform(name: str, fill: float, vocab: int) -> Row:
    entropy = math.log(vocab)
    p, margin = 1 / vocab, 0.0 if vocab > 1 else 1.0
    # Beside the lowest float32 the logarithm is less than a unit in the last place.
    return Row(name, fill, {}, 0, p, fill + entropy, entropy, margin, vocab=vocab)


def of_one_row(logits: Tensor, **options) -> Confidence:
    return confidence(logits[None], **options)


def of_head(logits: Tensor, **options) -> Confidence:
    return lm_head_confidence(torch.ones_like(logits[:1, None]), logits[:, None], **options)


def of_shards(logits: Tensor, error: Tensor | None = None, **options) -> Confidence:
    hidden, weight = torch.ones_like(logits[:1, None]), logits[:, None]
    shards = [
        lm_head_partials(hidden, weight[first:last], first_id=first, **options)
        for first, last in ((0, HEAD_CHUNK), (HEAD_CHUNK, len(logits)))
        if first < len(logits)
    ]
    options = {name: value for name, value in options.items() if name not in BOTH}
    return merge_partials(shards, error=error, **options)


class Form(NamedTuple):
    """A call on one row of logits [vocab], and where a row is interesting to it.

    far: an id of the first chunk, more than a tile behind id 9; chunk: the second chunk's first id;
    the last chunk ends with a partial tile. ties: ids that tie, one tuple a case.
    """

    call: Callable[..., Confidence]
    vocab: int
    far: int
    chunk: int
    ties: list[tuple[int, ...]]


# Of the small launch tables: tiles of 256 float32 or 512 half logits in chunks of 512, and of the
# head tiles of 64 in chunks of 128.
HEAD_CHUNK = 128
CONFIDENCE_TIES = [
    (4, 5),  # in one vector
    (3, 8),  # in two lanes
    (10, 138),  # in one float32 lane of a tile
    (20, 276),  # in one half lane of a tile, and in two float32 tiles
    (5, 261),  # in one float32 lane of two tiles
    (253, 257),  # a high lane before a low lane
    (511, 512),  # across a chunk
    (800, 811),  # in the partial tile
    (2, 300, 515, 770),
]
HEAD_TIES = [(4, 5), (7, 60), (63, 64), (127, 128), (70, 130, 200), (257, 299), (0, 100, 290)]
FORMS = {
    "confidence": Form(of_one_row, 812, 400, 512, CONFIDENCE_TIES),
    "head": Form(of_head, 300, 100, HEAD_CHUNK, HEAD_TIES),
    "shards": Form(of_shards, 300, 100, HEAD_CHUNK, HEAD_TIES),
}


def special_rows(vocab: int, far: int, chunk: int) -> list[Row]:
    last = vocab - 1
    rows = [
        # A row with NaN: token -1, statistics NaN, the error word set.
        invalid("nan-first", 0.0, {0: NAN}, error=NAN_LOGITS),
        invalid("nan-in-the-first-chunk", 0.0, {far: NAN}, error=NAN_LOGITS),
        invalid("nan-last", 0.0, {last: NAN}, error=NAN_LOGITS),
        invalid("nan-everywhere", NAN, {}, error=NAN_LOGITS),
        invalid("nan-after-the-maximum", 0.0, {5: 50.0, 6: NAN}, error=NAN_LOGITS),
        invalid("nan-beside-minus-inf", -INF, {5: NAN}, error=NAN_LOGITS),
        invalid("nan-and-plus-inf-in-one-chunk", 0.0, {5: NAN, far: INF}, error=NAN_LOGITS),
        invalid("nan-and-plus-inf-in-two-chunks", 0.0, {5: INF, last: NAN}, error=NAN_LOGITS),
        invalid("nan-at-a-banned-id", 0.0, {5: NAN}, banned=(5,), error=NAN_LOGITS),
        # A row all -inf, or with +inf: token -1 and NaN; the id and probability 1 if exactly one.
        invalid("all-minus-inf", -INF, {}),
        invalid("all-minus-inf-and-one-id", -INF, {}, vocab=1),
        invalid("two-plus-inf-in-one-vector", 0.0, {8: INF, 9: INF}),
        invalid("two-plus-inf-in-two-tiles", 0.0, {8: INF, far: INF}),
        invalid("two-plus-inf-in-two-chunks", 0.0, {8: INF, last: INF}),
        invalid("plus-inf-everywhere", INF, {}),
        invalid("plus-inf-at-a-banned-id", 0.0, {8: INF}, banned=(8,)),
        invalid("plus-inf-at-a-banned-id-and-another", 0.0, {8: INF, 70: INF}, banned=(8,)),
        certain("one-plus-inf-first", 0.0, {0: INF}, 0),
        certain("one-plus-inf-last", 0.0, {last: INF}, last),
        certain("one-plus-inf-among-minus-inf", -INF, {far: INF}, far),
        certain("one-plus-inf-beside-a-ban", 0.0, {8: INF}, 8, banned=(7, 9)),
        certain("one-plus-inf-and-one-id", INF, {}, 0, vocab=1),
        # A skipped row: token -1, statistics 0, whatever is in it.
        skipped("skipped", 0.0, {5: 1.0}),
        skipped("skipped-with-nan", 0.0, {5: NAN}),
        skipped("skipped-with-two-plus-inf", 0.0, {5: INF, 6: INF}),
        skipped("skipped-all-minus-inf", -INF, {}),
        # Hidden and far apart logits.
        settled("minus-inf-but-one-first", -INF, {0: 2.5}, 0),
        settled("minus-inf-but-one-in-the-second-chunk", -INF, {chunk: -7.0}, chunk),
        settled("minus-inf-but-one-last", -INF, {last: 1e4}, last),
        settled("lowest-float16-but-one", FLOAT16_LOWEST, {7: 1.0}, 7),
        settled("lowest-float16-but-one-in-the-second-chunk", FLOAT16_LOWEST, {last: 1.0}, last),
        settled("minus-1e4-but-one-of-1e4", -1e4, {far: 1e4}, far),
        uniform("all-equal", 0.5, vocab),
        uniform("all-1e4", 1e4, vocab),
        uniform("all-minus-1e4", -1e4, vocab),
        uniform("all-lowest-float16", FLOAT16_LOWEST, vocab),
        uniform("one-id", -3.0, 1),
        uniform("two-equal-ids", 4.0, 2),
        # Nothing left to choose.
        invalid("every-id-banned", 0.0, {}, banned=(0, 1, 2), vocab=3),
        invalid("every-finite-id-banned", -INF, {5: 1.0, last: 2.0}, banned=(5, last)),
    ]
    return [row if row.vocab else row._replace(vocab=vocab) for row in rows]


def lowest_rows(vocab: int, far: int) -> list[Row]:
    """finfo.min stands for -inf in many engines; its distance to a real logit overflows."""
    rows = [uniform("all-lowest-float32", FLOAT32_LOWEST, vocab)]
    for place in (0, far, vocab - 1):
        for value in (1.0, -FLOAT32_LOWEST):
            name = f"lowest-float32-but-{value:.0e}-at-{place}"
            rows.append(settled(name, FLOAT32_LOWEST, {place: value}, place, vocab=vocab))
    return rows


@pytest.fixture(
    params=[
        ("triton", torch.float32),
        ("triton", torch.float16),
        pytest.param(("triton", torch.bfloat16), marks=pytest.mark.gpu),
        ("torch", torch.float32),
    ],
    ids=lambda where: f"{where[0]}-{str(where[1])[6:]}",
)
def where(request: pytest.FixtureRequest) -> Iterator[tuple[str, torch.dtype]]:
    """Device and dtype of the logits; sets the backend."""
    backend, dtype = request.param
    device = request.getfixturevalue("triton_device" if backend == "triton" else "device")
    with forced_backend(backend):
        yield device, dtype


each_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
each_form_with_ties = pytest.mark.parametrize(
    ("form", "ids"),
    [
        pytest.param(form, ids, id=f"{name}-{'-'.join(map(str, ids))}")
        for name, form in FORMS.items()
        for ids in form.ties
    ],
)


@pytest.mark.parametrize(
    ("form", "row"),
    [
        pytest.param(form, row, id=f"{name}-{row.name}")
        for name, form in FORMS.items()
        for row in [*special_rows(*form[1:4]), *lowest_rows(form.vocab, form.far)]
    ],
)
def test_special_row(form: Form, row: Row, where: tuple[str, torch.dtype]) -> None:
    device, dtype = where
    if "float32" in row.name and dtype == torch.float16:
        return
    logits = torch.full((row.vocab,), row.fill, dtype=dtype, device=device)
    for place, value in row.values.items():
        logits[place] = value
    # Bits that are set stay.
    error = new_error_word(device) + 64
    result = form.call(
        logits,
        tokens=torch.tensor([0 if row.skipped else MASK], device=device),
        mask_id=MASK,
        banned=torch.tensor(row.banned, dtype=torch.int32, device=device) if row.banned else None,
        error=error,
        **BOTH,
    )
    assert result.token.item() == row.token
    for name in Confidence._fields[1:]:
        close = pytest.approx(getattr(row, name), rel=1e-6, abs=1e-7, nan_ok=True)
        assert getattr(result, name).item() == close, name
    assert error.item() == 64 | row.error


@each_form
def test_without_an_error_word_nan_is_no_fault(form: Form, where: tuple[str, torch.dtype]) -> None:
    device, dtype = where
    logits = torch.zeros(10, dtype=dtype, device=device)
    logits[3] = NAN
    result = form.call(logits)
    assert result.token.item() == -1 and result.probability.isnan().all()


@each_form
def test_entropy_and_margin_change_nothing_else(form: Form, where: tuple[str, torch.dtype]) -> None:
    device, dtype = where
    logits = torch.randn(form.vocab, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    full = form.call(logits, **BOTH)
    for entropy, margin in ((False, False), (True, False), (False, True)):
        part = form.call(logits, entropy=entropy, margin=margin)
        expected = *full[:3], full.entropy if entropy else None, full.margin if margin else None
        assert_all_same_bits(part, expected)


# --- ties and runners-up


@each_form_with_ties
def test_ties_go_to_the_lowest_id(
    form: Form, ids: tuple[int, ...], where: tuple[str, torch.dtype]
) -> None:
    device, dtype = where
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(form.vocab, generator=generator).clamp(-3, 3).to(device, dtype)
    logits[list(ids)] = 4.0
    result = form.call(logits, margin=True)
    assert (result.token.item(), result.margin.item()) == (ids[0], 0.0)
    # Banning the winners one after another walks through the others.
    for n in range(1, len(ids)):
        bans = torch.tensor(ids[:n], dtype=torch.int32, device=device)
        assert form.call(logits, banned=bans).token.item() == ids[n]


@each_form
@pytest.mark.parametrize("zeros", [(-0.0, 0.0), (0.0, -0.0)], ids=["minus-first", "plus-first"])
def test_zeros_of_either_sign_are_equal(
    form: Form, zeros: tuple[float, float], where: tuple[str, torch.dtype]
) -> None:
    device, dtype = where
    for second in (50, form.vocab - 7):
        logits = torch.full((form.vocab,), -1.0, dtype=dtype, device=device)
        logits[40], logits[second] = zeros
        result = form.call(logits, margin=True)
        assert (result.token.item(), result.margin.item()) == (40, 0.0)


@each_form_with_ties
def test_margin_finds_the_runner_up_wherever_it_is(
    form: Form, ids: tuple[int, ...], where: tuple[str, torch.dtype]
) -> None:
    device, dtype = where
    for first, second in ((ids[0], ids[1]), (ids[1], ids[0])):
        logits = torch.full((form.vocab,), -8.0, dtype=dtype, device=device)
        logits[first], logits[second] = 5.0, 4.5
        result = form.call(logits, margin=True)
        total = math.exp(5.0) + math.exp(4.5) + (form.vocab - 2) * math.exp(-8.0)
        margin = (math.exp(5.0) - math.exp(4.5)) / total
        assert result.token.item() == first
        assert result.margin.item() == pytest.approx(margin, rel=1e-5)


# --- bans


@each_form
def test_bans_at_the_ends_of_chunks_are_seen(form: Form, where: tuple[str, torch.dtype]) -> None:
    device, dtype = where
    # After another, alone, as one of the most that there may be, and twice.
    for best, *others in (
        (0, 3),
        (form.chunk - 1,),
        (form.chunk, *range(10, 25)),
        (form.vocab - 1, form.vocab - 1),
    ):
        logits = torch.zeros(form.vocab, dtype=dtype, device=device)
        logits[[77, best]] = torch.tensor([5.0, 9.0], dtype=dtype, device=device)
        bans = torch.tensor([*others, best], dtype=torch.int32, device=device)
        result = form.call(logits, banned=bans, margin=True)
        total = form.vocab - 2 + math.exp(5.0) + math.exp(9.0)
        assert result.token.item() == 77
        assert result.margin.item() == pytest.approx((math.exp(5.0) - 1) / total, rel=1e-4)
        assert result.logsumexp.item() == pytest.approx(math.log(total))
        assert form.call(logits).token.item() == best


@each_form
def test_a_ban_outside_the_vocabulary_sets_the_error_word(
    form: Form, where: tuple[str, torch.dtype]
) -> None:
    """It is the call's fault, not a row's. An id of another shard is none."""
    device, dtype = where
    logits = torch.zeros(form.vocab, dtype=dtype, device=device)
    logits[4], logits[9] = 2.0, 1.0
    for outside, token in (
        (-1, 0), (form.vocab, MASK), (2**31 - 1, 0), (-(2**31), MASK), (form.vocab - 1, MASK),
    ):  # fmt: skip
        error = new_error_word(device)
        banned = torch.tensor([4, outside], dtype=torch.int32, device=device)
        tokens = torch.tensor([token], device=device)
        result = form.call(logits, banned=banned, error=error, tokens=tokens, mask_id=MASK)
        assert result.token.item() == (9 if token == MASK else -1)
        assert error.item() == (0 if outside == form.vocab - 1 else ID_OUT_OF_RANGE)
