"""What a record says about the machine and the code it ran on."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dlm_kernels.backend import backend_for
from dlm_roofline.ceilings import partial_sums
from dlm_roofline.records import Device

_NVIDIA_SMI_FIELDS = {
    "SM clock": "clocks.sm",
    "SM clock, highest": "clocks.max.sm",
    "memory clock": "clocks.mem",
    "driver": "driver_version",
    "power limit": "power.limit",
    "temperature, C": "temperature.gpu",
}


def device_for(wanted: str | None) -> torch.device:
    """The device asked for, or the GPU where there is one.

    Raises:
        ValueError: there is no such device, or Triton's interpreter is on.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET is 1; unset it: the interpreter says nothing of speed")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, and torch sees no CUDA device; it must be cpu here")
    kind = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


def describe_device(device: torch.device) -> Device:
    """Name and state of the device before the run."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        details = {
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "SMs": str(properties.multi_processor_count),
            "L2": f"{properties.L2_cache_size / 2**20:.0f} MiB",
            "CUDA": torch.version.cuda or "",
        }
        return Device("cuda", properties.name, details)
    cpuinfo = _text_of(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*: (.*)$", cpuinfo, re.MULTILINE)]
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _text_of(Path("/proc/meminfo")), re.MULTILINE)
    details = {
        "threads": str(torch.get_num_threads()),
        "SIMD": torch.backends.cpu.get_cpu_capability(),
        # Others at work slow parallel regions by far more than their share of the cores.
        "load before the run": f"{os.getloadavg()[0]:.1f}",
    }
    if clocks:
        details["clock"] = f"{max(clocks):.0f} MHz"
    if memory:
        details["memory"] = f"{int(memory[1]) / 2**20:.0f} GiB"
    return Device("cpu", name[1] if name else platform.machine(), details)


def name_of(dtype: torch.dtype) -> str:
    """As torch names it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def versions() -> dict[str, str]:
    """Versions of what the timings depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "dlm-kernels"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> tuple[str, bool]:
    """The checkout's commit, and whether files differ from it; ("unknown", True) outside of one.

    An installed copy may lie in somebody else's checkout, which does not track it.
    """
    tracked = _output_of("git", "ls-files", "--error-unmatch", Path(__file__).name)
    head = _output_of("git", "rev-parse", "HEAD")
    if tracked is None or head is None:
        return "unknown", True
    return head, bool(_output_of("git", "status", "--porcelain"))


def is_lost(device: torch.device) -> bool:
    """Whether a fault in a kernel has left the device unusable for this process."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def made_by(command: str, device: torch.device) -> dict[str, Any]:
    """What a record says of its making, as keywords of `Record`: when, from what, by what."""
    head, dirty = commit()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": head,
        "dirty": dirty,
        "command": command,
        "backend": backend_for(torch.empty(0, device=device)),
        "versions": versions(),
    }


def clocks(device: torch.device) -> dict[str, str]:
    """Clocks, driver and power limit of a GPU at this moment, by nvidia-smi; else nothing.

    It numbers devices by itself, whatever CUDA_VISIBLE_DEVICES says, so it is asked by UUID.
    """
    if device.type != "cuda":
        return {}
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    query = f"--query-gpu={','.join(_NVIDIA_SMI_FIELDS.values())}"
    which = f"--id={f'GPU-{uuid}' if uuid else device.index}"
    line = _output_of("nvidia-smi", which, query, "--format=csv,noheader")
    return dict(zip(_NVIDIA_SMI_FIELDS, line.split(", "), strict=True)) if line else {}


def check_triton(device: torch.device) -> None:
    """Run a small kernel; an OSError says that Triton cannot, and what it needs."""
    try:
        partial_sums(torch.ones(65536, device=device)).sum().item()
    except Exception as error:  # building fails in as many ways as there are compilers
        why = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise OSError(
            f"Triton cannot run a kernel on {device}, for which it needs a C compiler (CC, or cc on"
            f" PATH) and Python's header Python.h: {why}"
        ) from error


def _output_of(*command: str) -> str | None:
    """What a command prints, run beside this file; None if it fails or is not there."""
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
