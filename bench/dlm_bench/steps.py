"""A whole denoising step of a model, and each of its stages alone, through the model's own modules.

A stage runs over all layers, so that weights and context come from memory as they do in a step.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_core import PRESETS, KVCache, Model
from dlm_core.decoding.denoise import Needs, denoise_step
from dlm_core.decoding.prefill import extend
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.sampling import Sampling, SamplingTable
from dlm_kernels import (
    BlockState,
    Confidence,
    Rule,
    RuleTable,
    block_attention,
    raise_on_error,
    remask_scatter,
    rope_kv_write,
)
from dlm_roofline.step_cost import ATTENTION, EMBEDDING, HEAD, PROJECTIONS, REMASK

from .cases import THRESHOLD, restore
from .peers import norm, plain_step, sdpa, softmax_gather, where_scatter

# The published shape made small enough for 2 cores: 188 M parameters, the same vocabulary, block
# and query heads a KV head.
HOST_MODEL = replace(
    PRESETS["8b"],
    hidden_size=512,
    intermediate_size=1792,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    torch_dtype="float32",
)

# Batch, block of the steps. Each device's steps lie on both sides of its ridge. The first is the
# step that a bench cut short should have.
STEPS = {
    "cuda": [(b, 32) for b in (1, 64, 8, 4, 16, 2, 32)],
    "cpu": [(1, 32), (4, 32), (1, 4), (8, 32)],
}
CONTEXT = {"cuda": 1024, "cpu": 512}


class StepBench:
    """One denoising step of `batch` blocks behind a random context, ready to run and run again.

    Every position but the first of each block is a mask, so that each row of logits counts.
    """

    def __init__(self, model: Model, batch: int, block: int, context: int) -> None:
        self.model, self.context, self.block = model, context, block
        config, device, dtype = model.config, model.device, model.dtype
        self.cache = KVCache(config, batch, context + 1, device=device, dtype=dtype)
        for tensor in (*self.cache.keys, *self.cache.values):
            tensor.normal_()
        self.cache.advance(context)

        tokens = torch.full((batch, block), config.mask_token_id, dtype=torch.int32, device=device)
        tokens[:, 0] = config.bos_token_id
        self.state = BlockState.start(tokens, config.mask_token_id)
        self._start = [each.clone() for each in self.state]
        self.runner = Runner.of(model)
        rule, sampling = Rule(threshold=THRESHOLD), Sampling()
        self.rules = RuleTable.pack([rule] * batch, device)
        self.table = SamplingTable.pack([sampling] * batch, device)
        self.needs = Needs.of(rule, sampling)

    def step(self, numerics: str = "invariant") -> Tensor:
        """One step of ours; returns the tokens [batch, block]."""
        runner = replace(self.runner, numerics=numerics)
        denoise_step(runner, self.cache, self.state, self.needs, self.rules, self.table)
        return self.state.tokens

    def peer(self) -> Tensor:
        """The same step in plain torch."""
        tokens, _ = plain_step(
            self.model, self.cache, self.context, self._start[0], threshold=THRESHOLD
        )
        return tokens

    def decode(self) -> Tensor:
        """One AR decoding step of the same model and batch, behind the same context."""
        token = self.state.tokens[:, :1]
        return extend(self.runner, self.cache, token, None)

    def reset(self) -> None:
        """Back to before the first step."""
        restore(self.state, self._start)
        self.cache.lengths.fill_(self.context)
        self.cache.max_length = self.context

    def check(self) -> None:
        """Raise if a step so far has set the error word."""
        raise_on_error(self.runner.error)

    def stages(self) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """Each stage by name, and its plain-torch peer, on inputs like those within a step."""
        model, cache, state = self.model, self.cache, self.state
        encoder, attentions = model.encoder, [layer.self_attn for layer in model.encoder.layers]
        positions = cache.lengths[:, None].long() + torch.arange(self.block, device=model.device)
        error = self.runner.error
        ours, kv_heads = "invariant", model.config.num_key_value_heads
        x = norm(encoder.norm, torch.randn_like(encoder.embed_tokens(state.tokens)))
        qkv = attentions[0].qkv.in_parts(x, ours)
        q, k, v = rope_kv_write(qkv, *model.rotary(positions), kv_heads=kv_heads)
        attended = torch.randn_like(q).flatten(-2)
        of_attention = attentions[0].o_proj.in_parts(attended, ours)
        of_mlp = encoder.layers[0].mlp(x, ours)
        whole_update = of_mlp.total()

        def embedding_and_norms() -> Tensor:
            hidden, update = encoder.embed_tokens(state.tokens), None
            rotations = model.rotary(positions)
            for layer in encoder.layers:
                hidden, _ = layer.input_layernorm(hidden, update, ours)
                rope_kv_write(qkv, *rotations, kv_heads=kv_heads)
                hidden, _ = layer.post_attention_layernorm(hidden, of_attention, ours)
                update = of_mlp
            return encoder.norm(hidden, update, ours)[1]

        def peer_embedding_and_norms() -> Tensor:
            hidden = encoder.embed_tokens(state.tokens)
            rotations = model.rotary(positions)
            for layer in encoder.layers:
                norm(layer.input_layernorm, hidden)
                rotations.apply(q, k)
                hidden = hidden + whole_update
                norm(layer.post_attention_layernorm, hidden)
                hidden = hidden + whole_update
            return norm(encoder.norm, hidden)

        def projections_and_mlp() -> None:
            for layer in encoder.layers:
                layer.self_attn.qkv.in_parts(x, ours)
                layer.self_attn.o_proj.in_parts(attended, ours)
                layer.mlp(x, ours)

        def peer_projections_and_mlp() -> None:
            for layer in encoder.layers:
                F.linear(x, layer.self_attn.qkv.weight)
                F.linear(attended, layer.self_attn.o_proj.weight)
                gate, up = F.linear(x, layer.mlp.gate_up.weight).chunk(2, -1)
                F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight)

        def attention() -> None:
            for keys, values in zip(cache.keys, cache.values, strict=True):
                block_attention(
                    q, keys, values, cache.lengths, k, v, max_context=cache.max_length, error=error
                )

        def head_and_confidence() -> Confidence:
            mask_id = model.config.mask_token_id
            return self.runner.statistics(x, tokens=self._start[0].flatten(), mask_id=mask_id)

        chosen = head_and_confidence()
        rule = Rule(threshold=THRESHOLD)

        def remask() -> None:
            remask_scatter(
                state,
                chosen.token.view_as(state.tokens),
                chosen.probability.view_as(state.tokens),
                rule,
                mask_id=model.config.mask_token_id,
                eos_id=model.config.eos_token_id,
                error=error,
            )

        def peer_attention() -> None:
            for keys, values in zip(cache.keys, cache.values, strict=True):
                keys = torch.cat([keys[:, : self.context], k], 1)
                values = torch.cat([values[:, : self.context], v], 1)
                sdpa(q, keys, values)

        def peer_remask() -> tuple[Tensor, Tensor]:
            return where_scatter(
                self._start[0],
                chosen.token.view_as(state.tokens),
                chosen.probability.view_as(state.tokens),
                mask_id=model.config.mask_token_id,
                eos_id=model.config.eos_token_id,
                threshold=THRESHOLD,
            )

        return {
            EMBEDDING: (embedding_and_norms, peer_embedding_and_norms),
            PROJECTIONS: (projections_and_mlp, peer_projections_and_mlp),
            ATTENTION: (attention, peer_attention),
            HEAD: (
                head_and_confidence,
                lambda: softmax_gather(F.linear(x, model.diffusion_head.weight).flatten(0, 1)),
            ),
            REMASK: (remask, peer_remask),
        }
