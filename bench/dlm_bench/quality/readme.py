"""The README's table of what the small model was to reach, and what its record says it reaches."""

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill

from dlm_roofline.json_file import read

from ..readme import replace_between
from .grid import HEADLINE_THRESHOLD
from .records import SCHEMA, QualityRecord
from .scores import exact_tasks, headline, long_tasks, score
from .statistics import Estimate

RECORD = Path("bench/results/quality/quality.json")
BEGIN, END = "<!-- quality table: begin -->", "<!-- quality table: end -->"

AR_SHARE = 0.9
DIFFUSION_LOSS = 0.03
LONG_TPF = 3.0


def targets(record: QualityRecord) -> str:
    """The table in Markdown, of a record that holds all headline settings."""
    results = headline(record)
    exact, long = exact_tasks(record), long_tasks(record)
    n = len(results["AR"].right)
    ar, diffusion = (score(record, results[name], exact, n) for name in ("AR", "diffusion"))
    rows = [
        (
            "autoregressive: answers that are right",
            f"at least {AR_SHARE:.0%}",
            _shown(ar.right, _share),
            ar.right.value >= AR_SHARE,
        ),
        (
            f"`diffusion`, threshold {HEADLINE_THRESHOLD}, blocks of {record.model.block_size}:"
            " right answers, less autoregressive",
            f"within {100 * DIFFUSION_LOSS:g} points",
            _shown(diffusion.apart, _points),
            diffusion.apart.value >= -DIFFUSION_LOSS,
        ),
    ]
    for name, title in (("linear", "without the LoRA"), ("linear, LoRA", "with the LoRA")):
        every = score(record, results[name], record.sample.tasks, n)
        tpf = score(record, results[name], long, n).tpf
        rows += [
            (
                f"`linear_spec` {title}: the tokens of autoregressive",
                "all",
                f"{every.same} of {every.examples}, Python functions too",
                every.same == every.examples,
            ),
            (
                f"`linear_spec` {title}: tokens per forward on tasks of long answers",
                f"at least {LONG_TPF:g}",
                _shown(tpf, "{:.2f}".format),
                tpf.value >= LONG_TPF,
            ),
        ]
    lines = ["| | target | measured | |", "|---|---|---|---|"]
    for title, target, measured, holds in rows:
        lines.append(f"| {title} | {target} | {measured} | {'holds' if holds else 'missed'} |")
    apart = {task: score(record, results["diffusion"], [task], n).apart.value for task in exact}
    worst = sorted(exact, key=apart.get)[:3]
    over_all = [score(record, results[name], exact, n).tpf for name in ("linear", "linear, LoRA")]
    below = (
        f"{ar.examples} held-out examples of {len(exact)} tasks; in [ ] the 95% interval. Long"
        f" answers: {', '.join(long)}. Over all tasks `linear_spec` takes"
        f" {over_all[0].value:.2f} tokens per forward, {over_all[1].value:.2f} with the LoRA."
        " `diffusion` loses most, in points, on"
        f" {', '.join(f'{task} ({_points(apart[task])})' for task in worst)}. Model"
        f" {record.model.hash[:8]} in {record.model.dtype}, {record.device.name}, torch"
        f" {record.versions['torch']}, commit {record.commit[:7]}."
    )
    return "\n".join([*lines, "", fill(below, 100)])


def _shown(estimate: Estimate, one: Callable[[float], str]) -> str:
    return f"{one(estimate.value)} [{one(estimate.low)}, {one(estimate.high)}]"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def main(argv: list[str] | None = None) -> int:
    """Rewrite the table of README.md, or of the file named, from the record."""
    arguments = sys.argv[1:] if argv is None else argv
    readme = Path(arguments[0]) if arguments else Path("README.md")
    try:
        replace_between(readme, BEGIN, END, targets(read(QualityRecord, RECORD, SCHEMA)))
    except (OSError, ValueError) as error:
        print(f"quality table: {error}", file=sys.stderr)
        return 1
    print(f"{readme}: table rewritten from {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
