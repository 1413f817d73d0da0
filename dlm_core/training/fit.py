"""The loop that fits parameters to a loss: optimizers, schedule, running mean, resumption.

A state is written every `save_every` steps, whole or not at all; a run that was killed goes on from
the last one and ends with the same bits as one that was not (on the same kind of device, at the
same number of threads and processes).
"""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as sharded_files
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.optim import AdamW, Muon, Optimizer

from ..whole_file import write_whole
from .distributed import barrier, local, rank, total, whole, world_size
from .loss import Loss
from .rows import Rows

HISTORY = "history.jsonl"
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True)
class Schedule:
    """steps: how many; the others as in `Recipe`."""

    steps: int
    learning_rate: float
    matrix_learning_rate: float
    warmup: int
    decay_share: float
    weight_decay: float
    max_gradient_norm: float
    ema_decay: float
    save_every: int

    def factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by at a step counted from 0."""
        warm = min(1, (step + 1) / self.warmup)
        left = (self.steps - step) / self.steps
        return warm * min(1, left / self.decay_share)


@dataclass(frozen=True)
class StepReport:
    """One step, over all processes.

    step: steps done. ar, diffusion: losses in nats a token; None for a stream without targets.
    tokens: in both streams. seconds: wall time.
    """

    step: int
    ar: float | None
    diffusion: float | None
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float


def fit(
    model: nn.Module,
    losses: Callable[[Rows], Loss],
    batch: Callable[[int], Rows],
    schedule: Schedule,
    folder: Path,
    report: Callable[[StepReport], None],
) -> None:
    """Fit the parameters of `model` that require gradients, and leave their running mean in them.

    Args:
        model: on its device, perhaps sharded.
        losses: of a batch; what is minimised is its `objective`.
        batch: rows of a step counted from 0, on the CPU; a function of the step alone.
        folder: of this fit's states and of its history; a state there is gone on from.
        report: called after every step, on every process.

    Raises:
        FloatingPointError: a gradient is not finite; no parameter took it.
    """
    device = next(model.parameters()).device
    state = _State(model, schedule, folder)
    with (
        ThreadPoolExecutor(1) as reader,
        _History(folder / HISTORY, state.step) as history,
    ):
        if state.step < schedule.steps:
            upcoming = reader.submit(batch, state.step)
        for step in range(state.step, schedule.steps):
            start = time.perf_counter()
            rows = upcoming.result().to(device)
            if step + 1 < schedule.steps:
                upcoming = reader.submit(batch, step + 1)
            done = state.advance(losses, rows, start)
            history.add(done)
            report(done)
            if state.step % schedule.save_every == 0 or state.step == schedule.steps:
                history.sync()
                state.save()
    state.apply_mean()


class _State:
    """Parameters, their running mean and the optimizer, after `step` steps."""

    def __init__(self, model: nn.Module, schedule: Schedule, folder: Path) -> None:
        self.model, self.schedule, self.folder = model, schedule, folder
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(trained.values())
        self.mean = {name: p.detach().clone() for name, p in trained.items()}
        self.optimizers = _optimizers(trained, schedule)
        self.step = 0
        self._resume()

    def advance(self, losses: Callable[[Rows], Loss], rows: Rows, start: float) -> StepReport:
        """One step; `start` is when it began, by time.perf_counter."""
        factor = self.schedule.factor(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
        with torch.autocast(rows.tokens.device.type, torch.bfloat16):
            loss = losses(rows)
        counts = total(torch.stack([loss.ar_tokens, loss.diffusion_tokens]).float())
        # The gradients of the processes are averaged, so each adds its share of one mean.
        (world_size() * loss.objective(*counts)).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.schedule.max_gradient_norm)
        norm = whole(norm).item()
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {self.step + 1} is not finite; lower the learning rates, and"
                " start anew"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self._update_mean()

        n_tokens = total((rows.document >= 0).sum())
        sums = total(torch.stack([loss.ar, loss.diffusion]).detach())
        means = (sums / counts).tolist()
        ar, diffusion = (mean if math.isfinite(mean) else None for mean in means)
        return StepReport(
            step=self.step,
            ar=ar,
            diffusion=diffusion,
            gradient_norm=norm,
            learning_rate=factor * self.schedule.learning_rate,
            tokens=n_tokens.item(),
            seconds=time.perf_counter() - start,
        )

    @torch.no_grad()
    def _update_mean(self) -> None:
        # Early on the mean forgets faster, so that the random start does not linger in it.
        decay = min(self.schedule.ema_decay, (1 + self.step) / (10 + self.step))
        means = [local(mean) for mean in self.mean.values()]
        torch._foreach_lerp_(means, [local(p) for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def apply_mean(self) -> None:
        for parameter, mean in zip(self.parameters, self.mean.values(), strict=True):
            parameter.copy_(mean)

    def _contents(self) -> dict:
        model, optimizers = get_state_dict(self.model, self.optimizers, options=_TRAINED_ONLY)
        return {
            "model": model,
            "optimizers": optimizers,
            "mean": self.mean,
            "step": torch.tensor(self.step),
        }

    def save(self) -> None:
        """Write the state under its final name once it is whole, then drop older ones."""
        path = self.folder / f"step-{self.step:08d}"
        partial = path.with_suffix(".partial")
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        barrier()
        with _one_process_is_no_mistake():
            sharded_files.save(self._contents(), checkpoint_id=partial)
        barrier()
        if rank() == 0:
            older = _saved_states(self.folder)
            partial.rename(path)
            for folder in older:
                shutil.rmtree(folder)

    def _resume(self) -> None:
        saved = _saved_states(self.folder)
        if not saved:
            return
        contents = self._contents()
        with _one_process_is_no_mistake():
            sharded_files.load(contents, checkpoint_id=saved[-1])
        set_state_dict(
            self.model,
            self.optimizers,
            model_state_dict=contents["model"],
            optim_state_dict=contents["optimizers"],
            options=StateDictOptions(strict=False),
        )
        self.step = int(contents["step"])


@contextmanager
def _one_process_is_no_mistake() -> Iterator[None]:
    """Without the warning that nothing is distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _optimizers(trained: dict[str, nn.Parameter], schedule: Schedule) -> list[Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else; groups keep their peak rate."""
    matrices = [p for name, p in trained.items() if name.endswith("_proj.weight")]
    others = [p for name, p in trained.items() if not name.endswith("_proj.weight")]
    optimizers = []
    if matrices:
        decay = schedule.weight_decay
        optimizers.append(Muon(matrices, schedule.matrix_learning_rate, weight_decay=decay))
    if others:
        betas = (0.9, 0.95)
        optimizers.append(AdamW(others, schedule.learning_rate, betas, weight_decay=0, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _saved_states(folder: Path) -> list[Path]:
    """Whole states in a folder, the latest last."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix)


class _History:
    """Appends a line of JSON a step to a file; lines of steps that will run again are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.file = None
        if rank() == 0:
            kept = [line for line in read_history(path) if line["step"] <= step]
            write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
            self.file = open(path, "a", encoding="utf-8")

    def __enter__(self) -> "_History":
        return self

    def __exit__(self, *error) -> None:
        if self.file:
            self.file.close()

    def add(self, report: StepReport) -> None:
        if self.file:
            self.file.write(json.dumps(asdict(report)) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Bring it to the disk, for a state must not be newer than its history."""
        if self.file:
            os.fsync(self.file.fileno())


def read_history(path: Path) -> list[dict]:
    """The lines of a history, as fields of `StepReport`; one cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
