"""The acceptance profile that a quality record holds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlm_bench.quality import readme
from dlm_bench.quality.profile import profile, write_profile
from dlm_bench.quality.records import SCHEMA, QualityRecord
from dlm_roofline.acceptance import load_profile
from dlm_roofline.json_file import read

ROOT = Path(__file__).parents[3]


def test_what_is_committed_is_what_the_record_gives(tmp_path: Path) -> None:
    record = read(QualityRecord, ROOT / readme.RECORD, SCHEMA)
    (written,) = write_profile(record, tmp_path)
    committed = (ROOT / readme.RECORD).with_name(written.name)
    assert written.read_text() == committed.read_text()
    assert load_profile(committed) == profile(record)


def test_every_setting_stands_for_the_examples_that_all_saw(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    settings = {(s.mode, s.size, s.threshold): s for s in profile(record).settings}
    thresholds = [("diffusion", b, t) for b in (8, 16, 32) for t in (0.5, 0.7, 0.8, 0.9, 0.95)]
    drafts = [("linear_spec", block, None) for block in (8, 16, 32)]
    drafts += [("quadratic_spec", k, None) for k in (4, 8, 16)]
    assert set(settings) == {("autoregressive", 1, None), *thresholds, *drafts}
    for result in record.results:
        theirs = result.setting
        if theirs.mode == "linear_spec" and not theirs.lora or theirs.rule or theirs.steps:
            continue
        ours = settings[theirs.mode, theirs.block_length or 1, theirs.threshold]
        index = [i for i in range(30) if i % 3 < 2]  # without Python functions
        tokens = sum(result.tokens[i] - 1 for i in index)
        forwards = sum(result.forwards[i] for i in index)
        assert ours.tokens_per_forward == pytest.approx(tokens / forwards, abs=1e-4)
        assert ours.accuracy == pytest.approx(sum(result.right[i] for i in index) / 20, abs=1e-4)
    assert "20 held-out examples" in profile(record).source


def test_drafts_are_without_a_lora_where_the_model_has_none(
    made_up: Callable[..., QualityRecord],
) -> None:
    record = made_up()
    bare = replace(record, model=replace(record.model, has_draft_lora=False))
    plain = [each for each in record.results if each.setting.lora is False]
    found = [each.tokens_per_forward for each in profile(bare).of_mode("linear_spec")]
    assert len(found) == len(plain) == 3
    assert found != [each.tokens_per_forward for each in profile(record).of_mode("linear_spec")]


def test_a_quick_run_and_an_empty_record_leave_none(
    made_up: Callable[..., QualityRecord], tmp_path: Path
) -> None:
    assert write_profile(replace(made_up(), scope="quick"), tmp_path) == []
    assert write_profile(replace(made_up(), results=[]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert "cut short" in profile(made_up(complete=False)).source
