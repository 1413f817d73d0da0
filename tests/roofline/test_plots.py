"""Which pictures a record has, and the command that draws them."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from dlm_core import PRESETS
from dlm_roofline import plots
from dlm_roofline.charts.step import step_chart
from dlm_roofline.records import Record, save
from dlm_roofline.step_cost import REMASK

# Of a record of denoising steps behind one context.
NAMES = ["roofline", "step", "modes", "memory", "model"]


def test_each_picture_is_there_as_png_svg_and_csv(make_record, tmp_path: Path) -> None:
    written = plots.draw(make_record((1,)), tmp_path / "h200.json")
    kinds = itertools.product(NAMES, ("png", "svg", "csv"))
    assert [path.name for path in written] == [f"h200-{what}.{kind}" for what, kind in kinds]
    assert sorted(written) == sorted(tmp_path.iterdir())
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_a_record_of_ops_alone_has_no_picture(record: Record, tmp_path: Path) -> None:
    assert plots.draw(replace(record, rows=[]), tmp_path / "r.json") == []
    assert list(tmp_path.iterdir()) == []


def test_stages_without_a_step_are_checked_against_the_model_alone(record: Record) -> None:
    stages = [row for row in record.rows if row.kind == "stage" and row.name != REMASK]
    charts = plots.charts_of(replace(record, rows=stages), plots.profiles_of(record))
    assert [chart.name for chart in charts] == ["model"]


def test_profiles_are_those_of_the_records_models(record: Record) -> None:
    assert [profile.name for profile in plots.profiles_of(record)] == ["8b"]
    other = {"other": replace(PRESETS["8b"], num_hidden_layers=4)}
    names = [profile.name for profile in plots.profiles_of(replace(record, models=other, rows=[]))]
    assert names == ["8b", "small_model"]


def test_command_draws_the_newest_record_of_the_folder(
    make_record: Callable[..., Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And says of each what it is about, in a line."""
    save(make_record((1,)), tmp_path)
    newest = save(replace(make_record((1, 2)), date="2026-02-02T00:00:00Z"), tmp_path)
    # What else is written there, and later.
    (tmp_path / "speed-of-light-nvidia-h200-0123456789-01234567.json").write_text("{}")
    monkeypatch.setattr(plots, "charts_of", lambda record, profiles: [step_chart(record)])
    assert plots.main(["--out", str(tmp_path)]) == 0
    about = step_chart(make_record((1,))).about
    stem = tmp_path / newest.stem
    said = capsys.readouterr().out
    assert said.endswith(f"{stem}-step.png (.svg, .csv): {about}\n")
    assert f"{newest}: predicted / measured - 1" in said and "projections and MLP" in said
    assert "that count: median error" in said
    assert len([*tmp_path.glob(f"{newest.stem}-step.*")]) == 3


def test_help_names_the_adviser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plots.main(["--help"])
    assert "dlm roofline advise --help" in " ".join(capsys.readouterr().out.split())


def test_command_refuses_a_bad_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert plots.main([str(bad), "--out", str(tmp_path)]) == 1
    assert "bad.json: schema is None" in capsys.readouterr().err


def test_command_without_any_record_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    assert plots.main([]) == 1
    assert "`dlm bench` makes one" in capsys.readouterr().err
