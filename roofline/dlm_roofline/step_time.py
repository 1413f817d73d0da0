"""How long a forward is predicted to take on a device, stage by stage.

Where the rates of our ops were measured there, at shapes of no model, a stage takes what its calls
take by them; see `op_rates` and `step_work`. Elsewhere all that is known are ceilings:

    stage = sum over its launches of max(bytes / bandwidth, FLOPs / peak, exps / their rate) + node

where node is what one more launch costs in a replayed graph. Neither is fitted to what it predicts.
The floor leaves out launches and all that our ops add, and takes each stage as one piece of work.
"""

from dataclasses import dataclass

from dlm_core.config import ModelConfig

from .ceilings import Ceilings
from .forward import Forward
from .op_rates import OpRate, shared_first
from .step_cost import ALL_REDUCE, step_cost, step_launches
from .step_work import step_work


@dataclass(frozen=True)
class StageTime:
    """Predicted seconds of a stage.

    floor: what its compulsory cost allows.
    held_by: what takes most of it: "memory", "compute", "exponentials", "launches" or "link".
    first: of the seconds those that it takes only where it comes first; see `shared_first`.
    """

    seconds: float
    floor: float
    held_by: str
    first: float = 0.0


def step_times(
    config: ModelConfig,
    forward: Forward,
    ceilings: Ceilings,
    backend: str,
    *,
    link: float | None = None,
) -> dict[str, StageTime]:
    """Predicted time of each stage of a forward.

    backend: "triton" or "torch", whose ops do the work.
    link: bytes/s that one device sends to the others; needed for more than one shard.

    Raises:
        ValueError: the ceilings lack the forward's dtype, or shards have no link.
    """
    if forward.shards > 1 and link is None:
        raise ValueError(f"link is None; {forward.shards} shards need the bandwidth between them")
    if forward.dtype not in ceilings.matmul:
        known = ", ".join(ceilings.matmul)
        raise ValueError(f"dtype is {forward.dtype!r}; the device's products are known in {known}")
    by_ops = _by_ops(config, forward, ceilings.ops, backend)
    by_ceilings = _by_ceilings(config, forward, ceilings)
    roof, times = ceilings.roof(forward.dtype), {}
    for stage, cost in step_cost(config, forward).items():
        if stage == ALL_REDUCE:
            sent, launches = cost.bytes / link, by_ceilings[stage]["launches"]
            held = "link" if sent >= launches else "launches"
            times[stage] = StageTime(sent + launches, sent, held)
            continue
        held, first = by_ops.get(stage) or (by_ceilings[stage], 0.0)
        holder = max(held, key=held.get)
        times[stage] = StageTime(sum(held.values()), roof.seconds(cost), holder, first)
    return times


def whole(times: dict[str, StageTime]) -> StageTime:
    """Of a step, whose stages run one after the other; held by what holds its longest stage.

    What any stage takes where it comes first, `first`, is taken once.
    """
    longest = max(times.values(), key=lambda stage: stage.seconds)
    firsts = [stage.first for stage in times.values()]
    seconds = sum(stage.seconds for stage in times.values()) - sum(firsts) + max(firsts)
    floor = sum(stage.floor for stage in times.values())
    return StageTime(seconds, floor, longest.held_by, max(firsts))


# The dtype of activations that the bench measures rates in.
RATES_OF = {"triton": "bfloat16", "torch": "float32"}

Held = dict[str, float]  # seconds by what holds them


def _by_ceilings(config: ModelConfig, forward: Forward, ceilings: Ceilings) -> dict[str, Held]:
    roof = ceilings.roof(forward.dtype)
    node = ceilings.graph_node.best if ceilings.graph_node else 0.0
    found: dict[str, Held] = {}
    for stage, launches in step_launches(config, forward).items():
        held = {"launches": node * sum(count for _, count in launches)}
        for cost, count in launches:
            holder = roof.holder(cost)
            held[holder] = held.get(holder, 0.0) + count * roof.seconds(cost)
        found[stage] = held
    return found


def _by_ops(
    config: ModelConfig, forward: Forward, ops: dict[str, OpRate], backend: str
) -> dict[str, tuple[Held, float]]:
    """Of the stages whose every op was measured, in the forward's dtype, and what of it they take
    where they come first.
    """
    found: dict[str, tuple[Held, float]] = {}
    if forward.dtype != RATES_OF[backend]:
        return found
    shared = shared_first(ops)
    for stage, works in step_work(config, forward, backend).items():
        if not all(work.op in ops for work in works):
            continue
        cold = [ops[name].first for name in {work.op for work in works} if ops[name].first]
        first = shared if cold else 0.0
        held = {"launches": first + sum(each - shared for each in cold)}
        for work in works:
            rate = ops[work.op]
            held["launches"] += work.calls * rate.overhead
            streams = rate.seconds(work.bytes, 0.0, backend)
            multiplies = rate.seconds(0.0, work.flops, backend)
            holder = "memory" if streams >= multiplies else "compute"
            seconds = work.calls * rate.seconds(work.bytes, work.flops, backend)
            held[holder] = held.get(holder, 0.0) + seconds
        found[stage] = held, first
    return found
