"""Measures what our ops reach at shapes of no model; predictions of whole forwards rest on it.

Each op is called for next to nothing, for a call that streams and, if it multiplies, for one that
multiplies most; layers' ops several times in a row over data of their own, as layers call them. For
next to nothing it is also called many times, which tells what its first call takes beyond others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dlm_core import PRESETS, random_model
from dlm_kernels import (
    BlockState,
    PartialSums,
    Rule,
    block_attention,
    confidence,
    gated_silu,
    linear_partials,
    lm_head_confidence,
    quantize_weight,
    remask_scatter,
    residual_norm,
    rope_kv_write,
)
from dlm_kernels.backend import backend_for
from dlm_roofline.forward import DENOISE, WEIGHTS, Forward
from dlm_roofline.op_rates import Idle, OpRate, Timed, idle_of, op_rate
from dlm_roofline.records import Timing
from dlm_roofline.step_work import FURTHER, GROUP, WRITING, attention_work, linear_work

from .cases import restore
from .steps import name_of

IN_A_ROW = 6  # calls of an op that layers have
MANY = 30  # calls of any
FURTHER_REQUESTS = 2
LEAST_SECONDS = 1e-7  # of a difference of two timings, which noise can turn round


@dataclass(frozen=True)
class Sizes:
    """Standard shapes: sizes of weights, heads, and how many rows stream and multiply.

    features: of a square weight; head_features: of the LM head's. heads: query heads, KV heads,
    their dimension. batch, context: of attention. vocab: of logits. rows: of what works element by
    element.
    """

    features: int
    heads: tuple[int, int, int]
    streaming_rows: int
    multiplying_rows: int
    batch: int
    context: int
    vocab: int
    rows: int
    head_features: int


# None is that of a model which the bench times, or of a forward in its plans: what these shapes
# reach has to predict others. On a host a tile of attention takes as many FLOPs as HOST_MODEL's.
SIZES = {
    "cpu": Sizes(1024, (16, 2, 32), 24, 192, 1, 1536, 8192, 1024, 1024),
    "cuda": Sizes(8192, (24, 6, 128), 24, 4096, 16, 6144, 98304, 4096, 6144),
}
LOOKUP_MODEL = replace(PRESETS["tiny"], hidden_size=384, num_hidden_layers=1)

Clock = Callable[..., Timing]


def op_rates(
    device: torch.device, dtype: torch.dtype, clock: Clock, *, kinds: tuple[str, ...] = WEIGHTS
) -> dict[str, Callable[[], OpRate]]:
    """How to measure each op, by its name in `step_work`.

    clock: times a function as stages are timed. kinds: of quantised weights.
    """
    bench = _OpBench(device, dtype, clock, SIZES[device.type])
    found = {
        "lookup": bench.lookup,
        "residual_norm": bench.residual_norm,
        "rope_kv_write": bench.rope_kv_write,
        WRITING: partial(bench.rope_kv_write, cached=True),
        "linear": bench.linear,
        "gated_silu": bench.gated_silu,
        "block_attention": bench.attention,
        "lm_head_confidence": bench.lm_head,
        "confidence": bench.confidence,
        "remask_scatter": bench.remask,
        **{f"linear {kind}": partial(bench.linear, kind) for kind in kinds},
        "block_attention float8": partial(bench.attention, float8=True),
    }
    if bench.backend == "torch":
        del found["lm_head_confidence"]  # it is "linear" and "confidence"
        for cache in ("", " float8"):
            options = {"float8": bool(cache)}
            op = f"block_attention{cache}"
            found[f"{op} {FURTHER}"] = partial(bench.further_request, **options)
            found[f"{op} {GROUP}"] = partial(bench.draft_group, **options)
    if not reads_float8(device):
        del found["block_attention float8"]
    return found


def reads_float8(device: torch.device) -> bool:
    """Whether attention takes a float8 cache there; see `block_attention`."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


