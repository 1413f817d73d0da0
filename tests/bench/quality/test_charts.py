"""Pictures: what they show, and that none breaks on a model that gets nothing right."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from dlm_bench.quality.acceptance_chart import acceptance_chart
from dlm_bench.quality.charts import draw
from dlm_bench.quality.frontier_chart import family, frontier_chart, points
from dlm_bench.quality.records import QualityRecord
from dlm_bench.quality.style import LOOKS


def test_pictures_are_written_as_png_and_svg(
    made_up: Callable[..., QualityRecord], tmp_path: Path
) -> None:
    written = draw(made_up(), tmp_path / "quality")
    assert [path.name for path in written] == [
        "quality-frontier.png",
        "quality-frontier.svg",
        "quality-acceptance.png",
        "quality-acceptance.svg",
    ]
    for path in written:
        assert path.stat().st_size > 10_000


def test_every_setting_is_a_point_of_its_family_on_the_same_examples(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    shown = points(record)
    assert [point.setting for point in shown] == [result.setting for result in record.results]
    assert {point.score.examples for point in shown} == {20}
    assert {family(point.setting) for point in shown} == set(LOOKS)


def test_the_frontier_has_a_second_panel_near_ar(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    whole, near = frontier_chart(record).axes
    assert whole.get_ylim() == (-0.02, 1.02)
    low, high = near.get_ylim()
    ar = points(record)[0]
    assert low == pytest.approx(ar.y - 0.12) and high == 1.005
    assert all(point.y < high for point in points(record))
    assert "PARTIAL" in _texts(frontier_chart(made_up(complete=False)))
    assert "PARTIAL" not in _texts(frontier_chart(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record,
        lambda record: replace(record, results=record.results[:1]),
        lambda record: replace(record, results=record.results[4:]),
        lambda record: replace(record, oracle_diffusion=[], oracle_drafts=[]),
        lambda record: replace(
            record,
            results=[replace(each, forwards=[0] * len(each.right)) for each in record.results],
        ),
    ],
    ids=["nothing right", "AR alone", "without AR", "no oracle", "no forwards"],
)
def test_thin_records_have_pictures_too(
    made_up: Callable[..., QualityRecord], change: Callable
) -> None:
    record = change(made_up(rate=-1.0))
    frontier_chart(record).draw_without_rendering()
    if (figure := acceptance_chart(record)) is not None:
        figure.draw_without_rendering()


def test_a_record_without_results_has_no_pictures(
    made_up: Callable[..., QualityRecord], tmp_path: Path
) -> None:
    assert draw(replace(made_up(), results=[]), tmp_path / "quality") == []
    assert list(tmp_path.iterdir()) == []


def _texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)
