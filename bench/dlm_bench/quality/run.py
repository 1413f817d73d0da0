"""`dlm quality`: measure quality beside speed; print tables; leave record, CSVs and pictures."""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dlm_core import SMALL_MODEL, DeviceError, Model, load_model
from dlm_core.generate_command import tokenizer_of
from dlm_core.tasks import Example
from dlm_core.training.text import documents
from dlm_core.whole_file import write_whole
from dlm_kernels.backend import backend_for
from dlm_roofline.json_file import read
from dlm_roofline.records import check_writable

from .. import tables as bench_tables
from ..machine import commit, describe_device, versions
from . import grid, oracle, perplexity, tables
from .evaluate import Setting, encoded, evaluate, longest_answer, sample
from .grid import AUTOREGRESSIVE, Grid
from .profile import write_profile
from .records import (
    SCHEMA,
    Checkpoint,
    OracleDiffusion,
    OracleDraft,
    Perplexity,
    QualityRecord,
    Result,
    checkpoint_hash,
    code_hash,
    sample_of,
)
from .scores import PYTHON, exact_tasks, headline, long_tasks, score
from .statistics import ratio

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_TOKENS = 128  # of a text that perplexity is measured on


class Run:
    """One run under way: each finished part goes into the record at once, and the record to disk.

    path: of the record. What it already holds is not measured again.
    """

    def __init__(
        self,
        record: QualityRecord,
        path: Path,
        model: Model,
        tokenizer: "Tokenizer",
        examples: Sequence[Example],
        progress: Progress,
    ) -> None:
        self.record, self.path, self.model, self.tokenizer = record, path, model, tokenizer
        self.examples = examples
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def settings(self, wanted: Sequence[Setting], per_task: int) -> None:
        """Decode the sample's first `per_task` examples of each task by each setting."""
        examples = self.examples[: per_task * len(self.record.sample.tasks)]
        for setting in wanted:
            if self.record.result(setting) is not None:
                continue
            block = f", block {setting.block_length}" if setting.block_length else ""
            with self._part(f"{setting.name}{block}", len(examples)) as on_done:
                outcomes, seconds = evaluate(
                    self.model,
                    self.tokenizer,
                    examples,
                    setting,
                    max_new_tokens=self.record.max_new_tokens,
                    parts=self._timed_parts(examples),
                    on_done=on_done,
                )
                _, of_rest, of_others = seconds
                self.record.results.append(
                    Result.of(
                        setting, outcomes, seconds=of_rest + of_others, seconds_of_rest=of_rest
                    )
                )
            self.save()

    def oracles(self, blocks: Sequence[int], per_task: int) -> None:
        """The head room at each block length, behind AR's own answers."""
        references = None
        loras = (False, True) if self.record.model.has_draft_lora else (False,)
        denoised = {each.block_length for each in self.record.oracle_diffusion}
        drafted = {(each.block_length, each.lora) for each in self.record.oracle_drafts}
        for block in blocks:
            missing = [lora for lora in loras if (block, lora) not in drafted]
            if block in denoised and not missing:
                continue
            if references is None:
                references = self._references(per_task)
            tokens = [len(each.answer) for each in references]
            if block not in denoised:
                name = f"oracle of diffusion, block {block}"
                with self._part(name, len(references)) as on_done:
                    begin = time.perf_counter()
                    found = oracle.denoise(self.model, references, block, on_done)
                    self.record.oracle_diffusion.append(
                        OracleDiffusion(
                            block,
                            tokens,
                            forwards=[each.forwards for each in found],
                            forced=[each.forced for each in found],
                            per_step=[each.per_step for each in found],
                            seconds=time.perf_counter() - begin,
                        )
                    )
                self.save()
            for lora in missing:
                name = f"oracle of drafts{', LoRA' * lora}, block {block}"
                with self._part(name, len(references)) as on_done:
                    begin = time.perf_counter()
                    drafts = oracle.draft(self.model, references, block, lora=lora, on_done=on_done)
                    self.record.oracle_drafts.append(
                        OracleDraft(
                            block,
                            lora,
                            tokens,
                            prefix=[each.prefix for each in drafts],
                            anywhere=[each.anywhere for each in drafts],
                            right=[["".join("01"[r] for r in c) for c in d.right] for d in drafts],
                            seconds=time.perf_counter() - begin,
                        )
                    )
                self.save()

    def perplexities(self, blocks: Sequence[int], per_task: int, passages: int) -> None:
        """Of held-out answers and text, autoregressive and by blocks."""
        done = {(each.over, each.block_length) for each in self.record.perplexities}
        wanted = {"answers": lambda: self._answers(per_task), "text": lambda: self._text(passages)}
        for over, make in wanted.items():
            if all((over, block) in done for block in (None, *blocks)):
                continue
            with self._part(f"{over} for perplexity", None):
                chosen = make()
            if not chosen:
                continue
            for block in (None, *blocks):
                if (over, block) in done:
                    continue
                how = "autoregressive" if block is None else f"blocks of {block}"
                with self._part(f"perplexity of {over}, {how}", len(chosen)) as on_done:
                    begin = time.perf_counter()
                    if block is None:
                        scores = {"autoregressive": perplexity.autoregressive(self.model, chosen)}
                    else:
                        seed = self.record.sample.seed
                        scores = perplexity.diffusion(
                            self.model, chosen, block, seed=seed, on_done=on_done
                        )
                    seconds = time.perf_counter() - begin
                    self.record.perplexities.extend(
                        _perplexity(kind, over, block, found, seconds)
                        for kind, found in scores.items()
                    )
                self.save()

    def save(self) -> None:
        text = json.dumps(asdict(self.record), allow_nan=False) + "\n"
        # One line a setting, so that records can be compared line by line.
        write_whole(self.path, text.replace('{"setting"', '\n{"setting"'))

    def _references(self, per_task: int) -> list[oracle.Reference]:
        """AR's answers, decoded again: the record keeps no tokens."""
        examples = self.examples[: per_task * len(self.record.sample.tasks)]
        with self._part("autoregressive answers for the oracle", len(examples)) as on_done:
            outcomes, _ = evaluate(
                self.model,
                self.tokenizer,
                examples,
                AUTOREGRESSIVE,
                max_new_tokens=self.record.max_new_tokens,
                on_done=on_done,
            )
        prompts = encoded(self.tokenizer, [each.prompt for each in examples], special=True)
        return [
            oracle.Reference(prompt.ids, outcome.generation.tokens)
            for prompt, outcome in zip(prompts, outcomes, strict=True)
        ]

    def _answers(self, per_task: int) -> list[perplexity.Passage]:
        """Right answers behind their prompts."""
        examples = self.examples[: per_task * len(self.record.sample.tasks)]
        prompts = encoded(self.tokenizer, [each.prompt for each in examples], special=True)
        answers = encoded(self.tokenizer, [each.answer for each in examples], special=False)
        end = self.model.config.eos_token_id
        return [
            perplexity.Passage(prompt.ids, [*answer.ids, end])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _text(self, passages: int) -> list[perplexity.Passage]:
        """The first tokens of held-out documents from all over the alphabet, behind a BOS."""
        found = documents("heldout")
        found = found[:: max(1, len(found) // passages)][:passages]
        texts = encoded(self.tokenizer, found, special=False)
        begin = self.model.config.bos_token_id
        pieces = [perplexity.Passage([begin], each.ids[:TEXT_TOKENS]) for each in texts]
        return [each for each in pieces if each.tokens]

    def _timed_parts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Indices to decode one part after the other, so that each is timed by itself.

        The Python functions, which times leave out and which warm up; of the others those that
        every setting sees, so that settings can be compared; and what is left.
        """
        n_rest = self.record.sample.rest_per_task * len(self.record.sample.tasks)
        python = [i for i, each in enumerate(examples) if each.task == PYTHON]
        others = [i for i, each in enumerate(examples) if each.task != PYTHON]
        return [python, [i for i in others if i < n_rest], [i for i in others if i >= n_rest]]

    @contextmanager
    def _part(self, what: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Show a part under way, and count its time as the run's, even if it is cut short.

        Gives what to call as examples, by default one, are done.
        """
        self._progress.reset(self._task, description=what, total=total)
        begin = time.perf_counter()
        try:
            yield lambda n=1: self._progress.advance(self._task, n)
        finally:
            spent = self.record.seconds + time.perf_counter() - begin
            self.record = replace(self.record, seconds=spent)


def main(argv: list[str] | None = None) -> int:
    """Run the grid; 0 if it ran to its end, 2 on an error, 130 if it was interrupted."""
    arguments = _arguments(argv)
    try:
        return _draw_again(arguments) if arguments.draw else _run(arguments, argv)
    except (OSError, ValueError, TypeError, MemoryError, DeviceError) as error:
        print(f"dlm quality: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dlm quality: interrupted before anything was measured", file=sys.stderr)
        return 130


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dlm quality",
        description="Measure exact match, perplexity and tokens per forward of modes and rules.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=SMALL_MODEL, help="default: the model in the box"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/quality"), help="for record, CSVs and pictures"
    )
    parser.add_argument("--quick", action="store_true", help="a few examples: does it all run?")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument(
        "--draw", type=Path, metavar="RECORD", help="measure nothing: tables and pictures of this"
    )
    return parser.parse_args(argv)


def opened(arguments: argparse.Namespace) -> "tuple[Tokenizer, dict[str, object]]":
    """The tokenizer of the folder asked for, and device and dtype to load its model with.

    ValueError or OSError says what of --device, --out or the folder does not do.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, and torch sees no CUDA device; it must be cpu here")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backend = backend_for(torch.empty(0, device=device))
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET is 1; unset it: the interpreter would take days")
    check_writable(arguments.out)
    tokenizer = tokenizer_of(arguments.folder)
    if tokenizer is None:
        raise ValueError(
            f"{arguments.folder / 'tokenizer.json'} is missing; quality needs a checkpoint with a"
            " tokenizer"
        )
    # A CPU computes in float32 faster than in the bfloat16 that checkpoints are stored in.
    dtype = torch.float32 if device.type == "cpu" else None
    return tokenizer, {"device": device, "dtype": dtype}


def _run(arguments: argparse.Namespace, argv: list[str] | None) -> int:
    tokenizer, options = opened(arguments)
    model = load_model(arguments.folder, **options)
    make = grid.quick if arguments.quick else grid.standard
    wanted = make(model.config.block_size, has_lora=model.has_draft_lora)
    examples = sample(wanted.per_task, grid.SEED)
    command = ["dlm", "quality", *(sys.argv[1:] if argv is None else argv)]
    scope = "quick" if arguments.quick else "standard"
    new = begin(arguments.folder, model, tokenizer, wanted, examples, scope, command)
    path = arguments.out / ("quality-quick.json" if arguments.quick else "quality.json")
    record = resumed(new, path) or new

    with progress_shown() as progress:
        run = Run(record, path, model, tokenizer, examples, progress)
        try:
            run.settings(wanted.headline, wanted.per_task)
            run.oracles(wanted.blocks, wanted.rest_per_task)
            run.perplexities(wanted.blocks, wanted.rest_per_task, wanted.passages)
            run.settings(wanted.rest, wanted.rest_per_task)
        except KeyboardInterrupt:
            if not run.record.results:
                raise
            progress.console.print("interrupted: what was measured so far is kept")
        else:
            run.record = replace(run.record, complete=True)
    run.save()
    _report(run.record, path, arguments.out)
    return 0 if run.record.complete else 130


def _draw_again(arguments: argparse.Namespace) -> int:
    check_writable(arguments.out)
    _report(read(QualityRecord, arguments.draw, SCHEMA), arguments.draw, arguments.out)
    return 0


def progress_shown() -> Progress:
    """What shows a run's parts as they go, on the standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


def begin(
    folder: Path,
    model: Model,
    tokenizer: "Tokenizer",
    wanted: Grid,
    examples: Sequence[Example],
    scope: str,
    command: Sequence[str],
) -> QualityRecord:
    """A record without results."""
    head, dirty = commit()
    folder = folder.resolve()
    checkpoint = Checkpoint(
        name=folder.name,
        hash=checkpoint_hash(folder),
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(
            weight.numel()
            for name, weight in model.named_parameters()
            if "draft_o_proj" not in name
        ),
        block_size=model.config.block_size,
        has_draft_lora=model.has_draft_lora,
    )
    return QualityRecord(
        schema=SCHEMA,
        complete=False,
        scope=scope,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=head,
        dirty=dirty,
        command=shlex.join(command),
        backend=backend_for(model.diffusion_head.weight),
        versions=versions(),
        device=describe_device(model.device),
        model=checkpoint,
        code=code_hash(),
        sample=sample_of(examples, wanted),
        max_new_tokens=longest_answer(tokenizer, examples),
        skipped=wanted.skipped,
    )


def resumed(new: QualityRecord, path: Path) -> QualityRecord | None:
    """The record at `path` if this run can go on with it; one of other things is moved aside."""
    if not path.exists():
        return None
    try:
        old = read(type(new), path, SCHEMA)
    except ValueError as error:
        raise ValueError(f"{error}; move it away, or give another --out") from None
    why = old.differs_from(new)
    if why is None:
        print(f"{path} has {old.so_far} of this model and sample: going on with it")
        return replace(old, complete=False)
    kept = path.with_name(f"{path.stem}-{old.date.replace(':', '').replace('-', '')}.json")
    os.replace(path, kept)
    print(f"{path} was made with another {why}: kept as {kept}; this run begins anew")
    return None


def _perplexity(
    kind: str, over: str, block: int | None, found: perplexity.Score, seconds: float
) -> Perplexity:
    nats = ratio(found.nats, found.tokens)
    value, low, high = (perplexity.of(each) for each in nats)
    return Perplexity(kind, over, block, value, low, high, sum(found.tokens), seconds)


def _report(record: QualityRecord, path: Path, out: Path) -> None:
    """Tables on the terminal, CSVs and pictures in `out`, and one line for programs."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(tables.heading(record), highlight=False)
    console.print(tables.READING, style="dim", highlight=False)
    for table in tables.tables(record):
        bench_tables.print_table(table, console)
    stem = out / path.stem
    written = [*tables.write_csvs(record, stem), *write_profile(record, out)]
    try:
        # Here and not above: what measures runs without matplotlib.
        from .charts import draw

        written += draw(record, stem)
    except ModuleNotFoundError as error:
        console.print(f"no pictures ({error}); `dlm quality --draw {path}` draws them elsewhere")
    for file in (path, *written):
        console.print(f"wrote {file}", highlight=False, soft_wrap=True)
    console.print(tables.where_time_went(record), highlight=False)
    print(json.dumps(_closing(record, path)))


def _closing(record: QualityRecord, path: Path) -> dict[str, object]:
    """The headline settings in one line for programs."""
    found = {}
    for name, result in headline(record).items():
        all_tasks = score(record, result, exact_tasks(record), len(result.right))
        long = score(record, result, long_tasks(record), len(result.right))
        if all_tasks is None:
            continue
        found[name] = {
            "examples": all_tasks.examples,
            "right": _rounded(all_tasks.right),
            "right_less_ar": _rounded(all_tasks.apart),
            "same_as_ar": all_tasks.same,
            "tpf": _rounded(all_tasks.tpf),
            "tpf_long": _rounded(long and long.tpf),
            "ms_an_example": round(1e3 * result.seconds / all_tasks.examples, 2),
        }
    return {
        "record": str(path),
        "complete": record.complete,
        "model": record.model.name,
        "settings": len(record.results),
        "seconds": round(record.seconds, 1),
        "headline": found,
    }


def _rounded(estimate) -> list[float] | None:
    return None if estimate is None else [round(each, 4) for each in estimate]
