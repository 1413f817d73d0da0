r"""Peak memory of a forward by part, predicted from how the model and its kernels allocate.

With R = batch x block rows, hidden H, intermediate I, query and KV widths Q and K, head_dim D, L
layers, vocabulary V, and s bytes an element:

    weights      embedding s V H, head s V H, norms s (2 L + 1) H, and L times the projections,
                 quantised or not; for drafts and their verification also the draft's own o_proj,
                 s L Q H, into which a checkpoint's LoRA is merged
    KV           2 L K batch x pages of 64 tokens, in s bytes or one; float8 has 8 L kv_heads of
                 scales
    activations  the most that lives at once within a layer, and 4 R (D + 1) of rotations; or, if
                 the head takes more, its input s R H and 24 R a chunk of statistics
    logits       at the head: none of greedy steps, whose kernel keeps them in registers; of steps
                 that sample R V (s + 45): the logits, and sorting and filtering them

Layers and head do not hold theirs at the same time, so parts are those of the moment of the peak.

A product of S segments P(n) is left in parts, 4 S R n bytes; of one segment, or where rows alone
fill the chip, s R n. All of a layer the residual stream before it and the update still to be added,
s R H + P(H), stay alive, for its caller holds them. To those come, one after the other (what lies
between takes less, as I is no less than H and Q - H):

    attention    residual and norm 2 s R H; qkv P(Q + 2 K); queries and output 2 s R Q, in
                 bidirectional forwards keys and values 2 s R K; partial results of its splits
    gated MLP    residual and norm 2 s R H; o_proj's P(H); gate and up P(2 I); s R I
    its output   residual and norm 2 s R H; o_proj's P(H); s R I; down's P(H)

So with the Triton kernels, the launch table of sm_90 and numerics "invariant". Plain torch has
whole products, of a multiple of 32 rows; 8 R I of temporaries beside gate and up; of one request at
a time its keys and values, again in tiles of float32, and the scores of 16 rows, twice; and at the
head s + 4 bytes for each of up to 2^25 logits. What CUDA itself takes, and what lies unused between
allocations, comes on top.
"""

from dataclasses import dataclass

from dlm_core.config import ModelConfig
from dlm_kernels import launch
from dlm_kernels.linear import segment_length

from .forward import DRAFT, VERIFY, Forward
from .step_cost import head_rows, itemsize_of, linear_shapes, shard_of, weight_bytes

PAGE_SIZE = 64  # tokens, as a PagePool has them by default

_ARCH, _PROCESSORS = "sm_90", 132
_TORCH_LOGITS = 2**25  # at a time
_SAMPLING_BYTES = 45  # a logit, of `dlm_core.decoding.sampling.distribution`


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the moment of the peak, by part; see the module's docstring."""

    weights: int
    kv: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations + self.logits


def peak_memory(
    config: ModelConfig,
    forward: Forward,
    cached: int,
    *,
    sampled: bool = False,
    backend: str = "triton",
) -> Memory:
    """The most that a forward and what it stands on take at once, on each of its devices.

    Args:
        cached: tokens that every request has pages for: those of its context, and what the forward
            writes or is still to come.
        sampled: tokens are drawn at a temperature, which looks at whole rows of logits.
        backend: "triton" or "torch", whose ops do the work.

    Raises:
        ValueError: cached is less than the forward's context, backend is another one, or shards do
            not divide the model.
    """
    if cached < forward.context:
        raise ValueError(
            f"cached is {cached}; it must be at least the context, which is {forward.context}"
        )
    if backend not in ("triton", "torch"):
        raise ValueError(f"backend is {backend!r}; it must be triton or torch")
    shard = shard_of(config, forward.shards)
    layers = _triton_layer if backend == "triton" else _torch_layer
    moments = [(_handed_over(shard, forward, backend) + layers(shard, forward), 0)]
    moments.append(_head(shard, forward, backend, sampled))
    return Memory(
        _weights(config, shard, forward), _kv(shard, forward, cached), *max(moments, key=sum)
    )


def _weights(config: ModelConfig, shard: ModelConfig, forward: Forward) -> int:
    itemsize, hidden = itemsize_of(forward.dtype), config.hidden_size
    shapes = linear_shapes(shard)
    if forward.kind in (DRAFT, VERIFY):
        shapes.append((shard.num_attention_heads * shard.head_dim, hidden))
    projections = sum(weight_bytes(*each, forward, itemsize) for each in shapes)
    norms = (2 * config.num_hidden_layers + 1) * hidden
    tables = (config.vocab_size + shard.vocab_size) * hidden
    return config.num_hidden_layers * projections + itemsize * (norms + tables)


