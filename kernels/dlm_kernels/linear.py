r"""The matrix product of a linear layer, y = x W^T, whose rows do not depend on each other.

A library picks its product by the number of rows, and with it the order in which a row's terms are
added: a token decoded alone then gets other bits than the same token verified among 32. Here the
order is a function of the layer's shape and dtype alone:

- Triton: the weight's rows are the tile's long side, the rows of x its short one, so that one token
  costs little more than reading the weight. `in_features` is cut into segments at fixed places,
  enough of them to fill the chip for one tile of rows. Each is a chain of matrix instructions in
  the order of the features, which no tile's size changes; the segments are added in their order.
  Few rows leave the segments in memory, for the kernel that needs the product to add
  (`linear_partials`) or for one of its own (`linear`). Where the rows alone fill the chip, a
  program walks all segments, adds them in the same order and stores the product: the same bits.
- torch: the library's product, over groups of exactly 32 rows.

A weight in 8 or 4 bits is read as it is and turned into numbers of x's dtype in registers, exactly;
the row's scale multiplies the sum of each segment, and the scale of a group of 128 features (int4)
the sum of that group, in float32. For float32 x, which serves to check numerics, the whole weight
is made float32 first.

Numerics "fast" is the library's product of whatever shape comes, where rows are many and the weight
is not quantized.

Compulsory traffic: x, W and y once each; FLOPs: 2 rows in_features out_features. Besides:

- S segments: 8 S bytes an element of y to write and read them, in L2 where they fit. The 8B model's
  o_proj at 32 rows: 5 segments, 5.2 MB beside 33.6 MB of weights.
- Every tile of rows reads W again and every tile of features reads x, from L2 beyond the first. One
  tile of 32 rows beside 64 features reads 1 byte of x for 2 of W. Tiles of 256 rows beside 128
  features do 85 FLOP a byte from L2, which at 6 TB/s is 510 TFLOP/s of the 790 that an H200's
  matrix units do. A program that walks several segments holds a total beside the segment's sum, so
  of half as many rows: 64 FLOP a byte, 390 TFLOP/s.

Instructions: at 4.3 TB/s an H200's SM gets 19 weights of a byte or 37 of half a byte a clock, and
issues for 128 lanes: 6.7 or 3.4 a weight is the most that still streams. The compile gate counts.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import launch, torch_backend
from .backend import backend_for
from .cost import Cost
from .op import Op
from .partial_sums import PartialSums, load_total
from .quantized_weight import GROUP, LARGEST, QuantizedWeight
from .validate import FLOAT_DTYPES, NUMERICS, check_tensor, check_unit_stride

_PLAN_TILE = 64  # rows of the weight that the plan of segments counts as one tile
_NARROW = 32  # features a tile where rows don't divide into whole ones

_GROUP = tl.constexpr(GROUP)


def linear_cost(
    rows: int,
    in_features: int,
    out_features: int,
    *,
    itemsize: int,
    weight_bytes: float | None = None,
) -> Cost:
    """x, W and y cross memory once; a multiply-add for each element of W and row of x.

    weight_bytes: of W in all, if its elements are not `itemsize` bytes each.
    """
    if weight_bytes is None:
        weight_bytes = in_features * out_features * itemsize
    return Cost(
        flops=2.0 * rows * in_features * out_features,
        bytes=float(weight_bytes) + itemsize * rows * (in_features + out_features),
    )


# --- decoding of quantized values


def decoding(kind: str, dtype: torch.dtype) -> str:
    """PTX that turns two bytes into a pair of `dtype`, bfloat16 or float16; for int4 into two.

    Every integer below 2**m is the low bits of a number whose exponent makes its last bit worth 1
    (bfloat16: 128 + i, float16: 1024 + i), so that a byte put below that exponent's byte is a
    number already, and a subtraction away from its value:
    - int8: the low seven bits and the sign, each so, and one minus the other.
    - int4: low halves and high halves, less 8 and that offset.
    - fp8: sign, exponent and mantissa moved to their places, times 2 to the difference of biases;
      the hardware's subnormals do for e4m3's.
    Every step is exact.
    """
    bf16 = dtype == torch.bfloat16
    fma = "fma.rn.bf16x2" if bf16 else "fma.rn.f16x2"
    exponent = 0x43 if bf16 else 0x64
    one = 0x3F80 if bf16 else 0x3C00
    sign = 0x8000

    def pair(half: int) -> str:
        return f"0x{half:04x}{half:04x}"

    if kind == "fp8":
        shift, mask, rebias = (4, 0x07F0, 0x7B80) if bf16 else (1, 0x3F80, 0x5C00)
        steps = [
            "cvt.u32.u16 t, $1",
            "prmt.b32 t, t, 0, 0x1404",  # each byte on top of two
            f"shr.u32 a, t, {shift}",
            f"and.b32 a, a, {pair(mask)}",
            f"mov.b32 s, {pair(sign)}",
            "lop3.b32 a, t, s, a, 0xea",  # (t & s) | a
            f"mov.b32 c, {pair(rebias)}",
            f"{fma} $0, a, c, s",  # plus -0, which keeps zeros' signs
        ]
    elif kind == "int8":
        steps = [
            "cvt.u32.u16 t, $1",
            f"prmt.b32 t, t, 0x{exponent:02x}, 0x4140",
            "and.b32 a, t, 0xff7fff7f",
            "and.b32 b, t, 0xff80ff80",
            f"mov.b32 c, {pair(one | sign)}",
            f"{fma} $0, b, c, a",
        ]
    else:
        offset = (0x4308 if bf16 else 0x6408) | sign
        steps = [
            "cvt.u32.u16 t, $2",
            f"prmt.b32 t, t, 0x{exponent:02x}, 0x4140",
            f"mov.b32 c, {pair(one)}",
            f"mov.b32 d, {pair(offset)}",
            "and.b32 a, t, 0xff0fff0f",
            f"{fma} $0, a, c, d",
            "shr.u32 b, t, 4",
            "mov.b32 a, 0x000f000f",
            f"lop3.b32 b, b, a, {pair(exponent << 8)}, 0xea",
            f"{fma} $1, b, c, d",
        ]
    return "{ .reg .b32 t, a, b, c, d, s; " + " ".join(f"{step};" for step in steps) + " }"


@triton.jit
def _numbers(stored, x, KIND: tl.constexpr, DECODING: tl.constexpr):
    """Stored fp8 or int8 values in x's dtype."""
    if DECODING is not None:
        return tl.inline_asm_elementwise(DECODING, "=r,h", [stored], x.dtype, is_pure=True, pack=2)
    if KIND == "int8":
        return stored.to(x.dtype)
    bits = stored.to(tl.uint16)
    half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True)
    return (half.to(tl.float32) * 256.0).to(x.dtype)


