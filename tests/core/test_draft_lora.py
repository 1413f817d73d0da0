"""The draft LoRA: merged once, beside the projection it updates, and damage is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from caches import cache_for
from safetensors.torch import load_file, save_file

from dlm_core import Model, draft_lora, generate, load_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A = "base_model.model.encoder.layers.1.self_attn.o_proj.lora_A.weight"
B = "base_model.model.encoder.layers.1.self_attn.o_proj.lora_B.weight"


@pytest.fixture
def lora(checkpoint: Path, golden: Path) -> Path:
    """The LoRA's folder in a copy of tiny-a that a test may damage."""
    folder = checkpoint / "linear_spec_lora"
    shutil.copytree(golden / "tiny-a" / "linear_spec_lora", folder)
    return folder


def set_key(folder: Path, **values: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_update_is_merged_beside_the_projection(checkpoint: Path, lora: Path) -> None:
    attention = load_model(checkpoint).encoder.layers[1].self_attn
    stored = load_file(checkpoint / "model.safetensors")
    update = load_file(lora / WEIGHTS)
    weight = stored["encoder.layers.1.self_attn.o_proj.weight"]
    assert torch.equal(attention.o_proj.weight, weight)
    merged = weight.double() + 16 / 4 * update[B].double() @ update[A].double()  # alpha 16, r 4
    torch.testing.assert_close(attention.draft_o_proj.weight.double(), merged, atol=1e-6, rtol=0)


def test_checkpoint_without_lora_has_none(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    assert not model.has_draft_lora
    with pytest.raises(ValueError, match="lora is True; the model's checkpoint held no draft LoRA"):
        generate(model, [5], 4, mode="linear_spec", lora=True)
    with pytest.raises(ValueError, match="lora is True"):
        model(torch.tensor([[5]]), cache_for(model), causal=False, lora=True)


def test_lora_is_used_by_default_where_there_is_one(golden: Path, model: Model) -> None:
    case = json.loads((golden / "tiny-a" / "expected_tokens.json").read_text())[0]
    accepted = generate(model, case["prompt"], case["max_new_tokens"], mode="linear_spec").accepted
    assert accepted == case["linear_spec_lora"]["accepted"] != case["linear_spec"]["accepted"]


DAMAGE = {
    "dora": (lambda f: set_key(f, use_dora=True), "use_dora is True"),
    "rslora": (lambda f: set_key(f, use_rslora=True), "use_rslora is True"),
    "other target": (lambda f: set_key(f, target_modules=["q_proj"]), "target_modules is"),
    "rank 0": (lambda f: set_key(f, r=0), "r is 0"),
    "alpha a text": (lambda f: set_key(f, lora_alpha="16"), "lora_alpha is '16'"),
    "alpha nan": (lambda f: set_key(f, lora_alpha=float("nan")), "lora_alpha is nan"),
    "rank 8": (lambda f: set_key(f, r=8), r"lora_A.weight .* shape \[4, 64\]"),
    "no json": (lambda f: (f / CONFIG).write_text("{"), "adapter_config"),
    "no config": (lambda f: (f / CONFIG).unlink(), "cannot be read"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} cannot be read"),
    "missing": (lambda f: rewrite(f, lambda t: t.pop(A)), f"lacks {A}"),
    "extra": (lambda f: rewrite(f, lambda t: t.update(more=torch.zeros(1))), "holds more"),
    "infinite": (lambda f: rewrite(f, lambda t: t[A].fill_(torch.inf)), "not finite"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(
    damage: Callable[[Path], object], message: str, checkpoint: Path, lora: Path
) -> None:
    damage(lora)
    with pytest.raises(ValueError, match=message):
        load_model(checkpoint)


def test_written_whole_or_not_at_all(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_model(checkpoint).config
    query_size = config.num_attention_heads * config.head_dim
    layers = [
        (torch.ones(2, query_size), torch.ones(config.hidden_size, 2))
        for _ in range(config.num_hidden_layers)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(draft_lora, "write_whole", mock.Mock(side_effect=OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            draft_lora.write(checkpoint, config, layers, 4)
    assert not load_model(checkpoint).has_draft_lora, "a folder cut short would be an error"
    for alpha in (4, 6):
        draft_lora.write(checkpoint, config, layers, alpha)
        assert draft_lora.read(checkpoint, config).scale == alpha / 2
    assert [path.name for path in checkpoint.glob("linear_spec_lora*")] == ["linear_spec_lora"]
