"""A whole denoising step of a model, and each of its stages alone, through the model's own modules.

A stage runs over all layers, so that weights and context come from memory as they do in a step.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dlm_core import PRESETS, KVCache, Model
from dlm_core.decoding.denoise import Needs, denoise_step
from dlm_core.decoding.prefill import extend
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.sampling import Sampling, SamplingTable
from dlm_core.model import CachedAttention
from dlm_kernels import BlockState, Rule, RuleTable, confidence, raise_on_error, remask_scatter
from dlm_roofline.step_cost import ATTENTION, EMBEDDING, HEAD, PROJECTIONS, REMASK

from .cases import THRESHOLD, restore
from .peers import plain_step, sdpa, softmax_gather, where_scatter

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

    def stages(self) -> dict[str, tuple[Callable[[], object], Callable[[], object] | None]]:
        """Each stage by name, and its plain-torch peer, on inputs like those within a step."""
        model, cache, state = self.model, self.cache, self.state
        encoder, attentions = model.encoder, [layer.self_attn for layer in model.encoder.layers]
        positions = cache.lengths[:, None].long() + torch.arange(self.block, device=model.device)
        rotations = model.rotary(positions)
        error = self.runner.error
        attend = CachedAttention(cache, positions, False, None, None, "invariant", error)
        x = encoder.norm(torch.randn_like(encoder.embed_tokens(state.tokens)))
        q, k, v = attentions[0].project(x, "invariant")
        q, k = rotations[0].apply(q), rotations[1].apply(k)
        attended = attend(0, q, k, v).flatten(-2)

        def embedding_and_norms() -> Tensor:
            hidden = encoder.embed_tokens(state.tokens)
            query_rotation, key_rotation = model.rotary(positions)
            for layer in encoder.layers:
                layer.input_layernorm(hidden)
                query_rotation.apply(q)
                key_rotation.apply(k)
                hidden = hidden + x
                layer.post_attention_layernorm(hidden)
                hidden = hidden + x
            return encoder.norm(hidden)

        def projections_and_mlp(numerics: str = "invariant") -> None:
            for layer in encoder.layers:
                layer.self_attn.project(x, numerics)
                layer.self_attn.o_proj(attended, numerics)
                layer.mlp(x, numerics)

        def attention() -> None:
            for layer in range(len(attentions)):
                attend(layer, q, k, v)

        def head_and_confidence() -> tuple[Tensor, ...]:
            return confidence(
                model.logits(x).flatten(0, 1),
                tokens=self._start[0].flatten(),
                mask_id=model.config.mask_token_id,
                banned=self.runner.banned,
                error=error,
            )

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

        # Ours, and the same in plain torch where that is not what ours runs anyway.
        return {
            EMBEDDING: (embedding_and_norms, None),
            PROJECTIONS: (projections_and_mlp, lambda: projections_and_mlp("fast")),
            ATTENTION: (attention, peer_attention),
            HEAD: (
                head_and_confidence,
                lambda: softmax_gather(model.logits(x, "fast").flatten(0, 1)),
            ),
            REMASK: (remask, peer_remask),
        }
