"""A record comes back as it was written, or not at all."""

import copy
import errno
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dlm_roofline.ceilings import Ceiling
from dlm_roofline.records import (
    SCHEMA,
    Device,
    Record,
    check_writable,
    load,
    memory_of,
    newest_of_each_device,
    record_files,
    save,
)


def test_files_of_records_are_known_by_their_names(record: Record, tmp_path: Path) -> None:
    path = save(record, tmp_path)
    for name in ("quality.json", "speed-of-light-nvidia-h200-0123456789-01234567.json"):
        (tmp_path / name).write_text("{}")
    assert record_files(tmp_path) == [path]
    assert record_files(tmp_path / "none") == []


def test_the_newest_whole_record_of_each_device(record: Record) -> None:
    """Hosts first, then GPUs by name."""
    named = replace(record, device=replace(record.device, name="NVIDIA A100"))
    of_host = replace(record.ceilings, exps=None, l2=None, graph_node=None)
    rows = [replace(row, peers=[], timing=replace(row.timing, graph=False)) for row in record.rows]
    host = replace(record, device=Device("cpu", "some host", {}), ceilings=of_host, rows=rows)
    given = {
        "newest": replace(record, date="2026-02-01T00:00:00Z"),
        "old": record,
        "cut short": replace(record, date="2026-03-01T00:00:00Z", complete=False),
        "quick": replace(record, date="2026-04-01T00:00:00Z", scope="quick"),
        "folder": replace(record, date="2026-05-01T00:00:00Z", scope="folder"),
        "other": named,
        "host": host,
        "on 2": replace(host, device=Device("cpu", "some host", {"threads": "2"})),
    }
    found = newest_of_each_device([(Path(name), each) for name, each in given.items()])
    assert [str(path) for path, _ in found] == ["host", "on 2", "other", "newest"]
    assert all(record is given[str(path)] for path, record in found)


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


def _again(row: int, **changes: Any) -> Callable[[dict], None]:
    """A row once more, at the end."""

    def damage(values: Any) -> None:
        values["rows"].append(copy.deepcopy(values["rows"][row]) | changes)

    return damage


def _op(**changes: Any) -> Callable[[dict], None]:
    """The first row as one of an op."""

    def damage(values: Any) -> None:
        op = {"kind": "op", "name": "add", "model": None, "forward": None, "shape": {"rows": 3}}
        values["rows"][0] |= op | changes

    return damage


def _one_more_op(**changes: Any) -> Callable[[dict], None]:
    """A row of an op, at the end."""

    def damage(values: Any) -> None:
        _again(0)(values)
        op = {"kind": "op", "name": "add", "model": None, "forward": None, "shape": {"rows": 3}}
        values["rows"][-1] |= op | changes

    return damage


def _on_a_host(values: Any) -> None:
    """The record as a host could have made it."""
    values["device"] = {"kind": "cpu", "name": "AMD EPYC", "details": {}}
    values["ceilings"] |= {"exps": None, "l2": None, "graph_node": None}
    values["ceilings"]["triad"] = values["ceilings"]["read"]
    for row in values["rows"]:
        for timing in (row["timing"], *(peer["timing"] for peer in row["peers"])):
            timing["graph"] = False


def _host(damage: Callable[[dict], None]) -> Callable[[dict], None]:
    return lambda values: (_on_a_host(values), damage(values))


MODEL = "8B, random weights"
RATE = {"best": 2e12, "median": 1e12, "runs": 5}
LATENCY = {"best": 1e-6, "median": 2e-6, "runs": 5}

