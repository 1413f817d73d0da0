"""The map's cells hold the measured time over the floor, and nothing where nobody measured."""

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from dlm_roofline.charts.floor_map import floor_map_chart
from dlm_roofline.forward import DECODE, DENOISE
from dlm_roofline.records import Record, Row


def slowed(row: Row, times: float) -> Row:
    seconds = times * row.timing.median
    return replace(row, timing=replace(row.timing, low=seconds, median=seconds, high=seconds))


def cells_of(axes) -> dict[tuple[int, int], Rectangle]:
    return {
        (int(each.get_x()), int(each.get_y())): each
        for each in axes.patches
        if each.get_gid() is not None
    }


def numbers_of(axes) -> dict[tuple[int, int], Text]:
    return {(int(x), int(y)): text for text in axes.texts for x, y in [text.get_position()]}


def test_a_cell_says_how_many_times_the_floor_its_step_takes(make_record) -> None:
    record = make_record((1, 16), (DENOISE, DECODE), contexts=(4096,))
    rows = [
        slowed(row, 2) if (row.forward.batch, row.forward.context) == (16, 4096) else row
        for row in record.rows
    ]
    chart = floor_map_chart(replace(record, rows=rows))
    for axes in chart.figure.axes[:2]:
        words = {at: text.get_text() for at, text in numbers_of(axes).items()}
        # 1.25 is exact in neither direction, so that it may be written as either neighbour.
        assert words.pop((1, 1)) == "2.5"
        assert set(words) == {(0, 0), (1, 0), (0, 1)} and set(words.values()) <= {"1.2", "1.3"}
    ratios = [row[chart.header.index("measured_over_floor")] for row in chart.rows]
    assert sorted(ratios) == ["1.25"] * 6 + ["2.5"] * 2


def test_further_from_the_floor_is_darker_and_its_number_readable(grid_record: Record) -> None:
    """By lightness alone, as in grey."""
    times = {batch: 1 + 0.9 * i for i, batch in enumerate((1, 2, 4, 8, 16, 32, 64))}
    rows = [slowed(row, times[row.forward.batch]) for row in grid_record.rows]
    axes = floor_map_chart(replace(grid_record, rows=rows)).figure.axes[0]
    cells, numbers = cells_of(axes), numbers_of(axes)
    lights = [_luminance(cells[x, 0].get_facecolor()) for x in range(7)]
    assert lights == sorted(lights, reverse=True) and lights[0] > 3 * lights[-1]
    for at, cell in cells.items():
        light, ink = _luminance(cell.get_facecolor()), _luminance(to_rgb(numbers[at].get_color()))
        contrast = (max(light, ink) + 0.05) / (min(light, ink) + 0.05)
        assert contrast > 4.4


def _luminance(color: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_what_nobody_measured_stays_hatched_and_empty(make_record: Callable[..., Record]) -> None:
    record = make_record((1, 16), contexts=(4096,))
    rows = [row for row in record.rows
            if (row.forward.batch, row.forward.context) != (16, 4096)]  # fmt: skip
    axes = floor_map_chart(replace(record, rows=rows)).figure.axes[0]
    assert set(cells_of(axes)) == set(numbers_of(axes)) == {(0, 0), (1, 0), (0, 1)}
    (ground,) = (each for each in axes.patches if each.get_gid() is None)
    assert ground.get_hatch() and (ground.get_width(), ground.get_height()) == (2, 2)


def test_a_step_below_its_floor_has_the_lightest_cell(make_record: Callable[..., Record]) -> None:
    record = make_record((1,), contexts=(4096,))
    rows = [slowed(row, 0.5) if row.forward.context == 4096 else row for row in record.rows]
    axes = floor_map_chart(replace(record, rows=rows)).figure.axes[0]
    assert numbers_of(axes)[0, 1].get_text() == "0.6"
    light = [_luminance(cells_of(axes)[0, y].get_facecolor()) for y in (0, 1)]
    assert light[1] > light[0]


def test_one_context_alone_has_no_map(record: Record) -> None:
    assert floor_map_chart(record) is None
    assert floor_map_chart(replace(record, rows=[])) is None
