"""`dlm roofline advise`: its tables, its JSON line, and its errors."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dlm_core import PRESETS, cli
from dlm_core.checkpoint import SMALL_MODEL
from dlm_roofline import records
from dlm_roofline.acceptance import PUBLISHED, Profile, Setting
from dlm_roofline.advise.ranking import QUANTIZATIONS
from dlm_roofline.records import BenchRecord, save


@pytest.fixture
def saved(grid_record: BenchRecord, tmp_path: Path) -> Path:
    return save(grid_record, tmp_path / grid_record.file_name)


@pytest.fixture(autouse=True)
def nothing_committed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path / "committed")
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture, *arguments: object, gpu: str = "h200") -> tuple[str, dict]:
    """What it prints, its line breaks as spaces; and its closing line."""
    given = ["--gpu", gpu, "--batch", 1, *arguments]
    assert cli.main(["roofline", "advise", *map(str, given)]) == 0
    *text, closing = capsys.readouterr().out.splitlines()
    return " ".join(" ".join(text).split()), json.loads(closing)


def test_tables_and_closing_line(saved: Path, capsys) -> None:
    given = ["--model", "8b", "--records", saved, "--context", "1k,64k", "--batch", "1,64"]
    text, closing = run(capsys, *given, "--quantization", "none,int4", "--top", 3)
    for words in (
        f"8b on NVIDIA H200: measured in {saved.name} tokens per forward: Nemotron",
        "1,024 tokens of context, most tokens/s of a user first",
        "65,536 tokens of context", "16 ways, of which 8 do not fit; --top shows more",
        "linear_spec 32 ★ int4 1", "scaled from a measurement", "64% does not fit -",
        "diffusion 32, ≥ 0.9", "projections and MLP: memory",
    ):  # fmt: skip
        assert words in text, words
    near, far = closing.pop("advised")
    assert closing == {
        "model": "8b",
        "device": "NVIDIA H200",
        "objective": "latency",
        "profile": "8b",
        "record": saved.name,
    }
    assert near["setting"] == asdict(PUBLISHED["8b"].settings[2])
    assert near["how_sure"] == "scaled from a measurement" and near["front"]
    assert [(each["context"], each["quantization"], each["batch"]) for each in (near, far)] == [
        (1024, "int4", 1), (65536, "int4", 1),
    ]  # fmt: skip


def test_what_rests_on_a_floor_is_said_to_be_at_most(capsys) -> None:
    text, closing = run(capsys, "--model", "8b", "--objective", "throughput")
    assert "8b on NVIDIA H200: datasheet, nothing measured" in text
    assert "16,384 tokens of context, most tokens/s of the device first" in text
    (near, _), rate = closing["advised"], closing["advised"][0]["tokens_s_user"]
    assert near["how_sure"] == "unmeasured" and closing["record"] is None
    assert f"at most {rate:,.0f} at most {rate:,.0f}" in text


def test_by_default_the_newest_record_of_the_device_is_taken(
    host_record: BenchRecord, grid_record: BenchRecord, tmp_path: Path, capsys
) -> None:
    cut_short = replace(grid_record, date="2026-02-01T00:00:00Z", complete=False)
    for each in (host_record, grid_record, cut_short):
        save(each, tmp_path / "out" / each.file_name)
    given = ["--model", "8b", "--quantization", "none"]
    _, closing = run(capsys, *given)
    assert closing["record"] == grid_record.file_name
    text, closing = run(capsys, *given, gpu="host")
    assert "8b on AMD EPYC, 2 threads: measured in" in text
    assert closing["record"] == host_record.file_name
    text, _ = run(capsys, *given, "--records", f"out/{cut_short.file_name}")
    assert f"measured in {cut_short.file_name}, which was cut short" in text


def test_models_and_profiles_by_every_name(
    saved: Path, grid_record: BenchRecord, tmp_path: Path, capsys
) -> None:
    (tmp_path / "checkpoint").mkdir()
    config = json.dumps(PRESETS["8b"].to_dict())
    (tmp_path / "checkpoint" / "config.json").write_text(config)
    given, found = ["--records", saved, "--context", "1k"], []
    for name in ("8b", "checkpoint", *grid_record.models):
        found += run(capsys, "--model", name, *given)[1]["advised"]
    assert len(found) == 3 and found[0] == found[1] == found[2]

    profile = Profile(1, "small", "made up", [Setting("diffusion", 16, 0.9, 5.0, 0.9)])
    (tmp_path / "mine.json").write_text(json.dumps(asdict(profile)))
    text, closing = run(capsys, "--model", "small", "--acceptance", "mine.json")
    assert closing["advised"][0]["setting"] == asdict(profile.settings[0])
    assert "tokens per forward: made up" in text
    for name in ("small", SMALL_MODEL):  # whose profile is known, and which ends at 2048
        _, closing = run(capsys, "--model", name)
        assert closing["profile"].startswith("small_model")
        assert [each["context"] for each in closing["advised"]] == [1024]


def test_least_accuracy_rules_out_quantising_unless_asked_for(saved: Path, capsys) -> None:
    given = ["--model", "8b", "--records", saved, "--context", "1k", "--top", 100]
    for more, left in (
        ([], QUANTIZATIONS),
        (["--min-accuracy", 0.6], ["none"]),
        (["--min-accuracy", 0.6, "--quantization", "int8"], ["int8"]),
    ):
        text, _ = run(capsys, *given, *more)
        assert {name for name in QUANTIZATIONS if f" {name} 1 " in text} == set(left)


def test_help_names_no_path_that_need_not_exist(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["roofline", "advise", "--help"])
    assert "/" not in capsys.readouterr().out.replace("tokens/s", "")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--model": "9b"}, "argument --model: '9b' is no folder with a config.json; it must be"),
        ({"--gpu": "b200"}, "argument --records: none is of NVIDIA B200; they are of NVIDIA H200"),
        ({"--model": "tiny"}, "argument --acceptance: is missing; only figures of 3b, 8b, 14b and"),
        ({"--batch": "1,,8"}, "argument --batch: '1,,8'; it must be as 1,8 or 1k"),
        ({"--objective": "speed"}, "argument --objective: invalid choice: 'speed'"),
        ({"--min-accuracy": "0.7"}, "min_accuracy is 0.7; profile '8b' has at most 0.6404"),
        ({"--quantization": "int3"}, "argument --quantization: 'int3'; it must be one of none"),
        ({"--acceptance": "no.json"}, "no.json: No such file"),
    ],
)
def test_a_users_error_is_said_in_a_line(saved: Path, changes: dict, message: str, capsys) -> None:
    given = {"--model": "8b", "--gpu": "h200"} | changes
    with pytest.raises(SystemExit) as error:
        flat = [text for pair in given.items() for text in pair]
        cli.main(["roofline", "advise", *flat, "--records", str(saved)])
    assert error.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"dlm roofline advise: error: {message}")
