"""Which mode, block, quantisation and batch to run a model with, and how sure that is."""

from .machine import Machine, machine_of
from .ranking import OBJECTIVES, QUANTIZATIONS, Advice, Quantization, advise
from .score import Withheld, withheld_score

__all__ = [
    "OBJECTIVES",
    "QUANTIZATIONS",
    "Advice",
    "Machine",
    "Quantization",
    "Withheld",
    "advise",
    "machine_of",
    "withheld_score",
]
