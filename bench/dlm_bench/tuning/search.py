"""The search for one entry of a launch table.

A candidate differs from the best so far in one field, later in two. Its results are compared before
they are timed: with those of the entry that stands in the table, and bit for bit where its fields
leave bits alone. Of many candidates timed briefly the best three are timed at length against the
best so far, which the fastest replaces if it gains LEAST_GAIN.

The fields that fix a row's bits are searched first, together with those of the tile that serves the
rows that matter most; then each tile by itself; then the number of rows up to which the op's own
kernel is faster than torch's product.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from dlm_kernels.launch import tile_serving

from .changes import Axes, double_changes, single_changes
from .space import Call, Series, Space

LEAST_GAIN = 0.02
HOPELESS = 1.1  # times the best so far: a candidate this slow is timed on no further shape
FINALISTS = 3
BRIEFLY, AT_LENGTH = 0.0, 0.1  # seconds of timed runs; a stopwatch makes some in any case
LOOSELY = 3e-2  # share of the largest value: "fast" may round logits, which statistics show
ALL_ROWS = 2**31 - 1

Shape = tuple[Series, int]  # one call of a series
Clock = Callable[[Call, float], float]  # median seconds of a call, timed for about so many seconds


class DeviceLost(RuntimeError):
    """A candidate's fault left the device unusable for this process."""


class _Dropped(Exception):
    """Why a candidate is none."""


