"""The whole bench, small: what it leaves behind, and how it ends when it cannot go on."""

import importlib.util
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("rich")
from rich.progress import Progress

from dlm_bench import cases, machine, op_rates, run, subjects
from dlm_bench.plan import Planned
from dlm_bench.subjects import Source, Subject
from dlm_core import PRESETS, random_model
from dlm_roofline import ceilings
from dlm_roofline.forward import DECODE, DENOISE, KINDS, QUADRATIC, STEP_NAMES, VERIFY, Forward
from dlm_roofline.model_check import model_check
from dlm_roofline.op_rates import OpRate
from dlm_roofline.records import Record, load
from dlm_roofline.step_cost import step_cost, total


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's bench runs plain torch, also where the other tests interpret Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("DLM_BACKEND", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings and rates of our ops in no time; as they're off by much, nothing is skipped for what
    they predict.
    """
    small = op_rates.Sizes(64, (4, 2, 16), 4, 64, 1, 70, 256, 8, 64)
    monkeypatch.setitem(op_rates.SIZES, "cpu", small)
    monkeypatch.setattr(run, "RATE_BUDGET", 1e-3)
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setitem(ceilings.MATMUL_SIZE, "cpu", 256)
    monkeypatch.setattr(run, "LONGEST_FLOOR", math.inf)


def test_the_record_says_what_measures_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--patience", "600", "--out", str(tmp_path), "--device", "cpu", "models/8b"]
    assert run._command(run._arguments(options)) == (
        "OMP_NUM_THREADS=1 dlm bench 8b --device cpu --patience 600"
    )


def test_a_quick_run_waits_for_nobody_unless_told_to() -> None:
    given = [["--quick"], [], ["--patience", "7"], ["--quick", "--patience", "7"]]
    found = [run._patience(run._arguments(options)) for options in given]
    assert found == [0.0, run.PATIENCE, 7.0, 7.0]


@pytest.mark.parametrize("given", ["-1", "inf", "nan"])
def test_patience_that_is_no_time_is_an_error(given: str, capsys) -> None:
    with pytest.raises(SystemExit):
        run.main([f"--patience={given}"])
    words = f"argument --patience: {given}; it must be a number of seconds from 0 on"
    assert words in capsys.readouterr().err


def test_quick_run_leaves_a_whole_record(tmp_path: Path, capsys, small_ceilings: None) -> None:
    assert run.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    closing = json.loads(printed.splitlines()[-1])
    record = load(closing["record"])
    assert record.complete and closing["complete"]
    assert record.backend == "torch" and record.device.kind == "cpu"
    assert record.command == "dlm bench --quick --device cpu"  # and no word of where it went
    assert {"linear", "linear int4", "block_attention"} <= record.ceilings.ops.keys()
    error, check = closing["model_error"], model_check(record)
    assert error["median"] == pytest.approx(check.median, abs=1e-3)
    assert error["worst"] == pytest.approx(check.worst, abs=1e-3)
    assert error["worst"] > error["median"] and error["holds"] is check.holds
    assert {row.name for row in record.rows if row.kind == "op"} == {
        "confidence",
        "confidence, all statistics",
        "lm_head_confidence",
        "remask_scatter",
        "block_attention",
    }
    assert list(record.models) == ["tiny-a", "tiny, random weights"]
    # Every kind of forward, with its stages and their costs.
    found = [row for row in record.rows if row.kind == "step" and row.model != "tiny-a"]
    assert [row.forward.kind for row in found] == list(dict.fromkeys((DENOISE, *KINDS)))
    for row in found:
        costs = step_cost(record.models[row.model], row.forward)
        assert row.cost == total(costs)
        assert {each.name: each.cost for each in record.stages_of(row)} == costs
    steps = [row for row in record.rows if row.name == STEP_NAMES[DENOISE]]
    assert closing["steps"][0]["ms"] == pytest.approx(1e3 * steps[-1].timing.median, abs=1e-3)
    assert closing["steps"][0]["batch"] == 1 and closing["steps"][0]["ratio_to_plain_torch"] > 0
    # What invariance costs stands beside each step.
    assert all("ours, fast numerics" in [peer.name for peer in row.peers] for row in steps)
    # Every peer either ran, after its result was found to be ours, or says why not.
    reasons = [peer.refused for row in record.rows for peer in row.peers if peer.refused]
    assert not any("differs" in reason for reason in reasons), reasons
    assert "% of roof" in printed and "floor ms," in printed
    if importlib.util.find_spec("matplotlib"):
        files = sorted(path.suffix for path in tmp_path.iterdir())
        assert len(files) > 1 and set(files) == {".csv", ".json", ".png", ".svg"}
    else:
        assert "no pictures" in printed


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, small_ceilings: None
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Bench, "steps", interrupt)
    assert run.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 130
    out = capsys.readouterr()
    closing = json.loads(out.out.splitlines()[-1])
    record = load(closing["record"])
    assert not record.complete and not closing["complete"]
    assert len(record.rows) == 5 and closing["steps"] == []
    assert "cut short" in out.out


def test_what_fails_is_skipped_with_its_reason_and_the_rest_goes_on(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, small_ceilings: None
) -> None:
    """An op's case, a step's peer, a model that another stands in for, and a whole step."""

    def fail(kind: type[Exception], words: str) -> Callable[..., object]:
        def failing(*_: object, **__: object) -> object:
            raise kind(words)

        return failing

    case, forward, made = cases.remask_case, run.Bench._forward, []

    def unless_golden(bench: run.Bench, source: Source, planned: Planned) -> None:
        made.append(source.name)
        if source.name == "tiny-a":
            raise RuntimeError("an error word is set")
        forward(bench, source, planned)

    broken = fail(torch.OutOfMemoryError, "out of memory in a build")
    monkeypatch.setattr(cases, "remask_case", lambda *args: replace(case(*args), build=broken))
    monkeypatch.setattr(run.StepBench, "peer", fail(torch.OutOfMemoryError, "no room for a peer"))
    monkeypatch.setattr(run.Bench, "_forward", unless_golden)
    found = run.subjects_of
    no_room = fail(torch.OutOfMemoryError, "no room for weights")
    too_large = Source("8B", PRESETS["8b"], no_room)

    def with_too_large(*args: object, **options: object) -> list[Subject]:
        return [replace(s, candidates=[too_large, *s.candidates]) for s in found(*args, **options)]

    monkeypatch.setattr(run, "subjects_of", with_too_large)
    monkeypatch.setattr(run, "SLOWER", 0.0)

    assert run.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = load(closing["record"])
    assert record.complete and record.scope == "quick"
    reasons = [each.why for each in record.skipped]
    assert reasons[:2] == ["out of memory in a build", "no room for weights"]
    assert reasons[-1] == "no room for weights"
    assert set(reasons[2:-1]) == {"an error word is set"}
    assert record.skipped[0].what.startswith("remask_scatter")
    assert record.skipped[2].what == "tiny-a: denoising step, batch 1, block 8, context 512"
    assert list(dict.fromkeys(made)) == ["tiny-a", "tiny, random weights"]
    assert {row.name for row in record.rows if row.kind == "op"} >= {
        "confidence",
        "block_attention",
    }
    (step_row,) = (row for row in record.rows if row.name == STEP_NAMES[DENOISE])
    assert step_row.peers[0].refused == "no room for a peer"
    assert closing["steps"][0]["ratio_to_plain_torch"] is None


@pytest.fixture
def bench(tmp_path: Path, record: Record) -> run.Bench:
    """Of a host without ops, with a fresh record under the fixture's ceilings."""
    on_host = replace(record.ceilings, graph_node=None)
    on_host = replace(on_host, matmul={"float32": on_host.matmul["bfloat16"]})
    host = replace(record.device, kind="cpu", name="a host")
    record = replace(record, device=host, ceilings=on_host, rows=[], skipped=[])
    device, progress = torch.device("cpu"), Progress(disable=True)
    made = run.Bench(record, tmp_path, device, [], quick=True, patience=0.0, progress=progress)
    made.stopwatch.budget = 0.0
    return made


