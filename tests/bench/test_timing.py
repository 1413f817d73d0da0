"""Medians, quartiles and how many runs they are of."""

import time

import pytest
import torch

from dlm_bench import timing
from dlm_bench.timing import (
    LONG,
    LONG_RUNS,
    MAX_RUNS,
    MIN_RUNS,
    MOST_PATIENCE,
    Stopwatch,
    Surroundings,
    summary,
)

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
    watch._usual = Surroundings(0.01, 0.01, 1e-4)
    watch._yardstick = lambda: time.sleep(0.012)
    found = watch.time(lambda: time.sleep(0.024))
    assert found.pace == pytest.approx(1.2, rel=0.15)
    assert found.paced == pytest.approx(found.median / found.pace)


USUAL = Surroundings(3e-3, 4e-3, 8e-5)
APART, ON_ONE = Surroundings(3.6e-3, 2.5e-3, 8e-5), Surroundings(7e-3, 4e-3, 8e-5)
BESIDE_WORK = Surroundings(3e-3, 4e-3, 1.3e-4)


class Host:
    """A host on which a run takes 300 ms, and longer unless all is as usual before it."""

    def __init__(self, met: list[Surroundings]) -> None:
        self.met, self.now, self.runs = iter(met), USUAL, 0

    def look(self) -> Surroundings:
        self.now = next(self.met)
        return self.now

    def run(self, fn, device, *, runs: int, before=lambda: None) -> list[float]:
        self.runs += runs
        return [0.3 if self.now == USUAL else 0.5] * runs


def stopwatch_of(host: Host, monkeypatch: pytest.MonkeyPatch, patience: float) -> Stopwatch:
    watch = Stopwatch(CPU, budget=0.01)
    watch._usual, watch._patience, watch._for_one = USUAL, patience, patience
    monkeypatch.setattr(watch, "_look", host.look)
    monkeypatch.setattr(timing, "run_seconds", host.run)
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    return watch


@pytest.mark.parametrize(
    ("met", "runs"),
    [
        ([USUAL] * 4, 3),
        # It waits until the cores are together, each one's own, with nobody beside.
        ([APART, BESIDE_WORK, ON_ONE, USUAL, USUAL, USUAL, USUAL], 3),
        # They come apart within the second run, which is made again.
        ([USUAL, USUAL, APART, USUAL, USUAL, USUAL], 4),
    ],
    ids=["steady", "late", "once more"],
)
def test_runs_count_that_met_what_was_usual(
    met: list[Surroundings], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(met)
    watch = stopwatch_of(host, monkeypatch, patience=60.0)
    found = watch.time(lambda: None)
    assert (found.low, found.high, found.runs) == (0.3, 0.3, LONG_RUNS)
    assert found.steady and found.pace == pytest.approx(1.0)
    assert host.runs == 1 + runs  # the first warms up
    assert list(host.met) == []
    assert (watch.waited > 0) == (len(met) > 4)


def test_without_patience_every_run_counts_and_the_timing_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host([APART] * (1 + 3 * LONG_RUNS))  # three looks after each run of 500 ms
    watch = stopwatch_of(host, monkeypatch, patience=0.0)
    found = watch.time(lambda: None)
    assert watch.waited == 0.0  # that time is the run's own
    assert found.median == 0.5 and found.runs == LONG_RUNS and found.steady is False
    assert found.pace == pytest.approx(1.2)


def test_after_a_long_run_the_host_is_looked_at_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.3 s is a look, 1 s are five. Most of them count: fewer neither spoil nor mend a run."""
    for odd, steady in ([APART, APART, USUAL], True), ([APART] * 3, False):
        host = Host([USUAL] + [*odd, *[USUAL] * (5 - len(odd))] * LONG_RUNS)
        monkeypatch.setattr(host, "run", lambda *_, runs, **__: [1.0] * runs)
        found = stopwatch_of(host, monkeypatch, patience=0.0).time(lambda: None)
        assert (found.steady, found.runs, list(host.met)) == (steady, LONG_RUNS, [])


def test_patience_is_spent_in_parts_and_not_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is never as it was costs a function its part, and nothing once all is spent."""
    monkeypatch.setattr(timing, "YARDSTICK_RUNS", 2)
    watch = Stopwatch(CPU, budget=0.01, patience=0.1)
    host = Host([APART] * 1_000_000)
    watch._usual = USUAL
    monkeypatch.setattr(watch, "_look", host.look)
    monkeypatch.setattr(timing, "run_seconds", host.run)
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    watch.time(lambda: None)
    assert watch.waited == pytest.approx(0.1 * MOST_PATIENCE)
    for _ in range(round(2 / MOST_PATIENCE)):
        watch.time(lambda: None)
    assert watch.waited == pytest.approx(0.1)


def test_what_is_usual_is_what_most_looks_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(CPU, budget=0.01)
    monkeypatch.setattr(timing, "YARDSTICK_RUNS", 10)
    for met in ([APART] * 3 + [USUAL] * 5 + [ON_ONE] * 2, [APART] * 6 + [USUAL] * 4):
        monkeypatch.setattr(watch, "_look", iter(met).__next__)
        assert watch._the_rule() == max(met, key=met.count)


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
