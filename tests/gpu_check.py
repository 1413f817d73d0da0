"""`make gpu-check`: what only a GPU can show, in parts, each of which is done once.

Parts come in the order of what they tell: the GPU-marked tests, one shape of each op under
compute-sanitizer's memcheck and racecheck, and then all other tests of kernels and model, a part a
file. A part that has passed leaves a file under out/gpu-check/, in a folder named after the state
of the code; the same command then leaves it out, so that a run cut short is gone on with.
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

ROOT = Path(__file__).parents[1]
BUDGET = 500.0  # seconds after which no further part is begun
NO_TESTS = 5  # pytest's status where a file holds none of the kind asked for
FOUND_BY_SANITIZER = 9


@dataclass(frozen=True)
class Part:
    """A command, or why it cannot run here; `extra` is added to the environment."""

    name: str
    command: list[str] | str
    extra: dict[str, str] = field(default_factory=dict)


def parts(root: Path = ROOT, sanitizer: str | None = None) -> list[Part]:
    """All parts in their order; sanitizer: path of compute-sanitizer, None if it is not here."""
    pytest = [sys.executable, "-m", "pytest", "-q"]
    compiled = {"TRITON_INTERPRET": "0"}
    found = [
        Part(f"gpu-marked, {folder}", [*pytest, "-m", "gpu", f"tests/{folder}"], compiled)
        for folder in ("kernels", "core", "bench", "roofline")
    ]
    watched = [sys.executable, "tests/kernels/one_shape_of_each.py"]
    for tool in ("memcheck", "racecheck"):
        options = ["--tool", tool, "--error-exitcode", str(FOUND_BY_SANITIZER)]
        command: list[str] | str = "compute-sanitizer is not on PATH"
        if sanitizer is not None:
            command = [sanitizer, *options, *watched]
        # Every tensor an allocation of its own: its ends are then the sanitizer's to watch.
        found.append(Part(tool, command, compiled | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    for folder in ("kernels", "core"):
        for file in sorted((root / "tests" / folder).rglob("test_*.py")):
            path = file.relative_to(root).as_posix()
            found.append(Part(path, [*pytest, "-m", "not gpu", path], compiled))
    return found


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
    began, outcome = time.monotonic(), {}
    for part in todo:
        stamp = stamps / (hashlib.sha256(part.name.encode()).hexdigest()[:16])
        if stamp.exists():
            outcome[part.name] = "passed before"
        elif isinstance(part.command, str):
            outcome[part.name] = f"left out: {part.command}"
        elif time.monotonic() - began > budget:
            outcome[part.name] = "left for the next run"
        else:
            print(f"--- {part.name}", flush=True)
            status = call(part.command, cwd=ROOT, env=os.environ | part.extra).returncode
            if status in (0, NO_TESTS):
                stamp.write_text(part.name + "\n", encoding="utf-8")
            outcome[part.name] = "passed" if stamp.exists() else f"FAILED with status {status}"
    print()
    for name, how in outcome.items():
        print(f"{how:22} {name}")
    wrong = [name for name, how in outcome.items() if how.startswith("FAILED")]
    left = [name for name, how in outcome.items() if how.startswith("left for")]
    if left:
        print(f"{len(left)} parts are left: the same command goes on with them")
    return 1 if wrong or left else 0


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device", file=sys.stderr)
        return 1
    stamps = ROOT / "out" / "gpu-check" / state_of()
    return run(parts(sanitizer=shutil.which("compute-sanitizer")), stamps)


if __name__ == "__main__":
    sys.exit(main())
