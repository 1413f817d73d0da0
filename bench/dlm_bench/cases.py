"""What is timed: the grid of op calls, with their inputs, costs and peers.

The grid is that of an 8B model: blocks of 32, batches 1-64, contexts of 0-32k, a vocabulary of
131072, 32 query and 8 KV heads of 128. On a GPU it is timed in bfloat16. The host takes a part of
it, in float32, that 2 cores get through in a minute.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dlm_core import PRESETS, ModelConfig
from dlm_core.calibration import LARGEST
from dlm_kernels import (
    BlockState,
    Confidence,
    Cost,
    Rule,
    block_attention,
    block_attention_cost,
    confidence,
    confidence_cost,
    lm_head_confidence,
    lm_head_confidence_cost,
    remask_scatter,
    remask_scatter_cost,
)
from dlm_kernels.cache_layout import CACHE_DTYPE

from .peers import (
    attention_peers,
    confidence_peers,
    lm_head_peers,
    softmax_gather,
    softmax_top2_entropy,
    where_scatter,
)
from .timing import Call, nothing

CONFIG = PRESETS["8b"]
THRESHOLD = 0.9

# Batch, context. The rows that say most come first, in case time runs out.
ATTENTION_GRID = {
    "cuda": [(1, 1024), (1, 32768), (64, 8192), (64, 32768), (64, 1024), (1, 8192), (1, 131072)]
    + [(8, 1024), (8, 8192), (8, 32768), (1, 16384), (64, 4096), (1, 0), (8, 0), (64, 0)],
    "cpu": [(1, 1024), (4, 1024), (1, 4096), (1, 0), (4, 0), (4, 4096)],
}
FLOAT8_GRID = {"cuda": [(64, 32768), (1, 32768)], "cpu": [(1, 4096)]}
CONFIDENCE_ROWS = {"cuda": [32, 2048, 256, 64, 128, 512, 1024], "cpu": [32, 128]}
HEAD_ROWS = {"cuda": [32, 2048, 256, 1, 4096, 128, 512, 64, 1024], "cpu": [32, 128]}
HEAD_FEATURES = {"cuda": CONFIG.hidden_size, "cpu": 512}
REMASK_BATCHES = (1, 8, 64)

FAST = "ours, fast numerics"
OTHER_CACHE = "ours, unquantised cache"

# Largest difference between our result and a peer's, as a share of the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Workload:
    """Inputs made, ready to run.

    run: the op. peers: by name.
    view: what of a result is compared with a peer's.
    reset: puts back what `run` changes in place.
    """

    run: Callable[[], Any]
    peers: dict[str, Call]
    view: Callable[[Any], tuple[Tensor, ...]]
    reset: Call = nothing


@dataclass(frozen=True)
class Case:
    """One row of the grid; `build` makes its inputs on a device.

    memory: bytes our op takes with its inputs, roughly; a peer that needs more refuses.
    tolerance: largest difference of a peer's result from ours, as a share of the largest value.
    """

    name: str
    shape: dict[str, int]
    dtype: torch.dtype
    cost: Cost
    memory: float
    build: Callable[[torch.device], Workload]
    tolerance: float


def op_cases(device_kind: str, *, quick: bool = False, config: ModelConfig = CONFIG) -> list[Case]:
    """The grid for "cuda" or "cpu"; `quick` takes the first case of each op."""
    dtype = torch.bfloat16 if device_kind == "cuda" else torch.float32
    features, of = HEAD_FEATURES[device_kind], {"config": config}
    some_rows = CONFIDENCE_ROWS[device_kind]
    groups = [
        [lm_head_case(rows, features, dtype, **of) for rows in HEAD_ROWS[device_kind]],
        [confidence_case(rows, dtype, **of) for rows in some_rows],
        [confidence_case(some_rows[1], dtype, all_statistics=True, **of)],
        [remask_case(batch, dtype, **of) for batch in REMASK_BATCHES],
        [attention_case(*shape, dtype, **of) for shape in ATTENTION_GRID[device_kind]],
        [attention_case(*shape, dtype, float8=True, **of) for shape in FLOAT8_GRID[device_kind]],
    ]
    if device_kind == "cuda":
        groups.append([confidence_case(2048, torch.float32, **of)])
    return [case for group in groups for case in (group[:1] if quick else group)]


def confidence_case(
    rows: int,
    dtype: torch.dtype,
    *,
    all_statistics: bool = False,
    config: ModelConfig = CONFIG,
) -> Case:
    """Statistics of a step's logits; with `all_statistics` entropy and margin too."""
    vocab = config.vocab_size
    extra = {"entropy": all_statistics, "margin": all_statistics}

    def build(device: torch.device) -> Workload:
        logits = torch.randn(rows, vocab, device=device).mul_(3).to(dtype)
        if all_statistics:
            peers = {"fp32 softmax, top 2, entropy": lambda: softmax_top2_entropy(logits)}
        else:
            peers = confidence_peers(logits)

        def view(result: Any) -> tuple[Tensor, ...]:
            # Of several equal logits each engine may take its own, so logits are compared, not ids.
            values = list(result)
            if len(values) == 5:  # dlm_kernels.Confidence, whose log-sum-exp no peer returns
                del values[2]
            token, *statistics = (value for value in values if value is not None)
            return logits.gather(-1, token.long()[:, None])[:, 0], *statistics

        return Workload(lambda: confidence(logits, **extra), peers, view)

    return Case(
        "confidence, all statistics" if all_statistics else "confidence",
        {"rows": rows, "vocab": vocab},
        dtype,
        confidence_cost(rows, vocab, itemsize=dtype.itemsize, **extra),
        memory=rows * vocab * (dtype.itemsize + 4.0),  # logits are drawn in float32
        build=build,
        tolerance=TOLERANCE[dtype],
    )


