"""Each task's answers, checked by a route of their own, and that prompts vary as they should."""

import json
import re
from fractions import Fraction
from itertools import islice

import pytest

from dlm_core.tasks import TASKS, Example, examples


def drawn(task: str) -> list[tuple[str, str]]:
    """Prompts, without the task's name, and answers of its first 400 training examples."""
    first: list[Example] = list(islice(examples("train", 3, {task: TASKS[task]}), 400))
    return [(example.prompt.partition(": ")[2], example.answer) for example in first]


@pytest.mark.parametrize(
    ("task", "written"),
    [
        ("add", r"(\d\+\d\+[01]=[01]\d(, |: )){2,4}\d{2,5}"),
        ("multiply", r"(\d\*[2-9]\+\d=\d\d(, |: )){2,4}\d{2,5}"),
    ],
)
def test_arithmetic_has_the_result_and_every_step(task: str, written: str) -> None:
    lengths = set()
    for prompt, answer in drawn(task):
        left, operator, right = re.fullmatch(r"(\d{2,4}) ([+*]) (\d{1,4})", prompt).groups()
        lengths.add(len(left))
        assert re.fullmatch(written, answer)
        steps, result = answer.split(": ")
        assert int(result) == eval(left + operator + right)
        digits, carry = "", "0"
        for step in steps.split(", "):
            terms, total = step.split("=")
            assert eval(terms) == int(total) and terms.endswith(f"+{carry}")
            carry, digit = total
            digits = digit + digits
        assert int(carry + digits) == int(result), "the steps alone give the result"
    assert lengths == {2, 3, 4}


def balanced(text: str) -> bool:
    """By deleting adjacent pairs until none is left."""
    pairs = ("()", "[]", "{}", "<>")
    while any(pair in text for pair in pairs):
        for pair in pairs:
            text = text.replace(pair, "")
    return not text


def test_close_leaves_nothing_open() -> None:
    depths = set()
    for prompt, answer in drawn("close"):
        given, closers = prompt.split(" "), answer.split(" ")
        assert balanced("".join(given + closers))
        assert set(closers) <= set(")]}>")
        depths.add(len(closers))
    assert depths == set(range(1, 9))


@pytest.mark.parametrize("task", ["to_json", "from_json"])
def test_text_and_json_hold_the_same_pairs(task: str) -> None:
    counts, kinds = set(), set()
    for prompt, answer in drawn(task):
        text, encoded = (prompt, answer) if task == "to_json" else (answer, prompt)
        pairs = json.loads(encoded)
        assert text == "; ".join(f"{key}={value}" for key, value in pairs.items())
        assert json.dumps(pairs) == encoded
        counts.add(len(pairs))
        kinds.update(map(type, pairs.values()))
    assert counts == {2, 3, 4, 5, 6}
    assert kinds == {int, str}


def test_sort_gives_the_same_numbers_in_rising_order() -> None:
    lengths = set()
    for prompt, answer in drawn("sort"):
        given, answered = prompt.split(" "), answer.split(" ")
        assert answered == sorted(given, key=int)
        assert all(str(int(n)) == n and int(n) < 100 for n in given)
        lengths.add(len(given))
    assert lengths == set(range(3, 15))


def test_reverse_replace_and_repeat_go_letter_by_letter() -> None:
    lengths = set()
    for letters, answer in drawn("reverse"):
        assert answer == letters[::-1]
        assert re.fullmatch(r"[a-z]( [a-z])*", letters)
        lengths.add(len(letters.split()))
    assert lengths == set(range(4, 25))

    replaced = 0
    for example in islice(examples("train", 3, {"replace": TASKS["replace"]}), 400):
        old, new, letters = re.fullmatch(
            r"replace (\w) by (\w): ([a-z](?: [a-z]){5,27})", example.prompt
        ).groups()
        assert example.answer == letters.replace(old, new)
        assert old != new and old in letters
        replaced += letters.count(old)
    assert replaced > 1000  # of 400 examples: the edit is no rare event

    for example in islice(examples("train", 3, {"repeat": TASKS["repeat"]}), 400):
        times, letters = re.fullmatch(
            r"repeat ([234]): ([a-z](?: [a-z]){2,7})", example.prompt
        ).groups()
        assert example.answer == " ".join([letters] * int(times))


@pytest.mark.parametrize("task", ["lookup", "record"])
def test_tables_are_read_by_splitting_their_text(task: str) -> None:
    for prompt, answer in drawn(task):
        table, question = prompt.split("; ")
        header, *lines = (line.split(" ") for line in table.split(" | "))
        rows = {line[0]: line for line in lines}
        assert 2 <= len(rows) == len(lines) <= 5 and len(set(header)) == len(header)
        assert all(len(cell) == 2 and cell.isdigit() for line in lines for cell in line[1:])
        what, name = question.split(" of ")
        if task == "lookup":
            assert answer == rows[name][header.index(what)]
            assert 3 <= len(header) <= 5
        else:
            assert what == "row"
            cells = [f"{column}: {cell}" for column, cell in zip(header, rows[name], strict=True)]
            assert answer == ", ".join(cells)
            assert 5 <= len(header) <= 7


# In seconds, inches, metres, grams and millilitres.
SIZE = {
    "s": 1, "min": 60, "h": 3600, "days": 86400, "in": 1, "feet": 12, "mm": Fraction(1, 1000),
    "cm": Fraction(1, 100), "m": 1, "km": 1000, "g": 1, "kg": 1000, "t": 1000000, "ml": 1,
    "l": 1000,
}  # fmt: skip


def value(expression: str) -> Fraction:
    """Of a sum of numbers and products, exactly."""
    total = Fraction(0)
    for term in expression.split(" + "):
        product = Fraction(1)
        for factor in term.split("*"):
            product *= Fraction(factor)
        total += product
    return total


def test_every_step_of_a_conversion_has_the_value_of_the_result() -> None:
    seen, splits = set(), 0
    for prompt, answer in drawn("convert"):
        number, source, target = re.fullmatch(r"(\S+) (\w+) to (\w+)", prompt).groups()
        steps, unit = answer.rsplit(" ", 1)
        assert unit == target
        expected = Fraction(number) * SIZE[source] / SIZE[target]
        assert {value(step) for step in steps.split(" = ")} == {expected}
        # As people write numbers: no exponent, no zeros after the last decimal, no bare point.
        for written in re.findall(r"[^ *+=]+", f"{number} {steps}"):
            assert re.fullmatch(r"(0|[1-9]\d*)(\.\d*[1-9])?", written), prompt
        seen.add((source, target))
        splits += " + " in steps
    assert len(seen) == 10
    assert splits > 50
