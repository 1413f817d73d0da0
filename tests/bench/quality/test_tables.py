"""Tables and CSV: what they say is what the record holds."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("msgspec")
import pandas as pd

from dlm_bench.quality import tables
from dlm_bench.quality.profile import write_profile
from dlm_bench.quality.records import COMMITTED, QualityRecord, Result
from dlm_bench.quality.scores import score, wilson
from dlm_bench.quality.settings import Setting
from dlm_roofline.acceptance import SCHEMA, Profile
from dlm_roofline.records import read

from .conftest import TASKS, made_up


@pytest.mark.parametrize(("rate", "held"), [(0.99, "holds"), (0.8, "missed")])
def test_targets_are_held_to_what_the_record_holds(rate: float, held: str) -> None:
    record = made_up(rate)
    ar, diffusion, linear = record.results[:3]
    examples = [linear.examples[0]._replace(digest="ZZZZ"), *linear.examples[1:]]
    record.results[2] = Result.of(linear.setting, examples, 1.0)
    pairs = list(zip(ar.examples, diffusion.examples, strict=True))
    lost = [[d.right - a.right for a, d in pairs[i::3]] for i in range(2)]  # of sort, of add
    table = tables.targets(record)
    first, second, third, _, fifth, _ = table.cells
    value, low, high = wilson(sum(a.right for i, (a, _) in enumerate(pairs) if i % 3 < 2), 80)
    assert first[1:] == ["at least 90%", f"{value:.1%} [{low:.1%}, {high:.1%}]", held]
    assert second[2].startswith(f"{100 * sum(map(sum, lost)) / 80:+.1f} [")
    assert third[2:] == ["119 of 120, Python functions too", "missed"]
    assert fifth[2:] == ["120 of 120, Python functions too", "holds"]
    assert "80 held-out examples of 2 tasks" in table.notes[0]
    assert f"sort ({100 * sum(lost[0]) / 40:+.1f})" in table.notes[0]


@pytest.mark.parametrize("change", [{"results": []}, {"scope": "folder"}])
def test_no_targets_of_nothing_and_of_another_model(change: dict) -> None:
    assert tables.targets(replace(made_up(), **change)).frame.empty


def test_ways_to_quantise_stand_beside_none_on_the_same_examples() -> None:
    record = made_up()
    table = tables.quantised(record)
    plain, *others = table.cells
    names = ["weights, cache", "bits a weight", "logits off by", "KL", "same token"]
    names += ["`autoregressive`", "`diffusion`", "`linear_spec`", "AR's tokens"]
    assert list(table.frame) == names
    assert plain[:5] == ["float32", "32.0", "-", "-", "-"]
    assert [row[0] for row in others] == ["fp8", "int8", "int4", "float32, float8 cache"]
    for row in others:
        near = ["0.020, 0.31 / 0.030, 0.40", "1.5e-03 / 2.5e-03", "98.75% / 90.00%"]
        assert row[1:5] == ["8.2", *near]
    # Ten of each task, as the quantised ones have, whatever the plain ones have beyond.
    first = [each.right for i, each in enumerate(record.results[0].examples[:30]) if i % 3 < 2]
    assert plain[5].startswith(f"{sum(first) / 20:.1%} [")
    assert {row[-1] for row in table.cells} == {"30 of 30"}
    assert "on 80 rows" in table.notes[0] and "share of 20 held-out" in table.notes[0]


def test_a_way_that_is_not_whole_is_left_out() -> None:
    record = made_up()
    kept = [each for each in record.results if each.setting.weights != "int8"]
    half = [each for each in record.results if each.setting.weights == "int8"][:2]
    rows = tables.quantised(replace(record, results=kept + half)).cells
    assert [row[0] for row in rows] == ["float32", "fp8", "int4", "float32, float8 cache"]
    assert tables.quantised(replace(record, closeness=[])).frame.empty


def test_settings_are_listed_in_the_order_of_the_run() -> None:
    record = made_up()
    rows = tables.settings(record).cells
    assert [row[0] for row in rows] == [each.setting.name for each in record.results]
    # 0.75 s over ten examples of each of two tasks.
    assert [rows[0][i] for i in (1, 3, 4, 6)] == ["80", "+0.0 [+0.0, +0.0]", "80", "37.5"]
    assert tables.tables(replace(record, results=[])) == []


def test_the_csv_has_every_setting_in_every_group(tmp_path: Path) -> None:
    record = made_up(complete=False)
    text = tables.write_tasks(record, tmp_path / "quality").read_text()
    assert "# run: standard, INCOMPLETE: cut short\n" in text and "# threads: 2\n" in text
    frame = pd.read_csv(StringIO(text), comment="#")
    assert len(frame) == len(record.results) * (len(TASKS) + 3)
    row = frame[(frame.tasks == "add") & (frame.threshold == 0.5) & (frame.block_length == 8)]
    of_add = record.result(Setting("diffusion", threshold=0.5, block_length=8)).examples[1::3]
    assert row.right.item() == pytest.approx(sum(each.right for each in of_add) / 10)
    tpf = sum(each.tokens - 1 for each in of_add) / sum(each.forwards for each in of_add)
    assert row.tpf.item() == pytest.approx(tpf, abs=1e-4)


@pytest.mark.parametrize("has_lora", [True, False])
def test_the_profile_holds_what_predictions_start_from(tmp_path: Path, has_lora: bool) -> None:
    record = made_up()
    record = replace(record, model=replace(record.model, has_draft_lora=has_lora))
    (path,) = write_profile(record, tmp_path)
    found = {(s.mode, s.size, s.threshold): s for s in read(Profile, path, schema=SCHEMA).settings}
    thresholds = [("diffusion", b, t) for b in (8, 16, 32) for t in (0.5, 0.7, 0.8, 0.9, 0.95)]
    drafts = [("linear_spec", block, None) for block in (8, 16, 32)]
    drafts += [("quadratic_spec", k, None) for k in (4, 8, 16)]
    assert set(found) == {("autoregressive", 1, None), *thresholds, *drafts}
    linear = Setting("linear_spec", block_length=8, lora=has_lora)
    gives = score(record, record.result(linear), ["sort", "add"], n=30)
    kept = found["linear_spec", 8, None]
    assert kept.tokens_per_forward == pytest.approx(gives["tpf"], abs=1e-4)
    assert kept.accuracy == pytest.approx(gives["right"], abs=1e-4)


def test_a_quick_or_an_empty_record_leaves_no_profile(tmp_path: Path) -> None:
    for change in ({"scope": "quick"}, {"results": []}):
        assert write_profile(replace(made_up(), **change), tmp_path) == []
    (path,) = write_profile(made_up(complete=False), tmp_path)
    assert "cut short: exact matches over 20 held-out examples" in path.read_text()


def test_what_is_committed_holds_every_target_and_is_of_one_record(tmp_path: Path) -> None:
    record = read(QualityRecord, COMMITTED)
    assert [row[-1] for row in tables.targets(record).cells] == ["holds"] * 6
    written = [*write_profile(record, tmp_path), tables.write_tasks(record, tmp_path / "quality")]
    for path in written:
        assert path.read_text() == COMMITTED.with_name(path.name).read_text()
