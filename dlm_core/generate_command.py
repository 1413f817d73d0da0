"""`dlm generate`: decode behind a prompt, show how, and draw it on request."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dlm_kernels import DeviceError
from dlm_kernels.rules import RULES
from dlm_kernels.validate import NUMERICS

from .checkpoint import SMALL_MODEL, load_model
from .config import STORED_DTYPES
from .decoding import Generation, Sampling, StepEvent, generate, infill, refine
from .decoding.new_request import DEFAULT_REFINE_RULE, DEFAULT_RULE, MODES
from .model import Model
from .quantization import KINDS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Modes beside those of `generate`, each with the option that it needs.
_REVISIONS = {"infill": "after", "refine": "draft"}
_DENOISING = ("diffusion", *_REVISIONS)
# What shows a character that has no ink, or would move a terminal's cursor.
_VISIBLE = dict.fromkeys([*range(32), 127], "�") | str.maketrans(" \n\t", "␣↵⇥")


def add_to(commands: "argparse._SubParsersAction") -> None:
    """Add the command and its options to those of `dlm`."""
    command = commands.add_parser("generate", help="generate tokens from a checkpoint")
    command.set_defaults(run=_generate, parser=command)
    command.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=SMALL_MODEL,
        help="config.json and safetensors; default: the small model that comes with dlm-kernels",
    )
    prompt = command.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--tokens", type=_ids, metavar='"ID ID ..."', help="prompt as token ids")
    prompt.add_argument("--prompt", metavar="TEXT", help="prompt as text; needs tokenizer.json")
    command.add_argument(
        "--max-new-tokens", type=int, help="default: 128; infill: the gap's length; not for refine"
    )
    command.add_argument(
        "--mode", choices=[*MODES, *_REVISIONS], default="diffusion", help="default: diffusion"
    )
    command.add_argument(
        "--after", metavar="TEXT", help="infill: what follows the gap, ids or text as the prompt"
    )
    command.add_argument(
        "--draft", metavar="TEXT", help="refine: what is revised, ids or text as the prompt"
    )
    command.add_argument("--block-length", type=int, help="default: the config's block_size")
    command.add_argument(
        "--rule",
        choices=RULES,
        help=f"what a step commits; default: {DEFAULT_RULE}, refine: {DEFAULT_REFINE_RULE}",
    )
    command.add_argument(
        "--threshold", type=float, help="in place of a rule: commit candidates at least this likely"
    )
    command.add_argument(
        "--steps", type=int, help="in place of a rule: denoising steps a block, evenly filled"
    )
    command.add_argument("--temperature", type=float, default=0.0, help="default: 0, greedy")
    command.add_argument("--top-k", type=int, help="sample among so many likeliest ids")
    command.add_argument("--top-p", type=float, help="sample within this share of probability")
    command.add_argument("--min-p", type=float, help="least probability, as a share of the largest")
    command.add_argument("--seed", type=int, default=0, help="of the sampling noise; default: 0")
    command.add_argument(
        "--numerics", choices=NUMERICS, default="batch_invariant", help="default: batch_invariant"
    )
    command.add_argument(
        "--lora",
        action=argparse.BooleanOptionalAction,
        help="draft with the checkpoint's LoRA; default: where it has one",
    )
    command.add_argument("--device", type=_device, help="default: cuda where there is one, or cpu")
    command.add_argument("--dtype", choices=STORED_DTYPES, help="default: as stored")
    command.add_argument(
        "--quantization", choices=KINDS, help="keep the layers' weights in 8 or 4 bits"
    )
    command.add_argument(
        "--trace",
        type=Path,
        metavar="PICTURE",
        help="draw how the tokens came into a .png, .svg or .pdf; not for autoregressive",
    )
    command.add_argument("--json", action="store_true", help="print the closing JSON line alone")


def _generate(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    device = arguments.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        _check_folder(folder)
        tokenizer = tokenizer_of(folder)
        prompt = arguments.tokens
        if prompt is None:
            prompt = _encoded("--prompt", arguments.prompt, tokenizer, folder)
        run = _generation(arguments, prompt, tokenizer, folder)
        if arguments.trace is not None:
            _check_trace(arguments.trace, arguments.mode)
        dtype = arguments.dtype and getattr(torch, arguments.dtype)
        model = load_model(folder, device=device, dtype=dtype, weights=arguments.quantization)
        events: list[StepEvent] = []
        with _live_blocks(model, tokenizer, arguments) as show:

            def on_step(event: StepEvent) -> None:
                events.append(event)
                show(event)

            start = time.perf_counter()
            generation = run(model, on_step=on_step if arguments.mode in _DENOISING else None)
            seconds = time.perf_counter() - start
    except (TypeError, ValueError, MemoryError) as error:
        arguments.parser.error(str(error))
    except DeviceError as error:
        arguments.parser.exit(1, f"{arguments.parser.prog}: {error}\n")

    summary = {
        "mode": arguments.mode,
        "tokens": generation.tokens,
        "text": tokenizer and tokenizer.decode(generation.tokens),
        "forwards": generation.forwards,
        "tpf": generation.tpf,
        "committed": generation.committed,
        "confidences": [[round(c, 4) for c in step] for step in generation.confidences],
        "accepted": generation.accepted,
        "seconds": seconds,
    }
    if not arguments.json:
        if tokenizer:
            print(summary["text"])
        print("tokens  ", *generation.tokens)
        print("forwards", ", ".join(f"{kind} {n}" for kind, n in generation.forwards.items()))
        if generation.tpf is not None:
            print(
                f"TPF      {generation.tpf:.2f} tokens a forward; the prefill is not counted, its"
                " token is"
            )
        print(f"time     {seconds:.3f} s")
    not_drawn = None
    if arguments.trace is not None:
        try:
            _draw_trace(arguments, model, tokenizer, generation, events)
        except OSError as error:
            not_drawn = error
        if not arguments.json and not not_drawn:
            print(f"trace    {arguments.trace}")
    print(json.dumps(summary))
    if not_drawn:
        arguments.parser.exit(1, f"{arguments.parser.prog}: argument --trace: {not_drawn}\n")
    return 0


def _check_folder(folder: Path) -> None:
    """Raise where there is no model, before anything else is blamed."""
    if (folder / "config.json").exists():
        return
    if folder == SMALL_MODEL:
        raise ValueError(
            f"argument FOLDER: this build came without its small model, {folder}; name a folder of"
            " config.json and safetensors"
        )
    raise ValueError(
        f"argument FOLDER: {folder} is no folder with a config.json; name one of config.json and"
        " safetensors"
    )


def _generation(
    arguments: argparse.Namespace, prompt: list[int], tokenizer: "Tokenizer | None", folder: Path
) -> Callable[..., Generation]:
    """What the arguments ask for, as a function of the model and `on_step`."""
    mode = arguments.mode
    length = 128 if arguments.max_new_tokens is None else arguments.max_new_tokens
    for name, owner in (("after", "infill"), ("draft", "refine")):
        given = getattr(arguments, name) is not None
        if given != (mode == owner):
            if given:
                raise ValueError(f"argument --{name}: needs --mode {owner}")
            raise ValueError(f"argument --mode: {mode} needs --{name}")
    sampling = Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        seed=arguments.seed,
    )
    options = {"sampling": sampling, "numerics": arguments.numerics, "rule": arguments.rule}
    # What a mode has no argument for must not be given; `generate` says so itself.
    more = {name: getattr(arguments, name) for name in ("threshold", "steps", "block_length")}
    if mode in MODES:
        options |= more | {"mode": mode, "lora": arguments.lora}
        return partial(generate, prompt=prompt, max_new_tokens=length, **options)
    refused = {"lora", "block_length"}
    if mode == "refine":
        refused = {"lora", "threshold", "steps", "max_new_tokens"}
    for name in sorted(refused):
        if getattr(arguments, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"argument --{flag}: {mode} has none")
    options |= {name: value for name, value in more.items() if name not in refused}
    if options["rule"] is None:
        del options["rule"]
    other = arguments.after if mode == "infill" else arguments.draft
    if arguments.tokens is not None:
        try:
            other = _ids(other)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"argument --{_REVISIONS[mode]}: {error}") from None
    else:
        other = _encoded(f"--{_REVISIONS[mode]}", other, tokenizer, folder, begins=False)
    if mode == "infill":
        return partial(infill, before=prompt, length=length, after=other, **options)
    return partial(refine, prompt=prompt, draft=other, **options)


def _encoded(
    flag: str, text: str, tokenizer: "Tokenizer | None", folder: Path, *, begins: bool = True
) -> list[int]:
    """Ids of a text; one that `begins` the sequence gets the tokenizer's BOS."""
    if tokenizer is None:
        raise ValueError(f"argument {flag}: {folder} has no tokenizer.json; use --tokens")
    return tokenizer.encode(text, add_special_tokens=begins).ids


