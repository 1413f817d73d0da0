"""Median of many runs, each from cold caches.

Ahead of every run a buffer is read that is many times a GPU's L2, or more than the caches of a few
host cores hold: what the run needs then comes from memory, and unlike a write this leaves no dirty
lines to drain inside the timed run. On a GPU that read also keeps the device busy while the host
queues the run, so that the launches of a short op are not timed with it.

A host's pace changes by the second where others share it. So between its runs a fixed product is
timed, a read, and calls that do nothing much. A virtual machine's cores move as well: at one moment
they share a cache, at the next they lie on dies apart, each with a way to memory of its own but far
from what the other wrote, or take turns on one; and beside each another's work may come and go.
Then reads are faster and products slower, or calls alone are slower, so that nothing puts such
times at one pace. So a run counts if all three, before and after it, took about what was the rule
at first, and what is left of the product's change is the run's pace.
"""

import time
from collections.abc import Callable
from statistics import mean, median, quantiles
from typing import NamedTuple

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

# Its runs at first; with patience so long apart that they see what is the rule.
YARDSTICK_RUNS, PAUSE = 100, 0.05

# Additions of next to nothing whose time tells the pace of calls.
CALLS = 60

# How long to look at the host after a run, as a part of the run: one look takes milliseconds and
# says little of a run of seconds.
LOOKED = 0.05

# How far product, read and calls may be from those at first, as a factor, for a run to count; and
# what part of its patience a stopwatch spends on one function: of four minutes five seconds.
ALIKE, MOST_PATIENCE = 1.3, 1 / 48


class Surroundings(NamedTuple):
    """Seconds that the yardstick, then reading the buffer, then CALLS took between two runs."""

    product: float
    read: float
    calls: float

    def alike(self, other: "Surroundings") -> bool:
        return all(
            1 / ALIKE < mine / theirs < ALIKE for mine, theirs in zip(self, other, strict=True)
        )


class Stopwatch:
    """Times functions on one device.

    On a host every timing has the pace of its runs: how many times as long as when the stopwatch
    was made its yardstick took. Runs that met other surroundings than were the rule then are made
    again, as long as there is patience; without it they count, and the timing is not steady.

    patience: seconds in all to spend on such runs, and on waiting for the host to be as it was;
        `waited` says how many it spent. On one function it spends MOST_PATIENCE of them.
    budget: seconds to spend on the runs of one function, and on emptying the caches ahead of each;
        at least MIN_RUNS are made, of a long one LONG_RUNS, and at most MAX_RUNS.
    """

    def __init__(self, device: torch.device, *, budget: float, patience: float = 0.0) -> None:
        self.device = device
        self.budget = budget
        self.waited, self._patience = 0.0, patience
        self._for_one = MOST_PATIENCE * patience
        self._flush = torch.ones(FLUSH_BYTES[device.type] // 4, device=device)
        self._flush_seconds = min(run_seconds(self._flush.sum, device, runs=3))
        self._yardstick: Callable[[], object] | None = None
        if device.type == "cpu":
            rows, features, times = YARDSTICK
            x = torch.randn(rows, features)
            weights = [torch.randn(features, features) for _ in range(times)]
            self._yardstick = lambda: [x @ weight.T for weight in weights]
            self._two = torch.ones(2)
            self._usual = self._the_rule()

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
        def before() -> None:
            reset()
            self._flush.sum()

        def seconds_of(runs: int) -> list[float]:
            return run_seconds(fn, self.device, runs=runs, before=before)

        # The first run warms up; the next ones say how many there are to be.
        (warm,) = seconds_of(1)
        if self._yardstick:
            return self._one_by_one(lambda: seconds_of(1)[0])
        seconds = seconds_of(2 if warm < self.budget else 1)
        seconds += seconds_of(self._runs(min(seconds)) - len(seconds))
        return summary(seconds, graph=graph)

    def _runs(self, once: float) -> int:
        """How many runs there are to be of what takes so long."""
        least = LONG_RUNS if once > LONG else MIN_RUNS[self.device.type]
        around = self._flush_seconds
        if self._yardstick:
            around += 2 * self._flush_seconds + self._usual.product
        return max(least, min(int(self.budget / (once + around)), MAX_RUNS))

    def _one_by_one(self, run: Callable[[], float]) -> Timing:
        """Of runs on a host, with a look at it between them."""
        steady: list[tuple[float, float]] = []  # seconds, and pace
        others: list[tuple[float, float]] = []
        patience = at_first = min(self._for_one, self._patience)
        before = self._look()
        while True:
            began = time.perf_counter()
            if patience > 0 and not before.alike(self._usual):
                time.sleep(PAUSE)
                before = self._look()
                patience -= time.perf_counter() - began
                continue
            seconds = run()
            after = self._looks_after(seconds)
            pace = mean((before.product, after.product)) / self._usual.product
            if before.alike(self._usual) and after.alike(self._usual):
                steady.append((seconds, pace))
            else:
                others.append((seconds, pace))
                patience -= time.perf_counter() - began
            before = after
            wanted = self._runs(min(steady + others)[0])
            if len(steady) >= wanted or (patience <= 0 and len(steady + others) >= wanted):
                break
        spent = at_first - max(patience, 0.0)  # without patience left nothing is waited for
        self._patience -= spent
        self.waited += spent
        is_steady = len(steady) >= min(wanted, LONG_RUNS)
        counted = steady if is_steady else steady + others
        return summary(
            [seconds for seconds, _ in counted],
            graph=False,
            pace=median(pace for _, pace in counted),
            steady=is_steady,
        )

    def _looks_after(self, seconds: float) -> Surroundings:
        """How the host is after a run that took `seconds`: medians over looks, an odd number of
        them, so that each is what one of them saw.
        """
        usual = self._usual
        looks = int(LOOKED * seconds / (usual.product + 2 * usual.read + usual.calls))
        return _middle([self._look() for _ in range(looks | 1)])

    def _look(self) -> Surroundings:
        """How the host is now; the yardstick's time is from cold caches."""
        self._flush.sum()
        looks = (self._yardstick, self._flush.sum, self._call_often)
        return Surroundings(*(run_seconds(look, self.device, runs=1)[0] for look in looks))

    def _call_often(self) -> None:
        for _ in range(CALLS):
            torch.add(self._two, self._two)

    def _the_rule(self) -> Surroundings:
        """The medians of those surroundings that most others are like."""
        met = []
        for _ in range(YARDSTICK_RUNS):
            met.append(self._look())
            if self._patience > 0:
                time.sleep(PAUSE)
        groups = [[each for each in met if each.alike(one)] for one in met]
        return _middle(max(groups, key=len))


def _middle(met: list[Surroundings]) -> Surroundings:
    """The median of each."""
    return Surroundings(*map(median, zip(*met, strict=True)))


def summary(
    seconds: list[float],
    *,
    graph: bool,
    pace: float | None = None,
    steady: bool | None = None,
) -> Timing:
    """Median and quartiles of cold runs; of one run all three are that run."""
    low, middle, high = (
        quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return Timing(middle, low, high, len(seconds), cold=True, graph=graph, pace=pace, steady=steady)
