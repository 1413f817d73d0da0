"""The whole of `dlm quality`, small: what it leaves behind, goes on with, and refuses."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("msgspec")
from dlm_bench.quality import run
from dlm_bench.quality.records import QualityRecord
from dlm_bench.quality.settings import AUTOREGRESSIVE, BLOCKS, WAYS, Setting, quick
from dlm_core.cli import main
from dlm_roofline.records import read, save

from .conftest import made_up


@pytest.fixture(autouse=True)
def without_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user runs it, whatever kernels run in when they are tested."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> list[Setting]:
    """Settings in place of --quick's, which still have a part of every kind."""
    speculation = Setting("linear_spec", block_length=8, lora=True)
    grid = {AUTOREGRESSIVE: 2, speculation: 1, Setting("autoregressive", float8_cache=True): 1}
    monkeypatch.setattr(run.settings, "quick", lambda block_size, has_lora: grid)
    monkeypatch.setattr(run, "WAYS", WAYS[3:])
    monkeypatch.setattr(run, "BLOCKS", (8,))
    return list(grid)


def arguments(checkpoint: Path, out: Path) -> list[str]:
    return [str(checkpoint), "--quick", "--device", "cpu", "--out", str(out)]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.full
def test_a_quick_run_measures_a_setting_of_each_kind(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["quality", *arguments(checkpoint, tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = read(QualityRecord, said["record"])
    assert record.complete and record.scope == "quick" and said["complete"]
    assert {each.setting: len(each.examples) / 13 for each in record.results} == quick(8, True)
    ar = record.results[0].examples
    assert all(each.forwards == each.tokens - 1 for each in ar)
    for result in record.results:
        assert result.seconds > 0
        if result.setting.mode.endswith("spec") and result.setting.way == (None, False):
            pairs = list(zip(result.examples, ar, strict=False))
            assert all(ours.digest == theirs.digest for ours, theirs in pairs)
    assert [each.block_length for each in record.oracles] == list(BLOCKS)
    assert [each.way for each in record.closeness] == list(WAYS)


def test_a_run_killed_after_any_part_goes_on_to_the_same_record(
    checkpoint: Path, tmp_path: Path, small_grid: list[Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_report", lambda record, path, out: None)
    keep, whole, killed = run.Run._keep, tmp_path / "whole", tmp_path / "killed"
    assert run.main(arguments(checkpoint, whole)) == 0
    for done in range(1, 6):
        with monkeypatch.context() as patch:
            patch.setattr(run.Run, "_keep", lambda *part: (keep(*part), interrupt()))
            assert run.main(arguments(checkpoint, killed)) == 130
        partial = read(QualityRecord, killed / "quality-quick.json")
        parts = (partial.results, partial.closeness, partial.oracles)
        assert sum(map(len, parts)) == done and not partial.complete
    # All is there: nothing is measured again.
    monkeypatch.setattr(run.Run, "_keep", lambda *part: pytest.fail("measured again"))
    assert run.main(arguments(checkpoint, killed)) == 0
    ours, theirs = (read(QualityRecord, out / "quality-quick.json") for out in (killed, whole))
    assert ours.complete and [each.setting for each in ours.results] == small_grid
    assert [each.decoded for each in ours.results] == [each.decoded for each in theirs.results]
    assert (ours.closeness, ours.oracles) == (theirs.closeness, theirs.oracles)
    assert ours.differs_from(theirs) is None


def test_an_interrupted_run_shows_what_it_has(
    checkpoint: Path, tmp_path: Path, small_grid: list[Setting], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run, "closeness", interrupt)
    assert main(["quality", *arguments(checkpoint, tmp_path)]) == 130
    printed = capsys.readouterr()
    assert "what was measured so far is kept" in printed.err
    assert "INCOMPLETE" in printed.out and "linear_spec, block 8, LoRA" in printed.out


@pytest.mark.parametrize(
    ("field", "why"), [("code", "code"), ("schema", "schema is 2; this version reads 5")]
)
def test_what_is_of_another_run_is_kept_aside(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture, field: str, why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(run.Run, "measure", lambda self: None)
    monkeypatch.setattr(run, "_report", lambda record, path, out: None)
    assert run.main(arguments(checkpoint, tmp_path)) == 0
    path = tmp_path / "quality-quick.json"
    before = json.dumps(json.loads(path.read_text()) | {field: 2 if field == "schema" else "2"})
    path.write_text(before)
    assert run.main(arguments(checkpoint, tmp_path)) == 0
    assert f"{why}): kept as" in capsys.readouterr().out
    (kept,) = tmp_path.glob("quality-quick-*.json")
    assert kept.read_text() == before != path.read_text()


@pytest.mark.parametrize("has_pandas", [True, False])
def test_a_record_is_drawn_without_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, has_pandas: bool
) -> None:
    pytest.importorskip("matplotlib")
    record = save(made_up(complete=False), tmp_path / "a.json")
    monkeypatch.setattr(run, "load_model", lambda *_, **__: pytest.fail("loaded"))
    if not has_pandas:
        monkeypatch.setitem(sys.modules, "pandas", None)
        for name in ("charts", "tables"):
            monkeypatch.delitem(sys.modules, f"dlm_bench.quality.{name}", raising=False)
            monkeypatch.delattr(f"dlm_bench.quality.{name}", raising=False)
    assert run.main(["--draw", str(record), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == {"record": str(record), "complete": False}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    charts = {f"a-frontier.{x}" for x in ("png", "svg", "csv")}
    assert names == (charts | {"acceptance.json", "a-tasks.csv"} if has_pandas else set())
    assert (f"`dlm quality --draw {record}` elsewhere" in printed) != has_pandas


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["no/such/folder"], "no/such/folder/tokenizer.json is missing"),
        (["--draw", "no/such.json"], "no/such.json: No such file"),
        (["--out", "{file}/out"], "cannot be written to"),
        (["--device", "cuda"], "--device is cuda, and torch sees no CUDA device"),
    ],
)
def test_errors_are_one_line_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    given: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "out")]
    assert run.main([*out, *(each.format(file=tmp_path / "file") for each in given)]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
