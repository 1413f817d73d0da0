"""The device that advice is for, and the records that tell of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from dlm_core.config import ModelConfig

from ..ceilings import Ceilings
from ..datasheets import DATASHEETS, datasheet_of
from ..records import Record, memory_of

HOST = "host"


@dataclass(frozen=True)
class Machine:
    """A device to serve on.

    kind: "cpu" or "cuda".
    backend: "triton" or "torch", whose ops do the work.
    ceilings: measured, or else those of its datasheet.
    memory: bytes; None where neither record nor datasheet says.
    """

    kind: str
    name: str
    backend: str
    ceilings: Ceilings
    measured: bool
    memory: int | None

    @classmethod
    def of_record(cls, record: Record) -> "Machine":
        """The device that a record was measured on."""
        device, sheet = record.device, DATASHEETS.get(record.device.name)
        memory = sheet.memory if sheet else memory_of(device)
        return cls(device.kind, device.name, record.backend, record.ceilings, True, memory)

    @property
    def float8_cache(self) -> bool:
        """Whether the ops take a float8 cache here; Triton does from compute capability 8.9 on."""
        if self.kind == "cpu" or self.backend == "torch":
            return True
        # Which is where e4m3 products are, and not every build of torch lets them be measured.
        sheet = DATASHEETS.get(self.name)
        return "float8_e4m3fn" in (sheet.matmul if sheet else self.ceilings.matmul)

    def dtype_of(self, config: ModelConfig) -> str:
        """What a model computes in here: on a host float32, as the bench times it there."""
        return "float32" if self.kind == "cpu" else config.torch_dtype


def machine_of(name: str, records: Sequence[Record]) -> tuple[Machine, list[Record]]:
    """The device of this name, and those of the records that tell of it, the newest first.

    name: "host", the CPU of the newest record of one; or of a GPU as torch names it, as one of the
        records does, or as `datasheet_of` takes it.

    Raises:
        ValueError: no record or datasheet is of this name.
    """
    if name == HOST:
        found = [each for each in records if each.device.kind == "cpu"]
        if not found:
            raise ValueError(
                f"{HOST!r} needs a record of a CPU, which `dlm bench` makes for --records"
            )
    else:
        found = [each for each in records if each.device.name == name]
    if not found:
        sheet = datasheet_of(name)
        found = [each for each in records if each.device.name == sheet.name]
    if not found:
        return Machine("cuda", sheet.name, "triton", sheet.ceilings(), False, sheet.memory), []
    newest, *older = sorted(found, key=lambda each: each.date, reverse=True)
    alike = [each for each in older if identity(each) == identity(newest)]
    return Machine.of_record(newest), [newest, *alike]


def identity(record: Record) -> dict[str, str | None]:
    """What records must share for one to tell of the other's device, by field."""
    device = record.device
    return {
        "device.kind": device.kind,
        "device.name": device.name,
        "device.details.threads": device.details.get("threads"),
        "backend": record.backend,
    }
