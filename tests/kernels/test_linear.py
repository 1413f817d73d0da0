"""linear: accuracy, and rows whose bits do not depend on the rows beside them."""

import dataclasses
import importlib
import re

import pytest
import torch
from numeric import (
    Guarded,
    assert_close_to_reference,
    assert_same_bits,
    forced_backend,
    unchanged,
)
from torch import Tensor
from torch.nn import functional as F

from dlm_kernels import QuantizedWeight, launch, linear, linear_partials, quantize_weight

# The package binds the function to the module's name.
module = importlib.import_module("dlm_kernels.linear")

KINDS = ["plain", "fp8", "int8", "int4"]
QUANTIZED = KINDS[1:]

# A tile holds 64 or 128 rows of the weight, 16 to 256 rows of x and 32 to 128 features; a segment
# 512 or more.
SHAPES = [
    pytest.param(1, 48, 67, id="one-row-odd-sizes"),
    pytest.param(5, 1, 3, id="one-feature"),
    pytest.param(16, 96, 64, id="16-rows"),
    pytest.param(32, 128, 65, id="one-feature-over-a-tile"),
    pytest.param(33, 100, 130, id="33-rows-odd-sizes"),
    pytest.param(7, 1000, 70, id="two-segments-odd-length"),
    pytest.param(40, 1536, 40, id="three-segments"),
    pytest.param(70, 130, 70, id="70-rows"),
    pytest.param(33, 1536, 700, id="two-parts-of-the-weight-in-torch"),
]
QUANTIZED_SHAPES = [
    pytest.param(3, 100, 70, id="less-than-a-group"),
    pytest.param(17, 640, 67, id="two-segments"),
    pytest.param(33, 1001, 130, id="two-segments-odd-length"),
]
FLOORS = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}