# What the error says behind the file's name and a colon, from its beginning.
DAMAGES = {
    # Not there, or not what it should be
    "no schema": (_without("schema"), "schema is None; this version reads 4, which `dlm bench`"),
    "schema 3": (_with(3, "schema"), "schema is 3; this version reads 4, which `dlm bench` makes"),
    "schema 5": (_with(5, "schema"), "schema is 5; this version reads 4, which `dlm bench` makes"),
    "no read": (_without("ceilings", "read"), "record.ceilings.read is missing"),
    "no exps": (_without("ceilings", "exps"), "record.ceilings.exps is missing"),
    "no low": (_without("rows", 3, "timing", "low"), "record.rows[3].timing.low is missing"),
    "no shards": (_without("rows", 1, "forward", "shards"), "record.rows[1].forward.shards is mi"),
    "no dtype": (_without("rows", 1, "forward", "dtype"), "record.rows[1].forward.dtype is missi"),
    "extra": (_with(0, "extra"), "record.extra is not a known field"),
    "nan": (_with(math.nan, "rows", 0, "flops"), "record.rows[0].flops is nan; it must be finite"),
    "inf": (_with(math.inf, "ceilings", "copy", "best"), "record.ceilings.copy.best is inf"),
    "-inf": (_with(-math.inf, "rows", 0, "exps"), "record.rows[0].exps is -inf"),
    "huge": (_with(10**400, "rows", 0, "bytes"), "record.rows[0].bytes is inf"),
    "'NaN'": (_with("NaN", "rows", 0, "flops"), "record.rows[0].flops is 'NaN'; it must be a num"),
    "'inf'": (_with("Infinity", "ceilings", "l2", "best"), "record.ceilings.l2.best is 'Infinity'"),
    "null": (_with(None, "rows", 0, "timing"), "record.rows[0].timing is None"),
    "text for a size": (_with("1", "rows", 0, "forward", "batch"), "record.rows[0].forward.batch"),
    "half a run": (
        _with(1.5, "rows", 0, "timing", "runs"),
        "record.rows[0].timing.runs is 1.5; it must be an int",
    ),
    "1 for true": (_with(1, "complete"), "record.complete is 1"),
    "true for 1": (_with(True, "ceilings", "read", "runs"), "record.ceilings.read.runs is True"),
    "no list": (_with({}, "rows"), "record.rows is {}"),
    "backend": (
        _with("foo", "backend"),
        "record.backend is 'foo'; it must be one of triton, torch",
    ),
    "date": (_with("yesterday", "date"), "record.date is 'yesterday'; it must be as 2026-01-31T12"),
    "scope": (_with("some", "scope"), "record.scope is 'some'; it must be one of standard"),
    "vocabulary": (_with(-1, "models", MODEL, "vocab_size"), f"record.models.{MODEL}.vocab_size"),
    # Times and rates
    "negative low": (_with(-1.0, "rows", 0, "timing", "low"), "record.rows[0].timing.low is -1.0"),
    "zero low": (_with(0, "rows", 0, "timing", "low"), "record.rows[0].timing.low is 0.0"),
    "median": (_with(9, "rows", 0, "timing", "median"), "record.rows[0].timing.median is 9.0; it"),
    "high": (_with(-1, "rows", 0, "timing", "high"), "record.rows[0].timing.median is"),
    "runs": (_with(0, "rows", 0, "timing", "runs"), "record.rows[0].timing.runs is 0"),
    "a peer's": (
        _with(-1, "rows", 5, "peers", 0, "timing", "low"),
        "record.rows[5].peers[0].timing.low is -1.0",
    ),
    "flops": (_with(-1, "rows", 0, "flops"), "record.rows[0].flops is -1.0"),
    "bytes": (_with(0, "rows", 0, "bytes"), "record.rows[0].bytes is 0.0"),
    "exps": (_with(-1, "rows", 0, "exps"), "record.rows[0].exps is -1.0"),
    "rate": (_with(-1, "ceilings", "write", "median"), "record.ceilings.write.median is -1.0"),
    "best": (_with(1.0, "ceilings", "l2", "best"), "record.ceilings.l2.best is 1.0, less than"),
    "product": (
        _with(0, "ceilings", "matmul", "tf32", "best"),
        "record.ceilings.matmul.tf32.best is 0.0",
    ),
    "latency": (_with(0, "ceilings", "launch", "best"), "record.ceilings.launch.best is 0.0"),
    "best latency": (_with(1, "ceilings", "launch", "best"), "record.ceilings.launch.best is 1.0,"),
    "no runs": (_with(0, "ceilings", "graph_node", "runs"), "record.ceilings.graph_node.runs is 0"),
    # Rows that do not fit the record or themselves
    "kind": (_with("guess", "rows", 0, "kind"), "record.rows[0].kind is 'guess'; it must be one"),
    "model": (
        _with("14B", "rows", 2, "model"),
        f"record.rows[2].model is '14B'; models has {MODEL}",
    ),
    "no model": (_with(None, "rows", 2, "model"), "record.rows[2].model is null; a stage has one"),
    "no forward": (_with(None, "rows", 5, "forward"), "record.rows[5].forward is null; a step has"),
    "sizes": (_with({"batch": 1}, "rows", 0, "shape"), "record.rows[0].shape is {'batch': 1}; a s"),
    "dtype": (
        _with("float16", "rows", 0, "dtype"),
        "record.rows[0].dtype is 'float16'; forward.dtype is 'bfloat16'",
    ),
    "unknown dtype": (
        _op(dtype="float64"),
        "record.rows[0].dtype is 'float64'; ceilings.matmul has bfloat16, float16, tf32, float32",
    ),
    "dtype without a product": (
        _without("ceilings", "matmul", "bfloat16"),
        "record.rows[0].dtype is 'bfloat16'; ceilings.matmul has float16, tf32, float32",
    ),
    "batch": (_with(0, "rows", 0, "forward", "batch"), "record.rows[0].forward.batch is 0; it mu"),
    "forward's kind": (
        _with("prefill", "rows", 0, "forward", "kind"),
        "record.rows[0].forward.kind is 'prefill'",
    ),
    "forward's block": (
        _with("decode", "rows", 0, "forward", "kind"),
        "record.rows[0].forward.block is 32; it must be 1 in decode",
    ),
    "shards": (
        _with(2, "rows", 0, "forward", "shards"),
        "record.rows[0].forward.shards is 2; it must be 1 in a record, which is of one device",
    ),
    "stage": (_with("softmax", "rows", 0, "name"), "record.rows[0].name is 'softmax'; it must be"),
    "step": (
        _with("verify forward", "rows", 5, "name"),
        "record.rows[5].name is 'verify forward'; it must be one of denoising step",
    ),
    "stage of another kind": (
        _with("verify", "rows", 4, "forward", "kind"),
        "record.rows[4].name is 'remask scatter'; its forward, of kind 'verify', has embedding",
    ),
    "stage of one shard": (
        _with("all-reduce", "rows", 4, "name"),
        "record.rows[4].name is 'all-reduce'; its forward, of kind 'denoise', has embedding",
    ),
    "op of a model": (_op(model=MODEL), f"record.rows[0].model is '{MODEL}'; it must be null of"),
    "op without sizes": (_op(shape={}), "record.rows[0].shape is {}; it must hold the sizes"),
    "op of -1 rows": (_op(shape={"rows": -1}), "record.rows[0].shape.rows is -1"),
    "peer": (
        _with(None, "rows", 5, "peers", 0, "timing"),
        "record.rows[5].peers[0].timing is null; peer 'plain torch' has no refused that says why",
    ),
    "peer with both": (
        _with("slow", "rows", 5, "peers", 0, "refused"),
        "record.rows[5].peers[0].refused is 'slow'; peer 'plain torch' has a timing",
    ),
    "stage twice": (_again(2), "record.rows[42] measures 'attention' again, as rows[2] does"),
    "step twice": (_again(5, flops=1.0), "record.rows[42] measures 'denoising step' again, as row"),
    "op twice": (
        lambda values: (_op()(values), _again(0)(values)),
        "record.rows[42] measures 'add' again, as rows[0] does",
    ),
    # Two devices in one
    "device": (_with("tpu", "device", "kind"), "record.device.kind is 'tpu'; it must be one of cp"),
    "triad": (_with(RATE, "ceilings", "triad"), "record.ceilings.triad is of another device; one"),
    "no launch": (_with(None, "ceilings", "launch"), "record.ceilings.launch is null; a device of"),
    "no node": (_with(None, "ceilings", "graph_node"), "record.ceilings.graph_node is null; a dev"),
    "a GPU's name": (
        _host(_with("NVIDIA H200", "device", "name")),
        "record.device.name is 'NVIDIA H200', a GPU",
    ),
    "a stage less": (_without("rows", 2), "record.rows[4]: of its stages rows lacks attention"),
    "a host's exps": (_host(_with(RATE, "ceilings", "exps")), "record.ceilings.exps is of another"),
    "a host's l2": (_host(_with(RATE, "ceilings", "l2")), "record.ceilings.l2 is of another devic"),
    "a host's node": (
        _host(_with(LATENCY, "ceilings", "graph_node")),
        "record.ceilings.graph_node is of another device; one of kind 'cpu' has none",
    ),
    "a host's graph": (
        _host(_with(True, "rows", 7, "timing", "graph")),
        "record.rows[7].timing.graph is True; a device of kind 'cpu' replays no CUDA graph",
    ),
    "pace": (
        _host(_with(0, "rows", 7, "timing", "pace")),
        "record.rows[7].timing.pace is 0.0; it must be above 0",
    ),
    "a peer's pace": (
        _host(_with(-1, "rows", 5, "peers", 0, "timing", "pace")),
        "record.rows[5].peers[0].timing.pace is -1.0; it must be above 0",
    ),
    "a GPU's pace": (
        _with(1.5, "rows", 7, "timing", "pace"),
        "record.rows[7].timing.pace is 1.5; it must be null on a device of kind 'cuda'",
    ),
    "a GPU that is steady": (
        _with(True, "rows", 7, "timing", "steady"),
        "record.rows[7].timing.steady is True; it must be null on a device of kind 'cuda'",
    ),
    "first": (
        _with(
            {"linear": {"overhead": 1e-6, "bandwidth": 1e12, "flops": None, "first": -1e-6}},
            "ceilings",
            "ops",
        ),
        "record.ceilings.ops.linear.first is -1e-06; it must be at least 0",
    ),
    "a GPU's pace of a peer": (
        _with(1.5, "rows", 5, "peers", 0, "timing", "pace"),
        "record.rows[5].peers[0].timing.pace is 1.5; it must be null on a device",
    ),
    "a peer's graph": (
        _host(_with(True, "rows", 5, "peers", 0, "timing", "graph")),
        "record.rows[5].peers[0].timing.graph is True",
    ),
}


