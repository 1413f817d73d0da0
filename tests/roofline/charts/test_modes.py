"""The picture of modes: which settings it takes, what it works out, and what is predicted."""

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgba

from dlm_roofline.acceptance import PUBLISHED, SCHEMA, Profile, Setting, forwards_of
from dlm_roofline.charts.chart import mark_id
from dlm_roofline.charts.modes import HEADER, NAME, modes_chart
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, VERIFY
from dlm_roofline.records import Record
from dlm_roofline.step_time import step_times

BATCHES = (1, 4, 16)


@pytest.fixture(scope="module")
def four_kinds(make_record: Callable[..., Record]) -> Record:
    return make_record(batches=BATCHES, kinds=(DENOISE, DECODE, DRAFT, VERIFY))


def lines_of(chart) -> list[dict[str, str]]:
    return [dict(zip(HEADER, row, strict=True)) for row in chart.rows]


def test_rates_and_waits_follow_from_the_forwards(four_kinds: Record) -> None:
    found = lines_of(modes_chart(four_kinds, [PUBLISHED["8b"]]))
    assert len(found) == 4 * 2 * len(BATCHES)
    timed = {row.forward: row.timing.median for row in four_kinds.rows if row.kind == "step"}
    for setting in PUBLISHED["8b"].settings:
        for batch in BATCHES:
            forwards = forwards_of(setting, batch, 1024, "bfloat16")
            mine = [x for x in found if (x["mode"], x["batch"]) == (setting.mode, str(batch))]
            rate, first = sorted(mine, key=lambda line: line["tokens_per_s"] == "")
            if setting.mode == "quadratic_spec":  # k is 16, and nothing of it was measured
                model = four_kinds.models["8B, random weights"]
                stages = step_times(model, forwards[0], four_kinds.ceilings, "triton")
                seconds = sum(stage.seconds for stage in stages.values())
            else:
                seconds = sum(timed[forward] for forward in forwards)
            tokens = setting.tokens_per_forward * len(forwards)
            assert float(first["first_token_s"]) == pytest.approx(seconds, rel=1e-5)
            each = float(rate["tokens_per_s_a_user"])
            assert each == pytest.approx(tokens / seconds, rel=1e-5)
            assert float(rate["tokens_per_s"]) == pytest.approx(batch * each, rel=1e-5)
            how = "predicted" if setting.mode == "quadratic_spec" else "measured"
            assert rate["forwards"] == first["forwards"] == how


def test_marks_are_filled_where_all_was_measured(four_kinds: Record) -> None:
    gone = [r for r in four_kinds.rows if r.forward.kind != VERIFY or r.forward.batch != 4]
    chart = modes_chart(replace(four_kinds, rows=gone), [PUBLISHED["8b"]])
    marks = {
        line.get_gid(): line
        for axes in chart.figure.axes
        for line in axes.lines
        if line.get_gid() is not None
    }
    assert list(marks) and set(marks) == {mark_id(NAME, i) for i in range(len(chart.rows))}
    partly = 0
    for i, line in enumerate(lines_of(chart)):
        mark = marks[mark_id(NAME, i)]
        hollow = to_rgba(mark.get_markerfacecolor()) == to_rgba("white")
        assert hollow == (line["forwards"] != "measured")
        partly += line["forwards"] == "partly measured"
        x, y = float(line["batch"]), line["tokens_per_s"] or 1e3 * float(line["first_token_s"])
        ((at_x,), (at_y,)) = mark.get_data()
        assert (at_x, at_y) == (x, pytest.approx(float(y), rel=1e-5))
    assert partly == 2  # linear_spec at batch 4, in both panels


def test_modes_differ_without_colour(four_kinds: Record) -> None:
    rates, _ = modes_chart(four_kinds, [PUBLISHED["8b"]]).figure.axes
    lines = [line for line in rates.lines if len(line.get_xdata()) == len(BATCHES)]
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(lines) == 4
    marks = {line.get_marker() for line in rates.lines if line.get_gid()}
    assert len(marks) == 4


def test_one_setting_of_each_mode_near_autoregressive_decoding(four_kinds: Record) -> None:
    settings = [
        Setting("autoregressive", 1, None, 1.0, 0.90),
        Setting("diffusion", 32, 0.5, 9.0, 0.80),  # fastest, and loses too much
        Setting("diffusion", 32, 0.9, 4.0, 0.88),
        Setting("diffusion", 32, 0.95, 3.0, 0.90),
        Setting("diffusion", 16, 0.9, 15.0, 0.90),  # predicted alone
        Setting("quadratic_spec", 4, None, 3.0, 0.70),  # none is near: the more accurate one
        Setting("quadratic_spec", 8, None, 6.0, 0.60),
    ]
    profile = Profile(SCHEMA, "made up", "here", settings)
    found = lines_of(modes_chart(four_kinds, [profile]))
    chosen = {(line["mode"], line["size"], line["threshold"]) for line in found}
    expected = {("autoregressive", "1", ""), ("diffusion", "32", "0.9")}
    assert chosen == expected | {("quadratic_spec", "4", "")}


def test_each_profile_has_two_panels_and_its_name(four_kinds: Record) -> None:
    chart = modes_chart(four_kinds, [PUBLISHED["8b"], PUBLISHED["3b"]])
    assert len(chart.figure.axes) == 4
    texts = [text.get_text() for text in chart.figure.texts]
    assert "Acceptance of 8b" in texts and "Acceptance of 3b" in texts
    assert {line["profile"] for line in lines_of(chart)} == {"8b", "3b"}
    waits = [axes.get_title(loc="left").replace("\n", " ") for axes in chart.figure.axes[1::2]]
    assert waits == ["ms from the end of the prefill to the first token"] * 2
    assert any("context 1024" in text and "NVIDIA H200" in text for text in texts)


def test_a_record_of_denoising_alone_has_the_rest_predicted(make_record) -> None:
    found = lines_of(modes_chart(make_record(batches=(1, 2)), [PUBLISHED["8b"]]))
    assert {line["mode"] for line in found if line["forwards"] == "measured"} == {"diffusion"}
    assert {line["batch"] for line in found} == {"1", "2"}


def test_nothing_to_show(four_kinds: Record) -> None:
    assert modes_chart(four_kinds, []) is None
    assert modes_chart(replace(four_kinds, rows=[]), [PUBLISHED["8b"]]) is None
