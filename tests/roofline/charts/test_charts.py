"""What holds for every picture, of a GPU's record and of a host's."""

import itertools
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up import record_of

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from dlm_roofline.charts.chart import Chart, mark_id, save
from dlm_roofline.charts.step import step_chart
from dlm_roofline.forward import DENOISE, QUADRATIC
from dlm_roofline.plots import charts_of, facts_of
from dlm_roofline.points import points_of
from dlm_roofline.records import BenchRecord

NAMES = ["roofline", "step", "modes", "context"]
DEVICES = ["gpu", "host"]
PHONE, LEAST = 400, 9  # pixels: a phone's width, and how high letters are there at least

# Of three batches, two contexts and four kinds of forwards with 4 or 5 stages.
ROWS = {"roofline": 3 * 4 * 5, "step": 3 * (4 * 5 + 1), "modes": 4 * 3, "context": 2 * 3 * 2}
# By chart, how high the marks of a row stand.
HEIGHTS = {
    "roofline": [lambda row: row["flops"] / row["measured_s"]],
    "step": [lambda row: row["share_of_step"]],
    "modes": [lambda row: row["tokens_per_s"], lambda row: row["tokens_per_s_a_user"],
              lambda row: row["first_tokens_ms"]],
    "context": [lambda row: 1e3 * row["measured_s"]],
}  # fmt: skip


@pytest.fixture(scope="module")
def records() -> dict[str, BenchRecord]:
    """The GPU's run was cut short, the host's is a quick one."""
    gpu, host = (record_of((1, 8, 64), contexts=(4096,), on_gpu=on_gpu) for on_gpu in (True, False))
    return {"gpu": replace(gpu, complete=False), "host": replace(host, scope="quick")}


@pytest.fixture(scope="module")
def charts(records: dict[str, BenchRecord]) -> dict[tuple[str, str], Chart]:
    return {
        (device, chart.name): chart
        for device, record in records.items()
        for chart in charts_of(record)
    }


each_chart = pytest.mark.parametrize("key", list(itertools.product(DEVICES, NAMES)), ids="-".join)


def marks_of(chart: Chart) -> dict[str, Artist]:
    found = [each for each in chart.figure.findobj() if each.get_gid()]
    marks = {each.get_gid(): each for each in found}
    assert len(marks) == len(found)
    return marks


def test_a_record_with_everything_has_all_charts(charts) -> None:
    assert list(charts) == list(itertools.product(DEVICES, NAMES))


@each_chart
def test_every_row_has_its_marks_and_they_stand_at_its_figures(key, charts) -> None:
    chart = charts[key]
    marks, heights = marks_of(chart), HEIGHTS[chart.name]
    rows = chart.frame.to_dict("records")
    assert len(rows) == ROWS[chart.name] and len(marks) == len(heights) * len(rows)
    for i, row in enumerate(rows):
        for n, height in enumerate(heights, start=1):
            mark = marks[mark_id(chart.name, i) + (f".{n}" if n > 1 else "")]
            if not isinstance(mark, Line2D):
                assert mark.get_height() == pytest.approx(height(row))
                continue
            assert mark.get_ydata()[0] == pytest.approx(height(row))
            hollow = mark.get_marker() != "None" and mark.get_markerfacecolor() == "white"
            assert hollow == (row.get("times") == "predicted")


@each_chart
def test_marks_can_be_told_apart_without_colour(key, charts) -> None:
    def look(mark: Artist) -> tuple[str, str]:
        if isinstance(mark, Line2D):
            return mark.get_color(), mark.get_marker()
        return mark.get_facecolor(), mark.get_hatch()

    looks = {look(mark) for mark in marks_of(charts[key]).values()}
    colors, shapes = zip(*looks, strict=True)
    assert len(looks) == len(set(colors)) == len(set(shapes)) > 1


