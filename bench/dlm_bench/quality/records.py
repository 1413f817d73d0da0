"""The record of a quality run: what every setting did on every example, and on what it ran.

Tables and pictures are made from records alone. Columns run over the examples in order, which are
one of each task in turn; so a setting measured on fewer examples has the first ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dlm_core
import dlm_kernels
from dlm_core.draft_lora import FOLDER
from dlm_core.tasks import TASKS, Example
from dlm_roofline.records import Device, Skipped

from .evaluate import Outcome, Setting
from .grid import SEED, Grid

SCHEMA = 2
SCOPES = ("standard", "quick")
# Parts of dlm_core that decide nothing of what a setting generates. Of `training`, text.py is
# hashed nonetheless, for perplexity is measured on its documents.
_NOT_DECODING = {"cli.py", "generate_command.py", "block_trace.py", "training", "small_model"}
# Parts of this folder that only show what a record holds.
_SHOWING = {
    "acceptance_chart.py", "charts.py", "frontier_chart.py", "profile.py", "readme.py", "style.py",
    "tables.py",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The model measured. hash: of its config, weights, LoRA and tokenizer. dtype: as computed."""

    name: str
    hash: str
    dtype: str
    parameters: int
    block_size: int
    has_draft_lora: bool


@dataclass(frozen=True)
class Sample:
    """What is measured on; see `Grid` for the three numbers.

    tasks: those of one turn, in order. hash: of every prompt and answer.
    """

    seed: int
    per_task: int
    rest_per_task: int
    passages: int
    tasks: list[str]
    hash: str

    def __post_init__(self) -> None:
        if not self.tasks or self.per_task < 1:
            raise ValueError(f"a sample of {self.per_task} examples of each of {self.tasks}")
        if not 1 <= self.rest_per_task <= self.per_task:
            raise ValueError(
                f"rest_per_task is {self.rest_per_task}; it must be in 1 to per_task,"
                f" {self.per_task}"
            )


@dataclass(frozen=True)
class Mistake:
    """An example that was answered wrongly."""

    prompt: str
    answer: str
    text: str


@dataclass(frozen=True)
class Result:
    """What one setting did. Columns hold an entry an example, in the sample's order.

    tokens, forwards: generated, and run for them, without the prefill's. digests: of the tokens,
        to tell whether two settings gave the same. cycles: of self-speculation, the tokens that
        each cycle emitted, before any cut; else empty.
    kinds: forwards by kind, over all examples.
    seconds: of decoding the examples but the Python functions, many together, prefills too.
    seconds_of_rest: of those, the first `Sample.rest_per_task` of each task.
    mistakes: the first of each task.
    """

    setting: Setting
    right: list[bool]
    tokens: list[int]
    forwards: list[int]
    digests: list[str]
    cycles: list[list[int]]
    kinds: dict[str, int]
    seconds: float
    seconds_of_rest: float
    mistakes: list[Mistake]

    def __post_init__(self) -> None:
        n = len(self.right)
        for name in ("tokens", "forwards", "digests"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} holds {len(getattr(self, name))} entries; right has {n}")
        if n == 0 or len(self.cycles) not in (0, n):
            raise ValueError(f"cycles holds {len(self.cycles)} entries; right has {n}")

    @classmethod
    def of(
        cls,
        setting: Setting,
        outcomes: Sequence[Outcome],
        *,
        seconds: float,
        seconds_of_rest: float,
    ) -> "Result":
        kinds: dict[str, int] = {}
        mistakes: dict[str, Mistake] = {}
        for each in outcomes:
            for kind, n in each.generation.forwards.items():
                kinds[kind] = kinds.get(kind, 0) + n
            if not each.right:
                example = each.example
                mistake = Mistake(example.prompt, example.answer, each.text)
                mistakes.setdefault(example.task, mistake)
        speculates = any(each.generation.accepted for each in outcomes)
        return cls(
            setting,
            right=[each.right for each in outcomes],
            tokens=[len(each.generation.tokens) for each in outcomes],
            forwards=[each.forwards for each in outcomes],
            digests=[digest(repr(each.generation.tokens), 4) for each in outcomes],
            cycles=[each.generation.accepted for each in outcomes] if speculates else [],
            kinds=kinds,
            seconds=seconds,
            seconds_of_rest=seconds_of_rest,
            mistakes=list(mistakes.values()),
        )


@dataclass(frozen=True)
class Perplexity:
    """exp(nats a token), over tokens of "answers" or of "text". kind: see `perplexity`.

    low, high: the 95% interval over passages. block_length: None if autoregressive.
    tokens: of all passages; of `masked` those that were masked.
    seconds: for all kinds of this block length and these passages, which are measured together.
    """

    kind: str
    over: str
    block_length: int | None
    value: float
    low: float
    high: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class OracleDiffusion:
    """The oracle at one block length; columns as in Result. forced, per_step: see `oracle`."""

    block_length: int
    tokens: list[int]
    forwards: list[int]
    forced: list[int]
    per_step: list[list[int]]
    seconds: float

    def __post_init__(self) -> None:
        _check_columns(self, "forwards", "forced", "per_step")


