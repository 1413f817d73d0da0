"""gpu-check: its parts are the files that are there, and what has passed is not run again."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu_check() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests"))
        yield importlib.import_module("gpu_check")


class Calls:
    """Stands in for subprocess.run: the status of a command is what its last word says."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.made.append(command[0])
        return subprocess.CompletedProcess(command, int(command[-1]))


def test_parts_name_what_is_there_and_every_test_of_kernels_and_model(
    gpu_check: ModuleType,
) -> None:
    found = gpu_check.parts(sanitizer="/usr/bin/compute-sanitizer")
    words = {word for part in found for word in part.command if word.startswith("tests/")}
    assert all((ROOT / word).exists() for word in words)
    assert {"tests/kernels", "tests/core"} < words
    assert "gpu" in found[0].command  # what only a GPU shows comes first
    assert [part.name for part in found[1:3]] == ["memcheck", "racecheck"]
    assert all(part.extra["TRITON_INTERPRET"] == "0" for part in found)


def test_what_has_passed_is_not_run_again(gpu_check: ModuleType, tmp_path: Path, capsys) -> None:
    part = gpu_check.Part
    todo = [part("a", ["a", "0"]), part("b", ["b", "1"]), part("c", ["c", "5"])]
    first, second = Calls(), Calls()
    assert gpu_check.run(todo, tmp_path, call=first) == 1
    assert first.made == ["a", "b", "c"]
    todo[1] = part("b", ["b", "0"])
    capsys.readouterr()
    assert gpu_check.run(todo, tmp_path, call=second) == 0
    assert second.made == ["b"]
    assert "passed before          a" in capsys.readouterr().out


def test_an_interrupted_part_is_run_again(gpu_check: ModuleType, tmp_path: Path) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    todo, calls = [gpu_check.Part("a", ["a", "0"])], Calls()
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run(todo, tmp_path, call=killed)
    assert gpu_check.run(todo, tmp_path, call=calls) == 0
    assert calls.made == ["a"]


def test_parts_that_do_not_fit_are_left_and_said(gpu_check: ModuleType, tmp_path, capsys) -> None:
    calls = Calls()
    todo = [gpu_check.Part("a", ["a", "0"])]
    assert gpu_check.run(todo, tmp_path, budget=-1.0, call=calls) == 1
    assert calls.made == []
    assert "1 parts are left" in capsys.readouterr().out


def test_a_part_that_outlives_the_budget_is_left(gpu_check: ModuleType, tmp_path, capsys) -> None:
    todo = [gpu_check.Part("a", [sys.executable, "-c", "import time; time.sleep(60)"])]
    assert gpu_check.run(todo, tmp_path, budget=0.5) == 1
    assert "left for the next run  a" in capsys.readouterr().out


TESTS = """
import os, pathlib, pytest
def test_first(): pass
def test_dies():
    if not pathlib.Path("mended").exists():
        os._exit(3)
def test_fails(): assert pathlib.Path("mended").exists()
def test_last(): pass
"""


def test_tests_that_passed_are_left_out_and_those_that_did_not_come_last(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    """As over three runs: one dies, one meets the rest first, one finds all mended."""
    (tmp_path / "test_made_up.py").write_text(TESTS)
    log = tmp_path / "log"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "tests"),
        gpu_check.gpu_progress.LOG: str(log),
    }
    command = [sys.executable, "-m", "pytest", "-p", "gpu_progress", "-p", "no:cacheprovider"]
    seen = []
    for status in (3, 3, 0):
        before = log.read_text().splitlines() if log.exists() else []
        done = subprocess.run(
            [*command, "test_made_up.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
        )
        assert done.returncode == status, done.stdout
        lines = log.read_text().splitlines()[len(before) :]
        seen.append([line.rpartition("::")[2] for line in lines if line.startswith("begun")])
        if len(seen) == 2:
            (tmp_path / "mended").touch()
    assert seen == [
        ["test_first", "test_dies"],
        ["test_fails", "test_last", "test_dies"],
        ["test_dies", "test_fails"],
    ]


def test_a_part_goes_on_when_a_test_took_the_device_with_it(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    statuses = iter([gpu_check.gpu_progress.DEVICE_LOST, 1])

    def call(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, next(statuses))

    assert gpu_check.run([gpu_check.Part("a", ["a"])], tmp_path, call=call) == 1
    assert next(statuses, None) is None


def test_a_missing_sanitizer_is_said_and_is_no_failure(
    gpu_check: ModuleType, tmp_path: Path, capsys
) -> None:
    todo = [part for part in gpu_check.parts() if part.name == "memcheck"]
    assert gpu_check.run(todo, tmp_path, call=Calls()) == 0
    assert "left out: compute-sanitizer is not on PATH" in capsys.readouterr().out


def test_the_state_follows_code_and_tests(gpu_check: ModuleType, tmp_path: Path) -> None:
    for name in ("kernels/a.py", "tests/b.py", "kernels/notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    states = [gpu_check.state_of(tmp_path)]
    for name in ("kernels/notes.md", "kernels/a.py", "tests/b.py"):
        (tmp_path / name).write_text("y")
        states.append(gpu_check.state_of(tmp_path))
    assert states[0] == states[1] and len(set(states)) == 3
