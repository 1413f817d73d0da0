"""Which rows of a record pictures show, and what stands beside them."""

from dataclasses import replace

import pytest
from made_up import MODEL, record_of

pytest.importorskip("pandas")

from dlm_roofline.forward import DECODE, DENOISE, DRAFT
from dlm_roofline.points import forward_of, panels_of, points_of, subject_of
from dlm_roofline.records import BenchRecord
from dlm_roofline.step_cost import STAGES


def test_each_row_stands_beside_its_floor_and_its_prediction(grid_record: BenchRecord) -> None:
    points = points_of(grid_record)
    assert len(points) == len(grid_record.rows)
    assert points.share_of_roof.to_numpy() == pytest.approx(0.8)  # 1.25 times as long as the floor
    assert points.predicted_floor_s.to_numpy() == pytest.approx(0.8 * points.measured_s.to_numpy())
    assert (points.predicted_s >= points.predicted_floor_s).all()  # launches come on top
    steps, stages = (points[points.kind == kind] for kind in ("step", "stage"))
    assert steps.plain_torch_s.to_numpy() == pytest.approx(2 * steps.measured_s.to_numpy())
    assert stages.plain_torch_s.isna().all()
    assert {forward_of(step) for step in steps.to_dict("records")} == {
        row.forward for row in grid_record.steps()
    }


def test_forwards_of_another_kind_of_weights_are_left_out(record: BenchRecord) -> None:
    """Commoner though they be: what is compared with one roof has one dtype of weights."""
    quantised = [
        replace(row, forward=replace(row.forward, weights="fp8", context=context))
        for row in record.rows
        for context in (1024, 4096)
    ]
    both = points_of(replace(record, rows=[*quantised, *record.rows]))
    assert both.equals(points_of(record))
    alone = points_of(replace(record, rows=quantised))
    assert subject_of(alone)[1] == "bfloat16, fp8 weights"
    assert forward_of(alone.to_dict("records")[0]).weights == "fp8"


def test_the_model_with_most_steps_is_shown() -> None:
    record = record_of((1, 4), [DENOISE])
    other = [replace(row, model="small") for row in record.rows if row.forward.batch == 1]
    models = record.models | {"small": record.models[MODEL]}
    for rows in ([*record.rows, *other], [*other, *record.rows]):
        both = replace(record, models=models, rows=rows)
        assert subject_of(points_of(both))[0] == MODEL


def test_panels_lie_where_the_stages_are() -> None:
    """More steps behind another context do not move them there; stages alone are left out."""
    record = record_of((1, 4), (DENOISE, DRAFT))
    step = next(row for row in record.steps("denoising step") if row.forward.batch == 1)
    far = [replace(step, forward=replace(step.forward, context=4096, batch=n)) for n in range(1, 5)]
    rows = [row for row in record.rows if (row.name, row.forward.batch) != ("draft forward", 4)]
    panels = panels_of(points_of(replace(record, rows=[*rows, *far])))
    assert list(panels) == [DENOISE, DRAFT] and DECODE not in panels
    assert set(panels[DENOISE].context) == {1024} and set(panels[DENOISE].batch) == {1, 4}
    assert set(panels[DRAFT].batch) == {1}
    assert panels[DENOISE].name[:6].tolist() == [*STAGES[:5], "denoising step"]
