"""Medians, quartiles, how many runs they are of, and who runs when."""

import time
from collections.abc import Callable

import pytest
import torch

from dlm_bench import timing
from dlm_bench.timing import FEWEST_RUNS, MOST_RUNS, Timer, summary

CPU = torch.device("cpu")


def test_summary_is_the_median_and_the_quartiles() -> None:
    found = summary([9.0, 1.0, 3.0, 5.0, 7.0], graph=False)
    assert (found.low, found.median, found.high) == (3.0, 5.0, 7.0)
    assert found.runs == 5 and found.cold and not found.graph
    assert summary([1.0] * 9 + [1000.0], graph=True).median == 1.0
    assert summary([2.0], graph=False).high == 2.0


def test_a_sleep_takes_its_time() -> None:
    found = Timer(CPU, budget=0.05).time(lambda: time.sleep(0.01))
    assert 0.01 <= found.low <= found.median < 0.1


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    """Functions say how long they took; emptying the caches takes 10 ms."""
    monkeypatch.setitem(timing.FLUSH_BYTES, "cpu", 4096)
    made = Timer(CPU, budget=0.3)

    def told(fn: Callable, device: torch.device, *, runs: int, before=lambda: None) -> list[float]:
        found = []
        for _ in range(runs):
            before()
            result = fn()
            found.append(result if isinstance(result, float) else 0.01)
        return found

    monkeypatch.setattr(timing, "run_seconds", told)
    return made


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [(5.0, FEWEST_RUNS), (0.02, 10), (1e-6, 29)],
    ids=["longer than the budget", "in between", "next to nothing"],
)
def test_runs_fill_the_budget(timer: Timer, seconds: float, runs: int) -> None:
    found = timer.time(lambda: seconds)
    assert found.runs == runs and found.median == seconds
    timer.budget = 1e9
    assert timer.time(lambda: seconds).runs == MOST_RUNS


def test_functions_take_turns_and_each_starts_from_cold_caches(timer: Timer) -> None:
    called: list[str] = []
    timer._flush = type("Flush", (), {"sum": lambda self: called.append("flush")})()

    def fn(name: str, seconds: float) -> Callable[[], float]:
        def run() -> float:
            called.append(name)
            return seconds

        return run

    def reset() -> None:
        called.append("reset")

    found = timer.compare({"a": fn("a", 0.02), "b": fn("b", 0.04)}, reset=reset)
    assert (found["a"].median, found["b"].median) == (0.02, 0.04)
    assert found["a"].runs == found["b"].runs == int(0.3 / (0.03 + 0.01))
    rounds = [each for each in called if each in "ab"][4:]  # after two runs of each that warm up
    assert "".join(rounds) == "ab" * found["a"].runs
    assert all(
        called[i - 2 : i] == ["reset", "flush"] for i, each in enumerate(called) if each in "ab"
    )


@pytest.mark.gpu
def test_a_graph_is_replayed_and_what_it_cannot_hold_is_called() -> None:
    device = torch.device("cuda", 0)
    x = torch.randn(1 << 24, device=device)
    timer = Timer(device, budget=0.1)
    held, waiting = timer.compare({"sum": x.sum, "item": lambda: x.sum().item()}).values()
    assert held.graph and not waiting.graph
    assert held.median > x.nbytes / 8e12  # its bytes come from memory, not from L2