def subject(*planned: Planned) -> Subject:
    source = Source("tiny", PRESETS["tiny"], lambda weights: random_model("tiny", weights=weights))
    return Subject([source], torch.float32, lambda *_: list(planned), 0.0)


DECODING = Planned(Forward(DECODE, 1, 1, 8, "float32"))


def test_rows_come_in_the_order_of_the_plan(bench: run.Bench) -> None:
    verify = Planned(Forward(VERIFY, 2, 8, 8, "float32"), stages=True)
    few_bits = Planned(Forward(DECODE, 1, 1, 8, "float32", weights="int8"))
    bench.steps(subject(verify, few_bits, DECODING))
    rows = bench.record.rows
    assert [row.forward for row in rows] == [verify.forward] * 5 + [
        few_bits.forward,
        DECODING.forward,
    ]
    assert [row.kind for row in rows] == ["stage"] * 4 + ["step"] * 3
    assert bench.record.skipped == []


def test_what_there_is_no_memory_for_is_not_begun(bench: run.Bench, monkeypatch) -> None:
    monkeypatch.setattr(run, "free_memory", lambda _: 5_000_000)
    large = Planned(Forward(DECODE, 64, 1, 4000, "float32"), stages=True)
    bench.steps(subject(large, DECODING))
    (skipped,) = bench.record.skipped
    assert skipped.what == "tiny: AR decoding step, batch 64, block 1, context 4000"
    assert re.fullmatch(r"needs about 0\.\d GB, 0\.0 are free", skipped.why)
    assert [row.forward for row in bench.record.rows] == [DECODING.forward]
    assert bench._row == 5 + 1  # what is skipped counts as gone through


