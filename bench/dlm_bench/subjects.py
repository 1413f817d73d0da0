"""The models that are timed: where each comes from, and what is planned for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from dlm_core import PRESETS, Model, ModelConfig, load_model, random_model
from dlm_roofline.ceilings import free_memory

from .plan import GRID_MODEL, HOST_MODEL, Planned, gpu_plan, host_plan, quick_plan, small_plan
from .steps import name_of

# Share of the free memory that a case or the weights of a model may take.
MOST_MEMORY = 0.8

# Models of random weights to time steps of on a GPU: the first there is memory for.
GPU_MODELS = {f"{name}, random weights": PRESETS[name.lower()] for name in ("8B", "3B", "tiny")}

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "tiny-a"


@dataclass
class Source:
    """A model by name: made when its turn comes, and kept until other weights are asked for.

    make: takes weights="fp8", "int8", "int4" or None.
    """

    name: str
    config: ModelConfig
    make: Callable[..., Model]
    _held: Model | None = field(default=None, repr=False)

    def model(self, weights: str | None = None) -> Model:
        if self._held is None or self._held.quantization != weights:
            self._held = None  # its room is for the next
            self._held = self.make(weights=weights)
        return self._held


@dataclass(frozen=True)
class Subject:
    """A model to time: the first of `candidates` that can be made.

    budget: seconds to spend on one timing.
    """

    candidates: list[Source]
    dtype: torch.dtype
    plan: Callable[[ModelConfig, str], list[Planned]]
    budget: float

    def planned(self, source: Source) -> list[Planned]:
        return self.plan(source.config, name_of(self.dtype))

    @property
    def rows(self) -> int:
        """Rows that the first candidate would make."""
        first = self.candidates[0]
        return sum(each.rows(first.config) for each in self.planned(first))


def subjects_of(folder: Path | None, device: torch.device, *, quick: bool) -> list[Subject]:
    """What is timed on a device; `folder` is a checkpoint of the user's.

    A checkpoint is loaded at once: whatever is wrong with it is said before anything is measured.
    """
    if device.type == "cuda":
        plan = quick_plan if quick else gpu_plan
        dtype, budget = torch.bfloat16, 0.05 if quick else 0.2
        make = partial(random_model, device=device, dtype=dtype)
        models = {"tiny, random weights": PRESETS["tiny"]} if quick else GPU_MODELS
        sources = [Source(name, config, partial(make, config)) for name, config in models.items()]
        if folder:
            sources = [_loaded(folder, device, dtype)]
        return [Subject(sources, dtype, plan, budget)]

    dtype, subjects = torch.float32, []
    detailed = partial(Subject, dtype=dtype, plan=small_plan, budget=0.05 if quick else 0.5)
    if folder := folder or (GOLDEN if GOLDEN.exists() else None):
        subjects.append(detailed([_loaded(folder, device, dtype)]))
    make = partial(random_model, device=device, dtype=dtype)
    if quick:
        tiny = Source("tiny, random weights", PRESETS["tiny"], partial(make, PRESETS["tiny"]))
        return [*subjects, Subject([tiny], dtype, quick_plan, 0.05)]
    large = Source("188M, random weights", HOST_MODEL, partial(make, HOST_MODEL))
    grid = Source("30M, random weights", GRID_MODEL, partial(make, GRID_MODEL))
    return [*subjects, detailed([large]), Subject([grid], dtype, host_plan, 0.2)]


def _loaded(folder: Path, device: torch.device, dtype: torch.dtype) -> Source:
    """A ValueError if the weights of the checkpoint would not fit into the memory that is free."""
    config = ModelConfig.from_json(folder / "config.json")
    shapes = Model(config, device="meta", dtype=dtype)
    needed = dtype.itemsize * sum(weight.numel() for weight in shapes.parameters())
    free = free_memory(device)
    if needed > MOST_MEMORY * free:
        raise ValueError(
            f"{folder} holds {needed / 1e9:.1f} GB of weights in {dtype}; they must fit into"
            f" {MOST_MEMORY:.0%} of the {free / 1e9:.1f} GB that are free on {device}"
        )
    make = partial(load_model, folder, device=device, dtype=dtype)
    source = Source(folder.resolve().name, config, make)
    source.model()
    return source
