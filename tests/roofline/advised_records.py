"""What the adviser's tests share: a model, its settings, and records that differ in known ways."""

from collections.abc import Callable
from dataclasses import replace

from dlm_core import PRESETS
from dlm_roofline.acceptance import PUBLISHED, QUADRATIC_SPEC
from dlm_roofline.advise import Advice, Machine, Quantization, advise
from dlm_roofline.forward import Forward
from dlm_roofline.records import Device, Record, Row

CONFIG, PROFILE = PRESETS["8b"], PUBLISHED["8b"]
H200 = "NVIDIA H200"
PLAIN = [Quantization()]

# Of the sizes that the made-up record holds, k 10 too.
MEASURED_SETTINGS = replace(
    PROFILE,
    settings=[
        replace(each, size=10) if each.mode == QUADRATIC_SPEC else each for each in PROFILE.settings
    ],
)


def slowed(record: Record, factor: Callable[[Forward], float]) -> Record:
    """The record with the times of each forward, and of its stages, taken times a factor."""

    def slow(row: Row) -> Row:
        by, timing = factor(row.forward), row.timing
        scaled = {name: by * getattr(timing, name) for name in ("median", "low", "high")}
        return replace(row, timing=replace(timing, **scaled))

    return replace(record, rows=[slow(row) for row in record.rows])


def on_host(record: Record, pace: Callable[[Forward], float]) -> Record:
    """The record's whole forwards as a shared host takes them, each at a pace of its own."""

    def timed(row: Row) -> Row:
        forward = replace(row.forward, dtype="float32")
        by = pace(forward)
        scaled = {name: by * getattr(row.timing, name) for name in ("median", "low", "high")}
        timing = replace(row.timing, **scaled, graph=False, pace=by)
        return replace(row, forward=forward, dtype="float32", timing=timing, peers=[])

    return replace(
        record,
        backend="torch",
        device=Device("cpu", "AMD EPYC", {}),
        ceilings=replace(record.ceilings, exps=None, l2=None, graph_node=None),
        rows=[timed(row) for row in record.rows if row.kind == "step"],
    )


def advised(record: Record, objective: str = "latency", **changes) -> list[Advice]:
    given = {"profile": PROFILE, "batches": [1, 8, 64], "contexts": [1024]} | changes
    return advise(CONFIG, Machine.of_record(record), [record], objective=objective, **given)


def of_device(record: Record, date: str, *, threads: int | None = None, **changes) -> Record:
    """The record with another date, and of a CPU with these threads."""
    if threads:
        details = {"threads": str(threads), "memory": "24 GiB"}
        ceilings = replace(record.ceilings, exps=None, l2=None, graph_node=None)
        changes |= {"device": Device("cpu", "AMD EPYC", details), "ceilings": ceilings, "rows": []}
    return replace(record, date=date, **changes)
