"""`dlm bench`: measure ceilings, ops and forwards; print tables; leave record and pictures."""

import argparse
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from triton.errors import TritonError

from dlm_kernels import Cost
from dlm_roofline.ceilings import RUNS, free_memory, launch_nothing, measure_ceilings
from dlm_roofline.forward import LINEAR, STEP_NAMES
from dlm_roofline.memory import peak_memory
from dlm_roofline.plots import draw
from dlm_roofline.points import PLAIN
from dlm_roofline.records import OUT, BenchRecord, Peer, Row, Skipped, Timing, check_writable, save
from dlm_roofline.step_cost import step_cost, total

from .calibrate import Made, calls_of_ops, measured_rate
from .cases import FAST, Case, difference, op_cases
from .machine import check_triton, clocks, describe_device, device_for, is_lost, made_by, name_of
from .models import MOST_MEMORY, Planned, Subject, subjects_of
from .stages import stages_of
from .steps import StepBench, written_by
from .tables import in_words, print_record
from .timing import Call, Timer
from .tuning.run import BUDGET, tune

# Seconds after which no further row is begun: of ops, so that forwards get their share, and of all.
OPS_UNTIL = {"cpu": 120, "cuda": 180}
ALL_UNTIL = {"cpu": 480, "cuda": 500}

# Load a core before the run, of others' work, from which a host's times say little.
BUSY = 0.5

LATE = "out of time"


class DeviceLost(Exception):
    """The device answers nothing any more; what it was doing is the message."""


