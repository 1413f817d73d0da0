"""`make gpu-check`: what only a GPU can show, in parts, each of which is done once.

Parts come in the order of what they tell: the tests that need a GPU, one shape of each op under
compute-sanitizer's memcheck and racecheck, and then all other tests of kernels and model. What has
passed is noted under out/gpu-check/, in a folder named after the state of the code: a part by its
name, a test by its own in the log of its part. The same command then leaves it out, so that a run
cut short is gone on with.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gpu_progress

ROOT = Path(__file__).parents[1]
BUDGET = 500.0  # seconds after which what runs is cut short
MOST_LOSSES = 20  # times that a part is begun again because a test took the device with it
NO_TESTS = 5  # pytest's status where there are none left
FOUND_BY_SANITIZER = 9


@dataclass(frozen=True)
class Part:
    """A command, or why it cannot run here; `extra` is added to the environment."""

    name: str
    command: list[str] | str
    extra: dict[str, str] = field(default_factory=dict)


def parts(sanitizer: str | None = None) -> list[Part]:
    """All parts in their order; sanitizer: path of compute-sanitizer, None if it is not here."""
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", gpu_progress.__name__]
    compiled = {"TRITON_INTERPRET": "0", "PYTHONPATH": path}
    folders = [f"tests/{name}" for name in ("kernels", "core", "bench", "roofline")]
    found = [Part("tests that need a GPU", [*pytest, "-m", "gpu", *folders], compiled)]
    watched = [sys.executable, "tests/kernels/one_shape_of_each.py"]
    for tool in ("memcheck", "racecheck"):
        options = ["--tool", tool, "--error-exitcode", str(FOUND_BY_SANITIZER)]
        command: list[str] | str = "compute-sanitizer is not on PATH"
        if sanitizer is not None:
            command = [sanitizer, *options, *watched]
        # Every tensor an allocation of its own: its ends are then the sanitizer's to watch.
        found.append(Part(tool, command, compiled | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    others = [*pytest, "-m", "not gpu", *folders[:2]]
    return [*found, Part("all other tests of kernels and model", others, compiled)]


def state_of(root: Path = ROOT) -> str:
    """A digest of all code, tables and test data that the parts depend on."""
    digest = hashlib.sha256()
    for folder in ("kernels", "dlm_core", "bench/dlm_bench", "roofline", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".safetensors"):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def run(
    todo: list[Part],
    stamps: Path,
    *,
    budget: float = BUDGET,
    call: Callable[..., subprocess.CompletedProcess] = subprocess.run,
) -> int:
    """Run what has not passed yet; 0 if by the end everything has, else 1."""
    stamps.mkdir(parents=True, exist_ok=True)
    until, outcome = time.monotonic() + budget, {}
    for part in todo:
        stamp = stamps / (hashlib.sha256(part.name.encode()).hexdigest()[:16])
        if stamp.exists():
            outcome[part.name] = "passed before"
        elif isinstance(part.command, str):
            outcome[part.name] = f"left out: {part.command}"
        else:
            status = _status(part, stamp.with_suffix(".log"), until, call)
            if status in (0, NO_TESTS):
                stamp.write_text(part.name + "\n", encoding="utf-8")
                outcome[part.name] = "passed"
            elif status is None:
                outcome[part.name] = "left for the next run"
            else:
                outcome[part.name] = f"FAILED with status {status}"
    print()
    for name, how in outcome.items():
        print(f"{how:22} {name}")
    wrong = [name for name, how in outcome.items() if how.startswith("FAILED")]
    left = [name for name, how in outcome.items() if how.startswith("left for")]
    if left:
        print(f"{len(left)} parts are left: the same command goes on with them")
    return 1 if wrong or left else 0


def _status(
    part: Part, log: Path, until: float, call: Callable[..., subprocess.CompletedProcess]
) -> int | None:
    """The status with which a part ended; None if time ran out before."""
    environment = os.environ | part.extra | {gpu_progress.LOG: str(log)}
    status = None
    for _ in range(MOST_LOSSES):
        left = until - time.monotonic()
        if left <= 0:
            return None
        print(f"--- {part.name}", flush=True)
        try:
            status = call(part.command, cwd=ROOT, env=environment, timeout=left).returncode
        except subprocess.TimeoutExpired:
            return None
        if status != gpu_progress.DEVICE_LOST:
            break
    return status


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device", file=sys.stderr)
        return 1
    stamps = ROOT / "out" / "gpu-check" / state_of()
    return run(parts(sanitizer=shutil.which("compute-sanitizer")), stamps)


if __name__ == "__main__":
    sys.exit(main())
