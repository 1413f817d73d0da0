"""A report of made-up records, beside some settings of the quality record in bench/results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dlm_bench.quality.grid import AUTOREGRESSIVE
from dlm_bench.quality.records import SCHEMA as QUALITY_SCHEMA
from dlm_bench.quality.records import QualityRecord
from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, STEP_NAMES, VERIFY, Forward
from dlm_roofline.json_file import read
from dlm_roofline.records import (
    RESULTS,
    SCHEMA,
    Device,
    Record,
    Row,
    Skipped,
    Timing,
    load,
    newest_of_each_device,
    record_files,
    save,
)
from dlm_roofline.step_cost import step_cost, total

MODEL = "8B </script><b>, random weights"
BLOCKS = {DECODE: 1, DENOISE: 32, DRAFT: 32, VERIFY: 32}
HOSTILE = 'Processor <script>alert(1)</script> & "co" $title'


def record_of(
    device: Device, batches: Sequence[int], kinds: Sequence[str], date: str = "2026-01-02"
) -> Record:
    """Every forward and its stages, each 1.5 times as slow as its floor."""
    cuda = device.kind == "cuda"

    def ceiling(rate: float) -> Ceiling:
        return Ceiling(rate, 0.98 * rate, 15)

    ceilings = Ceilings(
        ceiling(4e12),
        ceiling(3.8e12),
        ceiling(3.5e12),
        {"bfloat16": ceiling(8e14), "float32": ceiling(5e13)},
        exps=ceiling(3.7e12) if cuda else None,
        launch=Latency(3e-6, 3.5e-6, 15) if cuda else None,
        graph_node=Latency(1e-6, 1.1e-6, 15) if cuda else None,
    )
    roof, rows = ceilings.roof("bfloat16"), []
    for kind in kinds:
        for batch in batches:
            forward = Forward(kind, batch, BLOCKS[kind], 1024, "bfloat16")
            costs = step_cost(PRESETS["8b"], forward)
            seconds = {name: 1.5 * roof.seconds(cost) for name, cost in costs.items()}
            costs[STEP_NAMES[kind]] = total(costs)
            seconds[STEP_NAMES[kind]] = sum(seconds.values())
            for name, cost in costs.items():
                t = seconds[name]
                timing = Timing(t, 0.98 * t, 1.05 * t, runs=40, cold=True, graph=cuda)
                rows.append(Row.of_stage(name, MODEL, forward, cost, timing))
    return Record(
        schema=SCHEMA,
        complete=True,
        scope="standard",
        date=f"{date}T03:04:05Z",
        commit="0123456789abcdef",
        dirty=False,
        command="dlm bench",
        backend="triton" if cuda else "torch",
        versions={"python": "3.12.1", "torch": "2.11.0"},
        device=device,
        ceilings=ceilings,
        models={MODEL: PRESETS["8b"]},
        rows=rows,
        skipped=[Skipped("block_attention, batch 64", "out of time")],
    )


@dataclass(frozen=True)
class Report:
    """The page as a file, and what it was made from."""

    file: Path
    records: list[Record]
    quality: QualityRecord

    @property
    def html(self) -> str:
        return self.file.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def host() -> Record:
    return record_of(Device("cpu", HOSTILE, {"threads": "2"}), (1, 4), [DENOISE])


@pytest.fixture(scope="session")
def gpu() -> Record:
    details = {"memory": "141 GiB", "driver": "580.1"}
    return record_of(Device("cuda", "NVIDIA H200", details), (1, 64), [DENOISE, DECODE])


@pytest.fixture(scope="session")
def quality() -> QualityRecord:
    """A few settings and examples of the record in bench/results: all take many seconds to draw."""
    run = pytest.importorskip("dlm_bench.report.run")
    whole = read(QualityRecord, run.QUALITY, QUALITY_SCHEMA)
    kept = [
        each
        for each in whole.results
        if each.setting == AUTOREGRESSIVE
        or (each.setting.block_length == 32 and each.setting.threshold in (0.5, 0.9))
        or (each.setting.block_length == 32 and each.setting.mode == "linear_spec")
    ]
    n = 12 * len(whole.sample.tasks)
    results = [
        replace(
            each,
            right=each.right[:n],
            tokens=each.tokens[:n],
            forwards=each.forwards[:n],
            digests=each.digests[:n],
            cycles=each.cycles[:n],
        )
        for each in kept
    ]
    return replace(whole, results=results, oracle_drafts=[], perplexities=[])


@pytest.fixture(scope="session")
def report(
    host: Record, gpu: Record, quality: QualityRecord, tmp_path_factory: pytest.TempPathFactory
) -> Report:
    pytest.importorskip("matplotlib")
    from dlm_bench.report import player
    from dlm_bench.report.page import page

    folder = tmp_path_factory.mktemp("report")
    records = [(save(record, folder), record) for record in (host, gpu)]
    html = page(
        records,
        (Path("quality.json"), quality),
        player.runs(),
        ["No whole record of <b>a GPU</b>; `make bench` makes one."],
    )
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    return Report(file, [host, gpu], quality)


@pytest.fixture(scope="session")
def committed() -> list[tuple[Path, Record]]:
    """What of bench/results the page shows by default."""
    found = newest_of_each_device([(path, load(path)) for path in record_files(RESULTS)])
    if not found:
        pytest.skip(f"{RESULTS} holds no whole record of a device")
    return found


@pytest.fixture(scope="session")
def committed_page(
    committed: list[tuple[Path, Record]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The page as `make report` writes it."""
    pytest.importorskip("matplotlib")
    from dlm_bench.report.run import write_report

    out = tmp_path_factory.mktemp("committed") / "report.html"
    return write_report(None, None, out)[0]
