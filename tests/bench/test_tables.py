"""Tables say what the record says."""

from dataclasses import replace

import pytest

pytest.importorskip("rich")
from rich.console import Console

from dlm_bench import tables
from dlm_bench.peers import SDPA_BACKENDS
from dlm_bench.tables import markdown, print_tables
from dlm_roofline.forward import DENOISE, STEP_NAMES
from dlm_roofline.records import Peer, Record, Skipped
from dlm_roofline.step_cost import STAGES


def _attention(record: Record) -> list[tables.Table]:
    return [t for t in tables.tables(record) if t.title.startswith("block_attention")]


def test_figures_of_a_memory_bound_and_a_compute_bound_row(record: Record) -> None:
    table, _ = _attention(record)
    first, second = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    # 4 GB in 2 ms under a roof of 4 TB/s; 0.1 TFLOP would take an eighth of the time.
    assert first["shape"] == "1 x 32, context 1024"
    assert (first["ms"], first["floor ms, predicted"]) == ("2.00", "1.00")
    assert (first["GB/s"], first["TFLOP/s"]) == ("2,000", "50.0")
    assert (first["% of roof"], first["held by"]) == ("50%", "memory")
    # 1.2 TFLOP in 2 ms under 800 TFLOP/s.
    assert (second["% of roof"], second["held by"]) == ("75%", "compute")


def test_ratios_above_one_are_faster_than_the_peer_and_refusals_are_shown(record: Record) -> None:
    _, table = _attention(record)
    first, second = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (first["SDPA math"], second["SDPA math"]) == ("2.50x", "-")
    assert (first["SDPA flash"], second["SDPA flash"]) == ("refused", "0.50x")
    assert table.notes == ["Refused, SDPA flash: no kernel"]


def test_the_terminal_shows_ceilings_ridge_datasheet_and_what_was_skipped(record: Record) -> None:
    console = Console(width=160)
    with console.capture() as capture:
        print_tables(record, console)
    text = capture.get()
    for words in (
        "4,000",
        "4,800",
        "Ridge, FLOP/byte: bfloat16 200.0",
        "out of time",
        "cold-cache",
    ):
        assert words in text
    assert "cut short" not in text


def _rows(table: tables.Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def test_forwards_are_shown_by_kind_and_compactly(forwards: Record) -> None:
    found = {table.title: table for table in tables.tables(forwards)}
    of_model = [title for title in found if "8B" in title]
    assert of_model == [
        "Denoising step of 8B, bfloat16",
        "Denoising step of 8B: peers' time over ours",
        "Denoising step of 8B, context 1024: ms, % of roof",
        "Denoising step of 8B: ms, % of roof",
        "AR decoding step of 8B: ms, % of roof",
    ]
    # Figures of the one step whose stages have peers: its stages, and the whole.
    detail = found[of_model[0]]
    assert [row[0] for row in detail.rows] == ["1 x 32, context 1024", *[""] * 5]
    assert detail.notes == ["1 x 32, context 1024: the stages add up to 100% of the whole."]
    assert sum(len(found[title].rows) for title in of_model) < 25


def test_grids_have_batches_down_and_stages_or_contexts_across(forwards: Record) -> None:
    found = {table.title: table for table in tables.tables(forwards)}
    stages = found["Denoising step of 8B, context 1024: ms, % of roof"]
    assert stages.header == ["shape", *STAGES[:-1], "whole"]
    assert [row[0] for row in stages.rows] == ["1 x 32", "8 x 32", "64 x 32"]
    assert all(cell.endswith(", 50%") for row in stages.rows for cell in row[1:])
    assert stages.notes == ["The stages add up to 100% of the whole."]

    whole = found["Denoising step of 8B: ms, % of roof"]
    assert whole.header == ["shape", "context 1024", "context 4096"]
    rows = _rows(whole)
    # The model's own weights first, and what was not measured is a dash.
    assert list(rows) == ["1 x 32", "8 x 32", "64 x 32", "1 x 32, int8 weights"]
    assert rows["8 x 32"]["context 4096"] == "-"
    step = next(row for row in forwards.rows if row.name == STEP_NAMES[DENOISE])
    assert step.forward.batch == 8
    assert rows["8 x 32"]["context 1024"] == f"{1e3 * step.timing.median:.3g}, 50%"
    decode = _rows(found["AR decoding step of 8B: ms, % of roof"])
    assert [list(row.values()).count("-") for row in decode.values()] == [1, 1]


def test_stages_far_from_the_whole_are_pointed_out(forwards: Record) -> None:
    for i, row in enumerate(forwards.rows):
        if row.kind == "step" and row.forward.batch == 64:
            slow = replace(row.timing, median=4 * row.timing.median, high=1.0)
            forwards.rows[i] = replace(row, timing=slow)
    title = "Denoising step of 8B, context 1024: ms, % of roof"
    (table,) = (each for each in tables.tables(forwards) if each.title == title)
    (note,) = table.notes
    assert note.startswith("The stages add up to 25% to 100% of the whole. Far from 100%")


def test_all_stages_at_one_context_make_one_grid(forwards: Record) -> None:
    """Whole forwards have a grid of their own only if there is one without its stages."""
    rows = [row for row in forwards.rows if row.forward]
    rows = [row for row in rows if row.forward.weights is None and row.forward.kind == DENOISE]
    kept = replace(forwards, rows=[row for row in rows if row.forward.context == 1024])
    titles = [table.title for table in tables.tables(kept)]
    assert "Denoising step of 8B, context 1024: ms, % of roof" in titles
    assert "Denoising step of 8B: ms, % of roof" not in titles


@pytest.mark.parametrize("width", [40, 80, 150])
def test_no_figure_is_cut_on_a_terminal_of_any_width(record: Record, width: int) -> None:
    """The grid of a GPU: its largest shape, its figures, and every peer it has."""
    names = [f"{cat}{name}" for cat in ("", "cat + ") for name in ("FlexAttention", *SDPA_BACKENDS)]
    timings = [replace(record.rows[0].timing, median=x, high=x) for x in range(1234, 1244)]
    peers = [Peer(name, timing, None) for name, timing in zip(names, timings, strict=True)]
    shape = {"batch": 64, "block": 32, "context": 32768}
    record.rows.insert(0, replace(record.rows[0], shape=shape, peers=peers))
    record.skipped.append(Skipped("confidence batch 64, block 32, vocab 131072", "no room " * 30))
    console = Console(width=width)
    with console.capture() as capture:
        print_tables(record, console)
    text = capture.get()
    assert "…" not in text
    lines = [line.split() for line in text.splitlines()]
    drawn = [line for line in lines if line[:5] == ["64", "x", "32,", "context", "32768"]]
    titles = {table.title: table for table in tables.tables(record)}
    figures, ratios = (titles[t] for t in titles if t.startswith("block_attention"))
    assert drawn == [figures.rows[-1][0].split() + figures.rows[-1][1:],
                     ratios.rows[-1][0].split() + ratios.rows[-1][1:]]  # fmt: skip
    assert "617000.00x" in drawn[1] and "vocab" in text and text.count("room") == 30


def test_figures_of_ops_fit_80_columns(record: Record) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        print_tables(record, console)
    assert max(map(len, capture.get().splitlines())) <= 80


def test_an_incomplete_record_says_so(record: Record) -> None:
    assert "The run was cut short" in markdown(replace(record, complete=False))


def test_markdown_rows_are_as_wide_as_their_header(forwards: Record) -> None:
    for block in markdown(forwards).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