def _kv(shard: ModelConfig, forward: Forward, cached: int) -> int:
    layers, heads = shard.num_hidden_layers, shard.num_key_value_heads
    itemsize = 1 if forward.float8_cache else itemsize_of(forward.dtype)
    tokens = forward.batch * -(-cached // PAGE_SIZE) * PAGE_SIZE
    scales = 2 * layers * heads * 4 if forward.float8_cache else 0
    return 2 * layers * tokens * heads * shard.head_dim * itemsize + scales


def _stream(shard: ModelConfig, forward: Forward) -> int:
    """Bytes of a hidden state for each row."""
    return itemsize_of(forward.dtype) * forward.rows * shard.hidden_size


def _heads(shard: ModelConfig, forward: Forward) -> tuple[int, int]:
    """Bytes of the queries, as of what attention makes of them, and of keys and values handed to
    attention: causal forwards leave them in the cache.
    """
    each = itemsize_of(forward.dtype) * forward.rows * shard.head_dim
    fresh = 0 if forward.causal else 2 * each * shard.num_key_value_heads
    return each * shard.num_attention_heads, fresh


def _handed_over(shard: ModelConfig, forward: Forward, backend: str) -> int:
    """Bytes that outlive every layer: rotations, and the residual stream and its update."""
    update = 0
    if shard.num_hidden_layers > 1:
        update = _product(*linear_shapes(shard)[-1], forward, backend)
    return 4 * forward.rows * (shard.head_dim + 1) + _stream(shard, forward) + update


def _triton_layer(shard: ModelConfig, forward: Forward) -> int:
    stream, (attended, fresh) = _stream(shard, forward), _heads(shard, forward)
    gated = itemsize_of(forward.dtype) * forward.rows * shard.intermediate_size
    qkv, output, gate_up, down = (
        _product(*each, forward, "triton") for each in linear_shapes(shard)
    )
    return max(
        2 * stream + qkv + 2 * attended + fresh + _split_results(shard, forward),
        2 * stream + output + gate_up + gated,
        2 * stream + output + gated + down,
    )


def _torch_layer(shard: ModelConfig, forward: Forward) -> int:
    stream, (attended, fresh) = _stream(shard, forward), _heads(shard, forward)
    qkv, output, gate_up, _ = (_product(*each, forward, "torch") for each in linear_shapes(shard))
    itemsize, heads = itemsize_of(forward.dtype), shard.num_attention_heads
    # Of one request: its keys and values, once more in tiles, the scores of 16 rows, the queries.
    seen = forward.context + (forward.k if forward.draft_groups else forward.block)
    tiled = -(-seen // 64) * 64 + (64 * forward.k if forward.draft_groups else 0)
    kv_size = shard.num_key_value_heads * shard.head_dim
    copies = 2 * kv_size * (seen * (4 if forward.float8_cache else itemsize) + 4 * tiled)
    scores = (2 if forward.block > 16 else 1) * 4 * 16 * heads * tiled
    padded = -(-forward.block // 16) * 16
    queries = 4 * heads * shard.head_dim * (padded + 2 * 16) + padded * tiled
    return max(
        2 * stream + qkv + 2 * attended + fresh + copies + scores + queries,
        2 * stream + output + gate_up + 8 * forward.rows * shard.intermediate_size,
    )


def _head(shard: ModelConfig, forward: Forward, backend: str, sampled: bool) -> tuple[int, int]:
    """Bytes of the head's activations and of its logits."""
    itemsize, rows, vocab = itemsize_of(forward.dtype), max(head_rows(forward)), shard.vocab_size
    stream = _stream(shard, forward)
    if sampled:
        return stream, rows * vocab * (itemsize + _SAMPLING_BYTES)
    if backend == "torch":
        at_once = max(1, _TORCH_LOGITS // vocab // 32) * 32
        rows = min(rows, at_once)
        return stream, vocab * (itemsize * -(-rows // 32) * 32 + 4 * rows)
    return stream + 24 * rows * -(-vocab // launch.LM_HEAD[_ARCH][itemsize].chunk), 0


def _product(n_in: int, n_out: int, forward: Forward, backend: str) -> int:
    """Bytes of a product as its op leaves it; `dlm_kernels.linear` decides so."""
    itemsize, rows = itemsize_of(forward.dtype), forward.rows
    if backend == "torch":
        return -(-rows // 32) * 32 * n_out * itemsize
    quantised = forward.weights is not None and itemsize == 2
    config = launch.LINEAR[_ARCH][forward.weights if quantised else itemsize]
    segments = -(-n_in // segment_length(n_in, n_out, config))
    tile = launch.tile_serving(config.tiles, rows)
    if tile is config.tiles[max(config.tiles)]:
        row_tiles = -(-rows // min(tile.block_r, config.walking_rows))
        if row_tiles * -(-n_out // tile.block_o) >= config.whole_programs:
            segments = 1
    return rows * n_out * (itemsize if segments == 1 else 4 * segments)


def _split_results(shard: ModelConfig, forward: Forward) -> int:
    """Bytes that the splits of attention leave to be merged; `dlm_kernels.block_attention` decides.

    Nothing where there is one split, or one program walks all of them.
    """
    itemsize = itemsize_of(forward.dtype)
    config = launch.smallest_serving(launch.BLOCK_ATTENTION[_ARCH][itemsize], shard.head_dim)
    own = 0 if not forward.causal else forward.k if forward.draft_groups else forward.block
    longest = forward.context + own
    near = min(longest, config.far_from)
    splits = -(-near // config.split_keys) - (near - longest) // config.far_split_keys
    if splits <= 1:
        return 0
    group = shard.num_attention_heads // shard.num_key_value_heads
    rows = min(config.block_m, forward.block * group)
    tiles = -(-forward.block * group // config.block_m)
    tiles *= forward.batch * shard.num_key_value_heads
    if config.walks and not (forward.draft_groups and forward.float8_cache):
        cached = longest / splits * (1 if forward.float8_cache else itemsize)
        if -(-tiles // _PROCESSORS) * _PROCESSORS <= tiles * (1 + 4 * rows / cached):
            return 0
    return splits * forward.rows * shard.num_attention_heads * 4 * (shard.head_dim + 2)
