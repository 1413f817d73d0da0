"""The wheel holds our four packages, complete, and no data but small model, launch tables
and the parts of the report's page."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
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
        ignored = shutil.ignore_patterns("__pycache__", "results", "golden")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation"]
    result = subprocess.run(
        [*pip_wheel, "--no-deps", "--wheel-dir", str(target), str(source)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = target.iterdir()
    assert built.name.startswith("dlm_kernels-")
    return zipfile.ZipFile(built)


def test_wheel_holds_the_four_packages_and_the_small_model(
    wheel: zipfile.ZipFile, packages: dict[str, Path]
) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in packages.items()
        for pattern in ("**/*.py", "small_model/**/*", "launch_tables/*.json", "report/*.*")
        for file in folder.glob(pattern)
        if file.is_file()
    }


def test_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "dlm = dlm_core.cli:main" in wheel.read(entry_points).decode()
