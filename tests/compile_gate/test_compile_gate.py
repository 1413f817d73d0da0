"""Every kernel compiles for every architecture within its limits, as its launcher launches it.

Runs in a process of its own: a kernel that was imported for the interpreter cannot be compiled.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from kernel_compiler import CompiledKernel, compile_launches

from dlm_kernels import PartialSums, launch, rules
from dlm_kernels.cache_layout import CacheView, DraftGroups

# As __init__ binds each op's function to its module's name, modules are imported by path.
attention = importlib.import_module("dlm_kernels.block_attention")
confidence = importlib.import_module("dlm_kernels.confidence")
gated_silu = importlib.import_module("dlm_kernels.gated_silu")
linear = importlib.import_module("dlm_kernels.linear")
lm_head = importlib.import_module("dlm_kernels.lm_head_confidence")
remask_scatter = importlib.import_module("dlm_kernels.remask_scatter")
residual_norm = importlib.import_module("dlm_kernels.residual_norm")
rope_kv_write = importlib.import_module("dlm_kernels.rope_kv_write")

Report = Callable[..., None]  # the fixture `report`


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attention_launcher(
    head_dim: int,
    *,
    causal: bool = False,
    block: int = 32,
    capacity: int = 8192,
    numerics: str = "batch_invariant",
    dtype: torch.dtype = torch.bfloat16,
    lse: bool = False,
    page_size: int | None = None,
    draft_length: int = 0,
    batch: int = 2,
    float8: bool = False,
) -> Callable[[], object]:
    """The 8B model's heads: 32 query heads on 8 KV heads. From batch 16 on one program walks."""
    cache_dtype, scale = (
        (torch.float8_e4m3fn, empty(8, dtype=torch.float32)) if float8 else (dtype, None)
    )
    cache, table = empty(batch, capacity, 8, head_dim, dtype=cache_dtype), None
    if page_size:
        table = empty(batch, capacity // page_size)
        cache = cache.view(-1, page_size, 8, head_dim)
    fresh = None if causal else empty(batch, block, 8, head_dim, dtype=dtype)
    context_limit = capacity - (block if causal or draft_length else 0)
    call = attention.BlockAttentionCall(
        empty(batch, block, 32, head_dim, dtype=dtype),
        CacheView(cache, cache, empty(batch), table, scale, scale),
        fresh, fresh, DraftGroups(0, draft_length), head_dim**-0.5, numerics, context_limit, lse,
        empty(1),
    )  # fmt: skip
    return lambda: attention._launch(call)


def confidence_launcher(
    dtype: torch.dtype, *, extras: bool = False, bare: bool = False, stride: int = 131072
) -> Callable[[], object]:
    logits = torch.empty_strided((32, 131072), (stride, 1), dtype=dtype, device="meta")
    call = confidence.ConfidenceCall(logits, selection(32, extras, bare))
    return lambda: confidence._launch(call)


def selection(rows: int, extras: bool, bare: bool) -> confidence.Selection:
    tokens, banned, error = (None,) * 3 if bare else (empty(rows), empty(1), empty(1))
    return confidence.Selection(tokens, 100, banned, extras, extras, error)


def linear_launcher(
    in_features: int,
    out_features: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    rows: int = 32,
    kind: str = "plain",
) -> Callable[[], object]:
    x, scales = empty(rows, in_features, dtype=dtype), empty(out_features, dtype=torch.float32)
    columns, groups = in_features, -(-in_features // 128)
    if kind == "int4":
        columns, scales = 64 * groups, empty(out_features, groups, dtype=torch.float32)
    stored = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8}.get(kind, dtype)
    values = empty(out_features, columns, dtype=stored)
    call = linear.LinearCall(x, values, None if kind == "plain" else scales, kind)
    return lambda: linear._launch(call)


LINEAR_KINDS = {"plain": 2, "fp8": "fp8", "int8": "int8", "int4": "int4"}  # keys of the table


def linear_rows(kind: str, arch: str) -> list[int]:
    """A row count for each tile, and one whose programs walk all segments."""
    return [*launch.LINEAR[arch][LINEAR_KINDS[kind]].tiles, 4096]


def lm_head_launcher(
    dtype: torch.dtype,
    *,
    extras: bool = False,
    bare: bool = False,
    rows: int = 32,
    features: int = 4096,
    vocab: int = 131072,
    numerics: str = "batch_invariant",
) -> Callable[[], object]:
    hidden, weight = empty(rows, features, dtype=dtype), empty(vocab, features, dtype=dtype)
    call = lm_head.LmHeadConfidenceCall(hidden, weight, numerics, selection(rows, extras, bare))
    return lambda: lm_head._launch(call)


def remask_launcher(
    block: int, tokens: torch.dtype = torch.int32, *, noise: bool = False, remask: bool = False
) -> Callable[[], object]:
    positions = {
        dtype: empty(4, block, dtype=dtype) for dtype in (torch.int32, torch.float32, torch.bool)
    }
    ints, floats, bools = positions.values()
    state = remask_scatter.BlockState(
        empty(4, block, dtype=tokens), bools, ints, floats,
        empty(4), empty(4), empty(4), empty(4, dtype=torch.bool),
    )  # fmt: skip
    rule = empty(4, len(rules.NUMBERS), dtype=torch.float32), empty(4, len(rules.COUNTS))
    drawn = (empty(4, dtype=torch.int64), empty(4)) if noise else (None, None)
    token_probability = floats if remask else None
    call = remask_scatter.RemaskScatterCall(
        state, ints, floats, *rule, token_probability, *drawn, 131072, 100, 11, empty(1)
    )
    return lambda: remask_scatter._launch(call)


def sums(segments: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return empty(segments, *shape, dtype=dtype if segments == 1 else torch.float32)


def norm_launcher(
    hidden: int, *, segments: int = 1, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], object]:
    """segments 0: the norm alone."""
    residual, weight = empty(32, hidden, dtype=dtype), empty(hidden, dtype=dtype)
    update = sums(segments, 32, hidden, dtype=dtype) if segments else None
    call = residual_norm.ResidualNormCall(residual, update, weight, 1e-5)
    return lambda: residual_norm._launch(call)


def silu_launcher(
    intermediate: int, *, segments: int = 1, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], object]:
    gate_up = sums(segments, 32, 2 * intermediate, dtype=dtype)
    return lambda: gated_silu._launch(gated_silu.GatedSiluCall(PartialSums(gate_up, dtype)))


