"""Every error a caller of gated_silu can make names its argument; nothing changed."""

import pytest
import torch
from valid_arguments import F16, F64, expect

from dlm_kernels import gated_silu
from dlm_kernels.partial_sums import PartialSums


@pytest.mark.parametrize(
    ("gate_up", "exception", "message"),
    [
        (None, TypeError, "gate_up is a NoneType; .*torch.Tensor or PartialSums"),
        (torch.zeros(3, 8, dtype=F64), TypeError, "gate_up is torch.float64"),
        (torch.zeros(3, 7), ValueError, r"gate_up has shape \[3, 7\]; .*2 intermediate"),
        (torch.zeros(3, 0), ValueError, r"gate_up has shape \[3, 0\]"),
        (torch.zeros(()), ValueError, r"gate_up has shape \[\]"),
        (PartialSums(torch.zeros(2, 3, 8, dtype=F16), F16), ValueError, "gate_up.sums is torch.fl"),
    ],
    ids=["no-tensor", "float64", "odd", "no-features", "0d", "parts-in-float16"],
)
def test_gated_silu_refuses(gate_up: object, exception: type[Exception], message: str) -> None:
    expect(gated_silu, {"gate_up": gate_up}, exception, message)
