"""Fused kernels for the denoising step of diffusion language models.

Every op runs as a Triton kernel on CUDA tensors and as plain torch elsewhere; see `backend.py`.
"""

from .block_attention import block_attention, block_attention_cost
from .confidence import Confidence, confidence, confidence_cost
from .cost import Cost
from .error_word import DeviceError, new_error_word, raise_on_error
from .linear import linear, linear_cost
from .lm_head_confidence import (
    ConfidencePartials,
    lm_head_confidence,
    lm_head_confidence_cost,
    lm_head_partials,
    merge_partials,
)
from .noise import Noise
from .remask_scatter import BlockState, remask_scatter, remask_scatter_cost
from .rules import RULES, Rule, RuleTable, rule_named

__all__ = [
    "RULES",
    "BlockState",
    "Confidence",
    "ConfidencePartials",
    "Cost",
    "DeviceError",
    "Noise",
    "Rule",
    "RuleTable",
    "block_attention",
    "block_attention_cost",
    "confidence",
    "confidence_cost",
    "linear",
    "linear_cost",
    "lm_head_confidence",
    "lm_head_confidence_cost",
    "lm_head_partials",
    "merge_partials",
    "new_error_word",
    "raise_on_error",
    "remask_scatter",
    "remask_scatter_cost",
    "rule_named",
]
