"""What each mode would give over batch: tokens per second, and the time to the first token.

A product: a record has the times of a model's forwards, a profile how many tokens a forward gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dlm_core.config import ModelConfig

from ..acceptance import MODES, Profile, Setting
from ..forward import Forward, parts_of
from ..points import forward_of, subject_of
from ..records import BenchRecord
from ..step_time import step_times, whole
from ..text import percent, three_digits
from .chart import Chart, Marks
from .style import DARK, plain_numbers, stacked, styled, write_title

NAME = "modes"
TITLE = "What each mode would give, and how soon"
ABOUT = (
    "Which mode gives most tokens a second to all requests and to each, and how long does a request"
    " wait from the end of the prefill to its first tokens? It is a product of forwards' times and"
    " another measurement's tokens a forward, itself not measured; hollow marks rest on predicted"
    " times."
)
NEAR = 0.03  # a setting is near autoregressive decoding if it loses at most so much of the answers

_PANEL, _WORDS = 1.85, 2.4  # inches
_SHOWN = {
    "tokens_per_s": "tokens/s of all requests",
    "tokens_per_s_a_user": "tokens/s of each request",
    "first_tokens_ms": "ms from the end of the prefill to the first tokens",
}
# By MODES.
_LOOKS = (
    ("#000000", "o", "-"),
    ("#0072B2", "s", (0, (5, 1.5))),
    ("#D55E00", "^", (0, (5, 1.5, 1, 1.5))),
    ("#009E73", "D", (0, (1.2, 1.2))),
)


@dataclass(frozen=True)
class _Times:
    """Seconds of one model's forwards: measured ones, and predicted ones of all others."""

    record: BenchRecord
    config: ModelConfig
    like: Forward
    measured: dict[Forward, float]

    def cycle(self, setting: Setting, batch: int) -> dict[str, object]:
        """One cycle of a setting: a row of the chart."""
        few_bits = {"weights": self.like.weights, "float8_cache": self.like.float8_cache}
        cycle = setting.cycle(batch, self.like.context, self.like.dtype, **few_bits)
        parts = [cycle] if cycle in self.measured else parts_of(cycle)
        if all(part in self.measured for part in parts):
            seconds, times = sum(self.measured[part] for part in parts), "measured"
        else:
            stages = step_times(self.config, cycle, self.record.ceilings)
            seconds, times = whole(stages.values()).seconds, "predicted"
        rate = setting.tokens_per_cycle / seconds
        return {
            **asdict(setting),
            "context": self.like.context,
            "batch": batch,
            "times": times,
            "tokens_per_s": batch * rate,
            "tokens_per_s_a_user": rate,
            "first_tokens_ms": 1e3 * seconds,
        }


@styled
def modes_chart(record: BenchRecord, points: pd.DataFrame, profile: Profile) -> Chart:
    """A panel a figure of _SHOWN, in each a line a mode, over the batches whose forwards were timed
    at the commonest context.

    A line is of one setting: of those that lose at most 3 points of autoregressive decoding's
    answers the fastest for one request, measured ones before predicted ones.
    """
    steps = points[points.kind == "step"]
    steps = steps[steps.context.isin(steps.context.mode()[:1])]
    measured = {forward_of(step): step["measured_s"] for step in steps.to_dict("records")}
    (model, *subject), like = subject_of(points), next(iter(measured))
    times = _Times(record, record.models[model], like, measured)
    batches = sorted(set(steps.batch))

    figure, drawn = stacked(len(_SHOWN), _WORDS + _PANEL * len(_SHOWN))
    product = f"times of {model}, acceptance of {profile.name}: a product, not a measurement"
    write_title(figure, record, TITLE, *subject, f"context {like.context}", product)
    marks, whose = Marks(NAME), {"model": model, "profile": profile.name}
    legend = []
    for setting in _chosen(profile, times, batches[0]):
        cycles = [whose | times.cycle(setting, batch) for batch in batches]
        # One line holds one kind of times: predicted ones only where nothing was measured.
        cycles = [each for each in cycles if each["times"] == "measured"] or cycles
        legend.append(_draw_line(drawn, setting, cycles, marks))
    for axes, title in zip(drawn, _SHOWN.values(), strict=True):
        axes.set(xscale="log", yscale="log", title=title, xlabel="requests together (batch)")
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.xaxis.minorticks_off()
        axes.grid(True, axis="y")
        axes.label_outer()
        plain_numbers(axes)
    legend += [
        Line2D([], [], marker="o", label="times measured", **DARK),
        Line2D([], [], marker="o", mfc="white", label="times predicted", **DARK),
    ]
    figure.legend(handles=legend, loc="outside lower left")
    return marks.chart(TITLE, ABOUT, figure)


def _draw_line(
    drawn: Sequence[Axes], setting: Setting, cycles: Sequence[Mapping[str, object]], marks: Marks
) -> Line2D:
    """A setting over batch, in every panel; returns what stands for it in the legend."""
    color, marker, dashes = _LOOKS[MODES.index(setting.mode)]
    line = {"color": color, "linestyle": dashes, "linewidth": 1.4}
    fill = color if cycles[0]["times"] == "measured" else "white"
    dot = {"color": color, "marker": marker, "markersize": 6.5, "markerfacecolor": fill}
    for axes, column in zip(drawn, _SHOWN, strict=True):
        axes.plot([each["batch"] for each in cycles], [each[column] for each in cycles], **line)
    for each in cycles:
        dots = [
            axes.plot(each["batch"], each[column], zorder=3, **dot)[0]
            for axes, column in zip(drawn, _SHOWN, strict=True)
        ]
        marks.add(each, *dots)
    right = "" if setting.accuracy is None else f", {percent(setting.accuracy)} right"
    gives = f"{three_digits(setting.tokens_per_forward)} tokens a forward{right}"
    return Line2D([], [], label=f"{setting.name.replace('_', ' ')}: {gives}", **dot | line)


def _chosen(profile: Profile, times: _Times, batch: int) -> list[Setting]:
    """A setting of each mode; see `modes_chart`."""
    found: list[Setting] = []
    for mode in MODES:
        settings = [each for each in profile.settings if each.mode == mode]
        known = [each for each in settings if each.accuracy is not None]
        if found and known and found[0].accuracy is not None:
            least = min(found[0].accuracy - NEAR, max(each.accuracy for each in known))
            settings = [each for each in known if each.accuracy >= least]

        def speed(setting: Setting) -> tuple[bool, float]:
            cycle = times.cycle(setting, batch)
            return cycle["times"] == "measured", cycle["tokens_per_s"]

        found += [max(settings, key=speed)] if settings else []
    return found
