"""lm_head_confidence: the statistics of `confidence` from hidden states, whole or in shards."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from numeric import (
    Guarded,
    assert_close_to_reference,
    assert_same_bits,
    forced_backend,
    unchanged,
)
from special_rows import Row, assert_row, expand, special_rows
from torch import Tensor

from dlm_kernels import (
    Confidence,
    confidence,
    launch,
    linear,
    lm_head_confidence,
    lm_head_partials,
    merge_partials,
    new_error_word,
    reference,
    torch_backend,
)
from dlm_kernels.error_word import ID_OUT_OF_RANGE, NAN_LOGITS

head_module = importlib.import_module("dlm_kernels.lm_head_confidence")

MASK = 9
BOTH = {"entropy": True, "margin": True}
# A tile holds 64 ids in float32 and 128 in half, 32 or 64 features; a chunk 512 ids.
CHUNK = 512
SHAPES = [
    pytest.param(1, 1, 1, id="one-of-each"),
    pytest.param(1, 48, 67, id="one-row"),
    pytest.param(31, 33, 130, id="31-rows-odd-sizes"),
    pytest.param(33, 100, 515, id="33-rows-two-chunks"),
    pytest.param(32, 64, 512, id="whole-tiles"),
    pytest.param(3, 192, 1100, id="three-chunks"),
]


def inputs(
    rows: int, features: int, vocab: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Hidden states and head with NaN between their rows, for logits of order two."""
    generator = torch.Generator().manual_seed(rows)
    hidden = 2 * torch.randn(rows, features, generator=generator)
    weight = torch.randn(vocab, features, generator=generator) * features**-0.5
    views = []
    for content in (hidden, weight):
        buffer = torch.full((content.shape[0], content.shape[1] + 8), torch.nan)
        buffer[:, : content.shape[1]] = content
        views.append(buffer.to(dtype).to(device)[:, : content.shape[1]])
    return tuple(views)


def with_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden state and head of one feature that give these logits [vocab], one row of them."""
    return torch.ones(1, 1, dtype=logits.dtype, device=logits.device), logits[:, None]


def config_of(device: str, dtype: torch.dtype) -> launch.LmHeadLaunch:
    return launch.LM_HEAD[launch.arch_of(torch.device(device))][dtype.itemsize]


def with_config(
    patch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, **changes: object
) -> None:
    """The launch entry of `dtype` with these fields changed."""
    entries = launch.LM_HEAD[launch.arch_of(torch.device(device))]
    patch.setitem(entries, dtype.itemsize, replace(entries[dtype.itemsize], **changes))


def in_shards(hidden: Tensor, weight: Tensor, cuts: list[int], **options) -> Confidence:
    """As lm_head_confidence, the head cut before these ids."""
    error = options.pop("error", None)
    bounds = [0, *cuts, len(weight)]
    shards = [
        lm_head_partials(hidden, weight[first:last], first_id=first, **options)
        for first, last in zip(bounds, bounds[1:], strict=False)
    ]
    for flag in BOTH:
        options.pop(flag, None)
    return merge_partials(shards, error=error, **options)


def assert_same_statistics(actual: Confidence, expected: Confidence, what: str = "") -> None:
    for name, ours, theirs in zip(Confidence._fields, actual, expected, strict=True):
        if ours is not None or theirs is not None:
            assert_same_bits(ours, theirs, f"{name}{what}")


def assert_matches_reference(
    actual: Confidence, hidden: Tensor, weight: Tensor, banned: Tensor | None = None
) -> None:
    """Errors no larger than those of the two calls in torch; tokens where rounding can't tell."""
    dtype = hidden.dtype
    with forced_backend("torch"):
        same_dtype = confidence(linear(hidden, weight), banned=banned, **BOTH)
    logits = hidden.double() @ weight.double().T
    exact = reference.confidence(logits, None, -1, banned, True, True, None)
    allowed = logits.clone()
    if banned is not None:
        allowed[:, banned.long()] = -math.inf
    best = allowed.sort(-1, descending=True)[0][:, :2]
    rounding = 8 * torch.finfo(dtype).eps * best[:, 0].abs()
    gap = best[:, 0] - best[:, 1] if len(weight) > 1 else torch.full_like(best[:, 0], math.inf)
    sure = gap > rounding
    assert sure.float().mean() > 0.5
    assert actual.token[sure].tolist() == exact[0][sure].tolist()
    floor = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}[dtype]
    for name, ours, torchs, truth in zip(
        Confidence._fields[1:], actual[1:], same_dtype[1:], exact[1:], strict=True
    ):
        largest = max(1.0, float(truth.abs().max()))
        assert_close_to_reference(ours, torchs, truth, floor=floor * largest, what=name)


