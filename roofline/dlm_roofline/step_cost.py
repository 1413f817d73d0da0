r"""Compulsory FLOPs and bytes of one forward, stage by stage.

With R = batch x block rows, L layers, hidden H, intermediate I, query and KV widths Q = heads x D
and K = kv_heads x D, T = context + block, vocabulary V, and s bytes an element:

    stage                    FLOPs                          bytes
    embedding and norms      (10 L + 4) R H                 s R H (8 L + 4), norm weights,
                             + L R (3 Q + 3 K + D)          s L R (2 Q + 4 K), rotations
    projections and MLP      2 L R (2 H Q + 2 H K + 3 H I)  s L (weights + inputs + outputs)
    attention                4 L R Q T                      s L (2 R Q + 2 batch K T)
    LM head and confidence   2 R' H V + 4 R' V              s (H V + R' H), 3 statistics a row
    remask scatter           R block                        ids, candidates, statistics

Stages hand tensors over through memory, so what one writes and the next reads is counted at both;
projections of one input are one product, and logits are not handed over. Weights are counted once
a forward, however many rows share them.

R' are the rows whose tokens are wanted: all; of a draft all but the first of each request, which is
given; of a quadratic forward the k that verify and the k - 1 masks that draft next. Which masks
those are the verified rows say, so the head runs twice.

Logarithms, roots and page tables are not counted, nor a draft's LoRA.
"""

from typing import NamedTuple

import torch

from dlm_core.config import ModelConfig
from dlm_kernels import (
    Cost,
    block_attention_cost,
    gated_silu_cost,
    linear_cost,
    lm_head_confidence_cost,
    remask_scatter_cost,
    residual_norm_cost,
    rope_kv_write_cost,
)
from dlm_kernels.quantized_weight import GROUP

from .forward import DENOISE, DRAFT, LINEAR, QUADRATIC, Forward, parts_of

EMBEDDING = "embedding and norms"
PROJECTIONS = "projections and MLP"
ATTENTION = "attention"
HEAD = "LM head and confidence"
REMASK = "remask scatter"
STAGES = (EMBEDDING, PROJECTIONS, ATTENTION, HEAD, REMASK)

_ID_BYTES = 4


class Launches(NamedTuple):
    """Launches of one op in a stage: what each costs, and how many there are."""

    op: str
    cost: Cost
    count: int


def step_cost(config: ModelConfig, forward: Forward) -> dict[str, Cost]:
    """Cost of each stage of one forward; "remask scatter" in denoising steps alone."""
    if forward.kind == LINEAR:
        draft, verify = (step_cost(config, each) for each in parts_of(forward))
        return {stage: cost + verify[stage] for stage, cost in draft.items()}
    costs = {
        stage: sum((each.count * each.cost for each in launches), Cost(0, 0))
        for stage, launches in step_launches(config, forward).items()
    }
    # Launches of the head read its weight once each.
    costs[HEAD] = _head_cost(config, forward, sum(head_rows(forward)))
    return costs


def step_launches(config: ModelConfig, forward: Forward) -> dict[str, list[Launches]]:
    """The ops of each stage of one forward but a linear cycle, which is two; see `step_cost`."""
    itemsize, rows, hidden = itemsize_of(forward.dtype), forward.rows, config.hidden_size
    layers = config.num_hidden_layers
    kind = {
        "causal": forward.causal and forward.draft_groups is None,
        "draft_groups": forward.draft_groups,
        "cache_itemsize": 1 if forward.float8_cache else None,
    }
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    shape = (forward.batch, forward.block)

    first_norm = residual_norm_cost(rows, hidden, itemsize=itemsize, update=False)
    norm = residual_norm_cost(rows, hidden, itemsize=itemsize)
    product = f"linear {forward.weights}" if forward.weights else "linear"
    lookup = Cost(0, rows * (_ID_BYTES + 2 * itemsize * hidden))
    rotation = rope_kv_write_cost(*shape, *heads, itemsize=itemsize, **kind)
    attention = block_attention_cost(*shape, forward.context, *heads, itemsize=itemsize, **kind)
    products = [
        linear_cost(rows, *each, itemsize=itemsize, weight_bytes=weight_bytes(*each, forward))
        for each in linear_shapes(config)
    ]
    gate = gated_silu_cost(rows, config.intermediate_size, itemsize=itemsize)
    stages = {
        EMBEDDING: [
            Launches("lookup", lookup, 1),
            Launches("residual_norm", first_norm, 1),
            Launches("residual_norm", norm, 2 * layers),
            Launches("rope_kv_write", rotation, layers),
        ],
        PROJECTIONS: [
            *(Launches(product, each, layers) for each in products),
            Launches("gated_silu", gate, layers),
        ],
        ATTENTION: [Launches("block_attention", attention, layers)],
        HEAD: [
            Launches("lm_head_confidence", _head_cost(config, forward, n), 1)
            for n in head_rows(forward)
        ],
    }
    if forward.kind == DENOISE:
        remask = remask_scatter_cost(*shape, token_itemsize=_ID_BYTES)
        stages[REMASK] = [Launches("remask_scatter", remask, 1)]
    return stages


def head_rows(forward: Forward) -> list[int]:
    """Rows of each pass of the LM head: a draft's first token is given, and of a quadratic forward
    the first rows of all groups come first, then the masks of the last right one.
    """
    of_each = {DRAFT: [forward.block - 1], QUADRATIC: [forward.k, forward.k - 1]}
    return [forward.batch * n for n in of_each.get(forward.kind, [forward.block])]


def _head_cost(config: ModelConfig, forward: Forward, rows: int) -> Cost:
    itemsize = itemsize_of(forward.dtype)
    return lm_head_confidence_cost(rows, config.hidden_size, config.vocab_size, itemsize=itemsize)


def total(stages: dict[str, Cost]) -> Cost:
    """Cost of the whole forward."""
    return sum(stages.values(), Cost(0, 0))


def weight_bytes(n_in: int, n_out: int, forward: Forward) -> int:
    """Bytes of a projection's weight, and of its float32 scales if it is quantised."""
    if forward.weights is None:
        return itemsize_of(forward.dtype) * n_in * n_out
    if forward.weights == "int4":
        groups = -(-n_in // GROUP)
        return n_out * groups * (GROUP // 2 + 4)
    return n_out * (n_in + 4)


def forward_weight_bytes(config: ModelConfig, *, itemsize: int) -> int:
    """Bytes of the weights that any forward reads in full: all but the embedding table."""
    layer = sum(n_in * n_out for n_in, n_out in linear_shapes(config)) + 2 * config.hidden_size
    head = config.hidden_size * config.vocab_size
    return itemsize * (config.num_hidden_layers * layer + config.hidden_size + head)


def kv_bytes_per_token(config: ModelConfig, *, itemsize: int) -> int:
    """Bytes of the keys and values that one token leaves in the cache."""
    kv_size = config.num_key_value_heads * config.head_dim
    return 2 * itemsize * config.num_hidden_layers * kv_size


def linear_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(in, out) of each product of a decoder layer; what shares its input is one."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    return [
        (hidden, query_size + 2 * kv_size),
        (query_size, hidden),
        (hidden, 2 * intermediate),
        (intermediate, hidden),
    ]


def itemsize_of(dtype: str) -> int:
    """Bytes an element of a dtype, by torch's name for it."""
    return getattr(torch, dtype).itemsize
