"""How good advice is on what the adviser has not seen."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from advised_records import MEASURED_SETTINGS, PROFILE, on_host, slowed

from dlm_roofline.acceptance import DIFFUSION, LINEAR_SPEC, load_profile, tokens_per_cycle
from dlm_roofline.advise import OBJECTIVES, withheld_score
from dlm_roofline.advise.evidence import MEASURED
from dlm_roofline.forward import VERIFY, Forward
from dlm_roofline.records import RESULTS, Record, load


def varying(forward: Forward) -> float:
    """A slowdown such as devices have: by kind, and worse for small batches and long contexts."""
    by_kind = {"decode": 1.6, "denoise": 1.0, "draft": 1.0, "verify": 1.15, "quadratic": 1.9}
    by_batch = 1 + 0.8 / math.sqrt(forward.batch)
    return by_kind[forward.kind] * by_batch * (1 + 0.1 * math.log2(1 + forward.context / 1024))


@pytest.mark.parametrize("factor", [lambda _: 1.0, varying], ids=["uniform", "varying"])
def test_advice_on_withheld_cells_is_good(grid_record: Record, factor: Callable) -> None:
    found = withheld_score(slowed(grid_record, factor), MEASURED_SETTINGS)
    assert all(0 <= each.regret <= 0.1 for each in found)
    for objective in OBJECTIVES:
        judged = [each for each in found if each.objective == objective]
        assert len({(each.batch, each.context) for each in judged}) == len(judged) == 7 * 4
    for each in found:
        advice = each.advised.advice
        here = (advice.batch, advice.context) == (each.batch, each.context)
        assert here or each.objective == "throughput"
        assert (advice.certainty == MEASURED) != here


def test_the_bare_model_does_worse_where_kinds_are_not_alike(grid_record: Record) -> None:
    slow = slowed(grid_record, lambda forward: 8.0 if forward.kind == VERIFY else 1.0)
    found = [each for each in withheld_score(slow, MEASURED_SETTINGS) if each.batch == 1]
    assert max(each.regret for each in found) <= 0.1 < max(each.bare_regret for each in found)


def test_throughput_is_judged_over_the_batches_of_a_context(grid_record: Record) -> None:
    """Batch 16 is best by far, which nobody knows who was not shown it."""
    strange = (16, 4096)
    odd = slowed(grid_record, lambda each: 0.1 if (each.batch, each.context) == strange else 1.0)
    judged = [
        each
        for each in withheld_score(odd, MEASURED_SETTINGS)
        if (each.objective, each.context) == ("throughput", 4096)
    ]
    assert [each.batch for each in judged] == [1, 2, 4, 8, 16, 32, 64]
    timed = {row.forward: row.timing.median for row in odd.rows if row.kind == "step"}
    for each in judged:
        best = each.best.advice
        assert best.batch == 16
        seconds = sum(timed[forward] for forward in best.forwards)
        assert each.best.rate == pytest.approx(16 * tokens_per_cycle(best.setting) / seconds)
        assert (each.regret > 0.1) == (each.batch == 16)


def test_settings_that_run_the_same_forwards_count_once(record: Record) -> None:
    (slower,) = PROFILE.of_mode(DIFFUSION)
    faster = replace(slower, threshold=0.5, tokens_per_forward=5.0)
    for settings in ([slower, faster], [faster, slower]):
        found = withheld_score(record, replace(PROFILE, settings=settings))
        assert {each.objective for each in found} == {"throughput"}
        assert {each.best.advice.setting for each in found} == {faster}
    steps = [row for row in record.rows if row.forward.batch < 4]
    assert not withheld_score(replace(record, rows=steps), replace(PROFILE, settings=settings))


def test_a_score_is_of_times_at_one_pace(grid_record: Record) -> None:
    """Advice that sees and is judged by times at one pace does not depend on it."""
    by_batch = {1: 1.0, 2: 3.0, 4: 0.5, 8: 1.0, 16: 2.0, 32: 4.0, 64: 1.5}
    steady = on_host(grid_record, lambda _: 1.0)
    shared = on_host(grid_record, lambda forward: by_batch[forward.batch])
    expected = withheld_score(steady, MEASURED_SETTINGS)
    found = withheld_score(shared, MEASURED_SETTINGS)
    assert len(found) == 2 * 7 * 4
    assert [each.best.rate for each in found] == pytest.approx(
        [each.best.rate for each in expected]
    )
    assert [each.regret for each in found] == pytest.approx(
        [each.regret for each in expected], abs=1e-6
    )


def test_a_withheld_cell_is_not_seen(grid_record: Record) -> None:
    """What nothing but the cell itself could tell costs the adviser dearly there."""
    strange = Forward(VERIFY, 8, 32, 1024, "bfloat16")
    record = slowed(grid_record, lambda forward: 20.0 if forward == strange else 1.0)
    (there,) = [
        each
        for each in withheld_score(record, MEASURED_SETTINGS)
        if (each.objective, each.batch, each.context) == ("latency", 8, 1024)
    ]
    assert there.advised.advice.forwards[-1] == strange
    assert there.best.advice.setting.mode != LINEAR_SPEC
    assert there.regret > 0.5
    timed = {row.forward: row.timing.median for row in record.rows if row.kind == "step"}
    for advice, rate in (there.advised, there.best):
        seconds = sum(timed[each] for each in advice.forwards)
        assert rate == pytest.approx(tokens_per_cycle(advice.setting) / seconds)


def committed() -> list[Path]:
    return [
        path
        for path in sorted(RESULTS.glob("*-????????t??????-*.json"))
        if len({row.forward.kind for row in load(path).rows if row.kind == "step"}) > 2
    ]


def test_advice_on_recorded_devices_is_good() -> None:
    paths = committed()
    if not paths:
        pytest.skip(f"{RESULTS} holds no record with several kinds of forwards")
    profile = load_profile(RESULTS / "quality" / "acceptance.json")
    for path in paths:
        found = withheld_score(load(path), profile)
        assert {each.objective for each in found} == set(OBJECTIVES), path
        for each in found:
            assert each.regret <= 0.1, (path, each)