narrow_dtype = pytest.mark.parametrize(
    "narrow",
    [
        pytest.param(torch.float16, id="fp16"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
    ],
)


def inputs(
    rows: int, in_features: int, out_features: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Rows and weight with NaN between their rows, of order one in and out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
    views = []
    for content in (x, weight):
        buffer = torch.full((content.shape[0], content.shape[1] + 8), torch.nan)
        buffer[:, : content.shape[1]] = content
        views.append(buffer.to(dtype).to(device)[:, : content.shape[1]])
    return tuple(views)


def in_kind(weight: Tensor, kind: str) -> Tensor | QuantizedWeight:
    return weight if kind == "plain" else quantize_weight(weight, kind)


def use_tiles(monkeypatch: pytest.MonkeyPatch, kind: str, itemsize: int, **changes) -> None:
    """Launch with other fields than the tables have, on whatever architecture this is."""
    key = itemsize if kind == "plain" or itemsize == 4 else kind
    for configs in launch.LINEAR.values():
        monkeypatch.setitem(configs, key, dataclasses.replace(configs[key], **changes))


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SHAPES)
def test_matches_the_reference(
    rows: int,
    in_features: int,
    out_features: int,
    backend: str,
    dtype: torch.dtype,
    op_device: str,
) -> None:
    x, weight = inputs(rows, in_features, out_features, dtype, op_device)
    out = linear(x, weight)
    assert out.dtype == dtype and out.is_contiguous()
    exact = x.double() @ weight.double().T
    assert_close_to_reference(out, F.linear(x, weight), exact, floor=FLOORS[dtype])


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize(("rows", "in_features", "out_features"), QUANTIZED_SHAPES)
def test_quantized_weights_match_the_reference(
    rows: int,
    in_features: int,
    out_features: int,
    kind: str,
    backend: str,
    dtype: torch.dtype,
    op_device: str,
) -> None:
    """Against the numbers that values and scales stand for, which are not rounded to x's dtype."""
    x, weight = inputs(rows, in_features, out_features, dtype, op_device)
    weight = quantize_weight(weight, kind)
    with unchanged(values=weight.values, scales=weight.scales):
        out = linear(x, weight)
    assert out.dtype == dtype and out.is_contiguous()
    same_dtype = F.linear(x.float(), weight.dequantized()).to(dtype)
    exact = x.double() @ dequantized_one_by_one(weight).to(x.device).T
    assert_close_to_reference(out, same_dtype, exact, floor=FLOORS[dtype])


def dequantized_one_by_one(weight: QuantizedWeight) -> Tensor:
    """What the bytes stand for by the format's description, float64."""
    out_features, in_features = weight.shape
    column = torch.arange(in_features)
    if weight.kind == "int4":
        byte = weight.values.cpu()[:, column // 128 * 64 + column % 64].long()
        integers = torch.where(column % 128 < 64, byte % 16, byte // 16) - 8
        return integers.double() * weight.scales.cpu().double()[:, column // 128]
    return weight.values.cpu().double() * weight.scales.cpu().double()[:, None]


@pytest.mark.parametrize(
    ("backend_name", "in_features", "out_features"),
    [
        ("triton", 48, 67),
        ("triton", 1000, 70),
        ("torch", 48, 67),
        ("torch", 1000, 70),
        ("torch", 1536, 700),
    ],
)
def test_a_row_has_the_same_bits_whatever_rows_go_with_it(
    backend_name: str,
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
    triton_device: str,
) -> None:
    x, weight = inputs(300, in_features, out_features, dtype, triton_device)
    x[17] = torch.inf  # neighbours' values don't matter either
    with forced_backend(backend_name):
        whole = linear(x, weight)
        for first, rows in ((0, 1), (31, 1), (40, 8), (90, 32), (101, 33), (25, 130)):
            part = linear(x[first : first + rows].clone(), weight)
            assert_same_bits(part, whole[first : first + rows], f"{rows} rows from {first}")


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
@pytest.mark.parametrize("kind", QUANTIZED)
@narrow_dtype
def test_rows_of_quantized_weights_have_their_own_bits(
    kind: str, narrow: torch.dtype, backend_name: str, triton_device: str
) -> None:
    x, weight = inputs(130, 600, 70, narrow, triton_device)
    x[17] = torch.inf
    weight = quantize_weight(weight, kind)
    with forced_backend(backend_name):
        whole = linear(x, weight)
        for first, rows in ((0, 1), (31, 1), (40, 17), (25, 60)):
            part = linear(x[first : first + rows].clone(), weight)
            assert_same_bits(part, whole[first : first + rows], f"{rows} rows from {first}")


@pytest.mark.parametrize("kind", KINDS)
@narrow_dtype
def test_every_tile_gives_the_same_bits(
    kind: str, narrow: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU because a sum is one chain of matrix instructions in the order of the features.

    The interpreter's products are numpy's, which keep to an order for tiles as small as these.
    """
    monkeypatch.setenv("DLM_BACKEND", "triton")
    size = (260, 4096, 1000) if triton_device == "cuda" else (20, 640, 130)
    x, weight = inputs(*size, narrow, triton_device)
    weight = in_kind(weight, kind)
    expected = linear(x, weight)
    config = launch.LINEAR[launch.arch_of(x.device)][2 if kind == "plain" else kind]
    for tile in config.tiles.values():
        with monkeypatch.context() as patch:
            use_tiles(patch, kind, 2, tiles={1: tile}, whole_programs=1000)
            assert_same_bits(linear(x, weight), expected, str(tile))


@pytest.mark.parametrize("kind", KINDS)
@narrow_dtype
def test_programs_that_walk_all_segments_give_the_same_bits(
    kind: str, narrow: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLM_BACKEND", "triton")
    x, weight = inputs(130, 1152, 70, narrow, triton_device)  # 512, 512 and 128 features
    weight = in_kind(weight, kind)
    tile = dataclasses.replace(launch.LINEAR["sm_90"]["int4"].tiles[32], block_r=64)
    use_tiles(monkeypatch, kind, 2, tiles={32: tile}, whole_programs=4)
    parts = linear_partials(x, weight)
    assert parts.sums.shape == (3, 130, 70) and parts.sums.dtype == torch.float32
    for whole_programs, walking_rows in ((3, 128), (5, 32)):
        changes = {"whole_programs": whole_programs, "walking_rows": walking_rows}
        use_tiles(monkeypatch, kind, 2, **changes)
        whole = linear_partials(x, weight)
        assert whole.sums.shape == (1, 130, 70) and whole.sums.dtype == narrow
        assert_same_bits(whole.sums[0], parts.total(), f"{walking_rows} rows a program")


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_product(
    kind: str, backend: str, dtype: torch.dtype, op_device: str
) -> None:
    x, weight = inputs(6, 640, 40, dtype, op_device)
    weight = in_kind(weight, kind)
    parts = linear_partials(x.view(2, 3, 640), weight)
    assert parts.dtype == dtype and parts.shape == (2, 3, 40)
    assert parts.sums.is_contiguous()
    if backend == "triton":
        assert parts.sums.shape[0] == 2 and parts.sums.dtype == torch.float32
    else:
        assert parts.sums.shape[0] == 1 and parts.sums.dtype == dtype
    assert_same_bits(parts.total().view(6, 40), linear(x, weight))


@pytest.mark.parametrize("threads", [1, 2])
def test_fast_rows_may_differ_and_invariant_rows_do_not(threads: int, device: str) -> None:
    """That the comparison can fail: the same rows by torch's own choice of product."""
    if device != "cpu":
        pytest.skip("what cuBLAS chooses is its own affair")
    x, weight = inputs(32, 512, 256, torch.float32, device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for numerics, same in (("invariant", True), ("fast", False)):
            whole = linear(x, weight, numerics=numerics)
            alone = torch.cat([linear(row, weight, numerics=numerics) for row in x.split(1)])
            assert torch.equal(whole, alone) == same, numerics
            assert_same_bits(linear_partials(x, weight, numerics=numerics).total(), whole)
    finally:
        torch.set_num_threads(before)


def test_fast_takes_the_library_where_rows_are_many(
    triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = inputs(5, 600, 40, torch.float32, triton_device)
    monkeypatch.setenv("DLM_BACKEND", "triton")
    use_tiles(monkeypatch, "plain", 4, library_rows=4)
    few, many = (linear_partials(x[:n], weight, numerics="fast").sums for n in (4, 5))
    assert few.shape == (2, 4, 40)
    assert_same_bits(many, F.linear(x, weight)[None])
    quantized = quantize_weight(weight, "int8")
    expected = linear(x, quantized)
    assert_same_bits(linear(x, quantized, numerics="fast"), expected)


@pytest.mark.parametrize("kind", ["plain", "int4"])
def test_leading_dimensions(kind: str, backend: str, op_device: str) -> None:
    x, weight = inputs(12, 40, 9, torch.float32, op_device)
    weight = in_kind(weight, kind)
    expected = linear(x, weight)
    assert_same_bits(linear(x.reshape(2, 3, 2, 40), weight).view(12, 9), expected)
    assert_same_bits(linear(x[4], weight), expected[4])
    across = x.T.contiguous().T  # features far apart
    assert_same_bits(linear(across, weight), expected)
    assert linear(x[:0], weight).shape == (0, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_the_output_is_written(kind: str, backend: str, op_device: str) -> None:
    x, weight = inputs(33, 600, 70, torch.float16, op_device)
    weight = in_kind(weight, kind)
    guarded = [Guarded(x)]
    if kind == "plain":
        guarded.append(Guarded(weight))
        weight = guarded[1].tensor
    linear(guarded[0].tensor, weight)
    for each in guarded:
        each.check()


@pytest.mark.parametrize("kind", [2, "int4"])
@pytest.mark.parametrize("in_features", [1, 511, 512, 4096, 14336])
@pytest.mark.parametrize("out_features", [64, 1024, 4096, 131072])
def test_segments_cover_the_features_and_fill_the_chip(
    in_features: int, out_features: int, kind: int | str
) -> None:
    config = launch.LINEAR["sm_90"][kind]
    segment = module.segment_length(in_features, out_features, config)
    segments, tiles = -(-in_features // segment), -(-out_features // 64)
    assert segment % 128 == 0 and 128 % config.block_k == 0
    assert segments == 1 or segment >= config.min_segment
    assert segments * tiles <= max(2 * config.programs, tiles)
    if in_features >= 4096 and out_features >= 4096:
        assert segments * tiles >= config.programs // 2


# --- the machine code that turns stored values into numbers


def run_ptx(text: str, outputs: int, argument: int) -> list[int]:
    """What `text` leaves in $0, $1 ... if its last operand holds 16 bits of `argument`."""
    values = {f"${outputs}": argument}

    def fma(dtype: torch.dtype, *operands: int) -> int:
        halves = [torch.tensor([x & 0xFFFF, x >> 16], dtype=torch.int32) for x in operands]
        a, b, c = (x.to(torch.uint16).view(dtype).double() for x in halves)
        low, high = (a * b + c).to(dtype).view(torch.uint16).tolist()
        return low | high << 16

    def prmt(a: int, b: int, selector: int) -> int:
        octets = (a | b << 32).to_bytes(8, "little")
        return sum(octets[selector >> 4 * i & 7] << 8 * i for i in range(4))

    operations = {
        "cvt.u32.u16": lambda a: a & 0xFFFF,
        "mov.b32": lambda a: a,
        "and.b32": lambda a, b: a & b,
        "shr.u32": lambda a, b: a >> b,
        "prmt.b32": prmt,
        "lop3.b32": lambda a, b, c, table: {0xEA: a & b | c}[table],
        "fma.rn.bf16x2": lambda *operands: fma(torch.bfloat16, *operands),
        "fma.rn.f16x2": lambda *operands: fma(torch.float16, *operands),
    }
    for statement in re.search(r"\{ \.reg [^;]*; (.*); \}", text)[1].split("; "):
        name, operands = statement.split(" ", 1)
        target, *sources = operands.split(", ")
        numbers = [values[x] if x in values else int(x, 0) for x in sources]
        values[target] = operations[name](*numbers)
    return [values[f"${n}"] for n in range(outputs)]


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_machine_code_decodes_every_byte_exactly(kind: str, dtype: torch.dtype) -> None:
    """The instructions that the interpreter cannot run, one after the other."""
    octets = torch.arange(256).to(torch.uint8)
    if kind == "int4":
        expected = [octets.double() % 16 - 8, octets.double().div(16).floor() - 8]
    else:
        expected = [octets.view({"fp8": torch.float8_e4m3fn, "int8": torch.int8}[kind]).double()]
    text = module.decoding(kind, dtype)
    for byte in range(256):
        other = (byte * 7 + 3) % 256
        pairs = run_ptx(text, len(expected), byte | other << 8)
        for pair, numbers in zip(pairs, expected, strict=True):
            ours = torch.tensor([pair & 0xFFFF, pair >> 16]).to(torch.uint16).view(dtype)
            want = numbers[[byte, other]]
            finite = want.isfinite()
            assert_same_bits(ours[finite].double(), want[finite], f"byte {byte}")
