"""A matrix product as its kernel leaves it: in parts that the next kernel adds up.

Where few rows meet a wide weight, a product is cut along its features so that enough programs read
the weight. Adding the parts takes a launch of its own, or none if the kernel that needs the product
adds them while it loads.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .validate import FLOAT_DTYPES, check_tensor


class PartialSums(NamedTuple):
    """A product [..., features] of `dtype` in parts.

    sums: float32 [segments, ..., features], which add up in their order; or, whole already,
        [1, ..., features] in `dtype`. Contiguous.
    """

    sums: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Of the product."""
        return self.sums.shape[1:]

    def total(self) -> Tensor:
        """The product [..., features]: the sums added in float32 and rounded once."""
        total = self.sums[0]
        for segment in self.sums[1:]:
            total = total + segment
        return total.to(self.dtype)


def as_partial_sums(name: str, product: Tensor | PartialSums) -> PartialSums:
    """A product given whole or in parts as parts; TypeError or ValueError if it is neither."""
    if isinstance(product, Tensor):
        check_tensor(name, product, product.shape, FLOAT_DTYPES)
        whole = product if product.is_contiguous() else product.contiguous()
        return PartialSums(whole.unsqueeze(0), product.dtype)
    if not isinstance(product, PartialSums):
        raise TypeError(
            f"{name} is a {type(product).__name__}; it must be a torch.Tensor or PartialSums"
        )
    sums, dtype = product
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}.dtype is {dtype}; it must be bfloat16 or float16 or float32")
    check_tensor(f"{name}.sums", sums, sums.shape, (torch.float32, dtype))
    whole = sums.dtype == dtype and dtype != torch.float32
    if sums.dim() < 2 or len(sums) == 0 or (whole and len(sums) > 1):
        raise ValueError(
            f"{name}.sums is {sums.dtype} {list(sums.shape)}; it must be float32"
            f" [segments, ..., features] or {dtype} [1, ..., features]"
        )
    if not sums.is_contiguous():
        raise ValueError(f"{name}.sums has strides {sums.stride()}; it must be contiguous")
    return product


@triton.jit
def load_total(
    sums_ptr,  # [SEGMENTS, ...]
    at,
    stride_segment,
    inside,
    SEGMENTS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """`PartialSums.total` of the elements `at`, in float32; 0 where not `inside`."""
    total = tl.load(sums_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for segment in tl.static_range(1, SEGMENTS):
        total += tl.load(sums_ptr + segment * stride_segment + at, mask=inside, other=0.0)
    return total.to(DTYPE).to(tl.float32)
