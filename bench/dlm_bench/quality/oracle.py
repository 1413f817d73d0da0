"""The head room of diffusion: what a greedy oracle commits that knows which tokens are right.

The reference is the model's own autoregressive greedy answer, so the oracle loses no quality. A
block starts as [seed | masks] after the causal context. Each step runs the denoising forward and
commits every masked position whose argmax (the mask id banned) is the reference's token there: the
largest set that can safely be committed at that step. Where no argmax is right, the step commits
the leftmost masked position with the reference's token, though its forward did not give it. A
block's causal commit counts as a forward too, but after the last one.

What it takes is no bound: another order of commits might need fewer steps.
"""

import torch

from dlm_core import Model

from .decode import Passage, after_prompt


@torch.inference_mode()
def oracle_forwards(model: Model, reference: Passage, block_length: int) -> int:
    """Forwards but the prefill that the oracle takes for a reference."""
    mask_id = model.config.mask_token_id
    cache = after_prompt(model, reference.prompt, room=len(reference.answer))
    answer = torch.tensor(reference.answer, dtype=torch.int32, device=model.device)
    forwards = 0
    # The seed is the prefill's token, and right: both are the causal argmax after the prompt.
    for target in answer.split(block_length):
        block = target.new_full((1, block_length), mask_id)
        block[0, 0] = target[0]
        while len(masked := (block[0, : len(target)] == mask_id).nonzero()[:, 0]):
            logits = model.logits(model(block, cache, causal=False))[0]
            logits[:, mask_id] = -torch.inf
            right = masked[logits.argmax(-1)[masked] == target[masked]]
            right = right if len(right) else masked[:1]
            block[0, right] = target[right]
            forwards += 1
        model(target[None], cache, causal=True)
        cache.advance(len(target))
        forwards += 1
    return forwards - 1
