"""`python -m dlm_bench.quality.quantized`: what few bits cost, in logits and in answers.

Each way to hold weights and cache decodes the same held-out examples in three modes, and its logits
are compared with the unquantised model's behind the same tokens: the first block of every right
answer behind its prompt, once causally and once as a denoising step sees it, all masks behind the
seed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_core import (
    SMALL_MODEL,
    DeviceError,
    KVScales,
    Model,
    calibrated_kv_scales,
    load_model,
)
from dlm_core.quantization import KINDS, linears_of
from dlm_core.tasks import Example
from dlm_core.whole_file import write_whole
from dlm_roofline.json_file import read

from ..readme import replace_between
from .contexts import after_contexts, batches, padded
from .evaluate import Setting, encoded, evaluate, sample
from .grid import (
    AUTOREGRESSIVE,
    HEADLINE_THRESHOLD,
    SEED,
    Grid,
    headline_diffusion,
    linear_spec,
)
from .perplexity import Passage
from .records import SCHEMA, QualityRecord, Result
from .run import begin, opened, progress_shown, resumed
from .scores import Score, exact_tasks, score
from .statistics import Estimate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RECORD = Path("bench/results/quality/quantized.json")
BEGIN, END = "<!-- quantised table: begin -->", "<!-- quantised table: end -->"
PER_TASK, QUICK_PER_TASK, CALIBRATION_PER_TASK = 31, 2, 4
BATCH = 32  # examples whose logits are compared together
# (weights, cache) of each variant; None is as it is without quantisation.
WAYS = [(None, None), *((kind, None) for kind in KINDS), (None, "fp8")]


@dataclass(frozen=True)
class Closeness:
    """Logits of forwards of one kind against those of the unquantised model, row by row.

    kind: "causal" or "denoise".
    mean, largest: of the absolute differences, in standard deviations of the unquantised logits.
    kl: mean over rows of KL(unquantised, quantised), nats.
    same: rows whose likeliest token is the same.
    """

    kind: str
    rows: int
    mean: float
    largest: float
    kl: float
    same: int

    def __post_init__(self) -> None:
        if not 0 <= self.same <= self.rows or self.rows < 1:
            raise ValueError(f"same is {self.same} of {self.rows} rows")


@dataclass(frozen=True)
class Variant:
    """One way to hold weights and cache.

    weights, cache: None where they are not quantised; where neither is, there is nothing to compare
        with. A cache's scales are calibrated on other held-out examples.
    layer_weights, layer_bytes: how many the layers' matrices hold, and in how many bytes.
    results: of autoregressive decoding, diffusion and self-speculation, in this order.
    """

    weights: str | None
    cache: str | None
    layer_weights: int
    layer_bytes: int
    closeness: list[Closeness]
    results: list[Result]

    def __post_init__(self) -> None:
        if (self.weights, self.cache) not in WAYS:
            raise ValueError(
                f"weights and cache are {self.weights!r} and {self.cache!r}: no variant"
            )


@dataclass(frozen=True)
class QuantizedRecord(QualityRecord):
    """A run over `WAYS`, each with results of its own."""

    variants: list[Variant] = field(default_factory=list)

    @property
    def so_far(self) -> str:
        return f"{len(self.variants)} ways to hold weights and cache"

    def scores(self, variant: Variant, tasks: Sequence[str]) -> list[Score]:
        """Of each of a variant's results; `same` and `apart` are against its own AR."""
        own = replace(self, results=variant.results)
        return [score(own, result, tasks, len(result.right)) for result in variant.results]


def settings_of(model: Model) -> list[Setting]:
    block = model.config.block_size
    speculation = linear_spec(block, lora=model.has_draft_lora)
    return [AUTOREGRESSIVE, headline_diffusion(block), speculation]


# --- measuring


@torch.inference_mode()
def compared(
    model: Model, kv_scales: KVScales | None, plain: Model, passages: Sequence[Passage]
) -> list[Closeness]:
    """The causal and the denoising logits of `model` beside those of `plain`."""
    sums = {"causal": _Sums(), "denoise": _Sums()}
    pairs = zip(_logits(model, kv_scales, passages), _logits(plain, None, passages), strict=True)
    for ours, theirs in pairs:
        for kind, total in sums.items():
            total.add(ours[kind], theirs[kind])
    return [total.closeness(kind) for kind, total in sums.items()]


