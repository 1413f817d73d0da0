"""How large the calls are that a search times, and what they are made of."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlm_core import PRESETS, ModelConfig

PRODUCT_WARPS = (4, 8)  # of programs whose work is matrix products


@dataclass(frozen=True)
class Sizes:
    """A layer and a head of the 8B model, and how many rows or requests they get, ascending.

    main: rows of one request. odd: features in and out that no tile divides. contexts: the batches
    at each length. batches: of `remask_scatter`. dtypes: by itemsize.
    """

    config: ModelConfig = PRESETS["8b"]
    rows: tuple[int, ...] = (1, 16, 32, 64, 128, 256, 2048)
    main: int = 32
    odd: tuple[int, int] = (1000, 131)
    contexts: dict[int, tuple[int, ...]] = field(
        default_factory=lambda: {1024: (1, 64), 8192: (1, 16), 32768: (1,)}
    )
    batches: tuple[int, ...] = (1, 64)
    dtypes: dict[int, torch.dtype] = field(
        default_factory=lambda: {2: torch.bfloat16, 4: torch.float32}
    )


@dataclass(frozen=True)
class Random:
    """Normal numbers on a device, in `dtype` unless another is named."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)


def numbers(statistics: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Those that were asked for."""
    return tuple(each for each in statistics if each is not None)
