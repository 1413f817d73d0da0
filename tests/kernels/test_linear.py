"""linear: accuracy, and rows whose bits do not depend on the rows beside them."""

import importlib
import re

import pytest
import reference
import torch
from numeric import (
    BFLOAT16,
    assert_close_to_reference,
    assert_same_bits,
    launching_with,
    rows_and_weight,
    unchanged,
)
from torch import Tensor
from torch.nn import functional as F

from dlm_kernels import QuantizedWeight, launch, linear, linear_partials, quantize_weight
from dlm_kernels.backend import forced_backend

# The package binds the function to the module's name.
module = importlib.import_module("dlm_kernels.linear")

KINDS = ["plain", "fp8", "int8", "int4"]
QUANTIZED = KINDS[1:]

F32, F16 = torch.float32, torch.float16
FLOORS = {F32: 1e-6, F16: 1e-4, torch.bfloat16: 1e-3}

# A tile holds 32 rows of the weight, 16 or 32 rows of x and 32 features; a segment 256, and from 12
# programs on each walks all of them. Of the tables that ship, up to 256, and segments of 512.
SHAPES = [
    pytest.param(1, 48, 67, F32, id="one-row-odd-sizes"),
    pytest.param(5, 1, 3, F16, id="one-feature"),
    pytest.param(16, 96, 64, F32, id="whole-tiles"),
    pytest.param(32, 256, 33, F16, id="one-segment"),
    pytest.param(33, 100, 65, F32, id="33-rows-odd-sizes"),
    pytest.param(7, 301, 70, F32, id="two-segments-odd-length"),
    pytest.param(20, 544, 40, F16, id="three-segments"),
    pytest.param(70, 288, 70, F32, id="all-segments-walked"),
    pytest.param(33, 1536, 700, F32, id="two-parts-of-the-weight-in-torch"),
    pytest.param(33, 300, 70, torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
    *(
        pytest.param(
            *shape, dtype, id=f"shipped-{'-'.join(map(str, shape))}", marks=pytest.mark.full
        )
        for shape, dtype in (
            ((16, 96, 64), F32),
            ((33, 100, 130), F16),
            ((40, 1536, 40), F32),
            ((7, 1000, 70), F16),
            ((70, 130, 70), F16),
        )
    ),
]
QUANTIZED_SHAPES = [
    pytest.param((3, 100, 70), F16, id="less-than-a-group"),
    pytest.param((17, 601, 67), F16, id="three-segments-odd-length"),
    pytest.param((70, 384, 70), F16, id="all-segments-walked"),
    pytest.param((17, 300, 67), F32, id="fp32"),
    pytest.param((17, 300, 67), torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
    pytest.param((33, 1001, 130), F16, id="shipped", marks=pytest.mark.full),
]

narrow_dtype = pytest.mark.parametrize("narrow", [pytest.param(F16, id="fp16"), BFLOAT16])


def in_kind(weight: Tensor, kind: str) -> Tensor | QuantizedWeight:
    return weight if kind == "plain" else quantize_weight(weight, kind)


@pytest.mark.parametrize(("rows", "in_features", "out_features", "dtype"), SHAPES)
def test_matches_the_reference(
    rows: int, in_features: int, out_features: int, dtype: torch.dtype, backend: str, op_device: str
) -> None:
    x, weight = rows_and_weight(rows, in_features, out_features, dtype, op_device)
    with unchanged(x, weight):
        out = linear(x, weight)
    assert out.dtype == dtype and out.is_contiguous()
    exact = reference.linear(x, weight)
    assert_close_to_reference(out, F.linear(x, weight), exact, floor=FLOORS[dtype])


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize(("shape", "dtype"), QUANTIZED_SHAPES)
def test_quantized_weights_match_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, kind: str, backend: str, op_device: str
) -> None:
    """Against the numbers that values and scales stand for, which are not rounded to x's dtype."""
    x, weight = rows_and_weight(*shape, dtype, op_device)
    weight = quantize_weight(weight, kind)
    with unchanged(x, weight.values, weight.scales):
        out = linear(x, weight)
    assert out.dtype == dtype and out.is_contiguous()
    same_dtype = F.linear(x.float(), weight.dequantized()).to(dtype)
    exact = reference.linear(x, weight)
    assert_close_to_reference(out, same_dtype, exact, floor=FLOORS[dtype])


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
@pytest.mark.parametrize(
    ("kind", "in_features", "out_features", "dtype"),
    [
        ("plain", 301, 67, F32),
        ("plain", 300, 70, F16),
        ("fp8", 300, 40, F16),
        ("int8", 300, 40, F16),
        ("int4", 300, 40, F16),
        *(
            pytest.param(kind, 300, 40, torch.bfloat16, marks=pytest.mark.gpu)
            for kind in ("plain", "fp8", "int8", "int4")
        ),
        *(
            pytest.param(kind, 1000, 70, F16, marks=pytest.mark.full)
            for kind in ("plain", "fp8", "int8", "int4")
        ),
    ],
)
def test_a_row_has_the_same_bits_whatever_rows_go_with_it(
    kind: str,
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
    backend_name: str,
    triton_device: str,
) -> None:
    every = 300 if kind == "plain" else 130
    x, weight = rows_and_weight(every, in_features, out_features, dtype, triton_device)
    x[17] = torch.inf  # neighbours' values don't matter either
    weight = in_kind(weight, kind)
    with forced_backend(backend_name):
        whole = linear(x, weight)
        for first, rows in ((0, 1), (31, 1), (40, 8), (90, 32), (25, 60)):
            part = linear(x[first : first + rows].clone(), weight)
            assert_same_bits(part, whole[first : first + rows], f"{rows} rows from {first}")


def test_torch_takes_a_large_weight_in_parts_of_the_same_bits(device: str) -> None:
    x, weight = rows_and_weight(40, 1536, 700, F32, device)
    with forced_backend("torch"):
        whole = linear(x, weight)
        assert_same_bits(linear(x[33:34].clone(), weight), whole[33:34])


@pytest.mark.parametrize("kind", KINDS)
@narrow_dtype
def test_every_tile_gives_the_same_bits(kind: str, narrow: torch.dtype, triton_device: str) -> None:
    """On a GPU because a sum is one chain of matrix instructions in the order of the features.

    The interpreter's products are numpy's, which keep to an order for tiles as small as these.
    """
    rows, in_features, out_features = (
        (260, 4096, 1000) if triton_device == "cuda" else (20, 300, 40)
    )
    x, weight = rows_and_weight(rows, in_features, out_features, narrow, triton_device)
    weight, key = in_kind(weight, kind), 2 if kind == "plain" else kind
    with forced_backend("triton"):
        expected = linear(x, weight)
        for tile in launch.LINEAR[launch.arch_of(x.device)][key].tiles.values():
            with launching_with(
                launch.LINEAR, triton_device, key, tiles={1: tile}, whole_programs=1000
            ):
                assert_same_bits(linear(x, weight), expected, str(tile))


@pytest.mark.parametrize("kind", KINDS)
@narrow_dtype
def test_programs_that_walk_all_segments_give_the_same_bits(
    kind: str, narrow: torch.dtype, triton_device: str
) -> None:
    x, weight = rows_and_weight(70, 640, 40, narrow, triton_device)  # 256, 256 and 128 features
    weight, key = in_kind(weight, kind), 2 if kind == "plain" else kind
    # Two tiles of rows, or four narrower ones, by two of features.
    tiles = {32: launch.LinearTile(32, 64, num_warps=4, num_stages=2)}
    with forced_backend("triton"):
        with launching_with(
            launch.LINEAR, triton_device, key, tiles=tiles, whole_programs=5, walking_rows=64
        ):
            parts = linear_partials(x, weight)
        assert parts.sums.shape == (3, 70, 40) and parts.sums.dtype == F32
        for whole_programs, walking_rows in ((4, 64), (5, 32)):
            changes = {"whole_programs": whole_programs, "walking_rows": walking_rows}
            with launching_with(launch.LINEAR, triton_device, key, tiles=tiles, **changes):
                whole = linear_partials(x, weight)
            assert whole.sums.shape == (1, 70, 40) and whole.sums.dtype == narrow
            assert_same_bits(whole.sums[0], parts.total(), f"{walking_rows} rows a program")


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_product(kind: str, backend: str, op_device: str) -> None:
    x, weight = rows_and_weight(6, 300, 40, F16, op_device)
    weight = in_kind(weight, kind)
    parts = linear_partials(x.view(2, 3, 300), weight)
    assert parts.dtype == F16 and parts.shape == (2, 3, 40)
    assert parts.sums.is_contiguous()
    in_parts = (2, F32) if backend == "triton" else (1, F16)
    assert (parts.sums.shape[0], parts.sums.dtype) == in_parts
    assert_same_bits(parts.total().view(6, 40), linear(x, weight))


@pytest.mark.parametrize("threads", [1, 2])
def test_fast_rows_may_differ_and_invariant_rows_do_not(threads: int, device: str) -> None:
    """That the comparison can fail: the same rows by torch's own choice of product."""
    if device != "cpu":
        pytest.skip("what cuBLAS chooses is its own affair")
    x, weight = rows_and_weight(32, 512, 256, F32, device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for numerics, same in (("batch_invariant", True), ("fast", False)):
            whole = linear(x, weight, numerics=numerics)
            alone = torch.cat([linear(row, weight, numerics=numerics) for row in x.split(1)])
            assert torch.equal(whole, alone) == same, numerics
            assert_same_bits(linear_partials(x, weight, numerics=numerics).total(), whole)
    finally:
        torch.set_num_threads(before)


def test_fast_takes_the_library_where_rows_are_many(triton_device: str) -> None:
    x, weight = rows_and_weight(5, 300, 40, F32, triton_device)
    with forced_backend("triton"), launching_with(launch.LINEAR, triton_device, 4, library_rows=4):
        few, many = (linear_partials(x[:n], weight, numerics="fast").sums for n in (4, 5))
        assert few.shape == (2, 4, 40)
        assert_same_bits(many, F.linear(x, weight)[None])
        quantized = quantize_weight(weight, "int8")
        expected = linear(x, quantized)
        assert_same_bits(linear(x, quantized, numerics="fast"), expected)


@pytest.mark.parametrize("kind", ["plain", "int4"])
def test_leading_dimensions(kind: str, backend: str, op_device: str) -> None:
    x, weight = rows_and_weight(12, 40, 9, F32, op_device)
    weight = in_kind(weight, kind)
    expected = linear(x, weight)
    assert_same_bits(linear(x.reshape(2, 3, 2, 40), weight).view(12, 9), expected)
    assert_same_bits(linear(x[4], weight), expected[4])
    across = x.T.contiguous().T  # features far apart
    assert_same_bits(linear(across, weight), expected)
    assert linear(x[:0], weight).shape == (0, 9)


@pytest.mark.parametrize("kind", [2, "int4"])
def test_segments_cover_the_features_and_fill_the_chip(kind: int | str) -> None:
    config = launch.read_table(launch.FOLDER / "sm_90.json")["linear"][kind]
    for in_features in (1, 511, 512, 4096, 14336):
        for out_features in (64, 1024, 4096, 131072):
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
