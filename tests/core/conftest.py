"""What the tests of dlm_core share: the golden checkpoints and a quick way to run small models."""

import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden() -> Path:
    """Folder of the golden checkpoints and of the published configs."""
    return GOLDEN


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the checkpoint tiny-a that a test may damage."""
    folder = tmp_path / "tiny-a"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / "tiny-a" / name, folder / name)
    return folder
