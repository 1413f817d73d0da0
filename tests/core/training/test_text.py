"""Real text: what is taken from a standard library, and that splits share nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_core.training import text

LONG = "Long enough to be a document, since it has well over eighty characters in its line."


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Writes files by path into a library of their own, and gives all documents of it."""

    def read(**files: str) -> list[str]:
        for path, source in files.items():
            file = tmp_path / (path.replace("__", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        monkeypatch.setattr(text.sysconfig, "get_path", lambda _: str(tmp_path))
        return sorted(text.documents("train") + text.documents("heldout"))

    return read


@pytest.mark.full
def test_splits_share_no_text() -> None:
    train, held = text.documents("train"), text.documents("heldout")
    assert len(train) > 5000 and len(held) > 200
    assert not set(train) & set(held)
    for documents in (train, held):
        assert documents == sorted(set(documents))
        assert all(len(d) >= 80 and d == d.strip() for d in documents)


def test_documentation_strings_and_functions_apart(library: Callable[..., list[str]]) -> None:
    body = "\n".join(f"        x = {i} + x  # step" for i in range(6))
    found = library(
        module=f'"""{LONG} Module."""\nclass A:\n    """{LONG} Class."""\n\n'
        f'    def f(self, x):\n        """{LONG} Function."""\n{body}\n        return x\n'
    )
    function = f"def f(self, x):\n{body}\n        return x".replace("\n    ", "\n")
    assert found == sorted([f"{LONG} Module.", f"{LONG} Class.", f"{LONG} Function.", function])


def test_left_out(library: Callable[..., list[str]]) -> None:
    doc = f'"""{LONG}"""\n'
    long_function = "def f(x):\n" + "".join(f"    x = x + {i}\n" for i in range(40))
    steps = "".join(f"    x = {i}\n" for i in range(45))
    inner = f'def g():\n    def h():\n        """{LONG} Inner."""\n{steps}'
    assert library(
        a=doc,
        b=doc,  # the same text again
        test__c=f'"""{LONG} Test."""',
        lib__tests__d=f'"""{LONG} Tests."""',
        e='"""Short."""',
        f=long_function,
        g=inner,
    ) == [LONG]


def test_line_numbers_hold_after_a_form_feed(library: Callable[..., list[str]]) -> None:
    source = f'x = 1\n\x0c\ndef f(x):\n    """Short."""\n    return x  # {LONG}\n'
    assert library(module=source) == [f"def f(x):\n    return x  # {LONG}"]


def test_refused(library: Callable[..., list[str]]) -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'heldout', got 'dev'"):
        text.documents("dev")
    with pytest.raises(FileNotFoundError, match="no Python sources"):
        library(module="x = 1")