@pytest.fixture(scope="module")
def good(record: Record, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a record."""
    return save(record, tmp_path_factory.mktemp("good")).read_text()


def _damaged(good: str, folder: Path, damage: Callable[[dict], object]) -> Path:
    path, values = folder / "record.json", json.loads(good)
    damage(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_refused_by_file_and_field(
    good: str, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    path = _damaged(good, tmp_path, damage)
    with pytest.raises(ValueError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "change",
    [
        _on_a_host,
        _host(_with(1.5, "rows", 7, "timing", "pace")),
        _one_more_op(),
        lambda values: (_one_more_op()(values), _again(-1, dtype="float16")(values)),
        lambda values: (_one_more_op()(values), _again(-1, shape={"rows": 4})(values)),
        _with([], "rows"),
        _with(None, "ceilings", "exps"),
    ],
    ids=[
        "a host",
        "a pace",
        "an op",
        "another dtype",
        "another shape",
        "no rows",
        "exps not measured",
    ],
)
def test_what_a_run_can_give_is_read(good: str, tmp_path: Path, change) -> None:
    assert load(_damaged(good, tmp_path, change)).schema == SCHEMA


def _fields(kind: object, value: object, at: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """Path and type of all that `value`, as JSON gives it, holds as fields of dataclasses."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if value is None:
        return
    if origin is types.UnionType:
        yield from _fields(args[0], value, at)
    elif origin in (list, dict):
        items = enumerate(value) if origin is list else value.items()
        for key, item in items:
            yield from _fields(args[-1], item, (*at, key))
    elif is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for each in fields(kind):
            yield (*at, each.name), hints[each.name]
            yield from _fields(hints[each.name], value[each.name], (*at, each.name))


@pytest.fixture(scope="module")
def small(make_record: Callable[..., Record], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a record of few rows, which has every kind of field."""
    folder = tmp_path_factory.mktemp("small")
    return save(make_record(batches=(1,), kinds=("decode", "denoise")), folder).read_text()


@pytest.mark.parametrize(
    ("damage", "of", "said"),
    [
        (_without, object, "is missing"),
        (lambda *key: _with(math.nan, *key), float, "is nan; it must be finite"),
        (lambda *key: _with("NaN", *key), float, "is 'NaN'; it must be a number"),
        (lambda *key: _with([], *key), object, "is []"),
    ],
    ids=["missing", "nan", "NaN as text", "a list"],
)
def test_any_field_is_named(small: str, tmp_path: Path, damage, of: type, said: str) -> None:
    found = dict(_fields(Record, json.loads(small)))
    named = {key for key, kind in found.items() if of is object or kind is of}
    assert ("models", MODEL, "rope", "factor") in named
    assert ("rows", 10, "peers", 0, "timing", "low") in named
    lists = {("rows",), ("skipped",), *(key for key in named if key[-1] == "peers")}
    for key in named - {("schema",)} - (lists if said == "is []" else set()):
        path = _damaged(small, tmp_path, damage(*key))
        name = "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in key)
        with pytest.raises(ValueError) as raised:
            load(path)
        assert str(raised.value).startswith(f"{path}: record{name} {said}")


@pytest.mark.parametrize(
    ("said", "n_bytes"),
    [
        ("141 GiB", 141 << 30),
        ("15.5 GiB", 31 << 29),
        ("512 MiB", 512 << 20),
        ("64 GB", None),
        ("about 8 GiB", None),
        ("8 GiB free", None),
        ("1.2.3 GiB", None),
        ("", None),
    ],
)
def test_memory_of_a_device_is_what_its_details_say(said: str, n_bytes: int | None) -> None:
    assert memory_of(Device("cuda", "NVIDIA H200", {"memory": said})) == n_bytes


def test_memory_of_a_device_that_does_not_say() -> None:
    assert memory_of(Device("cpu", "AMD EPYC", {})) is None


@pytest.mark.parametrize("text", ["", "[]", "null", '{"schema": 1', "\x00", "[" * 100_000])
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


def test_a_measured_rate_of_exponentials_bounds_rows(record: Record, tmp_path: Path) -> None:
    ceilings = replace(record.ceilings, exps=Ceiling(5e12, 4e12, 15))
    op = {"kind": "op", "model": None, "forward": None, "shape": {"rows": 32}}
    row = replace(record.rows[0], **op, exps=5e12)
    saved = load(save(replace(record, ceilings=ceilings, rows=[row]), tmp_path))
    assert saved.floor(saved.rows[0]) == pytest.approx(1.0)
    unmeasured = replace(record, ceilings=replace(ceilings, exps=None))
    assert unmeasured.floor(row) < 0.1


def test_floor_of_a_step_is_the_sum_over_its_stages(record: Record) -> None:
    step = next(row for row in record.rows if row.kind == "step")
    stages = record.stages_of(step)
    assert [stage.name for stage in stages] == list(record.stage_costs(step))
    assert record.floor(step) == pytest.approx(sum(record.floor(stage) for stage in stages))


def test_a_step_s_stages_are_those_of_its_forward(grid_record: Record) -> None:
    steps = [row for row in grid_record.rows if row.kind == "step" and row.sizes["context"] == 1024]
    assert len(steps) == 5 * 7
    for step in steps:
        stages = grid_record.stages_of(step)
        assert {stage.forward for stage in stages} == {step.forward}
        assert step.cost.bytes == pytest.approx(sum(stage.bytes for stage in stages))


def test_sizes_are_those_of_a_forward_or_an_op(record: Record) -> None:
    row = record.rows[0]
    assert row.sizes == {"batch": 1, "block": 32, "context": 1024}
    op = replace(row, kind="op", model=None, forward=None, shape={"rows": 32})
    assert op.sizes == {"rows": 32}


@pytest.mark.parametrize(
    ("device", "label"),
    [
        (Device("cpu", "A host", {"threads": "1"}), "A host, 1 thread"),
        (Device("cpu", "A host", {"threads": "2"}), "A host, 2 threads"),
        (Device("cpu", "A host", {}), "A host"),
        (Device("cuda", "A GPU", {"threads": "2"}), "A GPU"),
    ],
)
def test_a_host_is_called_by_its_threads_too(device: Device, label: str) -> None:
    assert device.label == label
