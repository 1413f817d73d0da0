"""Medians, quartiles and how many runs they are of."""

import time

import pytest
import torch

from dlm_bench import timing
from dlm_bench.timing import LONG, LONG_RUNS, MAX_RUNS, MIN_RUNS, Stopwatch, summary
from dlm_roofline.records import Timing

CPU = torch.device("cpu")


def test_summary_is_the_median_and_the_quartiles() -> None:
    found = summary([9.0, 1.0, 3.0, 5.0, 7.0], graph=False)
    assert (found.low, found.median, found.high) == (3.0, 5.0, 7.0)
    assert found.runs == 5 and found.cold and not found.graph


def test_one_slow_run_does_not_move_the_median() -> None:
    assert summary([1.0] * 9 + [1000.0], graph=True).median == 1.0


def test_a_sleep_takes_its_time() -> None:
    found = Stopwatch(CPU, budget=0.05).time(lambda: time.sleep(0.01))
    assert 0.01 <= found.low <= found.median < 0.1


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    """It knows how long each run takes, and that emptying the caches takes 10 ms."""
    watch = Stopwatch(CPU, budget=0.3)
    watch._flush_seconds, watch._yardstick = 0.01, None

    def known(fn, device, *, runs: int, before) -> list[float]:
        return [fn() for _ in range(runs)]

    monkeypatch.setattr(timing, "run_seconds", known)
    return watch


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [
        (LONG + 0.01, LONG_RUNS),
        (0.2, MIN_RUNS["cpu"]),
        (0.02, 10),
        (1e-5, 29),
    ],
    ids=["long", "longer than the budget allows", "in between", "next to nothing"],
)
def test_runs_follow_the_budget_within_bounds(
    stopwatch: Stopwatch, seconds: float, runs: int
) -> None:
    """Emptying the caches counts: 0.3 s are 10 runs of 20 ms and of 10 ms before each."""
    assert stopwatch.time(lambda: seconds).runs == runs


def test_no_function_is_run_more_than_so_often(stopwatch: Stopwatch) -> None:
    stopwatch.budget = 100.0
    assert stopwatch.time(lambda: 1e-6).runs == MAX_RUNS


def test_a_slow_first_run_neither_counts_nor_decides(stopwatch: Stopwatch) -> None:
    seconds = iter([9.0] + [0.02] * 10)
    found = stopwatch.time(lambda: next(seconds))
    assert found.runs == 10 and found.high == 0.02


def test_the_pace_of_the_runs_is_that_of_the_yardstick_beside_them() -> None:
    """On a host 1.2 times as slow as at first, what takes 24 ms would have taken 20."""
    watch = Stopwatch(CPU, budget=0.05)
    watch._first_pace = 0.01
    watch._yardstick = lambda: time.sleep(0.012)
    found = watch.time(lambda: time.sleep(0.024))
    assert found.pace == pytest.approx(1.2, rel=0.15)
    assert found.paced == pytest.approx(found.median / found.pace)


@pytest.mark.parametrize(
    ("paces", "kept"),
    [((1.3,), 1.3), ((1.6, 1.1), 1.1), ((1.6, 1.9, 1.7), 1.6)],
    ids=["calm", "the second is calm", "never calm, the first was calmest"],
)
def test_what_met_a_slow_host_is_timed_again_and_the_calmer_try_counts(
    monkeypatch: pytest.MonkeyPatch, paces: tuple[float, ...], kept: float
) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    watch = Stopwatch(CPU, budget=0.01)
    once, left, now = watch._once, list(paces), []

    def a_try(*args: object, **options: object) -> Timing:
        now.append(left.pop(0))
        return once(*args, **options)

    monkeypatch.setattr(watch, "_once", a_try)
    monkeypatch.setattr(watch, "_yardstick_seconds", lambda: now[-1] * watch._first_pace)
    found = watch.time(lambda: None)
    assert found.pace == pytest.approx(kept)
    assert left == []


def test_without_a_pace_the_median_counts() -> None:
    assert summary([3.0], graph=True).paced == 3.0


def test_every_run_starts_from_a_reset_state() -> None:
    state = torch.zeros(1)
    seen = []

    def run() -> None:
        seen.append(state.item())
        state.add_(1)

    found = Stopwatch(CPU, budget=0.01).time(run, reset=state.zero_)
    assert seen == [0.0] * len(seen)
    assert len(seen) > found.runs  # the warm-up too


@pytest.mark.gpu
def test_graph_replay_runs_what_was_captured() -> None:
    device = torch.device("cuda")
    state = torch.zeros(1, device=device)
    stopwatch = Stopwatch(device, budget=0.01)
    found = stopwatch.time_graph(lambda: state.add_(1), reset=state.zero_)
    torch.cuda.synchronize()
    assert state.item() == 1
    assert found.graph and found.cold
