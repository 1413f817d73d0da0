"""Which architectures are compiled for, and a table at the end of what was compiled."""

from collections.abc import Callable

import pytest
from kernel_compiler import CompiledKernel

from dlm_kernels.launch import SHARED_MEMORY

_HEADER = f"{'kernel':44} {'arch':7} {'registers':>9} {'shared KiB':>10} {'spills':>6}  note"
_PROPERTY = "compiled kernel"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of an `arch` runs for sm_90, and with --full for every architecture."""
    if "arch" in metafunc.fixturenames:
        full = [pytest.param(a, marks=pytest.mark.full) for a in SHARED_MEMORY if a != "sm_90"]
        metafunc.parametrize("arch", ["sm_90", *full])


@pytest.fixture
def report(record_property: Callable[[str, str], None]) -> Callable[..., None]:
    """Adds a line to the table: a property of the test, as its process may be a worker's."""

    def add(case: str, kernel: CompiledKernel, note: str = "") -> None:
        name = f"{kernel.name} {case}"
        line = f"{name:44} {kernel.arch:7} {kernel.usage['REG']:9} {kernel.shared / 1024:10.1f} "
        record_property(_PROPERTY, f"{line}{kernel.spills:6}  {note}".rstrip())

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    done = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    properties = {each for report in done for each in report.user_properties}
    rows = sorted(row for name, row in properties if name == _PROPERTY)
    if rows:
        terminalreporter.section("compiled kernels")
        terminalreporter.write_line("\n".join([_HEADER, *rows]))
