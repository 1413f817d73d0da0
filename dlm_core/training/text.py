"""Real text: documentation strings and short functions of the running Python's standard library.

Licence: PSF-2.0 (https://docs.python.org/3/license.html). Nothing is downloaded or stored. The
documents are the same wherever the library's files are: a distribution may patch them, or leave
some out.
"""

import ast
import functools
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

from ..tasks.example import Split, check_split, split_of

LEFT_OUT = {
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
MIN_CHARACTERS = 80
MAX_LINES = 40


def _definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions of a module and of its classes, but none inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        if isinstance(child, ast.ClassDef | ast.If | ast.Try):
            yield from _definitions(child)


def _of_file(path: Path) -> Iterator[str]:
    with tokenize.open(path) as file:
        source = file.read()
    tree = ast.parse(source)
    lines = source.split("\n")  # as ast counts them; splitlines would also part at form feeds
    for node in (tree, *_definitions(tree)):
        text = ast.get_docstring(node)
        if text:
            yield text
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kept = lines[node.lineno - 1 : node.end_lineno]
            if text is not None:
                # A document of its own, maybe of the other split.
                first = node.body[0]
                del kept[first.lineno - node.lineno : first.end_lineno - node.lineno + 1]
            if len(kept) <= MAX_LINES:
                yield textwrap.dedent("\n".join(kept))


@functools.cache
def _documents_under(root: Path) -> tuple[str, ...]:
    texts = set()
    for path in sorted(root.rglob("*.py")):
        if not LEFT_OUT.intersection(path.relative_to(root).parts):
            texts.update(text.strip() for text in _of_file(path))
    kept = tuple(sorted(text for text in texts if len(text) >= MIN_CHARACTERS))
    if not kept:
        raise FileNotFoundError(f"no Python sources with documentation strings under {root}")
    return kept


def documents(split: Split) -> list[str]:
    """The documents of a split, each of at least 80 characters, distinct and sorted."""
    check_split(split)
    root = Path(sysconfig.get_path("stdlib"))
    return [text for text in _documents_under(root) if split_of(text) == split]
