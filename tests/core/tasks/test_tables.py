"""lookup and record: the table read by splitting its text."""

from collections.abc import Callable

from dlm_core.tasks import Example


def parsed(prompt: str) -> tuple[list[str], dict[str, list[str]], str, str]:
    """Column names, rows by name, and the two sides of the question's `of`."""
    table, question = prompt.removeprefix("table: ").split("; ")
    header, *rows = (line.split(" ") for line in table.split(" | "))
    assert len({row[0] for row in rows}) == len(rows) and len(set(header)) == len(header)
    assert all(len(cell) == 2 and cell.isdigit() for row in rows for cell in row[1:])
    what, name = question.split(" of ")
    return header, {row[0]: row for row in rows}, what, name


def test_lookup_is_one_cell(drawn: Callable[[str], list[Example]]) -> None:
    for example in drawn("lookup"):
        header, rows, column, name = parsed(example.prompt)
        assert example.answer == rows[name][header.index(column)]
        assert 2 <= len(rows) <= 5 and 3 <= len(header) <= 5


def test_record_is_one_row_with_names(drawn: Callable[[str], list[Example]]) -> None:
    for example in drawn("record"):
        header, rows, what, name = parsed(example.prompt)
        assert what == "row"
        cells = [cell.split(": ") for cell in example.answer.split(", ")]
        assert [column for column, _ in cells] == header
        assert [value for _, value in cells] == rows[name]
        assert 2 <= len(rows) <= 5 and 5 <= len(header) <= 7
