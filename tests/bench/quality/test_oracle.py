"""The oracle against the plainest loops that do what its docstring says."""

import pytest
import torch

from dlm_bench.quality import oracle
from dlm_bench.quality.oracle import Reference
from dlm_core import KVCache, Model, generate


@pytest.fixture(scope="module")
def references(model: Model) -> list[Reference]:
    """What the model gives, of several lengths, and two answers that it would not give."""
    prompts = [[1, 5, 8, 11, 14], [1, 30, 31], [7, 9, 11, 13, 15, 17, 19], [1, 50, 54]]
    found = [Reference(prompt, generate(model, prompt, 21).tokens) for prompt in prompts]
    changed = list(found[0].answer)
    changed[2::4] = [40] * len(changed[2::4])
    return [
        *found,
        Reference(prompts[0], changed),
        Reference(prompts[1], [9, 60, 4]),
        Reference([8], [2]),
    ]


def plain_choices(model: Model, context: list[int], block: list[int], lora: bool) -> list[int]:
    """Argmax of one denoising forward of one block, the whole context run anew."""
    cache = KVCache(model.config, 1, 128, device="cpu", dtype=model.dtype)
    model(torch.tensor([context]), cache, causal=True)
    cache.advance(len(context))
    logits = model.logits(model(torch.tensor([block]), cache, causal=False, lora=lora))[0]
    logits[:, model.config.mask_token_id] = -torch.inf
    return logits.argmax(-1).tolist()


def plain_denoise(model: Model, reference: Reference, length: int) -> tuple[int, int, list[int]]:
    """Forwards, forced steps and commits a step."""
    mask, answer = model.config.mask_token_id, reference.answer
    forwards, forced, per_step = 0, 0, []
    for begin in range(0, len(answer), length):
        target = answer[begin : begin + length]
        block = [target[0]] + [mask] * (length - 1)
        open_ = set(range(1, len(target)))
        while open_:
            choices = plain_choices(model, reference.prompt + answer[:begin], block, False)
            right = {i for i in open_ if choices[i] == target[i]}
            if not right:
                right, forced = {min(open_)}, forced + 1
            for i in right:
                block[i] = target[i]
            open_ -= right
            per_step.append(len(right))
            forwards += 1
        forwards += begin + length < len(answer)
    return forwards, forced, per_step


@pytest.mark.parametrize("length", [5, 8, 32])
def test_denoising_is_that_of_a_plain_loop(
    model: Model, references: list[Reference], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "BATCH", 3)
    done = []
    found = oracle.denoise(model, references, length, done.append)
    assert sum(done) == len(references)
    expected = [plain_denoise(model, each, length) for each in references]
    assert [(each.forwards, each.forced, each.per_step) for each in found] == expected
    assert [each.tokens for each in found] == [len(each.answer) for each in references]
    # The cases are not all of one kind: some steps commit several tokens, some are forced.
    assert max(max(each.per_step, default=0) for each in found) > 1
    assert sum(each.forced for each in found) > 0
    assert found[-1].per_step == [] and found[-1].forwards == 0


@pytest.mark.parametrize("lora", [False, True])
def test_the_longest_prefix_is_what_linear_spec_emits(
    model: Model, references: list[Reference], lora: bool
) -> None:
    own = [each for each in references[:4]]
    for length in (4, 8):
        found = oracle.draft(model, own, length, lora=lora)
        for reference, drafted in zip(own, found, strict=True):
            options = {"block_length": length, "lora": lora}
            run = generate(model, reference.prompt, 21, "linear_spec", **options)
            left, emitted = len(reference.answer) - 1, []
            for n in run.accepted:
                emitted.append(min(n, left))
                left -= n
            assert drafted.prefix == emitted


def test_every_draft_is_compared_with_the_answer(model: Model, references: list[Reference]) -> None:
    mask, length = model.config.mask_token_id, 8
    found = oracle.draft(model, references, length, lora=False)
    for reference, drafted in zip(references, found, strict=True):
        at = 0
        for prefix, anywhere, right in zip(
            drafted.prefix, drafted.anywhere, drafted.right, strict=True
        ):
            target = reference.answer[at : at + length]
            block = [target[0]] + [mask] * (length - 1)
            choices = plain_choices(model, reference.prompt + reference.answer[:at], block, False)
            flags = [c == t for c, t in zip(choices[1:], target[1:], strict=False)]
            left = len(reference.answer) - at - 1
            leading = (flags + [False]).index(False)
            assert right == flags
            assert (prefix, anywhere) == (min(leading + 1, left), min(sum(flags) + 1, left))
            at += leading + 1
        assert at >= len(reference.answer) - 1
    assert any(a > p for each in found for p, a in zip(each.prefix, each.anywhere, strict=True))


def test_the_largest_safe_set_or_the_leftmost_by_force() -> None:
    masks = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    target = torch.tensor([[9, 5, 6, 7], [9, 5, 6, 7], [9, 5, 6, 7]])
    choices = torch.tensor([[9, 4, 6, 7], [9, 5, 5, 5], [9, 5, 6, 7]])
    commits, forced = oracle.safe_commits(masks, choices, target)
    assert commits.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert forced.tolist() == [False, True, False]
