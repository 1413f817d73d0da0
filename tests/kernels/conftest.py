"""Fixtures of the kernel tests: backends, dtypes, and poison in everything an op allocates."""

from collections.abc import Iterator

import pytest
import torch
from numeric import poisoned_allocations


@pytest.fixture(params=["triton", "torch", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each backend in turn, through the public functions."""
    if request.param == "triton":
        request.getfixturevalue("triton_device")
    monkeypatch.setenv("DLM_BACKEND", request.param)
    return request.param


@pytest.fixture
def op_device(backend: str, request: pytest.FixtureRequest) -> str:
    """Where tensors for `backend` live."""
    return request.getfixturevalue("triton_device" if backend == "triton" else "device")


# The interpreter's bfloat16 arithmetic is wrong.
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu, id="bf16")


@pytest.fixture(
    params=[
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.float16, id="fp16"),
        BFLOAT16,
    ]
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Every allocation of an op starts as NaN and has canaries round it."""
    with poisoned_allocations():
        yield
