"""What tables and pictures are computed from: the frontier, acceptance, and who is compared."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from dlm_bench.quality.evaluate import Setting
from dlm_bench.quality.frontier import frontier, points
from dlm_bench.quality.grid import AUTOREGRESSIVE, linear_spec
from dlm_bench.quality.records import OracleDraft, QualityRecord, Result
from dlm_bench.quality.scores import (
    acceptance,
    common_length,
    exact_tasks,
    fastest_near_ar,
    headline,
    indices,
    oracle_tpf,
    pareto,
    right_by_itself,
    score,
)
from dlm_bench.quality.statistics import ratio


def test_the_frontier_is_what_nothing_beats() -> None:
    rng = random.Random(0)
    for _ in range(50):
        points = [(rng.randint(0, 6), rng.randint(0, 6)) for _ in range(rng.randint(1, 12))]
        kept = [points[i] for i in pareto(points)]
        beaten = [any(x >= p[0] and y >= p[1] and (x, y) != p for x, y in points) for p in points]
        assert set(kept) == {p for p, lost in zip(points, beaten, strict=True) if not lost}
        assert len(set(kept)) == len(kept) and kept == sorted(kept)


def test_the_frontier_of_nothing_right() -> None:
    assert pareto([(1.0, 0.0), (3.0, 0.0), (2.0, 0.0)]) == [1]
    assert pareto([]) == []


def test_tasks_come_in_turn_and_python_apart(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    assert exact_tasks(record) == ["sort", "add"]
    assert indices(record, ["add"], 9) == [1, 4, 7]
    assert common_length(record) == 30
    assert list(headline(record)) == ["AR", "diffusion", "linear", "linear, LoRA"]


def test_a_score_compares_with_ar_on_the_same_examples(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    ar = record.result(AUTOREGRESSIVE)
    # Right where AR is, but for the first three; the fourth has other tokens.
    right = [False] * 3 + ar.right[3:30]
    other = replace(
        ar,
        setting=linear_spec(16, lora=True),
        right=right,
        tokens=ar.tokens[:30],
        forwards=[2] * 30,
        digests=["00"] * 3 + ["ff"] + ["00"] * 26,
    )
    found = score(record, other, ["sort", "add"], 30)
    index = [i for i in range(30) if i % 3 != 2]
    assert found.examples == 20
    assert found.right.value == sum(right[i] for i in index) / 20
    assert found.apart.value == pytest.approx(sum(right[i] - ar.right[i] for i in index) / 20)
    assert found.same == 19
    # The prefill gave the first of each answer.
    assert found.tokens == sum(ar.tokens[i] for i in index)
    assert found.counted == found.tokens - 20 and found.forwards == 40
    assert found.tpf.value == pytest.approx(found.counted / 40)
    assert score(record, other, ["lookup"], 30) is None
    unseeded = replace(other, setting=Setting("diffusion", rule="llada2", block_length=16))
    assert score(record, unseeded, ["sort", "add"], 30).counted == found.tokens
    without = replace(record, results=[other])
    assert score(without, other, ["sort"], 30).apart is None


def test_positions_count_only_within_the_answer(made_up: Callable[..., QualityRecord]) -> None:
    """Blocks of 4. Answers of 8 tokens, the prefill's first, and of 3."""
    record = made_up()
    result = replace(
        record.result(linear_spec(16, lora=False)),
        setting=linear_spec(4, lora=False),
        right=[True] * 3,
        tokens=[8, 3, 1],
        forwards=[4, 2, 0],
        digests=["00"] * 3,
        cycles=[[3, 1, 4], [4], []],
    )
    # The first: left 7, 4 and 3, two drafts right, none, three (and the bonus is past the end).
    # The second: left 2, so its third draft counts for nothing.
    found = acceptance(record, result, ["sort", "add", "python"])
    assert [(each.cycles, each.accepted) for each in found] == [(4, 3), (4, 3), (3, 1)]
    # Intervals are over the three examples, of which two have cycles.
    assert [each.share for each in found] == [
        ratio([2, 1, 0], [3, 1, 0]),
        ratio([2, 1, 0], [3, 1, 0]),
        ratio([1, 0, 0], [3, 0, 0]),
    ]
    assert [(each.cycles, each.accepted) for each in acceptance(record, result, ["add"])] == [
        (1, 1),
        (1, 1),
    ]
    assert acceptance(record, result, ["python"]) == []


