"""Every op once on one shape, and that no op is left out of what the sanitizer watches."""

import pytest
import torch
from numeric import BFLOAT16
from one_shape_of_each import CASES, check

from dlm_kernels.backend import forced_backend

# The interpreter rounds to float8 wrongly.
NAMES = [
    pytest.param(name, marks=[pytest.mark.gpu] * name.startswith("rope_kv_write, fp8"))
    for name in CASES
]


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32"), BFLOAT16])
@pytest.mark.parametrize("name", NAMES)
def test_an_op_gives_what_the_reference_gives(
    name: str, dtype: torch.dtype, triton_device: str
) -> None:
    with forced_backend("triton"):
        check(name, triton_device, dtype)


def test_a_wrong_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def wrong_at_first(ops, inputs) -> tuple[torch.Tensor]:
        calls.append(1)
        return (torch.ones(3) + (len(calls) == 1) * torch.tensor([0.0, 0.0, 0.1]),)

    monkeypatch.setitem(CASES, "linear", wrong_at_first)
    with pytest.raises(AssertionError, match="linear, 0: off by 1.0e-01"):
        check("linear", "cpu", torch.float32)
