"""What holds for every picture: its files, its CSV, and that one finds each row in the other."""

import csv
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import RendererAgg

from dlm_roofline.charts.chart import Chart, save
from dlm_roofline.charts.roofline import roofline_chart
from dlm_roofline.charts.step import step_chart
from dlm_roofline.charts.style import FONT_SIZE
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, VERIFY
from dlm_roofline.plots import charts_of, profiles_of
from dlm_roofline.records import Record

NAMES = ["roofline", "step", "floor-map", "modes", "context", "memory", "model"]


@pytest.fixture(scope="module")
def small(make_record: Callable[..., Record]) -> Record:
    return make_record((1, 16), (DENOISE, DECODE, DRAFT, VERIFY), contexts=(4096,))


@pytest.fixture(scope="module")
def charts(small: Record) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of(small, profiles_of(small))}


@pytest.fixture(scope="module")
def folder(small: Record, charts: dict[str, Chart], tmp_path_factory) -> Path:
    """All files of all charts, by the stem "r"."""
    path = tmp_path_factory.mktemp("charts")
    for chart in charts.values():
        written = save(chart, small, path / "r")
        assert [each.name for each in written] == [
            f"r-{chart.name}.{kind}" for kind in ("png", "svg", "csv")
        ]
    return path


def test_a_record_with_everything_has_all_charts(charts: dict[str, Chart]) -> None:
    assert list(charts) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_its_mark_and_every_mark_its_row(name: str, charts, folder: Path) -> None:
    rows = charts[name].rows
    assert rows and all(len(row) == len(charts[name].header) for row in rows)
    elements = ElementTree.parse(folder / f"r-{name}.svg").iter()
    ids = [id for each in elements if (id := each.get("id", "")).startswith(f"{name}-")]
    assert sorted(ids) == sorted(f"{name}-{i}" for i in range(len(rows)))


class Watcher(RendererAgg):
    """Keeps each line of text that is drawn, and checks where."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.lines: set[str] = set()

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None) -> None:
        assert prop.get_size_in_points() >= FONT_SIZE, s
        width, height, _ = self.get_text_width_height_descent(s, prop, ismath)
        if angle == 90:  # it begins at its foot
            assert 0 <= x <= self.width and width <= y <= self.height, s
        else:
            assert angle == 0, s
            assert 0 <= x <= self.width - width and height / 2 <= y <= self.height, s
        if not ismath:
            self.lines.add(s)
        super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)


@pytest.mark.parametrize("name", NAMES)
def test_text_is_large_inside_the_picture_and_text_in_the_svg(
    name: str, charts: dict[str, Chart], folder: Path
) -> None:
    figure = charts[name].figure
    assert figure.get_figwidth() == 10
    watcher = Watcher(*figure.bbox.size, figure.dpi)
    figure.draw(watcher)
    elements = ElementTree.parse(folder / f"r-{name}.svg").iter("{http://www.w3.org/2000/svg}text")
    assert watcher.lines - {"".join(each.itertext()) for each in elements} == set()
    assert charts[name].title in watcher.lines


@pytest.mark.parametrize("chart_of", [roofline_chart, step_chart])
def test_the_same_record_gives_the_same_bytes(
    chart_of: Callable[..., Chart], small: Record, folder: Path, tmp_path: Path
) -> None:
    for path in save(chart_of(small), small, tmp_path / "r"):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", NAMES)
def test_csv_says_where_its_figures_are_from(name: str, charts, folder: Path) -> None:
    lines = (folder / f"r-{name}.csv").read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    assert facts["picture"] == charts[name].title
    assert facts["device"] == "NVIDIA H200"
    assert (facts["driver"], facts["SM clock"]) == ("580.1", "1755 MHz")
    assert (facts["torch"], facts["triton"]) == ("2.11.0", "3.6.0")
    assert (facts["commit"], facts["date"]) == ("0123456789abcdef", "2026-01-02T03:04:05Z")
    assert (facts["caches"], facts["run"]) == ("cold", "complete")
    assert facts["read bandwidth"] == "4.30 TB/s" and facts["bfloat16 peak"] == "790 TFLOP/s"
    table = [*csv.reader(line for line in lines if not line.startswith("#"))]
    assert table == [charts[name].header, *charts[name].rows]


@pytest.mark.parametrize("name", NAMES)
def test_about_is_a_question_and_how_to_read_it(name: str, charts: dict[str, Chart]) -> None:
    about = charts[name].about
    assert about.count("?") == 1 and about.endswith(".") and about.count(". ") == 0
