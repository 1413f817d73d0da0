"""Decoding loops: what to run next, given what the model said."""

from .generate import generate
from .result import Generation, StepEvent

__all__ = ["Generation", "StepEvent", "generate"]