def _logits(
    model: Model, kv_scales: KVScales | None, passages: Sequence[Passage]
) -> Iterator[dict[str, Tensor]]:
    """Logits [rows, vocab] for the tokens of first blocks behind their seeds, batch after batch."""
    block = model.config.block_size
    for index in batches([each.tokens for each in passages], BATCH):
        batch = [passages[i] for i in index]
        contexts = [each.context for each in batch]
        cache = after_contexts(model, contexts, block, kv_scales=kv_scales)
        tokens, known = padded([each.tokens[:block] for each in batch], model, block)
        noisy = torch.full_like(tokens, model.config.mask_token_id)
        noisy[:, 0] = tokens[:, 0]
        denoised = model(noisy, cache, causal=False)
        causal = model(tokens, cache, causal=True)
        yield {
            "causal": model.logits(causal[:, :-1][known[:, 1:]]).float(),
            "denoise": model.logits(denoised[:, 1:][known[:, 1:]]).float(),
        }


class _Sums:
    """What a Closeness is made of, added up over batches of rows."""

    def __init__(self) -> None:
        self.rows = self.logits = self.same = 0
        self.apart = self.largest = self.kl = self.sum = self.squares = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        ours, theirs = ours.double(), theirs.double()
        apart = (ours - theirs).abs()
        expected = theirs.log_softmax(-1)
        self.rows += len(theirs)
        self.logits += theirs.numel()
        self.same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self.apart += apart.sum().item()
        self.largest = max(self.largest, apart.max().item())
        self.kl += (expected.exp() * (expected - ours.log_softmax(-1))).sum().item()
        self.sum += theirs.sum().item()
        self.squares += theirs.square().sum().item()

    def closeness(self, kind: str) -> Closeness:
        deviation = (self.squares / self.logits - (self.sum / self.logits) ** 2) ** 0.5
        mean, largest = self.apart / self.logits / deviation, self.largest / deviation
        return Closeness(kind, self.rows, mean, largest, self.kl / self.rows, self.same)


def measured(
    model: Model,
    plain: Model,
    way: tuple[str | None, str | None],
    tokenizer: "Tokenizer",
    examples: Sequence[Example],
    max_new_tokens: int,
    on_part: Callable[[str], Callable[[], None]],
) -> Variant:
    """One variant, `model`, beside the unquantised model, `plain`.

    way: its weights and its cache; see `WAYS`.
    on_part: called as a part begins, with its name; gives what to call for each example done.
    """
    weights, cache = way
    kv_scales = None
    if cache is not None:
        others = sample(CALIBRATION_PER_TASK, SEED + 1)
        text = passages_of(tokenizer, others, model.config.eos_token_id)
        tokens, _ = padded([[*each.context, *each.tokens] for each in text], model)
        kv_scales = calibrated_kv_scales(model, tokens)
    linears = [linear for _, linear in linears_of(model)]
    held = [linear.weight if weights is None else linear.quantized for linear in linears]
    closeness = []
    if way != WAYS[0]:
        on_part("logits")
        passages = passages_of(tokenizer, examples, model.config.eos_token_id)
        closeness = compared(model, kv_scales, plain, passages)
    results = []
    for setting in settings_of(model):
        outcomes, seconds = evaluate(
            model,
            tokenizer,
            examples,
            setting,
            max_new_tokens=max_new_tokens,
            kv_scales=kv_scales,
            on_done=on_part(setting.name),
        )
        results.append(
            Result.of(setting, outcomes, seconds=sum(seconds), seconds_of_rest=sum(seconds))
        )
    return Variant(
        weights,
        cache,
        layer_weights=sum(each.shape[0] * each.shape[1] for each in held),
        layer_bytes=sum(each.nbytes if weights is None else each.n_bytes for each in held),
        closeness=closeness,
        results=results,
    )


