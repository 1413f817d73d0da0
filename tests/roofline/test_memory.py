"""Predicted memory against what models, caches and whole forwards allocate."""

import inspect
from dataclasses import replace

import pytest
import torch

from dlm_bench.steps import StepBench
from dlm_core import PRESETS, random_model
from dlm_core.model import Model
from dlm_core.paged_cache import PagePool
from dlm_core.quantization import quantize_model
from dlm_core.quantization import weight_bytes as bytes_of_weights
from dlm_kernels.backend import dry_run
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, KINDS, LINEAR, QUADRATIC, VERIFY, Forward
from dlm_roofline.memory import PAGE_SIZE, LiveBytes, peak_memory

TINY, EIGHT = PRESETS["tiny"], PRESETS["8b"]
TWO_LAYERS = replace(EIGHT, num_hidden_layers=2)
BLOCKS = {DECODE: 1, DENOISE: 32, DRAFT: 32, VERIFY: 32, QUADRATIC: 20, LINEAR: 32}


def counted(forward: Forward) -> int:
    """Bytes that Triton's launchers allocate in all of a forward of two layers of the 8B model."""
    with dry_run("triton"), LiveBytes() as live:
        model = Model(TWO_LAYERS, device="meta", dtype=torch.bfloat16)
        if forward.weights:
            quantize_model(model, forward.weights)
        bench = StepBench(model, forward)
        before = live.peak = live.now
        bench.step()
    return live.peak - before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "batch, context, kept",
    [
        (1, 512, {}),
        (64, 1024, {}),
        (1, 131072, {}),
        (2, 16384, {"weights": "int4", "float8_cache": True}),
    ],
)
def test_activations_are_those_of_the_whole_forward(kind, batch, context, kept) -> None:
    forward = Forward(kind, batch, BLOCKS[kind], context, "bfloat16", **kept)
    found = peak_memory(EIGHT, forward, context + BLOCKS[kind]).activations
    assert found == pytest.approx(counted(forward), rel=0.02)


def test_activations_by_hand() -> None:
    """64 denoised blocks of the 8B model: 2048 rows, which fill the chip."""
    rows, bf16, float32 = 2048, 2, 4
    # Residual and update of the layer before, residual and norm, o_proj's product, and of the MLP
    # gate, up and their product; over all of it the rotations.
    expected = rows * bf16 * (5 * 4096 + 3 * 14336) + rows * float32 * 129
    found = peak_memory(EIGHT, Forward(DENOISE, 64, 32, 1024, "bfloat16"), 1056)
    assert found.activations == pytest.approx(expected, rel=1e-3)
    assert found.total == found.weights + found.kv + found.activations


def test_plain_torch_holds_logits_and_their_softmax_too() -> None:
    forward = Forward(DENOISE, 1, 32, 100, "float32")
    triton, torch_ = (peak_memory(TINY, forward, 132, backend=x) for x in ("triton", "torch"))
    assert torch_.activations - triton.activations == 2 * 4 * 2**25


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 16])
def test_a_gpu_allocates_what_is_predicted(kind: str, batch: int) -> None:
    """Launches of another device than an H200 differ."""
    config = replace(TWO_LAYERS, vocab_size=32768)
    forward = Forward(kind, batch, BLOCKS[kind], 4096, "bfloat16")
    bench = StepBench(random_model(config, seed=0, device="cuda", dtype=torch.bfloat16), forward)
    bench.step()
    bench.reset()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    bench.step()
    found = peak_memory(config, forward, 4096 + 32).activations
    assert found == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.1)


@pytest.mark.parametrize("weights", [None, "fp8", "int8", "int4"])
def test_weights_are_what_a_model_holds(weights: str | None) -> None:
    model = random_model(TINY, seed=0)
    if weights is not None:
        quantize_model(model, weights)
    forward = Forward(DENOISE, 1, 32, 100, "float32", weights)
    assert peak_memory(TINY, forward, 132).weights == bytes_of_weights(model)
    # A draft has an o_proj of its own: 4 layers of [256, 256].
    row = {None: 1024, "fp8": 260, "int8": 260, "int4": 2 * 68}[weights]
    for kind in (DRAFT, VERIFY, LINEAR):
        more = peak_memory(TINY, replace(forward, kind=kind), 132).weights
        assert more == bytes_of_weights(model) + 4 * 256 * row


@pytest.mark.parametrize("cached, pages", [(1, 1), (64, 1), (65, 2), (1056, 17)])
def test_keys_and_values_are_those_of_whole_pages(cached: int, pages: int) -> None:
    assert inspect.signature(PagePool).parameters["page_size"].default == PAGE_SIZE
    forward = Forward(DECODE, 3, 1, 1, "float32")
    pool = PagePool(TINY, 3 * pages, device="meta", dtype=torch.float32)
    expected = sum(tensor.nbytes for tensor in (*pool.keys, *pool.values))
    assert peak_memory(TINY, forward, cached).kv == expected
    assert peak_memory(TINY, replace(forward, float8_cache=True), cached).kv == expected / 4


@pytest.mark.parametrize(
    "given, message",
    [
        ({"cached": 99}, "cached is 99; it must be at least the context, which is 100"),
        ({"backend": "cuda"}, "backend is 'cuda'; it must be one of triton, torch"),
    ],
)
def test_what_cannot_be(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peak_memory(TINY, Forward(DENOISE, 1, 32, 100, "float32"), **{"cached": 132} | given)
