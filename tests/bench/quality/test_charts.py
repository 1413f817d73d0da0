"""Pictures: each mark has the values of its row, and no record breaks them."""

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
from dlm_bench.quality.charts import LOOKS, charts_of, family
from dlm_bench.quality.records import QualityRecord, Result
from dlm_bench.quality.scores import frontier
from dlm_roofline.charts.chart import mark_id

from .conftest import made_up


def changed(record: QualityRecord, **fields) -> QualityRecord:
    """The same, with fields of every example decoded changed."""
    results = [
        Result.of(each.setting, [one._replace(**fields) for one in each.examples], 1.0)
        for each in record.results
    ]
    return replace(record, results=results)


def test_every_row_has_its_mark_in_its_place() -> None:
    record = made_up()
    record.results[5] = changed(replace(record, results=[record.results[5]]), right=False).results[
        0
    ]
    (chart,) = charts_of(record)
    (axes,) = chart.figure.axes
    low, _ = axes.get_ylim()
    marks = {line.get_gid(): line.get_xydata()[0] for line in axes.lines if line.get_gid()}
    rows = chart.frame.to_dict("records")
    assert list(marks) == [mark_id(chart.name, i) for i in range(len(rows))]
    # What is far below AR stands on the edge, beside its share.
    places = [[row["tpf"], max(row["right"], low)] for row in rows]
    assert [list(mark) for mark in marks.values()] == places
    assert chart.frame.right[5] == 0 < low
    assert "0%" in [text.get_text() for text in axes.texts]


def test_the_staircase_the_oracles_the_legend_and_the_list_say_the_same() -> None:
    record = made_up()
    (axes,), rows = charts_of(record)[0].figure.axes, frontier(record)
    best = sorted((row for row in rows if row["on_frontier"]), key=lambda row: row["tpf"])
    (stairs,) = (line for line in axes.lines if line.get_drawstyle() == "steps-pre")
    assert stairs.get_xydata()[1:-1].tolist() == [[row["tpf"], row["right"]] for row in best]
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [row["tpf"] for row in rows if row["mode"] == "oracle"]
    listed = axes.figure.get_supxlabel().splitlines()
    assert len(listed) == 2 + len(best) and listed[1].split()[0] == "AR"
    for line, row in zip(listed[2:], best, strict=True):
        assert f"{row['tpf']:.2f}" in line and line.endswith(row["setting"])
    assert len(axes.containers) == 1 + len(best)  # intervals: of AR and the frontier alone
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [*LOOKS, "frontier"] and set(map(family, rows)) == set(LOOKS)
    assert len({marker for _, marker in LOOKS.values()}) == len(LOOKS)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record,
        lambda record: replace(record, results=record.results[:1], oracles=[]),
        lambda record: replace(record, results=record.results[4:], complete=False),
        lambda record: changed(record, forwards=0),
    ],
    ids=["nothing right", "AR alone", "without AR", "no forwards"],
)
def test_thin_records_have_pictures_too(change: Callable[[QualityRecord], QualityRecord]) -> None:
    for chart in charts_of(change(made_up(rate=-1.0))):
        chart.figure.draw_without_rendering()


def test_a_record_without_results_has_no_pictures() -> None:
    assert charts_of(replace(made_up(), results=[])) == []
