"""`dlm bench`: measure ceilings, ops and forwards; print tables; leave record and pictures."""

import argparse
import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from triton.errors import TritonError

from dlm_kernels import Cost
from dlm_kernels.backend import backend_for
from dlm_roofline.ceilings import RUNS, free_memory, measure_ceilings
from dlm_roofline.forward import DENOISE, STEP_NAMES, Forward
from dlm_roofline.memory import peak_memory
from dlm_roofline.model_check import model_check
from dlm_roofline.op_rates import OpRate, middle
from dlm_roofline.plots import draw
from dlm_roofline.records import SCHEMA, Peer, Record, Row, Skipped, Timing, check_writable, save
from dlm_roofline.step_cost import step_cost, total

from .cases import TOLERANCE, Case, difference, op_cases
from .machine import check_triton, clocks, commit, describe_device, versions
from .op_rates import op_rates, reads_float8
from .peers import Runner
from .plan import Planned
from .stages import stages_of
from .steps import StepBench, name_of, written_by
from .subjects import MOST_MEMORY, Source, Subject, subjects_of
from .tables import print_tables, ratio_to_peer
from .timing import LONG_RUNS, Stopwatch
from .tuning.run import BUDGET, tune

# Seconds after which no further row is begun: of ops, so that steps get their share, and of all;
# without those of waiting for a shared host.
OPS_UNTIL = {"cpu": 120, "cuda": 240}
ALL_UNTIL = {"cpu": 480, "cuda": 500}

# Slowest floor of a case still worth starting: plain torch can take many times the roof's time.
LONGEST_FLOOR = 0.25

# How many times its floor a forward is taken to need, until one of its kind has been measured.
SLOWER = 2.0

# Seconds to spend on one timing of an op's rates; and in all, unless told otherwise, on waiting for
# a host that is not as it was when the run began.
RATE_BUDGET, PATIENCE = 0.1, 240.0

# Load a core before the run, of others' work, from which a host's times say little.
BUSY = 0.5

# What may stop one case without stopping the bench: torch out of memory, a device error, a kernel
# that does not compile.
FAULTS = (RuntimeError, TritonError)

# The peer of stages and forwards.
PLAIN = "plain torch"

Call = Callable[[], object]


