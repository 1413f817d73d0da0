"""`dlm bench --tune`: search configurations within a budget of time, rewrite the launch table."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dlm_core.whole_file import replacing
from dlm_kernels import launch
from dlm_roofline.records import check_writable

from ..machine import check_triton
from ..timing import Stopwatch
from .inputs import Sizes
from .search import Call, Clock, DeviceLost, Search
from .space import Space
from .spaces import spaces

BUDGET = 480  # seconds, unless another is given
SHARE = 0.5  # of the time left that one entry may take, but for the last one


@dataclass(frozen=True)
class Outcome:
    """Of one entry: seconds before and after, candidates tried, and dropped by reason.

    tuned: as the table now says. failed: why its search did not come to an end, if it did not.
    """

    name: str
    before: float | None
    after: float | None
    tried: int
    dropped: dict[str, int]
    tuned: bool
    failed: str | None


@dataclass
class Tuning:
    """The search through one architecture's table.

    file: where the table lies. budget: seconds; a race under way at its end is finished.
    """

    arch: str
    file: Path
    device: torch.device
    clock: Clock
    budget: float
    now: Callable[[], float] = time.monotonic
    show: Callable[[str], object] = lambda what: None

    def __post_init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.left: list[str] = []
        self.interrupted = False
        self.lost: DeviceLost | None = None
        self._table = launch.read_table(self.file)

    def run(self, spaces: list[Space]) -> None:
        """Search the entries not tuned yet, or all if there is none; write the table after each.

        An interrupt, or a device that is lost, ends it; what was found stays.
        """
        waiting = [each for each in spaces if not each.entry(self.arch).tuned] or list(spaces)
        end = self.now() + self.budget
        while waiting and self.now() < end and not self.interrupted and not self.lost:
            space = waiting.pop(0)
            share = SHARE if waiting else 1.0
            self._search(space, self.now() + share * (end - self.now()))
        tuned = {each.name for each in self.outcomes if each.tuned}
        self.left = [
            each.name
            for each in spaces
            if each.name not in tuned and not each.entry(self.arch).tuned
        ]

    def _search(self, space: Space, until: float) -> None:
        self.show(f"{space.name}: inputs")
        search = Search(space, self.arch, self.device, self.clock, now=self.now, show=self.show)
        failed = None
        try:
            search.run(until)
        except KeyboardInterrupt:
            self.interrupted, failed = True, "interrupted"
        except DeviceLost as error:
            self.lost, failed = error, f"the device was lost: {error}"
        except Exception as error:  # no memory for its inputs, say; the other entries go on
            failed = (str(error).strip() or type(error).__name__).split("\n")[0]
        # Another run must not come to the same fault again.
        tuned = search.finished or self.lost is not None or space.entry(self.arch).tuned
        if tuned or search.best != search.present:
            self._write(space, replace(search.best, tuned=tuned))
        self.outcomes.append(
            Outcome(
                space.name,
                search.before,
                search.after,
                search.tried,
                dict(search.dropped.most_common()),
                tuned,
                failed,
            )
        )

    def _write(self, space: Space, entry: Any) -> None:
        holder, path = self._table, (space.op, *space.keys)
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = entry
        with replacing(self.file) as temporary:
            launch.write_table(temporary, self._table)


def tune(device: torch.device, budget: float) -> int:
    """Tune the table of a CUDA device; 0, 1 if the device was lost, 130 if interrupted.

    Raises:
        ValueError: an option or the device does not fit. OSError: the table cannot be written.
    """
    if not budget > 0:
        raise ValueError(f"--budget is {budget}; it must be a number of seconds above 0")
    if device.type != "cuda":
        raise ValueError(f"--tune is given, and the device is {device}; it must be a CUDA device")
    if (backend := os.environ.get("DLM_BACKEND", "triton")) != "triton":
        raise ValueError(f"DLM_BACKEND is {backend!r}; unset it: --tune times Triton's kernels")
    major, minor = torch.cuda.get_device_capability(device)
    arch = f"sm_{major}{minor}"
    if arch not in launch.SHARED_MEMORY:
        raise ValueError(
            f"--tune is given, and there is no launch table for {arch} to rewrite; there are those"
            f" of {', '.join(launch.SHARED_MEMORY)}"
        )
    file = launch.FOLDER / f"{arch}.json"
    check_writable(file.parent)
    check_triton(device)

    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(device)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        tuning = Tuning(
            arch,
            file,
            device,
            clock_of(device),
            budget,
            show=lambda what: progress.update(task, description=what),
        )
        tuning.run(spaces(arch, properties.multi_processor_count, Sizes()))
    report(tuning, Console() if sys.stdout.isatty() else Console(width=150))
    print(json.dumps(closing(tuning, properties.name)))
    return 130 if tuning.interrupted else 1 if tuning.lost else 0


def clock_of(device: torch.device) -> Clock:
    """The bench's stopwatch: the median of runs from cold caches."""
    stopwatch = Stopwatch(device, budget=0.0)

    def seconds(call: Call, budget: float) -> float:
        stopwatch.budget = budget
        return stopwatch.time(call.run, reset=call.reset).median

    return seconds


def report(tuning: Tuning, console: Console) -> None:
    """Print what became of each entry, and what is left."""
    table = Table(title=f"launch table of {tuning.arch}", title_justify="left")
    table.add_column("entry")
    for heading in ("before us", "after us", "speed-up", "tried"):
        table.add_column(heading, justify="right")
    table.add_column("dropped")
    for each in tuning.outcomes:
        dropped = [f"{count} {reason}" for reason, count in each.dropped.items()]
        times = ("-", "-", "-")
        if each.before and each.after:
            ratio = each.before / each.after
            times = (f"{1e6 * each.before:.1f}", f"{1e6 * each.after:.1f}", f"{ratio:.2f}x")
        if each.failed:
            dropped.append(each.failed)
        table.add_row(each.name, *times, str(each.tried), "; ".join(dropped))
    console.print(table)
    if tuning.left:
        console.print(f"not tuned yet: {', '.join(tuning.left)}; another run goes on with them")
    console.print(f"wrote {tuning.file}", highlight=False, soft_wrap=True)


def closing(tuning: Tuning, device: str) -> dict[str, object]:
    """The run in one line for programs."""
    return {
        "table": str(tuning.file),
        "architecture": tuning.arch,
        "device": device,
        "complete": not tuning.left,
        "left": tuning.left,
        "entries": [
            {
                "entry": each.name,
                "before_us": each.before and round(1e6 * each.before, 2),
                "after_us": each.after and round(1e6 * each.after, 2),
                "speed_up": each.after and round(each.before / each.after, 3),
                "tried": each.tried,
                "dropped": each.dropped,
                "tuned": each.tuned,
                "failed": each.failed,
            }
            for each in tuning.outcomes
        ],
    }
