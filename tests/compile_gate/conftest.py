"""Prints what the gate compiled as one table at the end of the run."""

from dataclasses import dataclass, field

import pytest
from kernel_compiler import CompiledKernel

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


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("compiled kernels")
        terminalreporter.write_line(_HEADER)
        for row in sorted(rows):
            terminalreporter.write_line(row)
