"""Every kernel compiles for every architecture within its limits, as its launcher launches it.

Runs in a process of its own: a kernel that was imported for the interpreter cannot be compiled.
"""

import importlib
import re
from collections.abc import Callable

import pytest
import torch
from kernel_compiler import CompiledKernel, compile_launches

from dlm_kernels import launch, rules

ARCHS = list(launch.SHARED_MEMORY)
# As __init__ binds each op's function to its module's name, modules are imported by path.
attention = importlib.import_module("dlm_kernels.block_attention")
confidence = importlib.import_module("dlm_kernels.confidence")
linear = importlib.import_module("dlm_kernels.linear")
lm_head = importlib.import_module("dlm_kernels.lm_head_confidence")
remask_scatter = importlib.import_module("dlm_kernels.remask_scatter")


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attention_launcher(
    head_dim: int,
    *,
    causal: bool = False,
    block: int = 32,
    capacity: int = 8192,
    numerics: str = "invariant",
    dtype: torch.dtype = torch.bfloat16,
    lse: bool = False,
    page_size: int | None = None,
    draft_length: int = 0,
) -> Callable[[], object]:
    """The 8B model's heads: 32 query heads on 8 KV heads."""
    cache, table = empty(2, capacity, 8, head_dim, dtype=dtype), None
    if page_size:
        table = empty(2, capacity // page_size)
        cache = empty(2 * capacity // page_size, page_size, 8, head_dim, dtype=dtype)
    fresh = None if causal else empty(2, block, 8, head_dim, dtype=dtype)
    context_limit = capacity - (block if causal or draft_length else 0)
    arguments = (
        empty(2, block, 32, head_dim, dtype=dtype), cache, cache, empty(2), table, fresh, fresh,
        0, draft_length, head_dim**-0.5, numerics, context_limit, lse, empty(1),
    )  # fmt: skip
    return lambda: attention._launch(*arguments)


def confidence_launcher(
    dtype: torch.dtype, *, extras: bool = False, bare: bool = False, stride: int = 131072
) -> Callable[[], object]:
    logits = torch.empty_strided((32, 131072), (stride, 1), dtype=dtype, device="meta")
    tokens, banned, error = (None,) * 3 if bare else (empty(32), empty(1), empty(1))
    return lambda: confidence._launch(logits, tokens, 100, banned, extras, extras, error)


def linear_launcher(
    in_features: int, out_features: int, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], object]:
    x = empty(32, in_features, dtype=dtype)
    weight = empty(out_features, in_features, dtype=dtype)
    return lambda: linear._launch(x, weight)


def lm_head_launcher(
    dtype: torch.dtype,
    *,
    extras: bool = False,
    bare: bool = False,
    features: int = 4096,
    vocab: int = 131072,
) -> Callable[[], object]:
    hidden, weight = empty(32, features, dtype=dtype), empty(vocab, features, dtype=dtype)
    tokens, banned, error = (None,) * 3 if bare else (empty(32), empty(1), empty(1))
    arguments = (hidden, weight, tokens, 100, banned, extras, extras, error)
    return lambda: lm_head._launch(*arguments)


def remask_launcher(
    block: int, tokens: torch.dtype = torch.int32, *, noise: bool = False, remask: bool = False
) -> Callable[[], object]:
    positions = {
        dtype: empty(4, block, dtype=dtype) for dtype in (torch.int32, torch.float32, torch.bool)
    }
    ints, floats, bools = positions.values()
    state = (
        empty(4, block, dtype=tokens), bools, ints, floats,
        empty(4), empty(4), empty(4), empty(4, dtype=torch.bool),
    )  # fmt: skip
    rule = empty(4, len(rules.NUMBERS), dtype=torch.float32), empty(4, len(rules.COUNTS))
    drawn = (empty(4, dtype=torch.int64), empty(4)) if noise else (None, None)
    token_probability = floats if remask else None
    return lambda: remask_scatter._launch(
        *state, ints, floats, *rule, token_probability, *drawn, 131072, 100, 11, empty(1)
    )


CASES = {
    **{
        f"D{head_dim} {'causal' if causal else 'bidirectional'}": attention_launcher(
            head_dim, causal=causal
        )
        for head_dim in (16, 32, 64, 128, 256)
        for causal in (False, True)
    },
    "D64 one split": attention_launcher(64, capacity=512),
    "D64 causal one split": attention_launcher(64, capacity=512, lse=True, causal=True),
    "D256 one split": attention_launcher(256, capacity=512),
    "D256 causal one split": attention_launcher(256, capacity=512, lse=True, causal=True),
    "D128 one split": attention_launcher(128, capacity=512, lse=True),
    "D128 causal one split": attention_launcher(128, capacity=512, lse=True, causal=True),
    "D128 fast, 1 query": attention_launcher(128, block=1, numerics="fast", causal=True),
    "D128 fast, 256 queries": attention_launcher(128, block=256, numerics="fast"),
    "D128 paged": attention_launcher(128, page_size=16),
    "D256 paged": attention_launcher(256, page_size=16),
    "D128 drafts": attention_launcher(128, block=272, draft_length=17),
    "D128 drafts paged": attention_launcher(128, block=272, draft_length=17, page_size=16),
    "D64 fp16": attention_launcher(64, dtype=torch.float16),
    "D64 fp32": attention_launcher(64, dtype=torch.float32, causal=True),
    "D128 fp32": attention_launcher(128, dtype=torch.float32),
    "D256 fp32": attention_launcher(256, dtype=torch.float32),
    "bf16": confidence_launcher(torch.bfloat16),
    "bf16 bare": confidence_launcher(torch.bfloat16, bare=True),
    "bf16 odd stride": confidence_launcher(torch.bfloat16, stride=131075),
    "bf16 entropy, margin": confidence_launcher(torch.bfloat16, extras=True),
    "fp16": confidence_launcher(torch.float16),
    "fp32": confidence_launcher(torch.float32),
    "fp32 entropy, margin": confidence_launcher(torch.float32, extras=True),
    "8B's q and o": linear_launcher(4096, 4096),
    "8B's k and v": linear_launcher(4096, 1024),
    "8B's down": linear_launcher(14336, 4096),
    "8B's head": linear_launcher(4096, 131072),
    "fp16 odd features": linear_launcher(1000, 131, torch.float16),
    "linear fp32": linear_launcher(512, 1792, torch.float32),
    "head bf16": lm_head_launcher(torch.bfloat16),
    "head bf16 bare": lm_head_launcher(torch.bfloat16, bare=True),
    "head bf16 entropy, margin": lm_head_launcher(torch.bfloat16, extras=True),
    "head bf16 odd sizes": lm_head_launcher(
        torch.bfloat16, extras=True, features=1001, vocab=50257
    ),
    "head bf16 small model": lm_head_launcher(torch.bfloat16, features=192, vocab=2048),
    "head bf16 2**20 ids": lm_head_launcher(torch.bfloat16, extras=True, vocab=2**20),
    "head fp16": lm_head_launcher(torch.float16),
    "head fp16 entropy, margin": lm_head_launcher(torch.float16, extras=True),
    "head fp32": lm_head_launcher(torch.float32),
    "head fp32 entropy, margin": lm_head_launcher(torch.float32, extras=True),
    "block 32": remask_launcher(32),
    "block 64, int64 tokens": remask_launcher(64, torch.int64),
    "block 256": remask_launcher(256),
    "block 32, noise": remask_launcher(32, noise=True),
    "block 256, noise, remasking, int64 tokens": remask_launcher(
        256, torch.int64, noise=True, remask=True
    ),
}


def count(pattern: str, lines: list[str]) -> int:
    return sum(bool(re.search(pattern, line)) for line in lines)


def main_loop(kernel: CompiledKernel) -> list[str]:
    """The loop over logits without bans: the shortest that takes exponentials."""
    return min((loop for loop in kernel.loops() if count(r"MUFU\.EX2", loop)), key=len)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", CASES)
def test_fits_without_spills(case: str, arch: str, report) -> None:
    kernels = compile_launches(arch, CASES[case])
    assert kernels, "the launcher launched nothing"
    for kernel in kernels:
        report.add(case, kernel)
        assert kernel.spills == 0 and kernel.usage["LOCAL"] == 0, kernel.usage
        assert kernel.shared <= launch.SHARED_MEMORY[arch]


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
def test_hopper_attention_uses_wgmma_and_wide_loads(head_dim: int, causal: bool) -> None:
    split, _ = compile_launches("sm_90", attention_launcher(head_dim, causal=causal))
    assert split.constants["BLOCK_M"] >= 64
    assert count(r"\bHGMMA\b", split.sass) > 0
    assert count(r"\bHMMA\b", split.sass) == 0
    async_loads = count(r"\bLDGSTS\b", split.sass)
    assert async_loads > 0
    assert count(r"\bLDGSTS\S*\.128", split.sass) == async_loads


@pytest.mark.parametrize("arch", ARCHS)
def test_pages_load_as_wide_and_as_far_ahead_as_a_contiguous_cache(arch: str) -> None:
    """As many asynchronous 16-byte loads, in as much shared memory: page numbers take the rest."""
    paged, _ = compile_launches(arch, attention_launcher(128, page_size=16))
    contiguous, _ = compile_launches(arch, attention_launcher(128))
    wide, expected = (count(r"\bLDGSTS\S*\.128", x.sass) for x in (paged, contiguous))
    assert wide == expected > 0
    assert 0 <= paged.shared - contiguous.shared <= 2048


@pytest.mark.parametrize(
    "launcher",
    [
        linear_launcher(4096, 1024),
        linear_launcher(4096, 131072),
        lm_head_launcher(torch.bfloat16),
        lm_head_launcher(torch.bfloat16, extras=True),
    ],
    ids=["k and v", "head", "head with confidence", "head with confidence, entropy, margin"],
)
def test_hopper_linear_uses_wgmma_and_wide_loads(launcher: Callable[[], object]) -> None:
    product, *_ = compile_launches("sm_90", launcher)
    assert count(r"\bHGMMA\b", product.sass) > 0
    assert count(r"\bHMMA\b", product.sass) == 0
    async_loads = count(r"\bLDGSTS\b", product.sass)
    assert async_loads > 0
    assert count(r"\bLDGSTS\S*\.128", product.sass) == async_loads


@pytest.mark.parametrize("arch", ARCHS)
def test_confidence_loop_is_lean(arch: str, report) -> None:
    """Goals for bf16 without entropy and margin: 12 instructions, 1.1 exponentials a logit.

    At 90% of an H200's bandwidth its SMs have 15.3 instruction and 1.9 special-function slots.
    """
    chunk, _ = compile_launches(arch, confidence_launcher(torch.bfloat16))
    loop = main_loop(chunk)
    loads = count(r"\b(LDGSTS|LDG)\S*\.128", loop)
    logits = loads * chunk.constants["VECTOR"]
    instructions, exps = len(loop) / logits, count(r"MUFU\.EX2", loop) / logits
    report.add("bf16 main loop", chunk, f"{instructions:.1f} instructions, {exps:.2f} ex2 a logit")
    assert loads == 2
    assert instructions <= 12
    assert exps <= 1.1


def test_gate_sees_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = launch.AttentionLaunch(64, 64, split_keys=1024, num_warps=4, num_stages=2)
    monkeypatch.setattr(launch, "smallest_serving", lambda table, size: crowded)
    split, _ = compile_launches("sm_90", attention_launcher(256))
    assert split.spills > 0


def test_gate_sees_too_much_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = launch.AttentionLaunch(128, 128, split_keys=1024, num_warps=8, num_stages=6)
    monkeypatch.setattr(launch, "smallest_serving", lambda table, size: deep)
    split, _ = compile_launches("sm_90", attention_launcher(128))
    assert split.shared > launch.SHARED_MEMORY["sm_90"]
