"""Decoding a sample: the tokens of `generate`, and answers that are right only if they end."""

import itertools
from collections import Counter

import pytest

from dlm_bench.quality import evaluate as module
from dlm_bench.quality.evaluate import Setting, evaluate, longest_answer, sample
from dlm_core import Batch, Model, generate
from dlm_core.tasks import TASKS, Example

SETTINGS = [
    Setting("autoregressive"),
    Setting("diffusion", threshold=0.7, block_length=4),
    Setting("diffusion", rule="llada2", block_length=8),
    Setting("diffusion", steps=2, block_length=8),
    Setting("linear_spec", block_length=8, lora=True),
    Setting("quadratic_spec", block_length=4),
]
PROMPTS = ["5 8 11 14", "30 31", "7 9 11 13 15 17 19", "50 54", "20 21 22"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_outcomes_are_those_of_generate_in_order(
    model: Model, tokenizer, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONCURRENT", 2)
    examples = [Example("sort", prompt, "") for prompt in PROMPTS]
    done = []
    parts = [[3, 1], [0, 2, 4], []]
    options = {"max_new_tokens": 12, "parts": parts, "on_done": lambda: done.append(1)}
    outcomes, seconds = evaluate(model, tokenizer, examples, setting, **options)
    assert min(seconds[:2]) > seconds[2] >= 0
    assert len(done) == len(examples)
    for outcome, example in zip(outcomes, examples, strict=True):
        prompt = tokenizer.encode(example.prompt).ids
        expected = generate(model, prompt, 12, setting.mode, **setting.options)
        assert outcome.example is example
        assert outcome.generation == expected
        counted = {kind: n for kind, n in expected.forwards.items() if kind != "prefill"}
        assert outcome.forwards == sum(counted.values())


def test_an_answer_without_its_end_is_not_right(model: Model, tokenizer) -> None:
    whole = generate(model, tokenizer.encode("30 40").ids, 20).tokens
    assert whole[-1] == model.config.eos_token_id
    text = tokenizer.decode(whole)
    examples = [Example("sort", "30 40", text), Example("sort", "30 40", f"{text} 4")]
    limit = longest_answer(tokenizer, examples[:1])
    assert limit == len(whole)

    def right(max_new_tokens: int) -> list[bool]:
        setting = Setting("autoregressive")
        outcomes, _ = evaluate(model, tokenizer, examples, setting, max_new_tokens=max_new_tokens)
        return [outcome.right for outcome in outcomes]

    assert right(limit) == [True, False]
    # The same text, cut off before its EOS.
    assert right(limit - 1) == [False, False]


def test_only_decoding_is_timed(model: Model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def takes(function, seconds: float):
        def slowly(*args, **options):
            clock[0] += seconds
            return function(*args, **options)

        return slowly

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    for name in ("encoded", "are_right", "Batch"):
        monkeypatch.setattr(module, name, takes(getattr(module, name), 100.0))
    monkeypatch.setattr(Batch, "step", takes(Batch.step, 1.0))
    examples = [Example("sort", prompt, "") for prompt in PROMPTS]
    _, seconds = evaluate(
        model, tokenizer, examples, SETTINGS[0], max_new_tokens=4, parts=[[0], [1, 2, 3, 4]]
    )
    # A prefill and three forwards; and those of prompts of three other lengths run beside them.
    assert seconds == [4.0, 4.0]


@pytest.mark.parametrize("setting", SETTINGS[1:4], ids=lambda setting: setting.name)
def test_a_seeded_block_s_first_token_is_not_denoised(
    model: Model, tokenizer, setting: Setting
) -> None:
    prompt = tokenizer.encode(PROMPTS[0]).ids
    committed = generate(model, prompt, 12, setting.mode, **setting.options).committed
    assert setting.seeded == (0 not in itertools.chain(*committed))
    assert setting.seeded == (setting.rule is None)


def test_autoregressive_decoding_counts_a_token_a_forward(model: Model, tokenizer) -> None:
    examples = [Example("sort", prompt, "") for prompt in PROMPTS]
    setting = SETTINGS[0]
    outcomes, _ = evaluate(model, tokenizer, examples, setting, max_new_tokens=9)
    for outcome in outcomes:
        assert len(outcome.generation.tokens) - setting.seeded == outcome.forwards


def test_shorter_samples_begin_longer_ones_with_as_many_of_each_task() -> None:
    longer, shorter = sample(3, seed=1), sample(1, seed=1)
    assert longer[: len(shorter)] == shorter
    assert [example.task for example in shorter] == list(TASKS)
    assert set(Counter(example.task for example in longer).values()) == {3}
    assert len({example.prompt for example in longer}) == len(longer)


def test_settings_have_names_that_tell_them_apart() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(set(names)) == len(names)
    assert Setting("diffusion", steps=1).name == "diffusion, 1 step a block"
