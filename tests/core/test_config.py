"""config.json: the published files as they are, and an error for whatever changes the math."""

import json
from pathlib import Path

import pytest

from dlm_core import PRESETS, ModelConfig


def tiny_values(golden: Path) -> dict:
    return json.loads((golden / "tiny-a" / "config.json").read_text())


@pytest.mark.parametrize("name", ["3b", "8b", "14b"])
def test_published_file_is_taken_as_it_is(name: str, golden: Path) -> None:
    assert ModelConfig.from_json(golden / "configs" / f"{name}.json") == PRESETS[name]


BAD_KEYS = [
    ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True),
    ("tie_word_embeddings", True), ("sliding_window", 4096), ("attention_dropout", 0.1),
    ("dlm_paradigm", "block_diff"), ("model_type", "ministral3"), ("num_experts", 8),
    ("vocab_size", 0), ("hidden_size", 64.0), ("num_hidden_layers", True),
    ("num_attention_heads", 3), ("head_dim", 24), ("rms_norm_eps", 0.0), ("mask_token_id", 67),
    ("mask_token_id", 2), ("eos_token_id", [2, 3]), ("block_size", 1),
    ("torch_dtype", "float8_e4m3fn"), ("rope_parameters", None),
]  # fmt: skip
BAD_ROPE_KEYS = [
    ("rope_type", "llama3"), ("truncate", False), ("attention_factor", 1.5),
    ("partial_rotary_factor", 0.5), ("factor", 0.5), ("beta_fast", 0.5), ("rope_theta", "1e4"),
    ("rope_theta", float("inf")), ("mscale", 0), ("original_max_position_embeddings", -1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "in_rope"),
    [*((*bad, False) for bad in BAD_KEYS), *((*bad, True) for bad in BAD_ROPE_KEYS)],
)
def test_bad_key_is_named_with_its_value(
    key: str, value: object, in_rope: bool, golden: Path
) -> None:
    values = tiny_values(golden)
    (values["rope_parameters"] if in_rope else values)[key] = value
    with pytest.raises((TypeError, ValueError), match=key) as error:
        ModelConfig.from_dict(values)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "rope_parameters", "torch_dtype"])
def test_missing_key_is_named(key: str, golden: Path) -> None:
    values = tiny_values(golden)
    del values[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "must hold an object"), ('{"a": 1}', "is missing")],
)
def test_bad_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        ModelConfig.from_json(file)
    assert str(file) in str(error.value)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.json cannot be read"):
        ModelConfig.from_json(tmp_path / "absent.json")
