r"""A sublayer's output added to the residual stream, and the sum normalised for the next sublayer.

    residual' = round(residual + update)
    normed    = round(residual' / sqrt(mean(residual'^2) + eps) * weight)

in float32 throughout; `round` is to the residual's dtype. The update may come in partial sums: they
are added up while they load and rounded once, so it does not matter how it comes. One program takes
one row and holds it in registers, so a row's bits are a function of that row alone.

Compulsory traffic: residual, update and weight read once, residual' and normed written once;
without an update, residual, weight and normed alone. FLOPs an element: add, square, add, and two
multiplies.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import launch, torch_backend
from .cost import Cost
from .op import Op
from .partial_sums import PartialSums, as_partial_sums, load_total
from .validate import FLOAT_DTYPES, check_number, check_tensor

_MAX_HIDDEN = 16384  # a row lies in one program's registers


def residual_norm_cost(rows: int, hidden: int, *, itemsize: int, update: bool = True) -> Cost:
    """Of a whole update, or of the norm alone; partial sums are overhead."""
    tensors = 4 if update else 2
    return Cost(
        flops=(5.0 if update else 4.0) * rows * hidden,
        bytes=float(itemsize) * (tensors * rows * hidden + hidden),
    )


# --- kernel


@triton.jit(do_not_specialize=["rows"])
def norm_kernel(
    # Pointers
    residual_ptr,  # [rows, hidden]
    sums_ptr,  # [SEGMENTS, rows, hidden], read if SEGMENTS
    weight_ptr,  # [hidden]
    sum_ptr,  # [rows, hidden], written if SEGMENTS
    normed_ptr,  # [rows, hidden]
    # Dimensions
    rows,
    hidden,
    # Scalars
    eps,
    # Meta-parameters
    SEGMENTS: tl.constexpr,  # 0: no update
    BLOCK: tl.constexpr,  # at least hidden
):
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    # In this form the compiler sees that rows begin at whole vectors, where hidden is a multiple.
    at = tl.program_id(0).to(tl.int64) * hidden + column
    dtype: tl.constexpr = normed_ptr.dtype.element_ty

    x = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if SEGMENTS:
        x += load_total(sums_ptr, at, rows.to(tl.int64) * hidden, inside, SEGMENTS, dtype)
        rounded = x.to(dtype)
        tl.store(sum_ptr + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x * x, 0) / hidden
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(mean + eps) * weight
    tl.store(normed_ptr + at, normed.to(dtype), mask=inside)


# --- launcher


class ResidualNormCall(NamedTuple):
    """Arguments of the op; see `residual_norm`. Without an update the new residual is empty."""

    residual: Tensor  # contiguous, as all are
    update: Tensor | None  # the sums of PartialSums in residual's dtype
    weight: Tensor
    eps: float


def _launch(call: ResidualNormCall) -> tuple[Tensor, Tensor]:
    residual, sums, weight, eps = call
    out, normed = _empty_outputs(call)
    if residual.numel() == 0:
        return out, normed
    hidden = len(weight)
    rows = residual.numel() // hidden
    residual, weight = _aligned(residual), _aligned(weight)
    segments = 0
    if sums is not None:
        sums, segments = _aligned(sums), len(sums)
    config = launch.smallest_serving(launch.RESIDUAL_NORM[launch.arch_of(residual.device)], hidden)
    norm_kernel[(rows,)](
        residual, sums, weight, out, normed,
        rows, hidden, eps,
        SEGMENTS=segments,
        BLOCK=triton.next_power_of_2(hidden),
        num_warps=config.num_warps,
    )  # fmt: skip
    return out, normed


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor where vectors can be loaded: which elements a thread holds, and with it the order
    of a row's sum, would depend on its address else."""
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _empty_outputs(call: ResidualNormCall) -> tuple[Tensor, Tensor]:
    shape = call.residual.shape
    updated = call.residual.new_empty((0,) if call.update is None else shape)
    return updated, call.residual.new_empty(shape)


# --- op


residual_norm_op = Op(
    ResidualNormCall,
    name="residual_norm",
    fake=_empty_outputs,
    triton=_launch,
    torch=torch_backend.residual_norm,
)


def residual_norm(
    residual: Tensor, update: Tensor | PartialSums | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(residual + update, the same normalised); each row a function of that row alone.

    Args:
        residual: bfloat16, float16 or float32 [..., hidden], hidden at most 16384.
        update: [..., hidden] in residual's dtype, whole or in partial sums. None: residual is
            normalised as it is.
        weight: [hidden] in residual's dtype.
        eps: added to the mean of squares; at least 0.

    Returns:
        The new residual, or `residual` itself if update is None, and the normalised rows, both in
        residual's shape and dtype.

    Raises:
        TypeError, ValueError: a dtype, shape, device or range does not fit; the message names it.
    """
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual is a {type(residual).__name__}; it must be a torch.Tensor")
    check_tensor("residual", residual, residual.shape or ("hidden",), FLOAT_DTYPES)
    hidden = residual.shape[-1]
    if not 1 <= hidden <= _MAX_HIDDEN:
        raise ValueError(f"residual has rows of {hidden}; they must have 1 to {_MAX_HIDDEN}")
    check_tensor("weight", weight, (hidden,), (residual.dtype,), residual.device)
    check_number("eps", eps)
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps is {eps}; it must be at least 0 and finite")
    sums = None
    if update is not None:
        update = as_partial_sums("update", update)
        _check_like_residual(update, residual)
        sums = update.sums
    call = ResidualNormCall(residual.contiguous(), sums, weight.contiguous(), float(eps))
    out, normed = residual_norm_op(call)
    return residual if sums is None else out, normed


def _check_like_residual(update: PartialSums, residual: Tensor) -> None:
    if update.shape != residual.shape:
        raise ValueError(
            f"update has shape {list(update.shape)}; it must be {list(residual.shape)}, as residual"
        )
    if update.dtype != residual.dtype:
        raise TypeError(f"update is {update.dtype}; it must be {residual.dtype}, as residual")
    if update.sums.device != residual.device:
        raise ValueError(
            f"update is on {update.sums.device}; it must be on {residual.device}, as residual"
        )