@contextmanager
def _live_blocks(
    model: Model, tokenizer: "Tokenizer | None", arguments: argparse.Namespace
) -> Iterator:
    """An `on_step` that shows the blocks filling where somebody sees it."""
    if arguments.mode not in _DENOISING or arguments.json or not sys.stdout.isatty():
        yield lambda event: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    blocks: dict[int, Text] = {}

    def on_step(event: StepEvent) -> None:
        cells = Text()
        for position, token in enumerate(event.tokens):
            mask = token == model.config.mask_token_id
            style = "bold green" if position in event.committed else ""
            style = "dim" if position in event.undecided else style
            cells.append("· " if mask else f"{label_of(token, tokenizer)} ", style=style)
        blocks[event.block] = cells
        live.update(Text("\n").join(blocks.values()), refresh=True)

    # A console of its own: a shared one may have been made where nobody sees it.
    with Live(console=Console(file=sys.stdout), auto_refresh=False) as live:
        yield on_step


def label_of(token: int, tokenizer: "Tokenizer | None") -> str:
    """A token for a cell: its text on one line, a special token's name, or else its id."""
    if tokenizer is None:
        return str(token)
    if text := tokenizer.decode([token]):
        return text.translate(_VISIBLE)
    name = tokenizer.id_to_token(token)
    return f"⟨{name.strip('<|>/')}⟩" if name else str(token)


