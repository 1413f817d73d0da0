"""Decoding a sample: the tokens of `generate`, and answers that are right only if they end."""

import itertools
from collections import Counter

import pytest

from dlm_bench.quality import decode as module
from dlm_bench.quality.decode import decode, passages_of, right_ones, sample
from dlm_bench.quality.settings import Setting
from dlm_core import Batch, Model, generate
from dlm_core.tasks import TASKS, Example

SETTINGS = [
    Setting("autoregressive"),
    Setting("diffusion", threshold=0.7, block_length=4),
    Setting("diffusion", rule="llada2", block_length=8),
    Setting("linear_spec", block_length=8, lora=True),
]
PROMPTS = ["5 8 11 14", "30 31", "7 9 11 13 15 17 19", "50 54", "20 21 22"]


@pytest.fixture
def prompts(tokenizer) -> list[list[int]]:
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_generations_are_those_of_generate_in_order(
    model: Model, prompts: list[list[int]], setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONCURRENT", 2)
    done = []
    options = {"max_new_tokens": 12, "timed": [3, 1], "on_done": lambda: done.append(1)}
    found, seconds = decode(model, prompts, setting, **options)
    assert found == [generate(model, each, 12, setting.mode, **setting.options) for each in prompts]
    assert seconds > 0 and len(done) == len(prompts)
    if setting.mode == "diffusion":
        # A seeded block's first token is the prefill's, and not denoised.
        assert setting.seeded == (0 not in itertools.chain(*found[0].committed))


def test_what_is_timed_is_decoded_last_and_alone(
    model: Model, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, step = [0.0], Batch.step

    def slow_step(batch: Batch) -> list:
        clock[0] += 1
        return step(batch)

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Batch, "step", slow_step)
    _, seconds = decode(model, prompts, SETTINGS[0], max_new_tokens=4, timed=[0])
    # A prefill and three forwards, after those of the others.
    assert seconds == 4 and clock[0] > 4


def test_an_answer_without_its_end_is_not_right(model: Model, tokenizer) -> None:
    prompt = tokenizer.encode("30 40").ids
    whole = generate(model, prompt, 20).tokens
    assert whole[-1] == model.config.eos_token_id
    text = tokenizer.decode(whole)
    examples = [Example("sort", "30 40", text), Example("sort", "30 40", f"{text} 4")]
    eos = model.config.eos_token_id
    assert passages_of(tokenizer, examples[:1], eos) == [(prompt, whole)]
    for limit, expected in ((len(whole), [True, False]), (len(whole) - 1, [False, False])):
        found, _ = decode(model, [prompt] * 2, Setting("autoregressive"), max_new_tokens=limit)
        assert right_ones(tokenizer, examples, found, eos) == expected


def test_shorter_samples_begin_longer_ones_with_as_many_of_each_task() -> None:
    longer, shorter = sample(3, seed=1), sample(1, seed=1)
    assert longer[: len(shorter)] == shorter
    assert [example.task for example in shorter] == list(TASKS)
    assert set(Counter(example.task for example in longer).values()) == {3}
    assert len({example.prompt for example in longer}) == len(longer)
