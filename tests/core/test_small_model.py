"""The model in the box: what it gets right on held-out examples, and without a loss."""

import functools
from pathlib import Path

import pytest
import torch

from dlm_core import SMALL_MODEL, Batch, Generation, Model, cli, load_model
from dlm_core.tasks import TASKS, Example, are_right, heldout

tokenizers = pytest.importorskip("tokenizers")

# The least right answers, as measured less one of 25 and less three of 200: a guard against
# regressions and no more.
AT_LEAST = {
    "autoregressive": {2: 22, 16: 183},
    "diffusion": {2: 22, 16: 179},
    "linear_spec": {2: 22, 16: 183},
    "quadratic_spec": {16: 183},
}


def few_or_many(mode: str, *options: object) -> list:
    """A mode's parameters with 2 examples of a task, and with 16 under --full."""
    few = [(mode, 2, *options)] if 2 in AT_LEAST[mode] else []
    return [*few, pytest.param(mode, 16, *options, marks=pytest.mark.full)]


@functools.cache
def small_model() -> Model:
    return load_model(SMALL_MODEL, dtype=torch.float32)


@functools.cache
def tokenizer() -> "tokenizers.Tokenizer":
    return tokenizers.Tokenizer.from_file(str(SMALL_MODEL / "tokenizer.json"))


@functools.cache
def examples(n_per_task: int) -> list[Example]:
    """So many of each task, but half as many Python functions."""
    drawn = heldout(n_per_task, seed=200)
    return [example for i, example in enumerate(drawn) if example.task != "python" or i % 2]


@functools.cache
def generations(mode: str, n_per_task: int, lora: bool = True) -> list[Generation]:
    batch = Batch(small_model(), pages=64 * 8)
    options = {"lora": lora} if mode == "linear_spec" else {}
    prompts = [tokenizer().encode(example.prompt).ids for example in examples(n_per_task)]
    requests = [batch.submit(prompt, 72, mode, **options) for prompt in prompts]
    batch.run()
    return [request.generation for request in requests]


def test_the_examples_are_of_every_task() -> None:
    for n, expected in ((2, 25), (16, 200)):
        assert len(examples(n)) == len({example.prompt for example in examples(n)}) == expected
        assert {example.task for example in examples(n)} == set(TASKS)


@pytest.mark.parametrize(("mode", "n_per_task"), sum(map(few_or_many, AT_LEAST), []))
def test_as_many_answers_are_right_as_when_it_was_trained(mode: str, n_per_task: int) -> None:
    found = generations(mode, n_per_task)
    texts = [tokenizer().decode(generation.tokens) for generation in found]
    ended = [generation.tokens[-1] == small_model().config.eos_token_id for generation in found]
    right = are_right(examples(n_per_task), texts)
    assert sum(map(all, zip(right, ended, strict=True))) >= AT_LEAST[mode][n_per_task]


@pytest.mark.parametrize(
    ("mode", "n_per_task", "lora"),
    [
        *few_or_many("linear_spec", True),
        *few_or_many("linear_spec", False),
        *few_or_many("quadratic_spec", True),
    ],
)
def test_self_speculation_is_lossless(mode: str, n_per_task: int, lora: bool) -> None:
    expected = generations("autoregressive", n_per_task)
    found = generations(mode, n_per_task, lora=lora)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    n_forwards = [sum(sum(each.forwards.values()) for each in run) for run in (found, expected)]
    assert n_forwards[0] < n_forwards[1] / 3


def test_it_takes_at_most_12_megabytes() -> None:
    sizes = [file.stat().st_size for file in SMALL_MODEL.rglob("*") if file.is_file()]
    assert sum(sizes) <= 12_000_000


def test_the_command_answers_right_with_no_folder_given(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "trace.png"
    cli.main(["generate", "--prompt", "sort: 5 3 9 1", "--trace", str(picture)])
    assert capsys.readouterr().out.splitlines()[0] == "1 3 5 9"
    assert picture.stat().st_size > 10_000