def _check_trace(path: Path, mode: str) -> None:
    """Raise what would keep a picture from being written, before a model has run for it."""
    if mode == "autoregressive":
        raise ValueError(f"argument --trace: {mode} has none; it needs a mode that denoises")
    try:
        from .block_trace import FORMATS
    except ModuleNotFoundError as error:
        raise ValueError(
            f"argument --trace: needs {error.name}; `pip install {error.name}` installs it"
        ) from None
    if path.suffix.lower()[1:] not in FORMATS:
        wanted = ", ".join(f".{name}" for name in FORMATS)
        raise ValueError(f"argument --trace: {path} must end in one of {wanted}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"argument --trace: {path} is not a file that can be written here")


def _draw_trace(
    arguments: argparse.Namespace,
    model: Model,
    tokenizer: "Tokenizer | None",
    generation: Generation,
    events: list[StepEvent],
) -> None:
    from .block_trace import save_picture, trace_of_cycles, trace_of_steps

    def label(token: int) -> str:
        return "" if token == model.config.mask_token_id else label_of(token, tokenizer)

    mode = arguments.mode
    how = [mode]
    if mode in _DENOISING:
        if arguments.threshold is None and arguments.steps is None:
            rule = arguments.rule or (DEFAULT_REFINE_RULE if mode == "refine" else DEFAULT_RULE)
            how.append(f"rule {rule}")
            confidence = RULES[rule].confidence
        else:
            confidence = "probability"
            given = {"threshold": arguments.threshold, "steps": arguments.steps}
            how += [f"{name} {value}" for name, value in given.items() if value is not None]
        trace = trace_of_steps(events, label, confidence)
    else:
        trace = trace_of_cycles(generation.tokens, generation.accepted, mode, label)
    if arguments.temperature:
        how.append(f"temperature {arguments.temperature:g}, seed {arguments.seed}")
    prompt = arguments.prompt or " ".join(map(str, arguments.tokens))
    lines = [
        ", ".join([*how, arguments.folder.resolve().name]),
        " ".join(f"prompt: {prompt}".split()),
    ]
    n_forwards = sum(n for kind, n in generation.forwards.items() if kind != "prefill")
    title = f"{len(generation.tokens)} tokens in {n_forwards} forwards behind the prefill"
    details = "\n".join(line if len(line) < 110 else f"{line[:109]}…" for line in lines)
    save_picture(trace, arguments.trace, title, details)


def tokenizer_of(folder: Path) -> "Tokenizer | None":
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is not a tokenizer: {error}") from None


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integer ids") from None


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError):
        raise argparse.ArgumentTypeError(f"torch has no device {text!r} here") from None
    return device
