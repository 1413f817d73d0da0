"""README's tables, each made from the committed records, by the names of their markers."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import fill

from dlm_roofline.records import RESULTS, default_records, read
from dlm_roofline.tables import Table, markdown

from .quality import tables
from .quality.records import COMMITTED, QualityRecord
from .tables import in_markdown

README = Path(__file__).parents[2] / "README.md"
NO_RECORDS = "No GPU run has been recorded yet, so there are no figures to show."


def gpu_tables() -> str:
    """All tables of each GPU's newest whole record."""
    records = default_records(out=RESULTS)
    gpus = [record for record in records if record.device.kind == "cuda"]
    return "\n\n".join(map(in_markdown, gpus)) or NO_RECORDS


def quality_table(make: Callable[[QualityRecord], Table]) -> str:
    table = make(read(QualityRecord, COMMITTED))
    return markdown(replace(table, notes=[fill(note, 100) for note in table.notes]))


TABLES = {
    "bench tables": gpu_tables,
    "quality table": partial(quality_table, tables.targets),
    "quantised table": partial(quality_table, tables.quantised),
}


def rewrite(readme: Path) -> None:
    """Put every table between its markers; a ValueError names the markers that are missing."""
    text = readme.read_text(encoding="utf-8")
    for marker, make in TABLES.items():
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
