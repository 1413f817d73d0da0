"""`dlm roofline advise`: print which setting to run, and how sure that is."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from dlm_core.checkpoint import SMALL_MODEL
from dlm_core.config import PRESETS, ModelConfig

from ..acceptance import PUBLISHED, SMALL_MODEL_PROFILE, Profile, load_profile, published_for
from ..records import BenchRecord, default_records, read
from ..tables import Table, show
from ..text import percent, three_digits
from .machine import FLOOR, HOST, machine_of
from .ranking import LATENCY, OBJECTIVES, QUANTIZATIONS, Advice, advise

READING = """
tokens/s are without the prefill. ★: nothing as fast for a user is as fast for the device, within \
1%. right: the profile's share, of weights and caches that are not quantised. bound by: the stage \
predicted to take most, and what holds it.
measured: this very forward. scaled: predicted, times how much longer than predicted the nearest \
measured forward took. predicted: from what our ops reach at other shapes. unmeasured: from \
ceilings alone, which few forwards come near."""

_CONTEXTS = (1024, 16384)
_TOO_BIG = 3  # rows shown of what does not fit


def main(argv: list[str] | None = None) -> int:
    """Print advice, the closing line as JSON; exits with 2 on a user's error."""
    parser = _arguments()
    arguments = parser.parse_args(argv)
    try:
        _advise(arguments)
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0


