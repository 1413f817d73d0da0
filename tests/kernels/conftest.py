"""Fixtures of the kernel tests: backends, dtypes, small launches, and poisoned allocations."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from numeric import BFLOAT16, poisoned_allocations

from dlm_kernels import launch
from dlm_kernels.backend import forced_backend


@pytest.fixture(params=["triton", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on each backend in turn, through the public functions."""
    if request.param == "triton":
        request.getfixturevalue("triton_device")
    with forced_backend(request.param):
        yield request.param


@pytest.fixture
def op_device(backend: str, request: pytest.FixtureRequest) -> str:
    """Where tensors for `backend` live."""
    return request.getfixturevalue("triton_device" if backend == "triton" else "device")


@pytest.fixture(
    params=[
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.float16, id="fp16"),
        BFLOAT16,
    ]
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


_HEAD_TILES = {rows: launch.LmHeadTile(rows, num_warps=4, num_stages=2) for rows in (16, 32, 64)}
_TILES = {rows: launch.LinearTile(32, rows, num_warps=4, num_stages=2) for rows in (16, 32)}
_KINDS = {2: 64, 4: 64, "fp8": None, "int8": None, "int4": None}  # and their library_rows

# Table by table, for any architecture. Splits of attention end at 32, 64, 112 and 160.
_SMALL = [
    (
        launch.BLOCK_ATTENTION,
        {
            itemsize: {256: launch.AttentionLaunch(16, 16, 32, 64, 48, 4, 2, walks=True)}
            for itemsize in (2, 4)
        },
    ),
    (launch.CONFIDENCE, launch.ConfidenceLaunch(chunk=512, num_warps=1, num_stages=2)),
    (launch.REMASK_SCATTER, {8: launch.RemaskLaunch(4, 1), 256: launch.RemaskLaunch(16, 1)}),
    (
        launch.LINEAR,
        {
            kind: launch.LinearLaunch(
                block_k=128 if kind == "int4" else 32,
                programs=64,
                min_segment=256,
                whole_programs=12,
                walking_rows=16,
                tiles=_TILES,
                library_rows=library_rows,
            )
            for kind, library_rows in _KINDS.items()
        },
    ),
    (
        launch.LM_HEAD,
        {
            itemsize: launch.LmHeadLaunch(
                block_v=64,
                block_k=32,
                chunk=128,
                tiles=_HEAD_TILES,
                fused_rows=64,
                library_logits=2**16,
            )
            for itemsize in (2, 4)
        },
    ),
    (launch.GATED_SILU, launch.GatedSiluLaunch(block=32, num_warps=1)),
    (launch.ROPE_KV_WRITE, launch.RopeLaunch(elements=64, num_warps=1)),
]


@pytest.fixture(autouse=True)
def small_launches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small tiles, splits, segments and chunks, of which short inputs fill several.

    What is marked full has the tables that ship.
    """
    with ExitStack() as stack:
        if not request.node.get_closest_marker("full"):
            arch = launch.arch_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            for table, entry in _SMALL:
                stack.enter_context(launch.overriding(table, (arch,), entry))
        yield


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Every allocation of an op starts as NaN and has canaries round it."""
    with poisoned_allocations():
        yield
