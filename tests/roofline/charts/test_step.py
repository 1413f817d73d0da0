"""The bars of a step hold its stages, and the floor lies where the record puts it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
from matplotlib.text import Text

from dlm_roofline.charts.step import step_chart
from dlm_roofline.records import Record
from dlm_roofline.step_cost import ATTENTION

SLOWDOWN = 1.25  # of conftest.py's record
DENOISING_STAGES = 5


def test_bars_stack_to_the_stages_share_of_the_step(record: Record) -> None:
    axes = step_chart(record).figure.axes[0]
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert len(axes.patches) == 7 * DENOISING_STAGES
    # Every stage and the step are slower by the same factor, so the stages add up to the step.
    assert tops[DENOISING_STAGES - 1 :: DENOISING_STAGES] == pytest.approx([1] * 7)


def test_a_bar_is_as_high_as_its_row_says(make_record: Callable[..., Record]) -> None:
    chart = step_chart(make_record((1, 16)))
    bars = {bar.get_gid(): bar for bar in chart.figure.axes[0].patches}
    stages = 0
    for i, cells in enumerate(chart.rows):
        row = dict(zip(chart.header, cells, strict=True))
        if row["name"] == "denoising step":
            assert row["share_of_step"] == "1.0000"
            continue
        stages += 1
        share = float(row["share_of_step"])
        assert bars[f"step-{i}"].get_height() == pytest.approx(share, abs=1e-4)
    assert stages == len(bars) == 2 * DENOISING_STAGES


def test_each_bar_has_its_floor_and_its_times(make_record: Callable[..., Record]) -> None:
    chart = step_chart(make_record((1, 16)))
    axes = chart.figure.axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == pytest.approx([1 / SLOWDOWN] * 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "1\n4.77\n3.82", "16\n14.1\n11.3",
    ]  # fmt: skip


def test_a_stage_that_takes_more_takes_more_of_the_bar(make_record: Callable[..., Record]) -> None:
    record = make_record((1,))

    def slower(row, times: float):
        timing = row.timing
        return replace(row, timing=replace(timing, median=times * timing.median, high=1.0))

    rows = [slower(row, 3) if row.name == ATTENTION else row for row in record.rows]

    def share(record: Record) -> float:
        chart = step_chart(record)
        (row,) = (row for row in chart.rows if row[chart.header.index("name")] == ATTENTION)
        return float(row[-1])

    assert share(replace(record, rows=rows)) == pytest.approx(3 * share(record), rel=0.02)


@pytest.mark.parametrize(("times", "marker", "said"), [(1.2, "X", False), (4.0, "^", True)])
def test_plain_torch_is_a_mark_or_above_the_axis_a_number(
    make_record: Callable[..., Record], times: float, marker: str, said: bool
) -> None:
    record = make_record((1,))
    rows = []
    for row in record.rows:
        seconds = times * row.timing.median
        timing = replace(row.timing, low=seconds, median=seconds, high=seconds)
        rows.append(replace(row, peers=[replace(peer, timing=timing) for peer in row.peers]))
    axes = step_chart(replace(record, rows=rows)).figure.axes[0]
    (mark,) = (line for line in axes.lines if line.get_marker() != "None")
    assert mark.get_marker() == marker
    assert mark.get_ydata()[0] == pytest.approx(min(times, 1.4))
    assert any(text.get_text() == "4×" for text in axes.findobj(Text)) == said


def test_every_kind_of_forward_has_a_panel(grid_record: Record) -> None:
    figure = step_chart(grid_record).figure
    assert len(figure.axes) == 4
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_a_record_without_a_step_has_no_chart(record: Record) -> None:
    assert step_chart(replace(record, rows=[])) is None
