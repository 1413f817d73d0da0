"""What all tests share: the device, chosen once, and skips that say why."""

import importlib.util
import os

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
