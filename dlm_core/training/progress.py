"""What a training run shows of itself while it runs."""

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .distributed import rank
from .fit import StepReport

SECONDS_BETWEEN_LINES = 30  # where there is no terminal


class ProgressBar:
    """A bar with losses, tokens/s and time left on a terminal; elsewhere a line now and then."""

    def __init__(self, stage: str, steps: int) -> None:
        self.stage, self.steps = stage, steps
        self.console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=rank() != 0 or not self.console.is_terminal,
        )
        self.task = self.progress.add_task(stage, total=steps, figures="")
        self.last_line = -math.inf  # so that the first step says where a run begins or goes on

    def __enter__(self) -> "ProgressBar":
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()

    def report(self, step: StepReport) -> None:
        figures = [f"{step.tokens / step.seconds:.0f} tokens/s"]
        for name, nats in (("diffusion", step.diffusion), ("AR", step.ar)):
            if nats is not None:
                figures.insert(0, f"{name} {nats:.3f}")
        self.progress.update(self.task, completed=step.step, figures="  ".join(figures))
        now = time.monotonic()
        shown = self.console.is_terminal or rank() != 0
        if shown or (now - self.last_line < SECONDS_BETWEEN_LINES and step.step < self.steps):
            return
        self.last_line = now
        minutes = (self.steps - step.step) * step.seconds / 60
        line = [f"{self.stage} {step.step}/{self.steps}", *figures, f"{minutes:.0f} min left"]
        self.console.print("  ".join(line), highlight=False)
