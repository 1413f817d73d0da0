"""A host's bandwidths beside likwid-bench's: how they are compared, and what the record says."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dlm_bench import bandwidth_check
from dlm_bench.bandwidth_check import RECORD, Check, Compared, load, table
from dlm_roofline import ceilings
from dlm_roofline.records import Device

PRINTED = "Data volume (Byte):\t65536000000\nMByte/s:\t\t31208.13\nCycles per update:\t0.66\n"


@pytest.fixture
def likwid(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A likwid-bench that prints 31 GB/s at once; what it was called with."""
    calls: list[list[str]] = []

    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        calls.append(command[1:])
        printed = "likwid-bench -- Version 5.2.2\n" if command[1] == "-v" else PRINTED
        return subprocess.CompletedProcess(command, 0, printed, "")

    monkeypatch.setattr(bandwidth_check.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(bandwidth_check.subprocess, "run", run)
    monkeypatch.setattr(bandwidth_check, "describe_device", lambda _: Device("cpu", "a host", {}))
    monkeypatch.setitem(ceilings.STREAM_BYTES, "cpu", 8 << 20)
    monkeypatch.setattr(bandwidth_check, "SECONDS", 0.01)
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
        assert each.their_rates == [31208.13e6] * 2 and len(each.our_rates) == 2
        size = f"N:{buffers * check.buffer // 1000}kB:{check.threads}"
        assert likwid.count(["-t", each.theirs, "-w", size, "-s", "0"]) == 2


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
        bandwidth_check._likwid("load_x", 1 << 20, 2)


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


def test_the_record_agrees_within_15_percent_and_its_folder_says_so() -> None:
    readme = (RECORD.parents[1] / "README.md").read_text(encoding="utf-8")
    if not RECORD.exists():
        assert "No comparison has been recorded yet." in readme
        pytest.skip(f"{RECORD.name} has not been recorded yet")
    check = load()
    assert "No comparison has been recorded yet." not in readme
    assert all(len(rates) >= 5 for each in check.kernels for rates in _rates(each))
    assert check.agrees
    off = max(abs(each.ratio - 1) for each in check.kernels)
    words = " ".join(readme.split())
    assert table(check) in readme
    assert f"The medians differ by {off:.0%} at most." in words
    assert f"likwid-bench {check.versions['likwid']} on {check.threads} threads" in words


def _rates(each: Compared) -> tuple[list[float], list[float]]:
    return each.our_rates, each.their_rates
