"""What all tests share: the device, chosen once, and skips that say why."""

import functools
import importlib.util
import inspect
import os
from collections.abc import Iterator

import numpy
import pytest
import torch
from packaging.version import Version

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Tensors and models of tests are so small that they spend their time waking a second thread.
torch.set_num_threads(1)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # No deadline: on a busy machine an interpreted kernel takes seconds.
    settings.register_profile(
        "dlm", deadline=None, max_examples=50, derandomize="CI" in os.environ, print_blob=True
    )
    settings.load_profile("dlm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CUDA:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch sees none"))


@pytest.fixture(scope="session", autouse=True)
def scan_triton_language_once() -> Iterator[None]:
    """Halve the interpreter's time: it scans triton.language at every call of a jit function."""
    try:
        from triton import language
        from triton.runtime import interpreter

        patch_one = interpreter._patch_attr
    except (ImportError, AttributeError):
        yield
        return

    @functools.cache
    def builtins_of(package) -> list[str]:
        members = inspect.getmembers(package, language.core.is_builtin)
        return [name for name, _ in members]

    def patch_builtin(package, builder, scope) -> None:
        for name in builtins_of(package):
            member = getattr(package, name)
            if language.core.is_builtin(member):
                patch_one(package, name, member, builder, scope)

    # Looked at before the interpreter has put anything else in their place.
    for package in (language, language.core, language.tensor, language.math):
        builtins_of(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        yield


@pytest.fixture(scope="session")
def device() -> str:
    """Where tests of the model and of the torch backend put their tensors: "cuda" or "cpu"."""
    return "cuda" if CUDA else "cpu"


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where a Triton kernel can run in this process: "cuda", or "cpu" under the interpreter."""
    triton = pytest.importorskip("triton")
    if not INTERPRETED:
        if not CUDA:
            pytest.skip("Triton kernels need a CUDA device or TRITON_INTERPRET=1")
        return "cuda"
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version(
        "2.4"
    ):
        pytest.skip(f"triton {triton.__version__} can't interpret on numpy {numpy.__version__}")
    return "cpu"
