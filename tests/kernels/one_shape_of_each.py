"""Every op once, on one small and awkward shape, against the float64 reference.

As a program it is what compute-sanitizer watches:

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/kernels/one_shape_of_each.py

PYTORCH_NO_CUDA_MEMORY_CACHING=1 makes every tensor an allocation of its own there, so that reading
or writing one element beyond it is seen. As a test (test_one_shape_of_each.py) it runs with poison
in what ops allocate and canaries round it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))  # where pytest looks, and a program does not

import reference
from attention_inputs import attention_inputs

import dlm_kernels
from dlm_kernels import BlockState, Rule, new_error_word, quantize_weight
from dlm_kernels.partial_sums import PartialSums

Results = tuple[Tensor, ...]
Case = Callable[[ModuleType, "Inputs"], Results]  # the first is dlm_kernels, or the reference

# Shares of the largest value that the ops may be off: a rounding of the output and some of inputs.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

HEADS, KV_HEADS, DIM = 4, 2, 32
BATCH, BLOCK, CAPACITY, PAGE = 2, 5, 48, 16
CONTEXTS = [17, 30]


class Inputs:
    """Random inputs on one device, the same ones for the same case."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(5)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator)
        return drawn.to(self.device, dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator).to(self.device)

    def ids(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def scales(self) -> dict[str, Tensor]:
        return {f"{name}_scale": self.uniform(KV_HEADS) / 100 + 0.01 for name in "kv"}


def attention(kind: str, numerics: str = "batch_invariant", **options: object) -> Case:
    def run(ops: ModuleType, inputs: Inputs) -> Results:
        error = new_error_word(inputs.device)
        arguments = attention_inputs(
            kind,
            CONTEXTS,
            inputs.device,
            inputs.dtype,
            heads=(HEADS, KV_HEADS),
            head_dim=DIM,
            **options,
        )
        return *ops.block_attention(**arguments, numerics=numerics, error=error), error

    return run


def confidence(ops: ModuleType, inputs: Inputs) -> Results:
    logits = 3 * inputs.normal(5, 1003)
    tokens = inputs.ids([7, 3, 7, 7, 7])
    banned, error = inputs.ids([7, 11]), new_error_word(inputs.device)
    options = {"tokens": tokens, "mask_id": 7, "banned": banned, "error": error}
    return *ops.confidence(logits, entropy=True, margin=True, **options), error


def head_inputs(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs.normal(5, 72), inputs.normal(1003, 72) / 8


def lm_head_confidence(ops: ModuleType, inputs: Inputs) -> Results:
    error = new_error_word(inputs.device)
    options = {"entropy": True, "margin": True, "error": error, "banned": inputs.ids([7])}
    # Which of two ids that are close comes first may depend on rounding.
    return *ops.lm_head_confidence(*head_inputs(inputs), **options)[1:3], error


def lm_head_shards(ops: ModuleType, inputs: Inputs) -> Results:
    hidden, weight = head_inputs(inputs)
    shards = [
        ops.lm_head_partials(hidden, part, first_id=first, entropy=True, margin=True)
        for first, part in ((0, weight[:512]), (512, weight[512:]))
    ]
    return ops.merge_partials(shards)[1:3]


def linear(*, kind: str | None = None, rows: int = 3, partial: bool = False) -> Case:
    def run(ops: ModuleType, inputs: Inputs) -> Results:
        x, weight = inputs.normal(rows, 200), inputs.normal(70, 200) / 14
        if kind is not None:
            weight = quantize_weight(weight, kind)
        return (ops.linear_partials(x, weight).total() if partial else ops.linear(x, weight),)

    return run


def partial_sums(inputs: Inputs, *shape: int) -> PartialSums:
    return PartialSums(inputs.normal(3, *shape, dtype=torch.float32), inputs.dtype)


def residual_norm(*, update: bool = True) -> Case:
    def run(ops: ModuleType, inputs: Inputs) -> Results:
        added = partial_sums(inputs, 3, 200) if update else None
        return ops.residual_norm(inputs.normal(3, 200), added, inputs.normal(200), 1e-5)

    return run


def gated_silu(ops: ModuleType, inputs: Inputs) -> Results:
    return (ops.gated_silu(partial_sums(inputs, 3, 2 * 70)),)


def rope_kv_write(
    *, cached: bool = True, paged: bool = False, fp8: bool = False, drafts: bool = False
) -> Case:
    def run(ops: ModuleType, inputs: Inputs) -> Results:
        block = 6 if drafts else BLOCK
        qkv = partial_sums(inputs, BATCH, block, (HEADS + 2 * KV_HEADS) * DIM)
        angle = 9 * inputs.uniform(BATCH, block, DIM // 2)
        scale = inputs.uniform(BATCH, block) + 1
        shape = (6, PAGE, KV_HEADS, DIM) if paged else (BATCH, CAPACITY, KV_HEADS, DIM)
        dtype = torch.float8_e4m3fn if fp8 else inputs.dtype
        caches = [inputs.normal(*shape).to(dtype) for _ in range(2)] if cached else []
        options = dict(zip(("k_cache", "v_cache"), caches, strict=False))
        if cached:
            options |= {"context_lens": inputs.ids(CONTEXTS)} | (inputs.scales() if fp8 else {})
        if paged:
            options["block_table"] = inputs.ids([[4, 0, 2], [1, 5, 3]])
        if drafts:
            options["draft_groups"] = (2, 3)
        error = new_error_word(inputs.device)
        made = ops.rope_kv_write(
            qkv, angle.cos(), angle.sin(), scale, kv_heads=KV_HEADS, error=error, **options
        )
        return *(x for x in made if x is not None), *(cache.float() for cache in caches), error

    return run


def remask_scatter(ops: ModuleType, inputs: Inputs) -> Results:
    tokens = torch.full((BATCH, BLOCK), 7, dtype=torch.int32, device=inputs.device)
    tokens[:, 0] = 9
    state = BlockState.start(tokens, 7)
    candidate = inputs.ids([[20, 21, 22, 23, 24]] * BATCH)
    sureness, error = inputs.uniform(BATCH, BLOCK), new_error_word(inputs.device)
    rule = Rule(threshold=0.5)
    ops.remask_scatter(state, candidate, sureness, rule, mask_id=7, eos_id=11, error=error)
    return *state, error


CASES: dict[str, Case] = {
    "block_attention": attention("bidirectional"),
    "block_attention, causal": attention("causal"),
    "block_attention, causal, paged": attention("causal", page_size=PAGE),
    "block_attention, draft groups, paged": attention("drafts", page_size=PAGE),
    "block_attention, fast": attention("bidirectional", "fast"),
    "block_attention, fp8 cache": attention("bidirectional", float8=True),
    "confidence": confidence,
    "gated_silu": gated_silu,
    "linear": linear(),
    "linear, many rows": linear(rows=300),
    "linear, parts": linear(partial=True),
    "linear, fp8": linear(kind="fp8"),
    "linear, int8": linear(kind="int8"),
    "linear, int4": linear(kind="int4"),
    "lm_head_confidence": lm_head_confidence,
    "lm_head_confidence, shards": lm_head_shards,
    "remask_scatter": remask_scatter,
    "residual_norm": residual_norm(),
    "residual_norm, no update": residual_norm(update=False),
    "rope_kv_write, no cache": rope_kv_write(cached=False),
    "rope_kv_write": rope_kv_write(),
    "rope_kv_write, paged": rope_kv_write(paged=True),
    "rope_kv_write, draft groups": rope_kv_write(drafts=True),
    "rope_kv_write, fp8 cache, paged": rope_kv_write(paged=True, fp8=True),
}


def check(name: str, device: str, dtype: torch.dtype) -> None:
    """Run a case; an AssertionError says how its result is not the reference's."""
    actual, wanted = (CASES[name](ops, Inputs(device, dtype)) for ops in (dlm_kernels, reference))
    assert len(actual) == len(wanted)
    for i, (mine, other) in enumerate(zip(actual, wanted, strict=True)):
        assert mine.shape == other.shape, f"{name}, {i}: {mine.shape} against {other.shape}"
        if not mine.is_floating_point():
            assert torch.equal(mine.long(), other.long()), f"{name}, {i}: ids or counts differ"
            continue
        mine, other = mine.double(), other.double()
        assert torch.equal(mine.isnan(), other.isnan()), f"{name}, {i}: NaN in other places"
        apart = float((mine - other).nan_to_num().abs().max() / other.nan_to_num().abs().max())
        # An fp8 cache may round a value that lies between two of its own to either.
        allowed = 0.13 if "rope_kv_write, fp8" in name else TOLERANCE[dtype]
        assert apart <= allowed, f"{name}, {i}: off by {apart:.1e} of the largest value"


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("one_shape_of_each: torch sees no CUDA device")
    for name in sys.argv[1:] or CASES:
        check(name, "cuda", torch.bfloat16)
        torch.cuda.synchronize()
        print("right:", name, flush=True)


if __name__ == "__main__":
    main()
