"""A host's bandwidths beside likwid-bench's: how they are compared, and what the record says."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dlm_bench import bandwidth_check
from dlm_bench.bandwidth_check import RECORD, Check, Compared, load, table
from dlm_roofline import ceilings
from dlm_roofline.ceilings import Stream
from dlm_roofline.records import Device

PRINTED = "Data volume (Byte):\t65536000000\nMByte/s:\t\t31208.13\nCycles per update:\t0.66\n"


@pytest.fixture
def likwid(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A likwid-bench that prints at once, 31 GB/s or for SSE 32; what it was called with."""
    calls: list[list[str]] = []

    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        calls.append(command[1:])
        printed = "likwid-bench -- Version 5.2.2\n" if command[1] == "-v" else PRINTED
        if command[2:] and command[2].endswith("_sse"):
            printed = PRINTED.replace("31208.13", "32208.13")
        return subprocess.CompletedProcess(command, 0, printed, "")

    monkeypatch.setattr(bandwidth_check.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(bandwidth_check.subprocess, "run", run)
    monkeypatch.setattr(bandwidth_check, "describe_device", lambda _: Device("cpu", "a host", {}))
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setattr(bandwidth_check, "MOVED", 48 << 20)
    return calls


def test_both_stream_over_the_same_buffers_on_as_many_threads(
    likwid: list[list[str]], tmp_path: Path, capsys
) -> None:
    path = tmp_path / "check.json"
    assert bandwidth_check.main(["--out", str(path), "--turns", "2"]) == 0
    check = load(path)
    *lines, last = capsys.readouterr().out.strip().split("\n")
    assert "\n".join(lines) == table(check)
    assert last == f"within 15%: {'yes' if check.agrees else 'no'}"
    assert check.buffer == 8 << 20 and check.versions["likwid"] == "5.2.2"
    assert [each.name for each in check.kernels] == ["read", "copy", "write", "triad"]
    for each, buffers in zip(check.kernels, (1, 2, 1, 3), strict=True):
        assert each.theirs.endswith("_sse")  # the fastest of its widths
        assert each.their_rates == [32208.13e6] * 2 and len(each.our_rates) == 2
        size = f"N:{buffers * check.buffer // 1000}kB:{check.threads}"
        assert likwid.count(["-t", each.theirs, "-w", size, "-i", str(6 // buffers)]) == 2


def test_the_fastest_of_our_ways_counts_by_its_median(
    likwid: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = torch.device("cpu")
    rates = {"erratic": iter([9.0, 1.0, 1.0]), "steady": iter([2.0, 3.0, 2.0])}
    made = {name: Stream(host, 1, list(rates)) for name in bandwidth_check.KERNELS}
    monkeypatch.setattr(bandwidth_check, "streams", lambda _: made)
    monkeypatch.setattr(bandwidth_check, "KERNELS", {"read": (("load",), 1)})
    monkeypatch.setattr(bandwidth_check, "_sustained", lambda way, *_: next(rates[way]))
    (read,) = bandwidth_check.compare(3).kernels
    assert read.our_rates == [2.0, 3.0, 2.0]


def test_without_likwid_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(bandwidth_check.shutil, "which", lambda _: None)
    monkeypatch.setattr(bandwidth_check, "streams", lambda _: pytest.fail("measured"))
    assert bandwidth_check.main(["--out", str(tmp_path / "check.json")]) == 1
    assert "likwid-bench is not on PATH; Debian's package likwid has it" in capsys.readouterr().err


@pytest.mark.parametrize("printed", ["Unknown test case load_x", "MByte/s:\t0.00"])
def test_a_kernel_that_prints_no_rate_is_an_error(
    monkeypatch: pytest.MonkeyPatch, likwid: list[list[str]], printed: str
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", printed)
    monkeypatch.setattr(bandwidth_check.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match=f"-t load_x printed no rate above 0: {printed}"):
        bandwidth_check._likwid("load_x", 1 << 20, 1, 2)


def test_a_call_that_does_not_end_is_an_error(
    monkeypatch: pytest.MonkeyPatch, likwid: list[list[str]], capsys, tmp_path: Path
) -> None:
    def hang(command: list[str], *, timeout: float, **_) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(bandwidth_check.subprocess, "run", hang)
    assert bandwidth_check.main(["--out", str(tmp_path / "check.json")]) == 1
    assert "likwid-bench -v did not end within 120 s" in capsys.readouterr().err


def test_what_does_not_add_up_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(bandwidth_check, "compare", lambda _: Compared("read", "load", [1], [1], 2))
    assert bandwidth_check.main(["--out", str(tmp_path / "check.json")]) == 1
    assert "bandwidth_check: read: ratio is 2; its rates" in capsys.readouterr().err


def test_what_cannot_be_recorded_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(bandwidth_check, "compare", lambda _: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        bandwidth_check.main(["--turns", "0"])
    assert "--turns: is 0; it must be at least 1" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert bandwidth_check.main(["--out", str(tmp_path / "file" / "check.json")]) == 1
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ratio", "agrees"), [(0.84, False), (0.86, True), (1.14, True), (1.16, False)]
)
def test_one_kernel_further_off_than_15_percent_is_too_far(ratio: float, agrees: bool) -> None:
    same = Compared("read", "load", [2.0], [2.0], 1.0)
    off = Compared("copy", "copy", [ratio], [1.0], ratio)
    kernels = [same, off, same]
    check = Check(1, "2026-01-02", Device("cpu", "a host", {}), {}, 2, 8 << 20, kernels)
    assert check.agrees is agrees


def test_a_ratio_that_its_rates_do_not_give_is_refused(
    likwid: list[list[str]], tmp_path: Path
) -> None:
    right = Compared("read", "load", [3.0, 1.0, 2.0], [4.0, 4.0, 5.0], 0.5)
    with pytest.raises(ValueError, match=r"read: ratio is 0\.6; its rates give 0\.5"):
        replace(right, ratio=0.6)
    path = tmp_path / "check.json"
    bandwidth_check.main(["--out", str(path), "--turns", "1"])
    values = json.loads(path.read_text(encoding="utf-8"))
    values["kernels"][1]["ratio"] *= 1.5
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=r"check\.json: record\.kernels\[1\]: copy: ratio is"):
        load(path)


def test_the_record_agrees_within_15_percent_and_the_readmes_say_so() -> None:
    folder = (RECORD.parents[1] / "README.md").read_text(encoding="utf-8")
    project = (RECORD.parents[3] / "README.md").read_text(encoding="utf-8")
    check = load()
    assert all(len(rates) >= 5 for each in check.kernels for rates in _rates(each))
    assert check.agrees
    assert table(check) in folder
    differ = f"edians differ by {max(abs(each.ratio - 1) for each in check.kernels):.0%} at most"
    assert differ in " ".join(folder.split()) and differ in " ".join(project.split())
    by_whom = f"likwid-bench {check.versions['likwid']} on {check.threads} threads"
    assert by_whom in " ".join(folder.split())


def _rates(each: Compared) -> tuple[list[float], list[float]]:
    return each.our_rates, each.their_rates
