"""What is searched for the kernels that follow a product: `residual_norm`, `gated_silu` and
`rope_kv_write`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dlm_core import ModelConfig
from dlm_kernels import gated_silu, launch, residual_norm, rope_kv_write
from dlm_kernels.partial_sums import PartialSums

from .inputs import Random, Sizes
from .space import Call, Series, Space

# Given random numbers and the most rows: an op on the first rows of a product [rows, 1, features],
# its other inputs made.
Epilogue = Callable[[Random, int], Callable[[PartialSums], tuple[Tensor, ...]]]

SEGMENTS = 4  # parts that the product comes in
WARPS = (1, 2, 4, 8, 16, 32)


def residual_norm_space(longest: int, sizes: Sizes, entries: dict[int, object]) -> Space:
    """On the model's rows, if they are served by this one of the entries; else on its longest."""
    hidden = sizes.config.hidden_size
    if longest != min(key for key in entries if key >= hidden):
        hidden = longest
    return Space(
        "residual_norm",
        launch.RESIDUAL_NORM,
        (longest,),
        (_series(f"hidden {hidden}", hidden, norm_epilogue(hidden), sizes),),
        fields={"num_warps": WARPS},
    )


def gated_silu_space(sizes: Sizes) -> Space:
    features = 2 * sizes.config.intermediate_size
    return Space(
        "gated_silu",
        launch.GATED_SILU,
        (),
        (_series("gate and up", features, silu_epilogue, sizes),),
        fields={"block": (256, 512, 1024, 2048, 4096), "num_warps": WARPS},
    )


def rope_space(sizes: Sizes) -> Space:
    config = sizes.config
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    return Space(
        "rope_kv_write",
        launch.ROPE_KV_WRITE,
        (),
        (_series("q, k, v", heads * config.head_dim, rope_epilogue(config), sizes),),
        fields={"elements": (256, 512, 1024, 2048, 4096), "num_warps": WARPS},
    )


def silu_epilogue(random: Random, rows: int) -> Callable[[PartialSums], tuple[Tensor, ...]]:
    return lambda sums: (gated_silu(sums),)


def norm_epilogue(hidden: int) -> Epilogue:
    def make(random: Random, rows: int) -> Callable[[PartialSums], tuple[Tensor, ...]]:
        residual, weight = random(rows, 1, hidden), random(hidden)
        return lambda sums: residual_norm(residual[: sums.shape[0]], sums, weight, 1e-5)

    return make


def rope_epilogue(config: ModelConfig) -> Epilogue:
    half, kv_heads = config.head_dim // 2, config.num_key_value_heads

    def make(random: Random, rows: int) -> Callable[[PartialSums], tuple[Tensor, ...]]:
        cos, sin, scale = (random(rows, 1, n, dtype=torch.float32) for n in (half, half, 1))

        def run(sums: PartialSums) -> tuple[Tensor, ...]:
            n = sums.shape[0]
            return rope_kv_write(sums, cos[:n], sin[:n], scale[:n, :, 0], kv_heads=kv_heads)

        return run

    return make


def _series(name: str, features: int, epilogue: Epilogue, sizes: Sizes) -> Series:
    def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
        random = Random(device, sizes.dtypes[2])
        product = random(SEGMENTS, most, 1, features, dtype=torch.float32)
        op = epilogue(random, most)

        def call(rows: int, numerics: str) -> Call:
            run = partial(op, PartialSums(product[:, :rows].contiguous(), random.dtype))
            return Call(run, run)

        return call

    return Series(name, (sizes.main, sizes.rows[-1]), build)
