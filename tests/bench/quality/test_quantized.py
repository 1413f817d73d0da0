"""The record of weights in few bits: what is compared, what is kept, and what the table says."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("rich")
import torch

from dlm_bench.quality import quantized
from dlm_bench.quality.evaluate import Outcome
from dlm_bench.quality.perplexity import Passage
from dlm_bench.quality.quantized import (
    WAYS,
    Closeness,
    QuantizedRecord,
    Variant,
    compared,
    table,
)
from dlm_bench.quality.records import SCHEMA, QualityRecord, checkpoint_hash
from dlm_core import SMALL_MODEL, Generation, KVCache, Model, load_model
from dlm_roofline.json_file import read

ROOT = Path(__file__).parents[3]
# Shorter and longer than a block of 8, which is all that is compared, and one with nothing behind
# its seed.
PASSAGES = [
    Passage([1, 8, 11], [14, 17, 20, 23, 2]),
    Passage([1, 30, 31, 32, 33], [34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 2]),
    Passage([1, 9], [2]),
    Passage([1, 50], [52, 54, 2]),
]


def logits_alone(model: Model, passage: Passage) -> dict[str, torch.Tensor]:
    """Those that a first block's tokens behind the seed have, one passage by itself."""
    tokens = torch.tensor([passage.tokens[: model.config.block_size]])
    where = {"device": model.device, "dtype": model.dtype}

    def context() -> KVCache:
        cache = KVCache(model.config, 1, 64, **where)
        model(torch.tensor([passage.context]), cache, causal=True)
        cache.advance(len(passage.context))
        return cache

    masks = torch.full((1, model.config.block_size), model.config.mask_token_id)
    masks[0, 0] = tokens[0, 0]
    causal, denoised = model(tokens, context(), causal=True), model(masks, context(), causal=False)
    n = tokens.shape[1]
    return {
        "causal": model.logits(causal[0, : n - 1]).double(),
        "denoise": model.logits(denoised[0, 1:n]).double(),
    }


def ways_of(record: QuantizedRecord) -> list[tuple]:
    return [(each.weights, each.cache) for each in record.variants]


def test_logits_are_compared_row_by_row(model: Model, checkpoint: Path) -> None:
    other = load_model(checkpoint, weights="int4")
    found = {each.kind: each for each in compared(other, None, model, PASSAGES)}
    assert list(found) == ["causal", "denoise"]
    for kind, closeness in found.items():
        ours, theirs = (
            torch.cat([logits_alone(which, each)[kind] for each in PASSAGES])
            for which in (other, model)
        )
        assert closeness.rows == len(theirs) == 4 + 7 + 0 + 2
        apart = (ours - theirs).abs() / theirs.std(correction=0)
        p, q = theirs.softmax(-1), ours.softmax(-1)
        expected = (apart.mean(), apart.max(), (p * (p / q).log()).sum(-1).mean())
        measured = (closeness.mean, closeness.largest, closeness.kl)
        assert measured == pytest.approx([each.item() for each in expected], rel=1e-4)
        assert closeness.same == (ours.argmax(-1) == theirs.argmax(-1)).sum()
        assert closeness.mean > 0.01


def test_a_model_is_as_near_as_can_be_to_itself(model: Model) -> None:
    for each in compared(model, None, model, PASSAGES):
        assert (each.rows, each.same) == (13, 13)
        assert each.mean == each.largest == each.kl == 0


