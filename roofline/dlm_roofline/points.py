"""What a record has of one model's forwards, in a frame that pictures and their CSVs are of."""

from collections.abc import Mapping
from statistics import mode
from typing import TYPE_CHECKING

from .forward import DECODE, DENOISE, DRAFT, STEP_NAMES, VERIFY, Forward
from .model_check import predictions
from .records import NAMES, BenchRecord, Row
from .step_time import StageTime

if TYPE_CHECKING:
    import pandas as pd

SHOWN_KINDS = (DECODE, DENOISE, DRAFT, VERIFY)  # each has a panel of its own
PLAIN = "plain torch"  # the peer that is shown
UNQUANTISED = "unquantised"


def points_of(record: BenchRecord) -> "pd.DataFrame | None":
    """A line a stage or whole step, by batch, stages in their order and the step last.

    They are of the model with the most steps, in its commonest dtype, and unquantised unless every
    step is quantised; None for a record without steps.

    kind: "stage" or "step". forward: one of `forward.KINDS`. share_of_roof: the floor over what was
    measured. predicted_s: by `step_times`; held_by: what is predicted to take most of it.
    plain_torch_s: NaN where that was not timed.
    """
    import pandas as pd

    steps = record.steps()
    if not steps:
        return None
    model = mode(row.model for row in steps)
    steps = [row for row in steps if row.model == model]
    unquantised = [row for row in steps if _setting(row)[1:] == (None, False)]
    setting = mode(_setting(row) for row in unquantised or steps)
    rows = [row for row in record.rows if row.model == model and _setting(row) == setting]
    rows.sort(key=lambda row: (row.forward.batch, NAMES.index(row.name)))
    times = zip(rows, predictions(record, rows), strict=True)
    return pd.DataFrame([_cells(record, row, expected) for row, expected in times])


def panels_of(points: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """By kind of forward its points at the block and context with the most of them: where stages
    were measured, if there are any. A batch whose whole step was not measured is left out.
    """
    found = {}
    for kind in SHOWN_KINDS:
        of_kind = points[points.forward == kind]
        steps = of_kind[of_kind.kind == "step"]
        if steps.empty:
            continue
        sizes = ["batch", "block", "context"]
        of_steps = of_kind.merge(steps[sizes])
        at = of_steps.groupby(["block", "context"])
        found[kind] = at.get_group(at.size().idxmax())
    return found


def subject_of(points: "pd.DataFrame") -> tuple[str, str, str]:
    """The model, its dtype and how it was timed, as titles say it."""
    first = points.to_dict("records")[0]
    caches = "cold caches" if points.cold.all() else "some caches warm"
    how = f"{caches}, CUDA graphs" if points.graph.all() else caches
    return first["model"], first["dtype"] + forward_of(first).in_few_bits, how


def panel_title(panel: "pd.DataFrame") -> str:
    first = panel.iloc[0]
    block = f", block {first.block}" if first.forward != DECODE else ""
    return f"{STEP_NAMES[first.forward]}{block}, context {first.context}"


def forward_of(point: Mapping[str, object]) -> Forward:
    """The forward that a line of the frame is, or is part of."""
    weights = None if point["weights"] == UNQUANTISED else point["weights"]
    names = ("batch", "block", "context", "dtype")
    kinds = {"weights": weights, "float8_cache": point["float8_cache"]}
    return Forward(point["forward"], *(point[name] for name in names), **kinds)


def _setting(row: Row) -> tuple[str, str | None, bool]:
    return row.forward.dtype, row.forward.weights, row.forward.float8_cache


def _cells(record: BenchRecord, row: Row, expected: StageTime) -> dict[str, object]:
    forward, measured = row.forward, row.timing.median
    floor, plain = expected.floor, row.ratio(PLAIN)
    return {
        "kind": row.kind,
        "name": row.name,
        "forward": forward.kind,
        "model": row.model,
        "dtype": row.dtype,
        "weights": forward.weights or UNQUANTISED,
        "float8_cache": forward.float8_cache,
        **row.sizes,
        "flops": row.flops,
        "bytes": row.bytes,
        "flop_per_byte": row.cost.intensity,
        "cold": row.timing.cold,
        "graph": row.timing.graph,
        "measured_s": measured,
        "predicted_floor_s": floor,
        "share_of_roof": floor / measured,
        "predicted_s": expected.seconds,
        "held_by": expected.held_by,
        "plain_torch_s": plain * measured if plain else float("nan"),
    }
