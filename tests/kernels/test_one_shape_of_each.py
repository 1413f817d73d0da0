"""Every op once on one shape, and that no op is left out of what the sanitizer watches."""

import pytest
import torch
from one_shape_of_each import CASES, Inputs, check
from torch.utils._python_dispatch import TorchDispatchMode

# The interpreter rounds to float8 wrongly.
NAMES = [
    pytest.param(name, marks=[pytest.mark.gpu] * name.startswith("rope_kv_write, fp8"))
    for name in CASES
]
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_an_op_gives_what_the_reference_gives(
    name: str, dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLM_BACKEND", "triton")
    check(name, triton_device, dtype)


class Called(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **kwargs or {})


def test_no_op_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_BACKEND", "torch")
    names = torch._C._dispatch_get_all_op_names()
    registered = {name for name in names if name.startswith("dlm_kernels::")}
    with Called() as called:
        for case in CASES.values():
            case(Inputs("cpu", torch.float32))
    assert registered <= called.names


def test_a_wrong_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def wrong_at_first(inputs) -> tuple[torch.Tensor]:
        calls.append(1)
        return (torch.ones(3) + (len(calls) == 1) * torch.tensor([0.0, 0.0, 0.1]),)

    monkeypatch.setitem(CASES, "linear", wrong_at_first)
    with pytest.raises(AssertionError, match="linear, 0: off by 1.0e-01"):
        check("linear", "cpu", torch.float32)
