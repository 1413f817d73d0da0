"""Sampling: filters against transformers, draws and rejection sampling against their distribution.

All noise is keyed, so that a statistical test gives the same verdict in every run; its bounds are
ones that a right sampler fails once in 10**4 choices of seeds, and a wrong one always.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dlm_core.decoding.sampling import (
    Sampling,
    SamplingTable,
    accept_drafts,
    distribution,
    draw,
)
from dlm_kernels import noise

NO_BANS = torch.empty(0, dtype=torch.int32)
STEP = torch.zeros((), dtype=torch.int64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pack(*samplings: Sampling) -> SamplingTable:
    return SamplingTable.pack(samplings, "cpu")


def at(table: SamplingTable, rows: Sequence[int]) -> SamplingTable:
    """The table of a batch of these requests."""
    return SamplingTable(*(column[rows] for column in table))


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


# --- settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.5}, "temperature is -0.5; it must be 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": 1e-50}, "temperature is 1e-50"),
        ({"temperature": 1e50}, "temperature is 1e+50"),
        ({"temperature": None}, "temperature is None; it must be a number"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0; it must be in [1, "),
        ({"temperature": 1.0, "top_k": 2**31}, "top_k is 2147483648"),
        ({"temperature": 1.0, "top_k": 5.0}, "top_k is 5.0; it must be an int"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; it must be in (0, 1]"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": 1.0, "top_p": math.nan}, "top_p is nan"),
        ({"temperature": 1.0, "top_p": "0.9"}, "top_p is '0.9'; it must be a number"),
        ({"temperature": 1.0, "min_p": -0.1}, "min_p is -0.1; it must be in [0, 1)"),
        ({"temperature": 1.0, "min_p": 1.0}, "min_p is 1.0"),
        ({"temperature": 1.0, "min_p": [0.1]}, "min_p is [0.1]"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be in ["),
        ({"seed": 1.0}, "seed is 1.0; it must be an int"),
        ({"top_k": 5}, "top_k is 5 beside temperature=0, which is greedy"),
        ({"top_p": 0.9}, "top_p is 0.9 beside temperature=0"),
        ({"min_p": 0.1}, "min_p is 0.1 beside temperature=0"),
    ],
)
def test_bad_setting_is_named(fields: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        Sampling(**fields)


def test_settings_at_their_limits_are_packed_a_row_a_request() -> None:
    samplings = [
        Sampling(),
        Sampling(seed=-(2**63)),
        Sampling(1.5, top_k=2**31 - 1, top_p=1, min_p=0, seed=2**63 - 1),
        Sampling(1e-37, top_k=1, top_p=1e-9, min_p=0.5),
    ]
    assert [sampling.greedy for sampling in samplings] == [True, True, False, False]
    table = SamplingTable.pack(samplings, "cpu")
    assert table.temperature.tolist() == pytest.approx([0, 0, 1.5, 1e-37])
    assert table.top_k.tolist() == [0, 0, 2**31 - 1, 1]
    assert table.top_p.tolist() == pytest.approx([1, 1, 1, 1e-9])
    assert table.min_p.tolist() == [0, 0, 0, 0.5]
    assert table.seed.tolist() == [0, -(2**63), 2**63 - 1, 0]
    dtypes = [torch.float32, torch.int32, torch.float32, torch.float32, torch.int64]
    assert [column.dtype for column in table] == dtypes


# --- distribution

VOCAB = 97
ROWS = {
    "normal": randn(6, VOCAB),
    "peaked": randn(6, VOCAB, seed=1) * 20,
    "flat": randn(6, VOCAB, seed=2) * 1e-3,
    "extreme": randn(6, VOCAB, seed=3).sign() * 1e4 + randn(6, VOCAB, seed=4),
    "mostly -inf": randn(6, VOCAB, seed=5).masked_fill(randn(6, VOCAB, seed=6) < 1, -math.inf),
    "only one id": torch.full((6, VOCAB), -math.inf).index_fill(-1, torch.tensor(41), 3.0),
}
SETTINGS = [
    Sampling(temperature, **filters)
    for temperature, filters in (
        (1.0, {}), (0.3, {}), (7.0, {}), (0.8, {"top_k": 1}), (0.8, {"top_k": 5}),
        (1.3, {"top_k": VOCAB}), (1.3, {"top_k": 10**6}), (0.8, {"top_p": 0.9}),
        (2.0, {"top_p": 0.5}), (1.0, {"top_p": 1e-6}), (1.0, {"min_p": 0.05}),
        (2.0, {"min_p": 0.7}), (0.9, {"top_k": 20, "top_p": 0.7}),
        (1.5, {"top_k": 12, "min_p": 0.2}), (1.5, {"top_p": 0.8, "min_p": 0.3}),
        (1.2, {"top_k": 30, "top_p": 0.95, "min_p": 0.1}),
    )
]  # fmt: skip


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_distribution_is_that_of_transformers(rows: Tensor) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
    warpers = {
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    actual = distribution(rows.expand(len(SETTINGS), -1, -1), pack(*SETTINGS), NO_BANS)
    for sampling, log_probs in zip(SETTINGS, actual, strict=True):
        scores = rows.double()
        for name, warper in warpers.items():
            if getattr(sampling, name) is not None:
                scores = warper(getattr(sampling, name))(None, scores)
        expected = scores.log_softmax(-1)
        assert torch.equal(log_probs == -math.inf, expected == -math.inf), sampling
        torch.testing.assert_close(log_probs.double(), expected, rtol=2e-6, atol=2e-6)


def test_of_equal_ids_the_lowest_are_kept() -> None:
    logits = torch.tensor([1.0, 2.0, 0.0, 2.0, 2.0, 1.0]).expand(5, 1, -1)
    settings = ({"top_k": 2}, {"top_k": 4}, {"top_p": 0.4}, {"min_p": 0.9})
    table = pack(Sampling(), *(Sampling(0.9, **each) for each in settings))
    kept = [
        row.nonzero()[:, 0].tolist() for row in distribution(logits, table, NO_BANS)[:, 0].exp()
    ]
    assert kept == [[1], [1, 3], [0, 1, 3, 4], [1, 3], [1, 3, 4]]


def test_logits_that_only_temperature_makes_equal_are_ranked_as_they_were() -> None:
    logits = torch.tensor([[[1.0, 1.0 + 2**-23, 0.0]]])
    assert distribution(logits, pack(Sampling(3e38, top_k=1)), NO_BANS).argmax() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_greedy_is_one_hot_at_the_first_of_the_largest(dtype: torch.dtype) -> None:
    logits = (randn(2, 50, VOCAB) * 4).round().to(dtype)  # many ties
    banned = torch.tensor([3, 96, 3], dtype=torch.int32)
    log_probs = distribution(logits, pack(Sampling(), Sampling(seed=5)), banned)
    allowed = logits.clone()
    allowed[..., banned.long()] = -math.inf
    best = allowed.argmax(-1)
    expected = torch.full(logits.shape, -math.inf).scatter(-1, best[..., None], 0.0)
    assert torch.equal(log_probs, expected)
    position = torch.arange(100).view(2, 50)
    assert torch.equal(draw(log_probs, pack(Sampling(), Sampling(0.5)), position, STEP), best.int())


def test_banned_ids_are_out_before_the_filters() -> None:
    logits = torch.tensor([[[5.0, 1.0, math.inf, 4.0, 0.0, 3.0]]])
    banned = torch.tensor([2, 0], dtype=torch.int32)
    actual = distribution(logits, pack(Sampling(2.0, top_k=3, min_p=0.3)), banned)[0, 0]
    expected = torch.full((6,), -math.inf)
    expected[[3, 5]] = torch.tensor([2.0, 1.5]).log_softmax(0)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("temperature", [0.0, 1e-37, 1.0, 3e38])
def test_row_without_a_distribution_is_nan_and_draws_no_token(temperature: float) -> None:
    inf, nan = math.inf, math.nan
    rows = torch.tensor([[0, nan, 1], [0, inf, 1], [-inf, -inf, 9], [-1e4, -inf, 9]])
    table = pack(Sampling(temperature))
    log_probs = distribution(rows[None], table, torch.tensor([2], dtype=torch.int32))
    assert log_probs[0, :3].isnan().all()
    assert log_probs[0, 3].tolist() == [0.0, -math.inf, -math.inf]
    assert draw(log_probs, table, torch.arange(4)[None], STEP).tolist() == [[-1, -1, -1, 0]]


# --- one row, wherever it lies


@pytest.mark.parametrize("vocab", [1, 7, 97, 1031])
def test_row_depends_on_itself_and_its_settings_alone(vocab: int) -> None:
    samplings = [SETTINGS[-1], Sampling(), Sampling(0.7, seed=9), SETTINGS[7], SETTINGS[4]]
    batch, k = len(samplings), 3
    table = pack(*samplings)
    banned = torch.tensor([5] if vocab > 1 else [], dtype=torch.int32)
    q_logits, p_logits = randn(batch, k, vocab), randn(batch, k + 1, vocab, seed=1)
    position = torch.tensor([40, 0, 2**31, 7, 40])
    step = torch.tensor([0, 3, 2**31, 1, 0])

    def cycle(rows: list[int]) -> list[Tensor]:
        settings = at(table, rows)
        log_q = distribution(q_logits[rows], settings, banned)
        log_p = distribution(p_logits[rows], settings, banned)
        place = position[rows, None] + torch.arange(k)
        drafts = draw(log_q, settings, place, step[rows, None])
        verdict = accept_drafts(log_q, log_p, drafts, settings, position[rows], step[rows])
        return [log_q, log_p, drafts, *verdict]

    together = cycle(list(range(batch)))
    for rows in ([0], [1], [2], [3], [4], [4, 2], [3, 3, 0]):
        for whole, part in zip(together, cycle(rows), strict=True):
            assert equal_bits(whole[rows], part)

    # The same row at another place of its block, and in a tensor with gaps.
    spread = q_logits.repeat_interleave(2, 2)[:, :, ::2]
    assert not spread.is_contiguous() or vocab == 1
    assert equal_bits(distribution(spread[:, 1:], table, banned), together[0][:, 1:])
    one = draw(together[0][:, 2:], table, position[:, None] + 2, step[:, None])
    assert torch.equal(one, together[2][:, 2:])


@pytest.mark.parametrize("words", [1, 3 * VOCAB + 5])
def test_many_rows_are_drawn_in_parts(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pack(*(Sampling(1.0, seed=seed) for seed in range(3)))
    log_probs, position = randn(3, 5, VOCAB), torch.arange(15).view(3, 5)
    step = torch.tensor([[0], [4], [2]])
    whole = draw(log_probs, table, position, step)
    monkeypatch.setattr("dlm_core.decoding.sampling._NOISE_AT_ONCE", words)
    assert torch.equal(draw(log_probs, table, position, step), whole)


def test_nothing_waits_for_the_device() -> None:
    """Meta tensors have no contents: reading one, or a shape that depends on one, raises."""
    table = SamplingTable.pack([Sampling(0.7, top_k=3), Sampling()], "meta")
    options = {"device": "meta", "dtype": torch.int64}
    position, step = torch.empty(2, 4, **options), torch.empty(2, **options)
    banned = torch.empty(1, device="meta", dtype=torch.int32)
    log_p = distribution(torch.empty(2, 5, VOCAB, device="meta"), table, banned)
    drafts = draw(log_p[:, :4], table, position, step[:, None])
    n_accepted, token = accept_drafts(log_p[:, :4], log_p, drafts, table, position[:, 0], step)
    assert drafts.shape == (2, 4) and n_accepted.shape == token.shape == (2,)
    assert drafts.dtype == n_accepted.dtype == token.dtype == torch.int32


# --- draws


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's chi-squared test; 0 where something impossible was drawn."""
    counts, probabilities = counts.double().flatten(), probabilities.double().flatten()
    possible = probabilities > 0
    if counts[~possible].any():
        return 0.0
    expected = probabilities[possible] * counts.sum()
    assert expected.min() >= 5, "too few trials for the chi-squared test"
    chi_squared = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, chi_squared / 2))


