"""The ops as torch.library knows them: opcheck, torch.compile, CUDA graphs, no synchronisation."""

from collections.abc import Callable, Iterator

import pytest
import torch
from numeric import assert_all_same_bits, assert_same_bits
from one_shape_of_each import CASES, Inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dlm_kernels
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
from dlm_kernels.error_word import LENGTH_OUT_OF_RANGE, NAN_LOGITS
from dlm_kernels.partial_sums import PartialSums

MASK, EOS = 9, 2
VOCAB = 50


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """Not here: tracing and graph capture see the plain allocator."""


class Step:
    """Static inputs of one denoising step, as a model would hold them."""

    def __init__(
        self, device: str, dtype: torch.dtype = torch.float32, batch: int = 2, capacity: int = 40
    ) -> None:
        block, heads, head_dim = 4, 2, 16

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.batch = batch
        self.q = empty(batch, block, 2 * heads, head_dim)
        cache = batch, capacity, heads, head_dim
        self.k_cache, self.v_cache = empty(*cache), empty(*cache)
        self.k, self.v = (empty(batch, block, heads, head_dim) for _ in range(2))
        self.lengths = empty(batch, dtype=torch.int32)
        features = 4 * heads * head_dim  # of the layer's product, in parts
        self.sums = empty(2, batch, block, features, dtype=torch.float32)
        self.angles = empty(2, batch, block, head_dim // 2, dtype=torch.float32)
        self.query_scale = empty(batch, block, dtype=torch.float32)
        self.norm = empty(features // 2)
        self.logits = empty(batch * block, VOCAB)
        self.hidden, self.head = empty(batch * block, 16), empty(VOCAB, 16)
        self.banned = torch.tensor([MASK], dtype=torch.int32, device=device)
        self.state = BlockState.start(empty(batch, block, dtype=torch.int32).fill_(MASK), MASK)
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
        rows = {"tokens": self.state.tokens.view(-1), "mask_id": MASK, "banned": self.banned}
        rows |= {"entropy": True, "margin": True, "error": self.error}
        statistics = confidence(self.logits, **rows)
        of_head = lm_head_confidence(self.hidden, self.head, **rows)
        token, probability, _, _, margin = (x.view_as(self.state.tokens) for x in statistics)
        remask_scatter(
            self.state, token, probability, self.rule, mask_id=MASK, eos_id=EOS,
            token_probability=margin, noise=self.noise, error=self.error,
        )  # fmt: skip
        layer = self.k_cache, self.v_cache, turned, residual, normed, alone
        return bidirectional, lse, causal, *statistics, *of_head, *layer


# --- opcheck


class Called(TorchDispatchMode):
    """The calls of our operators, as torch sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dlm_kernels":
            self.calls.append((func, args))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.full] * ("many" in name)) for name in CASES],
)
def test_opcheck(name: str, backend: str, op_device: str) -> None:
    with Called() as called:
        CASES[name](dlm_kernels, Inputs(op_device, torch.float32))
    checks = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    for op, args in called.calls:
        # The schema's check does arithmetic on every tensor.
        float8 = any(isinstance(x, Tensor) and x.dtype == torch.float8_e4m3fn for x in args)
        torch.library.opcheck(op, args, test_utils=checks + ["test_schema"] * (not float8))


def test_no_op_is_left_out() -> None:
    with Called() as called:
        for case in CASES.values():
            case(dlm_kernels, Inputs("cpu", torch.float32))
    names = torch._C._dispatch_get_all_op_names()
    registered = {name for name in names if name.startswith("dlm_kernels::")}
    assert registered == {op.name() for op, _ in called.calls}


# --- torch.compile


@pytest.fixture
def compiler() -> Iterator[Callable]:
    torch._dynamo.reset()
    yield lambda run, **options: torch.compile(run, fullgraph=True, backend="aot_eager", **options)
    torch._dynamo.reset()


# A row for each request of the batch, which none but a table can mix.
MIXED = [
    Rule(confidence="random", top_k=2, remask_below=0.3),
    Rule(confidence="probability", steps=3, renoise=True),
]


def test_compiled_step_equals_eager(backend: str, op_device: str, compiler: Callable) -> None:
    """The rules are what the table holds when it runs, as for a captured graph."""
    eager, compiled = Step(op_device), Step(op_device)
    tables = [RuleTable.pack(rules, op_device) for rules in (MIXED, MIXED[::-1])]
    compiled.rule = RuleTable(*(x.clone() for x in tables[0][:2]), *tables[0][2:])
    run = compiler(compiled.run)
    for seed, table in enumerate(tables):
        eager.rule = table
        for ours, theirs in zip(compiled.rule[:2], table[:2], strict=True):
            ours.copy_(theirs)
        # An invalid length and NaN logits: the error word is written through the graph too.
        for s in (eager, compiled):
            s.fill(seed)
            s.lengths[0] = 1000 if seed == 1 else 3
            s.logits[2, 1] = float("nan") if seed == 1 else 0.0
        assert_all_same_bits(run(), eager.run())
        assert_all_same_bits(compiled.state, eager.state)
        assert_same_bits(compiled.error, eager.error, "error")
        assert eager.error.item() == (LENGTH_OUT_OF_RANGE | NAN_LOGITS if seed == 1 else 0)


@pytest.mark.parametrize(
    "backend", ["triton", pytest.param("torch", marks=pytest.mark.full)], indirect=True
)
def test_compiled_with_dynamic_shapes(backend: str, op_device: str, compiler: Callable) -> None:
    eight_bits = quantize_weight(torch.randn(20, 384, device=op_device), "int8")

    def attend(s: Step, table: Tensor) -> tuple:
        caches = s.k_cache, s.v_cache
        pages = (x.flatten(0, 1).unflatten(0, (-1, 16)) for x in caches)
        fresh = s.k, s.v
        whole = block_attention(s.q, *caches, s.lengths, *fresh, return_lse=True)
        options = {"block_table": table, "draft_groups": (2, 2), "return_lse": True}
        return *whole, *block_attention(s.q, *pages, s.lengths, *fresh, **options)

    def choose(s: Step, table: Tensor) -> tuple:
        first, second = (
            lm_head_partials(s.hidden, part, first_id=first, entropy=True, margin=True)
            for first, part in ((0, s.head[:20]), (20, s.head[20:]))
        )
        return *merge_partials([first, second]), *confidence(s.logits, entropy=True)[:4]

    def layer(s: Step, table: Tensor) -> tuple:
        product = PartialSums(s.sums, s.q.dtype)
        turned = rope_kv_write(product, *s.angles, s.query_scale, kv_heads=2)
        normed = residual_norm(s.q.flatten(2), gated_silu(product), s.norm, 1e-5)
        x = torch.cat([s.sums.flatten(0, 2)] * 3, -1)  # another row tile for each batch
        return *turned, *normed, linear(x, eight_bits), linear_partials(x, eight_bits).total()

    for run in (attend, choose, layer):
        compiled = compiler(run, dynamic=True)
        for batch in (2, 3):
            s = Step(op_device, batch=batch, capacity=48)
            table = torch.arange(3 * batch, dtype=torch.int32, device=op_device).view(batch, 3)
            assert_all_same_bits(compiled(s, table), run(s, table))


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
            assert_all_same_bits(outputs, expected)
            assert_all_same_bits(captured.state, eager.state)
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
