"""Every error a caller of linear can make names its argument; nothing changed."""

from collections.abc import Callable

import pytest
import torch
from valid_arguments import F16, F64, expect

from dlm_kernels import QuantizedWeight, linear, linear_partials, quantize_weight


def quantized(weights: str, **changes) -> QuantizedWeight:
    return quantize_weight(torch.ones(7, 20), weights)._replace(**changes)


LINEAR_ERRORS = [
    ({"x": "rows"}, TypeError, "x is a str; it must be a torch.Tensor"),
    ({"x": torch.zeros(3, 19)}, ValueError, r"x has shape \[3, 19\]; it must be \[3, 20\]"),
    ({"x": torch.zeros(())}, ValueError, r"x has shape \[\]; it must be \[20\]"),
    ({"x": torch.zeros(3, 20, dtype=F16)}, TypeError, "x is torch.float16; it must be float32"),
    ({"x": torch.zeros(3, 20, device="meta")}, ValueError, "x is on meta; it must be on cpu"),
    ({"weight": [1.0]}, TypeError, "weight is a list"),
    ({"weight": torch.zeros(20)}, ValueError, r"weight has shape \[20\]"),
    ({"weight": torch.zeros(7, 20, dtype=F64)}, TypeError, "weight is torch.float64"),
    ({"weight": torch.zeros(20, 7).T}, ValueError, "weight has stride 7 in its last dimension"),
    ({"weight": torch.zeros(0, 20)}, ValueError, r"weight has shape \[0, 20\].*not be empty"),
    ({"numerics": "exact"}, ValueError, "numerics is 'exact'; it must be one of invariant, fast"),
    ({"weight": quantized("int8", kind="int3")}, ValueError, "weight.kind is 'int3'; .* int4"),
    (
        {"weight": quantized("int8", kind="fp8")},
        TypeError,
        "weight.values is torch.int8; it must be float8_e4m3fn",
    ),
    (
        {"weight": quantized("int4", in_features=200)},
        ValueError,
        r"weight.values has shape \[7, 64\]; it must be \[out_features, 128\]",
    ),
    (
        {"weight": quantized("int8", scales=torch.ones(6))},
        ValueError,
        r"weight.scales has shape \[6\]; it must be \[7\]",
    ),
    (
        {"weight": quantized("int8", scales=torch.ones(7, dtype=F16))},
        TypeError,
        "weight.scales is torch.float16; it must be float32",
    ),
    (
        {"weight": quantized("int8", values=torch.zeros(20, 7, dtype=torch.int8).T)},
        ValueError,
        r"weight.values has strides \(1, 7\); it must be contiguous",
    ),
    (
        {"weight": quantized("int8", scales=torch.ones(7, device="meta"))},
        ValueError,
        "weight.scales is on meta; it must be on cpu",
    ),
]


@pytest.mark.parametrize("op", [linear, linear_partials])
@pytest.mark.parametrize(("change", "exception", "message"), LINEAR_ERRORS)
def test_linear_rejects(
    op: Callable, change: dict, exception: type[Exception], message: str
) -> None:
    arguments = {"x": torch.zeros(3, 20), "weight": torch.zeros(7, 20)}
    expect(op, arguments | change, exception, message)
