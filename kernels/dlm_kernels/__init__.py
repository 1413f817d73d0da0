"""Fused kernels for the denoising step of diffusion language models.

Every op runs as a Triton kernel on CUDA tensors and as plain torch elsewhere; see `backend.py`.
They are for inference: none has a gradient.
"""

from .block_attention import block_attention, block_attention_cost
from .confidence import Confidence, confidence, confidence_cost
from .cost import Cost
from .error_word import DeviceError, new_error_word, raise_on_error
from .gated_silu import gated_silu, gated_silu_cost
from .linear import linear, linear_cost, linear_partials
from .lm_head_confidence import (
    ConfidencePartials,
    lm_head_confidence,
    lm_head_confidence_cost,
    lm_head_partials,
    merge_partials,
)
from .noise import Noise
from .partial_sums import PartialSums
from .quantized_weight import QuantizedWeight, quantize_weight
from .remask_scatter import BlockState, remask_scatter, remask_scatter_cost
from .residual_norm import residual_norm, residual_norm_cost
from .rope_kv_write import rope_kv_write, rope_kv_write_cost
from .rules import RULES, Rule, RuleTable, rule_named

__all__ = [
    "RULES",
    "BlockState",
    "Confidence",
    "ConfidencePartials",
    "Cost",
    "DeviceError",
    "Noise",
    "PartialSums",
    "QuantizedWeight",
    "Rule",
    "RuleTable",
    "block_attention",
    "block_attention_cost",
    "confidence",
    "confidence_cost",
    "gated_silu",
    "gated_silu_cost",
    "linear",
    "linear_cost",
    "linear_partials",
    "lm_head_confidence",
    "lm_head_confidence_cost",
    "lm_head_partials",
    "merge_partials",
    "new_error_word",
    "quantize_weight",
    "raise_on_error",
    "remask_scatter",
    "remask_scatter_cost",
    "residual_norm",
    "residual_norm_cost",
    "rope_kv_write",
    "rope_kv_write_cost",
    "rule_named",
]
