"""The command that draws the pictures of records."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("msgspec")

from dlm_core import PRESETS
from dlm_roofline import plots, records
from dlm_roofline.charts.step import step_chart
from dlm_roofline.records import BenchRecord, save


@pytest.fixture
def one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take as long, and have tests of their own."""
    monkeypatch.setattr(plots, "charts_of", lambda record: [step_chart(record)])


def test_a_record_of_ops_alone_has_no_picture(record: BenchRecord, tmp_path: Path) -> None:
    assert plots.draw(replace(record, rows=[]), tmp_path / "r.json") == []
    assert list(tmp_path.iterdir()) == []


def test_the_profile_is_that_of_the_records_model(record: BenchRecord) -> None:
    assert plots.profile_of(record).name == "8b"
    other = {"other": replace(PRESETS["8b"], num_hidden_layers=4)}
    assert plots.profile_of(replace(record, models=other, rows=[])).name == "small_model"


def test_command_draws_each_devices_newest_record(
    make_record, host_record, one_chart, tmp_path, monkeypatch, capsys
) -> None:
    """And says how far predictions are, and of each picture what it is about."""
    committed, out = tmp_path / "committed", tmp_path / "out"
    monkeypatch.setattr(records, "RESULTS", committed)
    newest = replace(make_record((1,)), date="2026-02-02T00:00:00Z")
    save(make_record((1,)), committed / make_record((1,)).file_name)
    save(host_record, committed / host_record.file_name)
    save(newest, out / newest.file_name)
    assert plots.main(["--out", str(out)]) == 0
    drawn = sorted(path.name for path in out.glob("*.png"))
    assert drawn == sorted(
        each.file_name.replace(".json", "-step.png") for each in (host_record, newest)
    )
    said = capsys.readouterr().out
    about = step_chart(newest).about
    assert said.count(about) == 2 and f"{out / drawn[1]} (.svg, .csv): {about}" in said
    assert said.index("from the host's ceilings alone") < said.index("missed")


def test_command_draws_the_records_named(make_record, one_chart, tmp_path, capsys) -> None:
    path = save(make_record((1,)), tmp_path / "mine.json")
    assert plots.main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "mine-step.csv").exists()
    assert "mine.json" in capsys.readouterr().out


def test_command_refuses_a_bad_record_before_it_draws(make_record, tmp_path, capsys) -> None:
    good = save(make_record((1,)), tmp_path / "good.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert plots.main([str(good), str(bad), "--out", str(tmp_path / "out")]) == 1
    assert "bad.json: schema is None" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_without_any_record_says_how_to_make_one(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert plots.main(["--out", str(tmp_path)]) == 1
    assert "`dlm bench` makes one" in capsys.readouterr().err


def test_help_names_the_adviser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plots.main(["--help"])
    assert "dlm roofline advise --help" in " ".join(capsys.readouterr().out.split())
