"""What is searched: calls in the shapes of the 8B model, and values for the entries of a table."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dlm_kernels as dk
from dlm_core import PRESETS
from dlm_kernels import launch

from .search import Call, Search, Sweep

CONFIG = PRESETS["8b"]
ROWS = (1, 16, 32, 64, 128, 256, 2048)
CONTEXTS = ((1024, (1, 64)), (8192, (1, 16)), (32768, (1,)))  # with numbers of requests
PAGE = 16
TILE = {"num_warps": (4, 8), "num_stages": (2, 3, 4, 6)}
WEIGHT_BYTES = {2: 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}


def searches(arch: str, processors: int) -> list[Search]:
    """The most valuable first: of each op the entry that a step in 16 bits launches with.

    Left out are entries of float32, which serves to check numerics, and the ops that make one pass
    over a few rows and are bound by their launch. processors: SMs of the device.
    """
    dims = sorted(launch.BLOCK_ATTENTION[arch][2], key=lambda dim: (dim < CONFIG.head_dim, dim))
    ops: list[tuple[str, dict, list[tuple], Callable[..., Any]]] = [
        ("linear", launch.LINEAR, [(key,) for key in WEIGHT_BYTES], partial(_linear, processors)),
        ("lm_head_confidence", launch.LM_HEAD, [(2,)], _lm_head),
        ("block_attention", launch.BLOCK_ATTENTION, [(2, dim) for dim in dims], _attention),
        ("confidence", launch.CONFIDENCE, [()], _confidence),
    ]
    return [
        Search(op, table, (arch, *keys), partial(task, arch, *keys))
        for part in (slice(1), slice(1, None))
        for op, table, entries, task in ops
        for keys in entries[part]
    ]


def _linear(processors: int, arch: str, key: int | str) -> tuple[list[Call], list[Sweep]]:
    """key: 2, of weights in 16 bits, or the kind of quantised ones."""
    hidden, queries = CONFIG.hidden_size, CONFIG.num_attention_heads * CONFIG.head_dim

    def layer(n_in: int, n_out: int) -> list[Call]:
        weight = randn(n_out, n_in) * n_in**-0.5
        weight = weight if key == 2 else dk.quantize_weight(weight, key)

        def op(**given: Any) -> Tensor:
            # With a kernel that adds up the parts, for that is what they cost.
            return dk.gated_silu(dk.linear_partials(weight=weight, **given))

        return _calls(op, x=randn(ROWS[-1], n_in))

    calls = [
        *layer(hidden, 2 * CONFIG.intermediate_size),
        *layer(CONFIG.intermediate_size, hidden),
        *layer(hidden, queries + 2 * CONFIG.num_key_value_heads * CONFIG.head_dim),
        *layer(queries, hidden),
    ]
    block_k = (128,) if key == "int4" else (32, 64, 128)
    programs = tuple(n * processors for n in (1, 2, 4))
    bits = {"block_k": block_k, "programs": programs, "min_segment": (256, 512, 1024)}
    walks = {"whole_programs": programs, "walking_rows": (64, 128, 256)}
    tiles, fits = launch.LINEAR[arch][key].tiles, partial(_fits, arch, WEIGHT_BYTES[key])
    sweeps = [
        Sweep(bits, launch.tile_serving({n: n for n in tiles}, CONFIG.block_size), fits),
        *(Sweep(TILE | {"block_o": (64, 128), "block_r": (n // 2, n)}, n, fits) for n in tiles),
        Sweep(walks, max(tiles)),
        Sweep({"library_rows": (0, *ROWS)}, options={"numerics": "fast"}),
    ]
    return calls, sweeps if key == 2 else sweeps[:-1]


def _lm_head(arch: str, itemsize: int) -> tuple[list[Call], list[Sweep]]:
    vocab, features = CONFIG.vocab_size, CONFIG.hidden_size
    weight = randn(vocab, features) * features**-0.5
    # One clear winner a row, spread over the vocabulary, at a probability of about 3/4.
    hidden = weight[torch.arange(ROWS[-1]) * (vocab // ROWS[-1]) % vocab] * (1.1 * math.log(vocab))
    # Not `chunk`: devices of different kinds may share a vocabulary.
    bits = {"block_v": (64, 128), "block_k": (32, 64, 128)}
    tiles, fits = launch.LM_HEAD[arch][itemsize].tiles, partial(_fits, arch, itemsize)
    sweeps = [
        Sweep(bits, launch.tile_serving({n: n for n in tiles}, CONFIG.block_size), fits),
        *(Sweep(TILE | {"block_r": (n, 2 * n)}, n, fits) for n in tiles),
        Sweep({"fused_rows": (0, *ROWS)}, options={"numerics": "fast"}),
    ]
    calls = _calls(partial(dk.lm_head_confidence, weight=weight), hidden=hidden)
    # A logit may round the other way.
    return [call._replace(tolerance=3e-2) for call in calls], sweeps


def _fits(arch: str, weight_bytes: float, entry: Any) -> bool:
    """Whether tiles are whole ones of the tensor cores and shared memory holds their stages."""

    def stages(tile: Any) -> float:
        weight_rows = getattr(tile, "block_o", None) or entry.block_v
        return tile.num_stages * (weight_bytes * weight_rows + 2 * tile.block_r)

    most = launch.SHARED_MEMORY[arch] / entry.block_k
    return all(tile.block_r >= 16 and stages(tile) <= most for tile in entry.tiles.values())


def _attention(arch: str, itemsize: int, head_dim: int) -> tuple[list[Call], list[Sweep]]:
    """Over pages, as batches are served."""
    block, kv_heads, calls = CONFIG.block_size, CONFIG.num_key_value_heads, []
    for context, batches in CONTEXTS:
        most, pages = batches[-1], -(-(context + block) // PAGE)
        k, v = randn(2, most, block, kv_heads, head_dim)
        k_cache, v_cache = randn(2, most * pages, PAGE, kv_heads, head_dim)
        caches = {"k_cache": k_cache, "v_cache": v_cache, "max_context": context}
        calls += _calls(
            partial(dk.block_attention, **caches),
            batches,
            q=randn(most, block, CONFIG.num_attention_heads, head_dim),
            k=k,
            v=v,
            context_lens=torch.full((most,), context, dtype=torch.int32),
            block_table=torch.arange(most * pages, dtype=torch.int32).view(most, pages),
        )

    def fits(entry: Any) -> bool:
        rows = entry.block_m + 2 * entry.num_stages * entry.block_n
        return itemsize * head_dim * rows <= launch.SHARED_MEMORY[arch]

    tile = {"block_m": (32, 64, 128), "block_n": (32, 64, 128), "num_warps": (4, 8)}
    splits = {
        "split_keys": (256, 512, 1024),
        "far_from": (4096, 8192, 16384),
        "far_split_keys": (1024, 2048, 4096),
        "walks": (False, True),
    }
    return calls, [Sweep(tile | {"num_stages": (1, 2, 3)}, legal=fits), Sweep(splits)]


def _confidence(arch: str) -> tuple[list[Call], list[Sweep]]:
    values = {"chunk": (4096, 8192, 16384, 32768), "num_warps": (2, 4, 8), "num_stages": (2, 3, 4)}
    return _calls(dk.confidence, logits=randn(ROWS[-1], CONFIG.vocab_size) * 3), [Sweep(values)]


def _calls(op: Callable[..., Any], sizes: tuple[int, ...] = (), **inputs: Tensor) -> list[Call]:
    return [Call(op, inputs, size) for size in sizes or ROWS]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16)
