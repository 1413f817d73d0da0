"""Every error a caller of residual_norm can make names its argument; nothing changed."""

import math

import pytest
import torch
from valid_arguments import F16, F64, expect

from dlm_kernels import residual_norm
from dlm_kernels.partial_sums import PartialSums


def norm_arguments() -> dict:
    return {
        "residual": torch.zeros(3, 8),
        "update": torch.zeros(3, 8),
        "weight": torch.zeros(8),
        "eps": 1e-5,
    }


NORM_ERRORS = {
    "weight-2d": ({"weight": torch.zeros(1, 8)}, ValueError, r"weight has shape \[1, 8\]; .*\[8\]"),
    "weight-float64": ({"weight": torch.zeros(8, dtype=F64)}, TypeError, "weight is torch.float64"),
    "weight-empty": ({"weight": torch.zeros(0)}, ValueError, r"weight has shape \[0\]; .*\[8\]"),
    "residual-too-wide": (
        {"residual": torch.zeros(3, 16385)},
        ValueError,
        "residual has rows of 16385; they must have 1 to 16384",
    ),
    "residual-no-tensor": ({"residual": 0}, TypeError, "residual is a int; .*torch.Tensor"),
    "residual-0d": (
        {"residual": torch.zeros(())},
        ValueError,
        r"residual has shape \[\]; .*\[hidden\]",
    ),
    "residual-narrow": (
        {"residual": torch.zeros(3, 7)},
        ValueError,
        r"weight has shape \[8\]; it must be \[7\]",
    ),
    "residual-float16": (
        {"residual": torch.zeros(3, 8, dtype=F16)},
        TypeError,
        "weight is torch.float32; it must be float16",
    ),
    "update-list": ({"update": [0]}, TypeError, "update is a list; .*torch.Tensor or PartialSums"),
    "update-of-other-rows": (
        {"update": torch.zeros(2, 8)},
        ValueError,
        r"update has shape \[2, 8\]; it must be \[3, 8\], as residual",
    ),
    "parts-of-other-rows": (
        {"update": PartialSums(torch.zeros(2, 3, 7), torch.float32)},
        ValueError,
        r"update has shape \[3, 7\]",
    ),
    "update-float16": (
        {"update": PartialSums(torch.zeros(2, 3, 8), F16)},
        TypeError,
        "update is torch.float16; it must be torch.float32, as residual",
    ),
    "parts-strided": (
        {"update": PartialSums(torch.zeros(8, 3, 2).permute(2, 1, 0), torch.float32)},
        ValueError,
        "update.sums has strides .*contiguous",
    ),
    "update-elsewhere": (
        {"update": torch.zeros(3, 8, device="meta")},
        ValueError,
        "update is on meta; it must be on cpu, as residual",
    ),
    "eps-text": ({"eps": "1e-5"}, TypeError, "eps is '1e-5'; it must be a number"),
    "eps-negative": ({"eps": -1e-5}, ValueError, "eps is -1e-05; it must be at least 0"),
    "eps-nan": ({"eps": math.nan}, ValueError, "eps is nan"),
}


@pytest.mark.parametrize(
    ("change", "exception", "message"), NORM_ERRORS.values(), ids=list(NORM_ERRORS)
)
def test_residual_norm_refuses(change: dict, exception: type[Exception], message: str) -> None:
    residual_norm(**norm_arguments())
    expect(residual_norm, norm_arguments() | change, exception, message)
