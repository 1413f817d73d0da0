"""What each picture works out and draws beside the marks of its rows."""

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dlm_core import PRESETS
from dlm_roofline.acceptance import PUBLISHED, Profile, Setting, forwards_of
from dlm_roofline.charts.context import context_chart
from dlm_roofline.charts.modes import modes_chart
from dlm_roofline.charts.roofline import roofline_chart
from dlm_roofline.charts.step import step_chart
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, VERIFY, Forward
from dlm_roofline.records import BenchRecord
from dlm_roofline.step_cost import REMASK
from dlm_roofline.step_time import step_times, whole

SLOWDOWN = 1.25  # of conftest.py's records


def lines_of(axes: Axes, **style) -> list[Line2D]:
    """Without marks, of this style."""
    return [
        line
        for line in axes.lines
        if not line.get_gid() and all(getattr(line, f"get_{k}")() == v for k, v in style.items())
    ]


def test_the_roof_is_the_measured_one_and_the_datasheets_is_dashed(record, host_record) -> None:
    (axes,) = roofline_chart(record).figure.axes
    (measured,) = lines_of(axes, linewidth=2)
    sheet = DATASHEETS["NVIDIA H200"]
    (stated,) = lines_of(axes, linestyle="--")
    assert measured.get_linestyle() == "-"
    for line, bandwidth, peak in (
        (measured, 4.3e12, 790e12),
        (stated, sheet.bandwidth, sheet.matmul["bfloat16"]),
    ):
        for x, y in zip(*line.get_data(), strict=True):
            assert y == pytest.approx(min(x * bandwidth, peak))
    for axes in roofline_chart(host_record).figure.axes:
        assert lines_of(axes, linewidth=2) and not lines_of(axes, linestyle="--")


def test_hollow_marks_are_the_floors_of_the_smallest_and_the_largest_batch(record) -> None:
    chart = roofline_chart(record)
    (axes,) = chart.figure.axes
    ends = chart.frame[chart.frame.batch.isin([1, 64])]
    floors = sorted(ends.flops / ends.predicted_floor_s)
    hollow = lines_of(axes, markerfacecolor="white")
    assert sorted(line.get_ydata()[0] for line in hollow) == pytest.approx(floors)
    assert REMASK not in set(chart.frame.name) and len(floors) == 2 * 5


def test_the_ridge_is_printed_and_where_denoising_meets_it(grid_record) -> None:
    panels = roofline_chart(grid_record).figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["AR decoding step, context 1024", *(f"{name}, block 32, context 1024" for name
                      in ("denoising step", "draft forward", "verify forward"))]  # fmt: skip
    words = [[text.get_text() for text in axes.texts] for axes in panels]
    ridge = "ridge: 184 FLOP/byte"
    met = f"{ridge}\nthe step meets it at 7×32 rows, predicted"
    assert words == [[ridge], [met], [ridge], [ridge]]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1


def test_stages_stack_to_the_step_and_the_floor_is_dashed(make_record) -> None:
    chart = step_chart(make_record((1, 16)))
    (axes,) = chart.figure.axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert tops[4::5] == pytest.approx([1, 1])  # of five stages, each as slow as the step
    floors = lines_of(axes, linewidth=2.4)
    assert [line.get_ydata()[0] for line in floors] == pytest.approx([1 / SLOWDOWN] * 2)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["1\n4.77", "16\n14.1"]


@pytest.mark.parametrize(
    ("times", "marks", "words"),
    [(1.2, {"X": 1.2}, set()), (4.0, {"^": 1.4}, {"4×"}), (None, {}, set())],
)
def test_plain_torch_is_a_mark_or_off_the_scale_a_number(make_record, times, marks, words) -> None:
    record = make_record((1,))

    def beside(row):
        if times is None:
            return replace(row, peers=[])
        each = times * row.timing.median
        timing = replace(row.timing, median=each, low=each, high=each)
        return replace(row, peers=[replace(peer, timing=timing) for peer in row.peers])

    figure = step_chart(replace(record, rows=[beside(row) for row in record.rows])).figure
    (axes,) = figure.axes
    found = [line for line in axes.lines if line.get_marker() != "None"]
    assert {line.get_marker(): line.get_ydata()[0] for line in found} == marks
    assert {text.get_text() for text in axes.texts} == words | {"batch\nms"}


