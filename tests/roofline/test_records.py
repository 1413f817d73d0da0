"""A record comes back as it was written, or not at all."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlm_roofline.ceilings import Ceiling
from dlm_roofline.records import Peer, Record, Timing, check_writable, load, save


def test_round_trip(record: Record, tmp_path: Path) -> None:
    path = save(record, tmp_path / "new" / "out")
    assert path.name == "nvidia-h200-20260102t030405-0123456789.json"
    assert load(path) == record
    assert os.listdir(path.parent) == [path.name]


def _without(*keys: Any) -> Callable[[dict], None]:
    def damage(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        del values[keys[-1]]

    return damage


def _with(value: Any, *keys: Any) -> Callable[[dict], None]:
    def damage(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("schema"), "schema is None"),
        (_with(1, "schema"), "schema is 1"),
        (_with("some", "scope"), "record: scope is 'some'"),
        (_without("ceilings", "read"), "record.ceilings.read is missing"),
        (_without("rows", 3, "timing", "low"), r"record.rows\[3\].timing.low is missing"),
        (_with(float("nan"), "rows", 0, "flops"), r"record.rows\[0\].flops is nan"),
        (_with(float("inf"), "ceilings", "copy", "best"), "record.ceilings.copy.best is inf"),
        (_with("1", "rows", 0, "shape", "batch"), r"record.rows\[0\].shape.batch is '1'"),
        (_with(1.5, "rows", 0, "timing", "runs"), r"record.rows\[0\].timing.runs is 1.5"),
        (_with(1, "complete"), "record.complete is 1"),
        (_with(True, "ceilings", "read", "runs"), "record.ceilings.read.runs is True"),
        (_with({}, "rows"), "record.rows is {}"),
        (_with(0, "extra"), "record.extra is not a known field"),
        (_with("another", "rows", 0, "model"), "model 'another', which models does not"),
        (_with("float64", "rows", 0, "dtype"), "dtype 'float64', which ceilings.matmul does not"),
        (_with("guess", "rows", 0, "kind"), r"record.rows\[0\]: kind is 'guess'"),
        (_with(-1.0, "rows", 0, "timing", "low"), r"record.rows\[0\].timing: quartiles"),
        (_with(None, "rows", 5, "peers", 0, "timing"), r"needs a timing or a reason"),
        (_with(-1, "models", "8B, random weights", "vocab_size"), "vocab_size is -1"),
    ],
)
def test_a_damaged_record_is_refused_by_file_and_field(
    record: Record, tmp_path: Path, damage: Callable[[dict], None], message: str
) -> None:
    path = save(record, tmp_path)
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as raised:
        load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"schema": 1', "\x00"])
def test_what_is_no_record_is_refused_by_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="record.json"):
        load(path)


def test_a_truncated_record_is_refused(record: Record, tmp_path: Path) -> None:
    path = save(record, tmp_path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="is not JSON"):
        load(path)


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.json: No such file"):
        load(tmp_path / "none.json")


def test_a_full_disk_leaves_the_earlier_record(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(replace(record, complete=False), tmp_path)

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="not written: No space left on device") as raised:
        save(record, tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert not load(path).complete
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_made(record: Record, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "out"
    for attempt in (lambda: save(record, folder), lambda: check_writable(folder)):
        with pytest.raises(OSError, match="file.out.*: Not a directory"):
            attempt()


def test_an_older_record_without_exponentials_loads(record: Record, tmp_path: Path) -> None:
    path = save(record, tmp_path)
    values = json.loads(path.read_text())
    del values["ceilings"]["exps"]
    for row in values["rows"]:
        del row["exps"]
    path.write_text(json.dumps(values))
    assert load(path) == record
    assert load(path).roof("bfloat16").exps is None


def test_a_measured_rate_of_exponentials_bounds_rows(record: Record, tmp_path: Path) -> None:
    ceilings = replace(record.ceilings, exps=Ceiling(5e12, 4e12, 15))
    row = replace(record.rows[0], kind="op", model=None, exps=5e12)
    saved = load(save(replace(record, ceilings=ceilings, rows=[row]), tmp_path))
    assert saved.floor(saved.rows[0]) == pytest.approx(1.0)
    assert record.floor(row) < 0.1


def test_floor_of_a_step_is_the_sum_over_its_stages(record: Record) -> None:
    step = next(row for row in record.rows if row.kind == "step")
    stages = [row for row in record.rows if row.kind == "stage" and row.shape == step.shape]
    assert record.floor(step) == pytest.approx(sum(record.floor(stage) for stage in stages))


def test_quartiles_and_peers_hold_together() -> None:
    with pytest.raises(ValueError, match="quartiles are 2.0, 1.0, 3.0"):
        Timing(1.0, 2.0, 3.0, runs=3, cold=True, graph=False)
    with pytest.raises(ValueError, match="'eager' needs a timing or a reason"):
        Peer("eager", None, None)
