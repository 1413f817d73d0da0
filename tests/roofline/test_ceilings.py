"""Ceilings are rates of work that was done."""

import time

import pytest
import torch

from dlm_roofline import ceilings
from dlm_roofline.ceilings import measure_ceilings, run_seconds

HOST = torch.device("cpu")


def test_run_seconds_times_the_work_and_not_what_comes_before() -> None:
    calls = []
    seconds = run_seconds(
        lambda: (calls.append("run"), time.sleep(0.002)),
        HOST,
        runs=3,
        before=lambda: (calls.append("before"), time.sleep(0.02)),
    )
    assert calls == ["before", "run"] * 3 and len(seconds) == 3
    assert all(0.002 <= each for each in seconds) and min(seconds) < 0.02


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes so small that they measure caches."""
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setitem(ceilings.MATMUL_SIZE, "cpu", 256)


def test_ceilings_of_the_host(small: None) -> None:
    """By a real clock: a core does tens of GB/s and GFLOP/s, and calls torch in a microsecond."""
    precision = torch.get_float32_matmul_precision()
    measured = measure_ceilings(HOST, runs=3)
    assert torch.get_float32_matmul_precision() == precision
    streams = (measured.read, measured.copy, measured.write)
    assert all(1e8 < each.median <= each.best < 1e13 and each.runs == 3 for each in streams)
    assert 1e9 < measured.matmul["float32"].best < 1e14
    assert 1e-8 < measured.launch.best <= measured.launch.median < 1e-3
    assert (measured.exps, measured.l2, measured.graph_node) == (None, None, None)


def test_rates_are_the_counted_work_over_the_time_of_a_run(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run takes 1, 2 and 6 seconds by this clock, and really runs."""

    def three_runs(fn, device, *, runs: int) -> list[float]:
        fn()
        return [1.0, 2.0, 6.0]

    monkeypatch.setattr(ceilings, "run_seconds", three_runs)
    # To this clock no product is slower than another.
    monkeypatch.setattr(ceilings, "_is_emulated", lambda *_: False)
    monkeypatch.setattr(ceilings, "LAUNCHES", 10)
    measured, n_bytes = measure_ceilings(HOST, runs=3), 8 << 20
    assert (measured.read.best, measured.read.median) == (n_bytes, n_bytes / 2)
    moved = [each.best / n_bytes for each in (measured.write, measured.copy)]
    assert moved == [1, 2]
    products = {name: each.best for name, each in measured.matmul.items()}
    assert products == dict.fromkeys(("float32", "bfloat16", "int8"), 2 * 256**3)
    assert (measured.launch.best, measured.launch.median) == pytest.approx((0.1, 0.2))


def test_products_that_a_host_emulates_or_lacks_are_left_out(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_):
        raise RuntimeError("not implemented")

    monkeypatch.setattr(ceilings, "_is_emulated", lambda name, rate: name == "bfloat16")
    assert set(measure_ceilings(HOST, runs=1).matmul) == {"float32", "int8"}
    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert set(measure_ceilings(HOST, runs=1).matmul) == {"float32"}


@pytest.mark.parametrize("name, out", [("float8_e4m3fn", "bfloat16"), ("int8", "int32")])
def test_products_of_8_bits_are_whole_ones(name: str, out: str) -> None:
    product = ceilings._matmul(name, 64, HOST)()
    assert product.shape == (64, 64) and product.dtype == getattr(torch, out)
    assert product.float().std() > 1  # of random numbers: none of the factors is 0


def test_each_stream_buffer_takes_at_most_an_eighth_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[float] = []
    assert ceilings.free_memory(HOST) > 1 << 20
    monkeypatch.setattr(ceilings, "free_memory", lambda _: 10_000_000)
    one = ceilings.Ceiling(1.0, 1.0, 1)
    monkeypatch.setattr(ceilings, "_rate", lambda work, *_: counted.append(work) or one)
    assert ceilings._bandwidths(HOST, 1).keys() == {"read", "copy", "write"}
    n_bytes = 4 * 65536 * 4
    assert set(counted) == {n_bytes, 2 * n_bytes} and n_bytes <= 10_000_000 / 8


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


@pytest.mark.parametrize("programs", [1, 5], ids=["one program", "programs that begin apart"])
def test_the_kernel_reads_a_buffer_in_l2_round_and_round(triton_device: str, programs: int) -> None:
    tiles, times = 3, 8
    x = torch.randn(tiles * 4096, device=triton_device)
    out = torch.full((programs,), torch.nan, device=triton_device)
    ceilings.read_again(x, out, times)
    sums = x.view(tiles, -1).double().sum(1)
    begins = [program * tiles // programs for program in range(programs)]
    expected = [sum(sums[(begin + i) % tiles] for i in range(times)) for begin in begins]
    torch.testing.assert_close(out.double(), torch.stack(expected), rtol=1e-3, atol=1e-2)


@pytest.mark.gpu
def test_ceilings_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings.MATMUL_SIZE, "cuda", 2048)
    measured = measure_ceilings(torch.device("cuda", torch.cuda.current_device()), runs=3)
    assert {"bfloat16", "float16", "tf32", "float32"} <= set(measured.matmul)
    assert measured.l2.best > measured.read.best > 1e11
    assert 1e11 < measured.exps.best < 1e14
    assert 1e-7 < measured.graph_node.best < measured.launch.best < 1e-3
