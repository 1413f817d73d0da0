"""Logits, tokens, commit order and forward counts against cases made with transformers in float64.

See tests/golden/README.md for where the cases come from and for their margins.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from caches import cache_for
from safetensors.torch import load_file

from dlm_core import KVCache, Model, generate, load_model
from dlm_kernels.backend import forced_backend

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS = ("tiny-a", "tiny-b")
PREFIXES = range(5)

# What Triton's interpreter runs: of each mode the quickest run that takes all of its path, and with
# --full a prompt of each checkpoint and all logits. A GPU runs all.
INTERPRETED = {
    "tiny-a-prefix0",
    "tiny-b-prefix0",
    "tiny-b-prompt0-autoregressive",
    "tiny-a-prompt1-diffusion-threshold=0.9",
    "tiny-a-prompt1-linear_spec-lora=True",
    "tiny-a-prompt3-quadratic_spec",
}
INTERPRETED_IN_FULL = ("tiny-a-prompt2-", "tiny-b-prompt0-", "tiny-a-prefix", "tiny-b-prefix")

load = functools.cache(load_model)


@pytest.fixture
def backend_device(backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The device on which `backend` runs, with that backend forced."""
    with forced_backend(backend):
        yield request.getfixturevalue("device" if backend == "torch" else "triton_device")


def on_both_backends(name: str, *values: object) -> list:
    """The parameters of one case under each backend."""
    marks = pytest.mark.full if name.startswith(INTERPRETED_IN_FULL) else pytest.mark.gpu
    if name in INTERPRETED:
        marks = ()
    return [
        pytest.param("torch", *values, id=f"torch-{name}"),
        pytest.param("triton", *values, id=f"triton-{name}", marks=marks),
    ]


def token_runs() -> list:
    """Every (checkpoint, prompt, run) of the expected tokens that the decoding loops cover."""
    runs = []
    for checkpoint in CHECKPOINTS:
        cases = json.loads((GOLDEN / checkpoint / "expected_tokens.json").read_text())
        for n, case in enumerate(cases):
            expected = [("autoregressive", {}, case["autoregressive"])]
            for run in case["diffusion"]:
                options = {key: run[key] for key in ("threshold", "steps") if key in run}
                expected.append(("diffusion", options, run))
            expected.append(("linear_spec", {"lora": False}, case["linear_spec"]))
            expected.append(("linear_spec", {"lora": True}, case["linear_spec_lora"]))
            expected.append(("quadratic_spec", {}, case["quadratic_spec"]))
            for mode, options, run in expected:
                settings = (f"{key}={value}" for key, value in options.items())
                name = "-".join([checkpoint, f"prompt{n}", mode, *settings])
                if "block_length" in run:
                    options["block_length"] = run["block_length"]
                runs += on_both_backends(name, checkpoint, case, mode, options, run)
    return runs


@pytest.mark.parametrize(
    ("backend", "checkpoint", "i"),
    sum((on_both_backends(f"{c}-prefix{i}", c, i) for c in CHECKPOINTS for i in PREFIXES), []),
)
def test_logits(checkpoint: str, i: int, backend_device: str) -> None:
    model = load(GOLDEN / checkpoint, device=backend_device)
    expected = load_file(GOLDEN / checkpoint / "expected_logits.safetensors", backend_device)
    prefix, block = (expected[f"logits.{i}.{part}"] for part in ("prefix", "block"))
    cache = cache_for(model, capacity=len(prefix) + len(block))

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


@pytest.mark.parametrize(
    ("backend", "checkpoint", "case", "mode", "options", "expected"), token_runs()
)
def test_tokens_commits_and_forwards(
    checkpoint: str, case: dict, mode: str, options: dict, expected: dict, backend_device: str
) -> None:
    model = load(GOLDEN / checkpoint, device=backend_device)
    generation = generate(model, case["prompt"], case["max_new_tokens"], mode=mode, **options)
    assert generation.tokens == expected["tokens"]
    assert generation.forwards == expected["forwards"]
    assert generation.committed == expected.get("committed", [])
    assert generation.accepted == expected.get("accepted", [])
    assert [len(step) for step in generation.confidences] == list(map(len, generation.committed))
