"""Records: one JSON file holds all that one run measured, and on what.

Tables and pictures are made from records alone. A record is written whole or not at all, and what
is read back is checked field by field, so that no table is ever made from half a record.
"""

import json
import math
import re
import tempfile
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import torch

from dlm_core.config import ModelConfig
from dlm_core.whole_file import write_whole
from dlm_kernels import Cost

from .ceilings import Ceilings
from .predict import Roof
from .step_cost import DECODING_STEP, step_cost

RESULTS = Path(__file__).parents[2] / "bench" / "results"

SCHEMA = 2
KINDS = ("op", "stage", "step")
SCOPES = ("standard", "quick", "folder")


@dataclass(frozen=True)
class Timing:
    """Seconds of many runs: the median and the quartiles around it.

    cold: caches were emptied ahead of each run.
    graph: a replayed CUDA graph, without the host's launches. Else launched from Python: on a GPU
        launches then count only where they outlast the read that empties the caches.
    """

    median: float
    low: float
    high: float
    runs: int
    cold: bool
    graph: bool

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.median <= self.high:
            raise ValueError(f"quartiles are {self.low}, {self.median}, {self.high} seconds")


@dataclass(frozen=True)
class Peer:
    """Another way to do a row's work: timed, or not and then why."""

    name: str
    timing: Timing | None
    refused: str | None

    def __post_init__(self) -> None:
        if (self.timing is None) == (self.refused is None):
            raise ValueError(f"peer {self.name!r} needs a timing or a reason, and not both")


@dataclass(frozen=True)
class Row:
    """One measurement of ours and of its peers.

    kind: "op", or of a model: "stage" or "step".
    model: a key of `Record.models`; None for ops.
    shape: sizes by name; of stages and steps batch, block and context.
    flops, bytes, exps: the compulsory cost; None exponentials in older records, which count none.
    """

    kind: str
    name: str
    model: str | None
    shape: dict[str, int]
    dtype: str
    flops: float
    bytes: float
    timing: Timing
    peers: list[Peer] = field(default_factory=list)
    exps: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.flops < 0 or self.bytes <= 0:
            raise ValueError(f"{self.name} costs {self.flops} FLOPs and {self.bytes} bytes")

    @property
    def cost(self) -> Cost:
        return Cost(self.flops, self.bytes, self.exps or 0.0)


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


@dataclass(frozen=True)
class Record:
    """One run of the bench.

    complete: False while the run goes on, and for good if it was cut short.
    scope: "standard", the whole grid and the models every run times; "quick", a few rows of it; or
        "folder", the steps of a checkpoint of the user's.
    models: configs of the models whose stages and steps were timed.
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
    ceilings: Ceilings
    models: dict[str, ModelConfig] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope is {self.scope!r}; it must be one of {', '.join(SCOPES)}")
        for row in self.rows:
            if row.model is not None and row.model not in self.models:
                raise ValueError(f"rows hold model {row.model!r}, which models does not")
            if row.dtype not in self.ceilings.matmul:
                raise ValueError(f"rows hold dtype {row.dtype!r}, which ceilings.matmul does not")

    @property
    def file_name(self) -> str:
        """`<device>-<date>-<commit>.json`, in small letters and digits."""
        parts = (self.device.name, re.sub(r"[-:]", "", self.date)[:15], self.commit[:10])
        return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts) + (
            ".json"
        )

    def roof(self, dtype: str) -> Roof:
        """The measured roof over work in `dtype`."""
        return self.ceilings.roof(dtype)

    def floor(self, row: Row) -> float:
        """Least seconds the measured roof allows, a prediction: of a step, the sum over stages."""
        roof = self.roof(row.dtype)
        if row.kind == "step":
            return roof.step_seconds(self.stage_costs(row))
        return roof.seconds(row.cost)

    def stage_costs(self, step: Row) -> dict[str, Cost]:
        """Cost of each stage of a step."""
        return step_cost(
            self.models[step.model],
            **step.shape,
            itemsize=getattr(torch, step.dtype).itemsize,
            causal=step.name == DECODING_STEP,
        )


def save(record: Record, folder: Path) -> Path:
    """Write `record` into `folder`, whole or not at all, and return its path."""
    path = folder / record.file_name
    write_whole(path, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")
    return path


def check_writable(folder: Path) -> None:
    """Raise the OSError now that `save` would raise into `folder` after minutes of measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{folder} cannot be written to: {error.strerror}") from error


def load(path: str | Path) -> Record:
    """The record in a file. A ValueError names the file and the field that is not as it must be."""
    return read(Record, path, SCHEMA)


Kind = typing.TypeVar("Kind")


def read(kind: type[Kind], path: str | Path, schema: int) -> Kind:
    """A dataclass with a field `schema` from its JSON in a file, checked field by field.

    A ValueError names the file and the field that is not as it must be.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    given = values.get("schema") if isinstance(values, dict) else None
    if given != schema:
        raise ValueError(f"{path}: schema is {given!r}; this version reads {schema}")
    try:
        return _decoded(kind, values, "record")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _decoded(kind: object, value: object, name: str) -> object:
    """`value` as JSON gives it, as an instance of the type `kind`; errors name the field."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _decoded(args[0], value, name)
    if origin is list:
        items = _of_type(list, value, name)
        return [_decoded(args[0], item, f"{name}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        items = _of_type(dict, value, name)
        return {key: _decoded(args[1], item, f"{name}.{key}") for key, item in items.items()}
    if is_dataclass(kind):
        given = dict(_of_type(dict, value, name))
        hints = typing.get_type_hints(kind)
        decoded = {}
        for each in fields(kind):
            if each.name not in given and each.default is None:
                continue  # what older records lack
            if each.name not in given:
                raise ValueError(f"{name}.{each.name} is missing")
            decoded[each.name] = _decoded(
                hints[each.name], given.pop(each.name), f"{name}.{each.name}"
            )
        for unknown in given:
            raise ValueError(f"{name}.{unknown} is not a known field")
        try:
            return kind(**decoded)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    if kind is float:
        number = _of_type((int, float), value, name)
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}; it must be finite")
        return float(number)
    return _of_type(kind, value, name)


def _of_type(kind: type | tuple[type, ...], value: object, name: str) -> typing.Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = kind.__name__ if isinstance(kind, type) else "number"
        raise ValueError(f"{name} is {value!r}; it must be a {wanted}")
    return value