class _OpBench:
    def __init__(
        self, device: torch.device, dtype: torch.dtype, clock: Clock, sizes: Sizes
    ) -> None:
        self.device, self.dtype, self.clock, self.sizes = device, dtype, clock, sizes
        self.backend = backend_for(torch.empty(0, device=device))

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def _seconds(self, call: Callable[[int], object], times: int = IN_A_ROW, **options) -> float:
        """Of one call of `call(i)`, made for each i in a row."""

        def run() -> None:
            for i in range(times):
                call(i)

        return self.clock(run, **options).paced / times

    def _idle(self, call: Callable[[int], object], times: int = IN_A_ROW, **options) -> Idle:
        """By calls of next to no work, which have data for so many."""
        few = self._seconds(call, times, **options)
        many = self._seconds(lambda i: call(i % times), MANY, **options)
        return idle_of(times, times * few, MANY, MANY * many)

    def _by_element(
        self, call_of: Callable[[int], Callable[[int], object]], n_bytes: Callable[[int], float]
    ) -> OpRate:
        """An op without products: `call_of(rows)` moves `n_bytes(rows)` bytes."""
        idle, rows = self._idle(call_of(1)), self.sizes.rows
        streaming = Timed(n_bytes(rows), 0.0, self._seconds(call_of(rows)))
        return op_rate(self.backend, idle, streaming, in_a_row=IN_A_ROW)

    def lookup(self) -> OpRate:
        """The embedding and the rotations of a forward, which come once."""
        model = random_model(LOOKUP_MODEL, device=self.device, dtype=self.dtype)
        hidden, size = model.config.hidden_size, self.dtype.itemsize

        def call(rows: int) -> Callable[[int], object]:
            tokens = torch.randint(model.config.vocab_size, (1, rows), device=self.device)
            positions = torch.arange(rows, device=self.device)[None]
            return lambda i: (model.encoder.embed_tokens(tokens), model.rotary(positions))

        idle, rows = self._idle(call(1), times=1), self.sizes.rows
        streaming = Timed(2.0 * size * rows * hidden, 0.0, self._seconds(call(rows), times=1))
        return op_rate(self.backend, idle, streaming)

    def residual_norm(self) -> OpRate:
        hidden = self.sizes.features
        weight = self._randn(hidden)

        def call(rows: int) -> Callable[[int], object]:
            xs, updates = (self._each(rows, hidden) for _ in range(2))
            parts = [PartialSums(x[None], self.dtype) for x in updates]
            return lambda i: residual_norm(xs[i], parts[i], weight, 1e-5)

        return self._by_element(call, lambda rows: 4.0 * self.dtype.itemsize * rows * hidden)

    def rope_kv_write(self, *, cached: bool = False) -> OpRate:
        """Rotating, and with a cache writing to it what is otherwise returned."""
        query_heads, kv_heads, head_dim = self.sizes.heads
        width = (query_heads + 2 * kv_heads) * head_dim

        def call(rows: int) -> Callable[[int], object]:
            qkv = [PartialSums(x[None, None], self.dtype) for x in self._each(rows, width)]
            cos, sin = torch.rand(2, 1, rows, head_dim // 2, device=self.device)
            scale = torch.ones(1, rows, device=self.device)
            caches: list[dict[str, Tensor]] = [{} for _ in qkv]
            if cached:
                start = torch.zeros(1, dtype=torch.int32, device=self.device)
                caches = [
                    {
                        "k_cache": self._randn(1, rows, kv_heads, head_dim),
                        "v_cache": self._randn(1, rows, kv_heads, head_dim),
                        "context_lens": start,
                    }
                    for _ in qkv
                ]
            return lambda i: rope_kv_write(qkv[i], cos, sin, scale, kv_heads=kv_heads, **caches[i])

        return self._by_element(call, lambda rows: 2.0 * self.dtype.itemsize * rows * width)

    def gated_silu(self) -> OpRate:
        features = self.sizes.features

        def call(rows: int) -> Callable[[int], object]:
            parts = [PartialSums(x[None], self.dtype) for x in self._each(rows, 2 * features)]
            return lambda i: gated_silu(parts[i])

        return self._by_element(call, lambda rows: 3.0 * self.dtype.itemsize * rows * features)

    def linear(self, kind: str | None = None) -> OpRate:
        features = self.sizes.features
        small = self._randn(64, 256)
        weights = [self._randn(features, features) for _ in range(IN_A_ROW)]
        n_bytes = float(weights[0].nbytes)
        if kind is not None:
            small = quantize_weight(small, kind)
            weights = [quantize_weight(weight, kind) for weight in weights]
            n_bytes = float(weights[0].values.nbytes + weights[0].scales.nbytes)

        def timed(rows: int) -> Timed:
            x = self._randn(rows, features)
            seconds = self._seconds(lambda i: linear_partials(x, weights[i]))
            work = linear_work("linear", 1, rows, n_bytes, features**2, self.backend)
            return Timed(work.bytes, work.flops, seconds)

        x = self._randn(1, 256)
        idle = self._idle(lambda i: linear_partials(x, small))
        streaming, multiplying = map(
            timed, (self.sizes.streaming_rows, self.sizes.multiplying_rows)
        )
        return op_rate(self.backend, idle, streaming, multiplying, in_a_row=IN_A_ROW)

    def attention(self, *, float8: bool = False) -> OpRate:
        """A call of the standard batch; on torch its first request."""
        nothing, *shapes = self._attention_shapes()
        idle = self._idle(self._attention_call(*nothing, float8))
        streaming, multiplying = (self._attention(*shape, float8) for shape in shapes)
        return op_rate(self.backend, idle, streaming, multiplying, in_a_row=IN_A_ROW)

    def further_request(self, *, float8: bool = False) -> OpRate:
        """What torch's attention takes for each request of a call beside the first."""
        idle, streaming, multiplying = (
            self._more(
                self._attention(1, *shape, float8),
                self._attention(1 + FURTHER_REQUESTS, *shape, float8),
            )
            for _, *shape in self._attention_shapes()
        )
        return op_rate(self.backend, Idle(0.0, idle.seconds), streaming, multiplying)

    def draft_group(self, *, float8: bool = False) -> OpRate:
        """What torch's attention takes for each draft group, whatever its context."""
        k = 6
        rows = k * (k + 1)
        with_groups = self._idle(self._attention_call(1, rows, 0, 1, float8, (k, k + 1)))
        without = self._idle(self._attention_call(1, rows, 0, 1, float8))
        more = with_groups.overhead - without.overhead
        return OpRate(max(more / k, LEAST_SECONDS), None, None)

    def _attention_shapes(self) -> list[tuple[int, int, int, int]]:
        """Batch, rows, context and how many times wider heads, of a call of next to nothing, one
        that streams (on torch scores, more than keys), and one that multiplies.
        """
        batch, context = self.sizes.batch, self.sizes.context
        if self.backend == "torch":
            return [(1, 1, 0, 1), (batch, 96, context, 1), (batch, 96, context, 4)]
        return [(1, 1, 0, 1), (batch, 1, context, 1), (batch, 96, context, 1)]

    @staticmethod
    def _more(one: Timed, several: Timed) -> Timed:
        """Of each further request."""
        seconds = (several.seconds - one.seconds) / FURTHER_REQUESTS
        return Timed(one.bytes, one.flops, max(seconds, LEAST_SECONDS))

    def _attention(self, batch: int, rows: int, context: int, wider: int, float8: bool) -> Timed:
        """A call; on torch the bytes and FLOPs are those of one request."""
        query_heads, kv_heads, head_dim = self.sizes.heads
        config = replace(
            PRESETS["8b"],
            num_attention_heads=query_heads,
            num_key_value_heads=kv_heads,
            head_dim=wider * head_dim,
        )
        call = self._attention_call(batch, rows, context, wider, float8)
        forward = Forward(DENOISE, batch, rows, context, name_of(self.dtype), float8_cache=float8)
        work = attention_work("", 1, forward, config, self.backend)[0]
        return Timed(work.bytes, work.flops, self._seconds(call))

    def _attention_call(
        self,
        batch: int,
        rows: int,
        context: int,
        wider: int,
        float8: bool,
        draft_groups: tuple[int, int] | None = None,
    ) -> Callable[[int], object]:
        query_heads, kv_heads, head_dim = self.sizes.heads
        head_dim *= wider
        options = {"draft_groups": draft_groups, "max_context": context}
        if float8:
            scale = torch.full((kv_heads,), 0.05, device=self.device)
            options |= {"k_scale": scale, "v_scale": scale}
        q = self._randn(batch, rows, query_heads, head_dim)
        k, v = (self._randn(batch, rows, kv_heads, head_dim) for _ in range(2))
        shape = (batch, context + rows, kv_heads, head_dim)
        caches = [[self._randn(*shape) for _ in range(2)] for _ in range(IN_A_ROW)]
        if float8:
            caches = [[x.to(torch.float8_e4m3fn) for x in each] for each in caches]
        lengths = torch.full((batch,), context, dtype=torch.int32, device=self.device)
        return lambda i: block_attention(q, *caches[i], lengths, k, v, **options)

    def lm_head(self) -> OpRate:
        vocab, features = self.sizes.vocab, self.sizes.head_features
        head = self._randn(vocab, features) / 64

        def timed(rows: int, weight: Tensor) -> Timed:
            x = self._randn(rows, features)
            seconds = self._seconds(lambda i: lm_head_confidence(x, weight), times=1)
            work = linear_work("", 1, rows, float(weight.nbytes), weight.numel(), self.backend)
            return Timed(work.bytes, work.flops, seconds)

        x = self._randn(1, features)
        idle = self._idle(lambda i: lm_head_confidence(x, head[:512]), times=1)
        streaming = timed(self.sizes.streaming_rows, head)
        return op_rate(self.backend, idle, streaming, timed(self.sizes.multiplying_rows // 2, head))

    def confidence(self) -> OpRate:
        rows, vocab = self.sizes.rows, self.sizes.vocab
        small, large = self._randn(1, 64), self._randn(rows, vocab)
        idle = self._idle(lambda i: confidence(small), times=1)
        seconds = self._seconds(lambda i: confidence(large), times=1)
        return op_rate(self.backend, idle, Timed(float(large.nbytes), 0.0, seconds))

    def remask(self) -> OpRate:
        def prepared(batch: int, block: int) -> tuple[Callable[[int], None], Callable[[], None]]:
            """A call, and what puts back its state."""
            tokens = torch.full((batch, block), 100, dtype=torch.int32, device=self.device)
            state = BlockState.start(tokens, 100)
            start = [each.clone() for each in state]
            candidate = torch.full_like(tokens, 7)
            surety = torch.rand(batch, block, device=self.device)
            rule = Rule(threshold=0.9)

            def call(i: int) -> None:
                remask_scatter(state, candidate, surety, rule, mask_id=100, eos_id=11)

            return call, lambda: restore(state, start)

        batch, block = 128, 64
        call, reset = prepared(1, 4)
        idle = self._idle(call, times=1, reset=reset)
        call, reset = prepared(batch, block)
        seconds = self._seconds(call, times=1, reset=reset)
        return op_rate(self.backend, idle, Timed(float(batch * block**2), 0.0, seconds))

    def _each(self, rows: int, width: int) -> list[Tensor]:
        return [self._randn(rows, width) for _ in range(IN_A_ROW)]
