"""Which drafts are accepted: by their position in the block, and by task."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlm_roofline.charts.style import FONT_SIZE

from .records import OracleDraft, QualityRecord, Result
from .scores import FEWEST, Accepted, acceptance, exact_tasks, headline, indices, right_by_itself
from .style import LOOKS, SMALL, write_title

NAME = "acceptance"  # what its files are called by, and the marks of its curves


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
    hidden = f"chances of fewer than {FEWEST} cycles are left out"
    write_title(
        figure, record, title_of(record), f"{n} held-out examples, Python functions below; {hidden}"
    )
    curves = figure.add_axes((0.07, 0.56, 0.87, 0.31))
    first = 0
    for result in drafted.values():
        count = len(_enough(acceptance(record, result, exact_tasks(record))))
        _draw_curve(curves, record, result, f"{NAME}-{first}+{count}")
        first += count
    for drafts in record.oracle_drafts:
        if drafts.block_length == block:
            _draw_by_itself(curves, record, drafts)
    _dress(curves, block)
    width = 0.87 / len(drafted) - 0.06
    for i, result in enumerate(drafted.values()):
        axes = figure.add_axes((0.11 + i * (width + 0.06), 0.09, width - 0.02, 0.36))
        image = _draw_map(axes, record, result, tasks, labels=i == 0)
    bar = figure.colorbar(image, cax=figure.add_axes((0.94, 0.09, 0.012, 0.36)))
    bar.set_label("chance of being accepted", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def title_of(record: QualityRecord) -> str:
    return f"Drafts that linear self-speculation accepts, blocks of {record.model.block_size}"


def curve_lines(record: QualityRecord) -> list[dict]:
    """What the curves of accepted drafts show, a line a mark: for programs, and for tooltips."""
    return [
        {"drafts": "with the LoRA" if result.setting.lora else "without the LoRA"}
        | {"position": position, "cycles": each.cycles, "accepted": each.share.value}
        | {"accepted_low": each.share.low, "accepted_high": each.share.high}
        for name, result in headline(record).items()
        if name.startswith("linear")
        for position, each in _enough(acceptance(record, result, exact_tasks(record)))
    ]


def _enough(found: Sequence[Accepted]) -> list[tuple[int, Accepted]]:
    """Positions that enough cycles reached, counted from 1."""
    return [(x, each) for x, each in enumerate(found, start=1) if each.cycles >= FEWEST]


def _draw_curve(axes: Axes, record: QualityRecord, result: Result, marks: str) -> None:
    """marks: id of the line; the ids of its marks are `<name>-<first>` and so on."""
    found = acceptance(record, result, exact_tasks(record))
    n = len(indices(record, exact_tasks(record), len(result.right)))
    lora = bool(result.setting.lora)
    _draw_chances(axes, found, lora, f"it and all before are right, {n} examples", marks=marks)


def _draw_by_itself(axes: Axes, record: QualityRecord, drafts: OracleDraft) -> None:
    """How often each draft is right whatever stands before it."""
    found = right_by_itself(record, drafts, exact_tasks(record))
    n = len(indices(record, exact_tasks(record), len(drafts.tokens)))
    _draw_chances(axes, found, drafts.lora, f"right by itself, {n} examples")


def _draw_chances(
    axes: Axes, found: Sequence[Accepted], lora: bool, what: str, *, marks: str | None = None
) -> None:
    """A curve with its band over the positions of enough cycles, and from how many they come."""
    shown = _enough(found)
    if not shown:
        return
    look = LOOKS["linear_spec, LoRA" if lora else "linear_spec"]
    xs = [x for x, _ in shown]
    cycles = [each.cycles for _, each in shown]
    label = f"{'with' if lora else 'without'} the LoRA: {what}, {cycles[0]} to {cycles[-1]} cycles"
    style = {"linestyle": (0, (2, 1)), "linewidth": 1.4}
    if marks is not None:
        style = {"marker": look.marker, "gid": marks}
    axes.plot(xs, [each.share.value for _, each in shown], color=look.color, label=label, **style)
    low, high = ([each.share[end] for _, each in shown] for end in (1, 2))
    axes.fill_between(
        xs, low, high, color=look.color, alpha=0.1 if marks is None else 0.2, linewidth=0
    )


def _dress(axes: Axes, block: int) -> None:
    axes.set(
        xlim=(0.5, block - 0.5),
        ylim=(-0.02, 1.02),
        xlabel="drafted position behind the seed",
        ylabel="chance, 95% interval over examples",
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
    result: Result,
    tasks: Sequence[str],
    *,
    labels: bool,
):
    """Tasks down, positions across; empty where too few cycles got so far."""
    chances = np.full((max(len(tasks), 1), result.setting.block_length - 1), np.nan)
    for row, task in enumerate(tasks):
        for position, each in enumerate(acceptance(record, result, [task])):
            if each.cycles >= FEWEST:
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
