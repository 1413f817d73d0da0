"""The Nemotron-Labs Diffusion decoder, with the context in a KV cache.

A forward runs a block of M tokens per request behind that request's context, in one of two ways:

- causal: token i sees the context and tokens up to i, and the block's keys and values are written
  to the cache. Logits at i predict token i + 1. Prefill, decoding, verification and the commit of
  a finished block run so.
- bidirectional: every token sees the context and the whole block, and the cache stays as it is.
  Logits at i predict token i. A denoising step runs so.

Quadratic self-speculation mixes the two in one forward; see `Model.forward`.

Module and parameter names are those of the checkpoint. Nothing here waits for the device.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from dlm_kernels import PartialSums, QuantizedWeight, linear
from dlm_kernels.backend import contents_checked
from dlm_kernels.block_attention import BlockAttentionCall, block_attention_op
from dlm_kernels.cache_layout import CACHE_DTYPE, NO_CACHE, CacheView, DraftGroups, own_positions
from dlm_kernels.error_word import ID_OUT_OF_RANGE, check_error_word, set_where
from dlm_kernels.gated_silu import GatedSiluCall, gated_silu_op
from dlm_kernels.linear import LinearCall, linear_partials_op
from dlm_kernels.residual_norm import ResidualNormCall, residual_norm_op
from dlm_kernels.rope_kv_write import RopeKvWriteCall, rope_kv_write_op
from dlm_kernels.validate import (
    ID_DTYPES,
    MAX_BLOCK,
    MAX_DRAFT_ROWS,
    NUMERICS,
    check_int,
    check_tensor,
)

from .cache import KVCache
from .config import ModelConfig, RopeConfig
from .paged_cache import PagedKVCache

Device = torch.device | str
Factory = Callable[..., nn.Module]  # makes a module of given sizes, on the model's device


def yarn_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians a position of each rotated pair: float32 [head_dim / 2], on the CPU.

    A pair that turns at least beta_fast times over the original context keeps its frequency, one
    that turns at most beta_slow times is slowed by `factor`, with a linear ramp between (YaRN,
    arXiv 2309.00071, section 3.2). The ramp's ends are rounded outward to whole pairs.
    """
    pair = torch.arange(head_dim // 2, dtype=torch.float64)
    kept = rope.rope_theta ** (-2 * pair / head_dim)

    def pair_that_turns(times: float) -> float:
        wavelength = rope.original_max_position_embeddings / times
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low = max(math.floor(pair_that_turns(rope.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(rope.beta_slow)), head_dim - 1)
    slowed = ((pair - low) / max(high - low, 1e-3)).clamp(0, 1)
    return (kept * (1 - slowed) + kept / rope.factor * slowed).float()


class Rotations(NamedTuple):
    """What turns the queries and keys of every layer, by their tokens' positions.

    cos, sin: float32 [batch, M, head_dim / 2]. query_scale: float32 [batch, M], which grows a
        query beyond the original context and is exactly 1 within it.
    """

    cos: Tensor
    sin: Tensor
    query_scale: Tensor

    def apply(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate q and k [batch, M, heads, head_dim] in plain torch, as `rope_kv_write` does."""
        cos, sin = self.cos[:, :, None], self.sin[:, :, None]
        scale = self.query_scale[:, :, None, None]
        return _rotate(q, cos * scale, sin * scale), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Rotary(nn.Module):
    """Rotations of queries and keys at given positions, the same for every layer."""

    def __init__(self, rope: RopeConfig, head_dim: int, *, device: Device) -> None:
        super().__init__()
        frequencies = yarn_frequencies(rope, head_dim).to(device)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.original_context = rope.original_max_position_embeddings
        self.query_growth = rope.llama_4_scaling_beta
        growth = 0.1 * math.log(rope.factor)
        self.magnitude = (1 + rope.mscale * growth) / (1 + rope.mscale_all_dim * growth)

    def forward(self, positions: Tensor) -> Rotations:
        """Rotations at integer `positions` [batch, M]."""
        angle = positions[:, :, None].float() * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        if self.magnitude != 1:
            cos, sin = cos * self.magnitude, sin * self.magnitude
        contexts = (positions // self.original_context).float()
        return Rotations(cos, sin, 1 + self.query_growth * contexts.log1p())


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 whatever the dtype."""

    def __init__(self, size: int, eps: float, *, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.eps = eps

    def forward(
        self, x: Tensor, update: Tensor | PartialSums | None, numerics: str
    ) -> tuple[Tensor, Tensor]:
        """(x + update, its norm); without an update x itself."""
        if numerics != "autograd":
            sums = None if update is None else update.sums
            updated, normed = residual_norm_op(ResidualNormCall(x, sums, self.weight, self.eps))
            return x if update is None else updated, normed
        if update is not None:
            x = x + update
        return x, F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Linear(nn.Module):
    """A matrix product without bias: of `dlm_kernels`, or torch's with gradients.

    quantized: stands in for `weight`, which is then None.
    """

    def __init__(
        self, in_features: int, out_features: int, *, device: Device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quantized: QuantizedWeight | None = None

    def forward(self, x: Tensor, numerics: str) -> Tensor:
        if numerics == "autograd":  # which dlm_kernels has no gradients for
            return F.linear(x, self.weight)
        return linear(x, self.quantized or self.weight, numerics=numerics)

    def in_parts(self, x: Tensor, numerics: str) -> Tensor | PartialSums:
        """The product as the op behind it takes it: in parts, or whole if it has gradients."""
        if numerics == "autograd":
            return self(x, numerics)
        return _in_parts(x, self.quantized or self.weight, numerics)

    def keep(self, quantized: QuantizedWeight) -> None:
        """Let the weight go and keep this in its stead."""
        self.weight, self.quantized = None, quantized


def _in_parts(x: Tensor, weight: Tensor | QuantizedWeight, numerics: str) -> PartialSums:
    """`dlm_kernels.linear_partials` of what needs no check: x is contiguous, and both fit."""
    if isinstance(weight, QuantizedWeight):
        values, scales, kind, _ = weight
    else:
        values, scales, kind = weight, None, "plain"
    sums = linear_partials_op(LinearCall(x, values, scales, kind, numerics))
    return PartialSums(sums, x.dtype)


class MergedLinear:
    """Layers of one input as one product, their outputs one behind the other.

    Their weights are laid one behind the other too, so that the whole is a view of them. It is no
    module: the layers are those of the checkpoint.
    """

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.layers = layers
        self.quantized: QuantizedWeight | None = None
        self._whole = self._laid_together()

    @property
    def weight(self) -> Tensor:
        """[the layers' out_features, in_features]: a view of all of them.

        Layers that were moved or converted since are laid together again.
        """
        at = self._whole.data_ptr()
        for layer in self.layers:
            if layer.weight.data_ptr() != at or layer.weight.dtype != self._whole.dtype:
                self._whole = self._laid_together()
                break
            at += layer.weight.nbytes
        return self._whole

    def _laid_together(self) -> Tensor:
        """All weights in one new storage, of which the layers' parameters then are views."""
        parts = [layer.weight.detach() for layer in self.layers]
        whole = torch.cat(parts)
        for layer, part in zip(self.layers, whole.split([len(p) for p in parts]), strict=True):
            layer.weight.data = part
        return whole

    def in_parts(self, x: Tensor, numerics: str) -> Tensor | PartialSums:
        """The product; see `Linear.in_parts`."""
        if numerics == "autograd":
            return torch.cat([layer(x, numerics) for layer in self.layers], -1)
        return _in_parts(x, self.quantized or self.weight, numerics)

    def keep(self, quantized: QuantizedWeight) -> None:
        """Let the layers' weights go and keep this in their stead."""
        self._whole, self.quantized = None, quantized
        for layer in self.layers:
            layer.weight = None


class CachedAttention(NamedTuple):
    """Attention of a block over the context in a cache and over itself."""

    views: list[CacheView]
    rotations: Rotations
    causal: bool
    groups: DraftGroups
    kv_heads: int
    scale: float
    bound: int  # on the contexts' lengths, which leaves room for what is written
    numerics: str
    error: Tensor | None

    @classmethod
    def over(
        cls,
        cache: KVCache | PagedKVCache,
        rotations: Rotations,
        *,
        causal: bool,
        draft_groups: tuple[int, int] | None,
        numerics: str,
        error: Tensor | None,
    ) -> "CachedAttention":
        """Of a block of as many tokens as there are rotations; arguments are those of a forward."""
        block = rotations.cos.shape[1]
        groups = DraftGroups.of(draft_groups, block)
        _, _, kv_heads, head_dim = cache.keys[0].shape
        room = cache.capacity - own_positions(block, causal, groups)
        if cache.max_length > room:
            raise ValueError(
                f"cache.max_length is {cache.max_length}; it must be at most {room}, for the block"
                f" goes behind it into a capacity of {cache.capacity}"
            )
        how = (causal, groups, kv_heads, head_dim**-0.5, cache.max_length, numerics, error)
        return cls(cache.views, rotations, *how)

    def __call__(self, layer: int, qkv: PartialSums) -> Tensor:
        return self.attended(layer, *self.rotated(layer, qkv))

    # Both run the ops themselves: their arguments fit, for the model and the cache saw to that.

    def rotated(self, layer: int, qkv: PartialSums) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `dlm_kernels.rope_kv_write` returns; causal rows go into the cache."""
        cache, error = (self.views[layer], self.error) if self.causal else (NO_CACHE, None)
        call = RopeKvWriteCall(qkv, *self.rotations, self.kv_heads, cache, self.groups, error)
        q, k, v = rope_kv_write_op(call)
        return (q, k, v) if call.fresh else (q, None, None)

    def attended(self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """What `dlm_kernels.block_attention` returns."""
        how = (self.groups, self.scale, self.numerics, self.bound, False, self.error)
        return block_attention_op(BlockAttentionCall(q, self.views[layer], k, v, *how))[0]


class LayerInputs(NamedTuple):
    """What every layer of one forward takes beside the hidden states.

    attend: (layer, qkv) to the attention's output [batch, M, heads, head_dim]; qkv [batch, M,
        (query heads + 2 kv heads) * head_dim] are queries, keys and values, not yet rotated.
    """

    attend: Callable[[int, Tensor | PartialSums], Tensor]
    numerics: str
    lora: bool


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: ModelConfig, layer: int, linear: Factory) -> None:
        super().__init__()
        self.layer = layer
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = linear(config.hidden_size, query_size)
        self.k_proj = linear(config.hidden_size, kv_size)
        self.v_proj = linear(config.hidden_size, kv_size)
        self.qkv = MergedLinear((self.q_proj, self.k_proj, self.v_proj))
        self.o_proj = linear(query_size, config.hidden_size)
        self.draft_o_proj: Linear | None = None

    def forward(self, x: Tensor, inputs: LayerInputs) -> Tensor | PartialSums:
        attended = inputs.attend(self.layer, self.qkv.in_parts(x, inputs.numerics))
        o_proj = self.draft_o_proj if inputs.lora else self.o_proj
        return o_proj.in_parts(attended.flatten(-2), inputs.numerics)

    def add_draft_update(self, update: Tensor) -> None:
        """Make the projection of draft forwards: o_proj + update [hidden, query_size]."""
        weight = self.o_proj.weight
        merged = (weight.float() + update.to(weight.device, torch.float32)).to(weight.dtype)
        self.draft_o_proj = Linear(*merged.T.shape, device="meta", dtype=merged.dtype)
        self.draft_o_proj.weight = nn.Parameter(merged, requires_grad=False)


class GatedMLP(nn.Module):
    def __init__(self, config: ModelConfig, linear: Factory) -> None:
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.gate_up = MergedLinear((self.gate_proj, self.up_proj))
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, numerics: str) -> Tensor | PartialSums:
        if numerics == "autograd":
            gated = F.silu(self.gate_proj(x, numerics)) * self.up_proj(x, numerics)
        else:
            gated = gated_silu_op(GatedSiluCall(self.gate_up.in_parts(x, numerics)))
        return self.down_proj.in_parts(gated, numerics)


class Layer(nn.Module):
    """A pre-norm decoder layer."""

    def __init__(self, config: ModelConfig, layer: int, linear: Factory, norm: Factory) -> None:
        super().__init__()
        self.input_layernorm = norm(config.hidden_size)
        self.self_attn = Attention(config, layer, linear)
        self.post_attention_layernorm = norm(config.hidden_size)
        self.mlp = GatedMLP(config, linear)

    def forward(
        self, x: Tensor, update: Tensor | PartialSums | None, inputs: LayerInputs
    ) -> tuple[Tensor, Tensor | PartialSums]:
        """The residual stream, and what is still to be added to it: the next norm does both."""
        x, normed = self.input_layernorm(x, update, inputs.numerics)
        update = self.self_attn(normed, inputs)
        x, normed = self.post_attention_layernorm(x, update, inputs.numerics)
        return x, self.mlp(normed, inputs.numerics)


class Encoder(nn.Module):
    """Everything before the head."""

    def __init__(
        self, config: ModelConfig, linear: Factory, norm: Factory, embedding: Factory
    ) -> None:
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, i, linear, norm) for i in range(config.num_hidden_layers)
        )
        self.norm = norm(config.hidden_size)

    def forward(self, tokens: Tensor, inputs: LayerInputs) -> Tensor:
        x, update = self.embed_tokens(tokens), None
        for layer in self.layers:
            x, update = layer(x, update, inputs)
        return self.norm(x, update, inputs.numerics)[1]


class Model(nn.Module):
    """A diffusion language model for inference; see the module's docstring.

    Weights are left uninitialised on `device` in `dtype`: `load_model` and `random_model` fill
    them.

    quantization: the kind of weights in few bits that its layers keep; see `quantize_model`.
    """

    quantization: str | None = None

    def __init__(self, config: ModelConfig, *, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        where = {"device": device, "dtype": dtype}
        linear = partial(Linear, **where)
        norm = partial(RMSNorm, eps=config.rms_norm_eps, **where)
        embedding = partial(skip_init, nn.Embedding, **where)
        self.encoder = Encoder(config, linear, norm, embedding)
        self.diffusion_head = linear(config.hidden_size, config.vocab_size)
        self.rotary = Rotary(config.rope, config.head_dim, device=device)
        self.requires_grad_(False)

    def _apply(self, *args, **kwargs) -> "Model":
        """What `to`, `cuda`, `half` and their like do."""
        if self.quantization is not None:
            raise TypeError(
                f"the model is in {self.quantization} and stays where and as it is; load it with"
                " the device and dtype that it is to have"
            )
        return super()._apply(*args, **kwargs)

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """As of any module; TypeError for a quantised model, which has no names for its weights."""
        if self.quantization is not None:
            raise TypeError(f"the model is in {self.quantization}; it has no state_dict")
        return super().state_dict(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        return self.diffusion_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.diffusion_head.weight.dtype

    @property
    def has_draft_lora(self) -> bool:
        return self.encoder.layers[0].self_attn.draft_o_proj is not None

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | PagedKVCache,
        *,
        causal: bool,
        draft_groups: tuple[int, int] | None = None,
        numerics: str = "batch_invariant",
        lora: bool = False,
        error: Tensor | None = None,
    ) -> Tensor:
        """Hidden states behind the final norm of one block per request.

        Args:
            tokens: int32 or int64 [batch, M], 1 <= M <= 256; token i of request b stands at
                position cache.lengths[b] + i.
            cache: the context. A causal forward writes the block's keys and values behind it and
                leaves `lengths` to the caller; a bidirectional one changes nothing.
            causal: see the module's docstring.
            draft_groups: (n, length), with `causal`: the block's last n * length tokens are the
                groups of quadratic self-speculation, each a token and length - 1 masks that draft
                what follows it; see `dlm_kernels.block_attention`. The first token of each group
                stands behind that of the group before, its masks behind it, and only the tokens
                outside the masks are written to the cache. M may then be up to 512.
            numerics: "batch_invariant": a row's bits depend on its own tokens and context alone,
                not on its batch nor, if causal, on the block it is computed in (on a CPU: at a
                fixed number of threads). "fast": kernels may choose by shape.
            lora: run the projections that hold the draft LoRA; needs `has_draft_lora`.
            error: device error word to set, int32 [1]. An id outside the vocabulary is clamped and
                sets it; under DLM_CHECK=1 it is a ValueError.

        Returns:
            [batch, M, hidden_size] in the model's dtype; `logits` turns them into logits.

        Raises:
            ValueError: a shape does not fit, a causal block does not fit into the cache, or there
                is no draft LoRA.
        """
        check_tensor(
            "tokens", tokens, shape=(cache.batch, "M"), dtypes=ID_DTYPES, device=self.device
        )
        block = tokens.shape[1]
        longest = MAX_BLOCK if draft_groups is None else MAX_DRAFT_ROWS
        check_int("M, the length of tokens,", block, 1, longest)
        self._check_cache(cache)
        if numerics not in NUMERICS:
            raise ValueError(f"numerics is {numerics!r}; it must be one of {', '.join(NUMERICS)}")
        check_error_word(error, self.device)
        if lora and not self.has_draft_lora:
            raise ValueError("lora is True; the model's checkpoint held no draft LoRA")
        row, written = torch.arange(block, device=tokens.device), block
        if draft_groups is not None:
            if not causal:
                raise ValueError(f"draft_groups is {draft_groups}; it needs causal=True")
            n, length = draft_groups
            row, written = _grouped_rows(row, n, length), block - n * (length - 1)
        if causal:
            cache.check_room(written)
        ids = self._in_vocabulary(tokens, error)
        rotations = self.rotary(cache.lengths[:, None].long() + row)
        how = {"causal": causal, "draft_groups": draft_groups, "numerics": numerics}
        attend = CachedAttention.over(cache, rotations, **how, error=error)
        return self.encoder(ids, LayerInputs(attend, numerics, lora))

    def _check_cache(self, cache: KVCache | PagedKVCache) -> None:
        """Raise unless a cache was made for such a model: its layers do not look again."""
        if cache.dtype not in (self.dtype, CACHE_DTYPE):
            raise TypeError(
                f"cache holds {cache.dtype}; it must hold {self.dtype}, as the model, or"
                " float8_e4m3fn"
            )
        config, keys = self.config, cache.keys
        ours = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        if (theirs := (len(keys), *keys[0].shape[2:])) != ours:
            raise ValueError(
                f"cache has (layers, KV heads, head_dim) {theirs}; the model has {ours}"
            )
        if keys[0].device != self.device:
            raise ValueError(f"cache is on {keys[0].device}; it must be on {self.device}")

    def _in_vocabulary(self, tokens: Tensor, error: Tensor | None) -> Tensor:
        vocab = self.config.vocab_size
        ids = tokens.clamp(0, vocab - 1)
        if contents_checked() and not torch.equal(ids, tokens):
            outside = int(tokens[ids != tokens][0])
            raise ValueError(f"tokens holds {outside}; ids must be in [0, {vocab})")
        set_where(error, ids != tokens, ID_OUT_OF_RANGE)
        return ids

    def logits(self, hidden: Tensor, numerics: str = "batch_invariant") -> Tensor:
        """Logits [..., vocab_size] of hidden states [..., hidden_size], in the model's dtype."""
        return self.diffusion_head(hidden, numerics)


def _grouped_rows(row: Tensor, n: int, length: int) -> Tensor:
    """Each row's place behind the context [M], in a block that ends in `n` groups of `length`."""
    lead = len(row) - n * length
    in_groups = (row - lead).clamp(min=0)
    return torch.where(row < lead, row, lead + in_groups // length + in_groups % length)
