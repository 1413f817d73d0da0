"""The folder `kernels/` never stands in the way of a distribution that owns the name `kernels`.

The folder has no `__init__.py`, so on `sys.path` it is at most a candidate for a namespace
package, and any regular package wins over it, wherever on the path that package comes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["dlm_kernels", "dlm_core", "dlm_bench", "dlm_roofline"]

REPORT = """
import importlib, importlib.metadata, json, sys
import kernels
ours = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
version = importlib.metadata.version("kernels")
print(json.dumps({"kernels": kernels.__file__, "version": version, "ours": ours}))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder that holds a distribution `kernels` as pip lays one out."""
    site = tmp_path / "site-packages"
    package = site / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    info = site / "kernels-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 9.9.9\n")
    return site


@pytest.mark.parametrize("inside", [True, False], ids=["in-repository", "elsewhere"])
@pytest.mark.parametrize("stand_in_first", [True, False], ids=["before-ours", "after-ours"])
def test_kernels_is_the_installed_distribution(
    stand_in: Path, tmp_path: Path, inside: bool, stand_in_first: bool
) -> None:
    ours = ["kernels", "bench", "roofline", "."]
    if not inside:
        ours = [str(ROOT / folder) for folder in ours]
    path = [str(stand_in), *ours] if stand_in_first else [*ours, str(stand_in)]
    result = subprocess.run(
        [sys.executable, "-c", REPORT, *PACKAGES],
        cwd=ROOT if inside else tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["version"] == "9.9.9"
    assert Path(report["kernels"]) == stand_in / "kernels" / "__init__.py"
    for name, file in report["ours"].items():
        assert (ROOT / file).is_relative_to(ROOT), f"{name} came from {file}"


def test_folders_that_hold_packages_are_no_packages() -> None:
    for folder in ("kernels", "bench", "roofline"):
        assert not (ROOT / folder / "__init__.py").exists()
