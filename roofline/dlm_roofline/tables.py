"""A table once, as a frame of numbers: shown on a terminal, in Markdown and as CSV."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from dlm_core.whole_file import write_whole

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """frame: columns of text or of plain numbers, as the CSV has them.

    formats: by column, how its numbers are written for people; other cells are shown as they are,
        and what is missing as "-".
    notes: sentences below the table.
    """

    title: str
    frame: "pd.DataFrame"
    notes: list[str] = field(default_factory=list)
    formats: Mapping[str, Callable[[float], str]] = field(default_factory=dict)

    @property
    def cells(self) -> list[list[str]]:
        """Every row as people read it."""
        columns = list(self.frame.columns)
        rows = self.frame.itertuples(index=False, name=None)
        return [[self._cell(name, x) for name, x in zip(columns, row, strict=True)] for row in rows]

    @property
    def words(self) -> list[bool]:
        """Which columns hold words, and so begin at the left."""
        columns = zip(self.frame.columns, *self.cells, strict=True)
        return [any(cell[:1].isalpha() for cell in cells) for _, *cells in columns]

    def _cell(self, column: str, value: object) -> str:
        if value is None or value != value:  # None, or pandas' NaN in its place
            return "-"
        format = self.formats.get(column)
        return format(value) if format and not isinstance(value, str) else str(value)


def show(table: Table, console: Console) -> None:
    """Title, rows and notes on a terminal; no cell is cut, however narrow that is."""
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, words in zip(table.frame.columns, table.words, strict=True):
        drawn.add_column(str(name), justify="left" if words else "right", no_wrap=True)
    for row in table.cells:
        drawn.add_row(*row)
    drawn.width = console.measure(drawn, options=console.options.update(width=10_000)).maximum
    console.print(f"\n{table.title}", style="bold", highlight=False)
    console.print(drawn, crop=False)
    for note in table.notes:
        console.print(f"  {note}", style="dim", highlight=False)


def markdown(table: Table) -> str:
    """The rows in Markdown, and the notes below them."""
    names = [str(name) for name in table.frame.columns]
    lines = [names, ["---" if words else "---:" for words in table.words], *table.cells]
    return "\n\n".join(["\n".join(f"| {' | '.join(each)} |" for each in lines), *table.notes])


def write_csv(frame: "pd.DataFrame", path: Path, facts: Iterable[tuple[str, object]] = ()) -> Path:
    """The frame as CSV; before it a line `# name: value` for each fact. Returns `path`."""
    above = "".join(f"# {name}: {value}\n" for name, value in facts)
    write_whole(path, above + frame.to_csv(index=False, lineterminator="\n"))
    return path
