"""The whole of `dlm quality`, small: what it leaves behind, goes on with, and refuses."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("rich")
from dlm_bench.quality import grid, run
from dlm_bench.quality.evaluate import Outcome
from dlm_bench.quality.records import (
    SCHEMA,
    QualityRecord,
    checkpoint_hash,
    code_hash,
)
from dlm_bench.quality.tables import tables, write_csvs
from dlm_core import Generation
from dlm_core.cli import main
from dlm_roofline.records import read

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts in place of those of the standard library."""
    monkeypatch.setattr(run, "documents", lambda split: ["30 31 32 33 34 35 36", "8 10 12 14"])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every part measured in no time; returns the names of the settings that were evaluated."""
    asked = []

    def evaluate(model, tokenizer, examples, setting, *, max_new_tokens, on_done) -> list[Outcome]:
        asked.append(setting.name)
        generation = Generation([5, 2], {"prefill": 1, "decode": 1})
        return [Outcome(example, generation, "5", False) for example in examples]

    monkeypatch.setattr(run, "evaluate", evaluate)
    return asked


def test_a_quick_run_measures_a_setting_of_each_kind(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["quality", str(checkpoint), "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    said = json.loads(printed.splitlines()[-1])
    record = read(QualityRecord, said["record"], SCHEMA)
    assert record.complete and record.scope == "quick" and said["complete"]
    wanted = grid.quick(8, has_lora=True)
    assert [each.setting for each in record.results] == wanted.headline + wanted.rest
    assert {each.setting.mode for each in record.results} == {
        "autoregressive",
        "diffusion",
        "linear_spec",
        "quadratic_spec",
    }
    assert [len(each.right) for each in record.results] == [26] * 4 + [13] * len(wanted.rest)
    # Self-speculation gives AR's tokens, whatever they are worth.
    ar, *others = record.results
    for each in others:
        if each.setting.mode.endswith("spec"):
            assert each.digests == ar.digests[: len(each.digests)]
            assert each.cycles or each.setting.mode == "quadratic_spec"
    assert [each.what for each in record.skipped] == ["rule dream", "rule diffusion_gemma"]
    assert [(each.block_length, each.lora) for each in record.oracle_drafts] == [
        (8, False),
        (8, True),
    ]
    assert {(each.kind, each.over) for each in record.perplexities} == {
        (kind, over)
        for over in ("answers", "text")
        for kind in ("autoregressive", "bound", *(f"masked {r}" for r in (0.25, 0.5, 0.75, 1)))
    }
    assert said["headline"]["linear, LoRA"]["same_as_ar"] == 24
    for title in ("Settings", "Tasks", "Head room of diffusion", "Perplexities", "Not measured"):
        assert title in printed
    suffixes = sorted(path.suffix for path in tmp_path.iterdir())
    pictures = [".png", ".png", ".svg", ".svg"] if HAS_MATPLOTLIB else []
    assert suffixes == [".csv"] * 5 + [".json"] + pictures


def test_an_interrupted_run_is_partial_and_goes_on_where_it_stopped(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: list[str],
) -> None:
    arguments = [str(checkpoint), "--quick", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(run, "_report", lambda record, path, out: None)
    measured = run.evaluate

    def interrupted(*args, **options):
        if len(stand_in) == 2:
            raise KeyboardInterrupt
        return measured(*args, **options)

    monkeypatch.setattr(run, "evaluate", interrupted)
    assert run.main(arguments) == 130
    partial = read(QualityRecord, tmp_path / "quality-quick.json", SCHEMA)
    assert not partial.complete and len(partial.results) == 2

    stand_in.clear()
    monkeypatch.setattr(run, "evaluate", measured)
    monkeypatch.setattr(run.Run, "oracles", lambda *_: None)
    monkeypatch.setattr(run.Run, "perplexities", lambda *_: None)
    assert run.main(arguments) == 0
    assert "2 settings of this model and sample: going on" in capsys.readouterr().out
    wanted = grid.quick(8, has_lora=True)
    assert stand_in == [each.name for each in wanted.headline[2:] + wanted.rest]
    whole = read(QualityRecord, tmp_path / "quality-quick.json", SCHEMA)
    assert whole.complete and whole.results[:2] == partial.results

    # All is there: nothing is measured again.
    stand_in.clear()
    assert run.main(arguments) == 0
    assert stand_in == []


def test_another_model_s_record_is_kept_aside(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: list[str],
) -> None:
    for part in ("oracles", "perplexities"):
        monkeypatch.setattr(run.Run, part, lambda *_: None)
    monkeypatch.setattr(run, "_report", lambda record, path, out: None)
    out = tmp_path / "out"
    options = ["--quick", "--device", "cpu", "--out", str(out)]
    assert run.main([str(checkpoint), *options]) == 0
    first = read(QualityRecord, out / "quality-quick.json", SCHEMA)

    other = tmp_path / "other" / checkpoint.name
    shutil.copytree(checkpoint, other)
    adapter = other / "linear_spec_lora" / "adapter_config.json"
    adapter.write_text(adapter.read_text().replace("{", '{"note": 1,', 1))
    stand_in.clear()
    assert run.main([str(other), *options]) == 0
    assert "another model: kept as" in capsys.readouterr().out
    assert len(stand_in) == len(first.results)
    second = read(QualityRecord, out / "quality-quick.json", SCHEMA)
    assert second.model.hash != first.model.hash
    (kept,) = out.glob("quality-quick-*.json")
    assert read(QualityRecord, kept, SCHEMA) == first


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda record: {"code": "dd"}, "code"),
        (lambda record: {"sample": replace(record.sample, hash="dd")}, "sample"),
        (lambda record: {"model": replace(record.model, dtype="bfloat16")}, "model"),
        (lambda record: {"versions": {"torch": "2.14.0"}}, "versions"),
        (lambda record: {"device": replace(record.device, name="B")}, "device"),
        (lambda record: {"device": replace(record.device, details={})}, "number of threads"),
        (lambda record: {"scope": "quick"}, "scope"),
        (lambda record: {"max_new_tokens": 9}, "longest answer"),
    ],
)
def test_a_record_of_other_things_is_not_gone_on_with(
    made_up: Callable[..., QualityRecord], change: Callable, word: str
) -> None:
    record = made_up()
    assert record.differs_from(record) is None
    assert record.differs_from(replace(record, date="2027", commit="dd", dirty=True)) is None
    assert record.differs_from(replace(record, **change(record))) == word


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda values: values.update(schema=99), "schema is 99; this version reads 1"),
        (lambda values: values.pop("code"), "record.code is missing"),
        (lambda values: values.update(more=1), "record.more is not a known field"),
        (lambda values: values["results"][2].update(tokens=[1]), r"results\[2\]: tokens holds 1"),
        (lambda values: values["results"][0].update(seconds="1"), r"results\[0\].seconds is '1'"),
        (lambda values: values["results"][0]["right"].append(1), r"results\[0\].right\[120\] is 1"),
        (lambda values: values["sample"].update(per_task=20), "autoregressive has 120 examples"),
        (lambda values: values["sample"]["tasks"].append("more"), "threshold 0.5 has 30 examples"),
        (lambda values: values.update(scope="all"), "scope is 'all'"),
    ],
)
def test_a_wrong_record_is_an_error_that_names_file_and_field(
    made_up: Callable[..., QualityRecord],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    damage: Callable[[dict], object],
    words: str,
) -> None:
    values = json.loads(json.dumps(asdict(made_up())))
    damage(values)
    path = tmp_path / "quality.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words) as raised:
        read(QualityRecord, path, SCHEMA)
    assert str(path) in str(raised.value)
    assert run.main(["--draw", str(path), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dlm quality: ") and said.count("\n") == 1 and str(path) in said


def test_tables_and_csvs_from_a_record_alone(
    made_up: Callable[..., QualityRecord], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    record = made_up()
    found = {table.title: table for table in tables(record)}
    settings = found["Settings"]
    assert len(settings.rows) == len(record.results)
    assert all(len(row) == len(table.header) for table in found.values() for row in table.rows)
    written = write_csvs(record, tmp_path / "quality")
    lines = written[0].read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert f"# model: small {'aa' * 16}" in comments
    assert len(lines) - len(comments) == 1 + len(record.results)
    # A model that gets nothing right has tables too, and so has a record cut short at once.
    assert tables(made_up(rate=-1.0))
    assert tables(replace(record, results=[], complete=False))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/folder"], "no/such/folder/tokenizer.json is missing"),
        (["--out", "file/out"], "file/out cannot be written to: Not a directory"),
    ],
)
def test_errors_are_one_line_before_anything_is_measured(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "evaluate", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert run.main(["--device", "cpu", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_the_interpreter_is_never_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("DLM_BACKEND", "triton")
    assert run.main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "TRITON_INTERPRET is 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_hashes_tell_what_matters(checkpoint: Path, tmp_path: Path) -> None:
    assert code_hash() == code_hash()
    copy = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, copy)
    (copy / "README.md").write_text("a card")
    assert checkpoint_hash(copy) == checkpoint_hash(checkpoint)
    for name in ("config.json", "tokenizer.json", "linear_spec_lora/adapter_model.safetensors"):
        shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
        with (copy / name).open("ab") as file:
            file.write(b" ")
        assert checkpoint_hash(copy) != checkpoint_hash(checkpoint)


def test_the_standard_grid_is_bounded_by_what_it_counts() -> None:
    whole = grid.standard(32, has_lora=True)
    settings = whole.headline + whole.rest
    assert len(set(settings)) == len(settings)
    # Python functions apart, the headline sees at least 2,000 examples.
    assert 12 * whole.per_task >= 2000
    assert 12 * whole.rest_per_task >= 144
    assert len(whole.rest) < 60
    rules = {each.rule for each in settings if each.rule}
    assert rules == {"llada", "llada2", "fast_dllm", "sdar", "entropy_bound"}
    assert not any(each.lora for each in grid.standard(32, has_lora=False).rest)
