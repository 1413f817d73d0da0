"""README's tables are what the committed records say."""

import shutil
from pathlib import Path

import pytest

from dlm_bench import readme

pytest.importorskip("msgspec")
pytest.importorskip("pandas")


def test_the_readme_is_as_its_records_make_it(tmp_path: Path) -> None:
    copy = Path(shutil.copy(readme.README, tmp_path))
    readme.rewrite(copy)
    assert copy.read_text().splitlines() == readme.README.read_text().splitlines()
    for marker in ("quality table", "quantised table"):
        assert max(map(len, readme.TABLES[marker]().splitlines()[-5:])) <= 100  # notes are filled


def test_missing_markers_are_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# nothing")
    with pytest.raises(ValueError, match="lacks the markers <!-- bench tables: begin -->"):
        readme.rewrite(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "# nothing"
