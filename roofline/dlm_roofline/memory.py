"""Peak memory of a forward by part, predicted.

Weights and pages of keys and values follow from sizes. What lives beside them at the peak is
counted: layers and head run on meta tensors, and allocate what they would on a device without
computing anything. Two layers tell it, for the second is like all that follow. What CUDA itself
takes, and what lies unused between allocations, comes on top.
"""

import weakref
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlm_core.config import ModelConfig
from dlm_core.decoding.runner import Runner
from dlm_core.model import CachedAttention, LayerInputs, Model, Rotations
from dlm_core.paged_cache import PagedKVCache, PagePool
from dlm_core.quantization import quantize_model
from dlm_kernels.backend import BACKENDS, dry_run
from dlm_kernels.cache_layout import CACHE_DTYPE

from .forward import DRAFT, LINEAR, VERIFY, Forward, parts_of
from .step_cost import head_rows, itemsize_of, kv_bytes_per_token, linear_shapes, weight_bytes

PAGE_SIZE = 64  # tokens, as a PagePool has them by default
_TORCH_LOGITS = 2**25  # that plain torch holds at a time


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the moment of the peak, by part.

    weights: as they are stored; of drafts and their verification with the draft's own output
        projections, into which a checkpoint's LoRA is merged.
    kv: whole pages of keys and values.
    activations: hidden states, products, partial results, and what the head takes.
    """

    weights: int
    kv: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations


def peak_memory(
    config: ModelConfig, forward: Forward, cached: int, *, backend: str = "triton"
) -> Memory:
    """The most that a greedy forward and what it stands on take at once, on each of its devices.

    Args:
        cached: tokens that every request has pages for: those of its context, and what the forward
            writes or is still to come.
        backend: whose ops do the work: "triton", launched as on an H200, or "torch", which is taken
            to need as much and the most logits that it holds at a time, with their softmax.

    Raises:
        ValueError: cached is less than the forward's context, or backend is another one.
    """
    if cached < forward.context:
        raise ValueError(
            f"cached is {cached}; it must be at least the context, which is {forward.context}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    kv_itemsize = 1 if forward.float8_cache else itemsize_of(forward.dtype)
    tokens = forward.batch * -(-cached // PAGE_SIZE) * PAGE_SIZE
    logits = _TORCH_LOGITS * 2 * 4 if backend == "torch" else 0
    return Memory(
        _weights(config, forward),
        tokens * kv_bytes_per_token(config, itemsize=kv_itemsize),
        _activations(config, forward) + logits,
    )


def _weights(config: ModelConfig, forward: Forward) -> int:
    itemsize, hidden = itemsize_of(forward.dtype), config.hidden_size
    shapes = linear_shapes(config)
    if forward.kind in (DRAFT, VERIFY, LINEAR):
        shapes.append((config.num_attention_heads * config.head_dim, hidden))
    layer = sum(weight_bytes(*each, forward) for each in shapes) + 2 * itemsize * hidden
    return config.num_hidden_layers * layer + itemsize * (2 * config.vocab_size + 1) * hidden


@cache
def _activations(config: ModelConfig, forward: Forward) -> int:
    """Bytes that layers and head hold at most, counted on meta tensors."""
    model = _model(config, forward.dtype, forward.weights)
    runner, dtype = Runner.of(model), CACHE_DTYPE if forward.float8_cache else model.dtype
    with dry_run("triton"), LiveBytes() as live:
        # A single page: every entry of a block table on meta tensors may mean it.
        pool = PagePool(model.config, 1, PAGE_SIZE, device=model.device, dtype=dtype)
        shape = (forward.batch, pool.pages_for(forward.context + forward.block))
        table = torch.empty(shape, dtype=torch.int32, device=model.device)
        cache = PagedKVCache.over(pool, table, table[:, 0].contiguous(), forward.context)
        before = live.peak = live.now
        for part in parts_of(forward):
            hidden = _hidden(runner, cache, part)  # of a draft it outlives the verification
            for rows in head_rows(part):
                runner.statistics(hidden[:, -(rows // part.batch) :])
    return live.peak - before


def _hidden(runner: Runner, cache: PagedKVCache, forward: Forward) -> Tensor:
    """What `Model.forward` gives, but for its arithmetic on ids and positions."""
    shape, half = (forward.batch, forward.block), runner.model.config.head_dim // 2
    empty = partial(torch.empty, device=runner.model.device)
    rotations = Rotations(empty(*shape, half), empty(*shape, half), empty(shape))
    attend = CachedAttention.over(
        cache,
        rotations,
        causal=forward.causal,
        draft_groups=forward.draft_groups,
        numerics=runner.numerics,
        error=None,
    )
    inputs = LayerInputs(attend, runner.numerics, False)
    return runner.model.encoder(empty(shape, dtype=torch.int32), inputs)


@cache
def _model(config: ModelConfig, dtype: str, weights: str | None) -> Model:
    with LiveBytes():
        config = replace(config, num_hidden_layers=min(config.num_hidden_layers, 2))
        model = Model(config, device="meta", dtype=getattr(torch, dtype))
        if weights is not None:
            quantize_model(model, weights)
    return model


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made inside and still referred to: now, and at most.

    Ops run as the functions that they are, since the run is dry: what they allocate is seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # checks of contents, which meta tensors do not have, pass
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _makes_new(func):
            for made in tree_leaves(result):
                if isinstance(made, Tensor):
                    self._count(made.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: object) -> None:
            self.now -= size
            del self._alive[key]

        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, forget)
            self.now += size
            self.peak = max(self.peak, self.now)


@cache
def _makes_new(func: OpOverload) -> bool:
    """Whether results have storages of their own, not those of arguments."""
    return not any(each.alias_info for each in func._schema.returns)
