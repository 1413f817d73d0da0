"""Decoding loops: what to run next, given what the model said."""

from .batch import Batch
from .generate import generate, infill, refine, stream
from .request import Request
from .result import Generation, StepEvent
from .sampling import Sampling

__all__ = [
    "Batch",
    "Generation",
    "Request",
    "Sampling",
    "StepEvent",
    "generate",
    "infill",
    "refine",
    "stream",
]
