"""Datasheets are dense, complete, plausible against each other, and found by name."""

import pytest

from dlm_roofline.ceilings import Ceiling, Ceilings
from dlm_roofline.datasheets import DATASHEETS, Datasheet, datasheet_of

all_sheets = pytest.mark.parametrize(
    "sheet", DATASHEETS.values(), ids=lambda sheet: sheet.name_short
)

# Bandwidth in TB/s, and the ridge in FLOP/byte: of a rate with sparsity it would be twice as far.
FIGURES = {
    "NVIDIA A100-SXM4-40GB": (1.555, 201), "NVIDIA A100-SXM4-80GB": (2.039, 153),
    "NVIDIA A100 80GB PCIe": (1.935, 161), "NVIDIA H100 80GB HBM3": (3.35, 295),
    "NVIDIA H100 PCIe": (2.0, 378), "NVIDIA H100 NVL": (3.9, 214), "NVIDIA H200": (4.8, 206),
    "NVIDIA B200": (8.0, 281), "NVIDIA GB200": (8.0, 312.5), "AMD Instinct MI300X": (5.3, 247),
    "NVIDIA GeForce RTX 4090": (1.008, 164),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (1.792, 281),
}  # fmt: skip


@pytest.mark.parametrize(("name", "figures"), FIGURES.items())
def test_datasheet_of_a_device_as_torch_names_it(name: str, figures: tuple[float, float]) -> None:
    sheet, (terabytes, ridge) = DATASHEETS[name], figures
    assert sheet.bandwidth == terabytes * 1e12
    assert sheet.ceilings().roof("bfloat16").ridge == pytest.approx(ridge, abs=0.5)


@all_sheets
def test_figures_are_plausible(sheet: Datasheet) -> None:
    assert 1e12 <= sheet.bandwidth <= 8e12
    assert 24 << 30 <= sheet.memory <= 192 << 30
    assert sheet.exps is None or 2e12 < sheet.exps < 8e12
    rates = sheet.matmul
    assert rates["bfloat16"] == rates["float16"]
    assert rates["bfloat16"] / rates["tf32"] == pytest.approx(2, rel=0.03)
    assert rates["float32"] <= rates["tf32"]
    # Of a GeForce card only products of floats are halved by accumulating in fp32.
    times = 4 if "GeForce" in sheet.name else 2
    assert rates["int8"] / rates["bfloat16"] == pytest.approx(times, rel=0.01)
    # Only Ampere has no float8.
    if not sheet.name_short.startswith("a100"):
        assert rates["float8_e4m3fn"] / rates["bfloat16"] == pytest.approx(2, rel=0.01)
    else:
        assert "float8_e4m3fn" not in rates


@pytest.mark.parametrize(
    "name, sms, boost_ghz",
    [("h200", 132, 1.98), ("a100-80gb", 108, 1.41), ("h100-pcie", 114, 1.755)]
    + [("rtx-4090", 128, 2.52), ("rtx-pro-6000", 188, 2.617)],
)
def test_exponentials_are_16_an_sm_and_boost_clock(name: str, sms: int, boost_ghz: float) -> None:
    assert datasheet_of(name).exps == pytest.approx(16 * sms * boost_ghz * 1e9, rel=0.005)


@all_sheets
def test_is_found_by_its_names_in_any_case(sheet: Datasheet) -> None:
    for name in (sheet.name, sheet.name_short, sheet.name.lower(), sheet.name_short.upper()):
        assert datasheet_of(name) is sheet
    with pytest.raises(ValueError, match=f"'{sheet.name} 2'.*{sheet.name_short}"):
        datasheet_of(f"{sheet.name} 2")


@pytest.mark.parametrize("name", ["h200", "mi300x"], ids=["exps", "no exps"])
def test_ceilings_are_the_figures_and_of_no_run(name: str) -> None:
    sheet = datasheet_of(name)
    bandwidth, exps = Ceiling(sheet.bandwidth, sheet.bandwidth, 0), sheet.exps
    assert sheet.ceilings() == Ceilings(
        read=bandwidth,
        copy=bandwidth,
        write=bandwidth,
        matmul={dtype: Ceiling(rate, rate, 0) for dtype, rate in sheet.matmul.items()},
        exps=exps and Ceiling(exps, exps, 0),
    )
