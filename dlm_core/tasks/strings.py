"""Edits of a string of single letters.

reverse: k q a z                z a q k
replace a by x: b a n a n a     b x n x n x
repeat 3: a b c                 a b c a b c a b c
"""

from random import Random
from string import ascii_lowercase

from .example import Example


def reverse(rng: Random) -> Example:
    """4 to 24 letters."""
    letters = rng.choices(ascii_lowercase, k=rng.randint(4, 24))
    return Example("reverse", f"reverse: {' '.join(letters)}", " ".join(reversed(letters)))


def replace(rng: Random) -> Example:
    """6 to 28 letters out of 3 to 6, so that the replaced one, which always occurs, recurs."""
    alphabet = rng.sample(ascii_lowercase, rng.randint(3, 6))
    letters = rng.choices(alphabet, k=rng.randint(6, 28))
    old = rng.choice(letters)
    new = rng.choice([letter for letter in ascii_lowercase if letter != old])
    edited = " ".join(new if letter == old else letter for letter in letters)
    return Example("replace", f"replace {old} by {new}: {' '.join(letters)}", edited)


def repeat(rng: Random) -> Example:
    """3 to 8 letters, 2 to 4 times."""
    letters = rng.choices(ascii_lowercase, k=rng.randint(3, 8))
    times = rng.randint(2, 4)
    return Example("repeat", f"repeat {times}: {' '.join(letters)}", " ".join(letters * times))
