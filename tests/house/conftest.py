"""Where the repository's packages lie."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """Folder of each package by its import name."""
    return {
        "dlm_kernels": ROOT / "kernels" / "dlm_kernels",
        "dlm_core": ROOT / "dlm_core",
        "dlm_roofline": ROOT / "roofline" / "dlm_roofline",
        "dlm_bench": ROOT / "bench" / "dlm_bench",
    }
