"""The whole bench, small: what it leaves, and how it ends when it cannot go on."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_up import record_of
from rich.progress import Progress

from dlm_bench import calibrate, cases, machine, run, timing
from dlm_bench.models import Planned, Subject
from dlm_core import PRESETS, random_model
from dlm_roofline import ceilings
from dlm_roofline.forward import DECODE, DENOISE, KINDS, LINEAR, STEP_NAMES, VERIFY, Forward
from dlm_roofline.records import BenchRecord, read
from dlm_roofline.step_cost import step_cost, step_launches, total

pytest.importorskip("msgspec")
pytest.importorskip("matplotlib")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch on the host, also where other tests interpret Triton; ceilings in no time."""
    for name in ("TRITON_INTERPRET", "DLM_BACKEND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setitem(ceilings.MATMUL_SIZE, "cpu", 256)
    monkeypatch.setitem(timing.FLUSH_BYTES, "cpu", 4096)
    monkeypatch.setattr(run, "op_cases", partial(cases.op_cases, config=PRESETS["tiny"]))


def test_quick_run_leaves_a_whole_record(tmp_path: Path, capsys) -> None:
    assert run.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    closing = json.loads(printed.splitlines()[-1])
    record = read(BenchRecord, closing["record"])
    assert record.complete and closing["complete"] and record.scope == "quick"
    assert record.skipped == []
    assert record.backend == "torch" and record.device.kind == "cpu"
    assert record.command == "dlm bench --quick --device cpu"  # and no word of where it went
    assert {row.name for row in record.rows if row.kind == "op"} == {
        "confidence",
        "confidence, all statistics",
        "lm_head_confidence",
        "remask_scatter",
        "block_attention",
        "block_attention, float8 cache",
    }
    assert list(record.models) == ["tiny-a", "tiny, random weights"]
    # Every kind of forward, with its stages and their costs.
    found = [row for row in record.steps() if row.model != "tiny-a"]
    assert {row.forward.kind for row in found} == set(KINDS)
    for row in found:
        costs = step_cost(record.models[row.model], row.forward)
        assert row.cost == total(costs)
        staged = {} if row.forward.kind == LINEAR else costs
        assert {each.name: each.cost for each in record.stages_of(row)} == staged
    step = closing["steps"][0]
    assert step["kind"] == DENOISE and step["ratio_to_plain_torch"] > 0
    (measured,) = [
        row
        for row in record.steps(STEP_NAMES[DENOISE])
        if row.model == step["model"] and row.forward.batch == step["batch"]
    ]
    assert step["ms"] == pytest.approx(1e3 * measured.timing.median, abs=1e-3)
    # What invariance costs stands beside each step, and every peer that ran gave our result.
    names = [[peer.name for peer in row.peers] for row in record.steps(STEP_NAMES[DENOISE])]
    assert all("ours, fast numerics" in each for each in names)
    reasons = [peer.refused for row in record.rows for peer in row.peers if peer.refused]
    assert not any("differs" in reason for reason in reasons), reasons
    assert "% of roof" in printed
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json", ".png", ".svg"}


def failing(kind: type[Exception], words: str = "") -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise kind(words)

    return fail


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(run.Bench, "steps", failing(KeyboardInterrupt))
    assert run.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    record = read(BenchRecord, json.loads(printed.out.splitlines()[-1])["record"])
    assert not record.complete and len(record.rows) == 6
    assert "cut short" in printed.out and "what was measured so far is kept" in printed.err


@pytest.fixture
def bench(tmp_path: Path) -> run.Bench:
    """Of a host, with a fresh record."""
    fresh = replace(record_of([], on_gpu=False), models={}, skipped=[])
    return run.Bench(fresh, tmp_path / "record.json", CPU, Progress(disable=True))


def subject(*planned: Planned) -> Subject:
    def make(weights: str | None):
        return random_model("tiny", weights=weights)

    return Subject("tiny", PRESETS["tiny"], make, list(planned), budget=0.0)


DECODING = Planned(Forward(DECODE, 1, 1, 8, "float32"))


def test_what_fails_is_left_out_with_its_reason_and_the_rest_goes_on(
    bench: run.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An op's case, a peer whose result differs, a forward, and a forward's peer."""
    case = replace(cases.remask_case(1, torch.float32), tolerance=-1.0)
    broken = replace(case, build=failing(torch.OutOfMemoryError, "no room in a build\nand more"))
    monkeypatch.setattr(run, "op_cases", lambda *_, **__: [broken, case])
    monkeypatch.setattr(run.StepBench, "peer", failing(torch.OutOfMemoryError, "no room"))
    bench.ops(quick=True)
    beyond = Planned(Forward(DECODE, 1, 1, 4096, "float32"))
    bench.steps(subject(beyond, replace(DECODING, peers=True)))
    assert [each.what for each in bench.record.skipped] == [
        "remask_scatter batch 1, block 32",
        "tiny: AR decoding step, batch 1, block 1, context 4096",
    ]
    op, forward = bench.record.skipped
    assert op.why == "no room in a build" and "capacity is 4097" in forward.why
    assert [row.name for row in bench.record.rows] == ["remask_scatter", STEP_NAMES[DECODE]]
    (scatter,), (fast, plain) = (row.peers for row in bench.record.rows)
    assert scatter.refused == "its result differs from ours by 0.0e+00"
    assert plain.refused == "no room" and fast.timing
    (step,) = run.closing_line(bench.record, bench.path)["steps"]
    assert step["ratio_to_plain_torch"] is None


def test_rows_come_in_the_order_of_the_plan(bench: run.Bench) -> None:
    verify = Planned(Forward(VERIFY, 2, 8, 8, "float32"), stages=True)
    int8 = Planned(Forward(DECODE, 1, 1, 8, "float32", weights="int8"))
    bench.steps(subject(verify, int8, DECODING))
    rows = bench.record.rows
    forwards = [verify.forward] * 5 + [int8.forward, DECODING.forward]
    assert [row.forward for row in rows] == forwards
    assert [row.kind for row in rows] == ["stage"] * 4 + ["step"] * 3
    assert read(BenchRecord, bench.path).rows == rows


def test_what_there_is_no_memory_for_is_not_begun(bench: run.Bench, monkeypatch) -> None:
    monkeypatch.setattr(run, "free_memory", lambda _: 700_000_000)
    large = Planned(Forward(DECODE, 64, 1, 4000, "float32"), stages=True)
    bench.steps(subject(large, DECODING))
    (skipped,) = bench.record.skipped
    assert skipped.why == "needs about 0.8 GB, 0.7 are free"
    assert [row.forward for row in bench.record.rows] == [DECODING.forward]


def test_nothing_is_begun_after_its_time(bench: run.Bench, monkeypatch) -> None:
    monkeypatch.setitem(run.ALL_UNTIL, "cpu", -1)
    bench.steps(subject(DECODING))
    (skipped,) = bench.record.skipped
    assert skipped.why == "out of time" and bench.record.rows == []


def test_an_interrupt_within_a_forward_keeps_its_stages(bench: run.Bench, monkeypatch) -> None:
    monkeypatch.setattr(run.StepBench, "step", failing(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.steps(subject(replace(DECODING, stages=True)))
    assert [row.kind for row in bench.record.rows] == ["stage"] * 4


def test_a_lost_device_ends_the_run_with_what_it_was_doing(bench: run.Bench, monkeypatch) -> None:
    lost = failing(RuntimeError, "an illegal memory access")
    monkeypatch.setattr(bench, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(run.DeviceLost, match="the device is lost: an illegal memory access"):
        bench._attempt("a row", lost)


def test_every_op_has_a_rate_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are those of a forward's launches; each call runs, here on shapes made small."""
    small = replace(calibrate.CONFIG, head_dim=16, vocab_size=256, block_size=4)
    sizes = {"FEATURES": 64, "BATCH": 2, "CONTEXT": 16, "CONFIG": small}
    for name, size in (sizes | {"STREAMING_ROWS": 2, "MULTIPLYING_ROWS": 8}).items():
        monkeypatch.setattr(calibrate, name, size)
    timer = timing.Timer(CPU, budget=0.0)
    calls = calibrate.calls_of_ops(CPU, torch.float32)
    assert all(calibrate.measured_rate(timer, each, 0.0).bandwidth > 0 for each in calls.values())
    kinds = (None, *calibrate.WEIGHTS)
    forwards = [Forward(DENOISE, 1, 32, 1024, "bfloat16", weights) for weights in kinds]
    stages = [stage for each in forwards for stage in step_launches(PRESETS["8b"], each).values()]
    assert calls.keys() == {launches.op for stage in stages for launches in stage} - {"lookup"}


def test_a_triton_that_cannot_run_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "partial_sums", failing(RuntimeError, "no kernel image\nand more"))
    with pytest.raises(OSError, match=r"needs a C compiler .*Python\.h: no kernel image$"):
        machine.check_triton(CPU)


def test_nvidia_smi_is_asked_for_this_process_s_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = [], "1755 MHz, 1980 MHz, 3201 MHz, 580.1, 700.00 W, 41"
    monkeypatch.setattr(machine, "_output_of", lambda *command: asked.append(command) or answer)
    properties = SimpleNamespace(uuid="5c2a-01")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert machine.clocks(torch.device("cuda", 0))["SM clock"] == "1755 MHz"
    assert asked[0][:2] == ("nvidia-smi", "--id=GPU-5c2a-01")
    assert machine.clocks(CPU) == {}


@pytest.mark.gpu
def test_the_gpus_clocks_are_its_own() -> None:
    device = torch.device("cuda", 0)
    machine.check_triton(device)
    assert machine.clocks(device).keys() >= {"SM clock", "driver"}


@pytest.mark.parametrize(
    ("options", "interpret", "words"),
    [
        ([], "1", "TRITON_INTERPRET is 1"),
        (["--device", "cuda"], "0", "--device is cuda, and torch sees no CUDA device"),
        (["--device", "cpu", "--out", "file/out"], "0", "cannot be written to: Not a directory"),
        (["--device", "cpu", "no/such/folder"], "0", "config.json"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_measured(
    options: list[str], interpret: str, words: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(run, "measure_ceilings", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert run.main(options) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tune", "--quick"], "argument --tune: not allowed with FOLDER or --quick"),
        (["--budget", "9"], "argument --budget: needs --tune"),
        (["--tune", "--budget", "nan"], "a number of seconds above 0"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit):
        run.main(options)
    assert words in capsys.readouterr().err


def test_a_host_is_busy_from_half_its_cores_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(run.os, "getloadavg", lambda: (0.9, 0, 0))
    assert run.busy_host(CPU) is None
    monkeypatch.setattr(run.os, "getloadavg", lambda: (1.1, 0, 0))
    assert "the load is 1.1 on 2 cores" in run.busy_host(CPU)
    assert run.busy_host(torch.device("cuda")) is None
