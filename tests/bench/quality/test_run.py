"""The whole of `dlm quality`, small: what it leaves behind, goes on with, and refuses."""

import csv
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("rich")
import dlm_core
import dlm_kernels
from dlm_bench import quality
from dlm_bench.quality import grid, run
from dlm_bench.quality.evaluate import Outcome, Setting
from dlm_bench.quality.frontier import frontier, points
from dlm_bench.quality.oracle import Denoised, Drafted
from dlm_bench.quality.perplexity import Score
from dlm_bench.quality.records import (
    SCHEMA,
    QualityRecord,
    checkpoint_hash,
    code_hash,
)
from dlm_bench.quality.tables import tables, write_csvs
from dlm_core import Generation
from dlm_core.cli import main
from dlm_roofline.json_file import read

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts in place of those of the standard library."""
    monkeypatch.setattr(run, "documents", lambda split: ["30 31 32 33 34 35 36", "8 10 12 14"])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every part measured in no time; returns what was, settings as they are."""
    asked: list[object] = []

    def evaluate(model, tokenizer, examples, setting, *, parts=None, **_):
        # AR's answers for the oracle are not timed in parts.
        asked.append(setting if parts else "references")
        generation = Generation([5, 2], {"prefill": 1, "decode": 1})
        outcomes = [Outcome(example, generation, "5", False) for example in examples]
        return outcomes, [0.5 * len(part) for part in parts or [examples]]

    def denoise(model, references, block, on_done):
        asked.append(("denoise", block))
        return [Denoised(2, 1, 0, [1]) for _ in references]

    def draft(model, references, block, *, lora, on_done):
        asked.append(("draft", block, lora))
        return [Drafted([1], [1], [[True]]) for _ in references]

    def autoregressive(model, passages):
        asked.append(("autoregressive", len(passages)))
        return Score([1.0] * len(passages), [2] * len(passages))

    def diffusion(model, passages, block, *, seed, on_done):
        asked.append(("bound", len(passages), block))
        return {"bound": Score([1.0] * len(passages), [2] * len(passages))}

    monkeypatch.setattr(run, "evaluate", evaluate)
    for function in (denoise, draft):
        monkeypatch.setattr(run.oracle, function.__name__, function)
    for function in (autoregressive, diffusion):
        monkeypatch.setattr(run.perplexity, function.__name__, function)
    return asked


