"""Every setting that could be run, ranked by how fast it serves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

from dlm_core.config import ModelConfig

from ..acceptance import Profile, Setting, forwards_of, tokens_per_cycle
from ..forward import WEIGHTS, Forward
from ..memory import Memory, peak_memory
from ..records import Record
from .evidence import CERTAINTIES, Evidence, measured_in
from .machine import Machine

# Share of a device's memory that a model may take; the rest is the driver's and the allocator's.
MOST_MEMORY = 0.9

# How much more the device has to give, as a factor, for what is slower for the user to be of use:
# less than that no prediction tells apart.
FRONT_GAIN = 1.01

LATENCY, THROUGHPUT = OBJECTIVES = ("latency", "throughput")

_FLOAT8_CACHE = "+float8-cache"


@dataclass(frozen=True)
class Quantization:
    """weights: what the layers' projections are quantised to, or None. float8_cache: as Forward."""

    weights: str | None = None
    float8_cache: bool = False

    @property
    def label(self) -> str:
        return (self.weights or "none") + (_FLOAT8_CACHE if self.float8_cache else "")


QUANTIZATIONS = tuple(
    Quantization(weights, cache) for cache in (False, True) for weights in (None, *WEIGHTS)
)


@dataclass(frozen=True)
class Advice:
    """A way to run a model, and what it gives.

    forwards: of one cycle.
    seconds: of a cycle of the batch, which may take several forwards.
    memory: at the peak of the forward that needs most.
    fits: whether that leaves the device some room.
    stage, held_by: what is predicted to take most of a cycle, and what holds it; see `StageTime`.
    certainty: one of CERTAINTIES, that of the least sure forward of a cycle.
    front: of those that fit, none that is as fast for the user is as fast for the device, within
        FRONT_GAIN.
    """

    setting: Setting
    forwards: tuple[Forward, ...]
    seconds: float
    memory: Memory
    fits: bool
    stage: str
    held_by: str
    certainty: str
    front: bool = False

    @property
    def batch(self) -> int:
        return self.forwards[0].batch

    @property
    def context(self) -> int:
        return self.forwards[0].context

    @property
    def quantization(self) -> Quantization:
        return Quantization(self.forwards[0].weights, self.forwards[0].float8_cache)

    @property
    def tokens_per_user(self) -> float:
        """Tokens/s of each request."""
        return tokens_per_cycle(self.setting) / self.seconds

    @property
    def tokens_per_device(self) -> float:
        """Tokens/s of the whole batch."""
        return self.batch * self.tokens_per_user

    def rates(self, objective: str) -> tuple[float, float]:
        """Tokens/s by which advice is ranked: what the objective asks for, then the other."""
        rates = (self.tokens_per_user, self.tokens_per_device)
        return rates if objective == LATENCY else rates[::-1]


def advise(
    config: ModelConfig,
    machine: Machine,
    records: Sequence[Record],
    profile: Profile,
    batches: Sequence[int],
    contexts: Sequence[int],
    objective: str,
    *,
    quantizations: Sequence[Quantization] = QUANTIZATIONS,
    min_accuracy: float | None = None,
) -> list[Advice]:
    """All ways to run a model, context by context in the order given, the best first.

    What does not fit into the device's memory comes last in its context; a float8 cache that the
    device's ops refuse is left out. Prefill is not counted.

    Args:
        records: of the machine, the newest first, as `machine_of` gives them.
        profile: how many tokens a forward gives, and the accuracy, of each setting.
        batches: requests decoded together.
        contexts: tokens in the cache of each.
        objective: "latency", most tokens/s of each request, or "throughput", of the device.
        min_accuracy: settings of less, or of an accuracy nobody states, are left out.

    Raises:
        ValueError: an argument is empty or unknown, the model has no room for a context and a
            block, only float8 caches are asked for where none can be, or the ceilings lack the
            model's dtype.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}")
    for name, given in (
        ("batches", batches), ("contexts", contexts), ("quantizations", quantizations)
    ):  # fmt: skip
        if not given:
            raise ValueError(f"{name} is empty; it must hold at least one")
    possible = [each for each in quantizations if machine.float8_cache or not each.float8_cache]
    if not possible:
        raise ValueError(
            f"quantizations is {', '.join(each.label for each in quantizations)}; one must be"
            f" without a float8 cache, which the ops refuse on {machine.name}"
        )
    settings = _accurate(profile, min_accuracy)
    room, longest = config.max_position_embeddings, max(settings, key=lambda each: each.size)
    for context in contexts:
        if context + longest.size > room:
            raise ValueError(
                f"context is {context}; it must be at most {room - longest.size}, for the model has"
                f" {room} positions and {longest.name} takes {longest.size} behind it"
            )
    evidence, dtype = Evidence(machine, measured_in(records)), machine.dtype_of(config)
    ranked = []
    for context in contexts:
        found = []
        for setting, quantization, batch in product(settings, possible, batches):
            forwards = forwards_of(setting, batch, context, dtype, **asdict(quantization))
            found.append(advice_on(config, evidence, machine, setting, forwards))
        ranked += _ranked(found, objective)
    return ranked


def advice_on(
    config: ModelConfig,
    evidence: Evidence,
    machine: Machine,
    setting: Setting,
    forwards: Sequence[Forward],
) -> Advice:
    """What a setting gives whose cycle is these forwards."""
    estimates = [evidence.estimate(config, forward) for forward in forwards]
    stages = [stage for each in estimates for stage in each.stages.items()]
    taken: dict[str, float] = {}
    for name, time in stages:
        taken[name] = taken.get(name, 0.0) + time.seconds
    slowest = max(taken, key=taken.get)
    longest = max((time for name, time in stages if name == slowest), key=lambda t: t.seconds)
    memory = max(
        (
            peak_memory(config, each, each.context + setting.size, backend=machine.backend)
            for each in forwards
        ),
        key=lambda each: each.total,
    )
    return Advice(
        setting,
        tuple(forwards),
        seconds=sum(each.seconds for each in estimates),
        memory=memory,
        fits=machine.memory is None or memory.total <= MOST_MEMORY * machine.memory,
        stage=slowest,
        held_by=longest.held_by,
        certainty=max((each.certainty for each in estimates), key=CERTAINTIES.index),
    )


def _accurate(profile: Profile, least: float | None) -> list[Setting]:
    """The settings of a profile that are right often enough."""
    if least is None:
        return list(profile.settings)
    known = [each for each in profile.settings if each.accuracy is not None]
    accurate = [each for each in known if each.accuracy >= least]
    if not accurate:
        best = max((each.accuracy for each in known), default=None)
        raise ValueError(
            f"min_accuracy is {least:g}; it must be at most the best of profile {profile.name!r},"
            f" {'which states none' if best is None else f'{best:g}'}"
        )
    return accurate


def _ranked(found: Sequence[Advice], objective: str) -> list[Advice]:
    """The best first; then what does not fit, beginning with what nearly would."""
    fitting = [each for each in found if each.fits]
    # Of equals the first is on the front, which is quantised least.
    most, front = 0.0, set()
    for each in sorted(fitting, key=lambda each: each.rates(LATENCY), reverse=True):
        if each.tokens_per_device > FRONT_GAIN * most:
            most = each.tokens_per_device
            front.add(id(each))
    fitting.sort(key=lambda each: each.rates(objective), reverse=True)
    too_big = [each for each in found if not each.fits]
    too_big.sort(key=lambda each: each.memory.total)
    return [replace(each, front=id(each) in front) for each in fitting] + too_big
