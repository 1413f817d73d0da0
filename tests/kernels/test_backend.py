"""Which backend runs."""

from importlib import import_module

import pytest
import torch
from test_errors import OPS

from dlm_kernels.backend import BACKENDS, backend_for

OF_BACKENDS = [name for name in OPS if name not in ("quantize_weight", "BlockState.start")]


def test_a_cpu_tensor_runs_on_torch_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLM_BACKEND", raising=False)
    assert backend_for(torch.zeros(1)) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in BACKENDS:
        monkeypatch.setenv("DLM_BACKEND", name)
        assert backend_for(torch.zeros(1)) == name


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="DLM_BACKEND is 'triton' and the tensors are on cpu"):
        backend_for(torch.zeros(1))


@pytest.mark.gpu
def test_a_cuda_tensor_runs_on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLM_BACKEND", raising=False)
    assert backend_for(torch.zeros(1, device="cuda")) == "triton"


@pytest.mark.parametrize("name", OF_BACKENDS)
def test_an_unknown_backend_is_an_error_of_every_op(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, arguments = OPS[name]
    given = arguments()
    for backend in ("nonsense", "", "Triton", "reference"):
        monkeypatch.setenv("DLM_BACKEND", backend)
        with pytest.raises(ValueError, match=f"DLM_BACKEND is {backend!r}; .*triton, torch"):
            call(**given)


class Reached(Exception):
    """An implementation was called."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["confidence", "block_attention", "remask_scatter", "linear"])
def test_the_forced_backend_is_the_one_that_runs(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_) -> None:
        raise Reached

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("DLM_BACKEND", backend)
    implementations = import_module(f"dlm_kernels.{name}")._IMPLEMENTATIONS
    monkeypatch.setitem(implementations, backend, stop)
    call, arguments = OPS[name]
    with pytest.raises(Reached):
        call(**arguments())
