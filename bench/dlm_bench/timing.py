"""How anything is timed: medians over runs, each from cold caches.

On a GPU a function is captured in a CUDA graph and replayed, so that the host's launches don't
count; before each replay a buffer larger than L2 is read. On a host functions that are compared
take turns, run by run: what else the host does then slows all of them alike, and the ratio of their
medians holds where their seconds don't.
"""

from collections.abc import Callable, Mapping
from statistics import quantiles

import torch

from dlm_roofline.ceilings import run_seconds
from dlm_roofline.records import Timing

FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
FEWEST_RUNS, MOST_RUNS = 5, 100

Call = Callable[[], object]


def nothing() -> None:
    """Puts nothing back."""


class Timer:
    """budget: seconds to spend on one function's runs, and on emptying the caches before each."""

    def __init__(self, device: torch.device, *, budget: float) -> None:
        self.device, self.budget = device, budget
        self._flush = torch.ones(FLUSH_BYTES[device.type] // 4, device=device)

    def time(self, fn: Call, *, reset: Call = nothing) -> Timing:
        """Median and quartiles of `fn`; `reset` puts back, untimed, what a run changes in place."""
        return self.compare({"ours": fn}, reset=reset)["ours"]

    def compare(self, fns: Mapping[str, Call], *, reset: Call = nothing) -> dict[str, Timing]:
        """`time` of each function, by its name; on a host they take turns."""
        if self.device.type == "cuda":
            return {name: self._on_gpu(fn, reset) for name, fn in fns.items()}
        once = {name: min(self._seconds(fn, reset, 2)) for name, fn in fns.items()}
        runs, around = self._runs(sum(once.values()) / len(fns)), dict[str, list[float]]()
        for _ in range(runs):
            for name, fn in fns.items():
                around.setdefault(name, []).extend(self._seconds(fn, reset, 1))
        return {name: summary(seconds, graph=False) for name, seconds in around.items()}

    def _on_gpu(self, fn: Call, reset: Call) -> Timing:
        """Of a replayed graph; of calls where a graph can't hold it, as it waits for the host."""
        try:
            run, graph = captured(fn, self.device, reset).replay, True
        except RuntimeError:
            torch.cuda.synchronize(self.device)  # raises again where the device itself is lost
            run, graph = fn, False
        runs = self._runs(min(self._seconds(run, reset, 2)))
        return summary(self._seconds(run, reset, runs), graph=graph)

    def _runs(self, once: float) -> int:
        """How many runs fit into the budget of what takes so long."""
        flush = min(run_seconds(self._flush.sum, self.device, runs=2))
        return max(FEWEST_RUNS, min(int(self.budget / (once + flush)), MOST_RUNS))

    def _seconds(self, fn: Call, reset: Call, runs: int) -> list[float]:
        def before() -> None:
            reset()
            self._flush.sum()

        return run_seconds(fn, self.device, runs=runs, before=before)


def captured(fn: Call, device: torch.device, reset: Call = nothing) -> torch.cuda.CUDAGraph:
    """`fn` as a CUDA graph, after a run that compiles what it launches."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    reset()
    with torch.cuda.stream(side):
        fn()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    reset()
    # A capture that fails leaves its own stream current; the outer block puts ours back.
    with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph):
        fn()
    return graph


def summary(seconds: list[float], *, graph: bool) -> Timing:
    """Median and quartiles of cold runs; of one run all three are that run."""
    low, median, high = quantiles(seconds, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Timing(median, low, high, len(seconds), cold=True, graph=graph)
