"""The wheel holds our four packages, complete, and what is installed from it works anywhere."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
# Small model, launch tables, the report's page, and records for the report and the adviser.
DATA = ("small_model/**/*", "launch_tables/*.json", "report/*.*", "results/**/*")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without network, and from a copy: a build leaves files beside its sources."""
    if not importlib.util.find_spec("pip"):
        pytest.skip("no pip here")
    if not importlib.util.find_spec("setuptools") or Version(version("setuptools")) < Version("77"):
        pytest.skip("building a wheel without network needs setuptools >= 77")
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("kernels", "dlm_core", "bench", "roofline", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "golden")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps"]
    result = subprocess.run(
        [*pip, "--wheel-dir", str(target), str(source)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = target.iterdir()
    assert built.name.startswith("dlm_kernels-")
    return built


def test_wheel_holds_the_four_packages_their_data_and_the_command(
    wheel: Path, packages: dict[str, Path]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert "dlm = dlm_core.cli:main" in archive.read(entry_points).decode()
    assert {name for name in names if ".dist-info/" not in name} == {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in packages.items()
        for pattern in ("**/*.py", *DATA)
        for file in folder.glob(pattern)
        if file.is_file()
    }


@pytest.fixture(scope="module")
def dlm(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the installed command in an empty folder."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)

    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)

    where = run("-c", "import dlm_core; print(dlm_core.__file__)")
    assert where.stdout.startswith(str(site)), "it would not be the installed one that runs"
    return partial(run, "-m", "dlm_core.cli")


@pytest.mark.full
@pytest.mark.parametrize("command", ["report", "roofline"])
def test_an_installed_command_finds_the_records_that_came_with_it(
    command: str, dlm: Callable[..., subprocess.CompletedProcess]
) -> None:
    done = dlm(command)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    for missing in ("No whole record of the host", "No quality record", "no record in"):
        assert missing not in printed


@pytest.mark.full
def test_the_installed_adviser_knows_published_figures_and_the_small_model_s(
    dlm: Callable[..., subprocess.CompletedProcess],
) -> None:
    for model in ("8b", "small"):
        done = dlm("roofline", "advise", "--gpu", "h200", "--batch", "1", "--model", model)
        assert done.returncode == 0 and '"advised": [{' in done.stdout, done.stderr
