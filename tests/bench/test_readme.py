"""The README's tables of the bench are made from records alone."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich")

from dlm_bench import readme as readme_tables
from dlm_bench.readme import (
    BEGIN,
    END,
    MODEL_BEGIN,
    MODEL_END,
    NO_RECORDS,
    model_table,
    rewrite_readme,
)
from dlm_roofline.model_check import model_check, outlier_lines
from dlm_roofline.records import Record, save
from dlm_roofline.text import percent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{BEGIN}\nstale\n{END}\n\nafter\n{MODEL_BEGIN}\nold\n{MODEL_END}\n")
    return path


def test_readme_without_records_says_there_are_none(readme: Path, tmp_path: Path) -> None:
    rewrite_readme(readme, tmp_path / "results")
    text = readme.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n{NO_RECORDS}\n{END}\n\nafter\n{MODEL_BEGIN}\n")
    assert "old" not in text and text.endswith(f"\n{MODEL_END}\n")


def test_readme_shows_each_gpus_newest_complete_record(
    readme: Path, tmp_path: Path, record: Record
) -> None:
    results = tmp_path / "results"
    host = replace(record.device, kind="cpu", name="a host")
    of_host = replace(record.ceilings, graph_node=None)
    for each in (
        record,
        replace(record, date="2026-03-01T00:00:00Z", commit="feedface"),
        replace(record, date="2026-04-01T00:00:00Z", commit="ca57", complete=False),
        replace(record, date="2026-05-01T00:00:00Z", device=host, ceilings=of_host),
        replace(record, date="2026-06-01T00:00:00Z", commit="b0b0", scope="quick"),
        replace(record, date="2026-07-01T00:00:00Z", commit="dada", scope="folder"),
    ):
        save(each, results)
    (results / "something-else.json").write_text("{}")
    rewrite_readme(readme, results)
    text = readme.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n") and f"\n{END}\n\nafter\n" in text
    assert "feedface" in text and "2.50x" in text and "stale" not in text
    assert not any(words in text for words in ("0123456789", "ca57", "a host", "b0b0", "dada"))
    rewrite_readme(readme, results)
    assert readme.read_text() == text


def test_the_models_table_has_a_line_a_device(forwards: Record) -> None:
    check = model_check(forwards)
    lines = model_table([replace(forwards, rows=[]), forwards]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    device, command = forwards.device.label, f"`{forwards.command}`"
    counts = [str(len(check.counted)), str(len(check.unsteady))]
    assert cells[:5] == [device, command, forwards.commit[:7], *counts]
    unpaced = percent(check.unpaced[1]) if check.unpaced else ""
    assert cells[5:8] == [percent(check.median), percent(check.worst), unpaced]
    assert cells[8] == ("holds" if check.holds else "missed")
    outliers = [f"{device}: {line}" for line in outlier_lines(check)]
    assert [line[2:] for line in lines if line.startswith("- ")] == outliers


def test_a_readme_without_markers_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("words")
    with pytest.raises(ValueError, match="README.md lacks the markers"):
        rewrite_readme(path, tmp_path)
    assert path.read_text() == "words"


def test_a_bad_record_stops_the_command_and_leaves_the_readme(
    readme: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    (tmp_path / "h200-20260102t030405-bad.json").write_text("{}")
    assert readme_tables.main([str(readme)]) == 1
    assert "-bad.json: schema is None" in capsys.readouterr().err
    assert "stale" in readme.read_text()


def test_the_projects_readme_shows_what_its_records_hold(tmp_path: Path) -> None:
    committed = ROOT / "README.md"
    rewritten = tmp_path / "README.md"
    rewritten.write_text(committed.read_text(encoding="utf-8"), encoding="utf-8")
    rewrite_readme(rewritten, ROOT / "bench" / "results")
    assert rewritten.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
