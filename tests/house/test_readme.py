"""README: its links lead somewhere, its tables are complete, its first example runs."""

import re
from pathlib import Path

import pytest

from dlm_core.decoding.new_request import MODES
from dlm_kernels.rules import RULES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_to_files(readme: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", [*MODES, "infill", "refine", *RULES])
def test_every_mode_and_rule_has_a_row_with_source_and_test(name: str, readme: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|.*$", readme, re.MULTILINE)
    sources = re.findall(r"\]\(((?:kernels|dlm_core)/[^)]+\.py)\)", row)
    tests = re.findall(r"\]\((tests/[^)]+\.py)\)", row)
    assert sources and tests
    # The source or the test speaks of it by name.
    assert any(name in (ROOT / file).read_text(encoding="utf-8") for file in sources + tests)


def test_first_example_runs(
    readme: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    example = re.search(r"```python\n(import dlm_core\n.*?)```", readme, re.DOTALL)[1]
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out
