"""Our bandwidths of a host beside those of likwid-bench: `python -m dlm_bench.bandwidth_check`.

likwid-bench (https://github.com/RRZE-HPC/likwid, Debian's package likwid) runs loops of assembly on
pinned threads, here with ordinary stores. Both stream over buffers of the same size on as many
threads and count bytes alike: what a kernel names, and not the lines that caches read before they
write them. They take turns, since what else goes on in a machine changes by the second.
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
from dlm_roofline import records
from dlm_roofline.ceilings import Stream, streams
from dlm_roofline.records import RESULTS, Device, check_writable

from .machine import describe_device, versions

RECORD = RESULTS / "bandwidth" / "bandwidth-check.json"
SCHEMA = 1
TURNS, SECONDS = 9, 1.0  # of a turn of either
AGREES = 0.15  # how far from 1 a ratio may be
LIKWID_SECONDS = 120  # to wait for one call
# Ours; theirs, whose name has the vector instructions behind it; buffers that it streams over.
KERNELS = {"read": ("load", 1), "copy": ("copy", 2), "write": ("store", 1), "triad": ("stream", 3)}
_VECTORS = {"AVX512": "_avx512", "AVX2": "_avx"}  # by what torch uses


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
    return records.read(Check, path, SCHEMA)


def compare(turns: int) -> Check:
    """Measure both in turns.

    Raises:
        OSError: there is no likwid-bench, or it fails, or it does not end.
    """
    found = versions() | {"likwid": _likwid_version()}  # first: it may not be there
    host, threads = torch.device("cpu"), torch.get_num_threads()
    buffer = streams(host)["read"].n_bytes
    vectors = _VECTORS.get(torch.backends.cpu.get_cpu_capability(), "")
    ours: dict[str, list[float]] = {name: [] for name in KERNELS}
    theirs: dict[str, list[float]] = {name: [] for name in KERNELS}
    for _ in range(turns):
        # Anew, as likwid-bench has them: the kernel joins pages that are used for long.
        measured = streams(host)
        for name, (kernel, buffers) in KERNELS.items():
            ours[name].append(_sustained(measured[name]))
            theirs[name].append(_likwid(kernel + vectors, buffers * buffer, threads))
    return Check(
        schema=SCHEMA,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=describe_device(host),
        versions=found,
        threads=threads,
        buffer=buffer,
        kernels=[
            Compared(
                name,
                KERNELS[name][0] + vectors,
                ours[name],
                theirs[name],
                median(ours[name]) / median(theirs[name]),
            )
            for name in KERNELS
        ],
    )


def _sustained(stream: Stream) -> float:
    """Bytes/s over SECONDS, by the fastest way: some hosts let short bursts run twice as fast."""

    def best(way: Callable[[], object]) -> float:
        return Stream(stream.device, stream.n_bytes, [way]).measure(3).best

    fastest = max(stream.ways, key=best)
    began, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - began < SECONDS:
        fastest()
        times += 1
    return times * stream.n_bytes / (time.perf_counter() - began)


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


def _likwid(kernel: str, n_bytes: int, threads: int) -> float:
    """Bytes/s of one of likwid-bench's kernels over buffers of so many bytes together."""
    printed = _output_of(
        "-t", kernel, "-w", f"N:{n_bytes // 1000}kB:{threads}", "-s", f"{SECONDS:.0f}"
    )
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