def rope_launcher(
    head_dim: int,
    *,
    segments: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    cached: bool = True,
    page_size: int | None = None,
    draft_length: int = 0,
    float8: bool = False,
) -> Callable[[], object]:
    """The 8B model's heads, causal unless there is no cache or there are draft groups."""
    block = 16 * draft_length or 32
    qkv = sums(segments, 2, block, 48 * head_dim, dtype=dtype)
    angles, query_scale = (
        empty(2, block, *size, dtype=torch.float32) for size in ((head_dim // 2,), ())
    )
    cache = lengths = table = None
    if cached:
        cache_dtype = torch.float8_e4m3fn if float8 else dtype
        cache, lengths = empty(2, 8192, 8, head_dim, dtype=cache_dtype), empty(2)
    if page_size:
        cache, table = cache.view(-1, page_size, 8, head_dim), empty(2, 8192 // page_size)
    scale = empty(8, dtype=torch.float32) if float8 else None
    call = rope_kv_write.RopeKvWriteCall(
        PartialSums(qkv, dtype), angles, angles, query_scale, 8,
        CacheView(cache, cache, lengths, table, scale, scale), DraftGroups(0, draft_length),
        empty(1),
    )  # fmt: skip
    return lambda: rope_kv_write._launch(call)


# What no other test below compiles; with --full more of it, of other sizes and dtypes.
CASES = {
    "D128 causal one split": attention_launcher(128, capacity=512, lse=True, causal=True),
    "D128 fast, 1 query": attention_launcher(128, block=1, numerics="fast", causal=True),
    "D128 float8 walk drafts paged": attention_launcher(
        128, float8=True, batch=16, block=272, draft_length=17, page_size=64
    ),
    "D128 fp32": attention_launcher(128, dtype=torch.float32),
    "bf16 entropy, margin": confidence_launcher(torch.bfloat16, extras=True),
    "fp32 bare": confidence_launcher(torch.float32, bare=True),
    "linear head": linear_launcher(4096, 131072),
    "linear int4 odd features": linear_launcher(1001, 4000, torch.float16, kind="int4"),
    "linear fp32": linear_launcher(512, 1792, torch.float32),
    "head bf16 bare, odd sizes": lm_head_launcher(
        torch.bfloat16, bare=True, features=1001, vocab=50257
    ),
    "norm of 192 in parts": norm_launcher(192, segments=8),
    "norm of 16384": norm_launcher(16384),
    "silu of 14336 in parts, fp32": silu_launcher(14336, segments=8, dtype=torch.float32),
    "rope D128 bidirectional": rope_launcher(128, segments=8, cached=False),
    "rope D64 float8 drafts paged": rope_launcher(64, page_size=16, draft_length=17, float8=True),
    "block 32": remask_launcher(32),
    "block 256, noise, remasking, int64 tokens": remask_launcher(
        256, torch.int64, noise=True, remask=True
    ),
}
MORE_CASES = {
    "D256 one split": attention_launcher(256, capacity=512),
    "D256 paged": attention_launcher(256, page_size=16),
    "D256 float8": attention_launcher(256, float8=True),
    "D128 drafts paged": attention_launcher(128, block=272, draft_length=17, page_size=16),
    "D64 walk": attention_launcher(64, batch=16),
    "D128 walk causal paged": attention_launcher(128, batch=16, causal=True, page_size=16),
    "D128 walk drafts paged": attention_launcher(
        128, batch=16, block=272, draft_length=17, page_size=16
    ),
    "D128 float8 fast": attention_launcher(128, float8=True, block=1, numerics="fast", causal=True),
    "D128 float8 walk causal paged": attention_launcher(
        128, float8=True, batch=16, causal=True, page_size=64
    ),
    "D128 float8, fp16 queries": attention_launcher(128, float8=True, dtype=torch.float16),
    "D64 fp32 causal": attention_launcher(64, dtype=torch.float32, causal=True),
    "D256 fp32": attention_launcher(256, dtype=torch.float32),
    "bf16 odd stride": confidence_launcher(torch.bfloat16, stride=131075),
    "fp16": confidence_launcher(torch.float16),
    "fp32 entropy, margin": confidence_launcher(torch.float32, extras=True),
    **{
        f"linear {kind} odd features, 4096 rows": linear_launcher(
            1001, 4000, torch.float16, rows=4096, kind=kind
        )
        for kind in LINEAR_KINDS
    },
    "linear fp32 4096 rows": linear_launcher(4096, 4096, torch.float32, rows=4096),
    "head bf16": lm_head_launcher(torch.bfloat16),
    "head bf16 2048 rows, odd sizes": lm_head_launcher(
        torch.bfloat16, rows=2048, extras=True, features=1001, vocab=50257
    ),
    "head bf16 small model": lm_head_launcher(torch.bfloat16, features=192, vocab=2048),
    "head bf16 2**20 ids": lm_head_launcher(torch.bfloat16, extras=True, vocab=2**20),
    "head fp32 bare": lm_head_launcher(torch.float32, bare=True),
    "norm of 1000 in parts, fp16": norm_launcher(1000, segments=8, dtype=torch.float16),
    "norm of 2048 in parts": norm_launcher(2048, segments=8),
    # The wider a product, the fewer its parts.
    "norm of 16384 in parts, fp32": norm_launcher(16384, segments=4, dtype=torch.float32),
    "silu of 1001, fp16": silu_launcher(1001, dtype=torch.float16),
    "rope D128 drafts paged": rope_launcher(128, segments=8, page_size=16, draft_length=17),
    "rope D16 fp16": rope_launcher(16, segments=8, dtype=torch.float16),
    "rope D256 fp32 float8": rope_launcher(
        256, segments=8, page_size=16, dtype=torch.float32, float8=True
    ),
    "block 64, int64 tokens": remask_launcher(64, torch.int64),
}


def count(pattern: str, lines: list[str]) -> int:
    return sum(bool(re.search(pattern, line)) for line in lines)


def serialized_products(kernel: CompiledKernel) -> int:
    """wgmma instructions that are waited for though a tile's product goes on, as ptxas has it where
    it cannot tell that nothing touches the sum meanwhile. Only the last of each product need be."""
    products = kernel.ttgir.count("ttng.warp_group_dot ")
    return products and count(r"\bHGMMA\b.*\bgsb0\b", kernel.sass) - products


def main_loop(kernel: CompiledKernel) -> list[str]:
    """The loop over logits without bans: the shortest that takes exponentials."""
    return min((loop for loop in kernel.loops() if count(r"MUFU\.EX2", loop)), key=len)


@pytest.fixture
def compiled(report: Report) -> Callable[..., list[CompiledKernel]]:
    """Compiles what a launcher launches, adds it to the table, and sees that it fits."""

    def compile_and_check(
        arch: str, case: str, launcher: Callable[[], object]
    ) -> list[CompiledKernel]:
        kernels = compile_launches(arch, launcher)
        assert kernels, "the launcher launched nothing"
        for kernel in kernels:
            report(case, kernel)
            assert kernel.spills == 0 and kernel.usage["LOCAL"] == 0, kernel.usage
            assert kernel.shared <= launch.SHARED_MEMORY[arch]
            assert serialized_products(kernel) <= 0
        return kernels

    return compile_and_check


def with_full(default: Iterable, others: Iterable) -> list:
    """Parameters that a test always has, and those that it has with --full."""
    more = (each if isinstance(each, tuple) else (each,) for each in others)
    return [*default, *(pytest.param(*each, marks=pytest.mark.full) for each in more)]


@pytest.mark.parametrize("case", with_full(CASES, MORE_CASES))
def test_fits_without_spills(case: str, arch: str, compiled) -> None:
    if "float8" in case and arch == "sm_80":
        pytest.skip("sm_80 cannot convert float8, and the launcher refuses it")
    compiled(arch, case, (CASES | MORE_CASES)[case])


def assert_hopper_product(kernel: CompiledKernel) -> None:
    """It multiplies by wgmma alone, and loads 16 bytes at a time."""
    assert count(r"\bHGMMA\b", kernel.sass) > 0
    assert count(r"\bHMMA\b", kernel.sass) == 0
    async_loads = count(r"\bLDGSTS\b", kernel.sass)
    assert async_loads > 0
    assert count(r"\bLDGSTS\S*\.128", kernel.sass) == async_loads


@pytest.mark.parametrize(
    ("head_dim", "causal"),
    with_full(
        [(64, True), (128, False), (128, True), (256, False)],
        [(16, False), (16, True), (32, False), (32, True), (64, False), (256, True)],
    ),
)
def test_attention_multiplies_by_wgmma_and_loads_whole_vectors(
    head_dim: int, causal: bool, arch: str, compiled
) -> None:
    case = f"D{head_dim} {'causal' if causal else 'bidirectional'}"
    split, _ = compiled(arch, case, attention_launcher(head_dim, causal=causal))
    if arch == "sm_90":
        assert split.constants["BLOCK_M"] >= 64
        assert_hopper_product(split)


def test_pages_load_as_wide_and_as_far_ahead_as_a_contiguous_cache(arch: str, compiled) -> None:
    """As many asynchronous 16-byte loads, in as much shared memory: page numbers take the rest."""
    contiguous, _ = compiled(arch, "D128 bidirectional", attention_launcher(128))
    paged, _ = compiled(arch, "D128 paged", attention_launcher(128, page_size=16))
    wide, expected = (count(r"\bLDGSTS\S*\.128", x.sass) for x in (paged, contiguous))
    assert wide == expected > 0
    assert 0 <= paged.shared - contiguous.shared <= 2048


@pytest.mark.parametrize("page_size", with_full([None], [64]))
def test_hopper_attention_over_float8_loads_half_the_vectors(
    page_size: int | None, compiled
) -> None:
    half, whole = (
        compiled(
            "sm_90",
            f"D128{' float8' * float8}{' paged' * bool(page_size)}",
            attention_launcher(128, float8=float8, page_size=page_size),
        )[0]
        for float8 in (True, False)
    )
    wide, expected = (count(r"\bLDGSTS\S*\.128", x.sass) for x in (half, whole))
    assert count(r"\bHGMMA\b", half.sass) > 0
    assert 2 * wide == expected > 0


@pytest.mark.parametrize("options", with_full([{}], [{"page_size": 16}, {"float8": True}]), ids=str)
def test_hopper_attention_of_a_large_batch_walks_and_waits_no_more_often(
    options: dict, compiled
) -> None:
    """For products, in a tile of its streaming loops: one for the scores, if P V goes on."""
    waits = []
    for batch, walks in ((2, False), (16, True)):
        case = f"D128{' walk' * walks} {options or ''}"
        kernel, *merge = compiled("sm_90", case, attention_launcher(128, batch=batch, **options))
        assert (kernel.constants["WALK"], kernel.constants["PARTIAL"]) == (walks, not walks)
        assert len(merge) == (not walks)
        streams = [x for x in kernel.loops() if count(r"\bLDGSTS\b", x)]
        waits.append([count(r"\bWARPGROUP\.DEPBAR\b", x) for x in streams])
    split, walk = waits
    assert split == [2 if options.get("float8") else 1]
    assert walk and set(walk) == set(split)


@pytest.mark.parametrize("kind", with_full(["plain"], ["fp8", "int8", "int4"]))
def test_every_tile_of_linear_multiplies_by_the_same_instructions(
    kind: str, arch: str, compiled
) -> None:
    """Or a row's bits would depend on the number of rows."""
    families = set()
    for rows in linear_rows(kind, arch):
        launcher = linear_launcher(4096, 4096, rows=rows, kind=kind)
        product, *_ = compiled(arch, f"linear {kind} {rows} rows", launcher)
        assert product.constants["IN_PARTS"] == (rows < 4096)
        sass = "\n".join(product.sass)
        shapes = re.findall(r"\b(?:(HGMMA)\.64x\d+x(\d+)|(HMMA)\.(\d+)|(UTCHMMA))\b", sass)
        families.add(frozenset("".join(shape) for shape in shapes))
        if (kind, arch) == ("plain", "sm_90"):
            assert_hopper_product(product)
    assert len(families) == 1 and len(families.pop()) == 1


@pytest.mark.parametrize(
    ("kind", "rows", "limit"),
    with_full(
        [("plain", 32, 4), ("fp8", 32, 5.1), ("int8", 32, 5.1), ("int4", 32, 3.4)],
        [("plain", 16, 4), ("fp8", 16, 5.1), ("int8", 16, 5.1), ("int4", 16, 3.4)],
    ),
)
def test_hopper_linear_streams(
    kind: str, rows: int, limit: float, compiled, report: Report
) -> None:
    """A 32-wide instruction counts 32 times. An H200's SM gets 19 weights of one byte or 37 of half
    a byte a clock and issues for 128 lanes: it has 6.7, or 3.4, for each."""
    case = f"linear {kind} {rows} rows"
    product, *_ = compiled("sm_90", case, linear_launcher(4096, 4096, rows=rows, kind=kind))
    tile = launch.LINEAR["sm_90"][LINEAR_KINDS[kind]].tiles[rows]
    loop = max((loop for loop in product.loops() if count(r"\bHGMMA\b", loop)), key=len)
    features = 128 if kind == "int4" else product.constants["BLOCK_K"]
    instructions = len(loop) * tile.num_warps * 32 / (tile.block_o * features)
    report(f"{case}, loop", product, f"{instructions:.1f} instructions a weight")
    assert instructions <= limit


@pytest.mark.parametrize("hidden", with_full([4096], [1000]))
@pytest.mark.parametrize("dtype", with_full([torch.bfloat16], [torch.float32]), ids=str)
def test_a_norm_adds_in_one_order_however_the_update_comes(
    hidden: int, dtype: torch.dtype, arch: str, compiled
) -> None:
    """Which elements of a row a thread holds is the same in all forms of the kernel."""
    layouts = set()
    for segments in (0, 1, 8):
        launcher = norm_launcher(hidden, segments=segments, dtype=dtype)
        case = f"norm of {hidden} in {segments} parts, {str(dtype)[6:]}"
        (kernel,) = compiled(arch, case, launcher)
        (name,) = re.findall(r"\(tensor<\d+xf32, (#\w+)>\) -> f32", kernel.ttgir)
        layouts |= set(re.findall(rf"^{name} = (.*)$", kernel.ttgir, re.MULTILINE))
    assert len(layouts) == 1, layouts


@pytest.mark.parametrize(
    ("case", "launcher"),
    [
        ("norm of 4096 in parts", norm_launcher(4096, segments=8)),
        ("silu of 14336", silu_launcher(14336)),
        ("rope D128 paged", rope_launcher(128, page_size=64)),
    ],
)
def test_elementwise_kernels_move_whole_vectors(
    case: str, launcher: Callable[[], object], arch: str, compiled
) -> None:
    (kernel,) = compiled(arch, case, launcher)
    wide_loads = count(r"\bLDG\S*\.128", kernel.sass)
    stores = count(r"\bSTG\b", kernel.sass)
    assert count(r"\bSTG\S*\.128", kernel.sass) == stores > 0
    # Angles, a length and a page number are the rest.
    assert wide_loads > 0 and count(r"\bLDG\b", kernel.sass) - wide_loads <= 5


@pytest.mark.parametrize(
    "dtype", with_full([torch.bfloat16], [torch.float16, torch.float32]), ids=str
)
def test_a_logit_has_the_same_arithmetic_in_every_tile_of_rows(
    dtype: torch.dtype, arch: str, compiled
) -> None:
    """One kind of matrix instruction, beside it no product fused with a sum, and sums of two."""
    matrix = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}.get(arch, "HMMA")
    for rows in launch.LM_HEAD[arch][dtype.itemsize].tiles:
        launcher = lm_head_launcher(dtype, rows=rows, extras=True)
        product, _ = compiled(arch, f"head {str(dtype)[6:]} {rows} rows", launcher)
        summed = r"arith\.addf.*\n\s*tt\.reduce\.return.*\n\s*\}\) : \(tensor<(\d+)x"
        assert set(re.findall(summed, product.ttgir)) == {"2"}
        kinds = set(re.findall(r"(?<![.\w])(\w+MMA)\b", "\n".join(product.sass)))
        if dtype == torch.float32:
            assert not kinds
            continue
        assert kinds == {matrix}
        assert count(r"\bFFMA", product.sass) == 0
        if arch == "sm_90":
            assert_hopper_product(product)


def test_confidence_loop_is_lean(arch: str, compiled, report: Report) -> None:
    """Goals for bf16 without entropy and margin: 12 instructions, 1.1 exponentials a logit.

    At 90% of an H200's bandwidth its SMs have 15.3 instruction and 1.9 special-function slots.
    """
    chunk, _ = compiled(arch, "bf16", confidence_launcher(torch.bfloat16))
    loop = main_loop(chunk)
    loads = count(r"\b(LDGSTS|LDG)\S*\.128", loop)
    logits = loads * chunk.constants["VECTOR"]
    instructions, exps = len(loop) / logits, count(r"MUFU\.EX2", loop) / logits
    report("bf16 main loop", chunk, f"{instructions:.1f} instructions, {exps:.2f} ex2 a logit")
    assert loads == 2
    assert instructions <= 12
    assert exps <= 1.1


# --- that the gate sees what it is there for


def test_gate_sees_spills_and_too_much_shared_memory() -> None:
    crowded = replace(
        launch.LINEAR["sm_90"][2],
        tiles={32: launch.LinearTile(128, 256, num_warps=4, num_stages=6)},
    )
    with launch.overriding(launch.LINEAR, ("sm_90", 2), crowded):
        product, *_ = compile_launches("sm_90", linear_launcher(4096, 4096))
    assert product.spills > 0
    assert product.shared > launch.SHARED_MEMORY["sm_90"]


@triton.jit
def early_kernel(at, out, end):
    """Rounds sums to float16, which the compiler does before they are whole."""
    row, column, k = tl.arange(0, 64), tl.arange(0, 32), tl.arange(0, 64)
    peak = tl.zeros([32], tl.float32)
    total = tl.zeros([32], tl.float32)
    for first_row in range(0, end, 64):
        acc = tl.zeros([64, 32], tl.float32)
        for first in range(0, end, 64):
            x = tl.load(at + (first_row + row)[:, None] * 4096 + (first + k)[None, :])
            y = tl.load(at + column[:, None] * 4096 + (first + k)[None, :])
            acc = tl.dot(x, tl.trans(y), acc)
        rounded = acc.to(tl.float16).to(tl.float32)
        peak = tl.maximum(peak, tl.max(rounded, 0))
        total += tl.sum(tl.exp2(rounded - peak[None, :]), 0)
    tl.store(out + column, total)


def test_gate_sees_serialized_products() -> None:
    at, out = empty(4096, dtype=torch.float16), empty(32, dtype=torch.float32)
    (kernel,) = compile_launches("sm_90", lambda: early_kernel[(1,)](at, out, 4096))
    assert serialized_products(kernel) > 0
