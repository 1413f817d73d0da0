"""Rules: contradictions are refused, presets are what their sources say, rows are packed."""

import dataclasses
import inspect
import math

import pytest
import torch

from dlm_kernels import RULES, Rule, RuleTable, rule_named
from dlm_kernels.rules import COUNTS, NUMBERS, table_of

ERRORS = {
    "confidence-unknown": (
        {"confidence": "logit"}, ValueError, "confidence is 'logit'; .*probability, margin, ent",
    ),
    "threshold-nan": ({"threshold": math.nan}, ValueError, "threshold is NaN"),
    "threshold-string": (
        {"threshold": "0.9"}, TypeError, "threshold is '0.9'; it must be a number",
    ),
    "strict-int": ({"threshold": 0.5, "strict": 1}, TypeError, "strict is 1; it must be a bool"),
    "strict-alone": ({"strict": True}, ValueError, "strict is True without a threshold"),
    "top-k-0": ({"top_k": 0}, ValueError, r"top_k is 0; .*\[1, 256\]"),
    "top-k-257": ({"top_k": 257}, ValueError, "top_k is 257"),
    "top-k-float": ({"top_k": 2.5}, TypeError, "top_k is 2.5"),
    "steps-0": ({"steps": 0}, ValueError, "steps is 0"),
    "steps-negative": ({"steps": -2}, ValueError, "steps is -2"),
    "steps-float": ({"steps": 4.0}, TypeError, "steps is 4.0"),
    "steps-and-top-k": ({"steps": 4, "top_k": 2}, ValueError, "top_k is 2 beside steps=4"),
    "factor-0": ({"factor": 0}, ValueError, "factor is 0; it must be positive"),
    "factor-inf": ({"factor": math.inf}, ValueError, "factor is inf"),
    "factor-of-entropy": (
        {"factor": 1.0, "confidence": "entropy"}, ValueError, "confidence is 'entropy' beside fac",
    ),
    "bound-0": (
        {"confidence": "entropy", "entropy_bound": 0.0}, ValueError, "entropy_bound is 0.0; .*1e-6",
    ),
    "bound-nan": ({"entropy_bound": math.nan}, ValueError, "entropy_bound is NaN"),
    "bound-of-probability": (
        {"entropy_bound": 0.1}, ValueError, "confidence is 'probability' .*; it must be 'entropy'",
    ),
    "edit-threshold-nan": ({"edit_threshold": math.nan}, ValueError, "edit_threshold is NaN"),
    "edit-steps-negative": ({"edit_steps": -1}, ValueError, "edit_steps is -1"),
    "edit-steps-alone": ({"edit_steps": 2}, ValueError, "edit_steps is 2 without an edit_thr"),
    "remask-string": ({"remask_below": "x"}, TypeError, "remask_below is 'x'"),
    "renoise-none": ({"renoise": None}, TypeError, "renoise is None; it must be a bool"),
    "renoise-and-remask": (
        {"renoise": True, "remask_below": 0.5}, ValueError, "remask_below is 0.5 beside renoise",
    ),
    "revise-alone": ({"revise": True, "steps": 3}, ValueError, "revise is True without renoise"),
    "revise-for-ever": ({"revise": True, "renoise": True}, ValueError, "steps is None beside rev"),
    "revise-and-edit": (
        {"revise": True, "renoise": True, "steps": 3, "edit_threshold": 0.5},
        ValueError,
        "edit_threshold is 0.5 beside revise",
    ),
    "random-threshold": (
        {"confidence": "random", "threshold": 0.5}, ValueError, "threshold is 0.5 beside conf",
    ),
    "random-edit": (
        {"confidence": "random", "edit_threshold": 0.5}, ValueError, "edit_threshold is 0.5 beside",
    ),
    "logit-shift-2": ({"logit_shift": 2}, ValueError, r"logit_shift is 2; .*\[0, 1\]"),
    "shift-without-seed": (
        {"logit_shift": 1, "seed_first_token": False},
        ValueError,
        "seed_first_token is False beside logit_shift=1",
    ),
    "seed-first-token": ({"seed_first_token": 1}, TypeError, "seed_first_token is 1"),
    "tempered": ({"tempered_confidence": 1}, TypeError, "tempered_confidence is 1"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "exception", "message"), ERRORS.values(), ids=list(ERRORS))