def passages_of(tokenizer: "Tokenizer", examples: Sequence[Example], end: int) -> list[Passage]:
    """Prompts, and behind them the right answers with their end."""
    prompts = encoded(tokenizer, [each.prompt for each in examples], special=True)
    answers = encoded(tokenizer, [each.answer for each in examples], special=False)
    return [
        Passage(prompt.ids, [*answer.ids, end])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


# --- the table


def table(record: QuantizedRecord) -> str:
    """The variants in Markdown, with what the columns are below."""
    lines = [
        "| weights, cache | bits a weight | logits off by | KL | same token | autoregressive"
        " | `diffusion` | `linear_spec` | AR's tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    exact = exact_tasks(record)
    for variant in record.variants:
        bits = 8 * variant.layer_bytes / variant.layer_weights
        cells = [_name(record, variant.weights, variant.cache), f"{bits:.1f}"]
        cells += _apart(variant.closeness)
        cells += [_share(each.right) for each in record.scores(variant, exact)]
        *_, speculated = record.scores(variant, record.sample.tasks)
        cells.append(f"{speculated.same} of {speculated.examples}")
        lines.append(f"| {' | '.join(cells)} |")
    first = record.variants[0]
    examples = record.scores(first, exact)[0].examples
    lora = " with the LoRA" if record.model.has_draft_lora else ""
    below = (
        "Bits a weight: of the layers' matrices, scales and filling up too. Logits off by: mean and"
        " largest difference from the unquantised model's, in standard deviations of its logits;"
        " KL: from its distribution, mean nats; same token: rows whose likeliest token is the same;"
        f" all of them causal / denoising, on {_rows(record)} rows of right answers. Then the share"
        f" of {examples} held-out examples that is right, with its 95% interval, for `diffusion` by"
        f" threshold {HEADLINE_THRESHOLD} in blocks of {record.model.block_size} and"
        f" `linear_spec`{lora}. AR's tokens: examples to which `linear_spec` gives the tokens that"
        " autoregressive decoding gives with the same weights, Python functions too. Model"
        f" {record.model.hash[:8]}, computed in {record.model.dtype}, {record.device.name}, torch"
        f" {record.versions['torch']}, commit {record.commit[:7]}."
    )
    return "\n".join([*lines, "", fill(below, 100)])


def _name(record: QuantizedRecord, weights: str | None, cache: str | None) -> str:
    if cache is not None:
        return f"{record.model.dtype}, {cache} cache"
    return weights or record.model.dtype


def _apart(closeness: Sequence[Closeness]) -> list[str]:
    if not closeness:
        return ["-"] * 3
    columns = (
        [f"{each.mean:.3f}, {each.largest:.2f}" for each in closeness],
        [f"{each.kl:.1e}" for each in closeness],
        [f"{each.same / each.rows:.2%}" for each in closeness],
    )
    return [" / ".join(column) for column in columns]


def _rows(record: QuantizedRecord) -> int:
    return max((each.rows for each in record.variants[-1].closeness), default=0)


def _share(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


# --- the command


def main(argv: list[str] | None = None) -> int:
    """Measure, or rewrite the README's table; 2 on an error, 130 if it was interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m dlm_bench.quality.quantized")
    parser.description = "Measure what weights in few bits cost in logits and answers."
    parser.add_argument("folder", nargs="?", type=Path, default=SMALL_MODEL)
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="for the record")
    parser.add_argument("--quick", action="store_true", help="a few examples: does it all run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help=f"measure nothing: put {RECORD} into its table"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.readme:
            record = read(QuantizedRecord, RECORD, SCHEMA)
            replace_between(arguments.readme, BEGIN, END, table(record))
            print(f"{arguments.readme}: table rewritten from {RECORD}")
            return 0
        return _run(arguments, argv)
    except (OSError, ValueError, TypeError, MemoryError, DeviceError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted: the variants measured are kept", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    tokenizer, options = opened(arguments)
    plain = load_model(arguments.folder, **options)
    per_task = QUICK_PER_TASK if arguments.quick else PER_TASK
    examples = sample(per_task, SEED)
    wanted = Grid(settings_of(plain), [], per_task, per_task, (), 0, [])
    scope = "quick" if arguments.quick else "standard"
    command = ["python", "-m", "dlm_bench.quality.quantized", *argv]
    record = QuantizedRecord(
        **vars(begin(arguments.folder, plain, tokenizer, wanted, examples, scope, command))
    )
    path = arguments.out / f"quantized{'-quick' * arguments.quick}.json"
    record = resumed(record, path) or record

    with progress_shown() as progress:
        task = progress.add_task("", total=len(examples))
        for weights, cache in WAYS[len(record.variants) :]:
            start = time.perf_counter()
            name = _name(record, weights, cache)

            def on_part(part: str, name: str = name) -> Callable[[], None]:
                progress.reset(task, description=f"{name}: {part}", total=len(examples))
                return lambda: progress.advance(task)

            model = plain
            if weights is not None:
                model = load_model(arguments.folder, weights=weights, **options)
            way = (weights, cache)
            variant = measured(
                model, plain, way, tokenizer, examples, record.max_new_tokens, on_part
            )
            record = replace(
                record,
                variants=[*record.variants, variant],
                seconds=record.seconds + time.perf_counter() - start,
            )
            _save(record, path)
    record = replace(record, complete=True)
    _save(record, path)
    print(table(record))
    print(json.dumps({"record": str(path), "seconds": round(record.seconds, 1)}))
    return 0


def _save(record: QuantizedRecord, path: Path) -> None:
    text = json.dumps(asdict(record), allow_nan=False) + "\n"
    # One line a result, so that records can be compared line by line.
    for start in ('{"weights"', '{"setting"'):
        text = text.replace(start, f"\n{start}")
    write_whole(path, text)


if __name__ == "__main__":
    sys.exit(main())
