"""`dlm roofline advise`: print which setting to run, or how good such advice is."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from dlm_core.checkpoint import SMALL_MODEL
from dlm_core.config import PRESETS, ModelConfig

from ..acceptance import AUTOREGRESSIVE, PUBLISHED, QUADRATIC_SPEC, Profile, load_profile
from ..records import RESULTS, Record, load, record_files
from ..text import percent, three_digits
from .evidence import sizes_of
from .machine import HOST, Machine, identity, machine_of
from .ranking import (
    LATENCY,
    OBJECTIVES,
    QUANTIZATIONS,
    THROUGHPUT,
    Advice,
    Quantization,
    advise,
)
from .score import Withheld, withheld_score

SMALL_PROFILE = RESULTS / "quality" / "acceptance.json"

READING = (
    "tokens/s: without the prefill. ★: nothing as fast for a user is as fast for the device, within"
    " 1%. bound by: the stage predicted to take most, and what holds it."
    " how sure: measured, this very forward; interpolated, between measured ones of its kind and"
    " block; predicted from a record, beside them; predicted from ceilings or by the"
    " datasheet, a floor."
    " right: the profile's share, of weights and caches that are not quantised."
)

_LABELS = {each.label: each for each in QUANTIZATIONS}


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Print advice, the closing line as JSON; exits with 2 on a user's error."""
    parser = _arguments()
    arguments = parser.parse_args(argv)
    try:
        if arguments.score:
            _check_score_alone(parser, arguments)
            return _score(arguments)
        return _advise(arguments)
    except ValueError as error:
        parser.error(str(error))


def _advise(arguments: argparse.Namespace) -> int:
    for name in ("model", "gpu"):
        if getattr(arguments, name) is None:
            raise ValueError(f"argument --{name}: is missing; only --score goes without it")
    given = [(path, load(path)) for path in arguments.records or record_files(RESULTS)]
    try:
        machine, records = machine_of(arguments.gpu, [record for _, record in given])
    except ValueError as error:
        raise ValueError(f"argument --gpu: {error}") from None
    if arguments.records:
        _check_one_device(given, machine, records)
    config = _config(arguments.model, [record for _, record in given])
    profile = _profile(arguments, config)
    chosen = arguments.quantization
    if chosen is None:
        # What a profile says of accuracy holds for weights and caches that are not quantised.
        chosen = QUANTIZATIONS if arguments.min_accuracy is None else [Quantization()]
    ranked = advise(
        config, machine, records, profile,
        arguments.batch, arguments.context, arguments.objective,
        quantizations=chosen, min_accuracy=arguments.min_accuracy,
    )  # fmt: skip
    tables = {
        context: [each for each in ranked if each.context == context]
        for context in arguments.context
    }
    shown = {context: _shown(found, arguments.top) for context, found in tables.items()}
    if not arguments.json:
        console = Console()
        _print_heading(console, arguments.model, machine, records, profile)
        for context, found in tables.items():
            _print_table(console, arguments.objective, context, found, shown[context])
        console.print(f"\n{READING}", style="dim", highlight=False)
    closing = {
        "model": arguments.model,
        "device": machine.name,
        "objective": arguments.objective,
        "profile": profile.name,
        "records": [each.file_name for each in records],
        "advised": [_as_json(1, found[0]) for found in tables.values() if found[0].fits],
    }
    if arguments.json:
        closing["ranked"] = [_as_json(*each) for found in shown.values() for each in found]
    print(json.dumps(closing))
    return 0


def _score(arguments: argparse.Namespace) -> int:
    record = load(arguments.score)
    profile = _profile(arguments, *record.models.values())
    found = withheld_score(record, profile)
    if not found:
        raise ValueError(
            f"argument --score: {arguments.score} holds no batch and context at which two settings"
            f" of profile {profile.name!r} were measured, and no context behind which one was at"
            " three batches"
        )
    if not arguments.json:
        _print_score(Console(), record, profile, found)
    closing: dict[str, object] = {"record": str(arguments.score), "profile": profile.name}
    for objective, judged in _by_objective(found).items():
        closing[objective] = {
            "cells": len(judged),
            "worst_regret": round(max(each.regret for each in judged), 4),
            "worst_regret_bare_model": round(max(each.bare_regret for each in judged), 4),
        }
    print(json.dumps(closing))
    return 0


