"""The kernels that measure ceilings do what their rate is counted by."""

import torch
from kernel_compiler import compile_launches

from dlm_roofline.ceilings import exponentials, launch_nothing, partial_sums, read_again


def test_exponentials_are_what_holds_their_kernel(arch: str) -> None:
    """16 of them an SM and clock, against 128 lanes of other instructions: at most 7 to each."""
    (kernel,) = compile_launches(arch, lambda: exponentials(torch.empty(8, device="meta"), 3))
    loops = [body for body in kernel.loops() if any("MUFU.EX2" in line for line in body)]
    body = max(loops, key=len)
    exps = sum("MUFU.EX2" in line for line in body)
    assert exps % 16 == 0  # 4096 elements on 256 threads: none was left out or folded away
    assert len(body) <= 7 * exps
    assert kernel.spills == 0


def test_reads_of_l2_go_past_l1_in_16_bytes_each(arch: str) -> None:
    buffer, out = torch.empty(4 * 4096, device="meta"), torch.empty(8, device="meta")
    (kernel,) = compile_launches(arch, lambda: read_again(buffer, out, 3))
    body = max(kernel.loops(), key=len)
    loads = [line for line in body if "LDG" in line]
    assert loads and len(loads) % 4 == 0  # 4096 elements on 256 threads, 4 to a load
    assert all(".128" in line and ".STRONG.GPU" in line for line in loads)
    assert kernel.spills == 0


def test_streams_and_empty_kernels_fit(arch: str) -> None:
    stream = torch.empty(65536, device="meta")
    for launch in (lambda: partial_sums(stream), launch_nothing):
        (kernel,) = compile_launches(arch, launch)
        assert kernel.spills == 0
