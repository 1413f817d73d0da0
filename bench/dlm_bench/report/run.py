"""`dlm report`: one HTML file from records, which needs no network and no server to be read."""

import argparse
import sys
from pathlib import Path

from dlm_core.whole_file import write_whole
from dlm_roofline.records import RESULTS, Record, load, read

from ..quality.records import SCHEMA, QualityRecord
from . import player

QUALITY = RESULTS / "quality" / "quality.json"
OUT = Path("out/report.html")
FOLDER = "bench/results"  # what people call RESULTS


def main(argv: list[str] | None = None) -> int:
    """Write the report; returns 0, or 1 if a record cannot be read or the file not be written."""
    parser = argparse.ArgumentParser(prog="dlm report", description=__doc__)
    parser.add_argument(
        "--records",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="records to show; default: the newest whole one of the host and of each GPU in"
        f" {FOLDER}",
    )
    parser.add_argument(
        "--quality", type=Path, metavar="FILE", help=f"default: {FOLDER}/quality/quality.json"
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT}")
    arguments = parser.parse_args(argv)
    try:
        written, missing = write_report(arguments.records, arguments.quality, arguments.out)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"dlm report: {error}", file=sys.stderr)
        return 1
    for each in missing:
        print(f"missing: {each}")
    print(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")
    return 0


def write_report(
    paths: list[Path] | None, quality_path: Path | None, out: Path
) -> tuple[Path, list[str]]:
    """Write the page to `out`; returns its path, and what is not on it in sentences.

    paths, quality_path: None for what bench/results holds.

    A ValueError names the file and the field of a record that cannot be read, an OSError the file
    that cannot be written; a ModuleNotFoundError says that matplotlib is not installed.
    """
    missing: list[str] = []
    if paths is None:
        records = newest([(path, load(path)) for path in sorted(RESULTS.glob("*.json"))])
        kinds = {record.device.kind for _, record in records}
        for kind, device in (("cpu", "the host's processor"), ("cuda", "a GPU")):
            if kind not in kinds:
                missing.append(f"No whole record of {device} in {FOLDER}; `make bench` makes one.")
    else:
        records = [(path, load(path)) for path in paths]
    quality = None
    if quality_path is not None or QUALITY.exists():
        path = quality_path or QUALITY
        quality = (path, read(QualityRecord, path, SCHEMA))
    else:
        missing.append(f"No quality record in {FOLDER}; `make quality` makes one.")
    runs: list[dict] = []
    try:
        runs = player.runs()
    except (OSError, ValueError) as error:
        missing.append(f"No block being denoised: {error}.")

    # Here and not above: records are read and refused without matplotlib.
    from .page import page

    write_whole(out, page(records, profiles(), quality, runs, missing))
    return out, missing


def newest(records: list[tuple[Path, Record]]) -> list[tuple[Path, Record]]:
    """The newest whole standard record of the host, and then of each GPU by name."""
    found: dict[str, tuple[Path, Record]] = {}
    for path, record in sorted(records, key=lambda each: each[1].date):
        if record.complete and record.scope == "standard":
            device = record.device
            found["" if device.kind == "cpu" else device.name] = (path, record)
    return [found[name] for name in sorted(found)]


def profiles() -> list:
    """Published acceptance profiles, and the small model's own where it has been measured."""
    from dlm_roofline.acceptance import PUBLISHED, load_profile

    own = QUALITY.with_name("acceptance.json")
    return [*PUBLISHED.values(), *([load_profile(own)] if own.exists() else [])]


if __name__ == "__main__":
    sys.exit(main())
