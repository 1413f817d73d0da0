"""Addition and multiplication by one digit, with every column's step written out.

    add: 4827 + 963       7+3+0=10, 2+6+1=09, 8+9+0=17, 4+0+1=05: 5790
    multiply: 347 * 6     7*6+0=42, 4*6+4=28, 3*6+2=20: 2082

Columns go from the right. The last summand of a step is the carry of the step before, and the
column's digit is the last digit of its result, so each step needs only two digits and one carry.
Results have two digits, so that what stands at a position does not hang on the steps before it.
"""

from random import Random

from .example import Example


def _number(rng: Random) -> int:
    """Two to four digits, each length as likely."""
    digits = rng.randint(2, 4)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def add(rng: Random) -> Example:
    left, right = _number(rng), _number(rng)
    columns = max(len(str(left)), len(str(right)))
    steps, carry = [], 0
    for column in range(columns):
        a, b = left // 10**column % 10, right // 10**column % 10
        total = a + b + carry
        steps.append(f"{a}+{b}+{carry}={total:02}")
        carry = total // 10
    return Example("add", f"add: {left} + {right}", f"{', '.join(steps)}: {left + right}")


def multiply(rng: Random) -> Example:
    left, right = _number(rng), rng.randint(2, 9)
    steps, carry = [], 0
    for digit in reversed(str(left)):
        total = int(digit) * right + carry
        steps.append(f"{digit}*{right}+{carry}={total:02}")
        carry = total // 10
    return Example("multiply", f"multiply: {left} * {right}", f"{', '.join(steps)}: {left * right}")
