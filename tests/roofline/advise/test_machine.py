"""Which device advice is for, and which records tell of it."""

from dataclasses import replace

import pytest
from advised_records import CONFIG, H200, PROFILE, of_device

from dlm_roofline.advise import Machine, advise, machine_of
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.records import Device, Record


def test_the_host_is_the_newest_cpu(record: Record) -> None:
    old = of_device(record, "2026-01-01", threads=2)
    other = of_device(record, "2026-01-02", threads=1)
    new = of_device(record, "2026-01-03", threads=2)
    machine, records = machine_of("host", [old, new, other, record])
    assert records == [new, old]
    assert (machine.kind, machine.name, machine.memory) == ("cpu", "AMD EPYC", 24 << 30)
    assert (machine.dtype_of(CONFIG), Machine.of_record(record).dtype_of(CONFIG)) == (
        "float32", "bfloat16",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["h200", H200])
def test_a_gpu_by_either_name(record: Record, name: str) -> None:
    on_torch = replace(record, date="2026-01-01", backend="torch")
    machine, records = machine_of(name, [on_torch, record])
    assert records == [record]
    assert (machine.measured, machine.memory) == (True, DATASHEETS[H200].memory)
    assert machine.ceilings == record.ceilings


def test_a_gpu_without_a_datasheet_is_known_by_its_record(record: Record) -> None:
    device = Device("cuda", "Some GPU", {"memory": "16 GiB"})
    machine, records = machine_of("Some GPU", [replace(record, device=device)])
    assert (machine.memory, len(records)) == (16 << 30, 1)
    nameless = replace(record, device=replace(device, details={}))
    machine, _ = machine_of("Some GPU", [nameless])
    assert machine.memory is None
    found = advise(CONFIG, machine, [nameless], PROFILE, [64], [65536], "latency")
    assert all(each.fits for each in found)


def test_unknown_devices(record: Record) -> None:
    with pytest.raises(ValueError, match="'host' needs a record of a CPU"):
        machine_of("host", [record])
    with pytest.raises(ValueError, match="nonesuch"):
        machine_of("nonesuch", [record])
