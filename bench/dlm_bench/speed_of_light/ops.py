"""Measurements of single ops: attention, confidence, the LM head, remasking, the fp8 cache."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_kernels import (
    BlockState,
    Confidence,
    Rule,
    block_attention,
    confidence,
    launch,
    lm_head_confidence,
    remask_scatter,
)

from ..cases import (
    THRESHOLD,
    TOLERANCE,
    attention_case,
    confidence_case,
    difference,
    remask_case,
    restore,
)
from ..run import timed_peer
from .device import Measured, UnderTest

NUMERICS = ("fast", "invariant")
FP8_LARGEST = 448.0

# Passes over the logits of a full softmax and a gather: argmax and softmax read them, softmax
# writes as much again. Ours reads them once.
PASSES_OF_SOFTMAX_GATHER = 3

# Rows of logits in memory at a time where the product is torch's own. Each chunk reads the head's
# weight again, and under a few hundred rows that takes longer than multiplying.
CHUNK = 512


def measure_attention(on: UnderTest, batch: int, context: int) -> Measured:
    """One layer, bidirectional; peers attend over keys that already lie together."""
    work = attention_case(batch, context, on.sizes.dtype, config=on.sizes.config).build(on.device)
    runners = {name: run for name, run in work.peers.items() if not name.startswith("cat + ")}
    if batch > 1:
        runners["SDPA math"] = "it keeps every score, and copies keys for every query head"
    ours = {"fast": runners.pop("ours, fast numerics"), "invariant": work.run}
    timings = {name: on.clock(run) for name, run in ours.items()}
    result = work.view(work.run())
    tolerance = TOLERANCE[on.sizes.dtype]
    peers = [
        timed_peer(on.clock, name, run, work.view, result, tolerance)
        for name, run in runners.items()
    ]
    return Measured(timings, peers, {})


def measure_fp8_attention(on: UnderTest, batch: int) -> Measured:
    """One layer over an fp8 cache, and over the cache it was made from."""
    config, context = on.sizes.config, on.sizes.fp8_context
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    block, dim = config.block_size, config.head_dim
    q = on.randn(batch, block, heads, dim)
    k, v = (on.randn(batch, block, kv_heads, dim) for _ in range(2))
    caches = [on.randn(batch, context, kv_heads, dim) for _ in range(2)]
    lengths = torch.full((batch,), context, dtype=torch.int32, device=on.device)
    # Heads one after the other: a batch of long contexts in float32 would not fit beside the rest.
    scales = [
        torch.stack([cache[:, :, h].abs().amax().float() for h in range(kv_heads)]) / FP8_LARGEST
        for cache in caches
    ]
    k8, v8 = (_fp8(cache, scale) for cache, scale in zip(caches, scales, strict=True))

    def attend(keys: Tensor, values: Tensor, numerics: str, **options) -> Tensor:
        return block_attention(q, keys, values, lengths, k, v, numerics=numerics, **options)

    of_scales = {"k_scale": scales[0], "v_scale": scales[1]}
    timings = {each: on.clock(partial(attend, k8, v8, each, **of_scales)) for each in NUMERICS}
    plain = on.clock(partial(attend, *caches, "fast"))
    apart = difference(
        (attend(*caches, "fast"),),
        (attend(k8, v8, "fast", **of_scales),),
    )
    figures = {
        "16-bit cache over ours": plain.median / timings["fast"].median,
        "largest error, of the largest output": apart,
    }
    return Measured(timings, [], figures)


def _fp8(cache: Tensor, scale: Tensor) -> Tensor:
    """Request by request: what is divided is in float32."""
    out = torch.empty_like(cache, dtype=torch.float8_e4m3fn)
    for theirs, mine in zip(cache, out, strict=True):
        scaled = theirs.float() / scale[:, None]
        mine.copy_(scaled.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn))
    return out


def measure_confidence(on: UnderTest, batch: int, dtype: torch.dtype) -> Measured:
    """Token and probability of a step's logits; the peer is SGLang's, in the same dtype."""
    case = confidence_case(batch, dtype, config=on.sizes.config)
    work = case.build(on.device)
    timing = on.clock(work.run)
    name = "softmax, gather"
    result = work.view(work.run())
    peer = timed_peer(on.clock, name, work.peers[name], work.view, result, TOLERANCE[dtype])
    read_seconds = case.cost.bytes / on.ceilings.read.best
    figures = {
        "of read bandwidth": read_seconds / timing.median,
        "over launch + floor": timing.median
        / (on.launch.median + on.ceilings.roof(_name(dtype)).seconds(case.cost)),
    }
    if peer.timing:
        ratio = peer.timing.median / timing.median
        figures |= {name: ratio, "of the ratio of bytes": ratio / PASSES_OF_SOFTMAX_GATHER}
    return Measured({"both": timing}, [peer], figures)


def measure_head(on: UnderTest, rows: int) -> Measured:
    """LM head and confidence: as the launch table decides, and both paths, beside torch's product.

    The kernel that keeps logits in registers is `invariant`; the other path is torch's product in
    chunks of the vocabulary. Chunks of rows are the peer.
    """
    hidden, weight = _head_inputs(on, rows)
    table = launch.LM_HEAD[launch.arch_of(on.device)]
    entry = table[weight.element_size()]

    def ours(numerics: str) -> Confidence:
        return lm_head_confidence(hidden, weight, numerics=numerics)

    def in_chunks() -> list[Confidence]:
        return [confidence(F.linear(chunk, weight)) for chunk in hidden.split(CHUNK)]

    timings = {numerics: on.clock(partial(ours, numerics)) for numerics in NUMERICS}
    table[weight.element_size()] = replace(entry, fused_rows=0)
    try:
        by_library = on.clock(partial(ours, "fast"))
    finally:
        table[weight.element_size()] = entry
    product = on.clock(lambda: F.linear(hidden, weight))
    chunks = timed_peer(
        on.clock,
        "product, confidence in row chunks",
        in_chunks,
        lambda result: (torch.cat([part.probability for part in result]),),
        (ours("fast").probability,),
        TOLERANCE[on.sizes.dtype],
    )
    figures = {
        "over the product alone": timings["fast"].median / product.median,
        "one kernel, over the product alone": timings["invariant"].median / product.median,
        "vocabulary chunks, over the product alone": by_library.median / product.median,
        "product alone, us": 1e6 * product.median,
    }
    if chunks.timing:
        figures["row chunks, over the product alone"] = chunks.timing.median / product.median
    return Measured(timings, [chunks], figures)


def measure_head_memory(on: UnderTest) -> Measured:
    """What LM head, confidence and remasking allocate, as a share of one float32 logits tensor."""
    config, batch = on.sizes.config, on.sizes.many
    shape = batch, config.block_size
    hidden, weight = _head_inputs(on, batch * config.block_size)
    tokens = torch.full(shape, config.mask_token_id, dtype=torch.int32, device=on.device)
    state = BlockState.start(tokens, config.mask_token_id)
    start = [each.clone() for each in state]
    banned = tokens.new_tensor([config.mask_token_id])

    def run(numerics: str) -> None:
        restore(state, start)
        stats = lm_head_confidence(
            hidden,
            weight,
            tokens=state.tokens.flatten(),
            mask_id=config.mask_token_id,
            banned=banned,
            numerics=numerics,
        )
        remask_scatter(
            state,
            stats.token.view(shape),
            stats.probability.view(shape),
            Rule(threshold=THRESHOLD),
            mask_id=config.mask_token_id,
            eos_id=config.eos_token_id,
        )

    figures = {}
    for numerics in NUMERICS:
        peak = on.peak_bytes(partial(run, numerics))
        if peak is not None:
            logits = 4.0 * len(hidden) * config.vocab_size
            figures[f"{numerics}, of float32 logits"] = peak / logits
    return Measured({}, [], figures)


def measure_remask(on: UnderTest, batch: int) -> Measured:
    """One step's choice on half-filled blocks, beside SGLang's chain of torch ops."""
    work = remask_case(batch, on.sizes.dtype, config=on.sizes.config).build(on.device)
    timing = on.clock(work.run, reset=work.reset)
    work.reset()
    result = tuple(each.clone() for each in work.view(work.run()))
    name = "where, argmax, scatter"
    peer = timed_peer(on.clock, name, work.peers[name], work.view, result, 0.0)
    figures = {"us": 1e6 * timing.median, "us, of them an empty kernel": 1e6 * on.launch.median}
    return Measured({"both": timing}, [peer], figures)


def _head_inputs(on: UnderTest, rows: int) -> tuple[Tensor, Tensor]:
    """Hidden states and a head's weight that give logits of order one."""
    config = on.sizes.config
    weight = on.randn(config.vocab_size, config.hidden_size).mul_(config.hidden_size**-0.5)
    return on.randn(rows, config.hidden_size), weight


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
