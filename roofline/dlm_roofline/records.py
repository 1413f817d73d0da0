"""Records: one JSON file holds all that one run measured, and on what.

Tables and pictures are made from records alone. A record is written whole or not at all, and what
is read back is checked field by field, so that no table is ever made from half a record.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path

from dlm_core.config import ModelConfig
from dlm_core.whole_file import write_whole
from dlm_kernels import Cost
from dlm_kernels.backend import BACKENDS

from .ceilings import Ceiling, Ceilings, Latency
from .datasheets import DATASHEETS
from .forward import STEP_NAMES, Forward
from .json_file import read
from .predict import Roof
from .step_cost import STAGES, step_cost

RESULTS = Path(__file__).parents[2] / "bench" / "results"

SCHEMA = 4
MADE_BY = "`dlm bench`"
KINDS = ("op", "stage", "step")
SCOPES = ("standard", "quick", "folder")
DEVICE_KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Timing:
    """Seconds of many runs: the median and the quartiles around it.

    cold: caches were emptied ahead of each run.
    graph: a replayed CUDA graph, without the host's launches. Else launched from Python: on a GPU
        launches then count only where they outlast the read that empties the caches.
    pace: of a host, which others may share: how many times as long as when the run began a fixed
        product took, timed beside each of these runs. None of a GPU.
    steady: of a host: whether beside all of these runs products, reads and calls took about what
        they did as a rule when the run began. None of a GPU.
    """

    median: float
    low: float
    high: float
    runs: int
    cold: bool
    graph: bool
    pace: float | None = None
    steady: bool | None = None

    @property
    def paced(self) -> float:
        """The median at the pace at which the run began, so that timings of one run compare."""
        return self.median if self.pace is None else self.median / self.pace

    def __post_init__(self) -> None:
        if self.low <= 0:
            raise ValueError(f"low is {self.low}; it must be above 0")
        if not self.low <= self.median <= self.high:
            raise ValueError(
                f"median is {self.median}; it must lie from low {self.low} to high {self.high}"
            )
        if self.runs < 1:
            raise ValueError(f"runs is {self.runs}; it must be at least 1")
        if self.pace is not None and self.pace <= 0:
            raise ValueError(f"pace is {self.pace}; it must be above 0")


@dataclass(frozen=True)
class Peer:
    """Another way to do a row's work: timed, or not and then why."""

    name: str
    timing: Timing | None
    refused: str | None

    def __post_init__(self) -> None:
        if self.timing is None and self.refused is None:
            raise ValueError(f"timing is null; peer {self.name!r} has no refused that says why")
        if self.timing is not None and self.refused is not None:
            raise ValueError(f"refused is {self.refused!r}; peer {self.name!r} has a timing")