class Bench:
    """One run under way: what is measured goes into the record at once, and the record to disk."""

    def __init__(
        self,
        record: Record,
        out: Path,
        device: torch.device,
        subjects: list[Subject],
        *,
        quick: bool,
        patience: float,
        progress: Progress,
    ) -> None:
        self.record, self.out, self.device = record, out, device
        self.cases = op_cases(device.type, quick=quick)
        self.stopwatch = Stopwatch(device, budget=0.05 if quick else 0.5, patience=patience)
        self.began = time.monotonic()
        # How many times its floor a forward takes, by the last one measured of a model and kind.
        self._slower: dict[tuple[str, str], float] = {}
        self._rates: dict[str, list[OpRate]] = {}
        self._failed_rates: set[str] = set()
        self._row, self._rows = 0, len(self.cases) + sum(each.rows for each in subjects)
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def ops(self) -> None:
        for i, case in enumerate(self.cases):
            title = f"{case.name} {_sizes(case.shape)}"
            self._show(title)
            try:
                reason = self._reason_to_skip(case)
                if reason is None:
                    self._op(case)
            except FAULTS as error:
                reason = reason_of(error)
            if reason:
                self._skip(title, reason)
            self._done_up_to(i + 1)

    def rates(self) -> None:
        """What our ops reach at shapes of no model, which predictions of forwards rest on.

        Measured several times over a run, of which the medians count; one that failed is not tried
        again.
        """
        self.stopwatch.budget = RATE_BUDGET
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        for name, measure in op_rates(self.device, dtype, self._clock()).items():
            if name in self._failed_rates:
                continue
            self._show(f"rate of {name}")
            try:
                self._rates.setdefault(name, []).append(measure())
                self.record.ceilings.ops[name] = middle(self._rates[name])
            except (*FAULTS, ValueError, TypeError) as error:  # noise may leave nothing to solve
                self._failed_rates.add(name)
                self._skip(f"rate of {name}", reason_of(error))

    def steps(self, subject: Subject) -> None:
        """Forwards of the first candidate that can be made."""
        self.stopwatch.budget = subject.budget
        for source in subject.candidates:
            self._show(f"making {source.name}")
            try:
                source.model()
            except FAULTS as error:
                self._skip(f"steps of {source.name}", reason_of(error))
                continue
            self._steps_of(source, subject.planned(source))
            return

    def _steps_of(self, source: Source, planned: list[Planned]) -> None:
        self.record.models[source.name] = source.config
        for each in planned:
            title = f"{source.name}: {_named(each.forward)}"
            end = self._row + each.rows(source.config)
            reason = self._reason_to_skip_forward(source, each)
            try:
                if reason is None:
                    reason = self._forward(source, each)
            except FAULTS as error:
                reason = reason_of(error)
            if reason:
                self._skip(title, reason)
            self._done_up_to(end)

    def _op(self, case: Case) -> None:
        work = case.build(self.device)
        work.reset()
        ours = tuple(tensor.clone() for tensor in work.view(work.run()))
        timing = self.stopwatch.time(work.run, reset=work.reset)
        peers = [
            timed_peer(self.stopwatch.time, name, runner, work.view, ours, TOLERANCE[case.dtype])
            for name, runner in work.peers.items()
        ]
        dtype, cost = name_of(case.dtype), case.cost
        amounts = (cost.flops, cost.bytes, cost.exps)
        self._add(Row("op", case.name, None, None, case.shape, dtype, *amounts, timing, peers))

    def _forward(self, source: Source, planned: Planned) -> str | None:
        """Measure a forward and its stages, or say why this model or device cannot run it."""
        forward, clock = planned.forward, self._clock()
        if forward.float8_cache and not reads_float8(self.device):
            return "Triton reads a float8 cache from compute capability 8.9 on"
        try:
            bench = StepBench(source.model(forward.weights), forward)
        except (ValueError, TypeError) as error:  # later these would be mistakes of ours
            return reason_of(error)
        costs = step_cost(source.config, forward)

        def timed(name: str, cost: Cost, run: Call, peers: dict[str, Call]) -> Row:
            self._show(f"{source.name}: {_named(forward)}: {name}")
            timing = clock(run, reset=bench.reset)
            others = [
                _step_peer(peer, partial(clock, each, reset=bench.reset))
                for peer, each in peers.items()
            ]
            bench.check()
            return self._add(Row.of_stage(name, source.name, forward, cost, timing, peers=others))

        if planned.stages:
            for stage, (run, peer) in stages_of(bench).items():
                peers = {PLAIN: peer} if planned.peers and peer else {}
                timed(stage, costs[stage], run, peers)
        peers = {PLAIN: bench.peer} if planned.stages and bench.has_peer else {}
        if planned.peers:  # below 1: what invariance costs
            peers["ours, fast numerics"] = partial(bench.step, "fast")
        row = timed(STEP_NAMES[forward.kind], total(costs), bench.step, peers)
        if planned.peers and row.timing.graph:
            eager = partial(self.stopwatch.time, bench.step, reset=bench.reset)
            row.peers.append(_step_peer("ours, launched eagerly", eager))
        self._slower[source.name, forward.kind] = row.timing.median / self.record.floor(row)
        return None

    def _clock(self) -> Callable[..., Timing]:
        """How stages and steps are timed: on a GPU without the host's launches."""
        return self.stopwatch.time_graph if self.device.type == "cuda" else self.stopwatch.time

    def _reason_to_skip(self, case: Case) -> str | None:
        if self._elapsed() > OPS_UNTIL[self.device.type]:
            return "out of time"
        if reason := self._no_room_for(case.memory):
            return reason
        if (floor := self.record.roof(name_of(case.dtype)).seconds(case.cost)) > LONGEST_FLOOR:
            return f"predicted to take {floor:.1f} s at the very least"
        return None

    def _reason_to_skip_forward(self, source: Source, planned: Planned) -> str | None:
        forward, left = planned.forward, ALL_UNTIL[self.device.type] - self._elapsed()
        floor = self.record.roof(forward.dtype).step_seconds(step_cost(source.config, forward))
        runs = (2 if planned.stages else 1) * (1 + LONG_RUNS)
        needed = runs * floor * self._slower.get((source.name, forward.kind), SLOWER)
        if left < needed:
            return f"out of time: takes about {needed:.1f} s, and {max(left, 0):.1f} s are left"
        cached = forward.context + written_by(forward)
        peak = peak_memory(source.config, forward, cached, backend=self.record.backend)
        return self._no_room_for(peak.total - peak.weights)

    def _no_room_for(self, needed: float) -> str | None:
        free = free_memory(self.device)
        if needed > MOST_MEMORY * free:
            return f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free"
        return None

    def _add(self, row: Row) -> Row:
        self.record.rows.append(row)
        self._row += 1
        return row

    def _done_up_to(self, row: int) -> None:
        """Rows up to this one were measured or skipped; what is there goes to disk."""
        self._row = row
        save(self.record, self.out)

    def _skip(self, what: str, why: str) -> None:
        self.record.skipped.append(Skipped(what, why))
        if not why.startswith("out of time"):  # of these the tables list what may be many
            self._progress.console.print(f"skipped {what}: {why}", highlight=False)

    def _show(self, what: str) -> None:
        words = f"row {self._row + 1} of {self._rows}: {what}"
        self._progress.update(self._task, description=words)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began - self.stopwatch.waited


