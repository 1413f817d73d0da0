"""A record comes back as it was written, or not at all; and which records are shown by default."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import MODEL

from dlm_roofline import records
from dlm_roofline.forward import DENOISE, DRAFT, LINEAR, STEP_NAMES, VERIFY
from dlm_roofline.records import (
    SCHEMA,
    BenchRecord,
    Device,
    Peer,
    bench_files,
    check_writable,
    default_records,
    read,
    save,
)
from dlm_roofline.step_cost import step_cost

OP = {"kind": "op", "name": "add", "model": None, "forward": None, "shape": {"rows": 3}}


def test_round_trip(record: BenchRecord, tmp_path: Path) -> None:
    assert record.file_name == "nvidia-h200-20260102t030405-0123456789.json"
    assert record.schema == SCHEMA
    path = tmp_path / "new" / "out" / record.file_name
    rows = [replace(record.rows[0], **OP, peak=5), *record.rows]
    rows[0].peers.append(Peer("plain torch", None, "too large"))
    written = replace(record, rows=rows)
    assert save(written, path) == path
    assert read(BenchRecord, path) == written
    assert os.listdir(path.parent) == [path.name]


# --- what is not a record

NEITHER = "peer 'plain torch' must have either a timing or a refused that says why"


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("schema", 4, "schema is 4; this version reads 5"),
        ("rows 3 timing runs", 1.5, "Expected `int`, got `float` - at `$.rows[3].timing.runs`"),
        ("rows 3 timing low", 0, "low 0.0 and high"),
        ("rows 3 timing median", 9, "median is 9.0, low"),
        ("rows 0 kind", "guess", "kind is 'guess'; it must be one of op, stage, step"),
        ("rows 0 bytes", 0, "bytes must be above 0, the others at least 0 - at `$.rows[0]`"),
        ("rows 0 flops", -1, "flops, bytes, exps are -1.0, "),
        ("rows 0 shape", {"rows": 1}, "stages have a model and a forward alone - at `$.rows[0]`"),
        ("rows 0 model", None, "of 'embedding and norms': stages have a model and a forward"),
        ("rows 5 forward", None, "of 'denoising step': steps have a model and a forward"),
        ("rows 0 kind", "op", "of 'embedding and norms': ops have a shape alone"),
        ("rows 2 model", "14B", f"rows[2].model is '14B'; models has {MODEL}"),
        ("rows 2 dtype", "fp4", "rows[2].dtype is 'fp4'; ceilings.matmul has bfloat16,"),
        ("rows 5 peers 0 timing", None, f"{NEITHER} - at `$.rows[5].peers[0]`"),
        ("rows 5 peers 0 refused", "no", NEITHER),
    ],
)
def test_a_field_that_is_not_as_it_must_be_is_named(
    record: BenchRecord, tmp_path: Path, place: str, value: object, message: str
) -> None:
    path = save(record, tmp_path / "mine.json")
    holder = values = json.loads(path.read_text())
    *outer, last = place.split()
    for key in outer:
        holder = holder[int(key) if key.isdigit() else key]
    holder[last] = value
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError) as raised:
        read(BenchRecord, path)
    said = str(raised.value)
    assert said.startswith(f"{path}: ") and message in said


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 5', '{"schema": NaN}', "[" * 100_000])
def test_what_is_no_record_is_refused_by_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: "):
        read(BenchRecord, path)
    with pytest.raises(ValueError, match="none.json: No such file"):
        read(BenchRecord, tmp_path / "none.json")


def test_what_no_json_can_hold_leaves_what_was_there(record: BenchRecord, tmp_path: Path) -> None:
    path = save(record, tmp_path / record.file_name)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(replace(record, rows=[replace(record.rows[0], flops=float("nan"))]), path)
    assert read(BenchRecord, path) == record


def test_a_folder_that_cannot_be_written_to_is_known_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/out cannot be written to: Not a directory"):
        check_writable(tmp_path / "file" / "out")


# --- which are shown by default


def test_the_newest_whole_standard_record_of_each_device(
    record: BenchRecord,
    host_record: BenchRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Of the committed ones and the user's own; hosts first, each kind by name."""
    committed, out = tmp_path / "committed", tmp_path / "out"
    monkeypatch.setattr(records, "RESULTS", committed)
    assert default_records(out) == []
    of_a100 = replace(record, device=replace(record.device, name="NVIDIA A100"))
    one_thread = replace(host_record, device=Device("cpu", "AMD EPYC", {"threads": "1"}))
    newest = replace(record, date="2026-02-01T00:00:00Z")
    given = [
        (committed, record), (out, newest), (committed, host_record), (out, one_thread),
        (committed, of_a100),
        (out, replace(record, date="2026-03-01T00:00:00Z", complete=False)),
        (out, replace(record, date="2026-04-01T00:00:00Z", scope="quick")),
        (committed, replace(of_a100, date="2026-05-01T00:00:00Z", scope="folder")),
    ]  # fmt: skip
    for folder, each in given:
        label = each.device.label.replace(" ", "")
        save(each, folder / f"{label}-{each.file_name}")
    (out / "quality.json").write_text("{}")
    assert len(bench_files(out)) == 4
    assert default_records(out) == [one_thread, host_record, of_a100, newest]
    assert capsys.readouterr().err == ""

    earlier = out / f"a-{record.file_name}"
    earlier.write_text('{"schema": 4}')
    assert default_records(out) == [one_thread, host_record, of_a100, newest]
    said = f"left out: {earlier}: schema is 4; this version reads 5\n"
    assert capsys.readouterr().err == said
    (committed / earlier.name).write_text('{"schema": 4}')
    with pytest.raises(ValueError, match="schema is 4"):  # which a committed one may not be
        default_records(out)


