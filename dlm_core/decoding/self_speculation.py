"""Self-speculation: one checkpoint drafts a block by diffusion and verifies it autoregressively."""

from collections import Counter

import torch

from dlm_kernels import DeviceError, confidence, new_error_word, raise_on_error

from ..cache import KVCache
from ..model import Model
from .autoregressive import prefill, read_token
from .result import Generation, cut


def decode_linear_spec(
    model: Model, prompt: list[int], max_new_tokens: int, block_length: int, lora: bool
) -> Generation:
    """Linear self-speculation of one request; `generate` has checked the arguments.

    A cycle drafts by one bidirectional forward over [seed | masks] and verifies by one causal
    forward over [seed | drafts]. The verifier's choices are emitted up to and including the first
    that its draft did not foresee, so each token is the one that greedy decoding gives, up to the
    rounding of matrix products. The cache keeps the seed and the drafts that were right; the last
    choice is the next seed.
    """
    config = model.config
    capacity = len(prompt) + max_new_tokens - 1 + block_length
    cache = KVCache(config, 1, capacity, device=model.device, dtype=model.dtype)
    banned = torch.tensor([config.mask_token_id], dtype=torch.int32, device=model.device)
    error = new_error_word(model.device)

    seed, n_prefills = prefill(model, cache, prompt, banned=banned, error=error)
    forwards = Counter(prefill=n_prefills)
    tokens, accepted = [read_token(seed, error)], []
    while config.eos_token_id not in tokens and len(tokens) < max_new_tokens:
        block = seed.new_full((1, block_length), config.mask_token_id)
        block[:, 0] = seed
        hidden = model(block, cache, causal=False, lora=lora, error=error)
        drafts = confidence(model.logits(hidden[0, 1:]), banned=banned, error=error).token
        block[0, 1:] = drafts
        hidden = model(block, cache, causal=True, error=error)
        choices = confidence(model.logits(hidden[0]), banned=banned, error=error).token
        foreseen = (choices[:-1] == drafts).cumprod(0).sum(0, keepdim=True)
        forwards.update(("draft", "verify"))

        *chosen, n_foreseen, word = torch.cat([choices, foreseen, error]).tolist()
        raise_on_error(word)
        emitted = chosen[: n_foreseen + 1]
        if min(emitted) < 0:
            raise DeviceError("a row of logits has no token to choose")
        cache.advance(len(emitted))
        seed = choices[n_foreseen : n_foreseen + 1]
        tokens += emitted
        accepted.append(len(emitted))
    tokens = cut(tokens, config.eos_token_id, max_new_tokens)
    return Generation(tokens, dict(forwards), accepted=accepted)
