"""reverse, replace and repeat: letter by letter."""

import re
from collections.abc import Callable

from dlm_core.tasks import Example


def test_reverse(drawn: Callable[[str], list[Example]]) -> None:
    lengths = set()
    for example in drawn("reverse"):
        letters = example.prompt.removeprefix("reverse: ")
        assert example.answer == letters[::-1]
        assert re.fullmatch(r"[a-z]( [a-z])*", letters)
        lengths.add(len(letters.split()))
    assert lengths == set(range(4, 25))


def test_replace(drawn: Callable[[str], list[Example]]) -> None:
    replaced = 0
    for example in drawn("replace"):
        old, new, letters = re.fullmatch(
            r"replace (\w) by (\w): ([a-z](?: [a-z]){5,27})", example.prompt
        ).groups()
        assert example.answer == letters.replace(old, new)
        assert old != new and old in letters
        replaced += letters.count(old)
    assert replaced > 1000  # of 400 examples: the edit is no rare event


def test_repeat(drawn: Callable[[str], list[Example]]) -> None:
    for example in drawn("repeat"):
        times, letters = re.fullmatch(
            r"repeat ([234]): ([a-z](?: [a-z]){2,7})", example.prompt
        ).groups()
        assert example.answer == " ".join([letters] * int(times))
