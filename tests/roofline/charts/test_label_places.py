"""A label's place: free, beside its mark, and as wide as its font is."""

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dlm_roofline.charts.label_places import Places, along, around

WORDS = "whole step 64"


@pytest.fixture
def axes() -> Axes:
    """A panel of 4 x 3 inches from 0 to 1."""
    figure = Figure(figsize=(4, 3))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return axes


def test_a_label_stays_clear_of_marks_and_of_other_labels(axes: Axes) -> None:
    places = Places(axes)
    places.take_mark(0.4, 0.5)
    first = places.find(WORDS, 0.4, 0.5, around)
    assert first[0] > 0 and first[1] == 0  # to the right, where nothing is
    second = places.find(WORDS, 0.4, 0.5, around)
    assert second[0] < 0  # the right is taken


def test_a_bold_label_has_its_middle_further_away(axes: Axes) -> None:
    plain, bold = (
        Places(axes).find(WORDS, 0.4, 0.5, around, weight=weight) for weight in ("normal", "bold")
    )
    assert bold[0] > plain[0] + 2


def test_lines_are_avoided_where_there_is_another_place(axes: Axes) -> None:
    places = Places(axes)
    places.take_line([0.4, 1.0], [0.5, 0.5])
    assert places.find(WORDS, 0.4, 0.5, around)[0] < 0


def test_a_label_that_fits_nowhere_is_left_out(axes: Axes) -> None:
    assert Places(axes).find("x" * 200, 0.5, 0.5, around) is None


def test_words_beside_an_upright_line_begin_at_its_foot(axes: Axes) -> None:
    across, up = Places(axes).find("ridge", 0.5, 0.0, along)
    assert across > 0 and up == 12
