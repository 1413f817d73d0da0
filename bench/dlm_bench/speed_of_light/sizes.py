"""What the rows are measured at: the published shape, or a small one that a test gets through."""

from dataclasses import dataclass

import torch

from dlm_core import PRESETS, ModelConfig
from dlm_roofline.forward import Forward


@dataclass(frozen=True)
class Sizes:
    """The model and the grids; of each grid what says most comes first.

    context: tokens before a block in steps and cycles.
    many, many_contexts: the batch of the rows of many requests, and their attention's contexts.
    one_contexts: contexts of attention at batch 1.
    far: contexts from which batch 1 is held to a share of its floor.
    head_rows: row counts of the LM head. ks: draft groups of quadratic self-speculation.
    fp8_context: context of attention over an fp8 cache.
    """

    config: ModelConfig = PRESETS["8b"]
    dtype: torch.dtype = torch.bfloat16
    context: int = 1024
    batches: tuple[int, ...] = (64, 8, 16)
    many: int = 64
    many_contexts: tuple[int, ...] = (32768, 4096, 8192, 16384)
    one_contexts: tuple[int, ...] = (32768, 131072, 8192, 65536, 16384)
    far: int = 32768
    head_rows: tuple[int, ...] = (32, 2048, 256, 1, 4096, 128, 512, 64, 1024)
    ks: tuple[int, ...] = (10, 16, 6, 8, 12, 14, 7, 9, 11, 13, 15)
    fp8_context: int = 32768

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def forward(
        self, kind: str, batch: int = 1, rows: int | None = None, weights: str | None = None
    ) -> Forward:
        """A forward behind `context`, of the model's block or of so many rows a request."""
        block = self.config.block_size if rows is None else rows
        return Forward(kind, batch, block, self.context, self.dtype_name, weights)
