"""What both pictures look like: families differ in marker, not in hue alone."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from dlm_roofline.style import FONT_SIZE

from .records import QualityRecord

SMALL = FONT_SIZE - 2
GREY = "#777777"


@dataclass(frozen=True)
class Look:
    label: str
    color: str  # of the Okabe-Ito palette, which colour-blind readers can tell apart
    marker: str


LOOKS = {
    "autoregressive": Look("autoregressive", "#000000", "*"),
    "threshold": Look("diffusion, threshold", "#0072B2", "o"),
    "steps": Look("diffusion, steps a block", "#56B4E9", "s"),
    "rule": Look("diffusion, other rules", "#E69F00", "D"),
    "linear_spec": Look("linear self-speculation", "#009E73", "^"),
    "linear_spec, LoRA": Look("the same, LoRA drafts", "#D55E00", "v"),
    "quadratic_spec": Look("quadratic self-speculation", "#CC79A7", "P"),
}
ORACLE = Look("oracle of diffusion", GREY, "X")


def write_title(figure: Figure, record: QualityRecord, title: str, examples: str) -> None:
    """A headline, and under it what was measured on what."""
    state = "" if record.complete else " · PARTIAL RUN"
    state += " · QUICK RUN" if record.scope == "quick" else ""
    model, commit = record.model, f"{record.commit[:10]}{'+' if record.dirty else ''}"
    details = (
        f"{model.name} · {model.parameters / 1e6:.2f} M parameters · {model.dtype} · {examples}\n"
        f"{record.device.name} · {record.backend} backend ·"
        f" torch {record.versions.get('torch', '?')} · commit {commit} ·"
        f" {record.date[:10]}{state}"
    )
    inch = 1 / figure.get_figheight()
    left = 0.2 / figure.get_figwidth()
    figure.text(left, 1 - 0.15 * inch, title, va="top", fontsize=FONT_SIZE + 3, fontweight="bold")
    figure.text(left, 1 - 0.5 * inch, details, va="top", fontsize=FONT_SIZE - 1, color="#444444")