class Bench:
    """One run under way: what is measured goes into the record at once, and the record to disk."""

    def __init__(
        self, record: BenchRecord, path: Path, device: torch.device, progress: Progress
    ) -> None:
        self.record, self.path, self.device = record, path, device
        self.began = time.monotonic()
        self._progress, self._task = progress, progress.add_task("", total=None)

    def ops(self, *, quick: bool) -> None:
        timer = Timer(self.device, budget=0.05 if quick else 0.3)
        for case in op_cases(self.device.type, quick=quick):
            self._attempt(f"{case.name} {in_words(case.shape)}", partial(self._op, case, timer))

    def rates(self) -> None:
        """What our ops reach at shapes of no model, which predictions for a GPU rest on."""
        timer = Timer(self.device, budget=0.1)
        launch = timer.time(launch_nothing).median

        def rate(op: str, calls: list[Callable[[], Made]]) -> None:
            self.record.ceilings.ops[op] = measured_rate(timer, calls, launch)

        for op, calls in calls_of_ops(self.device, torch.bfloat16).items():
            self._attempt(f"rate of {op}", partial(rate, op, calls))

    def steps(self, subject: Subject) -> None:
        self.record.models[subject.name] = subject.config
        timer = Timer(self.device, budget=subject.budget)
        for planned in subject.planned:
            forward = planned.forward
            sizes = {"batch": forward.batch, "block": forward.block, "context": forward.context}
            kind = f"{subject.name}: {STEP_NAMES[forward.kind]}"
            what = f"{kind}, {in_words(sizes)}{forward.in_few_bits}"
            self._attempt(what, partial(self._forward, subject, planned, timer))

    def _attempt(self, what: str, run: Call) -> None:
        """Run it, or list it as skipped with the reason: no time or memory left, a device error, a
        kernel that does not compile. Then what is there goes to disk.
        """
        self._progress.update(self._task, description=what)
        try:
            run()
        except (RuntimeError, TritonError, ValueError, TypeError) as error:
            reason = reason_of(error)
            if is_lost(self.device):
                raise DeviceLost(f"the device is lost: {reason}") from error
            self.record.skipped.append(Skipped(what, reason))
            if reason != LATE:  # of these the tables list what may be many
                self._progress.console.print(f"skipped {what}: {reason}", highlight=False)
        save(self.record, self.path)

    def _check(self, until: Mapping[str, int], needed: float) -> None:
        """A ValueError says that it is too late, or that so many bytes are not there."""
        if time.monotonic() - self.began > until[self.device.type]:
            raise ValueError(LATE)
        free = free_memory(self.device)
        if needed > MOST_MEMORY * free:
            raise ValueError(f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")

    def _op(self, case: Case, timer: Timer) -> None:
        self._check(OPS_UNTIL, case.memory)
        work = case.build(self.device)
        ours = tuple(tensor.clone() for tensor in work.view(work.run()))

        def differs(result: object) -> str | None:
            if (apart := difference(ours, work.view(result))) <= case.tolerance:
                return None
            return f"its result differs from ours by {apart:.1e}"

        timing, peers = beside_peers(timer, work.run, work.peers, differs, work.reset)
        what = ("op", case.name, None, None, case.shape, name_of(case.dtype))
        amounts = (case.cost.flops, case.cost.bytes, case.cost.exps)
        self.record.rows.append(Row(*what, *amounts, timing, peers, self._peak(work.run)))

    def _forward(self, subject: Subject, planned: Planned, timer: Timer) -> None:
        """Measure a forward, and its stages if they are planned."""
        forward = planned.forward
        cached = forward.context + written_by(forward)
        peak = peak_memory(subject.config, forward, cached, backend=self.record.backend)
        self._check(ALL_UNTIL, peak.total - peak.weights)
        if forward.float8_cache and self.device.type == "cuda":
            if torch.cuda.get_device_capability(self.device) < (8, 9):
                raise ValueError("Triton reads a float8 cache from compute capability 8.9 on")
        bench = StepBench(subject.model(forward.weights), forward)
        costs = step_cost(subject.config, forward)

        def timed(name: str, cost: Cost, run: Call, peers: Mapping[str, Call]) -> None:
            timing, others = beside_peers(timer, run, peers, lambda result: None, bench.reset)
            bench.check()
            row = Row.of_model(name, subject.name, forward, cost, timing, peers=others)
            self.record.rows.append(row)

        if planned.stages:
            for stage, (run, peer) in stages_of(bench).items():
                timed(stage, costs[stage], run, {PLAIN: peer} if planned.peers and peer else {})
        peers = {PLAIN: bench.peer} if bench.has_peer else {}
        peers[FAST] = partial(bench.step, "fast")
        timed(STEP_NAMES[forward.kind], total(costs), bench.step, peers if planned.peers else {})

    def _peak(self, run: Call) -> int | None:
        """Bytes that a run allocates at most; None on a host, which does not count them."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def beside_peers(
    timer: Timer,
    run: Call,
    peers: Mapping[str, Call],
    differs: Callable[[object], str | None],
    reset: Call,
) -> tuple[Timing, list[Peer]]:
    """Our time, and those of the peers that ran once with a result that doesn't differ; the other
    peers have their reason.

    differs: what is wrong with a result, or None.
    """
    runs, refused = {"": run}, list[Peer]()
    for name, peer in peers.items():
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                reset()
                reason = differs(peer())
        except Exception as error:  # a peer may fail in any way; the bench goes on
            reason = reason_of(error, said)
        if reason is None:
            runs[name] = peer
        else:
            refused.append(Peer(name, None, reason))
    timings = timer.compare(runs, reset=reset)
    ours = timings.pop("")
    return ours, [*(Peer(name, timing, None) for name, timing in timings.items()), *refused]


def reason_of(error: Exception, said: Iterable[warnings.WarningMessage] = ()) -> str:
    """An error's first line, and what torch warned of before it, which is where SDPA says why."""
    lines = [str(error).strip().split("\n")[0] or type(error).__name__]
    lines += [str(warning.message).split(" (Triggered")[0].strip() for warning in said]
    return "; ".join(dict.fromkeys(lines))[:300]


def main(argv: list[str] | None = None) -> int:
    """Run the bench; 0 if it ran to its end, 1 on an error, 130 if it was interrupted."""
    arguments = _arguments(argv)
    try:
        device = device_for(arguments.device)
        if arguments.tune:
            return tune(device, arguments.budget or BUDGET)
        return _run(arguments, device)
    except (OSError, ValueError, TypeError, torch.OutOfMemoryError) as error:
        print(f"dlm bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dlm bench: interrupted before anything was measured", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, device: torch.device) -> int:
    quick, out = arguments.quick, arguments.out
    check_writable(out)
    if device.type == "cuda":
        check_triton(device)
    if warning := busy_host(device):
        print(f"dlm bench: {warning}", file=sys.stderr)
    subjects = subjects_of(arguments.folder, device, quick=quick)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        ceilings_task = progress.add_task("ceilings of the device", total=None)
        ceilings = measure_ceilings(device, runs=3 if quick else RUNS)
        progress.remove_task(ceilings_task)
        described = describe_device(device)
        # Last there were matrix products: an idle GPU would state the clocks of an idle GPU.
        described = replace(described, details=described.details | clocks(device))
        scope = "quick" if quick else "folder" if arguments.folder else "standard"
        record = BenchRecord(
            scope=scope, device=described, ceilings=ceilings, **made_by(_command(arguments), device)
        )
        bench = Bench(record, out / record.file_name, device, progress)
        try:
            bench.ops(quick=quick)
            if device.type == "cuda":
                bench.rates()
            for subject in subjects:
                bench.steps(subject)
        except (KeyboardInterrupt, DeviceLost) as error:
            why = str(error) or "interrupted"
            progress.console.print(f"{why}: what was measured so far is kept", soft_wrap=True)
        else:
            record = replace(record, complete=True)
    save(record, bench.path)
    _show(record, bench.path)
    return 0 if record.complete else 130


def busy_host(device: torch.device) -> str | None:
    """What to expect where others use the host's cores; None where they are free, or on a GPU."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if device.type != "cpu" or load < BUSY * cores:
        return None
    return (
        f"the load is {load:.1f} on {cores} cores before anything was run: others are at work, and"
        " times will be too long; ratios to peers still hold, since those take turns"
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
    return shlex.join(words)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dlm bench", description="Measure ceilings, ops and forwards of models on one device."
    )
    parser.add_argument("folder", nargs="?", type=Path, help="checkpoint whose steps are timed")
    parser.add_argument("--out", type=Path, default=OUT, help="for record and pictures")
    parser.add_argument("--quick", action="store_true", help="a few rows only: does it all run?")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument(
        "--tune", action="store_true", help="search for the fastest launch table instead, keep it"
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help=f"of --tune; default: {BUDGET}"
    )
    arguments = parser.parse_args(argv)
    if arguments.tune and (arguments.folder or arguments.quick):
        parser.error("argument --tune: not allowed with FOLDER or --quick")
    if arguments.budget is not None and not (arguments.tune and arguments.budget > 0):
        parser.error("argument --budget: needs --tune, and a number of seconds above 0")
    return arguments


def _show(record: BenchRecord, path: Path) -> None:
    """Tables and pictures of what was measured, and one line for programs."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        print_record(record, console)
        pictures = draw(record, path)
    except ModuleNotFoundError as error:
        pictures = []
        console.print(f"no tables or pictures ({error}); `dlm roofline {path}` draws elsewhere")
    for written in (path, *pictures):
        console.print(f"wrote {written}", highlight=False, soft_wrap=True)
    print(json.dumps(closing_line(record, path)))


def closing_line(record: BenchRecord, path: Path) -> dict[str, object]:
    """The run in one line for programs: ceilings, steps that have a peer, and both cycles."""
    steps = [row for row in record.steps() if row.peers or row.forward.kind == LINEAR]
    return {
        "record": str(path),
        "complete": record.complete,
        "skipped": len(record.skipped),
        "device": record.device.name,
        "backend": record.backend,
        "read_GB_s": round(record.ceilings.read.best / 1e9, 1),
        "matmul_TFLOP_s": {k: round(v.best / 1e12, 3) for k, v in record.ceilings.matmul.items()},
        "steps": [
            {
                "model": row.model,
                "kind": row.forward.kind,
                **row.sizes,
                "ms": round(row.timing.median * 1e3, 3),
                "percent_of_roof": round(100 * record.floor(row) / row.timing.median, 1),
                "ratio_to_plain_torch": (ratio := row.ratio(PLAIN)) and round(ratio, 3),
            }
            for row in steps
        ],
    }