def test_slopes_are_those_of_the_nearest_lines(grid_record: BenchRecord) -> None:
    def timed(row):
        each = 2e-3 + 3e-9 * row.forward.batch * row.forward.context
        return replace(row, timing=replace(row.timing, median=each, low=each, high=each))

    chart = context_chart(replace(grid_record, rows=[timed(row) for row in grid_record.steps()]))
    frame = chart.frame
    assert set(frame.batch) == {1, 8, 64} and set(frame.context) == {1024, 4096, 16384, 32768}
    assert frame.measured_slope_ns.tolist() == pytest.approx((3 * frame.batch).tolist())
    # Keys and values of a token, 139,264 bytes, at 4.3 TB/s.
    one = frame[(frame.forward == DECODE) & (frame.batch == 1)].iloc[0]
    assert one.predicted_slope_ns == pytest.approx(139_264 / 4.3e12 * 1e9, rel=0.02)
    config, forward = PRESETS["8b"], Forward(DECODE, 1, 1, int(one.context), "bfloat16")
    expected = whole(step_times(config, forward, grid_record.ceilings)).seconds
    assert one.predicted_s == pytest.approx(expected)
    for axes in chart.figure.axes:
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend[0].startswith("batch 1: 3.00 ns a token, predicted 32.")
        assert legend[2].startswith("batch 64: 192 ns a token, predicted 2,07")


def test_no_context_at_all_has_its_place(make_record) -> None:
    record = make_record((1, 2), contexts=(0, 4096))
    chart = context_chart(record)
    (axes,) = chart.figure.axes  # no AR decoding step was timed
    assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] <= 0
    assert set(chart.frame.context) == {0, 1024, 4096}


def test_one_context_has_no_slope(record: BenchRecord) -> None:
    assert context_chart(record) is None


@pytest.fixture(scope="module")
def four_kinds(make_record: Callable[..., BenchRecord]) -> BenchRecord:
    return make_record((1, 4, 16), (DENOISE, DECODE, DRAFT, VERIFY))


def test_rates_and_waits_follow_from_the_forwards(four_kinds: BenchRecord) -> None:
    chart = modes_chart(four_kinds, PUBLISHED["8b"])
    timed = {row.forward: row.timing.median for row in four_kinds.steps()}
    assert len(chart.frame) == 4 * 3
    settings = {setting.mode: setting for setting in PUBLISHED["8b"].settings}
    for row in chart.frame.to_dict("records"):
        setting, batch = settings[row["mode"]], row["batch"]
        forwards = forwards_of(setting, batch, 1024, "bfloat16")
        if row["mode"] == "quadratic_spec":  # nobody timed it
            times = [step_times(PRESETS["8b"], each, four_kinds.ceilings) for each in forwards]
            seconds, expected = sum(whole(each).seconds for each in times), "predicted"
        else:
            seconds, expected = sum(timed[forward] for forward in forwards), "measured"
        tokens = setting.tokens_per_forward * (2 if row["mode"] == "linear_spec" else 1)
        assert row["times"] == expected
        assert row["first_tokens_ms"] == pytest.approx(1e3 * seconds)
        assert row["tokens_per_s_a_user"] == pytest.approx(tokens / seconds)
        assert row["tokens_per_s"] == pytest.approx(batch * tokens / seconds)


def test_the_picture_says_that_it_is_a_product(four_kinds: BenchRecord) -> None:
    chart = modes_chart(four_kinds, PUBLISHED["3b"])
    words = " ".join(text.get_text() for text in chart.figure.texts).replace("\n", " ")
    said = "times of 8B, random weights, acceptance of 3b: a product, not a measurement"
    assert said in words and "context 1024" in words
    assert set(chart.frame.profile) == {"3b"} and set(chart.frame.model) == {"8B, random weights"}


def test_a_line_is_measured_or_predicted_as_a_whole(four_kinds: BenchRecord) -> None:
    gone = [r for r in four_kinds.rows if r.forward.kind != VERIFY or r.forward.batch != 4]
    frame = modes_chart(replace(four_kinds, rows=gone), PUBLISHED["8b"]).frame
    linear = frame[frame["mode"] == "linear_spec"]
    assert linear.batch.tolist() == [1, 16] and set(linear.times) == {"measured"}


def test_one_setting_of_each_mode_near_autoregressive_decoding(four_kinds: BenchRecord) -> None:
    settings = [
        Setting("autoregressive", 1, None, 1.0, 0.90),
        Setting("diffusion", 32, 0.5, 9.0, 0.80),  # fastest, and loses too much
        Setting("diffusion", 32, 0.9, 4.0, 0.88),
        Setting("diffusion", 32, 0.95, 3.0, 0.90),
        Setting("diffusion", 16, 0.9, 15.0, 0.90),  # predicted alone
        Setting("quadratic_spec", 4, None, 3.0, 0.70),  # none is near: the more accurate one
        Setting("quadratic_spec", 8, None, 6.0, 0.60),
    ]
    frame = modes_chart(four_kinds, Profile(1, "made up", "here", settings)).frame
    chosen = {(row["mode"], row["size"], row["accuracy"]) for row in frame.to_dict("records")}
    assert chosen == {
        ("autoregressive", 1, 0.9),
        ("diffusion", 32, 0.88),
        ("quadratic_spec", 4, 0.7),
    }