def test_rule_refuses(fields: dict, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message) as raised:
        Rule(**fields)
    assert raised.type is exception


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("nemotron", {"threshold": 0.9}),
        ("llada", {"steps": 32}),
        (
            "llada2",
            {
                "threshold": 0.7,
                "strict": True,
                "steps": 32,
                "edit_threshold": 0.5,
                "edit_steps": 16,
            },
        ),
        ("fast_dllm", {"factor": 1.0}),
        ("dream", {"confidence": "entropy", "steps": 32, "logit_shift": 1}),
        ("sdar", {"threshold": 0.85, "strict": True}),
        ("entropy_bound", {"confidence": "entropy", "entropy_bound": 0.1}),
        (
            "diffusion_gemma",
            {"confidence": "entropy", "entropy_bound": 0.1, "renoise": True, "revise": True}
            | {"steps": 48},
        ),
    ],
)
def test_presets(name: str, fields: dict) -> None:
    tempered = name in ("llada2", "dream", "sdar", "diffusion_gemma")
    loop = {"seed_first_token": name in ("nemotron", "dream"), "tempered_confidence": tempered}
    assert rule_named(name) is RULES[name]
    assert RULES[name] == Rule(**fields, **loop)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="rule is 'llada3'; .*nemotron, llada, llada2, fast_dllm"):
        rule_named("llada3")
    assert len(RULES) == 8


def test_llada2_takes_the_defaults_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = getattr(diffusers, "LLaDA2Pipeline", None)
    if pipeline is None:
        pytest.skip("diffusers without LLaDA2Pipeline")
    defaults = inspect.signature(pipeline.__call__).parameters
    rule = RULES["llada2"]
    assert defaults["threshold"].default == rule.threshold
    assert defaults["editing_threshold"].default == rule.edit_threshold
    assert defaults["max_post_steps"].default == rule.edit_steps
    assert defaults["num_inference_steps"].default == rule.steps


def test_a_preset_with_other_numbers() -> None:
    rule = dataclasses.replace(RULES["llada"], steps=8)
    assert rule.steps == 8 and not rule.seed_first_token
    with pytest.raises(ValueError, match="top_k is 3 beside steps=32"):
        dataclasses.replace(RULES["llada"], top_k=3)


def test_pack() -> None:
    rules = [
        Rule(threshold=0.9, strict=True, top_k=3, edit_threshold=0.25, edit_steps=4),
        Rule(factor=1.5, remask_below=0.5),
        Rule(confidence="entropy", entropy_bound=0.5, renoise=True, revise=True, steps=7),
        Rule(confidence="random"),
    ]
    table = RuleTable.pack(rules, "cpu")
    numbers = dict(zip(NUMBERS, table.numbers.T.tolist(), strict=True))
    set_numbers = {
        name: {i: value for i, value in enumerate(column) if not math.isnan(value)}
        for name, column in numbers.items()
    }
    assert set_numbers == {
        "threshold": {0: pytest.approx(0.9)},
        "factor": {1: 1.5},
        "entropy_scale": {2: 2**24},
        "edit_threshold": {0: 0.25},
        "remask_below": {1: 0.5},
    }
    assert dict(zip(COUNTS, table.counts.T.tolist(), strict=True)) == {
        "top_k": [3, 1, 1, 1],
        "steps": [0, 0, 7, 0],
        "edit_steps": [4, 0, 0, 0],
        "strict": [1, 0, 0, 0],
        "random": [0, 0, 0, 1],
        "renoise": [0, 0, 1, 0],
        "revise": [0, 0, 1, 0],
    }
    assert table.uses_noise and table.uses_token_probability
    assert not RuleTable.pack(rules[:2], "cpu").uses_noise
    assert not RuleTable.pack(rules[2:], "cpu").uses_token_probability
    assert RuleTable.pack([], "cpu").numbers.shape == (0, 5)
    with pytest.raises(TypeError, match=r"rules\[1\] is a str; it must be a Rule"):
        RuleTable.pack([Rule(), "llada"], "cpu")


def test_a_rule_is_packed_once() -> None:
    device = torch.device("cpu")
    first = table_of(Rule(threshold=0.3), 2, device)
    assert table_of(Rule(threshold=0.3), 2, device) is first
    assert table_of(Rule(threshold=0.3), 3, device).numbers.shape == (3, 5)
    assert table_of(Rule(threshold=0.4), 2, device).numbers[0, 0] != first.numbers[0, 0]
