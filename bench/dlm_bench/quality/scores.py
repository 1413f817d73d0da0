"""Shares right and tokens per forward of a record's settings, with 95% intervals, as rows."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from .decode import PYTHON
from .records import Decoded, QualityRecord, Result
from .settings import AUTOREGRESSIVE, PLAIN, Setting

ALL = "all but Python"
Z = 1.959963984540054  # two-sided 95% of a normal distribution


class Estimate(NamedTuple):
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def wilson(right: int, n: int) -> Estimate:
    """A share of successes with the score interval of Wilson (1927); n is at least 1.

    Unlike the usual normal interval it stays within [0, 1] and has a width at 0 and at n successes.
    """
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding must not put the share itself outside.
    return Estimate(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate | None:
    """sum(numerators) / sum(denominators) over examples, as of tokens and forwards.

    The interval is that of the linearised ratio (Cochran 1977, chapter 6); where denominators are 1
    it is the usual one of a mean. None if the denominators sum to 0.
    """
    n, total = len(numerators), sum(denominators)
    if not total:
        return None
    value = sum(numerators) / total
    residuals = (a - value * b for a, b in zip(numerators, denominators, strict=True))
    half = Z * math.sqrt(sum(each**2 for each in residuals) * n / max(n - 1, 1)) / total
    return Estimate(value, value - half, value + half)


def score(
    record: QualityRecord, result: Result, tasks: Collection[str], n: int | None = None
) -> dict[str, float | None] | None:
    """Of the examples of `tasks` among the first n, by default all; None if there are none.

    examples: how many. right: share of exact matches. right_less_ar: that, less the share of AR
    with the same weights and cache on the same examples. same_as_ar: examples whose tokens are
    AR's. tpf: tokens per forward, without the prefill and the token that it gives, so that AR's
    is 1. tokens, forwards: all of them but the prefill's. What can't be said is None; estimates
    have their intervals beside them, see `ends`.
    """
    names = record.sample.tasks

    def of_tasks(examples: Sequence[Decoded]) -> list[Decoded]:
        return [each for i, each in enumerate(examples) if names[i % len(names)] in tasks]

    ours = of_tasks(result.examples[:n])
    if not ours:
        return None
    weights, float8_cache = result.setting.way
    ar = record.result(replace(AUTOREGRESSIVE, weights=weights, float8_cache=float8_cache))
    theirs = of_tasks(ar.examples) if ar else []
    pairs = list(zip(ours, theirs, strict=False))
    counted = [each.tokens - result.setting.seeded for each in ours]
    forwards = [each.forwards for each in ours]
    return {
        "examples": len(ours),
        **ends("right", wilson(sum(each.right for each in ours), len(ours))),
        **ends("right_less_ar", ratio([a.right - b.right for a, b in pairs], [1] * len(pairs))),
        "same_as_ar": sum(a.digest == b.digest for a, b in pairs) if ar else None,
        **ends("tpf", ratio(counted, forwards)),
        "tokens": sum(each.tokens for each in ours),
        "forwards": sum(forwards),
    }


def ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """`<name>`, `<name>_low` and `<name>_high`, to six places."""
    value, low, high = (x and round(x, 6) for x in estimate or (None,) * 3)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def exact_tasks(record: QualityRecord) -> list[str]:
    """All but the Python functions."""
    return [task for task in record.sample.tasks if task != PYTHON]


def scores(
    record: QualityRecord, groups: Mapping[str, Collection[str]], n: int | None = None
) -> list[dict[str, object]]:
    """A row for each setting and group of tasks: the setting in words, its fields, the group, its
    `score`, and ms, the wall time of decoding an example, many together.
    """
    timed = record.sample.common * max(1, len(exact_tasks(record)))
    rows = []
    for result in record.results:
        fields = {"setting": result.setting.name, **asdict(result.setting)}
        for name, tasks in groups.items():
            if found := score(record, result, tasks, n):
                ms = round(1e3 * result.seconds / timed, 2)
                rows.append(fields | {"tasks": name} | found | {"ms": ms})
    return rows


def frontier(record: QualityRecord) -> list[dict[str, object]]:
    """Rows of `scores`: every unquantised setting on the examples that all of them decode.

    on_frontier: no other gives more tokens per forward without losing answers. Last, as of mode
    "oracle", come the oracles: AR's tokens in fewer forwards.
    """
    results = [each for each in record.results if each.setting.way == PLAIN]
    if ar := record.result(AUTOREGRESSIVE):
        for oracle in record.oracles:
            pairs = zip(ar.examples, oracle.forwards, strict=False)
            examples = [each._replace(forwards=forwards) for each, forwards in pairs]
            setting = Setting("oracle", block_length=oracle.block_length)
            results.append(Result.of(setting, examples, 0.0))
    n = record.sample.common * len(record.sample.tasks)
    groups = {ALL: exact_tasks(record)}
    rows = [row for row in scores(replace(record, results=results), groups, n) if row["tpf"]]
    best = -1.0
    for row in sorted(rows, key=lambda row: (-row["tpf"], -row["right"])):
        if row["mode"] == "oracle":
            row |= {"on_frontier": False, "ms": None}
        else:
            row["on_frontier"] = row["right"] > best
            best = max(best, row["right"])
    return rows
