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
from dlm_bench import cases, machine, run
from dlm_roofline import ceilings
from dlm_roofline.records import load
from dlm_roofline.step_cost import DENOISING_STEP, STAGES


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's bench runs plain torch, also where the other tests interpret Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("DLM_BACKEND", raising=False)


@pytest.fixture
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings in no time; as they're off by much, nothing is skipped for what they predict."""
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setitem(ceilings.MATMUL_SIZE, "cpu", 256)
    monkeypatch.setattr(run, "LONGEST_FLOOR", math.inf)


def test_quick_run_leaves_a_whole_record(tmp_path: Path, capsys, small_ceilings: None) -> None:
    assert run.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    closing = json.loads(printed.splitlines()[-1])
    record = load(closing["record"])
    assert record.complete and closing["complete"]
    assert record.backend == "torch" and record.device.kind == "cpu"
    assert {row.name for row in record.rows if row.kind == "op"} == {
        "confidence",
        "confidence, all statistics",
        "lm_head_confidence",
        "remask_scatter",
        "block_attention",
    }
    for model in record.models:
        stages = [row.name for row in record.rows if row.model == model and row.kind == "stage"]
        assert stages == list(STAGES)
    assert "tiny-a" in record.models and len(record.models) == 2
    steps = [row for row in record.rows if row.name == DENOISING_STEP]
    assert closing["steps"][0]["ms"] == pytest.approx(1e3 * steps[-1].timing.median, abs=1e-3)
    # What invariance costs stands beside each step.
    assert all("ours, fast numerics" in [peer.name for peer in row.peers] for row in steps)
    # Every peer either ran, after its result was found to be ours, or says why not.
    reasons = [peer.refused for row in record.rows for peer in row.peers if peer.refused]
    assert not any("differs" in reason for reason in reasons), reasons
    assert "% of roof" in printed and "floor ms," in printed
    if importlib.util.find_spec("matplotlib"):
        files = sorted(path.suffix for path in tmp_path.iterdir())
        assert files == [".csv", ".csv", ".json", ".png", ".png", ".svg", ".svg"]
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

    case, step, made = cases.remask_case, run.Bench._step, []

    def step_unless_golden(bench: run.Bench, name: str, *rest: object) -> None:
        made.append(name)
        if name == "tiny-a":
            raise RuntimeError("an error word is set")
        step(bench, name, *rest)

    broken = fail(torch.OutOfMemoryError, "out of memory in a build")
    monkeypatch.setattr(cases, "remask_case", lambda *args: replace(case(*args), build=broken))
    monkeypatch.setattr(run.StepBench, "peer", fail(torch.OutOfMemoryError, "no room for a peer"))
    monkeypatch.setattr(run.Bench, "_step", step_unless_golden)
    models = run._models
    too_large = ("8B", fail(torch.OutOfMemoryError, "no room for weights"))
    monkeypatch.setattr(run, "_models", lambda *a: [[too_large, *each] for each in models(*a)])

    assert run.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = load(closing["record"])
    assert record.complete and record.scope == "quick"
    assert [(each.what.split()[0], each.why) for each in record.skipped] == [
        ("remask_scatter", "out of memory in a build"),
        ("steps", "no room for weights"),
        ("step", "an error word is set"),
        ("steps", "no room for weights"),
    ]
    assert made == ["tiny-a", "tiny, random weights"]
    assert {row.name for row in record.rows if row.kind == "op"} >= {
        "confidence",
        "block_attention",
    }
    (step_row,) = (row for row in record.rows if row.name == DENOISING_STEP)
    assert step_row.peers[0].refused == "no room for a peer"
    assert closing["steps"][0]["ratio_to_plain_torch"] is None


def test_a_checkpoint_larger_than_free_memory_is_refused(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(run, "free_memory", lambda _: 100_000)
    assert run.main([str(run.GOLDEN), "--device", "cpu", "--out", str(tmp_path)]) == 1
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
    warning = run.busy_host(torch.device("cpu"))
    assert (warning is not None and "the load is 1.1 on 2 cores" in warning) == warned
    assert run.busy_host(torch.device("cuda")) is None
