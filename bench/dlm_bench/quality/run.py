"""`dlm quality`: measure answers beside speed; print tables; leave record, CSVs and pictures."""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.utils.rnn import pad_sequence

from dlm_core import SMALL_MODEL, DeviceError, Generation, KVScales, Model, load_model
from dlm_core.calibration import calibrated_kv_scales
from dlm_core.generate_command import tokenizer_of
from dlm_core.tasks import TASKS
from dlm_roofline.records import OUT, check_writable, read, save
from dlm_roofline.tables import show

from ..machine import describe_device, device_for, made_by
from . import settings
from .closeness import closeness
from .decode import PYTHON, Passage, decode, passages_of, right_ones, sample
from .oracle import oracle_forwards
from .records import Checkpoint, Decoded, Oracle, QualityRecord, Result, Sample, code_hash
from .settings import AUTOREGRESSIVE, BLOCKS, PLAIN, WAYS, Setting, Way

SEED = 1
CALIBRATION = 4  # examples of each task, of another seed, that scales of a float8 cache are from


class Run:
    """One run under way: each finished part goes into the record at once, and the record to disk.

    What the record at `path` already holds is not measured again, if it is of this run.
    """

    def __init__(self, arguments: argparse.Namespace, path: Path, progress: Progress) -> None:
        folder, device, quick = arguments.folder, device_for(arguments.device), arguments.quick
        self.tokenizer = tokenizer_of(folder)
        if self.tokenizer is None:
            raise ValueError(f"{folder}/tokenizer.json is missing; answers are told by its text")
        # A CPU computes in float32 faster than in the bfloat16 that checkpoints are stored in.
        dtype = torch.float32 if device.type == "cpu" else None
        self.load = partial(load_model, folder, device=device, dtype=dtype)
        self.plain = self.load()
        config = self.plain.config
        self.eos = config.eos_token_id
        make = settings.quick if quick else settings.standard
        self.grid = make(config.block_size, self.plain.has_draft_lora)
        most, common = max(self.grid.values()), min(self.grid.values())
        self.examples = sample(most, SEED)
        self.passages = passages_of(self.tokenizer, self.examples, self.eos)
        longest = max(len(each.answer) for each in self.passages)
        others = [folder.name] * (folder != SMALL_MODEL)
        self.path = path
        self.record = resumed(
            QualityRecord(
                scope="quick" if quick else "folder" if others else "standard",
                device=describe_device(device),
                model=Checkpoint.of(folder, self.plain),
                sample=Sample(SEED, most, common, longest, list(TASKS)),
                code=code_hash(),
                **made_by(" ".join(["dlm quality", *others, *["--quick"] * quick]), device),
            ),
            path,
        )
        self._progress, self._task = progress, progress.add_task("", total=None)

    def measure(self) -> None:
        """All that the record lacks."""
        for way in (PLAIN, *WAYS):
            self._measure_in(way)
        known = len(self.record.oracles)
        if known < len(BLOCKS):
            # AR's answers are decoded again: the record keeps no tokens.
            n = self.record.sample.common * len(TASKS)
            found, _ = self._decode(AUTOREGRESSIVE, n, self.plain)
            pairs = zip(self.passages, found, strict=False)
            references = [Passage(passage.prompt, each.tokens) for passage, each in pairs]
            for block in BLOCKS[known:]:
                self._show(f"oracle of diffusion, block {block}", None)
                forwards = [oracle_forwards(self.plain, each, block) for each in references]
                self._keep(self.record.oracles, Oracle(block, forwards))

    def _measure_in(self, way: Way) -> None:
        """What is to be measured with weights and cache held in a way."""
        (weights, float8_cache), record = way, self.record
        wanted = {each: n * len(TASKS) for each, n in self.grid.items() if each.way == way}
        missing = [each for each in wanted if record.result(each) is None]
        compare = way != PLAIN and way not in [each.way for each in record.closeness]
        if not missing and not compare:
            return
        model = self.load(weights=weights) if weights else self.plain
        scales = self._kv_scales() if float8_cache else None
        if compare:
            self._show(Setting("logits", weights=weights, float8_cache=float8_cache).name, None)
            passages = self.passages[: max(wanted.values())]
            self._keep(record.closeness, closeness(model, self.plain, passages, scales))
        for each in missing:
            generations, seconds = self._decode(each, wanted[each], model, scales)
            examples = self.examples[: wanted[each]]
            right = right_ones(self.tokenizer, examples, generations, self.eos)
            decoded = map(Decoded.of, generations, right)
            self._keep(record.results, Result.of(each, decoded, seconds))

    def _decode(
        self, setting: Setting, n: int, model: Model, scales: KVScales | None = None
    ) -> tuple[list[Generation], float]:
        """The first n examples, and the seconds of the common ones but the Python functions."""
        self._show(setting.name, n)
        common = self.record.sample.common * len(TASKS)
        return decode(
            model,
            [each.prompt for each in self.passages[:n]],
            setting,
            max_new_tokens=self.record.sample.max_new_tokens,
            timed=[i for i, each in enumerate(self.examples[:common]) if each.task != PYTHON],
            kv_scales=scales,
            on_done=lambda: self._progress.advance(self._task),
        )

    def _kv_scales(self) -> KVScales:
        """Calibrated on right answers to other prompts."""
        others = passages_of(self.tokenizer, sample(CALIBRATION, SEED + 1), self.eos)
        rows = [torch.tensor([*each.prompt, *each.answer]) for each in others]
        tokens = pad_sequence(rows, batch_first=True, padding_value=self.eos)
        return calibrated_kv_scales(self.plain, tokens)

    def _show(self, what: str, total: int | None) -> None:
        self._progress.reset(self._task, description=what, total=total)

    def _keep(self, parts: list, found: object) -> None:
        parts.append(found)
        save(self.record, self.path)


