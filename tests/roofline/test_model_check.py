"""Predictions beside records: errors, what counts, and what is said of outliers."""

from dataclasses import replace

import pytest
from made_up import timed

from dlm_roofline.forward import KINDS
from dlm_roofline.model_check import error_table, model_check, outlier_lines, predictions, summary
from dlm_roofline.op_rates import OpRate
from dlm_roofline.records import BenchRecord
from dlm_roofline.step_cost import ATTENTION


def exact(record: BenchRecord, times: float = 1.0) -> BenchRecord:
    """The record as it would be if everything took `times` its prediction."""
    expected = zip(record.rows, predictions(record, record.rows), strict=True)
    return replace(record, rows=[timed(row, times * each.seconds) for row, each in expected])


@pytest.mark.parametrize(
    ("times", "error", "holds"),
    [(1.0, 0, True), (1.25, 0.2, False), (0.8, 0.25, False), (2.0, 0.5, False)],
)
def test_errors_are_sizes_and_targets_hold_or_not(record, times, error, holds) -> None:
    check = model_check(exact(record, times))
    assert check.errors == pytest.approx([error] * len(check.ratios), abs=1e-12)
    assert check.holds is holds
    assert all(ratio == pytest.approx(1 / times) for _, ratio in check.ratios)
    assert len(outlier_lines(check)) == (len(check.ratios) if error > 0.35 else 0)


def test_short_ones_do_not_count(record: BenchRecord) -> None:
    counted = [row for row, _ in model_check(record).ratios]
    left_out = [row for row in record.rows if row not in counted]
    times = [[row.timing.median for row in rows] for rows in (counted, left_out)]
    assert min(times[0]) >= 50e-6 > max(times[1])
    nothing = model_check(replace(record, rows=left_out))
    assert nothing.ratios == [] and nothing.holds is None
    assert summary(nothing) == "nothing here is long enough to count"


def test_a_host_has_no_verdict(host_record: BenchRecord) -> None:
    check = model_check(exact(host_record, 3.0))
    assert check.holds is None and outlier_lines(check) == []
    table = error_table(exact(host_record, 3.0))
    assert "from the host's ceilings alone" in table.title and not table.notes
    assert not any(word in table.title for word in ("holds", "missed", "target"))
    assert {cell for cells in table.cells for cell in cells[3:]} == {"0.333"}


def test_the_table_has_a_line_a_stage_and_forward(grid_record: BenchRecord) -> None:
    table = error_table(exact(grid_record, 1.25))
    assert "median error 20% (target 15%), worst 20% (target 35%): missed" in table.title
    kinds = list(dict.fromkeys(table.frame.forward))
    assert kinds == [kind for kind in KINDS if kind != "linear"]
    of_decode = table.frame[table.frame.forward == "decode"].stage.tolist()
    assert of_decode.index(ATTENTION) < of_decode.index("AR decoding step") == len(of_decode) - 1
    counted = model_check(exact(grid_record, 1.25)).ratios
    assert table.frame["that count"].sum() == len(counted)


def test_an_outlier_says_what_the_record_shows_of_it(record: BenchRecord) -> None:
    rates = replace(record.ceilings, ops={"confidence": OpRate(1e12, None)})
    record = exact(replace(record, ceilings=rates))
    at = next(i for i, row in enumerate(record.rows) if row.kind == "step")

    def line(spread: float = 1.0, **changes) -> str:
        rows = list(record.rows)
        rows[at] = timed(rows[at], 2 * rows[at].timing.median, spread)
        (found,) = outlier_lines(model_check(replace(record, rows=rows, **changes)))
        return found

    where = "denoising step of 8B, random weights, denoise 1×32, context 1024: -50%: "
    assert line() == f"{where}its stages, timed alone, add up to 50% of it"
    wide = line(1.5, ceilings=replace(rates, ops={}))
    assert wide.startswith(f"{where}the middle half of its runs is 50% wide; its stages")
    assert wide.endswith("lacks rates of our ops: only ceilings were known")
