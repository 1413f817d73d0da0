"""Shares right and tokens per forward, with their intervals, from a record."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dlm_core.tasks import LONG_TASKS

from .grid import AUTOREGRESSIVE, headline_diffusion, linear_spec
from .records import OracleDiffusion, QualityRecord, Result
from .statistics import Estimate, paired_difference, ratio, wilson

PYTHON = "python"  # the task of Python functions, reported apart


@dataclass(frozen=True)
class Score:
    """A setting over some of its examples.

    right: share of exact matches. tpf: tokens per forward; None where the prefill gave all of them.
    apart: right, less the share of AR on the same examples. same: examples whose tokens are AR's.
    Both None while AR has not been measured.
    """

    examples: int
    tokens: int
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
    tpf = ratio(tokens, _of(result.forwards, index))
    return Score(len(index), sum(tokens), wilson(sum(right), len(index)), tpf, apart, same)


def oracle_tpf(
    record: QualityRecord, oracle: OracleDiffusion, tasks: Collection[str]
) -> Estimate | None:
    index = indices(record, tasks, len(oracle.tokens))
    return ratio(_of(oracle.tokens, index), _of(oracle.forwards, index)) if index else None


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
    """Examples that every setting of the record saw; 0 without a setting."""
    return min((len(result.right) for result in record.results), default=0)


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
    """Of cycles in which a drafted position lies within the answer: how many accepted it."""

    cycles: int
    accepted: int

    @property
    def share(self) -> Estimate:
        return wilson(self.accepted, self.cycles)


def acceptance(record: QualityRecord, result: Result, tasks: Collection[str]) -> list[Accepted]:
    """How often each drafted position, from the first behind the seed on, is accepted.

    A cycle counts for the positions that the answer still has; accepted is a position if its draft
    and all before it are right.
    """
    counted = [[0, 0] for _ in range(result.setting.block_length - 1)]
    for i in indices(record, tasks, len(result.right)):
        left = result.tokens[i] - 1  # the prefill gives the first
        for emitted in result.cycles[i]:
            for position in range(min(left, len(counted))):
                counted[position][0] += 1
                # The last token that a cycle emits is the verifier's own.
                counted[position][1] += position < emitted - 1
            left -= emitted
    return [Accepted(*pair) for pair in counted if pair[0]]


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