def test_what_would_take_longer_than_is_left_is_not_begun(bench: run.Bench, monkeypatch) -> None:
    # Of a device so slow that a quadratic forward takes minutes at the very least.
    slow = replace(bench.record.ceilings.matmul["float32"], best=1e6, median=1e6)
    ceilings = replace(bench.record.ceilings, matmul={"float32": slow})
    bench.record = replace(bench.record, ceilings=ceilings)
    monkeypatch.setitem(run.ALL_UNTIL, "cpu", 1000)
    quadratic = Planned(Forward(QUADRATIC, 1, 20, 8, "float32"), stages=True)
    bench.steps(subject(DECODING, quadratic))
    (skipped,) = bench.record.skipped
    assert "quadratic" in skipped.what
    assert re.match(r"out of time: takes about \d+\.\d s, and 9\d\d\.\d s are left", skipped.why)
    # What one of a kind took is what the next one is expected to take.
    floor = bench.record.floor(bench.record.rows[0])
    bench._slower["tiny", DECODE] = 1000 / floor
    assert bench._reason_to_skip_forward(Source("tiny", PRESETS["tiny"], None), DECODING)


def test_a_forward_that_this_device_refuses_is_skipped(bench: run.Bench) -> None:
    beyond = Planned(Forward(DECODE, 1, 1, 4096, "float32"))
    bench.steps(subject(beyond, DECODING))
    (skipped,) = bench.record.skipped
    assert "capacity is 4097" in skipped.why and len(bench.record.rows) == 1


def test_a_float8_cache_is_not_begun_where_triton_does_not_read_it(
    bench: run.Bench, monkeypatch
) -> None:
    monkeypatch.setattr(run, "reads_float8", lambda _: False)
    float8 = Planned(replace(DECODING.forward, float8_cache=True))
    bench.steps(subject(float8, DECODING))
    (skipped,) = bench.record.skipped
    assert "8.9" in skipped.why and len(bench.record.rows) == 1


def test_a_mistake_within_a_forward_is_not_taken_for_a_refusal(
    bench: run.Bench, monkeypatch
) -> None:
    def mistaken(*_: object) -> None:
        raise ValueError("k_cache has 3 heads")

    monkeypatch.setattr(run.StepBench, "step", mistaken)
    with pytest.raises(ValueError, match="k_cache has 3 heads"):
        bench.steps(subject(DECODING))
    assert bench.record.skipped == []


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError])
def test_a_rate_that_failed_is_not_tried_again(
    bench: run.Bench, monkeypatch, error: type[Exception]
) -> None:
    tries = []

    def fail() -> OpRate:
        tries.append("linear")
        raise error("they must differ")

    def rate() -> OpRate:
        tries.append("lookup")
        return OpRate(1e-3, None, None)

    monkeypatch.setattr(run, "op_rates", lambda *_: {"linear": fail, "lookup": rate})
    bench.rates()
    bench.rates()
    assert tries == ["linear", "lookup", "lookup"]
    (skipped,) = bench.record.skipped
    assert (skipped.what, skipped.why) == ("rate of linear", "they must differ")
    assert bench.record.ceilings.ops["lookup"].overhead == 1e-3


