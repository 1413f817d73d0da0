"""What the device can do: its ceilings, measured in this run, and its datasheet.

Bandwidth streams over buffers many times the size of the caches, matrix products take random data:
zeros would flatter a GPU, whose clock depends on how many bits flip. Weights and context are only
read, so the read-only stream is the roof of a forward; copy and write stand beside it. On a
GPU exponentials have units of their own, few enough to bound a kernel that reads much faster than
it can take them.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import triton
import triton.language as tl
from torch import Tensor

from .predict import Roof

STREAM_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
MATMUL_DTYPES = {
    "cpu": ("float32", "bfloat16"),
    "cuda": ("bfloat16", "float16", "tf32", "float32"),
}
RUNS = 15

_TILES, _TILE = 16, 4096  # of the kernel that reads; the one of exponentials has tiles as wide
_EXPS_EACH = 256  # exponentials after one another of each element, a launch


@dataclass(frozen=True)
class Ceiling:
    """A rate, of bytes, FLOPs or exponentials a second.

    best: of `runs` runs, which is the roof; median: of the same runs.
    """

    best: float
    median: float
    runs: int


@dataclass(frozen=True)
class Ceilings:
    """read, copy (bytes in plus bytes out) and write in bytes/s; matmul in FLOP/s by dtype.

    exps: exponentials/s; None where it was not measured: on a host, and in older records.
    """

    read: Ceiling
    copy: Ceiling
    write: Ceiling
    matmul: dict[str, Ceiling]
    exps: Ceiling | None = None

    def roof(self, dtype: str) -> Roof:
        """The measured roof over work in `dtype`."""
        return Roof(self.read.best, self.matmul[dtype].best, self.exps and self.exps.best)


@dataclass(frozen=True)
class Datasheet:
    """A vendor's figures: bandwidth in bytes/s, dense matrix products in FLOP/s by dtype.

    exps: exponentials/s; None where no figure is at hand.
    """

    bandwidth: float
    matmul: dict[str, float]
    source: str
    exps: float | None = None

    def roof(self, dtype: str) -> Roof:
        """The vendor's roof over work in `dtype`."""
        return Roof(self.bandwidth, self.matmul[dtype], self.exps)


def _datasheet(tb_s: float, half: float, tf32: float, fp32: float, source: str) -> Datasheet:
    rates = {"bfloat16": half, "float16": half, "tf32": tf32, "float32": fp32}
    return Datasheet(tb_s * 1e12, {name: rate * 1e12 for name, rate in rates.items()}, source)


# Keyed by torch.cuda.get_device_name, whole: "NVIDIA H200 NVL" is another device. Where a datasheet
# states only the rate with 2:4 sparsity, half of it is the dense one.
DATASHEETS = {
    "NVIDIA A100-SXM4-40GB": _datasheet(1.555, 312, 156, 19.5, "NVIDIA A100 datasheet"),
    "NVIDIA A100-SXM4-80GB": _datasheet(2.039, 312, 156, 19.5, "NVIDIA A100 80GB datasheet"),
    "NVIDIA A100 80GB PCIe": _datasheet(1.935, 312, 156, 19.5, "NVIDIA A100 80GB datasheet"),
    "NVIDIA H100 80GB HBM3": _datasheet(3.35, 989.4, 494.7, 66.9, "NVIDIA H100 datasheet, SXM"),
    # 16 special functions an SM and clock (CUDA C++ programming guide, "Arithmetic Instructions",
    # compute capability 9.0), 132 SMs, at the 1.755 GHz that matrix products leave.
    "NVIDIA H200": replace(
        _datasheet(4.8, 989.4, 494.7, 66.9, "NVIDIA H200 datasheet, SXM"),
        exps=16 * 132 * 1.755e9,
    ),
    "NVIDIA B200": _datasheet(8.0, 2250, 1100, 80, "NVIDIA Blackwell architecture brief, HGX B200"),
}


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had; on the host the page cache does not count as taken."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of earlier work counts as taken
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    return 1024 * int(re.search(r"^MemAvailable:\s*(\d+) kB$", meminfo, re.MULTILINE)[1])


