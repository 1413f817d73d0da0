"""What our ops do in a forward: their calls, the bytes they move and the FLOPs they take.

The compulsory cost is of the algorithm; this is what the time of our ops grows by. It is counted
for a call as for the calls that rates are taken from, so what grows alike is left out: inputs and
outputs of products, and their partial sums. It has what our ops add:

- products are padded, on the torch backend to groups of 32 rows, on Triton to tiles of 16;
- torch's LM head writes logits, as many rows at a time as 128 MiB hold, and reads them again;
- torch's attention takes one request after the other, copies its keys and values into tiles of 64
  keys, and multiplies each with each group of 16 positions; the masks of a draft group are a tile
  of their own. Its scores pass through memory _SCORE_PASSES times, and where there are so few that
  the calls hold them they are counted as _LEAST_SCORES.
"""

from dataclasses import replace
from typing import NamedTuple

from dlm_core.config import ModelConfig

from .forward import DENOISE, Forward
from .step_cost import (
    ATTENTION,
    EMBEDDING,
    HEAD,
    PROJECTIONS,
    REMASK,
    head_rows,
    itemsize_of,
    linear_shapes,
    shard_of,
    step_cost,
    weight_bytes,
)

# Of the torch backend; a test holds them to its own.
LINEAR_ROWS, TILE_ROWS, TILE_KEYS, HEAD_LOGITS = 32, 16, 64, 2**25

# Written by the product; read and written by mask, shift and exponential; read by maximum, sum and
# the second product.
_SCORE_PASSES = 1 + 2 * 3 + 3
_LEAST_SCORES = 2**13
# What rotates and writes to the cache, as causal forwards do.
WRITING = "rope_kv_write cached"
# What torch's attention takes beside the first request of a call.
FURTHER, GROUP = "request", "group"


class Work(NamedTuple):
    """Calls of one op, and the bytes and FLOPs of each; of remask_scatter pairs of positions
    stand for bytes.
    """

    op: str
    calls: int
    bytes: float
    flops: float


def linear_work(op: str, calls: int, rows: int, n_bytes: float, size: int, backend: str) -> Work:
    """Products of `rows` rows by weights of `size` elements in `n_bytes` bytes."""
    tile = LINEAR_ROWS if backend == "torch" else 16
    return Work(op, calls, n_bytes, 2.0 * -(-rows // tile) * tile * size)


def attention_work(
    op: str, calls: int, forward: Forward, config: ModelConfig, backend: str
) -> list[Work]:
    """Attention of a batch by heads as `config` has them; on torch the first request of each call,
    the further ones, and the draft groups of all.
    """
    itemsize = itemsize_of(forward.dtype)
    kv_heads, head_dim = config.num_key_value_heads, config.head_dim
    if backend == "triton":
        whole = step_cost(config, replace(forward, shards=1))[ATTENTION]
        cost = whole * (1 / config.num_hidden_layers)
        return [Work(op, calls, cost.bytes, cost.flops)]
    groups = -(-forward.block // TILE_ROWS)
    seen = forward.context + (forward.k if forward.draft_groups else forward.block)
    tiles = -(-seen // TILE_KEYS)
    visits = tiles * groups
    if forward.draft_groups:  # a tile for the masks of each, which few rows see
        tiles, visits = tiles + forward.k, visits + forward.k + groups
    group = config.num_attention_heads // kv_heads
    scores = kv_heads * TILE_ROWS * group * TILE_KEYS
    product = 2.0 * scores * head_dim
    copied = 2 * tiles * TILE_KEYS * kv_heads * head_dim * (itemsize + 4)
    passed = 4.0 * _SCORE_PASSES * visits * max(scores, _LEAST_SCORES)
    of_request = (copied + passed, 2 * visits * product)
    found = [Work(op, calls, *of_request)]
    if forward.batch > 1:
        found.append(Work(f"{op} {FURTHER}", calls * (forward.batch - 1), *of_request))
    if forward.draft_groups:
        found.append(Work(f"{op} {GROUP}", calls * forward.batch * forward.k, 0.0, 0.0))
    return found


def step_work(config: ModelConfig, forward: Forward, backend: str) -> dict[str, list[Work]]:
    """The work of each stage of a forward, but of "all-reduce"."""
    config = shard_of(config, forward.shards)
    layers, rows, itemsize = config.num_hidden_layers, forward.rows, itemsize_of(forward.dtype)
    hidden, kv = config.hidden_size, 2 * config.num_key_value_heads * config.head_dim
    width = config.num_attention_heads * config.head_dim + kv
    of_weights = f"linear {forward.weights}" if forward.weights else "linear"
    of_attention = "block_attention float8" if forward.float8_cache else "block_attention"
    stages = {
        EMBEDDING: [
            Work("lookup", 1, 2.0 * itemsize * rows * hidden, 0.0),
            Work("residual_norm", 2 * layers + 1, 4.0 * itemsize * rows * hidden, 0.0),
            Work(
                WRITING if forward.causal else "rope_kv_write",
                layers,
                2.0 * itemsize * rows * width,
                0.0,
            ),
        ],
        PROJECTIONS: [
            linear_work(
                of_weights,
                layers,
                rows,
                weight_bytes(*shape, forward, itemsize),
                shape[0] * shape[1],
                backend,
            )
            for shape in linear_shapes(config)
        ]
        + [Work("gated_silu", layers, 3.0 * itemsize * rows * config.intermediate_size, 0.0)],
        ATTENTION: attention_work(of_attention, layers, forward, config, backend),
        HEAD: [
            work for n in head_rows(forward) for work in _head_work(config, n, itemsize, backend)
        ],
    }
    if forward.kind == DENOISE:
        pairs = float(forward.batch * forward.block**2)
        stages[REMASK] = [Work("remask_scatter", 1, pairs, 0.0)]
    return stages


def _head_work(config: ModelConfig, rows: int, itemsize: int, backend: str) -> list[Work]:
    size = config.hidden_size * config.vocab_size
    if backend == "triton":
        return [linear_work("lm_head_confidence", 1, rows, itemsize * size, size, backend)]
    at_once = max(1, HEAD_LOGITS // config.vocab_size // LINEAR_ROWS) * LINEAR_ROWS
    calls = -(-rows // at_once)
    product = linear_work("linear", 1, rows, float(calls * itemsize * size), size, backend)
    return [product, Work("confidence", calls, itemsize * rows * config.vocab_size / calls, 0.0)]
