"""Safetensors files of a checkpoint: which there are, and whether they hold what they should."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SAFETENSORS_DTYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def files_of(folder: Path) -> dict[Path, list[str]]:
    """Names of the tensors that each weight file is to hold."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists():
        with opened(single) as weights:
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
        with opened(file) as weights:
            check_names(file, "the index", set(tensors), set(weights.keys()))
    return files


def check_headers(
    files: dict[Path, list[str]],
    shapes: dict[str, tuple[int, ...]],
    torch_dtype: str,
    whose: str,
) -> None:
    """Compare names, shapes and dtype with what `whose` config makes them; reads headers alone."""
    found = {name for names in files.values() for name in names}
    check_names(next(iter(files)).parent, whose, set(shapes), found)
    for file, names in files.items():
        with opened(file) as weights:
            for name in names:
                header = weights.get_slice(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                if shape != shapes[name]:
                    raise ValueError(
                        f"{name} in {file} has shape {list(shape)}; {whose} makes it"
                        f" {list(shapes[name])}"
                    )
                if dtype != _SAFETENSORS_DTYPE[torch_dtype]:
                    raise ValueError(
                        f"{name} in {file} is {dtype}; the config's torch_dtype is {torch_dtype}"
                    )


def check_names(where: Path, whose: str, expected: set[str], found: set[str]) -> None:
    if missing := sorted(expected - found):
        raise ValueError(f"{where} lacks {_some(missing)}, which {whose} asks for")
    if extra := sorted(found - expected):
        raise ValueError(f"{where} holds {_some(extra)}, which {whose} does not have")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def opened(file: Path) -> safe_open:
    """The weight file, memory-mapped; a damaged one is a ValueError that names it."""
    try:
        return safe_open(file, framework="pt")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
