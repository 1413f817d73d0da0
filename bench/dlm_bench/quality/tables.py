"""A quality record as tables for people, and as CSV files for programs."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

from dlm_core.tasks import LONG_TASKS

from ..tables import Table
from .records import OracleDraft, QualityRecord, Result
from .scores import (
    PYTHON,
    Score,
    acceptance,
    exact_tasks,
    headline,
    indices,
    long_tasks,
    oracle_tpf,
    score,
)
from .statistics import Estimate

NO_VALUE = ""

READING = (
    "In [ ] the 95% interval. right: exact matches, over all tasks but the Python functions. vs AR:"
    " difference on the same examples, paired bootstrap. same: examples whose tokens are AR's. TPF:"
    " tokens per forward but the prefill's, as a ratio of sums. s: wall time of the setting, its"
    " requests batched. Threshold 0.9 is the rule nemotron."
)


def heading(record: QualityRecord) -> str:
    """One paragraph: which model, on what, how much, and how complete it is."""
    model, sample = record.model, record.sample
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items())
    commit = record.commit[:10] + (" with local changes" if record.dirty else "")
    state = "" if record.complete else " PARTIAL: the run was cut short, settings are missing."
    state += " A quick run: far too few examples to judge by." if record.scope == "quick" else ""
    threads = record.device.details.get("threads")
    return (
        f"{model.name}: {model.parameters / 1e6:.2f} M parameters in {model.dtype}, blocks of"
        f" {model.block_size}; up to {sample.per_task} held-out examples of each of"
        f" {len(sample.tasks)} tasks, seed {sample.seed}. {record.device.name}"
        f"{f' ({threads} threads)' if threads else ''}; {versions}; commit {commit}; {record.date};"
        f" {record.backend} backend.{state}"
    )


def tables(record: QualityRecord) -> list[Table]:
    """Settings, tasks, head room, perplexities, mistakes, and what was skipped."""
    found = [_settings(record)] if record.results else []
    if headline(record):
        found += [_tasks(record), _mistakes(record)]
    if record.oracle_diffusion:
        found.append(_oracle_diffusion(record))
    if record.oracle_drafts:
        found.append(_oracle_drafts(record))
    if record.perplexities:
        found.append(_perplexities(record))
    if record.skipped:
        rows = [[each.what, each.why] for each in record.skipped]
        found.append(Table("Not measured", ["what", "why"], rows))
    return [table for table in found if table.rows]


def _settings(record: QualityRecord) -> Table:
    rows = []
    for result in record.results:
        n = len(result.right)
        found = score(record, result, exact_tasks(record), n)
        python = score(record, result, [PYTHON], n)
        block = result.setting.block_length
        rows.append(
            [
                result.setting.name,
                NO_VALUE if block is None else str(block),
                *_cells(found),
                NO_VALUE if python is None else f"{python.right.value:.0%} of {python.examples}",
                f"{result.seconds:.1f}",
            ]
        )
    header = ["setting", "block", "examples", "right", "vs AR", "same", "TPF", "Python", "s"]
    return Table("Settings", header, rows)


def _cells(found: Score | None) -> list[str]:
    if found is None:
        return [NO_VALUE] * 5
    return [
        str(found.examples),
        _share(found.right),
        NO_VALUE if found.apart is None else _points(found.apart),
        NO_VALUE if found.same is None else str(found.same),
        _number(found.tpf),
    ]


def _tasks(record: QualityRecord) -> Table:
    named = headline(record)
    groups = {task: [task] for task in record.sample.tasks}
    if long := long_tasks(record):
        groups["long answers"] = long
    groups["all but Python"] = exact_tasks(record)
    rows = []
    for name, tasks in groups.items():
        first = next(iter(named.values()))
        index = indices(record, tasks, len(first.right))
        if not index:
            continue
        scores = [score(record, result, tasks, len(result.right)) for result in named.values()]
        typical = median(first.tokens[i] for i in index)
        label = f"{name} *" if name in LONG_TASKS else name
        rows.append(
            [label, str(len(index)), f"{typical:g}"]
            + [f"{each.right.value:.1%}" for each in scores]
            + [_number(each.tpf) for each in scores]
        )
    header = ["task", "examples", "tokens, median"]
    header += [f"{name} right" for name in named] + [f"{name} TPF" for name in named]
    note = "*: answers usually of 24 tokens and more; `long answers` is those but the Python ones."
    return Table(f"Tasks, blocks of {record.model.block_size}", header, rows, [note])


def _mistakes(record: QualityRecord) -> Table:
    rows = [
        [name, f"{each.prompt!r} -> {each.text!r}, not {each.answer!r}"]
        for name, result in headline(record).items()
        for each in result.mistakes
        if name in ("AR", "diffusion")
    ]
    return Table("A mistake of each task", ["setting", "mistake"], rows)


def _oracle_diffusion(record: QualityRecord) -> Table:
    tasks, rows = exact_tasks(record), []
    for each in record.oracle_diffusion:
        found = oracle_tpf(record, each, tasks)
        steps = [n for i in indices(record, tasks, len(each.tokens)) for n in each.per_step[i]]
        best = _best_rule(record, each.block_length)
        rows.append(
            [
                str(each.block_length),
                str(len(each.tokens)),
                _number(found),
                f"{fmean(steps):.2f}" if steps else NO_VALUE,
                f"{each.forced / max(sum(map(len, each.per_step)), 1):.1%}",
                NO_VALUE if best is None else f"{best[1].tpf.value:.2f} ({best[0].setting.name})",
            ]
        )
    notes = [
        "Oracle: each step commits every masked position whose argmax is AR's token; where none is,"
        " the leftmost is forced.",
        "Fastest setting: of diffusion's at this block, of those within 3 points of AR; its TPF.",
    ]
    header = ["block", "examples", "oracle TPF", "commits a step", "forced steps"]
    header.append("fastest setting")
    return Table("Head room of diffusion", header, rows, notes)


def _best_rule(record: QualityRecord, block_length: int) -> tuple[Result, Score] | None:
    """The diffusion setting of most tokens per forward that is as right as AR, or nearly."""
    found = [
        (result, score(record, result, exact_tasks(record), len(result.right)))
        for result in record.results
        if result.setting.mode == "diffusion" and result.setting.block_length == block_length
    ]
    near = [
        pair
        for pair in found
        if pair[1] and pair[1].tpf and pair[1].apart and pair[1].apart.value >= -0.03
    ]
    return max(near, key=lambda pair: pair[1].tpf.value, default=None)


def _oracle_drafts(record: QualityRecord) -> Table:
    rows = []
    for each in record.oracle_drafts:
        prefix, anywhere = _a_cycle(record, each)
        if prefix is None:
            continue
        rows.append(
            [str(each.block_length), "yes" if each.lora else "no"]
            + [f"{prefix:.2f}", f"{anywhere:.2f}", f"{anywhere / prefix:.2f}"]
        )
    header = ["block", "LoRA", "longest prefix", "any position", "ratio"]
    note = "Tokens a cycle of two forwards: right drafts and the verifier's own token."
    return Table("Head room of linear drafts", header, rows, [note])


def _a_cycle(record: QualityRecord, drafts: OracleDraft) -> tuple[float | None, float | None]:
    """Mean tokens a cycle by the longest prefix, and by any position."""
    index = indices(record, exact_tasks(record), len(drafts.tokens))
    prefix = [n for i in index for n in drafts.prefix[i]]
    anywhere = [n for i in index for n in drafts.anywhere[i]]
    return (fmean(prefix), fmean(anywhere)) if prefix else (None, None)


def _perplexities(record: QualityRecord) -> Table:
    rows = [
        [each.kind, each.over, NO_VALUE if each.block_length is None else str(each.block_length)]
        + [str(each.tokens), f"{each.value:.3g} [{each.low:.3g}, {each.high:.3g}]"]
        for each in record.perplexities
    ]
    notes = [
        "exp(nats a token) of held-out text and right answers. autoregressive: causal forwards."
        " bound: m of a block's n tokens masked, m uniform in 1..n, weighed by n / m.",
        "masked r: cross-entropy of the masked tokens with that share of each block masked.",
    ]
    header = ["perplexity", "passages", "block", "tokens", "value"]
    return Table("Perplexities", header, rows, notes)


def _share(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _points(apart: Estimate) -> str:
    value, low, high = (100 * each for each in apart)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _number(value: Estimate | None) -> str:
    return NO_VALUE if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


# --- CSV


def write_csvs(record: QualityRecord, stem: Path) -> list[Path]:
    """`<stem>-settings.csv`, `-tasks.csv`, `-acceptance.csv`, `-oracle.csv`, `-perplexity.csv`."""
    parts = {
        "settings": _setting_lines(record, {"all but Python": exact_tasks(record)}),
        "tasks": _setting_lines(record, {task: [task] for task in record.sample.tasks}),
        "acceptance": _acceptance_lines(record),
        "oracle": _oracle_lines(record),
        "perplexity": [vars(each) for each in record.perplexities],
    }
    written = []
    for name, lines in parts.items():
        written.append(stem.with_name(f"{stem.name}-{name}.csv"))
        _write_csv(record, written[-1], lines)
    return written


def _write_csv(record: QualityRecord, path: Path, lines: Sequence[dict]) -> None:
    """Comment lines for where the figures come from, then one line a row."""
    facts = {
        "model": f"{record.model.name} {record.model.hash}",
        "examples": f"{record.sample.per_task} a task, seed {record.sample.seed}",
        "device": record.device.name,
        **record.device.details,
        **record.versions,
        "commit": record.commit + (" with local changes" if record.dirty else ""),
        "date": record.date,
        "complete": record.complete,
    }
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        if lines:
            rows = csv.DictWriter(file, lines[0], lineterminator="\n")
            rows.writeheader()
            rows.writerows({key: _cell(value) for key, value in line.items()} for line in lines)


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _setting_lines(record: QualityRecord, groups: dict[str, list[str]]) -> list[dict]:
    lines = []
    for result in record.results:
        for name, tasks in groups.items():
            found = score(record, result, tasks, len(result.right))
            if found is None:
                continue
            line = vars(result.setting) | {"tasks": name, "examples": found.examples}
            line |= _ends("right", found.right) | _ends("right_less_ar", found.apart)
            line |= {"same_as_ar": found.same} | _ends("tpf", found.tpf)
            index = indices(record, tasks, len(result.right))
            line |= {"tokens": found.tokens, "forwards": sum(result.forwards[i] for i in index)}
            if len(groups) == 1:
                line |= {"seconds": result.seconds}
            lines.append(line)
    return lines


def _acceptance_lines(record: QualityRecord) -> list[dict]:
    return [
        vars(result.setting)
        | {"tasks": name, "position": position, "cycles": each.cycles}
        | _ends("accepted", each.share)
        for result in record.results
        if result.setting.mode == "linear_spec"
        for name, tasks in _task_groups(record)
        for position, each in enumerate(acceptance(record, result, tasks), start=1)
    ]


def _task_groups(record: QualityRecord) -> Iterable[tuple[str, list[str]]]:
    yield "all but Python", exact_tasks(record)
    for task in record.sample.tasks:
        yield task, [task]


def _oracle_lines(record: QualityRecord) -> list[dict]:
    tasks = exact_tasks(record)
    lines = []
    for each in record.oracle_diffusion:
        best = _best_rule(record, each.block_length)
        lines.append(
            {"oracle": "diffusion", "block_length": each.block_length, "lora": None}
            | _ends("tpf", oracle_tpf(record, each, tasks))
            | {"longest_prefix": None, "any_position": None}
            | {"fastest_setting_near_ar": best and best[0].setting.name}
            | {"its_tpf": best and best[1].tpf.value}
        )
    for each in record.oracle_drafts:
        prefix, anywhere = _a_cycle(record, each)
        lines.append(
            {"oracle": "linear draft", "block_length": each.block_length, "lora": each.lora}
            | _ends("tpf", None)
            | {"longest_prefix": prefix, "any_position": anywhere}
            | {"fastest_setting_near_ar": None, "its_tpf": None}
        )
    return lines


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    value, low, high = (None, None, None) if estimate is None else estimate
    return {name: value, f"{name}_low": low, f"{name}_high": high}
