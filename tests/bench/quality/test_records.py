"""The record: what one example becomes, and that a damaged record is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlm_bench.quality.records import COMMITTED, Checkpoint, Decoded, QualityRecord
from dlm_bench.quality.settings import standard
from dlm_core import SMALL_MODEL, Generation, load_model
from dlm_roofline.records import Device, read, save

from .conftest import made_up, quality_record

pytest.importorskip("msgspec")


def test_an_example_is_counted_without_its_prefill() -> None:
    generation = Generation([5, 6, 2], {"prefill": 1, "draft": 2, "verify": 2})
    found = Decoded.of(generation, True)
    assert (found.right, found.tokens, found.forwards) == (True, 3, 4)
    assert str(found) == f"1:3:4:{found.digest}"
    other = Decoded.of(replace(generation, tokens=[5, 6, 3]), True)
    assert other.digest != found.digest and len(found.digest) == 4
    assert Decoded.of(Generation([5, 6, 2], {"prefill": 1}), False).digest == found.digest
    for each in (found, Decoded(False, 1, 0, "-_az")):
        assert Decoded.parse(str(each)) == each


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: r["results"][0].update(decoded="1:2:3:ab"), r"results\[0\].decoded holds 1 ex"),
        (lambda r: r["results"][1].update(decoded="1:2"), "'1:2' is not as right:tokens"),
        (lambda r: r["results"][1]["setting"].update(mode=3), r"\$.results\[1\].setting.mode"),
        (lambda r: r["oracles"][2]["forwards"].pop(), r"oracles\[2\].forwards holds 29 examples"),
    ],
)
def test_a_damaged_record_is_refused_by_the_name_of_its_field(
    tmp_path: Path, damage: Callable[[dict], object], words: str
) -> None:
    path = save(made_up(), tmp_path / "quality.json")
    assert read(QualityRecord, path) == made_up()
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words) as raised:
        read(QualityRecord, path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"date": "2027-01-01T00:00:00Z", "command": "other", "complete": False}, None),
        ({"code": "cc"}, "code"),
        ({"scope": "quick", "backend": "triton"}, "scope, backend"),
        ({"device": Device("cpu", "A Host", {"threads": "4"})}, "device"),
        ({"device": Device("cpu", "A Host", {"threads": "2", "clock": "3 GHz"})}, None),
    ],
)
def test_a_run_goes_on_only_with_what_is_of_it(change: dict, why: str | None) -> None:
    record = quality_record([], 1, 1, ["sort"])
    assert record.differs_from(replace(record, **change)) == why


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "linear_spec_lora/adapter_config.json"]
)
def test_every_file_of_a_checkpoint_counts(checkpoint: Path, tmp_path: Path, name: str) -> None:
    model, copy = load_model(checkpoint), tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    whole = Checkpoint.of(checkpoint, model)
    assert Checkpoint.of(copy, model) == whole
    (copy / name).write_text((copy / name).read_text() + " ")
    assert Checkpoint.of(copy, model).hash != whole.hash


def test_the_committed_record_is_whole_and_of_the_small_model() -> None:
    record = read(QualityRecord, COMMITTED)
    assert record.complete and record.scope == "standard" and not record.dirty
    assert record.model.hash == Checkpoint.of(SMALL_MODEL, load_model(SMALL_MODEL)).hash
    wanted = standard(record.model.block_size, record.model.has_draft_lora)
    turn = len(record.sample.tasks)
    assert {each.setting: len(each.examples) for each in record.results} == {
        setting: n * turn for setting, n in wanted.items()
    }
