"""gpu-check: its parts are the files that are there, and what has passed is not run again."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tests" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Calls:
    """Stands in for subprocess.run: the status of a command is what its last word says."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.made.append(command[0])
        return subprocess.CompletedProcess(command, int(command[-1]))


def test_parts_name_files_that_are_there_and_every_test_file(gpu_check: ModuleType) -> None:
    found = gpu_check.parts(sanitizer="/usr/bin/compute-sanitizer")
    words = {word for part in found for word in part.command if word.startswith("tests/")}
    assert all((ROOT / word).exists() for word in words)
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("kernels", "core")
        for path in (ROOT / "tests" / folder).rglob("test_*.py")
    }
    assert files <= words
    # What only a GPU shows comes first.
    assert [part.name for part in found[:6]][-2:] == ["memcheck", "racecheck"]
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
