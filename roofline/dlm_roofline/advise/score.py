"""How good advice is: on cells of a record's grid that the adviser does not get to see."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import NamedTuple

from dlm_core.config import ModelConfig

from ..acceptance import Profile, Setting, forwards_of, tokens_per_cycle
from ..forward import Forward
from ..records import Record
from .evidence import Evidence, Measured, measured_in, sizes_of
from .machine import Machine
from .ranking import LATENCY, QUANTIZATIONS, THROUGHPUT, Advice, advice_on

# Batches of a context below which there is nothing to choose among when one is withheld.
_LEAST_BATCHES = 3


class Rated(NamedTuple):
    """Advice, and what it gives as measured: the tokens/s that the objective asks for."""

    advice: Advice
    rate: float


@dataclass(frozen=True)
class Withheld:
    """What is advised when a batch and a context have no row of theirs, and what would be best.

    objective: "latency", of settings at this batch; "throughput", of settings at all of the batches
        measured behind this context.
    bare: what the cost model advises that was shown no measured forward, just ceilings.
    """

    model: str
    objective: str
    batch: int
    context: int
    advised: Rated
    best: Rated
    bare: Rated

    @property
    def regret(self) -> float:
        """Share of the best rate that is lost by taking the advice."""
        return 1 - self.advised.rate / self.best.rate

    @property
    def bare_regret(self) -> float:
        """The same of the bare cost model's advice."""
        return 1 - self.bare.rate / self.best.rate


class _Option(NamedTuple):
    """A setting, and its cycle as it was measured."""

    setting: Setting
    forwards: tuple[Forward, ...]
    seconds: float


def withheld_score(record: Record, profile: Profile) -> list[Withheld]:
    """Advice with each cell (batch, context) of each model in turn left out, by both objectives.

    To choose from are the settings whose every forward was measured; of those that run the same
    forwards just the one of most tokens, for no adviser could take another. Passed over are cells
    of a single such setting, and for throughput contexts of fewer than three batches. All times,
    those the adviser sees too, are at one pace (see `Timing.paced`), so that no setting wins by
    when it was timed.
    """
    machine = Machine.of_record(record)
    measured = [replace(each, seconds=each.paced) for each in measured_in([record])]
    cells = sorted({_cell(each.forward) for each in measured})
    bare = Evidence(machine, [])
    shown = {
        cell: Evidence(machine, [each for each in measured if _cell(each.forward) != cell])
        for cell in cells
    }
    found = []
    for model, config in record.models.items():
        options = {cell: _options(config, machine, measured, profile, cell) for cell in cells}
        of_context: dict[int, list[_Option]] = {}
        for (_, context), here in options.items():
            of_context.setdefault(context, []).extend(here)
        for cell, here in options.items():
            everywhere = of_context[cell[1]]
            enough = len({each.forwards[0].batch for each in everywhere}) >= _LEAST_BATCHES
            for objective, choice, judged in (
                (LATENCY, here, len(here) > 1),
                (THROUGHPUT, everywhere, here and enough),
            ):
                if judged:
                    advised, best = _choice(config, machine, shown[cell], choice, objective)
                    by_ceilings, _ = _choice(config, machine, bare, choice, objective)
                    found.append(Withheld(model, objective, *cell, advised, best, by_ceilings))
    return found


def _options(
    config: ModelConfig,
    machine: Machine,
    measured: Sequence[Measured],
    profile: Profile,
    cell: tuple[int, int],
) -> list[_Option]:
    """Those of a cell, one for each cycle of forwards."""
    truth = {
        each.forward: each.seconds
        for each in measured
        if _cell(each.forward) == cell and sizes_of(each.config) == sizes_of(config)
    }
    dtype, found = machine.dtype_of(config), {}
    by_tokens = sorted(profile.settings, key=tokens_per_cycle)
    for setting, quantization in product(by_tokens, QUANTIZATIONS):
        forwards = tuple(forwards_of(setting, *cell, dtype, **asdict(quantization)))
        if all(each in truth for each in forwards):
            found[forwards] = _Option(setting, forwards, sum(truth[each] for each in forwards))
    return list(found.values())


def _choice(
    config: ModelConfig,
    machine: Machine,
    evidence: Evidence,
    options: Sequence[_Option],
    objective: str,
) -> tuple[Rated, Rated]:
    """What is advised of the options, and the best as measured."""
    rated = []
    for setting, forwards, seconds in options:
        advice = advice_on(config, evidence, machine, setting, forwards)
        truth = replace(advice, seconds=seconds)
        rated.append(Rated(advice, truth.rates(objective)[0]))
    advised = max(rated, key=lambda each: each.advice.rates(objective))
    return advised, max(rated, key=lambda each: each.rate)


def _cell(forward: Forward) -> tuple[int, int]:
    return forward.batch, forward.context
