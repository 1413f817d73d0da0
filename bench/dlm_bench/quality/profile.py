"""The acceptance profile of a measured model, which predictions of tokens per second start from."""

import json
from dataclasses import asdict
from pathlib import Path

from dlm_core.whole_file import write_whole
from dlm_roofline import acceptance

from .records import QualityRecord
from .scores import frontier


def write_profile(record: QualityRecord, folder: Path) -> list[Path]:
    """Write acceptance.json into `folder` and return its path; not of a quick run, which sees too
    few examples.

    It holds autoregressive decoding, diffusion by threshold, and self-speculation, which drafts
    with the LoRA where the model has one, on the examples that all settings decode.
    """
    model = record.model
    rows = [
        row
        for row in frontier(record)
        if row["mode"] in acceptance.MODES and not row["rule"] and not row["steps"]
        if row["lora"] in (None, model.has_draft_lora)
    ]
    if not rows or record.scope == "quick":
        return []
    source = (
        f"`dlm quality` on {model.name} {model.hash[:8]} in {model.dtype}, commit"
        f" {record.commit[:10]}{', cut short' * (not record.complete)}: exact matches over"
        f" {rows[0]['examples']} held-out examples"
    )
    settings = []
    for row in rows:
        how = (row["mode"], row["block_length"] or 1, row["threshold"])
        gives = (round(row["tpf"], 4), round(row["right"], 4))
        settings.append(acceptance.Setting(*how, *gives))
    profile = acceptance.Profile(acceptance.SCHEMA, model.name, source, settings)
    path = folder / "acceptance.json"
    write_whole(path, json.dumps(asdict(profile), indent=1, ensure_ascii=False) + "\n")
    return [path]
