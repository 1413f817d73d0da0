"""How long a forward is predicted to take on a device, stage by stage.

    stage = sum over its launches of max(bytes / bandwidth, FLOPs / rate, exps / their rate) + node

On a GPU bandwidth and rate are those that the op itself reaches at shapes of no model (`op_rates`),
where a record has them; elsewhere, and on a host, they are the ceilings. node is what one more
launch costs in a replayed graph, or on a host a call. Nothing is fitted to what is predicted. The
floor leaves out launches and takes each stage as one piece of work.
"""

from collections.abc import Collection
from dataclasses import dataclass

from dlm_core.config import ModelConfig

from .ceilings import Ceilings
from .forward import Forward, parts_of
from .step_cost import Launches, step_cost, step_launches


@dataclass(frozen=True)
class StageTime:
    """Predicted seconds of a stage.

    floor: what its compulsory cost allows.
    held_by: what takes most of it: "memory", "compute", "exponentials" or "launches".
    """

    seconds: float
    floor: float
    held_by: str


def step_times(config: ModelConfig, forward: Forward, ceilings: Ceilings) -> dict[str, StageTime]:
    """Predicted time of each stage of a forward, of a linear cycle those of both forwards together.

    Raises:
        ValueError: the ceilings lack the forward's dtype.
    """
    if forward.dtype not in ceilings.matmul:
        known = ", ".join(ceilings.matmul)
        raise ValueError(f"dtype is {forward.dtype!r}; the device's products are known in {known}")
    roof, times = ceilings.roof(forward.dtype), dict[str, StageTime]()
    for part in parts_of(forward):
        costs = step_cost(config, part)
        for stage, launches in step_launches(config, part).items():
            held = _held(launches, part.dtype, ceilings)
            floor = roof.seconds(costs[stage])
            time = StageTime(sum(held.values()), floor, max(held, key=held.get))
            times[stage] = whole([times[stage], time]) if stage in times else time
    return times


def whole(times: Collection[StageTime]) -> StageTime:
    """Of what runs one after the other, held by what holds the longest."""
    longest = max(times, key=lambda each: each.seconds)
    seconds, floor = (sum(getattr(x, name) for x in times) for name in ("seconds", "floor"))
    return StageTime(seconds, floor, longest.held_by)


def _held(launches: list[Launches], dtype: str, ceilings: Ceilings) -> dict[str, float]:
    """Seconds by what holds them."""
    roof, node = ceilings.roof(dtype), ceilings.graph_node or ceilings.launch
    held = {"launches": (node.best if node else 0.0) * sum(each.count for each in launches)}
    for op, cost, count in launches:
        over_op = ceilings.ops[op].under(roof) if op in ceilings.ops else roof
        holder = over_op.holder(cost)
        held[holder] = held.get(holder, 0.0) + count * over_op.seconds(cost)
    return held
