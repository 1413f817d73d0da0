"""Tables say what the record says, and the README's are made from records alone."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich")
from rich.console import Console

from dlm_bench import tables
from dlm_bench.peers import SDPA_BACKENDS
from dlm_bench.tables import (
    BEGIN,
    END,
    MODEL_BEGIN,
    MODEL_END,
    NO_RECORDS,
    markdown,
    model_table,
    print_tables,
    rewrite_readme,
)
from dlm_roofline.forward import DENOISE, STEP_NAMES
from dlm_roofline.model_check import model_check, outlier_lines
from dlm_roofline.records import Peer, Record, Skipped, save
from dlm_roofline.step_cost import STAGES
from dlm_roofline.text import percent

ROOT = Path(__file__).parents[2]


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


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{BEGIN}\nstale\n{END}\n\nafter\n{MODEL_BEGIN}\nold\n{MODEL_END}\n")
    return path


def test_readme_without_records_says_there_are_none(readme: Path, tmp_path: Path) -> None:
    rewrite_readme(readme, tmp_path / "results")
    text = readme.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n{NO_RECORDS}\n{END}\n\nafter\n{MODEL_BEGIN}\n")
    assert "old" not in text and text.endswith(f"\n{MODEL_END}\n")


def test_readme_shows_each_gpus_newest_complete_record(
    readme: Path, tmp_path: Path, record: Record
) -> None:
    results = tmp_path / "results"
    host = replace(record.device, kind="cpu", name="a host")
    of_host = replace(record.ceilings, graph_node=None)
    for each in (
        record,
        replace(record, date="2026-03-01T00:00:00Z", commit="feedface"),
        replace(record, date="2026-04-01T00:00:00Z", commit="ca57", complete=False),
        replace(record, date="2026-05-01T00:00:00Z", device=host, ceilings=of_host),
        replace(record, date="2026-06-01T00:00:00Z", commit="b0b0", scope="quick"),
        replace(record, date="2026-07-01T00:00:00Z", commit="dada", scope="folder"),
    ):
        save(each, results)
    rewrite_readme(readme, results)
    text = readme.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n") and f"\n{END}\n\nafter\n" in text
    assert "feedface" in text and "2.50x" in text and "stale" not in text
    assert not any(words in text for words in ("0123456789", "ca57", "a host", "b0b0", "dada"))
    rewrite_readme(readme, results)
    assert readme.read_text() == text


def test_the_models_table_has_a_line_a_device(forwards: Record) -> None:
    check = model_check(forwards)
    lines = model_table([replace(forwards, rows=[]), forwards]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:3] == [forwards.device.name, forwards.commit[:7], str(len(check.counted))]
    assert cells[3:5] == [percent(check.median), percent(check.worst)]
    assert cells[5] == ("holds" if check.holds else "missed")
    assert [line[2:] for line in lines if line.startswith("- ")] == outlier_lines(check)


def test_markdown_rows_are_as_wide_as_their_header(forwards: Record) -> None:
    for block in markdown(forwards).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_readme_without_markers_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("words")
    with pytest.raises(ValueError, match="README.md lacks the markers"):
        rewrite_readme(path, tmp_path)
    assert path.read_text() == "words"


def test_a_bad_record_stops_the_command_and_leaves_the_readme(
    readme: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    assert tables.main([str(readme)]) == 1
    assert "bad.json: schema is None" in capsys.readouterr().err
    assert "stale" in readme.read_text()


def test_the_projects_readme_shows_what_its_records_hold(tmp_path: Path) -> None:
    committed = ROOT / "README.md"
    rewritten = tmp_path / "README.md"
    rewritten.write_text(committed.read_text(encoding="utf-8"), encoding="utf-8")
    rewrite_readme(rewritten, ROOT / "bench" / "results")
    assert rewritten.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
