"""The weights that training starts from."""

import torch

from ..model import Model
from .distributed import fill

_HEAD_DEVIATION = 0.02


def initialise(model: Model, seed: int) -> None:
    """Fill a model, sharded or not, with weights that are a function of the seed.

    Embeddings are of order one and the products that add to the residual stream start as nothing,
    so that at first every layer sees the tokens; the other products keep their input's variance.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            fill(parameter, torch.ones(parameter.shape))
            continue
        deviation = parameter.shape[1] ** -0.5
        if "embed_tokens" in name:
            deviation = 1.0
        elif "diffusion_head" in name:
            deviation = _HEAD_DEVIATION
        elif "o_proj" in name or "down_proj" in name:
            deviation = 0.0
        fill(parameter, deviation * torch.randn(parameter.shape, generator=generator))
