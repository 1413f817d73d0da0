"""What tables and pictures are computed from: the frontier, acceptance, and who is compared."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from dlm_bench.quality.grid import AUTOREGRESSIVE, linear_spec
from dlm_bench.quality.records import QualityRecord
from dlm_bench.quality.scores import (
    acceptance,
    common_length,
    exact_tasks,
    headline,
    indices,
    oracle_tpf,
    pareto,
    score,
)


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
    assert found.tpf.value == sum(ar.tokens[i] for i in index) / 40
    assert score(record, other, ["lookup"], 30) is None
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
    assert [(each.cycles, each.accepted) for each in acceptance(record, result, ["add"])] == [
        (1, 1),
        (1, 1),
    ]
    assert acceptance(record, result, ["python"]) == []


def test_the_oracle_is_a_ratio_of_sums(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    oracle = record.oracle_diffusion[0]
    index = indices(record, ["add"], 30)
    tokens = sum(oracle.tokens[i] for i in index)
    forwards = sum(oracle.forwards[i] for i in index)
    assert oracle_tpf(record, oracle, ["add"]).value == pytest.approx(tokens / forwards)
    assert oracle_tpf(record, oracle, ["lookup"]) is None
