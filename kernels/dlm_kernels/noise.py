"""Counter-based noise: the same bits for the same (seed, position, step), wherever they are drawn.

Philox 4x32-10 (Salmon et al., SC 2011). The key is a request's 64-bit seed; the counter is
(element, position, step, stream), so nothing is remembered between draws and a request's noise
depends neither on its batch nor on its order. Kernels call `triton.language.philox` with the same
counter and get the same words.
"""

import torch
from torch import Tensor

# What a draw is for: the counter's last word, so that no two uses share noise.
SAMPLE = 0  # one word for each id of the vocabulary
ACCEPT = 1  # one word a drafted token
RESIDUAL = 2  # one word for each id of the vocabulary
RANDOM_CONFIDENCE = 3  # one word a position
RENOISE = 4  # one word a position

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(seed: Tensor, element: Tensor, position: Tensor, step: Tensor, stream: int) -> Tensor:
    """The first word of Philox for each counter, broadcast: int64 in [0, 2**32).

    Args:
        seed: int64, any value; its bits are the key.
        element, position, step: int32 or int64, not negative, below 2**32.
        stream: one of this module's constants.
    """
    c0, c1, c2, key = torch.broadcast_tensors(element.long(), position.long(), step.long(), seed)
    c3 = torch.full_like(c0, stream)
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(c0, _MULTIPLIERS[0])
        high_2, low_2 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0


def uniform(words: Tensor) -> Tensor:
    """float32 strictly between 0 and 1, in steps of 2**-23, of `words` from `philox`."""
    return ((words >> 9).float() + 0.5) * 2.0**-23


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32-bit product, within int64."""
    by_low = word * (factor & 0xFFFF)
    upper = word * (factor >> 16) + (by_low >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (by_low & 0xFFFF)
