"""The search for one entry: what wins, and what is dropped before it could."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from dlm_bench.tuning import search as module
from dlm_bench.tuning.changes import double_changes, single_changes
from dlm_bench.tuning.search import DeviceLost, Search
from dlm_bench.tuning.space import Call

LADDER = {"tile_fields": {"block": (16, 32, 64)}, "main": (1,)}


def searched(doubling: Any, until: float = math.inf, **options: Any) -> Search:
    search = doubling.search(doubling.space(**options))
    search.run(until)
    return search


def spoilt(chunk: int, spoil: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A fault of entries with this chunk."""
    return lambda entry, rows: spoil(rows) if entry.chunk == chunk else rows


def fail(error: BaseException) -> Tensor:
    raise error


def test_the_fastest_entry_wins_and_nothing_stays_patched(doubling) -> None:
    present, run = doubling.entry, JITFunction.run
    search = searched(doubling)
    assert search.best == replace(present, chunk=128, warps=8)
    assert search.finished and not search.dropped
    assert search.before == pytest.approx(1 / 128) and search.after == pytest.approx(1 / 1024)
    assert doubling.entry is present and JITFunction.run is run


def test_what_gains_less_than_two_percent_does_not_win(doubling) -> None:
    doubling.cost = lambda entry, *_: {16: 1.0, 32: 1.0, 64: 0.985, 128: 0.99}[entry.chunk]
    search = searched(doubling)
    assert search.best == search.present and search.finished
    assert search.after == search.before == 1.0


def test_two_fields_are_changed_together_where_neither_gains_alone(doubling) -> None:
    def cost(entry: Any, *_: object) -> float:
        return 0.5 if (entry.chunk, entry.warps) == (64, 8) else 1.0

    doubling.cost = cost
    search = searched(doubling)
    assert (search.best.chunk, search.best.warps) == (64, 8)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda rows: rows * 1.02, "wrong result", id="off by 2%"),
        pytest.param(lambda rows: rows * math.nan, "wrong result", id="NaN"),
        pytest.param(
            lambda rows: rows * (1 + 1e-3 * (len(rows) > 1)),
            "rows depend on how many they are",
            id="not invariant",
        ),
        pytest.param(
            lambda rows: fail(RuntimeError("no such layout\nat line 7")),
            "RuntimeError: no such layout",
            id="compiler",
        ),
        pytest.param(
            lambda rows: fail(OutOfResources(300, 200, "shared memory")),
            "too much shared memory",
            id="shared memory",
        ),
    ],
)
def test_a_faulty_candidate_is_dropped_with_its_reason(
    doubling, spoil: Callable[[Tensor], Tensor], reason: str
) -> None:
    """It is the fastest; the next best wins."""
    doubling.fault = spoilt(128, spoil)
    search = searched(doubling)
    assert (search.best.chunk, search.best.warps) == (64, 8)
    assert search.finished and set(search.dropped) == {reason}
    timed = {entry.chunk for entry in doubling.timed}
    assert (128 in timed) == (reason == "rows depend on how many they are")


def test_integers_are_equal_or_wrong(doubling) -> None:
    doubling.fault = lambda entry, rows: (1000 * rows).int() + (entry.chunk == 128)
    assert searched(doubling).dropped == {"wrong result": 2}


def test_what_a_call_changes_is_put_back_before_its_result_is_compared(doubling) -> None:
    series, done = doubling.series(), []

    def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
        calls = series.build(device, most)

        def call(rows: int, numerics: str) -> Call:
            run, result, _ = calls(rows, numerics)

            def counting() -> tuple[Tensor, ...]:
                done.append(rows)
                return (*result(), torch.full((rows,), len(done)))

            return Call(run, counting, done.clear)

        return call

    search = doubling.search(doubling.space(replace(series, build=build)))
    search.run(math.inf)
    assert search.best.chunk == 128 and not search.dropped


def test_calls_that_are_not_timed_are_compared_before_an_entry_wins(doubling) -> None:
    other = doubling.series("odd", (3,), timed=False)
    doubling.fault = lambda entry, rows: rows * (1 + (entry.chunk == 128 and len(rows) == 3))
    search = doubling.search(doubling.space(doubling.series(), other))
    search.run(math.inf)
    assert search.best.chunk == 64 and set(search.dropped) == {"wrong result"}


def test_what_is_not_legal_is_not_run(doubling) -> None:
    doubling.fault = spoilt(128, lambda rows: fail(AssertionError("was run")))
    search = searched(doubling, legal=lambda entry: entry.chunk < 128)
    assert search.best.chunk == 64 and set(search.dropped) == {"not legal"}


def test_a_kernel_that_spills_is_dropped(doubling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JITFunction, "run", lambda self, spills: SimpleNamespace(n_spills=spills))

    def launching(entry: Any, rows: Tensor) -> Tensor:
        JITFunction.run(None, 4 * (entry.chunk == 128))
        return rows

    doubling.fault = launching
    search = searched(doubling)
    assert search.best.chunk == 64 and set(search.dropped) == {"spills registers"}


def test_a_hopeless_candidate_is_timed_on_one_shape_only(doubling) -> None:
    doubling.cost = lambda entry, *_: 1.0 if entry == doubling.search_from else 2.0
    doubling.search_from = doubling.entry
    searched(doubling, fields={"chunk": (32, 64)})
    assert sum(entry.chunk == 64 for entry in doubling.timed) == 1


