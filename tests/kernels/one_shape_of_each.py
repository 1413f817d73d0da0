"""Every op once, on one small and awkward shape, against the float64 reference.

As a program it is what compute-sanitizer watches:

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/kernels/one_shape_of_each.py

PYTORCH_NO_CUDA_MEMORY_CACHING=1 makes every tensor an allocation of its own there, so that reading
or writing one element beyond it is seen. As a test (test_one_shape_of_each.py) it runs with poison
in what ops allocate and canaries round it.
"""

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import dlm_kernels as dk
from dlm_kernels.partial_sums import PartialSums

Results = tuple[Tensor, ...]

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


def attention(
    *, causal: bool = False, drafts: bool = False, paged: bool = False, numerics: str = "invariant"
) -> Callable[[Inputs], Results]:
    def run(inputs: Inputs) -> Results:
        block = 6 if drafts else BLOCK
        q = inputs.normal(BATCH, block, HEADS, DIM)
        shape = (6, PAGE, KV_HEADS, DIM) if paged else (BATCH, CAPACITY, KV_HEADS, DIM)
        caches = [inputs.normal(*shape) for _ in range(2)]
        fresh = [None] * 2 if causal else [inputs.normal(BATCH, block, KV_HEADS, DIM)] * 2
        return dk.block_attention(
            q,
            *caches,
            inputs.ids(CONTEXTS),
            *fresh,
            block_table=inputs.ids([[4, 0, 2], [1, 5, 3]]) if paged else None,
            draft_groups=(2, 3) if drafts else None,
            numerics=numerics,
            return_lse=True,
        )

    return run


def attention_over_fp8(inputs: Inputs) -> Results:
    q = inputs.normal(BATCH, BLOCK, HEADS, DIM)
    cache, fresh = (inputs.normal(BATCH, n, KV_HEADS, DIM) for n in (CAPACITY, BLOCK))
    cache = (40 * cache.float()).to(torch.float8_e4m3fn)
    contexts = inputs.ids(CONTEXTS)
    out = dk.block_attention(q, cache, cache, contexts, fresh, fresh, **inputs.scales())
    return (out,)


def confidence(inputs: Inputs) -> Results:
    logits = 3 * inputs.normal(5, 1003)
    tokens = inputs.ids([7, 3, 7, 7, 7])
    banned, error = inputs.ids([7, 11]), dk.new_error_word(inputs.device)
    options = {"tokens": tokens, "mask_id": 7, "banned": banned, "error": error}
    return *dk.confidence(logits, entropy=True, margin=True, **options), error