# --- what is read off a record


@pytest.mark.parametrize(
    "kind, details, label, memory",
    [
        ("cpu", {"threads": "1", "memory": "24 GiB"}, "name, 1 thread", 24 << 30),
        ("cpu", {"threads": "2", "memory": "15.5 GiB"}, "name, 2 threads", 31 << 29),
        ("cpu", {"memory": "64 GB"}, "name", None),
        ("cuda", {"threads": "2"}, "name", None),
    ],
)
def test_a_device(kind: str, details: dict, label: str, memory: int | None) -> None:
    device = Device(kind, "name", details)
    assert (device.label, device.memory) == (label, memory)


def test_a_row_of_a_step_and_of_an_op(record: BenchRecord) -> None:
    stage, step = record.rows[0], record.steps(STEP_NAMES[DENOISE])[0]
    assert (stage.kind, step.kind) == ("stage", "step")
    assert step.sizes == {"batch": 1, "block": 32, "context": 1024}
    op = replace(stage, **OP)
    assert op.sizes == {"rows": 3}
    refused = replace(step, peers=[*step.peers, Peer("sdpa", None, "no such shape")])
    assert refused.ratio("plain torch") == pytest.approx(2.0)
    assert refused.ratio("sdpa") is refused.ratio("none") is None


def test_stages_of_a_step_in_their_order(grid_record: BenchRecord) -> None:
    turned = replace(grid_record, rows=grid_record.rows[::-1])
    steps = [row for row in turned.steps() if row.forward.context == 1024]
    assert len(steps) == 5 * 7 and len(turned.steps(STEP_NAMES[DENOISE])) == 4 * 7
    for step in steps:
        names = [stage.name for stage in turned.stages_of(step)]
        assert names == list(step_cost(grid_record.models[step.model], step.forward))


def test_floors(record: BenchRecord) -> None:
    """Of a step the sum of its stages'; of a linear cycle those of both forwards."""
    step = record.steps()[0]
    floors = [record.floor(stage) for stage in record.stages_of(step)]
    assert record.floor(step) == pytest.approx(sum(floors))
    whole, *parts = (
        record.floor(replace(step, forward=replace(step.forward, kind=kind)))
        for kind in (LINEAR, DRAFT, VERIFY)
    )
    assert whole == pytest.approx(sum(parts))
    head = replace(record.rows[0], exps=3.7e12)
    assert record.floor(head) == pytest.approx(1.0)
