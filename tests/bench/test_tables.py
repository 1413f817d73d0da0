"""Tables of a record: each measurement, and the figures that follow from it."""

from dataclasses import replace

import pytest
from rich.console import Console

from dlm_bench.tables import in_markdown, print_record, tables
from dlm_roofline.records import BenchRecord
from dlm_roofline.tables import Table

pytest.importorskip("pandas")


def table(record: BenchRecord, title: str) -> Table:
    (found,) = [each for each in tables(record) if each.title.startswith(title)]
    return found


def test_an_op_s_figures_follow_from_its_time(record: BenchRecord) -> None:
    found = table(record, "block_attention, bfloat16")
    first, second = found.frame.to_dict("records")
    # 4 GB and 0.1 TFLOP in 2 ms: at 4 TB/s and 800 TFLOP/s the floor is 1 ms of reading.
    assert first["shape"] == "batch 1, block 32, context 1024"
    assert (first["ms"], first["floor ms"]) == pytest.approx((2.0, 1.0))
    assert (first["GB/s"], first["TFLOP/s"]) == pytest.approx((2000, 50))
    assert (first["% of roof"], first["bound by"]) == (pytest.approx(0.5), "memory")
    assert first["SDPA math"] == pytest.approx(2.5)
    assert (second["SDPA flash"], second["bound by"]) == (pytest.approx(0.5), "compute")
    cells = found.cells
    assert cells[0][-2:] == ["2.50x", "-"] and "50%" in cells[0]
    assert found.notes == ["Refused, SDPA flash: no kernel"]


def test_forwards_stand_beside_floor_and_prediction(record: BenchRecord) -> None:
    frame = table(record, "Forwards of 8B").frame
    assert len(frame) == 7 and list(frame["% of roof"]) == pytest.approx([0.5] * 7)
    assert list(frame["ms"]) == pytest.approx([2 * x for x in frame["floor ms"]])
    # A prediction is the floors of the launches and a node's time for each.
    assert (frame["predicted ms"] > frame["floor ms"]).all()
    int8 = frame[frame.forward == "denoising step, int8 weights"]
    plain = frame[
        (frame.forward == "denoising step") & (frame.batch == 1) & (frame.context == 1024)
    ]
    assert float(int8.ms.iloc[0]) < float(plain.ms.iloc[0])
    assert float(plain["plain torch"].iloc[0]) == pytest.approx(3.0)


def test_stages_add_up_beside_their_peers(record: BenchRecord) -> None:
    stages = table(record, "Stages of 8B: ms")
    assert len(stages.frame) == 3 and list(stages.frame["sum / whole"]) == pytest.approx([1.0] * 3)
    assert all("(50%)" in cell for cell in stages.frame["attention"])
    peers = table(record, "Stages of 8B: plain").frame
    assert len(peers) == 1 and peers["attention"].iloc[0] == pytest.approx(3.0)


def test_targets_are_of_gpus_and_ceilings_have_datasheets(record: BenchRecord) -> None:
    ceilings = table(record, "Ceilings").frame.set_index("ceiling")
    assert ceilings.loc["read", "best: the roof"] == pytest.approx(4000)
    assert ceilings.loc["read", "datasheet"] == pytest.approx(4800)
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
