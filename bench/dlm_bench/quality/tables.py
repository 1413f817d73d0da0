"""A quality record as tables for people, and as CSV files for programs."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

from dlm_core.tasks import LONG_TASKS

from ..tables import Table
from .evaluate import CONCURRENT
from .frontier import frontier, points
from .records import OracleDraft, Perplexity, QualityRecord, Result
from .scores import (
    NEAR,
    PYTHON,
    Score,
    acceptance,
    common_length,
    exact_tasks,
    fastest_near_ar,
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
    " tokens per forward as a ratio of sums, without the prefill and the first token that it gives,"
    " so that AR's is 1; rules that take no token from the prefill count all of theirs, and"
    " quadratic self-speculation emits it a cycle later. A forward's cost differs by mode. ms: wall"
    f" time of decoding an example, prefill too, up to {CONCURRENT} together, the Python functions"
    " left out; one run each. Threshold 0.9 is the rule nemotron."
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
        f" {record.backend} backend; measured in {record.seconds:.0f} s.{state}"
    )


def where_time_went(record: QualityRecord) -> str:
    """The whole run's seconds, and those of its parts."""
    oracles = sum(each.seconds for each in (*record.oracle_diffusion, *record.oracle_drafts))
    # Perplexities that were measured together all hold the time of that.
    passes = {(each.over, each.block_length): each.seconds for each in record.perplexities}
    decoding = sum(result.seconds for result in record.results)
    rest = record.seconds - decoding - oracles - sum(passes.values())
    return (
        f"measured in {record.seconds:.1f} s: {decoding:.1f} s of decoding that is timed,"
        f" {oracles:.1f} s of oracles, {sum(passes.values()):.1f} s of perplexities, and"
        f" {rest:.1f} s of Python functions, checks and references"
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
                NO_VALUE if found is None else f"{1e3 * result.seconds / found.examples:.1f}",
            ]
        )
    header = ["setting", "block", "examples", "right", "vs AR", "same", "TPF", "Python", "ms"]
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
    tasks, n, rows = exact_tasks(record), common_length(record), []
    for each in record.oracle_diffusion:
        index = indices(record, tasks, min(n, len(each.tokens)))
        steps = [commits for i in index for commits in each.per_step[i]]
        fastest = fastest_near_ar(record, each.block_length, n)
        rows.append(
            [
                str(each.block_length),
                str(len(index)),
                _number(oracle_tpf(record, each, tasks, n)),
                _number(oracle_tpf(record, each, tasks, n, forced_forwards=True)),
                f"{fmean(steps):.2f}" if steps else NO_VALUE,
                f"{sum(each.forced[i] for i in index) / max(len(steps), 1):.1%}",
                *_fastest_cells(fastest),
            ]
        )
    notes = [
        "Oracle: each step commits every masked position whose argmax is AR's token; where none is,"
        " the leftmost is forced.",
        "It is greedy, so no bound. Forced forwards: one more for each forced step, whose own did"
        " not give its token.",
        f"setting: of diffusion's at this block of a TPF above 1, the fastest within {100 * NEAR:g}"
        " points of AR, or else the nearest; on the same examples.",
    ]
    header = ["block", "examples", "oracle TPF", "TPF, forced forwards", "commits a step"]
    header += ["forced steps", "setting", "TPF", "vs AR"]
    return Table("Head room of diffusion", header, rows, notes)


def _fastest_cells(fastest: tuple[Result, Score] | None) -> list[str]:
    if fastest is None:
        return [NO_VALUE] * 3
    result, found = fastest
    return [result.setting.name, _number(found.tpf), _points(found.apart)]


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
    n = min(common_length(record), len(drafts.tokens))
    index = indices(record, exact_tasks(record), n)
    prefix = [n for i in index for n in drafts.prefix[i]]
    anywhere = [n for i in index for n in drafts.anywhere[i]]
    return (fmean(prefix), fmean(anywhere)) if prefix else (None, None)


