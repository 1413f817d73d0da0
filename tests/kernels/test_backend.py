"""Which backend runs."""

import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from test_errors import OPS

from dlm_kernels.backend import BACKENDS, backend_for, forced_backend

OF_BACKENDS = [name for name in OPS if name not in ("quantize_weight", "BlockState.start")]


def test_a_cpu_tensor_runs_on_torch_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_for(torch.zeros(1)) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in BACKENDS:
        with forced_backend(name):
            assert backend_for(torch.zeros(1)) == name


def test_the_environment_forces_and_checks_from_the_start() -> None:
    code = "from dlm_kernels import backend; import torch; print(backend.contents_checked()); "
    code += "backend.backend_for(torch.zeros(1))"
    env = os.environ | {"DLM_BACKEND": "cuda", "DLM_CHECK": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout == "True\n"
    assert "DLM_BACKEND is 'cuda'; it must be one of triton, torch" in run.stderr


@forced_backend("triton")
def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="DLM_BACKEND is 'triton' and the tensors are on cpu"):
        backend_for(torch.zeros(1))


@pytest.mark.gpu
def test_a_cuda_tensor_runs_on_triton() -> None:
    assert backend_for(torch.zeros(1, device="cuda")) == "triton"


@pytest.mark.parametrize("name", OF_BACKENDS)
def test_an_unknown_backend_is_an_error_of_every_op(name: str) -> None:
    call, arguments = OPS[name]
    given = arguments()
    for backend in ("nonsense", "", "Triton", "reference"):
        message = f"DLM_BACKEND is {backend!r}; .*triton, torch"
        with forced_backend(backend), pytest.raises(ValueError, match=message):
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
    op = getattr(import_module(f"dlm_kernels.{name}"), f"{name}_op")
    monkeypatch.setitem(op._backends, backend, stop)
    call, arguments = OPS[name]
    with forced_backend(backend), pytest.raises(Reached):
        call(**arguments())
