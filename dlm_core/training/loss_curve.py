"""The picture of a training run: both losses over the steps of its three stages."""

from pathlib import Path
from statistics import fmean

from .fit import HISTORY, read_history

BIN = 20  # steps that one point of a curve averages
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_loss_curve(folder: Path, ar_steps: int, path: Path) -> None:
    """Draw the histories of a run's folder into a PNG or SVG file."""
    from matplotlib.figure import Figure

    model = read_history(folder / "model_fit" / HISTORY)
    lora = read_history(folder / "draft_fit" / HISTORY)
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    for loss, label, color in (("ar", "next token", BLUE), ("diffusion", "masked tokens", ORANGE)):
        left.plot(*_averaged(model, loss), color=color, label=label)
    left.axvline(ar_steps, color="#888888", linewidth=1, linestyle=":")
    left.text(
        ar_steps, 0.99, " joint loss from here", transform=left.get_xaxis_transform(), va="top"
    )
    left.set(title="Model", xlabel="step", ylabel="loss, nats a token", yscale="log")
    left.legend(frameon=False, loc="lower left")
    right.plot(*_averaged(lora, "diffusion"), color=ORANGE)
    right.set(title="Draft LoRA", xlabel="step", yscale="log")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    figure.savefig(path, dpi=120)


def _averaged(history: list[dict], loss: str) -> tuple[list[float], list[float]]:
    """Steps and losses, each the mean of BIN neighbours."""
    known = [(line["step"], line[loss]) for line in history if line[loss] is not None]
    bins = [known[i : i + BIN] for i in range(0, len(known), BIN)]
    return [fmean(step for step, _ in b) for b in bins], [
        fmean(nats for _, nats in b) for b in bins
    ]
