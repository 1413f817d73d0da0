r"""Compulsory FLOPs and bytes of one denoising step, stage by stage.

With R = batch x block rows, L layers, hidden H, intermediate I, query and KV widths Q = heads x D
and K = kv_heads x D, T = context + block, vocabulary V, and s bytes an element:

    stage                    FLOPs                          bytes
    embedding and norms      (10 L + 4) R H                 s R H (8 L + 4), norm weights,
                             + L R (3 Q + 3 K + D)          s L R (2 Q + 4 K), rotations
    projections and MLP      2 L R (2 H Q + 2 H K + 3 H I)  s L (weights + inputs + outputs)
    attention                4 L R Q T                      s L (2 R Q + 2 batch K T)
    LM head and confidence   2 R H V + 4 R V                s (H V + R H)
    remask scatter           R block                        ids, candidates, statistics

Stages hand tensors over through memory, so what one writes and the next reads is counted at both;
projections of one input are one product, and logits are not handed over. Weights are counted once
a step, however many rows share them.
"""

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
            keys and values go into the cache.
    """
    rows = batch * block
    stages = {
        EMBEDDING: embedding_and_norms_cost(config, batch, block, itemsize=itemsize, causal=causal),
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
        HEAD: lm_head_confidence_cost(
            rows, config.hidden_size, config.vocab_size, itemsize=itemsize
        ),
    }
    if not causal:
        stages[REMASK] = remask_scatter_cost(batch, block, token_itemsize=_ID_BYTES)
    return stages


def total(stages: dict[str, Cost]) -> Cost:
    """Cost of the whole step."""
    return sum(stages.values(), Cost(0, 0))


def embedding_and_norms_cost(
    config: ModelConfig, batch: int, block: int, *, itemsize: int, causal: bool = False
) -> Cost:
    """The lookup, 2 L + 1 RMSNorms, all but the first with a residual sum, and L rotations."""
    rows, hidden = batch * block, config.hidden_size
    lookup = Cost(0, rows * (_ID_BYTES + 2 * itemsize * hidden))
    first = residual_norm_cost(rows, hidden, itemsize=itemsize, update=False)
    norm = residual_norm_cost(rows, hidden, itemsize=itemsize)
    rotation = rope_kv_write_cost(
        batch,
        block,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        itemsize=itemsize,
        causal=causal,
    )
    layers = config.num_hidden_layers
    return lookup + first + 2 * layers * norm + layers * rotation


def projections_cost(config: ModelConfig, rows: int, *, itemsize: int) -> Cost:
    """q, k and v, o, gate and up, and down of every layer, and silu(gate) * up before the last."""
    linears = [linear_cost(rows, *shape, itemsize=itemsize) for shape in linear_shapes(config)]
    gate = gated_silu_cost(rows, config.intermediate_size, itemsize=itemsize)
    return config.num_hidden_layers * sum(linears, gate)


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
