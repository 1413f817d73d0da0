"""README's tables, each made from the committed records: a list of markers and functions."""

import sys
from collections.abc import Callable
from pathlib import Path

from dlm_roofline.records import RESULTS, default_records

from .quality.tables import README as QUALITY
from .tables import in_markdown

README = Path(__file__).parents[2] / "README.md"
NO_RECORDS = "No GPU run has been recorded yet, so there are no figures to show."


def gpu_tables() -> str:
    """All tables of each GPU's newest whole record."""
    records = default_records(out=RESULTS)
    gpus = [record for record in records if record.device.kind == "cuda"]
    return "\n\n".join(map(in_markdown, gpus)) or NO_RECORDS


TABLES: list[tuple[str, Callable[[], str]]] = [
    ("bench tables", gpu_tables),
    *QUALITY,
]


def rewrite(readme: Path) -> None:
    """Put every table between its markers; a ValueError names the markers that are missing."""
    text = readme.read_text(encoding="utf-8")
    for marker, make in TABLES:
        begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{readme} lacks the markers {begin} and {end}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    readme.write_text(text, encoding="utf-8")


def main() -> int:
    try:
        rewrite(README)
    except (OSError, ValueError) as error:
        print(f"readme: {error}", file=sys.stderr)
        return 1
    print(f"{README.name}: tables rewritten from the records in {RESULTS.name}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
