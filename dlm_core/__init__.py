"""A thin Nemotron-Labs Diffusion model on top of dlm_kernels: load it, generate with it."""

from dlm_kernels import RULES, DeviceError, Rule

from .cache import KVCache
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
from .model import Model

__all__ = [
    "PRESETS",
    "RULES",
    "SMALL_MODEL",
    "Batch",
    "DeviceError",
    "Generation",
    "KVCache",
    "Model",
    "ModelConfig",
    "Request",
    "RopeConfig",
    "Rule",
    "Sampling",
    "StepEvent",
    "generate",
    "infill",
    "load_model",
    "random_model",
    "refine",
    "stream",
]
