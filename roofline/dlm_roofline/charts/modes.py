"""Tokens per second of each mode, and the time from prefill to first token, over batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..acceptance import (
    AUTOREGRESSIVE,
    DIFFUSION,
    LINEAR_SPEC,
    MODES,
    QUADRATIC_SPEC,
    Profile,
    Setting,
    forwards_of,
    tokens_per_cycle,
)
from ..points import Subject, commonest, subject_of
from ..records import Record
from ..step_time import step_times, whole
from ..text import percent, three_digits
from .axes import dress, label_logarithm
from .chart import Chart, Rows
from .style import FONT_SIZE, write_title

NAME = "modes"
TITLE = "What each mode gives, and how soon"
NEAR = 0.03  # a setting is near autoregressive decoding if it loses at most so much of the answers

_TOP, _PANEL, _WORDS, _LEGEND = 1.75, 3.6, 2.8, 0.4  # inches
_GREY = "#777777"


@dataclass(frozen=True)
class _Look:
    color: str
    marker: str
    line: object


_LOOKS = {
    AUTOREGRESSIVE: _Look("#000000", "o", "-"),
    DIFFUSION: _Look("#0072B2", "s", (0, (5, 1.5))),
    LINEAR_SPEC: _Look("#D55E00", "^", (0, (5, 1.5, 1, 1.5))),
    QUADRATIC_SPEC: _Look("#009E73", "D", (0, (1.2, 1.2))),
}

HEADER = [
    "profile", "mode", "size", "threshold", "tokens_per_forward", "accuracy", "model", "dtype",
    "context", "batch", "tokens_per_s", "tokens_per_s_a_user", "first_token_s", "forwards",
]  # fmt: skip


@dataclass(frozen=True)
class _Cycle:
    """One cycle of a setting at a batch. how: "measured", "partly measured" or "predicted"."""

    setting: Setting
    batch: int
    seconds: float
    how: str

    @property
    def per_user(self) -> float:
        """Tokens/s of each request."""
        return tokens_per_cycle(self.setting) / self.seconds


def modes_chart(record: Record, profiles: Sequence[Profile]) -> Chart | None:
    """Two panels a profile: tokens/s, and the time from the end of the prefill to the first token.

    Of each mode one setting: of those that lose at most 3 points of autoregressive decoding's
    answers the fastest for one request, measured ones before predicted ones. None for a record
    without a whole step, or without profiles.
    """
    subject = subject_of(record)
    if subject is None or not profiles:
        return None
    context = commonest([row.forward.context for row in subject.steps])
    batches = sorted({r.forward.batch for r in subject.steps if r.forward.context == context})
    height = _TOP + len(profiles) * (_PANEL + _WORDS)
    figure = Figure(figsize=(10, height))
    words = (subject.model, subject.dtype, f"context {context}")
    write_title(figure, record, TITLE, *words)
    rows = Rows(NAME)
    for i, profile in enumerate(profiles):
        bottom = height - _TOP - i * (_PANEL + _WORDS) - _PANEL
        rates, firsts = (
            figure.add_axes((left, bottom / height, 0.385, _PANEL / height))
            for left in (0.095, 0.60)
        )
        chosen = [
            [_cycle(subject, setting, batch, context) for batch in batches]
            for setting in _chosen(profile, subject, batches[0], context)
        ]
        for cycles in chosen:
            _draw_line(rates, profile, subject, context, cycles, rows, first=False)
            _draw_line(firsts, profile, subject, context, cycles, rows, first=True)
        _dress(rates, firsts, batches)
        _write_settings(figure, profile, [c[0].setting for c in chosen], bottom - 0.72, height)
    _draw_legend(figure, _LEGEND / height)
    about = (
        "Which mode gives most tokens a second to all requests and to each, and how long does a"
        " request wait from the end of the prefill to the first token? Filled marks rest on"
        " measured forwards, hollow ones on predicted ones; dotted diagonals are equal rates for"
        " each user."
    )
    return Chart(NAME, TITLE, about, figure, HEADER, rows.cells)


def _chosen(profile: Profile, subject: Subject, batch: int, context: int) -> list[Setting]:
    """A setting of each mode; see `modes_chart`."""
    found, target = [], None
    for mode in MODES:
        settings = profile.of_mode(mode)
        if target is not None and (known := [s for s in settings if s.accuracy is not None]):
            near = [each for each in known if each.accuracy >= target - NEAR]
            settings = near or [max(known, key=lambda each: each.accuracy)]
        cycles = [_cycle(subject, each, batch, context) for each in settings]
        measured = [each for each in cycles if each.how == "measured"]
        if cycles:
            best = max(measured or cycles, key=lambda each: each.per_user).setting
            found.append(best)
            target = best.accuracy if mode == AUTOREGRESSIVE else target
    return found


def _cycle(subject: Subject, setting: Setting, batch: int, context: int) -> _Cycle:
    config, like = subject.record.models[subject.model], subject.steps[0].forward
    kinds = {"weights": like.weights, "float8_cache": like.float8_cache}
    forwards = forwards_of(setting, batch, context, subject.dtype, **kinds)
    timed = {row.forward: row.timing.median for row in subject.steps}
    seconds = 0.0
    for forward in forwards:
        if forward in timed:
            seconds += timed[forward]
            continue
        stages = step_times(config, forward, subject.record.ceilings, subject.record.backend)
        seconds += whole(stages).seconds
    n_timed = sum(forward in timed for forward in forwards)
    how = {0: "predicted", len(forwards): "measured"}.get(n_timed, "partly measured")
    return _Cycle(setting, batch, seconds, how)


def _draw_line(
    axes: Axes,
    profile: Profile,
    subject: Subject,
    context: int,
    cycles: Sequence[_Cycle],
    rows: Rows,
    *,
    first: bool,
) -> None:
    """A setting over batch: the rate of all requests, or of the first token the wait."""
    look = _LOOKS[cycles[0].setting.mode]
    xs = [each.batch for each in cycles]
    ys = [1e3 * each.seconds if first else each.batch * each.per_user for each in cycles]
    axes.plot(xs, ys, color=look.color, linestyle=look.line, linewidth=1.6)
    for x, y, each in zip(xs, ys, cycles, strict=True):
        fill = look.color if each.how == "measured" else "white"
        style = {"markersize": 8, "markeredgecolor": look.color, "markeredgewidth": 1.4}
        (mark,) = axes.plot(x, y, look.marker, markerfacecolor=fill, zorder=3, **style)
        setting = each.setting
        rates = [f"{each.batch * each.per_user:.6g}", f"{each.per_user:.6g}", ""]
        rows.add(
            mark,
            [
                profile.name,
                setting.mode,
                str(setting.size),
                "" if setting.threshold is None else f"{setting.threshold:g}",
                f"{setting.tokens_per_forward:g}",
                "" if setting.accuracy is None else f"{setting.accuracy:g}",
                subject.model,
                subject.dtype,
                str(context),
                str(each.batch),
                *(["", "", f"{each.seconds:.6g}"] if first else rates),
                each.how,
            ],
        )


def _dress(rates: Axes, firsts: Axes, batches: Sequence[int]) -> None:
    wait = "ms from the end of the prefill\nto the first token"
    for axes, title in ((rates, "tokens/s of all requests"), (firsts, wait)):
        axes.set(xscale="log", yscale="log", xlabel="requests together (batch)")
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.xaxis.minorticks_off()
        axes.set_xlim(batches[0] / 1.35, batches[-1] * 1.35)
        dress(axes, title, pad=20)  # below it diagonals that leave through the top have their names
        label_logarithm(axes)
    _draw_diagonals(rates)


def _draw_diagonals(axes: Axes) -> None:
    """Equal rates of each user, a decade apart, named where they enter."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for power in range(-3, 7):
        each = 10.0**power
        if not low < each * right or not each * left < high:
            continue
        axes.plot([left, right], [each * left, each * right], color=_GREY, lw=0.9, ls=":", zorder=1)
        x, y = (right, each * right) if each * right < high else (high / each, high)
        if y > low * 1.3 and x > left * 1.5:
            at = {"ha": "left", "va": "center"} if y < high else {"ha": "center", "va": "bottom"}
            axes.annotate(
                f"{each:,g}", (x, y), xytext=(3, 0) if y < high else (0, 1),
                textcoords="offset points", fontsize=FONT_SIZE, color=_GREY, **at,
            )  # fmt: skip
    axes.set(xlim=(left, right), ylim=(low, high))


