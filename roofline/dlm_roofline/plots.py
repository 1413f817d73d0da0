"""Pictures from records alone: PNG and SVG, and beside each a CSV of what it shows."""

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from .points import Point, Subject, subject_of
from .records import RESULTS, Record, load


def draw(record: Record, path: Path) -> list[Path]:
    """Write the pictures of a record beside `path`, named after it; returns what was written.

    A record without a whole denoising step has no pictures. A ModuleNotFoundError says that
    matplotlib is not installed.
    """
    # Here and not above: what measures and reads records runs without matplotlib.
    from .roofline_chart import roofline_chart
    from .step_chart import step_chart

    subject = subject_of(record)
    if subject is None:
        return []
    stages = [point for points in subject.stages.values() for point in points]
    measured = [step for step in subject.steps if step.measured is not None]
    pictures = {
        "roofline": (roofline_chart(subject), [*stages, *subject.steps]),
        "step": (step_chart(subject), [*stages, *measured]),
    }
    written = []
    for name, (figure, points) in pictures.items():
        for kind in ("png", "svg"):
            written.append(path.with_name(f"{path.stem}-{name}.{kind}"))
            figure.savefig(written[-1], dpi=130)
        written.append(path.with_name(f"{path.stem}-{name}.csv"))
        _write_csv(written[-1], subject, points)
    return written


def _write_csv(path: Path, subject: Subject, points: Iterable[Point]) -> None:
    """Comment lines for where the figures come from, then one line a point."""
    record = subject.record
    with path.open("w", encoding="utf-8", newline="") as file:
        facts = {
            "device": record.device.name,
            **record.device.details,
            **record.versions,
            "commit": record.commit + (" with local changes" if record.dirty else ""),
            "date": record.date,
            "model": subject.model,
            "dtype": subject.dtype,
            "context": subject.context,
            "caches": "cold ahead of each run",
            "read bandwidth, byte/s": f"{subject.roof.bandwidth:.6g}",
            "copy bandwidth, byte/s": f"{record.ceilings.copy.best:.6g}",
            "peak, FLOP/s": f"{subject.roof.peak:.6g}",
            "ridge, FLOP/byte": f"{subject.roof.ridge:.6g}",
        }
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(
            ["name", "batch", "block", "flops", "bytes", "flop_per_byte", "held_by"]
            + ["predicted_floor_s", "measured_s", "share_of_roof"]
        )
        for point in points:
            cost = point.cost
            lines.writerow(
                [point.name, point.batch, point.block, f"{cost.flops:.0f}", f"{cost.bytes:.0f}"]
                + [f"{cost.intensity:.6g}", subject.roof.holder(cost), f"{point.floor:.6g}"]
                + ["" if point.measured is None else f"{point.measured:.6g}"]
                + ["" if point.measured is None else f"{point.share_of_roof:.4f}"]
            )


def main(argv: list[str] | None = None) -> int:
    """`dlm roofline`: draw the pictures of records again; 0, or 1 if one cannot be read."""
    parser = argparse.ArgumentParser(
        prog="dlm roofline", description="Draw the pictures of records, from the records alone."
    )
    parser.add_argument("records", nargs="*", type=Path, metavar="RECORD", help="default: the"
                        " newest record in --out, or else all of bench/results")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out"), help="where pictures go")
    arguments = parser.parse_args(argv)
    paths = arguments.records or _newest(arguments.out) or sorted(RESULTS.glob("*.json"))
    if not paths:
        print(
            f"dlm roofline: no record in {arguments.out}/ or {RESULTS}/; `dlm bench` makes one",
            file=sys.stderr,
        )
        return 1
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            written = draw(load(path), arguments.out / path.name)
            print("\n".join(map(str, written)) or f"{path} holds no denoising step to draw")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"dlm roofline: {error}", file=sys.stderr)
        return 1
    return 0


def _newest(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[-1:]
