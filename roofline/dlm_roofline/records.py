"""Records: one JSON file holds all that one run measured, and on what.

Every record begins alike (`Record`) and is written and read by the same two functions, `save` and
`read`. Tables and pictures are made from records alone.
"""

import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from dlm_core.config import ModelConfig
from dlm_core.whole_file import write_whole
from dlm_kernels import Cost

from .ceilings import Ceilings
from .forward import STEP_NAMES, Forward
from .predict import Roof
from .step_cost import STAGES
from .step_time import step_times, whole

SCHEMA = 5
KINDS = ("op", "stage", "step")
NAMES = (*STAGES, *STEP_NAMES.values())  # of stages and steps, in their order
RESULTS = Path(__file__).parent / "results"  # committed records; bench/results of a checkout
OUT = Path("out")  # where runs leave theirs

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Timing:
    """Seconds of many runs: the median and the quartiles around it.

    cold: caches were emptied before each run.
    graph: a replayed CUDA graph, without the host's launches; else launched from Python.
    """

    median: float
    low: float
    high: float
    runs: int
    cold: bool
    graph: bool

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.median <= self.high:
            raise ValueError(
                f"median is {self.median}, low {self.low} and high {self.high}; they must be above"
                " 0, and the median between the others"
            )


@dataclass(frozen=True)
class Peer:
    """Another way to do a row's work: timed, or refused and then why."""

    name: str
    timing: Timing | None
    refused: str | None

    def __post_init__(self) -> None:
        if (self.timing is None) == (self.refused is None):
            raise ValueError(
                f"peer {self.name!r} must have either a timing or a refused that says why"
            )


@dataclass(frozen=True)
class Row:
    """One measurement of ours and of its peers.

    kind: "op", or of a model: "stage" or "step".
    name: of an op; of a stage, one of STAGES; of a step, that of its forward in STEP_NAMES.
    model: a key of `BenchRecord.models`; None for ops.
    forward: the forward that a step is, or that a stage is part of; None for ops.
    shape: sizes of an op by name; empty for stages and steps, whose forward has them.
    flops, bytes, exps: the compulsory cost.
    peak: bytes allocated at most beyond what was there before; None where nobody counted.
    """

    kind: str
    name: str
    model: str | None
    forward: Forward | None
    shape: dict[str, int]
    dtype: str
    flops: float
    bytes: float
    exps: float
    timing: Timing
    peers: list[Peer] = field(default_factory=list)
    peak: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if min(self.flops, self.exps) < 0 or self.bytes <= 0:
            raise ValueError(f"flops, bytes, exps are {self.flops}, {self.bytes}, {self.exps};"
                             " bytes must be above 0, the others at least 0")  # fmt: skip
        of_model = self.model is not None and self.forward is not None and not self.shape
        of_op = self.model is None and self.forward is None and bool(self.shape)
        if not (of_op if self.kind == "op" else of_model):
            wanted = "a shape alone" if self.kind == "op" else "a model and a forward alone"
            raise ValueError(f"model, forward, shape of {self.name!r}: {self.kind}s have {wanted}")

    @classmethod
    def of_model(
        cls, name: str, model: str, forward: Forward, cost: Cost, timing: Timing, **more
    ) -> "Row":
        """A stage of a forward, or under the forward's own name the whole of it."""
        kind = "stage" if name in STAGES else "step"
        work = (cost.flops, cost.bytes, cost.exps)
        return cls(kind, name, model, forward, {}, forward.dtype, *work, timing, **more)

    @property
    def cost(self) -> Cost:
        return Cost(self.flops, self.bytes, self.exps)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by name, of an op or of a forward."""
        if self.forward is None:
            return self.shape
        return {name: getattr(self.forward, name) for name in ("batch", "block", "context")}

    def ratio(self, peer: str) -> float | None:
        """How many times as long as ours a peer took; None if it refused or there is none."""
        found = next((each for each in self.peers if each.name == peer), None)
        return found.timing.median / self.timing.median if found and found.timing else None


@dataclass(frozen=True)
class Skipped:
    """Something the run left out, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Device:
    """name as the vendor gives it; details: memory, threads, driver, and clocks under load."""

    kind: str
    name: str
    details: dict[str, str]

    @property
    def label(self) -> str:
        """The name for readers. A host's has its threads: on more of them it is another device."""
        threads = self.details.get("threads")
        if self.kind != "cpu" or threads is None:
            return self.name
        return f"{self.name}, {threads} thread{'s' * (threads != '1')}"

    @property
    def memory(self) -> int | None:
        """Bytes, from details such as "141 GiB"; None if they don't say."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) GiB", self.details.get("memory", ""))
        return found and round(float(found[1]) * 2**30)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record begins with.

    complete: False while the run goes on, and for good if it was cut short.
    scope: "standard", all that a run measures; "quick", a part of it; "folder", a checkpoint of the
        user's.
    """

    schema: int = SCHEMA
    complete: bool = False
    scope: str
    date: str
    commit: str
    dirty: bool
    command: str
    backend: str
    versions: dict[str, str]
    device: Device

    @property
    def facts(self) -> dict[str, object]:
        """Where its figures come from, by name."""
        return {
            "device": self.device.name,
            **self.device.details,
            **self.versions,
            "backend": self.backend,
            "commit": self.commit + " with local changes" * self.dirty,
            "date": self.date,
            "run": f"{self.scope}, {'complete' if self.complete else 'INCOMPLETE: cut short'}",
        }

    @property
    def file_name(self) -> str:
        """`<device>-<date>-<commit>.json`, in small letters and digits."""
        parts = (self.device.name, re.sub(r"[-:]", "", self.date)[:15], self.commit[:10])
        words = (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)
        return "-".join(words) + ".json"


