"""add and multiply: Python computes the results, and every written step again."""

import re
from collections.abc import Callable

import pytest

from dlm_core.tasks import Example


@pytest.mark.parametrize("task", ["add", "multiply"])
def test_result_and_steps(task: str, drawn: Callable[[str], list[Example]]) -> None:
    for example in drawn(task):
        problem = re.fullmatch(rf"{task}: (\d{{2,4}}) ([+*]) (\d{{1,4}})", example.prompt)
        left, operator, right = problem.groups()
        steps, result = example.answer.split(": ")
        assert int(result) == eval(left + operator + right)
        digits, carry = "", "0"
        for step in steps.split(", "):
            terms, total = step.split("=")
            assert eval(terms) == int(total) and terms.endswith(f"+{carry}")
            carry, digit = total
            digits = digit + digits
        # The steps alone give the result.
        assert int(carry + digits) == int(result)


def test_written_as_told(drawn: Callable[[str], list[Example]]) -> None:
    answers = {e.prompt: e.answer for task in ("add", "multiply") for e in drawn(task)}
    assert all(re.fullmatch(r"(\d\+\d\+[01]=[01]\d(, |: )){2,4}\d{2,5}", answers[p])
               for p in answers if p.startswith("add"))  # fmt: skip
    assert all(re.fullmatch(r"(\d\*[2-9]\+\d=\d\d(, |: )){2,4}\d{2,5}", answers[p])
               for p in answers if p.startswith("multiply"))  # fmt: skip
    assert {len(p.split()[1]) for p in answers} == {2, 3, 4}
