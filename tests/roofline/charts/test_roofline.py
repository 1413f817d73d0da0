"""The roofline shows what is in the record, and never a prediction as measured."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from dlm_roofline.charts.roofline import roofline_chart
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, VERIFY
from dlm_roofline.points import subject_of
from dlm_roofline.records import Record
from dlm_roofline.step_cost import REMASK, STAGES

SLOWDOWN = 1.25  # of conftest.py's record
DENOISING_STAGES = 5


def words_of(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def test_csv_tells_measured_from_predicted(make_record: Callable[..., Record]) -> None:
    chart = roofline_chart(make_record((1, 16)))
    rows = [dict(zip(chart.header, row, strict=True)) for row in chart.rows]
    measured = [row for row in rows if row["measured_s"]]
    predicted = [row for row in rows if not row["measured_s"]]
    assert {(row["batch"], row["block"]) for row in measured} == {("1", "32"), ("16", "32")}
    assert len(measured) == 2 * (DENOISING_STAGES + 1)
    assert {row["name"] for row in predicted} == {"denoising step"}
    assert {row["batch"] for row in predicted} == {"2", "4", "8", "32", "64"}
    assert all(row["share_of_roof"] == "" for row in predicted)
    for row in measured:
        assert float(row["share_of_roof"]) == pytest.approx(1 / SLOWDOWN, rel=1e-3)
        assert float(row["measured_s"]) == pytest.approx(
            SLOWDOWN * float(row["predicted_floor_s"]), rel=1e-3
        )


def test_marks_stand_at_the_figures_of_their_rows(make_record: Callable[..., Record]) -> None:
    """Filled at what was measured, hollow at the floor where nothing was."""
    chart = roofline_chart(make_record((1, 16)))
    axes = chart.figure.axes[0]
    marks = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    filled = 0
    for i, cells in enumerate(chart.rows):
        row, mark = dict(zip(chart.header, cells, strict=True)), marks[f"roofline-{i}"]
        seconds = float(row["measured_s"] or row["predicted_floor_s"])
        x, y = mark.get_xdata()[0], mark.get_ydata()[0]
        assert x == pytest.approx(float(row["flop_per_byte"]), rel=1e-4)
        assert y == pytest.approx(float(row["flops"]) / seconds, rel=1e-4)
        assert (mark.get_markerfacecolor() != "white") == bool(row["measured_s"])
        filled += bool(row["measured_s"])
    others = [line for line in axes.lines if line.get_marker() != "None" and not line.get_gid()]
    assert filled and all(line.get_markerfacecolor() == "white" for line in others)


def test_a_stage_far_below_the_scale_goes_to_the_edge(record: Record) -> None:
    """It is drawn at the lower edge with an arrow; its row has the true figure."""
    slow = [
        replace(row, timing=replace(row.timing, low=1.0, median=1.0, high=1.0))
        if row.name == REMASK
        else row
        for row in record.rows
    ]
    chart = roofline_chart(replace(record, rows=slow))
    bottom, top = chart.figure.axes[0].get_ylim()
    marks = {line.get_gid(): line for line in chart.figure.axes[0].lines if line.get_gid()}
    rows = [dict(zip(chart.header, row, strict=True)) for row in chart.rows]
    found = [i for i, row in enumerate(rows) if row["name"] == REMASK]
    assert {rows[i]["measured_s"] for i in found} == {"1"}
    for i in found:
        assert bottom < marks[f"roofline-{i}"].get_ydata()[0] < 5 * bottom < top
    arrows = [each for each in chart.figure.axes[0].findobj(Annotation) if not each.get_text()]
    assert len(arrows) == len(found) == 7


def test_the_picture_says_where_the_step_crosses_the_ridge(record: Record) -> None:
    words = words_of(roofline_chart(record).figure)
    assert "ridge 184, met by the step at 7×32 rows, predicted" in words
    assert "NVIDIA H200" in words and "cold caches" in words and "INCOMPLETE" not in words


def test_an_incomplete_run_is_marked(record: Record) -> None:
    assert "INCOMPLETE RUN" in words_of(roofline_chart(replace(record, complete=False)).figure)


def test_each_kind_has_a_panel_with_the_same_axes(grid_record: Record) -> None:
    figure = roofline_chart(grid_record).figure
    panels = figure.axes[:-1]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["AR decoding step", *(f"{name}, block 32" for name in (
        "denoising step", "draft forward", "verify forward"))]  # fmt: skip
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1


def test_panels_name_the_context_where_it_differs(make_record: Callable[..., Record]) -> None:
    record = make_record((1,), (DENOISE, DECODE))
    moved = [
        replace(row, forward=replace(row.forward, context=4096))
        if row.forward.kind == DECODE
        else row
        for row in record.rows
    ]
    words = words_of(roofline_chart(replace(record, rows=moved)).figure)
    assert "AR decoding step, context 4096" in words
    assert "denoising step, block 32, context 1024" in words


def test_a_record_without_a_step_has_no_chart(record: Record) -> None:
    stages = [row for row in record.rows if row.kind == "stage"]
    assert roofline_chart(replace(record, rows=stages)) is None


def test_forwards_of_another_kind_of_weights_are_left_out(record: Record) -> None:
    """Commoner though they be: what is compared with one roof has one dtype of weights."""
    quantised = [
        replace(row, forward=replace(row.forward, weights="fp8", context=context))
        for row in record.rows
        for context in (1024, 4096)
    ]
    both = subject_of(replace(record, rows=[*quantised, *record.rows]))
    assert both.trails == subject_of(record).trails
    alone = subject_of(replace(record, rows=quantised))
    assert {step.forward.weights for step in alone.trails[DENOISE].steps} == {"fp8"}


def test_the_model_with_most_steps_is_shown(make_record: Callable[..., Record]) -> None:
    record = make_record((1, 4))
    other = [replace(row, model="small") for row in record.rows if row.forward.batch == 1]
    models = record.models | {"small": record.models[record.rows[0].model]}
    for rows in ([*record.rows, *other], [*other, *record.rows]):
        both = replace(record, models=models, rows=rows)
        assert subject_of(both).model == record.rows[0].model


def test_trails_lie_where_the_stages_are(make_record: Callable[..., Record]) -> None:
    """More steps behind another context, without stages, do not move the picture there."""
    record = make_record((1, 4), contexts=(4096,))
    more = [
        row for row in make_record((8, 16), contexts=(4096,)).rows if row.forward.context == 4096
    ]
    trail = subject_of(replace(record, rows=[*record.rows, *more])).trails[DENOISE]
    assert trail.context == 1024 and [*trail.stages] == [1, 4]
    assert set(trail.stage_trails) == set(STAGES) - {"all-reduce"}


@pytest.mark.parametrize("batches", [(1,), (1, 2, 4, 8, 16, 32, 64), (1, 64)])
@pytest.mark.parametrize("kinds", [(DENOISE,), (DECODE, DENOISE, DRAFT, VERIFY)])
def test_no_label_in_a_panel_lies_over_another(make_record, batches, kinds) -> None:
    figure = roofline_chart(make_record(batches, kinds)).figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes[: len(kinds)]:
        labels = [each for each in axes.findobj(Annotation) if each.get_text()]
        names = " ".join(label.get_text() for label in labels)
        for name in ("ridge", "whole step", "attention", "projections", "LM head", "embedding"):
            assert name in names
        # The extent of the letters alone, without the leader line or the margin around them.
        boxes = [Text.get_window_extent(label).padded(-1) for label in labels]
        for (one, a), (other, b) in itertools.combinations(zip(labels, boxes, strict=True), 2):
            assert not a.overlaps(b), f"{one.get_text()!r} lies over {other.get_text()!r}"