def run_seconds(
    fn: Callable[[], object],
    device: torch.device,
    *,
    runs: int,
    before: Callable[[], object] = lambda: None,
) -> list[float]:
    """Seconds of each of `runs` calls of `fn`; `before` runs untimed ahead of each.

    On a GPU the time is the device's, between CUDA events; all calls are queued before the host
    waits.
    """
    if device.type == "cuda":
        events = []
        for _ in range(runs):
            before()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            fn()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize(device)
        return [start.elapsed_time(end) / 1e3 for start, end in events]
    seconds = []
    for _ in range(runs):
        before()
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_ceilings(device: torch.device, *, runs: int = RUNS) -> Ceilings:
    """Ceilings of `device`, in some seconds; the best run counts, the median says how noisy."""

    def rate(work: float, fn: Callable[[], object]) -> Ceiling:
        run_seconds(fn, device, runs=2)
        seconds = run_seconds(fn, device, runs=runs)
        return Ceiling(work / min(seconds), work / median(seconds), runs)

    reads, copy, write = _bandwidths(device, rate)
    size = MATMUL_SIZE[device.type]
    matmul: dict[str, Ceiling] = {}
    for name in MATMUL_DTYPES[device.type]:
        if device.type == "cpu" and matmul and _is_emulated(name, matmul["float32"].best):
            continue
        with _float32_precision(name):
            matmul[name] = rate(2.0 * size**3, _matmul(name, size, device))
    read = max(reads, key=lambda ceiling: ceiling.best)
    exps = None
    if device.type == "cuda":
        programs = 16 * torch.cuda.get_device_properties(device).multi_processor_count
        out = torch.empty(programs, device=device)
        exps = rate(programs * _TILE * _EXPS_EACH, lambda: exponentials(out, _EXPS_EACH))
    return Ceilings(read, copy, write, matmul, exps)


def _bandwidths(device: torch.device, rate) -> tuple[list[Ceiling], Ceiling, Ceiling]:
    """Each way to read, copy and write; the buffers are gone before anything else is measured."""
    step = 4 * _TILES * _TILE  # the two take at most a quarter of what is free
    n_bytes = min(STREAM_BYTES[device.type], free_memory(device) // 8) // step * step
    source = torch.randn(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return (
        [rate(n_bytes, lambda read=read: read(source)) for read in _readers(device)],
        rate(2 * n_bytes, lambda: target.copy_(source)),
        rate(n_bytes, lambda: target.fill_(1.0)),
    )


def _readers(device: torch.device) -> list[Callable[[Tensor], Tensor]]:
    """Ways to read a whole tensor and write next to nothing; the fastest is the ceiling."""
    return [torch.sum, torch.amax] + ([partial_sums] if device.type == "cuda" else [])


@triton.jit
def _read_kernel(x_ptr, out_ptr, TILES: tl.constexpr, TILE: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    x_ptr += pid * TILES * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for i in range(TILES):
        total += tl.load(x_ptr + i * TILE)
    tl.store(out_ptr + pid, tl.sum(total, 0))


def partial_sums(x: Tensor) -> Tensor:
    """Sum a float32 tensor of a multiple of 65536 elements, one partial sum a program."""
    out = x.new_empty(x.numel() // (_TILES * _TILE))
    _read_kernel[out.shape](x, out, TILES=_TILES, TILE=_TILE, num_warps=8)
    return out


@triton.jit(do_not_specialize=["times"])
def _exp_kernel(out_ptr, times, TILE: tl.constexpr):
    pid = tl.program_id(0)
    x = tl.arange(0, TILE).to(tl.float32) / TILE
    for _ in range(times):
        x = tl.exp2(-x)  # settles near 0.64, where no exponential is denormal
    tl.store(out_ptr + pid, tl.sum(x, 0))


def exponentials(out: Tensor, times: int) -> Tensor:
    """Take `times` exponentials of each of 4096 numbers for each element of `out`: their sums."""
    _exp_kernel[out.shape](out, times, TILE=_TILE, num_warps=8)
    return out


def _is_emulated(name: str, float32_rate: float) -> bool:
    """Whether a small product runs so far below the float32 ceiling that a large one takes ages."""
    device, size = torch.device("cpu"), 512
    seconds = run_seconds(_matmul(name, size, device), device, runs=3)
    return 2 * size**3 / min(seconds) < float32_rate / 20


def _matmul(name: str, size: int, device: torch.device) -> Callable[[], Tensor]:
    """A square product of this dtype."""
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


@contextmanager
def _float32_precision(name: str) -> Iterator[None]:
    """Inside, float32 products run as "tf32", or else in full, whatever the process has set."""
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(found)
