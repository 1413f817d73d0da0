"""`dlm bench`: measure ceilings, ops and whole steps; print tables; leave record and pictures."""

import argparse
import json
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

from dlm_core import PRESETS, Model, ModelConfig, load_model, random_model
from dlm_kernels.backend import backend_for
from dlm_roofline.ceilings import RUNS, free_memory, measure_ceilings
from dlm_roofline.plots import draw
from dlm_roofline.records import SCHEMA, Peer, Record, Row, Skipped, Timing, check_writable, save
from dlm_roofline.step_cost import DECODING_STEP, DENOISING_STEP, step_cost, total

from .cases import TOLERANCE, Case, difference, op_cases
from .machine import check_triton, clocks, commit, describe_device, versions
from .peers import Runner
from .steps import CONTEXT, HOST_MODEL, STEPS, StepBench
from .tables import print_tables
from .timing import Stopwatch
from .tuning.run import BUDGET, tune

# Seconds after which no further row is begun: of ops, so that steps get their share, and of all.
OPS_UNTIL = {"cpu": 120, "cuda": 320}
ALL_UNTIL = {"cpu": 210, "cuda": 460}

# Slowest floor of a case still worth starting: plain torch can take many times the roof's time.
LONGEST_FLOOR = 0.25

# Load a core before the run, of others' work, from which a host's times say little.
BUSY = 0.5

# Share of the free memory that a case or the weights of a model may take.
MOST_MEMORY = 0.8

# What may stop one case without stopping the bench: torch out of memory, a device error, a kernel
# that does not compile.
FAULTS = (RuntimeError, TritonError)

# Models of random weights to time steps of on a GPU: the first there is memory for.
GPU_MODELS = {f"{name}, random weights": PRESETS[name.lower()] for name in ("8B", "3B", "tiny")}

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "tiny-a"

Candidates = list[tuple[str, Callable[[], Model]]]  # names of models, and how to make each


