"""How good advice is: on cells of a record's grid that the adviser does not get to see."""

from dataclasses import asdict, dataclass
from itertools import product

from ..acceptance import Profile, forwards_of, tokens_per_cycle
from ..forward import Forward
from ..records import Record
from .evidence import Evidence, measured_in, sizes_of
from .machine import Machine
from .ranking import LATENCY, QUANTIZATIONS, Advice, advice_on


@dataclass(frozen=True)
class Withheld:
    """What is advised for a batch and a context without a row of theirs, and what would be best.

    advised_rate, best_rate: measured tokens/s of each request.
    """

    model: str
    advised: Advice
    advised_rate: float
    best: Advice
    best_rate: float

    @property
    def regret(self) -> float:
        """Share of the best rate that is lost by taking the advice."""
        return 1 - self.advised_rate / self.best_rate


def withheld_score(record: Record, profile: Profile) -> list[Withheld]:
    """Advice on every cell (batch, context) of each model, all rows of that cell left out.

    Advised are the settings whose every forward was measured in the cell; cells of fewer than two
    are passed over. Within a cell both objectives ask the same.
    """
    machine = Machine.of_record(record)
    measured = measured_in([record])
    found = []
    for cell in sorted({_cell(each.forward) for each in measured}):
        evidence = Evidence(machine, [each for each in measured if _cell(each.forward) != cell])
        for model, config in record.models.items():
            truth = {
                each.forward: each.seconds
                for each in measured
                if _cell(each.forward) == cell and sizes_of(each.config) == sizes_of(config)
            }
            dtype, rated = machine.dtype_of(config), []
            for setting, quantization in product(profile.settings, QUANTIZATIONS):
                forwards = forwards_of(setting, *cell, dtype, **asdict(quantization))
                if all(each in truth for each in forwards):
                    advice = advice_on(config, evidence, machine, setting, forwards)
                    seconds = sum(truth[each] for each in forwards)
                    rated.append((advice, tokens_per_cycle(setting) / seconds))
            if len(rated) > 1:
                advised = max(rated, key=lambda each: each[0].rates(LATENCY))
                best = max(rated, key=lambda each: each[1])
                found.append(Withheld(model, *advised, *best))
    return found


def _cell(forward: Forward) -> tuple[int, int]:
    return forward.batch, forward.context
