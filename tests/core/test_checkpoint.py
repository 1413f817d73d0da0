"""Checkpoints: sharded or whole, strict about every tensor, and damage is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from caches import cache_for
from safetensors.torch import load_file, save_file

from dlm_core import Model, load_model, random_model

NORM = "encoder.norm.weight"
PROJECTION = "encoder.layers.1.self_attn.k_proj.weight"


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """Apply `change` to the tensors of the checkpoint's one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> dict[str, str]:
    """Split the checkpoint's one file in two; returns the weight map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for n, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"model-{n:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_every_weight_is_the_file_s(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    stored = load_file(checkpoint / "model.safetensors")
    loaded = dict(model.named_parameters())
    assert loaded.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(loaded[name], tensor), name


def test_shards_load_as_one_file_does(checkpoint: Path) -> None:
    whole = load_model(checkpoint).state_dict()
    shard(checkpoint)
    sharded = load_model(checkpoint).state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_dtype_converts(checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


BAD_TENSORS = {
    "missing": (lambda t: t.pop(NORM), "lacks encoder.norm.weight"),
    "extra": (lambda t: t.update(bias=torch.zeros(3)), "holds bias, which the config"),
    "misshapen": (
        lambda t: t.update({PROJECTION: t[PROJECTION][:-1].clone()}),
        rf"{PROJECTION} in .*model.safetensors has shape \[31, 64\].*\[32, 64\]",
    ),
    "transposed": (
        lambda t: t.update({PROJECTION: t[PROJECTION].T.contiguous()}),
        f"{PROJECTION} in .* has shape",
    ),
    "other dtype": (lambda t: t.update({NORM: t[NORM].double()}), f"{NORM} in .* is F64"),
    "nan": (lambda t: t[PROJECTION][3].fill_(torch.nan), f"{PROJECTION} in .* is not finite"),
    "inf": (lambda t: t[NORM][0].fill_(-torch.inf), f"{NORM} in .* is not finite"),
}


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensor_is_named(checkpoint: Path, change: Callable, message: str) -> None:
    rewrite(checkpoint, change)
    with pytest.raises(ValueError, match=message):
        load_model(checkpoint)


def test_value_that_overflows_the_asked_dtype_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t[NORM][0].fill_(1e6))
    load_model(checkpoint)
    with pytest.raises(ValueError, match=f"{NORM} in .* is not finite in torch.float16"):
        load_model(checkpoint, dtype=torch.float16)


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "truncated within the length": lambda data: data[:4],
    "empty": lambda data: b"",
    "trailing byte": lambda data: data + b"\0",
    "absurd header length": lambda data: b"\xff" * 8 + data[8:],
    "unknown dtype": lambda data: data.replace(b'"F32"', b'"F99"'),
    "shifted offsets": lambda data: data.replace(b"[0,", b"[8,", 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_named(checkpoint: Path, damage: Callable[[bytes], bytes]) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{file}.*damaged|damaged.*{file}"):
        load_model(checkpoint)


def test_folder_without_weights_is_an_error(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor"):
        load_model(checkpoint)


def test_missing_shard_is_named(checkpoint: Path) -> None:
    shard(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors cannot be read"):
        load_model(checkpoint)


BAD_INDEXES = {
    "not indexed": (lambda m: m.pop(NORM), f"holds {NORM}, which the index"),
    "not in shard": (lambda m: m.update(ghost=m[NORM]), "lacks ghost, which the index"),
    "outside folder": (lambda m: m.update({NORM: "../model.safetensors"}), "no file name"),
    "nested": (lambda m: m.update({NORM: ["b"]}), "index.json is not an index"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_index_at_odds_with_its_shards_is_an_error(
    checkpoint: Path, change: Callable, message: str
) -> None:
    weight_map = shard(checkpoint)
    change(weight_map)
    write_index(checkpoint, weight_map)
    with pytest.raises(ValueError, match=message):
        load_model(checkpoint)


@pytest.mark.parametrize("weight_map", [None, []], ids=["null", "list"])
def test_index_without_a_weight_map_is_named(checkpoint: Path, weight_map: object) -> None:
    shard(checkpoint)
    write_index(checkpoint, weight_map)
    with pytest.raises(ValueError, match="index.json is not an index"):
        load_model(checkpoint)


def test_random_model_has_logits_of_order_one() -> None:
    model = random_model("tiny")
    logits = model.logits(model(torch.arange(64)[None], cache_for(model), causal=True))
    assert 0.5 < logits.std() < 2


def test_random_model_follows_its_seed_and_dtype() -> None:
    first, same, other = (random_model("tiny", dtype=torch.bfloat16, seed=n) for n in (1, 1, 2))
    assert first.dtype == torch.bfloat16
    assert torch.equal(first.diffusion_head.weight, same.diffusion_head.weight)
    assert not torch.equal(first.diffusion_head.weight, other.diffusion_head.weight)


@pytest.mark.gpu
def test_weights_are_never_held_twice(checkpoint: Path) -> None:
    def peak_over_weights(build: Callable[[], Model]) -> tuple[int, list[int]]:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sizes = [p.nbytes for p in build().parameters()]
        return torch.cuda.max_memory_allocated() - before - sum(sizes), sizes

    over, sizes = peak_over_weights(lambda: random_model("tiny", device="cuda"))
    assert over < max(sizes) / 4
    over, sizes = peak_over_weights(lambda: load_model(checkpoint, device="cuda"))
    assert over < 3 * max(sizes)  # one tensor and the work of checking it
    assert over < sum(sizes) / 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: random_model("7b"), "name_or_config is '7b'; it must be a ModelConfig or one"),
        (lambda _: random_model(3), "name_or_config is 3; it must be a ModelConfig"),
        (lambda _: random_model("tiny", seed="x"), "seed is 'x'; it must be an int"),
        (lambda _: random_model("tiny", device="abacus"), "device is 'abacus'; torch knows no"),
        (lambda _: random_model("tiny", dtype=torch.float64), "dtype is torch.float64"),
        (lambda folder: load_model(folder, device="abacus"), "device is 'abacus'; torch knows no"),
        (lambda folder: load_model(folder, dtype=torch.int8), "dtype is torch.int8"),
    ],
)
def test_bad_argument_is_named(make: Callable, message: str, checkpoint: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(checkpoint)