def head_inputs(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs.normal(5, 72), inputs.normal(1003, 72) / 8


def lm_head_confidence(inputs: Inputs) -> Results:
    return dk.lm_head_confidence(*head_inputs(inputs), banned=inputs.ids([7]))[1:3]


def lm_head_shards(inputs: Inputs) -> Results:
    hidden, weight = head_inputs(inputs)
    shards = [
        dk.lm_head_partials(hidden, part, first_id=first)
        for first, part in ((0, weight[:512]), (512, weight[512:]))
    ]
    return dk.merge_partials(shards)[1:3]


def linear(
    *, kind: str | None = None, rows: int = 3, partial: bool = False
) -> Callable[[Inputs], Results]:
    def run(inputs: Inputs) -> Results:
        x, weight = inputs.normal(rows, 200), inputs.normal(70, 200) / 14
        if kind is not None:
            weight = dk.quantize_weight(weight, kind)
        return (dk.linear_partials(x, weight).total() if partial else dk.linear(x, weight),)

    return run


def partial_sums(inputs: Inputs, *shape: int) -> PartialSums:
    return PartialSums(inputs.normal(3, *shape, dtype=torch.float32), inputs.dtype)


def residual_norm(inputs: Inputs) -> Results:
    update = partial_sums(inputs, 3, 200)
    return dk.residual_norm(inputs.normal(3, 200), update, inputs.normal(200), 1e-5)


def gated_silu(inputs: Inputs) -> Results:
    return (dk.gated_silu(partial_sums(inputs, 3, 2 * 70)),)


def rope_kv_write(
    *, paged: bool = False, fp8: bool = False, drafts: bool = False
) -> Callable[[Inputs], Results]:
    def run(inputs: Inputs) -> Results:
        block = 6 if drafts else BLOCK
        qkv = partial_sums(inputs, BATCH, block, (HEADS + 2 * KV_HEADS) * DIM)
        angle = 9 * inputs.uniform(BATCH, block, DIM // 2)
        shape = (6, PAGE, KV_HEADS, DIM) if paged else (BATCH, CAPACITY, KV_HEADS, DIM)
        dtype = torch.float8_e4m3fn if fp8 else inputs.dtype
        caches = [inputs.normal(*shape).to(dtype) for _ in range(2)]
        scales = inputs.scales() if fp8 else {}
        made = dk.rope_kv_write(
            qkv,
            angle.cos(),
            angle.sin(),
            inputs.uniform(BATCH, block) + 1,
            kv_heads=KV_HEADS,
            k_cache=caches[0],
            v_cache=caches[1],
            context_lens=inputs.ids(CONTEXTS),
            block_table=inputs.ids([[4, 0, 2], [1, 5, 3]]) if paged else None,
            draft_groups=(2, 3) if drafts else None,
            **scales,
        )
        return *(x for x in made if x is not None), *(cache.float() for cache in caches)

    return run


def rope(inputs: Inputs) -> Results:
    qkv = inputs.normal(BATCH, BLOCK, (HEADS + 2 * KV_HEADS) * DIM)
    angle = 9 * inputs.uniform(BATCH, BLOCK, DIM // 2)
    scale = inputs.uniform(BATCH, BLOCK) + 1
    return dk.rope_kv_write(qkv, angle.cos(), angle.sin(), scale, kv_heads=KV_HEADS)


def remask_scatter(inputs: Inputs) -> Results:
    tokens = torch.full((BATCH, BLOCK), 7, dtype=torch.int32, device=inputs.device)
    tokens[:, 0] = 9
    state = dk.BlockState.start(tokens, 7)
    candidate = inputs.ids([[20, 21, 22, 23, 24]] * BATCH)
    sureness, error = inputs.uniform(BATCH, BLOCK), dk.new_error_word(inputs.device)
    rule = dk.Rule(threshold=0.5)
    dk.remask_scatter(state, candidate, sureness, rule, mask_id=7, eos_id=11, error=error)
    return *state, error


CASES: dict[str, Callable[[Inputs], Results]] = {
    "block_attention": attention(),
    "block_attention, causal": attention(causal=True),
    "block_attention, causal, paged": attention(causal=True, paged=True),
    "block_attention, draft groups, paged": attention(drafts=True, paged=True),
    "block_attention, fast": attention(numerics="fast"),
    "block_attention, fp8 cache": attention_over_fp8,
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
    "residual_norm": residual_norm,
    "rope_kv_write, no cache": rope,
    "rope_kv_write": rope_kv_write(),
    "rope_kv_write, paged": rope_kv_write(paged=True),
    "rope_kv_write, draft groups": rope_kv_write(drafts=True),
    "rope_kv_write, fp8 cache, paged": rope_kv_write(paged=True, fp8=True),
}


def check(name: str, device: str, dtype: torch.dtype) -> None:
    """Run a case; an AssertionError says how its result is not the reference's."""
    actual = CASES[name](Inputs(device, dtype))
    forced = os.environ.get("DLM_BACKEND")
    os.environ["DLM_BACKEND"] = "reference"
    try:
        wanted = CASES[name](Inputs(device, dtype))
    finally:
        os.environ.pop("DLM_BACKEND")
        if forced is not None:
            os.environ["DLM_BACKEND"] = forced
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
