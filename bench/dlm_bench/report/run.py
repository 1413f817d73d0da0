"""`dlm report`: one HTML file of records, which needs no network and no server to be read.

Without --records and --quality it shows the newest whole ones, of those that are committed and of
this machine's own in out/.
"""

import argparse
import sys
from pathlib import Path

from dlm_core.whole_file import write_whole
from dlm_roofline.records import OUT, BenchRecord, default_records, read

from ..quality.records import COMMITTED, QualityRecord
from . import player

PAGE = OUT / "report.html"
DEVICES = {"cpu": "a host's processor", "cuda": "a GPU"}


def main(argv: list[str] | None = None) -> int:
    """Write the report; returns 0, or 1 if a record can't be read or the file not be written."""
    parser = argparse.ArgumentParser(prog="dlm report", description=__doc__)
    parser.add_argument("--records", nargs="+", type=Path, metavar="FILE", help="of `dlm bench`")
    parser.add_argument("--quality", type=Path, metavar="FILE", help="of `dlm quality`")
    parser.add_argument("--out", type=Path, default=PAGE, help="default: %(default)s")
    asked = parser.parse_args(argv)
    try:
        missing = write_report(asked.records, asked.quality, asked.out)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"dlm report: {error}", file=sys.stderr)
        return 1
    for each in missing:
        print(f"missing: {each}")
    print(f"wrote {asked.out} ({asked.out.stat().st_size / 1e6:.1f} MB)")
    return 0


def write_report(paths: list[Path] | None, quality: Path | None, out: Path) -> list[str]:
    """Write the page of the records at `paths` to `out`; returns what is not on it, in sentences.

    Raises:
        OSError, ValueError: names the file that can't be written, or read and then the field.
        ModuleNotFoundError: matplotlib, pandas, msgspec or jinja2 is not installed.
    """
    records = [read(BenchRecord, path) for path in paths] if paths else default_records()
    answers = read(QualityRecord, quality) if quality else newest_quality()
    kinds, runs = {record.device.kind for record in records}, list[player.Run]()
    missing = [
        f"No record of {name}: `dlm bench` on one makes it."
        for kind, name in DEVICES.items()
        if kind not in kinds
    ]
    if answers is None:
        missing.append("No record of answers beside speed: `dlm quality` makes one.")
    try:
        runs = player.runs()
    except (OSError, ValueError) as error:
        missing.append(f"No blocks being filled: {error}.")

    from .page import page  # here and not above: records are refused without matplotlib

    write_whole(out, page(records, answers, runs, missing))
    return missing


def newest_quality(out: Path = OUT) -> QualityRecord | None:
    """The newest whole standard one; what can't be read the standard error names."""
    found = []
    for path in (COMMITTED, out / "quality" / "quality.json"):
        try:
            found += [read(QualityRecord, path)] if path.exists() else []
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    whole = [each for each in found if each.complete and each.scope == "standard"]
    return max(whole, key=lambda each: each.date, default=None)
