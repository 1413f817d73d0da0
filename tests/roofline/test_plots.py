"""The command that draws the pictures of records."""

from dataclasses import replace

import pytest
from made_up import MODEL, record_of

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("msgspec")

from dlm_core import PRESETS
from dlm_roofline import plots, records
from dlm_roofline.charts.step import step_chart
from dlm_roofline.forward import DENOISE
from dlm_roofline.points import points_of
from dlm_roofline.records import save


@pytest.fixture
def one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take as long, and have tests of their own."""
    monkeypatch.setattr(plots, "charts_of", lambda record: [step_chart(record, points_of(record))])


def test_the_profile_is_that_of_the_model_shown() -> None:
    record = record_of((1,), [DENOISE])
    unknown = {MODEL: replace(PRESETS["8b"], num_hidden_layers=4)}
    for models, name in ((record.models, "8b"), (unknown, "small_model")):
        charts = {chart.name: chart for chart in plots.charts_of(replace(record, models=models))}
        assert set(charts["modes"].frame.profile) == {name}


def test_command_draws_each_device(host_record, one_chart, tmp_path, monkeypatch, capsys) -> None:
    """And says how far predictions are, and of each picture what it is about."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "committed")
    gpu = record_of((1,), [DENOISE])
    host, gpu_file = (save(each, tmp_path / each.file_name) for each in (host_record, gpu))
    assert plots.main(["--out", str(tmp_path)]) == 0
    pictures = [path.with_name(f"{path.stem}-step.png") for path in (host, gpu_file)]
    assert sorted(tmp_path.glob("*.png")) == sorted(pictures)
    said = capsys.readouterr().out
    about = step_chart(gpu, points_of(gpu)).about
    assert said.count(about) == 2 and f"{pictures[1]} (.svg, .csv): {about}" in said
    assert said.index("from the host's ceilings alone") < said.index("missed")


def test_command_draws_the_records_named(one_chart, tmp_path, capsys) -> None:
    path = save(record_of((1,), [DENOISE]), tmp_path / "mine.json")
    assert plots.main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "mine-step.csv").exists()
    assert "mine.json" in capsys.readouterr().out


def test_command_refuses_a_bad_record_before_it_draws(tmp_path, capsys) -> None:
    good = save(record_of((1,), [DENOISE]), tmp_path / "good.json")
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