def test_a_quick_run_measures_a_setting_of_each_kind(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
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
    assert [each.what for each in record.skipped] == [
        "mode infill",
        "mode refine",
        "rule dream",
        "rule diffusion_gemma",
    ]
    # AR gives a token a forward behind the prefill's.
    assert ar.forwards == [n - 1 for n in ar.tokens]
    assert 0 < ar.seconds_of_rest < ar.seconds < record.seconds
    assert min(each.seconds for each in (*record.oracle_drafts, *record.perplexities)) > 0
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
    assert suffixes == [".csv"] * 6 + [".json"] + pictures
    assert said["seconds"] == round(record.seconds, 1)
    assert f"measured in {record.seconds:.1f} s: " in printed

    # All is there: nothing is measured again.
    monkeypatch.setattr(run, "_report", lambda record, path, out: None)
    for module, name in (
        (run, "evaluate"),
        (run.oracle, "denoise"),
        (run.oracle, "draft"),
        (run.perplexity, "autoregressive"),
        (run.perplexity, "diffusion"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("measured again"))
    assert main(arguments) == 0
    assert read(QualityRecord, said["record"], SCHEMA) == record


def test_an_interrupted_run_is_partial_and_goes_on_where_it_stopped(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: list[object],
) -> None:
    arguments = [str(checkpoint), "--quick", "--device", "cpu", "--out", str(tmp_path)]
    path = tmp_path / "quality-quick.json"
    monkeypatch.setattr(run, "_report", lambda record, path, out: None)
    save, saved = run.Run.save, []

    def save_and_interrupt(self) -> None:
        save(self)
        saved.append(1)
        if len(saved) == 2 and not self.record.complete:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "save", save_and_interrupt)
    codes, seconds, before = [], 0.0, None
    while not codes or codes[-1] == 130:
        del saved[:]
        codes.append(run.main(arguments))
        partial = read(QualityRecord, path, SCHEMA)
        assert partial.complete == (codes[-1] == 0)
        assert partial.seconds > seconds or codes[-1] == 0
        seconds = partial.seconds
        if before is not None:
            assert partial.results[: len(before.results)] == before.results
            assert partial.perplexities[: len(before.perplexities)] == before.perplexities
            assert partial.oracle_drafts[: len(before.oracle_drafts)] == before.oracle_drafts
        before = partial
    assert codes[-1] == 0 and len(codes) > 4
    assert "2 settings of this model and sample: going on" in capsys.readouterr().out
    wanted = grid.quick(8, has_lora=True)
    once = [each for each in stand_in if each != "references"]
    assert once == [
        *wanted.headline,
        ("denoise", 8),
        ("draft", 8, False),
        ("draft", 8, True),
        ("autoregressive", 13),
        ("bound", 13, 8),
        ("autoregressive", 2),
        ("bound", 2, 8),
        *wanted.rest,
    ]


def test_python_functions_warm_up_and_are_not_timed(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: list[object],
) -> None:
    seen = []
    evaluate = run.evaluate

    def noted(model, tokenizer, examples, setting, *, parts=None, **options):
        if parts:
            seen.append([[examples[i].task for i in part] for part in parts])
            assert sorted(sum(parts, [])) == list(range(len(examples)))
        return evaluate(model, tokenizer, examples, setting, parts=parts, **options)

    monkeypatch.setattr(run, "evaluate", noted)
    monkeypatch.setattr(run, "_report", lambda record, path, out: None)
    options = ["--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert run.main([str(checkpoint), *options]) == 0
    for python, rest, others in seen:
        assert set(python) == {"python"} and "python" not in rest + others
        assert len(rest) == 12 and len(others) in (0, 12)
    record = read(QualityRecord, tmp_path / "quality-quick.json", SCHEMA)
    assert {(each.seconds_of_rest, each.seconds) for each in record.results} == {
        (6.0, 12.0),
        (6.0, 6.0),
    }


def test_another_model_s_record_is_kept_aside(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: list[object],
) -> None:
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
    assert len([each for each in stand_in if isinstance(each, Setting)]) == len(first.results)
    second = read(QualityRecord, out / "quality-quick.json", SCHEMA)
    assert second.model.hash != first.model.hash
    (kept,) = out.glob("quality-quick-*.json")
    assert read(QualityRecord, kept, SCHEMA) == first


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda record: {"code": "dd"}, "code"),
        (lambda record: {"sample": replace(record.sample, hash="dd")}, "sample"),
        (lambda record: {"sample": replace(record.sample, rest_per_task=9)}, "sample"),
        (lambda record: {"sample": replace(record.sample, passages=9)}, "sample"),
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
    later = replace(record, date="2027", commit="dd", dirty=True, seconds=9.0)
    assert record.differs_from(later) is None
    assert record.differs_from(replace(record, **change(record))) == word


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda values: values.update(schema=99), "schema is 99; this version reads 2"),
        (lambda values: values.pop("code"), "record.code is missing"),
        (lambda values: values.update(more=1), "record.more is not a known field"),
        (lambda values: values["results"][2].update(tokens=[1]), r"results\[2\].tokens holds 1"),
        (lambda values: values["results"][0].update(seconds="1"), r"results\[0\].seconds is '1'"),
        (lambda values: values["results"][0]["right"].append(1), r"results\[0\].right\[120\] is 1"),
        (lambda values: values["sample"].update(per_task=20), "autoregressive has 120 examples"),
        (lambda values: values["sample"]["tasks"].append("more"), "threshold 0.5 has 30 examples"),
        (lambda values: values["sample"].update(rest_per_task=41), "rest_per_task is 41"),
        (lambda values: values["oracle_diffusion"][0]["forced"].pop(), "forced holds 29 entries"),
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
    titled = {table.title: table for table in tables(record)}
    settings = titled["Settings"]
    assert len(settings.rows) == len(record.results)
    assert all(len(row) == len(table.header) for table in titled.values() for row in table.rows)
    written = write_csvs(record, tmp_path / "quality")
    lines = written[0].read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert f"# model: small {'aa' * 16}" in comments
    assert len(lines) - len(comments) == 1 + len(record.results)
    exact = ("sort", "add")
    for line, result in zip(_rows(written[0]), record.results, strict=True):
        index = [i for i in range(len(result.right)) if ("sort", "add", "python")[i % 3] in exact]
        assert int(line["tokens"]) == sum(result.tokens[i] for i in index)
        assert int(line["tokens_counted"]) == int(line["tokens"]) - (
            len(index) if result.setting.seeded else 0
        )
        ratio = int(line["tokens_counted"]) / int(line["forwards"])
        assert float(line["tpf"]) == pytest.approx(ratio, rel=1e-5)
        assert float(line["seconds"]) == result.seconds
    shown = points(record)
    for line, point in zip(_rows(tmp_path / "quality-frontier.csv"), shown, strict=True):
        found = (float(line["tpf"]), float(line["right"]), float(line["ms_an_example"]))
        assert found == pytest.approx((point.x, point.y, point.ms), rel=1e-5)
        assert line["on_frontier"] == str(point in frontier(shown))
    head_room = titled["Head room of diffusion"]
    # A block each; every second example has one forced step of two.
    assert [row[0] for row in head_room.rows] == ["8", "16", "32"]
    assert {(row[1], row[4], row[5]) for row in head_room.rows} == {("20", "3.50", "25.0%")}
    assert all(row[6].startswith("diffusion, ") for row in head_room.rows)
    assert ["450 masked"] == [row[3] for row in titled["Perplexities"].rows[2:]]
    # A model that gets nothing right has tables too, and so has a record cut short at once.
    assert tables(made_up(rate=-1.0))
    assert tables(replace(record, results=[], complete=False))


