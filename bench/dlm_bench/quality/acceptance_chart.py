"""Which drafts are accepted: by their position in the block, and by task."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlm_roofline.style import FONT_SIZE

from .records import OracleDraft, QualityRecord, Result
from .scores import acceptance, exact_tasks, headline, indices
from .style import LOOKS, SMALL, write_title

_FEWEST = 5  # cycles that a cell of the map needs


def acceptance_chart(record: QualityRecord) -> Figure | None:
    """Curves over position, with and without the LoRA, and a map of tasks by position below.

    None if linear self-speculation has not been measured.
    """
    drafted = {
        name: result for name, result in headline(record).items() if name.startswith("linear")
    }
    if not drafted:
        return None
    tasks = [
        task
        for task in record.sample.tasks
        if any(acceptance(record, result, [task]) for result in drafted.values())
    ]
    figure = Figure(figsize=(14, 11))
    n = len(indices(record, exact_tasks(record), len(next(iter(drafted.values())).right)))
    block = record.model.block_size
    title = f"Drafts that linear self-speculation accepts, blocks of {block}"
    write_title(figure, record, title, f"{n} held-out examples, and the Python functions below")
    curves = figure.add_axes((0.07, 0.56, 0.87, 0.31))
    for name, result in drafted.items():
        _draw_curve(curves, record, name, result)
    for drafts in record.oracle_drafts:
        if drafts.block_length == block:
            _draw_any_position(curves, record, drafts)
    _dress(curves, block)
    width = 0.87 / len(drafted) - 0.06
    for i, (name, result) in enumerate(drafted.items()):
        axes = figure.add_axes((0.11 + i * (width + 0.06), 0.09, width - 0.02, 0.36))
        image = _draw_map(axes, record, name, result, tasks, labels=i == 0)
    bar = figure.colorbar(image, cax=figure.add_axes((0.94, 0.09, 0.012, 0.36)))
    bar.set_label("chance of being accepted", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _draw_curve(axes: Axes, record: QualityRecord, name: str, result: Result) -> None:
    look = LOOKS["linear_spec, LoRA" if result.setting.lora else "linear_spec"]
    found = acceptance(record, result, exact_tasks(record))
    if not found:
        return
    shares = [each.share for each in found]
    x = range(1, len(shares) + 1)
    label = f"{'with' if result.setting.lora else 'without'} the LoRA: it and all before are right"
    axes.plot(
        x, [share.value for share in shares], color=look.color, marker=look.marker, label=label
    )
    low, high = [share.low for share in shares], [share.high for share in shares]
    axes.fill_between(x, low, high, color=look.color, alpha=0.2, linewidth=0)


def _draw_any_position(axes: Axes, record: QualityRecord, drafts: OracleDraft) -> None:
    """How often each draft is right whatever stands before it."""
    look = LOOKS["linear_spec, LoRA" if drafts.lora else "linear_spec"]
    index = indices(record, exact_tasks(record), len(drafts.tokens))
    cycles = [cycle for i in index for cycle in drafts.right[i]]
    shares = []
    for position in range(drafts.block_length - 1):
        there = [cycle[position] == "1" for cycle in cycles if len(cycle) > position]
        if there:
            shares.append(sum(there) / len(there))
    label = f"{'with' if drafts.lora else 'without'} the LoRA: right by itself"
    style = {"color": look.color, "linestyle": (0, (2, 1)), "linewidth": 1.4}
    axes.plot(range(1, len(shares) + 1), shares, label=label, **style)


def _dress(axes: Axes, block: int) -> None:
    axes.set(
        xlim=(0.5, block - 0.5),
        ylim=(-0.02, 1.02),
        xlabel="drafted position behind the seed",
        ylabel="chance, 95% interval",
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.xaxis.label.set_size(FONT_SIZE)
    axes.yaxis.label.set_size(FONT_SIZE)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=SMALL, loc="best", framealpha=0.95)


def _draw_map(
    axes: Axes,
    record: QualityRecord,
    name: str,
    result: Result,
    tasks: Sequence[str],
    *,
    labels: bool,
):
    """Tasks down, positions across; empty where too few cycles got so far."""
    chances = np.full((max(len(tasks), 1), result.setting.block_length - 1), np.nan)
    for row, task in enumerate(tasks):
        for position, each in enumerate(acceptance(record, result, [task])):
            if each.cycles >= _FEWEST:
                chances[row, position] = each.share.value
    edges = (0.5, chances.shape[1] + 0.5, len(chances) - 0.5, -0.5)
    axes.set_facecolor("#eeeeee")
    image = axes.imshow(chances, vmin=0, vmax=1, cmap="viridis", aspect="auto", extent=edges)
    image.set_interpolation("nearest")
    axes.set_yticks(range(len(tasks)), tasks if labels else [""] * len(tasks))
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel("drafted position", fontsize=SMALL)
    lora = "with the LoRA" if result.setting.lora else "without the LoRA"
    axes.set_title(f"{lora}; tokens a cycle at the right", loc="left", fontsize=FONT_SIZE - 1)
    for row, task in enumerate(tasks):
        index = indices(record, [task], len(result.right))
        if cycles := sum(len(result.cycles[i]) for i in index):
            mean = sum(result.tokens[i] - 1 for i in index) / cycles
            axes.text(
                edges[1] + 0.3, row, f"{mean:.1f}", va="center", fontsize=SMALL, clip_on=False
            )
    return image
