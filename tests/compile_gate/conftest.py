"""Compiles on all processors before the tests, and prints what was compiled at the end."""

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from kernel_compiler import CompiledKernel, compile_launches

_HEADER = f"{'kernel':40} {'arch':7} {'registers':>9} {'shared KiB':>10} {'spills':>6}  note"
_ROWS = pytest.StashKey[list[str]]()


@dataclass
class Report:
    """Collects a line for each compiled kernel."""

    rows: list[str] = field(default_factory=list)

    def add(self, case: str, kernel: CompiledKernel, note: str = "") -> None:
        name = f"{kernel.name} {case}"
        self.rows.append(
            f"{name:40} {kernel.arch:7} {kernel.usage['REG']:9} {kernel.shared / 1024:10.1f} "
            f"{kernel.spills:6}  {note}".rstrip()
        )


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    report = Report()
    request.config.stash[_ROWS] = report.rows
    return report


_JOBS: list[tuple[str, Callable[[], object]]] = []  # which forked processes find here


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave the selected cases' kernels in Triton's cache, where the tests find them."""
    for item in session.items:
        if item.originalname == "test_fits_without_spills":
            arch, case = (item.callspec.params[name] for name in ("arch", "case"))
            _JOBS.append((arch, item.module.CASES[case]))
    processes = min(len(_JOBS), len(os.sched_getaffinity(0)))
    if processes > 1 and not session.config.option.collectonly:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            pool.map(_compile_job, range(len(_JOBS)), chunksize=1)


def _compile_job(number: int) -> None:
    with suppress(Exception):  # the test says which
        compile_launches(*_JOBS[number])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("compiled kernels")
        terminalreporter.write_line(_HEADER)
        for row in sorted(rows):
            terminalreporter.write_line(row)
