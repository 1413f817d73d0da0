"""The `dlm` command: generate, train, measure speed and quality, say what is here."""

import argparse
import importlib.metadata
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dlm_kernels import launch
from dlm_kernels.backend import backend_for

from . import generate_command
from .checkpoint import SMALL_MODEL
from .config import PRESETS, ModelConfig
from .model import Model


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, and exits with 2 on a user's error."""
    try:
        status = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read us has gone, as `| head` does; what is left to print has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _run(argv: list[str]) -> int:
    # These have options of their own, and packages that need not be there.
    if argv[:1] == ["bench"]:
        from dlm_bench import run

        return run.main(argv[1:])
    if argv[:1] == ["quality"]:
        from dlm_bench.quality import run

        return run.main(argv[1:])
    if argv[:1] == ["train"]:
        from .training import run

        return run.main(argv[1:])
    if argv[:2] == ["roofline", "advise"]:
        from dlm_roofline.advise import command

        return command.main(argv[2:])
    if argv[:1] == ["roofline"]:
        from dlm_roofline import plots

        return plots.main(argv[1:])
    if argv[:1] == ["report"]:
        from dlm_bench.report import run

        return run.main(argv[1:])
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        parser.exit(130, "dlm: interrupted\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dlm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate_command.add_to(commands)
    commands.add_parser("bench", help="measure ceilings, ops and denoising steps", add_help=False)
    commands.add_parser("train", help="train the small model, or one of yours", add_help=False)
    commands.add_parser("quality", help="measure quality beside speed", add_help=False)
    commands.add_parser(
        "roofline", help="draw the pictures of records; advise: what to run", add_help=False
    )
    commands.add_parser("report", help="records and pictures as one HTML file", add_help=False)

    command = commands.add_parser("info", help="versions, devices, and the size of a model")
    command.set_defaults(run=_info, parser=command)
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"a checkpoint folder, small (the one that comes with this), {', '.join(PRESETS)}",
    )
    return parser


def _info(arguments: argparse.Namespace) -> int:
    print("python      ", sys.version.split()[0])
    for package in ("dlm-kernels", "torch", "triton", "numpy", "safetensors", "tokenizers"):
        try:
            print(f"{package:12}", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(f"{package:12} not installed")
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        print(f"{device!s:12} {_device_line(device)}")
    if arguments.model is None:
        return 0

    try:
        folder = SMALL_MODEL if arguments.model == "small" else Path(arguments.model)
        config = PRESETS.get(arguments.model) or ModelConfig.from_json(folder / "config.json")
    except (TypeError, ValueError) as error:
        arguments.parser.error(f"argument MODEL: {error}")
    print()
    _print_model(arguments.model, config)
    return 0


def _device_line(device: torch.device) -> str:
    """Backend, and for a GPU its name and the launch table that serves it."""
    backend = f"{backend_for(torch.empty(0, device=device))} backend"
    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads, {backend}"
    arch = launch.arch_of(device)
    tables = (launch.BLOCK_ATTENTION, launch.CONFIDENCE, launch.LINEAR, launch.LM_HEAD)
    n_tuned = sum(entry.tuned for table in tables for entry in _entries(table[arch]))
    name = torch.cuda.get_device_name(device)
    return f"{name}, {backend}, launch table {arch}: {n_tuned or 'no'} entries tuned"


def _entries(table) -> Iterator:
    """Launch configurations in a table, however deep its keys go."""
    if isinstance(table, dict):
        for inner in table.values():
            yield from _entries(inner)
    else:
        yield table


def _print_model(name: str, config: ModelConfig) -> None:
    dtype = getattr(torch, config.torch_dtype)
    model = Model(config, device="meta", dtype=dtype)
    n_parameters = sum(p.numel() for p in model.parameters())
    n_read = n_parameters - model.encoder.embed_tokens.weight.numel()
    kv_size = config.num_key_value_heads * config.head_dim
    kv_bytes = 2 * config.num_hidden_layers * kv_size * dtype.itemsize
    rows = {
        "model": name,
        "layers": f"{config.num_hidden_layers} of hidden size {config.hidden_size},"
        f" intermediate {config.intermediate_size}",
        "attention": f"{config.num_attention_heads} query and {config.num_key_value_heads} KV heads"
        f" of {config.head_dim}",
        "vocabulary": f"{config.vocab_size}; mask {config.mask_token_id},"
        f" EOS {config.eos_token_id}, BOS {config.bos_token_id}",
        "context": f"{config.max_position_embeddings} positions; blocks of {config.block_size}",
        "dtype": config.torch_dtype,
        "parameters": f"{n_parameters:,}",
        "a forward": f"reads {n_read * dtype.itemsize:,} bytes of weights",
        "KV cache": f"{kv_bytes:,} bytes a token",
    }
    for key, value in rows.items():
        print(f"{key:12} {value}")


if __name__ == "__main__":
    sys.exit(main())
