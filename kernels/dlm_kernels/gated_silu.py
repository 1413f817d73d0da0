r"""The activation between a gated MLP's products.

    out = round(round(silu(gate)) * up)        silu(x) = x / (1 + exp(-x))

in float32; `round` is to the product's dtype. Gate and up are the halves of one product's features,
which may come in partial sums: they are added up while they load and rounded once. Each element is
a function of its own gate and up alone.

Compulsory traffic: the product read once, the result written once. An add, a divide, a multiply and
one exponential an element of the result.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import launch, torch_backend
from .cost import Cost
from .op import Op
from .partial_sums import PartialSums, as_partial_sums, load_total


def gated_silu_cost(rows: int, intermediate: int, *, itemsize: int) -> Cost:
    """Of a whole product [rows, 2 intermediate]; partial sums are overhead."""
    elements = float(rows) * intermediate
    return Cost(flops=3 * elements, bytes=3 * itemsize * elements, exps=elements)


# --- kernel


@triton.jit(do_not_specialize=["rows"])
def silu_kernel(
    # Pointers
    sums_ptr,  # [SEGMENTS, rows, 2 intermediate]: gate, then up
    out_ptr,  # [rows, intermediate]
    # Dimensions
    rows,
    intermediate,
    # Meta-parameters
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < intermediate
    at = row * (2 * intermediate) + column
    stride_segment = rows.to(tl.int64) * (2 * intermediate)
    dtype: tl.constexpr = out_ptr.dtype.element_ty

    gate = load_total(sums_ptr, at, stride_segment, inside, SEGMENTS, dtype)
    up = load_total(sums_ptr, at + intermediate, stride_segment, inside, SEGMENTS, dtype)
    activated = (gate / (1 + tl.exp(-gate))).to(dtype).to(tl.float32)
    out = (activated * up).to(dtype)
    tl.store(out_ptr + row * intermediate + column, out, mask=inside)


# --- launcher


class GatedSiluCall(NamedTuple):
    """Arguments of the op; see `gated_silu`."""

    gate_up: PartialSums


def _launch(call: GatedSiluCall) -> Tensor:
    sums, out = call.gate_up.sums, _empty_output(call)
    if out.numel() == 0:
        return out
    intermediate = out.shape[-1]
    rows = out.numel() // intermediate
    config = launch.GATED_SILU[launch.arch_of(sums.device)]
    silu_kernel[(rows, triton.cdiv(intermediate, config.block))](
        sums, out,
        rows, intermediate,
        SEGMENTS=len(sums),
        BLOCK=config.block,
        num_warps=config.num_warps,
    )  # fmt: skip
    return out


def _empty_output(call: GatedSiluCall) -> Tensor:
    sums, dtype = call.gate_up
    *leading, features = sums.shape[1:]
    return sums.new_empty((*leading, features // 2), dtype=dtype)


# --- op


gated_silu_op = Op(
    GatedSiluCall,
    name="gated_silu",
    fake=_empty_output,
    triton=_launch,
    torch=torch_backend.gated_silu,
)


def gated_silu(gate_up: Tensor | PartialSums) -> Tensor:
    """silu(gate) * up.

    Args:
        gate_up: bfloat16, float16 or float32 [..., 2 intermediate], the gate's features first;
            whole or in partial sums.

    Returns:
        [..., intermediate] in gate_up's dtype, contiguous.

    Raises:
        TypeError, ValueError: a dtype, shape or stride does not fit; the message names it.
    """
    gate_up = as_partial_sums("gate_up", gate_up)
    if len(gate_up.shape) == 0 or gate_up.shape[-1] % 2 or gate_up.shape[-1] == 0:
        raise ValueError(
            f"gate_up has shape {list(gate_up.shape)}; it must be [..., 2 intermediate]"
        )
    return gated_silu_op(GatedSiluCall(gate_up))
