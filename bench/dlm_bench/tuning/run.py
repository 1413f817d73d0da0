"""`dlm bench --tune`: search launch configurations within a budget, rewrite the launch table."""

import json
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dlm_core.whole_file import replacing
from dlm_kernels import launch
from dlm_kernels.backend import forced
from dlm_roofline.records import check_writable

from ..machine import check_triton, is_lost
from ..timing import Timer
from .search import Search
from .spaces import searches

BUDGET = 480  # seconds, unless another is given
SHARE = 0.5  # of the time left that one entry may take, but for the last one
LOST, INTERRUPTED = 1, 130  # exit codes


def tune(device: torch.device, budget: float) -> int:
    """Tune the table of a CUDA device; 0, LOST if a fault ended it, or INTERRUPTED.

    Raises:
        ValueError: the device or DLM_BACKEND does not fit. OSError: the table cannot be written.
    """
    if device.type != "cuda":
        raise ValueError(f"--tune is given, and the device is {device}; it must be a CUDA device")
    if (backend := forced()) not in (None, "triton"):
        raise ValueError(f"DLM_BACKEND is {backend!r}; unset it: --tune times Triton's kernels")
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    if arch not in launch.SHARED_MEMORY:
        known = ", ".join(launch.SHARED_MEMORY)
        raise ValueError(f"{device} is {arch}, which has no launch table to tune; {known} have one")
    file = launch.FOLDER / f"{arch}.json"
    check_writable(file.parent)
    check_triton(device)

    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(device)
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with console.status("") as status:
        tuning = Tuning(file, Timer(device, budget=0.0), show=status.update, say=console.print)
        tuning.run(searches(arch, properties.multi_processor_count), budget)
    closing = {"table": str(file), "device": properties.name, "left": tuning.left}
    print(json.dumps(closing | {"entries": tuning.entries}))
    return tuning.code


@dataclass
class Tuning:
    """A table's file, rewritten entry by entry. show: shows progress. say: says what came of one.

    entries: those searched. left: names of those not tuned yet. code: as `tune` returns.
    """

    file: Path
    timer: Timer
    show: Callable[[str], object]
    say: Callable[[str], object]
    now: Callable[[], float] = time.monotonic
    entries: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    code: int = 0

    def run(self, searches: list[Search], budget: float) -> None:
        """Search for the entries not tuned yet, or for all if there is none.

        An interrupt, or a device that is lost, ends it; what was found stays.
        """
        end = self.now() + budget
        self.left = [each.name for each in searches if not each.present.tuned]
        waiting = [each for each in searches if not each.present.tuned] or list(searches)
        while waiting and self.now() < end and not self.code:
            search = waiting.pop(0)
            share = SHARE if waiting else 1.0
            self._search(search, self.now() + share * (end - self.now()))

    def _search(self, search: Search, until: float) -> None:
        error = None
        try:
            search.run(self.timer, lambda: self.now() >= until, self.show)
        except KeyboardInterrupt:
            self.code, error = INTERRUPTED, "interrupted"
        except Exception as fault:  # the present entry's own, say; the other entries go on
            self.code = LOST if is_lost(self.timer.device) else 0
            error = f"{type(fault).__name__}: {fault}".split("\n")[0]
        # The next run passes over what lost the device.
        if (search.finished or self.code == LOST) and search.name in self.left:
            self.left.remove(search.name)
        tuned = search.name not in self.left
        if tuned or search.best != search.present:
            table, (*outer, last) = launch.read_table(self.file), (search.op, *search.keys[1:])
            reduce(operator.getitem, outer, table)[last] = replace(search.best, tuned=tuned)
            with replacing(self.file) as temporary:
                launch.write_table(temporary, table)
        found: dict[str, Any] = {"entry": search.name, "tuned": tuned, "tried": search.tried}
        for name, seconds in zip(("before_us", "after_us"), search.times, strict=False):
            found[name] = round(1e6 * seconds, 2)
        found |= {"dropped": dict(search.dropped)} | ({"error": error} if error else {})
        self.entries.append(found)
        self.say("; ".join(f"{name}: {value}" for name, value in found.items()))