def test_tiles_follow_the_fields_and_keep_their_bits(ladder) -> None:
    """A longer block is faster. For more than 2 rows 64 has other bits, if within tolerance."""

    def fault(entry: Any, rows: Tensor) -> Tensor:
        many = len(rows) > 2 and entry.tiles[8].block == 64
        return rows * (1 + 1e-5 * many)

    ladder.fault = fault
    search = searched(ladder, **LADDER)
    assert search.best.chunk == 128
    assert {rows: tile.block for rows, tile in search.best.tiles.items()} == {2: 64, 8: 32}
    assert search.dropped == {"other bits than before": 1}


def test_fields_of_the_last_tile_are_searched_with_it(ladder) -> None:
    def cost(entry: Any, rows: int, numerics: str) -> float:
        return 1 / entry.warps if rows > 2 else 1.0

    ladder.cost = cost
    options = {"fields": {"chunk": (32,)}, "last_tile_fields": {"warps": (2, 4, 8)}}
    assert searched(ladder, **LADDER | options).best.warps == 8


@pytest.mark.parametrize(
    ("library", "most"), [(0.1, 0), (1.5, 1), (2.5, 2), (9.0, 99)], ids=lambda x: str(x)
)
def test_the_crossover_is_where_the_library_begins_to_be_faster(
    doubling, library: float, most: int
) -> None:
    """Our kernel takes a second a row, the library as long for any number of up to 4."""

    def cost(entry: Any, rows: int, numerics: str) -> float:
        ours = numerics == "invariant" or rows <= entry.library_rows
        return float(rows) if ours else library

    doubling.cost, doubling.table["sm_90"] = cost, replace(doubling.entry, library_rows=99)
    series = doubling.series(sizes=(1, 2, 4))
    search = doubling.search(doubling.space(series, fields={}, crossover="library_rows"))
    search.run(math.inf)
    assert search.best.library_rows == most


def test_a_wrong_library_leaves_the_crossover(doubling) -> None:
    doubling.fault = lambda entry, rows: rows * (2 if entry.library_rows == 0 else 1)
    doubling.table["sm_90"] = replace(doubling.entry, library_rows=3)
    search = searched(doubling, fields={}, crossover="library_rows")
    assert search.best == search.present and search.finished
    assert search.dropped == {"wrong result of numerics fast": 1}


def test_time_that_runs_out_leaves_what_was_found(doubling) -> None:
    """After four of the candidates; the race is decided between those."""
    ticks = iter(range(100))
    search = doubling.search(doubling.space(), now=lambda: next(ticks))
    search.run(until=5)
    assert search.tried == 4 and not search.finished
    assert search.best.chunk == 128 and search.after < search.before


def test_what_is_slower_on_all_shapes_together_goes(doubling) -> None:
    """Chosen at 1 row, where 128 is faster; at 4 it is slower by more."""

    def cost(entry: Any, rows: int, numerics: str) -> float:
        return 1.0 if entry.chunk < 128 else 0.9 if rows == 1 else 2.0

    doubling.cost = cost
    search = searched(doubling, main=(1,))
    assert search.best == search.present and search.before == search.after


def test_an_interrupt_keeps_what_was_found(doubling) -> None:
    def fault(entry: Any, rows: Tensor) -> Tensor:
        return fail(KeyboardInterrupt()) if (entry.chunk, entry.warps) == (128, 8) else rows

    present, doubling.fault = doubling.entry, fault
    search = doubling.search(doubling.space())
    with pytest.raises(KeyboardInterrupt):
        search.run(math.inf)
    assert search.best.chunk == 128 and search.best.warps == 4 and not search.finished
    assert doubling.entry is present


def test_a_lost_device_ends_the_search(doubling, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("CUDA error: misaligned address")
    doubling.fault = spoilt(128, lambda rows: fail(lost))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: fail(lost))
    search = Search(doubling.space(), "sm_90", torch.device("cuda", 0), doubling.clock)
    with pytest.raises(DeviceLost, match="doubling: RuntimeError: CUDA error: misaligned"):
        search.run(math.inf)


def test_changes_are_of_one_field_or_of_two_by_a_step(ladder) -> None:
    entry = ladder.entry
    axes = {("chunk",): (16, 32, 128), ("tiles", 8, "block"): (16, 32, 64)}

    def found(entries: list[Any]) -> set[tuple[int, int, int]]:
        return {(each.chunk, each.tiles[2].block, each.tiles[8].block) for each in entries}

    single = {(16, 16, 16), (128, 16, 16), (32, 16, 32), (32, 16, 64)}
    assert found(single_changes(entry, axes)) == single
    double = double_changes(entry, axes)
    assert found(double) == single | {(16, 16, 32), (128, 16, 32)} and len(double) == 6


def test_times_at_length_decide_between_the_three_that_were_briefly_best(
    doubling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Briefly timed the shorter chunk looks better, at length the longer one is."""
    at_length = []

    def clock(call: Any, seconds: float) -> float:
        chunk = doubling.entry.chunk
        if seconds == module.BRIEFLY:
            return 1.0 if chunk == 32 else chunk / 1000
        at_length.append(chunk)
        return {32: 1.0, 16: 0.9, 64: 0.8, 128: 0.7, 256: 0.6}[chunk]

    doubling.clock = clock
    search = searched(doubling, fields={"chunk": (16, 32, 64, 128, 256)})
    assert at_length[:8:2] == [32, 16, 64, 128]  # of two shapes each; 256 was the fourth
    assert search.best.chunk == 128
