"""Acceptance profiles: published ones, what a cycle runs, and files that do not fit."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dlm_roofline.acceptance import (
    PUBLISHED,
    SCHEMA,
    SMALL_MODEL_PROFILE,
    Profile,
    Setting,
    load_profile,
)
from dlm_roofline.forward import DECODE, DENOISE, LINEAR, QUADRATIC, Forward

AR = Setting("autoregressive", 1, None, 1.0, 0.9)
DIFFUSION = Setting("diffusion", 32, 0.9, 2.5, 0.89)
LINEAR_16 = Setting("linear_spec", 16, None, 4.0, None)
QUADRATIC_4 = Setting("quadratic_spec", 4, None, 3.5, 0.9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_profiles(name: str) -> None:
    """Self-speculation gives more than twice what diffusion does, at some 60% right."""
    profile = PUBLISHED[name]
    names = ["autoregressive", "diffusion 32, ≥ 0.9", "linear_spec 32", "quadratic_spec k 16"]
    assert [each.name for each in profile.settings] == names
    rates = [each.tokens_per_forward for each in profile.settings]
    assert rates[0] == 1.0 < rates[1] < rates[2] / 2 < rates[3] / 2
    assert all(0.5 < each.accuracy < 0.7 for each in profile.settings)
    assert profile.name == name and f"{name.upper()} instruct, published" in profile.source


@pytest.mark.parametrize(
    "setting, kind, block, tokens",
    [
        (AR, DECODE, 1, 1.0),
        (DIFFUSION, DENOISE, 32, 2.5),
        (LINEAR_16, LINEAR, 16, 8.0),
        (QUADRATIC_4, QUADRATIC, 20, 3.5),
    ],
    ids=lambda value: value.mode if isinstance(value, Setting) else "",
)
def test_a_cycle_of_each_mode(setting: Setting, kind: str, block: int, tokens: float) -> None:
    kept = {"weights": "int4", "float8_cache": True}
    found = setting.cycle(3, 100, "bfloat16", **kept)
    assert found == Forward(kind, 3, block, 100, "bfloat16", **kept)
    assert setting.tokens_per_cycle == tokens


@pytest.mark.parametrize(
    "setting, change, message",
    [
        (AR, {"mode": "greedy"}, "mode is 'greedy'; it must be one of autoregressive, diffusion"),
        (AR, {"size": 2}, "size is 2; it must be 1 in autoregressive"),
        (DIFFUSION, {"size": 0}, "size is 0; it must be at least 1 in diffusion"),
        (LINEAR_16, {"size": 1}, "size is 1; it must be at least 2 in linear_spec"),
        (QUADRATIC_4, {"size": 1}, "size is 1; it must be at least 2 in quadratic_spec"),
        (LINEAR_16, {"threshold": 0.5}, "threshold is 0.5; .* in diffusion, else null"),
        (DIFFUSION, {"threshold": 1.5}, "threshold is 1.5; it must be 0 to 1 in diffusion"),
        (DIFFUSION, {"tokens_per_forward": 0.0}, "tokens_per_forward is 0.0; diffusion of size 32"),
        (LINEAR_16, {"tokens_per_forward": 8.1}, "gives more than 0 and at most 8"),
        (AR, {"accuracy": 63.2}, "accuracy is 63.2; it must be in 0 to 1"),
    ],
)
def test_a_setting_that_cannot_be(setting: Setting, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(setting, **change)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    profile = Profile(SCHEMA, "8b", "made up", [AR, DIFFUSION, LINEAR_16, QUADRATIC_4])
    path.write_text(json.dumps(asdict(profile)))
    assert load_profile(path) == profile
    assert len(load_profile(SMALL_MODEL_PROFILE).settings) > 10
    for change, message in (
        ({"schema": 2}, "schema is 2; this version reads 1"),
        ({"settings": []}, "settings is empty; a profile must have at least one"),
    ):
        path.write_text(json.dumps(asdict(profile) | change))
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            load_profile(path)
