"""Our bandwidths of a host beside those of likwid-bench: `python -m dlm_bench.bandwidth_check`.

likwid-bench (https://github.com/RRZE-HPC/likwid, Debian's package likwid) runs loops of assembly on
pinned threads. Both pass as often over buffers of the same size on as many threads and count bytes
alike: what a kernel names, and not the lines that caches read before they write them. They take
turns, since what else goes on in a machine changes by the second. Of our ways to do the same, and
of its loops that do it, the fastest counts, by its median. Its loops have ordinary stores, as
torch's copy and addition do; for write also non-temporal ones, since one of our ways is memset,
which need not read a line before it writes it either.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from dlm_core.whole_file import write_whole
from dlm_roofline import json_file
from dlm_roofline.ceilings import streams
from dlm_roofline.records import RESULTS, Device, check_writable

from .machine import describe_device, versions

RECORD = RESULTS / "bandwidth" / "bandwidth-check.json"
SCHEMA = 1
TURNS = 9
MOVED = 16e9  # bytes, about, of one call of either
AGREES = 0.15  # how far from 1 a ratio may be
LIKWID_SECONDS = 120  # to wait for one call
# Ours; theirs, whose names have the width of vector behind them; buffers that they stream over.
KERNELS = {
    "read": (("load",), 1),
    "copy": (("copy",), 2),
    "write": (("store", "store_mem"), 1),
    "triad": (("stream",), 3),
}
_WIDTHS = {"AVX512": ("_sse", "_avx", "_avx512"), "AVX2": ("_sse", "_avx")}  # by what torch uses


@dataclass(frozen=True)
class Compared:
    """One kernel: bytes/s of each turn, ours and theirs.

    name: as in `Ceilings`. theirs: the name of likwid-bench's kernel.
    ratio: median of ours over median of theirs.
    """

    name: str
    theirs: str
    our_rates: list[float]
    their_rates: list[float]
    ratio: float

    def __post_init__(self) -> None:
        if min(self.our_rates + self.their_rates) <= 0:
            raise ValueError(f"{self.name}: a rate is not above 0")
        ratio = median(self.our_rates) / median(self.their_rates)
        if abs(self.ratio / ratio - 1) > 1e-6:
            raise ValueError(f"{self.name}: ratio is {self.ratio}; its rates give {ratio}")


@dataclass(frozen=True)
class Check:
    """One comparison. buffer: bytes of each buffer that is streamed over; threads: of both."""

    schema: int
    date: str
    device: Device
    versions: dict[str, str]
    threads: int
    buffer: int
    kernels: list[Compared]

    @property
    def agrees(self) -> bool:
        """Whether no ratio is further from 1 than AGREES."""
        return all(abs(each.ratio - 1) <= AGREES for each in self.kernels)


def load(path: Path = RECORD) -> Check:
    """A comparison from its file. A ValueError names the file and the field that is wrong."""
    return json_file.read(Check, path, SCHEMA)


def compare(turns: int) -> Check:
    """Measure both in turns.

    Raises:
        OSError: there is no likwid-bench, or it fails, or it does not end.
    """
    found = versions() | {"likwid": _likwid_version()}  # first: it may not be there
    host, threads = torch.device("cpu"), torch.get_num_threads()
    buffer = streams(host)["read"].n_bytes
    widths = _WIDTHS.get(torch.backends.cpu.get_cpu_capability(), ("_sse",))
    # Rates of each turn, by way and by their kernel.
    ours: dict[str, dict[int, list[float]]] = {name: {} for name in KERNELS}
    theirs: dict[str, dict[str, list[float]]] = {name: {} for name in KERNELS}
    for turn in range(turns):
        print(f"turn {turn + 1} of {turns}", file=sys.stderr)
        # Anew, as likwid-bench has them: where buffers lie decides too.
        measured = streams(host)
        for name, (stems, buffers) in KERNELS.items():
            n_bytes = buffers * buffer
            passes = max(1, round(MOVED / n_bytes))
            for way, run in enumerate(measured[name].ways):
                ours[name].setdefault(way, []).append(_sustained(run, n_bytes, passes))
            for kernel in (stem + width for stem in stems for width in widths):
                rate = _likwid(kernel, n_bytes, passes, threads)
                theirs[name].setdefault(kernel, []).append(rate)
    compared = []
    for name in KERNELS:
        our_rates = max(ours[name].values(), key=median)
        kernel, their_rates = max(theirs[name].items(), key=lambda item: median(item[1]))
        ratio = median(our_rates) / median(their_rates)
        compared.append(Compared(name, kernel, our_rates, their_rates, ratio))
    return Check(
        schema=SCHEMA,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=describe_device(host),
        versions=found,
        threads=threads,
        buffer=buffer,
        kernels=compared,
    )


def _sustained(way: Callable[[], object], n_bytes: int, passes: int) -> float:
    """Bytes/s over so many passes: some hosts let short bursts run twice as fast."""
    way()
    began = time.perf_counter()
    for _ in range(passes):
        way()
    return passes * n_bytes / (time.perf_counter() - began)


def table(check: Check) -> str:
    """In Markdown: medians in GB/s, with the lowest and the highest turn."""

    def shown(rates: list[float]) -> str:
        low, middle, high = (rate / 1e9 for rate in (min(rates), median(rates), max(rates)))
        return f"{middle:.1f} ({low:.1f} to {high:.1f})"

    lines = ["| | ours, GB/s | likwid-bench, GB/s | ours over theirs |", "|---|---|---|---|"]
    for each in check.kernels:
        ours, theirs = shown(each.our_rates), f"{shown(each.their_rates)}, `{each.theirs}`"
        lines.append(f"| {each.name} | {ours} | {theirs} | {each.ratio:.2f} |")
    return "\n".join(lines)


def _likwid(kernel: str, n_bytes: int, passes: int, threads: int) -> float:
    """Bytes/s of so many passes of a kernel of likwid-bench, over so many bytes of buffers."""
    size = f"N:{n_bytes // 1000}kB:{threads}"
    printed = _output_of("-t", kernel, "-w", size, "-i", str(passes))
    rate = re.search(r"^MByte/s:\s*([\d.]+)$", printed, re.MULTILINE)
    if rate is None or float(rate[1]) == 0:
        raise OSError(f"likwid-bench -t {kernel} printed no rate above 0: {printed.strip()[-200:]}")
    return 1e6 * float(rate[1])


def _likwid_version() -> str:
    found = re.search(r"Version (\S+)", _output_of("-v"))
    return found[1] if found else "unknown"


def _output_of(*arguments: str) -> str:
    program = shutil.which("likwid-bench")
    if program is None:
        raise OSError("likwid-bench is not on PATH; Debian's package likwid has it")
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=LIKWID_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        called = " ".join(["likwid-bench", *arguments])
        raise OSError(f"{called} did not end within {LIKWID_SECONDS} s") from error
    return done.stdout + done.stderr


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dlm_bench.bandwidth_check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out/bandwidth/bandwidth-check.json"))
    parser.add_argument("--turns", type=int, default=TURNS)
    arguments = parser.parse_args(argv)
    if arguments.turns < 1:
        parser.error(f"argument --turns: is {arguments.turns}; it must be at least 1")
    try:
        check_writable(arguments.out.parent)
        check = compare(arguments.turns)
        write_whole(arguments.out, json.dumps(asdict(check), indent=1, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:
        print(f"bandwidth_check: {error}", file=sys.stderr)
        return 1
    print(table(check))
    print(f"within {AGREES:.0%}: {'yes' if check.agrees else 'no'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