def main(argv: list[str] | None = None) -> int:
    """Run the bench; 0 if it ran to its end, 1 on an error, 130 if it was interrupted."""
    arguments = _arguments(argv)
    try:
        return _run(arguments)
    except (OSError, ValueError, TypeError, torch.OutOfMemoryError) as error:
        print(f"dlm bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dlm bench: interrupted before anything was measured", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    device = _device(arguments.device)
    if arguments.tune:
        return tune(device, arguments.budget)
    check_writable(arguments.out)
    if device.type == "cuda":
        check_triton(device)
    if warning := busy_host(device):
        print(f"dlm bench: {warning}", file=sys.stderr)
    subjects = subjects_of(arguments.folder, device, quick=arguments.quick)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        ceilings_task = progress.add_task("ceilings of the device", total=None)
        record = _begin(device, arguments)
        progress.remove_task(ceilings_task)
        bench = Bench(
            record,
            arguments.out,
            device,
            subjects,
            quick=arguments.quick,
            patience=_patience(arguments),
            progress=progress,
        )
        save(record, arguments.out)
        try:
            bench.ops()
            bench.rates()
            for subject in subjects:
                bench.steps(subject)
                bench.rates()
        except KeyboardInterrupt:
            progress.console.print("interrupted: what was measured so far is kept")
        else:
            record = replace(record, complete=True)
    path = save(record, arguments.out)
    print_tables(record, console)
    try:
        pictures = draw(record, path)
    except ModuleNotFoundError as error:
        pictures = []
        console.print(f"no pictures ({error}); `dlm roofline {path}` draws them where it is there")
    for written in (path, *pictures):
        console.print(f"wrote {written}", highlight=False, soft_wrap=True)
    print(json.dumps(_closing(record, path)))
    return 0 if record.complete else 130


def busy_host(device: torch.device) -> str | None:
    """What to expect where others use the host's cores; None where they are free, or on a GPU."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if device.type != "cpu" or load < BUSY * cores:
        return None
    fewer = ", or set OMP_NUM_THREADS=1, which suffers less" if torch.get_num_threads() > 1 else ""
    return (
        f"the load is {load:.1f} on {cores} cores before anything was run: others are at work, and"
        f" times will be too long by factors. Wait for them{fewer}"
    )


def _begin(device: torch.device, arguments: argparse.Namespace) -> Record:
    """A record with ceilings and no rows yet."""
    head, dirty = commit()
    described = describe_device(device)
    ceilings = measure_ceilings(device, runs=3 if arguments.quick else RUNS)
    # Last there were matrix products: an idle GPU would state the clocks of an idle GPU.
    described = replace(described, details=described.details | clocks(device))
    return Record(
        schema=SCHEMA,
        complete=False,
        scope="quick" if arguments.quick else "folder" if arguments.folder else "standard",
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=head,
        dirty=dirty,
        command=_command(arguments),
        backend=backend_for(torch.empty(0, device=device)),
        versions=versions(),
        device=described,
        ceilings=ceilings,
    )


def _command(arguments: argparse.Namespace) -> str:
    """What measures the same again; where the record went is nobody else's business."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = [f"OMP_NUM_THREADS={threads}"] * bool(threads) + ["dlm", "bench"]
    if arguments.folder:
        words.append(arguments.folder.name)
    words += ["--quick"] * arguments.quick
    if arguments.device:
        words += ["--device", arguments.device]
    if arguments.patience is not None:
        words += ["--patience", f"{arguments.patience:g}"]
    return shlex.join(words)


def _patience(arguments: argparse.Namespace) -> float:
    if arguments.patience is not None:
        return arguments.patience
    return 0.0 if arguments.quick else PATIENCE


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dlm bench", description="Measure ceilings, ops and forwards of models on one device."
    )
    parser.add_argument("folder", nargs="?", type=Path, help="checkpoint whose steps are timed")
    parser.add_argument("--out", type=Path, default=Path("out"), help="for record and pictures")
    parser.add_argument("--quick", action="store_true", help="a few rows only: does it all run?")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="on a host: to wait in all while others who share it change its pace;"
        f" default: {PATIENCE:g}, with --quick 0",
    )
    parser.add_argument(
        "--tune", action="store_true", help="search for the fastest launch table instead, keep it"
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help=f"of --tune; default: {BUDGET}"
    )
    arguments = parser.parse_args(argv)
    patience = arguments.patience
    if patience is not None and not 0 <= patience < math.inf:
        parser.error(f"argument --patience: {patience:g}; it must be a number of seconds from 0 on")
    if arguments.tune:
        folder, quick = arguments.folder, arguments.quick or None
        others = {"FOLDER": folder, "--quick": quick, "--patience": patience}
        for name, given in others.items():
            if given is not None:
                parser.error(f"argument --tune: not allowed with {name}")
        arguments.budget = BUDGET if arguments.budget is None else arguments.budget
    elif arguments.budget is not None:
        parser.error("argument --budget: needs --tune")
    return arguments


