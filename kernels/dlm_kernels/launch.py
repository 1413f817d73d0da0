"""Launch configurations: tables of tile sizes, warps and stages, a file an architecture.

`launch_tables/sm_90.json` and its like hold the numbers; the classes here say what they mean.
Files are keyed by op, then by bytes an element (or the kind of a quantised weight), then by the
largest size that an entry serves: head_dim in attention, rows in `tiles`, the block in remasking.
What fixes a row's bits (segments, splits, chunks, their order) is a function of architecture, dtype
and layer shape only, so that they do not depend on who else is served; what does not, as the rows
of a tile and how much one program takes, may follow the batch. `fast` may follow it in all.
An entry is untuned until a measurement on that architecture has chosen it, as `dlm bench --tune`
does.
"""

import json
import operator
import typing
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
import triton

FOLDER = Path(__file__).parent / "launch_tables"


@dataclass(frozen=True)
class AttentionLaunch:
    """block_m query rows x block_n keys a tile; a split has split_keys keys of the context, or
    far_split_keys from position far_from on, a multiple of split_keys.

    A program takes one split, or where it `walks` may take all of them one after the other: its
    registers hold two accumulators. Per KV head a split of S keys has 512 S bytes of them in
    bfloat16 at head_dim 128, and 128 rows (32 positions of 4 grouped heads) write and read back
    131,072 bytes of partial results: 25% more at 1024, 50% at 512, 100% at 256. A batch of 1 at
    context 8k makes 64, 128 and 256 programs of that for an H200's 132 SMs. Behind as many keys
    longer splits fill the chip too, and the partial results of short ones would not stay in L2: at
    context 128k 256 splits of 512 write 134 MB, and 16 of 512 with 60 of 2048 write 40 MB. Where a
    split lies depends on its position alone, never on the context.
    """

    block_m: int
    block_n: int
    split_keys: int
    far_from: int
    far_split_keys: int
    num_warps: int
    num_stages: int
    walks: bool = False
    tuned: bool = False


@dataclass(frozen=True)
class ConfidenceLaunch:
    """A program reads `chunk` logits of one row, two 16-byte vectors a thread and iteration."""

    chunk: int
    num_warps: int
    num_stages: int
    tuned: bool = False


@dataclass(frozen=True)
class RemaskLaunch:
    """One program a request; ranks are counted against `compare` positions at a time."""

    compare: int
    num_warps: int
    tuned: bool = False


@dataclass(frozen=True)
class LinearTile:
    """block_o rows of the weight x block_r rows of x a tile."""

    block_o: int
    block_r: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class LinearLaunch:
    """block_k features an iteration, a divisor of 128; int4 weights take 128. `tiles` are keyed by
    the most rows that each serves, and the last serves more.

    in_features is cut into segments of at least min_segment features until `programs` programs of
    64 rows of the weight work on one tile of rows. From whole_programs programs on, those of the
    last tile walk every segment: with a second accumulator, which leaves registers for walking_rows
    rows of x at most, as an in_features does that is no whole number of tiles. Numerics "fast"
    takes torch's product for more than library_rows rows; None for quantised weights, which torch
    does not take.
    """

    block_k: int
    programs: int
    min_segment: int
    whole_programs: int
    walking_rows: int
    tiles: dict[int, LinearTile]
    library_rows: int | None = None
    tuned: bool = False


@dataclass(frozen=True)
class LmHeadTile:
    """block_r rows of hidden a tile."""

    block_r: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class LmHeadLaunch:
    """block_v rows of the weight a tile, block_k features an iteration; `tiles` are keyed by the
    most rows that each serves, and the last serves more.

    A program walks `chunk` ids of the vocabulary, a multiple of block_v. Shards of one vocabulary
    on several devices need the same block_v, block_k and chunk. Numerics "fast" takes torch's
    product for more than fused_rows rows, and holds at most library_logits logits at a time.
    """

    block_v: int
    block_k: int
    chunk: int
    tiles: dict[int, LmHeadTile]
    fused_rows: int
    library_logits: int
    tuned: bool = False


@dataclass(frozen=True)
class ResidualNormLaunch:
    """One program a row."""

    num_warps: int
    tuned: bool = False


@dataclass(frozen=True)
class GatedSiluLaunch:
    """A program makes `block` elements of one row."""

    block: int
    num_warps: int
    tuned: bool = False


@dataclass(frozen=True)
class RopeLaunch:
    """A program takes as many heads of one row as have `elements` elements."""

    elements: int
    num_warps: int
    tuned: bool = False


# --- the tables, each {architecture: entries}

# What an op's entries are keyed by, outermost first, and what they are.
_OPS: dict[str, tuple[int, type]] = {
    "block_attention": (2, AttentionLaunch),  # bytes an element, the largest head_dim it serves
    "confidence": (0, ConfidenceLaunch),
    "remask_scatter": (1, RemaskLaunch),  # the longest block it serves
    "linear": (1, LinearLaunch),  # bytes an element, or of 2-byte x the weight's kind
    "lm_head_confidence": (1, LmHeadLaunch),  # bytes an element
    "residual_norm": (1, ResidualNormLaunch),  # the longest row it serves
    "gated_silu": (0, GatedSiluLaunch),
    "rope_kv_write": (0, RopeLaunch),
}


