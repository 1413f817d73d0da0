"""The search for one entry of a launch table.

Sweep after sweep, every candidate is timed briefly; the three that look fastest are timed at length
beside the best entry so far, and the fastest replaces it if it gains LEAST_GAIN. Results are
compared first: with those of the entry that stands in the table, and each row bit for bit with
itself among more rows.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from dlm_kernels import launch

from ..cases import difference
from ..machine import is_lost
from ..timing import Timer

LEAST_GAIN = 0.01
HOPELESS = 1.1  # times the best so far: a candidate this slow is timed on no further call
FINALISTS = 3
BRIEFLY, AT_LENGTH = 0.0, 0.1  # seconds of timed runs; a timer makes some in any case


class Call(NamedTuple):
    """An op on the first rows, or requests, of its inputs; calls of one `op` differ in their size.

    tolerance: largest difference of a result, as a share of its largest value.
    """

    op: Callable[..., Any]
    inputs: dict[str, Tensor]
    size: int
    tolerance: float = 1e-2

    def run(self, **options: str) -> tuple[Tensor, ...]:
        rows = {name: each[: self.size] for name, each in self.inputs.items()}
        found = self.op(**rows, **options)
        return (found,) if isinstance(found, Tensor) else tuple(x for x in found if x is not None)


class Sweep(NamedTuple):
    """values: to try in every combination, of an entry's fields and of those of one `tile`.

    tile: the calls that it serves decide; else all do. legal: what kernels take for granted of an
    entry. options: to time the calls with.
    """

    values: dict[str, tuple[int, ...]]
    tile: int | None = None
    legal: Callable[[Any], bool] = lambda entry: True
    options: dict[str, str] = {}

    def candidates(self, entry: Any) -> list[Any]:
        """The legal entries that differ from this one in these values."""
        found = []
        for values in product(*self.values.values()):
            fields = dict(zip(self.values, values, strict=True))
            if self.tile is not None:
                tile = entry.tiles[self.tile]
                of_tile = {name: fields.pop(name) for name in self.values if hasattr(tile, name)}
                fields["tiles"] = entry.tiles | {self.tile: replace(tile, **of_tile)}
            found.append(replace(entry, **fields))
        return [each for each in found if each != entry and self.legal(each)]

    def deciding(self, calls: list[Call], entry: Any) -> list[Call]:
        """Those calls by which candidates are compared."""
        if self.tile is None:
            return calls
        keys = {rows: rows for rows in entry.tiles}
        return [call for call in calls if launch.tile_serving(keys, call.size) == self.tile]


class Dropped(Exception):
    """Why a candidate is none."""


@dataclass
class Search:
    """For one entry, by its op and its keys in a table of `dlm_kernels.launch`, architecture first.

    task: makes calls, their inputs on torch's default device, and says what to try.
    present, best: entries. tried: how many candidates; dropped: how many of them, by reason.
    times: seconds of both entries, geometric means over all calls, once they are known.
    finished: whether nothing was left out.
    """

    op: str
    table: dict[str, Any]
    keys: tuple[int | str, ...]
    task: Callable[[], tuple[list[Call], list[Sweep]]]
    tried: int = 0
    times: tuple[float, ...] = ()
    finished: bool = False

    def __post_init__(self) -> None:
        self.name = " ".join(map(str, (self.op, *self.keys[1:])))
        self.present = self.best = reduce(operator.getitem, self.keys, self.table)
        self.dropped = Counter[str]()
        self._launching = partial(launch.overriding, self.table, self.keys)

    def run(self, timer: Timer, late: Callable[[], bool], show: Callable[[str], object]) -> None:
        """Search until it is late; an error, as of a lost device, leaves the best entry so far."""
        self._timer, self._late, self._show = timer, late, show
        with timer.device:
            calls, sweeps = self.task()
        for number, sweep in enumerate(sweeps, 1):
            if not late():
                self._sweep(sweep, calls, f"{self.name}, sweep {number} of {len(sweeps)}")
        finished = not late()
        before, after = (self._mean(each, calls) for each in (self.present, self.best))
        if after > (1 + LEAST_GAIN) * before:  # sweeps may look at few calls
            self.best, after = self.present, before
        self.times, self.finished = (before, after), finished

    def _sweep(self, sweep: Sweep, every_call: list[Call], name: str) -> None:
        calls, candidates = sweep.deciding(every_call, self.best), sweep.candidates(self.best)
        to_beat = [self._time(self.best, call, BRIEFLY, **sweep.options) for call in calls]
        ratios: dict[int, float] = {}
        for number, candidate in enumerate(candidates):
            if self._late():
                break
            self._show(f"{name}: {number + 1} of {len(candidates)}")
            self.tried += 1
            with self._dropping():
                ratios[number] = self._ratio(candidate, calls, to_beat, **sweep.options)

        self._show(f"{name}: the fastest")
        fastest = sorted((each for each in ratios if ratios[each] < 1), key=ratios.get)[:FINALISTS]
        wanted = (1 - LEAST_GAIN) * self._mean(self.best, calls, **sweep.options)
        times = {each: self._mean(candidates[each], calls, **sweep.options) for each in fastest}
        for number in sorted(times, key=times.get):
            if times[number] <= wanted:
                with self._dropping():
                    self._check(candidates[number], every_call)
                    self.best = candidates[number]
                    break

    def _ratio(self, entry: Any, calls: list[Call], to_beat: list[float], **options: str) -> float:
        """Time as a share of `to_beat`, on the calls it takes to see that it is hopeless."""
        ratios: list[float] = []
        for call, seconds in zip(calls, to_beat, strict=True):
            self._check(entry, [call])
            ratios.append(self._time(entry, call, BRIEFLY, **options) / seconds)
            if geometric_mean(ratios) > HOPELESS:
                break
        return geometric_mean(ratios)

    def _check(self, entry: Any, calls: list[Call]) -> None:
        """Dropped says what is wrong with the results."""
        longest: dict[Callable, tuple[Tensor, ...]] = {}
        for call in sorted(calls, key=lambda call: -call.size):
            due, found = (self._results(each, call) for each in (self.present, entry))
            if not difference(due, found) <= call.tolerance:
                raise Dropped("wrong result")
            rows = [each[: call.size] for each in longest.setdefault(call.op, found)]
            if not all(map(torch.equal, found, rows)):
                raise Dropped("rows depend on how many they are")

    def _results(self, entry: Any, call: Call) -> tuple[Tensor, ...]:
        spills, run = [], JITFunction.run

        def recording(*arguments: Any, **options: Any) -> Any:
            kernel = run(*arguments, **options)
            spills.append(getattr(kernel, "n_spills", 0))
            return kernel

        JITFunction.run = recording
        try:
            with self._launching(entry):
                found = call.run()
        finally:
            JITFunction.run = run
        if entry != self.present and any(spills):
            raise Dropped("spills registers")
        return found

    def _mean(self, entry: Any, calls: list[Call], **options: str) -> float:
        return geometric_mean(self._time(entry, call, AT_LENGTH, **options) for call in calls)

    def _time(self, entry: Any, call: Call, budget: float, **options: str) -> float:
        self._timer.budget = budget
        with self._launching(entry):
            return self._timer.time(partial(call.run, **options)).median

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Count why a candidate is dropped, whatever stops it."""
        try:
            yield
        except Exception as error:  # compiling and launching fail in many ways
            if is_lost(self._timer.device):
                raise
            reason = f"{type(error).__name__}: {error}".removeprefix("Dropped: ").split("\n")[0]
            self.dropped[reason.split(",")[0]] += 1  # figures come after a comma