def _perplexities(record: QualityRecord) -> Table:
    rows = [
        [
            each.kind,
            each.over,
            NO_VALUE if each.block_length is None else str(each.block_length),
            f"{each.tokens}{' masked' * _is_masked(each)}",
            f"{each.value:.3g} [{each.low:.3g}, {each.high:.3g}]",
        ]
        for each in record.perplexities
    ]
    notes = [
        "exp(nats a token) of held-out text and right answers. autoregressive: causal forwards."
        " bound: m of a block's n tokens masked, m uniform in 1..n, weighed by n / m.",
        "masked r: with that share of each block masked, over the masked tokens alone.",
    ]
    header = ["perplexity", "passages", "block", "tokens", "value"]
    return Table("Perplexities", header, rows, notes)


def _is_masked(perplexity: Perplexity) -> bool:
    """Whether it is over the masked tokens alone."""
    return perplexity.kind.startswith("masked")


def _share(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _points(apart: Estimate) -> str:
    value, low, high = (100 * each for each in apart)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _number(value: Estimate | None) -> str:
    return NO_VALUE if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


# --- CSV


def write_csvs(record: QualityRecord, stem: Path) -> list[Path]:
    """`<stem>-<part>.csv`: settings, tasks, frontier, acceptance, oracle, perplexity."""
    parts = {
        "settings": _setting_lines(record, {"all but Python": exact_tasks(record)}),
        "tasks": _setting_lines(record, {task: [task] for task in record.sample.tasks}),
        "frontier": frontier_lines(record),
        "acceptance": acceptance_lines(record),
        "oracle": _oracle_lines(record),
        "perplexity": [
            vars(each) | {"tokens_are": "masked" if _is_masked(each) else "all"}
            for each in record.perplexities
        ],
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
            rows.writerows({key: cell(value) for key, value in line.items()} for line in lines)


def cell(value: object) -> object:
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
            line |= {"tokens": found.tokens, "tokens_counted": found.counted}
            line |= {"forwards": found.forwards}
            if len(groups) == 1:
                line |= {"seconds": result.seconds}
            lines.append(line)
    return lines


def frontier_lines(record: QualityRecord) -> list[dict]:
    """The points of the picture: on the examples that every setting saw."""
    shown = points(record)
    best = frontier(shown)
    return [
        vars(point.setting)
        | {"examples": point.score.examples}
        | _ends("tpf", point.score.tpf)
        | _ends("right", point.score.right)
        | {"ms_an_example": point.ms, "on_frontier": point in best}
        for point in shown
    ]


def acceptance_lines(record: QualityRecord) -> list[dict]:
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
    tasks, n = exact_tasks(record), common_length(record)
    lines = []
    for each in record.oracle_diffusion:
        fastest = fastest_near_ar(record, each.block_length, n)
        lines.append(
            {"oracle": "diffusion", "block_length": each.block_length, "lora": None}
            | _ends("tpf", oracle_tpf(record, each, tasks, n))
            | _ends("tpf_forced", oracle_tpf(record, each, tasks, n, forced_forwards=True))
            | {"longest_prefix": None, "any_position": None}
            | {"setting_near_ar": fastest and fastest[0].setting.name}
            | {"its_tpf": fastest and fastest[1].tpf.value}
            | {"its_right_less_ar": fastest and fastest[1].apart.value}
        )
    for each in record.oracle_drafts:
        prefix, anywhere = _a_cycle(record, each)
        lines.append(
            {"oracle": "linear draft", "block_length": each.block_length, "lora": each.lora}
            | _ends("tpf", None)
            | _ends("tpf_forced", None)
            | {"longest_prefix": prefix, "any_position": anywhere}
            | {"setting_near_ar": None, "its_tpf": None, "its_right_less_ar": None}
        )
    return lines


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    value, low, high = (None, None, None) if estimate is None else estimate
    return {name: value, f"{name}_low": low, f"{name}_high": high}