def test_drafts_right_by_themselves(made_up: Callable[..., QualityRecord]) -> None:
    drafts = OracleDraft(
        4, False, [8, 3, 1], [[1], [2], []], [[3], [2], []], [["011", "11"], ["01"], []], 1.0
    )
    found = right_by_itself(made_up(), drafts, ["sort", "add", "python"])
    assert [(each.cycles, each.accepted) for each in found] == [(3, 1), (3, 3), (1, 1)]


def test_the_oracle_is_a_ratio_of_sums(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    oracle = record.oracle_diffusion[0]
    for n in (30, 12):
        index = indices(record, ["add"], n)
        tokens = sum(oracle.tokens[i] - 1 for i in index)
        forwards = sum(oracle.forwards[i] for i in index)
        assert oracle_tpf(record, oracle, ["add"], n).value == pytest.approx(tokens / forwards)
        forwards += sum(oracle.forced[i] for i in index)
        slower = oracle_tpf(record, oracle, ["add"], n, forced_forwards=True)
        assert slower.value == pytest.approx(tokens / forwards)
    assert oracle_tpf(record, oracle, ["lookup"], 30) is None


def test_the_fastest_setting_near_ar_or_else_the_nearest(
    made_up: Callable[..., QualityRecord],
) -> None:
    """AR is right on all of 100; others lose 0, 3, 4 and 20 points, the faster the more."""
    record = made_up()
    n = 100 * len(record.sample.tasks)
    sample = replace(record.sample, per_task=100)

    def result(setting: Setting, lost: int, forwards: int) -> Result:
        right = [i // len(record.sample.tasks) >= lost for i in range(n)]
        kinds = {"denoise": n * forwards}
        columns = ([20] * n, [forwards] * n, ["00"] * n)
        return Result(setting, right, *columns, [], kinds, 1.0, 1.0, [])

    others = [
        result(Setting("diffusion", threshold=threshold, block_length=8), lost, forwards)
        for threshold, lost, forwards in ((0.95, 0, 12), (0.9, 3, 9), (0.8, 4, 8), (0.5, 20, 4))
    ]
    ar = result(AUTOREGRESSIVE, 0, 19)

    def threshold(results: list[Result]) -> float:
        changed = replace(record, sample=sample, results=[ar, *results])
        return fastest_near_ar(changed, 8, n)[0].setting.threshold

    assert threshold(others) == 0.9
    assert threshold(others[2:]) == 0.8
    # What is slower than AR is no gain, however right.
    slower = result(Setting("diffusion", threshold=1.0, block_length=8), 0, 20)
    assert threshold([slower, *others[2:]]) == 0.8
    assert fastest_near_ar(replace(record, sample=sample, results=[ar, *others]), 16, n) is None


def test_all_are_compared_on_what_all_saw(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    headline_only = replace(record, results=record.results[:4])
    assert common_length(headline_only) == 30  # the oracles'
    assert common_length(replace(headline_only, oracle_diffusion=[], oracle_drafts=[])) == 120
    assert common_length(replace(record, results=[])) == 0


def test_the_frontier_s_points_have_the_wall_time_of_the_same_examples(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    shown = points(record)
    # 10 examples of each of three tasks in 0.75 s, of which those of two are timed.
    assert [point.ms for point in shown] == pytest.approx([37.5] * len(shown))
    kept = frontier(shown)
    assert [shown[i] for i in pareto([(p.x, p.y) for p in shown])] == kept
    assert {point.score.examples for point in shown} == {20}
