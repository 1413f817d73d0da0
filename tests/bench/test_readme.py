"""README's tables are what the committed records say."""

import shutil
from pathlib import Path

import pytest

from dlm_bench import readme

pytest.importorskip("msgspec")
pytest.importorskip("pandas")


@pytest.mark.parametrize(
    ("marker", "make"), readme.TABLES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_each_table_stands_in_the_readme_as_its_record_makes_it(marker: str, make) -> None:
    text = readme.README.read_text(encoding="utf-8")
    _, _, rest = text.partition(f"<!-- {marker}: begin -->\n")
    assert rest.partition(f"\n<!-- {marker}: end -->")[0] == make()


def test_rewriting_changes_nothing_else(tmp_path: Path) -> None:
    copy = shutil.copy(readme.README, tmp_path / "README.md")
    readme.rewrite(Path(copy))
    assert Path(copy).read_text() == readme.README.read_text()


def test_missing_markers_are_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# nothing")
    with pytest.raises(ValueError, match="lacks the markers <!-- bench tables: begin -->"):
        readme.rewrite(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "# nothing"