class Search:
    """The search in one space, on one device.

    present, best: entries. tried: how many candidates; dropped: how many of them, by reason.
    before, after: seconds, the geometric mean over all timed shapes, once both are known.
    finished: whether every single change was tried.
    """

    def __init__(
        self,
        space: Space,
        arch: str,
        device: torch.device,
        clock: Clock,
        *,
        now: Callable[[], float] = time.monotonic,
        show: Callable[[str], object] = lambda what: None,
    ) -> None:
        self.space = space
        self.present = self.best = replace(space.entry(arch), tuned=False)
        self.tried, self.dropped = 0, Counter[str]()
        self.before: float | None = None
        self.after: float | None = None
        self.finished = False
        self._arch, self._device, self._clock = arch, device, clock
        self._now, self._show, self._until = now, show, math.inf
        self._calls: dict[str, Callable[[int, str], Call]] = {}
        self._known = [self.present]
        self._expected: tuple[Any, dict[tuple, tuple[Tensor, ...]]] = (None, {})

    def run(self, until: float) -> None:
        """Search until that time, and finish the race then under way."""
        self._until = until
        series, device = self.space.series, self._device
        self._calls = {each.name: each.build(device, max(each.sizes)) for each in series}
        joint: Axes = {(name,): values for name, values in self.space.fields.items()}
        tiles = getattr(self.best, "tiles", {})
        main = self._shapes(self.space.main)
        if tiles:
            joint |= self._tile_axes(_key_serving(tiles, max(size for _, size in main)))
        self._climb("together", joint, single_changes, main, same_bits=False)
        for rows in tiles:
            axes = self._tile_axes(rows)
            if rows == max(tiles):
                axes |= {(name,): each for name, each in self.space.last_tile_fields.items()}
            axes = {path: values for path, values in axes.items() if path not in joint}
            shapes = [shape for shape in self._shapes() if _key_serving(tiles, shape[1]) == rows]
            self._climb(f"tile {rows}", axes, single_changes, shapes, same_bits=True)
        if self.space.crossover and not self._late():
            self._attempt(self._choose_crossover)
        self.finished = not self._late()
        self._climb("in pairs", joint, double_changes, main, same_bits=False)
        self._settle()

    def _climb(
        self,
        what: str,
        axes: Axes,
        changes: Callable[[Any, Axes], list[Any]],
        shapes: list[Shape],
        *,
        same_bits: bool,
    ) -> None:
        """Follow the fastest change until none is faster."""
        while shapes and not self._late():
            candidates = [each for each in changes(self.best, axes) if each not in self._known]
            if not candidates:
                return
            winner = self._race(what, candidates, shapes, same_bits)
            if winner is None:
                return
            self.best = winner

    def _race(self, what: str, candidates: list[Any], shapes: list[Shape], same_bits: bool) -> Any:
        """The fastest of the candidates, or None if the best so far is as fast."""
        sizes = tuple(size for _, size in shapes) if same_bits else ()
        reference = self.best if same_bits else self.present
        tolerance = 0.0 if same_bits else self.space.tolerance
        to_beat = [self._time(self.best, shape, BRIEFLY) for shape in shapes]
        ranked = []
        for number, candidate in enumerate(candidates, 1):
            if self._late():
                break
            self._show(f"{self.space.name}, {what}: {number} of {len(candidates)}")
            self._known.append(candidate)
            self.tried += 1
            ratio = self._attempt(
                self._brief_ratio, candidate, shapes, to_beat, reference, tolerance
            )
            if ratio is not None and ratio < 1:
                ranked.append((ratio, number, candidate))

        if not ranked:
            return None
        self._show(f"{self.space.name}, {what}: the best")
        wanted = (1 - LEAST_GAIN) * geometric_mean(self._times(self.best, shapes))
        finalists = [each for _, _, each in sorted(ranked, key=itemgetter(0, 1))[:FINALISTS]]
        times = {n: geometric_mean(self._times(each, shapes)) for n, each in enumerate(finalists)}
        everything = self._shapes(sizes, timed_only=False)
        for n in sorted(times, key=times.get):
            candidate = finalists[n]
            if times[n] <= wanted and self._attempt(
                self._compare, candidate, everything, reference, tolerance
            ):
                return candidate
        return None

    def _brief_ratio(
        self,
        candidate: Any,
        shapes: list[Shape],
        to_beat: list[float],
        reference: Any,
        tolerance: float,
    ) -> float:
        """Time as a share of `to_beat`, on the shapes it takes to see that it is hopeless."""
        if not self.space.legal(candidate):
            raise _Dropped("not legal")
        ratios = []
        for shape, seconds in zip(shapes, to_beat, strict=True):
            self._compare(candidate, [shape], reference, tolerance)
            ratios.append(self._time(candidate, shape, BRIEFLY) / seconds)
            if geometric_mean(ratios) > HOPELESS:
                break
        return geometric_mean(ratios)

    def _compare(
        self, candidate: Any, shapes: list[Shape], reference: Any, tolerance: float
    ) -> bool:
        """True, or _Dropped says what is wrong with the results."""
        smaller: dict[str, tuple[Tensor, ...]] = {}
        for shape in shapes:
            result = self._result(candidate, shape)
            if not _agree(result, self._expectation(reference, shape), tolerance):
                raise _Dropped("wrong result" if tolerance else "other bits than before")
            name = shape[0].name
            for first, rows in zip(smaller.get(name, result), result, strict=True):
                if not torch.equal(first, rows[: len(first)]):
                    raise _Dropped("rows depend on how many they are")
            smaller[name] = result
        return True

    def _choose_crossover(self) -> None:
        """Set the most rows for which the op's own kernel is the faster one."""
        name, shapes = self.space.crossover, self._shapes()
        self._show(f"{self.space.name}, {name}")
        logs = {}
        for ours in (True, False):
            entry = replace(self.best, **{name: ALL_ROWS if ours else 0})
            for shape in shapes:
                result = self._result(entry, shape, "fast")
                if not _agree(result, self._expectation(self.present, shape), LOOSELY):
                    raise _Dropped("wrong result of numerics fast")
                logs[ours, shape] = math.log(self._time(entry, shape, BRIEFLY, "fast"))

        def score(most: int) -> float:
            return sum(logs[shape[1] <= most, shape] for shape in shapes) / len(shapes)

        choices = [0, *sorted({size for _, size in shapes})]
        self.tried += len(choices)
        best = min(choices, key=score)
        if score(best) <= score(getattr(self.best, name)) + math.log(1 - LEAST_GAIN):
            self.best = replace(self.best, **{name: best})

    def _settle(self) -> None:
        """Time what stood there and what was found on all shapes; what is slower goes."""
        shapes = self._shapes()
        self._show(f"{self.space.name}: before and after")
        self.before = self.after = geometric_mean(self._times(self.present, shapes))
        if self.best != self.present:
            self.after = geometric_mean(self._times(self.best, shapes))
        if self.after > self.before:
            self.best, self.after = self.present, self.before

    def _shapes(self, sizes: tuple[int, ...] = (), *, timed_only: bool = True) -> list[Shape]:
        """Of timed series or of all; those of `sizes` or all. A series' sizes ascend."""
        return [
            (series, size)
            for series in self.space.series
            if series.timed or not timed_only
            for size in sorted(series.sizes)
            if not sizes or size in sizes
        ]

    def _tile_axes(self, rows: int) -> Axes:
        return {("tiles", rows, name): each for name, each in self.space.tile_fields.items()}

    def _late(self) -> bool:
        return self._now() >= self._until

    def _result(self, entry: Any, shape: Shape, numerics: str = "invariant") -> tuple[Tensor, ...]:
        call = self._calls[shape[0].name](shape[1], numerics)
        with self.space.holding(self._arch, entry), _launched() as kernels:
            call.reset()
            result = tuple(each.clone() for each in call.result())
        if entry != self.present and any(getattr(kernel, "n_spills", 0) for kernel in kernels):
            raise _Dropped("spills registers")
        return result

    def _expectation(self, reference: Any, shape: Shape) -> tuple[Tensor, ...]:
        if self._expected[0] != reference:
            self._expected = reference, {}
        results, key = self._expected[1], (shape[0].name, shape[1])
        if key not in results:
            results[key] = self._result(reference, shape)
        return results[key]

    def _time(self, entry: Any, shape: Shape, seconds: float, numerics: str = "invariant") -> float:
        with self.space.holding(self._arch, entry):
            return self._clock(self._calls[shape[0].name](shape[1], numerics), seconds)

    def _times(self, entry: Any, shapes: list[Shape]) -> list[float]:
        return [self._time(entry, shape, AT_LENGTH) for shape in shapes]

    def _attempt(self, fn: Callable[..., Any], *arguments: Any) -> Any:
        """What `fn` returns, or None if the candidate is dropped, whatever stopped it."""
        try:
            return fn(*arguments)
        except _Dropped as dropped:
            reason = str(dropped)
        except Exception as error:  # compiling and launching fail in many ways
            reason = _reason(error)
            self._check_device(reason)
        self.dropped[reason] += 1
        return None

    def _check_device(self, reason: str) -> None:
        if self._device.type == "cuda":
            try:
                torch.cuda.synchronize(self._device)
            except RuntimeError as error:
                raise DeviceLost(f"{self.space.name}: {reason}") from error


def _key_serving(tiles: dict[int, Any], rows: int) -> int:
    return tile_serving({key: key for key in tiles}, rows)


@contextmanager
def _launched() -> Iterator[list[Any]]:
    """The compiled kernels that are launched meanwhile."""
    kernels, run = [], JITFunction.run

    def recording(*arguments: Any, **options: Any) -> Any:
        kernels.append(run(*arguments, **options))
        return kernels[-1]

    JITFunction.run = recording
    try:
        yield kernels
    finally:
        JITFunction.run = run


def _agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float) -> bool:
    """Whether numbers differ by no more than a share of the largest; without one, or of integers,
    whether they are equal."""
    for x, y in zip(ours, theirs, strict=True):
        if x.is_floating_point() and tolerance:
            x, y = x.float(), y.float()
            alike = bool((x - y).abs().max() <= tolerance * y.abs().max())
        else:
            alike = torch.equal(x, y)
        if not alike:
            return False
    return True


def _reason(error: Exception) -> str:
    """In few words, the same ones for errors of one kind."""
    if type(error).__name__ == "OutOfResources":
        return f"too much {getattr(error, 'name', 'of a resource')}"
    line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {line}"[:80].removesuffix(": ")
