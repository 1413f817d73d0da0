"""Logits, tokens, commit order and forward counts against cases made with transformers in float64.

See tests/golden/README.md for where the cases come from and for their margins.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dlm_core import KVCache, Model, generate, load_model

CUDA = torch.cuda.is_available()
GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS = ("tiny-a", "tiny-b")
PREFIXES = range(5)

# Prompts that Triton's interpreter runs; it takes about half a minute for each. A GPU runs all.
INTERPRETED = {"tiny-a": (2, 4), "tiny-b": (0,)}

load = functools.cache(load_model)


@pytest.fixture(params=["torch", "triton"])
def backend_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device on which the backend named by the parameter runs, with that backend forced."""
    device = request.getfixturevalue("device" if request.param == "torch" else "triton_device")
    monkeypatch.setenv("DLM_BACKEND", request.param)
    return device


@pytest.fixture(autouse=True)
def only_some_prompts_are_interpreted(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    arguments = callspec.params if callspec else {}
    if arguments.get("backend_device") == "triton" and not CUDA and "n" in arguments:
        if arguments["n"] not in INTERPRETED[arguments["checkpoint"]]:
            pytest.skip("three prompts are enough for the interpreter; a GPU runs all")


def token_runs() -> list:
    """Every (checkpoint, prompt, run) of the expected tokens that the decoding loops cover."""
    runs = []
    for checkpoint in CHECKPOINTS:
        cases = json.loads((GOLDEN / checkpoint / "expected_tokens.json").read_text())
        for n, case in enumerate(cases):
            expected = [("autoregressive", {}, case["autoregressive"])]
            for run in case["diffusion"]:
                rule = {key: run[key] for key in ("threshold", "steps") if key in run}
                expected.append(("diffusion", rule, run))
            expected.append(("linear_spec", {"lora": False}, case["linear_spec"]))
            expected.append(("linear_spec", {"lora": True}, case["linear_spec_lora"]))
            expected.append(("quadratic_spec", {}, case["quadratic_spec"]))
            for mode, rule, run in expected:
                if "block_length" in run:
                    rule["block_length"] = run["block_length"]
                name = "-".join([mode, *(f"{key}={value}" for key, value in rule.items())])
                runs.append(
                    pytest.param(
                        checkpoint, n, case, mode, rule, run, id=f"{checkpoint}-prompt{n}-{name}"
                    )
                )
    return runs


@pytest.mark.parametrize("i", PREFIXES, ids=lambda i: f"prefix{i}")
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_logits(checkpoint: str, i: int, backend_device: str) -> None:
    model = load(GOLDEN / checkpoint, device=backend_device)
    expected = load_file(GOLDEN / checkpoint / "expected_logits.safetensors", backend_device)
    prefix, block = (expected[f"logits.{i}.{part}"] for part in ("prefix", "block"))
    cache = KVCache(
        model.config,
        batch=1,
        capacity=len(prefix) + len(block),
        device=backend_device,
        dtype=model.dtype,
    )

    causal = run(model, prefix, cache, causal=True)
    torch.testing.assert_close(causal, expected[f"logits.{i}.causal"], atol=1e-4, rtol=0)
    cache.advance(len(prefix))
    bidirectional = run(model, block, cache, causal=False)
    torch.testing.assert_close(
        bidirectional, expected[f"logits.{i}.bidirectional"], atol=1e-4, rtol=0
    )
    draft = run(model, block, cache, causal=False, lora=True)
    torch.testing.assert_close(draft, expected[f"logits.{i}.bidirectional_lora"], atol=1e-4, rtol=0)


def run(model: Model, tokens: torch.Tensor, cache: KVCache, **options) -> torch.Tensor:
    return model.logits(model(tokens[None], cache, **options))[0]


def test_some_prefixes_lie_past_the_original_context() -> None:
    for checkpoint in CHECKPOINTS:
        expected = load_file(GOLDEN / checkpoint / "expected_logits.safetensors")
        longest = max(len(expected[f"logits.{i}.prefix"]) for i in PREFIXES)
        rope = load(GOLDEN / checkpoint).config.rope
        assert longest > 2 * rope.original_max_position_embeddings


@pytest.mark.parametrize(("checkpoint", "n", "case", "mode", "rule", "expected"), token_runs())
def test_tokens_commits_and_forwards(
    checkpoint: str, n: int, case: dict, mode: str, rule: dict, expected: dict, backend_device: str
) -> None:
    model = load(GOLDEN / checkpoint, device=backend_device)
    generation = generate(model, case["prompt"], case["max_new_tokens"], mode=mode, **rule)
    assert generation.tokens == expected["tokens"]
    assert generation.forwards == expected["forwards"]
    assert generation.committed == expected.get("committed", [])
    assert generation.accepted == expected.get("accepted", [])
    assert [len(step) for step in generation.confidences] == list(map(len, generation.committed))
