"""Predicted memory against what models, caches and whole forwards allocate."""

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dlm_core import PRESETS, random_model
from dlm_core.decoding.denoise import Needs, denoise_step
from dlm_core.decoding.prefill import extend
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.sampling import Sampling, SamplingTable
from dlm_core.decoding.self_speculation import linear_cycle, quadratic_cycle
from dlm_core.model import Model
from dlm_core.paged_cache import PagedKVCache, PagePool
from dlm_core.quantization import quantize_model
from dlm_core.quantization import weight_bytes as bytes_of_weights
from dlm_kernels import BlockState, Rule, RuleTable
from dlm_kernels.backend import dry_run
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, KINDS, LINEAR, QUADRATIC, VERIFY, Forward
from dlm_roofline.memory import PAGE_SIZE, LiveBytes, peak_memory

TINY, EIGHT = PRESETS["tiny"], PRESETS["8b"]
TWO_LAYERS = replace(EIGHT, num_hidden_layers=2)
BLOCKS = {DECODE: 1, DENOISE: 32, DRAFT: 32, VERIFY: 32, QUADRATIC: 20, LINEAR: 32}


def whole(model: Model, forward: Forward) -> Callable[[], object]:
    """The forward as decoding runs it, arithmetic on ids, positions and rules included."""
    batch, block, device = forward.batch, forward.block, model.device
    n_pages = -(-(forward.context + block) // PAGE_SIZE)
    dtype = torch.float8_e4m3fn if forward.float8_cache else model.dtype
    pool = PagePool(model.config, batch * n_pages, device=device, dtype=dtype)
    for tensor in (*pool.keys, *pool.values):
        tensor.zero_()
    table = torch.arange(batch * n_pages, dtype=torch.int32, device=device).view(batch, -1)
    lengths = torch.full((batch,), forward.context, dtype=torch.int32, device=device)
    cache, runner = PagedKVCache.over(pool, table, lengths, forward.context), Runner.of(model)
    tokens = torch.full((batch, block), model.config.mask_token_id, dtype=torch.int32).to(device)
    seeds, step = tokens[:, 0].contiguous(), torch.zeros(batch, dtype=torch.int64, device=device)
    if forward.kind == DENOISE:
        rule, greedy = Rule(threshold=0.9), Sampling()
        state = BlockState.start(tokens, model.config.mask_token_id)
        rules, table = (
            RuleTable.pack([rule] * batch, device),
            SamplingTable.pack([greedy] * batch, device),
        )
        needs = Needs.of(rule, greedy)
        return lambda: denoise_step(runner, cache, state, needs, rules, table)
    if forward.kind == LINEAR:
        return lambda: linear_cycle(runner, (block, False, True), cache, seeds, step)
    if forward.kind == QUADRATIC:
        drafted = tokens[:, 1 : forward.k].contiguous()
        return lambda: quadratic_cycle(runner, (forward.k, True), cache, seeds, step, drafted)
    if forward.kind == DECODE:
        return lambda: extend(runner, cache, tokens, None)
    given = int(forward.kind == DRAFT)
    return lambda: runner.statistics(runner.hidden(tokens, cache, causal=forward.causal)[:, given:])


def counted(forward: Forward) -> int:
    """Bytes that Triton's launchers allocate in all of a forward of two layers of the 8B model."""
    with dry_run("triton"), LiveBytes() as live:
        model = Model(TWO_LAYERS, device="meta", dtype=torch.bfloat16)
        if forward.weights:
            quantize_model(model, forward.weights)
        run = whole(model, forward)
        before = live.now
        live.peak = before
        run()
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
    found = peak_memory(EIGHT, Forward(DENOISE, 64, 32, 1024, "bfloat16"), 1056).activations
    assert found == pytest.approx(expected, rel=1e-3)


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
    run = whole(random_model(config, seed=0, device="cuda", dtype=torch.bfloat16), forward)
    run()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
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


def test_published_sizes() -> None:
    found = peak_memory(EIGHT, Forward(DENOISE, 2, 32, 1024, "bfloat16"), 1088)
    assert found.weights / 1e9 == pytest.approx(2 * 8.49, rel=1e-3)
    assert found.kv == 2 * 1088 * 139_264
    assert found.total == found.weights + found.kv + found.activations


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
