"""What the device can do: its ceilings, measured in this run.

Bandwidth streams over buffers many times the size of the caches, matrix products take random data:
zeros would flatter a GPU, whose clock depends on how many bits flip. Weights and context are only
read, so the read-only stream is the roof of a forward; copy and write stand beside it. On a
GPU exponentials have units of their own, few enough to bound a kernel that reads much faster than
it can take them; and what no work goes below is the cost of a launch, by Python or in a graph.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
import triton
import triton.language as tl
from torch import Tensor

from .op_rates import OpRate
from .predict import Roof

STREAM_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
MATMUL_DTYPES = {
    "cpu": ("float32", "bfloat16", "int8"),
    "cuda": ("bfloat16", "float16", "tf32", "float32", "float8_e4m3fn", "int8"),
}
_8_BITS = ("float8_e4m3fn", "int8")  # whose products not every build of torch has
LAUNCHES = 1000  # timed together
RUNS = 15

_TILES, _TILE = 16, 4096  # of the kernel that reads; the others have tiles as wide
_EXPS_EACH = 256  # exponentials after one another of each element, a launch
_L2_TILES_EACH = 1024  # that a program reads of a buffer in L2, a launch


@dataclass(frozen=True)
class Ceiling:
    """A rate, of bytes, FLOPs or exponentials a second.

    best: of `runs` runs, which is the roof; median: of the same runs.
    """

    best: float
    median: float
    runs: int


@dataclass(frozen=True)
class Latency:
    """Seconds that work takes which does nothing: the best and the median of `runs` runs."""

    best: float
    median: float
    runs: int


@dataclass(frozen=True)
class Ceilings:
    """read, copy (bytes in plus bytes out) and write in bytes/s; matmul in FLOP/s by dtype.

    exps: exponentials/s. l2: bytes/s read from a buffer that L2 holds.
    launch: of an empty kernel from Python, or on a host of a torch op on one element. graph_node:
        of one more empty kernel in a replayed CUDA graph.

    ops: what our own ops reach, by name; empty where nobody measured them.

    What a device does not have is None: exps, l2 and graph_node of a host.
    """

    read: Ceiling
    copy: Ceiling
    write: Ceiling
    matmul: dict[str, Ceiling]
    exps: Ceiling | None = None
    l2: Ceiling | None = None
    launch: Latency | None = None
    graph_node: Latency | None = None
    ops: dict[str, OpRate] = field(default_factory=dict)

    def roof(self, dtype: str) -> Roof:
        """The measured roof over work in `dtype`."""
        return Roof(self.read.best, self.matmul[dtype].best, self.exps and self.exps.best)


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
    bandwidths = _bandwidths(device, runs)
    products = _products(device, runs)
    launch_one = _launcher(device)
    launch = _latency(lambda: [launch_one() for _ in range(LAUNCHES)], device, runs)
    if device.type == "cpu":
        return Ceilings(**bandwidths, matmul=products, launch=launch)
    properties = torch.cuda.get_device_properties(device)
    out = torch.empty(16 * properties.multi_processor_count, device=device)
    in_l2 = torch.randn(properties.L2_cache_size // 2 // (4 * _TILE) * _TILE, device=device)
    exps, l2_bytes = out.numel() * _TILE * _EXPS_EACH, 4 * out.numel() * _TILE * _L2_TILES_EACH
    return Ceilings(
        **bandwidths,
        matmul=products,
        exps=_rate(exps, lambda: exponentials(out, _EXPS_EACH), device, runs),
        l2=_rate(l2_bytes, lambda: read_again(in_l2, out, _L2_TILES_EACH), device, runs),
        launch=launch,
        graph_node=_latency(_graph_of_launches(device).replay, device, runs),
    )


def _bandwidths(device: torch.device, runs: int) -> dict[str, Ceiling]:
    """Of streams by name as in `Ceilings`, by the fastest way to do each.

    What a host's caches read of a line before they write it is not counted.
    """
    step = 4 * _TILES * _TILE  # each buffer takes at most an eighth of what is free
    n_bytes = min(STREAM_BYTES[device.type], free_memory(device) // 8) // step * step
    source = torch.randn(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    readers = [torch.sum, torch.amax] + ([partial_sums] if device.type == "cuda" else [])
    ways = {
        "read": [partial(read, source) for read in readers],
        "copy": [partial(target.copy_, source)],
        "write": [partial(target.fill_, 1.0), target.zero_],
    }
    moved = {"read": n_bytes, "copy": 2 * n_bytes, "write": n_bytes}
    return {
        name: max((_rate(moved[name], way, device, runs) for way in each), key=lambda x: x.best)
        for name, each in ways.items()
    }


def _rate(work: float, fn: Callable[[], object], device: torch.device, runs: int) -> Ceiling:
    """Of a function that does so much work."""
    run_seconds(fn, device, runs=2)
    seconds = run_seconds(fn, device, runs=runs)
    return Ceiling(work / min(seconds), work / median(seconds), runs)


def _latency(fn: Callable[[], object], device: torch.device, runs: int) -> Latency:
    """Of each of the LAUNCHES that a function makes."""
    launches = _rate(LAUNCHES, fn, device, runs)
    return Latency(1 / launches.best, 1 / launches.median, runs)


def _products(device: torch.device, runs: int) -> dict[str, Ceiling]:
    """Matrix products by dtype, of those that the device has instructions for."""
    size = MATMUL_SIZE[device.type]
    found: dict[str, Ceiling] = {}
    for name in MATMUL_DTYPES[device.type]:
        if name == "float8_e4m3fn" and torch.cuda.get_device_capability(device) < (8, 9):
            continue  # a type to store, without matrix instructions
        with _float32_precision(name):
            try:
                if device.type == "cpu" and found and _is_emulated(name, found["float32"].best):
                    continue
                found[name] = _rate(2.0 * size**3, _matmul(name, size, device), device, runs)
            except RuntimeError:
                if name not in _8_BITS:
                    raise
    return found


def _launcher(device: torch.device) -> Callable[[], object]:
    """The least that can be asked of the device: an empty kernel, or of a host one addition."""
    if device.type == "cuda":
        return launch_nothing
    a, b, out = torch.ones(3, 1)
    return lambda: torch.add(a, b, out=out)


def _graph_of_launches(device: torch.device) -> torch.cuda.CUDAGraph:
    """LAUNCHES empty kernels, each waiting for the one before it."""
    graph = torch.cuda.CUDAGraph()
    launch_nothing()  # compiles it, which a capture forbids
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            launch_nothing()
    return graph


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


@triton.jit(do_not_specialize=["tiles", "times"])
def _read_again_kernel(x_ptr, out_ptr, tiles, times, TILE: tl.constexpr):
    pid = tl.program_id(0)
    tile = pid * tiles // tl.num_programs(0)  # programs start all over the buffer
    total = tl.zeros([TILE], tl.float32)
    for _ in range(times):
        # .cg: L1 keeps none of it.
        total += tl.load(x_ptr + tile * TILE + tl.arange(0, TILE), cache_modifier=".cg")
        tile = tl.where(tile + 1 == tiles, 0, tile + 1)
    tl.store(out_ptr + pid, tl.sum(total, 0))


def read_again(x: Tensor, out: Tensor, times: int) -> Tensor:
    """Read `times` tiles of 4096 float32 of `x` for each element of `out`: their sums.

    Each program begins at a place of its own and goes round `x`, a whole number of tiles.
    """
    _read_again_kernel[out.shape](x, out, x.numel() // _TILE, times, TILE=_TILE, num_warps=8)
    return out


@triton.jit
def _nothing_kernel():
    pass


def launch_nothing() -> None:
    """Launch a kernel of one warp that does nothing."""
    _nothing_kernel[(1,)](num_warps=1)


def _is_emulated(name: str, float32_rate: float) -> bool:
    """Whether a small product runs so far below the float32 ceiling that a large one takes ages."""
    device, size = torch.device("cpu"), 512
    seconds = run_seconds(_matmul(name, size, device), device, runs=3)
    return 2 * size**3 / min(seconds) < float32_rate / 20


def _matmul(name: str, size: int, device: torch.device) -> Callable[[], Tensor]:
    """A square product of this dtype, of random numbers.

    float8_e4m3fn: scaled, out in bfloat16, by the accumulation that inference uses. int8: out in
    int32.
    """
    if name == "int8":
        a, b = torch.randint(-127, 128, (2, size, size), device=device, dtype=torch.int8)
        return lambda: torch._int_mm(a, b.t())
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    if name != "float8_e4m3fn":
        return lambda: a @ b
    one = torch.ones((), device=device)
    options = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    return lambda: torch._scaled_mm(a, b.t(), one, one, **options)


@contextmanager
def _float32_precision(name: str) -> Iterator[None]:
    """Inside, float32 products run as "tf32", or else in full, whatever the process has set."""
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(found)
