"""Which forwards are planned: each once, within the model's positions, what targets name first."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dlm_bench import models
from dlm_bench.models import GRID_MODEL, Planned, gpu_plan, host_plan, quick_plan, small_plan
from dlm_bench.targets import TARGETS
from dlm_core import PRESETS, ModelConfig
from dlm_roofline.forward import LINEAR, STEP_NAMES

CPU = torch.device("cpu")


def planned(plan, config: ModelConfig, dtype: str) -> list[Planned]:
    return list(plan(partial(models._forward, config, dtype)))


@pytest.mark.parametrize(
    ("plan", "config", "dtype"),
    [
        (gpu_plan, PRESETS["8b"], "bfloat16"),
        (host_plan, GRID_MODEL, "float32"),
        (small_plan, GRID_MODEL, "float32"),
        (quick_plan, PRESETS["tiny"], "float32"),
    ],
    ids=["gpu", "host", "small", "quick"],
)
def test_plans_hold_each_forward_once_within_the_positions(plan, config, dtype: str) -> None:
    found = planned(plan, config, dtype)
    forwards = [each.forward for each in found]
    assert len(set(forwards)) == len(forwards)
    for each in forwards:
        assert each.context + each.block <= config.max_position_embeddings
        assert each.dtype == dtype
    assert not any(each.stages for each in found if each.forward.kind == LINEAR)


def test_the_gpu_s_plan_has_every_target_early() -> None:
    forwards = [each.forward for each in planned(gpu_plan, PRESETS["8b"], "bfloat16")[:60]]
    found = [(STEP_NAMES[x.kind], x.weights, x.batch, x.block, x.context) for x in forwards]
    for target in TARGETS:
        if target.name in STEP_NAMES.values():
            wanted = (target.name, target.weights, *target.sizes.values())
            assert wanted in found, target


def test_a_model_of_few_positions_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "GOLDEN", Path("no/such/folder"))
    monkeypatch.setattr(models, "GRID_MODEL", replace(GRID_MODEL, max_position_embeddings=300))
    *_, subject = models.subjects_of(None, CPU, quick=False)
    forwards = [each.forward for each in subject.planned]
    assert max(each.context + each.block for each in forwards) == 300
    assert len(set(forwards)) == len(forwards) > 50


def test_a_folder_is_loaded_at_once_and_refused_where_it_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder, *others) = models.subjects_of(models.GOLDEN, CPU, quick=True)
    assert folder.name == "tiny-a" and folder._held is not None
    assert [each.name for each in others] == ["tiny, random weights"]
    assert folder.model() is folder.model() is not folder.model("int8")
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(models, "free_memory", lambda _: 100_000)
    with pytest.raises(ValueError, match=r"tiny-a holds .* GB of weights in float32; .*0\.0 GB"):
        models.subjects_of(models.GOLDEN, CPU, quick=True)
    with pytest.raises(ValueError, match=r"config\.json"):
        models.subjects_of(Path("no/such/folder"), CPU, quick=True)
