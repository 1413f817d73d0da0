"""Training as a whole: the loss falls, a killed run ends as if nothing had happened, two processes
learn what one learns, and what comes out is a checkpoint."""

import fcntl
import json
import re
import socket
import time
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean

import pytest
import torch
import train_process
from tokenizers import Tokenizer

import dlm_core
from dlm_core.tasks import TASKS
from dlm_core.training.data import Mixture
from dlm_core.training.fit import HISTORY, StepReport, fit, read_history
from dlm_core.training.loss import losses
from dlm_core.training.recipe import SMALL, Recipe
from dlm_core.training.rows import Masking, Rows
from dlm_core.training.run import LOCK, FolderTaken, main, model_schedule, new_model, train
from dlm_core.training.tokenizer import EOS_ID, MASK_ID


def history(folder: Path, stage: str) -> list[dict]:
    """The steps of a stage, without the one field that no two runs share."""
    steps = read_history(folder / f"{stage}_fit" / HISTORY)
    return [{key: value for key, value in step.items() if key != "seconds"} for step in steps]


def outcome(folder: Path) -> tuple:
    files = sorted((folder / "model").rglob("*.safetensors"))
    return [file.read_bytes() for file in files], history(folder, "model"), history(folder, "draft")


def prepared(recipe: Recipe, folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Arguments of `dlm train` for a run whose tokenizer is there already."""
    (folder / "model").mkdir(parents=True)
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(recipe.to_dict()))
    return ["--recipe", str(path), "--out", str(folder)]


def wait_for(process: BaseProcess) -> None:
    process.join()
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def finished(
    recipe: Recipe, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    wait_for(train_process.start(prepared(recipe, folder, tokenizer)))
    return folder


def test_loss_falls_and_a_checkpoint_comes_out(finished: Path, recipe: Recipe) -> None:
    steps = read_history(finished / "model_fit" / HISTORY)
    n_steps = recipe.ar_steps + recipe.joint_steps
    assert [step["step"] for step in steps] == list(range(1, n_steps + 1))
    ar = [step["ar"] for step in steps]
    diffusion = [step["diffusion"] for step in steps if step["diffusion"] is not None]
    assert len(diffusion) == recipe.joint_steps, "the first steps have no noisy stream"
    assert fmean(ar[-5:]) < 0.75 * fmean(ar[:5])
    assert fmean(diffusion[-5:]) < 0.9 * fmean(diffusion[:5])

    checkpoint = finished / "model"
    model = dlm_core.load_model(checkpoint)
    assert model.has_draft_lora
    assert dlm_core.generate(model, [2, 3, 9, 4], 8, "linear_spec").tokens
    record = json.loads((checkpoint / "training.json").read_text())
    assert record["seconds"]["model"] > 0 and record["tokens"]["draft"] > 0
    card = (checkpoint / "README.md").read_text()
    assert "loss.png" in card and (checkpoint / "loss.png").stat().st_size > 10_000


def test_a_killed_run_ends_with_the_same_bits(
    finished: Path, recipe: Recipe, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    arguments = prepared(recipe, folder, tokenizer)
    # Before the first state, between states, and within the last stage.
    for stage, step in (("model", 3), ("model", recipe.ar_steps + 5), ("draft", 2)):
        process = train_process.start(arguments)
        path = folder / f"{stage}_fit" / HISTORY
        while process.is_alive() and len(read_history(path)) < step:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert not (folder / "model" / "README.md").exists(), "it was killed too late"
    wait_for(train_process.start(arguments))
    assert outcome(folder) == outcome(finished)


def test_two_processes_learn_what_one_learns_from_both_their_batches(
    recipe: Recipe, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    recipe = replace(recipe, ar_steps=4, joint_steps=6, draft_steps=2, warmup=1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    arguments = prepared(recipe, tmp_path / "run", tokenizer)
    group = {"CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    together = [
        train_process.start(arguments, **group, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
        for rank in "01"
    ]
    half = recipe.tokens_per_step // 2
    drawn_as = (recipe.seed, recipe.text_share, recipe.row_length, half, recipe.task_weights)
    mixture = Mixture(tokenizer, *drawn_as)
    noise = Masking(MASK_ID, EOS_ID, all_masked=recipe.all_masked)

    def both(step: int) -> Rows:
        batches = [mixture.batch(step, noise if step >= 4 else None, rank) for rank in (0, 1)]
        return Rows(*map(torch.cat, zip(*batches, strict=True)))

    alone: list[StepReport] = []
    model = new_model(recipe, torch.device("cpu"))
    schedule = model_schedule(recipe)
    fit(model, partial(losses, model), both, schedule, tmp_path / "alone", alone.append)

    for process in together:
        wait_for(process)
    steps = read_history(tmp_path / "run" / "model_fit" / HISTORY)
    for one, two in zip(alone, steps, strict=True):
        assert one.tokens == two["tokens"]
        # Products are rounded to bfloat16, in another order on two processes.
        assert two["ar"] == pytest.approx(one.ar, rel=5e-3), one.step
        assert two["diffusion"] == (one.diffusion and pytest.approx(one.diffusion, rel=5e-3))
    assert alone[-1].ar < 0.97 * alone[0].ar, "ten steps that learn nothing would show nothing"
    assert dlm_core.load_model(tmp_path / "run" / "model").has_draft_lora


def test_a_folder_of_another_recipe_is_left_alone(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "recipe.json").write_text("{}\n")
    with pytest.raises(FolderTaken, match="holds a run of another recipe"):
        train(recipe, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, "recipe.json"}
    assert (tmp_path / "recipe.json").read_text() == "{}\n"


def test_a_folder_where_a_run_is_under_way_is_left_alone(recipe: Recipe, tmp_path: Path) -> None:
    with open(tmp_path / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderTaken, match="where another run is under way"):
            train(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "seeds is no field of a recipe"),
        ({"recipe": {"seed": 0}}, "ar_steps is missing"),
        ({"recipe": 3}, "recipe is 3; it must be an object"),
        ({"ar_steps": 0}, r"ar_steps is 0; it must be in \[1, inf\]"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number"),
        ({"decay_share": 0}, "decay_share is 0; it must be finite and above 0"),
        ({"seed": 1.5}, "seed is 1.5; it must be an integer"),
        ({"task_weights": dict.fromkeys(TASKS, 0)}, "task_weights is 0 for every task"),
        ({"task_weights": {"sort": -1}}, "task_weights.sort is -1; it must be finite"),
        ({"all_masked": 1.5}, "all_masked is 1.5; it must be at most 1"),
        ({"text_share": 2}, "text_share is 2; it must be at most 1"),
        ({"task_weights": {"sorting": 2}}, "task_weights names 'sorting', which is no task"),
        ({"model": None}, "model is None; it must be an object"),
        ({"model": SMALL.model.to_dict() | {"vocab_size": 99}}, "model.vocab_size is 99"),
    ],
)
def test_a_recipe_that_does_not_fit_is_named_with_its_file(
    change: dict, message: str, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_dict() | change))
    with pytest.raises(SystemExit) as exit:
        main(["--recipe", str(path), "--out", str(tmp_path / "run")])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_shipped_record_is_a_recipe_too() -> None:
    assert Recipe.from_json(dlm_core.SMALL_MODEL / "training.json") == SMALL


def test_a_recipe_survives_its_file(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, task_weights={"sort": 2.0})
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    assert Recipe.from_json(tmp_path / "recipe.json") == recipe
