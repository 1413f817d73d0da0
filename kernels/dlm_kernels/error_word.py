"""The device error word: faults that kernels meet in device memory, one bit each.

Kernels never stop for a bad value: they clamp the address, set the bit and go on. The host reads
the word together with the done flag, when it has to wait for the device anyway.
"""

import torch
from torch import Tensor

from .validate import INT32, check_tensor

NAN_LOGITS = 1
LENGTH_OUT_OF_RANGE = 2
ID_OUT_OF_RANGE = 4
NO_CANDIDATE = 8
PAGE_OUT_OF_RANGE = 16

_MEANING = {
    NAN_LOGITS: "a row of logits holds NaN",
    LENGTH_OUT_OF_RANGE: "a context length is negative or beyond the cache or max_context",
    ID_OUT_OF_RANGE: "a token id or a banned id is outside the vocabulary",
    NO_CANDIDATE: "a block has masks left but no position with a usable candidate",
    PAGE_OUT_OF_RANGE: "a block table names a page that is not there",
}


class DeviceError(RuntimeError):
    """A kernel met invalid device contents; what it wrote since is not to be trusted."""


def new_error_word(device: torch.device | str) -> Tensor:
    """A cleared error word: int32 [1]. Ops only set bits; `word.zero_()` clears them."""
    return torch.zeros(1, dtype=torch.int32, device=device)


def raise_on_error(word: Tensor | int) -> None:
    """Raise DeviceError naming every set bit of an int, or of a word [1], which is read back.

    The word stays as it is.
    """
    if isinstance(word, Tensor):
        check_error_word(word, word.device)
    bits = int(word)
    if bits:
        faults = [text for bit, text in _MEANING.items() if bits & bit]
        raise DeviceError("; ".join(faults) or f"unknown bits {bits:#x} in the error word")


def check_error_word(error: Tensor | None, device: torch.device) -> None:
    if error is not None:
        check_tensor("error", error, (1,), INT32, device)


def set_where(error: Tensor | None, fault: Tensor, bit: int) -> None:
    """Set `bit` if any element of the bool tensor `fault` holds; stays on the device."""
    if error is not None:
        error |= fault.any().to(error.dtype) * bit
