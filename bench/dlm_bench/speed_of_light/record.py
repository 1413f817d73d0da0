"""The record of `dlm gpu-bench`: one file a device and state of the code, filled run by run."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dlm_core import ModelConfig
from dlm_core.whole_file import write_whole
from dlm_roofline.ceilings import Ceilings
from dlm_roofline.json_file import read
from dlm_roofline.records import Device, Peer, Timing

SCHEMA = 1
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Session:
    """One run of the command: floors hold for rows of the same run alone.

    launch: seconds of an empty kernel, launched and timed as everything else.
    """

    date: str
    command: str
    versions: dict[str, str]
    details: dict[str, str]
    ceilings: Ceilings
    launch: Timing


@dataclass(frozen=True)
class Result:
    """What one row gave.

    session: the number of its run in `Record.sessions`.
    floor: predicted seconds, the sum over the stages; None where time is not what is bounded.
    timings: by numerics, "fast" and "invariant", or "both" for an op that has only one.
    figures: by name, what the targets bound and what else is worth knowing.
    refused: why nothing was measured, or None.
    """

    name: str
    session: int
    floor: float | None
    timings: dict[str, Timing]
    peers: list[Peer]
    figures: dict[str, float]
    refused: str | None


@dataclass
class Record:
    """sources: what `sources_of` gives; a record is only gone on with by the same code."""

    schema: int
    commit: str
    dirty: bool
    sources: str
    backend: str
    device: Device
    model: ModelConfig
    dtype: str
    sessions: list[Session] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    @property
    def file_name(self) -> str:
        """`speed-of-light-<device>-<commit>-<sources>.json`."""
        device = re.sub(r"[^a-z0-9]+", "-", self.device.name.lower()).strip("-")
        return f"speed-of-light-{device}-{self.commit[:10]}-{self.sources[:8]}.json"

    def result_of(self, name: str) -> Result | None:
        return next((result for result in self.results if result.name == name), None)

    def put(self, result: Result) -> None:
        """Add a result, in place of an earlier one of the same row."""
        self.results = [each for each in self.results if each.name != result.name] + [result]


def sources_of(root: Path = ROOT) -> str:
    """A digest of all code and launch tables under `root` that timings depend on."""
    digest = hashlib.sha256()
    for folder in ("kernels", "dlm_core", "bench/dlm_bench", "roofline"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".json"):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()


def save(record: Record, folder: Path) -> Path:
    """Write `record` into `folder`, whole or not at all, and return its path."""
    path = folder / record.file_name
    write_whole(path, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")
    return path


def gone_on_with(fresh: Record, folder: Path) -> Record:
    """The record in `folder` of the same device, code, model and dtype, or `fresh` itself.

    A ValueError names a file that is there and cannot be read.
    """
    path = folder / fresh.file_name
    if not path.exists():
        return fresh
    found = read(Record, path, SCHEMA, made_by="`dlm gpu-bench`")
    same = (found.device.name, found.sources, found.model, found.dtype, found.backend)
    wanted = (fresh.device.name, fresh.sources, fresh.model, fresh.dtype, fresh.backend)
    return found if same == wanted else fresh
