"""The records that many tests read; see `made_up`."""

import pytest
from made_up import record_of

from dlm_roofline.forward import DENOISE
from dlm_roofline.records import BenchRecord


@pytest.fixture(scope="session")
def record() -> BenchRecord:
    """Denoising steps alone, behind one context, on a GPU."""
    return record_of(kinds=[DENOISE])


@pytest.fixture(scope="session")
def grid_record() -> BenchRecord:
    """All kinds of forwards, and whole steps over batch and context, on a GPU."""
    return record_of(contexts=(4096, 16384, 32768))


@pytest.fixture(scope="session")
def host_record() -> BenchRecord:
    """The same kinds at two batches, on a host of two threads."""
    return record_of((1, 16), contexts=(4096,), on_gpu=False)