@pytest.mark.parametrize(("scope", "model"), [("folder", "tiny-a"), ("standard", "8B")])
def test_the_closing_line_is_of_the_folder_s_model_or_the_last(
    forwards: Record, scope: str, model: str
) -> None:
    """tiny-a came before 8B, with the same forwards."""
    before = [replace(row, model="tiny-a") for row in forwards.rows if row.model == "8B"]
    models, rows = {"tiny-a": forwards.models["8B"], **forwards.models}, before + forwards.rows
    record = replace(forwards, scope=scope, models=models, rows=rows)
    closing = run._closing(record, Path("record.json"))
    assert closing["steps"] and {step["model"] for step in closing["steps"]} == {model}


def test_an_interrupt_within_a_forward_keeps_its_stages(bench: run.Bench, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.StepBench, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.steps(subject(replace(DECODING, stages=True)))
    assert [row.kind for row in bench.record.rows] == ["stage"] * 4


def test_progress_counts_rows(bench: run.Bench, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(bench, "_rows", 6)
    monkeypatch.setattr(bench._progress, "update", lambda _, description: shown.append(description))
    bench.steps(subject(DECODING, Planned(Forward(VERIFY, 1, 4, 8, "float32"), stages=True)))
    rows = [words.split(":")[0] for words in shown if "making" not in words]
    assert rows == [f"row {n} of 6" for n in range(1, 7)]


def test_a_checkpoint_larger_than_free_memory_is_refused(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(subjects, "free_memory", lambda _: 100_000)
    assert run.main([str(subjects.GOLDEN), "--device", "cpu", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert re.search(r"tiny-a holds .* GB of weights in torch.float32; .* the 0.0 GB", said)


@pytest.mark.parametrize(
    ("compilers", "include", "words"),
    [
        (None, None, "no C compiler: CC is not set"),
        ("/usr/bin/cc", "no/such", "no/such/Python.h is missing"),
        ("/usr/bin/cc", None, "no kernel image"),
    ],
)
def test_a_triton_that_cannot_run_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilers, include, words: str
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no kernel image\nand more")

    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(machine, "partial_sums", fail)
    monkeypatch.setattr(machine.shutil, "which", lambda _: compilers)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda _: include or str(tmp_path))
    with pytest.raises(OSError, match=words) as raised:
        machine.check_triton(torch.device("cpu"))
    assert "\n" not in str(raised.value)


def test_nvidia_smi_is_asked_for_this_process_s_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(*command: str) -> str:
        asked.append(command)
        return "1755 MHz, 1980 MHz, 3201 MHz, 580.1, 700.00 W, 41"

    monkeypatch.setattr(machine, "_output_of", answer)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="5c2a-01")
    )
    assert machine.clocks(torch.device("cuda", 0))["SM clock"] == "1755 MHz"
    assert asked[0][:2] == ("nvidia-smi", "--id=GPU-5c2a-01")
    assert machine.clocks(torch.device("cpu")) == {}


@pytest.mark.gpu
def test_the_gpus_clocks_are_its_own() -> None:
    device = torch.device("cuda", 0)
    machine.check_triton(device)
    assert machine.clocks(device).keys() >= {"SM clock", "driver"}


def test_the_interpreter_is_never_timed(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run.main(["--quick", "--out", str(tmp_path)]) == 1
    assert "TRITON_INTERPRET is 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(run, "measure_ceilings", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert run.main(["--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot be written to: Not a directory" in capsys.readouterr().err


def test_a_bad_checkpoint_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(run, "measure_ceilings", lambda *_, **__: pytest.fail("measured"))
    empty = tmp_path / "checkpoint"
    empty.mkdir()
    assert run.main([str(empty), "--out", str(tmp_path / "out")]) == 1
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(("load", "warned"), [(0.9, False), (1.1, True)])
def test_a_busy_host_is_said_before_anything_is_measured(
    load: float, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(run.os, "cpu_count", lambda: 2)
    for threads in (1, 2):
        monkeypatch.setattr(run.torch, "get_num_threads", lambda threads=threads: threads)
        warning = run.busy_host(torch.device("cpu"))
        assert (warning is not None and "the load is 1.1 on 2 cores" in warning) == warned
        assert (warning is not None and "set OMP_NUM_THREADS=1" in warning) == (
            warned and threads == 2
        )
    assert run.busy_host(torch.device("cuda")) is None
