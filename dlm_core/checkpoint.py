"""Models from checkpoint folders, and models of random weights.

A folder holds config.json, either model.safetensors or shards listed by
model.safetensors.index.json, and perhaps a draft LoRA. Names, shapes and dtypes are compared with
the config before a weight is read; weights then stream in one tensor at a time.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlm_kernels.validate import FLOAT_DTYPES, check_int

from . import draft_lora
from .config import PRESETS, ModelConfig
from .model import Device, Linear, Model, RMSNorm
from .quantization import check_weights, quantize_model
from .weight_files import SINGLE_FILE, check_headers, check_names, files_of, opened
from .whole_file import replacing, write_whole

# Folder of the small trained model that comes with dlm-kernels, for `load_model`.
SMALL_MODEL = Path(__file__).parent / "small_model"


def load_model(
    folder: str | Path,
    *,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
) -> Model:
    """The model of a Nemotron-Labs Diffusion checkpoint folder.

    Args:
        folder: holds config.json and the weights; other files in it are left alone.
        device: where the weights go.
        dtype: what they are converted to; by default they stay as stored.
        weights: "fp8", "int8" or "int4" for layers in few bits, see `quantize_model`. They are
            read on the host, so that `device` needs room for their few bits alone.

    Raises:
        ValueError, TypeError: the config is not supported; a file is missing or damaged; a tensor
            is missing, extra, misshapen, of another dtype than the config's torch_dtype, or not
            finite in `dtype`; `weights` is unknown. The message names the file, the key or the
            tensor, or the argument.
    """
    folder, device = Path(folder), _known_device(device)
    check_weights(weights)
    config = ModelConfig.from_json(folder / "config.json")
    dtype = _weight_dtype(dtype, config)
    expected = dict(Model(config, device="meta", dtype=torch.float32).named_parameters())
    files = files_of(folder)
    shapes = {name: tuple(p.shape) for name, p in expected.items()}
    check_headers(files, shapes, config.torch_dtype, "the config")
    lora = draft_lora.read(folder, config)

    model = Model(config, device=device if weights is None else "cpu", dtype=dtype)
    parameters = dict(model.named_parameters())
    for file, names in files.items():
        with opened(file) as tensors:
            for name in names:
                parameters[name].copy_(tensors.get_tensor(name))
                if not parameters[name].isfinite().all():
                    raise ValueError(f"{name} in {file} is not finite in {model.dtype}")
    if lora is not None:
        lora.merge_into(model)
    if weights is not None:
        quantize_model(model, weights, device=device)
    return model


def save_weights(folder: str | Path, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors, as `load_model` reads them.

    Args:
        folder: is made if need be; files of these names in it are replaced.
        weights: every parameter of `Model(config)` by name; they are stored in its torch_dtype.
    """
    folder, dtype = Path(folder), getattr(torch, config.torch_dtype)
    expected = dict(Model(config, device="meta", dtype=dtype).named_parameters())
    check_names(folder, "the config", set(expected), set(weights))
    stored = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in expected}
    with replacing(folder / SINGLE_FILE) as file:
        save_file(stored, file, metadata={"format": "pt"})
    write_whole(folder / "config.json", json.dumps(config.to_dict(), indent=1) + "\n")


def random_model(
    name_or_config: str | ModelConfig,
    *,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    seed: int = 0,
) -> Model:
    """A model of random weights, drawn in place on the device, with logits of order one.

    Args:
        name_or_config: a name in `PRESETS`, or any config.
        device, dtype: of the weights; the dtype is by default the config's torch_dtype.
        weights: "fp8", "int8" or "int4" for layers in few bits, see `quantize_model`; they are
            drawn on the device before.
        seed: the same seed gives the same weights on the same kind of device.
    """
    config = name_or_config
    if not isinstance(config, ModelConfig):
        if name_or_config not in PRESETS:
            raise ValueError(
                f"name_or_config is {name_or_config!r}; it must be a ModelConfig or one of"
                f" {', '.join(PRESETS)}"
            )
        config = PRESETS[name_or_config]
    check_int("seed", seed, 0, 2**63 - 1)
    check_weights(weights)
    device = _known_device(device)
    model = Model(config, device=device, dtype=_weight_dtype(dtype, config))
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Linear):
            # Outputs of order one for inputs of order one.
            module.weight.normal_(0, module.weight.shape[1] ** -0.5, generator=generator)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.normal_(generator=generator)
        elif isinstance(module, RMSNorm):
            module.weight.fill_(1)
    if weights is not None:
        quantize_model(model, weights)
    return model


def _known_device(device: Device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}; torch knows no such device") from None


def _weight_dtype(dtype: torch.dtype | None, config: ModelConfig) -> torch.dtype:
    if dtype is None:
        return getattr(torch, config.torch_dtype)
    if dtype not in FLOAT_DTYPES:
        wanted = ", ".join(map(str, FLOAT_DTYPES))
        raise TypeError(f"dtype is {dtype!r}; it must be one of {wanted}")
    return dtype
