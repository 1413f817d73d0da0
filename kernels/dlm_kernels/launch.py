"""Launch configurations: plain tables, architecture x shape class -> tile sizes, warps, stages.

A configuration never depends on batch or context. That of attention and confidence is a function of
architecture, dtype and layer shape only, so that a row's bits do not depend on who else is served;
`fast` attention alone narrows its tiles to short blocks.
Every entry is untuned until a measurement on that architecture has chosen it.
"""

from dataclasses import dataclass

import torch

# Shared memory one program may use, in bytes (CUDA C++ programming guide, "Technical
# specifications per compute capability": the most a thread block can opt in to).
SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376}


@dataclass(frozen=True)
class AttentionLaunch:
    """block_m query rows x block_n keys a tile; a program walks split_keys keys of the context."""

    block_m: int
    block_n: int
    split_keys: int
    num_warps: int
    num_stages: int
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
class LinearLaunch:
    """block_o rows of the weight x block_r rows of x a tile, block_k features an iteration.

    in_features is cut into segments of at least min_segment features until `programs` programs
    work on one tile of rows.
    """

    block_o: int
    block_r: int
    block_k: int
    programs: int
    min_segment: int
    num_warps: int
    num_stages: int
    tuned: bool = False


@dataclass(frozen=True)
class LmHeadLaunch:
    """block_v rows of the weight x block_r rows of hidden a tile, block_k features an iteration.

    A program walks `chunk` ids of the vocabulary, a multiple of block_v. Shards of one vocabulary
    on several devices need the same chunk.
    """

    block_v: int
    block_r: int
    block_k: int
    chunk: int
    num_warps: int
    num_stages: int
    tuned: bool = False


# Keyed by bytes an element, then by the largest head_dim the entry serves.
_FLOAT32_ATTENTION = {
    64: AttentionLaunch(32, 32, split_keys=1024, num_warps=8, num_stages=2),
    256: AttentionLaunch(16, 32, split_keys=1024, num_warps=8, num_stages=1),
}
_MMA_ATTENTION = {
    2: {
        64: AttentionLaunch(128, 64, split_keys=1024, num_warps=8, num_stages=3),
        128: AttentionLaunch(64, 32, split_keys=1024, num_warps=4, num_stages=3),
        256: AttentionLaunch(64, 32, split_keys=1024, num_warps=8, num_stages=2),
    },
    4: _FLOAT32_ATTENTION,
}
_WGMMA_ATTENTION = {
    2: {
        64: AttentionLaunch(128, 128, split_keys=1024, num_warps=8, num_stages=3),
        128: AttentionLaunch(128, 64, split_keys=1024, num_warps=8, num_stages=3),
        256: AttentionLaunch(128, 32, split_keys=1024, num_warps=8, num_stages=2),
    },
    4: _FLOAT32_ATTENTION,
}
_TCGEN05_ATTENTION = {
    2: {
        64: AttentionLaunch(128, 64, split_keys=1024, num_warps=4, num_stages=3),
        128: AttentionLaunch(128, 64, split_keys=1024, num_warps=8, num_stages=3),
        256: AttentionLaunch(64, 64, split_keys=1024, num_warps=8, num_stages=2),
    },
    4: _FLOAT32_ATTENTION,
}
BLOCK_ATTENTION = {
    "sm_80": _MMA_ATTENTION,
    "sm_90": _WGMMA_ATTENTION,
    "sm_100": _TCGEN05_ATTENTION,
    "sm_120": _MMA_ATTENTION,
}

_CONFIDENCE = ConfidenceLaunch(chunk=16_384, num_warps=4, num_stages=3)
CONFIDENCE = dict.fromkeys(SHARED_MEMORY, _CONFIDENCE)

# Keyed by the largest block length the entry serves.
_REMASK = {
    32: RemaskLaunch(compare=32, num_warps=1),
    256: RemaskLaunch(compare=16, num_warps=4),
}
REMASK_SCATTER = dict.fromkeys(SHARED_MEMORY, _REMASK)


# Keyed by bytes an element.
_FLOAT32_LINEAR = LinearLaunch(64, 32, 32, programs=264, min_segment=512, num_warps=4, num_stages=3)
_LINEAR = {
    2: LinearLaunch(64, 32, 128, programs=264, min_segment=512, num_warps=4, num_stages=4),
    4: _FLOAT32_LINEAR,
}
LINEAR = dict.fromkeys(SHARED_MEMORY, _LINEAR)


# Keyed by bytes an element.
_FLOAT32_LM_HEAD = LmHeadLaunch(64, 32, 32, chunk=512, num_warps=4, num_stages=3)
_LM_HEAD = {
    2: LmHeadLaunch(128, 32, 64, chunk=512, num_warps=4, num_stages=4),
    4: _FLOAT32_LM_HEAD,
}
# A thread reads whole rows of the accumulator here: half as many ids a tile, or they spill.
_TCGEN05_LM_HEAD = {
    2: LmHeadLaunch(64, 32, 64, chunk=512, num_warps=4, num_stages=6),
    4: _FLOAT32_LM_HEAD,
}
LM_HEAD = {
    "sm_80": _LM_HEAD,
    "sm_90": _LM_HEAD,
    "sm_100": _TCGEN05_LM_HEAD,
    "sm_120": _LM_HEAD,
}


def arch_of(device: torch.device) -> str:
    """The table row for `device`: its own architecture, else the newest older one.

    The interpreter (a CPU tensor) runs the sm_90 entries.
    """
    if device.type != "cuda":
        return "sm_90"
    major, minor = torch.cuda.get_device_capability(device)
    capability = major * 10 + minor
    older = [arch for arch in SHARED_MEMORY if int(arch.removeprefix("sm_")) <= capability]
    if not older:
        raise ValueError(f"{device} is sm_{capability}; the kernels need sm_80 or newer")
    return older[-1]


def smallest_serving(entries: dict[int, object], size: int):
    """The entry with the smallest key that is at least `size`."""
    return entries[min(key for key in entries if key >= size)]
