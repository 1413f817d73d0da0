"""What the tests of dlm_core share: golden checkpoints, and one model that is loaded once."""

import shutil
from pathlib import Path

import pytest

from dlm_core import Model, load_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden checkpoints and of the published configs."""
    return GOLDEN


@pytest.fixture(scope="session")
def model(device: str) -> Model:
    """tiny-a: vocabulary 67, mask id 3, EOS 2, blocks of 8, 768 positions. No test changes it."""
    return load_model(GOLDEN / "tiny-a", device=device)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the checkpoint tiny-a, without its LoRA, that a test may damage."""
    folder = tmp_path / "tiny-a"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / "tiny-a" / name, folder / name)
    return folder


def pytest_make_parametrize_id(val: object) -> str | None:
    """A test's name shows options that are not too many."""
    return str(val) if isinstance(val, dict) and len(str(val)) < 80 else None
