"""close: the answer, put behind the prompt, leaves nothing open."""

from collections.abc import Callable

from dlm_core.tasks import Example

PAIRS = ("()", "[]", "{}", "<>")


def balanced(text: str) -> bool:
    """By deleting adjacent pairs until none is left."""
    while any(pair in text for pair in PAIRS):
        for pair in PAIRS:
            text = text.replace(pair, "")
    return not text


def test_answer_balances_the_prompt(drawn: Callable[[str], list[Example]]) -> None:
    depths = set()
    for example in drawn("close"):
        given = example.prompt.removeprefix("close: ").split(" ")
        closers = example.answer.split(" ")
        assert balanced("".join(given + closers))
        assert 3 <= len(given) <= 20
        assert set(closers) <= set(")]}>")
        deepest = max(
            sum(1 if b in "([{<" else -1 for b in given[:end]) for end in range(1, len(given) + 1)
        )
        assert deepest <= 8
        depths.add(len(closers))
    assert depths == set(range(1, 9))
