"""The whole of `dlm bench --tune`: the budget, the file it rewrites, what it prints."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm_bench import run as bench
from dlm_bench.tuning import run as module
from dlm_bench.tuning.inputs import Sizes
from dlm_bench.tuning.run import Tuning
from dlm_bench.tuning.search import DeviceLost, Search
from dlm_bench.tuning.space import Call, Series, Space
from dlm_bench.tuning.spaces import spaces
from dlm_core import PRESETS
from dlm_kernels import launch

CPU = torch.device("cpu")
SILU, ROPE, LINEAR = "gated_silu", "rope_kv_write", "linear"


class Clock:
    """Costs of entries; each timing takes a second."""

    def __init__(self) -> None:
        self.time = 0.0
        self.fault: Callable[[], object] = lambda: None

    def now(self) -> float:
        return self.time

    def seconds(self, call: Call, budget: float) -> float:
        self.time += 1
        self.fault()
        return call.run()


def space(op: str, table: dict, keys: tuple, cost: Callable[[Any], float], **fields: Any) -> Space:
    """In a real table, with an op that only tells what it costs."""

    def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
        def call(size: int, numerics: str) -> Call:
            return Call(lambda: cost(result.entry("sm_90")), lambda: (torch.zeros(size),))

        return call

    result = Space(op, table, keys, (Series("rows", (32,), build),), fields=fields)
    return result


def silu() -> Space:
    return space(SILU, launch.GATED_SILU, (), lambda e: 1 / e.block, block=(512, 1024, 2048))


def rope() -> Space:
    return space(ROPE, launch.ROPE_KV_WRITE, (), lambda e: 1.0, num_warps=(1, 2, 4))


def linear() -> Space:
    return space(LINEAR, launch.LINEAR, (2,), lambda e: 1 / e.programs, programs=(132, 264, 528))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(launch.FOLDER / "sm_90.json", tmp_path))


def tuning(file: Path, clock: Clock, budget: float = 1000) -> Tuning:
    return Tuning("sm_90", file, CPU, clock.seconds, budget, now=clock.now)


def test_winners_are_written_and_nothing_else_changes(file: Path) -> None:
    before = launch.read_table(file)
    run = tuning(file, Clock())
    run.run([linear(), silu(), rope()])
    expected = {
        SILU: replace(before[SILU], block=2048, tuned=True),
        ROPE: replace(before[ROPE], tuned=True),  # the present one won
        LINEAR: before[LINEAR] | {2: replace(before[LINEAR][2], programs=528, tuned=True)},
    }
    assert launch.read_table(file) == before | expected
    assert launch.GATED_SILU["sm_90"] == before[SILU] and launch.LINEAR["sm_90"] == before[LINEAR]
    assert [each.name for each in run.outcomes] == ["linear 2", SILU, ROPE] and run.left == []
    speed_ups = [each.before / each.after for each in run.outcomes]
    assert speed_ups == pytest.approx([2.0, 2.0, 1.0])
    assert list(file.parent.iterdir()) == [file]


def test_the_table_is_written_after_each_entry(file: Path) -> None:
    clock, seen = Clock(), []
    tuned = module.launch.read_table

    def look() -> None:
        seen.append(tuned(file)[SILU].tuned)

    clock.fault = look
    tuning(file, clock).run([silu(), rope()])
    assert seen == sorted(seen) and set(seen) == {False, True}


def test_the_budget_stops_it_and_says_what_is_left(file: Path) -> None:
    clock = Clock()
    run = tuning(file, clock, budget=15)
    run.run([silu(), rope(), linear()])
    assert [each.tuned for each in run.outcomes] == [True, True, False]
    assert run.left == ["linear 2"] and 15 <= clock.time < 20
    clock = Clock()
    run = tuning(file, clock, budget=30)
    run.run([silu(), rope(), linear()])
    assert run.left == [] and clock.time < 30
    run = tuning(file, Clock(), budget=1)
    run.run([silu(), rope(), linear()])
    assert len(run.outcomes) == 1 and len(run.left) == 3


def test_an_entry_cut_short_is_not_tuned_but_keeps_what_was_found(file: Path) -> None:
    run = tuning(file, Clock(), budget=3.5)
    run.run([silu()])
    assert launch.read_table(file)[SILU].block == 2048
    assert not launch.read_table(file)[SILU].tuned and run.left == [SILU]


def test_a_second_run_goes_on_with_what_is_left_and_starts_over_when_nothing_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = replace(launch.GATED_SILU["sm_90"], tuned=True)
    monkeypatch.setitem(launch.GATED_SILU, "sm_90", tuned)
    run = tuning(file, Clock())
    run.run([silu(), rope()])
    assert [each.name for each in run.outcomes] == [ROPE] and run.left == []
    run = tuning(file, Clock())
    run.run([silu()])
    assert launch.read_table(file)[SILU] == replace(tuned, block=2048)
    shutil.copy(launch.FOLDER / "sm_90.json", file)
    run = tuning(file, Clock(), budget=3.5)  # cut short, and measured before
    run.run([silu()])
    assert launch.read_table(file)[SILU] == replace(tuned, block=2048)


def test_an_interrupt_keeps_what_was_found(file: Path) -> None:
    clock = Clock()

    def interrupt() -> None:
        if clock.time > 12:
            raise KeyboardInterrupt

    clock.fault = interrupt
    run = tuning(file, clock)
    run.run([silu(), linear(), rope()])
    assert run.interrupted and launch.read_table(file)[SILU].block == 2048
    assert run.outcomes[-1].failed == "interrupted" and ROPE in run.left


def test_an_entry_that_fails_leaves_the_others(file: Path) -> None:
    def out_of_memory(device: torch.device, most: int) -> Any:
        raise torch.OutOfMemoryError("no room for inputs")

    broken = replace(silu(), series=(Series("rows", (1,), out_of_memory),))
    run = tuning(file, Clock())
    run.run([broken, rope()])
    assert [each.failed for each in run.outcomes] == ["no room for inputs", None]
    assert run.left == [SILU] and not launch.read_table(file)[SILU].tuned


def test_a_lost_device_ends_it_and_the_next_run_passes_that_entry_over(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(search: Search, until: float) -> None:
        raise DeviceLost("gated_silu: misaligned address")

    monkeypatch.setattr(Search, "run", lose)
    run = tuning(file, Clock())
    run.run([silu(), rope()])
    assert run.lost and launch.read_table(file)[SILU].tuned
    assert len(run.outcomes) == 1 and run.left == [ROPE]


def test_real_kernels_are_searched_and_a_wrong_one_is_dropped(
    file: Path, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gated_silu, where a block of 4096 is fastest and its results are spoilt."""
    if triton_device != "cpu":
        pytest.skip("a GPU runs the table of its own architecture")
    monkeypatch.setenv("DLM_BACKEND", "triton")
    small = replace(PRESETS["tiny"], intermediate_size=40)
    sizes = Sizes(small, rows=(1, 2), main=1, dtypes={2: torch.float16, 4: torch.float32})
    found = next(each for each in spaces("sm_90", 132, sizes) if each.name == SILU)
    (series,) = found.series

    def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
        calls = series.build(device, most)

        def call(size: int, numerics: str) -> Call:
            run, result, reset = calls(size, numerics)

            def spoilt() -> tuple[torch.Tensor, ...]:
                factor = 1 + 0.05 * (launch.GATED_SILU["sm_90"].block == 4096)
                return tuple(each * factor for each in result())

            return Call(run, spoilt, reset)

        return call

    found = replace(found, series=(replace(series, build=build),))

    def clock(call: Call, seconds: float) -> float:
        call.run()
        return 1 / launch.GATED_SILU["sm_90"].block

    run = Tuning("sm_90", file, CPU, clock, 1000)
    run.run([found])
    assert launch.read_table(file)[SILU].block == 2048
    assert run.outcomes[0].dropped["wrong result"] >= 1