def _advise(arguments: argparse.Namespace) -> None:
    given = [read(BenchRecord, path) for path in arguments.records]
    records = given or default_records()
    machine = machine_of(arguments.gpu, records)
    if given and not machine.record:
        devices = ", ".join(each.device.label for each in given)
        raise ValueError(f"argument --records: none is of {machine.name}; they are of {devices}")
    config = _config(arguments.model, records)
    profile = load_profile(arguments.acceptance) if arguments.acceptance else _profile_of(config)
    room = config.max_position_embeddings
    contexts = arguments.context or [x for x in _CONTEXTS if 2 * x <= room] or [room // 2]
    # What a profile says of accuracy holds for weights and caches that are not quantised.
    possible = ["none"] if arguments.min_accuracy else list(QUANTIZATIONS)
    ranked = advise(
        config, machine, profile, arguments.batch, contexts, arguments.objective,
        quantizations=arguments.quantization or possible, min_accuracy=arguments.min_accuracy,
    )  # fmt: skip
    console, record, best = Console(highlight=False, soft_wrap=True), machine.record, []
    told = f"measured in {record.file_name}" if record else "datasheet, nothing measured"
    cut_short = ", which was cut short" if record and not record.complete else ""
    name = record.device.label if record else machine.name
    console.print(f"{arguments.model} on {name}: {told}{cut_short}")
    console.print(f"tokens per forward: {profile.source}")
    for context in contexts:
        found = [each for each in ranked if each.context == context]
        show(_table(found, arguments.objective, arguments.top), console)
        best += [asdict(found[0])] if found[0].fits else []
    console.print(READING, style="dim")
    closing = {"model": arguments.model, "device": machine.name, "objective": arguments.objective}
    closing |= {"profile": profile.name, "record": record and record.file_name, "advised": best}
    print(f"\n{json.dumps(closing)}")


def _config(name: str, records: Sequence[BenchRecord]) -> ModelConfig:
    """The sizes of a model: a preset's, a measured one's, or those of a checkpoint's folder."""
    measured = {key: config for record in records for key, config in record.models.items()}
    if found := PRESETS.get(name) or measured.get(name):
        return found
    folder = SMALL_MODEL if name == "small" else Path(name)
    if not (folder / "config.json").is_file():
        known = ", ".join([*PRESETS, "small", *map(repr, measured)])
        raise ValueError(
            f"argument --model: {name!r} is no folder with a config.json; it must be one, or one of"
            f" {known}"
        )
    return ModelConfig.from_json(folder / "config.json")


def _profile_of(config: ModelConfig) -> Profile:
    """What was published for a model of this config, or measured of the small model."""
    if published := published_for(config):
        return published
    if config == ModelConfig.from_json(SMALL_MODEL / "config.json"):
        return load_profile(SMALL_MODEL_PROFILE)
    raise ValueError(
        f"argument --acceptance: is missing; only figures of {', '.join(PUBLISHED)} and the small"
        " model are known, and `dlm quality` measures others"
    )


def _table(found: Sequence[Advice], objective: str, top: int) -> Table:
    """The best, of the others the front, and a few of those that do not fit."""
    import pandas as pd

    fitting = [each for each in found if each.fits]
    too_big = found[len(fitting) :]
    shown = [each for i, each in enumerate(fitting) if i < top or each.front] + too_big[:_TOO_BIG]
    whose = "a user" if objective == LATENCY else "the device"
    title = f"{found[0].context:,} tokens of context, most tokens/s of {whose} first"
    left = f"{len(found)} ways, of which {len(too_big)} do not fit; --top shows more"
    notes = [left] if len(shown) < len(found) else []
    return Table(title, pd.DataFrame(map(_cells, shown)), notes)


def _cells(advice: Advice) -> dict[str, object]:
    setting = advice.setting
    rates = ["at most " * (advice.how_sure == FLOOR) + three_digits(rate)
             for rate in (advice.tokens_s_user, advice.tokens_s_device)]  # fmt: skip
    return {
        "mode": setting.name + " ★" * advice.front,
        "quantisation": advice.quantization,
        "batch": advice.batch,
        "tokens/s of a user": rates[0] if advice.fits else None,
        "of the device": rates[1] if advice.fits else None,
        "memory GB": three_digits(advice.memory_bytes / 1e9),
        "right": None if setting.accuracy is None else percent(setting.accuracy),
        "bound by": advice.bound_by if advice.fits else "does not fit",
        "how sure": advice.how_sure if advice.fits else None,
    }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dlm roofline advise",
        description="Which mode, block, quantisation and batch to run a model with on a device.",
    )
    add = parser.add_argument
    add("--model", required=True, help=f"{', '.join(PRESETS)}, small, a folder with a config.json,"
        " or a model of a record")  # fmt: skip
    add("--gpu", required=True, help=f"as h200 or as torch names it, or {HOST}, the CPU of the"
        " newest record of one")  # fmt: skip
    add("--batch", type=_counts, default=[1, 8, 64], help="default: 1,8,64")
    add("--context", type=_counts, help="tokens; default: 1k,16k, or what the model has room for")
    add("--objective", choices=OBJECTIVES, default=LATENCY, help=f"default: {LATENCY}")
    add("--quantization", type=_quantizations, help=f"default: {','.join(QUANTIZATIONS)}")
    add("--min-accuracy", type=float, default=0.0, metavar="SHARE", help="leave out settings of"
        " less; then nothing is quantised unless --quantization asks for it")  # fmt: skip
    add("--acceptance", type=Path, metavar="FILE", help="tokens per forward of each setting;"
        f" default: what is known of {', '.join(PUBLISHED)} and the small model")  # fmt: skip
    add("--records", type=Path, nargs="+", default=[], metavar="FILE", help="default: the newest of"
        " each device, of those that come with this and of your own runs")  # fmt: skip
    add("--top", type=int, default=10, metavar="ROWS", help="default: 10")
    return parser


def _counts(text: str) -> list[int]:
    """Whole numbers between commas, each once."""
    if not re.fullmatch(r"\d+k?(,\d+k?)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; it must be as 1,8 or 1k, which is 1024")
    counts = (int(x[:-1]) * 1024 if x.endswith("k") else int(x) for x in text.split(","))
    return list(dict.fromkeys(counts))


def _quantizations(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in QUANTIZATIONS:
            known = ", ".join(QUANTIZATIONS)
            raise argparse.ArgumentTypeError(f"{name!r}; it must be one of {known}")
    return names
