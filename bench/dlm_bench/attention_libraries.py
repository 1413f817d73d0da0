"""Attention kernels of libraries that need not be here, by their documented calls.

None of them is a dependency: each is a peer where it can be imported, and else its absence is said.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

_FLASHINFER_WORKSPACE = 128 << 20  # bytes, as its documentation takes


def library_peers(
    q: Tensor, joined: Callable[[], tuple[Tensor, Tensor]]
) -> dict[str, Callable[[], object] | str]:
    """Attention of q [batch, block, heads, D] over `joined` keys and values, hiding none of them.

    joined: gives keys and values [batch, keys, kv_heads, D], the context and the block laid
        together; it is called when a peer first runs.
    """
    peers: dict[str, Callable[[], object] | str] = {}
    for name, module, make in (
        ("FlashInfer", "flashinfer", _flashinfer),
        ("FlashAttention-3", "flash_attn_interface", _flash_attention_3),
    ):
        peers[name] = make(q, joined) if find_spec(module) else f"{module} is not importable"
    peers["LMDeploy"] = (
        "this bench does not call its kernel yet"
        if find_spec("lmdeploy")
        else "lmdeploy is not importable"
    )
    return peers


def _flash_attention_3(q: Tensor, joined: Callable[[], tuple[Tensor, Tensor]]):
    def run() -> Tensor:
        from flash_attn_interface import flash_attn_func

        out = flash_attn_func(q, *joined(), causal=False)
        return out[0] if isinstance(out, tuple) else out  # some versions also return log-sum-exps

    return run


def _flashinfer(q: Tensor, joined: Callable[[], tuple[Tensor, Tensor]]):
    """Planned at the first run, as a server plans once a batch for all of its layers."""
    planned: list[Callable[..., Tensor]] = []

    def run() -> Tensor:
        keys, values = joined()
        if not planned:
            planned.append(_planned(q, keys))
        return planned[0](q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)).view_as(q)

    return run


def _planned(q: Tensor, keys: Tensor) -> Callable[..., Tensor]:
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    workspace = torch.empty(_FLASHINFER_WORKSPACE, dtype=torch.uint8, device=q.device)
    wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
    request = torch.arange(q.shape[0] + 1, dtype=torch.int32, device=q.device)
    wrapper.plan(
        request * q.shape[1],
        request * keys.shape[1],
        q.shape[2],
        keys.shape[2],
        q.shape[3],
        causal=False,
        q_data_type=q.dtype,
    )
    return wrapper.run
