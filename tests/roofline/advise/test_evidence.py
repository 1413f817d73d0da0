"""How sure a time is, and what a measured forward says of others."""

from dataclasses import replace

import pytest
from advised_records import CONFIG, H200, PLAIN, advised, on_host, slowed

from dlm_core import PRESETS
from dlm_roofline.acceptance import DIFFUSION, LINEAR_SPEC
from dlm_roofline.advise import Machine, machine_of
from dlm_roofline.advise.evidence import (
    DATASHEET,
    INTERPOLATED,
    MEASURED,
    PREDICTED,
    SCALED,
    Evidence,
    measured_in,
)
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, STEP_NAMES, VERIFY, Forward
from dlm_roofline.records import Record, Row
from dlm_roofline.step_cost import step_cost, total
from dlm_roofline.step_time import step_times


def with_step(record: Record, forward: Forward, seconds: float) -> Record:
    """The record with one more whole forward."""
    timing = replace(record.rows[0].timing, median=seconds, low=seconds, high=seconds)
    cost = total(step_cost(CONFIG, forward))
    (model,) = record.models
    row = Row.of_stage(STEP_NAMES[forward.kind], model, forward, cost, timing)
    return replace(record, rows=[*record.rows, row])


def predicted(record: Record, forward: Forward) -> float:
    stages = step_times(CONFIG, forward, record.ceilings, record.backend)
    return sum(each.seconds for each in stages.values())


def estimate(record: Record, forward: Forward, config=CONFIG):
    return Evidence(Machine.of_record(record), measured_in([record])).estimate(config, forward)


@pytest.mark.parametrize(
    "forward, certainty",
    [
        (Forward(DENOISE, 8, 32, 4096, "bfloat16"), MEASURED),
        (Forward(DENOISE, 12, 32, 4096, "bfloat16"), INTERPOLATED),
        (Forward(DENOISE, 8, 32, 2000, "bfloat16"), INTERPOLATED),
        (Forward(DENOISE, 8, 32, 500, "bfloat16"), SCALED),
        (Forward(DENOISE, 65, 32, 4096, "bfloat16"), SCALED),
        (Forward(DENOISE, 8, 16, 4096, "bfloat16"), SCALED),
        (Forward(DRAFT, 8, 32, 4096, "bfloat16"), SCALED),
        (Forward(DENOISE, 8, 32, 4096, "bfloat16", weights="int8"), SCALED),
        (Forward(DENOISE, 8, 32, 4096, "bfloat16", float8_cache=True), SCALED),
        (Forward(DENOISE, 8, 32, 4096, "float16"), SCALED),
    ],
)
def test_certainty(grid_record: Record, forward: Forward, certainty: str) -> None:
    assert estimate(grid_record, forward).certainty == certainty


def test_another_model_is_never_measured(grid_record: Record) -> None:
    found = estimate(grid_record, Forward(DENOISE, 8, 32, 4096, "bfloat16"), PRESETS["14b"])
    assert found.certainty == SCALED


@pytest.mark.parametrize(
    "blocks, batch, certainty",
    [
        ({16: (1, 64), 32: (1, 64)}, 8, INTERPOLATED),
        ({8: (1, 64), 32: (1, 64)}, 8, INTERPOLATED),
        ({16: (8,), 32: (1, 64)}, 8, INTERPOLATED),
        ({16: (1,), 32: (1, 64)}, 8, SCALED),
        ({16: (1, 4), 32: (1, 64)}, 8, SCALED),
        ({8: (1, 4), 32: (1, 64)}, 8, SCALED),
        ({8: (1,), 32: (64,)}, 8, SCALED),
        ({32: (1, 64)}, 8, SCALED),
    ],
)
def test_between_is_at_the_same_block(
    record: Record, blocks: dict, batch: int, certainty: str
) -> None:
    bare = replace(record, rows=[row for row in record.rows[:1] if row.kind == "stage"])
    for block, batches in blocks.items():
        for each in batches:
            for context in (512, 2048):
                bare = with_step(bare, Forward(DENOISE, each, block, context, "bfloat16"), 0.01)
    assert estimate(bare, Forward(DENOISE, batch, 16, 1024, "bfloat16")).certainty == certainty


def test_measured_is_as_it_was_and_factors_are_at_one_pace(grid_record: Record) -> None:
    """All took twice as long while the host was at half its pace."""
    steady, shared = (on_host(grid_record, lambda _, by=by: by) for by in (1.0, 2.0))
    measured, between = (Forward(DENOISE, batch, 32, 4096, "float32") for batch in (8, 12))
    timed = {row.forward: row.timing.median for row in shared.rows}
    assert estimate(shared, measured).seconds == timed[measured]
    expected = estimate(steady, between).seconds
    assert estimate(shared, between).seconds == pytest.approx(expected, rel=1e-6)


