"""What each picture works out and draws beside the marks of its rows."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from made_up import MODEL, SLOWDOWN, record_of, timed

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dlm_core import PRESETS
from dlm_roofline.acceptance import PUBLISHED, Profile, Setting
from dlm_roofline.charts.chart import Chart
from dlm_roofline.charts.context import context_chart
from dlm_roofline.charts.modes import modes_chart
from dlm_roofline.charts.roofline import roofline_chart
from dlm_roofline.charts.step import step_chart
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, LINEAR, VERIFY, Forward, parts_of
from dlm_roofline.points import points_of
from dlm_roofline.records import BenchRecord
from dlm_roofline.step_cost import REMASK
from dlm_roofline.step_time import step_times, whole


def chart_of(draw: Callable[..., Chart], record: BenchRecord, *more: Profile) -> Chart:
    return draw(record, points_of(record), *more)


def lines_of(axes: Axes, **style) -> list[Line2D]:
    """Without marks, of this style."""
    return [
        line
        for line in axes.lines
        if not line.get_gid() and all(getattr(line, f"get_{k}")() == v for k, v in style.items())
    ]


def test_the_roof_is_the_measured_one_and_the_datasheets_is_dashed(record, host_record) -> None:
    (axes,) = chart_of(roofline_chart, record).figure.axes
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
    for axes in chart_of(roofline_chart, host_record).figure.axes:
        assert lines_of(axes, linewidth=2) and not lines_of(axes, linestyle="--")


def test_hollow_marks_are_the_floors_of_the_smallest_and_the_largest_batch(record) -> None:
    chart = chart_of(roofline_chart, record)
    (axes,) = chart.figure.axes
    ends = chart.frame[chart.frame.batch.isin([1, 64])]
    floors = sorted(ends.flops / ends.predicted_floor_s)
    hollow = lines_of(axes, markerfacecolor="white")
    assert sorted(line.get_ydata()[0] for line in hollow) == pytest.approx(floors)
    assert REMASK not in set(chart.frame.name) and len(floors) == 2 * 5


def test_the_ridge_is_printed_and_where_denoising_meets_it(grid_record) -> None:
    panels = chart_of(roofline_chart, grid_record).figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["AR decoding step, context 1024", *(f"{name}, block 32, context 1024" for name
                      in ("denoising step", "draft forward", "verify forward"))]  # fmt: skip
    words = [[text.get_text() for text in axes.texts] for axes in panels]
    ridge = "ridge: 184 FLOP/byte"
    met = f"{ridge}\nthe step meets it at 7×32 rows, predicted"
    assert words == [[ridge], [met], [ridge], [ridge]]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1


def test_stages_stack_to_the_step_and_the_floor_is_dashed() -> None:
    chart = chart_of(step_chart, record_of((1, 16), [DENOISE]))
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
def test_plain_torch_is_a_mark_or_off_the_scale_a_number(times, marks, words) -> None:
    record = record_of((1,), [DENOISE])

    def beside(row):
        slower = timed(row, (times or 1.0) * row.timing.median)
        peers = [replace(peer, timing=slower.timing) for peer in row.peers]
        return replace(row, peers=peers if times else [])

    figure = chart_of(step_chart, replace(record, rows=[beside(row) for row in record.rows])).figure
    (axes,) = figure.axes
    found = [line for line in axes.lines if line.get_marker() != "None"]
    assert {line.get_marker(): line.get_ydata()[0] for line in found} == marks
    assert {text.get_text() for text in axes.texts} == words | {"batch\nms"}


def test_slopes_are_those_of_the_nearest_lines(grid_record: BenchRecord) -> None:
    steps = [
        timed(row, 2e-3 + 3e-9 * row.forward.batch * row.forward.context)
        for row in grid_record.steps()
    ]
    chart = chart_of(context_chart, replace(grid_record, rows=steps))
    frame = chart.frame
    assert set(frame.batch) == {1, 8, 64} and set(frame.context) == {1024, 4096, 16384, 32768}
    assert frame.measured_slope_ns.tolist() == pytest.approx((3 * frame.batch).tolist())
    # Keys and values of a token, 139,264 bytes, at 4.3 TB/s.
    one = frame[(frame.forward == DECODE) & (frame.batch == 1)].iloc[0]
    assert one.predicted_slope_ns == pytest.approx(139_264 / 4.3e12 * 1e9, rel=0.02)
    config, forward = PRESETS["8b"], Forward(DECODE, 1, 1, int(one.context), "bfloat16")
    expected = whole(step_times(config, forward, grid_record.ceilings).values()).seconds
    assert one.predicted_s == pytest.approx(expected)
    for axes in chart.figure.axes:
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend[0].startswith("batch 1: 3.00 ns a token, predicted 32.")
        assert legend[2].startswith("batch 64: 192 ns a token, predicted 2,07")


def test_no_context_at_all_has_its_place() -> None:
    record = record_of((1, 2), [DENOISE], contexts=(0, 4096))
    chart = chart_of(context_chart, record)
    (axes,) = chart.figure.axes  # no AR decoding step was timed
    assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] <= 0
    assert set(chart.frame.context) == {0, 1024, 4096}


def test_one_context_has_no_slope(record: BenchRecord) -> None:
    assert chart_of(context_chart, record) is None


@pytest.fixture(scope="module")
def four_kinds() -> BenchRecord:
    return record_of((1, 4, 16), (DENOISE, DECODE, DRAFT, VERIFY))


def test_rates_and_waits_follow_from_the_forwards(four_kinds: BenchRecord) -> None:
    chart = chart_of(modes_chart, four_kinds, PUBLISHED["8b"])
    took = {row.forward: row.timing.median for row in four_kinds.steps()}
    assert len(chart.frame) == 4 * 3
    settings = {setting.mode: setting for setting in PUBLISHED["8b"].settings}
    for row in chart.frame.to_dict("records"):
        setting, batch = settings[row["mode"]], row["batch"]
        cycle = setting.cycle(batch, 1024, "bfloat16")
        if row["mode"] == "quadratic_spec":  # nobody timed it
            times = step_times(PRESETS["8b"], cycle, four_kinds.ceilings)
            seconds, expected = whole(times.values()).seconds, "predicted"
        else:
            seconds, expected = sum(took[part] for part in parts_of(cycle)), "measured"
        tokens = setting.tokens_per_forward * (2 if row["mode"] == "linear_spec" else 1)
        assert row["times"] == expected
        assert row["first_tokens_ms"] == pytest.approx(1e3 * seconds)
        assert row["tokens_per_s_a_user"] == pytest.approx(tokens / seconds)
        assert row["tokens_per_s"] == pytest.approx(batch * tokens / seconds)


def test_the_picture_says_that_it_is_a_product(four_kinds: BenchRecord) -> None:
    chart = chart_of(modes_chart, four_kinds, PUBLISHED["3b"])
    words = " ".join(text.get_text() for text in chart.figure.texts).replace("\n", " ")
    said = "times of 8B, random weights, acceptance of 3b: a product, not a measurement"
    assert said in words and "context 1024" in words
    assert set(chart.frame.profile) == {"3b"} and set(chart.frame.model) == {MODEL}


def test_a_line_is_measured_or_predicted_as_a_whole(four_kinds: BenchRecord) -> None:
    gone = [r for r in four_kinds.rows if r.forward.kind != VERIFY or r.forward.batch != 4]
    frame = chart_of(modes_chart, replace(four_kinds, rows=gone), PUBLISHED["8b"]).frame
    linear = frame[frame["mode"] == "linear_spec"]
    assert linear.batch.tolist() == [1, 16] and set(linear.times) == {"measured"}


def test_a_cycle_timed_whole_is_taken_before_its_parts(four_kinds: BenchRecord) -> None:
    draft = four_kinds.steps("draft forward")[0]
    cycle = replace(draft, name="linear cycle", forward=replace(draft.forward, kind=LINEAR))
    record = replace(four_kinds, rows=[*four_kinds.rows, timed(cycle, 0.25)])
    frame = chart_of(modes_chart, record, PUBLISHED["8b"]).frame
    linear = frame[(frame["mode"] == "linear_spec") & (frame.batch == draft.forward.batch)]
    assert linear.first_tokens_ms.tolist() == [250]


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
    frame = chart_of(modes_chart, four_kinds, Profile(1, "made up", "here", settings)).frame
    chosen = {(row["mode"], row["size"], row["accuracy"]) for row in frame.to_dict("records")}
    assert chosen == {
        ("autoregressive", 1, 0.9),
        ("diffusion", 32, 0.88),
        ("quadratic_spec", 4, 0.7),
    }
