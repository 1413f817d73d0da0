"""Predictions beside records: errors, what counts, and what is said of outliers."""

from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_roofline.forward import DENOISE, Forward
from dlm_roofline.model_check import error_rows, model_check, outlier_lines, summary
from dlm_roofline.op_rates import OpRate
from dlm_roofline.records import Record
from dlm_roofline.step_cost import ATTENTION, HEAD, PROJECTIONS
from dlm_roofline.step_time import step_times, whole


def exact(record: Record, times: float = 1.0) -> Record:
    """The record as it would be if everything took `times` its prediction."""

    def timed(row):
        forwards = step_times(PRESETS["8b"], row.forward, record.ceilings, record.backend)
        predicted = forwards[row.name] if row.kind == "stage" else whole(forwards)
        seconds = times * predicted.seconds
        return replace(row, timing=replace(row.timing, median=seconds, low=seconds, high=seconds))

    return replace(record, rows=[timed(row) for row in record.rows])


def test_what_takes_its_prediction_has_no_error(grid_record) -> None:
    check = model_check(exact(grid_record))
    assert len(check.all) == len(grid_record.rows)
    assert check.worst == pytest.approx(0, abs=1e-12) and check.holds and not check.outliers


def test_an_error_is_signed_and_its_size_is_what_counts(record) -> None:
    slow, quick = model_check(exact(record, 1.25)), model_check(exact(record, 0.8))
    assert slow.median == pytest.approx(0.2) and all(each.error < 0 for each in slow.all)
    assert quick.median == pytest.approx(0.25) and all(each.error > 0 for each in quick.all)
    assert slow.holds is False  # the median is over 15%, though the worst is below 35%


def test_short_ones_do_not_count(record) -> None:
    check = model_check(record)
    shortest = min(each.row.timing.median for each in check.counted)
    left_out = [each for each in check.all if each not in check.counted]
    assert shortest >= 50e-6 > max(each.row.timing.median for each in left_out)
    host = model_check(_on_host(record))
    assert min(each.row.timing.median for each in host.counted) >= 1e-3


def test_what_met_another_state_of_the_host_counts_and_is_said(record) -> None:
    host = exact(_on_host(record))
    slow = next(row for row in host.rows if row.timing.median > 2e-3)
    times = {name: 2 * getattr(slow.timing, name) for name in ("median", "low", "high")}
    for steady in (False, True):
        timing = replace(slow.timing, **times, pace=1.0, steady=steady)
        rows = [replace(row, timing=timing) if row is slow else row for row in host.rows]
        check = model_check(replace(host, rows=rows))
        assert len(check.counted) == len(model_check(host).counted)
        assert [each.row.name for each in check.unsteady] == ([] if steady else [slow.name])
        (line,) = outlier_lines(check)
        assert ("the host was not as when the run began" in line) == (not steady)
        said = "of the 1 beside which the host was not as when the run began 50% and 50%"
        assert (said in summary(check)) == (not steady)


def _on_host(record: Record) -> Record:
    """The same figures, of a host."""
    ceilings = replace(record.ceilings, exps=None, l2=None, graph_node=None)
    rows = [replace(row, timing=replace(row.timing, graph=False), peers=[]) for row in record.rows]
    device = replace(record.device, kind="cpu", name="a host")
    return replace(record, device=device, ceilings=ceilings, rows=rows)


def test_times_of_a_slow_moment_are_put_at_the_runs_pace(record) -> None:
    host = _on_host(record)
    slow = [
        replace(row, timing=replace(row.timing, median=m, low=m, high=m, pace=3.0))
        for row in host.rows
        for m in [3 * row.timing.median]
    ]
    errors = [each.error for each in model_check(host).all]
    assert [each.error for each in model_check(replace(host, rows=slow)).all] == pytest.approx(
        errors
    )


