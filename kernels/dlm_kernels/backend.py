"""Which implementation of an op runs, and whether device contents are checked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from triton.runtime.jit import KernelInterface

BACKENDS = ("triton", "torch")

_dry: str | None = None  # the backend of a dry run, while there is one


def backend_for(tensor: Tensor) -> str:
    """Name of the backend for ops on `tensor`: "triton" on CUDA, else "torch".

    The environment variable DLM_BACKEND forces one of BACKENDS; any other value is a ValueError.
    """
    if _dry is not None:
        return _dry
    forced = os.environ.get("DLM_BACKEND")
    if forced is None:
        return "triton" if tensor.is_cuda else "torch"
    if forced not in BACKENDS:
        raise ValueError(f"DLM_BACKEND is {forced!r}; it must be one of {', '.join(BACKENDS)}")
    if forced == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"DLM_BACKEND is 'triton' and the tensors are on {tensor.device}; Triton kernels need"
            " CUDA tensors, or TRITON_INTERPRET=1 to be interpreted"
        )
    return forced


def contents_checked() -> bool:
    """True under DLM_CHECK=1: ops then read ids and lengths on the host and raise at once.

    Without it nothing is read back: addresses are clamped and the device error word is set.
    """
    return _dry is None and os.environ.get("DLM_CHECK") == "1"


@contextmanager
def dry_run(backend: str) -> Iterator[None]:
    """Ops run on `backend` meanwhile, whatever the device, and launch no kernel.

    On meta tensors they so allocate what they would on a GPU, and compute nothing.
    """
    global _dry
    launch = KernelInterface.__getitem__
    KernelInterface.__getitem__ = lambda kernel, grid: lambda *args, **options: None
    _dry = backend
    try:
        yield
    finally:
        KernelInterface.__getitem__, _dry = launch, None
