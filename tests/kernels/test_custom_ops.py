"""The ops as torch.library custom ops: opcheck, torch.compile, CUDA graphs, no synchronisation."""

from collections.abc import Callable, Iterator

import pytest
import torch
from numeric import assert_same_bits
from torch import Tensor

from dlm_kernels import (
    BlockState,
    Noise,
    Rule,
    RuleTable,
    block_attention,
    confidence,
    gated_silu,
    linear,
    linear_partials,
    lm_head_confidence,
    lm_head_partials,
    merge_partials,
    new_error_word,
    quantize_weight,
    raise_on_error,
    remask_scatter,
    residual_norm,
    rope_kv_write,
)
from dlm_kernels.partial_sums import PartialSums

MASK, EOS = 9, 2
VOCAB = 50


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """Not here: tracing and graph capture see the plain allocator."""


class Step:
    """Static inputs of one denoising step, as a model would hold them."""

    def __init__(
        self,
        device: str,
        dtype: torch.dtype = torch.float32,
        batch: int = 2,
        capacity: int = 40,
    ) -> None:
        block, heads, head_dim = 4, 2, 16
        self.batch = batch
        self.q = torch.empty(batch, block, 2 * heads, head_dim, dtype=dtype, device=device)
        self.k_cache = torch.empty(batch, capacity, heads, head_dim, dtype=dtype, device=device)
        self.v_cache = torch.empty_like(self.k_cache)
        self.k = torch.empty(batch, block, heads, head_dim, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)
        self.lengths = torch.empty(batch, dtype=torch.int32, device=device)
        features = 4 * heads * head_dim  # of the layer's product, in parts
        self.sums = torch.empty(2, batch, block, features, device=device)
        self.angles = torch.empty(2, batch, block, head_dim // 2, device=device)
        self.query_scale = torch.empty(batch, block, device=device)
        self.norm = torch.empty(features // 2, dtype=dtype, device=device)
        self.logits = torch.empty(batch * block, VOCAB, dtype=dtype, device=device)
        self.hidden = torch.empty(batch * block, 16, dtype=dtype, device=device)
        self.head = torch.empty(VOCAB, 16, dtype=dtype, device=device)
        self.banned = torch.tensor([MASK], dtype=torch.int32, device=device)
        self.state = BlockState.start(
            torch.empty(batch, block, dtype=torch.int32, device=device).fill_(MASK), MASK
        )
        self.error = new_error_word(device)
        position = torch.arange(batch, dtype=torch.int32, device=device)
        self.noise = Noise(seed=5 - position.long(), position=position, vocab_size=VOCAB)
        self.rule: Rule | RuleTable = Rule(threshold=0.2)
        self.fill(seed=0)

    def fill(self, seed: int) -> None:
        """Other contents at the same addresses."""
        generator = torch.Generator().manual_seed(seed)
        inputs = (self.q, self.k_cache, self.v_cache, self.k, self.v, self.logits)
        layer = (self.sums, self.angles, self.query_scale, self.norm)
        for tensor in (*inputs, self.hidden, self.head, *layer):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        longest = self.k_cache.shape[1] - 4
        self.lengths.copy_(torch.randint(0, longest, (self.batch,), generator=generator))
        tokens = torch.full((self.batch, 4), MASK)
        tokens[0, seed % 4] = 1
        for ours, fresh in zip(self.state, BlockState.start(tokens, MASK), strict=True):
            ours.copy_(fresh)
        self.error.zero_()

    def run(self) -> tuple[Tensor, ...]:
        """Every op, attention both ways, the head whole; returns everything they wrote."""
        lengths = self.lengths
        product = PartialSums(self.sums, self.q.dtype)
        turned, _, _ = rope_kv_write(
            product, *self.angles, self.query_scale, kv_heads=2, k_cache=self.k_cache,
            v_cache=self.v_cache, context_lens=lengths, error=self.error,
        )  # fmt: skip
        residual, normed = residual_norm(self.q.flatten(2), gated_silu(product), self.norm, 1e-5)
        _, alone = residual_norm(residual, None, self.norm, 1e-5)
        bidirectional, lse = block_attention(
            self.q, self.k_cache, self.v_cache, lengths, self.k, self.v,
            return_lse=True, error=self.error,
        )  # fmt: skip
        causal = block_attention(self.q, self.k_cache, self.v_cache, lengths, error=self.error)
        options = {
            "tokens": self.state.tokens.view(-1),
            "mask_id": MASK,
            "banned": self.banned,
            "entropy": True,
            "margin": True,
        }
        statistics = confidence(self.logits, error=self.error, **options)
        of_head = lm_head_confidence(self.hidden, self.head, error=self.error, **options)
        remask_scatter(
            self.state,
            statistics.token.view_as(self.state.tokens),
            statistics.probability.view_as(self.state.tokens),
            self.rule,
            mask_id=MASK,
            eos_id=EOS,
            token_probability=statistics.margin.view_as(self.state.tokens),
            noise=self.noise,
            error=self.error,
        )
        layer = self.k_cache, self.v_cache, turned, residual, normed, alone
        return bidirectional, lse, causal, *statistics, *of_head, *layer


def assert_same_run(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for n, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(ours, theirs, f"tensor {n}")


# --- opcheck

OPS = torch.ops.dlm_kernels
OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


@pytest.mark.parametrize("kind", ["bidirectional", "causal", "drafts-in-pages", "float8"])
@pytest.mark.parametrize("full", [True, False], ids=["lse-and-error-word", "plain"])
def test_opcheck_block_attention(kind: str, full: bool, backend: str, op_device: str) -> None:
    s = Step(op_device, capacity=48)
    k, v = (None, None) if kind == "causal" else (s.k, s.v)
    caches, table, draft = (s.k_cache, s.v_cache), None, (0, 0)
    if kind == "drafts-in-pages":
        caches = [x.reshape(6, 16, *x.shape[2:]) for x in caches]
        table = torch.arange(6, dtype=torch.int32, device=op_device).view(2, 3)
        draft = (1, 3)
    scales, test_utils = (None, None), OPCHECKS
    if kind == "float8":
        caches = [x.to(torch.float8_e4m3fn) for x in caches]
        scales = torch.ones(2, 2, device=op_device)
        test_utils = OPCHECKS[1:]  # the first one does arithmetic on every tensor
    torch.library.opcheck(
        OPS.block_attention.default,
        (
            s.q, *caches, s.lengths, table, k, v, *scales, *draft, 0.25, "invariant", 36, full,
            s.error if full else None,
        ),
        test_utils=test_utils,
    )  # fmt: skip


@pytest.mark.parametrize("full", [True, False], ids=["all-options", "plain"])
def test_opcheck_confidence(full: bool, backend: str, op_device: str) -> None:
    s = Step(op_device)
    tokens = s.state.tokens.view(-1) if full else None
    banned, error = (s.banned, s.error) if full else (None, None)
    torch.library.opcheck(
        OPS.confidence.default, (s.logits, tokens, MASK, banned, full, full, error)
    )


@pytest.mark.parametrize("kind", ["plain", "fp8", "int8", "int4"])
def test_opcheck_linear(kind: str, backend: str, op_device: str) -> None:
    # Under the interpreter in two parts.
    x, weight = torch.randn(3, 600, device=op_device), torch.randn(20, 600, device=op_device)
    x = x.half()
    arguments = (x, weight.half(), None, kind)
    if kind != "plain":
        arguments = (x, *quantize_weight(weight, kind)[:2], kind)
    # The schema's check compares tensors, which torch cannot do with float8 on a CPU.
    checks = [name for name in OPCHECKS if (kind, name) != ("fp8", "test_schema")]
    for op in (OPS.linear.default, OPS.linear_partials.default):
        torch.library.opcheck(op, arguments, test_utils=checks)


@pytest.mark.parametrize("full", [True, False], ids=["all-options", "plain"])
def test_opcheck_lm_head_confidence(full: bool, backend: str, op_device: str) -> None:
    s = Step(op_device)
    rows = s.hidden, s.head, s.state.tokens.view(-1) if full else None, MASK
    banned, error = (s.banned, s.error) if full else (None, None)
    numerics = "fast" if full else "invariant"
    whole = *rows, banned, full, full, numerics, error
    torch.library.opcheck(OPS.lm_head_confidence.default, whole)
    partials = *rows, banned, 7, True, True
    torch.library.opcheck(OPS.lm_head_partials.default, partials)
    merge = *OPS.lm_head_partials(*partials), *rows[2:], banned, VOCAB, full, full, error
    torch.library.opcheck(OPS.merge_partials.default, merge)


@pytest.mark.parametrize("full", [True, False], ids=["all-options", "plain"])
def test_opcheck_remask_scatter(full: bool, backend: str, op_device: str) -> None:
    s = Step(op_device)
    candidate = torch.ones_like(s.state.tokens)
    sure = torch.rand(candidate.shape, device=op_device)
    numbers, counts, *_ = RuleTable.pack([Rule(threshold=0.5)] * 2, op_device)
    optional = (sure / 2, s.noise.seed, s.noise.position) if full else (None, None, None)
    torch.library.opcheck(
        OPS.remask_scatter.default,
        (
            *s.state, candidate, sure, numbers, counts, *optional, VOCAB, MASK, EOS,
            s.error if full else None,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("full", [True, False], ids=["update", "norm-alone"])
def test_opcheck_residual_norm(full: bool, backend: str, op_device: str) -> None:
    s = Step(op_device)
    residual, sums = s.q.flatten(0, 1).flatten(1), s.sums.flatten(1, 2)[..., :64].contiguous()
    arguments = residual, sums if full else None, s.norm, 1e-5
    torch.library.opcheck(OPS.residual_norm.default, arguments)


def test_opcheck_gated_silu(backend: str, op_device: str) -> None:
    s = Step(op_device)
    torch.library.opcheck(OPS.gated_silu.default, (s.sums.flatten(1, 2), torch.float16))


@pytest.mark.parametrize("kind", ["bidirectional", "causal", "drafts-in-pages", "float8"])
def test_opcheck_rope_kv_write(kind: str, backend: str, op_device: str) -> None:
    s = Step(op_device, capacity=48)
    caches, table, draft = (s.k_cache, s.v_cache), None, (0, 0)
    scales, error, test_utils = (None, None), s.error, OPCHECKS
    lengths = s.lengths
    if kind == "bidirectional":
        caches, lengths, error = (None, None), None, None
    elif kind == "drafts-in-pages":
        caches = [x.reshape(6, 16, *x.shape[2:]) for x in caches]
        table = torch.arange(6, dtype=torch.int32, device=op_device).view(2, 3)
        draft = (1, 3)
    elif kind == "float8":
        caches = [x.to(torch.float8_e4m3fn) for x in caches]
        scales = torch.ones(2, 2, device=op_device)
        test_utils = OPCHECKS[1:]  # the first one does arithmetic on every tensor
    torch.library.opcheck(
        OPS.rope_kv_write.default,
        (
            s.sums, torch.float32, *s.angles, s.query_scale, 2, *caches, lengths, table, *draft,
            *scales, error,
        ),
        test_utils=test_utils,
    )  # fmt: skip


# --- torch.compile


@pytest.fixture
def compiler() -> Iterator[Callable]:
    torch._dynamo.reset()
    yield lambda run, **options: torch.compile(run, fullgraph=True, backend="aot_eager", **options)
    torch._dynamo.reset()


def test_compiled_step_equals_eager(backend: str, op_device: str, compiler: Callable) -> None:
    eager, compiled = Step(op_device), Step(op_device)
    run = compiler(compiled.run)
    for seed in range(3):
        eager.fill(seed)
        compiled.fill(seed)
        # An invalid length and NaN logits: the error word is written through the graph too.
        for s in (eager, compiled):
            s.lengths[0] = 1000 if seed == 1 else 3
            s.logits[1, 1] = float("nan") if seed == 2 else 0.0
        assert_same_run(run(), eager.run())
        assert_same_run(compiled.state, eager.state)
        assert_same_bits(compiled.error, eager.error, "error")
        assert bool(eager.error) == (seed > 0)


# A row for each request of the batch, which none but a table can mix.
MIXED = [
    Rule(confidence="random", top_k=2, remask_below=0.3),
    Rule(confidence="probability", steps=3, renoise=True),
]


def test_compiled_step_takes_other_rules(backend: str, op_device: str, compiler: Callable) -> None:
    """As a captured graph does: the rules are what the table holds when it runs."""
    eager, compiled = Step(op_device), Step(op_device)
    tables = [RuleTable.pack(rules, op_device) for rules in (MIXED, MIXED[::-1])]
    compiled.rule = RuleTable(*(x.clone() for x in tables[0][:2]), *tables[0][2:])
    run = compiler(compiled.run)
    for table in tables:
        eager.fill(0)
        compiled.fill(0)
        eager.rule = table
        for ours, theirs in zip(compiled.rule[:2], table[:2], strict=True):
            ours.copy_(theirs)
        assert_same_run(run(), eager.run())
        assert_same_run(compiled.state, eager.state)


def test_compiled_with_dynamic_shapes(backend: str, op_device: str, compiler: Callable) -> None:
    @compiler
    def attend(q, k_cache, v_cache, lengths, k, v):
        return block_attention(q, k_cache, v_cache, lengths, k, v, return_lse=True)

    @compiler
    def draft(q, k_cache, v_cache, lengths, table, k, v):
        pages = (x.flatten(0, 1).unflatten(0, (-1, 16)) for x in (k_cache, v_cache))
        return block_attention(
            q, *pages, lengths, k, v, block_table=table, draft_groups=(2, 2), return_lse=True
        )

    def in_two_shards(hidden, head):
        first = lm_head_partials(hidden, head[:20], first_id=0, entropy=True, margin=True)
        second = lm_head_partials(hidden, head[20:], first_id=20, entropy=True, margin=True)
        return merge_partials([first, second])

    def product_in_parts(sums, angles, query_scale, residual, weight):
        product = PartialSums(sums, residual.dtype)
        turned = rope_kv_write(product, *angles, query_scale, kv_heads=2)
        return *turned, *residual_norm(residual, gated_silu(product), weight, 1e-5)

    layer = compiler(product_in_parts, dynamic=True)
    sharded = compiler(in_two_shards, dynamic=True)
    eight_bits = quantize_weight(torch.randn(20, 600, device=op_device), "int8")

    def multiplied(x):
        return linear(x, eight_bits), linear_partials(x, eight_bits).total()

    multiply = compiler(multiplied, dynamic=True)
    statistics = compiler(lambda x: confidence(x, entropy=True), dynamic=True)
    for batch in (2, 3, 5):
        s = Step(op_device, batch=batch, capacity=48)
        inputs = (s.q, s.k_cache, s.v_cache, s.lengths, s.k, s.v)
        assert_same_run(attend(*inputs), block_attention(*inputs, return_lse=True))
        table = torch.arange(3 * batch, dtype=torch.int32, device=op_device).view(batch, 3)
        expected = block_attention(*inputs, draft_groups=(2, 2), return_lse=True)
        assert_same_run(draft(*inputs[:4], table, *inputs[4:]), expected)
        logits = s.logits[:, : VOCAB - batch].contiguous()
        assert_same_run(statistics(logits)[:4], confidence(logits, entropy=True)[:4])
        assert_same_run(sharded(s.hidden, s.head), in_two_shards(s.hidden, s.head))
        x = torch.randn(16 * batch, 600, device=op_device)  # each on another row tile
        assert_same_run(multiply(x), multiplied(x))
        product = s.sums, s.angles, s.query_scale, s.q.flatten(2), s.norm
        assert_same_run(layer(*product), product_in_parts(*product))


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("capacity", [40, 2500], ids=["one-split", "three-splits"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cuda_graph_replay_equals_eager(dtype: torch.dtype, capacity: int) -> None:
    eager, captured = (Step("cuda", dtype, capacity=capacity) for _ in range(2))
    tables = [RuleTable.pack(rules, "cuda") for rules in (MIXED, MIXED[::-1])]
    captured.rule = RuleTable(*(x.clone() for x in tables[0][:2]), *tables[0][2:])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = captured.run()
    for seed in range(4):
        eager.fill(seed)
        captured.fill(seed)
        eager.rule = tables[seed % 2]
        for ours, theirs in zip(captured.rule[:2], eager.rule[:2], strict=True):
            ours.copy_(theirs)
        if seed == 3:
            eager.lengths[0] = captured.lengths[0] = capacity + 1
        # Two replays are two steps on one state.
        for _ in range(2):
            expected = eager.run()
            graph.replay()
            assert_same_run(outputs, expected)
            assert_same_run(captured.state, eager.state)
            assert_same_bits(captured.error, eager.error, "error")


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_device() -> None:
    s = Step("cuda")
    s.run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            s.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    raise_on_error(s.error)
