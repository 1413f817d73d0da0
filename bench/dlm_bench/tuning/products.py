"""What is searched for the matrix products: `linear` and `lm_head_confidence`."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import launch, linear, linear_partials, lm_head_confidence, quantize_weight
from dlm_kernels.partial_sums import PartialSums

from .epilogues import Epilogue, norm_epilogue, rope_epilogue, silu_epilogue
from .inputs import PRODUCT_WARPS, Random, Sizes, numbers
from .space import Call, Series, Space

STAGES = (1, 2, 3, 4, 5, 6, 7)


def linear_space(key: int | str, sizes: Sizes, arch: str, processors: int) -> Space:
    """Of plain weights by their itemsize, or of quantised ones by their kind."""
    config, quantized = sizes.config, isinstance(key, str)
    dtype = sizes.dtypes[2 if quantized else key]
    hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key_value = 2 * config.num_key_value_heads * config.head_dim
    stored = {"fp8": 1, "int8": 1, "int4": 0.5}.get(key, key)  # bytes a weight

    def series(
        name: str, features: tuple[int, int], epilogue: Epilogue, *, timed: bool = True
    ) -> Series:
        def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
            random = Random(device, dtype)
            n_in, n_out = features
            weight = random(n_out, n_in) * n_in**-0.5
            if quantized:
                weight = quantize_weight(weight, key)
            x, consume = random(most, 1, n_in), epilogue(random, most)
            return lambda rows, numerics: Call(
                run=lambda: consume(linear_partials(x[:rows], weight, numerics=numerics)),
                result=lambda: (linear(x[:rows], weight, numerics=numerics),),
            )

        return Series(name, sizes.rows, build, timed)

    return Space(
        "linear",
        launch.LINEAR,
        (key,),
        (
            series("gate and up", (hidden, 2 * config.intermediate_size), silu_epilogue),
            series("down", (config.intermediate_size, hidden), norm_epilogue(hidden)),
            series("q, k, v", (hidden, query + key_value), rope_epilogue(config)),
            series("o", (query, hidden), norm_epilogue(hidden)),
            series("odd features", sizes.odd, lambda *_: PartialSums.total, timed=False),
        ),
        fields={
            "block_k": (128,) if key == "int4" else (32, 64, 128),
            "programs": tuple(n * processors for n in (1, 2, 3, 4)),
            "min_segment": (256, 512, 1024, 2048),
        },
        tile_fields={
            "block_o": (64, 128, 256),
            "block_r": (16, 32, 64, 128, 256),
            "num_warps": PRODUCT_WARPS,
            "num_stages": STAGES,
        },
        last_tile_fields={
            "whole_programs": tuple(n * processors for n in (1, 2, 4, 8)),
            "walking_rows": (64, 128, 256),
        },
        main=(sizes.main,),
        legal=lambda entry: all(
            _is_no_longer_than_its_rows(tile, rows, entry)
            and _fits(tile, tile.block_o * stored + tile.block_r * dtype.itemsize, entry, arch)
            for rows, tile in entry.tiles.items()
        ),
        crossover=None if quantized else "library_rows",
    )


def lm_head_space(itemsize: int, sizes: Sizes, arch: str) -> Space:
    config, dtype = sizes.config, sizes.dtypes[itemsize]
    vocab, features = config.vocab_size, config.hidden_size

    def series(name: str, rows: tuple[int, ...], *, timed: bool = True, **options: Any) -> Series:
        def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
            random = Random(device, dtype)
            weight = random(vocab, features) * features**-0.5
            # One clear winner a row, spread over the vocabulary, at a probability of about 3/4.
            winners = torch.arange(most, device=device) * (vocab // most) % vocab
            hidden = weight[winners] * (1.1 * math.log(vocab))

            def call(rows: int, numerics: str) -> Call:
                def run() -> tuple[Tensor, ...]:
                    given = {"numerics": numerics, **options}
                    return numbers(lm_head_confidence(hidden[:rows], weight, **given))

                return Call(run, run)

            return call

        return Series(name, rows, build, timed)

    return Space(
        "lm_head_confidence",
        launch.LM_HEAD,
        (itemsize,),
        (
            series("token and probability", sizes.rows),
            series("all statistics", (sizes.main,), timed=False, entropy=True, margin=True),
        ),
        # Not `chunk`: devices of different kinds may share a vocabulary.
        fields={"block_v": (32, 64, 128), "block_k": (16, 32, 64, 128)},
        tile_fields={
            "block_r": (16, 32, 64, 128, 256),
            "num_warps": PRODUCT_WARPS,
            "num_stages": STAGES,
        },
        main=(sizes.main,),
        legal=lambda entry: (
            entry.chunk % entry.block_v == 0
            and all(
                tile.block_r >= rows
                and _is_no_longer_than_its_rows(tile, rows, entry)
                and _fits(tile, (entry.block_v + tile.block_r) * itemsize, entry, arch)
                for rows, tile in entry.tiles.items()
            )
        ),
        crossover="fused_rows",
        tolerance=3e-2,  # a logit that rounds the other way
    )


def _is_no_longer_than_its_rows(tile: Any, rows: int, entry: Any) -> bool:
    """A longer one would only work on rows that are not there; the last serves any number."""
    return tile.block_r <= rows or rows == max(entry.tiles)


def _fits(tile: Any, row_bytes: float, entry: Any, arch: str) -> bool:
    """Whether what a tile's stages load does; row_bytes: of one feature."""
    return tile.num_stages * row_bytes * entry.block_k <= launch.SHARED_MEMORY[arch]
