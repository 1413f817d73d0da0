"""The dlm command: what it prints, and one line for whatever a user got wrong."""

import json
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from dlm_core import Sampling, cli, generate, infill, load_model, refine
from dlm_core.decoding.new_request import MODES
from dlm_core.generate_command import label_of, tokenizer_of
from dlm_kernels.rules import RULES

PROMPT = "91 93"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def closing_line(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


def generated(capsys: pytest.CaptureFixture, folder: Path, *arguments: str) -> dict:
    """The closing line of `dlm generate` on a CPU."""
    command = ["generate", str(folder), "--tokens", "8 11 14 17", "--device", "cpu", "--json"]
    assert cli.main([*command, *arguments]) == 0
    return closing_line(capsys.readouterr().out)


@pytest.mark.parametrize("mode", MODES)
def test_generate_reaches_every_mode(
    mode: str, golden: Path, capsys: pytest.CaptureFixture
) -> None:
    expected = generate(load_model(golden / "tiny-a"), [8, 11, 14, 17], 12, mode)
    shown = generated(capsys, golden / "tiny-a", "--mode", mode, "--max-new-tokens", "12")
    assert (shown["tokens"], shown["forwards"]) == (expected.tokens, expected.forwards)


@pytest.mark.parametrize("rule", RULES)
def test_generate_reaches_every_rule(
    rule: str, golden: Path, capsys: pytest.CaptureFixture
) -> None:
    model = load_model(golden / "tiny-a")
    expected = generate(model, [8, 11, 14, 17], 12, "diffusion", rule=rule)
    shown = generated(capsys, golden / "tiny-a", "--rule", rule, "--max-new-tokens", "12")
    assert (shown["tokens"], shown["committed"]) == (expected.tokens, expected.committed)


def test_generate_samples(golden: Path, capsys: pytest.CaptureFixture) -> None:
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, seed=4)
    flags = ["--temperature", "1.5", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01"]
    for mode in MODES:
        model = load_model(golden / "tiny-a")
        expected = generate(model, [8, 11, 14, 17], 128, mode, sampling=sampling)
        shown = generated(capsys, golden / "tiny-a", "--mode", mode, *flags, "--seed", "4")
        assert shown["tokens"] == expected.tokens


def test_text_inside_a_sequence_begins_with_no_bos(
    checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="text prompts need tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(67)}, unk_token="w0")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="w1 $A", special_tokens=[("w1", 1)]
    )
    words.save(str(checkpoint / "tokenizer.json"))
    common = ["--mode", "infill", "--max-new-tokens", "2", "--json"]
    cli.main(["generate", str(checkpoint), "--prompt", "w8 w11", "--after", "w20 w23", *common])
    by_text = closing_line(capsys.readouterr().out)
    cli.main(["generate", str(checkpoint), "--tokens", "1 8 11", "--after", "20 23", *common])
    assert by_text["tokens"] == closing_line(capsys.readouterr().out)["tokens"]


def test_generate_fills_a_gap_and_refines(golden: Path, capsys: pytest.CaptureFixture) -> None:
    model = load_model(golden / "tiny-a")
    gap = ["--mode", "infill", "--max-new-tokens", "3", "--after", "29 32 35"]
    expected = infill(model, [8, 11, 14, 17], 3, [29, 32, 35], steps=2)
    assert generated(capsys, golden / "tiny-a", *gap, "--steps", "2")["tokens"] == expected.tokens
    draft = ["--mode", "refine", "--draft", "20 23 9 29", "--block-length", "4"]
    expected = refine(model, [8, 11, 14, 17], [20, 23, 9, 29], block_length=4)
    assert generated(capsys, golden / "tiny-a", *draft)["tokens"] == expected.tokens


@pytest.mark.parametrize("mode", ["autoregressive", "diffusion"])
def test_generate_prints_what_the_function_returns(
    mode: str, golden: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = golden / "tiny-b"
    status = cli.main(
        ["generate", str(folder), "--tokens", PROMPT, "--max-new-tokens", "18", "--mode", mode]
        + ["--device", "cpu"]
    )
    printed = capsys.readouterr().out
    expected = generate(load_model(folder), [91, 93], 18, mode=mode)
    summary = closing_line(printed)
    assert status == 0
    assert summary["tokens"] == expected.tokens
    assert summary["forwards"] == expected.forwards
    assert summary["committed"] == expected.committed
    assert summary["tpf"] == expected.tpf
    assert printed.splitlines()[0].split() == ["tokens", *map(str, expected.tokens)]


def test_json_prints_the_closing_line_alone(golden: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["generate", str(golden / "tiny-b"), "--tokens", "91,93", "--steps", "3", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert closing_line(lines[0])["tokens"] == [97, 2]


def test_prompt_is_text_where_there_is_a_tokenizer(
    checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="text prompts need tokenizers")
    models, pre_tokenizers = tokenizers.models, tokenizers.pre_tokenizers
    words = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(67)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(checkpoint / "tokenizer.json"))
    cli.main(["generate", str(checkpoint), "--prompt", "w13 w17 w21", "--max-new-tokens", "4"])
    by_text = capsys.readouterr().out
    cli.main(["generate", str(checkpoint), "--tokens", "13 17 21", "--max-new-tokens", "4"])
    by_ids = closing_line(capsys.readouterr().out)
    assert closing_line(by_text)["tokens"] == by_ids["tokens"]
    assert by_text.splitlines()[0] == " ".join(f"w{i}" for i in by_ids["tokens"])


def test_terminal_shows_the_block_filling(
    golden: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rich = pytest.importorskip("rich", reason="the live view is drawn with rich")
    rich.get_console()  # made where nobody sees it, as by whoever wrote before
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")  # one that can draw over itself
    cli.main(["generate", str(golden / "tiny-a"), "--tokens", "13 17 21", "--max-new-tokens", "8"])
    shown = capsys.readouterr().out
    assert "·" in shown
    assert closing_line(shown)["tokens"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["polish"], "COMMAND"),
        (["generate"], "--tokens --prompt"),
        (["generate", "{tiny}", "--tokens", "1 x"], "--tokens: '1 x'"),
        (["generate", "{tiny}", "--tokens", ""], "prompt is empty"),
        (["generate", "{tiny}", "--tokens", "3"], "prompt holds 3"),
        (["generate", "{tiny}", "--tokens", "1", "--mode", "beam"], "--mode"),
        (["generate", "{tiny}", "--tokens", "1", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["generate", "{tiny}", "--tokens", "1", "--block-length", "1"], "block_length is 1"),
        (["generate", "{tiny}", "--tokens", "1", "--device", "abacus"], "--device"),
        (["generate", "{tiny}", "--tokens", "1", "--dtype", "int8"], "--dtype"),
        (["generate", "{tiny}", "--prompt", "hello"], "--prompt"),
        (["generate", "{tiny}/absent", "--prompt", "hi"], "absent is no folder with a config.json"),
        (["generate", "{tiny}", "--tokens", "1", "--rule", "greedy"], "--rule"),
        (["generate", "{tiny}", "--tokens", "1", "--mode", "infill"], "infill needs --after"),
        (
            ["generate", "{tiny}", "--tokens", "1", "--draft", "4"],
            "argument --draft: needs --mode refine",
        ),
        (
            ["generate", "{tiny}", "--tokens", "1", "--mode", "infill", "--after", "4 x"],
            "argument --after: '4 x' is not a list of integer ids",
        ),
        (
            ["generate", "{tiny}", "--tokens", "1", "--mode", "refine", "--draft", "4"]
            + ["--steps", "3"],
            "--steps: refine has none",
        ),
        (
            ["generate", "{tiny}", "--tokens", "1", "--mode", "refine", "--draft", "4"]
            + ["--max-new-tokens", "3"],
            "--max-new-tokens: refine has none",
        ),
        (
            ["generate", "{tiny}", "--tokens", "1", "--mode", "refine", "--draft", "4"]
            + ["--rule", "sdar"],
            "rule is 'sdar'; to revise a draft it must have edit_steps",
        ),
        (["generate", "{tiny}", "--tokens", "1", "--top-p", "0.9"], "top_p is 0.9 beside"),
        (["generate", "{tiny}", "--tokens", "1", "--temperature", "-1"], "temperature is -1"),
        (
            ["generate", "{tiny}", "--tokens", "1", "--trace", "t.png", "--mode", "autoregressive"],
            "argument --trace: autoregressive has none; it needs a mode that denoises",
        ),
        (["info", "7b"], "MODEL: 7b/config.json cannot be read"),
    ],
)
def test_user_s_error_is_one_line_and_status_2(
    arguments: list[str], named: str, golden: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([argument.format(tiny=golden / "tiny-a") for argument in arguments])
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error.count("\n") == 1 and named in error


# --- the model that no one names


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


def test_without_a_folder_the_small_model_answers(
    small_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """In text without special tokens, though the ids end with one."""
    prompt = "w59 w62 w65"
    for mode in MODES:
        cli.main(["generate", "--prompt", prompt, "--max-new-tokens", "20", "--mode", mode])
        printed = capsys.readouterr().out
        expected = generate(load_model(small_model), [1, 59, 62, 65], 20, mode).tokens
        assert closing_line(printed)["tokens"] == expected
        assert "<|" not in printed
    cli.main(["info", "small"])
    assert "blocks of 8" in capsys.readouterr().out


def test_a_build_without_the_small_model_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli.generate_command, "SMALL_MODEL", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", "--prompt", "sort: 5 3 9 1"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "argument FOLDER: this build came without its small model" in error


def test_a_token_is_shown_on_one_line(small_model: Path) -> None:
    tokenizer = tokenizer_of(small_model)
    shown = [label_of(token, tokenizer) for token in (2, 5, 6, 7, 8, 12, 500)]
    assert shown == ["⟨end⟩", "␣a", "↵", "⇥", "�", "w12", "500"]
    assert label_of(9, tokenizer) == "�", "an escape character reached the terminal"
    assert label_of(12, None) == "12"


# --- --trace


@pytest.mark.parametrize("mode", ["diffusion", "infill", "refine", "linear_spec", "quadratic_spec"])
def test_trace_draws_every_mode_that_drafts_or_denoises(
    mode: str,
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One cell a token and row, named as the terminal names it, and the same tokens as without."""
    block_trace = pytest.importorskip("dlm_core.block_trace", reason="needs matplotlib")
    drawn = []
    monkeypatch.setattr(block_trace, "save_picture", lambda *arguments: drawn.append(arguments))
    options = {
        "infill": ["--after", "w20 w23", "--max-new-tokens", "3", "--steps", "2"],
        "refine": ["--draft", "w20 w23 w11 w29"],
    }
    command = ["generate", "--prompt", "w11 w14 w17", "--mode", mode]
    command += options.get(mode, ["--max-new-tokens", "12"])
    cli.main([*command, "--json"])
    plain = closing_line(capsys.readouterr().out)
    cli.main([*command, "--trace", str(tmp_path / "t.svg")])
    printed = capsys.readouterr().out
    assert closing_line(printed)["tokens"] == plain["tokens"]
    assert f"trace    {tmp_path / 't.svg'}" in printed
    ((trace, path, title, details),) = drawn
    assert path == tmp_path / "t.svg"
    n_forwards = sum(n for kind, n in plain["forwards"].items() if kind != "prefill")
    assert title == f"{len(plain['tokens'])} tokens in {n_forwards} forwards behind the prefill"
    rule = {"diffusion": ", rule nemotron", "infill": ", steps 2", "refine": ", rule llada2"}
    assert details == f"{mode}{rule.get(mode, '')}, tiny-a\nprompt: w11 w14 w17"
    tokenizer = tokenizer_of(small_model)
    shown = [cell.label for panel in trace.panels for cell in panel.rows[-1][1]]
    assert shown[: len(plain["tokens"])] == [label_of(t, tokenizer) for t in plain["tokens"]]
    n_rows = sum(len(panel.rows) for panel in trace.panels)
    assert n_rows == len(plain["committed"] or plain["accepted"])
    cells = [cell for panel in trace.panels for _, row in panel.rows for cell in row]
    assert not [cell for cell in cells if cell.kind == "undecided" and cell.label]


def test_trace_knows_what_the_rule_s_confidence_is(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
    picture = tmp_path / "t.svg"
    command = ["generate", str(golden / "tiny-a"), "--tokens", "8 11", "--trace", str(picture)]
    cli.main([*command, "--max-new-tokens", "8", "--rule", "entropy_bound"])
    assert "negative entropy" in picture.read_text()  # the svg names its texts in comments


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

    def load(*arguments, **options) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(cli.generate_command, "load_model", load)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", str(golden / "tiny-a"), "--tokens", "8 11"]
                 + ["--trace", str(tmp_path / (picture or "t.png"))])  # fmt: skip
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "argument --trace: " in error and named in error


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["for-people", "json"])
def test_a_trace_that_fails_late_leaves_the_answer(
    options: list[str],
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    block_trace = pytest.importorskip("dlm_core.block_trace", reason="needs matplotlib")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(block_trace, "save_picture", full)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["generate", str(golden / "tiny-a"), "--tokens", "8 11"]
                 + ["--trace", str(tmp_path / "t.png"), *options])  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out.startswith("{" if options else "tokens")
    assert closing_line(printed.out)["tokens"]
    assert "argument --trace: No space left on device" in printed.err


def test_damaged_tokenizer_is_named(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tokenizers", reason="text prompts need tokenizers")
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", str(checkpoint), "--prompt", "hello"])
    assert "tokenizer.json is not a tokenizer" in capsys.readouterr().err


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


def test_info_takes_a_folder(golden: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["info", str(golden / "tiny-b")]) == 0
    assert "92,976" in capsys.readouterr().out


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
        [*command, "generate", str(golden / "tiny-b"), "--tokens", PROMPT, "--json"],
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


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "dlm_core.cli", "info", "8b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
