"""gpu-check: its parts are the files that are there, and what has passed is not run again."""

import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
from gpu_check import Part, gpu_progress

ROOT = Path(__file__).parents[2]


class Calls:
    """Stands in for subprocess.run: a command is the statuses that it ends with, run for run."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.made.append(command[0])
        status = command.pop(1)
        if status == "killed":
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, int(status))


def test_parts_name_what_is_there_and_every_test_of_kernels_and_model() -> None:
    found = gpu_check.parts("/usr/bin/compute-sanitizer")
    words = {word for part in found for word in part.command if word.startswith("tests/")}
    assert all((ROOT / word).exists() for word in words)
    assert {"tests/kernels", "tests/core"} < words
    assert "gpu" in found[0].command  # what only a GPU shows comes first
    assert [part.name for part in found[1:3]] == ["memcheck", "racecheck"]
    assert all(part.extra["TRITON_INTERPRET"] == "0" for part in found)
    assert gpu_check.parts(None) == [found[0], found[3]]


def test_what_has_passed_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A part fails, one has no tests left, one is interrupted, and later all pass."""
    todo = [
        Part("a", ["a", "0"]),
        Part("b", ["b", "1", "0"]),
        Part("c", ["c", "5"]),
        Part("d", ["d", "killed", "0"]),
    ]
    first, second = Calls(), Calls()
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run(todo, tmp_path, first)
    assert first.made == ["a", "b", "c", "d"]
    assert gpu_check.run(todo, tmp_path, second) == 0
    assert second.made == ["b", "d"]
    assert "passed before          a" in capsys.readouterr().out


def test_a_part_goes_on_when_a_test_took_the_device_with_it(tmp_path: Path) -> None:
    calls = Calls()
    assert gpu_check.run([Part("a", ["a", str(gpu_progress.DEVICE_LOST), "1"])], tmp_path, calls)
    assert calls.made == ["a", "a"]


TESTS = """
import os, pathlib, pytest
def test_first(): pass
def test_dies():
    if not pathlib.Path("mended").exists():
        os._exit(3)
def test_fails(): assert pathlib.Path("mended").exists()
def test_last(): pass
"""


def test_tests_that_passed_are_left_out_and_those_that_did_not_come_last(tmp_path: Path) -> None:
    """As over three runs: one dies, one meets the rest first, one finds all mended."""
    (tmp_path / "test_made_up.py").write_text(TESTS)
    log, seen = tmp_path / "log", []
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), gpu_progress.LOG: str(log)}
    command = [sys.executable, "-m", "pytest", "-p", "gpu_progress", "-p", "no:cacheprovider"]
    for status in (3, 3, 0):
        before = log.read_text().splitlines() if log.exists() else []
        done = subprocess.run(
            [*command, "test_made_up.py"], cwd=tmp_path, env=environment, capture_output=True
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


def test_the_state_follows_code_and_tests(tmp_path: Path) -> None:
    for name in ("kernels/a.py", "tests/b.py", "kernels/notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    states = [gpu_check.state_of(tmp_path)]
    for name in ("kernels/notes.md", "kernels/a.py", "tests/b.py"):
        (tmp_path / name).write_text("y")
        states.append(gpu_check.state_of(tmp_path))
    assert states[0] == states[1] and len(set(states)) == 3
