"""What lies beside a trained checkpoint: its card, its training record and its loss curve."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from textwrap import fill

import torch

from ..model import Model
from ..tasks import TASKS
from ..whole_file import write_whole
from .distributed import world_size
from .fit import HISTORY, read_history
from .loss_curve import draw_loss_curve
from .recipe import SMALL, Recipe

CURVE_FILE = "loss.png"
RECORD_FILE = "training.json"


def write_card(checkpoint: Path, folder: Path, recipe: Recipe) -> None:
    """Write README.md, training.json and loss.png into the checkpoint of the run in `folder`."""
    fits = {name: read_history(folder / f"{name}_fit" / HISTORY) for name in ("model", "draft")}
    record = {
        "recipe": recipe.to_dict(),
        "device": _device_name(),
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "tokenizers")},
        },
        "seconds": {name: sum(step["seconds"] for step in steps) for name, steps in fits.items()},
        "tokens": {name: sum(step["tokens"] for step in steps) for name, steps in fits.items()},
    }
    write_whole(checkpoint / RECORD_FILE, json.dumps(record, indent=1) + "\n")
    draw_loss_curve(folder, recipe.ar_steps, checkpoint / CURVE_FILE)
    n_parameters = sum(p.numel() for p in _shapes(recipe))
    megabytes = (
        sum(
            file.stat().st_size
            for file in checkpoint.rglob("*")
            if file.is_file() and file.suffix in (".safetensors", ".json")
        )
        / 1e6
    )
    minutes = sum(record["seconds"].values()) / 60
    n_tokens = sum(record["tokens"].values())
    model = recipe.model
    paragraphs = (
        "# A small diffusion language model" if recipe == SMALL else "# A diffusion language model",
        f"{n_parameters / 1e6:.1f} million parameters ({model.num_hidden_layers} layers of hidden"
        f" size {model.hidden_size}, {model.vocab_size} ids, blocks of {model.block_size}),"
        f" {megabytes:.1f} MB with its tokenizer and draft LoRA, in the format of Nemotron-Labs"
        " Diffusion. One checkpoint decodes autoregressively, by diffusion and by"
        " self-speculation. It is there to show acceptance, confidence and mistakes that random"
        " weights cannot show; it knows its tasks and nothing else.",
        "## Data",
        f"Generated tasks with one right answer each ({', '.join(TASKS)}; see `dlm_core/tasks`),"
        " and documentation strings and short functions of the standard library of Python"
        f" {record['versions']['python']} (licence: PSF-2.0), {recipe.text_share:.0%} of the"
        " documents of the first two stages. One text in 20 is held out, by a hash of its content."
        " Prompts are chat turns; the tokenizer adds the special tokens.",
        "## Training",
        f"`{'make train' if recipe == SMALL else 'dlm train --recipe'}`, seed {recipe.seed}:"
        f" {recipe.ar_steps} autoregressive steps,"
        f" {recipe.joint_steps} with the joint loss L_AR + 0.3 L_diff, and {recipe.draft_steps} of"
        f" the draft LoRA (rank {recipe.draft_rank}, on o_proj) on the frozen model and the tasks"
        " alone; Muon for the matrices of the layers, AdamW for all else;"
        f" {n_tokens / 1e6:.1f} million tokens in both streams. The steps took {minutes:.0f}"
        f" minutes on {record['device']}: processes {record['processes']}, threads"
        f" {record['threads']}, torch {record['versions']['torch']}. The weights are an"
        f" exponential moving average (decay {recipe.ema_decay:g})."
        f" `{RECORD_FILE}` holds every setting.",
        f"![Loss over the steps of training]({CURVE_FILE})",
        "## Limits",
        "It answers in the formats of its tasks alone, and has seen no prompt much longer than"
        " theirs. Code that it writes should be run as any stranger's code is: with limits.",
    )
    wrapped = (fill(each, 100, break_long_words=False) for each in paragraphs)
    write_whole(checkpoint / "README.md", "\n\n".join(wrapped) + "\n")


def _shapes(recipe: Recipe) -> list[torch.nn.Parameter]:
    return list(Model(recipe.model, device="meta", dtype=torch.float32).parameters())


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
