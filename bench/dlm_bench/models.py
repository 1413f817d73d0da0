"""Which models are timed, and which of their forwards: what says most comes first.

A batch is looked into stage by stage at one context; contexts, blocks and quantised weights are
whole forwards. A run cut short lacks the end of the list.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from dlm_core import PRESETS, Model, ModelConfig, load_model, random_model
from dlm_roofline.ceilings import free_memory
from dlm_roofline.forward import (
    DECODE,
    DENOISE,
    DRAFT,
    LINEAR,
    QUADRATIC,
    VERIFY,
    WEIGHTS,
    Forward,
)  # fmt: skip

from .machine import name_of

# Share of the free memory that a case or the weights of a model may take.
MOST_MEMORY = 0.8

# The published shape made small enough for 2 cores, with its vocabulary, block and query heads a KV
# head: 188 M parameters. The other is small enough for a whole grid: 30 M, of which a forward reads
# 22 M.
HOST_MODEL = replace(
    PRESETS["8b"],
    hidden_size=512,
    intermediate_size=1792,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    torch_dtype="float32",
)
GRID_MODEL = replace(HOST_MODEL, num_hidden_layers=4, vocab_size=16384)

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "tiny-a"

BATCHES = (1, 64, 8, 4, 16, 2, 32)
KS = (10, 16, 6, 8, 12, 14, 7, 9, 11, 13, 15)
CONTEXT = {"cuda": 1024, "cpu": 512}
KINDS = (DENOISE, DECODE, DRAFT, VERIFY)


@dataclass(frozen=True)
class Planned:
    """A forward to measure whole.

    stages: each of its stages alone too. peers: beside plain torch, and in `fast` numerics.
    """

    forward: Forward
    stages: bool = False
    peers: bool = False


Plan = Iterator[Planned]


@dataclass
class Subject:
    """A model to time: made when its turn comes, and kept until other weights are asked for.

    make: takes weights="fp8", "int8", "int4" or None. budget: seconds for one timing.
    """

    name: str
    config: ModelConfig
    make: Callable[..., Model]
    planned: list[Planned]
    budget: float
    _held: Model | None = field(default=None, repr=False)

    def model(self, weights: str | None = None) -> Model:
        if self._held is None or self._held.quantization != weights:
            self._held = None  # its room is for the next
            self._held = self.make(weights=weights)
        return self._held


def subjects_of(folder: Path | None, device: torch.device, *, quick: bool) -> list[Subject]:
    """What is timed on a device; `folder` is a checkpoint of the user's.

    A checkpoint is loaded at once: whatever is wrong with it is said before anything is measured.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def subject(name: str, config: ModelConfig, make: Callable, plan: Callable) -> Subject:
        """Without the forwards that a model of few positions, or of another block, has twice."""
        once: dict[Forward, Planned] = {}
        for each in plan(partial(_forward, config, name_of(dtype))):
            once.setdefault(each.forward, each)
        make = partial(make, device=device, dtype=dtype)
        return Subject(name, config, make, list(once.values()), budget=0.05 if quick else 0.2)

    def drawn(name: str, config: ModelConfig, plan: Callable[..., Plan]) -> Subject:
        return subject(f"{name}, random weights", config, partial(random_model, config), plan)

    def loaded(folder: Path, plan: Callable[..., Plan]) -> Subject:
        config = ModelConfig.from_json(folder / "config.json")
        check_room(folder.name, config, dtype, device)
        found = subject(folder.resolve().name, config, partial(load_model, folder), plan)
        found.model()
        return found

    if device.type == "cuda":
        plan = quick_plan if quick else gpu_plan
        if folder:
            return [loaded(folder, plan)]
        name = "tiny" if quick else _largest_that_fits(device, dtype)
        return [drawn(name, PRESETS[name], plan)]
    subjects = []
    if folder := folder or (GOLDEN if GOLDEN.exists() else None):
        subjects.append(loaded(folder, small_plan))
    if quick:
        return [*subjects, drawn("tiny", PRESETS["tiny"], quick_plan)]
    return [*subjects, drawn("188M", HOST_MODEL, small_plan), drawn("30M", GRID_MODEL, host_plan)]


