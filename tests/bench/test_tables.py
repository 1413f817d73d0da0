"""Tables say what the record says, and the README's are made from records alone."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich")
from rich.console import Console

from dlm_bench import tables
from dlm_bench.peers import SDPA_BACKENDS
from dlm_bench.tables import BEGIN, END, NO_RECORDS, markdown, print_tables, rewrite_readme
from dlm_roofline.records import Peer, Record, Skipped, save

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
    path.write_text(f"before\n\n{BEGIN}\nstale\n{END}\n\nafter\n")
    return path


def test_readme_without_records_says_there_are_none(readme: Path, tmp_path: Path) -> None:
    rewrite_readme(readme, tmp_path / "results")
    assert readme.read_text() == f"before\n\n{BEGIN}\n{NO_RECORDS}\n{END}\n\nafter\n"


def test_readme_shows_each_gpus_newest_complete_record(
    readme: Path, tmp_path: Path, record: Record
) -> None:
    results = tmp_path / "results"
    host = replace(record.device, kind="cpu", name="a host")
    for each in (
        record,
        replace(record, date="2026-03-01T00:00:00Z", commit="feedface"),
        replace(record, date="2026-04-01T00:00:00Z", commit="ca57", complete=False),
        replace(record, date="2026-05-01T00:00:00Z", device=host),
        replace(record, date="2026-06-01T00:00:00Z", commit="b0b0", scope="quick"),
        replace(record, date="2026-07-01T00:00:00Z", commit="dada", scope="folder"),
    ):
        save(each, results)
    rewrite_readme(readme, results)
    text = readme.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n") and text.endswith(f"\n{END}\n\nafter\n")
    assert "feedface" in text and "2.50x" in text and "stale" not in text
    assert not any(words in text for words in ("0123456789", "ca57", "a host", "b0b0", "dada"))
    rewrite_readme(readme, results)
    assert readme.read_text() == text


def test_markdown_rows_are_as_wide_as_their_header(record: Record) -> None:
    for block in markdown(record).split("\n\n"):
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
