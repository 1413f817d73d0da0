"""Shares, tokens per forward and their intervals: against published values and by hand."""

from dataclasses import replace
from statistics import mean, stdev

import pytest

from dlm_bench.quality.records import Decoded, Oracle, QualityRecord, Result
from dlm_bench.quality.scores import Z, frontier, ratio, score, wilson
from dlm_bench.quality.settings import AUTOREGRESSIVE, Setting

from .conftest import quality_record


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, 857-872: table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (0, 1, 0.0, 0.7935),
    ],
)
def test_wilson_gives_the_textbooks_intervals(right: int, n: int, low: float, high: float) -> None:
    found = wilson(right, n)
    assert found.value == right / n
    assert found[1:] == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - right, n)[1:] == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_ratio_is_one_of_sums_with_the_interval_of_its_residuals() -> None:
    found = ratio([30, 2, 8], [3, 2, 4])
    half = Z * (3 / 2 * ((150 / 9) ** 2 + (62 / 9) ** 2 + (88 / 9) ** 2)) ** 0.5 / 9
    assert found == pytest.approx((40 / 9, 40 / 9 - half, 40 / 9 + half))
    assert ratio([2], [1]) == (2, 2, 2) and ratio([1, 2], [0, 0]) is ratio([], []) is None
    values = [3.0, 1.0, 4.0, 1.0, 5.0]  # of ones it is the usual interval of a mean
    low = mean(values) - Z * stdev(values) / len(values) ** 0.5
    assert ratio(values, [1] * 5)[:2] == pytest.approx((mean(values), low))


def decoded(rights: str, tokens: int, forwards: int, digests: str) -> list[Decoded]:
    pairs = zip(rights, digests, strict=True)
    return [Decoded(right == "1", tokens, forwards, digest) for right, digest in pairs]


def small_record(*results: Result) -> QualityRecord:
    """Of two examples of each of two tasks, the first of each by every setting."""
    return quality_record(results, per_task=2, common=1, tasks=["sort", "python"])


def test_a_score_counts_the_examples_of_its_tasks() -> None:
    ar = Result.of(AUTOREGRESSIVE, decoded("1101", 11, 10, "abcd"), 1.0)
    other = Result.of(Setting("diffusion", block_length=8), decoded("1001", 11, 4, "abxd"), 1.0)
    record = small_record(ar, other)
    both = score(record, other, ["sort", "python"])
    assert both["examples"] == 4 and both["same_as_ar"] == 3
    assert (both["right"], both["right_less_ar"]) == (0.5, -0.25)
    assert both["right_low"] == pytest.approx(wilson(2, 4).low, abs=1e-4)
    assert both["right_less_ar_low"] == pytest.approx(ratio([0, -1, 0, 0], [1] * 4).low, abs=1e-4)
    # The prefill gave the first of each answer's tokens.
    assert (both["tokens"], both["forwards"], both["tpf"]) == (44, 16, 2.5)
    assert score(record, ar, ["sort", "python"])["tpf"] == 1
    # Sort has the first and the third.
    sort = score(record, other, ["sort"])
    assert (sort["examples"], sort["right"], sort["same_as_ar"]) == (2, 0.5, 1)
    assert score(record, other, ["sort"], n=2)["right"] == 1
    assert score(record, other, ["lookup"]) is None
    # Rules that take no token from the prefill count all of theirs.
    unseeded = Setting("diffusion", rule="llada2", block_length=8)
    assert score(record, Result.of(unseeded, other.examples, 1.0), ["sort"])["tpf"] == 11 / 4
    # Without AR of the same weights there is nothing to compare with.
    int4 = Result.of(replace(other.setting, weights="int4"), other.examples, 1.0)
    for alone in (score(small_record(other), other, ["sort"]), score(record, int4, ["sort"])):
        assert alone["right_less_ar"] is alone["same_as_ar"] is None
    own = Result.of(replace(AUTOREGRESSIVE, weights="int4"), ar.examples, 1.0)
    assert score(small_record(own, int4), int4, ["sort", "python"])["same_as_ar"] == 3


def test_the_frontier_is_what_no_other_beats_on_the_common_examples() -> None:
    """Thresholds that lose answers as they gain speed, but for one that only loses."""

    def result(threshold: float, rights: str, forwards: int, **how) -> Result:
        setting = Setting("diffusion", threshold=threshold, block_length=8, **how)
        return Result.of(setting, decoded(rights, 11, forwards, "aaaa"), 0.5)

    record = small_record(
        Result.of(AUTOREGRESSIVE, decoded("1100", 11, 10, "aaaa"), 2.0),
        result(0.95, "1100", 8),
        result(0.9, "0011", 5),
        result(0.7, "0000", 4),
        result(0.5, "0000", 2),
        result(0.5, "1111", 1, weights="int4"),  # another model, in a way
    )
    record.oracles.append(Oracle(8, [4, 4]))
    rows = frontier(record)
    # The first of each task is common to all, and the Python function does not count.
    assert [(row["mode"], row["right"], row["tpf"]) for row in rows] == [
        ("autoregressive", 1, 1),
        ("diffusion", 1, 1.25),
        ("diffusion", 0, 2),
        ("diffusion", 0, 2.5),
        ("diffusion", 0, 5),
        ("oracle", 1, 2.5),
    ]
    assert [row["on_frontier"] for row in rows] == [False, True, False, False, True, False]
    # Milliseconds are of one example of one task.
    assert [row["ms"] for row in rows] == [2000, *[500] * 4, None]
