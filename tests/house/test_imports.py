"""Imports flow one way: bench -> roofline -> core -> kernels; nothing reaches back up."""

import ast
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


def test_imports_inside_functions_are_told_from_the_others() -> None:
    source = (
        "import numpy\nif numpy:\n    from torch import nn\ndef later():\n    import rich.table\n"
    )
    tree = ast.parse(source)
    assert imported_names(outside_functions(tree)) == {"numpy", "torch"}
    assert imported_names(ast.walk(tree)) == {"numpy", "torch", "rich"}