def lm_head_case(
    rows: int, features: int, dtype: torch.dtype, *, config: ModelConfig = CONFIG
) -> Case:
    """A step's hidden states to the statistics of their logits."""
    vocab = config.vocab_size

    def build(device: torch.device) -> Workload:
        hidden = torch.randn(rows, features, device=device, dtype=dtype)
        head = torch.randn(vocab, features, device=device, dtype=dtype)
        # Logits so small that their rounding moves no probability by more than 1%.
        head *= 0.25 * features**-0.5

        def run(numerics: str = "batch_invariant") -> Confidence:
            return lm_head_confidence(hidden, head, numerics=numerics)

        def view(result: Any) -> tuple[Tensor, ...]:
            # The product alone has no statistics yet; as for ids, see `confidence_case`.
            token, probability = softmax_gather(result) if torch.is_tensor(result) else result[:2]
            return (hidden * head[token.long()]).sum(-1, dtype=torch.float32), probability

        return Workload(run, {FAST: lambda: run("fast")} | lm_head_peers(hidden, head), view)

    return Case(
        "lm_head_confidence",
        {"rows": rows, "features": features, "vocab": vocab},
        dtype,
        lm_head_confidence_cost(rows, features, vocab, itemsize=dtype.itemsize),
        memory=dtype.itemsize * float(features) * (rows + vocab),
        build=build,
        tolerance=TOLERANCE[dtype],
    )