def _check_score_alone(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """That nothing is asked for that a score takes from its record."""
    for name, value in vars(arguments).items():
        if name not in ("score", "acceptance", "json") and value != parser.get_default(name):
            raise ValueError(
                f"argument --{name.replace('_', '-')}: must be left out with --score, which is of"
                " all that its record holds"
            )


def _check_one_device(
    given: Sequence[tuple[Path, Record]], machine: Machine, records: Sequence[Record]
) -> None:
    """That all the records given are among those that tell of the machine."""
    wanted, where = {"device.name": machine.name}, "by --gpu"
    if records:
        wanted = identity(records[0])
        where = f"in {next(path for path, record in given if record is records[0])}"
    for path, record in given:
        found = identity(record)
        for name, value in wanted.items():
            if found[name] != value:
                raise ValueError(
                    f"argument --records: record.{name} is {found[name]!r} in {path} and {value!r}"
                    f" {where}; they must be of one device and backend"
                )


def _config(name: str, records: Sequence[Record]) -> ModelConfig:
    """The sizes of a model: a preset's, a measured one's, or those of a checkpoint's folder."""
    if name in PRESETS:
        return PRESETS[name]
    measured = {key: config for record in records for key, config in record.models.items()}
    if name in measured:
        return measured[name]
    folder = SMALL_MODEL if name == "small" else Path(name)
    if not (folder / "config.json").is_file():
        known = ", ".join([*PRESETS, "small", *(repr(each) for each in measured)])
        raise ValueError(
            f"argument --model: {name!r} is no folder with a config.json; it must be one, or one of"
            f" {known}"
        )
    return ModelConfig.from_json(folder / "config.json")


def _profile(arguments: argparse.Namespace, *configs: ModelConfig) -> Profile:
    """The one given, or what was published for a model of these sizes."""
    if arguments.acceptance:
        return load_profile(arguments.acceptance)
    for name, profile in PUBLISHED.items():
        if sizes_of(PRESETS[name]) in map(sizes_of, configs):
            return profile
    raise ValueError(
        f"argument --acceptance: is missing; there are published figures for {', '.join(PUBLISHED)}"
        f" alone. The small model's own are in {SMALL_PROFILE}, and `dlm quality` measures others"
    )


def _shown(found: Sequence[Advice], top: int) -> list[tuple[int, Advice]]:
    """Ranks and advice: the best, of the others the front, and a few of those that do not fit."""
    numbered = list(enumerate(found, 1))
    fitting = [(rank, each) for rank, each in numbered if each.fits]
    too_big = [(rank, each) for rank, each in numbered if not each.fits]
    return [(n, each) for n, each in fitting if n <= top or each.front] + too_big[: min(3, top)]


def _print_heading(
    console: Console, model: str, machine: Machine, records: Sequence[Record], profile: Profile
) -> None:
    told = "ceilings of its datasheet, nothing measured; a record of it goes with --records"
    name = machine.name
    if records:
        cut_short = [each.file_name for each in records if not each.complete]
        steps = any(row.kind == "step" for each in records for row in each.rows)
        told = "measured in " if steps else "no forward but ceilings measured in "
        told += ", ".join(each.file_name for each in records)
        told += f"; cut short: {', '.join(cut_short)}" if cut_short else ""
        name = records[0].device.label
    console.print(f"{model} on {name}: {told}", highlight=False)
    console.print(f"tokens per forward: {profile.source}", highlight=False)


def _print_table(
    console: Console,
    objective: str,
    context: int,
    found: Sequence[Advice],
    shown: Sequence[tuple[int, Advice]],
) -> None:
    what = "a user" if objective == LATENCY else "the device"
    _print(
        console,
        f"{context:,} tokens of context, most tokens/s of {what} first",
        ["rank", "", "mode", "block\nor k", "thres-\nhold", "quantisation", "batch"]
        + [
            "tokens/s\na user",
            "tokens/s\nthe device",
            "memory\nGB",
            "right",
            "bound by",
            "how sure",
        ],
        [_cells(rank, each) for rank, each in shown],
    )
    n_left = len(found) - len(shown)
    if n_left:
        n_big = sum(not each.fits for each in found) - sum(not each.fits for _, each in shown)
        too_big = f", of which {n_big} do not fit" if n_big else ""
        console.print(
            f"  {n_left} more are not shown{too_big}; --top shows more",
            style="dim",
            highlight=False,
        )


def _cells(rank: int, advice: Advice) -> list[str]:
    setting = advice.setting
    size = "" if setting.mode == AUTOREGRESSIVE else str(setting.size)
    cells = [
        str(rank) if advice.fits else "",
        "★" if advice.front else "",
        setting.mode,
        f"k {size}" if setting.mode == QUADRATIC_SPEC else size,
        "" if setting.threshold is None else f"{setting.threshold:g}",
        advice.quantization.label,
        str(advice.batch),
    ]
    rates = [three_digits(advice.tokens_per_user), three_digits(advice.tokens_per_device)]
    return [
        *cells,
        *(rates if advice.fits else ["", ""]),
        three_digits(advice.memory.total / 1e9),
        "" if setting.accuracy is None else percent(setting.accuracy),
        f"{advice.stage}: {advice.held_by}" if advice.fits else "does not fit",
        advice.certainty if advice.fits else "",
    ]


def _as_json(rank: int, advice: Advice) -> dict[str, object]:
    return {
        "context": advice.context,
        "rank": rank if advice.fits else None,
        "mode": advice.setting.mode,
        "size": advice.setting.size,
        "threshold": advice.setting.threshold,
        "quantization": advice.quantization.label,
        "batch": advice.batch,
        "tokens_s_user": round(advice.tokens_per_user, 3),
        "tokens_s_device": round(advice.tokens_per_device, 3),
        "memory_bytes": round(advice.memory.total),
        "fits": advice.fits,
        "accuracy": advice.setting.accuracy,
        "bound_by": [advice.stage, advice.held_by],
        "how_sure": advice.certainty,
        "front": advice.front,
    }


_SCORED = {
    LATENCY: ("for batches and contexts that the adviser was not shown", "a user"),
    THROUGHPUT: ("for a context, of whose batches the adviser was not shown one", "the device"),
}


def _by_objective(found: Sequence[Withheld]) -> dict[str, list[Withheld]]:
    lists = {name: [each for each in found if each.objective == name] for name in OBJECTIVES}
    return {name: judged for name, judged in lists.items() if judged}


def _print_score(
    console: Console, record: Record, profile: Profile, found: Sequence[Withheld]
) -> None:
    console.print(f"{record.device.label}; {record.file_name}; {profile.source}", highlight=False)
    for objective, judged in _by_objective(found).items():
        what, whose = _SCORED[objective]
        rate = f"tokens/s\n{whose}"
        _print(
            console,
            f"Advice by {objective} {what}, against measurement",
            ["model", "batch", "context", "advised", rate, "best", rate, "regret"]
            + ["regret of\nbare model"],
            [_score_cells(each) for each in judged],
        )
    console.print(
        "\nTimes are at one pace, that at which the record's run began. bare model: the cost model"
        " with the record's ceilings, but without any measured forward.",
        style="dim", highlight=False,
    )  # fmt: skip


def _score_cells(withheld: Withheld) -> list[str]:
    cells = [withheld.model, str(withheld.batch), str(withheld.context)]
    for advice, rate in (withheld.advised, withheld.best):
        batch = f", batch {advice.batch}" if withheld.objective == THROUGHPUT else ""
        cells += [_name(advice) + batch, three_digits(rate)]
    return [*cells, percent(withheld.regret), percent(withheld.bare_regret)]


def _name(advice: Advice) -> str:
    label = advice.quantization.label
    return advice.setting.name + ("" if label == "none" else f", {label}")


_WORDS = ("", "mode", "quantisation", "bound by", "how sure", "model", "advised", "best")


def _print(console: Console, title: str, header: Sequence[str], rows: Sequence[list[str]]) -> None:
    """A table, whole even where the terminal is narrower."""
    unbounded = console.options.update(max_width=10_000)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name in header:
        drawn.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    drawn.width = console.measure(drawn, options=unbounded).maximum
    console.print(f"\n{title}", style="bold", highlight=False)
    console.print(drawn, crop=False)


# --- arguments


def _arguments() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dlm roofline advise",
        description="Which mode, block, quantisation and batch to run a model with on a device.",
    )
    parser.add_argument(
        "--model",
        help=f"{', '.join(PRESETS)}, small, a folder with a config.json, or a model of a record",
    )
    parser.add_argument(
        "--gpu",
        help=f"as h200 or as torch names it, or {HOST}: the CPU of the newest record of one",
    )
    parser.add_argument(
        "--batch", type=_list_of(_batch), default=[1, 8, 64], help="default: 1,8,64"
    )
    parser.add_argument(
        "--context", type=_list_of(_context), default=[1 << 10, 1 << 14], help="tokens, or 1k for"
        " 1024; default: 1k,16k",
    )  # fmt: skip
    parser.add_argument("--objective", choices=OBJECTIVES, default=LATENCY, help="default: latency")
    parser.add_argument(
        "--acceptance", type=Path, metavar="FILE", help="tokens per forward of each setting;"
        f" default: as published for {', '.join(PUBLISHED)}",
    )  # fmt: skip
    parser.add_argument(
        "--records", type=Path, nargs="+", metavar="FILE", help="default: those of bench/results"
        " that are of the device",
    )  # fmt: skip
    parser.add_argument(
        "--min-accuracy", type=_share, metavar="SHARE", help="leave out settings of less; then"
        " nothing is quantised unless --quantization asks for it",
    )  # fmt: skip
    parser.add_argument(
        "--quantization", type=_list_of(_quantization), help=f"default: {','.join(_LABELS)}"
    )
    parser.add_argument("--top", type=_batch, default=10, help="rows to show; default: 10")
    parser.add_argument("--json", action="store_true", help="print the closing JSON line alone")
    parser.add_argument(
        "--score", type=Path, metavar="RECORD", help="instead: how good advice is on the batches"
        " and contexts of a record, each withheld in turn",
    )  # fmt: skip
    return parser


def _list_of(kind):
    def parse(text: str) -> list:
        return list(dict.fromkeys(kind(each) for each in text.split(",")))

    return parse


def _batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; it must be a whole number of at least 1")
    return int(text)


def _context(text: str) -> int:
    digits, scale = (text[:-1], 1024) if text.endswith("k") else (text, 1)
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; it must be a number of tokens, as 512 or 1k")
    return scale * int(digits)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; it must be a share, 0 to 1")
    return share


def _quantization(text: str) -> Quantization:
    if text not in _LABELS:
        raise argparse.ArgumentTypeError(f"{text!r}; it must be one of {', '.join(_LABELS)}")
    return _LABELS[text]


if __name__ == "__main__":
    sys.exit(main())
