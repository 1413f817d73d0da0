"""A report of made-up records of round figures, which is written once for all tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from dlm_core import PRESETS
from dlm_core.tasks import TASKS
from dlm_roofline.ceilings import Ceiling, Ceilings
from dlm_roofline.forward import DECODE, DENOISE, STEP_NAMES, Forward
from dlm_roofline.records import BenchRecord, Device, Row, Skipped, Timing
from dlm_roofline.step_cost import ATTENTION, EMBEDDING, PROJECTIONS, step_cost, total

HOSTILE = 'EPYC <script>alert(1)</script> & "co" {{ 7 * 7 }}'
MISSING = ["No record of <b>a GPU</b>: `dlm bench` makes one."]
READ, PEAK = 4e12, 8e14  # of every device

# Milliseconds of denoising steps by batch and context, of their stages, and of an AR step.
STEPS = {(1, 1024): 20.0, (4, 1024): 40.0, (1, 4096): 50.0}
STAGES = {EMBEDDING: 1.0, PROJECTIONS: 5.0, ATTENTION: 12.0}
DECODING = 16.0

MADE = {"scope": "standard", "date": "2026-01-02T03:04:05Z", "commit": "0123456789abcdef",
        "dirty": False, "backend": "torch", "versions": {"torch": "2.11.0"}}  # fmt: skip


def bench_record(device: Device, steps: Mapping[tuple[int, int], float], **more) -> BenchRecord:
    """Denoising steps of the 8B model, their stages where the context is 1,024, and an AR step."""
    config, high, rows = PRESETS["8b"], Ceiling(READ, READ, 15), []

    def add(forward: Forward, ms: Mapping[str, float]) -> None:
        costs = step_cost(config, forward)
        costs[STEP_NAMES[forward.kind]] = total(costs)
        for name, took in ms.items():
            timing = Timing(*[took / 1e3] * 3, runs=9, cold=True, graph=False)
            rows.append(Row.of_model(name, "8B </script>", forward, costs[name], timing))

    for (batch, context), ms in steps.items():
        stages = STAGES if context == 1024 else {}
        add(Forward(DENOISE, batch, 32, context, "bfloat16"), stages | {"denoising step": ms})
    add(Forward(DECODE, 1, 1, 1024, "bfloat16"), {"AR decoding step": DECODING})
    ceilings = Ceilings(high, high, high, {"bfloat16": Ceiling(PEAK, PEAK, 15)})
    held = {"ceilings": ceilings, "models": {"8B </script>": config}, "rows": rows}
    skipped = [Skipped("block_attention, batch 64", "out of time")]
    return BenchRecord(**MADE, **held, **more, device=device, command="dlm bench", skipped=skipped)


def quality_record(**more):
    """Four examples of each task, answers of 9 tokens. AR gets all right in 8 forwards, threshold
    0.9 in 4, 0.5 half of them in 1.
    """
    from dlm_bench.quality.records import Checkpoint, Decoded, QualityRecord, Result, Sample
    from dlm_bench.quality.settings import AUTOREGRESSIVE, Setting

    def result(setting: Setting, share: float, forwards: int):
        n = 4 * len(TASKS)
        done = [Decoded(i < share * n, 9, forwards, "AAAA") for i in range(n)]
        return Result.of(setting, done, 1.0)

    results = [
        result(AUTOREGRESSIVE, 1.0, 8),
        result(Setting("diffusion", threshold=0.9, block_length=32), 1.0, 4),
        result(Setting("diffusion", threshold=0.5, block_length=32), 0.5, 1),
    ]
    made = MADE | {"complete": True, "device": Device("cpu", "EPYC", {})} | more
    model = Checkpoint("small_model", "01234567", "float32", 32, False)
    sample = Sample(seed=1, per_task=4, common=4, max_new_tokens=64, tasks=list(TASKS))
    held = {"model": model, "sample": sample, "code": "0", "results": results}
    return QualityRecord(**made, **held, command="dlm quality")


class Report(NamedTuple):
    """The page as a file, and what it was made from."""

    file: Path
    records: list[BenchRecord]
    quality: object
    runs: list


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    for name in ("jinja2", "matplotlib", "pandas"):
        pytest.importorskip(name)
    from dlm_bench.report import player
    from dlm_bench.report.page import page

    host = bench_record(Device("cpu", HOSTILE, {"threads": "2"}), STEPS)
    gpu = bench_record(Device("cuda", "NVIDIA H200", {}), {(1, 1024): 30.0}, complete=True)
    quality, runs = quality_record(), player.runs()
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page([host, gpu], quality, runs, MISSING), encoding="utf-8")
    return Report(file, [host, gpu], quality, runs)
