"""95% intervals of shares, of ratios of sums, and of differences between paired settings.

Resampling is seeded, so the same outcomes always give the same interval.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # two-sided 95% of a normal distribution
RESAMPLES = 2000
_SEED = 20_260_101
_MOST_AT_ONCE = 4_000_000  # indices drawn at a time, 32 MB


class Estimate(NamedTuple):
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def wilson(right: int, n: int) -> Estimate:
    """A share of successes with the score interval of Wilson (1927); n is at least 1.

    Unlike the usual normal interval it stays within [0, 1] and has a width at 0 and at n successes.
    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"right is {right} of n = {n}; it must be in [0, n], and n at least 1")
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding must not put the share itself outside.
    return Estimate(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate | None:
    """sum(numerators) / sum(denominators) over examples, with its percentile bootstrap interval.

    As of tokens and forwards: the ratio of sums, so that long answers count for what they take.
    None if the denominators sum to 0.
    """
    above, below = _columns(numerators, denominators)
    return ratios(above[:, None], below[:, None])[0]


def ratios(numerators: np.ndarray, denominators: np.ndarray) -> list[Estimate | None]:
    """`ratio` of each column of two arrays [examples, columns], over the same resamples."""
    above, below = numerators.astype(float), denominators.astype(float)
    drawn = []
    for times in _resamples(len(above)):
        sums = times @ below
        drawn.append(np.divide(times @ above, sums, np.full_like(sums, np.nan), where=sums > 0))
    drawn = np.concatenate(drawn)
    found: list[Estimate | None] = []
    for column, total in enumerate(below.sum(0)):
        value = above[:, column].sum() / total if total else None
        found.append(None if value is None else _between(value, drawn[:, column]))
    return found


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> Estimate:
    """Mean of ours - theirs over the same examples, with its percentile bootstrap interval.

    Examples are drawn with both outcomes, so what makes an example hard cancels.
    """
    mine, others = _columns(ours, theirs)
    apart = mine.astype(float) - others.astype(float)
    n = len(apart)
    drawn = np.concatenate([times @ apart / n for times in _resamples(n)])
    return _between(apart.mean(), drawn)


def _columns(first: Sequence, second: Sequence) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"the two hold {len(first)} and {len(second)} examples; they must be the same ones, at"
            " least one"
        )
    return np.asarray(first), np.asarray(second)


def _resamples(n: int) -> Iterator[np.ndarray]:
    """How often each of n examples is drawn in each resample: float [some of RESAMPLES, n]."""
    random = np.random.default_rng(_SEED)
    at_once = max(1, _MOST_AT_ONCE // n)
    for done in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - done)
        places = random.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
        yield np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n).astype(float)


def _between(value: float, drawn: np.ndarray) -> Estimate:
    """`value` and the 2.5th and 97.5th percentile of what was drawn."""
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    # A product's rounding must not put the value itself outside of resamples that are all alike.
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))
