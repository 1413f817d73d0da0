"""A thin Nemotron-Labs Diffusion model on top of dlm_kernels: load it, generate with it."""

from dlm_kernels import RULES, DeviceError, Rule

from .cache import KVCache
from .calibration import calibrated_kv_scales
from .checkpoint import SMALL_MODEL, load_model, random_model
from .config import PRESETS, ModelConfig, RopeConfig
from .decoding import (
    Batch,
    Generation,
    Request,
    Sampling,
    StepEvent,
    generate,
    infill,
    refine,
    stream,
)
from .kv_scales import KVScales
from .model import Model
from .quantization import quantize_model

__all__ = [
    "PRESETS",
    "RULES",
    "SMALL_MODEL",
    "Batch",
    "DeviceError",
    "Generation",
    "KVCache",
    "KVScales",
    "Model",
    "ModelConfig",
    "Request",
    "RopeConfig",
    "Rule",
    "Sampling",
    "StepEvent",
    "calibrated_kv_scales",
    "generate",
    "infill",
    "load_model",
    "quantize_model",
    "random_model",
    "refine",
    "stream",
]