def remask_case(batch: int, dtype: torch.dtype, *, config: ModelConfig = CONFIG) -> Case:
    """One step's choice on half-filled blocks. `dtype` only says which roof the row stands under:
    ids are int32 and confidences float32."""
    block = config.block_size

    def build(device: torch.device) -> Workload:
        mask_id, eos_id, shape = config.mask_token_id, config.eos_token_id, (batch, block)
        tokens = torch.randint(200, config.vocab_size, shape, dtype=torch.int32, device=device)
        candidate = tokens.flip(1).contiguous()
        tokens[torch.rand(shape, device=device) < 0.5] = mask_id
        surety = torch.rand(shape, device=device)
        state = BlockState.start(tokens, mask_id)
        start = [each.clone() for each in state]
        ids = {"mask_id": mask_id, "eos_id": eos_id}
        rule = Rule(threshold=THRESHOLD)

        def run() -> tuple[Tensor, Tensor]:
            remask_scatter(state, candidate, surety, rule, **ids)
            return state.tokens, state.done

        given = start[0], candidate, surety
        scatter = partial(where_scatter, *given, **ids, threshold=THRESHOLD)
        peers = {"where, argmax, scatter": scatter}
        return Workload(run, peers, view=tuple, reset=lambda: restore(state, start))

    return Case(
        "remask_scatter",
        {"batch": batch, "block": block},
        dtype,
        remask_scatter_cost(batch, block),
        memory=batch * block * 100.0,
        build=build,
        tolerance=0.0,
    )


def attention_case(
    batch: int,
    context: int,
    dtype: torch.dtype,
    *,
    float8: bool = False,
    config: ModelConfig = CONFIG,
) -> Case:
    """A block over its context and itself, bidirectional, as one layer of a denoising step.

    float8: over a float8 cache; its peer reads the cache from which that was made.
    """
    query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim, block = config.head_dim, config.block_size

    def build(device: torch.device) -> Workload:
        def random(tokens: int, heads: int) -> Tensor:
            return torch.randn((batch, tokens, heads, head_dim), device=device, dtype=dtype)

        q, k, v = random(block, query_heads), random(block, kv_heads), random(block, kv_heads)
        given = random(context, kv_heads), random(context, kv_heads)
        lengths = torch.full((batch,), context, dtype=torch.int32, device=device)
        caches, scales = _in_float8(given) if float8 else (given, {})

        def run(numerics: str = "batch_invariant") -> Tensor:
            return block_attention(q, *caches, lengths, k, v, numerics=numerics, **scales)

        def unquantised() -> Tensor:
            return block_attention(q, *given, lengths, k, v, numerics="fast")

        others = {OTHER_CACHE: unquantised} if float8 else attention_peers(q, *given, k, v)
        return Workload(run, {FAST: lambda: run("fast")} | others, view=lambda out: (out,))

    keys, queries = batch * (context + block), batch * block
    return Case(
        "block_attention" + ", float8 cache" * float8,
        {"batch": batch, "block": block, "context": context},
        dtype,
        block_attention_cost(
            batch, block, context, query_heads, kv_heads, head_dim, itemsize=dtype.itemsize,
            cache_itemsize=1 if float8 else None,
        ),
        memory=dtype.itemsize
        * 2.0 * head_dim * ((1 + 2 * float8) * keys * kv_heads + queries * query_heads),
        build=build,
        # Of values near zero a float8 keeps 4 binary digits.
        tolerance=0.13 if float8 else TOLERANCE[dtype],
    )  # fmt: skip


def _in_float8(caches: Iterable[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Caches in float8, and the scales of their heads, as `block_attention` takes them."""
    found, scales = [], {}
    for name, cache in zip(("k_scale", "v_scale"), caches, strict=True):
        scales[name] = cache.abs().amax((0, 1, 3)).float() / LARGEST
        scaled = cache / scales[name][:, None].to(cache.dtype)
        found.append(scaled.clamp_(-LARGEST, LARGEST).to(CACHE_DTYPE))
    return found, scales


def restore(state: BlockState, start: list[Tensor]) -> None:
    """Put a block's state back to clones taken of it."""
    for now, then in zip(state, start, strict=True):
        now.copy_(then)


def difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Largest difference of two results, as a share of each tensor's largest value; NaN if any."""
    shares = []
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = mine.double(), other.double()
        shares.append((mine - other).abs().max() / mine.abs().max().clamp(min=1e-30))
    return torch.stack(shares).max().item()
