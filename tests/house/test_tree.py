"""What the repository holds: the allowed names, no registry, verbs that say what they do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"kernels", "dlm_core", "bench", "tests", "roofline"}
FILES = {"pyproject.toml", "Makefile", "README.md", "LICENSE"}
# Written so that this file doesn't match itself.
REGISTRY = re.compile(
    rb"pypi\.org|pythonhosted\.org|download\.pytorch\.org|index[-]url|find[-]links"
)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of the files that git tracks, relative to the repository's root."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout, or no git here")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip(f"git ls-files failed: {listing.stderr.strip()}")
    return listing.stdout.split("\0")[:-1]


def test_top_level_holds_exactly_the_allowed_names(tracked: list[str]) -> None:
    names = {path.split("/")[0] for path in tracked}
    assert {name for name in names if not name.startswith(".")} == FOLDERS | FILES


def test_no_file_names_a_package_registry(tracked: list[str]) -> None:
    for path in (path for path in tracked if (ROOT / path).is_file()):  # links are to folders
        found = REGISTRY.search((ROOT / path).read_bytes())
        assert not found, f"{path} names {found[0].decode()}"


def test_make_alone_lists_every_verb_with_its_comment() -> None:
    if not shutil.which("make"):
        pytest.skip("no make here")
    makefile = (ROOT / "Makefile").read_text()
    verbs = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    listing = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^make (\S+) +(\S.*)$", listing, re.MULTILINE))
    assert list(listed) == verbs
