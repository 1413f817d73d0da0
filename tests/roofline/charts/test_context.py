"""The picture of context: measured and predicted slopes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
from dlm_roofline.charts.chart import mark_id
from dlm_roofline.charts.context import HEADER, NAME, context_chart
from dlm_roofline.forward import DECODE, DENOISE
from dlm_roofline.records import Device, Record
from dlm_roofline.step_time import step_times


def lines_of(chart) -> list[dict[str, str]]:
    return [dict(zip(HEADER, row, strict=True)) for row in chart.rows]


def timed_as(record: Record, seconds: Callable) -> Record:
    """The record with steps that take `seconds(forward)`."""
    rows = []
    for row in record.rows:
        if row.kind == "step":
            median = seconds(row.forward)
            row = replace(row, timing=replace(row.timing, median=median, low=median, high=median))
        rows.append(row)
    return replace(record, rows=rows)


def test_slopes_are_those_of_the_nearest_lines(grid_record: Record) -> None:
    record = timed_as(grid_record, lambda f: 2e-3 + 3e-9 * f.batch * f.context)
    chart = context_chart(record)
    found = lines_of(chart)
    assert len(found) == 2 * 4 * 4  # kinds, batches of seven, contexts
    for line in found:
        batch, context = int(line["batch"]), int(line["context"])
        assert float(line["measured_slope_ns"]) == pytest.approx(3 * batch, rel=1e-4)
        assert float(line["measured_s"]) == pytest.approx(2e-3 + 3e-9 * batch * context, rel=1e-4)
    assert {line["batch"] for line in found} == {"1", "4", "16", "64"}
    assert {line["context"] for line in found} == {"1024", "4096", "16384", "32768"}
    texts = [text.get_text() for text in chart.figure.texts]
    assert texts.count("3.00") == 2 and texts.count("192") == 2  # batches 1 and 64, both panels


def test_times_of_a_host_are_put_at_one_pace(grid_record: Record) -> None:
    """It grew slower with every step, which would tilt the lines."""
    device, rows = Device("cpu", "AMD EPYC", {}), []
    for i, row in enumerate(grid_record.rows):
        f, pace = row.forward, 1 + i % 7 / 10
        seconds = pace * (2e-3 + 3e-9 * f.batch * f.context)
        timing = replace(row.timing, median=seconds, low=seconds, high=seconds, graph=False)
        rows.append(replace(row, timing=replace(timing, pace=pace), peers=[]))
    none = {"exps": None, "l2": None, "graph_node": None}
    has = replace(grid_record.ceilings, **none)
    record = replace(grid_record, device=device, ceilings=has, backend="torch", rows=rows)
    chart = context_chart(record)
    found = lines_of(chart)
    assert len({line["pace"] for line in found}) > 3
    for line in found:
        batch, context = int(line["batch"]), int(line["context"])
        assert float(line["measured_slope_ns"]) == pytest.approx(3 * batch, rel=1e-4)
        paced = float(line["measured_s"]) / float(line["pace"])
        assert paced == pytest.approx(2e-3 + 3e-9 * batch * context, rel=1e-4)
    marks = [line for axes in chart.figure.axes for line in axes.lines if line.get_gid()]
    for mark, line in zip(marks, found, strict=True):
        paced = 1e3 * float(line["measured_s"]) / float(line["pace"])
        assert mark.get_ydata()[0] == pytest.approx(paced, rel=1e-4)
    assert "at the pace of the run's beginning" in chart.about
    assert {axes.get_ylabel() for axes in chart.figure.axes} == {"ms at the run's first pace"}
    of_gpu = context_chart(grid_record)
    assert "pace" not in of_gpu.about and {line["pace"] for line in lines_of(of_gpu)} == {""}


def test_predictions_are_those_of_the_cost_model(grid_record: Record) -> None:
    steps = {
        (row.forward.kind, row.forward.batch, row.forward.context): row.forward
        for row in grid_record.rows
        if row.kind == "step"
    }
    (model,) = grid_record.models.values()
    ends: dict[tuple, dict[int, float]] = {}
    for line in lines_of(context_chart(grid_record)):
        key = (line["kind"], int(line["batch"]))
        forward = steps[(*key, int(line["context"]))]
        stages = step_times(model, forward, grid_record.ceilings, "triton")
        seconds = sum(stage.seconds for stage in stages.values())
        assert float(line["predicted_s"]) == pytest.approx(seconds, rel=1e-5)
        ends.setdefault((*key, line["predicted_slope_ns"]), {})[forward.context] = seconds
    for (_, _, slope), seconds in ends.items():
        # Contexts cost alike from the first to the last, so any two give the slope.
        rise = (seconds[32768] - seconds[1024]) / (32768 - 1024)
        assert float(slope) == pytest.approx(1e9 * rise, rel=0.02)
    # Keys and values of a token, 139,264 bytes, at 4.3 TB/s.
    (slope,) = (float(each) for kind, batch, each in ends if (kind, batch) == (DECODE, 1))
    assert slope == pytest.approx(139_264 / 4.3e12 * 1e9, rel=0.02)


def test_every_row_has_its_mark_and_lines_differ_without_colour(grid_record: Record) -> None:
    chart = context_chart(grid_record)
    assert [axes.get_title(loc="left") for axes in chart.figure.axes] == [
        "denoising step, block 32",
        "AR decoding step",
    ]
    gids = []
    for axes in chart.figure.axes:
        marks = [line for line in axes.lines if line.get_gid() is not None]
        gids += [mark.get_gid() for mark in marks]
        assert len({mark.get_marker() for mark in marks}) == 4
        names = [text.get_text() for text in axes.texts]
        assert names == ["batch 1", "batch 4", "batch 16", "batch 64"]
        assert "--" not in {line.get_linestyle() for line in marks}
    assert gids == [mark_id(NAME, i) for i in range(len(chart.rows))]


def test_no_context_at_all_has_its_place(grid_record: Record) -> None:
    rows = [
        replace(row, forward=replace(row.forward, context=0))
        if row.forward.context == 4096
        else row
        for row in grid_record.rows
    ]
    chart = context_chart(replace(grid_record, rows=rows))
    assert "0" in {line["context"] for line in lines_of(chart)}
    for axes in chart.figure.axes:
        assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] <= 0
    chart.figure.draw_without_rendering()


def test_kinds_without_two_contexts_are_left_out(
    record: Record, make_record: Callable[..., Record]
) -> None:
    assert context_chart(record) is None
    assert context_chart(replace(record, rows=[])) is None
    one = make_record(batches=(1, 2), kinds=(DENOISE,), contexts=(4096,))
    (axes,) = context_chart(one).figure.axes
    assert [text.get_text() for text in axes.texts] == ["batch 1", "batch 2"]
