"""Which device is meant, and how long a forward takes there: measured, scaled or predicted."""

from dataclasses import replace

import pytest
from made_up import timed

from dlm_core import PRESETS
from dlm_roofline.advise.machine import FLOOR, MEASURED, PREDICTED, SCALED, Machine, machine_of
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import DENOISE, DRAFT, LINEAR, VERIFY, Forward
from dlm_roofline.op_rates import OpRate
from dlm_roofline.records import BenchRecord, Device
from dlm_roofline.step_time import step_times, whole

CONFIG, H200 = PRESETS["8b"], "NVIDIA H200"
STEP = Forward(DENOISE, 8, 32, 4096, "bfloat16")


def slowed(record: BenchRecord, forward: Forward, factor: float) -> BenchRecord:
    """The record, with one forward that took longer by a factor."""
    rows = [
        timed(row, factor * row.timing.median) if row.forward == forward else row
        for row in record.rows
    ]
    return replace(record, rows=rows)


def on(record: BenchRecord) -> Machine:
    return machine_of(record.device.name, [record])


def predicted(machine: Machine, forward: Forward) -> float:
    return whole(step_times(CONFIG, forward, machine.ceilings).values()).seconds


def test_a_measured_forward_takes_what_was_measured(grid_record: BenchRecord) -> None:
    (row,) = [row for row in grid_record.steps() if row.forward == STEP]
    assert on(grid_record).seconds(CONFIG, STEP) == (row.timing.median, MEASURED)
    assert on(grid_record).seconds(PRESETS["3b"], STEP)[1] == SCALED


@pytest.mark.parametrize(
    "near, change",
    [
        (STEP, {"batch": 15, "block": 16}),  # as many rows
        (STEP, {"weights": "int4"}),
        (STEP, {"float8_cache": True}),
        (STEP, {"dtype": "float16"}),
        (replace(STEP, context=32768), {"context": 1 << 17}),
        (STEP, {"kind": DRAFT}),  # whose context is four times that of the measured drafts
        (replace(STEP, kind=DRAFT, context=1024), {"kind": DRAFT, "context": 1500}),
    ],
)
def test_another_is_scaled_as_the_nearest(
    grid_record: BenchRecord, near: Forward, change: dict
) -> None:
    forward = replace(STEP, **change)
    plain, slow = on(grid_record), on(slowed(grid_record, near, 7.0))
    factor = plain.seconds(CONFIG, near)[0] / predicted(plain, near)
    expected = factor * predicted(plain, forward)
    assert plain.seconds(CONFIG, forward) == (pytest.approx(expected), SCALED)
    assert slow.seconds(CONFIG, forward) == (pytest.approx(7 * expected), SCALED)


def test_a_linear_cycle_is_measured_whole_or_in_its_parts(grid_record: BenchRecord) -> None:
    cycle = Forward(LINEAR, 8, 32, 1024, "bfloat16")
    draft, verify = (replace(cycle, kind=kind) for kind in (DRAFT, VERIFY))
    machine = on(grid_record)
    parts = [machine.seconds(CONFIG, part)[0] for part in (draft, verify)]
    assert machine.seconds(CONFIG, cycle) == (pytest.approx(sum(parts)), MEASURED)
    assert on(slowed(grid_record, draft, 2.0)).seconds(CONFIG, cycle)[0] > 1.3 * sum(parts)
    # It is as sure as the less sure of the two.
    rows = [row for row in grid_record.rows if row.forward != verify]
    assert on(replace(grid_record, rows=rows)).seconds(CONFIG, cycle)[1] == SCALED
    (row,) = [row for row in grid_record.steps() if row.forward == draft]
    held = replace(grid_record, rows=[*grid_record.rows, replace(row, forward=cycle)])
    assert on(held).seconds(CONFIG, cycle) == (row.timing.median, MEASURED)


def test_without_a_measured_forward_the_prediction_stands_alone(record: BenchRecord) -> None:
    bare = replace(record, rows=[row for row in record.rows if row.kind == "stage"])
    rates = replace(record.ceilings, ops={"linear": OpRate(1e12, 1e14)})
    reached = replace(bare, ceilings=rates)
    for machine, how_sure in (
        (on(bare), FLOOR), (on(reached), PREDICTED), (machine_of("h200", []), FLOOR),
    ):  # fmt: skip
        assert machine.seconds(CONFIG, STEP) == (predicted(machine, STEP), how_sure)


def test_devices_by_name(record: BenchRecord, host_record: BenchRecord) -> None:
    newer = replace(record, date="2026-02-01T00:00:00Z")
    other = replace(record, device=Device("cuda", "Some GPU", {"memory": "80 GiB"}))
    records = [record, newer, host_record, other]
    for name, found in (("h200", newer), (H200, newer), ("host", host_record), ("Some GPU", other)):
        machine = machine_of(name, records)
        assert machine.record is found
        assert (machine.name, machine.kind) == (found.device.name, found.device.kind)
        assert (machine.backend, machine.ceilings) == (found.backend, found.ceilings)
    memory = [machine_of(name, records).memory for name in ("h200", "host", "Some GPU")]
    assert memory == [DATASHEETS[H200].memory, 24 << 30, 80 << 30]
    a100 = machine_of("a100-80gb", records)
    assert (a100.record, a100.backend, a100.memory) == (None, "triton", 80 << 30)
    with pytest.raises(ValueError, match="'host' needs a record of a CPU"):
        machine_of("host", [record])


def test_where_ops_take_a_float8_cache(record: BenchRecord, host_record: BenchRecord) -> None:
    """The record's build of torch could not time float8 products, which an H200 has."""
    some = replace(record, device=Device("cuda", "Some GPU", {}))
    by_name = [machine_of(name, []) for name in ("h200", "a100-80gb")]
    found = [on(record), on(host_record), on(some), *by_name]
    assert [machine.float8_cache for machine in found] == [True, True, False, True, False]