@dataclass(frozen=True, kw_only=True)
class BenchRecord(Record):
    """One run of the bench. models: configs of the models whose stages and steps were timed."""

    ceilings: Ceilings
    models: dict[str, ModelConfig] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if row.dtype not in self.ceilings.matmul:
                known = ", ".join(self.ceilings.matmul)
                raise ValueError(f"rows[{i}].dtype is {row.dtype!r}; ceilings.matmul has {known}")
            if row.model is not None and row.model not in self.models:
                known = ", ".join(self.models) or "none"
                raise ValueError(f"rows[{i}].model is {row.model!r}; models has {known}")

    def roof(self, dtype: str) -> Roof:
        """The measured roof over work in `dtype`."""
        return self.ceilings.roof(dtype)

    def floor(self, row: Row) -> float:
        """Least seconds the measured roof allows, a prediction: of a step, the sum over stages."""
        if row.kind != "step":
            return self.roof(row.dtype).seconds(row.cost)
        return whole(step_times(self.models[row.model], row.forward, self.ceilings).values()).floor

    def steps(self, *names: str) -> list[Row]:
        """Whole forwards by their names in STEP_NAMES; without names all."""
        names = names or tuple(STEP_NAMES.values())
        return [row for row in self.rows if row.kind == "step" and row.name in names]

    def stages_of(self, step: Row) -> list[Row]:
        """The stages measured of a step, in their order."""
        of_step = ("stage", step.model, step.forward)
        found = [row for row in self.rows if (row.kind, row.model, row.forward) == of_step]
        return sorted(found, key=lambda row: NAMES.index(row.name))


def save(record: Record, path: Path) -> Path:
    """Write a record, whole or not at all; returns `path`."""
    write_whole(path, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")
    return path


def read(kind: type[Kind], path: str | Path, *, schema: int = SCHEMA) -> Kind:
    """A dataclass with a field `schema` from its JSON in a file.

    Raises:
        ValueError: names the file and the field that is not as it must be.
        ModuleNotFoundError: msgspec is not installed; only reading needs it.
    """
    import msgspec  # here and not above: a machine that only measures need not have it

    try:
        text = Path(path).read_bytes()
        given = msgspec.json.decode(text)
        found = given.get("schema") if isinstance(given, dict) else None
        if found != schema:
            raise ValueError(f"schema is {found!r}; this version reads {schema}")
        return msgspec.convert(given, kind)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors too
        raise ValueError(f"{path}: {error}") from None


def bench_files(folder: Path) -> list[Path]:
    """Files of a folder that are named as the bench's records are, by their names."""
    return sorted(folder.glob("*-????????t??????-*.json"))


def default_records(out: Path = OUT) -> list[BenchRecord]:
    """What is shown where no record is named: the newest whole standard one of each device, of the
    committed ones and of this machine's runs in `out`. Hosts come first, each kind by name.

    What can't be read in `out`, as an earlier version's record, is left out, and the standard error
    says so.
    """
    found: list[BenchRecord] = [read(BenchRecord, path) for path in bench_files(RESULTS)]
    for path in bench_files(out):
        try:
            found.append(read(BenchRecord, path))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    newest: dict[tuple[str, str], BenchRecord] = {}
    for record in sorted(found, key=lambda each: each.date):
        if record.complete and record.scope == "standard":
            newest[record.device.kind, record.device.label] = record
    return [newest[device] for device in sorted(newest)]


def check_writable(folder: Path) -> None:
    """Raise the OSError now that `save` would raise into `folder` after minutes of measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{folder} cannot be written to: {error.strerror}") from error
