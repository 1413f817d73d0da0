"""Models from checkpoint folders, and models of random weights.

A folder holds config.json and either model.safetensors or shards listed by
model.safetensors.index.json. Names, shapes and dtypes are compared with the config before a weight
is read; weights then stream in one tensor at a time.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dlm_kernels.validate import FLOAT_DTYPES

from .config import PRESETS, ModelConfig
from .model import Device, Model, RMSNorm

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SAFETENSORS_DTYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def load_model(
    folder: str | Path, *, device: Device = "cpu", dtype: torch.dtype | None = None
) -> Model:
    """The model of a Nemotron-Labs Diffusion checkpoint folder.

    Args:
        folder: holds config.json and the weights; other files in it are left alone.
        device: where the weights go.
        dtype: what they are converted to; by default they stay as stored.

    Raises:
        ValueError, TypeError: the config is not supported; a file is missing or damaged; a tensor
            is missing, extra, misshapen, of another dtype than the config's torch_dtype, or not
            finite in `dtype`. The message names the file, the key or the tensor.
    """
    folder = Path(folder)
    config = ModelConfig.from_json(folder / "config.json")
    dtype = _weight_dtype(dtype, config)
    expected = dict(Model(config, device="meta", dtype=torch.float32).named_parameters())
    files = _files_of(folder)
    _check_headers(files, {name: tuple(p.shape) for name, p in expected.items()}, config)

    model = Model(config, device=device, dtype=dtype)
    parameters = dict(model.named_parameters())
    for file, names in files.items():
        with _opened(file) as weights:
            for name in names:
                parameters[name].copy_(weights.get_tensor(name))
                if not parameters[name].isfinite().all():
                    raise ValueError(f"{name} in {file} is not finite in {model.dtype}")
    return model


def random_model(
    name_or_config: str | ModelConfig,
    *,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Model:
    """A model of random weights, drawn in place on the device, with logits of order one.

    Args:
        name_or_config: a name in `PRESETS`, or any config.
        device, dtype: of the weights; the dtype is by default the config's torch_dtype.
        seed: the same seed gives the same weights on the same kind of device.
    """
    config = name_or_config
    if isinstance(name_or_config, str):
        if name_or_config not in PRESETS:
            raise ValueError(
                f"name_or_config is {name_or_config!r}; it must be one of {', '.join(PRESETS)}"
            )
        config = PRESETS[name_or_config]
    model = Model(config, device=device, dtype=_weight_dtype(dtype, config))
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            # Outputs of order one for inputs of order one.
            module.weight.normal_(0, module.in_features**-0.5, generator=generator)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.normal_(generator=generator)
        elif isinstance(module, RMSNorm):
            module.weight.fill_(1)
    return model


def _weight_dtype(dtype: torch.dtype | None, config: ModelConfig) -> torch.dtype:
    if dtype is None:
        return getattr(torch, config.torch_dtype)
    if dtype not in FLOAT_DTYPES:
        wanted = ", ".join(map(str, FLOAT_DTYPES))
        raise TypeError(f"dtype is {dtype!r}; it must be one of {wanted}")
    return dtype


def _files_of(folder: Path) -> dict[Path, list[str]]:
    """Names of the tensors that each weight file is to hold."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists():
        with _opened(single) as weights:
            return {single: list(weights.keys())}
    if not index.exists():
        raise ValueError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: [] for name in weight_map.values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is not an index: it must hold a weight_map") from None
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index} places {tensor} in {shard!r}, which is no file name")
        shards[shard].append(tensor)
    files = {folder / shard: tensors for shard, tensors in shards.items()}
    for file, tensors in files.items():
        with _opened(file) as weights:
            _check_names(file, "the index", set(tensors), set(weights.keys()))
    return files


def _check_headers(
    files: dict[Path, list[str]], shapes: dict[str, tuple[int, ...]], config: ModelConfig
) -> None:
    """Compare names, shapes and dtypes with the config, reading headers alone."""
    found = {name for names in files.values() for name in names}
    _check_names(next(iter(files)).parent, "the config", set(shapes), found)
    for file, names in files.items():
        with _opened(file) as weights:
            for name in names:
                header = weights.get_slice(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                if shape != shapes[name]:
                    raise ValueError(
                        f"{name} in {file} has shape {list(shape)}; the config makes it"
                        f" {list(shapes[name])}"
                    )
                if dtype != _SAFETENSORS_DTYPE[config.torch_dtype]:
                    raise ValueError(
                        f"{name} in {file} is {dtype}; the config's torch_dtype is"
                        f" {config.torch_dtype}"
                    )


def _check_names(where: Path, whose: str, expected: set[str], found: set[str]) -> None:
    if missing := sorted(expected - found):
        raise ValueError(f"{where} lacks {_some(missing)}, which {whose} asks for")
    if extra := sorted(found - expected):
        raise ValueError(f"{where} holds {_some(extra)}, which {whose} does not have")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _opened(file: Path) -> safe_open:
    """The weight file, memory-mapped; a damaged one is a ValueError that names it."""
    try:
        return safe_open(file, framework="pt")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
