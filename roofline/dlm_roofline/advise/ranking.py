"""Every way to run a model, ranked by how fast it serves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from dlm_core.config import ModelConfig

from ..acceptance import Profile, Setting
from ..forward import WEIGHTS
from ..memory import peak_memory
from ..step_time import step_times
from .machine import Machine

# Share of a device's memory that a model may take; the rest is the driver's and the allocator's.
MOST_MEMORY = 0.9

# How much more the device has to give, as a factor, for what is slower for the user to be of use:
# less than that no prediction tells apart.
FRONT_GAIN = 1.01

LATENCY, THROUGHPUT = OBJECTIVES = ("latency", "throughput")

# What the layers' projections are quantised to, and whether the cache is in float8.
QUANTIZATIONS: dict[str, tuple[str | None, bool]] = {
    (weights or "none") + "+float8-cache" * cache: (weights, cache)
    for cache in (False, True)
    for weights in (None, *WEIGHTS)
}


@dataclass(frozen=True)
class Advice:
    """A way to run a model, and what it gives.

    quantization: one of QUANTIZATIONS.
    tokens_s_user, tokens_s_device: tokens/s of each request, and of the whole batch.
    how_sure: one of `machine.CERTAINTIES`; where time is a floor, tokens/s are the most.
    bound_by: the stage predicted to take most of a cycle, and what holds it; see `StageTime`.
    memory_bytes: at the peak. fits: whether that leaves the device some room.
    front: of those that fit, none that is as fast for the user is as fast for the device, within
        FRONT_GAIN.
    """

    context: int
    setting: Setting
    quantization: str
    batch: int
    tokens_s_user: float
    tokens_s_device: float
    how_sure: str
    bound_by: str
    memory_bytes: int
    fits: bool
    front: bool = False


def advise(
    config: ModelConfig,
    machine: Machine,
    profile: Profile,
    batches: Sequence[int],
    contexts: Sequence[int],
    objective: str,
    *,
    quantizations: Sequence[str] = tuple(QUANTIZATIONS),
    min_accuracy: float = 0.0,
) -> list[Advice]:
    """All ways to run a model, context by context in the order given, the best first.

    What does not fit into the device's memory comes last in its context; a float8 cache that the
    device's ops refuse is left out. Prefill is not counted.

    Args:
        profile: how many tokens a forward gives, and the accuracy, of each setting.
        batches: requests decoded together.
        contexts: tokens in the cache of each.
        objective: "latency", most tokens/s of each request, or "throughput", of the device.
        quantizations: of QUANTIZATIONS.
        min_accuracy: settings of less are left out; above 0 those too whose accuracy is unknown.

    Raises:
        ValueError: nothing is left to rank, a batch or context is out of range, or the ceilings
            lack the model's dtype.
    """
    possible = [x for x in quantizations if machine.float8_cache or not QUANTIZATIONS[x][1]]
    if not possible:
        raise ValueError(
            f"quantization is {', '.join(quantizations)}; one must be without a float8 cache, which"
            f" the ops refuse on {machine.name}"
        )
    settings = [each for each in profile.settings if (each.accuracy or 0.0) >= min_accuracy]
    if not settings:
        best = max(each.accuracy or 0.0 for each in profile.settings)
        raise ValueError(
            f"min_accuracy is {min_accuracy:g}; profile {profile.name!r} has at most {best:g}"
        )
    most = config.max_position_embeddings - max(each.size for each in settings)
    if max(contexts) > most:
        raise ValueError(
            f"context is {max(contexts)}; it must be at most {most}, for the model's positions have"
            " to hold a block after it"
        )
    ranked = []
    for context in contexts:
        ways = product(settings, possible, batches)
        ranked += _ranked([_advice(config, machine, context, *way) for way in ways], objective)
    return ranked


def _advice(
    config: ModelConfig,
    machine: Machine,
    context: int,
    setting: Setting,
    quantization: str,
    batch: int,
) -> Advice:
    weights, float8_cache = QUANTIZATIONS[quantization]
    dtype = "float32" if machine.kind == "cpu" else config.torch_dtype  # as the bench times it
    cycle = setting.cycle(batch, context, dtype, weights=weights, float8_cache=float8_cache)
    seconds, how_sure = machine.seconds(config, cycle)
    rate = setting.tokens_per_cycle / seconds
    stages = step_times(config, cycle, machine.ceilings)
    slowest = max(stages, key=lambda name: stages[name].seconds)
    memory = peak_memory(config, cycle, context + setting.size, backend=machine.backend).total
    return Advice(
        context=context,
        setting=setting,
        quantization=quantization,
        batch=batch,
        tokens_s_user=rate,
        tokens_s_device=batch * rate,
        how_sure=how_sure,
        bound_by=f"{slowest}: {stages[slowest].held_by}",
        memory_bytes=memory,
        fits=machine.memory is None or memory <= MOST_MEMORY * machine.memory,
    )


def _ranked(found: Sequence[Advice], objective: str) -> list[Advice]:
    """The best first; then what does not fit, beginning with what nearly would."""
    most, fitting = 0.0, []
    # Of equals the first is on the front, which is quantised least.
    for each in sorted((x for x in found if x.fits), key=partial(_rates, LATENCY), reverse=True):
        front = each.tokens_s_device > FRONT_GAIN * most
        most = each.tokens_s_device if front else most
        fitting.append(replace(each, front=front))
    fitting.sort(key=partial(_rates, objective), reverse=True)
    return fitting + sorted((x for x in found if not x.fits), key=lambda x: x.memory_bytes)


def _rates(objective: str, advice: Advice) -> tuple[float, float]:
    """What the objective asks for, then the other."""
    rates = (advice.tokens_s_user, advice.tokens_s_device)
    return rates if objective == LATENCY else rates[::-1]