@dataclass(frozen=True)
class OracleDraft:
    """Drafts against the reference; columns as in Result, a list of cycles each. See `oracle`."""

    block_length: int
    lora: bool
    tokens: list[int]
    prefix: list[list[int]]
    anywhere: list[list[int]]
    right: list[list[str]]
    seconds: float

    def __post_init__(self) -> None:
        _check_columns(self, "prefix", "anywhere", "right")


@dataclass(frozen=True)
class QualityRecord:
    """One run of `dlm quality`.

    complete: False while the run goes on, and for good if it was cut short.
    scope: "standard", or "quick": a few settings on a few examples.
    code: hash of the sources that decide what is generated and what counts as right.
    max_new_tokens: of every setting.
    seconds: of measuring, over all the parts that were measured at different times.
    """

    schema: int
    complete: bool
    scope: str
    date: str
    commit: str
    dirty: bool
    command: str
    backend: str
    versions: dict[str, str]
    device: Device
    model: Checkpoint
    code: str
    sample: Sample
    max_new_tokens: int
    seconds: float = 0.0
    results: list[Result] = field(default_factory=list)
    perplexities: list[Perplexity] = field(default_factory=list)
    oracle_diffusion: list[OracleDiffusion] = field(default_factory=list)
    oracle_drafts: list[OracleDraft] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope is {self.scope!r}; it must be one of {', '.join(SCOPES)}")
        longest = self.sample.per_task * len(self.sample.tasks)
        for result in self.results:
            if len(result.right) > longest or len(result.right) % len(self.sample.tasks):
                raise ValueError(
                    f"{result.setting.name} has {len(result.right)} examples; they must be as many"
                    f" of each of {len(self.sample.tasks)} tasks, at most {longest}"
                )

    @property
    def so_far(self) -> str:
        """What it holds, in words."""
        return f"{len(self.results)} settings"

    def result(self, setting: Setting) -> Result | None:
        return next((each for each in self.results if each.setting == setting), None)

    def differs_from(self, other: "QualityRecord") -> str | None:
        """Why the other's results cannot go on in this one, in words; None if they can."""
        compared = {
            "model": (self.model, other.model),
            "code": (self.code, other.code),
            "sample": (self.sample, other.sample),
            "longest answer": (self.max_new_tokens, other.max_new_tokens),
            "scope": (self.scope, other.scope),
            "device": (self.device.name, other.device.name),
            "number of threads": tuple(x.device.details.get("threads") for x in (self, other)),
            "backend": (self.backend, other.backend),
            "versions": (self.versions, other.versions),
        }
        apart = [name for name, (mine, others) in compared.items() if mine != others]
        return ", ".join(apart) or None


def sample_of(examples: Sequence[Example], wanted: Grid) -> Sample:
    """`examples`, which hold `wanted.per_task` of each task."""
    tasks = [example.task for example in examples[: len(TASKS)]]
    return Sample(
        SEED, wanted.per_task, wanted.rest_per_task, wanted.passages, tasks, digest(repr(examples))
    )


def checkpoint_hash(folder: Path) -> str:
    """Of the files that decide what a checkpoint generates."""
    names = ("config.json", "tokenizer.json", f"{FOLDER}/*.json", "*.safetensors")
    files = [file for name in names for file in sorted(folder.glob(name))]
    return _of_files([*files, *sorted(folder.glob(f"{FOLDER}/*.safetensors"))], folder)


def code_hash(
    core: Path = Path(dlm_core.__file__).parent,
    kernels: Path = Path(dlm_kernels.__file__).parent,
    quality: Path = Path(__file__).parent,
) -> str:
    """Of the sources that decide what is measured, what is generated and what counts as right."""
    core_files = [
        file for file in core.rglob("*.py") if file.relative_to(core).parts[0] not in _NOT_DECODING
    ]
    ours = [file for file in quality.glob("*.py") if file.name not in _SHOWING]
    parts = [
        _of_files(sorted(kernels.rglob("*.py")), kernels),
        _of_files(sorted([*core_files, core / "training" / "text.py"]), core),
        _of_files(sorted(ours), quality),
    ]
    return digest(repr(parts))


def digest(text: str, size: int = 16) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def _of_files(files: Sequence[Path], root: Path) -> str:
    total = hashlib.blake2b(digest_size=16)
    for file in files:
        content = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        total.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _check_columns(row: OracleDiffusion | OracleDraft, *names: str) -> None:
    for name in names:
        if len(getattr(row, name)) != len(row.tokens):
            raise ValueError(
                f"{name} holds {len(getattr(row, name))} entries; tokens has {len(row.tokens)}"
            )
