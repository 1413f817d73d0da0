"""Units of time, length, mass and volume converted.

    convert: 37 h to min    37*60 = 30*60 + 7*60 = 1800 + 420 = 2220 min
    convert: 4.7 km to m    4.7*1000 = 4700 m

A factor that is a power of ten takes numbers of one to three digits with a decimal point anywhere;
any other takes 2 to 99, split into tens and ones unless it is only one of them.
"""

from decimal import Decimal
from random import Random

from .example import Example

FACTORS = {
    ("h", "min"): 60,
    ("min", "s"): 60,
    ("days", "h"): 24,
    ("feet", "in"): 12,
    ("km", "m"): 1000,
    ("m", "cm"): 100,
    ("cm", "mm"): 10,
    ("kg", "g"): 1000,
    ("t", "kg"): 1000,
    ("l", "ml"): 1000,
}


def _decimal(rng: Random) -> Decimal:
    """One to three digits with none to two of them decimals, the last of which is not 0."""
    digits = rng.randint(1, 3)
    while True:
        number = rng.randint(1, 10**digits - 1)
        decimals = rng.randint(0, 2)
        if not decimals or number % 10:
            return Decimal(number).scaleb(-decimals)


def _plain(number: Decimal) -> str:
    """Without an exponent and without zeros that end the decimals."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def convert(rng: Random) -> Example:
    (source, target), factor = rng.choice(list(FACTORS.items()))
    if factor in (10, 100, 1000):
        number = _decimal(rng)
        steps = [f"{_plain(number)}*{factor}"]
        result = _plain(number * factor)
    else:
        number = rng.randint(2, 99)
        tens, ones = number - number % 10, number % 10
        steps = [f"{number}*{factor}"]
        if tens and ones:
            steps += [f"{tens}*{factor} + {ones}*{factor}", f"{tens * factor} + {ones * factor}"]
        result = str(number * factor)
    prompt = f"convert: {number} {source} to {target}"
    return Example("convert", prompt, " = ".join([*steps, f"{result} {target}"]))
