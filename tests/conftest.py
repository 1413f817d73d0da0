"""What all tests share: which of them run here, and where."""

import functools
import importlib.util
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="also run what is marked full, and more examples"
    )


def pytest_configure(config: pytest.Config) -> None:
    if importlib.util.find_spec("hypothesis"):
        from hypothesis import settings

        # No deadline: on a busy machine an interpreted kernel takes seconds.
        settings.register_profile(
            "dlm",
            deadline=None,
            max_examples=50 if config.option.full else 15,
            derandomize="CI" in os.environ,
            print_blob=True,
        )
        settings.load_profile("dlm")


def gpu_tests_can_run() -> bool:
    """Whether what is marked gpu can run here."""
    return CUDA


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is marked full without --full, and what is marked gpu where it can't run.

    `--collect-only` leaves the latter in, so that `--collect-only -m gpu` lists it anywhere.
    """
    left_out = set() if config.option.full else {"full"}
    if not gpu_tests_can_run() and not config.option.collectonly:
        left_out.add("gpu")
    kept, deselected = [], []
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        (deselected if marks & left_out else kept).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """Take half of the interpreter's time away, and nothing else.

    It replaces triton.language's functions at every call of a jit function, nested ones too, and
    after each addition computes whether an integer overflowed, which only a debug build reads.
    """
    try:
        from triton.runtime import interpreter

        options = interpreter.InterpreterOptions(sanitize_overflow=False)
        patched, scope = interpreter._patch_lang, interpreter._LangPatchScope
    except (ImportError, AttributeError):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.interpreter_builder, "options", options)
        patch.setattr(interpreter, "_patch_lang", functools.cache(patched))
        patch.setattr(scope, "restore", lambda self: None)
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