def read_table(file: Path) -> dict[str, Any]:
    """One architecture's entries by op, and "shared_memory": bytes that one program may use."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    ops = {op: _entries(raw[op], *shape) for op, shape in _OPS.items()}
    return {"shared_memory": raw["shared_memory"]} | ops


def write_table(file: Path, table: Mapping[str, Any]) -> None:
    """Write what `read_table` reads, an entry a line."""
    file.write_text(_text(_plain(table)) + "\n", encoding="utf-8")


def _entries(raw: dict, depth: int, kind: type):
    if depth:
        return {_key(key): _entries(value, depth - 1, kind) for key, value in raw.items()}
    if "tiles" in raw:
        tile = typing.get_args(typing.get_type_hints(kind)["tiles"])[1]
        raw = raw | {"tiles": {_key(rows): tile(**each) for rows, each in raw["tiles"].items()}}
    return kind(**raw)


def _key(text: str) -> Hashable:
    return int(text) if text.isdigit() else text


def _plain(value: object) -> object:
    """Entries as dicts, without what is not there: a None, and a `tuned` that is False."""
    if is_dataclass(value):
        value = {
            name: each
            for name, each in vars(value).items()
            if each is not None and (name != "tuned" or each)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return value


def _text(value: Any, indent: str = "") -> str:
    """JSON with a line for each dict that holds no other."""
    if not isinstance(value, dict) or not any(isinstance(each, dict) for each in value.values()):
        return json.dumps(value)
    lines = (f'{indent} "{key}": {_text(each, indent + " ")}' for key, each in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


_ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
_TABLES = {arch: read_table(FOLDER / f"{arch}.json") for arch in _ARCHS}


def _by_arch(name: str) -> dict[str, Any]:
    return {arch: table[name] for arch, table in _TABLES.items()}


# The most shared memory one program may use, in bytes (CUDA C++ programming guide, "Technical
# specifications per compute capability": the most a thread block can opt in to).
SHARED_MEMORY = _by_arch("shared_memory")
BLOCK_ATTENTION = _by_arch("block_attention")
CONFIDENCE = _by_arch("confidence")
REMASK_SCATTER = _by_arch("remask_scatter")
LINEAR = _by_arch("linear")
LM_HEAD = _by_arch("lm_head_confidence")
RESIDUAL_NORM = _by_arch("residual_norm")
GATED_SILU = _by_arch("gated_silu")
ROPE_KV_WRITE = _by_arch("rope_kv_write")


@contextmanager
def overriding(table: dict, keys: tuple[Hashable, ...], entry: Any) -> Iterator[None]:
    """Ops launch with `entry` meanwhile, as when tuning or testing.

    Args:
        table: one of this module's, such as LINEAR.
        keys: of the place in it, the architecture first.
        entry: what stands in that place: an entry, or a dict of entries if further keys follow.
    """
    *outer, last = keys
    holder = reduce(operator.getitem, outer, table)
    present, holder[last] = holder[last], entry
    try:
        yield
    finally:
        holder[last] = present


def arch_of(device: torch.device) -> str:
    """The architecture whose table `device` runs: its own, or else the largest that fits.

    For a device without a table of its own a UserWarning says once which one it takes. The
    interpreter (a CPU tensor) runs that of sm_90.
    """
    if device.type != "cuda":
        return "sm_90"
    major, minor = torch.cuda.get_device_capability(device)
    capability = major * 10 + minor
    if f"sm_{capability}" in SHARED_MEMORY:
        return f"sm_{capability}"
    if capability < 80:
        raise ValueError(f"{device} is sm_{capability}; the kernels need sm_80 or newer")
    return _largest_that_fits(capability, _shared_memory_of(device))


def _shared_memory_of(device: torch.device) -> int:
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


@cache
def _largest_that_fits(capability: int, shared_memory: int) -> str:
    """Of the tables that ask for no more shared memory the one that asks for most.

    Of two alike the newest that is not newer than the device.
    """

    def preference(arch: str) -> tuple[int, bool, int]:
        number = int(arch.removeprefix("sm_"))
        return SHARED_MEMORY[arch], number <= capability, number

    fitting = [arch for arch, needed in SHARED_MEMORY.items() if needed <= shared_memory]
    if not fitting:
        raise ValueError(
            f"sm_{capability} gives a program {shared_memory} bytes of shared memory; the kernels"
            f" need {min(SHARED_MEMORY.values())}"
        )
    arch = max(fitting, key=preference)
    warnings.warn(
        f"there is no launch table for sm_{capability}; it runs with that of {arch}", stacklevel=2
    )
    return arch


def tile_serving(tiles: dict[int, object], rows: int):
    """The tile with the smallest key that is at least `rows`, or else the largest."""
    return tiles[min((most for most in tiles if most >= rows), default=max(tiles))]


def smallest_serving(entries: dict[int, object], size: int):
    """The entry with the smallest key that is at least `size`."""
    return entries[min(key for key in entries if key >= size)]