@pytest.mark.parametrize(("rows", "features", "vocab"), SHAPES)
def test_matches_the_reference(
    rows: int, features: int, vocab: int, dtype: torch.dtype, triton_device: str
) -> None:
    hidden, weight = inputs(rows, features, vocab, dtype, triton_device)
    with unchanged(hidden=hidden, weight=weight), forced_backend("triton"):
        actual = lm_head_confidence(hidden, weight, **BOTH)
    assert_matches_reference(actual, hidden, weight)


@pytest.mark.parametrize("cuts", [None, [], [512], [300, 400]], ids=str)
def test_every_backend_matches_the_reference(
    cuts: list[int] | None, backend: str, op_device: str
) -> None:
    """Shards cut anywhere, the ids banned counted from the vocabulary's first."""
    hidden, weight = inputs(5, 20, 600, torch.float32, op_device)
    best = linear(hidden, weight).argmax(-1)
    banned = torch.cat([best[:2], torch.tensor([299, 512], device=op_device)]).int()
    options = {"banned": banned, **BOTH}
    if cuts is None:
        actual = lm_head_confidence(hidden, weight, **options)
    else:
        actual = in_shards(hidden, weight, cuts, **options)
    assert not set(actual.token.tolist()) & set(banned.tolist())
    assert_matches_reference(actual, hidden, weight, banned)


def test_logits_are_rounded_as_stored_ones(backend: str, op_device: str) -> None:
    """Products of one feature, exact in float32, that round to 2 from either side."""
    ulp = 2**-10
    weight = torch.zeros(600, 1, dtype=torch.float16, device=op_device)
    weight[3], weight[5] = 2 - 2 * ulp, 2 - ulp
    hidden = torch.full((1, 1), 1 + ulp, dtype=torch.float16, device=op_device)
    for result in (
        lm_head_confidence(hidden, weight, **BOTH),
        in_shards(hidden, weight, [CHUNK], **BOTH),
    ):
        assert (result.token.item(), result.margin.item()) == (3, 0.0)
        total = 598 + 2 * math.exp(2)
        assert result.logsumexp.item() == pytest.approx(math.log(total), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 30.0, 3e3], ids=["flat", "peaked", "3e3"])
def test_extreme_scales(scale: float, dtype: torch.dtype, triton_device: str) -> None:
    hidden, weight = inputs(2, 16, 600, dtype, triton_device)
    hidden = hidden * scale
    with forced_backend("triton"):
        assert_matches_reference(lm_head_confidence(hidden, weight, **BOTH), hidden, weight)


def test_entropy_and_margin_change_nothing_else(backend: str, op_device: str) -> None:
    hidden, weight = inputs(2, 33, 600, torch.float32, op_device)
    full = lm_head_confidence(hidden, weight, **BOTH)
    for entropy in (False, True):
        for margin in (False, True):
            asked = {"entropy": entropy, "margin": margin}
            expected = full._replace(
                entropy=full.entropy if entropy else None, margin=full.margin if margin else None
            )
            actual = lm_head_confidence(hidden, weight, **asked)
            assert_same_statistics(actual, expected, f" with {asked}")


def test_no_rows(backend: str, op_device: str) -> None:
    error = new_error_word(op_device)
    hidden, weight = inputs(1, 8, 600, torch.float32, op_device)
    whole = lm_head_confidence(hidden[:0], weight, error=error, **BOTH)
    for result in (whole, in_shards(hidden[:0], weight, [512], error=error, **BOTH)):
        assert [tuple(x.shape) for x in result] == [(0,)] * 5
        assert result.token.dtype == torch.int32
        assert all(x.dtype == torch.float32 for x in result[1:])
    assert not error.item()


def test_nothing_outside_the_outputs_is_written(backend: str, op_device: str) -> None:
    hidden, weight = (Guarded(t) for t in inputs(33, 20, 130, torch.float32, op_device))
    lm_head_confidence(hidden.tensor, weight.tensor, **BOTH)
    hidden.check()
    weight.check()


# --- the same as the two calls


