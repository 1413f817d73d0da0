"""The whole bench, small: what it leaves behind, and how it ends when it cannot go on."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("rich")
from dlm_bench import run
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
        "remask_scatter",
        "block_attention",
    }
    for model in record.models:
        stages = [row.name for row in record.rows if row.model == model and row.kind == "stage"]
        assert stages == list(STAGES)
    assert "tiny-a" in record.models and len(record.models) == 2
    steps = [row for row in record.rows if row.name == DENOISING_STEP]
    assert closing["steps"][0]["ms"] == pytest.approx(1e3 * steps[-1].timing.median, abs=1e-3)
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
    assert len(record.rows) == 4 and closing["steps"] == []
    assert "cut short" in out.out


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
