"""Pictures and their CSVs show what is in the record, and never a prediction as measured."""

import csv
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from dlm_roofline import plots
from dlm_roofline.points import subject_of
from dlm_roofline.records import Record, save
from dlm_roofline.roofline_chart import roofline_chart
from dlm_roofline.step_chart import step_chart
from dlm_roofline.step_cost import REMASK, STAGES

SLOWDOWN = 1.25  # of conftest.py's record


def test_each_picture_is_there_as_png_svg_and_csv(record: Record, tmp_path: Path) -> None:
    written = plots.draw(record, tmp_path / "h200.json")
    kinds = itertools.product(("roofline", "step"), ("png", "svg", "csv"))
    assert [path.name for path in written] == [f"h200-{what}.{kind}" for what, kind in kinds]
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def _read_csv(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_csv_tells_measured_from_predicted(make_record, tmp_path: Path) -> None:
    plots.draw(make_record(batches=(1, 16)), tmp_path / "h200.json")
    facts, rows = _read_csv(tmp_path / "h200-roofline.csv")
    assert facts["device"] == "NVIDIA H200"
    assert (facts["driver"], facts["SM clock"]) == ("580.1", "1755 MHz")
    assert (facts["torch"], facts["triton"]) == ("2.11.0", "3.6.0")
    assert facts["commit"] == "0123456789abcdef"

    measured = [row for row in rows if row["measured_s"]]
    predicted = [row for row in rows if not row["measured_s"]]
    assert {(row["batch"], row["block"]) for row in measured} == {("1", "32"), ("16", "32")}
    assert len(measured) == 2 * (len(STAGES) + 1)
    assert predicted and {row["name"] for row in predicted} == {"denoising step"}
    assert all(row["share_of_roof"] == "" for row in predicted)
    for row in measured:
        assert float(row["share_of_roof"]) == pytest.approx(1 / SLOWDOWN, rel=1e-3)
        assert float(row["measured_s"]) == pytest.approx(
            SLOWDOWN * float(row["predicted_floor_s"]), rel=1e-3
        )


def test_only_measured_points_are_filled(make_record) -> None:
    """Of trail and stages: one filled marker a measured point, one hollow one for each point."""
    subject = subject_of(make_record(batches=(1, 16)))
    axes = roofline_chart(subject).axes[0]
    markers = [line for line in axes.lines if line.get_marker() != "None"]
    rings = [line for line in markers if line.get_markerfacecolor() == "none"]
    assert len(rings) == len(STAGES) + 1  # round the points of the larger batch
    markers = [line for line in markers if line not in rings]
    filled = [line for line in markers if line.get_markerfacecolor() != "white"]
    trail_measured = 2
    numbered = 2 * (len(STAGES) + 1)
    assert len(filled) == trail_measured + numbered
    floors = {(line.get_xdata()[0], line.get_ydata()[0]) for line in markers} - {
        (line.get_xdata()[0], line.get_ydata()[0]) for line in filled
    }
    for step in subject.steps:
        if step.measured is None and step.rows <= 4 * 16 * 32:
            assert (step.cost.intensity, step.cost.flops / step.floor) in floors


def test_the_picture_says_where_the_step_crosses_the_ridge(record: Record) -> None:
    words = _words(roofline_chart(subject_of(record)))
    assert "ridge 184 FLOP/byte" in words
    assert "7 × 32 = 224 rows (predicted)" in words
    assert "NVIDIA H200" in words and "cold caches" in words and "INCOMPLETE" not in words


def test_an_incomplete_run_is_marked(record: Record) -> None:
    subject = subject_of(replace(record, complete=False))
    for chart in (roofline_chart, step_chart):
        assert "INCOMPLETE RUN" in _words(chart(subject))


def _words(figure: Figure) -> str:
    return " ".join(
        text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text"))
    )


@pytest.mark.parametrize("batches", [(1,), (1, 2, 4, 8, 16, 32, 64), (1, 64)])
def test_no_label_in_the_picture_lies_over_another(make_record: Callable, batches) -> None:
    figure = roofline_chart(subject_of(make_record(batches)))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    labels = [
        each
        for each in figure.axes[0].findobj(Annotation)
        if each.get_text().isdigit() or "×" in each.get_text()
    ]
    assert len(labels) > 6
    for label in labels:
        label.update_positions(renderer)
    # The extent of the letters alone, without the leader line or the margin around them.
    boxes = {label.get_text(): Text.get_window_extent(label).padded(-2) for label in labels}
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), f"{one} lies over {other}"


def test_bars_stack_to_the_stages_share_of_the_step(record: Record) -> None:
    axes = step_chart(subject_of(record)).axes[0]
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert len(axes.patches) == 7 * len(STAGES)
    # Every stage and the step are slower by the same factor, so the stages add up to the step.
    assert tops[len(STAGES) - 1 :: len(STAGES)] == pytest.approx([1] * 7)


def test_a_record_of_ops_alone_has_no_picture(record: Record, tmp_path: Path) -> None:
    stages = [row for row in record.rows if row.kind == "stage" and row.name == REMASK]
    assert plots.draw(replace(record, rows=stages), tmp_path / "r.json") == []
    assert list(tmp_path.iterdir()) == []


def test_command_draws_the_newest_record_of_the_folder(
    make_record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(make_record((1,)), tmp_path)
    newest = save(replace(make_record((1, 2)), date="2026-02-02T00:00:00Z"), tmp_path)
    assert plots.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [
        str(tmp_path / f"{newest.stem}-{what}.{kind}")
        for what in ("roofline", "step")
        for kind in ("png", "svg", "csv")
    ]
    assert all(Path(path).exists() for path in printed)


def test_command_refuses_a_bad_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert plots.main([str(bad), "--out", str(tmp_path)]) == 1
    assert "bad.json: schema is None" in capsys.readouterr().err


def test_command_without_any_record_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plots.main([]) == 1
    assert "`dlm bench` makes one" in capsys.readouterr().err
