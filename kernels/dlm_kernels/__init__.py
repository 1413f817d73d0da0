"""Fused kernels for the denoising step of diffusion language models.

Every op runs as a Triton kernel on CUDA tensors and as plain torch elsewhere; see `backend.py`.
"""

from .block_attention import block_attention, block_attention_cost
from .confidence import Confidence, confidence, confidence_cost
from .cost import Cost, linear_cost
from .error_word import DeviceError, new_error_word, raise_on_error
from .remask_scatter import BlockState, remask_scatter, remask_scatter_cost

__all__ = [
    "BlockState",
    "Confidence",
    "Cost",
    "DeviceError",
    "block_attention",
    "block_attention_cost",
    "confidence",
    "confidence_cost",
    "linear_cost",
    "new_error_word",
    "raise_on_error",
    "remask_scatter",
    "remask_scatter_cost",
]
