"""Measurements of whole steps and of cycles of self-speculation, each one CUDA graph."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dlm_core import Model
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.self_speculation import linear_cycle, quadratic_cycle
from dlm_kernels import raise_on_error
from dlm_roofline.forward import DENOISE

from ..steps import StepBench
from .device import Measured, UnderTest
from .ops import NUMERICS

# Right tokens a cycle of linear self-speculation, 8B, blocks of 32, as published with the model.
PUBLISHED_ACCEPTANCE = 8.69


def measure_step(on: UnderTest, batch: int) -> Measured:
    """A denoising step over blocks of masks, and what it allocates at its peak."""
    bench = StepBench(on.model, on.sizes.forward(DENOISE, batch))
    steps = {numerics: partial(bench.step, numerics) for numerics in NUMERICS}
    timings = {name: on.clock(step, reset=bench.reset) for name, step in steps.items()}
    bench.reset()
    peak = on.peak_bytes(steps["fast"])
    bench.check()
    return Measured(timings, [], {} if peak is None else {"peak MB of a step": peak / 1e6})


def measure_linear_cycle(on: UnderTest) -> Measured:
    """Draft and verify a block behind one request's context."""
    config = on.sizes.config
    cache = on.random_cache(1, config.block_size)
    seed, cycle = _seed(on)
    shape = (config.block_size, False, True)

    def run(runner: Runner) -> tuple[Tensor, ...]:
        return linear_cycle(runner, shape, cache, seed, cycle)

    timings = _timed_cycles(on, on.model, run)
    rate = PUBLISHED_ACCEPTANCE / timings["fast"].median
    name = f"tokens/s, published acceptance {PUBLISHED_ACCEPTANCE} over this time"
    return Measured(timings, [], {name: rate})


def measure_quadratic_cycle(on: UnderTest, k: int) -> Measured:
    """One forward of k groups behind one request's context."""
    cache = on.random_cache(1, k)
    seed, cycle = _seed(on)
    drafted = seed.expand(1, k - 1).contiguous()

    def run(runner: Runner) -> tuple[Tensor, ...]:
        return quadratic_cycle(runner, (k, True), cache, seed, cycle, drafted)

    timings = _timed_cycles(on, on.model, run)
    return Measured(timings, [], {"rows": float(k * (k + 1))})


def measure_quantized_step(on: UnderTest, weights: str) -> Measured:
    """A step at batch 1 with quantised projections, against the same weights as they were."""
    from dlm_core.quantization import quantize_model

    bench = StepBench(on.model, on.sizes.forward(DENOISE))
    plain = on.clock(partial(bench.step, "fast"), reset=bench.reset)
    bench.reset()
    logits = _logits(bench)

    bench.model = on.new_model()
    quantize_model(bench.model, weights)
    bench.runner = Runner.of(bench.model)
    timings = {
        numerics: on.clock(partial(bench.step, numerics), reset=bench.reset)
        for numerics in NUMERICS
    }
    bench.reset()
    error = (_logits(bench) - logits).norm() / logits.norm()
    bench.check()
    figures = {
        "16-bit step over ours": plain.median / timings["fast"].median,
        "relative error of logits, random weights": error.item(),
    }
    return Measured(timings, [], figures)


def _logits(bench: StepBench) -> Tensor:
    tokens = bench.state.tokens
    hidden = bench.model(tokens, bench.cache, causal=False, numerics="fast")
    return bench.model.logits(hidden, "fast").float()


def _seed(on: UnderTest) -> tuple[Tensor, Tensor]:
    """The token a cycle starts from, int32 [1], and its number, int64 [1]."""
    seed = torch.tensor([on.sizes.config.bos_token_id], dtype=torch.int32, device=on.device)
    return seed, torch.zeros(1, dtype=torch.int64, device=on.device)


def _timed_cycles(on: UnderTest, model: Model, run: Callable[[Runner], object]) -> dict:
    runners = {numerics: Runner.of(model, numerics) for numerics in NUMERICS}
    timings = {name: on.clock(partial(run, runner)) for name, runner in runners.items()}
    for runner in runners.values():
        raise_on_error(runner.error)
    return timings


def tokens_a_cycle(k: int, chance: float) -> float:
    """Expected tokens of a cycle of k groups if each further draft is right with this chance.

    The first draft always is, so 1 + chance + ... + chance^(k - 1).
    """
    return sum(chance**n for n in range(k))
