"""Each stage of a forward alone, through the model's own modules, on inputs like those within it.

A stage runs over all layers, so that weights and context come from memory as they do in a forward.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_core.model import CachedAttention
from dlm_kernels import Confidence, Rule, remask_scatter
from dlm_roofline.forward import DECODE, DENOISE, QUADRATIC
from dlm_roofline.step_cost import ATTENTION, EMBEDDING, HEAD, PROJECTIONS, REMASK

from .cases import THRESHOLD
from .peers import norm, sdpa, softmax_gather, where_scatter
from .steps import StepBench
from .timing import Call

_NUMERICS = "batch_invariant"


def stages_of(bench: StepBench) -> dict[str, tuple[Call, Call | None]]:
    """Each stage of a forward by name: ours, and its peer in plain torch if the forward has one."""
    stages = _Stages(bench)
    ours = {
        EMBEDDING: stages.embedding_and_norms,
        PROJECTIONS: stages.projections_and_mlp,
        ATTENTION: stages.attention,
        HEAD: stages.head_and_confidence,
    }
    if bench.forward.kind == DENOISE:
        ours[REMASK] = stages.remask
    peers = stages.peers() if bench.has_peer else {}
    return {stage: (run, peers.get(stage)) for stage, run in ours.items()}


class _Stages:
    """The stages of one forward, with what each is handed by the one before it."""

    def __init__(self, bench: StepBench) -> None:
        self.bench, self.forward = bench, bench.forward
        self.model, self.cache, self.runner = bench.model, bench.cache, bench.runner
        self.layers = self.model.encoder.layers
        row = torch.arange(self.forward.block, device=self.model.device)
        if self.forward.kind == QUADRATIC:
            row = row // (self.forward.k + 1) + row % (self.forward.k + 1)
        self.positions = self.cache.lengths[:, None].long() + row

        attention, mlp = self.layers[0].self_attn, self.layers[0].mlp
        embedded = self.model.encoder.embed_tokens(bench.tokens)
        self.x = norm(self.model.encoder.norm, torch.randn_like(embedded))
        self.qkv = attention.qkv.in_parts(self.x, _NUMERICS)
        self.attend = CachedAttention.over(
            self.cache,
            self.model.rotary(self.positions),
            causal=self.forward.causal,
            draft_groups=self.forward.draft_groups,
            numerics=_NUMERICS,
            error=self.runner.error,
        )
        self.q, self.k, self.v = self.attend.rotated(0, self.qkv)
        self.attended = torch.randn_like(self.q).flatten(-2)
        self.of_attention = attention.o_proj.in_parts(self.attended, _NUMERICS)
        self.of_mlp = mlp(self.x, _NUMERICS)
        self.candidate = torch.randint_like(bench.tokens, self.model.config.vocab_size)
        self.probability = torch.rand(bench.tokens.shape, device=self.model.device)

    def embedding_and_norms(self) -> Tensor:
        encoder, update = self.model.encoder, None
        hidden = encoder.embed_tokens(self.bench.tokens)
        attend = self.attend._replace(rotations=self.model.rotary(self.positions))
        for i, layer in enumerate(self.layers):
            hidden, _ = layer.input_layernorm(hidden, update, _NUMERICS)
            attend.rotated(i, self.qkv)
            hidden, _ = layer.post_attention_layernorm(hidden, self.of_attention, _NUMERICS)
            update = self.of_mlp
        return encoder.norm(hidden, update, _NUMERICS)[1]

    def projections_and_mlp(self) -> None:
        for layer in self.layers:
            layer.self_attn.qkv.in_parts(self.x, _NUMERICS)
            layer.self_attn.o_proj.in_parts(self.attended, _NUMERICS)
            layer.mlp(self.x, _NUMERICS)

    def attention(self) -> None:
        for i in range(len(self.layers)):
            self.attend.attended(i, self.q, self.k, self.v)

    def head_and_confidence(self) -> Tensor | Confidence:
        if self.forward.kind != DENOISE:
            return self.bench.choose(self.runner, self.x)
        tokens, mask_id = self.bench.tokens.flatten(), self.bench.ids["mask_id"]
        return self.runner.statistics(self.x, tokens=tokens, mask_id=mask_id)

    def remask(self) -> None:
        rule, chosen = Rule(threshold=THRESHOLD), (self.candidate, self.probability)
        remask_scatter(self.bench.state, *chosen, rule, **self.bench.ids, error=self.runner.error)

    def peers(self) -> dict[str, Call]:
        """Each stage in plain torch."""
        model, cache, x = self.model, self.cache, self.x
        q, k, v = self.attend._replace(causal=False).rotated(0, self.qkv)
        whole_update = self.of_mlp.total()

        def embedding_and_norms() -> Tensor:
            hidden = model.encoder.embed_tokens(self.bench.tokens)
            rotations = model.rotary(self.positions)
            for layer in self.layers:
                norm(layer.input_layernorm, hidden)
                rotations.apply(q, k)
                hidden = hidden + whole_update
                norm(layer.post_attention_layernorm, hidden)
                hidden = hidden + whole_update
            return norm(model.encoder.norm, hidden)

        def projections_and_mlp() -> None:
            for layer in self.layers:
                F.linear(x, layer.self_attn.qkv.weight)
                F.linear(self.attended, layer.self_attn.o_proj.weight)
                gate, up = F.linear(x, layer.mlp.gate_up.weight).chunk(2, -1)
                F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight)

        def attention() -> None:
            context = self.forward.context
            for keys, values in zip(cache.keys, cache.values, strict=True):
                keys = torch.cat([keys[:, :context], k], 1)
                sdpa(q, keys, torch.cat([values[:, :context], v], 1))

        def head_and_confidence() -> object:
            logits = F.linear(x, model.diffusion_head.weight).flatten(0, 1)
            return logits.argmax(-1) if self.forward.kind == DECODE else softmax_gather(logits)

        given = (self.bench.tokens, self.candidate, self.probability)
        return {
            EMBEDDING: embedding_and_norms,
            PROJECTIONS: projections_and_mlp,
            ATTENTION: attention,
            HEAD: head_and_confidence,
            REMASK: partial(where_scatter, *given, **self.bench.ids, threshold=THRESHOLD),
        }
