"""The README's table, and that what is committed speaks of the model that is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlm_bench.quality import readme
from dlm_bench.quality.records import SCHEMA, QualityRecord, checkpoint_hash
from dlm_bench.quality.tables import write_csvs
from dlm_bench.readme import replace_between
from dlm_core import SMALL_MODEL
from dlm_roofline.json_file import read

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def committed() -> QualityRecord:
    return read(QualityRecord, ROOT / readme.RECORD, SCHEMA)


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_target_holds_or_is_missed(made_up: Callable[..., QualityRecord]) -> None:
    rows = cells(readme.targets(made_up(0.99)))[2:]
    assert len(rows) == 6
    measured = float(rows[0][2].split("%")[0]) / 100
    assert measured > 0.95 and rows[0][3] == "holds"
    assert cells(readme.targets(made_up(0.8)))[2][3] == "missed"


def test_points_less_are_those_of_the_same_examples(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up(0.9)
    ar, diffusion = record.results[0], record.result(readme.headline(record)["diffusion"].setting)
    pairs = [
        (ours, theirs)
        for i, (ours, theirs) in enumerate(zip(diffusion.right, ar.right, strict=True))
        if record.sample.tasks[i % len(record.sample.tasks)] != "python"
    ]
    apart = sum(ours - theirs for ours, theirs in pairs) / len(pairs)
    shown = cells(readme.targets(record))[3]
    assert shown[2].startswith(f"{100 * apart:+.1f} [")
    assert shown[3] == ("holds" if apart >= -0.03 else "missed")


def test_one_example_that_differs_is_a_miss(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up(0.9)
    results = [
        replace(each, digests=["11", *each.digests[1:]]) if each.setting.lora else each
        for each in record.results
    ]
    rows = cells(readme.targets(replace(record, results=results)))[2:]
    assert [row[3] for row in rows if "the tokens of" in row[0]] == ["holds", "missed"]


def test_the_record_is_whole_and_of_the_shipped_model(committed: QualityRecord) -> None:
    assert committed.complete and committed.scope == "standard" and not committed.dirty
    assert committed.model.hash == checkpoint_hash(SMALL_MODEL)


def test_the_projects_readme_and_csvs_show_what_the_record_holds(
    committed: QualityRecord, tmp_path: Path
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rewritten = tmp_path / "README.md"
    rewritten.write_text(text, encoding="utf-8")
    replace_between(rewritten, readme.BEGIN, readme.END, readme.targets(committed))
    assert rewritten.read_text(encoding="utf-8") == text
    for path in write_csvs(committed, tmp_path / "quality"):
        there = ROOT / readme.RECORD.parent / path.name
        assert there.read_bytes() == path.read_bytes(), path.name


def test_the_command_names_a_file_without_markers(
    committed: QualityRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "README.md"
    path.write_text("words")
    assert readme.main([str(path)]) == 1
    assert "README.md lacks the markers" in capsys.readouterr().err
    assert path.read_text() == "words"
