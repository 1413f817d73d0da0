"""Predicted memory against what the model, its caches and the kernels' launchers allocate.

Activations of the Triton path are counted on meta tensors: all of a forward runs but the kernels
themselves. Those of plain torch are counted on the CPU.
"""

import importlib
import inspect
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlm_core import PRESETS, random_model
from dlm_core.config import ModelConfig
from dlm_core.decoding.denoise import Needs, denoise_step
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.sampling import Sampling, SamplingTable, distribution
from dlm_core.model import Model
from dlm_core.paged_cache import PagedKVCache, PagePool
from dlm_core.quantization import linears_of, quantize_model
from dlm_core.quantization import weight_bytes as bytes_of_weights
from dlm_kernels import BlockState, Rule, RuleTable
from dlm_kernels.quantized_weight import QuantizedWeight
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, QUADRATIC, VERIFY, Forward
from dlm_roofline.memory import PAGE_SIZE, Memory, peak_memory
from dlm_roofline.step_cost import forward_weight_bytes, shard_of

# As dlm_kernels binds each op's function to its module's name, modules are imported by path.
OPS = [
    importlib.import_module(f"dlm_kernels.{name}")
    for name in (
        "block_attention", "confidence", "gated_silu", "linear", "lm_head_confidence",
        "remask_scatter", "residual_norm", "rope_kv_write",
    )
]  # fmt: skip
MODELS = {
    "8b": replace(PRESETS["8b"], num_hidden_layers=2),  # the second is like all that follow
    "3b": replace(PRESETS["3b"], num_hidden_layers=2),
    "tiny": PRESETS["tiny"],
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that came to be inside and are still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for given in tree_leaves((args, kwargs)):
            self._count(given, ours=False)
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            self._count(made, ours=True)
        return result

    def _count(self, value: object, *, ours: bool) -> None:
        if not isinstance(value, Tensor) or value.untyped_storage()._cdata in self._known:
            return
        storage = value.untyped_storage()
        self._known.add(storage._cdata)
        size = storage.nbytes() if ours else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.fixture
def open_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Custom ops are the functions they were made of, or they would hide what they allocate."""
    for module in OPS:
        for name, value in list(vars(module).items()):
            if hasattr(value, "_init_fn"):
                monkeypatch.setattr(module, name, value._init_fn)


@pytest.fixture
def launchers_alone(open_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops run their Triton launchers, on whatever device, and no kernel is launched."""

    class NoKernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **kwargs: None

    for module in OPS:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, NoKernel())
        if hasattr(module, "backend_for"):
            monkeypatch.setattr(module, "backend_for", lambda tensor: "triton")


def counted(config: ModelConfig, forward: Forward, device: str = "meta") -> int:
    """Peak of what a forward allocates."""
    dtype, on = getattr(torch, forward.dtype), {"device": device}
    model = Model(config, dtype=dtype, **on) if device == "meta" else random_model(config, seed=0)
    if forward.weights is not None:
        for _, linear in linears_of(model):
            linear.keep(few_bits(linear.weight, forward.weights))
    pages = forward.context // PAGE_SIZE + 8
    pool = PagePool(config, forward.batch * pages, dtype=dtype, **on)
    block_table = torch.arange(forward.batch * pages, dtype=torch.int32, **on).view(-1, pages)
    lengths = torch.full((forward.batch,), forward.context, dtype=torch.int32, **on)
    cache = PagedKVCache.over(pool, block_table, lengths, forward.context)
    if forward.float8_cache:
        scales = torch.empty(config.num_hidden_layers, config.num_key_value_heads, **on)
        cache.key_scales = cache.value_scales = list(scales)
        cache.keys, cache.values = (
            [torch.empty_like(x, dtype=torch.float8_e4m3fn) for x in xs]
            for xs in (cache.keys, cache.values)
        )
    runner = Runner.of(model)
    tokens = torch.full((forward.batch, forward.block), 100, dtype=torch.int32, **on)
    if forward.kind == DENOISE:
        state, rule = BlockState.start(tokens, 100), Rule(threshold=0.9)
        rules = RuleTable.pack([rule] * forward.batch, device)
        table = SamplingTable.pack([Sampling()] * forward.batch, device)
        with LiveBytes() as live:
            denoise_step(runner, cache, state, Needs.of(rule, Sampling()), rules, table)
        return live.peak
    with LiveBytes() as live:
        options = {"causal": forward.causal, "draft_groups": forward.draft_groups}
        hidden = runner.hidden(tokens, cache, **options)
        if forward.kind == QUADRATIC:  # verified rows, then masks of one group, as the cycle does
            groups = hidden.unflatten(1, forward.draft_groups)
            last = torch.zeros(forward.batch, dtype=torch.int64, device=device)
            runner.statistics(groups[:, :, 0])
            runner.statistics(groups[torch.arange(forward.batch, device=device), last, 2:])
        else:
            runner.statistics(hidden[:, 1:] if forward.kind == DRAFT else hidden)
    return live.peak


