"""`dlm gpu-bench`: measure every row, hold it to its target, go on where an earlier run stopped."""

import argparse
import json
import math
import os
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dlm_kernels import Cost
from dlm_kernels.backend import backend_for
from dlm_roofline.ceilings import measure_ceilings
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.predict import Roof
from dlm_roofline.records import check_writable
from dlm_roofline.text import three_digits

from ..machine import check_triton, clocks, commit, describe_device, versions
from ..run import reason_of
from ..tables import Table, print_table
from .device import UnderTest
from .record import SCHEMA, Record, Result, Session, gone_on_with, save, sources_of
from .rows import Row, checks_of, figures_of, rows_of, verdict
from .sizes import Sizes
from .steps import tokens_a_cycle

PREDICTED_FOR = "NVIDIA H200"
BUDGET = 520.0  # seconds, of the nine minutes that a command may take

# Chances that a further draft is right, for which the best k is named.
CHANCES = (0.7, 0.8, 0.9, 0.95)


ENDED_IN = "an earlier run ended in it"


class DeviceLost(Exception):
    """The device answers nothing any more; what it was doing is the message."""


def main(
    argv: list[str] | None = None,
    *,
    device: torch.device | None = None,
    sizes: Sizes | None = None,
) -> int:
    """Run the rows; 0 if none failed to run for want of a device, 1 on an error, 130 interrupted.

    device, sizes: by default the GPU, and the published shape. Without a GPU nothing is measured.
    """
    arguments = _arguments(argv)
    sizes = Sizes() if sizes is None else sizes
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    try:
        if device is None:
            print_predictions(sizes, _console())
            return 0
        return _measure(arguments, sys.argv[1:] if argv is None else argv, device, sizes)
    except (OSError, ValueError, DeviceLost) as error:
        print(f"dlm gpu-bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dlm gpu-bench: interrupted before anything was measured", file=sys.stderr)
        return 130


def print_predictions(sizes: Sizes, console: Console) -> None:
    """Every row with its target and the floor that a datasheet predicts."""
    sheet, body = DATASHEETS[PREDICTED_FOR], []
    for row in rows_of(sizes):
        floor = _floor(row, sheet.roof(row.dtype))
        shown = "-" if floor is None else f"○ {three_digits(1e3 * floor)}"
        body.append([row.name, row.target, "not measured", "not measured", shown, "-", "-"])
    title = f"Targets, and floors predicted for an {PREDICTED_FOR}"
    print_table(Table(title, _header("○ floor ms, predicted"), body), console)
    console.print(
        f"Nothing was measured: torch sees no CUDA device. ○ is a prediction from the datasheet"
        f" ({sheet.source}), of an {PREDICTED_FOR}, not of this machine. No record was written.",
        highlight=False,
    )
    closing = {"record": None, "device": None, "measured": 0, "left": len(body)}
    print(json.dumps(closing))


def _measure(
    arguments: argparse.Namespace, argv: list[str], device: torch.device, sizes: Sizes
) -> int:
    began = time.monotonic()
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET is 1; unset it: the interpreter says nothing of speed")
    check_writable(arguments.out)
    if device.type == "cuda":
        check_triton(device)
    rows = rows_of(sizes)
    record = gone_on_with(_begin(device, sizes), arguments.out)
    console = _console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    interrupted = False
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ceilings of the device", total=None)
        try:
            # What failed before comes last: it may fail in a way that ends the run.
            untried = [row for row in rows if record.result_of(row.name) is None]
            failed = [row for row in rows if (at := record.result_of(row.name)) and at.refused]
            if untried or failed:
                on = UnderTest.of(device, sizes, measure_ceilings(device))
                record.sessions.append(_session(on, argv))
            for row in untried + failed:
                if time.monotonic() - began + row.seconds > arguments.budget:
                    continue  # a shorter one may fit
                progress.update(task, description=row.name)
                session = len(record.sessions) - 1
                # A row that ends the process, or outlasts it, is not the first one the next time.
                record.put(Result(row.name, session, None, {}, [], {}, ENDED_IN))
                save(record, arguments.out)
                result = _result(row, on, session)
                record.put(result)
                save(record, arguments.out)
                console.print(_line(row, result), highlight=False, soft_wrap=True)
                _check_alive(device, row)
        except KeyboardInterrupt:
            interrupted = True
    path = save(record, arguments.out)
    print_table(_table(rows, record), console)
    for line in _notes(rows, record, interrupted):
        console.print(line, highlight=False, soft_wrap=True)
    print(json.dumps(_closing(rows, record, sizes, path)))
    return 130 if interrupted else 0


def _begin(device: torch.device, sizes: Sizes) -> Record:
    """A record without rows."""
    head, dirty = commit()
    return Record(
        SCHEMA,
        head,
        dirty,
        sources_of(),
        backend_for(torch.empty(0, device=device)),
        describe_device(device),
        sizes.config,
        str(sizes.dtype).removeprefix("torch."),
    )


def _session(on: UnderTest, argv: list[str]) -> Session:
    # Last there were matrix products: an idle GPU would state the clocks of an idle GPU.
    state = clocks(on.device)
    return Session(
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        shlex.join(["dlm", "gpu-bench", *argv]),
        versions(),
        state,
        on.ceilings,
        on.launch,
    )


def _result(row: Row, on: UnderTest, session: int) -> Result:
    """Measure a row; whatever stops it is its result."""
    floor = _floor(row, on.ceilings.roof(row.dtype))
    try:
        measured = row.measure(on)
        for name, value in measured.figures.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
    except Exception as error:  # as many ways to fail as there are rows
        return Result(row.name, session, floor, {}, [], {}, reason_of(error))
    finally:
        on.tidy()
    return Result(row.name, session, floor, *measured, refused=None)


