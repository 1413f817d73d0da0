"""Which forwards are planned: each once, within the model's positions, what targets name first."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dlm_bench import models
from dlm_bench.models import (
    GRID_MODEL,
    Plan,
    _forward,
    gpu_plan,
    host_plan,
    quick_plan,
    small_plan,
    subjects_of,
)  # fmt: skip
from dlm_bench.targets import TARGETS
from dlm_core import PRESETS, ModelConfig
from dlm_roofline.forward import KINDS, LINEAR, STEP_NAMES

CPU = torch.device("cpu")


def planned(plan, config: ModelConfig, dtype: str) -> Plan:
    return list(plan(partial(_forward, config, dtype)))


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


def test_quick_runs_every_kind_and_the_gpu_s_plan_has_every_target() -> None:
    assert {x.forward.kind for x in planned(quick_plan, PRESETS["tiny"], "float32")} == set(KINDS)
    forwards = [each.forward for each in planned(gpu_plan, PRESETS["8b"], "bfloat16")]
    for target in TARGETS:
        if target.name in STEP_NAMES.values():
            places = [
                i
                for i, x in enumerate(forwards)
                if (STEP_NAMES[x.kind], x.weights) == (target.name, target.weights)
                and all(getattr(x, name) == size for name, size in target.sizes.items())
            ]
            assert places and places[0] < 60, target


def test_a_model_of_few_positions_repeats_nothing() -> None:
    short = replace(PRESETS["tiny"], max_position_embeddings=300)
    forwards = [each.forward for each in planned(host_plan, short, "float32")]
    assert max(each.context + each.block for each in forwards) == 300


def test_a_folder_is_loaded_at_once_and_refused_where_it_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder, *others) = subjects_of(models.GOLDEN, CPU, quick=True)
    assert folder.name == "tiny-a" and folder._held is not None
    assert [each.name for each in others] == ["tiny, random weights"]
    assert folder.model() is folder.model() is not folder.model("int8")
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(models, "free_memory", lambda _: 100_000)
    with pytest.raises(ValueError, match=r"tiny-a holds .* GB of weights in float32; .*0\.0 GB"):
        subjects_of(models.GOLDEN, CPU, quick=True)
    with pytest.raises(ValueError, match=r"config\.json"):
        subjects_of(Path("no/such/folder"), CPU, quick=True)
