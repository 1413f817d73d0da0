"""Weights of a linear layer in 8 or 4 bits, which its kernel turns into numbers in registers.

    weight[o, i]  ~  scales[o, group of i] * values[o, i]

- "fp8": e4m3 values in [-448, 448], one scale a row of the weight.
- "int8": integers in [-127, 127], one scale a row.
- "int4": integers in [-7, 7], one scale a row and group of 128 features. A group takes 64 bytes:
  byte j holds feature j in its low half and feature j + 64 in its high half, each plus 8, so that
  a tile of bytes unpacks into two tiles of features that lie together. The last group is filled
  up with zeros.

A scale is the largest magnitude it covers over the largest value, and no less than the smallest
normal float32, so that zeros and subnormal weights have one that no device flushes to zero. Values
are rounded to nearest, ties to even. So a weight is off by at most half a scale in "int8" and
"int4"; in "fp8" by 1/16 of itself, or by 2^-10 scales if it is less than 2^-6 scales.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .validate import FLOAT_DTYPES, check_tensor

GROUP = 128  # features an int4 scale covers
AT_ONCE = 1 << 24  # weights quantised together; each takes some 16 bytes meanwhile
LARGEST = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}  # magnitude of a value


class QuantizedWeight(NamedTuple):
    """A weight [out_features, in_features] in few bits; see the module's docstring.

    values: float8_e4m3fn or int8 [out_features, in_features], or for int4 uint8
        [out_features, 64 ceil(in_features / 128)]. Contiguous, as scales.
    scales: float32 [out_features], or for int4 [out_features, ceil(in_features / 128)].
    kind: "fp8", "int8" or "int4".
    """

    values: Tensor
    scales: Tensor
    kind: str
    in_features: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that this stands for."""
        return self.values.shape[0], self.in_features

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def n_bytes(self) -> int:
        """Bytes of values and scales."""
        return sum(x.numel() * x.element_size() for x in (self.values, self.scales))

    def dequantized(self) -> Tensor:
        """scales * values: float32 [out_features, in_features]."""
        if self.kind != "int4":
            return self.values.float() * self.scales[:, None]
        groups = self.values.unflatten(1, (-1, GROUP // 2))
        integers = torch.cat([groups & 15, groups >> 4], -1).float() - 8
        return (integers * self.scales[..., None]).flatten(1)[:, : self.in_features]


def quantize_weight(weight: Tensor, kind: str) -> QuantizedWeight:
    """A weight in few bits, symmetric and rounded to nearest.

    Args:
        weight: bfloat16, float16 or float32 [out_features, in_features], finite.
        kind: "fp8" (e4m3) or "int8", with a scale a row, or "int4", with a scale a row and 128
            features; see the module's docstring for the layout.

    Returns:
        values and scales on the weight's device, for `linear` and `linear_partials`.

    Raises:
        TypeError, ValueError: weight is no finite, non-empty matrix of floats; kind is unknown.
    """
    check_tensor("weight", weight, shape=("out_features", "in_features"), dtypes=FLOAT_DTYPES)
    if not isinstance(kind, str) or kind not in LARGEST:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(LARGEST)}")
    if weight.numel() == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must not be empty")
    if not weight.isfinite().all():
        raise ValueError("weight holds inf or NaN; it must be finite")
    parts = weight.detach().split(max(1, AT_ONCE // weight.shape[1]))
    values, scales = zip(*(_quantized_rows(part.float(), kind) for part in parts), strict=True)
    return QuantizedWeight(torch.cat(values), torch.cat(scales), kind, weight.shape[1])


def _quantized_rows(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Values and scales of float32 [rows, in_features]; no row depends on another."""
    if kind == "int4":
        weight = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = weight.abs().amax(-1) / LARGEST[kind]
    scales.clamp_(min=torch.finfo(torch.float32).tiny)
    values = weight / scales[..., None]
    if kind == "fp8":
        return values.to(torch.float8_e4m3fn), scales
    values = values.round()
    if kind == "int8":
        return values.to(torch.int8), scales
    low, high = (values + 8).to(torch.uint8).chunk(2, -1)
    return (high << 4 | low).flatten(1), scales