@pytest.mark.parametrize("at_once", [1, 2**25], ids=["32-rows-at-once", "all-at-once"])
@pytest.mark.parametrize("shape", [(70, 48, 700), (33, 20, 515), (7, 64, 130)], ids=str)
def test_torch_has_the_bits_of_the_two_calls(
    shape: tuple[int, int, int], at_once: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "_HEAD_LOGITS", at_once)
    hidden, weight = inputs(*shape, torch.float32, device)
    tokens = torch.full(shape[:1], MASK, device=device)
    tokens[3] = 0
    options = {"tokens": tokens, "mask_id": MASK, **BOTH}
    with forced_backend("torch"):
        expected = confidence(linear(hidden, weight), **options)
        assert_same_statistics(lm_head_confidence(hidden, weight, **options), expected)


def test_triton_picks_the_tokens_of_the_two_calls(dtype: torch.dtype, triton_device: str) -> None:
    hidden, weight = inputs(33, 100, 515, dtype, triton_device)
    with forced_backend("triton"):
        logits = linear(hidden, weight)
        expected = confidence(logits)
        actual = lm_head_confidence(hidden, weight)
    best = logits.double().sort(-1, descending=True)[0]
    sure = best[:, 0] - best[:, 1] > 4 * torch.finfo(dtype).eps * best[:, 0].abs()
    assert sure.sum() > 20
    assert actual.token[sure].tolist() == expected.token[sure].tolist()


# --- torch's product


