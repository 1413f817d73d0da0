r"""Compulsory FLOPs and bytes of one denoising step, stage by stage.

With R = batch x block rows, L layers, hidden H, intermediate I, query and KV widths Q = heads x D
and K = kv_heads x D, T = context + block, vocabulary V, and s bytes an element:

    stage                    FLOPs                          bytes
    embedding and norms      (10 L + 4) R H                 every table row, norm, residual sum
                             + 3 L R (Q + K)                and rotation, once in and once out
    projections and MLP      2 L R (2 H Q + 2 H K + 3 H I)  s L (weights + inputs + outputs)
    attention                4 L R Q T                      s L (2 R Q + 2 batch K T)
    LM head and confidence   2 R H V + 4 R V                s (H V + R H + 2 R V)
    remask scatter           R block                        ids, candidates, statistics

Stages hand tensors over through memory, so what one writes and the next reads is counted at both.
Weights are counted once a step, however many rows share them.
"""

from dlm_core.config import ModelConfig
from dlm_kernels import (
    Cost,
    block_attention_cost,
    confidence_cost,
    linear_cost,
    remask_scatter_cost,
)

EMBEDDING = "embedding and norms"
PROJECTIONS = "projections and MLP"
ATTENTION = "attention"
HEAD = "LM head and confidence"
REMASK = "remask scatter"
STAGES = (EMBEDDING, PROJECTIONS, ATTENTION, HEAD, REMASK)

# What a whole step is called: of diffusion, and of AR decoding, which is a causal block of one.
DENOISING_STEP = "denoising step"
DECODING_STEP = "AR decoding step"

_ID_BYTES = 4


def step_cost(
    config: ModelConfig,
    batch: int,
    block: int,
    context: int,
    *,
    itemsize: int,
    causal: bool = False,
) -> dict[str, Cost]:
    """Cost of each stage of one forward of `block` tokens for each of `batch` requests.

    Args:
        config: the model's sizes.
        batch, block: requests, and tokens of each.
        context: tokens in the cache of each request.
        itemsize: bytes an element of weights, activations and cache.
        causal: an AR forward, which has no remask stage; `block=1` is an AR decoding step. Its new
            keys and values are the projections' output, written to the cache where it is.
    """
    rows = batch * block
    stages = {
        EMBEDDING: embedding_and_norms_cost(config, rows, itemsize=itemsize),
        PROJECTIONS: projections_cost(config, rows, itemsize=itemsize),
        ATTENTION: config.num_hidden_layers
        * block_attention_cost(
            batch,
            block,
            context,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            itemsize=itemsize,
            causal=causal,
        ),
        HEAD: linear_cost(rows, config.hidden_size, config.vocab_size, itemsize=itemsize)
        + confidence_cost(rows, config.vocab_size, itemsize=itemsize),
    }
    if not causal:
        stages[REMASK] = remask_scatter_cost(batch, block, token_itemsize=_ID_BYTES)
    return stages


def total(stages: dict[str, Cost]) -> Cost:
    """Cost of the whole step."""
    return sum(stages.values(), Cost(0, 0))


def embedding_and_norms_cost(config: ModelConfig, rows: int, *, itemsize: int) -> Cost:
    """The lookup, 2 L + 1 RMSNorms, 2 L residual sums, and L rotations of queries and keys.

    Per element: a norm squares, adds, and multiplies twice; a rotation takes two multiplications
    and an addition. cos and sin, float32, are read once a layer.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    rotated = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    lookup = Cost(0, rows * (_ID_BYTES + 2 * itemsize * hidden))
    norm = Cost(4.0 * rows * hidden, itemsize * hidden * (2 * rows + 1))
    residual = Cost(float(rows) * hidden, itemsize * 3 * rows * hidden)
    rotation = Cost(3.0 * rows * rotated, rows * (2 * itemsize * rotated + 4 * config.head_dim))
    return lookup + (2 * layers + 1) * norm + 2 * layers * residual + layers * rotation


def projections_cost(config: ModelConfig, rows: int, *, itemsize: int) -> Cost:
    """q, k, v, o, gate, up and down of every layer, and silu(gate) * up between the last two."""
    linears = [linear_cost(rows, *shape, itemsize=itemsize) for shape in _linears(config)]
    gated = rows * config.intermediate_size
    # x / (1 + exp(-x)) * up; the exponential is counted apart.
    gate = Cost(flops=3.0 * gated, bytes=3.0 * itemsize * gated, exps=float(gated))
    return config.num_hidden_layers * sum(linears, gate)


def forward_weight_bytes(config: ModelConfig, *, itemsize: int) -> int:
    """Bytes of the weights that any forward reads in full: all but the embedding table."""
    layer = sum(n_in * n_out for n_in, n_out in _linears(config)) + 2 * config.hidden_size
    head = config.hidden_size * config.vocab_size
    return itemsize * (config.num_hidden_layers * layer + config.hidden_size + head)


def kv_bytes_per_token(config: ModelConfig, *, itemsize: int) -> int:
    """Bytes of the keys and values that one token leaves in the cache."""
    kv_size = config.num_key_value_heads * config.head_dim
    return 2 * itemsize * config.num_hidden_layers * kv_size


def _linears(config: ModelConfig) -> list[tuple[int, int]]:
    """(in, out) of each linear layer of a decoder layer."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    return [
        (hidden, query_size),
        (hidden, kv_size),
        (hidden, kv_size),
        (query_size, hidden),
        (hidden, intermediate),
        (hidden, intermediate),
        (intermediate, hidden),
    ]
