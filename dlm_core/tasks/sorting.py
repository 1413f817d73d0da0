"""Numbers in rising order: `sort: 5 3 9 1` gives `1 3 5 9`."""

from random import Random

from .example import Example


def sort(rng: Random) -> Example:
    """Half the examples are 4 to 16 digits, the others 3 to 8 numbers of one or two digits."""
    if rng.random() < 0.5:
        numbers = [rng.randint(0, 9) for _ in range(rng.randint(4, 16))]
    else:
        ranges = ((0, 9), (10, 99))
        numbers = [rng.randint(*rng.choice(ranges)) for _ in range(rng.randint(3, 8))]
    prompt = " ".join(map(str, numbers))
    return Example("sort", f"sort: {prompt}", " ".join(map(str, sorted(numbers))))
