"""Which models are timed, and which of their forwards: each once, and what targets name first."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dlm_bench import models
from dlm_bench.targets import TARGETS
from dlm_roofline.forward import LINEAR, STEP_NAMES

CPU = torch.device("cpu")


def test_the_gpu_s_plan_has_every_target_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_memory", lambda _: 10**11)
    (subject,) = models.subjects_of(None, torch.device("cuda", 0), quick=False)
    assert subject.name == "8b, random weights"
    assert not any(each.stages for each in subject.planned if each.forward.kind == LINEAR)
    forwards = [each.forward for each in subject.planned[:60]]
    found = [(STEP_NAMES[x.kind], x.weights, x.batch, x.block, x.context) for x in forwards]
    for target in TARGETS:
        if target.name in STEP_NAMES.values():
            wanted = (target.name, target.weights, *target.sizes.values())
            assert wanted in found, target


def test_a_gpu_times_the_largest_preset_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_memory", lambda _: 10**10)
    (subject,) = models.subjects_of(None, torch.device("cuda", 0), quick=False)
    assert subject.name == "3b, random weights"


def test_a_model_of_few_positions_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "GOLDEN", Path("no/such/folder"))
    short = replace(models.GRID_MODEL, max_position_embeddings=300)
    monkeypatch.setattr(models, "GRID_MODEL", short)
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
