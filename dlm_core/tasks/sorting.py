"""Numbers in rising order: `sort: 5 3 9 1` gives `1 3 5 9`."""

from random import Random

from .example import Example


def sort(rng: Random) -> Example:
    """3 to 14 numbers of one digit, 3 to 8 of two, or 3 to 5 of either, each as likely."""
    one, two = (0, 9), (10, 99)
    ranges, longest = rng.choice((([one], 14), ([two], 8), ([one, two], 5)))
    numbers = [rng.randint(*rng.choice(ranges)) for _ in range(rng.randint(3, longest))]
    prompt = " ".join(map(str, numbers))
    return Example("sort", f"sort: {prompt}", " ".join(map(str, sorted(numbers))))
