"""A quality record as tables: on a terminal, in Markdown and as CSV."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from dlm_core.tasks import LONG_TASKS
from dlm_roofline.tables import Table, write_csv

from .decode import CONCURRENT
from .records import Closeness, QualityRecord, Result
from .scores import ALL, exact_tasks, score, scores
from .settings import HEADLINE_THRESHOLD, PLAIN, headline, one_a_mode

LONG, EVERY = "long answers", "all tasks"

# What the small model is to reach: setting, claim, target, tasks, figure of the score, least.
_SAME, _LONG = "the tokens of autoregressive", "tokens per forward on tasks of long answers"
_LOSS = f"`diffusion`, threshold {HEADLINE_THRESHOLD}: right answers, less autoregressive"
TARGETS = (
    ("AR", "autoregressive: answers that are right", "at least 90%", ALL, "right", 0.9),
    ("diffusion", _LOSS, "within 3 points", ALL, "right_less_ar", -0.03),
    ("linear", f"`linear_spec` without the LoRA: {_SAME}", "all", EVERY, "same_as_ar", None),
    ("linear", f"`linear_spec` without the LoRA: {_LONG}", "at least 3", LONG, "tpf", 3),
    ("linear, LoRA", f"`linear_spec` with the LoRA: {_SAME}", "all", EVERY, "same_as_ar", None),
    ("linear, LoRA", f"`linear_spec` with the LoRA: {_LONG}", "at least 3", LONG, "tpf", 3),
)

READING = (
    "In [ ] the 95% interval. right: exact matches, over all tasks but the Python functions."
    " vs AR: difference on the same examples from AR with the same weights and cache. same:"
    " examples whose tokens are AR's. TPF: tokens per forward as a ratio of sums, without the"
    " prefill and the first token that it gives, so that AR's is 1; rules that take no token from"
    " the prefill count all of theirs, and quadratic self-speculation emits it a cycle later. A"
    " forward's cost differs by mode. ms: wall time of decoding an example, prefill too, up to"
    f" {CONCURRENT} together, on the examples that all settings decode; one run each. Threshold"
    f" {HEADLINE_THRESHOLD} is the rule nemotron."
)


def facts(record: QualityRecord) -> dict[str, object]:
    """Where the figures come from."""
    model, sample = record.model, record.sample
    return {
        "model": f"{model.name} {model.hash}, computed in {model.dtype}",
        "examples": f"up to {sample.per_task} held-out ones a task, seed {sample.seed}",
        **record.facts,
    }


def tables(record: QualityRecord) -> list[Table]:
    """Targets, quantisations and settings; those that have rows."""
    found = [targets(record), quantised(record), settings(record)]
    return [table for table in found if not table.frame.empty]


def targets(record: QualityRecord) -> Table:
    """What the small model was to reach, and what it reaches; no rows of another model."""
    results, of, rows = headline_results(record), groups(record), []
    if record.scope == "folder" or len(results) < len(headline(*_trained(record))):
        return Table("Targets", pd.DataFrame())
    for name, claim, target, group, figure, least in TARGETS:
        if name not in results:
            continue
        found = score(record, results[name], of[group])
        if figure == "same_as_ar":
            measured = "{same_as_ar} of {examples}, Python functions too".format(**found)
            holds = found["same_as_ar"] == found["examples"]
        else:
            measured, holds = interval(found, figure), (found[figure] or 0) >= least
        rows.append((claim, target, measured, "holds" if holds else "missed"))
    over_all = {name: score(record, result, of[ALL]) for name, result in results.items()}
    tpf = [f"{interval(found, 'tpf')} ({name})" for name, found in over_all.items()][2:]
    lost = {task: score(record, results["diffusion"], [task])["right_less_ar"] for task in of[ALL]}
    worst = [f"{task} ({100 * lost[task]:+.1f})" for task in sorted(lost, key=lost.get)]
    note = (
        f"{over_all['AR']['examples']} held-out examples of {len(of[ALL])} tasks, blocks of"
        f" {record.model.block_size}; in [ ] the 95% interval. Long answers: {', '.join(of[LONG])}."
        f" Tokens per forward over all tasks: {', '.join(tpf)}. `diffusion` loses most, in"
        f" points, on {', '.join(worst[:3])}. {_made_by(record)}"
    )
    return Table("Targets", pd.DataFrame(rows, columns=["claim", "target", "measured", ""]), [note])


def quantised(record: QualityRecord) -> Table:
    """What weights and caches in few bits cost, in logits and in answers."""
    dtype, exact, rows = record.model.dtype, exact_tasks(record), []
    ways = {PLAIN: None} | {each.way: each for each in record.closeness}
    found = {way: list(map(record.result, one_a_mode(*_trained(record), way))) for way in ways}
    found = {way: results for way, results in found.items() if None not in results}
    n = min((len(each.examples) for results in found.values() for each in results), default=0)
    for way, results in found.items():
        (weights, float8_cache), near = way, ways[way]
        bits = near.bits if near else 8 * getattr(torch, dtype).itemsize
        row = {"weights, cache": (weights or dtype) + ", float8 cache" * float8_cache}
        row |= {"bits a weight": f"{bits:.1f}", **(_apart(near) if near else {})}
        for each in results:
            row[f"`{each.setting.mode}`"] = interval(score(record, each, exact, n), "right")
        speculated = score(record, results[-1], record.sample.tasks, n)
        row["AR's tokens"] = "{same_as_ar} of {examples}".format(**speculated)
        rows.append(row)
    if len(rows) < 2:
        return Table("In few bits", pd.DataFrame())
    lora = " with the LoRA" * record.model.has_draft_lora
    note = (
        "Bits a weight: of the layers' matrices, scales and filling up too. Logits off by: mean and"
        " largest difference from the unquantised model's, in standard deviations of its logits;"
        " KL: from its distribution, mean nats; same token: rows whose likeliest token is the same;"
        f" all of them causal / denoising, on {record.closeness[0].rows} rows of right answers."
        f" Then the share of {n * len(exact) // len(record.sample.tasks)} held-out examples that is"
        f" right, with its 95% interval, for `diffusion` by threshold {HEADLINE_THRESHOLD} and"
        f" `linear_spec`{lora}, in blocks of {record.model.block_size}. AR's tokens: examples to"
        " which `linear_spec` gives the tokens that autoregressive decoding gives with the same"
        f" weights and cache, Python functions too. {_made_by(record)}"
    )
    return Table("In few bits", pd.DataFrame(rows, columns=list(rows[-1])), [note])


def settings(record: QualityRecord) -> Table:
    """Every setting, over all tasks but the Python functions."""
    rows = [
        {
            "setting": row["setting"],
            "examples": row["examples"],
            "right": interval(row, "right"),
            "vs AR": interval(row, "right_less_ar"),
            "same": row["same_as_ar"],
            "TPF": interval(row, "tpf"),
            "ms": f"{row['ms']:.1f}",
        }
        for row in scores(record, {ALL: exact_tasks(record)})
    ]
    return Table("Settings", pd.DataFrame(rows, dtype=object), [READING])


def groups(record: QualityRecord) -> dict[str, list[str]]:
    """Tasks that figures are given for: each by itself, the long ones, all but Python, all."""
    exact = exact_tasks(record)
    found = {task: [task] for task in record.sample.tasks}
    found[LONG] = [task for task in exact if task in LONG_TASKS]
    return found | {ALL: exact, EVERY: record.sample.tasks}


def headline_results(record: QualityRecord) -> dict[str, Result]:
    """The headline settings that were measured, by their short names."""
    found = {name: record.result(each) for name, each in headline(*_trained(record)).items()}
    return {name: result for name, result in found.items() if result}


def _trained(record: QualityRecord) -> tuple[int, bool]:
    return record.model.block_size, record.model.has_draft_lora


def _apart(near: Closeness) -> dict[str, str]:
    """Cells of the logits' differences, causal / denoising."""
    kinds = (near.causal, near.denoise)
    return {
        "logits off by": " / ".join(f"{each.mean:.3f}, {each.largest:.2f}" for each in kinds),
        "KL": " / ".join(f"{each.kl:.1e}" for each in kinds),
        "same token": " / ".join(f"{each.same:.2%}" for each in kinds),
    }


def _made_by(record: QualityRecord) -> str:
    model = record.model
    return (
        f"Model {model.hash[:8]}, computed in {model.dtype}, {record.device.name}, torch"
        f" {record.versions['torch']}, commit {record.commit[:7]}."
    )


def interval(row: Mapping[str, float | None], name: str) -> str:
    """An estimate for people: "94.7% [93.6%, 95.6%]"."""
    if row[name] is None:
        return "-"
    shown = {"right": "{:.1%}", "right_less_ar": "{:+.1f}", "tpf": "{:.2f}"}[name].format
    scale = 100 if name == "right_less_ar" else 1  # points
    value, low, high = (shown(scale * row[name + end]) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def write_tasks(record: QualityRecord, stem: Path) -> Path:
    """Every setting in every group of tasks, as `<stem>-tasks.csv`."""
    path = stem.with_name(f"{stem.name}-tasks.csv")
    frame = pd.DataFrame(scores(record, groups(record)), dtype=object)
    return write_csv(frame, path, facts(record).items())
