"""sort: the same numbers in rising order."""

from collections import Counter, defaultdict
from collections.abc import Callable

from dlm_core.tasks import Example


def test_rising_order_of_the_same_numbers(drawn: Callable[[str], list[Example]]) -> None:
    lengths: dict[frozenset, set] = defaultdict(set)
    for example in drawn("sort"):
        given = example.prompt.removeprefix("sort: ").split(" ")
        answered = example.answer.split(" ")
        assert Counter(given) == Counter(answered)
        assert all(int(a) <= int(b) for a, b in zip(answered, answered[1:], strict=False))
        assert all(str(int(n)) == n and int(n) < 100 for n in given)
        lengths[frozenset(map(len, given))].add(len(given))
    assert lengths[frozenset({1})] == set(range(3, 15))
    assert lengths[frozenset({2})] == set(range(3, 9))
    assert lengths[frozenset({1, 2})] == set(range(3, 6))
