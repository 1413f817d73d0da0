"""What both pictures look like: stages differ in marker and hatch, not in hue alone."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from .points import Subject
from .step_cost import ATTENTION, DENOISING_STEP, EMBEDDING, HEAD, PROJECTIONS, REMASK

FONT_SIZE = 12


@dataclass(frozen=True)
class Look:
    color: str  # of the Okabe-Ito palette, which colour-blind readers can tell apart
    marker: str
    hatch: str


LOOKS = {
    EMBEDDING: Look("#56B4E9", "s", "///"),
    PROJECTIONS: Look("#0072B2", "D", ""),
    ATTENTION: Look("#E69F00", "^", "..."),
    HEAD: Look("#D55E00", "v", "xx"),
    REMASK: Look("#009E73", "P", "++"),
    DENOISING_STEP: Look("#000000", "o", ""),
}


def write_title(figure: Figure, subject: Subject, title: str) -> None:
    """A headline, and under it what was measured on what."""
    record = subject.record
    caches = "cold caches" if all(row.timing.cold for row in record.rows) else "some caches warm"
    state = "" if record.complete else " · INCOMPLETE RUN"
    details = (
        f"{subject.model} · {subject.dtype} · context {subject.context} · {record.device.name}\n"
        f"{record.backend} backend · torch {record.versions.get('torch', '?')} · {caches} ·"
        f" commit {record.commit[:10]}{'+' if record.dirty else ''} · {record.date[:10]}{state}"
    )
    inch = 1 / figure.get_figheight()
    figure.text(0.02, 1 - 0.15 * inch, title, va="top", fontsize=FONT_SIZE + 3, fontweight="bold")
    figure.text(0.02, 1 - 0.5 * inch, details, va="top", fontsize=FONT_SIZE - 1, color="#444444")
