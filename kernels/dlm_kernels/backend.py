"""Which implementation of an op runs, and whether device contents are checked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from triton.runtime.jit import KernelInterface

BACKENDS = ("triton", "torch")

# Read once: an op is called too often to ask the environment each time.
_forced = os.environ.get("DLM_BACKEND")
_checked = os.environ.get("DLM_CHECK") == "1"
_dry = False


def backend_for(tensor: Tensor) -> str:
    """Name of the backend for ops on `tensor`: "triton" on CUDA, else "torch".

    DLM_BACKEND, in the environment when this is imported, forces one of BACKENDS, and so does
    `forced_backend`; any other value is a ValueError.
    """
    if _forced is None:
        return "triton" if tensor.is_cuda else "torch"
    if _forced not in BACKENDS:
        raise ValueError(f"DLM_BACKEND is {_forced!r}; it must be one of {', '.join(BACKENDS)}")
    if _forced == "triton" and not (tensor.is_cuda or _dry or _interpreted()):
        raise ValueError(
            f"DLM_BACKEND is 'triton' and the tensors are on {tensor.device}; Triton kernels need"
            " CUDA tensors, or TRITON_INTERPRET=1 to be interpreted"
        )
    return _forced


def forced() -> str | None:
    """The backend that is forced, or None."""
    return _forced


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def contents_checked() -> bool:
    """True under DLM_CHECK=1: ops then read ids and lengths on the host and raise at once.

    Without it nothing is read back: addresses are clamped and the device error word is set.
    """
    return _checked


def is_dry() -> bool:
    """Whether this is within `dry_run`."""
    return _dry


@contextmanager
def forced_backend(name: str | None) -> Iterator[None]:
    """Ops run on this backend meanwhile, or on that of their tensors' device if it is None."""
    global _forced
    found, _forced = _forced, name
    try:
        yield
    finally:
        _forced = found


@contextmanager
def checked_contents() -> Iterator[None]:
    """As under DLM_CHECK=1 meanwhile."""
    global _checked
    found, _checked = _checked, True
    try:
        yield
    finally:
        _checked = found


@contextmanager
def dry_run(backend: str) -> Iterator[None]:
    """Ops run on `backend` meanwhile, whatever the device, and launch no kernel.

    On meta tensors they so allocate what they would on a GPU, and compute nothing.
    """
    global _dry, _checked
    launch, found = KernelInterface.__getitem__, (_dry, _checked)
    KernelInterface.__getitem__ = lambda kernel, grid: lambda *args, **options: None
    _dry, _checked = True, False
    try:
        with forced_backend(backend):
            yield
    finally:
        KernelInterface.__getitem__ = launch
        _dry, _checked = found
