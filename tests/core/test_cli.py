"""The dlm command: what it prints, and one line for whatever a user got wrong."""

import json
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from dlm_core import Model, Sampling, cli, generate, infill, load_model, refine
from dlm_core.decoding.new_request import MODES
from dlm_core.generate_command import label_of, tokenizer_of
from dlm_kernels.rules import RULES

PROMPT = [8, 11, 14, 17]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def said(golden: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """What `dlm generate tiny-a` prints on a CPU."""

    def run(*options: str) -> str:
        command = ["generate", str(golden / "tiny-a"), "--device", "cpu", *options]
        assert cli.main(command) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def generated(said: Callable[..., str]) -> Callable[..., dict]:
    """The closing line of `dlm generate tiny-a` after PROMPT."""
    tokens = " ".join(map(str, PROMPT))
    return lambda options: json.loads(said("--tokens", tokens, "--json", *shlex.split(options)))


def closing_line(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


def error_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line that `dlm` says of a user's error."""
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    return error


SAMPLING = Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, seed=4)
SAMPLED = "--temperature 1.5 --top-k 20 --top-p 0.9 --min-p 0.01 --seed 4"


@pytest.mark.parametrize(
    ("flags", "run", "arguments", "options"),
    [
        *((f"--mode {mode}", generate, (9, mode), {}) for mode in MODES),
        *(
            (f"--mode {mode} {SAMPLED}", generate, (9, mode), {"sampling": SAMPLING})
            for mode in MODES
        ),
        *((f"--rule {rule}", generate, (9, "diffusion"), {"rule": rule}) for rule in RULES),
        ("--mode infill --after '29 32 35' --steps 2", infill, (9, [29, 32, 35]), {"steps": 2}),
    ],
)
def test_generate_does_what_the_function_does(
    flags: str,
    run: Callable,
    arguments: tuple,
    options: dict,
    generated: Callable[..., dict],
    model: Model,
) -> None:
    expected = run(model, PROMPT, *arguments, **options)
    shown = generated(f"{flags} --max-new-tokens 9")
    assert (shown["tokens"], shown["forwards"]) == (expected.tokens, expected.forwards)
    assert (shown["committed"], shown["tpf"]) == (expected.committed, expected.tpf)


def test_generate_refines(generated: Callable[..., dict], model: Model) -> None:
    expected = refine(model, PROMPT, [20, 23, 9, 29], block_length=4)
    shown = generated("--mode refine --draft '20 23 9 29' --block-length 4")
    assert shown["tokens"] == expected.tokens


def test_people_read_the_tokens_first_and_programs_the_last_line(
    said: Callable[..., str], generated: Callable[..., dict]
) -> None:
    printed = said("--tokens", "8,11,14,17", "--max-new-tokens", "5")
    alone = generated("--max-new-tokens 5")
    shown = closing_line(printed)
    assert shown["tokens"] == alone["tokens"]
    assert printed.splitlines()[0].split() == ["tokens", *map(str, shown["tokens"])]


def test_terminal_shows_the_block_filling(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rich = pytest.importorskip("rich", reason="the live view is drawn with rich")
    rich.get_console()  # made where nobody sees it, as by whoever wrote before
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")  # one that can draw over itself
    shown = said("--tokens", "13 17 21", "--max-new-tokens", "8")
    assert "·" in shown
    assert closing_line(shown)["tokens"]


GENERATE = "generate {tiny} --tokens 1 "


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("", "COMMAND"),
        ("polish", "COMMAND"),
        ("generate", "--tokens --prompt"),
        ("generate {tiny} --tokens '1 x'", "--tokens: '1 x'"),
        ("generate {tiny} --tokens ''", "prompt is empty"),
        ("generate {tiny} --tokens 3", "prompt holds 3"),
        ("generate {tiny} --prompt hello", "--prompt"),
        ("generate {tiny}/absent --prompt hi", "absent is no folder with a config.json"),
        (GENERATE + "--mode beam", "--mode"),
        (GENERATE + "--max-new-tokens 0", "max_new_tokens is 0"),
        (GENERATE + "--block-length 1", "block_length is 1"),
        (GENERATE + "--device abacus", "--device"),
        (GENERATE + "--dtype int8", "--dtype"),
        (GENERATE + "--quantization int2", "--quantization: invalid choice: 'int2'"),
        (GENERATE + "--rule greedy", "--rule"),
        (GENERATE + "--mode infill", "infill needs --after"),
        (GENERATE + "--draft 4", "argument --draft: needs --mode refine"),
        (GENERATE + "--mode infill --after '4 x'", "--after: '4 x' is not a list of integer ids"),
        (GENERATE + "--mode refine --draft 4 --steps 3", "--steps: refine has none"),
        (GENERATE + "--mode refine --draft 4 --max-new-tokens 3", "--max-new-tokens: refine has"),
        (GENERATE + "--mode refine --draft 4 --rule sdar", "rule is 'sdar'; to revise a draft it"),
        (GENERATE + "--top-p 0.9", "top_p is 0.9 beside"),
        (GENERATE + "--temperature -1", "temperature is -1"),
        (GENERATE + "--trace t.png --mode autoregressive", "--trace: autoregressive has none"),
        ("info 7b", "MODEL: 7b/config.json cannot be read"),
    ],
)
def test_user_s_error_is_one_line_and_status_2(
    command: str, named: str, golden: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = shlex.split(command.format(tiny=golden / "tiny-a"))
    assert named in error_of(arguments, capsys)


# --- a model with a tokenizer, which no one names


@pytest.fixture
def small_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the shipped model: tiny-a with a byte-level tokenizer and special tokens."""
    tokenizers = pytest.importorskip("tokenizers", reason="text prompts need tokenizers")
    names = ["<|pad|>", "<|begin|>", "<|end|>", "<|mask|>", "é", "Ġa", "Ċ", "ĉ", "Ã", "\x1b"]
    names += [f"w{i}" for i in range(len(names), 67)]
    vocabulary = {name: i for i, name in enumerate(names)}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w66"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pieces.decoder = tokenizers.decoders.ByteLevel()
    pieces.add_special_tokens(names[:4])
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
    )
    pieces.save(str(checkpoint / "tokenizer.json"))
    for module in (cli, cli.generate_command):
        monkeypatch.setattr(module, "SMALL_MODEL", checkpoint)
    return checkpoint


@pytest.mark.parametrize("mode", MODES)
def test_without_a_folder_the_small_model_answers(
    mode: str, small_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """In text without special tokens, though the ids end with one."""
    cli.main(["generate", "--prompt", "w59 w62 w65", "--max-new-tokens", "20", "--mode", mode])
    printed = capsys.readouterr().out
    expected = generate(load_model(small_model), [1, 59, 62, 65], 20, mode).tokens
    assert closing_line(printed)["tokens"] == expected
    words = [f"w{i}" for i in expected if i > 9]
    assert [word for word in words if word in printed.splitlines()[0]] == words
    assert "<|" not in printed


def test_text_inside_a_sequence_begins_with_no_bos(
    small_model: Path, capsys: pytest.CaptureFixture
) -> None:
    shown = []
    for prompt in (["--prompt", "w13 w11", "--after", "w20 w23"],
                   ["--tokens", "1 13 11", "--after", "20 23"]):  # fmt: skip
        cli.main(["generate", *prompt, "--mode", "infill", "--max-new-tokens", "2", "--json"])
        shown.append(closing_line(capsys.readouterr().out)["tokens"])
    assert shown[0] == shown[1]


def test_a_build_without_the_small_model_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli.generate_command, "SMALL_MODEL", tmp_path)
    error = error_of(["generate", "--prompt", "sort: 5 3 9 1"], capsys)
    assert "argument FOLDER: this build came without its small model" in error


def test_damaged_tokenizer_is_named(small_model: Path, capsys: pytest.CaptureFixture) -> None:
    (small_model / "tokenizer.json").write_text("{")
    error = error_of(["generate", str(small_model), "--prompt", "hello"], capsys)
    assert "tokenizer.json is not a tokenizer" in error


def test_a_token_is_shown_on_one_line(small_model: Path) -> None:
    tokenizer = tokenizer_of(small_model)
    shown = [label_of(token, tokenizer) for token in (2, 5, 6, 7, 8, 12, 500)]
    assert shown == ["⟨end⟩", "␣a", "↵", "⇥", "�", "w12", "500"]
    assert label_of(9, tokenizer) == "�", "an escape character reached the terminal"
    assert label_of(12, None) == "12"


# --- --trace


@pytest.mark.parametrize(
    ("options", "details"),
    [
        ("--mode diffusion --max-new-tokens 12", "diffusion, rule nemotron"),
        ("--rule entropy_bound --max-new-tokens 8", "diffusion, rule entropy_bound"),
        ("--mode infill --after 'w20 w23' --max-new-tokens 3 --steps 2", "infill, steps 2"),
        ("--mode refine --draft 'w20 w23 w11 w29'", "refine, rule llada2"),
        ("--mode linear_spec --max-new-tokens 12", "linear_spec"),
        ("--mode quadratic_spec --max-new-tokens 12", "quadratic_spec"),
    ],
)
def test_trace_draws_every_mode_that_drafts_or_denoises(
    options: str, details: str, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With the names that the terminal gives tokens, and the same tokens as without."""
    pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
    command = ["generate", "--prompt", "w11 w14 w17", *shlex.split(options)]
    cli.main([*command, "--json"])
    plain, path = closing_line(capsys.readouterr().out), tmp_path / "t.svg"
    cli.main([*command, "--trace", str(path)])
    printed, drawn = capsys.readouterr().out, path.read_text()
    assert closing_line(printed)["tokens"] == plain["tokens"]
    assert f"trace    {path}" in printed
    n_forwards = sum(n for kind, n in plain["forwards"].items() if kind != "prefill")
    names = [label_of(token, tokenizer_of(small_model)) for token in plain["tokens"]]
    texts = [f"<!-- {text} -->" for text in (f"{details}, tiny-a", "prompt: w11 w14 w17", *names)]
    texts += ["negative entropy"] if "entropy" in details else []
    texts += [f"<!-- {len(plain['tokens'])} tokens in {n_forwards} forwards "]
    assert not [text for text in texts if text not in drawn]


@pytest.mark.parametrize(
    ("picture", "named"),
    [
        ("t.gif", "t.gif must end in one of .png, .svg, .pdf"),
        ("absent/t.png", "absent/t.png is not a file that can be written here"),
        ("folder.png", "folder.png is not a file that can be written here"),
        (None, "needs matplotlib; `pip install matplotlib` installs it"),
    ],
)
def test_a_trace_that_cannot_be_written_is_refused_before_the_model_runs(
    picture: str | None,
    named: str,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    if picture is None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.delitem(sys.modules, "dlm_core.block_trace", raising=False)
    else:
        pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
    (tmp_path / "folder.png").mkdir()
    loaded = []
    monkeypatch.setattr(cli.generate_command, "load_model", lambda *_, **__: loaded.append(1))
    command = ["generate", str(golden / "tiny-a"), "--tokens", "8 11"]
    error = error_of([*command, "--trace", str(tmp_path / (picture or "t.png"))], capsys)
    assert "argument --trace: " in error and named in error
    assert not loaded


def test_a_trace_that_fails_late_leaves_the_answer(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    block_trace = pytest.importorskip("dlm_core.block_trace", reason="needs matplotlib")
    full = mock.Mock(side_effect=OSError("No space left on device"))
    monkeypatch.setattr(block_trace, "save_picture", full)
    command = ["generate", str(golden / "tiny-a"), "--tokens", "8 11", "--max-new-tokens", "8"]
    for options, begins in (([], "tokens"), (["--json"], "{")):
        with pytest.raises(SystemExit, match="1"):
            cli.main([*command, "--trace", str(tmp_path / "t.png"), *options])
        printed = capsys.readouterr()
        assert printed.out.startswith(begins) and closing_line(printed.out)["tokens"]
        assert "argument --trace: No space left on device" in printed.err


# --- other commands


@pytest.mark.parametrize(
    ("name", "parameters", "weight_bytes", "kv_bytes"),
    [
        ("3b", "3.83", "6.86", 106_496),
        ("8b", "8.49", "15.9", 139_264),
        ("14b", "13.5", "25.7", 163_840),
    ],
)
def test_info_prints_the_published_sizes(
    name: str, parameters: str, weight_bytes: str, kv_bytes: int, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["info", name]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert f"{int(rows['parameters'].replace(',', '')) / 1e9:.3g}" == parameters
    read = int(rows["a"].split()[2].replace(",", ""))
    assert f"{read / 1e9:.3g}" == weight_bytes
    assert rows["KV"].split()[1] == f"{kv_bytes:,}"
    assert rows["cpu"].endswith("torch backend")


def test_info_takes_a_folder_and_the_small_model(
    golden: Path, small_model: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, shown in ((str(golden / "tiny-b"), "92,976"), ("small", "blocks of 8")):
        assert cli.main(["info", name]) == 0
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "package", "module"),
    [("bench", "dlm_bench", "run"), ("roofline", "dlm_roofline", "plots")],
)
def test_bench_and_roofline_get_the_rest_of_the_line(
    command: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []
    stand_in = types.ModuleType(package)
    setattr(stand_in, module, types.SimpleNamespace(main=lambda argv: received.append(argv) or 7))
    monkeypatch.setitem(sys.modules, package, stand_in)
    assert cli.main([command, "--quick", "x", "--help"]) == 7
    assert received == [["--quick", "x", "--help"]]


def test_module_runs_as_a_command_and_loads_no_more_than_it_needs(golden: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dlm_core.cli"]
    run = subprocess.run(
        [*command, "generate", str(golden / "tiny-b"), "--tokens", "91 93", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert closing_line(run.stdout)["tokens"] == [97, 2]
    lines = run.stderr.splitlines()
    assert all(line.startswith("import time:") for line in lines)
    loaded = {line.split("|")[-1].strip() for line in lines}
    assert "torch" in loaded
    assert not {"rich", "matplotlib", "tokenizers", "dlm_bench"} & loaded


@pytest.mark.full
def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "dlm_core.cli", "info", "8b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
