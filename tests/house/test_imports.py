"""Imports flow one way: bench -> roofline -> core -> kernels; and `kernels` stays others' name."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest


def imported_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Top-level names that the absolute import statements among `nodes` import from."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from outside_functions(child)


@pytest.mark.parametrize(
    ("package", "above", "walk"),
    [
        ("dlm_kernels", {"dlm_core", "dlm_roofline", "dlm_bench"}, ast.walk),
        # The command line loads bench and roofline, each only when asked for.
        ("dlm_core", {"dlm_roofline", "dlm_bench"}, outside_functions),
        ("dlm_roofline", {"dlm_bench"}, ast.walk),
    ],
    ids=["dlm_kernels", "dlm_core", "dlm_roofline"],
)
def test_no_package_imports_from_above(
    packages: dict[str, Path],
    package: str,
    above: set[str],
    walk: Callable[[ast.AST], Iterator[ast.AST]],
) -> None:
    files = sorted(packages[package].rglob("*.py"))
    assert files, f"{packages[package]} holds no Python files"
    for file in files:
        upward = imported_names(walk(ast.parse(file.read_text()))) & above
        assert not upward, f"{file} imports {sorted(upward)}"


FIND = """
import sys
from importlib.util import find_spec
for name in sys.argv[1:]:
    print(find_spec(name).origin)
"""


@pytest.mark.parametrize("first", [True, False], ids=["before-ours", "after-ours"])
def test_a_distribution_named_kernels_is_found_wherever_it_comes_on_the_path(
    first: bool, packages: dict[str, Path], tmp_path: Path
) -> None:
    """The folders that hold packages are none, so that a regular package wins over them."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    ours = [str(folder.parent) for folder in packages.values()]
    path = [str(tmp_path), *ours] if first else [*ours, str(tmp_path)]
    root = packages["dlm_core"].parent
    program = (
        "from importlib.util import find_spec\nfor name in ARGS: print(find_spec(name).origin)"
    )
    names = ["kernels", *packages]
    done = subprocess.run(
        [sys.executable, "-c", program.replace("ARGS", repr(names))],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    folders = [tmp_path / "kernels", *packages.values()]
    assert [Path(line).parent for line in done.stdout.split()] == folders
