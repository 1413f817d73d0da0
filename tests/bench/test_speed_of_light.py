"""The rows held to targets: each runs, is judged by its own figures, and is measured once."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
from dlm_bench import timing
from dlm_bench.speed_of_light import device, rows, run
from dlm_bench.speed_of_light.device import Measured
from dlm_bench.speed_of_light.record import SCHEMA, Record, Result, sources_of
from dlm_bench.speed_of_light.rows import Check, Row, rows_of, verdict
from dlm_bench.speed_of_light.sizes import Sizes
from dlm_bench.speed_of_light.steps import tokens_a_cycle
from dlm_core import PRESETS
from dlm_kernels import Cost
from dlm_roofline import ceilings
from dlm_roofline.json_file import read
from dlm_roofline.predict import Roof
from dlm_roofline.records import Peer, Timing

CPU = torch.device("cpu")
SMALL = Sizes(
    config=replace(
        PRESETS["tiny"], vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=1
    ),
    dtype=torch.float32,
    context=40,
    batches=(2,),
    many=2,
    many_contexts=(64,),
    one_contexts=(64, 128),
    far=128,
    head_rows=(32, 1),
    ks=(3, 2),
    fp8_context=64,
)


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("DLM_BACKEND", raising=False)
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setitem(ceilings.MATMUL_SIZE, "cpu", 256)
    monkeypatch.setitem(timing.FLUSH_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(timing.MIN_RUNS, "cpu", 2)
    monkeypatch.setattr(device, "SECONDS_A_TIMING", 0.002)


def seconds(value: float) -> Timing:
    return Timing(value, value, value, runs=9, cold=True, graph=True)


def command(folder: Path, *more: str) -> int:
    return run.main(["--out", str(folder), *more], device=CPU, sizes=SMALL)


def only_record(folder: Path) -> Record:
    (path,) = folder.iterdir()
    return read(Record, path, SCHEMA)


def a_row(name: str, measure: Callable[..., Measured], **more) -> Row:
    fields = {"target": "", "checks": (), "stages": (Cost(1e3, 1e3),), "seconds": 0.0}
    return Row(name=name, dtype="float32", measure=measure, **fields | more)


def test_every_row_runs_and_is_measured_once(tmp_path: Path, capsys) -> None:
    assert command(tmp_path) == 0
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = read(Record, closing["record"], SCHEMA)
    assert {result.name: result.refused for result in record.results if result.refused} == {}
    assert [result.name for result in record.results] == [row.name for row in rows_of(SMALL)]
    assert closing["measured"] == len(record.results) and closing["left"] == 0
    assert set(closing["head"]) == {"32 rows", "1 row"}
    assert closing["best_k"]["0.9"]["k"] in SMALL.ks
    for result in record.results:
        # A host counts no allocated bytes; all else has a time, a floor, and what it is held to.
        if result.name.startswith("memory"):
            continue
        assert result.timings and result.floor > 0, result.name
        refusals = [peer.refused for peer in result.peers if peer.refused]
        assert not any("differs" in why for why in refusals), (result.name, refusals)
    for row in rows_of(SMALL):
        if not row.name.startswith("memory"):
            judged = verdict(row, record.result_of(row.name))
            assert judged in (("yes", "no") if row.checks else ("-",)), row.name

    assert command(tmp_path) == 0
    again = only_record(tmp_path)
    assert again.results == record.results and again.sessions == record.sessions


def test_a_run_cut_short_is_gone_on_with(tmp_path: Path, capsys, monkeypatch) -> None:
    made = []

    def measure(name: str) -> Callable[..., Measured]:
        def measured(_: object) -> Measured:
            made.append(name)
            if name == "b" and made.count("b") == 1:
                raise KeyboardInterrupt
            return Measured({"both": seconds(1.0)}, [], {})

        return measured

    monkeypatch.setattr(run, "rows_of", lambda _: [a_row(name, measure(name)) for name in "abc"])
    assert command(tmp_path) == 130
    out = capsys.readouterr().out
    assert "1 rows are left" in out and json.loads(out.splitlines()[-1])["left"] == 1
    assert only_record(tmp_path).result_of("b").refused == run.ENDED_IN
    assert command(tmp_path) == 0
    assert made == ["a", "b", "c", "b"]
    record = only_record(tmp_path)
    assert len(record.sessions) == 2
    assert {result.name: result.session for result in record.results} == {"a": 0, "b": 1, "c": 1}
    assert not any(result.refused for result in record.results)


def test_what_fails_says_why_and_the_rest_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(_: object) -> Measured:
        raise RuntimeError("no kernel\nand more")

    def endless(_: object) -> Measured:
        return Measured({"both": seconds(1.0)}, [], {"us": math.inf})

    def fine(_: object) -> Measured:
        return Measured({"both": seconds(1.0)}, [], {})

    each = {"broken": broken, "endless": endless, "fine": fine}
    monkeypatch.setattr(run, "rows_of", lambda _: [a_row(*item) for item in each.items()])
    assert command(tmp_path) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["failed"] == ["broken", "endless"]
    record = only_record(tmp_path)
    assert record.result_of("broken").refused == "no kernel"
    assert record.result_of("endless").refused == "us is inf"
    assert record.result_of("fine").refused is None
    assert "failed: no kernel" in out


def test_rows_that_do_not_fit_are_left_and_said(tmp_path: Path, capsys, monkeypatch) -> None:
    def fine(_: object) -> Measured:
        return Measured({"both": seconds(1.0)}, [], {})

    found = [a_row("long", fine, seconds=1000.0), a_row("short", fine)]
    monkeypatch.setattr(run, "rows_of", lambda _: found)
    assert command(tmp_path, "--budget", "60") == 0
    assert "1 rows are left; the same command goes on with them: long" in capsys.readouterr().out
    assert [result.name for result in only_record(tmp_path).results] == ["short"]


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "soon"])
def test_a_budget_is_a_number_above_0(budget: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        command(tmp_path, f"--budget={budget}")
    assert raised.value.code == 2
    assert "must be a number above 0" in capsys.readouterr().err


def test_other_code_has_a_record_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "rows_of", lambda _: [])
    for digest in ("a" * 64, "b" * 64, "a" * 64):
        monkeypatch.setattr(run, "sources_of", lambda digest=digest: digest)
        assert command(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_the_digest_follows_code_and_launch_tables(tmp_path: Path) -> None:
    for name in ("kernels/a.py", "kernels/table.json", "roofline/a.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    digests = [sources_of(tmp_path)]
    for name in ("roofline/a.md", "kernels/a.py", "kernels/table.json"):
        (tmp_path / name).write_text("y")
        digests.append(sources_of(tmp_path))
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_damaged_record_is_refused_by_name(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(run, "rows_of", lambda _: [])
    assert command(tmp_path) == 0
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    assert command(tmp_path) == 1
    assert f"{path} is not JSON" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_called_measured(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "predicted" in out and "Nothing was measured" in out
    for row in rows_of(Sizes()):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{row.name}  ")]
        assert line.count("not measured") == 2
        assert ("○" in line) == bool(row.stages)
    assert json.loads(out.splitlines()[-1])["measured"] == 0


@pytest.mark.parametrize(
    ("timings", "peer", "figures", "wanted"),
    [
        ({"fast": 1.3, "invariant": 1.3}, 2.0, {"us": 6.0}, "yes"),
        ({"fast": 1.5, "invariant": 1.5}, 2.0, {"us": 6.0}, "no"),
        ({"fast": 1.3, "invariant": 1.4}, 2.0, {"us": 6.0}, "no"),
        ({"fast": 1.3, "invariant": 1.3}, 1.2, {"us": 6.0}, "no"),
        ({"fast": 1.3, "invariant": 1.3}, 2.0, {"us": 6.1}, "no"),
        ({"fast": 1.3, "invariant": 1.3}, None, {"us": 6.0}, "-"),
        ({"fast": 1.5, "invariant": 1.5}, None, {"us": 6.0}, "no"),
        ({"both": 1.3}, 2.0, {"us": 6.0}, "yes"),
    ],
    ids=["holds", "slow", "invariance", "peer", "figure", "no peer", "no peer, slow", "one form"],
)
def test_a_verdict_takes_every_check(timings, peer, figures, wanted) -> None:
    checks = (
        Check(rows.OVER_FLOOR, "at most", 1.4),
        Check(rows.OVER_BEST_PEER, "at least", 1.0),
        Check("us", "at most", 6.0),
    )
    row = a_row("a", lambda _: None, checks=checks)
    peers = [Peer("slower", seconds(9.0), None)] if peer else []
    peers += [Peer("theirs", seconds(peer), None)] if peer else [Peer("theirs", None, "not here")]
    times = {name: seconds(each) for name, each in timings.items()}
    result = Result("a", 0, 1.0, times, peers, figures, None)
    assert verdict(row, result) == wanted
    assert verdict(row, None) == "-"
    assert verdict(row, replace(result, refused="no kernel")) == "-"
    assert verdict(replace(row, checks=()), result) == "-"


def test_the_published_rows_and_their_floors() -> None:
    """At 4.3 TB/s and 790 TFLOP/s: a forward reads 15.9 GB of weights, and 0.15 GB of context."""
    found = {row.name: row for row in rows_of(Sizes())}
    assert len(found) == len(rows_of(Sizes()))
    roof = Roof(4.3e12, 790e12, 3.7e12)
    floor = {name: run._floor(row, roof) for name, row in found.items()}
    step = floor["whole step, batch 1, context 1024"]
    assert step == pytest.approx((15.9e9 + 0.15e9) / 4.3e12, rel=0.04)
    assert floor["linear self-speculation, a cycle, batch 1, context 1024"] == pytest.approx(
        2 * step, rel=0.01
    )
    # The larger batch is held by compute: 2048 rows of 7.9 G weights, two operations each.
    large = floor["whole step, batch 64, context 1024"]
    assert large == pytest.approx(2 * 2048 * 7.95e9 / 790e12, rel=0.15)
    eight, four = (floor[f"step with {name} weights, batch 1, context 1024"] for name in WEIGHTS)
    assert 1.7 < step / eight < 2 and 2.6 < step / four < 4
    assert floor["memory of LM head + confidence + remask, batch 64"] is None


WEIGHTS = ("int8", "int4")


def test_the_notes_predict_what_the_rows_do() -> None:
    """The floors that bench/NOTES.md states, and the k that it names."""
    notes = (Path(__file__).parents[2] / "bench" / "NOTES.md").read_text(encoding="utf-8")
    roof = Roof(4.3e12, 790e12, 3.7e12)
    floor = {row.name: run._floor(row, roof) for row in rows_of(Sizes())}
    at_one, far = "batch 1, context 1024", "batch 64, context 32768"
    stated = [
        f"whole step, {at_one}",
        f"linear self-speculation, a cycle, {at_one}",
        f"quadratic self-speculation, k 10, {at_one}",
        f"step with int8 weights, {at_one}",
        f"step with int4 weights, {at_one}",
        f"block_attention, {far}",
        f"block_attention, fp8 cache, {far}",
    ]
    for name in stated:
        assert f"{1e3 * floor[name]:.2f}" in notes, name
    for chance in run.CHANCES:
        rate = {
            k: tokens_a_cycle(k, chance) / floor[f"quadratic self-speculation, k {k}, {at_one}"]
            for k in Sizes().ks
        }
        k = max(rate, key=lambda k: rate[k])
        assert f"| {chance} | {k} | {rate[k]:.0f} |" in notes


def test_a_floor_is_bounded_by_exponentials_where_they_are_slowest() -> None:
    row = a_row("a", lambda _: None, stages=(Cost(1.0, 1.0, 10.0), Cost(8.0, 1.0, 1.0)))
    assert run._floor(row, Roof(1.0, 2.0, 5.0)) == pytest.approx(2.0 + 4.0)
    assert run._floor(row, Roof(1.0, 2.0)) == pytest.approx(1.0 + 4.0)


def test_a_cycle_s_stages_are_those_of_its_forwards() -> None:
    found = {row.name: row.stages for row in rows_of(Sizes())}
    at = "batch 1, context 1024"
    # Embedding and norms, products, attention and head of each forward; nothing is remasked.
    assert len(found[f"linear self-speculation, a cycle, {at}"]) == 2 * 4
    assert len(found[f"whole step, {at}"]) == 5
    quadratic = found[f"quadratic self-speculation, k 10, {at}"]
    # Each of 110 rows meets 7.4 G weights of layers and some 1040 keys of 32 heads of 128 in each
    # of 34, and 19 of them the 0.54 G weights of the head.
    flops = 2 * (110 * 7.416e9 + 19 * 0.537e9) + 4 * 110 * 1040 * 34 * 4096
    assert sum(cost.flops for cost in quadratic) == pytest.approx(flops, rel=0.005)


def test_tokens_of_a_cycle() -> None:
    assert tokens_a_cycle(10, 0.0) == 1
    assert tokens_a_cycle(10, 1.0) == 10
    assert tokens_a_cycle(3, 0.5) == pytest.approx(1.75)


def test_the_best_k_follows_chance_and_time() -> None:
    def result(name: str, time: float) -> Result:
        return Result(name, 0, 1.0, {"fast": seconds(time)}, [], {}, None)

    record = Record(
        SCHEMA, "c", False, "s", "torch", None, SMALL.config, "float32",
        results=[
            result("quadratic self-speculation, k 2, batch 1, context 9", 1.0),
            result("quadratic self-speculation, k 8, batch 1, context 9", 2.0),
            result("linear self-speculation, a cycle, batch 1, context 9", 4.0),
        ],
    )  # fmt: skip
    best = run.best_k(record, SMALL)
    assert best["0.7"]["k"] == 2 and best["0.95"]["k"] == 8
    assert best["0.7"]["tokens/s"] == pytest.approx(1.7)
    linear = (1 - 0.95**SMALL.config.block_size) / 0.05 / 4
    assert best["0.95"]["linear, tokens/s"] == pytest.approx(linear, abs=0.05)
    assert run.best_k(replace(record, results=[]), SMALL) == {}
