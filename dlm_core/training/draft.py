"""Training of the draft LoRA on a frozen model.

The model learns from what self-speculation shows a draft: a clean first token and masks behind it.
Only noisy tokens go through the LoRA, for the context of a draft is computed without it.
"""

import torch
from torch import Tensor, nn

from ..model import Linear, Model
from .distributed import fill
from .rows import Rows


class DraftProjection(nn.Module):
    """o_proj, and for the tokens of drafts its low-rank update: x W' + scale (x A') B'.

    `drafts` says which tokens those are, bool [batch, length, 1], and is set before each forward.
    """

    def __init__(self, o_proj: Linear, rank: int, scale: float) -> None:
        super().__init__()
        out_size, in_size = o_proj.weight.shape
        where = {"device": o_proj.weight.device, "dtype": o_proj.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, in_size, **where))
        self.lora_B = nn.Parameter(torch.empty(out_size, rank, **where))
        self.scale = scale
        self.drafts: Tensor | None = None
        self._frozen = [o_proj]  # in a list, so that it is not a submodule a second time

    def in_parts(self, x: Tensor, numerics: str) -> Tensor:
        update = nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B)
        frozen = self._frozen[0](x, numerics)
        return frozen + self.scale * torch.where(self.drafts, update, 0)


def add_draft_projections(model: Model, rank: int, scale: float) -> None:
    """Freeze a model and give every layer a draft projection to train; `initialise` fills it."""
    model.requires_grad_(False)
    for layer in model.encoder.layers:
        attention = layer.self_attn
        attention.draft_o_proj = DraftProjection(attention.o_proj, rank, scale)


def initialise(model: Model, seed: int) -> None:
    """Random A and zero B, so that the update starts as nothing."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.encoder.layers:
        projection = layer.self_attn.draft_o_proj
        rank, in_size = projection.lora_A.shape
        fill(projection.lora_A, torch.randn(rank, in_size, generator=generator) * in_size**-0.5)
        fill(projection.lora_B, torch.zeros(projection.lora_B.shape))


def mark_drafts(model: Model, rows: Rows) -> None:
    """Tell every draft projection which tokens of the next forward are drafts."""
    for layer in model.encoder.layers:
        layer.self_attn.draft_o_proj.drafts = (rows.block >= 0)[..., None]