def check_room(name: str, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """A ValueError if the weights would not fit into the memory that is free."""
    needed, free = _weight_bytes(config, dtype), free_memory(device)
    if needed > MOST_MEMORY * free:
        raise ValueError(
            f"{name} holds {needed / 1e9:.1f} GB of weights in {name_of(dtype)}; they must fit into"
            f" {MOST_MEMORY:.0%} of the {free / 1e9:.1f} GB that are free on {device}"
        )


def _largest_that_fits(device: torch.device, dtype: torch.dtype) -> str:
    room = MOST_MEMORY * free_memory(device)
    names = ("8b", "3b", "tiny")
    return next(name for name in names if _weight_bytes(PRESETS[name], dtype) < room)


def _weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    shapes = Model(config, device="meta", dtype=dtype)
    return dtype.itemsize * sum(weight.numel() for weight in shapes.parameters())


def small_plan(at: Callable[..., Forward]) -> Plan:
    """A few denoising steps of a host's model in detail, AR decoding, and both cycles."""
    for kind, batch in product((DENOISE, DECODE), (1, 4)):
        yield Planned(at(kind, batch), stages=kind == DENOISE, peers=True)
    yield Planned(at(LINEAR, 1))
    yield Planned(at(QUADRATIC, 1, k=8))


def quick_plan(at: Callable[..., Forward]) -> Plan:
    """One forward of each kind."""
    for kind in (*KINDS, QUADRATIC):
        yield Planned(at(kind, 1, k=4), stages=True, peers=kind == DENOISE)
    yield Planned(at(LINEAR, 1))


def host_plan(at: Callable[..., Forward]) -> Plan:
    """What 2 cores get through in eight minutes; the slowest batches come last."""

    def by_stages(*batches: int) -> Plan:
        for batch, kind in product(batches, KINDS):
            yield Planned(at(kind, batch), stages=True, peers=kind in (DENOISE, DECODE))

    yield from by_stages(1, 16, 4)
    for batch, k in product((1, 4, 16), (8, 4)):
        yield Planned(at(QUADRATIC, batch, k=k), stages=True)
    for context, batch, kind in product((4096, 128, 2048), (1, 16, 4), (DENOISE, DECODE)):
        yield Planned(at(kind, batch, context=context))
    yield from _other_blocks(at, batches=(1, 16))
    yield from _other_weights(at, ("int8", "int4"), batches=(1, 8))
    yield from by_stages(8, 2, 64, 32)


def gpu_plan(at: Callable[..., Forward]) -> Plan:
    """The whole grid of a GPU: first what the targets name."""
    yield Planned(at(DENOISE, 1), stages=True, peers=True)
    yield Planned(at(LINEAR, 1), peers=True)
    yield Planned(at(QUADRATIC, 1, k=KS[0]), stages=True, peers=True)
    for batch, kind in product(BATCHES, KINDS):
        if (batch, kind) != (1, DENOISE):
            yield Planned(at(kind, batch), stages=True, peers=kind in (DENOISE, DECODE))
    for k in KS[1:]:
        yield Planned(at(QUADRATIC, 1, k=k))
    for batch, k in product(BATCHES[1:], (10, 16)):
        yield Planned(at(QUADRATIC, batch, k=k), stages=True)
    # Each needs another model.
    for weights, kind in product(WEIGHTS, (DENOISE, DECODE)):
        yield Planned(at(kind, 1, weights=weights), peers=True)
    for context, batch, kind in product((16384, 4096), BATCHES, KINDS):
        yield Planned(at(kind, batch, context=context))
    yield from _other_blocks(at, BATCHES)
    for batch, kind in product((1, 8, 64), (DENOISE, DECODE)):
        yield Planned(at(kind, batch, context=16384, float8_cache=True))
    for context, batch, kind in product((65536, 131072), BATCHES, KINDS):
        yield Planned(at(kind, batch, context=context))
    yield from _other_weights(at, WEIGHTS, batches=(8, 64))


def _other_blocks(at: Callable[..., Forward], batches: tuple[int, ...]) -> Plan:
    for block, batch, kind in product((8, 16), batches, (DENOISE, DRAFT, VERIFY)):
        yield Planned(at(kind, batch, block=block))


def _other_weights(
    at: Callable[..., Forward], weights: tuple[str, ...], batches: tuple[int, ...]
) -> Plan:
    for each, batch, kind in product(weights, batches, (DENOISE, DECODE)):
        yield Planned(at(kind, batch, weights=each))


def _forward(
    config: ModelConfig,
    dtype: str,
    kind: str,
    batch: int,
    *,
    context: int | None = None,
    block: int | None = None,
    k: int = 0,
    **options: str | bool,
) -> Forward:
    """A forward in the model's own block where none is given, after what its positions allow."""
    size = {DECODE: 1, QUADRATIC: k * (k + 1)}.get(kind, block or config.block_size)
    if context is None:
        context = CONTEXT["cuda" if dtype == "bfloat16" else "cpu"]
    context = min(context, config.max_position_embeddings - size)
    return Forward(kind, batch, size, context, dtype, **options)