class Bench:
    """One run under way: what is measured goes into the record at once, and the record to disk."""

    def __init__(
        self, record: Record, out: Path, device: torch.device, *, quick: bool, progress: Progress
    ) -> None:
        self.record, self.out, self.device, self.quick = record, out, device, quick
        self.stopwatch = Stopwatch(device, budget=0.05 if quick else 0.5)
        self.began = time.monotonic()
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def ops(self) -> None:
        for case in op_cases(self.device.type, quick=self.quick):
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

    def steps(self, candidates: Candidates) -> None:
        """Steps of the first model that can be made."""
        for name, make in candidates:
            self._show(f"making {name}")
            try:
                model = make()
            except FAULTS as error:
                self._skip(f"steps of {name}", reason_of(error))
                continue
            self._steps_of(name, model)
            return

    def _steps_of(self, name: str, model: Model) -> None:
        self.record.models[name] = model.config
        room = model.config.max_position_embeddings
        for batch, block in STEPS[self.device.type][: 1 if self.quick else None]:
            context = min(CONTEXT[self.device.type], room - block - 1)
            shape = {"batch": batch, "block": block, "context": context}
            title = f"step of {name} {_sizes(shape)}"
            if self._elapsed() > ALL_UNTIL[self.device.type]:
                self._skip(title, "out of time")
                continue
            try:
                self._step(name, model, shape)
            except FAULTS as error:
                self._skip(title, reason_of(error))

    def _op(self, case: Case) -> None:
        work = case.build(self.device)
        work.reset()
        ours = tuple(tensor.clone() for tensor in work.view(work.run()))
        timing = self.stopwatch.time(work.run, reset=work.reset)
        peers = [
            timed_peer(self.stopwatch.time, name, runner, work.view, ours, TOLERANCE[case.dtype])
            for name, runner in work.peers.items()
        ]
        dtype = str(case.dtype).removeprefix("torch.")
        cost = case.cost
        self._add(
            Row(
                "op",
                case.name,
                None,
                case.shape,
                dtype,
                cost.flops,
                cost.bytes,
                timing,
                peers,
                cost.exps,
            )
        )

    def _step(self, name: str, model: Model, shape: dict[str, int]) -> None:
        bench = StepBench(model, **shape)
        dtype = str(model.dtype).removeprefix("torch.")
        clock = self._clock()
        costs = step_cost(model.config, **shape, itemsize=model.dtype.itemsize)
        for stage, (run, peer) in bench.stages().items():
            self._show(f"{name} {_sizes(shape)}: {stage}")
            cost = costs[stage]
            timing = clock(run, reset=bench.reset)
            peers = [] if peer is None else [_step_peer("plain torch", partial(clock, peer))]
            self._add(
                Row("stage", stage, name, shape, dtype, cost.flops, cost.bytes, timing, peers)
            )

        self._show(f"{name} {_sizes(shape)}: whole step")
        cost = total(costs)
        timing = clock(bench.step, reset=bench.reset)
        fast = partial(clock, partial(bench.step, "fast"), reset=bench.reset)
        peers = [
            _step_peer("plain torch", lambda: clock(bench.peer)),
            _step_peer("ours, fast numerics", fast),  # below 1: what invariance costs
        ]
        if timing.graph:
            eager = partial(self.stopwatch.time, bench.step, reset=bench.reset)
            peers.append(_step_peer("ours, launched eagerly", eager))
        self._add(
            Row("step", DENOISING_STEP, name, shape, dtype, cost.flops, cost.bytes, timing, peers)
        )
        if shape["block"] == model.config.block_size:
            self._show(f"{name} {_sizes(shape)}: AR decoding")
            shape = shape | {"block": 1}
            cost = total(
                step_cost(model.config, **shape, itemsize=model.dtype.itemsize, causal=True)
            )
            timing = clock(bench.decode, reset=bench.reset)
            self._add(
                Row("step", DECODING_STEP, name, shape, dtype, cost.flops, cost.bytes, timing)
            )
        bench.check()

    def _clock(self) -> Callable[..., Timing]:
        """How stages and steps are timed: on a GPU without the host's launches."""
        return self.stopwatch.time_graph if self.device.type == "cuda" else self.stopwatch.time

    def _reason_to_skip(self, case: Case) -> str | None:
        if self._elapsed() > OPS_UNTIL[self.device.type]:
            return "out of time"
        free = free_memory(self.device)
        if case.memory > MOST_MEMORY * free:
            return f"needs about {case.memory / 1e9:.1f} GB, {free / 1e9:.1f} are free"
        roof = self.record.roof(str(case.dtype).removeprefix("torch."))
        if (floor := roof.seconds(case.cost)) > LONGEST_FLOOR:
            return f"predicted to take {floor:.1f} s at the very least"
        return None

    def _add(self, row: Row) -> None:
        self.record.rows.append(row)
        save(self.record, self.out)

    def _skip(self, what: str, why: str) -> None:
        self.record.skipped.append(Skipped(what, why))
        self._progress.console.print(f"skipped {what}: {why}", highlight=False)

    def _show(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began


def main(argv: list[str] | None = None) -> int:
    """Run the bench; 0 if it ran to its end, 1 on an error, 130 if it was interrupted."""
    arguments = _arguments(argv)
    try:
        return _run(arguments, argv)
    except (OSError, ValueError, TypeError, torch.OutOfMemoryError) as error:
        print(f"dlm bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dlm bench: interrupted before anything was measured", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, argv: list[str] | None) -> int:
    device = _device(arguments.device)
    if arguments.tune:
        return tune(device, arguments.budget)
    check_writable(arguments.out)
    if device.type == "cuda":
        check_triton(device)
    if warning := busy_host(device):
        print(f"dlm bench: {warning}", file=sys.stderr)
    models = _models(arguments, device)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        ceilings_task = progress.add_task("ceilings of the device", total=None)
        record = _begin(device, arguments, argv)
        progress.remove_task(ceilings_task)
        bench = Bench(record, arguments.out, device, quick=arguments.quick, progress=progress)
        save(record, arguments.out)
        try:
            bench.ops()
            for candidates in models:
                bench.steps(candidates)
        except KeyboardInterrupt:
            progress.console.print("interrupted: what was measured so far is kept")
        else:
            record = replace(record, complete=True)
    path = save(record, arguments.out)
    try:
        pictures = draw(record, path)
    except ModuleNotFoundError as error:
        pictures = []
        console.print(f"no pictures ({error}); `dlm roofline {path}` draws them where it is there")
    print_tables(record, console)
    for written in (path, *pictures):
        console.print(f"wrote {written}", highlight=False, soft_wrap=True)
    print(json.dumps(_closing(record, path)))
    return 0 if record.complete else 130


def busy_host(device: torch.device) -> str | None:
    """What to expect where others use the host's cores; None where they are free, or on a GPU."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if device.type != "cpu" or load < BUSY * cores:
        return None
    return (
        f"the load is {load:.1f} on {cores} cores before anything was run: others are at work, and"
        " times will be too long by factors. Wait for them, or set OMP_NUM_THREADS=1, which suffers"
        " less"
    )


def _begin(device: torch.device, arguments: argparse.Namespace, argv: list[str] | None) -> Record:
    """A record with ceilings and no rows yet."""
    head, dirty = commit()
    given = sys.argv[1:] if argv is None else argv
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
        command=shlex.join(["dlm", "bench", *given]),
        backend=backend_for(torch.empty(0, device=device)),
        versions=versions(),
        device=described,
        ceilings=ceilings,
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dlm bench", description="Measure ceilings, ops and denoising steps on one device."
    )
    parser.add_argument("folder", nargs="?", type=Path, help="checkpoint whose steps are timed")
    parser.add_argument("--out", type=Path, default=Path("out"), help="for record and pictures")
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
    if arguments.tune:
        for name, given in (("FOLDER", arguments.folder), ("--quick", arguments.quick)):
            if given:
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


def _models(arguments: argparse.Namespace, device: torch.device) -> list[Candidates]:
    """The models to time, each made when its turn comes, and what stands in where it cannot be."""
    on_host = device.type == "cpu"
    dtype = torch.float32 if on_host else torch.bfloat16
    models: list[Candidates] = []
    folder = arguments.folder or (GOLDEN if on_host and GOLDEN.exists() else None)
    if folder:
        _check_fits(folder, device, dtype)
        loaded = load_model(folder, device=device, dtype=dtype)
        models.append([(folder.resolve().name, lambda: loaded)])
    if arguments.quick:
        configs = {"tiny, random weights": PRESETS["tiny"]}
    else:
        configs = {"188M, random weights": HOST_MODEL} if on_host else GPU_MODELS
    if on_host or not folder:
        make = partial(random_model, device=device, dtype=dtype)
        models.append([(name, partial(make, each)) for name, each in configs.items()])
    return models


def _check_fits(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """A ValueError if the weights of a checkpoint would not fit into the memory that is free."""
    model = Model(ModelConfig.from_json(folder / "config.json"), device="meta", dtype=dtype)
    needed = dtype.itemsize * sum(weight.numel() for weight in model.parameters())
    free = free_memory(device)
    if needed > MOST_MEMORY * free:
        raise ValueError(
            f"{folder} holds {needed / 1e9:.1f} GB of weights in {dtype}; they must fit into"
            f" {MOST_MEMORY:.0%} of the {free / 1e9:.1f} GB that are free on {device}"
        )


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


def _closing(record: Record, path: Path) -> dict[str, object]:
    """The run in one line for programs: ceilings, and the last model's steps."""
    steps = [row for row in record.rows if row.name == DENOISING_STEP]
    last = [row for row in steps if row.model == steps[-1].model]
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
                **row.shape,
                "ms": round(row.timing.median * 1e3, 3),
                "percent_of_roof": round(100 * record.floor(row) / row.timing.median, 1),
                "ratio_to_plain_torch": _ratio(row, row.peers[0]),
            }
            for row in last
        ],
    }


def _ratio(row: Row, peer: Peer) -> float | None:
    return round(peer.timing.median / row.timing.median, 3) if peer.timing else None