def _check_alive(device: torch.device, row: Row) -> None:
    """A fault in a kernel leaves a process whose every further call fails: end it."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceLost(
            f"the device fails since {row.name!r}: {reason_of(error)}; what was measured before is"
            " kept, and the same command goes on with the other rows"
        ) from error


def _floor(row: Row, roof: Roof) -> float | None:
    """Least seconds of the stages one after the other; None for a row that has none."""
    stages: tuple[Cost, ...] = row.stages
    return sum(map(roof.seconds, stages)) if stages else None


def _table(rows: list[Row], record: Record) -> Table:
    body = []
    for row in rows:
        result = record.result_of(row.name)
        if result is None or result.refused is not None:
            why = "not measured yet" if result is None else f"failed: {result.refused}"
            body.append([row.name, row.target, "-", "-", "-", why, "-"])
            continue
        floor = "-" if result.floor is None else three_digits(1e3 * result.floor)
        figures = _checked(row, result)
        body.append([row.name, row.target, *_times(result), floor, figures, verdict(row, result)])
    notes = [
        "Floor: what this run's ceilings allow for the compulsory bytes, FLOPs and exponentials.",
        "An op with one time has the same kernels under both numerics.",
    ]
    return Table(
        f"Targets on {record.device.name}, {record.dtype}",
        _header("floor ms, predicted"),
        body,
        notes,
    )


def _header(floor: str) -> list[str]:
    return ["row", "target", "fast ms", "invariant ms", floor, "ratio", "holds"]


def _times(result: Result) -> list[str]:
    """Milliseconds of fast and of invariant."""
    both = result.timings.get("both")
    found = [result.timings.get(name, both) for name in ("fast", "invariant")]
    return ["-" if each is None else three_digits(1e3 * each.median) for each in found]


def _checked(row: Row, result: Result) -> str:
    """Every figure that the row is held to."""
    figures = figures_of(result)
    return "; ".join(
        f"{three_digits(figures[check.figure])} {check.figure}"
        if check.figure in figures
        else f"no figure {check.figure}"
        for check in checks_of(row, result)
    )


def _line(row: Row, result: Result) -> str:
    """A row just measured, with all that it gave."""
    if result.refused is not None:
        return f"{row.name}: failed: {result.refused}"
    fast, invariant = _times(result)
    figures = "; ".join(f"{name} {three_digits(x)}" for name, x in figures_of(result).items())
    peers = "; ".join(
        f"{peer.name} {three_digits(1e3 * peer.timing.median)} ms"
        if peer.timing
        else f"{peer.name}: {peer.refused}"
        for peer in result.peers
    )
    parts = [f"fast {fast} ms, invariant {invariant} ms", figures, peers, verdict(row, result)]
    return f"{row.name}: " + " | ".join(part for part in parts if part)


def _notes(rows: list[Row], record: Record, interrupted: bool) -> list[str]:
    left = [row.name for row in rows if record.result_of(row.name) is None]
    lines = ["interrupted: what was measured so far is kept"] * interrupted
    if left:
        lines.append(
            f"{len(left)} rows are left; the same command goes on with them: {', '.join(left)}"
        )
    return lines


def _closing(rows: list[Row], record: Record, sizes: Sizes, path: Path) -> dict[str, object]:
    """The record in one line for programs."""
    results = {row.name: record.result_of(row.name) for row in rows}
    verdicts = {row.name: verdict(row, results[row.name]) for row in rows}
    return {
        "record": str(path),
        "device": record.device.name,
        "measured": sum(result is not None for result in results.values()),
        "left": sum(result is None for result in results.values()),
        "hold": sum(each == "yes" for each in verdicts.values()),
        "missed": [name for name, each in verdicts.items() if each == "no"],
        "failed": [name for name, each in results.items() if each and each.refused],
        "head": head_paths(record),
        "best_k": best_k(record, sizes),
    }


def head_paths(record: Record) -> dict[str, str]:
    """Which of the two paths that the launch table chooses between was faster, by row count."""
    paths = ("one kernel", "vocabulary chunks")
    one, chunks = (f"{path}, over the product alone" for path in paths)
    return {
        result.name.rpartition(", ")[2]: "one kernel"
        if result.figures[one] <= result.figures[chunks]
        else "vocabulary chunks"
        for result in record.results
        if one in result.figures and chunks in result.figures
    }


def best_k(record: Record, sizes: Sizes) -> dict[str, dict[str, float]]:
    """For each chance that a further draft is right: the k of most tokens/s, and linear's.

    Times are measured; tokens a cycle are what that chance gives, alike at every depth.
    """
    block, seconds, linear = sizes.config.block_size, {}, None
    for result in record.results:
        if result.refused is not None:
            continue
        if result.name.startswith("quadratic self-speculation, k "):
            k = int(result.name.removeprefix("quadratic self-speculation, k ").split(",")[0])
            seconds[k] = result.timings["fast"].median
        elif result.name.startswith("linear self-speculation"):
            linear = result.timings["fast"].median
    found = {}
    for chance in CHANCES if seconds else ():
        rate = {k: tokens_a_cycle(k, chance) / each for k, each in seconds.items()}
        k = max(rate, key=lambda k: rate[k])
        found[str(chance)] = {"k": k, "tokens/s": round(rate[k], 1)}
        if linear:
            found[str(chance)]["linear, tokens/s"] = round(
                tokens_a_cycle(block, chance) / linear, 1
            )
    return found


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=200)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dlm gpu-bench",
        description="Hold stages, steps and cycles to their targets on the GPU; goes on where an"
        " earlier run with the same code stopped.",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the record")
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=BUDGET,
        metavar="SECONDS",
        help=f"begin no row that would end later; default {BUDGET:.0f}",
    )
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number above 0")
    return seconds
