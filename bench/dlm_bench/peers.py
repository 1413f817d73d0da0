"""The same work in plain torch, as the engines that serve diffusion language models do it.

A peer takes the same tensors in the same dtype as our op and returns what the op returns, so that
results are compared before anything is timed; it raises if it cannot run here. Which engine does it
so is in each docstring.
"""

import shutil
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from dlm_core import KVCache, Model
from dlm_core.model import RMSNorm
from dlm_kernels import confidence

from .timing import Call

SDPA_BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


# --- confidence: logits [rows, V] -> token [rows], probability [rows]


def softmax_gather(logits: Tensor) -> tuple[Tensor, Tensor]:
    """argmax, full softmax in the logits' dtype, gather (SGLang)."""
    token = logits.argmax(-1)
    return token, logits.softmax(-1).gather(-1, token[:, None])[:, 0]


def softmax_max_fp32(logits: Tensor) -> tuple[Tensor, Tensor]:
    """float32 softmax and its maximum (diffusers; compiled, dInfer)."""
    probability, token = logits.softmax(-1, dtype=torch.float32).max(-1)
    return token, probability


def softmax_gather_fp64(logits: Tensor) -> tuple[Tensor, Tensor]:
    """argmax, float64 softmax, gather (Fast-dLLM)."""
    token = logits.argmax(-1)
    return token, logits.double().softmax(-1).gather(-1, token[:, None])[:, 0]


def confidence_peers(logits: Tensor) -> dict[str, Call]:
    compiled = _compiled(softmax_max_fp32, logits.device)
    return {
        "softmax, gather": lambda: softmax_gather(logits),
        "fp32 softmax, max": lambda: softmax_max_fp32(logits),
        "fp32 softmax, max, compiled": lambda: compiled(logits),
        "fp64 softmax, gather": lambda: softmax_gather_fp64(logits),
    }


def lm_head_peers(hidden: Tensor, head: Tensor) -> dict[str, Call]:
    """The product's logits in memory, and their statistics by our op and as SGLang takes them.

    The product alone is what any of these costs at the least.
    """
    return {
        "product alone": lambda: F.linear(hidden, head),
        "product, confidence": lambda: confidence(F.linear(hidden, head)),
        "product, softmax, gather": lambda: softmax_gather(F.linear(hidden, head)),
    }


def softmax_top2_entropy(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 softmax, its top two, and the sum of -p ln p (LLaDA's margin and entropy rules).

    Returns token, probability, entropy and margin, each [rows].
    """
    p = logits.softmax(-1, dtype=torch.float32)
    top, ids = p.topk(2, dim=-1)
    return ids[:, 0], top[:, 0], torch.special.entr(p).sum(-1), top[:, 0] - top[:, 1]


# --- remask: tokens, candidate, confidence [batch, block] -> tokens after a step, done [batch]


def where_scatter(
    tokens: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    eos_id: int,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """Batched where, argmax, scatter over whole tensors (SGLang)."""
    masked = tokens == mask_id
    ranked = torch.where(masked, confidence, -torch.inf)
    commit = ranked >= threshold
    commit = commit.scatter(1, ranked.argmax(1, keepdim=True), True) & masked
    tokens = torch.where(commit, candidate.to(tokens.dtype), tokens)
    masked = tokens == mask_id
    no_mask_before = masked.cumsum(1) == 0
    return tokens, ~masked.any(1) | ((tokens == eos_id) & no_mask_before).any(1)


# --- attention: q, k, v [batch, block, heads, D], cached context [batch, S, kv_heads, D] -> out


def sdpa(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """SDPA over keys and values that already lie together; no mask, since nothing is hidden."""
    q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))
    return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True).transpose(1, 2)


def attention_peers(
    q: Tensor, k_context: Tensor, v_context: Tensor, k: Tensor, v: Tensor
) -> dict[str, Call]:
    """Every SDPA backend and FlexAttention, over keys laid together beforehand and within the run;
    FlashAttention-3 where it is installed, over keys laid together.

    Engines keep the context in a cache and get the block's K/V from the projections, so without a
    kernel that reads both they concatenate in every layer of every step.
    """

    @cache
    def joined() -> tuple[Tensor, Tensor]:
        return torch.cat([k_context, k], 1), torch.cat([v_context, v], 1)

    def with_and_without(attend: Callable[..., Tensor]) -> tuple[Call, Call]:
        def concatenating() -> Tensor:
            return attend(q, torch.cat([k_context, k], 1), torch.cat([v_context, v], 1))

        return concatenating, lambda: attend(q, *joined())

    ways = {f"SDPA {name}": partial(_sdpa_by, by) for name, by in SDPA_BACKENDS.items()}
    ways["FlexAttention"] = _compiled(_flex, q.device)
    peers = {}
    for name, attend in ways.items():
        peers[f"cat + {name}"], peers[name] = with_and_without(attend)
    peers["FlashAttention-3"] = partial(_flash_attention_3, q, joined)
    return peers


def _flash_attention_3(q: Tensor, joined: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q, *joined(), causal=False)
    return out[0] if isinstance(out, tuple) else out  # some versions also return log-sum-exps


def _sdpa_by(backend: SDPBackend, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return sdpa(q, keys, values)


def _flex(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))
    return flex_attention(q, keys, values, enable_gqa=True).transpose(1, 2)


def _compiled(fn: Callable, device: torch.device) -> Callable:
    """`fn` compiled for its shape, or a refusal: uncompiled it would be another peer."""
    if device.type != "cuda":
        return partial(_refuse, "timed compiled, on a GPU only")
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        return partial(_refuse, "torch.compile needs a C compiler, and none is here")
    # Each shape gets its own code; without the reset the tenth would silently run uncompiled.
    torch.compiler.reset()
    return torch.compile(fn, fullgraph=True, dynamic=False)


def _refuse(why: str, *_: Tensor) -> None:
    raise RuntimeError(why)


# --- whole forwards


def norm(module: RMSNorm, x: Tensor) -> Tensor:
    """RMSNorm by torch's own kernel."""
    return F.rms_norm(x, module.weight.shape, module.weight, module.eps)


def plain_logits(model: Model, cache: KVCache, context: int, tokens: Tensor) -> Tensor:
    """Logits [batch, M, V] of tokens that all see each other, on SDPA with concatenation, and with
    merged weights as engines have.

    context: the length of every request's context.
    """
    query_heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    positions = cache.lengths[:, None].long() + torch.arange(tokens.shape[1], device=tokens.device)
    rotations = model.rotary(positions)
    x = model.encoder.embed_tokens(tokens)
    for layer, keys, values in zip(model.encoder.layers, cache.keys, cache.values, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = F.linear(norm(layer.input_layernorm, x), attention.qkv.weight)
        heads = qkv.unflatten(-1, (-1, model.config.head_dim))
        q, k, v = heads.split([query_heads, kv_heads, kv_heads], 2)
        q, k = rotations.apply(q, k)
        keys, values = torch.cat([keys[:, :context], k], 1), torch.cat([values[:, :context], v], 1)
        x = x + F.linear(sdpa(q, keys, values).flatten(-2), attention.o_proj.weight)
        gate_up = F.linear(norm(layer.post_attention_layernorm, x), mlp.gate_up.weight)
        gate, up = gate_up.chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, mlp.down_proj.weight)
    return F.linear(norm(model.encoder.norm, x), model.diffusion_head.weight)
