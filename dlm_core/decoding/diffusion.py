"""Block diffusion: a block of masks is denoised in a few forwards, then committed to the cache."""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from dlm_kernels import BlockState, confidence, new_error_word, raise_on_error, remask_scatter

from ..cache import KVCache
from ..model import Model
from .autoregressive import extend, prefill, read_token
from .result import Generation, StepEvent, cut


def denoise_step(
    model: Model,
    cache: KVCache,
    state: BlockState,
    *,
    banned: Tensor,
    threshold: float | None,
    steps: int | None,
    error: Tensor,
) -> None:
    """Advance every request's block by one step, in place; on CUDA nothing waits for the device.

    Args:
        model, cache: the context of each request; it is not changed.
        state: the blocks [batch, M]. Requests that are done stay as they are.
        banned: int32 [n], ids that are never chosen: the mask id.
        threshold: commit all candidates at least this likely, and always the likeliest.
        steps: without a threshold, split each block's masks evenly over so many steps.
        error: device error word to set, int32 [1].
    """
    mask_id, eos_id = model.config.mask_token_id, model.config.eos_token_id
    hidden = model(state.tokens, cache, causal=False, error=error)
    candidate = confidence(
        model.logits(hidden).flatten(0, 1),
        tokens=state.tokens.flatten(),
        mask_id=mask_id,
        banned=banned,
        error=error,
    )
    remask_scatter(
        state,
        candidate.token.view_as(state.tokens),
        candidate.probability.view_as(state.tokens),
        mask_id=mask_id,
        eos_id=eos_id,
        threshold=threshold,
        steps=steps,
        error=error,
    )


def decode_diffusion(
    model: Model,
    prompt: list[int],
    max_new_tokens: int,
    block_length: int,
    threshold: float | None,
    steps: int | None,
    on_step: Callable[[StepEvent], None] | None,
) -> Generation:
    """Denoise block after block of one request; `generate` has checked the arguments."""
    config = model.config
    capacity = len(prompt) + math.ceil(max_new_tokens / block_length) * block_length
    cache = KVCache(config, 1, capacity, device=model.device, dtype=model.dtype)
    banned = torch.tensor([config.mask_token_id], dtype=torch.int32, device=model.device)
    error = new_error_word(model.device)

    tokens, committed, confidences = [], [], []
    seed, n_prefills = prefill(model, cache, prompt, banned=banned, error=error)
    forwards = Counter(prefill=n_prefills)
    for block in itertools.count():
        if read_token(seed, error) == config.eos_token_id:
            tokens.append(config.eos_token_id)
            break

        state = _start_block(seed, block_length, config.mask_token_id)
        n_steps = 0
        done = False
        while not done:
            denoise_step(
                model, cache, state, banned=banned, threshold=threshold, steps=steps, error=error
            )
            done, word = torch.cat([state.done, error]).tolist()
            raise_on_error(word)
            if on_step is not None:
                positions = _committed_at(n_steps, state.commit_step[0].tolist())
                on_step(StepEvent(block, n_steps, state.tokens[0].tolist(), positions))
            n_steps += 1
        forwards["denoise"] += n_steps

        tokens += state.tokens[0].tolist()
        commit_step = state.commit_step[0].tolist()
        commit_confidence = state.commit_confidence[0].tolist()
        for step in range(n_steps):
            positions = _committed_at(step, commit_step)
            committed.append(positions)
            confidences.append([commit_confidence[i] for i in positions])
        if config.eos_token_id in tokens or len(tokens) >= max_new_tokens:
            break
        seed = extend(model, cache, state.tokens, banned=banned, error=error)
        forwards["commit"] += 1

    tokens = cut(tokens, config.eos_token_id, max_new_tokens)
    return Generation(tokens, dict(forwards), committed, confidences)


def _start_block(seed: Tensor, block_length: int, mask_id: int) -> BlockState:
    tokens = torch.full((1, block_length), mask_id, dtype=torch.int32, device=seed.device)
    tokens[:, 0] = seed
    return BlockState.start(tokens, mask_id)


def _committed_at(step: int, commit_step: list[int]) -> list[int]:
    """The positions of a block that `step` committed."""
    return [position for position, n in enumerate(commit_step) if n == step]
