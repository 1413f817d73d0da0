"""The picture of a training run: both losses over the steps of its three stages."""

from pathlib import Path
from statistics import fmean

from ..whole_file import replacing
from .fit import HISTORY, read_history

MODEL_POINTS, DRAFT_POINTS = 120, 15
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_loss_curve(folder: Path, ar_steps: int, path: Path) -> None:
    """Draw the histories of a run's folder into a PNG file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    model = read_history(folder / "model_fit" / HISTORY)
    lora = read_history(folder / "draft_fit" / HISTORY)
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    for loss, label, color in (("ar", "next token", BLUE), ("diffusion", "masked tokens", ORANGE)):
        left.plot(*_averaged(model, loss, MODEL_POINTS), color=color, label=label)
    left.axvline(ar_steps, color="#888888", linewidth=1, linestyle=":")
    top = left.get_xaxis_transform()
    left.text(ar_steps, 0.99, " joint loss from here", transform=top, va="top")
    left.set(title="Model", xlabel="step", ylabel="loss, nats a token", yscale="log")
    left.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.legend(frameon=False, loc="lower left")
    right.plot(*_averaged(lora, "diffusion", DRAFT_POINTS), color=ORANGE)
    right.set(title="Draft LoRA", xlabel="step")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def _averaged(history: list[dict], loss: str, points: int) -> tuple[list[float], list[float]]:
    """Steps and losses of a curve of at most so many points, each the mean of neighbours."""
    known = [(line["step"], line[loss]) for line in history if line[loss] is not None]
    size = max(1, -(-len(known) // points))
    bins = [known[i : i + size] for i in range(0, len(known), size)]
    steps = [fmean(step for step, _ in points) for points in bins]
    return steps, [fmean(nats for _, nats in points) for points in bins]
