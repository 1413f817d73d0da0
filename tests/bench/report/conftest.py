"""A report of made-up records of round figures, which is written once for all tests."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from made_up import record_of, rows_of, timed

from dlm_bench.quality.records import Decoded, QualityRecord, Result
from dlm_bench.quality.settings import AUTOREGRESSIVE, Setting
from dlm_core import PRESETS
from dlm_core.tasks import TASKS
from dlm_roofline.forward import DECODE, DENOISE, STEP_NAMES, Forward
from dlm_roofline.records import BenchRecord, Device
from dlm_roofline.step_cost import ATTENTION, EMBEDDING, PROJECTIONS

from ..quality import conftest as quality

HOSTILE = 'EPYC <script>alert(1)</script> & "co" {{ 7 * 7 }}'
MODEL = "8B </script>"
MISSING = ["No record of <b>a GPU</b>: `dlm bench` makes one."]

# Milliseconds of forwards and their stages, by name.
STAGES = {EMBEDDING: 1.0, PROJECTIONS: 5.0, ATTENTION: 12.0}
STEP, FIRST = STEP_NAMES[DENOISE], Forward(DENOISE, 1, 32, 1024, "bfloat16")
DECODING = {Forward(DECODE, 1, 1, 1024, "bfloat16"): {STEP_NAMES[DECODE]: 16.0}}
ON_GPU = {FIRST: {STEP: 30.0}} | DECODING
ON_HOST = {
    FIRST: STAGES | {STEP: 20.0},
    replace(FIRST, batch=4): STAGES | {STEP: 40.0},
    replace(FIRST, context=4096): {STEP: 50.0},
} | DECODING


def bench_record(device: Device, took: dict[Forward, dict[str, float]], **more) -> BenchRecord:
    rows = [
        replace(timed(row, ms[row.name] / 1e3), model=MODEL)
        for forward, ms in took.items()
        for row in rows_of(forward, on_gpu=True)
        if row.name in ms
    ]
    held = {"device": device, "models": {MODEL: PRESETS["8b"]}, "rows": rows}
    return replace(record_of([]), **held, **more)


def quality_record(**more) -> QualityRecord:
    """Four examples of each task, answers of 9 tokens. AR gets all right in 8 forwards, threshold
    0.9 in 4, 0.5 half of them in 1.
    """

    def result(setting: Setting, share: float, forwards: int) -> Result:
        n = 4 * len(TASKS)
        done = [Decoded(i < share * n, 9, forwards, "AAAA") for i in range(n)]
        return Result.of(setting, done, 1.0)

    results = [
        result(AUTOREGRESSIVE, 1.0, 8),
        result(Setting("diffusion", threshold=0.9, block_length=32), 1.0, 4),
        result(Setting("diffusion", threshold=0.5, block_length=32), 0.5, 1),
    ]
    return quality.quality_record(results, 4, 4, list(TASKS), **more)


class Report(NamedTuple):
    """The page as a file, and what it was made from."""

    file: Path
    records: list[BenchRecord]
    quality: QualityRecord
    runs: list


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    for name in ("jinja2", "matplotlib", "pandas"):
        pytest.importorskip(name)
    from dlm_bench.report import player
    from dlm_bench.report.page import page

    host = bench_record(Device("cpu", HOSTILE, {"threads": "2"}), ON_HOST, complete=False)
    gpu = bench_record(Device("cuda", "NVIDIA H200", {}), ON_GPU)
    answers, runs = quality_record(), player.runs()
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page([host, gpu], answers, runs, MISSING), encoding="utf-8")
    return Report(file, [host, gpu], answers, runs)