def test_a_quick_run_measures_every_way_to_hold_the_weights(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(checkpoint), "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert quantized.main(arguments) == 0
    *shown, closing = capsys.readouterr().out.splitlines()
    record = read(QuantizedRecord, json.loads(closing)["record"], SCHEMA)
    assert "\n".join(shown) == table(record)
    assert record.complete and record.scope == "quick"
    assert ways_of(record) == WAYS
    plain, *others, cached = record.variants
    assert (cached.cache, cached.layer_bytes) == ("fp8", plain.layer_bytes)
    assert 0 < cached.closeness[0].mean < others[2].closeness[0].mean
    assert plain.layer_bytes == 4 * plain.layer_weights and not plain.closeness
    for each in others:
        assert each.layer_weights == plain.layer_weights
        assert each.layer_bytes < plain.layer_bytes / 2
        assert [close.kind for close in each.closeness] == ["causal", "denoise"]
    apart = [each.closeness[0].mean for each in others]
    assert apart[2] > apart[0] > apart[1] > 0, "int4 is the farthest off, int8 the nearest"
    for each in record.variants:
        ar, diffusion, speculation = each.results
        assert [len(result.right) for result in each.results] == [26] * 3
        assert ar.setting.mode == "autoregressive" and diffusion.setting.threshold == 0.9
        assert speculation.setting.lora and speculation.cycles
        assert speculation.digests == ar.digests
    assert others[2].results[0].digests != plain.results[0].digests


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Nothing is decoded or compared; returns which variants were to be."""
    asked: list[tuple] = []
    measured = quantized.measured

    def evaluate(model, tokenizer, examples, setting, **_):
        generation = Generation([5, 2], {"prefill": 1, "decode": 1})
        return [Outcome(each, generation, "5", False) for each in examples], [0.5]

    def noted(model, plain, way, *rest):
        asked.append(way)
        return measured(model, plain, way, *rest)

    closeness = [Closeness(kind, 4, 0.5, 1.0, 0.25, 3) for kind in ("causal", "denoise")]
    monkeypatch.setattr(quantized, "evaluate", evaluate)
    monkeypatch.setattr(quantized, "compared", lambda *_: closeness)
    monkeypatch.setattr(quantized, "measured", noted)
    return asked


def test_a_run_cut_short_goes_on(
    checkpoint: Path,
    tmp_path: Path,
    stand_in: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = [str(checkpoint), "--quick", "--device", "cpu", "--out", str(tmp_path)]
    load = quantized.load_model

    def interrupted(folder, *, weights=None, **how):
        if weights == "int8":
            raise KeyboardInterrupt
        return load(folder, weights=weights, **how)

    with monkeypatch.context() as patch:
        patch.setattr(quantized, "load_model", interrupted)
        assert quantized.main(arguments) == 130
    path = tmp_path / "quantized-quick.json"
    begun = read(QuantizedRecord, path, SCHEMA)
    assert stand_in == ways_of(begun) == WAYS[:2]
    assert not begun.complete
    assert quantized.main(arguments) == 0
    said = capsys.readouterr().out
    assert "has 2 ways to hold weights and cache of this model and sample: going on" in said
    assert stand_in == WAYS
    finished = read(QuantizedRecord, path, SCHEMA)
    assert finished.complete and finished.variants[:2] == begun.variants
    assert finished.seconds > begun.seconds
    # Of another code it begins anew, and keeps what there was.
    monkeypatch.setattr(quantized, "begin", _begun_with_other_code(quantized.begin))
    assert quantized.main(arguments) == 0
    assert stand_in == WAYS * 2
    assert "made with another code" in capsys.readouterr().out
    assert len(list(tmp_path.glob("quantized-quick-*.json"))) == 1


def _begun_with_other_code(begin: Callable[..., QualityRecord]) -> Callable[..., QualityRecord]:
    return lambda *arguments: replace(begin(*arguments), code="another")


@pytest.fixture
def record(made_up: Callable[..., QualityRecord]) -> QuantizedRecord:
    """Two variants with the outcomes of a made-up run."""
    whole = made_up(0.9)
    ar, diffusion, linear, lora = whole.results[:4]
    other = replace(ar, digests=["11", *ar.digests[1:]])
    near = [Closeness("causal", 80, 0.02, 0.31, 1.5e-3, 79)]
    near.append(Closeness("denoise", 80, 0.03, 0.4, 2.5e-3, 72))
    return QuantizedRecord(
        **vars(replace(whole, results=[])),
        variants=[
            Variant(None, None, 1000, 4000, [], [ar, diffusion, lora]),
            Variant("int8", None, 1000, 1030, near, [other, diffusion, linear]),
            Variant(None, "fp8", 1000, 4000, near, [ar, diffusion, linear]),
        ],
    )


def test_the_table_says_what_the_record_holds(record: QuantizedRecord) -> None:
    lines = [line for line in table(record).splitlines() if line.startswith("|")]
    header, _, plain, int8, cached = (
        [c.strip() for c in line.strip("|").split("|")] for line in lines
    )
    assert len(header) == len(plain) == len(int8)
    assert cached[:3] == ["float32, fp8 cache", "32.0", int8[2]]
    assert plain[:5] == ["float32", "32.0", "-", "-", "-"]
    assert int8[:3] == ["int8", "8.2", "0.020, 0.31 / 0.030, 0.40"]
    assert int8[3:5] == ["1.5e-03 / 2.5e-03", "98.75% / 90.00%"]
    right = record.variants[0].results[0].right
    exact = [ok for i, ok in enumerate(right) if i % 3 < 2]  # the third task is Python's
    assert plain[5].startswith(f"{sum(exact) / len(exact):.1%} [")
    assert f"share of {len(exact)} held-out" in table(record).replace("\n", " ")
    # Against the autoregressive tokens of the same weights, whatever the plain model's are.
    assert (plain[-1], int8[-1]) == ("120 of 120", "119 of 120")


def test_the_record_is_whole_and_of_the_shipped_model_and_in_the_readme() -> None:
    committed = read(QuantizedRecord, ROOT / quantized.RECORD, SCHEMA)
    assert committed.complete and committed.scope == "standard" and not committed.dirty
    assert committed.model.hash == checkpoint_hash(SMALL_MODEL)
    assert ways_of(committed) == WAYS
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{quantized.BEGIN}\n{table(committed)}\n{quantized.END}" in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda v: v["variants"][1].update(weights="int2"), "'int2' and None: no variant"),
        (lambda v: v["variants"][1]["closeness"][0].update(same=81), "same is 81 of 80 rows"),
        (lambda v: v["variants"][0].pop("layer_bytes"), r"variants\[0\].layer_bytes is missing"),
    ],
)
def test_a_wrong_record_is_named(
    record: QuantizedRecord, tmp_path: Path, damage: Callable[[dict], object], words: str
) -> None:
    values = json.loads(json.dumps(asdict(record)))
    path = tmp_path / "quantized.json"
    path.write_text(json.dumps(values))
    assert read(QuantizedRecord, path, SCHEMA) == record
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words):
        read(QuantizedRecord, path, SCHEMA)


def test_errors_are_one_line_before_anything_is_measured(
    checkpoint: Path,
    tmp_path: Path,
    stand_in: list[tuple],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    for arguments, words in (
        (["no/such/folder"], "no/such/folder/tokenizer.json is missing"),
        ([str(checkpoint), "--out", str(tmp_path / "file" / "out")], "cannot be written to"),
    ):
        assert quantized.main(["--device", "cpu", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert stand_in == []


def test_the_table_goes_between_its_markers(
    record: QuantizedRecord,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    quantized.RECORD.parent.mkdir(parents=True)
    quantized.RECORD.write_text(json.dumps(asdict(record)))
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{quantized.BEGIN}\nold\n{quantized.END}\nbelow\n")
    assert quantized.main(["--readme", "README.md"]) == 0
    between = f"{quantized.BEGIN}\n{table(record)}\n{quantized.END}"
    assert readme.read_text() == f"above\n{between}\nbelow\n"
    readme.write_text("words")
    assert quantized.main(["--readme", "README.md"]) == 2
    assert "README.md lacks the markers" in capsys.readouterr().err
    assert readme.read_text() == "words"