@pytest.fixture
def gpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An H200 that is not there, and its table."""
    properties = SimpleNamespace(multi_processor_count=132, name="NVIDIA H200")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(bench, "_device", lambda wanted: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(module, "check_triton", lambda device: None)
    monkeypatch.setattr(module, "clock_of", lambda device: Clock().seconds)
    monkeypatch.setattr(module, "spaces", lambda arch, processors, sizes: [silu(), rope()])
    monkeypatch.setattr(launch, "FOLDER", file.parent)
    return file


def test_the_command_rewrites_the_table_and_says_so(gpu: Path, capsys) -> None:
    assert bench.main(["--tune", "--budget", "60"]) == 0
    printed = capsys.readouterr().out
    closing = json.loads(printed.splitlines()[-1])
    assert closing["table"] == str(gpu) and closing["complete"] and closing["left"] == []
    first = closing["entries"][0]
    assert (first["entry"], first["speed_up"], first["tuned"]) == (SILU, 2.0, True)
    assert "2.00x" in printed and "1.00x" in printed and "wrote" in printed
    assert launch.read_table(gpu)[SILU].block == 2048


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tune", "--budget", "0"], "--budget is 0.0; it must be a number of seconds above 0"),
        (["--tune", "--budget", "nan"], "--budget is nan"),
    ],
)
def test_a_budget_that_is_none_is_an_error(
    gpu: Path, capsys, options: list[str], words: str
) -> None:
    assert bench.main(options) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tune", "--quick"], "argument --tune: not allowed with --quick"),
        (["--tune", "model"], "argument --tune: not allowed with FOLDER"),
        (["--tune", "--patience", "0"], "argument --tune: not allowed with --patience"),
        (["--budget", "9"], "argument --budget: needs --tune"),
    ],
)
def test_options_that_do_not_go_together(capsys, options: list[str], words: str) -> None:
    with pytest.raises(SystemExit):
        bench.main(options)
    assert words in capsys.readouterr().err


def test_a_device_without_a_table_of_its_own_is_an_error(
    gpu: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert bench.main(["--tune"]) == 1
    assert "no launch table for sm_89 to rewrite; there are those of sm_80" in (
        capsys.readouterr().err
    )


def test_another_backend_is_an_error(gpu: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_BACKEND", "torch")
    assert bench.main(["--tune"]) == 1
    assert "DLM_BACKEND is 'torch'; unset it" in capsys.readouterr().err


def test_a_host_cannot_be_tuned(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert bench.main(["--tune", "--device", "cpu"]) == 1
    assert "--tune is given, and the device is cpu" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert bench.main(["--tune"]) == 1
    assert "TRITON_INTERPRET is 1; unset it" in capsys.readouterr().err


def test_an_entry_takes_half_of_the_time_left_unless_it_is_the_last(file: Path) -> None:
    """The first entry has more candidates than there is time for."""
    endless = tuple(range(132, 1000))
    slow = space(LINEAR, launch.LINEAR, (2,), lambda e: 1.0, programs=endless)
    run = tuning(file, clock := Clock(), budget=100)
    ended = []
    run.show = lambda what: ended.append(clock.time) if what == f"{SILU}: inputs" else None
    run.run([slow, silu()])
    assert 50 <= ended[0] <= 54
    run = tuning(file, clock := Clock(), budget=100)
    run.run([slow])
    assert 100 <= clock.time <= 104


def test_the_clock_gives_the_seconds_of_a_run_and_puts_back_what_it_changes() -> None:
    done = []
    call = Call(lambda: done.append("run"), lambda: (), lambda: done.append("reset"))
    assert 0 < module.clock_of(CPU)(call, 0.0) < 1
    assert done[:4] == ["reset", "run"] * 2 and len(done) % 2 == 0