def test_draws_have_their_distribution() -> None:
    """Over positions of one request, and over steps of others; filtered ids are never drawn."""
    n = 30_000
    logits = randn(1, 1, 12)
    samplings = [Sampling(1.0), Sampling(1.7, seed=-3), Sampling(0.8, top_k=4, seed=2**62)]
    for sampling in samplings:
        table = pack(sampling)
        log_probs = distribution(logits, table, NO_BANS)
        for places in (n, 100):
            position = torch.arange(places).repeat(n // places)
            step = torch.arange(n // places).repeat_interleave(places)
            tokens = draw(log_probs.expand(1, n, -1), table, position[None], step[None])
            counts = tokens[0].bincount(minlength=12)
            assert p_value(counts, log_probs[0, 0].exp()) > 1e-4, sampling
            if sampling.top_k is None:  # the right counts of another distribution do not pass
                other = distribution(logits, pack(Sampling(sampling.temperature * 1.1)), NO_BANS)
                assert p_value(counts, other[0, 0].exp()) < 1e-6


@pytest.mark.parametrize("stream", [noise.SAMPLE, noise.RESIDUAL])
@pytest.mark.parametrize("seed", [1, 1 + 2**40, -3])
def test_draw_is_the_largest_of_log_probability_and_gumbel_noise(seed: int, stream: int) -> None:
    """The noise of its seed, position, step and stream, and of nothing else."""
    log_probs, table = randn(1, 12, 1000).log_softmax(-1), pack(Sampling(1.0, seed=seed))
    position, step = torch.arange(5, 17)[None], torch.arange(12)[None] % 4
    words = noise.philox(
        table.seed[:, None, None], torch.arange(1000), position[..., None], step[..., None], stream
    )
    scores = log_probs.double() - (-noise.uniform(words).double().log()).log()
    drawn = draw(log_probs, table, position, step, stream)
    assert torch.equal(drawn.long(), scores.argmax(-1))


# --- speculative rejection sampling

TRIALS = 40_000
# Two drafts. At each place several ids have more of p than of q, so that the residual is a
# distribution too.
Q = torch.tensor([[0.5, 0.25, 0.1, 0.05, 0.1], [0.1, 0.1, 0.5, 0.1, 0.2]])
P = torch.tensor([[0.05, 0.15, 0.3, 0.3, 0.2], [0.3, 0.2, 0.05, 0.15, 0.3], [0.2] * 5])
LOG_Q, LOG_P = (x.log().expand(TRIALS, -1, -1) for x in (Q, P))


class Emitted(NamedTuple):
    """How far what a rule emits is from what it should be, as the chance of being as far."""

    first: float  # the first token of every trial
    second: float  # that after a first draft that was kept
    kept: Tensor  # drafts of each trial


def emit(accept: Callable, *, by_seed: bool = True) -> Emitted:
    """One cycle each of trials that differ by their seeds, or stand far apart in one request."""
    trial = torch.arange(TRIALS)
    table = SamplingTable(
        torch.ones(TRIALS),
        torch.zeros(TRIALS, dtype=torch.int32),
        torch.ones(TRIALS),
        torch.zeros(TRIALS),
        trial if by_seed else torch.zeros_like(trial),
    )
    position = torch.full_like(trial, 90) if by_seed else trial * 4
    step = torch.zeros_like(trial)
    drafts = draw(LOG_Q, table, position[:, None] + torch.arange(2), step[:, None])
    kept, token = accept(LOG_Q, LOG_P, drafts, table, position, step)
    first = torch.where(kept > 0, drafts[:, 0], token)
    second = torch.where(kept > 1, drafts[:, 1], token)[kept > 0]
    counts = (x.bincount(minlength=5) for x in (first, second))
    return Emitted(*(p_value(n, p) for n, p in zip(counts, P, strict=False)), kept)


@pytest.mark.parametrize("by_seed", [True, False], ids=["seeds", "positions"])
def test_emitted_tokens_have_the_distribution_of_the_target(by_seed: bool) -> None:
    emitted = emit(accept_drafts, by_seed=by_seed)
    assert emitted.first > 1e-4 and emitted.second > 1e-4
    rate = float(torch.minimum(P[0], Q[0]).sum())
    assert 0.2 < rate < 0.8
    observed = float((emitted.kept > 0).double().mean())
    assert abs(observed - rate) < 4 * math.sqrt(rate * (1 - rate) / TRIALS)


def redraws_from_target(log_q, log_p, drafts, table, position, step):
    """A wrong rule: after a rejection it draws from p, not from what p has over q."""
    kept, _ = accept_drafts(log_q, log_p, drafts, table, position, step)
    rows = log_p.gather(1, kept.long()[:, None, None].expand(-1, 1, 5))
    return kept, draw(rows, table, (position + kept)[:, None], step[:, None], noise.RESIDUAL)[:, 0]


def shares_noise(log_q, log_p, drafts, table, position, step):
    """A wrong rule: the residual is drawn with the noise that drew the drafts."""
    kept, token = accept_drafts(log_q, log_p, drafts, table, position, step)
    missed = kept.clamp(max=1).long()[:, None, None].expand(-1, 1, 5)
    residual = (log_p.gather(1, missed).exp() - log_q.gather(1, missed).exp()).clamp(min=0).log()
    drawn = draw(residual, table, (position + kept)[:, None], step[:, None])[:, 0]
    return kept, torch.where(kept == 2, token, drawn)


@pytest.mark.parametrize("wrong", [redraws_from_target, shares_noise])
def test_wrong_rules_are_found_out(wrong: Callable) -> None:
    emitted = emit(wrong)
    assert emitted.first < 1e-6 and emitted.second < 1e-6


@pytest.mark.parametrize("changed", ["seed", "position", "step"])
def test_verdict_depends_on(changed: str) -> None:
    n = 400
    log_q = torch.tensor([1.0, 0.0, 0.0]).log().expand(n, 1, -1)
    log_p = torch.tensor([0.5, 0.25, 0.25]).log().expand(n, 2, -1)
    drafts = torch.zeros(n, 1, dtype=torch.int32)

    def verdict(key: dict[str, int]) -> tuple[Tensor, Tensor]:
        table = pack(*(Sampling(1.0, seed=key["seed"] + 10 * i) for i in range(n)))
        position = torch.full((n,), key["position"])
        step = torch.full((n,), key["step"])
        return accept_drafts(log_q, log_p, drafts, table, position, step)

    key = {"seed": 3, "position": 30, "step": 2}
    n_accepted, token = verdict(key)
    n_other, other = verdict(key | {changed: key[changed] + 1})
    assert 0.4 < (n_accepted == n_other).float().mean() < 0.6
    rejected = (n_accepted == 0) & (n_other == 0)
    assert 0.3 < (token == other)[rejected].float().mean() < 0.7
    assert torch.equal(token, verdict(key)[1])


def test_drafts_of_the_target_itself_are_all_accepted() -> None:
    log_p = randn(64, 9, VOCAB).log_softmax(-1)
    table = pack(*(Sampling(1.0, seed=seed) for seed in range(64)))
    position = torch.arange(64)
    drafts = draw(log_p[:, :8], table, position[:, None] + torch.arange(8), STEP)
    n_accepted, token = accept_drafts(log_p[:, :8], log_p, drafts, table, position, STEP)
    assert (n_accepted == 8).all()
    places = position[:, None] + 8
    expected = draw(log_p[:, 8:], table, places, STEP, stream=noise.RESIDUAL)
    assert torch.equal(token, expected[:, 0])


def test_greedy_requests_compare_with_the_targets_choices() -> None:
    batch, k = 200, 4
    table = pack(*[Sampling()] * batch)
    q_logits, p_logits = randn(batch, k, 3), randn(batch, k + 1, 3, seed=1)
    log_q, log_p = distribution(q_logits, table, NO_BANS), distribution(p_logits, table, NO_BANS)
    position = torch.arange(batch)
    drafts = draw(log_q, table, position[:, None] + torch.arange(k), STEP)
    n_accepted, token = accept_drafts(log_q, log_p, drafts, table, position, STEP)
    choices = p_logits.argmax(-1)
    foreseen = (choices[:, :-1] == drafts).cumprod(1).sum(1)
    assert set(foreseen.tolist()) == set(range(k + 1))
    assert torch.equal(n_accepted.long(), foreseen)
    assert torch.equal(token.long(), choices.gather(1, foreseen[:, None])[:, 0])


def test_target_takes_over_where_nothing_is_left_of_the_residual() -> None:
    """A draft that its own distribution could not give: p and q agree, but not on the draft."""
    log_p = torch.tensor([0.25, 0.75, 0.0]).log().expand(300, 2, -1)
    table = pack(*(Sampling(1.0, seed=seed) for seed in range(300)))
    drafts = torch.full((300, 1), 2, dtype=torch.int32)
    position = torch.zeros(300, dtype=torch.int64)
    n_accepted, token = accept_drafts(log_p[:, :1], log_p, drafts, table, position, STEP)
    assert (n_accepted == 0).all()
    assert p_value(token.bincount(minlength=3), torch.tensor([0.25, 0.75, 0.0])) > 1e-4


def test_rows_of_nan_end_a_run_and_only_the_targets_leaves_no_token() -> None:
    log_q, log_p = torch.zeros(3, 2, 1), torch.zeros(3, 3, 1)
    drafts = torch.zeros(3, 2, dtype=torch.int32)
    log_q[0, 1], drafts[0, 1] = math.nan, -1
    log_p[1, 1] = math.nan
    log_p[2, 2] = math.nan
    table = pack(*[Sampling(1.0)] * 3)
    n_accepted, token = accept_drafts(
        log_q, log_p, drafts, table, torch.zeros(3, dtype=torch.int64), STEP
    )
    assert n_accepted.tolist() == [1, 1, 2]
    assert token.tolist() == [0, -1, -1]


# --- bad arguments

LOGITS = torch.zeros(2, 4, 8)
DRAFTS = {"draft_log_probs": LOGITS[:, :3], "drafts": torch.zeros(2, 3, dtype=torch.int32)}
ARGUMENTS = {
    distribution: {"logits": LOGITS, "banned": NO_BANS},
    draw: {"log_probs": LOGITS, "position": STEP.expand(2, 4), "step": STEP},
    accept_drafts: DRAFTS | {"target_log_probs": LOGITS, "position": STEP.expand(2), "step": STEP},
}
TABLE = pack(Sampling(1.0), Sampling())
FLOAT_TOP_K = TABLE._replace(top_k=torch.zeros(2))


@pytest.mark.parametrize(
    ("op", "name", "value", "message"),
    [
        (distribution, "logits", torch.zeros(4, 8), "logits has shape [4, 8]"),
        (distribution, "logits", torch.zeros(2, 4, 8).int(), "logits is torch.int32"),
        (distribution, "table", 3, "table is a int"),
        (distribution, "table", pack(Sampling()), "table.temperature has shape [1]"),
        (distribution, "table", FLOAT_TOP_K, "table.top_k is torch.float32; it must be int32"),
        (distribution, "banned", torch.zeros(1), "banned is torch.float32"),
        (distribution, "banned", [3], "banned is a list"),
        (draw, "log_probs", torch.zeros(2, 4, 8).half(), "log_probs is torch.float16"),
        (draw, "position", STEP, "position has shape []; it must be [2, 4]"),
        (draw, "position", torch.zeros(2, 4), "position is torch.float32"),
        (draw, "step", 0, "step is a int; it must be a torch.Tensor"),
        (draw, "step", STEP.expand(3, 1), "has shape [3, 1]; it must broadcast to [2, 4]"),
        (draw, "step", torch.zeros(()), "step is torch.float32"),
        (accept_drafts, "draft_log_probs", torch.zeros(2, 0, 8), "draft_log_probs has no rows"),
        (accept_drafts, "target_log_probs", torch.zeros(2, 3, 8), "it must be [2, 4, 8]"),
        (accept_drafts, "drafts", torch.zeros(2, 4).int(), "drafts has shape [2, 4]"),
        (accept_drafts, "position", STEP.expand(2, 3), "position has shape [2, 3]"),
        (accept_drafts, "step", STEP.expand(2, 1), "it must broadcast to [2]"),
        (accept_drafts, "step", STEP.to("meta"), "step is on meta; it must be on cpu"),
    ],
)
def test_bad_argument_is_named(op: Callable, name: str, value: object, message: str) -> None:
    good = ARGUMENTS[op] | {"table": TABLE}
    assert op(**good) is not None
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        op(**good | {name: value})
