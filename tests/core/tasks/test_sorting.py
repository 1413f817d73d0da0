"""sort: the same numbers in rising order."""

from collections import Counter
from collections.abc import Callable

from dlm_core.tasks import Example


def test_rising_order_of_the_same_numbers(drawn: Callable[[str], list[Example]]) -> None:
    lengths = {True: set(), False: set()}
    for example in drawn("sort"):
        given = example.prompt.removeprefix("sort: ").split(" ")
        answered = example.answer.split(" ")
        assert Counter(given) == Counter(answered)
        assert all(int(a) <= int(b) for a, b in zip(answered, answered[1:], strict=False))
        assert all(str(int(n)) == n and int(n) < 100 for n in given)
        lengths[all(len(n) == 1 for n in given)].add(len(given))
    assert lengths[True] >= set(range(4, 17))
    assert lengths[False] == set(range(3, 9))
