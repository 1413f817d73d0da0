"""`dlm report`: one HTML file from records, which needs no network and no server to be read."""

import argparse
import sys
from pathlib import Path

from dlm_core.whole_file import write_whole
from dlm_roofline.json_file import read
from dlm_roofline.records import RESULTS, load, newest_of_each_device, record_files

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
        help=f"records to show; default: the newest whole one of each device in {FOLDER}",
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
        records = newest_of_each_device([(path, load(path)) for path in record_files(RESULTS)])
        kinds = {record.device.kind for _, record in records}
        for kind, device in (("cpu", "the host's processor"), ("cuda", "a GPU")):
            if kind not in kinds:
                missing.append(
                    f"No whole record of {device} in {FOLDER}; `make bench` on it makes one."
                )
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

    write_whole(out, page(records, quality, runs, missing))
    return out, missing


if __name__ == "__main__":
    sys.exit(main())