class Watcher(RendererAgg):
    """Keeps each line of text that is drawn, its height in points, and where it stands."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.lines: list[tuple[str, float, Bbox]] = []

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None) -> None:
        width, height, descent = self.get_text_width_height_descent(s, prop, ismath)
        y += descent * (angle == 0)
        box = (x - height, y - width, x, y) if angle else (x, y - height, x + width, y)
        self.lines.append((s, prop.get_size_in_points(), Bbox.from_extents(*box)))
        super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)


@each_chart
def test_text_is_large_inside_the_picture_and_nowhere_over_other_text(key, charts) -> None:
    figure = charts[key].figure
    watcher = Watcher(*figure.bbox.size, figure.dpi)
    figure.draw(watcher)
    texts = [text for text, _, _ in watcher.lines]
    assert charts[key].title in texts and len(texts) > 15
    for text, points, box in watcher.lines:
        assert points / 72 / figure.get_figwidth() * PHONE >= LEAST, text
        assert -1 <= box.x0 < box.x1 <= watcher.width + 1, text
        assert -1 <= box.y0 < box.y1 <= watcher.height + 1, text
    for (one, _, a), (other, _, b) in itertools.combinations(watcher.lines, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), f"{one!r} lies over {other!r}"


@each_chart
def test_titles_say_what_was_measured_on_what(key, charts) -> None:
    words = " ".join(text.get_text().replace("\n", " ") for text in charts[key].figure.texts)
    device, model, how = {
        "gpu": ("NVIDIA H200", "bfloat16 · cold caches, CUDA graphs", "triton backend"),
        "host": ("AMD EPYC, 2 threads", "float32 · cold caches", "torch backend"),
    }[key[0]]
    for part in (charts[key].title, device, model, how, "8B, random weights", "torch 2.11.0",
                 "commit 0123456789", "2026-01-02"):  # fmt: skip
        assert part in words
    assert ("INCOMPLETE RUN" in words, "QUICK RUN" in words) == (key[0] == "gpu", key[0] == "host")
    about = charts[key].about
    assert about.count("?") == 1 and about.endswith(".") and about.count(". ") == 0


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_the_rows_and_where_they_are_from(name, records, charts, tmp_path: Path) -> None:
    chart, record = charts["gpu", name], records["gpu"]
    png, svg, table = save(chart, tmp_path / "r", facts_of(record, chart).items())
    assert [path.name for path in (png, svg, table)] == [
        f"r-{name}.{kind}" for kind in ("png", "svg", "csv")
    ]
    assert png.read_bytes().startswith(b"\x89PNG")

    ids = [each.get("id") for each in ElementTree.parse(svg).iterfind(".//*[@id]")]
    ids = [each for each in ids if each.startswith(f"{name}-")]
    assert sorted(ids) == sorted(marks_of(chart)) and len(ids) >= len(chart.frame)
    assert chart.title in svg.read_text()  # as text

    pd.testing.assert_frame_equal(pd.read_csv(table, comment="#"), chart.frame, check_dtype=False)
    lines = table.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    expected = {
        "picture": chart.title, "device": "NVIDIA H200", "SM clock": "1755 MHz", "triton": "3.6.0",
        "commit": "0123456789abcdef", "run": "standard, INCOMPLETE: cut short",
        "read bandwidth": "4.30 TB/s", "bfloat16 peak": "790 TFLOP/s",
    }  # fmt: skip
    assert facts.items() >= expected.items()


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    record = record_of((1,), [DENOISE])
    first, second = (
        save(step_chart(record, points_of(record)), tmp_path / stem, [("device", "H200")])
        for stem in ("a", "b")
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_without_a_whole_step_there_is_no_chart(record: BenchRecord) -> None:
    for rows in ([], [row for row in record.rows if row.kind == "stage"]):
        assert charts_of(replace(record, rows=rows)) == []


def test_cycles_alone_have_no_panels() -> None:
    """As a run that was cut short may leave them."""
    quadratic = record_of((1,), (QUADRATIC,))
    assert [chart.name for chart in charts_of(quadratic)] == ["modes"]
