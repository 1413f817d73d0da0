"""A thin Nemotron-Labs Diffusion model on top of dlm_kernels: load it, generate with it."""

from .cache import KVCache
from .checkpoint import load_model, random_model
from .config import PRESETS, ModelConfig, RopeConfig
from .decoding import Generation, StepEvent, generate
from .model import Model

__all__ = [
    "PRESETS",
    "Generation",
    "KVCache",
    "Model",
    "ModelConfig",
    "RopeConfig",
    "StepEvent",
    "generate",
    "load_model",
    "random_model",
]
