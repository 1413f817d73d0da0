"""Shares right and tokens per forward, with their intervals, from a record."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from dlm_core.tasks import LONG_TASKS

from .grid import AUTOREGRESSIVE, headline_diffusion, linear_spec
from .records import OracleDiffusion, OracleDraft, QualityRecord, Result
from .statistics import Estimate, paired_difference, ratio, ratios, wilson

PYTHON = "python"  # the task of Python functions, reported apart
NEAR = 0.03  # a setting is near AR if it loses at most so much of the share right
FEWEST = 30  # cycles that a chance needs to be shown


@dataclass(frozen=True)
class Score:
    """A setting over some of its examples.

    right: share of exact matches.
    tokens: all that were generated. counted: those that the prefill did not give.
    tpf: counted tokens per forward but the prefill's, so that AR's is 1; None without a forward.
    apart: right, less the share of AR on the same examples. same: examples whose tokens are AR's.
    Both None while AR has not been measured.
    """

    examples: int
    tokens: int
    counted: int
    forwards: int
    right: Estimate
    tpf: Estimate | None
    apart: Estimate | None
    same: int | None


def score(record: QualityRecord, result: Result, tasks: Collection[str], n: int) -> Score | None:
    """Of the examples of `tasks` among the first n; None if there are none."""
    index = indices(record, tasks, min(n, len(result.right)))
    if not index:
        return None
    ar = record.result(AUTOREGRESSIVE)
    right = _of(result.right, index)
    apart = same = None
    if ar is not None:
        apart = paired_difference(right, _of(ar.right, index))
        pairs = zip(_of(result.digests, index), _of(ar.digests, index), strict=True)
        same = sum(ours == theirs for ours, theirs in pairs)
    tokens = _of(result.tokens, index)
    forwards = _of(result.forwards, index)
    counted = [n - result.setting.seeded for n in tokens]
    return Score(
        len(index),
        sum(tokens),
        sum(counted),
        sum(forwards),
        wilson(sum(right), len(index)),
        ratio(counted, forwards),
        apart,
        same,
    )


def oracle_tpf(
    record: QualityRecord,
    oracle: OracleDiffusion,
    tasks: Collection[str],
    n: int,
    *,
    forced_forwards: bool = False,
) -> Estimate | None:
    """Tokens but the prefill's per forward, over the examples of `tasks` among the first n.

    forced_forwards: count a forward more for each forced step, which would give its token.
    """
    index = indices(record, tasks, min(n, len(oracle.tokens)))
    if not index:
        return None
    forwards = [oracle.forwards[i] + forced_forwards * oracle.forced[i] for i in index]
    return ratio([oracle.tokens[i] - 1 for i in index], forwards)


def fastest_near_ar(
    record: QualityRecord, block_length: int, n: int
) -> tuple[Result, Score] | None:
    """The diffusion setting at a block length of most tokens per forward within NEAR of AR.

    Where none is so near, the one that loses least. Only settings of more tokens per forward than
    AR's 1 count. Over the first n examples; None if there is no such setting, or no AR.
    """
    found = [
        (result, score(record, result, exact_tasks(record), n))
        for result in record.results
        if result.setting.mode == "diffusion" and result.setting.block_length == block_length
    ]
    compared = [
        (result, each)
        for result, each in found
        if each and each.apart and each.tpf and each.tpf.value > 1
    ]
    if near := [pair for pair in compared if pair[1].apart.value >= -NEAR]:
        return max(near, key=lambda pair: pair[1].tpf.value)
    return max(compared, key=lambda pair: (pair[1].apart.value, pair[1].tpf.value), default=None)


def indices(record: QualityRecord, tasks: Collection[str], n: int) -> list[int]:
    """Those of the first n examples that are of `tasks`."""
    names = record.sample.tasks
    return [i for i in range(n) if names[i % len(names)] in tasks]


def exact_tasks(record: QualityRecord) -> list[str]:
    """All but the Python functions."""
    return [task for task in record.sample.tasks if task != PYTHON]


def long_tasks(record: QualityRecord) -> list[str]:
    """Of those the ones whose answers are long."""
    return [task for task in exact_tasks(record) if task in LONG_TASKS]


def common_length(record: QualityRecord) -> int:
    """Examples that every setting and oracle of the record saw; 0 without a setting."""
    oracles = (*record.oracle_diffusion, *record.oracle_drafts) if record.results else ()
    lengths = [len(result.right) for result in record.results]
    return min([*lengths, *(len(oracle.tokens) for oracle in oracles)], default=0)


def headline(record: QualityRecord) -> dict[str, Result]:
    """The headline settings that were measured, by their short names."""
    block = record.model.block_size
    settings = {
        "AR": AUTOREGRESSIVE,
        "diffusion": headline_diffusion(block),
        "linear": linear_spec(block, lora=False),
        "linear, LoRA": linear_spec(block, lora=True),
    }
    found = {name: record.result(setting) for name, setting in settings.items()}
    return {name: result for name, result in found.items() if result is not None}


@dataclass(frozen=True)
class Accepted:
    """How often a drafted position was right in cycles in which it lies within the answer.

    share: with an interval over examples, for the cycles of one answer depend on each other.
    """

    cycles: int
    accepted: int
    share: Estimate


def acceptance(record: QualityRecord, result: Result, tasks: Collection[str]) -> list[Accepted]:
    """How often each drafted position, from the first behind the seed on, is accepted.

    A cycle counts for the positions that the answer still has; accepted is a position if its draft
    and all before it are right.
    """
    answers = []
    for i in indices(record, tasks, len(result.right)):
        left = result.tokens[i] - 1  # the prefill gives the first
        cycles = []
        for emitted in result.cycles[i]:
            # The last token that a cycle emits is the verifier's own.
            cycles.append([position < emitted - 1 for position in range(left)])
            left -= emitted
        answers.append(cycles)
    return _by_position(answers, result.setting.block_length - 1)


def right_by_itself(
    record: QualityRecord, drafts: OracleDraft, tasks: Collection[str]
) -> list[Accepted]:
    """As `acceptance`, but how often each draft is right whatever stands before it."""
    answers = [
        [[flag == "1" for flag in cycle] for cycle in drafts.right[i]]
        for i in indices(record, tasks, len(drafts.tokens))
    ]
    return _by_position(answers, drafts.block_length - 1)


def _by_position(answers: Sequence[Sequence[Sequence[bool]]], positions: int) -> list[Accepted]:
    """Of each answer's cycles, flags for the positions that count; as far as there are any."""
    if not answers:
        return []
    seen, right = np.zeros((2, len(answers), positions), dtype=int)
    for row, cycles in enumerate(answers):
        for flags in cycles:
            flags = flags[:positions]
            seen[row, : len(flags)] += 1
            right[row, : len(flags)] += flags
    totals = zip(seen.sum(0).tolist(), right.sum(0).tolist(), ratios(right, seen), strict=True)
    return [Accepted(*each) for each in totals if each[0]]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in x without losing in y, x rising."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    best, kept = float("-inf"), []
    for i in order:
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept[::-1]


def _of(column: Sequence, index: Sequence[int]) -> list:
    return [column[i] for i in index]