def _rows(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


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


def test_the_checkpoint_s_hash_tells_what_matters(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, copy)
    (copy / "README.md").write_text("a card")
    assert checkpoint_hash(copy) == checkpoint_hash(checkpoint)
    for name in ("config.json", "tokenizer.json", "linear_spec_lora/adapter_model.safetensors"):
        shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
        with (copy / name).open("ab") as file:
            file.write(b" ")
        assert checkpoint_hash(copy) != checkpoint_hash(checkpoint)


def test_the_code_s_hash_tells_what_matters(tmp_path: Path) -> None:
    roots = {}
    for package in (dlm_core, dlm_kernels, quality):
        folder = Path(package.__file__).parent
        roots[folder.name] = tmp_path / folder.name
        ignored = shutil.ignore_patterns("small_model", "__pycache__")
        shutil.copytree(folder, roots[folder.name], ignore=ignored)

    def hashed() -> str:
        return code_hash(roots["dlm_core"], roots["dlm_kernels"], roots["quality"])

    def hash_with_a_byte_more(name: str) -> str:
        file = tmp_path / name
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        try:
            return hashed()
        finally:
            file.write_bytes(before)

    assert hashed() == code_hash()
    decide = (
        "dlm_core/model.py",
        "dlm_core/decoding/diffusion.py",
        "dlm_core/tasks/sorting.py",
        "dlm_core/training/text.py",
        "dlm_kernels/rules.py",
        "dlm_kernels/confidence.py",
        *(f"quality/{name}.py" for name in ("evaluate", "grid", "run", "oracle", "perplexity")),
        *(f"quality/{name}.py" for name in ("contexts", "scores", "statistics", "records")),
    )
    assert len({hashed(), *map(hash_with_a_byte_more, decide)}) == 1 + len(decide)
    show = ("dlm_core/cli.py", "dlm_core/training/fit.py", "quality/tables.py", "quality/style.py")
    assert {hash_with_a_byte_more(name) for name in show} == {hashed()}


def test_a_record_of_another_schema_is_left_alone(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "evaluate", lambda *_, **__: pytest.fail("measured"))
    path = tmp_path / "quality-quick.json"
    path.write_text('{"schema": 1}')
    assert run.main([str(checkpoint), "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: schema is 1; this version reads {SCHEMA}; move it away, or give" in said
    assert path.read_text() == '{"schema": 1}'


def test_the_standard_grid_is_the_product_of_its_constants() -> None:
    whole = grid.standard(32, has_lora=True)
    settings = whole.headline + whole.rest
    assert grid.BLOCKS == whole.blocks == (8, 16, 32)
    assert grid.THRESHOLDS == (0.5, 0.7, 0.8, 0.9, 0.95)
    rules = ("llada", "llada2", "fast_dllm", "sdar", "entropy_bound")
    ways = [{"threshold": threshold} for threshold in grid.THRESHOLDS]
    ways += [{"rule": rule} for rule in rules]
    expected = {
        Setting("autoregressive"),
        *(Setting("diffusion", block_length=b, **way) for b in (8, 16, 32) for way in ways),
        *(Setting("diffusion", steps=s, block_length=8) for s in (1, 2, 4)),
        *(Setting("diffusion", steps=s, block_length=16) for s in (1, 2, 4, 8)),
        *(Setting("diffusion", steps=s, block_length=32) for s in (1, 2, 4, 8, 16)),
        *(Setting("linear_spec", block_length=b, lora=x) for b in (8, 16, 32) for x in (0, 1)),
        *(Setting("quadratic_spec", block_length=k) for k in (4, 8, 16)),
    }
    assert set(settings) == expected and len(settings) == len(expected)
    # Python functions apart, the headline sees at least 2,000 examples.
    assert 12 * whole.per_task >= 2000
    assert 12 * whole.rest_per_task >= 144
    assert not any(each.lora for each in grid.standard(32, has_lora=False).rest)
