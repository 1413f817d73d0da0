"""The brackets that are still open, closed from the inside out: `close: ( [ ] {` gives `} )`."""

from random import Random

from .example import Example

CLOSER = {"(": ")", "[": "]", "{": "}", "<": ">"}
MAX_DEPTH = 8


def close(rng: Random) -> Example:
    """3 to 20 brackets of four kinds, at most 8 deep, at least one of them still open."""
    length = rng.randint(3, 20)
    opening = rng.uniform(0.4, 0.9)  # drawn for each example, so that shallow and deep ones occur
    brackets: list[str] = []
    closers: list[str] = []
    for position in range(length):
        last = position == length - 1
        must_open = not closers or (last and len(closers) == 1)
        if must_open or (len(closers) < MAX_DEPTH and rng.random() < opening):
            bracket = rng.choice("([{<")
            brackets.append(bracket)
            closers.append(CLOSER[bracket])
        else:
            brackets.append(closers.pop())
    return Example("close", f"close: {' '.join(brackets)}", " ".join(reversed(closers)))