@dataclass(frozen=True)
class Row:
    """One measurement of ours and of its peers.

    kind: "op", or of a model: "stage" or "step".
    name: of an op; of a stage, one of STAGES; of a step, that of its forward in STEP_NAMES.
    model: a key of `Record.models`; None for ops.
    forward: the forward that a step is, or that a stage is part of; None for ops.
    shape: sizes of an op by name; empty for stages and steps, whose forward has them.
    flops, bytes, exps: the compulsory cost.
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

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        for name in ("flops", "exps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.bytes <= 0:
            raise ValueError(f"bytes is {self.bytes}; it must be above 0")
        if self.kind == "op":
            self._check_op()
        else:
            self._check_of_model()

    def _check_op(self) -> None:
        for name in ("model", "forward"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be null of an op")
        if not self.shape:
            raise ValueError("shape is {}; it must hold the sizes of an op")
        for name, size in self.shape.items():
            if size < 0:
                raise ValueError(f"shape.{name} is {size}; it must be at least 0")

    def _check_of_model(self) -> None:
        for name in ("model", "forward"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is null; a {self.kind} has one")
        if self.shape:
            raise ValueError(f"shape is {self.shape}; a {self.kind}'s sizes are in its forward")
        names = STAGES if self.kind == "stage" else (STEP_NAMES[self.forward.kind],)
        if self.name not in names:
            raise ValueError(f"name is {self.name!r}; it must be one of {', '.join(names)}")
        if self.forward.dtype != self.dtype:
            raise ValueError(f"dtype is {self.dtype!r}; forward.dtype is {self.forward.dtype!r}")

    @classmethod
    def of_stage(
        cls, name: str, model: str, forward: Forward, cost: Cost, timing: Timing, **peers
    ) -> "Row":
        """A stage of a forward, or under the forward's own name the whole of it."""
        kind = "stage" if name in STAGES else "step"
        work = (cost.flops, cost.bytes, cost.exps)
        return cls(kind, name, model, forward, {}, forward.dtype, *work, timing, **peers)

    @property
    def cost(self) -> Cost:
        return Cost(self.flops, self.bytes, self.exps)

    @property
    def key(self) -> tuple:
        """What was measured: no two rows of a record have the same."""
        shape = tuple(sorted(self.shape.items()))
        return (self.kind, self.name, self.model, self.forward, shape, self.dtype)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by name, of an op or of a forward."""
        if self.forward is None:
            return self.shape
        return {name: getattr(self.forward, name) for name in ("batch", "block", "context")}


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
        if self.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise ValueError(f"backend is {self.backend!r}; it must be one of {known}")
        try:
            datetime.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date is {self.date!r}; it must be as 2026-01-31T12:00:00Z") from None
        self._check_device()
        numbers: dict[tuple, int] = {}
        for i, row in enumerate(self.rows):
            self._check_row(f"rows[{i}]", row)
            first = numbers.setdefault(row.key, i)
            if first != i:
                raise ValueError(f"rows[{i}] measures {row.name!r} again, as rows[{first}] does")
        self._check_stages()

    def _check_stages(self) -> None:
        """That a step some of whose stages were timed has them all."""
        timed: dict[tuple, set[str]] = {}
        for row in self.rows:
            if row.kind == "stage":
                timed.setdefault((row.model, row.forward), set()).add(row.name)
        for i, row in enumerate(self.rows):
            names = timed.get((row.model, row.forward))
            if row.kind == "step" and names:
                if missing := [name for name in self.stage_costs(row) if name not in names]:
                    raise ValueError(f"rows[{i}]: of its stages rows lacks {', '.join(missing)}")

    def _check_device(self) -> None:
        """That one device can have given all of it."""
        kind, has = self.device.kind, self.ceilings
        if kind not in DEVICE_KINDS:
            raise ValueError(
                f"device.kind is {kind!r}; it must be one of {', '.join(DEVICE_KINDS)}"
            )
        for name in ("exps", "l2", "graph_node") if kind == "cpu" else ("triad",):
            if getattr(has, name) is not None:
                raise ValueError(
                    f"ceilings.{name} is of another device; one of kind {kind!r} has none"
                )
        for name in ("launch", "graph_node") if kind == "cuda" else ():
            if getattr(has, name) is None:
                raise ValueError(f"ceilings.{name} is null; a device of kind {kind!r} has one")
        found = {each.name: getattr(has, each.name) for each in fields(has)}
        for name, ceiling in (found | {f"matmul.{x}": has.matmul[x] for x in has.matmul}).items():
            if isinstance(ceiling, Ceiling | Latency):
                _check_ceiling(f"ceilings.{name}", ceiling)
        if kind == "cpu" and self.device.name in DATASHEETS:
            raise ValueError(f"device.name is {self.device.name!r}, a GPU; device.kind is 'cpu'")

    def _check_row(self, at: str, row: Row) -> None:
        """That the row's device, dtype, model and forward are the record's."""
        known = self.ceilings.matmul
        if row.dtype not in known:
            raise ValueError(f"{at}.dtype is {row.dtype!r}; ceilings.matmul has {', '.join(known)}")
        timings = {"timing": row.timing}
        timings |= {f"peers[{i}].timing": peer.timing for i, peer in enumerate(row.peers)}
        for name, timing in timings.items():
            if timing and timing.graph and self.device.kind == "cpu":
                raise ValueError(
                    f"{at}.{name}.graph is True; a device of kind 'cpu' replays no CUDA graph"
                )
            for field_ in ("pace", "steady") if timing and self.device.kind == "cuda" else ():
                if (value := getattr(timing, field_)) is not None:
                    raise ValueError(
                        f"{at}.{name}.{field_} is {value}; it must be null on a device of kind"
                        " 'cuda'"
                    )
        if row.forward is None:
            return
        if row.model not in self.models:
            raise ValueError(
                f"{at}.model is {row.model!r}; models has {', '.join(self.models) or 'none'}"
            )
        if row.forward.shards != 1:
            raise ValueError(
                f"{at}.forward.shards is {row.forward.shards}; it must be 1 in a record, which is"
                " of one device"
            )
        stages = self.stage_costs(row)
        if row.kind == "stage" and row.name not in stages:
            raise ValueError(
                f"{at}.name is {row.name!r}; its forward, of kind {row.forward.kind!r}, has"
                f" {', '.join(stages)}"
            )

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
        return step_cost(self.models[step.model], step.forward)

    def stages_of(self, step: Row) -> list[Row]:
        """The stages measured of a step, in their order."""
        stages = [
            row
            for row in self.rows
            if row.kind == "stage" and (row.model, row.forward) == (step.model, step.forward)
        ]
        return sorted(stages, key=lambda row: STAGES.index(row.name))


def _check_ceiling(at: str, found: Ceiling | Latency) -> None:
    for name in ("best", "median"):
        if getattr(found, name) <= 0:
            raise ValueError(f"{at}.{name} is {getattr(found, name)}; it must be above 0")
    rate = isinstance(found, Ceiling)
    if found.best < found.median if rate else found.best > found.median:
        than = "less" if rate else "more"
        raise ValueError(f"{at}.best is {found.best}, {than} than its median {found.median}")
    if found.runs < 1:
        raise ValueError(f"{at}.runs is {found.runs}; it must be at least 1")


def memory_of(device: Device) -> int | None:
    """Bytes of a device, from its details: "141 GiB", "0.5 GiB"; None if they do not say."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) (GiB|MiB)", device.details.get("memory", ""))
    return found and round(float(found[1]) * (2**30 if found[2] == "GiB" else 2**20))


def save(record: Record, folder: Path) -> Path:
    """Write `record` into `folder`, whole or not at all, and return its path."""
    path = folder / record.file_name
    write_whole(path, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")
    return path


def record_files(folder: Path) -> list[Path]:
    """The files of a folder that are named as `save` names records, in the order of their names."""
    return sorted(folder.glob("*-????????t??????-*.json"))


def newest_of_each_device(records: Iterable[tuple[Path, Record]]) -> list[tuple[Path, Record]]:
    """Of records, each with its file, the newest of each device: hosts first, each kind by name.

    Records of quick runs, of checkpoint folders and of runs cut short are left out.
    """
    found: dict[tuple[str, str], tuple[Path, Record]] = {}
    for path, record in sorted(records, key=lambda each: each[1].date):
        if record.complete and record.scope == "standard":
            found[record.device.kind, record.device.label] = (path, record)
    return [found[device] for device in sorted(found)]


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
    return read(Record, path, SCHEMA, made_by=MADE_BY)
