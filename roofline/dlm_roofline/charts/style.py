"""What all pictures look like: marks differ in shape, line and hatch, not in hue alone."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from ..forward import STEP_NAMES
from ..records import Record
from ..step_cost import ALL_REDUCE, ATTENTION, EMBEDDING, HEAD, PROJECTIONS, REMASK

FONT_SIZE = 12  # points, the smallest of a figure 10 inches wide


@dataclass(frozen=True)
class Look:
    """short: a name that fits beside a mark."""

    color: str  # of the Okabe-Ito palette, which colour-blind readers can tell apart
    marker: str
    hatch: str
    short: str


LOOKS = {
    EMBEDDING: Look("#56B4E9", "s", "///", "embedding, norms"),
    PROJECTIONS: Look("#0072B2", "D", "", "projections, MLP"),
    ATTENTION: Look("#E69F00", "^", "...", "attention"),
    HEAD: Look("#D55E00", "v", "xx", "LM head"),
    REMASK: Look("#009E73", "P", "++", "remask"),
    ALL_REDUCE: Look("#CC79A7", "X", "\\\\", "all-reduce"),
    **{name: Look("#000000", "o", "", "whole step") for name in STEP_NAMES.values()},
}


def write_title(figure: Figure, record: Record, title: str, *subject: str) -> None:
    """A headline, under it what it is about (model, dtype, context ...) and how it was measured."""
    state = "" if record.complete else " · INCOMPLETE RUN"
    details = (
        f"{' · '.join((*subject, record.device.label))}\n"
        f"{record.backend} backend · torch {record.versions.get('torch', '?')}"
        f" · {caches_of(record)} caches"
        f" · commit {record.commit[:10]}{'+' if record.dirty else ''} · {record.date[:10]}{state}"
    )
    inch = 1 / figure.get_figheight()
    figure.text(0.02, 1 - 0.15 * inch, title, va="top", fontsize=FONT_SIZE + 3, fontweight="bold")
    figure.text(0.02, 1 - 0.5 * inch, details, va="top", fontsize=FONT_SIZE, color="#444444")


def caches_of(record: Record) -> str:
    """Whether all that was timed found its caches cold."""
    return "cold" if all(row.timing.cold for row in record.rows) else "some warm"
