"""The LoRA of draft forwards: low-rank updates of the output projections, in PEFT's format.

A checkpoint's folder linear_spec_lora holds adapter_config.json and adapter_model.safetensors. Each
layer's update (lora_alpha / r) B A is merged once, at loading, into a copy of o_proj that draft
forwards run in its place; so a draft costs what any other forward costs.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .config import ModelConfig
from .json_values import check_count, check_number, read_object
from .model import Model
from .weight_files import check_headers, opened
from .whole_file import replacing, write_whole

FOLDER = "linear_spec_lora"
CONFIG_FILE = "adapter_config.json"
WEIGHT_FILE = "adapter_model.safetensors"

# What would change the update, with the one value supported; a file may leave these out. Its other
# keys concern training and provenance.
_ONLY_VALUE = {
    "peft_type": "LORA",
    "target_modules": ["o_proj"],
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


@dataclass(frozen=True)
class DraftLora:
    """A LoRA on disk whose config, names and shapes fit the model. scale: lora_alpha / r."""

    file: Path
    scale: float

    def merge_into(self, model: Model) -> None:
        """Give every layer its draft projection; a tensor that is not finite is a ValueError."""
        with opened(self.file) as weights:
            for i, layer in enumerate(model.encoder.layers):
                a, b = (weights.get_tensor(_tensor_name(i, part)).float() for part in "AB")
                update = self.scale * (b @ a)
                if not update.isfinite().all():
                    raise ValueError(f"the update of layer {i} in {self.file} is not finite")
                layer.self_attn.add_draft_update(update)


def read(folder: Path, config: ModelConfig) -> DraftLora | None:
    """The draft LoRA of a checkpoint folder, checked but not yet loaded; None if it has none.

    A setting that is not supported, or a tensor that is missing, extra or misshapen, is a
    ValueError that names the file and the key or tensor.
    """
    folder = folder / FOLDER
    if not folder.exists():
        return None
    path = folder / CONFIG_FILE
    settings = read_object(path)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    try:
        check_count("r", rank)
        check_number("lora_alpha", alpha, above=0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    for key, only in _ONLY_VALUE.items():
        if settings.get(key, only) != only:
            raise ValueError(f"{path}: {key} is {settings[key]!r}; it must be {only!r}")

    query_size = config.num_attention_heads * config.head_dim
    shapes = {}
    for i in range(config.num_hidden_layers):
        shapes[_tensor_name(i, "A")] = (rank, query_size)
        shapes[_tensor_name(i, "B")] = (config.hidden_size, rank)
    file = folder / WEIGHT_FILE
    with opened(file) as weights:
        names = list(weights.keys())
    check_headers({file: names}, shapes, config.torch_dtype, CONFIG_FILE)
    return DraftLora(file, alpha / rank)


def write(
    folder: Path, config: ModelConfig, layers: list[tuple[Tensor, Tensor]], alpha: int
) -> None:
    """Write the draft LoRA of a checkpoint folder, whole or not at all.

    layers: for each, A [r, query_size] and B [hidden_size, r]; stored in the config's torch_dtype.
    """
    unfinished = folder / f"{FOLDER}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    dtype = getattr(torch, config.torch_dtype)
    tensors = {
        _tensor_name(i, part): tensor.detach().to("cpu", dtype).contiguous()
        for i, pair in enumerate(layers)
        for part, tensor in zip("AB", pair, strict=True)
    }
    with replacing(unfinished / WEIGHT_FILE) as file:
        save_file(tensors, file, metadata={"format": "pt"})
    rank = layers[0][0].shape[0]
    settings = {"peft_type": "LORA", "target_modules": ["o_proj"], "r": rank, "lora_alpha": alpha}
    settings |= {"bias": "none", "task_type": None}
    write_whole(unfinished / CONFIG_FILE, json.dumps(settings, indent=1) + "\n")
    # Half a LoRA would keep the checkpoint from loading, so it gets its name last.
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    unfinished.rename(folder / FOLDER)


def _tensor_name(layer: int, part: str) -> str:
    return f"base_model.model.encoder.layers.{layer}.self_attn.o_proj.lora_{part}.weight"