def passing(memory: Memory) -> int:
    """Bytes that are gone when the forward is through."""
    return memory.activations + memory.logits


def few_bits(weight: Tensor, kind: str) -> QuantizedWeight:
    n_out, n_in = weight.shape
    if kind == "int4":
        groups = -(-n_in // 128)
        values = torch.empty(n_out, 64 * groups, dtype=torch.uint8, device="meta")
        return QuantizedWeight(values, torch.empty(n_out, groups, device="meta"), kind, n_in)
    dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    values = torch.empty(n_out, n_in, dtype=dtype, device="meta")
    return QuantizedWeight(values, torch.empty(n_out, device="meta"), kind, n_in)


@pytest.mark.usefixtures("launchers_alone")
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize(
    "kind, block",
    [(DECODE, 1), (DENOISE, 8), (DENOISE, 32), (DRAFT, 32), (VERIFY, 32), (QUADRATIC, 272)],
)
@pytest.mark.parametrize(
    "model, context",
    [("8b", 512), ("8b", 1024), ("8b", 131072), ("3b", 16384), ("tiny", 0), ("tiny", 3000)],
)
def test_activations_are_what_a_forward_allocates(
    model: str, context: int, kind: str, block: int, batch: int
) -> None:
    dtype = "float32" if model == "tiny" else "bfloat16"
    forward = Forward(kind, batch, block, context, dtype)
    found = passing(peak_memory(MODELS[model], forward, context + block))
    assert found == pytest.approx(counted(MODELS[model], forward), rel=0.02)


@pytest.mark.usefixtures("launchers_alone")
@pytest.mark.parametrize("weights", ["fp8", "int8", "int4", None])
@pytest.mark.parametrize("kind, block", [(DENOISE, 32), (QUADRATIC, 110)])
@pytest.mark.parametrize("batch", [1, 16])
def test_activations_of_weights_and_caches_in_few_bits(
    weights: str | None, kind: str, block: int, batch: int
) -> None:
    forward = Forward(kind, batch, block, 16384, "bfloat16", weights, float8_cache=True)
    found = passing(peak_memory(MODELS["8b"], forward, 17000))
    assert found == pytest.approx(counted(MODELS["8b"], forward), rel=0.02)


@pytest.mark.usefixtures("open_ops")
@pytest.mark.parametrize("vocab", [128, 4096])  # the peak is in a layer, or at the head
@pytest.mark.parametrize("batch, context", [(1, 0), (1, 2000), (9, 100)])
@pytest.mark.parametrize("kind, block", [(DECODE, 1), (DENOISE, 8), (DENOISE, 32), (VERIFY, 32)])
def test_activations_and_logits_in_plain_torch(
    kind: str, block: int, batch: int, context: int, vocab: int
) -> None:
    config = replace(PRESETS["tiny"], num_hidden_layers=2, vocab_size=vocab)
    forward = Forward(kind, batch, block, context, "float32")
    found = peak_memory(config, forward, context + block, backend="torch")
    assert passing(found) == pytest.approx(counted(config, forward, "cpu"), rel=0.1)
    assert bool(found.logits) == (found.logits > found.activations)


@pytest.mark.usefixtures("launchers_alone")
def test_activations_of_a_shard() -> None:
    config, forward = MODELS["8b"], Forward(DENOISE, 4, 32, 1024, "bfloat16")
    found = passing(peak_memory(config, replace(forward, shards=2), 1056))
    assert found == pytest.approx(counted(shard_of(config, 2), forward), rel=0.02)


@pytest.mark.parametrize("weights", [None, "fp8", "int8", "int4"])
def test_weights_are_what_a_model_holds(weights: str | None) -> None:
    config = PRESETS["tiny"]
    model = random_model(config, seed=0)
    if weights is not None:
        quantize_model(model, weights)
    forward = Forward(DENOISE, 1, 32, 100, "float32", weights)
    assert peak_memory(config, forward, 132).weights == bytes_of_weights(model)
    # A draft has an o_proj of its own: [hidden, heads x head_dim], all 256 here.
    row = {None: 1024, "fp8": 260, "int8": 260, "int4": 2 * 68}[weights]
    more = peak_memory(config, replace(forward, kind=VERIFY), 132).weights
    assert more - bytes_of_weights(model) == 4 * 256 * row


def test_published_weights() -> None:
    config = PRESETS["8b"]
    found = peak_memory(config, Forward(DENOISE, 1, 32, 0, "bfloat16"), 32).weights
    assert found == forward_weight_bytes(config, itemsize=2) + 2 * 131072 * 4096
    assert found / 1e9 == pytest.approx(2 * 8.49, rel=1e-3)


@pytest.mark.parametrize("cached, pages", [(1, 1), (64, 1), (65, 2), (1056, 17)])
def test_keys_and_values_are_those_of_whole_pages(cached: int, pages: int) -> None:
    assert inspect.signature(PagePool).parameters["page_size"].default == PAGE_SIZE
    config, forward = PRESETS["tiny"], Forward(DECODE, 3, 1, 1, "float32")
    pool = PagePool(config, 3 * pages, device="meta", dtype=torch.float32)
    expected = sum(tensor.nbytes for tensor in (*pool.keys, *pool.values))
    assert peak_memory(config, forward, cached).kv == expected
    # A quarter in float8, and a float32 scale for each of 2 heads, 4 layers, keys and values.
    few = peak_memory(config, replace(forward, float8_cache=True), cached).kv
    assert few == expected // 4 + 4 * 2 * 4 * 2


def test_published_keys_and_values() -> None:
    found = peak_memory(PRESETS["8b"], Forward(DENOISE, 2, 32, 1024, "bfloat16"), 1088)
    assert found.kv == 2 * 1088 * 139_264


def test_shards_hold_their_part_of_what_divides() -> None:
    config, forward = PRESETS["8b"], Forward(DENOISE, 4, 32, 1024, "bfloat16")
    one, two = (peak_memory(config, replace(forward, shards=n), 1056, sampled=True) for n in (1, 2))
    whole = 2 * (131072 + 2 * 34 + 1) * 4096  # embedding and norms
    assert two.weights - whole == (one.weights - whole) // 2
    assert (two.kv, two.logits) == (one.kv // 2, one.logits // 2)
    with pytest.raises(ValueError, match="shards is 3; it must divide num_attention_heads"):
        peak_memory(config, replace(forward, shards=3), 1056)


def test_logits_lie_in_memory_where_steps_sample() -> None:
    config, forward = PRESETS["tiny"], Forward(DENOISE, 2, 32, 0, "float32")
    assert peak_memory(config, forward, 32).logits == 0
    found = peak_memory(config, forward, 32, sampled=True)
    # Of the layers nothing is left by then but the head's input.
    assert found.activations == 64 * 256 * 4
    assert found.total == found.weights + found.kv + found.activations + found.logits
    table = SamplingTable.pack([Sampling(temperature=1.0, top_p=0.9)] * 2, "cpu")
    banned = torch.tensor([3], dtype=torch.int32)
    with LiveBytes() as live:
        logits = torch.randn(2, 32, config.vocab_size)
        distribution(logits, table, banned)
    assert live.peak <= found.logits  # a GPU's sort takes more than a CPU's
    assert found.logits == pytest.approx(live.peak, rel=0.2)
    draft = peak_memory(config, replace(forward, kind=DRAFT), 32, sampled=True)
    assert draft.logits * 32 == found.logits * 31
    # 4 groups of 5 rows: the head takes 4 of 20 rows, and then 3.
    quadratic = peak_memory(config, replace(forward, kind=QUADRATIC, block=20), 32, sampled=True)
    assert quadratic.logits * 8 == found.logits


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="cached is 99; it must be at least the context, .* 100"):
        peak_memory(PRESETS["tiny"], Forward(DECODE, 1, 1, 100, "float32"), 99)
    with pytest.raises(ValueError, match="backend is 'cuda'; it must be triton or torch"):
        peak_memory(PRESETS["tiny"], Forward(DECODE, 1, 1, 9, "float32"), 10, backend="cuda")
