"""`dlm train`: tokenizer, model, draft LoRA, loss curve and card, from a recipe.

The three stages are those of Nemotron-Labs Diffusion: autoregressive first, then the joint loss of
both streams, then the draft LoRA on the frozen model. A run that was interrupted goes on where it
was when it is started again with the same folder.
"""

import argparse
import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .. import draft_lora
from ..checkpoint import load_model, save_weights
from ..model import Model, Rotary
from ..whole_file import write_whole
from . import draft
from .card import write_card
from .data import Mixture
from .distributed import barrier, process_group, rank, shard, whole, world_size
from .fit import Schedule, fit
from .initial import initialise
from .loss import Loss, losses
from .progress import ProgressBar
from .recipe import SMALL, Recipe
from .rows import Masking, Rows
from .tokenizer import train_tokenizer

RECIPES = {"small": SMALL}
LOCK = "lock"


class FolderTaken(ValueError):
    """The folder of a run holds another one."""


def train(recipe: Recipe, folder: Path) -> Path:
    """Run or resume a recipe; returns the checkpoint folder, `folder`/model.

    Started by torchrun, every process calls this, and the weights are sharded over them.

    Raises:
        FolderTaken: `folder` holds a run of another recipe, or one that is under way.
        ModuleNotFoundError: what draws the loss curve is not installed.
        FloatingPointError: a gradient is not finite.
    """
    checkpoint = folder / "model"
    if find_spec("matplotlib") is None:
        # Said now, so that a long run does not end for want of it.
        raise ModuleNotFoundError("matplotlib is missing, which draws the loss curve; install it")
    with process_group() as device, _claimed(folder, recipe):
        if rank() == 0:
            if not (checkpoint / "tokenizer.json").exists():
                text = train_tokenizer(recipe.seed, recipe.model.vocab_size).to_str()
                write_whole(checkpoint / "tokenizer.json", text)
        barrier()
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        mixture = Mixture(
            tokenizer,
            recipe.seed,
            recipe.text_share,
            recipe.row_length,
            recipe.tokens_per_step // world_size(),
            recipe.task_weights,
        )
        _train_model(recipe, mixture, folder, checkpoint, device)
        _train_draft(recipe, mixture, folder, checkpoint, device)
        if rank() == 0:
            write_card(checkpoint, folder, recipe)
        barrier()
    return checkpoint


@contextmanager
def _claimed(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Make the folder this recipe's, or see that it is, and keep other runs out meanwhile."""
    if rank() != 0:
        yield
        return
    path = folder / "recipe.json"
    text = json.dumps(recipe.to_dict(), indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTaken(f"folder is {folder}, where another run is under way") from None
        if not path.exists():
            write_whole(path, text)
        elif path.read_text(encoding="utf-8") != text:
            raise FolderTaken(
                f"folder is {folder}, which holds a run of another recipe; choose a new one, or"
                " remove it to start anew"
            )
        yield


def _train_model(
    recipe: Recipe, mixture: Mixture, folder: Path, checkpoint: Path, device: torch.device
) -> None:
    """The first two stages; writes the checkpoint."""
    mask_id, eos_id = recipe.model.mask_token_id, recipe.model.eos_token_id
    noise = Masking(mask_id, eos_id, all_masked=recipe.all_masked)
    model = new_model(recipe, device)

    def batch(step: int) -> Rows:
        return mixture.batch(step, None if step < recipe.ar_steps else noise, rank())

    schedule = model_schedule(recipe)
    with ProgressBar("model", schedule.steps) as bar:
        fit(model, partial(losses, model), batch, schedule, folder / "model_fit", bar.report)
    # One at a time, so that no process but the one that writes holds more than its share.
    weights = {}
    for name, parameter in model.named_parameters():
        value = whole(parameter)
        if rank() == 0:
            weights[name] = value.cpu()
    if rank() == 0:
        save_weights(checkpoint, recipe.model, weights)
    barrier()


def _train_draft(
    recipe: Recipe, mixture: Mixture, folder: Path, checkpoint: Path, device: torch.device
) -> None:
    """The last stage; writes the checkpoint's draft LoRA."""
    mask_id, eos_id = recipe.model.mask_token_id, recipe.model.eos_token_id
    noise = Masking(mask_id, eos_id, keep_first=1.0, all_masked=1.0)
    # Real text can hardly be guessed so far ahead, and would drown what can.
    mixture = replace(mixture, text_share=0.0)
    # On the weights as they are stored, which are what a draft will run with.
    model = load_model(checkpoint, device=device, dtype=torch.float32)
    draft.add_draft_projections(model, recipe.draft_rank, recipe.draft_alpha / recipe.draft_rank)
    shard(model, device)
    draft.initialise(model, recipe.seed)

    def batch(step: int) -> Rows:
        # Batches that the stages before have not seen.
        seen = recipe.ar_steps + recipe.joint_steps
        return mixture.batch(seen + step, noise, rank())

    def draft_losses(rows: Rows) -> Loss:
        draft.mark_drafts(model, rows)
        return losses(model, rows, lora=True)

    schedule = _schedule(recipe, recipe.draft_steps, recipe.draft_learning_rate)
    with ProgressBar("draft", schedule.steps) as bar:
        fit(model, draft_losses, batch, schedule, folder / "draft_fit", bar.report)
    projections = [layer.self_attn.draft_o_proj for layer in model.encoder.layers]
    layers = [(whole(projection.lora_A), whole(projection.lora_B)) for projection in projections]
    if rank() == 0:
        draft_lora.write(checkpoint, recipe.model, layers, recipe.draft_alpha)
    barrier()


def new_model(recipe: Recipe, device: torch.device) -> Model:
    """The model that training starts from, in float32, sharded where there are many processes."""
    model = Model(recipe.model, device="meta", dtype=torch.float32)
    model.requires_grad_(True)
    shard(model, device)
    model.to_empty(device=device)
    model.rotary = Rotary(recipe.model.rope, recipe.model.head_dim, device=device)
    initialise(model, recipe.seed)
    return model


def model_schedule(recipe: Recipe) -> Schedule:
    """The schedule of the first two stages, which are one fit."""
    return _schedule(recipe, recipe.ar_steps + recipe.joint_steps, recipe.learning_rate)


def _schedule(recipe: Recipe, steps: int, learning_rate: float) -> Schedule:
    return Schedule(
        steps=steps,
        learning_rate=learning_rate,
        matrix_learning_rate=recipe.matrix_learning_rate,
        warmup=recipe.warmup,
        decay_share=recipe.decay_share,
        weight_decay=recipe.weight_decay,
        max_gradient_norm=recipe.max_gradient_norm,
        ema_decay=recipe.ema_decay,
        save_every=recipe.save_every,
    )


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status, and exits with 2 on a user's error."""
    parser = argparse.ArgumentParser(prog="dlm train", description=__doc__)
    parser.add_argument(
        "--recipe", default="small", help=f"{', '.join(RECIPES)} or a JSON file; default: small"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/train"), help="folder of the run; default: out/train"
    )
    arguments = parser.parse_args(argv)
    try:
        recipe = RECIPES.get(arguments.recipe) or Recipe.from_json(arguments.recipe)
    except (TypeError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    try:
        checkpoint = train(recipe, arguments.out)
    except (FloatingPointError, FolderTaken, ModuleNotFoundError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command goes on from here\n")
    if rank() == 0:
        print(json.dumps({"model": str(checkpoint)}))
    return 0
