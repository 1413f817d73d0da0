"""Ceilings are rates of work that was done; datasheets are dense and found by name."""

import time

import pytest
import torch

from dlm_roofline import ceilings
from dlm_roofline.ceilings import DATASHEETS, measure_ceilings, run_seconds


@pytest.mark.parametrize(
    ("name", "terabytes", "ridge"),
    [
        ("NVIDIA H200", 4.8, 206),
        ("NVIDIA H100 80GB HBM3", 3.35, 295),
        ("NVIDIA A100-SXM4-80GB", 2.039, 153),
        ("NVIDIA B200", 8.0, 281),
    ],
)
def test_datasheet_of_a_device_as_torch_names_it(name, terabytes, ridge) -> None:
    sheet = DATASHEETS[name]
    assert sheet.bandwidth == terabytes * 1e12
    assert sheet.matmul["bfloat16"] / sheet.bandwidth == pytest.approx(ridge, abs=0.5)


def test_a_device_without_a_datasheet_has_none() -> None:
    assert "AMD EPYC" not in DATASHEETS
    assert "NVIDIA H200 NVL" not in DATASHEETS  # and not that of the SXM board


def test_run_seconds_times_the_work_and_not_what_comes_before() -> None:
    calls = []
    seconds = run_seconds(
        lambda: (calls.append("run"), time.sleep(0.002)),
        torch.device("cpu"),
        runs=3,
        before=lambda: (calls.append("before"), time.sleep(0.02)),
    )
    assert calls == ["before", "run"] * 3
    assert len(seconds) == 3
    assert all(0.002 <= each for each in seconds) and min(seconds) < 0.02


def test_ceilings_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes as small as these measure caches; that the rates hang together is all that's asked."""
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setitem(ceilings.MATMUL_SIZE, "cpu", 256)
    precision = torch.get_float32_matmul_precision()
    measured = measure_ceilings(torch.device("cpu"), runs=3)
    assert torch.get_float32_matmul_precision() == precision
    assert "float32" in measured.matmul
    for ceiling in (measured.read, measured.copy, measured.write, *measured.matmul.values()):
        assert ceiling.best >= ceiling.median > 0
        assert ceiling.runs == 3
    # A core does tens of GB/s and GFLOP/s: a wrong unit or count would be off by far more.
    assert 1e8 < measured.read.best < 1e13
    assert 1e9 < measured.matmul["float32"].best < 1e14


def test_stream_buffers_take_at_most_a_quarter_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, free = torch.device("cpu"), 10_000_000
    assert ceilings.free_memory(host) > 1 << 20
    monkeypatch.setattr(ceilings, "free_memory", lambda _: free)
    reads, copied, written = ceilings._bandwidths(host, lambda work, _: work)
    assert written == reads[0] == 4 * 65536 * 4 and copied == 2 * written <= free / 4


def test_the_read_kernel_reads_every_element(triton_device: str) -> None:
    x = torch.randn(2 * 65536, device=triton_device)
    partials = ceilings.partial_sums(x)
    torch.testing.assert_close(partials, x.view(2, -1).sum(1), rtol=1e-3, atol=1e-2)


def test_the_kernel_takes_as_many_exponentials_as_its_rate_counts(triton_device: str) -> None:
    out = torch.empty(2, device=triton_device)
    ceilings.exponentials(out, 3)
    x = torch.arange(4096, dtype=torch.float64) / 4096
    for _ in range(3):
        x = torch.exp2(-x)
    assert out.cpu().double() == pytest.approx(x.sum().expand(2), rel=1e-5)
