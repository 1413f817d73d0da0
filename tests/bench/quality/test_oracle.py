"""The oracle against the plainest loop that does what its docstring says."""

import pytest
import torch

from dlm_bench.quality.decode import Passage
from dlm_bench.quality.oracle import oracle_forwards
from dlm_core import KVCache, Model, generate


def plain_choices(model: Model, context: list[int], block: list[int]) -> list[int]:
    """Argmax of one denoising forward of one block, the whole context run anew."""
    cache = KVCache(model.config, 1, 128, device="cpu", dtype=model.dtype)
    model(torch.tensor([context]), cache, causal=True)
    cache.advance(len(context))
    logits = model.logits(model(torch.tensor([block]), cache, causal=False))[0]
    logits[:, model.config.mask_token_id] = -torch.inf
    return logits.argmax(-1).tolist()


def plain_oracle(model: Model, reference: Passage, length: int) -> tuple[int, list[bool]]:
    """Forwards, and of each step whether it was forced."""
    mask, answer = model.config.mask_token_id, reference.answer
    forwards, forced = 0, []
    for begin in range(0, len(answer), length):
        target = answer[begin : begin + length]
        block = [target[0]] + [mask] * (length - 1)
        open_ = set(range(1, len(target)))
        while open_:
            choices = plain_choices(model, reference.prompt + answer[:begin], block)
            right = {i for i in open_ if choices[i] == target[i]}
            forced.append(not right)
            right = right or {min(open_)}
            for i in right:
                block[i] = target[i]
            open_ -= right
            forwards += 1
        forwards += begin + length < len(answer)
    return forwards, forced


@pytest.mark.parametrize("length", [5, 8, 32])
def test_forwards_are_those_of_a_plain_loop(model: Model, length: int) -> None:
    prompts = [[1, 5, 8, 11, 14], [1, 30, 31], [7, 9, 11, 13, 15, 17, 19]]
    own = [Passage(prompt, generate(model, prompt, 21).tokens) for prompt in prompts]
    # Answers that the model would not give.
    changed = list(own[0].answer)
    changed[2::4] = [40] * len(changed[2::4])
    others = [Passage(prompts[0], changed), Passage(prompts[1], [9, 60, 4]), Passage([8], [2])]
    all_forced = []
    for reference in own + others:
        forwards, forced = plain_oracle(model, reference, length)
        assert oracle_forwards(model, reference, length) == forwards
        all_forced += forced
        if not forced:
            assert forwards == 0
    # The steps are not all of one kind, and some commit several tokens.
    assert set(all_forced) == {False, True}
    assert len(all_forced) < sum(len(each.answer) - 1 for each in own + others)
