"""Every setting as a point, share right over tokens per forward, and which no other beats."""

from dataclasses import dataclass

from .evaluate import Setting
from .grid import AUTOREGRESSIVE
from .records import QualityRecord, Result
from .scores import Score, common_length, exact_tasks, indices, pareto, score


@dataclass(frozen=True)
class Point:
    """ms: wall time of decoding an example, many together; see `milliseconds`."""

    setting: Setting
    score: Score
    ms: float

    @property
    def x(self) -> float:
        return self.score.tpf.value

    @property
    def y(self) -> float:
        return self.score.right.value

    @property
    def is_ar(self) -> bool:
        return self.setting == AUTOREGRESSIVE


def points(record: QualityRecord) -> list[Point]:
    """Every setting on the examples that all of them saw."""
    n, tasks = common_length(record), exact_tasks(record)
    found = ((result, score(record, result, tasks, n)) for result in record.results)
    return [
        Point(result.setting, each, milliseconds(record, result))
        for result, each in found
        if each and each.tpf
    ]


def frontier(shown: list[Point]) -> list[Point]:
    """Those that no other beats in tokens per forward without losing answers, by rising x."""
    return [shown[i] for i in pareto([(point.x, point.y) for point in shown])]


def milliseconds(record: QualityRecord, result: Result) -> float:
    """Wall time an example, over those but the Python functions that every setting decodes."""
    n = record.sample.rest_per_task * len(record.sample.tasks)
    return 1e3 * result.seconds_of_rest / max(1, len(indices(record, exact_tasks(record), n)))
