"""Which backend runs, and when device contents are checked."""

from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from dlm_kernels import BlockState, Rule, block_attention, confidence, remask_scatter
from dlm_kernels.backend import BACKENDS, backend_for


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


def calls(device: str) -> dict[str, Callable]:
    """A valid call of every op, by the name of its module."""
    q = torch.zeros(1, 2, 1, 16, device=device)
    lengths = torch.zeros(1, dtype=torch.int32, device=device)
    zeros = torch.zeros(1, 4, device=device)
    state = BlockState.start(torch.full((1, 4), 9, device=device), 9)
    return {
        "confidence": lambda: confidence(zeros),
        "block_attention": lambda: block_attention(q, q, q, lengths),
        "remask_scatter": lambda: remask_scatter(
            state, zeros.int(), zeros, Rule(), mask_id=9, eos_id=2
        ),
    }


@pytest.mark.parametrize("name", ["nonsense", "", "Triton", "cuda"])
def test_an_unknown_backend_is_an_error_of_every_op(
    name: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("DLM_BACKEND", name)
    for call in calls(device).values():
        with pytest.raises(ValueError, match=f"DLM_BACKEND is {name!r}; .*triton, torch, ref"):
            call()


class Reached(Exception):
    """An implementation was called."""


@pytest.mark.parametrize("name", BACKENDS)
def test_the_forced_backend_is_the_one_that_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def stop(*_) -> None:
        raise Reached

    monkeypatch.setenv("DLM_BACKEND", name)
    for module, call in calls(device).items():
        implementations = import_module(f"dlm_kernels.{module}")._IMPLEMENTATIONS
        assert set(implementations) == set(BACKENDS)
        monkeypatch.setitem(implementations, name, stop)
        with pytest.raises(Reached):
            call()
