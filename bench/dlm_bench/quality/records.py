"""The record of a quality run: what every setting did on every example.

The examples are one of each task in turn; so a setting measured on fewer has the first ones.
"""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import dlm_core
import dlm_kernels
from dlm_core import Generation, Model
from dlm_core.draft_lora import FOLDER
from dlm_roofline.records import RESULTS, Record

from ..machine import name_of
from .settings import Setting, Way

COMMITTED = RESULTS / "quality" / "quality.json"


@dataclass(frozen=True)
class Checkpoint:
    """The model measured. hash: of its config, weights, LoRA and tokenizer. dtype: as computed."""

    name: str
    hash: str
    dtype: str
    block_size: int
    has_draft_lora: bool

    @classmethod
    def of(cls, folder: Path, model: Model) -> "Checkpoint":
        names = ("config.json", "tokenizer.json", f"{FOLDER}/*.json", "*.safetensors")
        names += (f"{FOLDER}/*.safetensors",)
        return cls(
            name=folder.resolve().name,
            hash=_hash(file for name in names for file in sorted(folder.glob(name))),
            dtype=name_of(model.dtype),
            block_size=model.config.block_size,
            has_draft_lora=model.has_draft_lora,
        )


@dataclass(frozen=True)
class Sample:
    """What is measured on.

    per_task: examples of each task that the headline settings decode. common: those of them that
        every setting and the oracle decode.
    max_new_tokens: of every setting; what runs on beyond the longest right answer is not right.
    tasks: those of one turn, in order.
    """

    seed: int
    per_task: int
    common: int
    max_new_tokens: int
    tasks: list[str]


class Decoded(NamedTuple):
    """One example decoded by one setting; as text "1:19:6:9fJw".

    tokens, forwards: generated, and run for them, without the prefill's.
    digest: of the tokens, to tell whether two settings gave the same.
    """

    right: bool
    tokens: int
    forwards: int
    digest: str

    @classmethod
    def of(cls, generation: Generation, right: bool) -> "Decoded":
        tokens, forwards = generation.tokens, generation.forwards
        content = hashlib.blake2b(repr(tokens).encode(), digest_size=3).digest()
        digest = base64.urlsafe_b64encode(content).decode()
        counted = sum(n for kind, n in forwards.items() if kind != "prefill")
        return cls(right, len(tokens), counted, digest)

    @classmethod
    def parse(cls, text: str) -> "Decoded":
        try:
            right, tokens, forwards, digest = text.split(":")
            return cls(right == "1", int(tokens), int(forwards), digest)
        except ValueError:
            raise ValueError(f"{text!r} is not as right:tokens:forwards:digest") from None

    def __str__(self) -> str:
        return ":".join(map(str, (int(self.right), *self[1:])))


@dataclass(frozen=True)
class Result:
    """What one setting did.

    decoded: each example's `Decoded` as text, with spaces between them.
    seconds: that `Sample.common` examples of each task but the Python functions took, decoded many
        together, prefills too.
    """

    setting: Setting
    decoded: str
    seconds: float

    @cached_property
    def examples(self) -> list[Decoded]:
        return list(map(Decoded.parse, self.decoded.split()))

    @classmethod
    def of(cls, setting: Setting, examples: Iterable[Decoded], seconds: float) -> "Result":
        return cls(setting, " ".join(map(str, examples)), seconds)


@dataclass(frozen=True)
class Oracle:
    """The oracle of diffusion at a block length. forwards: but the prefill's, of each example."""

    block_length: int
    forwards: list[int]


@dataclass(frozen=True)
class Apart:
    """Logits of forwards of one kind beside the unquantised model's, row by row.

    mean, largest: of the absolute differences, in standard deviations of the unquantised logits.
    kl: mean of KL(unquantised, quantised), nats.
    same: share of rows whose likeliest token is the same.
    """

    mean: float
    largest: float
    kl: float
    same: float


@dataclass(frozen=True)
class Closeness:
    """How close a way to quantise is to none, in logits.

    weights, float8_cache: as in Setting. bits: that a weight of the layers' matrices takes.
    rows: of logits compared, of causal and of denoising forwards alike.
    """

    weights: str | None
    float8_cache: bool
    bits: float
    rows: int
    causal: Apart
    denoise: Apart

    @property
    def way(self) -> Way:
        return self.weights, self.float8_cache


@dataclass(frozen=True, kw_only=True)
class QualityRecord(Record):
    """One run of `dlm quality`. code: hash of the sources that decide what is measured."""

    model: Checkpoint
    sample: Sample
    code: str
    results: list[Result] = field(default_factory=list)
    oracles: list[Oracle] = field(default_factory=list)
    closeness: list[Closeness] = field(default_factory=list)

    def __post_init__(self) -> None:
        turn, common, per_task = len(self.sample.tasks), self.sample.common, self.sample.per_task
        held = {f"results[{i}].decoded": each.examples for i, each in enumerate(self.results)}
        held |= {f"oracles[{i}].forwards": each.forwards for i, each in enumerate(self.oracles)}
        for name, examples in held.items():
            turns, rest = divmod(len(examples), turn)
            if rest or not common <= turns <= per_task:
                raise ValueError(
                    f"{name} holds {len(examples)} examples; it must hold as many of each of"
                    f" {turn} tasks, {common} to {per_task}"
                )

    def result(self, setting: Setting) -> Result | None:
        return next((each for each in self.results if each.setting == setting), None)

    def differs_from(self, other: "QualityRecord") -> str | None:
        """Why the other's results cannot go on in this one, in words; None if they can."""
        names = ("scope", "model", "sample", "code", "backend", "versions")
        apart = [name for name in names if getattr(self, name) != getattr(other, name)]
        apart += ["device"] * (self.device.label != other.device.label)
        return ", ".join(apart) or None


def code_hash() -> str:
    """Of the sources of the ops, the model and this folder."""
    folders = [Path(module.__file__).parent for module in (dlm_kernels, dlm_core)]
    folders.append(Path(__file__).parent)
    return _hash(file for folder in folders for file in sorted(folder.rglob("*.py")))


def _hash(files: Iterable[Path]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()
