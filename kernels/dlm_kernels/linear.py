r"""The matrix product of a linear layer, y = x W^T, whose rows do not depend on each other.

A library picks its product by the number of rows, and with it the order in which a row's terms are
added: a token decoded alone then gets other bits than the same token verified among 32. Here the
order is a function of the layer's shape and dtype alone:

- Triton: the weight's rows are the tile's long side and 32 rows of x its short one, however many
  there are, so that one token costs what 32 cost: the weight, read once. `in_features` is cut into
  segments at fixed places, enough of them to fill the chip for one tile of rows; a second kernel
  adds the segments in their order.
- torch: the library's product, over groups of exactly 32 rows.

Numerics "fast" is the library's product of whatever shape comes.

Compulsory traffic: x, W and y once each; FLOPs: 2 rows in_features out_features. Every further 32
rows read W again, from L2 while it fits.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import launch, reference, torch_backend
from .backend import backend_for
from .cost import Cost
from .validate import FLOAT_DTYPES, NUMERICS, check_tensor, check_unit_stride


def linear_cost(rows: int, in_features: int, out_features: int, *, itemsize: int) -> Cost:
    """x, W and y cross memory once; a multiply-add for each element of W and row of x."""
    return Cost(
        flops=2.0 * rows * in_features * out_features,
        bytes=float(itemsize)
        * (rows * in_features + in_features * out_features + rows * out_features),
    )


# --- kernels


@triton.jit(do_not_specialize=["rows"])
def segment_kernel(
    # Pointers
    x_ptr,  # [rows, in_features]
    weight_ptr,  # [out_features, in_features]
    out_ptr,  # [rows, out_features], or float32 [segments, rows, out_features] unless ONE_SEGMENT
    # Dimensions
    rows,
    in_features,
    out_features,
    # Strides, in elements; the last dimension of each tensor is contiguous
    stride_x,
    stride_weight,
    # Meta-parameters
    BLOCK_O: tl.constexpr,  # rows of the weight a tile
    BLOCK_R: tl.constexpr,  # rows of x a tile
    BLOCK_K: tl.constexpr,
    SEGMENT: tl.constexpr,  # a multiple of BLOCK_K
    EVEN_K: tl.constexpr,  # every segment is a whole number of tiles
    ONE_SEGMENT: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Tiles of rows come first, so that programs which run together read the same weights.
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    feature = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    segment = tl.program_id(2)
    k = tl.arange(0, BLOCK_K)
    begin = segment * SEGMENT
    end = tl.minimum(begin + SEGMENT, in_features)

    # What lies beyond the last row or feature reads the last one and is never stored.
    x_row = tl.minimum(row, rows - 1).to(tl.int64)
    weight_row = tl.minimum(feature, out_features - 1).to(tl.int64)
    x_at = x_ptr + x_row[:, None] * stride_x + k[None, :]
    weight_at = weight_ptr + weight_row[:, None] * stride_weight + k[None, :]
    acc = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            x = tl.load(x_at + start)
            weight = tl.load(weight_at + start)
        else:
            inside = (start + k < end)[None, :]
            x = tl.load(x_at + start, mask=inside, other=0.0)
            weight = tl.load(weight_at + start, mask=inside, other=0.0)
        acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee")

    out = tl.trans(acc)
    at = row.to(tl.int64)[:, None] * out_features + feature[None, :]
    inside = (row < rows)[:, None] & (feature < out_features)[None, :]
    if not ONE_SEGMENT:
        out_ptr += segment.to(tl.int64) * rows * out_features
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["size"])
def sum_kernel(
    # Pointers
    partial_ptr,  # float32 [SEGMENTS, size]
    out_ptr,  # [size]
    # Dimensions
    size,
    # Meta-parameters
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(partial_ptr + at, mask=inside, other=0.0)
    for segment in tl.static_range(1, SEGMENTS):
        total += tl.load(partial_ptr + segment * size.to(tl.int64) + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


# --- launcher


def _launch(x: Tensor, weight: Tensor) -> Tensor:
    rows, in_features = x.shape
    out_features = weight.shape[0]
    out = _empty_output(x, weight)
    if rows == 0:
        return out
    config = launch.LINEAR[launch.arch_of(x.device)][x.element_size()]
    # Rows that don't divide into whole tiles load element by element: narrow tiles, or they spill.
    even = in_features % config.block_k == 0
    block_k = config.block_k if even else 32
    feature_tiles = triton.cdiv(out_features, config.block_o)
    segment = segment_length(in_features, feature_tiles, config)
    segments = triton.cdiv(in_features, segment)
    one_segment = segments == 1
    partial = out
    if not one_segment:
        partial = x.new_empty((segments, *out.shape), dtype=torch.float32)
    segment_kernel[(triton.cdiv(rows, config.block_r), feature_tiles, segments)](
        x, weight, partial,
        rows, in_features, out_features, x.stride(0), weight.stride(0),
        BLOCK_O=config.block_o,
        BLOCK_R=config.block_r,
        BLOCK_K=block_k,
        SEGMENT=segment,
        EVEN_K=even,
        ONE_SEGMENT=one_segment,
        STAGES=config.num_stages,
        num_warps=config.num_warps,
    )  # fmt: skip
    if not one_segment:
        sum_kernel[(triton.cdiv(out.numel(), 1024),)](
            partial, out, out.numel(), SEGMENTS=segments, BLOCK=1024, num_warps=4
        )
    return out


def segment_length(in_features: int, feature_tiles: int, config: launch.LinearLaunch) -> int:
    """Features a segment: enough segments for `programs` programs, each `min_segment` or longer."""
    wanted = triton.cdiv(config.programs, feature_tiles)
    longest = max(config.min_segment, triton.cdiv(in_features, wanted))
    return triton.cdiv(longest, config.block_k) * config.block_k


def _empty_output(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


# --- op


_IMPLEMENTATIONS = {
    "triton": _launch,
    "torch": torch_backend.linear,
    "reference": reference.linear,
}


@torch.library.custom_op("dlm_kernels::linear", mutates_args=())
def _linear_op(x: Tensor, weight: Tensor) -> Tensor:
    return _IMPLEMENTATIONS[backend_for(x)](x, weight)


@_linear_op.register_fake
def _(x, weight):
    return _empty_output(x, weight)


def linear(x: Tensor, weight: Tensor, *, numerics: str = "invariant") -> Tensor:
    """x W^T, each row a function of that row alone.

    Args:
        x: bfloat16, float16 or float32 [..., in_features].
        weight: [out_features, in_features] in x's dtype; rows may lie any distance apart, each of
            them contiguous.
        numerics: "invariant", or "fast": torch's product, whose bits may depend on the number of
            rows. Sums are taken in float32 either way.

    On a CPU the invariance holds at a fixed number of threads.

    Returns:
        [..., out_features] in x's dtype, contiguous.

    Raises:
        TypeError, ValueError: a dtype, shape, stride or device does not fit; the message names it.
    """
    check_tensor("weight", weight, shape=("out_features", "in_features"), dtypes=FLOAT_DTYPES)
    check_unit_stride("weight", weight)
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; it must be a torch.Tensor")
    in_features = weight.shape[1]
    leading = x.shape[:-1]
    wanted = (*leading, in_features) if x.dim() else (in_features,)
    check_tensor("x", x, shape=wanted, dtypes=(weight.dtype,), device=weight.device)
    if min(weight.shape) == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must not be empty")
    if numerics not in NUMERICS:
        raise ValueError(f"numerics is {numerics!r}; it must be one of {', '.join(NUMERICS)}")
    if numerics == "fast":
        return F.linear(x, weight)
    rows = x.reshape(-1, in_features)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    return _linear_op(rows, weight).view(*leading, weight.shape[0])
