"""Median of many runs, each from cold caches.

Ahead of every run a buffer is read that is many times a GPU's L2, or more than the caches of a few
host cores hold: what the run needs then comes from memory, and unlike a write this leaves no dirty
lines to drain inside the timed run. On a GPU that read also keeps the device busy while the host
queues the run, so that the launches of a short op are not timed with it.

A host's pace changes by the second where others share it, as much as by half. So ahead of each run
a fixed product is timed as well, which tells the pace that the run had.
"""

import time
from collections.abc import Callable
from statistics import median, quantiles

import torch

from dlm_roofline.ceilings import run_seconds
from dlm_roofline.records import Timing

FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
MIN_RUNS = {"cpu": 5, "cuda": 10}
MAX_RUNS = 100

# Seconds from which on a run is long enough for a few to tell.
LONG, LONG_RUNS = 0.25, 3

# A host's yardstick: rows, features, and how many products by weights of their own, which take a
# few ms and, as an op does, both read and multiply.
YARDSTICK = (32, 1024, 4)

# Its runs at first, whose median is the pace that counts as 1: with the caches emptied ahead of
# each they take a second or more, which outlasts the short spells when others are at work.
YARDSTICK_RUNS = 60

# Times the first pace from which a function is timed again: beyond it, the yardstick and the
# function need not have been slowed alike.
SLOW_PACE = 1.4
TRIES, PAUSE = 3, 1.0  # at most so many, so many seconds apart


class Stopwatch:
    """Times functions on one device.

    On a host every timing has the pace of its runs: how many times as long as when the stopwatch
    was made its yardstick took. What met a pace of SLOW_PACE or more is timed again, and the try
    with the lowest pace counts.

    budget: seconds to spend on the runs of one function, and on emptying the caches ahead of each;
        at least MIN_RUNS are made, of a long one LONG_RUNS, and at most MAX_RUNS.
    """

    def __init__(self, device: torch.device, *, budget: float) -> None:
        self.device = device
        self.budget = budget
        self._flush = torch.ones(FLUSH_BYTES[device.type] // 4, device=device)
        self._flush_seconds = min(run_seconds(self._flush.sum, device, runs=3))
        self._yardstick = self._first_pace = None
        if device.type == "cpu":
            rows, features, times = YARDSTICK
            x = torch.randn(rows, features)
            weights = [torch.randn(features, features) for _ in range(times)]
            self._yardstick = lambda: [x @ weight.T for weight in weights]
            self._first_pace = median(self._yardstick_seconds() for _ in range(YARDSTICK_RUNS))

    def time(
        self, fn: Callable[[], object], *, reset: Callable[[], object] = lambda: None
    ) -> Timing:
        """Quartiles over runs of `fn`; `reset` puts back, untimed, what a run changes in place."""
        return self._time(fn, reset, graph=False)

    def time_graph(
        self, fn: Callable[[], object], *, reset: Callable[[], object] = lambda: None
    ) -> Timing:
        """As `time`, of `fn` captured in a CUDA graph and replayed: the device's time alone."""
        reset()
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            fn()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        reset()
        # A capture that fails leaves its own stream current; the outer block puts ours back.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            torch.cuda.graph(graph),
        ):
            fn()
        return self._time(graph.replay, reset, graph=True)

    def _time(
        self, fn: Callable[[], object], reset: Callable[[], object], *, graph: bool
    ) -> Timing:
        """Timed again where the host was far from the pace that it had at first."""
        tries = [self._once(fn, reset, graph=graph)]
        if tries[0].pace is None:
            return tries[0]
        while tries[-1].pace >= SLOW_PACE and len(tries) < TRIES:
            time.sleep(PAUSE)
            tries.append(self._once(fn, reset, graph=graph))
        return min(tries, key=lambda each: each.pace)

    def _once(
        self, fn: Callable[[], object], reset: Callable[[], object], *, graph: bool
    ) -> Timing:
        paces = []

        def before() -> None:
            if self._yardstick:
                paces.append(self._yardstick_seconds() / self._first_pace)
            reset()
            self._flush.sum()

        def seconds_of(runs: int) -> list[float]:
            return run_seconds(fn, self.device, runs=runs, before=before)

        # The first run warms up; the next ones say how many there are to be.
        (warm,) = seconds_of(1)
        seconds = seconds_of(2 if warm < self.budget else 1)
        once = min(seconds)
        least = LONG_RUNS if once > LONG else MIN_RUNS[self.device.type]
        around = self._flush_seconds
        if self._yardstick:
            around += self._flush_seconds + self._first_pace
        affordable = int(self.budget / (once + around))
        seconds += seconds_of(max(least, min(affordable, MAX_RUNS)) - len(seconds))
        return summary(seconds, graph=graph, pace=median(paces[1:]) if paces else None)

    def _yardstick_seconds(self) -> float:
        """Of a fixed product, from cold caches."""
        self._flush.sum()
        return run_seconds(self._yardstick, self.device, runs=1)[0]


def summary(seconds: list[float], *, graph: bool, pace: float | None = None) -> Timing:
    """Median and quartiles of cold runs; of one run all three are that run."""
    low, middle, high = (
        quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return Timing(middle, low, high, len(seconds), cold=True, graph=graph, pace=pace)
