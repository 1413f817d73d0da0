"""What records show, in the sentences that head the page's sections: computed, never typed in.

They go by the name of the chart that shows them; "record" is of the whole record, "lead" what
stands below that. A finding that the record lacks the rows for is left out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dlm_roofline.forward import DECODE, DENOISE, STEP_NAMES
from dlm_roofline.points import panels_of, points_of
from dlm_roofline.records import BenchRecord
from dlm_roofline.step_cost import REMASK
from dlm_roofline.text import percent, three_digits, with_prefix

from ..quality.records import QualityRecord
from .player import Run

if TYPE_CHECKING:
    import pandas as pd

STEP = STEP_NAMES[DENOISE]
NEAR = 0.03  # a setting is near AR decoding if it loses at most so many of the answers

Findings = Iterator[tuple[str, str]]


def of_bench(record: BenchRecord) -> Findings:
    read = with_prefix(record.ceilings.read.best, "B/s")
    products = (
        f"{with_prefix(each.best, 'op/s' if dtype == 'int8' else 'FLOP/s')} in {dtype}"
        for dtype, each in record.ceilings.matmul.items()
    )
    yield "lead", f"Memory is read at {read} at best; products reach {', '.join(products)}."
    points = points_of(record)
    panel = None if points is None else panels_of(points).get(DENOISE)
    if panel is not None:
        steps = panel[panel.kind == "step"].sort_values("batch")
        stages = panel[(panel.kind == "stage") & (panel.name != REMASK)]
        yield from _of_stages(stages, steps.iloc[0], steps.iloc[-1])
        yield from _of_steps(points[points.kind == "step"], steps.iloc[0])


def _of_stages(stages: "pd.DataFrame", first: "pd.Series", last: "pd.Series") -> Findings:
    """first, last: denoising steps of the least and of the largest batch, both of such stages."""
    over = three_digits(first.measured_s / first.predicted_floor_s)
    took = f"{three_digits(1e3 * first.measured_s)} ms at batch {first.batch}"
    yield "record", f"A {STEP} takes {took}, {over} times its floor"
    if len(of_first := stages[stages.batch == first.batch]):
        top = of_first.loc[of_first.measured_s.idxmax()]
        name, share = top["name"], top.measured_s / first.measured_s
        verb, its = ("take", "their") if " and " in name else ("takes", "its")
        over = three_digits(top.measured_s / top.predicted_floor_s)
        of_step = f"{percent(share)} of a {STEP} at batch {first.batch}"
        yield "step", f"{name} {verb} {of_step}, {over} times {its} floor"
    if len(of_last := stages[stages.batch == last.batch].sort_values("share_of_roof")):
        low, high = (
            f"{percent(end.share_of_roof)} in {end['name']}"
            for end in (of_last.iloc[0], of_last.iloc[-1])
        )
        whole = f"{percent(last.share_of_roof)} of its roof at batch {last.batch}"
        yield "roofline", f"A {STEP} reaches {whole}: from {low} to {high}"


def _of_steps(steps: "pd.DataFrame", first: "pd.Series") -> Findings:
    """The first denoising step beside others of its batch: with another context, and AR's."""
    steps = steps[steps.batch == first.batch]
    same = steps[(steps.name == STEP) & (steps.block == first.block)].sort_values("context")
    least, most, at = same.iloc[0], same.iloc[-1], f"At batch {first.batch} a {STEP}"
    if least.context < most.context:
        over = three_digits(most.measured_s / least.measured_s)
        contexts = f"{most.context:,} tokens of context as with {least.context:,}"
        yield "context", f"{at} takes {over} times as long with {contexts}"
    for seconds in steps[(steps.forward == DECODE) & (steps.context == first.context)].measured_s:
        over, ar = three_digits(first.measured_s / seconds), STEP_NAMES[DECODE]
        yield "modes", f"{at} of {first.block} tokens takes {over} times as long as an {ar} of one"


def of_quality(record: QualityRecord, frames: Mapping[str, "pd.DataFrame"]) -> Findings:
    """frames: those of the record's charts, by their names."""
    n, tasks = record.sample.common, record.sample.tasks
    examples = f"at least {n} held-out examples of each of {len(tasks)} tasks"
    yield "lead", f"Speed that costs answers is no gain. Measured on {examples}."
    if "frontier" in frames:
        settings = frames["frontier"].sort_values("tpf")
        settings = settings[settings["mode"] != "oracle"]
        for ar in settings[settings["mode"] == "autoregressive"].right:
            near = settings[settings.right >= ar - NEAR]
            for name, fastest in (("record", near.iloc[-1]), ("frontier", settings.iloc[-1])):
                gives = f"{fastest.tpf:.1f} tokens a forward and {fastest.right:.1%} right answers"
                yield name, f"{fastest.setting} gives {gives}, AR decoding 1.0 and {ar:.1%}"


def of_runs(runs: Sequence[Run]) -> str:
    """How many of the player's prompts each mode gets right, and in how many forwards."""
    right, forwards, prompts = Counter(), Counter(), Counter(run.mode for run in runs)
    for run in runs:
        right[run.mode] += run.right
        forwards[run.mode] += run.forwards
    said = (f"{right[mode]} of {n} right in {forwards[mode]} forwards by {mode}"
            for mode, n in prompts.items())  # fmt: skip
    return "; ".join(said)