@triton.jit
def _halves(stored, x, DECODING: tl.constexpr):
    """The integers in the low and in the high halves of bytes, in x's dtype."""
    if DECODING is not None:
        return tl.inline_asm_elementwise(
            DECODING, "=r,=r,h", [stored], (x.dtype, x.dtype), is_pure=True, pack=2
        )
    low = (stored & 15).to(tl.float32) - 8
    high = (stored >> 4).to(tl.float32) - 8
    return low.to(x.dtype), high.to(x.dtype)


# --- kernels


@triton.jit
def _segment_sum(
    x_at,
    weight_at,
    scales_at,
    k,
    begin,
    length,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    KIND: tl.constexpr,
    DECODING: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Products of `length` features from `begin` on: float32 [BLOCK_O, BLOCK_R]."""
    # Or the compiler makes each matrix instruction wait for the one before it.
    tl.assume(length > 0)
    acc = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    x_at += begin
    if KIND == "int4":
        weight_at += begin // 2
        scales_at += begin // _GROUP
        for group in tl.range(0, tl.cdiv(length, _GROUP), num_stages=STAGES):
            first = group * _GROUP
            stored = tl.load(weight_at + group * (_GROUP // 2))
            if EVEN_K:
                x_low = tl.load(x_at + first)
                x_high = tl.load(x_at + first + _GROUP // 2)
            else:
                inside = (first + k < length)[None, :]
                x_low = tl.load(x_at + first, mask=inside, other=0.0)
                inside = (first + _GROUP // 2 + k < length)[None, :]
                x_high = tl.load(x_at + first + _GROUP // 2, mask=inside, other=0.0)
            scale = tl.load(scales_at + group)
            low, high = _halves(stored, x_low, DECODING)
            product = tl.dot(low, tl.trans(x_low), input_precision="ieee")
            product = tl.dot(high, tl.trans(x_high), product, input_precision="ieee")
            acc = tl.fma(product, tl.broadcast_to(scale[:, None], [BLOCK_O, BLOCK_R]), acc)
        return acc

    weight_at += begin
    for first in tl.range(0, length, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            x = tl.load(x_at + first)
            weight = tl.load(weight_at + first)
        else:
            inside = (first + k < length)[None, :]
            x = tl.load(x_at + first, mask=inside, other=0.0)
            weight = tl.load(weight_at + first, mask=inside, other=0)
        if KIND != "plain":
            weight = _numbers(weight, x, KIND, DECODING)
        acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee")
    if KIND != "plain":
        acc *= tl.load(scales_at)[:, None]
    return acc


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    # Pointers
    x_ptr,  # [rows, in_features]
    weight_ptr,  # [out_features, in_features], or for int4 bytes [out_features, 64 groups]
    scales_ptr,  # float32 [out_features], or for int4 [out_features, groups]; None for plain
    out_ptr,  # [rows, out_features], or float32 [segments, rows, out_features] if IN_PARTS
    # Dimensions
    rows,
    in_features,
    out_features,
    # Strides, in elements; the last dimension of each tensor is contiguous
    stride_x,
    stride_weight,
    stride_scales,
    # Meta-parameters
    BLOCK_O: tl.constexpr,  # rows of the weight a tile
    BLOCK_R: tl.constexpr,  # rows of x a tile
    BLOCK_K: tl.constexpr,  # columns of the weight as stored
    SEGMENT: tl.constexpr,  # features: a multiple of BLOCK_K, for int4 of a group
    EVEN_K: tl.constexpr,  # in_features is a whole number of tiles
    IN_PARTS: tl.constexpr,  # a program takes one segment; else all of them
    KIND: tl.constexpr,  # "plain", "fp8", "int8" or "int4"
    DECODING: tl.constexpr,  # PTX; None: by plain arithmetic, as the interpreter has to
    STAGES: tl.constexpr,
):
    # Tiles of rows come first, so that programs which run together read the same weights.
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    feature = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    k = tl.arange(0, BLOCK_K)

    # What lies beyond the last row or feature reads the last one and is never stored.
    x_row = tl.minimum(row, rows - 1).to(tl.int64)
    weight_row = tl.minimum(feature, out_features - 1).to(tl.int64)
    x_at = x_ptr + x_row[:, None] * stride_x + k[None, :]
    weight_at = weight_ptr + weight_row[:, None] * stride_weight + k[None, :]
    scales_at = weight_row
    if KIND != "plain":
        scales_at = scales_ptr + weight_row * stride_scales

    if IN_PARTS:
        segment = tl.program_id(2)
        begin = segment * SEGMENT
        total = _segment_sum(
            x_at, weight_at, scales_at, k, begin, tl.minimum(SEGMENT, in_features - begin),
            BLOCK_O, BLOCK_R, BLOCK_K, EVEN_K, KIND, DECODING, STAGES,
        )  # fmt: skip
        out_ptr += segment.to(tl.int64) * rows * out_features
    else:
        total = _segment_sum(
            x_at, weight_at, scales_at, k, 0, tl.minimum(SEGMENT, in_features),
            BLOCK_O, BLOCK_R, BLOCK_K, EVEN_K, KIND, DECODING, STAGES,
        )  # fmt: skip
        for begin in tl.range(SEGMENT, in_features, SEGMENT):
            total += _segment_sum(
                x_at, weight_at, scales_at, k, begin, tl.minimum(SEGMENT, in_features - begin),
                BLOCK_O, BLOCK_R, BLOCK_K, EVEN_K, KIND, DECODING, STAGES,
            )  # fmt: skip

    out = tl.trans(total)
    at = row.to(tl.int64)[:, None] * out_features + feature[None, :]
    inside = (row < rows)[:, None] & (feature < out_features)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def sum_kernel(
    # Pointers
    partial_ptr,  # float32 [SEGMENTS, rows, out_features]
    out_ptr,  # [rows, out_features]
    # Dimensions
    rows,
    out_features,
    # Meta-parameters
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # In this form the compiler sees that segments begin at whole vectors, where rows do.
    size = rows.to(tl.int64) * out_features
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = load_total(partial_ptr, at, size, inside, SEGMENTS, out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


# --- launchers


class LinearCall(NamedTuple):
    """Arguments of the ops; see `linear`.

    x: [..., in_features], contiguous, or two-dimensional with rows any distance apart.
    weight: with kind "plain"; else the values of a QuantizedWeight, with its scales and kind.
    """

    x: Tensor
    weight: Tensor
    scales: Tensor | None = None
    kind: str = "plain"
    numerics: str = "batch_invariant"

    @property
    def rows(self) -> int:
        return self.x.numel() // self.x.shape[-1]

    @property
    def by_library(self) -> bool:
        """Whether this is torch's product: "fast", unless our kernel is there and rows are few."""
        if self.numerics != "fast" or self.kind != "plain":
            return False
        if backend_for(self.x) != "triton":
            return True
        config = launch.LINEAR[launch.arch_of(self.x.device)][self.x.element_size()]
        return self.rows > config.library_rows


class _Plan(NamedTuple):
    """How one product is launched."""

    tile: launch.LinearTile
    block_k: int  # columns of the weight as stored
    even: bool  # in_features is a whole number of tiles
    segment: int  # features
    in_parts: bool  # each program takes one segment, else all of them


def _plan(call: LinearCall) -> _Plan:
    x, values, _, kind, _ = call
    rows, in_features, out_features = call.rows, x.shape[-1], values.shape[0]
    configs = launch.LINEAR[launch.arch_of(x.device)]
    config = configs[x.element_size() if kind == "plain" else kind]
    tile = launch.tile_serving(config.tiles, rows)
    narrower = replace(tile, block_r=min(tile.block_r, config.walking_rows))
    segment = segment_length(in_features, out_features, config)
    # Rows that don't divide into whole tiles load element by element: narrow, or they spill.
    if kind == "int4":
        even, block_k = in_features % GROUP == 0, GROUP // 2
    else:
        even = in_features % config.block_k == 0
        block_k = config.block_k if even else min(config.block_k, _NARROW)
    in_parts = True
    if not even:
        tile = narrower
    elif segment < in_features and tile is config.tiles[max(config.tiles)]:
        row_tiles = triton.cdiv(rows, narrower.block_r)
        if row_tiles * triton.cdiv(out_features, tile.block_o) >= config.whole_programs:
            tile, in_parts = narrower, False
    return _Plan(tile, block_k, even, segment, in_parts)


def segment_length(in_features: int, out_features: int, config: launch.LinearLaunch) -> int:
    """Features a segment: enough segments for `programs` programs, each `min_segment` or longer.

    A function of the layer's shape alone: programs are counted as if each took 64 rows of the
    weight, whatever the tile. A whole number of tiles, and of groups of int4 weights.
    """
    wanted = triton.cdiv(config.programs, triton.cdiv(out_features, _PLAN_TILE))
    longest = max(config.min_segment, triton.cdiv(in_features, wanted))
    return triton.cdiv(longest, GROUP) * GROUP


def _empty_sums(call: LinearCall, plan: _Plan) -> Tensor:
    *leading, in_features = call.x.shape
    parts = triton.cdiv(in_features, plan.segment) if plan.in_parts else 1
    dtype = call.x.dtype if parts == 1 else torch.float32
    return call.x.new_empty((parts, *leading, call.weight.shape[0]), dtype=dtype)


def _launch_partials(call: LinearCall) -> Tensor:
    if call.by_library:
        return F.linear(call.x, call.weight)[None]
    in_features = call.x.shape[-1]
    if call.kind != "plain" and call.x.dtype == torch.float32:
        whole = QuantizedWeight(call.weight, call.scales, call.kind, in_features).dequantized()
        call = LinearCall(call.x, whole)
    x, values, scales, kind, _ = call
    tile, block_k, even, segment, in_parts = plan = _plan(call)
    sums = _empty_sums(call, plan)
    parts, rows, out_features = len(sums), call.rows, len(values)
    if rows == 0:
        return sums
    decoded = kind != "plain" and isinstance(product_kernel, triton.JITFunction)
    grid = triton.cdiv(rows, tile.block_r), triton.cdiv(out_features, tile.block_o), parts
    product_kernel[grid](
        x, values.view(torch.uint8) if kind == "fp8" else values, scales, sums,
        rows, in_features, out_features,
        x.stride(0) if x.dim() == 2 else in_features,
        values.stride(0), 0 if scales is None else scales.stride(0),
        BLOCK_O=tile.block_o,
        BLOCK_R=tile.block_r,
        BLOCK_K=block_k,
        SEGMENT=segment,
        EVEN_K=even,
        IN_PARTS=in_parts,
        KIND=kind,
        DECODING=decoding(kind, x.dtype) if decoded else None,
        STAGES=tile.num_stages,
        num_warps=tile.num_warps,
        # A segment is rounded before it is added, here as where the next kernel adds it.
        enable_fp_fusion=False,
    )  # fmt: skip
    return sums


def _launch(call: LinearCall) -> Tensor:
    sums = _launch_partials(call)
    if len(sums) == 1:
        return sums[0]
    out = _empty_output(call)
    sum_kernel[(triton.cdiv(out.numel(), 1024),)](
        sums, out, call.rows, out.shape[-1], SEGMENTS=len(sums), BLOCK=1024, num_warps=4
    )
    return out


def _empty_output(call: LinearCall) -> Tensor:
    return call.x.new_empty((*call.x.shape[:-1], call.weight.shape[0]))


# --- ops


linear_op = Op(
    LinearCall,
    name="linear",
    fake=_empty_output,
    triton=_launch,
    torch=torch_backend.linear,
)


def _fake_partials(call: LinearCall) -> Tensor:
    if backend_for(call.x) != "triton" or call.by_library:
        return _empty_output(call)[None]
    kind = "plain" if call.x.dtype == torch.float32 else call.kind
    return _empty_sums(call, _plan(call._replace(kind=kind)))


# The sums of PartialSums in x's dtype.
linear_partials_op = Op(
    LinearCall,
    name="linear_partials",
    fake=_fake_partials,
    triton=_launch_partials,
    torch=lambda call: torch_backend.linear(call)[None],
)


def linear(
    x: Tensor, weight: Tensor | QuantizedWeight, *, numerics: str = "batch_invariant"
) -> Tensor:
    """x W^T, each row a function of that row alone.

    Args:
        x: bfloat16, float16 or float32 [..., in_features].
        weight: [out_features, in_features] in x's dtype; rows may lie any distance apart, each of
            them contiguous. Or a QuantizedWeight of that shape, whose values and scales are finite.
        numerics: "batch_invariant", or "fast": torch's product where it has been found faster,
            whose bits may depend on the number of rows. Sums are taken in float32 either way.

    On a CPU the invariance holds at a fixed number of threads.

    Returns:
        [..., out_features] in x's dtype, contiguous.

    Raises:
        TypeError, ValueError: a dtype, shape, stride or device does not fit; the message names it.
    """
    out = linear_op(_checked(x, weight, numerics))
    return out if out.dim() == x.dim() else out.view(*x.shape[:-1], weight.shape[0])


def linear_partials(
    x: Tensor, weight: Tensor | QuantizedWeight, *, numerics: str = "batch_invariant"
) -> PartialSums:
    """`linear` with its segments not yet added, for a kernel that adds them as it loads them.

    Arguments and errors are those of `linear`, and so are the bits of the sums' total.

    Returns:
        PartialSums of [..., out_features] in x's dtype: float32 [segments, ..., out_features], or
        the product itself, [1, ..., out_features], where there is one segment, where rows alone
        fill the chip, or on another backend than Triton.
    """
    sums = linear_partials_op(_checked(x, weight, numerics))
    if sums.dim() != x.dim() + 1:
        sums = sums.view(len(sums), *x.shape[:-1], weight.shape[0])
    return PartialSums(sums, x.dtype)


def _checked(x: Tensor, weight: Tensor | QuantizedWeight, numerics: str) -> LinearCall:
    if isinstance(weight, QuantizedWeight):
        _check_quantized(weight)
        dtypes, kept = FLOAT_DTYPES, (weight.values, weight.scales, weight.kind)
    else:
        check_tensor("weight", weight, shape=("out_features", "in_features"), dtypes=FLOAT_DTYPES)
        check_unit_stride("weight", weight)
        dtypes, kept = (weight.dtype,), (weight, None, "plain")
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; it must be a torch.Tensor")
    in_features = weight.shape[1]
    wanted = (*x.shape[:-1], in_features) if x.dim() else (in_features,)
    check_tensor("x", x, shape=wanted, dtypes=dtypes, device=weight.device)
    if min(weight.shape) == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must not be empty")
    if numerics not in NUMERICS:
        raise ValueError(f"numerics is {numerics!r}; it must be one of {', '.join(NUMERICS)}")
    if not (x.dim() == 2 and x.stride(1) == 1) and (x.dim() == 1 or not x.is_contiguous()):
        x = x.reshape(-1, in_features)
        if x.stride(1) != 1:
            x = x.contiguous()
    return LinearCall(x, *kept, numerics)


def _check_quantized(weight: QuantizedWeight) -> None:
    values, scales, kind, in_features = weight
    if kind not in LARGEST:
        raise ValueError(f"weight.kind is {kind!r}; it must be one of {', '.join(LARGEST)}")
    dtype = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8}[kind]
    groups = triton.cdiv(in_features, GROUP)
    columns = groups * GROUP // 2 if kind == "int4" else in_features
    check_tensor("weight.values", values, shape=("out_features", columns), dtypes=(dtype,))
    shape = (values.shape[0], groups) if kind == "int4" else (values.shape[0],)
    check_tensor(
        "weight.scales", scales, shape=shape, dtypes=(torch.float32,), device=values.device
    )
    for name, tensor in (("values", values), ("scales", scales)):
        if not tensor.is_contiguous():
            raise ValueError(f"weight.{name} has strides {tensor.stride()}; it must be contiguous")