def main(argv: list[str] | None = None) -> int:
    """Run the grid; 0 if it ran to its end, 1 on an error, 130 if it was interrupted."""
    arguments = _arguments(argv)
    try:
        check_writable(arguments.out)
        path = arguments.draw or arguments.out / f"quality{'-quick' * arguments.quick}.json"
        record = read(QualityRecord, path) if arguments.draw else _measured(arguments, path)
        _report(record, path, arguments.out)
    except (OSError, ValueError, TypeError, MemoryError, ModuleNotFoundError, DeviceError) as error:
        print(f"dlm quality: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dlm quality: interrupted", file=sys.stderr)
        return 130
    return 0 if record.complete or arguments.draw else 130


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dlm quality",
        description="Measure exact match and tokens per forward of modes, rules and quantisations.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=SMALL_MODEL, help="default: the model in the box"
    )
    parser.add_argument("--out", type=Path, default=OUT / "quality", help="for all that is written")
    parser.add_argument("--quick", action="store_true", help="a few examples: does it all run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--draw", type=Path, metavar="RECORD", help="measure nothing: show this")
    return parser.parse_args(argv)


def _measured(arguments: argparse.Namespace, path: Path) -> QualityRecord:
    """The record, which is at `path` too; it is complete unless the run was interrupted."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    run = Run(arguments, path, progress)
    try:
        with progress:
            run.measure()
    except KeyboardInterrupt:
        print("dlm quality: interrupted; what was measured so far is kept", file=sys.stderr)
        return run.record
    record = replace(run.record, complete=True)
    save(record, path)
    return record


def resumed(new: QualityRecord, path: Path) -> QualityRecord:
    """The record at `path` if this run can go on with it, else `new`; another is moved aside."""
    if not path.exists():
        return new
    try:
        old = read(QualityRecord, path)
        why = old.differs_from(new)
    except ValueError as error:
        why = str(error)
    if why is None:
        print(f"{path} has {len(old.results)} settings of this run: going on with it")
        return replace(old, complete=False)
    made = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(path.stat().st_mtime))
    kept = path.with_name(f"{path.stem}-{made}.json")
    os.replace(path, kept)
    print(f"{path} is of another run ({why}): kept as {kept}; this one begins anew")
    return new


def _report(record: QualityRecord, path: Path, out: Path) -> None:
    """Tables on the terminal, CSVs and pictures in `out`, and one line for programs."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    written = []
    try:
        # Here and not above: what measures runs without pandas and matplotlib.
        from dlm_roofline.charts.chart import save as save_chart

        from . import charts, profile, tables

        said = (f"{name}: {value}" for name, value in tables.facts(record).items())
        console.print("; ".join(said), highlight=False)
        for table in tables.tables(record):
            show(table, console)
        stem = out / path.stem
        written += [tables.write_tasks(record, stem), *profile.write_profile(record, out)]
        for chart in charts.charts_of(record):
            written += save_chart(chart, stem, tables.facts(record).items())
    except ModuleNotFoundError as error:
        said = f"no tables, no pictures ({error}); `dlm quality --draw {path}` elsewhere"
        console.print(said, soft_wrap=True)
    for file in (path, *written):
        console.print(f"wrote {file}", highlight=False, soft_wrap=True)
    print(json.dumps({"record": str(path), "complete": record.complete}))
