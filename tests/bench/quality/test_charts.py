"""Pictures: what they show, and that none breaks on a model that gets nothing right."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from dlm_bench.quality.acceptance_chart import acceptance_chart
from dlm_bench.quality.charts import draw
from dlm_bench.quality.frontier import frontier, points
from dlm_bench.quality.frontier_chart import frontier_chart
from dlm_bench.quality.records import QualityRecord
from dlm_bench.quality.scores import (
    FEWEST,
    acceptance,
    exact_tasks,
    headline,
    oracle_tpf,
    right_by_itself,
)
from dlm_bench.quality.style import LOOKS, MODES, family


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
    assert {family(point.setting) for point in shown} == set(LOOKS) - {"rule"}
    assert sorted(LOOKS) == sorted(name for families in MODES.values() for name in families)
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)
    whole, _ = frontier_chart(record).axes
    drawn = {(line.get_marker(), *_ends(line)) for line in whole.lines}
    for point in shown:
        assert (LOOKS[family(point.setting)].marker, point.x, point.y, point.x, point.y) in drawn


def test_the_frontier_is_a_staircase_and_oracles_stand_beside_ar(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    best, (ar, *_) = frontier(points(record)), points(record)
    for axes in frontier_chart(record).axes:
        (line,) = (line for line in axes.lines if line.get_drawstyle() == "steps-pre")
        xs, ys = line.get_data()
        assert list(xs[1:-1]) == [point.x for point in best] and xs[-1] == best[-1].x
        assert list(ys[:-1]) == [best[0].y, *(point.y for point in best)]
        crosses = [_ends(line)[:2] for line in axes.lines if line.get_marker() == "X"]
        expected = [
            oracle_tpf(record, each, ["sort", "add"], 30) for each in record.oracle_diffusion
        ]
        assert crosses == [(tpf.value, ar.y) for tpf in expected]


def test_intervals_are_drawn_for_ar_and_the_frontier_alone(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    shown = points(record)
    whole, _ = frontier_chart(record).axes
    drawn = sorted(_bars(container) for container in whole.containers)
    kept = {id(point): point for point in (shown[0], *frontier(shown))}.values()
    expected = sorted([*point.score.tpf[1:], *point.score.right[1:]] for point in kept)
    assert len(drawn) == len(expected)
    for ours, theirs in zip(drawn, expected, strict=True):
        assert ours == pytest.approx(theirs)


def test_thresholds_of_a_block_length_are_joined(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    whole, _ = frontier_chart(record).axes
    thin = [line for line in whole.lines if line.get_linewidth() == 0.9]
    found = sorted(sorted(zip(*line.get_data(), strict=True)) for line in thin)
    lines = {}
    for point in points(record):
        if point.setting.threshold:
            lines.setdefault(point.setting.block_length, []).append((point.x, point.y))
    assert found == sorted(map(sorted, lines.values()))
    assert [text.get_text() for text in whole.texts].count(".95") == 3


def test_a_long_frontier_is_listed_by_both_its_ends(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    n = 30
    results = [
        replace(
            record.results[2 + i],
            right=[j >= i for j in range(n)],
            tokens=[61] * n,
            forwards=[60 - 3 * i] * n,
            digests=["00"] * n,
            cycles=[],
        )
        for i in range(0, 18)
    ]
    ar = replace(record.results[0], right=[j > 3 for j in range(120)])
    changed = replace(record, results=[ar, *results])
    best = frontier(points(changed))
    assert len(best) > 8
    text = _texts(frontier_chart(changed))
    assert f"and {len(best) - 8} between them that are left out" in text
    listed = [line.split()[0] for line in text.splitlines() if re.match("(AR|[ 0-9]+) .*%", line)]
    last = [str(number) for number in range(len(best) - 3, len(best) + 1)]
    assert listed == ["AR", "1", "2", "3", "4", *last]
    assert "left out" not in _texts(frontier_chart(record))


def test_curves_show_acceptance_and_lora_is_told_apart(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    figure = acceptance_chart(record)
    curves, without, with_lora, _ = figure.axes
    drawn = {line.get_label(): line.get_data() for line in curves.lines}
    named = headline(record)
    for name, words in (("linear", "without"), ("linear, LoRA", "with")):
        result = named[name]
        found = acceptance(record, result, exact_tasks(record))
        ((label, (xs, ys)),) = (
            each for each in drawn.items() if each[0].startswith(f"{words} the LoRA: it and all")
        )
        kept = [each for each in found if each.cycles >= FEWEST]
        assert list(ys) == [each.share.value for each in kept] and list(xs)[0] == 1
        assert f"80 examples, {kept[0].cycles} to {kept[-1].cycles} cycles" in label
        drafts = record.oracle_drafts[words == "with"]
        found = right_by_itself(record, drafts, exact_tasks(record))
        # Behind the second position there are 20 cycles.
        assert [each.cycles for each in found] == [40, 40, 20, 20, 20, 20, 20]
        ((_, (xs, ys)),) = (
            each for each in drawn.items() if each[0].startswith(f"{words} the LoRA: right by")
        )
        assert list(xs) == [1, 2] and list(ys) == [each.share.value for each in found[:2]]
    assert len(curves.collections) == len(curves.lines) == 4
    for axes, name, title in (
        (without, "linear", "without the LoRA"),
        (with_lora, "linear, LoRA", "with the LoRA"),
    ):
        assert axes.get_title(loc="left").startswith(title)
        (image,) = axes.images
        for row, task in enumerate(record.sample.tasks):
            found = acceptance(record, named[name], [task])
            for each, cell in zip(found, image.get_array()[row], strict=False):
                masked = each.cycles < FEWEST
                assert bool(cell is np.ma.masked or np.isnan(cell)) == masked
                assert masked or cell == each.share.value


def test_the_frontier_has_a_second_panel_near_ar(made_up: Callable[..., QualityRecord]) -> None:
    record = made_up()
    whole, near = frontier_chart(record).axes
    assert whole.get_ylim() == (-0.04, 1.04)
    low, high = near.get_ylim()
    ar = points(record)[0]
    assert low == pytest.approx(ar.y - 0.12) and high > ar.score.right.high
    assert "per forward" in whole.get_xlabel()
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


def _ends(line) -> tuple[float, ...]:
    xs, ys = line.get_data()
    return (xs[0], ys[0], xs[-1], ys[-1])


def _bars(container) -> list[float]:
    """Left, right, low and high end of an error bar."""
    across, upright = (bar.get_segments()[0] for bar in container.lines[2])
    return [across[0][0], across[1][0], upright[0][1], upright[1][1]]


def _texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)
