"""`make gpu-check`: what only a GPU can show, in parts, each of which is done once.

Parts come in the order of what they tell: the tests that need a GPU, one shape of each op under
compute-sanitizer's memcheck and racecheck, and then all other tests of kernels and model. What has
passed is noted under out/gpu-check/, in a folder named after the state of the code: a part by its
name, a test by its own in the log of its part. The same command then leaves it out, so that a run
may be cut short at any time, as by `timeout 500 make gpu-check`, and is gone on with.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gpu_progress

ROOT = Path(__file__).parents[1]
MOST_LOSSES = 20  # times that a part is begun again because a test took the device with it
NO_TESTS = 5  # pytest's status where there are none left
FOUND_BY_SANITIZER = 9


@dataclass(frozen=True)
class Part:
    """A command; `extra` is added to the environment."""

    name: str
    command: list[str]
    extra: dict[str, str] = field(default_factory=dict)


def parts(sanitizer: str | None) -> list[Part]:
    """All parts in their order; sanitizer: compute-sanitizer's path, None if it is not here."""
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    compiled = {"TRITON_INTERPRET": "0", "PYTHONPATH": path}
    pytest = [sys.executable, "-m", "pytest", "-q", "--full", "-p", gpu_progress.__name__]
    folders = [f"tests/{name}" for name in ("kernels", "core", "bench", "roofline")]
    found = [Part("tests that need a GPU", [*pytest, "-m", "gpu", *folders], compiled)]
    watched = [sys.executable, "tests/kernels/one_shape_of_each.py"]
    # Every tensor an allocation of its own: its ends are then the sanitizer's to watch.
    alone = compiled | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        options = ["--tool", tool, "--error-exitcode", str(FOUND_BY_SANITIZER)]
        found.append(Part(tool, [sanitizer, *options, *watched], alone))
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
    call: Callable[..., subprocess.CompletedProcess] = subprocess.run,
) -> int:
    """Run what has not passed yet; 0 if by the end everything has, else 1."""
    stamps.mkdir(parents=True, exist_ok=True)
    outcome = {}
    for part in todo:
        stamp = stamps / part.name.replace(" ", "-")
        if stamp.exists():
            outcome[part.name] = "passed before"
        elif (status := _status(part, stamp.with_suffix(".log"), call)) in (0, NO_TESTS):
            stamp.touch()
            outcome[part.name] = "passed"
        else:
            outcome[part.name] = f"FAILED with status {status}"
    print("", *(f"{how:22} {name}" for name, how in outcome.items()), sep="\n")
    return int(any(how.startswith("FAILED") for how in outcome.values()))


def _status(part: Part, log: Path, call: Callable[..., subprocess.CompletedProcess]) -> int:
    """The status with which a part ended."""
    environment = os.environ | part.extra | {gpu_progress.LOG: str(log)}
    for _ in range(MOST_LOSSES):
        print(f"--- {part.name}", flush=True)
        status = call(part.command, cwd=ROOT, env=environment).returncode
        if status != gpu_progress.DEVICE_LOST:
            break
    return status


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device", file=sys.stderr)
        return 1
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("gpu-check: compute-sanitizer is not on PATH; its parts are left out")
    return run(parts(sanitizer), ROOT / "out" / "gpu-check" / state_of())


if __name__ == "__main__":
    sys.exit(main())
