"""Counter-based noise: the same bits for the same (seed, position, step), wherever they are drawn.

Philox 4x32-10 (Salmon et al., SC 2011). The key is a request's 64-bit seed; the counter is
(element, position, step, stream), so nothing is remembered between draws and a request's noise
depends neither on its batch nor on its order. Kernels call `triton.language.philox` with the same
counter and get the same words.
"""

from typing import NamedTuple

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


def random_ids(words: Tensor, vocab_size: int, mask_id: int) -> Tensor:
    """int64 ids below `vocab_size` of `words` from `philox`, none of them `mask_id`."""
    ids = words % vocab_size
    return torch.where(ids == mask_id, (mask_id + 1) % vocab_size, ids)


class Noise(NamedTuple):
    """What a batch's random confidences and random ids are drawn from.

    Attributes:
        seed: int64 [batch], one a request.
        position: int32 [batch]: where the block's first token stands in the request.
        vocab_size: random ids are below it.
    """

    seed: Tensor
    position: Tensor
    vocab_size: int

    def canvas(self, block: int, mask_id: int) -> Tensor:
        """Random ids int32 [batch, block] other than `mask_id`: where rules that renoise start."""
        place = self.position[:, None] + torch.arange(block, device=self.position.device)
        # Steps draw element 0 of each position.
        element, step = torch.ones_like(place), torch.zeros_like(place)
        words = philox(self.seed[:, None], element, place, step, RENOISE)
        return random_ids(words, self.vocab_size, mask_id).int()


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32-bit product, within int64."""
    by_low = word * (factor & 0xFFFF)
    upper = word * (factor >> 16) + (by_low >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (by_low & 0xFFFF)
