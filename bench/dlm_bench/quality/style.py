"""What both pictures look like: families differ in marker, not in hue alone."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from dlm_roofline.charts.style import FONT_SIZE

from .evaluate import Setting
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
    "threshold": Look("threshold", "#0072B2", "o"),
    "steps": Look("steps a block", "#56B4E9", "s"),
    # By a letter each, so that rules can be told apart where they are small.
    "rule llada": Look("rule llada", "#9A5B00", r"$\mathbf{L}$"),
    "rule llada2": Look("rule llada2", "#9A5B00", r"$\mathbf{2}$"),
    "rule fast_dllm": Look("rule fast_dllm", "#9A5B00", r"$\mathbf{F}$"),
    "rule sdar": Look("rule sdar", "#9A5B00", r"$\mathbf{S}$"),
    "rule entropy_bound": Look("rule entropy_bound", "#9A5B00", r"$\mathbf{E}$"),
    "rule": Look("another rule", "#9A5B00", r"$\mathbf{?}$"),
    "linear_spec": Look("linear", "#009E73", "^"),
    "linear_spec, LoRA": Look("linear, LoRA drafts", "#D55E00", "v"),
    "quadratic_spec": Look("quadratic", "#CC79A7", "P"),
}
MODES = {
    "diffusion": ["threshold", "steps", *(name for name in LOOKS if name.startswith("rule"))],
    "self-speculation": ["linear_spec", "linear_spec, LoRA", "quadratic_spec"],
    "reference": ["autoregressive"],
}
ORACLE = Look("oracle of diffusion", GREY, "X")


def family(setting: Setting) -> str:
    """Which of LOOKS a setting is drawn as."""
    if setting.rule is not None:
        return name if (name := f"rule {setting.rule}") in LOOKS else "rule"
    if setting.mode == "diffusion":
        return "steps" if setting.steps is not None else "threshold"
    return f"{setting.mode}, LoRA" if setting.lora else setting.mode


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
