"""`dlm roofline advise`: its tables, its JSON line, and its errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from advised_records import CONFIG, MEASURED_SETTINGS, advised, of_device

from dlm_core import cli
from dlm_roofline.acceptance import DIFFUSION, Profile, Setting
from dlm_roofline.advise import OBJECTIVES, QUANTIZATIONS, Quantization
from dlm_roofline.records import Device, Record, save


@pytest.fixture
def saved(grid_record: Record, tmp_path: Path) -> Path:
    return save(grid_record, tmp_path)


def run(*arguments: object) -> int:
    return cli.main(["roofline", "advise", *map(str, arguments)])


def closing(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_prints_ranked_tables(
    saved: Path, grid_record: Record, capsys: pytest.CaptureFixture
) -> None:
    given = ["--model", "8b", "--gpu", "h200", "--records", saved, "--context", "1k,64k"]
    assert run(*given, "--batch", "1,64", "--quantization", "none,int4") == 0
    printed = capsys.readouterr().out
    assert saved.name in printed.replace("\n", "")
    for text in (
        "1,024 tokens of context",
        "65,536 tokens of context",
        "★",
        "does not fit",
        "k 16",
    ):
        assert text in printed
    last = json.loads(printed.splitlines()[-1])
    expected = advised(
        grid_record, batches=[1, 64], contexts=[1024, 65536],
        quantizations=[Quantization(), Quantization("int4")],
    )  # fmt: skip
    best = {each.context: each for each in reversed(expected)}
    assert [each["context"] for each in last["advised"]] == [1024, 65536]
    for each in last["advised"]:
        one = best[each["context"]]
        assert (each["mode"], each["batch"]) == (one.setting.mode, one.batch)
        assert each["tokens_s_user"] == pytest.approx(one.tokens_per_user, abs=1e-3)


def test_the_json_line_alone_holds_the_ranking(saved: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--model", "8b", "--gpu", "h200", "--records", saved, "--context", "64k", "--json"]
    assert run(*given, "--top", "2") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    ranked = json.loads(out)["ranked"]
    assert ranked[0] == json.loads(out)["advised"][0]
    assert [each["rank"] for each in ranked[:2]] == [1, 2]
    assert [each["fits"] for each in ranked[-2:]] == [False, False]
    beyond = [each["front"] for each in ranked[2:] if each["fits"]]
    assert beyond and all(beyond)


def test_models_by_every_name(
    saved: Path, grid_record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    rates = set()
    for name in ("8b", folder, *grid_record.models):
        assert run("--model", name, "--gpu", "h200", "--records", saved, "--json") == 0
        rates.add(closing(capsys)["advised"][0]["tokens_s_user"])
    assert len(rates) == 1


def test_the_small_model_with_a_profile_of_its_own(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "profile.json"
    profile = Profile(1, "small", "made up", [Setting(DIFFUSION, 16, 0.9, 5.0, 0.9)])
    file.write_text(json.dumps(profile, default=vars))
    given = ["--model", "small", "--gpu", "h200", "--records", saved, "--acceptance", file]
    assert run(*given, "--context", "512", "--json") == 0
    (best,) = closing(capsys)["advised"]
    assert (best["mode"], best["size"], best["accuracy"]) == (DIFFUSION, 16, 0.9)


def test_least_accuracy_rules_out_quantising_unless_asked_for(
    saved: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--model", "8b", "--gpu", "h200", "--records", saved, "--json", "--top", 100]
    seen = []
    for more in ([], ["--min-accuracy", 0.6], ["--min-accuracy", 0.6, "--quantization", "int8"]):
        assert run(*given, *more) == 0
        seen.append({each["quantization"] for each in closing(capsys)["ranked"]})
    assert len(seen[0]) == len(QUANTIZATIONS)
    assert seen[1:] == [{"none"}, {"int8"}]


def test_the_command_scores_itself(saved: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(MEASURED_SETTINGS, default=vars))
    assert run("--score", saved, "--acceptance", file) == 0
    printed = capsys.readouterr().out
    assert "regret of" in printed and "bare model" in printed and "at one pace" in printed
    last = json.loads(printed.splitlines()[-1])
    for objective in OBJECTIVES:
        score = last[objective]
        assert (score["cells"], score["worst_regret"]) == (28, pytest.approx(0.0, abs=0.01))
        assert score["worst_regret_bare_model"] >= 0


@pytest.mark.parametrize(
    "more",
    ["--model 8b", "--gpu h200", "--batch 1", "--context 1k", "--quantization int4", "--top 3"],
)
def test_a_score_takes_all_else_from_its_record(saved: Path, more: str, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        run("--score", saved, *more.split())
    assert error.value.code == 2
    assert f"argument {more.split()[0]}: must be left out with --score" in capsys.readouterr().err


WHOLE = {"--model": "8b", "--gpu": "h200"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--model": None}, "argument --model: is missing"),
        ({"--gpu": None}, "argument --gpu: is missing"),
        ({"--model": "9b"}, "argument --model: '9b' is no folder with a config.json; it must be"),
        ({"--gpu": "h2000"}, "argument --gpu: "),
        ({"--gpu": "host"}, "argument --gpu: 'host' needs a record of a CPU"),
        ({"--model": "small"}, "argument --acceptance: is missing; there are published figures for"
         " 3b, 8b, 14b alone"),
        ({"--batch": "0"}, "argument --batch: '0'; it must be a whole number of at least 1"),
        ({"--batch": "1,,8"}, "argument --batch: ''; it must be a whole number"),
        ({"--context": "1x"}, "argument --context: '1x'; it must be a number of tokens"),
        ({"--context": "k"}, "argument --context: 'k'; it must be a number of tokens"),
        ({"--context": "256k"}, "context is 262144; it must be at most 262112, for the model"),
        ({"--objective": "speed"}, "argument --objective: invalid choice: 'speed'"),
        ({"--min-accuracy": "2"}, "argument --min-accuracy: '2'; it must be a share, 0 to 1"),
        ({"--min-accuracy": "high"}, "argument --min-accuracy: 'high'; it must be a share"),
        ({"--min-accuracy": "0.7"}, "min_accuracy is 0.7; it must be at most the best of profile"),
        ({"--quantization": "int3"}, "argument --quantization: 'int3'; it must be one of none"),
        ({"--acceptance": "no.json"}, "no.json: No such file"),
    ],
)  # fmt: skip
def test_a_users_error_is_one_line(
    saved: Path, changes: dict, message: str, capsys: pytest.CaptureFixture
) -> None:
    given = [text for pair in (WHOLE | changes).items() if pair[1] is not None for text in pair]
    with pytest.raises(SystemExit) as error:
        run(*given, "--records", saved)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dlm roofline advise: error: {message}")
    assert said.count("\n") == 1


def test_records_of_two_devices_are_an_error(
    saved: Path, grid_record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    b200 = Device("cuda", "NVIDIA B200", {})
    alone = ("record.device.name is 'NVIDIA B200'", "'NVIDIA H200' by --gpu")
    for name, change, first, said in (
        ("name", {"device": b200}, saved, ("record.device.name is 'NVIDIA B200'", f"in {saved};")),
        ("backend", {"backend": "torch"}, saved, ("record.backend is 'torch'", "and 'triton' in")),
        ("alone", {"device": b200}, None, alone),
    ):
        other = save(replace(grid_record, date="2026-01-01", **change), tmp_path / name)
        with pytest.raises(SystemExit):
            run("--model", "8b", "--gpu", "h200", "--records", *filter(None, (first, other)))
        printed = capsys.readouterr().err
        assert f"in {other}" in printed
        assert all(text in printed for text in said), printed


def test_records_of_other_threads_are_an_error(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = [
        save(of_device(record, f"2026-01-0{threads}", threads=threads), tmp_path)
        for threads in (1, 2)
    ]
    with pytest.raises(SystemExit):
        run("--model", "8b", "--gpu", "host", "--records", *paths)
    said = f"record.device.details.threads is '1' in {paths[0]} and '2' in {paths[1]};"
    assert said in capsys.readouterr().err


def test_a_record_without_cells_to_compare_is_an_error(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    steps = [row for row in record.rows if row.forward.batch < 4]
    with pytest.raises(SystemExit):
        run("--score", save(replace(record, rows=steps), tmp_path))
    assert "holds no batch and context at which two settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "8b on NVIDIA H200: measured in nvidia-h200-"),
        ({"rows": []}, "8b on NVIDIA H200: no forward but ceilings measured in nvidia-h200-"),
        ({"complete": False}, "; cut short: nvidia-h200-"),
    ],
)
def test_the_heading_says_what_was_measured(
    grid_record: Record, tmp_path: Path, capsys, changes: dict, words: str
) -> None:
    path = save(replace(grid_record, **changes), tmp_path)
    assert run("--model", "8b", "--gpu", "h200", "--records", path) == 0
    assert words in " ".join(capsys.readouterr().out.split())
