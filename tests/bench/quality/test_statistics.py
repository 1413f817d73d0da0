"""Intervals: against published values, and by how often they hold the truth."""

import random

import numpy as np
import pytest

from dlm_bench.quality import statistics
from dlm_bench.quality.statistics import paired_difference, ratio, ratios, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, 857-872: table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_textbooks_intervals(right: int, n: int, low: float, high: float) -> None:
    found = wilson(right, n)
    assert found.value == right / n
    assert found[1:] == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - right, n)
    assert mirrored[1:] == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 2016])
def test_wilson_holds_its_value_at_both_ends(n: int) -> None:
    none, all_ = wilson(0, n), wilson(n, n)
    assert none.value == none.low == 0 < none.high
    assert all_.value == all_.high == 1 > all_.low


@pytest.mark.parametrize(("right", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_share(right: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"right is {right} of n = {n}"):
        wilson(right, n)


def test_a_ratio_s_interval_holds_the_truth_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forwards drawn so that their ratio to the tokens is 1 / 3 in expectation."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        forwards = rng.integers(1, 12, 80)
        tokens = rng.poisson(3 * forwards)
        estimate = ratio(tokens, forwards)
        assert estimate.low <= estimate.value <= estimate.high
        held += estimate.low <= 3 <= estimate.high
    assert 0.89 <= held / 200 <= 0.99


def test_a_ratio_is_one_of_sums_and_always_the_same() -> None:
    assert ratio([30, 2], [3, 2]).value == 32 / 5
    assert ratio([30, 2, 8], [3, 2, 4]) == ratio([30, 2, 8], [3, 2, 4])
    assert ratio([1, 2], [0, 0]) is None
    # Examples without a forward leave some resamples without any.
    assert ratio([1, 4], [0, 2]).value == 2.5


def test_columns_are_resampled_by_example() -> None:
    """Ten cycles of an answer that all end alike are worth one, not ten."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 60)
    cycles = np.full(60, 10)
    apart, together = ratios(np.stack([right, 10 * right], 1), np.stack([cycles // 10, cycles], 1))
    assert apart == together == ratio(right, cycles // 10)
    independent = wilson(int(10 * right.sum()), 600)
    assert together.high - together.low > 2 * (independent.high - independent.low)
    column = ratios(np.zeros((3, 2)), np.array([[1, 0], [1, 0], [1, 0]]))
    assert column == [(0, 0, 0), None]


def test_a_paired_difference_cancels_what_both_share() -> None:
    rng = random.Random(0)
    hard = [rng.random() < 0.5 for _ in range(400)]
    assert paired_difference(hard, hard) == (0, 0, 0)
    # Ten of 400 lost: 2.5 points, known far better than the shares of about a half.
    worse = [right and i >= 20 for i, right in enumerate(hard)]
    lost = sum(hard[:20]) / 400
    found = paired_difference(worse, hard)
    assert found.value == pytest.approx(-lost)
    assert -lost - 0.02 < found.low < -lost < found.high < 0
    theirs = wilson(sum(hard), 400)
    assert found.high - found.low < (theirs.high - theirs.low) / 2


def test_columns_of_other_examples_are_refused() -> None:
    for ours, theirs in (([True], [True, False]), ([], [])):
        with pytest.raises(ValueError, match="must be the same ones"):
            paired_difference(ours, theirs)
