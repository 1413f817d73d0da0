"""The acceptance profile of a measured model, which predictions of tokens per second start from."""

import json
from dataclasses import asdict
from pathlib import Path

from dlm_core.whole_file import write_whole
from dlm_roofline import acceptance

from .evaluate import Setting
from .frontier import points
from .grid import AUTOREGRESSIVE
from .records import QualityRecord


def profile(record: QualityRecord) -> acceptance.Profile | None:
    """Of autoregressive decoding, diffusion by threshold and self-speculation; None without any.

    Linear self-speculation drafts with the LoRA where the model has one. All figures are those of
    the examples that every setting saw, so that they can be compared.
    """
    shown = [each for each in points(record) if _belongs(each.setting, record.model.has_draft_lora)]
    if not shown:
        return None
    model = record.model
    state = "" if record.complete else ", cut short"
    source = (
        f"`dlm quality` on {model.name} {model.hash[:8]} in {model.dtype}, commit"
        f" {record.commit[:10]}{state}: exact matches over {shown[0].score.examples} held-out"
        " examples"
    )
    settings = [
        acceptance.Setting(
            each.setting.mode,
            each.setting.block_length or 1,
            each.setting.threshold,
            round(each.x, 4),
            round(each.y, 4),
        )
        for each in shown
    ]
    return acceptance.Profile(acceptance.SCHEMA, model.name, source, settings)


def write_profile(record: QualityRecord, folder: Path) -> list[Path]:
    """Write acceptance.json into `folder` and return its path.

    Not of a quick run, which sees too few examples, nor of a record without a profile.
    """
    found = profile(record)
    if found is None or record.scope == "quick":
        return []
    path = folder / "acceptance.json"
    text = json.dumps(asdict(found), allow_nan=False, ensure_ascii=False)
    # One line a setting, so that profiles can be compared line by line.
    text = text.replace('[{"mode"', '[\n{"mode"').replace(', {"mode"', ',\n{"mode"')
    write_whole(path, text + "\n")
    return [path]


def _belongs(setting: Setting, has_lora: bool) -> bool:
    if setting == AUTOREGRESSIVE or setting.mode == "quadratic_spec":
        return True
    if setting.mode == "linear_spec":
        return setting.lora == has_lora
    return setting.threshold is not None and setting.rule is None