def test_a_cycle_is_as_sure_as_its_least_sure_forward(grid_record: Record) -> None:
    rows = [
        row for row in grid_record.rows if row.forward != Forward(VERIFY, 8, 32, 1024, "bfloat16")
    ]
    found = advised(replace(grid_record, rows=rows), batches=[8], quantizations=PLAIN)
    by_mode = {each.setting.mode: each.certainty for each in found}
    assert by_mode[LINEAR_SPEC] == INTERPOLATED
    assert by_mode[DIFFUSION] == MEASURED


def test_a_measured_time_is_taken_as_it_is_and_the_newest_first(grid_record: Record) -> None:
    forward = Forward(DENOISE, 8, 32, 4096, "bfloat16")
    timed = {row.forward: row.timing.median for row in grid_record.rows if row.kind == "step"}
    assert estimate(grid_record, forward).seconds == timed[forward]
    newer = replace(slowed(grid_record, lambda _: 3.0), date="2026-02-01T00:00:00Z")
    machine, records = machine_of(H200, [grid_record, newer])
    found = Evidence(machine, measured_in(records)).estimate(CONFIG, forward)
    assert found.seconds == pytest.approx(3 * timed[forward])


def test_factors_between_measured_forwards_are_interpolated(grid_record: Record) -> None:
    """The factor grows by a fixed share for each doubling of batch and of context."""

    def factor(forward: Forward) -> float:
        return 1.2 * forward.batch**0.2 * (forward.context + 32) ** 0.1

    timed = {row.forward: row.timing.median for row in grid_record.rows if row.kind == "step"}
    steps = [
        row
        for row in grid_record.rows
        if row.kind == "step" and row.forward.batch in (1, 4, 64) and row.forward.context != 4096
    ]
    bare = replace(grid_record, rows=steps)
    record = slowed(bare, lambda each: factor(each) * predicted(bare, each) / timed[each])
    for batch, context in ((2, 1024), (16, 16384), (8, 4096)):
        forward = Forward(DENOISE, batch, 32, context, "bfloat16")
        found = estimate(record, forward)
        assert found.certainty == INTERPOLATED
        expected = factor(forward) * predicted(record, forward)
        assert found.seconds == pytest.approx(expected, rel=0.05)


def test_kinds_that_nobody_timed_are_not_called_by_their_floors(grid_record: Record) -> None:
    """Drafts in int8 take what drafts take and int8 takes."""
    slow = slowed(grid_record, lambda forward: 3.0 if forward.kind == DRAFT else 1.5)
    for kind, block in ((DENOISE, 32), (DECODE, 1)):
        for batch in (1, 8):
            forward = Forward(kind, batch, block, 1024, "bfloat16", weights="int8")
            slow = with_step(slow, forward, 4 * predicted(slow, forward))
    plain = Forward(DRAFT, 4, 32, 1024, "bfloat16")
    factors = [
        estimate(slow, forward).seconds / predicted(slow, forward)
        for forward in (plain, replace(plain, weights="int8"), replace(plain, weights="fp8"))
    ]
    assert factors[1] > 1.5 * factors[0] > 4.5
    assert factors[2] > 0.6 * factors[0]


def test_beyond_what_was_measured_the_nearest_factor_holds(grid_record: Record) -> None:
    steps = [row for row in grid_record.rows if row.kind == "step" and row.forward.kind == DENOISE]
    record = slowed(replace(grid_record, rows=steps), lambda forward: 2 - forward.batch / 64)
    nearest, beyond = (Forward(DENOISE, b, 32, 1024, "bfloat16") for b in (64, 128))
    last, further = (
        estimate(record, forward).seconds / predicted(record, forward)
        for forward in (nearest, beyond)
    )
    assert further == pytest.approx(last, rel=0.05)


def test_without_rows_ceilings_predict_and_without_a_record_the_datasheet(record: Record) -> None:
    forward = Forward(DENOISE, 8, 32, 1024, "bfloat16")
    found = estimate(replace(record, rows=[]), forward)
    assert (found.certainty, found.seconds) == (PREDICTED, predicted(record, forward))
    machine, records = machine_of("h200", [])
    assert (machine.name, records) == (H200, [])
    found = Evidence(machine, []).estimate(CONFIG, forward)
    sheet = step_times(CONFIG, forward, DATASHEETS[H200].ceilings(), "triton")
    assert found.certainty == DATASHEET
    assert found.seconds == sum(each.seconds for each in sheet.values())


def test_what_met_another_state_of_the_host_is_no_evidence(grid_record: Record) -> None:
    host = on_host(grid_record, lambda forward: 1.0)
    known = measured_in([host])
    rows = [
        replace(row, timing=replace(row.timing, steady=row.forward != known[0].forward))
        for row in host.rows
    ]
    left = measured_in([replace(host, rows=rows)])
    assert [each.forward for each in left] == [each.forward for each in known[1:]]