def _with_slow_step(record: Record, high: float = 1.0) -> Record:
    """The record, exact, but for its first whole step: twice its time, and runs so far apart."""
    record = exact(record)
    at = next(i for i, row in enumerate(record.rows) if row.kind == "step")
    row = record.rows[at]
    seconds = 2 * row.timing.median
    slow = replace(row.timing, median=seconds, low=seconds, high=high * seconds)
    rows = [*record.rows[:at], replace(row, timing=slow), *record.rows[at + 1 :]]
    return replace(record, rows=rows)


def test_an_outlier_says_what_the_record_shows_of_it(record) -> None:
    with_rates = replace(record.ceilings, ops={"confidence": OpRate(1e-6, 1e12, None)})
    check = model_check(_with_slow_step(replace(record, ceilings=with_rates)))
    assert check.holds is False and len(check.outliers) == 1
    (line,) = outlier_lines(check)
    assert "denoising step of 8B, random weights, denoise 1×32, context 1024: -50%" in line
    assert "its stages, timed alone, add up to 50% of it" in line and "runs" not in line
    (line,) = outlier_lines(model_check(_with_slow_step(record, high=1.5)))
    assert "the middle half of its runs is 50% wide" in line and "lacks rates of our ops" in line


def test_an_outlier_among_others_of_the_same_work_says_so(grid_record) -> None:
    """Projections of one draft forward in half the time of denoise's and verify's."""
    record = exact(grid_record)
    at = next(
        i
        for i, row in enumerate(record.rows)
        if (row.name, row.forward.kind, row.forward.batch) == (PROJECTIONS, "draft", 4)
    )
    row = record.rows[at]
    seconds = row.timing.median / 2
    quick = replace(row.timing, median=seconds, low=seconds, high=seconds)
    rows = [*record.rows[:at], replace(row, timing=quick), *record.rows[at + 1 :]]
    lines = outlier_lines(model_check(replace(record, rows=rows)))
    (line,) = [line for line in lines if line.startswith("projections")]
    assert "draft 4×32" in line and "+100%" in line
    assert "the same work in other kinds of forward took 2.00 times as long" in line


def test_the_table_has_a_line_a_stage_and_forward(grid_record) -> None:
    rows = error_rows(model_check(exact(grid_record, 2.0)))
    kinds = [row[0] for row in rows if row[0]]
    assert kinds == ["decode", "denoise", "draft", "verify", "quadratic"]
    assert {row[1] for row in rows} >= {PROJECTIONS, ATTENTION, HEAD, "denoising step"}
    assert all(row[3:] == ["-50%", "-50%", "-50%"] for row in rows)


def test_summary_has_figures_and_targets(record) -> None:
    said = summary(model_check(exact(record, 1.25)))
    assert "median error 20% (target 15%), worst 20% (target 35%)" in said
    nothing = model_check(replace(record, rows=[]))
    assert nothing.holds is None and nothing.median is None
    assert summary(nothing) == "nothing here is long enough to count"


def test_predictions_from_rates_of_our_ops_take_no_ceiling(record) -> None:
    """By hand: one layer's share of the 8B model's attention, 34 calls of it."""
    rate = OpRate(overhead=2e-6, bandwidth=1e12, flops=100e12)
    ceilings = replace(record.ceilings, ops={"block_attention": rate})
    forward = Forward(DENOISE, 1, 32, 1024, "bfloat16")
    times = step_times(PRESETS["8b"], forward, ceilings, "triton")
    keys = 2 * 2 * 8 * 128 * 1056
    queries = 2 * 2 * 32 * 32 * 128
    flops = 4 * 32 * 32 * 128 * 1056
    expected = 34 * (2e-6 + max((keys + queries) / 1e12, flops / 100e12))
    assert times[ATTENTION].seconds == pytest.approx(expected, rel=1e-3)
    without = step_times(PRESETS["8b"], forward, record.ceilings, "triton")
    assert times[PROJECTIONS] == without[PROJECTIONS]
    assert times[ATTENTION].floor == without[ATTENTION].floor
