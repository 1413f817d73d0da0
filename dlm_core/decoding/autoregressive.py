"""One token a forward, greedily; and the causal forwards that every mode begins with."""

import torch
from torch import Tensor

from dlm_kernels import DeviceError, confidence, new_error_word, raise_on_error
from dlm_kernels.validate import MAX_BLOCK

from ..cache import KVCache
from ..model import Model
from .result import Generation


def extend(
    model: Model, cache: KVCache, tokens: Tensor, *, banned: Tensor, error: Tensor
) -> Tensor:
    """Run int32 or int64 `tokens` [batch, M] causally, which makes them context.

    Returns the most likely next token but for `banned` ids: int32 [batch], on the device.
    """
    hidden = model(tokens, cache, causal=True, error=error)
    cache.advance(tokens.shape[1])
    return confidence(model.logits(hidden[:, -1]), banned=banned, error=error).token


def prefill(
    model: Model, cache: KVCache, prompt: list[int], *, banned: Tensor, error: Tensor
) -> tuple[Tensor, int]:
    """Run the prompt of one request in chunks; return its next token and the forwards it took."""
    *chunks, last = torch.tensor([prompt], device=model.device).split(MAX_BLOCK, dim=1)
    for chunk in chunks:
        model(chunk, cache, causal=True, error=error)
        cache.advance(chunk.shape[1])
    return extend(model, cache, last, banned=banned, error=error), len(chunks) + 1


def read_token(token: Tensor, error: Tensor) -> int:
    """The one id in `token`, read together with the error word; waits for the device."""
    value, word = torch.cat([token, error]).tolist()
    raise_on_error(word)
    if value < 0:
        raise DeviceError("a row of logits has no token to choose: all are -inf, or several +inf")
    return value


def decode_autoregressive(model: Model, prompt: list[int], max_new_tokens: int) -> Generation:
    """Greedy decoding of one request; `generate` has checked the arguments."""
    config = model.config
    capacity = len(prompt) + max_new_tokens
    cache = KVCache(config, 1, capacity, device=model.device, dtype=model.dtype)
    banned = torch.tensor([config.mask_token_id], dtype=torch.int32, device=model.device)
    error = new_error_word(model.device)

    token, n_prefills = prefill(model, cache, prompt, banned=banned, error=error)
    tokens = [read_token(token, error)]
    while tokens[-1] != config.eos_token_id and len(tokens) < max_new_tokens:
        token = extend(model, cache, token[:, None], banned=banned, error=error)
        tokens.append(read_token(token, error))

    n_decodes = len(tokens) - 1
    forwards = {"prefill": n_prefills} | ({"decode": n_decodes} if n_decodes else {})
    return Generation(tokens, forwards)
