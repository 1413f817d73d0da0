"""A pytest plugin that notes which tests have passed, so that a run cut short goes on.

What passed before is left out, and what was begun and did not pass comes last: a test that kills
the process or leaves the device unusable then stands in nobody's way.
"""

import os
from pathlib import Path

import pytest

LOG = "GPU_CHECK_LOG"  # environment variable: the file of notes
DEVICE_LOST = 77  # exit status


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    begun, passed = _notes()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]
    items.sort(key=lambda item: item.nodeid in begun)


def pytest_runtest_logstart(nodeid: str, location: tuple) -> None:
    _note("begun", nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped or report.when == "call" and report.passed:
        _note("passed", report.nodeid)
    if report.failed and _device_is_lost():
        pytest.exit(f"the device is lost after {report.nodeid}", returncode=DEVICE_LOST)


def _notes() -> tuple[set[str], set[str]]:
    """The tests begun and those passed so far."""
    path, found = Path(os.environ[LOG]), {"begun": set(), "passed": set()}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        what, _, nodeid = line.partition(" ")
        found[what].add(nodeid)
    return found["begun"], found["passed"]


def _note(what: str, nodeid: str) -> None:
    with Path(os.environ[LOG]).open("a", encoding="utf-8") as log:
        log.write(f"{what} {nodeid}\n")


def _device_is_lost() -> bool:
    """An illegal access, say, leaves every later call of its process an error."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
