"""Acceptance profiles: published ones, what a cycle runs, and files that do not fit."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dlm_roofline.acceptance import (
    PUBLISHED,
    SCHEMA,
    Profile,
    Setting,
    forwards_of,
    load_profile,
    tokens_per_cycle,
)
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, QUADRATIC, VERIFY, Forward

AR = Setting("autoregressive", 1, None, 1.0, 0.9)
DIFFUSION = Setting("diffusion", 32, 0.9, 2.5, 0.89)
LINEAR = Setting("linear_spec", 16, None, 4.0, None)
QUADRATIC_4 = Setting("quadratic_spec", 4, None, 3.5, 0.9)


def test_published_figures() -> None:
    found = {
        name: [
            (s.mode[0], s.size, s.threshold, s.accuracy, s.tokens_per_forward) for s in p.settings
        ]
        for name, p in PUBLISHED.items()
    }
    assert found == {
        "3b": [
            ("a", 1, None, 0.555, 1),
            ("d", 32, 0.9, 0.529, 1.91),
            ("l", 32, None, 0.55, 4.36),
            ("q", 16, None, 0.558, 5.42),
        ],
        "8b": [
            ("a", 1, None, 0.6361, 1),
            ("d", 32, 0.9, 0.6318, 2.57),
            ("l", 32, None, 0.6281, 5.99),
            ("q", 16, None, 0.6404, 6.38),
        ],
        "14b": [
            ("a", 1, None, 0.6746, 1),
            ("d", 32, 0.9, 0.6651, 2.74),
            ("l", 32, None, 0.6636, 5.96),
            ("q", 16, None, 0.6815, 6.92),
        ],
    }
    for name, profile in PUBLISHED.items():
        assert profile.name == name and name.upper() in profile.source
        assert "published" in profile.source


@pytest.mark.parametrize(
    "setting, kinds, block, tokens",
    [
        (AR, [DECODE], 1, 1.0),
        (DIFFUSION, [DENOISE], 32, 2.5),
        (LINEAR, [DRAFT, VERIFY], 16, 8.0),
        (QUADRATIC_4, [QUADRATIC], 20, 3.5),
    ],
    ids=lambda value: value.mode if isinstance(value, Setting) else None,
)
def test_a_cycle_of_each_mode(setting: Setting, kinds: list, block: int, tokens: float) -> None:
    forwards = forwards_of(setting, 3, 100, "bfloat16", weights="int4", shards=2)
    assert forwards == [
        Forward(kind, 3, block, 100, "bfloat16", weights="int4", shards=2) for kind in kinds
    ]
    assert tokens_per_cycle(setting) == tokens


def test_names() -> None:
    names = [each.name for each in (AR, DIFFUSION, LINEAR, QUADRATIC_4)]
    expected = ["autoregressive", "diffusion 32, ≥ 0.9", "linear_spec 16", "quadratic_spec k 4"]
    assert names == expected
    assert PUBLISHED["8b"].of_mode("diffusion") == [PUBLISHED["8b"].settings[1]]


@pytest.mark.parametrize(
    "setting, change, message",
    [
        (AR, {"mode": "greedy"}, "mode is 'greedy'; it must be one of autoregressive, diffusion"),
        (AR, {"size": 2}, "size is 2; it must be 1 in autoregressive"),
        (DIFFUSION, {"size": 0}, "size is 0; it must be at least 1 in diffusion"),
        (LINEAR, {"size": 1}, "size is 1; it must be at least 2 in linear_spec"),
        (QUADRATIC_4, {"size": 1}, "size is 1; it must be at least 2 in quadratic_spec"),
        (LINEAR, {"threshold": 0.5}, "threshold is 0.5; it must be null in linear_spec"),
        (DIFFUSION, {"threshold": 1.5}, "threshold is 1.5; it must be in 0 to 1"),
        (DIFFUSION, {"tokens_per_forward": 0.0}, "tokens_per_forward is 0.0; diffusion of size 32"),
        (LINEAR, {"tokens_per_forward": 8.1}, "gives more than 0 and at most 8"),
        (AR, {"tokens_per_forward": 1.2}, "autoregressive of size 1 gives more than 0 and at most"),
        (AR, {"accuracy": 63.2}, "accuracy is 63.2; it must be in 0 to 1"),
    ],
)
def test_a_setting_that_cannot_be(setting: Setting, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(setting, **change)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    profile = Profile(SCHEMA, "8b", "made up", [AR, DIFFUSION, LINEAR, QUADRATIC_4])
    path = tmp_path / "acceptance.json"
    path.write_text(json.dumps(asdict(profile)))
    assert load_profile(path) == profile


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda values: values.update(schema=2), "schema is 2"),
        (lambda values: values.pop("source"), "profile.source is missing"),
        (lambda values: values.update(settings=[]), "profile.settings is empty"),
        (lambda values: values["settings"][1].pop("size"), r"settings\[1\].size is missing"),
        (lambda values: values["settings"][1].update(size="32"), r"settings\[1\].size is '32'"),
        (lambda values: values["settings"][0].update(size=2), r"settings\[0\].size is 2; it must"),
        (
            lambda values: values["settings"][1].update(accuracy=float("nan")),
            r"settings\[1\].accuracy is ",
        ),
        (
            lambda values: values["settings"].append(values["settings"][1]),
            r"settings\[2\] is a second diffusion 32, ≥ 0.9",
        ),
    ],
    ids=["schema", "source", "none", "no size", "size", "AR's size", "nan", "twice"],
)
def test_an_error_names_file_and_field(tmp_path: Path, change, message: str) -> None:
    values = asdict(Profile(SCHEMA, "8b", "made up", [AR, DIFFUSION]))
    change(values)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"mine\.json.*{message}"):
        load_profile(path)
