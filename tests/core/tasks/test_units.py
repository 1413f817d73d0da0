"""convert: all that is written between equals signs is equal, and the factor is the right one."""

import re
from collections.abc import Callable
from fractions import Fraction

from dlm_core.tasks import Example

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


def test_every_step_has_the_value_of_the_result(drawn: Callable[[str], list[Example]]) -> None:
    seen, splits = set(), 0
    for example in drawn("convert"):
        number, source, target = re.fullmatch(
            r"convert: (\S+) (\w+) to (\w+)", example.prompt
        ).groups()
        steps, unit = example.answer.rsplit(" ", 1)
        assert unit == target
        assert {value(step) for step in steps.split(" = ")} == {
            Fraction(number) * SIZE[source] / SIZE[target]
        }
        # As people write numbers: no exponent, no zeros after the last decimal, no bare point.
        for written in re.findall(r"[^ *+=]+", f"{number} {steps}"):
            assert re.fullmatch(r"(0|[1-9]\d*)(\.\d*[1-9])?", written), example
        seen.add((source, target))
        splits += " + " in steps
    assert len(seen) == 10
    assert splits > 50
