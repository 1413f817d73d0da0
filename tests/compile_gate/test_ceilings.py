"""The kernels that measure ceilings do what their rate is counted by."""

import pytest
import torch
from kernel_compiler import compile_launches

from dlm_kernels.launch import SHARED_MEMORY
from dlm_roofline.ceilings import exponentials


@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_exponentials_are_what_holds_their_kernel(arch: str) -> None:
    """16 of them an SM and clock, against 128 lanes of other instructions: at most 7 to each."""
    (kernel,) = compile_launches(arch, lambda: exponentials(torch.empty(8, device="meta"), 3))
    loops = [body for body in kernel.loops() if any("MUFU.EX2" in line for line in body)]
    body = max(loops, key=len)
    exps = sum("MUFU.EX2" in line for line in body)
    assert exps % 16 == 0  # 4096 elements on 256 threads: none was left out or folded away
    assert len(body) <= 7 * exps
    assert kernel.spills == 0