@pytest.mark.parametrize(
    ("ids", "chunk"),
    [(128, 16_384), (256, 100), (4096, 256)],
    ids=["parts-of-a-chunk", "parts-of-three-chunks", "one-part"],
)
def test_fast_numerics_take_a_library_product_in_parts(
    ids: int, chunk: int, dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, vocab = 6, 600
    hidden, weight = inputs(rows, 40, vocab, dtype, triton_device)
    hidden[2] = 3 * weight[5]
    weight[300], weight[590] = weight[5], weight[5]  # ties across parts: the lowest id that may be
    # A best id in each of three parts is banned.
    banned = torch.tensor([5, 130, 599], dtype=torch.int32, device=triton_device)
    hidden[3], hidden[4] = 3 * weight[130], 3 * weight[599]
    tokens = torch.tensor([MASK] * 5 + [0], device=triton_device)
    error = new_error_word(triton_device)
    options = {"tokens": tokens, "mask_id": MASK, "banned": banned, "error": error, **BOTH}
    limits = {"fused_rows": rows - 1, "library_logits": rows * ids}
    with_config(monkeypatch, triton_device, dtype, **limits)
    arch = launch.arch_of(torch.device(triton_device))
    entry = replace(launch.CONFIDENCE[arch], chunk=chunk)
    monkeypatch.setitem(launch.CONFIDENCE, arch, entry)
    monkeypatch.setattr(head_module, "head_kernel", None)
    with forced_backend("triton"):
        actual = lm_head_confidence(hidden, weight, numerics="fast", **options)
    assert actual.token[[2, 5]].tolist() == [300, -1]
    assert not set(actual.token.tolist()) & set(banned.tolist())
    assert not error.item()
    assert all(statistic[5] == 0 for statistic in actual[1:])
    counted = Confidence(*(statistic[:5] for statistic in actual))
    assert_matches_reference(counted, hidden[:5], weight, banned)


def test_fast_numerics_are_invariant_ones_for_few_rows(
    triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight = inputs(5, 40, 130, torch.float32, triton_device)
    with_config(monkeypatch, triton_device, torch.float32, fused_rows=5)
    with forced_backend("triton"):
        expected = lm_head_confidence(hidden, weight, **BOTH)
        actual = lm_head_confidence(hidden, weight, numerics="fast", **BOTH)
    assert_same_statistics(actual, expected)


def test_invariant_numerics_never_take_a_library_product(
    triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight = inputs(5, 40, 130, torch.float32, triton_device)
    with_config(monkeypatch, triton_device, torch.float32, fused_rows=0)
    monkeypatch.setattr(head_module, "_library_partials", None)
    with forced_backend("triton"):
        lm_head_confidence(hidden, weight)


def test_fast_numerics_of_torch_match_the_reference(device: str) -> None:
    hidden, weight = inputs(33, 40, 130, torch.float32, device)
    with forced_backend("torch"):
        actual = lm_head_confidence(hidden, weight, numerics="fast", **BOTH)
    assert_matches_reference(actual, hidden, weight)


# --- special rows


# Two chunks, the second a partial tile.
SPECIAL_ROWS = special_rows(600, far=300, chunk=CHUNK)


@pytest.mark.parametrize("row", SPECIAL_ROWS, ids=lambda row: row.name)
def test_special_row(row: Row, backend: str, op_device: str) -> None:
    check_special_row(row, torch.float32, op_device)
    cuts = [CHUNK] if row.vocab > CHUNK else []
    check_special_row(row, torch.float32, op_device, cuts)


@pytest.mark.parametrize("row", SPECIAL_ROWS, ids=lambda row: row.name)
def test_special_row_in_half_precision(row: Row, triton_device: str) -> None:
    with forced_backend("triton"):
        check_special_row(row, torch.float16, triton_device)


def check_special_row(
    row: Row, dtype: torch.dtype, device: str, cuts: list[int] | None = None
) -> None:
    """The head in one, or in shards if there are `cuts`."""
    hidden, weight = with_logits(expand(row, dtype, device))
    tokens = torch.tensor([0 if row.skipped else MASK], device=device)
    banned = torch.tensor(row.banned, dtype=torch.int32, device=device) if row.banned else None
    options = {"tokens": tokens, "mask_id": MASK, "banned": banned, **BOTH}
    options["error"] = error = new_error_word(device) + 64
    if cuts is None:
        result = lm_head_confidence(hidden, weight, **options)
    else:
        result = in_shards(hidden, weight, cuts, **options)
    assert_row(row, result, 0)
    assert error.item() == 64 | row.error


@pytest.mark.parametrize("position", [0, 300, 599])
def test_lowest_float32_as_hidden_logit(position: int, backend: str, op_device: str) -> None:
    """Its distance to a real logit overflows."""
    lowest = torch.finfo(torch.float32).min
    for value in (1.0, -lowest):
        logits = torch.full((600,), lowest, device=op_device)
        logits[position] = value
        hidden, weight = with_logits(logits)
        for result in (
            lm_head_confidence(hidden, weight, **BOTH),
            in_shards(hidden, weight, [CHUNK], **BOTH),
        ):
            numbers = [x.item() for x in result]
            assert numbers == pytest.approx([position, 1.0, value, 0.0, 1.0])


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
def test_a_row_all_lowest_float32_is_uniform(backend_name: str, triton_device: str) -> None:
    lowest = torch.finfo(torch.float32).min
    hidden, weight = with_logits(torch.full((600,), lowest, device=triton_device))
    expected = [0, 1 / 600, lowest, math.log(600), 0.0]
    with forced_backend(backend_name):
        whole = lm_head_confidence(hidden, weight, **BOTH)
        shards = in_shards(hidden, weight, [CHUNK], **BOTH)
    for result in (whole, shards):
        assert [x.item() for x in result] == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_nan_and_infinity_of_the_product(backend: str, op_device: str) -> None:
    """A row of hidden states that is not finite is that row's fault alone."""
    hidden, weight = inputs(4, 20, 130, torch.float32, op_device)
    hidden = hidden.contiguous()
    clean = lm_head_confidence(hidden, weight)
    hidden[1, 3], hidden[2, 5] = math.nan, math.inf  # infinity times either sign
    error = new_error_word(op_device)
    result = lm_head_confidence(hidden, weight, error=error)
    assert result.token.tolist() == [clean.token[0].item(), -1, -1, clean.token[3].item()]
    assert result.probability[1:3].isnan().all()
    assert error.item() == NAN_LOGITS


# --- ties, runners-up, bans


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param((4, 5), id="neighbours"),
        pytest.param((7, 60), id="in-one-tile"),
        pytest.param((63, 64), id="across-a-float32-tile"),
        pytest.param((127, 128), id="across-a-half-tile"),
        pytest.param((70, 130, 400), id="in-three-tiles"),
        pytest.param((511, 512), id="across-a-chunk"),
        pytest.param((520, 599), id="in-the-last-tiles"),
        pytest.param((0, 100, 515), id="in-two-chunks"),
    ],
)
def test_ties_go_to_the_lowest_id(
    ids: tuple[int, ...], dtype: torch.dtype, triton_device: str
) -> None:
    hidden, weight = inputs(1, 20, 600, dtype, triton_device)
    weight[list(ids)] = hidden[0]  # by far the best
    with forced_backend("triton"):
        result = lm_head_confidence(hidden, weight, margin=True)
        assert result.token.item() == ids[0]
        assert result.margin.item() == 0.0
        # Banning the winners one after another walks through the others.
        for n in range(1, len(ids)):
            bans = torch.tensor(ids[:n], dtype=torch.int32, device=triton_device)
            assert lm_head_confidence(hidden, weight, banned=bans).token.item() == ids[n]


@pytest.mark.parametrize("zeros", [(-0.0, 0.0), (0.0, -0.0)], ids=["minus-first", "plus-first"])
def test_zeros_of_either_sign_are_equal(
    zeros: tuple[float, float], backend: str, op_device: str
) -> None:
    for second in (90, 550):
        logits = torch.full((600,), -1.0, device=op_device)
        logits[40], logits[second] = zeros
        hidden, weight = with_logits(logits)
        for result in (
            lm_head_confidence(hidden, weight, margin=True),
            in_shards(hidden, weight, [CHUNK], margin=True),
        ):
            assert result.token.item() == 40
            assert result.margin.item() == 0.0


@pytest.mark.parametrize("other", [41, 63, 64, 200, 511, 512, 599])
def test_margin_finds_the_runner_up_wherever_it_is(other: int, triton_device: str) -> None:
    for first, second in ((40, other), (other, 40)):
        logits = torch.full((600,), -8.0, device=triton_device)
        logits[first], logits[second] = 5.0, 4.5
        with forced_backend("triton"):
            result = lm_head_confidence(*with_logits(logits), margin=True)
        exact = reference.confidence(logits[None].double(), None, -1, None, False, True, None)
        assert result.token.item() == first
        assert result.margin.item() == pytest.approx(exact[4].item(), rel=1e-5)


@pytest.mark.parametrize("outside", [-1, 600, 2**31 - 1, -(2**31)])
def test_a_ban_outside_the_vocabulary_sets_the_error_word(
    outside: int, backend: str, op_device: str
) -> None:
    """Of the whole vocabulary: an id of another shard is none."""
    hidden, weight = inputs(3, 8, 600, torch.float32, op_device)
    expected = lm_head_confidence(hidden, weight).token.tolist()
    # The first row is skipped: the fault is the call's, not a row's.
    tokens = torch.tensor([0, MASK, MASK], device=op_device)
    for bans, fault in (([7, outside], ID_OUT_OF_RANGE), ([7, 599], 0)):
        banned = torch.tensor(bans, dtype=torch.int32, device=op_device)
        options = {"tokens": tokens, "mask_id": MASK, "banned": banned}
        whole_error, shards_error = new_error_word(op_device), new_error_word(op_device)
        whole = lm_head_confidence(hidden, weight, error=whole_error, **options)
        shards = in_shards(hidden, weight, [512], error=shards_error, **options)
        assert whole.token.tolist() == shards.token.tolist() == [-1, *expected[1:]]
        assert whole_error.item() == shards_error.item() == fault


# --- rows that are skipped


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_skipped_rows_are_zero_and_others_as_if_all_counted(
    token_dtype: torch.dtype, backend: str, op_device: str
) -> None:
    rows, tile = 134, 64
    hidden, weight = inputs(rows, 20, 130, torch.float32, op_device)
    expected = lm_head_confidence(hidden, weight, **BOTH)
    # The second of three tiles holds no mask; behind the last row lies one that does not count.
    tokens = torch.full((rows + 1,), MASK + 1, dtype=token_dtype, device=op_device)
    tokens[[0, 7, 2 * tile + 1, rows]] = MASK
    active = tokens[:rows] == MASK
    actual = lm_head_confidence(hidden, weight, tokens=tokens[:rows], mask_id=MASK, **BOTH)
    assert actual.token[~active].tolist() == [-1] * (rows - 3)
    for name, ours, theirs in zip(Confidence._fields, actual, expected, strict=True):
        assert_same_bits(ours[active], theirs[active], name)
        if name != "token":
            assert ours[~active].eq(0).all(), name


def test_a_tile_of_rows_without_a_mask_is_not_computed(triton_device: str) -> None:
    tile = max(config_of(triton_device, torch.float32).tiles)
    rows = 2 * tile + 6
    hidden, weight = inputs(rows, 20, 130, torch.float32, triton_device)
    tokens = torch.full((rows + 1,), MASK + 1, device=triton_device)
    tokens[[tile + 8, rows]] = MASK
    with forced_backend("triton"):
        partials = lm_head_partials(
            hidden, weight, first_id=0, tokens=tokens[:rows], mask_id=MASK, **BOTH
        )
    computed = ~partials.statistics.isnan()  # every allocation starts as NaN
    assert computed[:, tile : 2 * tile].all()
    assert not computed[:, :tile].any() and not computed[:, 2 * tile :].any()


# --- bits


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
@pytest.mark.parametrize(("features", "vocab"), [(33, 515), (64, 130)], ids=str)
def test_a_row_has_the_same_bits_whatever_rows_go_with_it(
    features: int,
    vocab: int,
    backend_name: str,
    dtype: torch.dtype,
    device: str,
    triton_device: str,
) -> None:
    hidden, weight = inputs(40, features, vocab, dtype, triton_device)
    hidden[17] = math.inf  # neighbours' values don't matter either
    with forced_backend(backend_name):
        whole = lm_head_confidence(hidden, weight, **BOTH)
        for first, rows in ((0, 1), (31, 1), (39, 1), (28, 8), (5, 33)):
            at = slice(first, first + rows)
            part = lm_head_confidence(hidden[at].clone(), weight, **BOTH)
            expected = Confidence(*(x[at] for x in whole))
            assert_same_statistics(part, expected, f" of {rows} rows from {first}")


@pytest.mark.parametrize(
    ("features", "vocab"),
    [(33, 515), (64, 130), pytest.param(4096, 2000, marks=pytest.mark.gpu)],
    ids=str,
)
def test_a_row_has_the_same_bits_in_every_tile(
    features: int, vocab: int, dtype: torch.dtype, triton_device: str
) -> None:
    hidden, weight = inputs(20, features, vocab, dtype, triton_device)
    results = {}
    for tile in config_of(triton_device, dtype).tiles.values():
        with pytest.MonkeyPatch.context() as patch, forced_backend("triton"):
            with_config(patch, triton_device, dtype, tiles={1: tile})
            results[tile] = lm_head_confidence(hidden, weight, **BOTH)
    first, *others = results.values()
    for tile, other in zip(list(results)[1:], others, strict=True):
        assert_same_statistics(other, first, f" of {tile}")


def test_shards_have_the_bits_of_the_whole(dtype: torch.dtype, triton_device: str) -> None:
    hidden, weight = inputs(3, 40, 1100, dtype, triton_device)
    weight[600], weight[1090] = weight[3], weight[3]  # a tie across shards
    hidden[1] = 3 * weight[3]
    best = linear(hidden[2:], weight).argmax().item()
    tokens = torch.tensor([MASK + 1, MASK, MASK], device=triton_device)
    banned = torch.tensor([best, 512, 1099], dtype=torch.int32, device=triton_device)
    options = {"tokens": tokens, "mask_id": MASK, "banned": banned}
    with forced_backend("triton"):
        whole = lm_head_confidence(hidden, weight, **options, **BOTH)
        assert whole.token[1].item() == 3
        for cuts in ([CHUNK], [2 * CHUNK], [CHUNK, 2 * CHUNK]):
            shards = in_shards(hidden, weight, cuts, **options, **BOTH)
            assert_same_statistics(shards, whole, f", cut before {cuts}")
        plain = in_shards(hidden, weight, [CHUNK], **options)
        assert_same_statistics(plain, whole._replace(entropy=None, margin=None))


# --- memory


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_partials_are_under_two_percent_of_float32_logits(dtype: torch.dtype, device: str) -> None:
    rows, vocab = 3, 131072
    hidden, weight = inputs(rows, 1, vocab, dtype, device)
    partials = lm_head_partials(hidden, weight, first_id=0, **BOTH)
    chunks = vocab // launch.LM_HEAD["sm_90"][dtype.itemsize].chunk
    assert partials.statistics.shape == (5, rows, chunks)
    assert partials.best_ids.shape == (rows, chunks)
    stored = partials.statistics.nbytes + partials.best_ids.nbytes
    assert stored == 24 * rows * chunks
    assert stored < 0.02 * 4 * rows * vocab


@pytest.mark.parametrize(
    ("backend_name", "largest"),
    [("triton", 0.02 * 64 * 1024), ("torch", 32 * 1024)],
    ids=["triton", "torch"],
)
def test_no_allocation_holds_the_logits(
    backend_name: str, largest: float, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 rows over 1024 ids; torch has the logits of 32 rows at a time, told so."""
    monkeypatch.setattr(torch_backend, "_HEAD_LOGITS", 40 * 1024)
    hidden, weight = inputs(64, 8, 1024, torch.float32, triton_device)
    sizes = []
    new_empty = Tensor.new_empty

    def recording(self: Tensor, *args, **kwargs) -> Tensor:
        made = new_empty(self, *args, **kwargs)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(Tensor, "new_empty", recording)
    with forced_backend(backend_name):
        lm_head_confidence(hidden, weight)
    assert 0 < max(sizes) <= largest
