"""Medians, quartiles and how many runs they are of."""

import time

import pytest
import torch

from dlm_bench.timing import MAX_RUNS, MIN_RUNS, Stopwatch, summary

CPU = torch.device("cpu")


def test_summary_is_the_median_and_the_quartiles() -> None:
    timing = summary([9.0, 1.0, 3.0, 5.0, 7.0], graph=False)
    assert (timing.low, timing.median, timing.high) == (3.0, 5.0, 7.0)
    assert timing.runs == 5 and timing.cold and not timing.graph


def test_one_slow_run_does_not_move_the_median() -> None:
    assert summary([1.0] * 9 + [1000.0], graph=True).median == 1.0


def test_a_sleep_takes_its_time() -> None:
    timing = Stopwatch(CPU, budget=0.05).time(lambda: time.sleep(0.01))
    assert 0.01 <= timing.low <= timing.median < 0.1


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [(0.35, MIN_RUNS["cpu"]), (0, MAX_RUNS)],
    ids=["longer than the budget", "next to nothing"],
)
def test_runs_follow_the_budget_within_bounds(seconds: float, runs: int) -> None:
    assert Stopwatch(CPU, budget=0.3).time(lambda: time.sleep(seconds)).runs == runs


def test_every_run_starts_from_a_reset_state() -> None:
    state = torch.zeros(1)
    seen = []

    def run() -> None:
        seen.append(state.item())
        state.add_(1)

    timing = Stopwatch(CPU, budget=0.01).time(run, reset=state.zero_)
    assert seen == [0.0] * len(seen)
    assert len(seen) > timing.runs  # the warm-up too


@pytest.mark.gpu
def test_graph_replay_runs_what_was_captured() -> None:
    device = torch.device("cuda")
    state = torch.zeros(1, device=device)
    stopwatch = Stopwatch(device, budget=0.01)
    timing = stopwatch.time_graph(lambda: state.add_(1), reset=state.zero_)
    torch.cuda.synchronize()
    assert state.item() == 1
    assert timing.graph and timing.cold
