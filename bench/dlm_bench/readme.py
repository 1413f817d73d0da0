"""The README's tables of what the bench recorded."""

import sys
from collections.abc import Iterable
from pathlib import Path

from dlm_roofline.model_check import WORST_TARGET, model_check, outlier_lines
from dlm_roofline.records import RESULTS, Record, load, newest_of_each_device, record_files
from dlm_roofline.text import percent

from .tables import markdown

BEGIN, END = "<!-- bench tables: begin -->", "<!-- bench tables: end -->"
MODEL_BEGIN, MODEL_END = "<!-- model table: begin -->", "<!-- model table: end -->"
NO_RECORDS = "No GPU run has been recorded yet, so there are no figures to show."


def rewrite_readme(readme: Path, results: Path) -> None:
    """Put tables of each device's newest whole record in `results` between the README's markers:
    all of a GPU's, and of every device how far predictions are.

    A ValueError says so if the README has no markers or a record cannot be read.
    """
    found = newest_of_each_device([(path, load(path)) for path in record_files(results)])
    newest = [record for _, record in found]
    gpus = [markdown(record) for record in newest if record.device.kind == "cuda"]
    replace_between(readme, BEGIN, END, "\n\n".join(gpus) or NO_RECORDS)
    replace_between(readme, MODEL_BEGIN, MODEL_END, model_table(newest))


def model_table(records: Iterable[Record]) -> str:
    """In Markdown, a line a device: how far the cost model is from what was measured."""
    lines = [
        "| device | measured by | commit | that count | not steady | median error | worst |"
        " worst, not at one pace | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    outliers = []
    for record in records:
        check = model_check(record)
        if not check.counted:
            continue
        figures = [
            percent(check.median),
            percent(check.worst),
            percent(check.unpaced[1]) if check.unpaced else "",
            "holds" if check.holds else "missed",
        ]
        cells = [
            record.device.label,
            f"`{record.command}`",
            record.commit[:7],
            str(len(check.counted)),
            str(len(check.unsteady)),
            *figures,
        ]
        lines.append(f"| {' | '.join(cells)} |")
        outliers += [f"- {record.device.label}: {line}" for line in outlier_lines(check)]
    if outliers:
        lines += ["", f"Further off than {WORST_TARGET:.0%}, and what the record shows of it:", ""]
    return "\n".join([*lines, *outliers])


def replace_between(file: Path, begin: str, end: str, body: str) -> None:
    """Put `body` between two markers of a file; a ValueError says so if it lacks them."""
    before, found, rest = file.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{file} lacks the markers {begin} and {end}")
    file.write_text(f"{before}{begin}\n{body}\n{end}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Rewrite the tables of README.md, or of the file named, from the records in bench/results/."""
    arguments = sys.argv[1:] if argv is None else argv
    readme = Path(arguments[0]) if arguments else Path("README.md")
    try:
        rewrite_readme(readme, RESULTS)
    except (OSError, ValueError) as error:
        print(f"readme: {error}", file=sys.stderr)
        return 1
    print(f"{readme}: tables rewritten from {RESULTS}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
