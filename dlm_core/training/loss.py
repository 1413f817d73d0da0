"""The joint objective: L_AR + 0.3 L_diff, both in nats a token.

L_AR is the cross-entropy of the next token over the clean stream. L_diff is the weighted
cross-entropy of the tokens under masks over the noisy stream; where blocks with every mask are not
drawn more often than others (`Masking.all_masked` 0), its expectation is an upper bound of the
negative log-likelihood of the blocks (arXiv 2502.09992).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Model
from .dual_stream import hidden_states
from .rows import IGNORED, Rows

DIFFUSION_WEIGHT = 0.3  # Nemotron-Labs Diffusion


class Loss(NamedTuple):
    """Sums over a batch of rows, and what to divide them by."""

    ar: Tensor  # nats
    ar_tokens: Tensor  # targets of the clean stream
    diffusion: Tensor  # nats, weighted
    diffusion_tokens: Tensor  # the sum of weights: tokens that could have been masked

    def objective(self, ar_tokens: Tensor, diffusion_tokens: Tensor) -> Tensor:
        """L_AR + 0.3 L_diff over so many tokens; a stream without any adds nothing."""
        ar = self.ar / ar_tokens.clamp(min=1)
        return ar + DIFFUSION_WEIGHT * self.diffusion / diffusion_tokens.clamp(min=1)


def losses(model: Model, rows: Rows, *, lora: bool = False) -> Loss:
    """Both losses of a model on rows; logits are made at targets alone.

    lora: the draft LoRA's forward; only the diffusion loss is of use then.
    """
    hidden = hidden_states(model, rows, lora=lora)
    counted = rows.targets != IGNORED
    logits = model.logits(hidden[counted], "autograd").float()
    nats = F.cross_entropy(logits, rows.targets[counted], reduction="none")
    noisy = rows.block[counted] >= 0
    weights = rows.weights[counted]
    weighted = nats * weights
    return Loss(
        torch.where(noisy, 0, nats).sum(),
        (~noisy).sum(),
        torch.where(noisy, weighted, 0).sum(),
        torch.where(noisy, weights, 0).sum(),
    )