def _device(wanted: str | None) -> torch.device:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET is 1; unset it: the interpreter says nothing of speed")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, and torch sees no CUDA device; it must be cpu here")
    kind = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


def _step_peer(name: str, time_it: Callable[[], Timing]) -> Peer:
    try:
        return Peer(name, time_it(), None)
    except FAULTS as error:
        return Peer(name, None, reason_of(error))


def timed_peer(
    clock: Callable[[Callable[[], object]], Timing],
    name: str,
    runner: Runner,
    view: Callable[[object], tuple[torch.Tensor, ...]],
    ours: tuple[torch.Tensor, ...],
    tolerance: float,
) -> Peer:
    """Time a peer, once its result is known to be ours. Whatever stops it is reported."""
    if isinstance(runner, str):
        return Peer(name, None, runner)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            apart = difference(ours, view(runner()))
            if not apart <= tolerance:
                return Peer(name, None, f"its result differs from ours by {apart:.1e}")
            return Peer(name, clock(runner), None)
        except Exception as error:  # a peer may fail in any way; the bench goes on
            return Peer(name, None, reason_of(error, said))


def reason_of(error: Exception, said: Iterable[warnings.WarningMessage] = ()) -> str:
    """An error's first line, and what torch warned of before it, which is where SDPA says why."""
    lines = [str(error).strip().split("\n")[0] or type(error).__name__]
    lines += [str(warning.message).split(" (Triggered")[0].strip() for warning in said]
    return "; ".join(dict.fromkeys(lines))[:300]


def _sizes(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in shape.items())


def _named(forward: Forward) -> str:
    """A forward in words."""
    sizes = {"batch": forward.batch, "block": forward.block, "context": forward.context}
    return f"{STEP_NAMES[forward.kind]}, {_sizes(sizes)}{forward.in_few_bits}"


def _closing(record: Record, path: Path) -> dict[str, object]:
    """The run in one line for programs: ceilings, and steps of the folder's model or the last."""
    models = list(record.models)
    told = models[:1] if record.scope == "folder" else models[-1:]
    steps = [
        row
        for row in record.rows
        if row.name == STEP_NAMES[DENOISE] and row.model in told and record.stages_of(row)
    ]
    return {
        "record": str(path),
        "complete": record.complete,
        "skipped": len(record.skipped),
        "device": record.device.name,
        "backend": record.backend,
        "read_GB_s": round(record.ceilings.read.best / 1e9, 1),
        "matmul_TFLOP_s": {k: round(v.best / 1e12, 3) for k, v in record.ceilings.matmul.items()},
        "model_error": _model_error(record),
        "steps": [
            {
                "model": row.model,
                **row.sizes,
                "ms": round(row.timing.median * 1e3, 3),
                "percent_of_roof": round(100 * record.floor(row) / row.timing.median, 1),
                "ratio_to_plain_torch": _rounded(ratio_to_peer(row, PLAIN)),
            }
            for row in steps
        ],
    }


def _model_error(record: Record) -> dict[str, float | bool | None]:
    """How far predictions are from what was measured."""
    check = model_check(record)
    figures = {"median": _rounded(check.median), "worst": _rounded(check.worst)}
    return figures | {"holds": check.holds}


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 3)