def _write_settings(
    figure: Figure, profile: Profile, settings: Sequence[Setting], top: float, height: float
) -> None:
    """The profile, and what each line is, as a table under its panels."""
    inch = 1 / height
    style = {"fontsize": FONT_SIZE, "va": "top"}
    figure.text(0.02, top * inch, f"Acceptance of {profile.name}", fontweight="bold", **style)
    for x, word in ((0.62, "tokens a forward"), (0.86, "right answers")):
        figure.text(x, top * inch, word, ha="right", **style)
    for i, setting in enumerate(settings):
        y, look = (top - 0.27 * (i + 1)) * inch, _LOOKS[setting.mode]
        line = Line2D([0.025, 0.075], [y - 0.09 * inch] * 2, color=look.color, linestyle=look.line)
        line.set(marker=look.marker, markersize=8, linewidth=1.6)
        figure.add_artist(line)
        accuracy = "" if setting.accuracy is None else percent(setting.accuracy)
        figure.text(0.095, y, setting.name.replace("_", " "), **style)
        figure.text(0.62, y, three_digits(setting.tokens_per_forward), ha="right", **style)
        figure.text(0.86, y, accuracy, ha="right", **style)


def _draw_legend(figure: Figure, top: float) -> None:
    style = {"linestyle": "none", "marker": "o", "markersize": 8, "color": "black"}
    marks = [
        Line2D([], [], label="measured", **style),
        Line2D([], [], label="predicted, at least in part", markerfacecolor="white", **style),
        Line2D([], [], color=_GREY, ls=":", label="so many tokens/s for each user"),
    ]
    figure.legend(
        handles=marks, loc="upper center", bbox_to_anchor=(0.5, top), ncols=3, fontsize=FONT_SIZE,
        frameon=False,
    )  # fmt: skip
