"""Tables of a record: each measurement, and the figures that follow from it."""

from dataclasses import replace

import pytest
from made_up import MODEL, PEAK, PEER_SLOWDOWN, READ, SLOWDOWN
from rich.console import Console

from dlm_bench.tables import in_markdown, print_record, tables
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.records import BenchRecord
from dlm_roofline.tables import Table

from .conftest import peer

pytest.importorskip("pandas")


def table(record: BenchRecord, title: str) -> Table:
    (found,) = [each for each in tables(record) if each.title.startswith(title)]
    return found


def test_an_op_s_figures_follow_from_its_time(record: BenchRecord) -> None:
    found = table(record, "block_attention, bfloat16")
    first, second = found.frame.to_dict("records")
    assert first["shape"] == "batch 1, block 32, context 1024"
    assert (first["ms"], first["floor ms"]) == pytest.approx((2.0, 1.0))
    assert first["GB/s"] == pytest.approx(0.5e-9 * READ)
    assert first["TFLOP/s"] == pytest.approx(0.05e-12 * PEAK)
    assert (first["% of roof"], first["bound by"]) == (pytest.approx(0.5), "memory")
    assert first["SDPA math"] == pytest.approx(2.5)
    assert (second["SDPA flash"], second["bound by"]) == (pytest.approx(0.5), "compute")
    cells = found.cells
    assert cells[0][-2:] == ["2.50x", "-"] and "50%" in cells[0]
    assert found.notes == ["Refused, SDPA flash: no kernel"]


def test_forwards_stand_beside_floor_and_prediction(record: BenchRecord) -> None:
    frame = table(record, f"Forwards of {MODEL}").frame
    assert len(frame) == 7 and list(frame["% of roof"]) == pytest.approx([1 / SLOWDOWN] * 7)
    assert list(frame["ms"]) == pytest.approx([SLOWDOWN * x for x in frame["floor ms"]])
    # A prediction is the floors of the launches and a node's time for each.
    assert (frame["predicted ms"] > frame["floor ms"]).all()
    assert list(frame["plain torch"]) == pytest.approx([PEER_SLOWDOWN] * 7)
    *plain, int8 = frame[frame.forward.str.startswith("denoising")].itertuples()
    places = [(row.context, row.batch) for row in plain]
    assert places == [(1024, 1), (1024, 8), (1024, 64), (4096, 1)]
    assert int8.forward == "denoising step, int8 weights" and int8.ms < plain[0].ms


def test_stages_add_up_beside_their_peers(record: BenchRecord) -> None:
    record.rows[:5] = [
        replace(row, peers=[peer("plain torch", 3 * row.timing.median)]) for row in record.rows[:5]
    ]
    stages = table(record, f"Stages of {MODEL}: ms").frame
    assert list(stages.batch) == [1, 8, 64]
    assert list(stages["sum / whole"]) == pytest.approx([1.0] * 3)
    assert all("(80%)" in cell for cell in stages["attention"])
    peers = table(record, f"Stages of {MODEL}: plain").frame
    assert list(peers.batch) == [8] and peers["attention"].item() == pytest.approx(3.0)


def test_targets_are_of_gpus_and_ceilings_have_datasheets(record: BenchRecord) -> None:
    ceilings = table(record, "Ceilings").frame.set_index("ceiling")
    assert ceilings.loc["read", "best: the roof"] == pytest.approx(READ / 1e9)
    assert ceilings.loc["read", "datasheet"] == DATASHEETS["NVIDIA H200"].bandwidth / 1e9
    assert ceilings.loc["matrix product, bfloat16", "unit"] == "TFLOP/s"
    holds = table(record, "Targets").frame
    assert set(holds["holds"]) == {"yes", "NO", "not measured"}
    host = replace(record, device=replace(record.device, kind="cpu", name="a host"))
    titles = [each.title for each in tables(host)]
    assert "Targets" not in titles and "GFLOP/s" in table(host, "block_attention").frame


def test_what_was_skipped_and_cut_short_is_said(record: BenchRecord) -> None:
    cut = replace(record, complete=False)
    console = Console(width=60, record=True, file=open("/dev/null", "w"))
    print_record(cut, console)
    for text in (console.export_text(), in_markdown(cut)):
        assert "INCOMPLETE" in text and "out of time" in text and "Refused, SDPA flash" in text
    assert "| batch 1, block 32, context 1024 | 2.00 |" in in_markdown(cut)
